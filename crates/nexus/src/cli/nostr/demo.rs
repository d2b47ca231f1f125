//! `nexus nostr demo`: the whole story on one machine. A relay, a daemon, a user's key, a project with an agent,
//! an event that activates it, and the agent's signed answer. It uses what users use, a relay's messages and the
//! daemon's command line, and it ends both.

mod daemon;
mod place;
mod wire;

use crate::cli::failure::{Exit, Failure};
use crate::cli::out::{Color, Out, note, visible};
use crate::cli::{Global, runtime};
use crate::nostr_relay::{Options, Relay};
use ::nostr::event::{Event, EventBuilder, FinalizeEvent, Kind, Tag};
use ::nostr::key::{Keys, PublicKey};
use ::nostr::nips::nip19::ToBech32;
use anyhow::Context;
use daemon::Daemon;
use place::Place;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use wire::Wire;

/// How long the answer may take: the daemon prepares the project first, and starts its process.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// The relay of a demonstration holds a handful of events.
const RELAY_MB_MAX: u32 = 64;

const PROJECT_KIND: u16 = 31_933;
const AGENT_KIND: u16 = 4_199;
const NOTE_KIND: u16 = 1;
const COMMENT_KIND: u16 = 1_111;
const PROFILE_KIND: u16 = 0;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  nexus nostr demo\n  nexus nostr demo --home ./demo --say 'What is this?'")]
pub(crate) struct Args {
    /// Keep everything in this directory and go on there next time [default: a temporary one, removed at the end]
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,
    /// What is said to the agent
    #[arg(long, value_name = "TEXT", default_value = "Hello, who are you?")]
    say: String,
}

/// What came of it.
struct Answered {
    relay: String,
    project: String,
    user: PublicKey,
    question: Event,
    answer: Event,
    /// As the agent's profile says, if it has one.
    agent: Option<String>,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let place = Place::make(args.home.as_deref())?;
    let answered = runtime()?.block_on(with_relay(&place, &args.say));
    match answered {
        Ok(answered) => {
            place.tidy()?;
            answered.tell(global.out())?;
            Ok(Exit::Done)
        }
        Err(error) => {
            note(&format!("What was written stays in {}; the daemon's log is {}", place.root.display(), place.log().display()));
            Err(error)
        }
    }
}

async fn with_relay(place: &Place, say: &str) -> anyhow::Result<Answered> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let options = Options { listen, directory: place.relay(), auth: false, allow_external: false, max_mb: RELAY_MB_MAX };
    let relay = Relay::open(options).await?;
    let url = relay.url();
    let stop = CancellationToken::new();
    let serving = crate::watch::helper("relay", relay.serve(stop.clone()));
    let answered = with_daemon(place, &url, say).await;
    stop.cancel();
    serving.await.context("the relay failed")?;
    answered
}

async fn with_daemon(place: &Place, url: &str, say: &str) -> anyhow::Result<Answered> {
    let keys = place.keys()?;
    place.configure(url, &npub(&keys.public_key()))?;
    // Signals first: from here on whatever was started is ended too.
    let watch = |kind| signal(kind).context("failed to watch for signals");
    let (mut terminate, mut interrupt) = (watch(SignalKind::terminate())?, watch(SignalKind::interrupt())?);
    let mut daemon = Daemon::start(place)?;
    let answered = tokio::select! {
        answered = timeout(ANSWER_LIMIT, converse(&mut daemon, url, &keys, say)) => answered.unwrap_or_else(|_| Err(silence().into())),
        _ = terminate.recv() => Err(Failure::new(Exit::Failed, "interrupted").into()),
        _ = interrupt.recv() => Err(Failure::new(Exit::Failed, "interrupted").into()),
    };
    // It is ended in any case; what went wrong first is what is told.
    let stopped = daemon.stop().await;
    let answered = answered?;
    stopped?;
    Ok(answered)
}

fn silence() -> Failure {
    Failure::new(Exit::Failed, format!("the agent did not answer within {} s", ANSWER_LIMIT.as_secs()))
}

/// Publishes the project and what is said, and waits for the answer.
async fn converse(daemon: &mut Daemon, url: &str, keys: &Keys, say: &str) -> anyhow::Result<Answered> {
    daemon.ready().await?;
    let mut wire = Wire::connect(url).await?;
    let user = keys.public_key();
    let instructions = "You show newcomers what an agent of a project is.";
    let agent = signed(keys, AGENT_KIND, instructions, &[&["d", "guide"], &["title", "Guide"], &["role", "guide"], &["ver", "1"]])?;
    wire.publish(&agent).await?;
    let agent_id = agent.id.to_hex();
    let project = signed(keys, PROJECT_KIND, "A project to try things.", &[&["d", "demo"], &["title", "Demo"], &["agent", &agent_id]])?;
    wire.publish(&project).await?;
    let coordinate = format!("{PROJECT_KIND}:{}:demo", user.to_hex());
    let question = signed(keys, NOTE_KIND, say, &[&["a", &coordinate]])?;
    // Asked for before it can come: an answer is not missed.
    wire.listen(&json!({ "kinds": [NOTE_KIND, COMMENT_KIND], "#e": [question.id.to_hex()] })).await?;
    wire.publish(&question).await?;
    let answer = loop {
        let event = wire.next_event().await?;
        if event.pubkey != user {
            break event;
        }
    };
    answer.verify().context("the answer's id or signature is wrong")?;
    let profiles = wire.stored(&json!({ "kinds": [PROFILE_KIND], "authors": [answer.pubkey.to_hex()] })).await?;
    let agent = profiles.first().and_then(name_in);
    Ok(Answered { relay: url.to_owned(), project: coordinate, user, question, answer, agent })
}

/// The name of a profile whose signature is right.
fn name_in(profile: &Event) -> Option<String> {
    profile.verify().ok()?;
    let content: Value = serde_json::from_str(&profile.content).ok()?;
    content["name"].as_str().map(str::to_owned)
}

fn signed(keys: &Keys, kind: u16, content: &str, tags: &[&[&str]]) -> anyhow::Result<Event> {
    let tags = tags.iter().map(|tag| Tag::parse(tag.iter().copied())).collect::<Result<Vec<_>, _>>()?;
    EventBuilder::new(Kind::from(kind), content).tags(tags).finalize(keys).context("failed to sign an event")
}

fn npub(key: &PublicKey) -> String {
    let Ok(text) = key.to_bech32();
    text
}

impl Answered {
    fn tell(&self, out: Out) -> anyhow::Result<()> {
        if out.json {
            out.json(&json!({
                "relay": self.relay,
                "project": self.project,
                "user": self.user.to_hex(),
                "question": self.question,
                "answer": self.answer,
                "agent": self.agent,
                "verified": true,
            }))?;
            return Ok(());
        }
        let agent = self.agent.as_deref().unwrap_or("the agent");
        let rows = [
            ("relay", self.relay.clone()),
            ("project", self.project.clone()),
            ("you", npub(&self.user)),
            ("you say", visible(&self.question.content)),
            ("agent", format!("{} ({})", visible(agent), npub(&self.answer.pubkey))),
            ("it answers", visible(&self.answer.content)),
            ("event", self.answer.id.to_hex()),
        ];
        for (name, value) in rows {
            out.line(&format!("{name:<12}{value}"))?;
        }
        out.line(&out.paint.apply(Color::Green, "The signature is the agent's, and nothing runs any more."))?;
        Ok(())
    }
}
