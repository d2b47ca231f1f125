//! What signals do (requirement: Signal Handling).

use super::shutdown::Running;
use super::{reload, status};
use crate::keeper::leftovers;
use crate::panics;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Debug)]
pub(super) struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
    usr1: Signal,
    usr2: Signal,
    child: Signal,
}

/// How a daemon ended.
#[derive(Debug)]
pub(super) enum End {
    Clean,
    /// By an INT during the shutdown: what was under way is interrupted.
    AtOnce,
}

/// What a signal asks for.
enum Asked {
    Stop(&'static str),
    Hangup,
    Reload,
    Diagnose,
    Reap,
}

impl Signals {
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
            usr1: signal(SignalKind::user_defined1())?,
            usr2: signal(SignalKind::user_defined2())?,
            child: signal(SignalKind::child())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.term.recv() => Asked::Stop("SIGTERM"),
            _ = self.int.recv() => Asked::Stop("SIGINT"),
            _ = self.hup.recv() => Asked::Hangup,
            _ = self.usr1.recv() => Asked::Reload,
            _ = self.usr2.recv() => Asked::Diagnose,
            _ = self.child.recv() => Asked::Reap,
        }
    }
}

/// Obeys signals until one asks for the end, and shuts down. A second INT stops at once: children
/// die with the keeper, what was under way is interrupted.
pub(super) async fn serve(mut running: Running) -> End {
    let reason = loop {
        match running.signals.next().await {
            Asked::Stop(reason) => break reason,
            Asked::Hangup if !running.control.options.detached => break "SIGHUP",
            asked @ (Asked::Hangup | Asked::Reload | Asked::Diagnose | Asked::Reap) => {
                // This loop is the daemon's own life: a defect in what a signal asks for must not end it.
                if let Err(panicked) = panics::catch(|| obey(&running, &asked)) {
                    running.control.watch_over.tell("signals", &panicked.to_string());
                }
            }
        }
    };
    let (shutdown, mut signals) = running.shutdown(reason);
    tokio::select! {
        done = panics::caught(shutdown) => match done {
            Ok(()) => End::Clean,
            Err(panicked) => {
                tracing::error!(error = %panicked, "the shutdown broke off: stopping at once");
                End::AtOnce
            }
        },
        _ = signals.int.recv() => {
            tracing::warn!("SIGINT during the shutdown: stopping at once");
            End::AtOnce
        }
    }
}

/// Does what is done without ending.
fn obey(running: &Running, asked: &Asked) {
    crate::torture::point("task.signals");
    match asked {
        Asked::Hangup => {
            running.logging.reopen();
            tracing::info!("log file reopened");
        }
        Asked::Reload => {
            // Not awaited: it may have to wait for children, and a stop must not.
            let control = running.control.clone();
            crate::watch::helper("reload", async move {
                if let Err(refusal) = reload::reload(&control, false).await {
                    tracing::error!(problems = refusal.problems.join("; "), "{}", refusal.error);
                }
            });
        }
        Asked::Diagnose => diagnose(running),
        // A subreaper: what a dead keeper left, and as PID 1 strangers too, end as our zombies.
        Asked::Reap => leftovers::reap_all(),
        Asked::Stop(_) => {} // ends the loop
    }
}

/// Writes what is known about the running daemon into the state directory.
fn diagnose(running: &Running) {
    let control = &running.control;
    let children: Vec<_> = control
        .supervisor
        .list()
        .into_iter()
        .map(|(id, status)| json!({ "child": id, "phase": format!("{:?}", status.phase), "pid": status.pid, "restarts": status.restarts, "last_error": status.last_error }))
        .collect();
    let document = json!({
        "status": status::status(control),
        "health": status::health(control).1,
        "children": children,
        "metrics": control.metrics.text().unwrap_or_default(),
    });
    let path = running.paths.state_dir.join(format!("diagnostics-{}.json", crate::clock::wall_ms()));
    match crate::credential::write_private(&path, format!("{document:#}\n").as_bytes()) {
        Ok(()) => tracing::info!(path = %path.display(), "diagnostics written"),
        Err(error) => tracing::error!(path = %path.display(), %error, "diagnostics not written"),
    }
}
