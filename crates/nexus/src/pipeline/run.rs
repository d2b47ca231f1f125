//! Stage 6: the agent runs. Its run is committed before it starts and its end, turn and deliveries
//! are committed together; in between tokens pass by.

use super::finish::{Ended, turn_record};
use super::identify::audit;
use super::notices::OfRun;
use super::outlet::Outlet;
use super::spending::Unfiled;
use super::steering::{Held, Next, Steering};
use super::unsettled::ENDS;
use super::{Active, Agent, Pipeline, Prepared};
use crate::agent::{AgentError, Finished, MAX_ANSWER_BYTES, Output, StopReason, TRIES_MAX, ToolStatus, Turn, Usage, pause_after};
use crate::clock;
use crate::ledger::agents::ToolCall;
use crate::ledger::nexus::{Claim, Fellow, InterruptRun, MarkActed, StartRun};
use crate::ledger::writer::WriteError;
use crate::live::End;
use crate::panics;
use crate::replies::Part;
use nexus_core::notice::NoticeType;
use nexus_core::stream::StreamEvent;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Pieces of output that may wait between agent and bus; a full channel holds the agent.
const OUTPUT_MAX: usize = 256;
/// Tool calls of one turn that are recorded; more are counted only.
const TOOL_CALLS_MAX: usize = 1000;
/// Bytes of arguments and results of one turn's tool calls that are recorded.
const TOOL_DETAIL_BYTES_MAX: usize = 1024 * 1024;

/// What a run that goes on deals with next.
enum News {
    Said(Output),
    /// What was said so far is to leave.
    Due,
    Steer(Next),
}

/// Why an attempt is ended whatever its agent does.
enum Cut {
    TimedOut,
    /// The daemon is stopping.
    Abandoned,
    /// A newer message came, or a person says so.
    Aborted,
    /// It was about to act without a word of it on disk.
    Unmarked(WriteError),
}

/// What the attempts left behind while they ran.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// When the run began, whose day its use counts for.
    pub(super) started_at: i64,
    tokens: u64,
    /// What it said, for a run that is interrupted.
    pub(super) text: String,
    pub(super) tool_calls: Vec<ToolCall>,
    tool_detail_bytes: usize,
    acted: bool,
    /// Bytes of the last question, until it is told what it used.
    pub(super) asked_bytes: Option<usize>,
    /// Bytes said since the agent last told what it used.
    pub(super) unpaid_bytes: usize,
    pub(super) unfiled: Unfiled,
    pub(super) usage: Option<Usage>,
    /// The agent that was asked last, if its use is counted.
    pub(super) charged: Option<Arc<Agent>>,
    pub(super) cost_usd: Option<f64>,
    /// How the answer leaves meanwhile.
    pub(super) outlet: Outlet,
}

impl Seen {
    /// Doing it again would say or do something twice.
    fn has_begun(&self) -> bool {
        self.tokens > 0 || self.acted
    }
}

/// How the agent's work ended.
#[derive(Debug)]
pub(super) enum Work {
    Finished(Finished),
    Failed(AgentError),
    TimedOut,
    /// The daemon is stopping.
    Abandoned,
}

impl Pipeline {
    /// Stages 6 to 8. `held` is released once the session may take its next turn. A run that a panic breaks off
    /// ends as failed, and holds its session until that is on disk.
    pub(super) async fn run(self: &Arc<Self>, prepared: Prepared, mut held: Held) {
        let Some(prepared) = self.still_holding(prepared).await else { return held.release() };
        // Beside the work: what was decided about its requests is written though that breaks off before it runs.
        let (mut start, conversation) = (self.start_of(&prepared), prepared.conversation());
        let seq = start.event_seq;
        let ran = panics::caught(self.run_whole(prepared, start.clone(), &mut held)).await;
        if let Err(panicked) = ran {
            drop(held.steering.settle().await);
            start.fellows.extend(held.steering.joined());
            self.break_off_run(start, &conversation, &mut held.ends, &panicked).await;
            self.unsettled.none_before(&conversation, seq.saturating_add(1)).await;
        }
        held.release();
    }

    fn start_of(&self, prepared: &Prepared) -> StartRun {
        let fellows = prepared.fellows.iter().map(|fellow| &fellow.request);
        StartRun {
            event_seq: prepared.request.event_seq,
            fellows: fellows.map(|request| Fellow { event_seq: request.event_seq, audit: audit(request) }).collect(),
            run_id: format!("run_{}", ulid::Ulid::generate()),
            agent: prepared.agent.name.clone(),
            session: prepared.session.clone(),
            acted: prepared.agent.acts,
            audit: audit(&prepared.request),
            at: clock::wall_ms(),
            epoch: self.epoch,
        }
    }

    pub(super) async fn run_whole(&self, mut prepared: Prepared, start: StartRun, held: &mut Held) {
        let run_id = start.run_id.clone();
        let Some(history) = self.remember(&mut prepared).await else {
            tracing::warn!(request_id = prepared.request.request_id, "run not started; the request waits for the next start");
            return;
        };
        let memory = self.recall(&mut prepared, &history).await;
        let conversation = prepared.conversation();
        // No fellow is newer.
        if !self.unsettled.none_before(&conversation, prepared.request.event_seq).await {
            return self.leave_too(&prepared);
        }
        let claim = StartRun { at: clock::wall_ms(), ..start };
        match self.write_admitted(prepared.request.event_seq, claim).await {
            Ok(Claim::Done) => {}
            Ok(Claim::Lost) => {
                tracing::error!(request_id = prepared.request.request_id, "somebody else has this request; left alone");
                return;
            }
            Err(error) => {
                tracing::warn!(request_id = prepared.request.request_id, %error, "run not started");
                return self.unsettled.leave(&conversation, prepared.request.event_seq);
            }
        }
        let _active = Active::begin(&self.metrics);
        crate::torture::point("run.started");
        let started_at = clock::wall_ms();
        let started = Instant::now();
        self.announce_start(&prepared, &run_id);
        let mut seen = Seen { started_at, outlet: self.outlet(&prepared, &run_id), ..Seen::default() };
        let mut turn = self.turn(&prepared, &run_id, history, memory);
        let work = self.work(&mut prepared, &mut turn, &mut seen, &mut held.steering).await;
        prepared.joined = held.steering.settle().await;
        if matches!(work, Work::Abandoned) {
            self.interrupt(&prepared, &run_id, seen, started_at, started.elapsed()).await;
        } else {
            let ended = Ended { prepared, run_id, work, seen, started_at, spent: started.elapsed() };
            self.finish(ended, held).await;
        }
    }

    /// An earlier request of its conversation has no end and waits for the next start, and so does this one.
    fn leave_too(&self, prepared: &Prepared) {
        let request_id = &prepared.request.request_id;
        tracing::warn!(request_id, "run not started; an earlier request waits for the next start, and this one with it");
        if !self.abandon.is_cancelled() {
            self.watch_over.part(ENDS).give_up("one could not be written; what came after it in its conversation waits for the next start");
        }
    }

    fn announce_start(&self, prepared: &Prepared, run_id: &str) {
        let notice = OfRun::new(prepared, run_id, json!({}));
        self.bus.publish(NoticeType::TurnCreated, &notice);
        self.bus.publish(NoticeType::StreamStart, &notice);
    }

    /// Runs the agent; while its endpoint can't answer and nothing was said or done, those that are to take its
    /// place, each once its budget allows it.
    async fn work(&self, prepared: &mut Prepared, turn: &mut Turn, seen: &mut Seen, steering: &mut Steering) -> Work {
        let own = prepared.agent.clone();
        let left = prepared.timeout.saturating_sub(prepared.spent);
        // A project may have to be cloned and started first: its parts have limits of their own.
        let limit = if own.is_for_projects() { own.timeout } else { own.timeout.min(left) };
        let deadline = tokio::time::Instant::now() + limit;
        turn.deadline = Some(deadline);
        let mut work = self.tries(prepared, &own, turn, seen, steering, deadline).await;
        for name in &own.fallback {
            let Work::Failed(error) = &work else { break };
            if !error.retryable() || seen.has_begun() || tokio::time::Instant::now() >= deadline {
                break;
            }
            if prepared.abort.is_cancelled() {
                return Work::Finished(aborted(seen)); // nobody waits for another's answer either
            }
            // None is there that a reload took away.
            let Some(other) = self.settings.load().agents.get(name).cloned() else { continue };
            let reason = crate::error_text::describe(error);
            tracing::warn!(run_id = turn.run_id, agent = own.name, fallback = other.name, error = reason, "another agent takes its place");
            let next = self.tries(prepared, &other, turn, seen, steering, deadline).await;
            if matches!(&next, Work::Failed(AgentError::Exhausted { .. })) && !seen.has_begun() {
                continue; // why the first one failed says more
            }
            if let Some(section) = &mut prepared.request.agent {
                section.answered_by = Some(other.name.clone());
                section.fallback_from.get_or_insert(reason);
            }
            work = next;
        }
        work
    }

    /// Runs one agent, again after an error that may pass if nothing was said or done yet.
    async fn tries(
        &self,
        prepared: &Prepared,
        agent: &Arc<Agent>,
        turn: &mut Turn,
        seen: &mut Seen,
        steering: &mut Steering,
        deadline: tokio::time::Instant,
    ) -> Work {
        // Of a turn that was ended by now nobody is told that its budget is used up.
        let payer = self.payer(agent, turn);
        if let Some(refused) = self.refuse(&payer, turn, prepared.formerly.clone()).await.filter(|_| !prepared.abort.is_cancelled()) {
            return refused;
        }
        seen.charged = payer.spending.is_some().then_some(payer);
        for attempt in 1_u32.. {
            if prepared.abort.is_cancelled() {
                return Work::Finished(aborted(seen));
            }
            let failed = match self.attempt(prepared, agent, turn, seen, steering, deadline).await {
                Work::Failed(error) => error,
                ended @ (Work::Finished(_) | Work::TimedOut | Work::Abandoned) => return ended,
            };
            let may_repeat = failed.retryable() && attempt < TRIES_MAX && !seen.has_begun();
            let pause = pause_after(attempt, failed.retry_after());
            let is_late = tokio::time::Instant::now().checked_add(pause).is_none_or(|next| next >= deadline);
            if !may_repeat || is_late {
                return Work::Failed(failed);
            }
            tracing::warn!(run_id = turn.run_id, agent = agent.name, attempt, error = %failed, "agent failed, trying again");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = prepared.abort.cancelled() => {}
                () = self.abandon.cancelled() => return Work::Abandoned,
            }
        }
        Work::TimedOut // not reached: the loop has no end of its own
    }

    async fn attempt(
        &self,
        prepared: &Prepared,
        agent: &Agent,
        turn: &Turn,
        seen: &mut Seen,
        steering: &mut Steering,
        deadline: tokio::time::Instant,
    ) -> Work {
        let (sink, mut output) = mpsc::channel(OUTPUT_MAX);
        let input = steering.begin(prepared, agent);
        let result = {
            let running = panics::caught(agent.runner.run(turn, &sink, input));
            // Its time is up also where an agent that never stops uses up all of the task's turn.
            let cut = tokio::task::coop::unconstrained(self.cut(prepared, deadline));
            tokio::pin!(running, cut);
            loop {
                let news = tokio::select! {
                    // Output first: what was said before the end belongs to it.
                    biased;
                    Some(piece) = output.recv() => News::Said(piece),
                    result = &mut running => break Ok(result),
                    // Dropping `running` kills the agent's whole process tree.
                    why = &mut cut => break Err(why),
                    () = seen.outlet.due() => News::Due,
                    next = steering.next() => News::Steer(next),
                };
                // The agent waits for this, since some of it must be on disk first; its end doesn't, however long a disk takes.
                let dealt = tokio::select! {
                    biased;
                    dealt = self.deal_with(prepared, &turn.run_id, news, seen, steering) => dealt,
                    why = &mut cut => Err(why),
                };
                if let Err(why) = dealt {
                    break Err(why);
                }
            }
        };
        let result = match result {
            Ok(result) => result,
            Err(why) => {
                self.settle_use(seen);
                agent.runner.gone(turn).await;
                return cut_off(why, agent, seen);
            }
        };
        while let Ok(piece) = output.try_recv() {
            // What the agent does is over; its run's end is about to be written, or neither can be.
            self.hear(prepared, &turn.run_id, piece, seen, steering).await.ok();
        }
        // Nobody charges for a question that was refused, or that reached nobody.
        if seen.unpaid_bytes == 0 && matches!(&result, Ok(Err(error)) if error.is_unworked()) {
            seen.asked_bytes = None;
        }
        self.settle_use(seen);
        match result {
            Ok(Ok(finished)) => Work::Finished(finished),
            Ok(Err(error)) => Work::Failed(error),
            Err(panicked) => {
                let problem = self.defect(prepared.request.event_seq, &panicked);
                Work::Failed(AgentError::Config { agent: agent.name.clone(), problem })
            }
        }
    }

    /// Comes when an attempt is to end whatever its agent does.
    async fn cut(&self, prepared: &Prepared, deadline: tokio::time::Instant) -> Cut {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(deadline) => Cut::TimedOut,
            () = self.abandon.cancelled() => Cut::Abandoned,
            () = prepared.abort.cancelled() => Cut::Aborted,
        }
    }

    /// Safe to cancel, if the attempt is over then.
    async fn deal_with(&self, prepared: &Prepared, run_id: &str, news: News, seen: &mut Seen, steering: &mut Steering) -> Result<(), Cut> {
        match news {
            News::Said(piece) => return self.hear(prepared, run_id, piece, seen, steering).await.map_err(Cut::Unmarked),
            News::Due => self.part(prepared, run_id, &seen.text, &mut seen.outlet).await,
            News::Steer(next) => self.steer(prepared, next, steering),
        }
        Ok(())
    }

    /// Passes one piece of output on to the bus and to who waits for the answer.
    ///
    /// # Errors
    /// When it isn't on disk that the agent acts, which it must not do then.
    async fn hear(
        &self,
        prepared: &Prepared,
        run_id: &str,
        piece: Output,
        seen: &mut Seen,
        steering: &mut Steering,
    ) -> Result<(), WriteError> {
        let event_id = &prepared.request.event.event_id;
        match piece {
            Output::Token(text) => {
                seen.tokens += 1;
                seen.unpaid_bytes += text.len();
                if seen.text.len() + text.len() <= MAX_ANSWER_BYTES {
                    seen.text.push_str(&text);
                }
                self.bus.publish(NoticeType::StreamToken, OfRun::new(prepared, run_id, json!({ "text": text })));
                if self.replies.has(event_id) {
                    self.replies.tell(event_id, &Part::Token { text: text.clone() });
                }
                self.speak(prepared, run_id, &text, &seen.text, &mut seen.outlet).await;
            }
            Output::Reasoning(text) => {
                seen.tokens += 1;
                seen.unpaid_bytes += text.len();
                self.bus.publish(NoticeType::StreamToken, OfRun::new(prepared, run_id, json!({ "reasoning": text })));
                seen.outlet.aside(|| StreamEvent::Reasoning { text });
            }
            Output::Asked { bytes } => {
                self.settle_use(seen); // the one before it failed
                seen.asked_bytes = Some(bytes);
            }
            Output::Used(usage) => self.charge(usage, seen),
            Output::Tool { name, call_id, status, summary, detail } => {
                if !seen.acted {
                    let mark = MarkActed { run_id: run_id.to_owned() };
                    let marked = self.ledgers.nexus.writer.write_until_done(mark).await;
                    marked.inspect_err(|error| tracing::error!(run_id, %error, "could not note that the agent acts"))?;
                    seen.acted = true;
                }
                let detail = detail.filter(|detail| seen.tool_detail_bytes + detail.len() <= TOOL_DETAIL_BYTES_MAX);
                seen.tool_detail_bytes += detail.as_ref().map_or(0, String::len);
                let (arguments, result) = if status == ToolStatus::Started { (detail, None) } else { (None, detail) };
                let call = ToolCall { call_id, name, status: word(status).into(), summary, arguments, result };
                self.hear_tool(prepared, run_id, call, status, seen);
            }
            Output::Ask(question) => self.ask_owner(prepared, run_id, question, seen).await,
            Output::Steering => self.open(prepared, steering),
            Output::Steered { message_id } => self.join(run_id, &message_id, steering),
        }
        Ok(())
    }

    fn hear_tool(&self, prepared: &Prepared, run_id: &str, mut call: ToolCall, status: ToolStatus, seen: &mut Seen) {
        let kind = match status {
            ToolStatus::Started => NoticeType::ToolStarted,
            ToolStatus::Completed | ToolStatus::Failed => NoticeType::ToolCompleted,
        };
        let said = json!({ "tool": call.name, "call_id": call.call_id, "status": call.status });
        self.bus.publish(kind, OfRun::new(prepared, run_id, said));
        self.replies.tell(&prepared.request.event.event_id, &Part::Tool { name: call.name.clone(), status: call.status.clone() });
        seen.outlet.aside(|| StreamEvent::ToolStatus {
            tool_name: call.name.clone(),
            tool_call_id: call.call_id.clone(),
            status: call.status.clone(),
            summary: call.summary.clone(),
        });
        match seen.tool_calls.iter().position(|known| known.call_id == call.call_id) {
            Some(place) => {
                call.arguments = call.arguments.or_else(|| seen.tool_calls[place].arguments.take());
                seen.tool_calls[place] = call;
            }
            None if seen.tool_calls.len() < TOOL_CALLS_MAX => seen.tool_calls.push(call),
            None => {}
        }
    }

    /// Notes that the daemon's stop cut this run short, and how far it had come; not terminal.
    async fn interrupt(&self, prepared: &Prepared, run_id: &str, mut seen: Seen, started_at: i64, spent: Duration) {
        let event_seq = prepared.request.event_seq;
        let text = seen.text.clone();
        let mut left = std::mem::take(&mut seen.outlet).close(&text, &text).await;
        let end = End::Cut { error: "the daemon stops".to_owned(), partial: left.last_part(text) };
        let stream = left.stream_text(&end);
        let is_silent = seen.text.is_empty() && seen.tool_calls.is_empty() && seen.usage.is_none();
        let said = Finished { usage: seen.usage.unwrap_or_default(), ..partial(std::mem::take(&mut seen.text)) };
        let turn = turn_record(prepared, run_id, &said, seen, started_at, spent);
        let turn_json = (!is_silent).then(|| turn.to_json());
        let (fellows, at) = (prepared.fellow_seqs(), clock::wall_ms());
        let interrupt = InterruptRun { event_seq, fellows, run_id: run_id.to_owned(), turn_json, stream, at, epoch: self.epoch };
        tracing::warn!(request_id = prepared.request.request_id, run_id, "request interrupted; the next start decides by on_interrupted");
        if let Err(error) = self.ledgers.nexus.writer.write(interrupt).await {
            tracing::warn!(run_id, %error, "the interruption could not be written; the next start finds it");
        }
        left.end(end);
    }
}

/// What an attempt came to that was ended.
fn cut_off(why: Cut, agent: &Agent, seen: &Seen) -> Work {
    match why {
        Cut::TimedOut => Work::TimedOut,
        Cut::Aborted => Work::Finished(aborted(seen)),
        Cut::Abandoned | Cut::Unmarked(WriteError::Closed { .. } | WriteError::Unknown { .. }) => Work::Abandoned,
        Cut::Unmarked(error @ WriteError::Refused { .. }) => {
            let problem = format!("what it wants to do can't be noted: {error}");
            Work::Failed(AgentError::Config { agent: agent.name.clone(), problem })
        }
    }
}

/// What was said until the turn was ended.
fn aborted(seen: &Seen) -> Finished {
    partial(seen.text.clone())
}

fn partial(content: String) -> Finished {
    Finished { content, usage: Usage::default(), stop_reason: StopReason::Aborted, model: None, provider: None }
}

fn word(status: ToolStatus) -> &'static str {
    match status {
        ToolStatus::Started => "started",
        ToolStatus::Completed => "completed",
        ToolStatus::Failed => "failed",
    }
}
