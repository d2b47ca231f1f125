//! Many worlds, some at one time: those whose seeds found something once, then a range of seeds.

use crate::fault::Fault;
use crate::report::Counts;
use crate::run::{self, Outcome, Setup};
use crate::say;
use crate::world::Cast;
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// In a line of a seed that found something: it did before there was Nostr in any world, and is to mean what it did then.
const BEFORE_NOSTR: &str = "before-nostr";

/// In such a line: the digest of the faults that the seed had then.
const PLAN: &str = "plan=";

/// How such a line reads.
const LINE: &str = "`seed crashes [before-nostr] [plan=DIGEST]  # what it found`";

/// One world to run. Which faults it has depends on both numbers, on who is in it, and on the list of fail points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) seed: u64,
    pub(crate) crashes: u64,
    pub(crate) cast: Cast,
    before: Before,
}

/// What is known of the faults that a seed had before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// It never found anything.
    Nothing,
    /// It did, and nobody wrote down with which.
    Unknown,
    Plan(u64),
}

impl Task {
    /// With whom the seed brings.
    pub(crate) fn new(seed: u64, crashes: u64) -> Self {
        Self { seed, crashes, cast: Cast::of(seed), before: Before::Nothing }
    }

    /// What to say of a seed that found something, and has other faults now; it shows nothing of what it found then.
    fn lost_meaning(self, now: u64) -> Option<String> {
        let Self { seed, .. } = self;
        match self.before {
            Before::Nothing => None,
            Before::Plan(before) if before == now => None,
            Before::Plan(before) => Some(format!(
                "seed {seed}: its faults are not those with which it found something ({PLAN}{before:016x}, now {PLAN}{now:016x})"
            )),
            Before::Unknown => Some(format!(
                "seed {seed}: nobody wrote down the faults with which it found something; they may be others now ({PLAN}{now:016x})"
            )),
        }
    }

    /// The same without Nostr.
    pub(crate) fn before_nostr(self) -> Self {
        Self { cast: Cast { nostr: false, approvals: false, quarantine: false, ..self.cast }, ..self }
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
    /// Regressions that are known to be none any more, or not known to be any.
    without_meaning: usize,
    took: Duration,
}

impl Total {
    fn add(&mut self, task: Task, plan: u64, outcome: Outcome) {
        let Task { seed, crashes, .. } = task;
        let (flag, word) = if task.is_without_nostr() { (" --before-nostr", " before-nostr") } else { ("", "") };
        let Outcome { counts, violations, kept } = outcome;
        let lost = task.lost_meaning(plan);
        lost.iter().for_each(|lost| say(lost));
        self.without_meaning += usize::from(lost.is_some());
        say(&format!("seed {seed}: {} cycles, {} messages, {} broken promises", counts.cycles(), counts.events, violations.len()));
        violations.iter().for_each(|what| say(&format!("seed {seed}: BROKEN: {what}")));
        if !violations.is_empty() {
            say(&format!(
                "seed {seed}: again with `run --seed {seed} --crashes {crashes}{flag}`; \
                 as a regression: `{seed} {crashes}{word} {PLAN}{plan:016x}  # what it found`"
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
            "{} seeds, {} not begun for lack of time, {} regressions that may have lost their meaning; \
             {} cycles, {} broken promises in {} s",
            self.seeds,
            self.not_begun,
            self.without_meaning,
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
            let setup = Setup { crashes: task.crashes, ..setup.clone() };
            let plan = digest(&run::plan(&setup, task.seed, task.cast));
            let outcome = run::seed(&setup, task.seed, task.cast)?;
            hold(&done).add(task, plan, outcome);
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

/// What tells one list of faults from another.
fn digest(plan: &[Fault]) -> u64 {
    let hash: [u8; 32] = Sha256::digest(format!("{plan:?}").as_bytes()).into();
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    u64::from_be_bytes(first)
}

/// Reads a file of lines `seed crashes [before-nostr] [plan=DIGEST]  # what it found`; blank lines and those of a remark alone are none.
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
    let [seed, crashes, more @ ..] = &words[..] else {
        if words.is_empty() {
            return Ok(None);
        }
        bail!("`{line}` is not {LINE}");
    };
    let number = |word: &str| word.parse::<u64>().with_context(|| format!("`{word}` is no number"));
    let mut task = Task { before: Before::Unknown, ..Task::new(number(seed)?, number(crashes)?) };
    for word in more {
        task = match word.strip_prefix(PLAN) {
            Some(plan) => {
                let plan = u64::from_str_radix(plan, 16).with_context(|| format!("`{word}` is no digest"))?;
                Task { before: Before::Plan(plan), ..task }
            }
            None if *word == BEFORE_NOSTR => task.before_nostr(),
            None => bail!("`{line}` is not {LINE}"),
        };
    }
    Ok(Some(task))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn unknown(seed: u64, crashes: u64) -> Task {
        Task { before: Before::Unknown, ..Task::new(seed, crashes) }
    }

    #[test]
    fn regressions_are_numbers_and_a_remark() {
        assert_eq!(parse("7 40  # a lost ack").unwrap(), Some(unknown(7, 40)));
        assert_eq!(parse("  7\t40").unwrap(), Some(unknown(7, 40)));
        let planned = Task { before: Before::Plan(0xff), ..unknown(6, 40) };
        assert_eq!(parse("6 40 plan=00000000000000ff  # a lost ack").unwrap(), Some(planned));
        assert_eq!(parse("6 40 before-nostr plan=ff").unwrap(), Some(planned.before_nostr()));
        assert_eq!((parse("").unwrap(), parse("# a remark alone").unwrap()), (None, None));
        for wrong in ["7", "7 40 a lost ack", "seven 40", "7 -1", "7 40 before", "7 40 plan=", "7 40 plan=x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_seed_whose_faults_are_others_now_is_told() {
        let plan = |points: &[&str], crashes: u64| {
            let points = points.iter().map(|point| (*point).to_owned()).collect();
            let (nexus, own, shim, dir) = Default::default();
            digest(&run::plan(&Setup { nexus, own, shim, points, crashes, dir, keep: false }, 7, Cast::of(7)))
        };
        let then = plan(&["a.1", "a.2"], 20);
        assert_eq!(then, plan(&["migration.1", "a.1", "a.2"], 20), "the same faults");
        let told = |before: Before, now: u64| Task { before, ..Task::new(7, 20) }.lost_meaning(now).unwrap_or_default();
        assert_eq!(told(Before::Plan(then), then), "");
        for now in [plan(&["a.1", "a.2", "a.3"], 20), plan(&["a.1", "a.2"], 21)] {
            assert!(told(Before::Plan(then), now).contains("its faults are not those with which it found something"));
        }
        assert!(told(Before::Unknown, then).contains("nobody wrote down"));
        assert_eq!(told(Before::Nothing, then), "");
    }

    #[test]
    fn a_seed_from_before_there_was_nostr_has_none() {
        assert!(Task::new(6, 20).cast.nostr && !Task::new(6, 20).is_without_nostr());
        let before = parse("6 20 before-nostr  # a lost ack").unwrap().unwrap();
        assert_eq!(before, unknown(6, 20).before_nostr());
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
