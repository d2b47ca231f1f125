//! Each named provider's wire format, against a server on the loopback that answers in the provider's
//! documented shape, and in shapes that no provider should have.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/turn.rs"]
mod turn;

use common::model::{INPUT_TOKENS, Model, OUTPUT_TOKENS, PROVIDERS, reply, text};
use nexus::agent::llm::{EVENT_BYTES_MAX, KeySource, LlmEndpoint, LlmRunner, RESPONSE_BYTES_MAX};
use nexus::agent::{AgentError, Finished, StopReason, Turn, Usage};
use nexus_core::config::Provider;
use nexus_core::spend::{Allowance, Spent};
use serde_json::json;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use turn::turn;

fn provider(name: &str) -> Provider {
    Provider::parse(name).unwrap_or_else(|| panic!("{name} is no provider"))
}

fn endpoint(name: &str, url: String) -> LlmEndpoint {
    LlmEndpoint {
        provider: provider(name),
        url,
        model: "m-1".to_owned(),
        key: KeySource::None,
        system_prompt_file: None,
        stream_idle: Duration::from_secs(20),
        max_tokens: Some(77),
        tool_rounds_max: 8,
    }
}

async fn run(endpoint: LlmEndpoint, turn: Turn) -> Result<Finished, AgentError> {
    let runner = LlmRunner::connect_to("model", endpoint).unwrap();
    let (out, mut reader) = mpsc::channel(64);
    #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
    let drain = tokio::spawn(async move { while reader.recv().await.is_some() {} });
    let result = tokio::time::timeout(Duration::from_secs(60), runner.run(&turn, &out, None)).await.unwrap();
    drop(out);
    drain.await.unwrap();
    result
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    (directory, path)
}

/// The request's line and the header that holds the key.
fn expected(name: &str) -> (&'static str, &'static str) {
    let bearer = "authorization: bearer sk-1";
    match name {
        "openai_resp" => ("post /v1/responses http/1.1", bearer),
        "anthropic" => ("post /v1/messages http/1.1", "x-api-key: sk-1"),
        "gemini" => ("post /v1/models/m-1:streamgeneratecontent?alt=sse http/1.1", "x-goog-api-key: sk-1"),
        "ollama" => ("post /v1/api/chat http/1.1", bearer),
        _ => ("post /v1/chat/completions http/1.1", bearer),
    }
}

/// Where each provider takes the length of the answer, and the system prompt.
fn places(name: &str) -> (&'static str, &'static str) {
    match name {
        "openai_resp" => ("/max_output_tokens", "/instructions"),
        "anthropic" => ("/max_tokens", "/system"),
        "gemini" => ("/generationConfig/maxOutputTokens", "/systemInstruction/parts/0/text"),
        "ollama" => ("/options/num_predict", "/messages/0/content"),
        _ => ("/max_tokens", "/messages/0/content"),
    }
}

#[tokio::test]
async fn each_provider_is_asked_and_understood_in_its_own_way() {
    for name in PROVIDERS {
        let model = Model::start(vec![text(name, "Hello there")]);
        let (_prompt_dir, prompt) = file("Be brief.");
        let (_key_dir, key) = file("sk-1\n");
        let asking = LlmEndpoint { key: KeySource::File(key), system_prompt_file: Some(prompt), ..endpoint(name, model.url()) };
        let finished = run(asking, turn()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((finished.content.as_str(), finished.stop_reason), ("Hello there", StopReason::EndTurn), "{name}");
        let counted = Usage { input_tokens: Some(INPUT_TOKENS), output_tokens: Some(OUTPUT_TOKENS), estimated: false };
        assert_eq!(finished.usage, counted, "{name}");
        let [(head, body)] = <[_; 1]>::try_from(model.asked()).unwrap();
        let (line, key) = expected(name);
        assert_eq!(head.lines().next(), Some(line), "{name}");
        assert!(head.lines().any(|line| line == key), "{name}: {head}");
        assert_eq!(head.matches("sk-1").count(), 1, "{name}: {head}");
        let (length, prompt) = places(name);
        assert_eq!(body.pointer(length), Some(&json!(77)), "{name}: {body}");
        assert_eq!(body.pointer(prompt), Some(&json!("Be brief.")), "{name}: {body}");
        if name != "gemini" {
            assert_eq!(body["model"], "m-1", "{name}");
        }
        let said = body.to_string();
        let places = ["Hi", "Hello", "And now?"].map(|text| said.find(&format!("\"{text}\"")));
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{name}: {said}");
    }
}

#[tokio::test]
async fn without_a_key_no_provider_is_sent_one() {
    for name in PROVIDERS {
        let model = Model::start(vec![text(name, "Hello")]);
        run(endpoint(name, model.url()), turn()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let (head, _) = &model.asked()[0];
        for header in ["authorization", "x-api-key", "x-goog-api-key"] {
            assert!(!head.contains(header), "{name}: {head}");
        }
    }
}

#[tokio::test]
async fn half_an_answer_is_never_a_whole_one() {
    for name in PROVIDERS {
        let whole = text(name, "Hello there");
        let (head, body) = whole.split_once("\r\n\r\n").unwrap();
        // Without its end mark, and in the middle of a JSON. The length is not told: only the end says so.
        let head = head.lines().filter(|line| !line.starts_with("content-length")).collect::<Vec<_>>().join("\r\n");
        let separator = if name == "ollama" { "\n" } else { "\n\n" };
        let events: Vec<&str> = body.split_inclusive(separator).collect();
        let begun = events[..events.len() / 2].concat();
        for cut in [begun.len(), begun.len() - begun.len() / 8] {
            let cut = format!("{head}\r\n\r\n{}", &begun[..cut]);
            let model = Model::start(vec![cut.clone()]);
            let error = run(endpoint(name, model.url()), turn()).await.expect_err(&cut);
            assert!(matches!(error, AgentError::Unfinished { .. }), "{name}: {error:?} of {cut}");
            assert!(error.retryable(), "{name}");
        }
    }
}

#[tokio::test]
async fn a_page_is_no_answer_of_any_provider() {
    for name in PROVIDERS {
        let model = Model::start(vec![reply("200 OK", "content-type: text/html\r\n", "<html>Welcome</html>\n")]);
        let error = run(endpoint(name, model.url()), turn()).await.unwrap_err();
        assert!(matches!(error, AgentError::Unfinished { .. }), "{name}: {error:?}");
    }
}

#[tokio::test]
async fn a_busy_provider_says_how_long_to_wait() {
    let body = r#"{"error": {"message": "Rate limit reached", "type": "rate_limit_error"}}"#;
    for name in PROVIDERS {
        for (header, asked) in [("retry-after: 7\r\n", Some(7_000)), ("retry-after-ms: 250\r\n", Some(250)), ("", None)] {
            let model = Model::start(vec![reply("429 Too Many Requests", header, body)]);
            let error = run(endpoint(name, model.url()), turn()).await.unwrap_err();
            assert!(error.retryable(), "{name}: {error}");
            assert!(error.to_string().contains("Rate limit reached"), "{name}: {error}");
            assert_eq!(error.retry_after().map(|wait| wait.as_millis()), asked, "{name}");
        }
    }
}

#[tokio::test]
async fn a_hundred_mebibytes_are_stopped_at_the_bound() {
    // As each provider would stream it, in pieces of 64 KiB.
    for name in ["openai", "anthropic", "gemini", "ollama", "openai_resp"] {
        let whole = text(name, &"x".repeat(128 * 1024));
        let (_, body) = whole.split_once("\r\n\r\n").unwrap();
        let piece = body.split_inclusive('\n').find(|line| line.len() > 60_000).unwrap();
        let (begin, _) = body.split_once(piece).unwrap();
        let end = if name == "ollama" { "" } else { "\n" };
        let repeated = begin.rsplit("\n\n").next().unwrap_or_default();
        let endless = format!("{piece}{end}{repeated}").repeat(1600);
        let model =
            Model::start(vec![format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{begin}{endless}")]);
        let error = run(endpoint(name, model.url()), turn()).await.unwrap_err();
        assert!(matches!(error, AgentError::TooLarge { .. }), "{name}: {error}");
        assert!(!error.retryable());
    }
}

#[tokio::test]
async fn many_claimed_tool_calls_take_no_room() {
    let delta = json!({"choices": [{"index": 0, "finish_reason": null, "delta": {
        "tool_calls": [{"index": u32::MAX, "id": "call_a", "type": "function", "function": {"name": "t", "arguments": "{}"}}],
    }}]});
    let done = json!({"choices": [{"index": 0, "finish_reason": "tool_calls", "delta": {}}]});
    let body = format!("data: {delta}\n\ndata: {done}\n\ndata: [DONE]\n\n");
    let model = Model::start(vec![reply("200 OK", "content-type: text/event-stream\r\n", &body), text("openai", "Sorry.")]);
    let finished = run(endpoint("openai", model.url()), turn()).await.unwrap();
    assert_eq!(finished.content, "Sorry.");
    let (_, body) = &model.asked()[1];
    assert!(body.to_string().contains("There is no such tool"), "{body}");
}

#[tokio::test]
async fn tool_calls_without_end_and_a_spent_budget_stop_the_turn() {
    let replies = |count| (0..count).map(|_| common::model::call("openai", "any__tool", "x")).collect::<Vec<_>>();
    let model = Model::start(replies(4));
    let error = run(LlmEndpoint { tool_rounds_max: 3, ..endpoint("openai", model.url()) }, turn()).await.unwrap_err();
    assert!(error.to_string().contains("tool_rounds_max") && !error.retryable(), "{error}");
    assert_eq!(model.asked().len(), 4);

    let limits = nexus_core::config::Spending { tokens_per_day: Some(2 * (INPUT_TOKENS + OUTPUT_TOKENS)), ..Default::default() };
    let allowance = Allowance { limits, spent: Spent::default(), next_day: "tomorrow".into(), watched: None };
    let model = Model::start(replies(4));
    let error = run(endpoint("openai", model.url()), Turn { allowance: Some(allowance), ..turn() }).await.unwrap_err();
    assert!(matches!(&error, AgentError::Exhausted { problem, .. } if problem.contains("26 of 26 tokens")), "{error:?}");
    assert_eq!(model.asked().len(), 2, "checked before each round");
}

/// Answers one request with this head and then the piece again and again, as often as it is taken; how many bytes were.
fn endless(head: &str, piece: &str, bytes_max: usize) -> (String, std::thread::JoinHandle<usize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/", listener.local_addr().unwrap());
    let (head, piece) = (head.to_owned(), piece.to_owned());
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        common::model::read(&mut socket);
        let (mut sent, mut part) = (0, head.as_bytes());
        while sent < bytes_max && socket.write_all(part).is_ok() {
            sent += part.len();
            part = piece.as_bytes();
        }
        sent
    });
    (url, server)
}

#[tokio::test]
async fn what_an_endpoint_sends_without_end_is_cut_off() {
    const BYTES_MAX: usize = 100 * 1024 * 1024;
    /// What the buffers of sockets may hold beyond the bound.
    const UNDER_WAY_BYTES: usize = 24 * 1024 * 1024;
    let error = "HTTP/1.1 500 Internal Server Error\r\nconnection: close\r\n\r\n";
    let stream = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    let (line, whole_max) = ("x".repeat(64 * 1024), usize::try_from(RESPONSE_BYTES_MAX).unwrap());
    for (name, head, piece, bytes_max) in [
        ("openai", error, line.clone(), EVENT_BYTES_MAX),
        ("openai", stream, format!("data: {line}\n"), EVENT_BYTES_MAX),
        ("ollama", stream, line.clone(), EVENT_BYTES_MAX),
        // Nothing but words that no event is made of.
        ("openai", stream, format!(": {line}\n\n"), whole_max),
    ] {
        let (url, server) = endless(head, &piece, BYTES_MAX);
        run(endpoint(name, url), turn()).await.unwrap_err();
        #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
        let sent = tokio::task::spawn_blocking(move || server.join().unwrap()).await.unwrap();
        assert!(sent < bytes_max + UNDER_WAY_BYTES, "{name}: {sent} bytes were taken");
    }
}
