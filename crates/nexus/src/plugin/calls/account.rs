//! What a call of `llm` costs: what its caller and the agent that it asks may still use today, and what it has used,
//! which is counted however it ends. It asks no model, and ends no answer.

use super::{CallError, Caller, CallerKind, Calls};
use crate::agent::{Output, Usage};
use crate::clock;
use crate::ledger::agents::{AgentsCommand, RecordCall, called, used_since};
use crate::ledger::writer::Writer;
use crate::metrics::{CallerLabel, CallerTokens, Metrics};
use crate::pipeline::spending::{Meters, Payer, Unfiled, charge_agent};
use crate::pipeline::{Agent, Settings};
use nexus_core::config::{CallBudget, Spending};
use nexus_core::spend::{Allowance, Amount, Spent, Watched, cost_usd, day, estimated_tokens};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// How long an answer waits for what it cost to be written.
const FILING_PATIENCE: Duration = Duration::from_secs(2);

/// The account of one call. What was used when it is dropped is written then; [`Self::close`] waits for that.
#[derive(Debug)]
pub(super) struct Account {
    call_id: String,
    caller: String,
    request_id: Option<String>,
    agent: Arc<Agent>,
    started_at: i64,
    meters: Meters,
    metrics: Metrics,
    writer: Writer<AgentsCommand>,
    /// Whoever drops it may be outside of it.
    runtime: Handle,
    /// Bytes of the question, until it is told what that used.
    asked_bytes: Option<usize>,
    said_bytes: usize,
    used: Option<Usage>,
    cost_usd: Option<f64>,
    unfiled: Unfiled,
}

impl Account {
    /// Opens the account of a call that asks `agent`; with it comes what the budgets of the two leave for the answer.
    ///
    /// # Errors
    /// [`CallError::Limit`] when one of the two has used up its day, or what it would cost can't be told though that is
    /// limited; [`CallError::Failed`] when it can't be read what was used.
    pub(super) async fn open(
        calls: &Calls,
        settings: &Settings,
        caller: &Caller,
        agent: &Arc<Agent>,
        call_id: &str,
    ) -> Result<(Self, Vec<Allowance>), CallError> {
        let payer = match caller.kind {
            CallerKind::Plugin => Payer::Plugin(caller.plugin.clone()),
            CallerKind::Automation => Payer::Automation(caller.plugin.clone()),
        };
        let started_at = clock::wall_ms();
        let budget = settings.callers.get(&payer).cloned().unwrap_or_default();
        let whose = format!("the {}'s", caller.kind.noun());
        if budget.usd_per_day.is_some() && cost_of(agent, Usage::default()).is_none() {
            let prices = "`usd_per_million_input` and `usd_per_million_output`";
            let missing = format!("{whose} budget is in US dollars, and agent `{}` has no prices: give it {prices}", agent.name);
            return Err(CallError::Limit(missing));
        }
        let allowances = allowances(calls, settings, (&payer, whose, budget), agent, started_at).await?;
        for allowance in &allowances {
            allowance.check().map_err(CallError::Limit)?;
        }
        let account = Self {
            call_id: call_id.to_owned(),
            caller: payer.key(),
            request_id: caller.request.as_ref().map(|request| request.request_id.clone()),
            agent: agent.clone(),
            started_at,
            meters: calls.meters.clone(),
            metrics: calls.metrics.clone(),
            writer: calls.ledgers.agents.writer.clone(),
            runtime: Handle::current(),
            asked_bytes: None,
            said_bytes: 0,
            used: None,
            cost_usd: None,
            unfiled: Unfiled::default(),
        };
        Ok((account, allowances))
    }

    /// Takes in what the model says while it answers.
    pub(super) fn hear(&mut self, piece: Output) {
        match piece {
            Output::Asked { bytes } => {
                self.settle(); // the question before it failed
                self.asked_bytes = Some(bytes);
            }
            Output::Token(text) | Output::Reasoning(text) => self.said_bytes += text.len(),
            Output::Used(usage) => self.charge(usage),
            // Of a model without tools nothing of the kind comes.
            Output::Tool { .. } | Output::Ask(_) | Output::Steering | Output::Steered { .. } => {}
        }
    }

    /// The question was refused, for which nobody charges unless something was said.
    pub(super) fn refused(&mut self) {
        if self.said_bytes == 0 {
            self.asked_bytes = None;
        }
    }

    /// The call is over; returns once what it used is written, or that takes too long and goes on by itself: until then
    /// the meters count it, and whoever asked isn't to pay for a disk.
    pub(super) async fn close(mut self) {
        if let Some(writing) = self.file() {
            drop(tokio::time::timeout(FILING_PATIENCE, writing).await); // it tells itself of what goes wrong
        }
    }

    /// Charges a question that broke off before it was told what it used, and what was said until then.
    fn settle(&mut self) {
        let Some(asked) = self.asked_bytes.take() else { return };
        let (input, output) = (estimated_tokens(asked), estimated_tokens(self.said_bytes));
        self.charge(Usage { input_tokens: Some(input), output_tokens: Some(output), estimated: true });
    }

    fn charge(&mut self, usage: Usage) {
        (self.asked_bytes, self.said_bytes) = (None, 0);
        self.used = Some(self.used.unwrap_or_default().plus(usage));
        let cost = charge_agent(&self.agent, usage, self.started_at, &self.meters, &self.metrics, &mut self.unfiled);
        let (input, output) = (usage.input_tokens.unwrap_or(0), usage.output_tokens.unwrap_or(0));
        let amount = Amount { tokens: input.saturating_add(output), usd: cost.unwrap_or(0.0) };
        self.unfiled.add(self.meters.of(&self.caller), self.started_at, amount);
        for (kind, tokens) in [("input", input), ("output", output)] {
            self.metrics.call_tokens.get_or_create(&CallerTokens { caller: self.caller.clone(), kind }).inc_by(tokens);
        }
        if let Some(cost) = cost {
            self.cost_usd = Some(self.cost_usd.unwrap_or(0.0) + cost);
            self.metrics.call_cost.get_or_create(&CallerLabel { caller: self.caller.clone() }).inc_by(cost);
        }
    }

    /// Has what was used written, once, by a task of its own: whoever asked may be gone.
    fn file(&mut self) -> Option<JoinHandle<()>> {
        self.settle();
        let Usage { input_tokens, output_tokens, estimated } = self.used.take()?;
        let row = RecordCall {
            call_id: self.call_id.clone(),
            caller: self.caller.clone(),
            agent: self.agent.name.clone(),
            request_id: self.request_id.take(),
            input_tokens: input_tokens.unwrap_or(0),
            output_tokens: output_tokens.unwrap_or(0),
            estimated,
            cost_usd: self.cost_usd,
            started_at: self.started_at,
        };
        let (writer, unfiled) = (self.writer.clone(), std::mem::take(&mut self.unfiled));
        let _entered = self.runtime.enter(); // dropped on any thread
        Some(crate::watch::helper("plugin.account", async move {
            let (caller, tokens) = (row.caller.clone(), row.input_tokens.saturating_add(row.output_tokens));
            if let Err(error) = writer.write_until_done(row).await {
                tracing::error!(caller, tokens, %error, "what a call used is not written; it counts for its day until the daemon stops");
                unfiled.keep();
            }
        }))
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        drop(self.file()); // nobody waits for it
    }
}

fn cost_of(agent: &Agent, usage: Usage) -> Option<f64> {
    cost_usd(agent.spending.as_ref()?, usage.input_tokens.unwrap_or(0), usage.output_tokens.unwrap_or(0))
}

/// What the day of the caller, with its budget and whose that is, and that of the agent leave; nothing where neither is limited.
async fn allowances(
    calls: &Calls,
    settings: &Settings,
    (payer, whose, budget): (&Payer, String, CallBudget),
    agent: &Agent,
    now_ms: i64,
) -> Result<Vec<Allowance>, CallError> {
    let prices = agent.spending.clone().unwrap_or_default();
    let of_agent = prices.day();
    if !budget.is_limited() && !of_agent.is_limited() {
        return Ok(Vec::new());
    }
    let today = day(now_ms, &settings.time_zone);
    let [own, agents] = used(calls, payer.key(), agent.name.clone(), today.from_ms).await?;
    let allowance = |whose: String, limits: CallBudget, (used, watched): (Amount, Watched)| {
        let CallBudget { tokens_per_day, usd_per_day } = limits;
        // A call is in no session.
        let limits = Spending { tokens_per_session: None, usd_per_session: None, tokens_per_day, usd_per_day, ..prices.clone() };
        let spent = Spent { day_tokens: used.tokens, day_usd: used.usd, ..Spent::default() };
        Allowance { whose, limits, spent, next_day: today.until.clone(), watched: Some(watched) }
    };
    Ok(vec![allowance(whose, budget, own), allowance("the agent's".to_owned(), of_agent, agents)])
}

/// What the caller and the agent have used since the day began, with what goes on, and a watch over what they use from now on.
async fn used(calls: &Calls, caller: String, agent: String, since: i64) -> Result<[(Amount, Watched); 2], CallError> {
    // Before the ledger is read: better counted twice for a moment than not at all.
    let (own_unfiled, own_watched) = calls.meters.of(&caller).read(since);
    let (agents_unfiled, agents_watched) = calls.meters.of(&agent).read(since);
    let readers = &calls.ledgers.agents.readers;
    let filed = readers.read(move |connection| Ok((called(connection, &caller, since)?, used_since(connection, &agent, since)?)));
    let (own, agents) = filed.await.map_err(|error| CallError::failed("look up what was used today", error))?;
    Ok([(own.plus(own_unfiled), own_watched), (agents.plus(agents_unfiled), agents_watched)])
}
