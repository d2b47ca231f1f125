//! The `monitor` child of an account: what is started, and who reads it.

use super::account::Account;
use super::catch_up;
use super::intake::Kind;
use crate::keeper::{Process, SpawnSpec, Stdin};
use crate::stderr::log_errors;
use crate::supervisor::{BoxFuture, NotReady, Program};
use nexus_core::ids::ChildId;
use nexus_core::protocol::Capability;
use serde_json::json;
use std::sync::{Arc, Weak};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub(super) struct Monitor {
    /// Weak: the account owns the child that owns this.
    account: Weak<Account>,
}

impl Monitor {
    pub(super) fn new(account: &Arc<Account>) -> Self {
        Self { account: Arc::downgrade(account) }
    }

    async fn spec(&self) -> Result<SpawnSpec, NotReady> {
        let account = self.account.upgrade().ok_or_else(|| "the account was removed".to_owned())?;
        let (info, context) = account.ready().await?;
        if !info.can(Capability::Monitor) {
            return Err(format!("adapter `{}` doesn't support `monitor`; set `monitor: false`", account.key.adapter).into());
        }
        // Before the first live line: requests of this account wait until the gap is closed.
        catch_up::begin(&account).await?;
        let words = ["monitor", "--account", account.key.account.as_str(), "--format", "jsonl"];
        let child = ChildId::new(format!("adapter/{}", account.key));
        let stdin = if info.can(Capability::Ack) { Stdin::Piped } else { Stdin::Null };
        Ok(account.command.spec(child, &words, Some((&account.key.account, &context)), stdin))
    }
}

impl Program for Monitor {
    fn prepare(&self) -> BoxFuture<'_, Result<SpawnSpec, NotReady>> {
        Box::pin(self.spec())
    }

    fn attach(&self, process: &mut Process, exited: CancellationToken) -> JoinHandle<()> {
        let (stdin, stdout, errors) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let account = self.account.upgrade();
        crate::watch::helper("adapter.reader", async move {
            let (Some(account), Some(stdout), Some(errors)) = (account, stdout, errors) else { return };
            let Some(info) = account.channel.borrow().clone() else { return };
            let (sender, newest) = watch::channel(None);
            let sender = stdin.is_some().then_some(sender);
            // In this task: were it to break alone, nobody would acknowledge anything any more.
            let acking = async {
                if let Some(stdin) = stdin {
                    write_acks(stdin, newest).await;
                }
                std::future::pending::<()>().await;
            };
            let child = ChildId::new(format!("adapter/{}", account.key));
            let intake = account.intake(&info.channel, Kind::Live, sender, None, exited.clone());
            tokio::select! {
                _ = async { tokio::join!(intake.run(stdout), log_errors(child, errors, exited)) } => {}
                () = acking => {} // never
            }
        })
    }
}

/// Writes the newest acknowledgement whenever the child takes one. It covers all earlier ones, so
/// a child that doesn't read holds up nothing.
async fn write_acks(mut stdin: pipe::Sender, mut newest: watch::Receiver<Option<String>>) {
    while newest.changed().await.is_ok() {
        crate::torture::point("task.acks");
        let Some(id) = newest.borrow_and_update().clone() else { continue };
        let line = format!("{}\n", json!({ "ack": id }));
        if stdin.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
}
