//! A run of the daemon whose power is lost at many places: it works below the preloaded recorder, is
//! killed and started again meanwhile, and stops. Then its data directory is rebuilt as a disk could have
//! been found at each place, and what was promised before that moment must be in it. Some of the rebuilt
//! directories get a daemon, which must bring everything to its end.

use super::log::{self, Op, What};
use super::points::points;
use super::rebuild::{Replay, whole};
use crate::chance::Chance;
use crate::check::{self, Copy, count, events, rows};
use crate::daemon::{self, Daemon, Extras};
use crate::feeder::Feeder;
use crate::report::Counts;
use crate::run::Setup;
use crate::world::{Cast, Kind, OnInterrupted, World};
use crate::{clock, journal};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use rusqlite::Connection;
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Kills during the run, and how long the daemon works before each and in the end.
const KILLS: u64 = 3;
const WORK: Duration = Duration::from_millis(1500);
const FEED_PAUSE_MS_MAX: u64 = 25;
/// Of so many rebuilt directories one gets a daemon.
const STARTED_ONE_IN: usize = 20;
/// How long monitors may take to be there.
const KNOWN_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to bring everything to its end.
const CALM_LIMIT: Duration = Duration::from_secs(120);
/// Each database, the notices' too: those may be lost, but not torn.
const DATABASES: [&str; 5] = ["events", "nexus", "agents", "identity", "bus"];
/// Below them the search indexes, which may be torn: a daemon makes them again.
const INDEX: &str = "cortex";
/// Findings of one trial that are told, besides the first of each kind; one lost sync breaks many promises.
const FINDINGS_MAX: usize = 20;

/// Which kind of promise a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Breach {
    /// Something is gone that others rely on
    Lost,
    /// A database is damaged
    Damaged,
    /// What had ended has another end
    Changed,
    /// A daemon that starts there doesn't do as it should
    After,
}

/// How a trial goes.
#[derive(Debug, Clone)]
pub(crate) struct Trial {
    pub(crate) setup: Setup,
    /// The recorder.
    pub(crate) shim: PathBuf,
    /// `PRAGMA synchronous` for the daemon, other than its own.
    pub(crate) synchronous: Option<String>,
    /// Places at which the power is lost.
    pub(crate) points: usize,
    /// Goes on until a promise of one of these kinds is broken.
    pub(crate) expected: Vec<Breach>,
}

/// What a trial came to.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) ops: usize,
    pub(crate) syncs: usize,
    pub(crate) cuts: usize,
    pub(crate) started: usize,
    pub(crate) acknowledged: usize,
    pub(crate) violations: Vec<(Breach, String)>,
    /// The world, if it was kept to be looked at.
    pub(crate) kept: Option<PathBuf>,
}

impl Found {
    fn has(&self, kind: Breach) -> bool {
        self.violations.iter().any(|(one, _)| *one == kind)
    }

    fn add(&mut self, kind: Breach, what: String) {
        if self.violations.len() < FINDINGS_MAX || !self.has(kind) {
            self.violations.push((kind, what));
        }
    }

    /// Whether one of these was found, if any is expected.
    pub(crate) fn is_as(&self, expected: &[Breach]) -> bool {
        expected.is_empty() || expected.iter().any(|kind| self.has(*kind))
    }

    /// Whether there is nothing more to be told.
    fn is_enough(&self, expected: &[Breach]) -> bool {
        self.violations.len() >= FINDINGS_MAX && self.is_as(expected)
    }
}

impl Trial {
    /// Runs the daemon and cuts its power.
    ///
    /// # Errors
    /// When the harness can't go on, or the recorder missed something.
    pub(crate) fn run(&self, seed: u64) -> Result<Found> {
        let dir =
            tempfile::Builder::new().prefix(&format!("power-{seed}-")).tempdir_in(&self.setup.dir).context("failed to make a directory")?;
        let world = World::make(dir.path(), Cast::default())?;
        let ops = self.record(&world, seed)?;
        let compared = dir.path().join("compared");
        whole(&ops, &compared)?;
        equal(&world.data(), &compared)?;
        let end: Ends = ends(&Copy::of(&world.data())?.nexus)?;
        let promised = Promised::read(&world)?;
        let mut found = Found {
            ops: ops.len(),
            syncs: ops.iter().filter(|op| matches!(op.what, What::Sync { .. } | What::SyncDir { .. })).count(),
            acknowledged: promised.acknowledged.len(),
            ..Found::default()
        };
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut replay = Replay::new(&ops);
        // What the first loss left that broke a promise, if worlds are kept.
        let first = dir.path().join("first-broken");
        for (number, at) in points(&ops, self.points, &mut rng).into_iter().enumerate() {
            let rebuilt = dir.path().join("rebuilt");
            replay.cut(at, &mut rng, &rebuilt)?;
            found.cuts += 1;
            let time = log::time_ns(&ops[at]);
            let mut wrong = promised.broken(&world, &rebuilt, time, &end)?;
            if wrong.is_empty() && number % STARTED_ONE_IN == STARTED_ONE_IN - 1 {
                found.started += 1;
                let after = self.go_on(&world, &rebuilt, time, seed).with_context(|| format!("after the loss at op {at}"))?;
                wrong.extend(after.into_iter().map(|what| (Breach::After, what)));
            }
            for (kind, what) in wrong {
                found.add(kind, format!("power lost at op {at} of {}: {what}", ops.len()));
            }
            if self.setup.keep && !found.violations.is_empty() && !first.exists() {
                fs::rename(&rebuilt, &first).context("failed to keep a rebuilt directory")?;
            } else {
                fs::remove_dir_all(&rebuilt).context("failed to remove a rebuilt directory")?;
            }
            if found.is_enough(&self.expected) {
                break;
            }
        }
        found.kept = (self.setup.keep && !found.violations.is_empty()).then(|| dir.keep());
        Ok(found)
    }

    /// The daemon's work, with kills, below the recorder.
    fn record(&self, world: &World, seed: u64) -> Result<Vec<Op>> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().mode(0o700).create(world.data()).context("failed to make the data directory")?;
        world.configure(&self.setup.own, seed, OnInterrupted::Auto, 0)?;
        let log = world.file("power.log");
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut env = vec![
            ("LD_PRELOAD".to_owned(), text(&self.shim)),
            ("NEXUS_POWERLOSS_DIR".to_owned(), text(&world.data())),
            ("NEXUS_POWERLOSS_LOG".to_owned(), text(&log)),
        ];
        env.extend(self.synchronous.clone().map(|level| ("NEXUS_SYNCHRONOUS".to_owned(), level)));
        let extras = Extras { fail_point: None, env };
        let first = started(world, &self.setup.nexus, &extras)?;
        // Of an account that the ledger doesn't know yet nothing is missed: people write once all are known.
        let known =
            clock::until(KNOWN_LIMIT, || Ok(check::children::wrong(world, &first, check::children::Intake::Goes).is_none().then_some(())))?;
        known.with_context(|| format!("not every account has its monitor: {}", daemon::last_words(world)))?;
        let feeder = Feeder::start(world, Chance::new(seed).about(&["feeder"]), FEED_PAUSE_MS_MAX);
        let worked = self.work(world, first, &extras);
        feeder.end()?;
        let mut last = worked?;
        // Its people are silent; it may end what it has in hand.
        let status = last.stop()?;
        if !status.success() {
            bail!("the recorded daemon ended with {status}: {}", daemon::last_words(world));
        }
        daemon::clear(world);
        if let Some(what) = journal::lines(&world.violations())?.first() {
            bail!("a promise was broken before any power was lost: {what}");
        }
        log::read(&log)
    }

    /// From the first daemon to the last, which lives.
    fn work(&self, world: &World, first: Daemon, extras: &Extras) -> Result<Daemon> {
        let mut one = first;
        for _ in 0..KILLS {
            clock::pause(WORK);
            one.kill()?;
            let free = clock::until(CALM_LIMIT, || Ok(daemon::lock_is_free(world).then_some(())))?;
            free.context("the lock of a killed daemon stays held")?;
            one = started(world, &self.setup.nexus, extras)?;
        }
        clock::pause(WORK);
        Ok(one)
    }

    /// Starts a daemon on what the loss left, in a world that is as it was then, and sees it end everything.
    fn go_on(&self, world: &World, rebuilt: &Path, time: u64, seed: u64) -> Result<Vec<String>> {
        let dir = tempfile::Builder::new().prefix("after-").tempdir_in(&self.setup.dir).context("failed to make a directory")?;
        let after = World::make(dir.path(), Cast::default())?;
        as_it_was(world, &after, time)?;
        check::copy(rebuilt, &after.data())?;
        let (index, index_after) = (rebuilt.join(INDEX), after.data().join(INDEX));
        if index.exists() {
            check::copy(&index, &index_after)?;
            fs::set_permissions(index_after, std::os::unix::fs::PermissionsExt::from_mode(0o700)).context("failed to set a mode")?;
        }
        fs::set_permissions(after.data(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).context("failed to set a mode")?;
        fs::write(after.calm(), "").context("failed to write a file")?;
        after.configure(&self.setup.own, seed, OnInterrupted::Auto, 0)?;
        let mut one = match started(&after, &self.setup.nexus, &Extras::default()) {
            Ok(one) => one,
            Err(error) => return Ok(vec![format!("{error:#}")]),
        };
        let quiet = clock::until(CALM_LIMIT, || {
            clock::pause(Duration::from_millis(100));
            Ok(check::open_work(&after)?.is_none().then_some(()))
        })?;
        let status = one.stop()?;
        let mut found = check::everything(&after, OnInterrupted::Auto, &mut Counts::default())?;
        if quiet.is_none() {
            found.extend(check::open_work(&after)?.map(|open| format!("not all came to an end: {open}")));
        }
        if !status.success() {
            found.push(format!("the stop ended with {status}: {}", daemon::last_words(&after)));
        }
        let (is_content, said) = check::doctor(&self.setup.nexus, &after)?;
        if !is_content {
            found.push(format!("`nexus doctor` isn't content: {said}"));
        }
        daemon::clear(&after);
        found.extend(journal::lines(&after.violations())?);
        Ok(found)
    }
}

fn started(world: &World, nexus: &Path, extras: &Extras) -> Result<Daemon> {
    let mut daemon = Daemon::spawn(world, nexus, extras)?;
    if !daemon.ready()? {
        bail!("a daemon did not start: {}", daemon::last_words(world));
    }
    Ok(daemon)
}

/// What everybody had seen at this time.
fn as_it_was(world: &World, after: &World, time: u64) -> Result<()> {
    for kind in Kind::ALL {
        for account in kind.accounts() {
            for line in journal::values(&world.feed(kind, account))? {
                if line["ns"].as_u64().is_some_and(|at| at < time) {
                    journal::append(&after.feed(kind, account), &line.to_string())?;
                }
            }
            for (id, at) in journal::acked(&world.acks(kind, account))?.into_iter().filter(|(_, at)| *at < time) {
                journal::append(&after.acks(kind, account), &format!("{id} {at}"))?;
            }
        }
    }
    for (from, to) in [
        (world.sends(), after.sends()),
        (world.send_calls(), after.send_calls()),
        (world.refusals(), after.refusals()),
        (world.agent_journal(), after.agent_journal()),
    ] {
        for line in journal::values(&from)?.into_iter().filter(|line| line["at"].as_u64().is_some_and(|at| at < time)) {
            journal::append(&to, &line.to_string())?;
        }
    }
    Ok(())
}

/// The files of two directories are the same, but for the log's index, which is not kept.
fn equal(real: &Path, replayed: &Path) -> Result<()> {
    let list = |directory: &Path| -> Result<HashMap<String, Vec<u8>>> {
        let mut files = HashMap::new();
        for entry in fs::read_dir(directory).context("failed to list a directory")? {
            let entry = entry.context("failed to list a directory")?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.ends_with("-shm") && entry.path().is_file() {
                files.insert(name, fs::read(entry.path()).context("failed to read a file")?);
            }
        }
        Ok(files)
    };
    let (real, replayed) = (list(real)?, list(replayed)?);
    let mut names: Vec<&String> = real.keys().chain(replayed.keys()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        if real.get(name) != replayed.get(name) {
            let size = |files: &HashMap<String, Vec<u8>>| files.get(name).map(Vec::len);
            bail!("the recorder missed a change of `{name}`: {:?} bytes on the disk, {:?} replayed", size(&real), size(&replayed));
        }
    }
    Ok(())
}

/// Status of each request that has ended, by its event's seq.
type Ends = HashMap<i64, String>;

fn ends(nexus: &Connection) -> Result<Ends> {
    let sql = "SELECT event_seq, status FROM nexus_requests WHERE completed_at IS NOT NULL";
    Ok(rows(nexus, sql, |row| Ok((row.get(0)?, row.get(1)?)))?.into_iter().collect())
}

/// What others could rely on, and since when.
struct Promised {
    acknowledged: Vec<(String, u64)>,
    /// Keys of sends that were begun, and runs that agents were called for.
    sends: Vec<(String, u64)>,
    runs: Vec<(String, u64)>,
}

impl Promised {
    fn read(world: &World) -> Result<Self> {
        let of = |path: &Path, key: &str| -> Result<Vec<(String, u64)>> {
            let lines = journal::values(path)?;
            let read = |line: &Value| Some((line[key].as_str()?.to_owned(), line["at"].as_u64()?));
            lines.iter().map(|line| read(line).context("a journal's line lacks something")).collect()
        };
        let mut acknowledged = Vec::new();
        for kind in Kind::ALL.into_iter().filter(|kind| kind.acks()) {
            for account in kind.accounts() {
                acknowledged.extend(journal::acked(&world.acks(kind, account))?);
            }
        }
        Ok(Self { acknowledged, sends: of(&world.send_calls(), "key")?, runs: of(&world.agent_journal(), "run_id")? })
    }

    /// What a rebuilt directory lacks of what was promised before `time`.
    fn broken(&self, world: &World, rebuilt: &Path, time: u64, end: &Ends) -> Result<Vec<(Breach, String)>> {
        let lost = |what: String| (Breach::Lost, what);
        let mut found = Vec::new();
        let promised_before = |all: &[(String, u64)]| all.iter().any(|(_, at)| *at < time);
        for name in DATABASES {
            found.extend(sound(rebuilt, name)?.map(|what| (Breach::Damaged, what)));
        }
        let are_whole = sound(rebuilt, "events")?.is_none() && sound(rebuilt, "nexus")?.is_none();
        // Before the first start came to its end there may be no tables yet, and nothing was promised.
        let made = |name: &str, table: &str| -> bool {
            Connection::open(rebuilt.join(format!("{name}.db")))
                .and_then(|file| file.prepare(&format!("SELECT 1 FROM {table}")).map(drop))
                .is_ok()
        };
        if !are_whole || !made("events", "events") || !made("nexus", "counters") {
            let all = [&self.acknowledged, &self.sends, &self.runs];
            if are_whole && all.into_iter().any(|one| promised_before(one)) {
                found.push(lost("a ledger has no tables, and others rely on it".to_owned()));
            }
            return Ok(found);
        }
        let copy = Copy::of(rebuilt)?;
        found.extend(events::acknowledged_are_there(world, &copy.events, time)?.into_iter().map(lost));
        found.extend(events::cursors_are_covered(world, &copy.events)?.into_iter().map(lost));
        for (seq, status) in ends(&copy.nexus)? {
            if end.get(&seq) != Some(&status) {
                let what = format!("the request of event {seq} ended as `{status}`, and as {:?} in the end", end.get(&seq));
                found.push((Breach::Changed, what));
            }
        }
        let last = count(&copy.events, "SELECT coalesce(max(seq), 0) FROM events")?;
        let read = count(&copy.nexus, "SELECT value FROM counters WHERE name = 'intake_seq'")?;
        if read > last {
            found.push(lost(format!("requests follow events up to {read}, and there are {last}")));
        }
        found.extend(self.begun(&copy.nexus, time)?.into_iter().map(lost));
        Ok(found)
    }

    /// A send and a run are in the ledger before anything of them happens.
    fn begun(&self, nexus: &Connection, time: u64) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let sent: Vec<String> = rows(nexus, "SELECT idempotency_key FROM deliveries WHERE attempts > 0", |row| row.get(0))?;
        let run: Vec<String> = rows(nexus, "SELECT run_id FROM runs", |row| row.get(0))?;
        for (what, known, all) in [("send", sent, &self.sends), ("run", run, &self.runs)] {
            let known: std::collections::HashSet<String> = known.into_iter().collect();
            let unknown = all.iter().filter(|(id, at)| *at < time && !known.contains(id)).count();
            if unknown > 0 {
                found.push(format!("{unknown} times a {what} had begun that the ledger doesn't know"));
            }
        }
        Ok(found)
    }
}

/// Whether SQLite finds a file whole. One that isn't there, or is empty, is.
fn sound(rebuilt: &Path, name: &str) -> Result<Option<String>> {
    let path = rebuilt.join(format!("{name}.db"));
    if !path.exists() {
        return Ok(None);
    }
    let asked = Connection::open(&path).and_then(|file| file.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)));
    Ok(match asked {
        Ok(answer) if answer == "ok" => None,
        Ok(answer) => Some(format!("{name}.db is damaged: {}", answer.lines().next().unwrap_or_default())),
        Err(error) => Some(format!("{name}.db can't be read: {error}")),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::check::made::Made;

    /// What is found where this happened to the ledgers of a world in which two messages were answered.
    fn found(events: &str, nexus: &str, time: u64) -> Vec<(Breach, String)> {
        let made = Made::whole(Kind::Acked, 2);
        let (promised, end) = (Promised::read(&made.world).unwrap(), ends(&made.nexus).unwrap());
        made.events.execute_batch(events).unwrap();
        made.nexus.execute_batch(nexus).unwrap();
        promised.broken(&made.world, &made.world.data(), time, &end).unwrap()
    }

    #[track_caller]
    fn breaks(events: &str, nexus: &str, kind: Breach, what: &str) {
        let found = found(events, nexus, 10);
        assert!(found.iter().any(|(one, told)| *one == kind && told.contains(what)), "`{what}` is not in {found:?}");
    }

    #[test]
    fn what_others_rely_on_is_missed() {
        assert!(found("", "", 10).is_empty());
        breaks("DELETE FROM events WHERE seq = 1", "", Breach::Lost, "acknowledged and not in the ledger: [\"acked:a-1\"]");
        breaks("", "UPDATE counters SET value = 9", Breach::Lost, "requests follow events up to 9, and there are 2");
        breaks("", "DELETE FROM runs WHERE event_seq = 1", Breach::Lost, "2 times a run had begun that the ledger doesn't know");
        breaks("", "UPDATE deliveries SET attempts = 0 WHERE seq = 1", Breach::Lost, "1 times a send had begun");
        breaks("DROP TABLE events", "", Breach::Lost, "a ledger has no tables, and others rely on it");
        breaks("INSERT INTO cursors VALUES ('acked', 'a', 'acked:a-9')", "", Breach::Lost, "a cursor is past what was committed");
        let gone = found("DELETE FROM events", "DELETE FROM runs; UPDATE counters SET value = 0", 1);
        assert!(gone.is_empty(), "nothing was promised yet: {gone:?}");
    }

    #[test]
    fn another_end_and_a_damaged_file_are_found() {
        breaks("", "UPDATE nexus_requests SET status = 'failed' WHERE event_seq = 2", Breach::Changed, "event 2 ended as `failed`");
        let made = Made::whole(Kind::Acked, 2);
        fs::write(made.world.data().join("bus.db"), "no database ".repeat(1000)).unwrap();
        let (promised, end) = (Promised::read(&made.world).unwrap(), ends(&made.nexus).unwrap());
        let broken = promised.broken(&made.world, &made.world.data(), 10, &end).unwrap();
        assert!(matches!(&broken[..], [(Breach::Damaged, what)] if what.starts_with("bus.db can't be read")), "{broken:?}");
    }

    #[test]
    fn many_findings_of_one_kind_are_not_another() {
        let mut found = Found::default();
        (0..2 * FINDINGS_MAX).for_each(|number| found.add(Breach::Damaged, number.to_string()));
        assert!(found.violations.len() == FINDINGS_MAX && found.is_enough(&[]) && found.is_as(&[Breach::Lost, Breach::Damaged]));
        assert!(!found.is_enough(&[Breach::Lost]) && !found.is_as(&[Breach::Lost]), "it goes on");
        found.add(Breach::Lost, "an event".to_owned());
        assert!(found.is_enough(&[Breach::Lost]) && found.is_as(&[Breach::Lost]));
    }
}
