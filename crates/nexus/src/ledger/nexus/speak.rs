//! What leaves of an answer while its run is still under way: its blocks, and its stream. From the first on a rerun
//! would say something twice.

use super::Claim;
use super::deliveries::NewDelivery;
use crate::ledger::writer::Weight;
use rusqlite::{Connection, params};

/// A part of a running run's answer, on its way. As a stream it is `sending` at once: its first byte is about to leave.
#[derive(Debug, Clone)]
pub struct Speak {
    pub row: NewDelivery,
    pub run_id: String,
    pub is_stream: bool,
    pub at: i64,
    pub epoch: i64,
}

impl Speak {
    /// Lost when the run isn't under way, or is another daemon's.
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        let mark = "UPDATE runs SET spoke = 1
                    WHERE run_id = ?1 AND status = 'running' AND ?2 = (SELECT value FROM counters WHERE name = 'epoch')";
        if connection.prepare_cached(mark)?.execute(params![self.run_id, self.epoch])? == 0 {
            return Ok(Claim::Lost);
        }
        self.row.insert(connection, self.epoch)?;
        if self.is_stream {
            let send =
                "UPDATE deliveries SET status = 'sending', attempts = 1, updated_at = ?2 WHERE delivery_id = ?1 AND status = 'pending'";
            connection.prepare_cached(send)?.execute(params![self.row.delivery_id, self.at])?;
        }
        Ok(Claim::Done)
    }
}

/// What a stream has said, known when its run ends.
#[derive(Debug, Clone)]
pub struct StreamText {
    pub delivery_id: String,
    pub content: String,
    /// Until when it may be sent, should it turn out that it wasn't shown. Unix ms.
    pub expires_at: i64,
}

impl StreamText {
    pub(super) fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        let sql = "UPDATE deliveries SET content = ?2, expires_at = ?3 WHERE delivery_id = ?1";
        connection.prepare_cached(sql)?.execute(params![self.delivery_id, self.content, self.expires_at]).map(drop)
    }
}

/// A stream is over before its run is, and has said this.
#[derive(Debug, Clone)]
pub struct EndStream {
    pub text: StreamText,
    pub run_id: String,
    pub epoch: i64,
}

impl EndStream {
    /// Lost when the run isn't under way, or is another daemon's.
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        let sql = "SELECT 1 FROM runs WHERE run_id = ?1 AND status = 'running' AND ?2 = (SELECT value FROM counters WHERE name = 'epoch')";
        if !connection.prepare_cached(sql)?.exists(params![self.run_id, self.epoch])? {
            return Ok(Claim::Lost);
        }
        self.text.save(connection)?;
        Ok(Claim::Done)
    }
}

impl Weight for EndStream {
    fn bytes(&self) -> usize {
        self.text.content.len() + 256
    }
}

impl Weight for Speak {
    fn bytes(&self) -> usize {
        self.row.content.len() + 512
    }

    fn rows(&self) -> usize {
        2
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Admit, BeginEpoch, InterruptRun, ReviveRequest, StartRun, delivery};
    use super::*;
    use nexus_core::request::Status;

    /// A ledger in its first epoch with one request whose agent runs.
    fn ledger() -> Connection {
        let connection = crate::samples::nexus_ledger();
        BeginEpoch { at: 1 }.apply(&connection).unwrap();
        Admit { from_seq: 0, upto_seq: 1, rows: vec![crate::samples::row()], epoch: 1 }.apply(&connection).unwrap();
        let (run_id, agent, session) = ("run".to_owned(), "a".to_owned(), "s".to_owned());
        let start = StartRun { event_seq: 1, fellows: Vec::new(), run_id, agent, session, acted: false, audit: None, at: 2, epoch: 1 };
        start.apply(&connection).unwrap();
        connection
    }

    fn speak(connection: &Connection, id: &str, is_stream: bool, epoch: i64) -> Claim {
        let content = if is_stream { "" } else { "a block" }.to_owned();
        let row = NewDelivery { content, ..crate::samples::delivery(id) };
        Speak { row, run_id: "run".to_owned(), is_stream, at: 3, epoch }.apply(connection).unwrap()
    }

    fn found(connection: &Connection, id: &str) -> (String, u32, String) {
        let row = delivery(connection, id).unwrap().unwrap();
        (row.status, row.attempts, row.content)
    }

    #[test]
    fn a_block_waits_and_a_stream_is_on_its_way_and_both_count_once() {
        let connection = ledger();
        for _ in 0..2 {
            assert_eq!(speak(&connection, "block", false, 1), Claim::Done);
            assert_eq!(speak(&connection, "stream", true, 1), Claim::Done);
        }
        assert_eq!(found(&connection, "block"), ("pending".to_owned(), 0, "a block".to_owned()));
        assert_eq!(found(&connection, "stream"), ("sending".to_owned(), 1, String::new()));
        StreamText { delivery_id: "stream".to_owned(), content: "all".to_owned(), expires_at: 77 }.save(&connection).unwrap();
        assert_eq!(found(&connection, "stream").2, "all");
        assert_eq!(delivery(&connection, "stream").unwrap().unwrap().expires_at, 77);
    }

    #[test]
    fn a_stream_has_its_text_before_its_run_is_over() {
        let connection = ledger();
        speak(&connection, "stream", true, 1);
        let end = |content: &str, epoch: i64| {
            let text = StreamText { delivery_id: "stream".to_owned(), content: content.to_owned(), expires_at: 9 };
            EndStream { text, run_id: "run".to_owned(), epoch }.apply(&connection).unwrap()
        };
        assert_eq!((end("none of its own", 2), end("a part", 1), end("a part", 1)), (Claim::Lost, Claim::Done, Claim::Done));
        assert_eq!(found(&connection, "stream"), ("sending".to_owned(), 1, "a part".to_owned()));
    }

    #[test]
    fn nothing_leaves_of_a_run_that_is_over_or_another_daemons() {
        let connection = ledger();
        assert_eq!(speak(&connection, "d", false, 2), Claim::Lost);
        let run_id = "run".to_owned();
        InterruptRun { event_seq: 1, fellows: Vec::new(), run_id, turn_json: None, stream: None, at: 4, epoch: 1 }
            .apply(&connection)
            .unwrap();
        assert_eq!(speak(&connection, "d", true, 1), Claim::Lost);
        assert!(delivery(&connection, "d").unwrap().is_none());
    }

    #[test]
    fn a_start_knows_that_something_left_and_a_rerun_takes_back_what_has_not() {
        let connection = ledger();
        speak(&connection, "stream", true, 1);
        speak(&connection, "block", false, 1);
        let begun = BeginEpoch { at: 9 }.apply(&connection).unwrap();
        assert!(begun.interrupted[0].spoke && !begun.interrupted[0].acted);
        assert_eq!(found(&connection, "stream").0, "uncertain");
        let (to, epoch) = (Status::Waiting, begun.epoch);
        let revive = ReviveRequest { event_seq: 1, to, reason: None, trace: None, delivery: None, at: 9, epoch };
        assert_eq!(revive.apply(&connection).unwrap(), Claim::Done);
        assert_eq!(found(&connection, "block").0, "discarded");
        assert_eq!(found(&connection, "stream").0, "uncertain");
    }
}
