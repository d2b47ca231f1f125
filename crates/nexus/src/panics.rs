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

/// Does `work`. `tell` hears of a panic in it, which goes on to whoever waits.
pub fn overhear<T>(work: impl FnOnce() -> T, tell: impl FnOnce(&Panicked)) -> T {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| pass_on(payload, tell))
}

/// As [`overhear`], for a future. No `async fn`, which would keep room for `work` twice.
pub fn overheard<F: Future>(work: F, tell: impl FnOnce(&Panicked)) -> impl Future<Output = F::Output> {
    AssertUnwindSafe(work).catch_unwind().map(|done| done.unwrap_or_else(|payload| pass_on(payload, tell)))
}

fn pass_on(payload: Box<dyn Any + Send>, tell: impl FnOnce(&Panicked)) -> ! {
    tell(&Panicked::new(&*payload));
    std::panic::resume_unwind(payload)
}

/// Does something once it is dropped: at the end of what is around it, however that ends.
pub(crate) struct Finally<F: FnMut()>(F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

pub(crate) fn finally<F: FnMut()>(work: F) -> Finally<F> {
    Finally(work)
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

    #[tokio::test]
    async fn what_is_overheard_goes_on() {
        async fn breaks() -> u8 {
            panic!("another")
        }
        let (mut told, mut is_over) = (Vec::new(), false);
        let first = catch::<u8>(|| overhear(|| panic!("a defect"), |panicked| told.push(panicked.to_string()))).unwrap_err();
        let work = async {
            let _over = finally(|| is_over = true);
            breaks().await
        };
        let second = caught(overheard(work, |panicked| told.push(panicked.to_string()))).await.unwrap_err();
        assert!(first.to_string().ends_with("a defect") && second.to_string().ends_with("another"), "{first}; {second}");
        assert!(told[0].ends_with("a defect") && told[1].ends_with("another"), "{told:?}");
        assert!(is_over, "what is to be done at the end is done");
        assert_eq!(overheard(async { 1 }, |panicked| unreachable!("{panicked}")).await, 1);
    }

    #[test]
    fn a_place_is_told_once() {
        PLACE.set(Some("here.rs:1:2".to_owned()));
        assert_eq!(Panicked::new(&"x").to_string(), "it panicked at here.rs:1:2: x");
        assert_eq!(Panicked::new(&"x").to_string(), "it panicked: x");
    }
}
