//! What becomes of a hold whose holder fails.
#![allow(clippy::unwrap_used)]

use super::{Hold, INBOX_MAX, Router, Told};
use nexus_core::ids::AccountKey;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long anything here may take: a hold that is never let go must fail, not hang.
const DEADLINE: Duration = Duration::from_secs(30);

fn account(n: usize) -> AccountKey {
    AccountKey::new("fake", n.to_string())
}

fn router() -> (Router, mpsc::Receiver<Told>) {
    let (told, inbox) = mpsc::channel(INBOX_MAX);
    (Router { told, stop: CancellationToken::new(), runs: TaskTracker::new() }, inbox)
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("it comes within the deadline")
}

/// Takes the hold that is asked for, as the router does.
async fn take_hold(inbox: &mut mpsc::Receiver<Told>) -> AccountKey {
    let Some(Told::Hold(account, done)) = soon(inbox.recv()).await else { panic!("nothing was held") };
    done.send(()).unwrap();
    account
}

async fn released(inbox: &mut mpsc::Receiver<Told>) -> AccountKey {
    let Some(Told::Release(account)) = soon(inbox.recv()).await else { panic!("nothing was let go") };
    account
}

#[tokio::test]
async fn a_panic_lets_go_what_it_held() {
    let (router, mut inbox) = router();
    #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
    let holder = tokio::spawn(async move {
        let _hold: Hold = router.hold(&account(1), Duration::from_secs(3600)).await;
        panic!("a defect");
    });
    assert_eq!(take_hold(&mut inbox).await, account(1));
    assert!(soon(holder).await.unwrap_err().is_panic());
    assert_eq!(released(&mut inbox).await, account(1));
}

#[tokio::test]
async fn one_that_is_called_off_while_it_waits_lets_go_too() {
    let (router, mut inbox) = router();
    #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
    let holder = tokio::spawn(async move { drop(router.hold(&account(1), Duration::from_secs(3600)).await) });
    let Some(Told::Hold(_, _done)) = soon(inbox.recv()).await else { panic!("nothing was held") };
    holder.abort();
    assert_eq!(released(&mut inbox).await, account(1));
}

#[tokio::test]
async fn a_hold_has_a_limit() {
    let (router, mut inbox) = router();
    #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
    let holder = tokio::spawn(async move { router.hold(&account(1), Duration::from_millis(1)).await });
    take_hold(&mut inbox).await;
    let hold = soon(holder).await.unwrap();
    assert_eq!(released(&mut inbox).await, account(1));
    drop(hold);
}
