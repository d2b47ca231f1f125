//! Who has something to say about a message before an agent is asked: automations, and plugins, a script and this program
//! itself. Each of them adds a line that the agent is told; some fail, loop for ever or end in the middle.

use crate::chance::Chance;
use crate::world::World;
use crate::{clock, journal, procfs};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// The first argument that makes this program a plugin.
pub(crate) const WORD: &str = "__marker";
/// The automation that counts events in its state, and how the line begins in which an agent is told its count.
pub(crate) const COUNTER: &str = "counter";
pub(crate) const COUNTED: &str = "counted ";
/// The plugins, and the line that each adds.
pub(crate) const SCRIPT: (&str, &str) = ("mark", "marked by a script");
pub(crate) const PROGRAM: (&str, &str) = ("stamp", "marked by a program");
/// The automation that sends a message of its own, under what name of its own it does, and how that begins.
pub(crate) const SENDER: &str = "says";
pub(crate) const SENT_AS: &str = "noted";
pub(crate) const SAID: &str = "noted ";
/// It has something to say about each message whose number is so many times another.
pub(crate) const SAYS_ONE_IN: u64 = 5;
/// Errors in a row after which one is not asked for a while, which is over soon.
const CIRCUIT_ERRORS: u32 = 5;
const CIRCUIT_MS: u64 = 400;
/// What the program is given for one answer.
const ANSWER_MS: u64 = 300;

/// The files in `state/automations`. Besides the counter one that loops, now and then where nothing can interrupt it, one
/// that throws so often in a row that it is not asked any more, and one that sends a message of its own about some events.
const AUTOMATIONS: [(&str, &str); 4] = [
    (
        "counter.js",
        "export const automation = {
  name: 'counter',
  triggers: { event: { channels: ['acked', 'filled', 'both'] } },
  state: { count: 0 },
  handler({ state }) {
    const count = state.count + 1;
    return { enrich: `counted ${count}`, state: { count } };
  },
};
",
    ),
    (
        "loops.js",
        "export const automation = {
  name: 'loops',
  triggers: { event: { channels: ['acked', 'filled', 'both'] } },
  handler({ request }) {
    const number = Number(request.event.content.split(' ').pop());
    if (number % 307 === 0) Array.prototype.reverse.call({ length: 2 ** 53 - 1 });
    if (number % 101 === 0) for (;;);
  },
};
",
    ),
    (
        "throws.js",
        "export const automation = {
  name: 'throws',
  triggers: { event: { channels: ['acked', 'filled', 'both'] } },
  handler({ request }) {
    const number = Number(request.event.content.split(' ').pop());
    if (Math.floor(number / 20) % 2 === 1) throw new Error('made up');
  },
};
",
    ),
    (
        "says.js",
        "export const automation = {
  name: 'says',
  triggers: { event: { channels: ['both'] } },
  async handler({ request, nexus }) {
    const content = request.event.content;
    if (Number(content.split(' ').pop()) % 5 === 0) await nexus.send({ text: `noted ${content}`, n: 'noted' });
  },
};
",
    ),
];

/// `plugins/mark.js`.
const SCRIPT_TEXT: &str = "export const plugin = {
  name: 'mark',
  afterAssembleContext(req) {
    req.context = (req.context ? req.context + '\\n' : '') + 'marked by a script';
  },
};
";

/// Puts their files into a world, once: a file that is written again is loaded anew.
///
/// # Errors
/// Of the file system.
pub(crate) fn place(world: &World, own: &Path, seed: u64) -> Result<()> {
    let command = format!("'{}' {WORD} '{}' {seed}", own.display(), world.root().display());
    let program = json!({
        "command": command, "hooks": ["afterAssembleContext"], "mode": "mutate", "sections": ["event", "context"], "priority": 200,
        "timeout_ms": ANSWER_MS, "on_error": "skip",
    });
    let mut files: Vec<(String, String)> =
        AUTOMATIONS.iter().map(|(name, text)| (format!("workspace/state/automations/{name}"), (*text).to_owned())).collect();
    files.push((format!("workspace/plugins/{}.js", SCRIPT.0), SCRIPT_TEXT.to_owned()));
    files.push((format!("workspace/plugins/{}/plugin.yaml", PROGRAM.0), program.to_string()));
    for (name, text) in files {
        let path = world.file(&name);
        if path.exists() {
            continue;
        }
        let directory = path.parent().context("a file without a directory")?;
        fs::create_dir_all(directory).and_then(|()| fs::write(&path, text)).with_context(|| format!("failed to write `{name}`"))?;
    }
    Ok(())
}

/// `plugins` of the configuration.
pub(crate) fn settings() -> Value {
    json!({ "enabled": ["logging", "analytics", SCRIPT.0, PROGRAM.0],
            "circuit": { "errors": CIRCUIT_ERRORS, "half_open_ms": CIRCUIT_MS } })
}

/// `automations` of the configuration.
pub(crate) fn grants() -> Value {
    json!({ "grants": { SENDER: ["send"] } })
}

/// `WORLD SEED`, and calls on stdin, until the daemon closes it.
///
/// # Errors
/// Of the file system, and a call that can't be read.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let [root, seed] = args else { bail!("a plugin is called with WORLD SEED") };
    let world = World::at(Path::new(root));
    let chance = Chance::new(seed.parse().context("the seed is no number")?);
    let (mut input, mut line) = (io::stdin().lock(), String::new());
    loop {
        line.clear();
        input.read_line(&mut line).context("failed to read a call")?;
        // A daemon that was killed leaves half a line.
        if !line.ends_with('\n') {
            return Ok(ExitCode::SUCCESS);
        }
        let call: Value = serde_json::from_str(&line).context("a call is no JSON")?;
        if let Some(code) = answer(&world, &chance, &call)? {
            return Ok(code);
        }
    }
}

/// Answers one call, or does what a bad plugin does; an exit code ends the process.
fn answer(world: &World, chance: &Chance, call: &Value) -> Result<Option<ExitCode>> {
    let asked = world.file("plugin-calls");
    let event = call["request"]["event"]["event_id"].as_str().unwrap_or_default();
    let calls = journal::lines(&asked)?.iter().filter(|line| *line == event).count();
    journal::append(&asked, event)?;
    let mut chance = chance.about(&["plugin", event, &calls.to_string()]);
    match if world.is_calm() { u64::MAX } else { chance.below(80) } {
        0 => return Ok(Some(ExitCode::from(1))),
        1 => procfs::signal_self(Signal::KILL),
        2 => procfs::signal_self(Signal::STOP),
        3 => return Ok(None), // it never answers
        4 => say("this is no frame")?,
        5 => return say(&json!({ "id": call["id"], "error": "made up" }).to_string()).map(|()| None),
        6 => return say(&json!({ "id": call["id"], "patch": { "context": PROGRAM.1, "status": "denied" } }).to_string()).map(|()| None),
        7 => clock::pause(Duration::from_millis(ANSWER_MS / 3)),
        _ => {}
    }
    let before = call["request"]["context"].as_str().map(|before| format!("{before}\n")).unwrap_or_default();
    let patch = json!({ "context": format!("{before}{}", PROGRAM.1) });
    say(&json!({ "id": call["id"], "patch": patch }).to_string()).map(|()| None)
}

fn say(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush()).context("failed to write to the daemon")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::world::Cast;

    #[test]
    fn files_say_what_the_checker_looks_for_and_are_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::make(dir.path(), Cast { advisers: true, ..Cast::default() }).unwrap();
        place(&world, Path::new("/bin/it"), 7).unwrap();
        let read = |name: &str| fs::read_to_string(world.file(name)).unwrap();
        let counter = read("workspace/state/automations/counter.js");
        assert!(counter.contains(&format!("name: '{COUNTER}'")) && counter.contains(&format!("`{COUNTED}$")), "{counter}");
        let says = read("workspace/state/automations/says.js");
        assert!(says.contains(&format!("name: '{SENDER}'")) && says.contains(&format!("`{SAID}$")), "{says}");
        assert!(says.contains(&format!("% {SAYS_ONE_IN} === 0")), "{says}");
        assert!(says.contains(&format!("n: '{SENT_AS}'")) && grants()["grants"][SENDER][0] == "send", "{says}");
        let script = read("workspace/plugins/mark.js");
        assert!(script.contains(&format!("name: '{}'", SCRIPT.0)) && script.contains(SCRIPT.1), "{script}");
        let program = "workspace/plugins/stamp/plugin.yaml";
        assert!(read(program).contains(" __marker "), "{}", read(program));
        fs::write(world.file(program), "as it was").unwrap();
        place(&world, Path::new("/bin/it"), 7).unwrap();
        assert_eq!(read(program), "as it was");
    }
}
