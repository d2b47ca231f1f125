//! How one file follows another: it stores, in the transaction of its rows, the owner's seq up to
//! which it has applied. That is the only mechanism across files; a crash in between costs a repeat.

use super::optional;
use rusqlite::{Connection, params};

/// The seq of `source` that this file has applied, 0 at first.
pub fn applied(connection: &Connection, source: &str) -> rusqlite::Result<i64> {
    let sql = "SELECT seq FROM applied WHERE source = ?1";
    optional(connection.prepare_cached(sql)?.query_row([source], |row| row.get(0))).map(Option::unwrap_or_default)
}

/// Moves the mark of `source` to `upto`; false when it stands there already, so that the rows that
/// come with it are known and must not be applied twice.
pub fn advance(connection: &Connection, source: &str, upto: i64) -> rusqlite::Result<bool> {
    if applied(connection, source)? >= upto {
        return Ok(false);
    }
    let sql = "INSERT INTO applied VALUES (?1, ?2) ON CONFLICT (source) DO UPDATE SET seq = ?2";
    connection.prepare_cached(sql)?.execute(params![source, upto])?;
    Ok(true)
}
