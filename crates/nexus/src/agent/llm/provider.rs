//! What differs between providers: address, headers, and what their adapters of `genai` need to be told or
//! kept from. Owns the table; never talks to anybody.

use std::path::Path;
use std::time::Duration;

use genai::Headers;
use genai::adapter::AdapterKind;
use genai::chat::{ChatOptions, ReasoningEffort};
use nexus_core::config::Provider;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};

use super::event_bound::{EVENT_BYTES_MAX, EventEnd, WHOLE_EVENT_BYTES_MAX};

/// Anthropic's version of the wire format (docs: "API versions").
const ANTHROPIC_VERSION: &str = "2023-06-01";

const CONNECT_TIMEOUT_MS: u64 = 10_000;

/// How a provider streams tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallStyle {
    /// In fragments that `genai` passes on. It isn't asked to put them together: it would make room for as
    /// many calls as a server claims to send.
    Fragments,
    /// Put together by `genai`, as far as they go.
    Whole,
}

pub(super) fn call_style(provider: Provider) -> CallStyle {
    match provider {
        Provider::Openai | Provider::Groq | Provider::Deepseek | Provider::Xai => CallStyle::Fragments,
        Provider::OpenaiResp | Provider::Anthropic | Provider::Gemini | Provider::Ollama => CallStyle::Whole,
    }
}

/// Whether an end without a reason is none: when such a stream breaks off, `genai` makes up an end.
pub(super) fn end_needs_reason(provider: Provider) -> bool {
    match provider {
        Provider::OpenaiResp | Provider::Gemini | Provider::Ollama => true,
        Provider::Openai | Provider::Anthropic | Provider::Groq | Provider::Deepseek | Provider::Xai => false,
    }
}

/// What ends an event of its streams.
pub(super) fn event_end(provider: Provider) -> EventEnd {
    match provider {
        Provider::Ollama => EventEnd::Line,
        Provider::Openai
        | Provider::OpenaiResp
        | Provider::Anthropic
        | Provider::Gemini
        | Provider::Groq
        | Provider::Deepseek
        | Provider::Xai => EventEnd::BlankLine,
    }
}

/// The most of one event of its streams, in bytes.
pub(super) fn event_bytes_max(provider: Provider) -> usize {
    match provider {
        Provider::OpenaiResp => WHOLE_EVENT_BYTES_MAX,
        Provider::Openai
        | Provider::Anthropic
        | Provider::Gemini
        | Provider::Groq
        | Provider::Deepseek
        | Provider::Xai
        | Provider::Ollama => EVENT_BYTES_MAX,
    }
}

/// Whether results of several calls may stand in one message.
pub(super) fn groups_results(provider: Provider) -> bool {
    provider != Provider::Ollama
}

pub(super) fn kind(provider: Provider) -> AdapterKind {
    match provider {
        Provider::Openai => AdapterKind::OpenAI,
        Provider::OpenaiResp => AdapterKind::OpenAIResp,
        Provider::Anthropic => AdapterKind::Anthropic,
        Provider::Gemini => AdapterKind::Gemini,
        Provider::Groq => AdapterKind::Groq,
        Provider::Deepseek => AdapterKind::DeepSeek,
        Provider::Xai => AdapterKind::Xai,
        Provider::Ollama => AdapterKind::Ollama,
    }
}

/// The path under the API base, which an operator may have written too.
fn path(provider: Provider) -> &'static str {
    match provider {
        Provider::Openai | Provider::Groq | Provider::Deepseek | Provider::Xai => "chat/completions",
        Provider::OpenaiResp => "responses",
        Provider::Anthropic => "messages",
        Provider::Gemini => "models",
        Provider::Ollama => "api/chat",
    }
}

/// The address that a turn is sent to.
pub(super) fn address(provider: Provider, base: &Url, model: &str) -> Url {
    let mut url = base.clone();
    if provider == Provider::Gemini {
        let model = model.strip_prefix("models/").unwrap_or(model);
        url.set_path(&format!("{}models/{model}:streamGenerateContent", base.path()));
        url.query_pairs_mut().append_pair("alt", "sse");
    } else {
        url.set_path(&format!("{}{}", base.path(), path(provider)));
    }
    url
}

/// The same as the client is to ask for it: without encryption, which begins behind it, in the relay.
pub(super) fn plain_address(provider: Provider, base: &Url, model: &str) -> Url {
    let mut url = address(provider, base, model);
    url.set_scheme("http").expect("an API base is http or https, and either becomes the other");
    url
}

/// The headers that name the key, and no others: without a key nothing of the kind is sent.
pub(super) fn headers(provider: Provider, key: Option<&SecretString>) -> Headers {
    let mut headers: Vec<(&str, String)> = Vec::new();
    if provider == Provider::Anthropic {
        headers.push(("anthropic-version", ANTHROPIC_VERSION.to_owned()));
    }
    if let Some(key) = key.map(ExposeSecret::expose_secret) {
        headers.push(match provider {
            Provider::Anthropic => ("x-api-key", key.to_owned()),
            Provider::Gemini => ("x-goog-api-key", key.to_owned()),
            Provider::Openai | Provider::OpenaiResp | Provider::Groq | Provider::Deepseek | Provider::Xai | Provider::Ollama => {
                ("Authorization", format!("Bearer {key}"))
            }
        });
    }
    Headers::from(headers)
}

/// What each request asks for.
pub(super) fn options(provider: Provider, model: &str, max_tokens: Option<u32>, stream_idle: Duration) -> ChatOptions {
    let mut options = ChatOptions::default()
        .with_capture_usage(true)
        .with_capture_content(true)
        .with_capture_tool_calls(call_style(provider) == CallStyle::Whole)
        // These two want their reasoning back with the results of tools.
        .with_capture_reasoning_content(matches!(provider, Provider::Anthropic | Provider::Deepseek))
        .with_stream_header_timeout(stream_idle)
        .with_stream_read_timeout(stream_idle);
    if let Some(max_tokens) = max_tokens {
        options = options.with_max_tokens(max_tokens);
    }
    // genai takes `-max` or `x::` in a model's name for an option of its own. A budget is not sent to these
    // endpoints but keeps it from looking; to the others it would be. The body has the name.
    if matches!(provider, Provider::Openai | Provider::OpenaiResp | Provider::Groq | Provider::Xai) {
        options = options.with_reasoning_effort(ReasoningEffort::Budget(0));
    }
    // Gemini's is in the address, and Ollama's is not looked at.
    if !matches!(provider, Provider::Gemini | Provider::Ollama) {
        options = options.with_extra_body(serde_json::json!({ "model": model }));
    }
    options
}

/// The API base, ending in `/`, of what an operator wrote: with or without that slash or the provider's path
/// after it. A query stays.
pub(super) fn api_base(provider: Provider, text: &str) -> Result<Url, String> {
    let mut url = Url::parse(text.trim()).map_err(|error| format!("`url`: {error}; write it like `http://127.0.0.1:8080/v1/`"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("`url` must start with http:// or https://, not {}:", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("`url` must not hold a user or password: use `key_file`".to_owned());
    }
    url.set_fragment(None);
    let base = url.path().trim_end_matches('/');
    let base = base.strip_suffix(&format!("/{}", path(provider))).unwrap_or(base).trim_end_matches('/');
    let base = format!("{base}/");
    url.set_path(&base);
    Ok(url)
}

/// Only the configured address is talked to: no proxy from the environment, no redirect (which
/// would take the key along), no compression (a small answer must not become a large one). The relay counts what
/// comes back on a connection, so that none is used twice. It encrypts too: the client needs no certificates, of which a
/// machine may have none.
pub(super) fn web_client(relay: &Path) -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .no_proxy()
        .no_gzip()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_millis(CONNECT_TIMEOUT_MS))
        .unix_socket(relay)
        .pool_max_idle_per_host(0)
        .user_agent(concat!("nexus/", env!("CARGO_PKG_VERSION")))
        .tls_certs_only(std::iter::empty::<reqwest::Certificate>())
        .build()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_way_to_write_the_address_gives_one() {
        for text in [
            "http://127.0.0.1:8080/v1",
            "http://127.0.0.1:8080/v1/",
            " http://127.0.0.1:8080/v1// ",
            "http://127.0.0.1:8080/v1/chat/completions",
            "http://127.0.0.1:8080/v1/chat/completions/#x",
        ] {
            let base = api_base(Provider::Openai, text).unwrap();
            assert_eq!(base.as_str(), "http://127.0.0.1:8080/v1/", "{text}");
            let full = "http://127.0.0.1:8080/v1/chat/completions";
            assert_eq!(address(Provider::Openai, &base, "m").as_str(), full);
        }
        assert_eq!(api_base(Provider::Openai, "https://h").unwrap().as_str(), "https://h/");
        let azure = api_base(Provider::Openai, "https://h/openai/chat/completions?api-version=1").unwrap();
        assert_eq!(azure.as_str(), "https://h/openai/?api-version=1");
        let full = "https://h/openai/chat/completions?api-version=1";
        assert_eq!(address(Provider::Openai, &azure, "m").as_str(), full);
    }

    #[test]
    fn each_provider_has_its_own_address() {
        for (provider, model, expected) in [
            (Provider::OpenaiResp, "m", "https://api.openai.com/v1/responses"),
            (Provider::Anthropic, "m", "https://api.anthropic.com/v1/messages"),
            (Provider::Groq, "m", "https://api.groq.com/openai/v1/chat/completions"),
            (Provider::Deepseek, "m", "https://api.deepseek.com/v1/chat/completions"),
            (Provider::Xai, "m", "https://api.x.ai/v1/chat/completions"),
            (Provider::Ollama, "m", "http://127.0.0.1:11434/api/chat"),
            (Provider::Gemini, "models/g?x", "https://generativelanguage.googleapis.com/v1beta/models/g%3Fx:streamGenerateContent?alt=sse"),
        ] {
            let base = api_base(provider, provider.default_url().unwrap()).unwrap();
            assert_eq!(address(provider, &base, model).as_str(), expected);
        }
    }

    #[test]
    fn the_client_asks_without_encryption_for_the_same_host() {
        for (base, expected) in [
            ("https://h/v1/", "http://h/v1/chat/completions"),
            ("https://h:8443/v1/", "http://h:8443/v1/chat/completions"),
            ("http://h:8080/v1/", "http://h:8080/v1/chat/completions"),
        ] {
            let base = api_base(Provider::Openai, base).unwrap();
            assert_eq!(plain_address(Provider::Openai, &base, "m").as_str(), expected);
        }
    }

    #[test]
    fn an_unusable_address_is_refused_without_showing_a_password() {
        for text in ["", "127.0.0.1:8080/v1", "localhost:8080", "ftp://h/v1", "http://"] {
            assert!(api_base(Provider::Openai, text).is_err(), "{text}");
        }
        let problem = api_base(Provider::Openai, "http://me:hunter2@h/v1").unwrap_err();
        assert!(!problem.contains("hunter2"), "{problem}");
    }
}
