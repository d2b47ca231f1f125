//! Which file a ledger is. Its path may come to name another file, or none, while the open one is still
//! written to, and is gone with all that when the daemon ends. Never opens a database.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A ledger's path with the file that was opened there. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Place {
    path: Arc<PathBuf>,
    /// Device and inode.
    opened: (u64, u64),
    /// What was wrong at the last look.
    trouble: Arc<Mutex<Option<String>>>,
}

impl Place {
    /// The place of the file that is at `path` now.
    ///
    /// # Errors
    /// When there is none, or it can't be looked at.
    pub(super) fn of(path: PathBuf) -> std::io::Result<Self> {
        let opened = identity(&path)?;
        Ok(Self { path: Arc::new(path), opened, trouble: Arc::default() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks whether the path still names the file; what is wrong, if it doesn't.
    pub(super) fn look(&self) -> Option<String> {
        let path = self.path.display();
        let mend = "put the same file back, or stop the daemon and see to the file first";
        let trouble = match identity(&self.path) {
            Ok(found) if found == self.opened => None,
            Ok(_) => Some(format!("`{path}` is another file than the one that is open; {mend}")),
            Err(error) if error.kind() == ErrorKind::NotFound => Some(format!("`{path}` is gone; {mend}")),
            Err(error) => Some(format!("`{path}` can't be looked at: {error}; {mend}")),
        };
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

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_that_is_gone_or_replaced_is_missed_until_it_is_back() {
        let directory = tempfile::tempdir().unwrap();
        let (path, aside) = (directory.path().join("x.db"), directory.path().join("aside"));
        assert!(Place::of(path.clone()).is_err());
        std::fs::write(&path, "one").unwrap();
        let place = Place::of(path.clone()).unwrap();
        assert_eq!((place.look(), place.trouble()), (None, None));
        std::fs::rename(&path, &aside).unwrap();
        assert_eq!(place.trouble(), None, "nobody looked");
        assert!(place.look().unwrap().contains("is gone"));
        std::fs::write(&path, "another").unwrap();
        assert!(place.look().unwrap().contains("is another file"));
        assert!(place.trouble().is_some());
        std::fs::rename(&aside, &path).unwrap();
        assert_eq!((place.look(), place.trouble()), (None, None));
    }
}
