//! `fetch`: one HTTP request to a granted host. It follows no redirect, keeps no cookie, uses no proxy and
//! adds no credential; a plugin is told what came and asks again if it wants more.

use super::address::{LOCALHOST, Resolver};
use super::params::{Params, shown, wrong};
use super::shapes::{Encoding, FetchAnswer, FetchAsk};
use super::{CallError, Caller};
use nexus_core::config::Grant;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, Response, Url};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::OnceCell;

/// Time from the look-up of the name to the last byte.
const TIME_MAX: Duration = Duration::from_secs(20);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
const URL_BYTES_MAX: usize = 8 * 1024;
const REQUEST_BYTES_MAX: usize = 256 * 1024;
const RESPONSE_BYTES_MAX: usize = 1024 * 1024;
const HEADERS_MAX: usize = 50;
const HEADERS_BYTES_MAX: usize = 16 * 1024;
/// Connections kept open to one host.
const IDLE_MAX: usize = 2;
/// Headers that say how the request travels, which is not the plugin's business.
const OURS: [&str; 11] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "expect",
    "proxy-connection",
    "proxy-authorization",
];
const METHODS: [Method; 7] = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// Sends requests, keeping connections.
#[derive(Debug)]
pub(super) struct Fetcher {
    /// For https: it takes certificates of the system, and a machine may have none.
    secure: OnceCell<Client>,
    plain: OnceCell<Client>,
    resolver: Resolver,
    time_max: Duration,
}

impl Default for Fetcher {
    fn default() -> Self {
        Self::new(Resolver::of_system(), TIME_MAX)
    }
}

/// One request that is allowed.
#[derive(Debug)]
struct Wish {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Option<String>,
}

impl Fetcher {
    pub(super) fn new(resolver: Resolver, time_max: Duration) -> Self {
        Self { secure: OnceCell::new(), plain: OnceCell::new(), resolver, time_max }
    }

    /// Answers `{url, method?, headers?, body?}` with `{status, headers, body, encoding}`.
    pub(super) async fn call(&self, caller: &Caller, params: Value) -> Result<Value, CallError> {
        let mut params = Params::of::<FetchAsk>(params)?;
        let url = url(&params.text("url", URL_BYTES_MAX)?)?;
        permit(&url, caller)?;
        let wish = Wish {
            method: method(params.optional_text("method", 16)?.as_deref())?,
            url,
            headers: headers(params.take("headers"))?,
            body: content(params.take("body"))?,
        };
        let late = |_| CallError::Limit(format!("the answer took longer than {} ms", self.time_max.as_millis()));
        tokio::time::timeout(self.time_max, self.send(wish)).await.map_err(late)?
    }

    async fn send(&self, wish: Wish) -> Result<Value, CallError> {
        let client = self.client(wish.url.scheme() == "https").await?;
        let mut request = client.request(wish.method, wish.url).headers(wish.headers);
        if let Some(body) = wish.body {
            request = request.body(body);
        }
        let response = request.send().await.map_err(failed)?;
        let (status, headers) = (response.status().as_u16(), told(response.headers()));
        let body = body(response).await?;
        let (encoding, body) = match String::from_utf8(body) {
            Ok(text) => (Encoding::Text, text),
            Err(error) => (Encoding::Hex, hex::encode(error.into_bytes())),
        };
        Ok(json!(FetchAnswer { status, headers, body, encoding }))
    }

    async fn client(&self, is_secure: bool) -> Result<&Client, CallError> {
        let made = async {
            let builder = Client::builder()
                .no_proxy()
                .no_gzip()
                .no_brotli()
                .no_zstd()
                .no_deflate()
                .referer(false)
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT_TIME_MAX)
                .pool_max_idle_per_host(IDLE_MAX)
                .user_agent(concat!("nexus/", env!("CARGO_PKG_VERSION")))
                .dns_resolver(self.resolver.clone());
            // Certificates are of no use to plain http.
            let builder = if is_secure { builder } else { builder.tls_certs_only(std::iter::empty::<reqwest::Certificate>()) };
            builder.build()
        };
        let cell = if is_secure { &self.secure } else { &self.plain };
        cell.get_or_try_init(|| made).await.map_err(|error| CallError::failed("prepare the HTTP client", error))
    }
}

fn url(text: &str) -> Result<Url, CallError> {
    let url = Url::parse(text).map_err(|error| wrong("url", format!("is no URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("url", format!("must begin with https://, not {}:", shown(url.scheme()))));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("url", "must not have a user or password; use `headers`"));
    }
    if url.host_str().is_none_or(|host| host.is_empty() || host.ends_with('.')) {
        return Err(wrong("url", "must name a host, without a dot at its end"));
    }
    Ok(url)
}

/// The host as a grant has it: a name in lower case, or an address without brackets, in one spelling.
fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    bare.parse::<IpAddr>().map_or_else(|_| bare.to_owned(), |address| address.to_string())
}

/// Whether the caller may send a request there. Its host is compared as the URL parser reads it, which is
/// where the request goes.
fn permit(url: &Url, caller: &Caller) -> Result<(), CallError> {
    let (host, port) = (host_of(url), url.port());
    let asked = Grant::Fetch { host: host.clone(), port };
    let is_granted = match port {
        // Without a port, or with the scheme's own.
        None => {
            let explicit = Grant::Fetch { host: host.clone(), port: url.port_or_known_default() };
            caller.grants.contains(&asked) || caller.grants.contains(&explicit)
        }
        Some(_) => caller.grants.contains(&asked),
    };
    if !is_granted {
        return Err(caller.not_granted(&asked));
    }
    let is_loopback = host == LOCALHOST || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if url.scheme() == "http" && !is_loopback {
        return Err(wrong("url", "must begin with https://; http is for this machine only"));
    }
    Ok(())
}

fn method(name: Option<&str>) -> Result<Method, CallError> {
    let Some(name) = name else { return Ok(Method::GET) };
    let known = METHODS.into_iter().find(|method| method.as_str().eq_ignore_ascii_case(name));
    known.ok_or_else(|| wrong("method", "must be one of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"))
}

fn headers(given: Option<Value>) -> Result<HeaderMap, CallError> {
    let fields = match given {
        None => return Ok(HeaderMap::new()),
        Some(Value::Object(fields)) => fields,
        Some(_) => return Err(wrong("headers", "must be an object of texts")),
    };
    let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.as_str().map_or(0, str::len)).sum();
    if fields.len() > HEADERS_MAX || bytes > HEADERS_BYTES_MAX {
        let limit = format!("`headers` may be {HEADERS_MAX} with {HEADERS_BYTES_MAX} bytes; there are {} with {bytes}", fields.len());
        return Err(CallError::Limit(limit));
    }
    let mut headers = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields {
        let field = format!("headers.{}", shown(&name));
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong(&field, "is no name of a header"))?;
        if OURS.contains(&name.as_str()) {
            return Err(wrong(field, "is set by the daemon"));
        }
        let value = value.as_str().and_then(|text| HeaderValue::from_str(text).ok());
        let value = value.ok_or_else(|| wrong(field, "must be a text of one line"))?;
        headers.insert(name, value);
    }
    Ok(headers)
}

/// The body to send, which may be empty.
fn content(given: Option<Value>) -> Result<Option<String>, CallError> {
    match given {
        None => Ok(None),
        Some(Value::String(text)) if text.len() <= REQUEST_BYTES_MAX => Ok(Some(text)),
        Some(Value::String(text)) => {
            Err(CallError::Limit(format!("`body` has {} bytes; at most {REQUEST_BYTES_MAX} are sent", text.len())))
        }
        Some(_) => Err(wrong("body", "must be a text")),
    }
}

/// The answer's headers: those that came several times in one text.
fn told(headers: &HeaderMap) -> BTreeMap<String, String> {
    let joined = |name: &HeaderName| {
        let values: Vec<_> = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        (name.as_str().to_owned(), values.join(", "))
    };
    headers.keys().map(joined).collect()
}

async fn body(mut response: Response) -> Result<Vec<u8>, CallError> {
    let too_long = || CallError::Limit(format!("the answer's body has more than {RESPONSE_BYTES_MAX} bytes"));
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > RESPONSE_BYTES_MAX {
            return Err(too_long());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Without the URL, which may have a key in it.
fn failed(error: reqwest::Error) -> CallError {
    CallError::failed("fetch", error.without_url())
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
