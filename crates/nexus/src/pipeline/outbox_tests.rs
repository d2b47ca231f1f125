//! Tests of the outbox: what expires.
#![allow(clippy::unwrap_used)]

use super::*;
use nexus_core::doubt::Reading;

const NOW: i64 = 1_000_000;

/// What an attempt at a delivery whose time is up comes to. No adapter is configured.
async fn attempt_late(expiry: Expiry) -> Settled {
    let directory = tempfile::tempdir().unwrap();
    let (ledgers, _threads) = Ledgers::start(directory.path(), 0).unwrap();
    let outbox = Outbox::new(ledgers, Routes::default(), Bus::new(1, 16), Metrics::new(), expiry, 1);
    let late = pending(NewDelivery {
        delivery_id: "d".to_owned(),
        request_id: "req".to_owned(),
        event_seq: 1,
        run_id: None,
        adapter: "fake".to_owned(),
        channel: "fake".to_owned(),
        account_id: "me".to_owned(),
        target: "p".to_owned(),
        thread_id: None,
        reply_to_id: None,
        idempotency_key: "key".to_owned(),
        content: "hello".to_owned(),
        created_at: 1,
        expires_at: NOW - 1,
        here: false,
    });
    outbox.attempt(&late).await.unwrap()
}

#[tokio::test]
async fn what_is_too_old_expires_but_not_while_the_clock_is_in_doubt() {
    let clocks = || Reading { wall_ms: NOW, boot_ms: 0 };
    let believed = attempt_late(Expiry::with_clocks(NOW, clocks)).await;
    assert!(matches!(believed, Settled::Expired { .. }), "{believed:?}");
    let in_doubt = attempt_late(Expiry::with_clocks(NOW + 1, clocks)).await;
    assert!(matches!(in_doubt, Settled::Failed { .. }), "it was not tried: {in_doubt:?}");
}
