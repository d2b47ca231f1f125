//! Words that the owner may say in a chat instead of a message: `/stop`, `/new` and `/status`. One is taken in stage 4, after
//! access: what it asks for is done, and the answer ends its request, in one commit. No agent hears of it, and no word of
//! anybody else's is one.

use super::running::Before;
use super::{Exit, Pipeline, READ_PATIENCE, Settings, assemble};
use crate::access::Given;
use crate::clock;
use crate::error_text::describe;
use crate::ledger::agents::{ArchiveSession, Archived};
use crate::ledger::events::StoredEvent;
use crate::ledger::nexus::{counter, ended_for, was_ended_for};
use crate::ledger::writer::WriteError;
use crate::nostr;
use nexus_core::access::Principal;
use nexus_core::config::{self, PrincipalType};
use nexus_core::event::{Event, PeerKind};
use nexus_core::request::{NexusRequest, TriggersSection};
use rusqlite::Connection;
use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

/// How long the answer to `/stop` waits for the turn's end: an agent that is told to stop has a part of that.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How long a word may have been on its way, in milliseconds, to be one about what goes on now.
const ON_ITS_WAY_MS_MAX: i64 = 300_000;
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
            Word::Stop => self.stop_turn(request, &session, STOP_PATIENCE.min(left / 2)).await?,
            Word::New => self.begin_session_anew(request, &session).await?,
            Word::Status => self.tell_status(request, &session),
        };
        let by = format!("owner: {}", word.said());
        request.triggers = Some(TriggersSection { handled: true, handled_by: Some(by.clone()), ..TriggersSection::default() });
        Err(Exit::Replied { by, automation: word.name().to_owned(), text, session })
    }

    /// Ends the turn that runs in the session, or is the next to begin, if its message came before the word. Said again
    /// after a crash, it ends no second one.
    async fn stop_turn(&self, request: &NexusRequest, session: &str, patience: Duration) -> Result<String, Exit> {
        let why = format!("stopped: the owner said /stop ({})", request.request_id);
        let (seq, asked) = (request.event_seq, why.clone());
        if self.look_up(move |connection| was_ended_for(connection, &asked, seq)).await? {
            return Ok("Stopped.".to_owned());
        }
        let before = Before { event_seq: seq, said_at: came_late(request) };
        let Some(mut stopping) = self.turns.stop_before(session, before, &why) else {
            let runs = self.turns.of(session).is_some();
            return Ok(if runs { "What runs here came after that, and goes on." } else { "Nothing runs here." }.to_owned());
        };
        tracing::info!(session, request_id = stopping.request_id, by = request.request_id, "the owner stops a turn");
        let kept = self.keep_stop(&stopping, patience).await;
        let is_kept = kept.map_err(|error| not_written("the stop could not be noted", error))?;
        let stopped = stopping.event_seqs.clone();
        let is_ours = match is_kept && stopping.is_over(patience).await {
            true => self.look_up(move |connection| ended_for(connection, &stopped, &why)).await?,
            false => None,
        };
        Ok(match is_ours {
            None => "Told to stop; it has not ended yet.",
            Some(true) => "Stopped.",
            // Its whole answer may have been on its way to the disk when the word came.
            Some(false) => "It had just come to its end.",
        }
        .to_owned())
    }

    /// What nexus.db says, for a stage; one that can't be read for long ends the request.
    pub(super) async fn look_up<T: Send + 'static>(
        &self,
        query: impl Fn(&Connection) -> rusqlite::Result<T> + Clone + Send + 'static,
    ) -> Result<T, Exit> {
        let known = self.ledgers.nexus.readers.read_patiently(query, READ_PATIENCE, &self.abandon).await;
        known.ok_or_else(|| match self.abandon.is_cancelled() {
            true => Exit::Stopping,
            false => Exit::Failed(format!("nexus.db could not be read for {} s; see the log", READ_PATIENCE.as_secs())),
        })
    }

    async fn begin_session_anew(&self, request: &NexusRequest, session: &str) -> Result<String, Exit> {
        if came_late(request).is_some() {
            return Ok("This came late, and puts nothing away: say it again if you still want that.".to_owned());
        }
        // An answer may be read before its turn is in the agents ledger.
        let finished = self.look_up(|connection| counter(connection, "finish_seq")).await?;
        self.wait_for_turn(finished).await;
        let at = clock::wall_ms();
        let (name, formerly) = (session.to_owned(), assemble::formerly(request, session));
        let begun_by = Some(admitted_at(request).unwrap_or(at));
        let asked = ArchiveSession { name, formerly, undo: false, found: None, begun_by, at };
        let told = match self.ledgers.agents.writer.write_until_done(asked).await {
            Ok(Archived::Done(put) | Archived::Before(put)) => {
                let turns = if put.turns == 1 { "1 turn is".to_owned() } else { format!("{} turns are", put.turns) };
                format!("This conversation begins anew; {turns} put away.")
            }
            Ok(Archived::NoSession | Archived::NotArchived | Archived::BegunAnew { .. }) => "There is nothing to put away.".to_owned(),
            Err(error) => return Err(not_written("the session could not be put away", error)),
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

fn not_written(what: &str, error: WriteError) -> Exit {
    match error {
        WriteError::Closed { .. } => Exit::Stopping,
        WriteError::Refused { .. } | WriteError::Unknown { .. } => Exit::Failed(format!("{what}: {}", describe(&error))),
    }
}

/// When a word was said that came too late to be about what goes on now, in Unix milliseconds: as from an adapter that was
/// offline. `None` for one that came in time, and where its event doesn't say or is from the future.
fn came_late(request: &NexusRequest) -> Option<i64> {
    let (said_at, came_at) = (request.event.timestamp, admitted_at(request)?);
    (said_at > 0 && came_at.saturating_sub(said_at) > ON_ITS_WAY_MS_MAX).then_some(said_at)
}

/// When a message was said, in Unix milliseconds, or else came.
pub(super) fn said_at(request: &NexusRequest) -> i64 {
    let came_at = admitted_at(request).unwrap_or(request.created_at);
    if request.event.timestamp > 0 { request.event.timestamp.min(came_at) } else { came_at }
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
    fn a_word_comes_late_only_if_it_says_so() {
        let came_at = 1_770_301_807_000_u64;
        let id = format!("req_{}", ulid::Ulid::from_parts(came_at, 7));
        let came_at = i64::try_from(came_at).unwrap();
        let at = |timestamp: i64| {
            let request = NexusRequest::new(id.clone(), 1, 0, Event { timestamp, ..said("/new") });
            (came_late(&request), said_at(&request))
        };
        let old = came_at - ON_ITS_WAY_MS_MAX - 1;
        assert_eq!(at(old), (Some(old), old));
        assert_eq!(at(old + 1), (None, old + 1));
        for says_nothing in [0, -1, i64::MIN, i64::MAX] {
            assert_eq!(at(says_nothing), (None, came_at), "{says_nothing}");
        }
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
