//! The end-to-end harness: a real daemon in directories of its own, and what tests ask of it.
//! Owns one test's processes and files; never uses the daemon's code. Everything is found under one
//! fresh directory and ports are the kernel's choice, so tests may run side by side.
#![allow(dead_code, unused_imports, unreachable_pub, clippy::unwrap_used)]

mod answers;
pub mod backup;
pub mod cgroup;
mod fake;
pub mod http;
pub mod loops;
pub mod model;
pub mod place;
pub mod procfs;
mod record;
pub mod terminal;

pub use fake::{NEXUS, config, fake, fake_command, only, only_with_restarts, zone_at_noon};
pub use http::{Answer, Ask, Body, Response, Sse, SseEvent};
pub use rustix::process::Signal;

use procfs::Process;
use rustix::process::{Pid, kill_process};
use serde_json::Value;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a condition may take to come true.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// How long one command of the CLI may take: `daemon stop` itself allows 45 s.
const CLI_DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Makes or replaces a file as an editor does, so that nobody reads half of it.
pub fn replace(path: &Path, text: &str) {
    let name = path.file_name().expect("it is the path of a file").to_string_lossy();
    let draft = path.with_file_name(format!(".{name}.draft"));
    fs::write(&draft, text).and_then(|()| fs::rename(&draft, path)).expect("the file can be replaced");
}

/// Waits until `probe` is true.
pub fn eventually(what: &str, mut probe: impl FnMut() -> bool) {
    find(what, || probe().then_some(()));
}

/// Waits until `probe` finds something.
pub fn find<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    find_within(DEADLINE, what, probe)
}

#[expect(clippy::disallowed_methods, reason = "the one place where tests wait for another process's doings")]
pub fn find_within<T>(patience: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(POLL);
    }
}

/// The lines of a file that may not be there yet.
pub fn lines(path: impl AsRef<Path>) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// The lines of a file that may not be there yet, as JSON. A last one that is still being written is waited for: left
/// out, it would be missing to a test that counts them once.
pub fn json_lines(path: impl AsRef<Path>) -> Vec<Value> {
    let path = path.as_ref();
    let whole = find(&format!("the last line of {} has its end", path.display()), || match fs::read(path) {
        Ok(bytes) => bytes.last().is_none_or(|last| *last == b'\n').then_some(bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => Some(Vec::new()),
        Err(error) => panic!("failed to read {}: {error}", path.display()),
    });
    let text = String::from_utf8(whole).expect("it is text");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"))).collect()
}

pub fn send_signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a PID is above 0"), signal).expect("the process can be signalled");
}

#[expect(clippy::disallowed_methods, reason = "a test starts the daemon as its user does")]
pub fn program(name: &str) -> Command {
    Command::new(name)
}

/// What a command of the CLI did.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// Where the two were written to.
    pub files: [PathBuf; 2],
}

/// Where a daemon's files lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Where `NEXUS_CONFIG` and `NEXUS_STATE_DIR` say.
    Named,
    /// In the home directory, as for a user who says nothing.
    Home,
}

/// A daemon, or the place for one. Dropping it kills whatever runs there.
#[derive(Debug)]
pub struct Daemon {
    dir: TempDir,
    layout: Layout,
    child: Option<Child>,
    /// Numbers the output files.
    runs: AtomicU32,
    /// Put before the daemon's command line.
    prefix: Vec<String>,
}

impl Daemon {
    /// Fresh directories and nothing in them.
    pub fn new() -> Self {
        Self::with(Layout::Named, &["home", "workspace", "out"])
    }

    /// An empty home directory, and nobody who says where anything is.
    pub fn at_home() -> Self {
        Self::with(Layout::Home, &["home", "out"])
    }

    fn with(layout: Layout, directories: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        for name in directories {
            fs::create_dir(dir.path().join(name)).expect("a directory can be made");
        }
        Self { dir, layout, child: None, runs: AtomicU32::new(0), prefix: Vec::new() }
    }

    /// A running daemon that is ready.
    pub fn start(config: &Value) -> Self {
        let mut daemon = Self::new();
        daemon.configure(config);
        daemon.launch();
        daemon
    }

    pub fn set_prefix(&mut self, words: &[&str]) {
        self.prefix = words.iter().map(|word| (*word).to_owned()).collect();
    }

    pub fn configure(&self, config: &Value) {
        self.configure_text(&serde_json::to_string_pretty(config).expect("JSON can be written"));
    }

    pub fn configure_text(&self, text: &str) {
        replace(&self.config_file(), text);
    }

    pub fn config_file(&self) -> PathBuf {
        self.workspace().join("nex.yaml")
    }

    /// The directory above all others of this place.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn workspace(&self) -> PathBuf {
        match self.layout {
            Layout::Named => self.dir.path().join("workspace"),
            Layout::Home => self.home().join("nexus"),
        }
    }

    fn state_dir(&self) -> PathBuf {
        match self.layout {
            Layout::Named => self.dir.path().join("state"),
            Layout::Home => self.home().join(".nexus"),
        }
    }

    pub fn state(&self, name: &str) -> PathBuf {
        self.state_dir().join(name)
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// A path for a file of the test, as text for configurations.
    pub fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_string_lossy().into_owned()
    }

    /// Starts the daemon in the foreground and waits until it is ready.
    pub fn launch(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    /// Starts the daemon in the foreground.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "a daemon runs already");
        let [stdout, stderr] = self.new_output("daemon");
        let mut command = self.command(&self.prefix);
        command.args(["daemon", "start"]);
        command.stdout(File::create(stdout).unwrap()).stderr(File::create(stderr).unwrap());
        self.child = Some(command.spawn().expect("the daemon can be started"));
    }

    /// The daemon's program, below the words of `prefix`.
    pub fn command(&self, prefix: &[String]) -> Command {
        let mut command = match prefix.split_first() {
            Some((first, rest)) => {
                let mut command = program(first);
                command.args(rest).arg(NEXUS);
                command
            }
            None => program(NEXUS),
        };
        let named = [("NEXUS_STATE_DIR", self.state_dir()), ("NEXUS_CONFIG", self.config_file())];
        for (name, path) in named {
            match self.layout {
                Layout::Named => command.env(name, path),
                Layout::Home => command.env_remove(name),
            };
        }
        command.env("HOME", self.home()).env("NO_COLOR", "1").env_remove("NEXUS_CHILD_ID").env_remove("NOTIFY_SOCKET");
        command.current_dir(self.home()).stdin(Stdio::null());
        command
    }

    fn new_output(&self, name: &str) -> [PathBuf; 2] {
        let n = self.runs.fetch_add(1, Ordering::Relaxed) + 1;
        ["stdout", "stderr"].map(|stream| self.dir.path().join(format!("out/{n}.{name}.{stream}")))
    }

    pub fn wait_ready(&mut self) {
        find("the daemon is ready", || {
            if let Some(status) = self.try_wait() {
                panic!("the daemon ended with {status}: {}{}", self.stdout(), self.stderr());
            }
            self.try_get("/readyz").is_ok_and(|ready| ready.status == 200).then_some(())
        });
    }

    /// All that the daemon wrote, over all its starts.
    pub fn stdout(&self) -> String {
        self.daemon_output("stdout")
    }

    /// The first line of the daemon's log with this message.
    pub fn logged(&self, msg: &str) -> Value {
        find(&format!("`{msg}` is logged"), || {
            let text = self.stdout();
            let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.find(|line| line["msg"] == msg)
        })
    }

    pub fn stderr(&self) -> String {
        self.daemon_output("stderr")
    }

    fn daemon_output(&self, stream: &str) -> String {
        let paths = (1..=self.runs.load(Ordering::Relaxed)).map(|n| self.dir.path().join(format!("out/{n}.daemon.{stream}")));
        paths.filter_map(|path| fs::read(path).ok()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect()
    }

    /// The PID of the process that was started in the foreground.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().expect("a daemon was started").id()).unwrap()
    }

    /// What the PID file says.
    pub fn pid_file(&self) -> Option<i32> {
        fs::read_to_string(self.state("nex.pid")).ok()?.trim().parse().ok()
    }

    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().expect("the daemon can be waited for")
    }

    pub fn is_running(&mut self) -> bool {
        self.child.is_some() && self.try_wait().is_none()
    }

    pub fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// Waits for the daemon's end.
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_within(DEADLINE)
    }

    pub fn wait_within(&mut self, patience: Duration) -> ExitStatus {
        let status = find_within(patience, "the daemon ends", || self.try_wait());
        self.child = None;
        status
    }

    /// Graceful stop; the daemon must end well.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.stderr());
    }

    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("a daemon was started");
        child.kill().expect("the daemon can be killed");
        child.wait().expect("the daemon can be waited for");
    }

    /// A command of the CLI, from start to end. Its output goes to files, so that a process that
    /// keeps them open can't hold the test.
    pub fn nexus(&self, args: &[&str]) -> Ran {
        self.run(self.command(&[]), args)
    }

    /// The same, below the words of `prefix`.
    pub fn nexus_under(&self, prefix: &[String], args: &[&str]) -> Ran {
        self.run(self.command(prefix), args)
    }

    /// The same, with this text as its stdin.
    pub fn nexus_told(&self, text: &str, args: &[&str]) -> Ran {
        let path = self.dir.path().join("out/told");
        fs::write(&path, text).unwrap();
        let mut command = self.command(&[]);
        command.stdin(File::open(path).unwrap());
        self.run(command, args)
    }

    fn run(&self, mut command: Command, args: &[&str]) -> Ran {
        let files = self.new_output("cli");
        command.args(args);
        let [stdout, stderr] = &files;
        command.stdout(File::create(stdout).unwrap()).stderr(File::create(stderr).unwrap());
        let mut child = command.spawn().expect("the CLI can be started");
        let deadline = Instant::now() + CLI_DEADLINE;
        let status = find_within(CLI_DEADLINE + DEADLINE, "the command ends", || {
            if Instant::now() > deadline {
                child.kill().expect("the command can be killed");
            }
            child.try_wait().expect("the command can be waited for")
        });
        let text = |path: &PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        Ran { code: status.code(), stdout: text(stdout), stderr: text(stderr), files }
    }

    /// A command that must succeed; its stdout.
    pub fn nexus_ok(&self, args: &[&str]) -> String {
        let ran = self.nexus(args);
        assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
        ran.stdout
    }

    /// Every living process that any daemon of this place started as its child.
    pub fn children(&self) -> Vec<Process> {
        let home = format!("HOME={}", self.home().display());
        procfs::with_environment(&["NEXUS_CHILD_ID=", home.as_str()])
    }

    /// Those of them that read a channel.
    pub fn monitors(&self) -> Vec<Process> {
        self.children().into_iter().filter(|child| child.argv.contains(" monitor ")).collect()
    }

    /// The one monitor that runs, once it is the only one.
    pub fn only_monitor(&self) -> Process {
        find("one monitor runs", || <[Process; 1]>::try_from(self.monitors()).ok().map(|[one]| one))
    }

    /// Waits until nobody uses a file of this place: no daemon, no keeper, no child.
    pub fn nothing_runs(&self) {
        let root = self.dir.path().canonicalize().unwrap();
        find("nothing of this place runs", || procfs::using(&root).is_empty().then_some(()));
    }

    /// The keeper of the running daemon.
    pub fn keeper(&self) -> Process {
        let keepers = || procfs::children_of(self.pid()).into_iter().filter(|child| child.argv.contains("__keeper"));
        find("one keeper runs", || <[Process; 1]>::try_from(keepers().collect::<Vec<_>>()).ok().map(|[one]| one))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
        // What was detached, and what a failed test left; keepers follow their daemons by themselves.
        let home = format!("HOME={}", self.home().display());
        for left in procfs::with_environment(&[home.as_str()]) {
            if let Some(pid) = Pid::from_raw(left.pid) {
                kill_process(pid, Signal::KILL).unwrap_or_default();
            }
        }
        cgroup::sweep(&self.state("cgroup"));
    }
}
