//! Who may do what: a principal and its ask against the policies, with the reason for every step,
//! and the label of the session a message belongs to.
//!
//! Pure decisions. It never looks anybody up, never reads a clock (local time comes with the ask)
//! and never enforces: callers do. Requirement: resolveAccess; contract: "The request".

use crate::config::{Access, Condition, DataAccess, Day, Effect, Match, Permissions, Policy, PrincipalMatch};
use crate::config::{PrincipalType, Queue, QueueMode, TimeRange, Tools, public_key_hex};
use crate::event::{PeerKind, is_incidental};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod label;
mod rate;

#[cfg(test)]
mod tests;

pub use label::{Conversation, LABEL_BYTES_MAX, PLACEHOLDERS, TemplateError, check_template, session_label};
pub use rate::{BUCKETS_MAX, COUNTED_MAX, Rates};

/// In a list of tools or credentials: all of them.
pub const EVERYTHING: &str = "*";

/// The channel of Nostr.
const NOSTR_CHANNEL: &str = "nostr";
/// The tag of a principal whose key is in `nostr.whitelist`, and the name of the policy that lets it in.
pub const WHITELIST: &str = "whitelist";

/// Who asks, as identity resolution found.
#[derive(Debug, Clone, PartialEq)]
pub struct Principal {
    pub type_: PrincipalType,
    pub entity_id: Option<String>,
    /// The name the contact is known by.
    pub name: Option<String>,
    pub relationship: Option<String>,
    pub tags: Vec<String>,
    /// Pairs of channel and sender known to be this principal.
    pub identifiers: Vec<(String, String)>,
}

/// What is asked, where, and when by the local clock.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    pub channel: String,
    pub account: String,
    pub peer_kind: PeerKind,
    pub content_type: String,
    /// Local minutes since midnight, 0 to 1439.
    pub minute_of_day: u16,
    /// The local day of the week.
    pub day: Day,
}

/// The answer, with what it was decided by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Decision {
    #[serde(rename = "decision")]
    pub effect: Effect,
    #[serde(default)]
    pub matched_policy: Option<String>,
    pub permissions: Permissions,
    /// The agent the matched policy routes to.
    #[serde(default)]
    pub agent: Option<String>,
    /// The matched policy's session template, for [`session_label`].
    #[serde(default)]
    pub session_key: Option<String>,
    /// What becomes of the message while its session is busy, as the matched policy says.
    #[serde(default)]
    pub queue_mode: QueueMode,
    /// How many may wait for their session.
    #[serde(default, skip_serializing_if = "Queue::is_unlimited")]
    pub queue: Queue,
    /// How often a minute the matched policy lets this principal ask on this channel. Whoever carries the
    /// decision out counts, with [`Rates`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<u32>,
    /// A policy that allows it names its content type.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub names_content_type: bool,
    /// One sentence for each policy in config order, then one for the outcome.
    #[serde(default)]
    pub why: Vec<String>,
}

impl Decision {
    /// The sentence that decided.
    pub fn reason(&self) -> &str {
        self.why.last().map_or("", String::as_str)
    }

    /// Whether an event of this kind, let in so, may ask an agent.
    pub fn wakes_agent(&self, content_type: &str) -> bool {
        self.names_content_type || !is_incidental(content_type)
    }

    /// The same ask, denied since it comes too often for the policy that would have let it in.
    #[must_use]
    pub fn over_rate(mut self) -> Self {
        let (policy, per_minute) = (self.matched_policy.as_deref().unwrap_or_default(), self.per_minute.unwrap_or_default());
        let reason = format!("rate limit of policy `{policy}`: {per_minute} per minute");
        self.why.push(reason);
        Self { per_minute: self.per_minute, ..denied(self.matched_policy, self.why) }
    }
}

/// Whether one of these pairs of channel and sender is the owner. An owner pattern is
/// `channel:identifier`; only a whole identifier may be `*`. Both are compared byte by byte.
pub fn is_owner(access: &Access, identifiers: &[(String, String)]) -> bool {
    access.owner.iter().filter_map(|pattern| pattern.split_once(':')).any(|(channel, wanted)| {
        identifiers.iter().any(|(from, sender)| !sender.is_empty() && from == channel && is_same(channel, wanted, sender))
    })
}

/// Keys may be written as npub too.
fn is_same(channel: &str, wanted: &str, sender: &str) -> bool {
    wanted == EVERYTHING || wanted == sender || (channel == NOSTR_CHANNEL && public_key_hex(wanted).is_some_and(|key| key == sender))
}

/// The policy for keys of `nostr.whitelist`: built in, behind all others. One of that name in `access.policies` takes
/// its place, and one that denies wins over it.
fn whitelist_policy(access: &Access) -> Option<Policy> {
    let is_wanted = !access.whitelist.is_empty() && access.policies.iter().all(|policy| policy.name != WHITELIST);
    is_wanted.then(|| Policy {
        name: WHITELIST.to_owned(),
        match_: Match {
            principal: PrincipalMatch { type_: Some(PrincipalType::Known), tags: vec![WHITELIST.to_owned()], ..PrincipalMatch::default() },
            conditions: vec![Condition { channel: Some(NOSTR_CHANNEL.to_owned()), ..Condition::default() }],
        },
        effect: Effect::Allow,
        // A project is one conversation of all its authors.
        permissions: Permissions { data_access: DataAccess::Contextual, ..Permissions::default() },
        priority: i64::MIN,
        ..Policy::default()
    })
}

/// Decides. Every policy is looked at: one that denies wins whatever the priorities; among those
/// that allow, the highest priority (then the first in config order) routes, and all of them grant
/// together, with the least data access among them. Owner and system principals need no policy.
pub fn decide(access: &Access, principal: &Principal, ask: &Ask) -> Decision {
    let mut why = Vec::with_capacity(access.policies.len() + 1);
    let mut allows = Vec::new();
    let mut denies = Vec::new();
    let built_in = whitelist_policy(access);
    for policy in access.policies.iter().chain(&built_in) {
        let name = &policy.name;
        match mismatch(policy, principal, ask) {
            Some(reason) => why.push(format!("policy `{name}` does not apply: {reason}")),
            None => match policy.effect {
                Effect::Allow => {
                    why.push(format!("policy `{name}` applies and allows, with priority {}", policy.priority));
                    allows.push(policy);
                }
                Effect::Deny => {
                    why.push(format!("policy `{name}` applies and denies"));
                    denies.push(policy);
                }
            },
        }
    }
    if let Some(policy) = foremost(&denies) {
        why.push(format!("denied by policy `{}`: a deny wins over every allow", policy.name));
        return denied(Some(policy.name.clone()), why);
    }
    let mut permissions = granted(&allows);
    if needs_no_policy(principal.type_) {
        why.push(format!("allowed: a principal of type {} needs no policy", principal.type_));
        unite(&mut permissions.tools.allow, &[EVERYTHING.to_owned()]);
        unite(&mut permissions.credentials, &[EVERYTHING.to_owned()]);
        permissions.data_access = DataAccess::Full;
    } else if let Some(policy) = foremost(&allows) {
        why.push(format!("allowed by policy `{}`", policy.name));
    } else {
        match access.default {
            Effect::Allow => why.push("allowed by `access.default`: no policy applies".to_owned()),
            Effect::Deny => {
                why.push("denied by `access.default`: no policy applies".to_owned());
                return denied(None, why);
            }
        }
    }
    let names_content_type = allows.iter().any(|policy| names_content_type(policy, ask));
    Decision { names_content_type, ..allowed(foremost(&allows), permissions, why) }
}

/// Whether a condition that holds names the kind of the event.
fn names_content_type(policy: &Policy, ask: &Ask) -> bool {
    let conditions = &policy.match_.conditions;
    conditions.iter().any(|condition| !condition.content_type.is_empty() && condition_mismatch(condition, ask).is_none())
}

fn denied(matched_policy: Option<String>, why: Vec<String>) -> Decision {
    Decision {
        effect: Effect::Deny,
        matched_policy,
        permissions: nothing(),
        agent: None,
        session_key: None,
        queue_mode: QueueMode::default(),
        queue: Queue::default(),
        per_minute: None,
        names_content_type: false,
        why,
    }
}

fn allowed(policy: Option<&Policy>, permissions: Permissions, why: Vec<String>) -> Decision {
    Decision {
        effect: Effect::Allow,
        matched_policy: policy.map(|policy| policy.name.clone()),
        permissions,
        agent: policy.and_then(|policy| policy.session.agent.clone()),
        session_key: policy.and_then(|policy| policy.session.key.clone()),
        queue_mode: policy.map(|policy| policy.queue_mode).unwrap_or_default(),
        queue: policy.map(|policy| policy.queue.clone()).unwrap_or_default(),
        per_minute: policy.and_then(|policy| policy.rate.as_ref()).map(|rate| rate.per_minute),
        names_content_type: false,
        why,
    }
}

fn nothing() -> Permissions {
    Permissions { tools: Tools::default(), credentials: Vec::new(), data_access: DataAccess::None }
}

/// What these policies grant together; the least that is useful when there are none.
fn granted(allows: &[&Policy]) -> Permissions {
    let mut all = Permissions::default();
    for policy in allows {
        unite(&mut all.tools.allow, &policy.permissions.tools.allow);
        unite(&mut all.tools.deny, &policy.permissions.tools.deny);
        unite(&mut all.credentials, &policy.permissions.credentials);
    }
    if let Some(least) = allows.iter().map(|policy| policy.permissions.data_access).min() {
        all.data_access = least;
    }
    all
}

fn unite(into: &mut Vec<String>, from: &[String]) {
    for name in from {
        if !into.contains(name) {
            into.push(name.clone());
        }
    }
}

/// The policy of the highest priority, the first of equals.
fn foremost<'a>(policies: &[&'a Policy]) -> Option<&'a Policy> {
    policies.iter().copied().reduce(|best, next| if next.priority > best.priority { next } else { best })
}

fn needs_no_policy(type_: PrincipalType) -> bool {
    match type_ {
        PrincipalType::Owner | PrincipalType::System => true,
        PrincipalType::Known | PrincipalType::Unknown | PrincipalType::Webhook | PrincipalType::Agent => false,
    }
}

/// Why a policy does not apply; `None` when it does.
fn mismatch(policy: &Policy, principal: &Principal, ask: &Ask) -> Option<String> {
    principal_mismatch(&policy.match_.principal, principal).or_else(|| conditions_mismatch(&policy.match_.conditions, ask))
}

/// All that is given must hold; of tags, every one. A name counts of those who are recorded: anybody else
/// may call himself what he likes.
fn principal_mismatch(wanted: &PrincipalMatch, principal: &Principal) -> Option<String> {
    let name = principal.entity_id.as_ref().and(principal.name.as_deref());
    if let Some(type_) = wanted.type_
        && type_ != principal.type_
    {
        return Some(format!("it is for principals of type {type_}, this one is {}", principal.type_));
    }
    text_mismatch("relationship", wanted.relationship.as_deref(), principal.relationship.as_deref())
        .or_else(|| text_mismatch("entity", wanted.entity.as_deref(), principal.entity_id.as_deref()))
        .or_else(|| text_mismatch("name", wanted.name.as_deref(), name))
        .or_else(|| {
            let missing = wanted.tags.iter().find(|tag| !principal.tags.contains(tag))?;
            Some(format!("the principal lacks the tag `{missing}`"))
        })
}

fn text_mismatch(what: &str, wanted: Option<&str>, found: Option<&str>) -> Option<String> {
    let wanted = wanted?;
    match found {
        Some(found) if found == wanted => None,
        Some(found) => Some(format!("it wants the {what} `{wanted}`, this principal has `{found}`")),
        None => Some(format!("it wants the {what} `{wanted}`, this principal has none")),
    }
}

/// One entry that holds is enough; no entries hold always.
fn conditions_mismatch(conditions: &[Condition], ask: &Ask) -> Option<String> {
    let mut reasons = Vec::new();
    for condition in conditions {
        reasons.push(condition_mismatch(condition, ask)?);
    }
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// All that is given in one entry must hold.
fn condition_mismatch(condition: &Condition, ask: &Ask) -> Option<String> {
    if let Some(channel) = condition.channel.as_deref()
        && channel != ask.channel
    {
        return Some(format!("the channel is `{}`, not `{channel}`", ask.channel));
    }
    if let Some(account) = condition.account.as_deref()
        && account != ask.account
    {
        return Some(format!("the account is `{}`, not `{account}`", ask.account));
    }
    if let Some(peer_kind) = condition.peer_kind
        && peer_kind != ask.peer_kind
    {
        return Some(format!("the peer is a {}, not a {}", ask.peer_kind.as_str(), peer_kind.as_str()));
    }
    let kinds = &condition.content_type;
    if !kinds.is_empty() && !kinds.iter().any(|kind| is_kind(kind, &ask.content_type)) {
        return Some(format!("the content type is `{}`, not {}", ask.content_type, kinds.join(" or ")));
    }
    when_mismatch(condition, ask)
}

fn is_kind(wanted: &str, content_type: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(stem) => content_type.starts_with(stem),
        None => content_type == wanted,
    }
}

fn when_mismatch(condition: &Condition, ask: &Ask) -> Option<String> {
    let mut day = ask.day;
    if let Some(window) = condition.time_range {
        if !window.contains(ask.minute_of_day) {
            return Some(format!("{} is outside its hours", clock(ask.minute_of_day)));
        }
        if began_yesterday(window, ask.minute_of_day) {
            day = day_before(day);
        }
    }
    let on_day = condition.days.is_empty() || condition.days.contains(&day);
    (!on_day).then(|| format!("{day} is not one of its days"))
}

/// Whether the window that holds this minute began the day before: days name when a night begins.
fn began_yesterday(window: TimeRange, minute: u16) -> bool {
    window.start_minute > window.end_minute && minute < window.end_minute
}

fn clock(minute: u16) -> String {
    format!("{:02}:{:02}", minute / 60, minute % 60)
}

fn day_before(day: Day) -> Day {
    match day {
        Day::Mon => Day::Sun,
        Day::Tue => Day::Mon,
        Day::Wed => Day::Tue,
        Day::Thu => Day::Wed,
        Day::Fri => Day::Thu,
        Day::Sat => Day::Fri,
        Day::Sun => Day::Sat,
    }
}
