//! Kills what a dead keeper or a dead daemon left running, and nothing else.
//!
//! Two cases: the keeper died under a living daemon (its orphans are the daemon's own children, the
//! daemon being a subreaper too), and both were killed at once (then only the mark in a process's
//! environment tells whose it is). A process is signalled through a pidfd after its mark was read
//! through the same PID, so that a reused PID can't be hit.

use super::tree;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// Waits for one child process of ours and takes its status.
pub fn reap(pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    while matches!(rustix::process::waitpid(Some(pid), WaitOptions::empty()), Err(Errno::INTR)) {}
}

/// Kills every descendant of this process, of which `keeper` was the only intended child. Blocks for
/// at most ten seconds; false when something is left.
pub fn clear_own_descendants(keeper: i32) -> bool {
    let deadline = Instant::now() + DEADLINE;
    loop {
        reap_all();
        let left = tree::orphans(|_| false);
        if left.is_empty() {
            return true;
        }
        for pid in left {
            if pid != keeper {
                kill(pid, |_| true);
            }
        }
        if Instant::now() >= deadline {
            return false;
        }
        pause();
    }
}

/// Takes the status of every zombie child: as PID 1 the daemon inherits strangers too.
pub fn reap_all() {
    while matches!(rustix::process::waitpid(None, WaitOptions::NOHANG), Ok(Some(_)) | Err(Errno::INTR)) {}
}

/// What [`clear_marked`] did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Cleared {
    pub killed: Vec<i32>,
    /// Marked processes that would not die.
    pub left: Vec<i32>,
}

/// Kills every process marked as a child of `instance`, but for this process and its ancestors (a
/// daemon may be started from a shell that an agent runs). Blocks for at most ten seconds.
pub fn clear_marked(instance: &str) -> Cleared {
    let prefix = format!("{instance}:");
    let spared = ancestors();
    let deadline = Instant::now() + DEADLINE;
    let mut cleared = Cleared::default();
    loop {
        let marked = |pid: i32| tree::mark_of(pid).is_some_and(|mark| mark.starts_with(&prefix));
        let left: Vec<i32> = tree::all_pids().into_iter().filter(|pid| !spared.contains(pid) && marked(*pid)).collect();
        if left.is_empty() || Instant::now() >= deadline {
            cleared.left = left;
            return cleared;
        }
        for pid in left {
            if kill(pid, marked) && !cleared.killed.contains(&pid) {
                cleared.killed.push(pid);
            }
        }
        pause();
    }
}

fn ancestors() -> Vec<i32> {
    let mut line = vec![rustix::process::getpid().as_raw_nonzero().get()];
    while let Some(parent) = line.last().and_then(|&pid| tree::parent_of(pid)).filter(|&pid| pid > 0) {
        line.push(parent);
    }
    line
}

/// Kills `pid` if `still_it` holds after a handle on it was taken.
fn kill(pid: i32, still_it: impl Fn(i32) -> bool) -> bool {
    let Some(raw) = Pid::from_raw(pid) else { return false };
    let Ok(handle) = pidfd_open(raw, PidfdFlags::empty()) else { return false };
    still_it(pid) && pidfd_send_signal(handle, Signal::KILL).is_ok()
}

#[expect(clippy::disallowed_methods, reason = "blocking code that polls /proc: there is nothing to wait on")]
fn pause() {
    std::thread::sleep(PAUSE);
}
