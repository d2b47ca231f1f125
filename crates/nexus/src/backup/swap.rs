//! Puts checked files in the place of the present ledgers, which are moved aside, never deleted.
//!
//! Theory of operation. The new files wait in a directory beside the ledgers, so that each gets its place
//! by a rename. A marker is written first and removed last; as long as it lies there no daemon starts.
//! It lists the files that are to be moved aside, as they were found in the beginning. Nothing gets its
//! place before all of those have left it, and nothing that lies aside is ever replaced. So whoever comes
//! after a kill can tell for each file whether it is an old one that is still to be saved or a new one that
//! may be overwritten: one that is listed and doesn't lie aside is old.

use super::{BACKUPS_DIRECTORY, moment, private_directory};
use crate::credential::write_private;
use crate::file_error::FileError;
use crate::ledger::Ledger;
use crate::ledger::copy::{COMPANIONS, beside, remove_if_there, sync_directory};
use crate::ledger::lock::RESTORE_MARKER;
use crate::torture;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Where the new files wait, beside the ledgers.
pub(crate) const STAGE_DIRECTORY: &str = "restore-staged";
/// How a directory is called in which the former ledgers lie.
const ASIDE_PREFIX: &str = "before-restore-";
/// Longest marker that is read, in bytes.
const MARKER_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum SwapError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("`{path}` is not as a restore wrote it; put the ledgers of `{}` in place yourself, then remove it", BACKUPS_DIRECTORY)]
    Marker { path: PathBuf },
}

/// A restore that exchanges files, as its marker tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    /// For people.
    source: String,
    /// The name of the directory for the former files, below that of the backups.
    aside: String,
    /// What lay in the ledger directory at first.
    files: Vec<String>,
}

/// What is exchanged, and where.
#[derive(Debug)]
pub(super) struct Swap<'a> {
    ledgers: &'a Path,
    marker: Marker,
}

/// Where new files are to be put before they are swapped in.
pub(crate) fn stage(ledgers: &Path) -> PathBuf {
    ledgers.join(STAGE_DIRECTORY)
}

/// The names of a ledger's files, the database first: without it nobody reads what belongs to it.
fn names(ledger: Ledger) -> impl Iterator<Item = String> {
    let name = ledger.file_name();
    let companions = COMPANIONS.map(|ending| format!("{name}{ending}"));
    std::iter::once(name).chain(companions)
}

fn is_there(path: &Path) -> Result<bool, FileError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(FileError::of("look at", path)(source)),
    }
}

impl<'a> Swap<'a> {
    /// Begins to put the backup at `source` in place, or goes on with what was begun; from here on only
    /// its end helps.
    ///
    /// # Errors
    /// [`SwapError`].
    pub(super) fn begin(ledgers: &'a Path, source: &Path, now_ms: i64) -> Result<Self, SwapError> {
        let path = ledgers.join(RESTORE_MARKER);
        let marker = match read_marker(&path)? {
            Some(begun) => Marker { source: source.display().to_string(), ..begun },
            None => {
                let mut files = Vec::new();
                for name in Ledger::ALL.into_iter().flat_map(names) {
                    if is_there(&ledgers.join(&name))? {
                        files.push(name);
                    }
                }
                Marker { source: source.display().to_string(), aside: new_aside(ledgers, now_ms)?, files }
            }
        };
        let swap = Self { ledgers, marker };
        if !swap.marker.files.is_empty() {
            let aside = swap.aside();
            private_directory(&aside).map_err(FileError::of("create", &aside))?;
            swap.sync(&[ledgers, &ledgers.join(BACKUPS_DIRECTORY)])?;
        }
        let text = serde_json::to_string(&swap.marker).map_err(io::Error::from).map_err(FileError::of("write", &path))?;
        write_private(&path, text.as_bytes()).map_err(FileError::of("write", &path))?;
        swap.sync(&[ledgers])?;
        Ok(swap)
    }

    /// Exchanges the files, and does what belongs to them while no daemon starts yet; where the former ones lie then, if
    /// there were any, and what that came to.
    ///
    /// # Errors
    /// [`SwapError`]; the marker stays, and another restore goes on.
    pub(super) fn finish<T>(self, then: impl FnOnce() -> T) -> Result<(Option<PathBuf>, T), SwapError> {
        self.marker.files.iter().try_for_each(|name| self.move_aside(name))?;
        if !self.marker.files.is_empty() {
            self.sync(&[&self.aside(), self.ledgers])?;
        }
        for ledger in Ledger::ALL {
            self.put_in_place(ledger)?;
        }
        let stage = stage(self.ledgers);
        self.sync(&[self.ledgers, &stage])?;
        let done = then();
        let marker = self.ledgers.join(RESTORE_MARKER);
        fs::remove_file(&marker).map_err(FileError::of("remove", &marker))?;
        self.sync(&[self.ledgers])?;
        drop(fs::remove_dir_all(&stage)); // nothing of use is in it; the next restore removes it otherwise
        Ok(((!self.marker.files.is_empty()).then(|| self.aside()), done))
    }

    fn aside(&self) -> PathBuf {
        self.ledgers.join(BACKUPS_DIRECTORY).join(&self.marker.aside)
    }

    /// What lies aside already is the old one; what has its name now is not.
    fn move_aside(&self, name: &str) -> Result<(), FileError> {
        let (from, to) = (self.ledgers.join(name), self.aside().join(name));
        if is_there(&to)? || !is_there(&from)? {
            return Ok(());
        }
        move_file(&from, &to).map_err(FileError::of("move aside", &from))
    }

    fn put_in_place(&self, ledger: Ledger) -> Result<(), FileError> {
        let (from, to) = (stage(self.ledgers).join(ledger.file_name()), self.ledgers.join(ledger.file_name()));
        // A log of another file would be taken for this one's.
        for ending in COMPANIONS {
            let companion = beside(&to, ending);
            remove_if_there(&companion).map_err(FileError::of("remove", &companion))?;
        }
        torture::rename(&from, &to).map_err(FileError::of("put in place", &to))
    }

    fn sync(&self, directories: &[&Path]) -> Result<(), FileError> {
        directories.iter().try_for_each(|path| sync_directory(path).map_err(FileError::of("sync", path)))
    }
}

/// A name that no former restore has used: what lies aside is never replaced.
fn new_aside(ledgers: &Path, now_ms: i64) -> Result<String, SwapError> {
    let mut at_ms = now_ms;
    loop {
        let name = format!("{ASIDE_PREFIX}{}", moment(at_ms));
        if !is_there(&ledgers.join(BACKUPS_DIRECTORY).join(&name))? {
            return Ok(name);
        }
        at_ms += 1; // ends at the first name that is free
    }
}

/// Whether a swap was begun and not finished.
pub(super) fn is_begun(ledgers: &Path) -> Result<bool, SwapError> {
    read_marker(&ledgers.join(RESTORE_MARKER)).map(|marker| marker.is_some())
}

/// The marker, if there is one. Names in it lead nowhere but to where a restore puts files.
fn read_marker(path: &Path) -> Result<Option<Marker>, SwapError> {
    use std::io::Read;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FileError::of("open", path)(source).into()),
    };
    let mut bytes = Vec::new();
    file.take(MARKER_BYTES_MAX).read_to_end(&mut bytes).map_err(FileError::of("read", path))?;
    let strange = || SwapError::Marker { path: path.to_owned() };
    let marker: Marker = serde_json::from_slice(&bytes).map_err(|_| strange())?;
    let known: Vec<String> = Ledger::ALL.into_iter().flat_map(names).collect();
    let is_plain = marker.aside.starts_with(ASIDE_PREFIX) && !marker.aside.contains('/');
    if is_plain && marker.files.iter().all(|name| known.contains(name)) { Ok(Some(marker)) } else { Err(strange()) }
}

/// A rename; a copy where the backups lie on another file system.
fn move_file(from: &Path, to: &Path) -> io::Result<()> {
    match torture::rename(from, to) {
        Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
            let partial = beside(to, ".partial");
            fs::copy(from, &partial)?;
            File::open(&partial)?.sync_all()?;
            torture::rename(&partial, to)?;
            // Its name must be safe before the other copy goes.
            to.parent().map_or(Ok(()), sync_directory)?;
            fs::remove_file(from)
        }
        renamed => renamed,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeMap;

    /// All files of a directory by name, directories left out.
    fn files(directory: &Path) -> BTreeMap<String, String> {
        let entries = fs::read_dir(directory).unwrap().map(Result::unwrap).filter(|entry| entry.file_type().unwrap().is_file());
        entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read_to_string(entry.path()).unwrap())).collect()
    }

    fn set(texts: &[(&str, &str)]) -> BTreeMap<String, String> {
        texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    /// Old ledgers, two of them with a log, one missing.
    fn old() -> BTreeMap<String, String> {
        set(&[("events.db", "old"), ("events.db-wal", "old log"), ("nexus.db", "old"), ("nexus.db-shm", "old"), ("agents.db", "old")])
    }

    fn new(text: &str) -> BTreeMap<String, String> {
        Ledger::ALL.iter().map(|ledger| (ledger.file_name(), text.to_owned())).collect()
    }

    fn write(directory: &Path, files: &BTreeMap<String, String>) {
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
    }

    fn put_stage(ledgers: &Path, text: &str) {
        drop(fs::remove_dir_all(stage(ledgers)));
        fs::create_dir(stage(ledgers)).unwrap();
        write(&stage(ledgers), &new(text));
    }

    #[test]
    fn the_new_files_are_in_place_and_the_old_ones_aside() {
        let directory = tempfile::tempdir().unwrap();
        let ledgers = directory.path();
        write(ledgers, &old());
        put_stage(ledgers, "new");
        let aside = Swap::begin(ledgers, Path::new("/b"), 0).unwrap().finish(|| ()).unwrap().0.unwrap();
        assert_eq!(files(ledgers), new("new"));
        assert_eq!(files(&aside), old());
        assert!(aside.starts_with(ledgers.join("backup")) && !stage(ledgers).exists());
        put_stage(ledgers, "newer");
        let second = Swap::begin(ledgers, Path::new("/b"), 0).unwrap().finish(|| ()).unwrap().0.unwrap();
        assert_ne!(second, aside, "at the same moment");
        assert_eq!((files(&aside), files(&second)), (old(), new("new")));
    }

    #[test]
    fn where_nothing_was_nothing_is_moved_aside() {
        let directory = tempfile::tempdir().unwrap();
        put_stage(directory.path(), "new");
        assert_eq!(Swap::begin(directory.path(), Path::new("/b"), 0).unwrap().finish(|| ()).unwrap().0, None);
        assert_eq!(files(directory.path()), new("new"));
        assert!(!directory.path().join("backup").exists());
    }

    #[test]
    fn what_belongs_to_the_files_is_done_before_a_daemon_may_start() {
        let directory = tempfile::tempdir().unwrap();
        let ledgers = directory.path();
        put_stage(ledgers, "new");
        let swap = Swap::begin(ledgers, Path::new("/b"), 0).unwrap();
        let are_there = || Ledger::ALL.into_iter().all(|ledger| ledgers.join(ledger.file_name()).exists());
        let (_, (are_new, is_held)) = swap.finish(|| (are_there(), is_begun(ledgers).unwrap())).unwrap();
        assert!(are_new && is_held && !is_begun(ledgers).unwrap());
    }

    /// Does the first `count` steps of a swap, as one that is killed then; false when there are fewer.
    fn killed_after(count: usize, swap: &Swap<'_>) -> bool {
        let moves = swap.marker.files.len();
        swap.marker.files.iter().take(count).for_each(|name| swap.move_aside(name).unwrap());
        let placed = count.saturating_sub(moves);
        Ledger::ALL.into_iter().take(placed).for_each(|ledger| swap.put_in_place(ledger).unwrap());
        placed < Ledger::ALL.len()
    }

    #[test]
    fn killed_at_any_step_another_restore_goes_on_and_loses_nothing() {
        for count in 0.. {
            let directory = tempfile::tempdir().unwrap();
            let ledgers = directory.path();
            write(ledgers, &old());
            put_stage(ledgers, "first");
            let more = killed_after(count, &Swap::begin(ledgers, Path::new("/first"), 0).unwrap());
            assert!(is_begun(ledgers).unwrap());
            // Somebody who looked into a file meanwhile may have left another log.
            fs::write(ledgers.join("events.db-wal"), if count < 2 { "old log" } else { "stray" }).unwrap();
            put_stage(ledgers, "second");
            let aside = Swap::begin(ledgers, Path::new("/second"), 99).unwrap().finish(|| ()).unwrap().0.unwrap();
            assert_eq!(files(ledgers), new("second"), "after {count} steps");
            assert_eq!(files(&aside), old(), "after {count} steps");
            assert!(!is_begun(ledgers).unwrap());
            assert_eq!(fs::read_dir(ledgers.join("backup")).unwrap().count(), 1, "the old files are in two places");
            if !more {
                return;
            }
        }
    }

    #[test]
    fn a_marker_of_somebody_else_leads_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let marker = directory.path().join(RESTORE_MARKER);
        for text in [
            "",
            "{}",
            r#"{"source":"/b","aside":"../../x","files":[]}"#,
            r#"{"source":"/b","aside":"before-restore-/../../x","files":[]}"#,
            r#"{"source":"/b","aside":"before-restore-1","files":["../nex.yaml"]}"#,
        ] {
            fs::write(&marker, text).unwrap();
            let refused = Swap::begin(directory.path(), Path::new("/b"), 0);
            assert!(matches!(refused, Err(SwapError::Marker { .. })), "{text}: {refused:?}");
        }
    }
}
