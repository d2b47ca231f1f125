//! How unit tests wait for what other tasks do: on a condition, with a deadline. Never for tests on paused time.

use std::time::Duration;

/// How long anything may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// What comes of `what`, which must not hang.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("it comes within the deadline")
}

/// Waits until it is so.
pub(crate) async fn eventually(mut is_so: impl AsyncFnMut() -> bool) {
    let mut tick = tokio::time::interval(POLL);
    soon(async {
        while !is_so().await {
            tick.tick().await;
        }
    })
    .await;
}
