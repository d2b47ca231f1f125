//! Which conversations have an end on its way to the disk. An end without a run doesn't hold up its
//! conversation, and a ledger that fails may write it after what follows; a run waits for it, or a
//! daemon killed in between would begin the earlier request after the later one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Unsettled {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Ends under way, by conversation.
    ends: Mutex<HashMap<String, usize>>,
    changed: Notify,
}

/// An end on its way, until it is dropped.
#[derive(Debug)]
pub(super) struct Ending {
    of: Unsettled,
    conversation: String,
}

impl Unsettled {
    pub(super) fn begin(&self, conversation: String) -> Ending {
        *self.ends().entry(conversation.clone()).or_default() += 1;
        Ending { of: self.clone(), conversation }
    }

    /// Until no end of this conversation is on its way.
    pub(super) async fn none_of(&self, conversation: &str) {
        loop {
            // Asked for before the look: an end in between is not missed.
            let changed = self.shared.changed.notified();
            if !self.ends().contains_key(conversation) {
                return;
            }
            changed.await;
        }
    }

    fn ends(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.shared.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let mut ends = self.of.ends();
        if let Some(number) = ends.get_mut(&self.conversation) {
            *number -= 1;
            if *number == 0 {
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
    async fn a_run_waits_for_every_end_of_its_conversation_and_for_no_other() {
        let unsettled = Unsettled::default();
        let (first, second) = (unsettled.begin("a".into()), unsettled.begin("a".into()));
        let other = unsettled.begin("b".into());
        let mut waiting = Box::pin(unsettled.none_of("a"));
        assert!((&mut waiting).now_or_never().is_none());
        drop(first);
        assert!((&mut waiting).now_or_never().is_none(), "one is still on its way");
        drop(second);
        assert!((&mut waiting).now_or_never().is_some());
        assert!(unsettled.none_of("b").now_or_never().is_none());
        drop(other);
        unsettled.none_of("b").await;
        assert!(unsettled.ends().is_empty());
    }
}
