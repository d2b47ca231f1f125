//! `nexus project secret ...`: what a project's process gets in its environment and nobody else sees. A value comes
//! from stdin or a hidden prompt, never from the command line, and is never shown.

use super::named;
use crate::cli::failure::{Exit, Failure};
use crate::cli::out::note;
use crate::cli::{Global, credential, running};
use crate::project::secrets::{SecretError, Secrets};
use serde_json::json;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Store one, under the name of the variable that it becomes; its value comes from stdin or a prompt
    #[command(after_help = "Examples:
  nexus project secret set demo API_KEY < key.txt
  nexus project secret set demo API_KEY --command 'pass show api'")]
    Set {
        /// The project: its slug or the beginning of it, naddr1..., or kind:pubkey:identifier
        project: String,
        /// The variable's name
        name: String,
        /// A program that tells the value each time it is needed
        #[arg(long, value_name = "COMMAND")]
        command: Option<String>,
    },
    /// List their names
    #[command(after_help = "Example:\n  nexus project secret list demo")]
    List {
        /// The project: its slug or the beginning of it, naddr1..., or kind:pubkey:identifier
        project: String,
    },
    /// Remove one
    #[command(after_help = "Example:\n  nexus project secret remove demo API_KEY")]
    Remove {
        /// The project: its slug or the beginning of it, naddr1..., or kind:pubkey:identifier
        project: String,
        /// The variable's name
        name: String,
    },
}

pub(crate) fn run(verb: &Verb, global: &Global) -> anyhow::Result<Exit> {
    let paths = running::paths(global)?;
    let secrets = Secrets::new(&paths.credentials_dir());
    let out = global.out();
    match verb {
        Verb::Set { project, name, command } => {
            let slug = named::find(project, &paths)?.slug();
            match command {
                Some(command) => secrets.set_command(&slug, name, command).map_err(failure)?,
                None => secrets.set(&slug, name, &credential::value(name)?).map_err(failure)?,
            }
            if out.json {
                out.json(&json!({ "project": slug, "stored": name }))?;
            } else {
                out.line(&format!("stored {name} of {slug}; it counts from the next start of the project"))?;
            }
        }
        Verb::List { project } => {
            let slug = named::find(project, &paths)?.slug();
            let names = secrets.list(&slug)?;
            if out.json {
                out.json(&json!({ "secrets": names }))?;
            } else if names.is_empty() {
                note(&format!("{slug} has no secrets; store one with `nexus project secret set {slug} NAME`"));
            } else {
                names.iter().try_for_each(|name| out.line(name))?;
            }
        }
        Verb::Remove { project, name } => {
            let slug = named::find(project, &paths)?.slug();
            if !secrets.remove(&slug, name)? {
                let missing = format!("no secret `{name}` of {slug}; `nexus project secret list {slug}` shows them");
                return Err(Failure::not_found(missing).into());
            }
            if out.json { out.json(&json!({ "project": slug, "removed": name }))? } else { out.line(&format!("removed {name} of {slug}"))? }
        }
    }
    Ok(Exit::Done)
}

/// A name that can't be one is a mistake of the command line.
fn failure(error: SecretError) -> anyhow::Error {
    if matches!(error, SecretError::Name { .. }) { Failure::new(Exit::Usage, error.to_string()).into() } else { error.into() }
}
