//! Which project a person means, and how it lies there. It asks the ledger and looks at files, never at relays. It
//! makes the directories of `.tenex/` that aren't there, and changes nothing else.

use super::source::blocking;
use super::{PrepareError, Prepared, Preparer};
use crate::ledger::nexus::{ProjectRow, project_named};
use crate::project::coordinate::Coordinate;
use crate::project::definition::Definition;
use crate::project::files::Tenex;
use ::nostr::event::Event;
use std::path::Path;

impl Preparer {
    /// The project that a person means: by coordinate, naddr, slug or the beginning of one.
    ///
    /// # Errors
    /// [`PrepareError::Unknown`] when there is none, or several; [`PrepareError::Name`] for an address that can't be read.
    pub async fn find(&self, name: &str) -> Result<ProjectRow, PrepareError> {
        let wanted = Coordinate::meant(name)?.map_or_else(|| name.to_owned(), |coordinate| coordinate.to_string());
        let found = self.inner.ledgers.nexus.readers.read(move |connection| project_named(connection, &wanted)).await?;
        found.ok_or_else(|| PrepareError::Unknown { name: name.to_owned() })
    }

    /// The project that a person means, known or not: one that isn't is named by its address.
    ///
    /// # Errors
    /// [`PrepareError::Name`] for what can't be a project's address; else as [`Self::find`].
    pub async fn wanted(&self, name: &str) -> Result<Coordinate, PrepareError> {
        match Coordinate::meant(name)? {
            Some(coordinate) => {
                coordinate.check_kind(&self.settings().kinds)?;
                Ok(coordinate)
            }
            None => {
                let row = self.find(name).await?;
                Coordinate::parse(&row.coordinate).map_err(|_| PrepareError::Unknown { name: name.to_owned() })
            }
        }
    }

    /// Where the repository of the project in `path` was cloned from, as its directory has it.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub async fn repo_url(&self, path: &Path) -> Result<Option<String>, PrepareError> {
        let path = path.to_owned();
        let config = blocking(move || Tenex::open(&path).and_then(|tenex| tenex.config())).await?;
        Ok(config.and_then(|config| config.repo_url))
    }

    /// What was installed and asked for, as it is now.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub async fn look(&self, row: &ProjectRow) -> Result<(Definition, Prepared), PrepareError> {
        let settings = self.settings();
        let definition = defined(row)?;
        let prepared = self.load(&definition, &settings, Path::new(&row.path)).await?;
        Ok((definition, prepared.with_problems(&row.problems)))
    }
}

/// What a project was prepared from last.
///
/// # Errors
/// [`PrepareError::Unknown`] for one that never was, [`PrepareError::Definition`].
pub(crate) fn defined(row: &ProjectRow) -> Result<Definition, PrepareError> {
    let event = row.definition.as_deref().and_then(|json| Event::from_json(json).ok());
    let event = event.ok_or_else(|| PrepareError::Unknown { name: row.coordinate.clone() })?;
    Definition::of(&event).map_err(|source| PrepareError::Definition { project: row.coordinate.clone(), source })
}
