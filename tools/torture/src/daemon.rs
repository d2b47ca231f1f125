//! The daemon of a world, driven from outside: started with or without a fail point, asked over its
//! control socket, killed. What is left of it is killed when this is dropped.

use crate::procfs::{self, Process};
use crate::world::World;
use crate::{clock, journal};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// How long a start, an answer and an end may take on a machine that does other things too.
const START_LIMIT: Duration = Duration::from_secs(60);
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
const END_LIMIT: Duration = Duration::from_secs(60);
/// What a stop gives to requests under way: less than an agent that hangs takes, so that some are interrupted.
const DRAIN_MS: &str = "400";
/// How much of the log an error shows.
const LAST_WORDS_BYTES: usize = 3000;

/// What a start is given besides the world.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extras {
    /// `NEXUS_FAIL_POINT`.
    pub(crate) fail_point: Option<String>,
    /// More variables, as for the power-loss shim.
    pub(crate) env: Vec<(String, String)>,
}

/// A daemon process.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    world: World,
    pub(crate) process: Process,
    /// Whether the harness killed it, and whether it told it to stop.
    was_shot: bool,
    was_told: bool,
    was_ready: bool,
}

/// A command of the daemon's program, for the directories of `world` and nothing else.
#[expect(clippy::disallowed_methods, reason = "the daemon is started, and asked, as its user does it")]
pub(crate) fn command(world: &World, nexus: &Path) -> Command {
    let mut command = Command::new(nexus);
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", world.file("home"))
        .env("NEXUS_STATE_DIR", world.file("state"))
        .env("NEXUS_CONFIG", world.config_file())
        .current_dir(world.file("home"))
        .stdin(Stdio::null());
    command
}

impl Daemon {
    /// Starts `nexus daemon start` in the foreground. It isn't ready yet.
    ///
    /// # Errors
    /// When the program can't be started.
    pub(crate) fn spawn(world: &World, nexus: &Path, extras: &Extras) -> Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(world.file("log")).context("failed to open the daemon's log")?;
        let mut command = command(world, nexus);
        command
            .args(["daemon", "start"])
            .env("NEXUS_FAIL_LOG", world.file("fired"))
            .env("NEXUS_DRAIN_MS", DRAIN_MS)
            .env("NEXUS_CLOCK_OFFSET_FILE", world.file("clock-offset"))
            .envs(extras.env.iter().cloned())
            .stdout(log.try_clone().context("failed to share the log")?)
            .stderr(log);
        if let Some(point) = &extras.fail_point {
            command.env("NEXUS_FAIL_POINT", point);
        }
        let mut child = command.spawn().with_context(|| format!("failed to start `{}`", nexus.display()))?;
        let pid = child.id().cast_signed();
        let seen = clock::until(ANSWER_LIMIT, || {
            Ok(Process::of(pid).map(Some).or_else(|| matches!(child.try_wait(), Ok(Some(_))).then_some(None)))
        })?;
        let gone = Process { pid, parent: 0, start_ticks: 0, command: String::new() };
        Ok(Self {
            child,
            world: world.clone(),
            process: seen.flatten().unwrap_or(gone),
            was_shot: false,
            was_told: false,
            was_ready: false,
        })
    }

    /// Whether it has said so.
    pub(crate) fn was_ready(&self) -> bool {
        self.was_ready
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Whether this process lives.
    pub(crate) fn is_running(&self) -> bool {
        self.process.is_alive()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// Of the kernel.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("failed to look after the daemon")
    }

    /// Waits until it says that it is ready; false when it ended instead.
    ///
    /// # Errors
    /// When it does neither.
    pub(crate) fn ready(&mut self) -> Result<bool> {
        let ready = clock::until(START_LIMIT, || {
            if self.ended()?.is_some() {
                return Ok(Some(false));
            }
            Ok(self.ask("GET", "/readyz", "").is_ok_and(|(status, _)| status == 200).then_some(true))
        })?;
        match ready {
            Some(ready) => {
                self.was_ready = ready;
                Ok(ready)
            }
            None => {
                let asked =
                    self.ask("GET", "/readyz", "").map_or_else(|error| format!("{error:#}"), |(status, body)| format!("{status} {body}"));
                let threads = procfs::threads(self.pid());
                let words = last_words(&self.world);
                bail!(
                    "the daemon is not ready after {} s: {asked}; its threads:\n{threads}\nits last words:\n{words}",
                    START_LIMIT.as_secs()
                )
            }
        }
    }

    /// As [`ask`], of this one.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        ask(&self.world, method, path, body)
    }

    /// `GET /control/status`.
    ///
    /// # Errors
    /// When there is no good answer.
    pub(crate) fn status(&self) -> Result<Value> {
        let (status, body) = self.ask("GET", "/control/status", "")?;
        if status != 200 {
            bail!("status was answered with {status}: {body}");
        }
        serde_json::from_str(&body).context("the status is no JSON")
    }

    /// Whether its children are in a cgroup that it isn't in; `None` while it has no keeper. Looks, and doesn't ask:
    /// under a fault it may not answer.
    pub(crate) fn has_cgroup(&self) -> Option<bool> {
        let of = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok();
        Some(of(self.keeper()?.pid)? != of(self.pid())?)
    }

    /// Its keeper, if it has one now.
    pub(crate) fn keeper(&self) -> Option<Process> {
        procfs::children_of(self.pid()).into_iter().find(|child| child.command.contains("__keeper"))
    }

    /// SIGKILL; returns once it is gone.
    ///
    /// # Errors
    /// When it doesn't go.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.was_shot = true;
        procfs::signal(self.pid(), Signal::KILL);
        self.wait_end().map(drop)
    }

    /// SIGTERM.
    pub(crate) fn tell_to_stop(&mut self) {
        self.was_told = true;
        procfs::signal(self.pid(), Signal::TERM);
    }

    pub(crate) fn was_told_to_stop(&self) -> bool {
        self.was_told
    }

    /// SIGTERM; how it ended.
    ///
    /// # Errors
    /// When it doesn't end in time.
    pub(crate) fn stop(&mut self) -> Result<ExitStatus> {
        self.tell_to_stop();
        self.wait_end()
    }

    /// Whether such an end is what the harness did to it.
    pub(crate) fn was_made_to_end(&self, status: ExitStatus) -> bool {
        (self.was_shot && was_killed(status)) || (self.was_told && status.success())
    }

    /// # Errors
    /// When it doesn't end in time.
    pub(crate) fn wait_end(&mut self) -> Result<ExitStatus> {
        let ended = clock::until(END_LIMIT, || self.ended())?;
        match ended {
            Some(status) => Ok(status),
            None => bail!("the daemon did not end within {} s; its last words:\n{}", END_LIMIT.as_secs(), last_words(&self.world)),
        }
    }
}

/// One request on the control socket of a world, whichever daemon has it now: status and body.
///
/// # Errors
/// When there is no whole answer.
pub(crate) fn ask(world: &World, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
    let mut socket = UnixStream::connect(world.file("state/nex.sock")).context("nobody listens")?;
    socket.set_read_timeout(Some(ANSWER_LIMIT)).context("failed to limit waiting")?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: nexus\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    socket.write_all(head.as_bytes()).context("failed to ask")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).context("failed to read the answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no whole answer")?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("an answer without a status")?;
    Ok((status, body.to_owned()))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Whether an end was SIGKILL's.
pub(crate) fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::KILL.as_raw())
}

/// The end of a world's log.
pub(crate) fn last_words(world: &World) -> String {
    let text = std::fs::read_to_string(world.file("log")).unwrap_or_default();
    let from = text.len().saturating_sub(LAST_WORDS_BYTES);
    let from = (from..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    text[from..].to_owned()
}

/// Whether no daemon, no keeper and so no child of theirs holds the world's lock.
pub(crate) fn lock_is_free(world: &World) -> bool {
    match File::open(world.file("state/nex.pid")) {
        Ok(file) => file.try_lock_shared().is_ok(),
        Err(_) => true,
    }
}

/// Kills every process of a world. The harness itself isn't of it.
pub(crate) fn clear(world: &World) {
    for process in procfs::all_with(&world.root().to_string_lossy()) {
        process.signal(Signal::CONT);
        process.signal(Signal::KILL);
    }
}

/// Builds the fail-point daemon with the cargo that runs this program; the program's path.
///
/// # Errors
/// When it can't be built.
pub(crate) fn build(release: bool) -> Result<PathBuf> {
    let words = ["-p", "nexus", "--bin", "nexus-fail-points", "--features", "torture"];
    let messages = cargo_build(&words, release)?;
    let path = messages.iter().filter_map(|message| message["executable"].as_str()).next_back();
    path.map(PathBuf::from).context("cargo named no program")
}

/// Builds the recorder of what a process does to its files; the library's path.
///
/// # Errors
/// When it can't be built.
pub(crate) fn build_shim(release: bool) -> Result<PathBuf> {
    let messages = cargo_build(&["-p", "nexus-powerloss"], release)?;
    let mut files = messages.iter().filter_map(|message| message["filenames"].as_array()).flatten().filter_map(Value::as_str);
    let path = files.rfind(|path| path.ends_with("libnexus_powerloss.so"));
    path.map(PathBuf::from).context("cargo named no library to preload")
}

/// What cargo says of a build, message by message.
#[expect(clippy::disallowed_methods, reason = "cargo is a program of the developer's")]
fn cargo_build(words: &[&str], release: bool) -> Result<Vec<Value>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--locked", "--message-format", "json-render-diagnostics"]).args(words);
    if release {
        command.arg("--release");
    }
    let output = command.stderr(Stdio::inherit()).output().context("failed to run cargo")?;
    if !output.status.success() {
        bail!("`cargo build {}` failed: {}", words.join(" "), output.status);
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    Ok(messages.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Every fail point of the daemon's program.
///
/// # Errors
/// When it doesn't tell.
#[expect(clippy::disallowed_methods, reason = "the daemon's program is asked as a user asks it")]
pub(crate) fn fail_points(nexus: &Path) -> Result<Vec<String>> {
    let output = Command::new(nexus).arg("__fail-points").output().with_context(|| format!("failed to run `{}`", nexus.display()))?;
    let points: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    if !output.status.success() || points.is_empty() {
        bail!("`{}` is not the fail-point build (feature `torture`)", nexus.display());
    }
    Ok(points)
}

/// The fail points that fired in a world so far.
///
/// # Errors
/// Of the file system.
pub(crate) fn fired(world: &World) -> Result<Vec<String>> {
    // The daemon's lines, which have no mark.
    Ok(journal::text(&world.file("fired"))?.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect())
}
