//! Reads the configuration files. What they mean is `nexus_core::config`'s.

use super::paths::{Paths, private_dir};
use crate::plugin::names_on_disk;
use nexus_core::config::{DEFAULT_YAML, Loaded, Problem, Source, load as parse};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Largest file that is read; the parser's own limit is lower.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("configuration file `{0}` does not exist; write it, or name none by --config and NEXUS_CONFIG to have a default made")]
    Missing(PathBuf),
    #[error("failed to read `{path}`; check that it is a file, its owner and its permissions")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Line and column count from 1, the column in characters.
    #[error("{}:{line}:{column}: this byte is not UTF-8; save the file as UTF-8", .path.display())]
    NotUtf8 { path: PathBuf, line: usize, column: usize },
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Loads the configuration with the overlay that CLI verbs write.
///
/// # Errors
/// [`LoadError`], with every problem of both files at once.
pub fn load(paths: &Paths) -> Result<Loaded, LoadError> {
    load_and(paths, |_, _, _| Vec::new())
}

/// The same for a daemon: each plugin that is enabled is there, too. Who only reads records can do
/// without.
///
/// # Errors
/// [`LoadError`], with every problem of both files at once.
pub fn load_whole(paths: &Paths) -> Result<Loaded, LoadError> {
    load_and(paths, |loaded, main, overlay| {
        let found = names_on_disk(&paths.plugins_dir(&loaded.config.plugins.directory));
        loaded.unknown_plugins(&found, main, overlay)
    })
}

fn load_and(paths: &Paths, check: impl FnOnce(&Loaded, Source<'_>, Option<Source<'_>>) -> Vec<Problem>) -> Result<Loaded, LoadError> {
    let text = read(&paths.config_file)?.ok_or_else(|| LoadError::Missing(paths.config_file.clone()))?;
    let overlay_file = paths.overlay_file();
    let overlay = read(&overlay_file)?;
    let (name, overlay_name) = (paths.config_file.display().to_string(), overlay_file.display().to_string());
    let overlay = overlay.as_deref().map(|text| Source { name: &overlay_name, text });
    let main = Source { name: &name, text: &text };
    let loaded = parse(main, overlay).map_err(LoadError::Invalid)?;
    let problems = check(&loaded, main, overlay);
    if problems.is_empty() { Ok(loaded) } else { Err(LoadError::Invalid(problems)) }
}

/// Writes the commented default where there is no file and none was named. True if it was written.
///
/// # Errors
/// Of the file system. An existing file is never touched.
pub fn ensure_default(paths: &Paths) -> std::io::Result<bool> {
    if paths.config_named || paths.config_file.exists() {
        return Ok(false);
    }
    private_dir(&paths.workspace)?;
    crate::credential::write_private(&paths.config_file, DEFAULT_YAML.as_bytes())?;
    Ok(true)
}

fn read(path: &Path) -> Result<Option<String>, LoadError> {
    let failed = |source| LoadError::Io { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 == FILE_BYTES_MAX {
        // Perhaps cut within a character: it is refused for its length, and not for that.
        return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
    }
    String::from_utf8(bytes).map(Some).map_err(|error| not_utf8(path, &error.as_bytes()[..error.utf8_error().valid_up_to()]))
}

/// `good` is what stands before the first bad byte.
fn not_utf8(path: &Path, good: &[u8]) -> LoadError {
    let good = String::from_utf8_lossy(good);
    let line = good.matches('\n').count() + 1;
    let column = good.rsplit('\n').next().map_or(0, |start| start.chars().count()) + 1;
    LoadError::NotUtf8 { path: path.to_owned(), line, column }
}
