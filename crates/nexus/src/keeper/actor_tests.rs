//! The daemon's side of the keeper, with a socket in place of the keeper itself.
#![allow(clippy::unwrap_used)]
use super::super::wire::Step;
use super::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

struct Rig {
    actor: Actor,
    /// The keeper's end.
    socket: OwnedFd,
    inbox: mpsc::UnboundedReceiver<Order>,
    /// What handles hold: without it the actor has nobody left to serve.
    orders: mpsc::UnboundedSender<Order>,
}

#[expect(clippy::disallowed_methods, reason = "as in production, where a semaphore bounds it")]
fn rig() -> Rig {
    let (ours, socket) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let (orders, inbox) = mpsc::unbounded_channel();
    let actor = Actor::new(Link { socket: ours, pid: 0 }, "test", null(), Arc::new(Cgroup::none()), orders.downgrade()).unwrap();
    Rig { actor, socket, inbox, orders }
}

fn null() -> File {
    File::open("/dev/null").unwrap()
}

fn order(argv: Vec<String>) -> wire::Order {
    wire::Order { id: 0, argv, env: vec![], cwd: None, mark: "test:x".into(), cgroup: None }
}

/// A spawn as number `id` that waits for the keeper's answer.
fn expect_start(actor: &mut Actor, id: u64) -> oneshot::Receiver<Result<Started, Refusal>> {
    let (reply, answer) = oneshot::channel();
    actor.starting.insert(id, (reply, oneshot::channel().0));
    answer
}

/// An order to start something, on its way to the keeper.
fn ordered(actor: &mut Actor, order: wire::Order) -> oneshot::Receiver<Result<Started, Refusal>> {
    let (reply, answer) = oneshot::channel();
    let stdio = [null().into(), null().into(), null().into()];
    actor.take(Order::Spawn(Box::new(Pending { order, stdio, reply, exit: oneshot::channel().0 })));
    answer
}

#[tokio::test]
async fn a_child_that_nobody_takes_is_killed() {
    let mut rig = rig();
    let gone_before = expect_start(&mut rig.actor, 5);
    drop(gone_before);
    rig.actor.hear(Up::Spawned { id: 5, pid: 55, outside: None });
    assert!(matches!(rig.inbox.try_recv(), Ok(Order::Kill { id: 5 })));

    let gone_after = expect_start(&mut rig.actor, 6);
    rig.actor.hear(Up::Spawned { id: 6, pid: 66, outside: None });
    assert!(rig.inbox.try_recv().is_err(), "killed while it is waited for");
    drop(gone_after);
    assert!(matches!(rig.inbox.try_recv(), Ok(Order::Kill { id: 6 })));

    let stays = expect_start(&mut rig.actor, 7);
    rig.actor.hear(Up::Spawned { id: 7, pid: 77, outside: None });
    let (id, pid, _) = stays.await.unwrap().unwrap().take();
    assert_eq!((id, pid), (7, 77));
    assert!(rig.inbox.try_recv().is_err(), "killed although it was taken");
    drop(rig.orders);
}

#[tokio::test]
async fn without_any_handle_left_a_new_child_is_killed_at_once() {
    let mut rig = rig();
    drop(expect_start(&mut rig.actor, 5));
    drop(rig.orders);
    rig.actor.hear(Up::Spawned { id: 5, pid: 55, outside: None });
    let heard = receive::<Down>(&rig.socket, &mut Vec::new());
    assert!(matches!(heard, Received::Message(Down::Kill { id: 5 }, _)), "{heard:?}");
}

#[tokio::test]
async fn an_order_that_is_too_large_is_answered() {
    let mut rig = rig();
    let answer = ordered(&mut rig.actor, order(vec!["x".repeat(9 * 1024 * 1024)]));
    let refusal = answer.await.unwrap().unwrap_err();
    assert_eq!((refusal.at, refusal.errno), (Step::Order, libc::E2BIG));
    assert!(rig.actor.outgoing.is_empty() && rig.actor.starting.is_empty());
}

#[tokio::test]
async fn an_order_that_cannot_be_sent_holds_nobody() {
    let mut rig = rig();
    let answer = expect_start(&mut rig.actor, 5);
    let packet = Packet::new(&Down::Spawn(order(vec!["x".into()]))).unwrap();
    // More than fit beside a message.
    let fds = (0..8).map(|_| null().into()).collect();
    rig.actor.outgoing.push_back(Outgoing { packet, fds, spawn: Some(5) });
    rig.actor.take(Order::Kill { id: 3 });
    rig.actor.flush();
    let refusal = answer.await.unwrap().unwrap_err();
    assert_eq!((refusal.at, refusal.errno), (Step::Order, libc::EMSGSIZE));
    let heard = receive::<Down>(&rig.socket, &mut Vec::new());
    assert!(matches!(heard, Received::Message(Down::Kill { id: 3 }, _)), "{heard:?}");
}

#[tokio::test]
async fn orders_wait_for_the_reading_side_when_the_keeper_is_gone() {
    let mut rig = rig();
    drop(rig.socket);
    let _answer = expect_start(&mut rig.actor, 5);
    let packet = Packet::new(&Down::Spawn(order(vec!["x".into()]))).unwrap();
    rig.actor.outgoing.push_back(Outgoing { packet, fds: Vec::new(), spawn: Some(5) });
    rig.actor.flush();
    assert!(rig.actor.starting.contains_key(&5), "refused, though its asker is to read that the keeper is gone");
    assert!(!rig.actor.drain(&mut Vec::new()), "the reading side sees nothing");
}

#[tokio::test]
async fn a_child_is_gone_when_nothing_of_it_lives_or_starts() {
    let mut rig = rig();
    let gone = |rig: &mut Rig, mark: &str| {
        let (answer, answered) = oneshot::channel();
        rig.actor.take(Order::Gone { mark: mark.to_owned(), answer });
        answered
    };
    assert_eq!(gone(&mut rig, "test:x").try_recv(), Ok(()), "one that never was");

    // Whoever wanted it is gone before the keeper has answered.
    drop(ordered(&mut rig.actor, order(vec!["a".to_owned()])));
    let mut first = gone(&mut rig, "test:x");
    assert_eq!(gone(&mut rig, "test:other").try_recv(), Ok(()));
    assert!(first.try_recv().is_err(), "while it starts");
    rig.actor.hear(Up::Spawned { id: 1, pid: 11, outside: None });
    assert!(matches!(rig.inbox.try_recv(), Ok(Order::Kill { id: 1 })));
    assert!(first.try_recv().is_err(), "while it is killed");
    rig.actor.hear(Up::Exited { id: 1, code: None, signal: Some(libc::SIGKILL), stragglers: 0 });
    assert_eq!(first.try_recv(), Ok(()));

    drop(ordered(&mut rig.actor, order(vec!["a".to_owned()])));
    let mut refused = gone(&mut rig, "test:x");
    rig.actor.hear(Up::Failed { id: 2, at: Step::Exec, errno: libc::ENOENT });
    assert_eq!(refused.try_recv(), Ok(()));

    drop(ordered(&mut rig.actor, order(vec!["a".to_owned()])));
    let mut lost = gone(&mut rig, "test:x");
    rig.actor.forget_all();
    assert_eq!(lost.try_recv(), Ok(()), "with its keeper");
}
