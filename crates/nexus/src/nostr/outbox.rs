//! Signed events on their way to each relay. What is to be published is in the ledger; here is only what is under
//! way. An event is sent again until the relay has said what it does with it: it knows it by its id. Rates are
//! per relay and kind.

use super::codec;
use super::relay::{Command, Told};
use super::template::Template;
use super::{Inner, Link};
use crate::clock;
use crate::error_text::describe;
use crate::ledger::nexus::{
    Answered, DuePublication, PUT_OFF_MS_MAX, PrunePublished, SettlePublished, SpreadPublished, due_publications, next_publication,
};
use crate::ledger::writer::WriteError;
use crate::project::coordinate::Coordinate;
use ::nostr::event::Event;
use nexus_core::notice::NoticeType;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Events under way to one relay.
const UNDER_WAY_MAX: usize = 16;
/// After which one whose relay's task never told its end is sent again: longer than a relay may take.
const UNDER_WAY: Duration = Duration::from_secs(60);
/// First pause before an event is sent to a relay again, and the longest; each is a random part of its upper half.
const AGAIN_BASE_MS: i64 = 5_000;
const AGAIN_MAX_MS: i64 = PUT_OFF_MS_MAX;
/// Attempts after which a relay that only says no, without a reason, is believed.
const ATTEMPTS_MAX: u32 = 12;
/// How long a proof who we are may take, and how often an event waits for one, in ms.
const PROOF_MS: i64 = 500;
const PROOFS_MAX: u32 = 5;
/// Answers and announcements that wait.
pub(crate) const TOLD_MAX: usize = 256;
pub(crate) const ANNOUNCED_MAX: usize = 256;
/// How often old rows are looked for, and how many at a time.
const PRUNE_EVERY: Duration = Duration::from_secs(600);
const PRUNE_ROWS_MAX: u32 = 1_000;
/// Rounds of that in a row while there is more.
const PRUNE_ROUNDS_MAX: u32 = 100;
/// Published events that are remembered, with the key under which each was made.
const PUBLISHED_KEPT: i64 = 1_000_000;
/// Longest sleep without a reason to wake.
const NAP: Duration = Duration::from_secs(30);

/// What survives a failure of the task.
#[derive(Debug)]
pub(crate) struct Outbox {
    told: Mutex<mpsc::Receiver<Told>>,
    announced: Mutex<mpsc::Receiver<(String, Template)>>,
    /// Given to each relay.
    pub(crate) tell: mpsc::Sender<Told>,
    pub(crate) announce: mpsc::Sender<(String, Template)>,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        let (tell, told) = mpsc::channel(TOLD_MAX);
        let (announce, announced) = mpsc::channel(ANNOUNCED_MAX);
        Self { told: Mutex::new(told), announced: Mutex::new(announced), tell, announce }
    }
}

/// A token bucket for each relay and kind.
#[derive(Debug, Default)]
struct Rates {
    left: HashMap<(Arc<str>, u16), (f64, Instant)>,
}

impl Rates {
    /// Takes a token if there is one; else how long until there is.
    fn take(&mut self, relay: &Arc<str>, kind: u16, per_minute: u32, now: Instant) -> Result<(), Duration> {
        let full = f64::from(per_minute);
        let (left, since) = self.left.entry((relay.clone(), kind)).or_insert((full, now));
        let gained = now.duration_since(*since).as_secs_f64() * full / 60.0;
        *left = (*left + gained).min(full);
        *since = now;
        if *left >= 1.0 {
            *left -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - *left) * 60.0 / full))
    }

    /// A full bucket is as none.
    fn forget_full(&mut self, per_minute: u32, now: Instant) {
        let full = f64::from(per_minute);
        self.left.retain(|_, (left, since)| *left + now.duration_since(*since).as_secs_f64() * full / 60.0 < full);
    }
}

struct Sending {
    inner: Arc<Inner>,
    rates: Rates,
    under_way: HashMap<(Arc<str>, String), Instant>,
}

/// Publishes until `stop`.
pub(crate) async fn run(inner: Arc<Inner>, stop: CancellationToken) {
    let mut told = inner.outbox.told.lock().await;
    let mut announced = inner.outbox.announced.lock().await;
    let mut sending = Sending { inner: inner.clone(), rates: Rates::default(), under_way: HashMap::new() };
    let mut prune = tokio::time::interval(PRUNE_EVERY);
    loop {
        crate::torture::point("task.nostr outbox");
        let nap = sending.send_due().await;
        tokio::select! {
            () = stop.cancelled() => return,
            Some(told) = told.recv() => sending.settle(told).await,
            Some((key, template)) = announced.recv() => sending.announce(&key, template).await,
            () = inner.to_publish.notified() => {}
            _ = prune.tick() => sending.prune().await,
            () = tokio::time::sleep(nap) => {}
        }
    }
}

impl Sending {
    /// Sends what is due wherever there is room; how long there is nothing to do after that.
    async fn send_due(&mut self) -> Duration {
        let now = Instant::now();
        self.under_way.retain(|_, since| now.duration_since(*since) < UNDER_WAY);
        let mut nap = NAP;
        let links = self.inner.links.load_full();
        for link in links.iter() {
            if !link.view.borrow().may_publish {
                continue; // its view changes when it is ready, which wakes this
            }
            nap = nap.min(self.send_to(link).await);
        }
        nap.max(Duration::from_millis(10))
    }

    async fn send_to(&mut self, link: &Link) -> Duration {
        let busy = self.under_way.keys().filter(|(relay, _)| *relay == link.url).count();
        let room = UNDER_WAY_MAX.saturating_sub(busy);
        if room == 0 {
            return NAP; // an answer wakes this
        }
        let mut nap = NAP;
        // Kinds over their rate; each round finds another one, or is the last.
        let mut spent: Vec<u16> = Vec::new();
        loop {
            let (url, but, now) = (link.url.clone(), spent.clone(), clock::wall_ms());
            let read = move |connection: &rusqlite::Connection| {
                let due = due_publications(connection, &url, &but, now, UNDER_WAY_MAX + room)?;
                Ok((due, next_publication(connection, &url)?))
            };
            let (due, next) = match self.inner.ground.ledgers.nexus.readers.read(read).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(relay = %link.url, error = %describe(&error), "what is to be published can't be read");
                    return NAP;
                }
            };
            nap = next.filter(|at| *at > now).map_or(nap, |at| nap.min(Duration::from_millis(at.abs_diff(now))));
            let known = spent.len();
            for one in due {
                let kind = one.kind;
                let Err(wait) = self.send_one(link, one) else { continue };
                nap = nap.min(wait);
                if !spent.contains(&kind) {
                    spent.push(kind);
                }
            }
            if spent.len() == known {
                return nap;
            }
        }
    }

    /// Sends one event, if its kind may go now; else how long it has to wait.
    fn send_one(&mut self, link: &Link, due: DuePublication) -> Result<(), Duration> {
        let key = (link.url.clone(), due.event_id.clone());
        let busy = self.under_way.keys().filter(|(relay, _)| *relay == link.url).count();
        if self.under_way.contains_key(&key) || busy >= UNDER_WAY_MAX {
            return Ok(());
        }
        let now = Instant::now();
        self.rates.take(&link.url, due.kind, self.inner.plan.load().publish_per_minute, now)?;
        let publish = Command::Publish { frame: codec::stored_event(&due.event), event_id: due.event_id };
        if link.commands.try_send(publish).is_ok() {
            self.under_way.insert(key, now);
        }
        Ok(())
    }

    /// Writes what a relay did with an event.
    async fn settle(&mut self, told: Told) {
        let Told { relay, event_id, answer } = told;
        self.under_way.remove(&(relay.clone(), event_id.clone()));
        let answered = judge(&event_id, answer, self.attempts(&relay, &event_id).await, clock::wall_ms());
        let is_accepted = answered == Answered::Accepted;
        let at = clock::wall_ms();
        let command = SettlePublished { event_id: event_id.clone(), relay: relay.to_string(), answered, at };
        match self.inner.ground.ledgers.nexus.writer.write_until_done(command).await {
            Ok(_) => {}
            Err(WriteError::Closed { .. }) => return, // the daemon stops; it is sent again, which is harmless
            Err(error) => tracing::error!(%error, "a relay's answer could not be written"),
        }
        if is_accepted {
            self.inner.published(&relay);
            let project = self.project_of(&event_id).await;
            let notice = json!({ "event_id": event_id, "relay": &*relay, "project": project });
            self.inner.ground.bus.publish(NoticeType::NostrPublished, notice);
        }
        // Also when it was refused: whoever waits for it looks at how it stands.
        self.inner.settled.notify_waiters();
    }

    /// The project that a published event names.
    async fn project_of(&self, event_id: &str) -> Option<String> {
        let event_id = event_id.to_owned();
        let read = move |connection: &rusqlite::Connection| {
            let sql = "SELECT event FROM nostr_published WHERE event_id = ?1";
            crate::ledger::optional(connection.prepare_cached(sql)?.query_row([event_id.as_str()], |row| row.get::<_, String>(0)))
        };
        let stored = self.inner.ground.ledgers.nexus.readers.read(read).await;
        let unread = "which project a published event names can't be read";
        let event = stored.inspect_err(|error| tracing::warn!(error = %describe(error), "{unread}")).ok().flatten()?;
        let event = Event::from_json(event).ok()?;
        let kinds = self.inner.plan.load().project_kinds.clone();
        let project = codec::tag_value(&event, "a").and_then(|value| Coordinate::parse(value).ok());
        project.filter(|project| kinds.contains(&project.kind)).map(|project| project.to_string())
    }

    async fn attempts(&self, relay: &Arc<str>, event_id: &str) -> u32 {
        let (relay, event_id) = (relay.clone(), event_id.to_owned());
        let read = move |connection: &rusqlite::Connection| {
            let sql = "SELECT attempts FROM nostr_outbox WHERE event_id = ?1 AND relay = ?2";
            crate::ledger::optional(connection.prepare_cached(sql)?.query_row([event_id.as_str(), &*relay], |row| row.get(0)))
        };
        let stored = self.inner.ground.ledgers.nexus.readers.read(read).await;
        // As if it were the first: then nothing is given up too early.
        let unread = "how often an event was sent can't be read";
        stored.inspect_err(|error| tracing::warn!(error = %describe(error), "{unread}")).ok().flatten().unwrap_or(0)
    }

    /// Signs and sends what isn't kept.
    async fn announce(&self, key: &str, template: Template) {
        let signed = match self.inner.keys.get(key).await {
            Ok(keys) => template.sign(&keys, unix_s()).map_err(|error| error.to_string()),
            Err(error) => Err(describe(&error)),
        };
        let event = match signed {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(key, error, "an event was not announced");
                return;
            }
        };
        let frame = codec::event(&event);
        for link in self.inner.links.load().iter().filter(|link| link.view.borrow().may_publish) {
            // A relay that is busy does without: the next one says more.
            link.commands.try_send(Command::Announce(frame.clone())).ok();
        }
    }

    async fn prune(&mut self) {
        self.rates.forget_full(self.inner.plan.load().publish_per_minute, Instant::now());
        let command = PrunePublished { at: clock::wall_ms(), rows_max: PRUNE_ROWS_MAX, kept: PUBLISHED_KEPT };
        for _ in 0..PRUNE_ROUNDS_MAX {
            match self.inner.ground.ledgers.nexus.writer.write(command.clone()).await {
                Ok(changed) if changed >= u64::from(PRUNE_ROWS_MAX) => {}
                Ok(_) => return,
                Err(error) => return tracing::warn!(%error, "published events that are old were not forgotten"),
            }
        }
    }
}

/// What nobody has yet is for these relays too.
pub(crate) async fn spread(inner: &Inner, relays: Vec<String>) {
    let spread = SpreadPublished { relays, at: clock::wall_ms() };
    if let Err(error) = inner.ground.ledgers.nexus.writer.write_until_done(spread).await {
        tracing::warn!(%error, "what waits to be published is not sent to relays that are new");
    }
    inner.to_publish.notify_one();
}

fn unix_s() -> u64 {
    u64::try_from(clock::wall_ms() / 1000).unwrap_or(0)
}

/// What a relay's word comes to (NIP-01: its first word is for machines).
fn judge(event_id: &str, answer: Option<(bool, String)>, attempts: u32, now: i64) -> Answered {
    let again = |error: String, attempts: u32| Answered::Again { error, at: now.saturating_add(pause_ms(event_id, attempts)) };
    // A connection that was lost is no fault of the event's: it goes as soon as there is another one, and no attempt is counted.
    let Some((accepted, message)) = answer else {
        return Answered::Unanswered { error: "it gave no answer".to_owned(), at: now.saturating_add(pause_ms(event_id, 0)) };
    };
    let word = message.split(':').next().unwrap_or_default().trim();
    match word {
        _ if accepted => Answered::Accepted,
        "duplicate" => Answered::Accepted,
        "blocked" | "invalid" | "restricted" | "pow" | "mute" | "unsupported" | "replaced" | "deleted" => {
            Answered::Refused { error: message }
        }
        // The proof is on its way, or was not taken yet.
        "auth-required" if attempts < PROOFS_MAX => Answered::Again { error: message, at: now.saturating_add(PROOF_MS) },
        "rate-limited" | "auth-required" | "error" => again(message, attempts),
        _ if attempts >= ATTEMPTS_MAX => Answered::Refused { error: message },
        _ => again(message, attempts),
    }
}

/// Doubling, and different for each event, so that they don't all come back together.
fn pause_ms(event_id: &str, attempts: u32) -> i64 {
    let full = AGAIN_BASE_MS.saturating_mul(1 << attempts.min(16)).min(AGAIN_MAX_MS);
    let spread = event_id.bytes().fold(u64::from(attempts), |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    full / 2 + i64::try_from(spread % u64::try_from(full / 2).unwrap_or(1).max(1)).unwrap_or(0)
}

impl Inner {
    /// Notes that a relay has an event.
    fn published(&self, relay: &Arc<str>) {
        for link in self.links.load().iter().filter(|link| link.url == *relay) {
            link.shown.send_modify(|view| view.published += 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_relays_are_understood() {
        let of = |accepted: bool, message: &str, attempts: u32| judge("e", Some((accepted, message.to_owned())), attempts, 1_000);
        assert_eq!(of(true, "anything", 0), Answered::Accepted);
        assert_eq!(of(false, "duplicate: have it", 0), Answered::Accepted);
        for never in ["blocked: no", "replaced: a newer version is here", "deleted: its author had it deleted"] {
            assert!(matches!(of(false, never, 0), Answered::Refused { .. }), "{never}");
        }
        for later in ["rate-limited: slow", "auth-required: who", "error: disk", "no"] {
            assert!(matches!(of(false, later, 0), Answered::Again { .. }), "{later}");
        }
        assert!(matches!(of(false, "no", ATTEMPTS_MAX), Answered::Refused { .. }));
        assert!(matches!(judge("e", None, 99, 1_000), Answered::Unanswered { at, .. } if at > 1_000));
    }

    #[test]
    fn pauses_grow_within_bounds_and_differ() {
        for attempts in 0..40 {
            let full = AGAIN_BASE_MS.saturating_mul(1 << attempts.min(16)).min(AGAIN_MAX_MS);
            assert!((full / 2..=full).contains(&pause_ms("ab", attempts)), "{attempts}");
        }
        assert_ne!(pause_ms("ab", 1), pause_ms("cd", 1));
    }

    #[test]
    fn a_rate_is_per_relay_and_kind_and_comes_back() {
        let (mut rates, now) = (Rates::default(), Instant::now());
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        for _ in 0..60 {
            assert!(rates.take(&a, 1, 60, now).is_ok());
        }
        let wait = rates.take(&a, 1, 60, now);
        assert_eq!(wait, Err(Duration::from_secs(1)));
        assert!(rates.take(&b, 1, 60, now).is_ok() && rates.take(&a, 2, 60, now).is_ok());
        assert!(rates.take(&a, 1, 60, now + Duration::from_secs(1)).is_ok());
        assert!(rates.take(&a, 1, 60, now + Duration::from_secs(1)).is_err());
        rates.forget_full(60, now + Duration::from_secs(30));
        assert_eq!(rates.left.len(), 1, "those of which one was taken are full again");
    }
}
