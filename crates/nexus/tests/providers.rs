//! Each named provider's wire format, against a server on the loopback that answers in the provider's
//! documented shape, and in shapes that no provider should have.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/turn.rs"]
mod turn;

use common::model::{ENDLESS, INPUT_TOKENS, Model, OUTPUT_TOKENS, PROVIDERS, asked_with, endless_text, reply, text};
use nexus::agent::llm::{EVENT_BYTES_MAX, KeySource, LlmEndpoint, LlmRunner, RESPONSE_BYTES_MAX};
use nexus::agent::{AgentError, Finished, Output, StopReason, Turn, Usage};
use nexus_core::config::{Provider, Spending};
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
    run_counted(endpoint, turn).await.0
}

/// The same, and what it was said to have used.
async fn run_counted(endpoint: LlmEndpoint, turn: Turn) -> (Result<Finished, AgentError>, Vec<Usage>) {
    let runner = LlmRunner::connect_to("model", endpoint).unwrap();
    let (out, mut reader) = mpsc::channel(64);
    #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
    let drain = tokio::spawn(async move {
        let mut used = Vec::new();
        while let Some(piece) = reader.recv().await {
            if let Output::Used(usage) = piece {
                used.push(usage);
            }
        }
        used
    });
    let result = tokio::time::timeout(Duration::from_secs(60), runner.run(&turn, &out, None)).await.unwrap();
    drop(out);
    (result, drain.await.unwrap())
}

/// The turn of an agent that may use so many tokens in its session. Its question has [`QUESTION_TOKENS`] of them.
fn limited(tokens: u64) -> Turn {
    let limits = Spending { tokens_per_session: Some(tokens), ..Spending::default() };
    let (whose, next_day) = ("The agent's".to_owned(), "tomorrow".to_owned());
    Turn { allowance: Some(Allowance { whose, limits, spent: Spent::default(), next_day, watched: None }), ..turn() }
}

/// Of `Hi`, `Hello` and `And now?`, by their length.
const QUESTION_TOKENS: u64 = 4;

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

    let each = 1_000;
    let model = Model::start(replies(4).iter().map(|reply| asked_with(reply, each - OUTPUT_TOKENS)).collect());
    let error = run(endpoint("openai", model.url()), limited(2 * each)).await.unwrap_err();
    assert!(matches!(&error, AgentError::Exhausted { problem, .. } if problem.contains("2,000 of 2,000 tokens")), "{error:?}");
    assert_eq!(model.asked().len(), 2, "checked before each round");
}

#[tokio::test]
async fn what_a_budget_leaves_is_the_longest_answer_that_is_asked_for() {
    for name in PROVIDERS {
        let asked = async |own: Option<u32>, tokens: u64| {
            let model = Model::start(vec![text(name, "Hello")]);
            let asking = LlmEndpoint { max_tokens: own, ..endpoint(name, model.url()) };
            run(asking, limited(tokens)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
            model.asked()[0].1.pointer(places(name).0).cloned()
        };
        assert_eq!(asked(Some(77), QUESTION_TOKENS + 50).await, Some(json!(50)), "{name}");
        assert_eq!(asked(Some(77), QUESTION_TOKENS + 78).await, Some(json!(77)), "{name}");
        assert_eq!(asked(None, QUESTION_TOKENS + 50).await, Some(json!(50)), "{name}");
        let many = asked(None, 1_000_000).await;
        assert_ne!(many, Some(json!(1_000_000 - QUESTION_TOKENS)), "{name}: models refuse more than they can say");
    }
}

#[tokio::test]
async fn a_question_that_is_too_long_for_what_is_left_is_not_asked() {
    let model = Model::start(vec![text("openai", "Hello")]);
    let (ended, used) = run_counted(endpoint("openai", model.url()), limited(QUESTION_TOKENS)).await;
    let error = ended.unwrap_err();
    let told = "The agent's budget for this session has 4 of 4 tokens left, too little for this question of about 4 tokens.";
    assert!(matches!(&error, AgentError::Exhausted { problem, partial, .. } if problem == told && partial.is_empty()), "{error:?}");
    assert!(model.asked().is_empty() && used.is_empty(), "{used:?}");
}

#[tokio::test]
async fn an_answer_without_end_is_cut_where_the_budget_ends() {
    const PIECE_TOKENS: u64 = 100;
    for name in ["openai", "anthropic", "gemini", "ollama", "openai_resp"] {
        let (begin, piece) = endless_text(name, 400);
        let model = Model::endless(begin, piece);
        let asking = LlmEndpoint { max_tokens: None, ..endpoint(name, model.url()) };
        let (ended, used) = run_counted(asking, limited(2_000)).await;
        let error = ended.unwrap_err();
        assert!(!error.retryable(), "{name}");
        let AgentError::Exhausted { problem, partial, .. } = error else { panic!("{name}: {error:?}") };
        assert_eq!(problem, "The agent's budget for this session is used up (2,000 tokens).", "{name}");
        let said = u64::try_from(partial.len().div_ceil(4)).unwrap();
        let usage = Usage { input_tokens: Some(QUESTION_TOKENS), output_tokens: Some(said), estimated: true };
        assert_eq!(used, [usage], "{name}: what came is counted, once");
        let left = 2_000 - QUESTION_TOKENS;
        assert!(said > left && said <= left + PIECE_TOKENS, "{name}: {said}");
    }
}

#[tokio::test]
async fn a_call_of_a_tool_without_end_is_cut_where_the_budget_ends() {
    let event = |call: serde_json::Value| {
        let delta = json!({"choices": [{"index": 0, "finish_reason": null, "delta": {"tool_calls": [call]}}]});
        format!("data: {delta}\n\n")
    };
    let first = event(json!({"index": 0, "id": "call_a", "type": "function", "function": {"name": "t", "arguments": ""}}));
    let piece = event(json!({"index": 0, "function": {"arguments": "x".repeat(400)}}));
    let model = Model::endless(format!("{ENDLESS}{first}"), piece);
    let (ended, used) = run_counted(LlmEndpoint { max_tokens: None, ..endpoint("openai", model.url()) }, limited(2_000)).await;
    assert!(matches!(ended, Err(AgentError::Exhausted { .. })), "{ended:?}");
    let output: Vec<u64> = used.iter().filter_map(|usage| usage.output_tokens).collect();
    assert!(output.len() == 1 && (1_997..2_200).contains(&output[0]), "{used:?}");
}

#[tokio::test]
async fn an_answer_that_its_provider_ended_where_the_budget_does_is_not_complete() {
    let ended_early = || {
        let whole = text("openai", "Half");
        let (_, body) = whole.split_once("\r\n\r\n").unwrap();
        reply("200 OK", "content-type: text/event-stream\r\n", &body.replace("\"stop\"", "\"length\""))
    };
    let model = Model::start(vec![ended_early(), ended_early()]);
    let (ended, used) = run_counted(endpoint("openai", model.url()), limited(50)).await;
    let counted = Usage { input_tokens: Some(INPUT_TOKENS), output_tokens: Some(OUTPUT_TOKENS), estimated: false };
    assert!(matches!(&ended, Err(AgentError::Exhausted { partial, .. }) if partial == "Half"), "{ended:?}");
    assert_eq!(used, [counted], "the provider's own number");
    let finished = run(endpoint("openai", model.url()), limited(1_000)).await.unwrap();
    assert_eq!((finished.content.as_str(), finished.stop_reason), ("Half", StopReason::MaxTokens), "the agent's own limit");
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
