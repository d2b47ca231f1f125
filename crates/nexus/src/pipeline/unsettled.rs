//! Which conversations have an end on its way to the disk. An end without a run doesn't hold up its
//! conversation, and a ledger that fails may write it after what follows; a run waits for it, or a
//! daemon killed in between would begin the earlier request after the later one.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Unsettled {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The event seqs of the ends under way, by conversation.
    ends: Mutex<HashMap<String, BTreeSet<i64>>>,
    changed: Notify,
}

/// An end on its way, until it is dropped.
#[derive(Debug)]
pub(super) struct Ending {
    of: Unsettled,
    conversation: String,
    seq: i64,
}

impl Unsettled {
    pub(super) fn begin(&self, conversation: String, seq: i64) -> Ending {
        self.ends().entry(conversation.clone()).or_default().insert(seq);
        Ending { of: self.clone(), conversation, seq }
    }

    /// Until no end of this conversation is on its way that is earlier than `seq`. Later ones may come for ever.
    pub(super) async fn none_before(&self, conversation: &str, seq: i64) {
        loop {
            // Asked for before the look: an end in between is not missed.
            let changed = self.shared.changed.notified();
            let earliest = self.ends().get(conversation).and_then(|seqs| seqs.first().copied());
            if earliest.is_none_or(|earliest| earliest >= seq) {
                return;
            }
            changed.await;
        }
    }

    fn ends(&self) -> MutexGuard<'_, HashMap<String, BTreeSet<i64>>> {
        self.shared.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let mut ends = self.of.ends();
        if let Some(seqs) = ends.get_mut(&self.conversation) {
            seqs.remove(&self.seq);
            if seqs.is_empty() {
                ends.remove(&self.conversation);
            }
        }
        drop(ends);
        self.of.shared.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn a_run_waits_for_every_earlier_end_of_its_conversation_and_for_no_other() {
        let unsettled = Unsettled::default();
        let (first, second) = (unsettled.begin("a".into(), 1), unsettled.begin("a".into(), 2));
        let (later, other) = (unsettled.begin("a".into(), 4), unsettled.begin("b".into(), 1));
        let mut waiting = Box::pin(unsettled.none_before("a", 3));
        assert!((&mut waiting).now_or_never().is_none());
        drop(first);
        assert!((&mut waiting).now_or_never().is_none(), "one is still on its way");
        drop(second);
        assert!((&mut waiting).now_or_never().is_some(), "a later one doesn't count");
        assert!(unsettled.none_before("b", 2).now_or_never().is_none());
        drop((other, later));
        unsettled.none_before("b", 2).await;
        assert!(unsettled.ends().is_empty());
    }
}
