//! Asks the running monitor of the same account, over its own port, whether it lives.
//! Owns the `AdapterHealth` answer; never starts or stops anything.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::config::{HEALTH_PATH, Settings};

/// Well within the 10 s that the daemon grants.
const STEP_TIMEOUT_MS: u64 = 2_000;
const MAX_ANSWER_BYTES: u64 = 16 << 10;

/// Why the monitor is not known to be well.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("failed to reach {address}: {source}")]
    Unreachable {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("{address} answers, but not as this adapter does; another program holds the port")]
    Stranger { address: SocketAddr },
    #[error("{address} belongs to account `{found}`; give each account a `bind` of its own")]
    OtherAccount { address: SocketAddr, found: String },
}

/// The `AdapterHealth` of one account.
pub(super) fn probe(settings: &Settings) -> Value {
    let address = reachable(settings.bind);
    match ask(address).and_then(|answer| check(&answer, address, &settings.account_id)) {
        Ok(answer) => json!({
            "connected": true,
            "account": settings.account_id,
            "last_event_at": answer.get("last_event_at"),
            "details": answer,
        }),
        Err(error) => unhealthy(&settings.account_id, &error.to_string()),
    }
}

/// The `AdapterHealth` of an account that is not connected, and why.
pub(super) fn unhealthy(account_id: &str, error: &str) -> Value {
    json!({ "connected": false, "account": account_id, "error": error })
}

/// Where a socket bound to `bind` can be reached from this machine.
fn reachable(bind: SocketAddr) -> SocketAddr {
    let ip = match bind.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(ip, bind.port())
}

fn ask(address: SocketAddr) -> Result<Value, ProbeError> {
    let answer = exchange(address).map_err(|source| ProbeError::Unreachable { address, source })?;
    parse(&answer).ok_or(ProbeError::Stranger { address })
}

fn check(answer: &Value, address: SocketAddr, account_id: &str) -> Result<Value, ProbeError> {
    match answer.get("account").and_then(Value::as_str) {
        Some(found) if found == account_id => Ok(answer.clone()),
        Some(found) => Err(ProbeError::OtherAccount { address, found: found.to_owned() }),
        None => Err(ProbeError::Stranger { address }),
    }
}

fn exchange(address: SocketAddr) -> io::Result<Vec<u8>> {
    let step = Duration::from_millis(STEP_TIMEOUT_MS);
    let mut stream = TcpStream::connect_timeout(&address, step)?;
    stream.set_read_timeout(Some(step))?;
    stream.set_write_timeout(Some(step))?;
    let request = format!("GET {HEALTH_PATH} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    Ok(answer)
}

/// The JSON body of a 200; `None` for anything else.
fn parse(answer: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    if !head.starts_with("HTTP/1.1 200") {
        return None;
    }
    serde_json::from_str(body).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::TcpListener;

    fn settings(port: u16) -> Settings {
        let file = json!({
            "account_id": "acme",
            "config": { "verify": "none", "bind": format!("127.0.0.1:{port}") },
        });
        Settings::parse(file.to_string().as_bytes()).unwrap()
    }

    /// Answers one connection with `answer` and probes it meanwhile.
    fn probe_of(answer: &'static str) -> Value {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let settings = settings(listener.local_addr().unwrap().port());
        let server = std::thread::spawn(move || {
            let (mut stream, _peer) = listener.accept().unwrap();
            let mut request = [0_u8; 256];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let health = probe(&settings);
        server.join().unwrap();
        health
    }

    #[test]
    fn a_monitor_of_this_account_is_connected() {
        let health = probe_of("HTTP/1.1 200 OK\r\nx: y\r\n\r\n{\"account\":\"acme\",\"last_event_at\":7}");
        assert_eq!(health["connected"], true);
        assert_eq!(health["account"], "acme");
        assert_eq!(health["last_event_at"], 7);
    }

    #[test]
    fn strangers_on_the_port_are_not_taken_for_it() {
        let other = probe_of("HTTP/1.1 200 OK\r\n\r\n{\"account\":\"else\"}");
        assert_eq!(other["connected"], false);
        assert!(other["error"].as_str().unwrap().contains("else"));
        for answer in ["SSH-2.0-x\r\n", "HTTP/1.1 404 Not Found\r\n\r\n{}", "HTTP/1.1 200 OK\r\n\r\n"] {
            assert_eq!(probe_of(answer)["connected"], false);
        }
    }

    #[test]
    fn nobody_there_is_said_with_the_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let health = probe(&settings(port));
        assert_eq!(health["connected"], false);
        assert!(health["error"].as_str().unwrap().contains(&format!("127.0.0.1:{port}")));
    }

    #[test]
    fn an_unspecified_bind_is_reached_over_loopback() {
        let reached = |bind: &str| reachable(bind.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:81"), "127.0.0.1:81");
        assert_eq!(reached("[::]:81"), "[::1]:81");
        assert_eq!(reached("192.0.2.1:81"), "192.0.2.1:81");
    }
}
