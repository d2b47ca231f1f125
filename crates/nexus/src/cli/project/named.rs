//! Which project a verb that needs no daemon means: by its address, or by a name that the daemon, or without one the
//! ledger, knows. It changes nothing.

use crate::cli::client::encoded;
use crate::cli::failure::{Exit, Failure};
use crate::cli::{ledger, running};
use crate::daemon::Paths;
use crate::error_text::describe;
use crate::ledger::nexus::project_named;
use crate::ledger::{Ledger, Readers};
use crate::project::coordinate::Coordinate;
use crate::unknown;
use anyhow::Context;

/// The project of this name; one that isn't known yet is named by its address.
pub(super) fn find(name: &str, paths: &Paths) -> anyhow::Result<Coordinate> {
    let meant = Coordinate::meant(name).map_err(|error| Failure::new(Exit::Usage, describe(&error)))?;
    if let Some(coordinate) = meant {
        return Ok(coordinate);
    }
    let known = match running::ask(paths, &format!("/control/prepare/show/{}", encoded(name)))? {
        Some(shown) => shown["project"]["coordinate"].as_str().unwrap_or_default().to_owned(),
        None => stored(name, paths)?,
    };
    Coordinate::parse(&known).with_context(|| format!("the project `{name}` is kept under a name that can't be read"))
}

/// From the ledger, which no daemon has open.
fn stored(name: &str, paths: &Paths) -> anyhow::Result<String> {
    let file = paths.data_dir(&ledger::configuration(paths)?.config.ledgers.directory).join(Ledger::Nexus.file_name());
    // Where no daemon ever ran, nobody knows a project.
    let row = if file.exists() { Readers::new(file).read_now(|connection| project_named(connection, name))? } else { None };
    Ok(row.ok_or_else(|| Failure::not_found(unknown::project(name)))?.coordinate)
}
