//! Runs the events again that failed only because their project waited, once it doesn't any more: each becomes a replay, in
//! their order, and once, whoever dies in between. It goes by what the ledgers say, so that a decision that nobody heard of, or
//! that was made before a crash, counts like any other. A project that only could not be had is prepared again, with growing
//! pauses. What failed keeps its end.

use super::control::Control;
use super::replay::{self, TakenUp};
use crate::error_text::describe;
use crate::ledger::ReadError;
use crate::ledger::nexus::{Awaited, ForgetWaits, MoveWaits, Wait, wait_groups, waits};
use crate::project::coordinate::Coordinate;
use crate::project::prepare::{PrepareError, Progress};
use crate::project::waits::{Prospect, Sorted, sorted};
use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often is looked whether a project still waits, while events wait for it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks between two at what projects lack: what is mended without a reload, as a key's file, is seen then.
const RECONSIDER_EVERY: u32 = 60;
/// Preparations under way at once for what waits.
const PREPARING_MAX: usize = 4;
/// Pause after the first preparation that came to nothing; it doubles with each, up to the longest.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(10 * 60);

/// Runs until `stop`.
pub(super) async fn run(control: Arc<Control>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut definitions = control.nostr.redefined();
    let mut looks = 0_u32;
    let mut watch = Waiting::default();
    loop {
        crate::torture::point("task.project waits");
        tokio::select! {
            _ = tick.tick() => {}
            project = arrived(&mut definitions) => {
                watch.hurry(project.as_ref());
                continue;
            }
            () = stop.cancelled() => return,
        }
        let reconsiders = looks.is_multiple_of(RECONSIDER_EVERY);
        looks = looks.wrapping_add(1);
        if !reconsiders && watch.is_empty && control.projects.has_none() {
            continue; // only what is done for a project begins to wait
        }
        let looked = watch.look(&control, reconsiders).await;
        watch.note_look(looked);
    }
}

/// The project whose definition arrived; `None` when those of several may have.
async fn arrived(definitions: &mut Receiver<Coordinate>) -> Option<Coordinate> {
    match definitions.recv().await {
        Ok(project) => Some(project),
        Err(RecvError::Lagged(_)) => None,
        Err(RecvError::Closed) => pending().await,
    }
}

/// A preparation of a project that could not be had.
#[derive(Debug)]
struct Attempt {
    /// Those that came to nothing, in a row.
    failures: u32,
    next: Instant,
    under_way: Option<JoinHandle<Result<(), PrepareError>>>,
}

impl Attempt {
    /// What is over and was not looked at holds up no other.
    fn is_under_way(&self) -> bool {
        self.under_way.as_ref().is_some_and(|task| !task.is_finished())
    }

    /// Without a pause; one that is under way may be too early to see what has changed, and the next one follows soon.
    fn hurry(&mut self) {
        (self.failures, self.next) = (0, Instant::now());
    }
}

/// What one look knows of the one before; nothing that a crash may not take.
#[derive(Debug, Default)]
struct Waiting {
    /// By coordinate.
    attempts: BTreeMap<String, Attempt>,
    /// Projects whose events could not be dealt with by this look, and those that this was told of before.
    stuck: BTreeSet<String>,
    told: BTreeSet<String>,
    /// The ledger could not be read, which was told.
    is_blind: bool,
    /// Nothing did.
    is_empty: bool,
}

impl Waiting {
    /// Another definition is another chance, whatever the pause.
    fn hurry(&mut self, project: Option<&Coordinate>) {
        let project = project.map(Coordinate::to_string);
        let meant = self.attempts.iter_mut().filter(|(one, _)| project.as_ref().is_none_or(|project| project == *one));
        meant.for_each(|(_, attempt)| attempt.hurry());
    }

    fn note_look(&mut self, looked: Result<(), ReadError>) {
        match looked {
            Err(error) if !self.is_blind => {
                tracing::warn!(error = %describe(&error), "what waits for projects can't be read");
                self.is_blind = true;
            }
            Ok(()) if self.is_blind => {
                tracing::info!("what waits for projects can be read again");
                self.is_blind = false;
            }
            Err(_) | Ok(()) => {}
        }
    }

    /// Tells it once for as long as it is so.
    fn is_stuck(&mut self, project: &str, error: &str) {
        if self.stuck.insert(project.to_owned()) && !self.told.contains(project) {
            tracing::warn!(project, error, "events that waited for their project can't be run again yet");
        }
    }

    async fn look(&mut self, control: &Control, reconsiders: bool) -> Result<(), ReadError> {
        if *control.disk_low.borrow() {
            return Ok(()); // nothing is accepted
        }
        let groups = control.ledgers.nexus.readers.read(wait_groups).await?;
        self.is_empty = groups.is_empty();
        if reconsiders && groups.iter().any(|(_, awaited)| *awaited == Awaited::Configuration) {
            control.projects.reconsider().await;
        }
        let mut projects: Vec<String> = Vec::new();
        for (project, _) in groups {
            if !projects.contains(&project) {
                projects.push(project);
            }
        }
        self.attempts.retain(|project, attempt| attempt.is_under_way() || projects.contains(project));
        self.told = std::mem::take(&mut self.stuck);
        for project in projects {
            self.look_at(control, &project).await?;
        }
        Ok(())
    }

    async fn look_at(&mut self, control: &Control, project: &str) -> Result<(), ReadError> {
        let name = project.to_owned();
        let all = control.ledgers.nexus.readers.read(move |connection| waits(connection, &name)).await?;
        let expiry = &control.sinks.expiry;
        let Sorted { mut taken, left } = sorted(all, |at| expiry.is_over(at));
        if !left.is_empty() {
            // First: of what is left afterwards none is too many any more.
            if !self.forget(control, project, &left).await {
                return Ok(());
            }
            tracing::warn!(project, events = left.len(), "events have waited too long for their project, or are too many, and stay failed");
        }
        let Some(mut standings) = self.standings(control, project, &mut taken).await? else { return Ok(()) };
        for (awaited, prospect) in &mut standings {
            if *prospect == Prospect::Unprepared {
                *prospect = self.prepared(control, project, *awaited).await;
            }
        }
        let of = |prospect: Prospect| -> Vec<Wait> {
            let is_it = |wait: &&Wait| standings.iter().any(|(awaited, is)| *awaited == wait.awaited && *is == prospect);
            taken.iter().filter(is_it).cloned().collect()
        };
        let (refused, over) = (of(Prospect::Refused), of(Prospect::Over));
        if !refused.is_empty() && self.forget(control, project, &refused).await {
            tracing::info!(project, events = refused.len(), "what waited for an approval that was denied stays failed");
        }
        if !over.is_empty() {
            self.take_up(control, project, over).await;
        }
        Ok(())
    }

    /// What these wait for by now, which is put down, and how it stands with that. `None` when it could not be put down.
    async fn standings(
        &mut self,
        control: &Control,
        project: &str,
        taken: &mut [Wait],
    ) -> Result<Option<Vec<(Awaited, Prospect)>>, ReadError> {
        let mut seen: Vec<Awaited> = Vec::new();
        let mut standings: Vec<(Awaited, Prospect)> = Vec::new();
        for from in taken.iter().map(|wait| wait.awaited).collect::<Vec<_>>() {
            if seen.contains(&from) {
                continue;
            }
            seen.push(from);
            let (to, prospect) = control.projects.prospect(project, from).await?;
            if to != from {
                let moved = MoveWaits { project: project.to_owned(), from, to };
                if let Err(error) = control.ledgers.nexus.writer.write(moved).await {
                    self.is_stuck(project, &error.to_string());
                    return Ok(None);
                }
                taken.iter_mut().filter(|wait| wait.awaited == from).for_each(|wait| wait.awaited = to);
                if let Some(attempt) = self.attempts.get_mut(project) {
                    attempt.hurry(); // what was decided since is another chance
                }
            }
            if standings.iter().all(|(known, _)| *known != to) {
                standings.push((to, prospect));
            }
        }
        Ok(Some(standings))
    }

    /// Has a project prepared once its pause is over, without waiting for it; what an earlier call began comes to this.
    async fn prepared(&mut self, control: &Control, project: &str, awaited: Awaited) -> Prospect {
        let under_way = self.attempts.values().filter(|attempt| attempt.is_under_way()).count();
        let fresh = || Attempt { failures: 0, next: Instant::now(), under_way: None };
        let attempt = self.attempts.entry(project.to_owned()).or_insert_with(fresh);
        match attempt.under_way.take() {
            Some(task) if !task.is_finished() => attempt.under_way = Some(task),
            Some(task) => {
                attempt.next = Instant::now() + pause_after(attempt.failures);
                attempt.failures = attempt.failures.saturating_add(1);
                match task.await {
                    // The ledger says at the next look how it is.
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return self.failed(control, project, awaited, &error).await,
                    Err(error) => tracing::warn!(project, %error, "a preparation broke off"),
                }
            }
            None if attempt.next <= Instant::now() && under_way < PREPARING_MAX => {
                // The event itself says why when it is run again.
                let Ok(coordinate) = Coordinate::parse(project) else { return Prospect::Over };
                let (preparer, progress) = (control.preparer.clone(), Progress::new(control.bus.clone(), &coordinate));
                let preparing = async move { preparer.ensure(&coordinate, &progress).await.map(drop) };
                attempt.under_way = Some(crate::watch::helper("project.prepare_again", preparing));
            }
            None => {}
        }
        Prospect::Waits
    }

    /// What a preparation that came to nothing means for who waits for it.
    async fn failed(&mut self, control: &Control, project: &str, from: Awaited, error: &PrepareError) -> Prospect {
        match error.awaits() {
            Some(to) if to != from => {
                let moved = MoveWaits { project: project.to_owned(), from, to };
                if let Err(error) = control.ledgers.nexus.writer.write(moved).await {
                    self.is_stuck(project, &error.to_string()); // seen again by the next attempt
                }
                Prospect::Waits
            }
            Some(_) => Prospect::Waits,
            None if matches!(error, PrepareError::HostDenied { .. }) => Prospect::Refused,
            // It won't pass by itself: who asked is told why.
            None => Prospect::Over,
        }
    }

    /// Runs again what waited. None overtakes another.
    async fn take_up(&mut self, control: &Control, project: &str, over: Vec<Wait>) {
        let mut events = 0;
        for wait in over {
            match replay::take_up(control, &wait).await {
                Ok(TakenUp::Again) => events += 1,
                Ok(TakenUp::Settled) => {}
                Ok(TakenUp::Later) => break,
                Err(refusal) => {
                    self.is_stuck(project, &refusal.error);
                    break;
                }
            }
        }
        if events > 0 {
            tracing::info!(project, events, "events that waited for their project are run again");
        }
    }

    /// Their rows go. False when that could not be written; then the next look tries again.
    async fn forget(&mut self, control: &Control, project: &str, waits: &[Wait]) -> bool {
        let event_seqs = waits.iter().map(|wait| wait.event_seq).collect();
        let written = control.ledgers.nexus.writer.write(ForgetWaits { event_seqs }).await;
        if let Err(error) = &written {
            self.is_stuck(project, &error.to_string());
        }
        written.is_ok()
    }
}

/// After so many failures before this one.
fn pause_after(failures: u32) -> Duration {
    2_u32.checked_pow(failures).map_or(PAUSE_MAX, |times| PAUSE_MIN.saturating_mul(times).min(PAUSE_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest() {
        let seconds: Vec<u64> = [0, 1, 2, 8, 9, 31, 32, u32::MAX].map(|failures| pause_after(failures).as_secs()).to_vec();
        assert_eq!(seconds, [2, 4, 8, 512, 600, 600, 600, 600]);
    }

    #[test]
    fn a_definition_that_arrives_ends_the_pause_of_its_project_alone() {
        let (one, other) = (format!("31933:{}:a", "a".repeat(64)), format!("31933:{}:b", "a".repeat(64)));
        let later = Instant::now() + PAUSE_MAX;
        let paused = || Attempt { failures: 3, next: later, under_way: None };
        let attempts = [&one, &other].map(|project| (project.clone(), paused())).into();
        let mut waiting = Waiting { attempts, ..Waiting::default() };
        waiting.hurry(Coordinate::parse(&one).ok().as_ref());
        assert!(waiting.attempts[&one].next < later && waiting.attempts[&one].failures == 0);
        assert_eq!(waiting.attempts[&other].next, later);
        waiting.hurry(None);
        assert!(waiting.attempts[&other].next < later, "whose it was is not known");
    }
}
