//! `llm`: one turn of a configured model, without a session, without a history and without tools. It counts
//! against no agent's runs; what it uses is for its [`Account`], and what its budgets leave ends its answer.

use super::account::Account;
use super::params::{Params, shown, wrong};
use super::shapes::{LlmAnswer, LlmAsk};
use super::{CallError, Caller, Calls};
use crate::agent::llm::{SYSTEM_PROMPT_BYTES_MAX, Wishes};
use crate::agent::{AgentError, Finished, Runner, Sender, Turn};
use crate::pipeline::Settings;
use serde_json::{Value, json};
use tokio::sync::mpsc;

const PROMPT_BYTES_MAX: usize = 256 * 1024;
const NAME_BYTES_MAX: usize = 64;
const TOKENS_MAX: u32 = 1_000_000;
/// Pieces of an answer that may wait until they are counted; a full channel holds the model.
const OUTPUT_MAX: usize = 256;

/// Answers `{agent, prompt, system?, max_tokens?}` with `{text, usage, model, stop_reason}`.
pub(super) async fn call(calls: &Calls, settings: &Settings, caller: &Caller, params: Value) -> Result<Value, CallError> {
    let mut params = Params::of::<LlmAsk>(params)?;
    let name = params.text("agent", NAME_BYTES_MAX)?;
    let prompt = params.text("prompt", PROMPT_BYTES_MAX)?;
    let mut wishes = Wishes {
        system: params.optional_text("system", usize::try_from(SYSTEM_PROMPT_BYTES_MAX).unwrap_or(usize::MAX))?,
        max_tokens: params.whole("max_tokens", 1..=TOKENS_MAX)?,
        allowances: Vec::new(),
    };
    let agent = settings.agents.get(&name).ok_or_else(|| wrong("agent", format!("`{}` is not configured", shown(&name))))?;
    let Runner::Llm(runner) = &agent.runner else {
        return Err(wrong("agent", format!("`{}` is no model; name an agent with `runner: llm`", shown(&name))));
    };
    let turn = turn(name, prompt, &caller.who());
    let (mut account, allowances) = Account::open(calls, settings, caller, agent, &turn.run_id).await?;
    wishes.allowances = allowances;
    // Nobody is told what it says while it speaks: the whole is returned.
    let (sink, mut output) = mpsc::channel(OUTPUT_MAX);
    let ended = {
        let answering = tokio::time::timeout(agent.timeout, runner.run_with(&turn, &wishes, &sink));
        tokio::pin!(answering);
        loop {
            tokio::select! {
                // What was said before the end belongs to it.
                biased;
                Some(piece) = output.recv() => account.hear(piece),
                ended = &mut answering => break ended,
            }
        }
    };
    while let Ok(piece) = output.try_recv() {
        account.hear(piece);
    }
    if matches!(&ended, Ok(Err(error)) if error.is_unworked()) {
        account.refused();
    }
    account.close().await;
    let late = |_| CallError::Limit(format!("the model took longer than its agent's {} ms", agent.timeout.as_millis()));
    let finished = ended.map_err(late)?;
    let finished = finished.map_err(failed)?;
    let Finished { content: text, usage, stop_reason, model, provider: _ } = finished;
    Ok(json!(LlmAnswer { text, usage, model, stop_reason }))
}

/// That a budget is used up is told as it is where that is known before the model is asked.
fn failed(error: AgentError) -> CallError {
    match error {
        AgentError::Exhausted { problem, .. } => CallError::Limit(problem),
        error @ (AgentError::Config { .. }
        | AgentError::File { .. }
        | AgentError::Spawn { .. }
        | AgentError::Io { .. }
        | AgentError::Exit { .. }
        | AgentError::Reported { .. }
        | AgentError::TooLarge { .. }
        | AgentError::Endpoint { .. }
        | AgentError::Stalled { .. }
        | AgentError::Unfinished { .. }
        | AgentError::Unavailable { .. }
        | AgentError::Died { .. }
        | AgentError::Project { .. }) => CallError::failed("ask the model", error),
    }
}

fn turn(agent: String, content: String, plugin: &str) -> Turn {
    let sender = Sender { id: format!("plugin:{plugin}"), name: None, principal: "system".to_owned() };
    Turn::of_message(format!("call_{}", ulid::Ulid::generate()), agent, content, sender)
}

#[cfg(test)]
#[path = "llm_tests.rs"]
mod tests;
