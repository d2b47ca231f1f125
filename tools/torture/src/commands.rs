//! Commands of people that are killed at each rename they make. Whoever comes after finds what was before or what was to be, whole,
//! and the same command once more brings it to its end.

use crate::chance::Chance;
use crate::check::{self, Copy, count};
use crate::clock;
use crate::daemon::{self, Daemon, Extras};
use crate::feeder::Feeder;
use crate::run::Setup;
use crate::world::{Cast, OnInterrupted, World};
use anyhow::{Context, Result, bail};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

/// Where a command is killed, each time it passes there.
const POINTS: [&str; 2] = ["rename.before", "rename.after"];
/// Lies beside the ledgers while they are exchanged.
const RESTORE_MARKER: &str = "restore-in-progress";
/// More renames than any command makes: one that is still killed then never ends.
const RENAMES_MAX: u64 = 100;
/// How long the world's people write before each stop.
const WORK: Duration = Duration::from_millis(700);
const FEED_PAUSE_MS_MAX: u64 = 25;
/// How long it may take to bring everything to its end.
const CALM_LIMIT: Duration = Duration::from_secs(120);
/// What came from outside: a timer's events come by themselves.
const HEARD: &str = "SELECT count(*) FROM events WHERE channel <> 'timer'";
/// What was made of that, which another ledger has.
const WORKED: &str = "SELECT count(*) FROM nexus_requests WHERE channel <> 'timer'";
/// Where the programs are that a backup has besides.
const PROGRAMS: [&str; 2] = ["workspace/state/automations", "workspace/plugins"];

/// What was done, and what was wrong with it.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) kills: u64,
    pub(crate) violations: Vec<String>,
    /// The world, if it was kept to be looked at.
    pub(crate) kept: Option<PathBuf>,
}

/// How much from outside two ledgers have. They are exchanged together or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holds {
    events: u64,
    requests: u64,
}

impl Holds {
    fn of(data: &Path) -> Result<Self> {
        let copy = Copy::of(data)?;
        Ok(Self { events: count(&copy.events, HEARD)?, requests: count(&copy.nexus, WORKED)? })
    }
}

/// One world, and what its commands are run with.
struct Trial<'a> {
    setup: &'a Setup,
    world: World,
    seen: Seen,
}

/// Kills `nexus backup`, `nexus restore` and a command that changes the configuration at every rename.
///
/// # Errors
/// When the harness can't go on.
pub(crate) fn run(setup: &Setup, seed: u64) -> Result<Seen> {
    let dir = tempfile::Builder::new().prefix("commands-").tempdir_in(&setup.dir).context("failed to make a directory")?;
    let world = World::make(dir.path(), Cast { advisers: true, ..Cast::default() })?;
    fs::write(world.calm(), "").context("failed to write a file")?;
    world.configure(&setup.own, seed, OnInterrupted::Auto, 0)?;
    let mut trial = Trial { setup, world, seen: Seen::default() };
    let went = trial.all(seed);
    daemon::clear(&trial.world);
    let mut seen = trial.seen;
    // What was found before is no less true for that the rest can't be done.
    seen.violations.extend(went.err().map(|error| format!("it went no further: {error:#}")));
    seen.kept = (setup.keep && !seen.violations.is_empty()).then(|| dir.keep());
    Ok(seen)
}

impl Trial<'_> {
    fn all(&mut self, seed: u64) -> Result<()> {
        let chance = Chance::new(seed).about(&["commands"]);
        self.work(chance.about(&["before"]))?;
        let backup = self.world.file("backup");
        self.succeeds(&["backup", &text(&backup)])?;
        let before = self.holds()?;
        self.backups(before)?;
        self.work(chance.about(&["after"]))?;
        let after = self.holds()?;
        if before.events == after.events || before.requests == after.requests {
            bail!("nothing was heard after the backup, which shows nothing");
        }
        self.restores(&backup, before, after)?;
        self.overlays()
    }

    /// A daemon's life, with people who write, until all is at its end.
    fn work(&self, chance: Chance) -> Result<()> {
        let mut daemon = self.started()?;
        let limit = Duration::from_secs(30);
        let is_whole = || check::children::wrong(&self.world, &daemon, check::children::Intake::Goes).is_none().then_some(());
        clock::until(limit, || Ok(is_whole()))?.context("not every account has its monitor")?;
        let feeder = Feeder::start(&self.world, chance, FEED_PAUSE_MS_MAX);
        clock::pause(WORK);
        feeder.end()?;
        let calm = clock::until(CALM_LIMIT, || Ok(check::open_work(&self.world)?.is_none().then_some(())))?;
        calm.context("not everything came to its end")?;
        let status = daemon.stop()?;
        if status.success() { Ok(()) } else { bail!("a stop ended with {status}: {}", daemon::last_words(&self.world)) }
    }

    fn started(&self) -> Result<Daemon> {
        let mut daemon = Daemon::spawn(&self.world, &self.setup.nexus, &Extras::default())?;
        if daemon.ready()? { Ok(daemon) } else { bail!("a daemon did not start: {}", daemon::last_words(&self.world)) }
    }

    fn holds(&self) -> Result<Holds> {
        Holds::of(&self.world.data())
    }

    /// A killed backup is none, or a whole one; the ledgers are as they were.
    fn backups(&mut self, before: Holds) -> Result<()> {
        let mut whole = 0;
        for point in POINTS {
            for number in 1..=RENAMES_MAX {
                let to = self.world.file(&format!("backup-{point}-{number}"));
                if self.killed(&["backup", &text(&to)], point, number)? {
                    break;
                }
                let restored = self.runs(&["restore", &text(&to), "--yes"], None)?;
                let holds = self.holds()?;
                if holds != before {
                    let what =
                        format!("restore of a backup killed at {point} {number}: {holds:?}, and not {before:?}: {}", said(&restored));
                    self.seen.violations.push(what);
                }
                if restored.status.success() {
                    whole += 1;
                    self.succeeds(&["doctor"])?;
                } else {
                    self.succeeds(&["backup", &text(&self.world.file(&format!("again-{point}-{number}")))])?;
                }
            }
        }
        // Killed behind its last rename it was made.
        if whole == 0 {
            self.seen.violations.push("no backup that was killed could be restored".to_owned());
        }
        Ok(())
    }

    /// After a killed restore there is a daemon with the old ledgers, or none as long as a marker says that they are being exchanged;
    /// and the next restore goes on.
    fn restores(&mut self, backup: &Path, before: Holds, after: Holds) -> Result<()> {
        let later = self.world.file("later");
        check::copy(&self.world.data(), &later)?;
        for point in POINTS {
            for number in 1..=RENAMES_MAX {
                self.as_before_the_restore(&later)?;
                let words = ["restore", &text(backup), "--yes"];
                if self.killed(&words, point, number)? {
                    break;
                }
                let is_marked = self.world.data().join(RESTORE_MARKER).exists();
                let found = self.found_by_a_daemon()?;
                let wrong = judged(is_marked, found, after);
                let log = daemon::last_words(&self.world);
                self.seen.violations.extend(wrong.map(|what| format!("restore killed at {point} {number}: {what}; the log:\n{log}")));
                self.succeeds(&words)?;
                // A daemon's timer and automations add to what it has.
                self.is_restored(before, found.unwrap_or(after), &format!("{point} {number}"))?;
            }
        }
        Ok(())
    }

    /// What a daemon has that is started and stopped again; `None` if it refuses to start. It has the programs that its configuration
    /// names, where the restore did not come to them: else it would refuse for those.
    fn found_by_a_daemon(&self) -> Result<Option<Holds>> {
        let lent: Vec<&str> = PROGRAMS.into_iter().filter(|programs| !self.world.file(programs).exists()).collect();
        for programs in &lent {
            fs::rename(self.kept(programs), self.world.file(programs)).context("failed to lend programs")?;
        }
        let found = self.lived();
        for programs in &lent {
            fs::rename(self.world.file(programs), self.kept(programs)).context("failed to take programs back")?;
        }
        found
    }

    fn lived(&self) -> Result<Option<Holds>> {
        let mut one = Daemon::spawn(&self.world, &self.setup.nexus, &Extras::default())?;
        if !one.ready()? {
            return Ok(None);
        }
        let status = one.stop()?;
        if !status.success() {
            bail!("a stop ended with {status}: {}", daemon::last_words(&self.world));
        }
        self.holds().map(Some)
    }

    fn as_before_the_restore(&self, later: &Path) -> Result<()> {
        let data = self.world.data();
        fs::remove_dir_all(&data).context("failed to remove the ledgers")?;
        check::copy(later, &data)?;
        fs::set_permissions(&data, Permissions::from_mode(0o700)).context("failed to set a mode")?;
        for programs in PROGRAMS {
            let (place, kept) = (self.world.file(programs), self.kept(programs));
            match (place.exists(), kept.exists()) {
                (true, true) => fs::remove_dir_all(place).context("failed to remove programs")?,
                (true, false) => fs::rename(place, kept).context("failed to keep programs")?,
                (false, _) => {}
            }
        }
        Ok(())
    }

    /// Where programs lie that a restore is to bring.
    fn kept(&self, programs: &str) -> PathBuf {
        self.world.file(&programs.replace('/', "-"))
    }

    fn is_restored(&mut self, before: Holds, after: Holds, at: &str) -> Result<()> {
        let holds = self.holds()?;
        if holds != before {
            self.seen.violations.push(format!("restored after {at}: {holds:?}, and the backup has {before:?}"));
        }
        for programs in PROGRAMS {
            if fs::read_dir(self.world.file(programs)).map_or(0, Iterator::count) == 0 {
                self.seen.violations.push(format!("restored after {at}: `{programs}` has nothing"));
            }
        }
        // Nothing that was there is lost: it lies aside.
        let asides = fs::read_dir(self.world.data().join("backup")).context("failed to list what lies aside")?;
        let mut is_aside = false;
        for aside in asides {
            let aside = aside.context("failed to list what lies aside")?.path();
            if aside.join("events.db").exists() && aside.join("nexus.db").exists() {
                is_aside |= Holds::of(&aside)? == after;
            }
        }
        if !is_aside {
            self.seen.violations.push(format!("restored after {at}: nothing that lies aside has {after:?}"));
        }
        Ok(())
    }

    /// Up to the rename the configuration is the old one, and from then on the new one: what else it says is in both.
    fn overlays(&mut self) -> Result<()> {
        self.succeeds(&["adapter", "disable", "acked/b"])?;
        let overlay = self.world.file("workspace/state/overlay.yaml");
        let read = || fs::read_to_string(&overlay).context("failed to read the overlay");
        for point in POINTS {
            for number in 1..=RENAMES_MAX {
                self.succeeds(&["adapter", "enable", "both/a"])?;
                let old = read()?;
                if self.killed(&["adapter", "disable", "both/a"], point, number)? {
                    break;
                }
                let found = read()?;
                self.succeeds(&["config", "check"])?;
                self.succeeds(&["adapter", "disable", "both/a"])?;
                let new = read()?;
                let wrong = overlay_wrong(&old, &found, &new, point);
                self.seen.violations.extend(wrong.map(|what| format!("`adapter disable` killed at {point} {number}: {what}")));
            }
        }
        Ok(())
    }

    /// Runs a command that is killed where it passes a point for this time; whether it ended by itself instead.
    fn killed(&mut self, words: &[&str], point: &str, number: u64) -> Result<bool> {
        let output = self.runs(words, Some(&format!("{point}:{number}:kill")))?;
        if output.status.success() {
            if number == 1 {
                bail!("`nexus {}` passes no {point}", words.join(" "));
            }
            return Ok(true);
        }
        if !daemon::was_killed(output.status) {
            bail!("`nexus {}` failed by itself at {point} {number}: {}", words.join(" "), said(&output));
        }
        if number == RENAMES_MAX {
            bail!("`nexus {}` passes {point} more than {RENAMES_MAX} times", words.join(" "));
        }
        self.seen.kills += 1;
        Ok(false)
    }

    fn succeeds(&self, words: &[&str]) -> Result<()> {
        let output = self.runs(words, None)?;
        if output.status.success() { Ok(()) } else { bail!("`nexus {}` failed: {}", words.join(" "), said(&output)) }
    }

    fn runs(&self, words: &[&str], fail_point: Option<&str>) -> Result<Output> {
        let mut command = daemon::command(&self.world, &self.setup.nexus);
        command.args(words).envs(fail_point.map(|point| ("NEXUS_FAIL_POINT", point)));
        command.output().with_context(|| format!("failed to run `nexus {}`", words.join(" ")))
    }
}

/// What is wrong with what a daemon has found behind a killed restore. Nothing is exchanged before the marker is there, and the
/// last rename is over while it still is.
fn judged(is_marked: bool, found: Option<Holds>, after: Holds) -> Option<String> {
    match (is_marked, found) {
        (true, None) => None,
        (true, Some(holds)) => Some(format!("`{RESTORE_MARKER}` is there, and a daemon started, with {holds:?}")),
        (false, None) => Some(format!("`{RESTORE_MARKER}` is not there, and no daemon starts")),
        (false, Some(holds)) => {
            let is_whole = holds.events >= after.events && holds.requests >= after.requests;
            (!is_whole).then(|| format!("a daemon has {holds:?}, and before it was {after:?}"))
        }
    }
}

/// What is wrong with an overlay that was found behind a command which was killed at this point.
fn overlay_wrong(old: &str, found: &str, new: &str, point: &str) -> Option<String> {
    if old == new {
        return Some(format!("it changes nothing in the overlay: {old}"));
    }
    let due = if point == POINTS[0] { old } else { new };
    (found != due).then(|| format!("the overlay is {found}, and not {due}"))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn said(output: &Output) -> String {
    format!("{}: {}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_restore_leaves_what_was_there_or_a_marker_that_no_daemon_passes() {
        let of = |events: u64| Holds { events, requests: 1 };
        let wrong = |is_marked: bool, found: Option<Holds>| judged(is_marked, found, of(2));
        assert_eq!((wrong(true, None), wrong(false, Some(of(2))), wrong(false, Some(of(3)))), (None, None, None));
        assert!(wrong(true, Some(of(2))).is_some_and(|what| what.contains("a daemon started")));
        assert!(wrong(false, None).is_some_and(|what| what.contains("no daemon starts")));
        assert!(wrong(false, Some(of(1))).is_some_and(|what| what.contains("before it was")));
    }

    #[test]
    fn an_overlay_is_the_old_one_up_to_its_rename_and_the_new_one_behind_it() {
        let [before, after] = POINTS;
        let wrong = |found: &str, point: &str| overlay_wrong("old", found, "new", point);
        assert_eq!((wrong("old", before), wrong("new", after)), (None, None));
        assert!(wrong("new", before).is_some() && wrong("old", after).is_some() && wrong("", before).is_some());
        assert!(overlay_wrong("same", "same", "same", before).is_some(), "which shows nothing");
    }
}
