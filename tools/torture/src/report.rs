//! What was done and what was found, counted, and written as a page.

use crate::points;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Counts of one seed, or of many.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counts {
    /// By kind of fault: done; not done because its fail point was not passed in time or what it would have hit was
    /// not there, so that the cycle only ended with a kill; skipped because this machine doesn't allow it.
    pub(crate) faults: BTreeMap<String, u64>,
    pub(crate) missed: BTreeMap<String, u64>,
    pub(crate) skipped: BTreeMap<String, u64>,
    /// By fail point: how often it fired.
    pub(crate) points: BTreeMap<String, u64>,
    pub(crate) events: u64,
    /// What a person asked for and was answered as done.
    pub(crate) deeds: u64,
    pub(crate) accepted: u64,
    pub(crate) acknowledged: u64,
    /// Messages that joined a run while it went on.
    pub(crate) joined: u64,
    pub(crate) replies: u64,
    pub(crate) twice_as_allowed: u64,
    pub(crate) invocations: u64,
    pub(crate) effects: u64,
    /// Answers that were shown while they were being made, up to their end and not; and messages that left as blocks.
    pub(crate) streams: u64,
    pub(crate) broken_streams: u64,
    pub(crate) blocks: u64,
    /// Events that an automation counted in its state, and lines that plugins added to what agents were told.
    pub(crate) counted: u64,
    /// Messages that an automation sent by itself.
    pub(crate) said: u64,
    pub(crate) marked: u64,
    pub(crate) uncertain: u64,
    pub(crate) rejected: u64,
    pub(crate) escaped: u64,
    /// Times that `/health` told that something was wrong, or was no more, as it was due.
    pub(crate) health_told: u64,
    /// Times that somebody looked on at the project in quarantine.
    pub(crate) quarantine_looks: u64,
    /// By terminal status.
    pub(crate) ends: BTreeMap<String, u64>,
    /// What went over Nostr.
    pub(crate) nostr: NostrCounts,
    pub(crate) ready_ms: Vec<u64>,
    /// By how much the daemon grew over the same load a few times.
    pub(crate) grew_kib: Vec<u64>,
}

/// What went over Nostr, of one seed or of many.
#[derive(Debug, Default, Clone)]
pub(crate) struct NostrCounts {
    pub(crate) posted: u64,
    /// Events of the daemon that the relay took, and those that came there more than once, for each time.
    pub(crate) published: u64,
    pub(crate) published_again: u64,
    /// Events that a project's process was handed, and those of them that it had been handed before.
    pub(crate) handed: u64,
    pub(crate) handed_again: u64,
    /// Events that were run again for having waited for their project.
    pub(crate) waited: u64,
}

impl NostrCounts {
    fn add(&mut self, other: &Self) {
        let Self { posted, published, published_again, handed, handed_again, waited } = other;
        self.posted += posted;
        self.published += published;
        self.published_again += published_again;
        self.handed += handed;
        self.handed_again += handed_again;
        self.waited += waited;
    }
}

impl Counts {
    pub(crate) fn done(&mut self, kind: &str) {
        *self.faults.entry(kind.to_owned()).or_default() += 1;
    }

    pub(crate) fn missed(&mut self, kind: &str) {
        *self.missed.entry(kind.to_owned()).or_default() += 1;
    }

    pub(crate) fn skipped(&mut self, kind: &str) {
        *self.skipped.entry(kind.to_owned()).or_default() += 1;
    }

    pub(crate) fn fired(&mut self, point: &str) {
        *self.points.entry(point.to_owned()).or_default() += 1;
    }

    /// Starts and deaths, whether or not the fault came in between.
    pub(crate) fn cycles(&self) -> u64 {
        self.faults.values().chain(self.missed.values()).sum()
    }

    /// What keeps a run from showing what it was to show: too few cycles, faults that this machine doesn't allow, fail
    /// points that are due and never fired, or, where there are such, looks that nobody took.
    pub(crate) fn lacks(&self, cycles_min: Option<u64>, is_every_fault_due: bool, points_due: &[String]) -> Vec<String> {
        let few = cycles_min.filter(|least| self.cycles() < *least);
        let few = few.map(|least| format!("{} cycles were run, and there were to be {least} at least", self.cycles()));
        let impossible = self.impossible().filter(|_| is_every_fault_due);
        let impossible = impossible.map(|kinds| format!("not every fault is possible here: {kinds}"));
        let never = self.never(points_due);
        let never = (!never.is_empty()).then(|| format!("{} fail points that were due never fired: {}", never.len(), never.join(", ")));
        // What no point shows: a run that is to reach them all is to have seen these too.
        let looks = [("`/health` told of no fault", self.health_told), ("nobody looked at a quarantine", self.quarantine_looks)];
        let unseen = looks.into_iter().filter(|(_, count)| *count == 0 && !points_due.is_empty()).map(|(what, _)| what.to_owned());
        few.into_iter().chain(impossible).chain(never).chain(unseen).collect()
    }

    /// Those of these points that never fired.
    fn never<'a>(&self, points: &'a [String]) -> Vec<&'a str> {
        points.iter().filter(|point| !self.points.contains_key(*point)).map(String::as_str).collect()
    }

    /// The kinds of fault that this machine doesn't allow.
    pub(crate) fn impossible(&self) -> Option<String> {
        let kinds: Vec<&str> = self.skipped.keys().map(String::as_str).collect();
        (!kinds.is_empty()).then(|| kinds.join(", "))
    }

    /// Adds another seed's.
    pub(crate) fn add(&mut self, other: Self) {
        let Self {
            faults,
            missed,
            skipped,
            points,
            events,
            deeds,
            accepted,
            acknowledged,
            joined,
            replies,
            twice_as_allowed,
            invocations,
            effects,
            streams,
            broken_streams,
            blocks,
            counted,
            said,
            marked,
            uncertain,
            rejected,
            escaped,
            health_told,
            quarantine_looks,
            ends,
            nostr,
            ready_ms,
            grew_kib,
        } = other;
        for (mine, theirs) in [
            (&mut self.faults, faults),
            (&mut self.missed, missed),
            (&mut self.skipped, skipped),
            (&mut self.points, points),
            (&mut self.ends, ends),
        ] {
            for (name, count) in theirs {
                *mine.entry(name).or_default() += count;
            }
        }
        for (mine, theirs) in [
            (&mut self.events, events),
            (&mut self.deeds, deeds),
            (&mut self.accepted, accepted),
            (&mut self.acknowledged, acknowledged),
            (&mut self.joined, joined),
            (&mut self.replies, replies),
            (&mut self.twice_as_allowed, twice_as_allowed),
            (&mut self.invocations, invocations),
            (&mut self.effects, effects),
            (&mut self.streams, streams),
            (&mut self.broken_streams, broken_streams),
            (&mut self.blocks, blocks),
            (&mut self.counted, counted),
            (&mut self.said, said),
            (&mut self.marked, marked),
            (&mut self.uncertain, uncertain),
            (&mut self.rejected, rejected),
            (&mut self.escaped, escaped),
            (&mut self.health_told, health_told),
            (&mut self.quarantine_looks, quarantine_looks),
        ] {
            *mine += theirs;
        }
        self.nostr.add(&nostr);
        self.ready_ms.extend(ready_ms);
        self.grew_kib.extend(grew_kib);
    }

    /// The tables of the page.
    pub(crate) fn tables(&self, all_points: &[String]) -> String {
        let mut page = String::new();
        let mut line = |text: &str| {
            page.push_str(text);
            page.push('\n');
        };
        line("| fault | cycles |\n| --- | --- |");
        for (kind, count) in &self.faults {
            line(&format!("| {kind} | {} |", grouped(*count)));
        }
        for (kind, count) in &self.missed {
            line(&format!("| {kind}: its moment did not come, killed all the same | {} |", grouped(*count)));
        }
        line(&format!("| **all** | **{}** |", grouped(self.cycles())));
        for (kind, count) in &self.skipped {
            line(&format!("| {kind}: not possible on this machine | {} |", grouped(*count)));
        }
        line("\n| seen | count |\n| --- | --- |");
        for (name, count) in [
            ("messages written on the platforms", self.events),
            ("verbs about people and sessions that were answered as done", self.deeds),
            ("accepted into the ledger", self.accepted),
            ("acknowledged to their adapter", self.acknowledged),
            ("lines rejected", self.rejected),
            ("agent invocations", self.invocations),
            ("effects of tools", self.effects),
            ("messages that an agent took in while it ran", self.joined),
            ("replies that reached a platform", self.replies),
            ("of them again, under `on_uncertain: retry`", self.twice_as_allowed),
            ("answers streamed to their end", self.streams),
            ("answers whose stream broke off, was refused or cut", self.broken_streams),
            ("messages on the channel with blocks", self.blocks),
            ("events that an automation counted in its state", self.counted),
            ("messages that an automation sent by itself", self.said),
            ("lines that plugins added to what agents were told", self.marked),
            ("events posted on Nostr, strangers' among them", self.nostr.posted),
            ("events that the daemon published there", self.nostr.published),
            ("of them again", self.nostr.published_again),
            ("events handed to a project's process", self.nostr.handed),
            ("of them again", self.nostr.handed_again),
            ("events that waited for their project and were run again", self.nostr.waited),
            ("deliveries that stay `uncertain`", self.uncertain),
            ("escaped processes that outlived a double kill (level `scan` only)", self.escaped),
            ("times that `/health` told of a fault while it lasted, or was well once it was over", self.health_told),
            ("looks at the project in quarantine", self.quarantine_looks),
        ] {
            line(&format!("| {name} | {} |", grouped(count)));
        }
        for (status, count) in &self.ends {
            line(&format!("| requests `{status}` | {} |", grouped(*count)));
        }
        if let Some(median) = median(&self.ready_ms) {
            line(&format!("| median ms from spawn to ready, recovery included | {median} |"));
        }
        if let Some(most) = self.grew_kib.iter().max() {
            line(&format!("| most KiB that a daemon grew while it had the same load a few times | {} |", grouped(*most)));
        }
        let (never, due) = (self.never(all_points), points::due(all_points));
        line(&format!("\nFail points that fired: {} of {}.", self.points.len(), all_points.len()));
        line(&format!("Of those that are due in a long run: {} of {}.", due.len() - self.never(&due).len(), due.len()));
        if !never.is_empty() {
            line(&format!("Never: {}.", never.join(", ")));
        }
        for excused in points::excused(all_points) {
            line(&format!("Out of reach, and never due: {excused}."));
        }
        page
    }
}

fn median(values: &[u64]) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

/// Between these two the page belongs to this program; the rest is written by hand.
const FROM: &str = "<!-- torture run -->";
const TO: &str = "<!-- end -->";

/// A page that is there must have the place for the report.
///
/// # Errors
/// When it hasn't, or can't be read.
pub(crate) fn check_page(path: &Path) -> Result<()> {
    let page = existing(path)?;
    placed(page.as_deref(), "").map(drop).with_context(|| format!("`{}`", path.display()))
}

/// Writes the report into its place of a page, or makes the page.
///
/// # Errors
/// As [`check_page`], and when it can't be written.
pub(crate) fn write_page(path: &Path, report: &str) -> Result<()> {
    let page = existing(path)?;
    let page = placed(page.as_deref(), report).with_context(|| format!("`{}`", path.display()))?;
    fs::write(path, page).with_context(|| format!("failed to write `{}`", path.display()))
}

fn existing(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(page) => Ok(Some(page)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("failed to read `{}`", path.display())),
    }
}

fn placed(page: Option<&str>, report: &str) -> Result<String> {
    let report = report.trim_end();
    let Some(page) = page else {
        return Ok(format!("# Torture report\n\n## Seeded crashes\n\n{FROM}\n{report}\n{TO}\n"));
    };
    let (before, rest) = page.split_once(FROM).with_context(|| format!("the page has no `{FROM}`"))?;
    let (_, behind) = rest.split_once(TO).with_context(|| format!("the page has no `{TO}` behind `{FROM}`"))?;
    Ok(format!("{before}{FROM}\n{report}\n{TO}{behind}"))
}

/// With a comma after each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut parts = Vec::new();
    if first > 0 {
        parts.push(&digits[..first]);
    }
    parts.extend((first..digits.len()).step_by(3).map(|at| &digits[at..at + 3]));
    parts.join(",")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_report_takes_the_place_of_the_last_one_and_of_nothing_else() {
        let new = placed(None, "one\n").unwrap();
        assert!(new.starts_with("# Torture report\n") && new.contains("\none\n"), "{new}");
        let by_hand = format!("{new}\n## By hand\n<!-- end -->\n");
        let again = placed(Some(&by_hand), "two").unwrap();
        assert_eq!(again, by_hand.replace("one", "two"));
        assert!(placed(Some("# A page of something else"), "two").is_err());
        assert!(placed(Some("<!-- end --> <!-- torture run -->"), "two").is_err());
    }

    #[test]
    fn a_page_is_made_and_then_kept_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.md");
        check_page(&path).unwrap();
        write_page(&path, "one").unwrap();
        write_page(&path, "two").unwrap();
        let page = fs::read_to_string(&path).unwrap();
        assert!(page.contains("two") && !page.contains("one"), "{page}");
        fs::write(&path, "something else").unwrap();
        assert!(check_page(&path).is_err());
    }

    #[test]
    fn too_few_cycles_and_faults_that_are_impossible_are_told() {
        let mut counts = Counts::default();
        counts.done("reload");
        counts.missed("sleep");
        assert_eq!((counts.lacks(Some(2), true, &[]), counts.impossible()), (Vec::new(), None));
        assert_eq!(counts.lacks(Some(3), false, &[]), ["2 cycles were run, and there were to be 3 at least"]);
        counts.skipped("disk full");
        counts.skipped("disk read-only");
        assert_eq!(counts.lacks(None, false, &[]), Vec::<String>::new());
        assert_eq!(counts.lacks(None, true, &[]), ["not every fault is possible here: disk full, disk read-only"]);
        assert_eq!(counts.lacks(Some(3), true, &[]).len(), 2);
    }

    #[test]
    fn points_that_are_due_and_never_fired_are_named() {
        let due = ["write.Keep.before", "write.Keep.after", "write.Say.after"].map(str::to_owned);
        let mut counts = Counts { health_told: 1, quarantine_looks: 1, ..Counts::default() };
        counts.fired("write.Keep.before");
        counts.fired("start.lock");
        assert_eq!(counts.lacks(None, false, &due), ["2 fail points that were due never fired: write.Keep.after, write.Say.after"]);
        let page = counts.tables(&[&due[..], &["start.lock".to_owned(), "write.RecordCall.after".to_owned()]].concat());
        assert!(page.contains("fired: 2 of 5.") && page.contains("due in a long run: 2 of 4."), "{page}");
        assert!(page.contains("Out of reach, and never due: `RecordCall`: "), "{page}");
        due.iter().for_each(|point| counts.fired(point));
        assert_eq!(counts.lacks(None, false, &due), Vec::<String>::new());
        (counts.health_told, counts.quarantine_looks) = (0, 0);
        assert_eq!(counts.lacks(None, false, &due), ["`/health` told of no fault", "nobody looked at a quarantine"]);
    }

    #[test]
    fn numbers_are_grouped_and_counts_add_up() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        let mut all = Counts::default();
        for _ in 0..2 {
            let mut one = Counts { events: 3, nostr: NostrCounts { posted: 2, ..NostrCounts::default() }, ..Counts::default() };
            one.done("reload");
            one.missed("sleep");
            one.skipped("disk full");
            one.fired("start.lock");
            all.add(one);
        }
        assert_eq!((all.cycles(), all.events, all.nostr.posted), (4, 6, 4));
        let page = all.tables(&["start.lock".to_owned(), "stop.1".to_owned()]);
        assert!(page.contains("| reload | 2 |") && page.contains("| sleep: its moment did not come, killed all the same | 2 |"), "{page}");
        assert!(page.contains("| disk full: not possible on this machine | 2 |") && page.contains("| **all** | **4** |"), "{page}");
        assert!(page.contains("1 of 2") && page.contains("Never: stop.1."), "{page}");
    }
}
