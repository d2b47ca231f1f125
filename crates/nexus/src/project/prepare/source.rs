//! How a project's directory comes about: cloned, made, or adopted where one lies already. Cloned and made ones are put
//! together elsewhere and get their place whole.

use super::error::PrepareError;
use super::progress::Progress;
use super::stage::Stage;
use super::{Preparer, Settings};
use crate::error_text::describe;
use crate::ledger::nexus::{Approval, ApprovalKind};
use crate::project::approvals;
use crate::project::coordinate::Coordinate;
use crate::project::definition::{Definition, clone_addresses};
use crate::project::files::{ProjectConfig, TENEX, Tenex, ignore_tenex};
use crate::project::git::Git;
use crate::project::remote::{Remote, allowed};
use serde_json::Map;
use std::fs;
use std::path::Path;

impl Preparer {
    /// Makes `path` the project's directory, with everything in it but the agents and servers, which `fill` adds
    /// before it gets its place.
    pub(super) async fn make_directory<F>(
        &self,
        definition: &Definition,
        settings: &Settings,
        path: &Path,
        progress: &Progress,
        fill: impl FnOnce(std::path::PathBuf) -> F,
    ) -> Result<(), PrepareError>
    where
        F: Future<Output = Result<(), PrepareError>>,
    {
        let git = self.git(settings);
        let address = self.address(definition, settings).await?;
        if path.symlink_metadata().is_ok() && !remove_if_empty(path)? {
            progress.step("adopting");
            adopt(&git, definition, settings, address.as_deref(), path).await?;
            lay_out(definition, settings, address.as_deref(), path).await?;
            return fill(path.to_owned()).await;
        }
        let parent = path.parent().unwrap_or(Path::new("/")).to_owned();
        let slug = definition.coordinate.slug();
        let stage = {
            let beside = parent.clone();
            blocking(move || {
                fs::create_dir_all(&parent)?;
                Stage::make(&parent, &slug)
            })
            .await
            .map_err(PrepareError::io("make a staging directory in", &beside))?
        };
        let work = stage.work();
        match &address {
            Some(address) => {
                let remote = self.approved_remote(definition, settings, address).await?;
                progress.step("cloning");
                git.fetch(&remote, &work, &|bytes| progress.received(bytes)).await?;
                set_tracked_aside(&git, &work).await?;
            }
            None => {
                progress.step("creating");
                fs::create_dir(&work).map_err(PrepareError::io("create", &work))?;
                git.init(&work).await?;
            }
        }
        lay_out(definition, settings, address.as_deref(), &work).await?;
        fill(work).await?;
        let target = path.to_owned();
        blocking(move || stage.put(&target)).await.map_err(PrepareError::io("put in place", path))
    }

    /// Brings what is written of a definition up to a newer one. What was cloned stays, since people work in it. That the definition
    /// names another repository by now is told in `problems`, and so is what people have broken: it keeps no agent from being
    /// installed.
    pub(super) async fn follow(
        &self,
        definition: &Definition,
        settings: &Settings,
        path: &Path,
        problems: &mut Vec<String>,
    ) -> Result<(), PrepareError> {
        match self.write_down(definition, settings, path, problems).await {
            Err(error @ (PrepareError::Files(_) | PrepareError::Git(_))) if !error.retryable() => {
                problems.push(format!("what the directory says of its project is not up to date: {}", describe(&error)));
                Ok(())
            }
            written => written,
        }
    }

    async fn write_down(
        &self,
        definition: &Definition,
        settings: &Settings,
        path: &Path,
        problems: &mut Vec<String>,
    ) -> Result<(), PrepareError> {
        let address = match self.address(definition, settings).await {
            // What the announcement says by now nobody tells.
            Err(PrepareError::Fetch { .. }) => self.repo_url(path).await?,
            address => address?,
        };
        write_config(definition, settings, address.as_deref(), path).await?;
        let Some(address) = address else { return Ok(()) };
        let origin = if Git::is_repository(path) { self.git(settings).origin(path).await? } else { None };
        let rules = &settings.projects.git;
        let is_it =
            |origin: &String| *origin == address || Remote::parse(&address, rules).is_ok_and(|remote| remote.is_same(origin, rules));
        if !origin.as_ref().is_some_and(is_it) {
            let here = origin.map_or_else(|| "no clone".to_owned(), |origin| format!("a clone of {}", shown(&origin, settings)));
            problems.push(format!(
                "the definition names the repository {}, and the directory is {here}, which stays; `nexus project gc {}` puts it away, and \
                 the next event has the other one cloned",
                shown(&address, settings),
                definition.coordinate.slug()
            ));
        }
        Ok(())
    }

    /// Where to clone from: as the definition says, or the announcement of a repository that it names (NIP-34).
    async fn address(&self, definition: &Definition, settings: &Settings) -> Result<Option<String>, PrepareError> {
        if definition.repo.is_some() {
            return Ok(definition.repo.clone());
        }
        let Some(announced) = &definition.announced else { return Ok(None) };
        let fetched = self.inner.nostr.definition(announced).await;
        let event = fetched.map_err(|source| PrepareError::Fetch { project: announced.to_string(), source })?;
        let addresses = clone_addresses(&event);
        let usable = addresses.iter().find(|address| Remote::parse(address, &settings.projects.git).is_ok());
        // What can't be used is refused with its reason, not passed over.
        Ok(usable.or(addresses.first()).cloned())
    }

    /// A host is approved by the configuration that names it, by the operator, or by trust in the author.
    async fn approved_remote(&self, definition: &Definition, settings: &Settings, address: &str) -> Result<Remote, PrepareError> {
        let remote = Remote::parse(address, &settings.projects.git)?;
        if remote.named {
            return Ok(remote);
        }
        let trusted = self.trusts(settings, &definition.coordinate.pubkey);
        let wish = approvals::of_host(&remote.host, remote.port, trusted);
        let nexus = &self.inner.ledgers.nexus;
        let answers = approvals::ask(nexus, &definition.coordinate, vec![ApprovalKind::Host], vec![wish.clone()]).await?;
        if answers.allows(&wish) {
            return Ok(remote);
        }
        let (host, approval) = (remote.host, answers.id_of(&wish));
        Err(if answers.denies(&wish) { PrepareError::HostDenied { host } } else { PrepareError::HostAwaits { host, approval } })
    }

    /// Whether the configuration says by now what this approval of a host was asked for: nobody is asked any more then.
    pub(in crate::project) fn is_host_allowed(&self, asked: &Approval) -> bool {
        let settings = self.settings();
        let trusted = Coordinate::parse(&asked.project).is_ok_and(|project| self.trusts(&settings, &project.pubkey));
        let named = |port: u16| allowed(&asked.subject, port, &settings.projects.git.allow_hosts) == Some(true);
        trusted || approvals::port_of_host(asked).is_some_and(named)
    }
}

/// What git brought to where our files lie is a stranger's: it is put out of the way, and git leaves it so.
async fn set_tracked_aside(git: &Git, work: &Path) -> Result<(), PrepareError> {
    let tracked = git.tracked(work, TENEX).await?;
    if tracked.is_empty() {
        return Ok(());
    }
    tracing::warn!(files = tracked.len(), "the repository tracks `{TENEX}`; what it has there is not used");
    let path = work.join(TENEX);
    let gone = if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    match gone {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(PrepareError::io("remove", &path)(error)),
        Ok(()) | Err(_) => {}
    }
    Ok(git.leave_alone(work, &tracked).await?)
}

/// Writes `.tenex/config.json` and the line of `.gitignore`.
async fn lay_out(definition: &Definition, settings: &Settings, address: Option<&str>, path: &Path) -> Result<(), PrepareError> {
    write_config(definition, settings, address, path).await?;
    let path = path.to_owned();
    blocking(move || ignore_tenex(&path)).await.map_err(PrepareError::Files)
}

/// Writes `.tenex/config.json`, if it says something else. What others put there stays.
async fn write_config(definition: &Definition, settings: &Settings, address: Option<&str>, path: &Path) -> Result<(), PrepareError> {
    let (description, repo_url) = (definition.description.clone(), address.map(str::to_owned));
    let (project_naddr, path) = (definition.coordinate.naddr(&settings.relays), path.to_owned());
    blocking(move || {
        let tenex = Tenex::open(&path)?;
        let before = tenex.config()?;
        let other = before.as_ref().map_or_else(Map::new, |config| config.other.clone());
        let config = ProjectConfig { description, repo_url, project_naddr, other };
        if before.as_ref() == Some(&config) { Ok(()) } else { tenex.set_config(&config) }
    })
    .await
    .map_err(PrepareError::Files)
}

/// Whether a directory that was there before is the project's. It is left as it is.
async fn adopt(git: &Git, definition: &Definition, settings: &Settings, address: Option<&str>, path: &Path) -> Result<(), PrepareError> {
    let occupied = |reason: String| PrepareError::Occupied { path: path.to_owned(), reason };
    let is_directory = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    if !is_directory {
        return Err(occupied("it is a link or no directory".to_owned()));
    }
    let is_repository = Git::is_repository(path);
    if is_repository && !git.tracked(path, TENEX).await?.is_empty() {
        return Err(occupied(format!(
            "its repository tracks `{TENEX}`, whose files can't be trusted; remove it there with `git rm --cached`"
        )));
    }
    if path.join(TENEX).symlink_metadata().is_ok() {
        let at = path.to_owned();
        let config = blocking(move || Tenex::open(&at)?.config()).await.map_err(PrepareError::Files)?;
        let named = config.and_then(|config| Coordinate::read(&config.project_naddr).ok());
        if let Some(other) = named.as_ref().filter(|named| **named != definition.coordinate) {
            return Err(occupied(format!("it is the directory of project {other}")));
        }
        if named.is_some() {
            return if is_repository { Ok(()) } else { Ok(git.init(path).await?) };
        }
    }
    let origin = if is_repository { git.origin(path).await? } else { None };
    match (address, origin) {
        (Some(address), Some(origin)) => {
            let is_same = Remote::parse(address, &settings.projects.git)?.is_same(&origin, &settings.projects.git);
            let other = || occupied(format!("it is a clone of {}, not of {address}", shown(&origin, settings)));
            if is_same { Ok(()) } else { Err(other()) }
        }
        (Some(address), None) => Err(occupied(format!("it is not empty, and no clone of {address}"))),
        (None, Some(origin)) => {
            let origin = shown(&origin, settings);
            Err(occupied(format!("it is a clone of {origin}, and the project has no repository")))
        }
        (None, None) => Err(occupied("it is not empty, and nothing in it says that it is this project".to_owned())),
    }
}

/// An origin as it may be told: one of the user's own may have a password in it.
fn shown(origin: &str, settings: &Settings) -> String {
    Remote::parse(origin, &settings.projects.git).map_or_else(|_| "something else".to_owned(), |remote| remote.url)
}

/// Whether an empty directory was there, which now isn't: what is put together takes its place.
fn remove_if_empty(path: &Path) -> Result<bool, PrepareError> {
    let is_directory = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    if !is_directory {
        return Ok(false);
    }
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(error) => Err(PrepareError::io("replace", path)(error)),
    }
}

/// Works on files on a thread that may block.
pub(in crate::project) async fn blocking<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match crate::watch::blocking("project.files", work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is going down, and with it whoever asked.
        Err(_) => std::future::pending().await,
    }
}
