//! Questions that plugins ask, good and hostile, of ledgers with the real schemas.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::ledger::Ledger;
use serde_json::json;

/// Longer than any answer here takes on a machine under load.
const PATIENT: Duration = Duration::from_secs(60);
const BIG_ROW_BYTES: usize = 10 * 1024 * 1024;

/// A ledger of events with one event.
fn events() -> Connection {
    let connection = crate::samples::events_ledger();
    let sql = "INSERT INTO events (key, event_id, channel, account_id, adapter, direction, sender_id, peer_id, peer_kind, content_type,
                 timestamp, received_at, disposition, content, metadata)
               VALUES (zeroblob(16), 'fake:1', 'fake', 'me', 'fake', 'inbound', 'u', 'p', 'dm', 'text', 5, 6, 'run', 'hello', '{\"a\": [1, 2]}')";
    connection.execute(sql, []).unwrap();
    connection
}

fn ask_on(connection: Connection, sql: &str, params: Value) -> Result<Value, CallError> {
    let mut params = Params::new(json!({ "sql": sql, "params": params })).unwrap();
    Question::read(&mut params)?.answer(connection, PATIENT)
}

fn ask(sql: &str, params: Value) -> Result<Value, CallError> {
    ask_on(events(), sql, params)
}

fn refusal(sql: &str) -> String {
    ask(sql, json!([])).map_or_else(|error| error.told(), |answer| panic!("{sql} was answered: {answer}"))
}

#[test]
fn a_question_has_columns_and_rows() {
    let answer = ask(
        "SELECT seq, event_id, sender_name, timestamp * 0.5 AS half FROM events WHERE channel = ?1 AND timestamp > ?2",
        json!(["fake", 1]),
    );
    assert_eq!(answer.unwrap(), json!({ "columns": ["seq", "event_id", "sender_name", "half"], "rows": [[1, "fake:1", null, 2.5]] }));
    let none = ask("SELECT seq FROM events WHERE ?1 AND ?2 IS NULL", json!([false, null])).unwrap();
    assert_eq!(none, json!({ "columns": ["seq"], "rows": [] }));
}

#[test]
fn what_a_plugin_needs_is_allowed() {
    for sql in [
        "SELECT count(*) FROM events;",
        "SELECT count(*), max(seq), group_concat(channel) FROM events GROUP BY upper(channel) ORDER BY 1 -- all",
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10) SELECT count(*) FROM n",
        "SELECT e.event_id FROM events e JOIN cursors c ON c.account = e.account_id",
        "SELECT value FROM events, json_each(metadata, '$.a')",
        "SELECT metadata ->> '$.a[0]', json_extract(metadata, '$.a') FROM events",
        "SELECT row_number() OVER (ORDER BY seq), strftime('%Y', timestamp / 1000, 'unixepoch') FROM events WHERE content LIKE 'h%'",
        "SELECT hex(key) FROM events UNION SELECT 'x'",
        "SELECT name FROM sqlite_schema WHERE type = 'table'",
        "EXPLAIN QUERY PLAN SELECT * FROM events",
    ] {
        ask(sql, json!([])).unwrap_or_else(|error| panic!("{sql}: {}", error.told()));
    }
}

#[test]
fn the_view_of_traces_can_be_read() {
    for ledger in Ledger::ALL {
        let connection = Connection::open_in_memory().unwrap();
        ledger.migrations().iter().for_each(|step| connection.execute_batch(step.sql).unwrap());
        let sql = if ledger == Ledger::Nexus { "SELECT request_id, trace FROM nex_traces" } else { "SELECT count(*) FROM applied" };
        ask_on(connection, sql, json!([])).unwrap_or_else(|error| panic!("{ledger:?}: {}", error.told()));
    }
}

#[test]
fn nothing_but_reading_is_possible() {
    for sql in [
        "DELETE FROM events",
        "UPDATE events SET content = ''",
        "INSERT INTO applied VALUES ('x', 1)",
        "INSERT INTO applied VALUES ('x', 1) RETURNING seq",
        "WITH x AS (SELECT 1) DELETE FROM events",
        "WITH x AS (DELETE FROM events RETURNING seq) SELECT * FROM x",
        "CREATE TABLE t (x)",
        "CREATE TEMP TABLE t (x)",
        "CREATE TEMP VIEW v AS SELECT 1",
        "CREATE VIRTUAL TABLE temp.t USING fts5(x)",
        "DROP TABLE events",
        "ATTACH DATABASE ':memory:' AS other",
        "ATTACH '/tmp/other.db' AS other",
        "DETACH main",
        "VACUUM",
        "VACUUM INTO '/tmp/copy.db'",
        "PRAGMA query_only = OFF",
        "PRAGMA table_info(events)",
        "SELECT * FROM pragma_table_info('events')",
        "SELECT * FROM pragma_database_list",
        "SELECT * FROM dbstat",
        "SELECT load_extension('/tmp/x.so')",
        "SELECT randomblob(1000)",
        "SELECT zeroblob(1000)",
        "SELECT printf('%1000d', 1)",
        "SELECT replace(content, 'a', 'b') FROM events",
        "SELECT fts3_tokenizer('simple')",
        "BEGIN",
        "SAVEPOINT s",
        "REINDEX",
        "ANALYZE",
    ] {
        let told = refusal(sql);
        assert!(told.starts_with("`sql` "), "{sql}: {told}");
    }
}

#[test]
fn there_is_one_statement() {
    for sql in ["SELECT 1; SELECT 2", "SELECT 1; DELETE FROM events", "SELECT 1; ATTACH ':memory:' AS x"] {
        assert!(refusal(sql).starts_with("`sql` "), "{sql}");
    }
    assert!(refusal(&"SELECT 1;".repeat(900)).starts_with("`sql` "), "a tower of statements is looked at by recursion");
    assert!(refusal(&"SELECT 1;".repeat(1000)).contains("at most 8192"));
    for nothing in ["-- nothing", ";", "/* nothing */"] {
        assert!(refusal(nothing).starts_with("`sql` "), "{nothing}");
    }
    assert_eq!(refusal(" "), "`sql` must not be empty");
    assert_eq!(refusal("SELECT '\0'"), "`sql` contains a NUL character");
}

#[test]
fn a_question_without_an_end_is_ended() {
    let without_end = Question {
        sql: "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n".to_owned(),
        values: Vec::new(),
    };
    let error = without_end.answer(events(), Duration::from_millis(50)).unwrap_err();
    assert!(matches!(&error, CallError::Limit(what) if what.contains("took longer")), "{error:?}");
}

#[tokio::test]
async fn a_question_is_interrupted_from_outside_as_well() {
    let question = Question {
        sql: "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n".to_owned(),
        values: Vec::new(),
    };
    let ((tell, handle), (running, ended), (say, said)) = (oneshot::channel(), oneshot::channel(), oneshot::channel());
    let connection = events();
    tell.send(connection.get_interrupt_handle()).map_err(|_| "nobody waits for it").unwrap();
    std::thread::spawn(move || {
        let _running: oneshot::Sender<()> = running;
        // By its own clock it has all the time there is.
        drop(say.send(question.answer(connection, Duration::MAX)));
    });
    interrupt(handle, ended).await;
    let error = tokio::time::timeout(PATIENT, said).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(&error, CallError::Limit(what) if what.contains("took longer")), "{error:?}");
}

#[test]
fn an_answer_has_its_size() {
    let rows = |count: u32| format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n");
    assert_eq!(ask(&rows(1000), json!([])).unwrap()["rows"].as_array().unwrap().len(), ROWS_MAX);
    assert!(refusal(&rows(1001)).contains("more than 1000 rows"));
    let long =
        "WITH RECURSIVE n (i, t) AS (SELECT 1, 'x' UNION ALL SELECT i + 1, iif(i < 16, t || t, t) FROM n WHERE i < 40) SELECT t FROM n";
    assert!(refusal(long).contains("more than 524288 bytes"));
    let longer =
        "WITH RECURSIVE n (i, t) AS (SELECT 1, 'x' UNION ALL SELECT i + 1, t || t FROM n WHERE i < 60) SELECT max(length(t)) FROM n";
    assert!(refusal(longer).contains("a value of more than 65536 bytes"));
}

#[test]
fn a_row_of_ten_megabytes_is_one_that_can_be_passed_by() {
    let connection = events();
    connection.execute("UPDATE events SET content = ?1", ["x".repeat(BIG_ROW_BYTES)]).unwrap();
    let sql = "SELECT content FROM events";
    let error = ask_on(connection, sql, json!([])).unwrap_err();
    assert!(matches!(error, CallError::Limit(_)), "{error:?}");
    let connection = events();
    connection.execute("UPDATE events SET content = ?1", ["x".repeat(BIG_ROW_BYTES)]).unwrap();
    let answer = ask_on(connection, "SELECT event_id FROM events", json!([])).unwrap();
    assert_eq!(answer["rows"], json!([["fake:1"]]));
}

#[test]
fn what_json_cannot_say_is_told_and_not_changed() {
    assert!(refusal("SELECT key FROM events").contains("has a blob in column `key`; ask for hex(key)"));
    assert!(refusal("SELECT 9e999 AS far").contains("infinite number in column `far`"));
    assert!(refusal("SELECT CAST(x'ff' AS TEXT) AS t").contains("not UTF-8"));
}

#[test]
fn values_fit_their_places() {
    let told = |sql: &str, params: Value| ask(sql, params).unwrap_err().told();
    assert_eq!(told("SELECT ?1", json!([])), "`params` has 0 values, the question has places for 1");
    assert_eq!(told("SELECT 1", json!([1])), "`params` has 1 values, the question has places for 0");
    assert_eq!(told("SELECT ?1", json!("x")), "`params` must be a list");
    assert_eq!(told("SELECT ?1, ?2", json!([1, {}])), "`params[1]` must be null, true, false, a number or a text");
    assert_eq!(told("SELECT ?1", json!([18_446_744_073_709_551_615_u64])), "`params[0]` is beyond 9223372036854775807");
    assert!(told("SELECT ?1", json!(["x".repeat(PARAMS_BYTES_MAX + 1)])).contains("at most 65536"));
    assert!(told("SELECT 1", json!(vec![1; PARAMS_MAX + 1])).contains("at most 100"));
    let injected = ask("SELECT ?1", json!(["'; DROP TABLE events; --"])).unwrap();
    assert_eq!(injected["rows"], json!([["'; DROP TABLE events; --"]]));
}

#[test]
fn a_mistake_says_where_it_is_without_repeating_the_question() {
    let told = refusal("SELECT secret FROM events");
    assert!(told.starts_with("`sql` is refused: no such column: secret") && !told.contains("FROM events"), "{told}");
}
