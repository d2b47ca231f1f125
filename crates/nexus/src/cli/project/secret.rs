//! `nexus project secret ...`: what a project's process gets in its environment and nobody else sees. A value comes
//! from stdin or a hidden prompt, never from the command line, and is never shown.

use crate::cli::client::{Client, encoded, if_running};
use crate::cli::failure::{Exit, Failure};
use crate::cli::{Global, block_on, credential, ledger};
use crate::daemon::Paths;
use crate::ledger::nexus::project_named;
use crate::ledger::{Ledger, Readers};
use crate::project::coordinate::Coordinate;
use crate::project::secrets::Secrets;
use serde_json::json;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Store one, under the name of the variable that it becomes; its value comes from stdin or a prompt
    #[command(after_help = "Examples:
  nexus project secret set demo API_KEY < key.txt
  nexus project secret set demo API_KEY --command 'pass show api'")]
    Set {
        project: String,
        name: String,
        /// A program that tells the value each time it is needed
        #[arg(long, value_name = "COMMAND")]
        command: Option<String>,
    },
    /// List their names
    #[command(after_help = "Example:\n  nexus project secret list demo")]
    List { project: String },
    /// Remove one
    #[command(after_help = "Example:\n  nexus project secret remove demo API_KEY")]
    Remove { project: String, name: String },
}

pub(crate) fn run(verb: &Verb, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let secrets = Secrets::new(&paths.credentials_dir());
    let out = global.out();
    match verb {
        Verb::Set { project, name, command } => {
            let slug = slug_of(project, &paths)?;
            match command {
                Some(command) => secrets.set_command(&slug, name, command)?,
                None => secrets.set(&slug, name, &credential::value(name)?)?,
            }
            if out.json {
                out.json(&json!({ "project": slug, "stored": name }))?;
            } else {
                out.line(&format!("stored {name} of {slug}; it counts from the next start of the project"))?;
            }
        }
        Verb::List { project } => {
            let names = secrets.list(&slug_of(project, &paths)?)?;
            if out.json {
                out.json(&json!({ "secrets": names }))?;
            } else {
                names.iter().try_for_each(|name| out.line(name))?;
            }
        }
        Verb::Remove { project, name } => {
            let slug = slug_of(project, &paths)?;
            if !secrets.remove(&slug, name)? {
                return Err(Failure::not_found(format!("secret `{name}` of {slug}")).into());
            }
            if out.json { out.json(&json!({ "project": slug, "removed": name }))? } else { out.line(&format!("removed {name} of {slug}"))? }
        }
    }
    Ok(Exit::Done)
}

/// An address has its slug in it, known or not; any other name is one that the daemon, or its ledger, knows.
fn slug_of(name: &str, paths: &Paths) -> anyhow::Result<String> {
    if let Ok(coordinate) = Coordinate::read(name) {
        return Ok(coordinate.slug());
    }
    let path = format!("/control/prepare/show/{}", encoded(name));
    if let Some(shown) = if_running(block_on(async { Client::new(paths).get(&path).await })?)? {
        return Ok(shown["project"]["slug"].as_str().unwrap_or_default().to_owned());
    }
    let directory = paths.data_dir(&ledger::configuration(paths)?.config.ledgers.directory);
    let row = Readers::new(directory.join(Ledger::Nexus.file_name())).read_now(|connection| project_named(connection, name))?;
    Ok(row.ok_or_else(|| Failure::not_found(format!("project `{name}`")))?.slug)
}
