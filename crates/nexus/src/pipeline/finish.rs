//! The end of a run, and stages 7 and 8: commit, let the session go on, deliver, finalize.

use super::broken::Ends;
use super::notices::OfRun;
use super::outbox::{DeliveryResult, Outcome};
use super::outlet::Left;
use super::recovery::is_between_us;
use super::run::{Seen, Work};
use super::steering::Held;
use super::trace::{trace_json, trace_value};
use super::verdict::{Verdict, judge, stop_word, withheld};
use super::{Exit, Pipeline, Prepared, scheduled};
use crate::agent::Finished;
use crate::agent::project::ProjectTurn;
use crate::clock;
use crate::ledger::agents::{ToolCall, TurnRecord, turn_id};
use crate::ledger::nexus::{FellowEnd, FinishRun, NewDelivery, SaveTrace};
use crate::live::End;
use crate::plugin::HookExit;
use crate::routes::Route;
use nexus_core::hook::Hook;
use nexus_core::notice::NoticeType;
use nexus_core::request::{HookTrace, NexusRequest, ResponseSection, Stage, Status};
use serde_json::json;
use std::time::{Duration, Instant};

/// How long stage 7 waits for its deliveries; those that take longer go on without it.
const DELIVERY_WAIT: Duration = Duration::from_secs(30);
/// What plugins have for an answer at least, though the agent used up the request's time.
const REVIEW_MIN: Duration = Duration::from_secs(3);

/// A run that is over.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) prepared: Prepared,
    pub(super) run_id: String,
    pub(super) work: Work,
    pub(super) seen: Seen,
    pub(super) started_at: i64,
    pub(super) spent: Duration,
}

impl Pipeline {
    pub(super) async fn finish(&self, ended: Ended, held: &mut Held) {
        let Ended { mut prepared, run_id, work, mut seen, started_at, spent } = ended;
        let asked = scheduled::asked(&prepared.request, "this message");
        let mut verdict = judge(work, &seen.text, &self.hint(&prepared.request, &prepared.adapter), &asked).told_once(&prepared.request);
        // Of all attempts, the failed ones too.
        verdict.finished.usage = seen.usage.unwrap_or(verdict.finished.usage);
        self.note_response(&mut prepared, &run_id, &verdict, &seen.tool_calls, spent);
        let hooks = self.review(&mut prepared, &run_id, &mut verdict, &seen.tool_calls, spent).await;
        let exit = verdict.error.clone().map(Exit::Failed);
        self.record(&mut prepared.request, Stage::RunAgent, started_at, spent, exit.as_ref(), hooks);
        self.plugins.after(Stage::RunAgent, &prepared.request);
        let fellows = self.end_fellows(&mut prepared, exit.as_ref(), started_at, spent, &mut held.ends);
        let (outlet, content) = (std::mem::take(&mut seen.outlet), &verdict.finished.content);
        let mut left = outlet.close(&seen.text, content).await;
        let end = verdict.stream_end(left.last_part(verdict.streamed(&seen.text)));
        let unfiled = std::mem::take(&mut seen.unfiled);
        let turn = turn_record(&prepared, &run_id, &verdict.finished, seen, started_at, spent);
        let route = self.routes.settled(&prepared.request.adapter).await;
        let here = route.as_ref().is_some_and(|route| route.here);
        // What its processes had to say, a project has published by itself.
        let (text, rest) = if prepared.agent.is_for_projects() { (verdict.told(""), "") } else { (verdict.text(), left.rest.as_str()) };
        let deliveries = deliveries(&prepared, route, &run_id, left.next, &verdict.told(rest));
        if here {
            // Delivered by the commit that ends the run: the last stages are part of it.
            let result = json!(DeliveryResult { deliveries: deliveries.len(), settled: None, pending: 0 });
            self.note_delivery(&mut prepared.request, result, 0, (clock::wall_ms(), Duration::ZERO), &mut held.ends);
        }
        let finish = FinishRun {
            event_seq: prepared.request.event_seq,
            fellows,
            run_id: run_id.clone(),
            ok: verdict.error.is_none(),
            is_aborted: verdict.is_aborted(),
            status: prepared.request.status,
            reason: prepared.request.reason.clone(),
            turn_json: Some(turn.to_json()),
            deliveries: deliveries.clone(),
            stream: left.stream_text(&end),
            wait: verdict.wait(&prepared.request),
            trace: trace_json(&prepared.request),
            at: clock::wall_ms(),
            epoch: self.epoch,
        };
        let order = self.outbox.order(&deliveries).await;
        match self.ledgers.nexus.writer.write_until_done(finish).await {
            Ok(Some(finish_seq)) => {
                crate::torture::point("run.finished");
                self.announce_end_of_run(&prepared, &run_id, &verdict);
                self.note_reply(&prepared, &text, &deliveries, &left, &end);
                // The answer leaves whether or not the agents ledger can follow.
                left.end(end);
                let waiting = if here {
                    self.outbox.sent().notify_one(); // sent with its run's end
                    None
                } else {
                    left.waiting.add(self.outbox.enqueue(deliveries, order));
                    Some(left.waiting)
                };
                self.wait_for_turn(finish_seq).await;
                self.announce_turn(&prepared, &run_id, &verdict);
                drop(unfiled);
                held.release();
                for fellow in prepared.fellows.iter().chain(&prepared.joined) {
                    self.announce_end_in(&fellow.request, None, &mut held.ends);
                }
                if let Some(waiting) = waiting {
                    self.deliver(&mut prepared, &run_id, waiting, &mut held.ends).await;
                }
                self.announce_end_in(&prepared.request, Some(&text), &mut held.ends);
            }
            Ok(None) => tracing::error!(run_id, "the run was settled by somebody else; its answer is not delivered"),
            Err(error) => self.leave_unsettled(&prepared, &run_id, &error.to_string()),
        }
    }

    fn leave_unsettled(&self, prepared: &Prepared, run_id: &str, error: &str) {
        tracing::error!(run_id, error, "the end of a run could not be written; the next start decides by on_interrupted");
        self.plugins.failed(&prepared.request, Stage::Finalize, error);
        self.unsettled.leave(&prepared.conversation(), prepared.request.event_seq);
    }

    /// What plugins make of the agent's words before anybody gets them. One that must not fail and does
    /// holds them back.
    async fn review(
        &self,
        prepared: &mut Prepared,
        run_id: &str,
        verdict: &mut Verdict,
        tool_calls: &[ToolCall],
        spent: Duration,
    ) -> Vec<HookTrace> {
        if verdict.finished.content.is_empty() || !self.plugins.is_asked(Hook::AfterRunAgent) {
            return Vec::new();
        }
        let left = prepared.timeout.saturating_sub(prepared.spent + spent).max(REVIEW_MIN);
        let asked = self.plugins.ask(Hook::AfterRunAgent, &mut prepared.request, left).await;
        match asked.exit {
            Some(HookExit::Failed(error)) => {
                let hint = self.hint(&prepared.request, &prepared.adapter);
                *verdict = withheld(error, &hint, verdict.finished.usage);
                self.note_response(prepared, run_id, verdict, tool_calls, spent);
            }
            // Nobody can skip what was done already.
            Some(HookExit::Handled { .. }) | None => {
                if let Some(response) = &prepared.request.response {
                    verdict.finished.content.clone_from(&response.content);
                }
            }
        }
        asked.traces
    }

    /// Where the owner finds more, behind a sentence that tells of a failure; nothing where others read it.
    fn hint(&self, request: &NexusRequest, adapter: &str) -> String {
        match is_between_us(&self.settings.load().access, adapter, &request.event) {
            true => format!(" (see `nexus trace show {}`)", request.request_id),
            false => String::new(),
        }
    }

    fn note_response(&self, prepared: &mut Prepared, run_id: &str, verdict: &Verdict, tool_calls: &[ToolCall], spent: Duration) {
        let request = &mut prepared.request;
        request.status = if verdict.error.is_some() { Status::Failed } else { Status::Completed };
        request.reason = verdict.reason(&prepared.abort);
        if let Some(agent) = &mut request.agent {
            (agent.run_id, agent.turn_id) = (Some(run_id.to_owned()), Some(turn_id(run_id)));
            agent.model.clone_from(&verdict.finished.model);
            agent.provider.clone_from(&verdict.finished.provider);
        }
        request.response = Some(ResponseSection {
            content: verdict.finished.content.clone(),
            tool_calls: tool_calls.iter().map(ToolCall::outline).collect(),
            usage: json!(verdict.finished.usage),
            stop_reason: stop_word(verdict.finished.stop_reason).to_owned(),
            duration_ms: spent.as_secs_f64() * 1000.0,
            error: verdict.error.clone(),
        });
        prepared.name_fellows();
    }

    /// Brings the requests that shared the run to its end, in memory: what is written of each. The answer and the
    /// tool calls are told of the newest alone: up to a hundred may share them.
    fn end_fellows(
        &self,
        prepared: &mut Prepared,
        exit: Option<&Exit>,
        started_at: i64,
        spent: Duration,
        ends: &mut Ends,
    ) -> Vec<FellowEnd> {
        let Prepared { request: lead, fellows, joined, .. } = prepared;
        let mut written = Vec::with_capacity(fellows.len() + joined.len());
        let shared = lead.response.as_ref().map(without_answer);
        let chars = lead.response.as_ref().map(|response| response.content.chars().count());
        let collected = fellows.iter_mut().map(|fellow| ("collected", fellow));
        for (how, fellow) in collected.chain(joined.iter_mut().map(|joined| ("steered", joined))) {
            let request = &mut fellow.request;
            (request.status, request.response) = (lead.status, shared.clone());
            let own = lead.reason.clone();
            request.reason = own.or_else(|| Some(format!("{how}: answered with {}", lead.request_id)));
            if let (Some(agent), Some(of_lead)) = (&mut request.agent, &lead.agent) {
                agent.run_id.clone_from(&of_lead.run_id);
                agent.turn_id.clone_from(&of_lead.turn_id);
                agent.model.clone_from(&of_lead.model);
                agent.provider.clone_from(&of_lead.provider);
                agent.answered_by.clone_from(&of_lead.answered_by);
                agent.fallback_from.clone_from(&of_lead.fallback_from);
            }
            // One that joined the run was not there at its start.
            let began_at = started_at.max(request.created_at);
            let missed = Duration::from_millis(began_at.abs_diff(started_at));
            self.record(request, Stage::RunAgent, began_at, spent.saturating_sub(missed), exit, Vec::new());
            self.plugins.after(Stage::RunAgent, request);
            self.finalize_in(request, ends);
            let mut trace = trace_value(request);
            trace["response"]["chars"] = json!(chars);
            written.push(FellowEnd { event_seq: request.event_seq, reason: request.reason.clone(), trace: trace.to_string() });
        }
        written
    }

    /// What comes back as a message is known by what was said, and by each message that it goes out in.
    /// One that left as a single message is known as that: people may say what they read long ago.
    fn note_reply(&self, prepared: &Prepared, text: &str, deliveries: &[NewDelivery], left: &Left, end: &End) {
        let messages: Vec<&str> = deliveries.iter().map(|delivery| delivery.content.as_str()).collect();
        let shown = left.shown(end);
        // Of an answer that was cut off, what was shown is all that can come back.
        let whole = if text.trim().is_empty() { shown } else { text };
        if !deliveries.is_empty() || left.next > 0 {
            self.speaks(&prepared.session);
        }
        if !whole.trim().is_empty() {
            self.breakers.replied(&prepared.session, whole, &messages);
        }
        if left.is_in_parts(messages.len()) {
            let said = messages.into_iter().chain([shown]).filter(|message| !message.trim().is_empty());
            said.for_each(|message| self.breakers.said(&prepared.session, message));
        }
    }

    fn announce_end_of_run(&self, prepared: &Prepared, run_id: &str, verdict: &Verdict) {
        let said = json!({ "stop_reason": stop_word(verdict.finished.stop_reason) });
        self.bus.publish(NoticeType::StreamEnd, OfRun::new(prepared, run_id, said));
        if let Some(error) = &verdict.error {
            self.bus.publish(NoticeType::AgentError, OfRun::new(prepared, run_id, json!({ "error": error })));
        }
    }

    /// Once the agents ledger has the turn: who hears of it finds it there, and has heard of its session.
    fn announce_turn(&self, prepared: &Prepared, run_id: &str, verdict: &Verdict) {
        let said = json!({ "turn_id": turn_id(run_id), "stop_reason": stop_word(verdict.finished.stop_reason) });
        self.bus.publish(NoticeType::TurnCompleted, OfRun::new(prepared, run_id, said));
    }

    /// The next turn of this session must see this one.
    pub(super) async fn wait_for_turn(&self, finish_seq: i64) {
        self.finished.notify_one();
        let mut applied = self.turns_applied.clone();
        tokio::select! {
            // An error means that the ledger is closed; it catches up at the next start.
            known = applied.wait_for(|seq| *seq >= finish_seq) => drop(known),
            () = self.abandon.cancelled() => {}
        }
    }

    /// Stages 7 and 8, after the request's end is committed: they only add to its trace.
    async fn deliver(&self, prepared: &mut Prepared, run_id: &str, waiting: super::outbox::Waiting, ends: &mut Ends) {
        let (started_at, started) = (clock::wall_ms(), Instant::now());
        let total = waiting.len();
        let outcomes = waiting.settle(DELIVERY_WAIT, &self.abandon).await;
        let pending = total - outcomes.len();
        for why in outcomes.iter().filter_map(Outcome::failure) {
            self.plugins.failed(&prepared.request, Stage::DeliverResponse, why);
        }
        let result = json!(DeliveryResult { deliveries: total, settled: Some(outcomes), pending });
        self.note_delivery(&mut prepared.request, result, pending, (started_at, started.elapsed()), ends);
        let save = SaveTrace { event_seq: prepared.request.event_seq, trace: trace_json(&prepared.request) };
        if let Err(error) = self.ledgers.nexus.writer.write(save).await {
            tracing::warn!(run_id, %error, "the last two stages are missing from this request's trace");
            self.plugins.failed(&prepared.request, Stage::Finalize, &error.to_string());
        }
    }

    /// Stages 7 and 8 in the request and on the bus, of a delivery that began then, in Unix ms, and took so long.
    fn note_delivery(
        &self,
        request: &mut NexusRequest,
        result: serde_json::Value,
        pending: usize,
        (started_at, spent): (i64, Duration),
        ends: &mut Ends,
    ) {
        request.delivery_result = Some(result);
        let exit = (pending > 0).then(|| Exit::Denied(format!("{pending} deliveries still under way")));
        self.record(request, Stage::DeliverResponse, started_at, spent, exit.as_ref(), Vec::new());
        self.plugins.after(Stage::DeliverResponse, request);
        self.finalize_in(request, ends);
    }
}

/// How a run ended, without what was said and done in it.
fn without_answer(response: &ResponseSection) -> ResponseSection {
    ResponseSection {
        content: String::new(),
        tool_calls: Vec::new(),
        usage: response.usage.clone(),
        stop_reason: response.stop_reason.clone(),
        duration_ms: response.duration_ms,
        error: response.error.clone(),
    }
}

/// One row per message to send, from number `first` of the run's on; long texts are split, never cut off.
fn deliveries(prepared: &Prepared, route: Option<Route>, run_id: &str, first: usize, content: &str) -> Vec<NewDelivery> {
    // Whoever said nothing to anybody is told nothing, also when that failed.
    let is_asked = ProjectTurn::of(&prepared.request).is_none_or(|turn| turn.is_asked);
    let Some(route) = route.filter(|route| is_asked && route.sender.is_some()) else { return Vec::new() };
    let pieces = route.pieces(content);
    let split = pieces.len() > 1;
    let key = |n: usize| if split { format!("{run_id}:1:{first}/{}", n + 1) } else { format!("{run_id}:1:{first}") };
    let made = pieces.into_iter().enumerate().map(|(n, content)| new_delivery(prepared, &route, run_id, key(n), content));
    made.collect()
}

/// A message of a run to whom the request is answered.
pub(super) fn new_delivery(prepared: &Prepared, route: &Route, run_id: &str, idempotency_key: String, content: String) -> NewDelivery {
    let (request, now) = (&prepared.request, clock::wall_ms());
    NewDelivery {
        delivery_id: format!("dlv_{}", ulid::Ulid::generate()),
        request_id: request.request_id.clone(),
        event_seq: request.event_seq,
        run_id: Some(run_id.to_owned()),
        adapter: request.adapter.clone(),
        channel: request.delivery.channel.clone(),
        account_id: request.delivery.account_id.clone(),
        target: request.delivery.target.clone(),
        thread_id: request.delivery.thread_id.clone(),
        reply_to_id: request.delivery.reply_to_id.clone(),
        idempotency_key,
        content,
        created_at: now,
        expires_at: now.saturating_add(i64::try_from(route.ttl_ms).unwrap_or(i64::MAX)),
        here: route.here,
    }
}

pub(super) fn turn_record(
    prepared: &Prepared,
    run_id: &str,
    finished: &Finished,
    seen: Seen,
    started_at: i64,
    spent: Duration,
) -> TurnRecord {
    TurnRecord {
        turn_id: turn_id(run_id),
        speakers: prepared.speakers(),
        request_id: prepared.request.request_id.clone(),
        session: prepared.session.clone(),
        formerly: prepared.formerly.clone(),
        agent: prepared.agent.name.clone(),
        user: prepared.said(),
        assistant: finished.content.clone(),
        model: finished.model.clone(),
        provider: finished.provider.clone(),
        stop_reason: stop_word(finished.stop_reason).to_owned(),
        input_tokens: finished.usage.input_tokens,
        output_tokens: finished.usage.output_tokens,
        started_at,
        duration_ms: spent.as_secs_f64() * 1000.0,
        tool_calls: seen.tool_calls,
        charged: seen.charged.map(|agent| agent.name.clone()),
        cost_usd: seen.cost_usd,
    }
}
