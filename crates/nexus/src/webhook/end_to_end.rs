//! The adapter over a real socket on a free loopback port, with the test in the daemon's place.

#![allow(clippy::unwrap_used)]

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::config::Settings;
use super::intake::Intake;
use super::listener::{Ending, serve};
use super::protocol::Line;

/// Longer than anything here takes; a test that gets this far has failed.
const PATIENCE: Duration = Duration::from_secs(10);
const SECRET: &str = "s3cret";

/// A running adapter and the daemon's ends of its pipes.
struct Rig {
    address: SocketAddr,
    lines: mpsc::Receiver<Line>,
    acks: mpsc::Sender<String>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Ending>,
}

impl Rig {
    async fn start(config: Value) -> Self {
        let file = json!({
            "version": 1, "channel": "webhook", "account_id": "github", "config": config,
            "credential": { "kind": "file", "value": SECRET },
        });
        let settings = Settings::parse(file.to_string().as_bytes()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (line_sender, lines) = mpsc::channel(4);
        let (acks, ack_receiver) = mpsc::channel(4);
        let (stop, stopped) = oneshot::channel::<()>();
        let until_stopped = async move {
            if stopped.await.is_err() {
                pending::<()>().await;
            }
        };
        let intake = Arc::new(Intake::new(settings, line_sender));
        #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
        let served = tokio::spawn(serve(listener, intake, ack_receiver, until_stopped));
        Self { address, lines, acks, stop, served }
    }

    async fn next_event(&mut self) -> Value {
        let line = timeout(PATIENCE, self.lines.recv()).await.unwrap().unwrap();
        assert_eq!(line.bytes.last(), Some(&b'\n'));
        serde_json::from_slice(&line.bytes).unwrap()
    }

    async fn ack(&self, event_id: &str) {
        self.acks.send(event_id.to_owned()).await.unwrap();
    }

    /// Posts a signed delivery in the background.
    #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
    fn post(&self, delivery: &str, body: &str) -> JoinHandle<(u16, Value)> {
        let request = signed(delivery, body, &sign(body));
        let address = self.address;
        tokio::spawn(async move { exchange(address, request.as_bytes()).await })
    }

    /// Waits until `count` requests wait for an ack.
    async fn until_waiting(&self, count: u64) {
        let reached = async {
            loop {
                let (_, health) = exchange(self.address, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
                if health["waiting"] == count {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, reached).await.unwrap();
    }
}

fn github_config() -> Value {
    json!({ "verify": "github", "max_body_bytes": 1024 })
}

fn sign(body: &str) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    let tag: [u8; 32] = mac.chain_update(body.as_bytes()).finalize().into_bytes().into();
    hex::encode(tag)
}

fn signed(delivery: &str, body: &str, signature: &str) -> String {
    format!(
        "POST /github HTTP/1.1\r\nHost: x\r\nX-GitHub-Delivery: {delivery}\r\n\
         X-GitHub-Event: push\r\nX-Hub-Signature-256: sha256={signature}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Sends a request and reads one answer: its status and JSON body.
async fn exchange(address: SocketAddr, request: &[u8]) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    timeout(PATIENCE, read_answer(&mut stream)).await.unwrap()
}

async fn read_answer(stream: &mut TcpStream) -> (u16, Value) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).await.unwrap();
    let status = line.split(' ').nth(1).unwrap().parse().unwrap();
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line).await.unwrap();
        if line == "\r\n" {
            break;
        }
        let (name, value) = line.split_once(':').unwrap();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0_u8; length];
    reader.read_exact(&mut body).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn the_answer_comes_after_the_ack() {
    let mut rig = Rig::start(github_config()).await;
    let posted = rig.post("d1", "{}");
    let event = rig.next_event().await;
    assert_eq!(event["event_id"], "webhook:github:d1");
    assert_eq!(event["channel"], "webhook");
    assert_eq!(event["account_id"], "github");
    assert_eq!(event["content"], "{}");
    assert_eq!(event["metadata"]["event"], "push");
    rig.until_waiting(1).await;
    assert!(!posted.is_finished());
    rig.ack("webhook:github:d1").await;
    let (status, body) = posted.await.unwrap();
    assert_eq!(status, 200);
    assert_eq!(body, json!({ "event_id": "webhook:github:d1", "status": "accepted" }));
}

#[tokio::test]
async fn one_ack_answers_all_that_was_written_before() {
    let mut rig = Rig::start(github_config()).await;
    let first = rig.post("d1", "{}");
    rig.next_event().await;
    let second = rig.post("d2", "{}");
    rig.next_event().await;
    let third = rig.post("d3", "{}");
    rig.next_event().await;
    rig.ack("webhook:github:d2").await;
    assert_eq!(first.await.unwrap().0, 200);
    assert_eq!(second.await.unwrap().0, 200);
    rig.until_waiting(1).await;
    assert!(!third.is_finished());
    rig.ack("webhook:github:d3").await;
    assert_eq!(third.await.unwrap().0, 200);
}

#[tokio::test]
async fn without_an_ack_the_answer_is_503_and_a_retry_joins() {
    let mut rig = Rig::start(json!({ "verify": "github", "ack_timeout_ms": 50 })).await;
    let posted = rig.post("d1", "{}");
    rig.next_event().await;
    let (status, body) = posted.await.unwrap();
    assert_eq!(status, 503);
    assert!(body["advice"].as_str().unwrap().contains("same delivery id"));
    // The retry finds the event in flight: again no ack, and no second line.
    assert_eq!(rig.post("d1", "{}").await.unwrap().0, 503);
    assert!(rig.lines.try_recv().is_err());
}

#[tokio::test]
async fn a_blocked_daemon_is_a_503_too() {
    let rig = Rig::start(json!({ "verify": "github", "ack_timeout_ms": 50 })).await;
    // Nobody reads the lines: four fill the queue, the fifth waits for a place in vain.
    let mut posted = Vec::new();
    for number in 0..5 {
        posted.push(rig.post(&format!("d{number}"), "{}"));
    }
    for answer in posted {
        assert_eq!(answer.await.unwrap().0, 503);
    }
}

#[tokio::test]
async fn the_same_delivery_twice_is_one_line_and_two_answers() {
    let mut rig = Rig::start(github_config()).await;
    let first = rig.post("d1", "{}");
    let second = rig.post("d1", "{}");
    rig.until_waiting(2).await;
    rig.next_event().await;
    rig.ack("webhook:github:d1").await;
    assert_eq!(first.await.unwrap().0, 200);
    assert_eq!(second.await.unwrap().0, 200);
    assert!(rig.lines.try_recv().is_err());
}

#[tokio::test]
async fn a_delivery_that_comes_again_later_is_written_again() {
    let mut rig = Rig::start(github_config()).await;
    for _ in 0..2 {
        let posted = rig.post("d1", "{}");
        rig.next_event().await;
        rig.ack("webhook:github:d1").await;
        assert_eq!(posted.await.unwrap().0, 200);
    }
}

#[tokio::test]
async fn bad_and_missing_signatures_are_401() {
    let mut rig = Rig::start(github_config()).await;
    let forged = signed("d1", "{}", &sign("{ }"));
    let (status, body) = exchange(rig.address, forged.as_bytes()).await;
    assert_eq!(status, 401);
    assert!(body["error"].as_str().unwrap().contains("does not match"));
    let unsigned = "POST /github HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
    assert_eq!(exchange(rig.address, unsigned.as_bytes()).await.0, 401);
    assert!(rig.lines.try_recv().is_err());
}

#[tokio::test]
async fn a_declared_100_mib_is_refused_unread() {
    let mut rig = Rig::start(github_config()).await;
    let head = format!(
        "POST /github HTTP/1.1\r\nHost: x\r\nX-GitHub-Delivery: d\r\n\
         X-Hub-Signature-256: sha256={}\r\nContent-Length: 104857600\r\n\r\n",
        sign("")
    );
    // Not one byte of the body is sent, and the answer is there all the same.
    let (status, body) = exchange(rig.address, head.as_bytes()).await;
    assert_eq!(status, 413);
    assert!(body["error"].as_str().unwrap().contains("1024"));
    assert!(rig.lines.try_recv().is_err());
}

#[tokio::test]
async fn a_chunked_body_is_refused_where_it_passes_the_limit() {
    let rig = Rig::start(github_config()).await;
    let head = format!(
        "POST /github HTTP/1.1\r\nHost: x\r\nX-GitHub-Delivery: d\r\n\
         X-Hub-Signature-256: sha256={}\r\nTransfer-Encoding: chunked\r\n\r\n",
        sign("")
    );
    let mut request = head.into_bytes();
    for _ in 0..256 {
        request.extend_from_slice(b"1000\r\n");
        request.extend_from_slice(&[b'x'; 0x1000]);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    // The whole MiB is sent before the answer is read: the refusal must survive that.
    assert_eq!(exchange(rig.address, &request).await.0, 413);
}

#[tokio::test]
async fn an_event_longer_than_a_line_is_413() {
    let mut rig = Rig::start(json!({ "verify": "github", "max_line_bytes": 1024 })).await;
    // Each quote takes two bytes within a JSON text.
    let (status, body) = rig.post("d1", &"\"".repeat(600)).await.unwrap();
    assert_eq!(status, 413);
    assert!(body["advice"].as_str().unwrap().contains("max_line_bytes"));
    assert!(rig.lines.try_recv().is_err());
}

#[tokio::test]
async fn other_paths_and_methods_are_told_so() {
    let rig = Rig::start(github_config()).await;
    let ask = |line: &str| format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes();
    assert_eq!(exchange(rig.address, &ask("GET /elsewhere")).await.0, 404);
    assert_eq!(exchange(rig.address, &ask("GET /github")).await.0, 405);
    assert_eq!(exchange(rig.address, &ask("DELETE /healthz")).await.0, 405);
    let (status, health) = exchange(rig.address, &ask("GET /healthz")).await;
    assert_eq!((status, &health["status"]), (200, &json!("ok")));
    assert_eq!(health["refused"], 3);
}

#[tokio::test]
async fn a_daemon_that_is_gone_fails_who_waits_and_ends_serving() {
    let mut rig = Rig::start(github_config()).await;
    let posted = rig.post("d1", "{}");
    rig.next_event().await;
    drop(rig.acks);
    assert_eq!(posted.await.unwrap().0, 503);
    let ending = timeout(PATIENCE, rig.served).await.unwrap().unwrap();
    assert_eq!(ending, Ending::DaemonGone);
}

#[tokio::test]
async fn a_closed_stdout_ends_serving() {
    let rig = Rig::start(github_config()).await;
    drop(rig.lines);
    let ending = timeout(PATIENCE, rig.served).await.unwrap().unwrap();
    assert_eq!(ending, Ending::DaemonGone);
}

#[tokio::test]
async fn a_stop_still_waits_for_acks_under_way() {
    let mut rig = Rig::start(github_config()).await;
    let posted = rig.post("d1", "{}");
    rig.next_event().await;
    rig.stop.send(()).unwrap();
    rig.acks.send("webhook:github:d1".to_owned()).await.unwrap();
    assert_eq!(posted.await.unwrap().0, 200);
    let ending = timeout(PATIENCE, rig.served).await.unwrap().unwrap();
    assert_eq!(ending, Ending::Stopped);
    assert!(TcpStream::connect(rig.address).await.is_err());
}
