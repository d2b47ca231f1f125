//! What a dead daemon left in its cgroup, for who looks after a stopped one. Makes no cgroup.

use super::find::Hierarchy;
use super::{PROCS, clear_former, former, name_of, nested, record_in, recorded};
use crate::keeper::leftovers::Cleared;
use std::fs;
use std::io;
use std::path::Path;

/// Every process that a dead daemon of this `instance` left in its cgroup, but for those around us.
pub fn left(state_dir: &Path, instance: &str) -> Vec<i32> {
    let Ok(hierarchy) = Hierarchy::find() else { return Vec::new() };
    let former = former(recorded(&record_in(state_dir)).as_deref(), &hierarchy.own, &name_of(instance));
    let others = former.into_iter().filter(|path| !hierarchy.own.starts_with(path));
    // A cgroup that is gone has no members.
    let mut pids: Vec<i32> = others.filter_map(|path| members(&hierarchy.seen(&path)?).ok()).flatten().collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Kills every process that [`left`] names, as the next start would. The caller holds the lock of the state
/// directory. Blocks for at most ten seconds, unless former cgroups were nested.
pub fn clear_left(state_dir: &Path, instance: &str) -> Cleared {
    let mut killed = left(state_dir, instance);
    if let Ok(hierarchy) = Hierarchy::find() {
        clear_former(&hierarchy, &record_in(state_dir), &name_of(instance));
    }
    let remaining = left(state_dir, instance);
    killed.retain(|pid| !remaining.contains(pid));
    Cleared { killed, left: remaining }
}

/// The PIDs of all that is in a cgroup and below it, as far as this PID namespace has numbers for them.
fn members(directory: &Path) -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for cgroup in nested(directory)? {
        // What ends meanwhile takes its cgroup along, or is not there to be listed.
        let listed = fs::read_to_string(cgroup.join(PROCS)).unwrap_or_default();
        pids.extend(listed.lines().filter_map(|pid| pid.parse::<i32>().ok()).filter(|&pid| pid > 0));
    }
    Ok(pids)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn members_are_those_of_every_cgroup_below() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(members(directory.path()).unwrap(), Vec::<i32>::new());
        fs::create_dir_all(directory.path().join("child-1/theirs")).unwrap();
        // 0: a process that this PID namespace has no number for.
        for (name, pids) in [("", "7\n"), ("child-1", "0\n8\n"), ("child-1/theirs", "9\n\nx\n")] {
            fs::write(directory.path().join(name).join(PROCS), pids).unwrap();
        }
        assert_eq!(members(directory.path()).unwrap(), [7, 8, 9]);
        assert!(members(&directory.path().join("gone")).is_err());
    }

    #[test]
    fn a_state_directory_without_a_cgroup_has_nothing_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let instance = format!("test-{}", std::process::id());
        assert_eq!(left(directory.path(), &instance), Vec::<i32>::new());
        assert_eq!(clear_left(directory.path(), &instance), Cleared::default());
    }
}
