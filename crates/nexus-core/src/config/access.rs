//! The section `access`: who the owner is, and the policies. Which policy applies is decided elsewhere.

use super::decode::{Decode, check_unique, nonempty, number, optional_text, word};
use super::node::Node;
use super::problem::{Faults, quoted};
use crate::access::{PLACEHOLDERS, TemplateError, check_template};
use crate::event::{CONTENT_TYPES, PeerKind, SYSTEM_CONTENT};
use serde::Deserialize;
use std::collections::BTreeSet;

/// Largest distance of a priority from 0.
const PRIORITY_MAX: i64 = 1_000_000;
/// Most requests per minute that a rate may be. A limit beyond is none, and up to here the bucket's arithmetic is exact.
pub const PER_MINUTE_MAX: u32 = 6_000;
/// Most requests that `queue.cap` may let wait.
const QUEUE_CAP_MAX: u32 = 1_000_000;
/// Minutes of a day.
const DAY_MINUTES: u16 = 24 * 60;

words! {
    /// What a policy does with the requests that it matches.
    Effect {
        Allow = "allow",
        #[default]
        Deny = "deny",
    }
}

words! {
    /// What kind of principal speaks.
    PrincipalType {
        /// Named in `access.owner`.
        Owner = "owner",
        /// A contact with an entity.
        Known = "known",
        /// Anybody else.
        #[default]
        Unknown = "unknown",
        /// The daemon itself: timer events.
        System = "system",
        /// A webhook.
        Webhook = "webhook",
        /// A contact whose entity has the relationship `agent`.
        Agent = "agent",
    }
}

words! {
    /// How much of what was said before an agent is told with a request.
    DataAccess {
        /// Nothing: no history, no memory.
        None = "none",
        /// Of the session's history the turns in which nobody but this sender spoke; no memory.
        #[default]
        Minimal = "minimal",
        /// The session's history, and a memory of the session.
        Contextual = "contextual",
        /// The session's history, and a memory of all that the agent was ever asked.
        Full = "full",
    }
}

words! {
    /// A day of the week.
    Day {
        #[default]
        Mon = "mon",
        Tue = "tue",
        Wed = "wed",
        Thu = "thu",
        Fri = "fri",
        Sat = "sat",
        Sun = "sun",
    }
}

words! {
    /// What becomes of a message that comes while its session is busy.
    QueueMode {
        /// Every message is answered, in order.
        #[default]
        Followup = "followup",
        /// What waits becomes one run.
        Collect = "collect",
        /// The running turn is aborted.
        Interrupt = "interrupt",
        /// It is given to the running agent where that takes input, else as interrupt.
        Steer = "steer",
    }
}

words! {
    /// Which of too many waiting messages is dropped.
    QueueDrop {
        /// The oldest of those that wait.
        #[default]
        Old = "old",
        /// The one that comes.
        New = "new",
    }
}

section! {
    /// Who may use the daemon, and how.
    Access {
        /// The owner's identities, each `channel:identifier`; the identifier may be `*`.
        owner: Vec<String> = Vec::new() => identities;
        /// What happens to requests that no policy matches.
        default: Effect = Effect::default();
        /// The owner's messages `/stop`, `/new` and `/status` are taken as commands, and no agent gets them.
        owner_words: bool = true;
        /// Rules for requests; the highest priority that matches decides.
        policies: Vec<Policy> = Vec::new() => policy_list;
    }
    derived {
        /// The keys of `nostr.whitelist`, as 64 hexadecimal digits.
        whitelist: BTreeSet<String> = BTreeSet::new();
    }
}

section! {
    /// One rule.
    Policy {
        /// Unique name, which traces show.
        name: String = String::new() => nonempty, required "family";
        /// What it is for.
        description: Option<String> = None;
        /// Which requests it applies to; empty for all.
        match_ as "match": Match = Match::default();
        /// Whether it allows or denies them.
        effect: Effect = Effect::default(), required "allow";
        /// What an allowed request may do.
        permissions: Permissions = Permissions::default();
        /// Where an allowed request goes.
        session: SessionRoute = SessionRoute::default();
        /// What becomes of a message whose session is busy: followup, collect, interrupt or steer. `queue` is
        /// read as followup, `steer-backlog` as steer.
        queue_mode: QueueMode = QueueMode::default() => queue_mode;
        /// How many messages may wait for their session.
        queue: Queue = Queue::default();
        /// How often one sender may ask on one channel, where this policy decides; as often as they like without it.
        rate: Option<Rate> = None;
        /// Of several that match, the highest decides.
        priority: i64 [-PRIORITY_MAX..=PRIORITY_MAX] = 0;
    }
}

section! {
    /// Which requests a policy applies to.
    Match {
        /// Who speaks; all that is given must fit.
        principal: PrincipalMatch = PrincipalMatch::default();
        /// Where and when; one of them must fit, and none means always.
        conditions: Vec<Condition> = Vec::new();
    }
}

section! {
    /// Who speaks.
    PrincipalMatch {
        /// Kind of principal: owner, known, unknown, system, webhook or agent.
        type_ as "type": Option<PrincipalType> = None;
        /// Relationship recorded for the contact.
        relationship: Option<String> = None => optional_text;
        /// Tags that the contact must all have.
        tags: Vec<String> = Vec::new();
        /// Entity id of the contact.
        entity: Option<String> = None => optional_text;
        /// Name recorded for the contact; what somebody unknown calls himself doesn't count.
        name: Option<String> = None => optional_text;
    }
}

section! {
    /// Where and when; all that is given must fit.
    Condition check hours {
        /// Channel of the event.
        channel: Option<String> = None => optional_text;
        /// Account that received the event.
        account: Option<String> = None => optional_text;
        /// Where it was said: dm, group or channel.
        peer_kind: Option<PeerKind> = None;
        /// Content types of the event, such as text, image or reaction; what begins with `system/` may end in `*`. None means all.
        /// A reaction or a `system/...` event of an adapter goes to an agent only by a policy that names it here.
        content_type: Vec<String> = Vec::new() => content_types;
        /// Hours of the day as `HH:MM-HH:MM`, the end not included; may pass midnight.
        time: Option<String> = None => optional_text;
        /// Days of the week: mon, tue, wed, thu, fri, sat, sun; none means all.
        days: Vec<Day> = Vec::new();
    }
    derived {
        /// `time`, parsed.
        time_range: Option<TimeRange> = None;
    }
}

section! {
    /// What an allowed request may do.
    Permissions also(Deserialize) {
        /// Tools that the agent may use.
        tools: Tools = Tools::default();
        /// Names of credentials, which the agent and plugins are told of. Information only: the daemon hands out none by it,
        /// and refuses none.
        credentials: Vec<String> = Vec::new();
        /// How much of what was said before the agent is told: none, minimal (of the session the turns in which nobody else
        /// spoke), contextual (the session) or full (the session, and all that it was ever asked).
        data_access: DataAccess = DataAccess::default();
    }
}

section! {
    /// Tools that an agent may use; a denied tool is denied even if it is allowed too.
    Tools also(Deserialize) {
        /// Allowed tools.
        allow: Vec<String> = Vec::new();
        /// Denied tools.
        deny: Vec<String> = Vec::new();
    }
}

section! {
    /// How many messages may wait for their session.
    Queue also(Deserialize) {
        /// So many at most, 1 to 1000000; without it as many as come.
        cap: Option<u32> = None => queue_cap;
        /// Which is dropped when it is one too many, old or new; its request ends as expired.
        drop: QueueDrop = QueueDrop::default();
    }
}

section! {
    /// Where an allowed request goes.
    SessionRoute {
        /// Agent that answers, instead of `agents.default`.
        agent: Option<String> = None => optional_text;
        /// Session label, instead of the one by sender or group; may name {channel}, {account}, {sender_id},
        /// {peer_id}, {entity_id} and {thread_id}.
        key: Option<String> = None => template;
    }
}

section! {
    /// How often one sender may ask on one channel.
    Rate {
        /// So many at once, and then one whenever a minute's part has passed.
        per_minute: u32 [1..=PER_MINUTE_MAX] = 60, required "60";
    }
}

/// Hours of a day, in minutes from midnight, the end not included. It passes midnight when the end
/// comes before the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeRange {
    /// 0 to 1439.
    pub start_minute: u16,
    /// 0 to 1440; never equal to the start.
    pub end_minute: u16,
}

impl TimeRange {
    /// Reads `HH:MM-HH:MM`, where the end may be `24:00`; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (start, end) = text.split_once('-')?;
        let (start_minute, end_minute) = (minute_of_day(start.trim())?, minute_of_day(end.trim())?);
        let is_range = start_minute < DAY_MINUTES && start_minute != end_minute;
        is_range.then_some(Self { start_minute, end_minute })
    }

    /// Whether a minute of the day (0 to 1439) lies in the range.
    pub fn contains(self, minute: u16) -> bool {
        if self.start_minute < self.end_minute {
            (self.start_minute..self.end_minute).contains(&minute)
        } else {
            minute >= self.start_minute || minute < self.end_minute
        }
    }
}

impl Queue {
    /// Nothing is ever dropped.
    pub fn is_unlimited(&self) -> bool {
        self.cap.is_none()
    }
}

fn minute_of_day(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let is_two_digits = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
    if !is_two_digits(hours) || !is_two_digits(minutes) {
        return None;
    }
    let (hours, minutes) = (hours.parse::<u16>().ok()?, minutes.parse::<u16>().ok()?);
    let minute = hours * 60 + minutes;
    (minutes < 60 && minute <= DAY_MINUTES).then_some(minute)
}

fn hours(mut condition: Condition, node: &Node, faults: &mut Faults) -> Condition {
    if let (Some(text), Some(time)) = (&condition.time, node.get("time")) {
        let range = TimeRange::parse(text);
        if range.is_none() {
            let text = quoted(text);
            faults.error(
                time.at,
                format!("`time` {text} is no span of hours; write HH:MM-HH:MM with two different times, as in \"23:00-08:00\""),
            );
        }
        condition.time_range = range;
    }
    condition
}

fn identities(node: &Node, name: &str, faults: &mut Faults) -> Option<Vec<String>> {
    let owner = Vec::decode(node, name, faults)?;
    for item in node.items() {
        let Some(text) = item.text() else { continue };
        let is_identity = text.split_once(':').is_some_and(|(channel, identifier)| {
            !channel.is_empty() && !channel.contains(|c: char| c.is_whitespace() || c == '*') && !identifier.trim().is_empty()
        });
        if !is_identity {
            let text = quoted(text);
            faults.error(
                item.at,
                format!("`{name}` {text} is no identity; write channel:identifier, as in \"cli:*\" or \"imessage:+15551234567\""),
            );
        }
    }
    Some(owner)
}

/// A name that no event can have is a mistake: it would never match.
fn content_types(node: &Node, name: &str, faults: &mut Faults) -> Option<Vec<String>> {
    let types = Vec::<String>::decode(node, name, faults)?;
    for item in node.items() {
        let Some(text) = item.text() else { continue };
        if !is_content_type(text) {
            let text = quoted(text);
            let types = CONTENT_TYPES.join(", ");
            faults.error(item.at, format!("`{name}` {text} is no content type; write {types}, or system/..., whose end may be `*`"));
        }
    }
    Some(types)
}

/// Whether it names content types: one, or all that begin with what stands before the `*` at its end.
fn is_content_type(text: &str) -> bool {
    CONTENT_TYPES.contains(&text)
        || text.strip_prefix(SYSTEM_CONTENT).is_some_and(|rest| {
            let stem = rest.strip_suffix('*').unwrap_or(rest);
            !rest.is_empty() && !stem.contains('*')
        })
}

/// Other gateways' words are understood as well.
fn queue_mode(node: &Node, name: &str, faults: &mut Faults) -> Option<QueueMode> {
    let parse = |text: &str| match text {
        "queue" => Some(QueueMode::Followup),
        "steer-backlog" => Some(QueueMode::Steer),
        other => QueueMode::parse(other),
    };
    word(node, name, QueueMode::WORDS, parse, faults)
}

fn queue_cap(node: &Node, name: &str, faults: &mut Faults) -> Option<Option<u32>> {
    number(node, name, &(1..=QUEUE_CAP_MAX), faults).map(Some)
}

/// A session template. It names parts of the event and of its sender, never another template: so none can
/// lead back to itself.
fn template(node: &Node, name: &str, faults: &mut Faults) -> Option<Option<String>> {
    let text = nonempty(node, name, faults)?;
    let what = match check_template(&text) {
        Ok(()) => return Some(Some(text)),
        Err(TemplateError::UnknownPlaceholder { name }) => format!("names {}", quoted(&format!("{{{name}}}"))),
        Err(TemplateError::Unclosed { rest }) => format!("has an open brace at {}", quoted(&rest)),
    };
    let known = PLACEHOLDERS.map(|name| format!("{{{name}}}")).join(" ");
    faults.error(node.at, format!("`{name}` {what}; a session template may name {known}"));
    None
}

/// Without a key that is misspelt a policy would fit more requests, or deny less, than is meant.
fn policy_list(node: &Node, name: &str, faults: &mut Faults) -> Option<Vec<Policy>> {
    let policies = faults.strictly(|faults| Vec::<Policy>::decode(node, name, faults))?;
    check_unique(node, "name", faults);
    Some(policies)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_range_may_pass_midnight() {
        let night = TimeRange::parse("23:00-08:00").unwrap();
        assert_eq!(night, TimeRange { start_minute: 1380, end_minute: 480 });
        for (minute, inside) in [(1379, false), (1380, true), (1439, true), (0, true), (479, true), (480, false)] {
            assert_eq!(night.contains(minute), inside, "{minute}");
        }
        let evening = TimeRange::parse("18:00 - 24:00").unwrap();
        assert!(evening.contains(1439) && !evening.contains(0));
    }

    #[test]
    fn a_content_type_is_one_that_an_event_can_have() {
        for text in ["text", "reaction", "system/*", "system/member_*", "system/member_joined"] {
            assert!(is_content_type(text), "{text}");
        }
        for text in ["", "*", "rea*", "Text", "system", "system/", "system/*joined", "system/**", "exe"] {
            assert!(!is_content_type(text), "{text}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "8-9", "08:00", "08:00-08:00", "24:00-08:00", "08:60-09:00", "25:00-26:00", "+8:00-09:00", "08:00-09:00-10:00"] {
            assert_eq!(TimeRange::parse(text), None, "{text:?}");
        }
    }
}
