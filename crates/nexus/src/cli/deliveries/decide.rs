//! `nexus deliveries retry|discard`: what a person decides about deliveries that wait for that, one or many. Each
//! decision is asked for, and durable, by itself. What it comes to is the daemon's.

use crate::cli::Global;
use crate::cli::client::{Client, ClientError, encoded, with_query};
use crate::cli::failure::{Exit, Failure};
use crate::cli::out::{Out, note, visible};
use crate::error_text::describe;
use serde_json::{Value, json};

/// Most deliveries that are decided about by one command.
const DECISIONS_MAX: usize = 500;
/// Deliveries of these wait for a person.
const UNDECIDED: [&str; 3] = ["uncertain", "failed", "expired"];

/// Which deliveries are meant.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// The deliveries' ids, as `nexus deliveries list` shows them
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with_all = ["all", "status", "adapter"])]
    ids: Vec<String>,
    /// The oldest 500 of a status, in place of ids
    #[arg(long, requires = "status")]
    all: bool,
    /// With --all: those of this status
    #[arg(long, requires = "all", value_parser = clap::builder::PossibleValuesParser::new(UNDECIDED))]
    status: Option<String>,
    /// With --all: only those of this adapter
    #[arg(long, value_name = "NAME", requires = "all")]
    adapter: Option<String>,
}

/// What came of many decisions.
#[derive(Debug, Default)]
struct Decisions {
    decided: Vec<Value>,
    undecided: Vec<Value>,
}

pub(super) async fn run(which: &Which, verb: &str, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let (client, out) = (Client::new(&paths), global.out());
    if let [id] = which.ids.as_slice() {
        let answer = client.post(&path_of(id, verb, None), &json!({})).await?;
        if out.json {
            out.json(&answer)?;
        } else {
            out.line(&line_of(&answer))?;
        }
        return Ok(Exit::Done);
    }
    let (ids, more) = named(which, &client).await?;
    let decisions = decide(&ids, which.status.as_deref(), verb, &client, out).await?;
    tell(&decisions, more, out)?;
    Ok(if decisions.undecided.is_empty() { Exit::Done } else { Exit::Failed })
}

/// The ids that are meant, the oldest first, and whether more of that kind are left.
async fn named(which: &Which, client: &Client<'_>) -> anyhow::Result<(Vec<String>, bool)> {
    if !which.all {
        let count = which.ids.len();
        if count > DECISIONS_MAX {
            let text = format!("{DECISIONS_MAX} deliveries can be decided about at once; these are {count}");
            return Err(Failure::new(Exit::Usage, text).into());
        }
        return Ok((which.ids.clone(), false));
    }
    let limit = DECISIONS_MAX + 1;
    let asked = [("status", which.status.clone()), ("adapter", which.adapter.clone()), ("limit", Some(limit.to_string()))];
    let answer = client.get(&with_query("/control/deliveries/ids", &asked)).await?;
    let mut ids: Vec<String> = answer["ids"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let more = ids.len() > DECISIONS_MAX;
    ids.truncate(DECISIONS_MAX);
    Ok((ids, more))
}

/// Asks for one decision after the other, in their order, as far as the daemon answers. With `seen`, a delivery that
/// has another status by then is left alone.
///
/// # Errors
/// When the daemon can't be asked for the first, or stdout is closed.
async fn decide(ids: &[String], seen: Option<&str>, verb: &str, client: &Client<'_>, out: Out) -> anyhow::Result<Decisions> {
    let mut decisions = Decisions::default();
    for (index, id) in ids.iter().enumerate() {
        match client.post(&path_of(id, verb, seen), &json!({})).await {
            Ok(answer) => {
                if !out.json {
                    out.line(&line_of(&answer))?;
                }
                decisions.decided.push(answer);
            }
            Err(ClientError::Refused { status: 404 | 409, error, .. }) => decisions.undecided(id, &error),
            Err(error) if index == 0 => return Err(error.into()),
            Err(error) => {
                let why = describe(&error);
                decisions.undecided(id, &why);
                for id in &ids[index + 1..] {
                    decisions.undecided(id, &format!("not asked for, since the one before failed: {why}"));
                }
                break;
            }
        }
    }
    Ok(decisions)
}

impl Decisions {
    fn undecided(&mut self, id: &str, error: &str) {
        self.undecided.push(json!({ "delivery_id": id, "error": error }));
    }
}

fn tell(decisions: &Decisions, more: bool, out: Out) -> anyhow::Result<()> {
    let Decisions { decided, undecided } = decisions;
    if out.json {
        out.json(&json!({ "decided": decided, "undecided": undecided, "more": more }))?;
        return Ok(());
    }
    for delivery in undecided {
        let text = |key: &str| visible(delivery[key].as_str().unwrap_or("-"));
        note(&format!("{}: {}", text("delivery_id"), text("error")));
    }
    out.line(&format!("decided: {}, not decided: {}", decided.len(), undecided.len()))?;
    if more {
        note(&format!("there are more than {DECISIONS_MAX}, and the others wait; ask again for them"));
    }
    Ok(())
}

fn path_of(id: &str, verb: &str, seen: Option<&str>) -> String {
    with_query(&format!("/control/deliveries/{}/{verb}", encoded(id)), &[("status", seen.map(str::to_owned))])
}

fn line_of(answer: &Value) -> String {
    let text = |key: &str| visible(answer[key].as_str().unwrap_or("unknown"));
    format!("{}: was {}, now {}", text("delivery_id"), text("before"), text("now"))
}
