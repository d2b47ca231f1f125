//! One user of a ledger directory at a time, whatever its state directory: a daemon, or a command that
//! works on the files of a stopped one.

use super::{OpenError, private_file};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::Path;

/// Longest line that a command leaves in the lock, in bytes.
const HOLDER_BYTES_MAX: u64 = 200;
/// Lies in the ledger directory while a restore exchanges its files.
pub(crate) const RESTORE_MARKER: &str = "restore-in-progress";

/// Takes the ledger directory for this process: a daemon, or the `command` that others are told of
/// meanwhile.
///
/// # Errors
/// [`OpenError::InUse`] or [`OpenError::Held`] when another has it.
pub(crate) fn take(directory: &Path, command: Option<&str>) -> Result<File, OpenError> {
    let path = directory.join("lock");
    let failed = |source| OpenError::File { path: path.clone(), source };
    private_file(&path).map_err(failed)?;
    let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(holder(&file, directory).map_err(failed)?),
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    // A daemon's own lock says who it is; what a command wrote that was killed is to go.
    file.set_len(0).map_err(failed)?;
    if let Some(command) = command {
        write!(file, "`{command}` (PID {})", std::process::id()).map_err(failed)?;
    }
    Ok(file)
}

/// Who has the lock.
fn holder(file: &File, directory: &Path) -> io::Result<OpenError> {
    let (path, by) = (directory.to_owned(), written(file)?);
    Ok(if by.is_empty() { OpenError::InUse { path } } else { OpenError::Held { path, by } })
}

/// What who has the lock wrote into it; nothing of a daemon.
fn written(file: &File) -> io::Result<String> {
    let mut by = String::new();
    file.take(HOLDER_BYTES_MAX).read_to_string(&mut by)?;
    Ok(by)
}

/// Who has the directory now, if anybody has: a command by its name, a daemon by an empty one. Makes no file.
pub(crate) fn user(directory: &Path) -> Option<String> {
    let file = File::open(directory.join("lock")).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(written(&file).unwrap_or_default()),
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

/// Whether a restore was interrupted while it exchanged the files of `directory`.
///
/// # Errors
/// [`OpenError::HalfRestored`] if so.
pub(crate) fn refuse_half_restored(directory: &Path) -> Result<(), OpenError> {
    let marker = directory.join(RESTORE_MARKER);
    match marker.try_exists() {
        Ok(false) => Ok(()),
        Ok(true) => Err(OpenError::HalfRestored { path: directory.to_owned() }),
        Err(source) => Err(OpenError::File { path: marker, source }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn who_has_the_directory_is_told_and_one_that_was_killed_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let command = take(directory.path(), Some("nexus backup")).unwrap();
        let said = take(directory.path(), None).unwrap_err().to_string();
        assert!(said.contains(&format!("in use by `nexus backup` (PID {})", std::process::id())), "{said}");
        assert!(user(directory.path()).unwrap().starts_with("`nexus backup`"));
        drop(command); // its line stays, as after a kill
        assert_eq!(user(directory.path()), None);
        let daemon = take(directory.path(), None).unwrap();
        assert_eq!(user(directory.path()).as_deref(), Some(""));
        let said = take(directory.path(), Some("nexus restore")).unwrap_err();
        assert!(matches!(said, OpenError::InUse { .. }), "{said}");
        drop(daemon);
    }

    #[test]
    fn a_restore_that_was_interrupted_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        refuse_half_restored(directory.path()).unwrap();
        std::fs::write(directory.path().join(RESTORE_MARKER), "").unwrap();
        let said = refuse_half_restored(directory.path()).unwrap_err().to_string();
        assert!(said.contains("run `nexus restore DIRECTORY` again"), "{said}");
    }
}
