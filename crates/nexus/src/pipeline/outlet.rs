//! How an answer leaves while its agent still speaks: not at all, in blocks, or live through its adapter's `stream`
//! process. It takes what the run hears, and says in the end what of the answer has yet to leave. It never sends.

use super::finish::new_delivery;
use super::outbox::Waiting;
use super::{Pipeline, Prepared};
use crate::clock;
use crate::ledger::nexus::{Claim, EndStream, NewDelivery, StreamText};
use crate::live::{End, Live, Speaking};
use crate::routes::Route;
use nexus_core::chunk::Cutter;
use nexus_core::hook::Hook;
use nexus_core::stream::StreamEvent;
use std::num::NonZeroUsize;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Silence after which what is there becomes a block.
const IDLE: Duration = Duration::from_secs(1);
/// Blocks of one answer; what comes beyond leaves with its end.
const BLOCKS_MAX: usize = 1000;
/// Parts of one streamed answer; beyond, what waits to be said in between waits for its end.
const PARTS_MAX: usize = 100;

/// The way of one answer.
#[derive(Debug, Default)]
pub(super) enum Outlet {
    /// Once it is complete.
    #[default]
    Whole,
    Blocks(Box<Blocks>),
    Live(Box<Stream>),
}

#[derive(Debug)]
pub(super) struct Blocks {
    cutter: Cutter,
    route: Route,
    /// How many are written.
    count: usize,
    /// When what is there becomes a block, if nothing more comes.
    idle_at: Option<Instant>,
    waiting: Waiting,
    /// The next one, and the cutter behind it.
    writing: Option<Writing<Cutter>>,
}

#[derive(Debug)]
pub(super) struct Stream {
    speaking: Speaking,
    /// Since something was said that can be shown.
    waiting: Option<Waiting>,
    before: Parts,
    /// A part that never began to be streamed; the stream behind it, and how much of what was heard is before that.
    writing: Option<Writing<(Speaking, usize)>>,
}

/// A part of an answer that is to leave as a message, on its way to the disk. However long that takes, the turn can be
/// cut off meanwhile; only the run's end waits for what became of it, since that says the rest.
#[derive(Debug)]
struct Writing<T> {
    queued: JoinHandle<Option<Waiting>>,
    /// What its outlet goes on with.
    then: T,
}

impl<T> Writing<T> {
    /// Comes when it is written and waits for its turn; with `None` if it isn't to leave. Safe to cancel; not to be asked
    /// again once it has come.
    async fn queued(&mut self) -> Option<Waiting> {
        (&mut self.queued).await.ok().flatten()
    }
}

/// Parts of a streamed answer that were ended for something that had to be said between them.
#[derive(Debug, Default)]
struct Parts {
    count: usize,
    /// Bytes of what was heard that they cover.
    bytes: usize,
    waiting: Waiting,
}

/// What has left of an answer when its run is over.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// What hasn't.
    pub(super) rest: String,
    /// The number of the next delivery.
    pub(super) next: usize,
    pub(super) waiting: Waiting,
    stream: Option<Speaking>,
    /// What streams have said that are over.
    before: String,
}

impl Left {
    /// What of `said`, all that was said, is the last stream's.
    pub(super) fn last_part(&self, said: String) -> String {
        after(&self.before, &said).map_or(said.clone(), str::to_owned)
    }

    /// What the stream has said, if there is one that ends like this.
    pub(super) fn stream_text(&self, end: &End) -> Option<StreamText> {
        Some(text_of(self.stream.as_ref()?, end))
    }

    /// What a stream that ends like this has shown; nothing where there is none.
    pub(super) fn shown<'a>(&self, end: &'a End) -> &'a str {
        if self.stream.is_some() { end.text() } else { "" }
    }

    /// Whether the answer is more than one message, and a part of it left before the run's end; `more` are to come.
    pub(super) fn is_in_parts(&self, more: usize) -> bool {
        self.next > 0 && self.next + more > 1
    }

    /// Lets the stream end, once the run's end is written.
    pub(super) fn end(&mut self, end: End) {
        if let Some(speaking) = self.stream.take() {
            speaking.end(end);
        }
    }
}

impl Outlet {
    /// Comes when what was said so far is to leave before anything else is: there was silence, or something that can't
    /// wait for the end is to be said in the same place.
    pub(super) async fn due(&self) {
        match self {
            Self::Whole => std::future::pending().await,
            Self::Blocks(blocks) => match blocks.idle_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            },
            Self::Live(stream) => stream.speaking.live().part_wanted().await,
        }
    }

    /// Something that is no part of the answer.
    pub(super) fn aside(&self, event: impl FnOnce() -> StreamEvent) {
        match self {
            Self::Live(stream) => stream.speaking.push(event()),
            Self::Whole | Self::Blocks(_) => {}
        }
    }

    /// What has yet to leave of `content`, the answer as it was decided, when `source` was heard: once it is known what has.
    pub(super) async fn close(self, source: &str, content: &str) -> Left {
        let rest = content.to_owned();
        match self {
            Self::Whole => Left { rest, ..Left::default() },
            Self::Blocks(mut blocks) => {
                blocks.settle().await;
                // Blocks that say something else than was decided are followed by all of that.
                let rest = blocks.cutter.rest(source, content).unwrap_or(rest);
                Left { rest, next: blocks.count, waiting: blocks.waiting, ..Left::default() }
            }
            Self::Live(mut stream) => {
                stream.settle().await;
                stream.close(source, rest).await
            }
        }
    }
}

impl Blocks {
    /// Goes on behind the block that is being written. False when there is none, or it leaves with the rest.
    async fn settle(&mut self) -> bool {
        let Some(writing) = &mut self.writing else { return false };
        let queued = writing.queued().await;
        let Some((Writing { then, .. }, waiting)) = self.writing.take().zip(queued) else { return false };
        self.cutter = then;
        self.count += 1;
        self.waiting.add(waiting);
        true
    }
}

impl Stream {
    /// Goes on behind the part that is being written, if there is one.
    async fn settle(&mut self) {
        let Some(writing) = &mut self.writing else { return };
        let queued = writing.queued().await;
        let Some((Writing { then: (next, bytes), .. }, waiting)) = self.writing.take().zip(queued) else { return };
        self.speaking = next;
        self.waiting = None;
        self.parted(waiting, bytes);
    }

    async fn close(self, source: &str, content: String) -> Left {
        let Self { speaking, waiting, before: Parts { count, bytes, waiting: mut of_parts }, writing: _ } = self;
        let before = source.get(..bytes).unwrap_or_default().to_owned();
        let has_begun = waiting.is_some() && speaking.has_begun().await;
        match waiting {
            Some(waiting) if has_begun => {
                of_parts.add(waiting);
                Left { rest: String::new(), next: count + 1, waiting: of_parts, stream: Some(speaking), before }
            }
            Some(_) | None => {
                // Parts that say something else than was decided are followed by all of that.
                let rest = after(&before, &content).map_or(content.clone(), str::to_owned);
                Left { rest, next: count, waiting: of_parts, stream: None, before }
            }
        }
    }

    /// Its parts now cover so many bytes of what was heard; the last of them can be waited for.
    fn parted(&mut self, waiting: Waiting, bytes: usize) {
        self.before.waiting.add(waiting);
        self.before.count += 1;
        self.before.bytes = bytes;
    }
}

/// What of a text comes after this beginning of it, without the gap between the two. Blanks before it don't count.
fn after<'a>(before: &str, text: &'a str) -> Option<&'a str> {
    let before = before.trim_start();
    if before.is_empty() {
        return Some(text);
    }
    let rest = text.trim_start().strip_prefix(before)?;
    Some(rest.trim_start_matches(['\n', '\r']))
}

/// What a stream has said. Should it have to be sent, its time begins now: its agent may have spoken for long. Nobody
/// waits for one that was cut off.
fn text_of(speaking: &Speaking, end: &End) -> StreamText {
    let row = &speaking.live().row;
    let ttl_ms = match end {
        End::Said(_) | End::Failed { .. } => row.expires_at.saturating_sub(row.created_at),
        End::Cut { .. } | End::Lost => 0,
    };
    let expires_at = clock::wall_ms().saturating_add(ttl_ms);
    StreamText { delivery_id: row.delivery_id.clone(), content: end.text().to_owned(), expires_at }
}

impl Pipeline {
    /// How the answer of this run is to leave.
    pub(super) fn outlet(&self, prepared: &Prepared, run_id: &str) -> Outlet {
        // What plugins have yet to look at must not have left before.
        if self.plugins.is_asked(Hook::AfterRunAgent) {
            return Outlet::Whole;
        }
        let route = self.routes.get(&prepared.request.adapter).filter(|route| route.known && !route.here && route.sender.is_some());
        match route {
            Some(route) if route.streamer.is_some() => {
                let speaking = new_stream(prepared, &route, run_id, 0);
                Outlet::Live(Box::new(Stream { speaking, waiting: None, before: Parts::default(), writing: None }))
            }
            Some(route) if route.blocks => {
                let cutter = Cutter::new(NonZeroUsize::new(route.text_limit));
                let (waiting, writing) = (Waiting::default(), None);
                Outlet::Blocks(Box::new(Blocks { cutter, route, count: 0, idle_at: None, waiting, writing }))
            }
            Some(_) | None => Outlet::Whole,
        }
    }

    /// The next piece of the answer. `said` is all of it so far.
    pub(super) async fn speak(&self, prepared: &Prepared, run_id: &str, text: &str, said: &str, outlet: &mut Outlet) {
        match outlet {
            Outlet::Whole => {}
            Outlet::Live(stream) => {
                stream.speaking.push(StreamEvent::Token { text: text.to_owned() });
                let part = said.get(stream.before.bytes..).unwrap_or_default();
                if stream.waiting.is_none() && !part.trim().is_empty() {
                    self.speaks(&prepared.session);
                    stream.waiting = Some(self.outbox.stream(stream.speaking.live().clone()));
                }
            }
            Outlet::Blocks(blocks) => {
                blocks.cutter.push(text);
                blocks.idle_at = Some(Instant::now() + IDLE);
                while self.block(prepared, run_id, blocks, Cutter::next_block).await {}
            }
        }
    }

    /// What was said so far leaves now, and the rest behind what else is to be said to the same target.
    pub(super) async fn part(&self, prepared: &Prepared, run_id: &str, said: &str, outlet: &mut Outlet) {
        match outlet {
            Outlet::Whole => {}
            Outlet::Blocks(blocks) => {
                blocks.idle_at = None;
                self.block(prepared, run_id, blocks, Cutter::idle_block).await;
            }
            Outlet::Live(stream) => self.part_stream(prepared, run_id, said, stream).await,
        }
    }

    /// Ends one stream and begins the next. Where that can't be, the one stays.
    async fn part_stream(&self, prepared: &Prepared, run_id: &str, said: &str, stream: &mut Stream) {
        let can_part = stream.waiting.is_some() && stream.before.count < PARTS_MAX;
        let Some(route) = self.routes.get(&prepared.request.adapter).filter(|_| can_part) else { return };
        let part = said.get(stream.before.bytes..).unwrap_or_default().trim().to_owned();
        let next = new_stream(prepared, &route, run_id, stream.before.count + 1);
        self.breakers.said(&prepared.session, &part);
        let end = End::Said(part);
        let text = text_of(&stream.speaking, &end);
        if stream.speaking.has_begun().await {
            // Should the turn be cut off here: the end of its run writes all that the stream has said, over this.
            let command = EndStream { text, run_id: run_id.to_owned(), epoch: self.epoch };
            match self.ledgers.nexus.writer.write_until_done(command).await {
                Ok(Claim::Done) => {}
                Ok(Claim::Lost) => return,
                Err(error) => {
                    tracing::warn!(run_id, %error, "a part of a stream could not be ended; what follows waits for it");
                    return;
                }
            }
            std::mem::replace(&mut stream.speaking, next).end(end);
            let waiting = stream.waiting.take().unwrap_or_default();
            stream.parted(waiting, said.len());
        } else {
            // It wasn't its turn yet, and never will be now: it leaves as a message.
            let StreamText { content, expires_at, .. } = text;
            let row = NewDelivery { content, expires_at, ..stream.speaking.live().row.clone() };
            let queued = self.outbox.say_part(row, run_id.to_owned());
            stream.writing = Some(Writing { queued, then: (next, said.len()) });
            stream.settle().await;
        }
    }

    /// Writes and queues one block, if there is one. False when there is none, or it leaves with the rest.
    async fn block(&self, prepared: &Prepared, run_id: &str, blocks: &mut Blocks, cut: fn(&mut Cutter) -> Option<String>) -> bool {
        if blocks.count >= BLOCKS_MAX {
            return false;
        }
        // The cutter goes on only once the block is written.
        let mut after = blocks.cutter.clone();
        let Some(text) = cut(&mut after) else { return false };
        let row = new_delivery(prepared, &blocks.route, run_id, format!("{run_id}:1:{}", blocks.count), text);
        // It may come back as soon as it is written.
        self.speaks(&prepared.session);
        self.breakers.said(&prepared.session, &row.content);
        let queued = self.outbox.say_part(row, run_id.to_owned());
        blocks.writing = Some(Writing { queued, then: after });
        blocks.settle().await
    }
}

/// The stream that is number `n` of what a run says.
fn new_stream(prepared: &Prepared, route: &Route, run_id: &str, n: usize) -> Speaking {
    let row = new_delivery(prepared, route, run_id, format!("{run_id}:1:{n}"), String::new());
    Live::new(row, run_id.to_owned(), prepared.session.clone()).1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nexus_core::config;

    fn blocks(said: &[&str]) -> Outlet {
        let mut cutter = Cutter::new(None);
        for text in said {
            cutter.push(text);
            cutter.idle_block().unwrap();
        }
        let route = Route::unknown(&config::Send::default(), None, None);
        let (count, waiting) = (said.len(), Waiting::default());
        Outlet::Blocks(Box::new(Blocks { cutter, route, count, idle_at: None, waiting, writing: None }))
    }

    async fn left(outlet: Outlet, source: &str, content: &str) -> (String, usize) {
        let left = outlet.close(source, content).await;
        (left.rest, left.next)
    }

    #[tokio::test]
    async fn what_has_not_left_is_left_over() {
        assert_eq!(left(Outlet::Whole, "one two", "one two").await, ("one two".to_owned(), 0));
        assert_eq!(left(blocks(&[]), "one two", "one two").await, ("one two".to_owned(), 0));
        assert_eq!(left(blocks(&["one "]), "one two", "one two").await, ("two".to_owned(), 1));
        assert_eq!(left(blocks(&["one ", "two"]), "one two", "one two").await, (String::new(), 2));
        assert_eq!(left(blocks(&["one "]), "one two", "three").await, ("three".to_owned(), 1));
        assert_eq!(left(blocks(&["\none "]), "\none two", "one two").await, ("two".to_owned(), 1));
        assert!(!blocks(&["one"]).close("one", "one").await.is_in_parts(0), "it was all of it");
        assert!(blocks(&["one "]).close("one two", "one two").await.is_in_parts(1));
    }

    #[test]
    fn nobody_waits_for_what_was_cut_off_and_what_is_whole_has_its_time_from_the_end_on() {
        let row = NewDelivery { created_at: 1, expires_at: 60_001, ..crate::samples::delivery("d") };
        let (_, speaking) = Live::new(row, "run".to_owned(), "s".to_owned());
        let before = clock::wall_ms();
        let expires_at = |end: End| text_of(&speaking, &end).expires_at;
        let cut = expires_at(End::Cut { error: "aborted".to_owned(), partial: "on".to_owned() });
        let said = expires_at(End::Said("one".to_owned()));
        let after = clock::wall_ms();
        assert!((before..=after).contains(&cut) && (before + 60_000..=after + 60_000).contains(&said), "{before} {cut} {said} {after}");
    }

    #[tokio::test]
    async fn a_stream_that_has_not_begun_leaves_everything() {
        let new = || Live::new(crate::samples::delivery("d"), "run".to_owned(), "s".to_owned());
        let quiet = Outlet::Live(Box::new(Stream { speaking: new().1, waiting: None, before: Parts::default(), writing: None }));
        assert_eq!(left(quiet, "one", "one").await, ("one".to_owned(), 0));
        let (live, speaking) = new();
        let waiting = Some(Waiting::default());
        let outlet = Outlet::Live(Box::new(Stream { speaking, waiting, before: Parts::default(), writing: None }));
        assert!(live.begin(async { true }).await);
        let mut left = outlet.close("one", "one").await;
        assert_eq!((left.rest.as_str(), left.next), ("", 1));
        let end = End::Said("one".to_owned());
        assert_eq!((left.stream_text(&end).unwrap().delivery_id.as_str(), left.shown(&end)), ("d", "one"));
        assert!(!left.is_in_parts(0) && left.is_in_parts(1));
        left.end(end.clone());
        assert_eq!(live.ended().await, end);
    }

    #[tokio::test]
    async fn of_an_answer_in_parts_the_last_one_is_what_comes_after_the_others() {
        let parted = |waiting: Option<Waiting>| {
            let (live, speaking) = Live::new(crate::samples::delivery("d"), "run".to_owned(), "s".to_owned());
            let before = Parts { count: 2, bytes: "one".len(), waiting: Waiting::default() };
            (live, Outlet::Live(Box::new(Stream { speaking, waiting, before, writing: None })))
        };
        assert_eq!(left(parted(None).1, "one\n\ntwo", "one\n\ntwo").await, ("two".to_owned(), 2));
        assert_eq!(left(parted(None).1, "one", "one").await, (String::new(), 2));
        assert_eq!(left(parted(None).1, "one two", "three").await, ("three".to_owned(), 2));
        assert_eq!(left(parted(None).1, "one two", "\n one two").await, (" two".to_owned(), 2));
        let (live, outlet) = parted(Some(Waiting::default()));
        assert!(live.begin(async { true }).await);
        let left = outlet.close("one\n\ntwo", "one\n\ntwo").await;
        assert_eq!((left.rest.as_str(), left.next, left.last_part("one\n\ntwo".to_owned())), ("", 3, "two".to_owned()));
    }
}
