//! What is promised about Nostr: each event of somebody who is heeded is in the ledger once and as it was posted, strangers'
//! and forged ones are not and have no answer, and what the daemon publishes is signed, in its ledger before it is sent, the
//! same each time that it is sent, and one reply for each event.

use super::events::original;
use super::order::out_of_order;
use super::{Copy, OPEN_REQUESTS, count, pairs_of_text, rows};
use crate::journal;
use crate::nostr::{id, is_ephemeral, is_spoken, tagged, verify};
use crate::posters::{Post, Sort, coordinate, daemon_key, posts};
use crate::report::Counts;
use crate::world::World;
use anyhow::Result;
use rusqlite::Connection;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Most findings that one look names.
const NAMED_MAX: usize = 10;

/// Posts that are to be in the ledger, and are not.
pub(super) fn missing(world: &World, events: &Connection) -> Result<Vec<String>> {
    let posts = posts(world)?;
    if posts.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "SELECT event_id FROM events WHERE direction = 'inbound' AND channel = 'nostr'";
    let there: HashSet<String> = rows(events, sql, |row| row.get(0))?.into_iter().collect();
    let heeded = posts.iter().filter(|post| post.sort.is_heeded()).map(Post::event_id);
    Ok(heeded.filter(|id| !there.contains(id)).collect())
}

/// How much is to be published still.
pub(super) fn unpublished(world: &World, work: &Connection) -> Result<u64> {
    if !world.cast().nostr {
        return Ok(0);
    }
    count(work, "SELECT count(*) FROM nostr_published WHERE status = 'waiting'")
}

/// What the relay was given by the daemon.
pub(super) struct Relayed {
    /// Each event once, in the order in which it was taken, or first came if it never was.
    taken: Vec<Value>,
    refused: Vec<Value>,
    /// Ids under which there was more than one event.
    changed: BTreeSet<String>,
    again: u64,
}

impl Relayed {
    pub(super) fn read(world: &World) -> Result<Self> {
        let lines = journal::values(&world.published())?;
        let mut first: HashMap<&str, &Value> = HashMap::new();
        let (mut taken, mut refused, mut changed, mut known) = (Vec::new(), Vec::new(), BTreeSet::new(), HashSet::new());
        for line in &lines {
            let event = &line["event"];
            if *first.entry(id(event)).or_insert(event) != event {
                changed.insert(id(event).to_owned());
            }
            if line["taken"] == true && known.insert(id(event)) {
                taken.push(event.clone());
            }
        }
        for event in lines.iter().map(|line| &line["event"]) {
            if known.insert(id(event)) {
                refused.push(event.clone());
            }
        }
        let again = (lines.len() - first.len()) as u64;
        Ok(Self { taken, refused, changed, again })
    }

    pub(super) fn has(&self, event_id: &str) -> bool {
        self.taken.iter().any(|event| id(event) == event_id)
    }

    fn all(&self) -> impl Iterator<Item = &Value> {
        self.taken.iter().chain(&self.refused)
    }

    /// Ids of what answers an event, by whom.
    fn replies<'a>(&'a self, post: &str) -> Vec<(&'a str, &'a str)> {
        let answers = self.taken.iter().filter(|event| is_spoken(event) && tagged(event, "e").any(|to| to == post));
        answers.map(|event| (id(event), event["pubkey"].as_str().unwrap_or_default())).collect()
    }
}

/// By id, the status of what the ledger has as published.
pub(super) fn recorded(copy: &Copy) -> Result<HashMap<String, String>> {
    Ok(pairs_of_text(&copy.nexus, "SELECT event_id, status FROM nostr_published")?.into_iter().collect())
}

/// All of it, over a world whose daemon has stopped.
pub(super) fn kept(world: &World, copy: &Copy, counts: &mut Counts) -> Result<Vec<String>> {
    let posts = posts(world)?;
    if posts.is_empty() {
        return Ok(Vec::new());
    }
    let relayed = Relayed::read(world)?;
    counts.nostr.posted += posts.len() as u64;
    counts.nostr.published += relayed.taken.len() as u64;
    counts.nostr.published_again += relayed.again;
    let mut found: Vec<String> = missing(world, &copy.events)?.iter().map(|id| format!("{id} was posted and never taken in")).collect();
    found.extend(taken_in(&posts, copy)?);
    found.extend(published(&relayed, copy)?);
    found.extend(delivered(&relayed, copy)?);
    found.extend(answered(world, &posts, &relayed, copy)?);
    found.truncate(NAMED_MAX);
    Ok(found)
}

/// What is in the ledger was posted by somebody who is heeded, with these words, and came to an end.
fn taken_in(posts: &[Post], copy: &Copy) -> Result<Vec<String>> {
    let by_id: HashMap<String, &Post> = posts.iter().map(|post| (post.event_id(), post)).collect();
    let sql = "SELECT event_id, content, peer_id FROM events WHERE direction = 'inbound' AND channel = 'nostr'";
    let all: Vec<(String, String, String)> = rows(&copy.events, sql, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let project = coordinate();
    let mut found = Vec::new();
    for (id, content, peer) in all {
        let Some(post) = by_id.get(original(&id)) else {
            found.push(format!("{id} is in the ledger, and nobody posted it"));
            continue;
        };
        let to = if post.sort == Sort::Project { &project } else { &post.author };
        if !post.sort.is_heeded() {
            found.push(format!("{id} is in the ledger, and is of the sort `{}`", post.sort.name()));
        } else if content != post.content || peer != *to {
            found.push(format!("{id} was posted to {to} as `{}`, and is in the ledger as `{content}` to {peer}", post.content));
        }
    }
    let sql = format!("SELECT event_id FROM nexus_requests WHERE channel = 'nostr' AND {OPEN_REQUESTS}");
    let open: Vec<String> = rows(&copy.nexus, &sql, |row| row.get(0))?;
    found.extend(open.into_iter().map(|id| format!("{id} has no end")));
    Ok(found)
}

/// What the relay was given is signed and in the ledger, which knows what the relay did with it.
fn published(relayed: &Relayed, copy: &Copy) -> Result<Vec<String>> {
    let recorded = recorded(copy)?;
    let mut found: Vec<String> = relayed.changed.iter().map(|id| format!("{id} was published in more than one form")).collect();
    for event in relayed.all() {
        if let Err(error) = verify(event) {
            found.push(format!("the relay was given {event}: {error:#}"));
        }
        if !is_ephemeral(event) && !recorded.contains_key(id(event)) {
            found.push(format!("{} was published, and is in no ledger", id(event)));
        }
    }
    for (id, status) in &recorded {
        match (status.as_str(), relayed.has(id)) {
            ("accepted", true) | ("refused" | "expired", false) => {}
            ("waiting", _) => found.push(format!("{id} waits to be published still")),
            (status, has) => found.push(format!("{id} is `{status}`, and the relay has it: {has}")),
        }
    }
    Ok(found)
}

/// Of a delivery that is sent the relay has the event; what is said to one target comes there in its order. One that was
/// given up may come after what followed it.
fn delivered(relayed: &Relayed, copy: &Copy) -> Result<Vec<String>> {
    let sql = "SELECT d.idempotency_key, d.seq, d.account_id || ' ' || d.target, coalesce(p.event_id, '')
               FROM deliveries d LEFT JOIN nostr_published p ON p.once = d.idempotency_key
               WHERE d.channel = 'nostr' AND d.status = 'sent'";
    let all: Vec<(String, i64, String, String)> = rows(&copy.nexus, sql, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    let mut found = Vec::new();
    for (key, _, _, event_id) in all.iter().filter(|(_, _, _, event_id)| !relayed.has(event_id)) {
        found.push(format!("{key} is `sent`, and the relay doesn't have its event: `{event_id}`"));
    }
    let places: HashMap<&str, (&String, i64)> = all.iter().map(|(_, seq, target, id)| (id.as_str(), (target, *seq))).collect();
    let came = relayed.taken.iter().filter_map(|event| places.get(id(event)));
    found.extend(out_of_order(came.map(|(target, seq)| ((*target).clone(), *seq)), "target"));
    Ok(found)
}

/// Who is heeded has one answer, of the daemon itself or of the project; who isn't has none.
fn answered(world: &World, posts: &[Post], relayed: &Relayed, copy: &Copy) -> Result<Vec<String>> {
    let own = daemon_key(world)?.unwrap_or_default();
    let statuses: HashMap<String, String> =
        pairs_of_text(&copy.nexus, "SELECT event_id, status FROM nexus_requests WHERE channel = 'nostr'")?.into_iter().collect();
    let mut again: HashMap<String, usize> = HashMap::new();
    for (id, _) in statuses.iter().filter(|(id, _)| original(id) != id.as_str()) {
        *again.entry(original(id).to_owned()).or_default() += 1;
    }
    let mut found = Vec::new();
    let mut agents: BTreeSet<&str> = BTreeSet::new();
    for post in posts {
        let replies = relayed.replies(&post.id);
        if !post.sort.is_heeded() {
            found.extend((!replies.is_empty()).then(|| format!("{}, `{}`, was answered: {replies:?}", post.id, post.sort.name())));
            continue;
        }
        let (by_daemon, by_others): (Vec<_>, Vec<_>) = replies.into_iter().partition(|(_, author)| *author == own);
        agents.extend(by_others.iter().map(|(_, author)| *author));
        let is_completed = statuses.get(&post.event_id()).is_some_and(|status| status == "completed");
        let is_for_project = post.sort == Sort::Project;
        // Of an event of a project the daemon itself says only that it failed, each time that it does.
        let is_wrong = by_daemon.len() > 1 + again.get(&post.event_id()).copied().unwrap_or(0)
            || by_others.len() > usize::from(is_for_project)
            || (is_for_project && is_completed && !by_daemon.is_empty());
        if is_wrong {
            found.push(format!("`{}` has these answers of the daemon: {by_daemon:?}, and these of others: {by_others:?}", post.content));
        }
    }
    if agents.len() > 1 {
        found.push(format!("the agent of the project spoke by several keys: {agents:?}"));
    }
    found.extend(unanswered(posts, relayed, copy)?);
    Ok(found)
}

/// Direct messages whose answers were decided and not refused, and which have none. What is a delivery at all, is
/// judged with all other channels'.
fn unanswered(posts: &[Post], relayed: &Relayed, copy: &Copy) -> Result<Vec<String>> {
    let sql = "SELECT q.event_id, d.status || ' ' || coalesce(p.status, 'unsigned') FROM deliveries d
               JOIN nexus_requests q ON q.event_seq = d.event_seq LEFT JOIN nostr_published p ON p.once = d.idempotency_key
               WHERE d.channel = 'nostr'";
    let mut decided: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (event, status) in pairs_of_text(&copy.nexus, sql)? {
        decided.entry(event).or_default().push(status);
    }
    let wrong = |post: &Post| {
        let statuses = decided.get(&post.event_id())?;
        // It says so where nothing is to be heard: the relay refused it for ever, or nobody knows.
        let words = ["failed refused", "failed unsigned", "uncertain", "expired"];
        let says_so = |status: &String| words.iter().any(|word| status.starts_with(word));
        let may_be_missing = statuses.iter().any(says_so);
        let is_missing = relayed.replies(&post.id).is_empty();
        (is_missing && !may_be_missing).then(|| format!("`{}` has no answer, and the ledger says {statuses:?}", post.content))
    };
    Ok(posts.iter().filter(|post| post.sort == Sort::Direct).filter_map(wrong).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::made::{Made, tells};
    use super::*;
    use crate::nostr::{Key, NOTE};
    use crate::world::Kind;
    use rusqlite::params;
    use serde_json::json;

    /// The daemon's key, and that of the project's agent.
    const OWN: u8 = 8;
    const AGENT: u8 = 9;

    /// A world in which somebody speaks to the daemon twice, and somebody to the project, and each is answered.
    struct Place {
        made: Made,
        posts: Vec<Value>,
        replies: Vec<Value>,
    }

    impl Place {
        fn new() -> Self {
            let made = Made::new(Kind::Plain);
            std::fs::write(made.world.daemon_key(), Key::new(OWN).public()).unwrap();
            let mut place = Self { made, posts: Vec::new(), replies: Vec::new() };
            for (number, sort) in [(1, Sort::Direct), (2, Sort::Direct), (3, Sort::Project)] {
                place.posted(1, sort, number);
                place.taken_in(number);
                place.replied(number, if sort == Sort::Project { AGENT } else { OWN });
            }
            place
        }

        /// What this person posts, as number so much.
        fn posted(&mut self, who: u8, sort: Sort, number: i64) {
            let event = Key::new(who).sign(NOTE, &[], &format!("nostr {number}"));
            let line = json!({ "sort": sort.name(), "id": event["id"], "content": event["content"], "author": event["pubkey"] });
            journal::append(&self.made.world.posts(), &line.to_string()).unwrap();
            self.posts.push(event);
        }

        fn post(&self, number: i64) -> &Value {
            &self.posts[usize::try_from(number - 1).unwrap()]
        }

        fn taken_in(&self, number: i64) {
            let event = self.post(number);
            let peer = if number == 3 { coordinate() } else { event["pubkey"].as_str().unwrap().to_owned() };
            let (id, content) = (format!("nostr:{}", id(event)), event["content"].as_str().unwrap());
            let sql = "INSERT INTO events VALUES (?1, ?2, 'nostr', 'default', ?3, 'inbound', 'run', ?4)";
            self.made.events.execute(sql, params![number, id, peer, content]).unwrap();
            self.made.nexus.execute("INSERT INTO nexus_requests VALUES (?1, ?2, 'nostr', 'completed', 1, 5)", params![number, id]).unwrap();
        }

        /// Answered by this key: the daemon's own answers are deliveries.
        fn replied(&mut self, number: i64, by: u8) {
            let reply = Key::new(by).sign(NOTE, &[&["e", id(self.post(number))]], &format!("re: {number} by {by}"));
            let sql = "INSERT INTO nostr_published VALUES (?1, ?2, 'accepted')";
            self.made.nexus.execute(sql, params![id(&reply), format!("key-{number}")]).unwrap();
            if by == OWN {
                let sql = "INSERT INTO deliveries VALUES (?1, ?1, ?2, 'sent', 'nostr', 'default', 'p', '', 1, 'run-1', 0, 0)";
                self.made.nexus.execute(sql, params![number, format!("key-{number}")]).unwrap();
            }
            self.relayed(&reply, true);
            self.replies.push(reply);
        }

        fn relayed(&self, event: &Value, taken: bool) {
            let line = json!({ "event": event, "taken": taken });
            journal::append(&self.made.world.published(), &line.to_string()).unwrap();
        }

        /// The relay never had this reply.
        fn forgotten(self, number: usize) -> Self {
            let path = self.made.world.published();
            let mut lines = journal::lines(&path).unwrap();
            lines.remove(number - 1);
            std::fs::remove_file(&path).unwrap();
            lines.iter().for_each(|line| journal::append(&path, line).unwrap());
            self
        }

        fn with(self, sql: &str) -> Self {
            self.made.nexus.execute_batch(sql).unwrap();
            self
        }

        fn found(&self) -> String {
            kept(&self.made.world, &self.made.copy(), &mut Counts::default()).unwrap().join("; ")
        }

        #[track_caller]
        fn breaks(&self, what: &str) {
            tells(&self.found(), what);
        }
    }

    #[test]
    fn nothing_is_found_where_everything_holds() {
        let mut place = Place::new();
        assert_eq!(place.found(), "");
        place.relayed(&place.replies[0], true);
        place.posted(3, Sort::Stranger, 4);
        place.posted(1, Sort::Forged, 5);
        assert_eq!(place.found(), "", "the same event again, and strangers without an answer");
        let read = Relayed::read(&place.made.world).unwrap();
        assert_eq!((read.taken.len(), read.again), (3, 1));
        assert_eq!(missing(&place.made.world, &place.made.events).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_lost_an_invented_and_a_changed_event_are_found() {
        let place = Place::new();
        place.made.events.execute_batch("DELETE FROM events WHERE seq = 2").unwrap();
        place.breaks("was posted and never taken in");
        assert_eq!(missing(&place.made.world, &place.made.events).unwrap(), [format!("nostr:{}", id(&place.posts[1]))]);
        let changed = |sql: &str, what: &str| {
            let place = Place::new();
            place.made.events.execute_batch(sql).unwrap();
            place.breaks(what);
        };
        changed("INSERT INTO events VALUES (9, 'nostr:ab', 'nostr', 'default', 'p', 'inbound', 'run', 'x')", "nobody posted it");
        changed("UPDATE events SET content = 'x' WHERE seq = 1", "and is in the ledger as `x`");
        changed("UPDATE events SET peer_id = 'x' WHERE seq = 3", "was posted to 31933:");
        Place::new().with("UPDATE nexus_requests SET status = 'processing' WHERE event_seq = 1").breaks("has no end");
    }

    #[test]
    fn strangers_and_forgeries_are_found() {
        for (who, sort) in [(3, Sort::Stranger), (1, Sort::Forged)] {
            let mut place = Place::new();
            place.posted(who, sort, 4);
            place.taken_in(4);
            place.breaks(&format!("is in the ledger, and is of the sort `{}`", sort.name()));
            place.replied(4, OWN);
            place.breaks("was answered");
        }
    }

    #[test]
    fn what_is_published_is_signed_and_in_the_ledger() {
        let place = Place::new();
        let mut other = place.replies[0].clone();
        other["content"] = json!("something else");
        place.relayed(&other, false);
        place.breaks("was published in more than one form");
        let (place, mut forged) = (Place::new(), Key::new(OWN).sign(NOTE, &[], "forged"));
        forged["sig"] = other["sig"].clone();
        place.relayed(&forged, false);
        place.breaks("its signature is not its author's");
        let place = Place::new();
        place.relayed(&Key::new(OWN).sign(NOTE, &[], "unknown"), true);
        place.breaks("was published, and is in no ledger");
        let place = Place::new();
        place.relayed(&Key::new(OWN).sign(24_010, &[], "passing"), true);
        assert_eq!(place.found(), "");
        Place::new().with("UPDATE nostr_published SET status = 'waiting'").breaks("waits to be published still");
        Place::new().with("UPDATE nostr_published SET status = 'refused'").breaks("is `refused`, and the relay has it: true");
        Place::new().forgotten(1).breaks("is `accepted`, and the relay has it: false");
    }

    #[test]
    fn what_is_sent_the_relay_has_and_in_its_order() {
        Place::new().forgotten(2).breaks("key-2 is `sent`, and the relay doesn't have its event");
        let swap = "UPDATE deliveries SET seq = 10 - seq";
        Place::new().with(swap).breaks("in target default p number 8 came after 9");
        let given_up = "UPDATE deliveries SET status = 'failed' WHERE seq = 8";
        assert_eq!(Place::new().with(swap).with(given_up).found(), "");
    }

    #[test]
    fn each_event_has_one_answer() {
        let missing = || Place::new().forgotten(1);
        missing().breaks("`nostr 1` has no answer, and the ledger says [\"sent accepted\"]");
        let refused = "UPDATE nostr_published SET status = 'refused' WHERE once = 'key-1';
                       UPDATE deliveries SET status = 'failed' WHERE seq = 1";
        assert_eq!(missing().with(refused).found(), "");
        let mut twice = Place::new();
        let again = Key::new(OWN).sign(NOTE, &[&["e", id(twice.post(1))]], "once more");
        twice.made.nexus.execute("INSERT INTO nostr_published VALUES (?1, 'key-9', 'accepted')", [id(&again)]).unwrap();
        twice.relayed(&again, true);
        twice.breaks("`nostr 1` has these answers of the daemon: [(");
        twice = Place::new();
        twice.replied(3, AGENT + 1);
        twice.breaks("these of others: [(");
        twice.breaks("the agent of the project spoke by several keys");
        let mut spoken_for = Place::new();
        spoken_for.replied(1, AGENT);
        spoken_for.breaks("these of others: [(");
    }
}
