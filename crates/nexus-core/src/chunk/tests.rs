//! Known splits, hostile sizes, and properties over random documents.
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

fn split(text: &str, limit: usize) -> Vec<String> {
    chunk(text, NonZeroUsize::new(limit).unwrap())
}

#[test]
fn nothing_gives_nothing_and_what_fits_stays() {
    assert_eq!(split("", 10), [""; 0]);
    assert_eq!(split(" \n\t ", 1), [""; 0]);
    assert_eq!(split("  a\n\nb  ", 8), ["  a\n\nb  "]);
    assert_eq!(split("ééééé", 5), ["ééééé"], "the limit counts chars, not bytes");
}

#[test]
fn the_best_break_wins_over_the_latest() {
    assert_eq!(split("aaa\n\nbbb ccc ddd", 12), ["aaa", "bbb ccc ddd"]);
    assert_eq!(split("one two\nthree four\nfive", 20), ["one two\nthree four", "five"]);
    assert_eq!(split("Hello there. How are you today", 20), ["Hello there.", "How are you today"]);
    assert_eq!(split("alpha beta gamma", 11), ["alpha beta", "gamma"]);
    assert_eq!(split("abcdefgh", 3), ["abc", "def", "gh"]);
    assert_eq!(split("你好。再见了", 4), ["你好。", "再见了"]);
}

#[test]
fn a_break_may_fall_right_at_the_limit() {
    assert_eq!(split("aaaa bbbb", 4), ["aaaa", "bbbb"]);
    assert_eq!(split("aaaa\n\nbbbb", 4), ["aaaa", "bbbb"]);
}

#[test]
fn indentation_after_a_break_is_kept() {
    assert_eq!(split("- a\n  - bb", 6), ["- a", "  - bb"]);
    assert_eq!(split("- a\r\n \r\n  - bb", 6), ["- a", "  - bb"]);
}

#[test]
fn a_split_fence_is_closed_and_opened_again() {
    let text = "Look:\n```rust\nlet a = 1;\nlet b = 2;\nlet c = 3;\n```\nDone.";
    let expected = ["Look:", "```rust\nlet a = 1;\nlet b = 2;\n```", "```rust\nlet c = 3;\n```\nDone."];
    assert_eq!(split(text, 40), expected);
}

#[test]
fn a_fence_that_fits_moves_as_a_whole() {
    assert_eq!(split("Some words here.\n```\ncode\n```", 20), ["Some words here.", "```\ncode\n```"]);
}

#[test]
fn an_info_string_too_long_to_repeat_is_kept_as_code() {
    let text = "```averyveryverylonginfo\nx\n```";
    assert_eq!(split(text, 16), ["```\naveryver\n```", "```\nyverylon\n```", "```\nginfo\nx\n```"]);
}

#[test]
fn the_info_string_of_blank_code_is_kept() {
    let text = format!("a\n```b   \n{}```\n", " \n".repeat(20));
    assert_eq!(split(&text, 16), ["a", "```b\n```"]);
    assert_eq!(split(&text.replace('b', ""), 16), ["a"]);
}

#[test]
fn backticks_inside_code_do_not_end_its_pieces() {
    let text = "```\naaaa ```bbb``` cccc dddd eeee\n```";
    let chunks = split(text, 20);
    assert!(chunks.len() > 1);
    for chunk in &chunks {
        assert!(chunk.starts_with("````\n") && chunk.ends_with("\n````"), "{chunk}");
        assert!(!ends_open(chunk), "{chunk}");
    }
}

#[test]
fn an_unclosed_fence_is_closed_in_every_piece() {
    let chunks = split("```sh\necho one\necho two\necho three", 24);
    assert_eq!(chunks, ["```sh\necho one\n```", "```sh\necho two\n```", "```sh\necho three\n```"]);
}

#[test]
fn below_the_least_limit_fences_split_like_text() {
    assert_eq!(split("```\nabc\n```", 5), ["```", "abc", "```"]);
}

#[test]
fn inline_code_never_becomes_a_fence() {
    for limit in 16..40 {
        for chunk in split("so ``` and ```x y``` then ```z``` or ``` again and again ``` at last", limit) {
            assert!(!ends_open(&chunk), "{limit}: {chunk}");
        }
    }
}

#[test]
fn hostile_runs_take_linear_time() {
    let size = 100_000;
    let runs = [" ", "`", "\n", "` ", "``` ", "a\n", "\n ", "a ", "```\n", "\u{3002}"].map(|part| part.repeat(size));
    for run in runs {
        for limit in [1, 16, 4000] {
            let chunks = split(&format!("a{run}b"), limit);
            assert!(chunks.iter().all(|chunk| chunk.chars().count() <= limit));
            assert!(chunks.last().is_some_and(|chunk| chunk.contains('b')));
        }
    }
}

/// Whether a fence is open at the end: written apart from the splitter's own reading.
fn ends_open(text: &str) -> bool {
    fence_lines(text).1
}

/// For each line whether it opens or closes a fence, and whether one stays open.
fn fence_lines(text: &str) -> (Vec<bool>, bool) {
    let mut open: Option<usize> = None;
    let mut is_fence = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        let ticks = line.chars().take_while(|ch| *ch == '`').count();
        let before = open;
        open = match open {
            None if ticks >= 3 && !line[ticks..].contains('`') => Some(ticks),
            Some(needed) if ticks >= needed && ticks == line.len() => None,
            None | Some(_) => open,
        };
        is_fence.push(open != before);
    }
    (is_fence, open.is_some())
}

fn visible(text: &str) -> String {
    text.chars().filter(|ch| !ch.is_whitespace()).collect()
}

fn visible_without_fences(text: &str) -> String {
    let (is_fence, _) = fence_lines(text);
    text.lines().zip(is_fence).filter(|(_, is_fence)| !is_fence).map(|(line, _)| visible(line)).collect()
}

fn any_code() -> impl Strategy<Value = String> {
    let info = prop::sample::select(vec!["", "sh", "rs"]);
    let indent = prop::sample::select(vec!["", "  "]);
    let line = prop_oneof![
        4 => "[a-d(){};= ]{0,30}",
        1 => Just(String::new()),
        1 => "[ab]{1,4}`{1,3}[ab ]{1,9}",
    ];
    (info, indent, prop::collection::vec(line, 0..12)).prop_map(|(info, indent, lines)| {
        let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
        format!("{indent}```{info}\n{body}{indent}```")
    })
}

fn any_prose() -> impl Strategy<Value = String> {
    let word = prop_oneof![6 => "[a-zé😀]{1,20}", 2 => "[a-z]{1,6}[.!?]", 1 => Just("```x```".to_owned())];
    prop::collection::vec(word, 1..40).prop_map(|words| words.join(" "))
}

fn any_document() -> impl Strategy<Value = String> {
    let part = prop_oneof![2 => any_prose(), 1 => any_code()];
    let end = prop::sample::select(vec!["\n", "\n\n", "\r\n", "\n \n"]);
    prop::collection::vec((part, end), 1..8).prop_map(|parts| parts.into_iter().map(|(part, end)| part + end).collect())
}

proptest! {
    #[test]
    fn documents_keep_their_text_and_their_fences(text in any_document(), limit in 16_usize..200) {
        let chunks = split(&text, limit);
        for chunk in &chunks {
            prop_assert!(chunk.chars().count() <= limit);
            prop_assert!(!ends_open(chunk), "{}", chunk);
            prop_assert!(!chunk.trim().is_empty());
        }
        let kept: String = chunks.iter().map(|chunk| visible_without_fences(chunk)).collect();
        prop_assert_eq!(kept, visible_without_fences(&text));
    }

    #[test]
    fn plain_text_is_kept_at_any_limit(text in "[a-c .!?\\n\\t\\r…。😀é]{0,300}", limit in 1_usize..60) {
        let chunks = split(&text, limit);
        prop_assert!(chunks.iter().all(|chunk| chunk.chars().count() <= limit && !chunk.trim().is_empty()));
        prop_assert_eq!(visible(&chunks.concat()), visible(&text));
    }

    #[test]
    fn any_backticks_are_split_within_the_limit(text in "[`a \\n]{0,300}", limit in 1_usize..60) {
        let chunks = split(&text, limit);
        prop_assert!(chunks.iter().all(|chunk| chunk.chars().count() <= limit && !chunk.trim().is_empty()));
        let letters = |text: &str| text.matches('a').count();
        prop_assert!(letters(&chunks.concat()) >= letters(&text));
    }
}
