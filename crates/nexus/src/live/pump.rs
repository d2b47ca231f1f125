//! What is said on a line for one answer, from its start to the process's last word, and what that word means.
//! Never decides whether the answer is sent again.

use super::{End, Heard, Held, Line, Live, Next};
use nexus_core::protocol::SendOutcome;
use nexus_core::stream::{StreamEvent, StreamStatus, StreamTarget, completed, refused};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

/// Why no more is said of an answer.
enum Last {
    /// The process's own word.
    Told(SendOutcome),
    /// It can't be talked to any more, or says what it shouldn't.
    Broken(String),
}

/// One answer's talk over the line.
struct Talk<'a> {
    line: &'a mut Line,
    run_id: &'a str,
    patience: Duration,
    /// A byte of it was written: it may be on the platform.
    has_left: bool,
    /// The process says that a part is on the platform.
    was_shown: bool,
}

/// Tells the process one answer, whose row is written, and waits for its end. What came of that on the platform, and
/// how the answer ended.
pub async fn pump(live: &Live, mut held: Held) -> (SendOutcome, End) {
    let outcome = tell_all(live, &mut held).await;
    // Others may have the line, or a new process be started, while the agent goes on.
    drop(held);
    (outcome, live.ended().await)
}

async fn tell_all(live: &Live, held: &mut Held) -> SendOutcome {
    held.is_in_step = false;
    let patience = held.patience;
    let Some(line) = held.guard.as_mut() else {
        return SendOutcome::Retry { error: "the stream process is gone".to_owned(), after_ms: None };
    };
    let mut talk = Talk { line, run_id: &live.run_id, patience, has_left: false, was_shown: false };
    let last = match talk.tell(live).await {
        Ok(()) => talk.last_word().await,
        Err(last) => last,
    };
    let has_left = talk.has_left;
    match last {
        Last::Told(outcome) => {
            held.is_in_step = true;
            outcome
        }
        // The pipe was closed before it took anything.
        Last::Broken(error) if !has_left => SendOutcome::Retry { error, after_ms: None },
        Last::Broken(error) => SendOutcome::Uncertain { error },
    }
}

impl Talk<'_> {
    /// Up to the end of the answer.
    async fn tell(&mut self, live: &Live) -> Result<(), Last> {
        self.say(&start(live)).await?;
        loop {
            let next = tokio::select! {
                next = live.next() => next,
                heard = self.line.statuses.recv() => {
                    self.hear(heard, false)?;
                    continue;
                }
            };
            match next {
                Next::Events(events) => {
                    for event in &events {
                        self.say(event).await?;
                    }
                }
                Next::End(end) => return self.say(&closing(live, end)).await,
            }
        }
    }

    async fn last_word(&mut self) -> Last {
        let deadline = Instant::now() + self.patience;
        loop {
            let heard = tokio::select! {
                heard = self.line.statuses.recv() => heard,
                () = tokio::time::sleep_until(deadline) => {
                    let ms = self.patience.as_millis();
                    return Last::Broken(format!("the stream process said nothing of the answer's end within {ms} ms"));
                }
            };
            if let Err(last) = self.hear(heard, true) {
                return last;
            }
        }
    }

    /// Takes one status; an error is the last one.
    fn hear(&mut self, heard: Option<Heard>, is_over: bool) -> Result<(), Last> {
        let status = match heard {
            // It is late: of an answer that is over.
            Some(Heard::Status { run_id: Some(run_id), .. }) if run_id != self.run_id => return Ok(()),
            Some(Heard::Status { status, .. }) => status,
            Some(Heard::Garbage(problem)) => return Err(Last::Broken(format!("the stream process wrote a line that is {problem}"))),
            None => return Err(Last::Broken("the stream process ended in the middle of an answer".to_owned())),
        };
        match status {
            StreamStatus::Unknown => Ok(()),
            StreamStatus::Shown => {
                self.was_shown = true;
                Ok(())
            }
            StreamStatus::Complete { message_ids } if is_over => Err(self.complete(message_ids)),
            StreamStatus::Complete { .. } => {
                Err(Last::Broken("the stream process said `delivery_complete` before the end of the answer".to_owned()))
            }
            StreamStatus::Failed { error } => Err(Last::Told(refused(&error, self.was_shown))),
        }
    }

    /// A last word that names messages of the answer before may be that one's, come late.
    fn complete(&mut self, message_ids: Vec<String>) -> Last {
        if message_ids.iter().any(|id| self.line.last_ids.contains(id)) {
            return Last::Broken("the stream process said `delivery_complete` with a message of the answer before".to_owned());
        }
        self.line.last_ids.clone_from(&message_ids);
        Last::Told(completed(message_ids))
    }

    async fn say(&mut self, event: &StreamEvent) -> Result<(), Last> {
        let mut line = serde_json::to_vec(event).map_err(|error| Last::Broken(format!("a stream event could not be written: {error}")))?;
        line.push(b'\n');
        let patience = self.patience;
        match tokio::time::timeout(patience, self.write(&line)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Last::Broken(format!("failed to write to the stream process: {error}"))),
            Err(_) => Err(Last::Broken(format!("the stream process took nothing for {} ms", patience.as_millis()))),
        }
    }

    async fn write(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let written = self.line.stdin.write(bytes).await?;
            if written == 0 {
                return Err(std::io::ErrorKind::WriteZero.into());
            }
            self.has_left = true;
            bytes = &bytes[written..];
        }
        self.line.stdin.flush().await
    }
}

fn start(live: &Live) -> StreamEvent {
    let row = &live.row;
    let target = StreamTarget {
        channel: row.channel.clone(),
        account_id: row.account_id.clone(),
        to: row.target.clone(),
        thread_id: row.thread_id.clone(),
        reply_to_id: row.reply_to_id.clone(),
    };
    let (run_id, session_label, idempotency_key) = (live.run_id.clone(), live.session.clone(), row.idempotency_key.clone());
    StreamEvent::StreamStart { run_id, session_label, idempotency_key, target }
}

fn closing(live: &Live, end: End) -> StreamEvent {
    match end {
        End::Said(whole) => StreamEvent::StreamEnd { run_id: live.run_id.clone(), whole },
        End::Failed { error, partial } | End::Cut { error, partial } => StreamEvent::StreamError { error, partial },
        End::Lost => StreamEvent::StreamError { error: "a defect of the daemon".to_owned(), partial: String::new() },
    }
}

#[cfg(test)]
#[path = "pump_tests.rs"]
mod tests;
