//! `llm`: one turn of a configured model, without a session, without a history and without tools. It counts
//! against no agent's runs nor budget; the plugin's own calls bound it.

use super::CallError;
use super::params::{Params, shown, wrong};
use crate::agent::llm::{SYSTEM_PROMPT_BYTES_MAX, Wishes};
use crate::agent::{Runner, Sender, Turn};
use crate::pipeline::Settings;
use serde_json::{Value, json};
use tokio::sync::mpsc;

const PROMPT_BYTES_MAX: usize = 256 * 1024;
const NAME_BYTES_MAX: usize = 64;
const TOKENS_MAX: u32 = 1_000_000;

/// Answers `{agent, prompt, system?, max_tokens?}` with `{text, usage, model, stop_reason}`.
pub(super) async fn call(settings: &Settings, plugin: &str, params: Value) -> Result<Value, CallError> {
    let mut params = Params::new(params)?;
    let name = params.text("agent", NAME_BYTES_MAX)?;
    let prompt = params.text("prompt", PROMPT_BYTES_MAX)?;
    let wishes = Wishes {
        system: params.optional_text("system", usize::try_from(SYSTEM_PROMPT_BYTES_MAX).unwrap_or(usize::MAX))?,
        max_tokens: params.whole("max_tokens", 1..=TOKENS_MAX)?,
    };
    let agent = settings.agents.get(&name).ok_or_else(|| wrong("agent", format!("`{}` is not configured", shown(&name))))?;
    let Runner::Llm(runner) = &agent.runner else {
        return Err(wrong("agent", format!("`{}` is no model; name an agent with `runner: llm`", shown(&name))));
    };
    // Nobody listens while it speaks: the whole is returned.
    let (sink, output) = mpsc::channel(1);
    drop(output);
    let turn = turn(name, prompt, plugin);
    let late = |_| CallError::Limit(format!("the model took longer than its agent's {} ms", agent.timeout.as_millis()));
    let finished = tokio::time::timeout(agent.timeout, runner.run_with(&turn, &wishes, &sink)).await.map_err(late)?;
    let finished = finished.map_err(|error| CallError::failed("ask the model", error))?;
    Ok(json!({
        "text": finished.content, "usage": finished.usage, "model": finished.model, "stop_reason": finished.stop_reason,
    }))
}

fn turn(agent: String, content: String, plugin: &str) -> Turn {
    let sender = Sender { id: format!("plugin:{plugin}"), name: None, principal: "system".to_owned() };
    Turn::of_message(format!("call_{}", ulid::Ulid::generate()), agent, content, sender)
}

#[cfg(test)]
#[path = "llm_tests.rs"]
mod tests;
