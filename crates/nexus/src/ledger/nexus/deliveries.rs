//! Deliveries: what is to be said, and how far that has come.

use super::{Claim, next};
use crate::ledger::writer::Weight;
use nexus_core::request::DeliveryTarget;
use rusqlite::{Connection, Row, params};

/// What stands between the request's id and the automation's name in the key of a reply without a run. No plugin's
/// name has a `~`.
pub const REPLY_MARK: &str = ":reply~";

/// A reply, or one chunk of it, committed with the run that made it.
#[derive(Debug, Clone)]
pub struct NewDelivery {
    pub delivery_id: String,
    pub request_id: String,
    pub event_seq: i64,
    pub run_id: Option<String>,
    pub adapter: String,
    pub channel: String,
    pub account_id: String,
    pub target: String,
    pub thread_id: Option<String>,
    pub reply_to_id: Option<String>,
    pub idempotency_key: String,
    pub content: String,
    pub created_at: i64,
    pub expires_at: i64,
    /// It is where it has to be once it is committed: the client of the control socket reads it here.
    pub here: bool,
}

impl NewDelivery {
    pub(super) fn insert(&self, connection: &Connection, epoch: i64) -> rusqlite::Result<()> {
        let status = if self.here { "sent" } else { "pending" };
        let ids = self.here.then(|| serde_json::json!([self.delivery_id]).to_string());
        let sql = "INSERT INTO deliveries (delivery_id, request_id, event_seq, run_id, adapter, channel, account_id, target, thread_id, reply_to_id,
                     idempotency_key, content, status, created_at, updated_at, expires_at, epoch, message_ids, attempts)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?16, ?13, ?13, ?14, ?15, ?17, ?18) ON CONFLICT (idempotency_key) DO NOTHING";
        let inserted = connection.prepare_cached(sql)?.execute(params![
            self.delivery_id,
            self.request_id,
            self.event_seq,
            self.run_id,
            self.adapter,
            self.channel,
            self.account_id,
            self.target,
            self.thread_id,
            self.reply_to_id,
            self.idempotency_key,
            self.content,
            self.created_at,
            self.expires_at,
            epoch,
            status,
            ids,
            self.here
        ])?;
        if self.here && inserted == 1 { number_sent(connection, &self.delivery_id) } else { Ok(()) }
    }

    /// See [`Delivery::lane`].
    pub fn lane(&self) -> String {
        lane(&self.channel, &self.account_id, &self.target)
    }
}

/// Gives a message its place among those sent. Only one that is there takes a place: doctor counts them.
fn number_sent(connection: &Connection, delivery_id: &str) -> rusqlite::Result<()> {
    let seq = next(connection, "sent_seq")?;
    let sql = "UPDATE deliveries SET sent_seq = ?2 WHERE delivery_id = ?1";
    connection.prepare_cached(sql)?.execute(params![delivery_id, seq]).map(drop)
}

/// A delivery as it stands.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Delivery {
    #[serde(skip)]
    pub seq: i64,
    pub delivery_id: String,
    pub request_id: String,
    pub event_seq: i64,
    pub run_id: Option<String>,
    pub adapter: String,
    pub channel: String,
    pub account_id: String,
    pub target: String,
    pub thread_id: Option<String>,
    pub reply_to_id: Option<String>,
    pub idempotency_key: String,
    pub content: String,
    pub status: String,
    pub attempts: u32,
    pub next_attempt_at: Option<i64>,
    pub message_ids: Option<String>,
    pub error: Option<String>,
    pub created_at: i64,
    pub updated_at: i64,
    pub expires_at: i64,
}

pub(super) const COLUMNS: &str =
    "seq, delivery_id, request_id, event_seq, run_id, adapter, channel, account_id, target, thread_id, reply_to_id,
  idempotency_key, content, status, attempts, next_attempt_at, message_ids, error, created_at, updated_at, expires_at";

pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Delivery> {
    Ok(Delivery {
        seq: row.get(0)?,
        delivery_id: row.get(1)?,
        request_id: row.get(2)?,
        event_seq: row.get(3)?,
        run_id: row.get(4)?,
        adapter: row.get(5)?,
        channel: row.get(6)?,
        account_id: row.get(7)?,
        target: row.get(8)?,
        thread_id: row.get(9)?,
        reply_to_id: row.get(10)?,
        idempotency_key: row.get(11)?,
        content: row.get(12)?,
        status: row.get(13)?,
        attempts: row.get(14)?,
        next_attempt_at: row.get(15)?,
        message_ids: row.get(16)?,
        error: row.get(17)?,
        created_at: row.get(18)?,
        updated_at: row.get(19)?,
        expires_at: row.get(20)?,
    })
}

impl Delivery {
    /// A run made it, or the automation that answered in place of one; what plugins say besides is no part of an answer.
    pub fn is_answer(&self) -> bool {
        self.run_id.is_some() || self.idempotency_key.contains(REPLY_MARK)
    }

    /// The lane in which one send at a time is under way: a retry never lets a later one pass.
    pub fn lane(&self) -> String {
        lane(&self.channel, &self.account_id, &self.target)
    }
}

/// The lane of what goes there.
pub fn lane_of(target: &DeliveryTarget) -> String {
    lane(&target.channel, &target.account_id, &target.target)
}

pub(super) fn lane(channel: &str, account_id: &str, target: &str) -> String {
    [channel, account_id, target].join("\u{1f}")
}

/// The first byte is about to leave; what went wrong before counts no more.
#[derive(Debug, Clone)]
pub struct ClaimDelivery {
    pub delivery_id: String,
    pub at: i64,
    pub epoch: i64,
}

impl ClaimDelivery {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        let sql = "UPDATE deliveries SET status = 'sending', attempts = attempts + 1, error = NULL, updated_at = ?2, epoch = ?3
                   WHERE delivery_id = ?1 AND status = 'pending' AND ?3 = (SELECT value FROM counters WHERE name = 'epoch')";
        let changed = connection.prepare_cached(sql)?.execute(params![self.delivery_id, self.at, self.epoch])?;
        if changed == 1 { Ok(Claim::Done) } else { was_done(connection, &self.delivery_id, "sending", self.at, self.epoch) }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone)]
pub enum Settled {
    Sent {
        message_ids: Vec<String>,
    },
    /// Back to `pending`, not before this instant (Unix ms).
    Retry {
        at: i64,
        error: String,
    },
    Failed {
        error: String,
    },
    Uncertain {
        error: String,
    },
    Expired {
        error: String,
    },
}

impl Settled {
    /// The delivery's status then.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Sent { .. } => "sent",
            Self::Retry { .. } => "pending",
            Self::Failed { .. } => "failed",
            Self::Uncertain { .. } => "uncertain",
            Self::Expired { .. } => "expired",
        }
    }

    /// Why it wasn't sent, or not surely.
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Sent { .. } => None,
            Self::Retry { error, .. } | Self::Failed { error } | Self::Uncertain { error } | Self::Expired { error } => Some(error),
        }
    }
}

/// Writes how an attempt ended.
#[derive(Debug, Clone)]
pub struct SettleDelivery {
    pub delivery_id: String,
    pub settled: Settled,
    pub at: i64,
    pub epoch: i64,
}

impl SettleDelivery {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        let (status, error) = (self.settled.status(), self.settled.error());
        let (ids, next_at) = match &self.settled {
            Settled::Sent { message_ids } => (Some(serde_json::json!(message_ids).to_string()), None),
            Settled::Retry { at, .. } => (None, Some(*at)),
            Settled::Failed { .. } | Settled::Uncertain { .. } | Settled::Expired { .. } => (None, None),
        };
        // `pending` is left without a claim by what never leaves this machine, or never left at all.
        let from = match &self.settled {
            Settled::Retry { .. } | Settled::Uncertain { .. } => "status = 'sending'",
            Settled::Sent { .. } | Settled::Failed { .. } | Settled::Expired { .. } => "status IN ('sending', 'pending')",
        };
        let sql = format!(
            "UPDATE deliveries SET status = ?2, error = ?3, message_ids = ?4, next_attempt_at = ?5, updated_at = ?6, epoch = ?7
             WHERE delivery_id = ?1 AND {from} AND ?7 = (SELECT value FROM counters WHERE name = 'epoch')"
        );
        let changed =
            connection.prepare_cached(&sql)?.execute(params![self.delivery_id, status, error, ids, next_at, self.at, self.epoch])?;
        if changed == 0 {
            return was_done(connection, &self.delivery_id, status, self.at, self.epoch);
        }
        if status == "sent" {
            number_sent(connection, &self.delivery_id)?;
        }
        Ok(Claim::Done)
    }
}

/// After a command that found nothing to change: `Done` if this very command is on disk already, written
/// by an attempt that nobody heard of. Taken for lost, its delivery would be seen to by nobody.
pub(super) fn was_done(connection: &Connection, delivery_id: &str, status: &str, at: i64, epoch: i64) -> rusqlite::Result<Claim> {
    let sql = "SELECT count(*) FROM deliveries WHERE delivery_id = ?1 AND status = ?2 AND updated_at = ?3 AND epoch = ?4";
    let same: i64 = connection.prepare_cached(sql)?.query_row(params![delivery_id, status, at, epoch], |row| row.get(0))?;
    Ok(if same == 1 { Claim::Done } else { Claim::Lost })
}

/// What a person decides about a delivery that failed or is uncertain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    Retry,
    Discard,
}

/// A person's decision about a delivery as it was seen: with `status`, last written at `updated_at`. Made
/// in view of something else it doesn't count, however late it comes to be written. Retrying prolongs
/// the delivery's life by `ttl_ms` from `at`.
#[derive(Debug, Clone)]
pub struct ResolveDelivery {
    pub delivery_id: String,
    pub resolution: Resolution,
    pub status: String,
    pub updated_at: i64,
    pub at: i64,
    pub ttl_ms: i64,
    pub epoch: i64,
}

impl ResolveDelivery {
    /// Lost when the delivery isn't in a state for it, or not in that state any more. A stream that a crash broke off
    /// has no text that could be sent.
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        let (to, from) = match self.resolution {
            Resolution::Retry => ("pending", "('uncertain', 'failed', 'expired', 'discarded')"),
            Resolution::Discard => ("discarded", "('uncertain', 'failed', 'expired', 'pending')"),
        };
        let sql = format!(
            "UPDATE deliveries SET status = ?2, next_attempt_at = NULL, updated_at = ?3, epoch = ?5,
               error = CASE WHEN ?2 = 'pending' THEN NULL ELSE error END,
               expires_at = CASE WHEN ?2 = 'pending' THEN max(expires_at, ?3 + ?4) ELSE expires_at END
             WHERE delivery_id = ?1 AND status IN {from} AND (?2 != 'pending' OR content != '') AND status = ?6 AND updated_at = ?7 AND ?5 = (SELECT value FROM counters WHERE name = 'epoch')"
        );
        let changed = connection.prepare_cached(&sql)?.execute(params![
            self.delivery_id,
            to,
            self.at,
            self.ttl_ms,
            self.epoch,
            self.status,
            self.updated_at
        ])?;
        if changed == 1 { Ok(Claim::Done) } else { was_done(connection, &self.delivery_id, to, self.at, self.epoch) }
    }
}

impl Weight for ClaimDelivery {}
impl Weight for ResolveDelivery {}

impl Weight for SettleDelivery {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ledger::nexus::BeginEpoch;

    /// A ledger in its first epoch with one delivery that waits.
    fn ledger() -> Connection {
        let connection = crate::samples::nexus_ledger();
        BeginEpoch { at: 1 }.apply(&connection).unwrap();
        let delivery = NewDelivery {
            request_id: "req".to_owned(),
            run_id: None,
            idempotency_key: "key".to_owned(),
            content: "hello".to_owned(),
            expires_at: 1_000,
            ..crate::samples::delivery("d")
        };
        delivery.insert(&connection, 1).unwrap();
        connection
    }

    fn claim(connection: &Connection, at: i64, epoch: i64) -> Claim {
        ClaimDelivery { delivery_id: "d".to_owned(), at, epoch }.apply(connection).unwrap()
    }

    fn settle(connection: &Connection, settled: Settled, at: i64) -> Claim {
        SettleDelivery { delivery_id: "d".to_owned(), settled, at, epoch: 1 }.apply(connection).unwrap()
    }

    fn decision(connection: &Connection, resolution: Resolution, at: i64, epoch: i64) -> ResolveDelivery {
        let Delivery { delivery_id, status, updated_at, .. } = crate::ledger::nexus::delivery(connection, "d").unwrap().unwrap();
        ResolveDelivery { delivery_id, resolution, status, updated_at, at, ttl_ms: 100, epoch }
    }

    fn decide(connection: &Connection, resolution: Resolution, at: i64, epoch: i64) -> Claim {
        decision(connection, resolution, at, epoch).apply(connection).unwrap()
    }

    #[test]
    fn a_decision_that_comes_late_overrules_no_other() {
        let connection = ledger();
        claim(&connection, 10, 1);
        settle(&connection, Settled::Uncertain { error: "e".to_owned() }, 11);
        let retry = decision(&connection, Resolution::Retry, 12, 1);
        let discard = decision(&connection, Resolution::Discard, 13, 1);
        assert_eq!(discard.apply(&connection).unwrap(), Claim::Done);
        assert_eq!(retry.apply(&connection).unwrap(), Claim::Lost);
        assert_eq!(found(&connection).0, "discarded");
        assert_eq!(discard.apply(&connection).unwrap(), Claim::Done, "repeated");
        assert_eq!(decide(&connection, Resolution::Retry, 14, 1), Claim::Done, "decided anew");
    }

    fn found(connection: &Connection) -> (String, u32) {
        connection.query_row("SELECT status, attempts FROM deliveries", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    }

    #[test]
    fn a_claim_that_is_repeated_is_still_a_claim_and_counts_once() {
        let connection = ledger();
        assert_eq!((claim(&connection, 10, 1), claim(&connection, 10, 1)), (Claim::Done, Claim::Done));
        assert_eq!(found(&connection), ("sending".to_owned(), 1));
        assert_eq!(claim(&connection, 11, 1), Claim::Lost, "another one's");
    }

    #[test]
    fn an_end_that_is_repeated_is_still_that_end() {
        let connection = ledger();
        claim(&connection, 10, 1);
        let retry = || Settled::Retry { at: 500, error: "no".to_owned() };
        assert_eq!((settle(&connection, retry(), 20), settle(&connection, retry(), 20)), (Claim::Done, Claim::Done));
        assert_eq!(found(&connection).0, "pending");
        claim(&connection, 30, 1);
        let sent = || Settled::Sent { message_ids: vec!["m".to_owned()] };
        assert_eq!((settle(&connection, sent(), 40), settle(&connection, sent(), 40)), (Claim::Done, Claim::Done));
        let sent_seq: i64 = connection.query_row("SELECT value FROM counters WHERE name = 'sent_seq'", [], |row| row.get(0)).unwrap();
        assert_eq!(sent_seq, 1, "what was said once is recorded once");
        assert_eq!(settle(&connection, retry(), 50), Claim::Lost, "it is over");
    }

    #[test]
    fn a_message_that_is_here_and_is_written_again_takes_one_place() {
        let connection = ledger();
        let here = NewDelivery { idempotency_key: "of here".to_owned(), here: true, ..crate::samples::delivery("h") };
        here.insert(&connection, 1).unwrap();
        here.insert(&connection, 1).unwrap();
        let sql = "SELECT (SELECT value FROM counters WHERE name = 'sent_seq'), count(sent_seq), max(sent_seq) FROM deliveries";
        let places: (i64, i64, i64) = connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        assert_eq!(places, (1, 1, 1));
    }

    #[test]
    fn a_decision_that_is_repeated_is_still_that_decision() {
        let connection = ledger();
        claim(&connection, 10, 1);
        assert_eq!(decide(&connection, Resolution::Retry, 15, 1), Claim::Lost, "it is under way");
        settle(&connection, Settled::Uncertain { error: "no".to_owned() }, 20);
        let retry = || decide(&connection, Resolution::Retry, 30, 1);
        assert_eq!((retry(), retry()), (Claim::Done, Claim::Done));
        assert_eq!(found(&connection), ("pending".to_owned(), 1));
        assert_eq!(decide(&connection, Resolution::Retry, 31, 1), Claim::Lost, "it waits already");
        let discard = || decide(&connection, Resolution::Discard, 40, 1);
        assert_eq!((discard(), discard()), (Claim::Done, Claim::Done));
        assert_eq!(found(&connection).0, "discarded");
    }

    #[test]
    fn a_new_attempt_does_not_show_the_error_of_the_last() {
        let connection = ledger();
        let error = || -> Option<String> { connection.query_row("SELECT error FROM deliveries", [], |row| row.get(0)).unwrap() };
        claim(&connection, 10, 1);
        settle(&connection, Settled::Retry { at: 500, error: "no".to_owned() }, 20);
        assert_eq!(error().as_deref(), Some("no"), "why it waits");
        claim(&connection, 30, 1);
        assert_eq!(error(), None, "it is under way");
        settle(&connection, Settled::Uncertain { error: "hm".to_owned() }, 40);
        assert_eq!(error().as_deref(), Some("hm"));
        decide(&connection, Resolution::Retry, 50, 1);
        assert_eq!(error(), None, "a person had it sent again");
        claim(&connection, 60, 1);
        settle(&connection, Settled::Failed { error: "never".to_owned() }, 70);
        decide(&connection, Resolution::Discard, 80, 1);
        assert_eq!(error().as_deref(), Some("never"), "why it was given up");
    }

    #[test]
    fn a_former_daemon_claims_nothing() {
        let connection = ledger();
        BeginEpoch { at: 2 }.apply(&connection).unwrap();
        assert_eq!(claim(&connection, 10, 1), Claim::Lost);
        assert_eq!(decide(&connection, Resolution::Discard, 10, 1), Claim::Lost);
        assert_eq!(claim(&connection, 10, 2), Claim::Done);
        assert_eq!(settle(&connection, Settled::Failed { error: "no".to_owned() }, 20), Claim::Lost);
    }
}
