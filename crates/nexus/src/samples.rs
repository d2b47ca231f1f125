//! What unit tests begin with: one event of `p` on the account `fake/me`, in each of its forms. A test
//! says itself what it changes about it.
#![allow(clippy::unwrap_used)]

use crate::agent::{Remembers, Runner, Sender, Turn};
use crate::ledger::events::{Disposition, NewEvent};
use crate::ledger::identity::Link;
use crate::ledger::nexus::{AdmitRow, NewDelivery};
use crate::pipeline::Agent;
use crate::routes::Route;
use nexus_core::config::{Memory, OnUncertain};
use nexus_core::event::{Event, PeerKind};
use nexus_core::request::Status;
use rusqlite::Connection;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// On its way into the ledger.
pub(crate) fn new_event(event_id: impl Into<String>) -> NewEvent {
    NewEvent {
        event_id: event_id.into(),
        channel: "fake".into(),
        account_id: "me".into(),
        sender_id: "u".into(),
        sender_name: None,
        peer_id: "p".into(),
        peer_kind: PeerKind::Dm,
        thread_id: None,
        reply_to_id: None,
        content_type: "text".into(),
        content: "hello".into(),
        attachments: None,
        metadata: None,
        timestamp: 1,
        received_at: 1,
        disposition: Disposition::Run,
    }
}

/// The sender of these events is the entity `ann`.
pub(crate) fn link() -> Link {
    Link {
        channel: "fake".to_owned(),
        sender_id: "u".to_owned(),
        entity_id: "ann".to_owned(),
        name: None,
        relationship: None,
        confidence: 1.0,
        source: "owner",
        as_owner: false,
        at: 1,
    }
}

/// As the pipeline sees it.
pub(crate) fn event(event_id: impl Into<String>) -> Event {
    Event {
        event_id: event_id.into(),
        timestamp: 0,
        content: "hello".into(),
        content_type: "text".into(),
        channel: "fake".into(),
        account_id: "me".into(),
        sender_id: "u".into(),
        peer_id: "p".into(),
        peer_kind: PeerKind::Dm,
        sender_name: None,
        thread_id: None,
        reply_to_id: None,
        attachments: Value::Null,
        metadata: Value::Null,
    }
}

/// As a request that waits: that of the event with seq 1.
pub(crate) fn row() -> AdmitRow {
    AdmitRow {
        event_seq: 1,
        request_id: "req_1".into(),
        event_id: "fake:1".into(),
        channel: "fake".into(),
        account_id: "me".into(),
        adapter: "fake".into(),
        conversation: "p".into(),
        late: false,
        created_at: 1,
        status: Status::Waiting,
        reason: None,
    }
}

/// Of that request, on its way to `p`.
pub(crate) fn delivery(delivery_id: &str) -> NewDelivery {
    NewDelivery {
        delivery_id: delivery_id.into(),
        request_id: "req_1".into(),
        event_seq: 1,
        run_id: Some("run".into()),
        adapter: "fake".into(),
        channel: "fake".into(),
        account_id: "me".into(),
        target: "p".into(),
        thread_id: None,
        reply_to_id: None,
        idempotency_key: delivery_id.into(),
        content: String::new(),
        created_at: 1,
        expires_at: i64::MAX,
        here: false,
    }
}

/// What an agent is told of it, and nothing else.
pub(crate) fn turn() -> Turn {
    let sender = Sender { id: "u1".into(), name: None, principal: "owner".into() };
    let message = Turn::of_message("run_1".into(), "a".into(), "hello".into(), sender);
    Turn { session_label: "dm:me".into(), channel: "fake".into(), remembers: Remembers::Session, ..message }
}

/// The built-in agent, which answers one at a time.
pub(crate) fn echo() -> Agent {
    Agent {
        name: "echo".into(),
        runner: Runner::Echo,
        timeout: Duration::ZERO,
        max_concurrent: 1,
        harmless: true,
        acts: false,
        takes_input: false,
        memory: Memory::default(),
        spending: None,
        fallback: Vec::new(),
        prompt_bytes_max: None,
    }
}

/// How an adapter that can send delivers.
pub(crate) fn route(sender: impl crate::routes::Sender + 'static) -> Route {
    Route {
        known: true,
        here: false,
        sender: Some(Arc::new(sender)),
        text_limit: 0,
        capabilities: Value::Null,
        retries: 3,
        on_uncertain: OnUncertain::Hold,
        ttl_ms: 3_600_000,
        blocks: false,
        streamer: None,
        channel: None,
    }
}

/// An events ledger in memory.
pub(crate) fn events_ledger() -> Connection {
    in_memory(include_str!("../migrations/events/0001_facts.sql"))
}

/// A ledger of work in memory.
pub(crate) fn nexus_ledger() -> Connection {
    in_memory(include_str!("../migrations/nexus/0001_work.sql"))
}

/// A ledger of who is who in memory.
pub(crate) fn identity_ledger() -> Connection {
    in_memory(include_str!("../migrations/identity/0001_contacts.sql"))
}

/// How SQLite would answer a question, step by step. Its parameters are 1.
pub(crate) fn plan(connection: &Connection, sql: &str) -> Vec<String> {
    let mut asked = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    for number in 1..=asked.parameter_count() {
        asked.raw_bind_parameter(number, 1).unwrap();
    }
    let mut steps = Vec::new();
    let mut rows = asked.raw_query();
    while let Some(step) = rows.next().unwrap() {
        steps.push(step.get(3).unwrap());
    }
    steps
}

fn in_memory(schema: &str) -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(schema).unwrap();
    connection
}
