//! The host of plugins as the daemon sees it: what it says of a plugin, what becomes of hooks, calls and
//! exceptions, and which files are no plugins. What is done to it is in `plugin_host_limits.rs`.
#![allow(clippy::unwrap_used)]

mod common;
mod host;

use common::{NEXUS, program};
use host::{HOOK, Host, LINE_OUT_BYTES_MAX, refused, request, with_content};
use serde_json::{Value, json};
use std::fs;
use std::process::Stdio;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/examples/plugins");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/plugins-javascript.md");

#[test]
fn a_plugin_says_what_it_is_and_ends_with_its_input() {
    let source = "export default { onFinalize() {}, name: 'two', priority: -5, afterRunAgent: () => undefined, help() {} };";
    let host = Host::start("two.js", source, &[]);
    assert_eq!(host.next(), json!({ "ready": { "name": "two", "priority": -5, "hooks": ["afterRunAgent", "onFinalize"] } }));
    host.finish();
    let source = "export const plugin = { name: 'part', sections: ['status', 'event', 'event'], onFinalize() {} };";
    let host = Host::start("part.js", source, &[]);
    assert_eq!(host.next()["ready"]["sections"], json!(["status", "event"]));
    host.finish();
}

#[test]
fn what_a_hook_leaves_alone_goes_on() {
    for body in ["", "return undefined;", "return req;", "req.event.content += ''; return req;", "return Promise.resolve();"] {
        let mut host = Host::doing(body);
        assert_eq!(host.ask(1, &request()), json!({ "id": 1, "result": "continue" }), "{body}");
        host.finish();
    }
}

#[test]
fn skipping_ends_it() {
    for body in ["return 'skip';", "req.event.content = 'x'; return 'skip';", "return Promise.resolve('skip');"] {
        let mut host = Host::doing(body);
        assert_eq!(host.ask(1, &request()), json!({ "id": 1, "result": "skip" }), "{body}");
    }
}

#[test]
fn what_changed_is_a_merge_patch() {
    let cases = [
        ("req.event.content = 'bye'", json!({ "event": { "content": "bye" } })),
        ("delete req.event.content; return req", json!({ "event": { "content": null } })),
        ("req.event.tags.push('c')", json!({ "event": { "tags": ["a", "b", "c"] } })),
        ("req.context = 'Known: ' + req.event.content", json!({ "context": "Known: hello" })),
        ("req.event.metadata.lang = 'de'", json!({ "event": { "metadata": { "lang": "de" } } })),
        ("req.event = { content: 'x' }", json!({ "event": { "content": "x", "event_id": null, "metadata": null, "tags": null } })),
        ("return (async () => { await null; req.status = 'failed'; })()", json!({ "status": "failed" })),
    ];
    for (body, patch) in cases {
        let mut host = Host::doing(body);
        assert_eq!(host.ask(3, &request()), json!({ "id": 3, "patch": patch }), "{body}");
    }
}

#[test]
fn on_error_is_told_the_error() {
    let source = "export const plugin = { name: 'e', onError(req, error) { req.reason = `${error.stage}: ${error.message}`; } };";
    let mut host = Host::ready("e.js", source, &[]);
    host.send(&json!({ "id": 9, "hook": "onError", "request": request(), "deadline_ms": 1000, "error": { "stage": "runAgent", "message": "boom" } }));
    assert_eq!(host.next(), json!({ "id": 9, "patch": { "reason": "runAgent: boom" } }));
}

#[test]
fn a_hook_that_awaits_a_call_lets_others_run() {
    let mut host = Host::doing(
        "return (async () => {
           const { hits } = await nexus.search({ query: req.event.content, limit: 2 });
           await nexus.ledger.query('SELECT ?', [hits.length]);
           req.event.content = hits.join();
         })();",
    );
    host.call(1, HOOK, &with_content("one"));
    assert_eq!(host.next(), json!({ "call": 1, "id": 1, "method": "search", "params": { "query": "one", "limit": 2 } }));
    host.call(2, HOOK, &with_content("two"));
    assert_eq!(host.next(), json!({ "call": 2, "id": 2, "method": "search", "params": { "query": "two", "limit": 2 } }));
    host.send(&json!({ "call": 2, "result": { "hits": ["b"] } }));
    assert_eq!(host.next(), json!({ "call": 3, "id": 2, "method": "ledger.query", "params": { "sql": "SELECT ?", "params": [1] } }));
    host.send(&json!({ "call": 1, "result": { "hits": ["a", "b"] } }));
    assert_eq!(host.next(), json!({ "call": 4, "id": 1, "method": "ledger.query", "params": { "sql": "SELECT ?", "params": [2] } }));
    host.send(&json!({ "call": 3, "result": null }));
    assert_eq!(host.next(), json!({ "id": 2, "patch": { "event": { "content": "b" } } }));
    // Twice, and to a call that never was: nobody minds.
    host.send(&json!({ "call": 3, "result": null }));
    host.send(&json!({ "call": 99, "error": "late" }));
    host.send(&json!({ "call": 4, "result": null }));
    assert_eq!(host.next(), json!({ "id": 1, "patch": { "event": { "content": "a,b" } } }));
    host.finish();
}

/// A hook that begins something waits for what the hook call `go` brings, and so goes on in the turn of that one.
fn sharing(call: &str) -> Host {
    let source = format!(
        "let begin;\nconst begun = new Promise((resolve) => {{ begin = resolve; }});\n\
         export const plugin = {{ name: 'x', async {HOOK}(req, nexus) {{\n\
         if (req.event.content === 'go') return begin();\nawait begun;\n{call};\n}} }};\n"
    );
    Host::ready("x.js", &source, &[])
}

#[test]
fn a_call_belongs_to_the_hook_whose_nexus_it_is() {
    let mut host = sharing("await nexus.send({ text: req.event.content })");
    host.call(1, HOOK, &with_content("one"));
    host.call(2, HOOK, &with_content("two"));
    host.call(3, HOOK, &with_content("go"));
    let frames = [host.next(), host.next(), host.next()];
    for (call, id, text) in [(1, 1, "one"), (2, 2, "two")] {
        let expected = json!({ "call": call, "id": id, "method": "send", "params": { "text": text } });
        assert!(frames.contains(&expected), "{expected} is not in {frames:?}");
    }
    assert!(frames.contains(&json!({ "id": 3, "result": "continue" })), "{frames:?}");
}

#[test]
fn the_global_calls_in_nobodys_name_while_several_are_under_way() {
    let mut host = sharing("await globalThis.nexus.send({ text: req.event.content })");
    host.call(1, HOOK, &with_content("go"));
    assert_eq!(host.next()["id"], 1);
    // Nothing to wait for any more: it is the only one, and so surely the one that calls.
    host.call(2, HOOK, &with_content("alone"));
    assert_eq!(host.next(), json!({ "call": 1, "id": 2, "method": "send", "params": { "text": "alone" } }));
    // Now there are two, and after it one that is not the one whose turn it is.
    assert!(host.ask(3, &with_content("second"))["error"].as_str().unwrap().contains("can't be told while other calls are under way"));
    host.send(&json!({ "call": 1, "result": {} }));
    assert_eq!(host.next(), json!({ "id": 2, "result": "continue" }));

    let mut host = sharing("await globalThis.nexus.send({ text: req.event.content })");
    host.call(1, HOOK, &with_content("waits"));
    host.call(2, HOOK, &with_content("go"));
    let frames = [host.next(), host.next()];
    assert!(frames.contains(&json!({ "id": 2, "result": "continue" })), "{frames:?}");
    let refused = frames.iter().find(|frame| frame["id"] == 1).unwrap_or_else(|| panic!("no answer to 1: {frames:?}"));
    assert!(refused["error"].as_str().unwrap().contains("use the `nexus` that the hook is given"), "{frames:?}");
}

#[test]
fn every_granted_method_has_its_call() {
    let cases = [
        ("nexus.llm({ agent: 'a', prompt: 'p' })", "llm", json!({ "agent": "a", "prompt": "p" })),
        ("nexus.send({ text: 't' })", "send", json!({ "text": "t" })),
        ("nexus.fetch('https://x.example/', { method: 'POST' })", "fetch", json!({ "method": "POST", "url": "https://x.example/" })),
        ("nexus.ledger.query('SELECT 1')", "ledger.query", json!({ "sql": "SELECT 1", "params": [] })),
    ];
    for (call, method, params) in cases {
        let mut host = Host::doing(&format!("return {call}.then((result) => {{ req.result = result; }});"));
        host.call(1, HOOK, &request());
        assert_eq!(host.next(), json!({ "call": 1, "id": 1, "method": method, "params": params }));
        host.send(&json!({ "call": 1, "result": { "ok": true } }));
        assert_eq!(host.next(), json!({ "id": 1, "patch": { "result": { "ok": true } } }));
    }
}

#[test]
fn a_refused_call_is_an_exception_at_its_place() {
    let mut host = Host::doing("return (async () => {\n  await nexus.llm({ agent: 'a', prompt: 'p' });\n})();");
    host.call(1, HOOK, &request());
    assert_eq!(host.next()["method"], "llm");
    host.send(&json!({ "call": 1, "error": "`llm` is not granted" }));
    let answer = host.next();
    assert_eq!((&answer["error"], &answer["line"]), (&json!("`llm` is not granted"), &json!(4)), "{answer}");

    let mut host = Host::doing("return nexus.llm({}).catch((error) => { req.reason = error.message; });");
    host.call(1, HOOK, &request());
    assert_eq!(host.next()["call"], 1);
    host.send(&json!({ "call": 1, "error": "no" }));
    assert_eq!(host.next(), json!({ "id": 1, "patch": { "reason": "no" } }));
}

#[test]
fn an_exception_has_the_place_in_the_typescript_file() {
    let source = "import type { Plugin } from './nexus';\n\ninterface Wide {\n  a: string;\n  b?: number;\n}\ntype Maybe<T> = T | undefined;\n\n\
                  function fail(wide: Wide): Maybe<never> {\n  const text: string = wide.a; throw new TypeError('bad ' + text);\n}\n\n\
                  export const plugin: Plugin = {\n  name: 'types',\n  afterReceiveEvent(req): void {\n    fail({ a: req.event.content } as Wide);\n  },\n};\n";
    let mut host = Host::ready("types.ts", source, &[]);
    let answer = host.ask(1, &request());
    assert_eq!(answer["error"], "TypeError: bad hello");
    assert_eq!((answer["file"].as_str(), &answer["line"]), (Some(host.file.as_str()), &json!(10)), "{answer}");
    let (begin, end) = (source.lines().nth(9).unwrap().find("throw").unwrap() as u64, source.lines().nth(9).unwrap().len() as u64);
    assert!((begin..=end).contains(&answer["column"].as_u64().unwrap()), "{answer}");
    // The next call is as good as the first.
    assert_eq!(host.ask(2, &request())["error"], "TypeError: bad hello");
    host.finish();
}

#[test]
fn anything_may_be_thrown_and_returned() {
    let cases = [
        ("throw 'boom'", "threw \"boom\""),
        ("throw { get message() { throw 1; } }", "threw a"),
        (
            "const e = new Error('x'); Object.defineProperty(e, 'message', { get() { throw 1; } }); throw e",
            "threw something that can't be shown",
        ),
        ("class Sad extends Error {} const e = new Sad('x'); e.name = 'Sad'; throw e", "Sad: x"),
        ("return Promise.reject(new RangeError('far'))", "RangeError: far"),
        ("throw new Error('\\ud800')", "\u{fffd}"),
        ("return 7", "returned 7; a hook returns nothing"),
        ("return { ...req }", "returned {"),
        ("return null", "returned null"),
        ("return Promise.resolve('no')", "returned \"no\""),
        ("req.self = req", "TypeError: "),
        ("req.n = 1n", "TypeError: "),
        ("req.event.content = '\\ud800'", "the hook left no valid request"),
    ];
    for (body, start) in cases {
        let mut host = Host::doing(&format!("if (calls++ > 0) return;\n{body}"));
        let error = host.ask_fails(1);
        assert!(error.starts_with(start), "{body}: {error}");
        assert_eq!(host.ask(2, &request()), json!({ "id": 2, "result": "continue" }), "{body}");
        host.finish();
    }
}

#[test]
fn a_hook_it_does_not_have_is_an_error() {
    let mut host = Host::doing("");
    host.call(1, "onFinalize", &request());
    assert_eq!(host.next(), json!({ "id": 1, "error": "the plugin has no hook `onFinalize`" }));
}

#[test]
fn what_is_no_plugin_is_refused_with_its_place() {
    let cases = [
        ("x.ts", "export const plugin = {\n  name: 'x',\n  afterReceiveEvent(req) { const a = ; },\n};\n", "", Some(3)),
        ("x.ts", "enum Level { Low }\nexport const plugin = { name: 'x', onFinalize() {} };\n", "enum", Some(1)),
        ("x.js", "export const plugin = {\n  name: 'x' 'y',\n};\n", "SyntaxError: ", Some(2)),
        ("x.js", "const a: number = 1;\n", "SyntaxError: ", Some(1)),
        ("x.js", "\nimport { readFile } from 'node:fs';\n", "`node:fs` can't be imported: a plugin is one file", Some(2)),
        ("x.js", "\n\nthrow new Error('at the top');\n", "at the top", Some(3)),
        ("x.js", "await new Promise(() => {});\n", "a top-level `await` of something that never comes", None),
        ("x.js", "export const other = 1;\n", "the file exports no plugin", None),
        ("x.js", "export const plugin = { name: 'y', onFinalize() {} };\n", "`plugin.name` is \"y\"; it must be \"x\"", None),
        ("x.js", "export const plugin = { name: 'x' };\n", "the plugin has no hook", None),
        ("x.js", "export const plugin = { name: 'x', onFinalise() {} };\n", "`plugin.onFinalise` is no hook", None),
        ("x.js", "export const plugin = { name: 'x', onFinalize: 1 };\n", "`plugin.onFinalize` must be a function", None),
        ("x.js", "export const plugin = { name: 'x', priority: 1.5, onFinalize() {} };\n", "`plugin.priority` is 1.5", None),
        ("x.js", "export const plugin = { name: 'x', sections: 'event', onFinalize() {} };\n", "`plugin.sections` is \"event\"", None),
        ("x.js", "export const plugin = { name: 'x', sections: ['events'], onFinalize() {} };\n", "`plugin.sections` has \"events\"", None),
        ("x.py", "", "its name must end in .ts or .js", None),
    ];
    for (file, source, said, line) in cases {
        let fatal = refused(file, source);
        assert!(fatal["message"].as_str().unwrap().contains(said), "{source}: {fatal}");
        assert_eq!(fatal["line"].as_u64(), line, "{source}: {fatal}");
        if line.is_some() {
            assert!(fatal["column"].as_u64() >= Some(1) && fatal["file"].as_str().unwrap().ends_with(file), "{source}: {fatal}");
        }
    }
    let long = format!("// {}\n", "x".repeat(LINE_OUT_BYTES_MAX));
    assert!(refused("x.js", &long)["message"].as_str().unwrap().contains("is longer than"));
}

#[test]
fn a_file_that_is_not_there_and_wrong_words_are_refused() {
    let output = program(NEXUS).args(["__plugin-host", "--file", "/nowhere/x.js", "--name", "x"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let fatal: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(fatal["fatal"]["message"].as_str().unwrap().starts_with("failed to read `/nowhere/x.js`"), "{fatal}");
    let output = program(NEXUS).args(["__plugin-host", "--name", "x"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`--file` is required"), "{output:?}");
}

#[test]
fn a_promise_that_nobody_awaits_is_told() {
    let mut host = Host::doing("(async () => { throw new Error('lost'); })(); const p = Promise.reject(1); return p.catch(() => {});");
    host.call(1, HOOK, &request());
    let frames = [host.next(), host.next()];
    let message = "a promise was rejected, and nobody awaited it: lost (line 3)";
    assert!(frames.contains(&json!({ "log": { "level": "warn", "message": message } })), "{frames:?}");
    assert!(frames.contains(&json!({ "id": 1, "result": "continue" })), "{frames:?}");
    host.finish();
}

#[test]
fn the_examples_do_what_their_page_says() {
    let read = |name: &str| fs::read_to_string(format!("{EXAMPLES}/{name}")).unwrap();
    let (redact, audit) = (read("redact.ts"), read("audit.js"));
    for (kind, shown) in [("ts", &redact), ("js", &audit)] {
        assert!(fs::read_to_string(PAGE).unwrap().contains(&format!("```{kind}\n{shown}```\n")), "the page shows another .{kind}");
    }
    let mut host = Host::ready("redact.ts", &redact, &[]);
    let answer = host.ask(1, &with_content("pay with 4111 1111 1111 1111 please"));
    assert_eq!(answer, json!({ "id": 1, "patch": { "event": { "content": "pay with [card number] please" } } }));
    let mut blank = with_content(" ");
    blank["event"]["content_type"] = json!("text");
    assert_eq!(host.ask(2, &blank), json!({ "id": 2, "result": "skip" }));
    host.call(3, "afterAssembleContext", &request());
    assert_eq!(host.next(), json!({ "call": 1, "id": 3, "method": "search", "params": { "query": "hello", "limit": 3 } }));
    host.send(&json!({ "call": 1, "result": { "hits": [{ "text": "hello there" }] } }));
    assert_eq!(host.next(), json!({ "id": 3, "patch": { "context": "Said before:\n- hello there" } }));
    host.call(4, "onFinalize", &request());
    assert_eq!(host.next()["log"]["message"], "req_1 is processing; 1 of 2 had card numbers");
    assert_eq!(host.next()["result"], "continue");

    let mut host = Host::ready("audit.js", &audit, &[]);
    let mut failed = request();
    failed["event"]["sender_id"] = json!("me");
    host.send(&json!({ "id": 1, "hook": "onError", "request": failed, "error": { "stage": "runAgent", "message": "boom" } }));
    assert_eq!(host.next()["log"]["message"], "req_1 from me failed in runAgent: boom");
    assert_eq!(host.next()["result"], "continue");
}
