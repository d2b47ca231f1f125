//! The adapter protocol v1 as this adapter speaks it: its `info`, event lines, ack lines.
//! Owns the form of what crosses stdin and stdout; never decides what an event means or who waits.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// The channel this adapter serves unless the daemon names another.
pub(super) const CHANNEL: &str = "webhook";
/// Longest ack line that is read; event ids are far shorter.
pub(super) const MAX_ACK_LINE_BYTES: usize = 1 << 20;
/// Nothing is ever sent through this adapter, so the limit only has to be a plausible one.
const TEXT_LIMIT_CHARS: u32 = 65_536;

/// One event, in the field order and names of the adapter protocol.
#[derive(Debug, Serialize)]
pub(super) struct Event {
    pub(super) event_id: String,
    /// Unix milliseconds.
    pub(super) timestamp: i64,
    pub(super) content: String,
    pub(super) content_type: &'static str,
    pub(super) channel: String,
    pub(super) account_id: String,
    pub(super) sender_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sender_name: Option<String>,
    pub(super) peer_id: String,
    pub(super) peer_kind: &'static str,
    pub(super) metadata: Map<String, Value>,
}

impl Event {
    /// The event as one line with its newline.
    pub(super) fn to_line(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }
}

/// An encoded line on its way to stdout. It holds its share of the memory budget until written.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) bytes: Vec<u8>,
    pub(super) _budget: Option<OwnedSemaphorePermit>,
}

/// The answer to `info` (`AdapterInfo`).
pub(super) fn info() -> Value {
    json!({
        "channel": CHANNEL,
        "name": "webhook",
        "version": env!("CARGO_PKG_VERSION"),
        "supports": ["monitor", "health", "ack"],
        "multi_account": true,
        "protocol_version": 1,
        "channel_capabilities": {
            "text_limit": TEXT_LIMIT_CHARS,
            "supports_markdown": false,
            "supports_tables": false,
            "supports_code_blocks": false,
            "supports_embeds": false,
            "supports_threads": false,
            "supports_reactions": false,
            "supports_polls": false,
            "supports_buttons": false,
            "supports_edit": false,
            "supports_delete": false,
            "supports_media": false,
            "supports_voice_notes": false,
            "supports_streaming_edit": false,
        },
    })
}

#[derive(Deserialize)]
struct Ack {
    ack: String,
}

/// The event id of an ack line; `None` for any other line.
pub(super) fn parse_ack(line: &[u8]) -> Option<String> {
    serde_json::from_slice::<Ack>(line).ok().map(|ack| ack.ack)
}

/// Reads acks until the end of `input` or until nobody listens. Runs on a thread of its own: the
/// pipe blocks, and a blocked thread must not hold up the listener.
pub(super) fn read_acks(input: impl BufRead, acks: &mpsc::Sender<String>) -> io::Result<()> {
    read_lines(input, MAX_ACK_LINE_BYTES, |line| match parse_ack(line) {
        Some(event_id) => acks.blocking_send(event_id).is_ok(),
        None => true,
    })
}

/// Writes lines in order until their senders are gone or `output` fails. Runs on its own thread;
/// while the daemon does not read, it blocks here and the queue behind it fills up.
pub(super) fn write_lines(mut output: impl Write, lines: &mut mpsc::Receiver<Line>) -> io::Result<()> {
    while let Some(line) = lines.blocking_recv() {
        output.write_all(&line.bytes)?;
        output.flush()?;
    }
    Ok(())
}

/// Gives each whole line of at most `max_bytes` to `on_line` until it returns false. A longer line
/// is skipped, and so is a last line without its newline: the writer died within it.
fn read_lines(mut input: impl BufRead, max_bytes: usize, mut on_line: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    let mut line = Vec::new();
    let mut overlong = false;
    loop {
        let chunk = match input.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if chunk.is_empty() {
            return Ok(());
        }
        let newline = chunk.iter().position(|byte| *byte == b'\n');
        let taken = newline.unwrap_or(chunk.len());
        if line.len() + taken > max_bytes {
            overlong = true;
            line.clear();
        } else if !overlong {
            line.extend_from_slice(&chunk[..taken]);
        }
        input.consume(taken + usize::from(newline.is_some()));
        if newline.is_some() {
            if !overlong && !on_line(&line) {
                return Ok(());
            }
            line.clear();
            overlong = false;
        }
    }
}

/// Standard base64 with padding (RFC 4648, section 4).
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut bits = 0_u32;
        for place in 0..3 {
            bits = (bits << 8) | u32::from(group.get(place).copied().unwrap_or(0));
        }
        for place in 0..4 {
            if place > group.len() {
                text.push('=');
            } else {
                let index = (bits >> (18 - 6 * place)) & 63;
                text.push(char::from(ALPHABET[index as usize]));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{BufReader, Cursor};

    fn lines_of(input: &[u8], max_bytes: usize) -> Vec<String> {
        let mut lines = Vec::new();
        // A tiny buffer makes every line cross a read.
        let reader = BufReader::with_capacity(3, Cursor::new(input.to_vec()));
        read_lines(reader, max_bytes, |line| {
            lines.push(String::from_utf8_lossy(line).into_owned());
            true
        })
        .unwrap();
        lines
    }

    #[test]
    fn overlong_and_unfinished_lines_are_skipped() {
        let input = b"one\n\nmuch too long\ntwo\nunfinished";
        assert_eq!(lines_of(input, 8), ["one", "", "two"]);
        assert_eq!(lines_of(b"12345678\n123456789\n", 8), ["12345678"]);
        assert!(lines_of(b"", 8).is_empty());
    }

    #[test]
    fn only_ack_lines_are_acks() {
        assert_eq!(parse_ack(br#"{"ack":"webhook:a:1"}"#).unwrap(), "webhook:a:1");
        assert_eq!(parse_ack(br#"{"ack":"x","later":1}"#).unwrap(), "x");
        for line in [&b""[..], b"{}", b"nonsense", br#"{"ack":7}"#, b"\xff\xfe"] {
            assert_eq!(parse_ack(line), None);
        }
    }

    #[test]
    fn acks_are_read_until_the_end() {
        let (sender, mut receiver) = mpsc::channel(8);
        let input = Cursor::new(b"{\"ack\":\"a\"}\nnoise\n{\"ack\":\"b\"}\n".to_vec());
        read_acks(input, &sender).unwrap();
        drop(sender);
        assert_eq!(receiver.blocking_recv().unwrap(), "a");
        assert_eq!(receiver.blocking_recv().unwrap(), "b");
        assert_eq!(receiver.blocking_recv(), None);
    }

    #[test]
    fn base64_matches_the_rfc_vectors() {
        let vectors =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy")];
        for (plain, encoded) in vectors {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }
}
