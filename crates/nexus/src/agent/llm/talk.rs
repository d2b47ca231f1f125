//! One turn's conversation with an endpoint: ask, count, call the tools it asks for, take in what was said meanwhile, ask
//! again; no further than the budgets of the turn let it. Owns the order of these and the bound of their number; never decides
//! whether the whole turn is tried again.

use std::time::Duration;

use futures_util::StreamExt;
use genai::chat::{ChatMessage, ChatRequest, ContentPart, MessageContent, StreamEnd, ToolResponse};
use nexus_core::spend::{Allowance, estimated_tokens};
use secrecy::SecretString;
use serde_json::{Map, Value};
use tokio::time::Instant;
use tracing::instrument::WithSubscriber;

use super::LlmRunner;
use super::answer::{Answer, CALLS_PER_ROUND_MAX, Call, stop_reason, too_many};
use super::fault::{Explainer, Fault, no_way};
use super::provider::{self, CallStyle};
use super::relay::Relay;
use super::tools::Toolbox;
use crate::agent::{Input, Output, Sink, StopReason, TRIES_MAX, Usage, emit, pause_after, plain, plausible, taken};

/// The most that one turn may send at once, in bytes of text: history, results of tools, and what was said meanwhile.
pub const TALK_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How long a turn that has called tools waits for an endpoint that asks to be left alone.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What a budget leaves is asked for as the longest answer only below this, in tokens, unless the agent has a `max_tokens` that
/// is longer: every model takes so small a number, but some refuse one that is above their own limit.
const REST_TOKENS_MAX: u64 = 4_096;

#[derive(Debug)]
pub(super) struct Talk<'a> {
    runner: &'a LlmRunner,
    key: Option<SecretString>,
    request: ChatRequest,
    /// The longest answer to one question, where the agent or who asks says so.
    max_tokens: Option<u32>,
    /// Tokens that budgets left for the present answer, if it was asked for no more than these.
    rest: Option<u64>,
    /// Bytes of text in the request.
    bytes: usize,
    toolbox: Toolbox,
    /// All of them hold.
    allowances: Vec<Allowance>,
    /// When the turn is ended.
    pub(super) deadline: Option<Instant>,
    /// A tool was called: trying the whole turn again is nobody's choice any more.
    has_called: bool,
    /// Where messages come from that it may still take in.
    meanwhile: Option<Input>,
    /// Under which ids calls were told: some servers begin anew in each round.
    told: Vec<String>,
    pub(super) answer: Answer,
    pub(super) usage: Usage,
}

impl<'a> Talk<'a> {
    pub(super) fn new(
        runner: &'a LlmRunner,
        key: Option<SecretString>,
        mut request: ChatRequest,
        max_tokens: Option<u32>,
        toolbox: Toolbox,
        allowances: Vec<Allowance>,
    ) -> Self {
        request.tools = toolbox.definitions();
        let tools = request.tools.iter().flatten().map(genai::chat::Tool::size).sum::<usize>();
        let texts = request.messages.iter().map(ChatMessage::size).sum::<usize>();
        let bytes = request.system.as_ref().map_or(0, String::len) + texts + tools;
        Self {
            runner,
            key,
            request,
            max_tokens,
            rest: None,
            bytes,
            toolbox,
            allowances,
            deadline: None,
            has_called: false,
            meanwhile: None,
            told: Vec::new(),
            answer: Answer::default(),
            usage: Usage::default(),
        }
    }

    /// Takes in what comes by `input`. Without tools there is one question, and none behind it that could have more.
    pub(super) fn listen(&mut self, input: Option<Input>) {
        self.meanwhile = input.filter(|_| self.request.tools.is_some());
    }

    /// Asks until the model has answered.
    pub(super) async fn rounds(&mut self, out: &Sink) -> Result<StopReason, Fault> {
        if self.meanwhile.is_some() {
            emit(out, Output::Steering).await;
        }
        let rounds_max = self.runner.endpoint.tool_rounds_max;
        for round in 0..=rounds_max {
            for allowance in &self.allowances {
                allowance.check().map_err(|problem| Fault::Exhausted { problem })?;
            }
            let end = self.round(out).await?;
            let stop = stop_reason(end.captured_stop_reason.as_ref());
            // It ended where the budget does, and not the answer.
            let rest = self.rest.filter(|_| stop == StopReason::MaxTokens);
            let left = rest.map_or(Ok(()), |rest| self.allowed(rest.saturating_add(1)));
            let used = self.count(&end);
            emit(out, Output::Used(used)).await;
            // It must be charged before the next round is allowed.
            taken(out).await;
            left?;
            let (said, calls) = self.calls(end)?;
            // A call that was cut off is not to be made.
            if calls.is_empty() || stop != StopReason::EndTurn {
                return Ok(stop);
            }
            if round < rounds_max {
                self.answer_calls(said, &calls, out).await?;
            }
        }
        Err(Fault::endpoint(format!("it asked for tools more than {rounds_max} times in one turn (`tool_rounds_max`)"), false))
    }

    /// One question. Once tools were called, one that failed is asked again here: what they did must not be
    /// done twice.
    async fn round(&mut self, out: &Sink) -> Result<StreamEnd, Fault> {
        let mut attempt = 1;
        loop {
            // Before it has called a tool the whole turn may be tried again, or by another agent, which would not have them.
            if self.has_called {
                self.take_in(out).await;
            }
            self.answer.begin_round();
            let fault = match self.ask(out).await {
                Ok(end) => return Ok(end),
                Err(fault) => fault,
            };
            let may_repeat = self.has_called && self.answer.round_bytes == 0 && attempt < TRIES_MAX;
            let Some(asked) = fault.passing().filter(|_| may_repeat) else { return Err(fault) };
            let (agent, pause) = (&self.runner.agent, pause_after(attempt, asked));
            let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if pause > PAUSE_MAX || left.is_some_and(|left| pause >= left) {
                return Err(fault);
            }
            tracing::warn!(target: "nexus::agent", agent, attempt, ?fault, "the model failed after a tool call; asking again");
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    /// Puts what was said meanwhile behind the results of the tools: each message once it is on disk that its request shares
    /// this run, so that no crash has the model told of it in two. From one on for which there is no room, or which did
    /// not join, all have a turn of their own.
    async fn take_in(&mut self, out: &Sink) {
        while let Some(input) = &mut self.meanwhile {
            let Ok(steer) = input.try_recv() else { return };
            let text = plain::with_attached(&steer.text, &steer.attachments);
            if self.bytes + text.len() > TALK_BYTES_MAX {
                break;
            }
            emit(out, Output::Steered { message_id: steer.message_id }).await;
            if !steer.joined.await.unwrap_or(false) {
                break;
            }
            self.bytes += text.len();
            self.request.messages.push(ChatMessage::user(text));
        }
        self.meanwhile = None;
    }

    /// One question, by a way of its own: that another one didn't reach the endpoint says nothing of this.
    async fn ask(&mut self, out: &Sink) -> Result<StreamEnd, Fault> {
        let (relay, client) = self.runner.way()?;
        tokio::select! {
            // First: the question needs it.
            biased;
            error = relay.serve() => Err(no_way(&error)),
            ended = self.ask_by(&relay, &client, out) => ended,
        }
    }

    async fn ask_by(&mut self, relay: &Relay, client: &genai::Client, out: &Sink) -> Result<StreamEnd, Fault> {
        let (runner, max_tokens) = (self.runner, self.longest()?);
        let explainer = Explainer { key: self.key.as_ref(), relay };
        let endpoint = &runner.endpoint;
        let style = provider::call_style(endpoint.provider);
        let options = provider::options(endpoint.provider, &endpoint.model, max_tokens, endpoint.stream_idle);
        let target = runner.target(self.key.as_ref());
        emit(out, Output::Asked { bytes: self.bytes }).await;
        let response = client.exec_chat_stream(target, self.request.clone(), Some(&options)).await;
        let mut stream = response.map_err(|error| explainer.explain(error))?.stream;
        loop {
            // genai logs a warning for each empty chunk and whole error bodies, which may quote
            // the conversation; what matters of them is in the error we make.
            let event = stream.next().with_subscriber(tracing::Dispatch::none()).await;
            let event = match event {
                Some(Ok(event)) => event,
                Some(Err(error)) => return Err(explainer.explain(error)),
                None => return Err(broken_off(&self.answer)),
            };
            if let Some(end) = self.answer.take(event, style, out).await? {
                let is_real = end.captured_stop_reason.is_some() || !provider::end_needs_reason(endpoint.provider);
                return if is_real { Ok(end) } else { Err(broken_off(&self.answer)) };
            }
            if let Err(fault) = self.allowed(self.said_tokens()) {
                drop(stream); // the endpoint has no reason to go on
                let used = self.use_up(None, None);
                emit(out, Output::Used(used)).await;
                return Err(fault);
            }
        }
    }

    /// The longest answer to ask for now: as it is set, or what budgets leave, if that is less.
    fn longest(&mut self) -> Result<Option<u32>, Fault> {
        let (question, mut rest) = (estimated_tokens(self.bytes), None);
        for allowance in &self.allowances {
            let room = allowance.room(question).map_err(|problem| Fault::Exhausted { problem })?;
            rest = [rest, room].into_iter().flatten().min();
        }
        let most = self.max_tokens.map_or(REST_TOKENS_MAX, u64::from);
        self.rest = rest.filter(|rest| *rest < most);
        Ok(self.rest.and_then(|rest| u32::try_from(rest).ok()).or(self.max_tokens))
    }

    /// Whether budgets let the present answer have so many tokens.
    fn allowed(&self, answer: u64) -> Result<(), Fault> {
        let question = estimated_tokens(self.bytes);
        let mut allowances = self.allowances.iter();
        allowances.try_for_each(|allowance| allowance.allows(question, answer)).map_err(|problem| Fault::Exhausted { problem })
    }

    /// Tokens of what came in this round, by its length.
    fn said_tokens(&self) -> u64 {
        estimated_tokens(self.answer.round_bytes + self.answer.calls.bytes())
    }

    /// What this round used, as the provider tells it.
    fn count(&mut self, end: &StreamEnd) -> Usage {
        let number = |tokens: Option<i32>| tokens.and_then(|tokens| u64::try_from(tokens).ok()).and_then(plausible);
        let told = end.captured_usage.as_ref();
        let input = told.and_then(|usage| number(usage.prompt_tokens));
        let output = told.and_then(|usage| number(usage.completion_tokens));
        self.use_up(input, output)
    }

    /// Counts what this round used; by the length of the texts where nobody says.
    fn use_up(&mut self, input: Option<u64>, output: Option<u64>) -> Usage {
        let input_tokens = input.unwrap_or_else(|| estimated_tokens(self.bytes));
        let output_tokens = output.unwrap_or_else(|| self.said_tokens());
        for allowance in &mut self.allowances {
            allowance.add(input_tokens, output_tokens);
        }
        let estimated = input.is_none() || output.is_none();
        let used = Usage { input_tokens: Some(input_tokens), output_tokens: Some(output_tokens), estimated };
        self.usage = self.usage.plus(used);
        used
    }

    /// The calls of this round, and the message that asked for them as it goes back to the model.
    fn calls(&mut self, end: StreamEnd) -> Result<(ChatMessage, Vec<Call>), Fault> {
        let StreamEnd { captured_content, captured_reasoning_content, .. } = end;
        let mut parts = captured_content.map(MessageContent::into_parts).unwrap_or_default();
        let calls = match provider::call_style(self.runner.endpoint.provider) {
            CallStyle::Fragments => {
                let calls = std::mem::take(&mut self.answer.calls).finish();
                parts.extend(calls.iter().map(|call| ContentPart::ToolCall(call.to_whole())));
                calls
            }
            CallStyle::Whole => parts.iter_mut().filter_map(whole).collect(),
        };
        if calls.len() > CALLS_PER_ROUND_MAX {
            return Err(too_many());
        }
        let has_reasoning = parts.iter().any(|part| matches!(part, ContentPart::ReasoningContent(_)));
        let message = ChatMessage::assistant(MessageContent::from_parts(parts));
        let message = if has_reasoning { message } else { message.with_reasoning_content(captured_reasoning_content) };
        Ok((message, calls))
    }

    async fn answer_calls(&mut self, said: ChatMessage, calls: &[Call], out: &Sink) -> Result<(), Fault> {
        self.has_called = true;
        self.bytes += said.size();
        self.request.messages.push(said);
        let mut results = Vec::with_capacity(calls.len());
        for call in calls {
            let told_as = self.tell_as(&call.id);
            let result = self.toolbox.call(call, told_as, out).await;
            self.bytes += result.len();
            if self.bytes > TALK_BYTES_MAX {
                return Err(Fault::TooLarge { what: "results of tools", limit_bytes: TALK_BYTES_MAX });
            }
            results.push(ToolResponse::from_tool_call(&call.to_whole(), result));
        }
        if provider::groups_results(self.runner.endpoint.provider) {
            self.request.messages.push(ChatMessage::from(results));
        } else {
            self.request.messages.extend(results.into_iter().map(ChatMessage::from));
        }
        Ok(())
    }
}

impl Talk<'_> {
    /// An id for a call that no other one of this turn has.
    fn tell_as(&mut self, id: &str) -> String {
        let is_known = self.told.iter().any(|told| told == id);
        let told = if is_known { format!("{id}#{}", self.told.len()) } else { id.to_owned() };
        self.told.push(told.clone());
        told
    }
}

/// A call among the parts of a message. Arguments that are no object would not be taken back.
fn whole(part: &mut ContentPart) -> Option<Call> {
    let ContentPart::ToolCall(call) = part else { return None };
    let read = Call::from_whole(call);
    if !call.fn_arguments.is_object() {
        call.fn_arguments = Value::Object(read.arguments.as_ref().cloned().unwrap_or_else(|_| Map::new()));
    }
    Some(read)
}

fn broken_off(answer: &Answer) -> Fault {
    let problem = if answer.is_empty() {
        "no event stream came: check that `url` is the API base of a server that speaks as `provider` says"
    } else {
        "the stream ended before its end mark"
    };
    Fault::Unfinished { problem: problem.to_owned() }
}
