//! An event once more, because a person asked for it: a copy of its row under an id of its own. It never
//! moves a cursor, since it says nothing about how far its account has come.

use super::key;
use crate::ledger::optional;
use crate::ledger::writer::Weight;
use rusqlite::{Connection, params};

/// Repeats a recorded event. Under the same key that is done once.
#[derive(Debug, Clone)]
pub struct Replay {
    /// The event that is repeated, which may be a replay itself.
    pub of_seq: i64,
    pub channel: String,
    /// The id of the first event; all its replays name it.
    pub replay_of: String,
    pub key: String,
    pub received_at: i64,
}

/// Where a replay stands in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    pub seq: i64,
    /// False when an earlier call had written it.
    pub is_new: bool,
}

/// The event id of a replay.
pub fn replay_id(replay_of: &str, key: &str) -> String {
    format!("{replay_of}#replay:{key}")
}

/// What begins the key of a replay that the daemon asked for itself, because the event had waited for its project.
const WAITED: &str = "waited-";

/// The key of the replay of an event that waited, by its place.
pub fn waited_key(event_seq: i64) -> String {
    format!("{WAITED}{event_seq}")
}

/// Whether this is the id of the replay of an event that waited.
pub fn is_of_wait(event_id: &str) -> bool {
    event_id.rsplit_once("#replay:").is_some_and(|(_, key)| key.starts_with(WAITED))
}

impl Replay {
    /// `None` when there is no such event that came in, or its replay's id is another event's.
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Option<Replayed>> {
        let event_id = replay_id(&self.replay_of, &self.key);
        let unique = key(&self.channel, &event_id);
        let copy = "INSERT INTO events (key, event_id, channel, account_id, adapter, direction, sender_id, sender_name, peer_id, peer_kind,
                      thread_id, reply_to_id, content_type, timestamp, received_at, disposition, replay_of, content, attachments, metadata)
                    SELECT ?2, ?3, channel, account_id, adapter, direction, sender_id, sender_name, peer_id, peer_kind,
                      thread_id, reply_to_id, content_type, timestamp, ?4, 'run', ?5, content, attachments, metadata
                    FROM events WHERE seq = ?1 AND direction = 'inbound' ON CONFLICT (key) DO NOTHING";
        let mut copy = connection.prepare_cached(copy)?;
        if copy.execute(params![self.of_seq, unique, event_id, self.received_at, self.replay_of])? == 1 {
            return Ok(Some(Replayed { seq: connection.last_insert_rowid(), is_new: true }));
        }
        let known = "SELECT seq FROM events WHERE key = ?1 AND replay_of = ?2";
        let seq = optional(connection.prepare_cached(known)?.query_row(params![unique, self.replay_of], |row| row.get(0)))?;
        Ok(seq.map(|seq| Replayed { seq, is_new: false }))
    }
}

impl Weight for Replay {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ledger::events::{
        Append, Disposition, Lines, NewEvent, StoredEvent, by_seq, cursor, newest_slot, page_after, replays_of, senders_after,
    };
    use nexus_core::event::PeerKind;
    use std::sync::Arc;

    /// A ledger with one event: of this channel and id, and with all that an event may have.
    fn ledger(channel: &str, event_id: &str, disposition: Disposition) -> Connection {
        let connection = crate::samples::events_ledger();
        let event = NewEvent {
            event_id: event_id.to_owned(),
            channel: channel.to_owned(),
            account_id: "me".to_owned(),
            sender_id: "u".to_owned(),
            sender_name: Some("U".to_owned()),
            peer_id: "p".to_owned(),
            peer_kind: PeerKind::Group,
            thread_id: Some("t".to_owned()),
            reply_to_id: Some("r".to_owned()),
            content_type: "text".to_owned(),
            content: "hello".to_owned(),
            attachments: Some("[{\"id\":\"a\"}]".to_owned()),
            metadata: Some("{\"m\":1}".to_owned()),
            timestamp: 3_000,
            received_at: 5_000,
            disposition,
        };
        let lines = Arc::new(Lines { events: vec![event], rejects: Vec::new() });
        Append { adapter: "fake".into(), account: "me".into(), lines }.apply(&connection).unwrap();
        connection
    }

    fn replay(connection: &Connection, of_seq: i64, key: &str) -> Option<Replayed> {
        let event = by_seq(connection, of_seq).unwrap();
        let replay_of = event.as_ref().map_or_else(|| "fake:1".to_owned(), |event| event.first_id().to_owned());
        let channel = event.map_or_else(|| "fake".to_owned(), |event| event.event.channel);
        Replay { of_seq, channel, replay_of, key: key.to_owned(), received_at: 9_000 }.apply(connection).unwrap()
    }

    fn found(connection: &Connection, seq: i64) -> StoredEvent {
        by_seq(connection, seq).unwrap().unwrap()
    }

    #[test]
    fn the_copy_is_whole_and_runs() {
        for disposition in [Disposition::Run, Disposition::Late, Disposition::Filed, Disposition::History] {
            let connection = ledger("fake", "fake:1", disposition);
            assert_eq!(replay(&connection, 1, "k"), Some(Replayed { seq: 2, is_new: true }));
            let (first, copy) = (found(&connection, 1), found(&connection, 2));
            assert_eq!((copy.disposition, copy.received_at, copy.adapter.as_str()), (Disposition::Run, 9_000, "fake"));
            assert_eq!((copy.replay_of.as_deref(), copy.event.event_id.as_str()), (Some("fake:1"), "fake:1#replay:k"));
            let mut as_first = copy.event.clone();
            as_first.event_id.clone_from(&first.event.event_id);
            assert_eq!(as_first, first.event);
            let (upto, page) = page_after(&connection, 1, 10).unwrap();
            assert_eq!((upto, page.len()), (2, 1), "the router sees it");
            assert_eq!(copy.into_request("req_1".to_owned(), 0).delivery.reply_to_id.as_deref(), Some("1"));
        }
    }

    #[test]
    fn the_same_key_is_the_same_replay() {
        let connection = ledger("fake", "fake:1", Disposition::Run);
        replay(&connection, 1, "k");
        assert_eq!(replay(&connection, 1, "k"), Some(Replayed { seq: 2, is_new: false }));
        assert_eq!(replay(&connection, 1, "other"), Some(Replayed { seq: 3, is_new: true }));
    }

    #[test]
    fn a_chain_names_its_first_event() {
        let connection = ledger("fake", "fake:1", Disposition::Run);
        replay(&connection, 1, "a");
        replay(&connection, 2, "b");
        assert_eq!(found(&connection, 3).replay_of.as_deref(), Some("fake:1"));
        let ids = vec![(2, "fake:1#replay:a".to_owned()), (3, "fake:1#replay:b".to_owned())];
        assert_eq!(replays_of(&connection, "fake:1").unwrap(), ids);
        assert!(replays_of(&connection, "fake:1#replay:a").unwrap().is_empty());
    }

    #[test]
    fn it_is_no_news_of_its_account_or_sender() {
        let connection = ledger("fake", "fake:1", Disposition::Run);
        let before = cursor(&connection, "fake", "me").unwrap();
        replay(&connection, 1, "k");
        assert_eq!(cursor(&connection, "fake", "me").unwrap(), before);
        let (upto, senders) = senders_after(&connection, 0).unwrap();
        assert_eq!((upto, senders.values().map(|sender| sender.messages).sum::<i64>()), (2, 1));
    }

    #[test]
    fn a_replayed_slot_does_not_hide_when_the_timer_fired_last() {
        let connection = ledger("timer", "timer:heartbeat:1700000000000", Disposition::Run);
        replay(&connection, 1, "k");
        assert_eq!(newest_slot(&connection, "timer:heartbeat:").unwrap(), Some(1_700_000_000_000));
    }

    #[test]
    fn what_was_sent_and_what_is_not_there_is_not_replayed() {
        let connection = ledger("fake", "fake:1", Disposition::Run);
        assert_eq!(replay(&connection, 7, "k"), None);
        connection.execute("UPDATE events SET direction = 'outbound'", []).unwrap();
        assert_eq!(replay(&connection, 1, "k"), None);
    }

    #[test]
    fn an_adapters_event_under_such_an_id_is_not_taken_for_a_replay() {
        let connection = ledger("fake", "fake:1#replay:k", Disposition::Run);
        connection
            .execute(
                "INSERT INTO events (key, event_id, channel, account_id, adapter, direction, sender_id, peer_id, peer_kind, content_type,
                   timestamp, received_at, disposition, content)
                 VALUES (zeroblob(16), 'fake:1', 'fake', 'me', 'fake', 'inbound', 'u', 'p', 'dm', 'text', 0, 0, 'run', 'x')",
                [],
            )
            .unwrap();
        assert_eq!(replay(&connection, 2, "k"), None);
    }
}
