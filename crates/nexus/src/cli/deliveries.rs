//! `nexus deliveries ...`: messages on their way out. What is done about those that don't arrive is `decide`'s.

mod decide;

use super::client::{encoded, with_query};
use super::failure::Exit;
use super::out::{Color, Paint, note, one_line, visible};
use super::table::{self, Cell};
use super::{Global, block_on, ledger, units};
use crate::query;
use crate::{clock, unknown};
use jiff::tz::TimeZone;
use serde_json::Value;

/// Most deliveries that can be asked for at once.
const LIMIT_MAX: i64 = 1000;
/// Longest target or error in a table, in characters.
const TEXT_CHARS_MAX: usize = 80;
/// Most of what is said that a table shows, in characters.
const SAID_CHARS_MAX: usize = 40;
const STATUSES: [&str; 7] = ["pending", "sending", "sent", "failed", "uncertain", "expired", "discarded"];

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// List the newest deliveries
    #[command(after_help = "Example:\n  nexus deliveries list --status uncertain")]
    List {
        /// Only deliveries of this status
        #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(STATUSES))]
        status: Option<String>,
        /// Only deliveries by this adapter
        #[arg(long, value_name = "NAME")]
        adapter: Option<String>,
        /// How many at most
        #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
        limit: u32,
    },
    /// Show one delivery, with its whole text
    #[command(after_help = "Example:\n  nexus deliveries show dlv_01JBX")]
    Show {
        /// The delivery's id, as `nexus deliveries list` shows it
        id: String,
    },
    /// Send some again; an uncertain one may then arrive twice
    #[command(
        after_help = "Examples:\n  nexus deliveries retry dlv_01JBX\n  nexus deliveries retry --all --status uncertain --adapter gmail"
    )]
    Retry(decide::Which),
    /// Give some up
    #[command(after_help = "Examples:\n  nexus deliveries discard dlv_01JBX dlv_01JBY\n  nexus deliveries discard --all --status expired")]
    Discard(decide::Which),
}

pub(crate) fn run(verb: &Verb, global: &Global) -> anyhow::Result<Exit> {
    block_on(async {
        match verb {
            Verb::List { status, adapter, limit } => list(status.as_deref(), adapter.as_deref(), *limit, global).await,
            Verb::Show { id } => show(id, global).await,
            Verb::Retry(which) => decide::run(which, "retry", global).await,
            Verb::Discard(which) => decide::run(which, "discard", global).await,
        }
    })?
}

async fn list(status: Option<&str>, adapter: Option<&str>, limit: u32, global: &Global) -> anyhow::Result<Exit> {
    let asked = [("status", status.map(str::to_owned)), ("adapter", adapter.map(str::to_owned)), ("limit", Some(limit.to_string()))];
    let path = with_query("/control/deliveries", &asked);
    let answer = ledger::ask(global, &path, |directory| query::deliveries(&directory, status, adapter, limit as usize)).await?;
    let out = global.out();
    if out.json {
        out.json(&answer)?;
        return Ok(Exit::Done);
    }
    let now_ms = clock::wall_ms();
    let rows: Vec<_> = answer["deliveries"].as_array().into_iter().flatten().map(|delivery| listed(delivery, now_ms)).collect();
    if rows.is_empty() {
        note("no deliveries");
    }
    for line in table::lines(&rows, &[], out.paint) {
        out.line(&line)?;
    }
    Ok(Exit::Done)
}

async fn show(id: &str, global: &Global) -> anyhow::Result<Exit> {
    let path = format!("/control/deliveries/{}", encoded(id));
    let delivery = ledger::find(global, unknown::delivery(id), &path, |directory| query::delivery(&directory, id)).await?;
    let out = global.out();
    if out.json {
        out.json(&delivery)?;
    } else {
        out.line(&render(&delivery, out.paint, &TimeZone::system()))?;
    }
    Ok(Exit::Done)
}

fn render(delivery: &Value, paint: Paint, zone: &TimeZone) -> String {
    let text = |key: &str| visible(delivery[key].as_str().unwrap_or(""));
    let time = |key: &str| delivery[key].as_i64().map_or_else(String::new, |ms| units::second(ms, zone));
    let status = text("status");
    let fields = [
        ("Adapter", format!("{}/{}", text("adapter"), text("account_id"))),
        ("To", format!("{} {}", text("channel"), text("target"))),
        ("Thread", text("thread_id")),
        ("Reply to", text("reply_to_id")),
        ("Request", text("request_id")),
        ("Run", text("run_id")),
        ("Key", text("idempotency_key")),
        ("Created", time("created_at")),
        ("Updated", time("updated_at")),
        ("Expires", time("expires_at")),
        ("Attempts", delivery["attempts"].as_u64().unwrap_or(0).to_string()),
        ("Next", time("next_attempt_at")),
        ("Messages", text("message_ids")),
        ("Error", text("error")),
    ];
    let mut lines = vec![format!("Delivery {} {}", text("delivery_id"), paint.apply(color_of(&status), &status))];
    let given = fields.iter().filter(|(_, value)| !value.is_empty());
    lines.extend(given.map(|(name, value)| format!("  {:<10}{value}", format!("{name}:"))));
    let content = text("content");
    if !content.is_empty() {
        lines.extend([String::new(), paint.apply(Color::Bold, "Text")]);
        lines.extend(content.lines().map(|line| format!("  {line}")));
    }
    lines.join("\n")
}

fn color_of(status: &str) -> Color {
    match status {
        "sent" => Color::Green,
        "failed" | "expired" => Color::Red,
        "discarded" => Color::Dim,
        _ => Color::Yellow,
    }
}

/// One delivery in a list of many: also how old it is, whose it is and what it says.
fn listed(delivery: &Value, now_ms: i64) -> [Cell; 8] {
    let text = |key: &str| delivery[key].as_str().unwrap_or("-");
    let age = delivery["created_at"].as_i64().map(|at| u64::try_from(now_ms.saturating_sub(at)).unwrap_or(0));
    let [id, status, attempts, target, error] = row(delivery);
    [
        id,
        status,
        Cell::colored(age.map_or_else(|| "-".to_owned(), units::ago), Color::Dim),
        attempts,
        Cell::new(format!("{}/{}", text("adapter"), text("account_id"))),
        target,
        Cell::new(one_line(delivery["content"].as_str().unwrap_or(""), SAID_CHARS_MAX)),
        error,
    ]
}

/// One delivery as a table shows it, beside the event that it answers.
pub(crate) fn row(delivery: &Value) -> [Cell; 5] {
    let text = |key: &str| delivery[key].as_str().unwrap_or("-");
    [
        Cell::new(text("delivery_id")),
        Cell::colored(text("status"), color_of(text("status"))),
        Cell::new(format!("attempts: {}", delivery["attempts"].as_u64().unwrap_or(0))),
        Cell::new(format!("→ {} {}", text("channel"), one_line(text("target"), TEXT_CHARS_MAX))),
        Cell::colored(one_line(delivery["error"].as_str().unwrap_or(""), TEXT_CHARS_MAX), Color::Red),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_tells_what_is_wrong() {
        let delivery = json!({ "delivery_id": "dlv_1", "status": "uncertain", "attempts": 2, "channel": "gmail", "target": "bob", "error": "timed\nout" });
        assert_eq!(table::lines(&[row(&delivery)], &[], Paint::PLAIN), ["dlv_1  uncertain  attempts: 2  → gmail bob  timed out"]);
    }

    #[test]
    fn a_list_tells_what_a_decision_needs() {
        let delivery = json!({
            "delivery_id": "dlv_1", "status": "uncertain", "attempts": 1, "adapter": "mail", "account_id": "me", "channel": "gmail",
            "target": "bob", "content": "Dear Bob,\nthe invoice that you asked for in spring is attached", "created_at": 1_000, "error": "hm",
        });
        assert_eq!(
            table::lines(&[listed(&delivery, 181_000)], &[], Paint::PLAIN),
            ["dlv_1  uncertain  3m ago  attempts: 1  mail/me  → gmail bob  Dear Bob, the invoice that you asked for…  hm"]
        );
    }

    #[test]
    fn one_is_shown_whole_and_harmless() {
        let delivery = json!({
            "delivery_id": "dlv_1", "status": "failed", "attempts": 2, "adapter": "mail", "account_id": "me", "channel": "gmail",
            "target": "bob", "content": "one\n\u{1b}[2Jtwo", "created_at": 0, "error": "refused",
        });
        let shown = render(&delivery, Paint::PLAIN, &TimeZone::UTC);
        assert!(shown.starts_with("Delivery dlv_1 failed\n  Adapter:  mail/me\n  To:       gmail bob\n"), "{shown}");
        assert!(shown.ends_with("  Error:    refused\n\nText\n  one\n  \u{fffd}[2Jtwo"), "{shown}");
        assert!(!shown.contains("Thread"), "{shown}");
    }
}
