//! What this process takes from itself before it looks at a plugin: privileges, files, processes, memory.
//! The language has no way to any of it; this is for the day when the engine has a hole. It never touches
//! what the daemon gave on purpose: stdin, stdout, stderr.
#![allow(unsafe_code)]

use rustix::process::{Resource, Rlimit, setrlimit};
use std::io;

/// The descriptors that stay: those below this one.
const DESCRIPTORS: libc::c_uint = 3;
/// Address space for the host itself beyond the plugin's memory: a line of 16 MiB, the same as values, and
/// what a parser of TypeScript needs.
const HOST_BYTES: u64 = 512 * 1024 * 1024;

/// Forgets the environment and closes what was inherited by mistake. Called before there is any other
/// thread. The kernel's own record of the environment stays: by the mark in it the daemon finds leftovers.
pub(super) fn shed() {
    // SAFETY: no other thread exists, and nothing holds a pointer into the environment.
    unsafe { libc::clearenv() };
    // SAFETY: closes only what this process doesn't know of; all of its own are below.
    unsafe { libc::close_range(DESCRIPTORS, libc::c_uint::MAX, 0) };
    // Here for all threads that are to come, since it holds for one; whether it could be done, `enter` tells.
    rustix::thread::set_no_new_privs(true).ok();
}

/// Gives up everything else. `memory_bytes` is what the plugin may have.
///
/// # Errors
/// When the kernel refuses a limit, or `/proc` can't be read.
pub(super) fn enter(memory_bytes: u64) -> io::Result<()> {
    let used_bytes = address_space_bytes()?;
    rustix::thread::set_no_new_privs(true)?;
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, 0)?;
    limit(Resource::Nproc, 0)?;
    limit(Resource::As, used_bytes.saturating_add(memory_bytes).saturating_add(HOST_BYTES))?;
    // What is open stays so. Not even in the place of one that was closed can there be another.
    limit(Resource::Nofile, 0)
}

/// For good: the hard limit goes down as well. One that is lower already stays.
fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let most = rustix::process::getrlimit(resource).maximum.map_or(most, |hard| hard.min(most));
    setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) }).map_err(io::Error::from)
}

/// The first number of `/proc/self/statm` (proc_pid_statm(5)), in bytes.
fn address_space_bytes() -> io::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: Option<u64> = statm.split_whitespace().next().and_then(|number| number.parse().ok());
    let pages = pages.ok_or_else(|| io::Error::other("`/proc/self/statm` has no size"))?;
    Ok(pages.saturating_mul(u64::try_from(rustix::param::page_size()).unwrap_or(u64::MAX)))
}
