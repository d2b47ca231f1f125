//! Tests of [`CommandOutput`]: the decision between events and plain text, boundaries, bounds.
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

/// Reads `bytes` in pieces of `size` and returns the pieces that came out and the state.
fn read(bytes: &[u8], size: usize) -> (Vec<Output>, CommandOutput) {
    let mut output = CommandOutput::default();
    let mut pieces = Vec::new();
    for part in bytes.chunks(size.max(1)) {
        pieces.extend(output.push(part));
    }
    pieces.extend(output.finish());
    (pieces, output)
}

fn tokens(pieces: &[Output]) -> String {
    let text = |piece: &Output| match piece {
        Output::Token(text) => text.clone(),
        Output::Reasoning(_)
        | Output::Tool { .. }
        | Output::Asked { .. }
        | Output::Used(_)
        | Output::Ask(_)
        | Output::Steering
        | Output::Steered { .. } => String::new(),
    };
    pieces.iter().map(text).collect()
}

#[test]
fn events_become_pieces_in_order() {
    let stream = concat!(
        "\n",
        r#"{"type":"stream_start","runId":"r"}"#,
        "\r\n",
        r#"{"type":"reasoning","text":"hm"}"#,
        "\n",
        r#"{"type":"tool_status","toolName":"ls","toolCallId":"1","status":"started"}"#,
        "\n",
        r#"{"type":"token","text":"Hel"}"#,
        "\n",
        r#"{"type":"token","text":"lo"}"#,
        "\n",
        r#"{"type":"stream_end","runId":"r"}"#,
    );
    let (pieces, output) = read(stream.as_bytes(), 7);
    let tool = Output::Tool { name: "ls".into(), call_id: "1".into(), status: ToolStatus::Started, summary: None, detail: None };
    let expected = [Output::Reasoning("hm".into()), tool, Output::Token("Hel".into()), Output::Token("lo".into())];
    assert_eq!(pieces, expected);
    assert_eq!(output.answer(), "Hello");
    assert_eq!((output.fault(), output.ignored_lines()), (None, 0));
}

#[test]
fn that_it_takes_input_and_what_it_took_in_are_events_up_to_the_end() {
    let stream = concat!(
        "{\"type\":\"steering\"}\n",
        "{\"type\":\"steered\",\"messageId\":\"req_1\"}\n",
        "{\"type\":\"steered\"}\n",
        "{\"type\":\"stream_end\",\"final\":\"done\"}\n",
        "{\"type\":\"steered\",\"messageId\":\"req_2\"}\n",
    );
    let (pieces, output) = read(stream.as_bytes(), 9);
    let expected = [Output::Steering, Output::Steered { message_id: "req_1".into() }, Output::Token("done".into())];
    assert_eq!(pieces, expected);
    assert_eq!((output.answer(), output.ignored_lines()), ("done", 2), "one without an id, and one after the end");
}

#[test]
fn plain_text_streams_without_waiting_for_a_newline() {
    let mut output = CommandOutput::default();
    assert_eq!(output.push(b"\n\nHello"), [Output::Token("Hello".into())]);
    assert!(output.push(b" \n").is_empty());
    assert_eq!(output.push(b"you\n\n"), [Output::Token(" \nyou".into())]);
    assert!(output.finish().is_empty());
    assert_eq!(output.answer(), "Hello \nyou");
}

#[test]
fn other_json_is_an_answer() {
    for text in
        [r#"{"answer": 42}"#, r#"{"type": "weather"}"#, r#"{"type": 7}"#, r#"["token"]"#, r#"{"type":"token","#, "{", "{ not json }\nmore"]
    {
        let (pieces, output) = read(text.as_bytes(), 3);
        assert_eq!(output.answer(), text);
        assert_eq!(tokens(&pieces), text);
    }
}

#[test]
fn once_plain_an_event_is_text_and_once_events_a_text_is_ignored() {
    let line = r#"{"type":"token","text":"x"}"#;
    let (_, plain) = read(format!("hi\n{line}\n").as_bytes(), 64);
    assert_eq!(plain.answer(), format!("hi\n{line}"));

    let junk = format!("{line}\nhi\n{{\"type\":\"token\"}}\n{{\"type\":\"other\"}}\n{line}\n");
    let (_, events) = read(junk.as_bytes(), 64);
    assert_eq!(events.answer(), "xx");
    assert_eq!(events.ignored_lines(), 3);
}

#[test]
fn a_final_text_is_the_answer_and_its_rest_is_streamed() {
    let (pieces, output) = read(b"{\"type\":\"token\",\"text\":\"Hel\"}\n{\"type\":\"stream_end\",\"final\":\"Hello\"}\n", 64);
    assert_eq!(tokens(&pieces), "Hello");
    assert_eq!(output.answer(), "Hello");

    let (pieces, output) = read(
        b"{\"type\":\"token\",\"text\":\"Hel\"}\n{\"type\":\"stream_end\",\"final\":\"Bye\"}\n\
          {\"type\":\"token\",\"text\":\"late\"}\n",
        64,
    );
    assert_eq!(tokens(&pieces), "Hel");
    assert_eq!(output.answer(), "Bye");
    assert_eq!(output.ignored_lines(), 1);

    let (_, output) = read(b"{\"type\":\"stream_end\",\"final\":true}\n", 64);
    assert_eq!((output.answer(), output.fault()), ("", None));
}

#[test]
fn a_reported_error_keeps_what_came() {
    let (_, output) =
        read(b"{\"type\":\"token\",\"text\":\"Hel\"}\n{\"type\":\"stream_error\",\"error\":\"no quota\",\"partial\":true}\n", 64);
    assert_eq!(output.reported(), Some("no quota"));
    assert_eq!(output.answer(), "Hel");

    let (_, output) = read(b"{\"type\":\"stream_error\",\"error\":{\"code\":7},\"partial\":\"Hel\"}\n", 64);
    assert_eq!(output.reported(), Some("{\"code\":7}"));
    assert_eq!(output.answer(), "Hel");
}

#[test]
fn invalid_utf8_is_replaced_and_counted() {
    let (pieces, output) = read(b"a\xffb\xe2\x82", 1);
    assert_eq!(tokens(&pieces), "a\u{FFFD}b\u{FFFD}");
    assert_eq!(output.invalid_sequences(), 2);

    let (_, output) = read(b"{\"type\":\"token\",\"text\":\"a\xff\"}\n", 5);
    assert_eq!((output.answer(), output.invalid_sequences()), ("a\u{FFFD}", 1));
}

#[test]
fn the_answer_is_bounded_in_both_forms() {
    let mut plain = CommandOutput::default();
    for _ in 0..=MAX_ANSWER_BYTES / 1024 {
        plain.push(&[b'x'; 1024]);
    }
    assert_eq!(plain.fault(), Some(OutputFault::AnswerTooLarge));
    assert_eq!(plain.answer().len(), MAX_ANSWER_BYTES);
    assert!(plain.push(b"more").is_empty());
    assert!(plain.finish().is_empty());

    let mut events = CommandOutput::default();
    let line = format!("{{\"type\":\"token\",\"text\":\"{}\"}}\n", "x".repeat(1000));
    for _ in 0..=MAX_ANSWER_BYTES / 1000 {
        events.push(line.as_bytes());
    }
    assert_eq!(events.fault(), Some(OutputFault::AnswerTooLarge));
    assert!(events.answer().len() <= MAX_ANSWER_BYTES);

    let mut blank = CommandOutput::default();
    blank.push(b"x");
    blank.push(&vec![b'\n'; MAX_ANSWER_BYTES]);
    assert_eq!(blank.fault(), Some(OutputFault::AnswerTooLarge));
}

#[test]
fn a_line_is_bounded_and_blank_lines_cost_nothing() {
    let mut output = CommandOutput::default();
    output.push(b"{\"type\":\"token\",\"text\":\"");
    for _ in 0..=MAX_LINE_BYTES / 1024 {
        output.push(&[b'x'; 1024]);
    }
    assert_eq!(output.fault(), Some(OutputFault::LineTooLong));

    let mut blank = CommandOutput::default();
    for _ in 0..4096 {
        blank.push(&[b'\n'; 1024]);
    }
    assert_eq!((blank.fault(), blank.unread.len()), (None, 0));
}

proptest! {
    #[test]
    fn read_boundaries_change_nothing(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        size in 1usize..20,
    ) {
        let (whole, at_once) = read(&bytes, bytes.len());
        let (split, piecewise) = read(&bytes, size);
        prop_assert_eq!(at_once.answer(), piecewise.answer());
        prop_assert_eq!(tokens(&whole), tokens(&split));
        prop_assert_eq!(at_once.invalid_sequences(), piecewise.invalid_sequences());
    }

    #[test]
    fn plain_text_is_the_answer_without_the_space_around_it(
        text in "[a-zé€ ][a-zé€ \n]{0,60}",
        size in 1usize..9,
    ) {
        let (pieces, output) = read(text.as_bytes(), size);
        prop_assert_eq!(output.answer(), tokens(&pieces));
        prop_assert_eq!(output.answer().trim(), text.trim());
    }
}
