//! The messages between daemon and keeper: one JSON text per SEQPACKET message, descriptors beside it.
//!
//! The keeper outlives an upgrade of the daemon, so the first message of either side names the
//! protocol's version. A body over [`INLINE_BYTES_MAX`] travels in a memfd, since a packet ends at
//! about 208 KiB and an environment may be larger.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::{Deserialize, Serialize};
use std::io::{IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;

pub(crate) const VERSION: u32 = 2;
const INLINE_BYTES_MAX: usize = 64 * 1024;
/// Largest body in a memfd: `ARG_MAX` territory, beyond which exec would fail anyway.
const BODY_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// stdin, stdout, stderr and perhaps a memfd.
const FDS_MAX: usize = 4;

/// Daemon to keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Down {
    /// Comes with three descriptors: the child's stdin, stdout and stderr.
    Spawn(Order),
    /// To the child's process group.
    Signal { id: u64, signal: i32 },
    /// KILL, and everything that descends from it.
    Kill { id: u64 },
}

/// What to exec.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: u64,
    pub(crate) argv: Vec<String>,
    /// The whole environment, `NAME=value`.
    pub(crate) env: Vec<String>,
    pub(crate) cwd: Option<String>,
    /// The value of `NEXUS_CHILD_ID`, by which stray descendants are recognised.
    pub(crate) mark: String,
    /// The directory of the cgroup below which the child is to have its own, where there is one.
    pub(crate) cgroup: Option<String>,
}

/// Keeper to daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Up {
    Hello {
        version: u32,
    },
    Spawned {
        id: u64,
        pid: u32,
        /// Why it has no cgroup of its own although it was to have one: an error number.
        outside: Option<i32>,
    },
    Failed {
        id: u64,
        at: Step,
        errno: i32,
    },
    /// The process and all it left behind are gone, but for `stragglers` that could not be killed.
    Exited {
        id: u64,
        code: Option<i32>,
        signal: Option<i32>,
        stragglers: u32,
    },
}

/// Where starting a child failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The order itself: too large, a NUL byte, no descriptors.
    Order,
    Clone,
    Stdio,
    Chdir,
    Exec,
}

const TAG_INLINE: u8 = b'J';
const TAG_MEMFD: u8 = b'M';

/// A message ready to be sent: bytes and the memfd that holds its body, if any.
#[derive(Debug)]
pub(crate) struct Packet {
    bytes: Vec<u8>,
    body: Option<OwnedFd>,
}

impl Packet {
    /// Fails with `E2BIG` for a body that [`receive`] would refuse unread: nobody would answer it.
    pub(crate) fn new(message: &impl Serialize) -> std::io::Result<Self> {
        let json = serde_json::to_vec(message)?;
        if json.len() <= INLINE_BYTES_MAX {
            let mut bytes = Vec::with_capacity(json.len() + 1);
            bytes.push(TAG_INLINE);
            bytes.extend_from_slice(&json);
            return Ok(Self { bytes, body: None });
        }
        if json.len() as u64 > BODY_BYTES_MAX {
            return Err(Errno::TOOBIG.into());
        }
        let mut file = std::fs::File::from(memfd_create("nexus-order", MemfdFlags::CLOEXEC)?);
        file.write_all(&json)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Self { bytes: vec![TAG_MEMFD], body: Some(file.into()) })
    }

    /// Sends without waiting. `Errno::AGAIN` means: keep it and try when the socket is writable.
    pub(crate) fn send(&self, socket: impl AsFd, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut all: Vec<BorrowedFd<'_>> = fds.to_vec();
        all.extend(self.body.as_ref().map(AsFd::as_fd));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !all.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&all)) {
            return Err(Errno::MSGSIZE);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::net::sendmsg(socket, &[IoSlice::new(&self.bytes)], &mut control, flags).map(|_| ())
    }
}

/// What [`receive`] found.
#[derive(Debug)]
pub(crate) enum Received<T> {
    Message(T, Vec<OwnedFd>),
    /// Not a message of this protocol: dropped, with the reason.
    Garbage(String),
    /// Nothing there now.
    Empty,
    /// The other side is gone.
    Closed,
}

/// Takes one message off the socket without waiting. Descriptors arrive close-on-exec.
pub(crate) fn receive<T: for<'de> Deserialize<'de>>(socket: impl AsFd, buffer: &mut Vec<u8>) -> Received<T> {
    buffer.resize(INLINE_BYTES_MAX + 1, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
        Ok(got) => got,
        Err(Errno::AGAIN | Errno::INTR) => return Received::Empty,
        Err(_) => return Received::Closed,
    };
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let parsed = match buffer[..got.bytes].split_first() {
        None => return Received::Closed,
        Some((&TAG_INLINE, json)) => serde_json::from_slice(json).map_err(|error| error.to_string()),
        Some((&TAG_MEMFD, _)) => match fds.pop() {
            Some(body) => read_body(body).and_then(|json| serde_json::from_slice(&json).map_err(|error| error.to_string())),
            None => Err("the body's descriptor is missing".into()),
        },
        Some((tag, _)) => Err(format!("unknown tag {tag}")),
    };
    match parsed {
        Ok(message) => Received::Message(message, fds),
        Err(error) => Received::Garbage(error),
    }
}

fn read_body(fd: OwnedFd) -> Result<Vec<u8>, String> {
    let mut json = Vec::new();
    let taken = std::fs::File::from(fd).take(BODY_BYTES_MAX + 1).read_to_end(&mut json);
    match taken {
        Ok(_) if json.len() as u64 > BODY_BYTES_MAX => Err(format!("body over {BODY_BYTES_MAX} bytes")),
        Ok(_) => Ok(json),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn small_and_large_orders_arrive_with_their_descriptors() {
        let (a, b) = pair();
        for size in [10, 500_000] {
            let order = Down::Spawn(Order { id: 3, argv: vec!["x".repeat(size)], env: vec![], cwd: None, mark: "m".into(), cgroup: None });
            let null = std::fs::File::open("/dev/null").unwrap();
            let fds = [null.as_fd(), null.as_fd(), null.as_fd()];
            Packet::new(&order).unwrap().send(&a, &fds).unwrap();
            match receive::<Down>(&b, &mut Vec::new()) {
                Received::Message(Down::Spawn(order), fds) => {
                    assert_eq!(order.argv[0].len(), size);
                    assert_eq!(fds.len(), 3);
                }
                other @ (Received::Message(..) | Received::Garbage(_) | Received::Empty | Received::Closed) => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_body_that_the_other_side_would_refuse_is_not_sent() {
        let oversized = "x".repeat(usize::try_from(BODY_BYTES_MAX).unwrap());
        let order = Down::Spawn(Order { id: 3, argv: vec![oversized], env: vec![], cwd: None, mark: "m".into(), cgroup: None });
        assert_eq!(Packet::new(&order).unwrap_err().raw_os_error(), Some(libc::E2BIG));
    }

    #[test]
    fn garbage_is_named_and_a_closed_peer_is_seen() {
        let (a, b) = pair();
        rustix::io::write(&a, b"J{nonsense").unwrap();
        assert!(matches!(receive::<Down>(&b, &mut Vec::new()), Received::Garbage(_)));
        rustix::io::write(&a, b"M").unwrap();
        assert!(matches!(receive::<Down>(&b, &mut Vec::new()), Received::Garbage(_)));
        assert!(matches!(receive::<Down>(&b, &mut Vec::new()), Received::Empty));
        drop(a);
        assert!(matches!(receive::<Down>(&b, &mut Vec::new()), Received::Closed));
    }
}
