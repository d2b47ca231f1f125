//! What an agent's runs and a plugin's calls cost, and whether they may go on: limits and what was used to a verdict. It reads no
//! ledger; what was spent comes in, as does the time.

mod meter;

use crate::config::Spending;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde::Serialize;

pub use meter::{Amount, Meter, Watched};

/// Bytes of text that count as one token where a provider doesn't count.
pub const BYTES_PER_TOKEN: usize = 4;

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Tokens of a text that nobody counted, rounded up.
pub fn estimated_tokens(bytes: usize) -> u64 {
    u64::try_from(bytes.div_ceil(BYTES_PER_TOKEN)).unwrap_or(u64::MAX)
}

/// What so many tokens cost in US dollars; `None` without both prices.
pub fn cost_usd(spending: &Spending, input_tokens: u64, output_tokens: u64) -> Option<f64> {
    let million = 1_000_000.0;
    let input = spending.usd_per_million_input? * input_tokens as f64 / million;
    Some(input + spending.usd_per_million_output? * output_tokens as f64 / million)
}

/// What an agent has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spent {
    /// By the turns that the session is made of now.
    pub session_tokens: u64,
    pub session_usd: f64,
    /// In all sessions, since the day began.
    pub day_tokens: u64,
    pub day_usd: f64,
}

/// The day that a moment belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct Day {
    /// Unix milliseconds.
    pub from_ms: i64,
    /// When the next one begins, as a person reads it.
    pub until: String,
}

/// The day in a time zone. Where the zone has none for it, a day of UTC.
pub fn day(now_ms: i64, zone: &TimeZone) -> Day {
    let bounds = |now: Zoned| Ok::<_, jiff::Error>((now.start_of_day()?, now.tomorrow()?.start_of_day()?));
    let local = Timestamp::from_millisecond(now_ms).and_then(|now| bounds(now.to_zoned(zone.clone())));
    match local {
        Ok((from, until)) => Day { from_ms: from.timestamp().as_millisecond(), until: until.strftime("%Y-%m-%d %H:%M %Z").to_string() },
        Err(_) => Day { from_ms: now_ms.saturating_sub(now_ms.rem_euclid(DAY_MS)), until: "the next day (UTC)".to_owned() },
    }
}

/// What one run may use: the limits, what was used before it, and what it has used itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Allowance {
    /// Whose budget it is, as the beginning of a sentence: `The agent's`.
    #[serde(skip)]
    pub whose: String,
    pub limits: Spending,
    pub spent: Spent,
    /// When the next day begins, as a person reads it.
    pub next_day: String,
    /// What this run and those beside it use meanwhile, where somebody counts that.
    #[serde(skip)]
    pub watched: Option<Watched>,
}

/// What a limit is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Span {
    Session,
    Day,
}

/// One limit, and what is used of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Share {
    Tokens { used: u64, limit: u64 },
    Usd { used: f64, limit: f64 },
}

impl Share {
    fn is_used_up(self) -> bool {
        match self {
            Self::Tokens { used, limit } => used >= limit,
            Self::Usd { used, limit } => used >= limit,
        }
    }

    fn used(self) -> String {
        match self {
            Self::Tokens { used, limit } => format!("{} of {} tokens", grouped(used), grouped(limit)),
            Self::Usd { used, limit } => format!("${used:.4} of ${limit:.4}"),
        }
    }

    fn left(self) -> String {
        match self {
            Self::Tokens { used, limit } => format!("{} of {} tokens", grouped(limit.saturating_sub(used)), grouped(limit)),
            Self::Usd { used, limit } => format!("${:.4} of ${limit:.4}", (limit - used).max(0.0)),
        }
    }

    fn whole(self) -> String {
        match self {
            Self::Tokens { limit, .. } => format!("{} tokens", grouped(limit)),
            Self::Usd { limit, .. } => format!("${limit:.4}"),
        }
    }
}

impl Allowance {
    /// Adds what the run has used. The day is left to who counts it for all runs.
    pub fn add(&mut self, input_tokens: u64, output_tokens: u64) {
        let tokens = input_tokens.saturating_add(output_tokens);
        let usd = cost_usd(&self.limits, input_tokens, output_tokens).unwrap_or(0.0);
        self.spent.session_tokens = self.spent.session_tokens.saturating_add(tokens);
        self.spent.session_usd += usd;
        if self.watched.is_some() {
            return;
        }
        self.spent.day_tokens = self.spent.day_tokens.saturating_add(tokens);
        self.spent.day_usd += usd;
    }

    /// Whether the agent may be asked once more.
    ///
    /// # Errors
    /// What is used up, and until when, for people to read.
    pub fn check(&self) -> Result<(), String> {
        match self.shares().find(|(_, share)| share.is_used_up()) {
            Some((span, share)) => Err(self.used_up(span, &share.used())),
            None => Ok(()),
        }
    }

    /// The most tokens that the answer to a question of so many may have; `None` where nothing is limited.
    ///
    /// # Errors
    /// That less is left than the question itself takes, for people to read.
    pub fn room(&self, question: u64) -> Result<Option<u64>, String> {
        let mut least: Option<u64> = None;
        for (span, share) in self.shares() {
            let Some(tokens) = self.room_within(share, question) else {
                let (whose, of, left, until) = (&self.whose, span_words(span), share.left(), self.until(span));
                let question = grouped(question);
                return Err(format!(
                    "{whose} budget {of} has {left} left, too little for this question of about {question} tokens{until}."
                ));
            };
            least = Some(least.map_or(tokens, |least| least.min(tokens)));
        }
        Ok(least)
    }

    /// Whether such a question may have an answer of so many tokens, by what is left now.
    ///
    /// # Errors
    /// What that would use up, and until when, for people to read.
    pub fn allows(&self, question: u64, answer: u64) -> Result<(), String> {
        let is_passed = |share: Share| self.room_within(share, question).is_none_or(|room| answer > room);
        match self.shares().find(|(_, share)| is_passed(*share)) {
            Some((span, share)) => Err(self.used_up(span, &share.whole())),
            None => Ok(()),
        }
    }

    fn shares(&self) -> impl Iterator<Item = (Span, Share)> {
        let (limits, spent) = (&self.limits, &self.spent);
        let meanwhile = self.watched.as_ref().map(Watched::used).unwrap_or_default();
        let today = Amount { tokens: spent.day_tokens, usd: spent.day_usd }.plus(meanwhile);
        let tokens = |limit: Option<u64>, used: u64| limit.map(|limit| Share::Tokens { used, limit });
        let usd = |limit: Option<f64>, used: f64| limit.map(|limit| Share::Usd { used, limit });
        let shares = [
            (Span::Session, tokens(limits.tokens_per_session, spent.session_tokens)),
            (Span::Session, usd(limits.usd_per_session, spent.session_usd)),
            (Span::Day, tokens(limits.tokens_per_day, today.tokens)),
            (Span::Day, usd(limits.usd_per_day, today.usd)),
        ];
        shares.into_iter().filter_map(|(span, share)| Some((span, share?)))
    }

    /// Tokens that a limit leaves for the answer to a question of so many; none where not even that fits.
    fn room_within(&self, share: Share, question: u64) -> Option<u64> {
        let tokens = match share {
            Share::Tokens { used, limit } => limit.checked_sub(used)?.checked_sub(question)?,
            Share::Usd { used, limit } => {
                let left = limit - used - cost_usd(&self.limits, question, 0).unwrap_or(0.0);
                if left <= 0.0 {
                    return None;
                }
                // What costs nothing has no end: the cast stops at the largest number.
                (left * 1_000_000.0 / self.limits.usd_per_million_output.unwrap_or(0.0)) as u64
            }
        };
        (tokens > 0).then_some(tokens)
    }

    fn used_up(&self, span: Span, what: &str) -> String {
        format!("{} budget {} is used up ({what}){}.", self.whose, span_words(span), self.until(span))
    }

    fn until(&self, span: Span) -> String {
        match span {
            Span::Session => String::new(),
            Span::Day => format!("; it continues at {}", self.next_day),
        }
    }
}

fn span_words(span: Span) -> &'static str {
    match span {
        Span::Session => "for this session",
        Span::Day => "for today",
    }
}

/// A number with a comma between each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ms(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn allowance(limits: Spending) -> Allowance {
        let (whose, next_day) = ("The agent's".to_owned(), "tomorrow".to_owned());
        Allowance { whose, limits, spent: Spent::default(), next_day, watched: None }
    }

    #[test]
    fn runs_beside_each_other_share_what_is_left() {
        let meter = Meter::default();
        let run = || Amount { tokens: 40, usd: 0.5 };
        let begin = |filed: u64| {
            let (unfiled, watched) = meter.read(0);
            let spent = Spent { day_tokens: filed + unfiled.tokens, ..Spent::default() };
            let limits = Spending { tokens_per_day: Some(100), ..Spending::default() };
            Allowance { spent, watched: Some(watched), ..allowance(limits) }
        };
        let (one, mut other) = (begin(0), begin(0));
        meter.add(1, run());
        other.add(20, 20);
        meter.add(1, run());
        assert_eq!((one.check(), other.check()), (Ok(()), Ok(())), "80 of 100, and each counted once");
        // The one is in the ledger now; the other still sees it.
        meter.file(1, run());
        assert_eq!(begin(40).check(), Ok(()));
        meter.add(1, run());
        let told = other.check().unwrap_err();
        assert!(told.contains("120 of 100 tokens"), "{told}");
        assert!(begin(40).check().is_err());
    }

    #[test]
    fn a_day_is_the_time_zones_own() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let winter = day(ms("2026-02-05T23:30:00Z"), &berlin);
        assert_eq!(winter.from_ms, ms("2026-02-05T23:00:00Z"), "it is the next day there already");
        assert_eq!(winter.until, "2026-02-07 00:00 CET");
        // 25 hours: the clocks go back.
        let long = day(ms("2026-10-25T12:00:00Z"), &berlin);
        assert_eq!(long.from_ms, ms("2026-10-24T22:00:00Z"));
        assert_eq!(long.until, "2026-10-26 00:00 CET");
        assert_eq!(day(i64::MAX, &TimeZone::UTC).until, "the next day (UTC)");
    }

    #[test]
    fn the_limit_stops_and_the_next_day_opens() {
        let limits = Spending { tokens_per_day: Some(50_000), ..Spending::default() };
        let mut today = allowance(limits.clone());
        today.add(40_000, 9_999);
        assert_eq!(today.check(), Ok(()), "one token is left");
        today.add(0, 1_201);
        let expected = "The agent's budget for today is used up (51,200 of 50,000 tokens); it continues at tomorrow.";
        assert_eq!(today.check().unwrap_err(), expected);
        assert_eq!(allowance(limits).check(), Ok(()));
    }

    #[test]
    fn a_day_is_checked_for_whoever_has_a_budget() {
        let check = |tokens_per_day, usd_per_day, day_tokens, day_usd| {
            let limits = Spending { tokens_per_day, usd_per_day, ..Spending::default() };
            let spent = Spent { day_tokens, day_usd, ..Spent::default() };
            Allowance { whose: "the plugin's".to_owned(), spent, ..allowance(limits) }.check()
        };
        assert_eq!(check(None, None, u64::MAX, 1e9), Ok(()), "without a limit there is none");
        assert_eq!(check(Some(100), Some(1.0), 99, 0.99), Ok(()));
        let told = check(Some(1_000), None, 1_234, 0.0).unwrap_err();
        assert_eq!(told, "the plugin's budget for today is used up (1,234 of 1,000 tokens); it continues at tomorrow.");
        assert!(check(None, Some(0.0), 0, 0.0).unwrap_err().contains("$0.0000 of $0.0000"), "nothing may be spent at all");
    }

    #[test]
    fn an_answer_has_what_is_left_behind_its_question() {
        let tokens = Spending { tokens_per_session: Some(2_000), tokens_per_day: Some(50_000), ..Spending::default() };
        let mut run = allowance(tokens);
        assert_eq!((run.room(500), run.allows(500, 1_500)), (Ok(Some(1_500)), Ok(())));
        assert_eq!(run.allows(500, 1_501).unwrap_err(), "The agent's budget for this session is used up (2,000 tokens).");
        run.add(900, 1_000);
        assert_eq!(run.room(99), Ok(Some(1)), "one token is an answer");
        let told = "The agent's budget for this session has 100 of 2,000 tokens left, too little for this question of about 100 tokens.";
        assert_eq!(run.room(100).unwrap_err(), told);
        run.spent = Spent { day_tokens: 49_990, ..Spent::default() };
        assert_eq!(run.room(3), Ok(Some(7)), "the least of all limits counts");
        assert!(run.allows(3, 8).unwrap_err().ends_with("today is used up (50,000 tokens); it continues at tomorrow."));
        assert_eq!(allowance(Spending::default()).room(u64::MAX), Ok(None), "without a limit there is none");
    }

    #[test]
    fn dollars_leave_an_answer_what_they_buy_behind_its_question() {
        let limits = Spending {
            usd_per_session: Some(1.0),
            usd_per_million_input: Some(1.0),
            usd_per_million_output: Some(4.0),
            ..Spending::default()
        };
        let mut run = allowance(limits);
        assert_eq!(run.room(500_000), Ok(Some(125_000)));
        assert!(run.allows(500_000, 125_001).unwrap_err().contains("this session is used up ($1.0000)"));
        run.add(0, 200_000);
        let told = run.room(200_001).unwrap_err();
        assert!(told.contains("has $0.2000 of $1.0000 left, too little for this question of about 200,001 tokens"), "{told}");
        run.limits.usd_per_million_output = Some(0.0);
        assert_eq!(run.room(1), Ok(Some(u64::MAX)), "what costs nothing is not limited by its cost");
    }

    #[test]
    fn what_others_use_meanwhile_leaves_an_answer_less() {
        let meter = Meter::default();
        let limits = Spending { tokens_per_day: Some(100), ..Spending::default() };
        let run = Allowance { watched: Some(meter.read(0).1), ..allowance(limits) };
        assert_eq!(run.allows(10, 90), Ok(()));
        meter.add(1, Amount { tokens: 50, usd: 0.0 });
        assert_eq!((run.room(10), run.allows(10, 41).is_err()), (Ok(Some(40)), true));
    }

    #[test]
    fn a_session_that_is_used_up_stays_so() {
        let mut session = allowance(Spending { tokens_per_session: Some(10), ..Spending::default() });
        session.spent.session_tokens = 10;
        let told = session.check().unwrap_err();
        assert!(told.contains("this session") && told.contains("10 of 10 tokens"), "{told}");
        session.spent = Spent { session_tokens: 9, session_usd: 1e9, day_tokens: 1_000_000, day_usd: 1e9 };
        assert_eq!(session.check(), Ok(()), "what isn't limited doesn't count");
    }

    #[test]
    fn dollars_are_counted_at_the_prices() {
        let limits = Spending {
            usd_per_day: Some(0.01),
            usd_per_million_input: Some(1.0),
            usd_per_million_output: Some(10.0),
            ..Spending::default()
        };
        assert!((cost_usd(&limits, 1_000_000, 100_000).unwrap() - 2.0).abs() < 1e-9);
        let mut run = allowance(limits);
        run.add(1_000, 800);
        assert_eq!(run.check(), Ok(()));
        run.add(1_000, 1);
        assert!(run.check().unwrap_err().contains("today is used up ($0.0100 of $0.0100"), "{:?}", run.check());
        run.limits.usd_per_session = Some(0.005);
        assert!(run.check().unwrap_err().contains("this session is used up ($0.0100 of $0.0050)"), "{:?}", run.check());
        assert_eq!(cost_usd(&Spending { usd_per_million_input: Some(1.0), ..Spending::default() }, 1, 1), None);
    }

    #[test]
    fn what_nobody_counted_is_rounded_up() {
        assert_eq!([0, 1, 4, 5].map(estimated_tokens), [0, 1, 1, 2]);
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
