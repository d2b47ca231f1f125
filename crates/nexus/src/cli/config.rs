//! `nexus config ...`: judging and showing the configuration. It never changes one.

use super::failure::{Exit, Failure};
use super::out::{Color, note};
use super::{Global, ledger};
use crate::daemon::Paths;
use crate::daemon::config::{self, LoadError};
use crate::error_text::describe;
use anyhow::Context;
use nexus_core::config::{Problem, overlay_value};
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Tell everything that is wrong or odd, each with its place
    #[command(after_help = "Example:\n  nexus config check ./nex.yaml")]
    Check {
        /// The file to check [default: the one in use]
        file: Option<PathBuf>,
    },
    /// Show every value in force, and where it comes from
    #[command(after_help = "Example:\n  nexus config show")]
    Show,
    /// Print the JSON Schema of the configuration, for editors
    #[command(after_help = "Example:\n  nexus config schema > nex.schema.json")]
    Schema,
    /// Print the reference of all keys, as Markdown
    #[command(after_help = "Example:\n  nexus config reference")]
    Reference,
}

pub(crate) fn run(verb: &Verb, global: &Global) -> anyhow::Result<Exit> {
    let out = global.out();
    match verb {
        Verb::Check { file } => return check(file.clone(), global),
        Verb::Show => {
            let shown = ledger::configuration(&global.paths()?)?.show();
            if out.json {
                // By way of the text, in which secrets are left out.
                out.json(&overlay_value(&shown).map_err(|problems| Failure::bad_config(&problems))?)?;
            } else {
                out.raw(shown.as_bytes())?;
            }
        }
        Verb::Schema => out.line(&format!("{:#}", nexus_core::config::schema()))?,
        Verb::Reference => out.raw(nexus_core::config::reference_markdown().as_bytes())?,
    }
    Ok(Exit::Done)
}

fn check(file: Option<PathBuf>, global: &Global) -> anyhow::Result<Exit> {
    let paths = match file {
        Some(file) => {
            let file = std::path::absolute(&file).with_context(|| format!("failed to make `{}` absolute", file.display()))?;
            Paths::resolve(Some(&file))?
        }
        None => global.paths()?,
    };
    let path = paths.config_file.display().to_string();
    if !paths.config_file.exists() {
        return Err(Failure::not_found(format!("there is no configuration `{path}`")).into());
    }
    let (warnings, problems) = match config::load_whole(&paths) {
        Ok(loaded) => (loaded.warnings, Vec::new()),
        Err(LoadError::Invalid(problems)) => (Vec::new(), problems),
        Err(error) => return Err(Failure::new(Exit::BadConfig, describe(&error)).into()),
    };
    let out = global.out();
    if out.json {
        let list = |problems: &[Problem]| problems.iter().map(json_of).collect::<Vec<_>>();
        out.json(&json!({ "file": path, "valid": problems.is_empty(), "problems": list(&problems), "warnings": list(&warnings) }))?;
    } else {
        let colored = |color, word: &str, problem: &Problem| note(&format!("{} {problem}", out.paint.apply(color, word)));
        problems.iter().for_each(|problem| colored(Color::Red, "error:", problem));
        warnings.iter().for_each(|problem| colored(Color::Yellow, "warning:", problem));
        if problems.is_empty() {
            out.line(&format!("{path}: valid"))?;
        }
    }
    Ok(if problems.is_empty() { Exit::Done } else { Exit::BadConfig })
}

fn json_of(problem: &Problem) -> Value {
    json!({ "file": problem.file, "line": problem.line, "column": problem.column, "message": problem.message })
}
