//! `nexus nostr ...`: how the relays are, whose events are heeded, by which keys the daemon and its agents speak, and
//! publishing by hand. Secret keys are read from stdin and never printed.

pub(crate) mod demo;
pub(crate) mod relay;

use super::adapter::edit::{Done, edit_and_tell};
use super::client::{Client, ClientError};
use super::failure::{Exit, Failure};
use super::out::{Color, Out, note, one_line, visible};
use super::table::{self, Cell};
use super::{Global, block_on, credential, ledger, running, units};
use crate::daemon::Paths;
use crate::nostr::keys;
use anyhow::Context;
use nexus_core::config::public_key_hex;
use serde_json::{Value, json};
use std::io::{IsTerminal, Read};
use std::time::Duration;

/// Longest reason in a table, in characters.
const WHY_CHARS_MAX: usize = 120;
/// Longest text that is published, in bytes.
const TEXT_BYTES_MAX: u64 = 64 * 1024;
/// How long who publishes waits without a word.
const QUIET_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Show how each relay is, and what waits to be published
    #[command(after_help = "Examples:\n  nexus nostr status\n  nexus nostr status --json")]
    Status,
    /// Say whose events are heeded
    #[command(subcommand, after_help = "Examples:\n  nexus nostr whitelist list\n  nexus nostr whitelist add npub1...")]
    Whitelist(Whitelist),
    /// Show the keys by which the daemon and its agents speak, or bring one along
    #[command(subcommand, after_help = "Examples:\n  nexus nostr keys list\n  nexus nostr keys import daemon < nsec.txt")]
    Keys(KeysVerb),
    /// Sign an event with one of those keys and publish it
    Publish(Publish),
    /// Run a small relay on this machine
    Relay(relay::Args),
    /// Show the whole story on this machine: a relay, a daemon, a project and its agent's signed answer
    Demo(demo::Args),
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Whitelist {
    /// List the keys whose events are heeded
    #[command(after_help = "Example:\n  nexus nostr whitelist list")]
    List,
    /// Heed the events of a key from now on, and those of the last day
    #[command(after_help = "Example:\n  nexus nostr whitelist add npub1...")]
    Add {
        /// The public key, as npub1... or 64 hexadecimal digits
        key: String,
    },
    /// Heed the events of a key no more
    #[command(after_help = "Example:\n  nexus nostr whitelist remove npub1...")]
    Remove {
        /// The public key, as npub1... or 64 hexadecimal digits
        key: String,
    },
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum KeysVerb {
    /// List the keys, without their secrets
    #[command(after_help = "Example:\n  nexus nostr keys list")]
    List,
    /// Store a secret key under a name: `daemon`, or PROJECT/AGENT
    #[command(after_help = "Example:\n  nexus nostr keys import daemon < nsec.txt")]
    Import {
        /// Whose key it is: `daemon`, or PROJECT/AGENT
        name: String,
    },
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  nexus nostr publish --tag p=npub... 'hello'\n  nexus nostr publish --tag '[\"e\",\"<id>\",\"\",\"root\"]' 'I agree'\n  nexus nostr publish --kind 1 --as demo-1a2b3c4d/coder --once note-1 < text"
)]
pub(crate) struct Publish {
    /// What it says; from stdin when it is left out
    text: Option<String>,
    /// Kind of the event
    #[arg(long, value_name = "KIND", default_value_t = 1)]
    kind: u16,
    /// A tag: its name and its one value, or all of it as a JSON array of strings; may be given several times
    #[arg(long, value_name = "NAME=VALUE|JSON", value_parser = tag)]
    tag: Vec<Tag>,
    /// Whose key signs it: `daemon`, or PROJECT/AGENT
    #[arg(long = "as", value_name = "KEY", default_value = keys::DAEMON)]
    key: String,
    /// Under the same word it is published once, however often this is called
    #[arg(long, value_name = "WORD")]
    once: Option<String>,
}

/// One tag of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tag(Vec<String>);

fn tag(text: &str) -> Result<Tag, String> {
    let parts: Vec<String> = if text.starts_with('[') {
        serde_json::from_str(text).map_err(|error| format!("that is no JSON array of strings: {error}"))?
    } else {
        let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, as in p=npub1..., or a JSON array")?;
        vec![name.to_owned(), value.to_owned()]
    };
    if parts.first().is_none_or(String::is_empty) {
        return Err("a tag has a name".to_owned());
    }
    // People write keys as npub; events have them in hexadecimal.
    let part = |part: String| if part.starts_with("npub1") { public_key_hex(&part) } else { Some(part) };
    let parts: Option<Vec<String>> = parts.into_iter().map(part).collect();
    Ok(Tag(parts.ok_or("that is no public key")?))
}

pub(crate) fn run(verb: Verb, global: &Global) -> anyhow::Result<Exit> {
    match verb {
        Verb::Status => status(global),
        Verb::Whitelist(Whitelist::List) => list_whitelist(global),
        Verb::Whitelist(Whitelist::Add { key }) => set_whitelisted(&key, true, global),
        Verb::Whitelist(Whitelist::Remove { key }) => set_whitelisted(&key, false, global),
        Verb::Keys(KeysVerb::List) => list_keys(global),
        Verb::Keys(KeysVerb::Import { name }) => import_key(&name, global),
        Verb::Publish(args) => publish(args, global),
        Verb::Relay(args) => relay::run(&args, global),
        Verb::Demo(args) => demo::run(&args, global),
    }
}

fn status(global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let answer = block_on(async { Client::new(&paths).get("/control/nostr").await })??;
    let out = global.out();
    if out.json {
        out.json(&answer)?;
    } else {
        tell(&answer, out)?;
    }
    Ok(Exit::Done)
}

fn tell(answer: &Value, out: Out) -> anyhow::Result<()> {
    if answer["running"] != true {
        out.line("Nostr: nothing runs, since `nostr.relays` is empty; name relays there in nex.yaml, or see `nexus nostr demo`")?;
        return Ok(());
    }
    out.line(&format!("Key:       {}", answer["npub"].as_str().map_or_else(|| "-".to_owned(), visible)))?;
    let (keys, accepted) = (counted(&answer["whitelist"], "key"), counted(&answer["accepted"], "event"));
    out.line(&format!("Whitelist: {keys}, {accepted} accepted"))?;
    out.line(&format!("Outbox:    {} that no relay has yet", counted(&answer["outbox"]["waiting"], "event")))?;
    if let Some(problem) = answer["problem"].as_str() {
        out.line(&out.paint.apply(Color::Red, &format!("Problem:   {}", one_line(problem, WHY_CHARS_MAX))))?;
    }
    let rows: Vec<_> = answer["relays"].as_array().into_iter().flatten().map(row).collect();
    for line in table::lines(&rows, &[], out.paint) {
        out.line(&line)?;
    }
    Ok(())
}

fn counted(count: &Value, what: &str) -> String {
    let count = count.as_u64().unwrap_or(0);
    format!("{} {what}{}", units::thousands(count), if count == 1 { "" } else { "s" })
}

fn row(relay: &Value) -> [Cell; 5] {
    let state = relay["state"].as_str().unwrap_or("-");
    let color = match state {
        "live" => Color::Green,
        "deaf" => Color::Red,
        _ => Color::Yellow,
    };
    let deaf = relay["deaf"].as_array().into_iter().flatten().next().and_then(|deaf| deaf["why"].as_str());
    let holes = relay["holes"].as_u64().filter(|holes| *holes > 0);
    let holes = holes.map(|holes| format!("{holes} time(s) it may have had more than can be asked for"));
    let why = deaf.or_else(|| relay["error"].as_str()).map(str::to_owned).or(holes).unwrap_or_default();
    [
        Cell::new(relay["url"].as_str().unwrap_or("-")),
        Cell::colored(state, color),
        Cell::new(format!("{} in, {} refused", relay["events"], relay["refused"])),
        Cell::new(format!("{} out, {} waiting", relay["published"], relay["pending"])),
        Cell::new(one_line(&why, WHY_CHARS_MAX)),
    ]
}

fn list_whitelist(global: &Global) -> anyhow::Result<Exit> {
    let paths = running::paths(global)?;
    let configured = ledger::configuration(&paths)?.config.nostr.whitelist;
    let flags = of_command_line(&paths)?;
    let more = flags.iter().map(String::as_str).filter(|key| !configured.iter().any(|known| known == key));
    let keys: Vec<Value> =
        configured.iter().map(|key| (key.as_str(), "config")).chain(more.map(|key| (key, "command line"))).map(entry).collect();
    let out = global.out();
    if out.json {
        out.json(&json!({ "whitelist": keys }))?;
        return Ok(Exit::Done);
    }
    for key in &keys {
        out.line(&format!("{}  {}", key["key"].as_str().unwrap_or("-"), key["from"].as_str().unwrap_or("-")))?;
    }
    if keys.is_empty() {
        note("no key is whitelisted, so no event is heeded; `nexus nostr whitelist add npub1...` adds one");
    }
    Ok(Exit::Done)
}

/// The keys on the command line of a daemon that runs, which are heeded too.
fn of_command_line(paths: &Paths) -> anyhow::Result<Vec<String>> {
    let status = running::ask(paths, "/control/status")?;
    let keys = status.as_ref().and_then(|status| status["flags"]["whitelist"].as_array()).into_iter().flatten();
    Ok(keys.filter_map(Value::as_str).map(str::to_owned).collect())
}

fn entry((key, from): (&str, &str)) -> Value {
    json!({ "key": key, "pubkey": public_key_hex(key), "from": from })
}

fn set_whitelisted(key: &str, is_heeded: bool, global: &Global) -> anyhow::Result<Exit> {
    let Some(pubkey) = public_key_hex(key) else {
        return Err(Failure::new(Exit::Usage, "that is no public key; write npub1... or its 64 hexadecimal digits").into());
    };
    let kept = if is_heeded { Vec::new() } else { of_command_line(&running::paths(global)?)? };
    let stays = kept.iter().any(|known| public_key_hex(known).as_ref() == Some(&pubkey));
    edit_and_tell(global, "nostr", |fields, before| {
        let is_it = |known: &String| public_key_hex(known).as_deref() == Some(pubkey.as_str());
        let mut keys = before.loaded.config.nostr.whitelist.clone();
        if !is_heeded && !keys.iter().any(is_it) {
            return Err(Failure::not_found(format!("`{key}` is not in `nostr.whitelist`; `nexus nostr whitelist list` shows what is")));
        }
        if !is_heeded {
            keys.retain(|known| !is_it(known));
        } else if !keys.iter().any(is_it) {
            keys.push(key.to_owned());
        }
        let keys = Value::from(keys);
        if before.in_main(&["whitelist"]) == Some(&keys) {
            fields.remove("whitelist");
        } else {
            fields.insert("whitelist".to_owned(), keys);
        }
        let text = match (is_heeded, stays) {
            (true, _) => format!("events of {key} are heeded"),
            (false, true) => format!("{key} is removed; its events are heeded still, as the daemon's --whitelist says"),
            (false, false) => format!("events of {key} are not heeded"),
        };
        Ok(Done { text, still_disabled: Vec::new() })
    })
}

fn list_keys(global: &Global) -> anyhow::Result<Exit> {
    let all = keys::list(&running::paths(global)?.credentials_dir())?;
    let out = global.out();
    if out.json {
        out.json(&json!({ "keys": all }))?;
        return Ok(Exit::Done);
    }
    let rows: Vec<_> = all
        .iter()
        .map(|key| {
            let shown = key.npub.clone().or_else(|| key.error.clone()).unwrap_or_default();
            // What no verb takes is told by where it lies.
            let name = key.name.clone().unwrap_or_else(|| format!("(credential {})", key.credential));
            [Cell::new(name), Cell::colored(shown, if key.error.is_some() { Color::Red } else { Color::Bold })]
        })
        .collect();
    for line in table::lines(&rows, &[], out.paint) {
        out.line(&line)?;
    }
    if all.is_empty() {
        note("there are no keys yet; each is made when it is first needed");
    }
    Ok(Exit::Done)
}

/// A daemon that runs sees it when it next needs the key, since there was none of that name.
fn import_key(name: &str, global: &Global) -> anyhow::Result<Exit> {
    let reference = keys::reference(name).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    let secret = credential::value(&reference)?;
    let pubkey = keys::import(&running::paths(global)?.credentials_dir(), name, &secret)?;
    let out = global.out();
    if out.json {
        out.json(&json!({ "name": name, "credential": reference, "pubkey": pubkey }))?;
    } else {
        out.line(&format!("{name}: {pubkey}"))?;
    }
    Ok(Exit::Done)
}

fn publish(args: Publish, global: &Global) -> anyhow::Result<Exit> {
    let Publish { text, kind, tag, key, once } = args;
    check_key(&key, global)?;
    let content = match text {
        Some(text) => text,
        None if std::io::stdin().is_terminal() => {
            return Err(Failure::new(Exit::Usage, "there is nothing to publish; give the text, or its file on stdin").into());
        }
        None => text_of(std::io::stdin().lock())?,
    };
    let tags: Vec<Vec<String>> = tag.into_iter().map(|tag| tag.0).collect();
    let body = json!({ "as": key, "kind": kind, "content": content, "tags": tags, "once": once });
    let paths = global.paths()?;
    let out = global.out();
    let answer = block_on(answer_of(&Client::new(&paths), &body, out))??;
    let status = answer["status"].as_str().unwrap_or("waiting");
    if out.json {
        out.json(&answer)?;
    } else {
        out.line(&format!("{} {status}", answer["event_id"].as_str().unwrap_or("-")))?;
        if status == "waiting" {
            note("no relay has it yet; it is published when one can be reached, see `nexus nostr status`");
        }
        if let Some(why) = answer["error"].as_str().filter(|_| status != "accepted") {
            note(&format!("a relay said: {}", one_line(why, WHY_CHARS_MAX)));
        }
    }
    Ok(if matches!(status, "refused" | "expired") { Exit::Failed } else { Exit::Done })
}

/// What became of it, which takes its time where no relay can be reached.
async fn answer_of(client: &Client<'_>, body: &Value, out: Out) -> Result<Value, ClientError> {
    let asked = client.post("/control/nostr/publish", body);
    tokio::pin!(asked);
    if let Ok(answer) = tokio::time::timeout(QUIET_MAX, &mut asked).await {
        return answer;
    }
    if !out.json {
        note("waiting for a relay to take it");
    }
    asked.await
}

/// A key of the daemon's own is made when it is first needed; one of a mistyped name must not be.
fn check_key(name: &str, global: &Global) -> anyhow::Result<()> {
    let reference = keys::reference(name).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    if name == keys::DAEMON {
        return Ok(());
    }
    let all = keys::list(&running::paths(global)?.credentials_dir())?;
    if all.iter().any(|key| key.credential == reference) {
        return Ok(());
    }
    Err(Failure::not_found(format!("there is no key `{name}`; `nexus nostr keys list` shows those that there are")).into())
}

/// All of a reader's text, as it is: what is signed isn't trimmed, and never cut.
fn text_of(reader: impl Read) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    reader.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes).context("failed to read stdin")?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(Failure::new(Exit::Usage, format!("an event may have {TEXT_BYTES_MAX} bytes of text; this is longer")).into());
    }
    String::from_utf8(bytes).context("what an event says must be UTF-8")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_text_is_published_whole_or_not_at_all() {
        let longest = "x".repeat(usize::try_from(TEXT_BYTES_MAX).unwrap());
        assert_eq!(text_of(longest.as_bytes()).unwrap(), longest);
        assert_eq!(text_of(&b"two\nlines\n"[..]).unwrap(), "two\nlines\n");
        assert!(text_of(format!("{longest}x").as_bytes()).is_err());
        // Cut off within a character it would be told to be no UTF-8.
        let cut = text_of("\u{e9}".repeat(longest.len()).as_bytes()).unwrap_err();
        assert!(cut.to_string().contains("longer"), "{cut}");
        assert!(text_of(&b"\xff"[..]).unwrap_err().to_string().contains("UTF-8"));
    }

    #[test]
    fn tags_are_written_as_people_have_them() {
        let npub = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";
        let hex = "7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e";
        let of = |parts: &[&str]| Ok(Tag(parts.iter().map(|part| (*part).to_owned()).collect()));
        assert_eq!(tag(&format!("p={npub}")), of(&["p", hex]));
        assert_eq!(tag(r#"["e","ab","","root"]"#), of(&["e", "ab", "", "root"]));
        assert_eq!(tag(&format!(r#"["p","{npub}"]"#)), of(&["p", hex]));
        assert_eq!(tag("title=bread, and butter=x"), of(&["title", "bread, and butter=x"]), "a comma is one of the value");
        assert_eq!(tag("a=31933:ab:c"), of(&["a", "31933:ab:c"]));
        for wrong in ["p", "=x", "p=npub1x", "[]", "[\"\"]", "[\"p\",1]", "[\"p\"", "[\"p\",\"npub1x\"]"] {
            assert!(tag(wrong).is_err(), "{wrong}");
        }
    }
}
