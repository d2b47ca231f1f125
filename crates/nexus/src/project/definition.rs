//! What events of kinds 31933, 4199 and 4200 define: a project, an agent, an MCP server; and what the profile of an agent
//! says, whom a project names by its key. Their authors may be anybody by the time they are read here: every text has a
//! bound, and nothing of it is a path or a command yet.

use super::coordinate::{Coordinate, CoordinateError};
use ::nostr::event::Event;
use serde_json::Value;
use std::collections::BTreeSet;

/// The kind of an agent's definition, of an MCP server's, and of a repository's announcement (NIP-34).
pub const AGENT_KIND: u16 = 4199;
pub const MCP_KIND: u16 = 4200;
pub const REPOSITORY_KIND: u16 = 30_617;
/// The kind of a profile (NIP-01).
pub const PROFILE_KIND: u16 = 0;
/// Agents, servers, hashtags and members of a roster that one project may have; more are left out.
pub const MEMBERS_MAX: usize = 64;
/// Tools of one agent; more are left out. What is, people are told.
const TOOLS_MAX: usize = 256;
/// Longest title, name, role or tag, in characters.
const TITLE_CHARS_MAX: usize = 200;
/// Longest name of a tool, in bytes.
const TOOL_BYTES_MAX: usize = 128;
/// Digits of its key in the name of an agent of whom nothing else is known.
const SHORT_KEY_CHARS: usize = 8;
/// Longest description or address, and longest instructions, in bytes.
const TEXT_BYTES_MAX: usize = 16 * 1024;
const INSTRUCTIONS_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    #[error("event {id} is of kind {kind}, not {expected}")]
    Kind { id: String, kind: u16, expected: u16 },
    #[error("event {id} has no usable `d` tag")]
    Address {
        id: String,
        #[source]
        source: CoordinateError,
    },
    #[error("event {id} has no `{tag}`")]
    Missing { id: String, tag: &'static str },
    #[error("event {id}: `{tag}` is longer than {limit_bytes} bytes")]
    TooLong { id: String, tag: &'static str, limit_bytes: usize },
    #[error("event {id}: {problem}")]
    Invalid { id: String, problem: String },
}

/// A project. Both forms are read: `agent` tags that name definitions, and the newer `p` tags that are a roster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    pub id: String,
    pub coordinate: Coordinate,
    /// Unix seconds.
    pub created_at: u64,
    pub title: String,
    pub description: Option<String>,
    /// As it was written: whether it may be cloned is decided elsewhere.
    pub repo: Option<String>,
    /// An announcement that says where the repository is, where `repo` doesn't.
    pub announced: Option<Coordinate>,
    pub hashtags: Vec<String>,
    /// Ids of agents' definitions, in order, each once.
    pub agents: Vec<String>,
    /// Ids of MCP servers' definitions, likewise.
    pub mcp: Vec<String>,
    /// Public keys in the order of the `p` tags, each once; the first is the manager's.
    pub roster: Vec<String>,
    /// What of its tags was left out, for people.
    pub problems: Vec<String>,
}

impl Definition {
    /// # Errors
    /// [`DefinitionError`] when the event is no project's definition, or a text of it is too long to be one.
    pub fn of(event: &Event) -> Result<Self, DefinitionError> {
        let tags = Tags(event);
        // Whether the kind is one of projects the caller knows: its configuration has a list.
        let identifier = tags.first("d").ok_or_else(|| tags.missing("d"))?;
        let coordinate = Coordinate::new(event.kind.as_u16(), &event.pubkey.to_hex(), identifier)
            .map_err(|source| DefinitionError::Address { id: tags.id(), source })?;
        let title = tags.first("title").or_else(|| tags.first("name")).map(title_text).filter(|title| !title.is_empty());
        let mut problems = Vec::new();
        Ok(Self {
            id: tags.id(),
            created_at: event.created_at.as_secs(),
            title: title.unwrap_or_else(|| title_text(identifier)),
            description: tags.text("description", &event.content)?,
            repo: tags.text("repo", "")?,
            announced: tags.all("a").filter_map(|a| Coordinate::parse(a).ok()).find(|a| a.kind == REPOSITORY_KIND),
            hashtags: tags.all("t").map(title_text).filter(|tag| !tag.is_empty()).take(MEMBERS_MAX).collect(),
            agents: tags.ids("agent", &mut problems),
            mcp: tags.ids("mcp", &mut problems),
            roster: tags.ids("p", &mut problems),
            coordinate,
            problems,
        })
    }
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentDefinition {
    /// Of its event of kind 4199; none for one of whom only a profile, or a key, is known.
    pub id: Option<String>,
    pub author: String,
    pub name: String,
    pub role: String,
    pub description: String,
    pub use_criteria: String,
    pub instructions: String,
    /// What it would like to call.
    pub tools: Vec<String>,
    /// Ids of MCP servers that it would like to use.
    pub mcp: Vec<String>,
    /// What of its tags was left out, for people.
    pub problems: Vec<String>,
}

impl AgentDefinition {
    /// # Errors
    /// [`DefinitionError`].
    pub fn of(event: &Event) -> Result<Self, DefinitionError> {
        let tags = Tags(event);
        tags.must_be(AGENT_KIND)?;
        let name = tags.first("title").or_else(|| tags.first("name")).map(title_text).filter(|name| !name.is_empty());
        let single = |name| tags.text(name, "").map(Option::unwrap_or_default);
        let mut problems = Vec::new();
        Ok(Self {
            id: Some(tags.id()),
            author: event.pubkey.to_hex(),
            name: name.ok_or_else(|| tags.missing("title"))?,
            role: tags.first("role").map(title_text).unwrap_or_default(),
            description: single("description")?,
            use_criteria: single("use-criteria")?,
            instructions: tags.instructions(&event.content)?,
            tools: tags.tools(&mut problems),
            mcp: tags.ids("mcp", &mut problems),
            problems,
        })
    }

    /// What an agent's profile says of it: its name in the content, the rest in the tags of a definition.
    ///
    /// # Errors
    /// [`DefinitionError`].
    pub fn of_profile(event: &Event) -> Result<Self, DefinitionError> {
        let tags = Tags(event);
        tags.must_be(PROFILE_KIND)?;
        // A profile that is no JSON has a key and tags all the same.
        let profile: Value = serde_json::from_str(&event.content).unwrap_or(Value::Null);
        let said = |key: &str| profile[key].as_str().unwrap_or_default();
        let name = [said("name"), said("display_name")].into_iter().map(title_text).find(|name| !name.is_empty());
        let unknown = Self::unknown(&event.pubkey.to_hex());
        let mut problems = Vec::new();
        let about = if said("about").is_empty() { said("description") } else { said("about") };
        Ok(Self {
            name: name.unwrap_or(unknown.name),
            role: title_text(tags.first("role").unwrap_or_else(|| said("role"))),
            description: tags.text("description", about)?.unwrap_or_default(),
            use_criteria: tags.text("use-criteria", "")?.unwrap_or_default(),
            instructions: tags.instructions("")?,
            tools: tags.tools(&mut problems),
            mcp: tags.ids("mcp", &mut problems),
            problems,
            ..unknown
        })
    }

    /// An agent of whom nothing but its key is known, in hex.
    pub fn unknown(key: &str) -> Self {
        Self {
            id: None,
            author: key.to_owned(),
            name: format!("Agent {}", key.get(..SHORT_KEY_CHARS).unwrap_or(key)),
            role: String::new(),
            description: String::new(),
            use_criteria: String::new(),
            instructions: String::new(),
            tools: Vec::new(),
            mcp: Vec::new(),
            problems: Vec::new(),
        }
    }
}

/// The definition that an agent's profile says it is made from.
pub fn definition_of_profile(event: &Event) -> Option<String> {
    // Profiles have other `e` tags as well: what is none of an event is nobody's fault.
    Tags(event).ids("e", &mut Vec::new()).into_iter().next()
}

/// An MCP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct McpDefinition {
    pub id: String,
    pub author: String,
    pub name: String,
    pub description: String,
    /// The program and its arguments; never empty.
    pub argv: Vec<String>,
}

impl McpDefinition {
    /// # Errors
    /// [`DefinitionError`].
    pub fn of(event: &Event) -> Result<Self, DefinitionError> {
        let tags = Tags(event);
        tags.must_be(MCP_KIND)?;
        let name = tags.first("name").or_else(|| tags.first("title")).map(title_text).filter(|name| !name.is_empty());
        let command = tags.first("command").ok_or_else(|| tags.missing("command"))?;
        if command.len() > TEXT_BYTES_MAX {
            return Err(DefinitionError::TooLong { id: tags.id(), tag: "command", limit_bytes: TEXT_BYTES_MAX });
        }
        let invalid = |problem: &str| DefinitionError::Invalid { id: tags.id(), problem: problem.to_owned() };
        // What can't be shown as it is can't be approved as it is.
        if command.contains(char::is_control) {
            return Err(invalid("`command` has control characters"));
        }
        let argv = shell_words::split(command).map_err(|_| invalid("`command` has an open quote"))?;
        if argv.first().is_none_or(|program| program.is_empty() || program.starts_with('-')) {
            return Err(invalid("`command` names no program"));
        }
        Ok(Self {
            id: tags.id(),
            author: event.pubkey.to_hex(),
            name: name.ok_or_else(|| tags.missing("name"))?,
            description: tags.text("description", &event.content)?.unwrap_or_default(),
            argv,
        })
    }
}

/// The addresses to clone from that an announcement of a repository names (NIP-34), in order.
pub fn clone_addresses(event: &Event) -> Vec<String> {
    let urls = event.tags.iter().map(::nostr::event::Tag::as_slice).filter(|tag| tag.first().is_some_and(|name| name == "clone"));
    urls.flat_map(|tag| tag.iter().skip(1)).filter(|url| url.len() <= TEXT_BYTES_MAX).take(MEMBERS_MAX).cloned().collect()
}

/// One event's tags, of which there may be many thousands, each of any length.
struct Tags<'e>(&'e Event);

impl<'e> Tags<'e> {
    fn id(&self) -> String {
        self.0.id.to_hex()
    }

    fn must_be(&self, expected: u16) -> Result<(), DefinitionError> {
        let kind = self.0.kind.as_u16();
        if kind == expected { Ok(()) } else { Err(DefinitionError::Kind { id: self.id(), kind, expected }) }
    }

    fn missing(&self, tag: &'static str) -> DefinitionError {
        DefinitionError::Missing { id: self.id(), tag }
    }

    /// The first value of each tag of this name.
    fn all(&self, name: &str) -> impl Iterator<Item = &'e str> {
        let tags = self.0.tags.iter().map(::nostr::event::Tag::as_slice);
        tags.filter(move |tag| tag.first().is_some_and(|first| first == name)).filter_map(|tag| tag.get(1).map(String::as_str))
    }

    fn first(&self, name: &str) -> Option<&'e str> {
        self.all(name).next()
    }

    /// Ids or keys of 64 hexadecimal digits, each once. What is left out is told.
    fn ids(&self, name: &'static str, problems: &mut Vec<String>) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let all = self.all(name).map(str::to_ascii_lowercase).filter(|id| seen.insert(id.clone()));
        let (mut ids, malformed): (Vec<String>, Vec<String>) = all.partition(|id| is_hex_id(id));
        let beyond = ids.split_off(ids.len().min(MEMBERS_MAX));
        if let Some(first) = beyond.first() {
            problems.push(format!("{} `{name}` tag(s) beyond the first {MEMBERS_MAX} left out, such as `{first}`", beyond.len()));
        }
        if let Some(first) = malformed.first() {
            let more = if malformed.len() > 1 { format!(", nor are {} others", malformed.len() - 1) } else { String::new() };
            let first: String = printable(first).chars().take(TITLE_CHARS_MAX).collect();
            problems.push(format!("`{name}`: `{first}` is no id of 64 hexadecimal digits{more}"));
        }
        ids
    }

    /// A text from its tag, else from `content`.
    fn text(&self, name: &'static str, content: &str) -> Result<Option<String>, DefinitionError> {
        let text = self.first(name).unwrap_or(content).trim();
        if text.len() > TEXT_BYTES_MAX {
            return Err(DefinitionError::TooLong { id: self.id(), tag: name, limit_bytes: TEXT_BYTES_MAX });
        }
        Ok(Some(printable(text)).filter(|text| !text.is_empty()))
    }

    fn tools(&self, problems: &mut Vec<String>) -> Vec<String> {
        let tools: Vec<String> = self.all("tool").filter(|tool| is_tool(tool)).take(TOOLS_MAX).map(str::to_owned).collect();
        let left_out = self.all("tool").count() - tools.len();
        if left_out > 0 {
            problems.push(format!("{left_out} `tool` tag(s) left out: {TOOLS_MAX} names of A-Z a-z 0-9 _ - . : / may be given"));
        }
        tools
    }

    /// From `instructions` tags and `content`; the same text in both is taken once.
    fn instructions(&self, content: &str) -> Result<String, DefinitionError> {
        let mut parts: Vec<&str> = Vec::new();
        let mut bytes = 0_usize;
        for part in self.all("instructions").chain([content]).map(str::trim) {
            if part.is_empty() || parts.contains(&part) {
                continue;
            }
            bytes = bytes.saturating_add(part.len() + 2);
            if bytes > INSTRUCTIONS_BYTES_MAX {
                return Err(DefinitionError::TooLong { id: self.id(), tag: "instructions", limit_bytes: INSTRUCTIONS_BYTES_MAX });
            }
            parts.push(part);
        }
        Ok(printable(&parts.join("\n\n")))
    }
}

pub(crate) fn is_hex_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// A name of a tool, with the separators that plugins and MCP servers use; a `*` is part of no name.
fn is_tool(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:/".contains(&byte);
    !text.is_empty() && text.len() <= TOOL_BYTES_MAX && text.bytes().all(allowed)
}

/// One line of text that can be shown.
fn title_text(text: &str) -> String {
    let line: String = text.chars().take(TITLE_CHARS_MAX).map(|c| if c.is_whitespace() { ' ' } else { c }).collect();
    printable(line.trim())
}

/// Without control characters, but for line breaks and tabs.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n' || *c == '\t').collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::coordinate::PROJECT_KIND;
    use super::*;
    use ::nostr::event::{EventBuilder, FinalizeEvent, Kind, Tag};
    use ::nostr::key::Keys;

    fn event(kind: u16, content: &str, tags: &[&[&str]]) -> Event {
        let tags = tags.iter().map(|tag| Tag::parse(tag.iter().copied()).unwrap());
        EventBuilder::new(Kind::from(kind), content).tags(tags).finalize(&Keys::generate()).unwrap()
    }

    #[test]
    fn both_forms_of_a_project_are_read() {
        let (a, b, key) = ("a".repeat(64), "B".repeat(64), "c".repeat(64));
        let announced = format!("30617:{key}:code");
        let old = event(
            PROJECT_KIND,
            "What it is.",
            &[
                &["d", "demo:1"],
                &["title", "Demo\nproject"],
                &["repo", "https://example.org/x.git"],
                &["a", &announced],
                &["t", "rust"],
                &["agent", &a],
                &["agent", &b, "extra"],
                &["agent", &a],
                &["mcp", "nonsense"],
            ],
        );
        let read = Definition::of(&old).unwrap();
        assert_eq!((read.title.as_str(), read.coordinate.identifier.as_str()), ("Demo project", "demo:1"));
        assert_eq!(read.agents, [a, b.to_lowercase()]);
        assert_eq!((read.mcp.len(), read.hashtags.as_slice()), (0, ["rust".to_owned()].as_slice()));
        assert_eq!(read.description.as_deref(), Some("What it is."));
        assert_eq!(read.announced.unwrap().identifier, "code");

        let new = event(PROJECT_KIND, "", &[&["d", "demo"], &["p", &key], &["p", "short"]]);
        let read = Definition::of(&new).unwrap();
        assert_eq!((read.roster.as_slice(), read.title.as_str(), read.description), ([key].as_slice(), "demo", None));
    }

    #[test]
    fn what_is_no_definition_is_refused_with_its_reason() {
        let text = |result: Result<Definition, DefinitionError>| result.unwrap_err().to_string();
        assert!(text(Definition::of(&event(PROJECT_KIND, "", &[]))).ends_with("has no `d`"));
        assert!(text(Definition::of(&event(PROJECT_KIND, "", &[&["d", "a\nb"]]))).contains("`d` tag"));
        let long = "x".repeat(TEXT_BYTES_MAX + 1);
        assert!(text(Definition::of(&event(PROJECT_KIND, "", &[&["d", "a"], &["repo", &long]]))).contains("`repo` is longer"));
        assert!(AgentDefinition::of(&event(1, "", &[])).unwrap_err().to_string().contains("kind 1, not 4199"));
        assert!(AgentDefinition::of(&event(AGENT_KIND, "", &[])).unwrap_err().to_string().ends_with("has no `title`"));
    }

    #[test]
    fn an_agent_keeps_its_bounds() {
        let tools: Vec<String> = (0..TOOLS_MAX + 9).map(|n| format!("tool_{n}")).collect();
        let mut tags: Vec<Vec<&str>> = tools.iter().map(|tool| vec!["tool", tool.as_str()]).collect();
        tags.extend([vec!["title", "Pro\u{7}Fessor"], vec!["instructions", "Be kind."], vec!["tool", "rm -rf *"], vec!["tool", "*"]]);
        let tags: Vec<&[&str]> = tags.iter().map(Vec::as_slice).collect();
        let read = AgentDefinition::of(&event(AGENT_KIND, "Be kind.", &tags)).unwrap();
        assert_eq!((read.name.as_str(), read.instructions.as_str(), read.tools.len()), ("ProFessor", "Be kind.", TOOLS_MAX));
        let long = event(AGENT_KIND, &"x".repeat(INSTRUCTIONS_BYTES_MAX + 1), &[&["title", "a"]]);
        assert!(matches!(AgentDefinition::of(&long), Err(DefinitionError::TooLong { .. })));
    }

    #[test]
    fn a_profile_says_who_an_agent_is_whatever_else_it_says() {
        let (id, server) = ("a".repeat(64), "b".repeat(64));
        let tags: &[&[&str]] = &[&["e", "short"], &["e", &id], &["instructions", "Be kind."], &["tool", "search"], &["mcp", &server]];
        let profile = event(PROFILE_KIND, r#"{"name": "Re\u0007viewer", "about": "Reads.", "role": 7}"#, tags);
        let read = AgentDefinition::of_profile(&profile).unwrap();
        assert_eq!((read.name.as_str(), read.description.as_str(), read.role.as_str()), ("Reviewer", "Reads.", ""));
        assert_eq!((read.instructions.as_str(), read.tools.len(), read.mcp, read.id), ("Be kind.", 1, vec![server], None));
        assert_eq!(definition_of_profile(&profile), Some(id));

        for content in ["", "no JSON", "[]", r#"{"name": ["x"]}"#, r#"{"name": " \n "}"#] {
            let profile = event(PROFILE_KIND, content, &[]);
            assert_eq!(AgentDefinition::of_profile(&profile).unwrap(), AgentDefinition::unknown(&profile.pubkey.to_hex()), "{content}");
        }
        let long = event(PROFILE_KIND, "{}", &[&["instructions", &"x".repeat(INSTRUCTIONS_BYTES_MAX + 1)]]);
        assert!(matches!(AgentDefinition::of_profile(&long), Err(DefinitionError::TooLong { .. })));
        assert!(AgentDefinition::of_profile(&event(1, "{}", &[])).is_err());
    }

    #[test]
    fn a_command_is_an_argv_that_can_be_shown() {
        let of = |command: &str| McpDefinition::of(&event(MCP_KIND, "", &[&["name", "files"], &["command", command]]));
        assert_eq!(of("npx -y \"two words\"").unwrap().argv, ["npx", "-y", "two words"]);
        for bad in ["", "  ", "a \"b", "a\u{1b}[2Jb", "-x", "''"] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
        assert!(matches!(of(&"x".repeat(TEXT_BYTES_MAX + 1)), Err(DefinitionError::TooLong { .. })));
    }

    #[test]
    fn an_announcement_names_where_to_clone_from() {
        let announced = event(REPOSITORY_KIND, "", &[&["d", "x"], &["clone", "https://a/x", "ssh://b/x"], &["clone", "https://c/x"]]);
        assert_eq!(clone_addresses(&announced), ["https://a/x", "ssh://b/x", "https://c/x"]);
    }
}
