//! What plugins are told of and nothing waits for: a bounded queue per plugin, and the task that calls
//! it one frame after the other. A full queue costs a frame, never a request its time.

use super::fault::Fault;
use super::frame::Reply;
use super::loaded::{Ask, Declared, Plugin};
use super::{caller, judge};
use nexus_core::hook::Hook;
use nexus_core::request::NexusRequest;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc, oneshot};

/// Frames that may wait for one plugin.
const FRAMES_MAX: usize = 256;
/// Bytes in them.
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a frame counts beside what it shows.
const FRAME_BYTES: usize = 4 * 1024;
/// How long a plugin that is stopped may take for what it is still to be told.
const FINISH_LIMIT: Duration = Duration::from_secs(2);

/// One frame that waits.
#[derive(Debug)]
pub(super) struct Told {
    ask: Ask,
    declared: Arc<Declared>,
    bytes: usize,
    heard: Option<oneshot::Sender<()>>,
}

pub(super) fn queue() -> (mpsc::Sender<Told>, mpsc::Receiver<Told>) {
    mpsc::channel(FRAMES_MAX)
}

/// Has `plugin` told of `request`, if there is room. Whoever handles the request waits for this and for nothing behind it;
/// `heard` is told once it was called, and dropped if it never is.
pub(super) fn tell(
    plugin: &Plugin,
    declared: &Arc<Declared>,
    hook: Hook,
    request: &NexusRequest,
    error: Option<&Value>,
    heard: Option<oneshot::Sender<()>>,
) {
    let began = Instant::now();
    match offer(plugin, declared, hook, request, error, heard) {
        Ok(()) => plugin.figures.telling.add(began.elapsed()),
        Err(NoRoom) => plugin.note_dropped(hook),
    }
}

/// Too much waits for the plugin.
struct NoRoom;

fn offer(
    plugin: &Plugin,
    declared: &Arc<Declared>,
    hook: Hook,
    request: &NexusRequest,
    error: Option<&Value>,
    heard: Option<oneshot::Sender<()>>,
) -> Result<(), NoRoom> {
    let place = plugin.told.try_reserve().map_err(|_| NoRoom)?;
    let (view, error) = (declared.sees.view(request), error.cloned());
    let bytes = FRAME_BYTES + weight(&view) + error.as_ref().map_or(0, weight);
    let before = plugin.told_bytes.fetch_add(bytes, Ordering::Relaxed);
    // One frame may always wait, however long it is.
    if before > 0 && before + bytes > BYTES_MAX {
        plugin.told_bytes.fetch_sub(bytes, Ordering::Relaxed);
        return Err(NoRoom);
    }
    let ask = Ask { hook, view, error, request: caller(request, hook), event_id: request.event.event_id.clone() };
    place.send(Told { ask, declared: declared.clone(), bytes, heard });
    Ok(())
}

/// The memory of a value, nearly: all of it, since whoever wrote the event chose how long each part is. No text is read
/// for that, however long it is.
fn weight(value: &Value) -> usize {
    let texts = value.as_str().map_or(0, str::len);
    let items: usize = value.as_array().into_iter().flatten().map(weight).sum();
    let members: usize = value.as_object().into_iter().flatten().map(|(key, value)| key.len() + weight(value)).sum();
    size_of::<Value>() + texts + items + members
}

/// Starts the task that tells, which goes on after a failure.
pub(super) fn spawn(plugin: &Arc<Plugin>, queue: mpsc::Receiver<Told>) {
    let (this, queue) = (plugin.clone(), Arc::new(Mutex::new(queue)));
    crate::watch::tracked("plugin.told", &plugin.tasks, async move {
        let (name, watch_over, stop) = (task_name(&this), this.shared.watch_over.clone(), this.stop.clone());
        watch_over.until_done(name, &stop, move || run(this.clone(), queue.clone())).await;
    });
}

/// Tells what waits, within [`FINISH_LIMIT`], and ends the task.
pub(super) async fn finish(plugin: &Plugin) {
    plugin.finishing.cancel();
    plugin.tasks.close();
    // What isn't told by then is left out.
    tokio::time::timeout(FINISH_LIMIT, plugin.tasks.wait()).await.ok();
    plugin.stop.cancel();
    plugin.tasks.wait().await;
    plugin.shared.watch_over.forget(&task_name(plugin));
}

fn task_name(plugin: &Plugin) -> String {
    format!("plugin {}", plugin.child_id())
}

async fn run(plugin: Arc<Plugin>, queue: Arc<Mutex<mpsc::Receiver<Told>>>) {
    let (mut queue, mut standing) = (queue.lock().await, plugin.standing.subscribe());
    loop {
        let told = tokio::select! {
            biased;
            () = plugin.stop.cancelled() => return,
            told = queue.recv() => told,
            // An error can't be: the sender is the plugin's own.
            Ok(()) = standing.changed() => {
                plugin.adopt();
                continue;
            }
            () = plugin.finishing.cancelled() => return,
        };
        let Some(told) = told else { return };
        plugin.told_bytes.fetch_sub(told.bytes, Ordering::Relaxed);
        tokio::select! {
            () = call(&plugin, told) => {}
            () = plugin.stop.cancelled() => return,
        }
    }
}

async fn call(plugin: &Plugin, told: Told) {
    let Told { mut ask, declared, bytes: _, heard } = told;
    let began = Instant::now();
    let (leave, answer) = plugin.call(&declared, &mut ask, declared.timeout).await;
    let judged = answer.and_then(|reply| match reply {
        Reply::Patch(_) => Err(Fault::Told { hook: ask.hook }),
        reply @ Reply::Skip { .. } => {
            tracing::debug!(plugin = %plugin.name, hook = ask.hook.as_str(), "it is told and not asked here: its `skip` is left out");
            Ok(judge::word(&reply))
        }
        Reply::Returned(_) => Err(Fault::returned()),
        reply @ (Reply::Continue | Reply::Error(_) | Reply::TakenAlong(_) | Reply::Nonsense(_)) => Ok(judge::word(&reply)),
    });
    plugin.settle(&ask, leave, began.elapsed(), judged.as_ref().copied());
    if judged.as_ref().err().is_none_or(Fault::was_called)
        && let Some(heard) = heard
    {
        heard.send(()).ok(); // whoever waited may have ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_part_of_a_frame_counts() {
        let long = "x".repeat(BYTES_MAX);
        for view in [json!({ "event": { "content": long } }), json!({ "event": { "attachments": [{ "url": long }] } })] {
            assert!(weight(&view) > BYTES_MAX);
        }
        assert!(weight(&json!({ long: null })) > BYTES_MAX, "a key may be long as well");
        let many = vec![json!(0); BYTES_MAX / size_of::<Value>()];
        assert!(weight(&json!({ "event": { "metadata": many } })) > BYTES_MAX, "and there may be many");
        assert!((FRAME_BYTES + weight(&json!({}))) * FRAMES_MAX <= BYTES_MAX, "short ones never wait for room by their bytes");
    }
}
