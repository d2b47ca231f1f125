//! The random name of a state directory, which marks the processes and the cgroup of its daemon.
//!
//! It is bound to the directory by that one's device and inode: a copy gets a name of its own, or two
//! daemons would kill each other's children.

use super::error::StartError;
use super::paths::Paths;
use std::os::unix::fs::MetadataExt;

/// Characters of a ULID.
const CHARS: usize = 26;

/// The name, if one was made for this very directory.
pub fn known(paths: &Paths) -> Option<String> {
    let here = here(paths).ok()?;
    let text = std::fs::read_to_string(paths.instance()).ok()?;
    let mut lines = text.lines();
    let name = lines.next().filter(|name| name.len() == CHARS && name.bytes().all(|byte| byte.is_ascii_alphanumeric()))?;
    (lines.next() == Some(here.as_str())).then(|| name.to_owned())
}

/// The name, made if need be.
///
/// # Errors
/// Of the file system.
pub(super) fn ensure(paths: &Paths) -> Result<String, StartError> {
    if let Some(name) = known(paths) {
        return Ok(name);
    }
    let failed = |operation, path| move |source| StartError::File { operation, path, source };
    let here = here(paths).map_err(failed("look at", paths.state_dir.clone()))?;
    if paths.instance().exists() {
        tracing::info!("the name of this state directory was made for another one, or on another device; it gets one of its own");
    }
    let new = ulid::Ulid::generate().to_string();
    let written = crate::credential::write_private(&paths.instance(), format!("{new}\n{here}\n").as_bytes());
    written.map_err(failed("write", paths.instance()))?;
    Ok(new)
}

fn here(paths: &Paths) -> std::io::Result<String> {
    let directory = std::fs::metadata(&paths.state_dir)?;
    Ok(format!("{}:{}", directory.dev(), directory.ino()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;
    use std::path::Path;

    fn paths(state_dir: &Path) -> Paths {
        fs::create_dir_all(state_dir).unwrap();
        Paths {
            state_dir: state_dir.to_owned(),
            config_file: state_dir.join("nex.yaml"),
            workspace: state_dir.to_owned(),
            config_named: true,
        }
    }

    #[test]
    fn a_state_directory_keeps_its_name_also_when_it_is_moved_and_a_copy_gets_another() {
        let directory = tempfile::tempdir().unwrap();
        let first = paths(&directory.path().join("first"));
        let name = ensure(&first).unwrap();
        assert_eq!(name.len(), CHARS);
        assert_eq!(ensure(&first).unwrap(), name);

        let copy = paths(&directory.path().join("copy"));
        fs::copy(first.instance(), copy.instance()).unwrap();
        let others = ensure(&copy).unwrap();
        assert_ne!(others, name);
        assert_eq!(ensure(&copy).unwrap(), others, "it is bound to where it is now");
        assert_eq!(ensure(&first).unwrap(), name);

        fs::rename(&first.state_dir, directory.path().join("moved")).unwrap();
        assert_eq!(ensure(&paths(&directory.path().join("moved"))).unwrap(), name);
    }

    #[test]
    fn what_is_no_name_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let paths = paths(directory.path());
        let good = ensure(&paths).unwrap();
        let bound = fs::read_to_string(paths.instance()).unwrap().lines().nth(1).unwrap().to_owned();
        let texts = [String::new(), good.clone(), format!("../{}\n{bound}\n", "x".repeat(23)), format!("{good}0\n{bound}\n")];
        for text in texts {
            fs::write(paths.instance(), &text).unwrap();
            let name = ensure(&paths).unwrap();
            assert!(name != good && name.len() == CHARS && !name.contains('/'), "{text:?} became {name}");
        }
    }
}
