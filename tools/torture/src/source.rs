//! Where the repository of the project is, on this machine: a host that somebody has to approve before anything is cloned from
//! it, and which is gone for a while at its seed's will, but never while it is calm. The repository is an empty one, which git
//! takes by two files over plain HTTP; nothing is ever pushed there.

use crate::chance::Chance;
use crate::world::World;
use crate::{daemon, journal};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a read and a write may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest request that is read.
const REQUEST_BYTES_MAX: u64 = 16 * 1024;
/// Its moods change so often.
const MOOD_MS: u128 = 3000;
/// Status of an answer that says that it is done.
const DONE: u16 = 200;
/// Milliseconds that a clone may take.
const CLONE_MS: u64 = 10_000;

/// `projects.git` of the configuration: every host may be cloned from, once it is approved.
pub(crate) fn settings() -> Value {
    json!({ "allow_schemes": ["http"], "allow_hosts": ["*"], "allow_private": true, "timeout_ms": CLONE_MS })
}

/// Where the repository is, in a world that has one.
///
/// # Errors
/// Of the file system.
pub(crate) fn url(world: &World) -> Result<Option<String>> {
    match fs::read_to_string(world.source_url()) {
        Ok(url) => Ok(Some(url)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("failed to read where the repository is"),
    }
}

/// A person approves whatever waits for that, and writes down what was answered as done. What was not is theirs to try again.
///
/// # Errors
/// Of the file system, and an answer that is no JSON.
pub(crate) fn approve(world: &World) -> Result<()> {
    let Ok((DONE, body)) = daemon::ask(world, "GET", "/control/prepare/approvals", "") else { return Ok(()) };
    let listed: Value = serde_json::from_str(&body).context("the approvals are no JSON")?;
    let pending = listed["approvals"].as_array().into_iter().flatten().filter(|one| one["status"] == "pending");
    for id in pending.filter_map(|one| one["id"].as_i64()) {
        let path = format!("/control/prepare/approvals/{id}");
        if let Ok((DONE, _)) = daemon::ask(world, "POST", &path, &json!({ "approve": true }).to_string()) {
            journal::append(&world.approvals(), &json!({ "id": id }).to_string())?;
        }
    }
    Ok(())
}

/// Serves until it is dropped.
#[derive(Debug)]
pub(crate) struct Source {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    listening: Option<JoinHandle<()>>,
}

impl Source {
    /// Begins, and writes down where the repository is.
    ///
    /// # Errors
    /// When it can't listen, and of the file system.
    pub(crate) fn start(world: &World, chance: Chance) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("failed to listen as a host of repositories")?;
        let address = listener.local_addr().context("failed to find where the repository is")?;
        fs::write(world.source_url(), format!("http://{address}/demo.git")).context("failed to write where the repository is")?;
        let over = Arc::new(AtomicBool::new(false));
        let (world, told) = (world.clone(), over.clone());
        let listening = std::thread::spawn(move || listen(&listener, &world, &chance, &told));
        Ok(Self { address, over, listening: Some(listening) })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address)); // wakes who listens
        if let Some(listening) = self.listening.take() {
            drop(listening.join()); // a panic was printed
        }
    }
}

fn listen(listener: &TcpListener, world: &World, chance: &Chance, over: &AtomicBool) {
    let began = Instant::now();
    for stream in listener.incoming() {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let slot = began.elapsed().as_millis() / MOOD_MS;
        let is_gone = !world.is_calm() && chance.about(&["gone", &slot.to_string()]).one_in(2);
        if let Ok(stream) = stream
            && !is_gone
        {
            answer(&stream).ok(); // whoever asks may be killed meanwhile
        }
    }
}

/// One request, one answer.
fn answer(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.take(REQUEST_BYTES_MAX)).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = first.split([' ', '?']).nth(1).unwrap_or_default();
    let (status, body) = match path {
        "/demo.git/info/refs" => ("200 OK", ""),
        "/demo.git/HEAD" => ("200 OK", "ref: refs/heads/main\n"),
        _ => ("404 Not Found", ""),
    };
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::world::Cast;

    fn asked(url: &str, path: &str) -> String {
        let host = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
        let mut stream = TcpStream::connect(host).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap();
        let mut told = String::new();
        stream.read_to_string(&mut told).unwrap();
        told
    }

    #[test]
    fn it_has_an_empty_repository_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::make(dir.path(), Cast::default()).unwrap();
        fs::write(world.calm(), "").unwrap();
        assert_eq!(url(&world).unwrap(), None);
        let source = Source::start(&world, Chance::new(1)).unwrap();
        let url = url(&world).unwrap().unwrap();
        let refs = asked(&url, "/demo.git/info/refs?service=git-upload-pack");
        assert!(refs.starts_with("HTTP/1.1 200 ") && refs.ends_with("\r\n\r\n"), "{refs}");
        assert!(asked(&url, "/demo.git/HEAD").ends_with("ref: refs/heads/main\n"));
        assert!(asked(&url, "/demo.git/objects/info/packs").starts_with("HTTP/1.1 404 "));
        drop(source);
        assert!(TcpStream::connect(url.strip_prefix("http://").unwrap().split('/').next().unwrap()).is_err());
    }

    #[test]
    fn nobody_is_asked_where_no_daemon_listens() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::make(dir.path(), Cast::default()).unwrap();
        approve(&world).unwrap();
        assert!(journal::lines(&world.approvals()).unwrap().is_empty());
    }
}
