//! Nexus: an always-on daemon that connects channels to agents, with durable ledgers.
//!
//! One binary. This library is for its tests and benchmarks; it promises no stable interface. Where
//! what is: ARCHITECTURE.md.

pub mod access;
pub mod adapter;
pub mod agent;
pub mod backup;
pub mod bus;
pub mod cli;
pub mod clock;
pub mod credential;
pub mod daemon;
pub mod doctor;
pub mod environment;
pub mod error_text;
mod file_error;
mod framing;
pub mod http;
pub mod keeper;
pub mod ledger;
pub mod live;
pub mod logging;
mod memory;
pub mod metrics;
pub mod nostr;
pub mod nostr_relay;
pub mod oneshot;
pub mod panics;
#[cfg(test)]
mod patience;
pub mod pipeline;
pub mod plugin;
mod plugin_host;
pub mod project;
pub mod project_run;
pub mod query;
pub mod replies;
pub mod routes;
#[cfg(test)]
mod samples;
pub mod search;
pub mod stderr;
pub mod supervisor;
pub mod timer;
mod torture;
mod unknown;
pub mod watch;
pub mod webhook;

/// Hands over to the keeper, the bundled webhook adapter, the host of a plugin, that of the automations or the command
/// line, by the first argument.
#[must_use]
pub fn main() -> std::process::ExitCode {
    // The keeper comes first: it must do as little as possible before it is its own small process.
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(std::ffi::OsStr::to_str) {
        Some("__keeper") => keeper::main(),
        Some("__webhook") => webhook::main(args.map(|arg| arg.to_string_lossy().into_owned()).collect()),
        Some("__plugin-host") => plugin_host::main(&args.map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>()),
        Some("__automation-host") => {
            plugin_host::main_of_automations(&args.map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>())
        }
        Some(_) | None => cli::main(),
    }
}
