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

/// Of a conversation one turn goes on at a time, which several requests may share.
const TURNS: &str = "SELECT channel, conversation, group_concat(DISTINCT run_id) FROM nexus_requests WHERE status = 'processing'
  GROUP BY channel, conversation HAVING count(DISTINCT run_id) > 1";
/// To a target one reply is sent at a time.
const SENDS: &str = "SELECT channel, account_id || '/' || target, group_concat(idempotency_key) FROM deliveries WHERE status = 'sending'
  GROUP BY channel, account_id, target HAVING count(*) > 1";

impl CutOff {
    /// With what is marked as begun now.
    pub(super) fn add(&mut self, nexus: &Connection) -> Result<()> {
        let sql = "SELECT event_seq, attempts FROM nexus_requests WHERE status IN ('processing', 'interrupted')";
        let requests: Vec<(i64, u64)> = rows(nexus, sql, |row| Ok((row.get(0)?, row.get(1)?)))?;
        let sql = "SELECT idempotency_key, attempts FROM deliveries WHERE status = 'sending'";
        let replies: Vec<(String, u64)> = rows(nexus, sql, |row| Ok((row.get(0)?, row.get(1)?)))?;
        self.requests.extend(requests);
        self.replies.extend(replies);
        Ok(())
    }

    /// What was in hand at one time on channels of adapters, and should have come one after the other.
    pub(super) fn at_once(nexus: &Connection) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for (what, sql) in [("turns in conversation", TURNS), ("sends to", SENDS)] {
            let several: Vec<(String, String, String)> = rows(nexus, sql, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            let ours = several.into_iter().filter(|(channel, _, _)| Kind::parse(channel).is_some());
            found.extend(ours.map(|(channel, place, all)| format!("as it died the daemon had several {what} {channel} {place}: {all}")));
        }
        Ok(found)
    }

    /// How often that was of each reply: the daemon doesn't know how such a call ended.
    pub(super) fn sends(&self) -> HashMap<String, usize> {
        let mut sends = HashMap::new();
        self.replies.iter().for_each(|(key, _)| *sends.entry(key.clone()).or_default() += 1);
        sends
    }
}
