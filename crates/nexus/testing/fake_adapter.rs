//! An adapter for end-to-end tests that does what it is told, good or bad: it speaks adapter
//! protocol v1 and misbehaves on request. It never uses the daemon's code, so that both can't be
//! wrong in the same way.
//!
//! What it does is read from `FAKE_ADAPTER_CONFIG` (JSON), then from `config` of the account's
//! context file, which wins. Keys:
//! - `info`: `supports`, `channel`, `text_limit`, `text_stdin`, `info: ok|garbage|hang|newer`, `accounts`
//! - events: `events`, `repeat`, `content_bytes`, `rate_per_s` (absent: burst), `peers`, `sender`,
//!   `lines_file` (bytes written first, as they are), `lie_account`, `state_file` (go on where it says)
//! - `monitor`: `start_log`, `ack_log`, `stall`, `crash_after`, `exit_code`, `half_line_then_exit`,
//!   `close_stdout_but_live`, `ignore_term`, `last_lines` (events written at SIGTERM),
//!   `setsid_grandchild` with its PID in `grandchild_file`, `escapee_file` (leaves a process that has
//!   nothing of ours, and puts its PID there), `escapee_reads` (a FIFO from which that one takes orders)
//! - `send`: `send_log`, `send: ok|fail_network_n:N|down_after:N|rate_limited|not_found|no_id|hang|deliver_then_hang`,
//!   `send_file` (a file whose text, once it exists, wins over `send`), `hang_to` (sends to this peer hang); what
//!   `down_after` refuses is not logged
//! - `stream: ok|die|garbage|deaf|no_id|early|refuse` (with `stream` in `supports`; once the file `stream_file` exists,
//!   its text wins for the next answer), `stream_starts` (PIDs), `stream_log` (each line that came)
//! - `health: ok|disconnected|slow|garbage`, `health_file` (a file whose text, once it exists, wins over `health`)
//! - `backfill: ok|hang`, `backfill_events`, `backfill_old` (so many of them are a day old),
//!   `backfill_log`, `backfill_fails` (so many calls, counted in the log, fail before they write)

use serde_json::{Map, Value, json};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};

/// Exit status for a command line that is no verb of the protocol.
const EXIT_USAGE: u8 = 2;
/// The platform's wish after a rate limit: longer than the daemon's own first delay, to be seen.
const RETRY_AFTER_MS: u64 = 1_500;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

fn main() -> io::Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let keys = Keys::load()?;
    match args.first().map(String::as_str) {
        Some("info") => info(&keys),
        Some("accounts") => say(&keys.list("accounts", json!([{ "id": "me", "status": "ready" }])).to_string()),
        Some("health") => health(&keys, &args),
        Some("monitor") => monitor(&keys, &args),
        Some("backfill") => backfill(&keys, &args),
        Some("send") => send(&keys, &args),
        Some("stream") => stream(&keys, &args),
        Some(_) | None => {
            writeln!(io::stderr(), "no such verb: {args:?}")?;
            Ok(ExitCode::from(EXIT_USAGE))
        }
    }
}

/// What to do, by key.
struct Keys(Map<String, Value>);

impl Keys {
    fn load() -> io::Result<Self> {
        let mut keys = Map::new();
        if let Ok(text) = std::env::var("FAKE_ADAPTER_CONFIG") {
            keys.extend(object(serde_json::from_str(&text)?));
        }
        if let Ok(path) = std::env::var("NEXUS_CONTEXT_FILE") {
            let mut context: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
            keys.extend(object(context["config"].take()));
        }
        Ok(Self(keys))
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(Value::as_str)
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.0.get(key).and_then(Value::as_u64)
    }

    fn flag(&self, key: &str) -> bool {
        self.0.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    fn list(&self, key: &str, default: Value) -> Value {
        self.0.get(key).cloned().unwrap_or(default)
    }

    fn channel(&self) -> &str {
        self.text("channel").unwrap_or("fake")
    }

    fn supports(&self) -> Value {
        self.list("supports", json!(["monitor", "send", "health", "accounts"]))
    }

    fn has_acks(&self) -> bool {
        self.supports().as_array().is_some_and(|words| words.iter().any(|word| word == "ack"))
    }

    fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.number("exit_code").and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    }

    /// Adds a line to the file that `key` names, if it names one. One write, so that lines of
    /// processes that run at once don't mix.
    fn log(&self, key: &str, line: &str) -> io::Result<()> {
        let Some(path) = self.text(key) else { return Ok(()) };
        OpenOptions::new().create(true).append(true).open(path)?.write_all(format!("{line}\n").as_bytes())
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}

/// The value of `--name VALUE`.
fn option<'a>(args: &'a [String], name: &str) -> Option<&'a str> {
    let at = args.iter().position(|arg| arg == name)?;
    args.get(at + 1).map(String::as_str)
}

fn account_of(args: &[String]) -> io::Result<&str> {
    option(args, "--account").ok_or_else(|| io::Error::other("--account is missing"))
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

fn say(line: &str) -> io::Result<ExitCode> {
    write(format!("{line}\n").as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn info(keys: &Keys) -> io::Result<ExitCode> {
    let version = match keys.text("info").unwrap_or("ok") {
        "garbage" => return say("this is {not an AdapterInfo"),
        "hang" => for_ever(),
        "newer" => 99,
        _ => 1,
    };
    let answer = json!({
        "channel": keys.channel(),
        "name": "fake-adapter",
        "version": "1.0.0",
        "supports": keys.supports(),
        "multi_account": true,
        "protocol_version": version,
        "text_stdin": keys.flag("text_stdin"),
        "channel_capabilities": { "text_limit": keys.number("text_limit").unwrap_or(0), "supports_markdown": false },
    });
    say(&answer.to_string())
}

fn health(keys: &Keys, args: &[String]) -> io::Result<ExitCode> {
    let account = account_of(args)?;
    let told = keys.text("health_file").and_then(|path| fs::read_to_string(path).ok());
    match told.as_deref().map(str::trim).or(keys.text("health")).unwrap_or("ok") {
        "slow" => for_ever(),
        "garbage" => say("connecting"),
        "disconnected" => say(&json!({ "connected": false, "account": account, "error": "the platform hung up" }).to_string()),
        _ => say(&json!({ "connected": true, "account": account }).to_string()),
    }
}

/// Event number `n`, as one line.
fn event(keys: &Keys, account: &str, n: u64) -> String {
    event_at(keys, account, n, now_ms())
}

fn event_at(keys: &Keys, account: &str, n: u64, timestamp: u64) -> String {
    let (channel, peers) = (keys.channel(), keys.number("peers").unwrap_or(1).max(1));
    let mut content = format!("message {n}");
    if let Some(bytes) = keys.number("content_bytes").and_then(|bytes| usize::try_from(bytes).ok()) {
        content.extend(std::iter::repeat_n('x', bytes.saturating_sub(content.len())));
    }
    let line = json!({
        "event_id": format!("{channel}:{account}-{n}"),
        "timestamp": timestamp,
        "content": content,
        "content_type": "text",
        "channel": channel,
        "account_id": account,
        "sender_id": keys.text("sender").unwrap_or("u1"),
        "peer_id": format!("p{}", n % peers),
        "peer_kind": "dm",
    });
    format!("{line}\n")
}

fn monitor(keys: &Keys, args: &[String]) -> io::Result<ExitCode> {
    let account = account_of(args)?;
    // Before anything is written: who sees a line knows that SIGTERM is watched from there on.
    let terms = Terms::watch(keys.flag("ignore_term") || keys.number("last_lines").is_some())?;
    keys.log("start_log", &std::process::id().to_string())?;
    if keys.flag("setsid_grandchild") {
        leave_grandchild(keys.text("grandchild_file").unwrap_or("/dev/null"))?;
    }
    if let Some(path) = keys.text("escapee_file") {
        leave_escapee(path, keys.text("escapee_reads"))?;
    }
    record_acks(keys);
    if keys.flag("stall") {
        for_ever();
    }
    if let Some(path) = keys.text("lines_file") {
        write(&fs::read(path)?)?;
    }
    if keys.flag("lie_account") {
        write(event(keys, "somebody-else", 1).as_bytes())?;
    }
    for _ in 0..keys.number("repeat").unwrap_or(1) {
        if !write_events(keys, account, &terms)? {
            return Ok(keys.exit_code());
        }
    }
    if keys.flag("half_line_then_exit") {
        write(br#"{"event_id":"fake:half","timestamp":"#)?;
        return Ok(keys.exit_code());
    }
    if keys.flag("close_stdout_but_live") {
        rustix::stdio::dup2_stdout(File::create("/dev/null")?)?;
    }
    terms.wait(keys.flag("ignore_term"));
    let done = keys.number("events").unwrap_or(0);
    for n in done + 1..=done + keys.number("last_lines").unwrap_or(0) {
        write(event(keys, account, n).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the events that are left; false when it is time to crash.
fn write_events(keys: &Keys, account: &str, terms: &Terms) -> io::Result<bool> {
    let pause = keys.number("rate_per_s").map(|rate| Duration::from_micros(1_000_000 / rate.max(1)));
    let crash_after = keys.number("crash_after").unwrap_or(u64::MAX);
    let state = keys.text("state_file");
    let first = state.and_then(|path| fs::read_to_string(path).ok()).and_then(|n| n.trim().parse::<u64>().ok());
    let mut written = 0;
    for n in first.unwrap_or(0) + 1..=keys.number("events").unwrap_or(0) {
        if written >= crash_after {
            return Ok(false);
        }
        if let Some(pause) = pause {
            terms.pause(pause);
        }
        write(event(keys, account, n).as_bytes())?;
        written += 1;
        if let Some(path) = state.filter(|_| !keys.has_acks()) {
            save(path, n)?;
        }
    }
    Ok(written < crash_after)
}

/// Logs what comes on stdin; with acknowledgements, remembers the last one.
fn record_acks(keys: &Keys) {
    let log = Keys(keys.0.clone());
    let state = keys.text("state_file").filter(|_| keys.has_acks()).map(str::to_owned);
    std::thread::spawn(move || -> io::Result<()> {
        for line in io::stdin().lock().lines() {
            let line = line?;
            log.log("ack_log", &line)?;
            if let (Some(path), Some(n)) = (&state, acked(&line)) {
                save(path, n)?;
            }
        }
        Ok(())
    });
}

/// The number in `{"ack":"fake:me-17"}`.
fn acked(line: &str) -> Option<u64> {
    let ack: Value = serde_json::from_str(line).ok()?;
    ack["ack"].as_str()?.rsplit_once('-')?.1.parse().ok()
}

/// Replaces the file as a whole: this process may be killed at any moment.
fn save(path: &str, n: u64) -> io::Result<()> {
    let draft = format!("{path}.{}", std::process::id());
    fs::write(&draft, n.to_string())?;
    fs::rename(draft, path)
}

/// Leaves a process in a session of its own, whose parent is gone, with our stdout still open.
#[expect(clippy::disallowed_methods, reason = "a stranger to the keeper is what the test is about")]
fn leave_grandchild(pid_file: &str) -> io::Result<()> {
    let script = r#"setsid sleep 1000 & echo $! > "$1""#;
    let status = Command::new("/bin/sh").args(["-c", script, "sh", pid_file]).stdin(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("the grandchild was not started")) }
}

/// Leaves a process that neither descent nor environment tells from a stranger: its parent is gone, its
/// session its own, its environment empty. It sleeps, or becomes a shell that obeys what is written into
/// the FIFO `reads`.
#[expect(clippy::disallowed_methods, reason = "a stranger to the keeper is what the test is about")]
fn leave_escapee(pid_file: &str, reads: Option<&str>) -> io::Result<()> {
    let outer = r#"setsid /bin/sh -c "$1" sh "$2" "$3" &"#;
    let inner = match reads {
        Some(_) => r#"echo $$ >"$1"; exec /bin/sh <"$2""#,
        None => r#"echo $$ >"$1"; exec sleep 1000"#,
    };
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", outer, "sh", inner, pid_file, reads.unwrap_or("")]).env_clear();
    let status = shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("the escapee was not started")) }
}

/// SIGTERMs that came, if they are watched; else the first one ends this process as usual.
struct Terms {
    came: Receiver<()>,
    /// Keeps `came` open, also when nobody watches.
    sender: SyncSender<()>,
}

impl Terms {
    fn watch(wanted: bool) -> io::Result<Self> {
        let (sender, came) = sync_channel(1);
        if wanted {
            let (ready, is_ready) = sync_channel(1);
            let tell = sender.clone();
            std::thread::spawn(move || {
                let watched = forward_terms(&tell, &ready);
                if let Err(error) = watched {
                    drop(ready.send(Err(error)));
                }
            });
            is_ready.recv().map_err(io::Error::other)??;
        }
        Ok(Self { came, sender })
    }

    /// Waits for `pause`, or shorter when a SIGTERM came, which is left for [`Self::wait`] to see.
    fn pause(&self, pause: Duration) {
        if self.came.recv_timeout(pause).is_ok() {
            self.sender.try_send(()).unwrap_or_default();
        }
    }

    /// Waits for SIGTERM, or for ever when it is ignored.
    fn wait(&self, ignore: bool) {
        while self.came.recv().is_ok() {
            if !ignore {
                return;
            }
        }
    }
}

fn forward_terms(tell: &SyncSender<()>, ready: &SyncSender<io::Result<()>>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terms = signal(SignalKind::terminate())?;
        drop(ready.send(Ok(())));
        while terms.recv().await.is_some() {
            // Full: one is waiting to be seen already.
            tell.try_send(()).unwrap_or_default();
        }
        Ok(())
    })
}

fn backfill(keys: &Keys, args: &[String]) -> io::Result<ExitCode> {
    let account = account_of(args)?;
    keys.log("backfill_log", &json!({ "account": account, "since": option(args, "--since") }).to_string())?;
    let log = keys.text("backfill_log").and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let calls: u64 = log.lines().map(|_| 1).sum();
    if (1..=keys.number("backfill_fails").unwrap_or(0)).contains(&calls) {
        return Ok(keys.exit_code());
    }
    if keys.text("backfill") == Some("hang") {
        for_ever();
    }
    let old = keys.number("backfill_old").unwrap_or(0);
    for n in 1..=keys.number("backfill_events").unwrap_or(0) {
        let age_ms = if n <= old { DAY_MS } else { 0 };
        write(event_at(keys, account, n, now_ms() - age_ms).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn send(keys: &Keys, args: &[String]) -> io::Result<ExitCode> {
    let told = keys.text("send_file").and_then(|path| fs::read_to_string(path).ok());
    let mode = told.as_deref().map(str::trim).or(keys.text("send")).unwrap_or("ok").to_owned();
    let hangs = keys.text("hang_to").is_some_and(|peer| option(args, "--to") == Some(peer));
    if mode == "hang" || hangs {
        for_ever();
    }
    if mode.strip_prefix("down_after:").and_then(|n| n.parse::<usize>().ok()).is_some_and(|n| sends_logged(keys) >= n) {
        return say(&send_answer("down", "", 0).to_string());
    }
    let key = option(args, "--idempotency-key").unwrap_or("");
    let before = earlier_attempts(keys, key);
    let call = json!({
        "at": now_ms(),
        "account": account_of(args)?,
        "to": option(args, "--to"),
        "text": text_of(args)?,
        "thread_id": option(args, "--thread-id"),
        "reply_to_id": option(args, "--reply-to-id"),
        "idempotency_key": key,
    });
    keys.log("send_log", &call.to_string())?;
    if mode == "deliver_then_hang" {
        for_ever();
    }
    say(&send_answer(&mode, key, before).to_string())
}

fn send_answer(mode: &str, key: &str, before: u64) -> Value {
    let failed = |error: Value| json!({ "success": false, "message_ids": [], "chunks_sent": 0, "error": error });
    let failures = mode.strip_prefix("fail_network_n:").and_then(|n| n.parse::<u64>().ok());
    match mode {
        _ if failures.is_some_and(|n| before < n) => failed(json!({ "type": "network", "message": "connection reset", "retry": true })),
        "down" => failed(json!({ "type": "network", "message": "no route to host", "retry": true })),
        "rate_limited" if before == 0 => failed(json!({
            "type": "rate_limited", "message": "slow down", "retry": true, "retry_after_ms": RETRY_AFTER_MS,
        })),
        "not_found" => failed(json!({ "type": "not_found", "message": "no such peer", "retry": false })),
        "no_id" => json!({ "success": true, "message_ids": [], "chunks_sent": 1 }),
        _ => json!({ "success": true, "message_ids": [format!("m-{key}")], "chunks_sent": 1 }),
    }
}

/// Shows answers while they are being made, or does what it shouldn't.
fn stream(keys: &Keys, args: &[String]) -> io::Result<ExitCode> {
    let tell = |status: Value| write(format!("{status}\n").as_bytes());
    let complete = |ids: Value| tell(json!({ "type": "delivery_complete", "messageIds": ids }));
    keys.log("stream_starts", &format!("{} {}", account_of(args)?, std::process::id()))?;
    let (mut mode, mut message, mut answers) = (String::new(), String::new(), 0);
    for line in io::stdin().lock().lines() {
        let line = line?;
        keys.log("stream_log", &line)?;
        let event: Value = serde_json::from_str(&line)?;
        let kind = event["type"].as_str().unwrap_or_default();
        if kind == "stream_start" {
            let told = keys.text("stream_file").and_then(|path| fs::read_to_string(path).ok());
            mode = told.as_deref().map(str::trim).or(keys.text("stream")).unwrap_or("ok").to_owned();
            answers += 1;
            message = format!("s-{}-{answers}", event["runId"].as_str().unwrap_or_default());
        }
        match (kind, mode.as_str()) {
            ("stream_start", "deaf") => for_ever(),
            ("stream_start", "refuse") => tell(json!({ "type": "delivery_error", "error": "this peer can't see edits" }))?,
            ("stream_start", _) => tell(json!({ "type": "message_created", "messageId": message }))?,
            ("token", "die") => return Ok(keys.exit_code()),
            ("token", "garbage") => write(b"this is {no status\n")?,
            ("token", "early") => complete(json!([message]))?,
            ("token", _) => tell(json!({ "type": "message_updated", "messageId": message, "chars": 1 }))?,
            ("stream_end" | "stream_error", "no_id") => complete(json!([]))?,
            ("stream_end" | "stream_error", _) => complete(json!([message]))?,
            _ => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn text_of(args: &[String]) -> io::Result<Option<String>> {
    if option(args, "--text-file") != Some("-") {
        return Ok(option(args, "--text").map(str::to_owned));
    }
    let mut text = String::new();
    io::stdin().lock().read_to_string(&mut text)?;
    Ok(Some(text))
}

fn sends_logged(keys: &Keys) -> usize {
    let text = keys.text("send_log").and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    text.lines().count()
}

/// How often this key was sent before, by the log.
fn earlier_attempts(keys: &Keys, key: &str) -> u64 {
    let text = keys.text("send_log").and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let calls = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    calls.filter(|call| call["idempotency_key"] == key).map(|_| 1).sum()
}
