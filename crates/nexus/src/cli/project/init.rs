//! `nexus project init`: a project prepared now, ahead of its first event.

use crate::cli::Global;
use crate::cli::failure::Exit;
use crate::cli::out::{Out, note, visible};
use anyhow::Context;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The project: naddr1..., kind:pubkey:identifier, or the name of one that is known
    #[arg(value_name = "PROJECT")]
    project: String,
    /// The directory that it is to have; one that is there already must be its repository
    #[arg(long, value_name = "DIRECTORY")]
    path: Option<PathBuf>,
    /// Look through its definition anew, though it was prepared from it
    #[arg(long)]
    anew: bool,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let path = args.path.as_ref().map(std::path::absolute).transpose().context("failed to make the directory absolute")?;
    let path = path.map(|path| path.to_string_lossy().into_owned());
    let body = json!({ "project": args.project, "path": path, "anew": args.anew });
    // Each question joins the preparation that the first one began.
    let prepared = loop {
        let answer = super::ask(global, "/control/prepare/init", Some(&body))?;
        if answer["pending"].is_null() {
            break answer["prepared"].clone();
        }
        note("still being prepared; the daemon's log tells the steps");
    };
    let out = global.out();
    if out.json {
        out.json(&prepared)?;
    } else {
        tell(&prepared, out)?;
    }
    Ok(Exit::Done)
}

fn tell(prepared: &Value, out: Out) -> anyhow::Result<()> {
    let text = |value: &Value| visible(value.as_str().unwrap_or("-"));
    out.line(&format!("{} is prepared in {}", text(&prepared["slug"]), text(&prepared["path"])))?;
    for agent in prepared["agents"].as_array().into_iter().flatten() {
        let role = if agent["manager"] == true { "manager" } else { "agent" };
        out.line(&format!("  {role} {}: {}", text(&agent["slug"]), text(&agent["name"])))?;
    }
    for (title, key) in [("not used", "problems"), ("missing", "missing")] {
        for one in prepared[key].as_array().into_iter().flatten() {
            note(&format!("{title}: {}", text(one)));
        }
    }
    Ok(())
}
