//! One seed: a world, its cycles of start, fault and death, the calm after them, and what the checker
//! says of it all.

use crate::chance::Chance;
use crate::check::causes::Causes;
use crate::check::children::{Intake, Turns};
use crate::check::{self, Snapshots};
use crate::daemon::{self, Daemon, Extras, was_killed};
use crate::disk::Disk;
use crate::fault::{self, AT_A_STOP, Fault, Program, Victim};
use crate::feeder::Feeder;
use crate::inflict::{self, Done};
use crate::people::People;
use crate::posters::{self, Posters};
use crate::procfs::Process;
use crate::quarantine;
use crate::relay::Relay;
use crate::report::Counts;
use crate::source::{self, Source};
use crate::world::{Cast, OnInterrupted, World};
use crate::{clock, journal, procfs, stops};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a fail point may take to be passed before the daemon is killed all the same.
const POINT_LIMIT: Duration = Duration::from_millis(2500);
/// How long children may take to be what they should be.
const CHILDREN_LIMIT: Duration = Duration::from_secs(20);
/// How long they may take at a calm moment, when no call of an adapter is under way either: a process that died has a pause.
const INTENDED_LIMIT: Duration = Duration::from_secs(40);
/// How long what agents left behind may take to be gone: an agent that was frozen has to be given up before.
const LEFTOVERS_LIMIT: Duration = Duration::from_secs(20);
/// How long a dead daemon's processes may take to be gone: its keeper gives up after ten seconds.
const CLEANUP_LIMIT: Duration = Duration::from_secs(15);
/// Longest pause between two messages, and between two posts on Nostr, in ms.
const FEED_PAUSE_MS_MAX: u64 = 40;
const POST_PAUSE_MS_MAX: u64 = 300;

/// What all seeds of one call share.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// The fail-point daemon, this program, and the library that a daemon is preloaded with (tools/powerloss).
    pub(crate) nexus: PathBuf,
    pub(crate) own: PathBuf,
    pub(crate) shim: PathBuf,
    pub(crate) points: Vec<String>,
    pub(crate) crashes: u64,
    /// Where worlds are made.
    pub(crate) dir: PathBuf,
    pub(crate) keep: bool,
}

/// What one seed came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) counts: Counts,
    pub(crate) violations: Vec<String>,
    /// The world, if it was kept to be looked at.
    pub(crate) kept: Option<PathBuf>,
}

/// Runs one seed.
///
/// # Errors
/// When the harness itself can't go on; broken promises are in the outcome.
pub(crate) fn seed(setup: &Setup, seed: u64, cast: Cast) -> Result<Outcome> {
    let dir = tempfile::Builder::new().prefix(&format!("torture-{seed}-")).tempdir_in(&setup.dir).context("failed to make a directory")?;
    let world = World::make(dir.path(), cast)?;
    let disk = Disk::mount(&world)?;
    let relay = if cast.nostr { Some(Relay::start(&world, Chance::new(seed).about(&["relay"]))?) } else { None };
    // Serves until the end.
    let _source = if cast.approvals { Some(Source::start(&world, Chance::new(seed).about(&["source"]))?) } else { None };
    let mut run = Run::new(setup, seed, world.clone(), disk, relay);
    let result = run.cycles().and_then(|()| run.calm());
    daemon::clear(&world);
    let Run { counts, mut violations, disk, relay, .. } = run;
    let result = result.and(relay.map_or(Ok(()), Relay::end));
    violations.extend(journal::lines(&world.violations())?);
    if let Err(error) = &result {
        violations.push(format!("the run could not go on: {error:#}"));
    }
    let kept = (setup.keep && !violations.is_empty()).then(|| keep(&world, disk.as_ref(), dir)).transpose()?;
    drop(disk);
    Ok(Outcome { counts, violations, kept })
}

/// The faults of a seed's cycles, in their order, at fail points that are passed when the ledgers are there.
pub(crate) fn plan(setup: &Setup, seed: u64, cast: Cast) -> Vec<Fault> {
    let points: Vec<String> = setup.points.iter().filter(|point| !point.starts_with("migration.")).cloned().collect();
    let (favoured, others) = (fault::favoured(&points, cast), Program::of(cast));
    let choose = |number: u64| {
        let mut chance = Chance::new(seed).about(&["cycle", &number.to_string()]);
        Fault::choose(&mut chance, &points, &favoured, &others, seed.wrapping_mul(setup.crashes).wrapping_add(number))
    };
    (0..setup.crashes).map(choose).collect()
}

/// Keeps a world's files, also those of a disk that is about to go.
fn keep(world: &World, disk: Option<&Disk>, dir: tempfile::TempDir) -> Result<PathBuf> {
    if disk.is_some() {
        check::copy(&world.data(), &world.file("data-copy"))?;
    }
    Ok(dir.keep())
}

pub(crate) struct Run<'a> {
    pub(crate) setup: &'a Setup,
    pub(crate) seed: u64,
    pub(crate) chance: Chance,
    pub(crate) world: World,
    pub(crate) disk: Option<Disk>,
    relay: Option<Relay>,
    pub(crate) on_interrupted: OnInterrupted,
    pub(crate) variant: u64,
    pub(crate) counts: Counts,
    pub(crate) violations: Vec<String>,
    /// The faults of its cycles.
    plan: Vec<Fault>,
    pub(crate) snapshots: Snapshots,
    pub(crate) causes: Causes,
}

impl<'a> Run<'a> {
    fn new(setup: &'a Setup, seed: u64, world: World, disk: Option<Disk>, relay: Option<Relay>) -> Self {
        let mut chance = Chance::new(seed);
        let on_interrupted = *chance.pick(&[OnInterrupted::Auto, OnInterrupted::Auto, OnInterrupted::Rerun, OnInterrupted::Fail]);
        let counts = Counts::default();
        Self {
            plan: plan(setup, seed, world.cast()),
            setup,
            seed,
            chance,
            world,
            disk,
            relay,
            on_interrupted,
            variant: 0,
            counts,
            violations: Vec::new(),
            snapshots: Snapshots::default(),
            causes: Causes::new(on_interrupted),
        }
    }

    pub(crate) fn configure(&self) -> Result<()> {
        self.world.configure(&self.setup.own, self.seed, self.on_interrupted, self.variant)
    }

    pub(crate) fn violated(&mut self, what: String) {
        self.violations.push(what);
    }

    fn cycles(&mut self) -> Result<()> {
        self.configure()?;
        self.die_early()?;
        self.first_run()?;
        let feeder = Feeder::start(&self.world, self.chance.about(&["feeder"]), FEED_PAUSE_MS_MAX);
        let people = People::start(&self.world, self.chance.about(&["people"]));
        let posters = self.post(&self.chance.about(&["posters"]), POST_PAUSE_MS_MAX);
        let went = self.all_cycles();
        self.counts.events += feeder.end()?;
        self.counts.deeds += people.end()?;
        posters.map_or(Ok(0), Posters::end)?;
        went
    }

    /// People begin to post on Nostr, where there is any.
    pub(crate) fn post(&self, chance: &Chance, pause_ms_max: u64) -> Option<Posters> {
        let relay = self.relay.as_ref()?;
        Some(Posters::start(&self.world, relay.door(), chance.clone(), pause_ms_max))
    }

    /// Some worlds have their first death before they have a ledger.
    fn die_early(&mut self) -> Result<()> {
        let mut early = self.chance.about(&["first start"]);
        let firsts: Vec<&String> =
            self.setup.points.iter().filter(|point| point.starts_with("migration.") || point.starts_with("start.")).collect();
        if !early.one_in(2) {
            return Ok(());
        }
        let fault = Fault::Point { name: (*early.pick(&firsts)).clone(), count: early.below(5) + 1, victim: Victim::Daemon };
        let extras = Extras { fail_point: fault.fail_point(), env: Vec::new() };
        let mut first = Daemon::spawn(&self.world, &self.setup.nexus, &extras)?;
        if first.ready()? {
            first.kill()?;
        }
        self.end_cycle(first, &fault, 0, Done::Yes)
    }

    /// A first run without faults: every account is known before anything goes wrong, and so is the daemon to those who
    /// post on Nostr.
    fn first_run(&mut self) -> Result<()> {
        if let Some(relay) = &self.relay {
            posters::define(&self.world, &relay.door())?;
        }
        std::fs::write(self.world.calm(), "").context("failed to write a file")?;
        let mut first = Daemon::spawn(&self.world, &self.setup.nexus, &Extras::default())?;
        if !first.ready()? {
            bail!("the first start failed: {}", daemon::last_words(&self.world));
        }
        self.children_are_right(&first, Intake::Goes)?;
        if self.relay.is_some() {
            posters::learn_key(&self.world)?;
        }
        std::fs::remove_file(self.world.calm()).context("failed to remove a file")?;
        let status = first.stop()?;
        if !status.success() {
            self.violated(format!("the first stop ended with {status}: {}", daemon::last_words(&self.world)));
        }
        Ok(())
    }

    fn all_cycles(&mut self) -> Result<()> {
        for (number, fault) in (0..).zip(std::mem::take(&mut self.plan)) {
            self.cycle(number, &fault).with_context(|| format!("in cycle {number}, {fault:?}"))?;
            if !self.violations.is_empty() {
                break; // what comes after a broken promise says little
            }
        }
        Ok(())
    }

    fn cycle(&mut self, number: u64, fault: &Fault) -> Result<()> {
        journal::append(&self.world.file("cycles"), &format!("{number} {fault:?}"))?;
        let done = inflict::before(self, fault)?;
        if done == Done::Impossible {
            self.counts.skipped(&fault.kind());
            return Ok(());
        }
        let extras = Extras { fail_point: fault.fail_point(), env: inflict::variables(self, fault) };
        let fired_before = daemon::fired(&self.world)?.len();
        let mut daemon = Daemon::spawn(&self.world, &self.setup.nexus, &extras)?;
        let began = clock::monotonic_ns();
        let upon = if let Fault::Kill { victim, after_ms } = fault
            && self.chance.one_in(2)
        {
            self.kill_early(&mut daemon, *victim, *after_ms)?
        } else if daemon.ready()? {
            self.counts.ready_ms.push((clock::monotonic_ns() - began) / 1_000_000);
            if self.world.cast().quarantine {
                self.look_on_and_release(fault)?;
            }
            if number.is_multiple_of(3) && fault.fail_point().is_none() {
                self.children_are_right(&daemon, inflict::intake_under(fault))?;
            }
            let done = inflict::upon(self, &mut daemon, fault)?;
            self.await_point(&mut daemon, fault)?;
            done
        } else if matches!(fault, Fault::ReadOnly | Fault::CorruptPage { .. }) || fault.point().is_some() {
            Done::Yes // it was done before the start, or at its point
        } else {
            Done::Missed
        };
        self.end_cycle(daemon, fault, fired_before, if done == Done::Yes { upon } else { done })?;
        if fault.hits_programs() {
            let hit = serde_json::json!({ "from": began, "to": clock::monotonic_ns() });
            journal::append(&self.world.hits(), &hit.to_string())?;
        }
        Ok(())
    }

    /// From the moment of the spawn on, ready or not.
    fn kill_early(&mut self, daemon: &mut Daemon, victim: Victim, after_ms: u64) -> Result<Done> {
        clock::pause(Duration::from_millis(after_ms / 4));
        let was_hit = self.kill(daemon, victim)? == victim;
        // One that lost its keeper on its way up still has to get there.
        if daemon.is_running() && daemon.ready()? {
            self.children_are_right(daemon, Intake::Goes)?;
        }
        Ok(if was_hit { Done::Yes } else { Done::Missed })
    }

    /// Waits until the fault's point has fired, doing what leads there.
    fn await_point(&mut self, daemon: &mut Daemon, fault: &Fault) -> Result<()> {
        let Some(point) = fault.point() else { return Ok(()) };
        let mut over_and_over: Box<dyn FnMut() -> Result<()>> = Box::new(|| Ok(()));
        if point.starts_with("stop.") {
            daemon.tell_to_stop();
        } else if point.starts_with("reload.") || point == "task.signals" {
            // A reload is asked for by a signal, and no other comes by itself.
            self.variant += 1;
            self.configure()?;
            procfs::signal(daemon.pid(), Signal::USR1);
        } else if point.starts_with("write.Replay") {
            self.replay(daemon)?;
        } else if point.starts_with("write.ResolveDelivery") {
            self.decide(daemon)?;
        } else if ["write.DecideApproval", "write.MoveWaits", "write.ForgetWaits"].iter().any(|command| point.starts_with(command)) {
            source::approve(&self.world)?;
        } else if point.starts_with("write.ReviveAutomation") {
            // The daemon may die of it, which is the point; so of the next.
            daemon.ask("POST", "/control/automations/loops/enable", "{}").ok();
        } else if point.starts_with("write.ForgetAutomation") {
            // One that knows nothing: what is forgotten of the counter would be missing from its count.
            daemon.ask("POST", "/control/automations/throws/forget", "{}").ok();
        } else if point.starts_with("write.StopRequest") {
            over_and_over = self.stops_turns();
        } else if point.starts_with("write.QuarantineProject") && self.world.cast().quarantine {
            over_and_over = self.releases_project();
        } else if point.starts_with("write.BackfillDone") {
            // The first start has fetched the history, and no other one does.
            daemon.ask("POST", "/control/adapters/both/a/backfill", "{}").ok();
        } else if AT_A_STOP.iter().any(|start| point.starts_with(start)) {
            clock::pause(Duration::from_millis(600));
            daemon.tell_to_stop();
        }
        clock::until(POINT_LIMIT, || {
            over_and_over()?;
            Ok(daemon.ended()?.is_some().then_some(()))
        })?;
        // It has to be whole again after a panic, and after its keeper's death.
        if !daemon.was_told_to_stop() && daemon.is_running() {
            self.children_are_right(daemon, Intake::Goes)?;
        }
        Ok(())
    }

    /// A person wants something to be answered again. Whether they hear of it is theirs to try again.
    fn replay(&mut self, daemon: &Daemon) -> Result<()> {
        let id = "both:a-1";
        if let Ok((200, _)) = daemon.ask("GET", &format!("/control/events/{id}"), "") {
            let key = format!("again-{}", self.chance.below(u64::MAX));
            // The daemon may die of it, which is the point.
            daemon
                .ask("POST", &format!("/control/events/{id}/replay"), &format!(r#"{{"key":"{key}","only_failed":false,"wait":false}}"#))
                .ok();
        }
        Ok(())
    }

    /// A person ends turns: not every session has one at every moment.
    fn stops_turns(&mut self) -> Box<dyn FnMut() -> Result<()>> {
        let number = self.chance.below(u64::MAX).to_string();
        let (mut chance, world) = (self.chance.about(&["stops", &number]), self.world.clone());
        Box::new(move || stops::ask(&world, &mut chance))
    }

    /// A person releases the project: it crashes when it likes.
    fn releases_project(&self) -> Box<dyn FnMut() -> Result<()>> {
        let world = self.world.clone();
        Box::new(move || {
            quarantine::release_if_it_lives(&world);
            Ok(())
        })
    }

    /// A person gives up a delivery that is uncertain.
    fn decide(&self, daemon: &Daemon) -> Result<()> {
        let Ok((200, body)) = daemon.ask("GET", "/control/deliveries?status=uncertain&limit=1", "") else { return Ok(()) };
        let list: serde_json::Value = serde_json::from_str(&body).context("the deliveries are no JSON")?;
        if let Some(id) = list["deliveries"][0]["delivery_id"].as_str() {
            daemon.ask("POST", &format!("/control/deliveries/{id}/discard"), "{}").ok();
        }
        Ok(())
    }

    /// Sees to it that the daemon is dead, and looks at what it left.
    fn end_cycle(&mut self, mut daemon: Daemon, fault: &Fault, fired_before: usize, done: Done) -> Result<()> {
        let fired: Vec<String> = daemon::fired(&self.world)?.split_off(fired_before);
        for point in &fired {
            self.counts.fired(point);
        }
        if done == Done::Missed || (fault.point().is_some() && fired.is_empty()) {
            self.counts.missed(&fault.kind());
        } else {
            self.counts.done(&fault.kind());
        }
        match daemon.ended()? {
            None => daemon.kill()?,
            Some(status) if daemon.was_made_to_end(status) => {}
            Some(status) if was_killed(status) && fault.kills_at_a_point() && !fired.is_empty() => {}
            Some(status) if status.code().is_some_and(|code| code != 0) && inflict::may_fail(fault, daemon.was_ready()) => {}
            Some(status) => {
                let words = daemon::last_words(&self.world);
                self.violated(format!("the daemon ended by itself with {status} during {fault:?}; its last words:\n{words}"));
            }
        }
        drop(daemon);
        inflict::after(self, fault)?;
        let free = clock::until(CLEANUP_LIMIT, || Ok(daemon::lock_is_free(&self.world).then_some(())))?;
        if free.is_none() {
            self.violated(format!("after {fault:?} the lock is held on by the dead daemon's keeper"));
        }
        let mut found = self.snapshots.look(&self.world)?;
        found.extend(self.causes.after(&self.world, fault)?);
        self.violations.extend(found.into_iter().map(|what| format!("after {fault:?}: {what}")));
        Ok(())
    }

    /// SIGKILL; whom it hit. Without a keeper it is the daemon's turn.
    pub(crate) fn kill(&mut self, daemon: &mut Daemon, victim: Victim) -> Result<Victim> {
        let Some(keeper) = daemon.keeper().filter(|_| victim != Victim::Daemon) else {
            return daemon.kill().map(|()| Victim::Daemon);
        };
        keeper.signal(Signal::KILL);
        if victim == Victim::Both {
            daemon.kill()?;
        }
        Ok(victim)
    }

    /// What agents have left behind by now ends, since they end: all of it where there are cgroups, elsewhere what
    /// has its mark.
    pub(crate) fn leftovers_end(&mut self, daemon: &Daemon) -> Result<()> {
        let mut left = check::children::left_behind(&self.world);
        match daemon.has_cgroup() {
            Some(true) => {}
            Some(false) => left.retain(|one| !check::children::is_scrubbed(one)),
            None => return Ok(()), // with its keeper all of them end, which the next look sees
        }
        let gone = clock::until(LEFTOVERS_LIMIT, || {
            left.retain(Process::is_alive);
            Ok((left.is_empty() || !daemon.is_running()).then_some(()))
        })?;
        if gone.is_none() {
            self.violated(format!("agents have ended, and what they left behind lives: {left:?}"));
        }
        Ok(())
    }

    /// At a calm moment every intended child lives once, of whatever sort, and no other.
    pub(crate) fn children_are_as_intended(&mut self, daemon: &Daemon, turns: Turns) -> Result<()> {
        let world = self.world.clone();
        let wrong = || check::children::not_as_intended(&world, daemon, turns);
        let right = clock::until(INTENDED_LIMIT, || Ok(wrong().is_none().then_some(())))?;
        if right.is_none()
            && let Some(wrong) = wrong()
        {
            self.violated(format!("at a calm moment {wrong}; the log:\n{}", daemon::last_words(&world)));
        }
        Ok(())
    }

    /// Each intended child lives once, and nothing of an earlier daemon or an ended agent does.
    pub(crate) fn children_are_right(&mut self, daemon: &Daemon, intake: Intake) -> Result<()> {
        let world = self.world.clone();
        let stale = check::children::stale(&world, daemon);
        if !stale.is_empty() {
            let status = match daemon.status() {
                Ok(status) => status,
                Err(_) if !daemon.is_running() => return Ok(()), // its end is judged by the cycle's
                Err(error) => return Err(error),
            };
            let level = status["kill_level"]["level"].as_str().unwrap_or_default().to_owned();
            if level == "scan" && stale.iter().all(check::children::is_scrubbed) {
                self.counts.escaped += stale.len() as u64; // the hole that this level names
                stale.iter().for_each(|one| one.signal(Signal::KILL));
            } else {
                self.violated(format!("processes of a daemon before live: {stale:?}"));
            }
        }
        self.leftovers_end(daemon)?;
        let right = clock::until(CHILDREN_LIMIT, || {
            let is_over = check::children::wrong(&world, daemon, intake).is_none() || !daemon.is_running();
            Ok(is_over.then_some(()))
        })?;
        if right.is_none()
            && let Some(wrong) = check::children::wrong(&world, daemon, intake)
            && Daemon::is_running(daemon)
        {
            self.violated(format!("{wrong}; the log:\n{}", daemon::last_words(&world)));
        }
        Ok(())
    }
}

/// The place for worlds: the one asked for, which is made, or the system's.
///
/// # Errors
/// When it can't be made.
pub(crate) fn dir(asked: Option<&Path>) -> Result<PathBuf> {
    let Some(dir) = asked else { return Ok(std::env::temp_dir()) };
    std::fs::create_dir_all(dir).with_context(|| format!("failed to make `{}`", dir.display()))?;
    dir.canonicalize().with_context(|| format!("failed to find `{}`", dir.display()))
}
