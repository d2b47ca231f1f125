//! What `/proc` tells of a process: CPU, memory, children. Reads only.
//!
//! Two sources of CPU time: `stat` counts threads that have ended too, in steps of 10 ms; `schedstat`
//! counts nanoseconds, of threads that live. Short times need the second, long ones the first.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;

/// Fields of `/proc/PID/stat` counted from the state letter (proc_pid_stat(5)).
const PARENT: usize = 1;
const USER_TICKS: usize = 11;
const SYSTEM_TICKS: usize = 12;
const CHILDREN_USER_TICKS: usize = 13;
const CHILDREN_SYSTEM_TICKS: usize = 14;

/// The fields behind the command name, which may hold blanks and parentheses itself.
fn fields(stat: &str) -> Vec<&str> {
    stat.rsplit_once(") ").map_or_else(Vec::new, |(_, rest)| rest.split_whitespace().collect())
}

fn number(fields: &[&str], index: usize) -> Option<u64> {
    fields.get(index)?.parse().ok()
}

fn ticks_ms(process: &str, first: usize, second: usize) -> Result<f64> {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("failed to read `{path}`"))?;
    let fields = fields(&stat);
    let sum = number(&fields, first).zip(number(&fields, second)).map(|(first, second)| first + second);
    let ticks = sum.with_context(|| format!("`{path}` has no CPU times"))?;
    Ok(ticks as f64 * 1e3 / rustix::param::clock_ticks_per_second() as f64)
}

/// Milliseconds of CPU that a process has used, threads that ended included; to 20 ms.
pub(crate) fn cpu_ms(pid: u32) -> Result<f64> {
    ticks_ms(&pid.to_string(), USER_TICKS, SYSTEM_TICKS)
}

/// Milliseconds of CPU of all children of this process that were waited for; to 20 ms.
pub(crate) fn children_cpu_ms() -> Result<f64> {
    ticks_ms("self", CHILDREN_USER_TICKS, CHILDREN_SYSTEM_TICKS)
}

/// Nanoseconds that the living threads of a process have run.
pub(crate) fn run_ns(pid: u32) -> Result<u64> {
    Ok(run_ns_by_name(pid)?.into_values().sum())
}

/// The same by the names of the threads; those that share one are added up.
pub(crate) fn run_ns_by_name(pid: u32) -> Result<BTreeMap<String, u64>> {
    let path = format!("/proc/{pid}/task");
    let mut sums = BTreeMap::new();
    for task in fs::read_dir(&path).with_context(|| format!("failed to read `{path}`"))? {
        // A thread that has ended meanwhile doesn't count.
        let Ok(task) = task.map(|task| task.path()) else { continue };
        let read = |file: &str| fs::read_to_string(task.join(file));
        let (Ok(name), Ok(text)) = (read("comm"), read("schedstat")) else { continue };
        let ns = text.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        *sums.entry(name.trim_end().to_owned()).or_insert(0) += ns;
    }
    Ok(sums)
}

/// Resident memory in KiB.
pub(crate) fn rss_kib(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("failed to read `{path}`"))?;
    resident_kib(&status).with_context(|| format!("`{path}` has no VmRSS"))
}

fn resident_kib(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// The keepers that `daemon` started: usually one.
pub(crate) fn keepers_of(daemon: u32) -> Result<Vec<u32>> {
    let mut keepers = Vec::new();
    for entry in fs::read_dir("/proc").context("failed to read `/proc`")? {
        let Some(pid) = entry.ok().and_then(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) else { continue };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if number(&fields(&stat), PARENT) != Some(daemon.into()) {
            continue;
        }
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if command.split(|byte| *byte == 0).any(|word| word == b"__keeper") {
            keepers.push(pid);
        }
    }
    Ok(keepers)
}

/// The load averages of one, five and fifteen minutes.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_command_name_may_hold_anything() {
        let stat = "7 (a) b (c) S 3 7 7 0 -1 4194304 1 2 3 4 120 30 40 50 20 0 1 0 99";
        let fields = fields(stat);
        assert_eq!(number(&fields, PARENT), Some(3));
        assert_eq!(number(&fields, USER_TICKS), Some(120));
        assert_eq!(number(&fields, CHILDREN_SYSTEM_TICKS), Some(50));
    }

    #[test]
    fn reads_this_process() {
        let me = std::process::id();
        assert!(rss_kib(me).unwrap() > 0);
        assert!(run_ns(me).unwrap() > 0);
        let name = fs::read_to_string("/proc/thread-self/comm").unwrap();
        assert!(run_ns_by_name(me).unwrap().contains_key(name.trim_end()));
        assert_eq!(resident_kib("Name:\tx\nVmRSS:\t    5120 kB\n"), Some(5120));
        assert!(keepers_of(me).unwrap().is_empty());
    }
}
