//! The connection to one running process of an agent, from its handshake to its end, which of the
//! agent's own sessions it knows, and how many that has open. It is not the process, and doesn't read it.

use super::hub::Hub;
use agent_client_protocol::v1::ConnectionTo;
use agent_client_protocol::v1::schema::{AgentCapabilities, SessionId};
use agent_client_protocol::{Agent, Error, ErrorCode, is_connection_terminated, is_incoming_transport_closed};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio_util::sync::CancellationToken;

/// Sessions that one process has open, those of which nothing is known any more included; beyond, it is ended once it
/// has nothing to do.
const SESSIONS_OPEN_MAX: usize = 256;
/// Sessions of one process that are known; beyond, one is forgotten and opened anew.
const SESSIONS_MAX: usize = 4096;
/// Characters of an agent's error that are told.
const ERROR_CHARS_MAX: usize = 500;

/// A session of the agent's own that the process has open.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) id: SessionId,
    /// The newest turn that it has heard.
    pub(super) turn_id: String,
}

/// What goes on in a process, and what it still keeps.
#[derive(Debug, Default)]
struct Use {
    turns: usize,
    open: usize,
    /// It is about to be ended: no turn begins any more.
    is_retired: bool,
}

/// A turn that needs the process. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Inside(Arc<Link>);

impl Drop for Inside {
    fn drop(&mut self) {
        let mut used = self.0.used();
        used.turns = used.turns.saturating_sub(1);
    }
}

/// A connection after its handshake.
#[derive(Debug)]
pub(super) struct Link {
    pid: u32,
    connection: ConnectionTo<Agent>,
    hub: Arc<Hub>,
    can: AgentCapabilities,
    sessions: Mutex<HashMap<String, Known>>,
    used: Mutex<Use>,
    dead: CancellationToken,
    reason: OnceLock<String>,
}

impl Link {
    pub(super) fn new(pid: u32, connection: ConnectionTo<Agent>, hub: Arc<Hub>, can: AgentCapabilities) -> Self {
        let (dead, reason) = (CancellationToken::new(), OnceLock::new());
        Self { pid, connection, hub, can, sessions: Mutex::default(), used: Mutex::default(), dead, reason }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn connection(&self) -> &ConnectionTo<Agent> {
        &self.connection
    }

    pub(super) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    pub(super) fn can(&self) -> &AgentCapabilities {
        &self.can
    }

    /// Ends the connection, and with it the whole process tree: its reader sees to that.
    pub(super) fn kill(&self, reason: &str) {
        self.reason.set(reason.to_owned()).ok(); // the first reason is the reason
        self.dead.cancel();
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }

    pub(super) async fn died(&self) {
        self.dead.cancelled().await;
    }

    /// Why it ended.
    pub(super) fn reason(&self) -> String {
        self.reason.get().cloned().unwrap_or_else(|| "its process ended".to_owned())
    }

    /// Whether a request failed because the connection is gone, and not by the agent's word.
    pub(super) fn is_lost(&self, error: &Error) -> bool {
        self.is_dead() || is_incoming_transport_closed(error) || is_connection_terminated(error)
    }

    pub(super) fn session(&self, label: &str) -> Option<Known> {
        self.sessions().get(label).cloned()
    }

    /// What had its place is returned, if it is another session.
    #[must_use]
    pub(super) fn remember(&self, label: &str, known: Known) -> Option<SessionId> {
        let id = known.id.clone();
        let mut sessions = self.sessions();
        let mut gone = None;
        if sessions.len() >= SESSIONS_MAX
            && !sessions.contains_key(label)
            && let Some(one) = sessions.keys().next().cloned()
        {
            gone = sessions.remove(&one);
        }
        let gone = sessions.insert(label.to_owned(), known).or(gone);
        gone.map(|gone| gone.id).filter(|gone| *gone != id)
    }

    pub(super) fn forget(&self, label: &str) {
        self.sessions().remove(label);
    }

    /// Whether a turn hears this session, or one may go on in it.
    pub(super) fn needs(&self, id: &SessionId) -> bool {
        self.hub.hears(id) || self.sessions().values().any(|known| known.id == *id)
    }

    /// A turn begins that needs the process; `None` where that is about to be ended.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Inside> {
        let mut used = self.used();
        if used.is_retired {
            return None;
        }
        used.turns += 1;
        Some(Inside(self.clone()))
    }

    pub(super) fn opened(&self) {
        self.used().open += 1;
    }

    pub(super) fn closed(&self) {
        let mut used = self.used();
        used.open = used.open.saturating_sub(1);
    }

    /// Whether it has more sessions open than it may and nothing to do. From then on it is not to be used, and true once.
    pub(super) fn retires(&self) -> bool {
        let mut used = self.used();
        if used.is_retired || used.turns > 0 || used.open < SESSIONS_OPEN_MAX {
            return false;
        }
        used.is_retired = true;
        true
    }

    pub(super) fn is_retired(&self) -> bool {
        self.used().is_retired
    }

    fn used(&self) -> MutexGuard<'_, Use> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An agent's error in one line.
pub(super) fn told(error: &Error) -> String {
    let detail = error.data.as_ref().map_or_else(String::new, |data| format!(": {data}"));
    let advice = if error.code == ErrorCode::AUTH_REQUIRED { " (log in with the agent's own program first)" } else { "" };
    let text = format!("{} ({}){detail}", error.message, error.code.value());
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(ERROR_CHARS_MAX).collect();
    format!("{line}{advice}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_agents_error_is_one_line_of_bounded_length() {
        let mut error = Error::internal_error();
        error.message = "no\nluck\u{1b}[31m".to_owned();
        let error = error.data(serde_json::json!({ "much": "x".repeat(10_000) }));
        let told = told(&error);
        assert!(told.starts_with("no luck [31m (-32603)") && told.chars().count() <= ERROR_CHARS_MAX, "{told}");
        assert!(super::told(&Error::auth_required()).ends_with("own program first)"));
    }
}
