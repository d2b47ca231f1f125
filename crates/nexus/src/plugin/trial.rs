//! `nexus plugin test`: a plugin's process on its own, called with a request that was made for it. What
//! it answers is told, and changes nothing.

use super::calls::CallerKind;
use super::fault::Fault;
use super::found::Kind;
use super::frame::{self, Reply};
use super::judge;
use super::loaded::Sees;
use super::loader::{LOAD_LIMIT, Loader};
use super::session::{Desk, Desks, Lost, Session, Standing};
use super::{caller, process};
use crate::clock;
use crate::error_text::describe;
use nexus_core::access::Decision;
use nexus_core::config::{Effect, Grant, Permissions, PrincipalType, Queue, QueueMode};
use nexus_core::event::Event;
use nexus_core::hook::{Hook, apply_patch};
use nexus_core::ids::ChildId;
use nexus_core::request::{AgentSection, NexusRequest, PrincipalSection, ResponseSection, Status, TriggersSection};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long one call may take here: who writes a plugin wants to see what it says, late or not.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Why a plugin can't be tried.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    #[error("{0}")]
    Unknown(String),
    #[error("the event can't be used: {0}")]
    Event(String),
    #[error("{0}")]
    Failed(String),
}

/// What the process said of itself, and how it is called.
struct Wants {
    hooks: Vec<Hook>,
    sees: Sees,
}

/// Starts the plugin `name`, calls `hook`, or all that it has, with a request made from `event`, and
/// ends it.
pub(super) async fn run(loader: &Loader, name: &str, event: Value, hook: Option<Hook>) -> Result<Value, TrialError> {
    let event: Event = serde_json::from_value(event).map_err(|error| TrialError::Event(error.to_string()))?;
    let found = loader.find(name).await.map_err(|(_, why)| TrialError::Unknown(why))?;
    let child = ChildId::new(format!("plugin/{name}/test"));
    let spawned = loader.shared.supervisor.keeper().spawn(process::spec(&found, child.clone())).await;
    let mut process = spawned.map_err(|error| TrialError::Failed(describe(&error)))?;
    let standing = watch::Sender::new(Standing::Unsaid);
    let nothing: Arc<[Grant]> = Arc::from(Vec::new());
    // Nothing is granted: a test must not send or spend anything.
    let grants = watch::Sender::new(nothing).subscribe();
    let desk = Desk::new(CallerKind::Plugin, name.into(), grants, loader.calls.clone(), standing.clone(), Arc::new(AtomicU64::new(0)));
    let (session, pipes) = Session::new(&mut process, Desks::one(desk)).ok_or_else(|| TrialError::Failed("it has no pipes".to_owned()))?;
    let exited = CancellationToken::new();
    let serving = crate::watch::helper("plugin.reader", session.clone().serve(child, pipes, exited.clone()));
    let outcome = async {
        let wants = wants(&found.kind, &standing).await?;
        let mut calls = Vec::new();
        for hook in hook.map_or_else(|| wants.hooks.clone(), |hook| vec![hook]) {
            calls.push(call(&session, &wants, hook, &event, &loader.shared.run_dir).await?);
        }
        Ok(json!({ "plugin": name, "hooks": wants.hooks, "calls": calls }))
    };
    let outcome = outcome.await;
    process.kill_tree().await;
    exited.cancel();
    serving.await.ok(); // what it came to is in the outcome
    outcome
}

async fn wants(kind: &Kind, standing: &watch::Sender<Standing>) -> Result<Wants, TrialError> {
    if let Kind::Program { file, .. } = kind {
        return Ok(Wants { hooks: file.hooks.clone(), sees: Sees::Sections(file.sections.clone()) });
    }
    let mut heard = standing.subscribe();
    let said = tokio::time::timeout(LOAD_LIMIT, heard.wait_for(|standing| *standing != Standing::Unsaid)).await;
    let said = said.ok().and_then(Result::ok).map(|standing| standing.clone());
    match said {
        Some(Standing::Ready(ready)) => Ok(Wants { sees: Sees::of_script(&ready), hooks: ready.hooks }),
        Some(Standing::Fatal(message)) => Err(TrialError::Failed(format!("it does not load: {message}"))),
        Some(Standing::Unsaid) | None => Err(TrialError::Failed(format!("it did not say what it is within {} s", LOAD_LIMIT.as_secs()))),
    }
}

async fn call(session: &Session, wants: &Wants, hook: Hook, event: &Event, run_dir: &std::path::Path) -> Result<Value, TrialError> {
    let mut request = sample(event.clone());
    let (seen, _files) =
        wants.sees.lent(wants.sees.view(&request), run_dir).await.map_err(|error| TrialError::Failed(error.to_string()))?;
    let error = (hook == Hook::OnError).then(|| json!({ "stage": "runAgent", "message": "a test" }));
    let began = Instant::now();
    let line = frame::call(hook.index() as u64 + 1, hook, seen, CALL_LIMIT, error);
    let deadline = tokio::time::Instant::now() + CALL_LIMIT;
    let said = session.call(hook.index() as u64 + 1, line, Some(caller(&request, hook)), deadline).await;
    let mut shown = json!({ "hook": hook, "ms": began.elapsed().as_secs_f64() * 1000.0 });
    match said {
        Err(Lost::Late) => shown["error"] = format!("no answer within {} s", CALL_LIMIT.as_secs()).into(),
        Err(Lost::Gone) => shown["error"] = "its process ended before it answered".into(),
        Ok(Reply::Error(message) | Reply::TakenAlong(message) | Reply::Nonsense(message)) => shown["error"] = message.into(),
        Ok(Reply::Patch(patch)) => {
            shown["result"] = "patch".into();
            if let Err(error) = apply_patch(hook, &mut request, &patch) {
                shown["error"] = error.to_string().into();
            }
            shown["patch"] = patch;
        }
        Ok(Reply::Returned(_)) => shown["error"] = Fault::returned().to_string().into(),
        Ok(reply @ (Reply::Continue | Reply::Skip { .. })) => shown["result"] = judge::word(&reply).into(),
    }
    Ok(shown)
}

/// A request that has come all the way, with nothing but the event in it that matters.
pub(super) fn sample(event: Event) -> NexusRequest {
    let principal = PrincipalSection {
        type_: PrincipalType::Unknown,
        entity_id: None,
        name: event.sender_name.clone(),
        relationship: None,
        tags: Vec::new(),
        identities: vec![format!("{}:{}", event.channel, event.sender_id)],
    };
    let agent = AgentSection::new("echo".to_owned(), "test".to_owned());
    let response = ResponseSection {
        content: event.content.clone(),
        tool_calls: Vec::new(),
        usage: Value::Null,
        stop_reason: "end_turn".to_owned(),
        duration_ms: 0.0,
        error: None,
    };
    let access = Decision {
        effect: Effect::Allow,
        matched_policy: None,
        permissions: Permissions::default(),
        agent: None,
        session_key: None,
        queue_mode: QueueMode::default(),
        queue: Queue::default(),
        per_minute: None,
        names_content_type: false,
        why: Vec::new(),
    };
    let mut request = NexusRequest::new("req_test".to_owned(), 0, clock::wall_ms(), event);
    request.principal = Some(principal);
    request.access = Some(access);
    request.triggers = Some(TriggersSection::default());
    request.agent = Some(agent);
    request.response = Some(response);
    request.status = Status::Processing;
    request
}
