//! How people see answers about access: contacts, entities, policies, decisions. It asks nobody.

use crate::access::Edit;
use crate::cli::failure::Exit;
use crate::cli::out::{Color, Out, Paint, note, one_line, visible};
use crate::cli::table::{self, Cell};
use crate::cli::units;
use crate::ledger::identity::CONFIDENCE_MIN;
use crate::ledger::nexus::LEFT_OUT_MAX;
use jiff::tz::TimeZone;
use serde_json::Value;

/// Longest name or reason in a table, in characters.
const TEXT_CHARS_MAX: usize = 100;

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or("")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Texts of a list, with commas.
fn joined(value: &Value) -> String {
    list(value).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}

fn time(value: &Value, zone: &TimeZone) -> String {
    value.as_i64().map_or_else(|| "-".to_owned(), |ms| units::second(ms, zone))
}

/// The answer as JSON if that is wanted, else as these lines; `empty` is said when there are none.
fn told(answer: &Value, out: Out, lines: Vec<String>, empty: &str) -> anyhow::Result<Exit> {
    if out.json {
        out.json(answer)?;
        return Ok(Exit::Done);
    }
    if lines.is_empty() {
        note(empty);
    }
    lines.iter().try_for_each(|line| out.line(line))?;
    Ok(Exit::Done)
}

/// A name and what it has, indented; nothing of what is empty.
fn field(lines: &mut Vec<String>, name: &str, value: &str) {
    if !value.is_empty() {
        lines.push(format!("  {:<14}{}", format!("{name}: "), visible(value)));
    }
}

pub(super) fn contacts(answer: &Value, out: Out) -> anyhow::Result<Exit> {
    let zone = TimeZone::system();
    let rows: Vec<_> = list(&answer["contacts"]).iter().map(|contact| contact_row(contact, &zone)).collect();
    told(answer, out, table::lines(&rows, &[], out.paint), "nobody has written yet")
}

fn contact_row(contact: &Value, zone: &TimeZone) -> [Cell; 5] {
    let entity = match (contact["entity"]["entity_id"].as_str(), contact["link"]["entity_id"].as_str()) {
        (Some(entity), _) => Cell::colored(entity, Color::Green),
        (None, Some(unsure)) => Cell::colored(format!("{unsure}?"), Color::Yellow),
        (None, None) => Cell::new("-"),
    };
    [
        Cell::colored(time(&contact["last_seen"], zone), Color::Dim),
        Cell::new(one_line(&format!("{}:{}", text(contact, "channel"), text(contact, "sender_id")), TEXT_CHARS_MAX)),
        entity,
        Cell::new(format!("messages: {}", units::thousands(contact["messages"].as_u64().unwrap_or(0)))),
        Cell::new(one_line(text(contact, "name"), TEXT_CHARS_MAX)),
    ]
}

pub(super) fn who(answer: &Value, out: Out) -> anyhow::Result<Exit> {
    told(answer, out, who_lines(answer, out.paint, &TimeZone::system()), "")
}

fn who_lines(answer: &Value, paint: Paint, zone: &TimeZone) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(channel) = answer["channel"].as_str() {
        lines.push(paint.apply(Color::Bold, &visible(&format!("Sender {channel}:{}", text(answer, "sender_id")))));
        let (contact, link) = (&answer["contact"], &answer["link"]);
        field(&mut lines, "Name", text(contact, "name"));
        if let Some(messages) = contact["messages"].as_u64() {
            field(&mut lines, "Messages", &units::thousands(messages));
            field(&mut lines, "First seen", &time(&contact["first_seen"], zone));
            field(&mut lines, "Last seen", &time(&contact["last_seen"], zone));
        }
        let entity = link["entity_id"].as_str();
        field(&mut lines, "Linked to", &entity.map_or_else(|| "nobody".to_owned(), |entity| format!("{entity}, {}", sure(link))));
        if answer["is_owner"] == true {
            field(&mut lines, "Counts as", "the owner, by `access.owner`");
        }
    }
    if answer["entity"].is_object() {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        entity_lines(&answer["entity"], paint, zone, &mut lines);
    }
    lines
}

/// How sure a link is, and what that means.
fn sure(link: &Value) -> String {
    let confidence = link["confidence"].as_f64().unwrap_or(0.0);
    if link["counts"] == true {
        format!("confidence {confidence}")
    } else {
        format!("confidence {confidence}: below {CONFIDENCE_MIN}, so it doesn't count")
    }
}

fn entity_lines(entity: &Value, paint: Paint, zone: &TimeZone, lines: &mut Vec<String>) {
    lines.push(paint.apply(Color::Bold, &visible(&format!("Entity {}", text(entity, "entity_id")))));
    field(lines, "Name", text(entity, "name"));
    field(lines, "Relationship", text(entity, "relationship"));
    field(lines, "Tags", &joined(&entity["tags"]));
    let merged = list(&entity["members"]).iter().filter(|member| member["merged_into"].is_string());
    let named = |member: &Value| format!("{} (into {})", text(member, "entity_id"), text(member, "merged_into"));
    let merged: Vec<String> = merged.map(named).collect();
    field(lines, "Merged", &merged.join(", "));
    let rows: Vec<_> = list(&entity["identities"]).iter().map(|identity| identity_row(identity, zone)).collect();
    lines.extend(table::lines(&rows, &[], paint).into_iter().map(|line| format!("  {line}")));
}

fn identity_row(identity: &Value, zone: &TimeZone) -> [Cell; 4] {
    let link = &identity["link"];
    let seen = identity["last_seen"].as_i64().map_or_else(|| "never wrote".to_owned(), |ms| format!("last {}", units::second(ms, zone)));
    [
        Cell::new(one_line(&format!("{}:{}", text(identity, "channel"), text(identity, "sender_id")), TEXT_CHARS_MAX)),
        Cell::new(format!("messages: {}", units::thousands(identity["messages"].as_u64().unwrap_or(0)))),
        Cell::colored(seen, Color::Dim),
        Cell::colored(sure(link), if link["counts"] == true { Color::Green } else { Color::Yellow }),
    ]
}

/// What came of a change, and on stderr what else is to be known of it.
pub(super) fn edited(edit: &Edit, answer: &Value, out: Out) -> anyhow::Result<Exit> {
    if !out.json {
        remarks(edit, answer).iter().for_each(|remark| note(&visible(remark)));
    }
    told(answer, out, vec![visible(&done(edit, answer))], "")
}

fn done(edit: &Edit, answer: &Value) -> String {
    let before = answer["before"].as_str();
    match edit {
        Edit::Link { channel, sender, entity, .. } if answer["created"] == true => {
            format!("linked {channel}:{sender} to {entity}, which is a new entity")
        }
        Edit::Link { channel, sender, entity, .. } => match before {
            Some(before) => format!("linked {channel}:{sender} to {entity}, no longer to {before}"),
            None => format!("linked {channel}:{sender} to {entity}"),
        },
        Edit::Unlink { channel, sender } => match before {
            Some(before) => format!("{channel}:{sender} is no longer linked to {before}"),
            None => format!("{channel}:{sender} was not linked"),
        },
        Edit::Set { entity, .. } => format!("{entity} is changed"),
        Edit::Tag { entity, tags } => format!("tagged {entity}: {}", tags.join(", ")),
        Edit::Untag { entity, tags } => format!("untagged {entity}: {}", tags.join(", ")),
        Edit::Merge { from, into, .. } => format!("{from} counts as {into} now; `nexus access unmerge {from}` takes it back"),
        Edit::Unmerge { entity } => match before {
            Some(before) => format!("{entity} counts for itself again, no longer as {before}"),
            None => format!("{entity} was not merged"),
        },
    }
}

fn remarks(edit: &Edit, answer: &Value) -> Vec<String> {
    let mut remarks = Vec::new();
    let to_owner = match edit {
        Edit::Link { as_owner, .. } | Edit::Merge { as_owner, .. } => *as_owner,
        Edit::Unlink { .. } | Edit::Set { .. } | Edit::Tag { .. } | Edit::Untag { .. } | Edit::Unmerge { .. } => false,
    };
    if to_owner {
        remarks.push("this makes nobody the owner: `access.owner` of the configuration does".to_owned());
    }
    if answer["counts"] == false {
        remarks.push(format!("a confidence below {CONFIDENCE_MIN} is shown and makes nobody known"));
    }
    remarks
}

pub(super) fn policies(answer: &Value, out: Out) -> anyhow::Result<Exit> {
    told(answer, out, policy_lines(answer, out.paint), "")
}

fn policy_lines(answer: &Value, paint: Paint) -> Vec<String> {
    let owner = joined(&answer["owner"]);
    let mut lines = vec![
        format!("owner:   {}", if owner.is_empty() { "whoever can open the control socket".to_owned() } else { visible(&owner) }),
        format!("default: {}", paint.apply(color_of(text(answer, "default")), &visible(text(answer, "default")))),
    ];
    for policy in list(&answer["policies"]) {
        let effect = text(policy, "effect");
        lines.push(String::new());
        lines.push(format!("{} {}", paint.apply(color_of(effect), effect), paint.apply(Color::Bold, &visible(text(policy, "name")))));
        field(&mut lines, "For", text(policy, "description"));
        field(&mut lines, "Who", &given(&policy["match"]["principal"]));
        let conditions: Vec<String> = list(&policy["match"]["conditions"]).iter().map(given).collect();
        field(&mut lines, "When", &conditions.join("; or "));
        field(&mut lines, "Agent", text(&policy["session"], "agent"));
        field(&mut lines, "Session", text(&policy["session"], "key"));
        if effect == "allow" {
            permission_lines(&policy["permissions"], &mut lines);
            field(&mut lines, "Queue mode", text(policy, "queue_mode"));
            field(&mut lines, "Queue cap", &cap(&policy["queue"]));
        }
        field(&mut lines, "Rate", &rate(&policy["rate"]["per_minute"]));
        let priority = policy["priority"].as_i64().filter(|priority| *priority != 0);
        field(&mut lines, "Priority", &priority.map_or_else(String::new, |priority| priority.to_string()));
    }
    lines
}

fn rate(per_minute: &Value) -> String {
    per_minute.as_u64().map_or_else(String::new, |n| format!("{n} per minute"))
}

/// How many messages may wait, and which is dropped of more; nothing without a cap.
fn cap(queue: &Value) -> String {
    let Some(cap) = queue["cap"].as_u64() else { return String::new() };
    let dropped = if queue["drop"] == "new" { "the new one" } else { "the oldest" };
    format!("{cap}, then {dropped} is dropped")
}

fn permission_lines(permissions: &Value, lines: &mut Vec<String>) {
    field(lines, "Tools", &joined(&permissions["tools"]["allow"]));
    field(lines, "No tools", &joined(&permissions["tools"]["deny"]));
    field(lines, "Credentials", &joined(&permissions["credentials"]));
    field(lines, "Data", text(permissions, "data_access"));
}

/// What is given of a match, as `key value` with commas; anything if nothing is.
fn given(part: &Value) -> String {
    let Some(fields) = part.as_object() else { return String::new() };
    let given: Vec<String> = fields
        .iter()
        .filter_map(|(key, value)| match value {
            Value::String(text) => Some(format!("{key} {text}")),
            Value::Array(items) if !items.is_empty() => Some(format!("{key} {}", joined(value))),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
        })
        .collect();
    if given.is_empty() { "anybody".to_owned() } else { given.join(", ") }
}

fn color_of(effect: &str) -> Color {
    if effect == "allow" { Color::Green } else { Color::Red }
}

pub(super) fn check(answer: &Value, out: Out) -> anyhow::Result<Exit> {
    told(answer, out, check_lines(answer, out.paint), "")
}

fn check_lines(answer: &Value, paint: Paint) -> Vec<String> {
    let (asked, principal) = (&answer["asked"], &answer["principal"]);
    let decision = text(answer, "decision");
    let word = if decision == "allow" { "allowed" } else { "denied" };
    let who = visible(&format!("{}:{}", text(asked, "channel"), text(asked, "sender")));
    let mut lines = vec![format!("{who} would be {}", paint.apply(color_of(decision), word))];
    field(&mut lines, "Where", &format!("account {}, {} {}", text(asked, "account"), text(asked, "peer_kind"), text(asked, "peer")));
    field(&mut lines, "Content", Some(text(asked, "content_type")).filter(|kind| *kind != "text").unwrap_or_default());
    field(&mut lines, "When", &format!("{}, {}", text(asked, "at"), text(asked, "day")));
    lines.extend([String::new(), paint.apply(Color::Bold, "Principal")]);
    field(&mut lines, "Type", text(principal, "type"));
    field(&mut lines, "Entity", text(principal, "entity_id"));
    field(&mut lines, "Name", text(principal, "name"));
    field(&mut lines, "Relationship", text(principal, "relationship"));
    field(&mut lines, "Tags", &joined(&principal["tags"]));
    field(&mut lines, "Identities", &joined(&principal["identities"]));
    if answer["link"]["counts"] == false {
        field(&mut lines, "Linked to", &format!("{}, {}", text(&answer["link"], "entity_id"), sure(&answer["link"])));
    }
    lines.extend([String::new(), paint.apply(Color::Bold, "Why")]);
    lines.extend(list(&answer["why"]).iter().filter_map(Value::as_str).map(|why| format!("  {}", visible(why))));
    if let Some(recorded_only) = answer["recorded_only"].as_str() {
        lines.extend([String::new(), paint.apply(Color::Bold, "Then"), format!("  {}", visible(recorded_only))]);
    } else if decision == "allow" {
        lines.extend([String::new(), paint.apply(Color::Bold, "Then")]);
        field(&mut lines, "Agent", text(answer, "agent"));
        field(&mut lines, "Session", text(answer, "session_label"));
        field(&mut lines, "Queue mode", text(answer, "queue_mode"));
        field(&mut lines, "Queue cap", &cap(&answer["queue"]));
        field(&mut lines, "Rate", &rate(&answer["per_minute"]));
        permission_lines(&answer["permissions"], &mut lines);
    }
    lines
}

pub(super) fn audit(answer: &Value, out: Out) -> anyhow::Result<Exit> {
    let zone = TimeZone::system();
    let rows: Vec<_> = list(&answer["decisions"]).iter().map(|decision| audit_row(decision, &zone)).collect();
    let done = told(answer, out, table::lines(&rows, &[], out.paint), "no decisions")?;
    if let Some(remark) = left_out(answer).filter(|_| !out.json) {
        note(&remark);
    }
    Ok(done)
}

/// What is to be known of decisions that aren't listed.
fn left_out(answer: &Value) -> Option<String> {
    let count = answer["left_out"].as_u64().filter(|count| *count > 0)?;
    let least = if count >= LEFT_OUT_MAX { "at least " } else { "" };
    Some(format!("decisions about the timer that are left out: {least}{}; --all shows them", units::thousands(count)))
}

fn audit_row(decision: &Value, zone: &TimeZone) -> [Cell; 6] {
    let principal = match decision["entity_id"].as_str() {
        Some(entity) => format!("{} {entity}", text(decision, "principal")),
        None => text(decision, "principal").to_owned(),
    };
    [
        Cell::colored(time(&decision["at"], zone), Color::Dim),
        Cell::colored(text(decision, "decision"), color_of(text(decision, "decision"))),
        Cell::new(one_line(&format!("{}:{}", text(decision, "channel"), text(decision, "sender_id")), TEXT_CHARS_MAX)),
        Cell::new(principal),
        Cell::new(text(decision, "request_id")),
        Cell::new(one_line(text(decision, "reason"), TEXT_CHARS_MAX)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_contact_shows_its_entity_and_how_sure_that_is() {
        let contact = |entity: Value, link: Value| {
            let contact = json!({ "channel": "sms", "sender_id": "1", "name": "A", "messages": 1200, "last_seen": 0, "entity": entity, "link": link });
            table::lines(&[contact_row(&contact, &TimeZone::UTC)], &[], Paint::PLAIN).concat()
        };
        let linked = json!({ "entity_id": "ann" });
        assert_eq!(contact(linked.clone(), linked.clone()), "1970-01-01 00:00:00  sms:1  ann  messages: 1,200  A");
        assert!(contact(Value::Null, linked).contains("  ann?  "));
        assert!(contact(Value::Null, Value::Null).contains("  -  "));
    }

    #[test]
    fn what_is_let_in_and_asks_nobody_is_told() {
        let answer = json!({
            "asked": { "channel": "sms", "sender": "1", "account": "me", "peer_kind": "dm", "content_type": "reaction", "at": "t", "day": "fri" },
            "principal": { "type": "known" }, "decision": "allow", "why": [], "recorded_only": "recorded only: because",
        });
        let lines = check_lines(&answer, Paint::PLAIN);
        assert!(lines.contains(&"  Content:      reaction".to_owned()), "{lines:?}");
        assert_eq!(lines[lines.len() - 2..], ["Then", "  recorded only: because"]);
    }

    #[test]
    fn an_entity_shows_who_counts_as_it() {
        let link = |counts: bool| json!({ "entity_id": "ann", "confidence": if counts { 1.0 } else { 0.2 }, "counts": counts });
        let answer = json!({ "entity": {
            "entity_id": "ann", "name": "Ann", "relationship": null, "tags": ["a", "b"],
            "members": [{ "entity_id": "ann", "merged_into": null }, { "entity_id": "work", "merged_into": "ann" }],
            "identities": [
                { "channel": "sms", "sender_id": "1", "messages": 3, "last_seen": 0, "link": link(true) },
                { "channel": "sms", "sender_id": "22", "messages": 0, "last_seen": null, "link": link(false) },
            ],
        } });
        let expected = "\
Entity ann
  Name:         Ann
  Tags:         a, b
  Merged:       work (into ann)
  sms:1   messages: 3  last 1970-01-01 00:00:00  confidence 1
  sms:22  messages: 0  never wrote               confidence 0.2: below 0.5, so it doesn't count";
        assert_eq!(who_lines(&answer, Paint::PLAIN, &TimeZone::UTC).join("\n"), expected);
    }

    #[test]
    fn decisions_that_are_left_out_are_told() {
        let told = |count: u64| left_out(&json!({ "left_out": count })).unwrap_or_default();
        assert_eq!(told(0), "");
        assert_eq!(told(1_440), "decisions about the timer that are left out: 1,440; --all shows them");
        assert!(told(LEFT_OUT_MAX).contains("at least 10,000;"), "{}", told(LEFT_OUT_MAX));
    }

    #[test]
    fn a_check_tells_every_step() {
        let answer = json!({
            "asked": { "channel": "sms", "sender": "1", "account": "me", "peer_kind": "dm", "peer": "1", "at": "2026-01-02T23:30", "day": "fri" },
            "principal": { "type": "unknown", "tags": [], "identities": ["sms:1"] },
            "link": { "entity_id": "ann", "confidence": 0.2, "counts": false },
            "decision": "deny", "why": ["policy `a` does not apply: x", "denied by `access.default`: no policy applies"],
        });
        let expected = "\
sms:1 would be denied
  Where:        account me, dm 1
  When:         2026-01-02T23:30, fri

Principal
  Type:         unknown
  Identities:   sms:1
  Linked to:    ann, confidence 0.2: below 0.5, so it doesn't count

Why
  policy `a` does not apply: x
  denied by `access.default`: no policy applies";
        assert_eq!(check_lines(&answer, Paint::PLAIN).join("\n"), expected);
    }

    #[test]
    fn a_check_tells_what_becomes_of_a_message_that_is_let_in() {
        let mut answer = json!({
            "asked": { "channel": "sms", "sender": "1", "account": "me", "peer_kind": "dm", "peer": "1", "at": "2026-01-02T23:30", "day": "fri" },
            "principal": { "type": "known" }, "decision": "allow", "why": [], "agent": "a", "session_label": "dm:ann",
            "queue_mode": "collect", "queue": { "cap": 20, "drop": "old" }, "per_minute": 5,
        });
        let then = |answer: &Value| {
            let lines = check_lines(answer, Paint::PLAIN);
            lines.into_iter().skip_while(|line| line != "Then").collect::<Vec<_>>().join("\n")
        };
        let expected = "\
Then
  Agent:        a
  Session:      dm:ann
  Queue mode:   collect
  Queue cap:    20, then the oldest is dropped
  Rate:         5 per minute";
        assert_eq!(then(&answer), expected);
        answer["queue"]["drop"] = "new".into();
        assert!(then(&answer).contains("20, then the new one is dropped"));
        answer["queue"] = Value::Null;
        assert!(!then(&answer).contains("Queue cap"));
    }

    #[test]
    fn policies_show_what_they_match_and_do() {
        let answer = json!({ "owner": ["cli:*"], "default": "deny", "policies": [
            { "name": "night", "effect": "deny", "match": { "principal": { "type": null, "tags": [] }, "conditions": [{ "channel": "sms", "days": ["sat", "sun"] }] } },
            { "name": "all", "effect": "allow", "match": { "principal": {}, "conditions": [] }, "session": { "agent": "a" }, "queue_mode": "collect",
              "queue": { "cap": 3, "drop": "new" }, "rate": { "per_minute": 5 }, "priority": 2, "permissions": { "tools": { "allow": ["x"], "deny": [] }, "data_access": "minimal" } },
        ] });
        let expected = "\
owner:   cli:*
default: deny

deny night
  Who:          anybody
  When:         channel sms, days sat, sun

allow all
  Who:          anybody
  Agent:        a
  Tools:        x
  Data:         minimal
  Queue mode:   collect
  Queue cap:    3, then the new one is dropped
  Rate:         5 per minute
  Priority:     2";
        assert_eq!(policy_lines(&answer, Paint::PLAIN).join("\n"), expected);
        let nobody = json!({ "owner": [], "default": "deny", "policies": [] });
        assert_eq!(policy_lines(&nobody, Paint::PLAIN), ["owner:   whoever can open the control socket", "default: deny"]);
    }
}
