//! The configuration reference as Markdown, from the schema and the defaults, so that it can't drift
//! from the code. It adds no knowledge of its own.

use super::decode::Section;
use super::{
    Access, Account, Adapter, Agent, AgentPermissions, Agents, Automations, Bus, CallBudget, CatchUp, Condition, Cron, CronDeliver, Daemon,
    Git, Ledgers, Match, McpServer, Memory, Nostr, Permissions, Pipeline, PluginCircuit, Plugins, Policy, PrincipalMatch, ProjectOverride,
    ProjectRestart, Projects, Queue, Rate, Restart, Retention, Send, SessionRoute, Spending, Timer, Tools,
};
use schemars::{JsonSchema, schema_for};
use serde_json::Value;

const INTRO: &str = "# Configuration reference

Every key of `nex.yaml` and of `state/overlay.yaml`, which wins where both set a key. A key that is left \
out or empty has its default.
";

/// The reference: a table of keys for each section, in the order of the file.
pub fn reference_markdown() -> String {
    let mut page = INTRO.to_owned();
    table::<Daemon>(&mut page, "daemon");
    table::<Pipeline>(&mut page, "pipeline");
    table::<Ledgers>(&mut page, "ledgers");
    table::<Retention>(&mut page, "ledgers.retention");
    table::<Adapter>(&mut page, "adapters.NAME");
    table::<Restart>(&mut page, "adapters.NAME.restart");
    table::<Send>(&mut page, "adapters.NAME.send");
    table::<CatchUp>(&mut page, "adapters.NAME.catch_up");
    table::<Account>(&mut page, "adapters.NAME.accounts.ID");
    table::<Access>(&mut page, "access");
    table::<Policy>(&mut page, "access.policies[]");
    table::<Match>(&mut page, "access.policies[].match");
    table::<PrincipalMatch>(&mut page, "access.policies[].match.principal");
    table::<Condition>(&mut page, "access.policies[].match.conditions[]");
    table::<Permissions>(&mut page, "access.policies[].permissions");
    table::<Tools>(&mut page, "access.policies[].permissions.tools");
    table::<SessionRoute>(&mut page, "access.policies[].session");
    table::<Queue>(&mut page, "access.policies[].queue");
    table::<Rate>(&mut page, "access.policies[].rate");
    table::<Agents>(&mut page, "agents");
    table::<Agent>(&mut page, "agents.NAME");
    table::<Spending>(&mut page, "agents.NAME.budget");
    table::<McpServer>(&mut page, "agents.NAME.mcp.SERVER");
    table::<Memory>(&mut page, "agents.NAME.memory");
    table::<AgentPermissions>(&mut page, "agents.NAME.permissions");
    table::<Plugins>(&mut page, "plugins");
    table::<PluginCircuit>(&mut page, "plugins.circuit");
    table::<CallBudget>(&mut page, "plugins.budgets.NAME");
    table::<Automations>(&mut page, "automations");
    table::<CallBudget>(&mut page, "automations.budgets.NAME");
    table::<Timer>(&mut page, "timer");
    table::<Cron>(&mut page, "timer.cron[]");
    table::<CronDeliver>(&mut page, "timer.cron[].deliver");
    table::<Bus>(&mut page, "bus");
    table::<Nostr>(&mut page, "nostr");
    table::<Projects>(&mut page, "projects");
    table::<ProjectRestart>(&mut page, "projects.restart");
    table::<Git>(&mut page, "projects.git");
    table::<ProjectOverride>(&mut page, "projects.overrides.COORDINATE");
    page
}

fn table<T: Section + JsonSchema>(page: &mut String, heading: &str) {
    let schema = schema_for!(T).to_value();
    let about = text(&schema, "description");
    page.push_str(&format!("\n## `{heading}`\n\n{about}\n\n"));
    page.push_str("| key | type | default | meaning |\n| --- | --- | --- | --- |\n");
    for key in T::KEYS {
        let property = schema.pointer(&format!("/properties/{key}")).unwrap_or(&Value::Null);
        let kind = kind(&schema, property);
        let default = default(property);
        let meaning = text(property, "description");
        let cells = [format!("`{key}`"), kind, default, meaning.to_owned()].map(|cell| cell.replace('|', "\\|"));
        page.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or("")
}

/// A property's type in words.
fn kind(root: &Value, property: &Value) -> String {
    if let Some(target) = property.get("$ref").and_then(Value::as_str) {
        let definition = root.pointer(target.trim_start_matches('#')).unwrap_or(&Value::Null);
        return kind(root, definition);
    }
    if let Some(choices) = property.get("anyOf").and_then(Value::as_array) {
        let first = choices.iter().find(|choice| text(choice, "type") != "null");
        return first.map_or_else(String::new, |choice| kind(root, choice));
    }
    if let Some(words) = property.get("enum").and_then(Value::as_array) {
        let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
        return words.join(", ");
    }
    match type_name(property) {
        "string" => "text".to_owned(),
        "boolean" => "true or false".to_owned(),
        "integer" | "number" => range(property),
        "array" => format!("list of: {}", property.get("items").map_or_else(String::new, |item| kind(root, item))),
        "object" => object(root, property),
        _ => "any value".to_owned(),
    }
}

/// The type, without the null that an optional value may also be.
fn type_name(property: &Value) -> &str {
    match property.get("type") {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or(""),
        Some(Value::String(name)) => name,
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => "",
    }
}

fn range(property: &Value) -> String {
    match (property.get("minimum"), property.get("maximum")) {
        (Some(low), Some(high)) => format!("number, {low} to {high}"),
        _ => "number".to_owned(),
    }
}

fn object(root: &Value, property: &Value) -> String {
    match property.get("additionalProperties") {
        Some(values) if property.get("properties").is_none() => format!("names with: {}", kind(root, values)),
        Some(_) | None => "section".to_owned(),
    }
}

fn default(property: &Value) -> String {
    if let Some(example) = property.pointer("/examples/0").and_then(Value::as_str) {
        return format!("required, for example `{example}`");
    }
    match property.get("default") {
        None | Some(Value::Object(_) | Value::Null) => String::new(),
        Some(value @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_))) => format!("`{value}`"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::schema;
    use super::*;

    #[test]
    fn every_section_of_the_schema_has_its_table() {
        let schema = schema();
        let definitions = schema["$defs"].as_object().unwrap();
        let sections = definitions.values().filter(|definition| definition.get("properties").is_some());
        let page = reference_markdown();
        for section in sections.clone() {
            assert!(page.contains(text(section, "description")), "{section}");
            for key in section["properties"].as_object().unwrap().keys() {
                assert!(page.contains(&format!("| `{key}` |")), "{key}");
            }
        }
        // One section may be at several places.
        assert!(page.matches("\n## ").count() >= sections.count());
    }

    #[test]
    fn rows_say_type_default_and_meaning() {
        let page = reference_markdown();
        for row in [
            "| `port` | number, 0 to 65535 | `7400` | TCP port of the HTTP listener; 0 takes any free port. |",
            "| `log_level` | debug, info, warn, error | `\"info\"` | The least severe messages that are logged. |",
            "| `label` | text | required, for example `morning-summary` |",
            "| `tags` | list of: text | `[]` |",
            "| `env` | names with: text |",
            "| `accounts` | names with: section |",
            "| `peer_kind` | dm, group, channel |",
        ] {
            assert!(page.contains(row), "{row}\n{page}");
        }
    }
}
