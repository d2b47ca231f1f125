//! The platform's people: they write numbered messages, at random times, to all accounts.

use crate::chance::Chance;
use crate::world::{Kind, World};
use crate::{clock, journal};
use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// 9999-12-31T23:59:59Z, as some clocks have it.
const YEAR_9999_MS: i64 = 253_402_300_799_000;
const HOUR_MS: i64 = 3_600_000;
/// People who write to one account.
pub(crate) const PEERS: u64 = 3;

/// Messages that come while this lives.
pub(crate) struct Feeder {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Feeder {
    /// Begins, with a message each `pause_ms_max` at most.
    pub(crate) fn start(world: &World, chance: Chance, pause_ms_max: u64) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (world, told) = (world.clone(), over.clone());
        let thread = std::thread::spawn(move || feed(&world, chance, pause_ms_max, &told));
        Self { over, thread }
    }

    /// Ends; how many messages there were.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn end(self) -> Result<u64> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the feeder panicked"))?
    }
}

fn feed(world: &World, mut chance: Chance, pause_ms_max: u64, over: &AtomicBool) -> Result<u64> {
    let accounts: Vec<(Kind, &str)> = world.kinds().flat_map(|kind| kind.accounts().iter().map(move |&account| (kind, account))).collect();
    // Another feeder's numbers go on.
    let written = |(kind, account): &(Kind, &str)| -> Result<u64> { Ok(journal::lines(&world.feed(*kind, account))?.len() as u64) };
    let mut numbers: Vec<u64> = accounts.iter().map(written).collect::<Result<_>>()?;
    let before: u64 = numbers.iter().sum();
    while !over.load(Ordering::Relaxed) {
        let at = usize::try_from(chance.below(accounts.len() as u64))?;
        numbers[at] += 1;
        let (kind, account) = accounts[at];
        let line =
            json!({ "at": clock::wall_ms(), "ns": clock::monotonic_ns(), "event": message(&mut chance, kind, account, numbers[at]) });
        journal::append(&world.feed(kind, account), &line.to_string())?;
        clock::pause(Duration::from_millis(chance.below(pause_ms_max) + 1));
    }
    Ok(numbers.iter().sum::<u64>() - before)
}

/// Message number `n` of an account.
fn message(chance: &mut Chance, kind: Kind, account: &str, n: u64) -> Value {
    let now = clock::wall_ms();
    let timestamp = match chance.below(40) {
        0 => YEAR_9999_MS,
        1 => 0,
        2 => now - 3 * HOUR_MS,
        _ => now,
    };
    let peer = chance.below(PEERS);
    let is_stranger = chance.one_in(12);
    let mut event = json!({
        "event_id": format!("{}:{account}-{n}", kind.name()), "timestamp": timestamp, "content": format!("{} {account} {n}", kind.name()),
        "content_type": "text", "channel": kind.name(), "account_id": account, "sender_id": format!("u{peer}"), "peer_id": format!("p{peer}"),
        "peer_kind": "dm",
    });
    if is_stranger {
        event["sender_id"] = json!(format!("stranger{peer}"));
        event["peer_kind"] = json!("channel");
        event["peer_id"] = json!(format!("street{peer}"));
    }
    event
}
