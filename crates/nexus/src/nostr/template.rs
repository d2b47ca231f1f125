//! An event before it is signed, and its signing.

use ::nostr::event::{Event, EventBuilder, FinalizeEvent, Kind, Tag};
use ::nostr::key::Keys;
use ::nostr::types::Timestamp;
use serde::{Deserialize, Serialize};

/// Longest content that is signed, in bytes: what relays take at most.
const CONTENT_BYTES_MAX: usize = 64 * 1024;
/// Most tags that are signed, and the longest one, in bytes.
const TAGS_MAX: usize = 2_000;
const TAG_BYTES_MAX: usize = 4 * 1024;

/// What an event is to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    pub kind: u16,
    pub content: String,
    #[serde(default)]
    pub tags: Vec<Vec<String>>,
    /// Unix seconds; left out, the time of signing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<u64>,
}

/// Why a template can't be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("its content has {0} bytes; {CONTENT_BYTES_MAX} are possible")]
    Content(usize),
    #[error("its tags are too many or too long, or one of them is empty")]
    Tags,
    #[error("it can't be signed: {0}")]
    Signing(String),
}

impl Template {
    /// The event, signed; `now` in Unix seconds.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub(crate) fn sign(self, keys: &Keys, now: u64) -> Result<Event, TemplateError> {
        let Self { kind, content, tags, created_at } = self;
        if content.len() > CONTENT_BYTES_MAX {
            return Err(TemplateError::Content(content.len()));
        }
        let fits = |tag: &Vec<String>| !tag.is_empty() && tag.iter().map(String::len).sum::<usize>() <= TAG_BYTES_MAX;
        if tags.len() > TAGS_MAX || !tags.iter().all(fits) {
            return Err(TemplateError::Tags);
        }
        let tags = tags.into_iter().map(Tag::parse::<Vec<String>, String>).collect::<Result<Vec<_>, _>>();
        let builder = EventBuilder::new(Kind::from_u16(kind), content)
            .tags(tags.map_err(|_| TemplateError::Tags)?)
            .custom_created_at(Timestamp::from_secs(created_at.unwrap_or(now)));
        builder.finalize(keys).map_err(|error| TemplateError::Signing(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn template() -> Template {
        Template { kind: 1, content: "hi".to_owned(), tags: vec![vec!["t".to_owned(), "x".to_owned()]], created_at: None }
    }

    #[test]
    fn what_is_signed_verifies_and_says_what_was_given() {
        let keys = Keys::generate();
        let event = template().sign(&keys, 7).unwrap();
        assert!(event.verify().is_ok());
        assert_eq!((event.created_at.as_secs(), event.tags[0].as_slice().len(), event.pubkey), (7, 2, keys.public_key()));
        assert_eq!(Template { created_at: Some(3), ..template() }.sign(&keys, 7).unwrap().created_at.as_secs(), 3);
    }

    #[test]
    fn what_no_relay_would_take_is_not_signed() {
        let keys = Keys::generate();
        let long = Template { content: "x".repeat(CONTENT_BYTES_MAX + 1), ..template() };
        assert_eq!(long.sign(&keys, 7), Err(TemplateError::Content(CONTENT_BYTES_MAX + 1)));
        for tags in [vec![Vec::new()], vec![vec!["t".to_owned()]; TAGS_MAX + 1], vec![vec!["x".repeat(TAG_BYTES_MAX + 1)]]] {
            assert_eq!(Template { tags, ..template() }.sign(&keys, 7), Err(TemplateError::Tags));
        }
    }
}
