//! The files in `state/automations`: which there are, whether one changed, and its text. It starts nothing.

use super::super::found::{ENTRIES_MAX, SCRIPTS, Stamp, scripts, stamp};
use nexus_core::automation::is_name;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Automations at once.
const AUTOMATIONS_MAX: usize = 64;
/// Longest file, in bytes.
pub(crate) const SOURCE_BYTES_MAX: u64 = 1024 * 1024;

/// Why a version of a file is no automation, and which one.
pub(super) type Refused = (Stamp, String);

/// The text of an automation.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) source: String,
    pub(super) stamp: Stamp,
}

/// The names of all automations in `directory`. Nothing, when it can't be read: then there are none.
pub(crate) fn names_on_disk(directory: &Path) -> BTreeSet<String> {
    stems(directory).into_iter().filter(|name| is_name(name)).collect()
}

/// Every file that could be an automation, with its version or with why it is none.
pub(super) fn look(directory: &Path) -> BTreeMap<String, Result<Stamp, Refused>> {
    let judged = |(n, name): (usize, String)| {
        let version = stamp(directory, &name);
        let why = if !is_name(&name) {
            Some("its name can't be used: a name has 1 to 64 characters of A-Z a-z 0-9 . _ @ + -, not starting with - or .".to_owned())
        } else if scripts(directory, &name).nth(1).is_some() {
            Some(format!("there are two of that name, {name}.ts and {name}.js; remove one"))
        } else if n >= AUTOMATIONS_MAX {
            Some(format!("there are more than {AUTOMATIONS_MAX} automations"))
        } else {
            None
        };
        (name, why.map_or_else(|| Ok(version.clone()), |why| Err((version.clone(), why))))
    };
    stems(directory).into_iter().enumerate().map(judged).collect()
}

/// The automation `name`, read.
///
/// # Errors
/// A sentence that says what is wrong.
pub(super) fn read(directory: &Path, name: &str) -> Result<File, Refused> {
    let version = stamp(directory, name);
    let refused = |why: String| (version.clone(), why);
    let path = scripts(directory, name)
        .next()
        .ok_or_else(|| refused(format!("there is no {name}.ts or {name}.js in `{}`", directory.display())))?;
    let source = text(&path).map_err(refused)?;
    Ok(File { name: name.to_owned(), path, source, stamp: version })
}

fn text(path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("failed to read `{}`: {error}", path.display());
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(failed)?.take(SOURCE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > SOURCE_BYTES_MAX {
        return Err(format!("`{}` is longer than {SOURCE_BYTES_MAX} bytes", path.display()));
    }
    let text = String::from_utf8(bytes).map_err(|error| format!("`{}` is not UTF-8: {error}", path.display()))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// The names of scripts that aren't hidden; types (`nexus.d.ts`) are none.
fn stems(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().take(ENTRIES_MAX).map(|entry| entry.path());
    let is_script = |path: &PathBuf| SCRIPTS.iter().any(|end| path.extension().is_some_and(|found| found == *end)) && path.is_file();
    let stem = |path: PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    entries.filter(is_script).filter_map(stem).filter(|name| !name.starts_with('.') && !name.ends_with(".d")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn scripts_are_automations_and_nothing_else_is() {
        let place = tempfile::tempdir().unwrap();
        for file in ["one.ts", "two.js", "nexus.d.ts", ".draft.ts", "notes.md", "b d.js", "twice.ts", "twice.js"] {
            fs::write(place.path().join(file), "x").unwrap();
        }
        fs::create_dir(place.path().join("dir.ts")).unwrap();
        assert_eq!(names_on_disk(place.path()), BTreeSet::from(["one", "twice", "two"].map(str::to_owned)));
        let found = look(place.path());
        assert_eq!(found.keys().collect::<Vec<_>>(), ["b d", "one", "twice", "two"]);
        assert!(found["one"].is_ok() && found["two"].is_ok());
        assert!(found["b d"].as_ref().unwrap_err().1.contains("its name can't be used"));
        assert!(found["twice"].as_ref().unwrap_err().1.contains("two of that name"));
        assert!(look(&place.path().join("nowhere")).is_empty());
    }

    #[test]
    fn a_file_is_read_with_its_version() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("one.ts"), "\u{feff}export").unwrap();
        let file = read(place.path(), "one").unwrap();
        assert_eq!((file.name.as_str(), file.source.as_str()), ("one", "export"));
        assert_eq!(look(place.path())["one"], Ok(file.stamp));
        assert!(read(place.path(), "two").unwrap_err().1.contains("there is no two.ts"));
        fs::write(place.path().join("bad.js"), [0xff]).unwrap();
        assert!(read(place.path(), "bad").unwrap_err().1.contains("not UTF-8"));
        fs::write(place.path().join("long.js"), vec![b'x'; SOURCE_BYTES_MAX as usize + 1]).unwrap();
        assert!(read(place.path(), "long").unwrap_err().1.contains("is longer than"));
    }

    #[test]
    fn there_is_an_end_to_how_many_there_can_be() {
        let place = tempfile::tempdir().unwrap();
        for n in 0..=AUTOMATIONS_MAX {
            fs::write(place.path().join(format!("a{n:03}.js")), "x").unwrap();
        }
        let found = look(place.path());
        assert_eq!(found.values().filter(|version| version.is_ok()).count(), AUTOMATIONS_MAX);
    }
}
