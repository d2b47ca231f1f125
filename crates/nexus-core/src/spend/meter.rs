//! What runs and calls use while they go on, before a ledger has it: counts that all who share a budget see at once. What a
//! budget says to them is not decided here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What isn't filed is counted by pieces of time of this length: days begin at a full quarter of an hour everywhere.
const QUARTER_MS: i64 = 15 * 60 * 1000;
/// Quarters that are kept, more than the longest day has.
const QUARTERS_MAX: usize = 200;

/// An amount of use.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Amount {
    pub tokens: u64,
    pub usd: f64,
}

impl Amount {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { tokens: self.tokens.saturating_add(other.tokens), usd: self.usd + other.usd }
    }

    fn minus(self, other: Self) -> Self {
        Self { tokens: self.tokens.saturating_sub(other.tokens), usd: (self.usd - other.usd).max(0.0) }
    }
}

/// Counts what the runs of one agent, or the calls of one plugin, use meanwhile. Cheap to clone; all of them share one.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    /// Ever; it only grows.
    used: Amount,
    /// Of that, what the ledger doesn't have yet, by the quarters of an hour that it counts for. The newest [`QUARTERS_MAX`]:
    /// what was used long ago counts for no day any more.
    unfiled: BTreeMap<i64, Amount>,
}

impl Counts {
    fn unfiled(&self, since_ms: i64) -> Amount {
        self.unfiled.range(since_ms.div_euclid(QUARTER_MS)..).fold(Amount::default(), |sum, (_, amount)| sum.plus(*amount))
    }
}

impl Meter {
    /// Counts what was used, for the day of that moment.
    pub fn add(&self, at_ms: i64, amount: Amount) {
        let mut counts = self.counts();
        counts.used = counts.used.plus(amount);
        counts.unfiled.entry(at_ms.div_euclid(QUARTER_MS)).and_modify(|known| *known = known.plus(amount)).or_insert(amount);
        if counts.unfiled.len() > QUARTERS_MAX {
            counts.unfiled.pop_first();
        }
    }

    /// The ledger has it now.
    pub fn file(&self, at_ms: i64, amount: Amount) {
        // Too old to be still there, it doesn't count any more.
        if let Some(unfiled) = self.counts().unfiled.get_mut(&at_ms.div_euclid(QUARTER_MS)) {
            *unfiled = unfiled.minus(amount);
        }
    }

    /// What the ledger doesn't have yet of what counts from a moment on.
    pub fn unfiled(&self, since_ms: i64) -> Amount {
        self.counts().unfiled(since_ms)
    }

    /// The same, and a watch over what is used from now on.
    pub fn read(&self, since_ms: i64) -> (Amount, Watched) {
        let counts = self.counts();
        (counts.unfiled(since_ms), Watched { meter: self.clone(), since: counts.used })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What all runs of an agent use from one moment on.
#[derive(Debug, Clone)]
pub struct Watched {
    meter: Meter,
    since: Amount,
}

impl Watched {
    pub(super) fn used(&self) -> Amount {
        self.meter.counts().used.minus(self.since)
    }
}

impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.meter.0, &other.meter.0) && self.since == other.since
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::day;
    use super::*;
    use jiff::Timestamp;
    use jiff::tz::TimeZone;

    const ONE_DAY_MS: i64 = 24 * 60 * 60 * 1000;

    #[test]
    fn what_is_never_filed_counts_for_its_own_day_alone_and_is_not_kept_for_ever() {
        let (meter, amount) = (Meter::default(), Amount { tokens: 40, usd: 1.0 });
        let kathmandu = TimeZone::get("Asia/Kathmandu").unwrap();
        let noon = "2026-02-05T12:00:00Z".parse::<Timestamp>().unwrap().as_millisecond();
        let today = day(noon, &kathmandu).from_ms;
        meter.add(today - 1, amount);
        assert_eq!(meter.unfiled(today), Amount::default(), "it was used yesterday");
        meter.add(today, amount);
        assert_eq!((meter.unfiled(today), meter.read(today - 1).0.tokens), (amount, 80));
        meter.file(today, amount);
        assert_eq!((meter.unfiled(today), meter.unfiled(today - ONE_DAY_MS)), (Amount::default(), amount));
        (0..QUARTERS_MAX as i64 + 10).for_each(|n| meter.add(today + n * QUARTER_MS, amount));
        assert_eq!(meter.unfiled(0).tokens, 40 * QUARTERS_MAX as u64);
    }
}
