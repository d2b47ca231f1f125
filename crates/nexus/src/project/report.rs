//! How projects are, for people, `/health` and `/metrics`. It changes nothing.

use super::idle::Seen;
use super::lanes::{Lane, ProjectState};
use super::{Coordinate, Inner, Projects};
use crate::clock;
use crate::keeper::tree;
use crate::ledger::nexus::ProjectRow;
use crate::metrics::{ChildLabel, ProjectLabel};
use crate::supervisor::Phase;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

/// One project, with the requirement's names for what it names.
#[derive(Debug, Clone, Serialize)]
pub struct ProjectStatus {
    /// `kind:pubkey:identifier`.
    pub id: String,
    pub path: PathBuf,
    /// When its process was started (RFC 3339), if it runs.
    #[serde(rename = "startedAt")]
    pub started_at: Option<String>,
    pub slug: String,
    pub title: String,
    pub state: &'static str,
    /// Why it is in that state, where somebody has to do something.
    pub reason: Option<String>,
    pub pid: Option<u32>,
    pub uptime_ms: Option<u64>,
    pub restarts: u64,
    pub crashes: u64,
    pub last_error: Option<String>,
    /// Events that wait or are being answered.
    pub queue: u64,
    /// Unix ms.
    pub last_used: Option<i64>,
    /// What its process says that it does.
    pub doing: Option<String>,
    pub cpu_seconds: Option<f64>,
    pub rss_bytes: Option<i64>,
    pub fds: Option<i64>,
    /// From the receipt of the event that was handed over last to a process that took it.
    pub receive_to_ready_ms: Option<f64>,
}

impl ProjectStatus {
    /// One of which nothing runs, as the ledger has it.
    pub fn of_row(row: &ProjectRow) -> Self {
        let state = ProjectState::of_row(&row.status, row.quarantined.is_some()).unwrap_or(ProjectState::Discovered);
        Self {
            id: row.coordinate.clone(),
            path: PathBuf::from(&row.path),
            started_at: None,
            slug: row.slug.clone(),
            title: row.title.clone(),
            state: state.as_str(),
            reason: row.quarantined.as_ref().map(|quarantine| quarantine.reason.clone()).or_else(|| row.reason.clone()),
            pid: None,
            uptime_ms: None,
            restarts: 0,
            crashes: 0,
            last_error: None,
            queue: 0,
            last_used: row.last_used,
            doing: None,
            cpu_seconds: None,
            rss_bytes: None,
            fds: None,
            receive_to_ready_ms: None,
        }
    }
}

impl Projects {
    /// Every project that is known, by the ledger or since the start; those of one author are together.
    pub async fn list(&self) -> Vec<ProjectStatus> {
        let rows = self.rows().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "projects can't be read; only those in use are shown");
            Vec::new()
        });
        let mut all: BTreeMap<String, ProjectStatus> = rows.iter().map(|row| (row.coordinate.clone(), self.of_row(row))).collect();
        for lane in self.inner.lanes.all() {
            let row = rows.iter().find(|row| row.coordinate == lane.post.coordinate.to_string());
            let one = self.of_lane(&lane, row);
            all.insert(one.id.clone(), one);
        }
        all.into_values().collect()
    }

    /// Those in sight: that something was to be done with since the start, or that somebody should look at.
    pub fn in_sight(&self) -> Vec<ProjectStatus> {
        let mut all: Vec<ProjectStatus> = self.inner.lanes.all().iter().map(|lane| self.of_lane(lane, None)).collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// How many of those in sight are in which state.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for lane in self.inner.lanes.all() {
            *counts.entry(lane.state().as_str()).or_insert(0) += 1;
        }
        counts
    }

    /// Those that somebody should look at, with why.
    pub fn unwell(&self) -> Vec<String> {
        let lanes = self.inner.lanes.all();
        let told = lanes.iter().filter_map(|lane| match lane.state() {
            ProjectState::Quarantined => Some(format!("project {} is quarantined", lane.post.slug)),
            ProjectState::NeedsConfiguration => Some(format!("project {} needs configuration", lane.post.slug)),
            ProjectState::Discovered
            | ProjectState::Preparing
            | ProjectState::Ready
            | ProjectState::Starting
            | ProjectState::Running
            | ProjectState::Stopping
            | ProjectState::Backoff
            | ProjectState::Archived => None,
        });
        let mut told: Vec<String> = told.collect();
        told.sort();
        told
    }

    /// Brings the gauges up to date.
    pub fn measure(&self) {
        let metrics = &self.inner.ground.metrics;
        let (mut active, queues) = (0, self.inner.queues.load());
        for lane in self.inner.lanes.all() {
            let (status, label) = (lane.child.status(), ProjectLabel { project: lane.post.slug.clone() });
            active += i64::from(status.phase == Phase::Running);
            let uptime_ms = status.started_at.map_or(0, |at| clock::wall_ms().saturating_sub(at).max(0));
            metrics.project_uptime.get_or_create(&label).set(uptime_ms as f64 / 1000.0);
            if let Some(took) = lane.receive_to_ready() {
                metrics.project_receive_to_ready_last.get_or_create(&label).set(took.as_secs_f64());
            }
            let queue = queues.get(&lane.post.coordinate.to_string()).copied().unwrap_or(0);
            metrics.project_queue.get_or_create(&label).set(i64::try_from(queue).unwrap_or(i64::MAX));
            if let Some((cpu, rss, fds)) = status.pid.and_then(tree::usage) {
                let label = ChildLabel { child: lane.post.child_id().to_string() };
                metrics.child_cpu.get_or_create(&label).inner().store(cpu.to_bits(), Ordering::Relaxed);
                metrics.child_rss.get_or_create(&label).set(rss);
                metrics.child_fds.get_or_create(&label).set(fds);
            }
        }
        metrics.project_active.set(active);
    }

    /// What decides about who is stopped and kept.
    pub(super) fn seen(&self) -> Vec<Seen> {
        let Inner { lanes, settings, .. } = &*self.inner;
        let (settings, now_ms) = (settings.load(), clock::mono_ms());
        let see = |lane: std::sync::Arc<Lane>| {
            let last_used_ms = lane.last_used_ms();
            Seen {
                is_up: lane.is_up(),
                is_used: lane.is_taken(),
                may_start: lane.may_warm() && (lane.is_up() || !lane.post.has_just_ended()),
                last_used_ms: i64::try_from(last_used_ms).unwrap_or(i64::MAX),
                idle_ms: now_ms.saturating_sub(last_used_ms),
                idle_stop_ms: settings.idle_stop_ms(&lane.post.coordinate),
                project: lane.post.coordinate.clone(),
            }
        };
        lanes.all().into_iter().map(see).collect()
    }

    fn of_row(&self, row: &ProjectRow) -> ProjectStatus {
        let queue = self.inner.queues.load().get(&row.coordinate).copied().unwrap_or(0);
        ProjectStatus { queue, ..ProjectStatus::of_row(row) }
    }

    pub(super) fn of_lane(&self, lane: &Lane, row: Option<&ProjectRow>) -> ProjectStatus {
        let (status, prepared, id) = (lane.child.status(), lane.prepared(), lane.post.coordinate.to_string());
        let usage = status.pid.and_then(tree::usage);
        let missing = prepared.as_ref().map(|prepared| prepared.missing.join("; ")).filter(|missing| !missing.is_empty());
        let known = |of: fn(&ProjectRow) -> String| row.map(of).unwrap_or_default();
        // What the ledger knows of one that nobody has had prepared since the start is as true.
        let durable = row.and_then(|row| ProjectState::of_row(&row.status, false)).or(lane.before());
        let state = match lane.state() {
            ProjectState::Discovered => durable.unwrap_or(ProjectState::Discovered),
            state @ (ProjectState::Preparing
            | ProjectState::NeedsConfiguration
            | ProjectState::Ready
            | ProjectState::Starting
            | ProjectState::Running
            | ProjectState::Stopping
            | ProjectState::Backoff
            | ProjectState::Quarantined
            | ProjectState::Archived) => state,
        };
        ProjectStatus {
            queue: self.inner.queues.load().get(&id).copied().unwrap_or(0),
            id,
            path: prepared.as_ref().map_or_else(|| known(|row| row.path.clone()).into(), |prepared| prepared.path.clone()),
            started_at: status.started_at.map(clock::rfc3339),
            slug: lane.post.slug.clone(),
            title: prepared.as_ref().map_or_else(|| known(|row| row.title.clone()), |prepared| prepared.title.clone()),
            state: state.as_str(),
            reason: lane.quarantined().or(missing).or_else(|| row.and_then(|row| row.reason.clone())).or_else(|| lane.problem()),
            pid: status.pid,
            uptime_ms: status.started_at.map(|at| clock::wall_ms().saturating_sub(at).max(0).unsigned_abs()),
            restarts: status.restarts,
            crashes: lane.post.crashes.load(Ordering::Relaxed),
            last_error: lane.post.why().filter(|_| status.last_error.is_some()).or(status.last_error),
            last_used: row.and_then(|row| row.last_used).max(lane.last_event_at()),
            doing: lane.post.notes.status(),
            cpu_seconds: usage.map(|(cpu, _, _)| cpu),
            rss_bytes: usage.map(|(_, rss, _)| rss),
            fds: usage.map(|(_, _, fds)| fds),
            receive_to_ready_ms: lane.receive_to_ready().map(|took| took.as_secs_f64() * 1000.0),
        }
    }

    /// What a project's events are called in the ledger of work: the beginning of their conversations.
    pub(super) fn project_of_conversation(conversation: &str) -> Option<Coordinate> {
        let mut parts = conversation.split('\u{1f}');
        let (adapter, _channel, _account, peer) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        (adapter == crate::nostr::ADAPTER).then(|| Coordinate::parse(peer).ok())?
    }
}
