//! `nexus access ...`: who is who, what the policies decide about them, and what was decided. The daemon writes;
//! this asks it, or reads the ledgers itself when none runs. What it looks like is `show`'s.

mod show;

use super::client::{Client, if_running, with_query};
use super::failure::{Exit, Failure};
use super::{Global, block_on, ledger};
use crate::access::{Check, Edit, People, Rules, local_time, sender};
use crate::clock;
use crate::daemon::Paths;
use crate::ledger::nexus::AuditQuery;
use crate::query::QueryError;
use crate::unknown;
use nexus_core::config::Config;
use nexus_core::event::PeerKind;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::str::FromStr;

/// Most rows that can be asked for at once.
const LIMIT_MAX: i64 = 1000;
/// Longest time back that can be asked for: a hundred years.
const SINCE_MS_MAX: u64 = 100 * 366 * 86_400_000;

/// `CHANNEL:SENDER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    channel: String,
    sender: String,
}

impl FromStr for Identity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (channel, sender) = sender(text).ok_or("write CHANNEL:SENDER, as in imessage:+15551234567")?;
        Ok(Self { channel: channel.to_owned(), sender: sender.to_owned() })
    }
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Show who wrote, newest first, or all that is known of a sender or an entity
    #[command(after_help = "Examples:\n  nexus access who\n  nexus access who imessage:+15551234567\n  nexus access who ann")]
    Who {
        /// CHANNEL:SENDER, or the id of an entity
        of: Option<String>,
        /// How many contacts at most
        #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
        limit: u32,
    },
    /// Say that a sender belongs to an entity, which is made if there is none
    #[command(after_help = "Example:\n  nexus access link imessage:+15551234567 ann --name Ann --relationship family")]
    Link {
        /// The sender
        #[arg(value_name = "CHANNEL:SENDER")]
        identity: Identity,
        /// The entity's id, of your choice
        entity: String,
        /// What the entity is called; an empty text takes the name away
        #[arg(long)]
        name: Option<String>,
        /// What the entity is to you, as policies name it: family, friend, ...
        #[arg(long)]
        relationship: Option<String>,
        /// How sure it is, from 0 to 1; below 0.5 the link is shown and makes nobody known
        #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share)]
        confidence: f64,
        /// The entity may be the owner's: the sender gets the owner's session, name and tags, and none of the rights
        #[arg(long)]
        as_owner: bool,
    },
    /// Take a sender from its entity
    #[command(after_help = "Example:\n  nexus access unlink imessage:+15551234567")]
    Unlink {
        /// The sender
        #[arg(value_name = "CHANNEL:SENDER")]
        identity: Identity,
    },
    /// Change what an entity is called, and what it is to you
    #[command(after_help = "Example:\n  nexus access set ann --relationship family")]
    Set {
        /// The entity's id
        entity: String,
        /// An empty text takes the name away
        #[arg(long, required_unless_present = "relationship")]
        name: Option<String>,
        /// An empty text takes the relationship away
        #[arg(long)]
        relationship: Option<String>,
    },
    /// Put tags on an entity, for policies
    #[command(after_help = "Example:\n  nexus access tag ann trusted")]
    Tag {
        /// The entity's id
        entity: String,
        /// The tags that it gets
        #[arg(required = true)]
        tags: Vec<String>,
    },
    /// Take tags off an entity
    #[command(after_help = "Example:\n  nexus access untag ann trusted")]
    Untag {
        /// The entity's id
        entity: String,
        /// The tags that it loses
        #[arg(required = true)]
        tags: Vec<String>,
    },
    /// Have an entity count as another, with its senders and tags
    #[command(after_help = "Example:\n  nexus access merge ann-at-work ann")]
    Merge {
        /// The entity that is to count as the other
        from: String,
        /// The entity that it is to count as
        into: String,
        /// INTO may be the owner's: FROM gets the owner's session, name and tags, and none of the rights
        #[arg(long)]
        as_owner: bool,
    },
    /// Have a merged entity count for itself again
    #[command(after_help = "Example:\n  nexus access unmerge ann-at-work")]
    Unmerge {
        /// The id of the entity that was merged
        entity: String,
    },
    /// Show the policies in force, in their order
    #[command(after_help = "Example:\n  nexus access policies")]
    Policies,
    /// Show what would be decided about a sender, and why
    #[command(after_help = "Examples:\n  nexus access check imessage:+15551234567
  nexus access check imessage:+15551234567 --peer-kind group --at 2026-01-02T23:30")]
    Check {
        /// The sender
        #[arg(value_name = "CHANNEL:SENDER")]
        identity: Identity,
        /// The account that gets the message [default: default]
        #[arg(long)]
        account: Option<String>,
        /// Where it is said: dm, group or channel [default: dm]
        #[arg(long, value_name = "KIND", value_parser = peer_kind)]
        peer_kind: Option<PeerKind>,
        /// The group's or channel's id [default: the sender]
        #[arg(long)]
        peer: Option<String>,
        /// What it is: text, image, reaction, system/... [default: text]
        #[arg(long, value_name = "TYPE")]
        content_type: Option<String>,
        /// Local date and time, as 2026-01-02T23:30 [default: now]
        #[arg(long, value_name = "TIME", value_parser = time)]
        at: Option<String>,
    },
    /// Show who was let in or denied, and why, newest first
    #[command(after_help = "Example:\n  nexus access audit --denied --since 1h")]
    Audit {
        /// How many at most
        #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
        limit: u32,
        /// Only denials
        #[arg(long)]
        denied: bool,
        /// Only decisions about this sender
        #[arg(long, value_name = "CHANNEL:SENDER")]
        sender: Option<Identity>,
        /// Only decisions of this last time: 90s, 15m, 1h, 7d
        #[arg(long, value_name = "TIME", value_parser = span_ms)]
        since: Option<u64>,
        /// Also those about the timer, as of heartbeats, which --denied and --sender show anyway
        #[arg(long)]
        all: bool,
    },
}

pub(crate) fn run(verb: Verb, global: &Global) -> anyhow::Result<Exit> {
    block_on(async {
        match verb {
            Verb::Who { of: None, limit } => contacts(limit, global).await,
            Verb::Who { of: Some(of), .. } => who(&of, global).await,
            Verb::Link { identity: Identity { channel, sender }, entity, name, relationship, confidence, as_owner } => {
                edit(Edit::Link { channel, sender, entity, name, relationship, confidence, as_owner }, global).await
            }
            Verb::Unlink { identity: Identity { channel, sender } } => edit(Edit::Unlink { channel, sender }, global).await,
            Verb::Set { entity, name, relationship } => edit(Edit::Set { entity, name, relationship }, global).await,
            Verb::Tag { entity, tags } => edit(Edit::Tag { entity, tags }, global).await,
            Verb::Untag { entity, tags } => edit(Edit::Untag { entity, tags }, global).await,
            Verb::Merge { from, into, as_owner } => edit(Edit::Merge { from, into, as_owner }, global).await,
            Verb::Unmerge { entity } => edit(Edit::Unmerge { entity }, global).await,
            Verb::Policies => policies(global).await,
            Verb::Check { identity: Identity { channel, sender }, account, peer_kind, peer, content_type, at } => {
                check(&Check { channel, sender, account, peer_kind, peer, content_type, at }, global).await
            }
            Verb::Audit { limit, denied, sender, since, all } => {
                let since = since.map(|ms| clock::wall_ms().saturating_sub(i64::try_from(ms).unwrap_or(i64::MAX)));
                let sender = sender.map(|Identity { channel, sender }| (channel, sender));
                audit(AuditQuery { limit: limit as usize, denied_only: denied, sender, since, all }, global).await
            }
        }
    })?
}

async fn contacts(limit: u32, global: &Global) -> anyhow::Result<Exit> {
    let path = with_query("/control/access/who", &[("limit", Some(limit.to_string()))]);
    let paths = global.paths()?;
    let answer = match if_running(Client::new(&paths).get(&path).await)? {
        Some(answer) => answer,
        None => {
            let (people, config) = offline(&paths)?;
            people.contacts(&config.access, limit as usize)?
        }
    };
    show::contacts(&answer, global.out())
}

async fn who(of: &str, global: &Global) -> anyhow::Result<Exit> {
    let path = with_query("/control/access/who", &[("of", Some(of.to_owned()))]);
    let paths = global.paths()?;
    let answer = match if_running(Client::new(&paths).get(&path).await)? {
        Some(answer) => answer,
        None => {
            let (people, config) = offline(&paths)?;
            people.who(&config.access, of)?.ok_or_else(|| Failure::not_found(unknown::sender(of)))?
        }
    };
    show::who(&answer, global.out())
}

/// What the ledgers and the configuration say while no daemon runs.
fn offline(paths: &Paths) -> anyhow::Result<(People, Config)> {
    let config = ledger::configuration(paths)?.config;
    Ok((People::offline(&paths.data_dir(&config.ledgers.directory))?, config))
}

/// Has the daemon write a change. What can't be meant is wrong usage, whether or not a daemon runs.
async fn edit(edit: Edit, global: &Global) -> anyhow::Result<Exit> {
    edit.check().map_err(|error| Failure::new(Exit::Usage, error))?;
    let paths = global.paths()?;
    let answer = Client::new(&paths).post("/control/access/edit", &json!(edit)).await?;
    show::edited(&edit, &answer, global.out())
}

async fn policies(global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let answer = match if_running(Client::new(&paths).get("/control/access/policies").await)? {
        Some(answer) => answer,
        None => rules(&ledger::configuration(&paths)?.config)?.policies(),
    };
    show::policies(&answer, global.out())
}

fn rules(config: &Config) -> anyhow::Result<Rules> {
    Rules::of(config).map_err(|error| Failure::new(Exit::BadConfig, error).into())
}

async fn check(asked: &Check, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let Check { channel, sender, account, peer_kind, peer, content_type, at } = asked;
    let query = [
        ("channel", Some(channel.clone())),
        ("sender", Some(sender.clone())),
        ("account", account.clone()),
        ("peer_kind", peer_kind.map(|kind| kind.as_str().to_owned())),
        ("peer", peer.clone()),
        ("content_type", content_type.clone()),
        ("at", at.clone()),
    ];
    let answer = match if_running(Client::new(&paths).get(&with_query("/control/access/check", &query)).await)? {
        Some(answer) => answer,
        None => {
            let (people, config) = offline(&paths)?;
            rules(&config)?.check(&people, asked, clock::wall_ms())?
        }
    };
    show::check(&answer, global.out())
}

async fn audit(query: AuditQuery, global: &Global) -> anyhow::Result<Exit> {
    let (channel, sender) = query.sender.clone().unzip();
    let parameters = [
        ("limit", Some(query.limit.to_string())),
        ("denied", query.denied_only.then(|| true.to_string())),
        ("channel", channel),
        ("sender", sender),
        ("since", query.since.map(|since| since.to_string())),
        ("all", query.all.then(|| true.to_string())),
    ];
    let offline = |directory: PathBuf| -> Result<Value, QueryError> { Ok(People::offline(&directory)?.audit(&query)?) };
    let answer = ledger::ask(global, &with_query("/control/access/audit", &parameters), offline).await?;
    show::audit(&answer, global.out())
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "give a number from 0 to 1".to_owned())
}

fn peer_kind(text: &str) -> Result<PeerKind, String> {
    PeerKind::parse(text).ok_or_else(|| "give dm, group or channel".to_owned())
}

fn time(text: &str) -> Result<String, String> {
    local_time(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Milliseconds of `90s`, `15m`, `1h` or `7d`.
fn span_ms(text: &str) -> Result<u64, String> {
    let wrong = || "give a number and s, m, h or d, as in 1h".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let unit_ms = match unit {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => return Err(wrong()),
    };
    let number = text[..text.len() - 1].parse::<u64>().map_err(|_| wrong())?;
    number.checked_mul(unit_ms).filter(|ms| *ms <= SINCE_MS_MAX).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn spans_have_a_unit_and_a_bound() {
        for (text, ms) in [("90s", 90_000), ("15m", 900_000), ("1h", 3_600_000), ("7d", 604_800_000)] {
            assert_eq!(span_ms(text), Ok(ms));
        }
        for text in ["", "h", "1", "1 h", "-1h", "1w", "1é", "99999999999999999999s", "36601d"] {
            assert!(span_ms(text).is_err(), "{text}");
        }
    }

    #[test]
    fn identities_and_shares_are_checked() {
        assert_eq!("x:a:b".parse::<Identity>(), Ok(Identity { channel: "x".to_owned(), sender: "a:b".to_owned() }));
        assert!("ann".parse::<Identity>().is_err());
        assert_eq!((share("0"), share("0.5"), share("1")), (Ok(0.0), Ok(0.5), Ok(1.0)));
        for text in ["-0.1", "1.01", "NaN", "inf", "x", ""] {
            assert!(share(text).is_err(), "{text}");
        }
    }
}
