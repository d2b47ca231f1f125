//! A `command` agent for end-to-end tests that takes messages while it runs, well or badly. It never uses the daemon's code,
//! so that both can't be wrong in the same way.
//!
//! `fake-agent DIR MODE`. Each thing that it is told is a line of `DIR/log`: `{"turn": TEXT}` and `{"steer": TEXT}`, of which
//! long texts are cut. It ends once there is a file `DIR/go`, which it removes, and its answer is all that it took in. MODE:
//! `takes` (says that it takes input, and of each message that it took it in), `mute` (the second it never says), `silent`
//! (neither), `deaf` (reads nothing after the turn), `lies` (says all of it twice, of a message that never was, and once more
//! after its end), `whole` (reads stdin to its end before anything else), `lingers` (as `takes`, and reads stdin to its end
//! after its answer).

use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Characters of a text that are noted and said.
const TEXT_CHARS_MAX: usize = 100;
/// Lines that may wait to be looked at.
const LINES_MAX: usize = 100;

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let (place, mode) = (PathBuf::from(args.next().unwrap_or_default()), args.next().unwrap_or_default());
    if mode == "whole" {
        io::stdin().read_to_end(&mut Vec::new())?;
        return say(&json!({ "type": "stream_end", "final": "stdin ended" }), false);
    }
    let lines = reader(mode == "deaf");
    let turn = lines.recv().map_err(io::Error::other)?;
    let mut took = vec![text(&turn)];
    note(&place, &json!({ "turn": took[0] }))?;
    let is_lying = mode == "lies";
    if mode != "silent" {
        say(&json!({ "type": "steering" }), is_lying)?;
    }
    let mut last = Value::Null;
    while fs::remove_file(place.join("go")).is_err() {
        while let Ok(line) = lines.try_recv() {
            note(&place, &json!({ "steer": text(&line) }))?;
            if matches!(mode.as_str(), "takes" | "lingers") || is_lying {
                took.push(text(&line));
                last = json!({ "type": "steered", "messageId": line["messageId"] });
                say(&last, is_lying)?;
            }
        }
        pause();
    }
    if is_lying {
        say(&json!({ "type": "steered", "messageId": "req_nobody" }), true)?;
    }
    say(&json!({ "type": "stream_end", "final": took.join(" + ") }), false)?;
    if is_lying {
        say(&last, true)?;
    }
    while mode == "lingers" && lines.recv().is_ok() {}
    Ok(())
}

/// The lines of stdin as they come, or only the first of them.
fn reader(only_first: bool) -> Receiver<Value> {
    let (sender, lines): (SyncSender<Value>, Receiver<Value>) = sync_channel(LINES_MAX);
    std::thread::spawn(move || {
        let lines = io::stdin().lock().lines().map_while(Result::ok);
        for line in lines.take(if only_first { 1 } else { usize::MAX }) {
            let Ok(line) = serde_json::from_str(&line) else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn text(line: &Value) -> String {
    line["message"]["content"].as_str().unwrap_or("?").chars().take(TEXT_CHARS_MAX).collect()
}

fn say(event: &Value, twice: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for _ in 0..=usize::from(twice) {
        out.write_all(format!("{event}\n").as_bytes())?;
    }
    out.flush()
}

fn note(place: &Path, what: &Value) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).open(place.join("log"))?.write_all(format!("{what}\n").as_bytes())
}

#[expect(clippy::disallowed_methods, reason = "a program for tests that waits for a file")]
fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}
