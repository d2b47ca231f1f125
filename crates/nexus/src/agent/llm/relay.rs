//! The way from the HTTP client to an endpoint: a relay within the daemon, one for each question, that bounds what comes
//! back, and encrypts what goes to https. `genai` collects one event of a stream, and the body of an error answer,
//! whole before it hands them over, so the bounds have to lie below it, and above the encryption, which lets nobody see how
//! long an event is. Changes nothing of what passes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nexus_core::config::Provider;
use reqwest::Url;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, copy, sink};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{TcpStream, UnixListener, UnixStream, lookup_host};
use tokio_rustls::TlsConnector;

use super::event_bound::{EventBound, EventEnd};
use super::provider;

/// The most that comes back on one connection, which has one answer, in bytes. Servers wrap each token of an
/// answer in some 250 bytes: it is room for more than the hundred thousand of the longest answers.
pub const RESPONSE_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Read at once. `genai` looks at the whole of an event for each part that comes, so parts are not to be small.
const BUFFER_BYTES: usize = 256 * 1024;

/// How long one of the endpoint's addresses may take to answer before the next is tried.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(3);

/// How long the endpoint may take to agree on the encryption.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);

/// One endpoint, as it is connected to.
#[derive(Debug, Clone)]
pub(super) struct Destination {
    host: String,
    port: u16,
    /// For https.
    tls: Option<Arc<ClientConfig>>,
    event_end: EventEnd,
    event_bytes_max: usize,
}

impl Destination {
    /// # Errors
    /// If the system has no certificates, which https needs.
    pub(super) fn new(base: &Url, provider: Provider) -> Result<Self, rustls::Error> {
        let tls = if base.scheme() == "https" { Some(Arc::new(tls_config()?)) } else { None };
        Ok(Self::with(base, provider, tls))
    }

    fn with(base: &Url, provider: Provider, tls: Option<Arc<ClientConfig>>) -> Self {
        // An IPv6 address stands in brackets there.
        let host = base.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = base.port_or_known_default().unwrap_or_default();
        let (event_end, event_bytes_max) = (provider::event_end(provider), provider::event_bytes_max(provider));
        Self { host, port, tls, event_end, event_bytes_max }
    }
}

/// Trusts whom the system trusts. The relay reads HTTP/1.1, and lets no endpoint choose another.
fn tls_config() -> Result<ClientConfig, rustls::Error> {
    let cryptography = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = ClientConfig::builder_with_provider(cryptography).with_safe_default_protocol_versions()?;
    let mut config = versions.with_platform_verifier()?.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The way of one question.
#[derive(Debug)]
pub(super) struct Relay {
    to: Destination,
    path: PathBuf,
    listener: UnixListener,
    /// Why the endpoint couldn't be reached. Behind the relay the client can't tell that.
    unreached: Arc<OnceLock<String>>,
}

impl Relay {
    /// # Errors
    /// If no socket can be made.
    pub(super) fn open(to: &Destination) -> io::Result<Self> {
        // An abstract name: no file that a crash could leave.
        let path = PathBuf::from(format!("\0nexus-model-{}", ulid::Ulid::generate()));
        let listener = UnixListener::bind(&path)?;
        Ok(Self { to: to.clone(), path, listener, unreached: Arc::default() })
    }

    /// Why the endpoint could not be reached, if so; known before the client hears of it.
    pub(super) fn unreached(&self) -> Option<&str> {
        self.unreached.get().map(String::as_str)
    }

    /// Where the HTTP client has to connect to.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets connections through for as long as this is polled, and returns only why it can't. A connection that has begun
    /// doesn't need it, and ends when either side hangs up.
    pub(super) async fn serve(&self) -> io::Error {
        loop {
            match self.listener.accept().await {
                Ok((client, _)) if is_own(&client) => {
                    let passing = pass(client, self.to.clone(), self.unreached.clone());
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

async fn pass(client: UnixStream, to: Destination, unreached: Arc<OnceLock<String>>) {
    let (host, port) = (to.host.as_str(), to.port);
    let (from_server, mut to_server) = match connect(&to).await {
        Ok(server) => server,
        Err(error) => {
            tracing::warn!(target: "nexus::agent", host, port, %error, "the endpoint of a model can't be reached");
            unreached.set(error.to_string()).ok(); // the first reason stays
            return; // only now the client is hung up on
        }
    };
    let (mut from_client, mut to_client) = client.into_split();
    let mut answer = BufReader::with_capacity(BUFFER_BYTES, from_server.take(RESPONSE_BYTES_MAX));
    let bound = EventBound::new(to.event_end, to.event_bytes_max);
    let is_too_long = tokio::select! {
        () = until_hung_up(&mut from_client, &mut to_server) => false,
        is_too_long = pass_back(&mut answer, &mut to_client, bound) => is_too_long,
    };
    if is_too_long {
        let limit_bytes = to.event_bytes_max;
        tracing::warn!(target: "nexus::agent", host, port, limit_bytes, "the endpoint of a model sends an event without end; cut off");
    }
    if answer.get_ref().limit() == 0 {
        let limit_bytes = RESPONSE_BYTES_MAX;
        tracing::warn!(target: "nexus::agent", host, port, limit_bytes, "the endpoint of a model sends too much; cut off");
    }
}

/// Passes the answer on until either side is gone; how that failed tells nothing, and the other learns it now. True
/// when it was cut off for an event that is too long.
async fn pass_back(answer: &mut (impl AsyncBufRead + Unpin), to_client: &mut (impl AsyncWrite + Unpin), mut bound: EventBound) -> bool {
    loop {
        let part = match answer.fill_buf().await {
            Ok(part) if !part.is_empty() => part,
            Ok(_) | Err(_) => return false,
        };
        if !bound.take(part) {
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

type FromServer = Box<dyn AsyncRead + Send + Unpin>;
type ToServer = Box<dyn AsyncWrite + Send + Unpin>;

async fn connect(to: &Destination) -> io::Result<(FromServer, ToServer)> {
    let stream = connect_tcp(&to.host, to.port).await?;
    let Some(tls) = &to.tls else {
        let (from_server, to_server) = stream.into_split();
        return Ok((Box::new(from_server), Box::new(to_server)));
    };
    let name = ServerName::try_from(to.host.clone()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let handshake = tokio::time::timeout(HANDSHAKE_PATIENCE, TlsConnector::from(tls.clone()).connect(name, stream));
    let silent = || io::Error::new(io::ErrorKind::TimedOut, "it does not agree on the encryption in time");
    let stream = handshake.await.map_err(|_| silent())??;
    let (from_server, to_server) = tokio::io::split(stream);
    Ok((Box::new(from_server), Box::new(to_server)))
}

async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::event_bound::EVENT_BYTES_MAX;
    use super::*;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{RootCertStore, ServerConfig};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";

    #[test]
    fn endpoints_are_spoken_to_as_genai_speaks_and_the_machines_authorities_are_believed() {
        assert_eq!(tls_config().unwrap().alpn_protocols, [b"http/1.1".to_vec()]);
    }

    /// Whom the tests' certificate is for, and who is at this machine as well.
    const NAMED: &str = "127.0.0.1:0";
    const UNNAMED: &str = "127.0.0.2:0";

    /// Somewhere to listen, encrypted with a certificate of the tests' own authority, and the way there for who trusts `roots`.
    async fn endpoint(address: &str, roots: RootCertStore) -> (TcpListener, TlsAcceptor, Destination) {
        let certificate = CertificateDer::from_pem_slice(include_bytes!("../../../tests/gitserver/tls/certificate.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_slice(include_bytes!("../../../tests/gitserver/tls/key.pem")).unwrap();
        let cryptography = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server = ServerConfig::builder_with_provider(cryptography.clone()).with_safe_default_protocol_versions().unwrap();
        let server = server.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
        let client = ClientConfig::builder_with_provider(cryptography).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        let listener = TcpListener::bind(address).await.unwrap();
        let base = format!("https://{}/v1/", listener.local_addr().unwrap()).parse().unwrap();
        let to = Destination::with(&base, Provider::Openai, Some(Arc::new(client)));
        (listener, TlsAcceptor::from(Arc::new(server)), to)
    }

    fn authority() -> RootCertStore {
        let certificate = CertificateDer::from_pem_slice(include_bytes!("../../../tests/gitserver/tls/authority.pem")).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        roots
    }

    /// What comes back to who asks.
    async fn ask(relay: &Relay) -> Vec<u8> {
        let mut client = UnixStream::connect(relay.path()).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut came = Vec::new();
        client.read_to_end(&mut came).await.ok(); // it may be cut off
        came
    }

    /// The same, while the relay lets it through.
    async fn served(relay: &Relay) -> Vec<u8> {
        tokio::select! {
            error = relay.serve() => panic!("{error}"),
            came = ask(relay) => came,
        }
    }

    #[tokio::test]
    async fn an_event_without_end_is_cut_off_behind_the_encryption_as_well() {
        const SENT_BYTES_MAX: usize = RESPONSE_BYTES_MAX as usize;
        let (listener, acceptor, to) = endpoint(NAMED, authority()).await;
        let relay = Relay::open(&to).unwrap();
        let server = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut asked = [0; 4];
            stream.read_exact(&mut asked).await.unwrap();
            stream.write_all(HEAD).await.unwrap();
            let (line, mut sent) = (format!("data: {}\n", "x".repeat(1000)), 0);
            while sent < SENT_BYTES_MAX && stream.write_all(line.as_bytes()).await.is_ok() {
                sent += line.len();
            }
            (asked, sent)
        };
        let ((asked, sent), came) = tokio::join!(server, served(&relay));
        assert_eq!(&asked, b"GET ");
        assert!(came.starts_with(HEAD) && came.len() <= HEAD.len() + EVENT_BYTES_MAX, "{} bytes came through", came.len());
        assert!(sent < SENT_BYTES_MAX, "all was taken");
        assert_eq!(relay.unreached(), None);
    }

    /// Why an endpoint with the tests' certificate isn't spoken to.
    async fn refusal(address: &str, roots: RootCertStore) -> String {
        let (listener, acceptor, to) = endpoint(address, roots).await;
        let relay = Relay::open(&to).unwrap();
        let server = async {
            let (stream, _) = listener.accept().await.unwrap();
            acceptor.accept(stream).await.is_err()
        };
        let (is_refused, came) = tokio::join!(server, served(&relay));
        assert!(is_refused && came.is_empty());
        relay.unreached().unwrap().to_owned()
    }

    #[tokio::test]
    async fn whom_nobody_vouches_for_is_not_reached_and_the_reason_is_known() {
        let told = refusal(NAMED, RootCertStore::empty()).await;
        assert!(told.contains("certificate: UnknownIssuer"), "{told}");
    }

    #[tokio::test]
    async fn who_has_the_certificate_of_another_is_not_reached_and_the_reason_names_both() {
        let told = refusal(UNNAMED, authority()).await;
        let (ours, theirs) = told.split_once("only valid for").unwrap();
        assert!(ours.contains("certificate not valid for name \"127.0.0.2\"") && theirs.contains("127.0.0.1"), "{told}");
    }

    #[tokio::test]
    async fn that_one_question_reached_nobody_says_nothing_of_another_at_the_same_time() {
        let (listener, _, to) = endpoint(NAMED, authority()).await;
        let to = Destination { tls: None, ..to };
        let (one, other) = (Relay::open(&to).unwrap(), Relay::open(&to).unwrap());
        let hang_up = async { drop(listener.accept().await.unwrap()) };
        let ((), came) = tokio::join!(hang_up, served(&one));
        drop(listener); // nobody is there any more
        assert!(came.is_empty() && served(&other).await.is_empty());
        assert_eq!((one.unreached().is_some(), other.unreached().is_some()), (false, true));
    }
}
