//! The daemon of a demonstration: this binary again, as a child that ends with this process. It is asked as any
//! command asks a daemon, and stopped as a user stops one.

use super::place::Place;
use crate::cli::client::Client;
use crate::cli::failure::{Exit, Failure};
use crate::daemon::Paths;
use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tokio::time::sleep;

const POLL: Duration = Duration::from_millis(50);
/// How long it may take until it is ready.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// As `nexus daemon stop`.
const STOP_LIMIT: Duration = Duration::from_secs(45);

#[derive(Debug)]
pub(super) struct Daemon {
    child: Child,
    paths: Paths,
}

impl Daemon {
    /// Starts it, with its output in the place's log.
    ///
    /// # Errors
    /// When the process can't be started.
    pub(super) fn start(place: &Place) -> anyhow::Result<Self> {
        let path = place.log();
        let log = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let log = log.with_context(|| format!("failed to open `{}`", path.display()))?;
        let paths = place.paths();
        #[expect(clippy::disallowed_methods, reason = "the keeper belongs to a daemon, and this is one")]
        let mut command = std::process::Command::new("/proc/self/exe");
        command.arg0("nexus").args(["daemon", "start", "--until-parent-ends", &std::process::id().to_string(), "--config"]);
        command.arg(&paths.config_file).env("HOME", &place.root).env("NEXUS_STATE_DIR", &paths.state_dir).env_remove("NOTIFY_SOCKET");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Of its own group, so that a Ctrl+C comes to it through this process, in its turn.
        let child = command.process_group(0).spawn().context("failed to start the daemon's process")?;
        Ok(Self { child, paths })
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// When it ends, or takes too long.
    pub(super) async fn ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_LIMIT;
        while Client::new(&self.paths).follow("/readyz").await.is_err() {
            if let Some(status) = self.child.try_wait()? {
                return Err(Failure::new(Exit::Failed, format!("the daemon ended before it was ready ({status})")).into());
            }
            if Instant::now() > deadline {
                return Err(Failure::new(Exit::Failed, format!("the daemon is not ready after {} s", READY_LIMIT.as_secs())).into());
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Asks it to end and waits until it has; it is not killed.
    ///
    /// # Errors
    /// When it takes too long, or ends badly.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        let id = self.child.id();
        let deadline = Instant::now() + STOP_LIMIT;
        let mut is_asked = false;
        loop {
            if let Some(status) = self.child.try_wait()? {
                let is_clean = status.success();
                return if is_clean {
                    Ok(())
                } else {
                    Err(Failure::new(Exit::Failed, format!("the daemon ended badly ({status})")).into())
                };
            }
            if !is_asked {
                // Not waited for yet, so the PID can't be a stranger's.
                let pid = i32::try_from(id).ok().and_then(Pid::from_raw).context("the daemon has no PID")?;
                kill_process(pid, Signal::TERM).context("failed to stop the daemon")?;
                is_asked = true;
            }
            if Instant::now() > deadline {
                let text = format!("the daemon (PID {id}) still runs after {} s; it was not killed", STOP_LIMIT.as_secs());
                return Err(Failure::new(Exit::Failed, text).into());
            }
            sleep(POLL).await;
        }
    }
}
