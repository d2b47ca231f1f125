//! The bundled webhook adapter, `builtin:webhook`: a child process of the daemon that turns
//! verified HTTP POSTs into events and answers each only once the daemon has recorded it.
//! Owns the verbs, exit codes and threads of that process; it knows the daemon by the adapter
//! protocol alone and never uses its internals.

mod complaint;
mod config;
mod event;
mod health;
mod inflight;
mod intake;
mod listener;
mod protocol;
mod refusal;
mod signature;

#[cfg(test)]
mod end_to_end;

use std::error::Error;
use std::io::{self, BufReader, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use complaint::say;
use config::{ConfigError, Settings};
use intake::Intake;
use listener::Ending;

/// `EX_CONFIG` of sysexits(3), the exit code for a bad config in this project.
const EXIT_BAD_CONFIG: u8 = 78;
const EXIT_USAGE: u8 = 2;
const MAX_QUEUED_LINES: usize = 64;
const MAX_QUEUED_ACKS: usize = 64;

const USAGE: &str = "usage: info | accounts list | health --account ID | \
                     monitor --account ID --format jsonl";

/// One command of the adapter protocol.
#[derive(Debug, PartialEq, Eq)]
enum Verb {
    Info,
    Monitor { account: String },
    Health { account: String },
    Accounts,
}

/// Why the monitor could not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("failed to start the runtime")]
    Runtime(#[source] io::Error),
    #[error("failed to watch for signals")]
    Signals(#[source] io::Error),
    #[error("failed to start a thread for stdin or stdout")]
    Threads(#[source] io::Error),
    #[error("failed to listen on {address}, the account's `bind`; free it or set another one")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// Runs one verb of the adapter protocol v1; `args` are the words after `__webhook`.
///
/// Exit codes: 0 done or stopped, 1 failed (the port is taken, stdout is closed), 2 usage, 78 bad
/// config. All settings come from the account file named by `NEXUS_CONTEXT_FILE`.
pub fn main(args: Vec<String>) -> ExitCode {
    match parse_verb(&args) {
        Ok(Verb::Info) => print(&protocol::info()),
        Ok(Verb::Accounts) => print(&accounts()),
        Ok(Verb::Health { account }) => print(&health_of(&account)),
        Ok(Verb::Monitor { account }) => monitor(&account),
        Err(problem) => {
            say(format!("{problem}; {USAGE}"));
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn parse_verb(args: &[String]) -> Result<Verb, String> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.split_first() {
        Some((&"info", [])) => Ok(Verb::Info),
        Some((&"accounts", ["list"])) => Ok(Verb::Accounts),
        Some((&"monitor", flags)) => parse_account(flags).map(|account| Verb::Monitor { account }),
        Some((&"health", flags)) => parse_account(flags).map(|account| Verb::Health { account }),
        Some((verb, _)) => Err(format!("`{verb}` is not a command of this adapter")),
        None => Err("no command is given".to_owned()),
    }
}

/// Reads `--account ID` and `--format jsonl`, each also written with `=`.
fn parse_account(flags: &[&str]) -> Result<String, String> {
    let mut account = None;
    let mut rest = flags.iter();
    while let Some(flag) = rest.next() {
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (*flag, rest.next().copied()),
        };
        match (name, value) {
            ("--account", Some(value)) if !value.is_empty() => account = Some(value.to_owned()),
            ("--format", Some("jsonl")) => {}
            ("--format", _) => return Err("the only format is jsonl".to_owned()),
            _ => return Err(format!("`{flag}` is unknown or lacks its value")),
        }
    }
    account.ok_or_else(|| "`--account ID` is required".to_owned())
}

/// Prints one JSON line, the whole answer of a one-shot command.
fn print(answer: &Value) -> ExitCode {
    match writeln!(io::stdout(), "{answer}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format!("failed to write to stdout: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// The one account of the account file, or none without such a file.
fn accounts() -> Value {
    let file = match config::read_account_file() {
        Ok(file) => file,
        Err(ConfigError::NoAccountFile) => return json!([]),
        Err(error) => {
            say(with_sources(&error));
            return json!([]);
        }
    };
    match config::account_named_in(&file) {
        Ok(account) => {
            let usable = Settings::parse(&file).is_ok();
            let status = if usable { "ready" } else { "error" };
            json!([{ "id": account, "status": status }])
        }
        Err(error) => {
            say(with_sources(&error));
            json!([])
        }
    }
}

fn health_of(account: &str) -> Value {
    match settings_for(account) {
        Ok(settings) => health::probe(&settings),
        Err(problem) => health::unhealthy(account, &problem),
    }
}

/// The settings of the account that the command line names; the problem as text otherwise.
fn settings_for(account: &str) -> Result<Settings, String> {
    let settings = config::read_account_file().and_then(|file| Settings::parse(&file)).map_err(|error| with_sources(&error))?;
    if settings.account_id != account {
        let named = &settings.account_id;
        return Err(format!("the account file is for `{named}`, not for `{account}`"));
    }
    Ok(settings)
}

fn monitor(account: &str) -> ExitCode {
    let settings = match settings_for(account) {
        Ok(settings) => settings,
        Err(problem) => {
            say(problem);
            return ExitCode::from(EXIT_BAD_CONFIG);
        }
    };
    for warning in &settings.warnings {
        say(warning);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Runtime);
    match runtime.and_then(|runtime| runtime.block_on(run(settings))) {
        Ok(Ending::Stopped) => ExitCode::SUCCESS,
        Ok(Ending::DaemonGone) => {
            say("the daemon closed the pipes; stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(with_sources(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> Result<Ending, StartError> {
    // Signals first: from here on a SIGTERM is an orderly stop, however early it comes.
    let terminate = signal(SignalKind::terminate()).map_err(StartError::Signals)?;
    let interrupt = signal(SignalKind::interrupt()).map_err(StartError::Signals)?;
    let address = settings.bind;
    let socket = TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })?;
    let (lines, acks) = start_pipes().map_err(StartError::Threads)?;
    let (path, verify) = (&settings.path, settings.verifier.name());
    say(format!("listening on http://{address}{path} (verify: {verify})"));
    let intake = Arc::new(Intake::new(settings, lines));
    let stop = either(terminate, interrupt);
    Ok(listener::serve(socket, intake, acks, stop).await)
}

/// Puts stdin and stdout on threads of their own, since both block for as long as the daemon
/// likes. Neither thread is joined: a blocked pipe must not hold up the end of the process.
fn start_pipes() -> io::Result<(mpsc::Sender<protocol::Line>, mpsc::Receiver<String>)> {
    let (line_sender, mut lines) = mpsc::channel(MAX_QUEUED_LINES);
    let (ack_sender, acks) = mpsc::channel(MAX_QUEUED_ACKS);
    std::thread::Builder::new().name("stdout".to_owned()).spawn(move || {
        if let Err(error) = protocol::write_lines(io::stdout(), &mut lines) {
            say(format!("failed to write to stdout: {error}"));
        }
    })?;
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        if let Err(error) = protocol::read_acks(BufReader::new(io::stdin()), &ack_sender) {
            say(format!("failed to read from stdin: {error}"));
        }
    })?;
    Ok((line_sender, acks))
}

async fn either(mut terminate: Signal, mut interrupt: Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// An error with the causes below it, in one line.
fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(line: &str) -> Result<Verb, String> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse_verb(&args)
    }

    #[test]
    fn the_protocol_commands_are_understood() {
        let account = || "github".to_owned();
        assert_eq!(parse("info").unwrap(), Verb::Info);
        assert_eq!(parse("accounts list").unwrap(), Verb::Accounts);
        let monitor = Verb::Monitor { account: account() };
        assert_eq!(parse("monitor --account github --format jsonl").unwrap(), monitor);
        assert_eq!(parse("monitor --format=jsonl --account=github").unwrap(), monitor);
        let health = Verb::Health { account: account() };
        assert_eq!(parse("health --account github").unwrap(), health);
    }

    #[test]
    fn anything_else_is_a_usage_error() {
        let lines = [
            "",
            "send",
            "info now",
            "accounts",
            "monitor",
            "monitor --account",
            "monitor --account a --format csv",
            "health --account=",
            "monitor --acount a",
        ];
        for line in lines {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn info_names_what_the_adapter_can_do() {
        let info = protocol::info();
        assert_eq!(info["supports"], json!(["monitor", "health", "ack"]));
        assert_eq!(info["protocol_version"], 1);
    }

    #[test]
    fn causes_are_told_in_order() {
        let source = io::Error::other("in use");
        let address = "127.0.0.1:7480".parse().unwrap();
        let text = with_sources(&StartError::Listen { address, source });
        assert!(text.contains("127.0.0.1:7480"));
        assert!(text.ends_with(": in use"));
    }
}
