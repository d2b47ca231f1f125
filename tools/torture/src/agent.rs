//! This program as an agent of the `command` runner (docs/agents.md): it writes down each call and each
//! effect of a tool before anything else happens, and then answers or fails as its seed says.

use crate::chance::Chance;
use crate::speech::Speaker;
use crate::steered;
use crate::world::World;
use crate::{clock, journal, procfs};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// The first argument that makes this program an agent, and one that makes it a process that is left
/// behind.
pub(crate) const WORD: &str = "__agent";
pub(crate) const ESCAPEE: &str = "__escapee";
/// The last argument of a process that is left behind with the daemon's mark still in its environment.
pub(crate) const MARKED: &str = "__marked";
/// In the journal: an agent was called.
pub(crate) const CALLED: &str = "called";
/// And: it is about to say that it has come to its end.
pub(crate) const ANSWERED: &str = "answered";
/// And: it is about to end without an answer.
pub(crate) const FAILS: &str = "fails";
/// Behind `WORLD SEED`: it speaks for a while ([`crate::speech`]).
pub(crate) const SPEAKS: &str = "speaks";
/// What automations and plugins have to say stands before the message, each followed by this.
const BETWEEN: &str = "\n\n";
/// Of what an agent may do: it leaves a process behind, that nothing tells from a stranger or that has its mark.
const LEAVES: u64 = 5;
const LEAVES_MARKED: u64 = 6;
/// The variable with the daemon's mark.
const MARK: &str = "NEXUS_CHILD_ID";
/// Longer than an agent may run.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(1000);

/// `WORLD SEED`, perhaps [`SPEAKS`] or [`steered::NAME`], and the turn on stdin.
///
/// # Errors
/// Of the file system, and a turn that can't be read.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let [root, seed, manner @ ..] = args else { bail!("an agent is called with WORLD SEED") };
    let world = World::at(Path::new(root));
    if manner.iter().any(|word| word == steered::NAME) {
        // It must not read stdin to its end.
        return steered::run(&world, &Chance::new(seed.parse().context("the seed is no number")?));
    }
    let mut text = String::new();
    std::io::stdin().lock().read_to_string(&mut text).context("failed to read the turn")?;
    let turn: Value = serde_json::from_str(&text).context("the turn is no JSON")?;
    let told = turn["message"]["content"].as_str().context("the turn has no content")?;
    let content = told.rsplit(BETWEEN).next().unwrap_or(told);
    let calls = journal::values_with(&world.agent_journal(), content)?;
    let calls = calls.iter().filter(|one| one["content"] == content && one["what"] == CALLED).count();
    let note = |what: &str| {
        let mut note = json!({ "what": what, "content": content, "run_id": turn["run_id"], "session": turn["session_label"], "at": clock::monotonic_ns() });
        if what == CALLED && told != content {
            note["told"] = json!(told);
        }
        journal::append(&world.agent_journal(), &note.to_string())
    };
    note(CALLED)?;
    let mut chance = Chance::new(seed.parse().context("the seed is no number")?).about(&["agent", content, &calls.to_string()]);
    if manner.iter().any(|word| word == SPEAKS) {
        let speaker = Speaker { world: &world, run_id: &turn["run_id"], content, note: &note };
        return speaker.speak(&mut chance);
    }
    let chosen = chance.below(40);
    // In the calm nobody fails; what is left behind must be gone then too.
    let what = if world.is_calm() && !matches!(chosen, LEAVES | LEAVES_MARKED) { u64::MAX } else { chosen };
    // Noted first: nobody but this tells why the daemon has no answer.
    if matches!(what, 0..=3 | 7 | 16) {
        note(FAILS)?;
    }
    match what {
        0 => return Ok(ExitCode::from(1)),
        15 => {
            note("silent")?;
            return Ok(ExitCode::SUCCESS);
        }
        16 => procfs::signal(std::process::id().cast_signed(), Signal::STOP),
        1 => procfs::signal(std::process::id().cast_signed(), Signal::KILL),
        2 => clock::pause(FOR_EVER),
        3 => {
            say("{\"type\":\"token\",\"te")?;
            return Ok(ExitCode::from(1));
        }
        4 => clock::pause(Duration::from_millis(300)),
        LEAVES | LEAVES_MARKED => leave_behind(root, what == LEAVES_MARKED)?,
        7..=14 => {
            say(&format!("{}\n", json!({ "type": "tool_status", "toolName": "pay", "toolCallId": "t1", "status": "started" })))?;
            note("paid")?;
            if what == 7 {
                return Ok(ExitCode::from(1));
            }
            say(&format!("{}\n", json!({ "type": "tool_status", "toolName": "pay", "toolCallId": "t1", "status": "completed" })))?;
        }
        _ => {}
    }
    say(&format!("{}\n", json!({ "type": "token", "text": format!("re: {content}") })))?;
    // Noted first: once the end is said, the run may be finished and this process killed.
    note(ANSWERED)?;
    say(&format!("{}\n", json!({ "type": "stream_end", "runId": turn["run_id"] })))?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("failed to write to the daemon")
}

/// Leaves a process in a session of its own whose parent is gone, with nothing in its environment but, where it
/// `is_marked`, the daemon's mark.
#[expect(clippy::disallowed_methods, reason = "a stranger to the keeper is what is left behind")]
fn leave_behind(root: &str, is_marked: bool) -> Result<()> {
    let own = std::env::current_exe().context("failed to find this program")?;
    let script = r#"setsid "$@" </dev/null >/dev/null 2>&1 &"#;
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script, "sh"]).arg(own).args([ESCAPEE, root]);
    shell.env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null()).stdout(Stdio::null());
    if is_marked {
        shell.arg(MARKED).env(MARK, std::env::var_os(MARK).context("the daemon has set no mark")?);
    }
    let status = shell.status().context("failed to start a shell")?;
    if status.success() { Ok(()) } else { bail!("nobody was left behind: {status}") }
}

/// Lives on until it is killed.
pub(crate) fn escape() -> ExitCode {
    clock::pause(FOR_EVER);
    ExitCode::SUCCESS
}
