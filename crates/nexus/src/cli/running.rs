//! What a verb asks of the daemon, if one runs, before it looks at files itself: an answer, and where its files are.

use super::client::{Client, if_running};
use super::{Global, block_on};
use crate::daemon::Paths;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A running daemon's answer; nothing when none runs.
pub(crate) fn ask(paths: &Paths, path: &str) -> anyhow::Result<Option<Value>> {
    Ok(if_running(block_on(async { Client::new(paths).get(path).await })?)?)
}

/// The configuration file that a running daemon uses; nothing when none runs.
pub(crate) fn config_file(paths: &Paths) -> anyhow::Result<Option<PathBuf>> {
    let status = ask(paths, "/control/status")?;
    Ok(status.as_ref().and_then(|status| status["config_path"].as_str()).map(PathBuf::from))
}

/// The files that belong to the configuration a person names, by option or environment; else to that of the running daemon,
/// whose is `used`; else to the usual one.
pub(crate) fn meant(asked: Paths, used: Option<&Path>, global: &Global) -> anyhow::Result<Paths> {
    match used {
        Some(used) if global.config()?.is_none() => Ok(Paths::resolve(Some(used))?),
        Some(_) | None => Ok(asked),
    }
}

/// As [`meant`], having asked.
pub(crate) fn paths(global: &Global) -> anyhow::Result<Paths> {
    let asked = global.paths()?;
    if global.config()?.is_some() {
        return Ok(asked);
    }
    let used = config_file(&asked)?;
    meant(asked, used.as_deref(), global)
}
