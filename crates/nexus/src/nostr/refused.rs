//! What the ledger refuses of Nostr: told, and passed by, since no repetition mends it. It writes nothing.

use crate::error_text::describe;
use crate::ledger::writer::WriteError;

/// Whether the ledger refused it, which no repetition mends; what comes after it must not wait for it.
pub(super) fn is_refused(written: Result<(), WriteError>) -> Result<bool, WriteError> {
    match written {
        Ok(()) => Ok(false),
        Err(error @ WriteError::Refused { .. }) => {
            tracing::error!(error = %describe(&error), "something of Nostr was refused by the ledger");
            Ok(true)
        }
        Err(error @ (WriteError::Closed { .. } | WriteError::Unknown { .. })) => Err(error),
    }
}

/// Tells of what was offered by itself, and refused all the same: nothing more is done about it.
pub(super) fn is_left_out(written: Result<(), WriteError>, event: &str) -> Result<(), WriteError> {
    match written {
        Err(error @ WriteError::Refused { .. }) => {
            tracing::error!(error = %describe(&error), event, "Error handling event");
            Ok(())
        }
        done => done,
    }
}
