//! `start`: from the start of the process until it is ready, what an idle daemon costs, and what
//! asking it costs.

use crate::adapter::{self, Task, Verb};
use crate::daemon::{Daemon, Place};
use crate::{Bench, clock, feed, procfs};
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

const RUNS: u32 = 11;
/// Runs of what takes long: the idle figures.
const IDLE_RUNS_MAX: u32 = 3;
/// Idle adapters of the second set of idle figures.
const ADAPTERS: usize = 20;
/// After this long threads of the start have ended that nothing uses any more.
const IDLE_AFTER: Duration = Duration::from_secs(12);
/// How long idleness is watched.
const IDLE: Duration = Duration::from_secs(10);
/// Calls of `status` behind one figure: the CPU of ended processes is told in steps of 10 ms.
const STATUS_CALLS: u32 = 50;
const RUNNING_LIMIT: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
pub(crate) struct Start {
    /// Events that are in the ledger already; 0 starts from nothing every time.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=100_000_000))]
    events: u64,
}

pub(crate) fn run(bench: &Bench, start: &Start) -> Result<()> {
    starts(bench, start.events)?;
    if start.events == 0 {
        for adapters in [0, ADAPTERS] {
            idle(bench, adapters)?;
        }
    }
    Ok(())
}

/// Start to ready, in fresh directories each time, or over and over on one ledger.
fn starts(bench: &Bench, events: u64) -> Result<()> {
    let (mut wall_ms, mut cpu_ms) = (Vec::new(), Vec::new());
    let filled = Place::new(bench)?;
    if events > 0 {
        feed::fill(bench, &filled, events)?;
    }
    for _ in 0..bench.runs(RUNS) {
        let fresh = Place::new(bench)?;
        let place = if events > 0 { &filled } else { &fresh };
        place.configure(&json!({}))?;
        let daemon = place.start()?;
        cpu_ms.push(daemon.run_ns()? as f64 / 1e6);
        wall_ms.push(daemon.ready_ms);
        daemon.stop()?;
    }
    let name =
        if events == 0 { "start to ready, new ledgers".to_owned() } else { format!("start to ready, {events} events in the ledger") };
    bench.report.row(&name, "ms", &wall_ms)?;
    bench.report.row(&format!("{name}, daemon and keeper"), "CPU ms", &cpu_ms)?;
    Ok(())
}

/// Memory and CPU of a daemon that has nothing to do, and the `status` command beside it.
fn idle(bench: &Bench, adapters: usize) -> Result<()> {
    let (mut rss, mut percent, mut status_ms, mut status_cpu_ms) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.runs(RUNS).min(IDLE_RUNS_MAX) {
        let place = Place::new(bench)?;
        place.configure(&json!({ "adapters": idle_adapters(bench, adapters) }))?;
        let daemon = place.start()?;
        wait_running(&daemon, adapters)?;
        clock::pause(IDLE_AFTER);
        let (before_ns, began) = (daemon.run_ns()?, Instant::now());
        clock::pause(IDLE);
        let used_ns = daemon.run_ns()?.saturating_sub(before_ns);
        percent.push(used_ns as f64 / 1e7 / began.elapsed().as_secs_f64());
        rss.push(daemon.rss_kib()? as f64 / 1024.0);
        let (calls_ms, cpu_ms) = status(&place)?;
        status_ms.extend(calls_ms);
        status_cpu_ms.push(cpu_ms);
        daemon.stop()?;
    }
    let name = format!("idle with {adapters} adapters");
    bench.report.row(&format!("{name}, daemon and keeper"), "MiB RSS", &rss)?;
    bench.report.row(&format!("{name}, daemon and keeper"), "% of a core", &percent)?;
    bench.report.row(&format!("`nexus daemon status` with {adapters} adapters"), "ms", &status_ms)?;
    bench.report.row(&format!("`nexus daemon status` with {adapters} adapters, mean of {STATUS_CALLS}"), "CPU ms", &status_cpu_ms)?;
    Ok(())
}

fn idle_adapters(bench: &Bench, adapters: usize) -> Value {
    let entry = || adapter::entry(&bench.own, Verb::Monitor, &Task::default(), &json!({ "me": {} }));
    Value::Object((0..adapters).map(|number| (format!("idle-{number}"), entry())).collect::<Map<_, _>>())
}

fn wait_running(daemon: &Daemon<'_>, adapters: usize) -> Result<()> {
    clock::wait_for("every adapter runs", RUNNING_LIMIT, STEP, || {
        let status = daemon.status()?;
        let list = status["adapters"].as_array().context("the status names no adapters")?;
        let running = list.iter().filter(|one| one["status"] == "running").count();
        Ok((running == adapters).then_some(()))
    })
}

/// Milliseconds of each call, and CPU milliseconds of one on the average.
fn status(place: &Place) -> Result<(Vec<f64>, f64)> {
    let mut calls_ms = Vec::new();
    let before_ms = procfs::children_cpu_ms()?;
    for _ in 0..STATUS_CALLS {
        let began = Instant::now();
        let status = place.command(&["daemon", "status"]).status().context("failed to run `daemon status`")?;
        calls_ms.push(clock::ms(began.elapsed()));
        ensure!(status.success(), "`daemon status` ended with {status}");
    }
    Ok((calls_ms, (procfs::children_cpu_ms()? - before_ms) / f64::from(STATUS_CALLS)))
}
