//! How the C library's allocator is to spend memory.
#![allow(unsafe_code)]

/// Arenas of the allocator. By default there are eight per core, and what a burst freed in one of them
/// is of no use to the threads of the others.
#[cfg(target_env = "gnu")]
const ARENAS_MAX: i32 = 2;

/// Bounds the arenas of this process (mallopt(3)). Called before there are other threads.
pub(crate) fn bound_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number that later allocations read; no other thread exists yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
    }
}
