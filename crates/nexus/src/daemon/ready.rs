//! Tells whoever waits that the start succeeded or why not: the caller of a detached start through
//! its pipe, systemd through its socket.

use super::StartError;
use rustix::fd::OwnedFd;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::fs::File;
use std::io::Write;

#[derive(Debug)]
pub(super) struct Ready {
    pipe: RefCell<Option<OwnedFd>>,
}

impl Ready {
    pub(super) fn new(pipe: Option<OwnedFd>) -> Self {
        Self { pipe: RefCell::new(pipe) }
    }

    /// All eleven steps are done.
    pub(super) fn succeeded(&self, summary: &str) {
        self.say(&json!({ "ready": true, "pid": std::process::id(), "summary": summary }));
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::debug!(%error, "systemd was not told");
        }
    }

    pub(super) fn failed(&self, error: &StartError) {
        self.say(&json!({ "error": crate::error_text::describe(error), "exit_code": error.exit_code() }));
    }

    fn say(&self, message: &Value) {
        let Some(pipe) = self.pipe.borrow_mut().take() else { return };
        if let Err(error) = File::from(pipe).write_all(format!("{message}\n").as_bytes()) {
            tracing::warn!(%error, "who started this daemon could not be told");
        }
    }
}
