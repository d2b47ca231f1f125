//! Which projects are stopped for want of work, which are kept running, and which makes room for another. Pure
//! decisions over what is known; nothing is stopped here.

use super::coordinate::Coordinate;

/// Memory that one running project is reckoned with, in MiB.
const PROJECT_MB: u64 = 512;
/// Most projects that run at one time where the configuration names no number.
const RUNNING_MAX: u64 = 64;

/// A project as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) project: Coordinate,
    pub(super) is_up: bool,
    pub(super) is_used: bool,
    /// It may be started without anybody's doing: prepared once, and not quarantined.
    pub(super) may_start: bool,
    /// By any clock that is the same for all.
    pub(super) last_used_ms: i64,
    pub(super) idle_ms: u64,
    /// After so long without work it is stopped; 0 for never.
    pub(super) idle_stop_ms: u64,
}

/// What is to be done about them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Upkeep {
    pub(super) stop: Vec<Coordinate>,
    pub(super) start: Vec<Coordinate>,
}

/// The `warm` that were used last run, as far as there is room; others stop once they are idle for long enough.
pub(super) fn upkeep(seen: &[Seen], warm: usize, running_max: usize) -> Upkeep {
    let mut by_use: Vec<&Seen> = seen.iter().filter(|one| one.may_start).collect();
    by_use.sort_by(|a, b| b.last_used_ms.cmp(&a.last_used_ms).then_with(|| a.project.cmp(&b.project)));
    let kept: Vec<&Coordinate> = by_use.iter().take(warm).map(|one| &one.project).collect();
    let up = seen.iter().filter(|one| one.is_up).count();
    let is_due = |one: &&Seen| one.is_up && !one.is_used && one.idle_stop_ms > 0 && one.idle_ms >= one.idle_stop_ms;
    let stop = seen.iter().filter(is_due).filter(|one| !kept.contains(&&one.project));
    let start = by_use.iter().take(warm).filter(|one| !one.is_up).take(running_max.saturating_sub(up));
    Upkeep { stop: stop.map(|one| one.project.clone()).collect(), start: start.map(|one| one.project.clone()).collect() }
}

/// Of those that run and are not used, the one that was used least recently: it makes room.
pub(super) fn least_recently_used(seen: &[Seen]) -> Option<Coordinate> {
    let idle = seen.iter().filter(|one| one.is_up && !one.is_used);
    idle.min_by(|a, b| a.last_used_ms.cmp(&b.last_used_ms).then_with(|| a.project.cmp(&b.project))).map(|one| one.project.clone())
}

/// How many may run where the configuration doesn't say: one for each 512 MiB of memory.
pub(super) fn default_running_max(memory_mb: u64) -> u32 {
    u32::try_from((memory_mb / PROJECT_MB).clamp(1, RUNNING_MAX)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn coordinate(identifier: &str) -> Coordinate {
        Coordinate::parse(&format!("31933:{}:{identifier}", "a".repeat(64))).unwrap()
    }

    fn seen(identifier: &str, last_used_ms: i64) -> Seen {
        let project = coordinate(identifier);
        Seen { project, is_up: true, is_used: false, may_start: true, last_used_ms, idle_ms: 100, idle_stop_ms: 50 }
    }

    #[test]
    fn the_idle_stop_but_for_those_in_use_those_that_never_do_and_the_warm() {
        let all = [
            seen("idle", 1),
            Seen { is_used: true, ..seen("used", 2) },
            Seen { idle_stop_ms: 0, ..seen("never", 3) },
            Seen { idle_ms: 49, ..seen("young", 4) },
            seen("warm", 5),
        ];
        assert_eq!(upkeep(&all, 1, 10), Upkeep { stop: vec![coordinate("idle")], start: Vec::new() });
        assert_eq!(upkeep(&all, 0, 10).stop, [coordinate("idle"), coordinate("warm")]);
    }

    #[test]
    fn the_warm_are_started_as_far_as_there_is_room() {
        let down = |identifier: &str, at| Seen { is_up: false, ..seen(identifier, at) };
        let all = [down("old", 1), down("newer", 2), Seen { may_start: false, ..down("bad", 9) }, Seen { is_used: true, ..seen("up", 3) }];
        assert_eq!(upkeep(&all, 2, 10).start, [coordinate("newer")], "`up` is warm, and up");
        assert_eq!(upkeep(&all, 3, 10).start, [coordinate("newer"), coordinate("old")]);
        assert_eq!(upkeep(&all, 3, 2).start, [coordinate("newer")]);
        assert_eq!(upkeep(&all, 3, 1), Upkeep::default());
    }

    #[test]
    fn room_is_made_by_the_idle_one_that_was_used_least_recently() {
        let all = [seen("b", 5), seen("a", 5), Seen { is_used: true, ..seen("used", 1) }, Seen { is_up: false, ..seen("down", 0) }];
        assert_eq!(least_recently_used(&all), Some(coordinate("a")));
        assert_eq!(least_recently_used(&all[2..]), None);
    }

    #[test]
    fn memory_bounds_how_many_run() {
        assert_eq!([0, 511, 1024, 16 * 1024, 1024 * 1024].map(default_running_max), [1, 1, 2, 32, 64]);
    }
}
