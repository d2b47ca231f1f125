//! A turn that a person was told to have stopped has ended for that, without a reply; and no more turns end so than stops were
//! asked for that may have met one. That its agent is not asked again is looked at with all calls of agents.

use super::{Copy, count, rows, tally, text};
use crate::journal;
use crate::stops::{ANSWERED, ASKED, ENDED, IDLE, REASON, STOPPED};
use crate::world::World;
use anyhow::Result;
use std::collections::{BTreeMap, HashSet};

/// Most findings that one look names.
const NAMED_MAX: usize = 5;

/// The runs, each the last of its request, that ended because a person stopped them. None where nobody asked for that.
pub(super) fn runs(world: &World, copy: &Copy) -> Result<HashSet<String>> {
    if journal::lines(&world.stops())?.is_empty() {
        return Ok(HashSet::new());
    }
    let sql = format!(
        "SELECT r.run_id FROM runs r JOIN nexus_requests q ON q.event_seq = r.event_seq AND q.attempts = r.attempt
         WHERE q.status = 'completed' AND q.reason = '{REASON}'"
    );
    Ok(rows(&copy.nexus, &sql, |row| row.get(0))?.into_iter().collect())
}

/// Looks at every stop.
pub(super) fn kept(world: &World, copy: &Copy) -> Result<Vec<String>> {
    let stops = journal::values(&world.stops())?;
    if stops.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!("SELECT request_id, coalesce(session, ''), status FROM nexus_requests WHERE reason = '{REASON}'");
    let ended: Vec<(String, String, String)> = rows(&copy.nexus, &sql, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let of = |what: &'static str| stops.iter().filter(move |stop| stop["what"] == what);
    let asked = tally(of(ASKED).map(|stop| text(stop, "session")));
    let in_vain = tally(of(ANSWERED).filter(|stop| stop["result"] == IDLE || stop["result"] == ENDED).map(|stop| text(stop, "session")));
    let mut found: Vec<String> = Vec::new();
    for (session, times) in tally(ended.iter().map(|(_, session, _)| session.as_str())) {
        let times_of = |tally: &BTreeMap<String, u64>| tally.get(session).copied().unwrap_or(0);
        let most = times_of(&asked).saturating_sub(times_of(&in_vain));
        if times > most {
            found.push(format!(
                "in session {session} {times} requests ended as stopped, and {most} stops that may have met one were asked for"
            ));
        }
    }
    let open = ended.iter().filter(|(_, _, status)| status != "completed");
    found.extend(open.map(|(request, _, status)| format!("request {request} was stopped and is `{status}`")));
    let known: HashSet<&str> = ended.iter().map(|(request, _, _)| request.as_str()).collect();
    let told = of(ANSWERED).filter(|stop| stop["result"] == STOPPED).map(|stop| text(stop, "request_id"));
    let lost = told.filter(|request| !known.contains(request.as_str()));
    found.extend(lost.map(|request| format!("request {request} was answered as stopped, and did not end for that")));
    let sql = format!(
        "SELECT count(*) FROM deliveries d JOIN nexus_requests q ON q.event_seq = d.event_seq
         WHERE q.reason = '{REASON}' AND d.run_id IS NOT NULL"
    );
    let replies = count(&copy.nexus, &sql)?;
    found.extend((replies > 0).then(|| format!("requests that were stopped have {replies} replies")));
    found.truncate(NAMED_MAX);
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::made::{Made, tells};
    use super::*;
    use crate::world::{Kind, OnInterrupted};
    use serde_json::json;

    /// Message 1 was stopped amid its turn, message 2 is answered.
    fn stopped() -> Made {
        let made = Made::new(Kind::Acked);
        for number in [1, 2] {
            made.written(number);
            made.accepted(number, number);
        }
        made.noted("called", 1, "run-1");
        made.nexus.execute_batch("INSERT INTO runs VALUES ('run-1', 1, 1, 'worker', 'finished')").unwrap();
        made.ran(2, 2, "run-2");
        made.delivered(2, 2, "key-2");
        let columns = ["request_id", "session", "reason"].map(|name| format!("ALTER TABLE nexus_requests ADD COLUMN {name} TEXT;"));
        made.nexus.execute_batch(&columns.concat()).unwrap();
        let sql = "UPDATE nexus_requests SET request_id = 'req_' || event_seq, session = 's';
                   UPDATE nexus_requests SET reason = ?1 WHERE event_seq = 1";
        made.nexus.execute_batch(&sql.replace("?1", &format!("'{REASON}'"))).unwrap();
        made
    }

    fn asked(made: &Made, session: &str) {
        let line = json!({ "what": ASKED, "session": session });
        journal::append(&made.world.stops(), &line.to_string()).unwrap();
    }

    fn answered(made: &Made, request: &str, result: &str) {
        let line = json!({ "what": ANSWERED, "session": "s", "result": result, "request_id": request });
        journal::append(&made.world.stops(), &line.to_string()).unwrap();
    }

    #[test]
    fn what_was_stopped_needs_no_answer() {
        let made = stopped();
        asked(&made, "s");
        made.holds();
        answered(&made, "req_1", STOPPED);
        asked(&made, "s");
        answered(&made, "req_2", ENDED);
        made.holds();
    }

    #[test]
    fn a_stop_that_met_no_turn_vouches_for_none() {
        for result in [ENDED, IDLE] {
            let made = stopped();
            asked(&made, "s");
            answered(&made, "req_2", result);
            made.breaks("in session s 1 requests ended as stopped, and 0 stops that may have met one were asked for");
        }
    }

    #[test]
    fn what_nobody_asked_to_stop_needs_one() {
        let made = stopped();
        made.breaks("runs are finished whose agents did not come to their end: [\"run-1\"]");
        asked(&made, "another");
        made.breaks("in session s 1 requests ended as stopped, and 0 stops that may have met one were asked for");
    }

    #[test]
    fn a_stop_that_was_answered_is_kept_and_nothing_is_sent_for_it() {
        let with = |sql: &str, request: &str| {
            let made = stopped();
            asked(&made, "s");
            answered(&made, request, STOPPED);
            made.nexus.execute_batch(sql).unwrap();
            made.found(OnInterrupted::Auto).concat()
        };
        tells(&with("", "req_2"), "request req_2 was answered as stopped, and did not end for that");
        tells(&with("UPDATE nexus_requests SET status = 'failed' WHERE event_seq = 1", "req_1"), "was stopped and is `failed`");
        let reply = "INSERT INTO deliveries SELECT 9, 1, 'key-9', 'discarded', channel, account_id, target, content, 0, 'run-1', 0, 0 FROM deliveries";
        tells(&with(reply, "req_1"), "requests that were stopped have 1 replies");
    }
}
