//! A plugin for end-to-end tests that does what it is told, good or bad: it speaks the hook protocol and
//! misbehaves on request. It never uses the daemon's code, so that both can't be wrong in the same way.
//!
//! What it does with a call is in the file `.mode` of its directory, or its first argument:
//! `continue`, `skip`, `patch JSON`, `throw`, `hang` (never answers), `wait` (answers once there is a file `.go`),
//! `die` (ends before it answers), `garbage` (lines that are no frames, then continue), `flood` (nothing but such
//! lines), `wide` (a line of 2 MB, then continue), `wrong` (answers to calls that nobody made, then continue),
//! `nonsense` (an answer that is none), `call METHOD` (asks for that, logs the answer, then continues), `exit` (ends
//! before it reads anything).
//! Each call is a line of `.log` in its directory, as it came.

use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::time::Duration;

/// Longer than any line that is taken.
const WIDE_BYTES: usize = 2 * 1024 * 1024;
/// How often and how many times the file is looked for that `wait` waits for.
const LOOK_EVERY: Duration = Duration::from_millis(10);
const LOOKS_MAX: u32 = 6000;
/// More lines than are listened to.
const FLOOD_LINES: usize = 500;

fn main() -> io::Result<ExitCode> {
    if mode() == "exit" {
        return Ok(ExitCode::from(3));
    }
    let mut lines = io::stdin().lock().lines();
    while let Some(line) = lines.next() {
        let line = line?;
        log(&line)?;
        let frame: Value = serde_json::from_str(&line)?;
        let id = &frame["id"];
        let mode = mode();
        let (verb, rest) = mode.split_once(' ').unwrap_or((mode.as_str(), ""));
        match verb {
            "skip" => say(&json!({ "id": id, "result": "skip", "reason": "as told" }).to_string())?,
            "patch" => say(&json!({ "id": id, "patch": serde_json::from_str::<Value>(rest)? }).to_string())?,
            "throw" => say(&json!({ "id": id, "error": "boom", "file": "fake.rs", "line": 7 }).to_string())?,
            "nonsense" => say(&json!({ "id": id, "result": "perhaps" }).to_string())?,
            "hang" => {}
            "wait" => {
                wait_for_file()?;
                go_on(id)?;
            }
            "die" => return Ok(ExitCode::from(9)),
            "flood" => (0..FLOOD_LINES).try_for_each(|n| say(&format!("flood {n}")))?,
            "garbage" => {
                ["{not json", "[]", "{\"id\":", "\u{1}\u{2}"].iter().try_for_each(|line| say(line))?;
                go_on(id)?;
            }
            "wide" => {
                say(&"x".repeat(WIDE_BYTES))?;
                go_on(id)?;
            }
            "wrong" => {
                for other in [json!(0), json!(999_999_999)] {
                    say(&json!({ "id": other, "result": "skip" }).to_string())?;
                }
                go_on(id)?;
            }
            "call" => {
                say(&json!({ "call": 1, "id": id, "method": rest, "params": {} }).to_string())?;
                if let Some(answer) = lines.next() {
                    log(&answer?)?;
                }
                go_on(id)?;
            }
            _ => go_on(id)?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::disallowed_methods, reason = "the test writes the file when it likes, and nothing here tells of it")]
fn wait_for_file() -> io::Result<()> {
    for _ in 0..LOOKS_MAX {
        if fs::exists(".go")? {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Err(io::Error::other("the file `.go` never came"))
}

fn mode() -> String {
    let told = std::env::args().nth(1).unwrap_or_else(|| "continue".to_owned());
    fs::read_to_string(".mode").map_or(told, |text| text.trim().to_owned())
}

fn go_on(id: &Value) -> io::Result<()> {
    say(&json!({ "id": id, "result": "continue" }).to_string())
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()
}

fn log(line: &str) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).open(".log")?.write_all(format!("{line}\n").as_bytes())
}
