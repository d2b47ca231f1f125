//! `nexus sessions ...`: what was said in each session, labels moved, forked and archived, and a turn that runs stopped.

use super::client::{Client, encoded, with_query};
use super::failure::Exit;
use super::out::{Color, Paint, note, one_line, visible};
use super::table::{self, Cell};
use super::{Global, block_on, budget, ledger, units};
use crate::query;
use crate::unknown;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Most sessions or turns that can be asked for at once.
const LIMIT_MAX: i64 = 1000;
/// Longest label in a table, in characters: all of them.
const LABEL_CHARS_MAX: usize = 200;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// List sessions, those with the newest turns first
    #[command(after_help = "Example:\n  nexus sessions list --all")]
    List {
        /// Archived ones too
        #[arg(long)]
        all: bool,
        /// How many at most
        #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
        limit: u32,
    },
    /// Show a session: what was said, newest last, and what it has used of its agents' budgets
    #[command(after_help = "Example:\n  nexus sessions show dm:owner -n 5")]
    Show {
        /// Its label, or a former one
        label: String,
        /// How many turns at most
        #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
        limit: u32,
    },
    /// Begin a session under a new label that knows what was said in another one
    #[command(after_help = "Example:\n  nexus sessions fork dm:owner what-if --at turn_01JBX")]
    Fork {
        /// The session's label
        label: String,
        /// The new label, which no session has
        new_label: String,
        /// The last turn that the new one knows [default: the newest]
        #[arg(long, value_name = "TURN")]
        at: Option<String>,
    },
    /// Put a session away: its label begins anew with the next message
    #[command(after_help = "Examples:\n  nexus sessions archive dm:owner\n  nexus sessions archive --undo dm:owner")]
    Archive {
        /// The session's label
        label: String,
        /// Take it back, as long as its label has not begun anew
        #[arg(long)]
        undo: bool,
    },
    /// Stop the turn that runs in a session; what waits there goes on
    #[command(after_help = "Example:\n  nexus sessions stop dm:owner")]
    Stop {
        /// The session's label
        label: String,
    },
}

pub(crate) fn run(verb: &Verb, global: &Global) -> anyhow::Result<Exit> {
    block_on(async {
        match verb {
            Verb::List { all, limit } => list(*all, *limit, global).await,
            Verb::Show { label, limit } => show(label, *limit, global).await,
            Verb::Fork { label, new_label, at } => fork(label, new_label, at.as_deref(), global).await,
            Verb::Archive { label, undo } => archive(label, *undo, global).await,
            Verb::Stop { label } => stop(label, global).await,
        }
    })?
}

async fn list(all: bool, limit: u32, global: &Global) -> anyhow::Result<Exit> {
    let path = with_query("/control/sessions", &[("all", Some(all.to_string())), ("limit", Some(limit.to_string()))]);
    let answer = ledger::ask(global, &path, |directory| query::sessions(&directory, all, limit as usize)).await?;
    let out = global.out();
    if out.json {
        out.json(&answer)?;
        return Ok(Exit::Done);
    }
    let zone = TimeZone::system();
    let rows: Vec<_> = answer["sessions"].as_array().into_iter().flatten().map(|session| row(session, &zone)).collect();
    if rows.is_empty() {
        note("no sessions");
    }
    for line in table::lines(&rows, &[], out.paint) {
        out.line(&line)?;
    }
    Ok(Exit::Done)
}

async fn show(label: &str, limit: u32, global: &Global) -> anyhow::Result<Exit> {
    let path = with_query(&format!("/control/sessions/{}", encoded(label)), &[("limit", Some(limit.to_string()))]);
    let paths = global.paths()?;
    let offline = |directory: PathBuf| -> anyhow::Result<Option<Value>> {
        let budgets = query::session_budgets(&ledger::configuration(&paths)?.config.agents);
        Ok(query::session(&directory, label, limit as usize, &budgets)?)
    };
    let shown = ledger::find(global, unknown::session(label), &path, offline).await?;
    let out = global.out();
    if out.json {
        out.json(&shown)?;
    } else {
        out.line(&render(&shown, out.paint, &TimeZone::system()))?;
    }
    Ok(Exit::Done)
}

async fn fork(label: &str, new_label: &str, at: Option<&str>, global: &Global) -> anyhow::Result<Exit> {
    let body = json!({ "to": new_label, "turn": at });
    let answer = change(label, "fork", &body, global).await?;
    let out = global.out();
    if out.json {
        out.json(&answer)?;
    } else {
        let session = &answer["session"];
        let turns = session["turns"].as_u64().unwrap_or(0);
        let head = session["head"].as_str().unwrap_or("-");
        out.line(&format!("{}: {} up to {}", visible(new_label), counted(turns), visible(head)))?;
    }
    Ok(Exit::Done)
}

async fn archive(label: &str, undo: bool, global: &Global) -> anyhow::Result<Exit> {
    let answer = change(label, "archive", &json!({ "undo": undo }), global).await?;
    let out = global.out();
    if out.json {
        out.json(&answer)?;
        return Ok(Exit::Done);
    }
    let session = &answer["session"];
    let (name, turns) = (session["label"].as_str().unwrap_or(label), counted(session["turns"].as_u64().unwrap_or(0)));
    let what = match (undo, answer["changed"] == false) {
        (true, _) => "goes on with its",
        (false, true) => "archived already, with its",
        (false, false) => "archived with its",
    };
    out.line(&format!("{}: {what} {turns}", visible(name)))?;
    Ok(Exit::Done)
}

async fn stop(label: &str, global: &Global) -> anyhow::Result<Exit> {
    let answer = change(label, "stop", &json!({}), global).await?;
    let out = global.out();
    if out.json {
        out.json(&answer)?;
        return Ok(Exit::Done);
    }
    let name = visible(answer["session"].as_str().unwrap_or(label));
    let request_id = visible(answer["request_id"].as_str().unwrap_or("-"));
    let what = match answer["result"].as_str().unwrap_or_default() {
        "stopped" => format!("its turn was stopped ({request_id})"),
        "stopping" => format!("its turn was told to stop and has not ended yet ({request_id})"),
        "ended" => format!("its turn had just come to its end ({request_id})"),
        _ => "nothing runs".to_owned(),
    };
    out.line(&format!("{name}: {what}"))?;
    Ok(Exit::Done)
}

/// Labels are moved by a running daemon only: it may be about to give one of them its next turn.
async fn change(label: &str, verb: &str, body: &Value, global: &Global) -> anyhow::Result<Value> {
    let paths = global.paths()?;
    Ok(Client::new(&paths).post(&format!("/control/sessions/{}/{verb}", encoded(label)), body).await?)
}

fn counted(turns: u64) -> String {
    format!("{} turn{}", units::thousands(turns), if turns == 1 { "" } else { "s" })
}

fn row(session: &Value, zone: &TimeZone) -> [Cell; 5] {
    let text = |key: &str| session[key].as_str().unwrap_or("-");
    let updated = session["updated_at"].as_i64().map_or_else(|| "-".to_owned(), |ms| units::second(ms, zone));
    let state = match (session["archived_at"].is_null(), session["stopped"].is_null()) {
        (true, true) => "",
        (true, false) => "stopped",
        (false, _) => "archived",
    };
    [
        Cell::colored(updated, Color::Dim),
        Cell::new(one_line(text("label"), LABEL_CHARS_MAX)),
        Cell::new(text("agent")),
        Cell::new(counted(session["turns"].as_u64().unwrap_or(0))),
        Cell::colored(state, Color::Yellow),
    ]
}

fn render(shown: &Value, paint: Paint, zone: &TimeZone) -> String {
    let session = &shown["session"];
    let time = |value: &Value| value.as_i64().map_or_else(|| "-".to_owned(), |ms| units::second(ms, zone));
    let text = |value: &Value| visible(value.as_str().unwrap_or("-"));
    let mut lines = vec![format!("Session {}", paint.apply(Color::Bold, &text(&session["label"])))];
    lines.push(format!("  Agent:    {}", text(&session["agent"])));
    lines.push(format!("  Turns:    {}", units::thousands(session["turns"].as_u64().unwrap_or(0))));
    if !session["archived_at"].is_null() {
        lines.push(format!("  Archived: {}; its label begins anew with the next message", time(&session["archived_at"])));
    }
    if let Some(why) = session["stopped"].as_str() {
        lines.push(format!("  Stopped:  it goes round in circles: {}", visible(why)));
    }
    let aliases: Vec<String> = shown["aliases"].as_array().into_iter().flatten().map(text).collect();
    if !aliases.is_empty() {
        lines.push(format!("  Aliases:  {}", aliases.join(", ")));
    }
    for past in shown["past"].as_array().into_iter().flatten() {
        let turns = counted(past["turns"].as_u64().unwrap_or(0));
        let (label, head, ended) = (text(&past["label"]), text(&past["head"]), time(&past["ended_at"]));
        lines.push(format!("  Before:   {label}, {turns} up to {head}, {} {ended}", text(&past["reason"])));
    }
    lines.extend(shown["used"].as_array().into_iter().flatten().map(|used| format!("  Used:     {}", used_by(used))));
    for turn in shown["turns"].as_array().into_iter().flatten() {
        lines.push(String::new());
        lines.push(paint.apply(Color::Dim, &turn_head(turn, &time(&turn["started_at"]))));
        for (mark, said) in [(">", &turn["user"]), ("<", &turn["assistant"])] {
            let said = said.as_str().map(visible).unwrap_or_default();
            lines.extend(said.lines().map(|line| format!("{mark} {line}")));
        }
    }
    lines.join("\n")
}

/// `smart 13 of 200,000 tokens, $0.0001 of $1.0000`.
fn used_by(used: &Value) -> String {
    let (tokens, tokens_max) = (used["tokens"].as_u64().unwrap_or(0), used["tokens_per_session"].as_u64());
    let (usd, usd_max) = (used["usd"].as_f64().unwrap_or(0.0), used["usd_per_session"].as_f64());
    format!("{} {}", visible(used["agent"].as_str().unwrap_or("-")), budget::used(tokens, tokens_max, usd, usd_max))
}

/// `2026-02-05 14:30:07  turn_1  echo  end_turn, 1,234ms, 12 + 30 tokens`.
fn turn_head(turn: &Value, started: &str) -> String {
    let text = |key: &str| visible(turn[key].as_str().unwrap_or("-"));
    let model = turn["model"].as_str().map_or_else(|| text("agent"), |model| format!("{} ({})", text("agent"), visible(model)));
    let took = units::milliseconds(turn["duration_ms"].as_f64().unwrap_or(0.0));
    let tokens = match (turn["input_tokens"].as_u64(), turn["output_tokens"].as_u64()) {
        (None, None) => String::new(),
        (input, output) => {
            let count = |tokens: Option<u64>| tokens.map_or_else(|| "?".to_owned(), units::thousands);
            format!(", {} + {} tokens", count(input), count(output))
        }
    };
    format!("{started}  {}  {model}  {}, {took}{tokens}", text("turn_id"), text("stop_reason"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_shown_with_what_was_said() {
        let turn = json!({
            "turn_id": "turn_2", "agent": "smart", "model": "m-1", "stop_reason": "end_turn", "started_at": 1_770_301_807_000_i64,
            "duration_ms": 1234.0, "input_tokens": 1200, "output_tokens": null, "user": "one\ntwo\u{1b}", "assistant": "three",
        });
        let past = json!({ "label": "dm:sms:1", "head": "turn_1", "turns": 1, "reason": "promoted", "ended_at": 1_770_301_800_000_i64 });
        let shown = json!({
            "session": { "label": "dm:e1", "agent": "smart", "turns": 2, "archived_at": null },
            "aliases": ["dm:sms:1"], "past": [past], "turns": [turn],
            "used": [{ "agent": "smart", "tokens": 1_200, "tokens_per_session": 5_000, "usd": 0.5, "usd_per_session": null }],
        });
        let expected = "Session dm:e1
  Agent:    smart
  Turns:    2
  Aliases:  dm:sms:1
  Before:   dm:sms:1, 1 turn up to turn_1, promoted 2026-02-05 14:30:00
  Used:     smart 1,200 of 5,000 tokens, $0.5000

2026-02-05 14:30:07  turn_2  smart (m-1)  end_turn, 1,234ms, 1,200 + ? tokens
> one
> two\u{fffd}
< three";
        assert_eq!(render(&shown, Paint::PLAIN, &TimeZone::UTC), expected);
    }

    #[test]
    fn a_row_says_what_is_archived_or_stopped() {
        let mut session = json!({ "label": "dm:a", "agent": "echo", "turns": 1, "updated_at": 1_770_301_807_000_i64, "archived_at": null });
        let line = |session: &Value| table::lines(&[row(session, &TimeZone::UTC)], &[], Paint::PLAIN);
        assert_eq!(line(&session), ["2026-02-05 14:30:07  dm:a  echo  1 turn"]);
        session["stopped"] = "the same message without a person behind it".into();
        assert_eq!(line(&session), ["2026-02-05 14:30:07  dm:a  echo  1 turn  stopped"]);
        let shown = render(&json!({ "session": session }), Paint::PLAIN, &TimeZone::UTC);
        assert!(shown.ends_with("\n  Stopped:  it goes round in circles: the same message without a person behind it"), "{shown}");
        session["archived_at"] = 5.into();
        assert_eq!(line(&session), ["2026-02-05 14:30:07  dm:a  echo  1 turn  archived"]);
    }
}
