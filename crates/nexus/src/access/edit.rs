//! What a person says about who is who, on its way from the command line to the ledger: checked at both ends,
//! written by the daemon alone.

use crate::ledger::identity::{CONFIDENCE_MIN, IdentityCommand, Link, Merge, Refused, SetEntity, TAGS_MAX, Tag, Unlink, Unmerge, Untag};
use crate::ledger::writer::{WriteError, Writer};
use nexus_core::event::ID_BYTES_MAX;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Longest id of an entity, in characters.
const ENTITY_CHARS_MAX: usize = 64;
/// Longest name, relationship or tag, in bytes.
const TEXT_BYTES_MAX: usize = 200;
/// Who says so: whoever can open the control socket.
const SOURCE: &str = "owner";

/// One change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Edit {
    /// An empty name or relationship takes it away.
    Link {
        channel: String,
        sender: String,
        entity: String,
        name: Option<String>,
        relationship: Option<String>,
        /// 0 to 1.
        confidence: f64,
        /// The entity may count as the owner: it is meant.
        #[serde(default)]
        as_owner: bool,
    },
    Unlink {
        channel: String,
        sender: String,
    },
    Set {
        entity: String,
        name: Option<String>,
        relationship: Option<String>,
    },
    Tag {
        entity: String,
        tags: Vec<String>,
    },
    Untag {
        entity: String,
        tags: Vec<String>,
    },
    Merge {
        from: String,
        into: String,
        /// As in `Link`.
        #[serde(default)]
        as_owner: bool,
    },
    Unmerge {
        entity: String,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// What was given can't be meant.
    #[error("{0}")]
    Wrong(String),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Edit {
    /// Whether what it says can be meant.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Link { channel, sender, entity, name, relationship, confidence, .. } => {
                check_sender(channel, sender)?;
                check_entity(entity)?;
                check_words(name, relationship)?;
                let is_share = (0.0..=1.0).contains(confidence);
                if is_share { Ok(()) } else { Err(format!("confidence is from 0 to 1, not {confidence}")) }
            }
            Self::Unlink { channel, sender } => check_sender(channel, sender),
            Self::Set { entity, name, relationship } => {
                check_entity(entity)?;
                check_words(name, relationship)
            }
            Self::Tag { entity, tags } | Self::Untag { entity, tags } => {
                check_entity(entity)?;
                check_tags(tags)
            }
            Self::Merge { from, into, .. } => {
                check_entity(from)?;
                check_entity(into)
            }
            Self::Unmerge { entity } => check_entity(entity),
        }
    }

    /// Checks and writes it. What came of it, as the CLI shows it.
    ///
    /// # Errors
    /// [`EditError`]; after `Write` nobody may know whether it was written, and it can be repeated.
    pub async fn write(self, writer: &Writer<IdentityCommand>, at: i64) -> Result<Value, EditError> {
        self.check().map_err(EditError::Wrong)?;
        match self {
            Self::Link { channel, sender, entity, name, relationship, confidence, as_owner } => {
                let (sender_id, entity_id) = (sender, entity);
                let mut answer = json!({
                    "channel": channel, "sender_id": sender_id, "entity_id": entity_id, "confidence": confidence,
                    "counts": confidence >= CONFIDENCE_MIN,
                });
                let link = Link { channel, sender_id, entity_id, name, relationship, confidence, source: SOURCE, as_owner, at };
                let linked = writer.write(link).await??;
                (answer["created"], answer["before"]) = (json!(linked.created), json!(linked.before));
                Ok(answer)
            }
            Self::Unlink { channel, sender: sender_id } => {
                let mut answer = json!({ "channel": channel, "sender_id": sender_id });
                answer["before"] = json!(writer.write(Unlink { channel, sender_id }).await?);
                Ok(answer)
            }
            Self::Set { entity: entity_id, name, relationship } => {
                let answer = json!({ "entity_id": entity_id, "name": name, "relationship": relationship });
                writer.write(SetEntity { entity_id, name, relationship }).await??;
                Ok(answer)
            }
            Self::Tag { entity: entity_id, tags } => {
                let answer = json!({ "entity_id": entity_id, "tagged": tags });
                writer.write(Tag { entity_id, tags }).await??;
                Ok(answer)
            }
            Self::Untag { entity: entity_id, tags } => {
                let answer = json!({ "entity_id": entity_id, "untagged": tags });
                writer.write(Untag { entity_id, tags }).await??;
                Ok(answer)
            }
            Self::Merge { from, into, as_owner } => {
                let answer = json!({ "entity_id": from, "merged_into": into });
                writer.write(Merge { from, into, as_owner }).await??;
                Ok(answer)
            }
            Self::Unmerge { entity: entity_id } => {
                let mut answer = json!({ "entity_id": entity_id });
                answer["before"] = json!(writer.write(Unmerge { entity_id }).await??);
                Ok(answer)
            }
        }
    }
}

/// Ids become parts of session labels and arguments, as names of agents do.
fn check_entity(id: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._@+-".contains(c);
    if !id.is_empty() && id.len() <= ENTITY_CHARS_MAX && !id.starts_with('-') && id.chars().all(allowed) {
        return Ok(());
    }
    Err(format!(
        "`{}` is no entity id; one has 1 to {ENTITY_CHARS_MAX} characters of A-Z a-z 0-9 . _ @ + -, not starting with -",
        id.chars().take(ENTITY_CHARS_MAX).collect::<String>()
    ))
}

fn check_sender(channel: &str, sender: &str) -> Result<(), String> {
    for (what, text) in [("channel", channel), ("sender", sender)] {
        if text.is_empty() || text.len() > ID_BYTES_MAX {
            return Err(format!("a {what} has 1 to {ID_BYTES_MAX} bytes"));
        }
    }
    if channel.contains(|c: char| c == ':' || c.is_whitespace()) {
        return Err("a channel has neither colon nor blank; write channel:sender, as in \"imessage:+15551234567\"".to_owned());
    }
    Ok(())
}

fn check_words(name: &Option<String>, relationship: &Option<String>) -> Result<(), String> {
    for (what, text) in [("name", name), ("relationship", relationship)] {
        if let Some(text) = text {
            check_text(what, text)?;
        }
    }
    Ok(())
}

fn check_tags(tags: &[String]) -> Result<(), String> {
    if tags.is_empty() || tags.len() > TAGS_MAX {
        return Err(format!("give 1 to {TAGS_MAX} tags"));
    }
    if tags.iter().any(|tag| tag.trim().is_empty()) {
        return Err("a tag must not be empty".to_owned());
    }
    tags.iter().try_for_each(|tag| check_text("tag", tag))
}

fn check_text(what: &str, text: &str) -> Result<(), String> {
    if text.len() > TEXT_BYTES_MAX || text.contains(char::is_control) {
        return Err(format!("a {what} has up to {TEXT_BYTES_MAX} bytes and no control characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn link(entity: &str, confidence: f64) -> Edit {
        let (channel, sender, entity) = ("sms".to_owned(), "+1".to_owned(), entity.to_owned());
        Edit::Link { channel, sender, entity, name: None, relationship: None, confidence, as_owner: false }
    }

    #[test]
    fn what_can_not_be_meant_is_refused() {
        let (longest, longer) = ("x".repeat(ENTITY_CHARS_MAX), "x".repeat(ENTITY_CHARS_MAX + 1));
        for good in ["ann", "owner", "ann@example.org", longest.as_str()] {
            assert_eq!(link(good, 1.0).check(), Ok(()), "{good}");
        }
        for bad in ["", "-x", "a b", "a:b", "ä", "a/b", "a\n", longer.as_str()] {
            assert!(link(bad, 1.0).check().is_err(), "{bad:?}");
        }
        for confidence in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(link("ann", confidence).check().is_err(), "{confidence}");
        }
        let tag = |tags: &[&str]| Edit::Tag { entity: "ann".to_owned(), tags: tags.iter().map(|tag| (*tag).to_owned()).collect() }.check();
        assert_eq!(tag(&["family", "a b"]), Ok(()));
        let long = "x".repeat(ID_BYTES_MAX + 1);
        let wrong: [&[&str]; 5] = [&[], &[""], &[" "], &["a\u{1b}"], &[long.as_str()]];
        for bad in wrong {
            assert!(tag(bad).is_err(), "{bad:?}");
        }
        let unlink = |channel: &str, sender: &str| Edit::Unlink { channel: channel.to_owned(), sender: sender.to_owned() }.check();
        assert_eq!(unlink("x", "a:b c"), Ok(()));
        for (channel, sender) in [("", "a"), ("a b", "c"), ("a:b", "c"), ("a", ""), ("a", long.as_str())] {
            assert!(unlink(channel, sender).is_err(), "{channel}");
        }
    }

    #[test]
    fn it_travels_as_json() {
        let edit = link("ann", 0.7);
        let told = serde_json::to_value(&edit).unwrap();
        assert_eq!((told["verb"].as_str(), told["confidence"].as_f64()), (Some("link"), Some(0.7)));
        assert_eq!(serde_json::from_value::<Edit>(told).unwrap(), edit);
        let unknown = json!({ "verb": "forget", "entity": "ann" });
        assert!(serde_json::from_value::<Edit>(unknown).is_err());
    }
}
