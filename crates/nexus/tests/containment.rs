//! No child outlives its daemon, also when daemon and keeper are killed at once and the child did all to
//! get away; and nobody else is hit. What is tested depends on what the machine allows, and each test
//! says first which kill level that is.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Daemon, NEXUS, Signal, cgroup, eventually, find, lines, only, procfs, program, send_signal};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, kill_process};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Hides every cgroup2 mount from what it runs.
const HIDE: &str = "umount -a -t cgroup2; ! grep -q ' - cgroup2 ' /proc/self/mountinfo || exit 99; exec \"$@\"";
/// The same, with one mount at a place of our own.
const MOUNT: &str = "dir=$1; shift; umount -a -t cgroup2; ! grep -q ' - cgroup2 ' /proc/self/mountinfo || exit 99; \
                     mkdir -p \"$dir\" && mount -t cgroup2 none \"$dir\" || exit 99; exec \"$@\"";

/// A process that a child left behind; killed when the test is over, whatever came of it.
#[derive(Debug)]
struct Left(procfs::Process);

impl Left {
    /// The one whose PID stands in `path`.
    fn of(path: &str) -> Self {
        let written = || procfs::Process::of(lines(path).first()?.trim().parse().ok()?);
        Self(find("a process that was left behind", || written().filter(procfs::Process::is_alive)))
    }

    /// The next one after this.
    fn successor(&self, path: &str) -> Self {
        Self(find("another one", || {
            let pid = lines(path).first()?.trim().parse::<i32>().ok()?;
            procfs::Process::of(pid).filter(|next| next.pid != self.0.pid && next.is_alive())
        }))
    }

    fn is_alive(&self) -> bool {
        self.0.is_alive()
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        if self.0.is_alive()
            && let Some(pid) = Pid::from_raw(self.0.pid)
        {
            kill_process(pid, Signal::KILL).unwrap_or_default();
        }
    }
}

/// The kill level that a daemon must have here.
fn level() -> &'static str {
    if cgroup::is_usable() { "cgroup" } else { "scan" }
}

/// An adapter that leaves two behind: one by the mark in its environment still ours, one by nothing.
fn leaving(daemon: &Daemon) -> Value {
    json!({
        "events": 1, "start_log": daemon.file("starts"), "escapee_file": daemon.file("escapee"),
        "setsid_grandchild": true, "grandchild_file": daemon.file("marked"),
    })
}

fn configured() -> Daemon {
    let daemon = Daemon::new();
    daemon.configure(&only("fake", leaving(&daemon)));
    daemon
}

fn started() -> Daemon {
    let mut daemon = configured();
    daemon.launch();
    daemon
}

/// What the adapter left: the escapee, and the one that still has its mark.
fn left(daemon: &Daemon) -> [Left; 2] {
    ["escapee", "marked"].map(|name| Left::of(&daemon.file(name)))
}

fn kill_level(daemon: &Daemon) -> Value {
    daemon.status()["kill_level"].clone()
}

/// The daemon's cgroup, as its state directory remembers it.
fn recorded(daemon: &Daemon) -> Option<PathBuf> {
    lines(daemon.state("cgroup")).first().map(PathBuf::from)
}

fn instance(daemon: &Daemon) -> String {
    lines(daemon.state("instance")).first().cloned().unwrap()
}

/// Whether a cgroup exists.
fn exists(path: &Path) -> bool {
    cgroup::directory(path).is_some_and(|directory| directory.exists())
}

/// Stops the keeper of the daemon with this PID, so that it can't notice the daemon's end.
fn stopped_keeper(daemon: i32) -> procfs::Process {
    let is_keeper = |child: &procfs::Process| child.argv.contains("__keeper");
    let keeper = find("the keeper", || procfs::children_of(daemon).into_iter().find(is_keeper));
    send_signal(keeper.pid, Signal::STOP);
    eventually("the keeper is stopped", || procfs::is_stopped(keeper.pid));
    keeper
}

fn end(process: &procfs::Process) {
    send_signal(process.pid, Signal::KILL);
    eventually("it is dead", || !process.is_alive());
}

/// Kills daemon and keeper at once: neither can clear up after the other.
fn kill_both(daemon: &mut Daemon) {
    let keeper = stopped_keeper(daemon.pid());
    daemon.kill9();
    end(&keeper);
}

/// Whether this user may do what a prefix does.
fn may(prefix: &[&str]) -> bool {
    let [first, rest @ ..] = prefix else { return true };
    let tried = program(first).args(rest).arg("true").stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// After a clean stop nothing of it is left, neither in the state directory nor among the cgroups.
fn is_removed(daemon: &Daemon, cgroup: Option<PathBuf>) {
    assert!(!daemon.state("cgroup").exists(), "its record is left");
    assert!(!cgroup.is_some_and(|path| exists(&path)), "its cgroup is left");
    daemon.nothing_runs();
}

#[test]
fn what_escaped_a_double_kill_is_gone_when_the_next_daemon_is_ready() {
    let (level, mut daemon) = (level(), started());
    let [escapee, marked] = left(&daemon);
    assert_eq!(kill_level(&daemon)["level"], level, "{}", daemon.status());
    kill_both(&mut daemon);
    assert!(escapee.is_alive() && marked.is_alive(), "nothing escaped: this test shows nothing");
    daemon.launch();
    assert!(!marked.is_alive(), "its mark wasn't found");
    let text = daemon.nexus_ok(&["daemon", "status", "--verbose"]);
    assert!(text.contains(&format!("\nKill level: {level} (")), "{text}");
    let text = daemon.nexus_ok(&["daemon", "status"]);
    assert!(text.lines().any(|line| line == format!("Kill level: {level}")), "{text}");
    let cgroup = recorded(&daemon);
    if level == "cgroup" {
        assert!(!escapee.is_alive(), "it outlived the kill of its cgroup");
        let name = format!("nexus-{}", instance(&daemon));
        assert!(cgroup.as_ref().is_some_and(|path| path.ends_with(&name) && exists(path)), "{cgroup:?}");
        assert_eq!(fs::metadata(daemon.state("cgroup")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(cgroup::of(daemon.keeper().pid), cgroup);
        assert_eq!(cgroup::of(daemon.only_monitor().pid), cgroup);
        assert_eq!(cgroup::of(daemon.pid()), cgroup::own(), "the daemon itself is not in it");
    } else {
        assert_eq!(cgroup, None);
        end(&escapee.0);
    }
    let again = [escapee.successor(&daemon.file("escapee")), marked.successor(&daemon.file("marked"))];
    daemon.stop();
    assert!(!again.iter().any(Left::is_alive));
    is_removed(&daemon, cgroup);
}

#[test]
fn another_keeper_enters_the_cgroup_of_the_dead_one() {
    let (level, mut daemon) = (level(), started());
    let [escapee, _marked] = left(&daemon);
    let (keeper, home) = (daemon.keeper(), cgroup::of(daemon.keeper().pid));
    send_signal(keeper.pid, Signal::KILL);
    let second = escapee.successor(&daemon.file("escapee"));
    assert!(!escapee.is_alive(), "another keeper works while the dead one's leftovers live");
    let monitor = daemon.only_monitor();
    assert_ne!(daemon.keeper().pid, keeper.pid);
    assert_eq!(kill_level(&daemon)["level"], level);
    let places = [daemon.keeper().pid, monitor.pid, second.0.pid].map(cgroup::of);
    assert_eq!(places, [home.clone(), home.clone(), home.clone()]);
    assert_eq!(home != cgroup::own(), level == "cgroup");
    kill_both(&mut daemon);
    daemon.launch();
    assert_eq!(second.is_alive(), level == "scan");
    daemon.stop();
}

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn without_cgroup2_the_mark_is_what_finds_leftovers() {
    let hidden = ["unshare", "-m", "/bin/sh", "-c", HIDE, "sh"];
    if !may(&hidden) {
        eprintln!("skipped: this user may not hide the cgroup2 mounts (unshare -m, umount)");
        return;
    }
    let mut daemon = configured();
    daemon.set_prefix(&hidden);
    daemon.launch();
    let [escapee, marked] = left(&daemon);
    let told = kill_level(&daemon);
    assert_eq!(told["level"], "scan", "{told}");
    assert!(told["why"].as_str().unwrap().contains("cgroup2"), "{told}");
    assert_eq!(recorded(&daemon), None);
    assert_eq!(cgroup::of(daemon.keeper().pid), cgroup::own());
    kill_both(&mut daemon);
    daemon.launch();
    assert!(!marked.is_alive(), "its mark wasn't found");
    assert!(escapee.is_alive(), "more is promised than `scan` means: change what is said of it");
    daemon.stop();
}

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn cgroup2_is_found_wherever_it_is_mounted() {
    let mut daemon = configured();
    let place = daemon.file("some cgroups");
    let mounted = ["unshare", "-m", "/bin/sh", "-c", MOUNT, "sh", place.as_str()];
    if !may(&mounted) {
        eprintln!("skipped: this user may not mount cgroup2 (unshare -m, mount)");
        return;
    }
    daemon.set_prefix(&mounted);
    daemon.launch();
    let [escapee, marked] = left(&daemon);
    let told = kill_level(&daemon);
    assert_eq!(told["level"], "cgroup", "{told}");
    assert!(told["why"].as_str().unwrap().contains(&place), "{told}");
    kill_both(&mut daemon);
    assert!(escapee.is_alive() && marked.is_alive(), "nothing escaped: this test shows nothing");
    daemon.launch();
    assert!(!escapee.is_alive() && !marked.is_alive());
    let cgroup = recorded(&daemon);
    daemon.stop();
    is_removed(&daemon, cgroup);
}

#[test]
fn a_double_kill_of_one_daemon_leaves_the_other_alone() {
    let (level, mut first, mut second) = (level(), started(), started());
    let ([escapee, marked], others) = (left(&first), left(&second));
    let monitor = second.only_monitor();
    assert_ne!(instance(&first), instance(&second));
    kill_both(&mut first);
    first.launch();
    assert!(!marked.is_alive());
    assert_eq!(escapee.is_alive(), level == "scan");
    assert!(others.iter().all(Left::is_alive) && monitor.is_alive(), "a stranger's child was killed");
    assert_eq!(lines(second.file("starts")).len(), 1, "a stranger's child was started again");
    assert_eq!(second.get("/readyz").status, 200);
    first.stop();
    assert!(others.iter().all(Left::is_alive) && monitor.is_alive(), "a stranger's child was stopped");
    second.stop();
    assert!(!others.iter().any(Left::is_alive));
}

#[test]
fn a_copy_of_a_state_directory_hits_nobody() {
    let mut original = started();
    let theirs = left(&original);
    let monitor = original.only_monitor();
    let mut copy = configured();
    fs::create_dir(copy.root().join("state")).unwrap();
    for name in ["instance", "cgroup"] {
        if original.state(name).exists() {
            fs::copy(original.state(name), copy.state(name)).unwrap();
        }
    }
    copy.launch();
    assert_ne!(instance(&copy), instance(&original));
    assert!(theirs.iter().all(Left::is_alive) && monitor.is_alive(), "the copy killed the original's children");
    copy.stop();
    assert!(theirs.iter().all(Left::is_alive) && monitor.is_alive(), "the copy killed the original's children");
    if level() == "cgroup" {
        assert!(exists(&recorded(&original).unwrap()));
    }
    original.stop();
}

/// A daemon whose escapee is a shell that takes orders, as an agent's is, and the FIFO for them.
fn with_shell() -> (Daemon, String) {
    let daemon = Daemon::new();
    let fifo = daemon.file("orders");
    assert!(program("mkfifo").arg(&fifo).status().unwrap().success());
    let mut behaviour = leaving(&daemon);
    behaviour["escapee_reads"] = json!(fifo);
    daemon.configure(&only("fake", behaviour));
    (daemon, fifo)
}

/// Has that shell become a daemon of `place`, with what a child of `mark` has in its environment.
fn become_daemon(fifo: &str, place: &Daemon, mark: &str) {
    let words = [
        format!("PATH={}", std::env::var("PATH").unwrap_or_default()),
        format!("NEXUS_STATE_DIR={}", place.root().join("state").display()),
        format!("NEXUS_CONFIG={}", place.config_file().display()),
        format!("HOME={}", place.home().display()),
        format!("NEXUS_CHILD_ID={mark}:agent/shell"),
        NEXUS.to_owned(),
    ];
    let command = shell_words::join(words);
    let log = place.file("inner.log");
    let order = format!("exec env {command} daemon start </dev/null >{} 2>&1\n", shell_words::quote(&log));
    // Fails as long as nobody reads; a blocking one would wait for ever for a shell that is dead.
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut pipe = find("the shell listens", || rustix::fs::open(fifo, flags, Mode::empty()).ok().map(File::from));
    pipe.write_all(order.as_bytes()).unwrap();
}

#[test]
fn a_daemon_started_inside_another_ones_child_is_safe() {
    let (mut outer, fifo) = with_shell();
    outer.launch();
    let [shell, _marked] = left(&outer);
    let monitor = outer.only_monitor();
    let mut inner = configured();
    become_daemon(&fifo, &inner, &instance(&outer));
    inner.wait_ready();
    assert_eq!(inner.pid_file(), Some(shell.0.pid));
    assert_eq!(kill_level(&inner)["level"], level());
    let theirs = left(&inner);
    assert_eq!(cgroup::of(shell.0.pid), cgroup::of(monitor.pid), "it isn't where the others are");
    if level() == "cgroup" {
        let [inside, around] = [theirs[0].0.pid, shell.0.pid].map(|pid| cgroup::of(pid).unwrap());
        assert!(inside.starts_with(&around) && inside != around, "{inside:?} is not below {around:?}");
    }
    inner.nexus_ok(&["daemon", "stop"]);
    assert!(!theirs.iter().any(Left::is_alive));
    assert!(outer.is_running() && monitor.is_alive(), "the inner daemon took the outer one's children along");
    assert_eq!(kill_level(&outer)["level"], level());
    outer.stop();
}

#[test]
fn a_daemon_started_by_what_escaped_the_one_before_spares_itself() {
    let (level, (mut daemon, fifo)) = (level(), with_shell());
    daemon.launch();
    let [shell, marked] = left(&daemon);
    let first_cgroup = recorded(&daemon);
    kill_both(&mut daemon);
    assert!(shell.is_alive() && marked.is_alive(), "nothing escaped: this test shows nothing");
    become_daemon(&fifo, &daemon, &instance(&daemon));
    daemon.wait_ready();
    assert_eq!(daemon.pid_file(), Some(shell.0.pid));
    assert!(!marked.is_alive(), "its mark wasn't found");
    assert_eq!(kill_level(&daemon)["level"], level);
    let again = [shell.successor(&daemon.file("escapee")), marked.successor(&daemon.file("marked"))];

    // That one too is killed with its keeper; the next is started from outside, as ever.
    let keeper = stopped_keeper(shell.0.pid);
    end(&shell.0);
    end(&keeper);
    assert!(again.iter().all(Left::is_alive), "nothing escaped: this test shows nothing");
    daemon.launch();
    assert!(!again[1].is_alive(), "its mark wasn't found");
    assert_eq!(again[0].is_alive(), level == "scan");
    assert_eq!(recorded(&daemon), first_cgroup, "cgroups pile up");
    daemon.stop();
    assert!(!first_cgroup.is_some_and(|path| exists(&path)), "its cgroup is left");
}
