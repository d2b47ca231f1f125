//! What an automation says of itself and what its handler returns: read, checked, and matched with
//! requests. It calls nobody, and keeps nothing.

use crate::config::PrincipalType;
use crate::hook::{CONTEXT_BYTES_MAX, TEXT_BYTES_MAX};
use crate::request::NexusRequest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest name of an automation or an agent, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Largest `state`, in bytes of JSON.
pub const STATE_BYTES_MAX: usize = 64 * 1024;
/// Longest description that is kept, in characters.
pub const DESCRIPTION_CHARS_MAX: usize = 500;

/// Which requests an automation is asked about. All that is given must fit; nothing given fits every request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Triggers {
    pub principal: PrincipalTrigger,
    pub event: EventTrigger,
}

/// Who speaks, as stage 2 found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PrincipalTrigger {
    /// Kind of principal.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<PrincipalType>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relationship: Option<String>,
    /// Tags that the contact must all have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Entity id of the contact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What came, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EventTrigger {
    /// Channels, such as `timer` or `webhook`; none means all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<String>,
    /// Content types, such as `text` or `system/heartbeat`; none means all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<String>,
}

impl Triggers {
    /// Reads `triggers` as a file wrote them; null for none.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn read(value: &Value) -> Result<Self, String> {
        if value.is_null() {
            return Ok(Self::default());
        }
        // A list would be read as the values in their order.
        if !value.is_object() {
            return Err("`automation.triggers` must be an object".to_owned());
        }
        Self::deserialize(value).map_err(|error| format!("`automation.triggers`: {error}"))
    }

    /// Whether `request`, which came as far as stage 3, is one of those.
    pub fn fit(&self, request: &NexusRequest) -> bool {
        let event = &request.event;
        let is_among = |list: &[String], word: &String| list.is_empty() || list.contains(word);
        is_among(&self.event.channels, &event.channel) && is_among(&self.event.types, &event.content_type) && self.principal.fits(request)
    }
}

impl PrincipalTrigger {
    fn fits(&self, request: &NexusRequest) -> bool {
        if *self == Self::default() {
            return true;
        }
        let Some(principal) = &request.principal else { return false };
        let is_same = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        self.type_.is_none_or(|type_| type_ == principal.type_)
            && is_same(&self.relationship, &principal.relationship)
            && is_same(&self.entity, &principal.entity_id)
            && is_same(&self.name, &principal.name)
            && self.tags.iter().all(|tag| principal.tags.contains(tag))
    }
}

/// What a handler returns. Nothing of it set means that it has nothing to say about the request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Advice {
    /// An agent is to answer: for events of the timer, which go to none by themselves.
    #[serde(skip_serializing_if = "is_false")]
    pub fire: bool,
    /// That agent, whatever the policy says; only with `fire`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// What the agent is asked, or, of an event that has a text, told besides; only with `fire`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// What the agent is told before the message, whoever that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enrich: Option<String>,
    /// The request has been seen to, and ends here.
    #[serde(skip_serializing_if = "is_false")]
    pub handled: bool,
    /// The answer, without any agent; the request ends with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// The automation is not asked any more, until a person enables it.
    #[serde(skip_serializing_if = "is_false")]
    pub disable: bool,
    /// What it wants to know the next time. Only of an automation that has a `state`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Value>,
}

fn is_false(value: &bool) -> bool {
    !*value
}

impl Advice {
    /// Reads what a handler returned; `remembers` says whether the automation has a state.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn read(value: Value, remembers: bool) -> Result<Self, String> {
        if !value.is_object() {
            return Err("a handler returns nothing or an object".to_owned());
        }
        let mut advice: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        for text in [&mut advice.agent, &mut advice.context, &mut advice.enrich, &mut advice.reply] {
            *text = text.take().filter(|text| !text.trim().is_empty());
        }
        advice.check_texts()?;
        if !advice.fire && (advice.agent.is_some() || advice.context.is_some()) {
            return Err("`agent` and `context` are for the agent that is fired: they need `fire: true`".to_owned());
        }
        if advice.fire && advice.ends() {
            return Err("`fire` can't go with `handled` or `reply`: either an agent answers or none".to_owned());
        }
        if advice.state.is_some() && !remembers {
            return Err("it returned a `state` and has none: give the automation one, such as `state: {}`".to_owned());
        }
        if advice.state.as_ref().is_some_and(|state| state.to_string().len() > STATE_BYTES_MAX) {
            return Err(format!("`state` has more than {STATE_BYTES_MAX} bytes of JSON"));
        }
        Ok(advice)
    }

    fn check_texts(&self) -> Result<(), String> {
        let texts = [
            ("agent", &self.agent, NAME_BYTES_MAX),
            ("context", &self.context, CONTEXT_BYTES_MAX),
            ("enrich", &self.enrich, CONTEXT_BYTES_MAX),
            ("reply", &self.reply, TEXT_BYTES_MAX),
        ];
        for (key, text, bytes_max) in texts {
            if text.as_ref().is_some_and(|text| text.len() > bytes_max || text.contains('\0')) {
                return Err(format!("`{key}` must be text of at most {bytes_max} bytes without NUL"));
            }
        }
        Ok(())
    }

    /// Whether the request ends with it.
    pub fn ends(&self) -> bool {
        self.handled || self.reply.is_some()
    }

    /// Whether it must be told from then on what it said, and not be asked again about the same event.
    pub fn lasts(&self) -> bool {
        self.disable || self.state.is_some()
    }

    /// What it did, in the words of its keys.
    pub fn words(&self) -> Vec<String> {
        let said = [
            ("fire", self.fire),
            ("enrich", self.enrich.is_some()),
            ("handled", self.handled),
            ("reply", self.reply.is_some()),
            ("disable", self.disable),
            ("state", self.state.is_some()),
        ];
        said.into_iter().filter(|(_, is_said)| *is_said).map(|(word, _)| word.to_owned()).collect()
    }
}

/// Whether an automation can have this name: as names in the configuration are, since it becomes a key there,
/// a file's name and a part of keys of messages.
pub fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._@+-".contains(c);
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.starts_with(['-', '.']) && text.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::event::{Event, PeerKind};
    use crate::request::PrincipalSection;
    use serde_json::json;

    fn request() -> NexusRequest {
        let event = Event {
            event_id: "fake:1".to_owned(),
            timestamp: 1,
            content: "hello".to_owned(),
            content_type: "text".to_owned(),
            channel: "fake".to_owned(),
            account_id: "me".to_owned(),
            sender_id: "ann".to_owned(),
            peer_id: "ann".to_owned(),
            peer_kind: PeerKind::Dm,
            sender_name: None,
            thread_id: None,
            reply_to_id: None,
            attachments: Value::Null,
            metadata: Value::Null,
        };
        let mut request = NexusRequest::new("req_1".to_owned(), 1, 0, event);
        request.principal = Some(PrincipalSection {
            type_: PrincipalType::Known,
            entity_id: Some("e1".to_owned()),
            name: Some("Ann".to_owned()),
            relationship: Some("family".to_owned()),
            tags: vec!["trusted".to_owned(), "near".to_owned()],
            identities: Vec::new(),
        });
        request
    }

    fn fits(triggers: &Value) -> bool {
        Triggers::read(triggers).unwrap().fit(&request())
    }

    #[test]
    fn triggers_fit_when_all_that_is_given_does() {
        for triggers in [
            Value::Null,
            json!({}),
            json!({ "event": {} }),
            json!({ "event": { "channels": ["other", "fake"], "types": ["text"] } }),
            json!({ "principal": { "type": "known", "tags": ["near"], "entity": "e1", "name": "Ann", "relationship": "family" } }),
        ] {
            assert!(fits(&triggers), "{triggers}");
        }
        for triggers in [
            json!({ "event": { "channels": ["other"] } }),
            json!({ "event": { "channels": ["fake"], "types": ["image"] } }),
            json!({ "principal": { "type": "owner" } }),
            json!({ "principal": { "tags": ["near", "far"] } }),
            json!({ "principal": { "entity": "e2" } }),
            json!({ "principal": { "name": "Bob" }, "event": { "channels": ["fake"] } }),
        ] {
            assert!(!fits(&triggers), "{triggers}");
        }
    }

    #[test]
    fn a_mistake_in_triggers_is_told_with_its_key() {
        for (triggers, told) in [
            (json!({ "events": {} }), "unknown field `events`"),
            (json!({ "event": { "channels": "timer" } }), "expected a sequence"),
            (json!({ "principal": { "type": "king" } }), "unknown variant `king`"),
            (json!([]), "`automation.triggers` must be an object"),
        ] {
            let error = Triggers::read(&triggers).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn advice_is_read_whole_or_not_at_all() {
        let advice = Advice::read(json!({ "fire": true, "agent": "helper", "context": "look", "state": { "n": 1 } }), true).unwrap();
        assert_eq!((advice.fire, advice.agent.as_deref(), advice.lasts(), advice.ends()), (true, Some("helper"), true, false));
        assert_eq!(advice.words(), ["fire", "state"]);
        let advice = Advice::read(json!({ "reply": "done", "enrich": " " }), false).unwrap();
        assert_eq!((advice.ends(), advice.lasts(), advice.enrich), (true, false, None));
        assert_eq!(Advice::read(json!({}), false).unwrap(), Advice::default());
        for (value, told) in [
            (json!([true]), "nothing or an object"),
            (json!({ "fired": true }), "unknown field `fired`"),
            (json!({ "agent": "helper" }), "need `fire: true`"),
            (json!({ "fire": true, "reply": "x" }), "can't go with"),
            (json!({ "fire": 1 }), "expected a boolean"),
            (json!({ "state": {} }), "give the automation one"),
            (json!({ "enrich": "a\u{0}" }), "without NUL"),
            (json!({ "fire": true, "agent": "a".repeat(NAME_BYTES_MAX + 1) }), "`agent` must be"),
        ] {
            let error = Advice::read(value, false).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
        let large = json!({ "state": "x".repeat(STATE_BYTES_MAX) });
        assert!(Advice::read(large, true).unwrap_err().contains("bytes of JSON"));
        assert_eq!(Advice::read(json!({ "state": null }), false).unwrap().state, None, "null is nothing");
    }

    #[test]
    fn names_are_as_in_the_configuration() {
        assert!(is_name("daily-check.2"));
        for name in ["", "-x", ".x", "a b", "a/b", "a:b", "ä", &"a".repeat(NAME_BYTES_MAX + 1)] {
            assert!(!is_name(name), "{name}");
        }
    }
}
