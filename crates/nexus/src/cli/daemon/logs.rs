//! `nexus daemon logs`: the log of a detached daemon, made readable on a terminal.

use super::{levels, tail};
use crate::cli::failure::{Exit, Failure};
use crate::cli::out::{Color, Out, Paint, visible};
use crate::cli::{Global, block_on, units};
use anyhow::Context;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use nexus_core::config::LogLevel;
use serde_json::{Map, Value};
use std::fs::File;
use std::path::Path;
use std::time::Duration;

/// How often a followed file is looked at.
const FOLLOW_PERIOD: Duration = Duration::from_millis(250);
/// Most lines that can be asked for: they are held in memory.
const LINES_MAX: i64 = 1_000_000;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// How many lines to begin with
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=LINES_MAX))]
    lines: u32,
    /// Only lines of this level or a more severe one
    #[arg(long, value_name = "LEVEL", value_parser = levels())]
    level: Option<LogLevel>,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let path = global.paths()?.log_file();
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(no_log(&path).into()),
        Err(error) => return Err(error).with_context(|| format!("failed to open the log `{}`", path.display())),
    };
    let printer = Printer { out: global.out(), level: args.level, zone: TimeZone::system() };
    // What is half written is left to the follower.
    let end = if args.follow { tail::end_of_lines(&file)? } else { file.metadata()?.len() };
    let count = usize::try_from(args.lines)?;
    let lines = tail::last_lines(&file, 0..end, count, |line| printer.wants(line)).context("failed to read the log")?;
    for line in lines {
        printer.print(&line)?;
    }
    if args.follow {
        let follower = tail::Follower::new(&path, file, end);
        block_on(follow(follower, &printer))??;
    }
    Ok(Exit::Done)
}

fn no_log(path: &Path) -> Failure {
    let text = format!(
        "there is no log at {}\nA daemon in the foreground logs to its terminal; `nexus daemon start --detach` logs to this file.",
        path.display()
    );
    Failure::new(Exit::NotFound, text)
}

/// Until the user stops it, or nobody reads any more.
async fn follow(mut follower: tail::Follower, printer: &Printer) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(FOLLOW_PERIOD);
    loop {
        ticks.tick().await;
        loop {
            let (lines, more) = follower.poll().context("failed to follow the log")?;
            for line in lines.iter().filter(|line| printer.wants(line)) {
                printer.print(line)?;
            }
            if !more {
                break;
            }
        }
    }
}

struct Printer {
    out: Out,
    level: Option<LogLevel>,
    zone: TimeZone,
}

impl Printer {
    /// Lines that say no level are wanted always: a panic must not be hidden.
    fn wants(&self, line: &[u8]) -> bool {
        let Some(least) = self.level else { return true };
        level_of(line).is_none_or(|level| level >= rank(least))
    }

    fn print(&self, line: &[u8]) -> anyhow::Result<()> {
        if self.out.terminal && !self.out.json {
            self.out.line(&pretty(line, self.out.paint, &self.zone))?;
        } else {
            self.out.raw(&[line, b"\n"].concat())?;
        }
        Ok(())
    }
}

fn level_of(line: &[u8]) -> Option<u8> {
    #[derive(serde::Deserialize)]
    struct Levelled<'l> {
        #[serde(borrow)]
        level: std::borrow::Cow<'l, str>,
    }
    let line: Levelled<'_> = serde_json::from_slice(line).ok()?;
    Some(LogLevel::parse(&line.level).map_or(0, rank))
}

/// Severity; 0 is below all levels that can be asked for.
fn rank(level: LogLevel) -> u8 {
    match level {
        LogLevel::Debug => 1,
        LogLevel::Info => 2,
        LogLevel::Warn => 3,
        LogLevel::Error => 4,
    }
}

/// `2026-02-05 14:30:00 INFO  Daemon started pid=12345`; what is not one of our lines, as it is.
fn pretty(line: &[u8], paint: Paint, zone: &TimeZone) -> String {
    let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(line) else {
        return visible(&String::from_utf8_lossy(line));
    };
    let text = |key: &str| fields.get(key).and_then(Value::as_str).unwrap_or("");
    let time = text("ts").parse::<Timestamp>().map_or_else(|_| text("ts").to_owned(), |time| units::second(time.as_millisecond(), zone));
    let level = text("level");
    let color = match LogLevel::parse(level) {
        Some(LogLevel::Error) => Color::Red,
        Some(LogLevel::Warn) => Color::Yellow,
        Some(LogLevel::Info) => Color::Green,
        Some(LogLevel::Debug) | None => Color::Dim,
    };
    let level = paint.apply(color, &visible(&format!("{:<5}", level.to_uppercase())));
    let mut shown = format!("{} {level} {}", paint.apply(Color::Dim, &visible(&time)), visible(text("msg")));
    let is_told = |(key, value): &(&String, &Value)| !value.is_null() && !["ts", "level", "msg"].contains(&key.as_str());
    for (key, value) in fields.iter().filter(is_told) {
        let value = match value.as_str() {
            Some(word) if !word.is_empty() && !word.contains(char::is_whitespace) => word.to_owned(),
            Some(_) | None => value.to_string(),
        };
        shown.push_str(&format!(" {}={}", paint.apply(Color::Dim, &visible(key)), visible(&value)));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] =
        br#"{"ts":"2026-02-05T14:30:02.012Z","level":"warn","msg":"Adapter health degraded","adapter":"gog","reason":"no answer"}"#;

    #[test]
    fn a_line_is_made_readable() {
        let shown = pretty(LINE, Paint::PLAIN, &TimeZone::UTC);
        assert_eq!(shown, "2026-02-05 14:30:02 WARN  Adapter health degraded adapter=gog reason=\"no answer\"");
        let shown = pretty(br#"{"ts":"","level":"info","msg":"gone","code":3,"signal":null}"#, Paint::PLAIN, &TimeZone::UTC);
        assert!(shown.ends_with("gone code=3"), "{shown}");
    }

    #[test]
    fn what_is_no_log_line_is_shown_harmlessly() {
        assert_eq!(pretty(b"thread 'main' panicked\x1b[2J", Paint::PLAIN, &TimeZone::UTC), "thread 'main' panicked\u{fffd}[2J");
        assert_eq!(pretty(b"{}", Paint::PLAIN, &TimeZone::UTC), "       ");
        assert_eq!(pretty(b"\xff", Paint::PLAIN, &TimeZone::UTC), "\u{fffd}");
    }

    #[test]
    fn levels_filter_and_panics_stay() {
        let printer = |level| Printer { out: Out::new(false), level, zone: TimeZone::UTC };
        assert!(printer(None).wants(LINE) && printer(Some(LogLevel::Info)).wants(LINE) && printer(Some(LogLevel::Warn)).wants(LINE));
        assert!(!printer(Some(LogLevel::Error)).wants(LINE));
        assert!(printer(Some(LogLevel::Error)).wants(b"thread 'main' panicked"));
        assert!(!printer(Some(LogLevel::Debug)).wants(br#"{"level":"trace"}"#));
    }
}
