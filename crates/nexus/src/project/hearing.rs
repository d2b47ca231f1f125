//! For how long a process could be heard: its time stands still while what it said before waits here, since its answers are
//! behind that and nobody reads them. It reads no clock.

/// The time in which a process was listened to, by a clock of its own. In ms.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    waited_ms: u64,
    since_ms: Option<u64>,
}

impl Hearing {
    /// From now on it isn't read.
    pub(super) fn stop(&mut self, now_ms: u64) {
        self.since_ms = Some(now_ms);
    }

    /// It is read again. `is_ours` is whether that was for want of room here, and not because the process doesn't read.
    pub(super) fn go_on(&mut self, now_ms: u64, is_ours: bool) {
        let waited_ms = self.waits_for(now_ms);
        self.since_ms = None;
        if is_ours {
            self.waited_ms = self.waited_ms.saturating_add(waited_ms);
        }
    }

    /// What of the time until now counts.
    pub(super) fn heard_ms(&self, now_ms: u64, is_ours: bool) -> u64 {
        let waits_ms = if is_ours { self.waits_for(now_ms) } else { 0 };
        now_ms.saturating_sub(self.waited_ms).saturating_sub(waits_ms)
    }

    fn waits_for(&self, now_ms: u64) -> u64 {
        self.since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stands_still_while_we_wait_and_not_while_the_process_does_not_read() {
        let mut hearing = Hearing::default();
        assert_eq!(hearing.heard_ms(100, true), 100);
        hearing.stop(100);
        assert_eq!((hearing.heard_ms(900, true), hearing.heard_ms(900, false)), (100, 900));
        hearing.go_on(900, true);
        assert_eq!((hearing.heard_ms(900, true), hearing.heard_ms(1_000, true)), (100, 200));
        hearing.stop(1_000);
        hearing.go_on(1_500, false);
        assert_eq!(hearing.heard_ms(1_500, true), 700, "that was the process's own time");
    }
}
