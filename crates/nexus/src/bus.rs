//! The event bus: one ring of frames, serialised once, read by any number of subscribers.
//!
//! Publishing never waits and never fails; the ring overwrites its oldest frames. A subscriber holds
//! a cursor; one that falls behind the ring is told how much it missed. Nothing in the daemon
//! decides by reading the bus.

pub mod store;

use bytes::Bytes;
use nexus_core::notice::NoticeType;
use serde::Serialize;
use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Bytes that the ring holds at most.
const RING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of frames taken off the ring at a time; a single longer frame is taken alone. Each client that
/// doesn't read has one such batch in memory.
const TAKE_BYTES_MAX: usize = 256 * 1024;

/// What the lines around a frame's properties fit in.
const HEAD_BYTES: usize = 192;

/// One notice in the form in which SSE clients get it.
#[derive(Debug, Clone)]
pub struct Frame {
    pub seq: u64,
    pub kind: NoticeType,
    pub ts: i64,
    pub bytes: Bytes,
}

#[derive(Debug)]
struct Ring {
    frames: VecDeque<Frame>,
    bytes: usize,
    next: u64,
    frames_max: usize,
}

/// Handle to the bus. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bus {
    ring: Arc<Mutex<Ring>>,
    newest: Arc<watch::Sender<u64>>,
    epoch: i64,
}

/// What a subscriber finds at its cursor.
#[derive(Debug)]
pub enum Batch {
    Frames(Vec<Frame>),
    /// This many notices were overwritten before they could be read; the cursor is at the oldest now.
    Lagged {
        missed: u64,
    },
    Empty,
}

impl Bus {
    /// An empty bus. `epoch` tells this daemon's notices from those of the one before.
    pub fn new(epoch: i64, frames_max: usize) -> Self {
        let ring = Ring { frames: VecDeque::new(), bytes: 0, next: 1, frames_max };
        Self { ring: Arc::new(Mutex::new(ring)), newest: Arc::new(watch::Sender::new(0)), epoch }
    }

    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Changes how many frames are kept.
    pub fn resize(&self, frames_max: usize) {
        let mut ring = self.lock();
        ring.frames_max = frames_max;
        ring.shrink();
    }

    /// Publishes a notice about something that has happened and, if it is a record, is committed.
    pub fn publish(&self, kind: NoticeType, properties: impl Serialize) {
        let ts = crate::clock::wall_ms();
        let name = kind.as_str();
        // Before the lock: nobody has to wait for a long one.
        let properties = match serde_json::to_vec(&properties) {
            Ok(properties) => properties,
            Err(error) => {
                tracing::error!(kind = name, %error, "a notice could not be serialised");
                return;
            }
        };
        let mut ring = self.lock();
        let seq = ring.next;
        let mut text = Vec::with_capacity(HEAD_BYTES + properties.len());
        // A Vec takes whatever is written.
        write!(text, "id: {}:{seq}\nevent: {name}\ndata: {{\"type\":\"{name}\",\"seq\":{seq},\"ts\":{ts},\"properties\":", self.epoch).ok();
        text.extend_from_slice(&properties);
        text.extend_from_slice(b"}\n\n");
        ring.next += 1;
        ring.bytes += text.len();
        ring.frames.push_back(Frame { seq, kind, ts, bytes: Bytes::from(text) });
        ring.shrink();
        // Under the lock: of two that are told in the other order the later one would wake nobody.
        self.newest.send_replace(seq);
    }

    /// A subscriber that sees what is published from now on.
    pub fn subscribe(&self) -> Subscriber {
        let next = self.lock().next;
        self.subscribe_from(next)
    }

    /// A subscriber whose next notice is number `next`.
    pub fn subscribe_from(&self, next: u64) -> Subscriber {
        Subscriber { ring: self.ring.clone(), newest: self.newest.subscribe(), next }
    }

    /// The oldest notice in the ring, and the one to be published next.
    pub fn bounds(&self) -> (u64, u64) {
        let ring = self.lock();
        (ring.frames.front().map_or(ring.next, |frame| frame.seq), ring.next)
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // The ring is consistent between statements; a panic elsewhere while it was held is no
        // reason to lose the bus.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn shrink(&mut self) {
        while self.frames.len() > self.frames_max || self.bytes > RING_BYTES_MAX {
            let Some(oldest) = self.frames.pop_front() else { break };
            self.bytes -= oldest.bytes.len();
        }
    }
}

/// A cursor on the ring.
#[derive(Debug)]
pub struct Subscriber {
    ring: Arc<Mutex<Ring>>,
    newest: watch::Receiver<u64>,
    next: u64,
}

impl Subscriber {
    /// Takes up to `frames_max` frames from the cursor on, and about 256 KiB of them.
    pub fn take(&mut self, frames_max: usize) -> Batch {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = ring.frames.front().map_or(ring.next, |frame| frame.seq);
        if self.next < oldest {
            let missed = oldest - self.next;
            self.next = oldest;
            return Batch::Lagged { missed };
        }
        let skip = usize::try_from(self.next - oldest).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let fits = |frame: &&Frame| {
            let first = bytes == 0;
            bytes += frame.bytes.len();
            first || bytes <= TAKE_BYTES_MAX
        };
        let frames: Vec<Frame> = ring.frames.iter().skip(skip).take(frames_max).take_while(fits).cloned().collect();
        match frames.last() {
            Some(last) => {
                self.next = last.seq + 1;
                Batch::Frames(frames)
            }
            None => Batch::Empty,
        }
    }

    /// Waits until something is there; false when the bus is gone.
    pub async fn changed(&mut self) -> bool {
        let next = self.next;
        self.newest.wait_for(|newest| *newest >= next).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn frames(batch: Batch) -> Vec<u64> {
        match batch {
            Batch::Frames(frames) => frames.iter().map(|frame| frame.seq).collect(),
            other @ (Batch::Lagged { .. } | Batch::Empty) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_slow_subscriber_is_told_what_it_missed_and_a_fast_one_misses_nothing() {
        let bus = Bus::new(7, 100);
        let (mut slow, mut fast) = (bus.subscribe(), bus.subscribe());
        let mut seen = 0;
        for n in 0..250 {
            bus.publish(NoticeType::TimerFired, serde_json::json!({ "n": n }));
            seen += frames(fast.take(10)).len();
        }
        assert_eq!(seen, 250);
        assert!(matches!(slow.take(10), Batch::Lagged { missed: 150 }));
        assert_eq!(frames(slow.take(1000)).len(), 100);
        assert!(matches!(slow.take(1), Batch::Empty));
    }

    #[test]
    fn the_ring_is_bounded_in_bytes_too() {
        let bus = Bus::new(1, 1_000_000);
        let big = "x".repeat(1024 * 1024);
        for _ in 0..40 {
            bus.publish(NoticeType::SystemError, serde_json::json!({ "text": big }));
        }
        let (oldest, next) = bus.bounds();
        assert_eq!(next, 41);
        assert!(next - oldest < 17, "{oldest}");
    }

    #[test]
    fn what_is_taken_at_a_time_is_bounded_in_bytes_and_nothing_is_passed_over() {
        let bus = Bus::new(1, 100);
        let mut subscriber = bus.subscribe();
        let (half, whole) = ("x".repeat(TAKE_BYTES_MAX / 2), "x".repeat(TAKE_BYTES_MAX));
        for text in ["", &half, &half, &whole, &whole] {
            bus.publish(NoticeType::SystemError, serde_json::json!({ "text": text }));
        }
        let taken: Vec<Vec<u64>> = (0..4).map(|_| frames(subscriber.take(100))).collect();
        assert_eq!(taken, [vec![1, 2], vec![3], vec![4], vec![5]]);
        assert!(matches!(subscriber.take(100), Batch::Empty));
    }

    #[test]
    fn a_frame_is_a_valid_sse_event_even_with_newlines_in_it() {
        let bus = Bus::new(3, 10);
        let mut subscriber = bus.subscribe();
        bus.publish(NoticeType::SystemError, serde_json::json!({ "text": "a\nb\r\n" }));
        let Batch::Frames(frames) = subscriber.take(1) else { panic!() };
        let text = std::str::from_utf8(&frames[0].bytes).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "id: 3:1");
        assert_eq!(lines[1], "event: system.error");
        let data: serde_json::Value = serde_json::from_str(lines[2].strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["properties"]["text"], "a\nb\r\n");
        assert_eq!(lines.len(), 4);
    }
}
