//! What a child's environment holds: a few variables of the daemon's own and what was asked for; and
//! where the daemon's own program is.

use std::collections::BTreeMap;

/// Passed on to every child as they are (contract: `env`, `pass_env`).
const PASSED: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "TMPDIR"];

/// The variables that every child gets.
pub fn base() -> Vec<(String, String)> {
    PASSED.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect()
}

/// The same with `pass_env` of the daemon's environment and the values of `env` on top.
pub fn with(env: &BTreeMap<String, String>, pass_env: &[String]) -> Vec<(String, String)> {
    let mut all: BTreeMap<String, String> = base().into_iter().collect();
    all.extend(pass_env.iter().filter_map(|name| Some((name.clone(), std::env::var(name).ok()?))));
    all.extend(env.clone());
    all.into_iter().collect()
}

/// The path of this binary, for what it brings itself.
pub fn own_binary() -> String {
    std::fs::read_link("/proc/self/exe")
        .map_or_else(|_| "nexus".into(), |path| path.to_string_lossy().trim_end_matches(" (deleted)").to_owned())
}
