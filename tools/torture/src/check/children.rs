//! Promise 4: each intended child lives once, and nobody else does.

use crate::agent::{ESCAPEE, MARKED};
use crate::daemon::Daemon;
use crate::fault::Program;
use crate::procfs::{self, Process};
use crate::world::{Kind, World};
use std::collections::HashMap;

/// Processes of this world that are older than the daemon: those of one before it.
pub(crate) fn stale(world: &World, daemon: &Daemon) -> Vec<Process> {
    let all = procfs::all_with(&world.root().to_string_lossy());
    let older = older_than(all, daemon.process.start_ticks);
    older.into_iter().filter(Process::is_alive).collect()
}

fn older_than(all: Vec<Process>, began: u64) -> Vec<Process> {
    all.into_iter().filter(|process| process.start_ticks < began).collect()
}

/// What agents of this world left behind and should be gone with them.
pub(crate) fn left_behind(world: &World) -> Vec<Process> {
    let all = procfs::all_with(&world.root().to_string_lossy());
    all.into_iter().filter(|process| process.command.contains(ESCAPEE) && process.is_alive()).collect()
}

/// Whether an agent left it behind without anything that tells whose it is: only a cgroup ends it.
pub(crate) fn is_scrubbed(process: &Process) -> bool {
    process.command.contains(ESCAPEE) && !process.command.ends_with(MARKED)
}

/// Whether the lines of a monitor that ended can be written, without which it has no successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intake {
    Goes,
    MayBeHeld,
}

/// What is wrong with the children now; `None` when each account has one monitor (or none while its intake
/// may be held), the project and an agent that stays one process at most, and every process descends from the daemon.
pub(crate) fn wrong(world: &World, daemon: &Daemon, intake: Intake) -> Option<String> {
    let all = procfs::all_with(&world.root().to_string_lossy());
    if let Some(wrong) = monitors_are_wrong(world, &all, intake).or_else(|| are_too_many(&all)) {
        return Some(wrong);
    }
    let roots: Vec<i32> = daemon.keeper().map(|keeper| keeper.pid).into_iter().chain([daemon.pid()]).collect();
    let stray = strays(&all, &roots, |pid| Process::of(pid).map(|process| process.parent));
    let stray: Vec<&Process> = stray.into_iter().filter(|process| process.is_alive()).collect();
    (!stray.is_empty()).then(|| format!("processes that don't descend from the daemon live: {stray:?}"))
}

fn monitors_are_wrong(world: &World, all: &[Process], intake: Intake) -> Option<String> {
    for kind in world.kinds() {
        for account in kind.accounts() {
            let words = format!(" {} monitor --account {account} ", kind.name());
            let monitors = all.iter().filter(|process| process.command.contains(&words)).count();
            if monitors > 1 || (monitors == 0 && intake == Intake::Goes) {
                return Some(format!("{}/{account} has {monitors} monitors", kind.name()));
            }
        }
    }
    None
}

/// Whether this daemon has had a turn for each agent that stays, whose process begins with the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turns {
    MayBeMissing,
    Were,
}

/// What is wrong at a calm moment: then each intended child lives once and nobody else does, but for a project's process,
/// which comes and goes. `None` when nothing is; a call that has just begun may still be under way.
pub(crate) fn not_as_intended(world: &World, daemon: &Daemon, turns: Turns) -> Option<String> {
    let Some(keeper) = daemon.keeper() else { return Some("the daemon has no keeper".to_owned()) };
    are_not_as_intended(world, &procfs::children_of(keeper.pid), turns)
}

/// Who is to live at a calm moment, and words of the command line that nobody else has.
fn intended(world: &World, turns: Turns) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for kind in world.kinds() {
        for account in kind.accounts() {
            let words = |verb: &str| format!(" {} {verb} --account {account} ", kind.name());
            all.push((format!("the monitor of {}/{account}", kind.name()), words("monitor")));
            if kind == Kind::Live {
                all.push((format!("the stream process of {}/{account}", kind.name()), words("stream")));
            }
        }
    }
    if world.cast().advisers {
        for program in [Program::Automations, Program::Script, Program::Plugin] {
            all.push((format!("the process{}", program.word().trim_end()), program.word().to_owned()));
        }
    }
    if world.cast().acp && turns == Turns::Were {
        all.push(("the agent that stays".to_owned(), Program::Acp.word().to_owned()));
    }
    all
}

fn are_not_as_intended(world: &World, children: &[Process], turns: Turns) -> Option<String> {
    let intended = intended(world, turns);
    let has = |child: &Process, words: &str| format!("{} ", child.command).contains(words);
    for (who, words) in &intended {
        let times = children.iter().filter(|child| has(child, words)).count();
        if times != 1 {
            return Some(format!("{who} lives {times} times"));
        }
    }
    // What an agent left behind is looked at by itself.
    let may_live = [Program::Project.word(), ESCAPEE].into_iter().chain(intended.iter().map(|(_, words)| words.as_str()));
    let may_live: Vec<&str> = may_live.chain(world.cast().acp.then_some(Program::Acp.word())).collect();
    let is_known = |child: &Process| may_live.iter().any(|words| has(child, words));
    let others: Vec<&Process> = children.iter().filter(|child| !is_known(child)).collect();
    (!others.is_empty()).then(|| format!("nobody wants these to live: {others:?}")).or_else(|| are_too_many(children))
}

/// Those that have none of `roots` above them; `parent_of` knows the others.
fn strays<'a>(all: &'a [Process], roots: &[i32], parent_of: impl Fn(i32) -> Option<i32>) -> Vec<&'a Process> {
    let parents: HashMap<i32, i32> = all.iter().map(|process| (process.pid, process.parent)).collect();
    let descends = |mut pid: i32| {
        while !roots.contains(&pid) {
            match parents.get(&pid).copied().or_else(|| parent_of(pid)) {
                Some(parent) if parent > 1 => pid = parent,
                _ => return false,
            }
        }
        true
    };
    all.iter().filter(|process| !descends(process.pid)).collect()
}

/// There is one project in a world at most, and one agent that stays.
fn are_too_many(all: &[Process]) -> Option<String> {
    [("the project", Program::Project), ("the agent that stays", Program::Acp)].into_iter().find_map(|(who, program)| {
        let its: Vec<&Process> = all.iter().filter(|one| format!("{} ", one.command).contains(program.word())).collect();
        (its.len() > 1).then(|| format!("{who} has {} processes: {its:?}", its.len()))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::clock;
    use crate::world::Cast;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    const SEEN_LIMIT: Duration = Duration::from_secs(30);

    fn process(pid: i32, command: &str) -> Process {
        Process { pid, parent: 1, start_ticks: 1, command: command.to_owned() }
    }

    #[test]
    fn who_began_before_the_daemon_is_of_one_before() {
        let at = |pid: i32, start_ticks: u64| Process { start_ticks, ..process(pid, "x") };
        assert_eq!(older_than(vec![at(1, 6), at(2, 7), at(3, 8)], 7), [at(1, 6)]);
    }

    #[test]
    fn who_has_neither_daemon_nor_keeper_above_is_a_stray() {
        let of = |pid: i32, parent: i32| Process { parent, ..process(pid, "x") };
        // 10: the daemon, 11: its keeper, 30: somebody whom nothing of this world names, 50: gone.
        let all = [of(10, 5), of(11, 10), of(20, 11), of(31, 30), of(40, 1), of(51, 50)];
        let others = |pid: i32| (pid == 30).then_some(20);
        let found: Vec<i32> = strays(&all, &[10, 11], others).into_iter().map(|process| process.pid).collect();
        assert_eq!(found, [40, 51]);
    }

    #[test]
    fn each_account_has_one_monitor_or_none_while_its_intake_may_be_held() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::at(dir.path());
        let mut all = Vec::new();
        for kind in world.kinds() {
            for account in kind.accounts() {
                all.push(process(all.len() as i32 + 2, &format!("it {} monitor --account {account} /world", kind.name())));
            }
        }
        assert_eq!(monitors_are_wrong(&world, &all, Intake::Goes), None);
        let fewer = &all[1..];
        assert!(monitors_are_wrong(&world, fewer, Intake::Goes).is_some_and(|wrong| wrong.ends_with("has 0 monitors")));
        assert_eq!(monitors_are_wrong(&world, fewer, Intake::MayBeHeld), None);
        all.push(all[0].clone());
        for intake in [Intake::Goes, Intake::MayBeHeld] {
            assert!(monitors_are_wrong(&world, &all, intake).is_some_and(|wrong| wrong.ends_with("has 2 monitors")));
        }
    }

    #[test]
    fn at_a_calm_moment_each_intended_child_lives_once_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::make(dir.path(), Cast { speakers: true, advisers: true, ..Cast::default() }).unwrap();
        let intended_in = |world: &World| intended(world, Turns::Were);
        let whole: Vec<Process> = intended_in(&world).iter().map(|(_, words)| process(2, &format!("/bin/it{words}/world 7"))).collect();
        assert_eq!(whole.len(), 8 + 1 + 3, "monitors, one stream process, and three for automations and plugins");
        let wrong = |world: &World, children: &[Process]| are_not_as_intended(world, children, Turns::Were);
        assert_eq!(wrong(&world, &whole), None);
        for (number, (who, _)) in intended_in(&world).iter().enumerate() {
            let mut fewer = whole.clone();
            let gone = fewer.remove(number);
            assert_eq!(wrong(&world, &fewer), Some(format!("{who} lives 0 times")));
            let twice: Vec<Process> = whole.iter().cloned().chain([gone]).collect();
            assert_eq!(wrong(&world, &twice), Some(format!("{who} lives 2 times")));
        }
        let with = |command: &str| {
            let all: Vec<Process> = whole.iter().cloned().chain([process(3, command)]).collect();
            wrong(&world, &all)
        };
        assert_eq!((with("/bin/it __project /world 7"), with("/bin/it __escapee /world")), (None, None));
        assert!(with("/bin/it __agent /world 7").is_some_and(|wrong| wrong.starts_with("nobody wants these to live")));
        let plain = World::at(dir.path());
        assert!(wrong(&plain, &whole).is_some(), "nobody speaks in that world");
    }

    #[test]
    fn an_agent_that_stays_lives_once_after_its_first_turn() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::make(dir.path(), Cast { acp: true, ..Cast::default() }).unwrap();
        let before: Vec<Process> =
            intended(&world, Turns::MayBeMissing).iter().map(|(_, words)| process(2, &format!("/bin/it{words}/world 7"))).collect();
        let with = |times: usize| [before.clone(), vec![process(3, "/bin/it __acp /world 7"); times]].concat();
        let wrong = |times: usize, turns: Turns| are_not_as_intended(&world, &with(times), turns).unwrap_or_default();
        assert_eq!((wrong(0, Turns::MayBeMissing), wrong(1, Turns::MayBeMissing)), (String::new(), String::new()));
        assert!(wrong(2, Turns::MayBeMissing).starts_with("the agent that stays has 2 processes"));
        assert_eq!((wrong(0, Turns::Were), wrong(1, Turns::Were)), ("the agent that stays lives 0 times".to_owned(), String::new()));
        assert_eq!(wrong(2, Turns::Were), "the agent that stays lives 2 times");
        let plain = World::at(dir.path());
        let found = are_not_as_intended(&plain, &with(1), Turns::Were);
        assert!(found.is_some_and(|wrong| wrong.starts_with("nobody wants these to live")), "it is in another world");
    }

    #[test]
    fn only_what_has_no_mark_is_scrubbed() {
        let told = [("it __escapee /world", true), ("it __escapee /world __marked", false), ("it __agent /world 7", false)];
        for (command, scrubbed) in told {
            assert_eq!(is_scrubbed(&process(2, command)), scrubbed, "{command}");
        }
    }

    #[test]
    fn a_project_has_one_process_at_most() {
        let words = ["/bin/it __project /world 7", "/bin/it __agent /world 7", "/bin/it __project /world 7"];
        let all = [process(1, words[0]), process(2, words[1]), process(3, words[2])];
        assert_eq!(are_too_many(&all[..2]), None);
        assert!(are_too_many(&all).is_some_and(|wrong| wrong.starts_with("the project has 2 processes")));
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
