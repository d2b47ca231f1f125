//! Known answers, and properties over random ones however they come.
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

fn cutter(limit: usize) -> Cutter {
    Cutter::new(NonZeroUsize::new(limit))
}

/// The blocks of a text that comes in these pieces.
fn blocks(cutter: &mut Cutter, pieces: &[&str]) -> Vec<String> {
    let mut blocks = Vec::new();
    for piece in pieces {
        cutter.push(piece);
        blocks.extend(std::iter::from_fn(|| cutter.next_block()));
    }
    blocks
}

#[test]
fn a_block_ends_at_the_first_paragraph_past_its_length_or_at_the_limit() {
    let (first, second) = ("a".repeat(700), "b".repeat(200));
    let text = format!("{first}\n\n{second}\n\nmore");
    let mut whole = cutter(0);
    assert_eq!(blocks(&mut whole, &[&text]), [format!("{first}\n\n{second}")]);
    assert_eq!(whole.rest(&text, &text).unwrap(), "more");

    let words = "word ".repeat(400);
    let cut = blocks(&mut cutter(0), &[&words]);
    assert_eq!(cut.iter().map(|block| block.chars().count()).collect::<Vec<_>>(), [1199]);
    assert!(cut[0].ends_with("word"));
}

#[test]
fn a_short_answer_is_no_block_until_nothing_comes() {
    let mut short = cutter(0);
    assert_eq!(blocks(&mut short, &["Let me", " look.\n"]), [""; 0]);
    assert_eq!(short.idle_block().unwrap(), "Let me look.");
    assert_eq!(short.idle_block(), None);
    short.push("\n\nIt is 5.");
    let source = "Let me look.\n\n\nIt is 5.";
    assert_eq!(short.rest(source, source).unwrap(), "It is 5.");
}

#[test]
fn an_open_fence_waits_and_a_line_that_may_open_one_too() {
    let mut fenced = cutter(0);
    fenced.push("Look:\n```rust\nlet a = 1;\n");
    assert_eq!(fenced.idle_block().unwrap(), "Look:");
    assert_eq!(fenced.idle_block(), None);
    fenced.push("```");
    assert_eq!(fenced.idle_block(), None, "it may become another line");
    fenced.push("\nAnd\n``");
    assert_eq!(fenced.idle_block().unwrap(), "```rust\nlet a = 1;\n```\nAnd");
    fenced.push("`\nx");
    assert_eq!(fenced.idle_block(), None);
}

#[test]
fn a_fence_longer_than_a_block_is_closed_and_opened_again() {
    let text = "```rust\nlet a = 1;\nlet b = 2;\nlet c = 3;\nlet d = 4;\n```\nDone.";
    let mut fenced = cutter(40);
    let pieces: Vec<&str> = text.split_inclusive(' ').collect();
    let cut = blocks(&mut fenced, &pieces);
    assert_eq!(cut, ["```rust\nlet a = 1;\nlet b = 2;\n```", "```rust\nlet c = 3;\nlet d = 4;\n```"]);
    assert_eq!(fenced.rest(text, text).unwrap(), "Done.");
}

#[test]
fn the_rest_of_a_fence_is_opened_again() {
    let source = "```rust\nlet a = 1;\nlet b = 2;\nlet c = 3;\n";
    let mut fenced = cutter(40);
    assert_eq!(blocks(&mut fenced, &[source]).len(), 1);
    let whole = format!("{source}let d = 4;\n```");
    assert_eq!(fenced.rest(source, &whole).unwrap(), "```rust\nlet c = 3;\nlet d = 4;\n```");
}

#[test]
fn a_fence_that_ends_where_it_was_cut_leaves_nothing_empty_behind() {
    let mut fenced = cutter(20);
    let source = "```\naaaaaaaaaaaa\n    ``";
    let cut = blocks(&mut fenced, &[source]);
    assert_eq!(cut, ["```\naaaaaaaaaaaa\n```"]);
    let whole = format!("{source}`\nDone.");
    assert_eq!(fenced.rest(source, &whole).unwrap(), "Done.");
    fenced.push("`\nDone.");
    assert_eq!(fenced.idle_block().unwrap(), "Done.");
}

#[test]
fn an_answer_that_was_decided_differently_has_no_rest() {
    let mut said = cutter(0);
    said.push("It is 4.");
    assert_eq!(said.rest("It is 4.", "It is 5.").unwrap(), "It is 5.", "nothing was said yet");
    said.idle_block().unwrap();
    assert_eq!(said.rest("It is 4.", "It is 5."), None);
    assert_eq!(said.rest("It is 4.", "It"), None);
    assert_eq!(said.rest("It is 4.", "It is 4. Or 5.").unwrap(), "Or 5.");
}

#[test]
fn blanks_around_an_answer_make_it_no_other() {
    let mut said = cutter(0);
    said.push("\n\n It is 4.");
    assert_eq!(said.idle_block().unwrap(), " It is 4.");
    assert_eq!(said.rest("\n\n It is 4.", "It is 4. Or 5.").unwrap(), "Or 5.");
    assert_eq!(said.rest("\n\n It is 4.", "\nIt is 4.").unwrap(), "");
    let mut ended = cutter(0);
    ended.push("It is 4.\n");
    assert_eq!(ended.idle_block().unwrap(), "It is 4.");
    assert_eq!(ended.rest("It is 4.\n", "It is 4.").unwrap(), "");
    let mut blank = cutter(0);
    blank.push("\n\n");
    assert_eq!(blank.idle_block(), None);
    assert_eq!(blank.rest("\n\n", "It is 4.").unwrap(), "It is 4.");
}

/// Paragraphs, and fences with code in them that is no fence.
fn document() -> impl Strategy<Value = String> {
    let word = "[a-zé。]{1,12}";
    let prose = prop::collection::vec(word, 1..60).prop_map(|words| words.join(" "));
    let code = prop::collection::vec("[a-z =;]{0,30}", 0..12).prop_map(|lines| format!("```rs\n{}\n```", lines.join("\n")));
    prop::collection::vec(prop_oneof![3 => prose, 1 => code], 0..8)
        .prop_flat_map(|parts| (Just(parts), prop_oneof![Just("\n"), Just("\n\n")]))
        .prop_map(|(parts, gap)| parts.join(gap))
}

/// Cuts a text into pieces of these many chars, in turn.
fn pieces(text: &str, lengths: &[usize]) -> Vec<String> {
    let (mut chars, mut pieces) = (text.chars().peekable(), Vec::new());
    for length in lengths.iter().cycle() {
        if chars.peek().is_none() {
            break;
        }
        pieces.push(chars.by_ref().take(*length).collect());
    }
    pieces
}

/// Without what is put around the parts of a cut fence, and without white space.
fn solid(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with("```"));
    lines.flat_map(|line| line.chars().filter(|ch| !ch.is_whitespace())).collect()
}

proptest! {
    #[test]
    fn nothing_is_lost_or_said_twice_and_no_fence_is_left_open(
        text in document(), lengths in prop::collection::vec(1_usize..40, 1..20),
        limit in 40_usize..400, idle in prop::collection::vec(any::<bool>(), 1..10),
    ) {
        let mut cutter = cutter(limit);
        let mut said = Vec::new();
        for (piece, is_idle) in pieces(&text, &lengths).iter().zip(idle.iter().cycle()) {
            cutter.push(piece);
            said.extend(std::iter::from_fn(|| cutter.next_block()));
            if *is_idle {
                said.extend(cutter.idle_block());
            }
        }
        for block in &said {
            prop_assert!(block.chars().count() <= limit && !block.trim().is_empty(), "{block:?}");
            let fences = block.lines().filter(|line| line.starts_with("```")).count();
            prop_assert!(fences.is_multiple_of(2), "{block:?}");
        }
        let rest = cutter.rest(&text, &text).unwrap();
        said.push(rest);
        let all: String = said.iter().map(|block| solid(block)).collect();
        prop_assert_eq!(all, solid(&text));
    }

    #[test]
    fn no_text_breaks_it(pieces in prop::collection::vec("[`a \n\r]{0,12}", 0..60), limit in 1_usize..60) {
        let (mut cutter, text) = (cutter(limit), pieces.concat());
        for piece in &pieces {
            cutter.push(piece);
            while let Some(block) = cutter.next_block() {
                prop_assert!(block.chars().count() <= limit && !block.trim().is_empty(), "{block:?}");
            }
            cutter.idle_block();
        }
        prop_assert!(cutter.rest(&text, &text).is_some());
    }
}
