//! Cgroups as the tests see them: whether a daemon can have one here, who is in which, and the removal of
//! those whose daemons were killed. Looks for itself; never uses the daemon's code.

use super::POLL;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long killed processes may hold a cgroup. No reason to fail a test that is over.
const SWEEP_PATIENCE: Duration = Duration::from_secs(10);

/// The cgroup of a process in the cgroup2 hierarchy, by its PID.
pub fn of(pid: i32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)
}

/// This process's own.
pub fn own() -> Option<PathBuf> {
    of(i32::try_from(std::process::id()).expect("a PID fits"))
}

/// Where that cgroup would be in the file system; `None` where no mount shows it.
pub fn directory(path: &Path) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    mounts.lines().filter(|line| line.contains(" - cgroup2 ")).find_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        path.strip_prefix(words[3]).ok().map(|rest| Path::new(words[4]).join(rest))
    })
}

/// Whether a daemon that this process starts can have a cgroup: one can be made, entered and killed.
pub fn is_usable() -> bool {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let Some(parent) = own().and_then(|own| directory(&own)) else { return false };
    let name = format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let made = parent.join(name);
    if fs::create_dir(&made).is_err() {
        return false;
    }
    let files = ["cgroup.kill", "cgroup.procs"].map(|file| made.join(file));
    let is_usable = files.iter().all(|file| OpenOptions::new().write(true).open(file).is_ok());
    fs::remove_dir(&made).expect("an empty cgroup can be removed");
    is_usable
}

/// Kills and removes the cgroup that this file names, and those of the same name around it.
pub fn sweep(record: &Path) {
    let path = PathBuf::from(fs::read_to_string(record).unwrap_or_default().trim_end());
    let Some(name) = path.file_name().filter(|name| name.to_string_lossy().starts_with("nexus-")) else { return };
    let deadline = Instant::now() + SWEEP_PATIENCE;
    for path in path.ancestors().filter(|path| path.file_name() == Some(name)) {
        let Some(directory) = directory(path).filter(|directory| directory.join("cgroup.kill").exists()) else { continue };
        fs::write(directory.join("cgroup.kill"), "1").unwrap_or_default();
        while remove(&directory).is_err() && directory.exists() && Instant::now() < deadline {
            pause();
        }
    }
}

/// Removes a cgroup and those below it.
fn remove(directory: &Path) -> io::Result<()> {
    below(directory).iter().try_for_each(|below| remove(below))?;
    fs::remove_dir(directory)
}

/// The cgroups in this one.
pub fn below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

#[expect(clippy::disallowed_methods, reason = "other processes are waited for, and a test that is over must not panic")]
fn pause() {
    std::thread::sleep(POLL);
}
