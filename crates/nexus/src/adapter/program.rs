//! An adapter's program: its argv and environment, and its short-lived verbs `info` and `accounts`.

use super::Shared;
use crate::environment;
use crate::error_text::describe;
use crate::keeper::{SpawnSpec, Stdin};
use crate::live::Desk;
use crate::oneshot::{self, OneshotError};
use crate::routes::Routes;
use nexus_core::config::{self, BUILTIN_WEBHOOK};
use nexus_core::ids::ChildId;
use nexus_core::protocol::{AdapterInfo, Capability};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// How long `info`, `accounts` and `health` may take.
pub(crate) const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// Longest text that is handed over as an argument, in characters. Of four bytes each they come to
/// less than 100 KiB; the kernel takes 128 KiB for one argument (execve(2), `MAX_ARG_STRLEN`).
const ARGUMENT_TEXT_CHARS_MAX: usize = 25_000;

/// How an adapter's program is called, whoever does it; the verb's words are to be added.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: PathBuf,
}

/// The call of the adapter that is configured as `name`.
pub(crate) fn call(name: &str, adapter: &config::Adapter, workspace: &Path) -> Call {
    let argv =
        if adapter.command == BUILTIN_WEBHOOK { vec![environment::own_binary(), "__webhook".to_owned()] } else { adapter.argv.clone() };
    let cwd = adapter.cwd.as_ref().map_or_else(|| workspace.to_owned(), |cwd| workspace.join(cwd));
    let mut env = environment::with(&adapter.env, &adapter.pass_env);
    env.push(("NEXUS_ADAPTER".into(), name.into()));
    Call { argv, env, cwd }
}

/// What `info` printed, if it is what `info` has to print. `channel` is the configuration's word.
///
/// # Errors
/// A sentence that names the adapter and what is wrong.
pub(crate) fn read_info(name: &str, channel: Option<&str>, text: &[u8]) -> Result<AdapterInfo, String> {
    let info: AdapterInfo = serde_json::from_slice(text).map_err(|error| format!("`{name} info` did not print an AdapterInfo: {error}"))?;
    info.check().map_err(|problem| format!("`{name} info`: {problem}"))?;
    if let Some(channel) = channel.filter(|channel| *channel != info.channel) {
        return Err(format!("`{name} info` says channel `{}`, the config says `{channel}`", info.channel));
    }
    Ok(info)
}

/// One configured adapter's program.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) name: String,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    cwd: PathBuf,
    /// The config's word, which `info` may not contradict.
    channel: Option<String>,
    pub(super) shared: Shared,
    /// Locked while `info` is being asked.
    asked: Mutex<Asked>,
    /// What it said then, for who doesn't wait.
    told: OnceLock<Arc<AdapterInfo>>,
    /// The lines of its accounts' `stream` processes.
    desks: std::sync::Mutex<HashMap<String, Desk>>,
}

/// What asking for `info` came to.
#[derive(Debug, Default)]
struct Asked {
    info: Option<Arc<AdapterInfo>>,
    /// When it failed last, and why.
    failure: Option<(Instant, String)>,
}

impl Command {
    pub(super) fn new(name: &str, adapter: &config::Adapter, shared: &Shared) -> Self {
        let Call { argv, env, cwd } = call(name, adapter, &shared.workspace);
        let (channel, shared) = (adapter.channel.clone(), shared.clone());
        let (asked, told, desks) = (Mutex::default(), OnceLock::new(), std::sync::Mutex::default());
        Self { name: name.into(), argv, env, cwd, channel, shared, asked, told, desks }
    }

    /// What `info` said, if it was asked already.
    pub(super) fn told(&self) -> Option<&Arc<AdapterInfo>> {
        self.told.get()
    }

    /// Where the line of an account's `stream` process is found.
    pub(super) fn desk(&self, account: &str) -> Desk {
        let mut desks = self.desks.lock().unwrap_or_else(PoisonError::into_inner);
        desks.entry(account.to_owned()).or_default().clone()
    }

    /// The channel that the configuration names.
    pub(super) fn configured_channel(&self) -> Option<&str> {
        self.channel.as_deref()
    }

    /// A spawn of this program with `words` as arguments; `account` adds what belongs to it.
    pub(super) fn spec(&self, child: ChildId, words: &[&str], account: Option<(&str, &Path)>, stdin: Stdin) -> SpawnSpec {
        let mut argv = self.argv.clone();
        argv.extend(words.iter().map(|word| (*word).to_owned()));
        let mut env = self.env.clone();
        if let Some((id, context)) = account {
            env.push(("NEXUS_ACCOUNT".into(), id.into()));
            env.push(("NEXUS_CONTEXT_FILE".into(), context.to_string_lossy().into_owned()));
        }
        SpawnSpec { child, argv, env, cwd: Some(self.cwd.clone()), stdin }
    }

    /// What the adapter says of itself; asked once, then remembered until its command changes. Who
    /// waited while it was asked in vain shares the failure, so that many accounts wait for one
    /// time-out and not for one after the other.
    pub(super) async fn info(&self) -> Result<Arc<AdapterInfo>, String> {
        let came = Instant::now();
        let mut asked = self.asked.lock().await;
        if let Some(info) = &asked.info {
            return Ok(info.clone());
        }
        if let Some((at, error)) = &asked.failure
            && *at >= came
        {
            return Err(error.clone());
        }
        match self.ask_info().await {
            Ok(info) => {
                let info = Arc::new(info);
                asked.info = Some(info.clone());
                drop(self.told.set(info.clone())); // set once: it isn't asked again
                drop(asked);
                refine_route(&self.shared.routes, &self.name, &info);
                Ok(info)
            }
            Err(error) => {
                asked.failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn ask_info(&self) -> Result<AdapterInfo, String> {
        let text = self.ask("info", &["info"]).await?;
        read_info(&self.name, self.channel.as_deref(), &text)
    }

    /// Lets the route know what `info` said, if it was asked already; waits for an answer that is
    /// on its way.
    pub(super) async fn publish_route(&self) {
        if let Some(info) = &self.asked.lock().await.info {
            refine_route(&self.shared.routes, &self.name, info);
        }
    }

    /// What `accounts list` prints; `None` when the adapter doesn't support it.
    pub(super) async fn accounts(&self) -> Result<Option<serde_json::Value>, String> {
        if !self.info().await?.can(Capability::Accounts) {
            return Ok(None);
        }
        let text = self.ask("accounts", &["accounts", "list"]).await?;
        let accounts: Vec<nexus_core::protocol::AdapterAccount> =
            serde_json::from_slice(&text).map_err(|error| format!("`{} accounts list` did not print accounts: {error}", self.name))?;
        serde_json::to_value(accounts).map(Some).map_err(|error| error.to_string())
    }

    async fn ask(&self, what: &str, words: &[&str]) -> Result<Vec<u8>, String> {
        let spec = self.spec(ChildId::new(format!("{what}/{}", self.name)), words, None, Stdin::Null);
        let asked = oneshot::run(self.shared.keeper(), spec, None, PROBE_LIMIT).await;
        let output = asked.map_err(|error| no_answer(&self.name, None, words, &error))?;
        if output.status.is_success() {
            Ok(output.stdout)
        } else {
            Err(format!("`{} {}` ended with {}: {}", self.name, words.join(" "), output.status, output.stderr))
        }
    }
}

/// Why a one-shot call gave no answer: whose it was, which verb, and what helps. `words` are the
/// call's arguments; only the verb of a `send` is shown, since the others are a message.
pub(super) fn no_answer(adapter: &str, account: Option<&str>, words: &[&str], error: &OneshotError) -> String {
    let verb = words.first().copied().unwrap_or_default();
    let who = account.map_or_else(|| format!("adapter `{adapter}`"), |account| format!("adapter `{adapter}`, account `{account}`"));
    match error {
        OneshotError::TimedOut { program, limit_ms } => {
            let limit = if limit_ms.is_multiple_of(1000) { format!("{} s", limit_ms / 1000) } else { format!("{limit_ms} ms") };
            let advice = match verb {
                "send" => format!("if it needs longer, raise adapters.{adapter}.send.timeout_ms"),
                _ => format!("run `{program} {}` by hand to see what it waits for", words.join(" ")),
            };
            format!("{who}: `{verb}` did not end within {limit} and was killed; {advice}")
        }
        OneshotError::TooMuch { .. } | OneshotError::Read { .. } => format!("{who}: `{verb}`: {}", describe(error)),
        // It names the program, and what the kernel said of it.
        OneshotError::Spawn(_) => describe(error),
    }
}

fn refine_route(routes: &Routes, name: &str, info: &AdapterInfo) {
    if let Some(mut route) = routes.get(name) {
        route.known = true;
        route.channel = Some(info.channel.clone());
        if !info.can(Capability::Send) {
            route.sender = None;
        }
        // What can't be streamed after all is sent.
        if !info.streams() {
            route.streamer = None;
        }
        route.text_limit = text_limit(info);
        route.capabilities = serde_json::json!(info.channel_capabilities);
        routes.set(name, route);
    }
}

/// Longest text of one message, in characters; 0 = no limit.
fn text_limit(info: &AdapterInfo) -> usize {
    let platform = info.channel_capabilities.text_limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(0);
    match platform {
        _ if info.text_stdin => platform,
        0 => ARGUMENT_TEXT_CHARS_MAX,
        limit => limit.min(ARGUMENT_TEXT_CHARS_MAX),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn a_call_without_an_answer_says_whose_it_was_and_what_helps() {
        let late = |limit_ms| OneshotError::TimedOut { program: "/bin/gog".into(), limit_ms };
        let health = ["health", "--account", "me"];
        assert_eq!(
            no_answer("gog", Some("me"), &health, &late(10_000)),
            "adapter `gog`, account `me`: `health` did not end within 10 s and was killed; \
             run `/bin/gog health --account me` by hand to see what it waits for"
        );
        assert_eq!(
            no_answer("gog", None, &["info"], &late(1_500)),
            "adapter `gog`: `info` did not end within 1500 ms and was killed; run `/bin/gog info` by hand to see what it waits for"
        );
        let send = no_answer("gog", Some("me"), &["send", "--account", "me", "--text", "a secret"], &late(30_000));
        assert!(send.contains("`send` did not end within 30 s") && send.contains("adapters.gog.send.timeout_ms"), "{send}");
        assert!(!send.contains("secret"), "{send}");
        let flood = no_answer("gog", Some("me"), &health, &OneshotError::TooMuch { program: "/bin/gog".into() });
        assert!(flood.starts_with("adapter `gog`, account `me`: `health`: `/bin/gog` wrote more than"), "{flood}");
    }

    #[test]
    fn a_text_that_travels_as_an_argument_is_short_enough_for_one() {
        let limit = |platform: u64, text_stdin: bool| {
            let info = json!({
                "channel": "fake", "name": "fake", "version": "1", "supports": ["send"],
                "text_stdin": text_stdin, "channel_capabilities": { "text_limit": platform },
            });
            text_limit(&serde_json::from_value(info).unwrap())
        };
        assert_eq!((limit(0, false), limit(1_000_000, false), limit(4_096, false)), (25_000, 25_000, 4_096));
        assert_eq!((limit(0, true), limit(1_000_000, true)), (0, 1_000_000));
        assert!(limit(0, false) * 4 < 100 * 1024, "characters of four bytes");
    }
}
