//! Where things lie (requirement: File Locations).

use crate::backup::programs::Places;
use std::path::{Path, PathBuf};

/// State directory, workspace and configuration file of one daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// `~/.nexus` or `$NEXUS_STATE_DIR`.
    pub state_dir: PathBuf,
    pub config_file: PathBuf,
    /// The configuration file's directory.
    pub workspace: PathBuf,
    /// The configuration file was named, by `--config` or `$NEXUS_CONFIG`.
    pub config_named: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    #[error("HOME is not set; set it, or both NEXUS_STATE_DIR and --config")]
    NoHome,
    #[error("failed to find the current directory")]
    NoCurrent(#[source] std::io::Error),
}

impl Paths {
    /// Finds the files; creates none.
    ///
    /// # Errors
    /// When neither the home directory nor the needed variables are known.
    pub fn resolve(config: Option<&Path>) -> Result<Self, PathsError> {
        let home = || std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from).ok_or(PathsError::NoHome);
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let state_dir = match variable("NEXUS_STATE_DIR") {
            Some(path) => absolute(&path)?,
            None => home()?.join(".nexus"),
        };
        let named = config.map(Path::to_owned).or_else(|| variable("NEXUS_CONFIG"));
        let config_named = named.is_some();
        let config_file = match named {
            Some(path) => absolute(&path)?,
            None => default_config(&home()?),
        };
        let workspace = config_file.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Self { state_dir, config_file, workspace, config_named })
    }

    pub fn pid_file(&self) -> PathBuf {
        self.state_dir.join("nex.pid")
    }

    pub fn socket(&self) -> PathBuf {
        self.state_dir.join("nex.sock")
    }

    pub fn log_file(&self) -> PathBuf {
        self.state_dir.join("logs/nex.log")
    }

    /// How the last run ended, or that one goes on.
    pub fn last_run(&self) -> PathBuf {
        self.state_dir.join("last-run.json")
    }

    /// The random name that marks this daemon's children.
    pub fn instance(&self) -> PathBuf {
        self.state_dir.join("instance")
    }

    /// Context files of running children.
    pub fn run_dir(&self) -> PathBuf {
        self.state_dir.join("run")
    }

    /// Secrets, a directory for each service.
    pub fn credentials_dir(&self) -> PathBuf {
        self.workspace.join("state/credentials")
    }

    /// What verbs changed of the configuration, over what its file says.
    pub fn overlay_file(&self) -> PathBuf {
        self.workspace.join("state/overlay.yaml")
    }

    pub fn automations_dir(&self) -> PathBuf {
        self.workspace.join("state/automations")
    }

    /// `plugins.directory`, which counts from the workspace too.
    pub fn plugins_dir(&self, configured: &str) -> PathBuf {
        self.data_dir(configured)
    }

    /// Automations and plugins, for a backup. `data` is where the ledgers are.
    pub fn programs(&self, plugins_directory: &str, data: &Path) -> Places {
        Places {
            automations: self.automations_dir(),
            plugins: self.plugins_dir(plugins_directory),
            never: vec![self.credentials_dir(), self.state_dir.clone(), data.to_owned()],
        }
    }

    /// `ledgers.directory`, which counts from the workspace.
    pub fn data_dir(&self, configured: &str) -> PathBuf {
        let data = self.workspace.join(configured);
        // `./data` reads better without its dot.
        data.components().filter(|part| !matches!(part, std::path::Component::CurDir)).collect()
    }
}

/// `nex.yaml`, or `config.yaml` with a `nex:` key where only that exists.
fn default_config(home: &Path) -> PathBuf {
    let (first, second) = (home.join("nexus/nex.yaml"), home.join("nexus/config.yaml"));
    if !first.exists() && second.exists() { second } else { first }
}

fn absolute(path: &Path) -> Result<PathBuf, PathsError> {
    std::path::absolute(path).map_err(PathsError::NoCurrent)
}

/// Creates a directory that only this user can enter.
///
/// # Errors
/// Of the file system.
pub fn private_dir(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
