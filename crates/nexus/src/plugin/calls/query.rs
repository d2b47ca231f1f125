//! `ledger.query`: one question in SQL to one ledger, on a connection of its own that can't do anything
//! but read, within limits on time, memory and answer. Nothing a plugin asks counts as trouble of a ledger.

use super::CallError;
use super::params::{Params, wrong};
use super::shapes::{QueryAnswer, QueryAsk};
use crate::ledger::{Ledgers, Readers};
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::types::{Value as Sql, ValueRef};
use rusqlite::{Connection, ErrorCode, InterruptHandle, params_from_iter};
use serde_json::{Number, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};

/// Longest question. Statements behind the first are looked at by recursion: their number must be small.
const SQL_BYTES_MAX: usize = 8 * 1024;
const PARAMS_MAX: usize = 100;
const PARAMS_BYTES_MAX: usize = 64 * 1024;
const ROWS_MAX: usize = 1_000;
const ROWS_BYTES_MAX: usize = 512 * 1024;
/// What a cell without a text counts, and what is around each.
const CELL_BYTES: usize = 8;
/// Longest value that a question may come across or make.
const VALUE_BYTES_MAX: i32 = 64 * 1024;
const TIME_MAX: Duration = Duration::from_secs(2);
/// Steps of SQLite's machine between two looks at the clock.
const STEPS_PER_LOOK: i32 = 20;
/// A long pattern takes long for each row, which nothing interrupts.
const PATTERN_BYTES_MAX: i32 = 256;
const EXPRESSION_LEVELS_MAX: i32 = 100;
const COMPOUND_MAX: i32 = 50;
const READS: &str = "events, agents, identity or nexus";
const LEDGER_BYTES_MAX: usize = 64;
/// Which ledger is asked if none is named.
const LEDGER_DEFAULT: &str = "events";

/// Functions that read nothing but their arguments and take time in proportion to them: `instr`, `replace`
/// and `trim` take the product of two lengths in one step, which nothing interrupts.
const FUNCTIONS: &[&str] = &[
    "->",
    "->>",
    "abs",
    "avg",
    "char",
    "coalesce",
    "concat",
    "concat_ws",
    "count",
    "current_date",
    "current_time",
    "current_timestamp",
    "date",
    "datetime",
    "dense_rank",
    "first_value",
    "glob",
    "group_concat",
    "hex",
    "if",
    "ifnull",
    "iif",
    "json",
    "json_array",
    "json_array_length",
    "json_extract",
    "json_group_array",
    "json_group_object",
    "json_object",
    "json_quote",
    "json_type",
    "json_valid",
    "julianday",
    "lag",
    "last_value",
    "lead",
    "length",
    "like",
    "lower",
    "max",
    "min",
    "nullif",
    "ntile",
    "octet_length",
    "quote",
    "rank",
    "round",
    "row_number",
    "sign",
    "strftime",
    "string_agg",
    "substr",
    "substring",
    "sum",
    "time",
    "total",
    "typeof",
    "unicode",
    "unixepoch",
    "upper",
];
/// What is no table of the ledger and may be read as one.
const TABLES: [&str; 3] = ["sqlite_master", "json_each", "json_tree"];

/// Answers `{sql, params?, ledger?}` with `{columns, rows}`.
pub(super) async fn call(ledgers: &Ledgers, room: &Arc<Semaphore>, params: Value) -> Result<Value, CallError> {
    let mut params = Params::of::<QueryAsk>(params)?;
    let ledger = params.optional_text("ledger", LEDGER_BYTES_MAX)?.unwrap_or_else(|| LEDGER_DEFAULT.to_owned());
    let readers = readers(ledgers, &ledger).ok_or_else(|| wrong("ledger", format!("must be one of {READS}")))?.clone();
    let question = Question::read(&mut params)?;
    let failed = |source: rusqlite::Error| CallError::failed("open the ledger", source);
    let room = room.clone().acquire_owned().await.map_err(|error| CallError::failed("ask the ledger", error))?;
    let ((tell, handle), (running, ended)) = (oneshot::channel(), oneshot::channel());
    let asked = crate::watch::blocking("plugin.query", move || {
        let _to_the_end = (room, running); // whether or not who asked still waits
        // A connection of its own, which is closed behind it: what is forbidden on it is for this question.
        let connection = readers.open().map_err(failed)?;
        tell.send(connection.get_interrupt_handle()).ok(); // it is waited for, below
        question.answer(connection, TIME_MAX)
    });
    crate::watch::helper("plugin.interrupt", interrupt(handle, ended));
    asked.await.map_err(|error| CallError::failed("ask the ledger", error))?
}

/// Interrupts a question that has not ended in its time: within one long step it doesn't look at the clock itself.
async fn interrupt(handle: oneshot::Receiver<InterruptHandle>, ended: oneshot::Receiver<()>) {
    let Ok(handle) = handle.await else { return }; // it never began
    if tokio::time::timeout(TIME_MAX, ended).await.is_err() {
        handle.interrupt();
    }
}

fn readers<'l>(ledgers: &'l Ledgers, name: &str) -> Option<&'l Readers> {
    match name {
        "events" => Some(&ledgers.events.readers),
        "agents" => Some(&ledgers.agents.readers),
        "identity" => Some(&ledgers.identity.readers),
        "nexus" => Some(&ledgers.nexus.readers),
        _ => None,
    }
}

/// One statement with its values.
#[derive(Debug)]
struct Question {
    sql: String,
    values: Vec<Sql>,
}

impl Question {
    fn read(params: &mut Params) -> Result<Self, CallError> {
        let sql = params.text("sql", SQL_BYTES_MAX)?;
        let values = match params.take("params") {
            None => Vec::new(),
            Some(Value::Array(values)) => values,
            Some(_) => return Err(wrong("params", "must be a list")),
        };
        if values.len() > PARAMS_MAX {
            return Err(CallError::Limit(format!("`params` has {} values; at most {PARAMS_MAX} are taken", values.len())));
        }
        let values = values.into_iter().enumerate().map(|(n, value)| bound(n, value)).collect::<Result<Vec<_>, _>>()?;
        let bytes: usize = values.iter().map(|value| if let Sql::Text(text) = value { text.len() } else { CELL_BYTES }).sum();
        if bytes > PARAMS_BYTES_MAX {
            return Err(CallError::Limit(format!("`params` have {bytes} bytes; at most {PARAMS_BYTES_MAX} are taken")));
        }
        Ok(Self { sql, values })
    }

    fn answer(&self, mut connection: Connection, time_max: Duration) -> Result<Value, CallError> {
        guard(&mut connection, time_max).map_err(|error| CallError::failed("prepare the ledger for a question", error))?;
        let mut statement = connection.prepare(&self.sql).map_err(judge)?;
        if statement.column_count() == 0 || !statement.readonly() {
            return Err(wrong("sql", "must be a SELECT"));
        }
        let (wanted, given) = (statement.parameter_count(), self.values.len());
        if wanted != given {
            return Err(wrong("params", format!("has {given} values, the question has places for {wanted}")));
        }
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let mut found = statement.query(params_from_iter(self.values.iter())).map_err(judge)?;
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while let Some(row) = found.next().map_err(judge)? {
            if rows.len() == ROWS_MAX {
                return Err(CallError::Limit(format!("the answer has more than {ROWS_MAX} rows; put a LIMIT to the question")));
            }
            let mut cells = Vec::with_capacity(columns.len());
            for (n, column) in columns.iter().enumerate() {
                let cell = row.get_ref(n).map_err(judge)?;
                bytes += CELL_BYTES + cell.as_bytes_or_null().ok().flatten().map_or(0, <[u8]>::len);
                if bytes > ROWS_BYTES_MAX {
                    return Err(CallError::Limit(format!("the answer has more than {ROWS_BYTES_MAX} bytes; ask for less")));
                }
                cells.push(json_of(cell, column)?);
            }
            rows.push(cells);
        }
        Ok(json!(QueryAnswer { columns, rows }))
    }
}

/// A value of the plugin's for the place with this number, from 0.
fn bound(n: usize, value: Value) -> Result<Sql, CallError> {
    let field = || format!("params[{n}]");
    match value {
        Value::Null => Ok(Sql::Null),
        Value::Bool(value) => Ok(Sql::Integer(value.into())),
        Value::String(text) => Ok(Sql::Text(text)),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Ok(Sql::Integer(whole)),
            // Beyond a ledger's integers, and not to be rounded silently.
            (None, _) if number.is_u64() => Err(wrong(field(), "is beyond 9223372036854775807")),
            (None, Some(fraction)) => Ok(Sql::Real(fraction)),
            (None, None) => Err(wrong(field(), "is no usable number")),
        },
        Value::Array(_) | Value::Object(_) => Err(wrong(field(), "must be null, true, false, a number or a text")),
    }
}

fn json_of(cell: ValueRef<'_>, column: &str) -> Result<Value, CallError> {
    let column = super::params::shown(column);
    match cell {
        ValueRef::Null => Ok(Value::Null),
        ValueRef::Integer(whole) => Ok(Value::from(whole)),
        ValueRef::Real(fraction) => {
            let number = Number::from_f64(fraction).map(Value::Number);
            number.ok_or_else(|| wrong("sql", format!("has an infinite number in column `{column}`, which JSON can't say")))
        }
        ValueRef::Text(bytes) => {
            let text = std::str::from_utf8(bytes).map(Value::from);
            text.map_err(|_| wrong("sql", format!("has text in column `{column}` that is not UTF-8; ask for hex({column})")))
        }
        ValueRef::Blob(_) => Err(wrong("sql", format!("has a blob in column `{column}`; ask for hex({column})"))),
    }
}

/// From now on this connection only reads, and for so long. What comes first can't be undone by what is asked.
fn guard(connection: &mut Connection, time_max: Duration) -> rusqlite::Result<()> {
    connection.execute_batch("PRAGMA query_only = ON; PRAGMA trusted_schema = OFF;")?;
    let names = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')";
    let mut tables = connection.prepare(names)?.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<BTreeSet<String>>>()?;
    tables.extend(TABLES.map(str::to_owned));
    for (limit, value) in [
        (Limit::SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX),
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, PATTERN_BYTES_MAX),
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, EXPRESSION_LEVELS_MAX),
        (Limit::SQLITE_LIMIT_COMPOUND_SELECT, COMPOUND_MAX),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    ] {
        connection.set_limit(limit, value)?;
    }
    let began = Instant::now();
    connection.progress_handler(STEPS_PER_LOOK, Some(move || began.elapsed() > time_max))?;
    connection.authorizer(Some(move |asked: AuthContext<'_>| decide(&asked.action, &tables)))
}

fn decide(action: &AuthAction<'_>, tables: &BTreeSet<String>) -> Authorization {
    // Without a column it is only known how many rows there are; subqueries are told of like this.
    let is_read = matches!(action, AuthAction::Read { table_name, column_name } if column_name.is_empty() || tables.contains(*table_name));
    let is_function = matches!(action, AuthAction::Function { function_name }
        if FUNCTIONS.iter().any(|known| known.eq_ignore_ascii_case(function_name)));
    let is_harmless = is_read || is_function || matches!(action, AuthAction::Select | AuthAction::Recursive);
    if is_harmless { Authorization::Allow } else { Authorization::Deny }
}

/// Whose fault an error of SQLite is.
fn judge(error: rusqlite::Error) -> CallError {
    let code = error.sqlite_error_code();
    let is = |one: ErrorCode| code == Some(one);
    if is(ErrorCode::OperationInterrupted) {
        return CallError::Limit(format!("the question took longer than {} ms", TIME_MAX.as_millis()));
    }
    if is(ErrorCode::TooBig) {
        return CallError::Limit(format!("the question came to a value of more than {VALUE_BYTES_MAX} bytes"));
    }
    if is(ErrorCode::AuthorizationForStatementDenied) {
        return wrong("sql", format!("may only read the ledger's tables: {}", message(&error)));
    }
    let is_ours = [ErrorCode::SystemIoFailure, ErrorCode::DatabaseCorrupt, ErrorCode::DatabaseBusy, ErrorCode::OutOfMemory];
    if is_ours.into_iter().any(is) {
        return CallError::failed("read the ledger", error);
    }
    wrong("sql", format!("is refused: {}", message(&error)))
}

/// What SQLite says, without the question itself.
fn message(error: &rusqlite::Error) -> String {
    if let rusqlite::Error::SqlInputError { msg, offset, .. } = error {
        return format!("{msg}, at character {offset}");
    }
    if let rusqlite::Error::SqliteFailure(_, Some(message)) = error {
        return message.clone();
    }
    error.to_string()
}

#[cfg(test)]
#[path = "query_tests.rs"]
mod tests;
