//! `nexus daemon start`: the default configuration if there is none, then the daemon, here or in
//! the background.

use super::detach::{self, Flags};
use super::levels;
use crate::cli::Global;
use crate::cli::failure::{Exit, Failure};
use crate::cli::out::note;
use crate::daemon::{self, Paths, StartOptions};
use anyhow::Context;
use nexus_core::config::LogLevel;
use rustix::fd::OwnedFd;
use std::fs::File;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Run in the background, with the log in ~/.nexus/logs/nex.log
    #[arg(short, long)]
    detach: bool,
    /// Log from this level on, whatever the configuration says
    #[arg(long, value_name = "LEVEL", value_parser = levels())]
    log_level: Option<LogLevel>,
    /// Listen on this TCP port, whatever the configuration says
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Heed the events of these public keys too (npub1... or hexadecimal), separated by commas
    #[arg(short, long, value_name = "KEYS", value_delimiter = ',', value_parser = public_key)]
    whitelist: Vec<String>,
    /// Where projects lie, whatever the configuration says
    #[arg(short, long, value_name = "DIR", value_parser = absolute)]
    projects_path: Option<String>,
    /// How --detach starts itself: stdin is the pipe on which it says that it is ready
    #[arg(long, hide = true)]
    detached_child: bool,
    /// Stop when this process, which started it, is gone
    #[arg(long, hide = true, value_name = "PID")]
    until_parent_ends: Option<u32>,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    if let Some(parent) = args.until_parent_ends {
        follow(parent)?;
    }
    if args.detached_child {
        let ready = leave_terminal().context("failed to leave the terminal")?;
        return serve(args, global, Some(ready));
    }
    let paths = global.paths()?;
    create_config(&paths, global)?;
    if !args.detach {
        return serve(args, global, None);
    }
    let (whitelist, projects_path) = (args.whitelist.clone(), args.projects_path.clone());
    let flags = Flags { log_level: args.log_level, port: args.port, whitelist, projects_path };
    detach::start(&paths, global.config()?.as_deref(), flags)?.tell(global.out())?;
    Ok(Exit::Done)
}

/// Writes the commented default configuration if there is none and none was asked for, and says so.
pub(crate) fn create_config(paths: &Paths, global: &Global) -> anyhow::Result<()> {
    if global.config()?.is_some() {
        return Ok(());
    }
    let path = paths.config_file.display();
    if daemon::config::ensure_default(paths).with_context(|| format!("failed to write the default configuration to `{path}`"))? {
        note(&format!("created {path}"));
    }
    Ok(())
}

/// A path that stays the same when the daemon leaves this directory.
fn absolute(text: &str) -> Result<String, String> {
    let path = std::path::absolute(text).map_err(|error| error.to_string())?;
    path.into_os_string().into_string().map_err(|_| "that path is not UTF-8".to_owned())
}

/// A public key as it was written, if it is one.
fn public_key(text: &str) -> Result<String, String> {
    let is_key = nexus_core::config::public_key_hex(text).is_some();
    is_key.then(|| text.to_owned()).ok_or_else(|| "that is no public key; write npub1... or its 64 hexadecimal digits".to_owned())
}

/// Runs the daemon until it is asked to stop.
fn serve(args: &Args, global: &Global, ready_fd: Option<OwnedFd>) -> anyhow::Result<Exit> {
    let options = StartOptions {
        config: global.config()?,
        log_level: args.log_level,
        port: args.port,
        whitelist: args.whitelist.clone(),
        projects_path: args.projects_path.clone(),
        detached: ready_fd.is_some(),
        ready_fd,
    };
    match daemon::run(options) {
        Ok(()) => Ok(Exit::Done),
        Err(error) => {
            let exit = Exit::Code(error.exit_code());
            Err(Failure::new(exit, format!("{:#}", anyhow::Error::new(error))).into())
        }
    }
}

/// Has the kernel send TERM when the parent is gone (PR_SET_PDEATHSIG of prctl(2)).
fn follow(parent: u32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM)).context("failed to follow the parent")?;
    // It may have gone before that.
    let now = rustix::process::getppid().and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
    if now == Some(parent) { Ok(()) } else { Err(Failure::new(Exit::Failed, "the process that started this daemon is gone").into()) }
}

/// A session of its own, and /dev/null as stdin. What stdin was is the pipe to who started this.
fn leave_terminal() -> std::io::Result<OwnedFd> {
    rustix::process::setsid()?;
    let ready = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(ready)
}
