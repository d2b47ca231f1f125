//! Reading whole texts: all mistakes at once with their places, and overlays. Hostile ones are in `hostile_tests`.
#![allow(clippy::unwrap_used)]

use super::parse::{DEPTH_LEVELS_MAX, TEXT_BYTES_MAX};
use super::problem::PROBLEMS_MAX;
use super::*;

/// Every key once, each with a value that is not its default where it has one that differs.
pub(super) const FULL_YAML: &str = include_str!("tests/full.yaml");

pub(super) fn source(text: &str) -> Source<'_> {
    Source { name: "nex.yaml", text }
}

pub(super) fn loaded(text: &str) -> Loaded {
    load(source(text), None).unwrap_or_else(|problems| panic!("{}", report(&problems)))
}

pub(super) fn loaded_with(text: &str, overlay: &str) -> Loaded {
    let overlay = Source { name: "overlay.yaml", text: overlay };
    load(source(text), Some(overlay)).unwrap_or_else(|problems| panic!("{}", report(&problems)))
}

pub(super) fn report(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

/// `line:column message` of each error.
pub(super) fn errors(text: &str) -> Vec<String> {
    let problems = load(source(text), None).unwrap_err();
    problems.iter().map(|p| format!("{}:{} {}", p.line, p.column, p.message)).collect()
}

fn warnings(text: &str) -> Vec<String> {
    loaded(text).warnings.iter().map(|p| format!("{}:{} {}", p.line, p.column, p.message)).collect()
}

#[test]
fn nothing_is_all_defaults() {
    for text in ["", "\n", "# nothing\n", "---\n", "daemon:\nbus: ~\nadapters: {}\n", "nex:\n"] {
        assert_eq!(loaded(text).config, Config::default(), "{text:?}");
    }
    let config = Config::default();
    assert_eq!((config.daemon.host.as_str(), config.daemon.port), ("127.0.0.1", 7400));
    assert_eq!(config.pipeline.timeout_ms, 300_000);
    assert_eq!(config.plugins.enabled, ["logging", "analytics"]);
    assert_eq!(config.agents.default, ECHO);
    assert_eq!(config.agents.named[ECHO].runner, Runner::Echo);
}

#[test]
fn every_key_is_read() {
    let Loaded { config, warnings, .. } = loaded(FULL_YAML);
    assert!(warnings.is_empty(), "{}", report(&warnings));
    let gog = &config.adapters["gog"];
    assert_eq!(gog.argv, ["gog", "--name", "two words"]);
    assert!((gog.restart.backoff_multiplier - 1.5).abs() < f64::EPSILON);
    assert_eq!((gog.send.on_uncertain, gog.send.stream), (OnUncertain::Retry, Streaming::Blocks));
    assert_eq!(gog.accounts["me"].config["label"], "inbox");
    let policy = &config.access.policies[0];
    assert_eq!(policy.match_.principal.type_, Some(PrincipalType::Known));
    let condition = &policy.match_.conditions[0];
    assert_eq!(condition.time_range, Some(TimeRange { start_minute: 23 * 60, end_minute: 8 * 60 }));
    assert_eq!(condition.days, [Day::Sat, Day::Sun]);
    assert_eq!(policy.session.agent.as_deref(), Some("smart"));
    assert_eq!(config.agents.named["smart"].argv, ["run", "it"]);
    assert!(config.agents.named.contains_key(ECHO));
    assert_eq!(config.timer.cron[0].missed, Missed::Skip);
    assert_eq!(config.bus.mode, BusMode::WriteThrough);
}

#[test]
fn all_errors_are_told_at_once_with_their_places() {
    let text = "\
daemon:
  port: 70000
  log_level: loud
adapters:
  gog:
    accounts:
      -bad: {}
  '':
    command: 'gog \"open'
access:
  owner: [cli, 'cli:*']
agents:
  default: nobody
  smart: {runner: llm}
plugins:
  enabled: [a/b]
timer:
  timezone: Mars/Olympus
  cron:
    - {expr: 'whenever', label: A}
bus: [1]
";
    assert_eq!(
        errors(text),
        [
            "2:9 `port` must be a whole number from 0 to 65535, not `70000`",
            "3:14 `log_level` must be one of debug, info, warn, error, not `loud`",
            "6:5 `gog` needs `command`, for example `command: gog`",
            "7:7 name `-bad` is not usable; a name has 1 to 64 characters of A-Z a-z 0-9 . _ @ + -, not starting with -",
            "8:3 name `` is not usable; a name has 1 to 64 characters of A-Z a-z 0-9 . _ @ + -, not starting with -",
            "9:14 `command` `gog \"open` has an open quote; close it",
            "11:11 `owner` `cli` is no identity; write channel:identifier, as in \"cli:*\" or \"imessage:+15551234567\"",
            "13:12 `nobody` is not an agent; `agents` has echo, smart",
            "14:10 an agent with `runner: llm` needs `url`, for example `url: https://api.example.org/v1`",
            "14:10 an agent with `runner: llm` needs `model`, for example `model: small-1`",
            "16:13 name `a/b` is not usable; a name has 1 to 64 characters of A-Z a-z 0-9 . _ @ + -, not starting with -",
            "18:13 `timezone` `Mars/Olympus` is unknown; use local or an IANA name such as Europe/Berlin",
            "20:14 `expr` `whenever` is not a cron expression: Invalid pattern: Pattern must have between 5 and 7 fields; write minute hour day month weekday, as in \"0 8 * * *\"",
            "20:33 `label` `A` is not usable; a label has 1 to 64 characters of a-z 0-9 . _ -",
            "21:6 `bus` must be keys with values (`key: value`), not a list",
        ]
    );
}

#[test]
fn plugins_are_named_once_and_granted_what_there_is() {
    let text = "plugins: {enabled: [tags, logging, tags], grants: {tags: [llm, root, 'fetch:', 'fetch:a b']}}";
    let told = errors(text);
    assert_eq!(told.len(), 4, "{told:?}");
    assert!(told[0].contains("`enabled` names `tags` twice"), "{told:?}");
    assert!(told[1].contains("`root` is no grant; there are ledger.query, llm, log, search, send and fetch:HOST"), "{told:?}");
}

#[test]
fn a_plugin_that_is_nowhere_is_told_with_its_place() {
    let text = "plugins: {enabled: [logging, tags, tgas]}";
    let found = BTreeSet::from(["tags".to_owned()]);
    let problems = loaded(text).unknown_plugins(&found, source(text), None);
    let told: Vec<String> = problems.iter().map(|p| format!("{}:{} {}", p.line, p.column, p.message)).collect();
    assert_eq!(told, ["1:36 `tgas` is no plugin: it is neither built in nor in `./plugins`; there are: logging, analytics, tags"]);
    assert!(loaded("").unknown_plugins(&found, source(""), None).is_empty());
}

#[test]
fn a_problem_shows_its_line() {
    let problems = load(source("daemon:\n  port: many\n"), None).unwrap_err();
    assert_eq!(
        problems[0].to_string(),
        "nex.yaml:2:9: `port` must be a whole number from 0 to 65535, not `many`\n  |   port: many\n  |         ^"
    );
}

#[test]
fn wrong_types_are_named() {
    for (text, expected) in [
        ("daemon: {port: '7400'}", "1:16 `port` must be a whole number from 0 to 65535, not the quoted text `7400`"),
        ("daemon: {port: -1}", "1:16 `port` must be a whole number from 0 to 65535, not `-1`"),
        ("daemon: {port: 1.5}", "1:16 `port` must be a whole number from 0 to 65535, not `1.5`"),
        ("daemon: {allow_external: yes}", "1:26 `allow_external` must be true or false, not `yes`"),
        ("daemon: {host: [a]}", "1:16 `host` must be text, not a list"),
        ("daemon: {host: ''}", "1:16 `host` must not be empty; remove the key or give it a value"),
        ("access: {owner: me}", "1:17 `owner` must be a list such as [a, b], not `me`"),
        ("agents: {default: {}}", "1:19 `default` must be text, not keys with values"),
        ("daemon: \"a\\0b\"", "1:9 `daemon` must be keys with values (`key: value`), not the quoted text `a\u{fffd}b`"),
        ("daemon: {host: \"a\\0b\"}", "1:16 `host` contains a NUL character; remove it"),
        ("pipeline: {timeout_ms: 999}", "1:24 `timeout_ms` must be a whole number from 1000 to 86400000, not `999`"),
        ("timer: {heartbeat_interval_ms: 5}", "1:32 `heartbeat_interval_ms` must be 0 (no heartbeat) or at least 1000, not 5"),
        ("[a]", "1:1 a configuration is sections such as `daemon:` with keys, not a list"),
        ("hello", "1:1 a configuration is sections such as `daemon:` with keys, not `hello`"),
    ] {
        assert_eq!(errors(text), [expected], "{text}");
    }
    for multiplier in ["0.9", "nan", ".inf", "inf"] {
        let text = format!("adapters: {{a: {{command: a, restart: {{backoff_multiplier: {multiplier}}}}}}}");
        assert_eq!(errors(&text).len(), 1, "{multiplier}");
    }
}

#[test]
fn a_listener_for_others_is_a_decision() {
    for text in [
        "daemon: {host: 0.0.0.0}",
        "daemon: {host: 0.0.0.0, allow_external: true}",
        "daemon: {host: 0.0.0.0, token_file: t}",
        "daemon: {host: example.org}",
    ] {
        let found = errors(text);
        assert_eq!(found.len(), 1, "{text}");
        assert!(found[0].starts_with("1:16 `host` "), "{found:?}");
    }
    assert_eq!(loaded("daemon: {host: '::1'}").config.daemon.host, "::1");
    assert_eq!(loaded("daemon: {host: '::', allow_external: true, token_file: t}").config.daemon.host, "::");
}

#[test]
fn commands_are_split_and_checked() {
    assert_eq!(loaded("adapters: {w: {command: 'builtin:webhook'}}").config.adapters["w"].argv, ["builtin:webhook"]);
    for command in ["builtin:other", "'builtin:'", "builtin:webhook now", "\"''\"", "\"'\"", "' '", "''", "'# x'"] {
        assert_eq!(errors(&format!("adapters: {{a: {{command: {command}}}}}")).len(), 1, "{command}");
    }
    assert_eq!(errors("agents: {a: {runner: command}}").len(), 1);
    assert_eq!(errors("agents: {a: {runner: command, command: \"'\"}}").len(), 1);
    assert_eq!(errors("agents: {a: }"), ["1:10 `a` needs `runner`, for example `runner: command`"]);
    assert_eq!(errors("adapters: {a: {command: a, env: {'A=B': c}, pass_env: ['', 'A=']}}").len(), 3);
}

#[test]
fn agents_are_complete_and_policies_name_them() {
    let llm = |rest: &str| format!("agents: {{a: {{runner: llm, model: m, {rest}}}}}");
    assert_eq!(loaded(&llm("url: 'https://h/v1', key_file: k")).config.agents.named["a"].key_file.as_deref(), Some("k"));
    for rest in ["url: 'ftp://h'", "url: 'http://'", "url: 'http:///v1'", "url: 'http://h x'", "url: 'http://h', key_file: k, key_env: K"] {
        assert_eq!(errors(&llm(rest)).len(), 1, "{rest}");
    }
    let steering = |runner: &str| format!("agents: {{a: {{runner: {runner}, command: c, steering: true}}}}");
    assert!(loaded(&steering("command")).config.agents.named["a"].steering);
    let refused = "1:49 `steering` is for `runner: command`, and this one has `runner: acp`; remove it";
    assert_eq!(errors(&steering("acp")), [refused]);
    let policy = "access: {policies: [{name: p, effect: allow, session: {agent: ghost}}]}";
    assert_eq!(errors(policy), ["1:63 `ghost` is not an agent; `agents` has echo"]);
    let twice = "access:\n  policies:\n    - {name: p, effect: allow}\n    - {name: p, effect: deny}\n";
    assert_eq!(errors(twice), ["4:14 `name` `p` is already used on line 3; give each its own"]);
    assert_eq!(errors("access: {policies: [{name: p, effect: allow}, {name: p, effect: deny}]}").len(), 1);
    assert_eq!(errors("access: {policies: [{}]}").len(), 2);
}

#[test]
fn queue_modes_have_older_names_and_rates_a_bound() {
    let policy = |keys: &str| format!("access: {{policies: [{{name: p, effect: allow, {keys}}}]}}");
    let mode = |word: &str| loaded(&policy(&format!("queue_mode: {word}"))).config.access.policies[0].queue_mode;
    assert_eq!((mode("queue"), mode("steer-backlog"), mode("collect")), (QueueMode::Followup, QueueMode::Steer, QueueMode::Collect));
    assert_eq!(errors(&policy("queue_mode: never")), ["1:58 `queue_mode` must be one of followup, collect, interrupt, steer, not `never`"]);
    for rate in ["{per_minute: 0}", "{per_minute: 6001}", "{per_minute: many}", "{}", "5"] {
        assert_eq!(errors(&policy(&format!("rate: {rate}"))).len(), 1, "{rate}");
    }
    assert_eq!(loaded(&policy("rate: {per_minute: 5}")).config.access.policies[0].rate, Some(Rate { per_minute: 5 }));
}

#[test]
fn no_template_leads_to_a_template() {
    let text = "\
access:
  policies:
    - {name: a, effect: allow, session: {key: 'a-{b}'}}
    - {name: b, effect: allow, session: {key: 'b-{a}'}}
    - {name: c, effect: allow, session: {key: '{key}'}}
    - {name: d, effect: allow, session: {key: '{channel}-{sender_id'}}
    - {name: e, effect: allow, session: {key: '{{peer_id}}'}}
";
    let known = "a session template may name {channel} {account} {sender_id} {peer_id} {entity_id} {thread_id}";
    assert_eq!(
        errors(text),
        [
            format!("3:47 `key` names `{{b}}`; {known}"),
            format!("4:47 `key` names `{{a}}`; {known}"),
            format!("5:47 `key` names `{{key}}`; {known}"),
            format!("6:47 `key` has an open brace at `{{sender_id`; {known}"),
            format!("7:47 `key` names `{{{{peer_id}}`; {known}"),
        ]
    );
}

#[test]
fn queue_modes_have_other_names_and_a_cap_has_a_range() {
    let policy = |rest: &str| format!("access: {{policies: [{{name: p, effect: allow, {rest}}}]}}");
    let mode = |word: &str| loaded(&policy(&format!("queue_mode: {word}"))).config.access.policies[0].queue_mode;
    assert_eq!(["queue", "collect", "steer-backlog"].map(mode), [QueueMode::Followup, QueueMode::Collect, QueueMode::Steer]);
    let queue = |rest: &str| loaded(&policy(rest)).config.access.policies[0].queue.clone();
    assert_eq!(queue("queue: {cap: 3, drop: new}"), Queue { cap: Some(3), drop: QueueDrop::New });
    for rest in ["queue_mode: later", "queue: {cap: 0}", "queue: {cap: 1000001}", "queue: {drop: all}"] {
        assert_eq!(errors(&policy(rest)).len(), 1, "{rest}");
    }
}

#[test]
fn more_time_for_an_agent_than_for_its_request_is_a_warning() {
    assert!(warnings("pipeline: {timeout_ms: 5000}\nagents: {default: a, a: {runner: echo, timeout_ms: 5001}}")[0].starts_with("2:52 "));
}

#[test]
fn answers_of_the_timer_go_only_where_somebody_can_send_them() {
    let with = |deliver: &str| {
        let adapters = "adapters: {a: {command: a, accounts: {me: {}, you: {}}}, hook: {command: 'builtin:webhook', accounts: {me: {}}}}";
        format!("{adapters}\ntimer: {{cron: [{{expr: '0 8 * * *', label: l, deliver: {{{deliver}}}}}]}}")
    };
    let told = |deliver: &str| {
        let told = errors(&with(deliver));
        told.iter().map(|error| error.split_once(' ').unwrap().1.to_owned()).collect::<Vec<_>>()
    };
    let deliver = loaded(&with("adapter: a, account: you, to: '#all'")).config.timer.cron[0].deliver.clone();
    assert_eq!(deliver, Some(CronDeliver { adapter: "a".into(), account: "you".into(), to: "#all".into() }));
    assert_eq!(told("adapter: b, account: me, to: x"), ["`b` is not an adapter; `adapters` has a, hook"]);
    assert_eq!(told("adapter: a, account: her, to: x"), ["`her` is not an account of `a`, which has me, you"]);
    assert_eq!(told("adapter: hook, account: me, to: x"), ["`hook` can't send: it is `builtin:webhook`; name another adapter"]);
    assert_eq!(told("adapter: a, account: me"), ["`deliver` needs `to`, for example `to: \"+15551234567\"`"]);
    for to in ["''", "\"a\\nb\"", "x".repeat(1025).as_str()] {
        assert_eq!(told(&format!("adapter: a, account: me, to: {to}")).len(), 1, "{to}");
    }
}

#[test]
fn unknown_keys_are_warnings_with_the_nearest_known() {
    assert_eq!(
        warnings("daemon:\n  prot: 1\nweather: {}\nadapters: {a: {command: a, restart: {max_restart: 1}}}\n"),
        [
            "2:3 unknown key `prot` in `daemon` is ignored; did you mean `port`?",
            "3:1 unknown key `weather` is ignored; known here: daemon, pipeline, ledgers, adapters, access, agents, \
             plugins, automations, timer, bus, nostr, projects",
            "4:38 unknown key `max_restart` in `restart` is ignored; did you mean `max_restarts`?",
        ]
    );
}

#[test]
fn unknown_keys_of_a_policy_are_errors_wherever_they_stand_in_it() {
    for (keys, message) in [
        ("rates: {per_minute: 1}", "unknown key `rates` in `policies`; did you mean `rate`?"),
        ("match: {condition: [{channel: a}]}", "unknown key `condition` in `match`; did you mean `conditions`?"),
        ("match: {principal: {tag: [x]}}", "unknown key `tag` in `principal`; did you mean `tags`?"),
        ("match: {conditions: [{chanel: a}]}", "unknown key `chanel` in `conditions`; did you mean `channel`?"),
        ("permissions: {tool: {deny: ['*']}}", "unknown key `tool` in `permissions`; did you mean `tools`?"),
        ("permissions: {tools: {denied: ['*']}}", "unknown key `denied` in `tools`; did you mean `deny`?"),
        ("session: {agents: a}", "unknown key `agents` in `session`; did you mean `agent`?"),
        ("queue: {caps: 1}", "unknown key `caps` in `queue`; did you mean `cap`?"),
        ("rate: {per_minute: 1, per_hour: 1}", "unknown key `per_hour` in `rate`; did you mean `per_minute`?"),
    ] {
        let told = errors(&format!("access: {{policies: [{{name: p, effect: allow, {keys}}}]}}"));
        assert!(matches!(told.as_slice(), [one] if one.ends_with(message)), "{keys}: {told:?}");
    }
    // What stands behind it is read as before.
    let said = warnings("access: {policies: [{name: p, effect: allow}], polices: []}\ntimer: {zone: x}\n");
    assert_eq!(said.len(), 2, "{said:?}");
}

#[test]
fn the_alias_of_a_credential_works_but_not_beside_its_name() {
    let account = |keys: &str| format!("adapters: {{a: {{command: a, accounts: {{me: {{{keys}}}}}}}}}");
    let config = loaded(&account("credential: google/me")).config;
    assert_eq!(config.adapters["a"].accounts["me"].credential_ref.as_deref(), Some("google/me"));
    assert_eq!(errors(&account("credential: a, credential_ref: b")).len(), 1);
}

#[test]
fn what_the_overlay_says_of_an_adapter_that_is_gone_is_ignored_with_a_warning() {
    let loaded = loaded_with("daemon: {port: 1}\n", "adapters: {gog: {accounts: {me: {enabled: false}}}}\n");
    assert!(loaded.config.adapters.is_empty());
    assert_eq!(loaded.warnings.len(), 1);
    assert!(loaded.warnings[0].message.contains("`gog`"), "{}", loaded.warnings[0]);
}

#[test]
fn the_overlay_wins_and_its_errors_name_it() {
    let main = "adapters: {gog: {command: gog, accounts: {me: {}, you: {}}}}\n";
    let loaded = loaded_with(main, "adapters: {gog: {accounts: {me: {enabled: false}}}}\n");
    let accounts = &loaded.config.adapters["gog"].accounts;
    assert!(!accounts["me"].enabled && accounts["you"].enabled);

    let overlay = Source { name: "overlay.yaml", text: "\nadapters: {gog: {max_pending: no}}\nbsu: {}\n" };
    let problems = load(source("daemon: {port: x}\nadapters: {gog: {command: gog}}\n"), Some(overlay)).unwrap_err();
    let places: Vec<_> = problems.iter().map(|p| (p.file.as_str(), p.line, p.column)).collect();
    assert_eq!(places, [("nex.yaml", 1, 16), ("overlay.yaml", 2, 31), ("overlay.yaml", 3, 1)]);
    assert_eq!(problems[1].line_text, "adapters: {gog: {max_pending: no}}");
    assert_eq!(problems.iter().map(|problem| problem.is_warning).collect::<Vec<_>>(), [false, false, true]);
    assert!(problems[2].message.starts_with("warning: "), "what is odd is told beside what is wrong");

    let overlay = Source { name: "overlay.yaml", text: "a: [" };
    let problems = load(source("daemon: {port: 1}\n"), Some(overlay)).unwrap_err();
    assert_eq!(problems[0].file, "overlay.yaml");
}

#[test]
fn a_config_yaml_may_hold_it_under_nex() {
    let loaded = loaded("other: {x: 1}\nnex:\n  daemon:\n    port: 1\n");
    assert_eq!(loaded.config.daemon.port, 1);
    assert!(loaded.warnings.is_empty());
    assert_eq!(errors("nex: {daemon: {port: x}}"), ["1:22 `port` must be a whole number from 0 to 65535, not `x`"]);
    assert_eq!(warnings("nex: {}\ndaemon: {}\n").len(), 1);
}

#[test]
fn duplicate_keys_and_other_errors_are_told_together() {
    let found = errors("daemon: {port: 1, port: 2}\ntimer: {heartbeat_interval_ms: x}\n");
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0], "1:19 key `port` is given twice (first on line 1); keep one");
}

#[test]
fn too_much_is_refused_quickly() {
    let long = format!("#{}", "x".repeat(TEXT_BYTES_MAX));
    assert_eq!(errors(&long), ["1:1 the file has 1048577 bytes; a configuration may have 1048576"]);
    let deep = format!("daemon: {}", "[".repeat(DEPTH_LEVELS_MAX));
    assert_eq!(errors(&deep).len(), 1);
    let many: String = (0..40_000).map(|n| format!("\"k{n}\": 1\n")).collect();
    let found = loaded(&many).warnings;
    assert_eq!(found.len(), PROBLEMS_MAX);
    assert!(found.last().unwrap().message.ends_with("(39900 more not shown)"));
    let wrong = format!("plugins: {{enabled: [{}]}}", "x, ".repeat(20_000));
    let found = load(source(&wrong), None).unwrap_err();
    assert_eq!(found.len(), PROBLEMS_MAX);
    assert!(found.iter().all(|problem| problem.to_string().len() < 2000));
}

#[test]
fn the_default_file_is_the_defaults() {
    let Loaded { config, warnings, .. } = loaded(DEFAULT_YAML);
    assert!(warnings.is_empty(), "{}", report(&warnings));
    let mut expected = Config::default();
    expected.access.owner = vec!["cli:*".to_owned()];
    assert_eq!(config, expected);
}

/// The default file with every `#key` turned into `key`.
fn uncommented() -> String {
    let set = |line: &str| {
        let setting = line.trim_start().strip_prefix('#').filter(|rest| !rest.is_empty() && !rest.starts_with(' '));
        setting.map_or_else(|| line.to_owned(), |_| line.replacen('#', "", 1))
    };
    DEFAULT_YAML.lines().map(set).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_default_file_shows_every_key_with_its_default() {
    let text = uncommented();
    let Loaded { config, warnings, .. } = loaded(&text);
    assert!(warnings.is_empty(), "{}", report(&warnings));
    let defaults = Config { daemon: Daemon { token_file: config.daemon.token_file.clone(), ..Daemon::default() }, ..Config::default() };
    assert_eq!(config.daemon, defaults.daemon);
    assert_eq!(config.pipeline, defaults.pipeline);
    assert_eq!(config.ledgers, defaults.ledgers);
    assert_eq!(config.plugins, defaults.plugins);
    assert_eq!(config.automations, defaults.automations);
    assert_eq!(config.bus, defaults.bus);
    assert_eq!(config.projects.git.timeout_ms, defaults.projects.git.timeout_ms);
    let gog = &config.adapters["gog"];
    assert_eq!((&gog.restart, &gog.send, &gog.catch_up), (&Restart::default(), &Send::default(), &CatchUp::default()));
    assert_eq!(config.timer.cron[0].missed, Missed::default());
    assert_eq!(config.agents.named["coder"].permissions, AgentPermissions::default());
    let keys = [
        Daemon::KEYS,
        Pipeline::KEYS,
        Ledgers::KEYS,
        Retention::KEYS,
        Adapter::KEYS,
        Restart::KEYS,
        Send::KEYS,
        CatchUp::KEYS,
        Account::KEYS,
        Access::KEYS,
        Policy::KEYS,
        Match::KEYS,
        PrincipalMatch::KEYS,
        Condition::KEYS,
        Permissions::KEYS,
        Tools::KEYS,
        SessionRoute::KEYS,
        Queue::KEYS,
        Rate::KEYS,
        Agent::KEYS,
        Spending::KEYS,
        CallBudget::KEYS,
        McpServer::KEYS,
        Memory::KEYS,
        AgentPermissions::KEYS,
        Plugins::KEYS,
        PluginCircuit::KEYS,
        Automations::KEYS,
        Timer::KEYS,
        Cron::KEYS,
        CronDeliver::KEYS,
        Bus::KEYS,
        Nostr::KEYS,
        Projects::KEYS,
        Git::KEYS,
        ProjectOverride::KEYS,
        ProjectRestart::KEYS,
    ];
    for key in keys.concat() {
        assert!(text.contains(&format!("{key}:")), "{key}");
    }
}

#[test]
fn the_schema_names_types_ranges_and_what_is_required() {
    let schema = schema();
    assert_eq!(schema.pointer("/$defs/Daemon/properties/port/maximum").unwrap(), 65535);
    assert_eq!(schema.pointer("/$defs/Daemon/properties/port/default").unwrap(), 7400);
    assert_eq!(schema.pointer("/$defs/Adapter/required").unwrap(), &serde_json::json!(["command"]));
    assert_eq!(schema.pointer("/$defs/LogLevel/enum/3").unwrap(), "error");
    assert!(schema.pointer("/$defs/Adapter/properties/argv").is_none());
    assert!(schema.pointer("/$defs/PrincipalMatch/properties/type").is_some());
    let described = |value: &serde_json::Value| value.get("description").is_some();
    assert!(schema["properties"].as_object().unwrap().values().all(described));
}
