//! What a cortex is made from: the finished runs of nexus.db, their texts in agents.db, and who wrote in
//! events.db, each asked by itself. What no agent was asked about is not looked at: the events of senders
//! who are denied, of automations and of a channel's history enter no cortex.

use super::{ENTRY_BYTES_MAX, Entry, Kind};
use crate::ledger::agents::{SOURCE, turn_id};
use crate::ledger::{Ledgers, ReadError, follow, optional};
use nexus_core::search::cut;
use rusqlite::{Connection, params};

/// Runs taken at a time.
const PAGE_RUNS: usize = 256;
/// Bytes of texts after which a page is full.
const PAGE_BYTES: usize = 2 * 1024 * 1024;
/// Runs of any agent among which those of one are looked for at a time.
pub const SCAN_RUNS: i64 = 4_096;

/// A finished run, as nexus.db has it.
#[derive(Debug, Clone)]
struct Run {
    finish_seq: i64,
    run_id: String,
    event_seq: i64,
    session: String,
    started_at: i64,
    finished_at: Option<i64>,
}

/// What was found of one agent's runs, and up to which `finish_seq` they were looked for.
#[derive(Debug, Clone, Default)]
pub struct Page {
    pub upto: i64,
    pub entries: Vec<Entry>,
}

/// Whose event it was.
struct Asked {
    event_id: String,
    channel: String,
    sender: String,
    received_at: i64,
}

/// The `finish_seq` up to which agents.db has the texts: a cortex can follow that far.
///
/// # Errors
/// When it can't be read; so with all here.
pub fn followable(ledgers: &Ledgers) -> Result<i64, ReadError> {
    ledgers.agents.readers.read_now(|connection| follow::applied(connection, SOURCE))
}

/// The next of an agent's runs after `from`, up to `upto`. Blocks.
pub fn page(ledgers: &Ledgers, agent: &str, from: i64, upto: i64) -> Result<Page, ReadError> {
    let end = upto.min(from.saturating_add(SCAN_RUNS));
    let runs = ledgers.nexus.readers.read_now(|connection| runs(connection, agent, from, end))?;
    let is_whole = runs.len() < PAGE_RUNS;
    let (mut page, mut bytes) = (Page { upto: end, entries: Vec::new() }, 0);
    let count = runs.len();
    for (n, run) in runs.into_iter().enumerate() {
        let asked = ledgers.events.readers.read_now(|connection| asked(connection, run.event_seq))?;
        let texts = ledgers.agents.readers.read_now(|connection| texts(connection, &turn_id(&run.run_id)))?;
        let is_last = n + 1 == count;
        let place = run.finish_seq;
        if let Some(asked) = asked {
            for (kind, text) in texts {
                bytes += text.len();
                page.entries.push(entry(&run, &asked, kind, text));
            }
        }
        if bytes >= PAGE_BYTES || (is_last && !is_whole) {
            page.upto = place;
            break;
        }
    }
    Ok(page)
}

fn runs(connection: &Connection, agent: &str, from: i64, end: i64) -> rusqlite::Result<Vec<Run>> {
    let sql = "SELECT finish_seq, run_id, event_seq, session, started_at, finished_at FROM runs
               WHERE finish_seq > ?1 AND finish_seq <= ?2 AND agent = ?3 ORDER BY finish_seq LIMIT ?4";
    let mut query = connection.prepare_cached(sql)?;
    let rows = query.query_map(params![from, end, agent, PAGE_RUNS], |row| {
        Ok(Run {
            finish_seq: row.get(0)?,
            run_id: row.get(1)?,
            event_seq: row.get(2)?,
            session: row.get(3)?,
            started_at: row.get(4)?,
            finished_at: row.get(5)?,
        })
    })?;
    rows.collect()
}

fn asked(connection: &Connection, event_seq: i64) -> rusqlite::Result<Option<Asked>> {
    let sql = "SELECT event_id, channel, sender_id, received_at FROM events WHERE seq = ?1";
    optional(connection.prepare_cached(sql)?.query_row([event_seq], |row| {
        Ok(Asked { event_id: row.get(0)?, channel: row.get(1)?, sender: row.get(2)?, received_at: row.get(3)? })
    }))
}

/// What was asked and what was answered. A turn that the agents ledger left out has neither.
fn texts(connection: &Connection, turn_id: &str) -> rusqlite::Result<Vec<(Kind, String)>> {
    let mut query = connection.prepare_cached("SELECT role, content FROM messages WHERE turn_id = ?1 ORDER BY n")?;
    let rows = query.query_map([turn_id], |row| {
        let kind = if row.get_ref(0)?.as_str()? == "assistant" { Kind::Turn } else { Kind::Event };
        Ok((kind, cut(row.get_ref(1)?.as_str()?, ENTRY_BYTES_MAX).to_owned()))
    })?;
    rows.filter(|row| !matches!(row, Ok((_, text)) if text.trim().is_empty())).collect()
}

fn entry(run: &Run, asked: &Asked, kind: Kind, text: String) -> Entry {
    let turn = turn_id(&run.run_id);
    let (source, at) = match kind {
        Kind::Event => (asked.event_id.clone(), asked.received_at),
        Kind::Turn => (turn.clone(), run.finished_at.unwrap_or(run.started_at)),
    };
    let (session, channel, sender) = (run.session.clone(), asked.channel.clone(), asked.sender.clone());
    Entry { kind, source, turn, session, channel, sender, at, text }
}
