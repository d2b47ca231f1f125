//! `nexus backup`: asks the running daemon for a copy of its ledgers, or makes it when none runs.

use super::client::{Client, ClientError, if_running};
use super::failure::{Exit, Failure};
use super::out::{Out, note, visible};
use super::table::{self, Cell};
use super::units::thousands;
use super::{Global, block_on, ledger};
use crate::backup::copy::{BackupError, Job, default_directory, make};
use crate::backup::{Progress, Watch};
use crate::clock;
use crate::daemon::Paths;
use crate::ledger::lock;
use anyhow::{Context, anyhow};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const CONTROL_PATH: &str = "/control/backup";
/// How often a terminal is told how far a copy has come.
const TELL_EVERY: Duration = Duration::from_secs(2);
pub(super) const MIB: u64 = 1024 * 1024;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  nexus backup\n  nexus backup /mnt/disk/nexus-monday")]
pub(crate) struct Args {
    /// Where to: a directory that is empty or doesn't exist yet [default: backup/<time>, beside the ledgers]
    directory: Option<PathBuf>,
}

pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let out = global.out();
    let directory = args.directory.as_deref().map(absolute).transpose()?;
    let mut telling = Telling::new(out);
    let made = match block_on(ask(&paths, directory.as_deref(), &mut telling))?? {
        Some(made) => made,
        None => offline(&paths, directory, &mut telling)?,
    };
    show(&made, out)?;
    Ok(Exit::Done)
}

/// A path that means the same to a daemon, which runs in another directory.
pub(super) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(path).with_context(|| format!("failed to make `{}` absolute", path.display()))?;
    match path.to_str() {
        Some(_) => Ok(path),
        None => Err(Failure::new(Exit::Usage, format!("`{}` is not UTF-8", path.display())).into()),
    }
}

/// Has the daemon make it; nothing when none runs.
async fn ask(paths: &Paths, directory: Option<&Path>, telling: &mut Telling) -> anyhow::Result<Option<Value>> {
    let body = json!({ "directory": directory.and_then(Path::to_str) });
    let Some(mut lines) = if_running(Client::new(paths).converse(CONTROL_PATH, &body).await)? else { return Ok(None) };
    while let Some(line) = lines.next().await? {
        let line: Value = serde_json::from_slice(&line).map_err(|_| ClientError::Malformed { path: CONTROL_PATH.to_owned() })?;
        let text = |key: &str| line[key].as_str().unwrap_or_default();
        match text("type") {
            "progress" => telling.tell(text("doing"), text("file"), line["percent"].as_u64().unwrap_or(0)),
            "done" => return Ok(Some(json!({ "directory": line["directory"], "manifest": line["manifest"] }))),
            "failed" => return Err(Failure::new(Exit::Failed, text("error")).into()),
            _ => {} // of a newer daemon
        }
    }
    Err(anyhow!("the daemon ended before the backup was made; a directory without manifest.json is none"))
}

/// Makes it here. No daemon can start meanwhile.
fn offline(paths: &Paths, directory: Option<PathBuf>, telling: &mut Telling) -> anyhow::Result<Value> {
    let config = ledger::configuration(paths)?.config;
    let ledgers = paths.data_dir(&config.ledgers.directory);
    if !ledgers.is_dir() {
        return Err(BackupError::NoLedger(ledgers).into());
    }
    let _lock = lock::take(&ledgers, Some("nexus backup"))?;
    lock::refuse_half_restored(&ledgers)?;
    let now_ms = clock::wall_ms();
    let to = directory.unwrap_or_else(|| default_directory(&ledgers, now_ms));
    let job = Job {
        programs: paths.programs(&config.plugins.directory, &ledgers),
        ledgers,
        to: to.clone(),
        config_file: paths.config_file.clone(),
        overlay_file: paths.overlay_file(),
        spare_bytes: config.ledgers.min_free_mb.saturating_mul(MIB),
        online: false,
        long_reads: Vec::new(),
        now_ms,
    };
    let manifest = make(job, &mut Watch { tell: &mut |progress| telling.progress(&progress), stop: CancellationToken::new() })?;
    Ok(json!({ "directory": to.display().to_string(), "manifest": manifest }))
}

fn show(made: &Value, out: Out) -> anyhow::Result<()> {
    if out.json {
        out.json(made)?;
        return Ok(());
    }
    out.line(&format!("Backup made: {}", visible(made["directory"].as_str().unwrap_or("?"))))?;
    let files = made["manifest"]["files"].as_object();
    let mut rows: Vec<[Cell; 2]> = files
        .into_iter()
        .flatten()
        .map(|(name, entry)| {
            let kib = entry["bytes"].as_u64().unwrap_or(0).div_ceil(1024);
            [Cell::new(format!("  {name}")), Cell::new(format!("{} KiB", thousands(kib)))]
        })
        .collect();
    let programs = &made["manifest"]["programs"];
    let figure = |name: &str| programs[name].as_u64().unwrap_or(0);
    if figure("files") > 0 {
        let what = format!("{} KiB, {} files", thousands(figure("bytes").div_ceil(1024)), thousands(figure("files")));
        rows.push([Cell::new("  automations, plugins".to_owned()), Cell::new(what)]);
    }
    for line in table::lines(&rows, &[], out.paint) {
        out.line(&line)?;
    }
    for left_out in programs["left_out"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        note(&format!("warning: not in it: {}", visible(left_out)));
    }
    if figure("left_out_more") > 0 {
        note(&format!("warning: nor {} more of such", figure("left_out_more")));
    }
    note(&format!("Not in it: {}.", visible(made["manifest"]["not_included"].as_str().unwrap_or("credentials"))));
    Ok(())
}

/// Tells somebody who waits at a terminal how far it has come.
#[derive(Debug)]
pub(super) struct Telling {
    wanted: bool,
    last: Instant,
}

impl Telling {
    pub(super) fn new(out: Out) -> Self {
        Self { wanted: !out.json && std::io::stderr().is_terminal(), last: Instant::now() }
    }

    pub(super) fn progress(&mut self, progress: &Progress) {
        self.tell(progress.doing, &progress.file, progress.percent);
    }

    fn tell(&mut self, doing: &str, file: &str, percent: u64) {
        if self.wanted && self.last.elapsed() >= TELL_EVERY {
            self.last = Instant::now();
            let so_far = if percent > 0 { format!(": {percent} %") } else { String::new() };
            note(&visible(&format!("{doing} {file}{so_far}")));
        }
    }
}
