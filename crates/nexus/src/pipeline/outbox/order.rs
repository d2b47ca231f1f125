//! Rows for one target enter its lane in the order of their commits. Whoever writes some has the order of that target
//! from before the commit until they are queued: tasks whose rows share a commit hear of it at once, and could queue
//! them the other way round. An answer that is streamed takes its place by its first words, and its row is written when
//! its turn comes.

use super::Outbox;
use crate::ledger::nexus::NewDelivery;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Locks over all targets. Two targets that share one can't share a commit, which is all that it costs them.
const LOCKS: usize = 256;

#[derive(Debug)]
pub(super) struct Orders(Vec<Arc<Mutex<()>>>);

/// The right to write rows for one target and to queue them.
#[derive(Debug)]
#[must_use = "the order is kept only as long as this is held"]
pub struct Order(#[expect(dead_code, reason = "held, not read")] Option<OwnedMutexGuard<()>>);

impl Default for Orders {
    fn default() -> Self {
        Self(std::iter::repeat_with(Arc::default).take(LOCKS).collect())
    }
}

impl Orders {
    fn of(&self, lane: &str) -> Arc<Mutex<()>> {
        let mut hasher = DefaultHasher::new();
        lane.hash(&mut hasher);
        let n = hasher.finish() % LOCKS as u64;
        self.0[usize::try_from(n).unwrap_or_default()].clone()
    }
}

impl Outbox {
    /// Waits until nobody else is between the commit of rows for the target of these, which is the same for all, and
    /// its lane; who asked first has it first. Rows that are where they have to be once they are committed enter none,
    /// and need no order.
    pub async fn order(&self, rows: &[NewDelivery]) -> Order {
        let Some(row) = rows.iter().find(|row| !row.here) else { return Order(None) };
        Order(Some(self.shared.orders.of(&row.lane()).lock_owned().await))
    }
}
