//! What may be done to a daemon between its start and its end. Every cycle of a run has one fault; the
//! cycle ends with the daemon's death, by the fault or by a kill after it.

use crate::chance::Chance;
use crate::world::Cast;
use std::iter::repeat_n;

/// Whom a kill hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    Daemon,
    Keeper,
    Both,
}

impl Victim {
    const ALL: [Self; 3] = [Self::Daemon, Self::Keeper, Self::Both];

    /// As a fail point names it.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Daemon => "kill",
            Self::Keeper => "keeper",
            Self::Both => "both",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Keeper => "keeper",
            Self::Both => "both",
        }
    }
}

/// Programs that the daemon has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Monitor,
    Backfill,
    Agent,
    Send,
    Stream,
    /// The process that all automations share.
    Automations,
    /// The host of a plugin in JavaScript, and a plugin that is a program.
    Script,
    Plugin,
    /// The process of a project.
    Project,
    /// The agent that stays.
    Acp,
}

impl Program {
    /// Those of every world.
    const ALL: [Self; 4] = [Self::Monitor, Self::Backfill, Self::Agent, Self::Send];

    /// Those that a world has besides.
    pub(crate) fn of(cast: Cast) -> Vec<Self> {
        let speakers = cast.speakers.then_some(Self::Stream);
        let advisers = [Self::Automations, Self::Script, Self::Plugin].into_iter().filter(|_| cast.advisers);
        let (project, acp) = (cast.nostr.then_some(Self::Project), cast.acp.then_some(Self::Acp));
        speakers.into_iter().chain(advisers).chain(project).chain(acp).collect()
    }

    /// What its command line holds.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Monitor => " monitor ",
            Self::Backfill => " backfill ",
            Self::Agent => " __agent ",
            Self::Send => " send ",
            Self::Stream => " stream ",
            Self::Automations => " __automation-host ",
            Self::Script => " __plugin-host ",
            Self::Plugin => " __marker ",
            Self::Project => " __project ",
            Self::Acp => " __acp ",
        }
    }
}

/// One fault.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// SIGKILL at the `count`-th pass of a fail point.
    Point { name: String, count: u64, victim: Victim },
    /// A panic there.
    Panic { name: String, count: u64 },
    /// SIGKILL some time after the start began.
    Kill { victim: Victim, after_ms: u64 },
    /// SIGTERM, and a SIGKILL if it takes longer than this.
    Stop { patience_ms: u64 },
    /// SIGTERM and SIGINT.
    StopAtOnce,
    /// Programs are killed as soon as they are seen.
    KillPrograms { program: Program },
    /// Programs are stopped for a while.
    FreezePrograms { program: Program },
    /// Daemon and keeper are stopped for a while; the wall clock goes on by hours.
    Sleep,
    /// The wall clock is off for a while.
    ClockJump { ms: i64 },
    /// Another connection holds a ledger's write lock.
    Busy { ledger: &'static str, ms: u64 },
    /// No descriptor is left for a while.
    Descriptors,
    /// No byte is left on the disk for a while.
    DiskFull,
    /// The disk is read-only for a while.
    ReadOnly,
    /// The disk turns read-only while the daemon works, and can be written again.
    TurnReadOnly,
    /// A page of a ledger is garbage during one start.
    CorruptPage { ledger: &'static str },
    /// The configuration changes and is reloaded.
    Reload,
}

/// What fail points begin with that only a world with Nostr passes.
const NOSTR_POINTS: [&str; 6] = ["nostr.", "project.", "task.nostr ", "task.project", "write.TakeIn.", "write.PutDefinitions."];
/// Commands of projects and of what is published.
const NOSTR_COMMANDS: [&str; 2] = ["Publish", "Project"];
/// Commands about approvals, and about what waits for them.
const APPROVAL_COMMANDS: [&str; 2] = ["Approval", "Waits"];
/// What fail points begin with that only a world with an agent that stays passes.
const ACP_POINTS: [&str; 2] = ["task.acp", "write.KeepAcpSession."];

/// Of those the ones that a daemon passes once: it has one agent that stays, and one task that ends its process; and there is
/// one approval to decide about.
const ONCE: [&str; 3] = ["task.acp", "write.DecideApproval.before", "write.DecideApproval.after"];
/// So often points about approvals are among those to choose from: what is approved waits in the first cycles only.
const APPROVAL_WEIGHT: usize = 3;
/// What fail points begin with that are about runs, which others join in a world with an agent that is steered.
const RUN_POINTS: [&str; 5] = ["run.", "write.StartRun.", "write.JoinRun.", "write.MarkActed.", "write.FinishRun."];

/// Of all fail points those that are chosen more often in a world of this cast.
pub(crate) fn favoured(points: &[String], cast: Cast) -> Vec<String> {
    let about_approvals: &[&str] = if cast.approvals { &APPROVAL_COMMANDS } else { &[] };
    let is_command = |point: &str| NOSTR_COMMANDS.iter().chain(about_approvals).any(|name| point.contains(name));
    let is_of_nostr =
        |point: &str| NOSTR_POINTS.iter().any(|start| point.starts_with(start)) || (point.starts_with("write.") && is_command(point));
    let is_of_acp = |point: &str| ACP_POINTS.iter().any(|start| point.starts_with(start));
    let is_of_runs = |point: &str| RUN_POINTS.iter().any(|start| point.starts_with(start));
    let is_favoured =
        |point: &str| (cast.nostr && is_of_nostr(point)) || (cast.acp && is_of_acp(point)) || (cast.steering && is_of_runs(point));
    let weight = |point: &str| if about_approvals.iter().any(|name| point.contains(name)) { APPROVAL_WEIGHT } else { 1 };
    points.iter().filter(|point| is_favoured(point)).flat_map(|point| repeat_n(point.clone(), weight(point))).collect()
}

/// Points that a daemon which works passes once it is told to stop.
pub(crate) const AT_A_STOP: [&str; 3] = ["write.CountAnalytics", "write.InterruptRun", "write.Keep.after"];

/// The point whose turn it is. Each round begins one point further on: who is in a world goes by its seed, and would meet the
/// same part of the points in every round where their number and that of a world's cycles have a divisor in common.
fn in_turn(points: &[String], number: u64) -> &String {
    let number = usize::try_from(number).unwrap_or(0);
    &points[number.wrapping_add(number / points.len()) % points.len()]
}

/// The ledgers' names.
const LEDGERS: [&str; 4] = ["events", "nexus", "agents", "identity"];
const TWO_HOURS_MS: i64 = 7_200_000;

impl Fault {
    /// The fault of cycle `number` of all cycles of all seeds. Nearly two of three are kills at a fail point, each at
    /// the one whose turn it is; a point whose turn got another fault comes again in the next round. One in eight hits a
    /// program of `others`, and of the rest every second one is a kill at a point of `favoured`, where there are any: what a
    /// seed means in a world without them stays as it is.
    pub(crate) fn choose(chance: &mut Chance, points: &[String], favoured: &[String], others: &[Program], number: u64) -> Self {
        if !others.is_empty() && chance.one_in(8) {
            let program = *chance.pick(others);
            return if chance.one_in(2) { Self::KillPrograms { program } } else { Self::FreezePrograms { program } };
        }
        let victim = |chance: &mut Chance| if chance.one_in(3) { *chance.pick(&Victim::ALL) } else { Victim::Daemon };
        if !favoured.is_empty() && chance.one_in(2) {
            // Not in turn: the seeds of such worlds are eight apart, and the turn might never come to some points.
            let (name, count) = (chance.pick(favoured).clone(), chance.below(4) + 1);
            let count = if ONCE.contains(&name.as_str()) { 1 } else { count };
            return Self::Point { name, count, victim: victim(chance) };
        }
        let in_turn = in_turn(points, number);
        let count = |chance: &mut Chance| if chance.one_in(3) { chance.below(4) + 1 } else { 1 };
        match chance.below(45) {
            0..=27 => Self::Point { name: in_turn.clone(), count: count(chance), victim: victim(chance) },
            28..=30 => Self::Panic { name: chance.pick(points).clone(), count: count(chance) },
            31..=32 => Self::Kill { victim: victim(chance), after_ms: chance.below(1200) },
            33 => Self::Stop { patience_ms: chance.below(400) + 20 },
            34 => Self::StopAtOnce,
            35 => Self::KillPrograms { program: *chance.pick(&Program::ALL) },
            36 => Self::FreezePrograms { program: *chance.pick(&Program::ALL) },
            37 => Self::Sleep,
            38 => Self::ClockJump { ms: if chance.one_in(2) { TWO_HOURS_MS } else { -TWO_HOURS_MS } },
            39 => Self::Busy { ledger: chance.pick::<&str>(&LEDGERS), ms: if chance.one_in(4) { 6500 } else { chance.below(900) } },
            40 => Self::Descriptors,
            41 => Self::DiskFull,
            42 if chance.one_in(2) => Self::TurnReadOnly,
            42 => Self::ReadOnly,
            43 => Self::CorruptPage { ledger: chance.pick::<&str>(&LEDGERS) },
            _ => Self::Reload,
        }
    }

    /// The kind under which it is counted.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Point { name, victim, .. } => format!("{} at a fail point ({})", victim.name(), group(name)),
            Self::Panic { .. } => "panic at a fail point".to_owned(),
            Self::Kill { victim, .. } => format!("{} at a random moment", victim.name()),
            Self::Stop { .. } => "daemon during a stop".to_owned(),
            Self::StopAtOnce => "stop at once (TERM, INT)".to_owned(),
            Self::KillPrograms { program } => format!("programs killed ({})", program.word().trim().trim_start_matches('_')),
            Self::FreezePrograms { program } => format!("programs frozen ({})", program.word().trim().trim_start_matches('_')),
            Self::Sleep => "sleep of two hours".to_owned(),
            Self::ClockJump { .. } => "wall clock off by two hours".to_owned(),
            Self::Busy { ledger, .. } => format!("ledger locked by another ({ledger})"),
            Self::Descriptors => "descriptors exhausted".to_owned(),
            Self::DiskFull => "disk full".to_owned(),
            Self::ReadOnly => "disk read-only".to_owned(),
            Self::TurnReadOnly => "disk read-only amid the work".to_owned(),
            Self::CorruptPage { ledger } => format!("page corrupted ({ledger})"),
            Self::Reload => "reload".to_owned(),
        }
    }

    /// `NEXUS_FAIL_POINT` for it.
    pub(crate) fn fail_point(&self) -> Option<String> {
        match self {
            Self::Point { name, count, victim } => Some(format!("{name}:{count}:{}", victim.what())),
            Self::Panic { name, count } => Some(format!("{name}:{count}:panic")),
            Self::Kill { .. }
            | Self::Stop { .. }
            | Self::StopAtOnce
            | Self::KillPrograms { .. }
            | Self::FreezePrograms { .. }
            | Self::Sleep
            | Self::ClockJump { .. }
            | Self::Busy { .. }
            | Self::Descriptors
            | Self::DiskFull
            | Self::ReadOnly
            | Self::TurnReadOnly
            | Self::CorruptPage { .. }
            | Self::Reload => None,
        }
    }

    /// The fail point's name.
    pub(crate) fn point(&self) -> Option<&str> {
        if let Self::Point { name, .. } | Self::Panic { name, .. } = self { Some(name) } else { None }
    }

    /// Whether the daemon is told to stop, or to reload, so that it comes to its point.
    pub(crate) fn is_led_to(&self) -> bool {
        // A daemon that nobody signals passes `task.signals` never: a reload makes it.
        let mut leads = ["stop.", "reload.", "task.signals"].into_iter().chain(AT_A_STOP);
        self.point().is_some_and(|point| leads.any(|start| point.starts_with(start)))
    }

    /// Whether it may hit programs, or what the daemon needs to hear them.
    pub(crate) fn hits_programs(&self) -> bool {
        match self {
            Self::Point { victim, .. } | Self::Kill { victim, .. } => match victim {
                Victim::Daemon => false,
                Victim::Keeper | Victim::Both => true,
            },
            Self::Stop { .. } | Self::StopAtOnce | Self::Reload => false,
            Self::Panic { .. }
            | Self::KillPrograms { .. }
            | Self::FreezePrograms { .. }
            | Self::Sleep
            | Self::ClockJump { .. }
            | Self::Busy { .. }
            | Self::Descriptors
            | Self::DiskFull
            | Self::ReadOnly
            | Self::TurnReadOnly
            | Self::CorruptPage { .. } => true,
        }
    }

    /// Whether it ends the daemon at a fail point.
    pub(crate) fn kills_at_a_point(&self) -> bool {
        matches!(self, Self::Point { victim: Victim::Daemon | Victim::Both, .. })
    }
}

/// A fail point's first word.
fn group(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn chosen(favoured: &[String], others: &[Program], seed: u64) -> String {
        let points = ["a.1", "a.2"].map(str::to_owned);
        let chance = |number: u64| Chance::new(seed).about(&[&number.to_string()]);
        let all = (0..40).map(|number| Fault::choose(&mut chance(number), &points, favoured, others, number));
        format!("{:?}", all.collect::<Vec<_>>())
    }

    #[test]
    fn who_else_is_in_a_world_is_hit_there_and_nowhere_else() {
        let speakers = Program::of(Cast { speakers: true, ..Cast::default() });
        assert_eq!(speakers, [Program::Stream]);
        assert!(Program::of(Cast::default()).is_empty());
        assert_eq!(Program::of(Cast { speakers: true, advisers: true, ..Cast::default() }).len(), 4);
        assert_eq!(Program::of(Cast { nostr: true, ..Cast::default() }), [Program::Project]);
        assert_eq!(Program::of(Cast { acp: true, ..Cast::default() }), [Program::Acp]);
        assert!(!chosen(&[], &[], 2).contains("Stream") && chosen(&[], &speakers, 2).contains("Stream"));
    }

    #[test]
    fn some_points_are_passed_only_on_the_way_down_or_by_a_reload() {
        let is_led_to = |name: &str| Fault::Point { name: name.to_owned(), count: 1, victim: Victim::Daemon }.is_led_to();
        assert!(
            ["stop.1", "reload.begun", "task.signals", "write.InterruptRun.before", "write.Keep.after"].iter().all(|name| is_led_to(name))
        );
        assert!(!["start.lock", "run.started", "write.Keep.before", "write.KeepAcpSession.after"].iter().any(|name| is_led_to(name)));
        assert!(!Fault::Reload.is_led_to(), "it has no point");
    }

    #[test]
    fn worlds_of_each_sort_meet_all_points() {
        // As many as ten worlds have cycles: without a shift the worlds of odd seeds would meet every second twenty.
        let points: Vec<String> = (0..200).map(|number: u64| number.to_string()).collect();
        for rest in 0..4 {
            let numbers = (0..500_u64).filter(|seed| seed % 4 == rest).flat_map(|seed| seed * 20..(seed + 1) * 20);
            let met: BTreeSet<&String> = numbers.map(|number| in_turn(&points, number)).collect();
            assert_eq!(met.len(), points.len(), "seeds with the rest {rest}");
        }
    }

    #[test]
    fn a_disk_is_read_only_before_the_start_and_amid_the_work() {
        let points = ["a.1".to_owned()];
        let chance = |number: u64| Chance::new(number).about(&["cycle"]);
        let all: Vec<Fault> = (0..400).map(|number| Fault::choose(&mut chance(number), &points, &[], &[], number)).collect();
        assert!(all.iter().any(|fault| matches!(fault, Fault::ReadOnly)) && all.iter().any(|fault| matches!(fault, Fault::TurnReadOnly)));
    }

    #[test]
    fn points_of_nostr_are_chosen_more_often_where_there_is_some() {
        let names = ["start.lock", "task.nostr relay", "task.projects", "project.accepted", "nostr.taking", "write.Publish.after"];
        let more = ["write.UseProject.before", "write.TakeIn.after", "write.Settle.after", "task.timer"];
        let points: Vec<String> = names.iter().chain(&more).map(|name| (*name).to_owned()).collect();
        let nostr = Cast { nostr: true, ..Cast::default() };
        assert_eq!(favoured(&points, Cast::default()), Vec::<String>::new());
        assert_eq!(favoured(&points, nostr), [&names[1..], &more[..2]].concat());
        let asked = ["write.AskApprovals.after", "write.ForgetWaits.before"].map(str::to_owned);
        let thrice: Vec<String> = asked.iter().flat_map(|point| repeat_n(point.clone(), 3)).collect();
        assert!(favoured(&asked, nostr).is_empty() && favoured(&asked, Cast { approvals: true, ..nostr }) == thrice);
        let of_acp = ["task.acp", "write.KeepAcpSession.before", "write.KeepAcpSession.after"].map(str::to_owned);
        assert!(favoured(&of_acp, nostr).is_empty() && favoured(&of_acp, Cast { acp: true, ..Cast::default() }) == of_acp);
        assert!(favoured(&points, Cast { acp: true, ..Cast::default() }).is_empty());
        let counts = |favoured: &str| -> Vec<u64> {
            let chance = |number: u64| Chance::new(10).about(&[&number.to_string()]);
            let choose = |number: u64| Fault::choose(&mut chance(number), &points, &[favoured.to_owned()], &[], number);
            let count = |fault: Fault| if let Fault::Point { count, .. } = fault { Some(count) } else { None };
            (0..40).map(choose).filter(|fault| fault.point() == Some(favoured)).filter_map(count).collect()
        };
        assert!(counts("task.acp").iter().all(|count| *count == 1) && counts("task.acp").len() > 8, "it is passed once");
        assert!(counts("nostr.taking").iter().any(|count| *count > 1));
        let of_runs = ["run.started", "write.JoinRun.after"].map(str::to_owned);
        assert!(favoured(&of_runs, nostr).is_empty() && favoured(&of_runs, Cast { steering: true, ..Cast::default() }) == of_runs);
        let few = ["nostr.taking".to_owned()];
        assert!(!chosen(&[], &[], 6).contains("nostr") && chosen(&few, &[], 6).matches("nostr.taking").count() > 8);
    }
}
