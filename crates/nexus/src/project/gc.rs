//! What could be put away: projects with their size, their age, and what would be lost with them. Putting one away moves
//! its directory aside, and deletes it only where that is asked for. Work that is nowhere else stays unless forced.

use super::coordinate::Coordinate;
use super::git::Git;
use super::prepare::{PrepareError, Preparer};
use super::tree;
use crate::clock;
use crate::error_text::describe;
use crate::ledger::copy::sync_directory;
use crate::ledger::nexus::{MarkProject, ProjectRow, projects};
use serde::Serialize;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Where archived projects lie, within the directory of the projects.
const ARCHIVE: &str = ".archive";
/// Projects that are looked at for one list.
const LISTED_MAX: usize = 1000;

/// One project on the disk.
#[derive(Debug, Clone, Serialize)]
pub struct Kept {
    pub project: String,
    pub slug: String,
    pub title: String,
    pub path: String,
    pub status: String,
    pub running: bool,
    pub bytes: u64,
    /// Unix ms.
    pub last_used: Option<i64>,
    /// What would be lost with it; nobody knows where it can't be said.
    pub unsaved: Vec<String>,
}

/// What was done with one that was to be put away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PutAway {
    Archived,
    Deleted,
    /// It had been archived before.
    Before,
    /// Somebody had removed its directory by hand.
    Missing,
}

/// What became of one that was put away.
#[derive(Debug, Clone, Serialize)]
pub struct Archived {
    pub project: String,
    pub done: PutAway,
    /// Where it was moved now; nowhere, unless it was.
    pub path: Option<String>,
}

impl Preparer {
    /// The projects that lie on the disk and were not used for `idle_ms`, those used longest ago first.
    ///
    /// # Errors
    /// [`PrepareError`] when the ledger can't be read.
    pub async fn disposable(&self, idle_ms: i64) -> Result<Vec<Kept>, PrepareError> {
        let before = clock::wall_ms().saturating_sub(idle_ms);
        let mut rows = self.ledgers().nexus.readers.read(projects).await?;
        rows.retain(|row| row.status != "archived" && row.last_used.unwrap_or(row.created_at) <= before);
        rows.sort_by_key(|row| row.last_used.unwrap_or(row.created_at));
        let git = self.git(&self.settings());
        let mut found = Vec::new();
        for row in rows.into_iter().take(LISTED_MAX) {
            let path = PathBuf::from(&row.path);
            if path.symlink_metadata().is_ok() {
                let running = Coordinate::parse(&row.coordinate).is_ok_and(|coordinate| self.runs(&coordinate));
                found.push(kept(&git, row, &path, running).await);
            }
        }
        Ok(found)
    }

    /// Moves a project's directory aside, or deletes it. Its next event has it prepared anew. One that was put away stays
    /// so. Whoever calls this has stopped it.
    ///
    /// # Errors
    /// [`PrepareError`]; with work in it that is nowhere else, unless `force`.
    pub async fn archive(&self, row: &ProjectRow, delete: bool, force: bool) -> Result<Archived, PrepareError> {
        let Ok(coordinate) = Coordinate::parse(&row.coordinate) else { return Err(PrepareError::Unknown { name: row.coordinate.clone() }) };
        // None is prepared meanwhile.
        let _turn = self.turn(&coordinate).await;
        // It may have been prepared, or put away, since whoever asks has looked.
        let known = self.row(&coordinate).await?;
        let row = known.as_ref().unwrap_or(row);
        let done = |done: PutAway, path: Option<String>| Archived { project: row.coordinate.clone(), done, path };
        let path = PathBuf::from(&row.path);
        if row.status == "archived" {
            let aside = path.with_file_name(ARCHIVE);
            let reason = format!("it is archived already; what was kept of it lies in `{}`", aside.display());
            return if delete { Err(PrepareError::Kept { reason }) } else { Ok(done(PutAway::Before, None)) };
        }
        if path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            self.mark_archived(row, &coordinate).await?;
            return Ok(done(PutAway::Missing, None));
        }
        let unsaved = unsaved(&self.git(&self.settings()), &path).await;
        if !force && !unsaved.is_empty() {
            let reason = format!("it has {}; push what is to stay, or say --force", unsaved.join(", "));
            return Err(PrepareError::Kept { reason });
        }
        let name = format!("{}-{}", row.slug, clock::wall_ms());
        let moved = path.clone();
        let aside = super::prepare::blocking(move || move_aside(&moved, &name)).await;
        let aside = aside.map_err(|source| PrepareError::Io { operation: "archive", path: path.clone(), source })?;
        self.mark_archived(row, &coordinate).await?;
        if !delete {
            return Ok(done(PutAway::Archived, Some(aside.display().to_string())));
        }
        let gone = aside.clone();
        let removed = super::prepare::blocking(move || fs::remove_dir_all(gone)).await;
        removed.map_err(|source| PrepareError::Io { operation: "delete", path: aside, source })?;
        Ok(done(PutAway::Deleted, None))
    }

    /// Within the project's turn: one that is prepared after this is known again.
    async fn mark_archived(&self, row: &ProjectRow, project: &Coordinate) -> Result<(), PrepareError> {
        let mark = MarkProject { coordinate: row.coordinate.clone(), status: "archived".to_owned(), reason: None, at: clock::wall_ms() };
        self.ledgers().nexus.writer.write_until_done(mark).await?;
        self.forget(project);
        Ok(())
    }
}

async fn kept(git: &Git, row: ProjectRow, path: &Path, running: bool) -> Kept {
    let at = path.to_owned();
    let bytes = super::prepare::blocking(move || tree::bytes(&at, u64::MAX - 1)).await.unwrap_or(0);
    Kept {
        unsaved: unsaved(git, path).await,
        project: row.coordinate,
        slug: row.slug,
        title: row.title,
        path: row.path,
        status: row.status,
        running,
        bytes,
        last_used: row.last_used,
    }
}

/// What can't be said counts as something.
async fn unsaved(git: &Git, path: &Path) -> Vec<String> {
    if !Git::is_repository(path) {
        return vec!["files outside of any repository".to_owned()];
    }
    git.unsaved(path).await.unwrap_or_else(|error| vec![format!("work that git can't tell of: {}", describe(&error))])
}

/// By a rename within the parent directory, so that it is there or here.
fn move_aside(path: &Path, name: &str) -> io::Result<PathBuf> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let archive = parent.join(ARCHIVE);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&archive)?;
    let aside = archive.join(name);
    crate::torture::rename(path, &aside)?;
    sync_directory(&archive)?;
    sync_directory(parent)?;
    Ok(aside)
}
