//! A person with the daemon's verbs: says who is who, moves labels of sessions and ends turns ([`crate::stops`]), at random times, whether the
//! daemon lives or dies meanwhile, and writes down what was asked and what was answered as done. Everything has a name
//! of its own, so that nothing of it changes what the platform's people and agents do.

use crate::chance::Chance;
use crate::feeder::PEERS;
use crate::world::World;
use crate::{clock, daemon, journal, stops};
use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest pause between two verbs, in ms.
const PAUSE_MS_MAX: u64 = 80;
/// Of so many rounds one also ends a turn.
const STOP_ONE_IN: u64 = 20;
/// Status of an answer that says that it is done.
const DONE: u16 = 200;
/// A channel on which people write, so that there are sessions to fork.
const CHANNEL: &str = "both";

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Link,
    Tag,
    Unlink,
    Fork,
    Archive,
    Set,
    Untag,
    Merge,
    Unmerge,
}

impl Verb {
    const FIRST: [Self; 5] = [Self::Link, Self::Tag, Self::Unlink, Self::Fork, Self::Archive];
    /// Those that came later. They have a chance of their own, so that a seed decides about the first as it always did.
    const LATER: [Self; 4] = [Self::Set, Self::Untag, Self::Merge, Self::Unmerge];

    fn named(name: &str) -> Option<Self> {
        Self::FIRST.into_iter().chain(Self::LATER).find(|verb| verb.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Tag => "tag",
            Self::Unlink => "unlink",
            Self::Fork => "fork",
            Self::Archive => "archive",
            Self::Set => "set",
            Self::Untag => "untag",
            Self::Merge => "merge",
            Self::Unmerge => "unmerge",
        }
    }
}

/// One thing that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deed {
    pub(crate) number: u64,
    pub(crate) verb: Verb,
    /// The deed that made what it is about; its own number for a link and a fork.
    pub(crate) of: u64,
    /// The deed that made the other thing it is about: the tags that are taken off, the entity that is merged into.
    /// Its own number where there is no other thing.
    pub(crate) with: u64,
}

impl Deed {
    pub(crate) fn sender(self) -> String {
        format!("ghost{}", self.of)
    }

    pub(crate) fn entity(self) -> String {
        format!("person{}", self.of)
    }

    /// What the entity is called from now on, and what it is to the owner, which a link doesn't say.
    pub(crate) fn called(self) -> [String; 2] {
        [format!("Person {}", self.number), if self.verb == Verb::Set { format!("friend {}", self.number) } else { String::new() }]
    }

    /// What the entity counts as from now on: nothing but itself when it is unmerged.
    pub(crate) fn counts_as(self) -> String {
        if self.verb == Verb::Merge { format!("person{}", self.with) } else { String::new() }
    }

    /// The tags that are put on, or taken off again.
    pub(crate) fn tags(self) -> [String; 2] {
        ["a", "b"].map(|tag| format!("{tag}{}", self.with))
    }

    pub(crate) fn label(self) -> String {
        format!("fork{}", self.of)
    }

    /// Path and body of the request.
    fn request(self, chance: &mut Chance) -> (String, Value) {
        let edit = |body: Value| ("/control/access/edit".to_owned(), body);
        let (sender, entity, [name, relationship]) = (self.sender(), self.entity(), self.called());
        match self.verb {
            Verb::Link => edit(json!({
                "verb": "link", "channel": CHANNEL, "sender": sender, "entity": entity, "name": name, "relationship": null,
                "confidence": 1.0,
            })),
            Verb::Tag => edit(json!({ "verb": "tag", "entity": entity, "tags": self.tags() })),
            Verb::Unlink => edit(json!({ "verb": "unlink", "channel": CHANNEL, "sender": sender })),
            Verb::Fork => {
                let from = format!("dm:{CHANNEL}:u{}", chance.below(PEERS));
                (format!("/control/sessions/{from}/fork"), json!({ "to": self.label() }))
            }
            Verb::Archive => (format!("/control/sessions/{}/archive", self.label()), json!({ "undo": false })),
            Verb::Set => edit(json!({ "verb": "set", "entity": entity, "name": name, "relationship": relationship })),
            Verb::Untag => edit(json!({ "verb": "untag", "entity": entity, "tags": self.tags() })),
            Verb::Merge => edit(json!({ "verb": "merge", "from": entity, "into": self.counts_as() })),
            Verb::Unmerge => edit(json!({ "verb": "unmerge", "entity": entity })),
        }
    }

    fn noted(self, world: &World, done: bool) -> Result<()> {
        let line = json!({ "number": self.number, "verb": self.verb.name(), "of": self.of, "with": self.with, "done": done });
        journal::append(&world.people(), &line.to_string())
    }

    fn read(line: &Value) -> Option<Self> {
        let verb = Verb::named(line["verb"].as_str()?)?;
        Some(Self { number: line["number"].as_u64()?, verb, of: line["of"].as_u64()?, with: line["with"].as_u64()? })
    }
}

/// Everything that was asked for, and whether it was answered as done.
///
/// # Errors
/// Of the file system, and a line that is no deed.
pub(crate) fn deeds(world: &World) -> Result<Vec<(Deed, bool)>> {
    let mut all = BTreeMap::new();
    for line in journal::values(&world.people())? {
        let deed = Deed::read(&line).with_context(|| format!("no deed of a person: {line}"))?;
        all.entry(deed.number).or_insert((deed, false)).1 |= line["done"] == true;
    }
    Ok(all.into_values().collect())
}

/// A person at work while this lives.
pub(crate) struct People {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl People {
    pub(crate) fn start(world: &World, chance: Chance) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (world, told) = (world.clone(), over.clone());
        let thread = std::thread::spawn(move || act(&world, chance, &told));
        Self { over, thread }
    }

    /// Ends; how much was answered as done.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn end(self) -> Result<u64> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the person at the command line panicked"))?
    }
}

/// What is known to be there, by the numbers of the deeds that made it. What something is asked for about is taken out
/// until that is answered as done: without an answer nobody knows how it is, nor when that changes, and it is left alone.
#[derive(Debug, Default)]
struct Known {
    linked: Vec<u64>,
    forked: Vec<u64>,
    /// Every entity, the oldest first.
    entities: Vec<u64>,
    /// Entities whose name is known.
    named: Vec<u64>,
    /// Tags that are on, with their entity.
    tagged: Vec<(u64, u64)>,
    /// Entities that count for themselves, and those that count as others.
    apart: Vec<u64>,
    merged: Vec<u64>,
}

impl Known {
    /// A deed that can be done now, if there is one.
    fn choose(&mut self, verb: Verb, number: u64, chance: &mut Chance) -> Option<Deed> {
        let (of, with) = match verb {
            Verb::Link | Verb::Fork => (number, number),
            Verb::Tag => (*self.linked.last()?, number),
            Verb::Unlink => (self.linked.pop()?, number),
            Verb::Archive => (self.forked.pop()?, number),
            Verb::Set => (taken(&mut self.named, chance)?, number),
            Verb::Untag => {
                let (tags, entity) = taken(&mut self.tagged, chance)?;
                (entity, tags)
            }
            Verb::Merge => {
                let from = taken(&mut self.apart, chance)?;
                // An older one: so there is no circle.
                let older = self.entities.partition_point(|entity| *entity < from);
                if older == 0 {
                    self.apart.push(from);
                    return None;
                }
                (from, *chance.pick(&self.entities[..older]))
            }
            Verb::Unmerge => (taken(&mut self.merged, chance)?, number),
        };
        Some(Deed { number, verb, of, with })
    }

    /// That deed was answered as done.
    fn done(&mut self, deed: Deed) {
        let Deed { number, verb, of, .. } = deed;
        match verb {
            Verb::Link => {
                let all = [&mut self.linked, &mut self.entities, &mut self.named, &mut self.apart];
                all.into_iter().for_each(|known| known.push(number));
            }
            Verb::Fork => self.forked.push(number),
            Verb::Tag => self.tagged.push((number, of)),
            Verb::Set => self.named.push(of),
            Verb::Merge => self.merged.push(of),
            Verb::Unmerge => self.apart.push(of),
            Verb::Unlink | Verb::Archive | Verb::Untag => {}
        }
    }
}

/// One of `all`, which has it no more.
fn taken<T>(all: &mut Vec<T>, chance: &mut Chance) -> Option<T> {
    if all.is_empty() {
        return None;
    }
    let place = usize::try_from(chance.below(all.len() as u64)).ok()?;
    Some(all.swap_remove(place))
}

fn act(world: &World, mut chance: Chance, over: &AtomicBool) -> Result<u64> {
    let (mut later, mut stopping) = (chance.about(&["later verbs"]), chance.about(&["stops"]));
    let (mut known, mut number, mut done) = (Known::default(), 0, 0);
    while !over.load(Ordering::Relaxed) {
        clock::pause(Duration::from_millis(chance.below(PAUSE_MS_MAX) + 1));
        if stopping.one_in(STOP_ONE_IN) {
            stops::ask(world, &mut stopping)?;
        }
        for (chance, verbs) in [(&mut chance, &Verb::FIRST[..]), (&mut later, &Verb::LATER[..])] {
            number += 1;
            let verb = *chance.pick(verbs);
            let Some(deed) = known.choose(verb, number, chance) else { continue };
            let (path, body) = deed.request(chance);
            deed.noted(world, false)?;
            // It may be refused, or the daemon be dead by then: nobody knows whether it was done.
            if matches!(daemon::ask(world, "POST", &path, &body.to_string()), Ok((DONE, _))) {
                deed.noted(world, true)?;
                known.done(deed);
                done += 1;
            }
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const VERBS: u64 = 2_000;

    /// What a person comes to ask for, of whom every verb is answered but each `lost`th.
    fn asked(seed: u64, lost: u64) -> Vec<(Deed, bool)> {
        let (mut known, mut chance) = (Known::default(), Chance::new(seed));
        let verbs = [Verb::FIRST.as_slice(), Verb::LATER.as_slice()].concat();
        let deeds = (1..=VERBS).filter_map(|number| {
            let verb = *chance.pick(&verbs);
            let deed = known.choose(verb, number, &mut chance)?;
            let is_done = !number.is_multiple_of(lost);
            if is_done {
                known.done(deed);
            }
            Some((deed, is_done))
        });
        deeds.collect()
    }

    #[test]
    fn what_got_no_answer_is_left_alone() {
        let (mut unknown, mut of_verbs) = (HashSet::new(), HashSet::new());
        for (deed, is_done) in asked(7, 5) {
            of_verbs.insert(deed.verb.name());
            // What of its entity, or of those tags, a deed changes.
            let thing = match deed.verb {
                Verb::Link | Verb::Fork | Verb::Archive => None,
                Verb::Unlink => Some(("link", deed.of)),
                Verb::Set => Some(("name", deed.of)),
                Verb::Tag | Verb::Untag => Some(("tags", deed.with)),
                Verb::Merge | Verb::Unmerge => Some(("merge", deed.of)),
            };
            assert!(thing.is_none_or(|thing| !unknown.contains(&thing)), "{deed:?}");
            if !is_done {
                unknown.extend(thing);
                let all: &[&str] = if deed.verb == Verb::Link { &["link", "name", "merge"] } else { &[] };
                unknown.extend(all.iter().map(|what| (*what, deed.of)));
            }
        }
        assert_eq!(of_verbs.len(), 9, "{of_verbs:?}");
    }

    #[test]
    fn nothing_is_merged_in_a_circle_or_twice() {
        let (mut merged, mut merges) = (HashSet::new(), 0);
        for (deed, _) in asked(8, u64::MAX) {
            match deed.verb {
                Verb::Merge => {
                    merges += 1;
                    assert!(deed.with < deed.of && merged.insert(deed.of), "{deed:?}");
                }
                Verb::Unmerge => assert!(merged.remove(&deed.of), "{deed:?}"),
                Verb::Link | Verb::Tag | Verb::Unlink | Verb::Fork | Verb::Archive | Verb::Set | Verb::Untag => {}
            }
        }
        assert!(merges > 1, "{merges}");
    }
}
