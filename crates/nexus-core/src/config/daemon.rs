//! The sections `daemon` and `pipeline`: where the daemon listens, what it logs, how it runs requests.

use super::decode::{RUN_MS_MAX, nonempty, optional_text};
use super::node::Node;
use super::problem::{Faults, quoted};
use std::net::IpAddr;

words! {
    /// The least severe messages that are logged.
    LogLevel {
        Debug = "debug",
        #[default]
        Info = "info",
        Warn = "warn",
        Error = "error",
    }
}

words! {
    /// What happens to an agent run that a stop or crash of the daemon interrupted.
    OnInterrupted {
        /// Rerun it only if nothing of it can have been seen: no block left, no tool call started.
        #[default]
        Auto = "auto",
        /// Always rerun it.
        Rerun = "rerun",
        /// Never rerun it; its request ends `failed`.
        Fail = "fail",
    }
}

section! {
    /// Where the daemon listens and what it logs.
    Daemon check exposure {
        /// IP address of the HTTP listener, or `localhost`. One that other machines can reach needs
        /// both `allow_external: true` and `token_file`.
        host: String = "127.0.0.1".to_owned() => nonempty;
        /// TCP port of the HTTP listener; 0 takes any free port.
        port: u16 [0..=u16::MAX] = 7400;
        /// The least severe messages that are logged.
        log_level: LogLevel = LogLevel::default();
        /// Permits a `host` that other machines can reach.
        allow_external: bool = false;
        /// File with the bearer token that HTTP clients must send.
        token_file: Option<String> = None => optional_text;
    }
}

section! {
    /// How requests run.
    Pipeline {
        /// Active time one request may take in its stages, in milliseconds; waiting is not counted.
        /// A change applies to new requests.
        timeout_ms: u64 [1000..=RUN_MS_MAX] = 300_000;
        /// Requests that may be in stages 1 to 5 at one time.
        max_concurrent: u32 [1..=CONCURRENT_REQUESTS_MAX] = 64;
        /// What happens to a run that a stop or crash of the daemon interrupted: `auto` reruns it only
        /// if nothing of it can have been seen.
        on_interrupted: OnInterrupted = OnInterrupted::default();
    }
}

/// Most requests that may be allowed in stages 1 to 5 at one time.
const CONCURRENT_REQUESTS_MAX: u32 = 1024;

/// A listener that other machines reach is a decision, never an accident: promise 8, closed by default.
fn exposure(daemon: Daemon, node: &Node, faults: &mut Faults) -> Daemon {
    let is_permitted = daemon.allow_external && daemon.token_file.is_some();
    if !is_permitted && !is_loopback(&daemon.host) {
        let at = node.get("host").map_or(node.at, |host| host.at);
        let host = quoted(&daemon.host);
        faults.error(
            at,
            format!(
                "`host` {host} can be reached by other machines; use 127.0.0.1, ::1 or localhost, \
                 or set both `allow_external: true` and `token_file`"
            ),
        );
    }
    daemon
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for near in ["127.0.0.1", "127.9.9.9", "::1", "localhost"] {
            assert!(is_loopback(near), "{near}");
        }
        for far in ["0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "localhost.example.org", "127.0.0.1:80", ""] {
            assert!(!is_loopback(far), "{far}");
        }
    }
}
