//! Credentials: where they lie, and what a `credential_ref` resolves to. Values never reach logs,
//! argv, events or traces; a child gets its own in a file that only this user can read.

use crate::keeper::{Keeper, SpawnSpec, Stdin};
use crate::oneshot;
use nexus_core::ids::ChildId;
use secrecy::SecretString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// Longest credential, in bytes.
const VALUE_BYTES_MAX: usize = 64 * 1024;
/// How long a `command:` reference may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error(
        "`{reference}` is no credential name: use SERVICE/ACCOUNT of letters, digits and `._@+-`, `env:NAME` or `command:PROGRAM ARGS`"
    )]
    Name { reference: String },
    #[error("credential `{reference}` does not exist; add it with `nexus credential set {reference}`")]
    Missing { reference: String },
    #[error("environment variable `{name}` of credential `env:{name}` is not set for the daemon")]
    NoVariable { name: String },
    #[error("credential file `{path}` can be read by others (mode {mode:o}); run `chmod 600 {path}`")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("credential file `{path}` is not `{{\"value\": \"...\"}}`")]
    Malformed { path: PathBuf },
    #[error("failed to {operation} credential `{path}`")]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the credential's value is empty or longer than {VALUE_BYTES_MAX} bytes")]
    Value,
    #[error("credential command `{program}` failed: {reason}")]
    Command { program: String, reason: String, is_passing: bool },
}

impl CredentialError {
    /// Whether the same attempt may succeed later without anybody changing anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Io { source, .. } => crate::error_text::is_passing(source),
            Self::Command { is_passing, .. } => *is_passing,
            Self::Name { .. }
            | Self::Missing { .. }
            | Self::NoVariable { .. }
            | Self::Exposed { .. }
            | Self::Malformed { .. }
            | Self::Value => false,
        }
    }
}

/// A resolved credential: its kind (`file`, `env`, `command`) and value.
#[derive(Debug)]
pub struct Credential {
    pub kind: &'static str,
    pub value: SecretString,
}

/// Resolves `reference`; `directory` is `state/credentials`.
///
/// # Errors
/// [`CredentialError`], never with a value in it.
pub async fn resolve(reference: &str, directory: &Path, keeper: &Keeper) -> Result<Credential, CredentialError> {
    if let Some(name) = reference.strip_prefix("env:") {
        let value = std::env::var(name).map_err(|_| CredentialError::NoVariable { name: name.to_owned() })?;
        return Ok(Credential { kind: "env", value: value.into() });
    }
    if let Some(command) = reference.strip_prefix("command:") {
        return Ok(Credential { kind: "command", value: ask(command, keeper).await? });
    }
    Ok(Credential { kind: "file", value: stored(directory, reference)? })
}

/// The value that is stored under `SERVICE/ACCOUNT`.
///
/// # Errors
/// [`CredentialError`], never with a value in it.
pub fn stored(directory: &Path, reference: &str) -> Result<SecretString, CredentialError> {
    let path = file(directory, reference)?;
    let text = match fs::read_to_string(&path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(CredentialError::Missing { reference: reference.to_owned() });
        }
        Err(source) => return Err(CredentialError::Io { operation: "read", path, source }),
    };
    let mode = fs::metadata(&path)
        .map_err(|source| CredentialError::Io { operation: "inspect", path: path.clone(), source })?
        .permissions()
        .mode()
        & 0o777;
    if mode & 0o077 != 0 {
        return Err(CredentialError::Exposed { path, mode });
    }
    #[derive(serde::Deserialize)]
    struct Stored {
        value: String,
    }
    let stored: Stored = serde_json::from_str(&text).map_err(|_| CredentialError::Malformed { path })?;
    Ok(stored.value.into())
}

async fn ask(command: &str, keeper: &Keeper) -> Result<SecretString, CredentialError> {
    let program = command.split(' ').next().unwrap_or_default();
    let unanswered = |reason: String, is_passing: bool| CredentialError::Command { program: program.to_owned(), reason, is_passing };
    let failed = |reason: String| unanswered(reason, false);
    let argv = shell_words::split(command).map_err(|error| failed(error.to_string()))?;
    let spec = SpawnSpec { child: ChildId::new("credential"), argv, env: crate::environment::base(), cwd: None, stdin: Stdin::Null };
    let output = oneshot::run(keeper, spec, None, COMMAND_LIMIT).await;
    let output = output.map_err(|error| unanswered(crate::error_text::describe(&error), error.is_passing()))?;
    if !output.status.is_success() {
        return Err(failed(output.status.to_string()));
    }
    let text = Zeroizing::new(String::from_utf8(output.stdout).map_err(|_| failed("its output is not UTF-8".into()))?);
    let value = text.trim_end_matches(['\r', '\n']);
    if value.is_empty() || value.len() > VALUE_BYTES_MAX { Err(CredentialError::Value) } else { Ok(value.to_owned().into()) }
}

/// Stores `value` under `SERVICE/ACCOUNT`, whole or not at all.
///
/// # Errors
/// [`CredentialError`].
pub fn set(directory: &Path, reference: &str, value: &str) -> Result<(), CredentialError> {
    if value.is_empty() || value.len() > VALUE_BYTES_MAX {
        return Err(CredentialError::Value);
    }
    let path = file(directory, reference)?;
    let io = |operation: &'static str| {
        let path = path.clone();
        move |source| CredentialError::Io { operation, path, source }
    };
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(io("make the directory of"))?;
    }
    let text = Zeroizing::new(serde_json::json!({ "value": value }).to_string());
    write_private(&path, text.as_bytes()).map_err(io("write"))
}

/// The names of all stored credentials, sorted.
///
/// # Errors
/// When a directory can't be read.
pub fn list(directory: &Path) -> Result<Vec<String>, CredentialError> {
    let mut names = Vec::new();
    for service in entries(directory)? {
        for account in entries(&service)? {
            if account.extension().is_some_and(|extension| extension == "json")
                && let (Some(service), Some(account)) = (service.file_name(), account.file_stem())
            {
                names.push(format!("{}/{}", service.to_string_lossy(), account.to_string_lossy()));
            }
        }
    }
    names.sort();
    Ok(names)
}

/// Removes a stored credential; false when there was none.
///
/// # Errors
/// [`CredentialError`].
pub fn remove(directory: &Path, reference: &str) -> Result<bool, CredentialError> {
    let path = file(directory, reference)?;
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(CredentialError::Io { operation: "remove", path, source }),
    }
}

fn file(directory: &Path, reference: &str) -> Result<PathBuf, CredentialError> {
    let good = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.len() <= 100
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._@+-".contains(c))
    };
    match reference.split_once('/') {
        Some((service, account)) if good(service) && good(account) => Ok(directory.join(service).join(format!("{account}.json"))),
        Some(_) | None => Err(CredentialError::Name { reference: reference.to_owned() }),
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, CredentialError> {
    match fs::read_dir(directory) {
        Ok(list) => Ok(list.flatten().map(|entry| entry.path()).collect()),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(source) => Err(CredentialError::Io { operation: "list", path: directory.to_owned(), source }),
    }
}

/// Writes `bytes` to `path` with mode 0600: a temporary file, synced and renamed.
///
/// # Errors
/// Of the file system; `path` is then as it was.
pub fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = path.with_file_name(format!(".{name}.{}", ulid::Ulid::generate()));
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        crate::torture::rename(&temporary, path)
    };
    let written = write();
    if written.is_err() {
        drop(fs::remove_file(&temporary)); // it may not have come to exist
    }
    written
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn set_list_remove_and_modes() {
        let directory = tempfile::tempdir().unwrap();
        set(directory.path(), "google/me@x.org", "s3cret\"\n").unwrap();
        set(directory.path(), "google/me@x.org", "second").unwrap();
        let path = directory.path().join("google/me@x.org.json");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path().join("google")).unwrap().count(), 1, "no temporary file stays");
        assert_eq!(list(directory.path()).unwrap(), ["google/me@x.org"]);
        assert!(remove(directory.path(), "google/me@x.org").unwrap());
        assert!(!remove(directory.path(), "google/me@x.org").unwrap());
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        for bad in ["../x/y", "a", "a/../b", "a/.b", "/a/b", "a/b/c", "a/", "a/b\0"] {
            assert!(matches!(file(Path::new("/d"), bad), Err(CredentialError::Name { .. })), "{bad}");
        }
    }
}
