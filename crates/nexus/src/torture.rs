//! What only the fail-point build has (cargo feature `torture`): points at which the daemon ends
//! itself, its keeper or both; a wall clock that can be shifted; a disk that need not be waited for.
//! In every other build all of it is nothing at all, but for the rename between two points.
//!
//! The points of the writers come from their command sets, so that no command is without. The others
//! are listed in [`POINTS`]; passing one that isn't is a defect, and panics.

#[cfg(feature = "torture")]
pub(crate) use on::{drain, keeper_is, names, point, shifted, step, synchronous};

#[cfg(not(feature = "torture"))]
pub(crate) use off::{drain, keeper_is, point, shifted, step, synchronous};

/// `rename(2)`, between two points.
///
/// # Errors
/// Of the file system.
pub(crate) fn rename(from: &std::path::Path, to: &std::path::Path) -> std::io::Result<()> {
    point("rename.before");
    std::fs::rename(from, to)?;
    point("rename.after");
    Ok(())
}

#[cfg(not(feature = "torture"))]
mod off {
    #[inline(always)]
    pub(crate) fn point(_name: &str) {}

    #[inline(always)]
    pub(crate) fn step(_of: &str, _name: impl std::fmt::Display) {}

    #[inline(always)]
    pub(crate) fn keeper_is(_pid: i32) {}

    #[inline(always)]
    pub(crate) fn drain(limit: std::time::Duration) -> std::time::Duration {
        limit
    }

    #[inline(always)]
    pub(crate) fn shifted(wall_ms: i64) -> i64 {
        wall_ms
    }

    #[inline(always)]
    pub(crate) fn synchronous(level: &'static str) -> &'static str {
        level
    }
}

#[cfg(feature = "torture")]
mod on {
    use crate::bus::store::BusCommand;
    use crate::ledger::writer::Command;
    use crate::ledger::{agents, events, identity, nexus};
    use std::io::Write;
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

    /// `name:count:what`: at the `count`-th pass of that point do it. `what` is `kill` (this process),
    /// `keeper`, `both`, `panic` or `stop` (SIGSTOP). Several are separated by commas.
    const ARMED: &str = "NEXUS_FAIL_POINT";
    /// A file that gets a line for each point that did something.
    const LOG: &str = "NEXUS_FAIL_LOG";
    /// A file with the milliseconds by which the wall clock is off.
    const CLOCK_OFFSET: &str = "NEXUS_CLOCK_OFFSET_FILE";
    /// Milliseconds that a stop gives to what is under way, instead of its own limit.
    const DRAIN: &str = "NEXUS_DRAIN_MS";
    /// What `PRAGMA synchronous` is set to instead.
    const SYNCHRONOUS: &str = "NEXUS_SYNCHRONOUS";

    /// The points that no writer command makes.
    const POINTS: &[&str] = &[
        "spawn.before",
        "spawn.after",
        "send.before",
        "send.after",
        "rename.before",
        "rename.after",
        "migration.before",
        "migration.after",
        "reload.before",
        "reload.change",
        "reload.after",
        "start.lock",
        "start.config",
        "start.logging",
        "start.databases",
        "start.event bus",
        "start.plugins",
        "start.pipeline",
        "start.HTTP server",
        "start.adapters",
        "start.timer",
        "start.ready",
        "stop.1",
        "stop.2",
        "stop.3",
        "stop.4",
        "stop.5",
        "stop.6",
        "stop.7",
        "stop.8",
        "stop.9",
        "stop.10",
        "stop.11",
        // Once for each name given to the watch over the daemon's tasks, or for each round of its loop.
        "task.agents follower",
        "task.identity follower",
        "task.outbound follower",
        "task.cortex follower",
        "cortex.before",
        "cortex.after",
        "task.timer",
        "task.housekeeping",
        "task.ledger check",
        "task.bus store",
        "task.http",
        "task.signals",
        "task.keeper",
        "task.router",
        "task.admission",
        "task.lane",
        "task.checkpoint",
        "task.child",
        "task.intake",
        "task.acks",
        "task.probes",
        "task.report",
        "task.stream",
        "stream.begun",
        "stream.ended",
        "task.plugin",
        "task.plugins",
        "task.acp",
        "task.automations",
        "task.nostr inbox",
        "task.nostr outbox",
        "task.nostr relay",
        "task.nostr known",
        "nostr.taking",
        "task.project",
        "task.projects",
        "task.project definitions",
        "task.project waits",
        "project.hand_over",
        "project.accepted",
        "project.published",
        "run.started",
        "run.finished",
        "delivery.begun",
        "delivery.claimed",
    ];

    #[derive(Debug)]
    struct Armed {
        name: String,
        count: u64,
        what: What,
        passed: AtomicU64,
    }

    #[derive(Debug, Clone, Copy)]
    enum What {
        Kill,
        Keeper,
        Both,
        Panic,
        Stop,
    }

    static KEEPER: AtomicI32 = AtomicI32::new(0);
    static POINTS_ARMED: LazyLock<Vec<Armed>> =
        LazyLock::new(|| std::env::var(ARMED).unwrap_or_default().split(',').filter(|text| !text.is_empty()).map(parse).collect());
    static OFFSET_FILE: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os(CLOCK_OFFSET).map(PathBuf::from));

    /// Every point's name, for the harness.
    pub(crate) fn names() -> Vec<&'static str> {
        let commands = [events::EventsCommand::POINTS, nexus::NexusCommand::POINTS, agents::AgentsCommand::POINTS];
        let all = commands.into_iter().chain([identity::IdentityCommand::POINTS, BusCommand::POINTS]).flatten().flatten();
        all.chain(POINTS).copied().collect()
    }

    fn parse(text: &str) -> Armed {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default().to_owned();
        assert!(names().contains(&name.as_str()), "{ARMED}: no point is named `{name}`");
        let count = parts.next().map_or(Ok(1), str::parse);
        let Ok(count) = count else { panic!("{ARMED}: `{text}` is not name:count:what") };
        let what = match parts.next().unwrap_or("kill") {
            "kill" => What::Kill,
            "keeper" => What::Keeper,
            "both" => What::Both,
            "panic" => What::Panic,
            "stop" => What::Stop,
            other => panic!("{ARMED}: `{other}` is not kill, keeper, both, panic or stop"),
        };
        Armed { name, count, what, passed: AtomicU64::new(0) }
    }

    pub(crate) fn keeper_is(pid: i32) {
        KEEPER.store(pid, Ordering::SeqCst);
    }

    pub(crate) fn point(name: &str) {
        debug_assert!(names().contains(&name), "the fail point `{name}` is not listed");
        for armed in POINTS_ARMED.iter().filter(|armed| armed.name == name) {
            if armed.passed.fetch_add(1, Ordering::SeqCst) + 1 == armed.count {
                fire(armed);
            }
        }
    }

    /// The point of one step of a start or a stop.
    pub(crate) fn step(of: &str, name: impl std::fmt::Display) {
        point(&format!("{of}.{name}"));
    }

    fn fire(armed: &Armed) {
        if matches!(armed.what, What::Keeper | What::Both) && KEEPER.load(Ordering::SeqCst) == 0 {
            return; // nobody to hit yet: it counts as not passed
        }
        if let Some(path) = std::env::var_os(LOG) {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            let told = file.and_then(|mut file| file.write_all(format!("{}\n", armed.name).as_bytes()));
            assert!(told.is_ok(), "{LOG}: {told:?}");
        }
        match armed.what {
            What::Kill => end(rustix::process::getpid().as_raw_nonzero().get()),
            What::Keeper => signal(KEEPER.load(Ordering::SeqCst)),
            What::Both => {
                signal(KEEPER.load(Ordering::SeqCst));
                end(rustix::process::getpid().as_raw_nonzero().get());
            }
            What::Panic => panic!("fail point {}", armed.name),
            What::Stop => {
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP).unwrap_or_default();
            }
        }
    }

    fn end(pid: i32) {
        signal(pid);
        loop {
            std::thread::park(); // the signal is on its way
        }
    }

    fn signal(pid: i32) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            // One that is gone already is as good.
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap_or_default();
        }
    }

    pub(crate) fn drain(limit: std::time::Duration) -> std::time::Duration {
        let asked = std::env::var(DRAIN).ok().and_then(|text| text.parse().ok());
        asked.map_or(limit, std::time::Duration::from_millis)
    }

    pub(crate) fn shifted(wall_ms: i64) -> i64 {
        let Some(path) = OFFSET_FILE.as_ref() else { return wall_ms };
        let offset = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<i64>().ok());
        wall_ms.saturating_add(offset.unwrap_or(0))
    }

    pub(crate) fn synchronous(level: &'static str) -> &'static str {
        static ASKED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var(SYNCHRONOUS).ok());
        ASKED.as_deref().unwrap_or(level)
    }
}
