//! Which adapter says things on which channel and account, and within what limits. The adapters
//! write it, the pipeline and the outbox read it.

use crate::keeper::SpawnError;
use crate::ledger::nexus::Delivery;
use crate::live::Held;
use crate::supervisor::BoxFuture;
use nexus_core::chunk::chunk;
use nexus_core::config::{self, OnUncertain, Streaming};
use nexus_core::protocol::SendOutcome;
use nexus_core::request::DeliveryTarget;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The channel of `nexus send` and `nexus chat`: this daemon's own control socket.
pub const CLI_CHANNEL: &str = "cli";
/// The channel of the timer.
pub const TIMER_CHANNEL: &str = "timer";
/// The type of the timer's events that a schedule makes, as against heartbeats.
pub const CRON_TYPE: &str = "system/cron";
/// The part of their metadata that says where their answer goes.
pub const CRON_DELIVER: &str = "deliver";
/// The account of the control socket and of the timer.
pub const DEFAULT_ACCOUNT: &str = "default";

/// Says one delivery on its platform.
pub trait Sender: Send + Sync + 'static {
    fn send<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Result<SendOutcome, SpawnError>>;
}

/// Has processes that say answers on their platform while they are being made.
pub trait Streamer: Send + Sync + 'static {
    /// The line of the account's process, once one runs and no other answer has it.
    fn take<'a>(&'a self, account: &'a str) -> BoxFuture<'a, Held>;
}

/// Where something can be said.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    pub adapter: String,
    pub target: DeliveryTarget,
}

impl Place {
    /// Whether what is said in both waits for each other, as a delivery's lane tells.
    pub fn is_beside(&self, other: &DeliveryTarget) -> bool {
        let of = |target: &DeliveryTarget| [&target.channel, &target.account_id, &target.target].map(String::clone);
        of(&self.target) == of(other)
    }
}

/// How long the first questions after an adapter was added wait for its `info`.
const INFO_PATIENCE: Duration = Duration::from_secs(30);

/// How an adapter delivers.
#[derive(Clone)]
pub struct Route {
    /// `info` was answered: what is said here is so, and not a guess.
    pub known: bool,
    /// What it is to say is said once it is committed: nothing leaves the daemon (the control socket).
    pub here: bool,
    /// `None`: it can't say anything (a webhook).
    pub sender: Option<Arc<dyn Sender>>,
    /// Longest text of one message, in characters; 0 = no limit.
    pub text_limit: usize,
    pub capabilities: serde_json::Value,
    pub retries: u32,
    pub on_uncertain: OnUncertain,
    pub ttl_ms: u64,
    /// What is said in it is said in blocks while its agent speaks.
    pub blocks: bool,
    /// What is said in it is said live.
    pub streamer: Option<Arc<dyn Streamer>>,
    /// The channel that `info` named; `None` where there is no `info`, or no answer yet.
    pub channel: Option<String>,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Route")
            .field("known", &self.known)
            .field("can_send", &self.sender.is_some())
            .field("text_limit", &self.text_limit)
            .field("blocks", &self.blocks)
            .field("streams", &self.streamer.is_some())
            .finish_non_exhaustive()
    }
}

impl Route {
    /// The route of an adapter that wasn't asked yet.
    pub fn unknown(send: &config::Send, sender: Option<Arc<dyn Sender>>, streamer: Option<Arc<dyn Streamer>>) -> Self {
        Self {
            known: false,
            here: false,
            sender,
            text_limit: 0,
            capabilities: serde_json::Value::Null,
            retries: send.retries,
            on_uncertain: send.on_uncertain,
            ttl_ms: send.ttl_ms,
            blocks: send.stream == Streaming::Blocks,
            streamer: streamer.filter(|_| send.stream == Streaming::Auto),
            channel: None,
        }
    }

    /// A text as the messages that it takes to say it: long ones are split, never cut off; none for one of
    /// nothing but white space.
    pub fn pieces(&self, text: &str) -> Vec<String> {
        match NonZeroUsize::new(self.text_limit) {
            Some(limit) if text.chars().count() > limit.get() => chunk(text, limit),
            Some(_) | None if text.trim().is_empty() => Vec::new(),
            Some(_) | None => vec![text.to_owned()],
        }
    }
}

/// By adapter name. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Routes {
    by_adapter: Arc<watch::Sender<HashMap<String, (Route, Instant)>>>,
}

impl Default for Routes {
    fn default() -> Self {
        Self { by_adapter: Arc::new(watch::Sender::new(HashMap::new())) }
    }
}

impl Routes {
    /// Replaces the route of an adapter; whoever waits in [`Self::settled`] looks again.
    pub fn set(&self, adapter: &str, route: Route) {
        self.by_adapter.send_modify(|routes| drop(routes.insert(adapter.to_owned(), (route, Instant::now()))));
    }

    /// Nobody sends for this adapter any more.
    pub fn remove(&self, adapter: &str) {
        self.by_adapter.send_modify(|routes| drop(routes.remove(adapter)));
    }

    /// The route as it is now.
    pub fn get(&self, adapter: &str) -> Option<Route> {
        self.by_adapter.borrow().get(adapter).map(|(route, _)| route.clone())
    }

    /// The route once its adapter's `info` is known, or as it is half a minute after it was set. At
    /// a start answers may be ready before their adapter could be asked what it can take.
    pub async fn settled(&self, adapter: &str) -> Option<Route> {
        let since = self.by_adapter.borrow().get(adapter).map(|(_, since)| *since)?;
        let mut routes = self.by_adapter.subscribe();
        let known = routes.wait_for(|routes| routes.get(adapter).is_none_or(|(route, _)| route.known));
        // A time-out is an answer too: then what is there has to do.
        drop(tokio::time::timeout_at(since + INFO_PATIENCE, known).await);
        self.get(adapter)
    }
}
