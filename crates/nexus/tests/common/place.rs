//! Directories that a daemon can't write to, for whoever runs the tests: root, whom permissions don't
//! bind, or somebody who may not mount anything. Owns how that is brought about, by words to be put
//! before the daemon's command line; never says what the daemon should answer.

use super::program;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Stdio;

/// The user `nobody` of most systems, and its group.
const NOBODY: u32 = 65_534;
/// Root opens the program, which may lie where `nobody` can't go, and `nobody` runs it.
const AS_NOBODY: &str = "exec 9<\"$1\" && shift && exec setpriv --reuid=65534 --regid=65534 --clear-groups /proc/self/fd/9 \"$@\"";
/// Where a file system can't be mounted read-only a second time, an empty one is put in its place.
const READ_ONLY: &str = "dir=$1; shift; { mount --bind \"$dir\" \"$dir\" && mount -o remount,bind,ro \"$dir\"; } \
                         || mount -t tmpfs -o ro none \"$dir\" || exit 99; exec \"$@\"";

fn words(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| (*part).to_owned()).collect()
}

/// Whether a script of the shell succeeds below the words of `prefix`.
fn succeeds(prefix: &[String], script: &str) -> bool {
    let line: Vec<&str> = prefix.iter().map(String::as_str).chain(["/bin/sh", "-c", script]).collect();
    let [first, rest @ ..] = line.as_slice() else { return false };
    let tried = program(first).args(rest).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Somebody whom permissions bind: whoever runs the tests, or `nobody`, who gets all below `root`, when
/// that is root. `None` where root can't become anybody else.
pub fn mortal(root: &Path) -> Option<Vec<String>> {
    if !is_root() {
        return Some(Vec::new());
    }
    give(root);
    let prefix = words(&["/bin/sh", "-c", AS_NOBODY, "sh"]);
    let script = format!("test -w {}", shell_words::quote(&root.to_string_lossy()));
    succeeds(&prefix, &script).then_some(prefix)
}

/// Gives a directory with all in it to `nobody`, if that may be done.
fn give(path: &Path) {
    // A root that may not do this finds out by `succeeds`.
    chown(path, Some(NOBODY), Some(NOBODY)).unwrap_or_default();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            give(&entry.path());
        } else {
            chown(entry.path(), Some(NOBODY), Some(NOBODY)).unwrap_or_default();
        }
    }
}

/// Runs `act` while `path` has this mode.
pub fn with_mode<T>(path: &Path, mode: u32, act: impl FnOnce() -> T) -> T {
    let before = fs::metadata(path).expect("the path exists").permissions();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode can be changed");
    let done = act();
    fs::set_permissions(path, before).expect("its mode can be changed back");
    done
}

/// Has a command see `dir` read-only, in a mount namespace of its own. `None` where that isn't allowed.
pub fn read_only(dir: &Path) -> Option<Vec<String>> {
    let dir = dir.to_string_lossy().into_owned();
    let refuses = format!("! touch {}/probe", shell_words::quote(&dir));
    [&["unshare", "-m"][..], &["unshare", "-r", "-m"]].into_iter().find_map(|unshare| {
        let prefix = [words(unshare), words(&["/bin/sh", "-c", READ_ONLY, "sh", &dir])].concat();
        succeeds(&prefix, &refuses).then_some(prefix)
    })
}
