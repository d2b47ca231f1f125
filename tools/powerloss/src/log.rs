//! Writing the log: one call at a time, before and after it. The format is told in `lib.rs`.
//!
//! Nothing here calls a function that this library stands in for: files are written by system calls.

use crate::watch::Watch;
use std::ffi::{CString, c_int};
use std::sync::{MutexGuard, PoisonError};

const MAGIC: [u8; 4] = *b"NXPL";
const HEADER_BYTES: usize = 64;
/// Linux's PATH_MAX: a longer path in a header is damage.
const PATH_BYTES_MAX: usize = 4096;

#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Kind {
    Begin = 1,
    Create = 2,
    MakeDir = 3,
    Write = 4,
    Truncate = 5,
    Rename = 6,
    Remove = 7,
    RemoveDir = 8,
    Sync = 9,
    SyncDir = 10,
    Done = 11,
    Found = 12,
}

#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) kind: Kind,
    pub(crate) inode: u64,
    pub(crate) offset: u64,
    pub(crate) result: i64,
    pub(crate) path: &'a [u8],
    pub(crate) to: &'a [u8],
    pub(crate) data: &'a [&'a [u8]],
}

impl<'a> Record<'a> {
    pub(crate) fn new(kind: Kind, path: &'a [u8]) -> Self {
        Self { kind, inode: 0, offset: 0, result: 0, path, to: &[], data: &[] }
    }

    fn encode(&self) -> Vec<u8> {
        let data_bytes: usize = self.data.iter().map(|part| part.len()).sum();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.path.len() + self.to.len() + data_bytes);
        bytes.extend(MAGIC);
        bytes.extend((self.kind as u32).to_le_bytes());
        bytes.extend(std::process::id().to_le_bytes());
        bytes.extend(thread().to_le_bytes());
        bytes.extend(now_ns().to_le_bytes());
        bytes.extend(self.inode.to_le_bytes());
        bytes.extend(self.offset.to_le_bytes());
        bytes.extend(self.result.to_le_bytes());
        bytes.extend((self.path.len() as u32).to_le_bytes());
        bytes.extend((self.to.len() as u32).to_le_bytes());
        bytes.extend((data_bytes as u64).to_le_bytes());
        bytes.extend(self.path);
        bytes.extend(self.to);
        self.data.iter().for_each(|part| bytes.extend(*part));
        bytes
    }
}

/// One call's turn: until it is dropped no other call is recorded, of any process.
pub(crate) struct Turn<'a> {
    log: c_int,
    _lock: MutexGuard<'a, Option<c_int>>,
}

impl<'a> Turn<'a> {
    pub(crate) fn take(watch: &'a Watch) -> Self {
        let mut lock = watch.log.lock().unwrap_or_else(PoisonError::into_inner);
        let known = *lock;
        let log = known.unwrap_or_else(|| open(watch));
        *lock = Some(log);
        let turn = Self { log, _lock: lock };
        // SAFETY: no pointers.
        while unsafe { libc::flock(log, libc::LOCK_EX) } != 0 {
            if errno() != libc::EINTR {
                die("failed to lock the log");
            }
        }
        if known.is_none() {
            turn.begin(watch);
        }
        turn
    }

    /// Writes what is to be done. The real call comes next, then [`Self::done`].
    pub(crate) fn issue(&self, record: &Record<'_>) {
        self.append(record);
    }

    /// Writes what the call returned; `errno` stays as the call left it.
    pub(crate) fn done(&self, returned: i64, inode: u64) {
        let error = errno();
        let result = if returned < 0 { -i64::from(error) } else { returned };
        self.append(&Record { result, inode, ..Record::new(Kind::Done, &[]) });
        set_errno(error);
    }

    fn append(&self, record: &Record<'_>) {
        let bytes = record.encode();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            // SAFETY: `rest` is readable for its length.
            let written = unsafe { libc::syscall(libc::SYS_write, self.log, rest.as_ptr(), rest.len()) };
            match usize::try_from(written) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(_) if errno() == libc::EINTR => {}
                Err(_) => die("failed to write the log"),
            }
        }
    }

    /// Mends what a process that was killed left behind, then says that this one begins.
    fn begin(&self, watch: &Watch) {
        let size = size_of(self.log);
        let mut end = 0;
        let mut last = None;
        while let Some(header) = self.header(end, size) {
            last = Some((end, header));
            end += header.total();
        }
        if end < size {
            // SAFETY: no pointers.
            let cut = unsafe { libc::syscall(libc::SYS_ftruncate, self.log, end) };
            if cut != 0 {
                die("failed to cut half a record off the log");
            }
        }
        match last {
            Some((at, header)) if header.is_pending() => self.find(watch, at, &header),
            Some(_) | None => {}
        }
        self.append(&Record::new(Kind::Begin, watch.directory()));
    }

    /// The header of the record at `at`, if all of the record is there.
    fn header(&self, at: u64, size: u64) -> Option<Header> {
        if at + HEADER_BYTES as u64 > size {
            return None;
        }
        let bytes = read(self.log, at, HEADER_BYTES);
        let header = Header::decode(&bytes).unwrap_or_else(|| die(&format!("the log is damaged at byte {at}")));
        (at + header.total() <= size).then_some(header)
    }

    /// Writes how the call ended that nobody could say `done` of.
    fn find(&self, watch: &Watch, at: u64, header: &Header) {
        let paths = read(self.log, at + HEADER_BYTES as u64, header.path_bytes + header.to_bytes);
        let (from, to) = paths.split_at(header.path_bytes.min(paths.len()));
        let path = if to.is_empty() { from } else { to };
        let stat = watch.stat(path);
        let (inode, size) = stat.map_or((0, 0), |stat| (stat.st_ino, u64::try_from(stat.st_size).unwrap_or_default()));
        let is_write = header.kind == Kind::Write as u32 && inode == header.inode && inode != 0;
        let wanted = if is_write { usize::try_from(header.data_bytes).unwrap_or_default() } else { 0 };
        let data = read_file(&watch.absolute(path), header.offset, wanted);
        self.append(&Record { inode, offset: size, data: &[&data], ..Record::new(Kind::Found, path) });
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // SAFETY: no pointers.
        if unsafe { libc::flock(self.log, libc::LOCK_UN) } != 0 {
            die("failed to unlock the log");
        }
    }
}

/// What matters of a record that is already in the log.
#[derive(Debug, Clone, Copy)]
struct Header {
    kind: u32,
    inode: u64,
    offset: u64,
    path_bytes: usize,
    to_bytes: usize,
    data_bytes: u64,
}

impl Header {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let four = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let eight = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let paths = (four(48)? as usize, four(52)? as usize);
        let good = bytes.starts_with(&MAGIC) && paths.0 <= PATH_BYTES_MAX && paths.1 <= PATH_BYTES_MAX;
        good.then_some(Self {
            kind: four(4)?,
            inode: eight(24)?,
            offset: eight(32)?,
            path_bytes: paths.0,
            to_bytes: paths.1,
            data_bytes: eight(56)?,
        })
    }

    fn total(&self) -> u64 {
        ((HEADER_BYTES + self.path_bytes + self.to_bytes) as u64).saturating_add(self.data_bytes)
    }

    fn is_pending(&self) -> bool {
        ![Kind::Begin as u32, Kind::Done as u32, Kind::Found as u32].contains(&self.kind)
    }
}

fn open(watch: &Watch) -> c_int {
    let flags = libc::O_RDWR | libc::O_APPEND | libc::O_CREAT | libc::O_CLOEXEC;
    let path = watch.log_path().as_ptr();
    // SAFETY: the path ends with a NUL.
    let fd = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, 0o600) };
    match c_int::try_from(fd) {
        Ok(fd) if fd >= 0 => fd,
        Ok(_) | Err(_) => die("failed to open the log"),
    }
}

fn size_of(fd: c_int) -> u64 {
    match crate::watch::stat_fd(fd) {
        Some(stat) => u64::try_from(stat.st_size).unwrap_or_default(),
        None => die("failed to look at the log"),
    }
}

/// Up to `wanted` bytes from `offset` of a file; fewer where it ends, none where it can't be opened.
fn read_file(path: &CString, offset: u64, wanted: usize) -> Vec<u8> {
    if wanted == 0 {
        return Vec::new();
    }
    // SAFETY: the path ends with a NUL.
    let fd = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    let Some(fd) = c_int::try_from(fd).ok().filter(|fd| *fd >= 0) else { die("failed to open a file to see what was written") };
    let bytes = read(fd, offset, wanted);
    // SAFETY: the descriptor was opened above and is used nowhere else.
    unsafe { libc::syscall(libc::SYS_close, fd) };
    bytes
}

/// Up to `wanted` bytes from `offset`; fewer where the file ends.
fn read(fd: c_int, offset: u64, wanted: usize) -> Vec<u8> {
    let mut bytes = vec![0; wanted];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let at = libc::off_t::try_from(offset + filled as u64).unwrap_or(libc::off_t::MAX);
        // SAFETY: `rest` is writable for its length.
        let count = unsafe { libc::pread(fd, rest.as_mut_ptr().cast(), rest.len(), at) };
        match usize::try_from(count) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(_) if errno() == libc::EINTR => {}
            Err(_) => die("failed to read what is there already"),
        }
    }
    bytes.truncate(filled);
    bytes
}

fn thread() -> u32 {
    // SAFETY: no pointers, and it can't fail.
    u32::try_from(unsafe { libc::syscall(libc::SYS_gettid) }).unwrap_or_default()
}

fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) } != 0 {
        die("failed to read the clock");
    }
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default()
}

pub(crate) fn errno() -> c_int {
    // SAFETY: the location is the calling thread's own.
    unsafe { *libc::__errno_location() }
}

pub(crate) fn set_errno(error: c_int) {
    // SAFETY: the location is the calling thread's own.
    unsafe { *libc::__errno_location() = error };
}

/// Ends the process: a record with a hole would make the checker blame the program for what the shim lost.
pub(crate) fn die(what: &str) -> ! {
    let error = std::io::Error::last_os_error();
    let text = format!("nexus-powerloss: {what} (last error: {error}); aborting\n");
    // SAFETY: the text is readable for its length.
    unsafe { libc::syscall(libc::SYS_write, 2, text.as_ptr(), text.len()) };
    std::process::abort()
}
