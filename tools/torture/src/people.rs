//! A person with the daemon's verbs: says who is who and moves labels of sessions, at random times, whether the
//! daemon lives or dies meanwhile, and writes down what was asked and what was answered as done. Everything has a name
//! of its own, so that nothing of it changes what the platform's people and agents do.

use crate::chance::Chance;
use crate::feeder::PEERS;
use crate::world::World;
use crate::{clock, daemon, journal};
use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest pause between two verbs, in ms.
const PAUSE_MS_MAX: u64 = 80;
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
}

impl Verb {
    const ALL: [Self; 5] = [Self::Link, Self::Tag, Self::Unlink, Self::Fork, Self::Archive];

    fn name(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Tag => "tag",
            Self::Unlink => "unlink",
            Self::Fork => "fork",
            Self::Archive => "archive",
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
}

impl Deed {
    pub(crate) fn sender(self) -> String {
        format!("ghost{}", self.of)
    }

    pub(crate) fn entity(self) -> String {
        format!("person{}", self.of)
    }

    /// What the entity is called.
    pub(crate) fn called(self) -> String {
        format!("Person {}", self.of)
    }

    pub(crate) fn tags(self) -> [String; 2] {
        ["a", "b"].map(|tag| format!("{tag}{}", self.number))
    }

    pub(crate) fn label(self) -> String {
        format!("fork{}", self.of)
    }

    /// Path and body of the request.
    fn request(self, chance: &mut Chance) -> (String, Value) {
        let edit = |body: Value| ("/control/access/edit".to_owned(), body);
        let (sender, entity) = (self.sender(), self.entity());
        match self.verb {
            Verb::Link => edit(json!({
                "verb": "link", "channel": CHANNEL, "sender": sender, "entity": entity, "name": self.called(), "relationship": null,
                "confidence": 1.0,
            })),
            Verb::Tag => edit(json!({ "verb": "tag", "entity": entity, "tags": self.tags() })),
            Verb::Unlink => edit(json!({ "verb": "unlink", "channel": CHANNEL, "sender": sender })),
            Verb::Fork => {
                let from = format!("dm:{CHANNEL}:u{}", chance.below(PEERS));
                (format!("/control/sessions/{from}/fork"), json!({ "to": self.label() }))
            }
            Verb::Archive => (format!("/control/sessions/{}/archive", self.label()), json!({ "undo": false })),
        }
    }

    fn noted(self, world: &World, done: bool) -> Result<()> {
        let line = json!({ "number": self.number, "verb": self.verb.name(), "of": self.of, "done": done });
        journal::append(&world.people(), &line.to_string())
    }

    fn read(line: &Value) -> Option<Self> {
        let verb = Verb::ALL.into_iter().find(|verb| line["verb"] == verb.name())?;
        Some(Self { number: line["number"].as_u64()?, verb, of: line["of"].as_u64()? })
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

fn act(world: &World, mut chance: Chance, over: &AtomicBool) -> Result<u64> {
    // What is known to be there, by the numbers of the deeds that made it.
    let (mut linked, mut forked): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
    let (mut number, mut done) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        clock::pause(Duration::from_millis(chance.below(PAUSE_MS_MAX) + 1));
        number += 1;
        let verb = *chance.pick(&Verb::ALL);
        let of = match verb {
            Verb::Link | Verb::Fork => Some(number),
            Verb::Tag => linked.last().copied(),
            // Asked for once, whatever comes of it.
            Verb::Unlink => linked.pop(),
            Verb::Archive => forked.pop(),
        };
        let Some(of) = of else { continue };
        let deed = Deed { number, verb, of };
        let (path, body) = deed.request(&mut chance);
        deed.noted(world, false)?;
        // It may be refused, or the daemon be dead by then: nobody knows whether it was done.
        if !matches!(daemon::ask(world, "POST", &path, &body.to_string()), Ok((DONE, _))) {
            continue;
        }
        deed.noted(world, true)?;
        done += 1;
        match verb {
            Verb::Link => linked.push(number),
            Verb::Fork => forked.push(number),
            Verb::Tag | Verb::Unlink | Verb::Archive => {}
        }
    }
    Ok(done)
}
