//! What is safe on a disk and what isn't yet, while ops are applied to it one after the other.
//!
//! Contents of a file are safe once it was synced. Files are told apart by inode, so a rename takes nothing away.
//! Names are safe once their directory was synced, and everything that was done in that directory before. The creation of
//! a file is also safe once the file itself was synced, with the directories that lead to it: POSIX doesn't say so, but ext4, xfs
//! and btrfs do it, and SQLite relies on it. Within a directory names change in order, since these file systems keep a journal.

use super::log::{Op, What};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

pub(crate) type Names = BTreeMap<PathBuf, Entry>;

#[derive(Debug, Clone, Default)]
pub(crate) struct Disk<'a> {
    pub(crate) files: Vec<File<'a>>,
    /// Where in `files` the file with an inode number is. The number of a file that is gone may be given again.
    by_inode: HashMap<u64, usize>,
    /// Names that are safe.
    pub(crate) names: Names,
    /// What happened to names and isn't safe, the oldest first.
    pub(crate) waiting: Vec<Renaming>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct File<'a> {
    pub(crate) safe: Vec<u8>,
    /// What isn't safe, the oldest first.
    pub(crate) waiting: Vec<Change<'a>>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Change<'a> {
    Write { offset: u64, data: &'a [u8] },
    Resize { size: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    File(usize),
    Directory,
}

/// One change of names.
#[derive(Debug, Clone)]
pub(crate) enum Renaming {
    Create { path: PathBuf, file: usize },
    MakeDir { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
}

impl<'a> Disk<'a> {
    /// The effect of an op that has returned.
    pub(crate) fn finish(&mut self, op: &'a Op) -> Result<()> {
        self.issue(op)?;
        match &op.what {
            What::Sync { inode } => self.sync(*inode),
            What::SyncDir { path } => self.settle(|change| change.directories().contains(&path.as_path())),
            What::Begin
            | What::Create { .. }
            | What::MakeDir { .. }
            | What::Write { .. }
            | What::Truncate { .. }
            | What::Rename { .. }
            | What::Remove { .. }
            | What::RemoveDir { .. } => Ok(()),
        }
    }

    /// The effect of an op that has not returned: a sync has none.
    pub(crate) fn issue(&mut self, op: &'a Op) -> Result<()> {
        match &op.what {
            What::Write { inode, offset, data } => self.file(*inode)?.waiting.push(Change::Write { offset: *offset, data }),
            What::Truncate { inode, size } => self.file(*inode)?.waiting.push(Change::Resize { size: *size }),
            What::Create { path, inode } => {
                let file = self.files.len();
                self.files.push(File::default());
                self.by_inode.insert(*inode, file);
                self.waiting.push(Renaming::Create { path: path.clone(), file });
            }
            What::MakeDir { path } => self.waiting.push(Renaming::MakeDir { path: path.clone() }),
            What::Rename { from, to } => self.waiting.push(Renaming::Rename { from: from.clone(), to: to.clone() }),
            What::Remove { path } | What::RemoveDir { path } => self.waiting.push(Renaming::Remove { path: path.clone() }),
            What::Sync { .. } | What::SyncDir { .. } | What::Begin => {}
        }
        Ok(())
    }

    fn index(&self, inode: u64) -> Result<usize> {
        let file = self.by_inode.get(&inode).copied();
        file.with_context(|| format!("the log doesn't know the file with inode {inode}: it must begin with an empty directory"))
    }

    fn file(&mut self, inode: u64) -> Result<&mut File<'a>> {
        let index = self.index(inode)?;
        self.files.get_mut(index).context("a file has no place")
    }

    fn sync(&mut self, inode: u64) -> Result<()> {
        let index = self.index(inode)?;
        let file = self.file(inode)?;
        for change in std::mem::take(&mut file.waiting) {
            change.apply(&mut file.safe)?;
        }
        self.settle(|change| matches!(change, Renaming::Create { file, .. } if *file == index))
    }

    /// Makes these changes safe, and whatever came before them in their directories.
    fn settle(&mut self, is_wanted: impl Fn(&Renaming) -> bool) -> Result<()> {
        let mut directories: BTreeSet<PathBuf> = BTreeSet::new();
        let mut settled = vec![false; self.waiting.len()];
        for (change, settled) in self.waiting.iter().zip(&mut settled).rev() {
            let touched = change.directories();
            *settled = is_wanted(change) || touched.iter().any(|directory| directories.contains(*directory));
            if *settled {
                directories.extend(touched.into_iter().map(Path::to_path_buf));
            }
        }
        for (change, settled) in std::mem::take(&mut self.waiting).into_iter().zip(settled) {
            if settled {
                change.apply(&mut self.names)?;
            } else {
                self.waiting.push(change);
            }
        }
        Ok(())
    }
}

impl Change<'_> {
    pub(crate) fn apply(&self, contents: &mut Vec<u8>) -> Result<()> {
        match *self {
            Self::Write { offset, data } => {
                let start = usize::try_from(offset)?;
                let end = start.checked_add(data.len()).context("a write ends beyond all files")?;
                extend(contents, end);
                contents.get_mut(start..end).context("a write has no room")?.copy_from_slice(data);
            }
            Self::Resize { size } => contents.resize(usize::try_from(size)?, 0),
        }
        Ok(())
    }

    /// The file becomes as long as the write would make it, and nothing is written.
    pub(crate) fn grow_only(&self, contents: &mut Vec<u8>) -> Result<()> {
        match *self {
            Self::Write { offset, data } => {
                let end = usize::try_from(offset)?.checked_add(data.len()).context("a write ends beyond all files")?;
                extend(contents, end);
            }
            Self::Resize { .. } => {}
        }
        Ok(())
    }
}

fn extend(contents: &mut Vec<u8>, size: usize) {
    if contents.len() < size {
        contents.resize(size, 0);
    }
}

impl Renaming {
    /// The directories in which something changes. Making and removing a directory is also a change within it, so that
    /// nothing can be in a directory that isn't there; for the removal of a file that means nothing.
    pub(crate) fn directories(&self) -> Vec<&Path> {
        match self {
            Self::Create { path, .. } => vec![parent(path)],
            Self::MakeDir { path } | Self::Remove { path } => vec![parent(path), path],
            Self::Rename { from, to } if parent(from) == parent(to) => vec![parent(from)],
            Self::Rename { from, to } => vec![parent(from), parent(to)],
        }
    }

    pub(crate) fn apply(&self, names: &mut Names) -> Result<()> {
        match self {
            Self::Create { path, file } => {
                names.insert(path.clone(), Entry::File(*file));
            }
            Self::MakeDir { path } => {
                names.insert(path.clone(), Entry::Directory);
            }
            Self::Rename { from, to } => match names.remove(from) {
                Some(Entry::File(file)) => {
                    names.insert(to.clone(), Entry::File(file));
                }
                Some(Entry::Directory) => bail!("a directory is renamed, `{}`, which is not rebuilt", from.display()),
                None => bail!("the log doesn't know `{}`, which is renamed", from.display()),
            },
            Self::Remove { path } => {
                ensure!(names.remove(path).is_some(), "the log doesn't know `{}`, which is removed", path.display());
            }
        }
        Ok(())
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}
