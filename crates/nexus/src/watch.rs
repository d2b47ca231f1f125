//! The watch over the daemon's own long-lived tasks: a panic in one, or an end that nobody asked for, is
//! told by name, and the task is started again until its budget is used up. A panic in a short one is told by
//! name too, and is an error for whoever waits for it; it isn't started again. Children are the supervisor's;
//! what a request or a delivery broke off comes to, their own parts decide.

use crate::bus::Bus;
use crate::clock;
use crate::metrics::{Metrics, TaskLabel};
use crate::panics::{self, Panicked};
use nexus_core::budget::{Budget, WINDOW_MS};
use nexus_core::notice::NoticeType;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Failed tasks that are told: lanes of deliveries have names without number.
const FAILED_MAX: usize = 256;

/// Where failures of short tasks are counted: they are started in many places, which have no watch at hand. Weak,
/// since what the watch holds ends with the daemon.
static SHORT: OnceLock<Weak<Inner>> = OnceLock::new();

/// A task that failed, for status.
#[derive(Debug, Clone, Serialize)]
pub struct Failed {
    pub task: String,
    pub error: String,
    pub failures: u32,
    /// It isn't started any more.
    pub given_up: bool,
    #[serde(skip)]
    at_ms: u64,
}

/// Knows which tasks failed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Watch {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    metrics: Metrics,
    /// Set once there is one: the keeper's task is older.
    bus: OnceLock<Bus>,
    failed: Mutex<BTreeMap<String, Failed>>,
}

/// When a task may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    AtTheStop,
    WhenDone,
}

impl Watch {
    pub fn new(metrics: Metrics) -> Self {
        Self { inner: Arc::new(Inner { metrics, bus: OnceLock::new(), failed: Mutex::default() }) }
    }

    /// Publishes on `bus` what happens from now on.
    pub fn publish_on(&self, bus: Bus) {
        self.inner.bus.set(bus).ok(); // called once, by the start
    }

    /// Counts and publishes the failures of this process's short tasks from now on; see [`helper`].
    pub fn hear_of_helpers(&self) {
        SHORT.set(Arc::downgrade(&self.inner)).ok(); // called once, by the start
    }

    /// Runs what `make` makes, until `stop`; its end is expected after that only. `make` is called
    /// again for each start.
    pub fn keep<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: impl Into<String>,
        stop: &CancellationToken,
        make: impl FnMut() -> F + Send + 'static,
    ) -> JoinHandle<()> {
        helper("watch", run(self.part(name), stop.clone(), Ends::AtTheStop, make))
    }

    /// The same for work that may come to its end, in the task of the caller.
    pub async fn until_done<F: Future<Output = ()>>(&self, name: impl Into<String>, stop: &CancellationToken, make: impl FnMut() -> F) {
        run(self.part(name), stop.clone(), Ends::WhenDone, make).await;
    }

    /// A task that brings itself up again, because it has to keep something. Clean, whatever an earlier
    /// one of its name came to.
    pub fn part(&self, name: impl Into<String>) -> Part {
        let name = name.into();
        self.forget(&name);
        Part { watch: self.clone(), name, budget: Budget::default() }
    }

    /// What became of it counts no more: the task isn't wanted any longer.
    pub fn forget(&self, name: &str) {
        self.lock().remove(name);
    }

    /// Tasks that were started again of late.
    pub fn restarted(&self) -> usize {
        let now_ms = clock::mono_ms();
        self.lock().values().filter(|one| !one.given_up && now_ms.saturating_sub(one.at_ms) < WINDOW_MS).count()
    }

    /// Names of the tasks that were given up.
    pub fn lost(&self) -> Vec<String> {
        self.lock().values().filter(|one| one.given_up).map(|one| one.task.clone()).collect()
    }

    /// Every task that failed since the start.
    pub fn failed(&self) -> Vec<Failed> {
        self.lock().values().cloned().collect()
    }

    /// Counts and publishes a failure of something that isn't started again, or was by others.
    pub fn tell(&self, task: &str, error: &str) {
        self.inner.metrics.task_failures.get_or_create(&TaskLabel { task: task.to_owned() }).inc();
        if let Some(bus) = self.inner.bus.get() {
            bus.publish(NoticeType::SystemError, json!({ "task": task, "error": error }));
        }
    }

    fn note(&self, task: &str, error: &str, given_up: bool) {
        let mut all = self.lock();
        if all.len() >= FAILED_MAX && !all.contains_key(task) {
            // Those that run again say less than those that are lost.
            let Some(oldest) = all.values().min_by_key(|one| (one.given_up, one.at_ms)).map(|one| one.task.clone()) else { return };
            all.remove(&oldest);
        }
        let failures = all.get(task).map_or(0, |one| one.failures) + 1;
        let failed = Failed { task: task.to_owned(), error: error.to_owned(), failures, given_up, at_ms: clock::mono_ms() };
        all.insert(task.to_owned(), failed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Failed>> {
        self.inner.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One task with its budget.
#[derive(Debug)]
pub struct Part {
    watch: Watch,
    name: String,
    budget: Budget,
}

impl Part {
    /// The task failed: tells it, and waits until it may be started again. False when it may not: it
    /// failed too often, or `stop` came.
    pub async fn failed(&mut self, error: &str, stop: &CancellationToken) -> bool {
        let Some(pause_ms) = self.budget.spend(clock::mono_ms()) else {
            self.give_up(error);
            return false;
        };
        self.watch.note(&self.name, error, false);
        self.watch.tell(&self.name, error);
        tracing::error!(task = self.name, error, pause_ms, "a task of the daemon failed; it is started again");
        tokio::select! {
            biased;
            () = stop.cancelled() => false,
            () = tokio::time::sleep(Duration::from_millis(pause_ms)) => true,
        }
    }

    /// The task is not started again.
    pub fn give_up(&self, error: &str) {
        self.watch.note(&self.name, error, true);
        self.watch.tell(&self.name, error);
        tracing::error!(task = self.name, error, "a task of the daemon failed for good; restart the daemon");
    }
}

/// Runs a short task beside its caller. A panic in it is logged and counted under `name`, and is an error for who
/// waits; what the task had is dropped, as at any other end.
#[expect(clippy::disallowed_methods, reason = "this is what is to be used instead")]
pub fn helper<F>(name: &'static str, work: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(panics::overheard(work, move |panicked| broke(name, panicked)))
}

/// As [`helper`], and counted by `tracker` until it is over.
pub fn tracked<F>(name: &'static str, tracker: &TaskTracker, work: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    helper(name, tracker.track_future(work))
}

/// As [`helper`], on a thread that may block.
#[expect(clippy::disallowed_methods, reason = "this is what is to be used instead")]
pub fn blocking<T: Send + 'static>(name: &'static str, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    tokio::task::spawn_blocking(move || panics::overhear(work, |panicked| broke(name, panicked)))
}

/// As [`blocking`], on this thread, which has more to do after it: a panic goes no further.
pub fn on_this_thread(name: &'static str, work: impl FnOnce()) {
    if let Err(panicked) = panics::catch(work) {
        broke(name, &panicked);
    }
}

fn broke(name: &str, panicked: &Panicked) {
    let error = panicked.to_string();
    tracing::error!(task = name, error, "a short task of the daemon broke off");
    // Other programs of this binary have nobody who counts.
    if let Some(inner) = SHORT.get().and_then(Weak::upgrade) {
        Watch { inner }.tell(name, &error);
    }
}

/// Lists and tells a failure of a thread that goes on by itself; it is in the log already.
pub(crate) fn note(name: &str, error: &str) {
    if let Some(inner) = SHORT.get().and_then(Weak::upgrade) {
        let watch = Watch { inner };
        watch.note(name, error, false);
        watch.tell(name, error);
    }
}

async fn run<F: Future<Output = ()>>(mut part: Part, stop: CancellationToken, ends: Ends, mut make: impl FnMut() -> F) {
    loop {
        let error = match panics::caught(async { make().await }).await {
            Ok(()) if ends == Ends::WhenDone || stop.is_cancelled() => return,
            Ok(()) => "it ended by itself".to_owned(),
            Err(panicked) => panicked.to_string(),
        };
        if !part.failed(&error, &stop).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nexus_core::budget::RESTARTS_MAX;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A task that panics at its first `panics` starts and then waits for `stop`.
    fn keep(watch: &Watch, stop: &CancellationToken, panics: usize) -> (Arc<AtomicUsize>, JoinHandle<()>) {
        let starts = Arc::new(AtomicUsize::new(0));
        let (count, token) = (starts.clone(), stop.clone());
        let task = watch.keep("probe", stop, move || {
            let (start, token) = (count.fetch_add(1, Ordering::Relaxed), token.clone());
            async move {
                assert!(start >= panics, "defect {start}");
                token.cancelled().await;
            }
        });
        (starts, task)
    }

    async fn eventually(is_so: impl Fn() -> bool) {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        let waiting = async {
            while !is_so() {
                tick.tick().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("it comes within the deadline");
    }

    #[tokio::test]
    async fn a_task_that_panics_is_started_again_and_told() {
        let (watch, stop) = (Watch::new(Metrics::new()), CancellationToken::new());
        let bus = Bus::new(1, 16);
        watch.publish_on(bus.clone());
        let (starts, task) = keep(&watch, &stop, 1);
        eventually(|| starts.load(Ordering::Relaxed) == 2).await;
        assert_eq!((watch.restarted(), watch.lost()), (1, Vec::new()));
        let failed = watch.failed();
        assert_eq!((failed.len(), failed[0].failures), (1, 1));
        assert!(failed[0].error.contains("defect 0"), "{failed:?}");
        assert!(watch.inner.metrics.text().unwrap().contains("nexus_task_failures_total{task=\"probe\"} 1"));
        assert_eq!(bus.bounds().1, 2, "one failure, one notice");
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn one_that_fails_for_ever_is_given_up_and_named() {
        let (watch, stopped) = (Watch::new(Metrics::new()), CancellationToken::new());
        stopped.cancel(); // no pause is waited for then
        let mut part = watch.part("probe");
        for failure in 1..=RESTARTS_MAX {
            assert!(!part.failed("a defect", &stopped).await);
            assert_eq!((watch.restarted(), watch.lost()), (1, Vec::new()), "failure {failure}");
        }
        assert!(!part.failed("a defect", &CancellationToken::new()).await);
        assert_eq!((watch.restarted(), watch.lost()), (0, vec!["probe".to_owned()]));
        drop(watch.part("probe"));
        assert!(watch.lost().is_empty(), "a new one of that name is as good as any");
    }

    #[test]
    fn of_many_that_fail_the_lost_ones_are_told() {
        let watch = Watch::new(Metrics::new());
        watch.note("lost", "a defect", true);
        for n in 0..2 * FAILED_MAX {
            watch.note(&format!("lane {n}"), "a defect", false);
        }
        assert_eq!((watch.failed().len(), watch.lost()), (FAILED_MAX, vec!["lost".to_owned()]));
        watch.forget("lost");
        assert!(watch.lost().is_empty(), "what isn't wanted any more is no loss");
    }

    #[tokio::test]
    async fn a_short_task_that_panics_is_an_error_for_who_waits_and_is_counted_by_its_name() {
        let watch = Watch::new(Metrics::new());
        watch.hear_of_helpers();
        let bus = Bus::new(1, 16);
        watch.publish_on(bus.clone());
        let (answer, waiting) = tokio::sync::oneshot::channel::<()>();
        let broken = helper("probe.helper", async move {
            let _answer = answer;
            assert_eq!(Some("what is there"), None, "a defect");
        });
        assert!(broken.await.unwrap_err().is_panic());
        assert!(waiting.await.is_err(), "what it had is dropped: nobody waits for it for ever");
        let broken = blocking("probe.blocking", || assert_eq!(Some("what is there"), None, "a defect"));
        assert!(broken.await.unwrap_err().is_panic());
        let tracker = TaskTracker::new();
        drop(tracked("probe.tracked", &tracker, async { assert_eq!(Some("what is there"), None, "a defect") }));
        tracker.close();
        tracker.wait().await; // who asked is gone: it is told all the same
        let text = watch.inner.metrics.text().unwrap();
        for name in ["probe.helper", "probe.blocking", "probe.tracked"] {
            assert!(text.contains(&format!("nexus_task_failures_total{{task=\"{name}\"}} 1")), "{name} is not in {text}");
        }
        assert!(bus.bounds().1 >= 4, "three failures, three notices, beside those of other tests of this process");
        // Ledgers of other tests may be among them.
        let listed = || watch.failed().into_iter().map(|one| one.task).filter(|task| task.starts_with("probe")).collect::<Vec<_>>();
        assert!(listed().is_empty(), "nothing that should run is missing");
        note("probe of a thread", "a defect");
        assert_eq!(listed(), ["probe of a thread"]);
        assert!(watch.restarted() >= 1 && watch.inner.metrics.text().unwrap().contains("{task=\"probe of a thread\"} 1"));
        assert_eq!(helper("probe.helper", async { 1 }).await.unwrap() + blocking("probe.blocking", || 1).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn an_end_that_nobody_asked_for_counts_unless_it_is_the_works_own() {
        let (watch, stop) = (Watch::new(Metrics::new()), CancellationToken::new());
        watch.until_done("work", &stop, || async {}).await;
        assert!(watch.failed().is_empty());
        let task = watch.keep("probe", &stop, || async {});
        eventually(|| watch.restarted() == 1).await;
        stop.cancel();
        task.await.unwrap();
    }
}
