//! Files as a disk could be found after a loss of power: what is safe, and of the rest what chance leaves.
//!
//! Of the writes that were not synced each may have reached the disk or not, whatever came before or behind it; one that did may
//! be torn between sectors, and may have made the file longer without its bytes. Where two of them overlap, the later one was
//! in memory over the earlier one, so they are applied in their order. Bytes beside a write are never harmed, as SQLite
//! assumes of disks too (`SQLITE_IOCAP_POWERSAFE_OVERWRITE`).

use super::disk::{Change, Disk, Entry, File, Names};
use super::log::Op;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The least that a disk writes as a whole.
const SECTOR_BYTES: u64 = 512;
/// One in so many lost writes leaves its length behind.
const GROWN_ONE_IN: u32 = 8;

/// Makes the directory `to`, which must be empty or not exist, as it could be found if the power was lost when op number
/// `upto` had been asked for and had not returned. Equal arguments and an equal `rng` make equal files.
///
/// # Errors
/// If `upto` is beyond the ops, if they don't tell of all files from their creation, or if `to` can't be written.
#[cfg(test)]
pub(crate) fn rebuild(ops: &[Op], upto: usize, rng: &mut fastrand::Rng, to: &Path) -> Result<()> {
    Replay::new(ops).cut(upto, rng, to)
}

/// Makes `to` as the files were at the end, with nothing lost. It must equal the real directory, `-shm` files aside, while the
/// process is stopped: else something changed files that the log doesn't tell of, and no other cut can be trusted.
///
/// # Errors
/// As [`Replay::cut`].
pub(crate) fn whole(ops: &[Op], to: &Path) -> Result<()> {
    let mut replay = Replay::new(ops);
    replay.advance(ops.len())?;
    let disk = replay.disk;
    let mut names = disk.names.clone();
    disk.waiting.iter().try_for_each(|change| change.apply(&mut names))?;
    write(&names, to, |file| {
        let file = disk.files.get(file).context("a name has no file")?;
        let mut contents = file.safe.clone();
        file.waiting.iter().try_for_each(|change| change.apply(&mut contents))?;
        Ok(contents)
    })
}

/// Cuts at several places of one run, without beginning anew for each.
#[derive(Debug)]
pub(crate) struct Replay<'a> {
    ops: &'a [Op],
    disk: Disk<'a>,
    done: usize,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(ops: &'a [Op]) -> Self {
        Self { ops, disk: Disk::default(), done: 0 }
    }

    /// As [`Replay::cut`]; `upto` must not be lower than at the last cut.
    ///
    /// # Errors
    /// As [`Replay::cut`].
    pub(crate) fn cut(&mut self, upto: usize, rng: &mut fastrand::Rng, to: &Path) -> Result<()> {
        let ops = self.ops;
        let issued = ops.get(upto).with_context(|| format!("there is no op {upto}"))?;
        self.advance(upto)?;
        let mut disk = self.disk.clone();
        disk.issue(issued)?;
        let names = surviving_names(&disk, rng)?;
        write(&names, to, |file| survivor(disk.files.get(file).context("a name has no file")?, rng))
    }

    fn advance(&mut self, upto: usize) -> Result<()> {
        ensure!(upto >= self.done, "the cuts of a replay must ascend, and {upto} comes after {}", self.done);
        let ops = self.ops;
        for (number, op) in ops.iter().enumerate().take(upto).skip(self.done) {
            self.disk.finish(op).with_context(|| format!("op {number} can't be replayed"))?;
        }
        self.done = upto;
        Ok(())
    }
}

/// Which of the changes of names that aren't safe took place: in each directory the first few.
fn surviving_names(disk: &Disk<'_>, rng: &mut fastrand::Rng) -> Result<Names> {
    let mut left: BTreeMap<&Path, usize> = BTreeMap::new();
    for directory in disk.waiting.iter().flat_map(|change| change.directories()) {
        *left.entry(directory).or_default() += 1;
    }
    for count in left.values_mut() {
        *count = match rng.u8(0..4) {
            0 => 0,
            1 => *count,
            _ => rng.usize(0..=*count),
        };
    }
    let mut names = disk.names.clone();
    for change in &disk.waiting {
        let directories = change.directories();
        let happened = directories.iter().all(|directory| left.get(directory).is_some_and(|left| *left > 0));
        for directory in directories {
            // One change that didn't take place ends its directories' part.
            if let Some(left) = left.get_mut(directory) {
                *left = if happened { left.saturating_sub(1) } else { 0 };
            }
        }
        if happened {
            change.apply(&mut names)?;
        }
    }
    Ok(names)
}

/// How the power treated one file.
#[derive(Debug, Clone, Copy)]
enum Luck {
    LostAll,
    KeptAll,
    /// Each change for itself.
    Mixed,
    /// Each sector for itself.
    Torn,
    /// All but the one of this number.
    Gap(usize),
    /// All up to the one of this number, and half of that.
    Ordered(usize),
}

impl Luck {
    fn draw(changes: usize, rng: &mut fastrand::Rng) -> Self {
        match rng.u8(0..6) {
            0 => Self::LostAll,
            1 => Self::KeptAll,
            2 => Self::Mixed,
            3 => Self::Torn,
            4 => Self::Gap(rng.usize(0..changes.max(1))),
            _ => Self::Ordered(rng.usize(0..changes.max(1))),
        }
    }

    fn fate(self, number: usize, rng: &mut fastrand::Rng) -> Fate {
        let kept = match self {
            Self::LostAll => return Fate::Lost,
            Self::KeptAll => return Fate::Kept,
            Self::Torn => return Fate::Torn,
            Self::Ordered(last) if number == last => return Fate::Torn,
            Self::Ordered(last) => number < last,
            Self::Gap(gap) => number != gap,
            Self::Mixed => rng.bool(),
        };
        match kept {
            true => Fate::Kept,
            false if rng.u32(0..GROWN_ONE_IN) == 0 => Fate::Grown,
            false => Fate::Lost,
        }
    }
}

/// What became of one change.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Lost,
    Kept,
    /// Some sectors of it.
    Torn,
    /// Only the length of the file.
    Grown,
}

fn survivor(file: &File<'_>, rng: &mut fastrand::Rng) -> Result<Vec<u8>> {
    let mut contents = file.safe.clone();
    let luck = Luck::draw(file.waiting.len(), rng);
    for (number, change) in file.waiting.iter().enumerate() {
        match luck.fate(number, rng) {
            Fate::Lost => {}
            Fate::Kept => change.apply(&mut contents)?,
            Fate::Torn => tear(change, &mut contents, rng)?,
            Fate::Grown => change.grow_only(&mut contents)?,
        }
    }
    Ok(contents)
}

/// Applies each sector of a write or doesn't; a change of size is one piece.
fn tear(change: &Change<'_>, contents: &mut Vec<u8>, rng: &mut fastrand::Rng) -> Result<()> {
    match *change {
        Change::Write { offset, data } => {
            let (mut offset, mut rest) = (offset, data);
            while !rest.is_empty() {
                let room = usize::try_from(SECTOR_BYTES - offset % SECTOR_BYTES)?;
                let (sector, behind) = rest.split_at(room.min(rest.len()));
                if rng.bool() {
                    Change::Write { offset, data: sector }.apply(contents)?;
                }
                offset += sector.len() as u64;
                rest = behind;
            }
        }
        Change::Resize { .. } if rng.bool() => change.apply(contents)?,
        Change::Resize { .. } => {}
    }
    Ok(())
}

fn write(names: &Names, to: &Path, mut contents: impl FnMut(usize) -> Result<Vec<u8>>) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("failed to make `{}`", to.display()))?;
    let mut entries = std::fs::read_dir(to).with_context(|| format!("failed to list `{}`", to.display()))?;
    ensure!(entries.next().is_none(), "`{}` is not empty", to.display());
    // A directory sorts before what is in it.
    for (name, entry) in names {
        let path: PathBuf = to.join(name);
        match entry {
            Entry::Directory => std::fs::create_dir(&path).with_context(|| format!("failed to make `{}`", path.display()))?,
            Entry::File(file) => {
                std::fs::write(&path, contents(*file)?).with_context(|| format!("failed to write `{}`", path.display()))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::log::What;
    use super::*;
    use std::collections::BTreeSet;

    /// Enough that whatever may happen to a few changes happens.
    const SEEDS: u64 = 1000;

    type Files = BTreeMap<String, Vec<u8>>;

    fn ops(whats: Vec<What>) -> Vec<Op> {
        whats.into_iter().map(|what| Op { before_ns: 0, after_ns: 0, process: 1, thread: 1, what }).collect()
    }

    fn create(path: &str, inode: u64) -> What {
        What::Create { path: path.into(), inode }
    }

    fn put(inode: u64, offset: u64, data: &[u8]) -> What {
        What::Write { inode, offset, data: data.to_vec() }
    }

    fn sync_dir() -> What {
        What::SyncDir { path: PathBuf::new() }
    }

    fn rename(from: &str, to: &str) -> What {
        What::Rename { from: from.into(), to: to.into() }
    }

    fn files(directory: &Path) -> Files {
        let name = |entry: &std::fs::DirEntry| entry.file_name().into_string().unwrap();
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
        entries.filter(|entry| entry.path().is_file()).map(|entry| (name(&entry), std::fs::read(entry.path()).unwrap())).collect()
    }

    fn cut(ops: &[Op], upto: usize, seed: u64) -> Files {
        let directory = tempfile::tempdir().unwrap();
        rebuild(ops, upto, &mut fastrand::Rng::with_seed(seed), directory.path()).unwrap();
        files(directory.path())
    }

    /// All that can be found after a cut at the last op, which is asked for and hasn't returned.
    fn outcomes(whats: Vec<What>) -> BTreeSet<Files> {
        let ops = ops(whats);
        (0..SEEDS).map(|seed| cut(&ops, ops.len() - 1, seed)).collect()
    }

    fn one(name: &str, contents: &[u8]) -> Files {
        Files::from([(name.to_owned(), contents.to_vec())])
    }

    #[test]
    fn what_was_synced_is_always_there() {
        let found = outcomes(vec![create("a", 1), put(1, 0, b"safe"), What::Sync { inode: 1 }, What::Begin]);
        assert_eq!(found, BTreeSet::from([one("a", b"safe")]));
    }

    #[test]
    fn a_sync_that_has_not_returned_promises_nothing() {
        let found = outcomes(vec![create("a", 1), put(1, 0, b"x"), What::Sync { inode: 1 }]);
        assert_eq!(found, BTreeSet::from([Files::new(), one("a", b""), one("a", b"\0"), one("a", b"x")]));
    }

    #[test]
    fn a_write_behind_a_sync_is_lost_alone() {
        let found = outcomes(vec![create("a", 1), put(1, 0, b"one"), What::Sync { inode: 1 }, put(1, 3, b"two")]);
        assert_eq!(found, BTreeSet::from([one("a", b"one"), one("a", b"one\0\0\0"), one("a", b"onetwo")]));
    }

    #[test]
    fn a_later_write_may_be_there_without_an_earlier_one() {
        let found = outcomes(vec![create("a", 1), What::Sync { inode: 1 }, put(1, 0, b"1"), put(1, 1, b"2"), What::Begin]);
        let possible: [&[u8]; 7] = [b"", b"1", b"12", b"\x002", b"\0", b"1\0", b"\0\0"];
        assert!(found.iter().all(|files| possible.contains(&files["a"].as_slice())), "{found:?}");
        assert!(found.contains(&one("a", b"\x002")));
        assert!(found.contains(&one("a", b"1")));
    }

    #[test]
    fn a_truncation_may_be_lost_and_is_kept_by_a_sync() {
        let cleared = |last| vec![create("a", 1), put(1, 0, b"old"), What::Sync { inode: 1 }, What::Truncate { inode: 1, size: 0 }, last];
        assert_eq!(outcomes(cleared(What::Begin)), BTreeSet::from([one("a", b"old"), one("a", b"")]));
        let mut synced = cleared(What::Sync { inode: 1 });
        synced.push(What::Begin);
        assert_eq!(outcomes(synced), BTreeSet::from([one("a", b"")]));
    }

    #[test]
    fn writes_are_torn_between_sectors_and_nowhere_else() {
        let found =
            outcomes(vec![create("a", 1), put(1, 0, &[b'-'; 1200]), What::Sync { inode: 1 }, put(1, 100, &[b'+'; 1000]), What::Begin]);
        let bounds = [0, 100, 512, 1024, 1100, 1200];
        for files in &found {
            let mut parts = bounds.windows(2).map(|bound| &files["a"][bound[0]..bound[1]]);
            assert!(parts.all(|part| part.iter().all(|byte| *byte == part[0])));
            assert_eq!((files["a"][0], files["a"][1199], files["a"].len()), (b'-', b'-', 1200));
        }
        assert_eq!(found.len(), 8, "three pieces, each there or not");
    }

    #[test]
    fn a_rename_that_is_not_synced_leaves_either_name() {
        let whats = vec![create("old", 1), put(1, 0, b"x"), What::Sync { inode: 1 }, rename("old", "new")];
        assert_eq!(outcomes(whats.clone()), BTreeSet::from([one("old", b"x"), one("new", b"x")]));
        let synced = [whats, vec![sync_dir(), What::Begin]].concat();
        assert_eq!(outcomes(synced), BTreeSet::from([one("new", b"x")]));
    }

    #[test]
    fn a_file_keeps_its_contents_through_a_rename() {
        let whats = vec![create("old", 1), sync_dir(), rename("old", "new"), put(1, 0, b"x"), What::Sync { inode: 1 }, What::Begin];
        assert_eq!(outcomes(whats), BTreeSet::from([one("old", b"x"), one("new", b"x")]));
    }

    #[test]
    fn names_change_in_order_within_a_directory() {
        let whats = vec![create("a", 1), create("b", 2), What::Remove { path: "a".into() }, What::Begin];
        let both = Files::from([("a".to_owned(), Vec::new()), ("b".to_owned(), Vec::new())]);
        assert_eq!(outcomes(whats), BTreeSet::from([Files::new(), one("a", b""), both, one("b", b"")]));
    }

    #[test]
    fn syncing_a_file_keeps_the_directories_that_lead_to_it() {
        let make = |path: &str| What::MakeDir { path: path.into() };
        let all = ops(vec![make("d"), make("d/e"), create("d/e/a", 1), What::Sync { inode: 1 }, create("d/b", 2), What::Begin]);
        let mut found = BTreeSet::new();
        for seed in 0..SEEDS {
            let directory = tempfile::tempdir().unwrap();
            rebuild(&all, 5, &mut fastrand::Rng::with_seed(seed), directory.path()).unwrap();
            assert!(directory.path().join("d/e/a").is_file());
            found.insert(directory.path().join("d/b").exists());
        }
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn an_inode_number_may_be_given_again() {
        let gone = vec![create("a", 1), put(1, 0, b"old"), What::Sync { inode: 1 }, What::Remove { path: "a".into() }];
        let again = vec![create("a", 1), put(1, 0, b"new"), What::Sync { inode: 1 }, What::Begin];
        assert_eq!(outcomes([gone, again].concat()), BTreeSet::from([one("a", b"new")]));
    }

    #[test]
    fn equal_seeds_make_equal_files_and_a_replay_the_same_as_a_rebuild() {
        let mut whats = vec![create("a", 1), create("b", 2)];
        whats.extend((0..20).map(|at| put(1 + at % 2, at * 300, &[b'x'; 700])));
        let all = ops(whats);
        let mut replay = Replay::new(&all);
        for upto in [3, 11, 21] {
            let directory = tempfile::tempdir().unwrap();
            replay.cut(upto, &mut fastrand::Rng::with_seed(7), directory.path()).unwrap();
            assert_eq!(cut(&all, upto, 7), files(directory.path()));
        }
        assert!((0..SEEDS).map(|seed| cut(&all, 21, seed)).collect::<BTreeSet<_>>().len() > 20);
    }

    #[test]
    fn the_whole_run_loses_nothing() {
        let all = ops(vec![create("a", 1), put(1, 0, b"one"), rename("a", "b"), put(1, 3, b"two"), create("c", 2)]);
        let directory = tempfile::tempdir().unwrap();
        whole(&all, directory.path()).unwrap();
        assert_eq!(files(directory.path()), Files::from([("b".to_owned(), b"onetwo".to_vec()), ("c".to_owned(), Vec::new())]));
    }

    #[test]
    fn what_can_not_be_rebuilt_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let mut rng = fastrand::Rng::with_seed(1);
        let stranger = ops(vec![put(9, 0, b"x"), What::Begin]);
        assert!(rebuild(&stranger, 1, &mut rng, directory.path()).is_err());
        assert!(rebuild(&ops(vec![What::Begin]), 1, &mut rng, directory.path()).is_err());
        std::fs::write(directory.path().join("here"), "").unwrap();
        assert!(rebuild(&ops(vec![What::Begin]), 0, &mut rng, directory.path()).is_err());
    }
}
