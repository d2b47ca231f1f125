//! Showing an answer: its tokens as they come on a terminal, and in any case its whole text once.

use super::failure::Exit;
use super::out::{Color, Out, OutputError, note, visible};
use super::talk::{End, Part};
use nexus_core::request::Status;

/// An answer while it is shown.
#[derive(Debug)]
pub(crate) struct Reply {
    out: Out,
    /// Stands before the text, with a blank.
    label: Option<String>,
    streams: bool,
    shown: String,
}

impl Reply {
    pub(crate) fn new(out: Out, streams: bool) -> Self {
        Self { out, label: None, streams, shown: String::new() }
    }

    /// Puts the speaker's name before the text.
    pub(crate) fn labelled(mut self, speaker: &str) -> Self {
        self.label = Some(format!("{}>", visible(speaker)));
        self
    }

    /// Shows a part that is not the end.
    pub(crate) fn take(&mut self, part: &Part) -> Result<(), OutputError> {
        match part {
            Part::Token { text } if self.streams && !text.is_empty() => {
                if self.shown.is_empty() {
                    self.out.piece(&self.prefix())?;
                }
                self.shown.push_str(text);
                self.out.piece(&visible(text))
            }
            Part::Tool { name, status } if self.streams => {
                let line = format!("[{} {}]", visible(name), visible(status));
                note(&self.out.paint.apply(Color::Dim, &line));
                Ok(())
            }
            Part::Question { text } => {
                note(&self.out.paint.apply(Color::Bold, &visible(text)));
                Ok(())
            }
            Part::Token { .. } | Part::Tool { .. } | Part::Accepted {} | Part::End(_) | Part::Other => Ok(()),
        }
    }

    /// Shows what the tokens left out, and why there is no answer if there is none.
    pub(crate) fn finish(self, end: &End) -> Result<Exit, OutputError> {
        let text = end.text.as_deref().unwrap_or("");
        let failure = failure(end);
        if self.shown.is_empty() {
            if !text.is_empty() || (end.status == Status::Completed && failure.is_none()) {
                // A program gets the text as it is, a terminal what it may see.
                let text = if self.out.terminal { visible(text) } else { text.to_owned() };
                self.out.line(&format!("{}{text}", self.prefix()))?;
            }
        } else {
            self.out.line(&rest(&self.shown, text))?;
        }
        let Some(failure) = failure else { return Ok(Exit::Done) };
        note(&self.out.paint.apply(Color::Red, &failure));
        Ok(Exit::Failed)
    }

    fn prefix(&self) -> String {
        self.label.as_ref().map_or_else(String::new, |label| format!("{} ", self.out.paint.apply(Color::Bold, label)))
    }
}

/// What is still to be shown of `text` when `shown` was: tokens may have been left out for a slow
/// terminal or a lost connection, and then the whole text is shown again.
fn rest(shown: &str, text: &str) -> String {
    if let Some(rest) = text.strip_prefix(shown) {
        return visible(rest);
    }
    if text.is_empty() || shown.trim() == text.trim() {
        return String::new();
    }
    format!("\n[the whole answer]\n{}", visible(text))
}

fn failure(end: &End) -> Option<String> {
    let trace = end.request_id.as_deref().map_or_else(String::new, |id| format!(" (see `nexus trace {}`)", visible(id)));
    let word = match end.status {
        Status::Completed => return end.cut_short().map(|why| format!("{}{trace}", visible(why))),
        Status::Denied => "denied",
        Status::HandledByAutomation if end.text.is_some() => return None, // it has answered
        Status::HandledByAutomation => "handled by an automation",
        Status::Failed => "failed",
        Status::Expired => "expired",
        Status::Waiting | Status::Processing => "not done yet",
        Status::Interrupted => "interrupted",
    };
    let reason = end.reason.as_deref().map_or_else(String::new, |reason| format!(": {}", visible(reason)));
    Some(format!("{word}{reason}{trace}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(status: Status, reason: Option<&str>) -> End {
        End { request_id: Some("req_1".into()), status, reason: reason.map(Into::into), text: None, agent: None, session: None }
    }

    #[test]
    fn only_what_is_missing_is_shown() {
        assert_eq!(rest("Hel", "Hello"), "lo");
        assert_eq!(rest("Hello", "Hello"), "");
        assert_eq!(rest("Hello ", "Hello"), "");
        assert_eq!(rest("Helo", "Hello"), "\n[the whole answer]\nHello");
        assert_eq!(rest("partial", ""), "");
    }

    #[test]
    fn every_bad_end_says_why() {
        for reason in [None, Some("collected: answered with req_2")] {
            let whole = end(Status::Completed, reason);
            assert_eq!((failure(&whole), whole.exit()), (None, Exit::Done));
        }
        for reason in ["stopped: the owner said /stop (req_2)", "aborted: a newer message of its session ended this turn"] {
            let cut = end(Status::Completed, Some(reason));
            assert_eq!((failure(&cut), cut.exit()), (Some(format!("{reason} (see `nexus trace req_1`)")), Exit::Failed));
        }
        assert_eq!(failure(&end(Status::Denied, Some("no policy"))).as_deref(), Some("denied: no policy (see `nexus trace req_1`)"));
        let answered = End { text: Some("done".into()), ..end(Status::HandledByAutomation, Some("automation:x")) };
        assert_eq!(failure(&answered), None);
        for status in Status::ALL.into_iter().filter(|status| *status != Status::Completed) {
            assert!(failure(&end(status, None)).is_some(), "{status:?}");
        }
    }
}
