//! `nexus project logs`: the last lines of a project's process, which the daemon keeps in memory.

use crate::cli::client::{Client, ClientError, encoded, with_query};
use crate::cli::failure::Exit;
use crate::cli::out::{Out, note, visible};
use crate::cli::{Global, block_on};
use crate::clock;
use crate::project::LINES_MAX;
use serde_json::Value;
use std::time::Duration;

/// Pause between two questions for new lines.
const FOLLOW_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The project: its slug or the beginning of it, naddr1..., or kind:pubkey:identifier
    #[arg(value_name = "PROJECT")]
    project: String,
    /// Go on with what it says from now on
    #[arg(short, long)]
    follow: bool,
    /// How many lines at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=LINES_MAX as i64))]
    lines: u32,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let (paths, out) = (global.paths()?, global.out());
    block_on(async {
        let client = Client::new(&paths);
        let first = ask(&client, &args.project, 0, args.lines).await.map_err(super::refused)?;
        let mut after = show(&first, 0, out)?;
        if !args.follow {
            if !out.json && first["lines"].as_array().is_none_or(Vec::is_empty) {
                note("it has said nothing since the daemon was started");
            }
            return Ok(Exit::Done);
        }
        loop {
            tokio::time::sleep(FOLLOW_PAUSE).await;
            after = show(&ask(&client, &args.project, after, LINES_MAX as u32).await?, after, out)?;
        }
    })?
}

async fn ask(client: &Client<'_>, project: &str, after: u64, lines: u32) -> Result<Value, ClientError> {
    let path = format!("/control/projects/{}/logs", encoded(project));
    client.get(&with_query(&path, &[("after", Some(after.to_string())), ("lines", Some(lines.to_string()))])).await
}

/// Shows the lines; the number of the last one.
fn show(answer: &Value, after: u64, out: Out) -> anyhow::Result<u64> {
    let mut last = after;
    for line in answer["lines"].as_array().into_iter().flatten() {
        last = line["seq"].as_u64().unwrap_or(last);
        if out.json {
            out.json(line)?;
        } else {
            let at = clock::rfc3339(line["at"].as_i64().unwrap_or(0));
            let text = visible(line["text"].as_str().unwrap_or_default());
            out.line(&format!("{at} {:<5} {text}", line["level"].as_str().unwrap_or_default()))?;
        }
    }
    Ok(last)
}
