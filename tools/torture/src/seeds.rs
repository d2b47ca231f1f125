//! Many worlds, some at one time: those whose seeds found something once, then a range of seeds.

use crate::report::Counts;
use crate::run::{self, Outcome, Setup};
use crate::say;
use crate::world::Cast;
use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// In a line of a seed that found something: it did before there was Nostr in any world, and is to mean what it did then.
const BEFORE_NOSTR: &str = "before-nostr";

/// One world to run. Which faults it has depends on both numbers, on who is in it, and on the list of fail points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) seed: u64,
    pub(crate) crashes: u64,
    pub(crate) cast: Cast,
}

impl Task {
    /// With whom the seed brings.
    pub(crate) fn new(seed: u64, crashes: u64) -> Self {
        Self { seed, crashes, cast: Cast::of(seed) }
    }

    /// The same without Nostr.
    pub(crate) fn before_nostr(self) -> Self {
        Self { cast: Cast { nostr: false, ..self.cast }, ..self }
    }

    /// Whether the seed would bring it.
    fn is_without_nostr(self) -> bool {
        !self.cast.nostr && Cast::of(self.seed).nostr
    }
}

/// What all of them came to.
#[derive(Debug, Default)]
pub(crate) struct Total {
    pub(crate) counts: Counts,
    pub(crate) violations: usize,
    pub(crate) seeds: u64,
    pub(crate) not_begun: usize,
    took: Duration,
}

impl Total {
    fn add(&mut self, task: Task, outcome: Outcome) {
        let Task { seed, crashes, .. } = task;
        let (flag, word) = if task.is_without_nostr() { (" --before-nostr", " before-nostr") } else { ("", "") };
        let Outcome { counts, violations, kept } = outcome;
        say(&format!("seed {seed}: {} cycles, {} messages, {} broken promises", counts.cycles(), counts.events, violations.len()));
        violations.iter().for_each(|what| say(&format!("seed {seed}: BROKEN: {what}")));
        if !violations.is_empty() {
            say(&format!(
                "seed {seed}: again with `run --seed {seed} --crashes {crashes}{flag}`; \
                 as a regression: `{seed} {crashes}{word}  # what it found`"
            ));
        }
        kept.iter().for_each(|kept| say(&format!("seed {seed}: kept in {}", kept.display())));
        self.violations += violations.len();
        self.counts.add(counts);
        self.seeds += 1;
    }

    /// The last line.
    pub(crate) fn summary(&self) -> String {
        format!(
            "{} seeds, {} not begun for lack of time; {} cycles, {} broken promises in {} s",
            self.seeds,
            self.not_begun,
            self.counts.cycles(),
            self.violations,
            self.took.as_secs()
        )
    }
}

/// Runs them, `at_once` at one time; begins no other after `limit`.
///
/// # Errors
/// When the harness itself can't go on.
pub(crate) fn run(setup: &Setup, tasks: Vec<Task>, at_once: usize, limit: Option<Duration>) -> Result<Total> {
    let began = Instant::now();
    let waiting = Mutex::new(VecDeque::from(tasks));
    let done: Mutex<Total> = Mutex::default();
    let work = || -> Result<()> {
        while limit.is_none_or(|limit| began.elapsed() <= limit) {
            let Some(task) = hold(&waiting).pop_front() else { break };
            let outcome = run::seed(&Setup { crashes: task.crashes, ..setup.clone() }, task.seed, task.cast)?;
            hold(&done).add(task, outcome);
        }
        Ok(())
    };
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once.max(1)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a world's thread panicked"))).collect()
    });
    results.into_iter().collect::<Result<()>>()?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.not_begun = hold(&waiting).len();
    done.took = began.elapsed();
    Ok(done)
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a file of lines `seed crashes [before-nostr]  # what it found`; blank lines and those of a remark alone are none.
///
/// # Errors
/// When it can't be read, and for a line that is neither.
pub(crate) fn regressions(path: &Path) -> Result<Vec<Task>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("failed to read `{}`", path.display()))?;
    let mut tasks = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let task = parse(line).with_context(|| format!("line {} of `{}`", number + 1, path.display()))?;
        tasks.extend(task);
    }
    Ok(tasks)
}

fn parse(line: &str) -> Result<Option<Task>> {
    let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
    let task = |seed: &str, crashes: &str| -> Result<Task> {
        let number = |word: &str| word.parse::<u64>().with_context(|| format!("`{word}` is no number"));
        Ok(Task::new(number(seed)?, number(crashes)?))
    };
    match words[..] {
        [] => Ok(None),
        [seed, crashes] => task(seed, crashes).map(Some),
        [seed, crashes, BEFORE_NOSTR] => task(seed, crashes).map(|task| Some(task.before_nostr())),
        _ => bail!("`{line}` is not `seed crashes [{BEFORE_NOSTR}]  # what it found`"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn regressions_are_numbers_and_a_remark() {
        assert_eq!(parse("7 40  # a lost ack").unwrap(), Some(Task::new(7, 40)));
        assert_eq!(parse("  7\t40").unwrap(), Some(Task::new(7, 40)));
        assert_eq!((parse("").unwrap(), parse("# a remark alone").unwrap()), (None, None));
        for wrong in ["7", "7 40 a lost ack", "seven 40", "7 -1", "7 40 before"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_seed_from_before_there_was_nostr_has_none() {
        assert!(Task::new(6, 20).cast.nostr && !Task::new(6, 20).is_without_nostr());
        let before = parse("6 20 before-nostr  # a lost ack").unwrap().unwrap();
        assert_eq!(before, Task::new(6, 20).before_nostr());
        assert!(!before.cast.nostr && before.is_without_nostr());
        assert!(!Task::new(2, 20).before_nostr().is_without_nostr(), "it never had any");
    }

    #[test]
    fn the_seeds_of_before_there_was_nostr_mean_what_they_did() {
        let kept = regressions(&Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds.txt")).unwrap();
        let before: Vec<&Task> = kept.iter().filter(|task| [2, 1382].contains(&task.seed)).collect();
        assert!(before.len() == 2 && before.iter().all(|task| !task.cast.nostr), "{kept:?}");
    }
}
