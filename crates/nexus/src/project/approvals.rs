//! What a definition would have run, asked for and answered (design: an event never installs something that runs). It
//! says what must be approved, and remembers answers; whoever starts something asks here first.

use super::coordinate::Coordinate;
use super::definition::McpDefinition;
use super::files::ServerFile;
use crate::clock;
use crate::ledger::nexus::{Approval, ApprovalKind, ApprovalStatus, AskApprovals, DecideApproval, NexusCommand, Wish, approvals};
use crate::ledger::writer::WriteError;
use crate::ledger::{Database, ReadError};
use std::collections::BTreeMap;

/// The answers to what one project wants.
#[derive(Debug, Clone, Default)]
pub struct Answers(Vec<Approval>);

impl Answers {
    pub fn allows(&self, wish: &Wish) -> bool {
        self.0.iter().any(|one| one.is_approved() && one.is_for(wish))
    }

    /// Whether the server of this definition was approved.
    pub fn approved_server(&self, event_id: &str) -> bool {
        self.0.iter().any(|one| one.is_approved() && one.kind == ApprovalKind::Mcp && one.event_id == event_id)
    }

    pub fn denies(&self, wish: &Wish) -> bool {
        self.0.iter().any(|one| one.status == ApprovalStatus::Denied && one.is_for(wish))
    }

    /// The number under which it was asked for.
    pub fn id_of(&self, wish: &Wish) -> Option<i64> {
        self.0.iter().find(|one| one.is_for(wish)).map(|one| one.id)
    }
}

/// A host that a repository is to be cloned from. It is asked for once per project: a later definition may name another
/// repository of it.
pub fn of_host(host: &str, port: u16, trusted: bool) -> Wish {
    let subject = host.to_owned();
    Wish { kind: ApprovalKind::Host, subject, command: format!("git clone from {host}:{port}"), event_id: String::new(), trusted }
}

/// The port of what [`of_host`] asked for; `None` for what asks for something else.
pub fn port_of_host(asked: &Approval) -> Option<u16> {
    let (_, port) = asked.command.rsplit_once(':').filter(|_| asked.kind == ApprovalKind::Host)?;
    port.parse().ok()
}

/// A server's program, as its definition has it.
pub fn of_definition(slug: &str, server: &McpDefinition, trusted: bool) -> Wish {
    Wish { trusted, ..of_command(slug, &server.argv, &BTreeMap::new(), &server.id) }
}

/// The same, as its file has it.
pub fn of_file(slug: &str, server: &ServerFile) -> Wish {
    let argv: Vec<String> = std::iter::once(&server.command).chain(&server.args).cloned().collect();
    of_command(slug, &argv, &server.env, &server.event_id)
}

/// Variables come first, as a shell has it: they may change what the program does.
fn of_command(slug: &str, argv: &[String], env: &BTreeMap<String, String>, event_id: &str) -> Wish {
    let pairs: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let command = shell_words::join(pairs.iter().chain(argv));
    Wish { kind: ApprovalKind::Mcp, subject: slug.to_owned(), command, event_id: event_id.to_owned(), trusted: false }
}

/// The tools of an agent, all of them together; `None` for an agent without.
pub fn of_tools(slug: &str, tools: &[String], event_id: Option<&str>, trusted: bool) -> Option<Wish> {
    let mut sorted = tools.to_vec();
    sorted.sort();
    sorted.dedup();
    let wish = Wish {
        kind: ApprovalKind::Tools,
        subject: slug.to_owned(),
        command: sorted.join(" "),
        event_id: event_id.unwrap_or_default().to_owned(),
        trusted,
    };
    (!sorted.is_empty()).then_some(wish)
}

/// Puts down all wishes of some kinds, and answers what is known of them.
///
/// # Errors
/// [`WriteError`].
pub async fn ask(
    nexus: &Database<NexusCommand>,
    project: &Coordinate,
    kinds: Vec<ApprovalKind>,
    wishes: Vec<Wish>,
) -> Result<Answers, WriteError> {
    let ask = AskApprovals { project: project.to_string(), kinds, wishes, at: clock::wall_ms() };
    nexus.writer.write_until_done(ask).await.map(Answers)
}

/// What is known, without asking for anything.
///
/// # Errors
/// [`ReadError`].
pub async fn known(nexus: &Database<NexusCommand>, project: &Coordinate) -> Result<Answers, ReadError> {
    let project = project.to_string();
    nexus.readers.read(move |connection| approvals(connection, Some(&project))).await.map(Answers)
}

/// Decides about one; `None` when there is none of this id.
///
/// # Errors
/// [`WriteError`].
pub async fn decide(nexus: &Database<NexusCommand>, id: i64, approve: bool) -> Result<Option<Approval>, WriteError> {
    nexus.writer.write_until_done(DecideApproval { id, approve, at: clock::wall_ms() }).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn server(args: &[&str]) -> ServerFile {
        ServerFile {
            command: "npx".into(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            event_id: "e1".into(),
            ..ServerFile::default()
        }
    }

    #[test]
    fn a_file_must_say_exactly_what_was_approved() {
        let argv = vec!["npx".to_owned(), "a b".to_owned()];
        let defined = McpDefinition { id: "e1".into(), author: String::new(), name: "Files".into(), description: String::new(), argv };
        let wish = of_definition("files", &defined, true);
        let same = |file: &ServerFile| {
            let asked = of_file("files", file);
            (asked.command, asked.event_id) == (wish.command.clone(), wish.event_id.clone())
        };
        assert!(same(&server(&["a b"])));
        assert!(!same(&server(&["a", "b"])), "words keep their bounds");
        let env = BTreeMap::from([("LD_PRELOAD".to_owned(), "/x".to_owned())]);
        assert!(!same(&ServerFile { env, ..server(&["a b"]) }));
        assert!(!same(&ServerFile { event_id: "e2".into(), ..server(&["a b"]) }));
    }

    #[test]
    fn an_approval_of_a_host_tells_its_port() {
        let Wish { kind, subject, command, event_id, .. } = of_host("::1", 8443, false);
        let (status, project) = (ApprovalStatus::Pending, "p".to_owned());
        let asked = Approval { id: 1, project, kind, subject, command, event_id, status, asked_at: 1, decided_at: None };
        assert_eq!(port_of_host(&asked), Some(8443));
        assert_eq!(port_of_host(&Approval { kind: ApprovalKind::Mcp, ..asked }), None);
    }

    #[test]
    fn tools_are_one_wish_whatever_their_order() {
        let tools = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let one = of_tools("pm", &tools(&["b", "a", "b"]), Some("e1"), false).unwrap();
        assert_eq!(one, of_tools("pm", &tools(&["a", "b"]), Some("e1"), false).unwrap());
        assert_ne!(one, of_tools("pm", &tools(&["a", "b", "c"]), Some("e1"), false).unwrap());
        assert_eq!(of_tools("pm", &[], None, false), None);
    }
}
