//! Many clients of the event stream in one thread: they count notices and keep nothing, so that
//! reading costs little beside what is measured.

use anyhow::{Context, Result, ensure};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::Timespec;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Begins every notice and nothing else: comments, heartbeats and the framing of HTTP have no id.
const MARK: &[u8] = b"\nid: ";
/// Read at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// Sockets looked at in a round.
const ROUND: usize = 1024;
const ROUND_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// Descriptors that this program has open beside its sockets.
const OTHER_DESCRIPTORS: u64 = 64;

/// Where in [`MARK`] a stream is, and how many it has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    matched: usize,
    notices: u64,
}

impl Count {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            // The mark's first byte doesn't occur in it again, so a mismatch goes back to it or to nothing.
            self.matched = if *byte == MARK[self.matched] { self.matched + 1 } else { usize::from(*byte == MARK[0]) };
            if self.matched == MARK.len() {
                *self = Self { matched: 0, notices: self.notices + 1 };
            }
        }
    }
}

#[derive(Debug)]
struct Client {
    socket: TcpStream,
    greeted: bool,
    count: Count,
}

pub(crate) struct Subscribers {
    epoll: OwnedFd,
    clients: Vec<Client>,
    ready: Vec<Event>,
    chunk: Vec<u8>,
}

impl Subscribers {
    /// Connects `clients` clients to the event stream at `address`, and waits until each is served.
    ///
    /// # Errors
    /// When one is refused, or not served within `limit`.
    pub(crate) fn connect(address: &str, types: &str, clients: usize, limit: Duration) -> Result<Self> {
        allow_descriptors(clients as u64 + OTHER_DESCRIPTORS)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("failed to make an epoll")?;
        let mut all = Self { epoll, clients: Vec::with_capacity(clients), ready: Vec::with_capacity(ROUND), chunk: vec![0; CHUNK_BYTES] };
        let request = format!("GET /api/events/stream?types={types} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n");
        for number in 0..clients {
            let mut socket = TcpStream::connect(address).with_context(|| format!("client {number} failed to connect to {address}"))?;
            socket.write_all(request.as_bytes()).with_context(|| format!("client {number} failed to ask"))?;
            socket.set_nonblocking(true).context("failed to set up a socket")?;
            epoll::add(&all.epoll, &socket, EventData::new_u64(number as u64), EventFlags::IN).context("failed to watch a socket")?;
            all.clients.push(Client { socket, greeted: false, count: Count::default() });
        }
        let deadline = Instant::now() + limit;
        while all.clients.iter().any(|client| !client.greeted) {
            ensure!(Instant::now() < deadline, "not every client is served within {} s", limit.as_secs());
            all.round()?;
        }
        Ok(all)
    }

    /// Reads until every client has seen `each` notices.
    ///
    /// # Errors
    /// When the daemon cuts one off, sends too many, or takes longer than `limit`.
    pub(crate) fn receive(&mut self, each: u64, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.fewest() < each {
            ensure!(Instant::now() < deadline, "a client has seen only {} of {each} notices within {} s", self.fewest(), limit.as_secs());
            self.round()?;
        }
        let most = self.clients.iter().map(|client| client.count.notices).max().unwrap_or(0);
        ensure!(most == each, "a client has seen {most} notices of {each}");
        Ok(())
    }

    fn fewest(&self) -> u64 {
        self.clients.iter().map(|client| client.count.notices).min().unwrap_or(0)
    }

    /// Reads once from each socket that has something.
    fn round(&mut self) -> Result<()> {
        self.ready.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.ready), Some(&ROUND_WAIT)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("failed to wait for sockets"),
        }
        for event in &self.ready {
            let place = event.data;
            let Some(client) = usize::try_from(place.u64()).ok().and_then(|number| self.clients.get_mut(number)) else { continue };
            match client.socket.read(&mut self.chunk) {
                Ok(got) => {
                    ensure!(got > 0, "the daemon has cut off a client after {} notices", client.count.notices);
                    ensure!(client.greeted || self.chunk.starts_with(b"HTTP/1.1 200 "), "a client was refused");
                    client.greeted = true;
                    client.count.push(&self.chunk[..got]);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("failed to read the event stream"),
            }
        }
        Ok(())
    }
}

/// Raises the limit of open files, for this program and the daemons that it starts.
///
/// # Errors
/// When the hard limit is lower.
pub(crate) fn allow_descriptors(wanted: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    ensure!(limit.maximum.is_none_or(|maximum| maximum >= wanted), "{wanted} open files are needed; raise `ulimit -Hn`");
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }).context("failed to raise the limit of open files")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n9\r\n: nexus\n\n\r\n40\r\nid: 1:1\nevent: a\ndata: {\"x\":\"\\nid: \"}\n\nid: 1:2\ndata: {}\n\n\r\nevent: heartbeat\ndata: {}\n\n";

    #[test]
    fn counts_notices_however_the_stream_is_cut() {
        for size in 1..STREAM.len() {
            let mut count = Count::default();
            STREAM.chunks(size).for_each(|piece| count.push(piece));
            assert_eq!(count.notices, 2, "in pieces of {size}");
        }
    }

    #[test]
    fn a_mark_may_begin_where_another_fails() {
        let mut count = Count::default();
        count.push(b"\n\nid: \nid\nid: ");
        assert_eq!(count.notices, 2);
    }
}
