//! Automations: what their advice does, and what becomes of events when they throw, loop, eat memory or take the
//! process of all with them.
#![allow(clippy::unwrap_used)]

mod automation;
mod common;

use automation::{doing, put, report, sent, sent_in, text_of, triggers};
use common::loops::loop_platform;
use common::model::{Model, read, text};
use common::{Ask, Daemon, Signal, config, eventually, find, lines, send_signal};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};

/// A daemon with these automations, by file.
fn daemon_with(files: &[(&str, String)], wanted: &Value) -> Daemon {
    let mut daemon = Daemon::new();
    for (file, text) in files {
        put(&daemon, file, text);
    }
    daemon.configure(wanted);
    daemon.launch();
    daemon
}

fn pid(daemon: &Daemon, name: &str) -> u64 {
    find("the process runs", || report(daemon, name)["pid"].as_u64())
}

#[test]
fn without_automations_there_is_no_process_and_with_one_there_is_one() {
    let daemon = Daemon::start(&config(json!({})));
    assert_eq!(daemon.get("/control/automations").json(), json!({ "automations": [], "disabled": [] }));
    let running = "nexus_child_running{child=\"automations\"}";
    assert_eq!(daemon.metric(running), 0);
    for name in ["a", "b"] {
        put(&daemon, &format!("{name}.js"), &doing(name, "", &format!("return {{ enrich: '{name}' }};")));
    }
    daemon.nexus_ok(&["daemon", "reload"]);
    assert_eq!(pid(&daemon, "a"), pid(&daemon, "b"));
    assert_eq!(sent(&daemon, "hello")["text"], "a\n\nb\n\nhello");
    assert_eq!(daemon.metric(running), 1);
    for name in ["a", "b"] {
        daemon.nexus_ok(&["automation", "delete", name]);
    }
    eventually("the process ends with the last of them", || daemon.metric(running) == 0);
    assert_eq!(sent(&daemon, "hello")["text"], "hello");
}

#[test]
fn only_what_fits_is_asked() {
    let keys = |triggers: &str| format!("triggers: {triggers},");
    let files = [
        ("mail.js", doing("mail", &keys("{ event: { channels: ['mail'] } }"), "for (;;);")),
        ("system.js", doing("system", &keys("{ principal: { type: 'system' } }"), "for (;;);")),
        ("owner.js", doing("owner", &keys("{ principal: { type: 'owner' }, event: { types: ['text'] } }"), "return { enrich: 'yes' };")),
    ];
    let daemon = daemon_with(&files, &config(json!({})));
    assert_eq!(sent(&daemon, "hello")["text"], "yes\n\nhello");
    for name in ["mail", "system"] {
        assert_eq!(report(&daemon, name)["calls"], 0);
    }
    let found = triggers(&daemon);
    assert_eq!((&found["evaluated"], &found["results"][0]["automation"]), (&json!(1), &json!("owner")), "{found}");
    assert!(found["results"][0]["ms"].is_number() && found["results"][0].get("error").is_none(), "{found}");
}

#[test]
fn the_first_that_ends_it_is_the_last_that_is_asked() {
    let files = [
        ("a.js", doing("a", "", "return { enrich: 'x' };")),
        ("b.js", doing("b", "", "if (ctx.request.event.content === 'end') return { handled: true };")),
        ("c.js", doing("c", "", "return { reply: `${++calls}` };")),
    ];
    let daemon = daemon_with(&files, &config(json!({})));
    let end = sent(&daemon, "end");
    assert_eq!((&end["status"], &end["reason"]), (&json!("handled_by_automation"), &json!("automation:b")), "{end}");
    let end = sent(&daemon, "hello");
    assert_eq!((&end["status"], &end["text"]), (&json!("handled_by_automation"), &json!("1")), "{end}");
    let found = triggers(&daemon);
    assert_eq!((&found["handled_by"], &found["evaluated"]), (&json!("automation:c"), &json!(3)), "{found}");
    assert_eq!((daemon.count("nexus", "SELECT count(*) FROM runs"), daemon.deliveries("sent")), (0, 1));
    let request = text_of(&end, "request_id").to_owned();
    assert_eq!(daemon.texts("nexus", "SELECT idempotency_key FROM deliveries"), [format!("{request}:reply~c")]);
    assert_eq!(daemon.nexus(&["send", "hello"]).code, Some(0), "it was answered");
    let looked = daemon.nexus(&["doctor", "--json"]).stdout;
    assert!(looked.contains("findings") && !looked.contains("dlv_"), "a reply without a run is no broken record: {looked}");
}

#[test]
fn one_that_throws_loops_or_eats_memory_costs_nobody_their_answer() {
    let bodies = [
        ("throw new Error('boom');", "x.js:4:"),
        ("for (;;);", "took longer than 100 ms of JavaScript"),
        ("return (async () => { for (;;) await null; })();", "took longer than 100 ms of JavaScript"),
        ("const f = () => f() + 1; f();", "Maximum call stack size exceeded"),
        ("return new ArrayBuffer(2 ** 31 - 1);", "out of memory: more than 32 MB"),
        ("return { fired: true };", "unknown field `fired`"),
        ("return { fire: true, agent: 'nobody' };", "agent `nobody` is not configured"),
        ("return { state: 1 };", "give the automation one"),
        ("return ctx.nexus.send({ text: 'x' });", "automations: { grants: { x: [ \"send\" ] } }"),
        ("Array.prototype.reverse.call({ length: 2 ** 53 - 1 });", "neither ended in its time nor could be interrupted"),
    ];
    for (body, told) in bodies {
        let body = format!("if (ctx.request.event.content === 'bad') {{\n{body}\n}}");
        let files = [("x.js", doing("x", "", &body)), ("y.js", doing("y", "", "return { enrich: 'y' };"))];
        let daemon = daemon_with(&files, &config(json!({})));
        let end = sent(&daemon, "bad");
        assert_eq!((&end["status"], &end["text"]), (&json!("completed"), &json!("y\n\nbad")), "{body}: {end}");
        let found = triggers(&daemon);
        assert!(text_of(&found["results"][0], "error").contains(told), "{body}: {found}");
        assert_eq!((&report(&daemon, "x")["errors"], &report(&daemon, "y")["errors"]), (&json!(1), &json!(0)), "{body}");
        assert_eq!(sent(&daemon, "good")["text"], "y\n\ngood", "{body}");
    }
}

#[test]
fn its_circuit_opens_after_five_errors_and_a_good_answer_closes_it() {
    let throws = |more: &str| doing("x", "", &format!("{more}\nthrow new Error('boom');"));
    let mut daemon = daemon_with(&[("x.js", throws(""))], &config(json!({})));
    for n in 0..7 {
        assert_eq!(sent(&daemon, &n.to_string())["status"], "completed");
    }
    let found = report(&daemon, "x");
    assert_eq!((&found["calls"], &found["errors"], &found["circuit"]), (&json!(5), &json!(5), &json!("open")), "{found}");
    assert_eq!(daemon.metric(r#"nexus_automation_calls_total{automation="x",result="open"}"#), 2);
    let health = daemon.get("/health").json();
    assert_eq!(health["status"], "degraded");
    assert!(health["reasons"].to_string().contains("automation `x`: it is not asked after too many errors"), "{health}");
    daemon.stop();
    // The same with a time that passes within a test: half open, and closed by a good answer.
    let mut wanted = config(json!({}));
    wanted["plugins"]["circuit"] = json!({ "errors": 5, "half_open_ms": 100 });
    put(&daemon, "x.js", &throws("if (ctx.request.event.content === 'good') return;"));
    daemon.configure(&wanted);
    daemon.launch();
    eventually("it is open again", || {
        sent(&daemon, "x");
        report(&daemon, "x")["circuit"] != "closed"
    });
    eventually("it is no problem once its time is over, though no event comes", || {
        let found = report(&daemon, "x");
        found["circuit"] == "due" && found["problem"].is_null() && daemon.status()["health"] == "healthy"
    });
    eventually("it is closed", || {
        sent(&daemon, "good");
        report(&daemon, "x")["circuit"] == "closed"
    });
    eventually("all is well", || daemon.status()["health"] == "healthy");
}

#[test]
fn calls_that_the_process_takes_with_it_are_repeated_once() {
    let ask = "if (ctx.request.event.content !== ctx.config.on) return;
               return ctx.nexus.llm({ agent: 'small', prompt: ctx.config.on }).then(({ text }) => ({ enrich: text }));";
    let file = |name: &str| doing(name, &format!("config: {{ on: 'to {name}' }},"), ask);
    let replies = [String::new(), String::new(), text("openai", "again"), text("openai", "again")].to_vec();
    let model = Model::start(replies);
    let mut wanted = config(json!({}));
    wanted["agents"] = json!({ "default": "echo", "small": { "runner": "llm", "url": model.url(), "model": "m" } });
    wanted["automations"] = json!({ "grants": { "a": ["llm"], "b": ["llm"] } });
    let daemon = daemon_with(&[("a.js", file("a")), ("b.js", file("b"))], &wanted);
    let before = pid(&daemon, "a");
    let said = ["to a", "to b"].map(|text| daemon.open(&Ask::post("/control/send", &json!({ "text": text, "conversation": text }))));
    eventually("both wait for the model", || model.asked().len() == 2);
    send_signal(i32::try_from(before).unwrap(), Signal::KILL);
    eventually("both have ended", || daemon.ended("completed") == 2);
    drop(said);
    assert_ne!(pid(&daemon, "a"), before);
    let answers = daemon.texts("nexus", "SELECT content FROM deliveries ORDER BY content");
    assert_eq!(answers, ["again\n\nto a", "again\n\nto b"]);
    assert_eq!(model.asked().len(), 4);
    for name in ["a", "b"] {
        assert_eq!(report(&daemon, name)["errors"], 0, "{name}");
    }
}

#[test]
fn what_was_said_about_an_event_stands_across_a_crash() {
    let mut daemon = Daemon::new();
    let flag = daemon.file("flag");
    let body = "return { fire: true, agent: 'slow', context: 'look', state: { n: ctx.state.n + 1 } };";
    put(&daemon, "count.js", &doing("count", "state: { n: 0 },", body));
    let command = format!("sh -c 'cat >/dev/null; if [ -e {flag} ]; then echo done; else touch {flag}; sleep 1000; fi'");
    let mut wanted = config(json!({}));
    wanted["pipeline"] = json!({ "on_interrupted": "rerun" });
    wanted["agents"] = json!({ "default": "echo", "slow": { "runner": "command", "command": command } });
    daemon.configure(&wanted);
    daemon.launch();
    let asked = daemon.open(&Ask::post("/control/send", &json!({ "text": "hello" })));
    eventually("the agent runs", || fs::exists(&flag).unwrap());
    daemon.kill9();
    drop(asked);
    daemon.launch();
    eventually("the request ends", || daemon.ended("completed") == 1);
    let found = triggers(&daemon);
    assert_eq!((&found["results"][0]["repeated"], &found["fired_by"]), (&json!(true), &json!("count")), "{found}");
    assert_eq!(report(&daemon, "count")["state"], json!({ "n": 1 }));
    assert_eq!(report(&daemon, "count")["calls"], 0);
    sent(&daemon, "and another");
    assert_eq!(report(&daemon, "count")["state"], json!({ "n": 2 }));
}

#[test]
fn events_that_come_at_once_are_all_counted() {
    let body = "return { enrich: `${ctx.state.n}`, state: { n: ctx.state.n + 1 } };";
    let daemon = daemon_with(&[("count.js", doing("count", "state: { n: 0 },", body))], &config(json!({})));
    let asks: Vec<_> = (0..20).map(|n| json!({ "text": "x", "conversation": format!("c{n}") })).collect();
    let said: Vec<_> = asks.iter().map(|ask| daemon.open(&Ask::post("/control/send", ask))).collect();
    eventually("all have ended", || daemon.ended("completed") == 20);
    drop(said);
    assert_eq!(report(&daemon, "count")["state"], json!({ "n": 20 }));
    let answers = "SELECT count(DISTINCT content) FROM deliveries";
    assert_eq!(daemon.count("nexus", answers), 20, "each saw another state");
}

/// A model that answers when it is told to: the address of its listener is that of the agent `small`.
fn held() -> (TcpListener, Value) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut wanted = config(json!({}));
    let url = format!("http://{}/v1/", listener.local_addr().unwrap());
    wanted["agents"] = json!({ "default": "echo", "small": { "runner": "llm", "url": url, "model": "m" } });
    wanted["automations"] = json!({ "grants": { "x": ["llm"] } });
    (listener, wanted)
}

/// Takes what the model is asked; to be answered by [`answer`].
fn asked(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let mut socket = find("the model is asked", || listener.accept().ok()).0;
    socket.set_nonblocking(false).unwrap();
    read(&mut socket);
    socket
}

fn answer(mut socket: TcpStream) {
    socket.write_all(text("openai", "again").as_bytes()).unwrap();
}

const ASKS: &str = "return ctx.nexus.llm({ agent: 'small', prompt: 'p' }).then(() => ({ enrich: 'one', state: { n: ctx.state.n + 1 } }));";

#[test]
fn an_event_that_waited_is_for_the_version_that_came_meanwhile() {
    let (listener, wanted) = held();
    let daemon = daemon_with(&[("x.js", doing("x", "state: { n: 0 },", ASKS))], &wanted);
    let said = ["a", "b"].map(|text| daemon.open(&Ask::post("/control/send", &json!({ "text": text, "conversation": text }))));
    let socket = asked(&listener);
    let accepted = || daemon.count("events", "SELECT count(*) FROM events WHERE channel = 'cli' AND direction = 'inbound'");
    eventually("both are there", || accepted() == 2);
    put(&daemon, "x.js", &doing("x", "state: { n: 0 },", "return { enrich: `two ${ctx.state.n}` };"));
    daemon.nexus_ok(&["daemon", "reload"]);
    answer(socket);
    eventually("both have ended", || daemon.ended("completed") == 2);
    drop(said);
    let answers = daemon.texts("nexus", "SELECT substr(content, 1, 5) FROM deliveries ORDER BY content");
    assert_eq!(answers, ["one\n\n", "two 1"], "the version before ended what it had begun, and no event was left out");
    assert_eq!(report(&daemon, "x")["errors"], 0);
}

#[test]
fn what_is_said_while_it_is_deleted_is_forgotten_as_well() {
    let (listener, wanted) = held();
    let daemon = daemon_with(&[("x.js", doing("x", "state: { n: 0 },", ASKS))], &wanted);
    let said = daemon.open(&Ask::post("/control/send", &json!({ "text": "a" })));
    let socket = asked(&listener);
    fs::remove_file(daemon.workspace().join("state/automations/x.js")).unwrap();
    daemon.nexus_ok(&["daemon", "reload"]);
    std::thread::scope(|scope| {
        let forgotten = scope.spawn(|| daemon.post("/control/automations/x/forget", &json!({})).json());
        answer(socket);
        assert_eq!(forgotten.join().unwrap()["done"], "forgotten");
    });
    drop(said);
    eventually("the event ends", || daemon.ended("completed") == 1);
    for table in ["automations", "automation_results"] {
        assert_eq!(daemon.count("nexus", &format!("SELECT count(*) FROM {table}")), 0, "{table}");
    }
}

#[test]
fn a_state_that_cannot_be_read_is_told_and_stays() {
    let body = "return { enrich: `${ctx.state.n}`, state: { n: ctx.state.n + 1 } };";
    let mut daemon = daemon_with(&[("x.js", doing("x", "state: { n: 0 },", body))], &config(json!({})));
    assert_eq!(sent(&daemon, "a")["text"], "0\n\na");
    daemon.stop();
    let ledger = rusqlite::Connection::open(daemon.workspace().join("data/nexus.db")).unwrap();
    assert_eq!(ledger.execute("UPDATE automations SET state = '{\"n\":' WHERE name = 'x'", []).unwrap(), 1);
    drop(ledger);
    daemon.launch();
    assert_eq!(sent(&daemon, "b")["text"], "b", "it was not asked with what it knew at first");
    let found = triggers(&daemon);
    assert!(text_of(&found["results"][0], "error").starts_with("its state in nexus.db can't be read, and stays as it is: "), "{found}");
    assert_eq!(daemon.texts("nexus", "SELECT state FROM automations"), ["{\"n\":"]);
    assert_eq!(report(&daemon, "x")["state"], "{\"n\":", "a person can see it");
    let looked = daemon.nexus(&["doctor", "--json"]).stdout;
    assert!(looked.contains("automation(s) whose state can't be read (x)"), "{looked}");
}

#[test]
fn texts_that_are_too_long_together_are_told() {
    let long = |name: &str| (format!("{name}.js"), doing(name, "", "return { enrich: 'x'.repeat(200 * 1024) };"));
    let files = [long("a"), long("b")];
    let files: Vec<(&str, String)> = files.iter().map(|(file, text)| (file.as_str(), text.clone())).collect();
    let daemon = daemon_with(&files, &config(json!({})));
    assert_eq!(text_of(&sent(&daemon, "hello"), "text").len(), 200 * 1024 + "\n\nhello".len());
    let found = triggers(&daemon);
    assert_eq!((&found["results"][0]["did"], &found["results"][0]["error"]), (&json!(["enrich"]), &Value::Null));
    assert!(text_of(&found["results"][1], "error").starts_with("`enrich` is left out: "), "{}", found["results"]);
    assert!(found["results"][1].get("did").is_none(), "{}", found["results"]);
}

#[test]
fn one_that_disables_itself_does_so_once_whatever_comes_at_once() {
    let body = "return { enrich: 'once', disable: true };";
    let daemon = daemon_with(&[("once.js", doing("once", "", body))], &config(json!({})));
    let asks: Vec<_> = (0..10).map(|n| json!({ "text": "x", "conversation": format!("c{n}") })).collect();
    let said: Vec<_> = asks.iter().map(|ask| daemon.open(&Ask::post("/control/send", ask))).collect();
    eventually("all have ended", || daemon.ended("completed") == 10);
    drop(said);
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM deliveries WHERE content = 'once\n\nx'"), 1);
    assert_eq!(daemon.deliveries("sent"), 10);
}

#[test]
fn a_changed_file_is_loaded_anew_and_a_broken_one_leaves_the_one_before() {
    let version = |mark: &str| doing("x", "", &format!("return {{ enrich: {mark} }};"));
    let daemon = daemon_with(&[("x.ts", version("'one'"))], &config(json!({})));
    assert_eq!(sent(&daemon, "a")["text"], "one\n\na");
    let process = pid(&daemon, "x");
    put(&daemon, "x.ts", &version("'two'"));
    eventually("the new one answers", || sent(&daemon, "b")["text"] == "two\n\nb");
    put(&daemon, "x.ts", &version(""));
    daemon.nexus_ok(&["daemon", "reload"]);
    let told = text_of(&report(&daemon, "x"), "problem").to_owned();
    assert!(told.contains("its new version does not load") && told.contains("x.ts:3:"), "{told}");
    assert_eq!(sent(&daemon, "c")["text"], "two\n\nc");
    put(&daemon, "x.ts", &version("'three'"));
    daemon.nexus_ok(&["daemon", "reload"]);
    assert_eq!(sent(&daemon, "d")["text"], "three\n\nd");
    assert_eq!((pid(&daemon, "x"), report(&daemon, "x")["problem"].clone()), (process, Value::Null));
}

#[test]
fn nothing_can_be_replied_where_nothing_can_be_said() {
    let mut wanted = config(json!({}));
    wanted["timer"]["heartbeat_interval_ms"] = json!(1000);
    let daemon = daemon_with(&[("x.js", doing("x", "", "return { reply: 'hello' };"))], &wanted);
    eventually("it is told", || text_of(&report(&daemon, "x"), "last_error").contains("nothing can on the channel `timer`"));
    let ends = "SELECT DISTINCT reason FROM nexus_requests WHERE channel = 'timer' AND reason IS NOT NULL";
    eventually("the heartbeat ends as ever", || !daemon.texts("nexus", ends).is_empty());
    assert_eq!(daemon.texts("nexus", ends), ["timer: no policy routes this event to an agent"]);
}

#[test]
fn automations_are_registered_tested_disabled_and_deleted() {
    let mut daemon = Daemon::new();
    daemon.configure(&config(json!({})));
    let file = daemon.file("count.ts");
    let keys = "description: 'Counts', triggers: { event: { types: ['text'] } }, state: { n: 0 },";
    fs::write(&file, doing("count", keys, "return { enrich: `${ctx.state.n}`, state: { n: ctx.state.n + 1 } };")).unwrap();
    daemon.nexus_ok(&["automation", "register", &file]);
    assert!(daemon.nexus_ok(&["automation", "list"]).starts_with("count"));
    assert_eq!(daemon.nexus(&["automation", "register", &file]).code, Some(1), "there is one already");
    daemon.launch();
    assert_eq!(sent(&daemon, "x")["text"], "0\n\nx");
    let info = daemon.nexus_ok(&["automation", "info", "count"]);
    let line = |key: &str, text: &str| info.lines().any(|line| line.starts_with(key) && line.ends_with(text));
    assert!(line("description:", " Counts") && line("state:", r#" {"n":1}"#), "{info}");
    let event = json!({
        "event_id": "fake:1", "timestamp": 1, "content": "hello", "content_type": "image", "channel": "fake", "account_id": "me",
        "sender_id": "ann", "peer_id": "ann", "peer_kind": "dm",
    });
    let path = daemon.file("event.json");
    fs::write(&path, event.to_string()).unwrap();
    let told = daemon.nexus_ok(&["automation", "test", "count", "--event", &path]);
    assert!(told.contains(r#"{"enrich":"0","state":{"n":1}}"#) && told.contains("its triggers don't fit"), "{told}");
    assert_eq!(report(&daemon, "count")["state"], json!({ "n": 1 }), "a test changes nothing");
    fs::copy(&file, daemon.workspace().join("state/elsewhere.ts")).unwrap();
    let elsewhere = daemon.post("/control/automations/..%2Felsewhere/test", &json!({ "event": event }));
    assert!(elsewhere.body.contains("can't be used"), "a name is no path: {}", elsewhere.body);
    daemon.nexus_ok(&["automation", "disable", "count"]);
    assert_eq!(sent(&daemon, "x")["text"], "x");
    assert!(daemon.nexus_ok(&["automation", "list"]).contains("disabled"));
    daemon.nexus_ok(&["automation", "enable", "count"]);
    assert_eq!(sent(&daemon, "x")["text"], "1\n\nx");
    fs::write(&file, "export const automation = { name: 'count' };\n").unwrap();
    let refused = daemon.nexus(&["automation", "register", "--replace", &file]);
    assert!(refused.code == Some(1) && refused.stderr.contains("`automation.handler` must be a function"), "{refused:?}");
    assert_eq!(sent(&daemon, "x")["text"], "2\n\nx", "the one before goes on");
    daemon.nexus_ok(&["automation", "delete", "count"]);
    assert_eq!(sent(&daemon, "x")["text"], "x");
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM automations"), 0, "what it knew is gone");
    for verb in ["enable", "disable", "delete", "info"] {
        assert_eq!(daemon.nexus(&["automation", verb, "count"]).code, Some(4), "{verb}");
    }
}

#[test]
fn a_stop_leaves_nothing_of_them_and_what_they_say_is_logged() {
    let body = "console.warn('seen', ctx.request.event.content);";
    let mut daemon = daemon_with(&[("x.js", doing("x", "", body))], &config(json!({})));
    sent_in(&daemon, "c", "hello");
    eventually("it is logged", || daemon.stdout().contains("seen hello"));
    daemon.stop();
    daemon.nothing_runs();
    assert!(lines(daemon.workspace().join("state/automations/x.js")).len() > 1, "the file is a person's");
}

#[test]
fn one_that_answers_its_own_messages_is_stopped() {
    let mut daemon = Daemon::new();
    let (script, said) = (daemon.workspace().join("loop.sh"), daemon.workspace().join("said"));
    fs::write(&script, loop_platform("bot", r#"echo "$text" >> said"#)).unwrap();
    fs::write(&said, "1\n").unwrap();
    let next = "const text = `${Number(ctx.request.event.content) + 1}`;\nreturn ctx.nexus.send({ text }).then(() => ({ handled: true }));";
    put(&daemon, "counts.js", &doing("counts", "", next));
    let mut wanted = config(json!({ "loop": { "command": "sh loop.sh", "accounts": { "me": {} } } }));
    wanted["access"]["owner"] = json!(["loop:*"]);
    wanted["automations"] = json!({ "grants": { "counts": ["send"] } });
    daemon.configure(&wanted);
    daemon.launch();
    let stopped = "SELECT count(*) FROM nexus_requests WHERE reason LIKE 'breaker: what plugins or automations sent came back%'";
    // The first one is a person's; of those that come back five pass.
    eventually("it is stopped", || daemon.count("nexus", stopped) == 1);
    assert_eq!(lines(&said), ["1", "2", "3", "4", "5", "6", "7"]);
    assert_eq!(report(&daemon, "counts")["calls"], 6);
    // Another message closes the breaker.
    fs::OpenOptions::new().append(true).open(&said).unwrap().write_all(b"100\n").unwrap();
    eventually("it is stopped again", || daemon.count("nexus", stopped) == 2);
    assert_eq!(lines(&said)[7..], ["100", "101", "102", "103", "104", "105", "106"]);
}
