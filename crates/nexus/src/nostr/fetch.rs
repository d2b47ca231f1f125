//! Events that are asked for once: what is stored first, then all relays together. An answer is verified like
//! everything else, and kept if it is a definition, also where it comes too late for whoever asked.

use super::filter::Filter;
use super::relay::Command;
use super::sort::definition;
use super::subscriptions::DEFINING_KINDS;
use super::{Inner, Link};
use crate::error_text::describe;
use crate::ledger::ReadError;
use crate::ledger::nexus::{Definition, Put, nostr_event, nostr_events_by_ids};
use crate::ledger::writer::WriteError;
use crate::project::coordinate::Coordinate;
use crate::project::definition::PROFILE_KIND;
use ::nostr::event::Event;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// Events that one relay may answer a fetch with.
pub(crate) const EVENTS_OF_FETCH_MAX: usize = 500;
/// Ids that may be asked for together.
const IDS_MAX: usize = 256;
/// How long relays have, connecting included.
const FETCH_LIMIT: Duration = Duration::from_secs(10);
/// How long the others have once one has answered: all their time, and less where a later answer does as well.
const WHOLE_GRACE: Duration = FETCH_LIMIT.saturating_mul(2);
const PROFILES_GRACE: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Who answered that there is none, and who didn't answer, with why.
    #[error("no relay has it; asked: {}; no answer: {}", or_nobody(.answered), or_nobody(.silent))]
    NotFound { answered: Vec<String>, silent: Vec<String> },
    #[error("`nostr.relays` is empty: there is nobody to ask")]
    NoRelays,
    #[error("{0} ids are too many; {IDS_MAX} are possible")]
    TooMany(usize),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

fn or_nobody(names: &[String]) -> String {
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}

/// What the relays had.
#[derive(Debug, Default)]
struct Answers {
    events: BTreeMap<String, Event>,
    answered: Vec<String>,
    silent: Vec<String>,
}

/// A relay, and what it answered, or why it didn't.
type Asked = (Arc<str>, Result<Vec<Event>, String>);

impl Inner {
    pub(crate) async fn definition(self: &Arc<Self>, of: &Coordinate) -> Result<Event, FetchError> {
        if let Some(known) = self.stored(of).await? {
            return Ok(known);
        }
        let filter = Filter {
            kinds: Some(BTreeSet::from([of.kind])),
            authors: Some(Arc::new(BTreeSet::from([of.pubkey.clone()]))),
            tag: Some(('d', BTreeSet::from([of.identifier.clone()]))),
            ..Filter::default()
        };
        let Answers { events, answered, silent } = self.ask(&filter, WHOLE_GRACE).await?;
        self.keep(events.values()).await?;
        // By way of the ledger, which knows which one counts, and what was deleted.
        self.stored(of).await?.ok_or(FetchError::NotFound { answered, silent })
    }

    pub(crate) async fn by_ids(self: &Arc<Self>, ids: &[String]) -> Result<Vec<Event>, FetchError> {
        if ids.len() > IDS_MAX {
            return Err(FetchError::TooMany(ids.len()));
        }
        let asked = ids.to_vec();
        let stored = self.ground.ledgers.nexus.readers.read(move |connection| nostr_events_by_ids(connection, &asked)).await?;
        let mut found: Vec<Event> = stored.iter().filter_map(|json| Event::from_json(json).ok()).collect();
        let known: BTreeSet<String> = found.iter().map(|event| event.id.to_hex()).collect();
        let missing: BTreeSet<String> = ids.iter().filter(|id| !known.contains(*id)).cloned().collect();
        if missing.is_empty() {
            return Ok(found);
        }
        let Answers { events, answered, silent } = self.ask(&Filter { ids: Some(missing), ..Filter::default() }, WHOLE_GRACE).await?;
        if events.is_empty() && answered.is_empty() && !silent.is_empty() {
            return Err(FetchError::NotFound { answered, silent });
        }
        let deleted = self.keep(events.values()).await?;
        found.extend(events.into_values().filter(|event| !deleted.contains(&event.id.to_hex())));
        Ok(found)
    }

    /// The relays are asked also for what is stored: nothing else brings the newer profiles of keys that aren't heeded.
    pub(crate) async fn profiles(self: &Arc<Self>, pubkeys: &[String]) -> Result<Vec<Event>, FetchError> {
        if pubkeys.len() > IDS_MAX {
            return Err(FetchError::TooMany(pubkeys.len()));
        }
        let authors = Some(Arc::new(pubkeys.iter().cloned().collect::<BTreeSet<_>>()));
        let filter = Filter { kinds: Some(BTreeSet::from([PROFILE_KIND])), authors, ..Filter::default() };
        let asked = self.ask(&filter, PROFILES_GRACE).await;
        if let Ok(answers) = &asked {
            self.keep(answers.events.values()).await?;
        }
        let mut stored = Vec::new();
        for pubkey in pubkeys {
            stored.extend(self.stored_at(PROFILE_KIND, pubkey.clone(), String::new()).await?);
        }
        // That nobody has one is known only from somebody who answered.
        let is_whole = stored.len() >= pubkeys.len();
        match asked {
            Ok(Answers { answered, silent, .. }) if answered.is_empty() && !is_whole => Err(FetchError::NotFound { answered, silent }),
            Err(error) if !is_whole => Err(error),
            Ok(_) | Err(_) => Ok(stored),
        }
    }

    async fn stored(&self, of: &Coordinate) -> Result<Option<Event>, ReadError> {
        self.stored_at(of.kind, of.pubkey.clone(), of.identifier.clone()).await
    }

    async fn stored_at(&self, kind: u16, pubkey: String, identifier: String) -> Result<Option<Event>, ReadError> {
        let read = move |connection: &rusqlite::Connection| nostr_event(connection, kind, &pubkey, &identifier);
        let found = self.ground.ledgers.nexus.readers.read(read).await?;
        Ok(found.and_then(|json| Event::from_json(json).ok()))
    }

    /// Keeps what defines something. Ids of those that their authors deleted: not every relay heeds that.
    async fn keep<'e>(&self, events: impl Iterator<Item = &'e Event>) -> Result<BTreeSet<String>, WriteError> {
        let kinds = self.plan.load().project_kinds.clone();
        let is_kept = |event: &&Event| DEFINING_KINDS.contains(&event.kind.as_u16()) || kinds.contains(&event.kind.as_u16());
        let definitions: Vec<Definition> = events.filter(is_kept).map(definition).collect();
        if definitions.is_empty() {
            return Ok(BTreeSet::new());
        }
        let put = self.put(definitions.clone()).await?;
        // Of those that replace others, a newer one may be known.
        let is_deleted = |(of, put): &(Definition, Put)| of.identifier.is_none() && *put == Put::Outdated;
        Ok(definitions.into_iter().zip(put).filter(is_deleted).map(|(of, _)| of.id).collect())
    }

    /// Asks all relays at once, and waits for each within the limit, but no longer than `grace` once one has answered. What
    /// the others still answer is kept.
    async fn ask(self: &Arc<Self>, filter: &Filter, grace: Duration) -> Result<Answers, FetchError> {
        let links = self.links.load_full();
        if links.is_empty() {
            return Err(FetchError::NoRelays);
        }
        let deadline = Instant::now() + FETCH_LIMIT;
        let mut asking: FuturesUnordered<_> = links.iter().map(|link| answer_of(link.clone(), filter.clone(), deadline)).collect();
        let mut open: BTreeSet<Arc<str>> = links.iter().map(|link| link.url.clone()).collect();
        let mut all = Answers::default();
        // Each ends by the deadline itself, and says why.
        let mut until = deadline + grace;
        while let Ok(Some((url, answer))) = timeout_at(until, asking.next()).await {
            open.remove(&url);
            match answer {
                Ok(events) => {
                    until = until.min(Instant::now() + grace);
                    all.answered.push(url.to_string());
                    all.events.extend(events.into_iter().map(|event| (event.id.to_hex(), event)));
                }
                Err(why) => all.silent.push(format!("{url} ({why})")),
            }
        }
        if !open.is_empty() {
            let (late, stop) = (self.clone().keep_late(asking), self.ground.stop.clone());
            crate::watch::helper("nostr.late", async move { stop.run_until_cancelled(late).await });
        }
        all.silent.extend(open.iter().map(|url| format!("{url} (others answered before it)")));
        all.answered.sort();
        all.silent.sort();
        Ok(all)
    }

    /// Keeps what relays answer after whoever asked went on without them: the next one who asks finds it stored. Each ends by
    /// its deadline.
    async fn keep_late(self: Arc<Self>, mut asking: FuturesUnordered<impl Future<Output = Asked>>) {
        while let Some((url, answer)) = asking.next().await {
            // Why there is none was of interest to who asked.
            let Ok(events) = answer else { continue };
            match self.keep(events.iter()).await {
                Ok(_) => {}
                Err(WriteError::Closed { .. }) => return,
                Err(error) => tracing::warn!(relay = %url, error = %describe(&error), "what a relay answered late is not kept"),
            }
        }
    }
}

async fn answer_of(link: Link, filter: Filter, deadline: Instant) -> Asked {
    (link.url.clone(), ask_one(&link, &filter, deadline).await)
}

async fn ask_one(link: &Link, filter: &Filter, deadline: Instant) -> Result<Vec<Event>, String> {
    let mut view = link.view.clone();
    match timeout_at(deadline, view.wait_for(|view| view.may_publish)).await {
        Ok(Ok(_)) => {}
        Ok(Err(_)) => return Err("it is not wanted any more".to_owned()),
        Err(_) => return Err(link.view.borrow().error.clone().unwrap_or_else(|| "not connected".to_owned())),
    }
    let (answer, answered) = oneshot::channel();
    let command = Command::Fetch { filter: filter.clone(), answer };
    let asked = async {
        link.commands.send(command).await.map_err(|_| "it is not wanted any more".to_owned())?;
        answered.await.map_err(|_| "its task failed".to_owned())?
    };
    match timeout_at(deadline, asked).await {
        Ok(answer) => answer,
        Err(_) => Err("it did not answer in time".to_owned()),
    }
}
