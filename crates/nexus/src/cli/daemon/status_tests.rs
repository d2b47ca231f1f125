//! How `nexus daemon status` looks.

#![allow(clippy::unwrap_used)]
use super::*;

fn sample() -> Value {
    let account = |adapter: &str, account: &str, channel: &str, age_ms: u64, events: u64| {
        json!({
            "adapter": adapter, "account": account, "channel": channel, "status": "running", "health": "healthy",
            "pid": 1, "last_event_age_ms": age_ms, "events": events, "restarts": 0, "last_error": null
        })
    };
    json!({
        "health": "healthy", "reasons": [], "version": "0.1.0", "pid": 12345, "uptime_ms": 15_780_000, "http": "127.0.0.1:7400",
        "detached": true, "config_path": "/home/me/nexus/nex.yaml", "flags": { "log_level": "debug", "port": null },
        "adapters": [
            account("eve", "default", "imessage", 12_400, 3891),
            account("gog", "tnapathy@gmail.com", "gmail", 2_000, 1247),
            account("discord-cli", "echo-bot", "discord", 185_000, 156),
        ],
        "pipeline": { "active_requests": 0, "total_processed": 847, "avg_latency_ms": 1234.4, "waiting": 0 },
        "deliveries": { "uncertain": 0, "failed": 0, "expired": 0, "stuck": 0 },
        "plugins": ["logging", "analytics"],
        "timer": { "heartbeat_interval_ms": 60_000, "cron_jobs": 2 },
        "ledgers": { "events_db": "ok", "agents_db": "ok", "identity_db": "ok", "nexus_db": "ok" }
    })
}

fn rendered(value: Value) -> String {
    render_status(&serde_json::from_value(value).unwrap(), Paint::PLAIN)
}

#[test]
fn the_requirements_sample() {
    let expected = "\
NEX Daemon: running (PID 12345, uptime 4h 23m)
HTTP: 127.0.0.1:7400

Adapters:
  eve/default            imessage  ● running   healthy   last: 12s ago    events: 3,891
  gog/tnapathy@gmail.com gmail     ● running   healthy   last: 2s ago     events: 1,247
  discord-cli/echo-bot   discord   ● running   healthy   last: 3m ago     events: 156

Pipeline:
  Active requests: 0
  Total processed: 847
  Avg latency: 1,234ms

Plugins: logging, analytics
Timer: heartbeat 60s, 2 cron jobs
Ledgers: 4/4 ok";
    assert_eq!(rendered(sample()), expected);
}

#[test]
fn what_is_wrong_is_shown_with_its_reason() {
    let mut value = sample();
    value["health"] = "degraded".into();
    value["reasons"] = json!(["gog/tnapathy@gmail.com is errored"]);
    value["adapters"][1]["status"] = "errored".into();
    value["adapters"][1]["health"] = "unknown".into();
    value["adapters"][1]["last_event_age_ms"] = Value::Null;
    value["adapters"][1]["last_error"] = "credential\n`google/me` does not exist".into();
    value["pipeline"]["waiting"] = 12_000.into();
    value["deliveries"] = json!({ "uncertain": 1, "failed": 2_000, "expired": 0, "stuck": 1 });
    value["ledgers"]["identity_db"] = "error".into();
    let text = rendered(value);
    for line in [
        "Health: degraded (gog/tnapathy@gmail.com is errored)",
        "  gog/tnapathy@gmail.com gmail     ✗ errored   unknown   last: never      events: 1,247",
        "    credential `google/me` does not exist",
        "  Waiting requests: 12,000",
        "  Undelivered: 1 uncertain, 2,000 failed (`nexus deliveries list`)",
        "Ledgers: 3/4 ok (identity_db: error)",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
    }
}

#[test]
fn the_kill_level_stands_below_the_sample_and_is_explained_when_it_is_asked_for() {
    let mut value = sample();
    value["kill_level"] = json!({ "level": "scan", "meaning": "by descent", "why": "failed to create cgroup\n`/a`" });
    let status: Status = serde_json::from_value(value.clone()).unwrap();
    let plain = rendered(value);
    assert_eq!(plain, format!("{}\nKill level: scan", rendered(sample())));
    let whole = format!("{plain}{}", render_more(&status));
    assert!(whole.ends_with("\nKill level: scan (by descent)\n  failed to create cgroup `/a`"), "{whole}");
    let old: Status = serde_json::from_value(sample()).unwrap();
    assert_eq!(render_more(&old), "\n\nKill level: unknown to a daemon of another version");
}

#[test]
fn a_daemon_that_stops_says_so_and_what_it_waits_for() {
    let mut value = sample();
    value["health"] = "degraded".into();
    value["reasons"] = json!(["the daemon is stopping, step 3 of 12: it waits for 1 request to end"]);
    value["stopping"] = json!({ "step": 3, "of": 12, "active_requests": 1, "waits_for": "1 request to end" });
    let head = "NEX Daemon: stopping (PID 12345, uptime 4h 23m)\nHTTP: 127.0.0.1:7400
Health: degraded (the daemon is stopping, step 3 of 12: it waits for 1 request to end)\n";
    assert!(rendered(value.clone()).starts_with(head), "{}", rendered(value));
}

#[test]
fn relays_and_projects_are_counted_where_there_are_any() {
    let mut value = sample();
    value["nostr"] = json!({ "relays": [{ "url": "ws://a", "state": "live" }, { "url": "ws://b", "state": "backoff" }] });
    value["projects"] = json!([{ "state": "running" }, { "state": "quarantined" }, { "state": "running" }]);
    let expected = format!("{}\nNostr relays: 1 backoff, 1 live\nProjects: 1 quarantined, 2 running", rendered(sample()));
    assert_eq!(rendered(value), expected);
}

#[test]
fn what_agents_have_used_today_stands_at_the_end() {
    let mut value = sample();
    value["kill_level"] = json!({ "level": "scan", "meaning": "by descent", "why": "so" });
    value["budgets"] = json!([
        { "agent": "a", "tokens": 51_200, "tokens_per_day": 50_000, "usd": 0.0, "usd_per_day": null, "until": "tomorrow" },
        { "agent": "b", "tokens": 7, "tokens_per_day": 100, "usd": 0.25, "usd_per_day": 1.0, "until": "tomorrow" },
    ]);
    let expected = " (by descent)\n  so\n\nBudgets:
  a 51,200 of 50,000 tokens until tomorrow
  b 7 of 100 tokens, $0.2500 of $1.0000 until tomorrow";
    assert_eq!(render_more(&serde_json::from_value(value).unwrap()), expected);
}

#[test]
fn an_automation_that_disabled_itself_says_so_and_how_it_is_enabled() {
    let mut value = sample();
    value["kill_level"] = json!({ "level": "scan", "meaning": "by descent", "why": "so" });
    value["automations"] = json!([
        { "name": "once", "status": "disabled", "disabled_itself": true, "calls": 2 },
        { "name": "often", "status": "running", "disabled_itself": false, "calls": 1_000 },
    ]);
    let expected = " (by descent)\n  so\n\nAutomations:
  once disabled (calls: 2, errors: 0)
    it disabled itself; `nexus automation enable once` has it asked again
  often running (calls: 1,000, errors: 0)";
    assert_eq!(render_more(&serde_json::from_value(value).unwrap()), expected);
}

#[test]
fn an_empty_daemon_and_one_of_another_version() {
    let text = rendered(json!({ "pid": 1, "something_new": {} }));
    assert!(text.contains("HTTP: not listening\n\nAdapters: none\n"), "{text}");
    assert!(text.ends_with("Plugins: none\nTimer: no heartbeat\nLedgers: 0/0 ok"), "{text}");
}

#[test]
fn not_running_says_when_it_last_ran() {
    let zone = TimeZone::UTC;
    let text = r#"{"pid":12340,"started_at":1770300000000,"ended_at":1770301800000,"clean":true}"#;
    let mut last: LastRun = serde_json::from_str(text).unwrap();
    let head = "NEX Daemon: not running";
    assert_eq!(render_not_running(None, &zone), head);
    assert_eq!(render_not_running(Some(&last), &zone), format!("{head}\nLast ran: 2026-02-05 14:30 (PID 12340, exited cleanly)"));
    assert_eq!(last.json()["end"], "clean");
    (last.clean, last.forced) = (Some(false), true);
    let forced = format!("{head}\nLast ran: 2026-02-05 14:30 (PID 12340, stopped at once by a second signal)");
    assert_eq!(render_not_running(Some(&last), &zone), forced);
    assert_eq!(last.json()["end"], "forced");
    (last.ended_at, last.clean, last.forced) = (None, None, false);
    assert_eq!(last.json()["end"], "crashed");
    assert_eq!(render_not_running(Some(&last), &zone), format!("{head}\nLast ran: started 2026-02-05 14:00 (PID 12340, crashed)"));
}

#[test]
fn flags_survive_a_restart() {
    let status: Status = serde_json::from_value(sample()).unwrap();
    let flags = detach::Flags::from(status.flags);
    assert_eq!((flags.log_level, flags.port), (Some(LogLevel::Debug), None));
}
