//! Starting a daemon in the background: this binary again, in a session of its own, with its output
//! in the log file and a pipe on which it says that it is ready. Success is told only after that.

use super::tail;
use crate::cli::failure::{Exit, Failure};
use crate::cli::out::Out;
use crate::daemon::{Paths, lock};
use anyhow::Context;
use nexus_core::config::LogLevel;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Deserialize;
use serde_json::json;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the daemon may take until it is ready: a migration of a large ledger takes its time.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// Longest message on the pipe, in bytes.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Log lines shown when the daemon died without a word.
const LAST_LINES: usize = 20;

/// What overrides the configuration.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flags {
    pub(crate) log_level: Option<LogLevel>,
    pub(crate) port: Option<u16>,
    pub(crate) whitelist: Vec<String>,
    pub(crate) projects_path: Option<String>,
}

/// A daemon that is ready.
#[derive(Debug)]
pub(crate) struct Started {
    pid: u32,
    summary: Option<String>,
    log: PathBuf,
}

impl Started {
    pub(crate) fn line(&self) -> String {
        format!("nexus daemon started (PID {}), logs: {}", self.pid, self.log.display())
    }

    pub(crate) fn tell(&self, out: Out) -> anyhow::Result<()> {
        if out.json {
            out.json(&json!({ "started": true, "pid": self.pid, "log_file": self.log }))?;
            return Ok(());
        }
        if let Some(summary) = &self.summary {
            out.line(summary.trim_end())?;
        }
        out.line(&self.line())?;
        Ok(())
    }
}

/// What the daemon says on the pipe, once.
#[derive(Debug, Deserialize)]
struct Message {
    #[serde(default)]
    pid: Option<u32>,
    #[serde(default)]
    summary: Option<String>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    exit_code: Option<u8>,
}

/// Starts a daemon and waits until it is ready.
///
/// # Errors
/// When one runs already, and when the new one failed or died: with its own words and exit code, or
/// the last lines of its log.
pub(crate) fn start(paths: &Paths, config: Option<&Path>, flags: Flags) -> anyhow::Result<Started> {
    if let Some(pid) = lock::holder(paths) {
        return Err(Failure::new(Exit::Failed, format!("NEX daemon already running (PID {pid})")).into());
    }
    let log_path = paths.log_file();
    let log = open_log(&log_path).with_context(|| format!("failed to open the log file `{}`", log_path.display()))?;
    let log_start = log.metadata()?.len();
    let (reader, pid) = spawn(config, flags, log).context("failed to start the daemon's process")?;
    match wait(reader, READY_LIMIT).context("failed to wait for the daemon")? {
        Heard::Message(Message { error: Some(error), exit_code, .. }) => {
            Err(Failure::new(Exit::Code(exit_code.unwrap_or(1)), error).into())
        }
        Heard::Message(message) => Ok(Started { pid: message.pid.unwrap_or(pid), summary: message.summary, log: log_path }),
        Heard::End => Err(died(&log_path, log_start).into()),
        Heard::Nothing => {
            let text = format!("the daemon (PID {pid}) is still starting after {} s; see {}", READY_LIMIT.as_secs(), log_path.display());
            Err(Failure::new(Exit::Failed, text).into())
        }
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    File::options().read(true).append(true).create(true).mode(0o600).open(path)
}

/// Runs this binary again. Returns the end of the pipe to listen on, and the PID.
fn spawn(config: Option<&Path>, flags: Flags, log: File) -> io::Result<(OwnedFd, u32)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    // The link and not its target: it works although the file was replaced by an upgrade.
    #[expect(clippy::disallowed_methods, reason = "the keeper belongs to a daemon, and there is none yet")]
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg0("nexus").args(["daemon", "start", "--detached-child"]);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    if let Some(level) = flags.log_level {
        command.args(["--log-level", level.as_str()]);
    }
    if let Some(port) = flags.port {
        command.args(["--port", &port.to_string()]);
    }
    for key in &flags.whitelist {
        command.args(["--whitelist", key]);
    }
    if let Some(path) = &flags.projects_path {
        command.args(["--projects-path", path]);
    }
    command.stdin(writer).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn()?;
    // With the command goes this process's copy of the writing end; else the pipe would never end.
    drop(command);
    Ok((reader, child.id()))
}

/// What came over the pipe.
#[derive(Debug)]
enum Heard {
    Message(Message),
    /// The daemon is gone, or gave up the pipe without a word.
    End,
    Nothing,
}

fn wait(reader: OwnedFd, limit: Duration) -> io::Result<Heard> {
    let mut pipe = File::from(reader);
    let deadline = Instant::now() + limit;
    let mut text = Vec::new();
    while text.len() <= MESSAGE_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(Heard::Nothing),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut block = [0; 4096];
        let count = pipe.read(&mut block)?;
        if count == 0 {
            return Ok(Heard::End);
        }
        text.extend_from_slice(&block[..count]);
        if let Ok(message) = serde_json::from_slice(&text) {
            return Ok(Heard::Message(message));
        }
    }
    Err(io::Error::other("the daemon said something that is not a message"))
}

fn died(log_path: &Path, log_start: u64) -> Failure {
    let mut text = "the daemon ended before it was ready".to_owned();
    let lines = File::open(log_path).and_then(|log| {
        let end = log.metadata()?.len();
        tail::last_lines(&log, log_start..end, LAST_LINES, |_| true)
    });
    match lines {
        Ok(lines) if !lines.is_empty() => {
            text.push_str(&format!("; its last words in {}:", log_path.display()));
            for line in lines {
                text.push('\n');
                text.push_str(&crate::cli::out::visible(&String::from_utf8_lossy(&line)));
            }
        }
        Ok(_) | Err(_) => text.push_str(&format!(", and wrote nothing to {}", log_path.display())),
    }
    Failure::new(Exit::Failed, text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    const SOON: Duration = Duration::from_secs(10);

    fn heard(text: &str) -> Heard {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        File::from(writer).write_all(text.as_bytes()).unwrap();
        wait(reader, SOON).unwrap()
    }

    #[test]
    fn ready_and_failed_are_told_apart() {
        let Heard::Message(ready) = heard("{\"ready\":true,\"pid\":7,\"summary\":\"s\"}\n") else { panic!("no message") };
        assert_eq!((ready.pid, ready.summary.as_deref(), ready.error), (Some(7), Some("s"), None));
        let Heard::Message(failed) = heard("{\"error\":\"port taken\",\"exit_code\":78}") else { panic!("no message") };
        assert_eq!((failed.error.as_deref(), failed.exit_code), (Some("port taken"), Some(78)));
    }

    #[test]
    fn a_death_is_noticed_also_in_the_middle_of_a_message() {
        assert!(matches!(heard(""), Heard::End));
        assert!(matches!(heard("{\"ready\":tr"), Heard::End));
    }

    #[test]
    fn silence_ends() {
        let (reader, _writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        assert!(matches!(wait(reader, Duration::from_millis(1)).unwrap(), Heard::Nothing));
    }

    #[test]
    fn a_dead_daemon_shows_only_its_own_words() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs/nex.log");
        let mut log = open_log(&path).unwrap();
        log.write_all(b"an earlier daemon\n").unwrap();
        let start = log.metadata().unwrap().len();
        assert!(died(&path, start).to_string().ends_with("nex.log"));
        log.write_all(b"no space\n").unwrap();
        let text = died(&path, start).to_string();
        assert!(text.ends_with("nex.log:\nno space"), "{text}");
    }
}
