//! Calls on paths: what creates, renames and removes files and directories, and what opens a descriptor.

use crate::contents::resized;
use crate::log::{self, Kind, Record, Turn};
use crate::next::interpose;
use crate::watch::{self, Watch};
use libc::{AT_FDCWD, c_char, c_int, c_uint, mode_t};

interpose!([open open64] (path: *const c_char, flags: c_int, mode: mode_t) -> c_int => on_open);
interpose!([openat openat64] (directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int => on_openat);
interpose!([creat creat64] (path: *const c_char, mode: mode_t) -> c_int => on_creat);
interpose!([mkdir] (path: *const c_char, mode: mode_t) -> c_int => on_mkdir);
interpose!([mkdirat] (directory: c_int, path: *const c_char, mode: mode_t) -> c_int => on_mkdirat);
interpose!([rename] (from: *const c_char, to: *const c_char) -> c_int => on_rename);
interpose!([renameat]
    (from_directory: c_int, from: *const c_char, to_directory: c_int, to: *const c_char)
    -> c_int => on_renameat);
interpose!([renameat2]
    (from_directory: c_int, from: *const c_char, to_directory: c_int, to: *const c_char, flags: c_uint)
    -> c_int => on_renameat2);
interpose!([unlink] (path: *const c_char) -> c_int => on_unlink);
interpose!([unlinkat] (directory: c_int, path: *const c_char, flags: c_int) -> c_int => on_unlinkat);
interpose!([rmdir] (path: *const c_char) -> c_int => on_rmdir);
interpose!([link] (from: *const c_char, to: *const c_char) -> c_int => on_link);
interpose!([linkat]
    (from_directory: c_int, from: *const c_char, to_directory: c_int, to: *const c_char, flags: c_int)
    -> c_int => on_linkat);

fn on_open(real: impl FnOnce() -> c_int, path: *const c_char, flags: c_int, _: mode_t) -> c_int {
    opened(real, AT_FDCWD, path, flags)
}

fn on_openat(real: impl FnOnce() -> c_int, directory: c_int, path: *const c_char, flags: c_int, _: mode_t) -> c_int {
    opened(real, directory, path, flags)
}

fn on_creat(real: impl FnOnce() -> c_int, path: *const c_char, _: mode_t) -> c_int {
    opened(real, AT_FDCWD, path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC)
}

fn opened(real: impl FnOnce() -> c_int, directory: c_int, path: *const c_char, flags: c_int) -> c_int {
    let Some(watch) = crate::watch() else { return real() };
    let changes = flags & (libc::O_CREAT | libc::O_TRUNC) != 0;
    let fd = if changes { opened_to_change(watch, real, directory, path, flags) } else { real() };
    if fd >= 0 {
        if flags & libc::O_TMPFILE == libc::O_TMPFILE && watch.path_of(fd).is_some() {
            log::die("a file without a name is not recorded");
        }
        watch.adopt(fd);
    }
    fd
}

/// An open that may create the file or empty it.
fn opened_to_change(watch: &Watch, real: impl FnOnce() -> c_int, directory: c_int, path: *const c_char, flags: c_int) -> c_int {
    let Some(name) = watch.locate(directory, path) else { return real() };
    let turn = Turn::take(watch);
    match watch.stat(&name) {
        None if flags & libc::O_CREAT != 0 => {
            turn.issue(&Record::new(Kind::Create, &name));
            let fd = real();
            let stat = if fd >= 0 { watch::stat_fd(fd) } else { None };
            turn.done(i64::from(fd), stat.map_or(0, |stat| stat.st_ino));
            fd
        }
        Some(stat) if flags & libc::O_TRUNC != 0 && watch::is_file(&stat) => resized(&turn, &name, stat.st_ino, 0, real),
        Some(_) | None => real(),
    }
}

fn on_mkdir(real: impl FnOnce() -> c_int, path: *const c_char, _: mode_t) -> c_int {
    made(real, AT_FDCWD, path)
}

fn on_mkdirat(real: impl FnOnce() -> c_int, directory: c_int, path: *const c_char, _: mode_t) -> c_int {
    made(real, directory, path)
}

fn made(real: impl FnOnce() -> c_int, directory: c_int, path: *const c_char) -> c_int {
    let Some(watch) = crate::watch() else { return real() };
    let Some(name) = watch.locate(directory, path) else { return real() };
    let turn = Turn::take(watch);
    changed(&turn, &Record::new(Kind::MakeDir, &name), real)
}

fn on_unlink(real: impl FnOnce() -> c_int, path: *const c_char) -> c_int {
    removed(real, AT_FDCWD, path)
}

fn on_rmdir(real: impl FnOnce() -> c_int, path: *const c_char) -> c_int {
    removed(real, AT_FDCWD, path)
}

fn on_unlinkat(real: impl FnOnce() -> c_int, directory: c_int, path: *const c_char, _: c_int) -> c_int {
    removed(real, directory, path)
}

/// A call that doesn't fit what has the name, such as rmdir of a file, fails and is recorded as failed.
fn removed(real: impl FnOnce() -> c_int, directory: c_int, path: *const c_char) -> c_int {
    let Some(watch) = crate::watch() else { return real() };
    let Some(name) = watch.locate(directory, path) else { return real() };
    let turn = Turn::take(watch);
    let Some(stat) = watch.stat(&name) else { return real() };
    let kind = if watch::is_file(&stat) {
        Kind::Remove
    } else if watch::is_directory(&stat) {
        Kind::RemoveDir
    } else {
        return real();
    };
    changed(&turn, &Record { inode: stat.st_ino, ..Record::new(kind, &name) }, real)
}

fn on_rename(real: impl FnOnce() -> c_int, from: *const c_char, to: *const c_char) -> c_int {
    renamed(real, (AT_FDCWD, from), (AT_FDCWD, to), 0)
}

fn on_renameat(real: impl FnOnce() -> c_int, from_directory: c_int, from: *const c_char, to_directory: c_int, to: *const c_char) -> c_int {
    renamed(real, (from_directory, from), (to_directory, to), 0)
}

fn on_renameat2(
    real: impl FnOnce() -> c_int,
    from_directory: c_int,
    from: *const c_char,
    to_directory: c_int,
    to: *const c_char,
    flags: c_uint,
) -> c_int {
    renamed(real, (from_directory, from), (to_directory, to), flags)
}

fn renamed(real: impl FnOnce() -> c_int, from: (c_int, *const c_char), to: (c_int, *const c_char), flags: c_uint) -> c_int {
    let Some(watch) = crate::watch() else { return real() };
    let (old, new) = (watch.locate(from.0, from.1), watch.locate(to.0, to.1));
    if old.is_none() && new.is_none() {
        return real();
    }
    if flags & libc::RENAME_EXCHANGE != 0 {
        log::die("an exchange of two names is not recorded");
    }
    let turn = Turn::take(watch);
    let moved = old.as_deref().and_then(|old| watch.stat(old)).filter(|stat| watch::is_file(stat) || watch::is_directory(stat));
    match (old, new, moved) {
        (Some(old), Some(new), Some(stat)) => {
            changed(&turn, &Record { inode: stat.st_ino, to: &new, ..Record::new(Kind::Rename, &old) }, real)
        }
        // Moved out: what matters below the directory is that it is gone.
        (Some(old), None, Some(stat)) => changed(&turn, &Record { inode: stat.st_ino, ..Record::new(Kind::Remove, &old) }, real),
        (None, Some(_), None | Some(_)) => log::die("a move into the directory is not recorded"),
        (Some(_), Some(_) | None, None) | (None, None, None | Some(_)) => real(),
    }
}

fn changed(turn: &Turn<'_>, record: &Record<'_>, real: impl FnOnce() -> c_int) -> c_int {
    turn.issue(record);
    let result = real();
    turn.done(i64::from(result), record.inode);
    result
}

fn on_link(real: impl FnOnce() -> c_int, _: *const c_char, to: *const c_char) -> c_int {
    linked(real, AT_FDCWD, to)
}

fn on_linkat(real: impl FnOnce() -> c_int, _: c_int, _: *const c_char, to_directory: c_int, to: *const c_char, _: c_int) -> c_int {
    linked(real, to_directory, to)
}

fn linked(real: impl FnOnce() -> c_int, directory: c_int, path: *const c_char) -> c_int {
    if crate::watch().is_some_and(|watch| watch.locate(directory, path).is_some()) {
        log::die("a hard link is not recorded");
    }
    real()
}
