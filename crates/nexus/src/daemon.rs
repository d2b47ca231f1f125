//! The daemon: start in eleven steps, run, shut down in twelve (requirement: Startup Sequence,
//! Graceful Shutdown). It constructs every part and hands each what it needs; no part knows it.

mod automations;
mod backup;
mod build;
pub mod config;
mod control;
mod engine;
mod error;
mod housekeeping;
pub mod instance;
mod listen;
pub mod lock;
pub mod paths;
mod progress;
mod projects;
mod prologue;
mod ready;
mod reload;
mod replay;
mod search;
mod send;
mod sessions;
mod shutdown;
mod signals;
mod soundness;
mod start;
mod status;
mod waits;

pub use error::StartError;
pub use paths::{Paths, PathsError};

use crate::keeper;
use crate::logging::Logging;
use nexus_core::config::{Loaded, LogLevel};
use rustix::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How long a start that failed waits for its own tasks.
const FAILED_START: Duration = Duration::from_secs(5);

/// How `nexus daemon start` was called.
#[derive(Debug, Default)]
pub struct StartOptions {
    pub config: Option<PathBuf>,
    /// Overrides of the command line; they survive a reload.
    pub log_level: Option<LogLevel>,
    pub port: Option<u16>,
    /// Keys beside those of `nostr.whitelist`.
    pub whitelist: Vec<String>,
    /// Instead of `projects.path`; absolute.
    pub projects_path: Option<String>,
    pub detached: bool,
    /// Where the caller of a detached start waits to hear how it went.
    pub ready_fd: Option<OwnedFd>,
}

/// What is there before the runtime: the first three steps and the keeper.
#[derive(Debug)]
struct Prologue {
    options: StartOptions,
    paths: Paths,
    lock_file: std::fs::File,
    instance: String,
    cgroup: Arc<keeper::Cgroup>,
    loaded: Loaded,
    logging: Logging,
    keeper: keeper::Link,
    /// Whether the ledgers' files are to be looked at; the end of the run writes down whether they still are.
    check_due: Arc<AtomicBool>,
    began: Instant,
}

/// Runs a daemon until it is told to stop.
///
/// # Errors
/// [`StartError`] when it can't start; nothing is left running then.
pub fn run(mut options: StartOptions) -> Result<(), StartError> {
    // Started anew through /proc to detach, its name would be `exe`. A wrong name is no reason to stop.
    rustix::thread::set_name(c"nexus").ok();
    crate::memory::bound_arenas();
    let ready = ready::Ready::new(options.ready_fd.take());
    let result = prologue::run(options).and_then(|(hold, prologue)| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(StartError::Runtime)?;
        let result = runtime.block_on(async {
            let running = start::start(prologue, &ready).await?;
            Ok(signals::serve(running).await)
        });
        match &result {
            Ok(signals::End::Clean) => hold.ended(),
            Ok(signals::End::AtOnce) => hold.abandoned(),
            Err(_) => {
                // Drops what was built, the keeper's socket among it; then the hold may wait for it.
                runtime.shutdown_timeout(FAILED_START);
                return result.map(drop);
            }
        }
        // Nothing that blocks is left after a shutdown; after a second INT nothing is waited for.
        runtime.shutdown_background();
        result.map(drop)
    });
    if let Err(error) = &result {
        ready.failed(error);
    }
    result
}
