//! Nothing is given up without a cause. What ends as failed, expired, denied or uncertain has one that somebody else than the
//! daemon wrote down: a program that was about to fail, the platform's feed, or the fault of the cycle. What the daemon says
//! of the reason only sorts what has none of these. Never judges Nostr, projects and heartbeats.

use super::cut_off::CutOff;
use super::events::{accounts, original};
use super::snapshots::has_table;
use super::stays::{Outage, Spoilt, Stays};
use super::{Copy, in_use, rows, text};
use crate::acp;
use crate::adapter::{LOST, REFUSED, REJECTED};
use crate::agent::FAILS;
use crate::fault::{Fault, Victim};
use crate::feeder::PEERS;
use crate::steered::TOOK_IN;
use crate::world::{Kind, OnInterrupted, SEND_RETRIES, World};
use crate::{clock, journal};
use anyhow::{Context, Result};
use rusqlite::Connection;
use std::collections::{HashMap, HashSet};

/// Most items that one finding names.
const NAMED_MAX: usize = 5;
/// Starts of the agent that stays in one look beyond one for the daemon's and one for each end: on a busy machine a turn may not
/// end in the time that it has once it is told to stop, and its process is killed then.
const STARTS_SPARE: usize = 2;
/// On a busy machine one in so many may not be done in its time, though nobody wanted that.
const SLOW_ONE_IN: usize = 4;
/// What the daemon says of those.
const SLOW: [&str; 6] = [
    "time is up",
    "timed out",
    "did not end within",
    "did not end a turn within", // then all that shared the process are cut off with it
    "took nothing for",
    "said nothing of the answer's end within",
];
/// Runs of one request after which it counts as poison.
const ATTEMPTS_MAX: u64 = 3;
/// `catch_up.max_age_ms` of a world.
const OLD_MS: i64 = 3_600_000;

/// How much may end badly in one look without a cause of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leeway {
    /// So many requests, and so many replies.
    AtMost(usize),
    /// Its programs, its keeper, its disk or its clock were hit, or a part of it panicked: nobody knows how much that is.
    Unknown,
}

impl Leeway {
    /// What ends badly in the very cycle of a fault. What its death cut off ends in a later one, and is known by name.
    fn of(fault: &Fault, at_once: usize) -> Self {
        match fault {
            // What goes on then a stop or a reload may end.
            Fault::Point { victim: Victim::Daemon, .. } if fault.is_led_to() => Self::AtMost(at_once),
            // Who is killed ends nothing.
            Fault::Point { victim: Victim::Daemon, .. } | Fault::Kill { victim: Victim::Daemon, .. } => Self::AtMost(0),
            // It may have seen its keeper die before.
            Fault::Point { victim: Victim::Both, .. } | Fault::Kill { victim: Victim::Both, .. } => Self::AtMost(at_once),
            Fault::Point { victim: Victim::Keeper, .. } | Fault::Kill { victim: Victim::Keeper, .. } => Self::Unknown,
            // By these processes that stream may end, and by a second signal the keeper does, with what it had started.
            Fault::Stop { .. } | Fault::StopAtOnce | Fault::Reload => Self::AtMost(at_once),
            Fault::Panic { .. }
            | Fault::KillPrograms { .. }
            | Fault::FreezePrograms { .. }
            | Fault::Sleep
            | Fault::ClockJump { .. }
            | Fault::Busy { .. }
            | Fault::Descriptors
            | Fault::DiskFull
            | Fault::ReadOnly
            | Fault::TurnReadOnly
            | Fault::CorruptPage { .. } => Self::Unknown,
        }
    }
}

/// Why something ended as it did.
#[derive(Debug, PartialEq, Eq)]
enum Cause {
    Known,
    /// Its time was up, by what the daemon says.
    Slow,
    None,
    /// There can be none for such an end.
    Impossible(&'static str),
}

/// What was judged so far, and what was done to the daemon.
#[derive(Debug)]
pub(crate) struct Causes {
    on_interrupted: OnInterrupted,
    requests: HashSet<i64>,
    /// With status and attempts: what is uncertain may be sent again and end anew. What is answered in another run has
    /// another key.
    replies: HashSet<(String, String, u64)>,
    /// Calls of senders that were looked at.
    sends: usize,
    cut_off: CutOff,
    clock_was_off: bool,
    /// Faults of `stream` processes that were there at the look before.
    stream_faults: usize,
    /// How often processes of the agent that stays had ended by themselves, and begun.
    ends: usize,
    starts: usize,
}

impl Causes {
    pub(crate) fn new(on_interrupted: OnInterrupted) -> Self {
        let (requests, replies, cut_off) = (HashSet::new(), HashSet::new(), CutOff::default());
        Self { on_interrupted, requests, replies, sends: 0, cut_off, clock_was_off: false, stream_faults: 0, ends: 0, starts: 0 }
    }

    /// Judges what ended in a cycle with this fault, whose daemon is dead.
    ///
    /// # Errors
    /// When something can't be read.
    pub(crate) fn after(&mut self, world: &World, fault: &Fault) -> Result<Vec<String>> {
        self.clock_was_off |= matches!(fault, Fault::Sleep | Fault::ClockJump { .. });
        let Some(copy) = copied(world)? else { return Ok(Vec::new()) };
        let mut found = self.judge(world, &copy.nexus, Leeway::of(fault, conversations(world)))?;
        found.extend(self.died(&copy.nexus, fault)?);
        Ok(found)
    }

    /// Judges what the last fault left behind, while a daemon runs that has brought it to its end.
    ///
    /// # Errors
    /// When something can't be read.
    pub(crate) fn settled(&mut self, world: &World) -> Result<Vec<String>> {
        self.judge(world, &in_use(&world.data(), "nexus")?, Leeway::AtMost(0))
    }

    /// Judges what ended in the calm, in which nothing is given up. The daemon has stopped.
    ///
    /// # Errors
    /// When something can't be read.
    pub(crate) fn calm(&mut self, world: &World) -> Result<Vec<String>> {
        let Some(copy) = copied(world)? else { return Ok(Vec::new()) };
        self.judge(world, &copy.nexus, Leeway::AtMost(0))
    }

    fn judge(&mut self, world: &World, nexus: &Connection, leeway: Leeway) -> Result<Vec<String>> {
        if !has_tables(nexus)? {
            return Ok(Vec::new());
        }
        let (noted, at_once) = (Noted::read(world)?, conversations(world));
        let mut found = self.starts(&noted.stays, leeway);
        found.extend(self.requests(nexus, &noted)?.beyond("requests", leeway, at_once));
        found.extend(self.replies(nexus, &noted)?.beyond("replies", leeway, at_once));
        found.extend(self.sends(world, &noted)?.beyond("calls of `send`", leeway, at_once));
        Ok(found)
    }

    /// Takes down what the death of the daemon cut off, and looks whether it had only that in hand which may go on at one time.
    fn died(&mut self, nexus: &Connection, fault: &Fault) -> Result<Vec<String>> {
        if !has_tables(nexus)? {
            return Ok(Vec::new());
        }
        self.cut_off.add(nexus)?;
        // What a defect broke off may be left to the next start as it was.
        if matches!(fault, Fault::Panic { .. }) { Ok(Vec::new()) } else { CutOff::at_once(nexus) }
    }

    /// What is to be retried is sent again only after a call that did not say how it ended.
    fn sends(&mut self, world: &World, noted: &Noted) -> Result<Ended> {
        let (mut ended, mut of_key) = (Ended::default(), HashMap::new());
        let calls = journal::values(&world.send_calls())?;
        let cut_off = self.cut_off.sends();
        for (n, call) in calls.iter().enumerate() {
            let before: &mut usize = of_key.entry(text(call, "key")).or_default();
            let of = |tally: &HashMap<String, usize>| tally.get(&text(call, "key")).copied().unwrap_or(0);
            let is_explained = *before <= of(&noted.unsure) + of(&cut_off);
            let is_retried = Kind::parse(&text(call, "channel")).is_some_and(Kind::retries_uncertain);
            if n >= self.sends && is_retried {
                // On a busy machine a call may not be done in its time.
                let cause = if is_explained { Cause::Known } else { Cause::Slow };
                ended.add(format!("{} after {before} calls", text(call, "key")), cause);
            }
            *before += 1;
        }
        self.sends = calls.len();
        Ok(ended)
    }

    /// The agent that stays is started once by each daemon, and again after an end: not for each turn.
    fn starts(&mut self, stays: &Stays, leeway: Leeway) -> Vec<String> {
        let starts = stays.began.len() - std::mem::replace(&mut self.starts, stays.began.len());
        let most = 1 + STARTS_SPARE + (stays.died.len() - self.ends);
        let is_too_often = leeway != Leeway::Unknown && starts > most;
        is_too_often
            .then(|| format!("the agent that stays was started {starts} times, and {most} at most had a cause"))
            .into_iter()
            .collect()
    }

    fn requests(&mut self, nexus: &Connection, noted: &Noted) -> Result<Ended> {
        let mut ended = Ended::default();
        // All its sessions share the process.
        let outages = noted.stays.outages(self.ends, clock::monotonic_ns());
        let waits_max = outages.iter().map(Outage::untold_max).fold(0, usize::saturating_add);
        let mut untold = waits_max.saturating_mul(conversations_of(Kind::Filled));
        self.ends = noted.stays.died.len();
        for request in Request::all(nexus)? {
            if Kind::parse(&request.channel).is_none() || !self.requests.insert(request.seq) {
                continue;
            }
            let mut cause = self.cause_of(&request, noted);
            if matches!(cause, Cause::None | Cause::Slow) && request.agent == acp::NAME {
                let (content, written) =
                    noted.written.get(original(&request.event_id)).map_or(("", 0), |(content, at)| (content.as_str(), *at));
                match noted.stays.spoilt(&outages, content, written, request.attempts) {
                    Some(Spoilt::Told) => cause = Cause::Known,
                    Some(Spoilt::Untold) if untold > 0 => (untold, cause) = (untold - 1, Cause::Known),
                    Some(Spoilt::Untold) | None => {}
                }
            }
            ended.add(format!("{} `{}` ({})", request.event_id, request.status, request.reason), cause);
        }
        Ok(ended)
    }

    fn cause_of(&self, request: &Request, noted: &Noted) -> Cause {
        let event = original(&request.event_id);
        let is_stranger = noted.strangers.contains(event);
        match request.status.as_str() {
            "completed" | "handled_by_automation" if is_stranger => Cause::Impossible("is a stranger's, and was not denied"),
            "denied" if !is_stranger => Cause::Impossible("is of somebody who may ask, and was denied"),
            "expired" if !self.clock_was_off && !noted.old.contains(event) => Cause::Impossible("was never late, and was filed as such"),
            "failed" => self.cause_of_failure(request, noted),
            _ => Cause::Known,
        }
    }

    fn cause_of_failure(&self, request: &Request, noted: &Noted) -> Cause {
        if request.reason.starts_with("interrupted") {
            // An echo changes nothing. The others are commands, which may have acted from their start on.
            let is_echo = request.agent == "echo";
            let may_fail = match self.on_interrupted {
                OnInterrupted::Fail => true,
                OnInterrupted::Rerun => request.attempts >= ATTEMPTS_MAX && !is_echo,
                OnInterrupted::Auto => !is_echo,
            };
            let was_cut_off = self.cut_off.requests.contains(&(request.seq, request.attempts));
            return match may_fail {
                true if was_cut_off => Cause::Known,
                true => Cause::None,
                false => Cause::Impossible("was interrupted, and not run again though it may be"),
            };
        }
        // An agent that stays isn't told of its run, and what joined another's run has none of its own.
        let fails = noted.written.get(original(&request.event_id)).is_some_and(|(content, _)| match request.agent.as_str() {
            acp::NAME => noted.stays.fails(content),
            "" => noted.failing_contents.contains(content),
            _ => false,
        });
        if noted.failing.contains(&request.run) || fails {
            return Cause::Known;
        }
        slow_or_none(&request.reason)
    }

    fn replies(&mut self, nexus: &Connection, noted: &Noted) -> Result<Ended> {
        let mut ended = Ended::default();
        // A process that is out of step may harm the answer behind the one that it failed at.
        let mut harmed = noted.stream_faults.saturating_sub(self.stream_faults);
        self.stream_faults = noted.stream_faults;
        for reply in Reply::all(nexus)? {
            let Some(kind) = Kind::parse(&reply.channel) else { continue };
            if !self.replies.insert((reply.key.clone(), reply.status.clone(), reply.attempts)) {
                continue;
            }
            let mut cause = reply.cause(kind, noted, self.clock_was_off);
            let was_cut_off = self.cut_off.replies.contains(&(reply.key.clone(), reply.attempts));
            if matches!(cause, Cause::None | Cause::Slow) && was_cut_off {
                cause = Cause::Known;
            }
            if cause == Cause::None && kind == Kind::Live && harmed > 0 {
                harmed -= 1;
                cause = Cause::Known;
            }
            ended.add(format!("{} `{}` ({})", reply.key, reply.status, reply.error), cause);
        }
        Ok(ended)
    }
}

/// How many conversations a world has. In each of them one request is run and one reply is sent at a time.
fn conversations(world: &World) -> usize {
    world.kinds().map(conversations_of).sum()
}

fn conversations_of(kind: Kind) -> usize {
    kind.accounts().len() * PEERS as usize
}

fn copied(world: &World) -> Result<Option<Copy>> {
    if world.data().join("nexus.db").exists() { Copy::of(&world.data()).map(Some) } else { Ok(None) }
}

/// A death within the first migration leaves files that have not all tables.
fn has_tables(nexus: &Connection) -> Result<bool> {
    for table in ["nexus_requests", "runs", "deliveries"] {
        if !has_table(nexus, table)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// By what the daemon says of it.
fn slow_or_none(reason: &str) -> Cause {
    if is_slow(reason) { Cause::Slow } else { Cause::None }
}

/// Whether nothing is wrong by it but the time that something took.
pub(super) fn is_slow(reason: &str) -> bool {
    SLOW.iter().any(|words| reason.contains(words))
}

/// What ended since the look before.
#[derive(Debug, Default)]
struct Ended {
    all: usize,
    slow: Vec<String>,
    unexplained: Vec<String>,
    impossible: Vec<String>,
}

impl Ended {
    fn add(&mut self, what: String, cause: Cause) {
        self.all += 1;
        match cause {
            Cause::Known => {}
            Cause::Slow => self.slow.push(what),
            Cause::None => self.unexplained.push(what),
            Cause::Impossible(why) => self.impossible.push(format!("{what} {why}")),
        }
    }

    /// What there is too much of. When the machine stands still for a while, all that goes on `at_once` is slow.
    fn beyond(self, of: &str, leeway: Leeway, at_once: usize) -> Vec<String> {
        let Self { all, slow, unexplained, impossible } = self;
        let mut found: Vec<String> = impossible.into_iter().take(NAMED_MAX).collect();
        let Leeway::AtMost(items) = leeway else { return found };
        let slow_max = at_once + all / SLOW_ONE_IN;
        for (why, some, most) in [("a cause", unexplained, items), ("a cause but the time they took", slow, slow_max)] {
            if some.len() > most {
                let named: Vec<&String> = some.iter().take(NAMED_MAX).collect();
                found.push(format!("{} of {all} {of} ended badly without {why}, and {most} at most could have: {named:?}", some.len()));
            }
        }
        found
    }
}

/// A request that has ended, with its last run.
struct Request {
    seq: i64,
    event_id: String,
    channel: String,
    status: String,
    reason: String,
    attempts: u64,
    run: String,
    agent: String,
}

impl Request {
    fn all(nexus: &Connection) -> Result<Vec<Self>> {
        let sql = "SELECT q.event_seq, q.event_id, q.channel, q.status, coalesce(q.reason, ''), q.attempts, coalesce(r.run_id, ''),
                          coalesce(r.agent, '')
                   FROM nexus_requests q LEFT JOIN runs r ON r.event_seq = q.event_seq AND r.attempt = q.attempts
                   WHERE q.completed_at IS NOT NULL";
        rows(nexus, sql, |row| {
            let (seq, event_id, channel, status) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            Ok(Self { seq, event_id, channel, status, reason: row.get(4)?, attempts: row.get(5)?, run: row.get(6)?, agent: row.get(7)? })
        })
    }
}

/// A delivery that has ended, or that nobody knows the end of.
struct Reply {
    key: String,
    channel: String,
    status: String,
    attempts: u64,
    error: String,
}

impl Reply {
    fn all(nexus: &Connection) -> Result<Vec<Self>> {
        let sql = "SELECT idempotency_key, channel, status, attempts, coalesce(error, '') FROM deliveries
                   WHERE status NOT IN ('pending', 'sending')";
        rows(nexus, sql, |row| {
            Ok(Self { key: row.get(0)?, channel: row.get(1)?, status: row.get(2)?, attempts: row.get(3)?, error: row.get(4)? })
        })
    }

    fn cause(&self, kind: Kind, noted: &Noted, clock_was_off: bool) -> Cause {
        let is_noted = match self.status.as_str() {
            "expired" if clock_was_off => return Cause::Known,
            "expired" => return Cause::Impossible("had its time to live left"),
            "uncertain" if self.attempts == 0 => return Cause::Impossible("was never tried"),
            // A reply may be a stream first and sent then, and what one of them says decides about both.
            "uncertain" | "failed" if kind.speaks() => [LOST, REFUSED, REJECTED].into_iter().any(|fault| noted.has(&self.key, fault)),
            "uncertain" => noted.ends_with(&self.key, LOST),
            "failed" => noted.ends_with(&self.key, REJECTED) || (noted.ends_with(&self.key, REFUSED) && self.attempts > SEND_RETRIES),
            _ => return Cause::Known, // it was sent, or a person decided about it
        };
        if is_noted { Cause::Known } else { slow_or_none(&self.error) }
    }
}

/// What others than the daemon wrote down.
#[derive(Debug, Default)]
struct Noted {
    /// Events of strangers, and such as were old when they were written.
    strangers: HashSet<String>,
    old: HashSet<String>,
    /// What was written in each event, and when.
    written: HashMap<String, (String, u64)>,
    /// Runs whose agents were about to fail.
    failing: HashSet<String>,
    /// What shared such a run.
    failing_contents: HashSet<String>,
    stays: Stays,
    /// When each reply was last begun to be sent, and when this was last done wrong with it.
    begun: HashMap<String, u64>,
    faults: HashMap<(String, String), u64>,
    /// How many calls for a reply left open whether it arrived, or said that it did not.
    unsure: HashMap<String, usize>,
    stream_faults: usize,
}

impl Noted {
    fn read(world: &World) -> Result<Self> {
        let mut noted = Self::default();
        for (kind, account) in accounts() {
            for line in journal::values(&world.feed(kind, account))? {
                let (event, at) = (&line["event"], line["at"].as_i64().context("a line of the feed has no time")?);
                let id = text(event, "event_id");
                noted.written.insert(id.clone(), (text(event, "content"), line["ns"].as_u64().unwrap_or_default()));
                if event["peer_kind"] == "channel" {
                    noted.strangers.insert(id.clone());
                }
                // A timestamp of 0 says nothing.
                if event["timestamp"].as_i64().is_some_and(|said| said != 0 && said < at - OLD_MS) {
                    noted.old.insert(id);
                }
            }
        }
        let agents = journal::values(&world.agent_journal())?;
        let fails = agents.iter().filter(|line| line["what"] == FAILS && line["run_id"].is_string());
        noted.failing = fails.map(|line| text(line, "run_id")).collect();
        noted.stays = Stays::of(&agents);
        for line in journal::values(&world.send_calls())? {
            noted.begun.insert(text(&line, "key"), line["at"].as_u64().unwrap_or_default());
        }
        // What shares a run fails with it.
        let of_failing = agents.iter().filter(|line| line["what"] == TOOK_IN && noted.failing.contains(&text(line, "run_id")));
        noted.failing_contents = of_failing.map(|line| text(line, "content")).collect();
        for line in journal::values(&world.faults())? {
            noted.stream_faults += usize::from(line["channel"] == Kind::Live.name());
            if line["what"] == LOST || line["what"] == REFUSED {
                *noted.unsure.entry(text(&line, "key")).or_default() += 1;
            }
            noted.faults.insert((text(&line, "key"), text(&line, "what")), line["at"].as_u64().unwrap_or_default());
        }
        Ok(noted)
    }

    /// Of one of several messages that were a stream before, the stream's counts too.
    fn has(&self, key: &str, fault: &str) -> bool {
        let of = |key: &str| self.faults.contains_key(&(key.to_owned(), fault.to_owned()));
        of(key) || key.rsplit_once('/').is_some_and(|(before, _)| of(before))
    }

    /// What was done wrong with the last attempt: each sender notes its call first. What an earlier one did says nothing.
    fn ends_with(&self, key: &str, fault: &str) -> bool {
        let fault = self.faults.get(&(key.to_owned(), fault.to_owned()));
        fault.is_some_and(|at| self.begun.get(key).is_none_or(|begun| at >= begun))
    }
}

#[cfg(test)]
#[path = "causes_tests.rs"]
mod tests;
