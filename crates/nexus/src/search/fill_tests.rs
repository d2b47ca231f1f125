//! The follower's rounds over real ledgers, without its pauses.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::ledger::{Ledger, Threads};
use crate::search::Wanted;
use rusqlite::params;
use std::path::PathBuf;
use tempfile::TempDir;

/// Ledgers with what tests put into them.
struct Place {
    ledgers: Ledgers,
    _threads: Vec<Threads>,
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (ledgers, threads) = Ledgers::start(directory.path(), 1).unwrap();
        Self { ledgers, _threads: threads, directory }
    }

    fn filler(&self) -> Filler {
        Filler::new(self.ledgers.clone(), Search::beside(&self.ledgers))
    }

    fn file(&self, agent: &str) -> PathBuf {
        cortex::path(&self.directory.path().join(cortex::DIRECTORY), agent)
    }

    fn connect(&self, ledger: Ledger) -> Connection {
        let connection = Connection::open(self.directory.path().join(ledger.file_name())).unwrap();
        connection.busy_timeout(Duration::from_secs(30)).unwrap();
        connection
    }

    /// Finished runs `from..=to` of `agent`, which said what they were told with another ending.
    fn runs(&self, from: i64, to: i64, agent: &str) {
        let mut events = self.connect(Ledger::Events);
        let mut nexus = self.connect(Ledger::Nexus);
        let mut agents = self.connect(Ledger::Agents);
        let (events, nexus, agents) = (events.transaction().unwrap(), nexus.transaction().unwrap(), agents.transaction().unwrap());
        for n in from..=to {
            let event = "INSERT INTO events (seq, key, event_id, channel, account_id, adapter, direction, sender_id, peer_id, peer_kind,
                           content_type, timestamp, received_at, disposition, content)
                         VALUES (?1, ?2, ?3, 'fake', 'me', 'fake', 'inbound', 'ann', 'p', 'dm', 'text', ?1, ?1, 'run', '')";
            events.execute(event, params![n, format!("{n:016}").as_bytes(), format!("fake:{n}")]).unwrap();
            let run = "INSERT INTO runs (run_id, event_seq, attempt, agent, session, status, started_at, finished_at, finish_seq, epoch)
                       VALUES (?1, ?2, 1, ?3, 's', 'finished', ?2, ?2, ?2, 1)";
            nexus.execute(run, params![format!("run_{n}"), n, agent]).unwrap();
            let turn = "INSERT INTO turns (turn_id, depth, session, agent, request_id, stop_reason, started_at, duration_ms, charged)
                        VALUES (?1, 1, 's', ?2, ?1, 'end_turn', ?3, 1.0, ?2)";
            agents.execute(turn, params![format!("turn_{n}"), agent, n]).unwrap();
            for (place, role, text) in [(0, "user", format!("question{n}")), (1, "assistant", format!("answer{n}"))] {
                let message = "INSERT INTO messages VALUES (?1, ?2, ?3, ?4)";
                agents.execute(message, params![format!("turn_{n}"), place, role, text]).unwrap();
            }
        }
        let applied = "INSERT INTO applied VALUES ('nexus.finish', ?1) ON CONFLICT (source) DO UPDATE SET seq = ?1";
        agents.execute(applied, [to]).unwrap();
        events.commit().unwrap();
        nexus.commit().unwrap();
        agents.commit().unwrap();
    }

    fn count(&self, agent: &str, sql: &str) -> i64 {
        Connection::open(self.file(agent)).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn entries(&self, agent: &str) -> i64 {
        self.count(agent, "SELECT count(*) FROM entries")
    }
}

fn both() -> BTreeSet<String> {
    BTreeSet::from(["a".to_owned(), "b".to_owned()])
}

/// Rounds until there is nothing left to do; how many. Each is after every pause of the one before.
fn settle(filler: &mut Filler) -> u32 {
    let began = Instant::now();
    (1..1000).find(|n| !filler.round(both(), false, began + RETRY_MAX * *n).unwrap()).expect("it comes to an end")
}

/// Why the file of an agent can't be filled now.
fn trouble(filler: &Filler, agent: &str) -> String {
    filler.troubles.get(agent).map(|trouble| trouble.told.clone()).unwrap_or_default()
}

fn asides(place: &Place) -> usize {
    cortex::list(&place.directory.path().join(cortex::DIRECTORY)).unwrap().1.len()
}

#[test]
fn each_agent_has_its_own_in_pages_and_nothing_twice() {
    let place = Place::new();
    place.runs(1, 600, "a");
    place.runs(601, 700, "b");
    let mut filler = place.filler();
    assert!(settle(&mut filler) > 2, "it was all one page");
    assert_eq!((place.entries("a"), place.entries("b")), (1200, 200));
    assert_eq!(place.count("a", "SELECT count(*) FROM words WHERE words MATCH 'question7 OR answer600'"), 2);
    assert_eq!(place.count("a", "SELECT count(*) FROM entries WHERE kind = 'event' AND sender = 'ann' AND source = 'fake:7'"), 1);
    assert!(filler.search.is_complete(&both(), 700));
    // A daemon that was killed: the next one goes on from what the files say.
    place.runs(701, 702, "a");
    let mut next = place.filler();
    assert!(!next.search.is_complete(&both(), 702));
    settle(&mut next);
    assert_eq!((place.entries("a"), place.entries("b")), (1204, 200));
}

#[test]
fn an_agent_that_never_ran_has_no_file_until_many_others_runs_are_behind_it() {
    let place = Place::new();
    place.runs(1, 10, "a");
    let mut filler = place.filler();
    settle(&mut filler);
    assert!(place.file("a").exists() && !place.file("b").exists());
    place.runs(11, 10 + SCAN_RUNS, "a");
    settle(&mut filler);
    assert_eq!(place.entries("b"), 0, "the runs that were looked through are remembered");
}

#[test]
fn a_file_that_was_removed_or_wanted_anew_begins_at_the_beginning() {
    let place = Place::new();
    place.runs(1, 5, "a");
    let mut filler = place.filler();
    settle(&mut filler);
    std::fs::remove_file(place.file("a")).unwrap();
    settle(&mut filler);
    assert_eq!(place.entries("a"), 10);
    Connection::open(place.file("a")).unwrap().execute_batch("DELETE FROM entries WHERE id = 1").unwrap();
    filler.search.wanted().insert("a".to_owned(), Wanted::new(Why::Asked));
    settle(&mut filler);
    assert_eq!(place.entries("a"), 10);
    assert!(filler.search.wanted().is_empty());
}

#[test]
fn one_of_an_agent_that_is_configured_no_more_is_filled_from_what_is_recorded_of_it() {
    let place = Place::new();
    place.runs(1, 5, "gone");
    let mut filler = place.filler();
    settle(&mut filler);
    assert_eq!(place.entries("gone"), 10);
    filler.search.wanted().insert("gone".to_owned(), Wanted::new(Why::Asked));
    settle(&mut filler);
    assert_eq!(place.entries("gone"), 10);
    assert!(filler.search.is_complete([&"gone".to_owned()], 5));
}

#[test]
fn a_damaged_file_is_set_aside_and_holds_up_no_other() {
    let place = Place::new();
    place.runs(1, 5, "a");
    place.runs(6, 9, "b");
    settle(&mut place.filler());
    std::fs::write(place.file("a"), "this is no database at all, but long enough to look like one".repeat(20)).unwrap();
    place.runs(10, 11, "b");
    let mut filler = place.filler();
    assert!(!filler.round(both(), false, Instant::now()).unwrap());
    assert!(trouble(&filler, "a").contains("is damaged"), "{filler:?}");
    assert_eq!(place.entries("b"), 12, "it need not wait");
    settle(&mut filler);
    assert_eq!((place.entries("a"), place.entries("b")), (10, 12));
    assert_eq!((asides(&place), trouble(&filler, "a").as_str()), (1, ""));
}

#[test]
fn one_that_fails_for_ever_is_paused_alone_and_tried_again() {
    let place = Place::new();
    place.runs(1, 5, "a");
    place.runs(6, 9, "b");
    std::fs::create_dir_all(place.file("a")).unwrap();
    let mut filler = place.filler();
    let began = Instant::now();
    filler.search.wanted().insert("a".to_owned(), Wanted::new(Why::Asked));
    assert!(!filler.round(both(), false, began).unwrap());
    assert!(filler.search.wanted().contains_key("a") && trouble(&filler, "a").contains("a.db"), "{filler:?}");
    assert_eq!(place.entries("b"), 8);
    assert!(filler.search.is_complete([&"b".to_owned()], 9) && !filler.search.is_complete(&both(), 9));
    // Its pauses grow, and no round of others' shortens them.
    let until = |filler: &Filler| filler.troubles["a"].until;
    let first = until(&filler);
    place.runs(10, 10, "b");
    assert!(!filler.round(both(), false, began).unwrap());
    assert_eq!((place.entries("b"), until(&filler)), (10, first));
    filler.round(both(), false, first).unwrap();
    assert_eq!(until(&filler), first + RETRY_FIRST * 2);
    assert!(filler.look_in(first) < LOOK_EVERY);
    for _ in 0..20 {
        let due = until(&filler);
        filler.round(both(), false, due).unwrap();
        assert!(until(&filler) <= due + RETRY_MAX);
    }
    // Whoever asks for it again need not wait for the pause.
    std::fs::remove_dir(place.file("a")).unwrap();
    filler.search.wanted().insert("a".to_owned(), Wanted::new(Why::Asked));
    filler.round(both(), false, began).unwrap();
    assert!(filler.search.wanted().is_empty());
    settle(&mut filler);
    assert_eq!((place.entries("a"), filler.troubles.len()), (10, 0));
    assert!(filler.search.is_complete(&both(), 10));
}

#[test]
fn damage_that_was_seen_in_the_file_before_says_nothing_of_the_new_one() {
    let place = Place::new();
    place.runs(1, 5, "a");
    let mut filler = place.filler();
    settle(&mut filler);
    let began = Instant::now();
    filler.search.wanted().insert("a".to_owned(), Wanted::new(Why::Asked));
    settle(&mut filler);
    let made = cortex::identity(&place.file("a")).unwrap();
    filler.search.suspect("a", began);
    settle(&mut filler);
    assert_eq!((cortex::identity(&place.file("a")).unwrap(), asides(&place)), (made, 0));
    assert!(filler.search.wanted().is_empty());
    filler.search.suspect("a", Instant::now());
    settle(&mut filler);
    assert_eq!((place.entries("a"), asides(&place)), (10, 1));
}

#[test]
fn who_sees_damage_does_not_take_back_that_it_was_asked_for() {
    let place = Place::new();
    place.runs(1, 5, "a");
    let mut filler = place.filler();
    settle(&mut filler);
    let began = Instant::now();
    filler.search.wanted().insert("a".to_owned(), Wanted::new(Why::Asked));
    filler.search.suspect("a", began);
    assert_eq!(filler.search.wanted()["a"].why, Why::Asked);
}

#[test]
fn a_file_without_its_tables_is_damaged_too() {
    let place = Place::new();
    place.runs(1, 5, "a");
    settle(&mut place.filler());
    Connection::open(place.file("a")).unwrap().execute_batch("DROP TABLE words").unwrap();
    place.runs(6, 6, "a");
    let mut filler = place.filler();
    filler.round(both(), false, Instant::now()).unwrap();
    assert!(trouble(&filler, "a").contains("is damaged"), "{filler:?}");
    settle(&mut filler);
    assert_eq!(place.entries("a"), 12);
}

#[test]
fn a_file_that_is_ahead_of_the_ledgers_is_made_anew() {
    let place = Place::new();
    place.runs(1, 5, "a");
    settle(&mut place.filler());
    Connection::open(place.file("a")).unwrap().execute_batch("UPDATE applied SET seq = 9; DELETE FROM entries").unwrap();
    let mut filler = place.filler();
    filler.round(both(), false, Instant::now()).unwrap();
    assert!(trouble(&filler, "a").contains("is not of these ledgers"), "{filler:?}");
    settle(&mut filler);
    assert_eq!(place.entries("a"), 10);
}

#[test]
fn on_a_disk_that_is_nearly_full_nothing_is_filled_but_put_away_what_is_wanted_anew() {
    let place = Place::new();
    place.runs(1, 5, "a");
    settle(&mut place.filler());
    place.runs(6, 9, "a");
    let mut filler = place.filler();
    assert!(!filler.round(both(), true, Instant::now()).unwrap());
    assert_eq!(place.entries("a"), 10);
    filler.search.wanted().insert("a".to_owned(), Wanted::new(Why::Asked));
    assert!(!filler.round(both(), true, Instant::now()).unwrap());
    assert!(!place.file("a").exists());
    settle(&mut filler);
    assert_eq!(place.entries("a"), 18);
}
