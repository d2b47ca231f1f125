//! Words that the owner may say in a chat instead of a message: `/stop`, `/new` and `/status`. One is taken in stage 4, after
//! access: what it asks for is done, and the answer ends its request, in one commit. No agent hears of it, and no word of
//! anybody else's is one.

use super::{Exit, Pipeline, Settings, assemble};
use crate::access::Given;
use crate::clock;
use crate::error_text::describe;
use crate::ledger::agents::{ArchiveSession, Archived};
use crate::ledger::events::StoredEvent;
use crate::ledger::writer::WriteError;
use crate::nostr;
use nexus_core::access::Principal;
use nexus_core::config::{self, PrincipalType};
use nexus_core::event::{Event, PeerKind};
use nexus_core::request::{NexusRequest, TriggersSection};
use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

/// How long the answer to `/stop` waits for the turn's end: an agent that is told to stop has a part of that.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Characters of what is wrong with the daemon that the owner is told.
const REASONS_CHARS_MAX: usize = 500;

/// Tells how the daemon is: a word, and the reasons if it isn't healthy.
pub type Teller = Box<dyn Fn() -> Option<(&'static str, Vec<String>)> + Send + Sync>;

/// Whom to ask how the daemon is. Nobody, until it is put together.
#[derive(Default)]
pub struct Wellbeing(OnceLock<Teller>);

impl fmt::Debug for Wellbeing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Wellbeing").field(&self.0.get().is_some()).finish()
    }
}

impl Wellbeing {
    /// Asks this one from now on; who came first stays.
    pub fn ask(&self, teller: Teller) {
        self.0.set(teller).ok();
    }

    /// In a line. The reasons name people and places: they are nothing for a group to read.
    fn line(&self, is_private: bool) -> String {
        let Some((word, reasons)) = self.0.get().and_then(|teller| teller()) else {
            return "The daemon is starting or stopping.".to_owned();
        };
        if reasons.is_empty() || !is_private {
            return format!("The daemon is {word}.");
        }
        let reasons: String = reasons.join("; ").chars().take(REASONS_CHARS_MAX).collect();
        format!("The daemon is {word}: {reasons}.")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Stop,
    New,
    Status,
}

impl Word {
    const ALL: [Self; 3] = [Self::Stop, Self::New, Self::Status];

    /// Of a whole message; white space around it doesn't count. What is for a project is the project's.
    fn read(adapter: &str, event: &Event) -> Option<Self> {
        let is_for_project = adapter == nostr::ADAPTER && event.metadata.get("project").is_some();
        let has_more = event.attachments.as_array().is_some_and(|attachments| !attachments.is_empty());
        if is_for_project || has_more || event.content_type != "text" {
            return None;
        }
        let said = event.content.trim();
        Self::ALL.into_iter().find(|word| word.said() == said)
    }

    fn said(self) -> &'static str {
        match self {
            Self::Stop => "/stop",
            Self::New => "/new",
            Self::Status => "/status",
        }
    }

    /// In the key of its answer.
    fn name(self) -> &'static str {
        match self {
            Self::Stop => "owner-stop",
            Self::New => "owner-new",
            Self::Status => "owner-status",
        }
    }
}

/// The conversation in which an event waits: a word of the owner's has one of its own, since it is about what runs and must
/// not wait behind that.
pub(super) fn lane(access: &config::Access, event: &StoredEvent, conversation: String) -> String {
    let said = &event.event;
    let is_word = access.owner_words
        && Word::read(&event.adapter, said).is_some()
        && Given::of(access, &event.adapter, &said.channel, &said.sender_id) == Given::Owner;
    if is_word { format!("{conversation}\u{1f}word") } else { conversation }
}

impl Pipeline {
    /// In stage 4: a word of the owner ends here.
    pub(super) async fn take_word(
        &self,
        request: &mut NexusRequest,
        settings: &Settings,
        principal: &Principal,
        left: Duration,
    ) -> Result<(), Exit> {
        if principal.type_ != PrincipalType::Owner || !settings.access.owner_words {
            return Ok(());
        }
        let Some(word) = Word::read(&request.adapter, &request.event) else { return Ok(()) };
        let session = assemble::label(request, principal);
        let text = match word {
            Word::Stop => self.stop_turn(request, &session, STOP_PATIENCE.min(left / 2)).await,
            Word::New => self.begin_session_anew(request, &session).await?,
            Word::Status => self.tell_status(request, &session),
        };
        let by = format!("owner: {}", word.said());
        request.triggers = Some(TriggersSection { handled: true, handled_by: Some(by.clone()), ..TriggersSection::default() });
        Err(Exit::Replied { by, automation: word.name().to_owned(), text, session })
    }

    /// Ends the turn that runs in the session, if its message came before the word: said again after a crash, it must not
    /// end a later one.
    async fn stop_turn(&self, request: &NexusRequest, session: &str, patience: Duration) -> String {
        let why = format!("stopped: the owner said /stop ({})", request.request_id);
        let Some(mut stopping) = self.turns.stop(session, Some(request.event_seq), &why) else { return "Nothing runs here.".to_owned() };
        tracing::info!(session, request_id = stopping.request_id, by = request.request_id, "the owner stops a turn");
        match stopping.is_over(patience).await {
            true => "Stopped.".to_owned(),
            false => "Told to stop; it has not ended yet.".to_owned(),
        }
    }

    async fn begin_session_anew(&self, request: &NexusRequest, session: &str) -> Result<String, Exit> {
        let at = clock::wall_ms();
        let asked = ArchiveSession { name: session.to_owned(), undo: false, begun_by: Some(admitted_at(request).unwrap_or(at)), at };
        let told = match self.ledgers.agents.writer.write_until_done(asked).await {
            Ok(Archived::Done(put) | Archived::Before(put)) => {
                let turns = if put.turns == 1 { "1 turn is".to_owned() } else { format!("{} turns are", put.turns) };
                format!("This conversation begins anew; {turns} put away.")
            }
            Ok(Archived::NoSession | Archived::NotArchived | Archived::BegunAnew { .. }) => "There is nothing to put away.".to_owned(),
            Err(WriteError::Closed { .. }) => return Err(Exit::Stopping),
            Err(error @ (WriteError::Refused { .. } | WriteError::Unknown { .. })) => {
                return Err(Exit::Failed(format!("the session could not be put away: {}", describe(&error))));
            }
        };
        // As with the command: a turn finds its label as it is when it ends.
        let runs = self.turns.of(session).is_some();
        Ok(if runs { format!("{told} What is being answered now is the first of it.") } else { told })
    }

    fn tell_status(&self, request: &NexusRequest, session: &str) -> String {
        let here = self.turns.of(session);
        let elsewhere = self.turns.count().saturating_sub(usize::from(here.is_some()));
        let here = match here {
            Some((agent, took)) => format!("{agent} has been answering here for {} s", took.as_secs()),
            None => "Nothing runs here".to_owned(),
        };
        let elsewhere = match elsewhere {
            0 => String::new(),
            1 => ", and 1 turn elsewhere".to_owned(),
            turns => format!(", and {turns} turns elsewhere"),
        };
        format!("{here}{elsewhere}.\n{}", self.wellbeing.line(request.event.peer_kind == PeerKind::Dm))
    }
}

/// When the request was admitted, in Unix milliseconds: its id tells, however often it is prepared.
fn admitted_at(request: &NexusRequest) -> Option<i64> {
    let id = request.request_id.strip_prefix("req_")?;
    let id = ulid::Ulid::from_string(id).ok()?;
    i64::try_from(id.timestamp_ms()).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::samples;
    use serde_json::json;

    fn said(text: &str) -> Event {
        Event { content: text.to_owned(), content_type: "text".to_owned(), ..samples::event("fake:1".to_owned()) }
    }

    #[test]
    fn only_a_whole_message_is_a_word() {
        let read = |event: &Event| Word::read("fake", event);
        assert_eq!(read(&said(" /stop\n")), Some(Word::Stop));
        assert_eq!((read(&said("/new")), read(&said("/status"))), (Some(Word::New), Some(Word::Status)));
        for text in ["", "/", "stop", "/Stop", "/stop it", "please /stop", "/stop /new", "//stop"] {
            assert_eq!(read(&said(text)), None, "{text}");
        }
        assert_eq!(read(&Event { content_type: "image".to_owned(), ..said("/stop") }), None);
        assert_eq!(read(&Event { attachments: json!([{ "id": "1" }]), ..said("/stop") }), None);
        let of_project = Event { metadata: json!({ "project": "31933:ab:x" }), ..said("/stop") };
        assert_eq!((Word::read(nostr::ADAPTER, &of_project), read(&of_project)), (None, Some(Word::Stop)));
    }

    #[test]
    fn a_request_knows_when_it_was_admitted() {
        let at = |id: &str| admitted_at(&NexusRequest::new(id.to_owned(), 1, 0, said("/new")));
        let id = ulid::Ulid::from_parts(1_770_301_807_000, 7);
        assert_eq!(at(&format!("req_{id}")), Some(1_770_301_807_000));
        assert_eq!((at("req_1"), at("1")), (None, None));
    }

    #[test]
    fn what_is_wrong_is_told_in_private_only() {
        let wellbeing = Wellbeing::default();
        assert!(wellbeing.line(true).contains("starting"));
        wellbeing.ask(Box::new(|| Some(("degraded", vec!["adapter `x` is errored".to_owned()]))));
        assert_eq!(wellbeing.line(true), "The daemon is degraded: adapter `x` is errored.");
        assert_eq!(wellbeing.line(false), "The daemon is degraded.");
    }
}
