//! No process outlives the child that started it, and no child its daemon, also when daemon and keeper are
//! killed at once and the process did all to get away; and nobody else is hit. What is tested depends on
//! what the machine allows, and each test says first which kill level that is.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Ask, Daemon, NEXUS, Signal, cgroup, config, eventually, find, lines, only, procfs, program, send_signal};
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

/// What became of a process that neither session nor mark tells of, now that its child has ended.
fn has_ended(escapee: &Left, level: &str) {
    if level == "cgroup" {
        assert!(!escapee.is_alive(), "it outlived its child");
    } else {
        assert!(escapee.is_alive(), "more is promised than `scan` means: change what is said of it");
        end(&escapee.0);
    }
}

/// The cgroups of the children of a daemon that has one.
fn of_children(daemon: &Daemon) -> Vec<PathBuf> {
    let home = cgroup::of(daemon.keeper().pid).unwrap();
    cgroup::below(&cgroup::directory(&home).unwrap())
}

/// The PIDs of a dead daemon's processes that `nexus doctor` tells of.
fn told_by_doctor(daemon: &Daemon, more: &[&str]) -> Vec<i32> {
    let ran = daemon.nexus(&[&["doctor", "--json"][..], more].concat());
    let document: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    let findings = document["findings"].as_array().unwrap().iter().filter_map(|finding| finding["what"].as_str());
    let of_processes = findings.filter_map(|what| what.split_once("of a dead daemon (PID ")).map(|(_, pids)| pids.to_owned());
    of_processes.flat_map(|pids| pids.split(|c: char| !c.is_ascii_digit()).filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
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
        let of_monitor = cgroup::of(daemon.only_monitor().pid).unwrap();
        assert_eq!(of_monitor.parent(), cgroup.as_deref(), "a child has one of its own");
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
fn what_an_adapter_left_ends_with_each_crash_of_it_and_with_its_stop() {
    let (level, mut daemon) = (level(), started());
    let [mut escapee, mut marked] = left(&daemon);
    for _ in 0..3 {
        send_signal(daemon.only_monitor().pid, Signal::KILL);
        let again = [escapee.successor(&daemon.file("escapee")), marked.successor(&daemon.file("marked"))];
        assert!(!marked.is_alive(), "its mark wasn't found");
        has_ended(&escapee, level);
        [escapee, marked] = again;
    }
    daemon.nexus_ok(&["adapter", "stop", "fake/me"]);
    assert!(!marked.is_alive(), "its mark wasn't found");
    has_ended(&escapee, level);
    if level == "cgroup" {
        eventually("its cgroup is gone", || of_children(&daemon).is_empty());
    }
    daemon.nexus_ok(&["adapter", "start", "fake/me"]);
    let again = [escapee.successor(&daemon.file("escapee")), marked.successor(&daemon.file("marked"))];
    daemon.stop();
    assert!(!again.iter().any(Left::is_alive));
}

#[test]
fn what_an_agent_left_ends_with_its_turn() {
    let (level, mut daemon) = (level(), Daemon::new());
    let (pid, gate) = (daemon.file("escapee"), daemon.file("gate"));
    let script = format!(
        r#"env -i setsid sh -c 'echo $$ >{pid}; exec sleep 1000' </dev/null >/dev/null 2>&1 &
           cat >/dev/null; until rm {gate} 2>/dev/null; do sleep 0.1; done; echo done"#
    );
    let command = shell_words::join(["sh", "-c", script.as_str()]);
    let mut wanted = config(json!({}));
    wanted["agents"] = json!({ "default": "leaver", "leaver": { "runner": "command", "command": command } });
    daemon.configure(&wanted);
    daemon.launch();
    let answer = daemon.open(&Ask::post("/control/send", &json!({ "text": "hello" })));
    assert_eq!(answer.status, 200);
    let escapee = Left::of(&pid);
    fs::write(&gate, "").unwrap();
    assert_eq!(answer.body.end()["status"], "completed");
    if level == "cgroup" {
        eventually("what it left is gone", || !escapee.is_alive());
        eventually("its cgroup is gone", || of_children(&daemon).is_empty());
    } else {
        has_ended(&escapee, level);
    }
    daemon.stop();
}

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn a_child_that_can_have_no_cgroup_of_its_own_runs_and_status_says_so() {
    if level() != "cgroup" {
        eprintln!("skipped: no daemon can have a cgroup here");
        return;
    }
    let mut daemon = started();
    let (first, home) = (daemon.only_monitor(), recorded(&daemon).unwrap());
    assert_eq!(kill_level(&daemon)["meaning"], "everything, by cgroup.kill");
    fs::write(cgroup::directory(&home).unwrap().join("cgroup.max.descendants"), "0").unwrap();
    daemon.nexus_ok(&["adapter", "restart", "fake/me"]);
    let next = find("another monitor", || daemon.monitors().into_iter().find(|next| next.pid != first.pid));
    let says_so = |told: &Value| told["why"].as_str().is_some_and(|why| why.starts_with("not every child"));
    let told = find("status says so", || Some(kill_level(&daemon)).filter(says_so));
    assert_eq!(told["level"], "cgroup", "{told}");
    assert!(told["meaning"].as_str().unwrap().contains("outlive its child"), "{told}");
    assert_eq!(cgroup::of(next.pid), Some(home.clone()));
    daemon.stop();
    is_removed(&daemon, Some(home));
}

#[test]
fn doctor_tells_of_what_a_double_kill_left_and_ends_it() {
    let (level, mut daemon) = (level(), started());
    let [escapee, marked] = left(&daemon);
    kill_both(&mut daemon);
    assert!(escapee.is_alive() && marked.is_alive(), "nothing escaped: this test shows nothing");
    let cgroup = recorded(&daemon);
    let told = told_by_doctor(&daemon, &[]);
    assert!(told.contains(&marked.0.pid), "{told:?}");
    assert_eq!(told.contains(&escapee.0.pid), level == "cgroup", "{told:?}");
    assert!(escapee.is_alive() && marked.is_alive(), "a look changed something");
    assert_eq!(told_by_doctor(&daemon, &["--repair"]), Vec::<i32>::new());
    assert!(!marked.is_alive(), "its mark wasn't found");
    has_ended(&escapee, level);
    assert!(!cgroup.is_some_and(|path| exists(&path)), "its cgroup is left");
    assert_eq!(told_by_doctor(&daemon, &[]), Vec::<i32>::new());
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
    let [place, of_monitor, of_second] = [daemon.keeper().pid, monitor.pid, second.0.pid].map(cgroup::of);
    assert_eq!((&place, &of_second), (&home, &of_monitor));
    assert_eq!(home != cgroup::own(), level == "cgroup");
    if level == "cgroup" {
        assert_eq!(of_monitor.as_deref().and_then(Path::parent), home.as_deref());
        eventually("that of the dead keeper's child is gone", || of_children(&daemon).len() == 1);
    }
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
    send_signal(daemon.only_monitor().pid, Signal::KILL);
    let again = [escapee.successor(&daemon.file("escapee")), marked.successor(&daemon.file("marked"))];
    assert!(!escapee.is_alive() && !marked.is_alive(), "they outlived their child");
    let [escapee, marked] = again;
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
