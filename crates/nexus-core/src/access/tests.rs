//! Policies one by one, and properties over random sets of them.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::{Match, Rate, SessionRoute};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn policy(name: &str, effect: Effect, priority: i64) -> Policy {
    Policy { name: name.to_owned(), effect, priority, permissions: nothing(), ..Policy::default() }
}

fn anyone() -> PrincipalMatch {
    PrincipalMatch::default()
}

fn anytime() -> Condition {
    Condition::default()
}

fn access(default: Effect, policies: Vec<Policy>) -> Access {
    Access { owner: Vec::new(), default, owner_words: true, policies, whitelist: BTreeSet::new() }
}

fn principal(type_: PrincipalType) -> Principal {
    Principal {
        type_,
        entity_id: Some("e1".to_owned()),
        name: Some("Ann".to_owned()),
        relationship: Some("friend".to_owned()),
        tags: vec!["family".to_owned(), "vip".to_owned()],
        identifiers: Vec::new(),
    }
}

fn ask_at(day: Day, minute_of_day: u16) -> Ask {
    Ask {
        channel: "gmail".to_owned(),
        account: "me".to_owned(),
        peer_kind: PeerKind::Dm,
        content_type: "text".to_owned(),
        minute_of_day,
        day,
    }
}

fn ask() -> Ask {
    ask_at(Day::Wed, 12 * 60)
}

fn applies(matching: Match, ask: &Ask) -> bool {
    let mut only = policy("only", Effect::Allow, 0);
    only.match_ = matching;
    let decision = decide(&access(Effect::Deny, vec![only]), &principal(PrincipalType::Known), ask);
    decision.effect == Effect::Allow
}

fn applies_to(principal: PrincipalMatch) -> bool {
    applies(Match { principal, conditions: Vec::new() }, &ask())
}

fn applies_when(conditions: Vec<Condition>, ask: &Ask) -> bool {
    applies(Match { principal: anyone(), conditions }, ask)
}

#[test]
fn nothing_configured_denies_strangers_and_serves_owner_and_timer() {
    let closed = access(Effect::Deny, Vec::new());
    for type_ in [PrincipalType::Known, PrincipalType::Unknown, PrincipalType::Webhook, PrincipalType::Agent] {
        let decision = decide(&closed, &principal(type_), &ask());
        assert_eq!(decision.effect, Effect::Deny);
        assert_eq!(decision.permissions, nothing());
        assert_eq!(decision.why, ["denied by `access.default`: no policy applies"]);
    }
    for type_ in [PrincipalType::Owner, PrincipalType::System] {
        let decision = decide(&closed, &principal(type_), &ask());
        assert_eq!(decision.effect, Effect::Allow);
        assert_eq!(decision.permissions.data_access, DataAccess::Full);
        assert_eq!(decision.permissions.tools.allow, [EVERYTHING]);
        assert_eq!(decision.matched_policy, None);
    }
}

#[test]
fn an_open_default_allows_but_grants_no_tool() {
    let decision = decide(&access(Effect::Allow, Vec::new()), &principal(PrincipalType::Unknown), &ask());
    assert_eq!(decision.effect, Effect::Allow);
    assert_eq!(decision.permissions, Permissions::default());
    assert_eq!(decision.permissions.tools.allow, [""; 0]);
}

#[test]
fn a_deny_wins_over_a_higher_priority_and_over_the_owner() {
    let policies = vec![policy("open", Effect::Allow, 100), policy("shut", Effect::Deny, -5)];
    for type_ in [PrincipalType::Owner, PrincipalType::System, PrincipalType::Known] {
        let decision = decide(&access(Effect::Allow, policies.clone()), &principal(type_), &ask());
        assert_eq!(decision.effect, Effect::Deny);
        assert_eq!(decision.matched_policy.as_deref(), Some("shut"));
        assert_eq!(decision.permissions, nothing());
    }
}

#[test]
fn the_foremost_allow_routes_and_all_allows_grant() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut low = policy("low", Effect::Allow, 1);
    low.permissions = Permissions {
        tools: Tools { allow: names(&["read", "search"]), deny: names(&["shell"]) },
        credentials: names(&["google"]),
        data_access: DataAccess::Contextual,
    };
    low.session = SessionRoute { agent: Some("low-agent".to_owned()), key: Some("low-key".to_owned()) };
    let mut high = policy("high", Effect::Allow, 2);
    high.permissions = Permissions {
        tools: Tools { allow: names(&["search", "write"]), deny: names(&["rm"]) },
        credentials: names(&["google", "github"]),
        data_access: DataAccess::Full,
    };
    high.session = SessionRoute { agent: Some("high-agent".to_owned()), key: None };
    let mut equal = high.clone();
    equal.name = "equal".to_owned();
    equal.session.agent = Some("equal-agent".to_owned());

    let decision = decide(&access(Effect::Deny, vec![low, high, equal]), &principal(PrincipalType::Known), &ask());
    assert_eq!(decision.matched_policy.as_deref(), Some("high"));
    assert_eq!(decision.agent.as_deref(), Some("high-agent"));
    assert_eq!(decision.session_key, None, "routing is never mixed from two policies");
    assert_eq!(decision.permissions.tools.allow, ["read", "search", "write"]);
    assert_eq!(decision.permissions.tools.deny, ["shell", "rm"]);
    assert_eq!(decision.permissions.credentials, ["google", "github"]);
    assert_eq!(decision.permissions.data_access, DataAccess::Contextual);
}

#[test]
fn an_allow_that_matches_the_owner_routes_but_takes_nothing_away() {
    let mut only = policy("route", Effect::Allow, 0);
    only.permissions.tools.deny = vec!["shell".to_owned()];
    only.session.agent = Some("butler".to_owned());
    let decision = decide(&access(Effect::Deny, vec![only]), &principal(PrincipalType::Owner), &ask());
    assert_eq!(decision.agent.as_deref(), Some("butler"));
    assert_eq!(decision.permissions.data_access, DataAccess::Full);
    assert_eq!(decision.permissions.tools.deny, ["shell"]);
}

#[test]
fn each_part_of_a_principal_match_must_hold() {
    let text = |text: &str| Some(text.to_owned());
    let tags = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>();
    assert!(applies_to(anyone()));
    assert!(applies_to(PrincipalMatch { type_: Some(PrincipalType::Known), ..anyone() }));
    assert!(!applies_to(PrincipalMatch { type_: Some(PrincipalType::Owner), ..anyone() }));
    assert!(applies_to(PrincipalMatch { relationship: text("friend"), entity: text("e1"), ..anyone() }));
    assert!(!applies_to(PrincipalMatch { relationship: text("boss"), entity: text("e1"), ..anyone() }));
    assert!(!applies_to(PrincipalMatch { entity: text("e2"), ..anyone() }));
    assert!(applies_to(PrincipalMatch { name: text("Ann"), ..anyone() }));
    assert!(!applies_to(PrincipalMatch { name: text("ann"), ..anyone() }));
    assert!(applies_to(PrincipalMatch { tags: tags(&["vip", "family"]), ..anyone() }));
    assert!(!applies_to(PrincipalMatch { tags: tags(&["vip", "work"]), ..anyone() }));
}

#[test]
fn the_name_that_a_stranger_gives_himself_fits_no_policy() {
    let mut by_name = policy("ann", Effect::Allow, 0);
    by_name.match_.principal.name = Some("Ann".to_owned());
    let policies = access(Effect::Deny, vec![by_name]);
    assert_eq!(decide(&policies, &principal(PrincipalType::Known), &ask()).effect, Effect::Allow);
    for type_ in [PrincipalType::Unknown, PrincipalType::Webhook] {
        let stranger = Principal { entity_id: None, ..principal(type_) };
        assert_eq!(decide(&policies, &stranger, &ask()).effect, Effect::Deny, "{type_}");
    }
}

#[test]
fn conditions_are_alternatives_of_parts_that_must_all_hold() {
    let channel = |channel: &str| Condition { channel: Some(channel.to_owned()), ..anytime() };
    assert!(applies_when(vec![channel("sms"), channel("gmail")], &ask()));
    assert!(!applies_when(vec![channel("sms"), channel("irc")], &ask()));
    assert!(applies_when(vec![Condition { account: Some("me".to_owned()), ..channel("gmail") }], &ask()));
    assert!(!applies_when(vec![Condition { account: Some("you".to_owned()), ..channel("gmail") }], &ask()));
    assert!(applies_when(vec![Condition { peer_kind: Some(PeerKind::Dm), ..anytime() }], &ask()));
    assert!(!applies_when(vec![Condition { peer_kind: Some(PeerKind::Group), ..anytime() }], &ask()));
    assert!(applies_when(vec![anytime()], &ask()));
}

#[test]
fn a_window_past_midnight_belongs_to_the_day_it_began() {
    let night = || Condition { time_range: TimeRange::parse("23:00-08:00"), days: vec![Day::Fri], ..anytime() };
    assert!(applies_when(vec![night()], &ask_at(Day::Fri, 23 * 60)));
    assert!(applies_when(vec![night()], &ask_at(Day::Sat, 7 * 60 + 59)));
    assert!(!applies_when(vec![night()], &ask_at(Day::Sat, 8 * 60)), "the end is not in the window");
    assert!(!applies_when(vec![night()], &ask_at(Day::Fri, 3 * 60)), "that window began on Thursday");
    assert!(!applies_when(vec![night()], &ask_at(Day::Sat, 23 * 60)));
    assert!(!applies_when(vec![night()], &ask_at(Day::Fri, 12 * 60)));
}

#[test]
fn windows_within_a_day_and_days_alone() {
    let hours = |text: &str| Condition { time_range: TimeRange::parse(text), ..anytime() };
    assert!(applies_when(vec![hours("09:00-17:00")], &ask_at(Day::Mon, 540)));
    assert!(!applies_when(vec![hours("09:00-17:00")], &ask_at(Day::Mon, 539)));
    assert!(!applies_when(vec![hours("09:00-17:00")], &ask_at(Day::Mon, 1020)));
    assert!(applies_when(vec![hours("00:00-24:00")], &ask_at(Day::Mon, 1439)));
    assert!(applies_when(vec![Condition { days: vec![Day::Mon], ..hours("00:00-24:00") }], &ask_at(Day::Mon, 0)));
    let weekend = || Condition { days: vec![Day::Sat, Day::Sun], ..anytime() };
    assert!(applies_when(vec![weekend()], &ask_at(Day::Sun, 0)));
    assert!(!applies_when(vec![weekend()], &ask_at(Day::Mon, 0)));
}

#[test]
fn owner_patterns_name_a_channel_and_an_identifier() {
    let patterns = ["webchat:*", "nostr:npub1abc", "*:x", "sms:+1*", "plain", "irc:", "x:a:b"];
    let mut owned = access(Effect::Deny, Vec::new());
    owned.owner = patterns.map(str::to_owned).to_vec();
    let owner = |channel: &str, sender: &str| is_owner(&owned, &[(channel.to_owned(), sender.to_owned())]);
    assert!(owner("webchat", "anyone"));
    assert!(owner("nostr", "npub1abc"));
    assert!(owner("x", "a:b"));
    for (channel, sender) in
        [("webchat", ""), ("nostr", "npub1"), ("sms", "+1555"), ("gmail", "x"), ("plain", ""), ("irc", ""), ("irc", "a")]
    {
        assert!(!owner(channel, sender), "{channel}:{sender}");
    }
    assert!(!is_owner(&owned, &[]));
    assert!(is_owner(&owned, &[("sms".to_owned(), "1".to_owned()), ("webchat".to_owned(), "2".to_owned())]));
}

#[test]
fn each_policy_gets_its_sentence() {
    let mut owners = policy("owners", Effect::Allow, 0);
    owners.match_.principal.type_ = Some(PrincipalType::Owner);
    let mut sms = policy("sms", Effect::Allow, 0);
    sms.match_.conditions = vec![Condition { channel: Some("sms".to_owned()), ..anytime() }];
    let policies = vec![owners, sms, policy("all", Effect::Allow, 3), policy("none", Effect::Deny, 0)];
    let decision = decide(&access(Effect::Deny, policies), &principal(PrincipalType::Known), &ask());
    assert_eq!(
        decision.why,
        [
            "policy `owners` does not apply: it is for principals of type owner, this one is known",
            "policy `sms` does not apply: the channel is `gmail`, not `sms`",
            "policy `all` applies and allows, with priority 3",
            "policy `none` applies and denies",
            "denied by policy `none`: a deny wins over every allow",
        ]
    );
}

#[test]
fn a_condition_may_name_content_types_and_incidental_ones_wake_nobody_else() {
    let of = |kinds: &[&str], content_type: &str| {
        let mut only = policy("only", Effect::Allow, 0);
        let wanted = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        only.match_.conditions = vec![Condition { content_type: wanted, ..anytime() }];
        let ask = Ask { content_type: content_type.to_owned(), ..ask() };
        let decision = decide(&access(Effect::Deny, vec![only]), &principal(PrincipalType::Known), &ask);
        (decision.effect == Effect::Allow, decision.wakes_agent(content_type))
    };
    assert_eq!(of(&[], "text"), (true, true));
    assert_eq!(of(&["text"], "text"), (true, true));
    assert_eq!(of(&["text"], "image"), (false, true), "it is denied, so nobody asks");
    assert_eq!(of(&[], "reaction"), (true, false), "let in, and nobody names it");
    assert_eq!(of(&["text", "reaction"], "reaction"), (true, true));
    assert_eq!(of(&["system/*"], "system/member_joined"), (true, true));
    assert_eq!(of(&["system/member_joined"], "system/member_left"), (false, false));
    assert_eq!(of(&["system/member_joined"], "system/member_joined_again"), (false, false), "no prefix without an asterisk");
}

#[test]
fn a_policy_that_denies_a_kind_names_it_for_nobody() {
    let mut shut = policy("shut", Effect::Deny, 0);
    shut.match_.conditions = vec![Condition { content_type: vec!["reaction".to_owned()], ..anytime() }];
    let asked = |content_type: &str| {
        let ask = Ask { content_type: content_type.to_owned(), ..ask() };
        decide(&access(Effect::Allow, vec![shut.clone()]), &principal(PrincipalType::Owner), &ask)
    };
    assert_eq!((asked("text").effect, asked("reaction").effect), (Effect::Allow, Effect::Deny));
    assert!(!asked("reaction").names_content_type);
}

#[test]
fn a_decision_is_written_as_the_contract_says_and_read_back() {
    let mut only = policy("only", Effect::Allow, 0);
    only.permissions.data_access = DataAccess::Minimal;
    only.session.key = Some("vip:{entity_id}".to_owned());
    only.queue_mode = QueueMode::Collect;
    let decision = decide(&access(Effect::Deny, vec![only]), &principal(PrincipalType::Known), &ask());
    let written = serde_json::to_value(&decision).unwrap();
    let expected = serde_json::json!({
        "decision": "allow",
        "matched_policy": "only",
        "permissions": {
            "tools": { "allow": [], "deny": [] }, "credentials": [], "data_access": "minimal"
        },
        "agent": null,
        "session_key": "vip:{entity_id}",
        "queue_mode": "collect",
        "why": ["policy `only` applies and allows, with priority 0", "allowed by policy `only`"],
    });
    assert_eq!(written, expected);
    assert_eq!(serde_json::from_value::<Decision>(written).unwrap(), decision);
}

#[test]
fn the_policy_that_routes_says_how_messages_wait_and_how_often_they_may_come() {
    let mut low = policy("low", Effect::Allow, 1);
    (low.queue_mode, low.rate) = (QueueMode::Steer, Some(Rate { per_minute: 1 }));
    let mut high = policy("high", Effect::Allow, 2);
    (high.queue_mode, high.rate) = (QueueMode::Interrupt, Some(Rate { per_minute: 9 }));
    let of = |policies: Vec<Policy>| decide(&access(Effect::Allow, policies), &principal(PrincipalType::Known), &ask());
    let decision = of(vec![low.clone(), high.clone()]);
    assert_eq!((decision.queue_mode, decision.per_minute), (QueueMode::Interrupt, Some(9)));
    let none = of(Vec::new());
    assert_eq!((none.queue_mode, none.per_minute), (QueueMode::Followup, None));
    let denied = of(vec![high, policy("shut", Effect::Deny, 0)]);
    assert_eq!((denied.queue_mode, denied.per_minute), (QueueMode::Followup, None));
}

#[test]
fn what_comes_too_often_is_denied_and_says_by_what() {
    let mut often = policy("often", Effect::Allow, 0);
    often.rate = Some(Rate { per_minute: 2 });
    often.session.agent = Some("smart".to_owned());
    let allowed = decide(&access(Effect::Deny, vec![often]), &principal(PrincipalType::Known), &ask());
    assert_eq!(allowed.reason(), "allowed by policy `often`");
    let denied = allowed.clone().over_rate();
    assert_eq!((denied.effect, denied.agent.as_deref()), (Effect::Deny, None));
    assert_eq!(denied.permissions, nothing());
    assert_eq!(denied.matched_policy.as_deref(), Some("often"));
    assert_eq!(denied.reason(), "rate limit of policy `often`: 2 per minute");
    assert_eq!(denied.why[..2], allowed.why[..]);
}

fn any_effect() -> impl Strategy<Value = Effect> {
    any::<bool>().prop_map(|allow| if allow { Effect::Allow } else { Effect::Deny })
}

fn any_type() -> impl Strategy<Value = PrincipalType> {
    prop::sample::select(vec![
        PrincipalType::Owner,
        PrincipalType::Known,
        PrincipalType::Unknown,
        PrincipalType::System,
        PrincipalType::Webhook,
        PrincipalType::Agent,
    ])
}

prop_compose! {
    fn any_policy()(
        name in "[a-c]",
        effect in any_effect(),
        priority in -2_i64..3,
        type_ in prop::option::of(any_type()),
        channel in prop::option::of(prop::sample::select(vec!["gmail", "sms"])),
        data_access in 0..4,
        tool in "[x-z]",
    ) -> Policy {
        let mut policy = policy(&name, effect, priority);
        policy.match_.principal.type_ = type_;
        if let Some(channel) = channel {
            policy.match_.conditions.push(Condition { channel: Some(channel.to_owned()), ..anytime() });
        }
        policy.permissions.tools.allow.push(tool);
        policy.permissions.data_access = match data_access {
            0 => DataAccess::None,
            1 => DataAccess::Minimal,
            2 => DataAccess::Contextual,
            _ => DataAccess::Full,
        };
        policy
    }
}

proptest! {
    #[test]
    fn one_more_matching_deny_always_denies(
        default in any_effect(),
        mut policies in prop::collection::vec(any_policy(), 0..8),
        type_ in any_type(),
        priority in any::<i64>(),
        place in any::<prop::sample::Index>(),
    ) {
        policies.insert(place.index(policies.len() + 1), policy("deny", Effect::Deny, priority));
        let decision = decide(&access(default, policies), &principal(type_), &ask());
        prop_assert_eq!(decision.effect, Effect::Deny);
        prop_assert_eq!(decision.permissions, nothing());
    }

    #[test]
    fn the_order_of_policies_never_changes_the_effect(
        default in any_effect(),
        (policies, shuffled) in prop::collection::vec(any_policy(), 0..8)
            .prop_flat_map(|policies| (Just(policies.clone()), Just(policies).prop_shuffle())),
        type_ in any_type(),
    ) {
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        let mut in_order = access(default, policies);
        let first = decide(&in_order, &principal(type_), &ask());
        in_order.policies = shuffled;
        let second = decide(&in_order, &principal(type_), &ask());
        prop_assert_eq!(first.effect, second.effect);
        prop_assert_eq!(first.permissions.data_access, second.permissions.data_access);
        prop_assert_eq!(sorted(first.permissions.tools.allow), sorted(second.permissions.tools.allow));
    }

    #[test]
    fn nobody_is_let_in_without_a_policy(type_ in any_type(), policies in prop::collection::vec(any_policy(), 0..8)) {
        let decision = decide(&access(Effect::Deny, policies.clone()), &principal(type_), &ask());
        let named = decision.matched_policy.and_then(|name| policies.iter().find(|policy| policy.name == name));
        let privileged = matches!(type_, PrincipalType::Owner | PrincipalType::System);
        if decision.effect == Effect::Allow {
            prop_assert!(privileged || named.is_some());
        }
        prop_assert_eq!(decision.why.len(), policies.len() + 1);
    }
}

fn whitelisted(access: Access) -> Access {
    Access { whitelist: BTreeSet::from(["ab".repeat(32)]), ..access }
}

#[test]
fn the_whitelist_is_a_policy_that_any_denial_overrules() {
    let by_key = Principal { tags: vec![WHITELIST.to_owned()], ..principal(PrincipalType::Known) };
    let on = |channel: &str| Ask { channel: channel.to_owned(), ..ask() };
    let stranger = principal(PrincipalType::Unknown);
    let open = whitelisted(access(Effect::Deny, Vec::new()));
    let decided = decide(&open, &by_key, &on("nostr"));
    assert_eq!((decided.effect, decided.matched_policy.as_deref()), (Effect::Allow, Some(WHITELIST)));
    assert_eq!(decide(&open, &by_key, &on("mail")).effect, Effect::Deny, "a tag is worth nothing elsewhere");
    assert_eq!(decide(&open, &stranger, &on("nostr")).effect, Effect::Deny);
    let strict = whitelisted(access(Effect::Deny, vec![policy("none", Effect::Deny, 0)]));
    assert_eq!(decide(&strict, &by_key, &on("nostr")).effect, Effect::Deny);
    let own = whitelisted(access(Effect::Deny, vec![policy(WHITELIST, Effect::Allow, 3)]));
    assert_eq!(decide(&own, &by_key, &on("mail")).effect, Effect::Allow, "one of that name takes its place");
}

#[test]
fn an_owner_may_be_named_by_npub() {
    let npub = "nostr:npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg".to_owned();
    let access = Access { owner: vec![npub], ..access(Effect::Deny, Vec::new()) };
    let of = |channel: &str| {
        is_owner(&access, &[(channel.to_owned(), "7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e".to_owned())])
    };
    assert!(of("nostr") && !of("mail"));
}
