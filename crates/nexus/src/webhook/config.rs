//! The account file that the daemon hands over, checked as a whole: all problems at once.
//! Owns every config key of the webhook adapter and its default; never opens a socket and never
//! prints a secret.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::header::{AUTHORIZATION, HeaderName};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::protocol::CHANNEL;
use super::signature::{Secret, TokenHeader, Verifier};

/// Environment variable with the path of the account file (adapter protocol v1).
pub(super) const ACCOUNT_FILE_VARIABLE: &str = "NEXUS_CONTEXT_FILE";
/// The path that answers liveness questions; no account may use it.
pub(super) const HEALTH_PATH: &str = "/healthz";

const ACCOUNT_FILE_VERSION: u64 = 1;
const MAX_ACCOUNT_FILE_BYTES: u64 = 1 << 20;
const MAX_SECRET_FILE_BYTES: u64 = 64 << 10;
const DEFAULT_BIND: &str = "127.0.0.1:7480";
/// Leaves room for quoting and the other fields within the default line limit.
const DEFAULT_MAX_BODY_BYTES: u64 = 768 << 10;
/// Above GitHub's cap of 25 MiB, and half of what all requests together may hold.
const CEILING_BODY_BYTES: u64 = 32 << 20;
/// The daemon's own default for `max_line_bytes`.
const DEFAULT_MAX_LINE_BYTES: u64 = 1 << 20;
const CEILING_LINE_BYTES: u64 = 256 << 20;
const DEFAULT_TOLERANCE_S: u64 = 300;
const CEILING_TOLERANCE_S: u64 = 86_400;
const DEFAULT_ACK_TIMEOUT_MS: u64 = 10_000;
const CEILING_ACK_TIMEOUT_MS: u64 = 300_000;

/// Why an account cannot run as configured.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigError {
    #[error("NEXUS_CONTEXT_FILE is not set; this command is started by the daemon, which sets it")]
    NoAccountFile,
    #[error("failed to read account file `{}`", .path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to parse the account file")]
    NotJson(#[source] serde_json::Error),
    #[error("account `{account}` is not usable as configured:\n  {}", .problems.join("\n  "))]
    Invalid { account: String, problems: Vec<String> },
}

/// One account's settings, all of them checked.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) channel: String,
    pub(super) account_id: String,
    pub(super) bind: SocketAddr,
    /// The one path that takes events.
    pub(super) path: String,
    pub(super) verifier: Verifier,
    /// Which header carries the delivery id (`token` and `none`).
    pub(super) id_header: HeaderName,
    /// Which header names the event (`token` and `none`).
    pub(super) event_header: Option<HeaderName>,
    pub(super) max_body_bytes: usize,
    /// Longest event line, newline included.
    pub(super) max_line_bytes: usize,
    /// How long a request waits for the daemon's commit.
    pub(super) ack_timeout: Duration,
    /// What is odd, but no reason to stop.
    pub(super) warnings: Vec<String>,
}

/// The part of the account file that only names the account.
#[derive(Deserialize)]
struct AccountFile {
    #[serde(default)]
    version: Option<u64>,
    #[serde(default)]
    channel: Option<String>,
    account_id: String,
    #[serde(default)]
    config: Option<Map<String, Value>>,
    /// Kept untyped, since a type error from serde would quote the secret.
    #[serde(default)]
    credential: Option<Value>,
}

/// Reads the account file named by the environment.
pub(super) fn read_account_file() -> Result<Vec<u8>, ConfigError> {
    let path = std::env::var_os(ACCOUNT_FILE_VARIABLE).map(PathBuf::from).ok_or(ConfigError::NoAccountFile)?;
    read_capped(&path, MAX_ACCOUNT_FILE_BYTES).map_err(|source| ConfigError::Unreadable { path, source })
}

/// The account named in an account file, whether or not its config is usable.
pub(super) fn account_named_in(json: &[u8]) -> Result<String, ConfigError> {
    let file: AccountFile = serde_json::from_slice(json).map_err(ConfigError::NotJson)?;
    Ok(file.account_id)
}

impl Settings {
    /// Checks a whole account file.
    pub(super) fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let file: AccountFile = serde_json::from_slice(json).map_err(ConfigError::NotJson)?;
        let mut keys = Keys { config: file.config.unwrap_or_default(), problems: Vec::new() };
        keys.check_version(file.version);
        let bind = keys.bind();
        let path = keys.path(&file.account_id);
        let secret = keys.secret(file.credential.as_ref());
        let verifier = keys.verifier(secret, bind);
        let id_header = keys.header("id_header");
        let event_header = keys.header("event_header");
        let max_body = keys.number("max_body_bytes", DEFAULT_MAX_BODY_BYTES, 1..=CEILING_BODY_BYTES);
        let max_line = keys.number("max_line_bytes", DEFAULT_MAX_LINE_BYTES, 1024..=CEILING_LINE_BYTES);
        let ack_timeout_ms = keys.number("ack_timeout_ms", DEFAULT_ACK_TIMEOUT_MS, 1..=CEILING_ACK_TIMEOUT_MS);
        let warnings = keys.unknown();
        match (verifier, bind) {
            (Some(verifier), Some(bind)) if keys.problems.is_empty() => Ok(Self {
                channel: file.channel.filter(|name| !name.is_empty()).unwrap_or_else(|| CHANNEL.to_owned()),
                account_id: file.account_id,
                bind,
                path,
                verifier,
                id_header: id_header.unwrap_or(HeaderName::from_static("x-request-id")),
                event_header,
                max_body_bytes: usize::try_from(max_body).unwrap_or(usize::MAX),
                max_line_bytes: usize::try_from(max_line).unwrap_or(usize::MAX),
                ack_timeout: Duration::from_millis(ack_timeout_ms),
                warnings,
            }),
            _ => Err(ConfigError::Invalid { account: file.account_id, problems: keys.problems }),
        }
    }
}

/// The account's config keys: each is taken out when read, so what stays is unknown.
struct Keys {
    config: Map<String, Value>,
    problems: Vec<String>,
}

impl Keys {
    fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.config.remove(key).filter(|value| !value.is_null())
    }

    fn text(&mut self, key: &str) -> Option<String> {
        let Value::String(text) = self.take(key)? else {
            self.problem(format!("`{key}` must be a text"));
            return None;
        };
        Some(text)
    }

    fn flag(&mut self, key: &str) -> bool {
        match self.take(key).map(|value| value.as_bool()) {
            Some(Some(flag)) => flag,
            Some(None) => {
                self.problem(format!("`{key}` must be true or false"));
                false
            }
            None => false,
        }
    }

    fn number(&mut self, key: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let Some(value) = self.take(key) else {
            return default;
        };
        match value.as_u64().filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                let (low, high) = (range.start(), range.end());
                self.problem(format!("`{key}` must be a whole number from {low} to {high}"));
                default
            }
        }
    }

    fn header(&mut self, key: &str) -> Option<HeaderName> {
        let text = self.text(key)?;
        let name = HeaderName::from_bytes(text.as_bytes()).ok();
        if name.is_none() {
            self.problem(format!("`{key}` must be a header name, such as X-Request-Id"));
        }
        name
    }

    fn check_version(&mut self, version: Option<u64>) {
        if version.is_some_and(|version| version != ACCOUNT_FILE_VERSION) {
            self.problem(format!(
                "the account file is not of version {ACCOUNT_FILE_VERSION}; \
                 run daemon and adapter from the same build"
            ));
        }
    }

    fn bind(&mut self) -> Option<SocketAddr> {
        let text = self.text("bind").unwrap_or_else(|| DEFAULT_BIND.to_owned());
        let allow_external = self.flag("allow_external");
        let Ok(bind) = text.parse::<SocketAddr>() else {
            self.problem(format!("`bind` must be an IP address and a port, such as {DEFAULT_BIND}, not `{text}`"));
            return None;
        };
        if bind.port() == 0 {
            self.problem("`bind` needs a fixed port, since senders must know it");
        }
        if !is_loopback(bind) && !allow_external {
            self.problem(format!(
                "`bind: {text}` is reachable from outside; \
                 set `allow_external: true` if that is meant"
            ));
        }
        Some(bind)
    }

    fn path(&mut self, account_id: &str) -> String {
        let given = self.text("path");
        let path = given.unwrap_or_else(|| format!("/{account_id}"));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~@:".contains(&byte);
        if !path.starts_with('/') || path.len() < 2 || !path.bytes().all(plain) {
            self.problem(format!(
                "`path` must start with / and hold only letters, digits and -._~@:/, \
                 which `{path}` does not"
            ));
        }
        if path == HEALTH_PATH {
            self.problem(format!("`path` must not be {HEALTH_PATH}, which answers health checks"));
        }
        path
    }

    /// The secret from the credential or from `secret_file`, without its final newline.
    fn secret(&mut self, credential: Option<&Value>) -> Option<Secret> {
        if self.take("secret").is_some() {
            self.problem(
                "`secret` does not belong in the config file; store it with \
                 `nexus credential set` and name it in `credential_ref`, or use `secret_file`",
            );
        }
        let from_credential = credential.filter(|value| !value.is_null());
        let bytes = match (self.text("secret_file"), from_credential) {
            (None, None) => return None,
            (Some(_), Some(_)) => {
                self.problem("`secret_file` and `credential_ref` are both set; keep one of them");
                return None;
            }
            (Some(path), None) => match read_capped(Path::new(&path), MAX_SECRET_FILE_BYTES) {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.problem(format!("`secret_file` `{path}` cannot be read: {error}"));
                    return None;
                }
            },
            (None, Some(credential)) => match credential.get("value").and_then(Value::as_str) {
                Some(text) => text.as_bytes().to_vec(),
                None => {
                    self.problem("the credential's value must be a text: the webhook secret itself");
                    return None;
                }
            },
        };
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        if bytes.is_empty() {
            self.problem("the secret is empty");
            return None;
        }
        Some(Secret::new(bytes))
    }

    fn verifier(&mut self, secret: Option<Secret>, bind: Option<SocketAddr>) -> Option<Verifier> {
        let tolerance_s = self.number("tolerance_s", DEFAULT_TOLERANCE_S, 1..=CEILING_TOLERANCE_S);
        let header = match self.header("token_header") {
            Some(name) if name != AUTHORIZATION => TokenHeader::Named(name),
            Some(_) | None => TokenHeader::Bearer,
        };
        let verify = self.text("verify").unwrap_or_default();
        match (verify.as_str(), secret) {
            ("github", Some(secret)) => Some(Verifier::Github { secret }),
            ("stripe", Some(secret)) => Some(Verifier::Stripe { secret, tolerance_s }),
            ("token", Some(secret)) => Some(Verifier::Token { secret, header }),
            ("none", _) => {
                if bind.is_some_and(|bind| !is_loopback(bind)) {
                    self.problem("`verify: none` is refused unless `bind` is a loopback address");
                }
                Some(Verifier::Unverified)
            }
            ("github" | "stripe" | "token", None) => {
                self.problem(format!(
                    "`verify: {verify}` needs a usable secret: store it with \
                     `nexus credential set SERVICE/NAME` and set `credential_ref: SERVICE/NAME`"
                ));
                None
            }
            _ => {
                self.problem("`verify` must be one of github, stripe, token, none");
                None
            }
        }
    }

    fn unknown(&self) -> Vec<String> {
        self.config.keys().map(|key| format!("unknown key `{key}` in the account's config is ignored")).collect()
    }
}

fn is_loopback(bind: SocketAddr) -> bool {
    bind.ip().to_canonical().is_loopback()
}

fn read_capped(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(io::Error::other(format!("it is larger than {max_bytes} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
