//! The process of a project for end-to-end tests, which does what it is told, good or bad: it speaks the protocol of
//! projects and misbehaves on request. It never uses the daemon's code, so that both can't be wrong in the same way.
//!
//! Its argument is a directory. What it does is in the file `mode` there, read at each step: `answer` (says `echo: `
//! and the text, as the first agent), `mute` (never says that it is ready), `version N` (speaks that one), `crash` (ends
//! with 3 at once), `config` (ends with 78 at once), `die` (ends with 9 when an event comes, before it accepts it),
//! `break` (the same once it has accepted it), `wide` (answers with a frame of 2 MB), `garbage` (lines that are no
//! frames, then answers), `leave` (answers, then ends with 0), `slow` (accepts, and answers once the file `go` is
//! there), `linger` (the same, and ends its answer once the file `gone` is there), `deaf` (never answers a ping),
//! `unasked` (as `slow`, and first has something published that answers nothing), `tidy` (answers; asked to end it takes a
//! while, and then has a line with its PID in `tidied`), `together` (answers; asked to end it has such a line in `asked`, and
//! once the lines there are even in number in `met`).
//! In that directory too: `starts` has a line with each PID, `log` each frame that came.

use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Longer than any frame that is taken.
const WIDE_BYTES: usize = 2 * 1024 * 1024;

fn main() -> io::Result<ExitCode> {
    let place = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| ".".to_owned()));
    append(&place.join("starts"), &std::process::id().to_string())?;
    match mode(&place).split_once(' ') {
        Some(("version", number)) => say(&json!({ "type": "ready", "protocol": number.parse::<u32>().unwrap_or(0) }))?,
        Some(_) | None => match mode(&place).as_str() {
            "crash" => return Ok(ExitCode::from(3)),
            "config" => return Ok(ExitCode::from(78)),
            "mute" => {}
            _ => say(&json!({ "type": "ready", "protocol": 1 }))?,
        },
    }
    let agent = agent()?;
    let mut lines = io::stdin().lock().lines();
    while let Some(line) = lines.next() {
        let line = line?;
        append(&place.join("log"), &line)?;
        let frame: Value = serde_json::from_str(&line)?;
        match frame["type"].as_str() {
            Some("ping") if mode(&place) != "deaf" => say(&json!({ "type": "pong", "n": frame["n"] }))?,
            Some("shutdown") => {
                end(&place)?;
                return Ok(ExitCode::SUCCESS);
            }
            Some("event") => {
                if let Some(code) = event(&frame, &agent, &place, &mut lines)? {
                    return Ok(code);
                }
            }
            Some(_) | None => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What it does when it is asked to end.
fn end(place: &Path) -> io::Result<()> {
    let own = std::process::id().to_string();
    match mode(place).as_str() {
        "tidy" => {
            pause();
            append(&place.join("tidied"), &own)
        }
        "together" => {
            let asked = place.join("asked");
            append(&asked, &own)?;
            wait_until(|| fs::read_to_string(&asked).is_ok_and(|text| text.matches('\n').count().is_multiple_of(2)));
            append(&place.join("met"), &own)
        }
        _ => Ok(()),
    }
}

/// Deals with one event; how the process ends, if it does.
fn event(frame: &Value, agent: &str, place: &Path, lines: &mut io::Lines<io::StdinLock<'_>>) -> io::Result<Option<ExitCode>> {
    let (id, mode) = (&frame["id"], mode(place));
    if mode == "die" {
        return Ok(Some(ExitCode::from(9)));
    }
    say(&json!({ "type": "accepted", "id": id }))?;
    say(&json!({ "type": "status", "text": "at work" }))?;
    match mode.as_str() {
        "break" => return Ok(Some(ExitCode::from(9))),
        "wide" => say(&json!({ "type": "complete", "id": id, "content": "x".repeat(WIDE_BYTES) }))?,
        "slow" | "linger" => wait_for(&place.join("go")),
        "unasked" => {
            wait_for(&place.join("go"));
            let template = json!({ "kind": 1, "content": "by the way", "tags": [] });
            say(&json!({ "type": "publish", "id": 2, "as": agent, "template": template }))?;
        }
        "garbage" => ["{not json", "[]", "{\"type\":\"fly\"}", "\u{1}"].iter().try_for_each(|line| raw(line))?,
        _ => {}
    }
    let text = format!("echo: {}", frame["event"]["content"].as_str().unwrap_or_default());
    say(&json!({ "type": "stream", "id": id, "output": { "token": text } }))?;
    let tags = json!([["e", frame["event"]["id"], "", "root"], ["p", frame["event"]["pubkey"]]]);
    let template = json!({ "kind": 1, "content": text, "tags": tags });
    say(&json!({ "type": "publish", "id": 1, "as": agent, "for": id, "template": template }))?;
    // Nothing but pings comes in between.
    for line in lines {
        let line = line?;
        append(&place.join("log"), &line)?;
        let frame: Value = serde_json::from_str(&line)?;
        if frame["type"] == "ack_published" {
            break;
        }
        if frame["type"] == "ping" {
            say(&json!({ "type": "pong", "n": frame["n"] }))?;
        }
    }
    if mode == "linger" {
        wait_for(&place.join("gone"));
    }
    say(&json!({ "type": "complete", "id": id, "content": text }))?;
    Ok((mode == "leave").then_some(ExitCode::SUCCESS))
}

/// The slug of the first agent, as the context file has it.
fn agent() -> io::Result<String> {
    let Ok(path) = std::env::var("NEXUS_CONTEXT_FILE") else { return Ok(String::new()) };
    let context: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
    Ok(context["project"]["agents"][0]["slug"].as_str().unwrap_or_default().to_owned())
}

fn mode(place: &Path) -> String {
    fs::read_to_string(place.join("mode")).map_or_else(|_| "answer".to_owned(), |text| text.trim().to_owned())
}

#[expect(clippy::disallowed_methods, reason = "a program for tests that is to be slow")]
fn pause() {
    std::thread::sleep(Duration::from_millis(300));
}

fn wait_for(path: &Path) {
    wait_until(|| path.exists());
}

#[expect(clippy::disallowed_methods, reason = "a program for tests that is to be slow")]
fn wait_until(is_so: impl Fn() -> bool) {
    while !is_so() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn say(frame: &Value) -> io::Result<()> {
    raw(&frame.to_string())
}

fn raw(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).open(path)?.write_all(format!("{line}\n").as_bytes())
}
