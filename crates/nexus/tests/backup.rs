//! Backup of running and stopped daemons, and what a restore makes of it: everything whole, nothing done
//! twice in silence, and no half restored set taken for a whole one.
#![allow(clippy::unwrap_used)]

mod common;

use common::backup::{LEDGERS, assert_single_files, assert_whole, make, manifest, restore, restored, set_manifest};
use common::{Ask, Daemon, config, eventually, find, lines, only};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const EVENTS: i64 = 800;
/// Slow enough not to be over before the last backup.
const EVENTS_PER_S: u64 = 100;
/// Backups taken while events flow, and how many requests must have ended before each.
const BACKUPS: i64 = 3;
const PROGRESS: i64 = 30;
const HOUR_MS: i64 = 3_600_000;
const EXIT_FAILED: Option<i32> = Some(1);
const EXIT_USAGE: Option<i32> = Some(2);
const UNSETTLED: &str = "SELECT count(*) FROM deliveries WHERE status IN ('pending', 'sending', 'uncertain')";
const INBOUND: &str = "SELECT count(*) FROM events WHERE direction = 'inbound'";
const REQUESTS: &str = "SELECT count(*) FROM nexus_requests";

/// The place for a daemon that has this configuration and no ledgers.
fn place(wanted: &Value) -> Daemon {
    let daemon = Daemon::new();
    daemon.configure(wanted);
    daemon
}

/// A daemon that was told this and stopped, and a backup of it.
fn stopped_after(text: &str) -> (Daemon, PathBuf) {
    let mut daemon = Daemon::start(&config(json!({})));
    assert_eq!(daemon.nexus_ok(&["send", text]).trim(), text);
    daemon.stop();
    let directory = make(&daemon);
    (daemon, directory)
}

fn data(daemon: &Daemon) -> PathBuf {
    daemon.workspace().join("data")
}

fn said(daemon: &Daemon) -> Vec<String> {
    daemon.texts("events", "SELECT content FROM events WHERE channel = 'cli' AND direction = 'inbound' ORDER BY seq")
}

#[test]
fn backups_while_messages_flow_are_whole_and_each_starts_a_daemon() {
    let mut daemon = Daemon::start(&only("fake", json!({ "events": EVENTS, "rate_per_s": EVENTS_PER_S, "peers": 8 })));
    let mut made = Vec::new();
    for n in 1..=BACKUPS {
        eventually("some requests end", || daemon.terminal() > n * PROGRESS);
        made.push(make(&daemon));
    }
    assert!(daemon.accepted() < EVENTS, "the last backup came too late");
    eventually("the daemon goes on as if nothing was", || daemon.ended("completed") == EVENTS);
    daemon.stop();
    for directory in made {
        assert_single_files(&directory);
        assert_whole(&directory);
        let about = manifest(&directory);
        assert_eq!((&about["online"], &about["format"]), (&json!(true), &json!(1)), "{about}");
        assert!(about["counters"]["last_seq"].as_i64() > Some(0), "{about}");
        let mut other = place(&config(json!({})));
        let report = restored(&other, &directory, &[]);
        assert_eq!(report["before"], Value::Null, "{report}");
        assert_single_files(&data(&other));
        assert_whole(&data(&other));
        other.launch();
        eventually("every event has its request", || other.count("events", INBOUND) == other.count("nexus", REQUESTS));
        assert_eq!(other.terminal(), other.count("nexus", REQUESTS), "something is open");
        assert_eq!(other.count("nexus", UNSETTLED), 0, "something may be sent");
        assert_eq!(other.nexus_ok(&["send", "and on"]).trim(), "and on");
        other.stop();
    }
}

#[test]
fn everything_in_a_backup_is_for_this_user_alone() {
    let (_daemon, directory) = stopped_after("kept");
    assert_single_files(&directory);
    assert_eq!(manifest(&directory)["online"], false);
    for path in [directory.clone(), directory.parent().unwrap().to_owned()] {
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700, "{path:?}");
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).unwrap().map(Result::unwrap) {
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["agents.db", "events.db", "identity.db", "manifest.json", "nex.yaml", "nexus.db"]);
    let left_out = manifest(&directory)["not_included"].as_str().unwrap().to_owned();
    for part in ["state/credentials", "`env:`", "bus.db"] {
        assert!(left_out.contains(part), "{part} isn't in it, and nobody says so: {left_out}");
    }
}

#[test]
fn a_fresh_home_goes_on_where_the_backup_was_made() {
    let (first, directory) = stopped_after("kept");
    let mut home = Daemon::at_home();
    let report = restored(&home, &directory, &[]);
    assert_eq!((&report["config"], &report["before"]), (&json!("restored"), &Value::Null), "{report}");
    assert_eq!(fs::read_to_string(home.config_file()).unwrap(), fs::read_to_string(first.config_file()).unwrap());
    home.launch();
    assert_eq!(home.nexus_ok(&["send", "and on"]).trim(), "and on");
    assert_eq!(said(&home), ["kept", "and on"]);
    let turns = "SELECT count(DISTINCT session) || ' ' || count(*) FROM turns";
    eventually("both are turns of one session", || home.texts("agents", turns) == ["1 2"]);
}

#[test]
fn automations_and_plugins_come_back_where_there_are_none_and_stay_where_there_are() {
    let mut first = place(&config(json!({})));
    let sort = "export const automation = { name: 'sort', handler() {} };\n";
    let files = [("state/automations/sort.ts", sort, 0o644), ("plugins/tags/run", "#!/bin/sh\n", 0o755)];
    for (name, text, mode) in files {
        let path = first.workspace().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let tags = first.workspace().join("plugins/tags");
    std::os::unix::fs::symlink("/etc", tags.join("out")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, tags.join("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    first.launch();
    let made = first.nexus(&["backup", "copy"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    assert!(made.stderr.contains("tags/out: a symbolic link") && made.stderr.contains("tags/pipe: neither"), "{made:?}");
    first.stop();
    let directory = first.home().join("copy");
    assert_eq!(manifest(&directory)["programs"]["files"], 2);
    assert!(fs::symlink_metadata(directory.join("plugins/tags/out")).is_err());

    let mut home = Daemon::at_home();
    let outcomes = |report: &Value| [report["automations"].clone(), report["plugins"].clone()];
    let report = restored(&home, &directory, &[]);
    assert_eq!(outcomes(&report), ["restored", "restored"], "{report}");
    assert!(report["warnings"].to_string().contains("tags/out"), "{report}");
    for (name, text, mode) in files {
        let path = home.workspace().join(name);
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, mode, "{name}");
    }
    home.launch();
    assert!(home.nexus_ok(&["automation", "list"]).contains("sort"));
    home.stop();
    assert_eq!(outcomes(&restored(&home, &directory, &[])), ["same", "same"]);
    fs::write(home.workspace().join("plugins/tags/run"), "mine").unwrap();
    assert_eq!(outcomes(&restored(&home, &directory, &[])), ["same", "differs"]);
    assert_eq!(fs::read_to_string(home.workspace().join("plugins/tags/run")).unwrap(), "mine");

    fs::write(directory.join("plugins/tags/run"), "of somebody else").unwrap();
    let other = place(&config(json!({})));
    let refused = restore(&other, &directory, &[]);
    assert_eq!(refused.code, EXIT_FAILED, "{refused:?}");
    assert!(refused.stderr.contains("plugins/tags/run` is not as its backup was made"), "{refused:?}");
    assert!(
        !data(&other).join("events.db").exists() && !other.workspace().join("state/automations").exists(),
        "something was put in place"
    );
}

#[test]
fn what_is_replaced_lies_aside_and_the_configuration_stays() {
    let (mut daemon, directory) = stopped_after("kept");
    daemon.launch();
    let before = daemon.count("nexus", "SELECT value FROM counters WHERE name = 'epoch'");
    daemon.nexus_ok(&["send", "after the backup"]);
    let mut changed = config(json!({}));
    changed["timer"]["timezone"] = json!("UTC");
    daemon.configure(&changed);
    daemon.stop();
    let report = restored(&daemon, &directory, &[]);
    assert_eq!(report["config"], "differs", "{report}");
    let aside = PathBuf::from(report["before"].as_str().unwrap());
    assert!(aside.starts_with(data(&daemon).join("backup")), "{aside:?}");
    assert_whole(&aside);
    assert!(report["epoch"].as_i64() > Some(before), "places in the event stream are given twice");
    assert_eq!(said(&daemon), ["kept"]);
    daemon.launch();
    assert_eq!(said(&daemon), ["kept"]);
    daemon.stop();
    let again = restored(&daemon, &directory, &[]);
    assert!(again["epoch"].as_i64() > report["epoch"].as_i64(), "{again}");
}

/// Refused with this, and nothing is changed.
fn refused(daemon: &Daemon, directory: &Path, parts: &[&str]) {
    let ran = restore(daemon, directory, &[]);
    assert_eq!(ran.code, EXIT_FAILED, "{ran:?}");
    for part in parts {
        assert!(ran.stderr.contains(part), "no `{part}` in {ran:?}");
    }
    assert_eq!(said(daemon), ["kept", "after the backup"]);
    assert!(!data(daemon).join("restore-in-progress").exists() && !data(daemon).join("restore-staged").exists());
}

#[test]
fn what_is_no_whole_backup_is_refused_and_a_running_daemon_is_left_alone() {
    let (mut daemon, directory) = stopped_after("kept");
    daemon.launch();
    daemon.nexus_ok(&["send", "after the backup"]);
    refused(&daemon, &directory, &[&format!("PID {}", daemon.pid()), "nexus daemon stop"]);
    daemon.stop();

    let asked = daemon.nexus(&["restore", &directory.to_string_lossy()]);
    assert_eq!(asked.code, EXIT_USAGE, "{asked:?}");
    assert_eq!(daemon.nexus(&["restore", "./nowhere", "--yes"]).code, Some(4));

    let good = manifest(&directory);
    let mut newer = good.clone();
    newer["files"]["nexus.db"]["schema"] = json!(99);
    set_manifest(&directory, &newer);
    refused(&daemon, &directory, &["`nexus.db` of the backup has schema 99, this nexus knows 1"]);
    fs::write(directory.join("manifest.json"), &good.to_string()[..40]).unwrap();
    refused(&daemon, &directory, &["is no manifest of a backup"]);
    fs::remove_file(directory.join("manifest.json")).unwrap();
    refused(&daemon, &directory, &["is no whole backup"]);
    set_manifest(&directory, &good);

    let mut bytes = fs::read(directory.join("events.db")).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(directory.join("events.db"), &bytes).unwrap();
    refused(&daemon, &directory, &["events.db` is not as its backup was made", "SHA-256"]);
    bytes[last] ^= 1;
    fs::write(directory.join("events.db"), &bytes[..last]).unwrap();
    refused(&daemon, &directory, &["events.db` is not as its backup was made", "bytes"]);
    fs::write(directory.join("events.db"), &bytes).unwrap();
    restored(&daemon, &directory, &[]);
    assert_eq!(said(&daemon), ["kept"]);
}

#[test]
fn a_directory_with_anything_in_it_and_a_relative_one_are_refused() {
    let daemon = Daemon::start(&config(json!({})));
    fs::create_dir(daemon.home().join("full")).unwrap();
    fs::write(daemon.home().join("full/note"), "mine").unwrap();
    let ran = daemon.nexus(&["backup", "full"]);
    assert_eq!(ran.code, EXIT_FAILED, "{ran:?}");
    assert!(ran.stderr.contains("is not empty"), "{ran:?}");
    assert_eq!(fs::read_dir(daemon.home().join("full")).unwrap().count(), 1);
    assert_eq!(daemon.post("/control/backup", &json!({ "directory": "full" })).status, 400);
    let made = daemon.nexus_ok(&["backup", "new/one"]);
    assert!(made.contains("new/one"), "{made}");
    assert_whole(&daemon.home().join("new/one"));
}

#[test]
fn one_backup_at_a_time() {
    let daemon = Daemon::start(&config(json!({})));
    // Read after the ledgers: whoever copies it waits here.
    let overlay = daemon.workspace().join("state/overlay.yaml");
    fs::create_dir_all(overlay.parent().unwrap()).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &overlay, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| daemon.nexus(&["backup", "one"]));
        eventually("its ledgers are copied", || daemon.home().join("one/nex.yaml").exists());
        let second = daemon.nexus(&["backup", "two"]);
        assert_eq!(daemon.post("/control/backup", &json!({})).status, 409);
        fs::write(&overlay, "").unwrap();
        assert_eq!(second.code, EXIT_FAILED, "{second:?}");
        assert!(second.stderr.contains("a backup is being made"), "{second:?}");
        let first = first.join().unwrap();
        assert_eq!(first.code, Some(0), "{first:?}");
    });
    assert!(!daemon.home().join("two").exists());
    fs::remove_file(overlay).unwrap();
    make(&daemon);
}

#[test]
fn a_half_restored_set_starts_nothing_until_a_restore_comes_to_its_end() {
    let (mut daemon, directory) = stopped_after("kept");
    daemon.launch();
    daemon.nexus_ok(&["send", "after the backup"]);
    daemon.stop();
    // As a restore leaves it that was killed after it moved the first file.
    let aside = data(&daemon).join("backup/before-restore-20260101T000000.000Z");
    fs::create_dir(&aside).unwrap();
    let files: Vec<String> = LEDGERS.iter().map(|name| format!("{name}.db")).collect();
    let marker = json!({ "source": "/gone", "aside": aside.file_name().unwrap().to_str().unwrap(), "files": files });
    fs::write(data(&daemon).join("restore-in-progress"), marker.to_string()).unwrap();
    fs::rename(data(&daemon).join("events.db"), aside.join("events.db")).unwrap();

    for command in [&["daemon", "start"][..], &["daemon", "start", "--detach"], &["events"], &["backup"]] {
        let ran = daemon.nexus(command);
        assert_eq!(ran.code, EXIT_FAILED, "{command:?}: {ran:?}");
        assert!(ran.stderr.contains("run `nexus restore DIRECTORY` again"), "{command:?}: {ran:?}");
    }
    assert!(!data(&daemon).join("events.db").exists(), "an empty ledger was made");
    let report = restored(&daemon, &directory, &[]);
    assert_eq!((&report["finished_another"], &report["before"]), (&json!(true), &json!(aside)), "{report}");
    assert_whole(&aside);
    let former = Connection::open(aside.join("events.db")).unwrap();
    let count: i64 = former.query_row("SELECT count(*) FROM events WHERE content = 'after the backup'", [], |row| row.get(0)).unwrap();
    assert!(count >= 1, "what the interrupted restore had moved aside is gone");
    daemon.launch();
    assert_eq!(said(&daemon), ["kept"]);
    daemon.stop();
}

#[test]
fn while_a_command_works_on_the_ledgers_no_daemon_starts() {
    let (daemon, directory) = stopped_after("kept");
    let overlay = daemon.workspace().join("state/overlay.yaml");
    fs::create_dir_all(overlay.parent().unwrap()).unwrap();
    fs::write(&overlay, "").unwrap();
    let held = fs::File::options().read(true).write(true).open(data(&daemon).join("lock")).unwrap();
    held.lock().unwrap();
    fs::write(data(&daemon).join("lock"), "`nexus restore` (PID 7)").unwrap();
    for command in [&["daemon", "start"][..], &["backup"], &["restore", &directory.to_string_lossy(), "--yes"]] {
        let ran = daemon.nexus(command);
        assert_eq!(ran.code, EXIT_FAILED, "{command:?}: {ran:?}");
        assert!(ran.stderr.contains("in use by `nexus restore` (PID 7)"), "{command:?}: {ran:?}");
    }
    drop(held);
    make(&daemon);
}

/// A backup of a daemon whose agent is at work for one message, while another waits.
fn with_open_work() -> (Daemon, PathBuf) {
    let mut wanted = config(json!({}));
    wanted["agents"] = json!({ "default": "stuck", "stuck": { "runner": "command", "command": "sleep 1000" } });
    let mut daemon = Daemon::start(&wanted);
    let (one, two) = (json!({ "text": "one" }), json!({ "text": "two" }));
    let _answers = [&one, &two].map(|body| daemon.open(&Ask::post("/control/send", body)));
    let running = "SELECT count(*) FROM runs WHERE status = 'running'";
    eventually("one is answered, the other waits", || daemon.count("nexus", running) == 1 && daemon.count("nexus", REQUESTS) == 2);
    let directory = make(&daemon);
    daemon.kill9();
    (daemon, directory)
}

#[test]
fn open_work_is_closed_and_no_agent_runs_again() {
    let (_daemon, directory) = with_open_work();
    let mut other = place(&config(json!({})));
    let report = restored(&other, &directory, &[]);
    assert_eq!(report["requests_closed"], 2, "{report}");
    other.launch();
    assert_eq!(other.nexus_ok(&["send", "three"]).trim(), "three");
    assert_eq!((other.ended("failed"), other.ended("completed")), (2, 1));
    assert_eq!(other.count("nexus", "SELECT count(*) FROM runs"), 2, "an agent ran again");
    for reason in other.texts("nexus", "SELECT reason FROM nexus_requests WHERE status = 'failed'") {
        assert!(reason.contains("when the backup of") && reason.contains("`nexus events replay cli:"), "{reason}");
    }
}

#[test]
fn resumed_open_work_goes_on() {
    let (_daemon, directory) = with_open_work();
    let mut wanted = config(json!({}));
    wanted["pipeline"] = json!({ "on_interrupted": "rerun" });
    let mut other = place(&wanted);
    let report = restored(&other, &directory, &["--resume"]);
    assert_eq!((&report["requests_closed"], &report["resumed"]), (&json!(0), &json!(true)), "{report}");
    assert!(report["warnings"][0].as_str().is_some_and(|warning| warning.contains("while a daemon ran")), "{report}");
    other.launch();
    eventually("both are answered", || other.ended("completed") == 2);
}

#[test]
fn a_message_that_may_have_been_sent_is_held_whatever_the_adapter_says() {
    let mut first = Daemon::new();
    let mut wanted = only("fake", json!({ "events": 1, "send": "hang", "send_log": first.file("sends") }));
    wanted["adapters"]["fake"]["send"] = json!({ "timeout_ms": 60_000 });
    first.configure(&wanted);
    first.launch();
    eventually("it is being sent", || first.deliveries("sending") == 1);
    let directory = make(&first);
    first.kill9();

    let mut other = Daemon::new();
    let sends = other.file("sends");
    let mut wanted = only("fake", json!({ "events": 0, "send": "ok", "send_log": sends }));
    wanted["adapters"]["fake"]["send"] = json!({ "on_uncertain": "retry" });
    other.configure(&wanted);
    assert_eq!(restored(&other, &directory, &[])["deliveries_held"], 1);
    other.launch();
    other.adapter_once("fake/me", "running");
    let held = find("it is held", || {
        let list = other.get("/control/deliveries?limit=10").json();
        list["deliveries"].as_array()?.iter().find(|delivery| delivery["status"] == "failed").cloned()
    });
    assert!(held["error"].as_str().is_some_and(|error| error.contains("may have been sent since")), "{held}");
    assert!(lines(&sends).is_empty(), "it was sent in silence");
    other.nexus_ok(&["deliveries", "retry", held["delivery_id"].as_str().unwrap()]);
    eventually("it is sent once a person says so", || other.deliveries("sent") == 1);
    assert_eq!(lines(&sends).len(), 1);
}

/// A backup with a slot of a job that fires each minute, two hours ago.
fn with_an_old_slot() -> (Daemon, PathBuf, i64) {
    let mut daemon = Daemon::start(&config(json!({})));
    daemon.stop();
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let slot = (now - 2 * HOUR_MS) / 60_000 * 60_000;
    let insert = "INSERT INTO events (key, event_id, channel, account_id, adapter, direction, sender_id, peer_id, peer_kind, content_type,
                    timestamp, received_at, disposition, content)
                  VALUES (zeroblob(16), ?1, 'timer', 'default', 'timer', 'inbound', 'timer', 'timer', 'dm', 'system/timer', ?2, ?2, 'history', '')";
    let events = Connection::open(data(&daemon).join("events.db")).unwrap();
    events.execute(insert, rusqlite::params![format!("timer:cron:minutely:{slot}"), slot]).unwrap();
    drop(events);
    let directory = make(&daemon);
    (daemon, directory, now)
}

#[test]
fn slots_of_the_timer_that_may_have_fired_since_are_passed_by_unless_resumed() {
    let mut wanted = config(json!({}));
    let job = json!({ "expr": "* * * * *", "label": "minutely", "missed": "all", "max_lateness_ms": 24 * HOUR_MS });
    wanted["timer"] = json!({ "heartbeat_interval_ms": 1000, "timezone": "UTC", "cron": [job] });
    let (_daemon, directory, made) = with_an_old_slot();
    let late = format!(
        "SELECT count(*) FROM events WHERE event_id LIKE 'timer:cron:minutely:%' AND disposition <> 'history' AND timestamp < {}",
        made / 60_000 * 60_000
    );
    let beats = "SELECT coalesce(max(seq), 0) FROM events WHERE event_id LIKE 'timer:heartbeat:%'";
    for (more, has_late) in [(&[][..], false), (&["--resume"][..], true)] {
        let mut other = place(&wanted);
        restored(&other, &directory, more);
        let before = other.count("events", beats);
        other.launch();
        // All that is due is fired in one step, in the order of its times.
        eventually("the timer has stepped", || other.count("events", beats) > before);
        assert_eq!(other.count("events", &late) > 0, has_late, "{more:?}");
        other.stop();
    }
}
