//! A child's stderr, line by line into the log: bounded in length and rate, never in the way.

use crate::supervisor::after_exit;
use memchr::memchr;
use nexus_core::ids::ChildId;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio_util::sync::CancellationToken;

/// Bytes of one logged line; the rest of a longer one is left out.
const LINE_BYTES_MAX: usize = 4096;
/// Lines of one child that are logged per window; more are counted.
const LINES_PER_WINDOW: u32 = 200;
const WINDOW: Duration = Duration::from_secs(10);

/// How long stderr is read after the exit: a descriptor that was passed to a stranger must not hold
/// the restart.
const STDERR_DEADLINE: Duration = Duration::from_secs(5);

/// Logs until EOF.
async fn log_lines(child: ChildId, stderr: Receiver) {
    log_and_tell(child, stderr, |_| {}).await;
}

/// Logs until EOF, and tells `tap` each line, also those that are too many for the log.
pub(crate) async fn log_and_tell(child: ChildId, mut stderr: Receiver, tap: impl FnMut(&str)) {
    let mut lines = Lines { child, kept: Vec::new(), window: Instant::now(), logged: 0, dropped: 0, tap };
    let mut chunk = vec![0; 8192];
    while let Ok(got @ 1..) = stderr.read(&mut chunk).await {
        let mut rest = &chunk[..got];
        while let Some(end) = memchr(b'\n', rest) {
            lines.add(&rest[..end]);
            lines.end();
            rest = &rest[end + 1..];
        }
        lines.add(rest);
    }
    lines.end();
    lines.tell_dropped();
}

/// Logs what a child says on stderr, to its end or a little longer than the child lives.
pub async fn log_errors(child: ChildId, errors: Receiver, exited: CancellationToken) {
    let name = child.clone();
    tokio::select! {
        () = log_lines(child, errors) => {}
        () = after_exit(&exited, STDERR_DEADLINE) => tracing::warn!(child = %name, "stderr still open after the exit; given up"),
    }
}

struct Lines<T> {
    child: ChildId,
    kept: Vec<u8>,
    window: Instant,
    logged: u32,
    dropped: u64,
    tap: T,
}

impl<T: FnMut(&str)> Lines<T> {
    fn add(&mut self, bytes: &[u8]) {
        let room = LINE_BYTES_MAX.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn end(&mut self) {
        if self.window.elapsed() >= WINDOW {
            self.tell_dropped();
            (self.window, self.logged) = (Instant::now(), 0);
        }
        let text = String::from_utf8_lossy(&self.kept);
        let text = text.trim_end();
        if !text.is_empty() {
            (self.tap)(text);
            if self.logged < LINES_PER_WINDOW {
                self.logged += 1;
                tracing::info!(target: "child", child = %self.child, "{text}");
            } else {
                self.dropped += 1;
            }
        }
        self.kept.clear();
    }

    fn tell_dropped(&mut self) {
        if self.dropped > 0 {
            tracing::warn!(child = %self.child, lines = self.dropped, "stderr lines left out: more than {LINES_PER_WINDOW} in 10 s");
            self.dropped = 0;
        }
    }
}
