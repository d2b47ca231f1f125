//! What was done and what was found, counted, and written as a page.

use std::collections::BTreeMap;

/// Counts of one seed, or of many.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counts {
    /// By kind of fault: done, and skipped because this machine doesn't allow it.
    pub(crate) faults: BTreeMap<String, u64>,
    pub(crate) skipped: BTreeMap<String, u64>,
    /// By fail point: how often it fired.
    pub(crate) points: BTreeMap<String, u64>,
    /// Cycles whose point was not passed in time, and that ended with a kill.
    pub(crate) not_reached: u64,
    pub(crate) events: u64,
    pub(crate) accepted: u64,
    pub(crate) acknowledged: u64,
    pub(crate) replies: u64,
    pub(crate) twice_as_allowed: u64,
    pub(crate) invocations: u64,
    pub(crate) effects: u64,
    pub(crate) uncertain: u64,
    pub(crate) rejected: u64,
    pub(crate) escaped: u64,
    /// By terminal status.
    pub(crate) ends: BTreeMap<String, u64>,
    pub(crate) ready_ms: Vec<u64>,
    pub(crate) rss_kib: Vec<u64>,
}

impl Counts {
    pub(crate) fn done(&mut self, kind: &str) {
        *self.faults.entry(kind.to_owned()).or_default() += 1;
    }

    pub(crate) fn skipped(&mut self, kind: &str) {
        *self.skipped.entry(kind.to_owned()).or_default() += 1;
    }

    pub(crate) fn fired(&mut self, point: &str) {
        *self.points.entry(point.to_owned()).or_default() += 1;
    }

    pub(crate) fn cycles(&self) -> u64 {
        self.faults.values().sum()
    }

    /// Adds another seed's.
    pub(crate) fn add(&mut self, other: Self) {
        let Self {
            faults,
            skipped,
            points,
            not_reached,
            events,
            accepted,
            acknowledged,
            replies,
            twice_as_allowed,
            invocations,
            effects,
            uncertain,
            rejected,
            escaped,
            ends,
            ready_ms,
            rss_kib,
        } = other;
        for (mine, theirs) in [(&mut self.faults, faults), (&mut self.skipped, skipped), (&mut self.points, points), (&mut self.ends, ends)]
        {
            for (name, count) in theirs {
                *mine.entry(name).or_default() += count;
            }
        }
        for (mine, theirs) in [
            (&mut self.not_reached, not_reached),
            (&mut self.events, events),
            (&mut self.accepted, accepted),
            (&mut self.acknowledged, acknowledged),
            (&mut self.replies, replies),
            (&mut self.twice_as_allowed, twice_as_allowed),
            (&mut self.invocations, invocations),
            (&mut self.effects, effects),
            (&mut self.uncertain, uncertain),
            (&mut self.rejected, rejected),
            (&mut self.escaped, escaped),
        ] {
            *mine += theirs;
        }
        self.ready_ms.extend(ready_ms);
        self.rss_kib.extend(rss_kib);
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
        line(&format!("| **all** | **{}** |", grouped(self.cycles())));
        for (kind, count) in &self.skipped {
            line(&format!("| {kind}: not possible on this machine | {} |", grouped(*count)));
        }
        line("\n| seen | count |\n| --- | --- |");
        for (name, count) in [
            ("messages written on the platforms", self.events),
            ("accepted into the ledger", self.accepted),
            ("acknowledged to their adapter", self.acknowledged),
            ("lines rejected", self.rejected),
            ("agent invocations", self.invocations),
            ("effects of tools", self.effects),
            ("replies that reached a platform", self.replies),
            ("of them again, under `on_uncertain: retry`", self.twice_as_allowed),
            ("deliveries that stay `uncertain`", self.uncertain),
            ("fail points armed and not passed in time", self.not_reached),
            ("escaped processes that outlived a double kill (level `scan` only)", self.escaped),
        ] {
            line(&format!("| {name} | {} |", grouped(count)));
        }
        for (status, count) in &self.ends {
            line(&format!("| requests `{status}` | {} |", grouped(*count)));
        }
        if let Some(median) = median(&self.ready_ms) {
            line(&format!("| median ms from spawn to ready, recovery included | {median} |"));
        }
        let never: Vec<&str> = all_points.iter().filter(|point| !self.points.contains_key(*point)).map(String::as_str).collect();
        line(&format!("\nFail points that fired: {} of {}.", self.points.len(), all_points.len()));
        if !never.is_empty() {
            line(&format!("Never: {}.", never.join(", ")));
        }
        page
    }
}

fn median(values: &[u64]) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
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
    use super::*;

    #[test]
    fn numbers_are_grouped_and_counts_add_up() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        let mut all = Counts::default();
        for _ in 0..2 {
            let mut one = Counts { events: 3, ..Counts::default() };
            one.done("reload");
            one.fired("start.lock");
            all.add(one);
        }
        assert_eq!((all.cycles(), all.events), (2, 6));
        let page = all.tables(&["start.lock".to_owned(), "stop.1".to_owned()]);
        assert!(page.contains("| reload | 2 |") && page.contains("1 of 2") && page.contains("Never: stop.1."), "{page}");
    }
}
