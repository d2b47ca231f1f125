//! `nexus doctor` on a sound home, with a daemon and without one; and on one thing at a time that is
//! broken: it finds that and nothing else, says what to do, and mends what it may.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Daemon, eventually, only, only_with_restarts, procfs, program};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

const EVENTS: i64 = 5;
const PAGE_BYTES: usize = 8192;

/// Exit code and document of a look.
fn look(daemon: &Daemon, more: &[&str]) -> (Option<i32>, Value) {
    let ran = daemon.nexus(&[&["doctor", "--json"][..], more].concat());
    let document = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    (ran.code, document)
}

/// Check and severity of all that isn't well.
fn trouble(document: &Value) -> Vec<(String, String)> {
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let bad = document["findings"].as_array().unwrap().iter().filter(|finding| finding["severity"] != "ok");
    bad.inspect(|finding| assert!(finding["fix"].is_string(), "{finding}"))
        .map(|finding| (text(finding, "check"), text(finding, "severity")))
        .collect()
}

/// What is said of a thing with that name.
fn of(document: &Value, check: &str, place: &str) -> Value {
    let mut all = document["findings"].as_array().unwrap().iter();
    let found = all.find(|finding| finding["check"] == check && finding["where"] == place);
    found.unwrap_or_else(|| panic!("nothing is said of {check} {place}: {document:#}")).clone()
}

fn pair(check: &str, severity: &str) -> (String, String) {
    (check.to_owned(), severity.to_owned())
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn ledger(daemon: &Daemon, name: &str) -> PathBuf {
    daemon.workspace().join(format!("data/{name}.db"))
}

fn write(daemon: &Daemon, name: &str, sql: &str) {
    Connection::open(ledger(daemon, name)).unwrap().execute_batch(sql).unwrap();
}

fn configuration() -> Value {
    only("fake", json!({ "events": EVENTS, "content_bytes": 20_000 }))
}

fn started() -> Daemon {
    let mut daemon = Daemon::new();
    daemon.configure(&configuration());
    // Whatever the umask of who runs the tests is.
    mode(&daemon.config_file(), 0o644);
    daemon.launch();
    eventually("it is healthy", || daemon.status()["health"] == "healthy");
    eventually("all is said and followed", || {
        let turns = daemon.count("agents", "SELECT count(*) FROM turns");
        daemon.ended("completed") == EVENTS && daemon.deliveries("sent") == EVENTS && turns == EVENTS
    });
    daemon
}

/// A home where a daemon ran well and was stopped.
fn stopped() -> Daemon {
    let mut daemon = started();
    daemon.stop();
    daemon.nothing_runs();
    daemon
}

/// One error, of this check; its text and its fix.
fn only_error(daemon: &Daemon, check: &str) -> (String, String) {
    let (code, document) = look(daemon, &[]);
    assert_eq!((code, document["status"].as_str()), (Some(1), Some("errors")), "{document:#}");
    assert_eq!(trouble(&document), [pair(check, "error")], "{document:#}");
    let all = document["findings"].as_array().unwrap();
    let bad = all.iter().find(|finding| finding["severity"] == "error").unwrap();
    (bad["what"].as_str().unwrap().to_owned(), bad["fix"].as_str().unwrap().to_owned())
}

fn assert_well(daemon: &Daemon) {
    let (code, document) = look(daemon, &[]);
    assert_eq!((code, document["status"].as_str(), trouble(&document)), (Some(0), Some("ok"), vec![]), "{document:#}");
    let all = document["findings"].as_array().unwrap();
    let checks =
        ["lock", "permissions", "config", "schema", "integrity", "promise", "records", "deliveries", "leftovers", "disk", "clock", "port"];
    for check in checks.into_iter().chain(["adapters", "plugins", "automations", "agents", "mcp"]) {
        assert!(all.iter().any(|finding| finding["check"] == check), "nothing is said of {check}: {document:#}");
    }
}

#[test]
fn a_sound_home_is_well_with_a_daemon_without_one_and_before_the_first() {
    let mut daemon = started();
    assert_well(&daemon);
    daemon.stop();
    daemon.nothing_runs();
    assert_well(&daemon);
    let text = daemon.nexus_ok(&["doctor"]);
    assert!(text.trim_end().ends_with("all is well") && text.contains("exactly one request"), "{text}");
    let (code, document) = look(&daemon, &["--repair"]);
    assert_eq!((code, &document["status"]), (Some(0), &json!("ok")), "{document:#}");
    daemon.launch();
    eventually("it is healthy", || daemon.status()["health"] == "healthy");
    assert_well(&daemon);

    let fresh = Daemon::new();
    fresh.configure(&configuration());
    mode(&fresh.config_file(), 0o644);
    let (code, document) = look(&fresh, &["--repair"]);
    assert_eq!((code, document["repaired"].as_array().map(Vec::len)), (Some(0), Some(0)), "{document:#}");
    assert!(!fresh.state("nex.pid").exists() && !ledger(&fresh, "nexus").exists(), "looking made something");
}

#[test]
fn a_ledger_that_others_can_read_is_mended_also_under_a_daemon() {
    let daemon = started();
    mode(&ledger(&daemon, "events"), 0o644);
    let (code, document) = look(&daemon, &[]);
    assert_eq!((code, trouble(&document)), (Some(0), vec![pair("permissions", "warning")]), "{document:#}");
    let (code, document) = look(&daemon, &["--repair"]);
    assert_eq!((code, &document["status"]), (Some(0), &json!("ok")), "{document:#}");
    let repaired = document["repaired"][0].as_str().unwrap();
    assert!(repaired.contains("mode 644 set to 600") && repaired.ends_with("events.db"), "{repaired}");
    assert_well(&daemon);
}

#[test]
fn a_lost_request_and_one_without_an_event_break_promise_1_and_are_not_mended() {
    let daemon = stopped();
    let event = daemon.texts("nexus", "SELECT event_id FROM nexus_requests ORDER BY event_seq LIMIT 1").remove(0);
    let first = "(SELECT min(event_seq) FROM nexus_requests)";
    // With its run and its delivery, or those would be found without it.
    let forget = format!(
        "DELETE FROM deliveries WHERE event_seq = {first}; DELETE FROM runs WHERE event_seq = {first}; DELETE FROM nexus_requests WHERE event_seq = {first}"
    );
    let before = fs::read(ledger(&daemon, "nexus")).unwrap();
    write(&daemon, "nexus", &forget);
    let (code, document) = look(&daemon, &["--repair"]);
    assert_eq!(code, Some(1));
    let text = document["findings"].to_string();
    assert!(text.contains(&format!("1 accepted event without a request: promise 1 is broken ({event})")), "{document:#}");
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM nexus_requests"), EVENTS - 1, "a repair touched rows");

    fs::write(ledger(&daemon, "nexus"), before).unwrap();
    assert_well(&daemon);
    write(&daemon, "nexus", "UPDATE counters SET value = value + 1 WHERE name = 'intake_seq'");
    write(
        &daemon,
        "nexus",
        "INSERT INTO nexus_requests SELECT (SELECT value FROM counters WHERE name = 'intake_seq'), 'req_stray', 'fake:stray', channel,
        account_id, adapter, conversation, 'denied', stage, session, agent, run_id, attempts, late, created_at, completed_at, reason, trace, stopped, epoch
        FROM nexus_requests LIMIT 1",
    );
    let (_, document) = look(&daemon, &[]);
    let text = document["findings"].to_string();
    assert!(text.contains("for no event that is to run (fake:stray)"), "{document:#}");
}

#[test]
fn a_file_where_the_ledgers_belong_is_an_error_and_is_left_alone() {
    let daemon = Daemon::new();
    daemon.configure(&configuration());
    mode(&daemon.config_file(), 0o644);
    let data = daemon.workspace().join("data");
    fs::write(&data, "mine").unwrap();
    let (code, document) = look(&daemon, &["--repair"]);
    assert_eq!((code, document["status"].as_str()), (Some(1), Some("errors")), "{document:#}");
    let told = |finding: &Value| finding["severity"] == "error" && finding["where"] == json!(data);
    assert!(document["findings"].as_array().unwrap().iter().any(told), "{document:#}");
    assert_eq!(fs::read_to_string(&data).unwrap(), "mine");
}

#[test]
fn a_damaged_page_is_found_and_left_alone() {
    let daemon = stopped();
    let path = ledger(&daemon, "events");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / PAGE_BYTES / 2 * PAGE_BYTES;
    bytes[middle..middle + PAGE_BYTES].fill(0x5a);
    fs::write(&path, &bytes).unwrap();
    let (code, document) = look(&daemon, &["--repair"]);
    assert_eq!(code, Some(1));
    let damaged = |finding: &&Value| finding["severity"] == "error" && finding["where"] == json!(path);
    let found: Vec<&Value> = document["findings"].as_array().unwrap().iter().filter(damaged).collect();
    assert!(found.iter().any(|finding| finding["check"] == "integrity"), "{document:#}");
    assert!(found.iter().any(|finding| finding["fix"].as_str().unwrap().contains("nexus restore")), "{document:#}");
    assert!(fs::read(&path).unwrap() == bytes, "the damaged file was written");
}

#[test]
fn a_newer_file_a_mark_ahead_and_a_missing_program_are_each_the_only_error() {
    let daemon = stopped();
    write(&daemon, "agents", "UPDATE applied SET seq = seq + 7");
    let (what, fix) = only_error(&daemon, "records");
    assert!(what.contains("would be passed over") && fix.contains("nexus restore"), "{what}; {fix}");
    write(&daemon, "agents", "UPDATE applied SET seq = seq - 7");
    assert_well(&daemon);

    write(&daemon, "identity", "INSERT INTO schema_version VALUES (99, 'x', 1)");
    let (what, fix) = only_error(&daemon, "schema");
    assert!(what.contains("schema 99") && fix.contains("newer nexus"), "{what}; {fix}");
    write(&daemon, "identity", "DELETE FROM schema_version WHERE version = 99");

    let mut wanted = configuration();
    wanted["adapters"]["fake"]["command"] = json!("/nowhere/adapter");
    daemon.configure(&wanted);
    mode(&daemon.config_file(), 0o644);
    let (what, fix) = only_error(&daemon, "adapters");
    assert!(what.contains("/nowhere/adapter") && fix.contains("adapters.fake.command"), "{what}; {fix}");
}

#[test]
fn a_busy_port_names_who_has_it() {
    let daemon = stopped();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut wanted = configuration();
    wanted["daemon"]["port"] = json!(held.local_addr().unwrap().port());
    daemon.configure(&wanted);
    mode(&daemon.config_file(), 0o644);
    let (what, _) = only_error(&daemon, "port");
    assert!(what.contains(&format!("PID {}", std::process::id())), "{what}");
}

#[test]
fn what_a_dead_daemon_left_is_a_warning_and_is_mended() {
    let daemon = stopped();
    let instance = fs::read_to_string(daemon.state("instance")).unwrap();
    let mark = format!("{}:adapter/fake/me", instance.lines().next().unwrap());
    let mut left = program("sleep").arg("1000").env("NEXUS_CHILD_ID", &mark).spawn().unwrap();
    eventually("it carries its mark", || !procfs::with_environment(&[format!("NEXUS_CHILD_ID={mark}").as_str()]).is_empty());
    for name in ["nex.pid", "run/gone:me.json"] {
        fs::write(daemon.state(name), "999999").unwrap();
        mode(&daemon.state(name), 0o600);
    }
    let (code, document) = look(&daemon, &[]);
    let expected = [pair("lock", "warning"), pair("leftovers", "warning"), pair("leftovers", "warning")];
    assert_eq!((code, trouble(&document)), (Some(0), expected.to_vec()), "{document:#}");
    assert!(left.try_wait().unwrap().is_none() && daemon.state("nex.pid").exists(), "a look changed something");
    let (code, document) = look(&daemon, &["--repair"]);
    assert_eq!((code, &document["status"]), (Some(0), &json!("ok")), "{document:#}");
    assert_eq!(document["repaired"].as_array().map(Vec::len), Some(3), "{document:#}");
    assert_eq!(left.wait().unwrap().signal(), Some(9));
    assert!(!daemon.state("nex.pid").exists() && !daemon.state("run/gone:me.json").exists());
    assert_well(&daemon);
}

#[test]
fn what_a_killed_restore_left_is_told_and_its_copies_are_removed() {
    let daemon = stopped();
    let data = daemon.workspace().join("data");
    let (stage, marker) = (data.join("restore-staged"), data.join("restore-in-progress"));
    fs::create_dir(&stage).unwrap();
    mode(&stage, 0o700);
    fs::write(stage.join("events.db"), "half").unwrap();
    fs::write(&marker, "{}").unwrap();
    mode(&marker, 0o600);
    let (what, fix) = only_error(&daemon, "leftovers");
    assert!(what.contains("no daemon starts") && fix.contains("nexus restore DIRECTORY"), "{what}; {fix}");
    let (code, _) = look(&daemon, &["--repair"]);
    assert!(code == Some(1) && stage.exists() && marker.exists(), "what another restore needs was touched");
    fs::remove_file(marker).unwrap();
    let (code, document) = look(&daemon, &[]);
    assert_eq!((code, trouble(&document)), (Some(0), vec![pair("leftovers", "warning")]), "{document:#}");
    let (code, document) = look(&daemon, &["--repair"]);
    assert_eq!((code, &document["status"]), (Some(0), &json!("ok")), "{document:#}");
    assert!(!stage.exists());
    assert_well(&daemon);
}

#[test]
fn a_command_that_works_on_the_ledgers_is_waited_for_and_no_error() {
    let daemon = stopped();
    let lock = daemon.workspace().join("data/lock");
    let held = fs::File::options().read(true).write(true).open(&lock).unwrap();
    held.lock().unwrap();
    fs::write(&lock, "`nexus backup` (PID 7)").unwrap();
    let (code, document) = look(&daemon, &[]);
    assert_eq!((code, trouble(&document)), (Some(0), vec![pair("lock", "warning")]), "{document:#}");
    assert!(document["findings"].to_string().contains("`nexus backup` (PID 7) works on the ledgers"), "{document:#}");
    drop(held);
    assert_well(&daemon);
}

#[test]
fn what_does_not_load_and_what_is_not_there_is_an_error_with_a_daemon_and_without_one() {
    let mut daemon = Daemon::new();
    for (directory, file, text) in [
        ("plugins", "bad.js", "export const plugin = {\n  name: 'bad',\n  onFinalize() { return (; },\n};\n"),
        ("plugins", "good.js", "export const plugin = { name: 'good', onFinalize() {} };"),
        ("state/automations", "broken.js", "export const automation = { name: 'broken' };"),
        ("state/automations", "fine.js", "export const automation = { name: 'fine', handler() {} };"),
    ] {
        fs::create_dir_all(daemon.workspace().join(directory)).unwrap();
        fs::write(daemon.workspace().join(directory).join(file), text).unwrap();
    }
    let mut wanted = configuration();
    wanted["plugins"]["enabled"] = json!(["logging", "good", "bad"]);
    let model = json!({ "runner": "llm", "model": "m", "url": "http://127.0.0.1:1/v1", "key_file": "nowhere",
        "mcp": { "tools": { "command": "./no-such-server" } } });
    wanted["agents"] = json!({ "default": "echo", "gone": { "runner": "acp", "command": "no-such-acp" }, "model": model });
    daemon.configure(&wanted);
    mode(&daemon.config_file(), 0o644);
    let judged = |daemon: &Daemon, by_name: &str| {
        let (code, document) = look(daemon, &[]);
        assert_eq!(code, Some(1), "{document:#}");
        for (check, place, severity, told) in [
            ("plugins", "bad", "error", "bad.js:3:"),
            ("automations", "broken", "error", "`automation.handler` must be a function"),
            ("agents", "gone", by_name, "no program `no-such-acp`"),
            ("agents", "model", "error", "nowhere` can't be read"),
            ("mcp", "model/tools", "error", "no program `./no-such-server`"),
        ] {
            let found = of(&document, check, place);
            assert!(found["severity"] == severity && found["fix"].is_string(), "{found:#}");
            assert!(found["what"].as_str().unwrap().contains(told), "{found:#}");
        }
        for (check, place) in [("plugins", "good"), ("automations", "fine")] {
            assert_eq!(of(&document, check, place)["severity"], "ok", "{document:#}");
        }
    };
    // The next daemon may be started with another PATH.
    judged(&daemon, "warning");
    daemon.launch();
    judged(&daemon, "error");
    assert!(!daemon.nexus(&["doctor"]).stdout.contains("all is well"));
}

#[test]
fn without_a_daemon_the_program_of_a_plugin_is_looked_for_where_it_would_run() {
    let daemon = Daemon::new();
    let plugins = daemon.workspace().join("plugins");
    for (name, command) in [("here", "./run"), ("gone", "./nowhere"), ("flat", "./plugin.yaml"), ("named", "no-such-program")] {
        fs::create_dir_all(plugins.join(name)).unwrap();
        let text = json!({ "command": command, "hooks": ["onFinalize"] }).to_string();
        fs::write(plugins.join(name).join("plugin.yaml"), text).unwrap();
    }
    fs::write(plugins.join("here/run"), "#!/bin/sh\n").unwrap();
    mode(&plugins.join("here/run"), 0o755);
    fs::create_dir_all(daemon.workspace().join("state/automations")).unwrap();
    fs::write(daemon.workspace().join("state/automations/off.js"), "no automation").unwrap();
    let mut wanted = configuration();
    wanted["plugins"]["enabled"] = json!(["here", "gone", "flat", "named"]);
    wanted["automations"]["disabled"] = json!(["off"]);
    daemon.configure(&wanted);
    mode(&daemon.config_file(), 0o644);
    let (code, document) = look(&daemon, &[]);
    assert_eq!(code, Some(1), "{document:#}");
    for (place, severity, told) in [
        ("here", "ok", "plugins/here/./run`"),
        ("gone", "error", "no program `./nowhere`"),
        ("flat", "error", "can't be executed"),
        ("named", "warning", "no program `no-such-program` in PATH"),
    ] {
        let found = of(&document, "plugins", place);
        assert!(found["severity"] == severity && found["what"].as_str().unwrap().contains(told), "{found:#}");
    }
    let told: Vec<&Value> = document["findings"].as_array().unwrap().iter().filter(|one| one["check"] == "automations").collect();
    assert!(told.len() == 1 && told[0]["severity"] == "ok" && told[0]["where"].is_null(), "one that is disabled is left out: {told:?}");
}

#[test]
fn why_a_daemon_is_degraded_is_told_with_what_to_do() {
    let mut wanted = only_with_restarts("fake", 1, json!({}));
    wanted["adapters"]["fake"]["command"] = json!("/nowhere/adapter");
    let daemon = Daemon::start(&wanted);
    eventually("it is given up", || daemon.get("/health").json()["reasons"] == json!(["1 adapter is errored"]));
    let (_, document) = look(&daemon, &[]);
    let found = document["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == "health").unwrap();
    assert_eq!((&found["severity"], &found["what"]), (&json!("warning"), &json!("1 adapter is errored")), "{document:#}");
    assert!(found["fix"].as_str().unwrap().contains("nexus adapter list"), "{found:#}");
}

#[test]
fn a_killed_daemon_leaves_work_for_the_next_start_and_no_error() {
    let mut daemon = started();
    daemon.kill9();
    daemon.nothing_runs();
    let (code, document) = look(&daemon, &[]);
    assert_eq!((code, document["status"].as_str()), (Some(0), Some("warnings")), "{document:#}");
    assert!(trouble(&document).iter().all(|(check, _)| check == "lock"), "{document:#}");
    let (code, document) = look(&daemon, &["--repair"]);
    assert_eq!((code, &document["status"]), (Some(0), &json!("ok")), "{document:#}");
    daemon.launch();
    eventually("it is healthy", || daemon.status()["health"] == "healthy");
    assert_well(&daemon);
    assert_eq!(daemon.ended("completed"), EVENTS);
}
