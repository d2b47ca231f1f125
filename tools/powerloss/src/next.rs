//! The real functions behind ours, and the macro that defines ours.

use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// The function that would be called without this library. `name` ends with a NUL.
pub(crate) fn resolve(known: &AtomicPtr<c_void>, name: &'static str) -> *mut c_void {
    let at = known.load(Ordering::Relaxed);
    if !at.is_null() {
        return at;
    }
    // SAFETY: every `name` comes from the macro below, which ends it with a NUL.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast::<c_char>()) };
    if found.is_null() {
        crate::log::die(&format!("libc has no `{}`", name.trim_end_matches('\0')));
    }
    known.store(found, Ordering::Relaxed);
    found
}

/// `interpose!([symbol symbol] (argument: type, ...) -> type => body)` defines each symbol as a call of
/// `body(real, argument, ...)`, where `real()` is the call that was asked for.
///
/// `open`, `openat` and `fcntl` are variadic in C. On these two architectures Linux passes an optional integer like a
/// fixed one, in the next register; one that wasn't given is whatever is there, and is only passed on.
macro_rules! interpose {
    ([$($symbol:ident)+] $arguments:tt -> $returned:ident => $body:ident) => {
        $(interpose!(@one $symbol $arguments -> $returned => $body);)+
    };
    (@one $symbol:ident ($($argument:ident: $kind:ty),*) -> $returned:ident => $body:ident) => {
        // SAFETY: the name is libc's on purpose, and so is the signature.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol($($argument: $kind),*) -> $returned {
            type Real = unsafe extern "C" fn($($kind),*) -> $returned;
            static AT: std::sync::atomic::AtomicPtr<std::ffi::c_void> = std::sync::atomic::AtomicPtr::new(std::ptr::null_mut());
            let at = crate::next::resolve(&AT, concat!(stringify!($symbol), "\0"));
            // SAFETY: it is libc's function of this name, which has this signature.
            let real = unsafe { std::mem::transmute::<*mut std::ffi::c_void, Real>(at) };
            // SAFETY: the arguments are as valid as the caller made them, who meant them for this very function.
            $body(|| unsafe { real($($argument),*) }, $($argument),*)
        }
    };
}
pub(crate) use interpose;
