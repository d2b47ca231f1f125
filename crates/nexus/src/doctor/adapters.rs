//! Whether each configured adapter answers `info`, asked by this process itself: for when no daemon
//! runs, whose keeper would start the program. How a program is asked, `git` and `plugins` use too.

use super::{Check, Finding};
use crate::adapter::{Call, PROBE_LIMIT, call, read_info};
use nexus_core::config::{self, Config};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

/// Programs asked at a time.
const AT_ONCE: usize = 8;
/// Most bytes that are taken of an answer, and of what is said beside it.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Characters of stderr that are told.
const STDERR_CHARS_MAX: usize = 300;

/// Asks every adapter that is in use. `instance` marks what is started, for the next start of a daemon
/// to find should this process be killed.
pub fn ask(config: &Config, workspace: &Path, instance: Option<&str>) -> Vec<Finding> {
    let (used, unused): (Vec<_>, Vec<_>) = config.adapters.iter().partition(|(_, adapter)| is_used(adapter));
    let mut findings: Vec<Finding> = unused.into_iter().map(|(name, _)| disabled(name)).collect();
    for some in used.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let asked: Vec<_> = some.iter().map(|(name, adapter)| scope.spawn(move || one(name, adapter, workspace, instance))).collect();
            let broken = |name: &str| silent(name, "asking it broke off: a defect of this program");
            findings.extend(asked.into_iter().zip(some).map(|(thread, (name, _))| thread.join().unwrap_or_else(|_panicked| broken(name))));
        });
    }
    if config.adapters.is_empty() {
        findings.push(none());
    }
    findings
}

pub fn none() -> Finding {
    Finding::ok(Check::Adapters, "none is configured")
}

pub fn disabled(name: &str) -> Finding {
    Finding::ok(Check::Adapters, "all its accounts are disabled: not asked").at_place(name)
}

/// One with accounts that are all disabled is not.
pub fn is_used(adapter: &config::Adapter) -> bool {
    adapter.accounts.is_empty() || adapter.accounts.values().any(|account| account.enabled)
}

/// An adapter that answered.
pub fn answered(name: &str, channel: &str, version: &str) -> Finding {
    Finding::ok(Check::Adapters, format!("answers `info`: channel {channel}, version {version}")).at_place(name)
}

/// One that didn't.
pub fn silent(name: &str, why: &str) -> Finding {
    let fix = format!("correct adapters.{name}.command, or run that program with `info` by hand to see what is wrong");
    Finding::error(Check::Adapters, why, fix).at_place(name)
}

fn one(name: &str, adapter: &config::Adapter, workspace: &Path, instance: Option<&str>) -> Finding {
    let mut call = call(name, adapter, workspace);
    if let Some(instance) = instance {
        call.env.push(("NEXUS_CHILD_ID".into(), format!("{instance}:doctor/{name}")));
    }
    let told = run(&call, "info", PROBE_LIMIT).and_then(|text| read_info(name, adapter.channel.as_deref(), &text));
    match told {
        Ok(info) => answered(name, &info.channel, &info.version),
        Err(why) => silent(name, &why),
    }
}

/// What a program prints. Its process group is gone on return, however it ended.
pub(super) fn run(call: &Call, verb: &str, limit: Duration) -> Result<Vec<u8>, String> {
    let program = call.argv.first().map(String::as_str).unwrap_or_default();
    let Heard { status, stdout, stderr } = hear(call, &[verb], Stdio::null(), limit)?;
    judge(program, verb, status, stdout, &stderr)
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub(super) struct Heard {
    status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Starts a program with these words added, and hears it to its end. Its process group is gone on return, however it ended.
pub(super) fn hear(call: &Call, words: &[&str], stdin: Stdio, limit: Duration) -> Result<Heard, String> {
    let deadline = Instant::now() + limit;
    let program = call.argv.first().map(String::as_str).unwrap_or_default();
    let mut child = start(call, words, stdin).map_err(|error| format!("`{program}` can't be started: {error}"))?;
    let (stdout, stderr) = (gather(child.stdout.take()), gather(child.stderr.take()));
    let text = stdout.recv_timeout(left(deadline));
    let is_over = text.is_ok() && has_ended(&child, deadline);
    // Before its status is taken: until then its PID is nobody else's. Often nobody is left.
    kill_process_group(Pid::from_child(&child), Signal::KILL).ok();
    let status = child.wait().map_err(|error| format!("`{program}` can't be waited for: {error}"))?;
    match text {
        Ok(stdout) if is_over => Ok(Heard { status, stdout, stderr: stderr.recv_timeout(left(deadline)).unwrap_or_default() }),
        Ok(_) | Err(_) => {
            let said = [&[program][..], words].concat().join(" ");
            Err(format!("`{said}` did not end within {} s and was killed", limit.as_secs()))
        }
    }
}

fn judge(program: &str, verb: &str, status: ExitStatus, text: Vec<u8>, stderr: &[u8]) -> Result<Vec<u8>, String> {
    if text.len() > ANSWER_BYTES_MAX {
        return Err(format!("`{program} {verb}` wrote more than {ANSWER_BYTES_MAX} bytes"));
    }
    if !status.success() {
        let said: String = String::from_utf8_lossy(stderr).trim().chars().take(STDERR_CHARS_MAX).collect();
        return Err(format!("`{program} {verb}` ended with {status}: {said}"));
    }
    Ok(text)
}

fn start(call: &Call, words: &[&str], stdin: Stdio) -> std::io::Result<Child> {
    let (program, arguments) = call.argv.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
    #[expect(
        clippy::disallowed_methods,
        reason = "the keeper belongs to a daemon, and there is none: a child of this command, ended with its group"
    )]
    let mut command = std::process::Command::new(program);
    command.args(arguments).args(words).env_clear().envs(call.env.iter().cloned()).current_dir(&call.cwd);
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()
}

/// Reads to the end in a thread of its own, which a pipe that stays open keeps and nobody waits for.
fn gather(stream: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (answer, heard) = sync_channel(1);
    let reading = move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let mut block = [0; 16 * 1024];
            // A read that fails is an end like any other: what came until then is judged.
            while let Ok(count @ 1..) = stream.read(&mut block) {
                if bytes.len() <= ANSWER_BYTES_MAX {
                    bytes.extend_from_slice(&block[..count]);
                }
            }
        }
        answer.send(bytes).ok(); // nobody may wait any more
    };
    // Without a thread, or one that breaks off, there is no answer, of which whoever waits is told at once.
    std::thread::Builder::new().name("doctor".to_owned()).spawn(reading).ok();
    heard
}

/// Waits for the end of a child, and leaves its status to be taken.
fn has_ended(child: &Child, deadline: Instant) -> bool {
    let Ok(handle) = pidfd_open(Pid::from_child(child), PidfdFlags::empty()) else { return false };
    loop {
        let Ok(timeout) = Timespec::try_from(left(deadline)) else { return false };
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<String, String> {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let call = Call { argv, env: crate::environment::base(), cwd: "/".into() };
        run(&call, "info", limit).map(|text| String::from_utf8_lossy(&text).into_owned())
    }

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(200);

    #[test]
    fn a_program_is_heard_to_its_end() {
        assert_eq!(shell("printf %s \"$0\"", LONG).unwrap(), "info");
        assert!(shell("echo why >&2; exit 3", LONG).unwrap_err().ends_with("exit status: 3: why"));
        assert!(shell("head -c 3000000 /dev/zero", LONG).unwrap_err().contains("more than"));
        let lost = Call { argv: vec!["/nowhere/adapter".into()], env: Vec::new(), cwd: "/".into() };
        assert!(run(&lost, "info", LONG).unwrap_err().contains("can't be started"));
    }

    #[test]
    fn one_that_hangs_is_killed_with_its_group() {
        for script in ["sleep 1000", "exec >&-; sleep 1000", "sleep 1000 & exit 0"] {
            assert!(shell(script, SHORT).unwrap_err().contains("was killed"), "{script}");
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("sleep 1000 >/dev/null 2>&1 & echo $! > {}", shell_words::quote(&file.to_string_lossy()));
        shell(&script, LONG).unwrap();
        let pid: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        assert!(ends(pid), "process {pid} of the group lives");
    }

    /// Whether it ends, if it is there at all.
    fn ends(pid: i32) -> bool {
        let Some(Ok(handle)) = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { return true };
        let minute = Timespec::try_from(LONG).unwrap();
        poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&minute)).unwrap() > 0
    }

    #[test]
    fn an_answer_is_judged_as_the_daemon_judges_it() {
        let directory = tempfile::tempdir().unwrap();
        let info = r#"{"channel":"f","name":"f","version":"2","supports":[]}"#;
        std::fs::write(directory.path().join("good.sh"), format!("echo '{info}'")).unwrap();
        let adapters = serde_json::json!({
            "good": { "command": "sh good.sh" }, "bad": { "command": "echo" },
            "off": { "command": "/nowhere", "accounts": { "me": { "enabled": false } } },
        });
        let text = serde_json::json!({ "adapters": adapters }).to_string();
        let loaded = config::load(config::Source { name: "nex.yaml", text: &text }, None).unwrap();
        let findings = ask(&loaded.config, directory.path(), Some("instance"));
        let by_name = |name: &str| findings.iter().find(|finding| finding.place.as_deref() == Some(name)).unwrap().clone();
        assert!(by_name("good").what.contains("channel f, version 2"), "{findings:?}");
        assert!(by_name("bad").what.contains("did not print an AdapterInfo") && by_name("bad").fix.is_some(), "{findings:?}");
        assert!(by_name("off").what.contains("disabled"), "{findings:?}");
    }
}
