//! One message to an agent and the parts of its answer, across lost connections: the same event id
//! is asked for again, which the daemon answers without doing anything twice. It prints nothing.

use super::client::{Client, ClientError};
use super::failure::Exit;
use super::out::OutputError;
use anyhow::Context;
use nexus_core::request::Status;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::{BufRead, Read};
use std::time::{Duration, Instant};

/// How long a lost connection is sought again.
pub(crate) const RECONNECT_LIMIT: Duration = Duration::from_secs(30);
/// Pause between attempts to connect.
pub(crate) const RECONNECT_PAUSE: Duration = Duration::from_millis(250);
/// Longest message, in bytes.
pub(crate) const TEXT_BYTES_MAX: usize = 1024 * 1024;
/// The channel whose events come from here.
const CHANNEL_PREFIX: &str = "cli:";

/// What is said, and where.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Message {
    text: String,
    event_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    conversation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<String>,
}

impl Message {
    /// A message with an id of its own, made once for however many attempts.
    pub(crate) fn new(text: String, conversation: Option<String>) -> Self {
        let event_id = format!("{CHANNEL_PREFIX}{}", ulid::Ulid::generate());
        Self { text, event_id, conversation, sender: None }
    }

    pub(crate) fn sent_by(mut self, sender: Option<String>) -> Self {
        self.sender = sender;
        self
    }

    /// Under a given id, so that a script that runs twice says it once.
    pub(crate) fn with_event_id(mut self, id: Option<String>) -> Self {
        if let Some(id) = id {
            self.event_id = if id.starts_with(CHANNEL_PREFIX) { id } else { format!("{CHANNEL_PREFIX}{id}") };
        }
        self
    }

    pub(crate) fn event_id(&self) -> &str {
        &self.event_id
    }
}

/// A piece of an answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Part {
    Accepted {},
    Token {
        text: String,
    },
    Tool {
        name: String,
        status: String,
    },
    Question {
        text: String,
    },
    End(End),
    /// From a newer daemon.
    #[serde(other)]
    Other,
}

/// What became of the message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct End {
    #[serde(default)]
    pub(crate) request_id: Option<String>,
    pub(crate) status: Status,
    #[serde(default)]
    pub(crate) reason: Option<String>,
    #[serde(default)]
    pub(crate) text: Option<String>,
    #[serde(default)]
    pub(crate) agent: Option<String>,
    #[serde(default)]
    pub(crate) session: Option<String>,
}

impl End {
    /// Why there is no whole answer although the request is completed: a person stopped its turn, or a newer message ended it.
    pub(crate) fn cut_short(&self) -> Option<&str> {
        let is_cut = |reason: &&str| reason.starts_with("stopped: ") || reason.starts_with("aborted: ");
        self.reason.as_deref().filter(|_| self.status == Status::Completed).filter(is_cut)
    }

    /// How a command ends that asked for it.
    pub(crate) fn exit(&self) -> Exit {
        if self.status == Status::Completed && self.cut_short().is_none() { Exit::Done } else { Exit::Failed }
    }
}

/// Says the message, shows each part of the answer but the end, and returns the end.
///
/// # Errors
/// When no daemon runs, when it refuses the message, or when a lost connection can't be had again
/// within [`RECONNECT_LIMIT`].
pub(crate) async fn say(
    client: &Client<'_>,
    message: &Message,
    show: &mut dyn FnMut(&Part) -> Result<(), OutputError>,
) -> anyhow::Result<End> {
    let question = Question { path: "/control/send", body: json!(message), event_id: message.event_id() };
    until_end(client, &question, false, show).await
}

/// What is asked again, word for word, after a lost connection.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    pub(crate) path: &'a str,
    pub(crate) body: Value,
    /// What becomes of which event is asked.
    pub(crate) event_id: &'a str,
}

/// As [`say`], of any question that is answered by parts. `was_connected`: the daemon has the event already.
///
/// # Errors
/// As [`say`].
pub(crate) async fn until_end(
    client: &Client<'_>,
    question: &Question<'_>,
    mut was_connected: bool,
    show: &mut dyn FnMut(&Part) -> Result<(), OutputError>,
) -> anyhow::Result<End> {
    let mut give_up_at: Option<Instant> = None;
    loop {
        let started = Instant::now();
        let failure = match attempt(client, question, show, &mut was_connected).await {
            Ok(Some(end)) => return Ok(end),
            Ok(None) => None,
            Err(error) if passes(&error, was_connected) => Some(error),
            Err(error) => return Err(error),
        };
        if started.elapsed() > RECONNECT_LIMIT {
            give_up_at = None;
        }
        let now = Instant::now();
        if now >= *give_up_at.get_or_insert(now + RECONNECT_LIMIT) {
            let error = failure.unwrap_or_else(|| anyhow::anyhow!("the daemon closed the answer before its end"));
            let advice = format!("no answer yet; `nexus trace {}` shows what becomes of it", question.event_id);
            return Err(error).context(advice);
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

/// Once the message may have been accepted, even a daemon that is gone may come back and answer.
fn passes(error: &anyhow::Error, was_connected: bool) -> bool {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::NotRunning) => was_connected,
        Some(error) => error.is_passing(),
        None => false,
    }
}

async fn attempt(
    client: &Client<'_>,
    question: &Question<'_>,
    show: &mut dyn FnMut(&Part) -> Result<(), OutputError>,
    was_connected: &mut bool,
) -> anyhow::Result<Option<End>> {
    let path = question.path;
    let mut lines = client.converse(path, &question.body).await?;
    *was_connected = true;
    while let Some(line) = lines.next().await? {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let part: Part = serde_json::from_slice(&line).map_err(|_| ClientError::Malformed { path: path.to_owned() })?;
        if let Part::End(end) = part {
            return Ok(Some(end));
        }
        show(&part)?;
    }
    Ok(None)
}

/// All of a reader's text, without the line ends behind it.
///
/// # Errors
/// When it is not UTF-8 or longer than [`TEXT_BYTES_MAX`].
pub(crate) fn whole_text(reader: impl Read) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    reader.take(TEXT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).context("failed to read stdin")?;
    text_of(bytes)
}

/// The next line of a reader; `None` at its end.
///
/// # Errors
/// As [`whole_text`].
pub(crate) fn next_line(reader: &mut impl BufRead) -> anyhow::Result<Option<String>> {
    let mut bytes = Vec::new();
    let count = reader.take(TEXT_BYTES_MAX as u64 + 1).read_until(b'\n', &mut bytes).context("failed to read stdin")?;
    if count == 0 { Ok(None) } else { text_of(bytes).map(Some) }
}

fn text_of(bytes: Vec<u8>) -> anyhow::Result<String> {
    anyhow::ensure!(bytes.len() <= TEXT_BYTES_MAX, "a message may have {TEXT_BYTES_MAX} bytes; this one is longer");
    let mut text = String::from_utf8(bytes).context("a message must be UTF-8")?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn part(text: &str) -> Part {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_wire_is_understood() {
        assert!(matches!(part(r#"{"type":"accepted","event_id":"cli:1"}"#), Part::Accepted {}));
        assert!(matches!(part(r#"{"type":"token","text":"hi"}"#), Part::Token { text } if text == "hi"));
        assert!(matches!(part(r#"{"type":"from_the_future","x":1}"#), Part::Other));
        let end = part(
            r#"{"type":"end","request_id":"req_1","status":"handled_by_automation","reason":null,"text":null,"agent":null,"session":null}"#,
        );
        assert!(matches!(end, Part::End(End { status: Status::HandledByAutomation, reason: None, .. })));
    }

    #[test]
    fn what_the_daemon_writes_is_read() {
        let end = crate::replies::End {
            request_id: "req_1".into(),
            status: Status::Completed,
            reason: None,
            text: Some("hello".into()),
            agent: Some("echo".into()),
            session: None,
        };
        let text = serde_json::to_string(&crate::replies::Part::End(end)).unwrap();
        assert!(matches!(part(&text), Part::End(End { text: Some(text), .. }) if text == "hello"));
    }

    #[test]
    fn ids_are_of_the_channel_and_unique() {
        let first = Message::new("a".into(), None);
        assert!(first.event_id().starts_with("cli:"));
        assert_ne!(first.event_id(), Message::new("a".into(), None).event_id());
        assert_eq!(first.clone().with_event_id(Some("job-7".into())).event_id(), "cli:job-7");
        assert_eq!(first.with_event_id(Some("cli:job-7".into())).event_id(), "cli:job-7");
    }

    #[test]
    fn input_is_bounded_and_text() {
        assert_eq!(whole_text(&b"one\ntwo\r\n\n"[..]).unwrap(), "one\ntwo");
        assert!(whole_text(&vec![b'x'; TEXT_BYTES_MAX + 1][..]).is_err());
        assert!(whole_text(&b"\xff"[..]).is_err());
        let mut reader = &b"one\n\ntwo"[..];
        let mut read = || next_line(&mut reader).unwrap();
        assert_eq!((read(), read(), read(), read()), (Some("one".into()), Some(String::new()), Some("two".into()), None));
    }

    #[test]
    fn a_lost_daemon_is_waited_for_but_a_missing_one_is_not() {
        let gone = anyhow::Error::new(ClientError::NotRunning);
        assert!(passes(&gone, true) && !passes(&gone, false));
        assert!(passes(&anyhow::Error::new(ClientError::Busy { pid: 1 }), false));
        let denied = ClientError::Refused { status: 400, error: "no".into(), problems: Vec::new() };
        assert!(!passes(&anyhow::Error::new(denied), true));
    }
}
