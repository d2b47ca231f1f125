//! Requests of plugins against a real HTTP server on the loopback, and against the rules on where they may go.
#![allow(clippy::unwrap_used)]

use super::super::CallerKind;
use super::super::address::Lookup;
use super::*;
use crate::supervisor::BoxFuture;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// How long anything here may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// Of a server that doesn't answer, for which the test waits.
const SHORT: Duration = Duration::from_millis(200);

fn caller(grants: &[&str]) -> Caller {
    let grants: Vec<Grant> = grants.iter().map(|grant| Grant::parse(grant).unwrap()).collect();
    Caller { kind: CallerKind::Plugin, plugin: "p".to_owned(), grants: grants.into(), request: None }
}

/// What the server does once it has sent its reply.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Close,
    /// Says nothing more until the client hangs up.
    Wait,
}

/// Serves one request with these bytes; the task returns the request.
async fn serve(reply: impl Into<Vec<u8>>, then: Then) -> (u16, JoinHandle<String>) {
    let (listener, reply) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), reply.into());
    let port = listener.local_addr().unwrap().port();
    #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
    let task = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let request = read_request(&mut socket).await;
        // The client may hang up while it is being answered.
        let sent = socket.write_all(&reply).await;
        if sent.is_ok() && then == Then::Wait {
            let mut rest = Vec::new();
            assert!(matches!(socket.read_to_end(&mut rest).await, Ok(0) | Err(_)));
        }
        request
    });
    (port, task)
}

async fn read_request(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let count = socket.read_buf(&mut bytes).await.unwrap();
        assert_ne!(count, 0, "the request broke off");
        let text = String::from_utf8(bytes.clone()).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ").map(str::to_owned));
        if body.len() >= length.map_or(0, |length| length.trim().parse().unwrap()) {
            return text;
        }
    }
}

fn reply(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}

async fn fetch_by(fetcher: &Fetcher, grants: &[&str], params: Value) -> Result<Value, CallError> {
    tokio::time::timeout(DEADLINE, fetcher.call(&caller(grants), params)).await.unwrap()
}

async fn fetch(grants: &[&str], params: Value) -> Result<Value, CallError> {
    fetch_by(&Fetcher::default(), grants, params).await
}

#[tokio::test]
async fn a_request_goes_out_as_it_was_wished_and_its_answer_comes_back() {
    let (port, server) = serve(reply("201 Created", "x-a: 1\r\nx-a: 2\r\n", "done"), Then::Close).await;
    let grant = format!("fetch:localhost:{port}");
    let url = format!("http://LOCALHOST:{port}/path?q=1#part");
    let params = json!({ "url": url, "method": "post", "headers": { "X-Key": "k" }, "body": "hello" });
    let answer = fetch(&[&grant], params).await.unwrap();
    assert_eq!((&answer["status"], &answer["body"], &answer["encoding"]), (&json!(201), &json!("done"), &json!("text")));
    assert_eq!(answer["headers"]["x-a"], "1, 2");
    let request = server.await.unwrap();
    assert!(request.starts_with("POST /path?q=1 HTTP/1.1\r\n") && request.ends_with("\r\n\r\nhello"), "{request}");
    let head = request.to_lowercase();
    assert!(head.contains("x-key: k\r\n") && head.contains("user-agent: nexus/") && !head.contains("cookie"), "{request}");
}

#[tokio::test]
async fn what_is_no_text_comes_as_hex() {
    let (port, _server) = serve(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\x00".to_vec(), Then::Close).await;
    let grant = format!("fetch:127.0.0.1:{port}");
    let answer = fetch(&[&grant], json!({ "url": format!("http://127.0.0.1:{port}/") })).await.unwrap();
    assert_eq!((&answer["body"], &answer["encoding"]), (&json!("ff00"), &json!("hex")));
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_nobody_follows_it() {
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = format!("http://127.0.0.1:{}/secret", target.local_addr().unwrap().port());
    let (port, _server) = serve(reply("302 Found", &format!("location: {location}\r\n"), ""), Then::Close).await;
    let grant = format!("fetch:127.0.0.1:{port}");
    let answer = fetch(&[&grant], json!({ "url": format!("http://127.0.0.1:{port}/") })).await.unwrap();
    assert_eq!((&answer["status"], &answer["headers"]["location"]), (&json!(302), &json!(location)));
    let mut accepted = std::pin::pin!(target.accept());
    assert!(futures_util::poll!(accepted.as_mut()).is_pending(), "somebody connected to where the redirect leads");
}

#[tokio::test]
async fn an_answer_without_an_end_is_cut_off() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n";
    let (port, _server) = serve(format!("{head}{}", "x".repeat(2 * RESPONSE_BYTES_MAX)), Then::Wait).await;
    let grant = format!("fetch:127.0.0.1:{port}");
    let error = fetch(&[&grant], json!({ "url": format!("http://127.0.0.1:{port}/") })).await.unwrap_err();
    assert!(matches!(&error, CallError::Limit(what) if what.contains("body has more than")), "{error:?}");
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_not_waited_for() {
    for start in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nslow"] {
        let (port, _server) = serve(start, Then::Wait).await;
        let (grant, impatient) = (format!("fetch:127.0.0.1:{port}"), Fetcher::new(Resolver::of_system(), SHORT));
        let error = fetch_by(&impatient, &[&grant], json!({ "url": format!("http://127.0.0.1:{port}/") })).await.unwrap_err();
        assert!(matches!(&error, CallError::Limit(what) if what.contains("took longer")), "{start:?}: {error:?}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_no_answer() {
    let (port, _server) = serve("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", Then::Close).await;
    let grant = format!("fetch:127.0.0.1:{port}");
    let error = fetch(&[&grant], json!({ "url": format!("http://127.0.0.1:{port}/?key=hush") })).await.unwrap_err();
    assert!(matches!(error, CallError::Failed { .. }) && !error.told().contains("hush"), "{error:?}");
}

/// A name server that says so of every name.
fn everything_is(address: &str) -> Fetcher {
    let address: IpAddr = address.parse().unwrap();
    let lookup: Lookup =
        Arc::new(move |_name: String| -> BoxFuture<'static, io::Result<Vec<IpAddr>>> { Box::pin(async move { Ok(vec![address]) }) });
    Fetcher::new(Resolver(lookup), DEADLINE)
}

#[tokio::test]
async fn a_name_that_leads_into_the_machine_or_its_network_is_refused() {
    for address in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fd00::1"] {
        // Plain http, which a grant wouldn't let through: a machine without certificates is tested too.
        let url = Url::parse("http://api.example.org/").unwrap();
        let wish = Wish { method: Method::GET, url, headers: HeaderMap::new(), body: None };
        let fetcher = everything_is(address);
        let error = tokio::time::timeout(DEADLINE, fetcher.send(wish)).await.unwrap().unwrap_err();
        assert!(error.told().contains("not a public one"), "{address}: {}", error.told());
    }
}

fn permitted(grants: &[&str], text: &str) -> Result<(), String> {
    url(text).and_then(|url| permit(&url, &caller(grants))).map_err(|error| error.told())
}

#[test]
fn a_grant_lets_through_its_host_and_port_in_every_spelling_of_a_url() {
    for (grant, text) in [
        ("fetch:api.example.org", "https://api.example.org/x"),
        ("fetch:api.example.org", "https://API.EXAMPLE.org:443/x"),
        ("fetch:api.example.org:443", "https://api.example.org/x"),
        ("fetch:api.example.org:8443", "https://api.example.org:8443/x"),
        ("fetch:xn--bcher-kva.example", "https://B\u{fc}cher.example/"),
        ("fetch:api.example.org", "https://api.example.org\\@evil.example/"),
        ("fetch:localhost", "http://localhost/"),
        ("fetch:127.0.0.1:8080", "http://127.1:8080/"),
        ("fetch:127.0.0.1:8080", "http://2130706433:8080/"),
        ("fetch:[::1]:8080", "http://[0:0:0:0:0:0:0:1]:8080/"),
        ("fetch:10.0.0.1", "https://10.0.0.1/"),
    ] {
        assert_eq!(permitted(&[grant], text), Ok(()), "{grant} {text}");
    }
}

#[test]
fn nothing_else_is_let_through() {
    for text in [
        "https://evil.example/",
        "https://api.example.org.evil.example/",
        "https://evilapi.example.org/",
        "https://api.example.org:8443/",
        "https://api.example.org%2eevil.example/",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://localhost/",
        "https://example.org/",
    ] {
        let told = permitted(&["fetch:api.example.org"], text).unwrap_err();
        assert!(told.contains("is not granted to plugin `p`") && told.contains("[ \"fetch:"), "{text}: {told}");
    }
    for text in [
        "http://api.example.org/",
        "http://api.example.org@evil.example/",
        "https://api.example.org@evil.example/",
        "https://evil.example@api.example.org/",
        "https://:secret@api.example.org/",
        "https://api.example.org./",
        "ftp://api.example.org/",
        "file:///etc/passwd",
        "data:text/plain,x",
        "api.example.org",
        "https://",
        "",
    ] {
        let told = permitted(&["fetch:api.example.org"], text).unwrap_err();
        assert!(told.starts_with("`url` ") && !told.contains("secret"), "{text}: {told}");
    }
    assert!(permitted(&["fetch:10.0.0.1"], "http://10.0.0.1/").unwrap_err().contains("https"));
    assert!(permitted(&["llm", "send", "ledger.query"], "https://api.example.org/").is_err());
}

#[tokio::test]
async fn what_a_plugin_may_not_say_is_refused_before_anybody_is_asked() {
    let url = "https://api.example.org/";
    for (params, told) in [
        (json!({}), "`url` is missing"),
        (json!({ "url": url, "method": "CONNECT" }), "`method` must be one of"),
        (json!({ "url": url, "headers": { "Host": "evil.example" } }), "`headers.Host` is set by the daemon"),
        (json!({ "url": url, "headers": { "Transfer-Encoding": "chunked" } }), "`headers.Transfer-Encoding` is set by the daemon"),
        (json!({ "url": url, "headers": { "a b": "x" } }), "`headers.a b` is no name"),
        (json!({ "url": url, "headers": { "a": "x\r\nhost: evil" } }), "`headers.a` must be a text of one line"),
        (json!({ "url": url, "headers": { "a": 1 } }), "`headers.a` must be a text"),
        (json!({ "url": url, "headers": [] }), "`headers` must be an object"),
        (json!({ "url": url, "headers": { "a": "x".repeat(HEADERS_BYTES_MAX) } }), "`headers` may be 50"),
        (json!({ "url": url, "body": 1 }), "`body` must be a text"),
        (json!({ "url": url, "body": "x".repeat(REQUEST_BYTES_MAX + 1) }), "`body` has 262145 bytes"),
        (json!({ "url": format!("{url}{}", "x".repeat(URL_BYTES_MAX)) }), "`url` has 8216 bytes"),
    ] {
        let error = fetch(&["fetch:api.example.org"], params).await.unwrap_err();
        assert!(error.told().starts_with(told), "{}", error.told());
    }
}
