//! What the bus may say: the closed list of notice types, as subscribers see them.

macro_rules! notice_types {
    ($($name:ident = $wire:literal),* $(,)?) => {
        /// The type of a notice. Every type the daemon publishes is here.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum NoticeType { $($name),* }

        impl NoticeType {
            /// Every type, for documentation and for checking a subscriber's filter.
            pub const ALL: &'static [NoticeType] = &[$(NoticeType::$name),*];

            /// The name on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(NoticeType::$name => $wire),* }
            }
        }
    };
}

notice_types! {
    SystemStarted = "system.started",
    SystemStopping = "system.stopping",
    SystemError = "system.error",
    ConfigReloaded = "system.config_reloaded",
    AdapterStarted = "adapter.started",
    AdapterStopped = "adapter.stopped",
    AdapterErrored = "adapter.errored",
    AdapterHealth = "adapter.health",
    EventReceived = "adapter.in.received",
    LineRejected = "adapter.in.rejected",
    DeliverySending = "adapter.out.sending",
    DeliverySent = "adapter.out.sent",
    DeliveryError = "adapter.out.error",
    RequestStarted = "nex.request.started",
    RequestStage = "nex.request.stage",
    RequestCompleted = "nex.request.completed",
    RequestError = "nex.request.error",
    AclDecision = "acl.decision",
    HookFired = "hook.fired",
    HookError = "hook.error",
    SessionCreated = "session.created",
    TurnCreated = "turn.created",
    TurnCompleted = "turn.completed",
    StreamStart = "agent.streaming.start",
    StreamToken = "agent.streaming.token",
    StreamEnd = "agent.streaming.end",
    AgentStatus = "agent.status.changed",
    AgentError = "agent.error",
    ToolStarted = "agent.tool.started",
    ToolCompleted = "agent.tool.completed",
    TimerFired = "timer.fired",
    TimerMissed = "timer.missed",
    NostrConnected = "nostr.relay.connected",
    NostrSubscribed = "nostr.relay.subscribed",
    NostrDeaf = "nostr.relay.deaf",
    NostrDisconnected = "nostr.relay.disconnected",
    NostrPublished = "nostr.published",
    ProjectDiscovered = "project.discovered",
    ProjectPreparing = "project.preparing",
    ProjectStarted = "project.started",
    ProjectReady = "project.ready",
    ProjectExited = "project.exited",
    ProjectQuarantined = "project.quarantined",
}

impl NoticeType {
    /// Tokens pass by and are gone: the durable copy is the finished turn.
    pub fn is_kept(self) -> bool {
        self != Self::StreamToken
    }
}

/// A subscriber's `types=` filter: names, `prefix.*`, or everything when empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    patterns: Vec<String>,
}

impl Filter {
    /// Reads a comma-separated list.
    ///
    /// # Errors
    /// Names the pattern that matches no notice type at all, since it would stay silent for ever.
    pub fn parse(text: &str) -> Result<Self, String> {
        let patterns: Vec<String> = text.split(',').map(str::trim).filter(|p| !p.is_empty()).map(Into::into).collect();
        for pattern in &patterns {
            if !NoticeType::ALL.iter().any(|kind| matches(pattern, kind.as_str())) {
                return Err(format!("no notice type matches `{pattern}`; examples: adapter.*, nex.request.completed"));
            }
        }
        Ok(Self { patterns })
    }

    pub fn wants(&self, kind: &str) -> bool {
        self.patterns.is_empty() || self.patterns.iter().any(|pattern| matches(pattern, kind))
    }
}

fn matches(pattern: &str, kind: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some("") => true,
        Some(prefix) => prefix.ends_with('.') && kind.starts_with(prefix),
        None => pattern == kind,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn filters_by_name_and_prefix() {
        let filter = Filter::parse("adapter.*, nex.request.completed").unwrap();
        assert!(filter.wants("adapter.in.received"));
        assert!(filter.wants("nex.request.completed"));
        assert!(!filter.wants("nex.request.started"));
        assert!(Filter::parse("").unwrap().wants("anything"));
        assert!(Filter::parse("*").unwrap().wants("timer.fired"));
    }

    #[test]
    fn a_filter_that_can_never_match_is_refused() {
        assert!(Filter::parse("adaptor.*").unwrap_err().contains("adaptor.*"));
        assert!(Filter::parse("adapter.i*").is_err());
    }

    #[test]
    fn wire_names_are_unique() {
        let mut names: Vec<_> = NoticeType::ALL.iter().map(|k| k.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NoticeType::ALL.len());
    }
}
