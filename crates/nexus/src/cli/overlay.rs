//! Changing `state/overlay.yaml`, which holds what CLI verbs set and wins over `nex.yaml`. One change
//! at a time, whole or not at all, and only to a configuration that loads. It never writes `nex.yaml`.

use super::failure::Failure;
use super::yaml;
use crate::daemon::Paths;
use anyhow::Context;
use nexus_core::config::{Loaded, Problem, Source, load, overlay_value};
use serde_json::{Map, Value};
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

const HEADER: &str = "# Written by `nexus adapter`, `plugin`, `automation`, `nostr` and `project`; what stands here wins over nex.yaml.\n";

/// The configuration as a change finds it.
#[derive(Debug)]
pub(crate) struct Before {
    /// What `nex.yaml` itself says in the section that changes.
    main: Value,
    /// What is in force.
    pub(crate) loaded: Loaded,
}

impl Before {
    /// Whether `nex.yaml` itself has this entry; the overlay can't delete such a one.
    pub(crate) fn is_in_main(&self, path: &[&str]) -> bool {
        self.in_main(path).is_some()
    }

    /// What `nex.yaml` itself says at a path below the section.
    pub(crate) fn in_main(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(&self.main, |value, key| value.get(key))
    }
}

/// Reads, changes and writes the overlay. `change` gets the mapping under `section`; what it returns is
/// returned.
///
/// # Errors
/// What `change` refuses; every problem of the outcome if it doesn't load (code 78).
pub(crate) fn edit<T>(
    paths: &Paths,
    section: &str,
    change: impl FnOnce(&mut Map<String, Value>, &Before) -> Result<T, Failure>,
) -> anyhow::Result<T> {
    edit_whole(paths, section, |root, before| change(entry(root, section), before), || Ok(()))
}

/// As [`edit`], of all sections at once, so that none counts without the others; `before` tells of `section`. What the
/// outcome needs beside the overlay, `beside` writes, once it is known that it loads and before it counts: that stays where
/// the overlay can't be written after it.
///
/// # Errors
/// Those of [`edit`], and of `beside`.
pub(crate) fn edit_whole<T>(
    paths: &Paths,
    section: &str,
    change: impl FnOnce(&mut Map<String, Value>, &Before) -> Result<T, Failure>,
    beside: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<T> {
    let path = paths.overlay_file();
    let _lock = lock(&path).with_context(|| format!("failed to lock `{}`", path.display()))?;
    let main_text = read(&paths.config_file)?;
    let old_text = read(&path)?;
    let (main_name, overlay_name) = (paths.config_file.display().to_string(), path.display().to_string());
    let main = Source { name: &main_name, text: &main_text };
    let invalid = |problems: Vec<Problem>| Failure::bad_config(&problems);
    let loaded = load(main, Some(Source { name: &overlay_name, text: &old_text })).map_err(invalid)?;
    let before = Before { main: section_of(overlay_value(&main_text).map_err(invalid)?, section), loaded };
    let mut root = object(overlay_value(&old_text).map_err(invalid)?);
    let changed = change(&mut root, &before)?;
    root.retain(|_, fields| fields.as_object().is_none_or(|fields| !fields.is_empty()));
    let text = format!("{HEADER}{}", yaml::emit(&Value::Object(root)));
    load(main, Some(Source { name: &overlay_name, text: &text })).map_err(invalid)?;
    beside()?;
    replace(&path, &text).with_context(|| format!("failed to write `{}`", path.display()))?;
    Ok(changed)
}

/// A mapping at `key`, made if there is none.
pub(crate) fn entry<'m>(map: &'m mut Map<String, Value>, key: &str) -> &'m mut Map<String, Value> {
    let slot = map.entry(key).or_insert_with(|| Value::Object(Map::new()));
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut().expect("it was just made an object")
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        // An empty file or section.
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}

/// One section, also of a `config.yaml` with everything under `nex:`.
fn section_of(mut main: Value, section: &str) -> Value {
    let wrapped = main.get_mut("nex").and_then(|inner| inner.get_mut(section)).map(Value::take);
    main.get_mut(section).map(Value::take).or(wrapped).unwrap_or_default()
}

fn read(path: &Path) -> anyhow::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("failed to read `{}`", path.display())),
    }
}

/// Waits until no other command changes the overlay. The lock file stays: it is what is locked.
fn lock(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path.with_extension("yaml.lock"))?;
    file.lock()?;
    Ok(file)
}

/// Puts a new file in the place of the old one: who reads sees one or the other.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("yaml.new");
    // A leftover of a crash may have other permissions.
    match std::fs::remove_file(&fresh) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    crate::torture::rename(&fresh, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::failure::Exit;
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn sections_are_found_wherever_they_are() {
        assert_eq!(section_of(json!({ "adapters": { "a": 1 } }), "adapters"), json!({ "a": 1 }));
        assert_eq!(section_of(json!({ "nex": { "plugins": { "b": 2 } }, "other": 1 }), "plugins"), json!({ "b": 2 }));
        assert_eq!(section_of(Value::Null, "adapters"), Value::Null);
    }

    #[test]
    fn entries_are_made_on_the_way() {
        let mut map = Map::new();
        entry(entry(&mut map, "a"), "b").insert("c".into(), json!(1));
        assert_eq!(Value::Object(map.clone()), json!({ "a": { "b": { "c": 1 } } }));
        map.insert("a".into(), Value::Null);
        assert!(entry(&mut map, "a").is_empty());
    }

    #[test]
    fn files_are_replaced_whole_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/overlay.yaml");
        let held = lock(&path).unwrap();
        std::fs::write(path.with_extension("yaml.new"), "left by a crash").unwrap();
        for text in ["one\n", "two\n"] {
            replace(&path, text).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!path.with_extension("yaml.new").exists());
        assert!(File::open(path.with_extension("yaml.lock")).unwrap().try_lock().is_err());
        drop(held);
        assert!(lock(&path).is_ok());
    }

    #[test]
    fn a_refusal_keeps_its_code() {
        let refused: anyhow::Error = Failure::new(Exit::NotFound, "no").into();
        assert_eq!(refused.downcast_ref::<Failure>().map(|failure| failure.exit), Some(Exit::NotFound));
    }
}
