//! `pipe`: lines that are known already, over and over: framing, UTF-8, parsing and the look-up of
//! their ids, with one small commit per batch and nothing new to store.

use crate::adapter::{self, Task, Verb};
use crate::daemon::Place;
use crate::event::{ACCOUNT, line_of};
use crate::{Bench, clock, feed};
use anyhow::{Context, Result};
use serde_json::json;
use std::time::Duration;

const RUNS: u32 = 3;
/// Different lines that are repeated.
const LINES: u64 = 1000;
/// How long the beginning may take, and the slowest pace that is waited for.
const START_LIMIT_S: u64 = 60;
const BYTES_PER_S_MIN: u64 = 2_000_000;
const STAMP_LIMIT: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(2);

#[derive(Debug, clap::Args)]
pub(crate) struct Pipe {
    /// Bytes in all.
    #[arg(long, default_value_t = 500_000_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000_000))]
    bytes: u64,
    /// Bytes of a line, with its newline.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(200..=1_000_000))]
    line_bytes: u32,
}

pub(crate) fn run(bench: &Bench, pipe: &Pipe) -> Result<()> {
    let (mut mb_per_s, mut mb_per_cpu_s, mut cpu_us) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.runs(RUNS) {
        let Run { bytes, seconds, cpu_ms } = measure(bench, pipe)?;
        let mb = bytes as f64 / 1e6;
        mb_per_s.push(mb / seconds);
        mb_per_cpu_s.push(mb * 1e3 / cpu_ms.max(1.0));
        cpu_us.push(cpu_ms * 1e3 * f64::from(pipe.line_bytes) / bytes as f64);
    }
    let name = format!("pipe, {} MB of known events in lines of {} B", pipe.bytes / 1_000_000, pipe.line_bytes);
    bench.report.row(&format!("{name}: first line to last commit"), "MB/s", &mb_per_s)?;
    bench.report.row(&format!("{name}: daemon"), "MB per CPU-s", &mb_per_cpu_s)?;
    bench.report.row(&format!("{name}: daemon"), "CPU us/line", &cpu_us)?;
    Ok(())
}

struct Run {
    bytes: u64,
    seconds: f64,
    cpu_ms: f64,
}

fn measure(bench: &Bench, pipe: &Pipe) -> Result<Run> {
    let place = Place::new(bench)?;
    let (lines, last, stamp) = (place.file("lines"), place.file("last"), place.file("stamp"));
    let line_bytes = usize::try_from(pipe.line_bytes)?;
    feed::write_lines(&lines, (0..LINES).map(|number| line_of(number, line_bytes)))?;
    // The one event by whose commit the end is known.
    feed::write_lines(&last, std::iter::once(line_of(LINES, line_bytes)))?;
    let task = Task { lines: Some(lines), repeat_bytes: Some(pipe.bytes), last: Some(last), stamp: Some(stamp.clone()) };
    let mut entry = adapter::entry(&bench.own, Verb::Monitor, &task, &json!({ ACCOUNT: {} }));
    // Their time is long ago: they are filed, and no request disturbs the figure.
    entry["catch_up"] = json!({ "max_age_ms": 0, "late": "file" });
    place.configure(&json!({ "adapters": { "pipe": entry } }))?;
    let daemon = place.start()?;
    let committed_ns = feed::committed_ns(&place, LINES + 1, Duration::from_secs(START_LIMIT_S + pipe.bytes / BYTES_PER_S_MIN))?;
    let cpu_ms = daemon.cpu_ms()?;
    // The last write may return after its commit was seen.
    let stamp =
        clock::wait_for("the adapter has noted its end", STAMP_LIMIT, STEP, || Ok(adapter::stamp(&stamp).filter(|stamp| stamp.bytes > 0)))?;
    let seconds = committed_ns.checked_sub(stamp.begun_ns).context("the end came before the beginning")? as f64 / 1e9;
    feed::check(&place, LINES + 1)?;
    daemon.stop()?;
    Ok(Run { bytes: stamp.bytes, seconds, cpu_ms })
}
