//! How many accepted events of each account have no end yet: the bound behind `max_pending`.
//! Intake raises and waits, the router lowers.

use nexus_core::ids::AccountKey;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// The counts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Pending {
    accounts: Arc<Mutex<HashMap<AccountKey, watch::Sender<u64>>>>,
}

impl Pending {
    pub fn raise(&self, account: &AccountKey, by: u64) {
        if by > 0 {
            self.with(account, |count| count.send_modify(|count| *count += by));
        }
    }

    pub fn lower(&self, account: &AccountKey) {
        self.with(account, |count| count.send_modify(|count| *count = count.saturating_sub(1)));
    }

    /// A view of one account's count that can be waited on.
    pub fn watch(&self, account: &AccountKey) -> watch::Receiver<u64> {
        self.with(account, watch::Sender::subscribe)
    }

    /// All accounts together.
    pub fn total(&self) -> u64 {
        self.lock().values().map(|count| *count.borrow()).sum()
    }

    fn with<T>(&self, account: &AccountKey, act: impl FnOnce(&watch::Sender<u64>) -> T) -> T {
        let mut accounts = self.lock();
        match accounts.get(account) {
            Some(count) => act(count),
            None => act(accounts.entry(account.clone()).or_insert_with(|| watch::Sender::new(0))),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<AccountKey, watch::Sender<u64>>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
