//! nexus.db: all work, and the only file with a status. The commands here are whole, conditional
//! transactions: losing a condition is a normal answer, repeating one changes nothing.

mod approvals;
mod audit;
mod automations;
mod deliveries;
mod instances;
mod nostr;
mod projects;
mod publish;
mod read;
mod recover;
mod requests;
mod say;
mod speak;
mod split;
mod stops;
mod waits;

pub use self::nostr::{Definition, Deleted, Put, PutDefinitions, coordinate, nostr_event, nostr_events_by_ids, nostr_is_deleted};
pub use approvals::{Approval, ApprovalKind, ApprovalStatus, AskApprovals, DecideApproval, Wish, approvals};
pub use audit::{Audit, AuditQuery, AuditRow, LEFT_OUT_MAX, audit, left_out};
pub use automations::{ForgetAutomation, Knowledge, Recollection, RememberAdvice, ReviveAutomation, all_knowledge, recollect};
pub use deliveries::{ClaimDelivery, Delivery, NewDelivery, REPLY_MARK, Resolution, ResolveDelivery, SettleDelivery, Settled, lane_of};
pub use instances::{BackfillDone, CountAnalytics, Hour, Instance, RecordConfig, SaveInstance, instance};
pub use projects::{
    MarkProject, ProjectRow, Quarantine, QuarantineProject, SaveProject, SettleProjects, UseProject, project, project_named, projects,
    projects_defined_by,
};
pub use publish::{
    Answered, DuePublication, OutboxCounts, PUT_OFF_MS_MAX, PrunePublished, Publish, Published, PublishedStatus, SettlePublished,
    SpreadPublished, due_publications, next_publication, outbox_counts, published_last, published_status, published_under,
};
pub use read::{
    DeliveryCounts, OpenRequest, RequestRow, begun_after, cut_off_sends, deliveries, deliveries_of, delivery, delivery_counts,
    delivery_ids, finished_after, open_by_conversation, open_deliveries, open_requests, request_by_event, request_by_id, request_id_of,
    request_state, requests, run_turn, sent_after, status_counts, uncertain_deliveries, was_ended_for,
};
pub use recover::{BeginEpoch, Interrupted, Prune, ReviveRequest, ToldCutOff};
pub use requests::{Admit, AdmitRow, Fellow, FellowEnd, FinishRun, InterruptRun, JoinRun, MarkActed, SaveTrace, SettleRequest, StartRun};
pub use say::{NO_REQUEST_SEQ, Said, Say, channel_of};
pub use speak::{EndStream, Speak, StreamText};
pub use split::SplitDelivery;
pub use stops::{StopRequest, ended_for, stopped_requests};
pub use waits::{Awaited, ForgetWaits, MoveWaits, NewWait, Wait, wait_groups, wait_of, waits, waits_by_approval};

use super::Ledger;
use super::writer::commands;

/// Whether a conditional command found what it expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    Done,
    /// Somebody else was there first, or the row isn't there (yet).
    Lost,
}

commands! { Ledger::Nexus, NexusCommand / NexusReply {
    BeginEpoch -> recover::Begun,
    ToldCutOff -> (),
    Admit -> Claim,
    SettleRequest -> Claim,
    StartRun -> Claim,
    JoinRun -> Claim,
    MarkActed -> (),
    StopRequest -> Claim,
    FinishRun -> Option<i64>,
    SaveTrace -> (),
    InterruptRun -> Claim,
    ReviveRequest -> Claim,
    ClaimDelivery -> Claim,
    SettleDelivery -> Claim,
    ResolveDelivery -> Claim,
    SplitDelivery -> Claim,
    Say -> Said,
    Speak -> Claim,
    EndStream -> Claim,
    RememberAdvice -> Claim,
    ReviveAutomation -> (),
    ForgetAutomation -> (),
    SaveInstance -> (),
    BackfillDone -> (),
    RecordConfig -> (),
    CountAnalytics -> (),
    Prune -> u64,
    PutDefinitions -> Vec<Put>,
    Publish -> Published,
    SpreadPublished -> (),
    SettlePublished -> Claim,
    PrunePublished -> u64,
    SaveProject -> (),
    MarkProject -> Claim,
    QuarantineProject -> Claim,
    UseProject -> Claim,
    SettleProjects -> usize,
    AskApprovals -> Vec<Approval>,
    DecideApproval -> Option<Approval>,
    ForgetWaits -> usize,
    MoveWaits -> usize,
} }

/// The next value of a counter kept in this file.
fn next(connection: &rusqlite::Connection, counter: &str) -> rusqlite::Result<i64> {
    let sql = "UPDATE counters SET value = value + 1 WHERE name = ?1 RETURNING value";
    connection.prepare_cached(sql)?.query_row([counter], |row| row.get(0))
}

/// The counter that says when this file was last put in place by a restore, in Unix ms. Most files have none.
pub const RESTORED_AT: &str = "restored_at";

/// The value of a counter.
pub fn counter(connection: &rusqlite::Connection, name: &str) -> rusqlite::Result<i64> {
    connection.prepare_cached("SELECT value FROM counters WHERE name = ?1")?.query_row([name], |row| row.get(0))
}
