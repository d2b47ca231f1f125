//! What a verified event is for us: a definition to keep, a message to a project or to the daemon itself, or
//! nothing. It decides by tags before kinds, since a kind may mean different things to different programs. Pure.

use super::ADAPTER;
use super::codec::{is_hex, short, tag_value, tags_of};
use super::subscriptions::DEFINING_KINDS;
use crate::clock;
use crate::ledger::events::{Disposition, NewEvent};
use crate::ledger::nexus::{Definition, Deleted, coordinate};
use crate::project::STOP_KIND;
use crate::project::activate::{Activation, Roster, activation};
use crate::project::coordinate::Coordinate;
use crate::routes::DEFAULT_ACCOUNT;
use ::nostr::event::Event;
use nexus_core::event::{PeerKind, SYSTEM_CONTENT};
use serde::Serialize;
use std::collections::BTreeSet;

/// The kind of a deletion (NIP-09).
pub(crate) const DELETION: u16 = 5;
/// Notes, threads and comments: what a person says to the daemon.
const SPOKEN_KINDS: [u16; 3] = [1, 11, 1_111];
/// The kind of a reaction (NIP-25).
const REACTION: u16 = 7;
/// What running projects tell about themselves: it activates none.
const TOLD_KINDS: [u16; 4] = [24_010, 24_011, 24_012, 24_135];
/// How far an event may be ahead of our clock before its time is taken for ours, in seconds.
const AHEAD_S_MAX: u64 = 900;
/// The age from which an event is late, in seconds.
const LATE_S: u64 = 3_600;

/// What sorting needs to know.
#[derive(Debug)]
pub(crate) struct Rules<'a> {
    pub(crate) whitelist: &'a BTreeSet<String>,
    pub(crate) project_kinds: &'a [u16],
    pub(crate) roster: &'a Roster,
    /// The daemon's own public key.
    pub(crate) own: Option<&'a str>,
    /// When the ledgers were last put in place by a restore, in Unix ms: what is older may have been answered since.
    pub(crate) restored_at: Option<i64>,
    /// Unix ms.
    pub(crate) now_ms: i64,
}

/// What an event is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    Definition(Box<Definition>),
    /// One event of the pipeline for each project that it activates.
    Messages(Vec<NewEvent>),
    /// It names several projects and says not to whom it speaks: kept, and not acted upon.
    Ambiguous(Box<NewEvent>, Vec<Coordinate>),
    /// We said it ourselves.
    Own,
    /// Its author isn't heeded any more.
    Stranger,
    /// Nothing that concerns us.
    Unaddressed,
    /// Its time was over before it came (NIP-40).
    Expired,
}

pub(crate) fn sort(event: &Event, relay: &str, rules: &Rules<'_>) -> Purpose {
    let pubkey = event.pubkey.to_hex();
    if rules.own == Some(pubkey.as_str()) {
        return Purpose::Own;
    }
    let now_s = clock::seconds(rules.now_ms);
    let tags = tags_of(event);
    if !rules.whitelist.contains(&pubkey) {
        let about_known = about_known(event, &pubkey, rules).filter(|_| !is_over(&tags, now_s));
        return about_known.map_or(Purpose::Stranger, |definition| Purpose::Definition(Box::new(definition)));
    }
    if is_over(&tags, now_s) {
        return Purpose::Expired;
    }
    let kind = event.kind.as_u16();
    if DEFINING_KINDS.contains(&kind) || rules.project_kinds.contains(&kind) {
        return Purpose::Definition(Box::new(definition(event)));
    }
    if TOLD_KINDS.contains(&kind) {
        return Purpose::Unaddressed;
    }
    match activation(&tags, rules.project_kinds, rules.roster, |key| rules.whitelist.contains(key)) {
        Activation::Projects(projects) => {
            let each = projects.iter().enumerate();
            Purpose::Messages(each.map(|(n, project)| message(event, &tags, relay, rules, Some((n, project)))).collect())
        }
        Activation::Ambiguous(projects) => {
            let filed = NewEvent { disposition: Disposition::Filed, ..message(event, &tags, relay, rules, None) };
            Purpose::Ambiguous(Box::new(filed), projects)
        }
        Activation::None if SPOKEN_KINDS.contains(&kind) && speaks_to(&tags, rules.own) => {
            Purpose::Messages(vec![message(event, &tags, relay, rules, None)])
        }
        Activation::None => Purpose::Unaddressed,
    }
}

/// What an author who isn't heeded says about a project of theirs that is known: how it is defined, or no more. Nothing else
/// of it counts.
fn about_known(event: &Event, pubkey: &str, rules: &Rules<'_>) -> Option<Definition> {
    let is_known = |name: &str| Coordinate::parse(name).is_ok_and(|project| rules.roster.knows(&project));
    let kind = event.kind.as_u16();
    if rules.project_kinds.contains(&kind) {
        let definition = definition(event);
        let name = coordinate(kind, pubkey, definition.identifier.as_deref().unwrap_or_default());
        return is_known(&name).then_some(definition);
    }
    if kind != DELETION {
        return None;
    }
    let mut definition = definition(event);
    definition.deletes.retain(|deleted| match deleted {
        Deleted::Event(id) => rules.roster.is_definition(id, pubkey),
        Deleted::Coordinate(name) => is_known(name),
    });
    (!definition.deletes.is_empty()).then_some(definition)
}

fn is_over(tags: &[Vec<String>], now_s: u64) -> bool {
    let expiration = tags.iter().find(|tag| tag.first().is_some_and(|name| name == "expiration"));
    is_past(expiration.and_then(|tag| tag.get(1)).map(String::as_str), now_s)
}

/// Whether what an `expiration` tag says has passed (NIP-40). In Unix seconds.
pub(crate) fn is_past(expiration: Option<&str>, now_s: u64) -> bool {
    expiration.and_then(|value| value.parse::<u64>().ok()).is_some_and(|at| at <= now_s)
}

fn speaks_to(tags: &[Vec<String>], own: Option<&str>) -> bool {
    let Some(own) = own else { return false };
    tags.iter().any(|tag| matches!(tag.as_slice(), [name, key, ..] if name == "p" && key == own))
}

/// A definition as it is kept.
pub(crate) fn definition(event: &Event) -> Definition {
    let (kind, pubkey) = (event.kind.as_u16(), event.pubkey.to_hex());
    let identifier = if event.kind.is_addressable() {
        Some(tag_value(event, "d").unwrap_or_default().to_owned())
    } else {
        event.kind.is_replaceable().then(String::new)
    };
    let deletes = if kind == DELETION { deleted(event, &pubkey) } else { Vec::new() };
    let created_at = i64::try_from(event.created_at.as_secs()).unwrap_or(i64::MAX);
    Definition { id: event.id.to_hex(), kind, identifier, created_at, event: event.as_json(), deletes, pubkey }
}

/// What a deletion names, of its own author.
fn deleted(event: &Event, pubkey: &str) -> Vec<Deleted> {
    let of = |tag: Vec<String>| match tag.as_slice() {
        [name, id, ..] if name == "e" && is_hex(id, 64) => Some(Deleted::Event(id.clone())),
        [name, value, ..] if name == "a" => {
            let coordinate = Coordinate::parse(value).ok().filter(|coordinate| coordinate.pubkey == pubkey)?;
            Some(Deleted::Coordinate(coordinate.to_string()))
        }
        _ => None,
    };
    tags_of(event).into_iter().filter_map(of).collect()
}

/// What a message says of the event that it came as.
#[derive(Serialize)]
struct Metadata<'a> {
    nostr: Origin<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<&'a str>,
}

#[derive(Serialize)]
struct Origin<'a> {
    id: &'a str,
    pubkey: &'a str,
    kind: u16,
    tags: &'a [Vec<String>],
    created_at: u64,
    sig: String,
    relay: &'a str,
}

/// The event of the pipeline; of several projects the first has the event's own id.
fn message(event: &Event, tags: &[Vec<String>], relay: &str, rules: &Rules<'_>, project: Option<(usize, &Coordinate)>) -> NewEvent {
    let (id, pubkey) = (event.id.to_hex(), event.pubkey.to_hex());
    let event_id = match project {
        Some((1.., project)) => format!("{ADAPTER}:{id}:{}", project.slug()),
        Some((0, _)) | None => format!("{ADAPTER}:{id}"),
    };
    let coordinate = project.map(|(_, project)| project.to_string());
    let (kind, created_at, sig) = (event.kind.as_u16(), event.created_at.as_secs(), event.sig.to_hex());
    let origin = Origin { id: &id, pubkey: &pubkey, kind, tags, created_at, sig, relay };
    let metadata = serde_json::to_string(&Metadata { nostr: origin, project: coordinate.as_deref() }).expect("texts and numbers are JSON");
    NewEvent {
        event_id,
        channel: ADAPTER.to_owned(),
        account_id: DEFAULT_ACCOUNT.to_owned(),
        sender_name: None,
        peer_kind: if coordinate.is_some() { PeerKind::Channel } else { PeerKind::Dm },
        peer_id: coordinate.unwrap_or_else(|| pubkey.clone()),
        sender_id: pubkey,
        thread_id: root(tags, event.kind.as_u16()),
        reply_to_id: Some(id),
        content_type: content_type(event.kind.as_u16()),
        content: event.content.clone(),
        attachments: None,
        metadata: Some(metadata),
        timestamp: timestamp(event.created_at.as_secs(), rules.now_ms),
        received_at: rules.now_ms,
        disposition: disposition(event.created_at.as_secs(), rules),
    }
}

/// The project that an event of the pipeline is for; its place is the whole project.
pub(crate) fn project_of(event: &NewEvent) -> Option<&str> {
    (event.peer_kind == PeerKind::Channel).then_some(event.peer_id.as_str())
}

/// What is said to somebody is text. Anything else that is about a project wakes no agent unless a policy names its kind;
/// the project is started by it all the same.
fn content_type(kind: u16) -> String {
    match kind {
        REACTION => "reaction".to_owned(),
        _ if SPOKEN_KINDS.contains(&kind) || kind == STOP_KIND => "text".to_owned(),
        _ => format!("{SYSTEM_CONTENT}nostr/{kind}"),
    }
}

/// Unix ms, never far ahead of our own clock.
fn timestamp(created_at: u64, now_ms: i64) -> i64 {
    let at = i64::try_from(created_at).unwrap_or(i64::MAX).saturating_mul(1000);
    let latest = now_ms.saturating_add(i64::try_from(AHEAD_S_MAX * 1000).unwrap_or(0));
    if at > latest { now_ms } else { at }
}

fn disposition(created_at: u64, rules: &Rules<'_>) -> Disposition {
    let at = timestamp(created_at, rules.now_ms);
    if rules.restored_at.is_some_and(|restored| at < restored) {
        return Disposition::Filed;
    }
    let age_ms = rules.now_ms.saturating_sub(at);
    if age_ms > i64::try_from(LATE_S * 1000).unwrap_or(i64::MAX) { Disposition::Late } else { Disposition::Run }
}

/// The event that began the thread: `E` of a comment (NIP-22), the `e` tag that is marked so or the first (NIP-10).
fn root(tags: &[Vec<String>], kind: u16) -> Option<String> {
    let ids = |name: &'static str| tags.iter().filter(move |tag| tag.len() >= 2 && tag[0] == name && is_hex(&tag[1], 64));
    if kind == 1_111 {
        return ids("E").next().map(|tag| tag[1].clone());
    }
    let marked = ids("e").find(|tag| tag.get(3).is_some_and(|mark| mark == "root"));
    // A mention begins no thread.
    let first = ids("e").find(|tag| tag.get(3).is_none_or(|mark| mark != "mention"));
    marked.or(first).map(|tag| tag[1].clone())
}

/// What the log says about an event that names several projects.
pub(crate) fn named(projects: &[Coordinate]) -> String {
    projects.iter().map(|project| short(&project.to_string())).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::template::Template;
    use super::*;
    use ::nostr::key::Keys;
    use serde_json::json;

    const NOW_MS: i64 = 1_800_000_000_000;

    struct Place {
        author: Keys,
        own: String,
        whitelist: BTreeSet<String>,
        roster: Roster,
    }

    impl Place {
        fn new() -> Self {
            let author = Keys::generate();
            let whitelist = BTreeSet::from([author.public_key().to_hex()]);
            Self { author, own: Keys::generate().public_key().to_hex(), whitelist, roster: Roster::default() }
        }

        fn project(&self, identifier: &str) -> String {
            format!("31933:{}:{identifier}", self.author.public_key().to_hex())
        }

        fn sort_with(&self, kind: u16, tags: &[&[&str]], created_at: u64, restored_at: Option<i64>) -> Purpose {
            let tags = tags.iter().map(|tag| tag.iter().map(|part| (*part).to_owned()).collect()).collect();
            let template = Template { kind, content: "hi".to_owned(), tags, created_at: Some(created_at) };
            let event = template.sign(&self.author, 0).unwrap();
            let own = Some(self.own.as_str());
            let project_kinds = &[31_933];
            let rules = Rules { whitelist: &self.whitelist, project_kinds, roster: &self.roster, own, restored_at, now_ms: NOW_MS };
            sort(&event, "ws://r", &rules)
        }

        fn sort(&self, kind: u16, tags: &[&[&str]]) -> Purpose {
            self.sort_with(kind, tags, NOW_MS as u64 / 1000, None)
        }
    }

    fn messages(purpose: Purpose) -> Vec<NewEvent> {
        let Purpose::Messages(messages) = purpose else { panic!("{purpose:?}") };
        messages
    }

    #[test]
    fn a_projects_event_goes_to_it_with_all_that_it_says() {
        let place = Place::new();
        let (project, root) = (place.project("a:b"), "ab".repeat(32));
        let all = messages(place.sort(1, &[&["a", &project], &["e", &root, "", "root"], &["e", &"cd".repeat(32), "", "reply"]]));
        let [one] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!(
            (one.peer_id.as_str(), one.peer_kind, one.thread_id.as_deref()),
            (project.as_str(), PeerKind::Channel, Some(root.as_str()))
        );
        assert_eq!((one.timestamp, one.disposition), (NOW_MS, Disposition::Run));
        let metadata: serde_json::Value = serde_json::from_str(one.metadata.as_ref().unwrap()).unwrap();
        assert_eq!((&metadata["project"], &metadata["nostr"]["kind"]), (&json!(project), &json!(1)));
        assert_eq!(one.event_id, format!("nostr:{}", metadata["nostr"]["id"].as_str().unwrap()));
    }

    #[test]
    fn what_names_two_projects_is_filed_unless_it_speaks_to_agents_of_both() {
        let place = Place::new();
        let (a, b) = (place.project("a"), place.project("b"));
        let Purpose::Ambiguous(filed, named) = place.sort(1, &[&["a", &a], &["a", &b]]) else { panic!("two projects") };
        assert_eq!((filed.disposition, named.len()), (Disposition::Filed, 2));
        assert!(!filed.metadata.as_ref().unwrap().contains("\"project\""));
        let (x, y) = ("0a".repeat(32), "0b".repeat(32));
        place.roster.set(Coordinate::parse(&a).unwrap(), vec![x.clone()]);
        place.roster.set(Coordinate::parse(&b).unwrap(), vec![y.clone()]);
        let both = messages(place.sort(1, &[&["a", &a], &["a", &b], &["p", &x], &["p", &y]]));
        assert_eq!((both.len(), both[0].event_id.matches(':').count(), both[1].event_id.matches(':').count()), (2, 1, 2));
    }

    #[test]
    fn only_what_is_said_asks_an_agent_of_a_project() {
        let place = Place::new();
        let project = place.project("a");
        for (kind, wanted) in [
            (1, "text"),
            (11, "text"),
            (1_111, "text"),
            (STOP_KIND, "text"),
            (7, "reaction"),
            (6, "system/nostr/6"),
            (513, "system/nostr/513"),
            (24_000, "system/nostr/24000"),
            (30_023, "system/nostr/30023"),
        ] {
            assert_eq!(messages(place.sort(kind, &[&["a", &project]]))[0].content_type, wanted, "{kind}");
        }
    }

    #[test]
    fn the_daemon_is_spoken_to_by_its_key_and_hears_nothing_else() {
        let place = Place::new();
        let own = place.own.clone();
        let all = messages(place.sort(1, &[&["p", &own]]));
        assert_eq!((all[0].peer_id.clone(), all[0].peer_kind), (place.author.public_key().to_hex(), PeerKind::Dm));
        for (kind, tags) in
            [(1, vec![]), (7, vec![["p", own.as_str()]]), (24_010, vec![["a", "31933:x:y"]]), (3, vec![["p", own.as_str()]])]
        {
            let tags: Vec<&[&str]> = tags.iter().map(|tag| tag.as_slice()).collect();
            assert!(matches!(place.sort(kind, &tags), Purpose::Unaddressed), "{kind}");
        }
    }

    #[test]
    fn definitions_are_kept_and_start_nothing() {
        let place = Place::new();
        let project = place.project("a");
        let Purpose::Definition(kept) = place.sort(31_933, &[&["d", "a"], &["a", &project]]) else { panic!("a definition") };
        assert_eq!(kept.identifier.as_deref(), Some("a"));
        let Purpose::Definition(profile) = place.sort(0, &[]) else { panic!("a profile") };
        assert_eq!(profile.identifier.as_deref(), Some(""));
        let foreign = format!("31933:{}:a", "ab".repeat(32));
        let id = "cd".repeat(32);
        let tags: &[&[&str]] = &[&["e", &id], &["a", &project], &["a", &foreign], &["e", "short"]];
        let Purpose::Definition(deletion) = place.sort(5, tags) else { panic!("a deletion") };
        assert_eq!(deletion.deletes, [Deleted::Event(id), Deleted::Coordinate(project)], "nobody else's");
    }

    #[test]
    fn a_stranger_defines_what_is_known_of_theirs_and_nothing_else() {
        let place = Place::new();
        let (project, other) = (place.project("a"), place.project("b"));
        let (known, id, unknown) = (Coordinate::parse(&project).unwrap(), "cd".repeat(32), "ab".repeat(32));
        let place = Place { whitelist: BTreeSet::new(), ..place };
        assert!(matches!(place.sort(31_933, &[&["d", "a"]]), Purpose::Stranger), "it isn't known yet");
        place.roster.set(known.clone(), Vec::new());
        place.roster.set_definition(&known, &id);
        let Purpose::Definition(kept) = place.sort(31_933, &[&["d", "a"]]) else { panic!("a definition") };
        assert_eq!(kept.identifier.as_deref(), Some("a"));
        let tags: &[&[&str]] = &[&["e", &id], &["e", &unknown], &["a", &project], &["a", &other]];
        let Purpose::Definition(deletion) = place.sort(5, tags) else { panic!("a deletion") };
        assert_eq!(deletion.deletes, [Deleted::Event(id), Deleted::Coordinate(project.clone())]);
        let rest: [(u16, &[&[&str]]); 5] =
            [(31_933, &[&["d", "b"]]), (5, &[&["e", &unknown]]), (1, &[&["a", &project]]), (0, &[]), (4199, &[&["title", "x"]])];
        for (kind, tags) in rest {
            assert!(matches!(place.sort(kind, tags), Purpose::Stranger), "{kind}");
        }
        assert!(matches!(place.sort(31_933, &[&["d", "a"], &["expiration", "1"]]), Purpose::Stranger));
    }

    #[test]
    fn times_are_believed_within_bounds() {
        let place = Place::new();
        let own = place.own.clone();
        let at = |created_at: u64, restored_at: Option<i64>| {
            let one = messages(place.sort_with(1, &[&["p", &own]], created_at, restored_at)).remove(0);
            (one.timestamp, one.disposition)
        };
        let now = NOW_MS as u64 / 1000;
        assert_eq!(at(now + 600, None), (NOW_MS + 600_000, Disposition::Run));
        assert_eq!(at(now + 100_000, None), (NOW_MS, Disposition::Run), "from the future");
        assert_eq!(at(now - LATE_S - 1, None).1, Disposition::Late);
        assert_eq!(at(now - 10, Some(NOW_MS)).1, Disposition::Filed, "it may have been answered before the restore");
    }

    #[test]
    fn what_is_over_is_not_taken_in() {
        let place = Place::new();
        let own = place.own.clone();
        assert!(matches!(place.sort(1, &[&["p", &own], &["expiration", "1"]]), Purpose::Expired));
        assert!(matches!(place.sort(1, &[&["p", &own], &["expiration", "9999999999"]]), Purpose::Messages(_)));
        assert!(matches!(place.sort(1, &[&["p", &own], &["expiration", "soon"]]), Purpose::Messages(_)));
    }

    #[test]
    fn threads_begin_where_their_nips_say() {
        let tag = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
        let (a, b) = ("0a".repeat(32), "0b".repeat(32));
        assert_eq!(root(&[tag(&["e", &b, "", "reply"]), tag(&["e", &a, "", "root"])], 1), Some(a.clone()));
        assert_eq!(root(&[tag(&["e", &a]), tag(&["e", &b])], 1), Some(a.clone()), "by place");
        assert_eq!(root(&[tag(&["E", &a]), tag(&["e", &b])], 1_111), Some(a));
        assert_eq!(root(&[tag(&["e", "short"])], 1), None);
    }
}
