//! A backup of the running daemon's ledgers: one at a time, on a thread that may block, to its end whether
//! or not anybody waits for it. A stop of the daemon calls it off.

use super::control::Control;
use crate::backup::copy::{Job, default_directory, make};
use crate::backup::{Progress, Watch};
use crate::clock;
use crate::error_text::describe;
use crate::http::backup::Lines;
use crate::http::control::Refusal;
use axum::http::StatusCode;
use serde_json::{Value, json};
use std::path::PathBuf;
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio_util::sync::CancellationToken;

/// Lines that wait for who asked; of more progress than fits nothing is told.
const LINES_MAX: usize = 64;
const MIB: u64 = 1024 * 1024;

/// Begins a backup to `directory`, by default one below the ledgers.
pub(super) fn begin(control: &Control, directory: Option<PathBuf>) -> Result<Lines, Refusal> {
    if let Some(directory) = directory.as_ref().filter(|directory| !directory.is_absolute()) {
        let why = format!("`{}` is not absolute: the daemon may run elsewhere than you", directory.display());
        return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
    }
    if control.stop.is_cancelled() {
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping"));
    }
    let Ok(turn) = control.backing_up.clone().try_lock_owned() else {
        return Err(Refusal::new(StatusCode::CONFLICT, "a backup is being made; try again when it is done"));
    };
    // The copy is made by path, and would be of another file.
    if let Some(trouble) = control.ledgers.look_at_files() {
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, trouble));
    }
    let (config, now_ms) = (control.config.load(), clock::wall_ms());
    let ledgers = control.paths.data_dir(&config.ledgers.directory);
    let job = Job {
        to: directory.unwrap_or_else(|| default_directory(&ledgers, now_ms)),
        programs: control.paths.programs(&config.plugins.directory, &ledgers),
        ledgers,
        config_file: control.paths.config_file.clone(),
        overlay_file: control.paths.overlay_file(),
        spare_bytes: config.ledgers.min_free_mb.saturating_mul(MIB),
        online: true,
        long_reads: control.ledgers.long_reads(),
        now_ms,
    };
    let (lines, answer) = mpsc::channel(LINES_MAX);
    let stop = control.stop.clone();
    // Its end is the last of the lines, and the turn's.
    drop(crate::watch::blocking("backup", move || work(job, stop, turn, &lines)));
    Ok(answer)
}

fn work(job: Job, stop: CancellationToken, turn: OwnedMutexGuard<()>, lines: &mpsc::Sender<Value>) {
    let directory = job.to.clone();
    tracing::info!(directory = %directory.display(), "backup begins");
    let mut tell = |progress: Progress| {
        // The last place is for the end.
        if lines.capacity() > 1 {
            let line = json!({ "type": "progress", "doing": progress.doing, "file": progress.file, "percent": progress.percent });
            lines.try_send(line).ok(); // nobody may be there to read it
        }
    };
    let end = match make(job, &mut Watch { tell: &mut tell, stop }) {
        Ok(manifest) => {
            tracing::info!(directory = %directory.display(), "backup made");
            json!({ "type": "done", "directory": directory.display().to_string(), "manifest": manifest })
        }
        Err(error) => {
            let error = describe(&error);
            tracing::error!(directory = %directory.display(), error, "no backup was made");
            json!({ "type": "failed", "error": error })
        }
    };
    drop(turn);
    lines.try_send(end).ok(); // as above
}
