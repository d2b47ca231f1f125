//! `nexus project approve`: the operator's answer to what a project wants to run.

use crate::cli::Global;
use crate::cli::failure::Exit;
use crate::cli::out::visible;
use serde_json::json;

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
        }
        decided.push(approval);
    }
    if out.json {
        out.json(&json!({ "approvals": decided }))?;
    }
    Ok(Exit::Done)
}
