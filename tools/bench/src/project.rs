//! `projects`: what projects cost. Their process is this program, which says that it is ready and answers at once;
//! the events come over `nexus nostr relay`.

use crate::daemon::{Daemon, Place};
use crate::nostr::{Relay, User, Wire, settings, wait_live};
use crate::report::quantile;
use crate::{Bench, clock, procfs};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The first argument that makes this program the process of a project.
pub(crate) const WORD: &str = "__project";
/// Where it notes its start, and whether it ends after each answer.
const STARTS: &str = "BENCH_PROJECT_STARTS";
const ONCE: &str = "BENCH_PROJECT_ONCE";
const PROJECT_KIND: u16 = 31_933;
const START_LIMIT: Duration = Duration::from_secs(300);
const STEP: Duration = Duration::from_millis(2);
const IDLE_AFTER: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub(crate) struct Projects {
    /// How many run at once; several numbers are measured one after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100], value_parser = clap::value_parser!(u32).range(1..=1_000))]
    count: Vec<u32>,
    /// Events, one after the other, for a project that is prepared and whose process has ended.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    activations: u32,
}

pub(crate) fn run(bench: &Bench, projects: &Projects) -> Result<()> {
    activation(bench, projects.activations)?;
    projects.count.iter().try_for_each(|count| many(bench, *count))
}

/// The process: ready at once, and each event is answered at once with nothing.
pub(crate) fn serve() -> Result<()> {
    let starts = std::env::var_os(STARTS).map(PathBuf::from).context("no file for the starts")?;
    let line = format!("{} {}\n", clock::monotonic_ns(), std::process::id());
    let mut file = OpenOptions::new().create(true).append(true).open(&starts).context("failed to open the file for the starts")?;
    // One write, so that lines of processes that start at once don't mix.
    file.write_all(line.as_bytes()).context("failed to note the start")?;
    let is_once = std::env::var_os(ONCE).is_some();
    say(&json!({ "type": "ready", "protocol": 1 }))?;
    for line in io::stdin().lock().lines() {
        let frame: Value = serde_json::from_str(&line.context("failed to read a frame")?).context("a frame is no JSON")?;
        match frame["type"].as_str() {
            Some("event") => {
                say(&json!({ "type": "accepted", "id": frame["id"] }))?;
                say(&json!({ "type": "complete", "id": frame["id"] }))?;
                if is_once {
                    return Ok(());
                }
            }
            Some("ping") => say(&json!({ "type": "pong", "n": frame["n"] }))?,
            Some("shutdown") => return Ok(()),
            Some(_) | None => {}
        }
    }
    Ok(())
}

fn say(frame: &Value) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{frame}").and_then(|()| out.flush()).context("failed to write a frame")
}

/// A daemon with a relay, and a user who has defined some projects.
struct Scene {
    place: Place,
    relay: Relay,
    user: User,
}

impl Scene {
    fn new(bench: &Bench, count: u32, is_once: bool) -> Result<Self> {
        let place = Place::new(bench)?;
        let relay = Relay::start(&place, "relay")?;
        let user = User::new(1)?;
        let mut env = json!({ STARTS: place.file("starts") });
        if is_once {
            env[ONCE] = json!("1");
        }
        let command = format!("{} {WORD}", quoted(&bench.own));
        let overrides: serde_json::Map<String, Value> =
            (0..count).map(|n| (coordinate(&user, n), json!({ "command": command, "env": env }))).collect();
        place.configure(&json!({
            "nostr": settings(relay.url(), &user),
            "projects": { "path": place.file("projects"), "max_running": count.max(1), "overrides": overrides },
        }))?;
        let scene = Self { place, relay, user };
        scene.define(count)?;
        Ok(scene)
    }

    fn define(&self, count: u32) -> Result<()> {
        let mut events = Vec::new();
        for n in 0..count {
            events.push(self.user.sign(crate::nostr::now_s(), PROJECT_KIND, &[&["d", &name(n)], &["title", &name(n)]], "")?);
        }
        Wire::connect(self.relay.url())?.publish(&events)
    }

    fn activating(&self, n: u32, text: &str) -> Result<String> {
        self.user.sign(crate::nostr::now_s(), 1, &[&["a", &coordinate(&self.user, n)]], text)
    }

    /// Monotonic nanoseconds and PID of each process that has started, in order.
    fn starts(&self) -> Vec<(u64, u32)> {
        let text = fs::read_to_string(self.place.file("starts")).unwrap_or_default();
        let whole = text.lines().filter_map(|line| line.split_once(' '));
        whole.filter_map(|(at, pid)| Some((at.parse().ok()?, pid.parse().ok()?))).collect()
    }

    fn wait_starts(&self, count: usize) -> Result<Vec<(u64, u32)>> {
        clock::wait_for("every project has started", START_LIMIT, STEP, || Ok(Some(self.starts()).filter(|starts| starts.len() >= count)))
    }
}

fn name(n: u32) -> String {
    format!("bench-{n}")
}

fn coordinate(user: &User, n: u32) -> String {
    format!("{PROJECT_KIND}:{}:{}", user.public(), name(n))
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// From the moment an event is published until the project's process runs; the project is prepared, the process ended.
fn activation(bench: &Bench, count: u32) -> Result<()> {
    let scene = Scene::new(bench, 1, true)?;
    let daemon = scene.place.start()?;
    wait_live(&daemon)?;
    let mut wire = Wire::connect(scene.relay.url())?;
    // The first one prepares the project, which is not what is measured.
    wire.publish(&[scene.activating(0, "first")?])?;
    scene.wait_starts(1)?;
    let mut times_ms = Vec::new();
    for n in 0..count {
        wait_ended(&scene)?;
        let event = scene.activating(0, &format!("event {n}"))?;
        let before = scene.starts().len();
        let began_ns = clock::monotonic_ns();
        wire.publish(&[event])?;
        let starts = scene.wait_starts(before + 1)?;
        let started_ns = starts.last().map_or(began_ns, |(at, _)| *at);
        times_ms.push(started_ns.saturating_sub(began_ns) as f64 / 1e6);
    }
    daemon.stop()?;
    bench.report.row("projects, published to the process's first instruction: p50", "ms", &[quantile(&times_ms, 0.5)])?;
    bench.report.row("projects, published to the process's first instruction: p99", "ms", &[quantile(&times_ms, 0.99)])?;
    Ok(())
}

/// Waits until the last process that started is gone.
fn wait_ended(scene: &Scene) -> Result<()> {
    clock::wait_for("the project's process has ended", START_LIMIT, STEP, || {
        let is_gone = scene.starts().last().is_none_or(|(_, pid)| !Path::new(&format!("/proc/{pid}")).exists());
        Ok(is_gone.then_some(()))
    })
}

/// Some projects, all of them activated at once, and then idle.
fn many(bench: &Bench, count: u32) -> Result<()> {
    let scene = Scene::new(bench, count, false)?;
    let daemon = scene.place.start()?;
    wait_live(&daemon)?;
    let before_kib = daemon.rss_kib()?;
    let events: Vec<String> = (0..count).map(|n| scene.activating(n, "go")).collect::<Result<_>>()?;
    let began = Instant::now();
    Wire::connect(scene.relay.url())?.publish(&events)?;
    let starts = scene.wait_starts(count as usize)?;
    let per_s = f64::from(count) / began.elapsed().as_secs_f64();
    clock::pause(IDLE_AFTER);
    let (rss_kib, processes_kib) = (daemon.rss_kib()?, resident(&starts)?);
    let percent = idle_percent(&daemon)?;
    daemon.stop()?;
    let row = |what: &str, unit: &str, value: f64| bench.report.row(&format!("projects, {count} stubs: {what}"), unit, &[value]);
    row("prepared and started", "projects/s", per_s)?;
    row("daemon and keeper", "MiB RSS", rss_kib as f64 / 1024.0)?;
    row("daemon and keeper, above none running, each", "KiB RSS", rss_kib.saturating_sub(before_kib) as f64 / f64::from(count))?;
    row("their processes", "MiB RSS", processes_kib as f64 / 1024.0)?;
    row("daemon and keeper, idle", "% of a core", percent)?;
    Ok(())
}

fn resident(starts: &[(u64, u32)]) -> Result<u64> {
    starts.iter().map(|(_, pid)| procfs::rss_kib(*pid)).sum()
}

fn idle_percent(daemon: &Daemon<'_>) -> Result<f64> {
    let (before_ns, began) = (daemon.run_ns()?, Instant::now());
    clock::pause(IDLE);
    Ok(daemon.run_ns()?.saturating_sub(before_ns) as f64 / 1e7 / began.elapsed().as_secs_f64())
}
