//! Projects prepared from their definitions: what is laid out, how a newer definition changes it, what waits for an
//! approval, whose directory is adopted, and what is put away. With a real relay, real git and the real daemon.
#![allow(clippy::unwrap_used)]

mod common;
mod gitserver;
mod relays;

use common::{eventually, find};
use gitserver::git;
use gitserver::world::{World, path_of};
use relays::{Client, Key};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

fn names(prepared: &Value, key: &str) -> Vec<String> {
    prepared[key].as_array().unwrap().iter().map(|one| one["slug"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_project_without_a_repository_gets_one() {
    let world = World::new();
    let project = world.project("My Demo", None);
    let prepared = world.prepared(&project);
    let path = path_of(&prepared);
    assert!(path.join(".git").is_dir());
    assert!(path.file_name().unwrap().to_string_lossy().starts_with("my-demo-"), "{path:?}");
    let registry = read(&path.join(".tenex/agents.json"));
    let agent = &registry["project-manager"];
    let signer = format!("daemon:{}/project-manager", prepared["slug"].as_str().unwrap());
    assert_eq!((agent["signer"].as_str().unwrap(), agent["nsec"].is_null()), (signer.as_str(), true));
    let file = read(&path.join(".tenex/agents").join(agent["file"].as_str().unwrap()));
    assert_eq!((&file["name"], &file["instructions"], &file["role"]), (&json!("Project Manager"), &json!("Be brief."), &json!("manager")));
    assert_eq!(file["useCriteria"], "");

    let key = prepared["agents"][0]["pubkey"].as_str().unwrap().to_owned();
    let profile =
        find("its profile is published", || Client::connect(world.relay.url()).stored(json!({ "kinds": [0], "authors": [key] })).pop());
    assert!(relays::is_verified(&profile) && profile["content"].as_str().unwrap().contains("Project Manager"), "{profile}");

    let shown = world.show("my-demo");
    for name in ["identifier", "pubkey", "naddr", "title", "hashtags", "agentEventIds", "mcpEventIds"] {
        assert!(!shown[name].is_null(), "{name}: {shown}");
    }
    assert_eq!((&shown["identifier"], &shown["project"]["status"]), (&json!("My Demo"), &json!("ready")));
}

#[test]
fn a_newer_definition_changes_only_what_it_names() {
    let world = World::new();
    let (one, two) = (world.tell(4199, &[&["title", "one"]], "1"), world.tell(4199, &[&["title", "two"]], "2"));
    let now = relays::now_s();
    let define = |at: u64, agents: &[&str]| {
        let mut tags: Vec<Vec<&str>> = vec![vec!["d", "demo"]];
        tags.extend(agents.iter().map(|agent| vec!["agent", *agent]));
        let tags: Vec<&[&str]> = tags.iter().map(Vec::as_slice).collect();
        world.publish(&world.owner.sign_at(at, 31_933, &tags, ""));
    };
    let project = world.coordinate("demo");
    define(now - 100, &[&one]);
    let first = world.prepared(&project);
    assert_eq!(names(&first, "agents"), ["one"]);
    let file = path_of(&first).join(".tenex/agents").join(format!("{one}.json"));
    let edited = fs::read_to_string(&file).unwrap().replace("\"1\"", "\"edited\"");
    fs::write(&file, &edited).unwrap();

    define(now - 50, &[&one, &two]);
    let prepared = find("the newer definition counts", || {
        let prepared = world.prepared(&project);
        (names(&prepared, "agents") == ["one", "two"]).then_some(prepared)
    });
    assert_eq!(fs::read_to_string(&file).unwrap(), edited);
    assert_eq!(prepared["agents"][0]["pubkey"], first["agents"][0]["pubkey"]);
}

#[test]
fn a_broken_file_of_a_project_keeps_no_new_agent_from_it() {
    let world = World::new();
    let agents = ["one", "two"].map(|title| world.tell(4199, &[&["title", title]], ""));
    let now = relays::now_s();
    let define = |at: u64, tags: &[&[&str]]| world.publish(&world.owner.sign_at(at, 31_933, tags, ""));
    define(now - 100, &[&["d", "demo"], &["agent", &agents[0]]]);
    let project = world.coordinate("demo");
    let config = path_of(&world.prepared(&project)).join(".tenex/config.json");
    fs::write(&config, "{ mine").unwrap();
    define(now - 50, &[&["d", "demo"], &["agent", &agents[0]], &["agent", &agents[1]]]);
    let prepared =
        find("the newer definition counts", || Some(world.prepared(&project)).filter(|one| names(one, "agents") == ["one", "two"]));
    assert!(prepared["problems"].to_string().contains("config.json"), "{prepared}");
    assert_eq!(fs::read_to_string(&config).unwrap(), "{ mine", "what a person wrote stays");
}

#[test]
fn the_keys_of_a_roster_are_a_projects_agents() {
    let world = World::new();
    let own = world.daemon.get("/control/nostr").json()["pubkey"].as_str().unwrap().to_owned();
    let (planner, nobody) = (Key::new(5), Key::new(6));
    let (a, b, owner) = (planner.public(), nobody.public(), world.owner.public());
    let definition = world.tell(4199, &[&["title", "Planner"]], "Plan.");
    world.publish(&planner.sign(0, &[&["e", &definition]], r#"{"name": "planner of mine"}"#));
    let (project, now) = (world.coordinate("demo"), relays::now_s());
    let define = |at: u64, tags: &[&[&str]]| {
        let tags: Vec<&[&str]> = [&["d", "demo"][..]].into_iter().chain(tags.iter().copied()).collect();
        world.publish(&world.owner.sign_at(at, 31_933, &tags, ""));
    };
    // Its author and the daemon are no agents of it, and one that is named twice is one.
    define(now - 100, &[&["p", &owner], &["p", &own], &["p", &a], &["p", &b], &["p", &a], &["p", "../../x"]]);
    let first = world.prepared(&project);
    assert_eq!(names(&first, "agents"), ["planner".to_owned(), format!("agent-{}", &b[..8])]);
    let agent = &first["agents"][0];
    assert_eq!((&agent["manager"], &agent["instructions"], &agent["roster_key"]), (&json!(true), &json!("Plan."), &json!(a)));
    assert_ne!(agent["pubkey"], json!(a), "nobody gave us its secret key");
    assert!(first["problems"].to_string().contains("no relay has its profile") && first["missing"] == json!([]), "{first}");

    // Both forms, and the key that it signs with by now: still one agent.
    let signing = agent["pubkey"].as_str().unwrap().to_owned();
    define(now - 50, &[&["agent", &definition], &["p", &signing], &["p", &a]]);
    let prepared = find("the newer definition counts", || {
        let prepared = world.prepared(&project);
        (names(&prepared, "agents") == ["planner"]).then_some(prepared)
    });
    assert_eq!(prepared["agents"][0], *agent);
    let files = fs::read_dir(path_of(&prepared).join(".tenex/agents")).unwrap().count();
    assert_eq!(files, 1, "what is named no more is gone");
}

#[test]
fn an_agent_whose_profile_comes_late_is_known_then_and_what_defines_it_is_taken_up_later_still() {
    let (world, planner) = (World::new(), Key::new(5));
    world.tell(31_933, &[&["d", "demo"], &["p", &planner.public()]], "");
    let project = world.coordinate("demo");
    let first = world.prepared(&project);
    assert!(first["problems"].to_string().contains("no relay has its profile"), "{first}");
    let definition = world.owner.sign(4199, &[&["title", "Planner"]], "Plan.");
    world.publish(&planner.sign(0, &[&["e", definition["id"].as_str().unwrap()]], r#"{"name": "planner of mine"}"#));
    let once =
        |name: &str| find(&format!("its name is {name}"), || Some(world.prepared(&project)).filter(|one| one["agents"][0]["name"] == name));
    let known = once("planner of mine");
    assert!(known["problems"].to_string().contains("no relay has its definition"), "{known}");
    world.publish(&definition);
    let defined = once("Planner");
    assert_eq!((&defined["agents"][0]["instructions"], names(&defined, "agents").len()), (&json!("Plan."), 1));
    assert!(!defined["problems"].to_string().contains("no relay has"), "{defined}");
    for key in ["slug", "pubkey", "roster_key"] {
        assert_eq!(first["agents"][0][key], defined["agents"][0][key], "its {key} stays");
    }
}

#[test]
fn nothing_that_runs_is_installed_before_it_is_approved() {
    let world = World::new();
    let server = world.tell(4200, &[&["name", "File Server"], &["command", "npx -y \"file server\""]], "");
    let agent = world.tell(4199, &[&["title", "coder"], &["tool", "shell"], &["tool", "search"]], "");
    let bad = world.tell(4200, &[&["name", "bad"], &["command", "x \"y"]], "");
    world.tell(31_933, &[&["d", "demo"], &["agent", &agent], &["mcp", &server], &["mcp", &bad]], "");
    let project = world.coordinate("demo");
    let prepared = world.prepared(&project);
    assert_eq!((prepared["mcp"].as_array().unwrap().len(), &prepared["agents"][0]["tools"]), (0, &json!([])));
    assert!(prepared["problems"].to_string().contains("open quote"), "one bad server is told and skipped: {prepared}");
    let installed = path_of(&prepared).join(".tenex/mcp-servers/file-server.json");
    assert!(!installed.exists());

    let waiting = world.approvals();
    let of = |kind: &str| waiting.iter().find(|one| one["kind"] == kind).unwrap();
    assert_eq!((waiting.len(), of("mcp")["command"].as_str().unwrap()), (2, "npx -y 'file server'"));
    assert_eq!((of("tools")["command"].as_str().unwrap(), of("mcp")["event_id"].as_str().unwrap()), ("search shell", server.as_str()));
    world.approve(of("mcp"));
    world.approve(of("tools"));
    eventually("it is installed", || installed.exists());
    let prepared = find("both count", || {
        let prepared = world.prepared(&project);
        (prepared["agents"][0]["tools"] == json!(["shell", "search"]) && prepared["mcp"][0]["slug"] == "file-server").then_some(prepared)
    });
    assert_eq!(prepared["mcp"][0]["args"], json!(["-y", "file server"]));

    // Whoever changes the file afterwards has approved nothing.
    let mut file = read(&installed);
    file["args"] = json!(["-c", "id"]);
    fs::write(&installed, file.to_string()).unwrap();
    assert!(world.prepared(&project)["mcp"].as_array().unwrap().is_empty());
    let ran = world.daemon.nexus(&["project", "approve", "999999"]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
}

#[test]
fn trust_in_whitelisted_authors_is_said_in_the_configuration() {
    let world = World::with(|projects| projects["auto_approve_authors"] = json!(true));
    let server = world.tell(4200, &[&["name", "own"], &["command", "own-server"]], "");
    let stranger = Key::new(7).sign(4200, &[&["name", "theirs"], &["command", "their-server"]], "");
    world.publish(&stranger);
    world.tell(31_933, &[&["d", "demo"], &["mcp", &server], &["mcp", stranger["id"].as_str().unwrap()]], "");
    let prepared = world.prepared(&world.coordinate("demo"));
    assert_eq!(names(&prepared, "mcp"), ["own"]);
    assert_eq!(world.approvals().iter().map(|one| one["subject"].clone()).collect::<Vec<_>>(), [json!("theirs")]);
}

#[test]
fn a_directory_is_adopted_with_its_keys_if_it_says_whose_it_is() {
    let world = World::new();
    let (project, key) = (world.project("demo", None), Key::new(5));
    let own = world.daemon.root().join("own");
    fs::create_dir_all(own.join(".tenex/agents")).unwrap();
    fs::write(own.join("notes.txt"), "mine").unwrap();
    fs::write(own.join(".tenex/config.json"), json!({ "projectNaddr": project, "theirs": 1 }).to_string()).unwrap();
    fs::write(own.join(".tenex/agents/own.json"), json!({ "name": "Own" }).to_string()).unwrap();
    fs::write(own.join(".tenex/agents.json"), json!({ "own": { "file": "own.json", "nsec": key.nsec() } }).to_string()).unwrap();
    let answer = world.daemon.nexus_ok(&["project", "init", &project, "--path", own.to_str().unwrap(), "--json"]);
    let prepared: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(names(&prepared, "agents"), ["project-manager", "own"]);
    assert_eq!(prepared["agents"][1]["pubkey"], key.public());
    let text = fs::read_to_string(own.join(".tenex/agents.json")).unwrap();
    assert!(!text.contains("nsec"), "{text}");
    assert_eq!(
        (read(&own.join(".tenex/config.json"))["theirs"].clone(), fs::read_to_string(own.join("notes.txt")).unwrap()),
        (json!(1), "mine".into())
    );
    assert!(!world.daemon.stdout().contains(&key.nsec()) && !world.daemon.stderr().contains(&key.nsec()));
}

#[test]
fn a_directory_of_somebody_else_is_refused_with_the_reason() {
    let world = World::new();
    world.server.repository("other", |_| {});
    let project = world.project("demo", Some(&world.server.url("good")));
    let place = |name: &str| world.daemon.root().join(name);
    let refused = |path: &Path| {
        let ran = world.daemon.nexus(&["project", "init", &project, "--path", path.to_str().unwrap(), "--json"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        ran.stdout
    };
    fs::create_dir(place("full")).unwrap();
    fs::write(place("full").join("file"), "x").unwrap();
    assert!(refused(&place("full")).contains("no clone of"));
    git(world.daemon.root(), &["clone", "--quiet", &world.server.url("other"), place("clone").to_str().unwrap()]);
    assert!(refused(&place("clone")).contains("it is a clone of"));
    std::os::unix::fs::symlink(place("full"), place("link")).unwrap();
    assert!(refused(&place("link")).contains("a link"));
    fs::create_dir_all(place("theirs").join(".tenex")).unwrap();
    fs::write(place("theirs").join(".tenex/config.json"), json!({ "projectNaddr": world.coordinate("another") }).to_string()).unwrap();
    assert!(refused(&place("theirs")).contains("directory of project"));
    fs::write(place("theirs").join(".tenex/config.json"), "{\n  \"projectNaddr\": 7\n}").unwrap();
    assert!(refused(&place("theirs")).contains("config.json:2:"));
}

#[test]
fn authors_and_identifiers_can_not_meet_or_escape() {
    let world = World::new();
    let other = Key::new(2);
    let long = "x".repeat(300);
    let identifiers = ["demo", "../../x", ".git", "a:b:c", long.as_str()];
    let mut paths = Vec::new();
    for identifier in identifiers {
        paths.push(path_of(&world.prepared(&world.project(identifier, None))));
    }
    world.publish(&other.sign(31_933, &[&["d", "demo"]], ""));
    paths.push(path_of(&world.prepared(&format!("31933:{}:demo", other.public()))));
    for path in &paths {
        assert_eq!(path.parent().unwrap(), world.projects(), "{path:?}");
    }
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), identifiers.len() + 1);
    let bad = world.init(&format!("31933:{}:a\u{7}b", world.owner.public()));
    assert_eq!(bad.code, Some(2), "{bad:?}");
}

#[test]
fn what_can_be_no_project_is_refused_at_once_with_what_is_expected() {
    let world = World::new();
    let project = world.project("demo", None);
    world.prepared(&project);
    let naddr = world.show(&project)["naddr"].as_str().unwrap().to_owned();
    assert_eq!(world.show(&naddr)["identifier"], "demo");
    let refused = |args: &[&str], code: i32, told: &str| {
        let ran = world.daemon.nexus(&[&["project"][..], args].concat());
        assert!(ran.code == Some(code) && ran.stderr.contains(told), "{args:?}: {ran:?}");
    };
    assert_eq!(world.show(&naddr.to_ascii_uppercase())["identifier"], "demo");
    let cut = &naddr[..naddr.len() - 5];
    for verb in ["init", "show", "start", "stop", "restart", "release", "logs", "gc"] {
        refused(&[verb, cut], 2, "is all of it there?");
        refused(&[verb, &cut.to_ascii_uppercase()], 2, "is all of it there?");
        refused(&[verb, "31933:demo"], 2, "write naddr1..., or kind:pubkey:identifier");
    }
    refused(&["setup", cut, "--agent", "echo"], 2, "is all of it there?");
    refused(&["secret", "list", cut], 2, "is all of it there?");
    // No relay is asked, which would say that it has none of it.
    let note = format!("1:{}:x", world.owner.public());
    for args in [&["init", &note][..], &["start", &note], &["restart", &note], &["setup", &note, "--agent", "echo"]] {
        refused(args, 2, "is the address of something of kind 1; projects are of kind 31933");
    }
    let nobody = world.coordinate("nobody");
    for verb in ["stop", "release", "logs", "show"] {
        refused(&[verb, &nobody], 4, "no project `31933:");
    }
    let listed: Value = serde_json::from_str(&world.daemon.nexus_ok(&["project", "list", "--json"])).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1, "nothing of it is known afterwards: {listed}");
}

#[test]
fn projects_are_listed_alike_with_a_daemon_and_without_one() {
    let mut world = World::new();
    for name in ["two", "one"] {
        world.prepared(&world.project(name, None));
    }
    let listed = |world: &World| serde_json::from_str::<Value>(&world.daemon.nexus_ok(&["project", "list", "--json"])).unwrap();
    let with = listed(&world);
    world.daemon.stop();
    assert_eq!(listed(&world), with);
}

#[test]
fn a_project_that_was_never_prepared_is_shown_by_the_same_names() {
    let world = World::new();
    let project = world.project("whole", None);
    world.prepared(&project);
    let whole = world.show(&project);
    // It is known, and its server is not there.
    let project = world.project("half", Some("https://127.0.0.1:1/none.git"));
    assert_ne!(world.init(&project).code, Some(0));
    let half = world.show(&project);
    assert_eq!((&half["identifier"], &half["title"], &half["agents"]), (&json!("half"), &json!("half"), &json!([])));
    let names = |shown: &Value| shown.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&half), names(&whole));
}

#[test]
fn a_definition_that_was_prepared_from_outlives_its_relays() {
    let mut world = World::new();
    let project = world.project("demo", None);
    let prepared = world.prepared(&project);
    world.daemon.stop();
    let relay = std::mem::replace(&mut world.relay, relays::Relay::start(&world.daemon.root().join("relay-2"), &[]));
    relay.kill9();
    world.daemon.launch();
    assert_eq!(world.prepared(&project), prepared);
}

#[test]
fn what_is_put_away_is_not_lost_unless_forced() {
    let world = World::new();
    world.server.repository("good", |_| {});
    let project = world.project("demo", Some(&world.server.url("good")));
    let path = path_of(&world.prepared(&project));
    let listed = || -> Value {
        let answer: Value = serde_json::from_str(&world.daemon.nexus_ok(&["project", "gc", "--json"])).unwrap();
        answer["projects"][0].clone()
    };
    assert_eq!(
        (listed()["unsaved"].clone(), listed()["bytes"].as_u64().unwrap() > 0),
        (json!([]), true),
        "what preparing wrote is no work"
    );
    fs::write(path.join("work"), "x").unwrap();
    assert_eq!(listed()["unsaved"], json!(["1 uncommitted file(s)"]));
    git(&path, &["add", "work"]);
    git(&path, &["commit", "--quiet", "--message=work"]);
    assert_eq!(listed()["unsaved"], json!(["1 commit(s) that were not pushed"]));
    let ran = world.daemon.nexus(&["project", "gc", "demo", "--json"]);
    assert!(ran.code == Some(1) && ran.stdout.contains("not pushed") && path.exists(), "{ran:?}");
    let mistyped = world.daemon.nexus(&["project", "gc", "demo", "dmeo", "--force"]);
    assert!(mistyped.code == Some(4) && path.exists(), "nobody is put away with a mistyped name: {mistyped:?}");

    let answer: Value = serde_json::from_str(&world.daemon.nexus_ok(&["project", "gc", "demo", "--force", "--json"])).unwrap();
    let aside = PathBuf::from(answer["archived"][0]["path"].as_str().unwrap());
    assert!(!path.exists() && aside.join("work").exists());
    let shown = world.show("demo");
    assert_eq!((&shown["project"]["status"], &shown["identifier"]), (&json!("archived"), &json!("demo")));
    assert_eq!((&shown["repoUrl"], &shown["agents"]), (&json!(world.server.url("good")), &json!([])));
    let again = world.daemon.nexus_ok(&["project", "gc", "demo"]);
    assert!(again.contains("is archived already"), "{again}");
    let deleted = world.daemon.nexus(&["project", "gc", "demo", "--delete"]);
    assert!(deleted.code == Some(1) && deleted.stderr.contains(".archive"), "what is kept of it is not deleted: {deleted:?}");
    assert_eq!(path_of(&world.prepared(&project)), path, "its next use prepares it anew");
    assert!(!path.join("work").exists());
}

#[test]
fn secrets_lie_where_only_their_owner_reads_them() {
    let world = World::new();
    let prepared = world.prepared(&world.project("demo", None));
    let slug = prepared["slug"].as_str().unwrap();
    let ran = world.daemon.nexus_told("hush-hush\n", &["project", "secret", "set", "demo", "API_KEY"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let file = world.daemon.workspace().join(format!("state/credentials/projects/{slug}/API_KEY.json"));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(world.daemon.nexus_ok(&["project", "secret", "list", "demo"]), "API_KEY\n");
    assert!(!ran.stdout.contains("hush") && !world.daemon.nexus_ok(&["credential", "list"]).contains("API_KEY"));
    let bad = world.daemon.nexus_told("x", &["project", "secret", "set", "demo", "1BAD"]);
    assert_eq!(bad.code, Some(2), "{bad:?}");
    world.daemon.nexus_ok(&["project", "secret", "remove", "demo", "API_KEY"]);
    assert!(!file.exists());
}

#[test]
fn a_secret_that_is_missing_is_said_with_what_stores_it() {
    let world = World::with_all(|config| {
        let model = json!({ "runner": "llm", "provider": "anthropic", "model": "m", "key_env": "KEY_OF_NO_DAEMON" });
        config["agents"] = json!({ "default": "model", "model": model });
    });
    let project = world.project("demo", None);
    let prepared = world.prepared(&project);
    let slug = prepared["slug"].as_str().unwrap();
    let told = format!("`nexus project secret set {slug} KEY_OF_NO_DAEMON`");
    assert!(prepared["missing"].to_string().contains(&told), "{prepared}");
    assert_eq!(world.show("demo")["project"]["status"], "needs_configuration");
    let ran = world.daemon.nexus_told("hush-hush\n", &["project", "secret", "set", slug, "KEY_OF_NO_DAEMON"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(world.prepared(&project)["missing"], json!([]));
    assert_eq!(world.show("demo")["project"]["status"], "ready");
}

#[test]
fn what_is_missing_is_said_and_the_setup_mends_it() {
    let world = World::with_all(|config| {
        config["agents"] = json!({ "default": "model", "model": { "runner": "llm", "provider": "anthropic", "model": "m" } });
    });
    let project = world.project("demo", None);
    // Nobody has to wait for an event to know.
    eventually("it is logged", || world.daemon.stdout().contains("projects need configuration"));
    eventually("it stands below the summary", || world.daemon.stderr().contains("  Projects:  "));
    let prepared = world.prepared(&project);
    assert!(prepared["missing"].to_string().contains("needs a key"), "{prepared}");
    assert_eq!(world.show("demo")["project"]["status"], "needs_configuration");
    // Nobody is asked where there is no terminal.
    let ran = world.daemon.nexus(&["project", "setup", "demo"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("--provider"), "{ran:?}");
    let ran =
        world.daemon.nexus_told("key-of-mine\n", &["project", "setup", "demo", "--provider", "anthropic", "--model", "m", "--key-stdin"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(!ran.stdout.contains("key-of-mine"));
    // With the reload, not only with the next event or preparation.
    assert_eq!(world.show("demo")["project"]["status"], "ready");
    let listed = world.daemon.nexus_ok(&["project", "list", "--json"]);
    assert!(listed.contains(r#""state":"ready","reason":null"#), "{listed}");
    let prepared = find("it counts", || {
        let prepared = world.prepared(&project);
        prepared["missing"].as_array().unwrap().is_empty().then_some(prepared)
    });
    assert_eq!(prepared["agents"][0]["slug"], "project-manager");
}
