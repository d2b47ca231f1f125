//! What is asked of a relay, and whether an event is an answer to it (NIP-01). A relay may send anything; only
//! what was asked for is looked at any further.

use super::codec::{Outline, tag_value};
use ::nostr::event::Event;
use serde::ser::{Serialize, SerializeMap, Serializer};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Events by what they are; what is left out doesn't matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub ids: Option<BTreeSet<String>>,
    pub authors: Option<Arc<BTreeSet<String>>>,
    pub kinds: Option<BTreeSet<u16>>,
    /// A tag's letter, and the values of which one must be there.
    pub tag: Option<(char, BTreeSet<String>)>,
    /// Unix seconds, both inclusive.
    pub since: Option<u64>,
    pub until: Option<u64>,
    pub limit: Option<u32>,
}

impl Filter {
    /// Whether an event can be an answer, by all but its author and its tags.
    pub(crate) fn fits(&self, outline: &Outline<'_>) -> bool {
        self.ids.as_ref().is_none_or(|ids| ids.contains(&*outline.id))
            && self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&outline.kind))
            && self.spans(outline.created_at)
    }

    /// Whether a time, in Unix seconds, is within what was asked for.
    pub(crate) fn spans(&self, created_at: u64) -> bool {
        self.since.is_none_or(|since| created_at >= since) && self.until.is_none_or(|until| created_at <= until)
    }

    /// Whether its author was asked for.
    pub(crate) fn is_author(&self, pubkey: &str) -> bool {
        self.authors.as_ref().is_none_or(|authors| authors.contains(pubkey))
    }

    /// Whether it has the tag that was asked for.
    pub(crate) fn is_tagged(&self, event: &Event) -> bool {
        let Some((letter, wanted)) = &self.tag else { return true };
        let mut name = [0; 4];
        let name: &str = letter.encode_utf8(&mut name);
        event.tags.iter().any(|tag| tag.kind() == name && tag.content().is_some_and(|value| wanted.contains(value)))
            // An addressable event without its tag has an empty identifier.
            || (*letter == 'd' && wanted.contains("") && tag_value(event, "d").is_none())
    }

    /// Eight digits that differ when what is asked for does; times and limit don't count.
    pub(crate) fn digest(&self) -> String {
        let lasting = Self { since: None, until: None, limit: None, ..self.clone() };
        let text = serde_json::to_string(&lasting).expect("texts and numbers are JSON");
        hex::encode(&Sha256::digest(text.as_bytes())[..4])
    }
}

impl Serialize for Filter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { ids, authors, kinds, tag, since, until, limit } = self;
        let mut map = serializer.serialize_map(None)?;
        if let Some(ids) = ids {
            map.serialize_entry("ids", ids)?;
        }
        if let Some(authors) = authors {
            map.serialize_entry("authors", &**authors)?;
        }
        if let Some(kinds) = kinds {
            map.serialize_entry("kinds", kinds)?;
        }
        if let Some((letter, values)) = tag {
            map.serialize_entry(&format!("#{letter}"), values)?;
        }
        if let Some(since) = since {
            map.serialize_entry("since", since)?;
        }
        if let Some(until) = until {
            map.serialize_entry("until", until)?;
        }
        if let Some(limit) = limit {
            map.serialize_entry("limit", limit)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ::nostr::event::{EventBuilder, FinalizeEvent, Kind, Tag};
    use ::nostr::key::Keys;

    #[test]
    fn it_is_written_as_relays_read_it() {
        let filter = Filter {
            kinds: Some(BTreeSet::from([1, 31_933])),
            tag: Some(('p', BTreeSet::from(["ab".to_owned()]))),
            since: Some(7),
            limit: Some(1),
            ..Filter::default()
        };
        assert_eq!(serde_json::to_string(&filter).unwrap(), r##"{"kinds":[1,31933],"#p":["ab"],"since":7,"limit":1}"##);
        assert_eq!(serde_json::to_string(&Filter::default()).unwrap(), "{}");
    }

    #[test]
    fn its_digest_is_that_of_what_is_asked_for_and_not_of_when() {
        let one = Filter { kinds: Some(BTreeSet::from([1])), ..Filter::default() };
        assert_eq!(one.digest(), Filter { since: Some(3), limit: Some(2), ..one.clone() }.digest());
        assert_ne!(one.digest(), Filter::default().digest());
        assert_eq!(one.digest().len(), 8);
    }

    #[test]
    fn tags_are_compared_by_their_first_value() {
        let event = EventBuilder::new(Kind::from_u16(31_933), "").tag(Tag::custom("p", ["a", "b"])).finalize(&Keys::generate()).unwrap();
        let filter = |letter: char, value: &str| Filter { tag: Some((letter, BTreeSet::from([value.to_owned()]))), ..Filter::default() };
        assert!(filter('p', "a").is_tagged(&event));
        assert!(!filter('p', "b").is_tagged(&event));
        assert!(filter('d', "").is_tagged(&event), "no tag is an empty identifier");
        assert!(Filter::default().is_tagged(&event));
    }
}
