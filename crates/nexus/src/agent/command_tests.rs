//! Tests of the pure parts of the command runner: its input, environment and stderr. Runs with
//! real processes need a keeper and are tested with it.
#![allow(clippy::unwrap_used)]

use super::*;
use serde_json::{Value, json};

fn turn() -> Turn {
    Turn {
        agent: "py".into(),
        content: "line one\nline two".into(),
        attachments: json!([]),
        sender: super::super::Sender { id: "u1".into(), name: Some("Ann".into()), principal: "owner".into() },
        channel: "webchat".into(),
        capabilities: json!({"text_limit": 4000}),
        history: vec![super::super::Message { role: super::super::Role::User, content: "hi".into(), name: None }],
        permissions: json!({"tools": {"allow": ["*"]}}),
        ..crate::samples::turn()
    }
}

#[test]
fn the_input_is_one_line_of_the_contracts_shape() {
    let line = input_line(&turn()).unwrap();
    assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    assert_eq!(line.last(), Some(&b'\n'));
    let expected = json!({
        "run_id": "run_1",
        "session_label": "dm:me",
        "agent": "py",
        "message": {
            "content": "line one\nline two",
            "attachments": [],
            "sender": {"id": "u1", "name": "Ann", "principal": "owner"},
            "channel": "webchat",
            "capabilities": {"text_limit": 4000},
        },
        "history": [{"role": "user", "content": "hi"}],
        "permissions": {"tools": {"allow": ["*"]}},
    });
    assert_eq!(serde_json::from_slice::<Value>(&line).unwrap(), expected);
}

#[test]
fn the_environment_is_closed_by_default() {
    let own = |name: &str| match name {
        "PATH" => Some("/bin".to_owned()),
        "API_KEY" => Some("k".to_owned()),
        "SECRET" => Some("s".to_owned()),
        "LANG" => Some("C".to_owned()),
        _ => None,
    };
    let configured = BTreeMap::from([("LANG".to_owned(), "de_DE".to_owned())]);
    let pass = ["API_KEY".to_owned(), "ABSENT".to_owned()];
    let env = environment(own, &pass, &configured);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(env, [pair("API_KEY", "k"), pair("LANG", "de_DE"), pair("PATH", "/bin")]);
}

#[test]
fn stderr_lines_are_joined_over_reads_and_cleaned() {
    let mut log = StderrLog::default();
    assert!(log.push(b"one").is_empty());
    assert_eq!(log.push(b" line\r\n\n\x1b[31mred\nrest"), ["one line", "\u{FFFD}[31mred"]);
    assert_eq!(log.finish(), ["rest"]);
}

#[test]
fn a_flood_on_stderr_is_bounded_and_counted() {
    let mut log = StderrLog::default();
    let mut lines = Vec::new();
    for number in 0..STDERR_LINES_MAX + 50 {
        lines.extend(log.push(format!("line {number}\n").as_bytes()));
    }
    assert_eq!(lines.len(), STDERR_LINES_MAX as usize);
    assert_eq!(log.finish(), ["50 more lines of stderr were not logged"]);
    assert!(log.tail(None).ends_with("line 149"));
    assert!(log.tail.len() <= STDERR_TAIL_BYTES);
}

#[test]
fn an_endless_stderr_line_is_cut() {
    let mut log = StderrLog::default();
    for _ in 0..100 {
        assert!(log.push(&[b'x'; 4096]).is_empty());
    }
    let lines = log.finish();
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0].len(), STDERR_LINE_BYTES_MAX + " [cut]".len());
    assert_eq!(log.tail.len(), STDERR_TAIL_BYTES);
}

#[test]
fn what_was_reported_comes_before_stderr() {
    let mut log = StderrLog::default();
    assert_eq!(log.tail(Some("no quota")), "no quota");
    log.push(b"trace\n");
    assert_eq!(log.tail(Some("no quota")), "no quota\ntrace");
    assert_eq!(log.tail(None), "trace");
}

#[test]
fn each_fault_names_its_bound() {
    let error = Fault::Output(OutputFault::LineTooLong).explain("a".into(), "half".into());
    assert_eq!(error.to_string(), "agent `a` sent a line of more than 1048576 bytes");
    assert_eq!(error.partial(), "half");
    assert!(!error.retryable());
}
