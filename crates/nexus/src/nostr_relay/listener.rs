//! The listening socket: from a connection to a WebSocket, or to the relay's description (NIP-11), and to an
//! orderly end of all of them. It refuses what a web page of somebody else could send; it reads no message.

use super::Shared;
use super::connection::converse;
use super::info::{MEDIA_TYPE, document};
use super::limits::{CONNECTIONS_MAX, GOODBYE, HTTP_BUFFER_BYTES_MAX, HTTP_TIMEOUT, SWEEP_INTERVAL};
use super::store::Ask;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;

const ACCEPT_RETRY: Duration = Duration::from_millis(100);
const WEBSOCKET_VERSION: &str = "13";

type Answer = Response<Full<Bytes>>;

/// A request that becomes a WebSocket.
struct Upgrade {
    on: OnUpgrade,
    /// As the client addressed this relay.
    host: String,
}

/// Serves until `stop`; then says goodbye to all, and returns when they are gone.
#[expect(clippy::disallowed_methods, reason = "another program: a panic is on its stderr, and costs that connection")]
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>, stop: &CancellationToken) {
    let mut connections = JoinSet::new();
    let mut sweep = interval(SWEEP_INTERVAL);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            _ = sweep.tick() => {
                // A line that is full has better to do.
                shared.store.try_send(Ask::Sweep).ok();
            }
            stream = accept(&listener), if connections.len() < CONNECTIONS_MAX => {
                connections.spawn(connected(stream, shared.clone(), stop.clone()));
            }
        }
    }
    drop(listener);
    let gone = async { while connections.join_next().await.is_some() {} };
    if timeout(GOODBYE, gone).await.is_err() {
        connections.shutdown().await;
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => return stream,
            Err(error) => {
                super::say(&format!("failed to accept a connection: {error}"));
                // Out of descriptors, most likely: trying at once would only burn the processor.
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// One connection: HTTP first, and if that asks for it a WebSocket.
async fn connected(stream: TcpStream, shared: Arc<Shared>, stop: CancellationToken) {
    // Answers are small and come one by one; without it each would wait for the client's acknowledgement of the last.
    stream.set_nodelay(true).ok();
    let upgrade: Arc<Mutex<Option<Upgrade>>> = Arc::default();
    let (asked, place) = (upgrade.clone(), shared.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        let answer = answer(&mut request, &place, &asked);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HTTP_TIMEOUT).max_buf_size(HTTP_BUFFER_BYTES_MAX);
    let http = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    let served = tokio::select! {
        served = timeout(HTTP_TIMEOUT, http) => served,
        () = stop.cancelled() => return,
    };
    // A peer that breaks off, or takes too long, is its own affair.
    let Ok(Ok(())) = served else { return };
    let taken = upgrade.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(Upgrade { on, host }) = taken else { return };
    if let Ok(socket) = on.await {
        converse(TokioIo::new(socket), host, &shared, &stop).await;
    }
}

fn answer(request: &mut Request<Incoming>, shared: &Shared, upgrade: &Mutex<Option<Upgrade>>) -> Answer {
    let host = text(request.headers(), header::HOST).to_owned();
    if shared.is_loopback && !is_this_machine(&host) {
        return plain(StatusCode::FORBIDDEN, "this relay is for this machine; its name is localhost");
    }
    if request.method() == Method::OPTIONS {
        return shareable(plain(StatusCode::NO_CONTENT, ""));
    }
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "a relay is asked by GET");
    }
    if text(request.headers(), header::UPGRADE).eq_ignore_ascii_case("websocket") {
        let answer = handshake(request.headers(), shared.is_loopback);
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let asked = Upgrade { on: hyper::upgrade::on(request), host };
            *upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
        }
        return answer;
    }
    if text(request.headers(), header::ACCEPT).contains(MEDIA_TYPE) {
        let mut answer = plain(StatusCode::OK, document(shared.auth));
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        return shareable(answer);
    }
    plain(StatusCode::OK, "This is a Nostr relay: connect to it by WebSocket.\n")
}

/// The answer to a request for a WebSocket (RFC 6455, 4.2).
fn handshake(headers: &HeaderMap, is_loopback: bool) -> Answer {
    let origin = text(headers, header::ORIGIN);
    if is_loopback && !origin.is_empty() && !is_own_page(origin) {
        return plain(StatusCode::FORBIDDEN, "this relay is for programs and pages of this machine");
    }
    if text(headers, header::SEC_WEBSOCKET_VERSION) != WEBSOCKET_VERSION {
        let mut answer = plain(StatusCode::UPGRADE_REQUIRED, "version 13 is spoken");
        answer.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static(WEBSOCKET_VERSION));
        return answer;
    }
    let key = text(headers, header::SEC_WEBSOCKET_KEY);
    let Some(accept) = (!key.is_empty()).then(|| HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok()).flatten() else {
        return plain(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing");
    };
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let fields = [
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::CONNECTION, HeaderValue::from_static("Upgrade")),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
    ];
    answer.headers_mut().extend(fields);
    answer
}

fn text(headers: &HeaderMap, name: HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn plain(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
}

/// Any page may read it (NIP-11).
fn shareable(mut answer: Answer) -> Answer {
    for name in [header::ACCESS_CONTROL_ALLOW_ORIGIN, header::ACCESS_CONTROL_ALLOW_HEADERS, header::ACCESS_CONTROL_ALLOW_METHODS] {
        answer.headers_mut().insert(name, HeaderValue::from_static("*"));
    }
    answer
}

/// Whether a `Host` is a name that nobody else can give this machine: a page's name may be made to lead here (DNS rebinding).
fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

/// Whether a page comes from this machine.
fn is_own_page(origin: &str) -> bool {
    let Some((_, host)) = origin.split_once("://") else { return false };
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let bare = host.strip_prefix('[').and_then(|rest| rest.split(']').next()).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_can_point_here_are_this_machine() {
        for host in ["localhost", "LOCALHOST:80", "127.0.0.1:7410", "[::1]:7410", "[::1]", "192.168.0.7:1"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in ["", "evil.example", "evil.example:7410", "localhost.evil.example", "127.0.0.1.evil.example:80"] {
            assert!(!is_this_machine(host), "{host}");
        }
    }

    #[test]
    fn pages_of_others_are_not_ours() {
        for origin in ["http://localhost:3000", "http://127.0.0.1", "https://[::1]:8", "http://[::1]"] {
            assert!(is_own_page(origin), "{origin}");
        }
        for origin in ["null", "https://evil.example", "https://localhost.evil.example", "http://10.0.0.1", "http://127.0.0.1@evil.example"]
        {
            assert!(!is_own_page(origin), "{origin}");
        }
    }

    #[test]
    fn the_handshake_is_that_of_rfc_6455() {
        let mut headers = HeaderMap::new();
        headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(handshake(&headers, true).status(), StatusCode::UPGRADE_REQUIRED);
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        let answer = handshake(&headers, true);
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(answer.headers()[header::SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        headers.insert(header::ORIGIN, HeaderValue::from_static("https://evil.example"));
        assert_eq!(handshake(&headers, true).status(), StatusCode::FORBIDDEN);
        assert_eq!(handshake(&headers, false).status(), StatusCode::SWITCHING_PROTOCOLS);
        headers.remove(header::SEC_WEBSOCKET_KEY);
        assert_eq!(handshake(&headers, false).status(), StatusCode::BAD_REQUEST);
    }
}
