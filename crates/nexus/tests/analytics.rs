//! What the plugin `analytics` leaves behind: rows by the hour, asked for as the manual says, and figures in `/metrics`.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Ask, Daemon, config, eventually, fake};
use serde_json::json;
use std::collections::BTreeMap;

const MANUAL: &str = include_str!("../../../docs/plugins.md");

/// The question that docs/plugins.md has.
fn question() -> &'static str {
    let (_, after) = MANUAL.split_once("data/nexus.db \"").expect("it asks the ledger");
    after.split_once("\"\n").expect("the question has an end").0
}

#[test]
fn requests_are_counted_by_channel_agent_and_status() {
    let stranger = fake(json!({ "channel": "other", "events": 1 }));
    let mut daemon = Daemon::start(&config(json!({ "fake": fake(json!({ "events": 2 })), "stranger": stranger })));
    let end = daemon.open(&Ask::post("/control/send", &json!({ "text": "hello" }))).body.end();
    assert_eq!(end["status"], "completed", "{end}");
    let ended = |status: &str| daemon.metric(&format!("nexus_requests_total{{status=\"{status}\"}}"));
    eventually("all have ended", || (ended("completed"), ended("denied")) == (3, 1));
    let expected = [(["cli", "echo", "completed"], 1), (["fake", "echo", "completed"], 2), (["other", "", "denied"], 1)];
    for ([channel, agent, status], count) in expected {
        let labels = format!("{{channel=\"{channel}\",agent=\"{agent}\",status=\"{status}\"}}");
        assert_eq!(daemon.metric(&format!("nexus_analytics_requests_total{labels}")), count, "{labels}");
        let text = daemon.get("/metrics").body;
        let seconds = text.lines().find_map(|line| line.strip_prefix(&format!("nexus_analytics_latency_seconds_total{labels}")));
        assert!(seconds.is_some_and(|seconds| seconds.trim().parse::<f64>().is_ok_and(|seconds| seconds >= 0.0)), "{seconds:?}");
    }
    daemon.stop();
    let rows = daemon.rows("nexus", question(), |row| {
        let (hour, mean_ms) = (row.get::<_, String>(0)?, row.get::<_, f64>(5)?);
        assert!(hour.starts_with("20") && hour.ends_with(":00:00") && mean_ms >= 0.0, "{hour} {mean_ms}");
        Ok(([row.get::<_, String>(1)?, row.get(2)?, row.get(3)?], row.get::<_, u64>(4)?))
    });
    // An hour may have ended meanwhile.
    let mut found: BTreeMap<[String; 3], u64> = BTreeMap::new();
    rows.into_iter().for_each(|(key, requests)| *found.entry(key).or_default() += requests);
    let expected = expected.map(|(key, requests)| (key.map(str::to_owned), requests));
    assert_eq!(found, BTreeMap::from(expected));
}
