//! `nexus trace ...`: what became of an event, and why.

use super::client::{encoded, with_query};
use super::failure::Exit;
use super::out::{Color, Paint, note, one_line, visible};
use super::table::{self, Cell};
use super::{Global, block_on, ledger, replay, units};
use crate::query;
use crate::unknown;
use jiff::tz::TimeZone;
use nexus_core::request::Status;
use serde_json::Value;

/// Most requests that can be asked for at once.
const LIMIT_MAX: i64 = 1000;
/// Longest reason or error in a table, in characters.
const REASON_CHARS_MAX: usize = 100;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  nexus trace req_01JBX\n  nexus trace list --status failed")]
pub(crate) struct Args {
    /// A request id, an event id or an event's number
    id: Option<String>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show one request: its stages, decisions and deliveries
    #[command(after_help = "Example:\n  nexus trace show gmail:18c2f0")]
    Show {
        /// A request id, an event id or an event's number
        id: String,
    },
    /// Run a request again that failed or expired: a new one, linked to it
    #[command(after_help = "Examples:\n  nexus trace retry req_01JBX\n  nexus trace retry req_01JBX --wait")]
    Retry(replay::Args),
    /// List the newest requests
    #[command(after_help = "Example:\n  nexus trace list --status failed -n 5")]
    List {
        /// Only requests of this status
        #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(Status::ALL.map(Status::as_str)))]
        status: Option<String>,
        /// How many at most
        #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
        limit: u32,
    },
}

pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<Exit> {
    block_on(async {
        match (args.verb, args.id) {
            (Some(Verb::Show { id }), _) | (None, Some(id)) => show(&id, global).await,
            (Some(Verb::Retry(args)), _) => replay::run(&args, true, global).await,
            (Some(Verb::List { status, limit }), _) => list(status, limit, global).await,
            (None, None) => list(None, 20, global).await,
        }
    })?
}

async fn show(id: &str, global: &Global) -> anyhow::Result<Exit> {
    let path = format!("/control/trace/{}", encoded(id));
    let trace = ledger::find(global, unknown::request(id), &path, |directory| query::trace(&directory, id)).await?;
    let out = global.out();
    if out.json {
        out.json(&trace)?;
    } else {
        out.line(&render(&trace, out.paint, &TimeZone::system()))?;
    }
    Ok(Exit::Done)
}

async fn list(status: Option<String>, limit: u32, global: &Global) -> anyhow::Result<Exit> {
    let path = with_query("/control/traces", &[("status", status.clone()), ("limit", Some(limit.to_string()))]);
    let answer = ledger::ask(global, &path, |directory| query::traces(&directory, status.as_deref(), limit as usize)).await?;
    let out = global.out();
    if out.json {
        out.json(&answer)?;
        return Ok(Exit::Done);
    }
    let zone = TimeZone::system();
    let rows: Vec<_> = answer["requests"].as_array().into_iter().flatten().map(|request| row(request, &zone)).collect();
    if rows.is_empty() {
        note("no requests");
    }
    for line in table::lines(&rows, &[], out.paint) {
        out.line(&line)?;
    }
    Ok(Exit::Done)
}

fn row(request: &Value, zone: &TimeZone) -> [Cell; 6] {
    let text = |key: &str| request[key].as_str().unwrap_or("-");
    let created = request["created_at"].as_i64().map_or_else(|| "-".to_owned(), |ms| units::second(ms, zone));
    [
        Cell::colored(created, Color::Dim),
        Cell::new(text("request_id")),
        Cell::colored(text("status"), color_of(text("status"))),
        Cell::new(text("event_id")),
        Cell::new(text("agent")),
        Cell::new(one_line(request["reason"].as_str().unwrap_or(""), REASON_CHARS_MAX)),
    ]
}

fn color_of(status: &str) -> Color {
    match Status::parse(status) {
        Some(Status::Completed | Status::HandledByAutomation) => Color::Green,
        Some(Status::Failed | Status::Expired | Status::Interrupted) => Color::Red,
        Some(Status::Waiting | Status::Processing | Status::Denied) | None => Color::Yellow,
    }
}

/// Everything that is known about one request, for a person at 3 a.m.
fn render(trace: &Value, paint: Paint, zone: &TimeZone) -> String {
    let mut page = Page { text: String::new(), paint };
    let request = &trace["request"];
    let sections = &request["trace"];
    page.header(request, zone);
    page.links(trace);
    page.block("Text", trace["event"]["content"].as_str());
    page.stages(&sections["pipeline"], zone);
    page.automations(&sections["triggers"]["results"]);
    page.access(&sections["access"]);
    page.response(&sections["response"]);
    page.runs(&trace["runs"], sections["response"].is_object(), zone);
    page.deliveries(&trace["deliveries"]);
    page.text.truncate(page.text.trim_end().len());
    page.text
}

struct Page {
    text: String,
    paint: Paint,
}

impl Page {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn title(&mut self, title: &str) {
        self.line("");
        self.line(&self.paint.apply(Color::Bold, title));
    }

    fn field(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.line(&format!("  {:<10}{}", format!("{name}: "), visible(value)));
        }
    }

    fn header(&mut self, request: &Value, zone: &TimeZone) {
        let text = |key: &str| request[key].as_str().unwrap_or("");
        let status = self.paint.apply(color_of(text("status")), &visible(text("status")));
        self.line(&format!("Request {} {status}", visible(text("request_id"))));
        self.field("Reason", text("reason"));
        let at = if Status::parse(text("status")).is_some_and(Status::is_terminal) { "" } else { text("stage") };
        self.field("Stage", at);
        self.field("Event", &format!("{} (#{}, {}/{})", text("event_id"), request["event_seq"], text("channel"), text("account_id")));
        self.field("From", request["trace"]["principal"]["type"].as_str().unwrap_or(""));
        self.field("Session", text("session"));
        self.field("Agent", text("agent"));
        let agent = |key: &str| request["trace"]["agent"][key].as_str().unwrap_or("");
        let place = if agent("provider").is_empty() { String::new() } else { format!(" ({})", agent("provider")) };
        self.field("Model", &format!("{}{place}", agent("model")));
        if !agent("answered_by").is_empty() {
            self.field("Stand-in", &format!("{}, since {}", agent("answered_by"), agent("fallback_from")));
        }
        if let Some(dropped) = request["trace"]["agent"]["history_dropped"].as_u64().filter(|dropped| *dropped > 0) {
            self.field("History", &format!("{dropped} older messages left out"));
        }
        if let Some(withheld) = request["trace"]["agent"]["history_withheld"].as_u64().filter(|withheld| *withheld > 0) {
            self.field("Withheld", &format!("{withheld} messages of its session, by data_access"));
        }
        let section = &request["trace"]["agent"];
        let fellows: Vec<&str> = section["fellows"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !fellows.is_empty() {
            self.field("Run", section["run_id"].as_str().unwrap_or("-"));
            self.field("Together", &fellows.join(", "));
        }
        self.field("Attempts", &request["attempts"].as_i64().unwrap_or(0).to_string());
        if request["late"] == true || request["late"].as_i64().is_some_and(|late| late != 0) {
            self.field("Late", "yes");
        }
        if let Some(created) = request["created_at"].as_i64() {
            let took = request["completed_at"].as_i64().and_then(|end| u64::try_from(end - created).ok());
            let took = took.map_or_else(String::new, |ms| format!(", took {}ms", units::thousands(ms)));
            self.field("Created", &format!("{}{took}", units::second(created, zone)));
        }
    }

    /// What it repeats, what repeats it, and what can be done about a bad end.
    fn links(&mut self, trace: &Value) {
        let name = |attempt: &Value| attempt["request_id"].as_str().or(attempt["event_id"].as_str()).unwrap_or("-").to_owned();
        if trace["replay_of"].is_object() {
            self.field("Replay of", &name(&trace["replay_of"]));
        }
        let replays: Vec<String> = trace["replays"].as_array().into_iter().flatten().map(name).collect();
        self.field("Replayed as", &replays.join(", "));
        if trace["waits"].is_object() {
            self.field("Waits for", &waits_for(&trace["waits"]));
        }
        let request = &trace["request"];
        let is_bad = matches!(request["status"].as_str().and_then(Status::parse), Some(Status::Failed | Status::Expired));
        if is_bad && replays.is_empty() {
            self.field("Run again", &format!("nexus trace retry {}", request["request_id"].as_str().unwrap_or("-")));
        }
    }

    fn block(&mut self, title: &str, text: Option<&str>) {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return };
        self.title(title);
        for line in visible(text).lines() {
            self.line(&format!("  {line}"));
        }
    }

    fn stages(&mut self, stages: &Value, zone: &TimeZone) {
        let Some(stages) = stages.as_array().filter(|stages| !stages.is_empty()) else { return };
        self.title("Stages");
        let rows: Vec<_> = stages.iter().map(|stage| stage_row(stage, zone)).collect();
        for (line, stage) in table::lines(&rows, &[], self.paint).into_iter().zip(stages) {
            self.line(&format!("  {line}"));
            for hook in stage["hooks"].as_array().into_iter().flatten() {
                self.line(&format!("    {}", hook_line(hook)));
            }
        }
    }

    fn automations(&mut self, results: &Value) {
        let Some(results) = results.as_array().filter(|results| !results.is_empty()) else { return };
        self.title("Automations");
        for result in results {
            self.line(&format!("  {}", automation_line(result)));
        }
    }

    fn access(&mut self, access: &Value) {
        let Some(decision) = access["decision"].as_str() else { return };
        self.title(&format!("Access: {}", visible(decision)));
        for why in access["why"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.line(&format!("  {}", visible(why)));
        }
    }

    fn response(&mut self, response: &Value) {
        if !response.is_object() {
            return;
        }
        let stop = response["stop_reason"].as_str().unwrap_or("no stop reason");
        let took = response["duration_ms"].as_f64().map_or_else(String::new, |ms| format!(", {}", units::milliseconds(ms)));
        let is_pruned = response["content"].is_null() && response["chars"].as_u64().is_some_and(|chars| chars > 0);
        let absent = if is_pruned { "(the text is no longer kept here)" } else { "(no text)" };
        let text = response["content"].as_str().filter(|text| !text.is_empty()).unwrap_or(absent);
        self.block(&format!("Response ({}{took})", visible(stop)), Some(text));
        let tokens = |key: &str| response["usage"][key].as_u64();
        if let (Some(input), Some(output)) = (tokens("input_tokens"), tokens("output_tokens")) {
            let about = if response["usage"]["estimated"] == true { ", estimated" } else { "" };
            self.line(&format!("  {} tokens in, {} out{about}", units::thousands(input), units::thousands(output)));
        }
        for call in response["tool_calls"].as_array().into_iter().flatten() {
            let text = |key: &str| visible(call[key].as_str().unwrap_or("-"));
            self.line(&format!("  tool {} {}", text("name"), text("status")));
        }
        if let Some(error) = response["error"].as_str() {
            let error = self.paint.apply(Color::Red, &visible(error));
            self.line(&format!("  {error}"));
        }
    }

    /// Each attempt at running the agent, where one was interrupted, and what it had said; the last one said
    /// the response, if there is one.
    fn runs(&mut self, runs: &Value, has_response: bool, zone: &TimeZone) {
        let Some(runs) = runs.as_array().filter(|runs| runs.iter().any(|run| run["status"] == "interrupted")) else { return };
        self.title("Runs");
        let rows: Vec<_> = runs.iter().map(|run| run_row(run, zone)).collect();
        for line in table::lines(&rows, &[], self.paint) {
            self.line(&format!("  {line}"));
        }
        for run in runs.iter().rev().skip(usize::from(has_response)) {
            let title = format!("Said before {} was interrupted", visible(run["run_id"].as_str().unwrap_or("it")));
            self.block(&title, run["turn"]["assistant"].as_str());
        }
    }

    fn deliveries(&mut self, deliveries: &Value) {
        let Some(deliveries) = deliveries.as_array().filter(|list| !list.is_empty()) else { return };
        self.title("Deliveries");
        let rows: Vec<_> = deliveries.iter().map(super::deliveries::row).collect();
        for line in table::lines(&rows, &[], self.paint) {
            self.line(&format!("  {line}"));
        }
    }
}

/// What an event waits for that is run again by itself, if that comes soon enough.
fn waits_for(waits: &Value) -> String {
    match waits["approval"].as_i64() {
        Some(id) => format!("approval {id}; within a day `nexus project approve {id}` has it run again"),
        None if waits["for"] == "project_source" => {
            "its project's definition or repository, which is tried again within a day; see `nexus project show`".to_owned()
        }
        None => "the configuration of its project, which has it run again within a day; see `nexus project show`".to_owned(),
    }
}

fn run_row(run: &Value, zone: &TimeZone) -> [Cell; 4] {
    let status = run["status"].as_str().unwrap_or("-");
    let color = match status {
        "finished" => Color::Green,
        "running" => Color::Yellow,
        _ => Color::Red,
    };
    let started = run["started_at"].as_i64().map_or_else(|| "-".to_owned(), |ms| units::clock(ms, zone));
    [
        Cell::new(run["attempt"].to_string()),
        Cell::new(run["run_id"].as_str().unwrap_or("-")),
        Cell::colored(started, Color::Dim),
        Cell::colored(status, color),
    ]
}

/// What one plugin had to do with a stage.
fn hook_line(hook: &Value) -> String {
    let name = visible(hook["plugin"].as_str().unwrap_or("-"));
    let took = hook["ms"].as_f64().map_or_else(|| "-".to_owned(), units::milliseconds);
    let error = hook["error"].as_str().map(|error| format!(": {}", one_line(error, REASON_CHARS_MAX))).unwrap_or_default();
    format!("plugin {name} {took}{error}")
}

/// What one automation said about the event.
fn automation_line(result: &Value) -> String {
    let did: Vec<&str> = result["did"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let took = result["ms"].as_f64().map_or_else(|| "-".to_owned(), units::milliseconds);
    let again = if result["repeated"] == true { ", as before" } else { "" };
    let said = match result["error"].as_str() {
        Some(error) => format!("failed: {error}"),
        None if did.is_empty() => "nothing".to_owned(),
        None => did.join(", "),
    };
    visible(&format!("{} {took}  {said}{again}", result["automation"].as_str().unwrap_or("-")))
}

fn stage_row(stage: &Value, zone: &TimeZone) -> [Cell; 4] {
    let started = stage["started_at"].as_i64().map_or_else(|| "-".to_owned(), |ms| units::clock(ms, zone));
    let took = stage["duration_ms"].as_f64().map_or_else(|| "-".to_owned(), units::milliseconds);
    let end = match (stage["error"].as_str(), stage["exit_reason"].as_str()) {
        (Some(error), _) => Cell::colored(one_line(error, REASON_CHARS_MAX), Color::Red),
        (None, Some(reason)) => Cell::colored(one_line(reason, REASON_CHARS_MAX), Color::Yellow),
        (None, None) => Cell::new(""),
    };
    [Cell::new(stage["stage"].as_str().unwrap_or("-")), Cell::colored(started, Color::Dim), Cell::new(took), end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_trace_tells_the_story() {
        let start = 1_770_301_800_000_i64;
        let trace = json!({
            "request": {
                "request_id": "req_1", "event_seq": 12, "event_id": "cli:a", "channel": "cli", "account_id": "default", "status": "completed",
                "stage": "finalize", "session": "dm:cli:local", "agent": "echo", "attempts": 1, "late": 0, "created_at": start,
                "completed_at": start + 1234, "reason": null,
                "trace": {
                    "principal": { "type": "owner" },
                    "access": { "decision": "allow", "why": ["allowed: a principal of type owner needs no policy"] },
                    "response": { "content": "hello", "stop_reason": "end_turn", "duration_ms": 12.0 },
                    "pipeline": [
                        { "stage": "receiveEvent", "started_at": start, "duration_ms": 0.3 },
                        { "stage": "runAgent", "started_at": start + 1, "duration_ms": 1230.0, "error": "slow\nmodel" }
                    ]
                }
            },
            "event": { "content": "hello" },
            "deliveries": [{ "delivery_id": "dlv_1", "status": "sent", "attempts": 1, "channel": "cli", "target": "default", "error": null }],
            "runs": []
        });
        let expected = "\
Request req_1 completed
  Event:    cli:a (#12, cli/default)
  From:     owner
  Session:  dm:cli:local
  Agent:    echo
  Attempts: 1
  Created:  2026-02-05 14:30:00, took 1,234ms

Text
  hello

Stages
  receiveEvent  14:30:00.000  0.3ms
  runAgent      14:30:00.001  1,230ms  slow model

Access: allow
  allowed: a principal of type owner needs no policy

Response (end_turn, 12ms)
  hello

Deliveries
  dlv_1  sent  attempts: 1  → cli default";
        assert_eq!(render(&trace, Paint::PLAIN, &TimeZone::UTC), expected);
    }

    #[test]
    fn an_interrupted_request_says_what_to_do() {
        let start = 1_770_301_800_000_i64;
        let run = |n: u32, turn: Value| {
            let run_id = format!("run_{n}");
            json!({ "run_id": run_id, "attempt": n, "status": "interrupted", "started_at": start, "turn": turn })
        };
        let mut trace = json!({
            "request": {
                "request_id": "req_1", "event_seq": 3, "event_id": "a:1", "channel": "a", "account_id": "b", "status": "failed",
                "stage": "runAgent", "attempts": 2, "reason": "interrupted",
                "trace": {
                    "response": { "content": "half", "stop_reason": "aborted", "error": "interrupted" },
                    "pipeline": [{ "stage": "runAgent", "started_at": start, "duration_ms": null, "error": "attempt 2: interrupted" }]
                }
            },
            "event": null, "deliveries": [], "runs": [run(1, json!({ "assistant": "quarter" })), run(2, json!({ "assistant": "half" }))],
            "replay_of": null, "replays": []
        });
        let expected = "\
Request req_1 failed
  Reason:   interrupted
  Event:    a:1 (#3, a/b)
  Attempts: 2
  Run again: nexus trace retry req_1

Stages
  runAgent  14:30:00.000  -  attempt 2: interrupted

Response (aborted)
  half
  interrupted

Runs
  1  run_1  14:30:00.000  interrupted
  2  run_2  14:30:00.000  interrupted

Said before run_1 was interrupted
  quarter";
        assert_eq!(render(&trace, Paint::PLAIN, &TimeZone::UTC), expected);
        trace["replays"] =
            json!([{ "request_id": "req_2", "event_id": "a:1#replay:k" }, { "request_id": null, "event_id": "a:1#replay:l" }]);
        let text = render(&trace, Paint::PLAIN, &TimeZone::UTC);
        assert!(text.contains("  Replayed as: req_2, a:1#replay:l\n") && !text.contains("Run again"), "{text}");
        trace["replay_of"] = json!({ "request_id": "req_0", "event_id": "a:1" });
        assert!(render(&trace, Paint::PLAIN, &TimeZone::UTC).contains("  Replay of: req_0\n"));
        trace["waits"] = json!({ "for": "project_approval", "approval": 3 });
        let text = render(&trace, Paint::PLAIN, &TimeZone::UTC);
        assert!(text.contains("  Waits for: approval 3; within a day"), "{text}");
        trace["waits"] = json!({ "for": "project_source", "approval": null });
        let text = render(&trace, Paint::PLAIN, &TimeZone::UTC);
        assert!(text.contains("  Waits for: its project's definition or repository"), "{text}");
    }

    #[test]
    fn an_unfinished_or_pruned_request_is_no_problem() {
        let trace = json!({ "request": { "request_id": "req_2", "event_seq": 3, "event_id": "a:1", "channel": "a", "account_id": "b",
            "status": "waiting", "stage": "runAgent", "trace": null }, "event": null, "deliveries": [] });
        let text = render(&trace, Paint::PLAIN, &TimeZone::UTC);
        assert_eq!(text, "Request req_2 waiting\n  Stage:    runAgent\n  Event:    a:1 (#3, a/b)\n  Attempts: 0");
    }
}
