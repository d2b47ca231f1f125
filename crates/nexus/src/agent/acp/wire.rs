//! Lines of an agent's pipes and the protocol's frames: what is read is bounded and in order, what is no
//! frame is counted and left out. Answers nothing and knows no session.
//!
//! The protocol's crate takes frames into queues without a bound. So an update goes past it, straight to
//! its turn, and holds up the reading while that is behind; requests are let in up to a number that
//! waits for an answer; and a response only to a request that was sent.

use super::hub::Hub;
use agent_client_protocol::v1::schema::SessionNotification;
use agent_client_protocol::{RawJsonRpcId, RawJsonRpcMessage, RawJsonRpcNotification, RawJsonRpcParams, TransportFrame};
use futures_util::{Stream, StreamExt};
use memchr::memchr;
use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;

/// Longest line of an agent, in bytes.
pub(super) const LINE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Lines of one process that may be no message; one more, and it is given up.
pub(super) const GARBAGE_LINES_MAX: u64 = 100;
/// Garbage of one process that is logged, in lines and in bytes of each.
const GARBAGE_LOGGED_MAX: u64 = 10;
const GARBAGE_BYTES_SHOWN: usize = 200;
/// Requests of an agent that may wait for their answers to be written.
const UNANSWERED_MAX: usize = 64;
const READ_BYTES: usize = 64 * 1024;
/// A buffer for lines that grew beyond this is given back after its line.
const BUFFER_BYTES_KEPT: usize = 256 * 1024;
/// The notification that isn't the crate's to handle.
const UPDATE: &str = "session/update";

/// What is on its way between the two sides.
#[derive(Debug)]
pub(super) struct Traffic {
    /// Requests of ours that have no response yet.
    asked: Mutex<HashSet<RawJsonRpcId>>,
    /// Room for requests of theirs.
    unanswered: Semaphore,
}

impl Default for Traffic {
    fn default() -> Self {
        Self { asked: Mutex::default(), unanswered: Semaphore::new(UNANSWERED_MAX) }
    }
}

impl Traffic {
    fn asked(&self) -> MutexGuard<'_, HashSet<RawJsonRpcId>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads frames until the end of the output; `give` takes those that are the crate's, and answers
/// whether it still does.
///
/// # Errors
/// Why the process is to be given up.
pub(super) async fn read(
    mut stdout: impl AsyncRead + Unpin,
    name: &str,
    hub: &Hub,
    traffic: &Traffic,
    give: impl Fn(TransportFrame) -> bool,
) -> Result<(), String> {
    let mut intake = Intake { name, hub, traffic, give, garbage: 0 };
    let (mut line, mut chunk) = (Vec::new(), vec![0; READ_BYTES]);
    loop {
        let got = stdout.read(&mut chunk).await.map_err(|error| format!("its stdout could not be read: {error}"))?;
        if got == 0 {
            return Ok(());
        }
        let mut rest = &chunk[..got];
        while let Some(end) = memchr(b'\n', rest) {
            add(&mut line, &rest[..end])?;
            intake.take(&line).await?;
            line.clear();
            line.shrink_to(BUFFER_BYTES_KEPT);
            rest = &rest[end + 1..];
        }
        add(&mut line, rest)?;
    }
}

fn add(line: &mut Vec<u8>, part: &[u8]) -> Result<(), String> {
    if line.len() + part.len() > LINE_BYTES_MAX {
        return Err(format!("it wrote a line of more than {LINE_BYTES_MAX} bytes"));
    }
    line.extend_from_slice(part);
    Ok(())
}

struct Intake<'a, G> {
    name: &'a str,
    hub: &'a Hub,
    traffic: &'a Traffic,
    give: G,
    garbage: u64,
}

impl<G: Fn(TransportFrame) -> bool> Intake<'_, G> {
    async fn take(&mut self, line: &[u8]) -> Result<(), String> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        let Ok(text) = std::str::from_utf8(line) else { return self.count_garbage(line) };
        let message = match TransportFrame::parse_json(text) {
            TransportFrame::Single(message) => message,
            TransportFrame::Malformed { .. } => return self.count_garbage(line),
            _ => return self.count_garbage(line),
        };
        match &message {
            RawJsonRpcMessage::Request(_) => match self.traffic.unanswered.acquire().await {
                Ok(room) => room.forget(), // back once the answer is written
                Err(_) => return Err("its requests are not taken any more".to_owned()),
            },
            RawJsonRpcMessage::Response(_) => {
                let is_wanted = message.response_id().is_some_and(|id| self.traffic.asked().remove(id));
                if !is_wanted {
                    return self.count_garbage(line);
                }
            }
            RawJsonRpcMessage::Notification(notification) => {
                self.notify(notification).await;
                return Ok(());
            }
        }
        if (self.give)(TransportFrame::Single(message)) { Ok(()) } else { Err("the connection to it is over".to_owned()) }
    }

    /// Updates of a kind that a newer protocol has, and notifications that aren't updates, go nowhere.
    async fn notify(&mut self, notification: &RawJsonRpcNotification) {
        if &*notification.method != UPDATE {
            return;
        }
        let params = notification.params.clone().map(RawJsonRpcParams::into_value).unwrap_or_default();
        match serde_json::from_value::<SessionNotification>(params) {
            Ok(update) => self.hub.update(update).await,
            Err(error) => tracing::debug!(target: "nexus::agent", agent = self.name, %error, "an update that isn't understood"),
        }
    }

    fn count_garbage(&mut self, line: &[u8]) -> Result<(), String> {
        self.garbage += 1;
        if self.garbage <= GARBAGE_LOGGED_MAX {
            let head = String::from_utf8_lossy(&line[..line.len().min(GARBAGE_BYTES_SHOWN)]);
            let line = head.escape_debug();
            tracing::warn!(target: "nexus::agent", agent = self.name, %line, "an ACP agent wrote a line that is no message; left out");
        }
        if self.garbage > GARBAGE_LINES_MAX {
            return Err(format!("it wrote more than {GARBAGE_LINES_MAX} lines that are no messages"));
        }
        Ok(())
    }
}

/// Writes frames until there are no more.
///
/// # Errors
/// Why no more can be written.
pub(super) async fn write(
    mut stdin: impl AsyncWrite + Unpin,
    mut frames: impl Stream<Item = TransportFrame> + Unpin,
    traffic: &Traffic,
) -> Result<(), String> {
    while let Some(frame) = frames.next().await {
        let TransportFrame::Single(message) = frame else { continue }; // ours are never malformed
        let mut line = serde_json::to_vec(&message).map_err(|error| format!("a message to it could not be made: {error}"))?;
        line.push(b'\n');
        // Before it leaves: the response may be quick.
        if let RawJsonRpcMessage::Request(request) = &message {
            traffic.asked().insert(request.id.clone());
        }
        stdin.write_all(&line).await.map_err(|error| format!("its stdin could not be written: {error}"))?;
        if matches!(message, RawJsonRpcMessage::Response(_)) {
            traffic.unanswered.add_permits(1);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::hub::Event;
    use super::*;
    use agent_client_protocol::v1::schema::SessionId;
    use serde_json::{Value, json};
    use std::sync::Arc;

    /// Reads these bytes to their end; what the crate got.
    async fn read_all(bytes: &[u8], hub: &Hub, traffic: &Traffic) -> (Result<(), String>, Vec<Value>) {
        let given = Mutex::new(Vec::new());
        let give = |frame: TransportFrame| {
            given.lock().unwrap().push(serde_json::from_str(&frame.to_json().unwrap()).unwrap());
            true
        };
        let result = read(bytes, "a", hub, traffic, give).await;
        (result, given.into_inner().unwrap())
    }

    fn lines(messages: &[Value]) -> Vec<u8> {
        messages.iter().flat_map(|message| format!("{message}\n").into_bytes()).collect()
    }

    #[tokio::test]
    async fn updates_go_to_their_turn_in_order_and_only_what_was_asked_is_answered() {
        let (hub, traffic) = (Arc::new(Hub::default()), Traffic::default());
        let mut ear = hub.listen(&SessionId::new("s1"));
        traffic.asked().insert(RawJsonRpcId::Number(7));
        let update = |text: &str| {
            let update = json!({ "sessionUpdate": "agent_message_chunk", "content": { "type": "text", "text": text } });
            json!({ "jsonrpc": "2.0", "method": "session/update", "params": { "sessionId": "s1", "update": update } })
        };
        let response = json!({ "jsonrpc": "2.0", "id": 7, "result": {} });
        let messages = [update("one"), update("two"), response.clone(), response.clone(), json!({ "jsonrpc": "2.0", "method": "_other" })];
        let (result, given) = read_all(&lines(&messages), &hub, &traffic).await;
        assert_eq!((result, given), (Ok(()), vec![response]));
        let mut heard = Vec::new();
        while let Ok(Event::Update(update)) = ear.events.try_recv() {
            heard.push(serde_json::to_value(*update).unwrap()["content"]["text"].clone());
        }
        assert_eq!(heard, ["one", "two"]);
    }

    #[tokio::test]
    async fn garbage_is_left_out_up_to_a_number_of_lines() {
        let (hub, traffic) = (Hub::default(), Traffic::default());
        let request = json!({ "jsonrpc": "2.0", "id": "r", "method": "fs/read_text_file", "params": {} });
        let mut bytes = b"starting up\n\n\xff\xfe\n[]\n{\"jsonrpc\":\"1.0\"}\n".to_vec();
        bytes.extend(lines(std::slice::from_ref(&request)));
        let (result, given) = read_all(&bytes, &hub, &traffic).await;
        assert_eq!((result, given), (Ok(()), vec![request]));
        let much = "no JSON\n".repeat(usize::try_from(GARBAGE_LINES_MAX).unwrap() + 1);
        let (result, given) = read_all(much.as_bytes(), &hub, &traffic).await;
        assert!(result.unwrap_err().contains("no messages") && given.is_empty());
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_not_waited_for() {
        let (hub, traffic) = (Hub::default(), Traffic::default());
        let huge = vec![b'x'; LINE_BYTES_MAX + 1];
        let (result, _) = read_all(&huge, &hub, &traffic).await;
        assert!(result.unwrap_err().contains("a line of more than"));
    }

    #[tokio::test]
    async fn requests_wait_until_others_are_answered() {
        let (hub, traffic) = (Hub::default(), Traffic::default());
        let request = |id: usize| json!({ "jsonrpc": "2.0", "id": id, "method": "fs/read_text_file", "params": {} });
        let messages: Vec<Value> = (0..=UNANSWERED_MAX).map(request).collect();
        let bytes = lines(&messages);
        let given = Mutex::new(0);
        let give = |_: TransportFrame| {
            *given.lock().unwrap() += 1;
            true
        };
        let reading = read(bytes.as_slice(), "a", &hub, &traffic, give);
        tokio::pin!(reading);
        assert!(futures_util::poll!(&mut reading).is_pending());
        assert_eq!(*given.lock().unwrap(), UNANSWERED_MAX);
        let answer = RawJsonRpcMessage::response(0_i64, Ok(Value::Null));
        let mut written = Vec::new();
        let frames = futures_util::stream::iter([TransportFrame::Single(answer)]);
        write(&mut written, frames, &traffic).await.unwrap();
        assert_eq!(reading.await, Ok(()));
        assert!(written.ends_with(b"\n"));
        assert_eq!(*given.lock().unwrap(), UNANSWERED_MAX + 1);
    }
}
