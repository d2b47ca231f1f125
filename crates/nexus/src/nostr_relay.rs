//! The embedded relay, `nexus nostr relay`: a small Nostr relay for one machine (NIP-01, 09, 11, 40, 42), which
//! keeps what it is given. A program of its own: its port, its database and the words of the protocol are all
//! that it shares with anybody. It knows of no daemon.

mod connection;
mod event;
mod filter;
mod find;
mod info;
mod limits;
mod listener;
mod message;
mod rows;
mod session;
mod store;

pub use rows::RowsError;

use crate::daemon::paths::private_dir;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{Ask, Live};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// What a relay is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Port 0 takes any that is free.
    pub listen: SocketAddr,
    /// Where its files are; made if it isn't there.
    pub directory: PathBuf,
    /// Serve only those who say who they are (NIP-42).
    pub auth: bool,
    /// Listen where other machines can connect.
    pub allow_external: bool,
    /// How large the database may become.
    pub max_mb: u32,
}

/// Why a relay can't be started.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("{0} can be reached by other machines; add --allow-external if that is meant")]
    External(SocketAddr),
    #[error("failed to use the relay's directory `{path}`")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another relay uses `{0}`; stop it, or give this one another --directory")]
    InUse(PathBuf),
    #[error(transparent)]
    Rows(#[from] RowsError),
    #[error("failed to start the database's thread")]
    Thread(#[source] io::Error),
    #[error("failed to listen on {address}; free it, or choose another one with --listen")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// What all connections use.
#[derive(Debug)]
struct Shared {
    store: mpsc::Sender<Ask>,
    live: broadcast::Sender<Live>,
    auth: bool,
    is_loopback: bool,
}

/// A relay that has its port and its database, and serves nobody yet.
#[derive(Debug)]
pub struct Relay {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    stored: oneshot::Receiver<()>,
    /// Says that the directory is taken, for as long as this lives.
    _lock: File,
}

impl Relay {
    /// Takes the directory, the database and the port.
    ///
    /// # Errors
    /// [`RelayError`]; nothing is left open then.
    pub async fn open(options: Options) -> Result<Self, RelayError> {
        if !options.listen.ip().is_loopback() && !options.allow_external {
            return Err(RelayError::External(options.listen));
        }
        let failed = |source| RelayError::Directory { path: options.directory.clone(), source };
        private_dir(&options.directory).map_err(failed)?;
        let lock = private_file(&options.directory.join("relay.lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(RelayError::InUse(options.directory)),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let database = options.directory.join("relay.db");
        // SQLite gives the files beside it the same permissions.
        private_file(&database).map_err(failed)?;
        let rows = rows::Rows::open(&database, options.max_mb)?;
        let not_listening = |source| RelayError::Listen { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(not_listening)?;
        let address = listener.local_addr().map_err(not_listening)?;
        let live = connection::line();
        let (store, stored) = store::start(rows, live.clone()).map_err(RelayError::Thread)?;
        let shared = Arc::new(Shared { store, live, auth: options.auth, is_loopback: options.listen.ip().is_loopback() });
        Ok(Self { listener, address, shared, stored, _lock: lock })
    }

    /// `ws://ADDRESS:PORT`.
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Serves until `stop`. Returns when every client was told, and everything that was taken is on disk.
    pub async fn serve(self, stop: CancellationToken) {
        let Self { listener, address: _, shared, stored, _lock } = self;
        listener::serve(listener, shared.clone(), &stop).await;
        // With the last who could ask, the database's thread ends.
        drop(shared);
        match timeout(limits::STORE_CLOSE, stored).await {
            // Its end is all that is waited for: nothing is sent.
            Ok(_) => {}
            Err(_) => say("the database takes too long to close; what was answered is on disk"),
        }
    }
}

fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// What a client has to sign to show who it is: nobody can guess it.
fn challenge() -> String {
    format!("{}{}", ulid::Ulid::generate(), ulid::Ulid::generate())
}

/// Writes a line to stderr.
fn say(text: &str) {
    // When stderr is gone nobody is left to tell.
    writeln!(io::stderr(), "relay: {text}").ok();
}
