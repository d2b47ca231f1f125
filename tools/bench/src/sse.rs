//! `sse`: many clients of the event stream, idle and during a burst of notices. The burst is a
//! `backfill` of events, so that no request costs anything; the same burst without clients is
//! subtracted.

use crate::adapter::{self, Task, Verb};
use crate::daemon::{Daemon, Place};
use crate::event::ACCOUNT;
use crate::subscribers::{Subscribers, allow_descriptors};
use crate::{Bench, feed};
use anyhow::{Context, Result};
use serde_json::json;
use std::time::{Duration, Instant};

const RUNS: u32 = 3;
/// The notice of an event that was committed: one for each.
const TYPES: &str = "adapter.in.received";
/// The smallest ring, and how much larger than a burst it is: no client may be cut off.
const RING_MIN: u64 = 10_000;
const RING_BURSTS: u64 = 2;
const SERVED_LIMIT: Duration = Duration::from_secs(60);
const BURST_LIMIT: Duration = Duration::from_secs(120);
/// Descriptors of the daemon beside its connections, which inherits this program's limit.
const DAEMON_DESCRIPTORS: u64 = 256;

#[derive(Debug, clap::Args)]
pub(crate) struct Sse {
    /// Connections.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Notices that each of them gets, all at once.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    burst: u32,
}

/// What the runs came to.
#[derive(Debug, Default)]
struct Figures {
    cpu_us: Vec<f64>,
    per_s: Vec<f64>,
    kib: Vec<f64>,
}

pub(crate) fn run(bench: &Bench, sse: &Sse) -> Result<()> {
    allow_descriptors(u64::from(sse.clients) + DAEMON_DESCRIPTORS)?;
    let mut figures = Figures::default();
    for _ in 0..bench.runs(RUNS) {
        measure(bench, sse, &mut figures)?;
    }
    let name = format!("sse, {} clients, burst of {}", sse.clients, sse.burst);
    bench.report.row(&format!("{name}: daemon"), "CPU us/delivery", &figures.cpu_us)?;
    bench.report.row(&format!("{name}: delivered"), "deliveries/s", &figures.per_s)?;
    bench.report.row(&format!("{name}: idle connection"), "KiB RSS", &figures.kib)?;
    Ok(())
}

fn measure(bench: &Bench, sse: &Sse, figures: &mut Figures) -> Result<()> {
    let place = Place::new(bench)?;
    let (clients, burst) = (usize::try_from(sse.clients)?, u64::from(sse.burst));
    let task = Task { lines: Some(place.file("lines")), ..Task::default() };
    let account = json!({ "monitor": false, "backfill": false });
    let entry = adapter::entry(&bench.own, Verb::Backfill, &task, &json!({ ACCOUNT: account }));
    place.configure(&json!({ "adapters": { "burst": entry }, "bus": { "ring": RING_MIN.max(burst * RING_BURSTS) } }))?;
    let daemon = place.start()?;
    let status = daemon.status()?;
    let address = status["http"].as_str().context("the daemon serves no HTTP")?;

    daemon.settle()?;
    let alone_kib = daemon.rss_kib()?;
    let mut subscribers = Subscribers::connect(address, TYPES, clients, SERVED_LIMIT)?;
    let connected_cpu_ms = daemon.settle()?;
    figures.kib.push((daemon.rss_kib()? as f64 - alone_kib as f64) / f64::from(sse.clients));

    let began = Instant::now();
    begin_burst(&daemon, &place, 0, burst)?;
    subscribers.receive(burst, BURST_LIMIT)?;
    let seconds = began.elapsed().as_secs_f64();
    let with_clients_ms = daemon.settle()? - connected_cpu_ms;
    drop(subscribers);

    let before_ms = daemon.settle()?;
    begin_burst(&daemon, &place, burst, burst)?;
    feed::committed_ns(&place, 2 * burst, feed::limit(burst))?;
    let without_ms = daemon.settle()? - before_ms;
    let deliveries = f64::from(sse.clients) * f64::from(sse.burst);
    figures.cpu_us.push((with_clients_ms - without_ms) * 1e3 / deliveries);
    figures.per_s.push(deliveries / seconds);
    feed::check(&place, 2 * burst)?;
    daemon.stop()
}

/// Has the adapter bring events `first` and those after it.
fn begin_burst(daemon: &Daemon<'_>, place: &Place, first: u64, events: u64) -> Result<()> {
    feed::write_events(&place.file("lines"), first..first + events)?;
    let path = format!("/control/adapters/burst/{ACCOUNT}/backfill");
    daemon.connect()?.post(&path, &json!({})).map(drop).context("failed to begin a burst")
}
