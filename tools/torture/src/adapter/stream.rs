//! The `stream` process of an account: shows answers while they are being made, or does what a bad one does. It writes
//! down what it is told and shows before it says so, and as a broken promise what no daemon may tell it.

use super::{Adapter, LOST, REFUSED, REJECTED, key_without_run, say, write};
use crate::agent::FOR_EVER;
use crate::chance::Chance;
use crate::{clock, journal, procfs};
use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{self, BufRead};
use std::process::ExitCode;
use std::time::Duration;

/// Pieces of an answer among which is the one at which something happens.
const MIDDLE_MAX: u64 = 4;

/// What becomes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whim {
    Show,
    /// Refused before anything is shown: at its start, or once some of it was told.
    Refuse,
    RefuseLater,
    /// As refused, and for good.
    NotFound,
    /// In the middle of it.
    Exit,
    Die,
    Freeze,
    Babble,
    EndEarly,
    Dawdle,
    OtherRun,
    /// At its end.
    Mute,
    ShowAndExit,
    NoIds,
    ShowAndFail,
}

impl Whim {
    fn choose(chance: &mut Chance) -> Self {
        match chance.below(60) {
            0 | 1 => Self::Refuse,
            2 | 3 => Self::RefuseLater,
            4 => Self::NotFound,
            5 => Self::Exit,
            6 => Self::Die,
            7 => Self::Freeze,
            8 => Self::Babble,
            9 => Self::EndEarly,
            10 => Self::Dawdle,
            11 => Self::OtherRun,
            12 => Self::Mute,
            13 => Self::ShowAndExit,
            14 => Self::NoIds,
            15 => Self::ShowAndFail,
            _ => Self::Show,
        }
    }

    /// As the journal of what is done wrong names it.
    fn fault(self) -> Option<&'static str> {
        match self {
            Self::Show | Self::Dawdle => None,
            Self::Refuse | Self::RefuseLater => Some(REFUSED),
            Self::NotFound => Some(REJECTED),
            Self::Exit
            | Self::Die
            | Self::Freeze
            | Self::Babble
            | Self::EndEarly
            | Self::OtherRun
            | Self::Mute
            | Self::ShowAndExit
            | Self::NoIds
            | Self::ShowAndFail => Some(LOST),
        }
    }
}

/// How far an answer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Told,
    /// It was refused, or the daemon has reason to give this process up: what else is told of it is not shown.
    Lost,
    Over,
}

/// One answer.
struct Answer {
    key: String,
    run: Value,
    /// As a call of `send` is noted.
    call: Value,
    whim: Whim,
    /// The piece at which what happens in the middle does.
    middle: u64,
    pieces: u64,
    stage: Stage,
}

impl Adapter {
    /// Until the daemon closes its stdin.
    pub(super) fn stream(&self, account: &str) -> Result<ExitCode> {
        let _alone = self.alone(&self.world.stream_lock(self.kind, account), "stream processes", account)?;
        let (mut input, mut line, mut answer) = (io::stdin().lock(), String::new(), None::<Answer>);
        loop {
            line.clear();
            input.read_line(&mut line).context("failed to read a line of a stream")?;
            // A daemon that was killed leaves half a line.
            if !line.ends_with('\n') {
                return Ok(ExitCode::SUCCESS);
            }
            let Ok(event) = serde_json::from_str::<Value>(&line) else {
                self.world.violated(&format!("a line of a stream is unreadable: {line}"))?;
                continue;
            };
            let ended = if event["type"] == "stream_start" {
                let new = self.begin(account, answer.take(), &event)?;
                self.refuse_at_once(answer.insert(new))?;
                None
            } else {
                self.hear(answer.as_mut(), &event)?
            };
            if let Some(code) = ended {
                return Ok(code);
            }
        }
    }

    fn begin(&self, account: &str, before: Option<Answer>, event: &Value) -> Result<Answer> {
        if let Some(before) = before.filter(|before| before.stage == Stage::Told) {
            self.world.violated(&format!("a stream begins before the end of {}: {event}", before.key))?;
        }
        let key = event["idempotencyKey"].as_str().context("a stream has no key")?.to_owned();
        let target = &event["target"];
        if target["channel"] != self.kind.name() || target["account_id"] != account {
            self.world.violated(&format!("a stream of another account: {event}"))?;
        }
        let reply_to = target["reply_to_id"].as_str().unwrap_or_default();
        let mut chance = self.chance.about(&["stream", key_without_run(&key), reply_to]);
        let call = json!({ "key": key, "channel": self.kind.name(), "account": account, "to": target["to"], "reply_to": reply_to,
                           "streamed": true, "at": clock::monotonic_ns() });
        journal::append(&self.world.send_calls(), &call.to_string())?;
        let whim = if self.world.is_calm() { Whim::Show } else { Whim::choose(&mut chance) };
        if let Some(fault) = whim.fault() {
            self.fails(&key, fault)?;
        }
        let (run, middle) = (event["runId"].clone(), chance.below(MIDDLE_MAX) + 1);
        let answer = Answer { key, run, call, whim, middle, pieces: 0, stage: Stage::Told };
        self.note(&answer, "start", "")?;
        Ok(answer)
    }

    /// What was told of an answer.
    fn note(&self, answer: &Answer, what: &str, text: &str) -> Result<()> {
        let line = json!({ "what": what, "key": answer.key, "run": answer.run, "text": text, "at": clock::monotonic_ns() });
        journal::append(&self.world.streams(), &line.to_string())
    }

    fn refuse_at_once(&self, answer: &mut Answer) -> Result<()> {
        if answer.whim == Whim::Refuse {
            return self.refuse(answer, "network");
        }
        if answer.whim == Whim::NotFound {
            return self.refuse(answer, "not_found");
        }
        Ok(())
    }

    /// Nothing of it was shown.
    fn refuse(&self, answer: &mut Answer, kind: &str) -> Result<()> {
        let may_be_repeated = kind == "network";
        answer.stage = Stage::Lost;
        if may_be_repeated {
            journal::append(&self.world.refusals(), &json!({ "key": answer.key, "at": clock::monotonic_ns() }).to_string())?;
        }
        let error = json!({ "type": kind, "message": "made up", "retry": may_be_repeated });
        say(&json!({ "type": "delivery_error", "runId": answer.run, "error": error })).map(drop)
    }

    /// A line that is no start; an exit code ends the process.
    fn hear(&self, answer: Option<&mut Answer>, event: &Value) -> Result<Option<ExitCode>> {
        let Some(answer) = answer else {
            self.world.violated(&format!("a stream goes on that did not begin: {event}"))?;
            return Ok(None);
        };
        match answer.stage {
            Stage::Told => {}
            Stage::Lost => return Ok(None),
            Stage::Over => {
                self.world.violated(&format!("the stream {} goes on after its end: {event}", answer.key))?;
                return Ok(None);
            }
        }
        let text = |key: &str| event[key].as_str().with_context(|| format!("a line of a stream has no `{key}`: {event}"));
        match event["type"].as_str() {
            Some("token") => self.piece(answer, text("text")?),
            Some("stream_end") => self.close(answer, text("final")?, "end"),
            Some("stream_error") => self.close(answer, text("partial")?, "error"),
            Some(_) | None => Ok(None),
        }
    }

    /// Shows the next piece, unless nothing of it is ever shown.
    fn piece(&self, answer: &mut Answer, text: &str) -> Result<Option<ExitCode>> {
        answer.pieces += 1;
        let is_middle = answer.pieces == answer.middle;
        if answer.whim == Whim::RefuseLater {
            if is_middle {
                self.refuse(answer, "network")?;
            }
            return Ok(None);
        }
        self.note(answer, "token", text)?;
        let kind = if answer.pieces == 1 { "message_created" } else { "message_updated" };
        say(&json!({ "type": kind, "runId": answer.run, "messageId": format!("m-{}", answer.key) }))?;
        if is_middle { self.indulge(answer) } else { Ok(None) }
    }

    fn indulge(&self, answer: &mut Answer) -> Result<Option<ExitCode>> {
        match answer.whim {
            Whim::Exit => return Ok(Some(ExitCode::from(1))),
            Whim::Die => procfs::signal_self(Signal::KILL),
            Whim::Freeze => procfs::signal_self(Signal::STOP),
            Whim::Babble => {
                answer.stage = Stage::Lost;
                write(b"this is no status\n")?;
            }
            // Its end may be on its way: then that is what it says, and what is told is shown as ever.
            Whim::EndEarly => self.complete(answer, true)?,
            Whim::Dawdle => clock::pause(Duration::from_millis(200)),
            Whim::OtherRun => {
                say(&json!({ "type": "delivery_complete", "runId": "run_of_somebody_else", "messageIds": ["m-other"] }))?;
            }
            Whim::Show
            | Whim::Refuse
            | Whim::RefuseLater
            | Whim::NotFound
            | Whim::Mute
            | Whim::ShowAndExit
            | Whim::NoIds
            | Whim::ShowAndFail => {}
        }
        Ok(None)
    }

    /// It is over: whole, or broken off after this.
    fn close(&self, answer: &mut Answer, text: &str, what: &str) -> Result<Option<ExitCode>> {
        if answer.whim == Whim::RefuseLater {
            return self.refuse(answer, "network").map(|()| None);
        }
        answer.stage = Stage::Over;
        self.note(answer, what, text)?;
        let mut arrived = answer.call.clone();
        arrived["text"] = json!(text);
        arrived["partial"] = json!(what == "error");
        journal::append(&self.world.sends(), &arrived.to_string())?;
        match answer.whim {
            Whim::Mute => clock::pause(FOR_EVER),
            Whim::ShowAndExit => return Ok(Some(ExitCode::from(1))),
            Whim::NoIds => self.complete(answer, false)?,
            // Where it said that a part is shown, nothing may be sent again.
            Whim::ShowAndFail if answer.pieces > 0 => {
                say(&json!({ "type": "delivery_error", "runId": answer.run, "error": "made up" }))?;
            }
            Whim::Show
            | Whim::Refuse
            | Whim::RefuseLater
            | Whim::NotFound
            | Whim::Exit
            | Whim::Die
            | Whim::Freeze
            | Whim::Babble
            | Whim::EndEarly
            | Whim::Dawdle
            | Whim::OtherRun
            | Whim::ShowAndFail => self.complete(answer, true)?,
        }
        Ok(None)
    }

    fn complete(&self, answer: &Answer, has_ids: bool) -> Result<()> {
        let ids: Vec<String> = has_ids.then(|| format!("m-{}", answer.key)).into_iter().collect();
        say(&json!({ "type": "delivery_complete", "runId": answer.run, "messageIds": ids })).map(drop)
    }
}
