//! Budgets in stage 6: what an agent has spent, whether it may run, and what its run adds to that. The ledger of
//! turns is the only account: runs that go on at the same time don't see each other's use until they end.

use super::run::{Seen, Work};
use super::{Agent, Pipeline, READ_PATIENCE};
use crate::agent::{AgentError, Turn, Usage};
use crate::clock;
use crate::ledger::agents::spent;
use crate::metrics::{AgentLabel, AgentTokens};
use nexus_core::spend::{Allowance, cost_usd, day, estimated_tokens};
use rusqlite::Connection;

impl Pipeline {
    /// Says in the turn what the agent may use; how the run ends, when that is nothing or can't be read.
    pub(super) async fn refuse(&self, agent: &Agent, turn: &mut Turn) -> Option<Work> {
        turn.allowance = None;
        let limits = agent.spending.as_ref().filter(|spending| spending.is_limited())?;
        let today = day(clock::wall_ms(), &self.settings.load().time_zone);
        let (name, session, since) = (agent.name.clone(), turn.session_label.clone(), today.from_ms);
        let read = move |connection: &Connection| spent(connection, &name, &session, since);
        let Some(spent) = self.ledgers.agents.readers.read_patiently(read, READ_PATIENCE, &self.abandon).await else {
            let problem = "what it has spent can't be read".to_owned();
            let stopping = self.abandon.is_cancelled();
            let failed = AgentError::Config { agent: agent.name.clone(), problem };
            return Some(if stopping { Work::Abandoned } else { Work::Failed(failed) });
        };
        let allowance = Allowance { limits: limits.clone(), spent, next_day: today.until };
        if let Err(problem) = allowance.check() {
            return Some(Work::Failed(AgentError::Exhausted { agent: agent.name.clone(), problem, partial: String::new() }));
        }
        turn.allowance = Some(allowance);
        None
    }

    /// Adds what the run has used.
    pub(super) fn charge(&self, usage: Usage, seen: &mut Seen) {
        seen.unpaid_bytes = 0;
        seen.usage = Some(seen.usage.unwrap_or_default().plus(usage));
        let Some(agent) = &seen.charged else { return };
        let (input, output) = (usage.input_tokens.unwrap_or(0), usage.output_tokens.unwrap_or(0));
        for (kind, tokens) in [("input", input), ("output", output)] {
            self.metrics.agent_tokens.get_or_create(&AgentTokens { agent: agent.name.clone(), kind }).inc_by(tokens);
        }
        if let Some(cost) = agent.spending.as_ref().and_then(|spending| cost_usd(spending, input, output)) {
            seen.cost_usd = Some(seen.cost_usd.unwrap_or(0.0) + cost);
            self.metrics.agent_cost.get_or_create(&AgentLabel { agent: agent.name.clone() }).inc_by(cost);
        }
    }

    /// Charges what was said by an attempt that broke off before it told what it used.
    pub(super) fn settle_use(&self, turn: &Turn, seen: &mut Seen) {
        if seen.unpaid_bytes == 0 || seen.charged.is_none() {
            return;
        }
        let history = turn.history.iter().map(|message| message.content.len()).sum::<usize>();
        let memory = turn.memory.iter().map(|one| one.text.len()).sum::<usize>();
        let asked = turn.content.len() + history + memory;
        let (input, output) = (estimated_tokens(asked), estimated_tokens(seen.unpaid_bytes));
        self.charge(Usage { input_tokens: Some(input), output_tokens: Some(output), estimated: true }, seen);
    }
}
