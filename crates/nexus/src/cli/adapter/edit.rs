//! The verbs that change which adapters and accounts there are. They write the overlay, and have a
//! running daemon apply it.

use crate::adapter::VerbError;
use crate::cli::daemon::{reload, start};
use crate::cli::failure::{Exit, Failure};
use crate::cli::out::note;
use crate::cli::overlay::{self, Before};
use crate::cli::{Global, running};
use crate::daemon::Paths;
use nexus_core::ids::AccountKey;
use serde_json::{Map, Value, json};
use std::path::Path;

#[derive(Debug, clap::Args)]
pub(crate) struct Register {
    /// A name of your choice
    name: String,
    /// The program and its arguments, split as a shell would and never run by one
    #[arg(long, value_name = "COMMAND")]
    command: String,
    /// The channel it serves [default: what it says itself]
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
    /// An account of it; can be given several times
    #[arg(long = "account", value_name = "ID")]
    accounts: Vec<String>,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum AccountVerb {
    /// Add an account to an adapter
    #[command(after_help = "Example:\n  nexus adapter account add gog me@example.org --credential-ref google/me --set depth=3")]
    Add(Add),
    /// Remove an account that `account add` or `register` added
    #[command(after_help = "Example:\n  nexus adapter account remove gog me@example.org")]
    Remove {
        /// The adapter
        name: String,
        /// The account
        id: String,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Add {
    /// The adapter
    name: String,
    /// The account
    id: String,
    /// Its credential: service/account, env:NAME or command:...
    #[arg(long, value_name = "REF")]
    credential_ref: Option<String>,
    /// Only send; don't read its events
    #[arg(long)]
    no_monitor: bool,
    /// Fetch its history once
    #[arg(long)]
    backfill: bool,
    /// A value for the adapter, JSON or text; can be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, Value)>,
}

/// `key=value`, where what isn't JSON is text.
fn setting(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or("write it as `key=value`")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((key.to_owned(), value))
}

pub(crate) fn register(args: Register, global: &Global) -> anyhow::Result<Exit> {
    let done = format!("registered adapter {}", args.name);
    edit(global, &done, |adapters, before| {
        if before.loaded.config.adapters.contains_key(&args.name) {
            return Err(Failure::new(Exit::Failed, format!("there is an adapter `{}` already; choose another name", args.name)));
        }
        let adapter = overlay::entry(adapters, &args.name);
        adapter.insert("command".to_owned(), args.command.into());
        if let Some(channel) = args.channel {
            adapter.insert("channel".to_owned(), channel.into());
        }
        let accounts: Map<String, Value> = args.accounts.into_iter().map(|id| (id, json!({}))).collect();
        adapter.insert("accounts".to_owned(), Value::Object(accounts));
        Ok(())
    })
}

pub(crate) fn unregister(name: &str, global: &Global) -> anyhow::Result<Exit> {
    edit(global, &format!("unregistered adapter {name}"), |adapters, before| {
        known(before, name)?;
        if before.is_in_main(&[name]) {
            return Err(not_ours(&format!("adapter `{name}`"), name));
        }
        adapters.remove(name);
        Ok(())
    })
}

pub(crate) fn account(verb: AccountVerb, global: &Global) -> anyhow::Result<Exit> {
    match verb {
        AccountVerb::Add(args) => {
            let done = format!("added account {}/{}", args.name, args.id);
            edit(global, &done, |adapters, before| add(args, adapters, before))
        }
        AccountVerb::Remove { name, id } => {
            let done = format!("removed account {name}/{id}");
            edit(global, &done, |adapters, before| remove(&name, &id, adapters, before))
        }
    }
}

fn add(args: Add, adapters: &mut Map<String, Value>, before: &Before) -> Result<(), Failure> {
    let Add { name, id, credential_ref, no_monitor, backfill, settings } = args;
    if known(before, &name)?.contains_key(&id) {
        return Err(Failure::new(Exit::Failed, format!("there is an account `{name}/{id}` already")));
    }
    let account = overlay::entry(overlay::entry(overlay::entry(adapters, &name), "accounts"), &id);
    if let Some(reference) = credential_ref {
        account.insert("credential_ref".to_owned(), reference.into());
    }
    if no_monitor {
        account.insert("monitor".to_owned(), false.into());
    }
    if backfill {
        account.insert("backfill".to_owned(), true.into());
    }
    if !settings.is_empty() {
        account.insert("config".to_owned(), Value::Object(settings.into_iter().collect()));
    }
    Ok(())
}

fn remove(name: &str, id: &str, adapters: &mut Map<String, Value>, before: &Before) -> Result<(), Failure> {
    if !known(before, name)?.contains_key(id) {
        return Err(no_account(&format!("{name}/{id}")));
    }
    if before.is_in_main(&[name, "accounts", id]) {
        return Err(not_ours(&format!("account `{name}/{id}`"), &format!("{name}/{id}")));
    }
    let adapter = overlay::entry(adapters, name);
    overlay::entry(adapter, "accounts").remove(id);
    Ok(())
}

/// Enables or disables `name/account`, or all accounts of `name`. To enable all is to take back what
/// was set here: an account that nex.yaml disables stays so, unless it is named.
pub(crate) fn set_enabled(target: &str, enabled: bool, global: &Global) -> anyhow::Result<Exit> {
    let text = format!("{} {target}", if enabled { "enabled" } else { "disabled" });
    edit_and_tell(global, "adapters", |adapters, before| {
        let (name, ids, is_named) = match AccountKey::parse(target) {
            Some(key) => (key.adapter, vec![key.account], true),
            None => (target.to_owned(), known(before, target)?.keys().cloned().collect(), false),
        };
        let accounts = known(before, &name)?;
        if ids.is_empty() {
            return Err(Failure::new(
                Exit::Failed,
                format!("adapter `{name}` has no accounts; add one with `nexus adapter account add {name} ID`"),
            ));
        }
        let mut still_disabled = Vec::new();
        for id in ids {
            if !accounts.contains_key(&id) {
                return Err(no_account(&format!("{name}/{id}")));
            }
            let of_main = before.in_main(&[name.as_str(), "accounts", id.as_str(), "enabled"]);
            let is_on_in_main = of_main.is_none_or(|value| value.is_null() || *value == Value::Bool(true));
            if enabled && (is_on_in_main || !is_named) {
                forget_enabled(&name, &id, adapters, before);
                still_disabled.extend((!is_on_in_main).then(|| format!("{name}/{id}")));
            } else {
                let adapter = overlay::entry(adapters, &name);
                overlay::entry(overlay::entry(adapter, "accounts"), &id).insert("enabled".to_owned(), enabled.into());
            }
        }
        Ok(Done { text, still_disabled })
    })
}

/// Takes the overlay's `enabled` of an account away, with the mappings left empty by that. One that
/// nex.yaml doesn't have stays, empty or not: it is what makes the account or the adapter be there.
fn forget_enabled(name: &str, id: &str, adapters: &mut Map<String, Value>, before: &Before) {
    let Some(adapter) = adapters.get_mut(name).and_then(Value::as_object_mut) else { return };
    if let Some(accounts) = adapter.get_mut("accounts").and_then(Value::as_object_mut) {
        if let Some(account) = accounts.get_mut(id).and_then(Value::as_object_mut) {
            account.remove("enabled");
            if account.is_empty() && before.is_in_main(&[name, "accounts", id]) {
                accounts.remove(id);
            }
        }
        if accounts.is_empty() && before.is_in_main(&[name]) {
            adapter.remove("accounts");
        }
    }
    if adapter.is_empty() && before.is_in_main(&[name]) {
        adapters.remove(name);
    }
}

/// The accounts of an adapter that exists.
fn known<'b>(before: &'b Before, name: &str) -> Result<&'b std::collections::BTreeMap<String, nexus_core::config::Account>, Failure> {
    let adapter = before.loaded.config.adapters.get(name).ok_or_else(|| no_adapter(name))?;
    Ok(&adapter.accounts)
}

pub(super) fn no_adapter(name: &str) -> Failure {
    Failure::not_found(VerbError::NoAdapter(name.to_owned()).to_string())
}

pub(super) fn no_account(target: &str) -> Failure {
    Failure::not_found(format!("no account `{target}` is configured; `nexus adapter status` shows those that are"))
}

fn not_ours(what: &str, target: &str) -> Failure {
    let text = format!(
        "{what} is defined in nex.yaml, which this command does not edit\nRemove it there, or run `nexus adapter disable {target}`."
    );
    Failure::new(Exit::Failed, text)
}

/// What a change did.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) text: String,
    /// Accounts that were to be enabled, but for nex.yaml.
    pub(crate) still_disabled: Vec<String>,
}

/// Changes the overlay that matters, and has a running daemon apply it.
fn edit(global: &Global, done: &str, change: impl FnOnce(&mut Map<String, Value>, &Before) -> Result<(), Failure>) -> anyhow::Result<Exit> {
    edit_and_tell(global, "adapters", |adapters, before| {
        change(adapters, before)?;
        Ok(Done { text: done.to_owned(), still_disabled: Vec::new() })
    })
}

/// Changes one section of the overlay that matters, and has a running daemon apply it.
pub(crate) fn edit_and_tell(
    global: &Global,
    section: &str,
    change: impl FnOnce(&mut Map<String, Value>, &Before) -> Result<Done, Failure>,
) -> anyhow::Result<Exit> {
    change_and_tell(global, |paths| overlay::edit(paths, section, change))
}

/// Has `change` change the overlay that matters, and a running daemon apply it.
pub(crate) fn change_and_tell(global: &Global, change: impl FnOnce(&Paths) -> anyhow::Result<Done>) -> anyhow::Result<Exit> {
    let asked = global.paths()?;
    let used = running::config_file(&asked)?;
    let paths = running::meant(asked, used.as_deref(), global)?;
    if used.is_none() {
        start::create_config(&paths, global)?;
    }
    let Done { text, still_disabled } = change(&paths)?;
    let is_in_use = used.as_deref().is_some_and(|used| same_file(used, &paths.config_file));
    let applied = if is_in_use { Some(reload::ask(&paths, false)??) } else { None };
    let out = global.out();
    if out.json {
        out.json(&json!({ "done": text, "still_disabled": still_disabled, "reload": applied }))?;
        return Ok(Exit::Done);
    }
    out.line(&text)?;
    for account in &still_disabled {
        out.line(&format!("{account} stays disabled, as nex.yaml says; `nexus adapter enable {account}` enables it"))?;
    }
    match (applied, used) {
        (Some(answer), _) => reload::tell(out, &answer)?,
        (None, Some(_)) => note("The running daemon uses another configuration file; nothing changes for it."),
        (None, None) => note("It takes effect when the daemon starts."),
    }
    Ok(Exit::Done)
}

fn same_file(left: &Path, right: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    real(left) == real(right)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn settings_are_json_or_text() {
        assert_eq!(setting("depth=3").unwrap(), ("depth".to_owned(), json!(3)));
        assert_eq!(setting("on=true").unwrap().1, json!(true));
        assert_eq!(setting("list=[1,2]").unwrap().1, json!([1, 2]));
        assert_eq!(setting("url=https://a.example/?x=1").unwrap().1, json!("https://a.example/?x=1"));
        assert_eq!(setting("empty=").unwrap().1, json!(""));
        assert!(setting("nothing").is_err() && setting("=x").is_err());
    }
}
