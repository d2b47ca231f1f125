//! What waits in one session, in the order of its messages: which is the first, when it may run, and which is
//! the oldest that a cap may drop. Pure bookkeeping, and no question makes it look at all that wait. What is
//! dropped or run, it never decides.

use crate::pipeline::Prepared;
use nexus_core::config::QueueMode;
use nexus_core::lane::{self, STEER_MESSAGES_MAX};
use std::collections::{BTreeMap, BTreeSet};

/// A request that waits for its session.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) agent: String,
    pub(super) system: bool,
    pub(super) mode: QueueMode,
    pub(super) came_ms: u64,
    /// A stop interrupted its run. It had its turn, so it is not one of those that a cap is about.
    pub(super) is_revived: bool,
    /// `None` when memory had no room for it.
    pub(super) prepared: Option<Box<Prepared>>,
    pub(super) max_concurrent: usize,
}

/// All that wait in one session, by seq.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: BTreeMap<i64, Waiting>,
    /// Those that are collected, by when they came.
    collected: BTreeSet<(u64, i64)>,
    /// How many are revived: never more than shared the run that was interrupted.
    revived: usize,
}

impl Line {
    pub(super) fn insert(&mut self, seq: i64, waiting: Waiting) {
        if lane::collects(waiting.mode) {
            self.collected.insert((waiting.came_ms, seq));
        }
        self.revived += usize::from(waiting.is_revived);
        self.waiting.insert(seq, waiting);
    }

    pub(super) fn remove(&mut self, seq: i64) -> Option<Waiting> {
        let removed = self.waiting.remove(&seq)?;
        self.collected.remove(&(removed.came_ms, seq));
        self.revived -= usize::from(removed.is_revived);
        Some(removed)
    }

    pub(super) fn first(&self) -> Option<(i64, &Waiting)> {
        self.waiting.first_key_value().map(|(seq, first)| (*seq, first))
    }

    /// Those from `seq` on.
    pub(super) fn after(&self, seq: i64) -> impl Iterator<Item = &Waiting> {
        self.waiting.range(seq..).map(|(_, waiting)| waiting)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many a cap counts.
    pub(super) fn counted(&self) -> usize {
        self.waiting.len() - self.revived
    }

    /// Takes out the oldest of those that a cap counts.
    pub(super) fn pop_counted(&mut self) -> Option<(i64, Waiting)> {
        let (&seq, _) = self.waiting.iter().find(|(_, waiting)| !waiting.is_revived)?;
        self.remove(seq).map(|oldest| (seq, oldest))
    }

    /// Takes out those at its head that may be given to a turn, as many as there is room for.
    pub(super) fn pop_steering(&mut self) -> Vec<Prepared> {
        let mut given = Vec::new();
        while given.len() < STEER_MESSAGES_MAX
            && let Some((seq, first)) = self.first()
            && lane::steers(first.mode)
            && first.prepared.is_some()
        {
            given.extend(self.remove(seq).and_then(|first| first.prepared).map(|prepared| *prepared));
        }
        given
    }

    /// When the first may run: at once, or if it is collected when there is quiet behind all that are.
    pub(super) fn due_ms(&self) -> u64 {
        let is_collected = self.first().is_some_and(|(_, first)| lane::collects(first.mode));
        match (self.collected.first(), self.collected.last()) {
            (Some((first_ms, _)), Some((last_ms, _))) if is_collected => lane::due_ms(*first_ms, *last_ms),
            (_, _) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn waiting(mode: QueueMode, came_ms: u64, is_revived: bool) -> Waiting {
        Waiting { agent: "a".to_owned(), system: false, mode, came_ms, is_revived, prepared: None, max_concurrent: 1 }
    }

    #[test]
    fn the_first_is_due_when_there_is_quiet_behind_what_is_collected() {
        let mut line = Line::default();
        assert_eq!(line.due_ms(), 0);
        line.insert(2, waiting(QueueMode::Collect, 1_000, false));
        line.insert(1, waiting(QueueMode::Collect, 1_400, false));
        assert_eq!(line.due_ms(), lane::due_ms(1_000, 1_400), "whichever came first");
        line.insert(3, waiting(QueueMode::Followup, 9_000, false));
        assert_eq!(line.due_ms(), lane::due_ms(1_000, 1_400));
        line.remove(1).unwrap();
        assert_eq!(line.due_ms(), lane::due_ms(1_000, 1_000));
        line.remove(2).unwrap();
        assert_eq!(line.due_ms(), 0, "what is first is not collected");
        assert!(line.collected.is_empty());
    }

    #[test]
    fn a_cap_is_about_those_that_never_had_a_turn() {
        let mut line = Line::default();
        for seq in 1..=4 {
            line.insert(seq, waiting(QueueMode::Followup, 0, seq % 2 == 1));
        }
        assert_eq!(line.counted(), 2);
        let dropped: Vec<i64> = std::iter::from_fn(|| line.pop_counted()).map(|(seq, _)| seq).collect();
        assert_eq!((dropped, line.counted()), (vec![2, 4], 0));
        assert_eq!(line.first().map(|(seq, _)| seq), Some(1));
        line.remove(1).unwrap();
        line.remove(3).unwrap();
        assert!(line.is_empty() && line.revived == 0);
    }
}
