//! The end of a world: no fault any more. Everything comes to its end, the daemon doesn't grow under a load
//! that stays the same, and the checker looks at all of it.

use crate::check;
use crate::check::children::Turns;
use crate::clock;
use crate::daemon::{self, Daemon, Extras};
use crate::feeder::Feeder;
use crate::posters::{self, Posters};
use crate::procfs;
use crate::run::Run;
use anyhow::{Context, Result};
use std::time::Duration;

/// How long everything that is open may take to end.
const CALM_LIMIT: Duration = Duration::from_secs(150);
/// The same load so many times, for this long each, with this pause between two messages at most.
const ROUNDS: usize = 4;
const ROUND: Duration = Duration::from_millis(700);
const FEED_PAUSE_MS_MAX: u64 = 8;
const POST_PAUSE_MS_MAX: u64 = 80;
/// What the daemon may have more after the last round than after the first. Its caches have bounds and may
/// still be filling: each ledger keeps up to four connections to read, of two descriptors each.
const DESCRIPTORS_SLACK: usize = 40;
const GROWTH_KIB_MAX: u64 = 24 * 1024;

impl Run<'_> {
    /// Everything that was accepted comes to its end.
    pub(crate) fn calm(&mut self) -> Result<()> {
        std::fs::write(self.world.calm(), "").context("failed to write a file")?;
        let mut daemon = Daemon::spawn(&self.world, &self.setup.nexus, &Extras::default())?;
        if !daemon.ready()? {
            self.violated(format!("the last start failed: {}", daemon::last_words(&self.world)));
            return Ok(());
        }
        self.children_are_right(&daemon, check::children::Intake::Goes)?;
        if self.world.cast().nostr {
            posters::learn_key(&self.world)?; // it is the one that it was
        }
        if self.world.cast().quarantine {
            self.look_on_and_release_for_good()?;
        }
        if self.is_quiet()? {
            // From here on nothing has a cause to be given up.
            let found = self.causes.settled(&self.world)?;
            self.violations.extend(found);
            self.children_are_as_intended(&daemon, Turns::MayBeMissing)?;
            if self.world.cast().quarantine {
                self.note_released()?;
            }
            self.load(&daemon)?;
        }
        let status = daemon.stop()?;
        if !status.success() {
            self.violated(format!("the last stop ended with {status}: {}", daemon::last_words(&self.world)));
        }
        let left = procfs::all_with(&self.world.root().to_string_lossy());
        if !left.is_empty() {
            self.violated(format!("processes live after a clean stop: {left:?}"));
        }
        let mut found = self.snapshots.look(&self.world)?;
        found.extend(self.causes.calm(&self.world)?);
        self.violations.extend(found);
        let found = check::everything(&self.world, self.on_interrupted, &mut self.counts)?;
        self.violations.extend(found);
        let (is_content, said) = check::doctor(&self.setup.nexus, &self.world)?;
        if !is_content {
            self.violated(format!("`nexus doctor` isn't content:\n{said}"));
        }
        Ok(())
    }

    /// Waits until nothing is open; false, and a broken promise, when that takes too long.
    fn is_quiet(&mut self) -> Result<bool> {
        let quiet = clock::until(CALM_LIMIT, || {
            clock::pause(Duration::from_millis(100));
            Ok(check::open_work(&self.world)?.is_none().then_some(()))
        })?;
        if quiet.is_some() {
            return Ok(true);
        }
        let open = check::open_work(&self.world)?.unwrap_or_else(|| "it came to it just now".to_owned());
        self.violated(format!("not all came to an end in {} s: {open}", CALM_LIMIT.as_secs()));
        Ok(false)
    }

    /// The same load a few times, in one process: its descriptors and its memory stay as they are, and no process
    /// stays that an agent left behind.
    fn load(&mut self, daemon: &Daemon) -> Result<()> {
        let mut seen: Vec<(usize, u64)> = Vec::new();
        for round in 0..ROUNDS {
            let chance = self.chance.about(&["load", &round.to_string()]);
            let feeder = Feeder::start(&self.world, chance.clone(), FEED_PAUSE_MS_MAX);
            let posters = self.post(&chance.about(&["posters"]), POST_PAUSE_MS_MAX);
            clock::pause(ROUND);
            self.counts.events += feeder.end()?;
            posters.map_or(Ok(0), Posters::end)?;
            if !self.is_quiet()? {
                return Ok(());
            }
            seen.extend(procfs::descriptors(daemon.pid()).zip(procfs::rss_kib(daemon.pid())));
        }
        let [(_, kib), .., (_, kib_then)] = seen[..] else {
            self.violated(format!("the daemon is gone: {}", daemon::last_words(&self.world)));
            return Ok(());
        };
        self.counts.grew_kib.push(kib_then.saturating_sub(kib));
        self.violations.extend(grown(&seen));
        self.leftovers_end(daemon)?;
        self.children_are_as_intended(daemon, Turns::Were)
    }
}

/// What is too much more after the last load than after the first: of descriptors, and of KiB.
fn grown(seen: &[(usize, u64)]) -> Vec<String> {
    let [(descriptors, kib), .., (descriptors_then, kib_then)] = *seen else { return Vec::new() };
    let mut found = Vec::new();
    if descriptors_then > descriptors + DESCRIPTORS_SLACK {
        found.push(format!("{descriptors} descriptors after a load, {descriptors_then} after the same load {ROUNDS} times"));
    }
    if kib_then > kib + GROWTH_KIB_MAX {
        found.push(format!("{kib} KiB after a load, {kib_then} after the same load {ROUNDS} times"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_grows_under_the_same_load_is_found() {
        let (descriptors, kib) = (70, 60_000);
        let after = |more: usize, more_kib: u64| {
            let last = (descriptors + more, kib + more_kib);
            grown(&[(descriptors, kib), (500, 500_000), last]).join("; ")
        };
        assert_eq!(after(0, 0), "");
        assert_eq!(after(DESCRIPTORS_SLACK, GROWTH_KIB_MAX), "", "what was more in between is not looked at");
        assert_eq!(after(DESCRIPTORS_SLACK + 1, 0), "70 descriptors after a load, 111 after the same load 4 times");
        assert_eq!(after(0, GROWTH_KIB_MAX + 1), "60000 KiB after a load, 84577 after the same load 4 times");
        assert!(grown(&[(10, 10), (1, 1)]).is_empty(), "less is no growth");
    }
}
