//! Where a project is put together before it gets its place: a directory beside the projects, held by a lock, so that
//! what a killed daemon left is told from what another is working on.

use crate::ledger::copy::sync_directory;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Within the directory of the projects; no slug begins with a dot.
const STAGING: &str = ".staging";

static MAKING: Mutex<()> = Mutex::new(());

/// One directory of its own. Dropping it removes what is still there.
#[derive(Debug)]
pub(super) struct Stage {
    path: PathBuf,
    /// Held as long as it is worked in.
    _lock: File,
}

impl Stage {
    /// A fresh one, after what nobody works in any more is removed.
    pub(super) fn make(projects: &Path, slug: &str) -> io::Result<Self> {
        // Between its making and its lock a directory looks as if it were left.
        let _alone = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let staging = projects.join(STAGING);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&staging)?;
        sweep(&staging)?;
        let path = staging.join(format!("{slug}-{}", ulid::Ulid::generate()));
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        let lock = File::open(&path)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { path, _lock: lock })
    }

    /// Where the project is put together. It doesn't exist at first.
    pub(super) fn work(&self) -> PathBuf {
        self.path.join("project")
    }

    /// Gives what was put together its place, where nothing is.
    pub(super) fn put(self, target: &Path) -> io::Result<()> {
        let work = self.work();
        crate::torture::point("rename.before");
        match renameat_with(CWD, &work, CWD, target, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            // A file system that can't refuse by itself (rename(2)).
            Err(Errno::INVAL | Errno::NOSYS) if target.symlink_metadata().is_err() => fs::rename(&work, target)?,
            Err(error) => return Err(error.into()),
        }
        crate::torture::point("rename.after");
        target.parent().map_or(Ok(()), sync_directory)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a staging directory can't be removed");
        }
    }
}

/// Removes what a daemon left that is gone.
fn sweep(staging: &Path) -> io::Result<()> {
    for entry in fs::read_dir(staging)?.flatten() {
        let path = entry.path();
        let Ok(directory) = File::open(&path) else { continue };
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        match fs::remove_dir_all(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "removed what an unfinished preparation had left"),
            Err(error) => tracing::warn!(%error, path = %path.display(), "a staging directory can't be removed"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_left_goes_and_what_is_worked_in_stays() {
        let projects = tempfile::tempdir().unwrap();
        let busy = Stage::make(projects.path(), "busy").unwrap();
        fs::create_dir_all(busy.work().join("deep")).unwrap();
        let left = projects.path().join(STAGING).join("left-1");
        fs::create_dir_all(left.join("project")).unwrap();
        let other = Stage::make(projects.path(), "other").unwrap();
        assert!(!left.exists() && busy.work().exists());
        let path = other.path.clone();
        drop(other);
        assert!(!path.exists());
    }

    #[test]
    fn nothing_is_replaced() {
        let projects = tempfile::tempdir().unwrap();
        let target = projects.path().join("demo");
        let make = || {
            let stage = Stage::make(projects.path(), "demo").unwrap();
            fs::create_dir(stage.work()).unwrap();
            fs::write(stage.work().join("file"), "new").unwrap();
            stage
        };
        fs::create_dir(&target).unwrap();
        assert_eq!(make().put(&target).unwrap_err().kind(), io::ErrorKind::AlreadyExists, "an empty directory neither");
        fs::remove_dir(&target).unwrap();
        make().put(&target).unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "new");
        assert_eq!(fs::read_dir(projects.path().join(STAGING)).unwrap().count(), 0);
    }
}
