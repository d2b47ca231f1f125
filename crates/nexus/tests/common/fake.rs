//! Configurations with fake adapters (`testing/fake_adapter.rs`), as JSON, which is YAML.

use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// The daemon's own program.
pub const NEXUS: &str = env!("CARGO_BIN_EXE_nexus");

/// A configuration for tests: any free port, no heartbeat, all that the channel `fake` says is the
/// owner's.
pub fn config(adapters: Value) -> Value {
    json!({
        "daemon": { "port": 0 },
        "ledgers": { "min_free_mb": 1 },
        "adapters": adapters,
        "access": { "owner": ["fake:*"] },
        "plugins": { "enabled": ["logging", "analytics"] },
        "timer": { "heartbeat_interval_ms": 0 },
    })
}

/// A time zone in which it is about noon: no day ends while a test runs.
pub fn zone_at_noon() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    let hour = i64::try_from(now.as_secs() / 3_600 % 24).expect("a day has 24 hours");
    // Counted the other way round in these names.
    match hour - 12 {
        west @ 1.. => format!("Etc/GMT+{west}"),
        0 => "Etc/GMT".to_owned(),
        east => format!("Etc/GMT{east}"),
    }
}

/// The command line of the fake adapter.
pub fn fake_command() -> String {
    let path = PathBuf::from(NEXUS).with_file_name("examples").join("fake-adapter");
    assert!(path.exists(), "{} is missing: cargo build --example fake-adapter", path.display());
    shell_words::quote(&path.to_string_lossy()).into_owned()
}

/// An adapter with the one account `me`, which behaves as told for all its verbs. Restarts come fast;
/// an errored one stays so.
pub fn fake(behaviour: Value) -> Value {
    json!({
        "command": fake_command(),
        "env": { "FAKE_ADAPTER_CONFIG": behaviour.to_string() },
        "restart": { "backoff_base_ms": 10, "backoff_max_ms": 1000, "errored_retry_ms": 0 },
        "accounts": { "me": { "config": behaviour } },
    })
}

/// As [`fake`], under a name and nothing else.
pub fn only(name: &str, behaviour: Value) -> Value {
    config(json!({ name: fake(behaviour) }))
}

/// As [`only`], with this many restarts before it is errored.
pub fn only_with_restarts(name: &str, max_restarts: u32, behaviour: Value) -> Value {
    let mut config = only(name, behaviour);
    config["adapters"][name]["restart"]["max_restarts"] = json!(max_restarts);
    config
}
