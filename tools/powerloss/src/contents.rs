//! Calls on descriptors: what changes the contents of a file, what syncs, and what copies or closes a descriptor.

use crate::log::{self, Kind, Record, Turn};
use crate::next::interpose;
use crate::read_only;
use crate::watch::{self, Recorded};
use libc::{c_char, c_int, c_uint, c_void, iovec, off_t, size_t, ssize_t};

type Address = *mut c_void;

interpose!([write] (fd: c_int, data: *const c_void, bytes: size_t) -> ssize_t => on_write);
interpose!([pwrite pwrite64] (fd: c_int, data: *const c_void, bytes: size_t, at: off_t) -> ssize_t => on_pwrite);
interpose!([writev] (fd: c_int, parts: *const iovec, count: c_int) -> ssize_t => on_writev);
interpose!([pwritev pwritev64] (fd: c_int, parts: *const iovec, count: c_int, at: off_t) -> ssize_t => on_pwritev);
interpose!([pwritev2 pwritev64v2]
    (fd: c_int, parts: *const iovec, count: c_int, at: off_t, flags: c_int)
    -> ssize_t => on_pwritev2);
interpose!([copy_file_range]
    (from: c_int, from_at: *mut off_t, to: c_int, to_at: *mut off_t, bytes: size_t, flags: c_uint)
    -> ssize_t => on_copy);
interpose!([sendfile sendfile64]
    (to: c_int, from: c_int, from_at: *mut off_t, bytes: size_t)
    -> ssize_t => on_sendfile);
interpose!([splice]
    (from: c_int, from_at: *mut off_t, to: c_int, to_at: *mut off_t, bytes: size_t, flags: c_uint)
    -> ssize_t => on_splice);
interpose!([ftruncate ftruncate64] (fd: c_int, size: off_t) -> c_int => on_ftruncate);
interpose!([truncate truncate64] (path: *const c_char, size: off_t) -> c_int => on_truncate);
interpose!([fallocate fallocate64] (fd: c_int, mode: c_int, at: off_t, bytes: off_t) -> c_int => on_fallocate);
interpose!([posix_fallocate posix_fallocate64] (fd: c_int, at: off_t, bytes: off_t) -> c_int => on_posix_fallocate);
interpose!([fsync fdatasync] (fd: c_int) -> c_int => on_sync);
interpose!([mmap mmap64] (at: Address, bytes: size_t, access: c_int, flags: c_int, fd: c_int, offset: off_t) -> Address => on_mmap);
interpose!([close] (fd: c_int) -> c_int => on_close);
interpose!([dup] (fd: c_int) -> c_int => on_dup);
interpose!([dup2] (fd: c_int, to: c_int) -> c_int => on_dup2);
interpose!([dup3] (fd: c_int, to: c_int, flags: c_int) -> c_int => on_dup3);
interpose!([fcntl fcntl64] (fd: c_int, command: c_int, argument: size_t) -> c_int => on_fcntl);

fn on_write(real: impl FnOnce() -> ssize_t, fd: c_int, data: *const c_void, bytes: size_t) -> ssize_t {
    if read_only::refuses(fd) {
        return -1;
    }
    match Recorded::of(fd) {
        Some(file) => written(&file, None, &[bytes_at(data, bytes)], real),
        None => real(),
    }
}

fn on_pwrite(real: impl FnOnce() -> ssize_t, fd: c_int, data: *const c_void, bytes: size_t, at: off_t) -> ssize_t {
    if read_only::refuses(fd) {
        return -1;
    }
    match Recorded::of(fd) {
        Some(file) => written(&file, Some(at), &[bytes_at(data, bytes)], real),
        None => real(),
    }
}

fn on_writev(real: impl FnOnce() -> ssize_t, fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    if read_only::refuses(fd) {
        return -1;
    }
    match Recorded::of(fd) {
        Some(file) => written(&file, None, &parts_at(parts, count), real),
        None => real(),
    }
}

fn on_pwritev(real: impl FnOnce() -> ssize_t, fd: c_int, parts: *const iovec, count: c_int, at: off_t) -> ssize_t {
    if read_only::refuses(fd) {
        return -1;
    }
    match Recorded::of(fd) {
        Some(file) => written(&file, Some(at), &parts_at(parts, count), real),
        None => real(),
    }
}

/// Its flags change what a write means, so it is refused in the way of a kernel that doesn't know them.
fn on_pwritev2(real: impl FnOnce() -> ssize_t, fd: c_int, _: *const iovec, _: c_int, _: off_t, _: c_int) -> ssize_t {
    unless_recorded(fd, libc::EOPNOTSUPP, real)
}

/// The three that copy within the kernel are refused, as between file systems that can't: callers then read and write.
fn on_copy(real: impl FnOnce() -> ssize_t, _: c_int, _: *mut off_t, to: c_int, _: *mut off_t, _: size_t, _: c_uint) -> ssize_t {
    unless_recorded(to, libc::EXDEV, real)
}

fn on_sendfile(real: impl FnOnce() -> ssize_t, to: c_int, _: c_int, _: *mut off_t, _: size_t) -> ssize_t {
    unless_recorded(to, libc::EINVAL, real)
}

fn on_splice(real: impl FnOnce() -> ssize_t, _: c_int, _: *mut off_t, to: c_int, _: *mut off_t, _: size_t, _: c_uint) -> ssize_t {
    unless_recorded(to, libc::EINVAL, real)
}

fn unless_recorded(fd: c_int, error: c_int, real: impl FnOnce() -> ssize_t) -> ssize_t {
    if read_only::refuses(fd) {
        return -1;
    }
    if Recorded::of(fd).is_none() {
        return real();
    }
    log::set_errno(error);
    -1
}

fn written(file: &Recorded, at: Option<off_t>, data: &[&[u8]], real: impl FnOnce() -> ssize_t) -> ssize_t {
    let turn = Turn::take(file.watch);
    let path = file.path();
    turn.issue(&Record { inode: file.inode, offset: position(file, at), data, ..Record::new(Kind::Write, &path) });
    let result = real();
    turn.done(result as i64, file.inode);
    result
}

/// Where a write will go. A file that is opened for appending is appended to by `pwrite` as well: pwrite(2), BUGS.
fn position(file: &Recorded, at: Option<off_t>) -> u64 {
    // SAFETY: no pointers.
    let flags = unsafe { libc::syscall(libc::SYS_fcntl, file.fd, libc::F_GETFL) };
    if flags & i64::from(libc::O_APPEND) != 0 {
        return file.size();
    }
    // SAFETY: no pointers.
    let at = at.unwrap_or_else(|| unsafe { libc::lseek(file.fd, 0, libc::SEEK_CUR) });
    u64::try_from(at).unwrap_or_default() // a negative offset is refused by the real call
}

fn on_ftruncate(real: impl FnOnce() -> c_int, fd: c_int, size: off_t) -> c_int {
    if read_only::refuses(fd) {
        return -1;
    }
    match Recorded::of(fd) {
        Some(file) => {
            let turn = Turn::take(file.watch);
            resized(&turn, &file.path(), file.inode, u64::try_from(size).unwrap_or_default(), real)
        }
        None => real(),
    }
}

fn on_truncate(real: impl FnOnce() -> c_int, path: *const c_char, size: off_t) -> c_int {
    let Some(watch) = crate::watch() else { return real() };
    let Some(name) = watch.locate(libc::AT_FDCWD, path) else { return real() };
    let turn = Turn::take(watch);
    match watch.stat(&name) {
        Some(stat) if watch::is_file(&stat) => resized(&turn, &name, stat.st_ino, u64::try_from(size).unwrap_or_default(), real),
        Some(_) | None => real(),
    }
}

/// Records a call that gives a file this size.
pub(crate) fn resized(turn: &Turn<'_>, path: &[u8], inode: u64, size: u64, real: impl FnOnce() -> c_int) -> c_int {
    turn.issue(&Record { inode, offset: size, ..Record::new(Kind::Truncate, path) });
    let result = real();
    turn.done(i64::from(result), inode);
    result
}

fn on_fallocate(real: impl FnOnce() -> c_int, fd: c_int, mode: c_int, at: off_t, bytes: off_t) -> c_int {
    if read_only::refuses(fd) {
        return -1;
    }
    match Recorded::of(fd) {
        Some(_) if mode != 0 && mode != libc::FALLOC_FL_KEEP_SIZE => log::die("fallocate with a mode is not recorded"),
        Some(file) if mode == 0 => {
            let turn = Turn::take(file.watch);
            match grown(&file, at, bytes) {
                Some(size) => resized(&turn, &file.path(), file.inode, size, real),
                None => real(),
            }
        }
        Some(_) | None => real(),
    }
}

/// Unlike the others it returns the error's number, and leaves `errno` alone.
fn on_posix_fallocate(real: impl FnOnce() -> c_int, fd: c_int, at: off_t, bytes: off_t) -> c_int {
    let kept = log::errno();
    if read_only::refuses(fd) {
        log::set_errno(kept);
        return libc::EROFS;
    }
    let Some(file) = Recorded::of(fd) else { return real() };
    let turn = Turn::take(file.watch);
    let Some(size) = grown(&file, at, bytes) else { return real() };
    turn.issue(&Record { inode: file.inode, offset: size, ..Record::new(Kind::Truncate, &file.path()) });
    let error = real();
    log::set_errno(error);
    turn.done(if error == 0 { 0 } else { -1 }, file.inode);
    log::set_errno(kept);
    error
}

/// The file's size once there is room up to there, if that is more than now.
fn grown(file: &Recorded, at: off_t, bytes: off_t) -> Option<u64> {
    let end = u64::try_from(at.checked_add(bytes)?).ok()?;
    (end > file.size()).then_some(end)
}

fn on_sync(real: impl FnOnce() -> c_int, fd: c_int) -> c_int {
    if let Some(file) = Recorded::of(fd) {
        let turn = Turn::take(file.watch);
        turn.issue(&Record { inode: file.inode, ..Record::new(Kind::Sync, &file.path()) });
        return synced(&turn, file.inode, real);
    }
    // Directories are not remembered: they are opened by other means too, and are synced seldom.
    let Some(watch) = crate::watch() else { return real() };
    let is_directory = watch::stat_fd(fd).is_some_and(|stat| watch::is_directory(&stat));
    let Some(path) = is_directory.then(|| watch.path_of(fd)).flatten() else { return real() };
    let turn = Turn::take(watch);
    turn.issue(&Record::new(Kind::SyncDir, &path));
    synced(&turn, 0, real)
}

fn synced(turn: &Turn<'_>, inode: u64, real: impl FnOnce() -> c_int) -> c_int {
    let result = real();
    turn.done(i64::from(result), inode);
    result
}

fn on_mmap(real: impl FnOnce() -> Address, _: Address, _: size_t, access: c_int, flags: c_int, fd: c_int, _: off_t) -> Address {
    // MAP_SHARED_VALIDATE has the bit of MAP_SHARED, MAP_PRIVATE hasn't.
    if access & libc::PROT_WRITE != 0 && flags & libc::MAP_SHARED != 0 && Recorded::of(fd).is_some() {
        log::die("writes through a shared mapping are not recorded");
    }
    real()
}

fn on_close(real: impl FnOnce() -> c_int, fd: c_int) -> c_int {
    // Before the real call: behind it the number may be somebody else's already.
    if watch::inode_of(fd) != 0 && crate::watch().is_some() {
        watch::remember(fd, 0);
    }
    real()
}

fn on_dup(real: impl FnOnce() -> c_int, fd: c_int) -> c_int {
    copied(fd, real())
}

fn on_dup2(real: impl FnOnce() -> c_int, fd: c_int, _: c_int) -> c_int {
    copied(fd, real())
}

fn on_dup3(real: impl FnOnce() -> c_int, fd: c_int, _: c_int, _: c_int) -> c_int {
    copied(fd, real())
}

fn on_fcntl(real: impl FnOnce() -> c_int, fd: c_int, command: c_int, _: size_t) -> c_int {
    let result = real();
    if command == libc::F_DUPFD || command == libc::F_DUPFD_CLOEXEC { copied(fd, result) } else { result }
}

/// What is known of a descriptor holds for its copy; of what the copy's number was before, nothing does.
fn copied(fd: c_int, copy: c_int) -> c_int {
    let inode = watch::inode_of(fd);
    if copy >= 0 && (inode != 0 || watch::inode_of(copy) != 0) && crate::watch().is_some() {
        watch::remember(copy, inode);
    }
    copy
}

fn bytes_at<'a>(data: *const c_void, bytes: size_t) -> &'a [u8] {
    if bytes == 0 {
        return &[];
    }
    // SAFETY: the caller owes libc this many readable bytes, until the call returns; the slice is not kept longer.
    unsafe { std::slice::from_raw_parts(data.cast(), bytes) }
}

fn parts_at<'a>(parts: *const iovec, count: c_int) -> Vec<&'a [u8]> {
    let count = usize::try_from(count).unwrap_or_default();
    if count == 0 {
        return Vec::new();
    }
    // SAFETY: the caller owes libc this many parts, until the call returns; the slice is not kept longer.
    let parts = unsafe { std::slice::from_raw_parts(parts, count) };
    parts.iter().map(|part| bytes_at(part.iov_base, part.iov_len)).collect()
}
