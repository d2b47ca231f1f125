//! `GET /api/events/stream`: the bus as server-sent events. Frames go out as they were serialised;
//! a client that falls behind the ring is told so and cut off, and may resume.

use super::Api;
use crate::bus::store::{after, has};
use crate::bus::{Batch, Subscriber};
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use nexus_core::notice::Filter;
use serde::Deserialize;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::{Instant, interval_at};

/// Frames taken off the ring at a time.
const FRAMES: usize = 256;
/// Frames replayed from the store at a time.
const REPLAY: usize = 1000;
const COMMENT_EVERY: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    types: Option<String>,
    since: Option<String>,
}

pub(super) async fn stream(State(api): State<Api>, Query(wanted): Query<Wanted>, headers: HeaderMap) -> Response {
    let filter = match Filter::parse(wanted.types.as_deref().unwrap_or("")) {
        Ok(filter) => filter,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    let since = headers.get("last-event-id").and_then(|value| value.to_str().ok().map(str::to_owned)).or(wanted.since);
    let place = match since.as_deref().map(parse_place) {
        Some(None) => return (StatusCode::BAD_REQUEST, "Last-Event-ID is `epoch:seq`, as in an `id:` of this stream\n").into_response(),
        place => place.flatten(),
    };
    let feed = Feed::open(api, filter, place).await;
    let body = Body::from_stream(futures_util::stream::unfold(feed, |mut feed| async move {
        feed.next().await.map(|bytes| (Ok::<_, std::convert::Infallible>(bytes), feed))
    }));
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn parse_place(text: &str) -> Option<(i64, u64)> {
    let (epoch, seq) = text.split_once(':')?;
    Some((epoch.parse().ok()?, seq.parse().ok()?))
}

struct Feed {
    api: Api,
    filter: Filter,
    subscriber: Subscriber,
    /// Sent before anything of the ring.
    first: VecDeque<Bytes>,
    ticks: tokio::time::Interval,
    ticked: u32,
    /// The next end of the stream: the client was told why.
    over: bool,
}

impl Feed {
    async fn open(api: Api, filter: Filter, place: Option<(i64, u64)>) -> Self {
        api.daemon.stream_opened();
        let mut ticks = interval_at(Instant::now() + COMMENT_EVERY, COMMENT_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut first = VecDeque::from([Bytes::from_static(b": nexus\n\n")]);
        let (oldest, next) = api.bus.bounds();
        let from = match place {
            None => next,
            Some((epoch, seq)) if epoch == api.bus.epoch() && seq + 1 >= oldest && seq < next => seq + 1,
            Some(place) => replay(&api, &filter, place, &mut first).await,
        };
        let subscriber = api.bus.subscribe_from(from);
        Self { api, filter, subscriber, first, ticks, ticked: 0, over: false }
    }

    async fn next(&mut self) -> Option<Bytes> {
        if let Some(bytes) = self.first.pop_front() {
            return Some(bytes);
        }
        if self.over {
            return None;
        }
        loop {
            match self.subscriber.take(FRAMES) {
                Batch::Frames(frames) => {
                    let mut bytes = BytesMut::new();
                    for frame in frames.iter().filter(|frame| self.filter.wants(frame.kind.as_str())) {
                        bytes.extend_from_slice(&frame.bytes);
                    }
                    if !bytes.is_empty() {
                        return Some(bytes.freeze());
                    }
                }
                Batch::Lagged { missed } => {
                    self.over = true;
                    let text = format!("event: lagged\ndata: {{\"missed\":{missed}}}\n\n");
                    return Some(text.into());
                }
                Batch::Empty => tokio::select! {
                    biased; // what was published before the stop is told
                    more = self.subscriber.changed() => if !more { return None },
                    _ = self.ticks.tick() => return Some(self.tick()),
                    () = self.api.stop.cancelled() => return None,
                },
            }
        }
    }

    /// A comment each 15 s, a heartbeat each 30 s.
    fn tick(&mut self) -> Bytes {
        self.ticked += 1;
        if self.ticked.is_multiple_of(2) {
            format!("event: heartbeat\ndata: {{\"ts\":{}}}\n\n", crate::clock::wall_ms()).into()
        } else {
            Bytes::from_static(b": still here\n\n")
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.api.daemon.stream_closed();
    }
}

/// Brings what the store kept after `place` into `first`; answers where the ring takes over. What
/// can't be brought is told as a gap.
async fn replay(api: &Api, filter: &Filter, place: (i64, u64), first: &mut VecDeque<Bytes>) -> u64 {
    let (epoch, seq) = place;
    let (oldest, next) = api.bus.bounds();
    let gap = |reason: &str| {
        let text = format!(
            "event: gap\ndata: {{\"after\":\"{epoch}:{seq}\",\"resumes\":\"{}:{oldest}\",\"reason\":\"{reason}\"}}\n\n",
            api.bus.epoch()
        );
        Bytes::from(text)
    };
    let store = api.store.load_full();
    let Some(store) = store else {
        first.push_back(gap(if epoch == api.bus.epoch() {
            "overwritten in the ring"
        } else {
            "the daemon was restarted and bus.mode is memory"
        }));
        return oldest;
    };
    let known = store.readers.read(move |connection| has(connection, epoch, seq)).await;
    if !matches!(known, Ok(true)) {
        first.push_back(gap("not in the store (any more)"));
    }
    let (mut at, mut upto) = (place, None);
    loop {
        let (from_epoch, from_seq) = at;
        let page = store.readers.read(move |connection| after(connection, from_epoch, from_seq, REPLAY)).await.unwrap_or_default();
        let Some(last) = page.last() else { break };
        at = (last.0, last.1);
        if at.0 == api.bus.epoch() {
            upto = Some(at.1);
        }
        let mut bytes = BytesMut::new();
        page.iter().filter(|(_, _, kind, _)| filter.wants(kind)).for_each(|(.., frame)| bytes.extend_from_slice(frame));
        first.push_back(bytes.freeze());
        // The ring has the rest; and nobody can be made to hold a whole week in memory.
        if upto.is_some_and(|seq| seq + 1 >= oldest) || first.len() > 64 {
            break;
        }
    }
    upto.map_or(oldest, |seq| seq + 1).min(next)
}
