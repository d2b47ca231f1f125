//! `nexus events replay` and `nexus trace retry`: an event once more. Its key is made once, so that a
//! question whose answer was lost is asked again without doing anything twice.

use super::Global;
use super::client::{Client, ClientError, encoded};
use super::failure::{Exit, Failure};
use super::out::{Color, Out, note, visible};
use super::reply::Reply;
use super::talk::{self, End, Question, RECONNECT_LIMIT, RECONNECT_PAUSE};
use crate::routes::CLI_CHANNEL;
use serde_json::{Value, json};
use std::time::Instant;

// Without a doc comment, which would stand in the help of the verbs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// An event id, an event's number or a request id
    id: String,
    /// Wait for the new request's end; what `nexus send` said is always waited for
    #[arg(long)]
    wait: bool,
}

/// Asks for the replay; with `only_failed` of what failed or expired only.
pub(crate) async fn run(args: &Args, only_failed: bool, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let (client, out) = (Client::new(&paths), global.out());
    let path = format!("/control/events/{}/replay", encoded(&args.id));
    let key = ulid::Ulid::generate().to_string();
    let body = |wait: bool| json!({ "key": key, "only_failed": only_failed, "wait": wait });
    let accepted = accepted(&client, &path, &body(false)).await?;
    let is_talk = accepted["channel"] == CLI_CHANNEL;
    if !args.wait && !is_talk {
        tell(&accepted, out)?;
        return Ok(Exit::Done);
    }
    let Some(event_id) = accepted["event_id"].as_str() else {
        return Err(ClientError::Malformed { path }.into());
    };
    let question = Question { path: &path, body: body(true), event_id };
    let mut reply = Reply::new(out, out.terminal && is_talk && !out.json);
    let end = talk::until_end(&client, &question, true, &mut |part| reply.take(part)).await?;
    if out.json {
        return ended_json(accepted, &end, out);
    }
    if is_talk { Ok(reply.finish(&end)?) } else { ended(&end, out) }
}

/// The daemon's answer, which means that the replay is on disk. A daemon that went away amid its answer
/// may come back and give it.
async fn accepted(client: &Client<'_>, path: &str, body: &Value) -> Result<Value, ClientError> {
    let give_up_at = Instant::now() + RECONNECT_LIMIT;
    let mut was_lost = false;
    loop {
        let error = match client.post(path, body).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        was_lost |= matches!(error, ClientError::Lost(_));
        let passes = error.is_passing() || (was_lost && matches!(error, ClientError::NotRunning));
        if !passes || Instant::now() >= give_up_at {
            return Err(error);
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

/// The new request's id alone on stdout: scripts go on with it.
fn tell(accepted: &Value, out: Out) -> anyhow::Result<()> {
    if out.json {
        return Ok(out.json(accepted)?);
    }
    let Some(id) = accepted["request_id"].as_str().or(accepted["event_id"].as_str()) else {
        return Err(Failure::new(Exit::Failed, "the daemon named no new request").into());
    };
    out.line(&visible(id))?;
    note(&format!("`nexus trace {}` shows what becomes of it", visible(id)));
    Ok(())
}

fn ended(end: &End, out: Out) -> anyhow::Result<Exit> {
    let id = end.request_id.as_deref().unwrap_or("request");
    let exit = end.exit();
    let color = if exit == Exit::Done { Color::Green } else { Color::Red };
    let reason = end.reason.as_deref().map_or_else(String::new, |reason| format!(": {}", visible(reason)));
    out.line(&format!("{} {}{reason}", visible(id), out.paint.apply(color, end.status.as_str())))?;
    Ok(exit)
}

fn ended_json(mut accepted: Value, end: &End, out: Out) -> anyhow::Result<Exit> {
    if let (Some(accepted), Value::Object(end)) = (accepted.as_object_mut(), serde_json::to_value(end)?) {
        accepted.extend(end);
    }
    out.json(&accepted)?;
    Ok(end.exit())
}
