//! Restores a backup: checks it, decides about what was open in it, and puts it in the place of the
//! present ledgers. No daemon may have them open; whoever calls holds their lock.

use super::manifest::{Entry, Fingerprint, Manifest, ManifestError};
use super::mark::{Marked, lower_sent, mark};
use super::programs::{self, Listing, Outcome, PROGRAMS_FILE, Places, ProgramsError};
use super::swap::{self, Swap, SwapError};
use super::{CONFIG_FILE, Check, MIB, OVERLAY_FILE, Progress, Watch, config_text, damage, free_bytes, private_directory};
use crate::credential::write_private;
use crate::file_error::FileError;
use crate::ledger::copy::sync_directory_of;
use crate::ledger::cortex::CortexError;
use crate::ledger::migrate::{self, MigrateError};
use crate::ledger::nexus::counter;
use crate::ledger::{Ledger, OpenError, cortex, lock};
use rusqlite::Connection;
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Lock(#[from] OpenError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("`{path}` is not as its backup was made: {what}. Nothing was changed")]
    Tampered { path: PathBuf, what: String },
    #[error("`{path}` has {free_mib} MiB free, and {needed_mib} MiB are needed")]
    NoRoom { path: PathBuf, free_mib: u64, needed_mib: u64 },
    #[error("failed to prepare `{name}` of the backup. Nothing was changed")]
    Prepare {
        name: String,
        #[source]
        source: rusqlite::Error,
    },
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    #[error("failed to exchange the ledgers; run the restore again. No daemon starts while `{}` lies beside them", lock::RESTORE_MARKER)]
    Swap(#[from] SwapError),
    #[error(
        "`{path}` belongs to user {owner}, and you are {me}: their daemon could not open what is put in its place; run this as that user"
    )]
    Foreign { path: PathBuf, owner: u32, me: u32 },
    /// Indexes can be made again; the ledgers were not touched.
    #[error(transparent)]
    Index(#[from] CortexError),
    #[error(transparent)]
    Programs(ProgramsError),
    #[error("the restore was called off. Nothing was changed")]
    Stopped,
}

impl From<ProgramsError> for RestoreError {
    fn from(error: ProgramsError) -> Self {
        match error {
            ProgramsError::Stopped => Self::Stopped,
            ProgramsError::File(error) => Self::File(error),
            other @ (ProgramsError::TooMuch { .. } | ProgramsError::Changed { .. }) => Self::Programs(other),
        }
    }
}

/// Where restored files go.
#[derive(Debug, Clone)]
pub struct Target {
    pub ledgers: PathBuf,
    pub config_file: PathBuf,
    pub overlay_file: PathBuf,
    /// Automations and plugins.
    pub programs: Places,
    /// What must stay free on the disk beyond the files.
    pub spare_bytes: u64,
}

/// What became of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfigOutcome {
    /// The present one is the backup's.
    Same,
    /// It is not, and stays.
    Differs,
    /// There was none; the backup's is in its place.
    Restored,
    /// The backup has none.
    NotInBackup,
}

/// What a restore did.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub directory: PathBuf,
    pub ledgers: PathBuf,
    /// Where the former ledgers lie; none if there were none.
    pub before: Option<PathBuf>,
    /// When the backup was made, in Unix ms, and for people.
    pub made_at: i64,
    pub made: String,
    pub resumed: bool,
    pub requests_closed: u64,
    /// Those of them whose event had no request yet.
    pub never_admitted: u64,
    pub deliveries_held: u64,
    pub epoch: i64,
    pub config: ConfigOutcome,
    pub automations: Outcome,
    pub plugins: Outcome,
    /// A restore that had been interrupted was finished.
    pub finished_another: bool,
    pub warnings: Vec<String>,
}

/// A backup that looks whole, as far as that is seen without reading its ledgers.
#[derive(Debug)]
pub struct Plan {
    directory: PathBuf,
    pub manifest: Manifest,
    /// Of automations and plugins, if it has any. Read once: what was checked is what is restored.
    listing: Option<Listing>,
}

impl Plan {
    /// Reads the manifest and looks at the files that it lists.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn read(directory: &Path) -> Result<Self, RestoreError> {
        let manifest = Manifest::read(directory)?;
        for ledger in Ledger::ALL {
            if let Some(entry) = manifest.ledger(ledger) {
                check_size(&directory.join(ledger.file_name()), entry)?;
            }
        }
        let listing = listing(directory, &manifest)?;
        let plan = Self { directory: directory.to_owned(), manifest, listing };
        for (name, _) in plan.manifest.config_files() {
            plan.config(name)?;
        }
        Ok(plan)
    }

    /// Puts the backup in place. `resume` lets everything that was open in it go on.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn run(&self, target: &Target, resume: bool, now_ms: i64, watch: &mut Watch<'_>) -> Result<Report, RestoreError> {
        let stage = swap::stage(&target.ledgers);
        let prepared = self.prepare(target, &stage, resume, now_ms, watch).and_then(|marked| {
            let finished_another = swap::is_begun(&target.ledgers)?;
            let staged = programs::stage(self.listing.as_ref(), &self.directory, &target.programs, watch)?;
            let config = self.settle_config(target)?;
            // Made again from whichever ledgers are in place in the end; of others they would find what isn't there.
            cortex::discard_all(&target.ledgers.join(cortex::DIRECTORY))?;
            Ok((marked, finished_another, config, staged, Swap::begin(&target.ledgers, &self.directory, now_ms)?))
        });
        if prepared.is_err() {
            drop(fs::remove_dir_all(&stage)); // the next restore does it otherwise
        }
        let (marked, finished_another, config, staged, begun) = prepared?;
        // After the ledgers: an automation would work on others. And before a daemon may start, which would work without them.
        let (before, ([automations, plugins], mut warnings)) = begun.finish(|| staged.put())?;
        warnings.extend(self.warnings(resume, [automations, plugins]));
        Ok(Report {
            directory: self.directory.clone(),
            ledgers: target.ledgers.clone(),
            before,
            made_at: self.manifest.made_at,
            made: self.manifest.made.clone(),
            resumed: resume,
            requests_closed: marked.requests,
            never_admitted: marked.never_admitted,
            deliveries_held: marked.deliveries,
            epoch: marked.epoch,
            config,
            automations,
            plugins,
            finished_another,
            warnings,
        })
    }

    fn warnings(&self, resume: bool, programs: [Outcome; 2]) -> Vec<String> {
        let mut warnings = Vec::new();
        if resume && self.manifest.online {
            let why = "the backup was made while a daemon ran: what that one did afterwards may be done again, since --resume was given";
            warnings.push(why.to_owned());
        }
        if programs.iter().any(|outcome| matches!(outcome, Outcome::Restored | Outcome::NotPut)) {
            let programs = &self.manifest.programs;
            warnings.extend(programs.left_out.iter().map(|what| format!("not in the backup: {what}")));
            if programs.left_out_more > 0 {
                warnings.push(format!("not in the backup: {} more", programs.left_out_more));
            }
        }
        warnings
    }

    /// Copies the ledgers to `stage`, checked, brought up to date and decided about.
    fn prepare(&self, target: &Target, stage: &Path, resume: bool, now_ms: i64, watch: &mut Watch<'_>) -> Result<Marked, RestoreError> {
        match fs::remove_dir_all(stage) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(FileError::of("remove", stage)(error).into());
            }
            Ok(()) | Err(_) => {}
        }
        private_directory(stage).map_err(FileError::of("create", stage))?;
        self.require_room(target)?;
        for ledger in Ledger::ALL {
            if let Some(entry) = self.manifest.ledger(ledger) {
                copy_checked(&self.directory, stage, &ledger.file_name(), entry, watch)?;
            }
        }
        let mut identity = open(stage, Ledger::Identity, now_ms, watch)?;
        let mut agents = open(stage, Ledger::Agents, now_ms, watch)?;
        let mut nexus = open(stage, Ledger::Nexus, now_ms, watch)?;
        let mut events = open(stage, Ledger::Events, now_ms, watch)?;
        let of = |ledger: Ledger| move |source| RestoreError::Prepare { name: ledger.file_name(), source };
        let sent_seq = counter(&nexus, "sent_seq").map_err(of(Ledger::Nexus))?;
        lower_sent(&events, sent_seq).map_err(of(Ledger::Events))?;
        let marked = mark(&mut nexus, &events, resume, self.manifest.made_at, now_ms).map_err(of(Ledger::Nexus))?;
        let connections =
            [(Ledger::Identity, &mut identity), (Ledger::Agents, &mut agents), (Ledger::Nexus, &mut nexus), (Ledger::Events, &mut events)];
        for (ledger, connection) in connections {
            as_single_file(connection).map_err(of(ledger))?;
        }
        drop((identity, agents, nexus, events));
        for ledger in Ledger::ALL {
            let path = stage.join(ledger.file_name());
            let synced = OpenOptions::new().read(true).write(true).open(&path).and_then(|file| file.sync_all());
            synced.map_err(FileError::of("write", &path))?;
        }
        Ok(marked)
    }

    fn require_room(&self, target: &Target) -> Result<(), RestoreError> {
        let programs = self.listing.as_ref().map_or(Ok(0), |listing| programs::bytes_to_copy(listing, &target.programs))?;
        let needed = self.manifest.ledger_bytes().saturating_add(programs).saturating_add(target.spare_bytes);
        let free = free_bytes(&target.ledgers).map_err(FileError::of("find the free space of", &target.ledgers))?;
        if free < needed {
            return Err(RestoreError::NoRoom { path: target.ledgers.clone(), free_mib: free / MIB, needed_mib: needed.div_ceil(MIB) });
        }
        Ok(())
    }

    /// A configuration file of the backup, as it was when it was made.
    fn config(&self, name: &str) -> Result<Option<Vec<u8>>, RestoreError> {
        let Some(entry) = self.manifest.files.get(name) else { return Ok(None) };
        let path = self.directory.join(name);
        let text = config_text(&path).map_err(FileError::of("read", &path))?;
        let Some(text) = text else {
            return Err(RestoreError::Tampered { path, what: "it is missing".into() });
        };
        let mut fingerprint = Fingerprint::default();
        fingerprint.add(&text);
        match fingerprint.entry(None) == *entry {
            true => Ok(Some(text)),
            false => Err(RestoreError::Tampered { path, what: "its content was changed".into() }),
        }
    }

    /// A configuration that is there stays as it is.
    fn settle_config(&self, target: &Target) -> Result<ConfigOutcome, RestoreError> {
        let Some(config) = self.config(CONFIG_FILE)? else { return Ok(ConfigOutcome::NotInBackup) };
        let overlay = self.config(OVERLAY_FILE)?;
        let present = |path: &Path| config_text(path).map_err(FileError::of("read", path));
        let (present_config, present_overlay) = (present(&target.config_file)?, present(&target.overlay_file)?);
        if let Some(present) = present_config {
            let is_same = present == config && present_overlay == overlay;
            return Ok(if is_same { ConfigOutcome::Same } else { ConfigOutcome::Differs });
        }
        if let (None, Some(overlay)) = (present_overlay, overlay) {
            put_config(&target.overlay_file, &overlay)?;
        }
        // Last: without it the overlay is in force nowhere.
        put_config(&target.config_file, &config)?;
        Ok(ConfigOutcome::Restored)
    }
}

/// The list of automations and plugins, if the backup has any.
fn listing(directory: &Path, manifest: &Manifest) -> Result<Option<Listing>, RestoreError> {
    let Some(entry) = manifest.files.get(PROGRAMS_FILE) else { return Ok(None) };
    let path = directory.join(PROGRAMS_FILE);
    programs::read_listing(&path, entry).map(Some).map_err(|what| RestoreError::Tampered { path, what })
}

fn put_config(path: &Path, text: &[u8]) -> Result<(), FileError> {
    if let Some(directory) = path.parent() {
        private_directory(directory).map_err(FileError::of("create", directory))?;
    }
    write_private(path, text).map_err(FileError::of("write", path))?;
    sync_directory_of(path).map_err(FileError::of("sync the directory of", path))
}

fn check_size(path: &Path, entry: &Entry) -> Result<(), RestoreError> {
    let tampered = |what: String| RestoreError::Tampered { path: path.to_owned(), what };
    match fs::metadata(path) {
        Ok(file) if !file.is_file() => Err(tampered("it is no file".into())),
        Ok(file) if file.len() != entry.bytes => Err(tampered(format!("it has {} bytes, not {}", file.len(), entry.bytes))),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(tampered("it is missing".into())),
        Err(source) => Err(FileError::of("look at", path)(source).into()),
    }
}

/// Copies a ledger, and makes sure that it is what the manifest says.
fn copy_checked(directory: &Path, stage: &Path, name: &str, entry: &Entry, watch: &mut Watch<'_>) -> Result<(), RestoreError> {
    let (from, to) = (directory.join(name), stage.join(name));
    check_size(&from, entry)?;
    let mut source = File::open(&from).map_err(FileError::of("open", &from))?;
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&to);
    let mut target = target.map_err(FileError::of("create", &to))?;
    let Watch { tell, stop } = watch;
    let (mut done, mut told) = (0_u64, None);
    let mut pass = |part: &[u8]| {
        if stop.is_cancelled() {
            return Err(io::Error::other("called off"));
        }
        target.write_all(part)?;
        done += part.len() as u64;
        let percent = done.saturating_mul(100) / entry.bytes.max(1);
        if told != Some(percent) {
            told = Some(percent);
            tell(Progress { doing: "copying", file: name.to_owned(), percent });
        }
        Ok(())
    };
    let read = Fingerprint::read(&mut source, &mut pass);
    if stop.is_cancelled() {
        return Err(RestoreError::Stopped);
    }
    let found = read.map_err(FileError::of("copy", &from))?.entry(entry.schema);
    if found == *entry { Ok(()) } else { Err(RestoreError::Tampered { path: from, what: "its content was changed (SHA-256)".into() }) }
}

/// Opens a copy, once it is known to be sound, and brings it to the schema of this program, so that what
/// is decided about it is decided in that.
fn open(stage: &Path, ledger: Ledger, now_ms: i64, watch: &mut Watch<'_>) -> Result<Connection, RestoreError> {
    let (name, path) = (ledger.file_name(), stage.join(ledger.file_name()));
    (watch.tell)(Progress { doing: "checking", file: name.clone(), percent: 0 });
    let failed = |source| match watch.stop.is_cancelled() {
        true => RestoreError::Stopped,
        false => RestoreError::Prepare { name: name.clone(), source },
    };
    let mut connection = Connection::open(&path).map_err(failed)?;
    connection.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA foreign_keys = ON;").map_err(failed)?;
    if let Some(what) = damage(&mut connection, Check::Whole, &watch.stop).map_err(failed)? {
        return Err(RestoreError::Tampered { path, what });
    }
    migrate::migrate(&mut connection, &path, ledger.migrations(), now_ms)?;
    Ok(connection)
}

/// Whatever a backup was made of, its files are put in place without a log beside them.
fn as_single_file(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))
}

/// Takes the ledger directory for a restore, making it as needed. No daemon starts on it until the lock is
/// dropped.
///
/// # Errors
/// [`RestoreError::Lock`] when a daemon or another command has it, [`RestoreError::Foreign`] when it is
/// another user's.
pub fn lock_ledgers(ledgers: &Path) -> Result<File, RestoreError> {
    private_directory(ledgers).map_err(FileError::of("create", ledgers))?;
    refuse_foreign(ledgers, rustix::process::geteuid().as_raw())?;
    Ok(lock::take(ledgers, Some("nexus restore"))?)
}

/// Files that root puts in place would be root's.
fn refuse_foreign(ledgers: &Path, me: u32) -> Result<(), RestoreError> {
    for ledger in Ledger::ALL {
        let path = ledgers.join(ledger.file_name());
        if let Some(owner) = fs::metadata(&path).ok().map(|file| file.uid()).filter(|owner| *owner != me) {
            return Err(RestoreError::Foreign { path, owner, me });
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "restore_tests.rs"]
mod tests;
