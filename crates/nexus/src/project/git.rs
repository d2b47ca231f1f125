//! The `git` program: cloning what strangers name, and asking what lies in a directory. Each command is a child of the
//! keeper, with nothing of the daemon's environment and nothing of the machine's configuration. It runs no hook, no
//! filter, no submodule and no remote helper.

use super::remote::{Remote, RemoteError};
use super::tree;
use crate::environment;
use crate::error_text::describe;
use crate::keeper::{Keeper, SpawnSpec, Stdin};
use crate::oneshot::{self, OneshotError, Output};
use nexus_core::config::Git as Rules;
use nexus_core::ids::ChildId;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A directory that doesn't exist: nothing of a home directory counts.
const NO_HOME: &str = "/nonexistent";
/// How often the size of a clone under way is measured.
const MEASURE_PERIOD: Duration = Duration::from_millis(250);
/// How long a question to git about a directory may take.
const QUESTION_LIMIT: Duration = Duration::from_secs(60);
/// Characters of git's own words in an error.
const STDERR_CHARS_MAX: usize = 600;
/// Names the one transport that may be used, over all that a configuration says.
const ALLOW_PROTOCOL: &str = "GIT_ALLOW_PROTOCOL";
/// Without any configuration, in which a proxy could stand: that would lead past the address that was looked at.
const SSH: &str = "ssh -F /dev/null -oProxyCommand=none -oProxyJump=none -oStrictHostKeyChecking=yes -oBatchMode=yes \
                   -oPermitLocalCommand=no -oClearAllForwardings=yes -oForwardAgent=no -oConnectTimeout=30";
const MIB: u64 = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error("failed to run git to {operation}")]
    Run {
        operation: &'static str,
        #[source]
        source: OneshotError,
    },
    #[error("git failed to {operation} ({status}){}", told(.stderr))]
    Failed { operation: &'static str, status: String, stderr: String },
    #[error("the repository is larger than {max_mb} MiB (projects.git.max_mb)")]
    TooLarge { max_mb: u64 },
    #[error("less than {min_free_mb} MiB of disk space are free (ledgers.min_free_mb)")]
    DiskFull { min_free_mb: u64 },
    #[error("the repository's link `{}` leads out of it, to `{}`", .link.display(), .target.display())]
    Escapes { link: PathBuf, target: PathBuf },
    #[error("failed to look through `{}`", .path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

fn told(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}

impl GitError {
    /// Whether the same attempt may succeed later without anybody changing anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Remote(error) => matches!(error, RemoteError::Lookup { .. }),
            Self::Run { .. } | Self::Failed { .. } | Self::DiskFull { .. } => true,
            Self::Look { source, .. } => crate::error_text::is_passing(source),
            Self::TooLarge { .. } | Self::Escapes { .. } => false,
        }
    }
}

/// Runs git by the rules of the configuration. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Git {
    keeper: Keeper,
    rules: Rules,
    ca_file: Option<PathBuf>,
    min_free_mb: u64,
}

impl Git {
    pub fn new(keeper: Keeper, rules: Rules, ca_file: Option<PathBuf>, min_free_mb: u64) -> Self {
        Self { keeper, rules, ca_file, min_free_mb }
    }

    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Clones into `directory`, which doesn't exist yet and whose parent does. `received` is told the bytes on the disk
    /// as they grow.
    ///
    /// # Errors
    /// [`GitError`]; what there is of `directory` then is the caller's to remove.
    pub async fn fetch(&self, remote: &Remote, directory: &Path, received: &(dyn Fn(u64) + Send + Sync)) -> Result<(), GitError> {
        let addresses = remote.resolve(&self.rules).await?;
        self.check_space(directory)?;
        let mut spec = self.spec(self.clone_arguments(remote, &addresses, directory), None);
        spec.env.retain(|(name, _)| name != ALLOW_PROTOCOL);
        spec.env.extend(self.transport_environment(remote, &addresses));
        let limit = Duration::from_millis(self.rules.timeout_ms);
        // Nothing writes there any more on return: whoever removes what there is finds an end.
        let ended = oneshot::run_unless(&self.keeper, spec, None, limit, self.outgrown(directory, received)).await?;
        let output = ended.map_err(|source| GitError::Run { operation: "clone", source })?;
        succeeded("clone", &output)?;
        self.look_through(directory).await
    }

    fn clone_arguments(&self, remote: &Remote, addresses: &[IpAddr], directory: &Path) -> Vec<String> {
        let mut arguments: Vec<String> = Vec::new();
        if remote.scheme != "ssh" && !addresses.is_empty() {
            // What was looked at is what is connected to.
            let list: Vec<String> = addresses.iter().map(bracketed).collect();
            arguments.extend(["-c".into(), format!("http.curloptResolve={}:{}:{}", remote.host, remote.port, list.join(","))]);
        }
        arguments.extend(["clone", "--quiet", "--no-recurse-submodules", "--no-local", "--template="].map(str::to_owned));
        if let Some(depth) = self.rules.depth {
            arguments.extend([format!("--depth={depth}"), "--single-branch".to_owned()]);
        }
        arguments.extend(["--".to_owned(), remote.url.clone(), directory.to_string_lossy().into_owned()]);
        arguments
    }

    fn transport_environment(&self, remote: &Remote, addresses: &[IpAddr]) -> Vec<(String, String)> {
        let mut pairs = vec![(ALLOW_PROTOCOL.to_owned(), remote.scheme.clone())];
        if let Some(path) = &self.ca_file {
            pairs.push(("GIT_SSL_CAINFO".to_owned(), path.to_string_lossy().into_owned()));
        }
        if remote.scheme == "ssh" {
            let mut ssh = SSH.to_owned();
            if let Some(address) = addresses.first() {
                // A host checked by its name, connected to by its address. Neither has a character that a shell knows.
                ssh.push_str(&format!(" -oHostName={address} -oHostKeyAlias={}", remote.host));
            }
            pairs.push(("GIT_SSH_COMMAND".to_owned(), ssh));
            pairs.push(("GIT_SSH_VARIANT".to_owned(), "ssh".to_owned()));
        }
        pairs
    }

    /// Comes back only when `directory` has become too large, or the disk too full.
    async fn outgrown(&self, directory: &Path, received: &(dyn Fn(u64) + Send + Sync)) -> GitError {
        loop {
            tokio::time::sleep(MEASURE_PERIOD).await;
            match self.measure(directory).await {
                Ok(bytes) => received(bytes),
                Err(error) => return error,
            }
        }
    }

    /// Bytes of `directory`, if they are within the limits.
    async fn measure(&self, directory: &Path) -> Result<u64, GitError> {
        let max_bytes = self.rules.max_mb.saturating_mul(MIB);
        let path = directory.to_owned();
        let bytes = blocking(directory, move || tree::bytes(&path, max_bytes)).await?;
        if bytes > max_bytes {
            return Err(GitError::TooLarge { max_mb: self.rules.max_mb });
        }
        self.check_space(directory)?;
        Ok(bytes)
    }

    fn check_space(&self, directory: &Path) -> Result<(), GitError> {
        let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let look = |source: rustix::io::Errno| GitError::Look { path: existing.to_owned(), source: source.into() };
        let space = rustix::fs::statvfs(existing).map_err(look)?;
        let free_mb = space.f_bavail.saturating_mul(space.f_frsize) / MIB;
        if free_mb < self.min_free_mb { Err(GitError::DiskFull { min_free_mb: self.min_free_mb }) } else { Ok(()) }
    }

    /// What a clone must be before anybody works in it: within its size, and without a link that leads out.
    async fn look_through(&self, directory: &Path) -> Result<(), GitError> {
        self.measure(directory).await?;
        let path = directory.to_owned();
        match blocking(directory, move || tree::escape(&path)).await? {
            Some(tree::Escape { link, target }) => Err(GitError::Escapes { link, target }),
            None => Ok(()),
        }
    }

    /// Makes a repository of `directory`, which exists.
    ///
    /// # Errors
    /// [`GitError`].
    pub async fn init(&self, directory: &Path) -> Result<(), GitError> {
        self.ask("make a repository", directory, &["init", "--quiet", "--template=", "--initial-branch=main"]).await.map(drop)
    }

    /// Whether `directory` is the top of a repository.
    pub fn is_repository(directory: &Path) -> bool {
        directory.join(".git").symlink_metadata().is_ok_and(|git| git.is_dir() || git.is_file())
    }

    /// The files below `path` that the repository has and may write, as they are called there.
    ///
    /// # Errors
    /// [`GitError`], also when there are more than fit an answer.
    pub async fn tracked(&self, directory: &Path, path: &str) -> Result<Vec<String>, GitError> {
        let output = self.ask("list files", directory, &["ls-files", "-z", "-t", "--", path]).await?;
        // `S` marks what is left alone (git-ls-files(1)).
        let files = nul_separated(&output.stdout);
        Ok(files.iter().filter(|file| !file.starts_with("S ")).filter_map(|file| file.get(2..)).map(str::to_owned).collect())
    }

    /// Has git leave these files alone, whatever lies in their place.
    ///
    /// # Errors
    /// [`GitError`].
    pub async fn leave_alone(&self, directory: &Path, files: &[String]) -> Result<(), GitError> {
        let list: Vec<u8> = files.iter().flat_map(|file| file.bytes().chain([0])).collect();
        let arguments = ["update-index", "-z", "--skip-worktree", "--stdin"];
        self.run("set files aside", directory, &arguments, Some(list)).await.map(drop)
    }

    /// Where a repository was cloned from, if anywhere.
    ///
    /// # Errors
    /// [`GitError`].
    pub async fn origin(&self, directory: &Path) -> Result<Option<String>, GitError> {
        let spec = self.spec(["config", "--local", "--get", "remote.origin.url"].map(str::to_owned).to_vec(), Some(directory));
        let output = oneshot::run(&self.keeper, spec, None, QUESTION_LIMIT).await;
        let output = output.map_err(|source| GitError::Run { operation: "read the origin", source })?;
        // 1 says that the key isn't there (git-config(1)).
        if output.status.code() == Some(1) {
            return Ok(None);
        }
        succeeded("read the origin", &output)?;
        Ok(String::from_utf8(output.stdout).ok().map(|url| url.trim().to_owned()).filter(|url| !url.is_empty()))
    }

    /// What would be lost with `directory`, in words; empty when all of it is somewhere else too.
    ///
    /// # Errors
    /// [`GitError`].
    pub async fn unsaved(&self, directory: &Path) -> Result<Vec<String>, GitError> {
        let mut found = Vec::new();
        let changed = self.changed(directory).await?;
        if changed > 0 {
            found.push(format!("{changed} uncommitted file(s)"));
        }
        let log = ["log", "--branches", "--tags", "HEAD", "--not", "--remotes", "--format=%H", "--max-count=1000"];
        let has_commit = self.question("look for commits", directory, &["rev-parse", "--verify", "--quiet", "HEAD"]).await?.is_some();
        if has_commit {
            let commits = self.ask("look for commits", directory, &log).await?;
            let count = commits.stdout.iter().filter(|byte| **byte == b'\n').count();
            if count > 0 {
                found.push(format!("{count}{} commit(s) that were not pushed", if count >= 1000 { " or more" } else { "" }));
            }
        }
        if self.question("look for stashes", directory, &["rev-parse", "--verify", "--quiet", "refs/stash"]).await?.is_some() {
            found.push("stashed changes".to_owned());
        }
        Ok(found)
    }

    /// Files that differ from the last commit, but for what preparing itself put into `.gitignore`.
    async fn changed(&self, directory: &Path) -> Result<usize, GitError> {
        let output = self.ask("look for changes", directory, &["status", "--porcelain=v1", "-z", "--untracked-files=all"]).await?;
        let entries = nul_separated(&output.stdout);
        let own: BTreeSet<&str> = [" M .gitignore", "?? .gitignore"].into();
        let mut count = entries.len();
        if entries.iter().any(|entry| own.contains(entry.as_str())) && self.is_only_ours(directory).await? {
            count -= 1;
        }
        Ok(count)
    }

    async fn is_only_ours(&self, directory: &Path) -> Result<bool, GitError> {
        let before = self.question("read .gitignore", directory, &["show", "HEAD:.gitignore"]).await?.unwrap_or_default();
        let now = tokio::fs::read(directory.join(".gitignore")).await.unwrap_or_default();
        Ok(super::files::ignoring(&before).is_some_and(|expected| expected == now))
    }

    /// Git's version, as it says it.
    ///
    /// # Errors
    /// [`GitError`].
    pub async fn version(&self) -> Result<String, GitError> {
        let output = self.ask("tell its version", Path::new("/"), &["version"]).await?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    async fn ask(&self, operation: &'static str, directory: &Path, arguments: &[&str]) -> Result<Output, GitError> {
        self.run(operation, directory, arguments, None).await
    }

    /// What it says, or nothing when it fails: some questions have no as such an answer.
    async fn question(&self, operation: &'static str, directory: &Path, arguments: &[&str]) -> Result<Option<Vec<u8>>, GitError> {
        match self.ask(operation, directory, arguments).await {
            Ok(output) => Ok(Some(output.stdout)),
            Err(GitError::Failed { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn run(&self, operation: &'static str, directory: &Path, arguments: &[&str], input: Option<Vec<u8>>) -> Result<Output, GitError> {
        let spec = self.spec(arguments.iter().map(|word| (*word).to_owned()).collect(), Some(directory));
        let output = oneshot::run(&self.keeper, spec, input, QUESTION_LIMIT).await;
        let output = output.map_err(|source| GitError::Run { operation, source })?;
        succeeded(operation, &output)?;
        Ok(output)
    }

    fn spec(&self, arguments: Vec<String>, directory: Option<&Path>) -> SpawnSpec {
        let argv =
            std::iter::once(self.rules.program.clone()).chain(SETTINGS.iter().flat_map(|setting| ["-c".to_owned(), (*setting).to_owned()]));
        SpawnSpec {
            child: ChildId::new("git"),
            argv: argv.chain(arguments).collect(),
            env: clean_environment(),
            cwd: Some(directory.map_or_else(|| PathBuf::from("/"), Path::to_owned)),
            stdin: Stdin::Null,
        }
    }
}

/// What holds for every command, over any configuration of the repository.
const SETTINGS: &[&str] = &[
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    "core.protectHFS=true",
    "core.protectNTFS=true",
    "credential.helper=",
    "submodule.recurse=false",
    "protocol.ext.allow=never",
    "protocol.file.allow=never",
    "http.followRedirects=false",
    "filter.lfs.smudge=",
    "filter.lfs.process=",
    "filter.lfs.required=false",
    "gc.auto=0",
    "maintenance.auto=false",
];

fn clean_environment() -> Vec<(String, String)> {
    let path = environment::base().into_iter().find(|(name, _)| name == "PATH");
    let fixed = [
        ("HOME", NO_HOME),
        ("XDG_CONFIG_HOME", NO_HOME),
        ("LC_ALL", "C"),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_ATTR_NOSYSTEM", "1"),
        ("GIT_TERMINAL_PROMPT", "0"),
        ("GIT_OPTIONAL_LOCKS", "0"),
        ("GIT_LFS_SKIP_SMUDGE", "1"),
        ("GIT_CEILING_DIRECTORIES", "/"),
        // Nothing is fetched unless a clone says by what.
        (ALLOW_PROTOCOL, "none"),
    ];
    path.into_iter().chain(fixed.map(|(name, value)| (name.to_owned(), value.to_owned()))).collect()
}

fn succeeded(operation: &'static str, output: &Output) -> Result<(), GitError> {
    if output.status.is_success() {
        return Ok(());
    }
    // The server's words are among them.
    let shown = |c: char| if c == '\n' { ' ' } else { c };
    let stderr: String = output.stderr.chars().map(shown).filter(|c| !c.is_control()).take(STDERR_CHARS_MAX).collect();
    Err(GitError::Failed { operation, status: output.status.to_string(), stderr })
}

fn nul_separated(bytes: &[u8]) -> Vec<String> {
    bytes.split(|byte| *byte == 0).filter(|part| !part.is_empty()).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

fn bracketed(address: &IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// Looks at files on a thread that may block.
async fn blocking<T: Send + 'static>(path: &Path, look: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, GitError> {
    let looked = crate::watch::blocking("project.look", look).await.unwrap_or_else(|error| Err(std::io::Error::other(describe(&error))));
    looked.map_err(|source| GitError::Look { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_daemons_environment_reaches_git() {
        let names: Vec<String> = clean_environment().into_iter().map(|(name, _)| name).collect();
        assert!(
            names.iter().all(|name| name == "PATH"
                || name == "HOME"
                || name == "XDG_CONFIG_HOME"
                || name == "LC_ALL"
                || name.starts_with("GIT_")),
            "{names:?}"
        );
    }

    #[test]
    fn answers_are_split_at_their_ends() {
        assert_eq!(nul_separated(b"a\0b c\0"), ["a", "b c"]);
        assert!(nul_separated(b"").is_empty());
    }
}
