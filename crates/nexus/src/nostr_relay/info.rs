//! The relay's description of itself (NIP-11). It is the same for everybody.

use super::limits::{AHEAD_S_MAX, MESSAGE_BYTES_MAX, ROWS_MAX, SUBSCRIPTION_CHARS_MAX, SUBSCRIPTIONS_MAX, TAGS_MAX};
use serde_json::json;

/// What the document is asked for and answered as.
pub(super) const MEDIA_TYPE: &str = "application/nostr+json";

pub(super) fn document(auth: bool) -> String {
    json!({
        "name": "nexus",
        "description": "The embedded relay of nexus, for one machine.",
        "software": "nexus",
        "version": env!("CARGO_PKG_VERSION"),
        "supported_nips": [1, 9, 11, 40, 42],
        "limitation": {
            "max_message_length": MESSAGE_BYTES_MAX,
            "max_subscriptions": SUBSCRIPTIONS_MAX,
            "max_subid_length": SUBSCRIPTION_CHARS_MAX,
            "max_limit": ROWS_MAX,
            "default_limit": ROWS_MAX,
            "max_event_tags": TAGS_MAX,
            "auth_required": auth,
            "payment_required": false,
            "restricted_writes": auth,
            "created_at_upper_limit": AHEAD_S_MAX,
        },
    })
    .to_string()
}
