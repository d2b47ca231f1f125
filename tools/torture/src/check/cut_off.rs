//! What deaths of the daemon cut off: a start decides about what the ledger had marked as begun, and what only waited has no
//! excuse to end badly.

use super::rows;
use crate::world::Kind;
use anyhow::Result;
use rusqlite::Connection;
use std::collections::{HashMap, HashSet};

/// By number and by key, each with its attempt.
#[derive(Debug, Default)]
pub(super) struct CutOff {
    pub(super) requests: HashSet<(i64, u64)>,
    pub(super) replies: HashSet<(String, u64)>,
}

impl CutOff {
    /// With what is marked as begun now; answers which requests of adapters that are.
    pub(super) fn add(&mut self, nexus: &Connection) -> Result<Vec<i64>> {
        let sql = "SELECT event_seq, attempts, channel FROM nexus_requests WHERE status IN ('processing', 'interrupted')";
        let requests: Vec<(i64, u64, String)> = rows(nexus, sql, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let sql = "SELECT idempotency_key, attempts FROM deliveries WHERE status = 'sending'";
        let replies: Vec<(String, u64)> = rows(nexus, sql, |row| Ok((row.get(0)?, row.get(1)?)))?;
        self.replies.extend(replies);
        self.requests.extend(requests.iter().map(|(seq, attempts, _)| (*seq, *attempts)));
        Ok(requests.into_iter().filter(|(_, _, channel)| Kind::parse(channel).is_some()).map(|(seq, _, _)| seq).collect())
    }

    /// How often that was of each reply: the daemon doesn't know how such a call ended.
    pub(super) fn sends(&self) -> HashMap<String, usize> {
        let mut sends = HashMap::new();
        self.replies.iter().for_each(|(key, _)| *sends.entry(key.clone()).or_default() += 1);
        sends
    }
}
