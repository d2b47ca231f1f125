//! A library to preload: it records what a process does to the files below one directory, so that
//! `nexus-torture` can rebuild them as a loss of power would have left them. Recording changes nothing and loses nothing,
//! and without its variables the library does nothing at all in a process.
//!
//! ```text
//! LD_PRELOAD=libnexus_powerloss.so NEXUS_POWERLOSS_DIR=/path/to/data NEXUS_POWERLOSS_LOG=/path/to/log nexus daemon start
//! ```
//!
//! The directory must exist, and be empty when the log begins: what the log doesn't tell of can't be rebuilt. The log
//! must not be below it. Several processes, one after the other or at once, append to the same log. A process that can't
//! be recorded faithfully is aborted, with the reason on its stderr.
//!
//! With two other variables it refuses writes, as of a file system that turns read-only while files of it are open: as long as the
//! file `NEXUS_READ_ONLY_WHILE` exists, descriptors of regular files on the file system of `NEXUS_READ_ONLY_DIR` can be neither
//! written nor resized. What is opened, made, renamed or removed there by its path is not looked at: whoever sets the flag mounts
//! the directory read-only besides.
//!
//! # The log
//!
//! Records without gaps, numbers in little endian:
//!
//! ```text
//! at   bytes
//!  0   4      the letters "NXPL"
//!  4   4      kind
//!  8   4      process
//! 12   4      thread
//! 16   8      CLOCK_MONOTONIC in nanoseconds, when the record was written
//! 24   8      inode number of the file; 0 where it isn't known or doesn't exist
//! 32   8      offset of a write, size of a truncation or of what was found
//! 40   8      of `done`: what the call returned, or the error number below zero; else 0
//! 48   4      bytes of the path
//! 52   4      bytes of the second path
//! 56   8      bytes of the data
//! 64          path, second path, data; paths are relative to the directory, which is the empty path itself
//! ```
//!
//! | kind | | inode | offset | path | second path | data |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | 1 | a process begins | | | the directory | | |
//! | 2 | create a file | | | its path | | |
//! | 3 | make a directory | | | its path | | |
//! | 4 | write | of the file | where | its path now | | the bytes |
//! | 5 | truncate or extend | of the file | new size | its path now | | |
//! | 6 | rename | of the file | | from | to | |
//! | 7 | unlink | of the file | | its path | | |
//! | 8 | remove a directory | | | its path | | |
//! | 9 | fsync or fdatasync of a file | of the file | | its path now | | |
//! | 10 | fsync of a directory | | | its path | | |
//! | 11 | done: the call returned | of a created file | | | | |
//! | 12 | found | of what has that name | its size | the path, or the second one | | what is where the write would be |
//!
//! A call is two records: what is to be done, written before the real call, and `done`, behind it. From the first to the
//! second no other call is recorded, by a lock within the process and one on the log between processes, so the order of the log
//! is the order of the effects. A process that is killed leaves at most one call without `done`, as the last record; the next
//! process to begin writes in its place what it `found`, and cuts off a last record that is only half there.
//!
//! # What is left out
//!
//! Files whose name ends in `-shm` (SQLite rebuilds them), and everything that is not a regular file or a directory. Calls
//! that aren't libc's (raw system calls, `io_uring`), stdio streams, and a process forked without exec. A write through `O_SYNC`
//! and a `sync(2)` count as not synced. A writable shared mapping of a recorded file, a hard link, an exchange, a move into the
//! directory, and a file without a name abort the process.
#![cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64", any(target_arch = "x86_64", target_arch = "aarch64")))]
#![allow(unsafe_code, reason = "it stands in for functions of libc, which take pointers")]

mod contents;
mod log;
mod names;
mod next;
mod read_only;
mod watch;

use std::sync::OnceLock;
use watch::Watch;

static WATCH: OnceLock<Watch> = OnceLock::new();

/// The loader calls this before `main`.
#[used]
// SAFETY: the section holds pointers to functions, and this is one.
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    read_only::start();
    if let Some(watch) = Watch::from_environment()
        && WATCH.set(watch).is_err()
    {
        log::die("started twice");
    }
}

/// What is to be recorded, if anything is. A child that was forked, but hasn't called exec, has its parent's memory:
/// perhaps with a lock that nobody there will release, perhaps even shared. It is left alone.
fn watch() -> Option<&'static Watch> {
    WATCH.get().filter(|watch| watch.is_of_this_process())
}
