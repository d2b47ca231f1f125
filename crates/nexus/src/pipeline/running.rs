//! The turns that run, by session: how one is ended before its time, and what is told of them. It begins none: what the end of
//! one comes to, `run` and `finish` say.

use super::{Pipeline, Prepared, words};
use crate::ledger::nexus::StopRequest;
use crate::ledger::writer::WriteError;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Stops that are kept for turns that have yet to begin; of more the earliest are forgotten.
const KEPT_STOPS_MAX: usize = 256;

/// Why a turn has no whole answer that a newer message of its session ended.
const SUPERSEDED: &str = "aborted: a newer message of its session ended this turn";

/// Ends one turn. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Abort {
    token: CancellationToken,
    /// Why, where it was no newer message.
    why: Arc<OnceLock<String>>,
}

impl Abort {
    /// A newer message of its session ends it.
    pub(super) fn cancel(&self) {
        self.token.cancel();
    }

    /// Somebody ends it. Of two the first one is told.
    pub(super) fn cancel_for(&self, why: &str) {
        if !self.token.is_cancelled() {
            self.why.set(why.to_owned()).ok();
        }
        self.token.cancel();
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    pub(super) async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// Why it was ended, once it is.
    pub(super) fn why(&self) -> &str {
        self.why.get().map_or(SUPERSEDED, String::as_str)
    }
}

/// The turns that run. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Turns {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    running: HashMap<String, Entry>,
    /// By session and the place of the word that asked for it: each ends the first turn of an earlier message.
    stops: BTreeMap<(String, i64), Kept>,
    /// By request: turns that were told to end under a former daemon, and why.
    stopped_before: HashMap<i64, String>,
}

/// A stop that found no turn of a message before it.
#[derive(Debug)]
struct Kept {
    before: Before,
    why: String,
}

/// What a word that ends a turn came after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Before {
    /// The word's own place.
    pub(super) event_seq: i64,
    /// Of one that came late: when it was said, in Unix ms. Since then messages may have come that have earlier places.
    pub(super) said_at: Option<i64>,
}

impl Before {
    fn is_after(self, event_seq: i64, said_at: i64) -> bool {
        event_seq < self.event_seq && self.said_at.is_none_or(|at| said_at <= at)
    }
}

#[derive(Debug)]
struct Entry {
    event_seq: i64,
    /// All that share the turn as it begins, this one last.
    event_seqs: Vec<i64>,
    /// Unix ms.
    said_at: i64,
    request_id: String,
    agent: String,
    began: Instant,
    abort: Abort,
    over: watch::Receiver<()>,
}

/// A turn that was told to end.
#[derive(Debug)]
pub struct Stopping {
    /// All that share the turn, the newest last.
    pub event_seqs: Vec<i64>,
    pub request_id: String,
    why: String,
    over: watch::Receiver<()>,
}

impl Stopping {
    /// Waits until its end is on disk and its session may go on; false if that takes longer than `patience`.
    pub async fn is_over(&mut self, patience: Duration) -> bool {
        let over = async { while self.over.changed().await.is_ok() {} };
        tokio::time::timeout(patience, over).await.is_ok()
    }
}

/// A turn's place among those that run: as long as this lives, it does.
#[derive(Debug)]
pub(super) struct AtWork {
    turns: Turns,
    session: String,
    event_seq: i64,
    /// Dropped after the entry is gone.
    _over: watch::Sender<()>,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut turns = self.turns.lock();
        if turns.running.get(&self.session).is_some_and(|entry| entry.event_seq == self.event_seq) {
            turns.running.remove(&self.session);
        }
    }
}

impl Turns {
    /// None runs yet. Those of these requests were told to end already, and do as they begin.
    pub fn after(stopped: Vec<(i64, String)>) -> Self {
        let inner = Inner { stopped_before: stopped.into_iter().collect(), ..Inner::default() };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// The turn of this request runs from here on. A stop that came before it, and after its message, ends it at once.
    pub(super) fn begin(&self, prepared: &Prepared) -> AtWork {
        let (sender, over) = watch::channel(());
        let (event_seq, session) = (prepared.request.event_seq, prepared.session.clone());
        let entry = Entry {
            event_seq,
            event_seqs: prepared.requests().map(|request| request.event_seq).collect(),
            said_at: words::said_at(&prepared.request),
            request_id: prepared.request.request_id.clone(),
            agent: prepared.agent.name.clone(),
            began: Instant::now(),
            abort: prepared.abort.clone(),
            over,
        };
        let mut turns = self.lock();
        if let Some(why) = turns.take_stop(&session, &entry) {
            tracing::info!(session, request_id = entry.request_id, why, "a turn is stopped before it began");
            entry.abort.cancel_for(&why);
        }
        turns.running.insert(session.clone(), entry);
        AtWork { turns: self.clone(), session, event_seq, _over: sender }
    }

    /// Has the turn of a session ended, for the reason that its trace is to give. `None` if there is none.
    pub fn stop(&self, session: &str, why: &str) -> Option<Stopping> {
        self.lock().running.get(session).map(|entry| entry.stop(why))
    }

    /// As [`Self::stop`], of a message that came before the word only. Where there is none, the first such turn that
    /// begins is ended: its message may be on its way still, or wait.
    pub(super) fn stop_before(&self, session: &str, before: Before, why: &str) -> Option<Stopping> {
        let mut turns = self.lock();
        let running = turns.running.get(session).filter(|entry| before.is_after(entry.event_seq, entry.said_at));
        if let Some(entry) = running {
            return Some(entry.stop(why));
        }
        if turns.stops.len() >= KEPT_STOPS_MAX
            && let Some(earliest) = turns.stops.keys().min_by_key(|(_, event_seq)| *event_seq).cloned()
        {
            turns.stops.remove(&earliest);
        }
        turns.stops.insert((session.to_owned(), before.event_seq), Kept { before, why: why.to_owned() });
        None
    }

    /// The agent whose turn of a session runs, and for how long.
    pub(super) fn of(&self, session: &str) -> Option<(String, Duration)> {
        self.lock().running.get(session).map(|entry| (entry.agent.clone(), entry.began.elapsed()))
    }

    /// Whether an earlier daemon told the turn of this message to end: it may be ended only, with nobody else's message in it.
    pub(super) fn is_to_end(&self, event_seq: i64) -> bool {
        self.lock().stopped_before.contains_key(&event_seq)
    }

    pub(super) fn count(&self) -> usize {
        self.lock().running.len()
    }

    /// Whatever broke off while it held this: an entry is put in or taken out in one step.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The earliest stop that is kept for this turn: why it ends.
    fn take_stop(&mut self, session: &str, entry: &Entry) -> Option<String> {
        if let Some(why) = self.stopped_before.remove(&entry.event_seq) {
            // The word itself may have been heard again since: it ends no second turn.
            self.stops.retain(|_, kept| kept.why != why);
            return Some(why);
        }
        let of_session = (session.to_owned(), entry.event_seq)..=(session.to_owned(), i64::MAX);
        let mut kept = self.stops.range(of_session).filter(|(_, kept)| kept.before.is_after(entry.event_seq, entry.said_at));
        let key = kept.next()?.0.clone();
        self.stops.remove(&key).map(|kept| kept.why)
    }
}

impl Entry {
    fn stop(&self, why: &str) -> Stopping {
        self.abort.cancel_for(why);
        let (event_seqs, request_id) = (self.event_seqs.clone(), self.request_id.clone());
        Stopping { event_seqs, request_id, why: why.to_owned(), over: self.over.clone() }
    }
}

impl Pipeline {
    /// Has it on disk that a turn was told to end. Who asked for it is told nothing before: the turn may take its time, and the
    /// daemon that is killed meanwhile, or a later one, must not ask its agent again.
    ///
    /// False when that can't be written for so long: the turn is ended all the same, and a later daemon may begin it again.
    ///
    /// # Errors
    /// As [`write_until_done`](crate::ledger::writer::Writer::write_until_done).
    pub async fn keep_stop(&self, stopping: &Stopping, patience: Duration) -> Result<bool, WriteError> {
        let stop = StopRequest { event_seqs: stopping.event_seqs.clone(), why: stopping.why.clone() };
        let newest = stopping.event_seqs.last().copied().unwrap_or_default();
        // A turn may be told to end before it is known to the ledger that there is one.
        let Ok(kept) = tokio::time::timeout(patience, self.write_admitted(newest, stop)).await else {
            let request_id = &stopping.request_id;
            tracing::warn!(
                request_id,
                "a stop can't be noted for now; if the daemon ended before it is, the next one would run its turn again"
            );
            return Ok(false);
        };
        kept.map(|_| true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::broken::tests::prepared;

    fn word(event_seq: i64) -> Before {
        Before { event_seq, said_at: None }
    }

    /// Why the turn of this message was ended when it began, if it was.
    fn ended(turns: &Turns, seq: i64) -> Option<String> {
        let prepared = prepared(seq, Duration::ZERO);
        drop(turns.begin(&prepared));
        prepared.abort.is_cancelled().then(|| prepared.abort.why().to_owned())
    }

    #[test]
    fn a_stop_that_finds_no_turn_ends_the_first_that_begins_of_a_message_before_it() {
        let turns = Turns::default();
        assert!(turns.stop_before("s", word(2), "first").is_none() && turns.stop_before("s", word(4), "second").is_none());
        assert!(turns.stop_before("other", word(9), "third").is_none());
        assert_eq!(ended(&turns, 5), None, "it came after both");
        assert_eq!((ended(&turns, 1).as_deref(), ended(&turns, 3).as_deref()), (Some("first"), Some("second")));
        assert_eq!((ended(&turns, 1), ended(&turns, 3)), (None, None), "each ends one");
    }

    #[test]
    fn a_turn_that_was_told_to_end_before_a_crash_ends_as_it_begins_and_takes_its_word_along() {
        let turns = Turns::after(vec![(2, "the word".to_owned())]);
        assert!(turns.stop_before("s", word(3), "the word").is_none(), "it is heard again");
        assert_eq!((ended(&turns, 2).as_deref(), ended(&turns, 1)), (Some("the word"), None));
        assert_eq!(ended(&turns, 2), None);
    }

    #[test]
    fn the_verb_ends_what_runs_and_nothing_that_begins_later() {
        let turns = Turns::default();
        assert!(turns.stop("s", "by the verb").is_none());
        assert_eq!(ended(&turns, 1), None);
        let prepared = prepared(2, Duration::ZERO);
        let at_work = turns.begin(&prepared);
        assert!(turns.stop_before("s", word(2), "too early").is_none() && !prepared.abort.is_cancelled());
        assert_eq!(turns.stop("s", "by the verb").map(|stopping| stopping.event_seqs), Some(vec![2]));
        assert_eq!(prepared.abort.why(), "by the verb");
        drop(at_work);
        assert_eq!(turns.count(), 0);
    }

    #[test]
    fn a_word_that_came_late_ends_nothing_that_was_said_after_it() {
        let late = Before { event_seq: 9, said_at: Some(1_000) };
        assert!(late.is_after(8, 1_000) && !late.is_after(8, 1_001) && !late.is_after(9, 1));
        assert!(word(9).is_after(8, i64::MAX));
    }

    #[test]
    fn no_more_stops_are_kept_than_may_be() {
        let turns = Turns::default();
        let last = i64::try_from(KEPT_STOPS_MAX).map_or(0, |max| max + 2);
        (2..=last + 1).for_each(|seq| drop(turns.stop_before("s", word(seq), "stopped")));
        assert_eq!(turns.lock().stops.len(), KEPT_STOPS_MAX);
        assert!(turns.lock().stops.contains_key(&("s".to_owned(), last + 1)), "the newest is kept");
    }

    #[test]
    fn who_ends_a_turn_first_is_told() {
        let abort = Abort::default();
        abort.cancel_for("stopped: by a person");
        abort.cancel_for("stopped: by another one");
        abort.cancel();
        assert!(abort.is_cancelled());
        assert_eq!(abort.why(), "stopped: by a person");

        let abort = Abort::default();
        abort.cancel();
        abort.cancel_for("stopped: too late");
        assert_eq!(abort.why(), SUPERSEDED);
    }
}
