//! Errors as one line of text, for logs, the ledger and people; which errors of the operating system pass by themselves.

use std::io::ErrorKind;

/// An error with its causes, in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Whether the same attempt may succeed later without anybody changing anything: too many open files, no memory, a full
/// disk. What lies there wrongly stays so.
pub(crate) fn is_passing(error: &std::io::Error) -> bool {
    let is_lasting_kind = matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::InvalidData
            | ErrorKind::InvalidInput
            | ErrorKind::Unsupported
    );
    // Some have no kind of their own.
    let is_lasting_number = matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENAMETOOLONG | libc::ENOEXEC | libc::EROFS));
    !is_lasting_kind && !is_lasting_number
}

#[cfg(test)]
mod passing_tests {
    use super::is_passing;
    use std::io::Error;

    #[test]
    fn what_runs_short_passes_and_what_lies_there_wrongly_stays() {
        for passing in [libc::EMFILE, libc::ENFILE, libc::ENOSPC, libc::EIO, libc::ENOMEM, libc::EAGAIN] {
            assert!(is_passing(&Error::from_raw_os_error(passing)), "{passing}");
        }
        for lasting in [libc::ENOENT, libc::EACCES, libc::EPERM, libc::ENOTDIR, libc::EISDIR, libc::ELOOP, libc::ENOEXEC, libc::EROFS] {
            assert!(!is_passing(&Error::from_raw_os_error(lasting)), "{lasting}");
        }
    }
}
