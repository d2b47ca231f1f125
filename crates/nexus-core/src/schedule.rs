//! Heartbeat and cron: when the next slot is due, and what becomes of slots nobody was awake for.
//!
//! A pure machine: the clock, the time zone and each job's newest fired slot come in as arguments.
//! It never sleeps, never reads a clock and never stores what it fired: the ledger does.
//!
//! croner does the calendar arithmetic on wall clock times only. Which instant a wall clock time
//! names is decided here, since croner treats `0,30 2 * * *` as an interval, which daylight saving
//! time would make it skip in spring and run twice in autumn.

use crate::config::{self, Missed, Timer};
use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use std::collections::BTreeSet;

#[cfg(test)]
mod tests;

/// A slot stepped on at most this much after its time is on time, whatever the policy says.
pub const ON_TIME_MS: i64 = 60_000;
/// Most late slots of one job that fire in one step; older ones are reported as missed.
pub const MAX_CATCH_UP_SLOTS: usize = 1000;
/// Where counting missed slots stops: beyond it a report's count is a lower bound.
pub const MISSED_COUNT_MAX: u64 = 10_000;

/// No cron job fires more often, so looking for a previous slot starts with this span.
const CRON_RESOLUTION_MS: i64 = 60_000;
/// Wall clock slots that one clock change may repeat: a minutely job over a whole day, with room.
const REPEATED_SLOTS_MAX: usize = 1500;
/// Clock changes that one search may cross: 2 a year over 40 years, the longest a leap day can wait for a weekday, with room.
const CLOCK_CHANGES_MAX: usize = 400;

/// What a slot belongs to. A cron job is the same job while its label and expression stay.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Job {
    Heartbeat,
    Cron { label: String, expr: String },
}

impl Job {
    /// The id of this job's event for a slot (Unix ms): the same after any restart, since it comes
    /// from the scheduled instant (requirement "Timer Adapter").
    pub fn event_id(&self, slot_ms: i64) -> String {
        match self {
            Self::Heartbeat => format!("timer:heartbeat:{slot_ms}"),
            Self::Cron { label, .. } => format!("timer:cron:{label}:{slot_ms}"),
        }
    }
}

/// What a step asks for. Instants are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// Fire this slot now, under this event id.
    Fire { job: Job, slot_ms: i64, event_id: String },
    /// These slots will never fire. `count` is exact up to [`MISSED_COUNT_MAX`].
    Missed { job: Job, slot_ms_first: i64, slot_ms_last: i64, count: u64 },
}

impl Due {
    fn slot_ms(&self) -> i64 {
        match self {
            Self::Fire { slot_ms, .. } => *slot_ms,
            Self::Missed { slot_ms_last, .. } => *slot_ms_last,
        }
    }
}

/// Why a timer configuration has no schedule.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    #[error("cannot schedule timer `{label}` by cron expression `{expr}`")]
    Expression {
        label: String,
        expr: String,
        #[source]
        source: ExpressionError,
    },
    #[error("timer label `{label}` is used twice, so two events could have one id")]
    DuplicateLabel { label: String },
}

/// What is wrong with a cron expression.
#[derive(Debug, thiserror::Error)]
pub enum ExpressionError {
    #[error("not minute, hour, day of month, month and day of week")]
    Invalid(#[source] CronError),
    #[error("no date ever matches")]
    Never,
}

/// Checks one cron expression, as [`Schedule::new`] will.
///
/// # Errors
/// It is not five fields, is malformed, or matches no date (`0 0 30 2 *`).
pub fn check_expression(expr: &str) -> Result<(), ExpressionError> {
    parse(expr).map(|_| ())
}

/// All jobs with the newest slot of each that is settled. Slots of one job only ever increase.
#[derive(Debug, Clone)]
pub struct Schedule {
    entries: Vec<Entry>,
}

impl Schedule {
    /// Builds the schedule at `now_ms`. `last` gives each job's newest fired slot (Unix ms); a job
    /// without one starts at `now_ms`, with nothing to catch up.
    ///
    /// # Errors
    /// An expression that [`check_expression`] refuses; a label used twice.
    pub fn new(timer: &Timer, zone: TimeZone, now_ms: i64, last: &dyn Fn(&Job) -> Option<i64>) -> Result<Self, ScheduleError> {
        let entries = rules(timer, &zone)?
            .into_iter()
            .map(|(job, rule)| {
                let floor_ms = last(&job).unwrap_or_else(|| now_ms.saturating_sub(1));
                Entry::new(job, rule, floor_ms)
            })
            .collect();
        Ok(Self { entries })
    }

    /// The next due slot (Unix ms), which lies in the past when there is something to catch up;
    /// `None` when nothing will ever be due.
    pub fn deadline(&self) -> Option<i64> {
        self.entries.iter().filter_map(|entry| entry.next_ms).min()
    }

    /// Settles every slot up to `now_ms`, in the order of their times. A clock that went back
    /// makes nothing due.
    pub fn step(&mut self, now_ms: i64) -> Vec<Due> {
        let mut due: Vec<Due> = self.entries.iter_mut().flat_map(|entry| entry.settle(now_ms)).collect();
        due.sort_by_key(Due::slot_ms);
        due
    }

    /// Takes over a changed configuration. A job that stays (same label and expression) keeps what
    /// it has fired; a job whose slots move (interval, time zone) starts anew at `now_ms`, so that
    /// slots it never promised are not missed. Step before this, or a slot due since is passed by.
    ///
    /// # Errors
    /// As for [`Schedule::new`]; the old schedule then stays.
    pub fn reschedule(&mut self, timer: &Timer, zone: TimeZone, now_ms: i64) -> Result<(), ScheduleError> {
        let entries = rules(timer, &zone)?
            .into_iter()
            .map(|(job, rule)| {
                let fresh_ms = now_ms.saturating_sub(1);
                let floor_ms = match self.entries.iter().find(|entry| entry.job == job) {
                    Some(old) if old.rule.has_slots_of(&rule) => old.floor_ms,
                    Some(old) => old.floor_ms.max(fresh_ms),
                    None => fresh_ms,
                };
                Entry::new(job, rule, floor_ms)
            })
            .collect();
        self.entries = entries;
        Ok(())
    }
}

#[derive(Debug, Clone)]
struct Entry {
    job: Job,
    rule: Rule,
    /// The newest settled slot: fired, or reported as missed.
    floor_ms: i64,
    /// The first slot after `floor_ms`.
    next_ms: Option<i64>,
}

impl Entry {
    fn new(job: Job, rule: Rule, floor_ms: i64) -> Self {
        let next_ms = rule.next_after(floor_ms);
        Self { job, rule, floor_ms, next_ms }
    }

    fn settle(&mut self, now_ms: i64) -> Vec<Due> {
        let Some(first_ms) = self.next_ms.filter(|slot_ms| *slot_ms <= now_ms) else {
            return Vec::new();
        };
        let (missed, fires) = match &self.rule {
            Rule::Every { interval_ms } => settle_heartbeat(*interval_ms, first_ms, now_ms),
            Rule::Cron(rule) => rule.settle(self.floor_ms, now_ms),
        };
        let missed_last_ms = missed.as_ref().map(|missed| missed.last_ms);
        // Not `now_ms`: after a clock that jumped ahead by mistake comes right, only what was
        // really settled stays settled.
        self.floor_ms = fires.last().copied().or(missed_last_ms).unwrap_or(first_ms);
        self.next_ms = self.rule.next_after(self.floor_ms);
        let report = missed.map(|missed| Due::Missed {
            job: self.job.clone(),
            slot_ms_first: missed.first_ms,
            slot_ms_last: missed.last_ms,
            count: missed.count,
        });
        let fires = fires.into_iter().map(|slot_ms| Due::Fire { job: self.job.clone(), slot_ms, event_id: self.job.event_id(slot_ms) });
        report.into_iter().chain(fires).collect()
    }
}

/// A run of slots that will not fire.
#[derive(Debug, Clone, PartialEq, Eq)]
struct MissedRun {
    first_ms: i64,
    last_ms: i64,
    count: u64,
}

/// At most the newest slot fires: a heartbeat says "alive now", so an old one says nothing.
fn settle_heartbeat(interval_ms: i64, first_ms: i64, now_ms: i64) -> (Option<MissedRun>, Vec<i64>) {
    let newest_ms = now_ms.saturating_sub(now_ms.rem_euclid(interval_ms));
    let on_time = now_ms.saturating_sub(newest_ms) <= ON_TIME_MS;
    let last_ms = if on_time { newest_ms.saturating_sub(interval_ms) } else { newest_ms };
    let missed = (first_ms <= last_ms).then(|| MissedRun {
        first_ms,
        last_ms,
        count: (last_ms.saturating_sub(first_ms) / interval_ms).unsigned_abs().saturating_add(1),
    });
    (missed, if on_time { vec![newest_ms] } else { Vec::new() })
}

#[derive(Debug, Clone)]
enum Rule {
    /// Multiples of the interval from the Unix epoch, so that a restart computes the same slots.
    Every {
        interval_ms: i64,
    },
    Cron(Box<CronRule>),
}

impl Rule {
    /// The first slot strictly after an instant (both Unix ms).
    fn next_after(&self, after_ms: i64) -> Option<i64> {
        match self {
            Self::Every { interval_ms } => after_ms.div_euclid(*interval_ms).checked_add(1)?.checked_mul(*interval_ms),
            Self::Cron(rule) => rule.next_after(after_ms),
        }
    }

    /// Whether both rules, of one job and so of one expression, have the same slots.
    fn has_slots_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Every { interval_ms: ours }, Self::Every { interval_ms: theirs }) => ours == theirs,
            (Self::Cron(ours), Self::Cron(theirs)) => ours.zone == theirs.zone,
            (Self::Every { .. }, Self::Cron(_)) | (Self::Cron(_), Self::Every { .. }) => false,
        }
    }
}

#[derive(Debug, Clone)]
struct CronRule {
    config: config::Cron,
    cron: Cron,
    /// An interval job (`*` in the minute or hour field, as Vixie cron tells them apart) follows
    /// real time through a clock change; any other job runs once per wall clock slot.
    real_time: bool,
    zone: TimeZone,
}

impl CronRule {
    fn new(config: &config::Cron, zone: &TimeZone) -> Result<Self, ScheduleError> {
        let cron = parse(&config.expr).map_err(|source| ScheduleError::Expression {
            label: config.label.clone(),
            expr: config.expr.clone(),
            source,
        })?;
        let real_time = cron.as_str().split_whitespace().take(2).any(|field| field.starts_with('*'));
        Ok(Self { config: config.clone(), cron, real_time, zone: zone.clone() })
    }

    fn next_after(&self, after_ms: i64) -> Option<i64> {
        if self.real_time { self.next_in_real_time(after_ms) } else { self.next_on_wall_clock(after_ms) }
    }

    fn next_on_wall_clock(&self, after_ms: i64) -> Option<i64> {
        let mut wall = self.zone.to_datetime(Timestamp::from_millisecond(after_ms).ok()?);
        // In the repeated half of a fold the wall clock shows slots whose instant has passed.
        for _ in 0..REPEATED_SLOTS_MAX {
            wall = self.cron.find_next_occurrence(&wall, false).ok()?;
            let slot_ms = self.instant_of(wall)?.as_millisecond();
            if slot_ms > after_ms {
                return Some(slot_ms);
            }
        }
        None
    }

    /// The instant of a wall clock slot: the first of two in a fold, the end of the gap in a gap.
    fn instant_of(&self, wall: DateTime) -> Option<Timestamp> {
        match self.zone.to_ambiguous_timestamp(wall).offset() {
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(wall).ok(),
            AmbiguousOffset::Fold { before, .. } => before.to_timestamp(wall).ok(),
            AmbiguousOffset::Gap { after, .. } => {
                // Read with the later offset, a time in the gap lies shortly before the change.
                let before_change = after.to_timestamp(wall).ok()?;
                self.zone.following(before_change).next().map(|change| change.timestamp())
            }
        }
    }

    /// Searches stretch by stretch of constant offset, where wall clock and real time agree.
    fn next_in_real_time(&self, after_ms: i64) -> Option<i64> {
        let mut after_ms = after_ms;
        for _ in 0..CLOCK_CHANGES_MAX {
            let after = Timestamp::from_millisecond(after_ms).ok()?;
            let from = Timestamp::from_millisecond(after_ms.checked_add(1)?).ok()?;
            let offset = self.zone.to_offset(from);
            let wall = self.cron.find_next_occurrence(&offset.to_datetime(after), false).ok()?;
            let slot = offset.to_timestamp(wall).ok()?;
            let change = self.zone.following(from).next().map(|change| change.timestamp());
            match change.filter(|change| *change <= slot) {
                Some(change) => after_ms = change.as_millisecond().checked_sub(1)?,
                None => return Some(slot.as_millisecond()),
            }
        }
        None
    }

    fn settle(&self, floor_ms: i64, now_ms: i64) -> (Option<MissedRun>, Vec<i64>) {
        let fires = self.slots_to_fire(floor_ms, now_ms);
        let until_ms = fires.first().map_or(now_ms, |slot_ms| slot_ms - 1);
        (self.missed(floor_ms, until_ms), fires)
    }

    /// Which slots in `(floor, now]` fire, oldest first. With `once`, a slot that is on time is
    /// the one run that `once` means: catching up beside it would run the job twice in a row.
    fn slots_to_fire(&self, floor_ms: i64, now_ms: i64) -> Vec<i64> {
        let lateness_ms = i64::try_from(self.config.max_lateness_ms).unwrap_or(i64::MAX).max(ON_TIME_MS);
        let on_time_floor_ms = floor_ms.max(now_ms.saturating_sub(ON_TIME_MS + 1));
        let late_floor_ms = floor_ms.max(now_ms.saturating_sub(lateness_ms).saturating_sub(1));
        let on_time = self.newest_slots(on_time_floor_ms, now_ms, MAX_CATCH_UP_SLOTS);
        match &self.config.missed {
            Missed::Skip => on_time,
            Missed::Once if on_time.is_empty() => self.newest_slots(late_floor_ms, now_ms, 1),
            Missed::Once => on_time,
            Missed::All => self.newest_slots(late_floor_ms, now_ms, MAX_CATCH_UP_SLOTS),
        }
    }

    /// The slots in `(floor, until]` as one run.
    fn missed(&self, floor_ms: i64, until_ms: i64) -> Option<MissedRun> {
        let first_ms = self.next_after(floor_ms).filter(|slot_ms| *slot_ms <= until_ms)?;
        let last_ms = self.newest_slot(floor_ms, until_ms)?;
        let (mut count, mut slot_ms) = (1, first_ms);
        while slot_ms < last_ms && count < MISSED_COUNT_MAX {
            slot_ms = self.next_after(slot_ms)?;
            count += 1;
        }
        Some(MissedRun { first_ms, last_ms, count })
    }

    /// The newest slots in `(floor, until]`, at most `limit`, oldest first.
    fn newest_slots(&self, floor_ms: i64, until_ms: i64, limit: usize) -> Vec<i64> {
        let mut slots = Vec::new();
        let mut until_ms = until_ms;
        while slots.len() < limit
            && let Some(slot_ms) = self.newest_slot(floor_ms, until_ms)
        {
            slots.push(slot_ms);
            until_ms = slot_ms - 1;
        }
        slots.reverse();
        slots
    }

    /// The newest slot in `(floor, until]`, found by doubling and halving, since walking every
    /// slot of a long downtime would stall the daemon.
    fn newest_slot(&self, floor_ms: i64, until_ms: i64) -> Option<i64> {
        let slot_after = |after_ms: i64| self.next_after(after_ms).filter(|slot_ms| *slot_ms <= until_ms);
        let mut span_ms = CRON_RESOLUTION_MS;
        let mut newest_ms = loop {
            let from_ms = until_ms.saturating_sub(span_ms).max(floor_ms);
            if let Some(slot_ms) = slot_after(from_ms) {
                break slot_ms;
            }
            if from_ms == floor_ms {
                return None;
            }
            span_ms = span_ms.saturating_mul(2);
        };
        // No slot lies in `(end, until]`; what is left between newest and end halves each round.
        let mut end_ms = until_ms;
        while let Some(slot_ms) = slot_after(newest_ms) {
            newest_ms = slot_ms;
            let middle_ms = newest_ms + (end_ms - newest_ms) / 2;
            match slot_after(middle_ms) {
                Some(slot_ms) => newest_ms = slot_ms,
                None => end_ms = middle_ms,
            }
        }
        Some(newest_ms)
    }
}

fn parse(expr: &str) -> Result<Cron, ExpressionError> {
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    let cron = parser.parse(expr).map_err(ExpressionError::Invalid)?;
    let some_time = !cron.pattern.minutes.values().is_empty() && !cron.pattern.hours.values().is_empty();
    let reference = jiff::civil::date(2000, 1, 1).at(0, 0, 0, 0);
    if some_time && cron.find_next_occurrence(&reference, true).is_ok() { Ok(cron) } else { Err(ExpressionError::Never) }
}

fn rules(timer: &Timer, zone: &TimeZone) -> Result<Vec<(Job, Rule)>, ScheduleError> {
    let mut rules = Vec::with_capacity(timer.cron.len() + 1);
    if timer.heartbeat_interval_ms > 0 {
        let interval_ms = i64::try_from(timer.heartbeat_interval_ms).unwrap_or(i64::MAX);
        rules.push((Job::Heartbeat, Rule::Every { interval_ms }));
    }
    let mut labels = BTreeSet::new();
    for cron in &timer.cron {
        if !labels.insert(cron.label.as_str()) {
            return Err(ScheduleError::DuplicateLabel { label: cron.label.clone() });
        }
        let job = Job::Cron { label: cron.label.clone(), expr: cron.expr.clone() };
        rules.push((job, Rule::Cron(Box::new(CronRule::new(cron, zone)?))));
    }
    Ok(rules)
}
