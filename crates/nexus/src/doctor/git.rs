//! The git program that clones repositories of projects: whether it is there, and whether it is new enough. It asks for
//! its version and nothing else.

use super::adapters::run;
use super::{Check, Finding};
use crate::adapter::{Call, PROBE_LIMIT};
use nexus_core::config::Config;
use std::path::Path;

/// The first version that connects to the addresses that were looked at (`http.curloptResolve`).
const OLDEST: (u32, u32) = (2, 37);
/// What Debian 12 brings.
const DEBIAN_12: (u32, u32) = (2, 39);

/// Looks at `projects.git.program`; says nothing where no relay can name a project.
pub fn findings(config: &Config, workspace: &Path) -> Vec<Finding> {
    if config.nostr.relays.is_empty() {
        return Vec::new();
    }
    let program = &config.projects.git.program;
    let call = Call { argv: vec![program.clone()], env: crate::environment::base(), cwd: workspace.to_owned() };
    let told = run(&call, "version", PROBE_LIMIT).map(|text| String::from_utf8_lossy(&text).trim().to_owned());
    vec![judge(told).at_place(program)]
}

fn judge(told: Result<String, String>) -> Finding {
    let told = match told {
        Ok(told) => told,
        Err(why) => return Finding::warning(Check::Git, why, "install git, or correct projects.git.program: no repository can be cloned"),
    };
    match version(&told) {
        None => Finding::warning(Check::Git, format!("it answers `{told:.80}`"), "name a git program in projects.git.program"),
        Some(found) if found < OLDEST => {
            let what = format!("{told:.80} is older than {}.{}: it can't clone from hosts given by name", OLDEST.0, OLDEST.1);
            Finding::warning(Check::Git, what, "install a newer git, or name one in projects.git.program")
        }
        Some(found) if found == DEBIAN_12 => {
            Finding::ok(Check::Git, format!("{told:.80}, as Debian 12 has it: it works, its fixes are brought by Debian's updates"))
        }
        Some(_) => Finding::ok(Check::Git, format!("{told:.80}")),
    }
}

/// `git version 2.39.5` as its first two numbers.
fn version(told: &str) -> Option<(u32, u32)> {
    let mut numbers = told.strip_prefix("git version ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.split(' ').next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    #[test]
    fn versions_are_read_and_judged() {
        let cases = [
            ("git version 2.47.3", Severity::Ok),
            ("git version 2.39.5 (Apple Git-154)", Severity::Ok),
            ("git version 2.40", Severity::Ok),
            ("git version 3.0.1", Severity::Ok),
            ("git version 2.30.2", Severity::Warning),
            ("git version x", Severity::Warning),
            ("hello", Severity::Warning),
            ("", Severity::Warning),
        ];
        for (told, severity) in cases {
            assert_eq!(judge(Ok(told.to_owned())).severity, severity, "{told}");
        }
        assert!(judge(Ok("git version 2.39.5".to_owned())).what.contains("Debian 12"));
        assert_eq!(judge(Err("no such file".to_owned())).severity, Severity::Warning);
    }
}
