//! The bounds of what an MCP server may write: the length of a line, how much in a while, and how many requests
//! of its own, each of which has to be answered. Whoever exceeds them is heard no more. Of what is written it
//! knows only whether it is a request.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use memchr::{memchr_iter, memmem};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

/// The longest line, in bytes.
pub(super) const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

const WINDOW: Duration = Duration::from_secs(10);
const LINES_PER_WINDOW_MAX: u64 = 10_000;
const BYTES_PER_WINDOW_MAX: u64 = 64 * 1024 * 1024;
const REQUESTS_PER_WINDOW_MAX: u64 = 64;

/// A buffer for lines that grew beyond this is given back after its line.
const BUFFER_BYTES_KEPT: usize = 256 * 1024;

/// Why a server is heard no more, once it isn't.
pub(super) type Verdict = Arc<OnceLock<&'static str>>;

/// A server's stdout, as far as it keeps to the bounds.
#[derive(Debug)]
pub(super) struct Guard<R> {
    inner: R,
    /// What has come of the line that is being read.
    line: Vec<u8>,
    since: Instant,
    lines: u64,
    bytes: u64,
    requests: u64,
    verdict: Verdict,
}

impl<R> Guard<R> {
    pub(super) fn new(inner: R, verdict: Verdict) -> Self {
        Self { inner, line: Vec::new(), since: Instant::now(), lines: 0, bytes: 0, requests: 0, verdict }
    }

    fn check(&mut self, read: &[u8]) -> Result<(), &'static str> {
        if self.since.elapsed() >= WINDOW {
            (self.since, self.lines, self.bytes, self.requests) = (Instant::now(), 0, 0, 0);
        }
        let mut begin = 0;
        for end in memchr_iter(b'\n', read) {
            self.add(&read[begin..end])?;
            begin = end + 1;
            self.lines += 1;
            self.requests += u64::from(is_request(&self.line));
            self.line.clear();
            self.line.shrink_to(BUFFER_BYTES_KEPT);
        }
        self.add(&read[begin..])?;
        self.bytes += read.len() as u64;
        if self.requests > REQUESTS_PER_WINDOW_MAX {
            return Err("more than 64 requests in 10 s");
        }
        if self.lines > LINES_PER_WINDOW_MAX {
            return Err("more than 10,000 lines in 10 s");
        }
        if self.bytes > BYTES_PER_WINDOW_MAX {
            return Err("more than 64 MiB in 10 s");
        }
        Ok(())
    }

    fn add(&mut self, part: &[u8]) -> Result<(), &'static str> {
        if self.line.len() + part.len() > LINE_BYTES_MAX {
            return Err("a line of more than 4 MiB");
        }
        self.line.extend_from_slice(part);
        Ok(())
    }
}

/// What makes a message a request.
#[derive(Deserialize)]
struct Head {
    method: Option<IgnoredAny>,
    id: Option<IgnoredAny>,
}

/// Whether a line is a message that has to be answered. Read whole: results may have such keys further in.
fn is_request(line: &[u8]) -> bool {
    let may_be = memmem::find(line, b"\"method\"").is_some();
    may_be && serde_json::from_slice::<Head>(line).is_ok_and(|head| head.method.is_some() && head.id.is_some())
}

impl<R: AsyncRead + Unpin> AsyncRead for Guard<R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(why) = this.verdict.get() {
            return Poll::Ready(Err(io::Error::other(*why)));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        match this.check(&buf.filled()[before..]) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(why) => Poll::Ready(Err(io::Error::other(*this.verdict.get_or_init(|| why)))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    /// Reads all of what is written; what came, and how it ended.
    async fn through(parts: Vec<Vec<u8>>) -> (usize, Option<&'static str>) {
        let (mut writer, reader) = duplex(64 * 1024);
        let verdict = Verdict::default();
        let mut guard = Guard::new(reader, verdict.clone());
        #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
        let writing = tokio::spawn(async move {
            for part in parts {
                if writer.write_all(&part).await.is_err() {
                    return;
                }
            }
        });
        let mut chunk = vec![0; 16 * 1024];
        let mut count = 0;
        while let Ok(read @ 1..) = guard.read(&mut chunk).await {
            count += read;
        }
        drop(guard);
        writing.await.unwrap();
        (count, verdict.get().copied())
    }

    #[tokio::test]
    async fn what_keeps_to_the_bounds_passes_whole() {
        let line = [vec![b'x'; LINE_BYTES_MAX], vec![b'\n']].concat();
        let parts = vec![line.clone(), b"\n\n".to_vec(), line.clone(), vec![b'x'; LINE_BYTES_MAX]];
        assert_eq!(through(parts).await, (3 * LINE_BYTES_MAX + 4, None));
    }

    #[tokio::test]
    async fn a_line_without_end_is_cut_off() {
        let (count, why) = through(vec![vec![b'x'; LINE_BYTES_MAX + 100_000]]).await;
        assert!(count <= LINE_BYTES_MAX, "{count}");
        assert_eq!(why, Some("a line of more than 4 MiB"));
    }

    #[tokio::test]
    async fn many_requests_in_a_short_time_are_a_flood_and_what_looks_like_one_is_none() {
        let request = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n".to_vec();
        let (_, why) = through(vec![request.clone(); 65]).await;
        assert_eq!(why, Some("more than 64 requests in 10 s"));
        let result = b"{\"id\":1,\"result\":{\"structuredContent\":{\"method\":\"x\",\"id\":2}}}\n".to_vec();
        let news = b"{\"method\":\"notifications/progress\",\"params\":{\"id\":1}}\n".to_vec();
        let parts = [vec![request; 64], vec![result; 200], vec![news; 200]].concat();
        let bytes = parts.iter().map(Vec::len).sum::<usize>();
        assert_eq!(through(parts).await, (bytes, None));
    }

    #[tokio::test]
    async fn many_lines_in_a_short_time_are_a_flood() {
        let (_, why) = through(vec![b"y\n".repeat(10_001)]).await;
        assert_eq!(why, Some("more than 10,000 lines in 10 s"));
        let line = [vec![b'x'; 1024 * 1024 - 1], vec![b'\n']].concat();
        let (_, why) = through(vec![line; 65]).await;
        assert_eq!(why, Some("more than 64 MiB in 10 s"));
    }
}
