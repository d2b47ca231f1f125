//! How many accepted events of each account have no end yet: the bound behind `max_pending`.
//! Intake raises and waits, the router lowers. Which of the two comes first doesn't matter: another
//! account's commit may show an event to the router before its own intake has counted it. Of the authors of Nostr, who
//! share one account, the router keeps their own counts as well.

use nexus_core::ids::AccountKey;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The counts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Pending {
    accounts: Arc<Mutex<HashMap<AccountKey, watch::Sender<i64>>>>,
    authors: Arc<Mutex<Authors>>,
}

#[derive(Debug, Default)]
struct Authors {
    open: HashMap<String, u64>,
    /// The newest seq that was counted, or is of somebody else.
    upto: i64,
}

/// A request of an author's that has no end yet; it counts as long as this lives.
#[derive(Debug)]
pub struct OfAuthor {
    author: String,
    authors: Arc<Mutex<Authors>>,
}

impl Drop for OfAuthor {
    fn drop(&mut self) {
        let mut authors = lock(&self.authors);
        if let Some(open) = authors.open.get_mut(&self.author) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                authors.open.remove(&self.author);
            }
        }
    }
}

impl Pending {
    /// So many more of an account's events are accepted and have no end yet.
    pub fn raise(&self, account: &AccountKey, by: u64) {
        if by > 0 {
            let by = i64::try_from(by).unwrap_or(i64::MAX);
            self.with(account, |count| count.send_modify(|count| *count = count.saturating_add(by)));
        }
    }

    /// One of them has its end.
    pub fn lower(&self, account: &AccountKey) {
        self.with(account, |count| count.send_modify(|count| *count = count.saturating_sub(1)));
    }

    /// A view of one account's count that can be waited on; below 0 for a moment when events end before
    /// they are counted.
    pub fn watch(&self, account: &AccountKey) -> watch::Receiver<i64> {
        self.with(account, watch::Sender::subscribe)
    }

    /// All accounts together.
    pub fn total(&self) -> u64 {
        lock(&self.accounts).values().map(|count| u64::try_from(*count.borrow()).unwrap_or(0)).sum()
    }

    /// Counts a request of an author's.
    pub fn open(&self, seq: i64, author: &str) -> OfAuthor {
        let mut authors = lock(&self.authors);
        *authors.open.entry(author.to_owned()).or_default() += 1;
        authors.upto = authors.upto.max(seq);
        OfAuthor { author: author.to_owned(), authors: self.authors.clone() }
    }

    /// Notes that the router knows the request of this seq, whose author it doesn't.
    pub fn pass(&self, seq: i64) {
        let mut authors = lock(&self.authors);
        authors.upto = authors.upto.max(seq);
    }

    /// Requests of an author's without an end, of those that came since the start.
    pub fn of_author(&self, author: &str) -> u64 {
        lock(&self.authors).open.get(author).copied().unwrap_or(0)
    }

    /// Up to which seq [`Self::of_author`] counts.
    pub fn counted_upto(&self) -> i64 {
        lock(&self.authors).upto
    }

    fn with<T>(&self, account: &AccountKey, act: impl FnOnce(&watch::Sender<i64>) -> T) -> T {
        let mut accounts = lock(&self.accounts);
        match accounts.get(account) {
            Some(count) => act(count),
            None => act(accounts.entry(account.clone()).or_insert_with(|| watch::Sender::new(0))),
        }
    }
}

fn lock<T>(counts: &Mutex<T>) -> MutexGuard<'_, T> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_before_the_count_is_not_lost() {
        let (pending, account) = (Pending::default(), AccountKey::new("fake", "me"));
        pending.lower(&account);
        assert_eq!(pending.total(), 0);
        pending.raise(&account, 3);
        assert_eq!((*pending.watch(&account).borrow(), pending.total()), (2, 2));
    }

    #[test]
    fn a_request_counts_for_its_author_until_it_is_let_go() {
        let pending = Pending::default();
        let (first, second) = (pending.open(3, "a"), pending.open(7, "a"));
        pending.pass(5);
        assert_eq!((pending.of_author("a"), pending.of_author("b"), pending.counted_upto()), (2, 0, 7));
        drop(first);
        drop(second);
        assert_eq!((pending.of_author("a"), lock(&pending.authors).open.len()), (0, 0));
    }
}
