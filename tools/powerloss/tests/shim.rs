//! The library in real processes: this test starts itself again with it, in one of the parts below, then reads the log
//! and rebuilds the files with the modules of `nexus-torture`.
#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "the harness uses the rest")]
#[path = "../../torture/src/power/disk.rs"]
mod disk;
#[allow(dead_code, reason = "the harness uses the rest")]
#[path = "../../torture/src/power/log.rs"]
mod log;
#[allow(dead_code, reason = "the harness uses the rest")]
#[path = "../../torture/src/power/rebuild.rs"]
mod rebuild;

use log::{Op, What};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where a part finds the directory: also in a process that isn't recorded.
const PART_DIRECTORY: &str = "SHIM_TEST_DIR";
const SIGABRT: i32 = 6;
const KILLS: u64 = 20;
/// So much of the log later a process is killed.
const LOGGED_BYTES: u64 = 500_000;
/// A process that wrote nothing by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

struct Run {
    _holder: tempfile::TempDir,
    directory: PathBuf,
    log: PathBuf,
}

impl Run {
    fn new() -> Self {
        let holder = tempfile::tempdir().unwrap();
        let directory = holder.path().join("data");
        fs::create_dir(&directory).unwrap();
        Self { directory, log: holder.path().join("log"), _holder: holder }
    }

    /// A part in a process of its own; recorded, unless its variables are taken away again.
    fn part(&self, name: &str) -> Command {
        #[expect(clippy::disallowed_methods, reason = "a process with the library is what is tested")]
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--ignored", "--nocapture", name]).env("LD_PRELOAD", library()).env(PART_DIRECTORY, &self.directory);
        command.env("NEXUS_POWERLOSS_DIR", &self.directory).env("NEXUS_POWERLOSS_LOG", &self.log);
        command
    }

    fn do_part(&self, name: &str) {
        Self::does(&mut self.part(name));
    }

    #[track_caller]
    fn does(part: &mut Command) {
        let output = part.output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.contains("1 passed"), "{told}{complained}");
    }

    fn ops(&self) -> Vec<Op> {
        log::read(&self.log).unwrap()
    }

    /// The log tells of everything that was done to the files.
    fn assert_complete(&self, ops: &[Op]) {
        let rebuilt = tempfile::tempdir().unwrap();
        rebuild::whole(ops, rebuilt.path()).unwrap();
        assert_eq!(contents(rebuilt.path()), contents(&self.directory));
        assert!(ops.windows(2).all(|pair| pair[0].after_ns <= pair[1].before_ns), "one call after the other");
    }
}

/// Cargo puts it beside the test, or one directory above if it was built for itself.
fn library() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let mut places = exe.ancestors().skip(1).take(2).map(|directory| directory.join("libnexus_powerloss.so"));
    let found = places.find(|path| path.exists());
    found.unwrap_or_else(|| panic!("no libnexus_powerloss.so beside `{}` or above: cargo build -p nexus-powerloss", exe.display()))
}

/// All files below a directory but those that aren't recorded, and all directories, which have no contents.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![directory.to_path_buf()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(directory).unwrap().to_path_buf();
            if path.is_dir() {
                found.insert(name, None);
                waiting.push(path);
            } else if !name.to_string_lossy().ends_with("-shm") {
                found.insert(name, Some(fs::read(&path).unwrap()));
            }
        }
    }
    found
}

fn describe(op: &Op) -> String {
    match &op.what {
        What::Begin => "begin".to_owned(),
        What::Create { path, .. } => format!("create {}", path.display()),
        What::MakeDir { path } => format!("make {}", path.display()),
        What::Write { offset, data, .. } => format!("write {offset} {}", String::from_utf8_lossy(data)),
        What::Truncate { size, .. } => format!("truncate {size}"),
        What::Rename { from, to } => format!("rename {} {}", from.display(), to.display()),
        What::Remove { path } => format!("remove {}", path.display()),
        What::RemoveDir { path } => format!("remove-directory {}", path.display()),
        What::Sync { .. } => "sync".to_owned(),
        What::SyncDir { path } => format!("sync-directory <{}>", path.display()),
    }
}

fn part_directory() -> PathBuf {
    PathBuf::from(std::env::var_os(PART_DIRECTORY).expect("a part is only started by the other tests"))
}

#[test]
#[ignore = "a part that the others start"]
fn part_calls() {
    let directory = part_directory();
    let (old, new, copied) = (directory.join("old"), directory.join("sub/new"), directory.join("copied"));
    let mut file = File::create(&old).unwrap();
    file.write_all(b"one").unwrap();
    file.write_all(b"two").unwrap();
    file.sync_data().unwrap();
    file.write_all_at(b"X", 1).unwrap();
    fs::create_dir(directory.join("sub")).unwrap();
    fs::rename(&old, &new).unwrap();
    File::open(&directory).unwrap().sync_all().unwrap();
    file.set_len(4).unwrap();
    let mut copy = file.try_clone().unwrap();
    drop(file);
    copy.write_all(b"!").unwrap();
    OpenOptions::new().append(true).open(&new).unwrap().write_all(b"end").unwrap();
    assert_eq!(copy.write_vectored(&[IoSlice::new(b"a"), IoSlice::new(b"b")]).unwrap(), 2);
    fs::copy(&new, &copied).unwrap();
    fs::write(&copied, "y").unwrap();
    fs::create_dir(directory.join("sub/sub")).unwrap();
    fs::write(directory.join("sub/sub/gone"), "").unwrap();
    fs::remove_dir_all(directory.join("sub/sub")).unwrap();
    fs::remove_file(&copied).unwrap();
    fs::remove_file(&copied).unwrap_err();
    fs::write(directory.join("index-shm"), "not recorded").unwrap();
    fs::write(directory.with_file_name("outside"), "not recorded").unwrap();
}

#[test]
fn every_call_is_recorded_as_what_it_did() {
    let run = Run::new();
    run.do_part("part_calls");
    let ops = run.ops();
    let told: Vec<String> = ops.iter().map(describe).collect();
    let expected = [
        "begin",
        "create old",
        "write 0 one",
        "write 3 two",
        "sync",
        "write 1 X",
        "make sub",
        "rename old sub/new",
        "sync-directory <>",
        "truncate 4",
        "write 6 !",
        "write 7 end",
        "write 7 ab",
        "create copied",
        "write 0 oXet\0\0!abd",
        "truncate 0",
        "write 0 y",
        "make sub/sub",
        "create sub/sub/gone",
        "remove sub/sub/gone",
        "remove-directory sub/sub",
        "remove copied",
    ];
    assert_eq!(told, expected);
    run.assert_complete(&ops);
}

#[test]
fn what_was_synced_is_rebuilt_and_what_was_not_may_be_gone() {
    let run = Run::new();
    run.do_part("part_calls");
    let ops = run.ops();
    let behind_sync = ops.iter().position(Op::is_sync).unwrap() + 1;
    let found = |upto: usize, seed: u64| {
        let rebuilt = tempfile::tempdir().unwrap();
        rebuild::rebuild(&ops, upto, &mut fastrand::Rng::with_seed(seed), rebuilt.path()).unwrap();
        contents(rebuilt.path()).remove(Path::new("old")).flatten()
    };
    let synced: Vec<_> = (0..100).filter_map(|seed| found(behind_sync, seed)).collect();
    assert_eq!(synced.len(), 100);
    assert!(synced.iter().all(|contents| contents == b"onetwo" || contents == b"oXetwo"));
    assert!((0..100).any(|seed| found(behind_sync - 1, seed).is_none()));
}

#[test]
#[ignore = "a part that the others start"]
fn part_threads() {
    let directory = part_directory();
    std::thread::scope(|scope| {
        for number in 0..4_u8 {
            let path = directory.join(number.to_string());
            scope.spawn(move || {
                for round in 0..100_u8 {
                    let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
                    file.write_all(&[round; 1000]).unwrap();
                    file.sync_all().unwrap();
                }
            });
        }
    });
}

#[test]
fn threads_are_recorded_one_call_after_the_other() {
    let run = Run::new();
    run.do_part("part_threads");
    let ops = run.ops();
    assert_eq!(ops.iter().filter(|op| op.is_sync()).count(), 400);
    assert_eq!(ops.iter().map(|op| op.thread).collect::<std::collections::BTreeSet<_>>().len(), 4);
    run.assert_complete(&ops);
}

/// Writes until it is killed. Long writes, so that a kill falls within one now and then.
#[test]
#[ignore = "a part that the others start"]
fn part_until_killed() {
    let directory = part_directory();
    let mut file = OpenOptions::new().create(true).append(true).open(directory.join("file")).unwrap();
    let parent = std::os::unix::process::parent_id();
    for round in 0_u32.. {
        // Not left behind when the test that started it is gone.
        assert_eq!(std::os::unix::process::parent_id(), parent);
        file.write_all(&[round.to_le_bytes()[0]; 50_000]).unwrap();
        if round % 20 == 19 {
            file.set_len(0).unwrap();
            fs::write(directory.join("new"), round.to_le_bytes()).unwrap();
            fs::rename(directory.join("new"), directory.join("named")).unwrap();
        }
    }
}

#[test]
#[ignore = "a part that the others start"]
fn part_once() {
    fs::write(part_directory().join("after"), "x").unwrap();
}

#[test]
fn a_log_stays_true_over_processes_that_are_killed() {
    let run = Run::new();
    for _ in 0..KILLS {
        let before = fs::metadata(&run.log).map_or(0, |log| log.len());
        let mut child = run.part("part_until_killed").stdout(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while fs::metadata(&run.log).map_or(0, |log| log.len()) < before + LOGGED_BYTES {
            assert!(child.try_wait().unwrap().is_none() && Instant::now() < deadline, "it writes nothing");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        run.do_part("part_once");
        run.assert_complete(&run.ops());
    }
    let begun = run.ops().iter().filter(|op| op.what == What::Begin).count();
    assert_eq!(u64::try_from(begun).unwrap(), 2 * KILLS);
}

#[test]
fn a_process_without_the_variables_is_left_alone() {
    let run = Run::new();
    let part = run.part("part_once").env_remove("NEXUS_POWERLOSS_DIR").output().unwrap();
    assert!(part.status.success() && run.directory.join("after").exists());
    assert!(!run.log.exists());
}

#[test]
#[ignore = "a part that the others start"]
fn part_read_only() {
    let directory = part_directory();
    let (path, flag) = (directory.join("file"), directory.join("flag"));
    let mut file = File::create(&path).unwrap();
    file.write_all(b"one").unwrap();
    File::create(&flag).unwrap();
    let refused = |went: std::io::Result<()>| assert_eq!(went.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    refused(file.write_all(b"two"));
    refused(file.write_all_at(b"X", 0));
    refused(file.write_vectored(&[IoSlice::new(b"a"), IoSlice::new(b"b")]).map(drop));
    refused(file.set_len(0));
    file.sync_all().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"one");
    fs::remove_file(&flag).unwrap();
    file.write_all(b"two").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"onetwo");
}

#[test]
fn open_files_are_refused_while_their_file_system_is_read_only() {
    let run = Run::new();
    let flag = run.directory.join("flag");
    let mut part = run.part("part_read_only");
    Run::does(part.env("NEXUS_READ_ONLY_DIR", &run.directory).env("NEXUS_READ_ONLY_WHILE", &flag));
    let ops = run.ops();
    let told: Vec<String> = ops.iter().map(describe).collect();
    let expected = ["begin", "create file", "write 0 one", "create flag", "sync", "remove flag", "write 3 two"];
    assert_eq!(told, expected, "what is refused is not recorded");
    run.assert_complete(&ops);
    let output = run.part("part_once").env("NEXUS_READ_ONLY_DIR", &run.directory).output().unwrap();
    assert_eq!(output.status.signal(), Some(SIGABRT), "nobody says while what it is read-only");
}

#[test]
#[ignore = "a part that the others start"]
fn part_hard_link() {
    let path = part_directory().join("file");
    fs::write(&path, "x").unwrap();
    fs::hard_link(&path, path.with_file_name("link")).unwrap();
}

#[test]
fn what_can_not_be_recorded_aborts_the_process() {
    let run = Run::new();
    let output = run.part("part_hard_link").output().unwrap();
    assert_eq!(output.status.signal(), Some(SIGABRT));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nexus-powerloss: a hard link is not recorded"));
    assert!(!run.directory.join("link").exists());
    let output = run.part("part_once").env_remove("NEXUS_POWERLOSS_LOG").output().unwrap();
    assert_eq!(output.status.signal(), Some(SIGABRT));
}
