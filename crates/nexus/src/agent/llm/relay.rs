//! The way from the HTTP client to an endpoint: a relay within the daemon that bounds what comes back. `genai`
//! collects one event of a stream, and the body of an error answer, whole before it hands them over, so the bounds
//! have to lie below it. Changes nothing of what passes. What is encrypted, that of https, it can't read: there it knows
//! how much comes back, and not how long an event is.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::Url;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, copy, sink};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{TcpStream, UnixListener, UnixStream, lookup_host};
use tokio::sync::OnceCell;

use super::event_bound::{EVENT_BYTES_MAX, EventBound, EventEnd};

/// The most that comes back on one connection, which has one answer, in bytes. Servers wrap each token of an
/// answer in some 250 bytes: it is room for more than the hundred thousand of the longest answers.
pub const RESPONSE_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Read at once. `genai` looks at the whole of an event for each part that comes, so parts are not to be small.
const BUFFER_BYTES: usize = 256 * 1024;

/// How long one of the endpoint's addresses may take to answer before the next is tried.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(3);

/// One endpoint's relay. Nothing listens before its first [`Self::serve`].
#[derive(Debug)]
pub(super) struct Relay {
    host: String,
    port: u16,
    /// What ends an event, where that can be read.
    event_end: Option<EventEnd>,
    path: PathBuf,
    listener: OnceCell<UnixListener>,
    /// Connections for which the endpoint couldn't be reached. Behind the relay the client can't tell that.
    unreached: Arc<AtomicU64>,
}

impl Relay {
    pub(super) fn new(base: &Url, event_end: EventEnd) -> Self {
        // An IPv6 address stands in brackets there.
        let host = base.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = base.port_or_known_default().unwrap_or_default();
        // An abstract name: no file that a crash could leave.
        let path = PathBuf::from(format!("\0nexus-model-{}", ulid::Ulid::generate()));
        let event_end = (base.scheme() == "http").then_some(event_end);
        Self { host, port, event_end, path, listener: OnceCell::new(), unreached: Arc::default() }
    }

    /// How often the endpoint could not be reached so far; raised before the client hears of it.
    pub(super) fn unreached(&self) -> u64 {
        self.unreached.load(Ordering::Acquire)
    }

    /// Where the HTTP client has to connect to.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets connections through for as long as this is polled, and returns only why it can't. Several may serve at
    /// once; a connection that has begun needs none of them, and ends when either side hangs up.
    pub(super) async fn serve(&self) -> io::Error {
        let listener = match self.listener.get_or_try_init(|| async { UnixListener::bind(&self.path) }).await {
            Ok(listener) => listener,
            Err(error) => return error,
        };
        loop {
            match listener.accept().await {
                Ok((client, _)) if is_own(&client) => {
                    let passing = pass(client, self.host.clone(), self.port, self.event_end, self.unreached.clone());
                    drop(crate::watch::helper("model.relay", passing));
                }
                Ok(_) => tracing::warn!(target: "nexus::agent", "another process wanted to use the way to a model; refused"),
                Err(error) => return error,
            }
        }
    }
}

/// Whether this process is at the other end: an abstract name is for every user of the machine to see.
fn is_own(client: &UnixStream) -> bool {
    let pid = client.peer_cred().ok().and_then(|peer| peer.pid());
    pid.and_then(|pid| u32::try_from(pid).ok()) == Some(std::process::id())
}

async fn pass(client: UnixStream, host: String, port: u16, event_end: Option<EventEnd>, unreached: Arc<AtomicU64>) {
    let server = match connect(&host, port).await {
        Ok(server) => server,
        Err(error) => {
            unreached.fetch_add(1, Ordering::AcqRel);
            tracing::warn!(target: "nexus::agent", host, port, %error, "the endpoint of a model can't be reached");
            return; // only now the client is hung up on
        }
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let mut answer = BufReader::with_capacity(BUFFER_BYTES, from_server.take(RESPONSE_BYTES_MAX));
    let is_too_long = tokio::select! {
        () = until_hung_up(&mut from_client, &mut to_server) => false,
        is_too_long = pass_back(&mut answer, &mut to_client, event_end.map(EventBound::new)) => is_too_long,
    };
    if is_too_long {
        let limit_bytes = EVENT_BYTES_MAX;
        tracing::warn!(target: "nexus::agent", host, port, limit_bytes, "the endpoint of a model sends an event without end; cut off");
    }
    if answer.get_ref().limit() == 0 {
        tracing::warn!(target: "nexus::agent", host, port, limit_bytes = RESPONSE_BYTES_MAX, "the endpoint of a model sends too much; cut off");
    }
}

/// Passes the answer on until either side is gone; how that failed tells nothing, and the other learns it now. True
/// when it was cut off for an event that is too long.
async fn pass_back(
    answer: &mut (impl AsyncBufRead + Unpin),
    to_client: &mut (impl AsyncWrite + Unpin),
    mut bound: Option<EventBound>,
) -> bool {
    loop {
        let part = match answer.fill_buf().await {
            Ok(part) if !part.is_empty() => part,
            Ok(_) | Err(_) => return false,
        };
        if bound.as_mut().is_some_and(|bound| !bound.take(part)) {
            return true;
        }
        if to_client.write_all(part).await.is_err() {
            return false;
        }
        let passed = part.len();
        answer.consume(passed);
    }
}

/// Passes the request on until the client hangs up. A server that takes no more of it may still be answering.
async fn until_hung_up(from_client: &mut OwnedReadHalf, to_server: &mut (impl AsyncWrite + Unpin)) {
    if copy(from_client, to_server).await.is_err() {
        copy(from_client, &mut sink()).await.ok(); // an error is the end as well
    }
}

async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for address in lookup_host((host, port)).await? {
        match tokio::time::timeout(ADDRESS_PATIENCE, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => failed = error,
            Err(_) => failed = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failed)
}
