//! Budgets in stage 6: what an agent has spent, whether it may run, and what its run adds to that. The ledger of
//! turns is the account; what runs that go on have used, which it doesn't have yet, is kept in memory.

use super::run::{Seen, Work};
use super::{Agent, Pipeline, READ_PATIENCE};
use crate::agent::{AgentError, Runner, Turn, Usage};
use crate::clock;
use crate::ledger::ReadError;
use crate::ledger::agents::spent;
use crate::metrics::{AgentLabel, AgentTokens};
use nexus_core::config::Spending;
use nexus_core::spend::{Allowance, Amount, Meter, cost_usd, day, estimated_tokens};
use rusqlite::Connection;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What the runs of each agent use, by its name.
#[derive(Debug, Default)]
pub struct Meters(Mutex<HashMap<String, Meter>>);

impl Meters {
    fn of(&self, agent: &str) -> Meter {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(agent.to_owned()).or_default().clone()
    }
}

/// What a run has used that the ledger doesn't have yet. To be dropped once it does, or never will.
#[derive(Debug, Default)]
pub(super) struct Unfiled(Vec<(Meter, Amount)>);

impl Drop for Unfiled {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|(meter, amount)| meter.file(amount));
    }
}

/// What an agent has used today of what it may.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DayBudget {
    pub agent: String,
    pub tokens: u64,
    pub tokens_per_day: Option<u64>,
    pub usd: f64,
    pub usd_per_day: Option<f64>,
    /// When the next day begins, as a person reads it.
    pub until: String,
}

impl Pipeline {
    /// Today's budgets of the agents that have one for each day, by their names.
    ///
    /// # Errors
    /// When the ledger can't be read.
    pub async fn budgets(&self) -> Result<Vec<DayBudget>, ReadError> {
        let settings = self.settings.load_full();
        let today = day(clock::wall_ms(), &settings.time_zone);
        let mut found = Vec::new();
        for agent in settings.agents.values() {
            let Some(Spending { tokens_per_day, usd_per_day, .. }) = &agent.spending else { continue };
            if tokens_per_day.is_none() && usd_per_day.is_none() {
                continue;
            }
            let (unfiled, _) = self.meters.of(&agent.name).read();
            let (name, since) = (agent.name.clone(), today.from_ms);
            // A session of this name has nothing: its sum isn't looked at.
            let used = self.ledgers.agents.readers.read(move |connection| spent(connection, &name, "", since)).await?;
            found.push(DayBudget {
                agent: agent.name.clone(),
                tokens: used.day_tokens.saturating_add(unfiled.tokens),
                tokens_per_day: *tokens_per_day,
                usd: used.day_usd + unfiled.usd,
                usd_per_day: *usd_per_day,
                until: today.until.clone(),
            });
        }
        found.sort_by(|left, right| left.agent.cmp(&right.agent));
        Ok(found)
    }

    /// Whose budget a run uses: a project's agents are run by an agent of the configuration.
    pub(super) fn payer(&self, agent: &Arc<Agent>, turn: &Turn) -> Arc<Agent> {
        let name = match &agent.runner {
            Runner::Project(runner) => runner.agent_of(turn),
            Runner::Echo | Runner::Command(_) | Runner::Llm(_) | Runner::Acp(_) => None,
        };
        name.and_then(|name| self.settings.load().agents.get(&name).cloned()).unwrap_or_else(|| agent.clone())
    }

    /// Says in the turn what the agent may use; how the run ends, when that is nothing or can't be read.
    pub(super) async fn refuse(&self, agent: &Agent, turn: &mut Turn) -> Option<Work> {
        turn.allowance = None;
        let limits = agent.spending.as_ref().filter(|spending| spending.is_limited())?;
        let today = day(clock::wall_ms(), &self.settings.load().time_zone);
        let (name, session, since) = (agent.name.clone(), turn.session_label.clone(), today.from_ms);
        // Before the ledger is read: better counted twice for a moment than not at all.
        let (unfiled, watched) = self.meters.of(&agent.name).read();
        let read = move |connection: &Connection| spent(connection, &name, &session, since);
        let Some(mut spent) = self.ledgers.agents.readers.read_patiently(read, READ_PATIENCE, &self.abandon).await else {
            let problem = "what it has spent can't be read".to_owned();
            let stopping = self.abandon.is_cancelled();
            let failed = AgentError::Config { agent: agent.name.clone(), problem };
            return Some(if stopping { Work::Abandoned } else { Work::Failed(failed) });
        };
        spent.day_tokens = spent.day_tokens.saturating_add(unfiled.tokens);
        spent.day_usd += unfiled.usd;
        let allowance = Allowance { limits: limits.clone(), spent, next_day: today.until, watched: Some(watched) };
        if let Err(problem) = allowance.check() {
            return Some(Work::Failed(AgentError::Exhausted { agent: agent.name.clone(), problem, partial: String::new() }));
        }
        turn.allowance = Some(allowance);
        None
    }

    /// Adds what the run has used.
    pub(super) fn charge(&self, usage: Usage, seen: &mut Seen) {
        (seen.asked_bytes, seen.unpaid_bytes) = (None, 0);
        seen.usage = Some(seen.usage.unwrap_or_default().plus(usage));
        let Some(agent) = &seen.charged else { return };
        let (input, output) = (usage.input_tokens.unwrap_or(0), usage.output_tokens.unwrap_or(0));
        for (kind, tokens) in [("input", input), ("output", output)] {
            self.metrics.agent_tokens.get_or_create(&AgentTokens { agent: agent.name.clone(), kind }).inc_by(tokens);
        }
        let cost = agent.spending.as_ref().and_then(|spending| cost_usd(spending, input, output));
        let (meter, amount) = (self.meters.of(&agent.name), Amount { tokens: input.saturating_add(output), usd: cost.unwrap_or(0.0) });
        meter.add(amount);
        seen.unfiled.0.push((meter, amount));
        if let Some(cost) = cost {
            seen.cost_usd = Some(seen.cost_usd.unwrap_or(0.0) + cost);
            self.metrics.agent_cost.get_or_create(&AgentLabel { agent: agent.name.clone() }).inc_by(cost);
        }
    }

    /// Charges a question that broke off before it was told what it used, and what was said until then.
    pub(super) fn settle_use(&self, seen: &mut Seen) {
        let Some(asked) = seen.asked_bytes.take().filter(|_| seen.charged.is_some()) else { return };
        let (input, output) = (estimated_tokens(asked), estimated_tokens(seen.unpaid_bytes));
        self.charge(Usage { input_tokens: Some(input), output_tokens: Some(output), estimated: true }, seen);
    }
}
