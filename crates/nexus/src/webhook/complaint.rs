//! What the adapter says on stderr, where the daemon logs it.
//! Owns the limit of one line per cause and interval; never prints a secret or a body, since it is
//! only ever given error texts.

use std::collections::HashMap;
use std::fmt::Display;
use std::io::Write;
use std::time::{Duration, Instant};

/// A cause is named at most once in this time; repeats are counted.
const REPEAT_INTERVAL_S: u64 = 10;

/// Writes one line to stderr.
pub(super) fn say(text: impl Display) {
    // When stderr is gone nobody is left to tell.
    writeln!(std::io::stderr(), "webhook: {text}").ok();
}

#[derive(Debug)]
struct Cause {
    last: Instant,
    suppressed: u64,
}

/// Remembers when each cause was last named. Causes are static texts, so it cannot grow.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    causes: HashMap<&'static str, Cause>,
}

impl Complaints {
    /// Whether `cause` may be named now: the number of repeats swallowed since the last time, or
    /// `None` while it must stay quiet.
    pub(super) fn due(&mut self, cause: &'static str, now: Instant) -> Option<u64> {
        let Some(known) = self.causes.get_mut(cause) else {
            let first = Cause { last: now, suppressed: 0 };
            self.causes.insert(cause, first);
            return Some(0);
        };
        if now.duration_since(known.last) < Duration::from_secs(REPEAT_INTERVAL_S) {
            known.suppressed += 1;
            return None;
        }
        known.last = now;
        Some(std::mem::take(&mut known.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_counted_not_printed() {
        let start = Instant::now();
        let mut complaints = Complaints::default();
        assert_eq!(complaints.due("a", start), Some(0));
        assert_eq!(complaints.due("a", start), None);
        assert_eq!(complaints.due("a", start + Duration::from_secs(9)), None);
        assert_eq!(complaints.due("b", start), Some(0));
        let later = start + Duration::from_secs(REPEAT_INTERVAL_S);
        assert_eq!(complaints.due("a", later), Some(2));
        assert_eq!(complaints.due("a", later), None);
    }
}
