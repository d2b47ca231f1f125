//! The cgroup of a process that is itself a child of a daemon's keeper, as that of a project is: its own children get
//! theirs inside of it. Makes none and removes none: the daemon kills and removes all of it with that process.

use super::child::NAME_PREFIX;
use super::find::Hierarchy;
use super::{Cgroup, KillLevel, check, name_of};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use tokio::sync::watch;

impl Cgroup {
    /// For the keeper of such a process. Where that one has no cgroup of its own, as at the level `scan`, neither
    /// have its children.
    pub(crate) fn inside(instance: &str) -> Self {
        let Some(directory) = own_directory(instance) else { return Self::none() };
        let level = KillLevel::Cgroup { directory, shared: None };
        Self { made: None, record: PathBuf::new(), level: watch::Sender::new(level), is_spent: AtomicBool::new(false) }
    }
}

fn own_directory(instance: &str) -> Option<PathBuf> {
    let hierarchy = Hierarchy::find().inspect_err(|error| tracing::debug!(%error, "children have no cgroup of their own")).ok()?;
    // Another's is not ours to fill: nobody would clear up in it.
    if !is_of_child(&hierarchy.own, &name_of(instance)) {
        return None;
    }
    let directory = hierarchy.seen(&hierarchy.own)?;
    check(&directory).inspect_err(|error| tracing::debug!(%error, "children have no cgroup of their own")).ok()?;
    Some(directory)
}

/// Whether a daemon's keeper, whose cgroup is called `home`, made this one for a child.
fn is_of_child(own: &Path, home: &str) -> bool {
    let is_child = own.file_name().is_some_and(|name| name.to_string_lossy().starts_with(NAME_PREFIX));
    is_child && own.parent().and_then(Path::file_name) == Some(OsStr::new(home))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_a_keeper_of_this_instance_made_for_a_child_is_filled() {
        let is_ours = |own: &str| is_of_child(Path::new(own), "nexus-A");
        assert!(is_ours("/user/nexus-A/child-7") && is_ours("/nexus-A/child-7/nexus-A/child-1"));
        for other in ["/", "/nexus-A", "/nexus-B/child-7", "/child-7", "/nexus-A/child-7/theirs", "/nexus-A/other"] {
            assert!(!is_ours(other), "{other}");
        }
        assert_eq!(Cgroup::inside("nobody-of-this-name").home(), None);
    }
}
