//! Who posts on Nostr: two people whom the daemon heeds speak to it and to a project of theirs, a stranger does the same, some
//! events are forged and some come again. All of it is written down before the relay has it.

use crate::chance::Chance;
use crate::nostr::{AGENT, Key, NOTE, PROJECT, id};
use crate::relay::{Door, To};
use crate::world::World;
use crate::{clock, daemon, journal, source};
use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The keys of those who are heeded, of whom the first has the project, and of who isn't.
const HEEDED: [u8; 2] = [1, 2];
const STRANGER: u8 = 3;
/// The identifier of the project.
const IDENTIFIER: &str = "demo";
/// Of so many events one may come again.
const RECENT_MAX: usize = 8;
/// So many posts come before the host of the project's repository is approved, and then one of so many is followed by a look
/// whether it is.
const APPROVED_AFTER: u64 = 40;
const LOOKS_ONE_IN: u64 = 5;
/// How long the daemon may take to know its own key.
const KEY_LIMIT: Duration = Duration::from_secs(20);

/// What an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    /// For the daemon itself, and for the project.
    Direct,
    Project,
    /// By somebody who isn't heeded, or not by whom it says.
    Stranger,
    Forged,
}

impl Sort {
    const ALL: [Self; 4] = [Self::Direct, Self::Project, Self::Stranger, Self::Forged];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Project => "project",
            Self::Stranger => "stranger",
            Self::Forged => "forged",
        }
    }

    /// Whether the daemon is to do something about it.
    pub(crate) fn is_heeded(self) -> bool {
        matches!(self, Self::Direct | Self::Project)
    }

    fn choose(chance: &mut Chance) -> Self {
        match chance.below(80) {
            // Few: a relay that has ten in a minute is left alone for minutes.
            0 => Self::Forged,
            1..=10 => Self::Stranger,
            11..=45 => Self::Direct,
            _ => Self::Project,
        }
    }
}

/// One event that was posted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Post {
    pub(crate) sort: Sort,
    pub(crate) id: String,
    pub(crate) content: String,
    /// Its author's public key.
    pub(crate) author: String,
}

impl Post {
    /// As the ledger names it.
    pub(crate) fn event_id(&self) -> String {
        format!("nostr:{}", self.id)
    }
}

/// Everything that was posted, in its order.
///
/// # Errors
/// Of the file system, and a line that is no post.
pub(crate) fn posts(world: &World) -> Result<Vec<Post>> {
    let read = |line: &Value| {
        let text = |key: &str| line[key].as_str().map(str::to_owned);
        let sort = Sort::ALL.into_iter().find(|sort| line["sort"] == sort.name())?;
        Some(Post { sort, id: text("id")?, content: text("content")?, author: text("author")? })
    };
    let lines = journal::values(&world.posts())?;
    lines.iter().map(|line| read(line).with_context(|| format!("no post: {line}"))).collect()
}

/// The public keys of those who are heeded.
pub(crate) fn heeded() -> Vec<String> {
    HEEDED.map(|number| Key::new(number).public()).to_vec()
}

/// The address of the project.
pub(crate) fn coordinate() -> String {
    format!("{PROJECT}:{}:{IDENTIFIER}", Key::new(HEEDED[0]).public())
}

/// Has the project and its agent defined.
///
/// # Errors
/// Of the file system.
pub(crate) fn define(world: &World, door: &Door) -> Result<()> {
    let agent = agent();
    door.post(&agent);
    door.post(&definition(&agent, "Demo", source::url(world)?.as_deref()));
    Ok(())
}

/// The same each time: of the day on which this was written.
fn agent() -> Value {
    Key::new(HEEDED[0]).sign_at(1_760_000_000, AGENT, &[&["title", "Manager"], &["role", "manager"]], "Be brief.")
}

fn definition(agent: &Value, title: &str, repository: Option<&str>) -> Value {
    let (identifier, title, agent) = (["d", IDENTIFIER], ["title", title], ["agent", id(agent)]);
    let repository = repository.map(|url| ["repo", url]);
    let mut tags = vec![identifier.as_slice(), title.as_slice(), agent.as_slice()];
    tags.extend(repository.iter().map(|tag| tag.as_slice()));
    Key::new(HEEDED[0]).sign(PROJECT, &tags, "")
}

/// Asks a daemon that runs by which key it speaks, and writes that down; it never changes.
///
/// # Errors
/// When it doesn't tell, and of the file system.
pub(crate) fn learn_key(world: &World) -> Result<()> {
    let key = clock::until(KEY_LIMIT, || {
        let Ok((200, body)) = daemon::ask(world, "GET", "/control/nostr", "") else { return Ok(None) };
        let status: Value = serde_json::from_str(&body).context("what the daemon says of Nostr is no JSON")?;
        Ok(status["pubkey"].as_str().map(str::to_owned))
    })?;
    let Some(key) = key else { bail!("the daemon doesn't say by which key it speaks") };
    match daemon_key(world)? {
        None => fs::write(world.daemon_key(), key).context("failed to write the daemon's key"),
        Some(before) if before == key => Ok(()),
        Some(before) => world.violated(&format!("the daemon spoke as {before}, and speaks as {key} now")),
    }
}

/// The daemon's own public key, once it was asked.
///
/// # Errors
/// Of the file system.
pub(crate) fn daemon_key(world: &World) -> Result<Option<String>> {
    match fs::read_to_string(world.daemon_key()) {
        Ok(key) => Ok(Some(key)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("failed to read the daemon's key"),
    }
}

/// People at work while this lives.
pub(crate) struct Posters {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Posters {
    /// Begins, with a post each `pause_ms_max` at most.
    pub(crate) fn start(world: &World, door: Door, chance: Chance, pause_ms_max: u64) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (world, told) = (world.clone(), over.clone());
        let thread = std::thread::spawn(move || post(&world, &door, chance, pause_ms_max, &told));
        Self { over, thread }
    }

    /// Ends; how much was posted.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn end(self) -> Result<u64> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("who posts on Nostr panicked"))?
    }
}

fn post(world: &World, door: &Door, mut chance: Chance, pause_ms_max: u64, over: &AtomicBool) -> Result<u64> {
    let own = daemon_key(world)?.context("the daemon was not asked for its key")?;
    let repository = source::url(world)?;
    // Others' numbers go on.
    let before = journal::lines(&world.posts())?.len() as u64;
    let (mut number, mut recent): (u64, VecDeque<Value>) = (before, VecDeque::new());
    while !over.load(Ordering::Relaxed) {
        clock::pause(Duration::from_millis(chance.below(pause_ms_max) + 1));
        if chance.one_in(30) {
            door.post(&definition(&agent(), &format!("Demo {number}"), repository.as_deref()));
        }
        if chance.one_in(10)
            && let Some(again) = recent.get(usize::try_from(chance.below(RECENT_MAX as u64))?)
        {
            door.tell(again, To::Asked);
        }
        if repository.is_some() && number >= APPROVED_AFTER && number.is_multiple_of(LOOKS_ONE_IN) {
            source::approve(world)?;
        }
        number += 1;
        let sort = Sort::choose(&mut chance);
        let event = make(&mut chance, sort, &own, number);
        let line = json!({ "sort": sort.name(), "id": event["id"], "content": event["content"], "author": event["pubkey"] });
        journal::append(&world.posts(), &line.to_string())?;
        match sort {
            Sort::Direct | Sort::Project => {
                door.post(&event);
                recent.push_front(event);
                recent.truncate(RECENT_MAX);
            }
            Sort::Stranger => {
                door.post(&event);
                door.tell(&event, To::All);
            }
            // Never kept: of a relay that has many such a daemon wants nothing for minutes.
            Sort::Forged => door.tell(&event, To::Asked),
        }
    }
    Ok(number - before)
}

/// Post `number` of this world.
fn make(chance: &mut Chance, sort: Sort, own: &str, number: u64) -> Value {
    let heeded = Key::new(*chance.pick(&HEEDED));
    let (coordinate, content) = (coordinate(), format!("nostr {} {number}", sort.name()));
    let (to_daemon, to_project): ([&[&str]; 1], [&[&str]; 1]) = ([&["p", own]], [&["a", coordinate.as_str()]]);
    match sort {
        Sort::Direct => heeded.sign(NOTE, &to_daemon, &content),
        Sort::Project => heeded.sign(NOTE, &to_project, &content),
        Sort::Stranger => Key::new(STRANGER).sign(NOTE, if chance.one_in(2) { &to_daemon } else { &to_project }, &content),
        Sort::Forged => {
            let mut forged = heeded.sign(NOTE, &to_daemon, &content);
            forged["sig"] = Key::new(STRANGER).sign(NOTE, &to_daemon, &content)["sig"].clone();
            forged
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nostr::{tagged, verify};
    use crate::relay::Relay;
    use crate::world::Cast;

    #[test]
    fn each_sort_is_what_it_says() {
        let mut chance = Chance::new(1);
        let mut made = |sort: Sort| make(&mut chance, sort, "own", 7);
        let (direct, project, forged, stranger) = (made(Sort::Direct), made(Sort::Project), made(Sort::Forged), made(Sort::Stranger));
        assert_eq!(tagged(&direct, "p").collect::<Vec<_>>(), ["own"]);
        assert_eq!(tagged(&project, "a").collect::<Vec<_>>(), [coordinate()]);
        let is_heeded = |event: &Value| heeded().iter().any(|key| event["pubkey"] == *key);
        assert!(is_heeded(&direct) && is_heeded(&project) && is_heeded(&forged) && !is_heeded(&stranger));
        assert!(verify(&direct).is_ok() && verify(&project).is_ok() && verify(&stranger).is_ok() && verify(&forged).is_err());
        assert_eq!(id(&agent()), id(&agent()), "the definition names the agent that was posted");
        let repository = |url: Option<&str>| tagged(&definition(&agent(), "Demo", url), "repo").map(str::to_owned).collect::<Vec<_>>();
        assert_eq!((repository(None), repository(Some("http://x/demo.git"))), (vec![], vec!["http://x/demo.git".to_owned()]));
    }

    #[test]
    fn what_was_posted_is_written_down_and_numbers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::make(dir.path(), Cast::default()).unwrap();
        fs::write(world.daemon_key(), "own").unwrap();
        let relay = Relay::start(&world, Chance::new(1)).unwrap();
        let mut all = 0;
        for _ in 0..2 {
            let posters = Posters::start(&world, relay.door(), Chance::new(2), 1);
            let wanted = all + 3;
            clock::until(KEY_LIMIT, || Ok((journal::lines(&world.posts())?.len() >= wanted).then_some(()))).unwrap().unwrap();
            all += usize::try_from(posters.end().unwrap()).unwrap();
        }
        let posts = posts(&world).unwrap();
        assert_eq!(posts.len(), all);
        let numbers: Vec<String> = posts.iter().map(|post| post.content.rsplit(' ').next().unwrap().to_owned()).collect();
        assert_eq!(numbers, (1..=all).map(|number| number.to_string()).collect::<Vec<_>>());
        relay.end().unwrap();
    }
}
