//! `answer`: messages to the echo agent over the control socket, each sent when the one before it in
//! its session is answered.

use crate::client::Connection;
use crate::daemon::{Daemon, Place};
use crate::report::{median, quantile};
use crate::{Bench, bare, clock};
use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::RwLock;
use std::thread::{Builder, ScopedJoinHandle};
use std::time::{Duration, Instant};

const RUNS: u32 = 3;
/// Enough for a client, and little for many.
const STACK_BYTES: usize = 256 * 1024;
/// Durable steps of an answered message: its event, its run, its end, its delivery.
const COMMITS_PER_MESSAGE: f64 = 4.0;
/// The bounds of `pipeline.max_concurrent` and `agents.*.max_concurrent`, by default and at most.
const CONCURRENT_DEFAULT: usize = 64;
const CONCURRENT_MAX: usize = 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Answer {
    /// Messages in all.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    messages: u32,
    /// Conversations at once, each a session and a connection of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    sessions: u32,
    /// Pause before each message, in milliseconds: what a message costs an idle daemon.
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
}

impl Answer {
    fn sessions(&self) -> usize {
        self.sessions as usize
    }

    /// Messages of each session, one at least.
    fn each(&self) -> usize {
        (self.messages / self.sessions).max(1) as usize
    }
}

/// What the runs came to.
#[derive(Debug, Default)]
struct Figures {
    per_s: Vec<f64>,
    cpu_ms: Vec<f64>,
    p50_ms: Vec<f64>,
    p99_ms: Vec<f64>,
    sync_ms: Vec<f64>,
    commit_ms: Vec<f64>,
    of_commits: Vec<f64>,
    of_syncs: Vec<f64>,
}

pub(crate) fn run(bench: &Bench, answer: &Answer) -> Result<()> {
    let mut figures = Figures::default();
    for _ in 0..bench.runs(RUNS) {
        let (mut syncs, mut commits) = (bare::syncs_ms(bench)?, bare::commits_ms(bench)?);
        measure(bench, answer, &mut figures)?;
        syncs.extend(bare::syncs_ms(bench)?);
        commits.extend(bare::commits_ms(bench)?);
        let (sync_ms, commit_ms) = (median(&syncs), median(&commits));
        figures.sync_ms.push(sync_ms);
        figures.commit_ms.push(commit_ms);
        let per_s = figures.per_s.last().copied().unwrap_or(0.0);
        figures.of_commits.push(per_s * COMMITS_PER_MESSAGE * commit_ms / 1e3);
        figures.of_syncs.push(per_s * COMMITS_PER_MESSAGE * sync_ms / 1e3);
    }
    let pace = if answer.pause_ms > 0 { format!(", {} ms apart", answer.pause_ms) } else { String::new() };
    let name = format!("answer, {} messages over {} sessions{pace}", answer.each() * answer.sessions(), answer.sessions);
    let row = |what: &str, unit: &str, values: &[f64]| bench.report.row(&format!("{name}: {what}"), unit, values);
    row("answered", "messages/s", &figures.per_s)?;
    row("daemon until it is idle", "CPU ms/message", &figures.cpu_ms)?;
    row("sent to end, p50", "ms", &figures.p50_ms)?;
    row("sent to end, p99", "ms", &figures.p99_ms)?;
    row("append 4 KiB and fdatasync, p50", "ms", &figures.sync_ms)?;
    row("bare commit of one row, p50", "ms", &figures.commit_ms)?;
    if answer.sessions == 1 && answer.pause_ms == 0 {
        row("of 1 / (4 x bare commit)", "ratio", &figures.of_commits)?;
        row("of 1 / (4 x fdatasync)", "ratio", &figures.of_syncs)?;
    }
    Ok(())
}

/// A session per conversation: by default all that the owner says in private is one.
fn config(sessions: usize) -> Value {
    let concurrent = sessions.clamp(CONCURRENT_DEFAULT, CONCURRENT_MAX);
    json!({
        "pipeline": { "max_concurrent": concurrent },
        "agents": { "default": "echo", "echo": { "runner": "echo", "max_concurrent": concurrent } },
        "access": {
            "owner": ["cli:*"],
            "policies": [{
                "name": "per-conversation",
                "match": { "principal": { "type": "owner" }, "conditions": [{ "channel": "cli" }] },
                "effect": "allow",
                "session": { "key": "cli:{peer_id}" },
            }],
        },
    })
}

fn measure(bench: &Bench, answer: &Answer, figures: &mut Figures) -> Result<()> {
    let place = Place::new(bench)?;
    place.configure(&config(answer.sessions()))?;
    let daemon = place.start()?;
    let Load { seconds, cpu_before_ms, times_ms } = load(&daemon, answer)?;
    let messages = times_ms.len() as f64;
    figures.per_s.push(messages / seconds);
    figures.p50_ms.push(quantile(&times_ms, 0.5));
    figures.p99_ms.push(quantile(&times_ms, 0.99));
    figures.cpu_ms.push((daemon.settle()? - cpu_before_ms) / messages);
    daemon.stop()
}

/// What the clients saw.
#[derive(Debug)]
struct Load {
    /// From the first message until all are answered.
    seconds: f64,
    cpu_before_ms: f64,
    /// Of each message, from sending it to the end of its answer.
    times_ms: Vec<f64>,
}

/// Runs a client per session. Each has one message answered before the clock starts, so that
/// connections and sessions are there.
fn load(daemon: &Daemon<'_>, answer: &Answer) -> Result<Load> {
    let connections: Vec<Connection> = (0..answer.sessions()).map(|number| greet(&daemon.socket(), number)).collect::<Result<_>>()?;
    let cpu_before_ms = daemon.settle()?;
    let gate = RwLock::new(());
    let (seconds, outcomes) = std::thread::scope(|scope| {
        // Dropped in any case, so that those who wait at it end.
        let closed = gate.write().map_err(|_| anyhow!("the gate of the clients is broken"))?;
        let mut clients = Vec::with_capacity(connections.len());
        for (number, mut connection) in connections.into_iter().enumerate() {
            let gate = &gate;
            let client = move || {
                drop(gate.read());
                converse(&mut connection, number, answer)
            };
            clients.push(Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, client).context("failed to start a client")?);
        }
        let began = Instant::now();
        drop(closed);
        let join = |client: ScopedJoinHandle<'_, Result<Vec<f64>>>| client.join().unwrap_or_else(|_| Err(anyhow!("a client panicked")));
        let outcomes: Vec<Result<Vec<f64>>> = clients.into_iter().map(join).collect();
        anyhow::Ok((began.elapsed().as_secs_f64(), outcomes))
    })?;
    let times: Vec<Vec<f64>> = outcomes.into_iter().collect::<Result<_>>()?;
    Ok(Load { seconds, cpu_before_ms, times_ms: times.concat() })
}

fn greet(socket: &Path, number: usize) -> Result<Connection> {
    let mut connection = Connection::open(socket)?;
    connection.send(&format!("c{number}"), "good morning").context("the first message of a session failed")?;
    Ok(connection)
}

fn converse(connection: &mut Connection, number: usize, answer: &Answer) -> Result<Vec<f64>> {
    let conversation = format!("c{number}");
    let mut times = Vec::with_capacity(answer.each());
    for message in 0..answer.each() {
        if answer.pause_ms > 0 {
            clock::pause(Duration::from_millis(answer.pause_ms));
        }
        let began = Instant::now();
        connection.send(&conversation, &format!("message {message}"))?;
        times.push(clock::ms(began.elapsed()));
    }
    Ok(times)
}
