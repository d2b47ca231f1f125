//! What a person gets wrong, and what a machine lets a daemon find: each is refused with what is wrong,
//! where, and what to do, by an exit code that tells a bad configuration (78) from a failure (1), and
//! nothing is lost or left behind. Bad lines and bodies are in `bad_lines.rs`, floods in `floods.rs`.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Daemon, Ran, config, eventually, fake, place};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::path::Path;

const EXIT_FAILED: i32 = 1;
const EXIT_CONFIG: i32 = 78;
const START: [&str; 2] = ["daemon", "start"];
/// Longest configuration, in bytes.
const CONFIG_BYTES_MAX: usize = 1024 * 1024;
/// A schema that no nexus has yet.
const NEWER_SCHEMA: u32 = 99;
const CONTENTS: &str = "SELECT content FROM events WHERE direction = 'inbound' ORDER BY seq";

/// Looks at a start that had to fail: it ended with this code, said all of this, and is gone.
fn refused(daemon: &Daemon, ran: &Ran, code: i32, said: &[&str]) {
    assert_eq!(ran.code, Some(code), "{ran:?}");
    for part in said {
        assert!(ran.stderr.contains(part), "no `{part}` in {}", ran.stderr);
    }
    assert!(!daemon.state("nex.pid").exists(), "the lock is left behind");
    assert!(!daemon.state("nex.sock").exists(), "the socket is left behind");
    daemon.nothing_runs();
}

fn start(daemon: &Daemon) -> Ran {
    daemon.nexus(&START)
}

/// Words of a prefix as `set_prefix` takes them.
fn as_strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn what_is_no_configuration_is_refused_where_it_goes_wrong() {
    let daemon = Daemon::new();
    let long = format!("#{}", "x".repeat(CONFIG_BYTES_MAX));
    let deep = "[".repeat(40);
    let cases: [(&[u8], &[&str]); 9] = [
        (b"daemon:\n  port: 0\n\tlog_level: info\n", &["nex.yaml:", ": not valid YAML: "]),
        (b"daemon: &d {port: 0}\nbus: *d\n", &["nex.yaml:1:", "are not supported here; write the value out"]),
        (b"daemon: {port: 0}\nbus: {}\ndaemon: {}\n", &["nex.yaml:3:1: key `daemon` is given twice (first on line 1); keep one"]),
        (b"daemon: {}\n---\nbus: {}\n", &["nex.yaml:", "a second YAML document; put everything into one"]),
        (b"daemon: {}\n\0\n", &["nex.yaml:2:1: a NUL character; a configuration is text, remove it"]),
        (b"daemon:\n  # \xc3\xa4 cr\xe8me\n", &["nex.yaml:2:9: this byte is not UTF-8; save the file as UTF-8"]),
        (b"hello\n", &["nex.yaml:1:1: a configuration is sections such as `daemon:`"]),
        (long.as_bytes(), &["nex.yaml:1:1: the file has 1048577 bytes; a configuration may have 1048576"]),
        (deep.as_bytes(), &["nex.yaml:1:33: nested deeper than 32 levels; flatten it"]),
    ];
    for (text, said) in cases {
        fs::write(daemon.config_file(), text).unwrap();
        refused(&daemon, &start(&daemon), EXIT_CONFIG, said);
        refused(&daemon, &daemon.nexus(&["config", "check"]), EXIT_CONFIG, said);
    }
    assert!(!daemon.workspace().join("data").exists(), "a ledger was made for a configuration that is none");
    assert!(!daemon.state("last-run.json").exists(), "a start that never was is remembered");
}

#[test]
fn a_running_daemon_keeps_its_configuration_when_the_file_becomes_garbage() {
    let daemon = Daemon::start(&config(json!({})));
    fs::write(daemon.config_file(), b"daemon:\n  port: \xff\n").unwrap();
    let ran = daemon.nexus(&["daemon", "reload"]);
    assert_eq!(ran.code, Some(EXIT_CONFIG), "{ran:?}");
    assert!(ran.stderr.contains("nothing was changed") && ran.stderr.contains("nex.yaml:2:9: this byte is not UTF-8"), "{ran:?}");
    assert_eq!(daemon.nexus_ok(&["send", "still here"]).trim(), "still here");
}

#[test]
fn a_configuration_that_is_not_there_is_named() {
    let daemon = Daemon::new();
    let path = format!("configuration file `{}` does not exist; ", daemon.config_file().display());
    refused(&daemon, &start(&daemon), EXIT_CONFIG, &[&path, "--config"]);
    assert!(!daemon.config_file().exists(), "a file that was asked for by name is not made up");
}

#[test]
fn unknown_and_misspelt_keys_are_told_with_the_right_one_and_stop_nothing() {
    let mut daemon = Daemon::new();
    daemon.configure_text("daemon:\n  prot: 1\n  port: 0\nacess: {}\ntimer: { heartbeat_interval_ms: 0, zzz: 1 }\nweather: {}\n");
    let told = [
        "nex.yaml:2:3: unknown key `prot` in `daemon` is ignored; did you mean `port`?",
        "nex.yaml:4:1: unknown key `acess` is ignored; did you mean `access`?",
        "unknown key `zzz` in `timer` is ignored; known here: ",
        "nex.yaml:6:1: unknown key `weather` is ignored; known here: daemon, ",
    ];
    let checked = daemon.nexus(&["config", "check"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    daemon.launch();
    let reloaded = daemon.nexus(&["daemon", "reload"]);
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    for part in told {
        assert!(checked.stderr.contains(part), "no `{part}` in {checked:?}");
        assert!(reloaded.stderr.contains(part), "no `{part}` in {reloaded:?}");
        assert!(daemon.stdout().contains(part), "no `{part}` in the log");
    }
    // Beside a mistake they are told too: a misspelt key is often the reason for a missing one.
    daemon.stop();
    daemon.configure_text("adapters:\n  mail:\n    comand: gog\n");
    let both = ["`mail` needs `command`, for example `command: gog`", "nex.yaml:3:5: warning: unknown key `comand`", "`command`?"];
    refused(&daemon, &start(&daemon), EXIT_CONFIG, &both);
}

#[test]
fn a_taken_port_is_refused_before_any_child_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut daemon = Daemon::new();
    let starts = daemon.file("starts");
    let mut wanted = config(json!({ "fake": fake(json!({ "start_log": starts })) }));
    daemon.configure(&wanted);
    daemon.launch();
    eventually("its adapter starts", || Path::new(&starts).exists());
    daemon.stop();
    fs::remove_file(&starts).unwrap();
    wanted["daemon"]["port"] = json!(address.port());
    daemon.configure(&wanted);
    let listen = format!("failed to listen on {address}; is something else using the port?");
    let said = [listen.as_str(), "Choose another with daemon.port or --port", "Address already in use"];
    refused(&daemon, &start(&daemon), EXIT_FAILED, &said);
    refused(&daemon, &daemon.nexus(&["daemon", "start", "--detach"]), EXIT_FAILED, &said);
    assert!(!Path::new(&starts).exists(), "an adapter was started for a daemon that could not");
    let status = daemon.nexus(&["daemon", "status"]);
    assert!(status.stdout.contains("exited cleanly"), "the failed starts count as runs: {status:?}");
}

/// Files where directories belong stop anybody, whatever their privileges.
fn files_stand_in_the_way(daemon: &Daemon) {
    let (state, data) = (daemon.root().join("state"), daemon.workspace().join("data"));
    for (path, failed) in [(state, "failed to create"), (data, "failed to create the ledger directory")] {
        fs::write(&path, "mine").unwrap();
        let said = format!("{failed} `{}`; check its owner and permissions: File exists", path.display());
        refused(daemon, &start(daemon), EXIT_FAILED, &[&said]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_file_where_a_directory_belongs_is_named_and_left_alone() {
    let mut daemon = Daemon::new();
    daemon.configure(&config(json!({})));
    files_stand_in_the_way(&daemon);
    // Nobody can make a directory there, not even root.
    let elsewhere = ["env".to_owned(), "NEXUS_STATE_DIR=/proc/nexus-state".to_owned()];
    refused(&daemon, &daemon.nexus_under(&elsewhere, &START), EXIT_FAILED, &["failed to create `/proc/nexus-state`; check its owner"]);
    daemon.launch();
    daemon.stop();
}

#[test]
fn what_this_user_may_not_write_is_named_and_nothing_is_lost() {
    let mut daemon = Daemon::new();
    daemon.configure(&config(json!({})));
    let Some(user) = place::mortal(daemon.root()) else {
        // A root that can become nobody else.
        return files_stand_in_the_way(&daemon);
    };
    let (state, workspace, data) = (daemon.root().join("state"), daemon.workspace(), daemon.workspace().join("data"));
    let denied = |path: &Path, mode: u32, code: i32, failed: &str| {
        let ran = place::with_mode(path, mode, || daemon.nexus_under(&user, &START));
        refused(&daemon, &ran, code, &[failed, "check ", " owner and "]);
        ran
    };
    let said = |failed: &str, path: &Path| format!("{failed} `{}`", path.display());
    denied(daemon.root(), 0o555, EXIT_FAILED, &said("failed to create", &state));
    denied(&workspace, 0o555, EXIT_FAILED, &said("failed to create the ledger directory", &data));
    denied(&daemon.config_file(), 0o000, EXIT_CONFIG, &said("failed to read", &daemon.config_file()));
    fs::create_dir(&data).unwrap();
    denied(&data, 0o555, EXIT_FAILED, &said("failed to open", &data.join("lock")));
    fs::remove_dir(&data).unwrap();

    daemon.set_prefix(&as_strs(&user));
    daemon.launch();
    let sent = daemon.nexus_under(&user, &["send", "kept"]);
    assert_eq!((sent.code, sent.stdout.trim()), (Some(0), "kept"), "{sent:?}");
    daemon.stop();

    let denied = |path: &Path, mode: u32, failed: &str| {
        let ran = place::with_mode(path, mode, || daemon.nexus_under(&user, &START));
        refused(&daemon, &ran, EXIT_FAILED, &[failed, "check ", " owner and "]);
        ran
    };
    let pid_file = denied(&state, 0o555, &said("failed to open", &state.join("nex.pid")));
    assert!(pid_file.stderr.contains("Permission denied"), "{pid_file:?}");
    let ledger = denied(&data.join("nexus.db"), 0o400, &format!("{} for writing", said("failed to open", &data.join("nexus.db"))));
    assert!(ledger.stderr.contains("Permission denied"), "{ledger:?}");
    let status = daemon.nexus_under(&user, &["daemon", "status"]);
    assert!(status.stdout.contains("exited cleanly"), "the failed starts count as runs: {status:?}");

    daemon.launch();
    assert_eq!(daemon.texts("events", CONTENTS), ["kept"]);
    daemon.stop();
}

#[test]
fn a_read_only_file_system_is_named_and_nothing_is_lost() {
    let mut daemon = Daemon::new();
    daemon.configure(&config(json!({})));
    daemon.launch();
    assert_eq!(daemon.nexus_ok(&["send", "kept"]).trim(), "kept");
    daemon.stop();
    let (state, data) = (daemon.root().join("state"), daemon.workspace().join("data"));
    for (directory, file) in [(&state, "nex.pid"), (&data, "lock")] {
        let failed = format!("failed to open `{}`", directory.join(file).display());
        match place::read_only(directory) {
            Some(prefix) => {
                let ran = daemon.nexus_under(&prefix, &START);
                // The data directory's lock is opened as files of the ledger are.
                let failed = failed.trim_end_matches('`');
                refused(&daemon, &ran, EXIT_FAILED, &[failed, "check ", " owner and permissions", "Read-only file system"]);
            }
            // Nobody may mount here. /proc can't be written to either, whoever tries.
            None => {
                let elsewhere = ["env".to_owned(), format!("NEXUS_STATE_DIR=/proc/{file}")];
                let ran = daemon.nexus_under(&elsewhere, &START);
                refused(&daemon, &ran, EXIT_FAILED, &[&format!("failed to create `/proc/{file}`"), "check its owner and permissions"]);
            }
        }
    }
    assert!(daemon.nexus(&["daemon", "status"]).stdout.contains("exited cleanly"));
    daemon.launch();
    assert_eq!(daemon.texts("events", CONTENTS), ["kept"]);
    daemon.stop();
}

#[test]
fn a_ledger_of_a_newer_nexus_is_refused_with_both_versions_and_not_touched() {
    let mut daemon = Daemon::new();
    daemon.configure(&config(json!({})));
    daemon.launch();
    assert_eq!(daemon.nexus_ok(&["send", "kept"]).trim(), "kept");
    daemon.stop();
    for name in ["events", "agents", "identity", "nexus"] {
        let path = daemon.workspace().join(format!("data/{name}.db"));
        let change = |sql: &str| Connection::open(&path).unwrap().execute(sql, [NEWER_SCHEMA]).unwrap();
        assert_eq!(change("INSERT INTO schema_version VALUES (?1, 'of the future', 0)"), 1);
        let said = format!("`{}` has schema {NEWER_SCHEMA}, this nexus knows 1; run the newer nexus, or restore a backup", path.display());
        refused(&daemon, &start(&daemon), EXIT_FAILED, &[&said]);
        refused(&daemon, &daemon.nexus(&["daemon", "start", "--detach"]), EXIT_FAILED, &[&said]);
        assert_eq!(change("DELETE FROM schema_version WHERE version = ?1"), 1, "{name} was touched");
    }
    assert!(!daemon.workspace().join("data/backup").exists(), "nothing was migrated");
    daemon.launch();
    assert_eq!(daemon.texts("events", CONTENTS), ["kept"]);
    daemon.stop();
}

/// An adapter that is tried once.
fn once(command: &str) -> Value {
    json!({ "command": command, "restart": { "max_restarts": 0, "errored_retry_ms": 0 }, "accounts": { "me": {} } })
}

#[test]
fn a_program_that_cannot_be_started_is_told_with_what_the_key_must_be() {
    let mut daemon = Daemon::new();
    let text_file = daemon.file("notes.txt");
    fs::write(&text_file, "not a program").unwrap();
    let mut lost = once("cat");
    lost["cwd"] = json!("nowhere");
    daemon.configure(&config(json!({
        "missing": once("./no-such-bridge --fast"), "text": once(&text_file), "lost": lost, "fake": fake(json!({ "events": 1 })),
    })));
    daemon.launch();
    let told = [
        ("missing/me", "failed to exec `./no-such-bridge`", "No such file or directory", "`command` must begin with an executable file"),
        ("text/me", "notes.txt`", "Permission denied", "`command` must begin with an executable file"),
        ("lost/me", "working directory", "No such file or directory", "`cwd` must be a directory"),
    ];
    for (name, what, why, advice) in told {
        let entry = daemon.adapter_once(name, "errored");
        let error = entry["last_error"].as_str().unwrap_or_default();
        assert!([what, why, advice].iter().all(|part| error.contains(part)), "{entry}");
    }
    eventually("the good one's event is done", || daemon.ended("completed") == 1);
    assert_eq!(daemon.monitors().len(), 1, "{:?}", daemon.monitors());
    daemon.stop();
    daemon.nothing_runs();
}
