//! The way back: automations and plugins of a backup into a place that has none. What is there is never touched;
//! copies wait beside their place, checked, and get it by a rename.

use super::{Listing, Origin, Places, Program, ProgramsError, Root, copy_file, find_root, open};
use crate::backup::manifest::{Entry, Fingerprint};
use crate::backup::{Watch, private_directory};
use crate::file_error::FileError;
use crate::ledger::copy::{sync_directory, sync_directory_of};
use crate::torture;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// The end of a directory's name in which copies wait, beside their place.
const STAGE_ENDING: &str = ".restore-staged";

/// What became of the automations, or of the plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Those that are there are the backup's.
    Same,
    /// They are not, and stay.
    Differs,
    /// There were none; the backup's are in place.
    Restored,
    /// There are none, and the backup's could not be put there.
    NotPut,
    /// The backup has none.
    NotInBackup,
}

/// The list of the backup in `directory`; an error is a sentence about what is wrong with it.
pub(in crate::backup) fn read_listing(path: &Path, entry: &Entry) -> Result<Listing, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(super::LISTING_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(|error| format!("it can't be read: {error}"))?;
    let mut fingerprint = Fingerprint::default();
    fingerprint.add(&bytes);
    if fingerprint.entry(None) != *entry {
        return Err("its content was changed".to_owned());
    }
    let listing: Listing = serde_json::from_slice(&bytes).map_err(|error| format!("it is no list of files: {error}"))?;
    let stray = listing.directories.keys().chain(listing.files.keys()).find(|name| !is_plain(name)).cloned();
    match stray {
        Some(name) => Err(format!("it lists `{name}`, which leads elsewhere")),
        None => Ok(listing),
    }
}

/// A path within one of the two directories, and nowhere else.
fn is_plain(name: &str) -> bool {
    Root::ALL.iter().any(|root| root.holds(name)) && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

impl Listing {
    fn has(&self, root: Root) -> bool {
        self.files.keys().any(|name| root.holds(name))
    }

    /// What is in one of the two.
    fn of(&self, root: Root) -> Self {
        Self {
            directories: self.directories.iter().filter(|(name, _)| root.holds(name)).map(|(name, mode)| (name.clone(), *mode)).collect(),
            files: self.files.iter().filter(|(name, _)| root.holds(name)).map(|(name, file)| (name.clone(), file.clone())).collect(),
        }
    }
}

/// Checked copies that wait for their places. Those that don't get there are removed.
#[derive(Debug, Default)]
pub(in crate::backup) struct Staged {
    waiting: Vec<Waiting>,
    /// Of automations and of plugins.
    outcomes: [Option<Outcome>; 2],
}

/// Copies of one of the two.
#[derive(Debug)]
struct Waiting {
    n: usize,
    stage: PathBuf,
    place: PathBuf,
    /// Where they were copied from.
    origin: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        for waiting in &self.waiting {
            drop(fs::remove_dir_all(&waiting.stage)); // the next restore does it otherwise
        }
    }
}

/// Copies what has no place taken, and compares the rest. Nothing is changed but beside the places.
///
/// # Errors
/// [`ProgramsError`]; a file that isn't as its backup was made among them.
pub(in crate::backup) fn stage(
    listing: Option<&Listing>,
    backup: &Path,
    places: &Places,
    watch: &Watch<'_>,
) -> Result<Staged, ProgramsError> {
    let mut staged = Staged::default();
    for (n, root) in Root::ALL.into_iter().enumerate() {
        let place = root.of(places);
        let stage = stage_of(place);
        clear(&stage)?; // of one that was killed
        let Some(listing) = listing.filter(|listing| listing.has(root)).map(|listing| listing.of(root)) else { continue };
        staged.outcomes[n] = Some(if is_taken(place)? {
            if is_same(&listing, root, places) { Outcome::Same } else { Outcome::Differs }
        } else {
            staged.waiting.push(Waiting { n, stage: stage.clone(), place: place.to_owned(), origin: backup.join(root.name()) });
            fill(&listing, root, backup, &stage, watch)?;
            Outcome::Restored
        });
    }
    Ok(staged)
}

impl Staged {
    /// Gives all copies their places; what became of automations and plugins, and what is to be told of it. Where that
    /// fails, as at a mount point, the place stays as it is.
    pub(in crate::backup) fn put(mut self) -> ([Outcome; 2], Vec<String>) {
        let mut warnings = Vec::new();
        for Waiting { n, stage, place, origin } in &self.waiting {
            let (place_shown, origin) = (place.display(), origin.display());
            if let Err(error) = torture::rename(stage, place) {
                self.outcomes[*n] = Some(Outcome::NotPut);
                warnings.push(format!("`{place_shown}` could not be put in place ({error}); copy what is in `{origin}` there yourself"));
            } else if let Err(error) = sync_directory_of(place) {
                warnings.push(format!("`{place_shown}` is in place, and a loss of power may take it back ({error}); run `sync`"));
            }
        }
        (self.outcomes.map(|outcome| outcome.unwrap_or(Outcome::NotInBackup)), warnings)
    }
}

/// Whether anything is there, were it a link that leads nowhere. An empty directory is nothing.
fn is_taken(place: &Path) -> Result<bool, FileError> {
    let metadata = match fs::symlink_metadata(place) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(FileError::of("look at", place)(source)),
    };
    if !metadata.is_dir() {
        return Ok(true);
    }
    let mut entries = fs::read_dir(place).map_err(FileError::of("read", place))?;
    Ok(entries.next().is_some())
}

/// What can't be compared is not the same.
fn is_same(listing: &Listing, root: Root, places: &Places) -> bool {
    let mut found = super::Found::default();
    if find_root(root, places, None, &mut found).is_err() || found.files.len() != listing.files.len() {
        return false;
    }
    let files: Option<BTreeMap<String, Program>> = found.files.iter().map(|(name, origin)| Some((name.clone(), look(origin)?))).collect();
    found.directories == listing.directories && files.as_ref() == Some(&listing.files)
}

fn look(origin: &Origin) -> Option<Program> {
    let (mut file, mode) = open(origin, &mut super::Programs::default()).ok()??;
    Some(Program { mode, entry: Fingerprint::read(&mut file, &mut |_: &[u8]| Ok(())).ok()?.entry(None) })
}

/// Bytes that are copied for what has no place taken.
///
/// # Errors
/// Of the file system.
pub(in crate::backup) fn bytes_to_copy(listing: &Listing, places: &Places) -> Result<u64, FileError> {
    let mut bytes = 0_u64;
    for root in Root::ALL {
        if !is_taken(root.of(places))? {
            bytes = listing.of(root).files.values().fold(bytes, |sum, file| sum.saturating_add(file.entry.bytes));
        }
    }
    Ok(bytes)
}

/// Where copies wait beside their place.
pub(in crate::backup) fn stage_of(place: &Path) -> PathBuf {
    let name = place.file_name().map_or_else(|| "programs".into(), |name| name.to_string_lossy());
    place.with_file_name(format!(".{name}{STAGE_ENDING}"))
}

fn clear(stage: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(stage) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::of("remove", stage)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Copies what the list has of one of the two, with its modes.
fn fill(listing: &Listing, root: Root, backup: &Path, stage: &Path, watch: &Watch<'_>) -> Result<(), ProgramsError> {
    if let Some(parent) = stage.parent() {
        private_directory(parent).map_err(FileError::of("create", parent))?;
    }
    let at = |name: &str| stage.join(root.below(name));
    for name in listing.directories.keys() {
        let path = at(name);
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(FileError::of("create", &path))?;
    }
    for (name, program) in &listing.files {
        let origin = Origin { top: backup.to_owned(), below: name.clone() };
        let from = origin.path();
        let changed = || ProgramsError::Changed { path: from.clone() };
        let (source, _) = open(&origin, &mut super::Programs::default())?.ok_or_else(changed)?;
        let copied = copy_file(source, &from, &at(name), program.mode & super::MODE_BITS, program.entry.bytes, watch);
        match copied {
            Ok(entry) if entry == program.entry => {}
            // Longer than it was.
            Ok(_) | Err(ProgramsError::TooMuch { .. }) => return Err(changed()),
            Err(error @ (ProgramsError::File(_) | ProgramsError::Changed { .. } | ProgramsError::Stopped)) => return Err(error),
        }
    }
    // The innermost first: who may not write to one can't write to what is in it.
    for (name, mode) in listing.directories.iter().rev() {
        let path = at(name);
        let mode = Permissions::from_mode((mode & super::MODE_BITS) | 0o700);
        let set = sync_directory(&path).and_then(|()| fs::set_permissions(&path, mode));
        set.map_err(FileError::of("set the mode of", &path))?;
    }
    Ok(())
}
