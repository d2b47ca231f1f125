//! Reads that share threads: of many that come at once each would else wake a thread of its own, which costs more
//! than the read. It knows neither what is read nor by which connection.

use super::{READERS_KEPT, ReadError, Readers};
use rusqlite::Connection;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, oneshot};

/// Threads that serve one line at once: as many as there are connections to keep.
const THREADS_MAX: usize = READERS_KEPT;
/// Small reads that wait for each of these before there is another one.
const BEHIND_MAX: usize = 8;
/// Reads that may wait; who comes then waits for one of these places.
const LINE_MAX: usize = 1_024;

type Job = Box<dyn FnOnce(&Readers) + Send>;

/// What waits to be read from one file. Cheap to clone.
#[derive(Clone)]
pub(super) struct Line {
    waiting: Arc<Mutex<Waiting>>,
    places: Arc<Semaphore>,
    /// Reads that wait for each thread before there is another one.
    behind_max: usize,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// Threads that serve it.
    threads: usize,
}

impl Line {
    /// For reads that take less than waking a thread for each.
    pub(super) fn of_small() -> Self {
        Self { waiting: Arc::default(), places: Arc::new(Semaphore::new(LINE_MAX)), behind_max: BEHIND_MAX }
    }

    /// For reads that may take long: none waits while there may be another thread.
    pub(super) fn of_long() -> Self {
        Self { behind_max: 0, ..Self::of_small() }
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("waiting", &(LINE_MAX - self.places.available_permits())).finish_non_exhaustive()
    }
}

impl Line {
    /// True when whoever puts it there has to see to one more thread.
    fn push(&self, job: Job) -> bool {
        let mut waiting = self.lock();
        waiting.jobs.push_back(job);
        let is_short = waiting.threads < THREADS_MAX && waiting.jobs.len() > waiting.threads * self.behind_max;
        waiting.threads += usize::from(is_short);
        is_short
    }

    fn next(&self) -> Option<Job> {
        self.lock().jobs.pop_front()
    }

    /// True when nothing waits, and the thread serves no longer.
    fn leave(&self) -> bool {
        let mut waiting = self.lock();
        let is_over = waiting.jobs.is_empty();
        waiting.threads -= usize::from(is_over);
        is_over
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Readers {
    /// As [`Readers::read`], for what is asked for often: others of its line wait behind it.
    ///
    /// # Errors
    /// [`ReadError`].
    pub(super) async fn read_in_line<T: Send + 'static>(
        &self,
        line: &Line,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ReadError> {
        let (answer, read) = oneshot::channel();
        let place = line.places.clone().acquire_owned().await.expect("nobody closes it");
        let job = move |readers: &Self| {
            let _place = place;
            if !answer.is_closed() {
                answer.send(readers.read_now(query)).ok(); // the asker may have given up
            }
        };
        if line.push(Box::new(job)) {
            let (this, line) = (self.clone(), line.clone());
            drop(crate::watch::blocking("read", move || this.serve(&line)));
        }
        // Where the runtime is going down nobody serves any more, and nobody is answered.
        read.await.unwrap_or_else(|_| Err(self.panicked()))
    }

    fn serve(&self, line: &Line) {
        loop {
            while let Some(job) = line.next() {
                crate::watch::on_this_thread("read", || job(self));
            }
            // Whoever is kept from a busy core may have the next one, and waking a thread costs more than waiting that long.
            std::thread::yield_now();
            if line.leave() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::patience::{eventually, soon};
    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use std::sync::Condvar;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;
    use tokio_util::sync::CancellationToken;

    /// Less than any test may take.
    const SMALL_PATIENCE: Duration = Duration::from_secs(5);

    /// Reads stand before it until it is opened.
    #[derive(Default)]
    struct Gate {
        is_open: Mutex<bool>,
        opened: Condvar,
        inside: AtomicUsize,
        most: AtomicUsize,
    }

    impl Gate {
        fn pass(&self) {
            self.most.fetch_max(self.inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let mut is_open = self.is_open.lock().unwrap();
            while !*is_open {
                is_open = self.opened.wait(is_open).unwrap();
            }
            drop(is_open);
            self.inside.fetch_sub(1, Ordering::SeqCst);
        }

        fn open(&self) {
            *self.is_open.lock().unwrap() = true;
            self.opened.notify_all();
        }
    }

    fn readers() -> (Readers, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE numbers (n INTEGER)").unwrap();
        (Readers::new(path), directory)
    }

    fn number(n: usize) -> impl FnOnce(&Connection) -> rusqlite::Result<usize> + Send + 'static {
        move |connection| connection.query_row("SELECT ?1", [n], |row| row.get(0))
    }

    #[tokio::test]
    async fn many_are_answered_each_with_its_own_by_few_threads() {
        let ((readers, _directory), gate) = (readers(), Arc::new(Gate::default()));
        let many = (0..2 * LINE_MAX).map(|n| {
            let gate = gate.clone();
            readers.read_in_line(&readers.line, move |connection| {
                gate.pass();
                number(n)(connection)
            })
        });
        let opening = async {
            eventually(async || gate.inside.load(Ordering::SeqCst) == THREADS_MAX).await;
            gate.open();
        };
        let (read, ()) = soon(futures_util::future::join(join_all(many), opening)).await;
        assert!(read.into_iter().enumerate().all(|(n, read)| read.unwrap() == n));
        assert_eq!(gate.most.load(Ordering::SeqCst), THREADS_MAX);
        eventually(async || readers.line.lock().threads == 0).await;
        assert_eq!(soon(readers.read_in_line(&readers.line, number(7))).await.unwrap(), 7, "and it is served again");
    }

    #[tokio::test]
    async fn one_that_panics_or_fails_is_an_error_for_its_asker_alone() {
        let ((readers, _directory), gate) = (readers(), Arc::new(Gate::default()));
        let before = gate.clone();
        let first = readers.read_in_line(&readers.line, move |connection| {
            before.pass();
            number(1)(connection)
        });
        let panicking = readers.read_in_line(&readers.line, |_| -> rusqlite::Result<usize> { panic!("a defect") });
        let failing = readers
            .read_in_line(&readers.line, |connection| connection.query_row("SELECT n FROM nothing", [], |row| row.get::<_, usize>(0)));
        let last = readers.read_in_line(&readers.line, number(4));
        let opening = async { gate.open() };
        let (first, panicking, failing, last, ()) = soon(async { tokio::join!(first, panicking, failing, last, opening) }).await;
        assert_eq!((first.unwrap(), last.unwrap()), (1, 4));
        assert!(matches!(panicking, Err(ReadError::Panicked { .. })));
        assert!(matches!(failing, Err(ReadError::Sqlite { .. })));
        assert!(readers.has_failed_within(Duration::from_secs(60)));
    }

    #[tokio::test]
    async fn who_gives_up_leaves_its_place_and_is_not_read_for() {
        let ((readers, _directory), gate) = (readers(), Arc::new(Gate::default()));
        let (before, asked) = (gate.clone(), Arc::new(AtomicUsize::new(0)));
        let first = readers.read_in_line(&readers.line, move |_| {
            before.pass();
            Ok(())
        });
        let mut first = Box::pin(first);
        assert!((&mut first).now_or_never().is_none());
        let count = asked.clone();
        let given_up = readers.read_in_line(&readers.line, move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        assert!(given_up.now_or_never().is_none());
        gate.open();
        soon(first).await.unwrap();
        eventually(async || readers.line.places.available_permits() == LINE_MAX).await;
        assert_eq!(asked.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_small_read_does_not_wait_behind_a_long_one() {
        let ((readers, _directory), gate) = (readers(), Arc::new(Gate::default()));
        let (before, stop) = (gate.clone(), CancellationToken::new());
        let read = |connection: &Connection| connection.query_row("SELECT 7", [], |row| row.get::<_, usize>(0));
        let long = move |connection: &Connection| {
            before.pass();
            read(connection)
        };
        let small = async {
            eventually(async || gate.inside.load(Ordering::SeqCst) == 1).await;
            let small = readers.read_patiently(read, SMALL_PATIENCE, &stop).await;
            gate.open();
            small
        };
        assert_eq!(soon(async { tokio::join!(readers.read_until_done(long, &stop), small) }).await, (Some(7), Some(7)));
    }
}
