//! Children whose program is defective: what breaks costs a try, and the handle stays.
#![allow(clippy::unwrap_used)]

use crate::keeper::{Cgroup, Keeper, Link, Process, SpawnSpec};
use crate::metrics::Metrics;
use crate::supervisor::{BoxFuture, Child, ChildSpec, ChildStatus, NotReady, Phase, Program, Supervisor};
use crate::watch::Watch;
use nexus_core::ids::ChildId;
use nexus_core::lifecycle::RestartPolicy;
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long anything here may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Panics at its first try to be prepared, and isn't ready at the later ones.
struct Defective {
    tries: Arc<AtomicUsize>,
}

impl Program for Defective {
    fn prepare(&self) -> BoxFuture<'_, Result<SpawnSpec, NotReady>> {
        let before = self.tries.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            assert_ne!(before, 0, "a defect");
            Err(NotReady { reason: "not ready".to_owned(), lasting: true })
        })
    }

    fn attach(&self, _: &mut Process, _: CancellationToken) -> JoinHandle<()> {
        unreachable!("nothing is ever spawned")
    }
}

/// Is never ready, and asks for the status of its child whenever it is told of one.
#[derive(Default)]
struct Asking {
    child: OnceLock<Child>,
    same: AtomicUsize,
    other: AtomicUsize,
}

impl Program for Asking {
    fn prepare(&self) -> BoxFuture<'_, Result<SpawnSpec, NotReady>> {
        Box::pin(async { Err(NotReady { reason: "not ready".to_owned(), lasting: true }) })
    }

    fn attach(&self, _: &mut Process, _: CancellationToken) -> JoinHandle<()> {
        unreachable!("nothing is ever spawned")
    }

    fn changed(&self, status: &ChildStatus) {
        let known = self.child.get().map(Child::status);
        let count = if known.as_ref() == Some(status) { &self.same } else { &self.other };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// A supervisor whose keeper is a socket that nobody serves, and the keeper's end of that.
fn supervisor() -> (Supervisor, OwnedFd) {
    let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let watch_over = Watch::new(Metrics::new());
    let lock = File::open("/dev/null").unwrap();
    let (keeper, _task) =
        Keeper::start(Link { socket, pid: 0 }, "test", lock, Arc::new(Cgroup::none()), watch_over.part("keeper")).unwrap();
    (Supervisor::new(keeper, Metrics::new(), watch_over), theirs)
}

fn policy() -> RestartPolicy {
    RestartPolicy {
        max_restarts: 5,
        backoff_base_ms: 10,
        backoff_multiplier: 2.0,
        backoff_max_ms: 100,
        reset_after_ms: 600_000,
        errored_retry_ms: 0,
        stop_grace_ms: 5_000,
        on_demand: None,
    }
}

async fn once(child: &Child, phase: Phase) -> String {
    let mut status = child.watch();
    let found = tokio::time::timeout(DEADLINE, status.wait_for(|status| status.phase == phase)).await;
    found.expect("it comes within the deadline").unwrap().last_error.clone().unwrap_or_default()
}

#[tokio::test]
async fn a_program_that_panics_before_the_spawn_is_tried_again_and_obeys() {
    let (supervisor, _socket) = supervisor();
    let tries = Arc::new(AtomicUsize::new(0));
    let program = Arc::new(Defective { tries: tries.clone() });
    let child = supervisor.add(ChildSpec { id: ChildId::new("adapter/x/y"), policy: policy(), program });
    child.start().await;
    let error = once(&child, Phase::Errored).await;
    assert_eq!((error.as_str(), tries.load(Ordering::Relaxed)), ("not ready", 2));
    child.start().await;
    once(&child, Phase::Errored).await;
    child.stop().await;
    assert_eq!(child.status().phase, Phase::Stopped);
    supervisor.remove(&ChildId::new("adapter/x/y")).await;
    assert!(supervisor.list().is_empty());
}

#[tokio::test]
async fn who_is_told_of_a_phase_finds_it_in_the_status() {
    let (supervisor, _socket) = supervisor();
    let program = Arc::new(Asking::default());
    let child = supervisor.add(ChildSpec { id: ChildId::new("adapter/x/y"), policy: policy(), program: program.clone() });
    program.child.set(child.clone()).unwrap();
    child.start().await;
    once(&child, Phase::Errored).await;
    child.stop().await;
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    assert!(count(&program.same) >= 3 && count(&program.other) == 0, "starting, errored and stopped: {}", count(&program.other));
}
