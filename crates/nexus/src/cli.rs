//! The command line: its verbs, what they print, and their exit codes.
//!
//! The only part that prints for people. It talks to a running daemon over the control socket and
//! reads the ledgers itself only when nothing runs; it never writes them, but for a restore, and never edits
//! `nex.yaml`.

mod access;
mod adapter;
mod automation;
mod backup;
mod budget;
mod chat;
mod client;
mod config;
mod credential;
mod daemon;
mod deliveries;
mod doctor;
mod events;
mod failure;
mod generate;
mod ledger;
mod nostr;
mod out;
mod overlay;
mod plugin;
mod project;
mod replay;
mod reply;
mod restore;
mod running;
mod script;
mod search;
mod send;
mod sessions;
mod table;
mod talk;
mod trace;
mod units;
mod yaml;

use crate::daemon::Paths;
use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use failure::Exit;
use out::Out;
use std::path::PathBuf;
use std::process::ExitCode;

const CONFIG_VARIABLE: &str = "NEXUS_CONFIG";
const EXAMPLES: &str = "Examples:
  nexus chat                      talk to an agent, starting the daemon if needed
  nexus daemon start --detach     run in the background
  nexus daemon status             what runs, and how it is

Exit codes: 0 done, 1 failed, 2 usage, 3 not running, 4 not found, 78 bad configuration.";

/// An always-on daemon that connects the places where people talk to the agents that answer.
#[derive(Debug, Parser)]
#[command(name = "nexus", version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start, stop and watch the daemon
    #[command(subcommand, after_help = "Example:\n  nexus daemon start --detach")]
    Daemon(daemon::Verb),
    /// Connect channels: the programs that read and write them, and their accounts
    #[command(subcommand, after_help = "Example:\n  nexus adapter register gog --command gog --account me@example.org")]
    Adapter(adapter::Verb),
    /// Use plugins: programs and scripts that see requests on their way, and may change them
    #[command(subcommand, after_help = "Example:\n  nexus plugin enable tags")]
    Plugin(plugin::Verb),
    /// Use automations: scripts that are asked about events, and answer them, add to them or call an agent
    #[command(subcommand, after_help = "Example:\n  nexus automation register ./follow-up.ts")]
    Automation(automation::Verb),
    /// Send one message and print the answer
    Send(send::Args),
    /// Talk to an agent, line by line
    Chat(chat::Args),
    /// Show what came in and went out
    Events(events::Args),
    /// Show what became of an event: stages, decisions, deliveries
    Trace(trace::Args),
    /// Find what agents were asked and what they answered
    Search(search::Args),
    /// Say who is who, and see what they may and why
    #[command(subcommand, after_help = "Examples:\n  nexus access who\n  nexus access check imessage:+15551234567")]
    Access(access::Verb),
    /// Show and decide about messages on their way out
    #[command(subcommand, after_help = "Example:\n  nexus deliveries list --status uncertain")]
    Deliveries(deliveries::Verb),
    /// Show what was said in each session; fork, archive and stop sessions
    #[command(subcommand, after_help = "Example:\n  nexus sessions list")]
    Sessions(sessions::Verb),
    /// Look at everything that the daemon needs and keeps, and say what to do about what is wrong
    #[command(after_help = "Examples:\n  nexus doctor\n  nexus doctor --repair")]
    Doctor(doctor::Args),
    /// Copy the ledgers and the configuration, of a running daemon too
    Backup(backup::Args),
    /// Put a backup in the place of the ledgers
    Restore(restore::Args),
    /// Use Nostr: relays that events come from and go to
    #[command(subcommand, after_help = "Examples:\n  nexus nostr status\n  nexus nostr demo")]
    Nostr(nostr::Verb),
    /// Use projects: directories in which agents work, activated by events of Nostr
    #[command(subcommand, after_help = "Examples:\n  nexus project list\n  nexus project logs -f demo")]
    Project(project::Verb),
    /// Store credentials for adapters
    #[command(subcommand, after_help = "Example:\n  nexus credential set google/me < token.txt")]
    Credential(credential::Verb),
    /// Check and show the configuration
    #[command(subcommand, after_help = "Example:\n  nexus config check")]
    Config(config::Verb),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  nexus completions bash > ~/.local/share/bash-completion/completions/nexus")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    #[command(after_help = "Example:\n  nexus version")]
    Version,
    /// Write the generated documentation into a directory
    #[command(name = "__generate", hide = true)]
    Generate { directory: PathBuf },
    /// List the fail points of this build
    #[cfg(feature = "torture")]
    #[command(name = "__fail-points", hide = true)]
    FailPoints,
}

/// What every verb takes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// Print JSON, in a form that stays stable
    #[arg(long, global = true)]
    json: bool,
    /// Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]
    #[arg(short, long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,
}

impl Global {
    fn out(&self) -> Out {
        Out::new(self.json)
    }

    /// The configuration file that was asked for, absolute: a detached daemon outlives this directory.
    fn config(&self) -> anyhow::Result<Option<PathBuf>> {
        let variable = || std::env::var_os(CONFIG_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        let asked = self.config.clone().or_else(variable);
        asked.map(|path| std::path::absolute(&path).with_context(|| format!("failed to make `{}` absolute", path.display()))).transpose()
    }

    fn paths(&self) -> anyhow::Result<Paths> {
        Ok(Paths::resolve(self.config()?.as_deref())?)
    }
}

/// Parses the arguments of this process, does what they ask, and says how it went.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(mut error) => {
            failure::suggest(&mut error, &Cli::command(), std::env::args_os().skip(1));
            if error.use_stderr() && asks_for_json() && failure::report_usage(&error.render().to_string(), Out::new(true)) {
                return ExitCode::from(Exit::Usage.code());
            }
            // Help goes to stdout with code 0, a mistake to stderr with code 2; nobody is left to tell if that fails.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage.code()));
        }
    };
    let out = cli.global.out();
    match run(cli) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) => ExitCode::from(failure::report(&error, out).code()),
    }
}

/// Whether `--json` is among arguments that could not be parsed.
fn asks_for_json() -> bool {
    std::env::args_os().skip(1).take_while(|word| *word != "--").any(|word| word == "--json")
}

fn run(cli: Cli) -> anyhow::Result<Exit> {
    let Cli { global, verb } = cli;
    match verb {
        Verb::Daemon(verb) => daemon::run(&verb, &global),
        Verb::Adapter(verb) => adapter::run(verb, &global),
        Verb::Plugin(verb) => plugin::run(verb, &global),
        Verb::Automation(verb) => automation::run(verb, &global),
        Verb::Send(args) => send::run(args, &global),
        Verb::Chat(args) => chat::run(args, &global),
        Verb::Events(args) => events::run(args, &global),
        Verb::Trace(args) => trace::run(args, &global),
        Verb::Search(args) => search::run(args, &global),
        Verb::Access(verb) => access::run(verb, &global),
        Verb::Deliveries(verb) => deliveries::run(&verb, &global),
        Verb::Sessions(verb) => sessions::run(&verb, &global),
        Verb::Doctor(args) => doctor::run(&args, &global),
        Verb::Backup(args) => backup::run(args, &global),
        Verb::Restore(args) => restore::run(args, &global),
        Verb::Nostr(verb) => nostr::run(verb, &global),
        Verb::Project(verb) => project::run(&verb, &global),
        Verb::Credential(verb) => credential::run(&verb, &global),
        Verb::Config(verb) => config::run(&verb, &global),
        Verb::Completions { shell } => completions(shell, &global),
        Verb::Version => version(&global),
        Verb::Generate { directory } => generate::run(&directory, &global),
        #[cfg(feature = "torture")]
        Verb::FailPoints => {
            crate::torture::names().into_iter().try_for_each(|name| global.out().line(name))?;
            Ok(Exit::Done)
        }
    }
}

fn completions(shell: clap_complete::Shell, global: &Global) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "nexus", &mut script);
    global.out().raw(&script)?;
    Ok(Exit::Done)
}

fn version(global: &Global) -> anyhow::Result<Exit> {
    let version = env!("CARGO_PKG_VERSION");
    let out = global.out();
    if out.json {
        out.json(&serde_json::json!({ "name": "nexus", "version": version }))?;
    } else {
        out.line(&format!("nexus {version}"))?;
    }
    Ok(Exit::Done)
}

/// A runtime for one verb: small, since most verbs are one round trip.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("failed to start the runtime")
}

fn block_on<F: Future>(future: F) -> anyhow::Result<F::Output> {
    Ok(runtime()?.block_on(future))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["nexus"][..], words].concat())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    /// The commands of the requirement, and one line for each of ours.
    const COMMANDS: &[&str] = &[
        "daemon start",
        "daemon start --detach",
        "daemon start -d --config ./custom-nex.yaml --log-level debug --port 7500",
        "daemon stop",
        "daemon restart",
        "daemon status --json",
        "daemon reload --dry-run",
        "daemon logs -f",
        "daemon logs -n 100 --level error",
        "adapter register gog --command gog --account a --account b --channel gmail",
        "adapter account add gog me --credential-ref google/me --no-monitor --backfill --set depth=3",
        "adapter restart gog/me@example.org",
        "adapter disable gog",
        "adapter status",
        "plugin list --json",
        "plugin enable tags",
        "plugin types",
        "plugin test tags --event ./event.json --hook afterReceiveEvent",
        "automation register ./follow-up.ts --replace",
        "automation list --json",
        "automation delete follow-up",
        "automation test follow-up --event ./event.json",
        "send hello world --conversation work",
        "chat",
        "events",
        "events tail -f --channel gmail",
        "events search invoice -n 5",
        "trace req_1",
        "trace show req_1",
        "trace list --status failed",
        "trace retry req_1 --wait",
        "events replay gmail:18c2f0 --wait",
        "events show 7",
        "search invoice of march --agent helper --session dm:ann --kind event --since 7d --limit 100 --json",
        "search --rebuild",
        "search --rebuild --agent helper",
        "deliveries list --status failed --adapter gmail",
        "deliveries show dlv_1",
        "deliveries retry dlv_1",
        "deliveries retry dlv_1 dlv_2",
        "deliveries discard --all --status expired --adapter gmail",
        "access who",
        "access who imessage:+1555 --json",
        "access link imessage:+1555 ann --name Ann --relationship family --confidence 0.9",
        "access unlink x:a:b",
        "access set ann --name Ann",
        "access tag ann family trusted",
        "access merge work ann",
        "access unmerge work",
        "access policies",
        "access check imessage:+1555 --account me --peer-kind group --peer g1 --at 2026-01-02T23:30",
        "access audit --limit 5 --denied --sender imessage:+1555 --since 1h",
        "sessions list --all -n 5",
        "sessions show dm:owner --limit 3",
        "sessions fork dm:owner what-if --at turn_1",
        "sessions archive --undo dm:owner",
        "sessions stop dm:owner",
        "doctor",
        "doctor --repair --json",
        "backup",
        "backup /mnt/disk/nexus --json",
        "restore /mnt/disk/nexus",
        "restore ./copy --resume --yes",
        "daemon start -w npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg",
        "daemon start --projects-path ./projects -d",
        "nostr status --json",
        "nostr whitelist add 7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e",
        "nostr keys import demo/coder",
        "nostr publish --kind 1 --tag p=ab --once k hello",
        "project list --json",
        "project start demo",
        "project stop demo-1a2b3c4d",
        "project restart 31933:aa:x:y",
        "project release demo",
        "project logs -f -n 5 demo",
        "project run",
        "project init naddr1x --path ./demo --anew",
        "project show demo --json",
        "project approvals --all",
        "project approve 1 2 --deny",
        "project secret set demo API_KEY --command cmd",
        "project gc --days 30",
        "project gc demo --delete --force",
        "project setup demo --provider anthropic --model m --key-env KEY",
        "credential set google/me",
        "config check ./nex.yaml",
        "--json version",
        "nostr relay --listen 127.0.0.1:0 --auth --directory ./relay --max-mb 64 --json",
        "nostr demo --home ./demo --say hello",
        "completions zsh",
    ];

    #[test]
    fn the_requirements_commands_parse() {
        for line in COMMANDS {
            let words: Vec<&str> = line.split(' ').collect();
            assert!(parse(&words).is_ok(), "{line}: {}", parse(&words).unwrap_err());
        }
    }

    #[test]
    fn mistakes_are_usage_errors() {
        let lines = [
            "",
            "fly",
            "events replay",
            "trace retry",
            "daemon start --port 99999",
            "daemon start --log-level loud",
            "adapter start gog",
            "automation register",
            "automation test follow-up",
            "plugin test tags",
            "plugin test tags --event x --hook never",
            "send",
            "daemon logs -n 0",
            "project",
            "project start",
            "daemon start --whitelist nobody",
            "nostr",
            "nostr publish --tag p hello",
            "project logs demo -n 0",
            "search",
            "search x --rebuild",
            "search x --limit 101",
            "search x --kind letter",
            "search x --since soon",
            "sessions fork dm:owner",
            "sessions show",
            "restore",
            "access link nobody ann",
            "access link sms:1 ann --confidence 1.5",
            "access tag ann",
            "access set ann",
            "access check sms:1 --at yesterday",
            "access check sms:1 --peer-kind crowd",
            "access audit --since soon",
            "nostr relay --listen here",
            "nostr relay --max-mb 0",
            "project init",
            "project approve",
            "project approve x",
            "project gc --force",
            "project gc demo --days 3",
            "project setup --agent a --model m",
            "project setup --key-env A --key-file b",
        ];
        for line in lines {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(parse(&words).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_verb_without_its_group_is_told_with_it() {
        let told = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let mut error = parse(&words).unwrap_err();
            failure::suggest(&mut error, &Cli::command(), words.iter().map(std::ffi::OsString::from));
            error.to_string()
        };
        for line in ["status", "--json status", "-c nex.yaml status --verbose"] {
            assert!(told(line).contains("'daemon status', 'adapter status', 'nostr status'"), "{line}: {}", told(line));
        }
        assert!(told("start").contains("'daemon start', 'adapter start', 'project start'"), "{}", told("start"));
        for line in ["fly", "daemon chat", "daemon enable"] {
            assert!(!told(line).contains("exist"), "{line}: {}", told(line));
        }
    }

    #[test]
    fn the_config_path_becomes_absolute_wherever_it_stands() {
        for words in [["-c", "x.yaml", "daemon", "start"], ["daemon", "start", "-c", "x.yaml"]] {
            let path = parse(&words).unwrap().global.config().unwrap().unwrap();
            assert!(path.is_absolute() && path.ends_with("x.yaml"), "{path:?}");
        }
    }

    #[test]
    fn every_visible_command_has_an_example() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{}", command.get_name());
            command.get_subcommands().filter(|inner| !inner.is_hide_set()).for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn every_visible_argument_says_what_it_is() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().filter(|inner| !inner.is_hide_set()).for_each(check);
        }
        check(&Cli::command());
    }
}
