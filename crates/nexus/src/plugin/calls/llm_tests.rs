//! Questions to a model, on a server of the loopback that answers one.
#![allow(clippy::unwrap_used)]

use super::super::tests::{Place, caller, settings};
use crate::agent::Runner;
use crate::agent::llm::{KeySource, LlmEndpoint, LlmRunner};
use crate::ledger::agents::called;
use crate::patience::{DEADLINE, eventually, soon};
use crate::pipeline::spending::Payer;
use crate::pipeline::{Agent, Settings};
use crate::plugin::calls::CallError;
use crate::samples;
use nexus_core::config;
use nexus_core::spend::Amount;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// The agent `model`, whose model is at `listener`.
fn agent(listener: &TcpListener, timeout: Duration) -> Arc<Agent> {
    let endpoint = LlmEndpoint {
        provider: config::Provider::Openai,
        url: format!("http://{}/v1", listener.local_addr().unwrap()),
        model: "test-1".to_owned(),
        key: KeySource::None,
        system_prompt_file: None,
        stream_idle: DEADLINE,
        max_tokens: None,
        tool_rounds_max: 1,
    };
    let runner = Runner::Llm(Box::new(LlmRunner::connect_to("model", endpoint).unwrap()));
    Arc::new(Agent { name: "model".to_owned(), runner, timeout, harmless: false, ..samples::echo() })
}

/// Serves one completion; the task returns the request's body.
#[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
async fn model(agents: &mut HashMap<String, Arc<Agent>>, answer: String, timeout: Duration) -> tokio::task::JoinHandle<Value> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    agents.insert("model".to_owned(), agent(&listener, timeout));
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        let body = loop {
            assert_ne!(socket.read_buf(&mut bytes).await.unwrap(), 0, "the request broke off");
            let text = String::from_utf8_lossy(&bytes);
            let whole = text.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok());
            if let Some(body) = whole {
                break body;
            }
        };
        socket.write_all(answer.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.ok(); // until the client hangs up
        body
    })
}

/// What the caller has used, by the ledger.
async fn used(place: &Place) -> Amount {
    let readers = &place.calls.ledgers.agents.readers;
    readers.read(|connection| called(connection, "plugin:greeter", 0)).await.unwrap()
}

#[tokio::test]
async fn what_a_call_used_that_nobody_waits_for_any_more_is_counted() {
    let (listener, place) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Place::new().await);
    let agents = HashMap::from([("model".to_owned(), agent(&listener, DEADLINE))]);
    let budget = config::CallBudget { tokens_per_day: Some(3), usd_per_day: None };
    let callers = BTreeMap::from([(Payer::Plugin("greeter".to_owned()), budget)]);
    place.calls.settings.store(Arc::new(Settings { callers, ..settings(agents) }));
    let (caller, params) = (caller(None), json!({ "agent": "model", "prompt": "Well?" }));
    {
        let calling = place.calls.call(&caller, "llm", params.clone());
        tokio::pin!(calling);
        tokio::select! {
            ended = &mut calling => panic!("{ended:?}"),
            asked = soon(listener.accept()) => drop(asked.unwrap()),
        }
    }
    // For a moment it is in the ledger and in memory: what is used is never told as less than it is.
    let unfiled = || place.calls.meters.of("plugin:greeter").unfiled(0).tokens;
    eventually(async || used(&place).await == Amount { tokens: 2, usd: 0.0 } && unfiled() == 0).await;
    let refused = place.calls.call(&caller, "llm", params).await.unwrap_err().told();
    let told = "the plugin's budget for today has 1 of 3 tokens left, too little for this question of about 2 tokens; it continues at ";
    assert!(refused.starts_with(told), "{refused}");
}

/// An answer that is `four`, and used four tokens.
fn four() -> String {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n";
    let chunk = r#"data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"test-1","choices":[{"index":0,"delta":{"content":"four"},"finish_reason":"stop"}],"usage":null}"#;
    let usage = r#"data: {"id":"1","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}"#;
    let stream = format!("{chunk}\n\n{usage}\n\ndata: [DONE]\n\n");
    format!("{head}content-length: {}\r\n\r\n{stream}", stream.len())
}

#[tokio::test]
async fn an_answer_does_not_wait_for_a_ledger_that_cannot_be_written() {
    let (mut agents, place) = (HashMap::new(), Place::new().await);
    let _server = model(&mut agents, four(), DEADLINE).await;
    place.calls.settings.store(Arc::new(settings(agents)));
    let [path, aside] = ["agents.db", "aside"].map(|name| place.directory.path().join(name));
    std::fs::rename(&path, &aside).unwrap();
    assert!(place.calls.ledgers.look_at_files().is_some());
    let params = json!({ "agent": "model", "prompt": "Two and two?" });
    let answer = soon(place.calls.call(&caller(None), "llm", params)).await.unwrap();
    assert_eq!(answer["text"], json!("four"));
    let unfiled = || place.calls.meters.of("plugin:greeter").unfiled(0).tokens;
    assert_eq!(unfiled(), 4, "it counts meanwhile");
    std::fs::rename(&aside, &path).unwrap();
    assert_eq!(place.calls.ledgers.look_at_files(), None);
    eventually(async || used(&place).await.tokens == 4 && unfiled() == 0).await;
}

#[tokio::test]
async fn a_model_answers_one_question_without_a_history() {
    let (mut agents, place) = (HashMap::new(), Place::new().await);
    let server = model(&mut agents, four(), DEADLINE).await;
    place.calls.settings.store(Arc::new(settings(agents)));
    let params = json!({ "agent": "model", "prompt": "Two and two?", "system": "Be short.", "max_tokens": 5 });
    let answer = soon(place.calls.call(&caller(None), "llm", params)).await.unwrap();
    assert_eq!((&answer["text"], &answer["stop_reason"]), (&json!("four"), &json!("end_turn")));
    assert_eq!(answer["usage"], json!({ "input_tokens": 3, "output_tokens": 1, "estimated": false }));
    assert_eq!(used(&place).await, Amount { tokens: 4, usd: 0.0 });
    let asked = soon(server).await.unwrap();
    let messages = json!([{ "role": "system", "content": "Be short." }, { "role": "user", "content": "Two and two?" }]);
    assert_eq!((&asked["messages"], &asked["max_tokens"], &asked["model"]), (&messages, &json!(5), &json!("test-1")));
}

#[tokio::test]
async fn a_model_has_the_time_of_its_agent() {
    let (mut agents, place) = (HashMap::new(), Place::new().await);
    let server = model(&mut agents, "HTTP/1.1 200 OK\r\n".to_owned(), Duration::from_millis(200)).await;
    place.calls.settings.store(Arc::new(settings(agents)));
    let error = soon(place.calls.call(&caller(None), "llm", json!({ "agent": "model", "prompt": "Well?" }))).await.unwrap_err();
    assert!(matches!(&error, CallError::Limit(what) if what.contains("200 ms")), "{error:?}");
    assert_eq!(used(&place).await, Amount { tokens: 2, usd: 0.0 }, "the question's five bytes: it may have been worked on");
    soon(server).await.unwrap(); // the connection is closed
}

#[tokio::test]
async fn only_a_model_is_asked() {
    let place = Place::new().await;
    place.calls.settings.store(Arc::new(settings(HashMap::from([("echo".to_owned(), Arc::new(samples::echo()))]))));
    for (params, told) in [
        (json!({ "agent": "echo", "prompt": "x" }), "`agent` `echo` is no model"),
        (json!({ "agent": "nobody", "prompt": "x" }), "`agent` `nobody` is not configured"),
        (json!({ "agent": "echo" }), "`prompt` is missing"),
        (json!({ "agent": "echo", "prompt": "x", "max_tokens": 0 }), "`max_tokens` must be a whole number from 1 to 1000000"),
    ] {
        let error = place.calls.call(&caller(None), "llm", params).await.unwrap_err().told();
        assert!(error.starts_with(told), "{error}");
    }
}
