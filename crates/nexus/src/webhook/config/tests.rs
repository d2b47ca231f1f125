//! Account files, good and bad.

#![allow(clippy::unwrap_used)]
use super::*;
use serde_json::json;

fn parse(config: Value) -> Result<Settings, ConfigError> {
    let file = json!({
        "version": 1, "channel": "webhook", "account_id": "github", "config": config,
        "credential": { "kind": "file", "value": "s3cret\n" },
    });
    Settings::parse(file.to_string().as_bytes())
}

fn problems(config: Value) -> String {
    parse(config).unwrap_err().to_string()
}

#[test]
fn defaults_apply() {
    let settings = parse(json!({ "verify": "github" })).unwrap();
    assert_eq!(settings.bind.to_string(), "127.0.0.1:7480");
    assert_eq!(settings.path, "/github");
    assert_eq!(settings.verifier.name(), "github");
    assert_eq!(settings.id_header, "x-request-id");
    assert_eq!(settings.max_body_bytes, 786_432);
    assert_eq!(settings.max_line_bytes, 1_048_576);
    assert_eq!(settings.ack_timeout, Duration::from_secs(10));
    assert!(settings.warnings.is_empty());
}

#[test]
fn all_problems_are_told_at_once() {
    let text = problems(json!({
        "verify": "gitlab", "bind": "localhost:80", "path": "hook", "id_header": "a b",
        "max_body_bytes": 0, "ack_timeout_ms": "soon", "allow_external": 1, "secret": "x",
    }));
    let keys = ["`verify`", "`bind`", "`path`", "`id_header`", "`max_body_bytes`", "`ack_timeout_ms`", "`allow_external`", "`secret`"];
    for key in keys {
        assert!(text.contains(key), "{key} is not named in: {text}");
    }
}

#[test]
fn verify_has_no_default() {
    assert!(problems(json!({})).contains("`verify` must be one of"));
}

#[test]
fn an_open_address_must_be_meant_and_verified() {
    let open = json!({ "verify": "github", "bind": "0.0.0.0:7480" });
    assert!(problems(open).contains("allow_external"));
    let meant = json!({ "verify": "github", "bind": "0.0.0.0:7480", "allow_external": true });
    assert!(parse(meant).is_ok());
    let naked = json!({ "verify": "none", "bind": "[::]:7480", "allow_external": true });
    assert!(problems(naked).contains("loopback"));
    assert!(parse(json!({ "verify": "none", "bind": "[::1]:7480" })).is_ok());
    assert!(problems(json!({ "verify": "none", "bind": "127.0.0.1:0" })).contains("fixed port"));
}

#[test]
fn the_health_path_is_reserved() {
    let taken = json!({ "verify": "github", "path": "/healthz" });
    assert!(problems(taken).contains("health"));
}

#[test]
fn a_missing_or_odd_secret_is_a_problem() {
    let without = br#"{"version":1,"account_id":"a","config":{"verify":"stripe"}}"#;
    let text = Settings::parse(without).unwrap_err().to_string();
    assert!(text.contains("nexus credential set"), "{text}");
    for credential in [json!({ "value": 7 }), json!("hunter2"), json!({ "value": "\n" })] {
        let file = json!({
            "account_id": "a", "config": { "verify": "token" }, "credential": credential,
        });
        let error = Settings::parse(file.to_string().as_bytes()).unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"));
    }
    let both = json!({ "verify": "github", "secret_file": "/dev/null" });
    assert!(problems(both).contains("both"));
}

#[test]
fn a_secret_file_is_read_without_its_newline() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    std::fs::write(&path, "s3cret\r\n").unwrap();
    let file = json!({
        "version": 1, "account_id": "a",
        "config": { "verify": "token", "token_header": "X-Token", "secret_file": path },
    });
    let settings = Settings::parse(file.to_string().as_bytes()).unwrap();
    let mut headers = hyper::HeaderMap::new();
    headers.insert("x-token", "s3cret".parse().unwrap());
    assert!(settings.verifier.claim(&headers, 0).is_ok());
}

#[test]
fn unknown_keys_warn_and_foreign_files_fail() {
    let settings = parse(json!({ "verify": "github", "pathh": "/x" })).unwrap();
    assert!(settings.warnings[0].contains("`pathh`"));
    let newer = br#"{"version":2,"account_id":"a","config":{"verify":"none"}}"#;
    assert!(Settings::parse(newer).unwrap_err().to_string().contains("version"));
    assert!(matches!(Settings::parse(b"no json"), Err(ConfigError::NotJson(_))));
}
