//! `nexus doctor`: asks the running daemon about its files and looks at the rest itself, mends what it
//! was told to mend, and prints what was found. What is right and wrong, `crate::doctor` says.

use super::client::{Client, ClientError, encoded};
use super::failure::Exit;
use super::out::{Color, Out, note, visible};
use super::{Global, block_on};
use crate::clock;
use crate::daemon::{Paths, instance};
use crate::doctor::repair::{self, Repaired};
use crate::doctor::{
    Check, Finding, Presence, Severity, adapters, agents, git, host, leftovers, permissions, plugins, record, setting, worst,
};
use crate::error_text::describe;
use futures_util::StreamExt;
use nexus_core::config::{Config, Ledgers};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Adapters that the daemon is asked about at a time.
const ASKED_AT_ONCE: usize = 16;
/// Width of the widest severity and check, so that findings stand in columns as they come.
const SEVERITY_CHARS: usize = 7;
const CHECK_CHARS: usize = 11;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Mend what is safe to mend: modes, and with no daemon running what a dead one left
    #[arg(long)]
    repair: bool,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let (paths, out) = (global.paths()?, global.out());
    let presence = setting::presence(&paths);
    let (config, configured) = setting::configuration(&paths);
    let data = config.as_ref().map(|config| paths.data_dir(&config.ledgers.directory));
    // Root would leave files that their owner can't open; that they are another's is among what is found.
    let mend = args.repair && permissions::owner(&paths.state_dir).is_none();
    let mut repaired = if mend { repair::before(&paths, config.as_ref(), data.as_deref(), presence) } else { Repaired::default() };
    if out.terminal && !out.json {
        note("looking at everything; large ledgers take their time");
    }
    let mut findings = setting::lock(&paths, presence);
    findings.extend(permissions::findings(&paths, data.as_deref()));
    findings.extend(configured);
    findings.extend(match presence {
        Presence::Running { .. } => block_on(asked(&paths, config.as_ref()))?,
        Presence::Absent => looked(&paths, config.as_ref(), data.as_deref(), mend.then_some(&mut repaired)),
        Presence::Cleaning => vec![not_now(&paths)],
    });
    findings.push(host::kill_level(&paths.state_dir));
    findings.extend(leftovers::findings(&paths, config.as_ref(), data.as_deref(), presence));
    if let (Some(config), Some(data)) = (&config, &data) {
        findings.extend(host::disk(data, config.ledgers.min_free_mb));
        findings.extend(git::findings(config, &paths.workspace));
    }
    findings.append(&mut repaired.failed);
    tell(&findings, &repaired.done, out)?;
    Ok(if worst(&findings) == Severity::Error { Exit::Failed } else { Exit::Done })
}

/// What a running daemon says of its files, its port, its adapters, plugins and agents, and its health.
async fn asked(paths: &Paths, config: Option<&Config>) -> Vec<Finding> {
    let client = Client::new(paths);
    let mut findings = match client.get("/control/doctor").await {
        Ok(mut answer) => serde_json::from_value(answer.get_mut("findings").map(Value::take).unwrap_or_default())
            .unwrap_or_else(|_| vec![other_version()]),
        Err(error) => vec![no_answer(&error)],
    };
    match client.get("/control/status").await {
        Ok(status) => findings.push(host::own_port(status["http"].as_str())),
        Err(error) => findings.push(Finding::warning(Check::Port, describe(&error), advice(&error))),
    }
    if let Some(config) = config {
        findings.extend(infos(&client, config).await);
    }
    findings
}

fn other_version() -> Finding {
    Finding::error(Check::Promise, "the daemon's answer is of another version", "`nexus daemon restart` starts the one of this command")
}

fn no_answer(error: &ClientError) -> Finding {
    let what = format!("the daemon was not heard about its ledgers: {}", describe(error));
    match error.is_passing() {
        true => Finding::warning(Check::Promise, what, advice(error)),
        false => Finding::error(Check::Promise, what, advice(error)),
    }
}

/// The lock is held by nobody who answers: a daemon that is starting may be about to open the files.
fn not_now(paths: &Paths) -> Finding {
    let what = "ledgers, port, adapters, plugins and agents were not looked at while the lock is held";
    Finding::warning(Check::Promise, what, "run `nexus doctor` again in a moment").at(&paths.pid_file())
}

fn advice(error: &ClientError) -> &'static str {
    error.advice().unwrap_or("try again in a moment")
}

async fn infos(client: &Client<'_>, config: &Config) -> Vec<Finding> {
    if config.adapters.is_empty() {
        return vec![adapters::none()];
    }
    let each = config.adapters.iter().map(|(name, adapter)| async move {
        if !adapters::is_used(adapter) {
            return adapters::disabled(name);
        }
        match client.get(&format!("/control/adapters/{}/info", encoded(name))).await {
            Ok(info) => adapters::answered(name, info["channel"].as_str().unwrap_or("-"), info["version"].as_str().unwrap_or("-")),
            Err(ClientError::Refused { status: 404, .. }) => {
                Finding::warning(Check::Adapters, "the running daemon doesn't know it yet", "`nexus daemon reload`").at_place(name)
            }
            Err(error) => adapters::silent(name, &describe(&error)),
        }
    });
    futures_util::stream::iter(each).buffered(ASKED_AT_ONCE).collect().await
}

/// The same, by this process; with `repaired` also what may be mended of sound ledgers.
fn looked(paths: &Paths, config: Option<&Config>, data: Option<&Path>, repaired: Option<&mut Repaired>) -> Vec<Finding> {
    let (Some(config), Some(data)) = (config, data) else {
        let usual = paths.data_dir(&Ledgers::default().directory);
        let fix = "correct the configuration first: it says where the ledgers are, and which adapters there are";
        return vec![Finding::warning(Check::Promise, "ledgers, port, adapters, plugins and agents were not looked at", fix).at(&usual)];
    };
    let mut findings = ledgers(paths, config, data, repaired);
    findings.push(host::port(&config.daemon.host, config.daemon.port));
    let instance = instance::known(paths);
    findings.extend(adapters::ask(config, &paths.workspace, instance.as_deref()));
    findings.extend(plugins::load(config, paths, instance.as_deref()));
    findings.extend(agents::findings(config, &paths.workspace, agents::Looker::Command));
    findings
}

fn ledgers(paths: &Paths, config: &Config, data: &Path, repaired: Option<&mut Repaired>) -> Vec<Finding> {
    if let Some(in_use) = setting::ledgers_in_use(data) {
        return vec![in_use];
    }
    if let Some(half) = leftovers::half_restored(data) {
        return vec![half];
    }
    let findings = record::examine(&record::Examined { directory: PathBuf::from(data), epoch: None, now_ms: clock::wall_ms() });
    if let Some(repaired) = repaired {
        repair::staged(paths, config, data, repaired);
        // What is damaged is left as it is, for whoever may save something of it.
        if worst(&findings) != Severity::Error {
            repair::logs(data, repaired);
        }
    }
    findings
}

fn tell(findings: &[Finding], repaired: &[String], out: Out) -> anyhow::Result<()> {
    if out.json {
        out.json(&document(findings, repaired))?;
        return Ok(());
    }
    for finding in findings {
        out.line(&line(finding, out))?;
    }
    for done in repaired {
        out.line(&format!("{}  {}", out.paint.apply(Color::Green, &format!("{:SEVERITY_CHARS$}", "mended")), visible(done)))?;
    }
    out.line(&summary(findings))?;
    Ok(())
}

fn document(findings: &[Finding], repaired: &[String]) -> Value {
    let status = match worst(findings) {
        Severity::Ok => "ok",
        Severity::Warning => "warnings",
        Severity::Error => "errors",
    };
    json!({ "status": status, "findings": findings, "repaired": repaired })
}

fn line(finding: &Finding, out: Out) -> String {
    let color = match finding.severity {
        Severity::Ok => Color::Green,
        Severity::Warning => Color::Yellow,
        Severity::Error => Color::Red,
    };
    let word = out.paint.apply(color, &format!("{:SEVERITY_CHARS$}", finding.severity.as_str()));
    let place = finding.place.as_ref().map(|place| out.paint.apply(Color::Dim, &format!("  {}", visible(place)))).unwrap_or_default();
    let mut text = format!("{word}  {:CHECK_CHARS$}  {}{place}", finding.check.as_str(), visible(&finding.what));
    if let Some(fix) = &finding.fix {
        text.push_str(&format!("\n{:indent$}fix: {}", "", visible(fix), indent = SEVERITY_CHARS + CHECK_CHARS + 4));
    }
    text
}

fn summary(findings: &[Finding]) -> String {
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    match (count(Severity::Error), count(Severity::Warning)) {
        (0, 0) => "all is well".to_owned(),
        (errors, warnings) => format!("errors: {errors}, warnings: {warnings}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::out::Paint;
    use super::*;

    #[test]
    fn a_finding_is_a_line_and_its_fix_stands_below() {
        let out = Out { json: false, terminal: false, paint: Paint::PLAIN };
        let finding = Finding::warning(Check::Lock, "a PID file\u{1b} that nobody holds", "remove it").at_place("/s/nex.pid");
        let expected = "warning  lock         a PID file\u{fffd} that nobody holds  /s/nex.pid\n                      fix: remove it";
        assert_eq!(line(&finding, out), expected);
        assert_eq!(line(&Finding::ok(Check::Clock, "fine"), out), "ok       clock        fine");
    }

    #[test]
    fn the_worst_is_the_status_and_counts_are_told() {
        let (ok, bad) = (Finding::ok(Check::Clock, "fine"), Finding::error(Check::Port, "busy", "free it"));
        let odd = Finding::warning(Check::Lock, "stale", "remove it");
        assert_eq!(
            (summary(std::slice::from_ref(&ok)).as_str(), document(std::slice::from_ref(&ok), &[])["status"].as_str()),
            ("all is well", Some("ok"))
        );
        assert_eq!(document(&[ok.clone(), odd.clone()], &[])["status"], "warnings");
        let all = [ok, odd, bad];
        assert_eq!(
            (summary(&all), document(&all, &["x".to_owned()])["repaired"][0].as_str()),
            ("errors: 1, warnings: 1".to_owned(), Some("x"))
        );
        assert_eq!(document(&all, &[])["status"], "errors");
    }
}
