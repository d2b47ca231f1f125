//! What a call can come to instead of an answer, and what that says of the plugin.

use nexus_core::hook::{Hook, PatchError};

/// Why a call came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("it failed: {0}")]
    Threw(String),
    #[error("its answer is none: {0}")]
    Nonsense(String),
    #[error("its patch was refused: {0}")]
    Patch(#[from] PatchError),
    #[error("its patch was refused: it is told of `{point}` and not asked, so nothing can be changed", point = .hook.as_str())]
    Told { hook: Hook },
    #[error("it gave no answer within {limit_ms} ms and was killed")]
    TimedOut { limit_ms: u128 },
    #[error("it gave no answer within {limit_ms} ms")]
    Late { limit_ms: u128 },
    #[error("its process ended before it answered")]
    Died,
    #[error("another of its calls took it along: {0}")]
    TakenAlong(String),
    #[error("its process does not run: {0}")]
    Down(String),
    #[error("it is not asked after too many errors in a row")]
    Open,
    #[error("the request's time was up before it answered")]
    OutOfTime,
    #[error("it could not be asked: {0}")]
    Unasked(String),
}

impl Fault {
    /// A plugin answers as only automations do.
    pub(super) fn returned() -> Self {
        Self::Nonsense("`returned` is for automations".to_owned())
    }

    /// Whether the plugin had the call before it failed.
    pub(super) fn was_called(&self) -> bool {
        match self {
            Self::Threw(_)
            | Self::Nonsense(_)
            | Self::Patch(_)
            | Self::Told { .. }
            | Self::TimedOut { .. }
            | Self::Late { .. }
            | Self::Died
            | Self::TakenAlong(_) => true,
            Self::Down(_) | Self::Open | Self::OutOfTime | Self::Unasked(_) => false,
        }
    }

    /// The word for metrics.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Threw(_) => "error",
            Self::Nonsense(_) | Self::Patch(_) | Self::Told { .. } => "invalid",
            Self::TimedOut { .. } | Self::Late { .. } => "timeout",
            Self::Died | Self::Down(_) | Self::TakenAlong(_) => "down",
            Self::Open => "open",
            Self::OutOfTime | Self::Unasked(_) => "unasked",
        }
    }

    /// Whether it is the plugin's own: one that opens its circuit. What one call did counts for that one only, and so
    /// does an end: those that come while the process is being started again say nothing new.
    pub(super) fn counts(&self) -> bool {
        match self {
            Self::Threw(_) | Self::Nonsense(_) | Self::Patch(_) | Self::Told { .. } => true,
            Self::TimedOut { .. } | Self::Late { .. } | Self::Died => true,
            Self::Down(_) | Self::Open | Self::OutOfTime | Self::Unasked(_) | Self::TakenAlong(_) => false,
        }
    }
}
