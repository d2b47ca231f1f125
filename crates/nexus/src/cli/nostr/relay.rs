//! `nexus nostr relay`: runs the embedded relay until it is told to stop. What a relay is, `nostr_relay` says.

use crate::cli::Global;
use crate::cli::failure::{Exit, Failure};
use crate::nostr_relay::{Options, Relay, RelayError};
use anyhow::Context;
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  nexus nostr relay\n  nexus nostr relay --listen 127.0.0.1:7777 --auth --directory ./relay")]
pub(crate) struct Args {
    /// Where to listen; port 0 takes any that is free
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7410")]
    listen: SocketAddr,
    /// Serve only those who say who they are (NIP-42)
    #[arg(long)]
    auth: bool,
    /// Where its events are kept [default: ~/.nexus/relay]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Let other machines connect
    #[arg(long)]
    allow_external: bool,
    /// How large the database may become
    #[arg(long, value_name = "MB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    max_mb: u32,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let directory = match &args.directory {
        Some(directory) => directory.clone(),
        None => global.paths()?.state_dir.join("relay"),
    };
    let options = Options { listen: args.listen, directory, auth: args.auth, allow_external: args.allow_external, max_mb: args.max_mb };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("failed to start the runtime")?;
    runtime.block_on(serve(options, global))?;
    Ok(Exit::Done)
}

async fn serve(options: Options, global: &Global) -> anyhow::Result<()> {
    // Signals first: from here on a TERM is an orderly stop, however early it comes.
    let stop = CancellationToken::new();
    listen_for_the_end(&stop).context("failed to watch for signals")?;
    let relay = match Relay::open(options).await {
        Ok(relay) => relay,
        Err(error @ RelayError::External(_)) => return Err(Failure::new(Exit::Usage, error.to_string()).into()),
        Err(error) => return Err(error.into()),
    };
    let (url, out) = (relay.url(), global.out());
    if out.json {
        out.json(&json!({ "listening": url }))?;
    } else {
        out.line(&format!("listening on {url}"))?;
    }
    relay.serve(stop).await;
    Ok(())
}

/// Cancels `stop` at the first TERM, INT or HUP.
fn listen_for_the_end(stop: &CancellationToken) -> std::io::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        let (mut came, stop) = (signal(kind)?, stop.clone());
        crate::watch::helper("signal", async move {
            came.recv().await;
            stop.cancel();
        });
    }
    Ok(())
}
