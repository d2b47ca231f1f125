//! `send`: one process per delivery. Once it started, only its own word says that nothing was sent.

use super::account::context_name;
use super::program::{Command, no_answer};
use crate::error_text::describe;
use crate::keeper::{SpawnError, Stdin};
use crate::ledger::nexus::Delivery;
use crate::oneshot::{self, OneshotError};
use crate::routes::Sender;
use crate::supervisor::BoxFuture;
use nexus_core::config;
use nexus_core::ids::ChildId;
use nexus_core::protocol::{Capability, DeliveryResult, SendOutcome};
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug)]
pub(super) struct ProcessSender {
    command: Arc<Command>,
    limit: Duration,
}

impl ProcessSender {
    pub(super) fn new(command: Arc<Command>, send: &config::Send) -> Self {
        Self { command, limit: Duration::from_millis(send.timeout_ms) }
    }

    async fn run(&self, delivery: &Delivery) -> Result<SendOutcome, SpawnError> {
        let text_stdin = match self.command.info().await {
            Ok(info) if !info.can(Capability::Send) => {
                return Ok(SendOutcome::Failed { error: format!("adapter `{}` can't send", self.command.name) });
            }
            Ok(info) => info.text_stdin,
            Err(error) => return Ok(SendOutcome::Retry { error, after_ms: None }),
        };
        let words = words(delivery, text_stdin);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let child = ChildId::new(format!("send/{}/{}", self.command.name, delivery.delivery_id));
        let context = self.command.shared.run_dir.join(context_name(&delivery.adapter, &delivery.account_id));
        let spec = self.command.spec(child, &words, Some((&delivery.account_id, &context)), Stdin::Null);
        let input = text_stdin.then(|| delivery.content.clone().into_bytes());
        match oneshot::run(self.command.shared.keeper(), spec, input, self.limit).await {
            Ok(output) => Ok(judge(&output)),
            Err(OneshotError::Spawn(error @ SpawnError::KeeperGone { .. })) => Ok(SendOutcome::Uncertain { error: describe(&error) }),
            Err(OneshotError::Spawn(error)) => Err(error),
            Err(error @ (OneshotError::TimedOut { .. } | OneshotError::TooMuch { .. } | OneshotError::Read { .. })) => {
                Ok(SendOutcome::Uncertain { error: no_answer(&self.command.name, Some(&delivery.account_id), &words, &error) })
            }
        }
    }
}

impl Sender for ProcessSender {
    fn send<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Result<SendOutcome, SpawnError>> {
        Box::pin(self.run(delivery))
    }
}

fn words(delivery: &Delivery, text_stdin: bool) -> Vec<String> {
    let mut words: Vec<String> = ["send", "--account", &delivery.account_id, "--to", &delivery.target].map(str::to_owned).into();
    let text = if text_stdin { ["--text-file", "-"] } else { ["--text", &delivery.content] };
    words.extend(text.map(str::to_owned));
    for (flag, value) in [("--thread-id", &delivery.thread_id), ("--reply-to-id", &delivery.reply_to_id)] {
        if let Some(value) = value {
            words.extend([flag.to_owned(), value.clone()]);
        }
    }
    words.extend(["--idempotency-key".to_owned(), delivery.idempotency_key.clone()]);
    words
}

/// The adapter's answer, or what its absence means.
fn judge(output: &oneshot::Output) -> SendOutcome {
    match serde_json::from_slice::<DeliveryResult>(&output.stdout) {
        Ok(result) => SendOutcome::of(result),
        Err(error) => SendOutcome::Uncertain {
            error: format!("`send` ended with {} and no DeliveryResult ({error}): {}", output.status, output.stderr),
        },
    }
}
