//! What is found in one agent's cortex, best first. It reads; the expression is made by
//! `nexus_core::search`, which no text can break.

use super::{CortexError, Kind};
use rusqlite::{Connection, params};
use serde::Serialize;
use serde_json::json;
use std::path::Path;
use std::time::Instant;

/// Words of a text that are shown around what was found.
const SNIPPET_WORDS: u32 = 24;
/// Longest text that is shown of one entry, in bytes: a word may be of any length.
pub const SNIPPET_BYTES_MAX: usize = 1024;
/// Steps of SQLite's machine between two looks at the clock.
const STEPS_BETWEEN_LOOKS: std::ffi::c_int = 1_000;

/// What is looked for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Of FTS5.
    pub expression: String,
    /// The label that the session had when it was said.
    pub session: Option<String>,
    /// Only what is a part of these turns.
    pub turns: Option<Vec<String>>,
    pub kind: Option<Kind>,
    /// Unix ms: nothing older.
    pub since: i64,
    pub limit: usize,
}

/// An entry that was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hit {
    pub kind: Kind,
    /// The event's id, or the turn's.
    pub source: String,
    pub session: String,
    pub channel: String,
    pub sender: String,
    /// Unix ms.
    pub at: i64,
    /// By bm25: the less, the better.
    pub score: f64,
    /// The text around what was found.
    pub snippet: String,
    /// As much of it as is kept.
    #[serde(skip)]
    pub text: String,
}

/// The best entries of the file at `path`, as long as `take` answers true to one; none of a file that isn't
/// there. Blocks, until about `until`.
///
/// # Errors
/// [`CortexError`]; `Failed` with SQLite's interruption when it takes longer.
pub fn each(path: &Path, ask: &Ask, until: Instant, mut take: impl FnMut(Hit) -> bool) -> Result<(), CortexError> {
    if super::identity(path)?.is_none() {
        return Ok(());
    }
    let failed = CortexError::of(path);
    let mut connection = crate::ledger::read_only(path).map_err(&failed)?;
    if !is_made(&connection).map_err(&failed)? {
        return Ok(()); // by a daemon that was killed before the first page
    }
    connection.progress_handler(STEPS_BETWEEN_LOOKS, Some(move || Instant::now() >= until)).map_err(&failed)?;
    for (id, score) in ranked(&connection, ask).map_err(&failed)? {
        if !take(hit(&connection, &ask.expression, id, score).map_err(&failed)?) {
            break;
        }
    }
    Ok(())
}

fn is_made(connection: &Connection) -> rusqlite::Result<bool> {
    connection.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'words'")?.exists([])
}

/// Places and scores only: what is shown of a text would be made for each that has the words.
fn ranked(connection: &Connection, ask: &Ask) -> rusqlite::Result<Vec<(i64, f64)>> {
    let sql = "SELECT e.id, bm25(words) AS score FROM words CROSS JOIN entries e ON e.id = words.rowid
               WHERE words MATCH ?1 AND (?2 IS NULL OR e.session = ?2) AND (?3 IS NULL OR e.kind = ?3) AND e.at >= ?4
                 AND (?6 IS NULL OR e.turn IN (SELECT value FROM json_each(?6)))
               ORDER BY score, e.at DESC, e.id DESC LIMIT ?5";
    let kind = ask.kind.map(Kind::as_str);
    let turns = ask.turns.as_ref().map(|turns| json!(turns).to_string());
    connection
        .prepare(sql)?
        .query_map(params![ask.expression, ask.session, kind, ask.since, ask.limit, turns], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

fn hit(connection: &Connection, expression: &str, id: i64, score: f64) -> rusqlite::Result<Hit> {
    let sql = "SELECT e.kind, e.source, e.session, e.channel, e.sender, e.at, e.text, snippet(words, 0, '', '', '…', ?3)
               FROM words CROSS JOIN entries e ON e.id = words.rowid WHERE words MATCH ?1 AND words.rowid = ?2";
    connection.prepare_cached(sql)?.query_row(params![expression, id, SNIPPET_WORDS], |row| {
        let snippet = row.get_ref(7)?.as_str()?;
        Ok(Hit {
            kind: if row.get_ref(0)?.as_str()? == Kind::Turn.as_str() { Kind::Turn } else { Kind::Event },
            source: row.get(1)?,
            session: row.get(2)?,
            channel: row.get(3)?,
            sender: row.get(4)?,
            at: row.get(5)?,
            score,
            snippet: nexus_core::search::cut(snippet, SNIPPET_BYTES_MAX).to_owned(),
            text: row.get(6)?,
        })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::entry;
    use super::super::{Entry, apply, open, path};
    use super::*;
    use nexus_core::search::{all_of, any_of};
    use proptest::prelude::*;
    use std::time::Duration;

    fn made(entries: &[Entry]) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let file = path(directory.path(), "helper");
        apply(&mut open(&file, 1).unwrap(), 1, entries).unwrap();
        (directory, file)
    }

    fn ask(question: &str) -> Ask {
        Ask { expression: all_of(question).unwrap(), session: None, turns: None, kind: None, since: 0, limit: 10 }
    }

    fn sources(file: &Path, ask: &Ask) -> Vec<String> {
        let mut found = Vec::new();
        let until = Instant::now() + Duration::from_secs(60);
        each(file, ask, until, |hit| {
            found.push(hit.source);
            true
        })
        .unwrap();
        found
    }

    #[test]
    fn words_phrases_and_beginnings_find_what_has_them() {
        let (_directory, file) =
            made(&[entry("1", "The café opens at nine"), entry("2", "nine opens the day"), entry("3", "Invoices of March")]);
        assert_eq!(sources(&file, &ask("CAFE")), ["1"]);
        assert_eq!(sources(&file, &ask("\"opens at\"")), ["1"]);
        assert_eq!(sources(&file, &ask("invo*")), ["3"]);
        assert_eq!(sources(&file, &ask("opens nine")).len(), 2);
        assert!(sources(&file, &ask("invo")).is_empty());
        assert!(sources(&file.with_file_name("nobody.db"), &ask("x")).is_empty());
    }

    #[test]
    fn of_equally_good_ones_the_newest_is_first_and_filters_hold() {
        let mut all: Vec<Entry> = (0..4).map(|n| Entry { at: n, ..entry(&n.to_string(), "the same words") }).collect();
        all[1].session = "other".into();
        all[2].kind = Kind::Turn;
        let (_directory, file) = made(&all);
        assert_eq!(sources(&file, &ask("words")), ["3", "2", "1", "0"]);
        assert_eq!(sources(&file, &Ask { session: Some("other".into()), ..ask("words") }), ["1"]);
        assert_eq!(sources(&file, &Ask { kind: Some(Kind::Turn), ..ask("words") }), ["2"]);
        assert_eq!(sources(&file, &Ask { since: 2, ..ask("words") }), ["3", "2"]);
        assert_eq!(sources(&file, &Ask { limit: 1, ..ask("words") }), ["3"]);
        let of = |turns: &[&str]| Ask { turns: Some(turns.iter().map(|turn| (*turn).to_owned()).collect()), ..ask("words") };
        assert_eq!(sources(&file, &of(&["turn_0", "turn_2", "turn_9", "\"]"])), ["2", "0"]);
        assert!(sources(&file, &of(&[])).is_empty());
    }

    #[test]
    fn of_a_long_text_what_is_around_the_words_is_shown() {
        let text = format!("{}needle {}", "hay ".repeat(1000), "straw ".repeat(1000));
        let giant = "x".repeat(50_000);
        let (_directory, file) = made(&[entry("1", &text), entry("2", &format!("pin {giant}"))]);
        let mut shown = Vec::new();
        for question in ["needle", "pin"] {
            each(&file, &ask(question), Instant::now() + Duration::from_secs(60), |hit| {
                assert!(hit.text.len() > 5_000);
                shown.push(hit.snippet);
                true
            })
            .unwrap();
        }
        assert!(shown[0].contains("hay needle straw") && shown[0].len() < 400, "{}", shown[0]);
        assert!(shown[1].starts_with("pin ") && shown[1].len() <= SNIPPET_BYTES_MAX);
    }

    #[test]
    fn a_search_whose_time_is_over_ends() {
        let all: Vec<Entry> = (0..2000).map(|n| entry(&n.to_string(), "the same words")).collect();
        let (_directory, file) = made(&all);
        let error = each(&file, &Ask { limit: 2000, ..ask("words") }, Instant::now(), |_| true).unwrap_err();
        let CortexError::Failed { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.sqlite_error_code(), Some(rusqlite::ErrorCode::OperationInterrupted));
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_search(text in "(?s)[\"* a-c\\x00-\\x1f()^:+{}NEARORAND-]{0,60}|.{0,100}") {
            let connection = Connection::open_in_memory().unwrap();
            connection.execute_batch(super::super::STEPS[0].sql).unwrap();
            super::super::add(&connection, &entry("1", "a b c NEAR \u{301}x")).unwrap();
            for expression in [all_of(&text), any_of(&text)].into_iter().flatten() {
                let ask = Ask { expression, session: None, turns: None, kind: None, since: 0, limit: 10 };
                for (id, score) in ranked(&connection, &ask).unwrap() {
                    hit(&connection, &ask.expression, id, score).unwrap();
                }
            }
        }
    }
}
