//! The `echo` runner: says back what it was told, word by word. It proves the whole path from a
//! message to a streamed reply without a model. Never fails and never acts.

use super::{Finished, Output, Sink, StopReason, Turn, Usage, emit};

/// The most pieces one echo is streamed in; what remains goes as the last one, so that a megabyte
/// of blanks isn't a million pieces.
pub const ECHO_PIECES_MAX: usize = 1000;

/// Streams the turn's content back and finishes with exactly that content.
pub async fn run(turn: &Turn, out: &Sink) -> Finished {
    for piece in pieces(&turn.content) {
        emit(out, Output::Token(piece.to_owned())).await;
    }
    Finished { content: turn.content.clone(), usage: Usage::default(), stop_reason: StopReason::EndTurn, model: None, provider: None }
}

/// Cuts the text after white space into at most [`ECHO_PIECES_MAX`] pieces; joined, they are the
/// text again.
fn pieces(content: &str) -> Vec<&str> {
    let words = content.split_inclusive(char::is_whitespace);
    let mut pieces: Vec<&str> = words.take(ECHO_PIECES_MAX - 1).collect();
    let streamed: usize = pieces.iter().map(|piece| piece.len()).sum();
    let rest = &content[streamed..];
    if !rest.is_empty() {
        pieces.push(rest);
    }
    pieces
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn turn(content: &str) -> Turn {
        Turn { content: content.into(), ..crate::samples::turn() }
    }

    #[test]
    fn words_keep_their_white_space() {
        assert_eq!(pieces("héllo  big\nworld"), ["héllo ", " ", "big\n", "world"]);
        assert!(pieces("").is_empty());
    }

    #[test]
    fn a_megabyte_of_blanks_is_a_bounded_number_of_pieces() {
        let blanks = " ".repeat(1024 * 1024);
        let cut = pieces(&blanks);
        assert_eq!(cut.len(), ECHO_PIECES_MAX);
        assert_eq!(cut.concat(), blanks);
    }

    #[tokio::test]
    async fn what_is_streamed_is_what_is_finished() {
        let (out, mut pieces) = tokio::sync::mpsc::channel(8);
        let finished = run(&turn("one two three"), &out).await;
        drop(out);
        let mut streamed = String::new();
        while let Some(piece) = pieces.recv().await {
            assert!(matches!(piece, Output::Token(_)), "{piece:?}");
            if let Output::Token(text) = piece {
                streamed.push_str(&text);
            }
        }
        assert_eq!(streamed, "one two three");
        assert_eq!(finished.content, streamed);
        assert_eq!(finished.stop_reason, StopReason::EndTurn);
    }
}
