//! This program as an adapter (docs/adapter-protocol.md): it copies prepared lines to stdout and
//! notes when it began and ended. It makes nothing up itself, so that its own CPU stays small.

use crate::clock;
use crate::event::CHANNEL;
use anyhow::{Context, Result, bail};
use rustix::fd::AsFd;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The first argument that makes this program an adapter.
pub(crate) const WORD: &str = "__adapter";
/// Variables by which it is told what to do.
const LINES: &str = "BENCH_LINES";
const STAMP: &str = "BENCH_STAMP";
const REPEAT_BYTES: &str = "BENCH_REPEAT_BYTES";
const LAST: &str = "BENCH_LAST";
const SUPPORTS: &str = "BENCH_SUPPORTS";
/// Written at a time: what a pipe holds.
const CHUNK_BYTES: usize = 64 * 1024;

/// The verb by which the daemon reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Monitor,
    Backfill,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Monitor => "monitor",
            Self::Backfill => "backfill",
        }
    }
}

/// What an adapter of this program is to do; the default says nothing and stays.
#[derive(Debug, Clone, Default)]
pub(crate) struct Task {
    /// A file whose lines are written.
    pub(crate) lines: Option<PathBuf>,
    /// Written over and over until this many bytes are reached, not once.
    pub(crate) repeat_bytes: Option<u64>,
    /// A file written once at the end.
    pub(crate) last: Option<PathBuf>,
    /// Where the times are noted.
    pub(crate) stamp: Option<PathBuf>,
}

/// The entry `adapters.NAME` of such an adapter. `accounts` is as in the configuration.
pub(crate) fn entry(own: &Path, verb: Verb, task: &Task, accounts: &Value) -> Value {
    let mut env = serde_json::Map::new();
    env.insert(SUPPORTS.into(), json!(verb.as_str()));
    for (name, path) in [(LINES, &task.lines), (LAST, &task.last), (STAMP, &task.stamp)] {
        if let Some(path) = path {
            env.insert(name.into(), json!(path));
        }
    }
    if let Some(bytes) = task.repeat_bytes {
        env.insert(REPEAT_BYTES.into(), json!(bytes.to_string()));
    }
    // Split like a shell: the quotes keep a path together.
    json!({ "command": format!("'{}' {WORD}", own.display()), "env": env, "accounts": accounts })
}

/// When an adapter wrote its lines, in nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) begun_ns: u64,
    pub(crate) bytes: u64,
}

/// Reads what an adapter noted; `None` until it has begun.
pub(crate) fn stamp(path: &Path) -> Option<Stamp> {
    let text = fs::read_to_string(path).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    Some(Stamp { begun_ns: numbers.next()?.ok()?, bytes: numbers.next()?.ok()? })
}

/// Does one verb of the protocol. `monitor` never returns.
///
/// # Errors
/// An unknown verb, and files that can't be read or written.
pub(crate) fn run(args: &[String]) -> Result<()> {
    match args.first().map(String::as_str) {
        Some("info") => info(),
        Some("backfill") => feed(),
        Some("monitor") => {
            feed()?;
            loop {
                std::thread::park();
            }
        }
        Some(_) | None => bail!("no verb of this adapter: {args:?}"),
    }
}

fn info() -> Result<()> {
    let supports = std::env::var(SUPPORTS).unwrap_or_else(|_| Verb::Monitor.as_str().into());
    let info = json!({ "channel": CHANNEL, "name": "nexus-bench", "version": "1", "supports": [supports], "multi_account": true });
    writeln!(io::stdout(), "{info}").context("failed to print the info")
}

fn feed() -> Result<()> {
    let Some(lines) = std::env::var_os(LINES).map(PathBuf::from) else { return Ok(()) };
    let repeat =
        std::env::var(REPEAT_BYTES).ok().map(|bytes| bytes.parse::<u64>()).transpose().context("BENCH_REPEAT_BYTES is no number")?;
    // Not through std's stdout, which looks for newlines.
    let mut out = File::from(io::stdout().as_fd().try_clone_to_owned().context("failed to take stdout")?);
    let began = clock::monotonic_ns();
    note(began, 0)?;
    let mut written = match repeat {
        Some(bytes) => write_over_and_over(&mut out, &lines, bytes)?,
        None => copy(&mut out, &lines)?,
    };
    if let Some(last) = std::env::var_os(LAST) {
        written += copy(&mut out, Path::new(&last))?;
    }
    note(began, written)
}

fn write_over_and_over(out: &mut File, lines: &Path, bytes: u64) -> Result<u64> {
    let block = fs::read(lines).with_context(|| format!("failed to read `{}`", lines.display()))?;
    if block.is_empty() {
        bail!("`{}` is empty", lines.display());
    }
    let mut written = 0;
    while written < bytes {
        out.write_all(&block).context("failed to write events")?;
        written += block.len() as u64;
    }
    Ok(written)
}

fn copy(out: &mut File, path: &Path) -> Result<u64> {
    let mut file = File::open(path).with_context(|| format!("failed to open `{}`", path.display()))?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut written = 0;
    loop {
        let got = file.read(&mut chunk).with_context(|| format!("failed to read `{}`", path.display()))?;
        if got == 0 {
            return Ok(written);
        }
        out.write_all(&chunk[..got]).context("failed to write events")?;
        written += got as u64;
    }
}

/// Replaces the stamp as a whole: it may be read at any moment.
fn note(began: u64, bytes: u64) -> Result<()> {
    let Some(path) = std::env::var_os(STAMP).map(PathBuf::from) else { return Ok(()) };
    let draft = path.with_extension("draft");
    fs::write(&draft, format!("{began} {bytes}\n")).and_then(|()| fs::rename(&draft, &path)).context("failed to note the time")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_stamp_is_read_as_it_was_noted_and_only_when_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stamp");
        assert_eq!(stamp(&path), None);
        fs::write(&path, "17 ").unwrap();
        assert_eq!(stamp(&path), None);
        fs::write(&path, "17 4096\n").unwrap();
        assert_eq!(stamp(&path), Some(Stamp { begun_ns: 17, bytes: 4096 }));
    }

    #[test]
    fn lines_are_repeated_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (lines, out) = (dir.path().join("lines"), dir.path().join("out"));
        fs::write(&lines, "one\ntwo\n").unwrap();
        assert_eq!(write_over_and_over(&mut File::create(&out).unwrap(), &lines, 9).unwrap(), 16);
        assert_eq!(fs::read_to_string(&out).unwrap(), "one\ntwo\none\ntwo\n");
        fs::write(&lines, "").unwrap();
        assert!(write_over_and_over(&mut File::create(&out).unwrap(), &lines, 9).is_err());
    }

    #[test]
    fn an_entry_names_only_what_there_is_to_do() {
        let entry = entry(Path::new("/a b/x"), Verb::Monitor, &Task::default(), &json!({ "me": {} }));
        assert_eq!(entry["command"], "'/a b/x' __adapter");
        assert_eq!(entry["env"], json!({ "BENCH_SUPPORTS": "monitor" }));
    }
}
