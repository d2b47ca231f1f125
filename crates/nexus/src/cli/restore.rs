//! `nexus restore`: puts a backup in the place of the ledgers of a daemon that doesn't run.

use super::backup::{MIB, Telling, absolute};
use super::failure::{Exit, Failure};
use super::out::{Out, note};
use super::{Global, ledger};
use crate::backup::programs::Outcome;
use crate::backup::restore::{ConfigOutcome, Plan, Report, Target, lock_ledgers};
use crate::backup::{CONFIG_FILE, Watch};
use crate::clock;
use crate::daemon::{Paths, lock};
use anyhow::Context;
use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// Longest answer to a question, in bytes.
const ANSWER_BYTES_MAX: u64 = 100;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  nexus restore ~/nexus/data/backup/20260205T143007.123Z\n  nexus restore /mnt/disk/moved --resume --yes"
)]
pub(crate) struct Args {
    /// A directory that `nexus backup` made
    directory: PathBuf,
    /// Let everything go on that was open in the backup, as after a crash; only right if nothing was done since it was made
    #[arg(long)]
    resume: bool,
    /// Don't ask
    #[arg(short, long)]
    yes: bool,
}

pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<Exit> {
    if !args.yes && !std::io::stdin().is_terminal() {
        let why = "a restore exchanges the ledgers: say --yes, since there is no terminal to ask on";
        return Err(Failure::new(Exit::Usage, why).into());
    }
    let paths = global.paths()?;
    let out = global.out();
    refuse_running(&paths)?;
    let directory = absolute(&args.directory)?;
    if !directory.is_dir() {
        let missing = format!("there is no directory `{}`; give one that `nexus backup` made", directory.display());
        return Err(Failure::not_found(missing).into());
    }
    let plan = Plan::read(&directory)?;
    let target = target(&paths, &directory)?;
    let lock = lock_ledgers(&target.ledgers)?;
    if !args.yes && !confirmed(&plan, &target, args.resume)? {
        return Err(Failure::new(Exit::Failed, "nothing was restored").into());
    }
    let mut telling = Telling::new(out);
    let mut watch = Watch { tell: &mut |progress| telling.progress(&progress), stop: CancellationToken::new() };
    let report = plan.run(&target, args.resume, clock::wall_ms(), &mut watch)?;
    drop(lock);
    show(&report, out)?;
    Ok(Exit::Done)
}

fn refuse_running(paths: &Paths) -> anyhow::Result<()> {
    match lock::holder(paths) {
        Some(pid) => {
            let why = format!("NEX daemon is running (PID {pid}); stop it with `nexus daemon stop`, then restore");
            Err(Failure::new(Exit::Failed, why).into())
        }
        None => Ok(()),
    }
}

/// Where the configuration says that the ledgers are: the present one, or the backup's where there is none.
fn target(paths: &Paths, directory: &Path) -> anyhow::Result<Target> {
    let copied = directory.join(CONFIG_FILE);
    let of_backup = Paths { config_file: copied, workspace: directory.to_owned(), ..paths.clone() };
    let in_force = if paths.config_file.exists() || !of_backup.config_file.exists() { paths } else { &of_backup };
    let config = ledger::configuration(in_force)?.config;
    let ledgers = paths.data_dir(&config.ledgers.directory);
    Ok(Target {
        programs: paths.programs(&config.plugins.directory, &ledgers),
        ledgers,
        config_file: paths.config_file.clone(),
        overlay_file: paths.overlay_file(),
        spare_bytes: config.ledgers.min_free_mb.saturating_mul(MIB),
    })
}

/// Asks on the terminal.
fn confirmed(plan: &Plan, target: &Target, resume: bool) -> anyhow::Result<bool> {
    let (made, ledgers) = (&plan.manifest.made, target.ledgers.display());
    let open = if resume { "What was open in it goes on." } else { "What was open in it is closed or held for you to decide." };
    let question = format!("Restore the backup of {made} to {ledgers}? Ledgers that are there are moved aside. {open} [y/N] ");
    let mut stderr = std::io::stderr().lock();
    stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush()).context("failed to ask")?;
    let mut answer = String::new();
    std::io::stdin().lock().take(ANSWER_BYTES_MAX).read_line(&mut answer).context("failed to read the answer")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn show(report: &Report, out: Out) -> anyhow::Result<()> {
    if out.json {
        out.json(&serde_json::to_value(report).context("failed to tell of a path that is not UTF-8")?)?;
        return Ok(());
    }
    out.line(&format!("Restored the backup of {} to {}", report.made, report.ledgers.display()))?;
    for line in details(report) {
        out.line(&format!("  {line}"))?;
    }
    report.warnings.iter().for_each(|warning| note(&format!("warning: {warning}")));
    Ok(())
}

/// What was done, and what to look at.
fn details(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    match &report.before {
        Some(before) => lines.push(format!("Before:     the former ledgers lie in {}", before.display())),
        None => lines.push("Before:     there were no ledgers".to_owned()),
    }
    if report.finished_another {
        lines.push("            a restore that had been interrupted was finished by this one".to_owned());
    }
    if report.resumed {
        lines.push("Open work:  goes on with the next start, as after a crash".to_owned());
    } else {
        lines
            .push(format!("Requests:   {} were open and are `failed` now; see `nexus trace list --status failed`", report.requests_closed));
        lines.push(format!(
            "Deliveries: {} were not surely sent and are held; see `nexus deliveries list --status failed`",
            report.deliveries_held
        ));
    }
    let config = match report.config {
        ConfigOutcome::Same => "is the backup's",
        ConfigOutcome::Differs => "differs from the backup's nex.yaml or state/overlay.yaml, and was left as it is",
        ConfigOutcome::Restored => "there was none; the backup's was put in place",
        ConfigOutcome::NotInBackup => "is not in the backup",
    };
    lines.push(format!("Config:     {config}"));
    for (what, outcome, name) in [("Automations:", report.automations, "state/automations"), ("Plugins:", report.plugins, "plugins")] {
        lines.push(format!("{what:<11} {}", told(outcome, &report.directory.join(name))));
    }
    lines.push("Missing:    credentials; put state/credentials back yourself if they are gone".to_owned());
    lines
}

/// What became of automations or plugins, whose copies are in `copies`.
fn told(outcome: Outcome, copies: &Path) -> String {
    match outcome {
        Outcome::Same => "are the backup's".to_owned(),
        Outcome::Differs => format!("differ from the backup's, and were left as they are; the backup's lie in {}", copies.display()),
        Outcome::Restored => "there were none; the backup's were put in place".to_owned(),
        Outcome::NotPut => format!("there are none; the backup's could not be put in place, and lie in {}", copies.display()),
        Outcome::NotInBackup => "are not in the backup".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(resumed: bool) -> Report {
        Report {
            directory: "/b".into(),
            ledgers: "/d".into(),
            before: Some("/d/backup/before-restore-1".into()),
            made_at: 0,
            made: "1970-01-01T00:00:00.000Z".into(),
            resumed,
            requests_closed: 3,
            never_admitted: 1,
            deliveries_held: 2,
            epoch: 7,
            config: ConfigOutcome::Differs,
            automations: Outcome::Restored,
            plugins: Outcome::Differs,
            finished_another: false,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn what_was_closed_and_held_is_told_with_where_to_look() {
        let text = details(&report(false)).join("\n");
        for part in ["before-restore-1", "3 were open", "trace list --status failed", "2 were not surely sent", "differs"] {
            assert!(text.contains(part), "no `{part}` in\n{text}");
        }
        for part in ["Automations: there were none", "Plugins:    differ", "lie in /b/plugins", "state/credentials"] {
            assert!(text.contains(part), "no `{part}` in\n{text}");
        }
        let text = details(&report(true)).join("\n");
        assert!(text.contains("goes on") && !text.contains("were open"), "{text}");
    }
}
