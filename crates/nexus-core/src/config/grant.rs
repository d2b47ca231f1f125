//! What a plugin may call beside its hooks: the entries of `plugins.grants`. They are read and written
//! here; whether a call is within them is for whoever carries it out.

use super::decode::{Decode, described};
use super::node::Node;
use super::problem::{Faults, quoted};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Longest host name and longest label of one (RFC 1035, 2.3.4), in bytes.
const HOST_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

const UNKNOWN: &str = "is no grant; there are ledger.query, llm, log, search, send and fetch:HOST";
const NO_HOST: &str = "names no host; write fetch:api.example.org, fetch:api.example.org:8443, fetch:10.0.0.1 or \"fetch:[::1]:8080\"";
const NO_PATTERN: &str = "has a `*`; name each host by itself";
const NOT_ASCII: &str = "is not ASCII; write the host as DNS has it, with `xn--`";
const NO_ADDRESS: &str = "ends in a number and is no IPv4 address; write it as four numbers, as in fetch:10.0.0.1";
const NO_PORT: &str = "has no usable port; a port is a number from 1 to 65535";

/// One thing that a plugin may do. `Display` is what the configuration says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Grant {
    /// Reading the ledgers by SQL.
    LedgerQuery,
    /// Asking a model, by an agent with `runner: llm`.
    Llm,
    /// Lines for the daemon's log: what every plugin may do, granted or not.
    Log,
    /// Searching what agents were asked and said.
    Search,
    /// Sending messages.
    Send,
    /// HTTP requests to one host.
    Fetch {
        /// A name in lower case, or an IP address as `std` writes it, without brackets.
        host: String,
        /// The only port; without one the scheme's own.
        port: Option<u16>,
    },
}

impl Grant {
    /// Reads a grant as the configuration spells it.
    ///
    /// # Errors
    /// What is wrong with the text and what would be right, to be put behind the text itself.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "ledger.query" => Ok(Self::LedgerQuery),
            "llm" => Ok(Self::Llm),
            "log" => Ok(Self::Log),
            "search" => Ok(Self::Search),
            "send" => Ok(Self::Send),
            _ => {
                let (host, port) = host_and_port(text.strip_prefix("fetch:").ok_or(UNKNOWN)?)?;
                Ok(Self::Fetch { host, port })
            }
        }
    }
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>), &'static str> {
    if text.contains('/') {
        return Err(NO_HOST);
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or(NO_HOST)?;
            let address: Ipv6Addr = address.parse().map_err(|_| NO_HOST)?;
            let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or(NO_HOST)?) };
            (address.to_string(), port)
        }
        None => {
            let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
            (host_name(host)?, port)
        }
    };
    Ok((host, port.map(port_number).transpose()?))
}

fn host_name(text: &str) -> Result<String, &'static str> {
    if !text.is_ascii() {
        return Err(NOT_ASCII);
    }
    if text.contains('*') {
        return Err(NO_PATTERN);
    }
    let host = text.to_ascii_lowercase();
    let is_label = |label: &str| {
        let fits = !label.is_empty() && label.len() <= LABEL_BYTES_MAX;
        fits && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if host.len() > HOST_BYTES_MAX || !host.split('.').all(is_label) {
        return Err(NO_HOST);
    }
    // A URL takes what ends in a number for an address, in any of many spellings; here is one.
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_hex = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if last.bytes().all(|byte| byte.is_ascii_digit()) || last.strip_prefix("0x").is_some_and(is_hex) {
        return host.parse::<Ipv4Addr>().map(|address| address.to_string()).map_err(|_| NO_ADDRESS);
    }
    Ok(host)
}

fn port_number(text: &str) -> Result<u16, &'static str> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_number && *port > 0).ok_or(NO_PORT)
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LedgerQuery => f.write_str("ledger.query"),
            Self::Llm => f.write_str("llm"),
            Self::Log => f.write_str("log"),
            Self::Search => f.write_str("search"),
            Self::Send => f.write_str("send"),
            Self::Fetch { host, port } => {
                if host.contains(':') {
                    write!(f, "fetch:[{host}]")?;
                } else {
                    write!(f, "fetch:{host}")?;
                }
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
        }
    }
}

impl Serialize for Grant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Decode for Grant {
    fn decode(node: &Node, name: &str, faults: &mut Faults) -> Option<Self> {
        let Some(text) = node.text() else {
            let (name, found) = (quoted(name), described(node));
            faults.error(node.at, format!("a grant of {name} must be text such as llm or \"fetch:api.example.org\", not {found}"));
            return None;
        };
        match Self::parse(text) {
            Ok(grant) => Some(grant),
            Err(problem) => {
                faults.error(node.at, format!("{} {problem}", quoted(text)));
                None
            }
        }
    }
}

impl JsonSchema for Grant {
    fn schema_name() -> Cow<'static, str> {
        "Grant".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut object = Map::new();
        object.insert("type".to_owned(), Value::from("string"));
        object.insert("description".to_owned(), Value::from("One thing that a plugin may do."));
        object.insert("pattern".to_owned(), Value::from("^(ledger\\.query|llm|log|search|send|fetch:.+)$"));
        Schema::from(object)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Problem, Source, load};
    use super::*;
    use proptest::prelude::*;

    fn fetch(host: &str, port: Option<u16>) -> Grant {
        Grant::Fetch { host: host.to_owned(), port }
    }

    #[test]
    fn each_grant_is_read_in_one_spelling() {
        for (text, grant, shown) in [
            ("ledger.query", Grant::LedgerQuery, "ledger.query"),
            ("llm", Grant::Llm, "llm"),
            ("log", Grant::Log, "log"),
            ("search", Grant::Search, "search"),
            ("send", Grant::Send, "send"),
            ("fetch:API.Example.org", fetch("api.example.org", None), "fetch:api.example.org"),
            ("fetch:localhost:8080", fetch("localhost", Some(8080)), "fetch:localhost:8080"),
            ("fetch:10.0.0.1", fetch("10.0.0.1", None), "fetch:10.0.0.1"),
            ("fetch:[0:0::1]", fetch("::1", None), "fetch:[::1]"),
            ("fetch:[::ffff:7f00:1]:80", fetch("::ffff:127.0.0.1", Some(80)), "fetch:[::ffff:127.0.0.1]:80"),
            ("fetch:xn--bcher-kva.example", fetch("xn--bcher-kva.example", None), "fetch:xn--bcher-kva.example"),
        ] {
            assert_eq!(Grant::parse(text).unwrap(), grant, "{text}");
            assert_eq!(grant.to_string(), shown);
            assert_eq!(Grant::parse(shown).unwrap(), grant, "{shown}");
        }
    }

    #[test]
    fn what_is_no_grant_says_what_would_be_right() {
        for (text, problem) in [
            ("", UNKNOWN),
            ("searches", UNKNOWN),
            ("fetch", UNKNOWN),
            ("LLM", UNKNOWN),
            ("logs", UNKNOWN),
            ("fetch:", NO_HOST),
            ("fetch:example.org.", NO_HOST),
            ("fetch:https://example.org", NO_HOST),
            ("fetch:example.org/path", NO_HOST),
            ("fetch:me@example.org", NO_HOST),
            ("fetch: example.org", NO_HOST),
            ("fetch:::1", NO_HOST),
            ("fetch:[::1", NO_HOST),
            ("fetch:[::1]8080", NO_HOST),
            ("fetch:[10.0.0.1]", NO_HOST),
            ("fetch:*.example.org", NO_PATTERN),
            ("fetch:b\u{fc}cher.example", NOT_ASCII),
            ("fetch:2130706433", NO_ADDRESS),
            ("fetch:127.1", NO_ADDRESS),
            ("fetch:0x7f.0.0.0x1", NO_ADDRESS),
            ("fetch:127.0.0.01", NO_ADDRESS),
            ("fetch:h:0", NO_PORT),
            ("fetch:h:+80", NO_PORT),
            ("fetch:h:65536", NO_PORT),
            ("fetch:h:", NO_PORT),
        ] {
            assert_eq!(Grant::parse(text), Err(problem), "{text}");
        }
        assert_eq!(Grant::parse(&format!("fetch:{}", "a.".repeat(200))), Err(NO_HOST));
    }

    #[test]
    fn a_wrong_grant_is_told_with_its_place() {
        let text = "plugins:\n  grants:\n    watch: [ llm, 'fetch:*', [ send ] ]\n    -x: [ send ]\n    other: send\n";
        let problems = load(Source { name: "nex.yaml", text }, None).unwrap_err();
        let told: Vec<String> = problems.iter().map(|Problem { line, column, message, .. }| format!("{line}:{column} {message}")).collect();
        assert_eq!(
            told,
            [
                "3:19 `fetch:*` has a `*`; name each host by itself".to_owned(),
                "3:30 a grant of `watch` must be text such as llm or \"fetch:api.example.org\", not a list".to_owned(),
                "4:5 name `-x` is not usable; a name has 1 to 64 characters of A-Z a-z 0-9 . _ @ + -, not starting with -".to_owned(),
                "5:12 `other` must be a list such as [a, b], not `send`".to_owned(),
            ]
        );
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_so_that_it_is_read_the_same(text in "(fetch:)?[a-z0-9.:\\[\\]x-]{0,20}") {
            if let Ok(grant) = Grant::parse(&text) {
                prop_assert_eq!(Grant::parse(&grant.to_string()), Ok(grant));
            }
        }
    }
}
