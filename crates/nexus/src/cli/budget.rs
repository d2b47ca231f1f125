//! What was used of a budget, as people read it. It asks nobody.

use super::out::one_line;
use super::units::thousands;
use serde::Deserialize;

/// Longest name, and longest time of the next day, in characters.
const TEXT_CHARS_MAX: usize = 100;

/// What an agent, a plugin or an automation has used today of what it may, as the daemon tells it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Budget {
    agent: Option<String>,
    plugin: Option<String>,
    automation: Option<String>,
    tokens: u64,
    tokens_per_day: Option<u64>,
    usd: f64,
    usd_per_day: Option<f64>,
    until: String,
}

impl Budget {
    /// Whose it is.
    pub(crate) fn name(&self) -> String {
        let named = [("", &self.agent), ("plugin ", &self.plugin), ("automation ", &self.automation)];
        let found = named.into_iter().find_map(|(kind, name)| Some(format!("{kind}{}", name.as_ref()?)));
        one_line(&found.unwrap_or_default(), TEXT_CHARS_MAX)
    }

    /// `13 of 50,000 tokens, $0.0001 of $2.0000 until 2026-02-06 00:00 CET`.
    pub(crate) fn used(&self) -> String {
        let Self { tokens, tokens_per_day, usd, usd_per_day, until, .. } = self;
        let is_limited = tokens_per_day.is_some() || usd_per_day.is_some();
        let until = if is_limited { format!("until {}", one_line(until, TEXT_CHARS_MAX)) } else { "today, without a limit".to_owned() };
        format!("{} {until}", used(*tokens, *tokens_per_day, *usd, *usd_per_day))
    }
}

/// `13 of 50,000 tokens, $0.0001 of $2.0000`. What has no limit is told where something was used.
pub(crate) fn used(tokens: u64, tokens_max: Option<u64>, usd: f64, usd_max: Option<f64>) -> String {
    let of_tokens = match tokens_max {
        Some(limit) => Some(format!("{} of {} tokens", thousands(tokens), thousands(limit))),
        None => (tokens > 0).then(|| format!("{} tokens", thousands(tokens))),
    };
    let of_dollars = match usd_max {
        Some(limit) => Some(format!("${usd:.4} of ${limit:.4}")),
        None => (usd > 0.0).then(|| format!("${usd:.4}")),
    };
    let told: Vec<String> = of_tokens.into_iter().chain(of_dollars).collect();
    if told.is_empty() { "nothing".to_owned() } else { told.join(", ") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn limits_are_told_beside_what_was_used() {
        assert_eq!(used(13, Some(50_000), 0.0001, Some(2.0)), "13 of 50,000 tokens, $0.0001 of $2.0000");
        assert_eq!(used(1_300, None, 0.25, None), "1,300 tokens, $0.2500");
        assert_eq!(used(0, None, 0.0, None), "nothing");
        assert_eq!(used(0, None, 0.0, Some(1.0)), "$0.0000 of $1.0000");
    }

    #[test]
    fn everybody_has_a_name() {
        let told = |value: serde_json::Value| {
            let budget: Budget = serde_json::from_value(value).unwrap();
            format!("{} {}", budget.name(), budget.used())
        };
        let limited = json!({ "plugin": "tags", "tokens": 13, "tokens_per_day": 13, "usd": 0.0, "usd_per_day": null, "until": "tomorrow" });
        assert_eq!(told(limited), "plugin tags 13 of 13 tokens until tomorrow");
        assert_eq!(told(json!({ "automation": "x", "tokens": 5 })), "automation x 5 tokens today, without a limit");
        assert_eq!(told(json!({ "agent": "model", "usd_per_day": 1.0, "until": "t" })), "model $0.0000 of $1.0000 until t");
    }
}
