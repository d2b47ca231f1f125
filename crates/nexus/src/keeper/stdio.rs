//! The pipes and files that a child has as stdin, stdout and stderr, with the daemon's ends of them. Starts nothing.

use super::Stdin;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};
use std::fs::File;
use std::io::{Seek, Write};
use tokio::net::unix::pipe;

/// The most bytes that a pipe has in it before its child starts: what Linux allows everybody, by default.
const OPEN_BYTES_MAX: usize = 1024 * 1024;

/// The daemon's end, where it keeps one, and the child's.
pub(super) fn stdin_of(kind: Stdin) -> std::io::Result<(Option<pipe::Sender>, OwnedFd)> {
    match kind {
        Stdin::Null => Ok((None, File::open("/dev/null")?.into())),
        Stdin::Piped => {
            let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            Ok((Some(pipe::Sender::from_owned_fd(ours)?), theirs))
        }
        Stdin::Whole(bytes) => Ok((None, memory_with(&bytes)?)),
        Stdin::Open(bytes) => match pipe_with_all_of(&bytes)? {
            Some((theirs, ours)) => Ok((Some(pipe::Sender::from_owned_fd(ours)?), theirs)),
            None => Ok((None, memory_with(&bytes)?)),
        },
    }
}

pub(super) fn out_pipe() -> std::io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(ours)?, theirs))
}

fn memory_with(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let mut memory = File::from(rustix::fs::memfd_create("nexus-stdin", rustix::fs::MemfdFlags::CLOEXEC)?);
    memory.write_all(bytes)?;
    memory.rewind()?;
    Ok(memory.into())
}

/// The reading and the writing end of a pipe that has all of `bytes` in it. `None` where they don't fit: the system may
/// allow this user less than it does by default.
fn pipe_with_all_of(bytes: &[u8]) -> std::io::Result<Option<(OwnedFd, OwnedFd)>> {
    if bytes.len() > OPEN_BYTES_MAX {
        return Ok(None);
    }
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
    if fcntl_getpipe_size(&ours)? < bytes.len() && fcntl_setpipe_size(&ours, bytes.len()).is_err() {
        return Ok(None);
    }
    // Of this end only: what doesn't fit after all is told, and blocks nobody.
    rustix::io::ioctl_fionbio(&ours, true)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(&ours, rest) {
            Ok(0) | Err(Errno::AGAIN) => return Ok(None),
            Ok(count) => rest = &rest[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some((theirs, ours)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Read;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn an_open_stdin_begins_with_all_of_its_bytes_and_goes_on() {
        for size in [0, 10, 64 * 1024, 64 * 1024 + 1, 300_000] {
            let (sender, theirs) = stdin_of(Stdin::Open(vec![b'x'; size])).unwrap();
            let mut theirs = File::from(theirs);
            let mut begin = vec![0; size];
            theirs.read_exact(&mut begin).unwrap();
            assert!(begin.iter().all(|byte| *byte == b'x'), "{size}");
            // Where the system gives no such pipe there is a memory file, which ends here.
            if let Some(mut sender) = sender {
                sender.write_all(b"more").await.unwrap();
                drop(sender);
                let mut more = Vec::new();
                theirs.read_to_end(&mut more).unwrap();
                assert_eq!(more, b"more", "{size}");
            } else {
                assert!(size > 4096, "a page has room for {size} bytes");
            }
        }
    }

    #[tokio::test]
    async fn what_no_pipe_holds_is_whole_and_closed() {
        let (sender, theirs) = stdin_of(Stdin::Open(vec![b'x'; OPEN_BYTES_MAX + 1])).unwrap();
        assert!(sender.is_none());
        let mut all = Vec::new();
        File::from(theirs).read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), OPEN_BYTES_MAX + 1);
    }
}
