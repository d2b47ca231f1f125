//! The daemon as PID 1 of a container: it reaps processes it never started, and obeys SIGTERM, which
//! the kernel keeps from a PID 1 that doesn't ask for it.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Daemon, Signal, eventually, find, only, procfs, program, send_signal};
use serde_json::json;
use std::process::Stdio;

const UNSHARE: [&str; 4] = ["unshare", "--pid", "--fork", "--mount-proc"];

fn may_unshare() -> bool {
    let [first, rest @ ..] = UNSHARE;
    let tried = program(first).args(rest).arg("true").stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn as_pid_1_it_reaps_strangers_and_obeys_term() {
    if !may_unshare() {
        eprintln!("skipped: this user may not make a PID namespace (unshare --pid)");
        return;
    }
    let mut daemon = Daemon::new();
    daemon.set_prefix(&UNSHARE);
    daemon.configure(&only("fake", json!({ "events": 2 })));
    daemon.launch();
    eventually("it works as anywhere", || daemon.ended("completed") == 2);
    let unshare = daemon.pid();
    let init = find("PID 1 of the namespace", || procfs::children_of(unshare).into_iter().next());
    assert_eq!(daemon.pid_file(), Some(1), "it isn't PID 1 in there");
    assert_eq!(daemon.status()["pid"], 1);

    let mark = format!("ORPHAN_OF={}", daemon.home().display());
    let script = "sleep 1000 & exit 0";
    let target = init.pid.to_string();
    let entered = program("nsenter")
        .args(["--target", target.as_str(), "--pid", "--", "sh", "-c", script])
        .env("ORPHAN_OF", daemon.home())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(entered.success(), "nsenter: {entered}");
    let orphans = || procfs::with_environment(&[mark.as_str()]).into_iter().find(|one| one.argv == "sleep 1000");
    let orphan = find("the orphan", orphans);
    eventually("it has become PID 1's", || procfs::parent_of(orphan.pid) == Some(init.pid));
    send_signal(orphan.pid, Signal::KILL);
    eventually("no zombie is left of it", || !procfs::exists(orphan.pid));
    assert_eq!(daemon.get("/readyz").status, 200);

    let monitor = daemon.only_monitor();
    send_signal(init.pid, Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.stderr());
    assert!(!monitor.is_alive());
    assert!(!daemon.state("nex.pid").exists());
}
