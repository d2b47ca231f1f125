//! The listening socket of one account, from the first connection to an orderly end.
//! Owns connection limits and the shutdown order; never looks into a request.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::complaint::say;
use super::intake::Intake;

/// Past this many, new connections wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 1024;
const HEADER_TIMEOUT_S: u64 = 10;
/// Limits the headers, and what one connection buffers.
const MAX_CONNECTION_BUFFER_BYTES: usize = 64 << 10;
const ACCEPT_RETRY_MS: u64 = 100;
/// The daemon gives a child 5 s after SIGTERM; answers need the last one.
const SETTLE_TIMEOUT_MS: u64 = 4_000;
const FLUSH_TIMEOUT_MS: u64 = 500;

/// Why serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The caller's `stop` resolved.
    Stopped,
    /// No ack can come any more.
    DaemonGone,
}

/// Serves `intake` until `stop` resolves or the daemon is gone; `acks` are its acknowledged ids.
///
/// On `stop`: no new connections or events, a while for acks under way, then 503 for the rest.
#[expect(clippy::disallowed_methods, reason = "another program: a panic is on its stderr, and costs that connection")]
pub(super) async fn serve(
    listener: TcpListener,
    intake: Arc<Intake>,
    mut acks: mpsc::Receiver<String>,
    stop: impl Future<Output = ()>,
) -> Ending {
    let (closing, observer) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    let ending = loop {
        tokio::select! {
            ack = acks.recv() => match ack {
                Some(event_id) => intake.release(&event_id),
                None => break Ending::DaemonGone,
            },
            () = intake.daemon_gone() => break Ending::DaemonGone,
            () = &mut stop => break Ending::Stopped,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            stream = accept(&listener, &intake), if connections.len() < MAX_CONNECTIONS => {
                connections.spawn(converse(stream, Arc::clone(&intake), observer.clone()));
            }
        }
    };
    drop(listener);
    intake.stop();
    if ending == Ending::Stopped {
        settle(&intake, &mut acks).await;
    }
    intake.abandon();
    closing.send(true).ok();
    let flushed = async { while connections.join_next().await.is_some() {} };
    if timeout(Duration::from_millis(FLUSH_TIMEOUT_MS), flushed).await.is_err() {
        say("cut off connections that did not end");
    }
    ending
}

/// Keeps applying acks until every request has its answer, or time is up.
async fn settle(intake: &Intake, acks: &mut mpsc::Receiver<String>) {
    let settled = async {
        let mut answered = pin!(intake.all_answered());
        loop {
            tokio::select! {
                ack = acks.recv() => match ack {
                    Some(event_id) => intake.release(&event_id),
                    None => return,
                },
                () = &mut answered => return,
            }
        }
    };
    if timeout(Duration::from_millis(SETTLE_TIMEOUT_MS), settled).await.is_err() {
        say("stopping with unacknowledged events; their senders are told to retry");
    }
}

async fn accept(listener: &TcpListener, intake: &Intake) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => return stream,
            Err(error) => {
                intake.complain("accept", &format!("failed to accept a connection: {error}"));
                // Out of descriptors, most likely: trying at once would only burn the processor.
                sleep(Duration::from_millis(ACCEPT_RETRY_MS)).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, intake: Arc<Intake>, mut closing: watch::Receiver<bool>) {
    let service = service_fn(move |request| {
        let intake = Arc::clone(&intake);
        async move { Ok::<_, Infallible>(intake.answer(request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(HEADER_TIMEOUT_S)).max_buf_size(MAX_CONNECTION_BUFFER_BYTES);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        changed = closing.changed() => {
            changed.ok();
            None
        }
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // A peer that breaks off is its own affair: what it was owed is already decided.
    ended.ok();
}
