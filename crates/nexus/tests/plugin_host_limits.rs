//! What a plugin and a request may try with the host of plugins: endless loops, memory, recursion, pollution,
//! floods, garbage. It ends that call and no more, and nothing gets out or stays behind.
#![allow(clippy::unwrap_used)]

mod common;
mod host;

use common::DEADLINE;
use host::{HOOK, Host, LINE_OUT_BYTES_MAX, QUICK, SLOW, refused, request, with_content};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::process::ExitStatusExt;

/// Longest line that the host reads.
const LINE_IN_BYTES_MAX: usize = 16 * 1024 * 1024;

#[test]
fn calls_belong_to_hooks_that_run_and_have_bounds() {
    let fatal = refused("x.js", "await nexus.send({ text: 'x' });\nexport const plugin = { name: 'x', onFinalize() {} };\n");
    assert!(fatal["message"].as_str().unwrap().contains("only possible while a hook runs"), "{fatal}");

    let big = "x".repeat(LINE_OUT_BYTES_MAX);
    let mut host = Host::doing("return nexus.send({ text: req.event.content });");
    let answer = host.ask(1, &with_content(&big));
    assert!(answer["error"].as_str().unwrap().starts_with("the parameters of `nexus.send` have"), "{answer}");

    let mut host = Host::doing("return Promise.all(Array.from({ length: 65 }, () => nexus.send({ text: 'x' })));");
    host.call(1, HOOK, &request());
    let frames: Vec<Value> = (0..65).map(|_| host.next()).collect();
    assert!(frames[..64].iter().all(|frame| frame["method"] == "send"), "{frames:?}");
    assert_eq!(frames[64]["error"], "64 calls wait for their answers already; await some");
}

#[test]
fn what_never_ends_is_ended_and_the_next_call_works() {
    let bodies = [
        "for (;;);",
        "for (;;) { try { for (;;); } catch {} finally { continue; } }",
        "return (async () => { for (;;) await null; })();",
        "return Promise.resolve().then(() => { for (;;); });",
        "/(a+)+$/.test('a'.repeat(40) + 'b');",
    ];
    for body in bodies {
        let mut host = Host::doing_with(&format!("if (req.event.content === 'count') {{ req.n = ++calls; return; }}\n{body}"), &QUICK);
        assert_eq!(host.ask(1, &with_content("count"))["patch"]["n"], 1, "{body}");
        assert_eq!(host.ask_fails(2), "took longer than 500 ms of JavaScript; the plugin begins anew, without its state", "{body}");
        assert_eq!(host.ask(3, &with_content("count"))["patch"]["n"], 1, "{body}: the state is not gone");
        host.finish();
    }
}

#[test]
fn what_a_hook_leaves_running_is_ended_as_well() {
    let mut host = Host::doing_with("req.n = ++calls; if (calls === 2) { const spin = () => queueMicrotask(spin); spin(); }", &QUICK);
    for (id, n) in [(1, 1), (2, 2), (3, 1)] {
        assert_eq!(host.ask(id, &request()), json!({ "id": id, "patch": { "n": n } }));
    }
    host.finish();
}

#[test]
fn the_deadline_of_a_call_counts_as_well() {
    let mut host = Host::doing("for (;;);");
    host.send(&json!({ "id": 1, "hook": HOOK, "request": request(), "deadline_ms": 50 }));
    assert!(host.next()["error"].as_str().unwrap().starts_with("took longer than 50 ms"));
}

#[test]
fn others_that_wait_are_told_when_it_begins_anew() {
    let mut host = Host::doing_with("if (req.event.content === 'loop') for (;;);\nreturn nexus.search({ query: 'x', limit: 1 });", &QUICK);
    host.call(1, HOOK, &request());
    assert_eq!(host.next()["call"], 1);
    host.call(2, HOOK, &with_content("loop"));
    assert!(host.next()["error"].as_str().unwrap().starts_with("took longer"));
    let other = host.next();
    assert!(other["id"] == 1 && other["error"].as_str().unwrap().starts_with("the plugin began anew"), "{other}");
    assert_eq!(other["taken_along"], true, "it is the fault of another call: {other}");
    // The answer to a call of the runtime that is gone goes nowhere, and its number isn't used again.
    host.call(3, HOOK, &request());
    assert_eq!(host.next()["call"], 2);
    host.send(&json!({ "call": 1, "result": "skip" }));
    host.send(&json!({ "call": 2, "result": "skip" }));
    assert_eq!(host.next(), json!({ "id": 3, "result": "skip" }));
}

#[test]
fn what_is_nested_deeply_does_not_end_the_process() {
    let nested = |open: &str, close: &str, deep: usize| {
        format!("const a = {}1{};\nexport const plugin = {{ name: 'x', onFinalize() {{}} }};\n", open.repeat(deep), close.repeat(deep))
    };
    let fatal = refused("x.ts", &nested("(() =>", ")", 100_000));
    assert!(fatal["message"].as_str().unwrap().contains("brackets are within each other"), "{fatal}");
    // The parser gets through, and the engine has a bound of its own.
    let fatal = refused("x.ts", &nested("a => ", "", 20_000));
    assert!(fatal["message"].as_str().unwrap().contains("call stack size exceeded"), "{fatal}");
    Host::ready("x.ts", &nested("[", "]", 200), &[]).finish();
}

#[test]
fn a_plugin_that_never_gets_loaded_is_refused() {
    let fatal = Host::start("x.js", "for (;;);\n", &QUICK).refused();
    assert!(fatal["message"].as_str().unwrap().starts_with("took longer than 500 ms"), "{fatal}");
    let fatal = refused("x.js", "export const hoard = new ArrayBuffer(2 ** 31 - 1);\n");
    assert!(fatal["message"].as_str().unwrap().contains("out of memory"), "{fatal}");
}

#[test]
fn what_needs_too_much_memory_fails_and_the_next_call_works() {
    let bodies = [
        "new ArrayBuffer(2 ** 31 - 1);",
        "'x'.repeat(2 ** 29);",
        "const all = []; for (;;) all.push(new Array(1000).fill(calls));",
        "globalThis.all = []; for (;;) globalThis.all.push({ a: [calls], b: 'x' + globalThis.all.length });",
        "return (async () => { await null; return new ArrayBuffer(2 ** 31 - 1); })();",
    ];
    for body in bodies {
        let source = format!("if (req.event.content === 'count') {{ req.n = ++calls; return; }}\n{body}");
        let mut host = Host::doing_with(&source, &[SLOW[0], SLOW[1], "--memory-mb", "32"]);
        assert_eq!(host.ask(1, &with_content("count"))["patch"]["n"], 1, "{body}");
        assert_eq!(host.ask_fails(2), "out of memory: more than 32 MB; the plugin begins anew, without its state", "{body}");
        assert_eq!(host.ask(3, &with_content("count"))["patch"]["n"], 1, "{body}: the state is not gone");
        host.finish();
    }
}

#[test]
fn deep_recursion_fails_alone() {
    let mut host = Host::doing("req.n = ++calls; if (calls === 1) { const f = () => f() + 1; f(); }");
    assert_eq!(host.ask_fails(1), "RangeError: Maximum call stack size exceeded");
    assert_eq!(host.ask(2, &request()), json!({ "id": 2, "patch": { "n": 2 } }));
    host.finish();
}

#[test]
fn what_can_not_be_interrupted_ends_the_process() {
    let mut host = Host::doing_with("Array.prototype.reverse.call({ length: 2 ** 53 - 1 });", &QUICK);
    host.call(1, HOOK, &request());
    assert!(host.wait().signal().is_some());
    let said = host.stderr.recv_timeout(DEADLINE).unwrap();
    assert!(said.contains("could be interrupted; the process ends"), "{said}");
}

#[test]
fn no_request_pollutes_what_later_calls_see() {
    // The classic mistake: a merge that follows every key.
    let merge = "const merge = (into, from) => { for (const key in from) {
                   if (typeof from[key] === 'object' && key in into) merge(into[key], from[key]); else into[key] = from[key];
                 } return into; };
                 try { merge({}, req.event.metadata); } catch (error) { req.caught = error.name; }
                 req.seen = [typeof {}.isAdmin, String({}), Object.keys(req.event.metadata).join()].join(' ');";
    let polluted = |metadata: &str| {
        let line = r#"{"id":1,"hook":"afterReceiveEvent","request":{"event":{"metadata":METADATA}}}"#;
        line.replace("METADATA", metadata)
    };
    let cases = [
        (r#"{"__proto__":{"isAdmin":true}}"#, "__proto__"),
        (r#"{"constructor":{"prototype":{"isAdmin":true}}}"#, "constructor"),
        (r#"{"__proto__":{"toString":"x"}}"#, "__proto__"),
    ];
    for (metadata, keys) in cases {
        let mut host = Host::doing(merge);
        host.say(polluted(metadata).as_bytes());
        let patch = json!({ "caught": "TypeError", "seen": format!("undefined [object Object] {keys}") });
        assert_eq!(host.next(), json!({ "id": 1, "patch": patch }), "{metadata}");
    }
    // As plain data it stays what it is, and is no change.
    let mut host = Host::doing("if ({}.isAdmin || req.isAdmin) return 'skip';");
    host.say(polluted(cases[0].0).as_bytes());
    assert_eq!(host.next(), json!({ "id": 1, "result": "continue" }));
}

#[test]
fn no_plugin_changes_the_language_for_later_calls() {
    let attempts = [
        "Object.prototype.x = 1",
        "Array.prototype.push = null",
        "Object.prototype.toString = null",
        "Promise.prototype.then = null",
        "JSON.stringify = () => '{}'",
        "Object.defineProperty(Map.prototype, 'get', { value: null })",
        "Object.getPrototypeOf(async () => {}).x = 1",
        "Error.prototype.name = 'x'",
        "nexus.send = null",
        "console = null",
    ];
    for attempt in attempts {
        let mut host = Host::doing(&format!("try {{ {attempt}; req.done = true; }} catch (error) {{ req.caught = error.name; }}"));
        assert_eq!(host.ask(1, &request()), json!({ "id": 1, "patch": { "caught": "TypeError" } }), "{attempt}");
    }
    // What is legal stays so.
    let mut host = Host::doing(
        "class Mine extends Error { constructor() { super('m'); this.name = 'Mine'; } }
         const o = {}; o.toString = () => 'o'; o.constructor = 1;
         const counts = {}; for (const word of ['valueOf', 'constructor']) counts[word] = 1;
         globalThis.own = 1;
         req.seen = [new Mine().name, `${o}`, Object.keys(counts).join(), JSON.stringify(new Date(0)), [3, 1].sort().join('')].join(' ');",
    );
    assert_eq!(host.ask(1, &request())["patch"]["seen"], "Mine o valueOf,constructor \"1970-01-01T00:00:00.000Z\" 13");
}

#[test]
fn there_is_no_way_to_files_the_network_or_processes() {
    let mut host = Host::doing(
        "const names = ['fetch', 'std', 'os', 'process', 'require', 'Deno', 'Bun', 'setTimeout', 'Worker', 'WebAssembly', 'XMLHttpRequest', 'scriptArgs', 'print'];
         req.found = names.filter((name) => typeof globalThis[name] !== 'undefined');
         return Promise.all(['fs', 'std', '/etc/passwd', './y.js'].map((name) => import(name).then(() => name, () => null)))
           .then((imported) => { req.imported = imported.filter((name) => name !== null); });",
    );
    assert_eq!(host.ask(1, &request()), json!({ "id": 1, "patch": { "found": [], "imported": [] } }));
    let wait = "Atomics.wait(new Int32Array(new SharedArrayBuffer(8)), 0, 0);";
    assert!(Host::doing_with(wait, &QUICK).ask_fails(1).starts_with("TypeError: "));
}

#[test]
fn the_process_has_given_up_what_it_does_not_need() {
    let mut host = Host::doing("");
    assert_eq!(host.ask(1, &request())["result"], "continue");
    let pid = host.child.id();
    let proc = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    assert!(proc("status").contains("NoNewPrivs:\t1"), "{}", proc("status"));
    let limits = proc("limits");
    let hard = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in {limits}"));
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!([hard("Max core file size"), hard("Max file size"), hard("Max processes"), hard("Max open files")], ["0", "0", "0", "0"]);
    let space: u64 = hard("Max address space").parse().unwrap();
    assert!(space < 4 << 30, "{space}");
    let open: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(open.len(), 3, "{open:?}");
    // As it was given, so that the daemon knows its own; what runs in it has no way there.
    assert!(proc("environ").contains("SECRET="));
}

#[test]
fn a_change_that_is_too_large_is_refused() {
    let mut host = Host::doing("if (req.event.content !== 'small') req.event.content = 'x'.repeat(2 ** 21);");
    let error = host.ask_fails(1);
    assert!(error.contains("a line may have 1048576"), "{error}");
    // Hardly longer than it was, and still too long: escapes count.
    let mut escaping = Host::doing("req.event.content = '\\u0001'.repeat(200000);");
    let error = escaping.ask(1, &with_content(&"x".repeat(400_000)))["error"].clone();
    assert!(error.as_str().unwrap().contains("a line may have 1048576"), "{error}");
    assert_eq!(host.ask(2, &with_content("small")), json!({ "id": 2, "result": "continue" }));
    host.finish();
}

#[test]
fn a_large_request_is_taken() {
    let mut host = Host::doing_with("req.n = req.event.content.length; delete req.event;", &SLOW);
    let answer = host.ask(1, &with_content(&"x".repeat(8 * 1024 * 1024)));
    assert_eq!(answer, json!({ "id": 1, "patch": { "n": 8 * 1024 * 1024, "event": null } }));
}

#[test]
fn garbage_is_skipped() {
    let mut host = Host::doing("");
    for line in [&b""[..], b"{", b"[]", b"null", b"\xff\xfe", b"{\"id\":1}", b"{\"id\":\"x\",\"hook\":1}", b"{\"call\":{}}"] {
        host.say(line);
    }
    host.say(&vec![b'x'; LINE_IN_BYTES_MAX + 1]);
    assert_eq!(host.ask(1, &request()), json!({ "id": 1, "result": "continue" }));
    host.stdin = None;
    assert_eq!(host.wait().code(), Some(0));
    let said: Vec<String> = host.stderr.iter().collect();
    assert_eq!(said.iter().filter(|line| line.contains("is no frame and is skipped")).count(), 8, "{said:?}");
    assert_eq!(said.iter().filter(|line| line.contains("longer than 16 MiB")).count(), 1, "{said:?}");
}

#[test]
fn what_it_prints_is_logged_within_bounds() {
    let mut host = Host::ready(
        "x.js",
        "console.log('loaded');\nexport const plugin = { name: 'x', afterReceiveEvent(req) {
           console.warn('a', 1, { b: [null] }, new TypeError('c'), undefined, '\\ud800');
           console.error('x'.repeat(10000));
           if (req.event.content === 'flood') for (let i = 0; i < 1000; i++) console.debug(i);
         } };\n",
        &[],
    );
    assert_eq!(host.next(), json!({ "log": { "level": "info", "message": "loaded" } }));
    host.call(1, HOOK, &request());
    assert_eq!(host.next(), json!({ "log": { "level": "warn", "message": "a 1 {\"b\":[null]} TypeError: c undefined \u{fffd}" } }));
    let long = host.next();
    assert_eq!((&long["log"]["level"], long["log"]["message"].as_str().unwrap().len()), (&json!("error"), 4096));
    assert_eq!(host.next(), json!({ "id": 1, "result": "continue" }));
    host.call(2, HOOK, &with_content("flood"));
    let mut lines = 0;
    while host.next()["log"].is_object() {
        lines += 1;
    }
    assert!((100..=400).contains(&lines), "{lines}");
}
