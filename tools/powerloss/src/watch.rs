//! What is recorded: which directory, which paths below it, which descriptors.

use crate::log;
use std::ffi::{CStr, CString, OsString, c_char, c_int};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const DIRECTORY: &str = "NEXUS_POWERLOSS_DIR";
const LOG: &str = "NEXUS_POWERLOSS_LOG";
/// Shared memory of SQLite: it is mapped, and made anew after a crash.
const SKIPPED_ENDING: &[u8] = b"-shm";
/// Descriptors that can be recorded; a recorded file on a higher one aborts the process.
const FDS_MAX: usize = 65_536;
/// Longest link target that is read (Linux's PATH_MAX).
const LINK_BYTES_MAX: usize = 4096;

/// The inode of the recorded file that each descriptor is open on, or 0. Read without a lock, since `write` and
/// `close` may be called in a signal handler.
static OPEN: [AtomicU64; FDS_MAX] = [const { AtomicU64::new(0) }; FDS_MAX];

pub(crate) struct Watch {
    process: u32,
    /// Without symbolic links, and without a slash at its end.
    directory: Vec<u8>,
    log_path: CString,
    /// The log's descriptor, once there was something to record.
    pub(crate) log: Mutex<Option<c_int>>,
}

impl Watch {
    pub(crate) fn from_environment() -> Option<Self> {
        let given = std::env::var_os(DIRECTORY).filter(|given| !given.is_empty())?;
        let Some(log_path) = std::env::var_os(LOG).and_then(terminated) else { log::die("NEXUS_POWERLOSS_LOG is not set") };
        let directory = terminated(given).and_then(|given| real_path(&given));
        let Some(directory) = directory else { log::die("NEXUS_POWERLOSS_DIR is not a directory that exists") };
        Some(Self { process: std::process::id(), directory, log_path, log: Mutex::new(None) })
    }

    pub(crate) fn is_of_this_process(&self) -> bool {
        std::process::id() == self.process
    }

    pub(crate) fn directory(&self) -> &[u8] {
        &self.directory
    }

    pub(crate) fn log_path(&self) -> &CStr {
        &self.log_path
    }

    /// A path of the log as libc takes it.
    pub(crate) fn absolute(&self, relative: &[u8]) -> CString {
        let mut path = self.directory.clone();
        path.push(b'/');
        path.extend(relative);
        CString::new(path).unwrap_or_else(|_| log::die("a path holds a NUL"))
    }

    /// What has this name: not followed if it is a symbolic link.
    pub(crate) fn stat(&self, relative: &[u8]) -> Option<libc::stat> {
        let path = self.absolute(relative);
        let mut stat = MaybeUninit::uninit();
        // SAFETY: the path ends with a NUL and `stat` is writable; it is filled where 0 is returned.
        unsafe { (libc::lstat(path.as_ptr(), stat.as_mut_ptr()) == 0).then(|| stat.assume_init()) }
    }

    /// Where an absolute path lies below the directory, which is empty for the directory itself.
    fn below<'p>(&self, path: &'p [u8]) -> Option<&'p [u8]> {
        let rest = path.strip_prefix(self.directory.as_slice())?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"/") }
    }

    /// The path below the directory that a call names, if it is one that is recorded. The last part need not exist.
    pub(crate) fn locate(&self, directory: c_int, path: *const c_char) -> Option<Vec<u8>> {
        if path.is_null() {
            return None;
        }
        // SAFETY: the caller owes libc a string that ends with a NUL.
        let given = unsafe { CStr::from_ptr(path) }.to_bytes();
        let given = given.strip_suffix(b"/").unwrap_or(given);
        let (parent, name) = match given.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (given.get(..=at)?, given.get(at + 1..)?),
            None => (b"./".as_slice(), given),
        };
        if name.is_empty() || name == b"." || name == b".." || name.ends_with(SKIPPED_ENDING) {
            return None;
        }
        let mut from = Vec::new();
        if !parent.starts_with(b"/") && directory != libc::AT_FDCWD {
            from.extend(format!("/proc/self/fd/{directory}/").bytes());
        }
        from.extend(parent);
        let mut full = real_path(&CString::new(from).ok()?)?;
        if full != b"/" {
            full.push(b'/');
        }
        full.extend(name);
        self.below(&full).map(<[u8]>::to_vec)
    }

    /// The path below the directory that a descriptor is open on now.
    pub(crate) fn path_of(&self, fd: c_int) -> Option<Vec<u8>> {
        let link = CString::new(format!("/proc/self/fd/{fd}")).ok()?;
        let mut target = vec![0_u8; LINK_BYTES_MAX];
        // SAFETY: the path ends with a NUL, and `target` is writable for its length.
        let bytes = unsafe { libc::readlink(link.as_ptr(), target.as_mut_ptr().cast(), target.len()) };
        target.truncate(usize::try_from(bytes).ok()?);
        self.below(&target).map(<[u8]>::to_vec)
    }

    /// Records this new descriptor from now on, if it is open on a file below the directory. Keeps `errno`.
    pub(crate) fn adopt(&self, fd: c_int) {
        let error = log::errno();
        let inode = match stat_fd(fd) {
            Some(stat) if is_file(&stat) && self.path_of(fd).is_some_and(|path| !path.ends_with(SKIPPED_ENDING)) => stat.st_ino,
            Some(_) | None => 0,
        };
        remember(fd, inode);
        log::set_errno(error);
    }
}

/// A descriptor that is open on a recorded file.
pub(crate) struct Recorded {
    pub(crate) watch: &'static Watch,
    pub(crate) fd: c_int,
    pub(crate) inode: u64,
}

impl Recorded {
    pub(crate) fn of(fd: c_int) -> Option<Self> {
        let inode = inode_of(fd);
        if inode == 0 {
            return None;
        }
        let watch = crate::watch()?;
        match stat_fd(fd) {
            Some(stat) if stat.st_ino == inode && is_file(&stat) => Some(Self { watch, fd, inode }),
            // It was closed by a call that isn't libc's, such as closedir's own, and is something else by now.
            Some(_) | None => {
                remember(fd, 0);
                None
            }
        }
    }

    /// Its path now; something that doesn't exist if it was unlinked.
    pub(crate) fn path(&self) -> Vec<u8> {
        self.watch.path_of(self.fd).unwrap_or_default()
    }

    pub(crate) fn size(&self) -> u64 {
        match stat_fd(self.fd) {
            Some(stat) => u64::try_from(stat.st_size).unwrap_or_default(),
            None => log::die("failed to look at a recorded file"),
        }
    }
}

pub(crate) fn inode_of(fd: c_int) -> u64 {
    slot(fd).map_or(0, |slot| slot.load(Ordering::Acquire))
}

/// From now on the descriptor is one of this inode; 0 for one that isn't recorded.
pub(crate) fn remember(fd: c_int, inode: u64) {
    match slot(fd) {
        Some(slot) => slot.store(inode, Ordering::Release),
        None if inode != 0 => log::die("a recorded file has a descriptor above 65,535"),
        None => {}
    }
}

fn slot(fd: c_int) -> Option<&'static AtomicU64> {
    OPEN.get(usize::try_from(fd).ok()?)
}

pub(crate) fn stat_fd(fd: c_int) -> Option<libc::stat> {
    let mut stat = MaybeUninit::uninit();
    // SAFETY: `stat` is writable, and is filled where 0 is returned.
    unsafe { (libc::fstat(fd, stat.as_mut_ptr()) == 0).then(|| stat.assume_init()) }
}

pub(crate) fn is_file(stat: &libc::stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFREG
}

pub(crate) fn is_directory(stat: &libc::stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

fn terminated(text: OsString) -> Option<CString> {
    CString::new(text.into_vec()).ok()
}

/// Absolute and without symbolic links; none where it doesn't exist.
fn real_path(path: &CStr) -> Option<Vec<u8>> {
    // SAFETY: the path ends with a NUL; with a null for the second, the result is one string of malloc's, or null.
    let found = unsafe { libc::realpath(path.as_ptr(), std::ptr::null_mut()) };
    if found.is_null() {
        return None;
    }
    // SAFETY: it is not null, so it is a string that ends with a NUL, and is ours to free once copied.
    unsafe {
        let copy = CStr::from_ptr(found).to_bytes().to_vec();
        libc::free(found.cast());
        Some(copy)
    }
}
