//! One child's task: feeds verbs, exits and passing time to the lifecycle, and does what it says.

use super::{ChildSpec, ChildStatus, NotReady, Order, Phase, Verb};
use crate::clock;
use crate::error_text::describe;
use crate::keeper::{ExitStatus, Keeper, Process, SpawnSpec};
use crate::metrics::{ChildLabel, Metrics};
use crate::panics::{self, Panicked};
use crate::watch::Part;
use nexus_core::ids::ChildId;
use nexus_core::lifecycle::{Action, Input, Lifecycle, State};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A process and who reads it.
struct Running {
    process: Process,
    reader: JoinHandle<()>,
    /// Tells the reader that the process is gone.
    exited: CancellationToken,
    /// Told when the reader broke: nobody reads the process any more.
    unread: CancellationToken,
}

impl Running {
    /// Waits for its end. A process whose reader broke is ended: what it writes would go nowhere.
    async fn gone(&mut self) -> ExitStatus {
        tokio::select! {
            status = self.process.wait() => return status,
            () = self.unread.cancelled() => {}
        }
        self.process.kill_tree().await
    }
}

struct Task {
    spec: ChildSpec,
    life: Lifecycle,
    keeper: Keeper,
    metrics: Metrics,
    report: watch::Sender<ChildStatus>,
    running: Option<Running>,
    generation: u64,
    last_error: Option<String>,
    started_at: Option<i64>,
    removing: bool,
    /// What the machine has yet to hear of a process that a panic here has cost.
    unheard: Option<Input>,
}

/// Runs until the child is removed or every handle is dropped; the process is gone then.
pub(super) async fn run(
    spec: ChildSpec,
    keeper: Keeper,
    metrics: Metrics,
    mut inbox: mpsc::Receiver<Order>,
    report: watch::Sender<ChildStatus>,
    mut part: Part,
) {
    let life = Lifecycle::new(spec.policy.clone()).seeded(seed());
    let (running, last_error, started_at, unheard) = (None, None, None, None);
    let mut task = Task { spec, life, keeper, metrics, report, running, generation: 0, last_error, started_at, removing: false, unheard };
    // Only its removal ends a child's task.
    let never = CancellationToken::new();
    while let Err(panicked) = panics::caught(task.serve(&mut inbox)).await {
        task.lose_process(&panicked).await;
        if !part.failed(&panicked.to_string(), &never).await {
            let known = task.report.borrow().clone();
            task.tell(ChildStatus { phase: Phase::Errored, ..known });
            return;
        }
    }
}

impl Task {
    /// Until the child is removed.
    async fn serve(&mut self, inbox: &mut mpsc::Receiver<Order>) {
        if let Some(input) = self.unheard.take() {
            self.take(input, None, inbox).await;
            self.publish();
        }
        while !(self.removing && self.life.state() == State::Stopped) {
            crate::torture::point("task.child");
            let (input, note) = self.next(inbox).await;
            match input {
                Some(input) => self.take(input, note, inbox).await,
                None => answer(note),
            }
            self.publish();
        }
    }

    /// After a panic in this task: ends its process, reads what that wrote, and counts it as an exit.
    async fn lose_process(&mut self, panicked: &Panicked) {
        if let Some(Running { mut process, reader, exited, .. }) = self.running.take() {
            process.kill_tree().await;
            exited.cancel();
            reader.await.ok(); // it tells by itself how it ended
        }
        self.unheard = match self.life.state() {
            State::Starting => Some(Input::SpawnFailed { lasting: false }),
            State::Running { .. } | State::Stopping { .. } => Some(Input::Exited { code: None }),
            State::Stopped | State::Backoff { .. } | State::Errored { .. } => None,
        };
        self.metrics.child_running.get_or_create(&self.label()).set(0);
        self.last_error = Some(panicked.to_string());
        let (had_process, last_error) = (self.unheard.is_some(), self.last_error.clone());
        let known = self.report.borrow().clone();
        let phase = if had_process { Phase::Backoff } else { known.phase };
        self.tell(ChildStatus { phase, pid: None, started_at: None, last_error, ..known });
    }

    /// The next thing that happens, and who wants to know that it was taken.
    async fn next(&mut self, inbox: &mut mpsc::Receiver<Order>) -> (Option<Input>, Option<oneshot::Sender<()>>) {
        let deadline = self.life.deadline_ms();
        let exited = async {
            match &mut self.running {
                Some(running) => running.gone().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            order = inbox.recv() => match order {
                Some((verb, note)) => (self.input_of(verb), Some(note)),
                None => {
                    self.removing = true;
                    (Some(Input::Stop), None)
                }
            },
            status = exited => (Some(self.ended(status).await), None),
            () = until(deadline) => (Some(Input::Tick), None),
        }
    }

    fn input_of(&mut self, verb: Verb) -> Option<Input> {
        match verb {
            // What a person starts has a clean sheet: the reason why the last process ended is over.
            Verb::Start => {
                self.last_error = None;
                Some(Input::Start)
            }
            Verb::Wake => Some(Input::Wake),
            Verb::Stop => Some(Input::Stop),
            Verb::Restart => {
                self.last_error = None;
                Some(Input::Restart)
            }
            Verb::Policy(policy) => {
                self.life.set_policy(policy);
                None
            }
            Verb::Remove => {
                self.removing = true;
                Some(Input::Stop)
            }
        }
    }

    /// The whole tree is gone; what it wrote is still in the pipe. The reader is never cut off: it
    /// knows when it has all of it, and a slow disk must not cost a line.
    async fn ended(&mut self, status: ExitStatus) -> Input {
        if let Some(Running { process, reader, exited, unread }) = self.running.take() {
            exited.cancel();
            reader.await.ok(); // it tells by itself how it ended
            let wanted = matches!(self.life.state(), State::Stopping { .. });
            if let Err(panicked) = panics::catch(|| self.spec.program.ended(status, wanted)) {
                tracing::error!(child = %self.spec.id, error = %panicked, "a defect of the daemon after a child's end");
            }
            let rests = status.is_success() && self.spec.policy.on_demand.is_some();
            if wanted || rests {
                tracing::info!(child = %self.spec.id, pid = process.pid, %status, "child stopped");
            } else {
                let why = match process.given_up(status) {
                    _ if unread.is_cancelled() => ", after a defect of the daemon ended the reading of its output".to_owned(),
                    Some(reason) => format!(", after {reason}"),
                    None => String::new(),
                };
                self.last_error = Some(format!("{status}{why}"));
                tracing::warn!(child = %self.spec.id, pid = process.pid, %status, "child exited{why}");
            }
        }
        Input::Exited { code: status.code() }
    }

    /// Steps the machine and does what it says; a spawn is an input again. Who gave the order hears of
    /// it once its first effect shows in the status: a spawn that takes its time must not hold them.
    async fn take(&mut self, input: Input, mut note: Option<oneshot::Sender<()>>, inbox: &mut mpsc::Receiver<Order>) {
        let before = self.life.restarts_total();
        let mut input = Some(input);
        while let Some(one) = input.take() {
            let action = self.life.step(clock::mono_ms(), one);
            self.publish();
            answer(note.take());
            match action {
                Some(Action::Spawn) => input = Some(self.spawn(inbox).await),
                Some(Action::Term) => self.signal(Process::terminate),
                Some(Action::Kill) => {
                    tracing::warn!(child = %self.spec.id, "child ignores TERM; killing its whole tree");
                    self.signal(Process::kill);
                }
                None => {}
            }
        }
        let restarts = self.life.restarts_total() - before;
        if restarts > 0 {
            self.metrics.child_restarts.get_or_create(&self.label()).inc_by(restarts);
        }
    }

    async fn spawn(&mut self, inbox: &mut mpsc::Receiver<Order>) -> Input {
        let prepared = match self.prepare(inbox).await {
            Some(Ok(spec)) => {
                let spawned = self.keeper.spawn(spec).await;
                match spawned {
                    Ok(process) => self.attach(process).await,
                    Err(error) => Err(NotReady::from(describe(&error))),
                }
            }
            Some(Err(reason)) => Err(reason),
            None => return Input::SpawnFailed { lasting: false },
        };
        match prepared {
            Ok(running) => {
                self.generation += 1;
                self.started_at = Some(clock::wall_ms());
                tracing::info!(child = %self.spec.id, pid = running.process.pid, "child started");
                self.running = Some(running);
                Input::Spawned
            }
            Err(NotReady { reason, lasting }) => {
                tracing::error!(child = %self.spec.id, error = %reason, "child could not be started");
                self.last_error = Some(reason);
                Input::SpawnFailed { lasting }
            }
        }
    }

    /// Has a new process read. One that nobody reads is ended.
    async fn attach(&mut self, mut process: Process) -> Result<Running, NotReady> {
        let (exited, unread) = (CancellationToken::new(), CancellationToken::new());
        match panics::catch(|| self.spec.program.attach(&mut process, exited.clone())) {
            Ok(reader) => {
                let reader = crate::watch::helper("reader.watch", watch_reader(self.spec.id.clone(), reader, unread.clone()));
                Ok(Running { process, reader, exited, unread })
            }
            Err(panicked) => {
                process.kill_tree().await;
                Err(NotReady::from(format!("a defect of the daemon when it was started: {panicked}")))
            }
        }
    }

    /// Everything before the spawn; `None` when it isn't wanted any more.
    async fn prepare(&mut self, inbox: &mut mpsc::Receiver<Order>) -> Option<Result<SpawnSpec, NotReady>> {
        let program = self.spec.program.clone();
        let mut preparing = std::pin::pin!(panics::caught(async { program.prepare().await }));
        loop {
            let (verb, note) = tokio::select! {
                prepared = &mut preparing => {
                    let broken = |panicked: Panicked| Err(NotReady::from(format!("a defect of the daemon before it was started: {panicked}")));
                    return Some(prepared.unwrap_or_else(broken));
                }
                order = inbox.recv() => order.map_or((Verb::Remove, None), |(verb, note)| (verb, Some(note))),
            };
            let input = self.input_of(verb);
            let is_stop = matches!(input, Some(Input::Stop));
            if let Some(input) = input {
                // Nothing to do but for a stop: it is being started already.
                self.life.step(clock::mono_ms(), input);
            }
            self.publish();
            answer(note);
            if is_stop {
                return None;
            }
        }
    }

    fn signal(&self, signal: impl FnOnce(&Process)) {
        if let Some(running) = &self.running {
            signal(&running.process);
        }
    }

    fn publish(&mut self) {
        let phase = match self.life.state() {
            State::Stopped => Phase::Stopped,
            State::Starting => Phase::Starting,
            State::Running { .. } => Phase::Running,
            State::Stopping { .. } => Phase::Stopping,
            State::Backoff { .. } => Phase::Backoff,
            State::Errored { .. } => Phase::Errored,
        };
        let running = phase == Phase::Running;
        if running && self.life.restarts_in_row() == 0 {
            self.last_error = None;
        }
        self.metrics.child_running.get_or_create(&self.label()).set(i64::from(running));
        let status = ChildStatus {
            phase,
            pid: self.running.as_ref().map(|running| running.process.pid),
            started_at: self.running.as_ref().and(self.started_at),
            restarts: self.life.restarts_total(),
            generation: self.generation,
            last_error: self.last_error.clone(),
        };
        self.tell(status);
    }

    /// Reports it, and tells the program of another phase.
    fn tell(&self, status: ChildStatus) {
        let is_other_phase = self.report.borrow().phase != status.phase;
        self.report.send_if_modified(|known| {
            let changed = *known != status;
            known.clone_from(&status);
            changed
        });
        if is_other_phase {
            self.spec.program.changed(&status);
        }
    }

    fn label(&self) -> ChildLabel {
        ChildLabel { child: self.spec.id.to_string() }
    }
}

/// Tells when a child's reader breaks.
async fn watch_reader(child: ChildId, reader: JoinHandle<()>, unread: CancellationToken) {
    if let Err(error) = reader.await {
        tracing::error!(%child, %error, "the reader of a child's output failed; the child is killed");
        unread.cancel();
    }
}

fn answer(note: Option<oneshot::Sender<()>>) {
    if let Some(note) = note
        && note.send(()).is_err()
    {
        tracing::trace!("who gave the order has gone");
    }
}

/// Where a child's delays are drawn from: children that fall together must not all rise together.
fn seed() -> u64 {
    (ulid::Ulid::generate().random() & u128::from(u64::MAX)) as u64
}

async fn until(deadline_ms: Option<u64>) {
    match deadline_ms {
        Some(at) => tokio::time::sleep(Duration::from_millis(at.saturating_sub(clock::mono_ms()))).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "child_tests.rs"]
mod tests;
