//! What a start decides about requests that were under way when the daemon before it stopped
//! (contract: `on_interrupted`). The rest of recovery is normal running.

use super::trace::trace_value;
use super::{Pipeline, Settings, scheduled};
use crate::access::Given;
use crate::clock;
use crate::ledger::agents::{ToolCall, TurnRecord};
use crate::ledger::events::by_seq;
use crate::ledger::nexus::{Interrupted, NewDelivery, ReviveRequest, request_id_of, run_turn};
use crate::ledger::{Ledgers, ReadError, writer::WriteError};
use crate::panics;
use crate::routes::Place;
use nexus_core::config::{self, OnInterrupted};
use nexus_core::event::{Event, PeerKind};
use nexus_core::request::{AgentSection, NexusRequest, ResponseSection, Stage, StageTrace, Status};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};

/// Attempts after which a request counts as poison.
const ATTEMPTS_MAX: u32 = 3;
/// How long the line that tells of a failed request may wait to be delivered.
const NOTE_TTL_MS: i64 = 3_600_000;

#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What became of them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    pub rerun: usize,
    pub failed: usize,
}

/// Decides about each interrupted request, and writes it. Those that it ended come along, for
/// [`Pipeline::tell_of_ended`]: nobody is there yet who could be told.
///
/// # Errors
/// When a ledger can't be read or written; nothing is half decided.
pub async fn recover(
    ledgers: &Ledgers,
    settings: &Settings,
    interrupted: Vec<Interrupted>,
    epoch: i64,
) -> Result<(Recovered, Vec<NexusRequest>), RecoveryError> {
    let (mut recovered, mut ended) = (Recovered::default(), Vec::new());
    let verdicts: Vec<Verdict> = interrupted.iter().map(|one| decide(one, settings)).collect();
    let spoken = spoken_to(&interrupted, &verdicts);
    for (one, verdict) in interrupted.into_iter().zip(verdicts) {
        let seq = one.event_seq;
        let (to, reason, told) = match verdict {
            Verdict::Rerun => (Status::Waiting, None, Told::default()),
            Verdict::Fail(reason) => {
                let mut told = tell(ledgers, &settings.access, &one, reason).await?;
                told.note = told.note.filter(|_| spoken.contains(&seq));
                (Status::Failed, Some(reason), told)
            }
        };
        match to {
            Status::Waiting => recovered.rerun += 1,
            Status::Processing
            | Status::Interrupted
            | Status::Completed
            | Status::Denied
            | Status::HandledByAutomation
            | Status::Failed
            | Status::Expired => {
                recovered.failed += 1;
            }
        }
        tracing::info!(event_seq = seq, attempts = one.attempts, to = to.as_str(), reason, "interrupted request");
        let Told { trace, note, request } = told;
        let revive =
            ReviveRequest { event_seq: seq, to, reason: reason.map(Into::into), trace, delivery: note, at: clock::wall_ms(), epoch };
        ledgers.nexus.writer.write(revive).await?;
        ended.extend(request);
    }
    Ok((recovered, ended))
}

impl Pipeline {
    /// Tells plugins and all who listen of requests that the start ended.
    pub fn tell_of_ended(&self, requests: Vec<NexusRequest>) {
        for mut request in requests {
            // Its end is on disk, whatever a hook does.
            if let Err(panicked) = panics::catch(|| self.finalize(&mut request)) {
                self.defect(request.event_seq, &panicked);
            }
            self.announce_end(&request, None);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Rerun,
    Fail(&'static str),
}

/// Of the requests that failed, those whose senders are told: of several that shared a run only the newest,
/// as one reply is all that they would have got.
fn spoken_to(interrupted: &[Interrupted], verdicts: &[Verdict]) -> HashSet<i64> {
    let mut newest: HashMap<&str, i64> = HashMap::new();
    let mut alone = HashSet::new();
    for (one, verdict) in interrupted.iter().zip(verdicts) {
        match (verdict, one.run_id.as_deref()) {
            (Verdict::Rerun, _) => {}
            (Verdict::Fail(_), Some(run)) => {
                let seq = newest.entry(run).or_insert(one.event_seq);
                *seq = one.event_seq.max(*seq);
            }
            (Verdict::Fail(_), None) => {
                alone.insert(one.event_seq);
            }
        }
    }
    alone.extend(newest.into_values());
    alone
}

fn decide(one: &Interrupted, settings: &Settings) -> Verdict {
    if one.was_stopped {
        return Verdict::Rerun; // its agent isn't asked: the turn ends as it begins
    }
    let harmless = one.agent.as_ref().and_then(|name| settings.agents.get(name)).is_some_and(|agent| agent.harmless);
    if one.attempts >= ATTEMPTS_MAX && !harmless {
        return Verdict::Fail("interrupted three times: it may be what stops the daemon");
    }
    match settings.pipeline.on_interrupted {
        OnInterrupted::Rerun => Verdict::Rerun,
        OnInterrupted::Auto if one.spoke => {
            Verdict::Fail("interrupted after a part of its answer had left; running it again would say that twice")
        }
        OnInterrupted::Auto if harmless || !one.acted => Verdict::Rerun,
        OnInterrupted::Auto => Verdict::Fail("interrupted after it may have acted; running it again might repeat its effect"),
        OnInterrupted::Fail => Verdict::Fail("interrupted (on_interrupted: fail)"),
    }
}

/// What is left behind about a request that failed.
#[derive(Debug, Default)]
struct Told {
    trace: Option<String>,
    note: Option<NewDelivery>,
    request: Option<NexusRequest>,
}

async fn tell(ledgers: &Ledgers, access: &config::Access, one: &Interrupted, reason: &str) -> Result<Told, ReadError> {
    let seq = one.event_seq;
    let event = ledgers.events.readers.read(move |connection| by_seq(connection, seq)).await?;
    let request_id = ledgers.nexus.readers.read(move |connection| request_id_of(connection, seq)).await?;
    let (Some(event), Some(request_id)) = (event, request_id) else { return Ok(Told::default()) };
    let turn = match one.run_id.clone() {
        Some(run_id) => ledgers.nexus.readers.read(move |connection| run_turn(connection, &run_id)).await?,
        None => None,
    };
    let mut request = event.into_request(request_id, clock::wall_ms());
    let place = scheduled::place_of(ledgers, &request).await?;
    let note = place.map(|place| note(&request, access, place, one.run_id.clone()));
    let trace = trace(&mut request, one, turn, reason);
    (request.status, request.reason) = (Status::Failed, Some(reason.to_owned()));
    request.pipeline.push(StageTrace {
        stage: Stage::RunAgent,
        started_at: one.started_at.unwrap_or(request.created_at),
        duration_ms: took_ms(one).unwrap_or_default() as f64,
        exit_reason: None,
        error: Some(reason.to_owned()),
        hooks: Vec::new(),
    });
    Ok(Told { trace: Some(trace), note, request: Some(request) })
}

/// What is known of the run that was the last. The stages before it were only in memory.
fn trace(request: &mut NexusRequest, one: &Interrupted, turn: Option<TurnRecord>, reason: &str) -> String {
    request.agent = one.agent.clone().map(|agent_id| {
        let section = AgentSection::new(agent_id, one.session.clone().unwrap_or_default());
        AgentSection { run_id: one.run_id.clone(), turn_id: turn.as_ref().map(|turn| turn.turn_id.clone()), ..section }
    });
    request.response = turn.map(|turn| ResponseSection {
        content: turn.assistant,
        tool_calls: turn.tool_calls.iter().map(ToolCall::outline).collect(),
        usage: Value::Null,
        stop_reason: turn.stop_reason,
        duration_ms: turn.duration_ms,
        error: Some(reason.to_owned()),
    });
    let mut trace = trace_value(request);
    // Not a `StageTrace`: of a daemon that was killed nobody knows how long it took.
    let took = took_ms(one);
    let error = format!("attempt {}: {reason}", one.attempts);
    trace["pipeline"] = json!([{ "stage": Stage::RunAgent, "started_at": one.started_at, "duration_ms": took, "error": error }]);
    trace.to_string()
}

/// How long its last run took, where that is known.
fn took_ms(one: &Interrupted) -> Option<i64> {
    one.started_at.zip(one.stopped_at).map(|(from, to)| (to - from).max(0))
}

/// Whether it was the owner who said it, and nobody else reads the answer: then that may tell of the daemon's inside.
pub(super) fn is_between_us(access: &config::Access, adapter: &str, event: &Event) -> bool {
    event.peer_kind == PeerKind::Dm && Given::of(access, adapter, &event.channel, &event.sender_id) == Given::Owner
}

/// One line, at `place`, for who waits for an answer to a request as it was recorded.
pub(super) fn note(request: &NexusRequest, access: &config::Access, place: Place, run_id: Option<String>) -> NewDelivery {
    let now = clock::wall_ms();
    let (id, Place { adapter, target }) = (&request.request_id, place);
    let hint = match is_between_us(access, &request.adapter, &request.event) {
        true => format!(" (`nexus trace show {id}` tells more, `nexus trace retry {id}` runs it again)"),
        false => String::new(),
    };
    let mut asked = scheduled::asked(request, "your message");
    asked[..1].make_ascii_uppercase();
    let run = run_id.as_ref().unwrap_or(id);
    NewDelivery {
        delivery_id: format!("dlv_{}", ulid::Ulid::generate()),
        content: format!("{asked} was interrupted while it was being answered{hint}."),
        request_id: id.clone(),
        event_seq: request.event_seq,
        idempotency_key: format!("{run}:interrupted:0"),
        run_id,
        adapter,
        channel: target.channel,
        account_id: target.account_id,
        target: target.target,
        thread_id: target.thread_id,
        reply_to_id: target.reply_to_id,
        created_at: now,
        expires_at: now + NOTE_TTL_MS,
        here: false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn request() -> NexusRequest {
        let event = crate::samples::event("fake:1");
        NexusRequest { adapter: "fake".to_owned(), ..NexusRequest::new("req_1".to_owned(), 1, 0, event) }
    }

    fn place(request: &NexusRequest) -> Place {
        Place { adapter: request.adapter.clone(), target: request.delivery.clone() }
    }

    fn interrupted(stopped_at: Option<i64>) -> Interrupted {
        Interrupted {
            event_seq: 1,
            run_id: Some("run_1".to_owned()),
            agent: Some("a".to_owned()),
            session: Some("s".to_owned()),
            attempts: 2,
            acted: true,
            spoke: false,
            was_stopped: false,
            started_at: Some(10),
            stopped_at,
        }
    }

    #[test]
    fn the_trace_of_an_interrupted_request_says_what_is_known_and_no_more() {
        let read = |stopped_at| serde_json::from_str::<Value>(&trace(&mut request(), &interrupted(stopped_at), None, "why")).unwrap();
        let (stopped, killed) = (read(Some(15)), read(None));
        let stage = json!({ "stage": "runAgent", "started_at": 10, "duration_ms": 5, "error": "attempt 2: why" });
        assert_eq!(stopped["pipeline"], json!([stage]));
        assert_eq!(killed["pipeline"][0]["duration_ms"], Value::Null);
        assert_eq!((&killed["agent"]["run_id"], &killed["response"]), (&json!("run_1"), &Value::Null));
    }

    #[test]
    fn of_requests_that_shared_a_run_the_newest_is_told() {
        let one = |event_seq: i64, run: Option<&str>| Interrupted { event_seq, run_id: run.map(str::to_owned), ..interrupted(None) };
        let all = [one(1, Some("a")), one(2, Some("a")), one(3, Some("b")), one(4, None), one(5, Some("a"))];
        let fail = || Verdict::Fail("why");
        let told = spoken_to(&all, &[fail(), fail(), fail(), fail(), Verdict::Rerun]);
        assert_eq!(told, HashSet::from([2, 3, 4]));
    }

    #[test]
    fn the_note_is_one_line_and_says_what_to_do() {
        let ours = config::Access { owner: vec!["fake:u".to_owned()], ..config::Access::default() };
        let told = note(&request(), &ours, place(&request()), None);
        assert!(told.content.contains("`nexus trace retry req_1`") && !told.content.contains('\n'), "{}", told.content);
        assert_eq!((told.target.as_str(), told.reply_to_id.as_deref()), ("p", Some("1")));
        let plain = "Your message was interrupted while it was being answered.";
        assert_eq!(note(&request(), &config::Access::default(), place(&request()), None).content, plain, "to a guest");
        let mut in_group = request();
        in_group.event.peer_kind = PeerKind::Group;
        assert_eq!(note(&in_group, &ours, place(&in_group), None).content, plain, "others read it");
    }
}
