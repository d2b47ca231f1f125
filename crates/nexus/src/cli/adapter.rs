//! `nexus adapter ...`: which verbs there are, and those that ask the daemon to do something.

pub(crate) mod edit;
mod show;

use super::client::{Client, encoded};
use super::failure::Exit;
use super::out::visible;
use super::{Global, block_on};
use nexus_core::ids::AccountKey;
use serde_json::{Value, json};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Add an adapter: a program that speaks the adapter protocol
    #[command(after_help = "Example:\n  nexus adapter register gog --command 'gog --quiet' --account me@example.org")]
    Register(edit::Register),
    /// Remove an adapter that `register` added
    #[command(after_help = "Example:\n  nexus adapter unregister gog")]
    Unregister {
        /// The adapter
        name: String,
    },
    /// List the adapters
    #[command(after_help = "Example:\n  nexus adapter list")]
    List,
    /// Show what an adapter says about itself
    #[command(after_help = "Example:\n  nexus adapter info gog")]
    Info {
        /// The adapter
        name: String,
    },
    /// List an adapter's accounts, those configured and those it reports
    #[command(after_help = "Example:\n  nexus adapter accounts gog")]
    Accounts {
        /// The adapter
        name: String,
    },
    /// Add and remove accounts
    #[command(subcommand, after_help = "Example:\n  nexus adapter account add gog me@example.org --credential-ref google/me")]
    Account(edit::AccountVerb),
    /// Use an adapter, or one of its accounts, again
    #[command(after_help = "Example:\n  nexus adapter enable gog/me@example.org")]
    Enable {
        /// Its name, or `name/account`
        target: String,
    },
    /// Stop using an adapter, or one of its accounts, until it is enabled
    #[command(after_help = "Example:\n  nexus adapter disable gog")]
    Disable {
        /// Its name, or `name/account`
        target: String,
    },
    /// Start an account's process
    #[command(after_help = "Example:\n  nexus adapter start gog/me@example.org")]
    Start(Target),
    /// Stop an account's process, until it or the daemon is started
    #[command(after_help = "Example:\n  nexus adapter stop gog/me@example.org")]
    Stop(Target),
    /// Restart an account's process, also an errored one
    #[command(after_help = "Example:\n  nexus adapter restart gog/me@example.org")]
    Restart(Target),
    /// Fetch an account's history
    #[command(after_help = "Example:\n  nexus adapter backfill gog/me@example.org")]
    Backfill(Target),
    /// Show how accounts are
    #[command(after_help = "Example:\n  nexus adapter status gog/me@example.org")]
    Status {
        /// Only this one, as `adapter/account`
        #[arg(value_name = "ADAPTER/ACCOUNT", value_parser = account_key)]
        account: Option<AccountKey>,
    },
    /// Probe an account's health now
    #[command(after_help = "Example:\n  nexus adapter health gog/me@example.org")]
    Health(Target),
}

/// One account of one adapter.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Target {
    /// The account, as `adapter/account`
    #[arg(value_name = "ADAPTER/ACCOUNT", value_parser = account_key)]
    account: AccountKey,
}

fn account_key(text: &str) -> Result<AccountKey, String> {
    AccountKey::parse(text).ok_or_else(|| "write it as `adapter/account`, as in `gog/me@example.org`".to_owned())
}

pub(crate) fn run(verb: Verb, global: &Global) -> anyhow::Result<Exit> {
    match verb {
        Verb::Register(args) => edit::register(args, global),
        Verb::Unregister { name } => edit::unregister(&name, global),
        Verb::List => show::list(global),
        Verb::Info { name } => show::info(&name, global),
        Verb::Accounts { name } => show::accounts(&name, global),
        Verb::Account(verb) => edit::account(verb, global),
        Verb::Enable { target } => edit::set_enabled(&target, true, global),
        Verb::Disable { target } => edit::set_enabled(&target, false, global),
        Verb::Start(target) => order(&target.account, "start", global),
        Verb::Stop(target) => order(&target.account, "stop", global),
        Verb::Restart(target) => order(&target.account, "restart", global),
        Verb::Backfill(target) => order(&target.account, "backfill", global),
        Verb::Status { account } => show::status(account.as_ref(), global),
        Verb::Health(target) => order(&target.account, "health", global),
    }
}

/// Asks the daemon to do `verb` with an account, and tells how the account is then.
fn order(account: &AccountKey, verb: &str, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let path = format!("/control/adapters/{}/{}/{verb}", encoded(&account.adapter), encoded(&account.account));
    let answer = block_on(async { Client::new(&paths).post(&path, &json!({})).await })??;
    let out = global.out();
    if out.json {
        out.json(&answer)?;
    } else {
        out.line(&told(account, verb, &answer))?;
    }
    Ok(exit_of(verb, &answer))
}

/// A probe or a start that failed is an answer too, but a script wants to know.
fn exit_of(verb: &str, answer: &Value) -> Exit {
    let is_down = matches!(verb, "start" | "restart") && matches!(answer["status"].as_str(), Some("errored" | "backoff"));
    let is_unwell = verb == "health" && answer["health"] != "healthy";
    if answer["error"].is_string() || is_down || is_unwell { Exit::Failed } else { Exit::Done }
}

fn told(account: &AccountKey, verb: &str, answer: &Value) -> String {
    let text = |key: &str| answer[key].as_str().filter(|text| !text.is_empty());
    let mut facts: Vec<String> = Vec::new();
    if verb == "backfill" {
        facts.push("fetching its history in the background".to_owned());
    }
    facts.extend(text("status").map(visible));
    // Nobody asked a process that was just started, and one that doesn't run has no health.
    let is_telling = |health: &&str| *health != "unknown" || answer["status"].is_null();
    facts.extend(text("health").filter(is_telling).map(visible));
    facts.extend(answer["pid"].as_u64().map(|pid| format!("PID {pid}")));
    facts.extend(text("error").or(text("last_error")).map(|error| format!("error: {}", visible(error))));
    if facts.is_empty() {
        facts.push("done".to_owned());
    }
    format!("{account}: {}", facts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_tells_how_the_account_is_then() {
        let me = AccountKey::new("gog", "me");
        let started = json!({ "status": "running", "health": "unknown", "pid": 7, "last_error": null });
        assert_eq!(told(&me, "start", &started), "gog/me: running, PID 7");
        assert_eq!(exit_of("start", &started), Exit::Done);
        assert_eq!(
            told(&me, "backfill", &json!({ "status": "running", "health": "healthy", "pid": 7 })),
            "gog/me: fetching its history in the background, running, healthy, PID 7"
        );
        let failed = json!({ "status": "errored", "health": "unknown", "pid": null, "last_error": "exit code 3" });
        assert_eq!(told(&me, "restart", &failed), "gog/me: errored, error: exit code 3");
        assert_eq!((exit_of("restart", &failed), exit_of("stop", &failed)), (Exit::Failed, Exit::Done));
        let probed = json!({ "health": "unknown", "error": null });
        assert_eq!((told(&me, "health", &probed), exit_of("health", &probed)), ("gog/me: unknown".to_owned(), Exit::Failed));
        assert_eq!(exit_of("health", &json!({ "health": "healthy", "error": null })), Exit::Done);
        assert_eq!(exit_of("health", &json!({ "health": "degraded", "error": "late" })), Exit::Failed);
    }
}
