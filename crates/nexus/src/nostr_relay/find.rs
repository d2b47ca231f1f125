//! Looks up what is stored for the filters of a REQ, newest first, ties by the lowest id (NIP-01). It changes nothing.

use super::filter::Filter;
use super::limits::FOUND_BYTES_MAX;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Stored events as they are handed out, in their order.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) events: Vec<String>,
    /// There are more, which is too much to be told at once.
    pub(super) is_cut: bool,
}

/// Finds what any of the filters wants; `now_s` says what is expired.
pub(super) fn find(connection: &Connection, filters: &[Filter], now_s: i64) -> rusqlite::Result<Found> {
    let mut rows: BTreeMap<(Reverse<i64>, String), String> = BTreeMap::new();
    let (mut bytes, mut is_cut) = (0, false);
    for filter in filters {
        let (sql, values) = query(filter, now_s);
        let mut statement = connection.prepare(&sql)?;
        let mut found = statement.query(params_from_iter(values))?;
        while let Some(row) = found.next()? {
            let key: (Reverse<i64>, String) = (Reverse(row.get(0)?), row.get(1)?);
            if rows.contains_key(&key) {
                continue;
            }
            let json: String = row.get(2)?;
            if bytes + json.len() > FOUND_BYTES_MAX {
                is_cut = true;
                break;
            }
            bytes += json.len();
            rows.insert(key, json);
        }
    }
    Ok(Found { events: rows.into_values().collect(), is_cut })
}

/// The filter as a query, and its values in their order.
fn query(filter: &Filter, now_s: i64) -> (String, Vec<Value>) {
    let mut values = Vec::new();
    let mut conditions = vec![format!("(expires_at IS NULL OR expires_at > {now_s})")];
    if let Some(ids) = &filter.ids {
        conditions.push(among("id", ids, &mut values));
    }
    if let Some(authors) = &filter.authors {
        conditions.push(among("pubkey", authors, &mut values));
    }
    if let Some(kinds) = &filter.kinds {
        let kinds: Vec<String> = kinds.iter().map(u16::to_string).collect();
        conditions.push(format!("kind IN ({})", kinds.join(",")));
    }
    if let Some(since) = filter.since {
        conditions.push(format!("created_at >= {}", clamped(since)));
    }
    if let Some(until) = filter.until {
        conditions.push(format!("created_at <= {}", clamped(until)));
    }
    for (name, wanted) in &filter.tags {
        values.push(Value::Text(name.clone()));
        let wanted = among("value", wanted, &mut values);
        conditions.push(format!("seq IN (SELECT event FROM tags WHERE name = ? AND {wanted})"));
    }
    let conditions = conditions.join(" AND ");
    let sql = format!("SELECT created_at, id, json FROM events WHERE {conditions} ORDER BY created_at DESC, id LIMIT {}", filter.limit);
    (sql, values)
}

/// `column IN (?, ?)`, and its values to the others.
fn among(column: &str, wanted: &[String], values: &mut Vec<Value>) -> String {
    values.extend(wanted.iter().cloned().map(Value::Text));
    format!("{column} IN ({})", vec!["?"; wanted.len()].join(","))
}

fn clamped(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
