//! What the policies would decide about a sender: the whole decision with its reasons, by the code that
//! stages 2 and 3 run. It counts for no rate, writes nothing, and asks no adapter.

use super::{Given, People, Speaker, minute_and_day, recorded_only, section, to_local};
use crate::ledger::ReadError;
use crate::ledger::identity::{contact, link_of};
use crate::routes::DEFAULT_ACCOUNT;
use jiff::civil;
use jiff::tz::TimeZone;
use nexus_core::access::{Ask, Conversation, decide, session_label};
use nexus_core::config::{self, Config, Effect};
use nexus_core::event::PeerKind;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Who is asked about, what, where and when. What isn't given is a text in a direct message on the account `default`, now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Check {
    pub channel: String,
    pub sender: String,
    pub account: Option<String>,
    pub peer_kind: Option<PeerKind>,
    /// Where it is said; the sender itself if that isn't given.
    pub peer: Option<String>,
    /// What kind of event it is; `text` if that isn't given.
    pub content_type: Option<String>,
    /// Local date and time; see [`local_time`].
    pub at: Option<String>,
}

/// What most events are.
const TEXT: &str = "text";

#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("`{0}` is no local date and time; write it as in \"2026-01-02T23:30\"")]
    At(String),
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Reads a date and time without a zone, as `2026-01-02T23:30`: policies go by the configured zone's clock.
///
/// # Errors
/// [`CheckError::At`].
pub fn local_time(text: &str) -> Result<civil::DateTime, CheckError> {
    text.parse().map_err(|_| CheckError::At(text.to_owned()))
}

/// What is decided by: the parts of a configuration in force.
#[derive(Debug, Clone)]
pub struct Rules {
    pub access: config::Access,
    pub default_agent: String,
    pub time_zone: TimeZone,
}

impl Rules {
    /// # Errors
    /// When the time zone is unknown.
    pub fn of(config: &Config) -> Result<Self, String> {
        Ok(Self {
            access: config.access.clone(),
            default_agent: config.agents.default.clone(),
            time_zone: crate::timer::zone(&config.timer.timezone)?,
        })
    }

    /// Owners, the default, and the policies in the order of the configuration.
    pub fn policies(&self) -> Value {
        json!(self.access)
    }

    /// The decision about one sender as it would be made.
    ///
    /// # Errors
    /// [`CheckError`].
    pub fn check(&self, people: &People, asked: &Check, now_ms: i64) -> Result<Value, CheckError> {
        let local = match &asked.at {
            Some(text) => local_time(text)?,
            None => to_local(now_ms, &self.time_zone),
        };
        let Check { channel, sender, .. } = asked;
        let (principal, link) = people.identity.read_now(|connection| {
            let speaker = Speaker {
                // No adapter may serve the two channels whose adapter is the daemon.
                given: Given::of(&self.access, channel, channel, sender),
                channel: channel.clone(),
                sender_id: sender.clone(),
                name: contact(connection, channel, sender)?.and_then(|contact| contact.name),
            };
            Ok((speaker.look_up(connection)?, link_of(connection, channel, sender)?))
        })?;
        let (minute_of_day, day) = minute_and_day(local);
        let account = asked.account.as_deref().unwrap_or(DEFAULT_ACCOUNT);
        let peer_kind = asked.peer_kind.unwrap_or(PeerKind::Dm);
        let peer_id = asked.peer.as_deref().unwrap_or(sender);
        let content_type = asked.content_type.as_deref().unwrap_or(TEXT);
        let ask = Ask {
            channel: channel.clone(),
            account: account.to_owned(),
            peer_kind,
            content_type: content_type.to_owned(),
            minute_of_day,
            day,
        };
        let decision = decide(&self.access, &principal, &ask);
        let conversation = Conversation { channel, account, sender_id: sender, peer_kind, peer_id, thread_id: None };
        let session = session_label(&principal, &conversation, decision.session_key.as_deref());
        let agent = decision.agent.as_ref().unwrap_or(&self.default_agent);
        let (is_allowed, wakes) = (decision.effect == Effect::Allow, decision.wakes_agent(content_type));
        let goes_on = (is_allowed && wakes).then_some((agent, session)).unzip();
        let mut answer = json!(decision);
        (answer["agent"], answer["session_label"]) = (json!(goes_on.0), json!(goes_on.1));
        answer["recorded_only"] = json!((is_allowed && !wakes).then(|| recorded_only(content_type)));
        (answer["principal"], answer["link"]) = (json!(section(&principal)), json!(link));
        answer["asked"] = json!({
            "channel": channel, "sender": sender, "account": account, "peer_kind": peer_kind, "peer": peer_id,
            "content_type": content_type,
            "at": local.strftime("%Y-%m-%dT%H:%M").to_string(), "day": day,
        });
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_are_local_and_anything_else_is_refused() {
        let (minute, day) = minute_and_day(local_time("2026-01-02T23:30").unwrap());
        assert_eq!((minute, day), (23 * 60 + 30, config::Day::Fri));
        for text in ["", "yesterday", "23:30", "2026-13-01T00:00", "2026-01-02T23:30Z", "2026-01-02T25:00"] {
            assert!(local_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_instant_is_a_minute_of_the_zones_day() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        // 2026-01-02 23:30 UTC, a Friday there and a Saturday in the zone.
        let friday_ms = 1_767_396_600_000;
        assert_eq!(minute_and_day(to_local(friday_ms, &TimeZone::UTC)), (23 * 60 + 30, config::Day::Fri));
        assert_eq!(minute_and_day(to_local(friday_ms, &zone)), (90, config::Day::Sat));
    }
}
