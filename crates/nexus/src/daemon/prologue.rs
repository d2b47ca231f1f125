//! Steps 1 to 3 of the start and the keeper: all that happens before the runtime and its threads.

use super::config::{ensure_default, load_whole};
use super::error::StartError;
use super::lock::{Hold, LastRun, Lock};
use super::paths::{Paths, private_dir};
use super::{Prologue, StartOptions};
use crate::keeper::{Cgroup, leftovers};
use crate::logging::Logging;
use std::sync::Arc;
use std::time::Instant;

/// Steps 1 to 3 and the keeper, before the runtime and its threads exist.
pub(super) fn run(options: StartOptions) -> Result<(Hold, Prologue), StartError> {
    let began = Instant::now();
    let paths = Paths::resolve(options.config.as_deref())?;
    let before = LastRun::read(&paths);
    let lock = Lock::acquire(&paths, |pid| say(&format!("cleaning up after PID {pid}")))?;
    let mut hold = Hold::new(paths.clone(), lock, before);
    ensure_default(&paths)
        .map(|made| {
            if made {
                say(&format!("created {}", paths.config_file.display()))
            }
        })
        .map_err(|source| StartError::File { operation: "create", path: paths.config_file.clone(), source })?;
    let loaded = load_whole(&paths)?;
    let level = options.log_level.unwrap_or(loaded.config.daemon.log_level);
    let log_file = options.detached.then(|| paths.log_file());
    for directory in [paths.run_dir(), paths.state_dir.join("logs")] {
        private_dir(&directory).map_err(|source| StartError::File { operation: "create", path: directory, source })?;
    }
    let logging = Logging::install(level, log_file).map_err(|error| StartError::Logging(error.to_string()))?;
    crate::panics::install();
    hold.begin().map_err(|source| StartError::File { operation: "write", path: paths.last_run(), source })?;
    let instance = super::instance::ensure(&paths)?;
    let cgroup = Arc::new(Cgroup::prepare(&paths.state_dir, &instance));
    hold.cgroup_is(cgroup.clone());
    // Beside the cgroup: the daemon before may have had none, or we may be inside of it.
    let cleared = leftovers::clear_marked(&instance);
    if !cleared.killed.is_empty() || !cleared.left.is_empty() {
        tracing::warn!(
            killed = cleared.killed.len(),
            left = cleared.left.len(),
            "leftovers of a daemon and its keeper that were both killed"
        );
    }
    let lock_file = hold.lock_file().map_err(StartError::Keeper)?;
    let keeper = crate::keeper::launch(&lock_file).map_err(StartError::Keeper)?;
    hold.keeper_is(keeper.pid);
    let check_due = hold.check_due();
    Ok((hold, Prologue { options, paths, lock_file, instance, cgroup, loaded, logging, keeper, check_due, began }))
}

/// A line for whoever watches the start; JSON logs go elsewhere.
pub(super) fn say(line: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "{line}")); // nobody may be there to read it
}
