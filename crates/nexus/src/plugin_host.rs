//! The `nexus __plugin-host` process: runs one plugin, a TypeScript or JavaScript file, for the daemon, which
//! calls its hooks over stdin and stdout; and `nexus __automation-host`, which does the same for all automations at
//! once, a runtime each. It owns the words it is started with, and the order in which it
//! gives up what it doesn't need. It opens one file, the plugin's, or none; it grants nothing: what a plugin asks
//! for, the daemon does or refuses. It uses nothing of the daemon's.

mod engine;
mod frame;
mod guests;
mod patch;
mod sandbox;
mod serve;
mod stage;
mod strip;
mod trouble;
mod watchdog;

use guests::{GUESTS_MAX, serve_guests};
use serve::{Lost, refuse, serve};
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::panic::resume_unwind;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::thread;
use std::time::Duration;
use trouble::Trouble;
use watchdog::Watchdog;

const USAGE: &str = "usage: --file PATH --name NAME [--memory-mb 64] [--stack-kb 512] [--call-ms 1000]";
const GUESTS_USAGE: &str = "usage: [--memory-mb 64] [--stack-kb 512] [--call-ms 1000]";
const EXIT_USAGE: u8 = 2;
/// The parser of TypeScript recurses, in places that nothing bounds but the length of the file. Of the memory only what is
/// used is taken.
const STACK_BYTES: usize = 256 * 1024 * 1024;
/// Longest file of a plugin.
const SOURCE_BYTES_MAX: u64 = 1024 * 1024;
const MEMORY_MB: RangeInclusive<u64> = 8..=4096;
/// The most is half of what a thread usually has.
const STACK_KB: RangeInclusive<u64> = 64..=4096;
const CALL_MS: RangeInclusive<u64> = 1..=3_600_000;

/// What one runtime may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    memory_bytes: usize,
    stack_bytes: usize,
    /// The JavaScript of one hook call, all its turns together.
    call: Duration,
}

impl Limits {
    fn memory(self, kind: Kind) -> String {
        format!("out of memory: more than {} MB; {}", self.memory_bytes / (1024 * 1024), kind.begins_anew())
    }
}

/// What a file is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plugin,
    Automation,
}

impl Kind {
    fn noun(self) -> &'static str {
        match self {
            Self::Plugin => "plugin",
            Self::Automation => "automation",
        }
    }

    /// What follows when its runtime is of no use any more.
    fn begins_anew(self) -> &'static str {
        match self {
            Self::Plugin => "the plugin begins anew, without its state",
            Self::Automation => "the automation begins anew, without its variables",
        }
    }
}

/// The words of the command line.
#[derive(Debug, PartialEq, Eq)]
struct Words {
    file: Option<String>,
    name: Option<String>,
    limits: Limits,
}

/// A plugin or an automation as it is evaluated: JavaScript, and the name under which its places are told.
#[derive(Debug)]
struct Plugin {
    kind: Kind,
    name: String,
    file: Rc<str>,
    source: String,
}

/// Runs the plugin until the daemon closes stdin; `args` are the words after `__plugin-host`.
///
/// Exit codes: 0 done, 1 the plugin can't be loaded (the daemon was told why) or the daemon is gone, 2 usage.
pub(crate) fn main(args: &[String]) -> ExitCode {
    begin(args, USAGE, |words| {
        let given = |word: Option<String>, flag: &str| word.filter(|word| !word.is_empty()).ok_or_else(|| format!("`{flag}` is required"));
        let (file, name) = (given(words.file, "--file")?, given(words.name, "--name")?);
        Ok(run(file, name, words.limits))
    })
}

/// Runs automations until the daemon closes stdin; `args` are the words after `__automation-host`.
///
/// Exit codes: 0 done, 1 the daemon is gone, 2 usage.
pub(crate) fn main_of_automations(args: &[String]) -> ExitCode {
    begin(args, GUESTS_USAGE, |words| match words {
        Words { file: None, name: None, limits } => Ok(run_guests(limits)),
        Words { .. } => Err("`--file` and `--name` are for `__plugin-host`: the daemon says which automations there are".to_owned()),
    })
}

fn begin(args: &[String], usage: &str, run: impl FnOnce(Words) -> Result<Result<(), Lost>, String> + Send) -> ExitCode {
    crate::memory::bound_arenas();
    sandbox::shed();
    match parse(args).and_then(|words| on_a_large_stack(|| run(words))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            say(crate::error_text::describe(&error));
            ExitCode::FAILURE
        }
        Err(problem) => {
            say(format!("{problem}; {usage}"));
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// A thread is started before there can be none.
fn on_a_large_stack(work: impl FnOnce() -> Result<Result<(), Lost>, String> + Send) -> Result<Result<(), Lost>, String> {
    thread::scope(|scope| {
        let host = thread::Builder::new().name("host".to_owned()).stack_size(STACK_BYTES).spawn_scoped(scope, work);
        let host = host.map_err(|error| format!("failed to start a thread: {error}"))?;
        match host.join() {
            Ok(done) => done,
            Err(panicked) => resume_unwind(panicked),
        }
    })
}

fn run_guests(limits: Limits) -> Result<(), Lost> {
    let watchdog = confine(limits, GUESTS_MAX).map_err(Lost::Confine)?;
    serve_guests(limits, Rc::new(watchdog), io::stdin().lock(), io::stdout().lock())
}

fn run(file: String, name: String, limits: Limits) -> Result<(), Lost> {
    let (input, output) = (io::stdin().lock(), io::stdout().lock());
    let source = match read(&file) {
        Ok(source) => source,
        Err(trouble) => return refuse(None, &trouble, output),
    };
    let watchdog = match confine(limits, 1) {
        Ok(watchdog) => watchdog,
        Err(error) => return refuse(None, &Trouble::new(format!("failed to confine the plugin: {error}")), output),
    };
    let source = match stripped(source, &file) {
        Ok(source) => source,
        Err(trouble) => return refuse(None, &trouble, output),
    };
    serve(Plugin { kind: Kind::Plugin, name, file: Rc::from(file), source }, limits, Rc::new(watchdog), input, output)
}

/// Nothing can be opened or started after this. `runtimes` is how many there may be.
fn confine(limits: Limits, runtimes: usize) -> io::Result<Watchdog> {
    let watchdog = Watchdog::start()?;
    sandbox::enter(u64::try_from(limits.memory_bytes.saturating_mul(runtimes)).unwrap_or(u64::MAX))?;
    Ok(watchdog)
}

/// The file's text.
fn read(file: &str) -> Result<String, Trouble> {
    let failed = |error: io::Error| Trouble::new(format!("failed to read `{file}`: {error}"));
    let mut bytes = Vec::new();
    File::open(file).map_err(failed)?.take(SOURCE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > SOURCE_BYTES_MAX {
        return Err(Trouble::new(format!("`{file}` is longer than {SOURCE_BYTES_MAX} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|error| Trouble::new(format!("`{file}` is not UTF-8: {error}")))?;
    Ok(text.strip_prefix('\u{feff}').map_or_else(|| text.clone(), str::to_owned))
}

/// The JavaScript of the file.
fn stripped(source: String, file: &str) -> Result<String, Trouble> {
    match Path::new(file).extension().and_then(|extension| extension.to_str()) {
        Some("ts") => strip::types(&source, file),
        Some("js") => Ok(source),
        Some(_) | None => Err(Trouble::new(format!("`{file}` is no script; its name must end in .ts or .js"))),
    }
}

fn parse(args: &[String]) -> Result<Words, String> {
    let (mut file, mut name) = (None, None);
    let (mut memory_mb, mut stack_kb, mut call_ms) = (64, 512, 1000);
    let mut rest = args.iter();
    while let Some(flag) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("`{flag}` lacks its value"))?;
        match flag.as_str() {
            "--file" => file = Some(value.clone()),
            "--name" => name = Some(value.clone()),
            "--memory-mb" => memory_mb = number(flag, value, &MEMORY_MB)?,
            "--stack-kb" => stack_kb = number(flag, value, &STACK_KB)?,
            "--call-ms" => call_ms = number(flag, value, &CALL_MS)?,
            _ => return Err(format!("`{flag}` is unknown")),
        }
    }
    let bytes = |count: u64, unit: u64| usize::try_from(count * unit).map_err(|_| "this machine can't count so many bytes".to_owned());
    let limits =
        Limits { memory_bytes: bytes(memory_mb, 1024 * 1024)?, stack_bytes: bytes(stack_kb, 1024)?, call: Duration::from_millis(call_ms) };
    Ok(Words { file, name, limits })
}

fn number(flag: &str, value: &str, range: &RangeInclusive<u64>) -> Result<u64, String> {
    let number = value.parse::<u64>().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("`{flag}` must be {} to {}, not `{value}`", range.start(), range.end()))
}

/// Writes one line to stderr, which the daemon logs.
fn say(text: impl Display) {
    // When stderr is gone nobody is left to tell.
    writeln!(io::stderr(), "plugin host: {text}").ok();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(line: &str) -> Result<Words, String> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn words_have_defaults_and_bounds() {
        let limits = Limits { memory_bytes: 64 << 20, stack_bytes: 512 << 10, call: Duration::from_secs(1) };
        let expected = Words { file: Some("p/x.ts".to_owned()), name: Some("x".to_owned()), limits };
        assert_eq!(words("--file p/x.ts --name x").unwrap(), expected);
        let others = words("--name x --call-ms 20 --file p/x.ts --memory-mb 8 --stack-kb 64").unwrap();
        assert_eq!(others.limits, Limits { memory_bytes: 8 << 20, stack_bytes: 64 << 10, call: Duration::from_millis(20) });
        assert_eq!(words("").unwrap(), Words { file: None, name: None, limits });
        for line in [
            "--file x.ts --name",
            "--file x.ts --name x --call-ms 0",
            "--file x.ts --name x --memory-mb 7",
            "--file x.ts --name x --stack-kb many",
            "--file x.ts --name x --shell yes",
        ] {
            assert!(words(line).is_err(), "{line}");
        }
    }

    #[test]
    fn only_two_kinds_of_files_are_plugins() {
        assert_eq!(stripped("1 as any".to_owned(), "x.js").unwrap(), "1 as any");
        assert_eq!(stripped("1 as any".to_owned(), "x.ts").unwrap().trim_end(), "1");
        for file in ["x", "x.mts", "x.json", "ts"] {
            assert!(stripped(String::new(), file).unwrap_err().message.contains("must end in .ts or .js"), "{file}");
        }
    }
}
