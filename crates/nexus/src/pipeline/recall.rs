//! What an agent is told of the past beyond its session's newest turns: the best matches of the message in
//! its own cortex, as far as the access decision lets it see them. Never waited for: what isn't found at
//! once isn't told.

use super::{Pipeline, Prepared};
use crate::agent::{Memory, Message};
use crate::error_text::describe;
use crate::ledger::agents::line;
use crate::ledger::cortex::find::{Ask, Hit, each};
use crate::ledger::cortex::{self, CortexError, ENTRY_BYTES_MAX};
use crate::search::{For, SearchError};
use nexus_core::config::DataAccess;
use nexus_core::search::{any_of, cut};
use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long an agent's memory is searched.
const RECALL_LIMIT: Duration = Duration::from_millis(50);
/// Entries that are looked at; the best may all be in the history already.
const CANDIDATES_MAX: usize = 128;
/// Longest text that is told whole, in bytes; of a longer one what is around the words.
const WHOLE_BYTES_MAX: usize = 1024;
/// The newest turns of a session that `contextual` reaches.
const LINE_TURNS_MAX: u32 = 1024;

/// What is to be found.
struct Wanted {
    agent: String,
    /// Only in the line of this turn.
    head: Option<String>,
    ask: Ask,
    matches: usize,
    bytes_max: usize,
    /// Texts that the agent is told anyway.
    known: HashSet<String>,
}

impl Pipeline {
    /// The memory of this run's agent; empty without one, or when the search fails or is late, which the
    /// trace tells.
    pub(super) async fn recall(&self, prepared: &mut Prepared, history: &[Message]) -> Vec<Memory> {
        let Some(wanted) = wanted(prepared, history) else { return Vec::new() };
        let (agent, began) = (wanted.agent.clone(), Instant::now());
        let turns = self.ledgers.agents.readers.clone();
        let search = move |directory: &Path, until: Instant| -> Result<Vec<Memory>, SearchError> {
            let mut wanted = wanted;
            if let Some(head) = &wanted.head {
                // By the ledger and not by the label of each entry, which is as old as the entry.
                wanted.ask.turns = Some(turns.read_now(|connection| line(connection, head, LINE_TURNS_MAX))?);
            }
            choose(directory, wanted, until)
        };
        let found = self.search.within(For::Turn, RECALL_LIMIT, search).await;
        let Some(section) = &mut prepared.request.agent else { return Vec::new() };
        match found {
            Ok(memory) => {
                section.memory_matches = u32::try_from(memory.len()).unwrap_or(u32::MAX);
                memory
            }
            Err(error) => {
                if let SearchError::Index(CortexError::Damaged { .. }) = &error {
                    self.search.suspect(&agent, began);
                }
                section.memory_error = Some(describe(&error));
                Vec::new()
            }
        }
    }
}

fn wanted(prepared: &Prepared, history: &[Message]) -> Option<Wanted> {
    let memory = &prepared.agent.memory;
    if memory.matches == 0 || prepared.agent.harmless {
        return None; // the built-in echo has no memory
    }
    let head = match prepared.request.access.as_ref()?.permissions.data_access {
        DataAccess::None | DataAccess::Minimal => return None,
        // The turn that the history ends with. A session that has none has no past.
        DataAccess::Contextual => Some(prepared.request.agent.as_ref()?.parent_turn_id.clone()?),
        DataAccess::Full => None,
    };
    let message = prepared.said();
    let own = prepared.requests().map(|request| request.event.content.as_str());
    let told = history.iter().map(|earlier| earlier.content.as_str()).chain([message.as_str()]).chain(own);
    Some(Wanted {
        agent: prepared.agent.name.clone(),
        head,
        ask: Ask { expression: any_of(&message)?, session: None, turns: None, kind: None, since: i64::MIN, limit: CANDIDATES_MAX },
        matches: usize::try_from(memory.matches).unwrap_or(usize::MAX),
        bytes_max: usize::try_from(memory.max_bytes).unwrap_or(usize::MAX),
        known: told.map(|text| cut(text, ENTRY_BYTES_MAX).to_owned()).collect(),
    })
}

/// The best entries that the agent isn't told anyway, as long as there is room for them.
fn choose(directory: &Path, mut wanted: Wanted, until: Instant) -> Result<Vec<Memory>, SearchError> {
    let mut memory: Vec<Memory> = Vec::new();
    let mut left = wanted.bytes_max;
    each(&cortex::path(directory, &wanted.agent), &wanted.ask, until, |hit| {
        if !wanted.known.insert(hit.text.clone()) {
            return true; // also of two entries with one text, as what is said again and again
        }
        let one = told(hit);
        if one.text.len() <= left {
            left -= one.text.len();
            memory.push(one);
        }
        memory.len() < wanted.matches
    })?;
    Ok(memory)
}

fn told(hit: Hit) -> Memory {
    let text = if hit.text.len() <= WHOLE_BYTES_MAX { hit.text } else { hit.snippet };
    Memory { text, at: hit.at, session: hit.session }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ledger::cortex::{Entry, Kind, apply, open, path};

    fn chosen(texts: &[&str], matches: usize, bytes_max: usize, known: &[&str]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let entry = |(n, text): (usize, &&str)| Entry {
            kind: Kind::Event,
            source: n.to_string(),
            turn: format!("turn_{n}"),
            session: "s".into(),
            channel: "fake".into(),
            sender: "ann".into(),
            at: i64::try_from(n).unwrap(),
            text: (*text).to_owned(),
        };
        let entries: Vec<Entry> = texts.iter().enumerate().map(entry).collect();
        apply(&mut open(&path(directory.path(), "helper"), 1).unwrap(), 1, &entries).unwrap();
        let wanted = Wanted {
            agent: "helper".into(),
            head: None,
            ask: Ask {
                expression: any_of("where is the needle").unwrap(),
                session: None,
                turns: None,
                kind: None,
                since: 0,
                limit: CANDIDATES_MAX,
            },
            matches,
            bytes_max,
            known: known.iter().map(|text| (*text).to_owned()).collect(),
        };
        let memory = choose(directory.path(), wanted, Instant::now() + Duration::from_secs(60)).unwrap();
        memory.into_iter().map(|memory| memory.text).collect()
    }

    #[test]
    fn what_is_told_anyway_or_twice_takes_no_place() {
        let texts = ["needle one", "needle two", "needle two", "nothing of it"];
        assert_eq!(chosen(&texts, 5, 4096, &[]), ["needle two", "needle one"]);
        assert_eq!(chosen(&texts, 5, 4096, &["needle two"]), ["needle one"]);
        assert_eq!(chosen(&texts, 1, 4096, &[]).len(), 1);
    }

    #[test]
    fn texts_keep_within_the_budget_and_of_long_ones_the_place_is_told() {
        let long = format!("{}needle {}", "hay ".repeat(2000), "straw ".repeat(2000));
        let told = chosen(&[&*long, "needle in short"], 5, 4096, &[]);
        assert_eq!(told.len(), 2);
        assert!(told.iter().all(|text| text.contains("needle") && text.len() <= WHOLE_BYTES_MAX), "{told:?}");
        assert_eq!(chosen(&[&*long, "needle in short"], 5, 20, &[]), ["needle in short"]);
        assert!(chosen(&[&*long, "needle in short"], 5, 10, &[]).is_empty());
    }
}
