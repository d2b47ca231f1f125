//! Which conversations have an end on its way to the disk, and which one that could not be written. An end
//! without a run doesn't hold up its conversation, and a ledger that fails may write it after what follows;
//! a run waits for it, or a daemon killed in between would begin the earlier request after the later one.
//! Where it can't be written at all, the run is left to the next start with it.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The name under which the watch over the daemon's tasks tells of conversations that wait for a start.
pub(super) const ENDS: &str = "ends of requests";
/// Conversations that are known to wait for the next start; in more, what is left may be overtaken.
const LEFT_MAX: usize = 4096;

/// Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Unsettled {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    ends: Mutex<Ends>,
    changed: Notify,
}

/// By conversation, as requests name it in the ledger.
#[derive(Debug, Default)]
struct Ends {
    /// The event seqs of the ends under way.
    under_way: HashMap<String, BTreeSet<i64>>,
    /// The earliest request that is left to the next start.
    left: HashMap<String, i64>,
}

impl Ends {
    fn leave(&mut self, conversation: &str, seq: i64) {
        if let Some(earliest) = self.left.get_mut(conversation) {
            *earliest = seq.min(*earliest);
        } else if self.left.len() < LEFT_MAX {
            self.left.insert(conversation.to_owned(), seq);
        }
    }
}

/// An end on its way, until it is dropped: if that is not on disk by then, it is left to the next start.
#[derive(Debug)]
pub(super) struct Ending {
    of: Unsettled,
    conversation: String,
    seq: i64,
    is_written: AtomicBool,
}

impl Ending {
    /// It is on disk, though an attempt at it that broke off may have left it.
    pub(super) fn written(&self) {
        self.is_written.store(true, Ordering::Release);
        let mut ends = self.of.ends();
        if ends.left.get(&self.conversation) == Some(&self.seq) {
            ends.left.remove(&self.conversation);
        }
    }
}

impl Unsettled {
    pub(super) fn begin(&self, conversation: &str, seq: i64) -> Arc<Ending> {
        self.ends().under_way.entry(conversation.to_owned()).or_default().insert(seq);
        Arc::new(Ending { of: self.clone(), conversation: conversation.to_owned(), seq, is_written: AtomicBool::new(false) })
    }

    /// A request is left to the next start, and what comes after it in its conversation as well.
    pub(super) fn leave(&self, conversation: &str, seq: i64) {
        self.ends().leave(conversation, seq);
    }

    /// What was left is taken up again.
    pub(super) fn forget_left(&self) {
        self.ends().left.clear();
    }

    /// Until no end of this conversation is on its way that is earlier than `seq`; later ones may come for ever.
    /// False when an earlier one is left to the next start.
    pub(super) async fn none_before(&self, conversation: &str, seq: i64) -> bool {
        loop {
            // Asked for before the look: an end in between is not missed.
            let changed = self.shared.changed.notified();
            if let Some(is_free) = self.is_free(conversation, seq) {
                return is_free;
            }
            changed.await;
        }
    }

    /// `None` while that is still to be seen.
    fn is_free(&self, conversation: &str, seq: i64) -> Option<bool> {
        let ends = self.ends();
        if ends.left.get(conversation).is_some_and(|left| *left < seq) {
            return Some(false);
        }
        let earliest = ends.under_way.get(conversation).and_then(|seqs| seqs.first().copied());
        earliest.is_none_or(|earliest| earliest >= seq).then_some(true)
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.shared.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let mut ends = self.of.ends();
        if let Some(seqs) = ends.under_way.get_mut(&self.conversation) {
            seqs.remove(&self.seq);
            if seqs.is_empty() {
                ends.under_way.remove(&self.conversation);
            }
        }
        if !self.is_written.load(Ordering::Acquire) {
            ends.leave(&self.conversation, self.seq);
        }
        drop(ends);
        self.of.shared.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn end(ending: Arc<Ending>) {
        ending.written();
        drop(ending);
    }

    #[tokio::test]
    async fn a_run_waits_for_every_earlier_end_of_its_conversation_and_for_no_other() {
        let unsettled = Unsettled::default();
        let (first, second) = (unsettled.begin("a", 1), unsettled.begin("a", 2));
        let (later, other) = (unsettled.begin("a", 4), unsettled.begin("b", 1));
        let mut waiting = Box::pin(unsettled.none_before("a", 3));
        assert!((&mut waiting).now_or_never().is_none());
        end(first);
        assert!((&mut waiting).now_or_never().is_none(), "one is still on its way");
        end(second);
        assert_eq!((&mut waiting).now_or_never(), Some(true), "a later one doesn't count");
        assert!(unsettled.none_before("b", 2).now_or_never().is_none());
        end(other);
        end(later);
        assert!(unsettled.none_before("b", 2).await);
        assert!(unsettled.ends().under_way.is_empty());
    }

    #[tokio::test]
    async fn nothing_overtakes_what_is_left_to_the_next_start() {
        let unsettled = Unsettled::default();
        let ending = unsettled.begin("a", 5);
        let mut waiting = Box::pin(unsettled.none_before("a", 6));
        assert!((&mut waiting).now_or_never().is_none());
        drop(ending);
        assert_eq!((&mut waiting).now_or_never(), Some(false));
        unsettled.leave("a", 7);
        assert!(!unsettled.none_before("a", 6).await, "the earliest counts");
        assert!(unsettled.none_before("a", 5).await && unsettled.none_before("b", 9).await);
        unsettled.forget_left();
        assert!(unsettled.none_before("a", 8).await);
    }

    #[tokio::test]
    async fn what_a_second_attempt_wrote_is_not_left() {
        let unsettled = Unsettled::default();
        drop(unsettled.begin("a", 5));
        end(unsettled.begin("a", 4));
        assert!(!unsettled.none_before("a", 6).await, "another one is still left");
        end(unsettled.begin("a", 5));
        assert!(unsettled.none_before("a", 6).await);
    }

    #[test]
    fn no_more_is_kept_of_what_is_left_than_may() {
        let unsettled = Unsettled::default();
        for n in 0..LEFT_MAX + 10 {
            unsettled.leave(&n.to_string(), 1);
        }
        assert_eq!(unsettled.ends().left.len(), LEFT_MAX);
    }
}
