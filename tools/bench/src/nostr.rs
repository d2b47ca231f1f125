//! `nostr`: what a relay's events cost the daemon. The relay is `nexus nostr relay`, a process of its own; the
//! events are signed beforehand, and denied once they are recorded, so that no agent is measured.

mod blocked;
mod gate;
mod ingest;
mod relay;

pub(crate) use relay::{Relay, User, Wire, now_s};

use crate::daemon::{Daemon, Place};
use crate::{Bench, clock};
use anyhow::{Context, Result, ensure};
use blocked::Hold;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const RUNS: u32 = 3;
/// So many events are dated the same second: relays tell a second whole, in pages of some hundred events.
const PER_SECOND: u64 = 100;
/// How far ahead the first of them is dated: a daemon asks for nothing from before its first start. The last
/// one is dated less than the 15 min ahead that relays allow.
const AHEAD_S: u64 = 60;
const LIVE_LIMIT: Duration = Duration::from_secs(60);
const KEPT_LIMIT: Duration = Duration::from_secs(600);
const STEP: Duration = Duration::from_millis(10);
/// Until a daemon with relays has nothing left to set up.
const IDLE_AFTER: Duration = Duration::from_secs(10);
const CREDENTIAL: &str = "nostr/daemon";
/// Whose events they are, by number: many, since those of one that come too fast are put off.
const USERS: std::ops::RangeInclusive<u8> = 10..=209;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Nostr {
    /// Events per second from a relay to their commit, and who has the cores meanwhile, beside what one core can verify.
    Ingest {
        #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
        events: u32,
    },
    /// Nothing can be kept while events are published, and can later: how many are.
    Blocked {
        #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
        events: u32,
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
        seconds: u64,
        #[arg(long, value_enum, default_value_t = Hold::Daemon)]
        hold: Hold,
    },
    /// CPU of an event that is let through or refused, by why, beside the bare library's calls that say the same.
    Gate {
        #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(2..=50_000))]
        events: u32,
    },
    /// Memory of a daemon that listens to relays, and of one that doesn't.
    Relays {
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=64))]
        relays: u32,
    },
}

pub(crate) fn run(bench: &Bench, nostr: &Nostr) -> Result<()> {
    match nostr {
        Nostr::Ingest { events } => ingest::run(bench, *events),
        Nostr::Blocked { events, seconds, hold } => blocked::run(bench, *events, Duration::from_secs(*seconds), *hold),
        Nostr::Gate { events } => gate::run(bench, *events),
        Nostr::Relays { relays } => memory(bench, *relays),
    }
}

/// The daemon's key, which is the same in each run, as those of the users are.
fn own() -> Result<User> {
    User::new(9)
}

fn users() -> Result<Vec<User>> {
    USERS.map(User::new).collect()
}

/// Messages of the users to the daemon.
fn messages(count: u32) -> Result<Vec<String>> {
    let (users, own) = (users()?, own()?.public());
    let first = now_s() + AHEAD_S;
    let dated = |n: u64| first + n / PER_SECOND;
    let numbered = (0..u64::from(count)).zip(users.iter().cycle());
    numbered.map(|(n, user)| user.sign(dated(n), 1, &[&["p", &own]], &format!("message {n}"))).collect()
}

/// Writes the configuration and the daemon's key.
fn configure(place: &Place, urls: &[&str]) -> Result<()> {
    let (whitelist, own): (Vec<String>, User) = (users()?.iter().map(User::public).collect(), own()?);
    place.configure(&json!({
        "nostr": { "relays": urls, "whitelist": whitelist, "secret_key": CREDENTIAL },
        "access": { "policies": [{ "name": "none", "priority": 1000, "match": { "principal": { "type": "known" } }, "effect": "deny" }] },
    }))?;
    let secret = place.file("secret");
    std::fs::write(&secret, own.secret()).context("failed to write the daemon's key")?;
    let input = std::fs::File::open(&secret).context("failed to read the daemon's key")?;
    let set = place.command(&["credential", "set", CREDENTIAL]).stdin(input).status().context("failed to store the daemon's key")?;
    ensure!(set.success(), "`credential set` ended with {set}");
    Ok(())
}

/// Waits until the daemon hears all of its relays.
pub(crate) fn wait_live(daemon: &Daemon<'_>) -> Result<()> {
    clock::wait_for("every relay is live", LIVE_LIMIT, STEP, || {
        let status = daemon.connect()?.get("/control/nostr")?;
        let relays = status["relays"].as_array().context("the status names no relays")?;
        Ok(relays.iter().all(|relay| relay["state"] == "live").then_some(()))
    })
}

fn kept(place: &Place) -> Result<u32> {
    let sql = "SELECT count(*) FROM events WHERE channel = 'nostr' AND direction = 'inbound'";
    place.ledger("events")?.query_row(sql, [], |row| row.get(0)).context("failed to count events")
}

fn wait_kept(place: &Place, events: u32) -> Result<()> {
    let ledger = place.ledger("events")?;
    let mut newest = ledger.prepare("SELECT coalesce(max(seq), 0) FROM events").context("failed to ask the ledger")?;
    clock::wait_for("every event is kept", KEPT_LIMIT, STEP, || {
        let seq: u32 = newest.query_row([], |row| row.get(0)).context("failed to read the ledger")?;
        // To count reads all rows: done at each look it would take a good part of a core from those that are measured.
        Ok((seq >= events && kept(place)? >= events).then_some(()))
    })?;
    let kept = kept(place)?;
    ensure!(kept == events, "{kept} of {events} events are kept");
    Ok(())
}

fn memory(bench: &Bench, relays: u32) -> Result<()> {
    for count in [0, relays] {
        let (mut rss, mut percent) = (Vec::new(), Vec::new());
        for _ in 0..bench.runs(RUNS) {
            let place = Place::new(bench)?;
            let running: Vec<Relay> = (0..count).map(|n| Relay::start(&place, &format!("relay-{n}"))).collect::<Result<_>>()?;
            let urls: Vec<&str> = running.iter().map(Relay::url).collect();
            configure(&place, &urls)?;
            let daemon = place.start()?;
            wait_live(&daemon)?;
            clock::pause(IDLE_AFTER);
            let (before_ns, began) = (daemon.run_ns()?, Instant::now());
            clock::pause(IDLE_AFTER);
            percent.push(daemon.run_ns()?.saturating_sub(before_ns) as f64 / 1e7 / began.elapsed().as_secs_f64());
            rss.push(daemon.rss_kib()? as f64 / 1024.0);
            daemon.stop()?;
        }
        let name = format!("nostr, idle with {count} relays, daemon and keeper");
        bench.report.row(&name, "MiB RSS", &rss)?;
        bench.report.row(&name, "% of a core", &percent)?;
    }
    Ok(())
}

/// The relays and the user that projects are measured with.
pub(crate) fn settings(url: &str, user: &User) -> Value {
    json!({ "relays": [url], "whitelist": [user.public()] })
}
