//! Which file a ledger is, and which its log. Their paths may come to name other files, or none, while the open ones are
//! still written to, and are gone with all that when the daemon ends. Never opens a database.

use super::copy::beside;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A ledger's path with the files that were opened there. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Place {
    path: Arc<PathBuf>,
    /// Each with its device and inode: the file, and its log, which is there as long as a connection is.
    opened: Arc<[(PathBuf, (u64, u64)); 2]>,
    /// What was wrong at the last look.
    trouble: Arc<Mutex<Option<String>>>,
}

impl Place {
    /// The place of the file that is at `path` now, and of its log: a connection has them open.
    ///
    /// # Errors
    /// When one of them isn't there, or can't be looked at.
    pub(super) fn of(path: PathBuf) -> std::io::Result<Self> {
        let log = beside(&path, "-wal");
        let opened = [(path.clone(), identity(&path)?), (log.clone(), identity(&log)?)];
        Ok(Self { path: Arc::new(path), opened: Arc::new(opened), trouble: Arc::default() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks whether the paths still name the files; what is wrong, if they don't.
    pub(super) fn look(&self) -> Option<String> {
        let trouble = self.opened.iter().find_map(|(path, opened)| moved(path, *opened));
        let before = std::mem::replace(&mut *self.trouble.lock().unwrap_or_else(PoisonError::into_inner), trouble.clone());
        match (&before, &trouble) {
            (None, Some(trouble)) => tracing::error!(trouble, "a ledger is not where it was opened; nothing is written to it"),
            (Some(_), None) => tracing::info!(path = %self.path.display(), "a ledger is where it was opened again"),
            (Some(_), Some(_)) | (None, None) => {}
        }
        trouble
    }

    /// What was wrong at the last look.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What is wrong with a path that names another file than the one that is open.
fn moved(path: &Path, opened: (u64, u64)) -> Option<String> {
    let found = identity(path);
    let path = path.display();
    let mend = "put the same file back, or stop the daemon and see to the file first";
    match found {
        Ok(found) if found == opened => None,
        Ok(_) => Some(format!("`{path}` is another file than the one that is open; {mend}")),
        Err(error) if error.kind() == ErrorKind::NotFound => Some(format!("`{path}` is gone; {mend}")),
        Err(error) => Some(format!("`{path}` can't be looked at: {error}; {mend}")),
    }
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_or_a_log_that_is_gone_or_replaced_is_missed_until_it_is_back() {
        let directory = tempfile::tempdir().unwrap();
        let (path, log, aside) = (directory.path().join("x.db"), directory.path().join("x.db-wal"), directory.path().join("aside"));
        assert!(Place::of(path.clone()).is_err());
        std::fs::write(&path, "one").unwrap();
        assert!(Place::of(path.clone()).is_err(), "no connection has it open");
        std::fs::write(&log, "its log").unwrap();
        let place = Place::of(path.clone()).unwrap();
        assert_eq!((place.look(), place.trouble()), (None, None));
        for file in [&path, &log] {
            std::fs::rename(file, &aside).unwrap();
            assert_eq!(place.trouble(), None, "nobody looked");
            let gone = format!("`{}` is gone", file.display());
            assert!(place.look().unwrap().contains(&gone));
            std::fs::write(file, "another").unwrap();
            assert!(place.look().unwrap().contains("is another file"));
            assert!(place.trouble().is_some());
            std::fs::rename(&aside, file).unwrap();
            assert_eq!((place.look(), place.trouble()), (None, None));
        }
    }
}
