//! `host`: calls of an empty hook through the host of plugins, a child process and its two pipes, with the
//! bench in the daemon's place.

use crate::report::quantile;
use crate::{Bench, clock, procfs};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

const RUNS: u32 = 3;
const CALLS: u32 = 20_000;
/// Calls before the clock starts.
const WARM_UP: u32 = 200;
const PLUGIN: &str = "export const plugin = { name: 'empty', afterReceiveEvent(req) {} };\n";
const ASYNC_PLUGIN: &str = "export const plugin = { name: 'empty', async afterReceiveEvent(req) {} };\n";

#[derive(Debug, clap::Args)]
pub(crate) struct Host {
    /// Calls of each run.
    #[arg(long, default_value_t = CALLS, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    calls: u32,
    /// Bytes of the request, as JSON.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1024..=1_000_000))]
    request_bytes: u32,
}

impl Host {
    /// As the command line has it if nothing is said, with requests of this length.
    pub(crate) fn with(request_bytes: u32) -> Self {
        Self { calls: CALLS, request_bytes }
    }
}

pub(crate) fn run(bench: &Bench, host: &Host) -> Result<()> {
    for (kind, source) in [("a hook", PLUGIN), ("an async hook", ASYNC_PLUGIN)] {
        let (mut p50_us, mut p99_us, mut cpu_us, mut rss, mut ready_ms) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..bench.runs(RUNS) {
            let run = measure(bench, host, source)?;
            p50_us.push(quantile(&run.times_us, 0.5));
            p99_us.push(quantile(&run.times_us, 0.99));
            cpu_us.push(run.cpu_us);
            rss.push(run.rss_mib);
            ready_ms.push(run.ready_ms);
        }
        let name = format!("plugin host, {} calls of {kind} with {} B", host.calls, host.request_bytes);
        bench.report.row(&format!("{name}: there and back, p50"), "us", &p50_us)?;
        bench.report.row(&format!("{name}: there and back, p99"), "us", &p99_us)?;
        bench.report.row(&format!("{name}: host"), "CPU us/call", &cpu_us)?;
        bench.report.row(&format!("{name}: host"), "MiB RSS", &rss)?;
        bench.report.row(&format!("{name}: exec to ready"), "ms", &ready_ms)?;
    }
    Ok(())
}

struct Run {
    times_us: Vec<f64>,
    cpu_us: f64,
    rss_mib: f64,
    ready_ms: f64,
}

/// A host that is killed when it is dropped.
struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    answer: String,
}

fn measure(bench: &Bench, host: &Host, source: &str) -> Result<Run> {
    let dir = tempfile::tempdir_in(&bench.dir).context("failed to make a temporary directory")?;
    let file = dir.path().join("empty.js");
    std::fs::write(&file, source).context("failed to write a plugin")?;
    let began = Instant::now();
    let mut process = Process::start(&bench.nexus, &file)?;
    let ready_ms = clock::ms(began.elapsed());
    let request = request(host.request_bytes as usize).to_string();
    for id in 0..WARM_UP {
        process.call(id, &request)?;
    }
    let cpu_before_ns = procfs::run_ns(process.child.id())?;
    let mut times_us = Vec::with_capacity(host.calls as usize);
    for id in WARM_UP..WARM_UP.saturating_add(host.calls) {
        let began = Instant::now();
        process.call(id, &request)?;
        times_us.push(clock::ms(began.elapsed()) * 1e3);
    }
    let cpu_ns = procfs::run_ns(process.child.id())?.saturating_sub(cpu_before_ns);
    let rss_mib = procfs::rss_kib(process.child.id())? as f64 / 1024.0;
    Ok(Run { times_us, cpu_us: cpu_ns as f64 / 1e3 / f64::from(host.calls), rss_mib, ready_ms })
}

impl Process {
    #[expect(clippy::disallowed_methods, reason = "the program is started as the daemon starts it")]
    fn start(nexus: &Path, file: &Path) -> Result<Self> {
        let mut child = Command::new(nexus)
            .args(["__plugin-host", "--name", "empty", "--file"])
            .arg(file)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("failed to start the host")?;
        let stdin = child.stdin.take().context("the host has no stdin")?;
        let stdout = BufReader::new(child.stdout.take().context("the host has no stdout")?);
        let mut process = Self { child, stdin, stdout, answer: String::new() };
        process.hear()?;
        ensure!(process.answer.starts_with("{\"ready\":"), "the host isn't ready: {}", process.answer);
        Ok(process)
    }

    fn hear(&mut self) -> Result<()> {
        self.answer.clear();
        let bytes = self.stdout.read_line(&mut self.answer).context("failed to read from the host")?;
        ensure!(bytes > 0, "the host ended");
        Ok(())
    }

    /// One hook call and its answer.
    fn call(&mut self, id: u32, request: &str) -> Result<()> {
        let line = format!("{{\"id\":{id},\"hook\":\"afterReceiveEvent\",\"request\":{request},\"deadline_ms\":1000}}\n");
        self.stdin.write_all(line.as_bytes()).context("failed to write to the host")?;
        self.hear()?;
        ensure!(self.answer.contains("\"result\":\"continue\""), "another answer: {}", self.answer);
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A request as the daemon sends it after stage 5, with a message that makes it this long.
fn request(bytes: usize) -> Value {
    let stage = |name: &str| json!({ "stage": name, "started_at": 1_770_000_000_000_u64, "duration_ms": 0.0421 });
    let mut request = json!({
        "request_id": "req_01J0000000000000000000000", "event_seq": 4711, "created_at": 1_770_000_000_000_u64, "status": "processing",
        "event": { "event_id": "bench:000001", "timestamp": 1_770_000_000_000_u64, "content": "", "content_type": "text", "channel": "bench",
            "account_id": "me", "sender_id": "u", "sender_name": "Somebody", "peer_id": "p", "peer_kind": "dm" },
        "delivery": { "channel": "bench", "account_id": "me", "target": "p", "reply_to_id": "000001" },
        "principal": { "type": "owner", "tags": [], "identities": ["bench:u"] },
        "access": { "decision": "allow", "permissions": { "tools": { "allow": ["*"], "deny": [] } } },
        "pipeline": [stage("receiveEvent"), stage("resolveIdentity"), stage("resolveAccess"), stage("runAutomations")],
    });
    let missing = bytes.saturating_sub(request.to_string().len());
    request["event"]["content"] = json!("lorem ipsum ".repeat(missing / 12 + 1).get(..missing).unwrap_or_default());
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_length_asked_for() {
        for bytes in [2048, 4096] {
            assert_eq!(request(bytes).to_string().len(), bytes);
        }
    }
}
