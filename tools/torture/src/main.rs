//! Runs the real daemon in worlds full of misfortune, and checks that it kept its promises.
//!
//! `nexus-torture run` does what its seeds say: start, fault, death, over and over, then calm; after
//! each death and in the end the checker looks. The same program is the adapters and agents of those
//! worlds. How to read a failure: CONTRIBUTING.md.

mod acp;
mod adapter;
mod advisers;
mod agent;
mod calm;
mod chance;
mod check;
mod clock;
mod commands;
mod daemon;
mod disk;
mod fault;
mod feeder;
mod health;
mod inflict;
mod journal;
mod nostr;
mod people;
mod points;
mod posters;
mod power;
mod procfs;
mod project;
mod quarantine;
mod relay;
mod report;
mod run;
mod seeds;
mod soak;
mod source;
mod speech;
mod steered;
mod stops;
mod world;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use power::trial::{Breach, Found, Trial};
use run::Setup;
use seeds::{Task, Total};
use soak::Soak;
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Breaks the real daemon and checks its promises.
#[derive(Debug, Parser)]
#[command(name = "nexus-torture")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Seeded crashes and faults
    Run(RunArgs),
    /// Loss of power at many places of one run
    Power(PowerArgs),
    /// Backups, restores and changes of the configuration, killed at each rename
    Commands(Common),
    /// A steady load, with a kill each minute
    Soak(SoakArgs),
}

/// What the verbs with seeds take.
#[derive(Debug, Args)]
struct Common {
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// The fail-point daemon; built with cargo if not given
    #[arg(long)]
    nexus: Option<PathBuf>,
    /// Build it with optimisations
    #[arg(long)]
    release: bool,
    /// Where worlds are made [default: the system's directory for temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Keep the directory of a world in which a promise was broken
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    common: Common,
    /// Cycles of start, fault and death in each
    #[arg(long, default_value_t = 20)]
    crashes: u64,
    /// Worlds at one time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Begin no other seed after this many seconds
    #[arg(long)]
    limit_seconds: Option<u64>,
    /// Seeds that found something once, to be run first: a file of lines `seed crashes [before-nostr] [plan=DIGEST]  # what it found`
    #[arg(long)]
    regressions: Option<PathBuf>,
    /// Leave Nostr out of the worlds of `--seed` that have it, so that they mean what they did before there was any
    #[arg(long)]
    before_nostr: bool,
    /// Fail if there were fewer cycles, for lack of time or otherwise
    #[arg(long)]
    at_least: Option<u64>,
    /// Fail if this machine doesn't allow some kind of fault whose turn came
    #[arg(long)]
    require_all_faults: bool,
    /// Fail if a fail point that something in a world passes never fired; for long runs
    #[arg(long)]
    require_all_points: bool,
    /// Write the report to this file: between its two markers, or as a new page
    #[arg(long)]
    report: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct PowerArgs {
    #[command(flatten)]
    common: Common,
    /// Places in each run at which the power is lost
    #[arg(long, default_value_t = 200)]
    points: usize,
    /// Another `PRAGMA synchronous` than the daemon's own
    #[arg(long)]
    synchronous: Option<String>,
    /// Fail unless a promise of one of these kinds is broken, by each seed: shows that this harness would see it
    #[arg(long, value_name = "KINDS", value_delimiter = ',')]
    expect_broken: Vec<Breach>,
}

#[derive(Debug, Args)]
struct SoakArgs {
    /// The daemon's program, as users have it
    #[arg(long)]
    nexus: PathBuf,
    /// Where its world is made [default: the system's directory for temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Messages per second
    #[arg(long, default_value_t = 500)]
    rate: u64,
    /// Seconds between two kills
    #[arg(long, default_value_t = 60)]
    kill_seconds: u64,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let ended = match words.first().map(String::as_str) {
        Some(adapter::WORD) => adapter::run(&words[1..]),
        Some(agent::WORD) => agent::run(&words[1..]),
        Some(acp::WORD) => acp::run(&words[1..]),
        Some(advisers::WORD) => advisers::run(&words[1..]),
        Some(project::WORD) => project::run(&words[1..]),
        Some(agent::ESCAPEE) => return agent::escape(),
        Some(soak::WORD) => soak::adapt(&words[1..]),
        Some(_) | None => match Cli::parse().verb {
            Verb::Run(args) => run_seeds(&args),
            Verb::Power(args) => lose_power(&args),
            Verb::Commands(args) => kill_commands(&args),
            Verb::Soak(args) => soak(&args),
        },
    };
    ended.unwrap_or_else(|error| {
        say(&format!("nexus-torture: {error:#}"));
        ExitCode::from(2)
    })
}

/// A line for whoever runs this.
fn say(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}")); // nobody may be there to read it
}

impl Common {
    fn all_seeds(&self) -> Range<u64> {
        self.seed..self.seed.saturating_add(self.seeds)
    }

    fn setup(&self, crashes: u64) -> Result<Setup> {
        let nexus = match &self.nexus {
            Some(path) => path.canonicalize().with_context(|| format!("no program at `{}`", path.display()))?,
            None => daemon::build(self.release)?,
        };
        let points = daemon::fail_points(&nexus)?;
        let own = std::env::current_exe().context("failed to find this program")?;
        let shim = daemon::build_shim(self.release)?;
        Ok(Setup { nexus, own, shim, points, crashes, dir: run::dir(self.dir.as_deref())?, keep: self.keep })
    }
}

fn run_seeds(args: &RunArgs) -> Result<ExitCode> {
    if let Some(path) = &args.report {
        report::check_page(path)?; // before hours of work
    }
    let setup = args.common.setup(args.crashes)?;
    let mut worlds = match &args.regressions {
        Some(path) => seeds::regressions(path)?,
        None => Vec::new(),
    };
    let before = worlds.len();
    let task = |seed: u64| Task::new(seed, args.crashes);
    worlds.extend(args.common.all_seeds().map(task).map(|task| if args.before_nostr { task.before_nostr() } else { task }));
    let done = seeds::run(&setup, worlds, args.jobs, args.limit_seconds.map(Duration::from_secs))?;
    let tables = done.counts.tables(&setup.points);
    if let Some(path) = &args.report {
        let profile = match (&args.common.nexus, args.common.release) {
            (Some(_), _) => "given",
            (None, true) => "release",
            (None, false) => "dev",
        };
        let head = format!(
            "`nexus-torture run --seed {} --seeds {} --crashes {}`, after {before} regressions; profile of the daemon: {profile}.\n\
             Seeds run: {}, not begun for lack of time: {}. Broken promises: {}.",
            args.common.seed, args.common.seeds, args.crashes, done.seeds, done.not_begun, done.violations
        );
        report::write_page(path, &format!("{head}\n\n{tables}"))?;
    }
    say(&tables);
    if let Some(kinds) = done.counts.impossible() {
        say(&format!("not possible on this machine, and not done: {kinds}"));
    }
    say(&done.summary());
    judge(args, &done, &setup.points)
}

/// How a run ends: broken promises say more than that it was too short or too tame.
fn judge(args: &RunArgs, done: &Total, points: &[String]) -> Result<ExitCode> {
    let due = if args.require_all_points { points::due(points) } else { Vec::new() };
    let lacks = done.counts.lacks(args.at_least, args.require_all_faults, &due);
    if done.violations > 0 {
        lacks.iter().for_each(|what| say(what));
        return Ok(ExitCode::FAILURE);
    }
    if done.counts.cycles() == 0 {
        bail!("not one cycle was run, which shows nothing");
    }
    if !lacks.is_empty() {
        bail!("no promise was broken, but {}", lacks.join("; "));
    }
    Ok(ExitCode::SUCCESS)
}

fn lose_power(args: &PowerArgs) -> Result<ExitCode> {
    let setup = args.common.setup(0)?;
    let expected = args.expect_broken.clone();
    let trial = Trial { shim: setup.shim.clone(), setup, synchronous: args.synchronous.clone(), points: args.points, expected };
    let (mut broken, mut places, mut with_daemon) = (0, 0, 0);
    for seed in args.common.all_seeds() {
        let found = trial.run(seed)?;
        let is_as_expected = found.is_as(&args.expect_broken);
        let Found { ops, syncs, cuts, started, acknowledged, violations, kept } = found;
        say(&format!(
            "seed {seed}: {ops} writes and other changes, {syncs} of them syncs; power lost at {cuts} places, {started} of which got a \
             daemon; {acknowledged} acknowledgements; {} broken promises",
            violations.len()
        ));
        if cuts == 0 || acknowledged == 0 {
            bail!("seed {seed}: nothing was promised before the power was lost, which shows nothing");
        }
        violations.iter().for_each(|(kind, what)| say(&format!("seed {seed}: BROKEN ({kind:?}): {what}")));
        kept.iter().for_each(|kept| say(&format!("seed {seed}: kept in {}", kept.display())));
        if !is_as_expected {
            bail!("seed {seed}: of these kinds no promise was broken, though one should have been: {:?}", args.expect_broken);
        }
        broken += violations.len();
        places += cuts;
        with_daemon += started;
    }
    let build = args.synchronous.as_ref().map_or_else(|| "as it is".to_owned(), |level| format!("`synchronous={level}`"));
    say("| build | places | with a daemon | broken promises |\n| --- | --- | --- | --- |");
    say(&format!("| {build} | {places} | {with_daemon} | {broken} |"));
    Ok(if broken == 0 || !args.expect_broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn kill_commands(args: &Common) -> Result<ExitCode> {
    let setup = args.setup(0)?;
    let mut broken = 0;
    for seed in args.all_seeds() {
        let commands::Seen { kills, violations, kept } = commands::run(&setup, seed)?;
        say(&format!("seed {seed}: {kills} commands killed at their renames; {} broken promises", violations.len()));
        violations.iter().for_each(|what| say(&format!("seed {seed}: BROKEN: {what}")));
        kept.iter().for_each(|kept| say(&format!("seed {seed}: kept in {}", kept.display())));
        broken += violations.len();
    }
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn soak(args: &SoakArgs) -> Result<ExitCode> {
    let soak = Soak {
        nexus: args.nexus.canonicalize().with_context(|| format!("no program at `{}`", args.nexus.display()))?,
        own: std::env::current_exe().context("failed to find this program")?,
        dir: run::dir(args.dir.as_deref())?,
        minutes: args.minutes,
        per_second: args.rate,
        kill_every: Duration::from_secs(args.kill_seconds),
    };
    let seen = soak.run(say)?;
    say(&seen.table());
    seen.violations.iter().for_each(|what| say(&format!("BROKEN: {what}")));
    Ok(if seen.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
