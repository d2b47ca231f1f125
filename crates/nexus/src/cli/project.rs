//! `nexus project ...`: which projects there are and how they are, what is to become of them, and the process that
//! runs one. It prepares and starts nothing itself: the daemon does.

mod approvals;
mod approve;
mod gc;
mod init;
mod list;
mod logs;
mod named;
mod order;
mod questions;
mod run;
mod secret;
mod setup;
mod show;

use super::client::{Client, ClientError};
use super::failure::{Exit, Failure};
use super::{Global, block_on};
use serde_json::Value;

/// HTTP's word for a request that can't be understood.
const BAD_REQUEST: u16 = 400;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// List the projects
    #[command(after_help = "Example:\n  nexus project list")]
    List,
    /// Show what a project is, and what it lacks
    #[command(after_help = "Example:\n  nexus project show demo")]
    Show(show::Args),
    /// Prepare a project now: clone it, install its agents
    #[command(after_help = "Examples:\n  nexus project init naddr1...\n  nexus project init naddr1... --path ./demo")]
    Init(init::Args),
    /// Start a project's process, prepared first if need be
    #[command(after_help = "Example:\n  nexus project start demo")]
    Start(order::Target),
    /// Stop a project's process and the turn it is at, until the next event for it
    #[command(after_help = "Example:\n  nexus project stop demo")]
    Stop(order::Target),
    /// Restart a project's process
    #[command(after_help = "Example:\n  nexus project restart demo")]
    Restart(order::Target),
    /// Let a project that crashed too often run again, with the next event for it
    #[command(after_help = "Example:\n  nexus project release demo")]
    Release(order::Target),
    /// Show what a project's process said of late
    #[command(after_help = "Example:\n  nexus project logs -f demo")]
    Logs(logs::Args),
    /// Run a project's agents: the process that the daemon starts
    #[command(after_help = "Example, as `projects.command`:\n  nexus project run")]
    Run,
    /// List what waits for your approval
    #[command(after_help = "Example:\n  nexus project approvals")]
    Approvals(approvals::Args),
    /// Approve or deny what a project wants to run
    #[command(after_help = "Examples:\n  nexus project approve 3\n  nexus project approve 4 --deny")]
    Approve(approve::Args),
    /// Store secrets for the processes of a project
    #[command(subcommand, after_help = "Example:\n  nexus project secret set demo API_KEY")]
    Secret(secret::Verb),
    /// List and put away projects that nobody uses
    #[command(after_help = "Examples:\n  nexus project gc --days 30\n  nexus project gc demo")]
    Gc(gc::Args),
    /// Choose the model that answers in projects
    #[command(after_help = "Examples:
  nexus project setup
  nexus project setup --provider anthropic --model claude-sonnet-4 --key-env ANTHROPIC_API_KEY
  nexus project setup demo --agent helper")]
    Setup(setup::Args),
}

/// The daemon's answer to a question, or to what it is told to do.
fn ask(global: &Global, path: &str, told: Option<&Value>) -> anyhow::Result<Value> {
    let paths = global.paths()?;
    let answer = block_on(async {
        let client = Client::new(&paths);
        match told {
            Some(body) => client.post(path, body).await,
            None => client.get(path).await,
        }
    })?;
    answer.map_err(refused)
}

/// A name that the daemon can't read is a mistake of the command line.
fn refused(error: ClientError) -> anyhow::Error {
    if matches!(error, ClientError::Refused { status: BAD_REQUEST, .. }) {
        return Failure::new(Exit::Usage, error.to_string()).into();
    }
    error.into()
}

pub(crate) fn run(verb: &Verb, global: &Global) -> anyhow::Result<Exit> {
    match verb {
        Verb::List => list::run(global),
        Verb::Show(args) => show::run(args, global),
        Verb::Init(args) => init::run(args, global),
        Verb::Start(target) => order::run(target, "start", global),
        Verb::Stop(target) => order::run(target, "stop", global),
        Verb::Restart(target) => order::run(target, "restart", global),
        Verb::Release(target) => order::run(target, "release", global),
        Verb::Logs(args) => logs::run(args, global),
        Verb::Run => run::run(global),
        Verb::Approvals(args) => approvals::run(args, global),
        Verb::Approve(args) => approve::run(args, global),
        Verb::Secret(verb) => secret::run(verb, global),
        Verb::Gc(args) => gc::run(args, global),
        Verb::Setup(args) => setup::run(args, global),
    }
}
