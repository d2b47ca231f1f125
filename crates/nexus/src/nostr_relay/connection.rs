//! One WebSocket of a client: reads messages, writes answers, and ends when either side has to. What a message
//! leads to, `session.rs` says. Nothing of it grows while the client is slow: it is read no faster than it is
//! answered, and left when it doesn't read.

use super::Shared;
use super::limits::{BEHIND_MAX, MESSAGE_BYTES_MAX, PING_INTERVAL, UNANSWERED_MAX, WRITE_TIMEOUT};
use super::message;
use super::rows::Kept;
use super::session::{Demand, Effect, Session};
use super::store::{Answer, Ask, Live};
use futures_util::{SinkExt, StreamExt};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};
use tokio_util::sync::CancellationToken;

const BUFFER_BYTES: usize = 16 * 1024;
/// How long the word that the connection is over may take to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a conversation is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The client went, or broke off.
    Gone,
    /// The client reads too slowly, or says nothing.
    Slow,
    /// The client talks nonsense, or too much at once.
    Refused(CloseCode),
    /// The relay stops.
    Stopping,
}

struct Connection<'s, S> {
    wire: WebSocketStream<S>,
    shared: &'s Shared,
    session: Session,
    answer: mpsc::Sender<Answer>,
    /// Events that wait for the disk.
    unanswered: usize,
}

/// Talks with one client until it ends; `host` is how the client addressed this relay.
pub(super) async fn converse<S>(socket: S, host: String, shared: &Shared, stop: &CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let wire = WebSocketStream::from_raw_socket(socket, Role::Server, Some(config)).await;
    let demand = Demand { is_required: shared.auth, challenge: super::challenge(), host };
    // Room for the answer to everything that may be asked at once: a found REQ and all events.
    let (answer, answers) = mpsc::channel(UNANSWERED_MAX + 1);
    // From here on no new event is missed.
    let live = shared.live.subscribe();
    let mut connection = Connection { wire, shared, session: Session::new(demand), answer, unanswered: 0 };
    // It doesn't end by itself.
    let Err(end) = connection.run(answers, live, stop).await;
    connection.part(end).await;
}

impl<S> Connection<'_, S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    async fn run(
        &mut self,
        mut answers: mpsc::Receiver<Answer>,
        mut live: broadcast::Receiver<Live>,
        stop: &CancellationToken,
    ) -> Result<Infallible, End> {
        if let Some(greeting) = self.session.greeting() {
            self.say(greeting).await?;
        }
        let mut heard_at = Instant::now();
        let mut pulse = interval_at(heard_at + PING_INTERVAL, PING_INTERVAL);
        loop {
            let is_finding = self.session.is_finding();
            let may_read = !is_finding && self.unanswered < UNANSWERED_MAX;
            tokio::select! {
                () = stop.cancelled() => return Err(End::Stopping),
                Some(answer) = answers.recv() => self.answered(answer).await?,
                passed = live.recv(), if !is_finding => match passed {
                    Ok(passed) => self.pass(&passed).await?,
                    Err(RecvError::Lagged(_)) => return Err(End::Slow),
                    Err(RecvError::Closed) => return Err(End::Stopping),
                },
                frame = self.wire.next(), if may_read => {
                    heard_at = Instant::now();
                    self.read(frame).await?;
                }
                _ = pulse.tick() => {
                    if heard_at.elapsed() > PING_INTERVAL * 2 && may_read {
                        return Err(End::Slow);
                    }
                    self.write(Message::Ping(Bytes::new())).await?;
                }
            }
        }
    }

    async fn read(&mut self, frame: Option<Result<Message, Error>>) -> Result<(), End> {
        let effects = match frame {
            Some(Ok(Message::Text(text))) => self.session.take(text.as_str(), now_s()),
            Some(Ok(Message::Binary(_))) => self.session.take_binary(),
            // Pings are answered by the library.
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Vec::new(),
            Some(Ok(Message::Close(_))) | None => return Err(End::Gone),
            Some(Err(Error::Capacity(_))) => return Err(End::Refused(CloseCode::Size)),
            Some(Err(_)) => return Err(End::Gone),
        };
        for effect in effects {
            self.obey(effect).await?;
        }
        Ok(())
    }

    async fn obey(&mut self, effect: Effect) -> Result<(), End> {
        match effect {
            Effect::Say(text) => self.say(text).await,
            Effect::Keep(event) => {
                self.unanswered += 1;
                self.ask(Ask::Keep { event: Arc::new(event), answer: self.answer.clone() }).await
            }
            Effect::Pass(event) => {
                // Nobody may be listening.
                self.shared.live.send(Live { seq: None, event: Arc::new(event) }).ok();
                Ok(())
            }
            Effect::Find { subscription, filters } => self.ask(Ask::Find { subscription, filters, answer: self.answer.clone() }).await,
            Effect::End => Err(End::Refused(CloseCode::Policy)),
        }
    }

    async fn ask(&mut self, ask: Ask) -> Result<(), End> {
        self.shared.store.send(ask).await.map_err(|_| End::Stopping)
    }

    async fn answered(&mut self, answer: Answer) -> Result<(), End> {
        match answer {
            Answer::Kept { id, kept } => {
                self.unanswered -= 1;
                let (is_taken, reason) = match &kept {
                    Ok(Kept::New(_)) => (true, ""),
                    Ok(Kept::Duplicate) => (true, "duplicate: it is here already"),
                    Ok(Kept::Older) => (false, "replaced: a newer version is here"),
                    Ok(Kept::Deleted) => (false, "deleted: its author had it deleted"),
                    Err(problem) => (false, problem.as_str()),
                };
                self.say(message::ok(&id, is_taken, reason)).await
            }
            Answer::Found { subscription, found: Err(problem) } => self.lost(&subscription, &problem).await,
            Answer::Found { subscription, found: Ok((found, told_to)) } => {
                for event in found.events {
                    self.feed(message::event(&subscription, &event)).await?;
                }
                if found.is_cut {
                    return self.lost(&subscription, "error: too much is stored for this; ask for less at once").await;
                }
                self.session.found(&subscription, told_to);
                self.say(message::eose(&subscription)).await
            }
        }
    }

    async fn lost(&mut self, subscription: &str, reason: &str) -> Result<(), End> {
        self.session.lost(subscription);
        self.say(message::closed(subscription, reason)).await
    }

    /// Tells of a new event, as often as it was asked for.
    async fn pass(&mut self, new: &Live) -> Result<(), End> {
        let texts: Vec<String> = self.session.wanted(new.seq, &new.event).map(|name| message::event(name, &new.event.json)).collect();
        for text in texts {
            self.say(text).await?;
        }
        Ok(())
    }

    async fn say(&mut self, text: String) -> Result<(), End> {
        self.write(Message::text(text)).await
    }

    async fn write(&mut self, message: Message) -> Result<(), End> {
        within(self.wire.send(message)).await
    }

    /// Writes without waiting for the last bytes to leave; something that is said follows.
    async fn feed(&mut self, text: String) -> Result<(), End> {
        within(self.wire.feed(Message::text(text))).await
    }

    /// Says why it is over, to whoever is still there.
    async fn part(&mut self, end: End) {
        let (code, reason) = match end {
            End::Gone => (CloseCode::Normal, ""),
            End::Slow => (CloseCode::Policy, "too slow"),
            End::Refused(code) => (code, "too much, or not understood"),
            End::Stopping => (CloseCode::Away, "the relay stops"),
        };
        let frame = CloseFrame { code, reason: reason.into() };
        // Who doesn't take it finds the connection closed.
        timeout(CLOSE_TIMEOUT, self.wire.close(Some(frame))).await.ok();
    }
}

async fn within(writing: impl Future<Output = Result<(), Error>>) -> Result<(), End> {
    match timeout(WRITE_TIMEOUT, writing).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(End::Gone),
        Err(_) => Err(End::Slow),
    }
}

fn now_s() -> u64 {
    u64::try_from(crate::clock::wall_ms() / 1000).unwrap_or(0)
}

/// New events that are held for connections that are behind.
pub(super) fn line() -> broadcast::Sender<Live> {
    broadcast::Sender::new(BEHIND_MAX)
}
