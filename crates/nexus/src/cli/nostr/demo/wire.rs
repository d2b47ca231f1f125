//! A user's client of a relay, as small as the demonstration needs it: publish, ask, listen (NIP-01).
//! It believes nothing; whoever takes an event verifies it.

use ::nostr::event::Event;
use anyhow::{Context, bail};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::collections::VecDeque;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

/// The subscription that stays open, and the one that is asked once.
const LISTENING: &str = "answers";
const ASKING: &str = "question";
/// Events of the open subscription that wait while something else is asked.
const WAITING_MAX: usize = 100;

#[derive(Debug)]
pub(super) struct Wire {
    socket: WebSocketStream<TcpStream>,
    waiting: VecDeque<Event>,
}

impl Wire {
    pub(super) async fn connect(url: &str) -> anyhow::Result<Self> {
        let address = url.strip_prefix("ws://").context("the relay's address is not one of this machine")?;
        let stream = TcpStream::connect(address).await.with_context(|| format!("failed to connect to {url}"))?;
        let (socket, _) = client_async(url, stream).await.with_context(|| format!("failed to speak to {url}"))?;
        Ok(Self { socket, waiting: VecDeque::new() })
    }

    /// Publishes an event; returns once the relay has it.
    pub(super) async fn publish(&mut self, event: &Event) -> anyhow::Result<()> {
        self.say(&json!(["EVENT", event])).await?;
        let id = event.id.to_hex();
        loop {
            let heard = self.hear().await?;
            if heard[0] == "OK" && heard[1] == id.as_str() {
                return match heard[2].as_bool() {
                    Some(true) => Ok(()),
                    Some(false) | None => bail!("the relay refused an event: {}", heard[3]),
                };
            }
        }
    }

    /// Listens for what the filter wants, from now on and what is stored.
    pub(super) async fn listen(&mut self, filter: &Value) -> anyhow::Result<()> {
        self.say(&json!(["REQ", LISTENING, filter])).await
    }

    /// The next event that is listened for.
    pub(super) async fn next_event(&mut self) -> anyhow::Result<Event> {
        while self.waiting.is_empty() {
            self.hear().await?;
        }
        self.waiting.pop_front().context("no event waits")
    }

    /// What is stored for a filter.
    pub(super) async fn stored(&mut self, filter: &Value) -> anyhow::Result<Vec<Event>> {
        self.say(&json!(["REQ", ASKING, filter])).await?;
        let mut found = Vec::new();
        loop {
            let heard = self.hear().await?;
            if heard[1] != ASKING {
                continue;
            }
            match heard[0].as_str() {
                Some("EVENT") => found.push(read(&heard)?),
                Some("EOSE") => break,
                Some(_) | None => bail!("the relay refused a question: {}", heard[2]),
            }
        }
        self.say(&json!(["CLOSE", ASKING])).await?;
        Ok(found)
    }

    async fn say(&mut self, message: &Value) -> anyhow::Result<()> {
        self.socket.send(Message::text(message.to_string())).await.context("failed to write to the relay")
    }

    /// The next message; an event that is listened for is also put where it waits.
    async fn hear(&mut self) -> anyhow::Result<Value> {
        loop {
            let message = self.socket.next().await.context("the relay closed the connection")?.context("failed to read from the relay")?;
            let Message::Text(text) = message else { continue };
            let heard: Value = serde_json::from_str(text.as_str()).context("the relay said something that is not JSON")?;
            if heard[0] == "EVENT" && heard[1] == LISTENING && self.waiting.len() < WAITING_MAX {
                self.waiting.push_back(read(&heard)?);
            }
            return Ok(heard);
        }
    }
}

fn read(heard: &Value) -> anyhow::Result<Event> {
    Event::from_json(heard[2].to_string()).context("the relay sent something that is no event")
}
