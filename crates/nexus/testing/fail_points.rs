//! The daemon as the torture harness runs it: the same program as `nexus`, built with the feature
//! `torture` under a name of its own, so that no user's program is ever replaced by it.

use std::process::ExitCode;

fn main() -> ExitCode {
    nexus::main()
}
