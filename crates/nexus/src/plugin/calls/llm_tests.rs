//! Questions to a model, on a server of the loopback that answers one.
#![allow(clippy::unwrap_used)]

use super::super::tests::{Place, caller, settings};
use crate::agent::Runner;
use crate::agent::llm::{KeySource, LlmEndpoint, LlmRunner};
use crate::patience::{DEADLINE, soon};
use crate::pipeline::Agent;
use crate::plugin::calls::CallError;
use crate::samples;
use nexus_core::config;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Serves one completion; the task returns the request's body.
#[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
async fn model(agents: &mut HashMap<String, Arc<Agent>>, answer: String, timeout: Duration) -> tokio::task::JoinHandle<Value> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
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
    let agent = Agent { name: "model".to_owned(), runner, timeout, harmless: false, ..samples::echo() };
    agents.insert("model".to_owned(), Arc::new(agent));
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

#[tokio::test]
async fn a_model_answers_one_question_without_a_history() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n";
    let chunk = r#"data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"test-1","choices":[{"index":0,"delta":{"content":"four"},"finish_reason":"stop"}],"usage":null}"#;
    let usage = r#"data: {"id":"1","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}"#;
    let stream = format!("{chunk}\n\n{usage}\n\ndata: [DONE]\n\n");
    let reply = format!("{head}content-length: {}\r\n\r\n{stream}", stream.len());
    let (mut agents, place) = (HashMap::new(), Place::new().await);
    let server = model(&mut agents, reply, DEADLINE).await;
    place.calls.settings.store(Arc::new(settings(agents)));
    let params = json!({ "agent": "model", "prompt": "Two and two?", "system": "Be short.", "max_tokens": 5 });
    let answer = soon(place.calls.call(&caller(None), "llm", params)).await.unwrap();
    assert_eq!((&answer["text"], &answer["stop_reason"]), (&json!("four"), &json!("end_turn")));
    assert_eq!(answer["usage"], json!({ "input_tokens": 3, "output_tokens": 1, "estimated": false }));
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
