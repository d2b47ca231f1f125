//! Why a project could not be prepared, and whether trying again can help.

use crate::ledger::ReadError;
use crate::ledger::nexus::Awaited;
use crate::ledger::writer::WriteError;
use crate::nostr::{FetchError, KeyError};
use crate::project::coordinate::NameError;
use crate::project::definition::DefinitionError;
use crate::project::files::FilesError;
use crate::project::git::GitError;
use crate::project::remote::RemoteError;
use crate::project::secrets::SecretError;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("failed to fetch the definition of project `{project}`")]
    Fetch {
        project: String,
        #[source]
        source: FetchError,
    },
    #[error("failed to fetch the agents and servers of project `{project}`")]
    Members {
        project: String,
        #[source]
        source: FetchError,
    },
    #[error("the definition of project `{project}` can't be used")]
    Definition {
        project: String,
        #[source]
        source: DefinitionError,
    },
    #[error("the author deleted the definition of project `{project}`; a newer one brings the project back")]
    Deleted { project: String },
    #[error("event {id} is not the definition of project `{project}`")]
    OtherProject { project: String, id: String },
    #[error("{}", crate::unknown::project(.name))]
    Unknown { name: String },
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("the host `{host}` awaits approval; see `nexus project approvals`")]
    HostAwaits { host: String, approval: Option<i64> },
    #[error("the host `{host}` was denied; `nexus project approve` changes that")]
    HostDenied { host: String },
    #[error("`{}` can't become the project's directory: {reason}", .path.display())]
    Occupied { path: PathBuf, reason: String },
    #[error("project `{project}` lies in `{}` already; `nexus project gc` puts it away, before it gets another place", .path.display())]
    Placed { project: String, path: PathBuf },
    /// It is not put away.
    #[error("{reason}")]
    Kept { reason: String },
    #[error(transparent)]
    Git(#[from] GitError),
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("failed to use a key of the project's agents")]
    Key(#[from] KeyError),
    #[error("failed to {operation} `{}`", .path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("preparing the project broke off: {0}")]
    Broken(String),
}

impl PrepareError {
    /// Whether the same attempt may succeed later without anybody deciding or correcting anything.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Fetch { .. } | Self::Members { .. } | Self::Io { .. } | Self::Write(_) | Self::Read(_) | Self::Broken(_) => true,
            Self::Git(error) => error.is_passing(),
            Self::Remote(error) => matches!(error, RemoteError::Lookup { .. }),
            Self::Definition { .. }
            | Self::Deleted { .. }
            | Self::OtherProject { .. }
            | Self::Unknown { .. }
            | Self::Name(_)
            | Self::HostAwaits { .. }
            | Self::HostDenied { .. }
            | Self::Occupied { .. }
            | Self::Placed { .. }
            | Self::Kept { .. } => false,
            Self::Files(error) => error.is_passing(),
            Self::Secret(error) => error.is_passing(),
            Self::Key(error) => error.is_passing(),
        }
    }

    /// What it waits for, where nothing else is in the way.
    pub fn awaits(&self) -> Option<Awaited> {
        if let Self::HostAwaits { approval, .. } = self {
            return approval.map(Awaited::Approval);
        }
        self.retryable().then_some(Awaited::Source)
    }

    /// What is wrong with the project's repository, for whoever asked, in words that say nothing of this machine.
    pub fn told(&self) -> Option<String> {
        match self {
            // Not the address, which a name server of this network may have told.
            Self::Remote(RemoteError::Private { host, .. }) | Self::Git(GitError::Remote(RemoteError::Private { host, .. })) => {
                Some(format!("the repository's host `{host}` is not a public one"))
            }
            Self::Remote(error) | Self::Git(GitError::Remote(error)) => Some(error.to_string()),
            Self::Git(GitError::TooLarge { .. }) => Some("the repository is too large".to_owned()),
            Self::Git(GitError::Escapes { .. }) => Some("a link in the repository leads out of it".to_owned()),
            Self::Git(GitError::Run { operation, .. } | GitError::Failed { operation, .. }) => Some(format!("git failed to {operation}")),
            Self::HostDenied { host } => Some(format!("the repository's host `{host}` was denied")),
            Self::Git(GitError::DiskFull { .. } | GitError::Look { .. })
            | Self::Fetch { .. }
            | Self::Members { .. }
            | Self::Definition { .. }
            | Self::Deleted { .. }
            | Self::OtherProject { .. }
            | Self::Unknown { .. }
            | Self::Name(_)
            | Self::HostAwaits { .. }
            | Self::Placed { .. }
            | Self::Occupied { .. }
            | Self::Kept { .. }
            | Self::Files(_)
            | Self::Secret(_)
            | Self::Key(_)
            | Self::Io { .. }
            | Self::Write(_)
            | Self::Read(_)
            | Self::Broken(_) => None,
        }
    }

    /// For `map_err` of the file system.
    pub(super) fn io(operation: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::CredentialError;
    use crate::keeper::SpawnError;
    use crate::oneshot::OneshotError;
    use std::io;

    fn io_error(number: i32) -> io::Error {
        io::Error::from_raw_os_error(number)
    }

    /// An error of each part that reads files, by what the operating system said.
    fn all(number: i32) -> Vec<PrepareError> {
        let path = PathBuf::from("/x");
        let credential = || CredentialError::Io { operation: "read", path: path.clone(), source: io_error(number) };
        vec![
            FilesError::Io { operation: "read", path: path.clone(), source: io_error(number) }.into(),
            SecretError::Store(credential()).into(),
            SecretError::Unusable { name: "KEY".into(), source: credential() }.into(),
            KeyError::Credential { key: "demo/pm".into(), source: credential() }.into(),
            GitError::Look { path: path.clone(), source: io_error(number) }.into(),
        ]
    }

    #[test]
    fn what_passes_by_itself_is_tried_again_and_what_somebody_has_to_mend_is_not() {
        for error in all(libc::EMFILE).iter().chain(&all(libc::ENOSPC)) {
            assert!(error.retryable(), "{error:?}");
        }
        for error in all(libc::EACCES).iter().chain(&all(libc::ENOENT)) {
            assert!(!error.retryable(), "{error:?}");
        }
        let missing = || CredentialError::Missing { reference: "a/b".into() };
        let exposed = CredentialError::Exposed { path: "/x".into(), mode: 0o644 };
        let lasting: [PrepareError; 5] = [
            SecretError::TooMany.into(),
            SecretError::Unusable { name: "KEY".into(), source: missing() }.into(),
            SecretError::Store(exposed).into(),
            KeyError::NotOne.into(),
            FilesError::NotPlain { path: "/x".into() }.into(),
        ];
        for error in lasting {
            assert!(!error.retryable(), "{error:?}");
        }
    }

    #[test]
    fn a_command_for_a_secret_that_was_not_started_is_asked_again() {
        let refused = |number| OneshotError::Spawn(SpawnError::Pipes { program: "pass".into(), source: io_error(number) });
        assert!(refused(libc::EMFILE).is_passing() && !refused(libc::ENOENT).is_passing());
        assert!(OneshotError::TimedOut { program: "pass".into(), limit_ms: 1 }.is_passing());
        for is_passing in [true, false] {
            let source = CredentialError::Command { program: "pass".into(), reason: String::new(), is_passing };
            assert_eq!(PrepareError::from(SecretError::Store(source)).retryable(), is_passing);
        }
    }
}
