//! What a plugin's patch makes of a request: a JSON merge patch (RFC 7396) over the few values that may
//! change at its hook, checked as a whole before anything of it counts.

use super::Hook;
use crate::access::{EVERYTHING, check_template};
use crate::config::Permissions;
use crate::event::METADATA_BYTES_MAX;
use crate::request::NexusRequest;
use crate::tool_filter;
use serde_json::{Map, Value};

/// Longest text of a message or an answer, in bytes.
pub const TEXT_BYTES_MAX: usize = 1024 * 1024;
/// Longest text that is put before what an agent is told, in bytes.
pub const CONTEXT_BYTES_MAX: usize = 256 * 1024;
/// Longest name, relationship or tag, and longest session template, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// Most tags of a principal.
const TAGS_MAX: usize = 64;
/// Keys that a script's objects would take for something else than data.
const POLLUTING: [&str; 3] = ["__proto__", "constructor", "prototype"];
/// Longest key that an error repeats, in characters.
const KEY_CHARS_MAX: usize = 60;

/// Why a patch doesn't count. The request is as it was then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    #[error("a patch must be an object with the sections that change")]
    NotAnObject,
    #[error("`{key}` can't be changed at {point}; {possible}", point = .hook.as_str(), possible = can(*.hook))]
    Refused { hook: Hook, key: String },
    #[error("the key `{key}` is not taken from anybody")]
    Polluting { key: String },
    #[error("`{key}` must be {expected}")]
    Wrong { key: &'static str, expected: String },
    #[error("`{key}` may only become narrower: {wider} was not there before")]
    Wider { key: &'static str, wider: String },
    #[error("there is no section `{key}` to change")]
    Absent { key: &'static str },
}

fn can(hook: Hook) -> String {
    match hook.changeable() {
        [] => "nothing can".to_owned(),
        paths => format!("what can: {}", paths.join(", ")),
    }
}

/// Applies a patch as a whole, or not at all.
///
/// # Errors
/// [`PatchError`], with the key that is wrong.
pub fn apply_patch(hook: Hook, request: &mut NexusRequest, patch: &Value) -> Result<(), PatchError> {
    let Value::Object(sections) = patch else { return Err(PatchError::NotAnObject) };
    refuse_polluting(patch)?;
    let mut draft = request.clone();
    for (section, value) in sections {
        if let Some(path) = changeable(hook, section) {
            change(&mut draft, path, value)?;
            continue;
        }
        let Value::Object(fields) = value else { return Err(refused(hook, section)) };
        for (key, value) in fields {
            let name = format!("{section}.{key}");
            let path = changeable(hook, &name).ok_or_else(|| refused(hook, &name))?;
            change(&mut draft, path, value)?;
        }
        if fields.is_empty() && !hook.changeable().iter().any(|path| path.split('.').next() == Some(section.as_str())) {
            return Err(refused(hook, section));
        }
    }
    *request = draft;
    Ok(())
}

fn changeable(hook: Hook, name: &str) -> Option<&'static str> {
    hook.changeable().iter().copied().find(|path| *path == name)
}

fn refused(hook: Hook, key: &str) -> PatchError {
    PatchError::Refused { hook, key: short(key) }
}

fn short(key: &str) -> String {
    key.chars().take(KEY_CHARS_MAX).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// At any depth: scripts that read the request later get plain data.
fn refuse_polluting(value: &Value) -> Result<(), PatchError> {
    if let Some(fields) = value.as_object() {
        for (key, value) in fields {
            if POLLUTING.contains(&key.as_str()) {
                return Err(PatchError::Polluting { key: key.clone() });
            }
            refuse_polluting(value)?;
        }
    }
    value.as_array().into_iter().flatten().try_for_each(refuse_polluting)
}

/// Sets one of the values that [`Hook::changeable`] names.
fn change(request: &mut NexusRequest, path: &'static str, value: &Value) -> Result<(), PatchError> {
    match path {
        "event.content" => request.event.content = text(path, value, TEXT_BYTES_MAX)?,
        "event.metadata" => change_metadata(&mut request.event.metadata, path, value)?,
        "principal.name" => section(&mut request.principal, "principal")?.name = optional(path, value, NAME_BYTES_MAX)?,
        "principal.relationship" => section(&mut request.principal, "principal")?.relationship = optional(path, value, NAME_BYTES_MAX)?,
        "principal.tags" => section(&mut request.principal, "principal")?.tags = tags(path, value)?,
        "access.agent" => section(&mut request.access, "access")?.agent = optional(path, value, NAME_BYTES_MAX)?,
        "access.session_key" => section(&mut request.access, "access")?.session_key = template(path, value)?,
        "access.permissions" => change_permissions(&mut section(&mut request.access, "access")?.permissions, path, value)?,
        "triggers.enrichment" => section(&mut request.triggers, "triggers")?.enrichment = optional(path, value, CONTEXT_BYTES_MAX)?,
        "triggers.routing_override" => {
            section(&mut request.triggers, "triggers")?.routing_override = optional(path, value, NAME_BYTES_MAX)?;
        }
        "context" => request.context = optional(path, value, CONTEXT_BYTES_MAX)?,
        "response.content" => section(&mut request.response, "response")?.content = text(path, value, TEXT_BYTES_MAX)?,
        _ => return Err(PatchError::Absent { key: path }),
    }
    Ok(())
}

fn section<'s, T>(section: &'s mut Option<T>, key: &'static str) -> Result<&'s mut T, PatchError> {
    section.as_mut().ok_or(PatchError::Absent { key })
}

fn text(key: &'static str, value: &Value, bytes_max: usize) -> Result<String, PatchError> {
    let text = value.as_str().filter(|text| text.len() <= bytes_max && !text.contains('\0'));
    text.map(str::to_owned).ok_or_else(|| PatchError::Wrong { key, expected: format!("text of at most {bytes_max} bytes without NUL") })
}

/// Null removes it; so does nothing but blanks.
fn optional(key: &'static str, value: &Value, bytes_max: usize) -> Result<Option<String>, PatchError> {
    if value.is_null() {
        return Ok(None);
    }
    text(key, value, bytes_max).map(|text| Some(text).filter(|text| !text.trim().is_empty()))
}

fn tags(key: &'static str, value: &Value) -> Result<Vec<String>, PatchError> {
    let wrong = || PatchError::Wrong { key, expected: format!("a list of at most {TAGS_MAX} texts of at most {NAME_BYTES_MAX} bytes") };
    if value.is_null() {
        return Ok(Vec::new());
    }
    let items = value.as_array().filter(|items| items.len() <= TAGS_MAX).ok_or_else(wrong)?;
    items.iter().map(|item| item.as_str().filter(|text| text.len() <= NAME_BYTES_MAX).map(str::to_owned).ok_or_else(wrong)).collect()
}

fn template(key: &'static str, value: &Value) -> Result<Option<String>, PatchError> {
    let template = optional(key, value, NAME_BYTES_MAX)?;
    if let Some(template) = &template {
        check_template(template).map_err(|error| PatchError::Wrong { key, expected: format!("a session template: {error}") })?;
    }
    Ok(template)
}

fn change_metadata(metadata: &mut Value, key: &'static str, patch: &Value) -> Result<(), PatchError> {
    let wrong = || PatchError::Wrong { key, expected: format!("an object of at most {METADATA_BYTES_MAX} bytes of JSON") };
    let removed = patch.is_null();
    if !removed && !patch.is_object() {
        return Err(wrong());
    }
    merge(metadata, patch);
    if !removed && metadata.to_string().len() > METADATA_BYTES_MAX {
        return Err(wrong());
    }
    Ok(())
}

fn change_permissions(permissions: &mut Permissions, key: &'static str, patch: &Value) -> Result<(), PatchError> {
    let expected = || "tools (allow, deny), credentials and data_access, as in a policy".to_owned();
    known_only(patch, &["tools", "credentials", "data_access"]).ok_or_else(|| PatchError::Wrong { key, expected: expected() })?;
    if let Some(tools) = patch.get("tools") {
        known_only(tools, &["allow", "deny"]).ok_or_else(|| PatchError::Wrong { key, expected: expected() })?;
    }
    let mut value = serde_json::to_value(&*permissions).map_err(|_| PatchError::Wrong { key, expected: expected() })?;
    let floor = (permissions.data_access, patch.get("data_access").is_some());
    merge(&mut value, patch);
    let mut changed: Permissions = serde_json::from_value(value).map_err(|_| PatchError::Wrong { key, expected: expected() })?;
    if floor.1 && patch["data_access"].is_null() {
        changed.data_access = floor.0; // to remove it is not to widen it
    }
    let wider = |wider: String| Err(PatchError::Wider { key, wider });
    // What a pattern that was granted stands for may be named, or be a narrower pattern.
    if let Some(tool) = changed.tools.allow.iter().find(|tool| !tool_filter::matches_any(&permissions.tools.allow, tool)) {
        return wider(format!("the tool `{}`", short(tool)));
    }
    if let Some(tool) = permissions.tools.deny.iter().find(|tool| !changed.tools.deny.contains(tool)) {
        return wider(format!("leave for the denied tool `{}`", short(tool)));
    }
    if let Some(credential) = beyond(&changed.credentials, &permissions.credentials) {
        return wider(format!("the credential `{}`", short(credential)));
    }
    if changed.data_access > permissions.data_access {
        return wider(format!("data access `{}`", changed.data_access));
    }
    *permissions = changed;
    Ok(())
}

/// The first that was not granted before.
fn beyond<'n>(now: &'n [String], before: &[String]) -> Option<&'n str> {
    let has_all = before.iter().any(|name| name == EVERYTHING);
    now.iter().find(|name| !has_all && !before.contains(name)).map(String::as_str)
}

fn known_only(patch: &Value, known: &[&str]) -> Option<()> {
    patch.as_object()?.keys().all(|key| known.contains(&key.as_str())).then_some(())
}

/// RFC 7396, section 2.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(map) = target.as_object_mut() else { return };
    for (key, value) in fields {
        if value.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
#[path = "patch_tests.rs"]
pub(super) mod tests;
