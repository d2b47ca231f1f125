//! `hook`: what plugins cost a message. The same messages are answered with no plugin, with the built-in
//! ones, with one that observes all it can at every hook and with one that is asked; this program is the plugin as
//! well. Then one call of an empty hook in the host of JavaScript plugins, by [`host`].

use crate::daemon::{Daemon, Place};
use crate::host::{self, Host};
use crate::report::quantile;
use crate::{Bench, clock};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::io::{self, BufRead, Write};
use std::time::Instant;

/// The first argument that makes this program a plugin.
pub(crate) const WORD: &str = "__plugin";
const RUNS: u32 = 3;
/// Bytes of each message.
const MESSAGE_BYTES: u32 = 2048;
/// Messages before the clock starts, so that processes and connections are there.
const WARM_UP: u32 = 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Hook {
    /// Messages of each run.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    messages: u32,
}

/// Where a plugin is called.
static HOOKS: [&str; 9] = [
    "afterReceiveEvent",
    "afterResolveIdentity",
    "afterResolveAccess",
    "afterRunAutomations",
    "afterAssembleContext",
    "afterRunAgent",
    "afterDeliverResponse",
    "onFinalize",
    "onError",
];
/// What a plugin may see.
static SECTIONS: [&str; 11] =
    ["event", "delivery", "principal", "access", "triggers", "agent", "context", "response", "delivery_result", "pipeline", "status"];

/// The built-in plugins.
const OWN: [&str; 2] = ["logging", "analytics"];

/// Which plugins run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum With {
    Nothing,
    Builtin,
    Observer,
    Mutator,
}

impl With {
    const ALL: [Self; 4] = [Self::Nothing, Self::Builtin, Self::Observer, Self::Mutator];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no plugin",
            Self::Builtin => "logging and analytics",
            Self::Observer => "a plugin that observes",
            Self::Mutator => "a plugin that is asked",
        }
    }

    fn enabled(self) -> Value {
        match self {
            Self::Nothing => json!([]),
            Self::Builtin => json!(OWN),
            Self::Observer | Self::Mutator => json!(["bench"]),
        }
    }

    fn mode(self) -> &'static str {
        match self {
            Self::Nothing | Self::Builtin | Self::Observer => "observe",
            Self::Mutator => "mutate",
        }
    }

    /// Where it is called, and what it sees: of one that observes, the most that it may cost.
    fn called(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::Observer => (&HOOKS, &SECTIONS),
            Self::Nothing | Self::Builtin | Self::Mutator => (&HOOKS[..1], &SECTIONS[..1]),
        }
    }
}

/// What the runs of one kind came to, in milliseconds.
#[derive(Debug, Default)]
struct Figures {
    p50: Vec<f64>,
    p99: Vec<f64>,
    call_p50: Vec<f64>,
    call_p99: Vec<f64>,
    /// What leaving word for the one that observes took, by the daemon's own figures, in microseconds.
    told_p50_us: Vec<f64>,
    /// Of the built-in ones, which no request waits for by name: one call, by the daemon's own figures.
    own: [Own; OWN.len()],
}

/// What one call of a built-in plugin took, in microseconds.
#[derive(Debug, Default)]
struct Own {
    /// Of the newest calls.
    p50_us: Vec<f64>,
    /// Of all.
    mean_us: Vec<f64>,
}

pub(crate) fn run(bench: &Bench, hook: &Hook) -> Result<()> {
    let mut all: Vec<(With, Figures)> = With::ALL.into_iter().map(|with| (with, Figures::default())).collect();
    // In turns, so that a machine that grows slower does so for all of them.
    for _ in 0..bench.runs(RUNS) {
        for (with, figures) in &mut all {
            measure(bench, hook, *with, figures)?;
        }
    }
    let alone = all.first().map(|(_, figures)| figures.p50.clone()).unwrap_or_default();
    for (with, figures) in &all {
        let row =
            |what: &str, values: &[f64]| bench.report.row(&format!("hook, {}, {MESSAGE_BYTES} bytes: {what}", with.name()), "ms", values);
        row("sent to end, p50", &figures.p50)?;
        row("sent to end, p99", &figures.p99)?;
        if *with != With::Nothing {
            // Of the same turn: what the machine did meanwhile is in both.
            let added: Vec<f64> = figures.p50.iter().zip(&alone).map(|(with, without)| with - without).collect();
            row("added to sent to end, p50", &added)?;
        }
        if !figures.call_p50.is_empty() {
            row("one call, p50", &figures.call_p50)?;
            row("one call, p99", &figures.call_p99)?;
        }
        if !figures.told_p50_us.is_empty() {
            bench.report.row("hook, leaving word for a plugin that observes, p50", "us", &figures.told_p50_us)?;
        }
        for (name, own) in OWN.iter().zip(&figures.own).filter(|(_, own)| !own.p50_us.is_empty()) {
            bench.report.row(&format!("hook, one call of the built-in {name}, p50"), "us", &own.p50_us)?;
            bench.report.row(&format!("hook, one call of the built-in {name}, mean"), "us", &own.mean_us)?;
        }
    }
    host::run(bench, &Host::with(MESSAGE_BYTES))
}

fn measure(bench: &Bench, hook: &Hook, with: With, figures: &mut Figures) -> Result<()> {
    let place = Place::new(bench)?;
    let directory = place.file("workspace/plugins/bench");
    fs::create_dir_all(&directory).context("failed to make the plugin's directory")?;
    let (hooks, sections) = with.called();
    let file = json!({
        "command": format!("'{}' {WORD}", bench.own.display()), "hooks": hooks, "sections": sections, "mode": with.mode(),
        "timeout_ms": 60_000,
    });
    fs::write(directory.join("plugin.yaml"), file.to_string()).context("failed to write the plugin")?;
    place.configure(&json!({ "plugins": { "enabled": with.enabled() } }))?;
    let daemon = place.start()?;
    let times = load(&daemon, hook.messages)?;
    figures.p50.push(quantile(&times, 0.5));
    figures.p99.push(quantile(&times, 0.99));
    let calls = calls(&place)?;
    match with {
        With::Mutator => {
            ensure!(calls.len() >= hook.messages as usize, "the plugin was asked {} times for {} messages", calls.len(), hook.messages);
            figures.call_p50.push(quantile(&calls, 0.5));
            figures.call_p99.push(quantile(&calls, 0.99));
        }
        With::Nothing | With::Builtin | With::Observer => ensure!(calls.is_empty(), "a request waited for a plugin that isn't asked"),
    }
    let all = daemon.connect()?.get("/control/plugins")?;
    if with == With::Builtin {
        for (name, own) in OWN.iter().zip(&mut figures.own) {
            own.p50_us.push(told_us(&all, name, "p50_ms")?);
            own.mean_us.push(told_us(&all, name, "mean_ms")?);
        }
    }
    if with == With::Observer {
        figures.told_p50_us.push(told_us(&all, "bench", "told_p50_ms")?);
    }
    daemon.stop()
}

/// What the daemon says of a plugin, in microseconds.
fn told_us(all: &Value, name: &str, key: &str) -> Result<f64> {
    let report = all["plugins"].as_array().into_iter().flatten().find(|one| one["name"] == name);
    let ms = report.and_then(|one| one[key].as_f64());
    ms.map(|ms| ms * 1e3).with_context(|| format!("`{key}` of {name} is not told"))
}

/// Milliseconds of each message, from sending it to the end of its answer.
fn load(daemon: &Daemon<'_>, messages: u32) -> Result<Vec<f64>> {
    let (mut connection, text) = (daemon.connect()?, "x".repeat(MESSAGE_BYTES as usize));
    for _ in 0..WARM_UP {
        connection.send("bench", &text)?;
    }
    let mut times = Vec::with_capacity(messages as usize);
    for _ in 0..messages {
        let began = Instant::now();
        connection.send("bench", &text)?;
        times.push(clock::ms(began.elapsed()));
    }
    Ok(times)
}

/// Milliseconds of each call that a request waited for, by the traces.
fn calls(place: &Place) -> Result<Vec<f64>> {
    let ledger = place.ledger("nexus")?;
    let mut statement = ledger
        .prepare("SELECT trace FROM nexus_requests WHERE trace IS NOT NULL ORDER BY event_seq")
        .context("failed to ask for traces")?;
    let traces = statement.query_map([], |row| row.get::<_, String>(0)).context("failed to read traces")?;
    let mut calls = Vec::new();
    for trace in traces {
        let trace: Value = serde_json::from_str(&trace.context("failed to read a trace")?).context("a trace is no JSON")?;
        let stages = trace["pipeline"].as_array().into_iter().flatten();
        calls.extend(stages.flat_map(|stage| stage["hooks"].as_array().into_iter().flatten()).filter_map(|hook| hook["ms"].as_f64()));
    }
    Ok(calls)
}

/// The plugin: it answers each call at once, and changes nothing.
///
/// # Errors
/// When a call can't be read or answered.
pub(crate) fn serve() -> Result<()> {
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let frame: Value = serde_json::from_str(&line.context("failed to read a call")?).context("a call is no JSON")?;
        writeln!(out, "{}", json!({ "id": frame["id"], "result": "continue" })).context("failed to answer")?;
        out.flush().context("failed to answer")?;
    }
    Ok(())
}
