//! Of restores: what is put in place, what stays, and what is refused.
#![allow(clippy::unwrap_used)]
use super::super::copy::{Job, make};
use super::*;
use std::io::{Seek, SeekFrom};
use tokio_util::sync::CancellationToken;

fn watched<T>(work: impl FnOnce(&mut Watch<'_>) -> T) -> T {
    work(&mut Watch { tell: &mut |_| {}, stop: CancellationToken::new() })
}

fn places(root: &Path) -> Places {
    Places { automations: root.join("state/automations"), plugins: root.join("plugins"), never: vec![root.join("data")] }
}

/// A backup of empty ledgers and a configuration, and the place for another set.
fn backup(root: &Path) -> (PathBuf, Target) {
    let (ledgers, to) = (root.join("data"), root.join("backup"));
    fs::create_dir(&ledgers).unwrap();
    for ledger in Ledger::ALL {
        drop(crate::ledger::open(&ledgers, ledger, 1).unwrap());
    }
    fs::write(root.join("nex.yaml"), "daemon: {}\n").unwrap();
    fs::write(root.join("overlay.yaml"), "adapters: {}\n").unwrap();
    let job = Job {
        ledgers,
        to: to.clone(),
        config_file: root.join("nex.yaml"),
        overlay_file: root.join("overlay.yaml"),
        programs: places(root),
        spare_bytes: 0,
        online: false,
        long_reads: Vec::new(),
        now_ms: 5,
    };
    watched(|watch| make(job, watch)).unwrap();
    let other = root.join("other");
    let target = Target {
        ledgers: other.join("data"),
        config_file: other.join("nex.yaml"),
        overlay_file: other.join("state/overlay.yaml"),
        programs: places(&other),
        spare_bytes: 0,
    };
    (to, target)
}

fn restore_at(now_ms: i64, directory: &Path, target: &Target) -> Result<Report, RestoreError> {
    let plan = Plan::read(directory)?;
    let _lock = lock_ledgers(&target.ledgers)?;
    watched(|watch| plan.run(target, false, now_ms, watch))
}

fn restore(directory: &Path, target: &Target) -> Result<Report, RestoreError> {
    restore_at(1_770_301_807_123, directory, target)
}

fn has_ledgers(target: &Target) -> bool {
    Ledger::ALL.iter().any(|ledger| target.ledgers.join(ledger.file_name()).exists())
}

#[test]
fn an_empty_place_gets_ledgers_and_configuration_and_a_present_one_keeps_its_own() {
    let root = tempfile::tempdir().unwrap();
    let (directory, target) = backup(root.path());
    let report = restore(&directory, &target).unwrap();
    assert_eq!((report.config, report.before), (ConfigOutcome::Restored, None));
    assert_eq!(fs::read_to_string(&target.config_file).unwrap(), "daemon: {}\n");
    assert_eq!(fs::read_to_string(&target.overlay_file).unwrap(), "adapters: {}\n");
    for ledger in Ledger::ALL {
        assert!(!target.ledgers.join(format!("{}-wal", ledger.file_name())).exists());
        drop(crate::ledger::open(&target.ledgers, ledger, 1).unwrap());
    }
    let again = restore_at(1_770_301_807_124, &directory, &target).unwrap();
    assert_eq!(again.config, ConfigOutcome::Same);
    assert!(again.before.unwrap().join("nexus.db").exists());
    assert!(again.epoch > report.epoch, "ids would repeat");
    fs::write(&target.config_file, "timer: {}\n").unwrap();
    assert_eq!(restore(&directory, &target).unwrap().config, ConfigOutcome::Differs);
    assert_eq!(fs::read_to_string(&target.config_file).unwrap(), "timer: {}\n");
}

#[test]
fn the_ledgers_of_another_user_are_refused() {
    let root = tempfile::tempdir().unwrap();
    backup(root.path());
    let (data, me) = (root.path().join("data"), rustix::process::geteuid().as_raw());
    refuse_foreign(&data, me).unwrap();
    let error = refuse_foreign(&data, me + 1).unwrap_err().to_string();
    assert!(error.contains(&format!("belongs to user {me}")), "{error}");
}

#[test]
fn an_exchange_that_cannot_begin_leaves_no_copies() {
    let root = tempfile::tempdir().unwrap();
    let (directory, target) = backup(root.path());
    restore(&directory, &target).unwrap();
    // Where the former ledgers are to go.
    fs::write(target.ledgers.join("backup"), "no directory").unwrap();
    let error = restore(&directory, &target).unwrap_err();
    assert!(matches!(error, RestoreError::Swap(_)), "{error}");
    assert!(has_ledgers(&target) && !swap::stage(&target.ledgers).exists());
    assert!(!swap::is_begun(&target.ledgers).unwrap());
}

#[test]
fn a_file_that_was_changed_is_refused_before_anything_is() {
    let root = tempfile::tempdir().unwrap();
    let (directory, target) = backup(root.path());
    let mut file = OpenOptions::new().write(true).open(directory.join("agents.db")).unwrap();
    file.seek(SeekFrom::End(-1)).unwrap();
    file.write_all(b"x").unwrap();
    let error = restore(&directory, &target).unwrap_err().to_string();
    assert!(error.contains("agents.db` is not as its backup was made"), "{error}");
    assert!(!has_ledgers(&target) && !target.config_file.exists() && !swap::stage(&target.ledgers).exists());
    fs::write(directory.join("nex.yaml"), "daemon: [\n").unwrap();
    let error = restore(&directory, &target).unwrap_err().to_string();
    assert!(error.contains("nex.yaml") && error.contains("its content was changed"), "{error}");
    fs::remove_file(directory.join("nexus.db")).unwrap();
    let error = restore(&directory, &target).unwrap_err().to_string();
    assert!(error.contains("nexus.db") && error.contains("it is missing"), "{error}");
    fs::remove_file(directory.join("manifest.json")).unwrap();
    assert!(matches!(Plan::read(&directory), Err(RestoreError::Manifest(ManifestError::Missing(_)))));
    assert!(!has_ledgers(&target));
}

#[test]
fn a_schema_of_another_build_is_refused_though_the_manifest_fits() {
    let root = tempfile::tempdir().unwrap();
    let (_, target) = backup(root.path());
    let nexus = Connection::open(root.path().join("data/nexus.db")).unwrap();
    nexus.execute_batch("UPDATE schema_version SET checksum = 'of another'").unwrap();
    drop(nexus);
    let job = Job {
        ledgers: root.path().join("data"),
        to: root.path().join("second"),
        config_file: root.path().join("none"),
        overlay_file: root.path().join("none"),
        programs: places(root.path()),
        spare_bytes: 0,
        online: true,
        long_reads: Vec::new(),
        now_ms: 6,
    };
    watched(|watch| make(job, watch)).unwrap();
    let error = restore(&root.path().join("second"), &target).unwrap_err();
    assert!(matches!(error, RestoreError::Migrate(MigrateError::Changed { .. })), "{error}");
    assert!(!has_ledgers(&target));
}

#[test]
fn the_list_of_programs_that_was_checked_is_the_one_that_is_restored() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("plugins/tags/run");
    fs::create_dir_all(run.parent().unwrap()).unwrap();
    fs::write(&run, "#!/bin/sh").unwrap();
    let (directory, target) = backup(root.path());
    let plan = Plan::read(&directory).unwrap();
    fs::remove_file(directory.join(PROGRAMS_FILE)).unwrap();
    let _lock = lock_ledgers(&target.ledgers).unwrap();
    let report = watched(|watch| plan.run(&target, false, 1_770_301_807_123, watch)).unwrap();
    assert_eq!((report.automations, report.plugins), (Outcome::NotInBackup, Outcome::Restored));
    assert_eq!(fs::read_to_string(target.programs.plugins.join("tags/run")).unwrap(), "#!/bin/sh");
}
