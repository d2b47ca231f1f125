//! What goes on while the inbox has no room for what a relay brought: what is to be published leaves, and what the relay
//! says meanwhile is put aside, within a bound, and looked at afterwards in its order. Only what somebody waits for, its
//! word about what was published and its answers to fetches, passes the rest: it would wait behind events for as long as
//! these do. A connection that is lost meanwhile is of no use at once, and made again afterwards. Nothing else is decided here.

use super::socket::{self, Heard, Socket};
use super::{Command, Relay};
use crate::nostr::codec::{self, FromRelay};
use crate::nostr::machine::Input;
use futures_util::FutureExt;
use std::collections::VecDeque;
use std::pin::Pin;
use tokio::time::Instant;

/// What one relay may say that is put aside, in messages and bytes; one message may pass the latter. Then it isn't read.
const ASIDE_MAX: usize = 1_024;
const ASIDE_BYTES_MAX: usize = 1024 * 1024;

/// What was read while nothing could be handed on.
#[derive(Debug, Default)]
pub(super) struct Aside {
    all: VecDeque<Heard>,
    bytes: usize,
    is_over: bool,
}

impl Aside {
    fn has_room(&self) -> bool {
        !self.is_over && self.all.len() < ASIDE_MAX && self.bytes < ASIDE_BYTES_MAX
    }

    fn put(&mut self, heard: Heard) {
        match &heard {
            Heard::Text(text) => self.bytes += text.len(),
            Heard::Nothing => return,
            Heard::End(_) => self.is_over = true,
        }
        self.all.push_back(heard);
    }

    fn take(&mut self) -> Option<Heard> {
        let heard = self.all.pop_front()?;
        if let Heard::Text(text) = &heard {
            self.bytes -= text.len();
        }
        Some(heard)
    }

    /// What was said over a connection is of no use to the next one, whose subscriptions have the same ids.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The next thing that the relay says, what was put aside first. Safe to cancel.
pub(super) async fn hear(aside: &mut Aside, socket: &mut Option<Socket>) -> Heard {
    match aside.take() {
        Some(heard) => heard,
        None => socket::hear(socket).await,
    }
}

/// What happens while the inbox is waited for.
enum Meanwhile {
    Told(Command),
    Heard(Heard),
    /// Something may have been waited for long enough.
    Due,
}

impl Relay {
    /// Waits for what the inbox does, in which no time passes for the machine; `None` when it is stopped before.
    pub(super) async fn waiting<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        if let Some(done) = work.as_mut().now_or_never() {
            return Some(done); // there is room, as mostly
        }
        let since = Instant::now();
        self.waits_since = Some(since);
        let done = self.meanwhile(work).await;
        self.waits_since = None;
        self.blocked += since.elapsed();
        done
    }

    async fn meanwhile<T>(&mut self, mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        loop {
            let nap = self.nap_for_answers();
            let happened = tokio::select! {
                biased;
                done = work.as_mut() => return Some(done),
                () = self.stop.cancelled() => return None,
                Some(command) = self.commands.recv() => Meanwhile::Told(command),
                heard = socket::hear(&mut self.socket), if self.aside.has_room() => Meanwhile::Heard(heard),
                () = tokio::time::sleep(nap) => Meanwhile::Due,
            };
            // Writing may take its time: the inbox must not wait for us with what it has for others.
            if let Some(done) = beside(work.as_mut(), self.deal_with(happened)).await {
                return Some(done);
            }
        }
    }

    async fn deal_with(&mut self, happened: Meanwhile) {
        let lost = match happened {
            Meanwhile::Told(command) => self.obey(command).await,
            Meanwhile::Heard(heard) => self.put_aside(heard).await,
            Meanwhile::Due => self.give_up_late().await,
        };
        self.lost = self.lost.take().or(lost); // the machine is told when the waiting is over
        if self.is_lost() {
            // Shown before anything is told: what is told as unanswered would be sent here again.
            self.show();
            self.asked.give_up_fetches();
            self.tell_unanswered().await;
        }
    }

    /// Whether the connection is gone or no good, though the machine may not know it yet.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.is_some() || self.aside.is_over
    }

    /// Puts aside what nobody waits for; what is returned is that the connection is gone, or no good.
    async fn put_aside(&mut self, heard: Heard) -> Option<Input> {
        match &heard {
            Heard::Text(text) if self.is_awaited() && text.len() <= self.wanted.frame_bytes_max => match codec::parse(text) {
                Some(FromRelay::Ok { id, accepted, message }) if self.awaiting.remove(&*id).is_some() => {
                    self.tell(id.into_owned(), Some((accepted, codec::short(&message)))).await;
                    return None;
                }
                Some(FromRelay::Event { sub, event }) if self.asked.of_fetch(&sub).is_some() => return self.event_of_fetch(&sub, event),
                Some(FromRelay::Eose { sub }) if self.asked.fetched(&sub, None) => return self.send(codec::close(&sub)).await,
                Some(FromRelay::Closed { sub, message }) if self.asked.fetched(&sub, Some(&codec::short(&message))) => return None,
                Some(
                    FromRelay::Ok { .. }
                    | FromRelay::Event { .. }
                    | FromRelay::Eose { .. }
                    | FromRelay::Closed { .. }
                    | FromRelay::Notice { .. }
                    | FromRelay::Auth { .. }
                    | FromRelay::Other,
                )
                | None => {}
            },
            Heard::Text(_) | Heard::Nothing => {}
            Heard::End(why) => self.note_error(why),
        }
        self.aside.put(heard);
        None
    }

    /// Whether somebody waits for something that the relay is to say.
    fn is_awaited(&self) -> bool {
        !self.awaiting.is_empty() || self.asked.is_fetching()
    }
}

/// Does `act` to its end, with `work` going on beside it; what that came to, if it is done.
async fn beside<T>(mut work: Pin<&mut impl Future<Output = T>>, act: impl Future<Output = ()>) -> Option<T> {
    let (mut act, mut done) = (std::pin::pin!(act), None);
    loop {
        tokio::select! {
            biased;
            () = act.as_mut() => return done,
            finished = work.as_mut(), if done.is_none() => done = Some(finished),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::sync::oneshot;

    fn text(of: &str) -> Heard {
        Heard::Text(of.into())
    }

    #[test]
    fn what_is_put_aside_comes_in_its_order_and_has_an_end() {
        let mut aside = Aside::default();
        for said in ["a", "b"] {
            aside.put(text(said));
        }
        aside.put(Heard::Nothing);
        assert_eq!((aside.all.len(), aside.bytes), (2, 2));
        assert!(matches!(aside.take(), Some(Heard::Text(said)) if said.as_str() == "a"));
        assert!(matches!(aside.take(), Some(Heard::Text(said)) if said.as_str() == "b"));
        assert!(aside.take().is_none() && aside.bytes == 0);
        (0..ASIDE_MAX).for_each(|_| aside.put(text("")));
        assert!(!aside.has_room(), "by their number");
        aside.clear();
        aside.put(text(&"x".repeat(ASIDE_BYTES_MAX)));
        assert!(!aside.has_room(), "by their size");
        aside.clear();
        aside.put(Heard::End("gone".to_owned()));
        assert!(!aside.has_room(), "nothing comes behind the end");
        aside.clear();
        assert!(aside.has_room());
    }

    #[tokio::test]
    async fn work_goes_on_beside_what_is_done_meanwhile() {
        let (worked, work) = oneshot::channel();
        let (go_on, acting) = oneshot::channel();
        let mut work = std::pin::pin!(work);
        let act = async move {
            worked.send(7).unwrap();
            tokio::task::yield_now().await;
            go_on.send(()).unwrap();
            acting.await.unwrap();
        };
        assert_eq!(beside(work.as_mut(), act).await, Some(Ok(7)));
        let (_never, work) = oneshot::channel::<()>();
        assert!(beside(std::pin::pin!(work), async {}).await.is_none());
    }
}
