//! An MCP server for end-to-end tests that does what it is told, good or bad. It speaks JSON-RPC over stdio by
//! itself and never uses the daemon's code or its SDK, so that both can't be wrong in the same way.
//!
//! `fake-mcp MODE LOG`. It offers `echo` and `forbidden`, both with the argument `text`, and a tool whose name
//! no provider takes. Each call and each cancellation is a line of LOG. MODE is what a call comes to:
//! `good` (the text comes back), `gated` (it does once there is a file `LOG.go`, which it removes), `slow` (nothing, for
//! ever), `dies`, `floods` (bytes without a line break), `huge` (1 MiB), `lies` (an answer to another call, text that is
//! no JSON, then the answer).

use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::time::Duration;

const HUGE_BYTES: usize = 1024 * 1024;
const EXIT_DEAD: u8 = 7;
const PROTOCOL: &str = "2025-06-18";

fn main() -> io::Result<ExitCode> {
    let mut args = std::env::args().skip(1);
    let (mode, log) = (args.next().unwrap_or_default(), args.next().unwrap_or_default());
    for line in io::stdin().lock().lines() {
        let Ok(message) = serde_json::from_str::<Value>(&line?) else { continue };
        let id = message["id"].clone();
        match message["method"].as_str() {
            Some("initialize") => {
                let about = json!({ "name": "fake", "version": "1" });
                say(&answer(&id, json!({ "protocolVersion": PROTOCOL, "capabilities": { "tools": {} }, "serverInfo": about })))?;
            }
            Some("tools/list") => say(&answer(&id, json!({ "tools": tools() })))?,
            Some("tools/call") => {
                let text = message["params"]["arguments"]["text"].as_str().unwrap_or("?").to_owned();
                note(&log, &format!("call {} {text}", message["params"]["name"].as_str().unwrap_or("?")))?;
                if mode == "dies" {
                    writeln!(io::stderr(), "out of memory")?;
                    return Ok(ExitCode::from(EXIT_DEAD));
                }
                if mode == "gated" {
                    pass(&format!("{log}.go"));
                }
                called(&mode, &id, &text)?;
            }
            Some("notifications/cancelled") => note(&log, "cancelled")?,
            Some(_) | None => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn tools() -> Value {
    let schema = json!({ "type": "object", "properties": { "text": { "type": "string" } }, "required": ["text"] });
    let tool = |name: &str| json!({ "name": name, "description": format!("The tool {name}."), "inputSchema": schema });
    json!([tool("echo"), tool("forbidden"), tool("not a name")])
}

fn called(mode: &str, id: &Value, text: &str) -> io::Result<()> {
    let result = |text: &str| answer(id, json!({ "content": [{ "type": "text", "text": text }] }));
    match mode {
        "slow" => Ok(()),
        "huge" => say(&result(&"x".repeat(HUGE_BYTES))),
        "floods" => loop {
            io::stdout().write_all(&[b'x'; 64 * 1024])?;
        },
        "lies" => {
            say(&answer(&json!(424_242), json!({ "content": [{ "type": "text", "text": "of another call" }] })))?;
            writeln!(io::stdout(), "{{\"jsonrpc\": \"2.0\", ")?;
            say(&json!({ "jsonrpc": "2.0", "method": "notifications/unheard-of", "params": [1] }))?;
            say(&result(&format!("echo: {text}")))
        }
        _ => say(&result(&format!("echo: {text}"))),
    }
}

/// Waits for a file and removes it.
#[expect(clippy::disallowed_methods, reason = "a program for tests that waits for a file")]
fn pass(gate: &str) {
    while fs::remove_file(gate).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn answer(id: &Value, result: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "result": result })
}

fn say(message: &Value) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{message}")?;
    stdout.flush()
}

fn note(log: &str, line: &str) -> io::Result<()> {
    writeln!(OpenOptions::new().create(true).append(true).open(log)?, "{line}")
}
