//! A small HTTP/1.1 client over any stream: one request per connection, bodies by length or in
//! chunks, and server-sent events as they come. Never uses the daemon's own HTTP library.

use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

/// What is asked.
#[derive(Debug, Clone)]
pub struct Ask<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub host: &'a str,
    pub headers: Vec<(&'a str, String)>,
    pub body: Option<String>,
}

impl<'a> Ask<'a> {
    pub fn get(path: &'a str) -> Self {
        Self { method: "GET", path, host: "localhost", headers: Vec::new(), body: None }
    }

    pub fn post(path: &'a str, body: &Value) -> Self {
        let headers = vec![("content-type", "application/json".to_owned())];
        Self { method: "POST", path, host: "localhost", headers, body: Some(body.to_string()) }
    }
}

/// A connection in either direction.
pub trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

/// An answer whose body is still to be read.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Body,
}

/// Sends the request and reads the answer's head.
pub fn open(mut wire: Box<dyn Wire>, ask: &Ask<'_>) -> io::Result<Answer> {
    let Ask { method, path, host, headers, body } = ask;
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let body = body.as_deref().unwrap_or("");
    text.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    wire.write_all(text.as_bytes())?;
    wire.flush()?;
    answer(wire)
}

/// Reads the head of the answer to a request that was sent already.
pub fn answer(wire: Box<dyn Wire>) -> io::Result<Answer> {
    let mut reader = BufReader::new(wire);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the answer ends in its head: {head:?}")));
        }
    }
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("not HTTP: {head:?}")))?;
    let framing = framing(&head.to_ascii_lowercase());
    Ok(Answer { status, head, body: Body { reader, framing } })
}

/// Sends the request and reads the whole answer.
pub fn exchange(wire: Box<dyn Wire>, ask: &Ask<'_>) -> io::Result<Response> {
    let mut answer = open(wire, ask)?;
    let mut body = String::new();
    answer.body.read_to_string(&mut body)?;
    Ok(Response { status: answer.status, head: answer.head, body })
}

/// An address for a program that can't be told to take any port: one of the loopback network that no
/// other test binary uses, so that nobody takes its port in between.
pub fn free_address() -> String {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let host = format!("127.{}.{middle}.{}", 64 + high % 64, 1 + low % 254);
    let listener = TcpListener::bind((host.as_str(), 0)).expect("the loopback network is there");
    listener.local_addr().expect("a listener has an address").to_string()
}

fn framing(head: &str) -> Framing {
    let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if value("transfer-encoding:").is_some_and(|coding| coding.contains("chunked")) {
        return Framing::Chunked { left: 0, is_first: true };
    }
    match value("content-length:").and_then(|length| length.parse().ok()) {
        Some(left) => Framing::Length { left },
        None => Framing::UntilClose,
    }
}

enum Framing {
    Length { left: usize },
    Chunked { left: usize, is_first: bool },
    UntilClose,
    Done,
}

/// The body of an answer, without its framing.
pub struct Body {
    reader: BufReader<Box<dyn Wire>>,
    framing: Framing,
}

impl Body {
    /// The end of an answer that comes piece by piece: its last object, once no more comes.
    pub fn end(self) -> Value {
        let last = BufReader::new(self).lines().map_while(Result::ok).filter(|line| line.starts_with('{')).last().expect("an end");
        serde_json::from_str(&last).unwrap()
    }

    /// Reads the next chunk's size; the CR LF behind the one before goes first.
    fn next_chunk(&mut self, is_first: bool) -> io::Result<usize> {
        let mut line = String::new();
        if !is_first {
            self.reader.read_line(&mut line)?;
            line.clear();
        }
        self.reader.read_line(&mut line)?;
        let size = line.trim().split(';').next().unwrap_or("");
        usize::from_str_radix(size, 16).map_err(|_| io::Error::new(io::ErrorKind::UnexpectedEof, format!("no chunk size: {line:?}")))
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Framing::Chunked { left: 0, is_first } = self.framing {
            let left = self.next_chunk(is_first)?;
            self.framing = if left == 0 { Framing::Done } else { Framing::Chunked { left, is_first: false } };
        }
        match &mut self.framing {
            Framing::Done => Ok(0),
            Framing::UntilClose => self.reader.read(buffer),
            Framing::Length { left } | Framing::Chunked { left, .. } => {
                let most = buffer.len().min(*left);
                let got = self.reader.read(&mut buffer[..most])?;
                if got == 0 && most > 0 {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the answer ends in its body"));
                }
                *left -= got;
                Ok(got)
            }
        }
    }
}

/// One server-sent event.
#[derive(Debug, Clone, PartialEq)]
pub struct SseEvent {
    pub id: String,
    pub event: String,
    pub data: String,
}

impl SseEvent {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

/// An open event stream.
pub struct Sse {
    lines: BufReader<Body>,
    patience: Duration,
}

impl Sse {
    /// `patience` is how long one event may be waited for.
    pub fn new(answer: Answer, patience: Duration) -> Self {
        assert_eq!(answer.status, 200, "{}", answer.head);
        assert!(answer.head.to_ascii_lowercase().contains("text/event-stream"), "{}", answer.head);
        Self { lines: BufReader::new(answer.body), patience }
    }

    /// The next event but for heartbeats; comments are skipped. Fails the test when none comes.
    pub fn wait(&mut self) -> SseEvent {
        let deadline = Instant::now() + self.patience;
        let mut next = SseEvent { id: String::new(), event: String::new(), data: String::new() };
        loop {
            let mut line = String::new();
            let got = self.lines.read_line(&mut line).expect("the event stream can be read");
            assert_ne!(got, 0, "the event stream ended");
            assert!(Instant::now() < deadline, "no event within {:?}", self.patience);
            match line.trim_end().split_once(':') {
                Some(("id", value)) => next.id = value.trim_start().to_owned(),
                Some(("event", value)) => next.event = value.trim_start().to_owned(),
                Some(("data", value)) => next.data.push_str(value.trim_start()),
                None if line.trim_end().is_empty() && !next.event.is_empty() => {
                    if next.event != "heartbeat" {
                        return next;
                    }
                    next = SseEvent { id: String::new(), event: String::new(), data: String::new() };
                }
                Some(_) | None => {}
            }
        }
    }

    /// Whether the stream ends here. Waits for more to come otherwise.
    pub fn is_over(&mut self) -> bool {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("the event stream can be read") == 0
    }

    /// The next event of this type; others are passed over.
    pub fn wait_for(&mut self, event: &str) -> SseEvent {
        loop {
            let next = self.wait();
            if next.event == event {
                return next;
            }
        }
    }
}
