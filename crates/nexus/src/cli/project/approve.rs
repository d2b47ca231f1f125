//! `nexus project approve`: the operator's answer to what a project wants to run.

use crate::cli::Global;
use crate::cli::failure::Exit;
use crate::cli::out::{note, visible};
use crate::project::coordinate::Coordinate;
use serde_json::{Value, json};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Its number, as `nexus project approvals` lists it; several may be given
    #[arg(value_name = "ID", required = true)]
    ids: Vec<i64>,
    /// Say no, also to what was approved before
    #[arg(long)]
    deny: bool,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let out = global.out();
    let mut decided = Vec::new();
    for id in &args.ids {
        let path = format!("/control/prepare/approvals/{id}");
        let answer = super::ask(global, &path, Some(&json!({ "approve": !args.deny })))?;
        let approval = answer["approval"].clone();
        if !out.json {
            let text = |key: &str| visible(approval[key].as_str().unwrap_or("-"));
            out.line(&format!("{} {} {}: {}", text("status"), text("kind"), text("subject"), text("command")))?;
            if let Some(project) = prepared_now(&approval) {
                note(&format!("the project is being prepared with it; `nexus project show {project}` says how that went"));
            }
        }
        decided.push(approval);
    }
    if out.json {
        out.json(&json!({ "approvals": decided }))?;
    }
    Ok(Exit::Done)
}

/// The project that a decision has prepared in the background, as other verbs take it; how that ends is not known yet.
fn prepared_now(approval: &Value) -> Option<String> {
    let project = approval["project"].as_str().filter(|_| approval["status"] == "approved")?;
    Some(Coordinate::parse(project).map_or_else(|_| visible(project), |project| project.slug()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_an_approval_has_something_prepared() {
        let project = format!("31933:{}:demo", "a".repeat(64));
        let of = |status: &str| prepared_now(&json!({ "project": project, "status": status }));
        assert!(of("approved").unwrap().starts_with("demo-"));
        assert_eq!(of("denied"), None);
    }
}
