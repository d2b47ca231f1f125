//! The `command` runner: one process per turn, the turn as JSON on its stdin, its stdout as the
//! answer, its stderr in the log. Owns the three pipes and the verdict on how the process ended.
//! Never spawns by itself (the keeper does), sets no time limit (the caller does) and says of no message that reaches
//! it meanwhile whether it was taken in.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nexus_core::config::Agent;
use nexus_core::ids::ChildId;
use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use super::command_output::{CommandOutput, MAX_LINE_BYTES, OutputFault};
use super::steer::{Input, beside, feed};
use super::{AgentError, Finished, MAX_ANSWER_BYTES, Sink, StopReason, Turn, Usage, emit};
use crate::keeper::{ExitStatus, Keeper, Process, SpawnSpec, Stdin};

/// The most stderr lines of one turn that are logged; the others are counted.
pub const STDERR_LINES_MAX: u32 = 100;

/// The longest stderr line that is logged whole, in bytes.
pub const STDERR_LINE_BYTES_MAX: usize = 8 * 1024;

/// How much of the end of stderr goes into the error of a failed turn, in bytes.
pub const STDERR_TAIL_BYTES: usize = 2 * 1024;

const READ_BYTES: usize = 16 * 1024;

/// What every command gets from the daemon's own environment.
const ENV_ALWAYS: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "TMPDIR"];

/// Runs a configured command, once for each turn.
#[derive(Clone)]
pub struct CommandRunner {
    keeper: Keeper,
    agent: String,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    cwd: PathBuf,
}

impl CommandRunner {
    /// Takes an agent's configuration. `cwd` is relative to the workspace, which is also its
    /// default. The environment is the agent's `env`, then what `pass_env` names, then PATH, HOME,
    /// LANG, TZ and TMPDIR, the first of a name winning.
    pub fn new(keeper: Keeper, agent: &Agent, name: impl Into<String>, workspace: &Path) -> CommandRunner {
        let own = |name: &str| std::env::var(name).ok();
        CommandRunner {
            keeper,
            agent: name.into(),
            argv: agent.argv.clone(),
            env: environment(own, &agent.pass_env, &agent.env),
            cwd: agent.cwd.as_ref().map_or_else(|| workspace.to_owned(), |cwd| workspace.join(cwd)),
        }
    }

    /// Runs one turn: spawns with the turn as stdin, reads the answer, waits for the exit. Dropping the
    /// future kills the process tree, and so does any error. With `input` stdin stays open for what comes
    /// that way, until the process says its end; a turn that no pipe holds is told without.
    ///
    /// # Errors
    /// See [`AgentError`]; an exit status other than 0 is an error whatever was answered.
    pub async fn run(&self, turn: &Turn, out: &Sink, input: Option<Input>) -> Result<Finished, AgentError> {
        let line = input_line(turn).map_err(|source| AgentError::Io {
            agent: self.agent.clone(),
            operation: "encode the input",
            source,
            partial: String::new(),
        })?;
        let stdin = if input.is_some() { Stdin::Open(line) } else { Stdin::Whole(line) };
        let mut process = self.spawn(turn, stdin).await?;
        let (stdout, stderr) = (process.stdout.take(), process.stderr.take());
        let (stdin, said_its_end) = (process.stdin.take().zip(input), CancellationToken::new());
        // A process may listen until its stdin ends, which would otherwise come with its own end only.
        let more = async {
            if said_its_end.run_until_cancelled(feed(stdin)).await.is_none() {
                tracing::trace!(target: "nexus::agent", run_id = %turn.run_id, "the process said its end, and so its stdin ends");
            }
        };
        let mut output = CommandOutput::default();
        let mut errors = StderrLog::default();
        let warn = |line: &str| self.warn(turn, line);

        let pipes = async {
            let ends = tokio::try_join!(read_answer(stdout, &mut output, out, &said_its_end), read_stderr(stderr, &mut errors, &warn));
            ends.map(|((), ())| ())
        };
        let settled = settle(&mut process, beside(pipes, more)).await;
        if settled.is_err() {
            process.kill_tree().await;
        }

        for piece in output.finish() {
            emit(out, piece).await;
        }
        errors.finish().iter().for_each(|line| warn(line));
        warn_of_bad_output(&output, &warn);
        self.verdict(settled, output, &errors)
    }

    async fn spawn(&self, turn: &Turn, stdin: Stdin) -> Result<Process, AgentError> {
        if self.argv.is_empty() {
            let problem = "its `command` is empty".to_owned();
            return Err(AgentError::Config { agent: self.agent.clone(), problem });
        }
        let spec =
            SpawnSpec { child: self.child(turn), argv: self.argv.clone(), env: self.env.clone(), cwd: Some(self.cwd.clone()), stdin };
        let failed = |source| AgentError::Spawn { agent: self.agent.clone(), source: Box::new(source) };
        self.keeper.spawn(spec).await.map_err(failed)
    }

    fn child(&self, turn: &Turn) -> ChildId {
        ChildId::new(format!("agent/{}/{}", self.agent, turn.run_id))
    }

    /// Returns once nothing lives of what [`Self::run`] started for this turn: dropping it only asks for that.
    pub async fn gone(&self, turn: &Turn) {
        self.keeper.gone(&self.child(turn)).await;
    }

    fn warn(&self, turn: &Turn, line: &str) {
        tracing::warn!(
            target: "nexus::agent",
            agent = %self.agent,
            run_id = %turn.run_id,
            "{line}"
        );
    }

    fn verdict(&self, settled: Result<ExitStatus, Fault>, mut output: CommandOutput, errors: &StderrLog) -> Result<Finished, AgentError> {
        let agent = self.agent.clone();
        let late = output.fault().map(Fault::Output);
        let partial = output.take_answer();
        let status = match (settled, late) {
            (Err(fault), _) | (Ok(_), Some(fault)) => return Err(fault.explain(agent, partial)),
            (Ok(status), None) => status,
        };
        match (status, output.reported()) {
            (ExitStatus::Code(0), None) => {
                Ok(Finished { content: partial, usage: Usage::default(), stop_reason: StopReason::EndTurn, model: None, provider: None })
            }
            (ExitStatus::Code(0), Some(problem)) => Err(AgentError::Reported { agent, problem: problem.to_owned(), partial }),
            (status, reported) => {
                let stderr_tail = errors.tail(reported);
                Err(AgentError::Exit { agent, status, stderr_tail, partial })
            }
        }
    }
}

impl fmt::Debug for CommandRunner {
    /// Leaves out the values of the environment, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("CommandRunner")
            .field("agent", &self.agent)
            .field("argv", &self.argv)
            .field("env", &names)
            .field("cwd", &self.cwd)
            .finish_non_exhaustive()
    }
}

/// Why the pipes were given up.
#[derive(Debug)]
enum Fault {
    Output(OutputFault),
    Io(&'static str, io::Error),
}

impl Fault {
    fn explain(self, agent: String, partial: String) -> AgentError {
        let (what, limit_bytes) = match self {
            Self::Output(OutputFault::AnswerTooLarge) => ("an answer", MAX_ANSWER_BYTES),
            Self::Output(OutputFault::LineTooLong) => ("a line", MAX_LINE_BYTES),
            Self::Io(operation, source) => {
                return AgentError::Io { agent, operation, source, partial };
            }
        };
        AgentError::TooLarge { agent, what, limit_bytes, partial }
    }
}

/// Serves the pipes until they are closed and the process has exited. Its exit is only told once
/// the rest of its tree is killed too, so no grandchild holds the pipes open for ever; what they
/// still contain is then read to the end.
async fn settle<F>(process: &mut Process, pipes: F) -> Result<ExitStatus, Fault>
where
    F: Future<Output = Result<(), Fault>>,
{
    let mut pipes = std::pin::pin!(pipes);
    tokio::select! {
        biased;
        served = pipes.as_mut() => {
            served?;
            Ok(process.wait().await)
        }
        status = process.wait() => {
            pipes.await?;
            Ok(status)
        }
    }
}

async fn read_answer(
    stdout: Option<pipe::Receiver>,
    output: &mut CommandOutput,
    out: &Sink,
    said_its_end: &CancellationToken,
) -> Result<(), Fault> {
    let Some(mut stdout) = stdout else { return Ok(()) };
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = stdout.read(&mut buffer).await;
        let count = read.map_err(|source| Fault::Io("read the stdout", source))?;
        if count == 0 {
            return Ok(());
        }
        for piece in output.push(&buffer[..count]) {
            emit(out, piece).await;
        }
        if let Some(fault) = output.fault() {
            return Err(Fault::Output(fault));
        }
        if output.has_ended() {
            said_its_end.cancel();
        }
    }
}

async fn read_stderr(stderr: Option<pipe::Receiver>, log: &mut StderrLog, warn: &impl Fn(&str)) -> Result<(), Fault> {
    let Some(mut stderr) = stderr else { return Ok(()) };
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = stderr.read(&mut buffer).await;
        let count = read.map_err(|source| Fault::Io("read the stderr", source))?;
        if count == 0 {
            return Ok(());
        }
        log.push(&buffer[..count]).iter().for_each(|line| warn(line));
    }
}

fn warn_of_bad_output(output: &CommandOutput, warn: &impl Fn(&str)) {
    if output.invalid_sequences() > 0 {
        let count = output.invalid_sequences();
        warn(&format!("stdout was not UTF-8 in {count} places; U+FFFD stands for them"));
    }
    if output.ignored_lines() > 0 {
        let count = output.ignored_lines();
        warn(&format!("{count} lines of stdout were no stream events and were ignored"));
    }
}

/// The stderr of one turn: which lines are logged, how many are not, and how it ended.
#[derive(Debug, Default)]
struct StderrLog {
    line: Vec<u8>,
    cut: bool,
    logged: u32,
    dropped: u64,
    tail: Vec<u8>,
}

impl StderrLog {
    /// Takes the next bytes and returns the lines to log.
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(STDERR_TAIL_BYTES)..]);
        self.tail.drain(..self.tail.len().saturating_sub(STDERR_TAIL_BYTES));
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = part.strip_suffix(b"\n").unwrap_or(part);
            let room = STDERR_LINE_BYTES_MAX - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            self.cut |= text.len() > room;
            if text.len() < part.len() {
                lines.extend(self.end_line());
            }
        }
        lines
    }

    /// Takes the end of stderr and returns the last lines to log.
    fn finish(&mut self) -> Vec<String> {
        let mut lines = Vec::from_iter(self.end_line());
        if self.dropped > 0 {
            lines.push(format!("{} more lines of stderr were not logged", self.dropped));
        }
        lines
    }

    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let cut = if std::mem::take(&mut self.cut) { " [cut]" } else { "" };
        let text = printable(&line);
        if text.trim().is_empty() {
            return None;
        }
        if self.logged == STDERR_LINES_MAX {
            self.dropped += 1;
            return None;
        }
        self.logged += 1;
        Some(format!("{}{cut}", text.trim_end()))
    }

    /// The end of stderr, after what the agent reported on stdout, if it did.
    fn tail(&self, reported: Option<&str>) -> String {
        let tail = printable(&self.tail);
        match (reported, tail.trim()) {
            (None, tail) => tail.to_owned(),
            (Some(reported), "") => reported.to_owned(),
            (Some(reported), tail) => format!("{reported}\n{tail}"),
        }
    }
}

/// Text for a log or a terminal: no escape sequences, nothing that isn't UTF-8.
fn printable(bytes: &[u8]) -> String {
    let keep = |c: char| !c.is_control() || matches!(c, '\n' | '\t' | '\r');
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|c| if keep(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

fn environment(own: impl Fn(&str) -> Option<String>, pass: &[String], configured: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let passed = ENV_ALWAYS.iter().copied().chain(pass.iter().map(String::as_str));
    let mut env: BTreeMap<String, String> = passed.filter_map(|name| Some((name.to_owned(), own(name)?))).collect();
    env.extend(configured.iter().map(|(name, value)| (name.clone(), value.clone())));
    env.into_iter().collect()
}

#[derive(Serialize)]
struct TurnInput<'a> {
    run_id: &'a str,
    session_label: &'a str,
    agent: &'a str,
    message: InputMessage<'a>,
    history: &'a [super::Message],
    /// Left out without any: an agent without a memory has no such key.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    memory: &'a [super::Memory],
    permissions: &'a serde_json::Value,
    /// What the definition of a project says of its agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions: Option<&'a str>,
}

/// What is told of a message, of the turn's own and of one that reaches it later.
#[derive(Serialize)]
pub(super) struct InputMessage<'a> {
    pub(super) content: &'a str,
    pub(super) attachments: &'a serde_json::Value,
    pub(super) sender: &'a super::Sender,
    pub(super) channel: &'a str,
    pub(super) capabilities: &'a serde_json::Value,
}

/// The one line a command reads (contract, 'Command runner').
fn input_line(turn: &Turn) -> io::Result<Vec<u8>> {
    let input = TurnInput {
        run_id: &turn.run_id,
        session_label: &turn.session_label,
        agent: &turn.agent,
        message: InputMessage {
            content: &turn.content,
            attachments: &turn.attachments,
            sender: &turn.sender,
            channel: &turn.channel,
            capabilities: &turn.capabilities,
        },
        history: &turn.history,
        memory: &turn.memory,
        permissions: &turn.permissions,
        instructions: turn.instructions.as_deref(),
    };
    let mut line = serde_json::to_vec(&input)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
