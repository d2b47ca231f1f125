//! `nexus search`: what agents were asked and what they answered, found by its words.

use super::client::{Client, if_running};
use super::failure::{Exit, Failure};
use super::out::{Color, Out, Paint, note, one_line, visible};
use super::{Global, block_on, ledger, units};
use crate::clock;
use crate::ledger::cortex::{self, Kind};
use crate::ledger::lock;
use crate::query;
use crate::search::{HITS_DEFAULT, HITS_MAX, Question, SEARCH_LIMIT, SearchError, agents, look};
use anyhow::Context;
use jiff::tz::TimeZone;
use nexus_core::search::QUERY_BYTES_MAX;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

const CONTROL_PATH: &str = "/control/search";
const REBUILD_PATH: &str = "/control/search/rebuild";
/// Most hits that can be asked for.
const LIMIT_MAX: i64 = HITS_MAX as i64;
/// Longest text of a hit, in characters.
const TEXT_CHARS_MAX: usize = 300;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  nexus search dentist\n  nexus search '\"to be\" quest*' --agent helper --since 7d\n  nexus search --rebuild"
)]
pub(crate) struct Args {
    /// Words that all have to be there; "several words" as they stand, word* for its beginning
    #[arg(required_unless_present = "rebuild", conflicts_with = "rebuild", value_name = "QUERY")]
    query: Vec<String>,
    /// Only what this agent was asked and answered
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Only of this session
    #[arg(long, value_name = "LABEL", conflicts_with = "rebuild")]
    session: Option<String>,
    /// Only what came in (event), or what the agent said (turn)
    #[arg(long, conflicts_with = "rebuild", value_parser = clap::builder::PossibleValuesParser::new(Kind::WORDS))]
    kind: Option<String>,
    /// Nothing older: 90s, 30m, 12h, 7d or 2w
    #[arg(long, value_name = "AGE", conflicts_with = "rebuild", value_parser = age_ms)]
    since: Option<i64>,
    /// How many at most [default: 10]
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "rebuild", value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
    limit: Option<u32>,
    /// Make the index anew out of the ledgers, that of one agent or of all
    #[arg(long)]
    rebuild: bool,
}

pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<Exit> {
    if args.rebuild {
        return block_on(rebuild(args.agent, global))?;
    }
    let query = args.query.join(" ");
    if query.len() > QUERY_BYTES_MAX {
        return Err(Failure::new(Exit::Usage, SearchError::TooLong.to_string()).into());
    }
    let question = Question {
        query,
        agent: args.agent,
        session: args.session,
        kind: args.kind.as_deref().and_then(Kind::parse),
        since: args.since.map(|age| clock::wall_ms().saturating_sub(age)),
        limit: args.limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(HITS_DEFAULT),
        text_bytes_max: 0,
    };
    block_on(search(&question, global))?
}

async fn search(question: &Question, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let asked = Client::new(&paths).post(CONTROL_PATH, &json!(question)).await;
    let answer = match if_running(asked)? {
        Some(answer) => answer,
        None => {
            let (directory, known) = offline(global)?;
            let found = look(&directory, question, known, Instant::now() + SEARCH_LIMIT).map_err(told)?;
            // Nobody fills the index now; what it lacks is unknown.
            json!({ "hits": found.hits, "damaged": found.damaged, "complete": false })
        }
    };
    show(&answer, global.out())?;
    Ok(Exit::Done)
}

async fn rebuild(agent: Option<String>, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let asked = Client::new(&paths).post(REBUILD_PATH, &json!({ "agent": agent })).await;
    let (answer, when) = match if_running(asked)? {
        Some(answer) => (answer, "the daemon is filling it"),
        None => {
            let (directory, known) = offline(global)?;
            let agents = agents(&directory, agent.as_deref(), known).map_err(told)?;
            put_away(&directory, &agents)?;
            (json!({ "agents": agents }), "the next start of the daemon fills it")
        }
    };
    let out = global.out();
    if out.json {
        out.json(&answer)?;
        return Ok(Exit::Done);
    }
    for agent in answer["agents"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        out.line(&format!("{}: the index is made anew; {when}", visible(agent)))?;
    }
    Ok(Exit::Done)
}

/// The directory of the indexes, and the agents that are configured or have turns.
fn offline(global: &Global) -> anyhow::Result<(PathBuf, BTreeSet<String>)> {
    let paths = global.paths()?;
    let config = ledger::configuration(&paths)?.config;
    let ledgers = paths.data_dir(&config.ledgers.directory);
    lock::refuse_half_restored(&ledgers)?;
    let mut known = query::agents_with_turns(&ledgers)?;
    known.extend(config.agents.named.into_keys());
    Ok((ledgers.join(cortex::DIRECTORY), known))
}

/// Removes indexes. No daemon can start meanwhile.
fn put_away(directory: &std::path::Path, agents: &BTreeSet<String>) -> anyhow::Result<()> {
    let ledgers = directory.parent().filter(|ledgers| ledgers.is_dir());
    let Some(ledgers) = ledgers else { return Ok(()) }; // nothing was ever recorded
    let _lock = lock::take(ledgers, Some("nexus search --rebuild"))?;
    agents.iter().try_for_each(|agent| cortex::discard(&cortex::path(directory, agent))).context("failed to put the index away")
}

fn told(error: SearchError) -> anyhow::Error {
    let exit = match &error {
        SearchError::UnknownAgent(_) => Some(Exit::NotFound),
        SearchError::TooLong => Some(Exit::Usage),
        SearchError::Late(_) | SearchError::Broken(_) | SearchError::List { .. } | SearchError::Index(_) | SearchError::Read(_) => None,
    };
    match exit {
        Some(exit) => Failure::new(exit, error.to_string()).into(),
        None => error.into(),
    }
}

fn show(answer: &Value, out: Out) -> anyhow::Result<()> {
    if out.json {
        return Ok(out.json(answer)?);
    }
    let hits = answer["hits"].as_array().map(Vec::as_slice).unwrap_or_default();
    let zone = TimeZone::system();
    for hit in hits {
        out.line(&row(hit, out.paint, &zone))?;
    }
    if hits.is_empty() {
        note("nothing found");
    }
    for agent in answer["damaged"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        note(&format!("the index of `{}` is damaged; the daemon makes it anew", visible(agent)));
    }
    let is_sound = answer["damaged"].as_array().is_some_and(Vec::is_empty);
    if answer["complete"] == false && is_sound && hits.is_empty() {
        note("the index may lack what was said last; a running daemon fills it");
    }
    Ok(())
}

/// `2026-02-05 14:30:00 helper dm:ann alice: hello  gmail:18c2f0`, with an arrow for what the agent said.
fn row(hit: &Value, paint: Paint, zone: &TimeZone) -> String {
    let text = |key: &str| hit[key].as_str().unwrap_or("-");
    let time = hit["at"].as_i64().map_or_else(|| "-".to_owned(), |ms| units::second(ms, zone));
    let is_turn = text("kind") == Kind::Turn.as_str();
    let speaker = if is_turn { format!("→ {}", text("sender")) } else { text("sender").to_owned() };
    format!(
        "{} {} {}: {}  {}",
        paint.apply(Color::Dim, &time),
        visible(&format!("{} {}", text("agent"), text("session"))),
        paint.apply(Color::Bold, &one_line(&speaker, TEXT_CHARS_MAX)),
        one_line(text("snippet"), TEXT_CHARS_MAX),
        paint.apply(Color::Dim, &visible(text("source"))),
    )
}

/// `7d` in milliseconds.
fn age_ms(text: &str) -> Result<i64, String> {
    let wrong = || "write a number and one of s, m, h, d, w, as in 7d".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let unit_ms: i64 = match unit {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        'w' => 604_800_000,
        _ => return Err(wrong()),
    };
    let count: u32 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
    Ok(i64::from(count).saturating_mul(unit_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_a_number_and_a_unit() {
        let cases = [("90s", 90_000), ("1m", 60_000), ("12h", 43_200_000), ("7d", 604_800_000), ("2w", 1_209_600_000), ("0s", 0)];
        for (text, ms) in cases {
            assert_eq!(age_ms(text), Ok(ms), "{text}");
        }
        for wrong in ["", "d", "7", "7 d", "-1d", "7ä", "4294967296d", "1.5h", "soon"] {
            assert!(age_ms(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_row_tells_who_said_what_harmlessly() {
        let mut hit = json!({
            "agent": "helper", "kind": "event", "source": "gmail:1", "session": "dm:ann", "channel": "gmail", "sender": "al\u{1b}ice",
            "at": 1_770_301_800_000_i64, "score": -1.5, "snippet": "hello\nworld"
        });
        assert_eq!(row(&hit, Paint::PLAIN, &TimeZone::UTC), "2026-02-05 14:30:00 helper dm:ann al\u{fffd}ice: hello world  gmail:1");
        hit["kind"] = "turn".into();
        hit["source"] = "turn_1".into();
        assert_eq!(row(&hit, Paint::PLAIN, &TimeZone::UTC), "2026-02-05 14:30:00 helper dm:ann → al\u{fffd}ice: hello world  turn_1");
    }
}
