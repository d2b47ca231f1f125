//! `nexus project run`: the process that the daemon starts for each project. What it does is `project_run`'s.

use crate::cli::Global;
use crate::cli::failure::{Exit, Failure};
use crate::error_text::describe;
use crate::project_run;

pub(crate) fn run(global: &Global) -> anyhow::Result<Exit> {
    match project_run::run(global.config()?.as_deref()) {
        Ok(()) => Ok(Exit::Done),
        Err(error) => Err(Failure::new(Exit::Code(error.exit_code()), describe(&error)).into()),
    }
}
