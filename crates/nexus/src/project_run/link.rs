//! What goes up to the daemon: frames in their order, and the answers to what was asked to be published.

use crate::nostr::Template;
use crate::project::protocol::{self, Publish, Up};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Frames that wait for the daemon to read.
const FRAMES_UP_MAX: usize = 64;
/// How long the daemon may take to publish something.
const PUBLISH_LIMIT: Duration = Duration::from_secs(60);

type Published = Result<Option<String>, String>;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Link {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    frames: Mutex<Option<mpsc::Sender<Vec<u8>>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Published>>>,
    next: AtomicU64,
}

impl Link {
    pub(super) fn new(stdout: pipe::Sender) -> Self {
        let (frames, queue) = mpsc::channel(FRAMES_UP_MAX);
        let writer = crate::watch::helper("project.link", write(stdout, queue));
        let inner = Inner {
            frames: Mutex::new(Some(frames)),
            writer: Mutex::new(Some(writer)),
            waiting: Mutex::default(),
            next: AtomicU64::new(1),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Sends a frame, waiting while the daemon doesn't read. One that is too long is left out, and told.
    pub(super) async fn send(&self, frame: Up) {
        let line = match protocol::line(&frame) {
            Ok(line) => line,
            Err(error) => return tracing::error!(error, "a frame was left out"),
        };
        let frames = self.inner.frames.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(frames) = frames
            && frames.send(line).await.is_err()
        {
            tracing::debug!("the daemon is gone");
        }
    }

    /// Has an event published, as part of the answer to `about`.
    ///
    /// # Errors
    /// What the daemon says about why it isn't.
    pub(super) async fn publish(&self, agent: &str, template: Template, about: Option<String>) -> Published {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let (answer, heard) = oneshot::channel();
        self.waiting().insert(id, answer);
        self.send(Up::Publish(Box::new(Publish { id, agent: agent.to_owned(), template, about }))).await;
        let published = match tokio::time::timeout(PUBLISH_LIMIT, heard).await {
            Ok(Ok(published)) => published,
            Ok(Err(_)) => Err("the daemon is gone".to_owned()),
            Err(_) => Err(format!("the daemon did not say within {} s what became of it", PUBLISH_LIMIT.as_secs())),
        };
        self.waiting().remove(&id);
        published
    }

    /// Tells who asked what became of it.
    pub(super) fn acknowledged(&self, id: u64, event_id: Option<String>, error: Option<String>) {
        let asked = self.waiting().remove(&id);
        let published = error.map_or(Ok(event_id), Err);
        if asked.is_none_or(|asked| asked.send(published).is_err()) {
            tracing::debug!(id, "nobody waits for this acknowledgement any more");
        }
    }

    /// Sends what was to be sent, and nothing after that.
    pub(super) async fn close(&self) {
        drop(self.inner.frames.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            drop(writer.await); // a panic was told when it happened
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Published>>> {
        self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write(mut stdout: pipe::Sender, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = queue.recv().await {
        if stdout.write_all(&line).await.is_err() {
            return;
        }
    }
}
