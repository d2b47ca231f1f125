//! The verbs that show adapters and accounts. Without a daemon they show what is configured, and what
//! is known of it from the last run.

use super::edit::{no_account, no_adapter};
use crate::cli::client::{Client, ClientError, encoded};
use crate::cli::daemon::status::{Account, account_lines};
use crate::cli::failure::Exit;
use crate::cli::out::{Color, note, visible};
use crate::cli::table::{self, Cell};
use crate::cli::{Global, block_on, ledger, running};
use crate::clock;
use crate::daemon::Paths;
use crate::query::{self, KnownAccount, QueryError};
use nexus_core::config::Config;
use nexus_core::ids::AccountKey;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

/// Where there is nothing to show.
const NO_ADAPTERS: &str =
    "no adapter with an account is in use; register one with `nexus adapter register NAME --command PROGRAM --account ID`";

/// Accounts as the daemon tells them, and whether one runs.
struct Seen {
    answer: Value,
    running: bool,
}

/// What the daemon says about its accounts, or the configured ones, stopped.
fn look(global: &Global) -> anyhow::Result<Seen> {
    let paths = global.paths()?;
    let answer = running::ask(&paths, "/control/adapters")?;
    Ok(match answer {
        Some(answer) => Seen { answer, running: true },
        None => {
            let config = ledger::configuration(&paths)?.config;
            let known = known(&paths, &config)?;
            Seen { answer: configured(&config, &known, clock::wall_ms()), running: false }
        }
    })
}

/// What the ledgers know of the configured accounts. No ledger is no mistake: nothing ever ran.
fn known(paths: &Paths, config: &Config) -> anyhow::Result<HashMap<AccountKey, KnownAccount>> {
    let accounts = config.adapters.iter().flat_map(|(name, adapter)| adapter.accounts.keys().map(move |id| AccountKey::new(name, id)));
    let keys: Vec<AccountKey> = accounts.collect();
    match query::accounts(&paths.data_dir(&config.ledgers.directory), &keys) {
        Ok(known) => Ok(keys.into_iter().zip(known).collect()),
        Err(QueryError::NoLedger(_)) => Ok(HashMap::new()),
        Err(error @ (QueryError::HalfRestored(_) | QueryError::Schema(_) | QueryError::Read(_))) => Err(error.into()),
    }
}

/// The same shape as the daemon's answer. `now` is in Unix ms.
fn configured(config: &Config, known: &HashMap<AccountKey, KnownAccount>, now: i64) -> Value {
    let mut accounts = Vec::new();
    for (name, adapter) in &config.adapters {
        for (id, account) in &adapter.accounts {
            let known = known.get(&AccountKey::new(name, id)).cloned().unwrap_or_default();
            let age_ms = known.last_event_at.map(|at| u64::try_from(now.saturating_sub(at)).unwrap_or(0));
            accounts.push(json!({
                "adapter": name, "account": id, "channel": adapter.channel.clone().or(known.channel), "status": "stopped",
                "health": "unknown", "pid": null, "last_event_age_ms": age_ms, "events": known.events, "restarts": known.restarts,
                "last_error": known.last_error, "enabled": account.enabled
            }));
        }
    }
    let bare: Vec<&String> = config.adapters.iter().filter(|(_, adapter)| adapter.accounts.is_empty()).map(|(name, _)| name).collect();
    json!({ "adapters": accounts, "without_accounts": bare })
}

pub(crate) fn status(account: Option<&AccountKey>, global: &Global) -> anyhow::Result<Exit> {
    let Seen { mut answer, running } = look(global)?;
    if let (Some(wanted), Some(list)) = (account, answer["adapters"].as_array_mut()) {
        list.retain(|found| found["adapter"] == wanted.adapter.as_str() && found["account"] == wanted.account.as_str());
        if list.is_empty() {
            return Err(no_account(&wanted.to_string()).into());
        }
    }
    let out = global.out();
    if out.json {
        out.json(&answer)?;
        return Ok(Exit::Done);
    }
    let accounts: Vec<Account> = serde_json::from_value(answer["adapters"].take())?;
    if accounts.is_empty() {
        out.line(NO_ADAPTERS)?;
    } else if !running {
        out.line("NEX Daemon: not running; these accounts are configured:")?;
    }
    for line in account_lines(&accounts, out.paint) {
        out.line(&line)?;
    }
    Ok(Exit::Done)
}

pub(crate) fn list(global: &Global) -> anyhow::Result<Exit> {
    let Seen { mut answer, running } = look(global)?;
    let out = global.out();
    if out.json {
        out.json(&answer)?;
        return Ok(Exit::Done);
    }
    let accounts: Vec<Account> = serde_json::from_value(answer["adapters"].take())?;
    let bare: Vec<String> = serde_json::from_value(answer["without_accounts"].take()).unwrap_or_default();
    let rows = adapter_rows(&accounts, &bare, running);
    if rows.is_empty() {
        out.line(NO_ADAPTERS)?;
    }
    for line in table::lines(&rows, &[], out.paint) {
        out.line(&line)?;
    }
    Ok(Exit::Done)
}

/// One row per adapter, by name. `bare` are those without accounts.
fn adapter_rows(accounts: &[Account], bare: &[String], running: bool) -> Vec<[Cell; 3]> {
    let mut adapters: BTreeMap<&str, Vec<&Account>> = bare.iter().map(|name| (name.as_str(), Vec::new())).collect();
    for account in accounts {
        adapters.entry(&account.adapter).or_default().push(account);
    }
    let row = |(name, accounts): (&str, Vec<&Account>)| {
        let channel = accounts.iter().find_map(|account| account.channel.as_deref());
        let up = accounts.iter().filter(|account| account.status == "running").count();
        let disabled = accounts.iter().filter(|account| account.is_disabled()).count();
        let plural = if accounts.len() == 1 { "" } else { "s" };
        let mut count = match accounts.len() {
            0 => "no accounts".to_owned(),
            all if running => format!("{up}/{all} account{plural} running"),
            all => format!("{all} account{plural}"),
        };
        if disabled > 0 {
            count.push_str(&format!(", {disabled} disabled"));
        }
        let color = match (accounts.is_empty(), running && up + disabled < accounts.len()) {
            (true, _) => Color::Dim,
            (false, true) => Color::Yellow,
            (false, false) => Color::Green,
        };
        [Cell::new(name), Cell::new(channel.unwrap_or("-")), Cell::colored(count, color)]
    };
    adapters.into_iter().map(row).collect()
}

pub(crate) fn info(name: &str, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let path = format!("/control/adapters/{}/info", encoded(name));
    let info = match running::ask(&paths, &path)? {
        Some(info) => info,
        None => {
            let info = known_info(name, &paths)?;
            note("NEX Daemon: not running; this is what the adapter said when it was last asked:");
            info
        }
    };
    let out = global.out();
    if out.json {
        out.json(&info)?;
        return Ok(Exit::Done);
    }
    for (key, value) in info.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        out.line(&format!("{} {}", out.paint.apply(Color::Dim, &format!("{}:", visible(key))), plain(value)))?;
    }
    Ok(Exit::Done)
}

/// What an adapter said of itself in an earlier run.
fn known_info(name: &str, paths: &Paths) -> anyhow::Result<Value> {
    let config = ledger::configuration(paths)?.config;
    if !config.adapters.contains_key(name) {
        return Err(no_adapter(name).into());
    }
    let known = known(paths, &config)?;
    let info = known.into_iter().filter(|(key, _)| key.adapter == name).find_map(|(_, account)| account.info);
    // Only a daemon can ask it.
    info.ok_or_else(|| ClientError::NotRunning.into())
}

/// A value as a person reads it: lists of words without their JSON.
fn plain(value: &Value) -> String {
    let words: Option<Vec<&str>> = value.as_array().map(Vec::as_slice).unwrap_or_default().iter().map(Value::as_str).collect();
    let text = match (value.as_str(), value.as_array(), words) {
        (Some(text), _, _) => text.to_owned(),
        (None, Some(_), Some(words)) => words.join(", "),
        (None, _, _) => value.to_string(),
    };
    visible(&text)
}

pub(crate) fn accounts(name: &str, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let path = format!("/control/adapters/{}/accounts", encoded(name));
    let answer = block_on(async { Client::new(&paths).get(&path).await })??;
    let out = global.out();
    if out.json {
        out.json(&answer)?;
        return Ok(Exit::Done);
    }
    let rows = account_rows(&answer);
    if rows.is_empty() {
        out.line(&format!("adapter `{name}` has no accounts; add one with `nexus adapter account add {name} ID`"))?;
    }
    for line in table::lines(&rows, &[], out.paint) {
        out.line(&line)?;
    }
    Ok(Exit::Done)
}

/// Configured accounts first, then those that only the adapter knows.
fn account_rows(answer: &Value) -> Vec<[Cell; 4]> {
    let reported = answer["reported"].as_array().map(Vec::as_slice).unwrap_or_default();
    let configured: Vec<&str> = answer["configured"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let describe = |id: &str, account: Option<&Value>, is_configured: bool| {
        let text = |key: &str| account.and_then(|account| account[key].as_str()).unwrap_or("-");
        let note = match (is_configured, account, answer["reported"].is_null()) {
            (true, Some(_), _) | (true, None, true) => Cell::new("configured"),
            (true, None, false) => Cell::colored("configured, unknown to the adapter", Color::Yellow),
            (false, _, _) => Cell::colored("not configured", Color::Dim),
        };
        [Cell::new(id), Cell::new(text("display_name")), Cell::new(text("status")), note]
    };
    let find = |id: &str| reported.iter().find(|account| account["id"] == id);
    let mut rows: Vec<_> = configured.iter().map(|id| describe(id, find(id), true)).collect();
    let others = reported.iter().filter(|account| account["id"].as_str().is_some_and(|id| !configured.contains(&id)));
    rows.extend(others.map(|account| describe(account["id"].as_str().unwrap_or("-"), Some(account), false)));
    rows
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::out::Paint;
    use nexus_core::config::{Source, load};

    #[test]
    fn what_is_configured_looks_like_what_runs() {
        let text =
            "adapters: {gog: {command: gog, channel: gmail, accounts: {a: {}, b: {enabled: false}}}, hook: {command: 'builtin:webhook'}}";
        let loaded = load(Source { name: "nex.yaml", text }, None).unwrap();
        let known = KnownAccount { channel: Some("mail".to_owned()), last_event_at: Some(1_000), events: 3, ..KnownAccount::default() };
        let known = HashMap::from([(AccountKey::new("gog", "a"), known)]);
        let answer = configured(&loaded.config, &known, 13_000);
        let (a, b) = (&answer["adapters"][0], &answer["adapters"][1]);
        assert_eq!((&a["channel"], &a["last_event_age_ms"], &a["events"]), (&json!("gmail"), &json!(12_000), &json!(3)));
        assert_eq!((&b["enabled"], &b["last_event_age_ms"], &b["events"]), (&json!(false), &Value::Null, &json!(0)));
        let accounts: Vec<Account> = serde_json::from_value(answer["adapters"].clone()).unwrap();
        assert_eq!(answer["without_accounts"], json!(["hook"]));
        let bare = ["hook".to_owned()];
        let lines = table::lines(&adapter_rows(&accounts, &bare, false), &[], Paint::PLAIN);
        assert_eq!(lines, ["gog   gmail  2 accounts, 1 disabled", "hook  -      no accounts"]);
        let lines = table::lines(&adapter_rows(&accounts, &[], true), &[], Paint::PLAIN);
        assert_eq!(lines, ["gog  gmail  0/2 accounts running, 1 disabled"]);
    }

    #[test]
    fn accounts_are_compared() {
        let answer = json!({ "configured": ["a", "b"], "reported": [
            { "id": "a", "display_name": "Ada", "status": "ready" }, { "id": "c", "status": "error" }] });
        let lines = table::lines(&account_rows(&answer), &[], Paint::PLAIN);
        assert_eq!(
            lines,
            ["a  Ada  ready  configured", "b  -    -      configured, unknown to the adapter", "c  -    error  not configured"]
        );
        let silent = json!({ "configured": ["a"], "reported": null });
        assert_eq!(table::lines(&account_rows(&silent), &[], Paint::PLAIN), ["a  -  -  configured"]);
    }

    #[test]
    fn values_are_plain() {
        assert_eq!(plain(&json!(["monitor", "send"])), "monitor, send");
        assert_eq!(plain(&json!("x\u{1b}")), "x\u{fffd}");
        assert_eq!(plain(&json!({ "a": [1] })), "{\"a\":[1]}");
        assert_eq!(plain(&json!([1, 2])), "[1,2]");
    }
}
