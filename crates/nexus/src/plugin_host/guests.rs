//! Many automations in one process, a runtime each: the daemon says which there are, by numbers that it never
//! gives twice, and every frame names whose it is. What one of them does costs the others nothing but time,
//! and the process only where the engine can't be interrupted.

use super::frame::{Came, Order, Up, parse, read_line};
use super::serve::{Host, Lost, never_loaded, refuse};
use super::trouble::Trouble;
use super::watchdog::Watchdog;
use super::{Kind, Limits, Plugin, say, strip, stripped};
use serde::Deserialize;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::rc::Rc;

/// Automations at once; while one version follows another there are two of it.
pub(super) const GUESTS_MAX: usize = 128;

/// What the daemon says beside the frames that a plugin's host gets.
#[derive(Debug, Deserialize)]
struct Envelope {
    guest: u64,
    load: Option<Load>,
    #[serde(default)]
    unload: bool,
}

/// A file, read by the daemon: nothing can be opened here.
#[derive(Debug, Deserialize)]
struct Load {
    name: String,
    file: String,
    source: String,
}

/// One stdout for all.
struct Shared<W>(Rc<RefCell<W>>);

impl<W> Clone for Shared<W> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<W: Write> Write for Shared<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.borrow_mut().flush()
    }
}

struct Guests<W> {
    all: BTreeMap<u64, Host<Shared<W>>>,
    limits: Limits,
    watchdog: Rc<Watchdog>,
    output: Shared<W>,
}

/// Serves until the daemon closes `input`.
///
/// # Errors
/// [`Lost`], but for automations that can't be loaded: the daemon is told of those.
pub(super) fn serve_guests(limits: Limits, watchdog: Rc<Watchdog>, mut input: impl BufRead, output: impl Write) -> Result<(), Lost> {
    let mut guests = Guests { all: BTreeMap::new(), limits, watchdog, output: Shared(Rc::new(RefCell::new(output))) };
    let mut line = Vec::new();
    loop {
        match read_line(&mut input, &mut line).map_err(Lost::Input)? {
            Came::Line => guests.hear(&line)?,
            Came::TooLong => say("a line was longer than 16 MiB and is skipped"),
            Came::End => return Ok(()),
        }
    }
}

impl<W: Write> Guests<W> {
    fn hear(&mut self, line: &[u8]) -> Result<(), Lost> {
        match serde_json::from_slice::<Envelope>(line) {
            Ok(Envelope { guest, load: Some(load), .. }) => self.load(guest, load),
            Ok(Envelope { guest, unload: true, .. }) => {
                self.all.remove(&guest);
                Ok(())
            }
            Ok(Envelope { guest, .. }) => self.pass(guest, line),
            Err(problem) => {
                say(format!("a line is no frame and is skipped: {problem}"));
                Ok(())
            }
        }
    }

    fn load(&mut self, guest: u64, load: Load) -> Result<(), Lost> {
        let Load { name, file, source } = load;
        if self.all.len() >= GUESTS_MAX {
            let trouble = Trouble::new(format!("there are {GUESTS_MAX} automations already"));
            return still_here(refuse(Some(guest), &trouble, self.output.clone()));
        }
        // The parser is as much the file's own doing as its JavaScript is.
        self.watchdog.blame(never_loaded(Some(guest)));
        self.watchdog.expect_within(strip::TIME_MAX);
        let source = stripped(source, &file);
        self.watchdog.rest();
        let source = match source {
            Ok(source) => source,
            Err(trouble) => return still_here(refuse(Some(guest), &trouble, self.output.clone())),
        };
        let plugin = Plugin { kind: Kind::Automation, name, file: Rc::from(file), source };
        match Host::load(plugin, Some(guest), self.limits, Rc::clone(&self.watchdog), self.output.clone()) {
            Ok(host) => {
                self.all.insert(guest, host);
                Ok(())
            }
            Err(lost) => still_here(Err(lost)),
        }
    }

    fn pass(&mut self, guest: u64, line: &[u8]) -> Result<(), Lost> {
        let Some(host) = self.all.get_mut(&guest) else { return self.miss(guest, line) };
        match host.hear(line) {
            Err(Lost::Plugin(_)) => {
                // It could not begin anew, of which the daemon was told.
                self.all.remove(&guest);
                Ok(())
            }
            heard => heard,
        }
    }

    /// Answers a call for one that isn't there.
    fn miss(&mut self, guest: u64, line: &[u8]) -> Result<(), Lost> {
        let Ok(Order::Hook { id, .. }) = parse(line) else { return Ok(()) };
        let mut answer = Vec::new();
        if Up::error(id, &Trouble::new("the automation is not loaded")).append(Some(guest), &mut answer).is_ok() {
            self.output.write_all(&answer).and_then(|()| self.output.flush()).map_err(Lost::Output)?;
        }
        Ok(())
    }
}

/// An automation that can't be loaded is told, and ends nothing.
fn still_here(result: Result<(), Lost>) -> Result<(), Lost> {
    match result {
        Err(Lost::Plugin(_)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};
    use std::time::Duration;

    /// What a process without a sandbox says to these lines.
    fn said(lines: &[Value]) -> Vec<Value> {
        let limits = Limits { memory_bytes: 32 << 20, stack_bytes: 512 << 10, call: Duration::from_secs(60) };
        let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let mut output = Vec::new();
        serve_guests(limits, Rc::new(Watchdog::start().unwrap()), input.as_bytes(), &mut output).unwrap();
        String::from_utf8(output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn load(guest: u64, name: &str, body: &str) -> Value {
        let keys = format!("name: '{name}', state: {{ n: 0 }}, config: {{ a: 1 }}");
        let source = format!("let calls = 0;\nexport const automation = {{ {keys}, handler(ctx) {{ {body} }} }};");
        json!({ "guest": guest, "load": { "name": name, "file": format!("{name}.js"), "source": source } })
    }

    fn call(guest: u64, id: u64) -> Value {
        json!({ "guest": guest, "id": id, "hook": "handler", "request": { "request": { "event": { "content": "hi" } }, "state": null } })
    }

    #[test]
    fn each_has_a_runtime_of_its_own() {
        let frames = said(&[
            load(1, "a", "return { enrich: `${++calls} ${ctx.request.event.content}`, state: { n: ctx.state.n + ctx.config.a } };"),
            load(2, "b", "return { enrich: `${++calls}` };"),
            call(1, 10),
            call(1, 11),
            call(2, 12),
            json!({ "guest": 1, "unload": true }),
            call(1, 13),
        ]);
        assert_eq!(frames[0], json!({ "guest": 1, "ready": { "name": "a", "description": null, "triggers": null, "remembers": true } }));
        assert_eq!(frames[1]["guest"], 2);
        assert_eq!(frames[2], json!({ "guest": 1, "id": 10, "returned": { "enrich": "1 hi", "state": { "n": 1 } } }));
        assert_eq!(frames[3]["returned"]["enrich"], "2 hi");
        assert_eq!(frames[4], json!({ "guest": 2, "id": 12, "returned": { "enrich": "1" } }));
        assert_eq!(frames[5], json!({ "guest": 1, "id": 13, "error": "the automation is not loaded" }));
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_is_read() {
        let body = "return { enrich: 'x'.repeat(2 ** 21) };";
        let frames = said(&[load(1, "a", body), call(1, 10)]);
        assert!(frames[1]["error"].as_str().unwrap().starts_with("the handler returned 2097"), "{frames:?}");
    }

    #[test]
    fn a_handler_calls_in_its_own_name() {
        let body = "return ctx.nexus.send({ text: ctx.request.event.content });";
        let frames = said(&[load(1, "a", body), call(1, 10), call(1, 11)]);
        for (frame, id) in [(&frames[1], 10), (&frames[2], 11)] {
            assert_eq!(
                (&frame["id"], &frame["method"], &frame["params"]["text"]),
                (&json!(id), &json!("send"), &json!("hi")),
                "{frames:?}"
            );
        }
    }

    #[test]
    fn one_that_throws_or_uses_up_its_memory_leaves_the_others() {
        let frames = said(&[
            load(1, "a", "if (calls++ === 0) throw new Error('boom'); const all = []; for (;;) all.push(new Array(1000).fill(calls));"),
            load(2, "b", ""),
            call(1, 10),
            call(1, 11),
            call(2, 12),
        ]);
        assert!(frames[2]["id"] == 10 && frames[2]["error"] == "boom" && frames[2]["line"] == 2, "{frames:?}");
        assert!(frames[3]["error"].as_str().unwrap().contains("the automation begins anew"), "{frames:?}");
        assert_eq!(frames[4], json!({ "guest": 2, "id": 12, "result": "continue" }));
    }

    #[test]
    fn a_file_that_is_none_is_told_with_its_number() {
        let source = |text: &str| json!({ "guest": 3, "load": { "name": "c", "file": "c.ts", "source": text } });
        for (text, told) in [
            ("export const automation = { name: 'd', handler() {} };", "it must be \"c\""),
            ("export const automation = { name: 'c' };", "`automation.handler` must be a function"),
            ("export const automation = { name: 'c', handler() {}, trigger: {} };", "`automation.trigger` is unknown"),
            ("export const plugin = { name: 'c', onFinalize() {} };", "exports no automation"),
            ("const a = ;", ""),
            ("[".repeat(100_000).as_str(), "brackets are within each other"),
        ] {
            let frames = said(&[source(text), call(3, 9)]);
            let message = frames[0]["fatal"]["message"].as_str().unwrap();
            assert!(frames[0]["guest"] == 3 && message.contains(told), "{frames:?}");
            assert_eq!(frames[1]["error"], "the automation is not loaded");
        }
    }
}
