//! The machine: room on the disk, the clock, and the port of HTTP. It reads, and opens the port for a
//! moment when no daemon should have it.

use super::{Check, Finding};
use nexus_core::doubt::Doubt;
use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;

const MIB: u64 = 1024 * 1024;
/// A log above this is told: a writer waits for a checkpoint at 256 MiB.
const LOG_MIB_MAX: u64 = 300;
/// `LISTEN` in `/proc/net/tcp` (proc_pid_net(5)).
const STATE_LISTEN: &str = "0A";

/// Room for what is written, and logs that were not moved into their files.
pub fn disk(directory: &Path, min_free_mb: u64) -> Vec<Finding> {
    // Before the first start there is no directory, and its parent says as much.
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(directory);
    let mut findings = vec![
        match rustix::fs::statvfs(existing) {
            Ok(space) => room(space.f_bavail.saturating_mul(space.f_frsize) / MIB, min_free_mb),
            Err(error) => Finding::warning(Check::Disk, format!("free space can't be read: {error}"), "look at it with `df`"),
        }
        .at(existing),
    ];
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
        if entry.file_name().to_string_lossy().ends_with(".db-wal") && bytes / MIB >= LOG_MIB_MAX {
            let fix = "stop the daemon and run `nexus doctor --repair`, which moves it into its file";
            findings.push(Finding::warning(Check::Disk, format!("a log of {} MiB", bytes / MIB), fix).at(&entry.path()));
        }
    }
    findings
}

fn room(free_mb: u64, min_free_mb: u64) -> Finding {
    let what = format!("{free_mb} MiB free, ledgers.min_free_mb is {min_free_mb}");
    if free_mb < min_free_mb {
        Finding::error(Check::Disk, format!("{what}: no adapter is read"), "make room on this disk, or lower ledgers.min_free_mb")
    } else if free_mb / 2 < min_free_mb {
        Finding::warning(Check::Disk, format!("{what}: it gets tight"), "make room on this disk")
    } else {
        Finding::ok(Check::Disk, what)
    }
}

/// What is doubted of the clock.
pub fn clock(doubt: Option<Doubt>) -> Finding {
    match doubt {
        None => Finding::ok(Check::Clock, "the clock is not before the newest event"),
        Some(doubt) => {
            let fix = "set the clock, best by NTP; if it is right now and a daemon runs, restart the daemon";
            Finding::warning(Check::Clock, format!("{doubt}; nothing expires meanwhile but slots of the timer"), fix)
        }
    }
}

/// The port that a start would take.
pub fn port(host: &str, port: u16) -> Finding {
    let address = format!("{host}:{port}");
    let finding = match TcpListener::bind((host, port)) {
        Ok(_) if port == 0 => Finding::ok(Check::Port, "any free port is taken"),
        Ok(_) => Finding::ok(Check::Port, "the port is free"),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let who = listener(port).map_or_else(|| "something else".to_owned(), |(pid, name)| format!("`{name}` (PID {pid})"));
            Finding::error(Check::Port, format!("{who} uses the port"), "stop that, or choose another with daemon.port or --port")
        }
        Err(error) => Finding::error(
            Check::Port,
            format!("it can't be listened on: {error}"),
            "correct daemon.host and daemon.port in the configuration",
        ),
    };
    finding.at_place(address)
}

/// Where a running daemon listens.
pub fn own_port(address: Option<&str>) -> Finding {
    match address {
        Some(address) => Finding::ok(Check::Port, "the running daemon listens here").at_place(address),
        None => Finding::warning(
            Check::Port,
            "the running daemon does not say where it listens",
            "`nexus daemon restart` starts the one of this command",
        ),
    }
}

/// Who listens on a port, as far as this user may know.
fn listener(port: u16) -> Option<(i32, String)> {
    let sockets: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| table.lines().skip(1).filter_map(|line| listening(line, port)).collect::<Vec<_>>())
        .collect();
    crate::keeper::tree::all_pids().into_iter().find_map(|pid| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let has = files
            .flatten()
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|link| sockets.contains(&link.to_string_lossy().into_owned()));
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        has.then(|| (pid, name.trim().to_owned()))
    })
}

/// The socket of a line of `/proc/net/tcp`, if it listens on this port: as its file descriptor's link shows it.
fn listening(line: &str, port: u16) -> Option<String> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (_, hex) = fields.get(1)?.rsplit_once(':')?;
    let is_it = u16::from_str_radix(hex, 16).ok()? == port && *fields.get(3)? == STATE_LISTEN;
    is_it.then(|| fields.get(9).map(|inode| format!("socket:[{inode}]"))).flatten()
}

/// How surely nothing outlives a daemon that is killed together with its keeper. The lower level is no
/// fault: most people's machines don't let them make cgroups.
pub fn kill_level(state_dir: &Path) -> Finding {
    let level = crate::keeper::cgroup::probe(state_dir);
    Finding::ok(Check::KillLevel, format!("{}: {} ({})", level.name(), level.meaning(), level.why()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Severity;
    use super::*;

    #[test]
    fn a_busy_port_names_who_has_it_and_a_free_one_is_given_back() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = held.local_addr().unwrap().port();
        let busy = port("127.0.0.1", number);
        assert_eq!(busy.severity, Severity::Error);
        assert!(busy.what.contains(&format!("(PID {})", std::process::id())), "{busy:?}");
        assert_eq!(port("127.0.0.1", 0).severity, Severity::Ok);
        assert_eq!(port("192.0.2.1", 7400).severity, Severity::Error, "an address of no machine");
    }

    #[test]
    fn room_is_judged_by_what_must_stay_free() {
        let cases = [(100, 256, Severity::Error), (400, 256, Severity::Warning), (512, 256, Severity::Ok), (0, 0, Severity::Ok)];
        for (free, min, severity) in cases {
            assert_eq!(room(free, min).severity, severity, "{free} of {min}");
        }
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("nexus.db-wal");
        fs::File::create(&log).unwrap().set_len(LOG_MIB_MAX * MIB).unwrap();
        let found = disk(directory.path(), 0);
        assert_eq!(found.iter().map(|finding| finding.severity).collect::<Vec<_>>(), [Severity::Ok, Severity::Warning], "{found:?}");
        assert_eq!(disk(&directory.path().join("not/yet"), 0)[0].place.as_deref(), directory.path().to_str());
    }

    #[test]
    fn a_doubt_says_that_nothing_expires() {
        let doubted = clock(Some(Doubt::Behind { by_ms: 5_000 }));
        assert!(doubted.severity == Severity::Warning && doubted.what.contains("nothing expires"), "{doubted:?}");
        assert_eq!(clock(None).severity, Severity::Ok);
    }

    #[test]
    fn only_who_listens_counts() {
        let line = |state: &str| {
            format!("   1: 0100007F:1CE8 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000 0 4711 1 0 100 0 0 10 0")
        };
        assert_eq!(listening(&line("0A"), 7400).as_deref(), Some("socket:[4711]"));
        assert_eq!((listening(&line("01"), 7400), listening(&line("0A"), 7401), listening("", 7400)), (None, None, None));
    }
}
