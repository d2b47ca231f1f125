//! Finds the descendants that a child left behind.
//!
//! The keeper is a subreaper: when a process of a child's tree dies, its orphans become the keeper's
//! own children. So killing direct children, round after round, reaches everything, and a direct
//! child that wasn't reaped yet can't have given its PID to a stranger.

use rustix::process::getpid;
use std::fs;

/// PIDs of this process's direct children, zombies included, but for those that are `known`.
pub(crate) fn orphans(known: impl Fn(i32) -> bool) -> Vec<i32> {
    match listed_children() {
        Some(listed) => listed.into_iter().filter(|&pid| !known(pid)).collect(),
        None => {
            let me = getpid().as_raw_nonzero().get();
            // Known children are not read at all: with a thousand of them that is most of the cost.
            all_pids().into_iter().filter(|&pid| !known(pid) && parent_of(pid) == Some(me)).collect()
        }
    }
}

/// The kernel's own lists, one per thread, since a child belongs to the thread that forked it. `None`
/// where it keeps none (CONFIG_PROC_CHILDREN). A child that changes threads meanwhile may be missed.
fn listed_children() -> Option<Vec<i32>> {
    let mut found = None;
    for thread in fs::read_dir("/proc/self/task").ok()?.flatten() {
        if let Ok(list) = fs::read_to_string(thread.path().join("children")) {
            let pids = list.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok());
            found.get_or_insert_with(Vec::new).extend(pids);
        }
    }
    found
}

/// Every PID in `/proc`.
pub(crate) fn all_pids() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The parent of `pid` by `/proc/PID/stat` (proc_pid_stat(5)), `None` when it is gone.
pub(crate) fn parent_of(pid: i32) -> Option<i32> {
    stat_field(pid, 1)?.parse().ok()
}

/// Start time of `pid` in clock ticks since boot: with the boot id it makes a PID unique.
pub(crate) fn start_ticks(pid: i32) -> Option<u64> {
    stat_field(pid, 19)?.parse().ok()
}

/// User and system time of `pid` in clock ticks.
fn cpu_ticks(pid: i32) -> Option<u64> {
    Some(stat_field(pid, 11)?.parse::<u64>().ok()? + stat_field(pid, 12)?.parse::<u64>().ok()?)
}

/// CPU seconds, resident bytes and open descriptors of a process, as far as they can be read.
pub(crate) fn usage(pid: u32) -> Option<(f64, i64, i64)> {
    let pid = i32::try_from(pid).ok()?;
    let cpu = cpu_ticks(pid)? as f64 / rustix::param::clock_ticks_per_second() as f64;
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: i64 = statm.split(' ').nth(1)?.parse().ok()?;
    let rss = pages.saturating_mul(i64::try_from(rustix::param::page_size()).ok()?);
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |list| i64::try_from(list.count()).unwrap_or(0));
    Some((cpu, rss, fds))
}

fn stat_field(pid: i32, index: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    field(&stat, index).map(str::to_owned)
}

/// Field number `index` counted from the state letter, which stands behind the command's `)`.
fn field(stat: &str, index: usize) -> Option<&str> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(index)
}

/// The value of `NEXUS_CHILD_ID` in the environment that `pid` was started with, if readable.
pub(crate) fn mark_of(pid: i32) -> Option<String> {
    let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
    environ
        .split(|&byte| byte == 0)
        .find_map(|pair| pair.strip_prefix(b"NEXUS_CHILD_ID="))
        .and_then(|value| String::from_utf8(value.to_vec()).ok())
}

/// The session that `pid` belongs to; `None` when the process is gone, or its session was begun
/// outside this PID namespace, for which the kernel says 0. (`rustix::getsid` takes no 0 from it.)
pub(crate) fn session_of(pid: i32) -> Option<i32> {
    session(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn session(stat: &str) -> Option<i32> {
    field(stat, 3)?.parse().ok().filter(|&sid| sid > 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_this_process() {
        let me = getpid().as_raw_nonzero().get();
        let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
        assert_eq!(parent_of(me).filter(|&pid| pid > 0), parent); // 0: outside this PID namespace
        assert!(start_ticks(me).is_some_and(|ticks| ticks > 0));
        assert!(all_pids().contains(&me));
    }

    #[test]
    fn a_session_from_outside_the_namespace_is_none() {
        assert_eq!(session("7 (a) b) S 1 7 42 0 -1 0"), Some(42));
        assert_eq!(session("7 (a) b) S 1 7 0 0 -1 0"), None);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a child of this very process is what is looked for")]
    fn children_of_every_thread_are_seen() {
        let seen = std::thread::spawn(|| {
            let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
            let pid = i32::try_from(child.id()).unwrap();
            let seen = [orphans(|_| false), orphans(|known| known == pid)].map(|pids| pids.contains(&pid));
            child.kill().unwrap();
            child.wait().unwrap();
            seen
        });
        assert_eq!(seen.join().unwrap(), [true, false]);
    }
}
