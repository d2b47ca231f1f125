//! A git server in tests: the machine's own `git http-backend` behind a small CGI server on the loopback, in the open or
//! by TLS, and the repositories that it serves. Below `/redirect/` it sends elsewhere, below `/silent/` it never answers,
//! below `/slow/` it answers once it is told to.
#![allow(dead_code, unused_imports, unreachable_pub, clippy::unwrap_used)]

mod tls;
pub mod world;

use crate::common::program;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Condvar, Mutex};

pub use tls::AUTHORITY;

/// Longest request that is read, in bytes.
const REQUEST_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A connection, of either sort.
pub trait Wire: Read + Write + Send {
    /// Says that nothing more comes.
    fn finish(&mut self);
}

impl Wire for TcpStream {
    fn finish(&mut self) {}
}

/// What all connections of one server know.
#[derive(Default)]
struct Desk {
    root: PathBuf,
    /// The paths that were asked for.
    asked: Mutex<Vec<String>>,
    /// Connections that are never answered.
    held: Mutex<Vec<Box<dyn Wire>>>,
    /// Whether the slow are answered, and who waits for that.
    gate: (Mutex<bool>, Condvar),
}

/// Serves all repositories below its root.
pub struct GitServer {
    address: SocketAddr,
    scheme: &'static str,
    desk: Arc<Desk>,
}

impl GitServer {
    pub fn start(root: &Path) -> Self {
        Self::with(root, "http", |socket| Some(Box::new(socket)))
    }

    /// With a certificate of [`AUTHORITY`].
    pub fn start_tls(root: &Path) -> Self {
        let config = tls::config();
        Self::with(root, "https", move |socket| tls::accept(&config, socket))
    }

    fn with(root: &Path, scheme: &'static str, greet: impl Fn(TcpStream) -> Option<Box<dyn Wire>> + Send + 'static) -> Self {
        fs::create_dir_all(root).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let desk = Arc::new(Desk { root: root.to_owned(), ..Desk::default() });
        let server = Self { address: listener.local_addr().unwrap(), scheme, desk: desk.clone() };
        std::thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                let (desk, wire) = (desk.clone(), greet(socket));
                std::thread::spawn(move || wire.map(|wire| answer(wire, &desk)));
            }
        });
        server
    }

    pub fn scheme(&self) -> &'static str {
        self.scheme
    }

    pub fn url(&self, name: &str) -> String {
        format!("{}://{}/{name}.git", self.scheme, self.address)
    }

    /// From now on the slow are answered.
    pub fn release(&self) {
        *self.desk.gate.0.lock().unwrap() = true;
        self.desk.gate.1.notify_all();
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn asked(&self) -> Vec<String> {
        self.desk.asked.lock().unwrap().clone()
    }

    /// How often a clone of `name` was begun.
    pub fn clones(&self, name: &str) -> usize {
        self.asked().iter().filter(|path| path.contains(&format!("{name}.git/info/refs"))).count()
    }

    /// A repository with what `fill` puts into its working tree.
    pub fn repository(&self, name: &str, fill: impl FnOnce(&Path)) -> PathBuf {
        let work = self.desk.root.join(format!("{name}.work"));
        fs::create_dir_all(&work).unwrap();
        git(&work, &["init", "--quiet", "--initial-branch=main"]);
        fs::write(work.join("README"), format!("{name}\n")).unwrap();
        fill(&work);
        git(&work, &["add", "--all", "--force"]);
        git(&work, &["commit", "--quiet", "--message=first"]);
        let bare = self.desk.root.join(format!("{name}.git"));
        git(&self.desk.root, &["clone", "--quiet", "--bare", work.to_str().unwrap(), bare.to_str().unwrap()]);
        bare
    }
}

/// The machine's git, with nothing of its user's configuration.
pub fn git(directory: &Path, arguments: &[&str]) -> String {
    let mut command = program("git");
    command.args(["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"]).args(arguments);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    let output = command.current_dir(directory).output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A submodule whose address is a program.
pub fn with_ext_submodule(work: &Path) {
    fs::write(work.join(".gitmodules"), "[submodule \"s\"]\n\tpath = s\n\turl = ext::sh -c 'touch pwned'\n").unwrap();
    git(work, &["add", "README"]);
    git(work, &["update-index", "--add", "--cacheinfo", "160000,1111111111111111111111111111111111111111,s"]);
    fs::create_dir(work.join("s")).unwrap();
}

pub fn with_escaping_link(work: &Path) {
    symlink("../../../../../../../../etc/passwd", work.join("link")).unwrap();
}

struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn read(socket: &mut dyn Wire) -> Option<Self> {
        let mut reader = BufReader::new(socket.take(REQUEST_BYTES_MAX));
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let mut words = line.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        Some(Self { method, path, headers, body })
    }

    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

fn answer(mut socket: Box<dyn Wire>, desk: &Desk) {
    let Some(mut request) = Request::read(&mut *socket) else { return };
    desk.asked.lock().unwrap().push(request.path.clone());
    if request.path.starts_with("/silent/") {
        desk.held.lock().unwrap().push(socket);
        return;
    }
    if let Some(rest) = request.path.strip_prefix("/redirect") {
        let head = format!("HTTP/1.1 302 Found\r\nlocation: {rest}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        socket.write_all(head.as_bytes()).unwrap_or_default();
        return socket.finish();
    }
    if let Some(rest) = request.path.strip_prefix("/slow").map(str::to_owned) {
        drop(desk.gate.1.wait_while(desk.gate.0.lock().unwrap(), |is_open| !*is_open).unwrap());
        request.path = rest;
    }
    serve(&request, &mut *socket, &desk.root);
    socket.finish();
}

/// As RFC 3875 has it.
fn serve(request: &Request, socket: &mut dyn Wire, root: &Path) {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let mut command = program("git");
    command.arg("http-backend").env("GIT_PROJECT_ROOT", root).env("GIT_HTTP_EXPORT_ALL", "1").env("PATH_INFO", path);
    command.env("QUERY_STRING", query).env("REQUEST_METHOD", &request.method).env("REMOTE_ADDR", "127.0.0.1");
    command.env("CONTENT_TYPE", request.header("content-type")).env("CONTENT_LENGTH", request.body.len().to_string());
    command.env("HTTP_CONTENT_ENCODING", request.header("content-encoding")).env("GIT_PROTOCOL", request.header("git-protocol"));
    command.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", "safe.directory").env("GIT_CONFIG_VALUE_0", "*");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A backend that refuses doesn't read it.
    stdin.write_all(&request.body).unwrap_or_default();
    drop(stdin);
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let (mut status, mut head) = ("200 OK".to_owned(), String::new());
    loop {
        let mut line = String::new();
        if output.read_line(&mut line).unwrap() == 0 || line.trim_end().is_empty() {
            break;
        }
        match line.trim_end().split_once(": ") {
            Some(("Status", value)) => value.clone_into(&mut status),
            Some(_) | None => head.push_str(&format!("{}\r\n", line.trim_end())),
        }
    }
    let begun = socket.write_all(format!("HTTP/1.1 {status}\r\n{head}connection: close\r\n\r\n").as_bytes());
    // A client that has seen enough hangs up.
    if begun.is_ok() {
        std::io::copy(&mut output, socket).unwrap_or_default();
    }
    drop(output);
    child.kill().unwrap_or_default();
    child.wait().unwrap();
}
