//! `nexus automation test`: an automation in a process of its own, asked about a request that was made for it. What
//! it answers is told, and changes nothing; nothing is granted to it.

use super::super::calls::{CallerKind, CallerRequest};
use super::super::frame::{self, Reply};
use super::super::loader::LOAD_LIMIT;
use super::super::session::{Desk, Desks, Guests, Lost, Session, Standing};
use super::super::trial::{TrialError, sample};
use super::files::{self, File};
use super::host::{Host, spec};
use super::one::WALL;
use crate::error_text::describe;
use nexus_core::automation::{Advice, Triggers, is_name};
use nexus_core::config::Grant;
use nexus_core::event::Event;
use nexus_core::ids::ChildId;
use nexus_core::request::NexusRequest;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The only guest, and the only call.
const GUEST: u64 = 1;
const CALL: u64 = 1;

/// Starts the automation `name`, asks it, and ends it.
pub(super) async fn run(host: &Host, name: &str, event: Value) -> Result<Value, TrialError> {
    if !is_name(name) {
        return Err(TrialError::Unknown("its name can't be used".to_owned())); // nor is it to lead to another place
    }
    let event: Event = serde_json::from_value(event).map_err(|error| TrialError::Event(error.to_string()))?;
    let (directory, owned) = (host.shared.directory.clone(), name.to_owned());
    let read = crate::watch::blocking("automations.read", move || files::read(&directory, &owned)).await;
    let read = read.map_err(|error| TrialError::Failed(error.to_string()))?;
    let file = read.map_err(|(_, why)| TrialError::Unknown(why))?;
    let child = ChildId::new(format!("automation/{name}/test"));
    let spawned = host.shared.supervisor.keeper().spawn(spec(child.clone())).await;
    let mut process = spawned.map_err(|error| TrialError::Failed(describe(&error)))?;
    let standing = watch::Sender::new(Standing::Unsaid);
    let desk = || {
        let nothing: Arc<[Grant]> = Arc::from(Vec::new());
        let grants = watch::Sender::new(nothing).subscribe();
        Desk::new(CallerKind::Automation, name.into(), grants, host.calls.clone(), standing.clone(), Arc::default())
    };
    let guests = Arc::new(Guests::new([(GUEST, Arc::new(desk()))].into_iter().collect()));
    let session = Session::new(&mut process, Desks::many(desk(), guests));
    let (session, pipes) = session.ok_or_else(|| TrialError::Failed("it has no pipes".to_owned()))?;
    let exited = CancellationToken::new();
    let serving = crate::watch::helper("automations.reader", session.clone().serve(child, pipes, exited.clone()));
    let outcome = talk(&session, &file, &standing, sample(event)).await;
    process.kill_tree().await;
    exited.cancel();
    serving.await.ok(); // what it came to is in the outcome
    outcome
}

async fn talk(session: &Session, file: &File, standing: &watch::Sender<Standing>, mut request: NexusRequest) -> Result<Value, TrialError> {
    session.tell(frame::load(GUEST, &file.name, &file.path.to_string_lossy(), &file.source)).await; // one that is gone says nothing
    let mut heard = standing.subscribe();
    let said = tokio::time::timeout(LOAD_LIMIT, heard.wait_for(|standing| *standing != Standing::Unsaid)).await;
    let said = said.ok().and_then(Result::ok).map(|standing| standing.clone());
    let ready = match said {
        Some(Standing::Ready(ready)) => ready,
        Some(Standing::Fatal(message)) => return Err(TrialError::Failed(format!("it does not load: {message}"))),
        Some(Standing::Unsaid) | None => {
            return Err(TrialError::Failed(format!("it did not say what it is within {} s", LOAD_LIMIT.as_secs())));
        }
    };
    let triggers = Triggers::read(&ready.triggers).map_err(TrialError::Failed)?;
    // As stage 4 sees one.
    (request.agent, request.response, request.triggers) = (None, None, None);
    let began = Instant::now();
    let line = frame::advise(GUEST, CALL, json!({ "request": request, "state": null }), WALL);
    let caller = CallerRequest::new(&request, &request.adapter, "automation");
    let reply = session.call(CALL, line, Some(caller), tokio::time::Instant::now() + WALL).await;
    let ms = began.elapsed().as_secs_f64() * 1000.0;
    let mut shown = json!({ "automation": file.name, "matches": triggers.fit(&request), "ms": ms });
    let advice = match reply {
        Err(Lost::Late) => Err(format!("no answer within {} s", WALL.as_secs())),
        Err(Lost::Gone) => Err("its process ended before it answered".to_owned()),
        Ok(Reply::Continue) => Ok(Advice::default()),
        Ok(Reply::Returned(value)) => Advice::read(value, ready.remembers),
        Ok(Reply::Error(message) | Reply::TakenAlong(message) | Reply::Nonsense(message)) => Err(message),
        Ok(Reply::Skip { .. } | Reply::Patch(_)) => Err("`skip` and `patch` are for plugins".to_owned()),
    };
    match advice {
        Ok(advice) => shown["advice"] = json!(advice),
        Err(error) => shown["error"] = error.into(),
    }
    Ok(shown)
}
