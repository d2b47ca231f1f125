//! A delivery that turns out to be too long for one message of its channel becomes several, in its place. Where it is
//! cut its lane decides.

use super::Claim;
use super::deliveries::{NewDelivery, was_done};
use crate::ledger::optional;
use crate::ledger::writer::Weight;
use rusqlite::{Connection, params};

/// What was one delivery is several from here on.
#[derive(Debug, Clone)]
pub struct SplitDelivery {
    pub delivery_id: String,
    /// The first piece, which has the row from now on, and its key.
    pub content: String,
    pub idempotency_key: String,
    /// The other pieces, in order.
    pub others: Vec<NewDelivery>,
    pub at: i64,
    pub epoch: i64,
}

/// The last row of all.
const LAST: &str = "SELECT max(seq) FROM deliveries";
const TAKE_OVER: &str = "UPDATE deliveries SET content = ?2, idempotency_key = ?3, next_attempt_at = NULL, updated_at = ?4, epoch = ?5
  WHERE delivery_id = ?1 AND status = 'pending' AND content != ?2 AND ?5 = (SELECT value FROM counters WHERE name = 'epoch')
  RETURNING seq";
/// The order of rows is the order in which they leave: what waits for the same target goes behind the pieces. The
/// first condition names that of a partial index.
const MOVE: &str = "UPDATE deliveries SET seq = seq + ?1
  WHERE status IN ('pending', 'sending', 'uncertain') AND status = 'pending' AND seq > ?2 AND seq <= ?3
    AND (channel, account_id, target) = (SELECT channel, account_id, target FROM deliveries WHERE delivery_id = ?4)";

impl SplitDelivery {
    /// Lost when the delivery doesn't wait any more, or is another daemon's.
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        let last: i64 = connection.prepare_cached(LAST)?.query_row([], |row| row.get::<_, Option<i64>>(0))?.unwrap_or(0);
        let row = (&self.delivery_id, &self.content, &self.idempotency_key, self.at, self.epoch);
        let Some(first) = optional(connection.prepare_cached(TAKE_OVER)?.query_row(row, |row| row.get::<_, i64>(0)))? else {
            return was_done(connection, &self.delivery_id, "pending", self.at, self.epoch);
        };
        for piece in &self.others {
            piece.insert(connection, self.epoch)?;
        }
        let now_last: i64 = connection.prepare_cached(LAST)?.query_row([], |row| row.get(0))?;
        connection.prepare_cached(MOVE)?.execute(params![now_last - first, first, last, self.delivery_id])?;
        Ok(Claim::Done)
    }
}

impl Weight for SplitDelivery {
    fn bytes(&self) -> usize {
        self.content.len() + 256 + self.others.iter().map(|piece| piece.content.len() + 256).sum::<usize>()
    }

    fn rows(&self) -> usize {
        1 + self.others.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{BeginEpoch, ClaimDelivery, open_deliveries};
    use super::*;

    fn add(connection: &Connection, id: &str, target: &str) {
        let content = format!("all of {id}");
        NewDelivery { content, target: target.to_owned(), ..crate::samples::delivery(id) }.insert(connection, 1).unwrap();
    }

    /// A ledger in its first epoch in which `long` waits, and behind it others for the same target and for another.
    fn ledger() -> Connection {
        let connection = crate::samples::nexus_ledger();
        BeginEpoch { at: 1 }.apply(&connection).unwrap();
        for (id, target) in [("before", "p"), ("long", "p"), ("elsewhere", "q"), ("behind", "p"), ("last", "p")] {
            add(&connection, id, target);
        }
        connection
    }

    fn split(at: i64, epoch: i64) -> SplitDelivery {
        let piece = |n: u32| NewDelivery {
            idempotency_key: format!("long/{n}"),
            content: format!("piece {n}"),
            ..crate::samples::delivery(&format!("long-{n}"))
        };
        let (delivery_id, idempotency_key) = ("long".to_owned(), "long/1".to_owned());
        SplitDelivery { delivery_id, idempotency_key, content: "piece 1".to_owned(), others: vec![piece(2), piece(3)], at, epoch }
    }

    fn waiting(connection: &Connection, target: &str) -> Vec<String> {
        let all = open_deliveries(connection).unwrap().into_iter().filter(|row| row.target == target);
        all.map(|row| row.idempotency_key).collect()
    }

    #[test]
    fn pieces_have_the_place_of_the_whole_and_a_repetition_changes_nothing() {
        let connection = ledger();
        for _ in 0..2 {
            assert_eq!(split(5, 1).apply(&connection).unwrap(), Claim::Done);
            assert_eq!(waiting(&connection, "p"), ["before", "long/1", "long/2", "long/3", "behind", "last"]);
            assert_eq!(waiting(&connection, "q"), ["elsewhere"]);
        }
        let texts = open_deliveries(&connection).unwrap().into_iter().map(|row| row.content).filter(|text| text.starts_with("piece"));
        assert_eq!(texts.collect::<Vec<_>>(), ["piece 1", "piece 2", "piece 3"]);
        add(&connection, "new", "p");
        assert_eq!(waiting(&connection, "p").last().map(String::as_str), Some("new"));
    }

    #[test]
    fn what_is_on_its_way_or_another_daemons_stays_whole() {
        let connection = ledger();
        assert_eq!(split(5, 2).apply(&connection).unwrap(), Claim::Lost);
        ClaimDelivery { delivery_id: "long".to_owned(), at: 5, epoch: 1 }.apply(&connection).unwrap();
        assert_eq!(split(6, 1).apply(&connection).unwrap(), Claim::Lost);
        assert_eq!(waiting(&connection, "p"), ["before", "behind", "last"]);
    }
}
