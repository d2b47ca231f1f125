//! Reads the configuration files. What they mean is `nexus_core::config`'s.

use super::paths::{Paths, private_dir};
use nexus_core::config::{DEFAULT_YAML, Loaded, Problem, Source, load as parse};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Largest file that is read; the parser's own limit is lower.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("configuration file `{0}` does not exist")]
    Missing(PathBuf),
    #[error("failed to read `{path}`")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
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
    let text = read(&paths.config_file)?.ok_or_else(|| LoadError::Missing(paths.config_file.clone()))?;
    let overlay_file = paths.overlay_file();
    let overlay = read(&overlay_file)?;
    let (name, overlay_name) = (paths.config_file.display().to_string(), overlay_file.display().to_string());
    let overlay = overlay.as_deref().map(|text| Source { name: &overlay_name, text });
    parse(Source { name: &name, text: &text }, overlay).map_err(LoadError::Invalid)
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
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(Some(text))
}
