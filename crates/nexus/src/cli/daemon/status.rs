//! `nexus daemon status`: the running daemon's state, or when one last ran. The texts are the
//! requirement's samples, to the character.

use super::detach;
use crate::cli::budget::Budget;
use crate::cli::failure::Exit;
use crate::cli::out::{Color, Paint, note, one_line};
use crate::cli::table::{self, Cell};
use crate::cli::{Global, running, units};
use crate::daemon::Paths;
use jiff::tz::TimeZone;
use nexus_core::config::LogLevel;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Longest error shown below an account, in characters.
const ERROR_CHARS_MAX: usize = 160;

/// The answer of `GET /control/status`, as far as it is shown. What a daemon of another version
/// leaves out is empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    pub(crate) health: String,
    pub(crate) reasons: Vec<String>,
    /// How far its shutdown is; the reasons say it to people.
    stopping: Option<Value>,
    pub(crate) pid: u32,
    pub(crate) uptime_ms: u64,
    pub(crate) http: Option<String>,
    pub(crate) detached: bool,
    pub(crate) config_path: String,
    pub(crate) flags: Flags,
    pub(crate) adapters: Vec<Account>,
    pub(crate) pipeline: Pipeline,
    pub(crate) deliveries: Deliveries,
    pub(crate) plugins: Vec<String>,
    pub(crate) plugin_details: Vec<Plugin>,
    pub(crate) automations: Vec<Plugin>,
    pub(crate) timer: Timer,
    projects: Vec<State>,
    nostr: Nostr,
    pub(crate) ledgers: BTreeMap<String, String>,
    pub(crate) kill_level: KillLevel,
    /// For `--verbose`, asked for besides.
    budgets: Vec<Budget>,
}

/// How surely no child outlives a daemon that is killed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct KillLevel {
    level: String,
    meaning: String,
    why: String,
}

/// What was given on the daemon's command line.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Flags {
    log_level: Option<String>,
    port: Option<u16>,
    whitelist: Vec<String>,
    projects_path: Option<String>,
}

impl From<Flags> for detach::Flags {
    fn from(flags: Flags) -> Self {
        let Flags { log_level, port, whitelist, projects_path } = flags;
        Self { log_level: log_level.as_deref().and_then(LogLevel::parse), port, whitelist, projects_path }
    }
}

/// One account of one adapter.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Account {
    pub(crate) adapter: String,
    pub(crate) account: String,
    pub(crate) channel: Option<String>,
    pub(crate) status: String,
    pub(crate) health: String,
    pub(crate) last_event_age_ms: Option<u64>,
    pub(crate) events: u64,
    pub(crate) last_error: Option<String>,
    /// Left out where only accounts in use are told.
    pub(crate) enabled: Option<bool>,
}

impl Account {
    pub(crate) fn is_disabled(&self) -> bool {
        self.enabled == Some(false)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pipeline {
    active_requests: u64,
    total_processed: u64,
    avg_latency_ms: f64,
    waiting: u64,
}

/// Messages that somebody should look at.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Deliveries {
    uncertain: u64,
    failed: u64,
    expired: u64,
}

/// One plugin, for `--verbose`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Plugin {
    name: String,
    status: String,
    calls: u64,
    errors: u64,
    dropped: u64,
    problem: Option<String>,
    /// Of an automation alone.
    disabled_itself: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Timer {
    heartbeat_interval_ms: u64,
    cron_jobs: u64,
}

/// How a project or a relay is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    state: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Nostr {
    relays: Vec<State>,
}

/// What `last-run.json` remembers; times in Unix milliseconds.
#[derive(Debug, Serialize, Deserialize)]
struct LastRun {
    pid: u32,
    started_at: i64,
    #[serde(default)]
    ended_at: Option<i64>,
    #[serde(default)]
    clean: Option<bool>,
    #[serde(default)]
    forced: bool,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Clean,
    /// By a second signal, while the first one's shutdown was under way.
    Forced,
    Crashed,
}

impl End {
    /// The word in JSON.
    fn word(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Forced => "forced",
            Self::Crashed => "crashed",
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Self::Clean => "exited cleanly",
            Self::Forced => "stopped at once by a second signal",
            Self::Crashed => "crashed",
        }
    }
}

impl LastRun {
    fn end(&self) -> End {
        match (self.clean, self.forced) {
            (Some(true), _) => End::Clean,
            (Some(false) | None, true) => End::Forced,
            (Some(false) | None, false) => End::Crashed,
        }
    }

    fn json(&self) -> Value {
        let mut value = json!(self);
        value["end"] = self.end().word().into();
        value
    }
}

pub(crate) fn run(verbose: bool, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let out = global.out();
    let answer = running::ask(&paths, "/control/status")?;
    let Some(mut answer) = answer else {
        let last = last_run(&paths);
        if out.json {
            out.json(&json!({ "running": false, "last_run": last.as_ref().map(LastRun::json) }))?;
        } else {
            out.line(&render_not_running(last.as_ref(), &TimeZone::system()))?;
        }
        return Ok(Exit::NotRunning);
    };
    if verbose {
        match running::ask(&paths, "/control/budgets") {
            Ok(budgets) => answer["budgets"] = budgets.unwrap_or_else(|| json!([])),
            // All else is known all the same.
            Err(error) => note(&format!("what was used of budgets is not known: {error:#}")),
        }
        // With what the ledger knows of them: which have disabled themselves.
        match running::ask(&paths, "/control/automations") {
            Ok(Some(mut known)) => answer["automations"] = known["automations"].take(),
            Ok(None) => {} // it has just ended
            Err(error) => note(&format!("which automations disabled themselves is not known: {error:#}")),
        }
    }
    if out.json {
        out.json(&answer)?;
    } else {
        let status: Status = serde_json::from_value(answer)?;
        let more = if verbose { render_more(&status) } else { String::new() };
        out.line(&format!("{}{more}", render_status(&status, out.paint)))?;
    }
    Ok(Exit::Done)
}

/// What ran last; unreadable is the same as never.
fn last_run(paths: &Paths) -> Option<LastRun> {
    let text = std::fs::read(paths.last_run()).ok()?;
    serde_json::from_slice(&text).ok()
}

fn render_not_running(last: Option<&LastRun>, zone: &TimeZone) -> String {
    let mut text = "NEX Daemon: not running".to_owned();
    if let Some(last) = last {
        let end = last.end().sentence();
        // Nobody wrote down when a run ended that crashed.
        let time = match last.ended_at {
            Some(ended_at) => units::minute(ended_at, zone),
            None => format!("started {}", units::minute(last.started_at, zone)),
        };
        text.push_str(&format!("\nLast ran: {time} (PID {}, {end})", last.pid));
    }
    text
}

/// The whole text. Below the requirement's sample stands what it has no line for: relays and projects where there are
/// any, and the kill level.
pub(crate) fn render_status(status: &Status, paint: Paint) -> String {
    let state = if status.stopping.is_some() { "stopping" } else { "running" };
    let mut lines = vec![
        format!("NEX Daemon: {state} (PID {}, uptime {})", status.pid, units::duration(status.uptime_ms)),
        format!("HTTP: {}", status.http.as_deref().unwrap_or("not listening")),
    ];
    if !matches!(status.health.as_str(), "healthy" | "") {
        let color = if status.health == "unhealthy" { Color::Red } else { Color::Yellow };
        let reasons = status.reasons.iter().map(|reason| one_line(reason, ERROR_CHARS_MAX)).collect::<Vec<_>>().join("; ");
        lines.push(format!("Health: {} ({reasons})", paint.apply(color, &status.health)));
    }
    lines.push(String::new());
    if status.adapters.is_empty() {
        lines.push("Adapters: none".to_owned());
    } else {
        lines.push("Adapters:".to_owned());
        lines.extend(account_lines(&status.adapters, paint));
    }
    lines.push(String::new());
    lines.extend(pipeline_lines(&status.pipeline));
    lines.extend(deliveries(&status.deliveries, paint));
    lines.push(String::new());
    let plugins = if status.plugins.is_empty() { "none".to_owned() } else { status.plugins.join(", ") };
    lines.push(format!("Plugins: {plugins}"));
    lines.push(format!("Timer: {}", timer(&status.timer)));
    lines.push(format!("Ledgers: {}", ledgers(&status.ledgers, paint)));
    lines.extend(counted("Nostr relays", &status.nostr.relays));
    lines.extend(counted("Projects", &status.projects));
    // A daemon of another version may not know it.
    let level = &status.kill_level.level;
    lines.extend((!level.is_empty()).then(|| format!("Kill level: {}", one_line(level, ERROR_CHARS_MAX))));
    lines.join("\n")
}

/// What `--verbose` adds below that. The kill level is the last line there, and is explained first.
fn render_more(status: &Status) -> String {
    let KillLevel { level, meaning, why } = &status.kill_level;
    if level.is_empty() {
        return "\n\nKill level: unknown to a daemon of another version".to_owned();
    }
    let plugins: String = status.plugin_details.iter().map(plugin).collect();
    let plugins = if plugins.is_empty() { plugins } else { format!("\n\nPlugins:{plugins}") };
    let automations: String = status.automations.iter().map(plugin).collect();
    let automations = if automations.is_empty() { automations } else { format!("\n\nAutomations:{automations}") };
    let budgets: String = status.budgets.iter().map(budget).collect();
    let budgets = if budgets.is_empty() { budgets } else { format!("\n\nBudgets:{budgets}") };
    let (meaning, why) = (one_line(meaning, ERROR_CHARS_MAX), one_line(why, ERROR_CHARS_MAX));
    format!(" ({meaning})\n  {why}{plugins}{automations}{budgets}")
}

fn budget(budget: &Budget) -> String {
    format!("\n  {} {}", budget.name(), budget.used())
}

fn plugin(plugin: &Plugin) -> String {
    let Plugin { name, status, calls, errors, dropped, problem, disabled_itself } = plugin;
    let name = one_line(name, ERROR_CHARS_MAX);
    let figures = format!("calls: {}, errors: {}", units::thousands(*calls), units::thousands(*errors));
    let dropped = if *dropped > 0 { format!(", not told: {}", units::thousands(*dropped)) } else { String::new() };
    let problem = problem.as_deref().map(|problem| format!("\n    {}", one_line(problem, ERROR_CHARS_MAX))).unwrap_or_default();
    let itself = if *disabled_itself {
        format!("\n    it disabled itself; `nexus automation enable {name}` has it asked again")
    } else {
        String::new()
    };
    format!("\n  {name} {} ({figures}{dropped}){itself}{problem}", one_line(status, ERROR_CHARS_MAX))
}

/// A line for each account, and one below it for what is wrong with it.
pub(crate) fn account_lines(accounts: &[Account], paint: Paint) -> Vec<String> {
    let rows: Vec<_> = accounts.iter().map(row).collect();
    let lines = table::lines(&rows, &[1, 2, 3, 3, 4], paint);
    let mut result = Vec::with_capacity(lines.len());
    for (line, account) in lines.into_iter().zip(accounts) {
        result.push(format!("  {line}"));
        let is_fine = account.status == "running" && account.health == "healthy";
        if let Some(error) = account.last_error.as_deref().filter(|_| !is_fine) {
            result.push(format!("    {}", paint.apply(Color::Red, &one_line(error, ERROR_CHARS_MAX))));
        }
    }
    result
}

fn row(account: &Account) -> [Cell; 6] {
    let status = if account.is_disabled() { "disabled" } else { account.status.as_str() };
    let (mark, color) = match status {
        "running" => ("●", Color::Green),
        "stopped" | "disabled" => ("○", Color::Dim),
        "errored" => ("✗", Color::Red),
        _ => ("◐", Color::Yellow),
    };
    let health = match account.health.as_str() {
        "healthy" => Color::Green,
        "disconnected" => Color::Red,
        "degraded" => Color::Yellow,
        _ => Color::Dim,
    };
    let last = account.last_event_age_ms.map_or_else(|| "never".to_owned(), units::ago);
    [
        Cell::new(format!("{}/{}", account.adapter, account.account)),
        Cell::new(account.channel.as_deref().unwrap_or("-")),
        Cell::colored(format!("{mark} {status}"), color),
        Cell::colored(account.health.as_str(), health),
        Cell::new(format!("last: {last}")),
        Cell::new(format!("events: {}", units::thousands(account.events))),
    ]
}

fn pipeline_lines(pipeline: &Pipeline) -> Vec<String> {
    let mut lines = vec![
        "Pipeline:".to_owned(),
        format!("  Active requests: {}", units::thousands(pipeline.active_requests)),
        format!("  Total processed: {}", units::thousands(pipeline.total_processed)),
        format!("  Avg latency: {}", units::milliseconds(pipeline.avg_latency_ms)),
    ];
    if pipeline.waiting > 0 {
        lines.insert(2, format!("  Waiting requests: {}", units::thousands(pipeline.waiting)));
    }
    lines
}

/// How many are in which state, if there are any.
fn counted(what: &str, all: &[State]) -> Option<String> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for one in all {
        *counts.entry(one.state.as_str()).or_default() += 1;
    }
    let told: Vec<String> =
        counts.iter().map(|(state, count)| format!("{} {}", units::thousands(*count), one_line(state, ERROR_CHARS_MAX))).collect();
    (!told.is_empty()).then(|| format!("{what}: {}", told.join(", ")))
}

/// What waits for a person's decision, if anything does.
fn deliveries(deliveries: &Deliveries, paint: Paint) -> Option<String> {
    let Deliveries { uncertain, failed, expired } = *deliveries;
    let counts = [("uncertain", uncertain), ("failed", failed), ("expired", expired)];
    let found: Vec<String> =
        counts.iter().filter(|(_, count)| *count > 0).map(|(word, count)| format!("{} {word}", units::thousands(*count))).collect();
    let text = paint.apply(Color::Yellow, &found.join(", "));
    (!found.is_empty()).then(|| format!("  Undelivered: {text} (`nexus deliveries list`)"))
}

fn timer(timer: &Timer) -> String {
    let heartbeat = match timer.heartbeat_interval_ms {
        0 => "no heartbeat".to_owned(),
        ms => format!("heartbeat {}", units::period(ms)),
    };
    match timer.cron_jobs {
        0 => heartbeat,
        1 => format!("{heartbeat}, 1 cron job"),
        count => format!("{heartbeat}, {count} cron jobs"),
    }
}

fn ledgers(ledgers: &BTreeMap<String, String>, paint: Paint) -> String {
    let bad: Vec<String> = ledgers.iter().filter(|(_, state)| *state != "ok").map(|(name, state)| format!("{name}: {state}")).collect();
    let count = format!("{}/{} ok", ledgers.len() - bad.len(), ledgers.len());
    if bad.is_empty() { count } else { format!("{count} ({})", paint.apply(Color::Red, &bad.join(", "))) }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
