//! How a run is judged: what its agent said, what the user is told of it, and how its request ends. Nothing is written or sent here.

use super::run::Work;
use super::running::Abort;
use crate::agent::project::ProjectTurn;
use crate::agent::{AgentError, Finished, StopReason, Usage};
use crate::ledger::events::is_of_wait;
use crate::ledger::nexus::{Awaited, NewWait};
use crate::live::End;
use nexus_core::request::NexusRequest;

/// What the agent said, what the user is told, and how the request ends.
pub(super) struct Verdict {
    pub(super) finished: Finished,
    /// Why there is no (whole) answer. Delivered only: no later turn is to read it as the agent's words.
    pub(super) notice: Option<String>,
    pub(super) error: Option<String>,
    /// What its project waits for, where it failed for nothing else.
    pub(super) awaits: Option<Awaited>,
}

impl Verdict {
    /// What is delivered.
    pub(super) fn text(&self) -> String {
        self.told(&self.finished.content)
    }

    /// What is delivered where only this of the agent's words has yet to leave.
    pub(super) fn told(&self, content: &str) -> String {
        if self.is_aborted() {
            return String::new(); // nobody waits for half an answer to what was asked before
        }
        match &self.notice {
            None => content.to_owned(),
            Some(notice) if content.is_empty() => notice.clone(),
            Some(notice) => format!("{content}\n\n{notice}"),
        }
    }

    /// What a stream has said in the end: the answer, or as much as was heard of it.
    pub(super) fn streamed(&self, heard: &str) -> String {
        let is_whole = self.error.is_none() && !self.finished.content.trim().is_empty();
        if is_whole || heard.trim().is_empty() { self.finished.content.clone() } else { heard.to_owned() }
    }

    /// How a stream ends that has said this.
    pub(super) fn stream_end(&self, said: String) -> End {
        match &self.error {
            Some(error) => End::Failed { error: error.clone(), partial: said },
            None if self.is_aborted() => End::Cut { error: "aborted".to_owned(), partial: said },
            None => End::Said(said),
        }
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.error.is_none() && self.finished.stop_reason == StopReason::Aborted
    }

    pub(super) fn wait(&self, request: &NexusRequest) -> Option<NewWait> {
        let (awaited, asked) = self.awaits.zip(ProjectTurn::of(request))?;
        Some(NewWait { project: asked.coordinate.to_string(), awaited })
    }

    /// Of an event that was run again and waits once more, who asked was told when it first waited.
    pub(super) fn told_once(self, request: &NexusRequest) -> Self {
        let was_told = self.awaits.is_some() && is_of_wait(&request.event.event_id);
        if was_told { Self { notice: None, ..self } } else { self }
    }

    pub(super) fn reason(&self, abort: &Abort) -> Option<String> {
        self.error.clone().or_else(|| self.is_aborted().then(|| abort.why().to_owned()))
    }
}

/// `heard` is what the agent had said until then, `hint` goes behind what is told of a failure, and `asked` is what has no
/// answer then.
pub(super) fn judge(work: Work, heard: &str, hint: &str, asked: &str) -> Verdict {
    let sorry = |what: &str| format!("{what}{hint}");
    // Below a part of an answer it would be wrong that there is none.
    let cut = |what: &str, silent: &str, said: &str| {
        let is_silent = said.trim().is_empty() && heard.trim().is_empty();
        if is_silent { format!("{silent}{hint}") } else { format!("{what}; its answer above is not complete.{hint}") }
    };
    let failed = |content: String, notice: Option<String>, stop_reason, error: String| Verdict {
        finished: Finished { content, usage: Usage::default(), stop_reason, model: None, provider: None },
        notice,
        error: Some(error),
        awaits: None,
    };
    match work {
        Work::Finished(finished) => match unanswered(&finished) {
            None => Verdict { finished, notice: None, error: None, awaits: None },
            Some(why) => Verdict { finished, notice: Some(sorry("The agent gave no answer.")), error: Some(why.to_owned()), awaits: None },
        },
        Work::Failed(AgentError::Exhausted { problem, partial, .. }) => {
            let is_silent = partial.trim().is_empty() && heard.trim().is_empty();
            let notice = if is_silent { problem.clone() } else { format!("{problem} Its answer above is not complete.") };
            failed(partial, Some(notice), StopReason::Error, problem)
        }
        Work::Failed(error) => {
            let awaits = error.awaits();
            let notice = match awaits {
                None => match error.told() {
                    Some(why) => sorry(&format!("The project can't be prepared: {why}. The message was not answered.")),
                    None => cut("The agent failed", &format!("The agent failed; {asked} was not answered."), error.partial()),
                },
                Some(Awaited::Approval(_)) => sorry("This waits for an approval of whoever runs the project, and is answered after that."),
                Some(Awaited::Configuration) => sorry("This waits until the project is configured, and is answered after that."),
                Some(Awaited::Source) => sorry("This waits until the project can be prepared, and is answered after that."),
            };
            let verdict = failed(error.partial().to_owned(), Some(notice), StopReason::Error, crate::error_text::describe(&error));
            Verdict { awaits, ..verdict }
        }
        Work::TimedOut => {
            let notice = cut("The agent took too long and was stopped", "The agent took too long and was stopped.", "");
            failed(heard.to_owned(), Some(notice), StopReason::Timeout, "the agent's time is up".into())
        }
        // Runs that are abandoned are interrupted and never get here; their request isn't over.
        Work::Abandoned => failed(String::new(), None, StopReason::Aborted, "abandoned".into()),
    }
}

/// Why an end that looks good has no answer. One without words that came by itself is the agent's choice.
fn unanswered(finished: &Finished) -> Option<&'static str> {
    if !finished.content.trim().is_empty() {
        return None;
    }
    match finished.stop_reason {
        StopReason::Error => Some("the model refused to answer, or its answer was held back"),
        StopReason::MaxTokens => Some("the model used up the length of an answer before its first word"),
        StopReason::EndTurn | StopReason::Timeout | StopReason::Aborted => None,
    }
}

/// Of an answer that a plugin failed to look at, though it had to.
pub(super) fn withheld(error: String, hint: &str, usage: Usage) -> Verdict {
    let notice = format!("The answer was held back.{hint}");
    let finished = Finished { content: String::new(), usage, stop_reason: StopReason::Error, model: None, provider: None };
    Verdict { finished, notice: Some(notice), error: Some(error), awaits: None }
}

/// As it is told outside.
pub(super) fn stop_word(reason: StopReason) -> &'static str {
    match reason {
        StopReason::EndTurn => "end_turn",
        StopReason::MaxTokens => "max_tokens",
        StopReason::Timeout => "timeout",
        StopReason::Aborted => "aborted",
        StopReason::Error => "error",
    }
}
