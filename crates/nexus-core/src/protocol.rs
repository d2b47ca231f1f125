//! The adapter protocol, version 1: what adapters answer to `info`, `health`, `accounts list` and `send`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What an adapter can do. Unknown words are kept out by [`AdapterInfo::can`], never an error: a
/// newer adapter must still work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    Monitor,
    Send,
    Stream,
    Backfill,
    Health,
    Accounts,
    Ack,
}

impl Capability {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Monitor => "monitor",
            Self::Send => "send",
            Self::Stream => "stream",
            Self::Backfill => "backfill",
            Self::Health => "health",
            Self::Accounts => "accounts",
            Self::Ack => "ack",
        }
    }
}

/// The answer to `info`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterInfo {
    pub channel: String,
    pub name: String,
    pub version: String,
    pub supports: Vec<String>,
    #[serde(default)]
    pub multi_account: bool,
    #[serde(default)]
    pub channel_capabilities: ChannelCapabilities,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<u32>,
    /// `send` reads its text from stdin with `--text-file -`.
    #[serde(default)]
    pub text_stdin: bool,
}

/// Channels of the daemon itself: who speaks there is trusted, so no adapter may claim them.
pub const RESERVED_CHANNELS: [&str; 2] = ["cli", "timer"];

/// The protocol version that this daemon speaks.
pub const PROTOCOL_VERSION: u32 = 1;

impl AdapterInfo {
    pub fn can(&self, capability: Capability) -> bool {
        self.supports.iter().any(|word| word == capability.as_str())
    }

    /// Answers can be said live. What can't be after all is sent.
    pub fn streams(&self) -> bool {
        self.can(Capability::Stream) && self.can(Capability::Send)
    }

    /// Checks what parsing can't.
    ///
    /// # Errors
    /// A sentence that names the field and what would be right.
    pub fn check(&self) -> Result<(), String> {
        if self.channel.is_empty() || !self.channel.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) {
            return Err(format!("channel `{}` must be a word of letters, digits, `_`, `-`, `.`", self.channel));
        }
        if RESERVED_CHANNELS.contains(&self.channel.as_str()) {
            return Err(format!("channel `{}` is the daemon's own; name the adapter's differently", self.channel));
        }
        match self.protocol_version {
            Some(version) if version > PROTOCOL_VERSION => {
                Err(format!("speaks protocol version {version}, this daemon {PROTOCOL_VERSION}: upgrade nexus"))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// What the channel can show. Only `text_limit` steers the daemon today; the rest is handed to agents.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChannelCapabilities {
    /// Longest text of one message, in characters; absent or 0 = no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_limit: Option<u64>,
    #[serde(flatten)]
    pub other: serde_json::Map<String, Value>,
}

/// The answer to `health`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterProbe {
    pub connected: bool,
    pub account: String,
    #[serde(default)]
    pub last_event_at: Option<i64>,
    #[serde(default)]
    pub error: Option<String>,
    #[serde(default)]
    pub details: Option<Value>,
}

/// One entry of `accounts list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterAccount {
    pub id: String,
    #[serde(default)]
    pub display_name: Option<String>,
    #[serde(default)]
    pub credential_ref: Option<String>,
    pub status: String,
}

/// The answer to `send`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeliveryResult {
    pub success: bool,
    #[serde(default)]
    pub message_ids: Vec<String>,
    #[serde(default)]
    pub chunks_sent: u32,
    #[serde(default)]
    pub total_chars: Option<u64>,
    #[serde(default)]
    pub error: Option<DeliveryError>,
}

/// Why a send failed, in the adapter's words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeliveryError {
    #[serde(rename = "type")]
    pub type_: DeliveryErrorType,
    pub message: String,
    #[serde(default)]
    pub retry: bool,
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
    #[serde(default)]
    pub details: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryErrorType {
    RateLimited,
    PermissionDenied,
    NotFound,
    ContentRejected,
    Network,
    #[serde(other)]
    Unknown,
}

impl DeliveryErrorType {
    /// Trying again can't help.
    pub fn is_final(self) -> bool {
        match self {
            Self::PermissionDenied | Self::NotFound | Self::ContentRejected => true,
            Self::RateLimited | Self::Network | Self::Unknown => false,
        }
    }
}

/// How one attempt to send ended.
#[derive(Debug, Clone, PartialEq)]
pub enum SendOutcome {
    /// On the platform, under these ids.
    Sent { message_ids: Vec<String> },
    /// Not on the platform; may be tried again, not before `after_ms`.
    Retry { error: String, after_ms: Option<u64> },
    /// Not on the platform and never will be.
    Failed { error: String },
    /// May or may not be on the platform.
    Uncertain { error: String },
}

impl SendOutcome {
    /// Judges a well-formed answer.
    pub fn of(result: DeliveryResult) -> Self {
        match (result.success, result.error) {
            (true, _) if result.message_ids.is_empty() => {
                Self::Uncertain { error: "the adapter reports success without a message id".into() }
            }
            (true, _) => Self::Sent { message_ids: result.message_ids },
            (false, Some(error)) if error.type_.is_final() => Self::Failed { error: error.message },
            (false, Some(error)) if error.retry || error.retry_after_ms.is_some() => {
                Self::Retry { error: error.message, after_ms: error.retry_after_ms }
            }
            (false, Some(error)) => match error.type_ {
                DeliveryErrorType::RateLimited | DeliveryErrorType::Network => Self::Retry { error: error.message, after_ms: None },
                DeliveryErrorType::PermissionDenied
                | DeliveryErrorType::NotFound
                | DeliveryErrorType::ContentRejected
                | DeliveryErrorType::Unknown => Self::Failed { error: error.message },
            },
            (false, None) => Self::Failed { error: "the adapter reports failure without a reason".into() },
        }
    }
}

/// Wait before attempt `attempt` + 1 of a send: 1 s doubling, at most 30 s; the platform's own wish
/// is obeyed when it is longer.
pub fn send_retry_delay_ms(attempt: u32, wish_ms: Option<u64>) -> u64 {
    const BASE_MS: u64 = 1_000;
    const CAP_MS: u64 = 30_000;
    let doubled = BASE_MS.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(CAP_MS);
    doubled.max(wish_ms.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn outcome(json: &str) -> SendOutcome {
        SendOutcome::of(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn judges_answers() {
        assert_eq!(
            outcome(r#"{"success":true,"message_ids":["m1"],"chunks_sent":1}"#),
            SendOutcome::Sent { message_ids: vec!["m1".into()] }
        );
        assert!(matches!(outcome(r#"{"success":true}"#), SendOutcome::Uncertain { .. }));
        assert!(matches!(
            outcome(r#"{"success":false,"error":{"type":"not_found","message":"x","retry":true}}"#),
            SendOutcome::Failed { .. }
        ));
        assert!(matches!(
            outcome(r#"{"success":false,"error":{"type":"rate_limited","message":"x","retry_after_ms":7}}"#),
            SendOutcome::Retry { after_ms: Some(7), .. }
        ));
        assert!(matches!(outcome(r#"{"success":false,"error":{"type":"network","message":"x"}}"#), SendOutcome::Retry { .. }));
        assert!(matches!(outcome(r#"{"success":false,"error":{"type":"quota","message":"x"}}"#), SendOutcome::Failed { .. }));
        assert!(matches!(outcome(r#"{"success":false}"#), SendOutcome::Failed { .. }));
    }

    #[test]
    fn retry_delays_double_to_a_cap_and_obey_the_platform() {
        let delays: Vec<u64> = (1..8).map(|n| send_retry_delay_ms(n, None)).collect();
        assert_eq!(delays, [1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert_eq!(send_retry_delay_ms(1, Some(90_000)), 90_000);
        assert_eq!(send_retry_delay_ms(u32::MAX, None), 30_000);
    }

    #[test]
    fn info_of_a_newer_protocol_is_refused_and_unknown_words_are_not() {
        let mut info: AdapterInfo = serde_json::from_str(
            r#"{"channel":"chat","name":"x","version":"1","supports":["monitor","teleport"],"channel_capabilities":{"text_limit":5,"supports_tables":true}}"#,
        ).unwrap();
        assert!(info.can(Capability::Monitor) && !info.can(Capability::Send));
        assert_eq!(info.channel_capabilities.text_limit, Some(5));
        assert!(info.check().is_ok());
        info.protocol_version = Some(2);
        assert!(info.check().unwrap_err().contains("version 2"));
        info.protocol_version = None;
        for bad in ["a:b", "", "cli", "timer"] {
            info.channel = bad.into();
            assert!(info.check().is_err(), "{bad}");
        }
    }
}
