//! Promise 4: each intended child lives once, and nobody else does.

use crate::agent::ESCAPEE;
use crate::daemon::Daemon;
use crate::fault::Program;
use crate::procfs::{self, Process};
use crate::world::World;
use std::collections::HashMap;

/// Processes of this world that are older than the daemon: those of one before it.
pub(crate) fn stale(world: &World, daemon: &Daemon) -> Vec<Process> {
    let began = daemon.process.start_ticks;
    let all = procfs::all_with(&world.root().to_string_lossy());
    all.into_iter().filter(|process| process.start_ticks < began && process.is_alive()).collect()
}

/// What agents of this world left behind and should be gone with them.
pub(crate) fn left_behind(world: &World) -> Vec<Process> {
    let all = procfs::all_with(&world.root().to_string_lossy());
    all.into_iter().filter(|process| process.command.contains(ESCAPEE) && process.is_alive()).collect()
}

/// Whether the lines of a monitor that ended can be written, without which it has no successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intake {
    Goes,
    MayBeHeld,
}

/// What is wrong with the children now; `None` when each account has one monitor (or none while its intake
/// may be held), the project one process at most, and every process descends from the daemon.
pub(crate) fn wrong(world: &World, daemon: &Daemon, intake: Intake) -> Option<String> {
    let all = procfs::all_with(&world.root().to_string_lossy());
    for kind in world.kinds() {
        for account in kind.accounts() {
            let words = format!(" {} monitor --account {account} ", kind.name());
            let monitors = all.iter().filter(|process| process.command.contains(&words)).count();
            if monitors > 1 || (monitors == 0 && intake == Intake::Goes) {
                return Some(format!("{}/{account} has {monitors} monitors", kind.name()));
            }
        }
    }
    if let Some(wrong) = projects_are_too_many(&all) {
        return Some(wrong);
    }
    let parents: HashMap<i32, i32> = all.iter().map(|process| (process.pid, process.parent)).collect();
    let keeper = daemon.keeper().map(|keeper| keeper.pid);
    let descends = |mut pid: i32| {
        while pid != daemon.pid() && Some(pid) != keeper {
            match parents.get(&pid).copied().or_else(|| Process::of(pid).map(|process| process.parent)) {
                Some(parent) if parent > 1 => pid = parent,
                _ => return false,
            }
        }
        true
    };
    let stray: Vec<&Process> = all.iter().filter(|process| process.is_alive() && !descends(process.pid)).collect();
    (!stray.is_empty()).then(|| format!("processes that don't descend from the daemon live: {stray:?}"))
}

/// There is one project in a world at most.
fn projects_are_too_many(all: &[Process]) -> Option<String> {
    let of_project: Vec<&Process> = all.iter().filter(|one| format!("{} ", one.command).contains(Program::Project.word())).collect();
    (of_project.len() > 1).then(|| format!("the project has {} processes: {of_project:?}", of_project.len()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::clock;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    const SEEN_LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn a_project_has_one_process_at_most() {
        let process = |pid: i32, command: &str| Process { pid, parent: 1, start_ticks: 1, command: command.to_owned() };
        let words = ["/bin/it __project /world 7", "/bin/it __agent /world 7", "/bin/it __project /world 7"];
        let all = [process(1, words[0]), process(2, words[1]), process(3, words[2])];
        assert_eq!(projects_are_too_many(&all[..2]), None);
        assert!(projects_are_too_many(&all).is_some_and(|wrong| wrong.starts_with("the project has 2 processes")));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "what is left behind is nobody's child")]
    fn what_an_agent_left_behind_is_seen_while_it_lives() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::at(dir.path());
        assert!(left_behind(&world).is_empty());
        let mut words = Command::new("/bin/sh");
        words.args(["-c", "read line; true", "sh", ESCAPEE]).arg(dir.path()).stdin(Stdio::piped());
        let mut left = words.spawn().unwrap();
        let pid = i32::try_from(left.id()).unwrap();
        // While exec goes on, its words can't be read yet.
        let is_seen = || Ok(left_behind(&world).iter().any(|one| one.pid == pid).then_some(()));
        assert!(clock::until(SEEN_LIMIT, is_seen).unwrap().is_some(), "{:?}", left_behind(&world));
        left.kill().unwrap();
        left.wait().unwrap();
        assert!(left_behind(&world).is_empty());
    }
}
