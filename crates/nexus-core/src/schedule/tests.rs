//! Known clock changes, downtimes and jumps, and properties over random ones.
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

/// The rules of America/New_York since 2007 and of Europe/Berlin since 1996, spelled out so that
/// the tests need no time zone database.
const NEW_YORK: &str = "EST5EDT,M3.2.0,M11.1.0";
const BERLIN: &str = "CET-1CEST,M3.5.0,M10.5.0/3";
const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

fn zone(posix: &str) -> TimeZone {
    TimeZone::posix(posix).unwrap()
}

fn at(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap().as_millisecond()
}

fn cron(label: &str, expr: &str, missed: Missed, max_lateness_ms: u64) -> config::Cron {
    config::Cron { expr: expr.to_owned(), label: label.to_owned(), missed, max_lateness_ms, deliver: None }
}

fn timer(heartbeat_interval_ms: u64, cron: Vec<config::Cron>) -> Timer {
    Timer { heartbeat_interval_ms, timezone: "UTC".to_owned(), cron }
}

fn since(timer: &Timer, zone: TimeZone, last_ms: i64) -> Schedule {
    Schedule::new(timer, zone, last_ms, &|_| Some(last_ms)).unwrap()
}

fn fired(due: &[Due]) -> Vec<i64> {
    due.iter()
        .filter_map(|due| match due {
            Due::Fire { slot_ms, .. } => Some(*slot_ms),
            Due::Missed { .. } => None,
        })
        .collect()
}

fn missed(due: &[Due]) -> Vec<(i64, i64, u64)> {
    due.iter()
        .filter_map(|due| match due {
            Due::Fire { .. } => None,
            Due::Missed { slot_ms_first, slot_ms_last, count, .. } => Some((*slot_ms_first, *slot_ms_last, *count)),
        })
        .collect()
}

/// What fires when every deadline is met on time.
fn fires_between(expr: &str, zone: TimeZone, from: &str, to: &str) -> Vec<String> {
    let timer = timer(0, vec![cron("job", expr, Missed::Skip, 0)]);
    let mut schedule = since(&timer, zone, at(from));
    let mut slots = Vec::new();
    while let Some(deadline_ms) = schedule.deadline().filter(|deadline_ms| *deadline_ms <= at(to)) {
        slots.extend(fired(&schedule.step(deadline_ms)));
    }
    slots.into_iter().map(|slot_ms| Timestamp::from_millisecond(slot_ms).unwrap().to_string()).collect()
}

#[test]
fn heartbeats_are_multiples_of_the_interval() {
    let timer = timer(60_000, Vec::new());
    let mut schedule = Schedule::new(&timer, TimeZone::UTC, 61_000, &|_| None).unwrap();
    assert_eq!(schedule.deadline(), Some(120_000));
    assert_eq!(schedule.step(119_999), Vec::new());
    let due = schedule.step(120_000);
    let event_id = "timer:heartbeat:120000".to_owned();
    assert_eq!(due, [Due::Fire { job: Job::Heartbeat, slot_ms: 120_000, event_id }]);
    assert_eq!(schedule.step(120_000), Vec::new());
    let restarted = Schedule::new(&timer, TimeZone::UTC, 130_000, &|_| Some(120_000)).unwrap();
    assert_eq!(restarted.deadline(), Some(180_000));
}

#[test]
fn no_heartbeat_and_no_cron_is_never_due() {
    let mut schedule = Schedule::new(&timer(0, Vec::new()), TimeZone::UTC, 0, &|_| None).unwrap();
    assert_eq!(schedule.deadline(), None);
    assert_eq!(schedule.step(i64::MAX), Vec::new());
}

#[test]
fn missed_heartbeats_are_reported_once_and_not_replayed() {
    let mut schedule = since(&timer(60_000, Vec::new()), TimeZone::UTC, 60_000);
    let due = schedule.step(600_500);
    assert_eq!(missed(&due), [(120_000, 540_000, 8)]);
    assert_eq!(fired(&due), [600_000]);
    assert_eq!(schedule.step(601_000), Vec::new());

    let mut hourly = since(&timer(3_600_000, Vec::new()), TimeZone::UTC, 0);
    let due = hourly.step(2 * HOUR_MS + ON_TIME_MS + 1);
    assert_eq!(missed(&due), [(HOUR_MS, 2 * HOUR_MS, 2)]);
    assert_eq!(fired(&due), [0_i64; 0]);
}

#[test]
fn an_interval_beyond_all_time_is_never_due() {
    let mut schedule = Schedule::new(&timer(u64::MAX, Vec::new()), TimeZone::UTC, 1, &|_| None).unwrap();
    assert_eq!(schedule.deadline(), Some(i64::MAX));
    assert_eq!(schedule.step(i64::MAX - 1), Vec::new());
}

#[test]
fn the_cron_event_id_names_label_and_slot() {
    let slot_ms = at("2024-02-06T08:00:00Z");
    let timer = timer(0, vec![cron("morning-summary", "0 8 * * *", Missed::Skip, 0)]);
    let due = since(&timer, TimeZone::UTC, slot_ms - 1).step(slot_ms);
    let job = Job::Cron { label: "morning-summary".to_owned(), expr: "0 8 * * *".to_owned() };
    let event_id = format!("timer:cron:morning-summary:{slot_ms}");
    assert_eq!(due, [Due::Fire { job, slot_ms, event_id }]);
}

#[test]
fn the_first_start_catches_nothing_up() {
    let now_ms = at("2024-05-01T12:34:00Z");
    let timer = timer(60_000, vec![cron("job", "0 * * * *", Missed::All, u64::MAX)]);
    let mut schedule = Schedule::new(&timer, TimeZone::UTC, now_ms, &|_| None).unwrap();
    assert_eq!(fired(&schedule.step(now_ms)), [now_ms], "the heartbeat of this very instant");
    assert_eq!(schedule.deadline(), Some(now_ms + 60_000));
}

#[test]
fn each_policy_treats_a_downtime_its_own_way() {
    let midnight_ms = at("2024-05-01T00:00:00Z");
    let hour = |hour: i64| midnight_ms + hour * HOUR_MS;
    let step = |missed: Missed, max_lateness_ms: u64| {
        let timer = timer(0, vec![cron("job", "0 * * * *", missed, max_lateness_ms)]);
        let mut schedule = since(&timer, TimeZone::UTC, midnight_ms);
        let due = schedule.step(hour(5) + 30 * 60_000);
        assert_eq!(schedule.deadline(), Some(hour(6)));
        due
    };
    let three_hours_ms = 3 * 3_600_000;

    let skip = step(Missed::Skip, three_hours_ms);
    assert_eq!((fired(&skip), missed(&skip)), (vec![], vec![(hour(1), hour(5), 5)]));
    let once = step(Missed::Once, three_hours_ms);
    assert_eq!((fired(&once), missed(&once)), (vec![hour(5)], vec![(hour(1), hour(4), 4)]));
    let once_too_late = step(Missed::Once, 600_000);
    assert_eq!((fired(&once_too_late), missed(&once_too_late)), (vec![], vec![(hour(1), hour(5), 5)]));
    let all = step(Missed::All, three_hours_ms);
    assert_eq!((fired(&all), missed(&all)), (vec![hour(3), hour(4), hour(5)], vec![(hour(1), hour(2), 2)]));
}

#[test]
fn once_runs_once_when_a_slot_is_also_on_time() {
    let midnight_ms = at("2024-05-01T00:00:00Z");
    let timer = timer(0, vec![cron("job", "0 * * * *", Missed::Once, u64::MAX)]);
    let due = since(&timer, TimeZone::UTC, midnight_ms).step(midnight_ms + 3 * HOUR_MS + 5_000);
    assert_eq!(fired(&due), [midnight_ms + 3 * HOUR_MS]);
    assert_eq!(missed(&due), [(midnight_ms + HOUR_MS, midnight_ms + 2 * HOUR_MS, 2)]);
}

#[test]
fn a_minute_late_is_on_time_and_longer_is_not() {
    let slot_ms = at("2024-05-01T08:00:00Z");
    let timer = timer(0, vec![cron("job", "0 8 * * *", Missed::Skip, 0)]);
    let step = |now_ms: i64| since(&timer, TimeZone::UTC, slot_ms - DAY_MS).step(now_ms);
    assert_eq!(fired(&step(slot_ms + ON_TIME_MS)), [slot_ms]);
    assert_eq!(missed(&step(slot_ms + ON_TIME_MS + 1)), [(slot_ms, slot_ms, 1)]);
}

#[test]
fn a_clock_that_goes_back_fires_nothing_again() {
    let slot_ms = at("2024-05-01T08:00:00Z");
    let timer = timer(60_000, vec![cron("job", "0 8 * * *", Missed::All, u64::MAX)]);
    let mut schedule = since(&timer, TimeZone::UTC, slot_ms - 1);
    assert_eq!(fired(&schedule.step(slot_ms)), [slot_ms, slot_ms]);
    assert_eq!(schedule.step(slot_ms - 3 * DAY_MS), Vec::new());
    assert_eq!(schedule.step(slot_ms), Vec::new());
    let restarted = Schedule::new(&timer, TimeZone::UTC, slot_ms - 3 * DAY_MS, &|_| Some(slot_ms)).unwrap();
    assert_eq!(restarted.deadline(), Some(slot_ms + 60_000));
}

#[test]
fn decades_of_minutes_are_bounded() {
    let now_ms = at("2024-05-01T00:00:30Z");
    let newest_ms = now_ms - 30_000;
    let timer = timer(0, vec![cron("job", "* * * * *", Missed::All, u64::MAX)]);
    let due = since(&timer, TimeZone::UTC, 0).step(now_ms);
    let slots = fired(&due);
    assert_eq!(slots.len(), MAX_CATCH_UP_SLOTS);
    assert_eq!((slots[0], slots[999]), (newest_ms - 999 * 60_000, newest_ms));
    assert_eq!(missed(&due), [(60_000, newest_ms - 1000 * 60_000, MISSED_COUNT_MAX)]);
}

#[test]
fn a_fixed_time_inside_the_gap_fires_once_right_after_it() {
    let new_york = fires_between("30 2 * * *", zone(NEW_YORK), "2024-03-09T12:00:00Z", "2024-03-11T12:00:00Z");
    assert_eq!(new_york, ["2024-03-10T07:00:00Z", "2024-03-11T06:30:00Z"]);
    let berlin = fires_between("30 2 * * *", zone(BERLIN), "2024-03-30T12:00:00Z", "2024-04-01T12:00:00Z");
    assert_eq!(berlin, ["2024-03-31T01:00:00Z", "2024-04-01T00:30:00Z"]);
    let twice = fires_between("0,30 2 * * *", zone(NEW_YORK), "2024-03-09T12:00:00Z", "2024-03-11T12:00:00Z");
    assert_eq!(twice, ["2024-03-10T07:00:00Z", "2024-03-11T06:00:00Z", "2024-03-11T06:30:00Z"]);
}

#[test]
fn a_fixed_time_inside_the_fold_fires_once() {
    let new_york = fires_between("30 1 * * *", zone(NEW_YORK), "2024-11-02T12:00:00Z", "2024-11-04T12:00:00Z");
    assert_eq!(new_york, ["2024-11-03T05:30:00Z", "2024-11-04T06:30:00Z"]);
    let berlin = fires_between("30 2 * * *", zone(BERLIN), "2024-10-26T12:00:00Z", "2024-10-28T12:00:00Z");
    assert_eq!(berlin, ["2024-10-27T00:30:00Z", "2024-10-28T01:30:00Z"]);
    let twice = fires_between("0,30 1 * * *", zone(NEW_YORK), "2024-11-02T12:00:00Z", "2024-11-03T12:00:00Z");
    assert_eq!(twice, ["2024-11-03T05:00:00Z", "2024-11-03T05:30:00Z"]);
    let from_later_half = fires_between("30 1 * * *", zone(NEW_YORK), "2024-11-03T06:10:00Z", "2024-11-04T12:00:00Z");
    assert_eq!(from_later_half, ["2024-11-04T06:30:00Z"]);
}

#[test]
fn intervals_keep_real_time_through_both_changes() {
    let fold = fires_between("*/30 * * * *", zone(NEW_YORK), "2024-11-03T04:45:00Z", "2024-11-03T07:10:00Z");
    let half_hours = ["05:00", "05:30", "06:00", "06:30", "07:00"].map(|time| format!("2024-11-03T{time}:00Z"));
    assert_eq!(fold, half_hours);
    let gap = fires_between("*/30 * * * *", zone(BERLIN), "2024-03-31T00:15:00Z", "2024-03-31T01:45:00Z");
    assert_eq!(gap, ["00:30", "01:00", "01:30"].map(|time| format!("2024-03-31T{time}:00Z")));
    let hourly = fires_between("15 * * * *", zone(BERLIN), "2024-10-26T23:30:00Z", "2024-10-27T02:30:00Z");
    assert_eq!(hourly, ["00:15", "01:15", "02:15"].map(|time| format!("2024-10-27T{time}:00Z")));
}

#[test]
fn a_reload_causes_no_burst() {
    let slot_ms = at("2024-05-01T08:00:00Z");
    let before = timer(60_000, vec![cron("job", "0 8 * * *", Missed::All, u64::MAX)]);
    let mut schedule = since(&before, TimeZone::UTC, slot_ms - 1);
    assert_eq!(schedule.step(slot_ms).len(), 2);
    let now_ms = slot_ms + 30 * 60_000 + 1;
    let after = timer(10_000, vec![cron("job", "0 8 * * *", Missed::All, u64::MAX), cron("new", "*/5 * * * *", Missed::All, u64::MAX)]);
    schedule.reschedule(&after, TimeZone::UTC, now_ms).unwrap();
    assert_eq!(schedule.step(now_ms), Vec::new());
    assert_eq!(schedule.deadline(), Some(slot_ms + 30 * 60_000 + 10_000));
    schedule.reschedule(&after, zone(NEW_YORK), now_ms).unwrap();
    assert_eq!(schedule.step(now_ms), Vec::new());
}

#[test]
fn a_reload_keeps_a_slot_that_is_still_to_fire() {
    let slot_ms = at("2024-05-01T08:00:00Z");
    let config = timer(0, vec![cron("job", "0 8 * * *", Missed::Skip, 0)]);
    let mut schedule = since(&config, TimeZone::UTC, slot_ms - DAY_MS);
    schedule.reschedule(&config, TimeZone::UTC, slot_ms + 5_000).unwrap();
    assert_eq!(fired(&schedule.step(slot_ms + 5_000)), [slot_ms]);
}

#[test]
fn a_refused_reload_leaves_the_schedule_as_it_was() {
    let mut schedule = since(&timer(60_000, Vec::new()), TimeZone::UTC, 0);
    let bad = timer(1_000, vec![cron("job", "every day", Missed::Skip, 0)]);
    assert!(schedule.reschedule(&bad, TimeZone::UTC, 0).is_err());
    assert_eq!(schedule.deadline(), Some(60_000));
}

#[test]
fn expressions_that_cannot_work_are_refused() {
    for expr in ["", "0 8 * *", "0 0 8 * * *", "61 * * * *", "0 8 * * * ; rm"] {
        assert!(matches!(check_expression(expr), Err(ExpressionError::Invalid(_))), "{expr}");
    }
    for expr in ["0 0 30 2 *", ", 8 * * *", "0 , * * *"] {
        assert!(matches!(check_expression(expr), Err(ExpressionError::Never)), "{expr}");
    }
    let never = timer(0, vec![cron("job", "0 0 30 2 *", Missed::Skip, 0)]);
    let error = Schedule::new(&never, TimeZone::UTC, 0, &|_| None).unwrap_err();
    assert_eq!(error.to_string(), "cannot schedule timer `job` by cron expression `0 0 30 2 *`");
    let twice = vec![cron("a", "0 8 * * *", Missed::Skip, 0), cron("a", "0 9 * * *", Missed::Skip, 0)];
    let error = Schedule::new(&timer(0, twice), TimeZone::UTC, 0, &|_| None).unwrap_err();
    assert!(matches!(error, ScheduleError::DuplicateLabel { .. }));
}

#[test]
fn instants_outside_the_calendar_are_never_due() {
    let timer = timer(0, vec![cron("job", "* * * * *", Missed::All, u64::MAX)]);
    for last_ms in [i64::MIN, i64::MAX] {
        let mut schedule = since(&timer, zone(BERLIN), last_ms);
        assert_eq!(schedule.deadline(), None);
        assert_eq!(schedule.step(at("2024-05-01T00:00:00Z")), Vec::new());
    }
}

fn any_zone() -> impl Strategy<Value = TimeZone> {
    prop_oneof![Just(TimeZone::UTC), Just(zone(NEW_YORK)), Just(zone(BERLIN))]
}

/// An instant within a day of one of 2024's four clock changes.
fn near_a_change() -> impl Strategy<Value = i64> {
    let changes = ["2024-03-10T07:00:00Z", "2024-03-31T01:00:00Z", "2024-10-27T01:00:00Z", "2024-11-03T06:00:00Z"];
    (prop::sample::select(changes.to_vec()), -DAY_MS..DAY_MS).prop_map(|(change, offset_ms)| at(change) + offset_ms)
}

fn rule(expr: &str, zone: &TimeZone) -> CronRule {
    CronRule::new(&cron("job", expr, Missed::All, 0), zone).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_interval_fires_at_exactly_the_minutes_that_match(
        zone in any_zone(),
        start_ms in near_a_change(),
        expr in prop::sample::select(vec!["*/30 * * * *", "7 * * * *", "*/20 1-3 * * *", "0 */2 * * 0"]),
    ) {
        let rule = rule(expr, &zone);
        let first_minute_ms = start_ms - start_ms.rem_euclid(60_000) + 60_000;
        let expected = (0..4 * 24 * 60).map(|minute| first_minute_ms + minute * 60_000).find(|instant_ms| {
            let wall = zone.to_datetime(Timestamp::from_millisecond(*instant_ms).unwrap());
            rule.cron.is_time_matching(&wall).unwrap()
        });
        // A weekly job may have no slot within the four days looked at.
        if let Some(expected_ms) = expected {
            prop_assert_eq!(rule.next_after(start_ms), Some(expected_ms));
        }
    }

    #[test]
    fn a_daily_job_fires_once_on_every_date(
        zone in any_zone(),
        start_ms in near_a_change(),
        hour in 0..24,
        minute in 0..60,
    ) {
        let rule = rule(&format!("{minute} {hour} * * *"), &zone);
        let mut slot_ms = rule.next_after(start_ms).unwrap();
        for _ in 0..5 {
            let next_ms = rule.next_after(slot_ms).unwrap();
            let date = |ms: i64| zone.to_datetime(Timestamp::from_millisecond(ms).unwrap()).date();
            prop_assert_eq!(date(slot_ms).tomorrow().unwrap(), date(next_ms));
            slot_ms = next_ms;
        }
    }

    #[test]
    fn the_newest_slots_are_those_a_walk_finds(
        zone in any_zone(),
        start_ms in near_a_change(),
        span_ms in 0..5 * DAY_MS,
        limit in 1_usize..200,
        expr in prop::sample::select(vec!["*/30 * * * *", "* 2 * * *", "30 2 * * *", "0,30 1-2 * * *", "0 0 1 1 *"]),
    ) {
        let rule = rule(expr, &zone);
        let until_ms = start_ms + span_ms;
        let mut walked = Vec::new();
        let mut slot_ms = start_ms;
        while let Some(next_ms) = rule.next_after(slot_ms).filter(|next_ms| *next_ms <= until_ms) {
            walked.push(next_ms);
            slot_ms = next_ms;
        }
        let run = rule.missed(start_ms, until_ms);
        prop_assert_eq!(run.map(|run| run.count), walked.first().map(|_| walked.len() as u64));
        let newest = walked.split_off(walked.len().saturating_sub(limit));
        prop_assert_eq!(rule.newest_slots(start_ms, until_ms, limit), newest);
    }

    #[test]
    fn slots_of_a_job_strictly_increase_however_the_clock_jumps(
        zone in any_zone(),
        start_ms in near_a_change(),
        jumps_ms in prop::collection::vec(-2 * DAY_MS..3 * DAY_MS, 1..20),
        policy in 0..3,
        max_lateness_ms in 0_u64..200_000_000,
    ) {
        let missed = || match policy {
            0 => Missed::Skip,
            1 => Missed::Once,
            _ => Missed::All,
        };
        let crons = vec![
            cron("fixed", "30 2 * * *", missed(), max_lateness_ms),
            cron("interval", "*/30 * * * *", missed(), max_lateness_ms),
        ];
        let mut schedule = Schedule::new(&timer(45_000, crons), zone, start_ms, &|_| None).unwrap();
        let mut newest: std::collections::HashMap<Job, i64> = std::collections::HashMap::new();
        let mut now_ms = start_ms;
        for jump_ms in jumps_ms {
            now_ms += jump_ms;
            for due in schedule.step(now_ms) {
                let (job, first_ms, last_ms) = match due {
                    Due::Fire { job, slot_ms, event_id } => {
                        prop_assert_eq!(job.event_id(slot_ms), event_id);
                        (job, slot_ms, slot_ms)
                    }
                    Due::Missed { job, slot_ms_first, slot_ms_last, count } => {
                        prop_assert!(count >= 1);
                        (job, slot_ms_first, slot_ms_last)
                    }
                };
                prop_assert!(first_ms <= last_ms && last_ms <= now_ms && first_ms >= start_ms);
                let before_ms = newest.insert(job, last_ms);
                prop_assert!(before_ms.is_none_or(|before_ms| before_ms < first_ms));
            }
            prop_assert!(schedule.deadline().is_some_and(|deadline_ms| deadline_ms > now_ms));
        }
    }
}
