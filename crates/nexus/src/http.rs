//! The HTTP server, twice: read-only on TCP, and with the control verbs on the Unix socket that only
//! this user can open.

mod access;
pub mod automations;
pub mod backup;
pub mod control;
pub mod health;
mod missing;
mod nostr;
mod prepare;
mod project;
pub mod replay;
mod search;
pub mod send;
pub mod sessions;
mod stream;

use crate::bus::Bus;
use crate::bus::store::BusCommand;
use crate::ledger::Database;
use crate::watch::Watch;
use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use secrecy::{ExposeSecret, SecretString};
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Verbs under way that change something, whether or not anybody waits for them; more are refused.
pub const VERBS_MAX: usize = 10_240;
/// Open connections per listener; more wait to be accepted.
const CONNECTIONS_MAX: usize = 10_240;
/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client may take to send a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// What answers need. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    pub bus: Bus,
    /// The store of `bus.mode: write-through`.
    pub store: Arc<arc_swap::ArcSwapOption<Database<BusCommand>>>,
    pub daemon: Arc<dyn control::Verbs>,
    /// Room for verbs that change something, each in a task of its own.
    pub verbs: Arc<Semaphore>,
    pub stop: CancellationToken,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

/// Who may use the TCP port.
#[derive(Debug, Clone)]
pub struct Guard {
    /// The configured host, beside the loopback names.
    pub host: String,
    /// Asked for when the port is open to others.
    pub token: Option<Arc<SecretString>>,
}

/// The listeners of a running daemon.
#[derive(Debug, Clone)]
pub struct Server {
    tasks: TaskTracker,
    watch_over: Watch,
    stop: CancellationToken,
    /// Patience is over: connections are cut.
    cut: CancellationToken,
}

impl Server {
    pub fn new(watch_over: Watch) -> Self {
        Self { tasks: TaskTracker::new(), watch_over, stop: CancellationToken::new(), cut: CancellationToken::new() }
    }

    /// Serves the read-only routes on `listener`.
    pub fn serve_tcp(&self, listener: TcpListener, api: Api, guard: Guard) {
        let guard = Arc::new(guard);
        let checked = middleware::from_fn(move |request, next| check(guard.clone(), request, next));
        let router = missing::answered(read_routes(api)).layer(checked);
        self.serve("http port", router, listener);
    }

    /// Serves all routes on `listener`, to this user and root only.
    pub fn serve_unix(&self, listener: UnixListener, api: Api) {
        let router = missing::answered(read_routes(api.clone()).merge(control::routes(api)));
        self.serve("control socket", router, listener);
    }

    /// Accepts until stopped, also after a failure.
    fn serve(&self, name: &'static str, router: Router, listener: impl Accept) {
        let (this, listener, slots) = (self.clone(), Arc::new(listener), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
        let (watch_over, stop) = (self.watch_over.clone(), self.stop.clone());
        crate::watch::tracked("http", &self.tasks, async move {
            let accept = move || this.clone().accept(router.clone(), listener.clone(), slots.clone());
            watch_over.until_done(name, &stop, accept).await;
        });
    }

    async fn accept(self, router: Router, listener: Arc<impl Accept>, slots: Arc<Semaphore>) {
        loop {
            crate::torture::point("task.http");
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.next() => accepted,
                () = self.stop.cancelled() => return,
            };
            match accepted {
                Ok(stream) => {
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD_LIMIT)
                        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
                    let (stop, cut) = (self.stop.clone(), self.cut.clone());
                    crate::watch::tracked("connection", &self.tasks, async move {
                        let mut connection = std::pin::pin!(connection);
                        let ended = tokio::select! {
                            ended = connection.as_mut() => ended,
                            () = stop.cancelled() => {
                                connection.as_mut().graceful_shutdown();
                                tokio::select! {
                                    ended = connection => ended,
                                    () = cut.cancelled() => Ok(()),
                                }
                            }
                        };
                        if let Err(error) = ended {
                            tracing::debug!(%error, "connection ended");
                        }
                        drop(slot);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: waiting is all that helps.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Accepts no more, and gives open connections up to `patience` to end.
    pub async fn stop(&self, patience: Duration) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(patience, self.tasks.wait()).await.is_err() {
            tracing::warn!(open = self.tasks.len(), "connections still open at shutdown are cut");
            self.cut.cancel();
            self.tasks.wait().await;
        }
    }
}

/// A source of connections. Waiting for the next one may be cancelled.
trait Accept: Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn next(&self) -> impl Future<Output = std::io::Result<Self::Stream>> + Send;
}

impl Accept for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn next(&self) -> std::io::Result<Self::Stream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Accept for UnixListener {
    type Stream = tokio::net::UnixStream;

    /// Only connections of this user and root; others are dropped.
    async fn next(&self) -> std::io::Result<Self::Stream> {
        let me = rustix::process::getuid().as_raw();
        loop {
            let (stream, _) = self.accept().await?;
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == me || peer.uid() == 0 => return Ok(stream),
                Ok(peer) => tracing::warn!(uid = peer.uid(), "control connection of another user refused"),
                Err(error) => tracing::warn!(%error, "control connection of an unknown user refused"),
            }
        }
    }
}

fn read_routes(api: Api) -> Router {
    Router::new()
        .route("/health", get(health::health))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/api/events/stream", get(stream::stream))
        .with_state(api)
}

/// Refuses names that only DNS rebinding brings here, and, where a token is asked for, its absence.
async fn check(guard: Arc<Guard>, request: Request, next: Next) -> Response {
    let refuse = |status: StatusCode, why: &str| (status, format!("{why}\n")).into_response();
    if let Some(token) = &guard.token {
        let given = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        let right = given.is_some_and(|given| given.as_bytes().ct_eq(token.expose_secret().as_bytes()).into());
        if !right {
            return refuse(StatusCode::UNAUTHORIZED, "send `Authorization: Bearer` with the token of daemon.token_file");
        }
    } else if !host_allowed(request.headers().get(header::HOST).and_then(|value| value.to_str().ok()), &guard.host) {
        return refuse(StatusCode::MISDIRECTED_REQUEST, "this Host is not served; use 127.0.0.1 or localhost");
    }
    next.run(request).await
}

fn host_allowed(host: Option<&str>, configured: &str) -> bool {
    // HTTP/1.0 clients send none; browsers, whom this guards against, always do.
    let Some(host) = host else { return true };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        Some(_) | None => host,
    };
    [configured, "localhost", "127.0.0.1", "[::1]", "::1"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::host_allowed;

    #[test]
    fn only_loopback_names_and_the_configured_host() {
        for good in ["localhost", "localhost:7400", "127.0.0.1:1", "[::1]:7400", "[::1]", "box.lan:9"] {
            assert!(host_allowed(Some(good), "box.lan"), "{good}");
        }
        for bad in ["evil.example", "evil.example:7400", "127.0.0.1.evil.example", "localhost.evil:1", ""] {
            assert!(!host_allowed(Some(bad), "box.lan"), "{bad}");
        }
        assert!(host_allowed(None, "127.0.0.1"));
    }
}
