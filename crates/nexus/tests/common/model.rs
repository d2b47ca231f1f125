//! A model endpoint on the loopback: it answers each request with the next of its replies and keeps what it
//! was asked. Its replies have the shapes that the providers document for their streams; none was recorded
//! from a live one.

use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

/// What each test's answers have used.
pub const INPUT_TOKENS: u64 = 11;
pub const OUTPUT_TOKENS: u64 = 2;

/// What providers call the wire formats, as `agents.NAME.provider` does.
pub const PROVIDERS: [&str; 8] = ["openai", "openai_resp", "anthropic", "gemini", "groq", "deepseek", "xai", "ollama"];

/// Replies that a test may give ahead.
const REPLIES_MAX: usize = 100;

/// A request: its head in lower case, and its body.
pub type Asked = (String, Value);

#[derive(Debug)]
pub struct Model {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Model {
    /// Answers as many requests as there are replies; after that nobody listens. An empty reply leaves who asked waiting.
    pub fn start(replies: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let kept = asked.clone();
        std::thread::spawn(move || {
            let mut waiting = Vec::new();
            for reply in replies {
                let Ok((mut socket, _)) = listener.accept() else { return };
                let request = read(&mut socket);
                kept.lock().unwrap().push(request);
                if reply.is_empty() {
                    waiting.push(socket);
                    continue;
                }
                // The client may hang up while it is being answered: that is what some tests are about.
                socket.write_all(reply.as_bytes()).unwrap_or_default();
            }
        });
        Self { address, asked }
    }

    /// Answers each request once the test gives its reply, and keeps who asked waiting until then. One at a time.
    pub fn given() -> (Self, SyncSender<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let (give, replies) = sync_channel::<String>(REPLIES_MAX);
        let kept = asked.clone();
        std::thread::spawn(move || {
            while let Ok((mut socket, _)) = listener.accept() {
                let request = read(&mut socket);
                kept.lock().unwrap().push(request);
                let Ok(reply) = replies.recv() else { return };
                // Who asked may be dead by now.
                socket.write_all(reply.as_bytes()).unwrap_or_default();
            }
        });
        (Self { address, asked }, give)
    }

    /// Answers each request with this beginning and then with the piece again and again, for as long as it is taken. One at a time.
    pub fn endless(begin: String, piece: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let kept = asked.clone();
        std::thread::spawn(move || {
            while let Ok((mut socket, _)) = listener.accept() {
                let request = read(&mut socket);
                kept.lock().unwrap().push(request);
                let mut part = begin.as_bytes();
                while socket.write_all(part).is_ok() {
                    part = piece.as_bytes();
                }
            }
        });
        Self { address, asked }
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1/", self.address)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// Reads one request to its end.
pub fn read(socket: &mut TcpStream) -> Asked {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 16 * 1024]);
    loop {
        let count = socket.read(&mut chunk).unwrap();
        assert_ne!(count, 0, "the request broke off");
        bytes.extend_from_slice(&chunk[..count]);
        let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let length: usize = length.trim().parse().unwrap();
        if let Some(body) = bytes.get(end + 4..end + 4 + length) {
            return (head, serde_json::from_slice(body).unwrap());
        }
    }
}

/// An answer with a status, headers (each ending in a line break) and a body.
pub fn reply(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}")
}

fn stream(content_type: &str, events: &[String]) -> String {
    reply("200 OK", &format!("content-type: {content_type}\r\n"), &events.concat())
}

fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// As the providers do that name each event.
fn named(value: &Value) -> String {
    format!("event: {}\n{}", value["type"].as_str().unwrap(), data(value))
}

/// An answer that is this text, in two pieces.
pub fn text(provider: &str, text: &str) -> String {
    let (first, rest) = text.split_at(text.len() / 2);
    match provider {
        "anthropic" => anthropic(
            "end_turn",
            &[
                json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
                json!({"type": "ping"}),
                json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": first}}),
                json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": rest}}),
                json!({"type": "content_block_stop", "index": 0}),
            ],
        ),
        "gemini" => gemini(&[json!({"text": first}), json!({"text": rest})]),
        "ollama" => ollama(&[json!({"role": "assistant", "content": first}), json!({"role": "assistant", "content": rest})]),
        "openai_resp" => responses(&[
            json!({"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "id": "msg_1"}}),
            json!({"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": first}),
            json!({"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": rest}),
        ]),
        other => completions(other, "stop", &[json!({"role": "assistant", "content": first}), json!({"content": rest})]),
    }
}

/// The head of an answer whose end nobody tells.
pub const ENDLESS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// For [`Model::endless`]: an answer of so many bytes in each piece.
pub fn endless_text(provider: &str, piece_bytes: usize) -> (String, String) {
    let words = "x".repeat(piece_bytes);
    let whole = text(provider, &words.repeat(2));
    let (_, body) = whole.split_once("\r\n\r\n").unwrap();
    let piece = body.split_inclusive('\n').find(|line| line.contains(&words)).unwrap();
    let (begin, _) = body.split_once(piece).unwrap();
    // Some name each event in a line ahead of it.
    let name = begin.rsplit("\n\n").next().unwrap_or_default();
    let end = if provider == "ollama" { "" } else { "\n" };
    (format!("{ENDLESS}{begin}"), format!("{piece}{end}{name}"))
}

/// The same answer of a server that speaks as OpenAI does, but for the tokens that it tells for the question.
pub fn asked_with(answer: &str, input_tokens: u64) -> String {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let told = |tokens: u64| format!("\"prompt_tokens\":{tokens}");
    assert!(body.contains(&told(INPUT_TOKENS)), "{body}");
    stream("text/event-stream", &[body.replace(&told(INPUT_TOKENS), &told(input_tokens))])
}

/// An answer that calls a tool with the argument `text`, which comes in two pieces where the provider does so.
pub fn call(provider: &str, tool: &str, argument: &str) -> String {
    let arguments = json!({ "text": argument });
    let written = arguments.to_string();
    let (first, rest) = written.split_at(written.len() / 2);
    match provider {
        "anthropic" => anthropic(
            "tool_use",
            &[
                json!({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "toolu_1", "name": tool, "input": {}}}),
                json!({"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": first}}),
                json!({"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": rest}}),
                json!({"type": "content_block_stop", "index": 0}),
            ],
        ),
        "gemini" => gemini(&[json!({"functionCall": {"name": tool, "args": arguments}})]),
        "ollama" => {
            let calls = json!([{"function": {"name": tool, "arguments": arguments}}]);
            ollama(&[json!({"role": "assistant", "content": "", "tool_calls": calls})])
        }
        "openai_resp" => {
            let item =
                |arguments: &str| json!({"type": "function_call", "id": "fc_1", "call_id": "call_a", "name": tool, "arguments": arguments});
            responses(&[
                json!({"type": "response.output_item.added", "output_index": 0, "item": item("")}),
                json!({"type": "response.function_call_arguments.delta", "output_index": 0, "delta": first}),
                json!({"type": "response.function_call_arguments.delta", "output_index": 0, "delta": rest}),
                json!({"type": "response.output_item.done", "output_index": 0, "item": item(&written)}),
            ])
        }
        other => {
            let function = json!({"name": tool, "arguments": ""});
            completions(
                other,
                "tool_calls",
                &[
                    json!({"role": "assistant", "content": null, "tool_calls": [{"index": 0, "id": "call_a", "type": "function", "function": function}]}),
                    json!({"tool_calls": [{"index": 0, "function": {"arguments": first}}]}),
                    json!({"tool_calls": [{"index": 0, "function": {"arguments": rest}}]}),
                ],
            )
        }
    }
}

/// OpenAI's chat completions, and those who speak as it does.
fn completions(provider: &str, finish_reason: &str, deltas: &[Value]) -> String {
    let chunk = |delta: &Value, finish_reason: Value| {
        json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_770_000_000, "model": "m",
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason}],
        })
    };
    let usage = json!({"prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS, "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS});
    let mut events: Vec<String> = deltas.iter().map(|delta| data(&chunk(delta, Value::Null))).collect();
    let mut last = chunk(&json!({}), json!(finish_reason));
    match provider {
        "groq" => last["x_groq"] = json!({"id": "req_1", "usage": usage}),
        "deepseek" => last["usage"] = usage,
        _ => {
            events.push(data(&last));
            last = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": usage});
        }
    }
    events.push(data(&last));
    events.push("data: [DONE]\n\n".to_owned());
    stream("text/event-stream", &events)
}

fn responses(events: &[Value]) -> String {
    let response = |status: &str, usage: Value| json!({"id": "resp_1", "object": "response", "status": status, "model": "m", "output": [], "usage": usage});
    let usage = json!({"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS, "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS});
    let first = json!({"type": "response.created", "response": response("in_progress", Value::Null)});
    let last = json!({"type": "response.completed", "response": response("completed", usage)});
    let events: Vec<String> = std::iter::once(&first).chain(events).chain([&last]).map(named).collect();
    stream("text/event-stream", &events)
}

fn anthropic(stop_reason: &str, blocks: &[Value]) -> String {
    let first = json!({"type": "message_start", "message": {
        "id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m", "stop_reason": null,
        "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": 1},
    }});
    let delta = json!({
        "type": "message_delta", "delta": {"stop_reason": stop_reason, "stop_sequence": null}, "usage": {"output_tokens": OUTPUT_TOKENS},
    });
    let last = json!({"type": "message_stop"});
    let events: Vec<String> = std::iter::once(&first).chain(blocks).chain([&delta, &last]).map(named).collect();
    stream("text/event-stream", &events)
}

fn gemini(parts: &[Value]) -> String {
    let usage =
        json!({"promptTokenCount": INPUT_TOKENS, "candidatesTokenCount": OUTPUT_TOKENS, "totalTokenCount": INPUT_TOKENS + OUTPUT_TOKENS});
    let chunk = |parts: Value, reason: Option<&str>| {
        let mut candidate = json!({"content": {"parts": parts, "role": "model"}, "index": 0});
        if let Some(reason) = reason {
            candidate["finishReason"] = json!(reason);
        }
        data(&json!({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m"}))
    };
    let mut events: Vec<String> = parts.iter().map(|part| chunk(json!([part]), None)).collect();
    events.push(chunk(json!([{"text": ""}]), Some("STOP")));
    stream("text/event-stream", &events)
}

fn ollama(messages: &[Value]) -> String {
    let line =
        |message: &Value| format!("{}\n", json!({"model": "m", "created_at": "2026-02-05T14:30:00Z", "message": message, "done": false}));
    let mut lines: Vec<String> = messages.iter().map(line).collect();
    let last = json!({
        "model": "m", "created_at": "2026-02-05T14:30:01Z", "message": {"role": "assistant", "content": ""}, "done": true,
        "done_reason": "stop", "prompt_eval_count": INPUT_TOKENS, "eval_count": OUTPUT_TOKENS,
    });
    lines.push(format!("{last}\n"));
    stream("application/x-ndjson", &lines)
}
