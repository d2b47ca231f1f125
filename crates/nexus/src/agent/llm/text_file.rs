//! Reading the small text files an operator names: a key, a system prompt. Owns their bounds and
//! the check that a secret is private. Never writes, and never puts content into an error.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::fs::OpenOptions;
use tokio::io::AsyncReadExt;

/// Permission bits that let anyone but the owner at a file.
const MODE_OTHERS: u32 = 0o077;

/// Why a named file was not used.
#[derive(Debug, thiserror::Error)]
pub enum TextFileError {
    #[error("failed to read `{}`", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` is not a regular file", .path.display())]
    NotAFile { path: PathBuf },
    #[error(
        "`{}` holds a secret but others may read it (mode {mode:04o}): run `chmod 600` on it",
        .path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("`{}` is longer than {limit_bytes} bytes", .path.display())]
    TooLong { path: PathBuf, limit_bytes: u64 },
    #[error("`{}` is not UTF-8 text", .path.display())]
    NotText { path: PathBuf },
}

/// Who may read the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    Anyone,
    OwnerOnly,
}

/// Reads a whole text file of at most `limit_bytes`.
///
/// # Errors
/// See [`TextFileError`]. The checks are made on the open file, not on its path.
pub(super) async fn read(path: &Path, limit_bytes: u64, audience: Audience) -> Result<String, TextFileError> {
    let failed = |source| TextFileError::Read { path: path.to_owned(), source };
    // Without O_NONBLOCK opening a FIFO would wait for a writer for ever.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).await.map_err(failed)?;
    let metadata = file.metadata().await.map_err(failed)?;
    if !metadata.is_file() {
        return Err(TextFileError::NotAFile { path: path.to_owned() });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if audience == Audience::OwnerOnly && mode & MODE_OTHERS != 0 {
        return Err(TextFileError::Exposed { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    let count = file.take(limit_bytes + 1).read_to_end(&mut bytes).await.map_err(failed)?;
    if count as u64 > limit_bytes {
        return Err(TextFileError::TooLong { path: path.to_owned(), limit_bytes });
    }
    String::from_utf8(bytes).map_err(|_| TextFileError::NotText { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::fs;

    fn file(bytes: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[tokio::test]
    async fn a_secret_others_may_read_is_refused() {
        for mode in [0o640, 0o604, 0o644, 0o660] {
            let (_directory, path) = file(b"key", mode);
            let error = read(&path, 10, Audience::OwnerOnly).await.unwrap_err();
            assert!(error.to_string().contains("chmod 600"), "{error}");
            assert_eq!(read(&path, 10, Audience::Anyone).await.unwrap(), "key");
        }
        let (_directory, path) = file(b"key", 0o600);
        assert_eq!(read(&path, 3, Audience::OwnerOnly).await.unwrap(), "key");
    }

    #[tokio::test]
    async fn length_type_and_encoding_are_checked() {
        let (directory, path) = file(b"four", 0o600);
        let error = read(&path, 3, Audience::Anyone).await.unwrap_err();
        assert!(matches!(error, TextFileError::TooLong { limit_bytes: 3, .. }), "{error}");

        let error = read(directory.path(), 3, Audience::Anyone).await.unwrap_err();
        assert!(matches!(error, TextFileError::NotAFile { .. }), "{error}");

        let error = read(&directory.path().join("no"), 3, Audience::Anyone).await.unwrap_err();
        assert!(matches!(error, TextFileError::Read { .. }), "{error}");

        let (_directory, path) = file(b"\xff", 0o600);
        let error = read(&path, 3, Audience::Anyone).await.unwrap_err();
        assert!(matches!(error, TextFileError::NotText { .. }), "{error}");
    }
}
