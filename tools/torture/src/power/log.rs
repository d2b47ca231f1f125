//! Reading the log that `nexus-powerloss` writes; its format is told in `tools/powerloss/src/lib.rs`.
//!
//! Two records of the log are one [`Op`] here. Calls that failed have no effect and are left out.

use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 4] = *b"NXPL";
const HEADER_BYTES: usize = 64;
/// Linux's PATH_MAX: a longer path in a header is damage.
const PATH_BYTES_MAX: usize = 4096;
/// Linux writes at most 2 GiB in one call: more in a header is damage.
const DATA_BYTES_MAX: u64 = 1 << 31;

/// One call that took effect, in the order of the effects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Op {
    /// CLOCK_MONOTONIC in nanoseconds right before the call, and right after it had returned.
    pub(crate) before_ns: u64,
    pub(crate) after_ns: u64,
    pub(crate) process: u32,
    pub(crate) thread: u32,
    pub(crate) what: What,
}

/// Paths are relative to the directory that was recorded, which is the empty path itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    Begin,
    Create { path: PathBuf, inode: u64 },
    MakeDir { path: PathBuf },
    Write { inode: u64, offset: u64, data: Vec<u8> },
    Truncate { inode: u64, size: u64 },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    RemoveDir { path: PathBuf },
    Sync { inode: u64 },
    SyncDir { path: PathBuf },
}

impl Op {
    pub(crate) fn is_sync(&self) -> bool {
        matches!(self.what, What::Sync { .. } | What::SyncDir { .. })
    }
}

/// When the power is lost at this op. What was acknowledged before this time must be found on the rebuilt disk; the clock is
/// CLOCK_MONOTONIC, in nanoseconds.
pub(crate) fn time_ns(op: &Op) -> u64 {
    op.before_ns
}

/// All ops of a log. A call that never returned, because its process was killed and none followed, is left out.
///
/// # Errors
/// If the log can't be read or is damaged. Half a record at its end is none.
pub(crate) fn read(path: &Path) -> Result<Vec<Op>> {
    let failed = || format!("failed to read the log `{}`", path.display());
    let mut file = BufReader::new(File::open(path).with_context(failed)?);
    let mut ops = Vec::new();
    let mut issued: Option<Record> = None;
    while let Some(record) = Record::read(&mut file).with_context(failed)? {
        match record.kind {
            BEGIN => {
                ensure!(issued.is_none(), "a process begins before the call ahead of it is settled");
                ops.push(record.op(record.time_ns, What::Begin));
            }
            DONE | FOUND => {
                let call = issued.take().context("the log tells how a call ended that it doesn't tell of")?;
                let what = if record.kind == DONE { call.after(&record)? } else { call.as_found(&record)? };
                ops.extend(what.map(|what| call.op(record.time_ns, what)));
            }
            CREATE..=SYNC_DIR => ensure!(issued.replace(record).is_none(), "two calls at once, of which one has no end"),
            kind => bail!("the log has a record of kind {kind}, which nobody knows"),
        }
    }
    Ok(ops)
}

const BEGIN: u32 = 1;
const CREATE: u32 = 2;
const MAKE_DIR: u32 = 3;
const WRITE: u32 = 4;
const TRUNCATE: u32 = 5;
const RENAME: u32 = 6;
const REMOVE: u32 = 7;
const REMOVE_DIR: u32 = 8;
const SYNC: u32 = 9;
const SYNC_DIR: u32 = 10;
const DONE: u32 = 11;
const FOUND: u32 = 12;

#[derive(Debug)]
struct Record {
    kind: u32,
    process: u32,
    thread: u32,
    time_ns: u64,
    inode: u64,
    offset: u64,
    result: i64,
    path: PathBuf,
    to: PathBuf,
    data: Vec<u8>,
}

impl Record {
    /// The next record; none at the end, and where only half of one is left.
    fn read(file: &mut impl Read) -> Result<Option<Self>> {
        let Some(header) = take(file, HEADER_BYTES)? else { return Ok(None) };
        ensure!(header.starts_with(&MAGIC), "there is something else where a record should be");
        let (path_bytes, to_bytes, data_bytes) = (four(&header, 48)? as usize, four(&header, 52)? as usize, eight(&header, 56)?);
        ensure!(path_bytes <= PATH_BYTES_MAX && to_bytes <= PATH_BYTES_MAX && data_bytes <= DATA_BYTES_MAX, "a record is impossibly long");
        let (Some(path), Some(to)) = (take(file, path_bytes)?, take(file, to_bytes)?) else { return Ok(None) };
        let Some(data) = take(file, usize::try_from(data_bytes)?)? else { return Ok(None) };
        Ok(Some(Self {
            kind: four(&header, 4)?,
            process: four(&header, 8)?,
            thread: four(&header, 12)?,
            time_ns: eight(&header, 16)?,
            inode: eight(&header, 24)?,
            offset: eight(&header, 32)?,
            result: i64::from_le_bytes(eight(&header, 40)?.to_le_bytes()),
            path: OsString::from_vec(path).into(),
            to: OsString::from_vec(to).into(),
            data,
        }))
    }

    fn op(&self, after_ns: u64, what: What) -> Op {
        Op { before_ns: self.time_ns, after_ns, process: self.process, thread: self.thread, what }
    }

    /// What the call did, which returned; none if it failed.
    fn after(&self, done: &Self) -> Result<Option<What>> {
        let Ok(count) = usize::try_from(done.result) else { return Ok(None) };
        let mut what = self.asked(done.inode)?;
        if let What::Write { data, .. } = &mut what {
            ensure!(count <= data.len(), "a call wrote more than it was given");
            data.truncate(count);
        }
        Ok(Some(what))
    }

    /// What the call did, whose process was killed in it, by what the next process found in its place.
    fn as_found(&self, found: &Self) -> Result<Option<What>> {
        let is_there = found.inode != 0;
        let is_same = is_there && found.inode == self.inode;
        let happened = match self.kind {
            CREATE | MAKE_DIR => is_there,
            WRITE => is_same && !found.data.is_empty(),
            TRUNCATE => is_same && found.offset == self.offset,
            RENAME => is_same,
            REMOVE | REMOVE_DIR => !is_there,
            // The process saw no end of the sync, so nobody may count on it.
            SYNC | SYNC_DIR => false,
            kind => bail!("no call has the kind {kind}"),
        };
        if !happened {
            return Ok(None);
        }
        let mut what = self.asked(found.inode)?;
        if let What::Write { data, .. } = &mut what {
            data.clone_from(&found.data);
        }
        Ok(Some(what))
    }

    /// What was asked for; `inode` is that of a created file.
    fn asked(&self, inode: u64) -> Result<What> {
        let path = self.path.clone();
        Ok(match self.kind {
            CREATE => What::Create { path, inode },
            MAKE_DIR => What::MakeDir { path },
            WRITE => What::Write { inode: self.inode, offset: self.offset, data: self.data.clone() },
            TRUNCATE => What::Truncate { inode: self.inode, size: self.offset },
            RENAME => What::Rename { from: path, to: self.to.clone() },
            REMOVE => What::Remove { path },
            REMOVE_DIR => What::RemoveDir { path },
            SYNC => What::Sync { inode: self.inode },
            SYNC_DIR => What::SyncDir { path },
            kind => bail!("no call has the kind {kind}"),
        })
    }
}

/// This many bytes, or none if the file ends before.
fn take(file: &mut impl Read, bytes: usize) -> Result<Option<Vec<u8>>> {
    let mut taken = vec![0; bytes];
    match file.read_exact(&mut taken) {
        Ok(()) => Ok(Some(taken)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn four(bytes: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(bytes.get(at..at + 4).context("a record is too short")?.try_into()?))
}

fn eight(bytes: &[u8], at: usize) -> Result<u64> {
    Ok(u64::from_le_bytes(bytes.get(at..at + 8).context("a record is too short")?.try_into()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A record with one path, as the shim would write it.
    fn record(kind: u32, inode: u64, offset: u64, result: i64, path: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for number in [kind, 7, 8] {
            bytes.extend(number.to_le_bytes());
        }
        for number in [u64::from(kind) * 100, inode, offset] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(result.to_le_bytes());
        bytes.extend(u32::try_from(path.len()).unwrap().to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(u64::try_from(data.len()).unwrap().to_le_bytes());
        bytes.extend(path.bytes());
        bytes.extend(data);
        bytes
    }

    fn ops(records: &[Vec<u8>]) -> Result<Vec<Op>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, records.concat()).unwrap();
        read(&path)
    }

    fn whats(records: &[Vec<u8>]) -> Vec<What> {
        ops(records).unwrap().into_iter().map(|op| op.what).collect()
    }

    #[test]
    fn a_call_and_its_end_are_one_op() {
        let all = ops(&[record(CREATE, 0, 0, 0, "a", b""), record(DONE, 5, 0, 3, "", b"")]).unwrap();
        let what = What::Create { path: "a".into(), inode: 5 };
        assert_eq!(all, [Op { before_ns: 200, after_ns: 1100, process: 7, thread: 8, what }]);
        assert_eq!(time_ns(&all[0]), 200);
    }

    #[test]
    fn only_what_was_written_counts_and_a_failure_does_not() {
        let all = whats(&[
            record(WRITE, 5, 9, 0, "a", b"hello"),
            record(DONE, 5, 0, 2, "", b""),
            record(SYNC, 5, 0, 0, "a", b""),
            record(DONE, 5, 0, -5, "", b""),
        ]);
        assert_eq!(all, [What::Write { inode: 5, offset: 9, data: b"he".to_vec() }]);
    }

    #[test]
    fn a_killed_process_did_what_the_next_one_finds() {
        let all = whats(&[
            record(WRITE, 5, 9, 0, "a", b"hello"),
            record(FOUND, 5, 12, 0, "a", b"hel"),
            record(TRUNCATE, 5, 3, 0, "a", b""),
            record(FOUND, 5, 12, 0, "a", b""),
            record(REMOVE, 5, 0, 0, "a", b""),
            record(FOUND, 0, 0, 0, "a", b""),
            record(SYNC, 6, 0, 0, "b", b""),
            record(FOUND, 6, 1, 0, "b", b""),
        ]);
        assert_eq!(all, [What::Write { inode: 5, offset: 9, data: b"hel".to_vec() }, What::Remove { path: "a".into() }]);
    }

    #[test]
    fn a_log_may_end_in_a_call_or_within_a_record() {
        let call = record(SYNC, 5, 0, 0, "a", b"");
        assert_eq!(whats(&[record(BEGIN, 0, 0, 0, "/d", b""), call.clone()]), [What::Begin]);
        assert_eq!(whats(&[record(BEGIN, 0, 0, 0, "/d", b""), call[..call.len() - 1].to_vec()]), [What::Begin]);
    }

    #[test]
    fn damage_is_an_error() {
        let call = record(SYNC, 5, 0, 0, "a", b"");
        assert!(ops(&[vec![0; HEADER_BYTES]]).is_err());
        assert!(ops(&[call.clone(), call.clone()]).is_err());
        assert!(ops(&[call, record(BEGIN, 0, 0, 0, "/d", b"")]).is_err());
        assert!(ops(&[record(DONE, 0, 0, 0, "", b"")]).is_err());
        assert!(ops(&[record(99, 0, 0, 0, "", b"")]).is_err());
    }
}
