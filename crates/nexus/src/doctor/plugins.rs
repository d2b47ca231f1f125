//! Whether the enabled plugins and the automations load: by the word of the running daemon, or, when there is none, of the
//! hosts that it would start for them. Programs are looked for and not started: one says nothing until it is asked.

use super::adapters::hear;
use super::agents::{self, Looker};
use super::{Check, Finding};
use crate::adapter::{Call, PROBE_LIMIT};
use crate::daemon::Paths;
use crate::keeper::SpawnSpec;
use crate::plugin::{AutomationReport, Load, PluginReport, heard, load_on_disk, plugin_on_disk};
use nexus_core::config::{Config, PLUGIN_FILE, PLUGINS};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;
use std::process::Stdio;
use std::thread::ScopedJoinHandle;

/// Hosts started at a time.
const AT_ONCE: usize = 8;

/// Those of the running daemon.
pub fn reported(plugins: &[PluginReport], automations: &[AutomationReport]) -> Vec<Finding> {
    let plugins = plugins.iter().map(|one| (one.name.as_str(), one.problem.as_deref()));
    let automations = automations.iter().map(|one| (one.name.as_str(), one.problem.as_deref()));
    let mut findings = told(Check::Plugins, plugins);
    findings.extend(told(Check::Automations, automations));
    findings
}

fn told<'a>(check: Check, all: impl Iterator<Item = (&'a str, Option<&'a str>)>) -> Vec<Finding> {
    let judged = |(name, problem): (&str, Option<&str>)| match problem {
        None => Finding::ok(check, "works").at_place(name),
        Some(problem) => wrong(check, name, problem),
    };
    or_none(check, all.map(judged).collect())
}

fn wrong(check: Check, name: &str, why: &str) -> Finding {
    let noun = if check == Check::Plugins { "plugin" } else { "automation" };
    let fix = format!("correct it, or `nexus {noun} disable {name}`; `nexus {noun} info {name}` says how it does");
    Finding::error(check, why, fix).at_place(name)
}

fn or_none(check: Check, findings: Vec<Finding>) -> Vec<Finding> {
    if findings.is_empty() { vec![Finding::ok(check, "none is enabled")] } else { findings }
}

/// Those on the disk. `instance` marks what is started, for the next start of a daemon to find should this process be killed.
pub fn load(config: &Config, paths: &Paths, instance: Option<&str>) -> Vec<Finding> {
    let directory = paths.plugins_dir(&config.plugins.directory);
    let own = config.plugins.enabled.iter().filter(|name| !PLUGINS.contains(&name.as_str()));
    let plugins: Vec<_> = own.map(|name| (name.clone(), plugin_on_disk(&directory, name))).collect();
    let mut automations = load_on_disk(&paths.automations_dir());
    automations.retain(|(name, _)| !config.automations.disabled.contains(name));
    let mut findings = or_none(Check::Plugins, tried(Check::Plugins, &plugins, &paths.workspace, instance));
    findings.extend(or_none(Check::Automations, tried(Check::Automations, &automations, &paths.workspace, instance)));
    findings
}

type Named = (String, Result<Load, String>);

fn tried(check: Check, all: &[Named], workspace: &Path, instance: Option<&str>) -> Vec<Finding> {
    each(check, all, |name, load| one(check, name, load, workspace, instance))
}

/// What `look` finds, of several at a time; a panic in it is found as well.
fn each(check: Check, all: &[Named], look: impl Fn(&str, &Result<Load, String>) -> Finding + Sync) -> Vec<Finding> {
    let (look, mut findings) = (&look, Vec::new());
    for some in all.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let looks: Vec<_> = some.iter().map(|(name, load)| scope.spawn(move || look(name, load))).collect();
            let found = |(thread, (name, _)): (ScopedJoinHandle<'_, Finding>, &Named)| {
                thread.join().unwrap_or_else(|_panicked| broken(check, name))
            };
            findings.extend(looks.into_iter().zip(some).map(found));
        });
    }
    findings
}

fn broken(check: Check, name: &str) -> Finding {
    Finding::error(check, "looking at it broke off: a defect of this program", "report it").at_place(name)
}

fn one(check: Check, name: &str, load: &Result<Load, String>, workspace: &Path, instance: Option<&str>) -> Finding {
    let outcome = match load {
        Err(why) => Err(why.clone()),
        Ok(Load::Program(spec)) => {
            let found = agents::program(&spec.argv, &spec.env, spec.cwd.as_deref().unwrap_or(workspace));
            let keys = format!("`command` in {name}/{PLUGIN_FILE}, or `nexus plugin disable {name}`");
            return agents::judge(check, name, &keys, found, Looker::Command);
        }
        Ok(Load::Host { spec, lines }) => hosted(spec, lines, name, workspace, instance),
    };
    match outcome {
        Ok(()) => Finding::ok(check, "loads").at_place(name),
        Err(why) => wrong(check, name, &format!("it does not load: {why}")),
    }
}

fn hosted(spec: &SpawnSpec, lines: &[u8], name: &str, workspace: &Path, instance: Option<&str>) -> Result<(), String> {
    let mut env = spec.env.clone();
    if let Some(instance) = instance {
        env.push(("NEXUS_CHILD_ID".to_owned(), format!("{instance}:{}", spec.child)));
    }
    let call = Call { argv: spec.argv.clone(), env, cwd: spec.cwd.clone().unwrap_or_else(|| workspace.to_owned()) };
    let stdin = memory_with(lines).map_err(|error| format!("nothing could be handed to its host: {error}"))?;
    let said = hear(&call, &[], stdin, PROBE_LIMIT)?;
    heard(&said.stdout, name)
}

/// A file in memory, to be read from its beginning.
fn memory_with(bytes: &[u8]) -> std::io::Result<Stdio> {
    let mut memory = File::from(memfd_create("nexus-stdin", MemfdFlags::CLOEXEC)?);
    memory.write_all(bytes)?;
    memory.rewind()?;
    Ok(memory.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Severity;
    use super::*;

    #[test]
    fn a_look_that_breaks_off_is_told_and_costs_no_other() {
        let named = |name: &str| (name.to_owned(), Err("no file".to_owned()));
        let all: Vec<Named> = (0..2 * AT_ONCE).map(|n| named(&format!("p{n}"))).collect();
        let found = each(Check::Plugins, &all, |name, _| {
            assert_ne!(name, "p3", "a defect");
            Finding::ok(Check::Plugins, "loads").at_place(name)
        });
        assert_eq!(found.len(), all.len(), "{found:?}");
        let bad: Vec<_> = found.iter().filter(|one| one.severity == Severity::Error).map(|one| one.place.as_deref()).collect();
        assert_eq!(bad, [Some("p3")]);
    }

    #[test]
    fn what_a_daemon_says_is_repeated() {
        let plugin = |name: &str, problem: Option<&str>| PluginReport {
            name: name.to_owned(),
            problem: problem.map(str::to_owned),
            ..PluginReport::default()
        };
        let found = reported(&[plugin("a", None), plugin("b", Some("it is not asked at `onError`"))], &[]);
        let told: Vec<_> = found.iter().map(|one| (one.check, one.severity, one.place.as_deref())).collect();
        let expected = [
            (Check::Plugins, Severity::Ok, Some("a")),
            (Check::Plugins, Severity::Error, Some("b")),
            (Check::Automations, Severity::Ok, None),
        ];
        assert_eq!(told, expected);
        assert!(found[1].what.contains("`onError`") && found[1].fix.as_deref().unwrap().contains("nexus plugin disable b"), "{found:?}");
    }
}
