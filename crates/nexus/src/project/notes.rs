//! What the process of a project says: its last lines, kept in memory for `nexus project logs`, and what it does.
//! The daemon's log has them as well; after a restart of the daemon only that has them.

use crate::clock;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines that are kept of one project, and bytes of them.
pub const LINES_MAX: usize = 1000;
const BYTES_MAX: usize = 1024 * 1024;
/// Longest line, in characters.
const LINE_CHARS_MAX: usize = 4000;
/// Lines per window that go to the daemon's log; more are only kept here.
const LOGS_PER_WINDOW: u32 = 200;
const LOG_WINDOW: Duration = Duration::from_secs(10);
/// Longest text that tells what it does, in characters.
const STATUS_CHARS_MAX: usize = 200;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Counts up, so that who follows knows what is new.
    pub seq: u64,
    /// Unix ms.
    pub at: i64,
    pub level: &'static str,
    pub text: String,
}

/// Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Notes {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    lines: VecDeque<Line>,
    bytes: usize,
    next: u64,
    status: Option<String>,
    /// Begin of the window, and lines logged in it.
    window: Option<(Instant, u32)>,
}

impl Notes {
    /// Keeps a line and, unless there are too many, logs it.
    pub(super) fn line(&self, project: &str, level: &str, text: &str) {
        let text: String = text.trim_end().chars().take(LINE_CHARS_MAX).collect();
        if text.is_empty() {
            return;
        }
        let level = known(level);
        if self.may_log() {
            log(project, level, &text);
        }
        self.keep(level, text);
    }

    /// Keeps a line that is logged elsewhere.
    pub(super) fn keep(&self, level: &'static str, text: String) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.next += 1;
        inner.bytes += text.len();
        let line = Line { seq: inner.next, at: clock::wall_ms(), level, text };
        inner.lines.push_back(line);
        while inner.lines.len() > LINES_MAX || inner.bytes > BYTES_MAX {
            let Some(gone) = inner.lines.pop_front() else { break };
            inner.bytes -= gone.text.len();
        }
    }

    /// The last `count` lines after number `after`.
    pub(super) fn lines(&self, after: u64, count: usize) -> Vec<Line> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let newer: Vec<Line> = inner.lines.iter().filter(|line| line.seq > after).cloned().collect();
        newer[newer.len().saturating_sub(count)..].to_vec()
    }

    pub(super) fn set_status(&self, text: Option<&str>) {
        let text = text.map(|text| text.chars().take(STATUS_CHARS_MAX).filter(|c| !c.is_control()).collect());
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).status = text;
    }

    pub(super) fn status(&self) -> Option<String> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).status.clone()
    }

    fn may_log(&self) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, logged) = inner.window.filter(|(since, _)| since.elapsed() < LOG_WINDOW).unwrap_or((Instant::now(), 0));
        inner.window = Some((since, logged.saturating_add(1)));
        logged < LOGS_PER_WINDOW
    }
}

fn known(level: &str) -> &'static str {
    match level {
        "debug" => "debug",
        "warn" => "warn",
        "error" => "error",
        _ => "info",
    }
}

fn log(project: &str, level: &str, text: &str) {
    match level {
        "debug" => tracing::debug!(target: "child", project, "{text}"),
        "warn" => tracing::warn!(target: "child", project, "{text}"),
        "error" => tracing::error!(target: "child", project, "{text}"),
        _ => tracing::info!(target: "child", project, "{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_counted_on() {
        let notes = Notes::default();
        for n in 0..LINES_MAX + 5 {
            notes.keep("info", n.to_string());
        }
        let last = notes.lines(0, 2);
        assert_eq!((last[0].text.as_str(), last[1].seq), ("1003", 1005));
        assert_eq!(notes.lines(0, usize::MAX).len(), LINES_MAX);
        assert_eq!(notes.lines(1004, 10).len(), 1);
        assert!(notes.lines(2000, 10).is_empty());
    }

    #[test]
    fn long_lines_cost_older_ones_and_levels_are_a_closed_list() {
        let notes = Notes::default();
        for _ in 0..LINES_MAX {
            notes.line("p", "fatal", &"x".repeat(10 * LINE_CHARS_MAX));
        }
        let kept = notes.lines(0, usize::MAX);
        assert!(kept.len() * LINE_CHARS_MAX <= BYTES_MAX, "{}", kept.len());
        assert!(kept.iter().all(|line| line.level == "info" && line.text.len() == LINE_CHARS_MAX));
        notes.set_status(Some("one\u{1b}two"));
        assert_eq!(notes.status().as_deref(), Some("onetwo"));
        notes.line("p", "info", " \n");
        assert_eq!(notes.lines(0, usize::MAX).len(), kept.len());
    }
}
