//! How many accepted events of each account have no end yet: the bound behind `max_pending`.
//! Intake raises and waits, the router lowers. Which of the two comes first doesn't matter: another
//! account's commit may show an event to the router before its own intake has counted it.

use nexus_core::ids::AccountKey;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// The counts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Pending {
    accounts: Arc<Mutex<HashMap<AccountKey, watch::Sender<i64>>>>,
}

impl Pending {
    pub fn raise(&self, account: &AccountKey, by: u64) {
        if by > 0 {
            let by = i64::try_from(by).unwrap_or(i64::MAX);
            self.with(account, |count| count.send_modify(|count| *count = count.saturating_add(by)));
        }
    }

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
        self.lock().values().map(|count| u64::try_from(*count.borrow()).unwrap_or(0)).sum()
    }

    fn with<T>(&self, account: &AccountKey, act: impl FnOnce(&watch::Sender<i64>) -> T) -> T {
        let mut accounts = self.lock();
        match accounts.get(account) {
            Some(count) => act(count),
            None => act(accounts.entry(account.clone()).or_insert_with(|| watch::Sender::new(0))),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<AccountKey, watch::Sender<i64>>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
}
