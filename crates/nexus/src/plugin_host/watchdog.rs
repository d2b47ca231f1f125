//! The last resort against JavaScript that can't be interrupted: the engine looks at the time between its
//! own instructions, but some of its builtins loop for very long within one. Then the process ends, and
//! the daemon starts another. It never interrupts what can be interrupted: the engine does.

use crate::panics::finally;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long after its time JavaScript may still run.
const GRACE: Duration = Duration::from_secs(1);
/// Processor time beyond its own in which JavaScript would have been interrupted. A thread that didn't get it could not look
/// at the time either.
const TURN: Duration = Duration::from_millis(500);
/// The longest wait for that turn, which only a machine without any time to spare needs.
const STARVED_MAX: Duration = Duration::from_secs(20);
/// The thread compares times and writes one line.
const STACK_BYTES: usize = 128 * 1024;

#[derive(Debug, Default)]
struct State {
    /// When whatever runs must be over; `None` while nothing runs.
    until: Option<Instant>,
    /// The processor time of this process in which it would have been interrupted, if it could be.
    cpu_until: Duration,
    /// Whether the thread waits to be woken, and not for a time.
    asleep: bool,
    /// A line for the daemon, should this process have to end: what it ended for.
    last_words: Vec<u8>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is plain values: whoever panicked left each whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle of the thread that watches.
#[derive(Debug)]
pub(super) struct Watchdog(Arc<Shared>);

impl Watchdog {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can't be another thread.
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        thread::Builder::new().name("watchdog".to_owned()).stack_size(STACK_BYTES).spawn(move || {
            // Nothing else ends JavaScript that can't be interrupted.
            let _ends = finally(|| std::process::abort());
            watch(&watched);
        })?;
        Ok(Self(shared))
    }

    /// From now on something runs that must be over within `budget`, or, on a machine that is busy, once it had that of processor
    /// time. Costs a wake-up only when nothing ran for a while: a thread that still waits for an earlier time looks at this one when
    /// it has come.
    pub(super) fn expect_within(&self, budget: Duration) {
        let mut state = self.0.state();
        (state.until, state.cpu_until) = (Some(Instant::now() + budget + GRACE), processor_time() + budget + TURN);
        if state.asleep {
            self.0.changed.notify_one();
        }
    }

    /// What to tell the daemon if what runs next can't be ended.
    pub(super) fn blame(&self, line: Vec<u8>) {
        self.0.state().last_words = line;
    }

    /// It is over.
    pub(super) fn rest(&self) {
        self.0.state().until = None;
    }
}

fn watch(shared: &Shared) {
    let mut state = shared.state();
    loop {
        let now = Instant::now();
        state = match state.until {
            None => {
                state.asleep = true;
                let mut woken = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                woken.asleep = false;
                woken
            }
            Some(until) if until > now => shared.changed.wait_timeout(state, until - now).unwrap_or_else(PoisonError::into_inner).0,
            Some(until) if is_starved(now.saturating_duration_since(until), processor_time(), state.cpu_until) => {
                shared.changed.wait_timeout(state, GRACE / 10).unwrap_or_else(PoisonError::into_inner).0
            }
            Some(_) => give_up(&state.last_words),
        };
    }
}

/// Whether it has only lacked the processor so far. `over` is how long its time is over; the others are processor time.
fn is_starved(over: Duration, used: Duration, used_max: Duration) -> bool {
    over < STARVED_MAX && used < used_max
}

fn processor_time() -> Duration {
    Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime)).unwrap_or_default()
}

fn give_up(last_words: &[u8]) -> ! {
    // Past the lock that the other thread holds: while JavaScript runs it writes nothing, so this is a line of its own.
    // When stdout is gone the daemon is, too.
    rustix::io::write(io::stdout().as_fd(), last_words).ok();
    // When stderr is gone nobody is left to tell.
    writeln!(io::stderr(), "plugin host: JavaScript neither ended in its time nor could be interrupted; the process ends").ok();
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_had_less_than_its_processor_time_is_not_ended_on_a_busy_machine() {
        let (budget, second) = (Duration::from_secs(1), Duration::from_secs(1));
        let is_starved_at = |over, used| is_starved(over, used, budget + TURN);
        assert!(is_starved_at(second, Duration::from_millis(600)), "it has 400 ms left, though it had more than a turn");
        assert!(is_starved_at(second, budget), "it gets a turn to look at the time");
        assert!(!is_starved_at(Duration::ZERO, budget + TURN), "it could not be interrupted");
        assert!(!is_starved_at(STARVED_MAX, Duration::ZERO), "nothing is waited for without an end");
    }
}
