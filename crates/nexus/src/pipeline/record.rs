//! What a request leaves behind of itself: each stage, and its end, in its trace, in the metrics and on the bus. Writes nothing
//! to a ledger and decides nothing.

use super::{Exit, Pipeline, scheduled};
use crate::agent::project::project_of;
use crate::clock;
use crate::metrics::{StageLabel, StatusLabel};
use crate::panics;
use crate::replies::End;
use nexus_core::notice::NoticeType;
use nexus_core::request::{HookTrace, NexusRequest, Stage, StageTrace, Status};
use serde::Serialize;
use serde_json::json;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

impl Pipeline {
    /// Notes a stage in the trace, the metrics and on the bus.
    pub(super) fn record(
        &self,
        request: &mut NexusRequest,
        stage: Stage,
        started_at: i64,
        spent: Duration,
        exit: Option<&Exit>,
        hooks: Vec<HookTrace>,
    ) {
        let (exit_reason, error) = match exit {
            None => (None, None),
            Some(Exit::Denied(reason) | Exit::Expired(reason)) => (Some(reason.clone()), None),
            Some(Exit::Handled { by } | Exit::Replied { by, .. }) => (Some(format!("handled by {by}")), None),
            Some(Exit::Failed(error)) => (None, Some(error.clone())),
            Some(Exit::Stopping) => (None, Some("the daemon stops".to_owned())),
        };
        let duration_ms = spent.as_secs_f64() * 1000.0;
        self.metrics.stages.get_or_create(&StageLabel { stage: stage.as_str() }).observe(spent.as_secs_f64());
        let notice = StageNotice {
            request_id: &request.request_id,
            event_id: &request.event.event_id,
            adapter: scheduled::heard_by(request),
            account: &request.event.account_id,
            stage: stage.as_str(),
            duration_ms,
            exit_reason: exit_reason.as_deref(),
            error: error.as_deref(),
        };
        self.bus.publish(NoticeType::RequestStage, notice);
        request.pipeline.push(StageTrace { stage, started_at, duration_ms, exit_reason, error, hooks });
    }

    /// Stage 8, and the error hook of a request that failed.
    pub(super) fn finalize(&self, request: &mut NexusRequest) {
        let (started_at, started) = (clock::wall_ms(), Instant::now());
        if request.status == Status::Failed {
            self.plugins.on_error(request);
        }
        // Its end is decided: a defect here is told, and changes nothing about it.
        let exit = panics::catch(|| self.plugins.after(Stage::Finalize, request)).err().map(|panicked| {
            let error = self.defect(request.event_seq, &panicked);
            self.plugins.failed(request, Stage::Finalize, &error);
            Exit::Failed(error)
        });
        self.record(request, Stage::Finalize, started_at, started.elapsed(), exit.as_ref(), Vec::new());
    }

    /// Tells everyone who listens how a request ended, after the commit that ended it.
    pub(super) fn announce_end(&self, request: &NexusRequest, text: Option<&str>) {
        let latency = clock::wall_ms().saturating_sub(request.created_at).max(0);
        let totals = &self.metrics.totals;
        totals.processed.fetch_add(1, Ordering::Relaxed);
        totals.latency_us.fetch_add(latency.unsigned_abs() * 1000, Ordering::Relaxed);
        self.metrics.requests.get_or_create(&StatusLabel { status: request.status.as_str() }).inc();
        let kind = if request.status == Status::Failed { NoticeType::RequestError } else { NoticeType::RequestCompleted };
        let agent = request.agent.as_ref();
        let notice = json!({
            "request_id": request.request_id, "event_id": request.event.event_id, "run_id": agent.and_then(|agent| agent.run_id.as_deref()),
            "adapter": scheduled::heard_by(request), "account": request.event.account_id, "session": agent.map(|agent| &agent.session_label),
            "status": request.status, "reason": request.reason, "duration_ms": latency,
            "project": project_of(&request.adapter, &request.event.metadata),
        });
        self.bus.publish(kind, notice);
        self.replies.end(
            &request.event.event_id,
            &End {
                request_id: request.request_id.clone(),
                status: request.status,
                reason: request.reason.clone(),
                text: text.map(str::to_owned),
                agent: agent.map(|agent| agent.agent_id.clone()),
                session: agent.map(|agent| agent.session_label.clone()),
            },
        );
    }
}

/// `nex.request.stage`; typed, since there are eight for each request.
#[derive(Debug, Serialize)]
struct StageNotice<'a> {
    request_id: &'a str,
    event_id: &'a str,
    adapter: &'a str,
    account: &'a str,
    stage: &'a str,
    duration_ms: f64,
    exit_reason: Option<&'a str>,
    error: Option<&'a str>,
}
