//! The Nostr client: one connection per relay, verified events into the ledgers, signed events out. It is a channel
//! like any other, named `nostr`; what an event is for, the pipeline decides. While `nostr.relays` is empty
//! nothing of it runs; with every relay down the daemon starts all the same, and what is to be published waits.
//!
//! Each relay is a task that drives a pure machine (`machine`); what passes its gate (`gate`) is taken in by one
//! task for all (`inbox`), and what goes out is in the ledger first (`outbox`). Secret keys stay in `keys`.

pub mod codec;
mod definitions;
mod fair;
mod fetch;
pub mod filter;
pub mod gate;
mod inbox;
pub mod keys;
mod machine;
mod outbox;
mod refused;
mod relay;
mod reply;
mod run;
mod sender;
mod sort;
mod status;
mod subscriptions;
mod template;

pub use ::nostr::event::{Event, EventId, Kind, Tag};
pub use ::nostr::key::{Keys, PublicKey};
pub use ::nostr::types::Timestamp;
pub use fetch::FetchError;
pub use keys::KeyError;
pub(crate) use reply::{Answered, reply};
pub(crate) use sender::route_to_be;
pub use status::{Deaf, NostrStatus, RelayStatus};
pub use template::{Template, TemplateError};

use crate::adapter::intake::Sinks;
use crate::bus::Bus;
use crate::clock;
use crate::error_text::describe;
use crate::keeper::Keeper;
use crate::ledger::nexus::{
    OutboxCounts, Publish, Published, PublishedStatus, outbox_counts, published_last, published_status, published_under,
};
use crate::ledger::writer::WriteError;
use crate::ledger::{Ledgers, ReadError};
use crate::metrics::Metrics;
use crate::project::activate::Roster;
use crate::project::coordinate::Coordinate;
use crate::routes::Routes;
use crate::watch::Watch;
use ::nostr::nips::nip19::ToBech32;
use arc_swap::{ArcSwap, ArcSwapOption};
use keys::Keyring;
use nexus_core::config;
use nexus_core::request::NexusRequest;
use relay::Command;
use run::Running;
use sha2::{Digest, Sha256};
use status::View;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Mutex, Notify, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// The channel, and the adapter, of everything that comes and goes over Nostr.
pub const ADAPTER: &str = "nostr";
/// How long an event is tried to be published, in ms.
pub(crate) const PUBLISH_TTL_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// Events that may wait to be published.
const WAITING_MAX: i64 = 10_000;
/// Longest key under which an event is made once, in bytes.
const ONCE_BYTES_MAX: usize = 512;
/// Events of one author that are processed at once, and per second after that. Those that come faster wait in the ledger.
pub(crate) const BURST_MAX: u32 = 100;
pub(crate) const PER_SECOND_MAX: u32 = 20;
/// Changed projects that who listens may be behind; then it reads the ledger.
const REDEFINED_MAX: usize = 256;

/// What the client needs of the daemon.
#[derive(Debug, Clone)]
pub struct Ground {
    pub ledgers: Ledgers,
    pub keeper: Keeper,
    /// `state/credentials`.
    pub credentials: PathBuf,
    pub bus: Bus,
    pub metrics: Metrics,
    pub watch_over: Watch,
    /// The projects that are known.
    pub roster: Roster,
    pub stop: CancellationToken,
}

/// What the configuration says, taken apart.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    relays: Vec<String>,
    /// Addresses of relays that may learn who we are, as they are compared.
    consent: BTreeSet<String>,
    whitelist: Arc<BTreeSet<String>>,
    frame_bytes_max: usize,
    publish_per_minute: u32,
    max_pending: u64,
    project_kinds: Vec<u16>,
}

impl Plan {
    fn of(config: &config::Nostr) -> Self {
        Self {
            relays: config.relays.clone(),
            consent: config.auth.iter().map(|url| config::canonical_relay(url)).collect(),
            whitelist: Arc::new(config.whitelist.iter().filter_map(|text| config::public_key_hex(text)).collect()),
            frame_bytes_max: usize::try_from(config.max_frame_bytes).unwrap_or(usize::MAX),
            publish_per_minute: config.publish_per_minute,
            max_pending: config.max_pending,
            project_kinds: config.project_kinds.clone(),
        }
    }

    fn consents(&self, url: &str) -> bool {
        self.consent.contains(&config::canonical_relay(url))
    }
}

/// A relay's task as others see it.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    url: Arc<str>,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<View>,
    shown: Arc<watch::Sender<View>>,
}

pub(crate) struct Inner {
    pub(crate) ground: Ground,
    pub(crate) keys: Keyring,
    pub(crate) plan: ArcSwap<Plan>,
    pub(crate) inbox: inbox::Inbox,
    pub(crate) outbox: outbox::Outbox,
    pub(crate) links: ArcSwap<Vec<Link>>,
    pub(crate) redefined: broadcast::Sender<Coordinate>,
    /// Rung when there is something new to be published.
    pub(crate) to_publish: Notify,
    /// Rung when a relay has said what it does with an event.
    pub(crate) settled: Notify,
    /// The daemon's own public key, once it is known; and why it isn't.
    own: ArcSwapOption<String>,
    problem: ArcSwapOption<String>,
    /// As last counted.
    counts: ArcSwap<OutboxCounts>,
    begun: OnceLock<(Sinks, Routes)>,
    running: Mutex<Option<Running>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Inner {
    /// The daemon's own public key, in hex.
    pub(crate) fn own(&self) -> Option<String> {
        self.own.load_full().map(|own| own.as_ref().clone())
    }
}

/// Why something can't be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("`nostr.relays` is empty: there is nowhere to publish")]
    NoRelays,
    #[error("{WAITING_MAX} events wait to be published; none more is taken until some are")]
    Full,
    #[error("the key under which an event is made once has 1 to {ONCE_BYTES_MAX} bytes")]
    Once,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Handle to the client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Nostr {
    pub(crate) inner: Arc<Inner>,
}

impl Nostr {
    /// A client that doesn't run yet.
    pub fn new(ground: Ground) -> Self {
        let keys = Keyring::new(ground.credentials.clone(), ground.keeper.clone());
        let inner = Inner {
            ground,
            keys,
            plan: ArcSwap::default(),
            inbox: inbox::Inbox::new(),
            outbox: outbox::Outbox::new(),
            links: ArcSwap::default(),
            redefined: broadcast::channel(REDEFINED_MAX).0,
            to_publish: Notify::new(),
            settled: Notify::new(),
            own: ArcSwapOption::empty(),
            problem: ArcSwapOption::empty(),
            counts: ArcSwap::default(),
            begun: OnceLock::new(),
            running: Mutex::new(None),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Gives it what accepted events go into, and answers come from. Called once, before [`Self::apply`].
    pub fn begin(&self, sinks: Sinks, routes: Routes) {
        self.inner.begun.set((sinks, routes)).ok(); // called once, by the start
    }

    /// The stored definition, and a look at the relays if there is none.
    ///
    /// # Errors
    /// [`FetchError`]; which relays answered, and which didn't.
    pub async fn definition(&self, of: &Coordinate) -> Result<Event, FetchError> {
        self.inner.definition(of).await
    }

    /// Events by id, stored ones first. Those that nobody has are left out.
    ///
    /// # Errors
    /// [`FetchError`] when nobody could be asked.
    pub async fn by_ids(&self, ids: &[String]) -> Result<Vec<Event>, FetchError> {
        self.inner.by_ids(ids).await
    }

    /// The newest profiles of these keys, in hex. Those that nobody has are left out.
    ///
    /// # Errors
    /// [`FetchError`] when nobody could be asked about one that isn't stored.
    pub async fn profiles(&self, pubkeys: &[String]) -> Result<Vec<Event>, FetchError> {
        self.inner.profiles(pubkeys).await
    }

    /// Whether a public key, in hex, is the daemon's own.
    pub fn is_own(&self, pubkey: &str) -> bool {
        self.inner.own.load().as_ref().is_some_and(|own| own.as_str() == pubkey)
    }

    /// Tells of each project whose definition changed, or was deleted. Who is too slow reads the ledger.
    pub fn redefined(&self) -> broadcast::Receiver<Coordinate> {
        self.inner.redefined.subscribe()
    }

    /// Signs as `key` (`daemon`, or `PROJECT/AGENT`, made on first use) and has it published, now or when a relay
    /// can be reached. The same `once` again is the first event. Its id.
    ///
    /// # Errors
    /// [`PublishError`]; nothing is published then.
    pub async fn publish(&self, key: &str, template: Template, once: &str) -> Result<String, PublishError> {
        if once.is_empty() || once.len() > ONCE_BYTES_MAX {
            return Err(PublishError::Once);
        }
        let under = once.to_owned();
        let nexus = &self.inner.ground.ledgers.nexus;
        if let Some(before) = nexus.readers.read(move |connection| published_under(connection, &under)).await? {
            return Ok(before);
        }
        let relays = self.inner.plan.load().relays.clone();
        if relays.is_empty() {
            return Err(PublishError::NoRelays);
        }
        let now = clock::wall_ms();
        let keys = self.inner.keys.get(key).await?;
        let event = template.sign(&keys, u64::try_from(now / 1000).unwrap_or(0))?;
        let event_id = event.id.to_hex();
        let command = Publish {
            once: once.to_owned(),
            event_id: event_id.clone(),
            kind: event.kind.as_u16(),
            event: event.as_json(),
            relays,
            at: now,
            expires_at: now.saturating_add(i64::try_from(PUBLISH_TTL_MS).unwrap_or(i64::MAX)),
            waiting_max: WAITING_MAX,
        };
        let published = nexus.writer.write_until_done(command).await?;
        self.inner.to_publish.notify_one();
        match published {
            Published::Now => Ok(event_id),
            Published::Before { event_id } => Ok(event_id),
            Published::Full => Err(PublishError::Full),
        }
    }

    /// Has what replaces its author's older one of the same kind say this from now on: nothing is published where the last one
    /// that was published by that name says it already. A `name` ends where no other one goes on.
    ///
    /// # Errors
    /// [`PublishError`]; nothing is published then.
    pub async fn replace(&self, key: &str, template: Template, name: &str) -> Result<(), PublishError> {
        let prefix = name.to_owned();
        let nexus = &self.inner.ground.ledgers.nexus;
        let last = nexus.readers.read(move |connection| published_last(connection, &prefix)).await?;
        let last = last.and_then(|(json, status)| Some((Event::from_json(json).ok()?, status)));
        let mut template = template;
        // Another key may have been brought along under that name.
        let author = self.inner.keys.get(key).await?.public_key();
        let says_it = |event: &Event| event.content == template.content && event.pubkey == author;
        let after = match last {
            Some((last, status)) if says_it(&last) && status != PublishedStatus::Expired => return Ok(()),
            Some((last, _)) => {
                // Of two of one second relays might keep the older one.
                let now_s = u64::try_from(clock::wall_ms() / 1000).unwrap_or(0);
                template.created_at = Some(now_s.max(last.created_at.as_secs().saturating_add(1)));
                last.id.to_hex()
            }
            None => String::new(),
        };
        // By what it says and what it comes after: said again later, it is another event.
        let says = hex::encode(&Sha256::digest(template.content.as_bytes())[..8]);
        self.publish(key, template, &format!("{name}{says}:{after}")).await.map(drop)
    }

    /// Waits until a relay has an event, or all refuse it, for `patience` at most: how it stands then, and what a
    /// relay last said against it; `None` for an event that isn't known.
    ///
    /// # Errors
    /// When the ledger can't be read.
    pub async fn accepted(&self, event_id: &str, patience: Duration) -> Result<Option<(PublishedStatus, Option<String>)>, ReadError> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let settled = self.inner.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable(); // before the look, so that nothing is missed between
            let id = event_id.to_owned();
            let nexus = &self.inner.ground.ledgers.nexus;
            let found = nexus.readers.read(move |connection| published_status(connection, &id)).await?;
            let is_open = found.as_ref().is_some_and(|(status, _)| *status == PublishedStatus::Waiting);
            if !is_open || tokio::time::timeout_at(deadline, settled).await.is_err() {
                return Ok(found);
            }
        }
    }

    /// Signs and sends what isn't kept: statuses, pieces of an answer. Nobody knows whether it arrives.
    pub fn announce(&self, key: &str, template: Template) {
        if self.inner.links.load().is_empty() {
            return;
        }
        // When too many wait, the newest is left out: the next one says more.
        self.inner.outbox.announce.try_send((key.to_owned(), template)).ok();
    }

    /// The public key of a name, in hex; the key is made if there is none.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn pubkey(&self, key: &str) -> Result<String, KeyError> {
        Ok(self.inner.keys.get(key).await?.public_key().to_hex())
    }

    /// Takes a secret key in under a name; the same one again changes nothing. Its public key, in hex.
    ///
    /// # Errors
    /// [`KeyError`]; also when there is another one of that name.
    pub async fn import_key(&self, key: &str, nsec: &str) -> Result<String, KeyError> {
        self.inner.keys.import(key, nsec).await
    }

    /// Whether a public key, in hex, is heeded.
    pub fn whitelisted(&self, pubkey: &str) -> bool {
        self.inner.plan.load().whitelist.contains(pubkey)
    }

    /// Counts what waits to be published, for [`Self::status`].
    pub async fn look(&self) {
        if self.inner.links.load().is_empty() {
            return; // nothing of it runs
        }
        match self.inner.ground.ledgers.nexus.readers.read(outbox_counts).await {
            Ok(counts) => self.inner.counts.store(Arc::new(counts)),
            Err(error) => tracing::warn!(error = %describe(&error), "what waits to be published could not be counted"),
        }
    }

    /// How it is.
    pub fn status(&self) -> NostrStatus {
        let (links, counts, plan) = (self.inner.links.load(), self.inner.counts.load(), self.inner.plan.load());
        let own = self.inner.own();
        let npub = own.as_deref().and_then(|own| PublicKey::from_hex(own).ok()).and_then(|own| own.to_bech32().ok());
        NostrStatus {
            running: !links.is_empty(),
            pubkey: own,
            npub,
            whitelist: plan.whitelist.len(),
            accepted: self.inner.inbox.taken(),
            relays: links.iter().map(|link| RelayStatus::of(&link.url, &link.view.borrow(), &counts)).collect(),
            outbox: OutboxCounts::clone(&counts),
            problem: self.inner.problem.load_full().map(|problem| problem.as_ref().clone()),
        }
    }
}

/// Whether a request may still be carried out: an event that says until when it holds is over after that (NIP-40).
///
/// # Errors
/// Why not.
pub fn holds(request: &NexusRequest) -> Result<(), String> {
    let event = request.event.metadata.get(ADAPTER).filter(|_| request.adapter == ADAPTER);
    let tags = event.and_then(|event| event["tags"].as_array());
    let expiration = tags.and_then(|tags| tags.iter().find(|tag| tag[0] == "expiration")).and_then(|tag| tag[1].as_str());
    let now_s = u64::try_from(clock::wall_ms() / 1000).unwrap_or(0);
    if sort::is_past(expiration, now_s) { Err("its `expiration` has passed (NIP-40)".to_owned()) } else { Ok(()) }
}

/// Author and id of the event of Nostr that a request came as.
pub(crate) fn origin(request: &NexusRequest) -> Option<(String, String)> {
    let event = request.event.metadata.get(ADAPTER).filter(|_| request.adapter == ADAPTER)?;
    Some((event["pubkey"].as_str()?.to_owned(), event["id"].as_str()?.to_owned()))
}
