//! Doing what a fault says: before the start, while the daemon runs, and undoing it.

use crate::check;
use crate::check::children::Intake;
use crate::daemon::Daemon;
use crate::fault::{Fault, Program};
use crate::health::{self, Ailment, EVENTS, Heard};
use crate::procfs::{self, Process};
use crate::run::Run;
use crate::{clock, daemon};
use anyhow::{Context, Result, bail};
use rusqlite::Connection;
use rustix::process::{Pid, Resource, Rlimit, Signal};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// How long a running daemon works before and while most faults are done to it.
const WHILE: Duration = Duration::from_millis(500);
/// How long a daemon may take to go on once its disk can be written again: it tries every few seconds.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a ledger's page.
const PAGE_BYTES: u64 = 8192;
const TWO_HOURS_MS: i64 = 7_200_000;
/// A ledger that is locked for longer than the daemon waits can't be written.
const LONG_MS: u64 = 5_000;
/// Into these ledgers goes whatever people write. Into the others something goes now and then: that they are locked may not show.
const WRITTEN_ALL_THE_TIME: [&str; 2] = [EVENTS, "nexus"];

/// Whether a fault could be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Yes,
    /// What it would have hit was not there.
    Missed,
    /// Not on this machine.
    Impossible,
}

impl Done {
    fn if_hit(was_hit: bool) -> Self {
        if was_hit { Self::Yes } else { Self::Missed }
    }
}

/// What the daemon is started with for a fault: writes to files that are open can be refused from within it alone.
pub(crate) fn variables(run: &Run<'_>, fault: &Fault) -> Vec<(String, String)> {
    if !matches!(fault, Fault::TurnReadOnly) {
        return Vec::new();
    }
    let variable = |name: &str, path: &Path| (name.to_owned(), path.to_string_lossy().into_owned());
    vec![
        variable("LD_PRELOAD", &run.setup.shim),
        variable("NEXUS_READ_ONLY_DIR", &run.world.data()),
        variable("NEXUS_READ_ONLY_WHILE", &run.world.read_only()),
    ]
}

/// Before the start.
///
/// # Errors
/// Of the file system.
pub(crate) fn before(run: &mut Run<'_>, fault: &Fault) -> Result<Done> {
    Ok(match fault {
        Fault::DiskFull | Fault::TurnReadOnly if run.disk.is_none() => Done::Impossible,
        Fault::ReadOnly if !run.disk.as_ref().is_some_and(|disk| disk.read_only(true)) => Done::Impossible,
        Fault::CorruptPage { ledger } => Done::if_hit(damage(run, ledger)?),
        Fault::Point { .. }
        | Fault::Panic { .. }
        | Fault::Kill { .. }
        | Fault::Stop { .. }
        | Fault::StopAtOnce
        | Fault::KillPrograms { .. }
        | Fault::FreezePrograms { .. }
        | Fault::Sleep
        | Fault::ClockJump { .. }
        | Fault::Busy { .. }
        | Fault::Descriptors
        | Fault::DiskFull
        | Fault::ReadOnly
        | Fault::TurnReadOnly
        | Fault::Reload => Done::Yes,
    })
}

/// While the daemon runs.
///
/// # Errors
/// When the harness can't do it.
pub(crate) fn upon(run: &mut Run<'_>, daemon: &mut Daemon, fault: &Fault) -> Result<Done> {
    let mut was_hit = true;
    match fault {
        Fault::Point { .. } | Fault::Panic { .. } => return Ok(Done::Yes),
        Fault::Kill { victim, after_ms } => {
            clock::pause(Duration::from_millis(*after_ms));
            let was_hit = run.kill(daemon, *victim)? == *victim;
            if daemon.is_running() {
                run.children_are_right(daemon, intake_under(fault))?;
            }
            return Ok(Done::if_hit(was_hit));
        }
        Fault::Stop { .. } | Fault::StopAtOnce => return stop(daemon, fault).map(|()| Done::Yes),
        Fault::KillPrograms { program } => was_hit = kill_programs(run, daemon, *program)?,
        Fault::FreezePrograms { program } => was_hit = freeze_programs(run, daemon, *program)?,
        Fault::Sleep => sleep(run, daemon)?,
        Fault::ClockJump { ms } => {
            offset(run, *ms)?;
            clock::pause(WHILE * 2);
            offset(run, 0)?;
        }
        Fault::Busy { ledger, ms } => hold(run, daemon, ledger, *ms)?,
        Fault::Descriptors => exhaust_descriptors(daemon)?,
        Fault::DiskFull => fill_disk(run, daemon)?,
        Fault::TurnReadOnly => turn_read_only(run, daemon)?,
        Fault::ReadOnly | Fault::CorruptPage { .. } => {}
        Fault::Reload => {
            run.variant += 1;
            run.configure()?;
            procfs::signal(daemon.pid(), Signal::USR1);
        }
    }
    clock::pause(WHILE);
    if daemon.is_running() && run.chance.one_in(2) {
        run.children_are_right(daemon, intake_under(fault))?;
    }
    Ok(Done::if_hit(was_hit))
}

fn stop(daemon: &mut Daemon, fault: &Fault) -> Result<()> {
    clock::pause(WHILE);
    daemon.tell_to_stop();
    if let Fault::Stop { patience_ms } = fault {
        return clock::until(Duration::from_millis(*patience_ms), || Ok(daemon.ended()?.is_some().then_some(()))).map(drop);
    }
    clock::pause(Duration::from_millis(30));
    procfs::signal(daemon.pid(), Signal::INT);
    daemon.wait_end().map(drop)
}

fn fill_disk(run: &mut Run<'_>, daemon: &mut Daemon) -> Result<()> {
    clock::pause(WHILE);
    let Some(disk) = &run.disk else { return Ok(()) };
    disk.fill()?;
    clock::pause(WHILE * 2);
    let told = if run.chance.one_in(2) {
        daemon.kill()?; // with the disk still full
        Heard::Nothing
    } else {
        // What is freed meanwhile is taken too.
        health::is_told(daemon, Ailment::Disk, || disk.fill())?
    };
    disk.empty()?;
    note_health(run, daemon, Ailment::Disk, told)
}

/// Takes down what the daemon said of its health while something was wrong, and what it says now that this is over.
fn note_health(run: &mut Run<'_>, daemon: &Daemon, ailment: Ailment, told: Heard) -> Result<()> {
    let over = health::is_over(daemon, ailment)?;
    for (when, heard) in [("while it lasts", told), ("once it is over", over)] {
        match heard {
            Heard::AsDue => run.counts.health_told += 1,
            Heard::Nothing => {}
            Heard::Otherwise(last) => {
                let words = daemon::last_words(&run.world);
                run.violated(format!("{ailment:?}: {when} `/health` doesn't tell; it says {last}; the log:\n{words}"));
            }
        }
    }
    Ok(())
}

/// The disk is read-only for a while. Who lives through that takes in nothing meanwhile, and goes on by itself.
fn turn_read_only(run: &mut Run<'_>, daemon: &mut Daemon) -> Result<()> {
    clock::pause(WHILE);
    let flag = run.world.read_only();
    // From before: on a read-only file system a reader may not find where the log ends.
    let (facts, work) = (check::in_use(&run.world.data(), "events")?, check::in_use(&run.world.data(), "nexus")?);
    // The look after its death sees what of this is another then.
    run.violations.extend(run.snapshots.look_meanwhile(&facts, &work)?);
    let Some(disk) = &mut run.disk else { return Ok(()) };
    disk.cover(&flag)?;
    clock::pause(WHILE);
    let before = last_taken_in(&facts)?;
    clock::pause(WHILE);
    let told = health::is_told(daemon, Ailment::Ledger(EVENTS), || Ok(()))?;
    let after = last_taken_in(&facts)?;
    let changed = run.snapshots.look_meanwhile(&facts, &work)?;
    run.violations.extend(changed.into_iter().map(|what| format!("while the disk was read-only, {what}")));
    if run.chance.one_in(3) {
        daemon.kill()?; // with the disk still read-only
    }
    disk.uncover(&flag)?;
    if after != before {
        bail!("the disk was read-only, and events {before} to {after} were written to it"); // so this harness did nothing
    }
    let goes_on = clock::until(RECOVERY_LIMIT, || Ok((!daemon.is_running() || last_taken_in(&facts)? > after).then_some(())))?;
    if goes_on.is_none() {
        let (seconds, words) = (RECOVERY_LIMIT.as_secs(), daemon::last_words(&run.world));
        run.violated(format!("the disk can be written again, and for {seconds} s nothing was taken in; the log:\n{words}"));
    }
    note_health(run, daemon, Ailment::Ledger(EVENTS), told)
}

/// Number of the last event that came from a platform: people write all the time.
fn last_taken_in(facts: &Connection) -> Result<u64> {
    check::count(facts, "SELECT coalesce(max(seq), 0) FROM events WHERE direction = 'inbound' AND channel != 'timer'")
}

/// Once the daemon is dead.
///
/// # Errors
/// Of the file system.
pub(crate) fn after(run: &mut Run<'_>, fault: &Fault) -> Result<()> {
    match (fault, &run.disk) {
        (Fault::ReadOnly, Some(disk)) if !disk.read_only(false) => bail!("the disk stays read-only"),
        (Fault::CorruptPage { ledger }, _) => repair(run, ledger)?,
        (Fault::ClockJump { .. } | Fault::Sleep, _) => offset(run, 0)?,
        _ => {}
    }
    Ok(())
}

/// When a daemon may end by itself, with an error that says why.
enum MayFail {
    Never,
    Always,
    /// On its way up or down.
    OnItsWay,
}

/// What a fault excuses: that events aren't taken in meanwhile, and that the daemon ends.
fn excused(fault: &Fault) -> (Intake, MayFail) {
    match fault {
        // These keep a start from succeeding.
        Fault::CorruptPage { .. } | Fault::ReadOnly => (Intake::MayBeHeld, MayFail::Always),
        Fault::DiskFull | Fault::TurnReadOnly | Fault::Busy { .. } | Fault::Descriptors => (Intake::MayBeHeld, MayFail::Never),
        // An INT during a shutdown ends it with an error code.
        Fault::StopAtOnce => (Intake::Goes, MayFail::Always),
        // A panic on the way up is the start's failure, which tells the reason.
        Fault::Panic { .. } => (Intake::Goes, MayFail::OnItsWay),
        Fault::Point { .. }
        | Fault::Kill { .. }
        | Fault::Stop { .. }
        | Fault::KillPrograms { .. }
        | Fault::FreezePrograms { .. }
        | Fault::Sleep
        | Fault::ClockJump { .. }
        | Fault::Reload => (Intake::Goes, MayFail::Never),
    }
}

/// Whether the ledger of events can be written meanwhile.
pub(crate) fn intake_under(fault: &Fault) -> Intake {
    excused(fault).0
}

/// Whether the daemon may end by itself.
pub(crate) fn may_fail(fault: &Fault, was_ready: bool) -> bool {
    let is_on_its_way = |name: &str| ["start.", "stop.", "migration."].iter().any(|group| name.starts_with(group));
    match excused(fault).1 {
        MayFail::Never => false,
        MayFail::Always => true,
        MayFail::OnItsWay => !was_ready || fault.point().is_some_and(is_on_its_way),
    }
}

/// The host of automations has nothing about it that names the world: it is known as a child of the keeper's.
fn programs(run: &Run<'_>, daemon: &Daemon, program: Program) -> Vec<Process> {
    let mut all = procfs::all_with(&run.world.root().to_string_lossy());
    if program == Program::Automations {
        all.extend(daemon.keeper().into_iter().flat_map(|keeper| procfs::children_of(keeper.pid)));
    }
    all.into_iter().filter(|process| format!("{} ", process.command).contains(program.word())).collect()
}

/// False when none was seen.
fn kill_programs(run: &mut Run<'_>, daemon: &Daemon, program: Program) -> Result<bool> {
    let mut was_hit = false;
    clock::until(WHILE * 3, || {
        if let Some(process) = programs(run, daemon, program).first() {
            process.signal(Signal::KILL);
            was_hit = true;
        }
        Ok(None::<()>)
    })?;
    Ok(was_hit)
}

/// False when none was seen.
fn freeze_programs(run: &mut Run<'_>, daemon: &Daemon, program: Program) -> Result<bool> {
    let some = clock::until(WHILE * 3, || Ok(Some(programs(run, daemon, program)).filter(|found| !found.is_empty())))?.unwrap_or_default();
    some.iter().for_each(|process| process.signal(Signal::STOP));
    clock::pause(WHILE);
    some.iter().for_each(|process| process.signal(Signal::CONT));
    Ok(!some.is_empty())
}

/// The machine sleeps for two hours: nothing runs, and the wall clock goes on.
fn sleep(run: &mut Run<'_>, daemon: &mut Daemon) -> Result<()> {
    let all = procfs::all_with(&run.world.root().to_string_lossy());
    let keeper = daemon.keeper();
    all.iter().chain(&keeper).for_each(|process| process.signal(Signal::STOP));
    clock::pause(WHILE);
    offset(run, TWO_HOURS_MS)?;
    all.iter().chain(&keeper).for_each(|process| process.signal(Signal::CONT));
    clock::pause(WHILE);
    Ok(())
}

fn offset(run: &Run<'_>, ms: i64) -> Result<()> {
    let draft = run.world.file("clock-offset.draft");
    fs::write(&draft, ms.to_string()).and_then(|()| fs::rename(&draft, run.world.file("clock-offset"))).context("failed to set the clock")
}

/// Holds a ledger's write lock as another program would. One that is held for long is met by who writes all the time.
fn hold(run: &mut Run<'_>, daemon: &Daemon, ledger: &'static str, ms: u64) -> Result<()> {
    let connection = Connection::open(run.world.data().join(format!("{ledger}.db"))).context("failed to open a ledger")?;
    connection
        .busy_timeout(Duration::from_secs(10))
        .and_then(|()| connection.execute_batch("BEGIN IMMEDIATE"))
        .context("failed to lock a ledger")?;
    clock::pause(Duration::from_millis(ms));
    let ailment = (ms >= LONG_MS && WRITTEN_ALL_THE_TIME.contains(&ledger)).then_some(Ailment::Ledger(ledger));
    let told = ailment.map(|ailment| health::is_told(daemon, ailment, || Ok(()))).transpose()?;
    connection.execute_batch("ROLLBACK").context("failed to unlock a ledger")?;
    ailment.zip(told).map_or(Ok(()), |(ailment, told)| note_health(run, daemon, ailment, told))
}

fn exhaust_descriptors(daemon: &Daemon) -> Result<()> {
    let Some(pid) = Pid::from_raw(daemon.pid()) else { return Ok(()) };
    // A limit is one of numbers: those below it that are free could still be had.
    let lowest_free = procfs::lowest_free_descriptor(daemon.pid()).unwrap_or(0);
    // The daemon has this program's hard limit, which only the privileged may raise.
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let before = rustix::process::prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(lowest_free), maximum });
    let before = before.context("failed to limit the daemon's descriptors")?;
    clock::pause(WHILE * 2);
    rustix::process::prlimit(Some(pid), Resource::Nofile, before).context("failed to give the daemon its descriptors back").map(drop)
}

/// Writes garbage over one page in the middle of a ledger, and keeps what was there. False when it has
/// no such page yet.
fn damage(run: &mut Run<'_>, ledger: &str) -> Result<bool> {
    let path = run.world.data().join(format!("{ledger}.db"));
    if !daemon::lock_is_free(&run.world) {
        return Ok(false);
    }
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).context("failed to open a ledger")?;
    let pages = file.metadata().context("failed to read a ledger's size")?.len() / PAGE_BYTES;
    if pages < 4 {
        return Ok(false);
    }
    let at = (2 + run.chance.below(pages - 2)) * PAGE_BYTES;
    let mut page = vec![0_u8; usize::try_from(PAGE_BYTES)?];
    file.read_exact_at(&mut page, at).context("failed to read a page")?;
    fs::write(run.world.file("page"), &page).context("failed to keep a page")?;
    fs::write(run.world.file("page-at"), at.to_string()).context("failed to keep a page's place")?;
    file.write_all_at(&vec![0xa5; page.len()], at).context("failed to damage a page")?;
    Ok(true)
}

/// Puts back what a damaged disk would take from a mirror.
fn repair(run: &mut Run<'_>, ledger: &str) -> Result<()> {
    let kept = run.world.file("page");
    if !kept.exists() {
        return Ok(());
    }
    let path = run.world.data().join(format!("{ledger}.db"));
    let at: u64 = fs::read_to_string(run.world.file("page-at")).context("failed to read")?.parse().context("no number")?;
    let page = fs::read(&kept).context("failed to read a page")?;
    let file = fs::OpenOptions::new().write(true).read(true).open(path).context("failed to open a ledger")?;
    let mut now = vec![0_u8; page.len()];
    file.read_exact_at(&mut now, at).context("failed to read a page")?;
    // A checkpoint may have written the page anew; then it is the daemon's.
    if now.iter().all(|&byte| byte == 0xa5) {
        file.write_all_at(&page, at).context("failed to repair a page")?;
    }
    fs::remove_file(kept).context("failed to remove a file")
}
