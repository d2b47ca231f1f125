//! What somebody looks for, as an expression of FTS5 (sqlite.org/fts5.html, "Full-text Query Syntax").
//! Every word goes in as a quoted string, so that no text is ever read as syntax. Never searches.

use std::collections::HashSet;

/// Longest question of a person, in bytes.
pub const QUERY_BYTES_MAX: usize = 4096;
/// Words and phrases of a question that are looked for; those behind them are not.
pub const TERMS_MAX: usize = 32;
/// How much of a message is looked at for words, in bytes.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Words of a message that are looked for.
const MESSAGE_TERMS_MAX: usize = 12;
/// Words of a message that are shorter say little, and are everywhere.
const MESSAGE_WORD_CHARS_MIN: usize = 4;
/// Longest word that is looked for, in bytes; a longer one is no word.
const WORD_BYTES_MAX: usize = 256;

/// The beginning of a text, of at most `bytes_max` bytes and whole characters.
pub fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// What has all the words of a person's question. `"some words"` are looked for as they stand, and
/// `word*` for its beginning. `None` if there is nothing to look for.
pub fn all_of(question: &str) -> Option<String> {
    let mut rest = cut(question, QUERY_BYTES_MAX);
    let mut terms = Vec::new();
    while terms.len() < TERMS_MAX {
        rest = rest.trim_start_matches(is_gap);
        if rest.is_empty() {
            break;
        }
        let phrase = rest.strip_prefix('"');
        let (text, behind) = match phrase {
            // One that isn't closed goes to the end.
            Some(phrase) => phrase.split_once('"').unwrap_or((phrase, "")),
            None => rest.split_at(rest.find(|c: char| is_gap(c) || c == '"').unwrap_or(rest.len())),
        };
        // The asterisk stands behind the quotes of a phrase, and at the end of a word.
        let starred = match phrase {
            Some(_) => behind.strip_prefix('*').map(|behind| (text, behind)),
            None => text.strip_suffix('*').map(|text| (text, behind)),
        };
        let is_beginning = starred.is_some();
        let (text, behind) = starred.unwrap_or((text, behind));
        terms.extend(quoted(text).map(|term| if is_beginning { format!("{term} *") } else { term }));
        rest = behind;
    }
    (!terms.is_empty()).then(|| terms.join(" "))
}

/// What has any of the words by which a message may be recognized: its longest ones, since those that
/// every text has are short. `None` if it has no such word.
pub fn any_of(message: &str) -> Option<String> {
    let text = cut(message, MESSAGE_BYTES_MAX).to_lowercase();
    let mut seen = HashSet::new();
    let is_told = |word: &&str| word.len() <= WORD_BYTES_MAX && word.chars().count() >= MESSAGE_WORD_CHARS_MIN;
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(is_told);
    let mut words: Vec<&str> = words.filter(|word| seen.insert(*word)).collect();
    words.sort_by_key(|word| std::cmp::Reverse(word.chars().count()));
    words.truncate(MESSAGE_TERMS_MAX);
    let terms: Vec<String> = words.into_iter().filter_map(quoted).collect();
    (!terms.is_empty()).then(|| terms.join(" OR "))
}

/// What stands between words. NUL would end the expression.
fn is_gap(c: char) -> bool {
    c.is_whitespace() || c.is_control()
}

/// A string of FTS5, if any word may be in it.
fn quoted(text: &str) -> Option<String> {
    let is_word = text.chars().any(char::is_alphanumeric);
    is_word.then(|| format!("\"{}\"", text.replace('"', "\"\"").replace(is_gap, " ")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_phrases_and_beginnings_are_told_apart() {
        for (question, expression) in [
            ("invoice march", "\"invoice\" \"march\""),
            ("  invoice\n\tmarch ", "\"invoice\" \"march\""),
            ("\"to be\" or", "\"to be\" \"or\""),
            ("inv*", "\"inv\" *"),
            ("\"to b\"* x", "\"to b\" * \"x\""),
            ("a\"b c\"d", "\"a\" \"b c\" \"d\""),
            ("\"never closed", "\"never closed\""),
            ("NEAR(a b)", "\"NEAR(a\" \"b)\""),
            ("text:x AND -y", "\"text:x\" \"AND\" \"-y\""),
            ("a\0b", "\"a\" \"b\""),
            ("\"a\0b\"", "\"a b\""),
        ] {
            assert_eq!(all_of(question).as_deref(), Some(expression), "{question:?}");
        }
        for nothing in ["", "  ", "\"", "\"\"", "*", "**", "\"*\"*", "\0", "🎉", "( ) : ^ - +"] {
            assert_eq!(all_of(nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn a_message_is_known_by_its_longest_words() {
        assert_eq!(any_of("When is the dentist? The DENTIST!").as_deref(), Some("\"dentist\" OR \"when\""));
        assert_eq!(any_of("is it on?"), None);
        assert_eq!(any_of(&"x".repeat(2000)), None);
        let many = (0..100).map(|n| format!("word{n:03}")).collect::<Vec<_>>().join(" ");
        assert_eq!(any_of(&many).unwrap().split(" OR ").count(), MESSAGE_TERMS_MAX);
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!((cut("aä", 2), cut("aä", 3), cut("aä", 9), cut("", 0)), ("a", "aä", "aä", ""));
    }

    /// Strings in quotes with at most an asterisk or an OR between them.
    fn is_expression(text: &str) -> bool {
        let outside: Vec<&str> = text.split('"').step_by(2).collect();
        let is_even = text.matches('"').count().is_multiple_of(2);
        is_even && outside.iter().all(|part| ["", " ", " *", " * ", " OR "].contains(part)) && !text.chars().any(char::is_control)
    }

    proptest! {
        #[test]
        fn any_text_is_an_expression_or_none(text in "(?s)[\"* a-zA-Z\\x00-\\x1fä🎉():^+-]{0,80}|.{0,200}") {
            for expression in [all_of(&text), any_of(&text)].into_iter().flatten() {
                prop_assert!(is_expression(&expression), "{expression:?} of {text:?}");
            }
        }

        #[test]
        fn however_long_it_is_the_expression_is_short(text in "(?s).{0,20}", times in 0_usize..5000) {
            let text = text.repeat(times);
            for expression in [all_of(&text), any_of(&text)].into_iter().flatten() {
                prop_assert!(expression.len() <= 4 * QUERY_BYTES_MAX, "{}", expression.len());
            }
        }
    }
}
