//! The control API's client: HTTP/1.1 over the daemon's Unix socket, one connection per request.
//! It knows how to ask and how an answer fails, never what an answer means.

use super::failure::Exit;
use crate::daemon::{Paths, lock};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;

/// Longest wait for a whole answer: a restart waits for a process to end, a health probe takes 10 s.
const ANSWER_SECONDS_MAX: u64 = 60;
/// Longest answer that is not a stream, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest line of a stream, in bytes.
const LINE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Why the daemon gave no good answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("NEX Daemon: not running")]
    NotRunning,
    #[error("the daemon (PID {pid}) is starting or stopping and does not answer yet")]
    Busy { pid: u32 },
    #[error("failed to connect to `{socket}`")]
    Connect {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("lost the connection to the daemon")]
    Lost(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the daemon did not answer `{path}` within {ANSWER_SECONDS_MAX} s")]
    Late { path: String },
    #[error("the daemon answered `{path}` with something that is not expected there")]
    Malformed { path: String },
    #[error("{error}")]
    Refused { status: u16, error: String, problems: Vec<String> },
}

impl ClientError {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::NotRunning => Exit::NotRunning,
            Self::Refused { status: 404, .. } => Exit::NotFound,
            Self::Refused { status: 422, .. } => Exit::BadConfig,
            Self::Busy { .. }
            | Self::Connect { .. }
            | Self::Lost(_)
            | Self::Late { .. }
            | Self::Malformed { .. }
            | Self::Refused { .. } => Exit::Failed,
        }
    }

    /// What to do about it, where that isn't said by the error itself.
    pub(crate) fn advice(&self) -> Option<&'static str> {
        match self {
            Self::NotRunning => Some("Start it with `nexus daemon start --detach`."),
            Self::Busy { .. } => Some("Try again in a moment."),
            Self::Connect { .. } => Some("Only the user who started the daemon can open its socket."),
            Self::Lost(_) => Some("`nexus daemon status` shows whether it still runs."),
            Self::Late { .. } => Some("`nexus daemon status` shows how it is, `nexus daemon logs` what it does."),
            Self::Malformed { .. } => Some("Is the daemon of another version? `nexus daemon restart` starts the one of this command."),
            Self::Refused { .. } => None,
        }
    }

    /// Whether the same question may find an answer soon: the daemon came or went meanwhile.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::Lost(_) | Self::Refused { status: 503, .. } => true,
            Self::NotRunning | Self::Connect { .. } | Self::Late { .. } | Self::Malformed { .. } | Self::Refused { .. } => false,
        }
    }

    fn lost(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Lost(error.into())
    }
}

/// How the API tells a refusal.
#[derive(Debug, Deserialize)]
struct Refusal {
    error: String,
    #[serde(default)]
    problems: Vec<String>,
}

/// Asks the daemon of one state directory.
#[derive(Debug, Clone)]
pub(crate) struct Client<'p> {
    socket: PathBuf,
    /// Where to look whether a daemon is there that doesn't answer yet.
    paths: Option<&'p Paths>,
}

impl<'p> Client<'p> {
    pub(crate) fn new(paths: &'p Paths) -> Self {
        Self { socket: paths.socket(), paths: Some(paths) }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.ask(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// A GET whose answer is read line by line, for ever if need be.
    pub(crate) async fn follow(&self, path: &str) -> Result<Lines, ClientError> {
        self.stream(Method::GET, path, None).await
    }

    /// A POST whose answer is read line by line.
    pub(crate) async fn converse(&self, path: &str, body: &Value) -> Result<Lines, ClientError> {
        self.stream(Method::POST, path, Some(body)).await
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let whole = async {
            let answer = self.open(method, path, body).await?;
            let bytes = answer.whole().await?;
            serde_json::from_slice(&bytes).map_err(|_| ClientError::Malformed { path: path.to_owned() })
        };
        let limit = Duration::from_secs(ANSWER_SECONDS_MAX);
        tokio::time::timeout(limit, whole).await.map_err(|_| ClientError::Late { path: path.to_owned() })?
    }

    async fn stream(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Lines, ClientError> {
        let answer = self.open(method, path, body).await?;
        Ok(Lines { answer, path: path.to_owned(), buffer: Vec::new(), searched: 0 })
    }

    /// Sends a request; the answer's head is a success.
    async fn open(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| self.unreachable(source))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::lost)?;
        // What goes wrong with the connection is told by the request on it.
        crate::watch::helper("connection", async move { drop(connection.await) });
        let bytes = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(bytes))
            .map_err(|_| ClientError::Malformed { path: path.to_owned() })?;
        let response = sender.send_request(request).await.map_err(ClientError::lost)?;
        let status = response.status();
        let answer = Answer { body: response.into_body(), _sender: sender };
        if status.is_success() { Ok(answer) } else { Err(answer.refusal(status).await?) }
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        let kind = source.kind();
        // No socket, or one that a killed daemon left behind.
        if kind != io::ErrorKind::NotFound && kind != io::ErrorKind::ConnectionRefused {
            return ClientError::Connect { socket: self.socket.clone(), source };
        }
        match self.paths.and_then(lock::holder) {
            Some(pid) => ClientError::Busy { pid },
            None => ClientError::NotRunning,
        }
    }
}

/// A body that is still to be read. The connection lives as long as its sender does.
#[derive(Debug)]
struct Answer {
    body: Incoming,
    _sender: SendRequest<Full<Bytes>>,
}

impl Answer {
    async fn whole(self) -> Result<Bytes, ClientError> {
        let collected = Limited::new(self.body, ANSWER_BYTES_MAX).collect().await;
        collected.map(http_body_util::Collected::to_bytes).map_err(ClientError::lost)
    }

    async fn refusal(self, status: StatusCode) -> Result<ClientError, ClientError> {
        let bytes = self.whole().await?;
        let refusal = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Refusal { error: format!("the daemon refused with HTTP status {status}"), problems: Vec::new() });
        Ok(ClientError::Refused { status: status.as_u16(), error: refusal.error, problems: refusal.problems })
    }
}

/// The lines of an answer as they come.
#[derive(Debug)]
pub(crate) struct Lines {
    answer: Answer,
    path: String,
    buffer: Vec<u8>,
    /// Bytes at the front of the buffer that are known to have no line end.
    searched: usize,
}

impl Lines {
    /// The next line without its end; `None` when the daemon has closed the answer.
    ///
    /// # Errors
    /// When the connection breaks, or a line is longer than [`LINE_BYTES_MAX`].
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        loop {
            if let Some(offset) = memchr::memchr(b'\n', &self.buffer[self.searched..]) {
                let end = self.searched + offset;
                let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
                line.pop();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(ClientError::Malformed { path: self.path.clone() });
            }
            match self.answer.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(ClientError::lost(error)),
                None if self.buffer.is_empty() => return Ok(None),
                None => {
                    self.searched = 0;
                    return Ok(Some(std::mem::take(&mut self.buffer)));
                }
            }
        }
    }
}

/// The answer, or nothing when no daemon runs.
pub(crate) fn if_running<T>(answer: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(ClientError::NotRunning) => Ok(None),
        Err(error) => Err(error),
    }
}

/// One segment of a path or one value of a query, percent-encoded (RFC 3986, 2.3).
pub(crate) fn encoded(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            result.push(char::from(byte));
        } else {
            result.push_str(&format!("%{byte:02X}"));
        }
    }
    result
}

/// A path with those parameters that have a value.
pub(crate) fn with_query(path: &str, parameters: &[(&str, Option<String>)]) -> String {
    let given = parameters.iter().filter_map(|(name, value)| value.as_ref().map(|value| format!("{name}={}", encoded(value))));
    let query = given.collect::<Vec<_>>().join("&");
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    /// A client of a server that answers one request with these bytes, and closes.
    async fn answered(directory: &tempfile::TempDir, answer: &'static [u8]) -> Client<'static> {
        let socket = directory.path().join("nex.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                let mut block = [0; 1024];
                let count = stream.read(&mut block).await.unwrap();
                assert!(count > 0, "the request ended early");
                request.extend_from_slice(&block[..count]);
            }
            stream.write_all(answer).await.unwrap();
        });
        Client { socket, paths: None }
    }

    #[tokio::test]
    async fn nothing_there_is_not_running() {
        let directory = tempfile::tempdir().unwrap();
        let client = Client { socket: directory.path().join("nex.sock"), paths: None };
        assert!(matches!(client.get("/health").await, Err(ClientError::NotRunning)));
        drop(UnixListener::bind(directory.path().join("nex.sock")).unwrap());
        assert!(matches!(client.get("/health").await, Err(ClientError::NotRunning)));
    }

    #[tokio::test]
    async fn a_refusal_keeps_its_problems() {
        let directory = tempfile::tempdir().unwrap();
        let answer = b"HTTP/1.1 422 X\r\ncontent-length: 43\r\n\r\n{\"error\":\"bad\",\"problems\":[\"nex.yaml:1:1\"]}";
        let error = answered(&directory, answer).await.post("/control/reload", &Value::Null).await.unwrap_err();
        assert_eq!(error.exit(), Exit::BadConfig);
        let ClientError::Refused { error, problems, .. } = error else { panic!("it is not a refusal") };
        assert_eq!((error.as_str(), problems.len()), ("bad", 1));
    }

    #[tokio::test]
    async fn lines_come_whole_whatever_the_chunks() {
        let directory = tempfile::tempdir().unwrap();
        let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n5\r\n\ntwo\n\r\n4\r\nrest\r\n0\r\n\r\n";
        let mut lines = answered(&directory, answer).await.follow("/x").await.unwrap();
        for expected in [Some("one"), Some("two"), Some("rest"), None] {
            assert_eq!(lines.next().await.unwrap().as_deref(), expected.map(str::as_bytes));
        }
    }

    #[tokio::test]
    async fn a_broken_stream_is_a_loss_and_nonsense_is_malformed() {
        let directory = tempfile::tempdir().unwrap();
        let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\none\n\r\n9\r\nhal";
        let mut lines = answered(&directory, answer).await.follow("/x").await.unwrap();
        assert_eq!(lines.next().await.unwrap().as_deref(), Some(&b"one"[..]));
        assert!(lines.next().await.unwrap_err().is_passing());

        let directory = tempfile::tempdir().unwrap();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhmm!";
        let error = answered(&directory, answer).await.get("/x").await.unwrap_err();
        assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
    }

    #[test]
    fn hostile_ids_stay_in_their_segment() {
        assert_eq!(encoded("gmail:a/b?c#d é"), "gmail%3Aa%2Fb%3Fc%23d%20%C3%A9");
        assert_eq!(
            with_query("/e", &[("limit", Some("5".into())), ("text", None), ("channel", Some("a&b".into()))]),
            "/e?limit=5&channel=a%26b"
        );
        assert_eq!(with_query("/e", &[("text", None)]), "/e");
    }
}
