//! Stage 4: what automations have to say about a request, and what ends it before any agent. What an automation
//! remembers is written with what it said; a request that passes here again, as after a crash, is told that.

use super::{Exit, Pipeline, READ_PATIENCE, Settings, assemble};
use crate::access::recorded_only;
use crate::agent::project::ProjectTurn;
use crate::clock;
use crate::ledger::nexus::{Claim, Recollection, RememberAdvice, recollect};
use crate::ledger::writer::WriteError;
use crate::plugin::Candidate;
use crate::routes::TIMER_CHANNEL;
use nexus_core::access::Principal;
use nexus_core::automation::Advice;
use nexus_core::hook::CONTEXT_BYTES_MAX;
use nexus_core::request::{AutomationTrace, NexusRequest, TriggersSection};
use rusqlite::Connection;
use serde_json::Value;
use std::time::{Duration, Instant};

/// How long an event waits for its turn with an automation that has a state; then it goes on without it.
const TURN_WAIT: Duration = Duration::from_secs(30);
/// Stands between what two automations have to say.
const BETWEEN: &str = "\n\n";

/// How an automation's part went.
enum Part {
    /// What it said; `repeated` if it had said so before.
    Said { advice: Advice, repeated: bool },
    /// It is not to be asked: it disabled itself, or is gone.
    Silent,
    /// Why it said nothing.
    Failed(String),
}

impl Pipeline {
    /// Asks the automations whose triggers fit, one after the other, until one ends the request. A timer event goes
    /// on only if one fires, or a policy routes it to an agent: a heartbeat costs no run. What an adapter tells without saying
    /// anything, as a reaction, goes on only if one fires, or a policy names its content type; or to have its project started.
    pub(super) async fn automate(
        &self,
        request: &mut NexusRequest,
        settings: &Settings,
        principal: &Principal,
        left: Duration,
    ) -> Result<(), Exit> {
        let (began, mut triggers, mut exit) = (Instant::now(), TriggersSection::default(), None);
        for one in self.automations.matching(request) {
            let asked = Instant::now();
            let part = self.consult(&one, request, settings, left.saturating_sub(began.elapsed())).await?;
            note(&mut triggers, one.name(), &part, asked.elapsed());
            if let Part::Said { advice, .. } = part {
                exit = self.take_advice(&mut triggers, one.name(), advice, request, principal);
            }
            if exit.is_some() {
                break;
            }
        }
        if exit.is_none() && triggers.fired_by.is_none() {
            exit = unasked(request).map(|by| Exit::Handled { by });
        }
        if let Some(Exit::Handled { by } | Exit::Replied { by, .. }) = &exit {
            (triggers.handled, triggers.handled_by) = (true, Some(by.clone()));
        }
        request.triggers = Some(triggers);
        exit.map_or(Ok(()), Err)
    }

    /// What one automation says about the request. One that has a state is asked about one event at a time.
    async fn consult(&self, one: &Candidate, request: &NexusRequest, settings: &Settings, left: Duration) -> Result<Part, Exit> {
        let (began, known) = (Instant::now(), self.recollect(one.name(), request.event_seq).await?);
        if let Some(said) = &known.said {
            let advice = serde_json::from_str(said);
            return Ok(advice.map_or_else(|error| Part::Failed(error.to_string()), |advice| Part::Said { advice, repeated: true }));
        }
        let Ok(turn) = tokio::time::timeout(TURN_WAIT.min(left), self.automations.turn(one, request)).await else {
            return Ok(Part::Failed(format!("it was busy with other events for {} s", began.elapsed().as_secs())));
        };
        // Held to the end: what it said is written in it.
        let Some(turn) = turn else { return Ok(Part::Silent) };
        let one = &turn.candidate;
        // The event before may have changed it.
        let Recollection { state, disabled, .. } = if turn.is_alone { self.recollect(one.name(), request.event_seq).await? } else { known };
        if disabled {
            return Ok(Part::Silent);
        }
        let state = match state.map(|text| serde_json::from_str::<Value>(&text)).transpose() {
            Ok(state) => state,
            // To begin anew would have it do again what it has done, and what it knew would be written over.
            Err(error) => {
                tracing::error!(automation = one.name(), %error, "what an automation knows can't be read; it is not asked");
                return Ok(Part::Failed(format!("its state in nexus.db can't be read, and stays as it is: {error}")));
            }
        };
        let check = |advice: &Advice| self.check_advice(advice, request, settings);
        match self.automations.ask(one, request, state, left.saturating_sub(began.elapsed()), check).await {
            Ok(advice) if advice.lasts() => self.keep(one.name(), request.event_seq, advice).await,
            Ok(advice) => Ok(Part::Said { advice, repeated: false }),
            Err(error) => Ok(Part::Failed(error)),
        }
    }

    /// Whether what an automation advises can be done at all.
    fn check_advice(&self, advice: &Advice, request: &NexusRequest, settings: &Settings) -> Result<(), String> {
        if let Some(agent) = advice.agent.as_ref().filter(|agent| !settings.agents.contains_key(*agent)) {
            return Err(format!("agent `{agent}` is not configured"));
        }
        let can_send = || self.routes.get(&request.adapter).is_some_and(|route| !route.known || route.sender.is_some());
        if advice.reply.is_some() && !can_send() {
            let channel = &request.event.channel;
            return Err(format!("`reply` can't be said: nothing can on the channel `{channel}`; `nexus.send` says it elsewhere"));
        }
        Ok(())
    }

    async fn recollect(&self, automation: &str, event_seq: i64) -> Result<Recollection, Exit> {
        let name = automation.to_owned();
        let look_up = move |connection: &Connection| recollect(connection, event_seq, &name);
        let known = self.ledgers.nexus.readers.read_patiently(look_up, READ_PATIENCE, &self.abandon).await;
        known.ok_or_else(|| match self.abandon.is_cancelled() {
            true => Exit::Stopping,
            false => Exit::Failed(format!("nexus.db could not be read for {} s; see the log", READ_PATIENCE.as_secs())),
        })
    }

    /// Writes what an automation said with what it knows from now on; from then on it counts.
    async fn keep(&self, automation: &str, event_seq: i64, mut advice: Advice) -> Result<Part, Exit> {
        let state = advice.state.take();
        let command = RememberAdvice {
            event_seq,
            automation: automation.to_owned(),
            result: serde_json::to_string(&advice).map_err(|error| Exit::Failed(error.to_string()))?,
            state: state.as_ref().map(Value::to_string),
            disable: advice.disable,
            at: clock::wall_ms(),
            epoch: self.epoch,
        };
        match self.ledgers.nexus.writer.write_until_done(command).await {
            Ok(Claim::Done) => Ok(Part::Said { advice: Advice { state, ..advice }, repeated: false }),
            // Another event disabled it meanwhile.
            Ok(Claim::Lost) => Ok(Part::Silent),
            // The next start asks it again.
            Err(WriteError::Closed { .. }) => Err(Exit::Stopping),
            Err(error @ (WriteError::Refused { .. } | WriteError::Unknown { .. })) => {
                Ok(Part::Failed(format!("what it said could not be written: {error}")))
            }
        }
    }

    /// Does what an automation advises; how the request ends, if it does.
    fn take_advice(
        &self,
        triggers: &mut TriggersSection,
        automation: &str,
        advice: Advice,
        request: &NexusRequest,
        principal: &Principal,
    ) -> Option<Exit> {
        if let Some(text) = &advice.enrich
            && !add(&mut triggers.enrichment, text)
        {
            leave_out(triggers, "enrich");
        }
        if advice.fire {
            triggers.fired_by.get_or_insert_with(|| automation.to_owned());
            triggers.routing_override = triggers.routing_override.take().or(advice.agent);
            if let Some(text) = &advice.context
                && !add(&mut triggers.context, text)
            {
                leave_out(triggers, "context");
            }
        }
        let by = format!("automation:{automation}");
        match advice.reply {
            // What answers itself is stopped here as agents are.
            Some(text) => {
                let session = assemble::label(request, principal);
                let stopped = self.ask_breaker(request, principal.type_, &session).err();
                Some(stopped.unwrap_or_else(|| Exit::Replied { by, automation: automation.to_owned(), text, session }))
            }
            None => advice.handled.then_some(Exit::Handled { by }),
        }
    }
}

/// Notes an automation's part in the trace.
fn note(triggers: &mut TriggersSection, automation: &str, part: &Part, took: Duration) {
    let (did, repeated, error) = match part {
        Part::Silent => return,
        Part::Said { advice, repeated } => {
            triggers.fired += u32::from(advice.fire);
            (advice.words(), *repeated, None)
        }
        Part::Failed(error) => (Vec::new(), false, Some(error.clone())),
    };
    triggers.evaluated += 1;
    triggers.results.push(AutomationTrace { automation: automation.to_owned(), ms: took.as_secs_f64() * 1000.0, did, repeated, error });
}

/// Why an event asks no agent by itself.
fn unasked(request: &NexusRequest) -> Option<String> {
    let (event, access) = (&request.event, request.access.as_ref());
    if event.channel == TIMER_CHANNEL {
        let is_routed = access.is_some_and(|access| access.agent.is_some());
        return (!is_routed).then(|| "timer: no policy routes this event to an agent".to_owned());
    }
    // It starts its project, even where it asks none of its agents.
    if ProjectTurn::of(request).is_some() {
        return None;
    }
    let wakes = access.is_none_or(|access| access.wakes_agent(&event.content_type));
    (!wakes).then(|| recorded_only(&event.content_type))
}

/// Puts one text behind another; false if there is no room.
fn add(to: &mut Option<String>, text: &str) -> bool {
    let before = to.as_deref().unwrap_or_default();
    let between = if before.is_empty() { "" } else { BETWEEN };
    if before.len() + between.len() + text.len() > CONTEXT_BYTES_MAX {
        return false;
    }
    let all = to.get_or_insert_default();
    all.push_str(between);
    all.push_str(text);
    true
}

/// Notes that a text of the automation that was asked last found no room.
fn leave_out(triggers: &mut TriggersSection, what: &str) {
    if let Some(part) = triggers.results.last_mut() {
        part.did.retain(|did| did != what);
        let told = format!("`{what}` is left out: with what other automations said it is longer than {CONTEXT_BYTES_MAX} bytes");
        part.error = Some(part.error.take().map_or(told.clone(), |before| format!("{before}; {told}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_put_together_within_bounds() {
        let mut all = None;
        assert!(add(&mut all, "one") && add(&mut all, "two"));
        assert_eq!(all.as_deref(), Some("one\n\ntwo"));
        assert!(!add(&mut all, &"x".repeat(CONTEXT_BYTES_MAX)));
        assert_eq!(all.as_deref(), Some("one\n\ntwo"), "no half of a text");
        assert!(add(&mut None, &"x".repeat(CONTEXT_BYTES_MAX)), "one alone may have all of it");
    }

    #[test]
    fn what_found_no_room_is_told_and_was_not_done() {
        let mut triggers = TriggersSection::default();
        let advice = Advice { fire: true, enrich: Some("e".to_owned()), ..Advice::default() };
        note(&mut triggers, "a", &Part::Said { advice: advice.clone(), repeated: false }, Duration::ZERO);
        note(&mut triggers, "b", &Part::Said { advice, repeated: false }, Duration::ZERO);
        leave_out(&mut triggers, "enrich");
        leave_out(&mut triggers, "context");
        let [first, second] = triggers.results.as_slice() else { panic!("{triggers:?}") };
        assert_eq!((first.did.join(" "), &first.error), ("fire enrich".to_owned(), &None));
        let error = second.error.as_deref().unwrap_or_default();
        assert!(error.starts_with("`enrich` is left out: ") && error.contains("; `context` is left out: "), "{error}");
        assert_eq!(second.did, ["fire"]);
    }

    #[test]
    fn the_trace_says_what_each_did() {
        let mut triggers = TriggersSection::default();
        let advice = Advice { fire: true, disable: true, ..Advice::default() };
        note(&mut triggers, "a", &Part::Said { advice, repeated: true }, Duration::from_millis(2));
        note(&mut triggers, "b", &Part::Silent, Duration::ZERO);
        note(&mut triggers, "c", &Part::Failed("boom".to_owned()), Duration::ZERO);
        assert_eq!((triggers.evaluated, triggers.fired), (2, 1));
        assert_eq!((triggers.results[0].did.join(" "), triggers.results[0].repeated), ("fire disable".to_owned(), true));
        assert_eq!(triggers.results[1].error.as_deref(), Some("boom"));
    }
}
