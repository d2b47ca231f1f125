//! Processes, as `/proc` tells of them.

use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashSet;
use std::fs;

/// One process at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    /// Clock ticks since boot at its start: with the PID it is unique.
    pub(crate) start_ticks: u64,
    /// Its words, joined by blanks.
    pub(crate) command: String,
}

impl Process {
    /// `None` when there is no such process, or only its zombie.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        if matches!(*fields.first()?, "Z" | "X") {
            return None;
        }
        let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&words).replace('\0', " ").trim_end().to_owned();
        Some(Self { pid, parent: fields.get(1)?.parse().ok()?, start_ticks: fields.get(19)?.parse().ok()?, command })
    }

    /// Whether this very process lives.
    pub(crate) fn is_alive(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now.start_ticks == self.start_ticks)
    }

    /// Signals it; one that is gone is not missed.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.is_alive() {
            self::signal(self.pid, signal);
        }
    }
}

/// Signals a process; one that is gone is not missed.
pub(crate) fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        kill_process(pid, signal).unwrap_or_default();
    }
}

/// Signals this very process.
pub(crate) fn signal_self(signal: Signal) {
    self::signal(std::process::id().cast_signed(), signal);
}

/// Every living process of which one word or variable names `text`.
pub(crate) fn all_with(text: &str) -> Vec<Process> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|&pid| pid != std::process::id().cast_signed() && is_about(pid, text)).filter_map(Process::of).collect()
}

fn is_about(pid: i32, text: &str) -> bool {
    let has = |file: &str| fs::read(format!("/proc/{pid}/{file}")).is_ok_and(|bytes| find(&bytes, text.as_bytes()));
    has("cmdline") || has("environ")
}

fn find(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

/// Living direct children of `pid`.
pub(crate) fn children_of(pid: i32) -> Vec<Process> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(Process::of).filter(|process| process.parent == pid).collect()
}

/// Open descriptors of a process.
pub(crate) fn descriptors(pid: i32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// The lowest number that is no open descriptor of a process.
pub(crate) fn lowest_free_descriptor(pid: i32) -> Option<u64> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let open: HashSet<u64> = open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    (0..).find(|number| !open.contains(number))
}

/// What each thread of a process waits for, as far as the kernel tells.
pub(crate) fn threads(pid: i32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |task: &fs::DirEntry, file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default().trim().to_owned();
    let tell = |task: fs::DirEntry| {
        let state = of(&task, "status").lines().find_map(|line| line.strip_prefix("State:").map(str::to_owned)).unwrap_or_default();
        format!("{}: {}, in {}, system call {}", of(&task, "comm"), state.trim(), of(&task, "wchan"), of(&task, "syscall"))
    };
    tasks.map(tell).collect::<Vec<_>>().join("\n")
}

/// Resident KiB of a process.
pub(crate) fn rss_kib(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().trim_end_matches(" kB").trim().parse().ok()
}
