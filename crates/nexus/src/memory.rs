//! How this process is to spend memory: the C library's allocator, and pages of code.
#![allow(unsafe_code)]

use rustix::mm::{Advice, madvise};
use std::path::Path;
use std::{fs, io, ptr};

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

/// Lets go of the pages of this program's code that are mapped into this process (madvise(2), `MADV_DONTNEED`), but where
/// a debugger has changed some. A start
/// passes through half of the program once, and the kernel maps sixteen pages around each that is touched; what is used again is mapped
/// again from the page cache, where it stays, without a read of the disk as long as there is memory.
///
/// # Errors
/// When `/proc/self` can't be read, or the kernel refuses.
pub(crate) fn let_go_of_code() -> io::Result<()> {
    for (address, bytes) in code()? {
        // SAFETY: the range is a private mapping of the program's file, which nobody can write to (`r-xp`, and ETXTBSY) and of which
        // no page was changed in memory: those that the next use maps are the same.
        unsafe { madvise(ptr::with_exposed_provenance_mut(address), bytes, Advice::LinuxDontNeed)? };
    }
    Ok(())
}

/// Where this program's code is mapped: address and bytes (proc_pid_smaps(5)). Not where a page is this process's own.
fn code() -> io::Result<Vec<(usize, usize)>> {
    let program = fs::read_link("/proc/self/exe")?;
    let smaps = fs::read_to_string("/proc/self/smaps")?;
    let mut lines = smaps.lines();
    let mut all = Vec::new();
    while let Some(line) = lines.next() {
        let Some(range) = code_of(line, &program) else { continue };
        let own = lines.find_map(|line| line.strip_prefix("Anonymous:"));
        if own.is_some_and(|own| own.trim() == "0 kB") {
            all.push(range);
        }
    }
    Ok(all)
}

/// `FIRST-END r-xp OFFSET DEVICE INODE   PATH`, of the program's own.
fn code_of(line: &str, program: &Path) -> Option<(usize, usize)> {
    let mut fields = line.splitn(6, ' ');
    let (first, end) = fields.next()?.split_once('-')?;
    if fields.next()? != "r-xp" || Path::new(fields.nth(3)?.trim_start()) != program {
        return None;
    }
    let (first, end) = (usize::from_str_radix(first, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some((first, end.checked_sub(first)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// KiB of this program's code that are mapped into this process.
    fn resident_kb() -> u64 {
        let program = fs::read_link("/proc/self/exe").unwrap();
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines();
        lines.find(|line| code_of(line, &program).is_some()).unwrap();
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn code_is_let_go_and_comes_back_as_it_is_used() {
        let code = code().unwrap();
        assert_eq!(code.len(), 1, "{code:?}");
        let (address, bytes) = code[0];
        // SAFETY: reads pages that are mapped for reading.
        let populated = unsafe { madvise(ptr::with_exposed_provenance_mut(address), bytes, Advice::LinuxPopulateRead) };
        if populated == Err(rustix::io::Errno::INVAL) {
            return; // before Linux 5.14 nothing maps all of it
        }
        populated.unwrap();
        let all = resident_kb();
        let_go_of_code().unwrap();
        let left = resident_kb();
        assert!(left < all, "{left} of {all} KiB");
    }

    #[test]
    fn only_code_of_the_program_itself_is_taken_for_it() {
        let program = Path::new("/opt/a b/nexus");
        assert_eq!(code_of("1000-3000 r-xp 00001000 fe:00 42    /opt/a b/nexus", program), Some((0x1000, 0x2000)));
        for other in [
            "1000-3000 r--p 00001000 fe:00 42    /opt/a b/nexus",
            "1000-3000 rwxp 00001000 fe:00 42    /opt/a b/nexus",
            "1000-3000 r-xp 00001000 fe:00 42    /usr/lib/libc.so.6",
            "1000-3000 r-xp 00000000 00:00 0 ",
            "1000-3000 r-xp 00000000 00:00 0     [vdso]",
        ] {
            assert_eq!(code_of(other, program), None, "{other}");
        }
    }
}
