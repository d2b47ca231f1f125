//! The loop of the process: frames from the daemon in, each dealt with in its order; events are answered one after
//! the other beside it, so that pings are answered meanwhile.

use super::answer::Desk;
use super::link::Link;
use super::status;
use crate::framing::{Framing, Piece};
use crate::keeper::leftovers;
use crate::project::protocol::{self, Down, EventFrame, FRAME_BYTES_MAX, PROTOCOL, Up};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Events that wait; the daemon hands over one at a time.
const EVENTS_MAX: usize = 16;
/// Bytes read at a time: what a pipe holds.
const CHUNK_BYTES: usize = 64 * 1024;
/// How long what is under way may take once the daemon has asked for the end.
const END_PATIENCE: Duration = Duration::from_secs(4);

/// Why it ends.
enum End {
    /// Asked for: what is under way is answered first.
    Asked,
    /// Nobody is there any more.
    Gone,
}

/// Serves the daemon until the end.
pub(super) async fn serve(desk: Desk, stdin: pipe::Receiver, link: Link) {
    let desk = Arc::new(desk);
    let (events, queue) = mpsc::channel(EVENTS_MAX);
    let answering = crate::watch::helper("project.answers", answer_all(desk.clone(), queue));
    link.send(Up::Ready { protocol: PROTOCOL }).await;
    let telling = crate::watch::helper("project.status", status::tell(desk.clone(), link.clone()));
    let end = tokio::select! {
        end = read(stdin, &events, &link) => end,
        () = told_to_end() => End::Asked,
    };
    telling.abort();
    drop(events);
    match end {
        End::Asked => {
            if tokio::time::timeout(END_PATIENCE, answering).await.is_err() {
                tracing::warn!("the end came before the last answer");
            }
        }
        End::Gone => answering.abort(),
    }
    // Should the daemon not read, there is no more to be done about it.
    drop(tokio::time::timeout(END_PATIENCE, link.close()).await);
}

async fn answer_all(desk: Arc<Desk>, mut queue: mpsc::Receiver<EventFrame>) {
    while let Some(event) = queue.recv().await {
        desk.answer(event).await;
    }
}

async fn read(mut stdin: pipe::Receiver, events: &mpsc::Sender<EventFrame>, link: &Link) -> End {
    let (mut framing, mut chunk) = (Framing::new(FRAME_BYTES_MAX), vec![0; CHUNK_BYTES]);
    loop {
        let Ok(got @ 1..) = stdin.read(&mut chunk).await else { return End::Gone };
        let mut frames = Vec::new();
        framing.push(&chunk[..got], |piece| {
            frames.push(match piece {
                Piece::Line(line) => protocol::read_down(line),
                Piece::TooLong { bytes, .. } => Err(format!("a frame of {bytes} bytes")),
            });
        });
        for frame in frames {
            match frame {
                Ok(Down::Event(event)) => {
                    if events.send(*event).await.is_err() {
                        return End::Gone; // who answers broke: another process may do better
                    }
                }
                Ok(Down::AckPublished { id, event_id, error }) => link.acknowledged(id, event_id, error),
                Ok(Down::Ping { n }) => link.send(Up::Pong { n }).await,
                Ok(Down::Shutdown) => return End::Asked,
                Err(error) => tracing::warn!(error, "the daemon wrote what can't be read; is it of another version?"),
            }
        }
    }
}

/// TERM; and as long as there is none, what keepers leave behind is cleared up.
async fn told_to_end() {
    let (Ok(mut term), Ok(mut child)) = (signal(SignalKind::terminate()), signal(SignalKind::child())) else {
        tracing::error!("signals can't be listened to; TERM ends this process at once");
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            _ = term.recv() => return,
            _ = child.recv() => leftovers::reap_all(),
        }
    }
}
