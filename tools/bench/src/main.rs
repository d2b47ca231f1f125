//! `nexus-bench`: the figures of docs/performance.md, measured on a real daemon from outside.
//!
//! Owns the command line and what all figures share. It starts the daemon's program, is its adapter and its
//! client, and reads its ledgers and `/proc`. Only `nostr gate` calls the daemon's code.

mod adapter;
mod answer;
mod bare;
mod client;
mod clock;
mod daemon;
mod event;
mod feed;
mod hook;
mod host;
mod ingest;
mod nostr;
mod pipe;
mod procfs;
mod project;
mod report;
mod sse;
mod start;
mod subscribers;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use report::Report;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "nexus-bench", version, about = "Measures the nexus daemon; one Markdown table row per figure")]
struct Cli {
    /// The daemon's program.
    #[arg(long, global = true, default_value = "target/release/nexus")]
    nexus: PathBuf,
    /// Where temporary directories are made: on the disk that is to be measured, and a short path.
    #[arg(long, global = true, default_value = "/var/tmp")]
    dir: PathBuf,
    /// How often each figure is measured; the row shows the median.
    #[arg(long, global = true, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: Option<u32>,
    #[command(subcommand)]
    figures: Figures,
}

#[derive(Debug, Subcommand)]
enum Figures {
    /// Start to ready, memory, idle CPU and the `status` command.
    Start(start::Start),
    /// Events from an adapter's stdout to their commit, beside a bare loop of the same inserts.
    Ingest(ingest::Ingest),
    /// Answered messages of the echo agent over the control socket.
    Answer(answer::Answer),
    /// Framing, checking and parsing: known lines over and over.
    Pipe(pipe::Pipe),
    /// What plugins cost: a message with none, the built-in ones, one that observes and one that is asked; a call of each kind.
    Hook(hook::Hook),
    /// Server-sent events: CPU per delivery and memory per idle connection.
    Sse(sse::Sse),
    /// Hook calls through the host of JavaScript plugins.
    Host(host::Host),
    /// Events of a relay: verified and committed, kept while nothing can be, refused; memory of ten relays.
    #[command(subcommand)]
    Nostr(nostr::Nostr),
    /// Projects with a process that does nothing: from an event to its start, start rate, memory, idle CPU.
    Projects(project::Projects),
}

/// What all measurements need.
#[derive(Debug)]
pub(crate) struct Bench {
    /// The daemon's program, as an absolute path.
    pub(crate) nexus: PathBuf,
    /// This program, which is the adapter as well.
    pub(crate) own: PathBuf,
    pub(crate) dir: PathBuf,
    runs: Option<u32>,
    pub(crate) report: Report,
}

impl Bench {
    /// The repetitions asked for, or `default`.
    pub(crate) fn runs(&self, default: u32) -> u32 {
        self.runs.unwrap_or(default)
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.split_first() {
        Some((first, rest)) if first == adapter::WORD => adapter::run(rest),
        Some((first, _)) if first == hook::WORD => hook::serve(),
        Some((first, _)) if first == project::WORD => project::serve(),
        Some(_) | None => measure(Cli::parse()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: Cli) -> Result<()> {
    let nexus = std::fs::canonicalize(&cli.nexus).with_context(|| {
        format!("no program at `{}`; build it with `cargo build --release`, or name another with --nexus", cli.nexus.display())
    })?;
    let dir = std::fs::canonicalize(&cli.dir).with_context(|| format!("no directory `{}`", cli.dir.display()))?;
    ensure!(nexus.is_file(), "`{}` is no program", nexus.display());
    ensure!(daemon::is_short_enough(&dir), "`{}` is too long for the path of a socket; use a shorter --dir", dir.display());
    let own = std::env::current_exe().context("failed to find this program")?;
    let bench = Bench { nexus, own, dir, runs: cli.runs, report: Report::begin()? };
    match &cli.figures {
        Figures::Start(start) => start::run(&bench, start),
        Figures::Ingest(ingest) => ingest::run(&bench, ingest),
        Figures::Answer(answer) => answer::run(&bench, answer),
        Figures::Pipe(pipe) => pipe::run(&bench, pipe),
        Figures::Hook(hook) => hook::run(&bench, hook),
        Figures::Sse(sse) => sse::run(&bench, sse),
        Figures::Host(host) => host::run(&bench, host),
        Figures::Nostr(nostr) => nostr::run(&bench, nostr),
        Figures::Projects(projects) => project::run(&bench, projects),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["nexus-bench", "answer", "--sessions", "512", "--runs", "5"]).unwrap();
        assert_eq!(cli.runs, Some(5));
        assert!(Cli::try_parse_from(["nexus-bench", "nostr", "blocked", "--hold", "ledger"]).is_ok());
        assert!(Cli::try_parse_from(["nexus-bench", "nostr", "gate", "--events", "1"]).is_err());
        assert!(Cli::try_parse_from(["nexus-bench", "answer", "--sessions", "0"]).is_err());
        assert!(Cli::try_parse_from(["nexus-bench", "ingest", "--runs", "0"]).is_err());
    }
}
