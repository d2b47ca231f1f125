//! The events that are measured with: the same for the same number, in any process.

use serde_json::json;

/// The channel and the account that all of them come from.
pub(crate) const CHANNEL: &str = "bench";
pub(crate) const ACCOUNT: &str = "echo-bot";

/// Long ago, so that they count as late wherever that matters.
const FIRST_TIMESTAMP_MS: u64 = 1_738_767_000_000;
/// Ids that rise as a platform's snowflakes do.
const FIRST_ID: u64 = 1_204_000_000_000_000_000;
const ID_STEP: u64 = 4096;
/// Fewest words of a message, and how many more there may be.
const WORDS_MIN: u64 = 10;
const WORDS_MORE: u64 = 24;

const WORDS: [&str; 30] = [
    "hey",
    "can",
    "you",
    "look",
    "at",
    "the",
    "deploy",
    "it",
    "failed",
    "again",
    "on",
    "staging",
    "\"quoted\"",
    "café",
    "line\nbreak",
    "thanks",
    "tomorrow",
    "morning",
    "report",
    "invoice",
    "review",
    "please",
    "\u{1F680}",
    "ok",
    "sounds",
    "good",
    "let",
    "me",
    "know",
    "when",
];

/// One event, in the parts that a ledger stores.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) event_id: String,
    pub(crate) timestamp: u64,
    pub(crate) content: String,
    pub(crate) sender_id: String,
    pub(crate) sender_name: String,
    pub(crate) peer_id: String,
    pub(crate) thread_id: String,
    /// JSON.
    pub(crate) attachments: String,
    /// JSON.
    pub(crate) metadata: String,
}

/// splitmix64: well spread numbers out of consecutive ones.
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The id of event `number`: rising, or spread over the whole range of 128 bits.
pub(crate) fn id(number: u64, random: bool) -> String {
    let seed = mix(number);
    if random {
        format!("{CHANNEL}:{:016x}{:016x}", mix(seed), mix(seed ^ 7))
    } else {
        format!("{CHANNEL}:{}", FIRST_ID + number * ID_STEP)
    }
}

/// The time of event `number`, in Unix milliseconds.
pub(crate) fn timestamp(number: u64) -> u64 {
    FIRST_TIMESTAMP_MS + number * 3
}

/// Event `number`.
pub(crate) fn event(number: u64, random_id: bool) -> Event {
    let seed = mix(number);
    let words = WORDS_MIN + (seed >> 8) % WORDS_MORE;
    // The remainder is below the number of words, whatever the width of a usize.
    let word = |place: u64| WORDS[(mix(seed ^ place) % WORDS.len() as u64) as usize];
    Event {
        event_id: id(number, random_id),
        timestamp: timestamp(number),
        content: (0..words).map(word).collect::<Vec<_>>().join(" "),
        sender_id: format!("u{:09}", (seed >> 20) % 5000),
        sender_name: format!("User {}", seed % 5000),
        peer_id: format!("c{:09}", (seed >> 34) % 800),
        thread_id: format!("t{:012}", (seed >> 12) % 90_000),
        attachments: format!(
            r#"[{{"id":"a{}","filename":"photo.png","content_type":"image/png","size_bytes":{}}}]"#,
            seed % 100_000,
            seed % 4_000_000
        ),
        metadata: format!(r#"{{"guild":"g{}","flags":[1,{},3],"edited":false,"score":{}.25}}"#, seed % 300, seed % 9, seed % 100),
    }
}

/// The line that an adapter prints for an event, with its newline: about 560 bytes on the average.
pub(crate) fn line(event: &Event) -> String {
    format!(
        concat!(
            r#"{{"event_id":"{}","timestamp":{},"channel":"{}","account_id":"{}","content_type":"text","content":{},"#,
            r#""sender_id":"{}","sender_name":"{}","peer_id":"{}","peer_kind":"group","thread_id":"{}","attachments":{},"metadata":{}}}"#,
            "\n"
        ),
        event.event_id,
        event.timestamp,
        CHANNEL,
        ACCOUNT,
        json!(event.content),
        event.sender_id,
        event.sender_name,
        event.peer_id,
        event.thread_id,
        event.attachments,
        event.metadata
    )
}

/// A valid line with nothing but what is needed, of exactly `bytes` with its newline; longer if that
/// is too few.
pub(crate) fn line_of(number: u64, bytes: usize) -> String {
    let with = |content: &str| {
        format!(
            concat!(
                r#"{{"event_id":"{}:{:06}","timestamp":1,"content":"{}","content_type":"text","channel":"{}","account_id":"{}","#,
                r#""sender_id":"u","peer_id":"p","peer_kind":"dm"}}"#,
                "\n"
            ),
            CHANNEL, number, content, CHANNEL, ACCOUNT
        )
    };
    let empty = with("").len();
    with(&"x".repeat(bytes.saturating_sub(empty).max(1)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_are_json_and_say_what_the_parts_say() {
        for number in [0, 1, 999_999] {
            let event = event(number, false);
            let parsed: serde_json::Value = serde_json::from_str(&line(&event)).unwrap();
            assert_eq!(parsed["content"], event.content);
            assert_eq!(parsed["event_id"], event.event_id);
            assert_eq!(parsed["attachments"], serde_json::from_str::<serde_json::Value>(&event.attachments).unwrap());
            assert_eq!(parsed["metadata"], serde_json::from_str::<serde_json::Value>(&event.metadata).unwrap());
        }
    }

    #[test]
    fn the_mean_is_that_of_the_reference() {
        let bytes: usize = (0..5000).map(|number| line(&event(number, false)).len()).sum();
        assert!((550..580).contains(&(bytes / 5000)), "{}", bytes / 5000);
    }

    #[test]
    fn ids_differ_and_repeat_by_number_only() {
        let ids: std::collections::HashSet<String> = (0..1000).flat_map(|number| [id(number, true), id(number, false)]).collect();
        assert_eq!(ids.len(), 2000);
        assert_eq!(event(17, true), event(17, true));
    }

    #[test]
    fn plain_lines_have_the_length_asked_for() {
        for bytes in [200, 201, 562, 4096] {
            let text = line_of(12, bytes);
            assert_eq!(text.len(), bytes);
            assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
        }
    }
}
