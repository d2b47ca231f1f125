//! A cgroup of its own for the keeper and all that it starts: one write to its `cgroup.kill` ends
//! everything in it, whatever sessions, parents and environments the processes gave themselves. Owns
//! making it, remembering where it is, killing and removing it. Each child has one of its own below it
//! (`child`), which is killed when the child has ended; what a dead daemon left is listed by `left`.
//!
//! Nothing depends on it. Where there is none to be had the kill level is the next lower one, and the
//! daemon starts all the same. Source: the kernel's Documentation/admin-guide/cgroup-v2.rst.

pub(super) mod child;
mod find;
mod inside;
mod left;

pub use left::{clear_left, left};

use super::leftovers::pause;
use find::{Hierarchy, Unusable};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long killed processes may take to be gone.
const DEADLINE: Duration = Duration::from_secs(10);
/// Cgroups below ours, those of children and what they made, that are removed with it.
const NESTED_CGROUPS_MAX: usize = 10_000;
/// Longest record that is read: a path.
const RECORD_BYTES_MAX: u64 = 4096;
const KILL: &str = "cgroup.kill";
const PROCS: &str = "cgroup.procs";

/// How surely nothing outlives its child, or a daemon that is killed at once with its keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KillLevel {
    /// All children are below the cgroup with this directory, each in one of its own; but for some that
    /// `shared` it, and why.
    Cgroup { directory: PathBuf, shared: Option<String> },
    /// There is no cgroup to be had, and why.
    Scan { why: String },
}

impl KillLevel {
    /// The word for it in JSON and texts.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cgroup { .. } => "cgroup",
            Self::Scan { .. } => "scan",
        }
    }

    /// What is killed, and how.
    pub fn meaning(&self) -> &'static str {
        match self {
            Self::Cgroup { shared: None, .. } => "everything, by cgroup.kill",
            Self::Cgroup { shared: Some(_), .. } => {
                "everything when the daemon ends, by cgroup.kill; \
                 an escaped process with a scrubbed environment can outlive its child until then"
            }
            Self::Scan { .. } => {
                "by descent and environment mark; an escaped process with a scrubbed environment can outlive \
                 its child until the daemon stops, and a double kill"
            }
        }
    }

    /// Why it is this level.
    pub fn why(&self) -> String {
        match self {
            Self::Cgroup { directory, shared: None } => format!("every child is in a cgroup of its own below `{}`", directory.display()),
            Self::Cgroup { directory, shared: Some(why) } => {
                format!("not every child could be put into a cgroup of its own below `{}`: {why}", directory.display())
            }
            Self::Scan { why } => why.clone(),
        }
    }
}

/// The kill level that a daemon with this state directory has, or would have if it were started by this
/// process. Needs no daemon and changes nothing: a cgroup that it makes to try is removed again.
pub fn probe(state_dir: &Path) -> KillLevel {
    let probed = Hierarchy::find().and_then(|hierarchy| {
        let in_use = recorded(&record_in(state_dir)).and_then(|path| hierarchy.seen(&path));
        if let Some(directory) = in_use.filter(|directory| check(directory).is_ok()) {
            return Ok(directory);
        }
        let made = make(&hierarchy, &name_of(&format!("probe-{}-{}", std::process::id(), ulid::Ulid::generate())))?;
        fs::remove_dir(&made.directory).map_err(Unusable::io("remove cgroup", &made.directory))?;
        Ok(made.directory.parent().unwrap_or(&made.directory).to_owned())
    });
    match probed {
        Ok(directory) => KillLevel::Cgroup { directory, shared: None },
        Err(error) => KillLevel::Scan { why: error.to_string() },
    }
}

/// A cgroup that exists.
#[derive(Debug)]
struct Made {
    /// In the hierarchy.
    path: PathBuf,
    /// In the file system.
    directory: PathBuf,
}

/// The cgroup of one daemon's keeper, or the reason why there is none.
#[derive(Debug)]
pub struct Cgroup {
    made: Option<Made>,
    record: PathBuf,
    level: watch::Sender<KillLevel>,
    /// It was killed and could not be made anew. A kernel of 2025 or later has every process that is cloned from
    /// a killed cgroup into another one die, as if it had been begun before the kill.
    is_spent: AtomicBool,
}

impl Cgroup {
    /// Kills what a former daemon of this `instance` left in its cgroup, makes the cgroup anew below
    /// our own, and writes into the state directory where it is. Blocks for at most ten seconds, unless
    /// former cgroups were nested. The caller holds the lock of the state directory.
    pub fn prepare(state_dir: &Path, instance: &str) -> Self {
        let (record, name) = (record_in(state_dir), name_of(instance));
        let prepared = Hierarchy::find().and_then(|hierarchy| {
            clear_former(&hierarchy, &record, &name);
            let made = make(&hierarchy, &name)?;
            // Before the keeper enters: the next daemon may be started in another cgroup.
            remember(&record, &made.path).inspect_err(|_| forget(&made.directory))?;
            Ok(made)
        });
        match prepared {
            Ok(made) => {
                let level = KillLevel::Cgroup { directory: made.directory.clone(), shared: None };
                Self { made: Some(made), record, level: watch::Sender::new(level), is_spent: AtomicBool::new(false) }
            }
            Err(error) => {
                tracing::info!(why = %error, "no cgroup for children; the kill level is `scan`");
                let level = watch::Sender::new(KillLevel::Scan { why: error.to_string() });
                Self { made: None, record, level, is_spent: AtomicBool::new(false) }
            }
        }
    }

    pub fn level(&self) -> KillLevel {
        self.level.borrow().clone()
    }

    /// The directory in which a child is to have its own cgroup, if one can have any.
    pub(super) fn home(&self) -> Option<String> {
        match &*self.level.borrow() {
            KillLevel::Cgroup { .. } if self.is_spent.load(Ordering::Relaxed) => None,
            KillLevel::Cgroup { directory, .. } => directory.to_str().map(str::to_owned),
            KillLevel::Scan { .. } => None,
        }
    }

    /// A child has no cgroup of its own. Told once for each keeper.
    pub(super) fn is_shared(&self, why: &io::Error) {
        let is_first = self.level.send_if_modified(|level| match level {
            KillLevel::Cgroup { shared, .. } if shared.is_none() => {
                *shared = Some(why.to_string());
                true
            }
            KillLevel::Cgroup { .. } | KillLevel::Scan { .. } => false,
        });
        if is_first {
            tracing::warn!(error = %why, "a child has no cgroup of its own: what escapes it with a scrubbed environment may outlive it");
        }
    }

    /// Puts the keeper in, which has no child yet: all that it starts is in it from its first moment.
    /// Blocks for as long as the kernel takes to move a process, some 10 ms.
    pub fn admit(&self, keeper: i32) {
        let Some(made) = &self.made else { return };
        let level = match admit(made, keeper) {
            Ok(()) => KillLevel::Cgroup { directory: made.directory.clone(), shared: None },
            Err(error) => {
                tracing::info!(why = %error, "the keeper is in no cgroup of its own; the kill level is `scan`");
                KillLevel::Scan { why: error.to_string() }
            }
        };
        self.level.send_replace(level);
    }

    /// Kills all that is in it after the keeper died under a living daemon, and makes it anew, so that another one
    /// can be admitted. Blocks for at most ten seconds; false when something is left.
    pub fn clear(&self) -> bool {
        let Some(made) = &self.made else { return true };
        // Somebody may have moved this process into it.
        let cleared = find::cgroup_of("self").and_then(|own| {
            if own.starts_with(&made.path) {
                return Err(Unusable::Inside(own));
            }
            kill(&made.directory).map_err(Unusable::io("kill cgroup", &made.directory))?;
            // With those of the dead keeper's children, which another one doesn't know.
            remove(&made.directory).and_then(|()| fs::create_dir(&made.directory)).map_err(Unusable::io("renew cgroup", &made.directory))
        });
        if let Err(error) = &cleared {
            tracing::warn!(%error, "the cgroup of the dead keeper could not be cleared; children have none of their own");
        }
        self.is_spent.store(cleared.is_err(), Ordering::Relaxed);
        cleared.is_ok()
    }

    /// Removes it with its record. The keeper is gone. What is populated all the same stays, and the
    /// next start kills it.
    pub fn remove(&self) {
        let Some(made) = &self.made else { return };
        let removed = match remove(&made.directory) {
            // A service manager clears up behind its services as well.
            Err(error) if made.directory.exists() => Err(error),
            Ok(()) | Err(_) => fs::remove_file(&self.record),
        };
        if let Err(error) = removed {
            tracing::info!(%error, cgroup = %made.directory.display(), "cgroup not removed; the next start does it");
        }
    }
}

impl Cgroup {
    /// As where no cgroup2 is mounted.
    pub(crate) fn none() -> Self {
        let level = KillLevel::Scan { why: "none was asked for".to_owned() };
        Self { made: None, record: PathBuf::new(), level: watch::Sender::new(level), is_spent: AtomicBool::new(false) }
    }
}

fn name_of(instance: &str) -> String {
    format!("nexus-{instance}")
}

fn record_in(state_dir: &Path) -> PathBuf {
    state_dir.join("cgroup")
}

/// The path in the hierarchy that was written down last.
fn recorded(record: &Path) -> Option<PathBuf> {
    if !fs::metadata(record).ok()?.is_file() {
        return None; // opening a FIFO would wait for a writer
    }
    let mut text = String::new();
    fs::File::open(record).ok()?.take(RECORD_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(PathBuf::from(text.trim_end_matches('\n'))).filter(|path| find::is_plain(path))
}

fn remember(record: &Path, path: &Path) -> Result<(), Unusable> {
    let text = format!("{}\n", path.display());
    crate::credential::write_private(record, text.as_bytes()).map_err(Unusable::io("write", record))
}

/// Removes a cgroup that nothing ever ran in.
fn forget(directory: &Path) {
    if let Err(error) = fs::remove_dir(directory) {
        tracing::debug!(%error, cgroup = %directory.display(), "cgroup not removed");
    }
}

/// Makes `name` in our own cgroup, through the first mount that lets us. One that is there already is
/// this instance's, from a start that got no further.
fn make(hierarchy: &Hierarchy, name: &str) -> Result<Made, Unusable> {
    let mut refused = Unusable::NotMounted(hierarchy.own.clone());
    for parent in hierarchy.directories(&hierarchy.own).into_iter().filter(|parent| find::is_cgroup2(parent)) {
        let directory = parent.join(name);
        let made = match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Unusable::io("create cgroup", &directory)(error)),
            Ok(()) | Err(_) => check(&directory).inspect_err(|_| forget(&directory)),
        };
        match made {
            Ok(()) => return Ok(Made { path: hierarchy.own.join(name), directory }),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// Whether processes can be put into it and killed. Opening `cgroup.kill` kills nobody.
fn check(directory: &Path) -> Result<(), Unusable> {
    if !directory.join(KILL).exists() {
        return Err(Unusable::NoKill(directory.to_owned()));
    }
    for file in [KILL, PROCS].map(|name| directory.join(name)) {
        fs::OpenOptions::new().write(true).open(&file).map_err(Unusable::io("open for writing", &file))?;
    }
    Ok(())
}

fn admit(made: &Made, pid: i32) -> Result<(), Unusable> {
    let procs = made.directory.join(PROCS);
    write(&procs, &pid.to_string()).map_err(Unusable::io("move the keeper by", &procs))?;
    // Several mounts may lie over each other: what counts is where the kernel says that it is now.
    let there = find::cgroup_of(&pid.to_string())?;
    if there == made.path { Ok(()) } else { Err(Unusable::Elsewhere(there)) }
}

/// Clears every cgroup that a former daemon with this state directory may have had, the outermost
/// first, but for those that we are in: who starts a daemon from an agent's shell is not to be killed.
fn clear_former(hierarchy: &Hierarchy, record: &Path, name: &str) {
    for path in former(recorded(record).as_deref(), &hierarchy.own, name) {
        let Some(directory) = hierarchy.seen(&path) else { continue };
        if hierarchy.own.starts_with(&path) {
            tracing::info!(
                cgroup = %directory.display(),
                "started from inside the cgroup of the daemon before: its leftovers there are found by their mark only"
            );
            continue;
        }
        match kill(&directory) {
            Ok(()) => tracing::debug!(cgroup = %directory.display(), "cleared the cgroup of the daemon before"),
            Err(error) => tracing::warn!(%error, cgroup = %directory.display(), "the cgroup of the daemon before could not be cleared"),
        }
        if let Err(error) = remove(&directory) {
            tracing::info!(%error, cgroup = %directory.display(), "the cgroup of the daemon before could not be removed");
        }
    }
}

/// The cgroups of this instance on the way to the recorded one, outermost first: a daemon that was
/// started from inside of one has its own below it. Then the one that we are about to make.
fn former(recorded: Option<&Path>, own: &Path, name: &str) -> Vec<PathBuf> {
    let is_ours = |path: &&Path| path.file_name() == Some(OsStr::new(name));
    let mut former: Vec<PathBuf> = recorded.into_iter().flat_map(Path::ancestors).filter(is_ours).map(Path::to_owned).collect();
    former.reverse();
    let next = own.join(name);
    if !former.contains(&next) {
        former.push(next);
    }
    former
}

/// Kills all that is in the cgroup and below it, and waits until nothing is left there.
fn kill(directory: &Path) -> io::Result<()> {
    let deadline = Instant::now() + DEADLINE;
    if is_populated(directory)? {
        write(&directory.join(KILL), "1")?;
    }
    while is_populated(directory)? {
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "processes in it do not die"));
        }
        pause();
    }
    Ok(())
}

/// Whether there are processes in it or below; zombies don't count.
fn is_populated(directory: &Path) -> io::Result<bool> {
    let events = fs::read_to_string(directory.join("cgroup.events"))?;
    Ok(!events.lines().any(|line| line == "populated 0"))
}

/// Not `fs::write`, which would make a file that isn't there.
fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// Removes an empty cgroup, and what children made below it.
fn remove(directory: &Path) -> io::Result<()> {
    // Found level by level, so that backwards each comes before the one that holds it.
    nested(directory)?.iter().rev().try_for_each(fs::remove_dir)
}

/// A cgroup and those below it, level by level.
fn nested(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = vec![directory.to_owned()];
    let mut looked_into = 0;
    while looked_into < all.len() && all.len() < NESTED_CGROUPS_MAX {
        let entries = fs::read_dir(&all[looked_into])?.flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
        all.extend(below.take(NESTED_CGROUPS_MAX - all.len()).collect::<Vec<_>>());
        looked_into += 1;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    fn names(recorded: Option<&str>, own: &str) -> Vec<String> {
        former(recorded.map(Path::new), Path::new(own), "nexus-A").iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn only_cgroups_of_this_instance_are_a_former_daemons() {
        assert_eq!(names(None, "/"), ["/nexus-A"]);
        assert_eq!(names(Some("/nexus-A"), "/"), ["/nexus-A"]);
        assert_eq!(names(Some("/nexus-B"), "/user"), ["/user/nexus-A"], "a copied record");
        assert_eq!(names(Some("/nexus-A/mine"), "/"), ["/nexus-A"], "what lies below is no reason to spare it");
        assert_eq!(names(Some("/nexus-AA/nexus-"), "/"), ["/nexus-A"]);
        assert_eq!(names(Some("/"), "/x"), ["/x/nexus-A"]);
    }

    #[test]
    fn nested_ones_come_outermost_first() {
        let nested = "/user/nexus-A/nexus-B/nexus-A";
        assert_eq!(names(Some(nested), "/user"), ["/user/nexus-A", nested]);
        assert_eq!(names(Some(nested), "/other"), ["/user/nexus-A", nested, "/other/nexus-A"]);
    }

    #[test]
    fn a_record_that_is_none_names_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let record = record_in(directory.path());
        assert_eq!(recorded(&record), None);
        let long = format!("/{}", "x".repeat(10 * 1024 * 1024));
        for text in ["", "\n", "nexus-A", "/../nexus-A", "/nexus-A/../../etc"] {
            fs::write(&record, text).unwrap();
            assert_eq!(recorded(&record), None, "{text:?}");
        }
        fs::write(&record, long).unwrap();
        assert!(recorded(&record).unwrap().as_os_str().len() <= 4096);
        fs::write(&record, [b'/', 0xff]).unwrap();
        assert_eq!(recorded(&record), None);
        remember(&record, Path::new("/user.slice/nexus-A")).unwrap();
        assert_eq!(recorded(&record).unwrap(), Path::new("/user.slice/nexus-A"));
        fs::remove_file(&record).unwrap();
        mknodat(CWD, record.as_path(), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert_eq!(recorded(&record), None, "nobody writes into it");
    }

    #[test]
    fn the_first_child_without_a_cgroup_is_told_of() {
        let directory = PathBuf::from("/c/nexus-A");
        let level = watch::Sender::new(KillLevel::Cgroup { directory: directory.clone(), shared: None });
        let cgroup = Cgroup { made: None, record: PathBuf::new(), level, is_spent: AtomicBool::new(false) };
        assert_eq!(cgroup.home().as_deref(), directory.to_str());
        let [first, second] = [libc::EAGAIN, libc::ENOSPC].map(io::Error::from_raw_os_error);
        cgroup.is_shared(&first);
        cgroup.is_shared(&second);
        assert_eq!(cgroup.level(), KillLevel::Cgroup { directory, shared: Some(first.to_string()) });
        assert_eq!(Cgroup::none().home(), None);
    }

    #[test]
    fn what_somebody_else_removed_leaves_no_record() {
        let directory = tempfile::tempdir().unwrap();
        let record = record_in(directory.path());
        remember(&record, Path::new("/nexus-A")).unwrap();
        let made = Made { path: PathBuf::from("/nexus-A"), directory: directory.path().join("gone") };
        let level = watch::Sender::new(KillLevel::Scan { why: "a test".to_owned() });
        Cgroup { made: Some(made), record: record.clone(), level, is_spent: AtomicBool::new(false) }.remove();
        assert!(!record.exists());
    }

    #[test]
    fn what_lies_below_is_removed_first() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("top");
        fs::create_dir_all(top.join("a/b/c")).unwrap();
        fs::create_dir_all(top.join("d")).unwrap();
        remove(&top).unwrap();
        assert!(!top.exists() && directory.path().exists());
        fs::create_dir_all(top.join("a")).unwrap();
        fs::write(top.join("a/file"), "as a populated one, it can't be removed").unwrap();
        assert!(remove(&top).is_err());
        assert!(top.join("a").exists());
    }

    #[test]
    fn a_directory_that_is_no_cgroup_is_neither_used_nor_written_to() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(check(directory.path()), Err(Unusable::NoKill(_))));
        assert!(write(&directory.path().join(KILL), "1").is_err());
        assert!(kill(directory.path()).is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_probe_names_a_level_and_leaves_no_cgroup() {
        let directory = tempfile::tempdir().unwrap();
        match probe(directory.path()) {
            KillLevel::Cgroup { directory: parent, shared } => {
                assert_eq!(shared, None);
                let ours = format!("nexus-probe-{}-", std::process::id());
                let mut names = fs::read_dir(&parent).unwrap().flatten().map(|entry| entry.file_name());
                assert!(!names.any(|name| name.to_string_lossy().starts_with(&ours)), "in {}", parent.display());
            }
            KillLevel::Scan { why } => assert!(!why.is_empty()),
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
