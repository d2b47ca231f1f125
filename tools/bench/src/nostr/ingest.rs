//! `nostr ingest`: from the first event that is published to the commit of the last one, who has the cores meanwhile, and
//! what the daemon's CPU is beside what verifying alone takes. It verifies by the library that the daemon has too.

use super::{RUNS, Relay, Wire, configure, messages, wait_kept, wait_live};
use crate::daemon::{Daemon, Place};
use crate::{Bench, clock, procfs, report};
use ::nostr::event::Event;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::time::Instant;

/// Threads that take less than this of an event get no row.
const THREAD_US_MIN: f64 = 1.0;

/// A value per run; `us` are microseconds of CPU per event.
#[derive(Debug, Default)]
struct Figures {
    per_s: Vec<f64>,
    verified_per_s: Vec<f64>,
    of_verified: Vec<f64>,
    verify_us: Vec<f64>,
    daemon_us: Vec<f64>,
    of_verify: Vec<f64>,
    busy: Busy,
    threads_us: BTreeMap<String, Vec<f64>>,
}

/// From the first event to the last commit.
#[derive(Debug, Default)]
struct Busy {
    relay_us: Vec<f64>,
    daemon_us: Vec<f64>,
    own_us: Vec<f64>,
    cores: Vec<f64>,
}

/// Milliseconds of CPU that each has used.
#[derive(Debug)]
struct Used {
    relay: f64,
    daemon: f64,
    own: f64,
}

impl Used {
    fn now(relay: &Relay, daemon: &Daemon<'_>) -> Result<Self> {
        Ok(Self { relay: procfs::cpu_ms(relay.pid())?, daemon: daemon.cpu_ms()?, own: procfs::cpu_ms(std::process::id())? })
    }

    fn since(&self, before: &Self) -> Self {
        Self { relay: self.relay - before.relay, daemon: self.daemon - before.daemon, own: self.own - before.own }
    }
}

pub(crate) fn run(bench: &Bench, count: u32) -> Result<()> {
    let mut figures = Figures::default();
    for _ in 0..bench.runs(RUNS) {
        measure(bench, count, &mut figures)?;
    }
    let row = |what: &str, unit: &str, values: &[f64]| bench.report.row(&format!("nostr ingest, {count} events: {what}"), unit, values);
    let Figures { per_s, verified_per_s, of_verified, verify_us, daemon_us, of_verify, busy, threads_us } = &figures;
    row("published to committed", "events/s", per_s)?;
    row("verified by one core of this machine", "events/s", verified_per_s)?;
    row("of what one core verifies", "ratio", of_verified)?;
    row("`daemon_cpu_us_per_event`, until it is idle", "CPU us/event", daemon_us)?;
    row("`verify_us`, by one core of this machine", "CPU us/event", verify_us)?;
    row("`daemon_cpu_us_per_event` of `verify_us`", "ratio", of_verify)?;
    row("daemon until the last commit", "CPU us/event", &busy.daemon_us)?;
    row("relay until the last commit", "CPU us/event", &busy.relay_us)?;
    row("the bench itself until the last commit", "CPU us/event", &busy.own_us)?;
    row("all three until the last commit", "cores", &busy.cores)?;
    for (name, us) in threads_us.iter().filter(|(_, us)| report::median(us) >= THREAD_US_MIN) {
        row(&format!("the daemon's `{name}` until it is idle"), "CPU us/event", us)?;
    }
    Ok(())
}

fn measure(bench: &Bench, count: u32, figures: &mut Figures) -> Result<()> {
    let each_us = |ms: f64| ms * 1e3 / f64::from(count);
    let events = messages(count)?;
    let (verified_per_s, verify_us) = verified(&events)?;
    let place = Place::new(bench)?;
    let relay = Relay::start(&place, "relay")?;
    configure(&place, &[relay.url()])?;
    let daemon = place.start()?;
    wait_live(&daemon)?;
    let idle_ms = daemon.settle()?;
    let threads = procfs::run_ns_by_name(daemon.pid())?;
    let (before, began) = (Used::now(&relay, &daemon)?, Instant::now());
    Wire::connect(relay.url())?.publish(&events)?;
    wait_kept(&place, count)?;
    let elapsed = began.elapsed();
    let used = Used::now(&relay, &daemon)?.since(&before);
    let daemon_us = each_us(daemon.settle()? - idle_ms);
    for (name, ns) in procfs::run_ns_by_name(daemon.pid())? {
        let ns = ns.saturating_sub(threads.get(&name).copied().unwrap_or(0));
        figures.threads_us.entry(name).or_default().push(each_us(ns as f64 / 1e6));
    }
    let per_s = f64::from(count) / elapsed.as_secs_f64();
    figures.per_s.push(per_s);
    figures.verified_per_s.push(verified_per_s);
    figures.of_verified.push(per_s / verified_per_s);
    figures.verify_us.push(verify_us);
    figures.daemon_us.push(daemon_us);
    figures.of_verify.push(daemon_us / verify_us);
    figures.busy.relay_us.push(each_us(used.relay));
    figures.busy.daemon_us.push(each_us(used.daemon));
    figures.busy.own_us.push(each_us(used.own));
    figures.busy.cores.push((used.relay + used.daemon + used.own) / clock::ms(elapsed));
    daemon.stop()
}

/// How many events one core of this machine verifies in a second, and the CPU of each, in microseconds.
fn verified(events: &[String]) -> Result<(f64, f64)> {
    let events: Vec<Event> = events.iter().map(Event::from_json).collect::<Result<_, _>>().context("an event can't be read")?;
    let (began, began_ns) = (Instant::now(), clock::thread_cpu_ns());
    for event in &events {
        event.verify().context("an event can't be verified")?;
    }
    let used_ns = clock::thread_cpu_ns() - began_ns;
    Ok((events.len() as f64 / began.elapsed().as_secs_f64(), used_ns as f64 / 1e3 / events.len() as f64))
}
