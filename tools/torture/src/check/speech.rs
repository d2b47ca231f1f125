//! What speakers said arrived as they said it: each word of a reply once and in its order, in as many parts as it left in;
//! what was shown while it was being made is that reply, ends as its run did, and is not sent besides; a reply that broke
//! off is marked as such. The words are numbered, so the platform's word is enough for that.

use super::{Copy, rows};
use crate::journal;
use crate::report::Counts;
use crate::speech::{SAYS, has_other_words, numbers};
use crate::world::{Kind, World};
use anyhow::Result;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Most findings that one look names.
const NAMED_MAX: usize = 10;

/// A message that was decided for a run.
struct Part {
    key: String,
    status: String,
    content: String,
}

/// One run of a speaker, as the ledger has it.
struct Run {
    id: String,
    status: String,
    /// Its request's, if it is the last run of that.
    request: String,
}

impl Run {
    fn all(copy: &Copy) -> Result<Vec<Self>> {
        let sql = "SELECT r.run_id, r.status, coalesce(q.status, '') FROM runs r
                   LEFT JOIN nexus_requests q ON q.event_seq = r.event_seq AND q.attempts = r.attempt WHERE r.agent = 'speaker'";
        rows(&copy.nexus, sql, |row| Ok(Self { id: row.get(0)?, status: row.get(1)?, request: row.get(2)? }))
    }
}

/// What is known of the reply of one run.
struct Reply<'a> {
    run: &'a Run,
    /// What it answers, and of how many words it is.
    content: &'a str,
    words: u64,
    /// In the order in which they are to leave, and what arrived, in its order.
    parts: &'a [Part],
    arrived: &'a [String],
}

impl Reply<'_> {
    fn wrong(&self) -> Vec<String> {
        let Self { run: Run { id, status, request }, content, words, parts, arrived } = self;
        let of_answer = format!("{id}:1:");
        let own: Vec<&Part> = parts.iter().filter(|part| part.key.starts_with(&of_answer)).collect();
        let decided: Vec<u64> = own.iter().flat_map(|part| numbers(&part.content, content)).collect();
        let count = decided.len() as u64;
        let mut found = Vec::new();
        if !decided.iter().copied().eq(0..count) || count > *words {
            found.push(format!("the parts of the reply of {id}, of {words} words, hold these: {decided:?}"));
        } else if status == "finished" && request == "completed" && count < *words {
            found.push(format!("{id} is finished, and {count} of its {words} words leave"));
        }
        if status == "failed" && count > 0 && !parts.iter().any(|part| has_other_words(&part.content)) {
            found.push(format!("the reply of {id} broke off after {count} words, and nothing says so"));
        }
        if status == "interrupted" && request == "failed" && !parts.iter().any(|part| part.key == format!("{id}:interrupted:0")) {
            found.push(format!("{id} was interrupted, and nobody was told"));
        }
        let heard: Vec<u64> = arrived.iter().flat_map(|text| numbers(text, content)).collect();
        if heard.windows(2).any(|pair| pair[0] >= pair[1]) {
            found.push(format!("the words of the reply of {id} arrived as {heard:?}"));
        }
        let sent = own.iter().filter(|part| part.status == "sent").flat_map(|part| numbers(&part.content, content));
        let lost: Vec<u64> = sent.filter(|number| !heard.contains(number)).collect();
        if !lost.is_empty() {
            found.push(format!("these words of the reply of {id} are `sent` and never arrived: {lost:?}"));
        }
        found
    }
}

/// Every reply of a speaker, and every stream.
pub(super) fn whole(world: &World, copy: &Copy, counts: &mut Counts) -> Result<Vec<String>> {
    let runs = Run::all(copy)?;
    let says = says(world)?;
    let mut parts: HashMap<String, Vec<Part>> = HashMap::new();
    let sql = "SELECT run_id, idempotency_key, status, content, channel FROM deliveries WHERE run_id IS NOT NULL ORDER BY seq";
    let all: Vec<(String, Part, String)> =
        rows(&copy.nexus, sql, |row| Ok((row.get(0)?, Part { key: row.get(1)?, status: row.get(2)?, content: row.get(3)? }, row.get(4)?)))?;
    for (run, part, channel) in all {
        counts.blocks += u64::from(channel == Kind::Blocks.name());
        parts.entry(run).or_default().push(part);
    }
    let sends = journal::values(&world.sends())?;
    let mut arrived: HashMap<&str, Vec<String>> = HashMap::new();
    for send in &sends {
        let run = send["key"].as_str().and_then(|key| key.split(':').next()).unwrap_or_default();
        arrived.entry(run).or_default().push(send["text"].as_str().unwrap_or_default().to_owned());
    }
    let wrong = |run: &Run| {
        // Who didn't get to the first word has none.
        let Some((content, words)) = says.get(&run.id) else { return Vec::new() };
        let parts = parts.get(&run.id).map(Vec::as_slice).unwrap_or_default();
        let arrived = arrived.get(run.id.as_str()).map(Vec::as_slice).unwrap_or_default();
        Reply { run, content, words: *words, parts, arrived }.wrong()
    };
    let mut found: Vec<String> = runs.iter().flat_map(wrong).collect();
    found.extend(streams(world, &runs, &says, &sends, counts)?);
    found.truncate(NAMED_MAX);
    Ok(found)
}

/// By run, what it answers and in how many words.
type Says = HashMap<String, (String, u64)>;

fn says(world: &World) -> Result<Says> {
    let journal = journal::values(&world.agent_journal())?;
    let read = |line: &Value| Some((line["run_id"].as_str()?.to_owned(), (line["content"].as_str()?.to_owned(), line["words"].as_u64()?)));
    Ok(journal.iter().filter(|line| line["what"] == SAYS).filter_map(read).collect())
}

/// One stream, as its process was told it.
#[derive(Default)]
struct Stream {
    run: String,
    starts: u64,
    shown: String,
    /// `end` or `error`, and the text that came with it.
    last: Option<(String, String)>,
    goes_on: bool,
}

impl Stream {
    /// `content` is what its run answers.
    fn wrong(&self, key: &str, run: Option<&Run>, content: Option<&str>, was_sent: bool) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(content) = content {
            let shown = numbers(&self.shown, content);
            let all = self.shown.split_whitespace().count() as u64;
            if !shown.iter().copied().eq(0..all) {
                found.push(format!("the stream {key} showed {all} words, and of its reply these: {shown:?}"));
            }
        }
        if self.starts != 1 {
            found.push(format!("the stream {key} was begun {} times", self.starts));
        }
        if self.goes_on {
            found.push(format!("the stream {key} goes on after its end"));
        }
        if was_sent && !self.shown.is_empty() {
            found.push(format!("{key} was shown while it was being made, and sent besides"));
        }
        let Some((what, text)) = &self.last else { return found };
        let (is_whole, is_finished) = (what == "end", run.is_some_and(|run| run.status == "finished"));
        // Of an answer that a defect of the daemon broke off no partial is known.
        let is_unknown = !is_whole && text.is_empty();
        if !is_unknown && !self.shown.split_whitespace().eq(text.split_whitespace()) {
            found.push(format!("the stream {key} was told piece by piece as `{}`, and in the end as `{text}`", self.shown));
        }
        if !is_unknown && is_whole != is_finished {
            found.push(format!("the stream {key} ended with `{what}`, and its run is {:?}", run.map(|run| run.status.as_str())));
        }
        found
    }
}

fn streams(world: &World, runs: &[Run], says: &Says, sends: &[Value], counts: &mut Counts) -> Result<Vec<String>> {
    let mut all: BTreeMap<String, Stream> = BTreeMap::new();
    for line in journal::values(&world.streams())? {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let stream = all.entry(text("key")).or_default();
        stream.run = text("run");
        stream.goes_on |= stream.last.is_some();
        match line["what"].as_str() {
            Some("start") => stream.starts += 1,
            Some("token") => stream.shown.push_str(&text("text")),
            Some(_) | None => stream.last = Some((text("what"), text("text"))),
        }
    }
    let by_id: HashMap<&str, &Run> = runs.iter().map(|run| (run.id.as_str(), run)).collect();
    // By the key of the whole, of which each piece has its own.
    let sent: HashSet<&str> = sends
        .iter()
        .filter(|send| send["streamed"] != true)
        .filter_map(|send| send["key"].as_str().map(|key| key.split('/').next().unwrap_or(key)))
        .collect();
    let mut found = Vec::new();
    for (key, stream) in &all {
        counts.streams += u64::from(stream.last.as_ref().is_some_and(|(what, _)| what == "end"));
        counts.broken_streams += u64::from(stream.last.as_ref().is_none_or(|(what, _)| what != "end"));
        let content = says.get(&stream.run).map(|(content, _)| content.as_str());
        found.extend(stream.wrong(key, by_id.get(stream.run.as_str()).copied(), content, sent.contains(key.as_str())));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::made::Made;
    use super::*;
    use crate::speech::word;
    use serde_json::json;
    use std::ops::Range;

    fn words(numbers: Range<u64>) -> String {
        numbers.map(|number| word("live a 1", number)).collect::<Vec<_>>().join(" ")
    }

    /// A world in which a speaker answered one message in six words.
    struct Spoken(Made);

    impl Spoken {
        fn new() -> Self {
            let made = Made::new(Kind::Live);
            made.written(1);
            made.accepted(1, 1);
            made.noted("called", 1, "run-1");
            let line = json!({ "what": SAYS, "content": made.content(1), "run_id": "run-1", "words": 6 });
            journal::append(&made.world.agent_journal(), &line.to_string()).unwrap();
            made.noted("answered", 1, "run-1");
            made.nexus.execute_batch("INSERT INTO runs VALUES ('run-1', 1, 1, 'speaker', 'finished')").unwrap();
            Self(made)
        }

        /// A part is decided, and has this status.
        fn decided(self, seq: i64, key: &str, status: &str, text: &str) -> Self {
            let sql = "INSERT INTO deliveries VALUES (?1, 1, ?2, ?3, 'live', 'a', 'p', ?4, 1, 'run-1', 0, 0)";
            self.0.nexus.execute(sql, rusqlite::params![seq, key, status, text]).unwrap();
            self
        }

        fn arrived(self, key: &str, text: &str, is_streamed: bool) -> Self {
            let line = json!({ "key": key, "channel": "live", "account": "a", "to": "p", "text": text, "streamed": is_streamed });
            journal::append(&self.0.world.send_calls(), &line.to_string()).unwrap();
            journal::append(&self.0.world.sends(), &line.to_string()).unwrap();
            self
        }

        fn part(self, seq: i64, numbers: Range<u64>) -> Self {
            let (key, text) = (format!("run-1:1:{}", seq - 1), words(numbers));
            self.decided(seq, &key, "sent", &text).arrived(&key, &text, false)
        }

        fn told(self, what: &str, text: &str) -> Self {
            let line = json!({ "what": what, "key": "run-1:1:0", "run": "run-1", "text": text });
            journal::append(&self.0.world.streams(), &line.to_string()).unwrap();
            self
        }

        /// The same as a stream, up to its end.
        fn shown(self, numbers: Range<u64>) -> Self {
            let (first, last) = (words(numbers.start..numbers.start + 1), words(numbers.start + 1..numbers.end));
            self.told("start", "").told("token", &first).told("token", &format!(" {last}"))
        }

        fn ended(self, sql: &str) -> Self {
            self.0.nexus.execute_batch(sql).unwrap();
            self
        }

        #[track_caller]
        fn holds(&self) {
            self.0.holds();
        }

        #[track_caller]
        fn breaks(&self, what: &str) {
            self.0.breaks(what);
        }
    }

    #[test]
    fn blocks_are_one_after_the_other_and_all_there() {
        Spoken::new().part(1, 0..2).part(2, 2..6).holds();
        Spoken::new().part(1, 0..2).part(2, 3..6).breaks("the parts of the reply of run-1, of 6 words, hold these: [0, 1, 3, 4, 5]");
        Spoken::new().part(1, 0..2).part(2, 0..6).breaks("hold these: [0, 1, 0, 1");
        Spoken::new().part(1, 0..2).part(2, 2..5).breaks("run-1 is finished, and 5 of its 6 words leave");
        Spoken::new().part(1, 2..6).part(2, 0..2).breaks("hold these: [2, 3, 4, 5, 0, 1]");
    }

    #[test]
    fn a_block_that_came_twice_or_late_or_never_is_found() {
        let two = || Spoken::new().decided(1, "run-1:1:0", "sent", &words(0..2)).decided(2, "run-1:1:1", "sent", &words(2..6));
        let first = |spoken: Spoken| spoken.arrived("run-1:1:0", &words(0..2), false);
        let second = |spoken: Spoken| spoken.arrived("run-1:1:1", &words(2..6), false);
        second(first(two())).holds();
        second(first(first(two()))).breaks("the words of the reply of run-1 arrived as [0, 1, 0, 1");
        first(second(two())).breaks("the words of the reply of run-1 arrived as [2, 3, 4, 5, 0, 1]");
        first(two()).breaks("are `sent` and never arrived: [2, 3, 4, 5]");
        first(two()).ended("UPDATE deliveries SET status = 'uncertain' WHERE seq = 2").holds();
    }

    #[test]
    fn a_reply_that_broke_off_says_so() {
        let failed = || Spoken::new().ended("UPDATE runs SET status = 'failed'; UPDATE nexus_requests SET status = 'failed'");
        failed().part(1, 0..3).breaks("the reply of run-1 broke off after 3 words, and nothing says so");
        let told = |spoken: Spoken, key: &str| spoken.decided(2, key, "uncertain", "The agent failed.");
        told(failed().part(1, 0..3), "run-1:1:1").holds();
        let interrupted = || Spoken::new().ended("UPDATE runs SET status = 'interrupted'; UPDATE nexus_requests SET status = 'failed'");
        interrupted().part(1, 0..3).breaks("run-1 was interrupted, and nobody was told");
        told(interrupted().part(1, 0..3), "run-1:interrupted:0").holds();
    }

    #[test]
    fn a_stream_is_the_reply_once_and_ends_as_its_run_does() {
        let shown = || {
            let shown = Spoken::new().decided(1, "run-1:1:0", "sent", &words(0..6)).shown(0..6);
            shown.arrived("run-1:1:0", &words(0..6), true)
        };
        let whole = || shown().told("end", &words(0..6));
        whole().holds();
        shown().holds();
        shown().told("end", &words(0..5)).breaks("the stream run-1:1:0 was told piece by piece as");
        whole().told("token", " more").breaks("the stream run-1:1:0 goes on after its end");
        whole().told("start", "").breaks("the stream run-1:1:0 was begun 2 times");
        whole().arrived("run-1:1:0/1", &words(0..6), false).breaks("run-1:1:0 was shown while it was being made, and sent besides");
        shown().told("error", &words(0..6)).breaks("ended with `error`, and its run is Some(\"finished\")");
        shown().told("error", "").holds();
        whole().ended("UPDATE runs SET status = 'failed'").breaks("ended with `end`, and its run is Some(\"failed\")");
    }

    #[test]
    fn a_stream_without_an_end_shows_a_beginning_of_its_reply_and_nothing_else() {
        let begun = || Spoken::new().decided(1, "run-1:1:0", "uncertain", &words(0..6)).told("start", "");
        begun().told("token", &words(0..2)).holds();
        begun().told("token", &words(1..3)).breaks("the stream run-1:1:0 showed 2 words, and of its reply these: [1, 2]");
        begun().told("token", &words(0..2)).told("token", " live-a-2#2").breaks("showed 3 words, and of its reply these: [0, 1]");
    }
}
