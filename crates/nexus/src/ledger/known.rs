//! Answers of a ledger that are kept in memory, each until a command is committed that may change one. It never reads;
//! which commands these are, they say themselves ([`super::writer::Command::outdates`]).

use super::writer::{Command, Writer, WriterStats};
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Answers kept at once. Before there are more, all are forgotten.
const KEPT_MAX: usize = 1_024;

/// What is known by now.
pub struct Known<K, V> {
    stats: Arc<WriterStats>,
    kept: Mutex<Kept<K, V>>,
}

struct Kept<K, V> {
    /// Of which all of these are.
    version: u64,
    answers: HashMap<K, V>,
}

impl<K, V> fmt::Debug for Known<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").field("version", &self.version()).finish_non_exhaustive()
    }
}

impl<K, V> Known<K, V> {
    /// Nothing is known yet of what this one writes.
    pub fn of<C: Command>(writer: &Writer<C>) -> Self {
        Self { stats: writer.stats().clone(), kept: Mutex::new(Kept { version: 0, answers: HashMap::new() }) }
    }

    /// To be taken before the ledger is asked: what is changed meanwhile makes the answer an old one.
    pub fn version(&self) -> u64 {
        self.stats.version()
    }

    fn lock(&self) -> MutexGuard<'_, Kept<K, V>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, V: Clone> Known<K, V> {
    /// The answer, if nothing has changed since it was given.
    pub fn get(&self, key: &K) -> Option<V> {
        let kept = self.lock();
        if kept.version == self.version() { kept.answers.get(key).cloned() } else { None }
    }

    /// Keeps an answer of the ledger, which was asked after this `version` was taken.
    pub fn keep(&self, version: u64, key: K, answer: V) {
        let mut kept = self.lock();
        if version < kept.version {
            return;
        }
        if version > kept.version || kept.answers.len() >= KEPT_MAX {
            *kept = Kept { version, answers: HashMap::new() };
        }
        kept.answers.insert(key, answer);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ledger::identity::{ApplyContacts, IdentityCommand, Unlink};
    use crate::ledger::start;
    use crate::samples;

    #[tokio::test]
    async fn an_answer_is_kept_until_a_command_that_may_change_it_is_answered() {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, _threads) = start::<IdentityCommand>(directory.path(), 0).unwrap();
        let known = Known::of(&ledger.writer);
        known.keep(known.version(), "u", "nobody");
        ledger.writer.write(ApplyContacts { upto_seq: 1, senders: Default::default() }).await.unwrap();
        assert_eq!((known.get(&"u"), known.get(&"v")), (Some("nobody"), None), "who wrote says nothing about who is who");
        let asked_before = known.version();
        ledger.writer.write(samples::link()).await.unwrap().unwrap();
        assert_eq!(known.get(&"u"), None);
        known.keep(asked_before, "u", "nobody");
        assert_eq!(known.get(&"u"), None, "the ledger may have been asked before");
        known.keep(known.version(), "u", "ann");
        known.keep(asked_before, "u", "nobody");
        assert_eq!(known.get(&"u"), Some("ann"), "a late one puts none away");
        ledger.writer.write(Unlink { channel: "fake".to_owned(), sender_id: "u".to_owned() }).await.unwrap();
        assert_eq!(known.get(&"u"), None);
    }

    #[tokio::test]
    async fn no_more_is_kept_than_may() {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, _threads) = start::<IdentityCommand>(directory.path(), 0).unwrap();
        let known = Known::of(&ledger.writer);
        for n in 0..KEPT_MAX + 10 {
            known.keep(0, n, n);
        }
        assert_eq!(known.lock().answers.len(), 10);
        assert_eq!(known.get(&KEPT_MAX), Some(KEPT_MAX));
    }
}
