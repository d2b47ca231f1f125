//! What `/proc` says of processes: whose child one is, what it was started with, whether it lives.
//! Reads only; a process that vanishes while it is looked at counts as gone.

use std::fs;
use std::path::{Path, PathBuf};

/// A process that was seen, told from a later one with the same PID by its start time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks since boot.
    start: String,
    /// Its command line, joined by blanks.
    pub argv: String,
}

impl Process {
    pub fn of(pid: i32) -> Option<Self> {
        let argv = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let argv = String::from_utf8_lossy(&argv).trim_end_matches('\0').replace('\0', " ");
        Some(Self { pid, start: field(pid, START)?, argv })
    }

    /// Still there, and not merely as a zombie.
    pub fn is_alive(&self) -> bool {
        field(self.pid, START).as_ref() == Some(&self.start) && !is_zombie(self.pid)
    }
}

/// Fields of `/proc/PID/stat` counted from the state letter (proc_pid_stat(5)).
const STATE: usize = 0;
const PARENT: usize = 1;
const START: usize = 19;

fn field(pid: i32, index: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(index).map(str::to_owned)
}

fn is_zombie(pid: i32) -> bool {
    matches!(field(pid, STATE).as_deref(), None | Some("Z" | "X"))
}

/// Whether a signal has stopped it.
pub fn is_stopped(pid: i32) -> bool {
    field(pid, STATE).as_deref() == Some("T")
}

pub fn parent_of(pid: i32) -> Option<i32> {
    field(pid, PARENT)?.parse().ok()
}

/// Whether `pid` is in the process table, be it as a zombie.
pub fn exists(pid: i32) -> bool {
    field(pid, STATE).is_some()
}

/// Every PID there is.
fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The direct children of `parent`, zombies included.
pub fn children_of(parent: i32) -> Vec<Process> {
    all().into_iter().filter(|pid| parent_of(*pid) == Some(parent)).filter_map(Process::of).collect()
}

/// Whether `ancestor` is `pid` itself or above it.
pub fn descends(pid: i32, ancestor: i32) -> bool {
    let mut next = Some(pid);
    while let Some(pid) = next.filter(|pid| *pid > 0) {
        if pid == ancestor {
            return true;
        }
        next = parent_of(pid);
    }
    false
}

/// The living processes that were started with all of these `NAME=value` beginnings in their
/// environment.
pub fn with_environment(wanted: &[&str]) -> Vec<Process> {
    let matches = |pid: &i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        wanted.iter().all(|start| environ.split(|byte| *byte == 0).any(|pair| pair.starts_with(start.as_bytes())))
    };
    all().into_iter().filter(matches).filter_map(Process::of).filter(Process::is_alive).collect()
}

/// The files that `pid` has open as stdin, stdout and stderr.
pub fn standard_files(pid: i32) -> Vec<String> {
    let links = (0..3).map(|fd| fs::read_link(Path::new("/proc").join(format!("{pid}/fd/{fd}"))));
    links.flatten().map(|path| path.to_string_lossy().into_owned()).collect()
}

/// The living processes that work below `dir` or have a file there open, this one aside.
pub fn using(dir: &Path) -> Vec<Process> {
    let is_below = |link: PathBuf| fs::read_link(link).is_ok_and(|target| target.starts_with(dir));
    let uses = |pid: &i32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().map(|entry| entry.path());
        files.chain([PathBuf::from(format!("/proc/{pid}/cwd"))]).any(is_below)
    };
    let me = i32::try_from(std::process::id()).expect("a PID fits");
    all().into_iter().filter(|pid| *pid != me && uses(pid)).filter_map(Process::of).filter(Process::is_alive).collect()
}

/// A figure of `/proc/PID/status` in KiB, such as `VmRSS` or `VmHWM`.
pub fn memory_kib(pid: i32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_else(|error| panic!("/proc/{pid}/status: {error}"));
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or_else(|| panic!("no {name} in {status}"))
}
