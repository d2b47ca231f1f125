//! Of automations and plugins in a backup: what is copied, what is left out and told, and what a restore leaves alone.
#![allow(clippy::unwrap_used)]
use super::*;
use std::os::unix::fs::symlink;
use tokio_util::sync::CancellationToken;

fn watched<T>(work: impl FnOnce(&mut Watch<'_>) -> T) -> T {
    work(&mut Watch { tell: &mut |_| {}, stop: CancellationToken::new() })
}

fn places(root: &Path) -> Places {
    Places { automations: root.join("state/automations"), plugins: root.join("plugins"), never: vec![root.join("plugins/secrets")] }
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

/// A place with an automation and a plugin, and the directory for a backup.
fn place(root: &Path) -> (Places, PathBuf) {
    write(&root.join("state/automations/sort.ts"), "export {}", 0o644);
    write(&root.join("plugins/tags/run"), "#!/bin/sh", 0o4755);
    write(&root.join("plugins/tags/plugin.yaml"), "name: tags", 0o600);
    fs::create_dir(root.join("plugins/tags/cache")).unwrap();
    let to = root.join("backup");
    fs::create_dir(&to).unwrap();
    (places(root), to)
}

fn copied(places: &Places, to: &Path) -> Result<(Option<Listing>, Programs), ProgramsError> {
    let found = find(places, to)?;
    watched(|watch| copy(found, to, watch))
}

fn put_back(listing: Option<&Listing>, backup: &Path, places: &Places) -> Result<[Outcome; 2], ProgramsError> {
    let (outcomes, warnings) = watched(|watch| stage(listing, backup, places, watch))?.put();
    assert_eq!(warnings.len(), outcomes.iter().filter(|outcome| **outcome == Outcome::NotPut).count(), "{warnings:?}");
    Ok(outcomes)
}

fn stages(root: &Path) -> bool {
    root.join(".plugins.restore-staged").exists() || root.join("state/.automations.restore-staged").exists()
}

#[test]
fn what_is_copied_is_put_back_with_its_modes_and_only_where_there_is_none() {
    let root = tempfile::tempdir().unwrap();
    let (from, to) = place(root.path());
    let (listing, programs) = copied(&from, &to).unwrap();
    assert_eq!((programs.files, programs.left_out.len()), (3, 0), "{programs:?}");
    assert_eq!(mode(&to.join("plugins/tags/run")), 0o700, "for this user alone, and it still can be run");
    assert_eq!((mode(&to.join("state/automations/sort.ts")), mode(&to.join("plugins/tags"))), (0o600, 0o700));
    assert_eq!(put_back(listing.as_ref(), &to, &from).unwrap(), [Outcome::Same; 2]);

    let other = root.path().join("other");
    // As a restore leaves it that was killed.
    write(&other.join(".plugins.restore-staged/half"), "", 0o600);
    assert_eq!(put_back(listing.as_ref(), &to, &places(&other)).unwrap(), [Outcome::Restored; 2]);
    assert_eq!(mode(&other.join("plugins/tags/run")), 0o755, "nobody runs it as another user");
    assert_eq!((mode(&other.join("plugins/tags/plugin.yaml")), mode(&other.join("state/automations/sort.ts"))), (0o600, 0o644));
    assert_eq!(fs::read_to_string(other.join("plugins/tags/run")).unwrap(), "#!/bin/sh");
    assert!(other.join("plugins/tags/cache").is_dir() && !other.join("plugins/half").exists() && !stages(&other));
    write(&other.join(".plugins.restore-staged/half"), "", 0o600);
    assert_eq!(put_back(listing.as_ref(), &to, &places(&other)).unwrap(), [Outcome::Same; 2]);
    assert!(!stages(&other), "nothing else would remove it");
    assert_eq!(put::bytes_to_copy(listing.as_ref().unwrap(), &places(&other)).unwrap(), 0);

    write(&other.join("plugins/tags/run"), "mine", 0o755);
    fs::remove_dir_all(other.join("state/automations")).unwrap();
    fs::create_dir(other.join("state/automations")).unwrap();
    assert_eq!(put::bytes_to_copy(listing.as_ref().unwrap(), &places(&other)).unwrap(), "export {}".len() as u64);
    assert_eq!(put_back(listing.as_ref(), &to, &places(&other)).unwrap(), [Outcome::Restored, Outcome::Differs]);
    assert_eq!(fs::read_to_string(other.join("plugins/tags/run")).unwrap(), "mine");
    fs::remove_dir_all(other.join("plugins")).unwrap();
    symlink("/nowhere", other.join("plugins")).unwrap();
    assert_eq!(put_back(listing.as_ref(), &to, &places(&other)).unwrap(), [Outcome::Same, Outcome::Differs]);
    assert!(!stages(&other));
}

#[test]
fn what_is_no_file_is_left_out_and_told_and_secrets_are_never_in_it() {
    let root = tempfile::tempdir().unwrap();
    let (mut from, to) = place(root.path());
    let tags = root.path().join("plugins/tags");
    write(&root.path().join("plugins/secrets/key"), "s3cret", 0o600);
    write(&root.path().join("elsewhere/file"), "not ours", 0o600);
    symlink(root.path().join("elsewhere/file"), tags.join("link")).unwrap();
    symlink(root.path().join("elsewhere"), tags.join("out")).unwrap();
    symlink(&tags, tags.join("cache/round")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, tags.join("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let (listing, programs) = copied(&from, &to).unwrap();
    let names: Vec<String> = listing.unwrap().files.into_keys().collect();
    assert_eq!(names, ["plugins/tags/plugin.yaml", "plugins/tags/run", "state/automations/sort.ts"]);
    assert!(!to.join("plugins/secrets").exists() && !to.join("plugins/tags/out").exists());
    assert_eq!((programs.files, programs.left_out.len(), programs.left_out_more), (3, 4, 0), "{programs:?}");
    for (name, why) in [("link", "a symbolic link"), ("out", "a symbolic link"), ("cache/round", "a symbolic link"), ("pipe", "neither")] {
        let path = tags.join(name).display().to_string();
        assert!(programs.left_out.iter().any(|one| one.starts_with(&path) && one.contains(why)), "{name}: {programs:?}");
    }
    // A FIFO, or a link, that came in the place of a file after it was found.
    let mut told = Programs::default();
    let at = |name: &str| Origin { top: tags.clone(), below: name.to_owned() };
    assert!(open(&at("pipe"), &mut told).unwrap().is_none());
    assert_eq!(told.left_out.len(), 1, "{told:?}");
    assert!(open(&at("link"), &mut told).unwrap().is_none());
    assert_eq!(told.left_out.len(), 2, "{told:?}");
    // A configuration that names the workspace for its plugins.
    from.plugins = root.path().to_owned();
    let found = find(&from, &to).unwrap();
    assert!(found.files.keys().all(|name| !name.contains("secrets") && !name.contains("backup")), "{found:?}");
}

#[test]
fn a_link_that_came_in_the_place_of_a_directory_is_not_followed() {
    let root = tempfile::tempdir().unwrap();
    let (from, to) = place(root.path());
    let (deep, elsewhere) = (root.path().join("plugins/tags/deep"), root.path().join("elsewhere"));
    write(&deep.join("in/key"), "ours", 0o600);
    write(&elsewhere.join("in/key"), "not ours", 0o600);
    let found = find(&from, &to).unwrap();
    fs::remove_dir_all(&deep).unwrap();
    symlink(&elsewhere, &deep).unwrap();
    let (listing, programs) = watched(|watch| copy(found, &to, watch)).unwrap();
    assert!(!listing.unwrap().files.contains_key("plugins/tags/deep/in/key") && !to.join("plugins/tags/deep/in/key").exists());
    let path = deep.join("in/key").display().to_string();
    assert!(programs.left_out.len() == 1 && programs.left_out[0].starts_with(&path), "{programs:?}");
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_that_names_it() {
    let root = tempfile::tempdir().unwrap();
    let (from, to) = place(root.path());
    let path = root.path().join("plugins/tags/run");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).unwrap();
    match copied(&from, &to) {
        Err(error) => assert!(error.to_string().contains(&path.display().to_string()), "{error}"),
        Ok(_) => assert!(rustix::process::geteuid().is_root(), "who may not read it has copied it"),
    }
}

#[test]
fn what_was_changed_in_a_backup_is_not_put_back_and_nothing_else_is() {
    let root = tempfile::tempdir().unwrap();
    let (from, to) = place(root.path());
    let (listing, _) = copied(&from, &to).unwrap();
    let other = root.path().join("other");
    let refused = |what: &str| {
        let error = put_back(listing.as_ref(), &to, &places(&other)).unwrap_err();
        assert!(matches!(error, ProgramsError::Changed { .. }), "{what}: {error}");
        assert!(!other.join("plugins").exists() && !other.join("state/automations").exists() && !stages(&other), "{what}");
    };
    let (tags, away) = (to.join("plugins/tags"), root.path().join("away"));
    fs::rename(&tags, &away).unwrap();
    symlink(&away, &tags).unwrap();
    refused("the same, behind a link");
    fs::remove_file(&tags).unwrap();
    fs::rename(&away, &tags).unwrap();
    fs::write(to.join("plugins/tags/run"), "#!/bin/no").unwrap();
    refused("other words");
    fs::write(to.join("plugins/tags/run"), "#!/bin/sh and more").unwrap();
    refused("more words");
    fs::remove_file(to.join("plugins/tags/run")).unwrap();
    refused("none");
}

#[test]
fn a_place_that_cannot_be_had_is_told_and_the_other_is_put_back() {
    let root = tempfile::tempdir().unwrap();
    let (from, to) = place(root.path());
    let (listing, _) = copied(&from, &to).unwrap();
    let other = root.path().join("other");
    let staged = watched(|watch| stage(listing.as_ref(), &to, &places(&other), watch)).unwrap();
    // As a mount point, nothing can be renamed to it.
    write(&other.join("plugins"), "no directory", 0o600);
    let (outcomes, warnings) = staged.put();
    assert_eq!(outcomes, [Outcome::Restored, Outcome::NotPut]);
    assert!(warnings.len() == 1 && warnings[0].contains(&to.join("plugins").display().to_string()), "{warnings:?}");
    assert!(other.join("state/automations/sort.ts").exists() && !stages(&other));
}

#[test]
fn a_list_that_leads_elsewhere_is_none() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(PROGRAMS_FILE);
    let entry = |text: &str| {
        fs::write(&path, text).unwrap();
        let mut fingerprint = Fingerprint::default();
        fingerprint.add(text.as_bytes());
        fingerprint.entry(None)
    };
    let of = |name: &str| format!(r#"{{"directories":{{}},"files":{{"{name}":{{"mode":448,"bytes":0,"sha256":""}}}}}}"#);
    for name in ["plugins/../../x", "/etc/x", "state/credentials/x", "plugins-of-mine/x", "../plugins/x", ""] {
        let text = of(name);
        let error = read_listing(&path, &entry(&text)).unwrap_err();
        assert!(error.contains("leads elsewhere"), "{name}: {error}");
    }
    let good = entry(&of("plugins/x"));
    assert!(read_listing(&path, &good).is_ok());
    fs::write(&path, of("plugins/y")).unwrap();
    assert!(read_listing(&path, &good).unwrap_err().contains("was changed"));
    assert!(read_listing(&path, &entry("[]")).unwrap_err().contains("no list"));
}

#[test]
fn nothing_is_listed_where_nothing_is() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("plugins/empty")).unwrap();
    let to = root.path().join("backup");
    fs::create_dir(&to).unwrap();
    let (listing, programs) = copied(&places(root.path()), &to).unwrap();
    assert_eq!((listing, programs), (None, Programs::default()));
    assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
    assert_eq!(put_back(None, &to, &places(root.path())).unwrap(), [Outcome::NotInBackup; 2]);
}
