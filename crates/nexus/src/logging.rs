//! Structured logging: one flat JSON object per line (`ts, level, msg, ...`), or readable lines on a
//! terminal. The level changes at run time; a log file is reopened on SIGHUP.

use nexus_core::config::LogLevel;
use serde::Serialize;
use serde_json::Value;
use std::fmt;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tracing::field::{Field, FieldSet, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, Registry, reload};

/// Room for most lines, so that they are written into it as they come.
const LINE_BYTES_USUAL: usize = 256;

/// Where lines go.
#[derive(Debug)]
enum Sink {
    /// A terminal, or who reads stderr: readable lines there.
    Terminal,
    /// Not a terminal: JSON lines on stdout.
    Stdout,
    File {
        path: PathBuf,
        file: File,
    },
}

/// Handle for what a running daemon changes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Logging {
    level: reload::Handle<LevelFilter, Registry>,
    sink: Arc<Mutex<Sink>>,
}

impl Logging {
    /// Installs the logger for this process: to `file`, else to a terminal or stdout.
    ///
    /// # Errors
    /// When the file can't be opened, or a logger is installed already.
    pub fn install(level: LogLevel, file: Option<PathBuf>) -> anyhow::Result<Self> {
        let sink = match file {
            Some(path) => Sink::File { file: open(&path)?, path },
            None if std::io::stdout().is_terminal() => Sink::Terminal,
            None => Sink::Stdout,
        };
        Self::install_on(level, sink)
    }

    /// The same, readable on stderr: for a process whose stdout carries a protocol.
    ///
    /// # Errors
    /// When a logger is installed already.
    pub(crate) fn install_on_stderr(level: LogLevel) -> anyhow::Result<Self> {
        Self::install_on(level, Sink::Terminal)
    }

    fn install_on(level: LogLevel, sink: Sink) -> anyhow::Result<Self> {
        let sink = Arc::new(Mutex::new(sink));
        let (filter, handle) = reload::Layer::new(filter(level));
        let subscriber = Registry::default().with(filter).with(Lines::on(&sink));
        tracing::subscriber::set_global_default(subscriber)?;
        Ok(Self { level: handle, sink })
    }

    pub fn set_level(&self, level: LogLevel) {
        if let Err(error) = self.level.reload(filter(level)) {
            tracing::error!(%error, "log level not changed");
        }
    }

    /// Opens the log file anew, after a rotation. Keeps the old one if that fails.
    pub fn reopen(&self) {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = match &mut *sink {
            Sink::File { path, file } => open(path).map(|new| *file = new).err(),
            Sink::Terminal | Sink::Stdout => None,
        };
        drop(sink);
        if let Some(error) = failed {
            tracing::error!(%error, "log file not reopened, the old one is still written");
        }
    }
}

fn open(path: &std::path::Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    }
}

struct Lines {
    sink: Arc<Mutex<Sink>>,
    is_readable: bool,
}

impl Lines {
    fn on(sink: &Arc<Mutex<Sink>>) -> Self {
        // Another file may come, but no other kind of sink.
        let is_readable = matches!(*sink.lock().unwrap_or_else(PoisonError::into_inner), Sink::Terminal);
        Self { sink: sink.clone(), is_readable }
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        is_heard(metadata.target(), *metadata.level())
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        fields.complete(event.metadata().fields());
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        let ts = crate::clock::rfc3339(crate::clock::wall_ms());
        // Before the lock, for which all others wait.
        let line = if self.is_readable { fields.readable(&ts, level).into_bytes() } else { fields.json(&ts, level) };
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk must not stop the daemon, and there is nowhere else to say it.
        drop(match &mut *sink {
            Sink::Terminal => std::io::stderr().write_all(&line),
            Sink::Stdout => std::io::stdout().write_all(&line),
            Sink::File { file, .. } => file.write_all(&line),
        });
    }
}

/// Libraries are heard from `warn` on: their info lines are about themselves. Two of them quote in their warnings
/// what they read, which is other people's, and as often as somebody makes them.
fn is_heard(target: &str, level: Level) -> bool {
    let is_of = |name: &str| target == name || target.strip_prefix(name).is_some_and(|rest| rest.starts_with("::"));
    let ours = target.starts_with("nexus") || matches!(target, "child" | "plugin");
    let least = if is_of("rmcp") || is_of("genai") { Level::ERROR } else { Level::WARN };
    ours || level <= least
}

/// What one line says, in the order in which it was said. Its names are those of the program's text.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl Fields {
    fn json(&self, ts: &str, level: &str) -> Vec<u8> {
        let mut line = Vec::with_capacity(LINE_BYTES_USUAL);
        line.extend_from_slice(b"{\"ts\":\"");
        line.extend_from_slice(ts.as_bytes());
        line.extend_from_slice(b"\",\"level\":\"");
        line.extend_from_slice(level.as_bytes());
        line.extend_from_slice(b"\",\"msg\":");
        put(&mut line, &self.message);
        for (name, value) in &self.fields {
            line.push(b',');
            put(&mut line, name);
            line.push(b':');
            put(&mut line, value);
        }
        line.extend_from_slice(b"}\n");
        line
    }

    fn readable(&self, ts: &str, level: &str) -> String {
        let time = ts.get(11..19).unwrap_or(ts);
        let mut line = format!("{time} {level:<5} {}", self.message);
        for (name, value) in &self.fields {
            match value {
                Value::String(text) => line.push_str(&format!("  {name}={text}")),
                Value::Null => {}
                Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => line.push_str(&format!("  {name}={value}")),
            }
        }
        line.push('\n');
        line
    }

    /// Those of `all` that have no value are null: who reads the lines need not guess whether one was forgotten.
    fn complete(&mut self, all: &FieldSet) {
        for field in all.iter().filter(|field| field.name() != "message") {
            let name = key_of(&field);
            if !self.fields.iter().any(|(known, _)| *known == name) {
                self.fields.push((name, Value::Null));
            }
        }
    }

    fn set(&mut self, field: &Field, value: Value) {
        self.fields.push((key_of(field), value));
    }
}

/// Writes a value as JSON.
fn put(line: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(line, value).expect("texts and JSON values can be written, and memory takes them");
}

/// `ts`, `level` and `msg` are ours.
fn key_of(field: &Field) -> &'static str {
    match field.name() {
        "ts" => "ts_",
        "level" => "level_",
        "msg" => "msg_",
        name => name,
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" { value.clone_into(&mut self.message) } else { self.set(field, value.into()) }
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" { self.message = text } else { self.set(field, text.into()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn libraries_are_heard_from_where_they_tell_of_themselves() {
        assert!(is_heard("nexus::agent", Level::DEBUG) && is_heard("child", Level::INFO) && is_heard("plugin", Level::DEBUG));
        assert!(is_heard("hyper", Level::WARN) && !is_heard("hyper", Level::INFO));
        assert!(is_heard("rmcp::service", Level::ERROR) && is_heard("rmcpx", Level::WARN));
        assert!(!is_heard("rmcp::service", Level::WARN) && !is_heard("genai", Level::WARN));
    }

    #[test]
    fn a_field_without_a_value_is_null_and_on_a_terminal_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let sink = Arc::new(Mutex::new(Sink::File { file: open(&path).unwrap(), path: path.clone() }));
        tracing::subscriber::with_default(Registry::default().with(Lines::on(&sink)), || {
            tracing::info!(code = Some(3), signal = None::<i32>, "Project process exited");
        });
        let line: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!((&line["code"], line.get("signal")), (&Value::from(3), Some(&Value::Null)));
        let mut fields = Fields { message: "gone".into(), ..Fields::default() };
        fields.fields.push(("signal", Value::Null));
        assert_eq!(fields.readable("2026-02-05T14:30:00.123Z", "info"), "14:30:00 info  gone\n");
    }

    #[test]
    fn lines_are_flat_json_whatever_is_in_them() {
        let mut fields = Fields { message: "a \"b\"\n".into(), ..Fields::default() };
        fields.fields.push(("pid", 5.into()));
        let line = String::from_utf8(fields.json("2026-02-05T14:30:00.123Z", "info")).unwrap();
        assert_eq!(line.lines().count(), 1);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["msg"], "a \"b\"\n");
        assert_eq!(value["pid"], 5);
        assert!(line.starts_with("{\"ts\":\"2026-02-05T14:30:00.123Z\",\"level\":\"info\",\"msg\":"));
    }
}
