//! How far the ledgers have come, and whether they fit together: each file is whole by itself, and an old copy of one among
//! the others is too. Only reads.

use super::events::{SENT_SOURCE, last_seq};
use super::nexus::counter;
use super::{Ledger, ReadError, Readers, agents, follow, identity};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How far each ledger had come, and how far its followers had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// The newest event.
    pub last_seq: i64,
    pub intake_seq: i64,
    pub finish_seq: i64,
    pub sent_seq: i64,
    pub epoch: i64,
    /// What `agents.db` has of `finish_seq`.
    pub agents_applied: i64,
    /// What `identity.db` has of `last_seq`.
    pub identity_applied: i64,
    /// What `events.db` has of `sent_seq`. It may be ahead in a backup, which copies `events.db` last.
    pub sent_applied: i64,
}

impl Counters {
    /// Of the four ledgers in `directory`, which have their tables.
    ///
    /// # Errors
    /// [`ReadError`] of the first that can't be read.
    pub(crate) fn read(directory: &Path) -> Result<Self, ReadError> {
        let ask = |ledger: Ledger| Readers::new(directory.join(ledger.file_name()));
        let (last_seq, sent_applied) =
            ask(Ledger::Events).read_now(|connection| Ok((last_seq(connection)?, follow::applied(connection, SENT_SOURCE)?)))?;
        let of_nexus = |name: &'static str| ask(Ledger::Nexus).read_now(move |connection| counter(connection, name));
        Ok(Self {
            last_seq,
            intake_seq: of_nexus("intake_seq")?,
            finish_seq: of_nexus("finish_seq")?,
            sent_seq: of_nexus("sent_seq")?,
            epoch: of_nexus("epoch")?,
            agents_applied: ask(Ledger::Agents).read_now(|connection| follow::applied(connection, agents::SOURCE))?,
            identity_applied: ask(Ledger::Identity).read_now(|connection| follow::applied(connection, identity::SOURCE))?,
            sent_applied,
        })
    }

    /// The first mark that points behind the end of what it follows, if one does: the one file is older than the other.
    pub(crate) fn out_of_step(&self) -> Option<&'static str> {
        let rules = [
            (self.identity_applied > self.last_seq, "identity.db is ahead of events.db"),
            (self.agents_applied > self.finish_seq, "agents.db is ahead of nexus.db"),
            (self.intake_seq > self.last_seq, "nexus.db is ahead of events.db"),
        ];
        rules.into_iter().find_map(|(broken, what)| broken.then_some(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_behind_the_end_of_what_it_follows_is_found() {
        let good = Counters { last_seq: 5, intake_seq: 5, finish_seq: 3, agents_applied: 3, identity_applied: 4, ..Counters::default() };
        assert_eq!(good.out_of_step(), None);
        assert_eq!(Counters { sent_applied: 9, ..good }.out_of_step(), None, "events.db is copied last");
        for bad in [Counters { agents_applied: 4, ..good }, Counters { identity_applied: 6, ..good }, Counters { intake_seq: 6, ..good }] {
            assert!(bad.out_of_step().is_some(), "{bad:?}");
        }
    }
}
