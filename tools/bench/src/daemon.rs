//! A daemon that is measured: its directories, its start to the moment it is ready, its end. It is
//! killed when it is dropped, so that a measurement that fails leaves nothing running.

use crate::client::Connection;
use crate::{Bench, clock, procfs};
use anyhow::{Context, Result, bail, ensure};
use rusqlite::OpenFlags;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a start and a stop may take.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How often a daemon that isn't ready yet is looked after.
const ALIVE_STEP: Duration = Duration::from_millis(50);
const STEP: Duration = Duration::from_millis(5);
/// A daemon has settled when it used no more CPU than this in such a time.
const QUIET: Duration = Duration::from_millis(500);
const QUIET_CPU_MS: f64 = 10.0;
const SETTLE_LIMIT: Duration = Duration::from_secs(600);
/// How much of the daemon's output an error shows.
const LAST_WORDS_BYTES: usize = 2000;

/// The directories of one daemon, gone with this value.
#[derive(Debug)]
pub(crate) struct Place {
    dir: TempDir,
    nexus: PathBuf,
}

impl Place {
    /// Fresh directories.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn new(bench: &Bench) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("nexus-bench-").tempdir_in(&bench.dir).context("failed to make a temporary directory")?;
        for name in ["home", "workspace"] {
            fs::create_dir(dir.path().join(name)).context("failed to make a directory")?;
        }
        Ok(Self { dir, nexus: bench.nexus.clone() })
    }

    /// A path for a file of the measurement.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the configuration: `changes` over what all measurements have in common, which is any
    /// free port and no heartbeat.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn configure(&self, changes: &Value) -> Result<()> {
        let mut config = json!({
            "daemon": { "port": 0 },
            "ledgers": { "min_free_mb": 1 },
            "plugins": { "enabled": ["logging", "analytics"] },
            "timer": { "heartbeat_interval_ms": 0 },
        });
        if let (Some(config), Some(changes)) = (config.as_object_mut(), changes.as_object()) {
            config.extend(changes.clone());
        }
        fs::write(self.config_file(), config.to_string()).context("failed to write the configuration")
    }

    fn config_file(&self) -> PathBuf {
        self.file("workspace/nex.yaml")
    }

    /// A command of the daemon's program, with no output.
    #[expect(clippy::disallowed_methods, reason = "the program is started as its user starts it")]
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.nexus);
        command
            .args(words)
            .env("HOME", self.file("home"))
            .env("NEXUS_STATE_DIR", self.file("state"))
            .env("NEXUS_CONFIG", self.config_file())
            .env("NO_COLOR", "1")
            .env_remove("NEXUS_CHILD_ID")
            .env_remove("NOTIFY_SOCKET")
            .current_dir(self.file("home"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Starts a daemon in the foreground, and returns once it has said that it is ready.
    ///
    /// # Errors
    /// When it ends or isn't ready in time, with its last words.
    pub(crate) fn start(&self) -> Result<Daemon<'_>> {
        let notify = self.file("notify");
        match fs::remove_file(&notify) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context("failed to remove the ready socket"),
            Ok(()) | Err(_) => {}
        }
        // As systemd is told: to the moment, and nobody has to ask over and over.
        let ready = UnixDatagram::bind(&notify).context("failed to bind the ready socket; is --dir a long path?")?;
        ready.set_read_timeout(Some(ALIVE_STEP)).context("failed to limit waiting")?;
        let log = OpenOptions::new().create(true).append(true).open(self.log()).context("failed to open the daemon's log")?;
        let errors: File = log.try_clone().context("failed to open the daemon's log")?;
        let mut command = self.command(&["daemon", "start"]);
        command.env("NOTIFY_SOCKET", &notify).stdout(log).stderr(errors);
        let began = Instant::now();
        let child = command.spawn().with_context(|| format!("failed to start `{}`", self.nexus.display()))?;
        let mut daemon = Daemon { place: self, child, ready_ms: 0.0 };
        daemon.wait_ready(&ready, began)?;
        Ok(daemon)
    }

    fn log(&self) -> PathBuf {
        self.file("daemon.out")
    }

    fn last_words(&self) -> String {
        let bytes = fs::read(self.log()).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LAST_WORDS_BYTES)..]).into_owned()
    }

    /// A ledger, to read beside the daemon.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn ledger(&self, name: &str) -> Result<rusqlite::Connection> {
        self.open(name, OpenFlags::SQLITE_OPEN_READ_ONLY)
    }

    /// A ledger in which the daemon can commit nothing until this connection's transaction is over. It can read.
    ///
    /// # Errors
    /// When there is none, or the daemon doesn't let it be locked.
    pub(crate) fn locked(&self, name: &str) -> Result<rusqlite::Connection> {
        let ledger = self.open(name, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        ledger.execute_batch("BEGIN IMMEDIATE").with_context(|| format!("failed to lock the ledger `{name}`"))?;
        Ok(ledger)
    }

    fn open(&self, name: &str, access: OpenFlags) -> Result<rusqlite::Connection> {
        let path = self.file(&format!("workspace/data/{name}.db"));
        let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let ledger = rusqlite::Connection::open_with_flags(&path, flags).with_context(|| format!("failed to open `{}`", path.display()))?;
        ledger.busy_timeout(START_LIMIT).context("failed to limit waiting")?;
        Ok(ledger)
    }

    fn socket(&self) -> PathBuf {
        self.file("state/nex.sock")
    }
}

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon<'p> {
    place: &'p Place,
    child: Child,
    /// From before its start until it was ready.
    pub(crate) ready_ms: f64,
}

impl Daemon<'_> {
    fn wait_ready(&mut self, ready: &UnixDatagram, began: Instant) -> Result<()> {
        let mut text = [0; 256];
        loop {
            match ready.recv(&mut text) {
                Ok(got) if text[..got].starts_with(b"READY=1") => {
                    self.ready_ms = clock::ms(began.elapsed());
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("failed to wait for the daemon"),
            }
            if let Some(status) = self.child.try_wait().context("failed to look after the daemon")? {
                bail!("the daemon ended with {status} before it was ready:\n{}", self.place.last_words());
            }
            ensure!(began.elapsed() < START_LIMIT, "the daemon was not ready in time:\n{}", self.place.last_words());
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The daemon and its keeper.
    ///
    /// # Errors
    /// When it has no keeper.
    pub(crate) fn processes(&self) -> Result<Vec<u32>> {
        let mut processes = procfs::keepers_of(self.pid())?;
        ensure!(!processes.is_empty(), "the daemon has no keeper:\n{}", self.place.last_words());
        processes.push(self.pid());
        Ok(processes)
    }

    /// Nanoseconds of CPU by the living threads of the daemon and its keeper.
    pub(crate) fn run_ns(&self) -> Result<u64> {
        self.processes()?.into_iter().map(procfs::run_ns).sum()
    }

    /// Milliseconds of CPU by the daemon and its keeper since their start.
    pub(crate) fn cpu_ms(&self) -> Result<f64> {
        self.processes()?.into_iter().map(procfs::cpu_ms).sum()
    }

    /// Resident memory of the daemon and its keeper.
    pub(crate) fn rss_kib(&self) -> Result<u64> {
        self.processes()?.into_iter().map(procfs::rss_kib).sum()
    }

    /// Waits until the daemon has nothing left to do; its CPU since its start, in milliseconds.
    pub(crate) fn settle(&self) -> Result<f64> {
        let mut before = self.cpu_ms()?;
        clock::wait_for("the daemon has nothing to do", SETTLE_LIMIT, Duration::ZERO, || {
            clock::pause(QUIET);
            let now = self.cpu_ms()?;
            let used = now - std::mem::replace(&mut before, now);
            Ok((used <= QUIET_CPU_MS).then_some(now))
        })
    }

    pub(crate) fn connect(&self) -> Result<Connection> {
        Connection::open(&self.place.socket())
    }

    /// Where the control socket is, for threads that connect by themselves.
    pub(crate) fn socket(&self) -> PathBuf {
        self.place.socket()
    }

    pub(crate) fn status(&self) -> Result<Value> {
        self.connect()?.get("/control/status")
    }

    /// A graceful stop.
    ///
    /// # Errors
    /// When it takes too long or ends in an error.
    pub(crate) fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).context("failed to stop the daemon")?;
        let child = &mut self.child;
        let status = clock::wait_for("the daemon stops", STOP_LIMIT, STEP, || child.try_wait().context("failed to wait for the daemon"))?;
        ensure!(status.success(), "the daemon ended with {status}:\n{}", self.place.last_words());
        Ok(())
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        // Does nothing to one that was waited for; its keeper and children follow it by themselves.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Whether a path can hold the sockets of a daemon (unix(7): 108 bytes with the terminating zero).
pub(crate) fn is_short_enough(dir: &Path) -> bool {
    const SOCKET_PATH_BYTES_MAX: usize = 107;
    let longest = dir.join("nexus-bench-XXXXXX/state/nex.sock");
    longest.as_os_str().len() <= SOCKET_PATH_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_directories_are_known_beforehand() {
        assert!(is_short_enough(Path::new("/var/tmp")));
        assert!(!is_short_enough(&Path::new("/").join("x".repeat(80))));
    }
}
