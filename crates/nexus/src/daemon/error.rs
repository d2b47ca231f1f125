//! Why a daemon could not start, and the exit code that says so.

use super::config::LoadError;
use super::lock::LockError;
use super::paths::PathsError;
use crate::ledger::{OpenError, ReadError, writer::WriteError};
use crate::pipeline::recovery;
use std::path::PathBuf;

/// Why a daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Paths(#[from] PathsError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Config(#[from] LoadError),
    #[error("{0}")]
    Setting(String),
    #[error("failed to {operation} `{path}`; check that path, its owner and its permissions")]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("failed to set up logging: {0}")]
    Logging(String),
    #[error("failed to start the keeper")]
    Keeper(#[source] std::io::Error),
    #[error("failed to start the runtime")]
    Runtime(#[source] std::io::Error),
    #[error(transparent)]
    Ledger(#[from] OpenError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    TakeUp(#[from] crate::pipeline::outbox::TakeUpError),
    #[error(transparent)]
    Recovery(#[from] recovery::RecoveryError),
    #[error("failed to listen on {address}; is something else using the port? Choose another with daemon.port or --port")]
    Listen {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("timer: {0}")]
    Timer(String),
}

impl StartError {
    /// 78 (`EX_CONFIG`) when only another configuration can help, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Setting(_) | Self::Timer(_) => 78,
            Self::Paths(_)
            | Self::Lock(_)
            | Self::File { .. }
            | Self::Logging(_)
            | Self::Keeper(_)
            | Self::Runtime(_)
            | Self::Ledger(_)
            | Self::Read(_)
            | Self::Write(_)
            | Self::TakeUp(_)
            | Self::Recovery(_)
            | Self::Listen { .. } => 1,
        }
    }
}
