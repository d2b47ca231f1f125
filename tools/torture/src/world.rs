//! One world: a daemon's directories, the platform that its adapters speak for, and what everybody in
//! it wrote down. All of it lies below one directory, whose path is in the command line or environment
//! of every process that belongs to it.

use crate::{acp, advisers, agent, journal, posters, project, source, steered};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// How long a speaker may speak: longer than the silence after which what it said so far becomes a block.
const SPEAKER_MS: u64 = 2500;
/// How often a reply is sent again that surely was not sent, or may be sent again.
pub(crate) const SEND_RETRIES: u64 = 6;
/// How long after a reply was decided it may still be sent.
pub(crate) const REPLY_TTL_MS: i64 = 3_600_000;

/// What an adapter of this world can do about what was missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// It is told what was committed, and goes on from there.
    Acked,
    /// It can be asked for what was missed.
    Filled,
    /// Both.
    Both,
    /// Neither: what comes while nobody reads is gone.
    Plain,
    /// As `Acked`; what agents say there is streamed.
    Live,
    /// As `Acked`; what agents say there leaves in blocks.
    Blocks,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] = [Self::Acked, Self::Filled, Self::Both, Self::Plain, Self::Live, Self::Blocks];

    /// Its name as an adapter and as a channel.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Acked => "acked",
            Self::Filled => "filled",
            Self::Both => "both",
            Self::Plain => "plain",
            Self::Live => "live",
            Self::Blocks => "blocks",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    pub(crate) fn acks(self) -> bool {
        matches!(self, Self::Acked | Self::Both | Self::Live | Self::Blocks)
    }

    pub(crate) fn fills(self) -> bool {
        matches!(self, Self::Filled | Self::Both)
    }

    /// Answers leave while their agents still speak.
    pub(crate) fn speaks(self) -> bool {
        matches!(self, Self::Live | Self::Blocks)
    }

    /// A send that may have arrived is sent again.
    pub(crate) fn retries_uncertain(self) -> bool {
        matches!(self, Self::Filled)
    }

    pub(crate) fn accounts(self) -> &'static [&'static str] {
        match self {
            Self::Acked | Self::Filled => &["a", "b"],
            Self::Both | Self::Plain | Self::Live | Self::Blocks => &["a"],
        }
    }
}

/// Who is in a world besides those who are in every one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Cast {
    /// Agents that speak for a while, to channels on which one sees that.
    pub(crate) speakers: bool,
    /// Automations and plugins.
    pub(crate) advisers: bool,
    /// An agent that takes messages while it runs. There are speakers then.
    pub(crate) steering: bool,
    /// A relay of Nostr, people who post there, and a project.
    pub(crate) nostr: bool,
    /// The project has a repository, on a host that somebody has to approve. There is Nostr then.
    pub(crate) approvals: bool,
    /// The project crashes often enough to be quarantined. There is Nostr then.
    pub(crate) quarantine: bool,
    /// An agent that stays, of the Agent Client Protocol.
    pub(crate) acp: bool,
}

impl Cast {
    /// That of a seed: of four in a row one has neither speakers nor advisers; of eight one of those has Nostr, and one of those with
    /// speakers alone an agent that takes messages while it runs; and of sixteen one with Nostr has a project that waits for an
    /// approval, the other one a project that is quarantined, and one with nobody else an agent that stays.
    pub(crate) fn of(seed: u64) -> Self {
        let (speakers, advisers) = match seed % 4 {
            0 => (true, false),
            1 => (false, true),
            2 => (false, false),
            _ => (true, true),
        };
        Self {
            speakers,
            advisers,
            steering: seed % 8 == 4,
            nostr: seed % 8 == 6,
            approvals: seed % 16 == 6,
            quarantine: seed % 16 == 14,
            acp: seed % 16 == 10,
        }
    }
}

/// What the daemon does about runs that it finds interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnInterrupted {
    Auto,
    Rerun,
    Fail,
}

impl OnInterrupted {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Rerun => "rerun",
            Self::Fail => "fail",
        }
    }
}

/// The directories and files of one world.
#[derive(Debug, Clone)]
pub(crate) struct World {
    root: PathBuf,
    cast: Cast,
}

impl World {
    /// Makes the directories below `root`, which must be empty.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn make(root: &Path, cast: Cast) -> Result<Self> {
        for name in ["home", "workspace", "platform"] {
            fs::create_dir(root.join(name)).with_context(|| format!("failed to make `{name}` in `{}`", root.display()))?;
        }
        Ok(Self { root: root.to_owned(), cast })
    }

    /// One that was made before, for a program in it: it knows where things are, and not who else is there.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), cast: Cast::default() }
    }

    pub(crate) fn cast(&self) -> Cast {
        self.cast
    }

    /// The adapters of this world.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = Kind> + use<> {
        let has_speakers = self.cast.speakers;
        Kind::ALL.into_iter().filter(move |kind| has_speakers || !kind.speaks())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.root.join("workspace/data")
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.root.join("workspace/nex.yaml")
    }

    /// What the platform has of an account: a line per event, oldest first.
    pub(crate) fn feed(&self, kind: Kind, account: &str) -> PathBuf {
        self.root.join(format!("platform/{}-{account}.feed", kind.name()))
    }

    /// What an account's adapter was told to be committed.
    pub(crate) fn acks(&self, kind: Kind, account: &str) -> PathBuf {
        self.root.join(format!("platform/{}-{account}.acks", kind.name()))
    }

    /// The lock that an account's monitor holds.
    pub(crate) fn monitor_lock(&self, kind: Kind, account: &str) -> PathBuf {
        self.root.join(format!("platform/{}-{account}.lock", kind.name()))
    }

    /// The lock by which an account's monitor shows that it is connected. The other one is touched by monitors alone.
    pub(crate) fn connected_lock(&self, kind: Kind, account: &str) -> PathBuf {
        self.root.join(format!("platform/{}-{account}.connected", kind.name()))
    }

    /// The lock that an account's `stream` process holds.
    pub(crate) fn stream_lock(&self, kind: Kind, account: &str) -> PathBuf {
        self.root.join(format!("platform/{}-{account}.stream", kind.name()))
    }

    /// What `stream` processes were told, and showed.
    pub(crate) fn streams(&self) -> PathBuf {
        self.root.join("platform/streams")
    }

    /// What reached the platform, in its order.
    pub(crate) fn sends(&self) -> PathBuf {
        self.root.join("platform/sends")
    }

    /// Every call of `send`, whether or not it delivered.
    pub(crate) fn send_calls(&self) -> PathBuf {
        self.root.join("platform/send-calls")
    }

    /// Every call of `send` that surely delivered nothing and may be repeated.
    pub(crate) fn refusals(&self) -> PathBuf {
        self.root.join("platform/refusals")
    }

    /// What senders and `stream` processes did wrong, each before it did.
    pub(crate) fn faults(&self) -> PathBuf {
        self.root.join("platform/faults")
    }

    /// What agents did.
    pub(crate) fn agent_journal(&self) -> PathBuf {
        self.root.join("platform/agent")
    }

    /// From when to when programs may have been hit by something else than themselves.
    pub(crate) fn hits(&self) -> PathBuf {
        self.root.join("platform/hits")
    }

    /// The sessions that the agent which stays has begun, and the lock that one process of it holds.
    pub(crate) fn acp_sessions(&self) -> PathBuf {
        self.root.join("platform/acp-sessions")
    }

    pub(crate) fn acp_lock(&self) -> PathBuf {
        self.root.join("platform/acp.lock")
    }

    /// What a person asked the daemon for, and what was answered as done.
    pub(crate) fn people(&self) -> PathBuf {
        self.root.join("platform/people")
    }

    /// The turns that a person asked to be stopped, and what was answered.
    pub(crate) fn stops(&self) -> PathBuf {
        self.root.join("platform/stops")
    }

    /// Where the world's relay is, what it was given by the daemon, and what people posted there.
    pub(crate) fn relay_url(&self) -> PathBuf {
        self.root.join("platform/relay")
    }

    pub(crate) fn published(&self) -> PathBuf {
        self.root.join("platform/published")
    }

    pub(crate) fn posts(&self) -> PathBuf {
        self.root.join("platform/posts")
    }

    /// Where the repository of the project is, and which approvals were answered as given.
    pub(crate) fn source_url(&self) -> PathBuf {
        self.root.join("platform/source")
    }

    pub(crate) fn approvals(&self) -> PathBuf {
        self.root.join("platform/approvals")
    }

    /// The daemon's own public key.
    pub(crate) fn daemon_key(&self) -> PathBuf {
        self.root.join("platform/daemon-key")
    }

    /// What the processes of the project did, and the lock that one of them holds.
    pub(crate) fn project_journal(&self) -> PathBuf {
        self.root.join("platform/project")
    }

    /// The last request at the moment from which on the project that was in quarantine had to answer.
    pub(crate) fn released(&self) -> PathBuf {
        self.root.join("platform/released")
    }

    pub(crate) fn project_lock(&self) -> PathBuf {
        self.root.join("platform/project.lock")
    }

    /// While this file exists every program behaves.
    pub(crate) fn calm(&self) -> PathBuf {
        self.root.join("calm")
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.calm().exists()
    }

    /// While this file exists nothing can be written to the disk.
    pub(crate) fn read_only(&self) -> PathBuf {
        self.root.join("read-only")
    }

    /// Broken promises that a program saw itself.
    pub(crate) fn violations(&self) -> PathBuf {
        self.root.join("violations")
    }

    /// Notes a broken promise.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn violated(&self, what: &str) -> Result<()> {
        journal::append(&self.violations(), what)
    }

    /// Writes the configuration. `variant` changes something that a reload sees.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn configure(&self, own: &Path, seed: u64, on_interrupted: OnInterrupted, variant: u64) -> Result<()> {
        let mut adapters = Map::new();
        for kind in self.kinds() {
            adapters.insert(kind.name().to_owned(), self.adapter(own, seed, kind, variant));
        }
        let agent = format!("'{}' __agent '{}' {seed}", own.display(), self.root.display());
        let mut config = json!({
            "daemon": { "port": 0 },
            "ledgers": { "min_free_mb": 1 },
            "timer": { "heartbeat_interval_ms": 1000 + variant },
            "bus": { "mode": "write-through" },
            "pipeline": { "on_interrupted": on_interrupted.name() },
            "access": { "default": "deny", "policies": [
                { "name": "echoed", "match": { "conditions": self.echoed() }, "effect": "allow",
                  "session": { "agent": "echo" } },
                { "name": "answered", "match": { "conditions": self.answered() }, "effect": "allow" },
                { "name": "strangers", "match": { "conditions": self.strangers() }, "effect": "deny", "priority": 10 },
            ] },
            "agents": { "default": "worker", "worker": { "runner": "command", "command": agent, "timeout_ms": 1500 } },
            "adapters": adapters,
        });
        if self.cast.speakers {
            let speaker = json!({ "runner": "command", "command": format!("{agent} {}", agent::SPEAKS), "timeout_ms": SPEAKER_MS });
            add_agent(&mut config, "speaker", speaker, Kind::speaks);
        }
        if self.cast.steering {
            let policy = add_agent(&mut config, steered::NAME, steered::settings(&agent), is_of_steering);
            policy["queue_mode"] = json!("steer");
        }
        if self.cast.acp {
            add_agent(&mut config, acp::NAME, acp::settings(self, own, seed), is_of_acp);
        }
        if self.cast.advisers {
            config["plugins"] = advisers::settings();
            config["automations"] = advisers::grants();
            advisers::place(self, own, seed)?;
        }
        if self.cast.nostr {
            let url = fs::read_to_string(self.relay_url()).context("the world's relay is nowhere")?;
            // What a reload sees as another frame limit changes the client, and as another environment the project's process.
            config["nostr"] = json!({ "relays": [url], "whitelist": posters::heeded(), "publish_per_minute": 60_000,
                                      "max_frame_bytes": 65_536 + variant });
            config["projects"] = project::settings(self, own, seed, variant / 2);
            if self.cast.approvals {
                config["projects"]["git"] = source::settings();
            }
        }
        let draft = self.file("workspace/nex.yaml.draft");
        fs::write(&draft, format!("{config:#}")).and_then(|()| fs::rename(&draft, self.config_file())).context("failed to write nex.yaml")
    }

    /// Where nobody answers but an echo.
    fn echoed(&self) -> Vec<Value> {
        let kinds = [Kind::Plain, Kind::Both].into_iter().filter(|kind| !(self.cast.steering && is_of_steering(*kind)));
        kinds.map(|kind| json!({ "channel": kind.name() })).collect()
    }

    /// Where the agent answers that no policy names.
    fn answered(&self) -> Vec<Value> {
        let kinds = [Kind::Acked, Kind::Filled].into_iter().filter(|kind| !(self.cast.acp && is_of_acp(*kind)));
        kinds.map(|kind| json!({ "channel": kind.name() })).collect()
    }

    /// Who writes in a channel, which a project of Nostr is too: that one's people are let in by its whitelist.
    fn strangers(&self) -> Vec<Value> {
        if !self.cast.nostr {
            return vec![json!({ "peer_kind": "channel" })];
        }
        self.kinds().map(|kind| json!({ "peer_kind": "channel", "channel": kind.name() })).collect()
    }

    fn adapter(&self, own: &Path, seed: u64, kind: Kind, variant: u64) -> Value {
        let accounts: Map<String, Value> =
            kind.accounts().iter().map(|account| ((*account).to_owned(), json!({ "backfill": kind == Kind::Both }))).collect();
        let on_uncertain = if kind.retries_uncertain() { "retry" } else { "hold" };
        let stream = if kind == Kind::Blocks { "blocks" } else { "auto" };
        json!({
            "command": format!("'{}' __adapter '{}' {seed} {}", own.display(), self.root.display(), kind.name()),
            // What a reload sees as another environment restarts the adapter's monitors.
            "env": { "TORTURE_VARIANT": (variant / 2).to_string() },
            "restart": { "max_restarts": 1000, "backoff_base_ms": 20, "backoff_multiplier": 1, "backoff_max_ms": 20, "errored_retry_ms": 20 },
            "send": { "timeout_ms": 800, "retries": SEND_RETRIES, "on_uncertain": on_uncertain, "ttl_ms": REPLY_TTL_MS, "stream": stream },
            "catch_up": { "overlap_ms": 3_000, "max_age_ms": 3_600_000, "late": if variant.is_multiple_of(2) { "run" } else { "file" } },
            "accounts": accounts,
        })
    }
}

/// Where the agent that stays answers, in a world that has it.
fn is_of_acp(kind: Kind) -> bool {
    matches!(kind, Kind::Filled)
}

/// Where the agent answers that takes messages while it runs, in a world that has it.
fn is_of_steering(kind: Kind) -> bool {
    matches!(kind, Kind::Plain)
}

/// Has what is written on these channels answered by another agent, by the policy that it returns.
fn add_agent<'a>(config: &'a mut Value, name: &str, agent: Value, is_its: fn(Kind) -> bool) -> &'a mut Value {
    config["agents"][name] = agent;
    let channels: Vec<Value> = Kind::ALL.into_iter().filter(|kind| is_its(*kind)).map(|kind| json!({ "channel": kind.name() })).collect();
    let policy = json!({ "name": name, "match": { "conditions": channels }, "effect": "allow", "session": { "agent": name } });
    let policies = &mut config["access"]["policies"];
    let place = policies.as_array().map_or(0, Vec::len);
    if let Some(policies) = policies.as_array_mut() {
        policies.push(policy);
    }
    &mut policies[place]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn configured(seed: u64) -> Value {
        let dir = tempfile::tempdir().unwrap();
        let world = World::make(dir.path(), Cast::of(seed)).unwrap();
        world.configure(Path::new("/bin/it"), seed, OnInterrupted::Auto, 0).unwrap();
        serde_json::from_str(&fs::read_to_string(world.config_file()).unwrap()).unwrap()
    }

    #[test]
    fn one_of_eight_worlds_has_an_agent_that_takes_messages_while_it_runs() {
        assert_eq!((0..16).filter(|seed| Cast::of(*seed).steering).collect::<Vec<_>>(), [4, 12]);
        let policies = |seed: u64| configured(seed)["access"]["policies"].as_array().unwrap().clone();
        let steers = |policy: &Value| policy["queue_mode"] == "steer" && policy["session"]["agent"] == "steered";
        let with: Vec<Value> = policies(4).into_iter().filter(steers).collect();
        assert_eq!(with[0]["match"]["conditions"], json!([{ "channel": "plain" }]));
        assert_eq!((with.len(), policies(4)[0]["match"]["conditions"].clone()), (1, json!([{ "channel": "both" }])));
        assert!(!policies(8).iter().any(steers) && policies(8)[0]["match"]["conditions"].as_array().unwrap().len() == 2);
    }

    #[test]
    fn one_of_sixteen_worlds_has_an_agent_that_stays() {
        let has = |seed: u64| Cast::of(seed).acp;
        assert_eq!((0..32).filter(|seed| has(*seed)).collect::<Vec<_>>(), [10, 26]);
        assert_eq!(Cast::of(10), Cast { acp: true, ..Cast::default() }, "and nobody else");
        let agents = |config: &Value, channel: &str| -> Vec<Value> {
            let policies = config["access"]["policies"].as_array().unwrap().iter();
            let its = policies.filter(|policy| policy["match"]["conditions"].as_array().unwrap().contains(&json!({ "channel": channel })));
            its.map(|policy| policy["session"]["agent"].clone()).collect()
        };
        let (with, without) = (configured(10), configured(2));
        assert_eq!((agents(&with, "filled"), agents(&with, "acked")), (vec![json!("acp")], vec![Value::Null]));
        assert_eq!((agents(&without, "filled"), agents(&without, "acked")), (vec![Value::Null], vec![Value::Null]));
        assert_eq!((&with["agents"]["acp"]["runner"], &without["agents"]["acp"]), (&json!("acp"), &Value::Null));
    }
}
