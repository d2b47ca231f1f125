//! The llm runner against a real HTTP server on the loopback, which answers one request with the
//! bytes an OpenAI-compatible server sends, or with what such a server never should.
#![allow(clippy::unwrap_used)]

#[path = "common/turn.rs"]
mod turn;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nexus::agent::llm::{KeySource, LlmEndpoint, LlmRunner};
use nexus::agent::{AgentError, Finished, MAX_ANSWER_BYTES, Output, StopReason, Usage};
use nexus_core::config::Provider;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use turn::turn;

const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                           transfer-encoding: chunked\r\nconnection: close\r\n\r\n";

/// What the server does once it has sent its reply.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Close,
    /// Says nothing more until the client hangs up.
    Wait,
}

/// Serves one request with these bytes; the task returns the request's head and body.
async fn serve(reply: String, then: Then) -> (String, JoinHandle<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
    let task = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let request = read_request(&mut socket).await;
        // The client may hang up while it is being answered: that is what some tests are about.
        let sent = socket.write_all(reply.as_bytes()).await;
        if sent.is_ok() && then == Then::Wait {
            let mut rest = Vec::new();
            assert!(matches!(socket.read_to_end(&mut rest).await, Ok(0) | Err(_)));
        }
        request
    });
    (url, task)
}

async fn read_request(socket: &mut TcpStream) -> (String, Value) {
    let mut bytes = Vec::new();
    loop {
        let count = socket.read_buf(&mut bytes).await.unwrap();
        assert_ne!(count, 0, "the request broke off");
        let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let length: usize = length.trim().parse().unwrap();
        if let Some(body) = bytes.get(end + 4..end + 4 + length) {
            return (head, serde_json::from_slice(body).unwrap());
        }
    }
}

/// One HTTP chunk.
fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// One server-sent event in an HTTP chunk of its own.
fn event(data: &str) -> String {
    chunk(&format!("data: {data}\n\n"))
}

/// A completion chunk in the shape OpenAI sends.
fn delta(delta: Value, finish_reason: Value) -> String {
    let data = json!({
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_770_000_000,
        "model": "test-1-2026",
        "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason}],
        "usage": null,
    });
    event(&data.to_string())
}

fn refusal(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         location: http://127.0.0.1:1/elsewhere\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn endpoint(url: &str) -> LlmEndpoint {
    LlmEndpoint {
        provider: Provider::Openai,
        url: url.to_owned(),
        model: "qwen-max".to_owned(),
        key: KeySource::None,
        system_prompt_file: None,
        stream_idle: Duration::from_secs(20),
        max_tokens: None,
        tool_rounds_max: 8,
    }
}

/// Runs one turn and returns its result and everything it streamed.
async fn run(endpoint: LlmEndpoint) -> (Result<Finished, AgentError>, Vec<Output>) {
    let runner = LlmRunner::connect_to("model", endpoint).unwrap();
    let (out, mut reader) = mpsc::channel(2);
    #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
    let streamed = tokio::spawn(async move {
        let mut pieces = Vec::new();
        while let Some(piece) = reader.recv().await {
            pieces.push(piece);
        }
        pieces
    });
    let limit = Duration::from_secs(30);
    let result = tokio::time::timeout(limit, runner.run(&turn(), &out, None)).await.unwrap();
    drop(out);
    (result, streamed.await.unwrap())
}

/// Runs one turn against a server with this reply, which must fail it.
async fn failure(reply: String) -> AgentError {
    let (url, server) = serve(reply, Then::Close).await;
    let (result, _) = run(endpoint(&url)).await;
    server.await.unwrap();
    result.unwrap_err()
}

fn private_file(name: &str, text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    (directory, path)
}

#[tokio::test]
async fn an_answer_is_streamed_and_counted() {
    let usage = json!({
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "choices": [],
        "usage": {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13},
    });
    let reply = [
        STREAM_HEAD.to_owned(),
        delta(json!({"role": "assistant", "content": ""}), Value::Null),
        chunk(": keep-alive\n\n"),
        delta(json!({"reasoning_content": "hm"}), Value::Null),
        delta(json!({"content": "Hel"}), Value::Null),
        delta(json!({"content": "lo"}), Value::Null),
        delta(json!({}), json!("stop")),
        event(&usage.to_string()),
        event("[DONE]"),
        chunk(""),
    ];
    let (url, server) = serve(reply.concat(), Then::Close).await;
    let (_directory, prompt) = private_file("prompt.md", "Be brief.", 0o644);
    let (result, pieces) = run(LlmEndpoint { system_prompt_file: Some(prompt), ..endpoint(&url) }).await;

    let finished = result.unwrap();
    assert_eq!(finished.content, "Hello");
    assert_eq!(finished.stop_reason, StopReason::EndTurn);
    assert_eq!(finished.usage.input_tokens, Some(11));
    assert_eq!(finished.usage.output_tokens, Some(2));
    assert_eq!(finished.model.as_deref(), Some("qwen-max"));
    assert_eq!(finished.provider.as_deref(), Some("127.0.0.1"));
    let used = Output::Used(Usage { input_tokens: Some(11), output_tokens: Some(2), estimated: false });
    // "Be brief.HiHelloAnd now?"
    let asked = Output::Asked { bytes: 24 };
    let expected = [asked, Output::Reasoning("hm".into()), Output::Token("Hel".into()), Output::Token("lo".into()), used];
    assert_eq!(pieces, expected);

    let (head, body) = server.await.unwrap();
    assert!(head.starts_with("post /v1/chat/completions http/1.1\r\n"), "{head}");
    assert!(!head.contains("authorization"), "{head}");
    assert_eq!(body["model"], "qwen-max");
    assert_eq!(body["stream"], true);
    assert!(body.get("reasoning_effort").is_none(), "{body}");
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "And now?"},
    ]);
    assert_eq!(body["messages"], messages);
}

#[tokio::test]
async fn an_answer_cut_by_the_token_limit_says_so() {
    let reply = [STREAM_HEAD.to_owned(), delta(json!({"content": "Hel"}), json!("length")), event("[DONE]"), chunk("")];
    let (url, server) = serve(reply.concat(), Then::Close).await;
    let finished = run(endpoint(&url)).await.0.unwrap();
    server.await.unwrap();
    assert_eq!(finished.stop_reason, StopReason::MaxTokens);
    assert_eq!(finished.content, "Hel");
    // "HiHelloAnd now?" and "Hel", at four bytes a token.
    assert_eq!(finished.usage, Usage { input_tokens: Some(4), output_tokens: Some(1), estimated: true });
}

#[tokio::test]
async fn the_key_goes_to_the_server_and_never_into_an_error() {
    let (_directory, path) = private_file("key", "sk-secret-1\n", 0o600);
    let body = json!({"error": {"message": "Incorrect API key provided: sk-secret-1"}});
    let (url, server) = serve(refusal("401 Unauthorized", &body.to_string()), Then::Close).await;
    let (result, _) = run(LlmEndpoint { key: KeySource::File(path), ..endpoint(&url) }).await;
    let (head, _) = server.await.unwrap();
    assert!(head.lines().any(|line| line == "authorization: bearer sk-secret-1"), "{head}");

    let error = result.unwrap_err();
    assert!(!error.retryable());
    assert!(error.to_string().contains("check `key_file` or `key_env`"), "{error}");
    assert!(!format!("{error} {error:?}").contains("sk-secret"), "{error:?}");
}

#[tokio::test]
async fn a_key_file_others_may_read_is_refused_before_any_request() {
    let (_directory, path) = private_file("key", "sk-secret-1", 0o644);
    let unreachable = endpoint("http://127.0.0.1:1/v1");
    let (result, _) = run(LlmEndpoint { key: KeySource::File(path), ..unreachable }).await;
    assert!(matches!(result, Err(AgentError::File { .. })), "{result:?}");
}

#[tokio::test]
async fn a_key_that_could_smuggle_a_header_is_refused() {
    let (_directory, path) = private_file("key", "sk-1\r\nx-evil: 1", 0o600);
    let unreachable = endpoint("http://127.0.0.1:1/v1");
    let (result, _) = run(LlmEndpoint { key: KeySource::File(path), ..unreachable }).await;
    assert!(matches!(result, Err(AgentError::Config { .. })), "{result:?}");
}

#[tokio::test]
async fn a_missing_key_variable_is_named() {
    let key = KeySource::Env("NEXUS_TEST_KEY_THAT_IS_NOT_SET".into());
    let unreachable = endpoint("http://127.0.0.1:1/v1");
    let (result, _) = run(LlmEndpoint { key, ..unreachable }).await;
    let error = result.unwrap_err();
    assert!(error.to_string().contains("NEXUS_TEST_KEY_THAT_IS_NOT_SET"), "{error}");
    assert!(!error.retryable());
}

#[tokio::test]
async fn a_busy_or_failing_server_is_retryable() {
    let busy = r#"{"error": {"message": "Rate limit reached", "type": "requests"}}"#;
    let error = failure(refusal("429 Too Many Requests", busy)).await;
    assert!(error.retryable() && error.is_unworked());
    assert!(error.to_string().contains("HTTP 429"), "{error}");
    assert!(error.to_string().contains("Rate limit reached"), "{error}");

    let error = failure(refusal("503 Service Unavailable", "<html>loading</html>")).await;
    assert!(error.retryable());
    assert!(error.to_string().contains("HTTP 503"), "{error}");
}

#[tokio::test]
async fn a_wrong_address_or_request_is_final_and_says_what_to_check() {
    let error = failure(refusal("404 Not Found", "")).await;
    assert!(!error.retryable());
    assert!(error.to_string().contains("check `url` and `model`"), "{error}");

    let error = failure(refusal("400 Bad Request", r#"{"detail": "no such model"}"#)).await;
    assert!(!error.retryable());
    assert!(error.to_string().contains("no such model"), "{error}");

    let error = failure(refusal("307 Temporary Redirect", "")).await;
    assert!(!error.retryable());
    assert!(error.to_string().contains("final address"), "{error}");
}

#[tokio::test]
async fn a_server_that_does_not_run_is_retryable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let error = run(endpoint(&url)).await.0.unwrap_err();
    assert!(error.retryable() && error.is_unworked(), "{error}");
    assert!(error.to_string().contains("check that the server runs"), "{error}");
}

#[tokio::test]
async fn a_server_that_nobody_vouches_for_is_asked_nothing_and_the_error_says_why() {
    // By the tests' own authority, which no machine knows.
    let certificate = CertificateDer::from_pem_slice(include_bytes!("gitserver/tls/certificate.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("gitserver/tls/key.pem")).unwrap();
    let cryptography = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = ServerConfig::builder_with_provider(cryptography).with_safe_default_protocol_versions().unwrap();
    let server = versions.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/v1", listener.local_addr().unwrap());
    let greeted = async {
        let (socket, _) = listener.accept().await.unwrap();
        TlsAcceptor::from(Arc::new(server)).accept(socket).await.is_ok()
    };
    let (is_greeted, (result, _)) = tokio::join!(greeted, run(endpoint(&url)));
    let error = result.unwrap_err();
    assert!(!is_greeted && error.is_unworked(), "{error}");
    assert!(error.to_string().contains("invalid peer certificate: UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn a_question_that_was_taken_and_not_answered_may_have_been_worked_on() {
    let error = failure(String::new()).await;
    assert!(error.retryable() && !error.is_unworked(), "{error:?}");
}

#[tokio::test]
async fn a_stream_that_breaks_off_keeps_what_came() {
    let begun = format!("{STREAM_HEAD}{}", delta(json!({"content": "Hel"}), Value::Null));
    let half = chunk(r#"data: {"choices":[{"index":0,"delta":{"con"#);
    let breaks = [
        format!("{begun}{half}"),
        format!("{begun}{half}{}", chunk("")),
        format!("{begun}ff\r\ndata: {{"),
        format!("{begun}{}", chunk("")),
        format!("{begun}{}{}", event("not json"), chunk("")),
    ];
    for reply in breaks {
        let error = failure(reply.clone()).await;
        assert!(matches!(error, AgentError::Unfinished { .. }), "{error:?} of {reply}");
        assert_eq!(error.partial(), "Hel", "{reply}");
        assert!(error.retryable());
    }
}

#[tokio::test]
async fn a_page_instead_of_a_stream_points_at_the_address() {
    let page = refusal("200 OK", "<html>Welcome</html>");
    let error = failure(page).await;
    assert!(error.to_string().contains("API base"), "{error}");
}

#[tokio::test]
async fn an_error_inside_the_stream_is_read() {
    let begun = format!("{STREAM_HEAD}{}", delta(json!({"content": "Hel"}), Value::Null));
    let fails = |error: Value| {
        let data = json!({ "error": error }).to_string();
        format!("{begun}{}{}", event(&data), chunk(""))
    };
    let error = failure(fails(json!({"message": "GPU lost", "type": "server_error"}))).await;
    assert!(error.retryable() && !error.is_unworked());
    assert!(error.to_string().contains("GPU lost"), "{error}");
    assert_eq!(error.partial(), "Hel");

    let error = failure(fails(json!({"message": "too long", "code": 400}))).await;
    assert!(!error.retryable());
}

#[tokio::test]
async fn silence_ends_the_turn_and_the_connection() {
    let begun = format!("{STREAM_HEAD}{}", delta(json!({"content": "Hel"}), Value::Null));
    for (reply, partial) in [(String::new(), ""), (begun, "Hel")] {
        let (url, server) = serve(reply, Then::Wait).await;
        let idle = Duration::from_millis(300);
        let (result, _) = run(LlmEndpoint { stream_idle: idle, ..endpoint(&url) }).await;
        let error = result.unwrap_err();
        assert!(matches!(error, AgentError::Stalled { idle_ms: 300, .. }), "{error:?}");
        assert_eq!(error.partial(), partial);
        assert!(error.retryable());
        tokio::time::timeout(Duration::from_secs(10), server).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_endless_answer_is_stopped_at_its_bound() {
    let piece = delta(json!({"content": "x".repeat(64 * 1024)}), Value::Null);
    let reply = format!("{STREAM_HEAD}{}", piece.repeat(40));
    let error = failure(reply).await;
    assert!(matches!(error, AgentError::TooLarge { .. }), "{error}");
    assert_eq!(error.partial().len(), MAX_ANSWER_BYTES);
    assert!(!error.retryable());
}

#[tokio::test]
async fn dropping_the_turn_closes_the_connection() {
    let begun = format!("{STREAM_HEAD}{}", delta(json!({"content": "Hel"}), Value::Null));
    let (url, server) = serve(begun, Then::Wait).await;
    let runner = LlmRunner::connect_to("model", endpoint(&url)).unwrap();
    let (out, mut reader) = mpsc::channel(2);
    #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
    let task = tokio::spawn(async move { runner.run(&turn(), &out, None).await });
    assert!(matches!(reader.recv().await, Some(Output::Asked { .. })));
    assert_eq!(reader.recv().await, Some(Output::Token("Hel".into())));
    task.abort();
    tokio::time::timeout(Duration::from_secs(10), server).await.unwrap().unwrap();
}
