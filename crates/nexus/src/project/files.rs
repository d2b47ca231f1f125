//! What lies in a project's `.tenex/`: its configuration, its agents and its MCP servers (requirement: Directory
//! Structure). Each file is read through directories that are no links, within a bound, and written whole or not at
//! all. One that doesn't parse is an error with its place, never nothing.

use super::slug::is_slug;
use crate::error_text::describe;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

pub const TENEX: &str = ".tenex";
const CONFIG: &str = "config.json";
const REGISTRY: &str = "agents.json";
const AGENTS: &str = "agents";
const SERVERS: &str = "mcp-servers";
/// The line that keeps `.tenex/` out of the repository.
const IGNORED: &str = ".tenex/";
/// Largest file that is read or written there, and largest `.gitignore`, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Files of servers that are read.
const SERVERS_MAX: usize = 256;
/// Longest name of an agent or server in files, in characters.
pub(super) const SLUG_CHARS_MAX: usize = 48;

#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("failed to {operation} `{}`", .path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` is a link or no plain file or directory; nothing is read or written through it", .path.display())]
    NotPlain { path: PathBuf },
    #[error("`{}` is larger than {FILE_BYTES_MAX} bytes", .path.display())]
    TooLarge { path: PathBuf },
    #[error("`{}` has more than {SERVERS_MAX} files; the others are left out", .path.display())]
    TooMany { path: PathBuf },
    /// `file:line:column: what is wrong`.
    #[error("{}:{line}:{column}: {problem}", .path.display())]
    Malformed { path: PathBuf, line: usize, column: usize, problem: String },
}

impl FilesError {
    /// Whether the same attempt may succeed later without anybody changing anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Io { source, .. } => crate::error_text::is_passing(source),
            Self::NotPlain { .. } | Self::TooLarge { .. } | Self::TooMany { .. } | Self::Malformed { .. } => false,
        }
    }
}

/// `.tenex/config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProjectConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repo_url: Option<String>,
    pub project_naddr: String,
    /// What others put there.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// An agent in `.tenex/agents.json`, under its slug.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registered {
    /// Its file in `.tenex/agents/`.
    pub file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// The public key by which the project's roster names it, in hex. It needn't be the one that it signs with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roster_key: Option<String>,
    /// Who signs for it: the name of a key that the daemon has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// A key as TENEX keeps it. It is taken over by the daemon and leaves the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nsec: Option<String>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

pub type Registry = BTreeMap<String, Registered>;

/// `.tenex/agents/*.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentFile {
    pub name: String,
    pub role: String,
    pub description: String,
    pub instructions: String,
    pub use_criteria: String,
    pub tools: Vec<String>,
    pub mcp: Vec<String>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// `.tenex/mcp-servers/*.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerFile {
    pub name: String,
    pub command: String,
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub description: String,
    pub event_id: String,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The `.tenex/` of one project, held open: whatever takes the place of a path meanwhile, this stays what it was.
#[derive(Debug)]
pub struct Tenex {
    /// For messages.
    path: PathBuf,
    root: OwnedFd,
    agents: OwnedFd,
    servers: OwnedFd,
}

impl Tenex {
    /// Opens the `.tenex/` of the project in `directory`, making what isn't there.
    ///
    /// # Errors
    /// [`FilesError`], when a part of the way is a link above all.
    pub fn open(directory: &Path) -> Result<Self, FilesError> {
        let project = open_directory(CWD, directory, directory)?;
        let path = directory.join(TENEX);
        let root = make_directory(&project, TENEX, &path)?;
        let agents = make_directory(&root, AGENTS, &path.join(AGENTS))?;
        let servers = make_directory(&root, SERVERS, &path.join(SERVERS))?;
        Ok(Self { path, root, agents, servers })
    }

    /// # Errors
    /// [`FilesError`].
    pub fn config(&self) -> Result<Option<ProjectConfig>, FilesError> {
        read_json(&self.root, CONFIG, &self.path.join(CONFIG))
    }

    /// # Errors
    /// [`FilesError`].
    pub fn set_config(&self, config: &ProjectConfig) -> Result<(), FilesError> {
        write_json(&self.root, CONFIG, &self.path.join(CONFIG), config)
    }

    /// The agents by slug; none when there is no registry yet.
    ///
    /// # Errors
    /// [`FilesError`], also for a slug or a file that is no name.
    pub fn registry(&self) -> Result<Registry, FilesError> {
        let path = self.path.join(REGISTRY);
        let registry: Registry = read_json(&self.root, REGISTRY, &path)?.unwrap_or_default();
        for (slug, one) in &registry {
            if !is_slug(slug, SLUG_CHARS_MAX) || !is_file_name(&one.file) {
                let problem = format!("agent `{slug:.60}` with file `{:.80}`: a slug has a-z 0-9 -, and a file is NAME.json", one.file);
                return Err(FilesError::Malformed { path, line: 1, column: 1, problem });
            }
        }
        Ok(registry)
    }

    /// # Errors
    /// [`FilesError`].
    pub fn set_registry(&self, registry: &Registry) -> Result<(), FilesError> {
        write_json(&self.root, REGISTRY, &self.path.join(REGISTRY), registry)
    }

    /// # Errors
    /// [`FilesError`], also when it isn't there.
    pub fn agent(&self, file: &str) -> Result<AgentFile, FilesError> {
        let path = self.path.join(AGENTS).join(file);
        let read = read_json(&self.agents, file, &path)?;
        read.ok_or_else(|| FilesError::Io { operation: "read", path, source: io::Error::from(io::ErrorKind::NotFound) })
    }

    /// # Errors
    /// [`FilesError`].
    pub fn set_agent(&self, file: &str, agent: &AgentFile) -> Result<(), FilesError> {
        write_json(&self.agents, file, &self.path.join(AGENTS).join(file), agent)
    }

    /// # Errors
    /// [`FilesError`].
    pub fn remove_agent(&self, file: &str) -> Result<(), FilesError> {
        remove(&self.agents, file, &self.path.join(AGENTS).join(file))
    }

    /// The servers by slug. Those that can't be read are told beside them, and don't hide the others.
    ///
    /// # Errors
    /// [`FilesError`] when the directory can't be read.
    pub fn servers(&self) -> Result<(BTreeMap<String, ServerFile>, Vec<FilesError>), FilesError> {
        let path = self.path.join(SERVERS);
        let failed = |source: Errno| FilesError::Io { operation: "list", path: path.clone(), source: source.into() };
        let (mut servers, mut broken) = (BTreeMap::new(), Vec::new());
        for entry in rustix::fs::Dir::read_from(&self.servers).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            let Some(slug) = name.strip_suffix(".json").filter(|slug| is_slug(slug, SLUG_CHARS_MAX)) else { continue };
            if servers.len() + broken.len() >= SERVERS_MAX {
                broken.push(FilesError::TooMany { path: path.clone() });
                break;
            }
            match read_json(&self.servers, &name, &path.join(&name)) {
                Ok(Some(server)) => drop(servers.insert(slug.to_owned(), server)),
                Ok(None) => {}
                Err(error) => broken.push(error),
            }
        }
        Ok((servers, broken))
    }

    /// # Errors
    /// [`FilesError`].
    pub fn set_server(&self, slug: &str, server: &ServerFile) -> Result<(), FilesError> {
        let file = format!("{slug}.json");
        write_json(&self.servers, &file, &self.path.join(SERVERS).join(&file), server)
    }

    /// # Errors
    /// [`FilesError`].
    pub fn remove_server(&self, slug: &str) -> Result<(), FilesError> {
        let file = format!("{slug}.json");
        remove(&self.servers, &file, &self.path.join(SERVERS).join(&file))
    }
}

/// Has the `.gitignore` of `directory` name `.tenex/`, once. One that is a link, or not text, is left as it is.
///
/// # Errors
/// [`FilesError`].
pub fn ignore_tenex(directory: &Path) -> Result<(), FilesError> {
    let (name, path) = (".gitignore", directory.join(".gitignore"));
    let project = open_directory(CWD, directory, directory)?;
    let before = match read_bytes(&project, name, &path) {
        Ok(before) => before.unwrap_or_default(),
        Err(FilesError::NotPlain { .. } | FilesError::TooLarge { .. }) => {
            tracing::warn!(path = %path.display(), "not a plain file: `{IGNORED}` is not added to it");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    match ignoring(&before) {
        Some(after) if after != before => write_bytes(&project, name, &path, &after, Mode::from_raw_mode(0o644)),
        Some(_) | None => Ok(()),
    }
}

/// A `.gitignore` with the line; as it is where it has one. `None` for what isn't text.
pub(super) fn ignoring(before: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(before).ok()?;
    let has = text.lines().map(str::trim).any(|line| matches!(line, ".tenex" | ".tenex/" | "/.tenex" | "/.tenex/"));
    let mut after = before.to_vec();
    if !has {
        if !text.is_empty() && !text.ends_with('\n') {
            after.push(b'\n');
        }
        after.extend_from_slice(IGNORED.as_bytes());
        after.push(b'\n');
    }
    Some(after)
}

/// One part of a path, as a file of an agent is called.
fn is_file_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    name.strip_suffix(".json").is_some_and(|stem| !stem.is_empty() && stem.len() <= 128 && stem.bytes().all(allowed))
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn open_directory(at: impl rustix::fd::AsFd, name: impl rustix::path::Arg, path: &Path) -> Result<OwnedFd, FilesError> {
    rustix::fs::openat(at, name, DIRECTORY, Mode::empty()).map_err(|error| opened("open", error, path))
}

fn make_directory(at: &OwnedFd, name: &str, path: &Path) -> Result<OwnedFd, FilesError> {
    match rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => open_directory(at, name, path),
        Err(error) => Err(opened("make", error, path)),
    }
}

/// A link where a file or directory is wanted is answered with ELOOP, or ENOTDIR of a directory (open(2)).
fn opened(operation: &'static str, error: Errno, path: &Path) -> FilesError {
    match error {
        Errno::LOOP | Errno::NOTDIR => FilesError::NotPlain { path: path.to_owned() },
        other => FilesError::Io { operation, path: path.to_owned(), source: other.into() },
    }
}

fn read_bytes(at: &OwnedFd, name: &str, path: &Path) -> Result<Option<Vec<u8>>, FilesError> {
    // Without NONBLOCK a FIFO would be waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::openat(at, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(opened("open", error, path)),
    };
    let failed = |source| FilesError::Io { operation: "read", path: path.to_owned(), source };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(FilesError::NotPlain { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(FilesError::TooLarge { path: path.to_owned() });
    }
    Ok(Some(bytes))
}

fn read_json<T: DeserializeOwned>(at: &OwnedFd, name: &str, path: &Path) -> Result<Option<T>, FilesError> {
    let Some(bytes) = read_bytes(at, name, path)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| FilesError::Malformed {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
        problem: describe(&error),
    })
}

fn write_json(at: &OwnedFd, name: &str, path: &Path, value: &impl Serialize) -> Result<(), FilesError> {
    let failed = |error: serde_json::Error| FilesError::Io { operation: "write", path: path.to_owned(), source: error.into() };
    let mut text = serde_json::to_vec_pretty(value).map_err(failed)?;
    text.push(b'\n');
    write_bytes(at, name, path, &text, Mode::from_raw_mode(0o600))
}

/// A temporary file beside it, synced and renamed: a link that lies in its place is replaced, not followed.
fn write_bytes(at: &OwnedFd, name: &str, path: &Path, bytes: &[u8], mode: Mode) -> Result<(), FilesError> {
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(FilesError::TooLarge { path: path.to_owned() });
    }
    let temporary = format!(".{name}.{}", ulid::Ulid::generate());
    let write = || -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(at, temporary.as_str(), flags, mode)?);
        file.write_all(bytes)?;
        file.sync_all()?;
        crate::torture::point("rename.before");
        rustix::fs::renameat(at, temporary.as_str(), at, name)?;
        crate::torture::point("rename.after");
        Ok(rustix::fs::fsync(at)?)
    };
    write().map_err(|source| {
        rustix::fs::unlinkat(at, temporary.as_str(), AtFlags::empty()).ok(); // it may not have come to exist
        FilesError::Io { operation: "write", path: path.to_owned(), source }
    })
}

fn remove(at: &OwnedFd, name: &str, path: &Path) -> Result<(), FilesError> {
    match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(FilesError::Io { operation: "remove", path: path.to_owned(), source: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn project() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("project");
        fs::create_dir(&path).unwrap();
        (directory, path)
    }

    #[test]
    fn what_is_written_is_read_with_what_others_put_there() {
        let (_directory, path) = project();
        let tenex = Tenex::open(&path).unwrap();
        fs::write(path.join(".tenex/config.json"), r#"{"projectNaddr": "naddr1x", "repoUrl": "https://h/x", "theirs": [1]}"#).unwrap();
        let config = tenex.config().unwrap().unwrap();
        assert_eq!((config.repo_url.as_deref(), config.other["theirs"][0].as_i64()), (Some("https://h/x"), Some(1)));
        tenex.set_config(&config).unwrap();
        assert_eq!(tenex.config().unwrap().unwrap(), config);
        let file = path.join(".tenex/config.json");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.join(".tenex")).unwrap().count(), 3, "no temporary file stays");
        assert!(fs::read_to_string(file).unwrap().contains("\"projectNaddr\""));
    }

    #[test]
    fn a_file_that_does_not_parse_is_told_with_its_place() {
        let (_directory, path) = project();
        let tenex = Tenex::open(&path).unwrap();
        fs::write(path.join(".tenex/agents.json"), "{\n  \"pm\": {\"file\": 7}\n}").unwrap();
        let told = tenex.registry().unwrap_err().to_string();
        assert!(told.contains("agents.json:2:"), "{told}");
        for bad in [r#"{"../x": {"file": "a.json"}}"#, r#"{"pm": {"file": "../../a.json"}}"#, r#"{"pm": {"file": "a"}}"#] {
            fs::write(path.join(".tenex/agents.json"), bad).unwrap();
            assert!(matches!(tenex.registry(), Err(FilesError::Malformed { .. })), "{bad}");
        }
        fs::write(path.join(".tenex/agents.json"), vec![b' '; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert!(matches!(tenex.registry(), Err(FilesError::TooLarge { .. })));
    }

    #[test]
    fn no_link_is_followed() {
        let (directory, path) = project();
        let outside = directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        symlink(&outside, path.join(".tenex")).unwrap();
        assert!(matches!(Tenex::open(&path), Err(FilesError::NotPlain { .. })));
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);

        fs::remove_file(path.join(".tenex")).unwrap();
        let tenex = Tenex::open(&path).unwrap();
        let secret = directory.path().join("secret");
        fs::write(&secret, "{}").unwrap();
        symlink(&secret, path.join(".tenex/agents.json")).unwrap();
        assert!(matches!(tenex.registry(), Err(FilesError::NotPlain { .. })));
        tenex.set_registry(&Registry::new()).unwrap();
        assert!(!path.join(".tenex/agents.json").is_symlink() && fs::read_to_string(&secret).unwrap() == "{}");

        symlink(&secret, path.join(".gitignore")).unwrap();
        ignore_tenex(&path).unwrap();
        assert_eq!(fs::read_to_string(&secret).unwrap(), "{}");
    }

    #[test]
    fn gitignore_gains_its_line_once() {
        let (_directory, path) = project();
        for (before, after) in [(None, ".tenex/\n"), (Some("target"), "target\n.tenex/\n"), (Some("/.tenex\n"), "/.tenex\n")] {
            match before {
                Some(before) => fs::write(path.join(".gitignore"), before).unwrap(),
                None => drop(fs::remove_file(path.join(".gitignore"))),
            }
            ignore_tenex(&path).unwrap();
            ignore_tenex(&path).unwrap();
            assert_eq!(fs::read_to_string(path.join(".gitignore")).unwrap(), after);
        }
    }

    #[test]
    fn one_broken_server_does_not_hide_the_others() {
        let (_directory, path) = project();
        let tenex = Tenex::open(&path).unwrap();
        tenex.set_server("files", &ServerFile { command: "npx".into(), ..ServerFile::default() }).unwrap();
        fs::write(path.join(".tenex/mcp-servers/bad.json"), "{").unwrap();
        fs::write(path.join(".tenex/mcp-servers/Not A Slug.json"), "{").unwrap();
        let (servers, broken) = tenex.servers().unwrap();
        assert_eq!((servers.len(), broken.len()), (1, 1));
        tenex.remove_server("files").unwrap();
        tenex.remove_server("files").unwrap();
        assert!(tenex.servers().unwrap().0.is_empty());
    }

    #[test]
    fn servers_beyond_the_bound_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let tenex = Tenex::open(directory.path()).unwrap();
        for n in 0..SERVERS_MAX {
            tenex.set_server(&format!("server-{n}"), &ServerFile::default()).unwrap();
        }
        let (servers, broken) = tenex.servers().unwrap();
        assert_eq!((servers.len(), broken.len()), (SERVERS_MAX, 0));
        tenex.set_server("one-more", &ServerFile::default()).unwrap();
        let (servers, broken) = tenex.servers().unwrap();
        assert_eq!(servers.len(), SERVERS_MAX);
        assert!(matches!(broken.as_slice(), [FilesError::TooMany { .. }]), "{broken:?}");
    }
}
