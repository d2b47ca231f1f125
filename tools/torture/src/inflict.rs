//! Doing what a fault says: before the start, while the daemon runs, and undoing it.

use crate::daemon::Daemon;
use crate::fault::{Fault, Program};
use crate::procfs::{self, Process};
use crate::run::Run;
use crate::{clock, daemon};
use anyhow::{Context, Result};
use rusqlite::Connection;
use rustix::process::{Pid, Resource, Rlimit, Signal};
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// How long a running daemon works before and while most faults are done to it.
const WHILE: Duration = Duration::from_millis(500);
/// Bytes of a ledger's page, and of how many pages the damaged one is the last.
const PAGE_BYTES: u64 = 8192;
const TWO_HOURS_MS: i64 = 7_200_000;

/// Before the start. False when this fault can't be done here.
///
/// # Errors
/// Of the file system.
pub(crate) fn before(run: &mut Run<'_>, fault: &Fault) -> Result<bool> {
    match fault {
        Fault::DiskFull | Fault::ReadOnly if run.disk.is_none() => Ok(false),
        Fault::ReadOnly => Ok(run.disk.as_ref().is_some_and(|disk| disk.read_only(true))),
        Fault::CorruptPage { ledger } => damage(run, ledger),
        _ => Ok(true),
    }
}

/// While the daemon runs.
///
/// # Errors
/// When the harness can't do it.
pub(crate) fn upon(run: &mut Run<'_>, daemon: &mut Daemon, fault: &Fault) -> Result<()> {
    match fault {
        Fault::Point { .. } | Fault::Panic { .. } => return Ok(()),
        Fault::Kill { victim, after_ms } => {
            clock::pause(Duration::from_millis(*after_ms));
            return run.kill(daemon, *victim);
        }
        Fault::Stop { patience_ms } => {
            clock::pause(WHILE);
            procfs::signal(daemon.pid(), Signal::TERM);
            clock::until(Duration::from_millis(*patience_ms), || Ok(daemon.ended()?.is_some().then_some(())))?;
            return Ok(());
        }
        Fault::StopAtOnce => {
            clock::pause(WHILE);
            procfs::signal(daemon.pid(), Signal::TERM);
            clock::pause(Duration::from_millis(30));
            procfs::signal(daemon.pid(), Signal::INT);
            return daemon.wait_end().map(drop);
        }
        Fault::KillPrograms { program } => kill_programs(run, *program)?,
        Fault::FreezePrograms { program } => freeze_programs(run, *program)?,
        Fault::Sleep => sleep(run, daemon)?,
        Fault::ClockJump { ms } => {
            offset(run, *ms)?;
            clock::pause(WHILE * 2);
            offset(run, 0)?;
        }
        Fault::Busy { ledger, ms } => hold(run, ledger, *ms)?,
        Fault::Descriptors => exhaust_descriptors(daemon)?,
        Fault::DiskFull => {
            clock::pause(WHILE);
            if let Some(disk) = &run.disk {
                disk.fill()?;
                clock::pause(WHILE * 2);
                if run.chance.one_in(2) {
                    daemon.kill()?; // with the disk still full
                }
                disk.empty()?;
            }
        }
        Fault::ReadOnly | Fault::CorruptPage { .. } => {}
        Fault::Reload => {
            run.variant += 1;
            run.configure()?;
            procfs::signal(daemon.pid(), Signal::USR1);
        }
    }
    clock::pause(WHILE);
    if daemon.is_running() && run.chance.one_in(2) {
        run.children_are_right(daemon)?;
    }
    Ok(())
}

/// Once the daemon is dead.
///
/// # Errors
/// Of the file system.
pub(crate) fn after(run: &mut Run<'_>, fault: &Fault) -> Result<()> {
    match (fault, &run.disk) {
        (Fault::ReadOnly, Some(disk)) => drop(disk.read_only(false)),
        (Fault::CorruptPage { ledger }, _) => repair(run, ledger)?,
        (Fault::ClockJump { .. } | Fault::Sleep, _) => offset(run, 0)?,
        _ => {}
    }
    Ok(())
}

/// Whether the daemon may end by itself, with an error that says why.
pub(crate) fn may_fail(fault: &Fault) -> bool {
    match fault {
        // An INT during a shutdown ends it with an error code; the others keep a start from succeeding.
        Fault::StopAtOnce | Fault::ReadOnly | Fault::DiskFull | Fault::CorruptPage { .. } | Fault::Busy { .. } => true,
        // A panic on the way up is the start's failure.
        Fault::Panic { name, .. } => ["start.", "stop.", "migration.", "rename."].iter().any(|part| name.starts_with(part)),
        _ => false,
    }
}

fn programs(run: &Run<'_>, program: Program) -> Vec<Process> {
    let all = procfs::all_with(&run.world.root().to_string_lossy());
    all.into_iter().filter(|process| format!("{} ", process.command).contains(program.word())).collect()
}

fn kill_programs(run: &mut Run<'_>, program: Program) -> Result<()> {
    clock::until(WHILE * 3, || {
        programs(run, program).first().into_iter().for_each(|process| process.signal(Signal::KILL));
        Ok(None::<()>)
    })
    .map(drop)
}

fn freeze_programs(run: &mut Run<'_>, program: Program) -> Result<()> {
    let some = clock::until(WHILE * 3, || Ok(Some(programs(run, program)).filter(|found| !found.is_empty())))?.unwrap_or_default();
    some.iter().for_each(|process| process.signal(Signal::STOP));
    clock::pause(WHILE);
    some.iter().for_each(|process| process.signal(Signal::CONT));
    Ok(())
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

/// Holds a ledger's write lock as another program would.
fn hold(run: &Run<'_>, ledger: &str, ms: u64) -> Result<()> {
    let connection = Connection::open(run.world.data().join(format!("{ledger}.db"))).context("failed to open a ledger")?;
    connection
        .busy_timeout(Duration::from_secs(10))
        .and_then(|()| connection.execute_batch("BEGIN IMMEDIATE"))
        .context("failed to lock a ledger")?;
    clock::pause(Duration::from_millis(ms));
    connection.execute_batch("ROLLBACK").context("failed to unlock a ledger")
}

fn exhaust_descriptors(daemon: &Daemon) -> Result<()> {
    let Some(pid) = Pid::from_raw(daemon.pid()) else { return Ok(()) };
    let open = procfs::descriptors(daemon.pid()).unwrap_or(0) as u64;
    // The daemon has this program's hard limit, which only the privileged may raise.
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let before = rustix::process::prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(open), maximum });
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
