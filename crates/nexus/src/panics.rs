//! Panics: caught with what was said and where, and logged as everything else is. What becomes of the
//! part that panicked is for the part itself to decide, and for [`crate::watch`].

use futures_util::FutureExt;
use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, PanicHookInfo};

thread_local! {
    /// Where this thread panicked last; what is caught doesn't say.
    static PLACE: Cell<Option<String>> = const { Cell::new(None) };
}

/// A panic that was caught.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked {
    message: String,
    /// `file:line:column`, if the hook is installed.
    place: Option<String>,
}

impl Panicked {
    /// To be called on the thread that panicked, before anything else can.
    fn new(payload: &(dyn Any + Send)) -> Self {
        Self { message: message_of(payload), place: PLACE.try_with(Cell::take).ok().flatten() }
    }
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "it panicked at {place}: {}", self.message),
            None => write!(f, "it panicked: {}", self.message),
        }
    }
}

impl std::error::Error for Panicked {}

/// From now on a panic is a line of the log, instead of text on stderr.
pub fn install() {
    std::panic::set_hook(Box::new(tell));
}

fn tell(info: &PanicHookInfo<'_>) {
    let place = info.location().map(ToString::to_string);
    let message = message_of(info.payload());
    let thread = std::thread::current();
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(place, panic = message, thread = thread.name(), backtrace, "a panic, which is a defect of the daemon");
    // An error means that this thread is ending.
    PLACE.try_with(|last| last.set(place)).ok();
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

/// Does `work`. What it changes must be its own, or of no use to anybody after a panic.
///
/// # Errors
/// The panic in it.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|payload| Panicked::new(&*payload))
}

/// As [`catch`], for a future.
///
/// # Errors
/// The panic in it.
pub async fn caught<F: Future>(work: F) -> Result<F::Output, Panicked> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|payload| Panicked::new(&*payload))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn what_was_said_is_told() {
        assert_eq!(catch(|| 1).unwrap(), 1);
        let fixed = catch::<()>(|| panic!("a defect")).unwrap_err();
        assert!(fixed.to_string().ends_with("a defect"), "{fixed}");
        let number = 5;
        let made = caught(async { assert_eq!(number, 6) }).await.unwrap_err();
        assert!(made.to_string().contains("right: 6"), "{made}");
        let odd = catch::<()>(|| std::panic::panic_any(5)).unwrap_err();
        assert!(odd.to_string().ends_with("no message"), "{odd}");
    }

    #[test]
    fn a_place_is_told_once() {
        PLACE.set(Some("here.rs:1:2".to_owned()));
        assert_eq!(Panicked::new(&"x").to_string(), "it panicked at here.rs:1:2: x");
        assert_eq!(Panicked::new(&"x").to_string(), "it panicked: x");
    }
}
