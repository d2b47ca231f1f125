//! Budgets in stage 6: what an agent has spent, whether it may run, and what its run adds to that. The ledger of
//! turns and calls is the account; what goes on has used, which it doesn't have yet, is kept in memory, also of the calls
//! of plugins and automations. Whether those may ask, `plugin::calls` decides.

use super::run::{Seen, Work};
use super::{Agent, Pipeline, READ_PATIENCE};
use crate::agent::{AgentError, Runner, Turn, Usage};
use crate::clock;
use crate::ledger::ReadError;
use crate::ledger::agents::{called, used_in_session, used_since};
use crate::metrics::{AgentLabel, AgentTokens, Metrics};
use nexus_core::config::{CallBudget, Spending};
use nexus_core::spend::{Allowance, Amount, Meter, Spent, cost_usd, day, estimated_tokens};
use rusqlite::Connection;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Who uses a budget.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Payer {
    Agent(String),
    Plugin(String),
    Automation(String),
}

impl Payer {
    /// Its name among all payers: no agent's has a `:`.
    pub fn key(&self) -> String {
        match self {
            Self::Agent(name) => name.clone(),
            Self::Plugin(name) => format!("plugin:{name}"),
            Self::Automation(name) => format!("automation:{name}"),
        }
    }
}

/// What each payer uses meanwhile, by its key. Cheap to clone; all clones count together.
#[derive(Debug, Clone, Default)]
pub struct Meters(Arc<Mutex<HashMap<String, Meter>>>);

impl Meters {
    pub(crate) fn of(&self, payer: &str) -> Meter {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(payer.to_owned()).or_default().clone()
    }
}

/// What a run or a call has used that the ledger doesn't have yet. To be dropped once it does, or never will.
#[derive(Debug, Default)]
pub(crate) struct Unfiled(Vec<(Meter, i64, Amount)>);

impl Unfiled {
    /// Counts from now on what was used by what began at this moment, whose day it counts for.
    pub(crate) fn add(&mut self, meter: Meter, began_at: i64, amount: Amount) {
        meter.add(began_at, amount);
        self.0.push((meter, began_at, amount));
    }

    /// Leaves it counted for its day while the daemon runs: the ledger refused it.
    pub(crate) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Unfiled {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|(meter, began_at, amount)| meter.file(began_at, amount));
    }
}

/// Counts what an agent has used in what began at this moment; what that cost, where it has prices.
pub(crate) fn charge_agent(
    agent: &Agent,
    usage: Usage,
    began_at: i64,
    meters: &Meters,
    metrics: &Metrics,
    unfiled: &mut Unfiled,
) -> Option<f64> {
    let (input, output) = (usage.input_tokens.unwrap_or(0), usage.output_tokens.unwrap_or(0));
    for (kind, tokens) in [("input", input), ("output", output)] {
        metrics.agent_tokens.get_or_create(&AgentTokens { agent: agent.name.clone(), kind }).inc_by(tokens);
    }
    let cost = agent.spending.as_ref().and_then(|spending| cost_usd(spending, input, output));
    unfiled.add(meters.of(&agent.name), began_at, Amount { tokens: input.saturating_add(output), usd: cost.unwrap_or(0.0) });
    if let Some(cost) = cost {
        metrics.agent_cost.get_or_create(&AgentLabel { agent: agent.name.clone() }).inc_by(cost);
    }
    cost
}

/// What an agent, a plugin or an automation has used today of what it may.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DayBudget {
    /// Under the word for what it is.
    #[serde(flatten)]
    pub of: Payer,
    pub tokens: u64,
    pub tokens_per_day: Option<u64>,
    pub usd: f64,
    pub usd_per_day: Option<f64>,
    /// When the next day begins, as a person reads it.
    pub until: String,
}

impl Pipeline {
    /// Today's budgets of those that have one for each day: agents, plugins and automations, each by their names.
    ///
    /// # Errors
    /// When the ledger can't be read.
    pub async fn budgets(&self) -> Result<Vec<DayBudget>, ReadError> {
        let settings = self.settings.load_full();
        let is_limited = |agent: &&Arc<Agent>| agent.spending.as_ref().is_some_and(|spending| spending.day().is_limited());
        let agents = settings.agents.values().filter(is_limited).map(|agent| Payer::Agent(agent.name.clone()));
        let callers = settings.callers.iter().filter(|(_, budget)| budget.is_limited()).map(|(payer, _)| payer.clone());
        let mut payers: Vec<Payer> = agents.chain(callers).collect();
        payers.sort();
        let mut found = Vec::with_capacity(payers.len());
        for payer in payers {
            found.push(self.used_today(payer).await?);
        }
        Ok(found)
    }

    /// What one has used today, whether or not that is limited.
    ///
    /// # Errors
    /// When the ledger can't be read.
    pub async fn used_today(&self, payer: Payer) -> Result<DayBudget, ReadError> {
        let settings = self.settings.load_full();
        let today = day(clock::wall_ms(), &settings.time_zone);
        let (unfiled, key, since) = (self.meters.of(&payer.key()).unfiled(today.from_ms), payer.key(), today.from_ms);
        let readers = &self.ledgers.agents.readers;
        let (filed, limits) = match &payer {
            Payer::Agent(name) => {
                let used = readers.read(move |connection| used_since(connection, &key, since)).await?;
                let limits = settings.agents.get(name).and_then(|agent| agent.spending.as_ref()).map(Spending::day);
                (used, limits)
            }
            Payer::Plugin(_) | Payer::Automation(_) => {
                (readers.read(move |connection| called(connection, &key, since)).await?, settings.callers.get(&payer).cloned())
            }
        };
        let (used, CallBudget { tokens_per_day, usd_per_day }) = (filed.plus(unfiled), limits.unwrap_or_default());
        Ok(DayBudget { of: payer, tokens: used.tokens, tokens_per_day, usd: used.usd, usd_per_day, until: today.until })
    }

    /// Whose budget a run uses: a project's agents are run by an agent of the configuration.
    pub(super) fn payer(&self, agent: &Arc<Agent>, turn: &Turn) -> Arc<Agent> {
        let name = match &agent.runner {
            Runner::Project(runner) => runner.agent_of(turn),
            Runner::Echo | Runner::Command(_) | Runner::Llm(_) | Runner::Acp(_) => None,
        };
        name.and_then(|name| self.settings.load().agents.get(&name).cloned()).unwrap_or_else(|| agent.clone())
    }

    /// Says in the turn what the agent may use; how the run ends, when that is nothing or can't be read. `formerly` is the
    /// label that the session had when its sender was not known.
    pub(super) async fn refuse(&self, agent: &Agent, turn: &mut Turn, formerly: Option<String>) -> Option<Work> {
        turn.allowance = None;
        let limits = agent.spending.as_ref().filter(|spending| spending.is_limited())?;
        let today = day(clock::wall_ms(), &self.settings.load().time_zone);
        let (name, session, since) = (agent.name.clone(), turn.session_label.clone(), today.from_ms);
        // Before the ledger is read: better counted twice for a moment than not at all.
        let (unfiled, watched) = self.meters.of(&agent.name).read(since);
        let read = move |connection: &Connection| -> rusqlite::Result<(Amount, Amount)> {
            let of_session = used_in_session(connection, &name, &session, formerly.as_deref())?;
            Ok((of_session, used_since(connection, &name, since)?))
        };
        let Some((of_session, of_day)) = self.ledgers.agents.readers.read_patiently(read, READ_PATIENCE, &self.abandon).await else {
            let problem = "what it has spent can't be read".to_owned();
            let stopping = self.abandon.is_cancelled();
            let failed = AgentError::Config { agent: agent.name.clone(), problem };
            return Some(if stopping { Work::Abandoned } else { Work::Failed(failed) });
        };
        let of_day = of_day.plus(unfiled);
        let spent =
            Spent { session_tokens: of_session.tokens, session_usd: of_session.usd, day_tokens: of_day.tokens, day_usd: of_day.usd };
        let (whose, limits, next_day) = ("The agent's".to_owned(), limits.clone(), today.until);
        let allowance = Allowance { whose, limits, spent, next_day, watched: Some(watched) };
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
        if let Some(cost) = charge_agent(agent, usage, seen.started_at, &self.meters, &self.metrics, &mut seen.unfiled) {
            seen.cost_usd = Some(seen.cost_usd.unwrap_or(0.0) + cost);
        }
    }

    /// Charges a question that broke off before it was told what it used, and what was said until then.
    pub(super) fn settle_use(&self, seen: &mut Seen) {
        let Some(asked) = seen.asked_bytes.take().filter(|_| seen.charged.is_some()) else { return };
        let (input, output) = (estimated_tokens(asked), estimated_tokens(seen.unpaid_bytes));
        self.charge(Usage { input_tokens: Some(input), output_tokens: Some(output), estimated: true }, seen);
    }
}
