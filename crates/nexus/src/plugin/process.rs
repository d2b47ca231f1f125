//! The supervised child of a plugin: what is started, and who talks with it.

use super::found::{Found, Kind};
use super::loaded::Plugin;
use super::session::{Desks, Session};
use crate::environment;
use crate::keeper::{Process, SpawnSpec, Stdin};
use crate::panics::finally;
use crate::supervisor::{self, BoxFuture, NotReady};
use nexus_core::config::Restart;
use nexus_core::ids::ChildId;
use nexus_core::lifecycle::RestartPolicy;
use std::sync::{Arc, Weak};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// From TERM to KILL.
const STOP_GRACE_MS: u64 = 2_000;
/// What one script may use (`nexus __plugin-host`).
const SCRIPT_MEMORY_MB: &str = "64";
const SCRIPT_STACK_KB: &str = "512";
const SCRIPT_CALL_MS: &str = "1000";

/// Plugins are restarted as adapters are by default.
pub(super) fn policy() -> RestartPolicy {
    RestartPolicy::new(&Restart::default(), STOP_GRACE_MS)
}

/// How a plugin's process is started. A script's host gets no environment but the keeper's mark.
pub(super) fn spec(found: &Found, child: ChildId) -> SpawnSpec {
    let (argv, cwd, env) = match &found.kind {
        Kind::Script(path) => {
            let file = path.to_string_lossy().into_owned();
            let limits = ["--memory-mb", SCRIPT_MEMORY_MB, "--stack-kb", SCRIPT_STACK_KB, "--call-ms", SCRIPT_CALL_MS];
            let mut argv = vec![environment::own_binary()];
            argv.extend(["__plugin-host", "--file", file.as_str(), "--name", found.name.as_str()].map(str::to_owned));
            argv.extend(limits.map(str::to_owned));
            (argv, path.parent().map(std::path::Path::to_owned), Vec::new())
        }
        Kind::Program { directory, file } => {
            let mut env = environment::base();
            env.push(("NEXUS_PLUGIN".to_owned(), found.name.clone()));
            (file.argv.clone(), Some(directory.clone()), env)
        }
    };
    SpawnSpec { child, argv, env, cwd, stdin: Stdin::Piped }
}

#[derive(Debug)]
pub(super) struct Program {
    /// Weak: the plugin owns the child that owns this.
    plugin: Weak<Plugin>,
    child: ChildId,
    found: Found,
}

impl Program {
    pub(super) fn new(plugin: &Arc<Plugin>) -> Self {
        Self { plugin: Arc::downgrade(plugin), child: plugin.child_id(), found: plugin.found.clone() }
    }
}

impl supervisor::Program for Program {
    fn prepare(&self) -> BoxFuture<'_, Result<SpawnSpec, NotReady>> {
        Box::pin(std::future::ready(Ok(spec(&self.found, self.child.clone()))))
    }

    fn attach(&self, process: &mut Process, exited: CancellationToken) -> JoinHandle<()> {
        let plugin = self.plugin.upgrade();
        let session = plugin.as_ref().and_then(|plugin| Session::new(process, Desks::one(plugin.desk())));
        let (plugin, child) = (self.plugin.clone(), self.child.clone());
        crate::watch::helper("plugin.reader", async move {
            let Some((session, pipes)) = session else { return };
            let publish = |session: Option<Arc<Session>>| {
                if let Some(plugin) = plugin.upgrade() {
                    plugin.session.send_replace(session);
                }
            };
            publish(Some(session.clone()));
            let _gone = finally(|| publish(None));
            session.serve(child, pipes, exited).await;
        })
    }
}
