//! `nexus __generate`: man pages, completions, CLI reference, configuration reference and schema, and the types
//! of plugins, written from the definitions themselves. They are committed, and checked for drift.

mod typescript;

use super::failure::Exit;
use super::{Cli, Global};
use anyhow::Context;
use clap::{Arg, Command, CommandFactory};
use clap_complete::Shell;
use std::fs;
use std::path::Path;

const INTRO: &str =
    "# Command line reference\n\nWritten by `nexus __generate`; change the definitions in `crates/nexus/src/cli`, not this page.\n";

pub(crate) fn run(directory: &Path, global: &Global) -> anyhow::Result<Exit> {
    let (man, completions) = (directory.join("man"), directory.join("completions"));
    for path in [&man, &completions] {
        fs::create_dir_all(path).with_context(|| format!("failed to create `{}`", path.display()))?;
    }
    clap_mangen::generate_to(Cli::command(), &man).context("failed to write the man pages")?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), "nexus", &completions)
            .with_context(|| format!("failed to write the {shell} completions"))?;
    }
    write(&directory.join("cli.md"), &reference())?;
    write(&directory.join("config.md"), &nexus_core::config::reference_markdown())?;
    write(&directory.join("nex.schema.json"), &format!("{:#}\n", nexus_core::config::schema()))?;
    write(&directory.join("nexus.d.ts"), &types())?;
    global.out().line(&format!("wrote {}", directory.display()))?;
    Ok(Exit::Done)
}

/// What plugins and automations in TypeScript are written against.
pub(super) fn types() -> String {
    typescript::declarations()
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("failed to write `{}`", path.display()))
}

/// Every command that is not hidden, depth first, in the order of the help.
fn reference() -> String {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let mut page = INTRO.to_owned();
    describe(&root, &mut page);
    page
}

fn describe(command: &Command, page: &mut String) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    page.push_str(&format!("\n## `{name}`\n\n"));
    if let Some(about) = command.get_about() {
        page.push_str(&format!("{about}.\n\n"));
    }
    let usage = command.clone().render_usage().to_string();
    page.push_str(&format!("```text\n{}\n```\n", usage.trim().trim_start_matches("Usage: ")));
    let is_root = !name.contains(' ');
    let shown = |argument: &&Arg| {
        let id = argument.get_id().as_str();
        !argument.is_hide_set() && id != "help" && id != "version" && (is_root || !argument.is_global_set())
    };
    let rows: Vec<String> = command.get_arguments().filter(shown).map(row).collect();
    if !rows.is_empty() {
        page.push_str(&format!("\n| argument | meaning |\n| --- | --- |\n{}", rows.concat()));
    }
    if let Some(examples) = command.get_after_help() {
        page.push_str(&format!("\n```text\n{}\n```\n", examples.to_string().trim()));
    }
    command.get_subcommands().filter(|inner| !inner.is_hide_set()).for_each(|inner| describe(inner, page));
}

fn row(argument: &Arg) -> String {
    let mut meaning = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let takes_value = argument.get_action().takes_values();
    if takes_value {
        let words: Vec<String> = argument.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
        if !words.is_empty() {
            meaning.push_str(&format!(" (one of {})", words.join(", ")));
        }
        let defaults: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        if !defaults.is_empty() {
            meaning.push_str(&format!(" (default: `{}`)", defaults.join(" ")));
        }
    }
    // A bar would end the cell.
    format!("| `{}` | {} |\n", names(argument, takes_value), meaning.trim().replace('|', "\\|"))
}

/// `-n, --lines <N>`, or `<TEXT>` for a positional argument.
fn names(argument: &Arg, takes_value: bool) -> String {
    let placeholder = || match argument.get_value_names() {
        Some([first, ..]) => first.to_string(),
        Some([]) | None => argument.get_id().as_str().to_uppercase(),
    };
    let flags = [argument.get_short().map(|short| format!("-{short}")), argument.get_long().map(|long| format!("--{long}"))];
    let flags = flags.into_iter().flatten().collect::<Vec<_>>().join(", ");
    match (flags.is_empty(), takes_value) {
        (true, _) => format!("<{}>", placeholder()),
        (false, true) => format!("{flags} <{}>", placeholder()),
        (false, false) => flags,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_reference_has_every_command_and_no_hidden_one() {
        let page = reference();
        for part in [
            "## `nexus`\n",
            "## `nexus daemon start`\n",
            "## `nexus adapter account add`\n",
            "| `-d, --detach` | ",
            "| `--log-level <LEVEL>` | Log from this level on, whatever the configuration says (one of `debug`, `info`, `warn`, `error`) |",
            "| `-n, --lines <N>` | How many lines to begin with (default: `50`) |",
            "nexus daemon start --detach --config ./nex.yaml",
        ] {
            assert!(page.contains(part), "{part:?} is not in\n{page}");
        }
        assert_eq!(page.matches("__generate").count(), 1, "only the introduction names it");
        assert!(!page.contains("detached-child"));
    }

    #[test]
    fn everything_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let global = Global { json: false, config: None };
        run(directory.path(), &global).unwrap();
        for name in [
            "man/nexus.1",
            "man/nexus-daemon-start.1",
            "completions/nexus.bash",
            "completions/_nexus",
            "completions/nexus.fish",
            "cli.md",
            "config.md",
            "nexus.d.ts",
        ] {
            assert!(fs::metadata(directory.path().join(name)).unwrap().len() > 0, "{name}");
        }
        let schema = fs::read(directory.path().join("nex.schema.json")).unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&schema).unwrap().is_object());
    }
}
