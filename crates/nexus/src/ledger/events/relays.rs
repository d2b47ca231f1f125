//! What came over Nostr, with how far each relay's answers are proven to be whole, in one transaction. A cursor
//! is never an event's time: those are whatever their authors wrote. What a Nostr event is for is decided once:
//! all of its rows are written together, or none.

use super::{Append, Appended};
use crate::ledger::writer::Weight;
use rusqlite::{Connection, params};
use std::sync::Arc;

/// Cursors that nobody moved for so long are forgotten: of relays and whitelists that were.
const FORGOTTEN_MS: i64 = 90 * 24 * 60 * 60 * 1000;
/// The name under which it is kept since when this daemon listens at all; it is of no relay.
pub const FIRST: &str = "first";

/// How far one relay's answers to one filter are whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayCursor {
    /// Its address; empty for what is of no relay.
    pub relay: String,
    /// The id of the subscription, which differs when the filter does.
    pub filter: String,
    /// Unix seconds: everything up to then was received.
    pub until: i64,
}

/// Appends events and moves the cursors that they bring with them. Of a Nostr event that the ledger knows
/// nothing is appended, whatever it would be for today: its first row has the Nostr event's own id, the others stand
/// right behind that.
#[derive(Debug, Clone)]
pub struct TakeIn {
    pub append: Append,
    pub cursors: Arc<Vec<RelayCursor>>,
    /// To where the cursors of all relays go back, in Unix seconds: something of that time is to be asked for again.
    pub back_to: Option<i64>,
    /// Unix ms.
    pub at: i64,
}

impl TakeIn {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Appended> {
        let appended = self.append_decided_once(connection)?;
        // A cursor beyond our own clock was left by one that was ahead.
        let sql = "INSERT INTO relay_cursors (relay, filter, until, updated_at) VALUES (?1, ?2, ?3, ?4)
                   ON CONFLICT (relay, filter) DO UPDATE SET updated_at = excluded.updated_at,
                     until = CASE WHEN until > excluded.updated_at / 1000 THEN excluded.until ELSE max(until, excluded.until) END";
        let mut upsert = connection.prepare_cached(sql)?;
        for cursor in &*self.cursors {
            upsert.execute(params![cursor.relay, cursor.filter, cursor.until, self.at])?;
        }
        if let Some(back_to) = self.back_to {
            let sql = "UPDATE relay_cursors SET until = ?1 WHERE until > ?1 AND relay <> ''";
            connection.prepare_cached(sql)?.execute([back_to])?;
        }
        if !self.cursors.is_empty() {
            let sql = "DELETE FROM relay_cursors WHERE updated_at < ?1 AND relay <> ''";
            connection.prepare_cached(sql)?.execute([self.at.saturating_sub(FORGOTTEN_MS)])?;
        }
        Ok(appended)
    }

    /// Which projects are known, and by which agents, may be another answer each time that a relay gives an event.
    fn append_decided_once(&self, connection: &Connection) -> rusqlite::Result<Appended> {
        let mut first: Option<(&str, bool)> = None;
        self.append.apply_by(connection, |event| {
            let id = nostr_event_of(&event.event_id);
            let is_first_new = first.filter(|(known, _)| *known == id && event.event_id != id).map(|(_, is_new)| is_new);
            if is_first_new == Some(false) {
                return Ok(None);
            }
            let seq = self.append.insert(connection, event)?;
            if is_first_new.is_none() {
                first = Some((id, seq.is_some()));
            }
            Ok(seq)
        })
    }
}

/// What all rows of one Nostr event have in common: their ids are that, `CHANNEL:ID`, and for further projects `:SLUG`.
pub(crate) fn nostr_event_of(event_id: &str) -> &str {
    event_id.match_indices(':').nth(1).map_or(event_id, |(end, _)| &event_id[..end])
}

impl Weight for TakeIn {
    fn bytes(&self) -> usize {
        self.append.bytes() + 128 * self.cursors.len()
    }
    fn rows(&self) -> usize {
        self.append.rows() + self.cursors.len() + usize::from(self.back_to.is_some())
    }
}

/// All cursors.
pub fn relay_cursors(connection: &Connection) -> rusqlite::Result<Vec<RelayCursor>> {
    let sql = "SELECT relay, filter, until FROM relay_cursors ORDER BY relay, filter";
    let read = |row: &rusqlite::Row<'_>| Ok(RelayCursor { relay: row.get(0)?, filter: row.get(1)?, until: row.get(2)? });
    connection.prepare_cached(sql)?.query_map([], read)?.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ledger::events::Lines;

    fn take(connection: &Connection, events: &[&str], until: i64, at: i64) -> Appended {
        let events = events.iter().map(|id| crate::samples::new_event(*id)).collect();
        let append = Append { adapter: "nostr".into(), account: "default".into(), lines: Arc::new(Lines { events, rejects: Vec::new() }) };
        let cursor = RelayCursor { relay: "ws://a".to_owned(), filter: "f".to_owned(), until };
        TakeIn { append, cursors: Arc::new(vec![cursor]), back_to: None, at }.apply(connection).unwrap()
    }

    fn until(connection: &Connection) -> i64 {
        relay_cursors(connection).unwrap()[0].until
    }

    #[test]
    fn a_cursor_only_moves_forward_unless_a_clock_was_ahead() {
        let connection = crate::samples::events_ledger();
        assert_eq!(take(&connection, &["fake:1", "fake:2"], 100, 200_000), [Some(1), Some(2)]);
        assert_eq!(take(&connection, &["fake:2"], 90, 210_000), [None], "known, whichever relay brings it");
        assert_eq!(until(&connection), 100);
        take(&connection, &[], 5_000, 5_000_000);
        assert_eq!(until(&connection), 5_000);
        take(&connection, &[], 300, 300_000);
        assert_eq!(until(&connection), 300, "the clock was ahead by an hour");
    }

    #[test]
    fn cursors_go_back_to_what_is_asked_for_again() {
        let connection = crate::samples::events_ledger();
        take(&connection, &[], 100, 100_000);
        let back = |to: i64| {
            let append = Append { adapter: "nostr".into(), account: "default".into(), lines: Arc::default() };
            TakeIn { append, cursors: Arc::default(), back_to: Some(to), at: 100_000 }.apply(&connection).unwrap();
            until(&connection)
        };
        assert_eq!((back(200), back(60), back(80)), (100, 60, 60), "never forward");
        take(&connection, &[], 90, 100_000);
        assert_eq!(until(&connection), 90, "once it came it is whole again");
    }

    #[test]
    fn what_a_nostr_event_is_for_is_decided_once() {
        let connection = crate::samples::events_ledger();
        let took = |events: &[&str]| -> Vec<bool> { take(&connection, events, 1, 1_000).iter().map(Option::is_some).collect() };
        assert_eq!(took(&["n:1", "n:1:b"]), [true, true], "both of one decision");
        assert_eq!(took(&["n:1", "n:1:a", "n:1:c", "n:2", "n:2:b"]), [false, false, false, true, true]);
        assert_eq!(took(&["n:3"]), [true]);
        assert_eq!(took(&["n:3", "n:3:a"]), [false, false], "one project was known before, and two are now");
        assert_eq!(took(&["n:4", "n:4", "n:4:a"]), [true, false, false], "twice in one lot");
        assert_eq!(["n:1", "n:1:b", "n"].map(nostr_event_of), ["n:1", "n:1", "n"]);
    }

    #[test]
    fn what_nobody_asks_any_more_is_forgotten() {
        let connection = crate::samples::events_ledger();
        take(&connection, &[], 100, 100_000);
        let other = RelayCursor { relay: "ws://b".to_owned(), filter: "f".to_owned(), until: 1 };
        let first = RelayCursor { relay: String::new(), filter: FIRST.to_owned(), until: 1 };
        let append = Append { adapter: "nostr".into(), account: "default".into(), lines: Arc::default() };
        let at = 100_000 + FORGOTTEN_MS;
        TakeIn { append: append.clone(), cursors: Arc::new(vec![first]), back_to: None, at: 1 }.apply(&connection).unwrap();
        TakeIn { append, cursors: Arc::new(vec![other]), back_to: None, at: at + 1 }.apply(&connection).unwrap();
        let left: Vec<String> = relay_cursors(&connection).unwrap().into_iter().map(|cursor| cursor.relay).collect();
        assert_eq!(left, ["", "ws://b"]);
    }
}
