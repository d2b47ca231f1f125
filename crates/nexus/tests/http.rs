//! What the daemon says over HTTP: health, metrics, the event stream; and what it refuses there.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Ask, Daemon, config, eventually, only};
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}")).keys().map(String::as_str).collect()
}

/// The number of a notice, out of `epoch:seq`.
fn seq(id: &str) -> u64 {
    id.split_once(':').and_then(|(_, seq)| seq.parse().ok()).unwrap_or_else(|| panic!("no epoch:seq in `{id}`"))
}

fn say(daemon: &Daemon, texts: &[&str]) {
    for text in texts {
        daemon.nexus_ok(&["send", text]);
    }
}

#[test]
fn health_has_the_required_fields_and_tells_the_truth() {
    let daemon = Daemon::start(&only("fake", json!({ "events": 3 })));
    daemon.adapter_once("fake/me", "running");
    eventually("three requests are counted", || daemon.get("/health").json()["pipeline"]["total_processed"] == 3);
    let answer = daemon.tcp(&Ask::get("/health"));
    assert_eq!(answer.status, 200);
    let health = answer.json();
    let allowed = BTreeSet::from(["projects", "nostr", "reasons"]);
    let top: BTreeSet<&str> = keys(&health).difference(&allowed).copied().collect();
    let required = ["status", "version", "uptime_ms", "pid", "adapters", "pipeline", "ledgers"];
    assert_eq!(top, BTreeSet::from(required));
    assert_eq!(keys(&health["adapters"]), BTreeSet::from(["total", "running", "errored", "details"]));
    let detail = &health["adapters"]["details"][0];
    assert_eq!(keys(detail), BTreeSet::from(["adapter", "account", "status", "health", "last_event_age_ms"]));
    let pipeline = BTreeSet::from(["active_requests", "total_processed", "avg_latency_ms"]);
    assert_eq!(keys(&health["pipeline"]), pipeline);
    let ledgers = json!({ "events_db": "ok", "agents_db": "ok", "identity_db": "ok", "nexus_db": "ok" });
    assert_eq!(health["ledgers"], ledgers);
    assert_eq!((&health["status"], &health["reasons"]), (&json!("healthy"), &json!([])));
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(health["pid"], daemon.pid());
    assert_eq!((&health["adapters"]["total"], &health["adapters"]["running"]), (&json!(1), &json!(1)));
    assert_eq!((&detail["adapter"], &detail["account"]), (&json!("fake"), &json!("me")));
    assert!(detail["last_event_age_ms"].is_u64(), "{detail}");
    assert!(health["pipeline"]["avg_latency_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn probes_answer_on_both_sides() {
    let daemon = Daemon::start(&config(json!({})));
    for path in ["/livez", "/readyz", "/health", "/metrics"] {
        assert_eq!(daemon.tcp(&Ask::get(path)).status, 200, "{path} over TCP");
        assert_eq!(daemon.get(path).status, 200, "{path} over the socket");
    }
}

#[test]
fn what_is_not_there_is_named_together_with_what_is() {
    let daemon = Daemon::start(&config(json!({})));
    let refused = |ask: &Ask<'_>, status: u16| {
        let answer = daemon.tcp(ask);
        assert_eq!(answer.status, status, "{answer:?}");
        (answer.json()["error"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned(), answer.head.to_ascii_lowercase())
    };
    let (error, _) = refused(&Ask::get("/nothing/here?x=1"), 404);
    for part in ["`/nothing/here`", "/health", "/livez", "/readyz", "/metrics", "/api/events/stream"] {
        assert!(error.contains(part), "no {part} in {error}");
    }
    let (error, head) = refused(&Ask::post("/health", &json!({})), 405);
    assert!(error.contains("POST") && error.contains("`/health`") && error.contains("GET"), "{error}");
    assert!(head.contains("allow: get"), "{head}");
    let (error, _) = refused(&Ask::get("/control/status"), 404);
    assert!(error.contains("`/control/status`") && error.contains("control socket"), "{error}");
    let long = format!("/{}", "x".repeat(10_000));
    let (error, _) = refused(&Ask::get(&long), 404);
    assert!(error.len() < 1_000, "a long path comes back whole: {} bytes", error.len());

    let socket = daemon.get("/control/nothing");
    assert_eq!(socket.status, 404);
    assert!(socket.json()["error"].as_str().is_some_and(|error| error.contains("`/control/nothing`")), "{socket:?}");
    let ask = Ask { host: "evil.example", ..Ask::get("/nothing/here") };
    assert_eq!(daemon.tcp(&ask).status, 421, "who may not ask learns nothing");
}

#[test]
fn metrics_count_what_happened() {
    let daemon = Daemon::start(&only("fake", json!({ "events": 4 })));
    eventually("four replies are sent", || daemon.deliveries("sent") == 4);
    eventually("four requests are counted", || daemon.get("/health").json()["pipeline"]["total_processed"] == 4);
    let answer = daemon.tcp(&Ask::get("/metrics"));
    assert!(answer.head.to_ascii_lowercase().contains("openmetrics-text"), "{}", answer.head);
    let line = |start: &str| {
        let found = answer.body.lines().find(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("no `{start}` in\n{}", answer.body))
    };
    assert!(line("nexus_requests_total{status=\"completed\"}").ends_with(" 4"));
    assert!(line("nexus_events_total{channel=\"fake\"").ends_with(" 4"));
    assert!(line("nexus_deliveries_total{channel=\"fake\",status=\"sent\"}").ends_with(" 4"));
    assert!(line("nexus_child_running{").ends_with(" 1"));
    assert!(line("nexus_build_info{").contains(env!("CARGO_PKG_VERSION")));
    for name in ["nexus_stage_seconds_bucket{", "nexus_queue_depth{", "nexus_commits_total{db=", "nexus_sse_clients "] {
        line(name);
    }
    assert!(answer.body.ends_with("# EOF\n"));
}

#[test]
fn the_stream_brings_what_was_asked_for_in_order() {
    let daemon = Daemon::start(&config(json!({})));
    let mut notices = daemon.sse(&Ask::get("/api/events/stream?types=nex.request.completed,turn.*"));
    say(&daemon, &["one", "two"]);
    let mut seen = Vec::new();
    while seen.iter().filter(|(event, _)| event == "nex.request.completed").count() < 2 {
        let notice = notices.wait();
        let data = notice.json();
        assert_eq!(data["type"], notice.event.as_str());
        assert_eq!(data["seq"], seq(&notice.id));
        assert!(data["ts"].as_i64().is_some_and(|ts| ts > 0) && data["properties"].is_object(), "{data}");
        seen.push((notice.event, seq(&notice.id)));
    }
    let wanted = |event: &str| event == "nex.request.completed" || event.starts_with("turn.");
    assert!(seen.iter().all(|(event, _)| wanted(event)), "unasked: {seen:?}");
    assert!(seen.iter().any(|(event, _)| event.starts_with("turn.")), "{seen:?}");
    assert!(seen.windows(2).all(|pair| pair[0].1 < pair[1].1), "out of order: {seen:?}");
    let silent = daemon.tcp(&Ask::get("/api/events/stream?types=no.such.type"));
    assert_eq!(silent.status, 400, "a filter that can never match is refused: {}", silent.body);
}

#[test]
fn a_client_that_comes_back_misses_nothing() {
    let daemon = Daemon::start(&config(json!({})));
    let path = "/api/events/stream?types=nex.request.completed";
    let mut notices = daemon.sse(&Ask::get(path));
    say(&daemon, &["one"]);
    let first = notices.wait();
    drop(notices);
    say(&daemon, &["two", "three"]);
    let mut ask = Ask::get(path);
    ask.headers.push(("last-event-id", first.id.clone()));
    let mut resumed = daemon.sse(&ask);
    let (second, third) = (resumed.wait(), resumed.wait());
    assert!(seq(&first.id) < seq(&second.id) && seq(&second.id) < seq(&third.id));
    let since = format!("{path}&since={}", second.id);
    assert_eq!(daemon.sse(&Ask::get(&since)).wait(), third);
}

#[test]
fn an_unknown_past_is_a_gap_and_the_stream_goes_on() {
    let daemon = Daemon::start(&config(json!({})));
    let mut ask = Ask::get("/api/events/stream?types=nex.request.completed");
    ask.headers.push(("last-event-id", "999999:1".to_owned()));
    let mut notices = daemon.sse(&ask);
    assert_eq!(notices.wait().event, "gap");
    say(&daemon, &["after the gap"]);
    assert_eq!(notices.wait_for("nex.request.completed").event, "nex.request.completed");
}

#[test]
fn another_sites_page_is_refused_by_its_host() {
    let daemon = Daemon::start(&config(json!({})));
    let http = daemon.http();
    let port = http.rsplit_once(':').unwrap().1.to_owned();
    let with_host = |host: &str| daemon.tcp(&Ask { host, ..Ask::get("/health") });
    for host in ["evil.example", "evil.example:7400", "127.0.0.1.evil.example", ""] {
        let status = with_host(host).status;
        assert!((400..500).contains(&status), "`{host}` got {status}");
    }
    for host in [http.clone(), format!("localhost:{port}"), "127.0.0.1".to_owned()] {
        assert_eq!(with_host(&host).status, 200, "`{host}`");
    }
    let mut ask = Ask::get("/health");
    ask.headers.push(("origin", "http://evil.example".to_owned()));
    let answer = daemon.tcp(&ask);
    assert!(!answer.head.to_ascii_lowercase().contains("access-control-allow-origin"), "{}", answer.head);
}

#[test]
fn nothing_can_be_changed_over_tcp() {
    let mut daemon = Daemon::start(&only("fake", json!({})));
    let monitor = daemon.only_monitor();
    let posts = [
        ("/control/reload", json!({ "dry_run": false })),
        ("/control/send", json!({ "text": "from the network" })),
        ("/control/adapters/fake/me/stop", json!({})),
        ("/health", json!({})),
    ];
    for (path, body) in &posts {
        let status = daemon.tcp(&Ask::post(path, body)).status;
        assert!((400..500).contains(&status), "POST {path} got {status}");
    }
    for path in ["/control/status", "/control/events", "/control/deliveries"] {
        let status = daemon.tcp(&Ask::get(path)).status;
        assert!((400..500).contains(&status), "GET {path} got {status}");
    }
    assert!(daemon.is_running() && monitor.is_alive());
    assert_eq!(daemon.count("events", "SELECT count(*) FROM events WHERE channel = 'cli'"), 0);
}

#[test]
fn a_message_sent_twice_under_one_id_is_answered_twice_and_done_once() {
    let daemon = Daemon::start(&config(json!({})));
    let body = json!({ "text": "once", "event_id": "cli:my-id-1" });
    for _ in 0..2 {
        let answer = daemon.post("/control/send", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let parts: Vec<Value> = answer.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(parts[0]["type"], "accepted", "{}", answer.body);
        let end = parts.last().unwrap();
        assert_eq!((&end["type"], &end["status"], &end["text"]), (&json!("end"), &json!("completed"), &json!("once")));
    }
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM runs"), 1);
}
