//! `nexus events ...`: what came in and went out.

use super::client::{Client, ClientError, encoded, with_query};
use super::failure::Exit;
use super::out::{Color, Out, Paint, note, one_line, visible};
use super::talk::{RECONNECT_LIMIT, RECONNECT_PAUSE};
use super::{Global, block_on, ledger, replay, units};
use crate::query::{self, EventsQuery};
use crate::unknown;
use jiff::tz::TimeZone;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Most events that can be asked for at once.
const LIMIT_MAX: i64 = 1000;
/// Longest content in a list, in characters.
const CONTENT_CHARS_MAX: usize = 120;
const STREAM: &str = "/api/events/stream";
/// The notices around which events are recorded.
const BELLS: &str = "adapter.in.*,adapter.out.*,nex.request.*,timer.*";
/// Notices come in bursts: one look answers all that come within this time.
const LOOK_SOON: Duration = Duration::from_millis(100);
/// What was sent is recorded half a second after it was.
const LOOK_LATER: Duration = Duration::from_secs(1);
/// Events fetched at a time: few, since each may have a text of 1 MiB.
const LOOK_ROWS: usize = 20;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  nexus events\n  nexus events tail -f --channel gmail")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show the newest events
    #[command(after_help = "Example:\n  nexus events tail -n 5 -f")]
    Tail(Tail),
    /// Show one event with all its fields
    #[command(after_help = "Example:\n  nexus events show gmail:18c2f0")]
    Show {
        /// Its id, as `channel:id`, its number, or its request's id
        id: String,
    },
    /// Run a received event again: a new request, linked to the first
    #[command(after_help = "Examples:\n  nexus events replay gmail:18c2f0\n  nexus events replay req_01JBX --wait")]
    Replay(replay::Args),
    /// Find events by their text
    #[command(after_help = "Example:\n  nexus events search invoice -n 5")]
    Search {
        /// What their text has to contain
        text: String,
        /// How many at most
        #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
        limit: u32,
    },
}

#[derive(Debug, Clone, clap::Args)]
struct Tail {
    /// How many to begin with
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
    limit: u32,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// Only this channel
    #[arg(long)]
    channel: Option<String>,
}

pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<Exit> {
    let verb = args.verb.unwrap_or(Verb::Tail(Tail { limit: 20, follow: false, channel: None }));
    block_on(async {
        match verb {
            Verb::Tail(tail) => tail_verb(&tail, global).await,
            Verb::Show { id } => show(&id, global).await,
            Verb::Replay(args) => replay::run(&args, false, global).await,
            Verb::Search { text, limit } => list(global, limit, None, Some(text)).await.map(|_| Exit::Done),
        }
    })?
}

async fn tail_verb(tail: &Tail, global: &Global) -> anyhow::Result<Exit> {
    let shown = list(global, tail.limit, tail.channel.clone(), None).await?;
    if tail.follow { follow(tail.channel.as_deref(), shown, global).await } else { Ok(Exit::Done) }
}

/// Answers the seq up to which the record was looked at.
async fn list(global: &Global, limit: u32, channel: Option<String>, text: Option<String>) -> anyhow::Result<i64> {
    let parameters = [("limit", Some(limit.to_string())), ("channel", channel.clone()), ("text", text.clone())];
    let path = with_query("/control/events", &parameters);
    let query = EventsQuery { limit: limit as usize, before: None, after: None, channel, text };
    let answer = ledger::ask(global, &path, |directory| query::events(&directory, &query)).await?;
    let printer = Printer::new(global.out());
    let events = answer["events"].as_array().map(Vec::as_slice).unwrap_or_default();
    let seqs = events.iter().map(|event| &event["seq"]).chain([&answer["last_seq"]]);
    let upto = seqs.filter_map(Value::as_i64).max().unwrap_or(0);
    if printer.out.json {
        printer.out.json(&answer)?;
        return Ok(upto);
    }
    if events.is_empty() {
        note("no events");
    }
    for event in events {
        printer.print(event)?;
    }
    Ok(upto)
}

async fn show(id: &str, global: &Global) -> anyhow::Result<Exit> {
    let path = format!("/control/events/{}", encoded(id));
    let event = ledger::find(global, unknown::event(id), &path, |directory| query::event(&directory, id)).await?;
    let out = global.out();
    if out.json {
        out.json(&event)?;
    } else {
        out.line(&render(&event, out.paint, &TimeZone::system()))?;
    }
    Ok(Exit::Done)
}

/// One field per line, the content last and whole.
fn render(event: &Value, paint: Paint, zone: &TimeZone) -> String {
    let mut lines = Vec::new();
    let is_out = event["direction"] == "outbound";
    // What was sent is history to the pipeline; a reader would take it for something that was missed.
    let is_shown = |key: &str, value: &Value| key != "content" && !value.is_null() && !(is_out && key == "disposition");
    let mut fields: Vec<_> = event.as_object().into_iter().flatten().filter(|(key, value)| is_shown(key, value)).collect();
    fields.sort_by_key(|(key, _)| *key);
    for (key, value) in fields {
        let text = match (key.as_str(), value.as_str(), value.as_i64()) {
            ("timestamp" | "received_at", _, Some(ms)) => units::second(ms, zone),
            (_, Some(text), _) => visible(text),
            (_, None, _) => visible(&value.to_string()),
        };
        lines.push(format!("{} {text}", paint.apply(Color::Dim, &format!("{key}:"))));
    }
    lines.push(format!("\n{}", visible(event["content"].as_str().unwrap_or(""))));
    lines.join("\n")
}

/// Events as they are recorded, across restarts of the daemon.
async fn follow(channel: Option<&str>, shown: i64, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let (client, printer) = (Client::new(&paths), Printer::new(global.out()));
    let mut follower = Follower { client, printer, channel, shown, connected: false };
    // No patience before the first connection.
    let mut give_up_at = Instant::now();
    loop {
        let ended = follower.listen().await;
        let now = Instant::now();
        if std::mem::take(&mut follower.connected) {
            give_up_at = now + RECONNECT_LIMIT;
        }
        if let Err(error) = ended
            && (now >= give_up_at || !passes(&error))
        {
            return Err(error);
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

/// Whether the stream may come back: the daemon is restarted, or was too fast for this reader.
fn passes(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(|error: &ClientError| error.is_passing() || matches!(error, ClientError::NotRunning))
}

struct Follower<'a> {
    client: Client<'a>,
    printer: Printer,
    channel: Option<&'a str>,
    /// All up to this seq are shown.
    shown: i64,
    connected: bool,
}

impl Follower<'_> {
    /// Looks at the record after each notice, until the daemon closes the stream. What a notice says
    /// doesn't matter: not every event has one of its own, and none tells when an answer is recorded.
    async fn listen(&mut self) -> anyhow::Result<()> {
        let mut lines = self.client.follow(&with_query(STREAM, &[("types", Some(BELLS.to_owned()))])).await?;
        self.connected = true;
        self.look().await?;
        let (mut soon, mut later): (Option<Instant>, Option<Instant>) = (None, None);
        loop {
            tokio::select! {
                line = lines.next() => {
                    let Some(line) = line? else { return Ok(()) };
                    if !line.is_empty() {
                        let now = Instant::now();
                        soon = soon.or(Some(now + LOOK_SOON));
                        later = Some(now + LOOK_LATER);
                    }
                }
                () = until(soon.into_iter().chain(later).min()) => {
                    let now = Instant::now();
                    self.look().await?;
                    soon = soon.filter(|at| *at > now);
                    later = later.filter(|at| *at > now);
                }
            }
        }
    }

    /// Shows what was recorded since the last look.
    async fn look(&mut self) -> anyhow::Result<()> {
        loop {
            let parameters = [
                ("limit", Some(LOOK_ROWS.to_string())),
                ("after", Some(self.shown.to_string())),
                ("channel", self.channel.map(str::to_owned)),
            ];
            let answer = self.client.get(&with_query("/control/events", &parameters)).await?;
            let events = answer["events"].as_array().map(Vec::as_slice).unwrap_or_default();
            for event in events {
                self.show(event)?;
                self.shown = self.shown.max(event["seq"].as_i64().unwrap_or(0));
            }
            if events.len() < LOOK_ROWS {
                self.shown = self.shown.max(answer["last_seq"].as_i64().unwrap_or(0));
                return Ok(());
            }
        }
    }

    fn show(&self, event: &Value) -> anyhow::Result<()> {
        if self.printer.out.json {
            self.printer.out.line(&event.to_string())?;
            return Ok(());
        }
        self.printer.print(event)
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

struct Printer {
    out: Out,
    zone: TimeZone,
}

impl Printer {
    fn new(out: Out) -> Self {
        Self { out, zone: TimeZone::system() }
    }

    fn print(&self, event: &Value) -> anyhow::Result<()> {
        Ok(self.out.line(&row(event, self.out.paint, &self.zone))?)
    }
}

/// `2026-02-05 14:30:00 gmail/me alice: hello  gmail:18c2f0`, with an arrow for what went out.
fn row(event: &Value, paint: Paint, zone: &TimeZone) -> String {
    let text = |key: &str| event[key].as_str().unwrap_or("-");
    let time = event["received_at"].as_i64().or(event["timestamp"].as_i64()).map_or_else(|| "-".to_owned(), |ms| units::second(ms, zone));
    let is_out = text("direction") == "outbound";
    let speaker = if is_out { format!("→ {}", text("peer_id")) } else { text("sender_id").to_owned() };
    let content = match text("content") {
        "" | "-" => format!("({})", text("content_type")),
        content => content.to_owned(),
    };
    let is_marked = !is_out && event["disposition"].as_str().is_some_and(|word| word != "run");
    let filed = if is_marked { format!(" ({})", text("disposition")) } else { String::new() };
    let again = if event["replay_of"].is_string() { " (replay)" } else { "" };
    format!(
        "{} {} {}: {}{}{again}  {}",
        paint.apply(Color::Dim, &time),
        visible(&format!("{}/{}", text("channel"), text("account_id"))),
        paint.apply(Color::Bold, &one_line(&speaker, CONTENT_CHARS_MAX)),
        one_line(&content, CONTENT_CHARS_MAX),
        visible(&filed),
        paint.apply(Color::Dim, &visible(text("event_id"))),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_shows_who_said_what_harmlessly() {
        let event = json!({
            "event_id": "gmail:1", "channel": "gmail", "account_id": "me", "direction": "inbound", "sender_id": "al\u{1b}ice",
            "content": "hello\nworld", "content_type": "text", "received_at": 1_770_301_800_000_i64, "disposition": "run"
        });
        assert_eq!(row(&event, Paint::PLAIN, &TimeZone::UTC), "2026-02-05 14:30:00 gmail/me al\u{fffd}ice: hello world  gmail:1");
        let out = json!({ "event_id": "gmail:2", "channel": "gmail", "account_id": "me", "direction": "outbound", "peer_id": "bob",
            "content": "", "content_type": "image", "timestamp": 1_770_301_800_000_i64, "disposition": "history" });
        assert_eq!(row(&out, Paint::PLAIN, &TimeZone::UTC), "2026-02-05 14:30:00 gmail/me → bob: (image)  gmail:2");
        assert!(!render(&out, Paint::PLAIN, &TimeZone::UTC).contains("history"));
        let missed = json!({ "event_id": "gmail:3", "channel": "gmail", "account_id": "me", "direction": "inbound", "sender_id": "bob",
            "content": "hi", "content_type": "text", "timestamp": 1_770_301_800_000_i64, "disposition": "history" });
        assert_eq!(row(&missed, Paint::PLAIN, &TimeZone::UTC), "2026-02-05 14:30:00 gmail/me bob: hi (history)  gmail:3");
    }

    #[test]
    fn an_event_is_shown_whole() {
        let event = json!({ "event_id": "a:1", "content": "one\ntwo", "timestamp": 1_770_301_800_000_i64, "thread_id": null, "seq": 7 });
        let text = render(&event, Paint::PLAIN, &TimeZone::UTC);
        assert_eq!(text, "event_id: a:1\nseq: 7\ntimestamp: 2026-02-05 14:30:00\n\none\ntwo");
    }
}
