//! This program as an adapter (docs/adapter-protocol.md) of a world, good and bad. What it does wrong
//! its seed decides, from what it is about and how often that was tried; while the world is calm it
//! does nothing wrong. It shares no code with the daemon.

mod stream;

use crate::agent::FOR_EVER;
use crate::chance::Chance;
use crate::journal;
use crate::world::{Kind, World};
use crate::{clock, procfs};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The first argument that makes this program an adapter.
pub(crate) const WORD: &str = "__adapter";
/// How often the platform is asked for news.
const NEWS_STEP: Duration = Duration::from_millis(4);
/// What the id of a line holds that names an account which isn't the adapter's.
pub(crate) const LIE: &str = ":lie-";
/// In the journal of what senders did wrong: they say that a reply was not sent and may be sent again, or never will be;
/// and they say nothing, or what nobody can know it from.
pub(crate) const REFUSED: &str = "refused";
pub(crate) const REJECTED: &str = "rejected";
pub(crate) const LOST: &str = "lost";
/// Known lines written at once by one that floods.
const FLOOD_LINES: usize = 400;
/// One in so many fetches of a whole history breaks off.
const HISTORY_BREAKS_ONE_IN: u64 = 4;
/// Longest message, in characters; where answers are spoken it is so short that most of them are several.
const TEXT_LIMIT: u64 = 4000;
const SPOKEN_TEXT_LIMIT: u64 = 200;
/// Longest time that an adapter needs to reach its platform.
const CONNECT_MS_MAX: u64 = 60;

struct Adapter {
    world: World,
    kind: Kind,
    chance: Chance,
}

/// `WORLD SEED KIND` and one verb of the protocol.
///
/// # Errors
/// Of the file system, and words that are no call of an adapter.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let [world, seed, kind, words @ ..] = args else { bail!("an adapter is called with WORLD SEED KIND VERB") };
    let kind = Kind::parse(kind).context("no such kind of adapter")?;
    let chance = Chance::new(seed.parse().context("the seed is no number")?);
    let adapter = Adapter { world: World::at(Path::new(world)), kind, chance };
    let account = option(words, "--account").unwrap_or_default();
    match words.first().map(String::as_str) {
        Some("info") => say(&adapter.info()),
        Some("health") => say(&adapter.health(account)),
        Some("monitor") => adapter.monitor(account),
        Some("backfill") => adapter.backfill(account, option(words, "--since").context("--since is missing")?),
        Some("send") => adapter.send(account, words),
        Some("stream") => adapter.stream(account),
        Some(_) | None => bail!("no verb of this adapter: {words:?}"),
    }
}

fn lock_file(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(path).context("failed to open a lock")
}

/// Holds what only one process may hold, or notes that there are two: of `whom`.
pub(crate) fn alone(world: &World, path: &Path, whom: &str) -> Result<File> {
    let file = lock_file(path)?;
    if file.try_lock().is_err() {
        world.violated(&format!("two {whom} at one time"))?;
    }
    Ok(file)
}

/// The value of `--name VALUE`.
fn option<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| word == name)?;
    words.get(at + 1).map(String::as_str)
}

fn write(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context("failed to write to the daemon")
}

fn say(value: &Value) -> Result<ExitCode> {
    write(format!("{value}\n").as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

impl Adapter {
    fn info(&self) -> Value {
        let mut supports = vec!["monitor", "send", "health"];
        supports.extend(self.kind.acks().then_some("ack"));
        supports.extend(self.kind.fills().then_some("backfill"));
        supports.extend((self.kind == Kind::Live).then_some("stream"));
        let text_limit = if self.kind.speaks() { SPOKEN_TEXT_LIMIT } else { TEXT_LIMIT };
        json!({ "channel": self.kind.name(), "name": "nexus-torture", "version": "1", "supports": supports, "multi_account": true,
                "text_stdin": self.kind == Kind::Acked, "channel_capabilities": { "text_limit": text_limit } })
    }

    /// Connected is who has its place in the feed.
    fn health(&self, account: &str) -> Value {
        let lock = File::open(self.world.connected_lock(self.kind, account));
        let connected = lock.is_ok_and(|file| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)));
        json!({ "connected": connected, "account": account })
    }

    fn monitor(&self, account: &str) -> Result<ExitCode> {
        let life = journal::lines(&self.world.file("lives"))?.len() as u64;
        journal::append(&self.world.file("lives"), &format!("{} {account}", self.kind.name()))?;
        let mut chance = self.chance.about(&["monitor", self.kind.name(), account, &life.to_string()]);
        if !self.world.is_calm() {
            clock::pause(Duration::from_millis(chance.below(CONNECT_MS_MAX)));
        }
        let _alone = self.alone(&self.world.monitor_lock(self.kind, account), "monitors", account)?;
        // A health check may hold this one, for no longer than it takes to look.
        let connected = lock_file(&self.world.connected_lock(self.kind, account))?;
        connected.lock().context("failed to show that the monitor is connected")?;
        let mut reader = Feed::open(&self.world.feed(self.kind, account))?;
        if self.kind.acks() {
            reader.skip_through(self.last_acked(account)?.as_deref())?;
            self.record_acks(account);
        } else {
            reader.skip_all()?;
        }
        // From here on it hears everything that is new, and only that.
        let mut written = 0;
        loop {
            for line in reader.news()? {
                if let Some(code) = self.misbehave(&mut chance, account, &line.event, written)? {
                    return Ok(code);
                }
                write(format!("{}\n", line.event).as_bytes())?;
                written += 1;
            }
            clock::pause(NEWS_STEP);
        }
    }

    /// What only one process of an account may hold, as [`alone`].
    fn alone(&self, path: &Path, who: &str, account: &str) -> Result<File> {
        alone(&self.world, path, &format!("{who} of {}/{account}", self.kind.name()))
    }

    /// One in some dozens of lines is accompanied by something bad; an exit code ends the process.
    fn misbehave(&self, chance: &mut Chance, account: &str, event: &Value, written: u64) -> Result<Option<ExitCode>> {
        if self.world.is_calm() {
            return Ok(None);
        }
        let line = format!("{event}\n");
        match chance.below(300) {
            0 => return Ok(Some(ExitCode::from(1))),
            1 if written > 0 => return Ok(Some(ExitCode::SUCCESS)),
            2 => procfs::signal_self(Signal::KILL),
            3 => {
                write(&line.as_bytes()[..line.len() / 2])?;
                return Ok(Some(ExitCode::from(1)));
            }
            4 => write(b"this is no event\n")?,
            5 => write(b"\xff\xfe\n{\"event_id\":7}\n")?,
            6 => {
                let mut lie = event.clone();
                lie["account_id"] = json!("somebody-else");
                lie["event_id"] = json!(format!("{}{LIE}{written}", self.kind.name()));
                write(format!("{lie}\n").as_bytes())?;
            }
            7 => write(line.repeat(FLOOD_LINES).as_bytes())?,
            8 => clock::pause(Duration::from_millis(400)),
            9 => write(line.repeat(2).as_bytes())?,
            10 => {
                journal::append(&self.world.file("stalls"), account)?;
                clock::pause(FOR_EVER);
            }
            11 => procfs::signal_self(Signal::STOP),
            _ => {}
        }
        Ok(None)
    }

    /// The last message of the feed that was acknowledged. Lies are too, and are in no feed.
    fn last_acked(&self, account: &str) -> Result<Option<String>> {
        let mut acked = journal::acked(&self.world.acks(self.kind, account))?;
        acked.retain(|(id, _)| !id.contains(LIE));
        Ok(acked.pop().map(|(id, _)| id))
    }

    /// Notes what the daemon says to have committed, before anything else is done with it.
    fn record_acks(&self, account: &str) {
        let (path, world) = (self.world.acks(self.kind, account), self.world.clone());
        std::thread::spawn(move || -> Result<()> {
            for line in io::stdin().lock().lines() {
                let line = line.context("failed to read an acknowledgement")?;
                let id = serde_json::from_str::<Value>(&line).ok().and_then(|ack| ack["ack"].as_str().map(str::to_owned));
                match id {
                    Some(id) => journal::append(&path, &format!("{id} {}", clock::monotonic_ns()))?,
                    None => world.violated(&format!("an acknowledgement is unreadable: {line}"))?,
                }
            }
            Ok(())
        });
    }

    fn backfill(&self, account: &str, since: &str) -> Result<ExitCode> {
        let since_ms = parse_utc_ms(since).with_context(|| format!("`{since}` is no time"))?;
        let calls = self.world.file("backfills");
        journal::append(
            &calls,
            &json!({ "adapter": self.kind.name(), "account": account, "since": since, "at": clock::wall_ms() }).to_string(),
        )?;
        let call = journal::lines(&calls)?.len().to_string();
        let mut chance = self.chance.about(&["backfill", self.kind.name(), account, &call]);
        let all: Vec<Line> = Feed::open(&self.world.feed(self.kind, account))?.news()?;
        // A whole history is so long that it would never come to its end, if each line might be the last.
        let breaks_at = (since_ms == 0 && chance.one_in(HISTORY_BREAKS_ONE_IN)).then(|| chance.below(all.len() as u64 + 1));
        for (number, line) in all.iter().filter(|line| line.at >= since_ms).enumerate() {
            let is_last = if since_ms == 0 { breaks_at == Some(number as u64) } else { chance.below(150) == 0 };
            if is_last && !self.world.is_calm() {
                write(&format!("{}\n", line.event).as_bytes()[..number % 9])?;
                return Ok(ExitCode::from(1));
            }
            write(format!("{}\n", line.event).as_bytes())?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn send(&self, account: &str, words: &[String]) -> Result<ExitCode> {
        let key = option(words, "--idempotency-key").context("--idempotency-key is missing")?;
        let text = match option(words, "--text-file") {
            Some(_) => {
                let mut text = String::new();
                io::stdin().lock().read_to_string(&mut text).context("failed to read the text")?;
                text
            }
            None => option(words, "--text").context("--text is missing")?.to_owned(),
        };
        let call = json!({ "key": key, "channel": self.kind.name(), "account": account, "to": option(words, "--to"), "text": text,
                           "reply_to": option(words, "--reply-to-id"), "at": clock::monotonic_ns() });
        let earlier = journal::values_with(&self.world.send_calls(), key)?.iter().filter(|one| one["key"] == key).count();
        journal::append(&self.world.send_calls(), &call.to_string())?;
        self.deliver(self.fate(key, &call, earlier), key, &call)
    }

    /// What is decided about a call: each message has a fate of its own. Where an agent speaks, time decides what of it is one
    /// message, and only what it answers is always the same.
    fn fate(&self, key: &str, call: &Value, earlier: usize) -> Chance {
        let chance = self.chance.about(&["send", key_without_run(key), &earlier.to_string()]);
        let of_call = |name: &str| call[name].as_str().unwrap_or_default();
        if self.kind.speaks() { chance.about(&[of_call("reply_to")]) } else { chance.about(&[of_call("reply_to"), of_call("text")]) }
    }

    /// Notes what is about to be done wrong with a reply.
    fn fails(&self, key: &str, what: &str) -> Result<()> {
        let line = json!({ "key": key, "channel": self.kind.name(), "what": what, "at": clock::monotonic_ns() });
        journal::append(&self.world.faults(), &line.to_string())
    }

    /// Delivers a message, or does what a bad sender does.
    fn deliver(&self, mut chance: Chance, key: &str, call: &Value) -> Result<ExitCode> {
        let deliver = || journal::append(&self.world.sends(), &call.to_string());
        let stop = || procfs::signal_self(Signal::STOP);
        let failed = |kind: &str, retry: bool| json!({ "success": false, "message_ids": [], "chunks_sent": 0, "error": { "type": kind, "message": "made up", "retry": retry } });
        let whim = if self.world.is_calm() { u64::MAX } else { chance.below(60) };
        match whim {
            0 => self.fails(key, REFUSED)?,
            8 => self.fails(key, REJECTED)?,
            1..=7 | 10..=13 => self.fails(key, LOST)?,
            _ => {}
        }
        match whim {
            0 => {
                journal::append(&self.world.refusals(), &json!({ "key": key, "at": clock::monotonic_ns() }).to_string())?;
                return say(&failed("network", true));
            }
            1 => clock::pause(FOR_EVER),
            2 => {
                deliver()?;
                clock::pause(FOR_EVER);
            }
            3 => {
                deliver()?;
                return Ok(ExitCode::from(1));
            }
            4 => return Ok(ExitCode::from(1)),
            5 => {
                deliver()?;
                procfs::signal_self(Signal::KILL);
            }
            6 => {
                deliver()?;
                return say(&json!({ "success": true, "message_ids": [], "chunks_sent": 1 }));
            }
            7 => {
                deliver()?;
                write(b"{\"success\":tr")?;
                return Ok(ExitCode::SUCCESS);
            }
            8 => return say(&failed("not_found", false)),
            9 => clock::pause(Duration::from_millis(200)),
            10 => return Ok(ExitCode::SUCCESS),
            11 => {
                deliver()?;
                return Ok(ExitCode::SUCCESS);
            }
            12 => stop(),
            13 => {
                deliver()?;
                stop();
                return Ok(ExitCode::from(1));
            }
            _ => {}
        }
        deliver()?;
        say(&json!({ "success": true, "message_ids": [format!("m-{key}")], "chunks_sent": 1 }))
    }
}

/// What stays of a key from one run of a seed to the next.
fn key_without_run(key: &str) -> &str {
    key.split_once(':').map_or(key, |(_, rest)| rest)
}

/// An RFC 3339 time in UTC with milliseconds, as Unix ms.
fn parse_utc_ms(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>());
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.splitn(3, ':').map(|part| part.parse::<i64>());
    let (hours, minutes, seconds) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    let ms: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    // Days since 1970 by the civil calendar, with March as a year's first month.
    let (shifted_year, shifted_month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let century = shifted_year.div_euclid(400);
    let year_of_era = shifted_year.rem_euclid(400);
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let days = century * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some((((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000 + ms)
}

/// One event of the platform, and when it happened there.
pub(crate) struct Line {
    pub(crate) at: i64,
    pub(crate) event: Value,
}

/// A place in an account's feed.
pub(crate) struct Feed {
    path: PathBuf,
    read: u64,
    skipping: Option<String>,
}

impl Feed {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), read: 0, skipping: None })
    }

    /// Leaves out everything up to this event.
    fn skip_through(&mut self, event_id: Option<&str>) -> Result<()> {
        self.skipping = event_id.map(str::to_owned);
        Ok(())
    }

    /// Leaves out what is there.
    fn skip_all(&mut self) -> Result<()> {
        self.news().map(drop)
    }

    /// Whole lines that were not read yet.
    pub(crate) fn news(&mut self) -> Result<Vec<Line>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context("failed to open the feed"),
        };
        let mut text = String::new();
        file.seek(SeekFrom::Start(self.read)).and_then(|_| file.read_to_string(&mut text)).context("failed to read the feed")?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.read += whole as u64;
        let mut lines = Vec::new();
        for line in journal::whole(&text[..whole]) {
            let value: Value = serde_json::from_str(line).context("the feed has a line that is no JSON")?;
            let line = Line { at: value["at"].as_i64().context("a line of the feed has no time")?, event: value["event"].clone() };
            match &self.skipping {
                Some(id) if line.event["event_id"] == **id => self.skipping = None,
                Some(_) => {}
                None => lines.push(line),
            }
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::world::Cast;

    #[test]
    fn a_second_monitor_of_an_account_notes_that_there_are_two() {
        let dir = tempfile::tempdir().unwrap();
        let adapter = Adapter { world: World::make(dir.path(), Cast::default()).unwrap(), kind: Kind::Acked, chance: Chance::new(1) };
        let hold = |account: &str| adapter.alone(&adapter.world.monitor_lock(Kind::Acked, account), "monitors", account).unwrap();
        let noted = || journal::lines(&adapter.world.violations()).unwrap();
        let (first, other) = (hold("a"), hold("b"));
        assert!(noted().is_empty(), "{:?}", noted());
        drop(hold("a"));
        assert_eq!(noted(), ["two monitors of acked/a at one time"]);
        drop((first, other));
        drop((hold("a"), hold("b")));
        assert_eq!(noted().len(), 1, "one after the other is right");
    }

    #[test]
    fn each_message_has_a_fate_of_its_own_and_the_same_in_each_run() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::make(dir.path(), Cast::default()).unwrap();
        let of = |kind: Kind, key: &str, reply_to: &str, text: &str, earlier: usize| {
            let adapter = Adapter { world: world.clone(), kind, chance: Chance::new(1) };
            adapter.fate(key, &json!({ "reply_to": reply_to, "text": text }), earlier).below(u64::MAX)
        };
        let first = of(Kind::Acked, "run_1:0", "acked:a-1", "re: acked a 1", 0);
        assert_eq!(of(Kind::Acked, "run_2:0", "acked:a-1", "re: acked a 1", 0), first, "runs have other names each time");
        assert_ne!(of(Kind::Acked, "run_1:0", "acked:a-2", "re: acked a 2", 0), first);
        assert_ne!(of(Kind::Acked, "run_1:0", "", "re: acked a 2", 0), of(Kind::Acked, "run_1:0", "", "re: acked a 1", 0));
        assert_ne!(of(Kind::Acked, "run_1:0", "acked:a-1", "re: acked a 1", 1), first, "it is tried again");
        let spoken = |reply_to: &str, text: &str| of(Kind::Blocks, "run_1:0", reply_to, text, 0);
        assert_eq!(spoken("blocks:a-1", "one"), spoken("blocks:a-1", "one two"));
        assert_ne!(spoken("blocks:a-1", "one"), spoken("blocks:a-2", "one"));
    }

    #[test]
    fn times_are_read_as_the_protocol_writes_them() {
        assert_eq!(parse_utc_ms("1970-01-01T00:00:00.000Z"), Some(0));
        assert_eq!(parse_utc_ms("2026-11-22T05:30:01.25Z"), Some(1_795_325_401_250));
        assert_eq!(parse_utc_ms("2000-02-29T23:59:59Z"), Some(951_868_799_000));
        assert_eq!(parse_utc_ms("yesterday"), None);
    }
}
