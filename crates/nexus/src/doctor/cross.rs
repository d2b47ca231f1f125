//! What must hold between two files: each event that is to run has one request and no request is
//! without its event (promise 1), and who follows another file is never ahead of it.
//!
//! Nothing attaches one file to another. Both are read in order, a page at a time, and merged; of a
//! running daemon's files always the one first that follows, so that what is committed meanwhile can
//! only be in the other.

use super::record::{File, Files, unreadable};
use super::rows::{Found, RESTORE};
use super::{Check, Finding, counted};
use crate::ledger::{agents, events, follow, identity, nexus, optional};
use rusqlite::{Connection, params};
use std::collections::VecDeque;

/// Rows read at a time.
const PAGE_ROWS: i64 = 4096;
/// The name under which events.db follows what was sent.
const SENT: &str = "nexus.sent";

/// The rows of a query in the order of their number, a page at a time.
struct Pages<'c> {
    connection: &'c Connection,
    /// Takes the number after which, the one up to which, and how many.
    sql: &'static str,
    after: i64,
    upto: i64,
    page: VecDeque<(i64, String)>,
    is_last: bool,
}

impl<'c> Pages<'c> {
    fn new(connection: &'c Connection, sql: &'static str, upto: i64) -> Self {
        Self { connection, sql, after: i64::MIN, upto, page: VecDeque::new(), is_last: false }
    }

    fn next(&mut self) -> rusqlite::Result<Option<(i64, String)>> {
        if self.page.is_empty() && !self.is_last {
            let mut query = self.connection.prepare_cached(self.sql)?;
            let rows = query.query_map(params![self.after, self.upto, PAGE_ROWS], |row| Ok((row.get(0)?, row.get(1)?)))?;
            self.page = rows.collect::<rusqlite::Result<_>>()?;
            self.is_last = self.page.len() < usize::try_from(PAGE_ROWS).unwrap_or(usize::MAX);
            self.after = self.page.back().map_or(self.after, |(seq, _)| *seq);
        }
        Ok(self.page.pop_front())
    }
}

const EVENTS: &str = "SELECT seq, event_id FROM events
    WHERE seq > ?1 AND seq <= ?2 AND direction = 'inbound' AND disposition <> 'history' ORDER BY seq LIMIT ?3";
const REQUESTS: &str =
    "SELECT event_seq, event_id FROM nexus_requests WHERE event_seq > ?1 AND event_seq <= ?2 ORDER BY event_seq LIMIT ?3";

/// What the merge of events and requests came to.
#[derive(Debug, Default)]
struct Merged {
    whole: u64,
    /// Events without a request.
    lost: Found,
    /// Requests without an event.
    stray: Found,
    /// Both there, of different ids.
    mixed: Found,
}

fn merge(events: &File, nexus: &File, upto: i64) -> Result<Merged, Finding> {
    let of_events = |error| unreadable(Check::Promise, &events.path, &error);
    let of_nexus = |error| unreadable(Check::Promise, &nexus.path, &error);
    let mut requests = Pages::new(&nexus.connection, REQUESTS, upto);
    let mut accepted = Pages::new(&events.connection, EVENTS, upto);
    let mut merged = Merged::default();
    let mut event = accepted.next().map_err(of_events)?;
    let mut request = requests.next().map_err(of_nexus)?;
    loop {
        let order = match (&event, &request) {
            (None, None) => return Ok(merged),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((event, _)), Some((request, _))) => event.cmp(request),
        };
        if order.is_eq() {
            match (&event, &request) {
                (Some((seq, left)), Some((_, right))) if left != right => merged.mixed.add(|| format!("{seq}: {left} and {right}")),
                (_, _) => merged.whole += 1,
            }
        } else if order.is_lt() {
            merged.lost.add(|| event.as_ref().map(|(_, id)| id.clone()).unwrap_or_default());
        } else {
            merged.stray.add(|| request.as_ref().map(|(_, id)| id.clone()).unwrap_or_default());
        }
        if order.is_le() {
            event = accepted.next().map_err(of_events)?;
        }
        if order.is_ge() {
            request = requests.next().map_err(of_nexus)?;
        }
    }
}

/// Each event up to where events were admitted has exactly one request.
pub(super) fn promise(files: &Files) -> Vec<Finding> {
    let (Some(events), Some(nexus)) = (&files.events, &files.nexus) else {
        let fix = "mend the files first; see the findings about their schema";
        return vec![Finding::warning(Check::Promise, "events and requests were not compared: not both files can be read", fix)];
    };
    let admitted = match nexus::counter(&nexus.connection, "intake_seq") {
        Ok(admitted) => admitted,
        Err(error) => return vec![unreadable(Check::Promise, &nexus.path, &error)],
    };
    let counts = events::last_seq(&events.connection).and_then(|last| Ok((last, waiting(&events.connection, admitted)?)));
    let (last, waiting) = match counts {
        Ok(counts) => counts,
        Err(error) => return vec![unreadable(Check::Promise, &events.path, &error)],
    };
    let mut findings = Vec::new();
    if admitted > last {
        let what =
            format!("events were admitted up to {admitted}, and there are only {last}: the next {} would be passed over", admitted - last);
        findings.push(Finding::error(Check::Promise, what, RESTORE).at(&events.path));
    }
    match merge(events, nexus, admitted) {
        Ok(merged) => findings.extend(told(&merged, events, nexus)),
        Err(unreadable) => findings.push(unreadable),
    }
    if waiting > 0 {
        let what = format!("{} not admitted yet: the daemon, or its next start, does it", counted(waiting, "accepted event"));
        findings.push(Finding::ok(Check::Promise, what).at(&events.path));
    }
    findings
}

/// Events to run that are not admitted yet.
fn waiting(connection: &Connection, admitted: i64) -> rusqlite::Result<u64> {
    let sql = "SELECT count(*) FROM events WHERE seq > ?1 AND direction = 'inbound' AND disposition <> 'history'";
    connection.query_row(sql, [admitted], |row| row.get(0))
}

fn told(merged: &Merged, events: &File, nexus: &File) -> Vec<Finding> {
    let Merged { whole, lost, stray, mixed } = merged;
    let mut findings = Vec::new();
    if lost.count > 0 {
        let what = format!("{} without a request: promise 1 is broken {}", counted(lost.count, "accepted event"), lost.named());
        let fix = "restore the ledgers as of one backup with `nexus restore`, or have these messages sent again under new ids";
        findings.push(Finding::error(Check::Promise, what, fix).at(&nexus.path));
    }
    if stray.count > 0 {
        let what = format!("{} for no event that is to run {}", counted(stray.count, "request"), stray.named());
        findings.push(Finding::error(Check::Promise, what, RESTORE).at(&events.path));
    }
    if mixed.count > 0 {
        let what = format!("{} of another event than its place says {}", counted(mixed.count, "request"), mixed.named());
        findings.push(Finding::error(Check::Promise, what, RESTORE).at(&nexus.path));
    }
    if findings.is_empty() {
        findings.push(
            Finding::ok(Check::Promise, format!("{} to be run, each with exactly one request", counted(*whole, "event"))).at(&nexus.path),
        );
    }
    findings
}

/// One file that follows another: its mark, and where the owner stands.
struct Followed<'f> {
    follower: &'f Option<File>,
    source: &'static str,
    owner: &'f Option<File>,
    stands: fn(&Connection) -> rusqlite::Result<i64>,
    what: &'static str,
}

/// Each follower stands behind its owner or with it, and has what it passed.
pub(super) fn followers(files: &Files) -> Vec<Finding> {
    let each = [
        Followed {
            follower: &files.agents,
            source: agents::SOURCE,
            owner: &files.nexus,
            stands: |connection| nexus::counter(connection, "finish_seq"),
            what: "finished run",
        },
        Followed { follower: &files.identity, source: identity::SOURCE, owner: &files.events, stands: events::last_seq, what: "event" },
        Followed {
            follower: &files.events,
            source: SENT,
            owner: &files.nexus,
            stands: |connection| nexus::counter(connection, "sent_seq"),
            what: "sent message",
        },
    ];
    let mut findings: Vec<Finding> = each.iter().flat_map(mark).collect();
    findings.extend(turns(files));
    findings
}

fn mark(followed: &Followed<'_>) -> Vec<Finding> {
    let Followed { follower: Some(follower), source, owner: Some(owner), stands, what } = followed else { return Vec::new() };
    // The follower first: the owner only moves on meanwhile.
    let applied = match follow::applied(&follower.connection, source) {
        Ok(applied) => applied,
        Err(error) => return vec![unreadable(Check::Records, &follower.path, &error)],
    };
    match stands(&owner.connection) {
        Ok(stands) if applied > stands => {
            let what = format!(
                "it says that it followed {what}s up to {applied}, and there are only {stands}: what comes next would be passed over"
            );
            vec![Finding::error(Check::Records, what, RESTORE).at(&follower.path)]
        }
        Ok(stands) if applied < stands => {
            let behind = counted(u64::try_from(stands - applied).unwrap_or(0), what);
            vec![Finding::ok(Check::Records, format!("{behind} behind: the daemon, or its next start, catches up")).at(&follower.path)]
        }
        Ok(_) => Vec::new(),
        Err(error) => vec![unreadable(Check::Records, &owner.path, &error)],
    }
}

/// Those that have a turn: one that a panic broke off ends as failed without any. Texts are forgotten in time.
const RUNS: &str = "SELECT finish_seq, run_id FROM runs WHERE finish_seq > ?1 AND finish_seq <= ?2
    AND (status = 'finished' OR turn_json IS NOT NULL) ORDER BY finish_seq LIMIT ?3";

/// Each run that agents.db says it followed has its turn there.
fn turns(files: &Files) -> Vec<Finding> {
    let (Some(agents), Some(nexus)) = (&files.agents, &files.nexus) else { return Vec::new() };
    match without_turn(&agents.connection, &nexus.connection) {
        Ok(found) if found.count > 0 => {
            let what = format!(
                "{} without a turn {}: later turns of their sessions don't know of them",
                counted(found.count, "finished run"),
                found.named()
            );
            let fix = "the daemon's log says why if a turn was refused; else restore the ledgers as of one backup with `nexus restore`";
            vec![Finding::error(Check::Records, what, fix).at(&agents.path)]
        }
        Ok(_) => Vec::new(),
        Err(error) => vec![unreadable(Check::Records, &agents.path, &error)],
    }
}

fn without_turn(agents: &Connection, nexus: &Connection) -> rusqlite::Result<Found> {
    let mut runs = Pages::new(nexus, RUNS, follow::applied(agents, agents::SOURCE)?);
    let mut query = agents.prepare("SELECT 1 FROM turns WHERE turn_id = ?1")?;
    let mut found = Found::default();
    while let Some((_, run)) = runs.next()? {
        // As `pipeline::finish` names a run's turn.
        if !query.exists([format!("turn_{}", run.trim_start_matches("run_"))])? {
            found.add(|| run);
        }
    }
    Ok(found)
}

/// Each account's cursor names an event that was committed with it.
pub(super) fn cursors(files: &Files) -> Vec<Finding> {
    let Some(events) = &files.events else { return Vec::new() };
    match astray(&events.connection) {
        Ok(found) if found.count > 0 => {
            let what = format!("{} at an event that isn't there {}", counted(found.count, "cursor"), found.named());
            vec![Finding::error(Check::Records, what, RESTORE).at(&events.path)]
        }
        Ok(_) => Vec::new(),
        Err(error) => vec![unreadable(Check::Records, &events.path, &error)],
    }
}

fn astray(connection: &Connection) -> rusqlite::Result<Found> {
    let mut cursors = connection.prepare("SELECT adapter, account, last_event_id FROM cursors WHERE last_event_id <> ''")?;
    let mut known = connection.prepare("SELECT 1 FROM events WHERE key = ?1")?;
    let mut rows = cursors.query([])?;
    let mut found = Found::default();
    while let Some(row) = rows.next()? {
        let (adapter, account, id): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let channel = id.split_once(':').map_or("", |(channel, _)| channel);
        let known: Option<i64> = optional(known.query_row([events::key(channel, &id)], |row| row.get(0)))?;
        if known.is_none() {
            found.add(|| format!("{adapter}/{account}: {id}"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Severity, worst};
    use super::*;
    use crate::ledger::Ledger;

    fn file(ledger: Ledger, sql: &str) -> Option<File> {
        let connection = Connection::open_in_memory().unwrap();
        ledger.migrations().iter().for_each(|step| connection.execute_batch(step.sql).unwrap());
        connection.execute_batch(sql).unwrap();
        Some(File { path: ledger.file_name().into(), connection })
    }

    /// Events 1 to `events`, of which every third is history; requests for the others.
    fn files(events: i64) -> Files {
        let numbers = format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {events})");
        let of_events = format!(
            "INSERT INTO events (seq, key, event_id, channel, account_id, adapter, direction, sender_id, peer_id, peer_kind, content_type,
               timestamp, received_at, disposition, content) {numbers} SELECT i, CAST(printf('%016d', i) AS BLOB), 'f:' || i, 'f', 'me', 'f', 'inbound', 'u',
               'p', 'dm', 'text', 1, 1, CASE i % 3 WHEN 0 THEN 'history' ELSE 'run' END, '' FROM n"
        );
        let of_nexus = format!(
            "INSERT INTO nexus_requests (event_seq, request_id, event_id, channel, account_id, adapter, conversation, status, stage, created_at,
               completed_at, epoch) {numbers} SELECT i, 'req_' || i, 'f:' || i, 'f', 'me', 'f', 'c', 'denied', 'finalize', 1, 2, 1 FROM n WHERE i % 3 <> 0;
             UPDATE counters SET value = {events} WHERE name = 'intake_seq'"
        );
        Files {
            events: file(Ledger::Events, &of_events),
            agents: file(Ledger::Agents, ""),
            identity: file(Ledger::Identity, ""),
            nexus: file(Ledger::Nexus, &of_nexus),
            ..Files::default()
        }
    }

    fn alter(file: &Option<File>, sql: &str) {
        file.as_ref().unwrap().connection.execute_batch(sql).unwrap();
    }

    #[test]
    fn pages_of_both_files_are_merged_however_many_there_are() {
        let files = files(3 * PAGE_ROWS);
        let findings = promise(&files);
        assert_eq!(worst(&findings), Severity::Ok, "{findings:?}");
        assert!(findings[0].what.starts_with(&format!("{} events", 2 * PAGE_ROWS)), "{findings:?}");
        alter(&files.nexus, &format!("DELETE FROM nexus_requests WHERE event_seq IN (1, {}, {})", PAGE_ROWS + 3, 3 * PAGE_ROWS - 1));
        alter(&files.events, "DELETE FROM events WHERE seq = 2; UPDATE events SET event_id = 'f:x' WHERE seq = 4");
        let findings = promise(&files);
        let whats: Vec<&str> = findings.iter().map(|finding| finding.what.as_str()).collect();
        let gone = [1, PAGE_ROWS + 3, 3 * PAGE_ROWS - 1].iter().filter(|seq| *seq % 3 != 0).count();
        assert!(whats[0].starts_with(&format!("{gone} accepted events without a request")) && whats[0].contains("f:1,"), "{whats:?}");
        assert!(whats[1].ends_with("for no event that is to run (f:2)"), "{whats:?}");
        assert!(whats[2].ends_with("(4: f:x and f:4)"), "{whats:?}");
        assert_eq!((findings.len(), worst(&findings)), (3, Severity::Error));
    }

    #[test]
    fn a_request_for_what_was_never_to_run_is_stray() {
        let files = files(4);
        alter(&files.events, "UPDATE events SET direction = 'outbound' WHERE seq = 4");
        assert!(promise(&files)[0].what.ends_with("(f:4)"), "{:?}", promise(&files));
    }

    #[test]
    fn events_beyond_what_was_admitted_only_wait_and_a_mark_beyond_the_events_is_an_error() {
        let files = files(4);
        alter(&files.nexus, "DELETE FROM nexus_requests WHERE event_seq = 4; UPDATE counters SET value = 3 WHERE name = 'intake_seq'");
        let findings = promise(&files);
        assert_eq!(worst(&findings), Severity::Ok, "{findings:?}");
        assert!(findings[1].what.starts_with("1 accepted event not admitted yet"), "{findings:?}");
        alter(&files.nexus, "UPDATE counters SET value = 9 WHERE name = 'intake_seq'");
        let findings = promise(&files);
        assert!(findings[0].severity == Severity::Error && findings[0].what.contains("up to 9, and there are only 4"), "{findings:?}");
    }

    #[test]
    fn who_is_ahead_is_an_error_and_who_is_behind_is_not() {
        let files = files(4);
        alter(&files.identity, "INSERT INTO applied VALUES ('events', 3)");
        let findings = followers(&files);
        assert_eq!(worst(&findings), Severity::Ok, "{findings:?}");
        assert!(findings[0].what.starts_with("1 event behind"), "{findings:?}");
        alter(&files.identity, "UPDATE applied SET seq = 5");
        alter(&files.agents, "INSERT INTO applied VALUES ('nexus.finish', 1)");
        alter(&files.events, "INSERT INTO applied VALUES ('nexus.sent', 1)");
        let places: Vec<_> = followers(&files).into_iter().map(|finding| (finding.severity, finding.place.unwrap())).collect();
        let ahead = ["agents.db", "identity.db", "events.db"].map(|place| (Severity::Error, place.to_owned()));
        assert_eq!(places, ahead);
    }

    #[test]
    fn a_followed_run_has_its_turn() {
        let files = files(1);
        alter(
            &files.nexus,
            "INSERT INTO runs (run_id, event_seq, attempt, agent, session, status, started_at, finished_at, finish_seq, epoch)
             VALUES ('run_A', 1, 1, 'echo', 's', 'finished', 1, 2, 1, 1); UPDATE counters SET value = 1 WHERE name = 'finish_seq'",
        );
        assert_eq!(worst(&followers(&files)), Severity::Ok, "it isn't followed yet");
        alter(&files.agents, "INSERT INTO applied VALUES ('nexus.finish', 1)");
        assert!(followers(&files).iter().any(|finding| finding.what.contains("without a turn (run_A)")), "{:?}", followers(&files));
        let turn =
            "INSERT INTO turns VALUES ('turn_A', NULL, 1, 's', 'echo', 'req_1', NULL, NULL, 'end_turn', NULL, NULL, 1, 1.0, 'echo', NULL)";
        alter(&files.agents, turn);
        assert_eq!(worst(&followers(&files)), Severity::Ok);
        // As one ends that a panic broke off, and as one that failed and said something.
        alter(
            &files.nexus,
            "INSERT INTO runs (run_id, event_seq, attempt, agent, session, status, started_at, finished_at, finish_seq, epoch)
             VALUES ('run_B', 1, 2, 'echo', 's', 'failed', 1, 2, 2, 1); UPDATE counters SET value = 2 WHERE name = 'finish_seq'",
        );
        alter(&files.agents, "UPDATE applied SET seq = 2");
        assert_eq!(worst(&followers(&files)), Severity::Ok, "{:?}", followers(&files));
        alter(&files.nexus, "UPDATE runs SET turn_json = '{}' WHERE run_id = 'run_B'");
        assert!(followers(&files).iter().any(|finding| finding.what.contains("without a turn (run_B)")), "{:?}", followers(&files));
    }

    #[test]
    fn a_cursor_names_an_event_that_is_there() {
        let files = files(1);
        alter(&files.events, "INSERT INTO cursors VALUES ('f', 'new', '', 1, 1, 0, NULL), ('f', 'me', 'f:9', 1, 1, 1, NULL)");
        let findings = cursors(&files);
        assert!(findings.len() == 1 && findings[0].what.ends_with("(f/me: f:9)"), "{findings:?}");
    }
}
