//! Which tools a turn may call: what the access decision allows, less what it denies. It knows no tool.

use crate::config::Tools;

/// Whether a tool of this name may be offered and called. A denied one may not, whatever allows it.
pub fn permits(tools: &Tools, name: &str) -> bool {
    matches_any(&tools.allow, name) && !matches_any(&tools.deny, name)
}

/// Whether one of these patterns is the name, or ends with a `*` and begins as the name does. They are
/// compared byte by byte.
pub fn matches_any(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(allow: &[&str], deny: &[&str]) -> Tools {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Tools { allow: owned(allow), deny: owned(deny) }
    }

    #[test]
    fn only_what_is_allowed_and_a_deny_wins() {
        let cases: [(&[&str], &[&str], bool); 11] = [
            (&[], &[], false),
            (&["*"], &[], true),
            (&["files__read"], &[], true),
            (&["files__*"], &[], true),
            (&["file__*"], &[], false),
            (&["files__rea"], &[], false),
            (&["FILES__read"], &[], false),
            (&["*"], &["files__read"], false),
            (&["files__read"], &["files__*"], false),
            (&["*"], &["*"], false),
            (&["*"], &["mail__*"], true),
        ];
        for (allow, deny, permitted) in cases {
            assert_eq!(permits(&tools(allow, deny), "files__read"), permitted, "{allow:?} {deny:?}");
        }
    }
}
