//! The turns that run, by session: how one is ended before its time, and what is told of them. It begins none and writes
//! nothing: what the end of one comes to, `run` and `finish` say.

use super::Prepared;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

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
    inner: Arc<Mutex<HashMap<String, Entry>>>,
}

#[derive(Debug)]
struct Entry {
    event_seq: i64,
    request_id: String,
    agent: String,
    began: Instant,
    abort: Abort,
    over: watch::Receiver<()>,
}

/// A turn that was told to end.
#[derive(Debug)]
pub struct Stopping {
    pub event_seq: i64,
    pub request_id: String,
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
        if turns.get(&self.session).is_some_and(|entry| entry.event_seq == self.event_seq) {
            turns.remove(&self.session);
        }
    }
}

impl Turns {
    /// The turn of this request runs from here on.
    pub(super) fn begin(&self, prepared: &Prepared) -> AtWork {
        let (sender, over) = watch::channel(());
        let event_seq = prepared.request.event_seq;
        let entry = Entry {
            event_seq,
            request_id: prepared.request.request_id.clone(),
            agent: prepared.agent.name.clone(),
            began: Instant::now(),
            abort: prepared.abort.clone(),
            over,
        };
        self.lock().insert(prepared.session.clone(), entry);
        AtWork { turns: self.clone(), session: prepared.session.clone(), event_seq, _over: sender }
    }

    /// Has the turn of a session ended, for the reason that its trace is to give; of a message that came before `before`
    /// only, if that is given. `None` if there is none.
    pub fn stop(&self, session: &str, before: Option<i64>, why: &str) -> Option<Stopping> {
        let turns = self.lock();
        let entry = turns.get(session).filter(|entry| before.is_none_or(|before| entry.event_seq < before))?;
        entry.abort.cancel_for(why);
        Some(Stopping { event_seq: entry.event_seq, request_id: entry.request_id.clone(), over: entry.over.clone() })
    }

    /// The agent whose turn of a session runs, and for how long.
    pub(super) fn of(&self, session: &str) -> Option<(String, Duration)> {
        self.lock().get(session).map(|entry| (entry.agent.clone(), entry.began.elapsed()))
    }

    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Whatever broke off while it held this: an entry is put in or taken out in one step.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
