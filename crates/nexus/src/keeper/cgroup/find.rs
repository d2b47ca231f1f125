//! Where this process is in the cgroup2 hierarchy, and where that is mounted. Reads `/proc` and asks
//! file systems what they are; never writes, and knows no path by heart.
//!
//! Sources: cgroups(7) for `/proc/PID/cgroup`, proc_pid_mountinfo(5) for the mounts.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// `statfs(2)` of a cgroup2 file system.
const CGROUP2_SUPER_MAGIC: u32 = 0x6367_7270;
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Why there is no cgroup to be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("this process is in no cgroup2 hierarchy")]
    NoHierarchy,
    #[error("its own cgroup `{0}` lies outside of its cgroup namespace")]
    Outside(String),
    #[error("its own cgroup `{0}` was removed")]
    Deleted(String),
    #[error("no mounted cgroup2 file system shows its own cgroup `{}`", .0.display())]
    NotMounted(PathBuf),
    #[error("`{}` has no cgroup.kill, which Linux 5.14 or newer gives", .0.display())]
    NoKill(PathBuf),
    #[error("the keeper is in `{}` although it was put into another cgroup", .0.display())]
    Elsewhere(PathBuf),
    #[error("this process was moved into it, to `{}`", .0.display())]
    Inside(PathBuf),
    #[error("failed to {operation} `{}`: {source}", .path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Unusable {
    pub(super) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }
}

/// The cgroup2 hierarchy as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Our own cgroup's path in the hierarchy: absolute and without `..`.
    pub(super) own: PathBuf,
    mounts: Vec<Mount>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    /// The part of the hierarchy that is mounted.
    root: PathBuf,
    at: PathBuf,
}

impl Hierarchy {
    pub(super) fn find() -> Result<Self, Unusable> {
        let own = cgroup_of("self")?;
        Ok(Self { own, mounts: mounts(&read(Path::new(MOUNTINFO))?) })
    }

    /// Every directory that should be the cgroup `path`. Another mount may lie over one of them.
    pub(super) fn directories(&self, path: &Path) -> Vec<PathBuf> {
        let below = |mount: &Mount| path.strip_prefix(&mount.root).ok().map(|rest| mount.at.join(rest));
        // What is mounted last is on top.
        self.mounts.iter().rev().filter_map(below).collect()
    }

    /// The directory of the cgroup `path`, if it exists and can be seen.
    pub(super) fn seen(&self, path: &Path) -> Option<PathBuf> {
        self.directories(path).into_iter().find(|directory| is_cgroup2(directory))
    }
}

/// Whether this is a directory of a cgroup2 file system, and there at all.
pub(super) fn is_cgroup2(directory: &Path) -> bool {
    // The width of `f_type` differs by architecture; the number has 32 bits.
    directory.is_dir() && rustix::fs::statfs(directory).is_ok_and(|found| found.f_type as u32 == CGROUP2_SUPER_MAGIC)
}

/// The cgroup of a process (`self`, or a PID), as this process's cgroup namespace names it.
pub(super) fn cgroup_of(process: &str) -> Result<PathBuf, Unusable> {
    own(&read(&Path::new("/proc").join(process).join("cgroup"))?)
}

fn read(path: &Path) -> Result<String, Unusable> {
    let bytes = fs::read(path).map_err(Unusable::io("read", path))?;
    // A path that is no UTF-8 may stand in another mount's line. In ours it isn't found, which is an answer as well.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The path in the line `0::PATH`; lines with other numbers are of the old hierarchies.
fn own(cgroups: &str) -> Result<PathBuf, Unusable> {
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::")).ok_or(Unusable::NoHierarchy)?;
    if path.ends_with(" (deleted)") {
        return Err(Unusable::Deleted(path.to_owned()));
    }
    if is_plain(Path::new(path)) { Ok(path.into()) } else { Err(Unusable::Outside(path.to_owned())) }
}

/// Absolute, and never up: what lies outside of the cgroup namespace begins with `/..`.
pub(super) fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

fn mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(mount).collect()
}

/// One line of mountinfo, if it is of cgroup2: `36 25 0:32 ROOT AT rw shared:7 - cgroup2 none rw`, with
/// any number of fields between the options and the dash.
fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    if after.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = before.split(' ').skip(3);
    let (root, at) = (unescape(fields.next()?), unescape(fields.next()?));
    is_plain(&root).then_some(Mount { root, at })
}

/// Blanks, tabs, line feeds and backslashes are written as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut rest = field.as_bytes();
    let mut plain = Vec::with_capacity(rest.len());
    while let Some((&first, tail)) = rest.split_first() {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) = (first, tail) {
            plain.push((*a - b'0') * 64 + (*b - b'0') * 8 + (*c - b'0'));
            rest = after;
        } else {
            plain.push(first);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:4 - cgroup cgroup rw,cpu
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 master:2 propagate_from:1 unbindable - cgroup2 cgroup2 rw,nsdelegate
";

    fn hierarchy(own: &str, mountinfo: &str) -> Hierarchy {
        Hierarchy { own: own.into(), mounts: mounts(mountinfo) }
    }

    fn directories(own: &str, mountinfo: &str) -> Vec<String> {
        let hierarchy = hierarchy(own, mountinfo);
        hierarchy.directories(&hierarchy.own).iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn among_the_old_hierarchies_only_the_unified_one_counts() {
        assert_eq!(directories("/user.slice/a", HYBRID), ["/sys/fs/cgroup/unified/user.slice/a"]);
        let old_only: String = HYBRID.lines().take(3).map(|line| format!("{line}\n")).collect();
        assert!(directories("/user.slice/a", &old_only).is_empty());
        assert!(directories("/", "").is_empty());
    }

    #[test]
    fn a_mount_counts_when_its_root_covers_the_path() {
        let several = "\
50 1 0:26 /other /one rw - cgroup2 none rw
51 1 0:26 /user.slice /two rw - cgroup2 none rw
52 1 0:26 /user.slice/a /three rw shared:1 - cgroup2 none rw
53 1 0:26 /user.slice/aa /four rw - cgroup2 none rw
54 1 0:26 /.. /five rw - cgroup2 none rw
";
        assert_eq!(directories("/user.slice/a/b", several), ["/three/b", "/two/a/b"]);
        assert!(directories("/", several).is_empty());
    }

    #[test]
    fn escapes_are_undone_and_nothing_else() {
        let line = r"50 1 0:26 / /a\040dir\011with\134040\012end\x\9 rw - cgroup2 none rw";
        assert_eq!(directories("/", line), ["/a dir\twith\\040\nend\\x\\9/"]);
        assert_eq!(unescape(r"\04"), Path::new(r"\04"));
        assert_eq!(unescape(r"\777"), Path::new(r"\777"), "more than a byte");
        assert_eq!(unescape(r"\377").into_os_string().into_vec(), [0xff]);
        assert_eq!(unescape(""), Path::new(""));
    }

    #[test]
    fn a_line_that_is_cut_short_or_only_looks_like_one_is_passed_over() {
        let short = ["", "50", " - cgroup2", "50 1 0:26 / - cgroup2 none rw"];
        for line in short.into_iter().chain(["50 1 0:26 / /x rw - cgroup cgroup2 rw", "50 1 0:26 / /x rw cgroup2"]) {
            assert_eq!(mount(line), None, "{line:?}");
        }
        assert!(mount("50 1 0:26 / /x rw - cgroup2").is_some(), "what comes after the type is not needed");
    }

    #[test]
    fn the_own_cgroup_is_the_one_of_the_unified_hierarchy() {
        assert_eq!(own("9:name=systemd:/old\n4:memory:/m\n0::/user.slice/a b\n").unwrap(), Path::new("/user.slice/a b"));
        assert_eq!(own("0::/\n").unwrap(), Path::new("/"));
        assert!(matches!(own("4:memory:/m\n"), Err(Unusable::NoHierarchy)));
        assert!(matches!(own(""), Err(Unusable::NoHierarchy)));
        assert!(matches!(own("0::/..\n"), Err(Unusable::Outside(_))));
        assert!(matches!(own("0::/../../b\n"), Err(Unusable::Outside(_))));
        assert!(matches!(own("0::\n"), Err(Unusable::Outside(_))));
        assert!(matches!(own("0::/gone (deleted)\n"), Err(Unusable::Deleted(_))));
    }

    #[test]
    fn a_plain_directory_is_no_cgroup() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!is_cgroup2(directory.path()));
        assert!(!is_cgroup2(&directory.path().join("missing")));
        // A mount that something else lies over.
        let line = format!("50 1 0:26 / {} rw - cgroup2 none rw", directory.path().display());
        assert_eq!(hierarchy("/", &line).seen(Path::new("/")), None);
    }
}
