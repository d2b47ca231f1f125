//! The sections `ledgers` and `bus`: where records are kept, for how long, and how much the bus holds.

use super::decode::{DAYS_MAX, nonempty};

/// Most disk space that may be kept free, in MiB: one TiB.
const MIN_FREE_MB_MAX: u64 = 1024 * 1024;
/// Fewest and most notices in the bus ring.
const RING_NOTICES_MIN: u32 = 100;
const RING_NOTICES_MAX: u32 = 1_000_000;

words! {
    /// Where the bus keeps its notices.
    BusMode {
        /// In the ring only; gone when the daemon stops.
        #[default]
        Memory = "memory",
        /// In `bus.db` too, so that clients can resume across restarts. Tokens are never written.
        WriteThrough = "write-through",
    }
}

section! {
    /// Where records are kept and for how long.
    Ledgers {
        /// Directory of the SQLite databases, relative to the configuration file. A change needs a
        /// restart.
        directory: String = "./data".to_owned() => nonempty;
        /// How long bulky records are kept. Events are kept for ever.
        retention: Retention = Retention::default();
        /// Free disk space, in MiB, below which adapters stop being read and health is `unhealthy`.
        min_free_mb: u64 [0..=MIN_FREE_MB_MAX] = 256;
    }
}

section! {
    /// How long bulky records are kept.
    Retention {
        /// Days for which full request snapshots are kept.
        snapshots_days: u32 [1..=DAYS_MAX] = 7;
        /// Days for which traces are kept.
        traces_days: u32 [1..=DAYS_MAX] = 30;
        /// Days for which it is kept who was let in or denied, and why.
        audit_days: u32 [1..=DAYS_MAX] = 365;
    }
}

section! {
    /// How much of what happens is held for those who follow it.
    Bus {
        /// `memory`, or `write-through` to keep notices in `bus.db` too.
        mode: BusMode = BusMode::default();
        /// Notices that a slow or returning client can still get.
        ring: u32 [RING_NOTICES_MIN..=RING_NOTICES_MAX] = 10_000;
        /// Days for which written-through notices are kept.
        retention_days: u32 [1..=DAYS_MAX] = 7;
    }
}
