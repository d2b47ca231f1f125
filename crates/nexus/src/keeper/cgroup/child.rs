//! The cgroup of one child, below the keeper's: what is in it is the child's, whatever session, parent and
//! environment it gave itself. Owns making it, killing what is in it, and removing it; starts nothing.
//!
//! Runs in the keeper, so it waits for nothing. What it costs a child: mkdir and open before the clone, close
//! after it; at the end a look at `cgroup.events` and rmdir, and a write to `cgroup.kill` if anything is left.

use super::{KILL, is_populated, remove, write};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// How those of children are called, before the child's number.
pub(super) const NAME_PREFIX: &str = "child-";

/// A cgroup that exists and has one child's processes in it.
#[derive(Debug)]
pub(in crate::keeper) struct ChildCgroup {
    directory: PathBuf,
}

impl ChildCgroup {
    /// Makes the one of child number `id` in the directory of the keeper's, and opens it. One that is there
    /// already holds what a dead daemon left and nobody could kill: it is nobody's to use.
    ///
    /// # Errors
    /// Of the file system, `EAGAIN` at a limit on the cgroups below one among them.
    pub(in crate::keeper) fn make(home: &Path, id: u64) -> io::Result<(Self, OwnedFd)> {
        let made = Self { directory: home.join(format!("{NAME_PREFIX}{id}")) };
        fs::create_dir(&made.directory)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&made.directory, flags, Mode::empty()) {
            Ok(opened) => Ok((made, opened)),
            Err(error) => {
                made.remove(); // at worst it waits, empty, for the next start
                Err(error.into())
            }
        }
    }

    /// KILL to all that is in it and below; whether anything was. Zombies don't count.
    pub(in crate::keeper) fn kill(&self) -> bool {
        let killed = is_populated(&self.directory).and_then(|is_populated| {
            if is_populated {
                write(&self.directory.join(KILL), "1")?;
            }
            Ok(is_populated)
        });
        // What can't be read may hold anything; one that somebody removed was empty.
        killed.unwrap_or_else(|error| !is_gone(&error))
    }

    /// Kills what is in it and removes it; false as long as something lives in it.
    pub(in crate::keeper) fn clear(&self) -> bool {
        !self.kill() && self.remove()
    }

    /// Removes it, and what the child made below it. False as long as something lives in it.
    fn remove(&self) -> bool {
        match fs::remove_dir(&self.directory) {
            Ok(()) => true,
            Err(error) if is_gone(&error) => true,
            Err(_) => remove(&self.directory).is_ok(),
        }
    }
}

/// Removed before it was opened, or while it was open.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_there_already_is_not_used_and_what_is_gone_is_empty() {
        let home = tempfile::tempdir().unwrap();
        let (made, _opened) = ChildCgroup::make(home.path(), 7).unwrap();
        assert!(home.path().join("child-7").is_dir());
        assert_eq!(ChildCgroup::make(home.path(), 7).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(made.remove() && !home.path().join("child-7").exists());
        assert!(made.remove(), "removed twice is removed");
        assert!(!made.kill(), "nothing lives in one that is gone");
        assert_eq!(ChildCgroup::make(&home.path().join("gone"), 1).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_lives_is_told_until_it_is_gone_and_what_is_below_goes_too() {
        let home = tempfile::tempdir().unwrap();
        let (made, _opened) = ChildCgroup::make(home.path(), 7).unwrap();
        // As the kernel's files, in a directory that is none of its own.
        let files = ["cgroup.events", KILL].map(|name| home.path().join("child-7").join(name));
        fs::write(&files[0], "populated 1\nfrozen 0\n").unwrap();
        fs::write(&files[1], "").unwrap();
        assert!(made.kill());
        assert_eq!(fs::read_to_string(&files[1]).unwrap(), "1");
        assert!(!made.remove(), "with something in it");
        fs::write(&files[0], "populated 0\nfrozen 0\n").unwrap();
        fs::write(&files[1], "").unwrap();
        assert!(!made.kill());
        assert_eq!(fs::read_to_string(&files[1]).unwrap(), "", "nobody was there to be killed");
        files.iter().for_each(|file| fs::remove_file(file).unwrap());
        fs::create_dir_all(home.path().join("child-7/theirs/deeper")).unwrap();
        assert!(made.remove() && !home.path().join("child-7").exists());
    }
}
