//! What goes on while the inbox has no room for what a relay brought: what is to be published leaves, and what the relay
//! says meanwhile is put aside, within a bound, and looked at afterwards in its order. Only what somebody waits for, its
//! word about what was published and its answers to fetches, passes the rest: it would wait behind events for as long as
//! these do. A connection that is lost meanwhile is of no use at once, and made again afterwards; until then errands are
//! run over another one, by a machine of its own that asks for nothing. Nothing else is decided here.

use super::asked::Asked;
use super::held::Held;
use super::socket::{self, Heard, Socket};
use super::{Command, Relay, Wanted};
use crate::nostr::codec::{self, FromRelay};
use crate::nostr::machine::{Input, Machine};
use futures_util::FutureExt;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
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

/// The connection that is not in use: while errands are run the one that was lost, else the one for errands. Whichever is
/// in use stands in the relay itself.
pub(super) struct Spare {
    wanted: Arc<Wanted>,
    machine: Machine,
    socket: Option<Socket>,
    aside: Aside,
    lost: Option<Input>,
    asked: Asked,
    held: Held,
    blocked: Duration,
    waits_since: Option<Instant>,
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
        if self.is_out {
            self.swap();
        }
        self.waits_since = None;
        self.blocked += since.elapsed();
        done
    }

    async fn meanwhile<T>(&mut self, mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        loop {
            self.set_out();
            let nap = if self.is_out { self.nap().unwrap_or_default() } else { self.nap_for_answers() };
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
        if self.is_out {
            return self.run_errand(happened).await;
        }
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

    /// Turns to the connection for errands, if the other one is lost. One that was ended for what came over it isn't replaced.
    fn set_out(&mut self) {
        // The machine may know of the loss already: then what was held back is handed on because of it.
        let is_gone = self.socket.is_none() || self.is_lost();
        let is_punished = self.machine.is_punishing() || !matches!(self.lost, None | Some(Input::Lost(_)));
        if self.is_out || !is_gone || is_punished {
            return;
        }
        if self.errands.is_none() {
            self.errands = Some(Box::new(self.for_errands()));
        }
        self.swap();
    }

    fn for_errands(&self) -> Spare {
        let seed = u64::from_le_bytes(ulid::Ulid::generate().to_bytes()[8..].try_into().unwrap_or_default());
        Spare {
            wanted: Arc::new(Wanted { subscriptions: Vec::new(), frame_bytes_max: self.wanted.frame_bytes_max }),
            machine: Machine::new(self.parts.consent, seed, super::now(Duration::ZERO)),
            socket: None,
            aside: Aside::default(),
            lost: None,
            asked: Asked::default(),
            held: Held::default(),
            blocked: Duration::ZERO,
            waits_since: None,
        }
    }

    fn swap(&mut self) {
        let Some(mut spare) = self.errands.take() else { return };
        std::mem::swap(&mut self.wanted, &mut spare.wanted);
        std::mem::swap(&mut self.machine, &mut spare.machine);
        std::mem::swap(&mut self.socket, &mut spare.socket);
        std::mem::swap(&mut self.aside, &mut spare.aside);
        std::mem::swap(&mut self.lost, &mut spare.lost);
        std::mem::swap(&mut self.asked, &mut spare.asked);
        std::mem::swap(&mut self.held, &mut spare.held);
        std::mem::swap(&mut self.blocked, &mut spare.blocked);
        std::mem::swap(&mut self.waits_since, &mut spare.waits_since);
        self.errands = Some(spare);
        self.is_out = !self.is_out;
    }

    /// As outside of waiting: nothing was asked for over this connection, so nothing comes that would have to be handed on.
    /// Boxed, since to the compiler it is a circle.
    fn run_errand(&mut self, happened: Meanwhile) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let input = match happened {
                Meanwhile::Told(command) => self.obey(command).await,
                Meanwhile::Heard(heard) => self.heard(heard).await,
                Meanwhile::Due => self.give_up_late().await,
            };
            self.step(input.unwrap_or(Input::Tick)).await;
        })
    }

    /// Ends the connection for errands, once there is another way again.
    pub(super) async fn end_errands(&mut self) {
        if self.errands.is_none() || self.is_lost() {
            return;
        }
        self.swap();
        self.hang_up("the inbox has room again", true).await;
        self.tell_unanswered().await;
        self.swap();
        self.errands = None;
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
