//! Long and steady: one adapter with acknowledgements brings messages at a fixed rate, one in ten is
//! answered and sent, and the daemon is killed each minute. In the end every message must be in the
//! ledger once, at its end, and every answer sent once; and the daemon must not have grown.

use crate::check::{count, pairs};
use crate::daemon::{self, Daemon, Extras};
use crate::procfs::{self, Process};
use crate::world::{Cast, World};
use crate::{clock, journal};
use anyhow::{Context, Result, bail};
use rusqlite::{Connection, OpenFlags};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The first argument that makes this program the adapter of a soak.
pub(crate) const WORD: &str = "__soak";
/// One message in so many is answered; the others are somebody else's talk.
const ANSWERED_ONE_IN: u64 = 10;
/// Messages are written in bursts this far apart.
const BURST_EVERY: Duration = Duration::from_millis(20);
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// After its start a daemon fills its caches.
const WARM_AFTER_S: u64 = 20;
/// What a daemon may have more at the end of its life than when it was warm. The ring of notices has 16 MiB.
const GROWTH_KIB_MAX: u64 = 32 * 1024;
/// Connections to read, which are opened as they are needed and kept, up to four of two descriptors per ledger;
/// and sixteen sends, as many as one adapter may have under way, with four each. A busy machine has them for a
/// whole half of a life; one that was kept of each send would be ten times as many.
const GROWTH_DESCRIPTORS_MAX: u64 = 40 + 16 * 4;
/// What daemons may have more in the median of any sixth of the whole time than in that of the first one: caches of SQLite fill
/// with the ledgers, up to their bounds, and connections to read are those of above.
const FLAT_KIB_MAX: u64 = 32 * 1024;
const FLAT_DESCRIPTORS_MAX: u64 = 40;
const PARTS: u64 = 6;
/// How long everything may take to end once no more comes.
const CALM_LIMIT: Duration = Duration::from_secs(300);

/// What a soak is told.
#[derive(Debug, Clone)]
pub(crate) struct Soak {
    pub(crate) nexus: PathBuf,
    pub(crate) own: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) minutes: u64,
    pub(crate) per_second: u64,
    /// Between two kills.
    pub(crate) kill_every: Duration,
}

/// One look at the running daemon.
#[derive(Debug, Clone, Copy)]
struct Sample {
    rss_kib: u64,
    descriptors: u64,
    /// Since its start.
    age_s: u64,
    /// Which start it was, from 0.
    life: u64,
}

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    samples: Vec<(u64, Sample)>,
    ready_ms: Vec<u64>,
    kills: u64,
    pub(crate) violations: Vec<String>,
    lines: Vec<(String, String)>,
}

impl Soak {
    /// Runs it.
    ///
    /// # Errors
    /// When the harness can't go on.
    pub(crate) fn run(&self, mut say: impl FnMut(&str)) -> Result<Seen> {
        let dir = tempfile::Builder::new().prefix("soak-").tempdir_in(&self.dir).context("failed to make a directory")?;
        let world = World::make(dir.path(), Cast::default())?;
        self.configure(&world)?;
        let mut seen = Seen::default();
        let began = Instant::now();
        let end = Duration::from_secs(self.minutes * 60);
        while began.elapsed() < end {
            let mut daemon = self.start(&world, &mut seen)?;
            let until = (began.elapsed() + self.kill_every).min(end);
            let started = Instant::now();
            while began.elapsed() < until {
                clock::pause(SAMPLE_EVERY.min(until.saturating_sub(began.elapsed())));
                let Some(rss_kib) = procfs::rss_kib(daemon.pid()) else { bail!("the daemon is gone: {}", daemon::last_words(&world)) };
                let descriptors = procfs::descriptors(daemon.pid()).unwrap_or(0) as u64;
                seen.samples.push((
                    began.elapsed().as_secs(),
                    Sample { rss_kib, descriptors, age_s: started.elapsed().as_secs(), life: seen.kills },
                ));
            }
            self.kill(&mut daemon, &mut seen)?;
            say(&format!("{} s: {} kills, {} written", began.elapsed().as_secs(), seen.kills, written(&world)?));
        }
        fs::write(world.calm(), "").context("failed to write a file")?;
        let mut last = self.start(&world, &mut seen)?;
        let quiet = clock::until(CALM_LIMIT, || {
            clock::pause(Duration::from_secs(1));
            Ok(open(&world)?.is_none().then_some(()))
        })?;
        if quiet.is_none() {
            seen.violations.extend(open(&world)?);
        }
        let status = last.stop()?;
        if !status.success() {
            seen.violations.push(format!("the last stop ended with {status}"));
        }
        check(&world, &mut seen)?;
        seen.check_growth();
        seen.check_flatness();
        daemon::clear(&world);
        Ok(seen)
    }

    fn start(&self, world: &World, seen: &mut Seen) -> Result<Daemon> {
        let began = Instant::now();
        let mut daemon = Daemon::spawn(world, &self.nexus, &Extras::default())?;
        if !daemon.ready()? {
            bail!("the daemon did not start: {}", daemon::last_words(world));
        }
        seen.ready_ms.push(u64::try_from(began.elapsed().as_millis())?);
        Ok(daemon)
    }

    /// In turn the daemon alone, and the daemon with its keeper.
    fn kill(&self, daemon: &mut Daemon, seen: &mut Seen) -> Result<()> {
        seen.kills += 1;
        let keeper = daemon.keeper().filter(|_| seen.kills.is_multiple_of(2));
        keeper.iter().for_each(|keeper: &Process| keeper.signal(Signal::KILL));
        daemon.kill()
    }

    fn configure(&self, world: &World) -> Result<()> {
        let command = format!("'{}' {WORD} '{}' {}", self.own.display(), world.root().display(), self.per_second);
        let config = json!({
            "daemon": { "port": 0, "log_level": "warn" },
            "ledgers": { "min_free_mb": 1 },
            "timer": { "heartbeat_interval_ms": 0 },
            "plugins": { "enabled": ["analytics"] },
            "access": { "default": "deny", "policies": [
                { "name": "asked", "match": { "conditions": [{ "peer_kind": "dm" }] }, "effect": "allow", "session": { "agent": "echo", "key": "{peer_id}" } },
            ] },
            "adapters": { "soak": { "command": command, "send": { "timeout_ms": 20_000, "on_uncertain": "hold" }, "accounts": { "me": {} } } },
        });
        fs::write(world.config_file(), format!("{config:#}")).context("failed to write nex.yaml")
    }
}

/// How many messages were written so far.
fn written(world: &World) -> Result<u64> {
    let text = fs::read_to_string(world.file("platform/written")).unwrap_or_default();
    if text.is_empty() { Ok(0) } else { text.trim().parse().context("no number") }
}

fn ledger(world: &World, name: &str) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(world.data().join(format!("{name}.db")), flags).context("failed to open a ledger")?;
    connection.busy_timeout(Duration::from_secs(10)).context("failed to limit waiting")?;
    Ok(connection)
}

/// What has not come to its end.
fn open(world: &World) -> Result<Option<String>> {
    let (events, nexus) = (ledger(world, "events")?, ledger(world, "nexus")?);
    let written = written(world)?;
    let accepted = count(&events, "SELECT events FROM cursors")?;
    let ended = count(&nexus, "SELECT count(*) FROM nexus_requests WHERE completed_at IS NOT NULL")?;
    let waiting = count(&nexus, "SELECT count(*) FROM deliveries WHERE status IN ('pending', 'sending')")?;
    let all = accepted >= written && ended >= written && waiting == 0;
    Ok((!all).then(|| format!("{written} were written, {accepted} are accepted, {ended} have ended, {waiting} answers wait")))
}

fn check(world: &World, seen: &mut Seen) -> Result<()> {
    let (events, nexus) = (ledger(world, "events")?, ledger(world, "nexus")?);
    let written = written(world)?;
    let inbound = count(&events, "SELECT count(*) FROM events WHERE direction = 'inbound'")?;
    let distinct = count(&events, "SELECT count(DISTINCT event_id) FROM events WHERE direction = 'inbound'")?;
    let highest = count(
        &events,
        "SELECT coalesce(max(cast(substr(event_id, length('soak:me-') + 1) AS INTEGER)), 0) FROM events WHERE direction = 'inbound'",
    )?;
    seen.row("messages written", written);
    seen.row("in the ledger", inbound);
    seen.row("lost", written.saturating_sub(distinct));
    seen.row("doubled", inbound - distinct);
    if inbound != written || distinct != written || highest != written {
        seen.violations
            .push(format!("{written} were written; the ledger has {inbound}, {distinct} of them distinct, up to number {highest}"));
    }
    let requests = count(&nexus, "SELECT count(*) FROM nexus_requests")?;
    let open = count(&nexus, "SELECT count(*) FROM nexus_requests WHERE completed_at IS NULL")?;
    for (status, number) in pairs(&nexus, "SELECT status, count(*) FROM nexus_requests GROUP BY 1")? {
        seen.row(&format!("requests `{status}`"), number);
    }
    if requests != written || open > 0 {
        seen.violations.push(format!("{requests} requests for {written} messages, {open} of them open"));
    }
    let mut sent: HashMap<String, u64> = HashMap::new();
    journal::lines(&world.sends())?.into_iter().for_each(|key| *sent.entry(key).or_default() += 1);
    let statuses = pairs(&nexus, "SELECT status, count(*) FROM deliveries GROUP BY 1")?;
    for (status, number) in &statuses {
        seen.row(&format!("answers `{status}`"), *number);
    }
    let twice = sent.values().filter(|times| **times > 1).count();
    seen.row("answers that arrived twice", twice);
    let as_sent = count(&nexus, "SELECT count(*) FROM deliveries WHERE status = 'sent'")?;
    let uncertain = count(&nexus, "SELECT count(*) FROM deliveries WHERE status = 'uncertain'")?;
    let arrived = sent.len() as u64;
    if twice > 0 || arrived < as_sent || arrived > as_sent + uncertain || as_sent + uncertain != written / ANSWERED_ONE_IN {
        seen.violations.push(format!("{arrived} answers arrived, {twice} of them twice; {as_sent} are `sent`, {uncertain} uncertain"));
    }
    Ok(())
}

impl Seen {
    fn row(&mut self, name: &str, value: impl ToString) {
        self.lines.push((name.to_owned(), value.to_string()));
    }

    /// From when it was warm to its end no daemon grew. What is under way comes and goes (a send has a process
    /// with its pipes), so the lowest values of the two halves of each life are compared: what is kept for
    /// ever raises those too.
    fn check_growth(&mut self) {
        let mut lives: BTreeMap<u64, Vec<Sample>> = BTreeMap::new();
        for (_, sample) in self.samples.iter().filter(|(_, one)| one.age_s >= WARM_AFTER_S) {
            lives.entry(sample.life).or_default().push(*sample);
        }
        lives.retain(|_, samples| samples.len() >= 2);
        let most = |value: fn(&Sample) -> u64| lives.values().map(|samples| risen(samples, value)).max().unwrap_or(0);
        let (kib, descriptors) = (most(RSS_KIB), most(DESCRIPTORS));
        self.row("lives that were looked at for growth", lives.len());
        self.row("most KiB that one daemon grew once it was warm", kib);
        self.row("most descriptors that one daemon had more once it was warm", descriptors);
        if kib > GROWTH_KIB_MAX || descriptors > GROWTH_DESCRIPTORS_MAX {
            self.violations.push(format!("a daemon grew by {kib} KiB and {descriptors} descriptors once it was warm"));
        }
    }

    /// Over the whole time it stays as it was: no sixth of it has a median far above that of the first one in which a daemon
    /// was warm.
    fn check_flatness(&mut self) {
        for (what, value, most) in [("KiB", RSS_KIB, FLAT_KIB_MAX), ("descriptors", DESCRIPTORS, FLAT_DESCRIPTORS_MAX)] {
            let medians: Vec<u64> = self.sixths(value).iter().filter_map(|all| median(all)).collect();
            let first = medians.first().copied().unwrap_or(0);
            let rise = medians.iter().map(|one| one.saturating_sub(first)).max().unwrap_or(0);
            self.row(&format!("most {what} more in the median of a sixth than in the first of {} with a warm daemon", medians.len()), rise);
            if rise > most {
                self.violations.push(format!("the medians of {what} over the sixths of the time are not flat: {medians:?}"));
            }
        }
    }

    /// What daemons that were warm had, by sixths of the whole time, ascending in each.
    fn sixths(&self, value: fn(&Sample) -> u64) -> Vec<Vec<u64>> {
        let end = self.samples.last().map_or(1, |(at, _)| at + 1);
        let of = |part: u64| {
            let within = self.samples.iter().filter(|(at, one)| at * PARTS / end == part && one.age_s >= WARM_AFTER_S);
            let mut all: Vec<u64> = within.map(|(_, one)| value(one)).collect();
            all.sort_unstable();
            all
        };
        (0..PARTS).map(of).collect()
    }

    /// The page's table: what was counted, and whether the daemon grew, by samples of daemons that were warm.
    pub(crate) fn table(&self) -> String {
        let mut page = "| seen | value |\n| --- | --- |\n".to_owned();
        let mut line = |name: &str, value: String| writeln!(page, "| {name} | {value} |").unwrap_or_default();
        self.lines.iter().for_each(|(name, value)| line(name, value.clone()));
        line("kills", self.kills.to_string());
        for (name, value) in [("RSS, KiB", RSS_KIB), ("descriptors", DESCRIPTORS)] {
            let sixths = self.sixths(value);
            for (which, all) in [("first", sixths.first()), ("last", sixths.last())] {
                let (median, highest) = all.map_or((0, 0), |all| (median(all).unwrap_or(0), all.last().copied().unwrap_or(0)));
                line(&format!("{name}, {which} sixth: median, highest"), format!("{median}, {highest}"));
            }
        }
        let sixth = (self.ready_ms.len() / 6).max(1);
        let of = |all: &[u64]| {
            let mut all = all.to_vec();
            all.sort_unstable();
            median(&all).unwrap_or(0).to_string()
        };
        line("ms from spawn to ready after a kill, first sixth: median", of(&self.ready_ms[..sixth.min(self.ready_ms.len())]));
        line("ms from spawn to ready after a kill, last sixth: median", of(&self.ready_ms[self.ready_ms.len().saturating_sub(sixth)..]));
        page
    }
}

const RSS_KIB: fn(&Sample) -> u64 = |one| one.rss_kib;
const DESCRIPTORS: fn(&Sample) -> u64 = |one| one.descriptors;

/// Of values in ascending order.
fn median(all: &[u64]) -> Option<u64> {
    all.get(all.len() / 2).copied()
}

/// By how much the lowest value of the second half is above that of the first.
fn risen(samples: &[Sample], value: fn(&Sample) -> u64) -> u64 {
    let lowest = |half: &[Sample]| half.iter().map(value).min().unwrap_or(0);
    let (first, second) = samples.split_at(samples.len() / 2);
    lowest(second).saturating_sub(lowest(first))
}

/// This program as the adapter: `WORLD RATE` and a verb of the protocol.
///
/// # Errors
/// Of the file system, and words that are no call of an adapter.
pub(crate) fn adapt(args: &[String]) -> Result<ExitCode> {
    let [root, rate, words @ ..] = args else { bail!("the adapter is called with WORLD RATE VERB") };
    let world = World::at(Path::new(root));
    let mut out = io::stdout().lock();
    match words.first().map(String::as_str) {
        Some("info") => {
            let info = json!({ "channel": "soak", "name": "nexus-torture", "version": "1", "supports": ["monitor", "send", "ack"], "multi_account": true });
            writeln!(out, "{info}").context("failed to print")?;
        }
        Some("monitor") => {
            drop(out);
            monitor(&world, rate.parse().context("the rate is no number")?)?;
        }
        Some("send") => {
            let at = words.iter().position(|word| word == "--idempotency-key").context("--idempotency-key is missing")?;
            let key = words.get(at + 1).context("--idempotency-key is missing")?;
            journal::append(&world.sends(), key)?;
            writeln!(out, "{}", json!({ "success": true, "message_ids": [key], "chunks_sent": 1 })).context("failed to print")?;
        }
        Some(_) | None => bail!("no verb of this adapter: {words:?}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Goes on behind the last message that was acknowledged, at its rate.
fn monitor(world: &World, per_second: u64) -> Result<()> {
    let acked = world.file("platform/acked");
    let start: u64 = fs::read_to_string(&acked).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    std::thread::spawn(move || -> Result<()> {
        for line in io::stdin().lock().lines() {
            let ack: Value =
                serde_json::from_str(&line.context("failed to read an acknowledgement")?).context("an acknowledgement is no JSON")?;
            let number = ack["ack"].as_str().and_then(|id| id.rsplit_once('-')).map(|(_, number)| number.to_owned());
            replace(&acked, &number.context("an acknowledgement names nothing")?)?;
        }
        Ok(())
    });
    let before = written(world)?;
    // What was written and not acknowledged comes again, at once.
    let mut next = start;
    while next < before {
        next += 1;
        emit(next..next + 1)?;
    }
    let began = Instant::now();
    let mut due = 0;
    loop {
        clock::pause(BURST_EVERY);
        if world.is_calm() {
            continue;
        }
        let now = u64::try_from(began.elapsed().as_millis())? * per_second / 1000;
        let burst = next + 1..next + 1 + (now - due);
        due = now;
        if burst.is_empty() {
            continue;
        }
        next = burst.end - 1;
        replace(&world.file("platform/written"), &next.to_string())?;
        emit(burst)?;
    }
}

fn replace(path: &Path, text: &str) -> Result<()> {
    let draft = path.with_extension("draft");
    fs::write(&draft, text).and_then(|()| fs::rename(&draft, path)).context("failed to note a number")
}

fn emit(numbers: std::ops::Range<u64>) -> Result<()> {
    let mut lines = String::new();
    for number in numbers {
        let kind = if number.is_multiple_of(ANSWERED_ONE_IN) { "dm" } else { "channel" };
        let event = json!({
            "event_id": format!("soak:me-{number}"), "timestamp": clock::wall_ms(), "content": format!("message {number}"), "content_type": "text",
            "channel": "soak", "account_id": "me", "sender_id": format!("u{}", number % 97), "peer_id": format!("p{}", number % 89), "peer_kind": kind,
        });
        writeln!(lines, "{event}").unwrap_or_default();
    }
    let mut out = io::stdout().lock();
    out.write_all(lines.as_bytes()).and_then(|()| out.flush()).context("failed to write to the daemon")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::check::made::Made;
    use crate::world::Kind;

    fn grown(samples: &[(u64, u64, u64)]) -> usize {
        let sample = |&(life, age_s, rss_kib): &(u64, u64, u64)| (age_s, Sample { rss_kib, descriptors: 9, age_s, life });
        let mut seen = Seen { samples: samples.iter().map(sample).collect(), ..Seen::default() };
        seen.check_growth();
        seen.violations.len()
    }

    #[test]
    fn growth_counts_within_one_warm_life() {
        let much = GROWTH_KIB_MAX + 1;
        assert_eq!(grown(&[(0, 25, 100), (0, 30, 100 + much)]), 1);
        assert_eq!(grown(&[(0, 5, 100), (0, 30, 100 + much)]), 0, "it was cold");
        assert_eq!(grown(&[(0, 25, 100), (1, 25, 100 + much)]), 0, "it was another one");
        let steady = [(0, 25, 100), (0, 30, 100), (0, 35, 100 + much), (0, 40, 100 + 2 * much)];
        assert_eq!(grown(&steady), 1, "it only ever rises");
        let passing = [(0, 25, 100), (0, 30, 100), (0, 35, 100), (0, 40, 100 + much)];
        assert_eq!(grown(&passing), 0, "what was under way at the end");
        assert_eq!(grown(&[]), 0);
    }

    #[test]
    fn what_rises_from_life_to_life_is_not_flat() {
        let flat = |kib: fn(u64) -> u64, descriptors: fn(u64) -> u64| {
            let sample = |life: u64| Sample { rss_kib: kib(life), descriptors: descriptors(life), age_s: 30, life };
            let mut seen = Seen { samples: (0..60).map(|life| (life * 60, sample(life))).collect(), ..Seen::default() };
            seen.check_growth();
            seen.check_flatness();
            seen.violations.join("; ")
        };
        assert_eq!(flat(|_| 60_000, |_| 70), "");
        assert_eq!(flat(|life| 60_000 + life * 100, |life| 70 + life % 10), "", "within its bounds");
        assert_eq!(flat(|life| if life == 55 { 900_000 } else { 60_000 }, |_| 70), "", "one of many");
        assert!(flat(|life| 60_000 + life * 1000, |_| 70).contains("the medians of KiB over the sixths of the time are not flat"));
        assert!(flat(|_| 60_000, |life| 70 + life).contains("the medians of descriptors"));
        let middle = flat(|life| if (25..35).contains(&life) { 900_000 } else { 60_000 }, |_| 70);
        assert!(middle.contains("the medians of KiB"), "in the middle too: {middle}");
    }

    /// What is found where twenty messages came and two were answered, and then this happened.
    fn found(events: &str, nexus: &str, more_sends: &[&str]) -> String {
        let made = Made::new(Kind::Acked);
        fs::write(made.world.file("platform/written"), "20").unwrap();
        for number in 1..=20 {
            let id = format!("soak:me-{number}");
            let sql = "INSERT INTO events VALUES (?1, ?2, 'soak', 'me', 'p', 'inbound', 'run', 'x')";
            made.events.execute(sql, rusqlite::params![number, id]).unwrap();
            let sql = "INSERT INTO nexus_requests VALUES (?1, ?2, 'soak', 'completed', 1, 5)";
            made.nexus.execute(sql, rusqlite::params![number, id]).unwrap();
        }
        let sql = "INSERT INTO deliveries VALUES (?1, ?1, 'key-' || ?1, 'sent', 'soak', 'me', 'p', 'x', 1, 'run', 0, 0)";
        for number in [10, 20] {
            made.nexus.execute(sql, [number]).unwrap();
        }
        made.events.execute_batch(events).unwrap();
        made.nexus.execute_batch(nexus).unwrap();
        ["key-10", "key-20"].iter().chain(more_sends).for_each(|key| journal::append(&made.world.sends(), key).unwrap());
        let mut seen = Seen::default();
        check(&made.world, &mut seen).unwrap();
        seen.violations.join("; ")
    }

    #[test]
    fn what_is_lost_or_comes_twice_is_found() {
        assert_eq!(found("", "", &[]), "");
        assert!(found("DELETE FROM events WHERE seq = 7", "", &[]).contains("20 were written; the ledger has 19, 19 of them distinct"));
        let twice = "INSERT INTO events SELECT * FROM events WHERE seq = 7";
        assert!(found(twice, "", &[]).contains("the ledger has 21, 20 of them distinct"));
        assert!(found("UPDATE events SET event_id = 'soak:me-30' WHERE seq = 7", "", &[]).contains("up to number 30"));
        assert!(found("", "DELETE FROM nexus_requests WHERE event_seq = 7", &[]).contains("19 requests for 20 messages"));
        assert!(found("", "UPDATE nexus_requests SET completed_at = NULL WHERE event_seq = 7", &[]).contains("1 of them open"));
        assert!(found("", "", &["key-10"]).contains("2 answers arrived, 1 of them twice"));
        assert!(found("", "", &["key-30"]).contains("3 answers arrived, 0 of them twice; 2 are `sent`"));
        assert!(found("", "DELETE FROM deliveries WHERE seq = 10", &[]).contains("1 are `sent`, 0 uncertain"));
        assert_eq!(found("", "UPDATE deliveries SET status = 'uncertain' WHERE seq = 10", &[]), "");
    }
}
