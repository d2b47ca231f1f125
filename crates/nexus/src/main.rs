//! The one binary: hands over to the keeper, the bundled webhook adapter or the command line. It
//! decides nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The keeper comes first: it must do as little as possible before it is its own small process.
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(std::ffi::OsStr::to_str) {
        Some("__keeper") => nexus::keeper::main(),
        Some("__webhook") => nexus::webhook::main(args.map(|arg| arg.to_string_lossy().into_owned()).collect()),
        Some(_) | None => nexus::cli::main(),
    }
}
