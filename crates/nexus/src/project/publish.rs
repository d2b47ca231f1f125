//! What the process of a project may have published, and as whom. Keys stay in the daemon: the process asks, and
//! what is within these rules is signed and goes to the outbox. It never looks at what an event says.

use super::protocol::Publish;
use crate::clock;
use crate::error_text::describe;
use crate::nostr::{Nostr, Template};
use std::sync::{Mutex, PoisonError};

/// What an agent says in a conversation, and what it is called.
const CONVERSATION_KINDS: &[u16] = &[1, 11, 513, 1111];
/// What tells how an agent is; relays don't keep it.
const RUNTIME_KINDS: &[u16] = &[24_000, 24_010, 24_011, 24_012, 24_135];
/// Ephemeral kinds (NIP-01).
const EPHEMERAL: std::ops::Range<u16> = 20_000..30_000;
/// Events that one process may have published per minute, and as many at once.
const PUBLISHES_PER_MINUTE: u32 = 120;
/// The same for those that relays don't keep.
const ANNOUNCEMENTS_PER_MINUTE: u32 = 1200;
/// Longest content, in bytes: with its tags it fits into what a relay takes.
const CONTENT_BYTES_MAX: usize = 56 * 1024;
/// Most tags, and bytes of them together.
const TAGS_MAX: usize = 500;
const TAG_BYTES_MAX: usize = 32 * 1024;

/// Whether relays don't keep it: nothing is lost with it.
pub(super) fn is_ephemeral(template: &Template) -> bool {
    EPHEMERAL.contains(&template.kind)
}

/// Publishes for one process.
#[derive(Debug)]
pub(super) struct Publisher {
    nostr: Nostr,
    slug: String,
    /// Slugs of the agents that may sign.
    agents: Vec<String>,
    rates: Mutex<(Bucket, Bucket)>,
}

impl Publisher {
    pub(super) fn new(nostr: Nostr, slug: String, agents: Vec<String>) -> Self {
        let now_ms = clock::mono_ms();
        let rates = Mutex::new((Bucket::full(PUBLISHES_PER_MINUTE, now_ms), Bucket::full(ANNOUNCEMENTS_PER_MINUTE, now_ms)));
        Self { nostr, slug, agents, rates }
    }

    /// Signs and sends; the id of the event, or nothing for one that relays don't keep. The same `once` again is
    /// the same event.
    ///
    /// # Errors
    /// A sentence for the process that asked.
    pub(super) async fn publish(&self, publish: &Publish, once: &str) -> Result<Option<String>, String> {
        let Publish { agent, template, .. } = publish;
        check(agent, &self.agents, template)?;
        self.take(template)?;
        let key = format!("{}/{agent}", self.slug);
        if is_ephemeral(template) {
            self.nostr.announce(&key, template.clone());
            return Ok(None);
        }
        let once = format!("project/{}/{once}", self.slug);
        let id = self.nostr.publish(&key, template.clone(), &once).await.map_err(|error| describe(&error))?;
        crate::torture::point("project.published");
        Ok(Some(id))
    }

    fn take(&self, template: &Template) -> Result<(), String> {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let (kept, passing) = &mut *rates;
        let bucket = if is_ephemeral(template) { passing } else { kept };
        match bucket.take(clock::mono_ms()) {
            true => Ok(()),
            false => Err(format!("more than {} events of this sort per minute; try again later", bucket.per_minute)),
        }
    }
}

fn check(agent: &str, agents: &[String], template: &Template) -> Result<(), String> {
    if !agents.iter().any(|known| known == agent) {
        return Err("`as` names no agent of this project".to_owned());
    }
    if !CONVERSATION_KINDS.contains(&template.kind) && !RUNTIME_KINDS.contains(&template.kind) {
        return Err(format!("kind {} may not be published by a project", template.kind));
    }
    if template.content.len() > CONTENT_BYTES_MAX {
        return Err(format!("content of {} bytes; {CONTENT_BYTES_MAX} may be published", template.content.len()));
    }
    let bytes: usize = template.tags.iter().flatten().map(String::len).sum();
    if template.tags.len() > TAGS_MAX || bytes > TAG_BYTES_MAX || template.tags.iter().any(Vec::is_empty) {
        return Err(format!("tags must be at most {TAGS_MAX}, with {TAG_BYTES_MAX} bytes together, and none empty"));
    }
    Ok(())
}

/// One token: what a rate of one per minute brings in a minute, so that nothing is lost to rounding.
const TOKEN: u64 = 60_000;

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    per_minute: u32,
    /// In parts of [`TOKEN`].
    filled: u64,
    at_ms: u64,
}

impl Bucket {
    fn full(per_minute: u32, now_ms: u64) -> Self {
        Self { per_minute, filled: u64::from(per_minute) * TOKEN, at_ms: now_ms }
    }

    fn take(&mut self, now_ms: u64) -> bool {
        let full = u64::from(self.per_minute) * TOKEN;
        let more = now_ms.saturating_sub(self.at_ms).saturating_mul(u64::from(self.per_minute));
        (self.filled, self.at_ms) = (self.filled.saturating_add(more).min(full), now_ms);
        let has = self.filled >= TOKEN;
        if has {
            self.filled -= TOKEN;
        }
        has
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn template(kind: u16) -> Template {
        Template { kind, content: "hello".into(), tags: vec![vec!["e".into(), "x".into()]], created_at: None }
    }

    #[test]
    fn only_own_agents_and_kinds_of_a_conversation() {
        let agents = ["pm".to_owned()];
        for kind in [1, 1111, 513, 24_010, 24_135] {
            assert_eq!(check("pm", &agents, &template(kind)), Ok(()), "{kind}");
        }
        for kind in [0, 3, 5, 4199, 31_933, 30_617, 22_242, 24_133, 24_134] {
            assert!(check("pm", &agents, &template(kind)).is_err(), "{kind}");
        }
        assert!(check("daemon", &agents, &template(1)).is_err());
        assert!(check("", &agents, &template(1)).is_err());
    }

    #[test]
    fn what_no_relay_takes_is_refused() {
        let agents = ["pm".to_owned()];
        let long = Template { content: "x".repeat(CONTENT_BYTES_MAX + 1), ..template(1) };
        let many = Template { tags: vec![vec!["t".into(), "x".into()]; TAGS_MAX + 1], ..template(1) };
        let wide = Template { tags: vec![vec!["t".into(), "x".repeat(TAG_BYTES_MAX)]], ..template(1) };
        let empty = Template { tags: vec![Vec::new()], ..template(1) };
        for template in [long, many, wide, empty] {
            assert!(check("pm", &agents, &template).is_err());
        }
    }

    #[test]
    fn a_bucket_fills_with_time_and_not_beyond_its_rim() {
        let mut bucket = Bucket::full(2, 0);
        assert_eq!([bucket.take(0), bucket.take(0), bucket.take(0)], [true, true, false]);
        assert!(!bucket.take(29_999));
        assert!(bucket.take(30_000));
        assert_eq!([bucket.take(900_000), bucket.take(900_000), bucket.take(900_000)], [true, true, false]);
        let mut asked_often = Bucket::full(60, 0);
        while asked_often.take(0) {}
        assert_eq!((1..=3000).filter(|now_ms| asked_often.take(*now_ms)).count(), 3);
    }
}
