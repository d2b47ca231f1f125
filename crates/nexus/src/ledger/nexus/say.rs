//! What plugins and automations say: messages that no run makes. One is there once by its key, however
//! often and by whichever daemon it is asked for.

use super::deliveries::NewDelivery;
use super::{Claim, counter};
use crate::ledger::writer::Weight;
use rusqlite::{Connection, params};

/// The `event_seq` of a message that belongs to no request; its `request_id` is empty.
pub const NO_REQUEST_SEQ: i64 = 0;

/// A message in one piece or several, of which all are written or none.
#[derive(Debug, Clone)]
pub struct Say {
    /// The key of the whole. A single piece has it as its own; of several each has it with `/1`, `/2`, ... behind.
    pub key: String,
    /// In order, all of one request.
    pub pieces: Vec<NewDelivery>,
    pub epoch: i64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Now,
    /// It was said before under this key; these are its pieces, in order.
    Before {
        delivery_ids: Vec<String>,
    },
    /// Its request isn't there (yet), or another daemon has begun.
    Lost,
}

impl Say {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Said> {
        let before = pieces_of(connection, &self.key)?;
        if !before.is_empty() {
            // Its own earlier attempt, of which nobody heard, is no earlier message.
            let is_same = before.iter().eq(self.pieces.iter().map(|piece| &piece.delivery_id));
            return Ok(if is_same { Said::Now } else { Said::Before { delivery_ids: before } });
        }
        if counter(connection, "epoch")? != self.epoch || self.awaits_request(connection)? == Claim::Lost {
            return Ok(Said::Lost);
        }
        for piece in &self.pieces {
            piece.insert(connection, self.epoch)?;
        }
        Ok(Said::Now)
    }

    /// A message ahead of the row of its request would be left behind by a crash, and said again under
    /// the id that the request is given then.
    fn awaits_request(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        let Some(first) = self.pieces.first().filter(|piece| piece.event_seq != NO_REQUEST_SEQ) else { return Ok(Claim::Done) };
        let sql = "SELECT count(*) FROM nexus_requests WHERE event_seq = ?1 AND request_id = ?2";
        let found: i64 = connection.prepare_cached(sql)?.query_row(params![first.event_seq, first.request_id], |row| row.get(0))?;
        Ok(if found == 1 { Claim::Done } else { Claim::Lost })
    }
}

/// The pieces of the message with this key, in order. No key has a `/` but what is put behind one, and
/// `0` is the character after it.
fn pieces_of(connection: &Connection, key: &str) -> rusqlite::Result<Vec<String>> {
    connection.prepare_cached(PIECES)?.query_map([key], |row| row.get(1))?.collect()
}

const PIECES: &str = "SELECT seq, delivery_id FROM deliveries WHERE idempotency_key = ?1
  UNION ALL SELECT seq, delivery_id FROM deliveries WHERE idempotency_key > ?1 || '/' AND idempotency_key < ?1 || '0'
  ORDER BY 1";

/// The channel of an adapter, as any of its accounts last said.
pub fn channel_of(connection: &Connection, adapter: &str) -> rusqlite::Result<Option<String>> {
    let sql = "SELECT max(channel) FROM adapter_instances WHERE adapter = ?1";
    connection.prepare_cached(sql)?.query_row([adapter], |row| row.get(0))
}

impl Weight for Say {
    fn bytes(&self) -> usize {
        256 + self.pieces.iter().map(|piece| piece.content.len() + 256).sum::<usize>()
    }

    fn rows(&self) -> usize {
        self.pieces.len().max(1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Admit, BeginEpoch};
    use super::*;

    /// A ledger in its first epoch, in which the request of event 1 is admitted.
    fn ledger() -> Connection {
        let connection = crate::samples::nexus_ledger();
        BeginEpoch { at: 1 }.apply(&connection).unwrap();
        Admit { from_seq: 0, upto_seq: 1, rows: vec![crate::samples::row()], epoch: 1 }.apply(&connection).unwrap();
        connection
    }

    fn say(key: &str, ids: &[&str]) -> Say {
        let piece = |(n, id): (usize, &&str)| {
            let idempotency_key = if ids.len() > 1 { format!("{key}/{}", n + 1) } else { key.to_owned() };
            NewDelivery { run_id: None, idempotency_key, content: "hello".to_owned(), expires_at: 1_000, ..crate::samples::delivery(id) }
        };
        Say { key: key.to_owned(), pieces: ids.iter().enumerate().map(piece).collect(), epoch: 1 }
    }

    fn rows(connection: &Connection) -> Vec<String> {
        let sql = "SELECT delivery_id || ' ' || idempotency_key FROM deliveries ORDER BY seq";
        connection.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn a_key_is_said_once_in_however_many_pieces() {
        let connection = ledger();
        assert_eq!(say("k", &["a"]).apply(&connection).unwrap(), Said::Now);
        assert_eq!(say("k", &["a"]).apply(&connection).unwrap(), Said::Now, "the same command, repeated");
        let before = Said::Before { delivery_ids: vec!["a".to_owned()] };
        assert_eq!(say("k", &["b"]).apply(&connection).unwrap(), before);
        assert_eq!(say("k", &["b", "c"]).apply(&connection).unwrap(), before, "said differently");
        assert_eq!(say("k2", &["d", "e"]).apply(&connection).unwrap(), Said::Now);
        let before = Said::Before { delivery_ids: vec!["d".to_owned(), "e".to_owned()] };
        assert_eq!(say("k2", &["f"]).apply(&connection).unwrap(), before);
        assert_eq!(rows(&connection), ["a k", "d k2/1", "e k2/2"]);
    }

    #[test]
    fn a_key_that_begins_like_another_is_another() {
        let connection = ledger();
        for key in ["k:1", "k:10", "k:1.5", "k:1-", "k:1_"] {
            assert_eq!(say(key, &[key]).apply(&connection).unwrap(), Said::Now, "{key}");
        }
        assert_eq!(rows(&connection).len(), 5);
    }

    #[test]
    fn nothing_is_said_ahead_of_its_request_or_by_a_former_daemon() {
        let connection = ledger();
        let mut early = say("k", &["a"]);
        early.pieces[0].event_seq = 2;
        assert_eq!(early.apply(&connection).unwrap(), Said::Lost);
        let mut other = say("k", &["a"]);
        other.pieces[0].request_id = "req_2".to_owned();
        assert_eq!(other.apply(&connection).unwrap(), Said::Lost);
        BeginEpoch { at: 2 }.apply(&connection).unwrap();
        assert_eq!(say("k", &["a"]).apply(&connection).unwrap(), Said::Lost);
        assert!(rows(&connection).is_empty());
    }

    #[test]
    fn what_has_no_request_needs_none() {
        let connection = ledger();
        let mut message = say("plugin:p:k", &["a"]);
        (message.pieces[0].event_seq, message.pieces[0].request_id) = (NO_REQUEST_SEQ, String::new());
        assert_eq!(message.apply(&connection).unwrap(), Said::Now);
    }

    #[test]
    fn no_key_is_looked_for_in_the_whole_table() {
        let connection = ledger();
        let mut asked = connection.prepare(&format!("EXPLAIN QUERY PLAN {PIECES}")).unwrap();
        let plan: Vec<String> = asked.query_map(["k"], |row| row.get(3)).unwrap().map(Result::unwrap).collect();
        assert!(plan.iter().all(|step| !step.starts_with("SCAN")), "{plan:?}");
    }

    #[test]
    fn the_channel_is_what_any_account_said() {
        let connection = ledger();
        assert_eq!(channel_of(&connection, "fake").unwrap(), None);
        let sql = "INSERT INTO adapter_instances (adapter, account, status, health, channel, updated_at, epoch)
                   VALUES ('fake', 'a', 'stopped', 'unknown', NULL, 1, 1), ('fake', 'b', 'running', 'healthy', 'mail', 1, 1)";
        connection.execute_batch(sql).unwrap();
        assert_eq!(channel_of(&connection, "fake").unwrap().as_deref(), Some("mail"));
        assert_eq!(channel_of(&connection, "other").unwrap(), None);
    }
}
