//! The processes of plugins and automations, killed by others in the middle of calls: what becomes of the events, of the
//! process, and of who is blamed; with a real daemon and real processes, which say themselves that they are in a call.
#![allow(clippy::unwrap_used)]

mod automation;
mod common;

use automation::{doing, put};
use common::model::{Model, read, text};
use common::{Answer, Ask, Daemon, Signal, config, eventually, find, json_lines, send_signal};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

/// A message on its way, in a conversation of its own.
fn send(daemon: &Daemon, message: &str) -> Answer {
    daemon.open(&Ask::post("/control/send", &json!({ "text": message, "conversation": message })))
}

fn report(daemon: &Daemon, kind: &str, name: &str) -> Value {
    let all = daemon.get(&format!("/control/{kind}")).json();
    all[kind].as_array().unwrap().iter().find(|one| one["name"] == name).cloned().unwrap_or(Value::Null)
}

fn pid(daemon: &Daemon, kind: &str, name: &str) -> i32 {
    let pid = find("its process runs", || report(daemon, kind, name)["pid"].as_i64());
    i32::try_from(pid).unwrap()
}

/// The process that follows the one that was killed.
fn next_pid(daemon: &Daemon, kind: &str, name: &str, before: i32) -> i32 {
    find("another process runs", || {
        let now = report(daemon, kind, name);
        let is_new = now["status"] == "running" && now["pid"].as_i64() != Some(i64::from(before));
        is_new.then(|| i32::try_from(now["pid"].as_i64()?).ok()).flatten()
    })
}

fn replace(path: &Path, text: &str) {
    let draft = path.with_file_name(".draft");
    fs::write(&draft, text).unwrap();
    fs::rename(draft, path).unwrap();
}

fn place(daemon: &Daemon) -> PathBuf {
    daemon.workspace().join("plugins/it")
}

/// A daemon with the plugin `it`, a program that answers no call; `.log` beside it has a line for each that it is in. Its
/// circuit opens with the second error in a row.
fn daemon_with_program(more: Value) -> Daemon {
    let mut daemon = Daemon::new();
    fs::create_dir_all(place(&daemon)).unwrap();
    replace(&place(&daemon).join(".mode"), "hang");
    let program = PathBuf::from(common::NEXUS).with_file_name("examples").join("fake-plugin");
    assert!(program.exists(), "{} is missing: cargo build --example fake-plugin", program.display());
    let command = shell_words::quote(&program.to_string_lossy()).into_owned();
    let mut file = json!({ "command": command, "hooks": ["afterReceiveEvent"], "mode": "mutate", "timeout_ms": 60_000 });
    file.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    replace(&place(&daemon).join("plugin.yaml"), &file.to_string());
    daemon.configure(&with_plugin(json!({})));
    daemon.launch();
    daemon
}

fn with_plugin(agents: Value) -> Value {
    let mut wanted = config(json!({}));
    if agents.as_object().is_some_and(|agents| !agents.is_empty()) {
        wanted["agents"] = agents;
    }
    wanted["plugins"] = json!({ "enabled": ["it"], "grants": { "it": ["llm"] }, "circuit": { "errors": 2, "half_open_ms": 300_000 } });
    wanted
}

/// The killed process counts once, whatever was under way, and the next event is changed again.
fn is_blamed_once_and_asked_again(daemon: &Daemon, before: i32, changed: &str) {
    assert_ne!(next_pid(daemon, "plugins", "it", before), before);
    let found = report(daemon, "plugins", "it");
    assert_eq!((&found["errors"], &found["restarts"], &found["circuit"]), (&json!(1), &json!(1), &json!("closed")), "{found}");
    assert_eq!(send(daemon, "next").body.end()["text"], changed);
    assert_eq!(report(daemon, "plugins", "it")["errors"], 1);
}

#[test]
fn events_go_on_without_a_program_that_is_killed_in_the_middle_of_their_calls() {
    let daemon = daemon_with_program(json!({}));
    let before = pid(&daemon, "plugins", "it");
    let said = ["a", "b", "c"].map(|message| send(&daemon, message));
    eventually("it is in three calls", || json_lines(place(&daemon).join(".log")).len() == 3);
    replace(&place(&daemon).join(".mode"), r#"patch {"event":{"content":"changed"}}"#);
    send_signal(before, Signal::KILL);
    assert_eq!(said.map(|one| one.body.end()["text"].clone()), ["a", "b", "c"]);
    assert_eq!(daemon.metric(r#"nexus_plugin_calls_total{plugin="it",result="down"}"#), 3);
    is_blamed_once_and_asked_again(&daemon, before, "changed");
}

#[test]
fn an_event_fails_with_a_program_that_must_not_fail_and_is_killed_in_the_middle_of_its_call() {
    let daemon = daemon_with_program(json!({ "on_error": "fail" }));
    let before = pid(&daemon, "plugins", "it");
    let said = send(&daemon, "a");
    eventually("it is in the call", || json_lines(place(&daemon).join(".log")).len() == 1);
    replace(&place(&daemon).join(".mode"), r#"patch {"event":{"content":"changed"}}"#);
    send_signal(before, Signal::KILL);
    let end = said.body.end();
    assert_eq!(end["status"], "failed", "{end}");
    assert!(end["reason"].as_str().unwrap().contains("plugin `it`: its process ended before it answered"), "{end}");
    is_blamed_once_and_asked_again(&daemon, before, "changed");
}

#[test]
fn events_go_on_without_a_script_whose_host_is_killed_in_the_middle_of_their_calls() {
    // The third keeps it there, so that the first two wait on.
    let model = Model::start(vec![String::new(), String::new(), text("openai", "never asked for")]);
    let script = "export const plugin = { name: 'it', async afterReceiveEvent(req, nexus) {
      if (req.event.content !== 'next') {
        console.info(`in the call about ${req.event.content}`);
        await nexus.llm({ agent: 'small', prompt: 'p' });
      }
      req.event.content += '!';
    } };\n";
    let mut daemon = Daemon::new();
    fs::create_dir_all(daemon.workspace().join("plugins")).unwrap();
    replace(&daemon.workspace().join("plugins/it.js"), script);
    let small = json!({ "runner": "llm", "url": model.url(), "model": "m" });
    daemon.configure(&with_plugin(json!({ "default": "echo", "small": small })));
    daemon.launch();
    let before = pid(&daemon, "plugins", "it");
    let said = ["a", "b"].map(|message| send(&daemon, message));
    eventually("it says that it is in both calls, and waits", || {
        let log = daemon.stdout();
        ["a", "b"].iter().all(|message| log.contains(&format!("in the call about {message}"))) && model.asked().len() == 2
    });
    send_signal(before, Signal::KILL);
    assert_eq!(said.map(|one| one.body.end()["text"].clone()), ["a", "b"]);
    is_blamed_once_and_asked_again(&daemon, before, "next!");
}

/// Takes the next question to the model.
fn asked(listener: &TcpListener) -> TcpStream {
    let mut socket = find("the model is asked", || listener.accept().ok()).0;
    socket.set_nonblocking(false).unwrap();
    read(&mut socket);
    socket
}

#[test]
fn calls_of_automations_are_repeated_once_and_one_after_the_other_when_their_host_is_killed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/v1/", listener.local_addr().unwrap());
    let mut wanted = config(json!({}));
    wanted["agents"] = json!({ "default": "echo", "small": { "runner": "llm", "url": url, "model": "m" } });
    wanted["automations"] = json!({ "grants": { "a": ["llm"], "b": ["llm"] } });
    wanted["plugins"]["circuit"] = json!({ "errors": 2, "half_open_ms": 300_000 });
    let ask = |name: &str| {
        let body = format!(
            "if (ctx.request.event.content !== 'to {name}') return;
             console.info('{name} is in the call');
             return ctx.nexus.llm({{ agent: 'small', prompt: 'p' }}).then(({{ text }}) => ({{ enrich: text }}));"
        );
        doing(name, "", &body)
    };
    let mut daemon = Daemon::new();
    put(&daemon, "a.js", &ask("a"));
    put(&daemon, "b.js", &ask("b"));
    daemon.configure(&wanted);
    daemon.launch();
    let first = pid(&daemon, "automations", "a");
    let said = ["to a", "to b"].map(|message| send(&daemon, message));
    let _waiting = [asked(&listener), asked(&listener)];
    let times = |name: &str| daemon.stdout().matches(&format!("{name} is in the call")).count();
    eventually("both say that they are in the call", || (times("a"), times("b")) == (1, 1));
    send_signal(first, Signal::KILL);
    // The one of the two that is asked first again takes its second process along.
    let _repeated = asked(&listener);
    let second = next_pid(&daemon, "automations", "a", first);
    assert_eq!(times("a") + times("b"), 3, "alone");
    send_signal(second, Signal::KILL);
    let mut last = asked(&listener);
    last.write_all(text("openai", "again").as_bytes()).unwrap();
    let mut answers = said.map(|one| one.body.end()["text"].as_str().unwrap().to_owned());
    answers.sort();
    assert!(answers[0].starts_with("again\n\nto ") && answers[1].starts_with("to "), "{answers:?}");
    assert_eq!(times("a") + times("b"), 4, "the other's is repeated, and its own not a second time");
    let errors = ["a", "b"].map(|name| report(&daemon, "automations", name)["errors"].as_u64().unwrap());
    assert_eq!(errors.iter().sum::<u64>(), 1, "{errors:?}");
    for name in ["a", "b"] {
        assert_eq!(report(&daemon, "automations", name)["circuit"], "closed", "{name}");
        let said = send(&daemon, &format!("to {name}"));
        let mut socket = asked(&listener);
        socket.write_all(text("openai", "well").as_bytes()).unwrap();
        assert_eq!(said.body.end()["text"], format!("well\n\nto {name}"));
    }
}
