//! Events that were written to the daemon and are not yet acknowledged, in the order of writing.
//! Owns the meaning of the cumulative ack; it never writes, waits, or looks at a clock.

use std::collections::{HashMap, VecDeque};

use tokio::sync::oneshot;

/// Resolves once the event is committed; an error means that the answer will never come.
pub(super) type Waiting = oneshot::Receiver<()>;

/// Why an event cannot be taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotAdmitted {
    /// Every place is taken by an unacknowledged event.
    Full,
    /// The process is ending.
    Stopped,
}

#[derive(Debug)]
struct Entry {
    event_id: String,
    waiters: Vec<oneshot::Sender<()>>,
}

impl Entry {
    fn live_waiters(&self) -> usize {
        self.waiters.iter().filter(|waiter| !waiter.is_closed()).count()
    }
}

/// Unacknowledged events, oldest first.
#[derive(Debug)]
pub(super) struct InFlight {
    entries: VecDeque<Entry>,
    /// Event id to its number in writing order; the front entry has number `front`.
    numbers: HashMap<String, u64>,
    front: u64,
    limit: usize,
    stopped: bool,
}

impl InFlight {
    /// An empty queue for at most `limit` events.
    pub(super) fn new(limit: usize) -> Self {
        Self { entries: VecDeque::new(), numbers: HashMap::new(), front: 0, limit, stopped: false }
    }

    /// Waits for an event that is already written. `None` when it is not in flight.
    pub(super) fn join(&mut self, event_id: &str) -> Option<Waiting> {
        if self.stopped {
            return None;
        }
        let number = *self.numbers.get(event_id)?;
        let index = usize::try_from(number - self.front).ok()?;
        let entry = self.entries.get_mut(index)?;
        // A sender that retries for hours must not grow the list of those who gave up.
        entry.waiters.retain(|waiter| !waiter.is_closed());
        let (waiter, waiting) = oneshot::channel();
        entry.waiters.push(waiter);
        Some(waiting)
    }

    /// Takes up an event that the caller writes before it lets go of the queue, so that the order
    /// here is the order on the pipe. The caller has tried [`InFlight::join`] first.
    ///
    /// When full, the oldest event that nobody waits for gives way. Forgetting it is safe: its ack
    /// is then unknown and releases nothing, and a retry writes it again.
    pub(super) fn admit(&mut self, event_id: &str) -> Result<Waiting, NotAdmitted> {
        if self.stopped {
            return Err(NotAdmitted::Stopped);
        }
        if self.entries.len() >= self.limit && !self.forget_abandoned_front() {
            return Err(NotAdmitted::Full);
        }
        let (waiter, waiting) = oneshot::channel();
        let number = self.front + self.entries.len() as u64;
        self.numbers.insert(event_id.to_owned(), number);
        self.entries.push_back(Entry { event_id: event_id.to_owned(), waiters: vec![waiter] });
        Ok(waiting)
    }

    /// Applies an ack: `event_id` and everything written before it is committed. Returns how many
    /// requests were told; an unknown id changes nothing.
    pub(super) fn release(&mut self, event_id: &str) -> usize {
        let Some(number) = self.numbers.get(event_id).copied() else {
            return 0;
        };
        let mut told = 0;
        while self.front <= number {
            let Some(entry) = self.pop_front() else { break };
            for waiter in entry.waiters {
                told += usize::from(waiter.send(()).is_ok());
            }
        }
        told
    }

    /// Admits and joins no more; acks still release what waits.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Stops, and fails all who still wait.
    pub(super) fn abandon(&mut self) {
        self.stopped = true;
        self.entries.clear();
        self.numbers.clear();
    }

    /// How many events are unacknowledged.
    pub(super) fn unacknowledged(&self) -> usize {
        self.entries.len()
    }

    /// How many requests wait for an ack.
    pub(super) fn waiting(&self) -> usize {
        self.entries.iter().map(Entry::live_waiters).sum()
    }

    fn forget_abandoned_front(&mut self) -> bool {
        let abandoned = self.entries.front().is_some_and(|entry| entry.live_waiters() == 0);
        abandoned && self.pop_front().is_some()
    }

    fn pop_front(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.numbers.remove(&entry.event_id);
        self.front += 1;
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::sync::oneshot::error::TryRecvError;

    #[test]
    fn an_ack_covers_everything_written_before_it() {
        let mut queue = InFlight::new(8);
        let mut a = queue.admit("a").unwrap();
        let mut b = queue.admit("b").unwrap();
        let mut c = queue.admit("c").unwrap();
        assert_eq!(queue.release("b"), 2);
        assert_eq!(a.try_recv(), Ok(()));
        assert_eq!(b.try_recv(), Ok(()));
        assert_eq!(c.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(queue.release("c"), 1);
        assert_eq!(c.try_recv(), Ok(()));
        assert_eq!(queue.unacknowledged(), 0);
    }

    #[test]
    fn unknown_and_repeated_acks_release_nothing() {
        let mut queue = InFlight::new(8);
        let mut a = queue.admit("a").unwrap();
        assert_eq!(queue.release("never written"), 0);
        assert_eq!(a.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(queue.release("a"), 1);
        let mut b = queue.admit("b").unwrap();
        assert_eq!(queue.release("a"), 0);
        assert_eq!(b.try_recv(), Err(TryRecvError::Empty));
    }

    #[test]
    fn a_retry_joins_and_keeps_the_first_position() {
        let mut queue = InFlight::new(8);
        let mut first = queue.admit("a").unwrap();
        let mut between = queue.admit("b").unwrap();
        let mut retry = queue.join("a").unwrap();
        assert_eq!(queue.waiting(), 3);
        assert_eq!(queue.release("a"), 2);
        assert_eq!(first.try_recv(), Ok(()));
        assert_eq!(retry.try_recv(), Ok(()));
        assert_eq!(between.try_recv(), Err(TryRecvError::Empty));
        assert!(queue.join("a").is_none());
    }

    #[test]
    fn endless_retries_do_not_pile_up() {
        let mut queue = InFlight::new(8);
        drop(queue.admit("a").unwrap());
        for _ in 0..1000 {
            drop(queue.join("a").unwrap());
        }
        let last = queue.join("a").unwrap();
        assert_eq!(queue.entries[0].waiters.len(), 1);
        drop(last);
    }

    #[test]
    fn a_full_queue_gives_way_only_where_nobody_waits() {
        let mut queue = InFlight::new(2);
        let a = queue.admit("a").unwrap();
        let mut b = queue.admit("b").unwrap();
        assert_eq!(queue.admit("c").unwrap_err(), NotAdmitted::Full);
        drop(a);
        let mut c = queue.admit("c").unwrap();
        assert_eq!(queue.unacknowledged(), 2);
        // The ack of the forgotten event comes late and must not touch its successors.
        assert_eq!(queue.release("a"), 0);
        assert_eq!(b.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(queue.release("c"), 2);
        assert_eq!(c.try_recv(), Ok(()));
    }

    #[test]
    fn stopping_lets_acks_through_and_abandoning_fails_the_rest() {
        let mut queue = InFlight::new(8);
        let mut a = queue.admit("a").unwrap();
        let mut b = queue.admit("b").unwrap();
        queue.stop();
        assert_eq!(queue.admit("c").unwrap_err(), NotAdmitted::Stopped);
        assert!(queue.join("b").is_none());
        assert_eq!(queue.release("a"), 1);
        assert_eq!(a.try_recv(), Ok(()));
        queue.abandon();
        assert_eq!(b.try_recv(), Err(TryRecvError::Closed));
    }
}
