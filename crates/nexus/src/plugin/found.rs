//! The plugins that lie in `plugins.directory`: which there are, what each is, and whether its files
//! changed. It starts nothing.

use nexus_core::config::{PLUGIN_FILE, PluginFile, Source, load_plugin_file};
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a script's file can end in.
pub(super) const SCRIPTS: [&str; 2] = ["ts", "js"];
/// Types for editors, such as `nexus.d.ts`; no plugin.
const TYPES: &str = ".d.ts";
/// Entries of the plugins' directory, and files of one plugin's, that are looked at.
pub(super) const ENTRIES_MAX: usize = 1000;
/// Largest `plugin.yaml` that is read; the parser's own limit is lower.
const FILE_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// What identifies the content of a file: another one differs in one of these.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    name: String,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

/// The files of a plugin as they were. Equal ones mean that nothing changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stamp(Vec<Mark>);

/// What a plugin is made of.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// A TypeScript or JavaScript file for our own host.
    Script(PathBuf),
    /// A program in a directory of its own.
    Program { directory: PathBuf, file: Box<PluginFile> },
}

/// A plugin on the disk.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) stamp: Stamp,
}

/// The names of all plugins in `directory`. Nothing, when it can't be read: then there are none.
pub(crate) fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().take(ENTRIES_MAX);
    let name = |entry: fs::DirEntry| {
        let path = entry.path();
        let is_script = SCRIPTS.iter().any(|end| path.extension().is_some_and(|found| found == *end)) && path.is_file();
        let is_script = is_script && !path.to_string_lossy().ends_with(TYPES);
        let is_program = path.join(PLUGIN_FILE).is_file();
        let name = if is_program { path.file_name() } else { path.file_stem().filter(|_| is_script) };
        name.map(|name| name.to_string_lossy().into_owned())
    };
    entries.filter_map(name).collect()
}

/// The plugin `name`.
///
/// # Errors
/// A sentence that says what is wrong, of several lines for a `plugin.yaml` with mistakes.
pub(super) fn find(directory: &Path, name: &str) -> Result<Found, String> {
    let own = directory.join(name);
    let has_file = own.join(PLUGIN_FILE).is_file();
    let stamp = stamp(directory, name);
    let all: Vec<PathBuf> = scripts(directory, name).chain(has_file.then(|| own.clone())).collect();
    let kind = match all.as_slice() {
        [one, other, ..] => return Err(format!("there are two of that name, `{}` and `{}`; remove one", one.display(), other.display())),
        [_] if has_file => Kind::Program { file: Box::new(read(&own.join(PLUGIN_FILE), name)?), directory: own },
        [script] => Kind::Script(script.clone()),
        [] => return Err(format!("there is no {name}.ts, {name}.js or {name}/{PLUGIN_FILE} in `{}`", directory.display())),
    };
    Ok(Found { name: name.to_owned(), kind, stamp })
}

/// The files of the plugin `name` as they are now: its script, or what lies in its directory, without
/// what lies deeper and what is hidden.
pub(super) fn stamp(directory: &Path, name: &str) -> Stamp {
    let mut marks: Vec<Mark> = scripts(directory, name).filter_map(|path| mark(&path)).collect();
    let entries = fs::read_dir(directory.join(name)).into_iter().flatten().flatten().take(ENTRIES_MAX);
    let seen = entries.map(|entry| entry.path()).filter(|path| !is_hidden(path));
    marks.extend(seen.filter_map(|path| mark(&path)));
    marks.sort_by(|a, b| a.name.cmp(&b.name));
    Stamp(marks)
}

/// The script files of that name: one of them is a plugin, two are nobody knows which.
pub(super) fn scripts(directory: &Path, name: &str) -> impl Iterator<Item = PathBuf> {
    SCRIPTS.iter().map(move |end| directory.join(format!("{name}.{end}"))).filter(|path| path.is_file())
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'))
}

/// `None` for what isn't a file, or is gone by now.
fn mark(path: &Path) -> Option<Mark> {
    let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let modified = (metadata.mtime(), metadata.mtime_nsec());
    Some(Mark { name: path.to_string_lossy().into_owned(), inode: metadata.ino(), bytes: metadata.size(), modified })
}

fn read(path: &Path, name: &str) -> Result<PluginFile, String> {
    let shown = path.display().to_string();
    let failed = |error: std::io::Error| format!("failed to read `{shown}`: {error}");
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(failed)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|_| format!("`{shown}` is not UTF-8"))?;
    let loaded = load_plugin_file(name, Source { name: &shown, text: &text });
    let (file, warnings) = loaded.map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    warnings.iter().for_each(|warning| tracing::warn!(plugin = name, "{warning}"));
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn place() -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("one.ts"), "").unwrap();
        fs::write(place.path().join("two.js"), "").unwrap();
        fs::write(place.path().join("readme.md"), "").unwrap();
        fs::write(place.path().join("nexus.d.ts"), "").unwrap();
        for name in ["three", "empty"] {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        fs::write(place.path().join("three/plugin.yaml"), "{command: run, hooks: [onError]}").unwrap();
        place
    }

    #[test]
    fn scripts_and_directories_with_a_file_are_plugins() {
        let place = place();
        assert_eq!(names(place.path()), BTreeSet::from(["one", "three", "two"].map(str::to_owned)));
        assert!(names(&place.path().join("nowhere")).is_empty());
        assert!(matches!(find(place.path(), "two").unwrap().kind, Kind::Script(path) if path.ends_with("two.js")));
        assert!(matches!(find(place.path(), "three").unwrap().kind, Kind::Program { file, .. } if file.argv == ["run"]));
        assert!(find(place.path(), "empty").unwrap_err().contains("there is no empty.ts"));
        fs::write(place.path().join("three.js"), "").unwrap();
        assert!(find(place.path(), "three").unwrap_err().contains("two of that name"));
        let alone = stamp(place.path(), "one");
        fs::write(place.path().join("one.js"), "").unwrap();
        assert!(find(place.path(), "one").unwrap_err().contains("two of that name"), "nobody knows which is meant");
        assert_ne!(stamp(place.path(), "one"), alone, "it is looked at when the second one comes");
    }

    #[test]
    fn a_wrong_file_is_told_with_its_place() {
        let place = place();
        fs::write(place.path().join("three/plugin.yaml"), "command: run\nhooks: [never]\n").unwrap();
        let error = find(place.path(), "three").unwrap_err();
        assert!(error.contains("three/plugin.yaml:2:9: `hooks` must be one of"), "{error}");
        fs::write(place.path().join("three/plugin.yaml"), [0xff]).unwrap();
        assert!(find(place.path(), "three").unwrap_err().contains("not UTF-8"));
    }

    #[test]
    fn a_stamp_changes_with_the_files_and_with_nothing_else() {
        let place = place();
        let before = stamp(place.path(), "three");
        fs::write(place.path().join("three/.state"), "x").unwrap();
        fs::create_dir(place.path().join("three/cache")).unwrap();
        fs::write(place.path().join("three/cache/x"), "x").unwrap();
        assert_eq!(stamp(place.path(), "three"), before);
        fs::write(place.path().join("three/more.py"), "x").unwrap();
        let more = stamp(place.path(), "three");
        assert_ne!(more, before);
        fs::rename(place.path().join("three/.state"), place.path().join("three/more.py")).unwrap();
        assert_ne!(stamp(place.path(), "three"), more, "another file of the same size");
        assert_eq!(stamp(place.path(), "nowhere"), Stamp::default());
    }
}
