//! `nexus.d.ts`: what a TypeScript plugin or automation is written against, made from the types of the request, of
//! triggers and advice, of what calls take and answer, and the list of hooks. Which methods there are, and `console`,
//! is text here. It describes only.

use crate::agent::Usage;
use crate::ledger::agents::ToolOutline;
use crate::pipeline::outbox::DeliveryResult;
use crate::plugin::calls::shapes::{
    FetchAnswer, FetchAsk, LlmAnswer, LlmAsk, QueryAnswer, QueryAsk, SearchAnswer, SearchAsk, SendAnswer, SendAsk,
};
use nexus_core::automation::{Advice, Triggers};
use nexus_core::config::PluginSection;
use nexus_core::hook::Hook;
use nexus_core::request::NexusRequest;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value};

const HEAD: &str = "// What a plugin or an automation of Nexus is written against. Written by `nexus __generate`; change the types, not
// this file.
//
// Put it beside yours, and use it with `import type { Plugin, Automation } from \"./nexus\"`. Useful in a
// tsconfig.json: \"lib\": [\"es2023\"] (there is no DOM), \"erasableSyntaxOnly\": true, \"types\": [].

";

const PLUGIN_HEAD: &str = "/** What went wrong, and in which stage. */
export interface StageError {
  stage: Stage;
  message: string;
}

/** Nothing goes on with the request as the hook left it; `\"skip\"` ends it. */
export type Outcome = void | \"skip\" | NexusRequest;

/**
 * What a plugin's file exports as `plugin`, or as its default. A hook may be async: its request waits for it.
 * What it changes in `req` is taken over where that hook may change it, and refused elsewhere. `nexus` is its own:
 * what it asks for is asked in the name of this hook call.
 */
export interface Plugin {
  /** The file's name without its ending. */
  name: string;
  /** Lower ones come first; 100 if it isn't given. */
  priority?: number;
";

const TAIL: &str = "}

/** What an automation's handler is called with. All data in it is a copy: what counts is what the handler returns. */
export interface AutomationContext {
  /** As stage 3 left it. */
  request: NexusRequest;
  /** `config` of the file. */
  config: any;
  /** What it returned last as `state`; at first `state` of the file. */
  state: any;
  /** Its own: what it asks for is asked in the name of this call. */
  nexus: Nexus;
}

/** What an automation's file exports as `automation`, or as its default. */
export interface Automation {
  /** The file's name without its ending. */
  name: string;
  description?: string;
  /** Which requests it is asked about; without them every one. */
  triggers?: Triggers;
  config?: any;
  /** What it knows at first. One that has a state is asked about one event at a time. */
  state?: any;
  handler(ctx: AutomationContext): Advice | void | Promise<Advice | void>;
}

/**
 * Each call needs a grant, `plugins.grants` or `automations.grants` in nex.yaml, and is only possible while a hook or a
 * handler runs.
 */
export interface Nexus {
  ledger: {
    /** Reads a ledger. Grant: `ledger.query`. */
    query(sql: QueryAsk[\"sql\"], params?: QueryAsk[\"params\"], ledger?: QueryAsk[\"ledger\"]): Promise<QueryAnswer>;
  };
  /** Asks an agent that is a model. Grant: `llm`. */
  llm(ask: LlmAsk): Promise<LlmAnswer>;
  /** Searches what agents were asked and said. Grant: `search`. */
  search(ask: SearchAsk): Promise<SearchAnswer>;
  /** Sends a message. Grant: `send`. */
  send(ask: SendAsk): Promise<SendAnswer>;
  /** One HTTP request. Grant: `fetch:HOST`. */
  fetch(url: FetchAsk[\"url\"], init?: Omit<FetchAsk, \"url\">): Promise<FetchAnswer>;
}

/** Lines for the daemon's log: at most 200 in 10 s. */
export interface Console {
  debug(...values: unknown[]): void;
  log(...values: unknown[]): void;
  info(...values: unknown[]): void;
  warn(...values: unknown[]): void;
  error(...values: unknown[]): void;
}

declare global {
  /** Refused while other calls are under way: use the `nexus` that a hook or a handler is given. */
  const nexus: Nexus;
  const console: Console;
  // There is no setTimeout, no fetch of its own, no process, no require and no import of values.
}
";

/// The whole file.
pub(super) fn declarations() -> String {
    let mut page = HEAD.to_owned();
    for (name, definition) in &definitions() {
        declare(name, definition, &mut page);
    }
    page.push_str(PLUGIN_HEAD);
    let sections: Vec<String> = PluginSection::WORDS.iter().map(|word| format!("\"{word}\"")).collect();
    page.push_str(&format!(
        "  /** What it is given of a request, besides `request_id`; all of it if this isn't given. */\n  sections?: Array<{}>;\n",
        sections.join(" | ")
    ));
    for hook in Hook::WORDS {
        let more = if hook == "onError" { ", error: StageError" } else { "" };
        page.push_str(&format!("  {hook}?(req: NexusRequest{more}, nexus: Nexus): Outcome | Promise<Outcome>;\n"));
    }
    page.push_str(TAIL);
    page
}

/// The schemas of all types, by name.
fn definitions() -> Map<String, Value> {
    let mut generator = SchemaGenerator::default();
    named::<(NexusRequest, Advice, Triggers)>(&mut generator);
    named::<(QueryAsk, QueryAnswer, LlmAsk, LlmAnswer, SearchAsk, SearchAnswer)>(&mut generator);
    named::<(SendAsk, SendAnswer, FetchAsk, FetchAnswer)>(&mut generator);
    // What the core has as any JSON, and this crate writes.
    let usage = generator.subschema_for::<Option<Usage>>().to_value();
    let tool_calls = generator.subschema_for::<Vec<ToolOutline>>().to_value();
    let delivery_result = generator.subschema_for::<Option<DeliveryResult>>().to_value();
    let definitions = generator.definitions_mut();
    definitions["ResponseSection"]["properties"]["usage"] = usage;
    definitions["ResponseSection"]["properties"]["tool_calls"] = tool_calls;
    definitions["NexusRequest"]["properties"]["delivery_result"] = delivery_result;
    generator.take_definitions(false)
}

/// Has the generator know the types of a tuple, and all that is in them.
fn named<T: JsonSchema>(generator: &mut SchemaGenerator) {
    // Called for what it leaves there.
    drop(generator.subschema_for::<T>());
}

/// An interface for an object with known keys, a type for anything else.
fn declare(name: &str, schema: &Value, page: &mut String) {
    page.push_str(&comment(schema, ""));
    let Some(properties) = schema["properties"].as_object() else {
        page.push_str(&format!("export type {name} = {};\n\n", type_of(schema)));
        return;
    };
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    page.push_str(&format!("export interface {name} {{\n"));
    for (key, property) in properties {
        let optional = if required.contains(&key.as_str()) { "" } else { "?" };
        page.push_str(&format!("{}  {key}{optional}: {};\n", comment(property, "  "), type_of(property)));
    }
    page.push_str("}\n\n");
}

/// The description as a comment of one line, or nothing.
fn comment(schema: &Value, indent: &str) -> String {
    let words: Vec<&str> = schema["description"].as_str().unwrap_or_default().split_whitespace().collect();
    if words.is_empty() { String::new() } else { format!("{indent}/** {} */\n", words.join(" ")) }
}

fn type_of(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str() {
        return name.rsplit('/').next().unwrap_or(name).to_owned();
    }
    if let Some(word) = schema.get("const") {
        return word.to_string();
    }
    if let Some(words) = schema["enum"].as_array() {
        return words.iter().map(Value::to_string).collect::<Vec<_>>().join(" | ");
    }
    if let Some(kinds) = schema["anyOf"].as_array().or_else(|| schema["oneOf"].as_array()) {
        return kinds.iter().map(type_of).collect::<Vec<_>>().join(" | ");
    }
    match &schema["type"] {
        Value::String(kind) => plain(kind, schema),
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).map(|kind| plain(kind, schema)).collect::<Vec<_>>().join(" | "),
        // Any JSON at all.
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => "any".to_owned(),
    }
}

fn plain(kind: &str, schema: &Value) -> String {
    match kind {
        "integer" => "number".to_owned(),
        "array" => format!("Array<{}>", type_of(&schema["items"])),
        "object" => format!("Record<string, {}>", type_of(&schema["additionalProperties"])),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::agents::ToolCall;
    use crate::pipeline::outbox::Outcome;
    use std::collections::BTreeSet;

    #[test]
    fn every_hook_is_there_and_optional_fields_are_optional() {
        let page = declarations();
        for hook in Hook::WORDS {
            assert!(page.contains(&format!("  {hook}?(req: NexusRequest")), "{hook} is not in\n{page}");
        }
        for part in [
            "export interface NexusRequest {\n",
            "  request_id: string;\n",
            "  event: Event;\n",
            "  principal?: PrincipalSection | null;\n",
            "  status: Status;\n",
            "export interface Event {\n",
            "  timestamp: number;\n",
            "  sender_name?: string | null;\n",
            "  attachments?: Array<Attachment> | null;\n",
            "  metadata?: Record<string, any> | null;\n",
            "  tags: Array<string>;\n",
            "  tool_calls: Array<ToolOutline>;\n",
            "  usage: Usage | null;\n",
            "  delivery_result?: DeliveryResult | null;\n",
            "  key?: string | null;\n",
            "  n?: SendNumber | null;\n",
            "export type SendNumber = number | string;\n",
            "export type Cell = null | number | string;\n",
            "  rows: Array<Array<Cell>>;\n",
            "  hits: Array<SearchHit>;\n",
            "  stop_reason: StopReason;\n",
            "  encoding: Encoding;\n",
            "export type Status = \"waiting\" | \"processing\" | ",
            "  type: PrincipalType;\n",
            "export type PeerKind = \"dm\" | \"group\" | \"channel\";\n",
            "  sections?: Array<\"event\" | \"delivery\" | ",
            "  onError?(req: NexusRequest, error: StageError, nexus: Nexus): Outcome | Promise<Outcome>;\n",
            "  const nexus: Nexus;\n",
            "export interface Advice {\n",
            "  fire?: boolean;\n",
            "  reply?: string | null;\n",
            "  state?: any;\n",
            "export interface Triggers {\n",
            "  event?: EventTrigger;\n",
            "  channels?: Array<string>;\n",
            "  handler(ctx: AutomationContext): Advice | void | Promise<Advice | void>;\n",
        ] {
            assert!(page.contains(part), "{part:?} is not in\n{page}");
        }
        assert!(!page.contains("$ref") && !page.contains("undefined"), "{page}");
    }

    #[test]
    fn every_type_that_is_named_is_declared() {
        let (page, all) = (declarations(), definitions());
        let text = Value::Object(all).to_string();
        let mut names: Vec<String> = Vec::new();
        for (at, found) in text.match_indices("#/$defs/") {
            names.push(text[at + found.len()..].chars().take_while(|c| c.is_ascii_alphanumeric()).collect());
        }
        names.extend(["Ask", "Answer"].iter().flat_map(|end| ["Query", "Llm", "Search", "Send", "Fetch"].map(|of| format!("{of}{end}"))));
        for name in names {
            let declared = [format!("export interface {name} {{"), format!("export type {name} =")];
            assert!(declared.iter().any(|line| page.contains(line)), "{name} is not in\n{page}");
        }
    }

    /// What is told as any JSON in the core is written from the types that are declared for it.
    #[test]
    fn what_is_put_into_a_request_is_what_is_declared() {
        let all = definitions();
        let keys = |name: &str| all[name]["properties"].as_object().map(|fields| fields.keys().cloned().collect::<BTreeSet<_>>());
        let of = |value: Value| value.as_object().map(|fields| fields.keys().cloned().collect::<BTreeSet<_>>());
        let call = ToolCall { call_id: "1".into(), name: "t".into(), status: "ok".into(), summary: None, arguments: None, result: None };
        assert_eq!(of(call.outline()), keys("ToolOutline"));
        assert_eq!(of(serde_json::json!(Usage::default())), keys("Usage"));
        let outcome = Outcome { delivery_id: "1".into(), status: "failed", error: Some("x".into()) };
        assert_eq!(of(serde_json::json!(&outcome)), keys("DeliveryOutcome"));
        let result = DeliveryResult { deliveries: 1, settled: Some(vec![outcome]), pending: 0 };
        assert_eq!(of(serde_json::json!(result)), keys("DeliveryResult"));
    }
}
