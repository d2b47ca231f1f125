//! `plugin.yaml`: what a plugin's directory says about it. Read as the configuration is, with every
//! mistake and its place at once.

use super::Source;
use super::adapter::split_command;
use super::decode::{Decode, RUN_MS_MAX, check_unique_items, nonempty, optional_text, word};
use super::node::{FileId, Node};
use super::parse::parse;
use super::problem::{Faults, Problem, quoted};
use crate::hook::Hook;

/// The name of the file, for its directory and for messages.
pub const PLUGIN_FILE: &str = "plugin.yaml";
/// Priorities: the lowest is asked first.
const PRIORITY_MIN: i64 = -1_000_000;
const PRIORITY_MAX: i64 = 1_000_000;

words! {
    /// What a plugin may do with a request.
    PluginMode {
        /// It is told, and nothing waits for it.
        #[default]
        Observe = "observe",
        /// It is asked, and may change the request or end it.
        Mutate = "mutate",
    }
}

words! {
    /// What becomes of a request when a plugin that was asked fails.
    OnPluginError {
        /// It goes on as if the plugin were not there.
        #[default]
        Skip = "skip",
        /// It fails.
        Fail = "fail",
    }
}

words! {
    /// A part of a request that a plugin can ask to see.
    PluginSection {
        #[default]
        Event = "event",
        Delivery = "delivery",
        Principal = "principal",
        Access = "access",
        Triggers = "triggers",
        Agent = "agent",
        Context = "context",
        Response = "response",
        DeliveryResult = "delivery_result",
        Pipeline = "pipeline",
        Status = "status",
    }
}

section! {
    /// What a plugin's directory says about it.
    PluginFile check plugin_program {
        /// Its name; the directory's, if it is given at all.
        name: Option<String> = None => optional_text;
        /// The program and its arguments, split as a shell would and never run by one. It runs in the
        /// plugin's directory.
        command: String = String::new() => nonempty, required "python3 main.py";
        /// The points at which it is called.
        hooks: Vec<Hook> = Vec::new() => hooks, required "[afterReceiveEvent]";
        /// Whether it only watches, or may change requests.
        mode: PluginMode = PluginMode::default();
        /// The parts of a request that it sees.
        sections: Vec<PluginSection> = vec![PluginSection::Event] => sections;
        /// Of several plugins the lowest is asked first; of equals the first by name.
        priority: i64 [PRIORITY_MIN..=PRIORITY_MAX] = 100;
        /// Milliseconds that one call may take.
        timeout_ms: u64 [1..=RUN_MS_MAX] = 1000;
        /// What becomes of a request when it fails: `skip` goes on, `fail` fails the request.
        on_error: OnPluginError = OnPluginError::default();
    }
    derived {
        /// `command` split into the program and its arguments; never empty in a file that loads.
        argv: Vec<String> = Vec::new();
    }
}

/// Reads the `plugin.yaml` of the directory `name`; the unknown keys are told beside it.
///
/// # Errors
/// All that is wrong in it, in the order of the places.
pub fn load_plugin_file(name: &str, source: Source<'_>) -> Result<(PluginFile, Vec<Problem>), Vec<Problem>> {
    let mut faults = Faults::default();
    let decoded = parse(FileId::Main, source.text, &mut faults).and_then(|node| {
        let file = PluginFile::decode(&node, PLUGIN_FILE, &mut faults)?;
        if let (Some(said), Some(at)) = (&file.name, node.get("name"))
            && said != name
        {
            faults.error(at.at, format!("`name` {} is not the name of the plugin's directory, {}", quoted(said), quoted(name)));
        }
        Some(file)
    });
    let warnings = faults.finish(source, None)?;
    // Without a fault there is something decoded.
    decoded.map(|file| (file, warnings)).ok_or_else(Vec::new)
}

impl Decode for Hook {
    fn decode(node: &Node, name: &str, faults: &mut Faults) -> Option<Self> {
        word(node, name, &Self::WORDS, Self::parse, faults)
    }
}

fn hooks(node: &Node, name: &str, faults: &mut Faults) -> Option<Vec<Hook>> {
    let hooks = Vec::decode(node, name, faults)?;
    if node.items().is_empty() {
        faults.error(node.at, format!("`{name}` must name at least one of {}", Hook::WORDS.join(", ")));
    }
    check_unique_items(node, name, faults);
    Some(hooks)
}

fn sections(node: &Node, name: &str, faults: &mut Faults) -> Option<Vec<PluginSection>> {
    let sections = Vec::decode(node, name, faults)?;
    check_unique_items(node, name, faults);
    Some(sections)
}

fn plugin_program(mut file: PluginFile, node: &Node, faults: &mut Faults) -> PluginFile {
    if let Some(command) = node.get("command") {
        file.argv = split_command(&file.command, command, faults).unwrap_or_default();
    }
    file
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn load(text: &str) -> Result<(PluginFile, Vec<Problem>), Vec<String>> {
        let told = |problems: Vec<Problem>| problems.iter().map(|p| format!("{}:{} {}", p.line, p.column, p.message)).collect();
        load_plugin_file("tags", Source { name: PLUGIN_FILE, text }).map_err(told)
    }

    #[test]
    fn all_keys_are_read_and_the_rest_has_defaults() {
        let text = "name: tags\ncommand: python3 'main one.py'\nhooks: [onError, afterReceiveEvent]\nmode: mutate\n\
                    sections: [event, status]\npriority: -5\ntimeout_ms: 250\non_error: fail\n";
        let (file, warnings) = load(text).unwrap();
        assert!(warnings.is_empty());
        assert_eq!(file.argv, ["python3", "main one.py"]);
        assert_eq!(file.hooks, [Hook::OnError, Hook::AfterReceiveEvent]);
        assert_eq!((file.mode, file.on_error, file.priority, file.timeout_ms), (PluginMode::Mutate, OnPluginError::Fail, -5, 250));
        assert_eq!(file.sections, [PluginSection::Event, PluginSection::Status]);
        let (file, _) = load("{command: a, hooks: [onFinalize]}").unwrap();
        assert_eq!((file.mode, file.on_error, file.priority, file.timeout_ms), (PluginMode::Observe, OnPluginError::Skip, 100, 1000));
        assert_eq!(file.sections, [PluginSection::Event]);
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        let text = "name: other\ncommand: a 'b\nhooks: [afterLunch, onError, onError]\nmode: help\nsections: [all]\npriority: x\n\
                    timeout_ms: 0\non_error: retry\n";
        assert_eq!(
            load(text).unwrap_err(),
            [
                "1:7 `name` `other` is not the name of the plugin's directory, `tags`",
                "2:10 `command` `a 'b` has an open quote; close it",
                "3:9 `hooks` must be one of afterReceiveEvent, afterResolveIdentity, afterResolveAccess, afterRunAutomations, \
                 afterAssembleContext, afterRunAgent, afterDeliverResponse, onFinalize, onError, not `afterLunch`",
                "3:30 `hooks` names `onError` twice; once is enough",
                "4:7 `mode` must be one of observe, mutate, not `help`",
                "5:12 `sections` must be one of event, delivery, principal, access, triggers, agent, context, response, \
                 delivery_result, pipeline, status, not `all`",
                "6:11 `priority` must be a whole number from -1000000 to 1000000, not `x`",
                "7:13 `timeout_ms` must be a whole number from 1 to 86400000, not `0`",
                "8:11 `on_error` must be one of skip, fail, not `retry`",
            ]
        );
        assert_eq!(load("hooks: []\n").unwrap_err().len(), 2);
        assert_eq!(load("").unwrap_err().len(), 2);
        assert_eq!(load("[1]").unwrap_err(), ["1:1 `plugin.yaml` must be keys with values (`key: value`), not a list"]);
        assert!(load("{command: a, hooks: [onError], hook: 1}").unwrap().1[0].message.contains("did you mean `hooks`?"));
        assert!(load("command: &a b\nhooks: *a").is_err());
    }
}
