//! Kills what a dead keeper or a dead daemon left running, and nothing else: the way that needs nothing
//! of the machine, beside `cgroup`, which needs a cgroup.
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

/// Waits for one child process of ours and takes its status. Returns at once when there is no such
/// child, be it that [`reap_all`] was here first.
pub fn reap(pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    while matches!(rustix::process::waitpid(Some(pid), WaitOptions::empty()), Err(Errno::INTR)) {}
}

/// Kills every descendant of this process, of which `keeper` was the only intended child. Blocks for
/// at most ten seconds; false when something is left.
pub fn clear_own_descendants(keeper: i32) -> bool {
    let deadline = Instant::now() + DEADLINE;
    let me = rustix::process::getpid().as_raw_nonzero().get();
    while reap_exited() {
        for pid in tree::orphans(|_| false) {
            if pid != keeper {
                // Others reap as well: by now the PID may be a stranger's.
                kill(pid, |pid| tree::parent_of(pid) == Some(me));
            }
        }
        if Instant::now() >= deadline {
            return false;
        }
        pause();
    }
    true
}

/// Takes the status of every zombie child: as a subreaper the daemon inherits its keeper's orphans,
/// as PID 1 strangers too. Nobody needs a status that this takes; due at every SIGCHLD.
pub fn reap_all() {
    reap_exited();
}

/// As [`reap_all`]; true when there are children left.
fn reap_exited() -> bool {
    loop {
        // Not `waitpid(None)`, which takes those of our own process group only.
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return true,
            Err(_) => return false, // ECHILD
        }
    }
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
    let spared = ancestors();
    let deadline = Instant::now() + DEADLINE;
    let mut cleared = Cleared::default();
    loop {
        let left = found(instance, &spared);
        if left.is_empty() || Instant::now() >= deadline {
            cleared.left = left;
            return cleared;
        }
        for pid in left {
            if kill(pid, |pid| is_marked(pid, instance)) && !cleared.killed.contains(&pid) {
                cleared.killed.push(pid);
            }
        }
        pause();
    }
}

/// Every process that [`clear_marked`] would kill.
pub fn marked(instance: &str) -> Vec<i32> {
    found(instance, &ancestors())
}

fn found(instance: &str, spared: &[i32]) -> Vec<i32> {
    tree::all_pids().into_iter().filter(|pid| !spared.contains(pid) && is_marked(*pid, instance)).collect()
}

fn is_marked(pid: i32, instance: &str) -> bool {
    tree::mark_of(pid).is_some_and(|mark| mark.strip_prefix(instance).is_some_and(|rest| rest.starts_with(':')))
}

/// This process, its parent, and so on up.
pub(crate) fn ancestors() -> Vec<i32> {
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
pub(super) fn pause() {
    std::thread::sleep(PAUSE);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    /// A process that waits. It has answered: while exec goes on, `/proc/PID/environ` is empty.
    #[expect(clippy::disallowed_methods, reason = "a process that no keeper knows is what is cleared up")]
    fn waiter(mark: &str) -> Child {
        let (stdin, stdout) = (Stdio::piped(), Stdio::piped());
        let mut child = Command::new("cat").env("NEXUS_CHILD_ID", mark).stdin(stdin).stdout(stdout).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        child
    }

    #[test]
    fn only_what_carries_the_mark_of_this_instance_is_killed() {
        let instance = format!("instance-{}", std::process::id());
        let mut ours = waiter(&format!("{instance}:a/b"));
        let mut foreign = waiter(&format!("{instance}0:a/b"));
        let cleared = clear_marked(&instance);
        assert_eq!(cleared, Cleared { killed: vec![i32::try_from(ours.id()).unwrap()], left: vec![] });
        assert_eq!(ours.wait().unwrap().signal(), Some(libc::SIGKILL));
        // Of two signals KILL would have been the cause.
        rustix::process::kill_process(Pid::from_child(&foreign), Signal::TERM).unwrap();
        assert_eq!(foreign.wait().unwrap().signal(), Some(libc::SIGTERM));
    }

    #[test]
    fn a_status_that_was_taken_already_is_not_waited_for() {
        let mut child = waiter("nobody:x");
        let pid = i32::try_from(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        reap(pid);
        assert_ne!(tree::parent_of(pid), Some(rustix::process::getpid().as_raw_nonzero().get()));
    }
}
