//! What runs of the client, brought to what the configuration says: one task for what comes in, one for what goes
//! out, one per relay. A relay whose settings stay keeps its connection.

use super::keys;
use super::relay::{self, Parts, Wanted};
use super::status::View;
use super::subscriptions::Subscription;
use super::{ADAPTER, Inner, Link, Nostr, PUBLISH_TTL_MS, Plan, inbox, outbox, sender, subscriptions};
use crate::adapter::intake::Sinks;
use crate::error_text::describe;
use nexus_core::config;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Commands that wait for one relay's task.
const COMMANDS_MAX: usize = 64;

/// The tasks while the client runs.
#[derive(Debug)]
pub(super) struct Running {
    stop: CancellationToken,
    shared: Vec<JoinHandle<()>>,
    wanted: Arc<watch::Sender<Arc<Wanted>>>,
    relays: BTreeMap<String, OneRelay>,
}

#[derive(Debug)]
struct OneRelay {
    stop: CancellationToken,
    task: JoinHandle<()>,
    link: Link,
    /// What it was started with that can't be changed while it is connected.
    made_of: (bool, Option<String>),
}

impl Nostr {
    /// Brings what runs to what the configuration says.
    pub async fn apply(&self, config: &config::Nostr) {
        let mut running = self.inner.running.lock().await;
        let Some((sinks, routes)) = self.inner.begun.get() else { return };
        if self.inner.ground.stop.is_cancelled() {
            return;
        }
        let plan = Arc::new(Plan::of(config));
        self.inner.plan.store(plan.clone());
        self.inner.keys.configure(config.secret_key.clone()).await;
        if plan.relays.is_empty() {
            if let Some(running) = running.take() {
                self.end(running).await;
            }
            routes.remove(ADAPTER);
            self.inner.own.store(None);
            self.inner.problem.store(None);
            return;
        }
        self.know_own().await;
        let mut now = match running.take() {
            Some(now) => {
                self.inner.want(&now.wanted);
                now
            }
            None => match self.launch(sinks).await {
                Ok(now) => now,
                Err(error) => {
                    tracing::error!(error, "the Nostr client can't be started; a reload tries again");
                    self.inner.problem.store(Some(Arc::new(error)));
                    return;
                }
            },
        };
        self.set_relays(&mut now, &plan).await;
        *running = Some(now);
        routes.set(ADAPTER, sender::route(self, PUBLISH_TTL_MS));
    }

    /// Finds out by which key the daemon speaks. Without one it listens all the same.
    async fn know_own(&self) {
        match self.inner.keys.get(keys::DAEMON).await {
            Ok(keys) => {
                self.inner.own.store(Some(Arc::new(keys.public_key().to_hex())));
                self.inner.problem.store(None);
            }
            Err(error) => {
                tracing::error!(error = %describe(&error), "the daemon's key for Nostr can't be used: it listens, and publishes nothing");
                self.inner.own.store(None);
                self.inner.problem.store(Some(Arc::new(describe(&error))));
            }
        }
    }

    /// Starts what all relays share.
    async fn launch(&self, sinks: &Sinks) -> Result<Running, String> {
        inbox::begin(&self.inner, sinks).await?;
        let stop = self.inner.ground.stop.child_token();
        let watch_over = &self.inner.ground.watch_over;
        let (of_inbox, of_outbox, sinks) = (self.inner.clone(), self.inner.clone(), sinks.clone());
        let (until, until_too) = (stop.clone(), stop.clone());
        let wanted: Arc<watch::Sender<Arc<Wanted>>> = Arc::default();
        self.inner.want(&wanted);
        let (following, told, until_last) = (self.inner.clone(), wanted.clone(), stop.clone());
        let shared = vec![
            watch_over.keep("nostr inbox", &stop, move || inbox::run(of_inbox.clone(), sinks.clone(), until.clone())),
            watch_over.keep("nostr outbox", &stop, move || outbox::run(of_outbox.clone(), until_too.clone())),
            watch_over.keep("nostr known", &stop, move || follow_known(following.clone(), told.clone(), until_last.clone())),
        ];
        Ok(Running { stop, shared, wanted, relays: BTreeMap::new() })
    }

    /// Ends the relays that aren't wanted (in that way) any more, and starts the others.
    async fn set_relays(&self, running: &mut Running, plan: &Plan) {
        let made_of = |url: &str| (plan.consents(url), self.inner.own().filter(|_| plan.consents(url)));
        let before: BTreeSet<String> = running.relays.keys().cloned().collect();
        let is_kept = |url: &String, one: &OneRelay| plan.relays.contains(url) && one.made_of == made_of(url);
        let gone: Vec<String> = running.relays.iter().filter(|(url, one)| !is_kept(url, one)).map(|(url, _)| url.clone()).collect();
        let gone = gone.into_iter().filter_map(|url| running.relays.remove_entry(&url)).collect();
        self.end_relays(gone).await;
        for url in &plan.relays {
            if !running.relays.contains_key(url) {
                let one = self.start_relay(running, url, made_of(url));
                running.relays.insert(url.clone(), one);
            }
        }
        self.inner.links.store(Arc::new(running.relays.values().map(|one| one.link.clone()).collect()));
        let new: Vec<String> = plan.relays.iter().filter(|url| !before.contains(*url)).cloned().collect();
        if !new.is_empty() {
            outbox::spread(&self.inner, new).await;
        }
        self.inner.to_publish.notify_one();
    }

    fn start_relay(&self, running: &Running, url: &str, made_of: (bool, Option<String>)) -> OneRelay {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let shown = Arc::new(watch::Sender::new(View::default()));
        let link = Link { url: url.into(), commands, view: shown.subscribe(), shown: shown.clone() };
        let parts = Parts {
            url: link.url.clone(),
            consent: made_of.0,
            inner: self.inner.clone(),
            wanted: running.wanted.subscribe(),
            commands: Arc::new(Mutex::new(receiver)),
            told: self.inner.outbox.tell.clone(),
            view: shown,
        };
        let stop = running.stop.child_token();
        let until = stop.clone();
        let task = self.inner.ground.watch_over.keep(task_name(url), &stop, move || relay::run(parts.clone(), until.clone()));
        OneRelay { stop, task, link, made_of }
    }

    async fn end(&self, running: Running) {
        let Running { stop, shared, wanted: _, relays } = running;
        self.inner.links.store(Arc::default());
        self.end_relays(relays).await;
        stop.cancel();
        for task in shared {
            drop(task.await); // a panic was told when it happened
        }
    }

    /// All at once: each may take its time to say good-bye.
    async fn end_relays(&self, relays: BTreeMap<String, OneRelay>) {
        relays.values().for_each(|one| one.stop.cancel());
        for (url, one) in relays {
            drop(one.task.await); // a panic was told when it happened
            self.inner.ground.watch_over.forget(&task_name(&url));
        }
    }

    /// Ends all of it, at the daemon's stop.
    pub async fn shutdown(&self) {
        if let Some(running) = self.inner.running.lock().await.take() {
            self.end(running).await;
        }
    }
}

impl Inner {
    /// What every relay is asked for by now.
    pub(super) fn subscriptions(&self) -> Vec<Subscription> {
        let (plan, own) = (self.plan.load(), self.own());
        subscriptions::of(&plan.whitelist, &plan.project_kinds, &self.ground.roster.authors(), own.as_deref())
    }

    /// Tells the relays' tasks what they are to listen to by now, if that is something else.
    fn want(&self, wanted: &watch::Sender<Arc<Wanted>>) {
        wanted.send_if_modified(|known| {
            // Looked at here, so that of two who tell it the last one knows it best.
            let (plan, subscriptions) = (self.plan.load(), self.subscriptions());
            let is_other = known.subscriptions != subscriptions || known.frame_bytes_max != plan.frame_bytes_max;
            if is_other {
                *known = Arc::new(Wanted { subscriptions, frame_bytes_max: plan.frame_bytes_max });
            }
            is_other
        });
    }
}

/// Has what projects of others are known asked about, until `stop`.
async fn follow_known(inner: Arc<Inner>, wanted: Arc<watch::Sender<Arc<Wanted>>>, stop: CancellationToken) {
    let mut changes = inner.ground.roster.changes();
    loop {
        crate::torture::point("task.nostr known");
        changes.borrow_and_update();
        inner.want(&wanted);
        tokio::select! {
            () = stop.cancelled() => return,
            // An error can't be: the roster is there as long as the client.
            changed = changes.changed() => drop(changed),
        }
    }
}

fn task_name(url: &str) -> String {
    format!("nostr relay {url}")
}
