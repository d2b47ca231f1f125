//! One turn: the prompt, what is heard until its end, the questions in between, and the end that is
//! made of it when nobody waits for it any more. Chooses no session and keeps no history.

use super::agent::AcpAgent;
use super::hub::{Asking, Ear, Event};
use super::link::{Link, told};
use super::permission::{self, Verdict};
use super::said::Said;
use super::session;
use crate::agent::questions::{Answer, Answered, OPEN_MAX, Ticket};
use crate::agent::{AgentError, Finished, MAX_ANSWER_BYTES, Output, Question, Sink, StopReason, Turn, Usage, emit, plausible};
use agent_client_protocol::v1::Responder;
use agent_client_protocol::v1::schema::{
    CancelNotification, ContentBlock, PermissionOption, PromptRequest, RequestPermissionResponse, SessionId, StopReason as WireStop,
};
use agent_client_protocol::{Error, UntypedMessage};
use nexus_core::config::{AgentPermissions, Tools};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long an agent has to end a turn that it was told to stop.
const CANCEL_GRACE: Duration = Duration::from_secs(5);
/// Questions that one turn may put to the owner; beyond, it is refused what it asks for.
const QUESTIONS_MAX: u32 = 20;

/// What is left of a turn's time after a question at most, for the agent to go on in.
const ANSWER_GRACE: Duration = Duration::from_secs(10);

/// Runs one turn to its end, or until soon after `cancelled`; then what it returns goes nowhere.
pub(super) async fn run(
    agent: Arc<AcpAgent>,
    rules: AgentPermissions,
    turn: Turn,
    out: Sink,
    cancelled: CancellationToken,
) -> Result<Finished, AgentError> {
    let stopped = || AgentError::Reported { agent: turn.agent.clone(), problem: "the turn was stopped".to_owned(), partial: String::new() };
    let lane = agent.lane(&turn.session_label);
    // The turn before may still be ending.
    let _alone = tokio::select! {
        guard = lane.lock() => guard,
        () = cancelled.cancelled() => return Err(stopped()),
    };
    let link = tokio::select! {
        link = agent.link() => link?,
        () = cancelled.cancelled() => return Err(stopped()),
    };
    let Some(inside) = link.enter() else { return Err(agent.lost(&link).await) };
    let opening = session::open(&agent, &link, &turn);
    tokio::pin!(opening);
    let opened = tokio::select! {
        opened = &mut opening => opened?,
        () = cancelled.cancelled() => {
            match tokio::time::timeout(CANCEL_GRACE, &mut opening).await {
                Ok(Ok(opened)) => session::close(&agent, &link, opened.id),
                Ok(Err(_)) => {} // nobody waits for it
                Err(_) => link.kill("it opened no session, and the turn was over"),
            }
            return Err(stopped());
        }
    };
    session::note(&agent, &link, &turn, &opened.id).await;
    let content = session::prompt(&turn, opened.is_new);
    let ear = link.hub().listen(&opened.id);
    let ended = Talk::new(&agent, &link, &turn, &out, rules).run(opened.id.clone(), content, ear, &cancelled).await;
    session::close(&agent, &link, opened.id);
    drop(inside);
    agent.retire(&link);
    ended
}

/// A question that the owner hasn't answered yet.
struct Asked {
    ticket: Ticket,
    responder: Responder<RequestPermissionResponse>,
    options: Vec<PermissionOption>,
    until: Instant,
}

/// Why nothing more is heard of a prompt.
enum Heard {
    Answered(Result<Value, Error>),
    Cancelled,
    /// The answer is too long.
    TooLong,
    Died,
}

struct Talk<'a> {
    agent: &'a AcpAgent,
    link: &'a Link,
    turn: &'a Turn,
    out: &'a Sink,
    /// What access control says about tools.
    tools: Tools,
    rules: AgentPermissions,
    said: Said,
    asked: Vec<Asked>,
    questions: u32,
    answers: mpsc::Receiver<Answered>,
    to_answers: mpsc::Sender<Answered>,
}

impl<'a> Talk<'a> {
    fn new(agent: &'a AcpAgent, link: &'a Link, turn: &'a Turn, out: &'a Sink, rules: AgentPermissions) -> Self {
        let ((to_answers, answers), said) = (mpsc::channel(OPEN_MAX), Said::default());
        Self { agent, link, turn, out, tools: turn.tools(), rules, said, asked: Vec::new(), questions: 0, answers, to_answers }
    }

    async fn run(
        mut self,
        id: SessionId,
        content: Vec<ContentBlock>,
        mut ear: Ear,
        cancelled: &CancellationToken,
    ) -> Result<Finished, AgentError> {
        // Untyped: what it tells of its usage is not in the stable protocol yet.
        let request = UntypedMessage::new("session/prompt", PromptRequest::new(id.clone(), content));
        let request = request.map_err(|error| self.reported(told(&error)))?;
        let prompt = self.link.connection().send_request(request).block_task();
        tokio::pin!(prompt);
        let heard = self.hear(&mut prompt, &mut ear, cancelled).await;
        match heard {
            Heard::Answered(answer) => {
                self.hear_the_rest(&mut ear).await;
                self.finish(answer).await
            }
            Heard::Cancelled => {
                self.stop(&id, &mut prompt, &mut ear).await;
                Err(self.reported("the turn was stopped".to_owned()))
            }
            Heard::TooLong => {
                self.stop(&id, &mut prompt, &mut ear).await;
                let (agent, partial) = (self.agent.name().to_owned(), self.said.take_answer());
                Err(AgentError::TooLarge { agent, what: "an answer", limit_bytes: MAX_ANSWER_BYTES, partial })
            }
            Heard::Died => Err(self.died().await),
        }
    }

    /// Hears the agent until the prompt is answered or nobody waits for that.
    async fn hear(
        &mut self,
        prompt: &mut (impl Future<Output = Result<Value, Error>> + Unpin),
        ear: &mut Ear,
        cancelled: &CancellationToken,
    ) -> Heard {
        let link = self.link;
        loop {
            let overdue = self.asked.iter().map(|asked| asked.until).min();
            tokio::select! {
                biased;
                () = cancelled.cancelled() => return Heard::Cancelled,
                // What was said before the answer belongs to it.
                Some(event) = ear.events.recv() => self.take(event).await,
                Some((code, answer)) = self.answers.recv() => self.answered(&code, answer),
                () = until(overdue) => self.expire(),
                answer = &mut *prompt => return Heard::Answered(answer),
                () = link.died() => return Heard::Died,
            }
            if self.said.is_too_long() {
                return Heard::TooLong;
            }
        }
    }

    async fn take(&mut self, event: Event) {
        match event {
            Event::Update(update) => {
                if let Some(piece) = self.said.take(*update) {
                    emit(self.out, piece).await;
                }
            }
            Event::Permission(asking) => self.permit(*asking).await,
        }
    }

    /// What the agent had said when it answered the prompt; it needs no permission any more.
    async fn hear_the_rest(&mut self, ear: &mut Ear) {
        while let Ok(event) = ear.events.try_recv() {
            match event {
                Event::Update(_) => self.take(event).await,
                Event::Permission(asking) => permission::cancel(asking.responder),
            }
        }
        self.withdraw();
    }

    async fn permit(&mut self, asking: Asking) {
        let Asking { request, responder } = asking;
        let wish = self.said.wish(&request.tool_call);
        let verdict = permission::decide(&self.tools, self.rules.ask, &wish);
        let refuse = |responder, why: &str| {
            // Not louder: it may ask as often as it likes.
            tracing::debug!(target: "nexus::agent", run_id = self.turn.run_id, wants = wish.told(), "refused: {why}");
            permission::answer(responder, &request.options, false);
        };
        let ticket = match verdict {
            Verdict::Allow => return permission::answer(responder, &request.options, true),
            Verdict::Refuse(why) => return refuse(responder, why),
            Verdict::Ask if self.questions >= QUESTIONS_MAX => return refuse(responder, "the turn has asked too much"),
            Verdict::Ask => self.agent.questions().open(self.agent.name(), &self.to_answers),
        };
        let Some(ticket) = ticket else { return refuse(responder, "too many questions are open") };
        self.questions += 1;
        let now = Instant::now();
        let left = self.turn.deadline.map(|deadline| deadline.saturating_duration_since(now));
        let patience = patience(Duration::from_millis(self.rules.timeout_ms), left);
        let timeout_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let question = Question { code: ticket.code().to_owned(), wants: wish.told(), timeout_ms };
        let until = now + patience;
        self.asked.push(Asked { ticket, responder, options: request.options, until });
        emit(self.out, Output::Ask(question)).await;
    }

    fn answered(&mut self, code: &str, answer: Answer) {
        let Some(place) = self.asked.iter().position(|asked| asked.ticket.code() == code) else { return };
        let Asked { responder, options, .. } = self.asked.swap_remove(place);
        let word = match answer {
            Answer::Yes => "allowed by the owner",
            Answer::No => "refused by the owner",
            Answer::NotAsked => "refused: the owner could not be asked",
        };
        tracing::info!(target: "nexus::agent", agent = self.agent.name(), run_id = self.turn.run_id, code, "{word}");
        permission::answer(responder, &options, answer == Answer::Yes);
    }

    /// Refuses what the owner had long enough to answer.
    fn expire(&mut self) {
        let now = Instant::now();
        let all = std::mem::take(&mut self.asked);
        let (late, open): (Vec<Asked>, Vec<Asked>) = all.into_iter().partition(|asked| asked.until <= now);
        self.asked = open;
        for Asked { ticket, responder, options, .. } in late {
            tracing::info!(target: "nexus::agent", code = ticket.code(), "refused: the owner did not answer in time");
            permission::answer(responder, &options, false);
        }
    }

    /// Closes all questions: the turn is over.
    fn withdraw(&mut self) {
        for Asked { responder, .. } in self.asked.drain(..) {
            permission::cancel(responder);
        }
    }

    /// Has the agent end the turn. One that doesn't is killed, with its whole tree.
    async fn stop(&mut self, id: &SessionId, prompt: &mut (impl Future<Output = Result<Value, Error>> + Unpin), ear: &mut Ear) {
        self.withdraw();
        if let Err(error) = self.link.connection().send_notification(CancelNotification::new(id.clone())) {
            tracing::debug!(target: "nexus::agent", %error, "an agent that is gone needs no word to stop");
        }
        let link = self.link;
        let ended = async {
            loop {
                tokio::select! {
                    Some(event) = ear.events.recv() => {
                        if let Event::Permission(asking) = event {
                            permission::cancel(asking.responder);
                        }
                    }
                    _ = &mut *prompt => return,
                    () = link.died() => return,
                }
            }
        };
        if tokio::time::timeout(CANCEL_GRACE, ended).await.is_err() {
            let (agent, run_id) = (self.agent.name(), &self.turn.run_id);
            tracing::warn!(target: "nexus::agent", agent, run_id, "an ACP agent ignores the word to stop; killing its whole tree");
            self.link.kill(&format!("it did not end a turn within {} s that it was told to stop", CANCEL_GRACE.as_secs()));
        }
    }

    async fn finish(&mut self, answer: Result<Value, Error>) -> Result<Finished, AgentError> {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if self.link.is_lost(&error) => return Err(self.died().await),
            Err(error) => {
                // It may not know the session any more; the next turn sees.
                if let Some(label) = session::label(self.turn) {
                    self.link.forget(&label);
                }
                return Err(self.reported(told(&error)));
            }
        };
        let stop_reason = match serde_json::from_value::<WireStop>(answer["stopReason"].clone()) {
            Ok(WireStop::EndTurn) => StopReason::EndTurn,
            Ok(WireStop::MaxTokens | WireStop::MaxTurnRequests) => StopReason::MaxTokens,
            // Whoever told it to stop doesn't hear this.
            Ok(WireStop::Cancelled) => return Err(self.reported("it stopped by itself".to_owned())),
            Ok(WireStop::Refusal) => return Err(self.reported("it refuses to go on".to_owned())),
            Ok(_) | Err(_) => return Err(self.reported("it gave no reason for its end that is known".to_owned())),
        };
        let tokens = |key: &str| answer["usage"][key].as_u64().and_then(plausible);
        let usage = Usage { input_tokens: tokens("inputTokens"), output_tokens: tokens("outputTokens"), estimated: false };
        Ok(Finished { content: self.said.take_answer(), usage, stop_reason, model: None, provider: None })
    }

    fn reported(&mut self, problem: String) -> AgentError {
        AgentError::Reported { agent: self.agent.name().to_owned(), problem, partial: self.said.take_answer() }
    }

    async fn died(&mut self) -> AgentError {
        let partial = self.said.take_answer();
        self.agent.died(self.link, partial).await
    }
}

/// How long a question may be open: no longer than leaves the agent a tenth of its time to take the refusal.
fn patience(wanted: Duration, left: Option<Duration>) -> Duration {
    left.map_or(wanted, |left| wanted.min(left - (left / 10).min(ANSWER_GRACE)))
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_ends_before_its_turn_does() {
        let seconds = |wanted, left: Option<u64>| patience(Duration::from_secs(wanted), left.map(Duration::from_secs)).as_secs();
        assert_eq!([seconds(120, None), seconds(120, Some(120)), seconds(30, Some(120)), seconds(120, Some(20))], [120, 110, 30, 18]);
        assert_eq!(seconds(120, Some(0)), 0);
    }
}
