//! What calls take and answer, as types: the answers are made of them, parameters that aren't among them reach no
//! call, and `nexus.d.ts` is written from them. What a parameter may be is judged where it is taken.

use crate::agent::{StopReason, Usage};
use crate::ledger::cortex::Kind;
use crate::search::Found;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// The parameters of one call.
pub(super) trait Ask {
    const FIELDS: &'static [&'static str];
}

/// Declares parameters, with the list of their names.
macro_rules! asks {
    ($($(#[$about:meta])* $name:ident { $($(#[$note:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$about])*
        #[derive(Debug, JsonSchema)]
        pub struct $name {
            $($(#[$note])* pub $field: $type,)*
        }

        impl Ask for $name {
            const FIELDS: &'static [&'static str] = &[$(stringify!($field)),*];
        }
    )*};
}

asks! {
    /// A question to a ledger.
    QueryAsk {
        /// One SELECT, with places `?1`, `?2`, ...
        sql: String,
        /// What stands in the places.
        params: Option<Vec<Bound>>,
        /// `events` if none is named.
        ledger: Option<LedgerName>,
    }

    /// A question to an agent that is a model.
    LlmAsk {
        agent: String,
        prompt: String,
        /// Instead of the agent's own system prompt.
        system: Option<String>,
        /// Instead of the agent's own.
        max_tokens: Option<u32>,
    }

    /// What is looked for in what agents were asked and said.
    SearchAsk {
        /// All of these words.
        query: String,
        /// 1 to 20; 5 if it isn't given.
        limit: Option<u32>,
        /// Of all agents if none is named.
        agent: Option<String>,
    }

    /// A message; without more than its text it goes where the request's answer goes.
    SendAsk {
        text: String,
        to: Option<String>,
        /// Another one needs `account` and `to`.
        adapter: Option<String>,
        account: Option<String>,
        thread_id: Option<String>,
        /// Which message of the request it is: each is sent once.
        n: Option<SendNumber>,
        /// The same where there is no request.
        key: Option<String>,
    }

    /// One HTTP request.
    FetchAsk {
        url: String,
        /// `GET` if it isn't given.
        method: Option<String>,
        headers: Option<BTreeMap<String, String>>,
        body: Option<String>,
    }
}

/// A value for a place in a question.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Bound {
    Null(()),
    Truth(bool),
    Number(f64),
    Text(String),
}

/// The ledgers that can be asked.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum LedgerName {
    Events,
    Agents,
    Identity,
    Nexus,
}

/// A whole number, or a short name.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum SendNumber {
    Number(u32),
    Name(String),
}

/// What a ledger has.
#[derive(Debug, Serialize, JsonSchema)]
pub struct QueryAnswer {
    pub columns: Vec<String>,
    #[schemars(with = "Vec<Vec<Cell>>")]
    pub rows: Vec<Vec<Value>>,
}

/// What can stand in a row.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Cell {
    Null(()),
    Number(f64),
    Text(String),
}

/// What a model said.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LlmAnswer {
    pub text: String,
    pub usage: Usage,
    pub model: Option<String>,
    pub stop_reason: StopReason,
}

/// What was found, best first.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SearchAnswer {
    pub hits: Vec<SearchHit>,
}

/// A text that was found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SearchHit {
    pub agent: String,
    pub kind: Kind,
    /// The event's id, or the turn's.
    pub source: String,
    pub session: String,
    pub channel: String,
    pub sender: String,
    /// Unix milliseconds.
    pub at: i64,
    /// The less, the better.
    pub score: f64,
    /// The text around what was found.
    pub snippet: String,
    pub text: String,
}

impl From<Found> for SearchHit {
    fn from(Found { agent, hit }: Found) -> Self {
        Self {
            agent,
            kind: hit.kind,
            source: hit.source,
            session: hit.session,
            channel: hit.channel,
            sender: hit.sender,
            at: hit.at,
            score: hit.score,
            snippet: hit.snippet,
            text: hit.text,
        }
    }
}

/// What became of a message: it is in the ledger.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SendAnswer {
    /// Of the first of its messages.
    pub delivery_id: String,
    /// Into how many it was split.
    pub messages: usize,
    /// It was there before, and is not sent again.
    pub repeated: bool,
}

/// What an HTTP server answered.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FetchAnswer {
    pub status: u16,
    /// Those that came several times in one text.
    pub headers: BTreeMap<String, String>,
    pub body: String,
    pub encoding: Encoding,
}

/// How `body` is written.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    Text,
    Hex,
}
