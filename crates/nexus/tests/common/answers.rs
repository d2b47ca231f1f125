//! What a running daemon answers, over its control socket and over TCP. Never opens a file of the daemon's.

use super::http::{self, Answer, Ask, Response, Sse};
use super::{DEADLINE, Daemon, find};
use serde_json::Value;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

impl Daemon {
    fn connect(&self) -> std::io::Result<Box<dyn http::Wire>> {
        let socket = UnixStream::connect(self.state("nex.sock"))?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_write_timeout(Some(DEADLINE))?;
        Ok(Box::new(socket))
    }

    fn connect_tcp(&self) -> Box<dyn http::Wire> {
        let socket = TcpStream::connect(self.http()).expect("the HTTP port can be reached");
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Box::new(socket)
    }

    pub fn try_get(&self, path: &str) -> std::io::Result<Response> {
        http::exchange(self.connect()?, &Ask::get(path))
    }

    pub fn get(&self, path: &str) -> Response {
        self.try_get(path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// A figure of `/metrics`; 0 until it is there.
    pub fn metric(&self, name: &str) -> u64 {
        let body = self.get("/metrics").body;
        body.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        let answer = self.connect().and_then(|wire| http::exchange(wire, &Ask::post(path, body)));
        answer.unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }

    /// Begins a request on the control socket and leaves its answer's body to be read.
    pub fn open(&self, ask: &Ask<'_>) -> Answer {
        http::open(self.connect().unwrap(), ask).unwrap_or_else(|error| panic!("{}: {error}", ask.path))
    }

    /// One request over TCP.
    pub fn tcp(&self, ask: &Ask<'_>) -> Response {
        http::exchange(self.connect_tcp(), ask).unwrap_or_else(|error| panic!("{}: {error}", ask.path))
    }

    /// Begins a request over TCP and leaves its answer's body to be read.
    pub fn open_tcp(&self, ask: &Ask<'_>) -> Answer {
        http::open(self.connect_tcp(), ask).unwrap_or_else(|error| panic!("{}: {error}", ask.path))
    }

    /// An event stream over TCP.
    pub fn sse(&self, ask: &Ask<'_>) -> Sse {
        Sse::new(self.open_tcp(ask), DEADLINE)
    }

    /// `GET /control/status`.
    pub fn status(&self) -> Value {
        self.get("/control/status").json()
    }

    /// `127.0.0.1:PORT`.
    pub fn http(&self) -> String {
        self.status()["http"].as_str().expect("HTTP is served").to_owned()
    }

    /// The status entry of `adapter/account`; null when there is none.
    pub fn adapter(&self, name: &str) -> Value {
        let (adapter, account) = name.split_once('/').expect("a name is adapter/account");
        let status = self.status();
        let all = status["adapters"].as_array().expect("adapters are a list");
        all.iter().find(|one| one["adapter"] == adapter && one["account"] == account).cloned().unwrap_or(Value::Null)
    }

    /// Waits until `adapter/account` has this status; its entry then.
    pub fn adapter_once(&self, name: &str, status: &str) -> Value {
        find(&format!("{name} is {status}"), || Some(self.adapter(name)).filter(|entry| entry["status"] == status))
    }
}
