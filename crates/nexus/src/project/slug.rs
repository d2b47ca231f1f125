//! Names of `[a-z0-9-]` made of any text. A name says what it stands for to people; nothing is found by it alone.

use std::collections::BTreeSet;

/// `text` in lower case with single dashes between its words, of which a new one begins where camelCase has a capital;
/// `fallback` if nothing is left. At most `chars_max` characters.
pub(crate) fn of(text: &str, fallback: &str, chars_max: usize) -> String {
    let chars: Vec<char> = text.chars().take(chars_max.saturating_mul(4)).collect();
    let mut slug = String::new();
    for (index, c) in chars.iter().enumerate() {
        if !c.is_ascii_alphanumeric() {
            push_dash(&mut slug);
            continue;
        }
        if c.is_ascii_uppercase() && begins_word(&chars, index) {
            push_dash(&mut slug);
        }
        slug.push(c.to_ascii_lowercase());
    }
    slug.truncate(chars_max); // all ASCII
    let slug = slug.trim_matches('-');
    if slug.is_empty() { fallback.to_owned() } else { slug.to_owned() }
}

/// `slug`, or with the first number behind it that nobody has: `name-2`, `name-3`.
pub(crate) fn free(slug: &str, taken: &BTreeSet<String>) -> String {
    let numbered = (2_u32..).map(|number| format!("{slug}-{number}"));
    std::iter::once(slug.to_owned()).chain(numbered).find(|name| !taken.contains(name)).unwrap_or_else(|| slug.to_owned())
}

/// Whether this is a name that [`of`] could have made: one safe part of a path.
pub(crate) fn is_slug(text: &str, chars_max: usize) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.len() <= chars_max && !text.starts_with('-') && text.bytes().all(allowed)
}

fn push_dash(slug: &mut String) {
    if !slug.is_empty() && !slug.ends_with('-') {
        slug.push('-');
    }
}

/// `myName` and `HTTPServer` have two words, `HTTP` has one.
fn begins_word(chars: &[char], index: usize) -> bool {
    let before = index.checked_sub(1).and_then(|before| chars.get(before));
    let after = chars.get(index + 1);
    before.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        || (before.is_some_and(char::is_ascii_uppercase) && after.is_some_and(char::is_ascii_lowercase))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_and_joined_by_dashes() {
        for (text, slug) in [
            ("Project Manager", "project-manager"),
            ("projectManager", "project-manager"),
            ("HTTPServer v2", "http-server-v2"),
            ("  --a__b..c-- ", "a-b-c"),
            ("größe", "gr-e"),
            ("日本語", "agent"),
            ("", "agent"),
            ("../../etc", "etc"),
        ] {
            assert_eq!(of(text, "agent", 48), slug, "{text}");
        }
        assert_eq!(of(&"ab-".repeat(100), "agent", 6), "ab-ab");
    }

    #[test]
    fn a_clash_gets_a_number() {
        let mut taken = BTreeSet::new();
        for expected in ["pm", "pm-2", "pm-3"] {
            let name = free("pm", &taken);
            assert_eq!(name, expected);
            taken.insert(name);
        }
    }

    #[test]
    fn only_safe_parts_of_paths_are_slugs() {
        assert!(is_slug("a-2", 8));
        for bad in ["", "..", "a/b", "-a", "A", "a.json", "toolongname"] {
            assert!(!is_slug(bad, 8), "{bad}");
        }
    }
}
