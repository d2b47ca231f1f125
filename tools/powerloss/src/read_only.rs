//! A file system that turns read-only under files that are open for writing. The kernel turns none so while it works: those who
//! have a file open write on, whatever a mount says. Here they are refused as by one that has broken. What names a path is left
//! to the mount, which refuses it by itself.

use crate::{log, watch};
use libc::{c_int, dev_t};
use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

const DIRECTORY: &str = "NEXUS_READ_ONLY_DIR";
const FLAG: &str = "NEXUS_READ_ONLY_WHILE";

static TURNS: OnceLock<Turns> = OnceLock::new();

/// The file system that turns, and the file that exists while it is read-only.
struct Turns {
    device: dev_t,
    flag: CString,
}

/// Before `main`: reads the variables, if they are there.
pub(crate) fn start() {
    let Some(directory) = std::env::var_os(DIRECTORY).filter(|given| !given.is_empty()) else { return };
    let flag = std::env::var_os(FLAG).and_then(|given| CString::new(given.into_vec()).ok());
    let Some(flag) = flag else { log::die("NEXUS_READ_ONLY_WHILE is not set") };
    let Ok(found) = std::fs::metadata(directory) else { log::die("NEXUS_READ_ONLY_DIR does not exist") };
    if TURNS.set(Turns { device: found.dev(), flag }).is_err() {
        log::die("started twice");
    }
}

/// Whether a change of what this descriptor is open on is refused now; `errno` says so then, and stays as it is otherwise.
pub(crate) fn refuses(fd: c_int) -> bool {
    let Some(turns) = TURNS.get() else { return false };
    let error = log::errno();
    let is_there = watch::stat_fd(fd).is_some_and(|stat| watch::is_file(&stat) && stat.st_dev == turns.device);
    // SAFETY: the path ends with a NUL.
    let refuses = is_there && unsafe { libc::access(turns.flag.as_ptr(), libc::F_OK) } == 0;
    log::set_errno(if refuses { libc::EROFS } else { error });
    refuses
}
