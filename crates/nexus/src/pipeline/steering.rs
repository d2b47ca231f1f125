//! What a run is given while it goes on: messages of its session for an agent that takes input (`queue_mode: steer`).
//! Here it is said which of them the agent was told and which it took in, and that is written. Whom the router gives
//! what, and what becomes of those that nobody took in, is the router's.
//!
//! A message is the session's until the agent says that it took it in, and the run's from the commit of that on: a
//! daemon that is killed in between finds a request that waits, and the agent is told once more.

use super::broken::Ends;
use super::identify::audit;
use super::{Agent, Pipeline, Prepared};
use crate::agent::{Input, Steer};
use crate::clock;
use crate::ledger::nexus::{Claim, Fellow, JoinRun};
use nexus_core::lane::{COLLECT_BYTES_MAX, COLLECT_REQUESTS_MAX, STEER_MESSAGES_MAX, STEER_WAIT_MS};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What a session hears when its run lets it go.
#[derive(Debug, Default)]
pub(super) struct Release {
    /// Requests that joined the run: they end with it.
    pub(super) joined: Vec<i64>,
    /// Those that it was given and that did not.
    pub(super) left: Vec<Prepared>,
}

/// Keeps the next turn of a run's session waiting, until it is released or dropped.
#[derive(Debug)]
pub(super) struct Held {
    session: Option<oneshot::Sender<Release>>,
    pub(super) steering: Steering,
    /// Outlasts a panic in the run.
    pub(super) ends: Ends,
}

impl Held {
    /// `given` is where the session gives messages, if the agent may take input.
    pub(super) fn new(session: oneshot::Sender<Release>, given: Option<mpsc::Receiver<Box<Prepared>>>) -> Self {
        Self { session: Some(session), steering: Steering { given, ..Steering::default() }, ends: Ends::default() }
    }

    /// The session may take its next turn.
    pub(super) fn release(&mut self) {
        let Some(session) = self.session.take() else { return };
        if session.send(self.steering.release()).is_err() {
            tracing::trace!("the router has stopped");
        }
    }
}

/// What a run deals with next about it.
#[derive(Debug)]
pub(super) enum Next {
    Given(Box<Prepared>),
    /// Messages wait, and the agent has not said in time that it takes input.
    Unopened,
}

/// A message that the agent has not said to have taken in.
#[derive(Debug)]
struct Offered {
    given: Prepared,
    /// Where the agent hears whether it joined the run, once it was told of it.
    joined: Option<oneshot::Sender<bool>>,
}

/// The messages that one run was given.
#[derive(Debug, Default)]
pub(super) struct Steering {
    given: Option<mpsc::Receiver<Box<Prepared>>>,
    /// To the agent of the attempt under way, if it may take input.
    input: Option<mpsc::Sender<Steer>>,
    /// It has said that it takes input.
    is_open: bool,
    /// One of them is not for this run, and so none that comes after it.
    is_closed: bool,
    /// Until when it has to say so, since something waits for that.
    open_by: Option<Instant>,
    /// Those that it has not said to have taken in; told to it once it is open.
    offered: Vec<Offered>,
    /// Those that it took in, while that is on its way to the disk.
    joining: Vec<(Prepared, JoinHandle<bool>)>,
    joined: Vec<Fellow>,
    left: Vec<Prepared>,
    /// What the run answers in all: messages, and bytes of their text.
    messages: usize,
    bytes: usize,
    /// Ids of no message that it could take in.
    unknown: u64,
}

impl Steering {
    /// An attempt at the run of `lead` begins: what reaches its agent, if that may take input.
    pub(super) fn begin(&mut self, lead: &Prepared, agent: &Agent) -> Option<Input> {
        (self.input, self.is_open) = (None, false);
        if self.given.is_none() || !agent.takes_input {
            return None;
        }
        if self.messages == 0 {
            self.messages = lead.requests().count();
            self.bytes = lead.requests().map(|request| request.event.content.len()).sum();
        }
        let (input, lines) = mpsc::channel(STEER_MESSAGES_MAX);
        self.input = Some(input);
        Some(lines)
    }

    /// Safe to cancel.
    pub(super) async fn next(&mut self) -> Next {
        let has_room = !self.is_closed && self.offered.len() < STEER_MESSAGES_MAX;
        let open_by = self.open_by;
        tokio::select! {
            Some(given) = received(self.given.as_mut()), if has_room => Next::Given(given),
            () = at(open_by) => Next::Unopened,
        }
    }

    /// Waits for what is on its way to the disk. Those that joined the run, in their order; it takes in no more.
    pub(super) async fn settle(&mut self) -> Vec<Prepared> {
        self.close();
        let mut joined = Vec::new();
        for (given, written) in std::mem::take(&mut self.joining) {
            // An error is a panic, which was told: should it have been written, the next start finds it.
            if written.await.unwrap_or(false) {
                self.joined.push(Fellow { event_seq: given.request.event_seq, audit: audit(&given.request) });
                joined.push(given);
            } else {
                self.left.push(given);
            }
        }
        joined.sort_by_key(|joined| joined.request.event_seq);
        if self.unknown > 0 {
            tracing::warn!(count = self.unknown, "an agent said that it took in messages that it was not given");
            self.unknown = 0;
        }
        joined
    }

    /// Those that joined the run so far, as its end names them.
    pub(super) fn joined(&self) -> Vec<Fellow> {
        self.joined.clone()
    }

    /// Nothing more is taken: the session keeps what comes. What was taken before is still told.
    fn close(&mut self) {
        self.is_closed = true;
        if let Some(given) = &mut self.given {
            given.close();
        }
    }

    /// This one waits for a turn of its own, and so does what comes after it.
    fn refuse(&mut self, given: Prepared) {
        self.left.push(given);
        self.close();
    }

    /// The turn is about to be aborted: what its agent was not told waits for one of its own.
    fn stop(&mut self) {
        self.close();
        self.open_by = None;
        if !self.is_open {
            self.left.extend(self.offered.drain(..).map(|offered| offered.given));
        }
    }

    fn has_room_for(&self, given: &Prepared) -> bool {
        let bytes = self.bytes.saturating_add(given.request.event.content.len());
        self.messages < COLLECT_REQUESTS_MAX && bytes <= COLLECT_BYTES_MAX
    }

    /// Nothing can be told to the agent, or no more.
    fn is_unheard(&self) -> bool {
        self.input.as_ref().is_none_or(mpsc::Sender::is_closed)
    }

    /// Tells the agent; false when it reads no more.
    fn tell(&self, message: Steer) -> bool {
        self.input.as_ref().is_some_and(|input| input.try_send(message).is_ok())
    }

    /// Takes out the message that the agent says it took in.
    fn taken_in(&mut self, message_id: &str) -> Option<Offered> {
        let place = self.offered.iter().position(|offered| offered.given.request.request_id == message_id).filter(|_| self.is_open);
        if place.is_none() {
            self.unknown += 1;
        }
        place.map(|place| self.offered.remove(place))
    }

    fn release(&mut self) -> Release {
        self.close();
        let mut left = std::mem::take(&mut self.left);
        left.extend(self.offered.drain(..).map(|offered| offered.given));
        while let Some(Ok(given)) = self.given.as_mut().map(mpsc::Receiver::try_recv) {
            left.push(*given);
        }
        Release { joined: self.joined.iter().map(|fellow| fellow.event_seq).collect(), left }
    }
}

impl Pipeline {
    /// Deals with it. Where the agent takes no input after all, or the message may not share the turn, the turn ends as
    /// by one that interrupts.
    pub(super) fn steer(&self, lead: &Prepared, next: Next, steering: &mut Steering) {
        match next {
            Next::Given(given) => self.offer(lead, *given, steering),
            Next::Unopened => {
                tracing::debug!(request_id = lead.request.request_id, "the agent has not said in time that it takes input");
                steering.stop();
                lead.abort.cancel();
            }
        }
    }

    fn offer(&self, lead: &Prepared, given: Prepared, steering: &mut Steering) {
        let is_deaf = !steering.is_open && steering.is_unheard();
        if is_deaf || !given.may_share(lead) {
            steering.left.push(given);
            steering.stop();
            return lead.abort.cancel();
        }
        let mut offered = Offered { given, joined: None };
        if !steering.has_room_for(&offered.given) || (steering.is_open && !self.tell(lead, &mut offered, steering)) {
            return steering.refuse(offered.given);
        }
        if !steering.is_open {
            steering.open_by.get_or_insert_with(|| Instant::now() + Duration::from_millis(STEER_WAIT_MS));
        }
        steering.messages += 1;
        steering.bytes += offered.given.request.event.content.len();
        steering.offered.push(offered);
    }

    /// Tells the agent of a message; false when it reads no more.
    fn tell(&self, lead: &Prepared, offered: &mut Offered, steering: &Steering) -> bool {
        let (joined, hears) = oneshot::channel();
        offered.joined = Some(joined);
        steering.tell(self.message(lead, &offered.given, hears))
    }

    /// The agent says that it takes input: it is told what waits for that. Where its turn was too long for a pipe it can't.
    pub(super) fn open(&self, lead: &Prepared, steering: &mut Steering) {
        if steering.is_unheard() || steering.is_open {
            return;
        }
        (steering.is_open, steering.open_by) = (true, None);
        for mut offered in std::mem::take(&mut steering.offered) {
            if self.tell(lead, &mut offered, steering) {
                steering.offered.push(offered);
            } else {
                steering.refuse(offered.given);
            }
        }
    }

    /// The agent says that it took in a message. The run's end waits until that is written; the agent may, and hears of it.
    pub(super) fn join(&self, run_id: &str, message_id: &str, steering: &mut Steering) {
        let Some(Offered { given, joined }) = steering.taken_in(message_id) else { return };
        let event_seq = given.request.event_seq;
        let (audit, at, epoch) = (audit(&given.request), clock::wall_ms(), self.epoch);
        let join = JoinRun { event_seq, run_id: run_id.to_owned(), audit, at, epoch };
        let (unsettled, mut admitted, writer) = (self.unsettled.clone(), self.admitted.clone(), self.ledgers.nexus.writer.clone());
        let conversation = given.conversation();
        let write = async move {
            // As the start of a run it overtakes no end of an earlier message, and comes after the commit that admits its own.
            if !unsettled.none_before(&conversation, event_seq).await {
                return false;
            }
            if admitted.wait_for(|upto| *upto >= event_seq).await.is_err() {
                return false;
            }
            match writer.write_until_done(join).await {
                Ok(Claim::Done) => true,
                Ok(Claim::Lost) => false,
                Err(error) => {
                    tracing::warn!(seq = event_seq, %error, "that a message was taken in could not be written; it has a turn of its own");
                    false
                }
            }
        };
        let written = crate::watch::helper("steering.join", async move {
            let has_joined = write.await;
            if let Some(joined) = joined {
                joined.send(has_joined).ok(); // it may not have waited
            }
            has_joined
        });
        steering.joining.push((given, written));
    }
}

async fn received(given: Option<&mut mpsc::Receiver<Box<Prepared>>>) -> Option<Box<Prepared>> {
    match given {
        Some(given) => given.recv().await,
        None => std::future::pending().await,
    }
}

/// Comes at this instant; never without one.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "steering_tests.rs"]
mod tests;
