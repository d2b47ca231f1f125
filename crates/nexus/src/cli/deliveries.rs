//! `nexus deliveries ...`: messages on their way out, and what to do with the uncertain ones.

use super::client::{Client, encoded, with_query};
use super::failure::Exit;
use super::out::{Color, note, one_line, visible};
use super::table::{self, Cell};
use super::{Global, block_on, ledger};
use crate::query;
use serde_json::{Value, json};

/// Most deliveries that can be asked for at once.
const LIMIT_MAX: i64 = 1000;
/// Longest target or error in a table, in characters.
const TEXT_CHARS_MAX: usize = 80;
const STATUSES: [&str; 7] = ["pending", "sending", "sent", "failed", "uncertain", "expired", "discarded"];

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// List the newest deliveries
    #[command(after_help = "Example:\n  nexus deliveries list --status uncertain")]
    List {
        /// Only deliveries of this status
        #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(STATUSES))]
        status: Option<String>,
        /// How many at most
        #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
        limit: u32,
    },
    /// Send one again; an uncertain one may then arrive twice
    #[command(after_help = "Example:\n  nexus deliveries retry dlv_01JBX")]
    Retry {
        /// The delivery's id, as `nexus deliveries list` shows it
        id: String,
    },
    /// Give one up
    #[command(after_help = "Example:\n  nexus deliveries discard dlv_01JBX")]
    Discard {
        /// The delivery's id, as `nexus deliveries list` shows it
        id: String,
    },
}

pub(crate) fn run(verb: &Verb, global: &Global) -> anyhow::Result<Exit> {
    block_on(async {
        match verb {
            Verb::List { status, limit } => list(status.as_deref(), *limit, global).await,
            Verb::Retry { id } => decide(id, "retry", global).await,
            Verb::Discard { id } => decide(id, "discard", global).await,
        }
    })?
}

async fn list(status: Option<&str>, limit: u32, global: &Global) -> anyhow::Result<Exit> {
    let path = with_query("/control/deliveries", &[("status", status.map(str::to_owned)), ("limit", Some(limit.to_string()))]);
    let answer = ledger::ask(global, &path, |directory| query::deliveries(&directory, status, limit as usize)).await?;
    let out = global.out();
    if out.json {
        out.json(&answer)?;
        return Ok(Exit::Done);
    }
    let rows: Vec<_> = answer["deliveries"].as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        note("no deliveries");
    }
    for line in table::lines(&rows, &[], out.paint) {
        out.line(&line)?;
    }
    Ok(Exit::Done)
}

async fn decide(id: &str, verb: &str, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let answer = Client::new(&paths).post(&format!("/control/deliveries/{}/{verb}", encoded(id)), &json!({})).await?;
    let out = global.out();
    if out.json {
        out.json(&answer)?;
    } else {
        let text = |key: &str| visible(answer[key].as_str().unwrap_or("unknown"));
        out.line(&format!("{}: was {}, now {}", visible(id), text("before"), text("now")))?;
    }
    Ok(Exit::Done)
}

/// One delivery as a table shows it.
pub(crate) fn row(delivery: &Value) -> [Cell; 5] {
    let text = |key: &str| delivery[key].as_str().unwrap_or("-");
    let color = match text("status") {
        "sent" => Color::Green,
        "failed" | "expired" => Color::Red,
        "discarded" => Color::Dim,
        _ => Color::Yellow,
    };
    [
        Cell::new(text("delivery_id")),
        Cell::colored(text("status"), color),
        Cell::new(format!("attempts: {}", delivery["attempts"].as_u64().unwrap_or(0))),
        Cell::new(format!("→ {} {}", text("channel"), one_line(text("target"), TEXT_CHARS_MAX))),
        Cell::colored(one_line(delivery["error"].as_str().unwrap_or(""), TEXT_CHARS_MAX), Color::Red),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::out::Paint;

    #[test]
    fn a_row_tells_what_is_wrong() {
        let delivery = json!({ "delivery_id": "dlv_1", "status": "uncertain", "attempts": 2, "channel": "gmail", "target": "bob", "error": "timed\nout" });
        assert_eq!(table::lines(&[row(&delivery)], &[], Paint::PLAIN), ["dlv_1  uncertain  attempts: 2  → gmail bob  timed out"]);
    }
}
