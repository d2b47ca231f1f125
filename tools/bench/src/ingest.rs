//! `ingest`: from an adapter's first line to the commit of its last event, beside a bare loop of the
//! same inserts right before and after.

use crate::adapter::Verb;
use crate::daemon::{Daemon, Place};
use crate::feed::{self, Feed};
use crate::{Bench, bare, clock};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::Duration;

const RUNS: u32 = 3;
/// How often the daemon is asked how far its pipeline has come.
const STEP: Duration = Duration::from_millis(50);
/// The slowest pace of the pipeline that is waited for.
const PIPELINE_PER_S_MIN: u64 = 200;

#[derive(Debug, clap::Args)]
pub(crate) struct Ingest {
    /// Events in all.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    events: u64,
    /// Adapters that write them at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    adapters: u64,
    /// By `backfill`, which fills the ledger and runs no pipeline. Without it they come by `monitor`, and
    /// every one becomes a request, which is denied.
    #[arg(long)]
    history: bool,
    /// Ids without any order instead of rising ones.
    #[arg(long)]
    random_ids: bool,
}

impl Ingest {
    fn verb(&self) -> Verb {
        if self.history { Verb::Backfill } else { Verb::Monitor }
    }

    fn name(&self, bytes: u64) -> String {
        let (ids, verb) = (if self.random_ids { "random" } else { "rising" }, if self.history { "history" } else { "live" });
        format!("ingest {verb}, {} events of {} B, {ids} ids, {} adapters", self.events, bytes / self.events, self.adapters)
    }
}

/// What one run came to.
#[derive(Debug, Default)]
struct Figures {
    per_s: Vec<f64>,
    bare_per_s: Vec<f64>,
    ratio: Vec<f64>,
    cpu_us: Vec<f64>,
    all_cpu_us: Vec<f64>,
    bare_cpu_us: Vec<f64>,
    ended_per_s: Vec<f64>,
}

pub(crate) fn run(bench: &Bench, ingest: &Ingest) -> Result<()> {
    let feed = Feed::write(bench, ingest.events, ingest.adapters, ingest.random_ids)?;
    let mut figures = Figures::default();
    for _ in 0..bench.runs(RUNS) {
        let before = bare::insert(bench, ingest.events, ingest.random_ids)?;
        measure(bench, ingest, &feed, &mut figures)?;
        let after = bare::insert(bench, ingest.events, ingest.random_ids)?;
        let bare_per_s = f64::midpoint(before.per_s, after.per_s);
        figures.ratio.extend(figures.per_s.last().map(|per_s| per_s / bare_per_s));
        figures.bare_per_s.push(bare_per_s);
        figures.bare_cpu_us.push(f64::midpoint(before.cpu_us, after.cpu_us));
    }
    let name = ingest.name(feed.bytes);
    let row = |what: &str, unit: &str, values: &[f64]| bench.report.row(&format!("{name}: {what}"), unit, values);
    row("first line to last commit", "events/s", &figures.per_s)?;
    row("bare loop, before and after", "events/s", &figures.bare_per_s)?;
    row("of the bare loop", "ratio", &figures.ratio)?;
    row("daemon until the last commit", "CPU us/event", &figures.cpu_us)?;
    row("daemon until it is idle", "CPU us/event", &figures.all_cpu_us)?;
    row("bare loop", "CPU us/event", &figures.bare_cpu_us)?;
    if !ingest.history {
        row("first line to last request's end", "requests/s", &figures.ended_per_s)?;
    }
    Ok(())
}

fn measure(bench: &Bench, ingest: &Ingest, feed: &Feed, figures: &mut Figures) -> Result<()> {
    let place = Place::new(bench)?;
    place.configure(&json!({ "adapters": feed.adapters(bench, &place, ingest.verb()) }))?;
    let daemon = place.start()?;
    let committed_ns = feed::committed_ns(&place, feed.events, feed::limit(feed.events))?;
    let cpu_ms = daemon.cpu_ms()?;
    let begun_ns = feed.begun_ns(&place)?;
    let per_s = |end_ns: u64| feed.events as f64 * 1e9 / end_ns.saturating_sub(begun_ns).max(1) as f64;
    figures.per_s.push(per_s(committed_ns));
    figures.cpu_us.push(cpu_ms * 1e3 / feed.events as f64);
    if !ingest.history {
        figures.ended_per_s.push(per_s(ended_ns(&daemon, feed.events)?));
    }
    figures.all_cpu_us.push(daemon.settle()? * 1e3 / feed.events as f64);
    feed::check(&place, feed.events)?;
    daemon.stop()
}

/// Waits until this many requests have ended; the moment.
fn ended_ns(daemon: &Daemon<'_>, requests: u64) -> Result<u64> {
    let limit = Duration::from_secs(60 + requests / PIPELINE_PER_S_MIN);
    let mut connection = daemon.connect()?;
    clock::wait_for("every request has ended", limit, STEP, || {
        let status = connection.get("/control/status")?;
        let ended = status["pipeline"]["total_processed"].as_u64().unwrap_or(0);
        ensure!(ended <= requests, "{ended} requests have ended, of {requests} events");
        Ok((ended == requests).then(clock::monotonic_ns))
    })
}
