//! What JavaScript says while it runs, kept until it has run: answers, calls, lines for the log. It owns
//! their bounds. Nothing is written from here, so that a pipe that is full never counts as a plugin's time.

use super::trouble::Trouble;
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Lines of the log that a plugin may write in a time; more are counted.
const LINES_PER_WINDOW: u32 = 200;
const WINDOW: Duration = Duration::from_secs(10);
/// Rejected promises that nobody awaited, told after one turn.
const REJECTIONS_TOLD_MAX: usize = 16;
/// Longest parameters of a call, in bytes; the rest of its line is a few words.
pub(super) const PARAMS_BYTES_MAX: usize = 1000 * 1024;

/// One thing that was said.
#[derive(Debug)]
pub(super) enum Said {
    /// The hook changed nothing.
    Same {
        id: u64,
    },
    Skip {
        id: u64,
    },
    /// What an automation's handler returned, as JSON.
    Returned {
        id: u64,
        result: String,
    },
    /// The request before and after the hook, as JSON.
    Changed {
        id: u64,
        before: String,
        after: String,
    },
    Failed {
        id: u64,
        trouble: Trouble,
    },
    Call {
        call: u64,
        id: u64,
        method: String,
        params: Value,
    },
    Log {
        level: &'static str,
        message: String,
    },
}

#[derive(Debug)]
struct Window {
    began: Instant,
    lines: u32,
    left_out: u32,
}

/// Shared by the functions that a runtime was given and by who looks after it; one thread.
#[derive(Debug)]
pub(super) struct Stage {
    said: RefCell<Vec<Said>>,
    /// Hook calls that wait for their answer.
    open: RefCell<BTreeSet<u64>>,
    /// By the promise's identity.
    rejections: RefCell<BTreeMap<u64, Trouble>>,
    window: RefCell<Window>,
    calls: Cell<u64>,
    deadline: Cell<Option<Instant>>,
    /// CPU time of this thread when JavaScript began, and what it may use.
    began: Cell<Duration>,
    budget: Cell<Duration>,
    late: Cell<bool>,
}

impl Stage {
    pub(super) fn new() -> Self {
        Self {
            said: RefCell::default(),
            open: RefCell::default(),
            rejections: RefCell::default(),
            window: RefCell::new(Window { began: Instant::now(), lines: 0, left_out: 0 }),
            calls: Cell::new(0),
            deadline: Cell::new(None),
            began: Cell::new(Duration::ZERO),
            budget: Cell::new(Duration::ZERO),
            late: Cell::new(false),
        }
    }

    /// JavaScript begins to run, for `budget` of CPU time, until `deadline` at the soonest.
    pub(super) fn begin(&self, deadline: Instant, budget: Duration) {
        self.late.set(false);
        self.deadline.set(Some(deadline));
        self.budget.set(budget);
        self.began.set(cpu_time());
    }

    /// Whether its time is over. Once it was, it stays so until the next beginning: who catches the
    /// interruption doesn't get more. Time in which the machine did something else isn't its.
    pub(super) fn is_late(&self) -> bool {
        if self.deadline.get().is_some_and(|deadline| Instant::now() >= deadline) && self.used() >= self.budget.get() {
            self.late.set(true);
        }
        self.late.get()
    }

    /// CPU time since JavaScript began.
    pub(super) fn used(&self) -> Duration {
        cpu_time().saturating_sub(self.began.get())
    }

    /// JavaScript has run; whether it took too long.
    pub(super) fn end(&self) -> bool {
        self.deadline.set(None);
        self.late.get()
    }

    pub(super) fn open(&self, id: u64) {
        self.open.borrow_mut().insert(id);
    }

    /// Whether it was open.
    pub(super) fn close(&self, id: u64) -> bool {
        self.open.borrow_mut().remove(&id)
    }

    /// What was said since the last time.
    pub(super) fn take(&self) -> Vec<Said> {
        self.said.take()
    }

    /// The prelude's word about a hook call.
    pub(super) fn answer(&self, id: &str, kind: &str, first: String, second: String, file: &str) {
        let Ok(id) = id.parse::<u64>() else { return };
        self.said.borrow_mut().push(match kind {
            "same" => Said::Same { id },
            "skip" => Said::Skip { id },
            "returned" => Said::Returned { id, result: first },
            "changed" => Said::Changed { id, before: first, after: second },
            _ => Said::Failed { id, trouble: Trouble::thrown(first, &second, file) },
        });
    }

    /// A call that a plugin makes. Its number, or `!` and why there is none.
    pub(super) fn call(&self, id: &str, method: String, params: &str) -> String {
        let Some(id) = id.parse::<u64>().ok().filter(|id| self.open.borrow().contains(id)) else {
            return format!("!`nexus.{method}` comes after the end of the hook that it belongs to; await it there");
        };
        if params.len() > PARAMS_BYTES_MAX {
            return format!("!the parameters of `nexus.{method}` have {} bytes, and {PARAMS_BYTES_MAX} are allowed", params.len());
        }
        let params = match serde_json::from_str(params) {
            Ok(params) => params,
            Err(error) => return format!("!the parameters of `nexus.{method}` are no JSON: {error}"),
        };
        let call = self.calls.get() + 1;
        self.calls.set(call);
        self.said.borrow_mut().push(Said::Call { call, id, method, params });
        call.to_string()
    }

    /// A line for the log, unless there were too many.
    pub(super) fn log(&self, level: &'static str, message: String) {
        let mut window = self.window.borrow_mut();
        let now = Instant::now();
        if now.duration_since(window.began) >= WINDOW {
            let left_out = std::mem::replace(&mut *window, Window { began: now, lines: 0, left_out: 0 }).left_out;
            if left_out > 0 {
                self.said.borrow_mut().push(Said::Log { level: "warn", message: format!("{left_out} lines were left out") });
            }
        }
        if window.lines >= LINES_PER_WINDOW {
            window.left_out = window.left_out.saturating_add(1);
            return;
        }
        window.lines += 1;
        self.said.borrow_mut().push(Said::Log { level, message });
    }

    /// A promise was rejected while nobody waited for it.
    pub(super) fn rejected(&self, promise: u64, trouble: Trouble) {
        let mut rejections = self.rejections.borrow_mut();
        if rejections.len() < REJECTIONS_TOLD_MAX {
            rejections.insert(promise, trouble);
        }
    }

    /// Somebody waits for it after all.
    pub(super) fn awaited(&self, promise: u64) {
        self.rejections.borrow_mut().remove(&promise);
    }

    /// Tells of the rejected promises that nobody waits for when a turn is over. The one that says that
    /// memory was used up, if there is one: its hook may have no other way to tell.
    pub(super) fn tell_rejections(&self) -> Option<Trouble> {
        let mut memory = None;
        for trouble in self.rejections.take().into_values() {
            let place = trouble.line.map_or_else(String::new, |line| format!(" (line {line})"));
            self.log("warn", format!("a promise was rejected, and nobody awaited it: {}{place}", trouble.message));
            memory = memory.or_else(|| trouble.is_memory().then_some(trouble));
        }
        memory
    }
}

/// What this thread has used of the CPU (clock_gettime(2)).
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn calls_are_numbered_and_belong_to_an_open_hook() {
        let stage = Stage::new();
        assert!(stage.call("7", "llm".to_owned(), "{}").starts_with("!`nexus.llm` comes after the end"));
        stage.open(7);
        assert_eq!(stage.call("7", "llm".to_owned(), "{}"), "1");
        assert_eq!(stage.call("7", "llm".to_owned(), "[1]"), "2");
        assert!(stage.call("7", "llm".to_owned(), "\"\\ud800\"").starts_with("!the parameters"));
        let long = format!("\"{}\"", "x".repeat(PARAMS_BYTES_MAX));
        assert!(stage.call("7", "llm".to_owned(), &long).starts_with("!the parameters"));
        assert_eq!(stage.take().len(), 2);
        assert!(stage.close(7) && !stage.close(7));
    }

    #[test]
    fn a_flood_of_lines_is_cut() {
        let stage = Stage::new();
        for _ in 0..LINES_PER_WINDOW + 5 {
            stage.log("info", "x".to_owned());
        }
        assert_eq!(stage.take().len(), LINES_PER_WINDOW as usize);
        stage.window.borrow_mut().began -= WINDOW;
        stage.log("info", "y".to_owned());
        let said = stage.take();
        assert!(
            matches!(&said[..], [Said::Log { level: "warn", message }, Said::Log { .. }] if message == "5 lines were left out"),
            "{said:?}"
        );
    }

    #[test]
    fn late_stays_late_until_the_next_beginning() {
        let stage = Stage::new();
        assert!(!stage.is_late() && !stage.end());
        stage.begin(Instant::now(), Duration::ZERO);
        assert!(stage.is_late() && stage.is_late() && stage.end());
        stage.begin(Instant::now() + WINDOW, Duration::ZERO);
        assert!(!stage.is_late() && !stage.end());
        stage.begin(Instant::now(), WINDOW);
        assert!(!stage.is_late() && !stage.end(), "it had no CPU");
    }

    #[test]
    fn only_promises_that_nobody_awaits_are_told() {
        let stage = Stage::new();
        stage.rejected(1, Trouble::new("a"));
        stage.rejected(2, Trouble::new("InternalError: out of memory"));
        stage.awaited(1);
        assert!(stage.tell_rejections().unwrap().is_memory());
        assert_eq!(stage.take().len(), 1);
        assert!(stage.tell_rejections().is_none());
    }
}
