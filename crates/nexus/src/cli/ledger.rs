//! Answers about records: from the daemon when one runs, else straight from the ledger files.

use super::Global;
use super::client::{Client, if_running};
use super::failure::{Exit, Failure};
use crate::daemon::Paths;
use crate::daemon::config::{self, LoadError};
use crate::error_text::describe;
use nexus_core::config::Loaded;
use serde_json::Value;
use std::path::PathBuf;

/// The configuration of `paths`.
///
/// # Errors
/// Exit code 78 with every problem when it is invalid.
pub(crate) fn configuration(paths: &Paths) -> anyhow::Result<Loaded> {
    if !paths.config_file.exists() {
        let path = paths.config_file.display();
        let text = format!("there is no configuration at {path}; `nexus daemon start` writes one when no other file is asked for");
        return Err(Failure::new(Exit::NotFound, text).into());
    }
    match config::load(paths) {
        Ok(loaded) => Ok(loaded),
        Err(LoadError::Invalid(problems)) => Err(Failure::bad_config(&problems).into()),
        Err(error) => Err(Failure::new(Exit::BadConfig, describe(&error)).into()),
    }
}

/// Asks the daemon, or `offline` with the directory of the ledgers when none runs.
pub(crate) async fn ask<E>(global: &Global, path: &str, offline: impl FnOnce(PathBuf) -> Result<Value, E>) -> anyhow::Result<Value>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let paths = global.paths()?;
    match if_running(Client::new(&paths).get(path).await)? {
        Some(answer) => Ok(answer),
        None => Ok(offline(directory(&paths)?)?),
    }
}

/// As [`ask`], for one thing that may not exist; `unknown` is what is said then.
pub(crate) async fn find<E>(
    global: &Global,
    unknown: String,
    path: &str,
    offline: impl FnOnce(PathBuf) -> Result<Option<Value>, E>,
) -> anyhow::Result<Value>
where
    anyhow::Error: From<E>,
{
    let paths = global.paths()?;
    let answer = match if_running(Client::new(&paths).get(path).await)? {
        Some(answer) => Some(answer),
        None => offline(directory(&paths)?)?,
    };
    answer.ok_or_else(|| Failure::not_found(unknown).into())
}

fn directory(paths: &Paths) -> anyhow::Result<PathBuf> {
    let loaded = configuration(paths)?;
    Ok(paths.data_dir(&loaded.config.ledgers.directory))
}
