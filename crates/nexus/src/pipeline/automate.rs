//! Stage 4: what ends a request before any agent. Today that is the timer's own events that nobody
//! asked for; automations of users join here.

use super::Exit;
use crate::routes::TIMER_CHANNEL;
use nexus_core::request::{NexusRequest, TriggersSection};

/// A timer event goes on only if a policy routes it to an agent: a heartbeat costs no run.
pub(super) fn automate(request: &mut NexusRequest) -> Result<(), Exit> {
    let mut triggers = TriggersSection::default();
    let asked_for = request.access.as_ref().is_some_and(|access| access.agent.is_some());
    if request.event.channel == TIMER_CHANNEL && !asked_for {
        let by = "timer: no policy routes this event to an agent";
        (triggers.handled, triggers.handled_by) = (true, Some(by.to_owned()));
        request.triggers = Some(triggers);
        return Err(Exit::Handled { by: by.to_owned() });
    }
    request.triggers = Some(triggers);
    Ok(())
}
