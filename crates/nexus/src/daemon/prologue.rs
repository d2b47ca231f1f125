//! Steps 1 to 3 of the start and the keeper: all that happens before the runtime and its threads.

use super::config::{ensure_default, load};
use super::error::StartError;
use super::lock::{Hold, LastRun, Lock};
use super::paths::{Paths, private_dir};
use super::{Prologue, StartOptions};
use crate::keeper::{Cgroup, leftovers};
use crate::logging::Logging;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Instant;

/// Characters of a ULID, as an instance is named.
const INSTANCE_CHARS: usize = 26;

/// Steps 1 to 3 and the keeper, before the runtime and its threads exist.
pub(super) fn run(options: StartOptions) -> Result<(Hold, Prologue), StartError> {
    let began = Instant::now();
    let paths = Paths::resolve(options.config.as_deref())?;
    let before = LastRun::read(&paths);
    let lock = Lock::acquire(&paths, |pid| say(&format!("cleaning up after PID {pid}")))?;
    let mut hold = Hold::new(paths.clone(), lock, before);
    ensure_default(&paths)
        .map(|made| {
            if made {
                say(&format!("created {}", paths.config_file.display()))
            }
        })
        .map_err(|source| StartError::File { operation: "create", path: paths.config_file.clone(), source })?;
    let loaded = load(&paths)?;
    let level = options.log_level.unwrap_or(loaded.config.daemon.log_level);
    let log_file = options.detached.then(|| paths.log_file());
    for directory in [paths.run_dir(), paths.state_dir.join("logs")] {
        private_dir(&directory).map_err(|source| StartError::File { operation: "create", path: directory, source })?;
    }
    let logging = Logging::install(level, log_file).map_err(|error| StartError::Logging(error.to_string()))?;
    hold.begin().map_err(|source| StartError::File { operation: "write", path: paths.last_run(), source })?;
    let instance = instance(&paths)?;
    let cgroup = Arc::new(Cgroup::prepare(&paths.state_dir, &instance));
    hold.cgroup_is(cgroup.clone());
    // Beside the cgroup: the daemon before may have had none, or we may be inside of it.
    let cleared = leftovers::clear_marked(&instance);
    if !cleared.killed.is_empty() || !cleared.left.is_empty() {
        tracing::warn!(
            killed = cleared.killed.len(),
            left = cleared.left.len(),
            "leftovers of a daemon and its keeper that were both killed"
        );
    }
    let lock_file = hold.lock_file().map_err(StartError::Keeper)?;
    let keeper = crate::keeper::launch(&lock_file).map_err(StartError::Keeper)?;
    hold.keeper_is(keeper.pid);
    Ok((hold, Prologue { options, paths, lock_file, instance, cgroup, loaded, logging, keeper, began }))
}

/// The random name of this state directory, made once. It is bound to the directory by that one's device
/// and inode: a copy gets a name of its own, or two daemons would kill each other's children.
fn instance(paths: &Paths) -> Result<String, StartError> {
    let failed = |operation, path| move |source| StartError::File { operation, path, source };
    let directory = std::fs::metadata(&paths.state_dir).map_err(failed("look at", paths.state_dir.clone()))?;
    let here = format!("{}:{}", directory.dev(), directory.ino());
    let path = paths.instance();
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    let mut lines = known.lines();
    let is_name = |name: &&str| name.len() == INSTANCE_CHARS && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if let Some(name) = lines.next().filter(is_name) {
        if lines.next() == Some(here.as_str()) {
            return Ok(name.to_owned());
        }
        tracing::info!("the name of this state directory was made for another one, or on another device; it gets one of its own");
    }
    let new = ulid::Ulid::generate().to_string();
    crate::credential::write_private(&path, format!("{new}\n{here}\n").as_bytes()).map_err(failed("write", path))?;
    Ok(new)
}

/// A line for whoever watches the start; JSON logs go elsewhere.
pub(super) fn say(line: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "{line}")); // nobody may be there to read it
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
        let name = instance(&first).unwrap();
        assert_eq!(name.len(), INSTANCE_CHARS);
        assert_eq!(instance(&first).unwrap(), name);

        let copy = paths(&directory.path().join("copy"));
        fs::copy(first.instance(), copy.instance()).unwrap();
        let others = instance(&copy).unwrap();
        assert_ne!(others, name);
        assert_eq!(instance(&copy).unwrap(), others, "it is bound to where it is now");
        assert_eq!(instance(&first).unwrap(), name);

        fs::rename(&first.state_dir, directory.path().join("moved")).unwrap();
        assert_eq!(instance(&paths(&directory.path().join("moved"))).unwrap(), name);
    }

    #[test]
    fn what_is_no_name_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let paths = paths(directory.path());
        let good = instance(&paths).unwrap();
        let bound = fs::read_to_string(paths.instance()).unwrap().lines().nth(1).unwrap().to_owned();
        let texts = [String::new(), good.clone(), format!("../{}\n{bound}\n", "x".repeat(23)), format!("{good}0\n{bound}\n")];
        for text in texts {
            fs::write(paths.instance(), &text).unwrap();
            let name = instance(&paths).unwrap();
            assert!(name != good && name.len() == INSTANCE_CHARS && !name.contains('/'), "{text:?} became {name}");
        }
    }
}
