//! Automations and plugins in a backup: the files of two directories, listed and copied as they are. Copies nothing
//! behind a symbolic link, opens nothing that could make it wait, and doesn't know what a plugin is. `programs/put`
//! has the way back.
//!
//! They are listed in a file of their own, whose digest is in the manifest: there may be many.

use super::manifest::{Entry, Fingerprint};
use super::{Progress, Watch};
use crate::file_error::FileError;
use crate::ledger::copy::sync_directory;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

mod put;

pub use put::Outcome;
pub(super) use put::{bytes_to_copy, read_listing, stage, stage_of};

/// The list of all files, within a backup.
pub const PROGRAMS_FILE: &str = "programs.json";
/// Files and directories, of both places together.
const ENTRIES_MAX: usize = 50_000;
const BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
const LEVELS_MAX: usize = 32;
/// Longest list, in bytes.
const LISTING_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Things left out that are named; more are counted.
const NAMED_MAX: usize = 20;
/// What is kept of a mode: nobody's program becomes another user's by a restore.
const MODE_BITS: u32 = 0o777;

/// Where automations and plugins lie.
#[derive(Debug, Clone)]
pub struct Places {
    pub automations: PathBuf,
    pub plugins: PathBuf,
    /// Directories that are never part of it, even if they lie below those.
    pub never: Vec<PathBuf>,
}

/// One of the two directories, under the name that it has within a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Root {
    Automations,
    Plugins,
}

impl Root {
    pub(super) const ALL: [Self; 2] = [Self::Automations, Self::Plugins];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Automations => "state/automations",
            Self::Plugins => "plugins",
        }
    }

    fn of(self, places: &Places) -> &Path {
        match self {
            Self::Automations => &places.automations,
            Self::Plugins => &places.plugins,
        }
    }

    /// What follows this directory in a name of the list.
    fn below(self, name: &str) -> &str {
        name.strip_prefix(self.name()).unwrap_or(name).trim_start_matches('/')
    }

    /// Whether a name of the list is this directory's, or lies in it.
    fn holds(self, name: &str) -> bool {
        name.strip_prefix(self.name()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ProgramsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("`{path}` holds more than {what}, which is too much for a backup; move out of it what is no plugin or automation")]
    TooMuch { path: PathBuf, what: String },
    /// Of a backup that is to be restored.
    #[error("`{path}` is not as its backup was made: its content was changed, or it is missing. Nothing was changed")]
    Changed { path: PathBuf },
    #[error("it was called off")]
    Stopped,
}

/// What a backup has of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    pub files: u64,
    pub bytes: u64,
    /// What is there and could not be copied, with why; the first few.
    pub left_out: Vec<String>,
    /// How many more there are.
    pub left_out_more: u64,
}

impl Programs {
    fn leave_out(&mut self, path: &Path, why: &str) {
        if self.left_out.len() < NAMED_MAX {
            self.left_out.push(format!("{}: {why}", path.display()));
        } else {
            self.left_out_more += 1;
        }
    }
}

/// Everything that was copied, by its path within the backup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listing {
    /// With their modes.
    directories: BTreeMap<String, u32>,
    files: BTreeMap<String, Program>,
}

impl Listing {
    /// As it is written.
    ///
    /// # Errors
    /// When nobody would read one that long.
    pub(super) fn text(&self, path: &Path) -> Result<Vec<u8>, ProgramsError> {
        let text = serde_json::to_vec(self).map_err(io::Error::from).map_err(FileError::of("write", path))?;
        if text.len() as u64 >= LISTING_BYTES_MAX {
            let what = format!("a list of {} MiB can name", LISTING_BYTES_MAX / super::MIB);
            return Err(ProgramsError::TooMuch { path: path.to_owned(), what });
        }
        Ok(text)
    }
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Program {
    mode: u32,
    #[serde(flatten)]
    entry: Entry,
}

/// What lies in the two directories.
#[derive(Debug, Default)]
pub(super) struct Found {
    directories: BTreeMap<String, u32>,
    files: BTreeMap<String, Origin>,
    pub(super) bytes: u64,
    summary: Programs,
}

/// Where a file lies below a directory that somebody named.
#[derive(Debug)]
struct Origin {
    top: PathBuf,
    below: String,
}

impl Origin {
    fn path(&self) -> PathBuf {
        self.top.join(&self.below)
    }

    /// Opens it through directories that are no links, whatever came in the place of one after it was found.
    fn open(&self) -> Result<File, Errno> {
        let (directory, path) = (OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Path::new(&self.below));
        // Named by somebody, so that a link is meant.
        let mut at = rustix::fs::open(&self.top, directory, Mode::empty())?;
        for part in path.parent().into_iter().flat_map(Path::components) {
            at = rustix::fs::openat(&at, part.as_os_str(), directory | OFlags::NOFOLLOW, Mode::empty())?;
        }
        // A FIFO that came in the place of the file would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let name = path.file_name().ok_or(Errno::INVAL)?;
        rustix::fs::openat(&at, name, flags, Mode::empty()).map(File::from)
    }
}

/// Looks what there is, without opening any of it. `to`, where the copies go, is no part of it.
///
/// # Errors
/// [`ProgramsError`].
pub(super) fn find(places: &Places, to: &Path) -> Result<Found, ProgramsError> {
    let mut found = Found::default();
    for root in Root::ALL {
        find_root(root, places, Some(to), &mut found)?;
    }
    Ok(found)
}

fn find_root(root: Root, places: &Places, to: Option<&Path>, found: &mut Found) -> Result<(), ProgramsError> {
    let never: Vec<(u64, u64)> =
        places.never.iter().map(PathBuf::as_path).chain(to).filter_map(|path| fs::metadata(path).ok()).map(|it| identity(&it)).collect();
    let top = root.of(places);
    // Named in the configuration, so that a link is meant.
    let metadata = match fs::metadata(top) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(FileError::of("look at", top)(source).into()),
    };
    if !metadata.is_dir() || never.contains(&identity(&metadata)) {
        found.summary.leave_out(top, "no directory of its own");
        return Ok(());
    }
    found.directories.insert(root.name().to_owned(), metadata.mode() & MODE_BITS);
    let mut waiting = vec![(top.to_owned(), root.name().to_owned(), 1)];
    while let Some((directory, name, level)) = waiting.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // removed meanwhile
            Err(source) => return Err(FileError::of("read", &directory)(source).into()),
        };
        for entry in entries {
            let path = entry.map_err(FileError::of("read", &directory))?.path();
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(FileError::of("look at", &path)(source).into()),
            };
            let Some(name) = path.file_name().and_then(|last| last.to_str()).map(|last| format!("{name}/{last}")) else {
                found.summary.leave_out(&path, "its name is not UTF-8");
                continue;
            };
            if metadata.is_dir() {
                if !never.contains(&identity(&metadata)) {
                    found.directories.insert(name.clone(), metadata.mode() & MODE_BITS);
                    waiting.push((path, name, level + 1));
                }
            } else if metadata.is_file() {
                found.bytes = found.bytes.saturating_add(metadata.len());
                let origin = Origin { top: top.to_owned(), below: root.below(&name).to_owned() };
                found.files.insert(name, origin);
            } else {
                found.summary.leave_out(&path, special(&metadata));
            }
            bounded(found, level, top)?;
        }
    }
    Ok(())
}

fn bounded(found: &Found, level: usize, top: &Path) -> Result<(), ProgramsError> {
    let too_much = |what: String| Err(ProgramsError::TooMuch { path: top.to_owned(), what });
    if found.directories.len() + found.files.len() > ENTRIES_MAX {
        return too_much(format!("{ENTRIES_MAX} files and directories"));
    }
    if found.bytes > BYTES_MAX {
        return too_much(format!("{} MiB", BYTES_MAX / super::MIB));
    }
    if level > LEVELS_MAX { too_much(format!("{LEVELS_MAX} levels of directories")) } else { Ok(()) }
}

/// Device and inode: one directory has many paths.
fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn special(metadata: &Metadata) -> &'static str {
    if metadata.is_symlink() { "a symbolic link, which is not followed" } else { "neither a file nor a directory" }
}

/// Copies what was found to `to`; the list of it, if there is anything, and what is to be told.
///
/// # Errors
/// [`ProgramsError`]; who called removes what was written.
pub(super) fn copy(found: Found, to: &Path, watch: &mut Watch<'_>) -> Result<(Option<Listing>, Programs), ProgramsError> {
    let Found { directories, files, summary: mut programs, .. } = found;
    if files.is_empty() {
        return Ok((None, programs));
    }
    (watch.tell)(Progress { doing: "copying", file: "automations and plugins".to_owned(), percent: 0 });
    for name in directories.keys() {
        let path = to.join(name);
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(FileError::of("create", &path))?;
    }
    let mut listing = Listing { directories, files: BTreeMap::new() };
    for (name, origin) in files {
        let Some((source, mode)) = open(&origin, &mut programs)? else { continue };
        let room = BYTES_MAX.saturating_sub(programs.bytes);
        // What is there is for this user alone; that it can be run is kept for who copies it by hand.
        let entry = copy_file(source, &origin.path(), &to.join(&name), 0o600 | (mode & 0o100), room, watch)?;
        programs.files += 1;
        programs.bytes = programs.bytes.saturating_add(entry.bytes);
        listing.files.insert(name, Program { mode, entry });
    }
    for name in listing.directories.keys().map(String::as_str).chain(["state"]) {
        let path = to.join(name);
        if path.is_dir() {
            sync_directory(&path).map_err(FileError::of("sync", &path))?;
        }
    }
    Ok((Some(listing), programs))
}

/// A file with its mode; `None` if it is gone, or is no file any more.
fn open(origin: &Origin, programs: &mut Programs) -> Result<Option<(File, u32)>, FileError> {
    let path = origin.path();
    let file = match origin.open() {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP | Errno::NXIO | Errno::NOTDIR) => {
            programs.leave_out(&path, "no file any more, but a symbolic link or a socket, or below one");
            return Ok(None);
        }
        Err(error) => return Err(FileError::of("read", &path)(error.into())),
    };
    let metadata = file.metadata().map_err(FileError::of("look at", &path))?;
    if metadata.is_file() {
        return Ok(Some((file, metadata.mode() & MODE_BITS)));
    }
    programs.leave_out(&path, special(&metadata));
    Ok(None)
}

/// Copies at most `room` bytes to a new file that a loss of power keeps.
fn copy_file(source: File, from: &Path, to: &Path, mode: u32, room: u64, watch: &Watch<'_>) -> Result<Entry, ProgramsError> {
    let target = OpenOptions::new().write(true).create_new(true).mode(mode).open(to);
    let mut target = target.map_err(FileError::of("create", to))?;
    let mut pass = |part: &[u8]| {
        if watch.stop.is_cancelled() { Err(io::Error::other("called off")) } else { target.write_all(part) }
    };
    let read = Fingerprint::read(&mut source.take(room.saturating_add(1)), &mut pass);
    if watch.stop.is_cancelled() {
        return Err(ProgramsError::Stopped);
    }
    let entry = read.map_err(FileError::of("copy", from))?.entry(None);
    if entry.bytes > room {
        return Err(ProgramsError::TooMuch { path: from.to_owned(), what: format!("{} MiB, with the others", BYTES_MAX / super::MIB) });
    }
    // Whatever the umask took away.
    let put = target.set_permissions(fs::Permissions::from_mode(mode)).and_then(|()| target.sync_all());
    put.map_err(FileError::of("write", to))?;
    Ok(entry)
}

#[cfg(test)]
#[path = "programs_tests.rs"]
mod tests;
