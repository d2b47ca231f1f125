//! `manifest.json`: what a backup holds, and by what it is known to be whole. It is written last, so that
//! a directory without one is no backup.

use super::programs::Programs;
use super::{CONFIG_FILE, OVERLAY_FILE};
use crate::ledger::{Counters, Ledger};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Its name within a backup.
pub const MANIFEST_FILE: &str = "manifest.json";
/// What this program writes and reads.
const FORMAT: u32 = 1;
/// Longest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 1024 * 1024;
/// Read at a time.
const CHUNK_BYTES: usize = 1024 * 1024;
/// What is said of what isn't there.
const NOT_INCLUDED: &str = "credentials (state/credentials), what `env:`, `command:`, key and token files name, and programs outside of \
    state/automations and plugins.directory: keep those yourself; bus.db";

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    /// The version of the program that made it.
    pub version: String,
    /// When it was begun, in Unix ms, and for people.
    pub made_at: i64,
    pub made: String,
    /// A daemon was running: what happened behind the copies is not in it.
    pub online: bool,
    /// By the names within the backup.
    pub files: BTreeMap<String, Entry>,
    pub counters: Counters,
    /// Automations and plugins.
    #[serde(default)]
    pub programs: Programs,
    pub not_included: String,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub bytes: u64,
    /// In hexadecimal digits.
    pub sha256: String,
    /// Of a ledger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
}

/// Why a directory is no backup that can be restored.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("`{0}` is no whole backup: it has no {MANIFEST_FILE}, which is written last")]
    Missing(PathBuf),
    #[error("failed to read `{path}`; check its owner and permissions")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` is no manifest of a backup; it was changed, or is of another program")]
    Malformed {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("`{path}` is longer than {MANIFEST_BYTES_MAX} bytes: no manifest is")]
    TooLong { path: PathBuf },
    #[error("`{path}` has format {found}, this nexus knows {FORMAT}; restore it with the nexus that made it, or a newer one")]
    Format { path: PathBuf, found: u32 },
    #[error("`{path}` doesn't list `{name}`, which every backup has")]
    Incomplete { path: PathBuf, name: String },
    #[error("`{name}` of the backup has schema {found}, this nexus knows {known}; restore it with the newer nexus")]
    Newer { name: String, found: u32, known: u32 },
}

impl Manifest {
    pub(crate) fn new(made_at: i64, online: bool, files: BTreeMap<String, Entry>, counters: Counters, programs: Programs) -> Self {
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            made_at,
            made: crate::clock::rfc3339(made_at),
            online,
            files,
            counters,
            programs,
            not_included: NOT_INCLUDED.into(),
        }
    }

    /// The manifest of the backup in `directory`, with all four ledgers in it, none newer than this program.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn read(directory: &Path) -> Result<Self, ManifestError> {
        let path = directory.join(MANIFEST_FILE);
        let io = |source| ManifestError::Io { path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ManifestError::Missing(directory.to_owned())),
            Err(source) => return Err(io(source)),
        };
        let mut bytes = Vec::new();
        file.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong { path });
        }
        Self::parse(&bytes, &path)
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Self, ManifestError> {
        /// Asked first: another format may have other fields.
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let malformed = |source| ManifestError::Malformed { path: path.to_owned(), source };
        let head: Head = serde_json::from_slice(bytes).map_err(malformed)?;
        if head.format != FORMAT {
            return Err(ManifestError::Format { path: path.to_owned(), found: head.format });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        for ledger in Ledger::ALL {
            let name = ledger.file_name();
            let known = ledger.migrations().last().map_or(0, |step| step.version);
            match manifest.files.get(&name).and_then(|entry| entry.schema) {
                Some(found) if found > known => return Err(ManifestError::Newer { name, found, known }),
                Some(_) => {}
                None => return Err(ManifestError::Incomplete { path: path.to_owned(), name }),
            }
        }
        Ok(manifest)
    }

    /// The entry of a ledger; `parse` made sure of it.
    pub(crate) fn ledger(&self, ledger: Ledger) -> Option<&Entry> {
        self.files.get(&ledger.file_name())
    }

    /// The names of the configuration files that it lists, of those that a backup can have.
    pub(crate) fn config_files(&self) -> impl Iterator<Item = (&'static str, &Entry)> {
        [CONFIG_FILE, OVERLAY_FILE].into_iter().filter_map(|name| self.files.get(name).map(|entry| (name, entry)))
    }

    /// Bytes of all ledgers.
    pub(crate) fn ledger_bytes(&self) -> u64 {
        Ledger::ALL.iter().filter_map(|ledger| self.ledger(*ledger)).map(|entry| entry.bytes).fold(0, u64::saturating_add)
    }
}

/// Size and digest of what passes by.
#[derive(Debug, Default)]
pub(crate) struct Fingerprint {
    bytes: u64,
    digest: Sha256,
}

impl Fingerprint {
    pub(crate) fn add(&mut self, part: &[u8]) {
        self.bytes += part.len() as u64;
        self.digest.update(part);
    }

    pub(crate) fn entry(self, schema: Option<u32>) -> Entry {
        Entry { bytes: self.bytes, sha256: hex::encode(self.digest.finalize()), schema }
    }

    /// Takes in all of `source`, a piece at a time; each is given to `pass` on its way.
    pub(crate) fn read(source: &mut impl Read, pass: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<Self> {
        let mut fingerprint = Self::default();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match source.read(&mut chunk) {
                Ok(0) => return Ok(fingerprint),
                Ok(count) => {
                    fingerprint.add(&chunk[..count]);
                    pass(&chunk[..count])?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn manifest() -> Manifest {
        let entry = |schema| Entry { bytes: 1, sha256: "00".into(), schema };
        let mut files: BTreeMap<String, Entry> = Ledger::ALL.iter().map(|ledger| (ledger.file_name(), entry(Some(1)))).collect();
        files.insert(CONFIG_FILE.into(), entry(None));
        files.insert("../../etc/passwd".into(), entry(None));
        Manifest::new(7, true, files, Counters::default(), Programs::default())
    }

    fn reread(manifest: &Manifest) -> Result<Manifest, ManifestError> {
        Manifest::parse(&serde_json::to_vec(manifest).unwrap(), Path::new("m"))
    }

    #[test]
    fn it_is_read_as_it_was_written_and_only_known_names_count() {
        let written = manifest();
        let read = reread(&written).unwrap();
        assert_eq!(read, written);
        assert_eq!(read.config_files().map(|(name, _)| name).collect::<Vec<_>>(), [CONFIG_FILE]);
        assert_eq!(read.ledger_bytes(), 4);
    }

    #[test]
    fn what_is_newer_or_incomplete_is_refused() {
        let mut newer = manifest();
        newer.files.get_mut("nexus.db").unwrap().schema = Some(99);
        assert!(matches!(reread(&newer), Err(ManifestError::Newer { found: 99, .. })));
        let mut lacking = manifest();
        lacking.files.remove("identity.db");
        assert!(matches!(reread(&lacking), Err(ManifestError::Incomplete { .. })));
        let other = br#"{ "format": 2, "files": 7 }"#;
        assert!(matches!(Manifest::parse(other, Path::new("m")), Err(ManifestError::Format { found: 2, .. })));
        let cut = &serde_json::to_vec(&manifest()).unwrap()[..40];
        assert!(matches!(Manifest::parse(cut, Path::new("m")), Err(ManifestError::Malformed { .. })));
    }
}
