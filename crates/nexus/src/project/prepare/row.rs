//! What the ledger knows of a project: how it stands, why, and what it was prepared from. It prepares nothing.

use super::{PrepareError, Prepared, Preparer};
use crate::clock;
use crate::error_text::describe;
use crate::ledger::nexus::{MarkProject, ProjectRow, SaveProject, project};
use crate::project::coordinate::Coordinate;
use crate::project::definition::Definition;
use ::nostr::event::Event;
use std::path::Path;

impl Preparer {
    pub(in crate::project) async fn row(&self, of: &Coordinate) -> Result<Option<ProjectRow>, PrepareError> {
        let coordinate = of.to_string();
        Ok(self.inner.ledgers.nexus.readers.read(move |connection| project(connection, &coordinate)).await?)
    }

    pub(super) async fn save(&self, row: ProjectRow) -> Result<(), PrepareError> {
        if let (Some(id), Ok(project)) = (&row.definition_id, Coordinate::parse(&row.coordinate)) {
            self.inner.roster.set_definition(&project, id);
        }
        Ok(self.inner.ledgers.nexus.writer.write_until_done(SaveProject { row }).await?)
    }

    /// The configuration may have changed since it was prepared, and who works in it.
    pub(super) async fn note_readiness(&self, definition: &Definition, row: &ProjectRow, prepared: &Prepared) -> Result<(), PrepareError> {
        let (status, reason) = readiness_of(prepared);
        if row.status == status && row.reason == reason && row.agents == prepared.pubkeys() {
            return Ok(());
        }
        self.save(row_of(definition, Path::new(&row.path), (status, reason), None, prepared.pubkeys())).await
    }

    pub(super) async fn note_failure(&self, of: &Coordinate, present: Option<&ProjectRow>, error: &PrepareError) {
        let reason = describe(error);
        tracing::error!(project = %of, error = %reason, "a project could not be prepared");
        let status = present.map_or("discovered", |row| row.status.as_str()).to_owned();
        let mark = MarkProject { coordinate: of.to_string(), status, reason: Some(reason), at: clock::wall_ms() };
        if let Err(error) = self.inner.ledgers.nexus.writer.write_until_done(mark).await {
            tracing::warn!(%error, project = %of, "why a project could not be prepared was not put down");
        }
    }
}

/// What is put down of a project; only what was prepared from `event` as its definition.
pub(super) fn row_of(
    definition: &Definition,
    path: &Path,
    (status, reason): (&str, Option<String>),
    event: Option<&Event>,
    agents: Vec<String>,
) -> ProjectRow {
    let now = clock::wall_ms();
    ProjectRow {
        coordinate: definition.coordinate.to_string(),
        slug: definition.coordinate.slug(),
        path: path.to_string_lossy().into_owned(),
        title: definition.title.clone(),
        status: status.to_owned(),
        reason,
        quarantined: None,
        definition_id: event.map(|event| event.id.to_hex()),
        definition: event.map(Event::as_json),
        agents,
        problems: Vec::new(),
        prepared_at: event.map(|_| now),
        last_used: None,
        created_at: now,
        updated_at: now,
    }
}

/// How it stands, and why.
pub(in crate::project) fn readiness_of(prepared: &Prepared) -> (&'static str, Option<String>) {
    if prepared.missing.is_empty() { ("ready", None) } else { ("needs_configuration", Some(prepared.missing.join("; "))) }
}

/// Whether it was prepared to the end, and its directory is still there.
pub(in crate::project) fn is_there(row: &ProjectRow) -> bool {
    let is_done = matches!(row.status.as_str(), "ready" | "needs_configuration") && row.definition.is_some();
    is_done && Path::new(&row.path).symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
}

/// What lies somewhere already stays there.
pub(super) fn check_place(row: &ProjectRow, wanted: &Path) -> Result<(), PrepareError> {
    let present = Path::new(&row.path);
    let real = |path: &Path| path.canonicalize().ok();
    if present == wanted || real(present).is_some_and(|present| real(wanted) == Some(present)) {
        return Ok(());
    }
    Err(PrepareError::Placed { project: row.slug.clone(), path: present.to_owned() })
}
