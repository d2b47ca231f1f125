//! Stopping the daemon: one TERM through a pidfd, and patience. It never kills.

use crate::cli::failure::{Exit, Failure};
use crate::daemon::{Paths, lock};
use crate::keeper::leftovers;
use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// How long a stop may take: 30 s for what runs and 15 s to clean up (requirement, "`nexus daemon stop`").
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(45);

/// How a stop went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    NotRunning,
    Stopped { pid: u32 },
    StillRunning { pid: u32 },
}

/// Refuses `verb` to a process that the daemon started, directly or not: it would wait for a daemon that waits for it,
/// and then be killed with the daemon, with nobody left to start the next one. By descent, not by the mark in the
/// environment: a shell that an agent once started keeps the mark, and may have started this daemon itself.
///
/// # Errors
/// [`Failure`] with what to do instead.
pub(crate) fn refuse_inside(paths: &Paths, verb: &str) -> Result<(), Failure> {
    let Some(pid) = lock::holder(paths) else { return Ok(()) };
    let is_inside = i32::try_from(pid).is_ok_and(|pid| leftovers::ancestors().contains(&pid));
    if !is_inside {
        return Ok(());
    }
    let why = format!("`nexus daemon {verb}` is run by a child of the daemon (PID {pid}), which ends with it: nothing was done");
    let advice = format!(
        "Run it from outside: in a shell of your own, by your service manager, or with `systemd-run nexus daemon {verb}`. \
         `nexus daemon reload` may be run from here."
    );
    Err(Failure::new(Exit::Failed, format!("{why}\n{advice}")))
}

/// Asks the daemon to end and waits until it has, and until its lock is free for the next one.
pub(crate) fn stop(paths: &Paths) -> anyhow::Result<Ended> {
    let Some(pid) = lock::holder(paths) else { return Ok(Ended::NotRunning) };
    let Some(process) = open_process(pid).with_context(|| format!("failed to look at process {pid}"))? else {
        return Ok(Ended::NotRunning);
    };
    // Open before the end: the path may be gone or another daemon's afterwards.
    let held = File::open(paths.pid_file());
    // The PID might have become a stranger's between the question and the descriptor.
    if lock::holder(paths) != Some(pid) {
        return Ok(Ended::NotRunning);
    }
    match pidfd_send_signal(&process, Signal::TERM) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(error).with_context(|| format!("failed to signal the daemon (PID {pid})")),
    }
    let deadline = Instant::now() + STOP_LIMIT;
    if !ends_by(&process, deadline).with_context(|| format!("failed to wait for the daemon (PID {pid})"))? {
        return Ok(Ended::StillRunning { pid });
    }
    // The keeper holds the lock until the last child is gone.
    let freed = match held {
        Ok(file) => frees_by(file, deadline)?,
        Err(_) => true,
    };
    Ok(if freed { Ended::Stopped { pid } } else { Ended::StillRunning { pid } })
}

fn open_process(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => Ok(Some(process)),
        Err(Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether the process ends before the deadline: a pidfd becomes readable then (pidfd_open(2)).
fn ends_by(process: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the lock on the file can be had before the deadline; it is given back at once.
fn frees_by(file: File, deadline: Instant) -> io::Result<bool> {
    let (sender, freed) = sync_channel(1);
    // A blocking lock has no deadline; the thread ends with this process at the latest.
    std::thread::Builder::new().name("lock".to_owned()).spawn(move || {
        let result = file.lock().and_then(|()| file.unlock());
        drop(sender.send(result));
    })?;
    let left = deadline.saturating_duration_since(Instant::now());
    freed.recv_timeout(left).map_or(Ok(false), |result| result.map(|()| true))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_lock_is_waited_for_but_not_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nex.pid");
        let holder = File::create(&path).unwrap();
        holder.lock().unwrap();
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(!frees_by(File::open(&path).unwrap(), soon).unwrap());
        drop(holder);
        assert!(frees_by(File::open(&path).unwrap(), Instant::now() + Duration::from_secs(10)).unwrap());
    }

    #[test]
    fn the_end_of_a_process_is_seen() {
        let me = open_process(std::process::id()).unwrap().unwrap();
        assert!(!ends_by(&me, Instant::now()).unwrap());
        assert!(open_process(u32::MAX).unwrap().is_none());
        #[expect(clippy::disallowed_methods, reason = "a test needs a process that ends")]
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = open_process(child.id()).unwrap().unwrap();
        assert!(ends_by(&process, Instant::now() + Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
    }
}
