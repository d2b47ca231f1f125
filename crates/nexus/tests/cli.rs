//! What the commands say about adapters and records, with a daemon and without one.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Daemon, Ran, config, eventually, only, only_with_restarts};
use rusqlite::Connection;
use serde_json::{Value, json};

const EXIT_FAILED: Option<i32> = Some(1);
const EXIT_NOT_RUNNING: Option<i32> = Some(3);
const EXIT_NOT_FOUND: Option<i32> = Some(4);

fn first_account(text: &str) -> Value {
    let answer: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"));
    answer["adapters"][0].clone()
}

#[test]
fn what_is_known_of_an_adapter_outlives_its_process() {
    let mut daemon = Daemon::start(&only("fake", json!({ "events": 3 })));
    daemon.adapter_once("fake/me", "running");
    eventually("its events are done", || daemon.ended("completed") == 3);
    daemon.nexus_ok(&["adapter", "stop", "fake/me"]);
    let stopped = daemon.adapter_once("fake/me", "stopped");
    assert_eq!(stopped["channel"], "fake", "{stopped}");
    assert!(stopped["last_event_age_ms"].is_u64(), "{stopped}");
    daemon.stop();

    let list = daemon.nexus_ok(&["adapter", "list"]);
    let words: Vec<&str> = list.split_whitespace().collect();
    assert_eq!(words, ["fake", "fake", "1", "account"], "{list}");
    let status = daemon.nexus_ok(&["adapter", "status", "fake/me"]);
    assert!(status.contains("events: 3") && status.contains(" ago") && !status.contains("never"), "{status}");
    let account = first_account(&daemon.nexus_ok(&["adapter", "status", "--json"]));
    assert_eq!((&account["channel"], &account["status"], &account["events"]), (&json!("fake"), &json!("stopped"), &json!(3)));
    assert!(account["last_event_age_ms"].is_u64(), "{account}");
    let info = daemon.nexus_ok(&["adapter", "info", "fake"]);
    assert!(info.contains("channel: fake") && info.contains("supports: monitor, send"), "{info}");
    assert_eq!(daemon.nexus(&["adapter", "info", "nobody"]).code, EXIT_NOT_FOUND);

    // The next daemon knows it too, though the program is broken now.
    daemon.configure(&only_with_restarts("fake", 0, json!({ "info": "garbage" })));
    daemon.launch();
    let errored = daemon.adapter_once("fake/me", "errored");
    assert_eq!((&errored["channel"], &errored["events"]), (&json!("fake"), &json!(3)), "{errored}");
    assert!(errored["last_event_age_ms"].is_u64(), "{errored}");
    daemon.kill9();
    let account = first_account(&daemon.nexus_ok(&["adapter", "list", "--json"]));
    assert_eq!((&account["channel"], &account["events"]), (&json!("fake"), &json!(3)), "{account}");
}

#[test]
fn an_adapter_that_never_ran_is_unknown_and_no_mistake() {
    let daemon = Daemon::new();
    daemon.configure(&only("fake", json!({})));
    let account = first_account(&daemon.nexus_ok(&["adapter", "status", "--json"]));
    assert_eq!((&account["channel"], &account["last_event_age_ms"]), (&Value::Null, &Value::Null));
    assert!(daemon.nexus_ok(&["adapter", "status"]).contains("last: never"));
    let info = daemon.nexus(&["adapter", "info", "fake"]);
    assert_eq!(info.code, EXIT_NOT_RUNNING, "{info:?}");
}

#[test]
fn without_adapters_one_line_says_so_and_what_to_do() {
    let mut daemon = Daemon::new();
    daemon.configure(&config(json!({})));
    let check = |daemon: &Daemon| {
        for verb in ["list", "status"] {
            let text = daemon.nexus_ok(&["adapter", verb]);
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.contains("nexus adapter register"), "{text}");
            let json: Value = serde_json::from_str(&daemon.nexus_ok(&["adapter", verb, "--json"])).unwrap();
            assert_eq!(json["adapters"], json!([]), "{json}");
        }
    };
    check(&daemon);
    daemon.launch();
    check(&daemon);
}

#[test]
fn a_start_by_hand_forgets_the_last_error_and_tells_a_new_one() {
    let daemon = Daemon::start(&only_with_restarts("fake", 0, json!({ "crash_after": 0, "exit_code": 3 })));
    let failed = |ran: &Ran| ran.stdout.contains("exit code 3");
    daemon.adapter_once("fake/me", "errored");
    assert!(daemon.adapter("fake/me")["last_error"].as_str().is_some_and(|error| error.contains("exit code 3")));
    let credential = |reference: &str| {
        let mut wanted = only_with_restarts("fake", 0, json!({}));
        wanted["adapters"]["fake"]["accounts"]["me"]["credential_ref"] = json!(reference);
        daemon.configure(&wanted);
        daemon.nexus_ok(&["daemon", "reload"]);
    };
    credential("chat/me");
    daemon.adapter_once("fake/me", "errored");
    let again = daemon.nexus(&["adapter", "restart", "fake/me"]);
    assert_eq!(again.code, EXIT_FAILED, "a start that fails is a failure: {again:?}");
    assert!(again.stdout.contains("nexus credential set chat/me") && !failed(&again), "{again:?}");

    let credentials = daemon.config_file().with_file_name("state").join("credentials");
    nexus::credential::set(&credentials, "chat/me", "s3cret").unwrap();
    let started = daemon.nexus_ok(&["adapter", "restart", "fake/me"]);
    assert!(started.starts_with("fake/me: ") && !started.contains("error"), "{started}");
    assert_eq!(daemon.adapter_once("fake/me", "running")["last_error"], Value::Null);
}

/// Makes the stopped daemon's ledger look as if a newer version had been there.
fn make_newer(daemon: &Daemon, ledger: &str) {
    let path = daemon.config_file().with_file_name("data").join(format!("{ledger}.db"));
    let connection = Connection::open(path).unwrap();
    connection.execute("INSERT INTO schema_version VALUES (99, 'unknown', 0)", []).unwrap();
    connection.close().unwrap();
}

#[test]
fn without_a_daemon_a_newer_ledger_is_refused_with_both_versions() {
    for ledger in ["events", "nexus"] {
        let mut daemon = Daemon::start(&only("fake", json!({ "events": 1 })));
        eventually("its event is done", || daemon.ended("completed") == 1);
        daemon.stop();
        assert!(daemon.nexus_ok(&["trace", "list"]).contains("completed"));
        make_newer(&daemon, ledger);
        for command in [&["trace", "list"][..], &["events"], &["deliveries", "list"], &["trace", "show", "1"], &["adapter", "status"]] {
            let ran = daemon.nexus(command);
            assert_eq!(ran.code, EXIT_FAILED, "{command:?}: {ran:?}");
            for part in [format!("{ledger}.db"), "schema 99".to_owned(), "knows 1".to_owned()] {
                assert!(ran.stderr.contains(&part), "{command:?}: no `{part}` in {}", ran.stderr);
            }
            assert_eq!(ran.stdout, "", "{command:?}");
        }
    }
}

#[test]
fn who_follows_the_events_sees_each_once_and_in_order() {
    let daemon = Daemon::start(&config(json!({})));
    let shown = daemon.file("shown");
    let mut command = daemon.command(&[]);
    command.args(["events", "tail", "-f"]).stdout(std::fs::File::create(&shown).unwrap());
    let mut follower = command.spawn().unwrap();
    daemon.nexus_ok(&["send", "one"]);
    daemon.nexus_ok(&["send", "two"]);
    let ids = || daemon.texts("events", "SELECT event_id FROM events ORDER BY seq");
    eventually("questions and answers are recorded", || ids().len() == 4);
    eventually("all are shown, in their order", || {
        let rows = common::lines(&shown);
        rows.iter().map(|row| row.rsplit("  ").next().unwrap_or("")).eq(ids())
    });
    follower.kill().unwrap();
    follower.wait().unwrap();
    let rows = common::lines(&shown);
    assert_eq!(rows.iter().filter(|row| row.contains('→')).count(), 2, "{rows:?}");
    assert!(rows.iter().all(|row| !row.contains("(history)")), "{rows:?}");
}

#[test]
fn a_trace_has_the_text_of_the_answer() {
    let daemon = Daemon::start(&config(json!({})));
    daemon.nexus_ok(&["send", "hello"]);
    let trace: Value = serde_json::from_str(&daemon.nexus_ok(&["trace", "show", "1", "--json"])).unwrap();
    assert_eq!(trace["request"]["trace"]["response"]["content"], "hello", "{trace}");
    assert_eq!(trace["request"]["stage"], "finalize");
    let text = daemon.nexus_ok(&["trace", "show", "1"]);
    assert!(text.contains("Response (end_turn") && !text.contains("(no text)"), "{text}");
}

#[test]
fn to_disable_and_enable_an_adapter_leaves_all_as_it_was() {
    let mut wanted = only("fake", json!({}));
    wanted["adapters"]["fake"]["accounts"]["off"] = json!({ "enabled": false });
    wanted["adapters"]["bare"] = wanted["adapters"]["fake"].clone();
    wanted["adapters"]["bare"]["accounts"] = json!({});
    let daemon = Daemon::start(&wanted);
    daemon.adapter_once("fake/me", "running");
    let overlay = || std::fs::read_to_string(daemon.config_file().with_file_name("state").join("overlay.yaml")).unwrap();
    let enabled = || {
        let answer: Value = serde_json::from_str(&daemon.nexus_ok(&["adapter", "status", "--json"])).unwrap();
        let accounts = answer["adapters"].as_array().unwrap();
        accounts.iter().map(|account| (account["account"].clone(), account["enabled"].clone())).collect::<Vec<_>>()
    };
    let as_configured = vec![(json!("me"), json!(true)), (json!("off"), json!(false))];
    assert_eq!(enabled(), as_configured);
    let list = daemon.nexus_ok(&["adapter", "list"]);
    assert!(list.contains("1/2 accounts running, 1 disabled") && list.contains("no accounts"), "{list}");

    daemon.nexus_ok(&["adapter", "disable", "fake"]);
    assert_eq!(enabled(), [(json!("me"), json!(false)), (json!("off"), json!(false))]);
    let account = first_account(&daemon.nexus_ok(&["adapter", "status", "fake/me", "--json"]));
    assert_eq!((&account["status"], &account["channel"]), (&json!("stopped"), &json!("fake")), "{account}");
    let text = daemon.nexus_ok(&["adapter", "enable", "fake"]);
    assert!(text.contains("fake/off stays disabled") && !text.contains("fake/me stays"), "{text}");
    assert_eq!(enabled(), as_configured);
    assert!(!overlay().contains("fake"), "{}", overlay());

    daemon.nexus_ok(&["adapter", "enable", "fake/off"]);
    assert!(overlay().contains("\"enabled\": true"), "{}", overlay());
    assert_eq!(enabled(), [(json!("me"), json!(true)), (json!("off"), json!(true))]);
    daemon.nexus_ok(&["adapter", "enable", "fake"]);
    assert_eq!(enabled(), as_configured);
}

#[test]
fn only_a_healthy_account_is_a_success_and_any_other_says_why() {
    let mut wanted = only_with_restarts("fake", 0, json!({}));
    wanted["adapters"]["lost"] = json!({ "command": "/nowhere/adapter", "restart": { "max_restarts": 0 }, "accounts": { "me": {} } });
    let daemon = Daemon::start(&wanted);
    daemon.adapter_once("fake/me", "running");
    daemon.adapter_once("lost/me", "errored");
    assert!(daemon.nexus_ok(&["adapter", "health", "fake/me"]).contains("healthy"));
    daemon.nexus_ok(&["adapter", "stop", "fake/me"]);
    for (account, cause) in [("fake/me", "nexus adapter start fake/me"), ("lost/me", "No such file")] {
        let ran = daemon.nexus(&["adapter", "health", account]);
        assert_eq!(ran.code, EXIT_FAILED, "{ran:?}");
        assert!(ran.stdout.contains(cause) && !ran.stdout.contains("healthy"), "{ran:?}");
    }
}

#[test]
fn who_names_no_configuration_means_that_of_the_running_daemon() {
    let daemon = Daemon::start(&config(json!({})));
    let plugins = daemon.workspace().join("plugins");
    std::fs::create_dir_all(&plugins).unwrap();
    std::fs::write(plugins.join("quiet.js"), "export const plugin = { name: 'quiet', onFinalize() {} };").unwrap();
    let told = daemon.file("told");
    std::fs::write(&told, "s3cret").unwrap();
    for args in [&["credential", "set", "chat/me"][..], &["plugin", "enable", "quiet"]] {
        let mut command = daemon.command(&[]);
        command.env_remove("NEXUS_CONFIG").args(args).stdin(std::fs::File::open(&told).unwrap());
        let done = command.output().unwrap();
        assert!(done.status.success(), "{args:?}: {done:?}");
    }
    assert_eq!(daemon.nexus_ok(&["credential", "list"]).trim(), "chat/me");
    let info: Value = serde_json::from_str(&daemon.nexus_ok(&["plugin", "info", "quiet", "--json"])).unwrap();
    assert_ne!(info["status"], "disabled", "{info}");
    assert!(!daemon.home().join("nexus").exists(), "files of another configuration were made");
}

#[test]
fn what_is_not_there_is_told_alike_with_a_daemon_and_without_one() {
    let mut daemon = Daemon::start(&only("fake", json!({})));
    let asked = [
        &["trace", "show", "nope"][..],
        &["events", "show", "nope"],
        &["sessions", "show", "nope"],
        &["access", "who", "nope"],
        &["adapter", "info", "nope"],
        &["plugin", "info", "nope"],
        &["automation", "info", "nope"],
        &["project", "secret", "list", "nope"],
    ];
    let told = |daemon: &Daemon| {
        asked.map(|args| {
            let ran = daemon.nexus(args);
            assert_eq!(ran.code, EXIT_NOT_FOUND, "{args:?}: {ran:?}");
            assert!(ran.stderr.contains("`nope`") && ran.stderr.contains("; "), "it says what to do: {ran:?}");
            ran.stderr
        })
    };
    let with = told(&daemon);
    daemon.stop();
    assert_eq!(told(&daemon), with);
}

#[test]
fn where_nothing_is_yet_that_is_said() {
    let daemon = Daemon::new();
    daemon.configure(&config(json!({})));
    let secrets = daemon.nexus(&["project", "secret", "list", "demo"]);
    assert_eq!(secrets.code, EXIT_NOT_FOUND, "{secrets:?}");
    let projects = daemon.nexus(&["project", "list"]);
    assert_eq!((projects.code, projects.stdout.as_str()), (Some(0), ""), "{projects:?}");
    assert!(projects.stderr.contains("nexus project init"), "{projects:?}");
    assert_eq!(daemon.nexus_ok(&["project", "list", "--json"]), "[]\n");
    let automations = daemon.nexus(&["automation", "list"]);
    assert_eq!((automations.code, automations.stdout.as_str()), (Some(0), ""));
    assert!(automations.stderr.contains("nexus automation register"), "{automations:?}");
    assert_eq!(daemon.nexus(&["automation", "list", "--json"]).stderr, "");
}

#[test]
fn the_types_of_plugins_and_automations_come_with_the_program() {
    let types = Daemon::new().nexus_ok(&["plugin", "types"]);
    for name in ["Plugin", "Automation", "NexusRequest"] {
        assert!(types.contains(&format!("export interface {name} {{")), "no {name} in {types}");
    }
}

#[test]
fn with_json_a_failure_is_one_object_on_stdout() {
    let daemon = Daemon::new();
    daemon.configure(&only("fake", json!({})));
    let usage = Some(2);
    for (command, code) in [
        (&["adapter", "status", "no/body", "--json"][..], EXIT_NOT_FOUND),
        (&["--json", "adapter", "stop", "fake/me"][..], EXIT_NOT_RUNNING),
        (&["adapter", "fly", "--json"][..], usage),
    ] {
        let ran = daemon.nexus(command);
        assert_eq!((ran.code, ran.stderr.as_str()), (code, ""), "{ran:?}");
        let told: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert!(told["error"].as_str().is_some_and(|error| !error.is_empty() && !error.starts_with("error:")), "{told}");
        assert_eq!(told["advice"].is_string(), code == EXIT_NOT_RUNNING, "{told}");
    }
}
