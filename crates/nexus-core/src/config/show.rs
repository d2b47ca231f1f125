//! The effective configuration as YAML text that says where each value came from. Values that sound
//! like secrets are left out; apart from those, loading the text gives the same configuration.

use super::Config;
use super::node::{FileId, Node};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value as Json};
use std::fmt;

const REDACTED: &str = "\"<redacted>\"";
/// A key with one of these in it, in any case, sounds like a secret.
const SECRET_WORDS: &[&str] = &["secret", "token", "password", "key"];
/// Words that some YAML reader takes for something other than text.
const RESERVED_WORDS: &[&str] = &["null", "true", "false", "yes", "no", "on", "off", "y", "n"];

pub(super) fn render(config: &Config, origins: &Node) -> String {
    // By way of JSON text, which keeps the order in which the keys are documented.
    let shown = serde_json::to_string(config).and_then(|json| serde_json::from_str::<Shown>(&json));
    let mut page = Page { text: String::new(), path: Vec::new() };
    match shown {
        Ok(Shown::Section(fields)) => page.section(&fields, Some(origins), 0),
        Ok(Shown::Literal(_) | Shown::Text(_) | Shown::List(_)) | Err(_) => {
            unreachable!("a configuration has text keys and finite numbers, so it is a JSON object")
        }
    }
    page.text
}

/// A value with its keys in order.
#[derive(Debug)]
enum Shown {
    /// Null, a truth value or a number, as it is written.
    Literal(String),
    Text(String),
    List(Vec<Shown>),
    Section(Vec<(String, Shown)>),
}

impl Shown {
    fn is_null(&self) -> bool {
        matches!(self, Self::Literal(text) if text == "null")
    }

    /// A value that fits behind its key: a scalar, or something empty.
    fn inline(&self) -> Option<String> {
        match self {
            Self::Literal(text) => Some(text.clone()),
            Self::Text(text) => Some(scalar(text)),
            Self::List(items) if items.is_empty() => Some("[]".to_owned()),
            Self::Section(fields) if fields.is_empty() => Some("{}".to_owned()),
            Self::List(items) => {
                let texts = items.iter().map(|item| match item {
                    Self::Literal(text) => Some(text.clone()),
                    Self::Text(text) => Some(scalar(text)),
                    Self::List(_) | Self::Section(_) => None,
                });
                texts.collect::<Option<Vec<_>>>().map(|texts| format!("[{}]", texts.join(", ")))
            }
            Self::Section(_) => None,
        }
    }
}

/// The text while it is written, and the keys that lead to where it is.
struct Page {
    text: String,
    path: Vec<String>,
}

impl Page {
    fn section(&mut self, fields: &[(String, Shown)], node: Option<&Node>, indent: usize) {
        for (key, value) in fields {
            self.text.push_str(&" ".repeat(indent));
            self.text.push_str(&scalar(key));
            self.text.push(':');
            self.path.push(key.clone());
            let child = node.and_then(|node| lookup(node, key));
            if is_secret(&self.path) && !value.is_null() {
                self.end_line(REDACTED, mark(child, value));
            } else {
                self.value(value, child, indent);
            }
            self.path.pop();
        }
    }

    /// Writes what follows `key:` or `-`, to the end of its last line.
    fn value(&mut self, value: &Shown, node: Option<&Node>, indent: usize) {
        if let Some(text) = value.inline() {
            self.end_line(&text, mark(node, value));
            return;
        }
        self.text.push('\n');
        match value {
            Shown::Section(fields) => self.section(fields, node, indent + 2),
            Shown::List(items) => {
                let nodes = node.map(Node::items).unwrap_or_default();
                for (index, item) in items.iter().enumerate() {
                    self.text.push_str(&" ".repeat(indent + 2));
                    self.text.push('-');
                    self.value(item, nodes.get(index), indent + 2);
                }
            }
            // These are always inline.
            Shown::Literal(_) | Shown::Text(_) => {}
        }
    }

    fn end_line(&mut self, value: &str, mark: &str) {
        self.text.push(' ');
        self.text.push_str(value);
        self.text.push_str(mark);
        self.text.push('\n');
    }
}

fn lookup<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    let alias = if key == "credential_ref" { node.get("credential") } else { None };
    node.get(key).filter(|node| !node.is_null()).or(alias).or_else(|| node.get(key))
}

fn mark(node: Option<&Node>, value: &Shown) -> &'static str {
    match node.map(|node| (node.at.file, node.is_null())) {
        None => " # default",
        Some((FileId::Overlay, _)) => " # overlay",
        Some((FileId::Main, true)) if !value.is_null() => " # default",
        Some((FileId::Main, _)) => "",
    }
}

/// Whether a path ends at a key of an environment or of an account's free values that sounds like a
/// secret. No other key holds one.
fn is_secret(path: &[String]) -> bool {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let key = match path.as_slice() {
        ["adapters" | "agents", _, "env", key] | ["agents", _, "mcp", _, "env", key] => key,
        ["projects", "overrides", _, "env", key] => key,
        ["adapters", _, "accounts", _, "config", .., key] => key,
        _ => return false,
    };
    let key = key.to_lowercase();
    SECRET_WORDS.iter().any(|word| key.contains(word))
}

/// Text as a YAML scalar: plain where no reader can take it for anything else, else double-quoted.
fn scalar(text: &str) -> String {
    let starts_plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let is_plain = starts_plain
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_./@+-".contains(c))
        && !RESERVED_WORDS.contains(&text.to_ascii_lowercase().as_str());
    if is_plain {
        return text.to_owned();
    }
    // JSON's escapes are YAML's too (YAML 1.2, 5.7), but JSON leaves some control characters bare.
    let mut quoted = String::new();
    for c in Json::from(text).to_string().chars() {
        if c.is_control() {
            quoted.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            quoted.push(c);
        }
    }
    quoted
}

impl<'de> Deserialize<'de> for Shown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShownVisitor)
    }
}

struct ShownVisitor;

impl<'de> Visitor<'de> for ShownVisitor {
    type Value = Shown;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Shown, E> {
        Ok(Shown::Literal("null".to_owned()))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Shown, E> {
        Ok(Shown::Literal(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Shown, E> {
        Ok(Shown::Literal(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Shown, E> {
        Ok(Shown::Literal(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Shown, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number is not finite"))?;
        Ok(Shown::Literal(number.to_string()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Shown, E> {
        Ok(Shown::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shown, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Shown::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shown, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Shown::Section(fields))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{FULL_YAML, loaded, loaded_with};
    use super::super::{DEFAULT_YAML, Source, load};
    use super::*;

    fn line<'t>(text: &'t str, start: &str) -> &'t str {
        text.lines().find(|line| line.trim_start().starts_with(start)).unwrap()
    }

    #[test]
    fn each_value_says_where_it_came_from() {
        let main = "daemon: {port: 7500}\nadapters: {gog: {command: gog, accounts: {me: {credential: google/me}}}}\n";
        let shown = loaded_with(main, "daemon: {log_level: debug}\nplugins: {enabled: []}\n").show();
        assert_eq!(line(&shown, "port:"), "  port: 7500");
        assert_eq!(line(&shown, "log_level:"), "  log_level: debug # overlay");
        assert_eq!(line(&shown, "enabled: []"), "  enabled: [] # overlay");
        assert_eq!(line(&shown, "host:"), "  host: \"127.0.0.1\" # default");
        assert_eq!(line(&shown, "credential_ref:"), "        credential_ref: google/me");
        assert_eq!(line(&shown, "monitor:"), "        monitor: true # default");
        assert!(shown.starts_with("daemon:\n  host:"), "{shown}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let text = "
adapters:
  gog:
    command: gog
    env: {API_TOKEN: hush1, PLAIN: seen1}
    accounts: {me: {config: {Password: hush2, deep: {list: [{client_secret: [hush3]}]}, plain: seen2}}}
agents:
  a: {runner: llm, model: m, url: 'http://h', env: {OPENAI_KEY: hush4}, mcp: {files: {command: f, env: {FILES_TOKEN: hush5}}}}
daemon: {token_file: seen3}
";
        let shown = loaded(text).show();
        assert!(!shown.contains("hush"), "{shown}");
        for seen in ["seen1", "seen2", "seen3", "API_TOKEN: \"<redacted>\""] {
            assert!(shown.contains(seen), "{seen} in {shown}");
        }
    }

    #[test]
    fn what_is_shown_loads_to_the_same() {
        let full = FULL_YAML.replace("TOKEN: t0", "PLAIN: t0");
        for text in ["", DEFAULT_YAML, &full] {
            let before = loaded(text);
            let shown = before.show();
            let after = load(Source { name: "shown", text: &shown }, None).unwrap();
            assert_eq!(after.config, before.config, "{shown}");
            assert!(after.warnings.is_empty(), "{shown}");
        }
    }

    #[test]
    fn text_stays_text() {
        for text in ["", "true", "No", "1", "-", "a: b", "#x", "a\n\u{7f}\u{85}\"\\", "~", "@x", "ä", "*x"] {
            let yaml = format!("agents: {{a: {{runner: command, command: x, env: {{A: {}}}}}}}", scalar(text));
            assert_eq!(loaded(&yaml).config.agents.named["a"].env["A"], text, "{yaml}");
        }
        assert_eq!(scalar("google/me@example.org"), "google/me@example.org");
    }
}
