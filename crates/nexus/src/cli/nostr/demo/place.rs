//! Where a demonstration keeps its files: the key of its user, and the directories of its relay, its daemon and
//! its projects, all below one. It starts nothing.

use crate::cli::failure::{Exit, Failure};
use crate::daemon::Paths;
use crate::daemon::paths::private_dir;
use ::nostr::key::Keys;
use anyhow::Context;
use serde_json::json;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The first line of a configuration that may be replaced.
const MARK: &str = "# Written by `nexus nostr demo`, again each time.";

#[derive(Debug)]
pub(super) struct Place {
    pub(super) root: PathBuf,
    is_temporary: bool,
}

impl Place {
    /// Makes the directory that was asked for, or a temporary one.
    ///
    /// # Errors
    /// Of the file system.
    pub(super) fn make(home: Option<&Path>) -> anyhow::Result<Self> {
        let (root, is_temporary) = match home {
            Some(home) => (std::path::absolute(home)?, false),
            None => (std::env::temp_dir().join(format!("nexus-demo-{}", ulid::Ulid::generate())), true),
        };
        let place = Self { root, is_temporary };
        for directory in [place.root.clone(), place.workspace(), place.state_dir()] {
            private_dir(&directory).with_context(|| format!("failed to make `{}`", directory.display()))?;
        }
        Ok(place)
    }

    pub(super) fn relay(&self) -> PathBuf {
        self.root.join("relay")
    }

    fn workspace(&self) -> PathBuf {
        self.root.join("nexus")
    }

    fn state_dir(&self) -> PathBuf {
        self.root.join("state")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// Where its daemon's files are.
    pub(super) fn paths(&self) -> Paths {
        let workspace = self.workspace();
        Paths { state_dir: self.state_dir(), config_file: workspace.join("nex.yaml"), workspace, config_named: true }
    }

    /// The user's key: the one that is here, or a new one.
    ///
    /// # Errors
    /// Of the file system, and when the file holds no key.
    pub(super) fn keys(&self) -> anyhow::Result<Keys> {
        let path = self.root.join("user.key");
        match fs::read_to_string(&path) {
            Ok(text) => Keys::parse(text.trim()).with_context(|| format!("`{}` holds no secret key", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let keys = Keys::generate();
                write_private(&path, &keys.secret_key().to_secret_hex())?;
                Ok(keys)
            }
            Err(error) => Err(error).with_context(|| format!("failed to read `{}`", path.display())),
        }
    }

    /// Writes the daemon's configuration.
    ///
    /// # Errors
    /// When there is one that somebody else wrote, and of the file system.
    pub(super) fn configure(&self, relay: &str, npub: &str) -> anyhow::Result<()> {
        let path = self.paths().config_file;
        let there = fs::read_to_string(&path).unwrap_or_default();
        if !there.is_empty() && !there.starts_with(MARK) {
            let text = format!("`{}` is not a demonstration's; choose another --home", path.display());
            return Err(Failure::new(Exit::Failed, text).into());
        }
        // JSON is YAML.
        let sections = json!({
            "daemon": { "port": 0 },
            "timer": { "heartbeat_interval_ms": 0 },
            "agents": { "default": "echo" },
            "nostr": { "relays": [relay], "whitelist": [npub] },
            "projects": { "path": self.root.join("projects") },
        });
        write_private(&path, &format!("{MARK}\n{sections:#}\n"))
    }

    /// Removes what is temporary.
    ///
    /// # Errors
    /// Of the file system.
    pub(super) fn tidy(&self) -> anyhow::Result<()> {
        if !self.is_temporary {
            return Ok(());
        }
        fs::remove_dir_all(&self.root).with_context(|| format!("failed to remove `{}`", self.root.display()))
    }
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("failed to write `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_stays_and_a_foreign_configuration_too() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::make(Some(&directory.path().join("home"))).unwrap();
        assert_eq!(place.keys().unwrap(), place.keys().unwrap());
        place.configure("ws://127.0.0.1:1", "npub1x").unwrap();
        place.configure("ws://127.0.0.1:2", "npub1x").unwrap();
        let config = place.paths().config_file;
        assert!(fs::read_to_string(&config).unwrap().contains("ws://127.0.0.1:2"));
        fs::write(&config, "daemon: {}").unwrap();
        assert!(place.configure("ws://127.0.0.1:3", "npub1x").is_err());
        place.tidy().unwrap();
        assert!(config.exists(), "what was asked for stays");
    }

    #[test]
    fn what_is_temporary_goes() {
        let place = Place::make(None).unwrap();
        place.keys().unwrap();
        assert!(place.root.exists());
        place.tidy().unwrap();
        assert!(!place.root.exists());
    }
}
