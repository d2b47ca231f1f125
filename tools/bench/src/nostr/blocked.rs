//! `nostr blocked`: events are published while nothing can be kept, and must all be there once it can.

use super::{Relay, Wire, configure, kept, messages, wait_kept, wait_live};
use crate::daemon::{Daemon, Place};
use crate::{Bench, clock};
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

/// What is held while events are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Hold {
    /// The whole daemon, by SIGSTOP: it doesn't even read.
    Daemon,
    /// `events.db`, by another connection's transaction: the daemon reads on, and can commit nothing.
    Ledger,
}

impl Hold {
    fn named(self) -> &'static str {
        match self {
            Self::Daemon => "the daemon is stopped",
            Self::Ledger => "events.db is locked",
        }
    }
}

pub(crate) fn run(bench: &Bench, count: u32, time: Duration, hold: Hold) -> Result<()> {
    let (mut kept_of, mut seconds, mut read) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.runs(1) {
        let events = messages(count)?;
        let place = Place::new(bench)?;
        let relay = Relay::start(&place, "relay")?;
        configure(&place, &[relay.url()])?;
        let daemon = place.start()?;
        wait_live(&daemon)?;
        let publish = || -> Result<()> {
            let began = Instant::now();
            Wire::connect(relay.url())?.publish(&events)?;
            clock::pause(time.saturating_sub(began.elapsed()));
            let kept = kept(&place)?;
            ensure!(kept == 0, "{kept} events were kept while nothing could be");
            Ok(())
        };
        match hold {
            Hold::Daemon => while_stopped(&daemon, publish)?,
            Hold::Ledger => read.push(while_locked(&place, &daemon, publish)? as f64),
        }
        let began = Instant::now();
        wait_kept(&place, count)?;
        seconds.push(began.elapsed().as_secs_f64());
        kept_of.push(f64::from(kept(&place)?));
        daemon.stop()?;
    }
    let name = format!("nostr, {count} events while {} for {} s", hold.named(), time.as_secs());
    if !read.is_empty() {
        bench.report.row(&format!("{name}: read meanwhile"), "events", &read)?;
    }
    bench.report.row(&format!("{name}: kept"), "events", &kept_of)?;
    bench.report.row(&format!("{name}: all kept after it goes on"), "s", &seconds)?;
    Ok(())
}

fn while_stopped(daemon: &Daemon<'_>, publish: impl FnOnce() -> Result<()>) -> Result<()> {
    let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw).context("the daemon has no PID")?;
    kill_process(pid, Signal::STOP).context("failed to stop the daemon")?;
    let published = publish();
    kill_process(pid, Signal::CONT).context("failed to let the daemon go on")?;
    published
}

/// How many events the daemon had read of its relay and handed on by the end of it.
fn while_locked(place: &Place, daemon: &Daemon<'_>, publish: impl FnOnce() -> Result<()>) -> Result<u64> {
    let ledger = place.locked("events")?;
    publish()?;
    let status = daemon.connect()?.get("/control/nostr")?;
    let read = status["relays"][0]["events"].as_u64().context("the status has no events of the relay")?;
    ensure!(read > 0, "the daemon read nothing while its ledger was locked");
    ledger.execute_batch("ROLLBACK").context("failed to let go of the ledger")?;
    Ok(read)
}
