//! Where in a run the power is lost.

use super::log::Op;
use std::ops::Range;

/// Up to `count` places, ascending and distinct, one in each of as many equal parts of the run. They prefer what is
/// hard: a sync that was asked for and hasn't returned, the op right after a sync, and one in the middle of a burst.
pub(crate) fn points(ops: &[Op], count: usize, rng: &mut fastrand::Rng) -> Vec<usize> {
    if ops.len() <= count {
        return (0..ops.len()).collect();
    }
    (0..count).filter_map(|part| point(ops, part * ops.len() / count..(part + 1) * ops.len() / count, rng)).collect()
}

fn point(ops: &[Op], part: Range<usize>, rng: &mut fastrand::Rng) -> Option<usize> {
    let is_sync = |at: usize| ops.get(at).is_some_and(Op::is_sync);
    let follows_sync = |at: usize| at > 0 && is_sync(at - 1);
    let preferred: Vec<usize> = match rng.u8(0..3) {
        0 => part.clone().filter(|at| is_sync(*at)).collect(),
        1 => part.clone().filter(|at| follows_sync(*at)).collect(),
        _ => part.clone().filter(|at| !is_sync(*at) && !follows_sync(*at)).collect(),
    };
    if preferred.is_empty() { rng.choice(part) } else { rng.choice(preferred) }
}

#[cfg(test)]
mod tests {
    use super::super::log::What;
    use super::*;

    fn ops(count: u64) -> Vec<Op> {
        let what = |at| if at % 10 == 9 { What::Sync { inode: 1 } } else { What::Truncate { inode: 1, size: at } };
        (0..count).map(|at| Op { before_ns: at, after_ns: at, process: 1, thread: 1, what: what(at) }).collect()
    }

    #[test]
    fn points_are_distinct_and_spread_over_the_run() {
        let all = ops(10_000);
        let found = points(&all, 2000, &mut fastrand::Rng::with_seed(1));
        assert_eq!(found.len(), 2000);
        assert!(found.iter().enumerate().all(|(part, at)| (part * 5..part * 5 + 5).contains(at)));
        let syncs = found.iter().filter(|at| all[**at].is_sync()).count();
        let after = found.iter().filter(|at| **at % 10 == 0).count();
        assert!(syncs >= 300 && after >= 300, "{syncs} and {after}, where chance alone gives 200 of each");
        assert!(found.iter().any(|at| (2..8).contains(&(at % 10))));
    }

    #[test]
    fn a_short_run_is_cut_everywhere() {
        assert_eq!(points(&ops(3), 200, &mut fastrand::Rng::with_seed(1)), [0, 1, 2]);
        assert!(points(&[], 200, &mut fastrand::Rng::with_seed(1)).is_empty());
        assert!(points(&ops(3), 0, &mut fastrand::Rng::with_seed(1)).is_empty());
    }
}
