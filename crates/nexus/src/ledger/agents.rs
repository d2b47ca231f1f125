//! agents.db: turns, messages, tool calls, and the session labels that point at them. Follows
//! finished runs of nexus.db; forks, archives, the sessions of ACP agents, and what plugins and automations used of models
//! are primary here.

mod acp;
mod calls;
mod promote;
mod sessions;
mod used;

pub use acp::{KeepAcpSession, acp_session};
pub use calls::{PruneCalls, RecordCall, called};
pub use sessions::{
    ArchiveSession, Archived, ForkSession, Forked, Listed, SessionBudget, SessionBudgets, label_of, put_away, session, sessions,
};
pub use used::{used_in_session, used_since};

use super::writer::{Weight, commands};
use super::{Ledger, follow, optional};
use rusqlite::{Connection, params};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The name under which agents.db follows nexus.db.
pub const SOURCE: &str = "nexus.finish";

/// One finished turn, as `runs.turn_json` keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TurnRecord {
    pub turn_id: String,
    /// Who spoke in it besides the agent.
    #[serde(default)]
    pub speakers: Vec<Speaker>,
    pub request_id: String,
    pub session: String,
    /// The label that the session had when its sender was not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formerly: Option<String>,
    pub agent: String,
    pub user: String,
    /// What the agent itself said; empty when it said nothing.
    pub assistant: String,
    pub model: Option<String>,
    pub provider: Option<String>,
    pub stop_reason: String,
    pub input_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    /// Unix milliseconds.
    pub started_at: i64,
    pub duration_ms: f64,
    pub tool_calls: Vec<ToolCall>,
    /// The agent whose budget it counts for; none means `agent`.
    #[serde(default)]
    pub charged: Option<String>,
    #[serde(default)]
    pub cost_usd: Option<f64>,
}

impl TurnRecord {
    /// As `runs.turn_json` keeps it. Were it ever none, its run would break off here and end as failed: none may end
    /// well without its turn.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a turn is texts and numbers, and any of those is JSON")
    }
}

/// Somebody whose words a turn answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speaker {
    /// As `channel:sender`.
    pub id: String,
    /// What that one is called, where others may speak too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ToolCall {
    pub call_id: String,
    pub name: String,
    pub status: String,
    pub summary: Option<String>,
    /// As far as they are kept.
    #[serde(default)]
    pub arguments: Option<String>,
    #[serde(default)]
    pub result: Option<String>,
}

/// What a request has of a call: not what went in and out, which the agents ledger has.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ToolOutline {
    pub call_id: String,
    pub name: String,
    pub status: String,
    pub summary: Option<String>,
}

/// The turn of a run.
pub fn turn_id(run_id: &str) -> String {
    format!("turn_{}", run_id.trim_start_matches("run_"))
}

/// The agents that there are turns of, whether or not they are configured still.
pub fn with_turns(connection: &Connection) -> rusqlite::Result<BTreeSet<String>> {
    // From each name to the next, however many turns it has.
    let sql = "WITH RECURSIVE names (agent) AS (
                 SELECT min(agent) FROM turns UNION ALL
                 SELECT (SELECT min(agent) FROM turns WHERE agent > names.agent) FROM names WHERE names.agent IS NOT NULL)
               SELECT agent FROM names WHERE agent IS NOT NULL";
    connection.prepare_cached(sql)?.query_map([], |row| row.get(0))?.collect()
}

/// Turns of finished runs, in the order of their `finish_seq`.
#[derive(Debug, Clone)]
pub struct ApplyTurns {
    pub upto_finish_seq: i64,
    pub turns: Vec<TurnRecord>,
}

/// A session that began, with its first turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NewSession {
    pub session: String,
    pub agent: String,
    pub turn_id: String,
    pub request_id: String,
}

/// Those that began with these turns.
pub type NewSessions = Vec<NewSession>;

commands! { Ledger::Agents, AgentsCommand / AgentsReply {
    ApplyTurns -> NewSessions,
    ForkSession -> Forked,
    ArchiveSession -> Archived,
    KeepAcpSession -> (),
    RecordCall -> (),
    PruneCalls -> usize,
} }

impl ApplyTurns {
    fn apply(&self, connection: &Connection) -> rusqlite::Result<NewSessions> {
        let mut new = Vec::new();
        if follow::advance(connection, SOURCE, self.upto_finish_seq)? {
            for turn in &self.turns {
                if apply_turn(connection, turn)? {
                    new.push(turn.begun());
                }
            }
        }
        Ok(new)
    }
}

fn apply_turn(connection: &Connection, turn: &TurnRecord) -> rusqlite::Result<bool> {
    sessions::begin_anew_if_archived(connection, &turn.session, turn.started_at)?;
    if let Some(formerly) = &turn.formerly {
        promote::promote(connection, formerly, &turn.session, turn.started_at)?;
    }
    let head = connection
        .prepare_cached("SELECT t.turn_id, t.depth FROM sessions s JOIN turns t ON t.turn_id = s.head WHERE s.label = ?1")?
        .query_row([&turn.session], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)));
    let head = optional(head)?;
    let depth = head.as_ref().map_or(1, |(_, depth)| depth + 1);
    let insert = "INSERT INTO turns VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)";
    connection.prepare_cached(insert)?.execute(params![
        turn.turn_id,
        head.as_ref().map(|(id, _)| id),
        depth,
        turn.session,
        turn.agent,
        turn.request_id,
        turn.model,
        turn.provider,
        turn.stop_reason,
        turn.input_tokens,
        turn.output_tokens,
        turn.started_at,
        turn.duration_ms,
        turn.charged.as_ref().unwrap_or(&turn.agent),
        turn.cost_usd
    ])?;
    let mut message = connection.prepare_cached("INSERT INTO messages VALUES (?1, ?2, ?3, ?4)")?;
    message.execute(params![turn.turn_id, 0, "user", turn.user])?;
    if !turn.assistant.is_empty() {
        message.execute(params![turn.turn_id, 1, "assistant", turn.assistant])?;
    }
    for Speaker { id, name } in &turn.speakers {
        let sql = "INSERT INTO speakers (turn_id, speaker, name) VALUES (?1, ?2, ?3)";
        connection.prepare_cached(sql)?.execute(params![turn.turn_id, id, name])?;
    }
    for (n, call) in turn.tool_calls.iter().enumerate() {
        connection.prepare_cached("INSERT INTO tool_calls VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?.execute(params![
            turn.turn_id,
            n,
            call.call_id,
            call.name,
            call.status,
            call.summary,
            call.arguments,
            call.result
        ])?;
    }
    used::add(connection, turn, head.as_ref().map(|(id, _)| id.as_str()))?;
    connection
        .prepare_cached(
            "INSERT INTO sessions VALUES (?1, ?2, ?3, 1, ?4, ?4, NULL)
             ON CONFLICT (label) DO UPDATE SET agent = ?2, head = ?3, turns = turns + 1, updated_at = ?4",
        )?
        .execute(params![turn.session, turn.agent, turn.turn_id, turn.started_at])?;
    Ok(head.is_none())
}

impl Weight for ApplyTurns {
    fn bytes(&self) -> usize {
        self.turns.iter().map(TurnRecord::bytes).sum::<usize>() + 64
    }
    fn rows(&self) -> usize {
        self.turns.iter().map(|turn| 5 + turn.speakers.len() + turn.tool_calls.len()).sum::<usize>().max(1)
    }
}

impl ToolCall {
    /// The call as a [`ToolOutline`].
    pub fn outline(&self) -> serde_json::Value {
        let (call_id, name, status, summary) = (self.call_id.clone(), self.name.clone(), self.status.clone(), self.summary.clone());
        serde_json::json!(ToolOutline { call_id, name, status, summary })
    }
}

impl TurnRecord {
    /// The session that begins with it.
    fn begun(&self) -> NewSession {
        NewSession {
            session: self.session.clone(),
            agent: self.agent.clone(),
            turn_id: self.turn_id.clone(),
            request_id: self.request_id.clone(),
        }
    }

    fn bytes(&self) -> usize {
        let of = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let calls = self.tool_calls.iter().map(|call| 128 + of(&call.summary) + of(&call.arguments) + of(&call.result));
        let speakers = self.speakers.iter().map(|speaker| 64 + speaker.id.len() + of(&speaker.name));
        self.user.len() + self.assistant.len() + calls.sum::<usize>() + speakers.sum::<usize>() + 512
    }
}

/// Which of a session's turns may be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    Nothing,
    /// Those in which nobody spoke but one person: all that this one is known as, each `channel:sender`.
    Own(Vec<String>),
    All,
}

impl Reach {
    /// The speakers that a turn may have, as a JSON array; none for anybody.
    fn speakers(&self) -> Option<String> {
        match self {
            Self::Nothing => Some("[]".to_owned()),
            Self::Own(ids) => Some(serde_json::Value::from(ids.clone()).to_string()),
            Self::All => None,
        }
    }
}

/// One message of a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub role: String,
    pub content: String,
    /// Who said it, where others might have.
    pub name: Option<String>,
}

/// A session's newest messages, oldest first, within `bytes_max`; how many older ones exist, and how many between these were
/// not to be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    pub head: Option<String>,
    pub messages: Vec<Said>,
    pub dropped: u32,
    pub withheld: u32,
}

/// Reads back from the session's head along the parents, `turns_max` turns, those among them that are out of reach. A session that
/// has none yet, or none any more, goes on from that of `formerly`, as its next turn will.
pub fn history(
    connection: &Connection,
    session: &str,
    formerly: Option<&str>,
    reach: &Reach,
    turns_max: u32,
    bytes_max: usize,
) -> rusqlite::Result<History> {
    let mut head = head_of(connection, session)?;
    if let (None, Some(formerly)) = (&head, formerly) {
        head = head_of(connection, formerly)?;
    }
    let Some((head, turns)) = head else { return Ok(History::default()) };
    let mut query = connection.prepare_cached(
        "WITH RECURSIVE line (turn_id, n) AS (
           SELECT ?1, 0 UNION ALL
           SELECT t.parent_turn_id, line.n + 1 FROM line JOIN turns t ON t.turn_id = line.turn_id
             WHERE t.parent_turn_id IS NOT NULL AND line.n + 1 < ?2)
         SELECT m.role, m.content,
           CASE WHEN m.role = 'user' AND (SELECT count(*) FROM speakers s WHERE s.turn_id = line.turn_id) = 1
             THEN (SELECT s.name FROM speakers s WHERE s.turn_id = line.turn_id) END,
           ?3 IS NULL OR (EXISTS (SELECT 1 FROM speakers s WHERE s.turn_id = line.turn_id)
             AND NOT EXISTS (SELECT 1 FROM speakers s WHERE s.turn_id = line.turn_id
               AND s.speaker NOT IN (SELECT value FROM json_each(?3))))
         FROM line JOIN messages m ON m.turn_id = line.turn_id ORDER BY line.n, m.n DESC",
    )?;
    let rows = query.query_map(params![head, turns_max, reach.speakers()], |row| {
        Ok((Said { role: row.get(0)?, content: row.get(1)?, name: row.get(2)? }, row.get::<_, bool>(3)?))
    })?;
    let (mut messages, mut bytes, mut withheld) = (Vec::new(), 0, 0_u32);
    for row in rows {
        let (said, is_in_reach) = row?;
        if !is_in_reach {
            withheld += u32::from(said.role == "user");
            continue;
        }
        bytes += said.content.len() + said.name.as_ref().map_or(0, String::len);
        if bytes > bytes_max {
            break;
        }
        messages.push(said);
    }
    messages.reverse();
    // Whole turns only: an answer without its question would mislead the agent.
    if messages.first().is_some_and(|said| said.role == "assistant") {
        messages.remove(0);
    }
    // A turn has one question, but not always an answer.
    let given = u32::try_from(messages.iter().filter(|said| said.role == "user").count()).unwrap_or(u32::MAX);
    let dropped = turns.saturating_sub(given).saturating_sub(withheld) * 2;
    Ok(History { head: Some(head), messages, dropped, withheld: withheld * 2 })
}

/// The turns that lead to `head`, itself first: what its session is made of now, whatever the session's label was when
/// each was written. The newest `turns_max` of them.
pub fn line(connection: &Connection, head: &str, turns_max: u32) -> rusqlite::Result<Vec<String>> {
    let sql = "WITH RECURSIVE line (turn_id, n) AS (
                 SELECT ?1, 1 UNION ALL
                 SELECT t.parent_turn_id, line.n + 1 FROM line JOIN turns t ON t.turn_id = line.turn_id
                   WHERE t.parent_turn_id IS NOT NULL AND line.n < ?2)
               SELECT turn_id FROM line ORDER BY n";
    connection.prepare_cached(sql)?.query_map(params![head, turns_max], |row| row.get(0))?.collect()
}

/// The newest turn of a session that isn't archived, and how many there are.
fn head_of(connection: &Connection, label: &str) -> rusqlite::Result<Option<(String, u32)>> {
    let sql = "SELECT head, turns FROM sessions WHERE label = ?1 AND archived_at IS NULL";
    optional(connection.prepare_cached(sql)?.query_row([label], |row| Ok((row.get(0)?, row.get(1)?))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A ledger of turns in memory.
    pub(super) fn ledger() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        Ledger::Agents.migrations().iter().for_each(|step| connection.execute_batch(step.sql).unwrap());
        connection
    }

    pub(super) fn turn(id: &str, session: &str) -> TurnRecord {
        TurnRecord {
            turn_id: id.to_owned(),
            speakers: Vec::new(),
            request_id: format!("req_{id}"),
            session: session.to_owned(),
            formerly: None,
            agent: "echo".to_owned(),
            user: format!("asked {id}"),
            assistant: format!("answered {id}"),
            model: None,
            provider: None,
            stop_reason: "end_turn".to_owned(),
            input_tokens: None,
            output_tokens: Some(2),
            started_at: 1,
            duration_ms: 1.0,
            tool_calls: Vec::new(),
            charged: None,
            cost_usd: None,
        }
    }

    pub(super) fn texts(connection: &Connection, sql: &str) -> Vec<String> {
        connection.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }

    #[test]
    fn a_tool_call_is_kept_with_what_went_in_and_out() {
        let call = ToolCall {
            call_id: "c1".to_owned(),
            name: "files__read".to_owned(),
            status: "completed".to_owned(),
            summary: None,
            arguments: Some("{}".to_owned()),
            result: Some("text".to_owned()),
        };
        let connection = ledger();
        let turns = vec![TurnRecord { tool_calls: vec![call], ..turn("t1", "a") }];
        ApplyTurns { upto_finish_seq: 1, turns }.apply(&connection).unwrap();
        assert_eq!(texts(&connection, "SELECT arguments || ' ' || result FROM tool_calls"), ["{} text"]);
    }

    #[test]
    fn a_line_is_what_a_session_is_made_of_now() {
        let connection = ledger();
        let apply = |seq: i64, turns: Vec<TurnRecord>| ApplyTurns { upto_finish_seq: seq, turns }.apply(&connection).unwrap();
        let of = |label: &str, formerly: Option<&str>| -> Vec<String> {
            let head = history(&connection, label, formerly, &Reach::All, 50, 1 << 20).unwrap().head;
            head.map(|head| line(&connection, &head, 10).unwrap()).unwrap_or_default()
        };
        apply(1, vec![turn("t1", "dm:sms:1"), turn("t2", "dm:sms:1")]);
        assert_eq!(of("dm:ann", Some("dm:sms:1")), ["t2", "t1"], "its next turn goes on from there");
        apply(2, vec![TurnRecord { formerly: Some("dm:sms:1".to_owned()), ..turn("t3", "dm:ann") }]);
        assert_eq!(of("dm:ann", None), ["t3", "t2", "t1"], "the stranger's turns are the contact's");
        assert!(of("dm:sms:1", None).is_empty(), "and no longer the stranger's, who may be another one by now");
        let (from, to, turn_2) = ("dm:ann".to_owned(), "what-if".to_owned(), Some("t2".to_owned()));
        ForkSession { from, to, turn: turn_2, at: 5 }.apply(&connection).unwrap();
        assert_eq!(of("what-if", None), ["t2", "t1"]);
        let name = "dm:ann".to_owned();
        ArchiveSession { name, formerly: None, undo: false, found: None, begun_by: None, at: 6 }.apply(&connection).unwrap();
        assert!(of("dm:ann", None).is_empty(), "what was put away is remembered no more");
        apply(3, vec![turn("t4", "dm:ann")]);
        assert_eq!(of("dm:ann", None), ["t4"]);
        assert_eq!(line(&connection, "t3", 2).unwrap(), ["t3", "t2"]);
    }

    fn spoken(id: &str, speakers: &[(&str, Option<&str>)]) -> TurnRecord {
        let speaker = |(id, name): &(&str, Option<&str>)| Speaker { id: (*id).to_owned(), name: name.map(str::to_owned) };
        TurnRecord { speakers: speakers.iter().map(speaker).collect(), ..turn(id, "group:g") }
    }

    #[test]
    fn of_a_session_those_turns_are_told_that_are_in_reach() {
        let connection = ledger();
        let turns = vec![
            spoken("t1", &[("sms:ann", Some("Ann"))]),
            spoken("t2", &[("sms:bob", None)]),
            spoken("t3", &[("mail:ann", None), ("sms:bob", None)]),
            spoken("t4", &[("mail:ann", Some("Ann"))]),
            spoken("t5", &[]),
        ];
        ApplyTurns { upto_finish_seq: 1, turns }.apply(&connection).unwrap();
        let told = |reach: Reach| {
            let told = history(&connection, "group:g", None, &reach, 50, 1 << 20).unwrap();
            assert_eq!(told.head.as_deref(), Some("t5"), "whatever is told of it, the next turn stands behind it");
            let asked = told.messages.into_iter().filter(|said| said.role == "user");
            let asked: Vec<String> = asked.map(|said| format!("{}{}", said.name.unwrap_or_default(), said.content)).collect();
            (asked, told.dropped, told.withheld)
        };
        let own = |ids: &[&str]| told(Reach::Own(ids.iter().map(|id| (*id).to_owned()).collect()));
        let all = ["Annasked t1", "asked t2", "asked t3", "Annasked t4", "asked t5"].map(str::to_owned).to_vec();
        assert_eq!(told(Reach::All), (all, 0, 0));
        assert_eq!(told(Reach::Nothing), (Vec::new(), 0, 10));
        assert_eq!(own(&["sms:ann", "mail:ann"]), (vec!["Annasked t1".to_owned(), "Annasked t4".to_owned()], 0, 6));
        assert_eq!(own(&["sms:bob"]), (vec!["asked t2".to_owned()], 0, 8), "what was answered with another's words is theirs too");
        assert_eq!(own(&["sms:eve"]), (Vec::new(), 0, 10));
    }

    #[test]
    fn a_turn_of_any_texts_and_numbers_can_be_written_and_read() {
        let strange = "\0\u{7f}\u{fffd}\"\\ \u{1f600}".to_owned();
        let text = || Some(strange.clone());
        let (call_id, name, status) = ("c".to_owned(), strange.clone(), "completed".to_owned());
        let call = ToolCall { call_id, name, status, summary: text(), arguments: text(), result: None };
        let one = TurnRecord { user: strange.clone(), tool_calls: vec![call], cost_usd: Some(f64::INFINITY), ..turn("t1", "dm:a") };
        let read: TurnRecord = serde_json::from_str(&one.to_json()).unwrap();
        assert_eq!((&read.user, &read.tool_calls[0].arguments), (&strange, &text()));
        assert_eq!(read.cost_usd, None, "no number that JSON has");
    }

    #[test]
    fn a_turn_of_an_earlier_version_has_no_former_label() {
        let mut written = serde_json::to_value(turn("t1", "dm:a")).unwrap();
        assert!(written.get("formerly").is_none());
        written["formerly"] = "dm:sms:1".into();
        assert_eq!(serde_json::from_value::<TurnRecord>(written).unwrap().formerly.as_deref(), Some("dm:sms:1"));
    }
}
