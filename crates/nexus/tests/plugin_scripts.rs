//! Scripts as plugins of a real daemon: what they change, what they may ask for, and what becomes of one
//! that can't be loaded or never ends.
#![allow(clippy::unwrap_used)]

mod common;

use common::model::{Model, reply};
use common::{Ask, Daemon, config, eventually, fake, replace};
use serde_json::{Value, json};
use std::fs;

const REDACT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/examples/plugins/redact.ts");

/// The answer to a message, once its request has ended.
fn sent(daemon: &Daemon, text: &str) -> Value {
    daemon.open(&Ask::post("/control/send", &json!({ "text": text }))).body.end()
}

/// Puts a file among the plugins.
fn script(daemon: &Daemon, file: &str, text: &str) {
    let directory = daemon.workspace().join("plugins");
    fs::create_dir_all(&directory).unwrap();
    replace(&directory.join(file), text);
}

fn with(names: &[&str], grants: &Value) -> Value {
    let mut wanted = config(json!({}));
    wanted["plugins"] = json!({ "enabled": names, "grants": grants });
    wanted
}

/// A daemon with one script, `plugins/NAME.js` or `.ts`.
fn daemon_with(file: &str, text: &str, grants: &Value) -> Daemon {
    let mut daemon = Daemon::new();
    script(&daemon, file, text);
    let (name, _) = file.split_once('.').unwrap();
    daemon.configure(&with(&[name], grants));
    daemon.launch();
    daemon
}

/// How a plugin is, by the daemon's word.
fn report(daemon: &Daemon, name: &str) -> Value {
    let all = daemon.get("/control/plugins").json();
    all["plugins"].as_array().unwrap().iter().find(|one| one["name"] == name).cloned().unwrap_or(Value::Null)
}

fn text_of<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

#[test]
fn the_example_of_the_page_runs() {
    let daemon = daemon_with("redact.ts", &fs::read_to_string(REDACT).unwrap(), &json!({ "redact": ["search"] }));
    eventually("it runs", || report(&daemon, "redact")["status"] == "running");
    let found = report(&daemon, "redact");
    assert_eq!((&found["kind"], &found["priority"]), (&json!("script"), &json!(50)), "{found}");
    assert_eq!(found["hooks"], json!(["afterReceiveEvent", "afterAssembleContext", "onFinalize"]));
    let end = sent(&daemon, "pay with 4111 1111 1111 1111 please");
    assert_eq!(end["text"], "pay with [card number] please", "{end}");
    eventually("it was told of the end", || report(&daemon, "redact")["calls"].as_u64().is_some_and(|calls| calls >= 3));
    let found = report(&daemon, "redact");
    assert_eq!((&found["errors"], &found["ignored"]), (&json!(0), &json!(0)), "{found}");
}

#[test]
fn the_example_lets_through_what_has_no_text_by_its_nature() {
    let mut daemon = Daemon::new();
    script(&daemon, "redact.ts", &fs::read_to_string(REDACT).unwrap());
    let event = |id: &str, kind: &str, attachments: Value| {
        let event = json!({
            "event_id": format!("fake:{id}"), "timestamp": 1, "content": "", "content_type": kind, "channel": "fake", "account_id": "me",
            "sender_id": "u1", "peer_id": id, "peer_kind": "dm", "attachments": attachments,
        });
        format!("{event}\n")
    };
    let picture = json!([{ "id": "a1", "filename": "cat.png", "content_type": "image/png" }]);
    let all = [event("blank", "text", json!([])), event("picture", "image", picture.clone()), event("attached", "text", picture)];
    let file = daemon.file("lines");
    fs::write(&file, all.concat()).unwrap();
    let mut wanted = with(&["redact"], &json!({ "redact": ["search"] }));
    wanted["adapters"] = json!({ "fake": fake(json!({ "lines_file": file, "events": 0 })) });
    wanted["timer"] = json!({ "heartbeat_interval_ms": 1000 });
    wanted["access"]["policies"] = json!([{
        "name": "beat", "match": { "principal": { "type": "system" } }, "effect": "allow", "session": { "agent": "echo", "key": "beat" },
    }]);
    daemon.configure(&wanted);
    daemon.launch();
    let ended = |channel: &str| {
        daemon.count("nexus", &format!("SELECT count(*) FROM nexus_requests WHERE completed_at IS NOT NULL AND channel = '{channel}'"))
    };
    eventually("the messages and a heartbeat have an end", || ended("fake") == 3 && ended("timer") > 0);
    let skipped = "SELECT event_id FROM nexus_requests WHERE reason = 'plugin:redact'";
    assert_eq!(daemon.texts("nexus", skipped), ["fake:blank"]);
    assert!(daemon.count("nexus", "SELECT count(*) FROM runs WHERE session LIKE 'system:%'") > 0, "a heartbeat reached its agent");
    let found = report(&daemon, "redact");
    assert_eq!(found["errors"], 0, "{found}");
}

#[test]
fn a_skip_of_a_script_ends_the_request() {
    let text = "export const plugin = { name: 'spam', afterReceiveEvent(req) { if (req.event.content === 'spam') return 'skip'; } };";
    let daemon = daemon_with("spam.js", text, &json!({}));
    let end = sent(&daemon, "spam");
    assert_eq!((&end["status"], &end["reason"]), (&json!("handled_by_automation"), &json!("plugin:spam")), "{end}");
    assert_eq!(sent(&daemon, "no such thing")["text"], "no such thing");
}

#[test]
fn a_script_is_given_the_sections_that_it_declares_and_nothing_else() {
    let text = "export const plugin = { name: 'part', sections: ['event', 'status'], afterReceiveEvent(req) {\n\
                req.event.content = `${Object.keys(req).sort().join()}: ${typeof req.status}`;\n} };";
    let daemon = daemon_with("part.js", text, &json!({}));
    assert_eq!(sent(&daemon, "hello")["text"], "event,reason,request_id,status: string");
    assert_eq!(report(&daemon, "part")["sections"], json!(["event", "status"]));
}

#[test]
fn to_enable_what_does_not_load_is_a_failure_that_names_the_place() {
    let mut daemon = Daemon::new();
    script(&daemon, "bad.js", "export const plugin = {\n  name: 'bad',\n  onFinalize() { return (; },\n};\n");
    daemon.configure(&config(json!({})));
    daemon.launch();
    let told = daemon.nexus(&["plugin", "enable", "bad"]);
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.stdout.contains("enabled bad") && told.stderr.contains("bad.js:3:"), "{told:?}");
    daemon.nexus_ok(&["plugin", "disable", "bad"]);
}

#[test]
fn a_version_with_a_mistake_is_told_with_its_place_and_the_one_before_goes_on() {
    let text = |mark: &str| {
        let hook = format!("afterReceiveEvent(req) {{ req.event.content += {mark}; }}");
        format!("export const plugin = {{\n  name: 'mark',\n  {hook},\n}};\n")
    };
    let daemon = daemon_with("mark.ts", &text("'!'"), &json!({}));
    assert_eq!(sent(&daemon, "one")["text"], "one!");
    script(&daemon, "mark.ts", &text(""));
    daemon.nexus_ok(&["daemon", "reload"]);
    let problem = || text_of(&report(&daemon, "mark"), "problem").to_owned();
    eventually("it is told", || problem().contains("its new version does not load"));
    let told = problem();
    let place = told.split_once("mark.ts:3:").map(|(_, rest)| rest.split(':').next().unwrap_or_default().to_owned());
    assert!(place.is_some_and(|column| column.parse::<u32>().is_ok()), "{told}");
    assert_eq!(sent(&daemon, "two")["text"], "two!");
    script(&daemon, "mark.ts", &text("'?'"));
    daemon.nexus_ok(&["daemon", "reload"]);
    eventually("the new version answers", || sent(&daemon, "three")["text"] == "three?");
    assert_eq!(problem(), "");
}

#[test]
fn one_that_loops_or_eats_memory_costs_a_message_its_plugin_and_nothing_more() {
    // How a loop is ended depends on how busy the machine is.
    let bodies = [("for (;;);", ""), ("new ArrayBuffer(2 ** 31 - 1);", "out of memory: more than 64 MB")];
    for (body, told) in bodies {
        let text = format!(
            "export const plugin = {{ name: 'greedy', afterReceiveEvent(req) {{\n\
             if (req.event.content === 'bad') {{ {body} }}\n\
             req.event.content += '!';\n}} }};"
        );
        let daemon = daemon_with("greedy.js", &text, &json!({}));
        assert_eq!(sent(&daemon, "one")["text"], "one!", "{body}");
        let end = sent(&daemon, "bad");
        assert_eq!((&end["status"], &end["text"]), (&json!("completed"), &json!("bad")), "{body}: {end}");
        let found = report(&daemon, "greedy");
        assert!(found["errors"] == 1 && text_of(&found, "last_error").contains(told), "{body}: {found}");
        eventually("it answers again", || sent(&daemon, "two")["text"] == "two!");
    }
}

#[test]
fn metadata_that_pollutes_reaches_a_script_as_plain_data() {
    // The classic mistake: a merge that follows every key.
    let text = "const merge = (into, from) => { for (const key in from) {\n\
                if (typeof from[key] === 'object' && key in into) merge(into[key], from[key]); else into[key] = from[key];\n} };\n\
                export const plugin = { name: 'merge', afterReceiveEvent(req) {\n\
                const metadata = req.event.metadata ?? {};\n\
                let caught = 'nothing';\n\
                try { merge({}, metadata); } catch (error) { caught = error.name; }\n\
                req.event.content = `${caught} ${typeof {}.isAdmin} [${Object.keys(metadata)}]`;\n} };";
    let mut daemon = Daemon::new();
    script(&daemon, "merge.js", text);
    let event = json!({
        "event_id": "fake:1", "timestamp": 1, "content": "hello", "content_type": "text", "channel": "fake", "account_id": "me",
        "sender_id": "u1", "peer_id": "p1", "peer_kind": "dm", "metadata": { "__proto__": { "isAdmin": true } },
    });
    let file = daemon.file("lines");
    fs::write(&file, format!("{event}\n")).unwrap();
    let mut wanted = with(&["merge"], &json!({}));
    wanted["adapters"] = json!({ "fake": fake(json!({ "lines_file": file, "events": 0 })) });
    daemon.configure(&wanted);
    daemon.launch();
    let said = || daemon.texts("agents", "SELECT content FROM messages WHERE role = 'assistant'");
    eventually("the event is answered", || !said().is_empty());
    assert_eq!(said(), ["TypeError undefined [__proto__]"]);
    assert_eq!(sent(&daemon, "and now")["text"], "nothing undefined []");
    assert_eq!(report(&daemon, "merge")["errors"], 0);
}

#[test]
fn a_hook_that_always_fails_is_left_out_and_the_others_go_on() {
    let text = "export const plugin = { name: 'mixed',\n\
                afterReceiveEvent(req) { req.event.content += '!'; },\n\
                afterAssembleContext() { throw new Error('boom'); } };";
    let daemon = daemon_with("mixed.js", text, &json!({}));
    for n in 0..5 {
        let end = sent(&daemon, &n.to_string());
        assert_eq!((&end["status"], &end["text"]), (&json!("completed"), &json!(format!("{n}!"))), "{end}");
        let open = report(&daemon, "mixed")["open_at"].clone();
        assert_eq!(open, if n == 4 { json!(["afterAssembleContext"]) } else { json!([]) }, "after {n}");
    }
    for n in 0..3 {
        assert_eq!(sent(&daemon, &n.to_string())["text"], format!("{n}!"), "the other hook is called still");
    }
    let found = report(&daemon, "mixed");
    assert_eq!((&found["circuit"], &found["calls"], &found["errors"]), (&json!("open"), &json!(13), &json!(5)), "{found}");
    let named = "it is not asked at `afterAssembleContext` after too many errors in a row, the last: it failed: ";
    let health = daemon.get("/health").json();
    assert_eq!(health["status"], "degraded");
    assert!(health["reasons"].to_string().contains(&format!("plugin `mixed`: {named}")), "{health}");
    assert!(daemon.nexus_ok(&["plugin", "list"]).contains(named));
    let info = daemon.nexus_ok(&["plugin", "info", "mixed"]);
    assert!(info.lines().any(|line| line.starts_with("open_at:") && line.ends_with(" afterAssembleContext")), "{info}");
}

#[test]
fn to_be_granted_the_log_changes_nothing() {
    let text = "export const plugin = { name: 'says', afterReceiveEvent(req) { console.warn('seen'); req.event.content += '!'; } };";
    let daemon = daemon_with("says.js", text, &json!({ "says": ["log"] }));
    assert_eq!(sent(&daemon, "one")["text"], "one!");
    let found = report(&daemon, "says");
    assert_eq!((&found["grants"], &found["timeout_ms"], &found["errors"]), (&json!(["log"]), &json!(3000), &json!(0)), "{found}");
}

#[test]
fn the_ledger_answers_only_who_is_granted_it_and_a_reload_grants_it() {
    let text = "export const plugin = { name: 'counts', async afterReceiveEvent(req) {\n\
                const { rows } = await nexus.ledger.query('SELECT count(*) FROM events WHERE channel = ?1', [req.event.channel]);\n\
                req.event.content = `${rows[0][0]}`;\n} };";
    let daemon = daemon_with("counts.js", text, &json!({}));
    assert_eq!(sent(&daemon, "how many")["text"], "how many");
    let error = text_of(&report(&daemon, "counts"), "last_error").to_owned();
    assert!(error.contains("`ledger.query` is not granted to plugin `counts`") && error.contains("counts.js:2:"), "{error}");
    daemon.configure(&with(&["counts"], &json!({ "counts": ["ledger.query"] })));
    daemon.nexus_ok(&["daemon", "reload"]);
    let end = sent(&daemon, "how many now");
    assert!(text_of(&end, "text").parse::<u64>().is_ok_and(|count| count >= 1), "{end}");
    daemon.configure(&with(&["counts"], &json!({})));
    daemon.nexus_ok(&["daemon", "reload"]);
    assert_eq!(sent(&daemon, "and now")["text"], "and now");
}

#[test]
fn a_script_fetches_from_the_host_that_it_is_granted_and_from_no_other() {
    let text = "export const plugin = { name: 'asks', async afterReceiveEvent(req) {\n\
                try {\n\
                const { status, headers, body } = await nexus.fetch(req.event.content, { method: 'POST', body: '{\"n\":1}' });\n\
                req.event.content = `${status} ${headers.location} ${body}`;\n\
                } catch (error) { req.event.content = error.message; }\n} };";
    let other = Model::start(vec![reply("200 OK", "", "the other one")]);
    let location = format!("location: {}\r\n", other.url());
    let server = Model::start(vec![reply("200 OK", "", "here you are"), reply("302 Found", &location, "elsewhere")]);
    let host = |url: &str| url.trim_start_matches("http://").split('/').next().unwrap().to_owned();
    let daemon = daemon_with("asks.js", text, &json!({ "asks": [format!("fetch:{}", host(&server.url()))] }));
    assert_eq!(sent(&daemon, &server.url())["text"], "200 undefined here you are");
    let asked = server.asked();
    assert!(asked.len() == 1 && asked[0].0.starts_with("post /v1/ ") && asked[0].1 == json!({ "n": 1 }), "{asked:?}");
    // The address that a redirect names is told to the script, and asked by nobody.
    assert_eq!(sent(&daemon, &server.url())["text"], format!("302 {} elsewhere", other.url()));
    // Another port, and the same place by another name.
    for url in [other.url(), server.url().replace("127.0.0.1", "localhost")] {
        let end = sent(&daemon, &url);
        let why = format!("`fetch:{}` is not granted to plugin `asks`", host(&url));
        assert!(text_of(&end, "text").contains(&why), "{end}");
    }
    assert_eq!((other.asked().len(), server.asked().len()), (0, 2));
    assert_eq!(report(&daemon, "asks")["errors"], 0);
}

#[test]
fn what_a_script_changes_where_it_is_only_told_is_refused() {
    let text = "export const plugin = { name: 'late', onFinalize(req) { req.response.content = 'other'; } };";
    let daemon = daemon_with("late.js", text, &json!({}));
    assert_eq!(sent(&daemon, "hello")["text"], "hello");
    eventually("it is told", || report(&daemon, "late")["errors"] == 1);
    let error = text_of(&report(&daemon, "late"), "last_error").to_owned();
    assert!(error.contains("its patch was refused") && error.contains("onFinalize"), "{error}");
}

#[test]
fn a_script_sees_the_turn_that_the_run_is_recorded_as() {
    let text = "export const plugin = { name: 'turn', afterRunAgent(req) { req.response.content = req.agent.turn_id; } };";
    let daemon = daemon_with("turn.js", text, &json!({}));
    let end = sent(&daemon, "hello");
    eventually("the turn is recorded", || daemon.texts("agents", "SELECT turn_id FROM turns") == [text_of(&end, "text")]);
}

#[test]
fn a_long_text_reaches_a_script_whole() {
    let text = "export const plugin = { name: 'long', afterReceiveEvent(req) { req.event.content = `${req.event.content.length}`; } };";
    let daemon = daemon_with("long.js", text, &json!({}));
    assert_eq!(sent(&daemon, &"x".repeat(200_000))["text"], "200000");
}
