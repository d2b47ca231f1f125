//! What README.md, and docs/nostr.md, show a newcomer, taken from these pages themselves and done in an empty home directory:
//! each command, configuration and program there must work as it stands and come to what is promised.
//! Only what a test can't share with its neighbours is changed, by an overlay: ports, and a model's address.
#![allow(clippy::unwrap_used)]

mod common;
mod relays;

use common::{Ask, DEADLINE, Daemon, Ran, Response, eventually, http, lines, program};
use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
const NOSTR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/nostr.md");

/// The blocks of code in this language below this heading of README.
fn blocks(heading: &str, language: &str) -> Vec<String> {
    blocks_of(README, heading, language)
}

fn blocks_of(page: &str, heading: &str, language: &str) -> Vec<String> {
    let page = fs::read_to_string(page).unwrap();
    let section = page.split("\n## ").find_map(|section| section.strip_prefix(heading)).unwrap_or_else(|| panic!("no `## {heading}`"));
    let open = format!("\n```{language}\n");
    let code = section.split(open.as_str()).skip(1).filter_map(|rest| rest.split_once("\n```"));
    let found: Vec<String> = code.map(|(code, _)| format!("{code}\n")).collect();
    assert!(!found.is_empty(), "no {language} below `{heading}`");
    found
}

/// The words of the lines of a shell block that begin with this program, without comments.
fn commands(block: &str, name: &str) -> Vec<Vec<String>> {
    let split = |line: &str| shell_words::split(line).unwrap_or_else(|error| panic!("{error} in {line}"));
    block.lines().map(split).filter(|words| words.first().is_some_and(|word| word == name)).map(|words| words[1..].to_vec()).collect()
}

/// Lays these values over whatever nex.yaml says.
fn overlay(home: &Daemon, values: &Value) {
    let directory = home.workspace().join("state");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("overlay.yaml"), values.to_string()).unwrap();
}

/// A home directory in which only the port is decided.
fn empty_home() -> Daemon {
    let home = Daemon::at_home();
    overlay(&home, &json!({ "daemon": { "port": 0 } }));
    home
}

fn run(home: &Daemon, words: &[String]) -> Ran {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let ran = home.nexus(&words);
    assert_eq!(ran.code, Some(0), "{words:?}: {ran:?}");
    ran
}

#[test]
fn chat_starts_a_daemon_and_an_agent_answers() {
    let home = empty_home();
    let said = home.nexus_told("hello\n", &["chat"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.contains("hello"), "{said:?}");
    let file = home.config_file();
    assert!(said.stderr.contains(&format!("created {}", file.display())), "{said:?}");
    let text = fs::read_to_string(file).unwrap();
    assert!(text.starts_with("# ") && text.lines().filter(|line| line.trim_start().starts_with('#')).count() > 50, "{text}");
    assert!(home.nexus_ok(&["config", "check"]).contains("valid"));
    home.nexus_ok(&["daemon", "stop"]);
    home.nothing_runs();
}

#[test]
fn the_first_commands_do_what_stands_beside_them() {
    let home = empty_home();
    let shown = commands(&blocks("Two commands", "sh")[1], "nexus");
    let verbs: Vec<String> = shown.iter().map(|words| words.join(" ")).collect();
    assert_eq!(verbs, ["daemon start --detach", "send hello", "daemon status", "trace list"], "this test knows the four commands");
    let [start, send, status, trace] = shown.as_slice() else { panic!("{shown:?}") };
    run(&home, start);
    assert_eq!(run(&home, send).stdout.trim(), "hello", "one message, one answer");
    assert!(run(&home, status).stdout.starts_with("NEX Daemon: running"));
    let became = run(&home, trace).stdout;
    assert!(became.contains("completed") && became.contains("cli:"), "{became}");
    home.nexus_ok(&["daemon", "stop"]);
    home.nothing_runs();
}

/// A model behind an OpenAI-compatible address: it says that it heard what it was told last.
fn model() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/", listener.local_addr().unwrap());
    // It ends with the test's process.
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| answer(&stream)));
    url
}

fn answer(mut stream: &TcpStream) {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.trim().parse().unwrap(),
            Some(_) => {}
            None if line.trim_end().is_empty() => break,
            None => assert!(line.starts_with("POST /v1/chat/completions "), "{line}"),
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let asked: Value = serde_json::from_slice(&body).unwrap();
    let last = asked["messages"].as_array().and_then(|messages| messages.last()).unwrap();
    let event = |delta: Value, finish: Value| {
        let choice = json!({ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish });
        format!("data: {}\n\n", json!({ "id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice] }))
    };
    let text = format!("heard: {}", last["content"].as_str().unwrap());
    let said = event(json!({ "role": "assistant", "content": text }), Value::Null);
    let events = [said, event(json!({}), json!("stop")), "data: [DONE]\n\n".to_owned()].concat();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close";
    let reply = format!("{head}\r\ncontent-length: {}\r\n\r\n{events}", events.len());
    stream.write_all(reply.as_bytes()).unwrap();
}

/// Whether this program can be started here.
#[expect(clippy::print_stderr, reason = "what is skipped says so")]
fn has(name: &str) -> bool {
    let tried = program(name).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = tried.is_ok_and(|status| status.success());
    if !found {
        eprintln!("skipped in part: there is no {name} here");
    }
    found
}

/// Does what README does with its adapter, written in `language` and kept in this file.
fn adapter_in_20_lines(language: &str, file: &str, interpreter: &str, needs: &[&str]) {
    let home = empty_home();
    home.nexus_ok(&["daemon", "start", "--detach"]);
    let readme = blocks("A configuration", "yaml").remove(0);
    let config = readme.replace("python3 adapters/file.py", &format!("{interpreter} adapters/{file}"));
    assert!(config.contains(file), "{readme}");
    let code = blocks("An adapter in 20 lines", language).into_iter().find(|block| block.starts_with("#!")).unwrap();
    fs::create_dir(home.workspace().join("adapters")).unwrap();
    fs::write(home.workspace().join("adapters").join(file), code).unwrap();
    fs::write(home.config_file(), config).unwrap();
    let checked = home.nexus(&["config", "check"]);
    assert_eq!((checked.code, checked.stderr.as_str()), (Some(0), ""), "README's configuration is not clean");
    overlay(&home, &json!({ "daemon": { "port": 0 }, "agents": { "local": { "url": model() } } }));

    let (inbox, outbox) = (home.workspace().join("inbox.txt"), home.workspace().join("outbox.txt"));
    fs::write(&inbox, "").unwrap();
    let reloaded = home.nexus_ok(&["daemon", "reload"]);
    assert!(reloaded.contains("`file` added"), "{reloaded}");
    if !needs.iter().all(|name| has(name)) {
        let told = || Some(home.adapter("file/home")).filter(|entry| entry["last_error"].is_string());
        let entry = common::find("the missing program is told", told);
        assert_ne!(entry["status"], "running", "{entry}");
        return;
    }
    home.adapter_once("file/home", "running");
    let write = |text: &str| OpenOptions::new().append(true).open(&inbox).unwrap().write_all(text.as_bytes()).unwrap();
    write("hello\n");
    eventually("it is answered", || lines(&outbox) == ["heard: hello"]);
    // It reads the whole file again after each start, and that is fine.
    home.nexus_ok(&["adapter", "restart", "file/home"]);
    write("and \"again\"\n");
    eventually("what is new is answered, and nothing twice", || lines(&outbox) == ["heard: hello", "heard: and \"again\""]);
    assert_eq!(home.count("nexus", "SELECT count(*) FROM runs"), 2);
    assert_eq!(home.count("events", "SELECT count(*) FROM rejected_lines"), 0);
    home.nexus_ok(&["daemon", "stop"]);
    home.nothing_runs();
}

#[test]
fn the_adapter_in_python_brings_messages_and_sends_the_answers() {
    adapter_in_20_lines("python", "file.py", "python3", &["python3"]);
}

#[test]
fn the_adapter_in_a_shell_does_the_same() {
    let code = blocks("An adapter in 20 lines", "sh").into_iter().find(|block| block.starts_with("#!")).unwrap();
    assert!(code.contains("info)"), "{code}");
    if has("jq") {
        adapter_in_20_lines("sh", "file.sh", "sh", &["jq"]);
        return;
    }
    // Without jq it can at least introduce itself.
    let shown = program("sh").args(["-c", code.as_str(), "file.sh", "info"]).output().unwrap();
    let info: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&info["channel"], &info["supports"]), (&json!("file"), &json!(["monitor", "send"])));
}

/// Posts as the curl command of README does, to this address and under this id.
fn post(command: &[String], address: &str, id: &str) -> Response {
    let mut ask = Ask { method: "POST", path: "", host: "localhost", headers: Vec::new(), body: None };
    let mut words = command.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-H" => {
                let (name, value) = words.next().unwrap().split_once(": ").unwrap();
                let value = if name == "X-Request-Id" { id } else { value };
                ask.headers.push((name, value.to_owned()));
            }
            "-d" => ask.body = words.next().cloned(),
            url => ask.path = url.strip_prefix("http://127.0.0.1:7480").unwrap_or_else(|| panic!("{url}")),
        }
    }
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    http::exchange(Box::new(stream), &ask).unwrap()
}

#[test]
fn the_webhook_is_recorded_denied_and_with_a_policy_allowed() {
    let home = empty_home();
    home.nexus_ok(&["daemon", "start", "--detach"]);
    let [webhook, policy]: [String; 2] = blocks("A webhook", "yaml").try_into().unwrap();
    let shell = blocks("A webhook", "sh");
    let secret = home.nexus_told("s3cret", &["credential", "set", "ci/token"]);
    assert!(shell[0].contains("printf s3cret | nexus credential set ci/token") && secret.code == Some(0), "{secret:?}");

    let address = http::free_address();
    let bind = json!({ "webhook": { "accounts": { "deploys": { "config": { "bind": address } } } } });
    overlay(&home, &json!({ "daemon": { "port": 0 }, "adapters": bind }));
    fs::write(home.config_file(), &webhook).unwrap();
    home.nexus_ok(&["daemon", "reload"]);
    eventually("it listens", || TcpStream::connect(&address).is_ok());
    let curl = commands(&shell[1], "curl").remove(0);
    let answer = post(&curl, &address, "build-1");
    assert_eq!(answer.status, 200, "{answer:?}");
    let trace = commands(&shell[1], "nexus").pop().unwrap();
    assert_eq!(trace, ["trace", "webhook:deploys:build-1"]);
    eventually("the trace says denied", || home.ended("denied") == 1);
    assert!(run(&home, &trace).stdout.contains("denied"));

    fs::write(home.config_file(), webhook + &policy).unwrap();
    home.nexus_ok(&["daemon", "reload"]);
    assert_eq!(post(&curl, &address, "build-2").status, 200);
    eventually("the policy lets it in", || home.ended("completed") == 1);
    assert!(home.nexus_ok(&["trace", "webhook:deploys:build-2"]).contains("completed"));
    home.nexus_ok(&["daemon", "stop"]);
    home.nothing_runs();
}

/// Does a block of shell as it stands; what it printed.
fn shell(home: &Daemon, block: &str) -> String {
    // What comes behind the script is its name: the binary.
    let words = ["sh", "-eu", "-c", &format!("nexus() {{ \"$0\" \"$@\"; }}\n{block}")].map(str::to_owned);
    let done = home.command(&words).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{block}{}{}", text(&done.stdout), text(&done.stderr));
    text(&done.stdout)
}

#[test]
fn nostr_leads_from_nothing_to_an_answer() {
    const HEADING: &str = "From nothing to an answer";
    let home = empty_home();
    let address = http::free_address();
    let _relay = relays::Relay::start_at(&home.root().join("relay"), &address, &[]);
    let yaml = blocks_of(NOSTR, HEADING, "yaml").remove(0);
    assert!(yaml.contains("127.0.0.1:7410"), "the relay's own address: {yaml}");
    fs::write(home.config_file(), yaml.replace("127.0.0.1:7410", &address)).unwrap();
    let [start, key, ask, read]: [String; 4] = blocks_of(NOSTR, HEADING, "sh").try_into().unwrap();
    let verbs = commands(&start, "nexus");
    assert_eq!(verbs[0], ["nostr", "relay"], "this test has started it");
    run(&home, &verbs[1]);
    shell(&home, &key);
    eventually("the relay is live", || home.nexus_ok(&["nostr", "status"]).contains("live"));
    let asked = shell(&home, &ask);
    assert!(asked.contains("is prepared in") && asked.contains("helper: Helper"), "{asked}");
    eventually("it is answered", || home.ended("completed") == 1);
    eventually("the answer is read", || shell(&home, &read).contains("< hello"));
    home.nexus_ok(&["daemon", "stop"]);
}
