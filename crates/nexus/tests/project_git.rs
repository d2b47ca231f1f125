//! Repositories that strangers name, against the machine's own git and a real `git http-backend`: what is cloned, what is
//! refused, and that nothing of it runs.
#![allow(clippy::unwrap_used)]

mod common;
mod gitserver;
mod relays;

use common::{eventually, find, program};
use gitserver::world::{World, path_of};
use gitserver::{AUTHORITY, git, with_escaping_link, with_ext_submodule};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

#[test]
fn a_repository_is_cloned_once_and_laid_out() {
    let world = World::new();
    world.server.repository("good", |work| fs::write(work.join(".gitignore"), "target\n").unwrap());
    let project = world.project("demo", Some(&world.server.url("good")));
    let prepared = world.prepared(&project);
    let path = path_of(&prepared);
    assert_eq!(fs::read_to_string(path.join("README")).unwrap(), "good\n");
    assert_eq!(fs::read_to_string(path.join(".gitignore")).unwrap(), "target\n.tenex/\n");
    let config: serde_json::Value = serde_json::from_slice(&fs::read(path.join(".tenex/config.json")).unwrap()).unwrap();
    assert_eq!(config["repoUrl"], world.server.url("good"));
    assert!(config["projectNaddr"].as_str().unwrap().starts_with("naddr1"), "{config}");
    assert_eq!(fs::metadata(path.join(".tenex/config.json")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!path.join(".git/hooks").exists(), "no template has put hooks there");
    assert!(git(&path, &["status", "--porcelain"]).contains(".gitignore"));

    let before = fs::metadata(&path).unwrap().ino();
    assert_eq!(world.prepared(&project), prepared);
    assert_eq!((fs::metadata(&path).unwrap().ino(), world.server.clones("good")), (before, 1), "done twice it is as done once");
    assert_eq!(world.left().len(), 1);
}

#[test]
fn a_newer_definition_is_written_down_and_clones_nothing_over_what_is_there() {
    let world = World::new();
    for name in ["first", "second"] {
        world.server.repository(name, |_| {});
    }
    let (first, second) = (world.server.url("first"), world.server.url("second"));
    let agent = world.tell(4199, &[&["title", "one"]], "1");
    let now = relays::now_s();
    let define = |at: u64, repo: &str, description: &str| {
        let tags: [&[&str]; 4] = [&["d", "demo"], &["agent", &agent], &["repo", repo], &["description", description]];
        world.publish(&world.owner.sign_at(at, 31_933, &tags, ""));
    };
    let project = world.coordinate("demo");
    define(now - 100, &first, "as it was");
    let path = path_of(&world.prepared(&project));
    let config_file = path.join(".tenex/config.json");
    let config = || serde_json::from_slice::<serde_json::Value>(&fs::read(&config_file).unwrap()).unwrap();
    let mut with_more = config();
    with_more["ours"] = json!("stays");
    fs::write(&config_file, with_more.to_string()).unwrap();
    fs::write(path.join("work"), "of a person").unwrap();
    let told = || world.show(&project)["problems"].to_string();
    assert!(!told().contains("names the repository"), "{}", told());

    define(now - 50, &second, "as it is");
    eventually("the newer definition counts", || world.prepared(&project)["title"].is_string() && config()["description"] == "as it is");
    assert_eq!((&config()["repoUrl"], &config()["ours"]), (&json!(second), &json!("stays")));
    assert_eq!(git(&path, &["config", "--get", "remote.origin.url"]), first);
    assert_eq!((world.server.clones("first"), world.server.clones("second")), (1, 0));
    assert!(path.join("work").is_file());
    assert!(told().contains(&second) && told().contains("a clone of") && told().contains("project gc"), "{}", told());
}

#[test]
fn no_more_commits_are_cloned_than_the_depth_says() {
    let world = World::with(|projects| projects["git"]["depth"] = json!(1));
    let commits = |repository: &Path| git(repository, &["rev-list", "--count", "HEAD"]);
    let served = world.server.repository("deep", |work| {
        git(work, &["add", "README"]);
        git(work, &["commit", "--quiet", "--message=before"]);
        fs::write(work.join("later"), "later\n").unwrap();
    });
    assert_eq!(commits(&served), "2");
    let path = path_of(&world.prepared(&world.project("demo", Some(&world.server.url("deep")))));
    assert_eq!(commits(&path), "1");
    assert!(path.join("README").is_file() && path.join("later").is_file(), "the last commit is there with all of its files");
}

#[test]
fn two_that_want_it_at_once_get_one_clone() {
    let world = World::new();
    world.server.repository("good", |_| {});
    let project = world.project("demo", Some(&world.server.url("good")));
    let mut asking: Vec<_> = (0..4).map(|_| world.begin(&project)).collect();
    for child in &mut asking {
        assert!(find("it is prepared", || child.try_wait().unwrap()).success());
    }
    assert_eq!(world.server.clones("good"), 1);
    assert_eq!(world.left().len(), 1);
}

#[test]
fn what_is_too_large_too_slow_or_elsewhere_is_refused() {
    let world = World::with(|projects| {
        projects["git"]["max_mb"] = json!(1);
        projects["git"]["timeout_ms"] = json!(2000);
    });
    // What can't be compressed.
    let noise = |work: &Path| {
        let mut state = 1_u64;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        })
        .take(8 * 1024 * 1024)
        .collect();
        fs::write(work.join("noise"), bytes).unwrap();
    };
    world.server.repository("huge", noise);
    world.server.repository("good", |_| {});
    let told = |name: &str, url: &str| world.refused(&world.project(name, Some(url)));
    let huge = told("huge", &world.server.url("huge"));
    assert!(huge.contains("larger than 1 MiB"), "{huge}");
    let silent = told("silent", &world.server.url("silent/good"));
    assert!(silent.contains("did not end within 2000 ms"), "{silent}");
    let redirected = told("redirected", &world.server.url("redirect/good"));
    assert!(redirected.contains("git failed to clone"), "{redirected}");
    assert_eq!(world.server.clones("/good"), 2, "the redirection was followed: {:?}", world.server.asked());
    let missing = told("missing", &world.server.url("missing"));
    assert!(missing.contains("git failed to clone"), "{missing}");
}

#[test]
fn nothing_of_a_repository_or_of_the_machine_runs() {
    let world = World::new();
    let marks = world.daemon.root().join("marks");
    fs::create_dir(&marks).unwrap();
    let marked = || fs::read_dir(&marks).unwrap().count();
    let with_hook = |directory: &Path| {
        fs::create_dir(directory).unwrap();
        let hook = directory.join("post-checkout");
        fs::write(&hook, format!("#!/bin/sh\ntouch {}/hook\n", marks.display())).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let home = world.daemon.home();
    with_hook(&home.join("hooks"));
    let repository = world.server.repository("laden", |work| {
        with_hook(&work.join("hooks"));
        with_hook(&work.join(".githooks"));
        fs::write(work.join(".gitattributes"), "*.bin filter=lfs\n").unwrap();
        fs::write(work.join("big.bin"), "version https://git-lfs.github.com/spec/v1\n").unwrap();
        with_ext_submodule(work);
    });
    let smudge = format!("touch {}/smudge; cat", marks.display());
    // What a user's own configuration would have git run: the user's hooks, or those that lie in the repository.
    for (nth, hooks) in [home.join("hooks").to_str().unwrap(), "hooks", ".githooks"].into_iter().enumerate() {
        let configured = format!("[core]\n\thooksPath = {hooks}\n[filter \"lfs\"]\n\tsmudge = \"{smudge}\"\n\trequired = true\n");
        fs::write(home.join(".gitconfig"), configured).unwrap();
        let mut users = program("git");
        users.args(["clone", "--quiet"]).arg(&repository).arg(world.daemon.root().join(format!("users{nth}")));
        users.env("HOME", &home).env_remove("GIT_CONFIG_GLOBAL");
        assert!(users.status().unwrap().success());
        assert_eq!(marked(), 2, "{hooks}: the user's own git runs both");
        for mark in ["hook", "smudge"] {
            fs::remove_file(marks.join(mark)).unwrap();
        }

        let path = path_of(&world.prepared(&world.project(&format!("laden{nth}"), Some(&world.server.url("laden")))));
        assert!(fs::read_to_string(path.join("big.bin")).unwrap().starts_with("version "));
        assert!(path.join("hooks/post-checkout").is_file() && path.join(".githooks/post-checkout").is_file());
        assert_eq!(fs::read_dir(path.join("s")).map_or(0, Iterator::count), 0, "the submodule stays empty");
        assert_eq!(marked(), 0, "{hooks}");
    }
}

#[test]
fn a_link_that_leads_out_is_refused() {
    let world = World::new();
    world.server.repository("links", with_escaping_link);
    let told = world.refused(&world.project("links", Some(&world.server.url("links"))));
    assert!(told.contains("leads out of it"), "{told}");
}

#[test]
fn what_a_repository_has_in_place_of_our_files_is_not_used() {
    let world = World::new();
    let stolen = relays::Key::new(9);
    world.server.repository("hostile", |work| {
        fs::create_dir_all(work.join(".tenex/mcp-servers")).unwrap();
        fs::create_dir_all(work.join(".tenex/agents")).unwrap();
        let server = json!({ "name": "evil", "command": "sh", "args": ["-c", "id"], "env": {}, "description": "", "eventId": "" });
        fs::write(work.join(".tenex/mcp-servers/evil.json"), server.to_string()).unwrap();
        fs::write(work.join(".tenex/agents/evil.json"), json!({ "name": "evil" }).to_string()).unwrap();
        let registry = json!({ "project-manager": { "file": "evil.json", "nsec": stolen.nsec() } });
        fs::write(work.join(".tenex/agents.json"), registry.to_string()).unwrap();
    });
    let project = world.project("hostile", Some(&world.server.url("hostile")));
    let prepared = world.prepared(&project);
    let agents = prepared["agents"].as_array().unwrap();
    assert_eq!((agents.len(), &agents[0]["name"]), (1, &json!("Project Manager")));
    assert_ne!(agents[0]["pubkey"], stolen.public());
    assert!(prepared["mcp"].as_array().unwrap().is_empty() && world.approvals().is_empty());
    let path = path_of(&prepared);
    assert!(!path.join(".tenex/mcp-servers/evil.json").exists());
    assert!(!git(&path, &["status", "--porcelain"]).contains(".tenex"), "git would put them back");
}

#[test]
fn a_host_that_nobody_named_waits_for_an_approval() {
    let world = World::with(|projects| projects["git"]["allow_hosts"] = json!(["*"]));
    world.server.repository("good", |_| {});
    let project = world.project("demo", Some(&world.server.url("good")));
    let told = world.refused(&project);
    assert!(told.contains("awaits approval"), "{told}");
    assert!(world.server.asked().is_empty(), "it was cloned before anybody approved");
    let waiting = world.approvals();
    assert_eq!((waiting.len(), &waiting[0]["kind"], &waiting[0]["subject"]), (1, &json!("host"), &json!("127.0.0.1")));
    world.approve(&waiting[0]);
    eventually("it is prepared by itself", || world.show(&project)["project"]["status"] == "ready");
    assert!(world.approvals().is_empty());
}

#[test]
fn addresses_of_this_machine_are_refused_unless_allowed() {
    let world = World::with(|projects| projects["git"]["allow_private"] = json!(false));
    world.server.repository("good", |_| {});
    let told = world.refused(&world.project("demo", Some(&world.server.url("good"))));
    assert!(told.contains("not a public one"), "{told}");
    for (number, url) in
        ["ext::sh -c id", "file:///etc", "https://127.0.0.1/x", "http://u:p@127.0.0.1/x", "--upload-pack=id"].iter().enumerate()
    {
        let told = world.refused(&world.project(&format!("p{number}"), Some(url)));
        assert!(told.contains("repository's address"), "{url}: {told}");
    }
    assert!(world.server.asked().is_empty());
}

#[test]
fn a_daemon_that_dies_while_it_clones_leaves_nothing_half() {
    let mut world = World::new();
    world.server.repository("good", |_| {});
    let hanging = world.project("demo", Some(&world.server.url("silent/good")));
    let mut child = world.begin(&hanging);
    eventually("the clone is under way", || world.server.clones("good") == 1);
    world.daemon.kill9();
    find("the command ends", || child.try_wait().unwrap());
    assert!(!world.left().is_empty(), "something was under way");
    world.daemon.launch();
    let good = world.project("other", Some(&world.server.url("good")));
    let path = path_of(&world.prepared(&good));
    assert_eq!(world.left(), [path.file_name().unwrap().to_string_lossy()], "what was left is cleared up");
    let row = world.show("demo")["project"].clone();
    assert_eq!((&row["prepared_at"], &row["status"]), (&json!(null), &json!("discovered")));
    assert!(row["reason"].as_str().unwrap().contains("the daemon ended"), "{row}");
}

#[test]
fn ssh_gets_its_rules_and_reads_no_configuration() {
    let place = tempfile::tempdir().unwrap();
    let (asked, programs, with_ssh) = (place.path().join("asked"), place.path().join("bin"), place.path().join("git-with-ssh"));
    fs::create_dir(&programs).unwrap();
    let script = |path: &Path, text: String| {
        fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    // Notes its arguments, and does here what is to be done there: the last of them.
    let ssh = format!("printf '%s\\n' \"$@\" >> '{}'\nfor last; do :; done\nexec sh -c \"$last\"", asked.display());
    script(&programs.join("ssh"), ssh);
    script(&with_ssh, format!("PATH='{}':$PATH\nexport PATH\nexec git \"$@\"", programs.display()));
    let world = World::with(|projects| {
        projects["git"]["program"] = json!(with_ssh.to_str().unwrap());
        projects["git"]["allow_schemes"] = json!(["ssh"]);
    });
    let repository = world.server.repository("good", |_| {});
    let path = path_of(&world.prepared(&world.project("demo", Some(&format!("ssh://git@127.0.0.1{}", repository.display())))));
    assert_eq!(fs::read_to_string(path.join("README")).unwrap(), "good\n");
    let asked = common::lines(&asked);
    assert!(asked.windows(2).any(|pair| pair == ["-F", "/dev/null"]), "{asked:?}");
    for option in ["BatchMode=yes", "StrictHostKeyChecking=yes", "ProxyCommand=none", "ProxyJump=none", "PermitLocalCommand=no"] {
        assert!(asked.contains(&format!("-o{option}")), "{option}: {asked:?}");
    }
    assert!(asked.contains(&"git@127.0.0.1".to_owned()), "{asked:?}");
}

/// Versions of git that must be among them, such as `2.39 2.47`: `.ci/run` says which.
const REQUIRED: &str = "NEXUS_TEST_GITS";

/// The git programs of this machine, each version once.
fn gits() -> Vec<(PathBuf, String)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/local/bin"].map(PathBuf::from);
    let mut found: Vec<(PathBuf, String)> = Vec::new();
    for place in std::env::split_paths(&path).chain(usual).map(|directory| directory.join("git")).filter(|place| place.is_file()) {
        let output = program(place.to_str().unwrap()).arg("version").output().unwrap();
        let version = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        if !found.iter().any(|(_, known)| *known == version) {
            found.push((place, version));
        }
    }
    for required in std::env::var(REQUIRED).unwrap_or_default().split_whitespace() {
        let is_there = found.iter().any(|(_, version)| version.starts_with(&format!("git version {required}.")));
        assert!(is_there, "git {required} is not on this machine, and {REQUIRED} says that it is tested: {found:?}");
    }
    found
}

#[test]
fn each_git_of_the_machine_clones_and_runs_nothing() {
    let gits = gits();
    assert!(!gits.is_empty());
    for (program, version) in gits {
        let world = World::with(|projects| projects["git"]["program"] = json!(program.to_str().unwrap()));
        let looked: serde_json::Value = serde_json::from_str(&world.daemon.nexus(&["doctor", "--json"]).stdout).unwrap();
        let finding = looked["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == "git").unwrap().clone();
        assert!(finding["severity"] == "ok" && finding["what"].as_str().unwrap().starts_with(&version), "{finding}");

        world.server.repository("links", with_escaping_link);
        let told = world.refused(&world.project("links", Some(&world.server.url("links"))));
        assert!(told.contains("leads out of it"), "{version}: {told}");
        world.server.repository("hostile", |work| {
            fs::create_dir_all(work.join(".tenex")).unwrap();
            fs::write(work.join(".tenex/agents.json"), "{\"evil\": {\"file\": \"evil.json\"}}").unwrap();
            fs::write(work.join(".gitattributes"), "*.bin filter=lfs\n").unwrap();
            fs::write(work.join("big.bin"), "version https://git-lfs.github.com/spec/v1\n").unwrap();
            with_ext_submodule(work);
        });
        let redirected = world.refused(&world.project("redirected", Some(&world.server.url("redirect/hostile"))));
        assert!(redirected.contains("git failed to clone"), "{version}: {redirected}");
        let prepared = world.prepared(&world.project("hostile", Some(&world.server.url("hostile"))));
        let path = path_of(&prepared);
        assert_eq!(prepared["agents"].as_array().unwrap().len(), 1, "{version}: {prepared}");
        assert_eq!(fs::read_dir(path.join("s")).map_or(0, Iterator::count), 0, "{version}: the submodule stays empty");
        assert!(path.join("big.bin").is_file() && !git(&path, &["status", "--porcelain"]).contains(".tenex"), "{version}");
    }
}

#[test]
fn a_certificate_counts_if_its_authority_is_the_one_that_is_named() {
    for (program, version) in gits() {
        let with = |ca_file: Option<&str>| {
            World::with_tls(|projects| {
                projects["git"]["program"] = json!(program.to_str().unwrap());
                if let Some(file) = ca_file {
                    projects["git"]["ca_file"] = json!(file);
                }
            })
        };
        let world = with(Some(AUTHORITY));
        world.server.repository("good", |_| {});
        let path = path_of(&world.prepared(&world.project("demo", Some(&world.server.url("good")))));
        assert_eq!(fs::read_to_string(path.join("README")).unwrap(), "good\n", "{version}");
        assert_eq!(git(&path, &["config", "remote.origin.url"]), world.server.url("good"));

        let stranger = with(None);
        stranger.server.repository("good", |_| {});
        let told = stranger.refused(&stranger.project("demo", Some(&stranger.server.url("good"))));
        assert!(told.contains("git failed to clone"), "{version}: {told}");
        assert!(stranger.server.asked().is_empty(), "{version}: it was spoken to all the same");
    }
}
