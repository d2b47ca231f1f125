//! The bounds of the relay. What happens at each is said where it is used; docs/nostr-relay.md lists them.

use std::time::Duration;

/// Longest message of a client, and so the longest event.
pub(super) const MESSAGE_BYTES_MAX: usize = 128 * 1024;
pub(super) const TAGS_MAX: usize = 2_000;
/// Seconds by which an event may be ahead of this machine's clock.
pub(super) const AHEAD_S_MAX: u64 = 900;

pub(super) const SUBSCRIPTIONS_MAX: usize = 64;
/// Longest subscription id, in characters (NIP-01).
pub(super) const SUBSCRIPTION_CHARS_MAX: usize = 64;
pub(super) const FILTERS_MAX: usize = 16;
/// Values in all lists of one filter together.
pub(super) const FILTER_VALUES_MAX: usize = 4_000;
/// Stored events that one filter answers with, whatever its `limit`.
pub(super) const ROWS_MAX: usize = 5_000;
/// Stored events that one REQ answers with, in bytes.
pub(super) const FOUND_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Past this many, new connections wait in the kernel's backlog.
pub(super) const CONNECTIONS_MAX: usize = 128;
/// Events of one connection that wait for the disk; it is not read meanwhile.
pub(super) const UNANSWERED_MAX: usize = 256;
/// Messages of one connection that make no sense, before it is closed.
pub(super) const STRIKES_MAX: u32 = 32;
/// New events that a connection may be behind; one that is further behind is closed.
pub(super) const BEHIND_MAX: usize = 4_096;
/// How long one message may take to leave.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection that says nothing is pinged, and closed when it says nothing for twice as long.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(60);
/// From the first byte to a WebSocket, or to the end of an HTTP answer.
pub(super) const HTTP_TIMEOUT: Duration = Duration::from_secs(15);
pub(super) const HTTP_BUFFER_BYTES_MAX: usize = 32 * 1024;

/// Asks that wait for the database's thread; who asks waits too.
pub(super) const STORE_QUEUE_MAX: usize = 1_024;
/// Events that share one commit.
pub(super) const BATCH_MAX: usize = 256;
/// Expired events that are removed at once.
pub(super) const SWEEP_ROWS_MAX: usize = 1_000;
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// How old or how far ahead the proof of NIP-42 may be.
pub(super) const AUTH_S_MAX: u64 = 600;

/// How long open connections have to say goodbye when the relay stops.
pub(super) const GOODBYE: Duration = Duration::from_secs(2);
/// How long the database has to be closed.
pub(super) const STORE_CLOSE: Duration = Duration::from_secs(10);
