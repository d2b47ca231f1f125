//! Parts of an `llm` agent: whose wire format it speaks, what it may spend, what others may that ask it, and the programs
//! that give it tools. What is spent and whether that is too much, `spend` decides.

use super::adapter::{environment, split_command, variable_names};
use super::decode::{Decode, nonempty, number};
use super::node::Node;
use super::problem::{Faults, quoted};
use std::collections::BTreeMap;

/// Most tokens of one answer that may be asked for.
const ANSWER_TOKENS_MAX: u32 = 1_000_000;
/// Fewest and most tokens of one prompt.
const PROMPT_TOKENS_MIN: u64 = 256;
const PROMPT_TOKENS_MAX: u64 = 10_000_000;
/// Most tokens that a budget may allow: sums of them stay far from overflow.
const BUDGET_TOKENS_MAX: u64 = 1_000_000_000_000;
/// Most US dollars that a budget or a price may have.
const USD_MAX: f64 = 1_000_000.0;
/// Longest name of an MCP server, in bytes: a tool's name begins with it, and providers allow 64 in all.
const SERVER_NAME_BYTES_MAX: usize = 32;
/// What is between the names of a server and of its tool.
pub const TOOL_SEPARATOR: &str = "__";

words! {
    /// Whose wire format an `llm` agent speaks.
    Provider {
        /// OpenAI's chat completions, at any address.
        #[default]
        Openai = "openai",
        /// OpenAI's responses.
        OpenaiResp = "openai_resp",
        /// Anthropic's messages.
        Anthropic = "anthropic",
        /// Google's Gemini.
        Gemini = "gemini",
        /// Groq.
        Groq = "groq",
        /// DeepSeek.
        Deepseek = "deepseek",
        /// xAI.
        Xai = "xai",
        /// Ollama's own interface.
        Ollama = "ollama",
    }
}

impl Provider {
    /// The base of the provider's interface; `None` where there are as many as there are servers.
    pub fn default_url(self) -> Option<&'static str> {
        match self {
            Self::Openai => None,
            Self::OpenaiResp => Some("https://api.openai.com/v1/"),
            Self::Anthropic => Some("https://api.anthropic.com/v1/"),
            Self::Gemini => Some("https://generativelanguage.googleapis.com/v1beta/"),
            Self::Groq => Some("https://api.groq.com/openai/v1/"),
            Self::Deepseek => Some("https://api.deepseek.com/v1/"),
            Self::Xai => Some("https://api.x.ai/v1/"),
            Self::Ollama => Some("http://127.0.0.1:11434/"),
        }
    }
}

section! {
    /// What an `llm` agent may use. A limit that is left out is none.
    Spending check prices {
        /// Tokens in one session, in and out.
        tokens_per_session: Option<u64> = None => tokens;
        /// Tokens in one day of the time zone of `timer`, in and out.
        tokens_per_day: Option<u64> = None => tokens;
        /// US dollars in one session; needs both prices.
        usd_per_session: Option<f64> = None => dollars;
        /// US dollars in one day; needs both prices.
        usd_per_day: Option<f64> = None => dollars;
        /// Price of a million tokens that go in, in US dollars.
        usd_per_million_input: Option<f64> = None => dollars;
        /// Price of a million tokens that come out, in US dollars.
        usd_per_million_output: Option<f64> = None => dollars;
    }
}

impl Spending {
    /// Whether anything is limited.
    pub fn is_limited(&self) -> bool {
        let has_tokens = self.tokens_per_session.is_some() || self.tokens_per_day.is_some();
        has_tokens || self.usd_per_session.is_some() || self.usd_per_day.is_some()
    }

    /// What of it holds for a day.
    pub fn day(&self) -> CallBudget {
        CallBudget { tokens_per_day: self.tokens_per_day, usd_per_day: self.usd_per_day }
    }
}

section! {
    /// What a plugin or an automation may use of the models that it asks (`llm`). A limit that is left out is none.
    CallBudget {
        /// Tokens in one day of the time zone of `timer`, in and out.
        tokens_per_day: Option<u64> = None => tokens;
        /// US dollars in one day, at the prices in the budgets of the agents that it asks; of one without prices nothing is asked.
        usd_per_day: Option<f64> = None => dollars;
    }
}

impl CallBudget {
    /// Whether anything is limited.
    pub fn is_limited(&self) -> bool {
        self.tokens_per_day.is_some() || self.usd_per_day.is_some()
    }
}

section! {
    /// An MCP server: a program that offers tools on its stdin and stdout.
    McpServer check server {
        /// The program and its arguments, split as a shell would and never run by one.
        command: String = String::new() => nonempty, required "my-mcp-server";
        /// Environment variables to set, beside PATH, HOME, LANG, TZ and TMPDIR.
        env: BTreeMap<String, String> = BTreeMap::new() => environment;
        /// Names of the daemon's own environment variables to pass on.
        pass_env: Vec<String> = Vec::new() => variable_names;
        /// Its tools that are offered, by the server's own names; a `*` at the end stands for any rest.
        tools: Vec<String> = vec!["*".to_owned()];
    }
    derived {
        /// `command` split into the program and its arguments.
        argv: Vec<String> = Vec::new();
    }
}

fn server(mut server: McpServer, node: &Node, faults: &mut Faults) -> McpServer {
    if let Some(command) = node.get("command")
        && let Some(argv) = split_command(&server.command, command, faults)
    {
        server.argv = argv;
    }
    server
}

/// Dollars per day can only be counted at a price.
fn prices(spending: Spending, node: &Node, faults: &mut Faults) -> Spending {
    let is_priced = spending.usd_per_million_input.is_some() && spending.usd_per_million_output.is_some();
    for limit in ["usd_per_session", "usd_per_day"] {
        if let Some(usd) = node.get(limit).filter(|usd| !usd.is_null())
            && !is_priced
        {
            faults.error(usd.at, format!("`{limit}` needs both `usd_per_million_input` and `usd_per_million_output`"));
        }
    }
    spending
}

/// Reads MCP servers. Their names become parts of the names of tools, for which providers have rules.
pub(super) fn mcp_servers(node: &Node, name: &str, faults: &mut Faults) -> Option<BTreeMap<String, McpServer>> {
    for (key, field) in node.fields() {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let is_name = !key.is_empty() && key.len() <= SERVER_NAME_BYTES_MAX && key.chars().all(allowed);
        if !is_name || key.starts_with(['-', '_']) || key.contains(TOOL_SEPARATOR) || key.ends_with('_') {
            let rule = "1 to 32 characters of A-Z a-z 0-9 _ -, with a letter or digit first, no `_` last and no `__`";
            faults.error(field.key_at, format!("name {} is not usable for an MCP server; it has {rule}", quoted(key)));
        }
    }
    BTreeMap::decode(node, name, faults)
}

pub(super) fn tokens_per_answer(node: &Node, name: &str, faults: &mut Faults) -> Option<Option<u32>> {
    number(node, name, &(1..=ANSWER_TOKENS_MAX), faults).map(Some)
}

pub(super) fn tokens_per_prompt(node: &Node, name: &str, faults: &mut Faults) -> Option<Option<u64>> {
    number(node, name, &(PROMPT_TOKENS_MIN..=PROMPT_TOKENS_MAX), faults).map(Some)
}

fn tokens(node: &Node, name: &str, faults: &mut Faults) -> Option<Option<u64>> {
    number(node, name, &(1..=BUDGET_TOKENS_MAX), faults).map(Some)
}

fn dollars(node: &Node, name: &str, faults: &mut Faults) -> Option<Option<f64>> {
    number(node, name, &(0.0..=USD_MAX), faults).map(Some)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{FULL_YAML, errors, loaded};
    use super::Provider;

    #[test]
    fn every_key_is_read() {
        let smart = &loaded(FULL_YAML).config.agents.named["smart"];
        assert_eq!((smart.provider, smart.fallback.as_slice()), (Provider::Groq, ["spare".to_owned()].as_slice()));
        assert_eq!((smart.max_tokens, smart.context_tokens, smart.tool_rounds_max), (Some(1), Some(256), 1));
        assert_eq!((smart.budget.tokens_per_session, smart.budget.tokens_per_day), (Some(1), Some(2)));
        let dollars = (smart.budget.usd_per_session, smart.budget.usd_per_day, smart.budget.usd_per_million_output);
        assert_eq!(dollars, (Some(0.25), Some(0.5), Some(2.5)));
        assert_eq!(smart.mcp["files"].argv, ["run", "files"]);
        assert_eq!(smart.mcp["files"].tools, ["read"]);
    }

    #[test]
    fn what_callers_may_use_is_checked_where_it_is_written() {
        let config = loaded(FULL_YAML).config;
        let (watch, digest) = (&config.plugins.budgets["watch"], &config.automations.budgets["digest"]);
        assert_eq!((watch.tokens_per_day, watch.usd_per_day), (Some(3), Some(0.75)));
        assert_eq!((digest.tokens_per_day, digest.usd_per_day, digest.is_limited()), (Some(4), None, true));
        for (text, expected) in [
            ("plugins: {budgets: {a: {tokens_per_day: 0}}}", "1:41 `tokens_per_day` must be a whole number from 1"),
            ("automations: {budgets: {a: {usd_per_day: -1}}}", "1:42 `usd_per_day` must be a number from 0"),
            ("plugins: {budgets: {-a: {}}}", "1:21 name `-a` is not usable"),
        ] {
            let found = errors(text);
            assert!(found.len() == 1 && found[0].starts_with(expected), "{text}: {found:?}");
        }
    }

    #[test]
    fn what_only_a_model_heeds_is_refused_elsewhere() {
        let keys = [
            ("provider", "groq"),
            ("url", "'http://h'"),
            ("model", "m"),
            ("key_file", "k"),
            ("key_env", "K"),
            ("system_prompt_file", "p"),
            ("fallback", "[b]"),
            ("max_tokens", "1"),
            ("context_tokens", "256"),
            ("tool_rounds_max", "1"),
            ("budget", "{tokens_per_day: 1000}"),
            ("mcp", "{files: {command: run}}"),
        ];
        for runner in ["echo", "command", "acp"] {
            for (key, value) in keys {
                let before = format!("agents: {{b: {{runner: llm, model: m, provider: xai}}, a: {{runner: {runner}, command: c, {key}: ");
                let column = before.len() + 1;
                let told = format!("1:{column} `{key}` is for `runner: llm`, and this one has `runner: {runner}`; remove it");
                assert_eq!(errors(&format!("{before}{value}}}}}")), [told]);
            }
        }
        loaded("agents: {a: {runner: acp, command: c, budget: {}, mcp: {}, fallback: [], tool_rounds_max: 8, max_tokens: ~}}");
    }

    #[test]
    fn what_a_model_needs_is_checked_where_it_is_written() {
        for (agent, expected) in [
            ("{runner: llm, model: m, provider: openai}", "needs `url`"),
            ("{runner: llm, model: m, url: 'http://h', provider: mistral}", "`provider` must be one of openai, openai_resp, "),
            ("{runner: llm, model: m, url: 'http://h', fallback: [nobody]}", "`nobody` is not an agent"),
            ("{runner: llm, model: m, url: 'http://h', fallback: [a]}", "`a` can't take its own place"),
            ("{runner: llm, model: m, url: 'http://h', fallback: [echo]}", "`echo` is no `llm` agent"),
            ("{runner: llm, model: m, url: 'http://h', fallback: [b, b]}", "`b` is in `fallback` twice"),
            ("{runner: llm, model: m, url: 'http://h', max_tokens: 0}", "`max_tokens` must be a whole number from 1 to"),
            ("{runner: llm, model: m, url: 'http://h', context_tokens: 255}", "`context_tokens` must be a whole number from 256"),
            ("{runner: llm, model: m, url: 'http://h', tool_rounds_max: 0}", "`tool_rounds_max` must be a whole number from 1"),
            ("{runner: llm, model: m, url: 'http://h', budget: {usd_per_day: 1, usd_per_million_input: 1}}", "needs both"),
            ("{runner: llm, model: m, url: 'http://h', budget: {usd_per_session: 1}}", "`usd_per_session` needs both"),
            ("{runner: llm, model: m, url: 'http://h', budget: {tokens_per_day: 0}}", "`tokens_per_day` must be a whole number from 1"),
            ("{runner: llm, model: m, url: 'http://h', mcp: {a__b: {command: x}}}", "name `a__b` is not usable for an MCP server"),
            ("{runner: llm, model: m, url: 'http://h', mcp: {a.b: {command: x}}}", "name `a.b` is not usable for an MCP server"),
            ("{runner: llm, model: m, url: 'http://h', mcp: {files: {}}}", "`files` needs `command`"),
        ] {
            let text = format!("agents: {{a: {agent}, b: {{runner: llm, model: m, provider: ollama}}}}");
            let found = errors(&text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].starts_with("1:") && found[0].contains(expected), "{found:?}");
        }
        let one = |other: &str| format!("{{runner: llm, model: m, provider: xai, fallback: [{other}]}}");
        let mutual = format!("agents: {{a: {}, b: {}}}", one("b"), one("a"));
        assert_eq!(loaded(&mutual).config.agents.named["b"].fallback, ["a"]);
    }
}
