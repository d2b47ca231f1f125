//! `nexus project setup`: which agent does the turns of projects, and where its model is. It asks at a terminal only,
//! and each question has a flag. It writes the overlay, never `nex.yaml`.

use crate::cli::adapter::edit::{Done, edit_and_tell};
use crate::cli::client::{Client, encoded};
use crate::cli::failure::{Exit, Failure};
use crate::cli::overlay::{self, Before};
use crate::cli::{Global, block_on, credential, running};
use crate::credential::write_private;
use crate::daemon::Paths;
use crate::project::coordinate::Coordinate;
use anyhow::Context;
use nexus_core::config::{Provider, Runner};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Map, Value, json};
use std::io::IsTerminal;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

/// The name of the agent that is set up, unless another is given.
const AGENT: &str = "projects";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The project that it is for [default: all that have no other]
    #[arg(value_name = "PROJECT")]
    project: Option<String>,
    /// Use this agent, which is configured already, and ask for nothing
    #[arg(long, value_name = "NAME", conflicts_with_all = ["name", "provider", "model", "url", "key_env", "key_file", "key_stdin"])]
    agent: Option<String>,
    /// The name of the agent that is set up [default: projects]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Whose interface it is
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(Provider::WORDS))]
    provider: Option<String>,
    /// The model
    #[arg(long)]
    model: Option<String>,
    /// The interface's address [default: the provider's own; openai has none]
    #[arg(long)]
    url: Option<String>,
    /// The environment variable of the daemon that has the key
    #[arg(long, value_name = "NAME", conflicts_with_all = ["key_file", "key_stdin"])]
    key_env: Option<String>,
    /// The file that has the key
    #[arg(long, value_name = "FILE", conflicts_with = "key_stdin")]
    key_file: Option<PathBuf>,
    /// Read the key from stdin and store it where only you can read it
    #[arg(long)]
    key_stdin: bool,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let paths = running::paths(global)?;
    let coordinate = args.project.as_deref().map(|project| coordinate_of(project, &paths)).transpose()?;
    let (name, fields) = match &args.agent {
        Some(agent) => (agent.clone(), None),
        None => {
            let (name, fields) = choose(args, &mut Questions::new(global.out().json)?, &paths)?;
            (name, Some(fields))
        }
    };
    let text = format!("agent {name} does the turns of {}", args.project.as_deref().unwrap_or("all projects that have no other"));
    let put = |agents: &mut Map<String, Value>| {
        if let Some(fields) = fields {
            let agent = overlay::entry(agents, &name);
            agent.clear();
            agent.extend(fields);
        }
    };
    match coordinate {
        None => edit_and_tell(global, "agents", |agents, before| {
            put(agents);
            check_known(agents, before, &name)?;
            agents.insert("default".to_owned(), name.clone().into());
            Ok(Done { text, still_disabled: Vec::new() })
        }),
        Some(coordinate) => {
            overlay::edit(&paths, "agents", |agents, before| {
                put(agents);
                check_known(agents, before, &name)
            })?;
            edit_and_tell(global, "projects", |projects, _| {
                let one = overlay::entry(overlay::entry(projects, "overrides"), &coordinate.to_string());
                one.insert("agent".to_owned(), name.clone().into());
                Ok(Done { text, still_disabled: Vec::new() })
            })
        }
    }
}

/// Whether there is such an agent, and it can do what it is chosen for.
fn check_known(agents: &Map<String, Value>, before: &Before, name: &str) -> Result<(), Failure> {
    let configured = before.loaded.config.agents.named.get(name);
    let changed = agents.get(name);
    if configured.is_none() && changed.is_none() {
        return Err(Failure::not_found(format!("no agent `{name}` is configured; name one of `agents` in nex.yaml")));
    }
    let word = changed.and_then(|agent| agent["runner"].as_str()).or(configured.map(|agent| agent.runner.as_str()));
    if word == Some(Runner::Acp.as_str()) {
        return Err(Failure::new(Exit::Usage, format!("agent `{name}` has `runner: acp`, which does no turns of projects; name another")));
    }
    Ok(())
}

/// A project is known by its address, or to the running daemon by its other names.
fn coordinate_of(project: &str, paths: &Paths) -> anyhow::Result<Coordinate> {
    if let Ok(coordinate) = Coordinate::read(project) {
        return Ok(coordinate);
    }
    let path = format!("/control/prepare/show/{}", encoded(project));
    let shown = block_on(async { Client::new(paths).get(&path).await })??;
    Coordinate::read(shown["project"]["coordinate"].as_str().unwrap_or_default())
        .context("the daemon names the project in a way that can't be read")
}

/// The agent's name and its keys.
fn choose(args: &Args, questions: &mut Questions, paths: &Paths) -> anyhow::Result<(String, Map<String, Value>)> {
    let name = args.name.clone().unwrap_or_else(|| AGENT.to_owned());
    // It becomes the name of a file too.
    if name.starts_with(['.', '-']) || !name.chars().all(|c| c.is_ascii_alphanumeric() || "._@+-".contains(c)) {
        return Err(Failure::new(Exit::Usage, "a name has letters, digits and ._@+-, and begins with a letter or digit").into());
    }
    let provider = questions.ask(args.provider.clone(), "--provider", &format!("Provider ({})", Provider::WORDS.join(", ")), None)?;
    let Some(known) = Provider::parse(&provider) else {
        return Err(Failure::new(Exit::Usage, format!("`{provider}` is no provider; there are {}", Provider::WORDS.join(", "))).into());
    };
    let model = questions.ask(args.model.clone(), "--model", "Model", None)?;
    let url = match (&args.url, known.default_url()) {
        (None, Some(_)) => None,
        (url, own) => Some(questions.ask(url.clone(), "--url", "Address of the interface", own)?),
    };
    let mut fields =
        Map::from_iter([("runner".to_owned(), json!("llm")), ("provider".to_owned(), json!(provider)), ("model".to_owned(), json!(model))]);
    if let Some(url) = url {
        fields.insert("url".to_owned(), url.into());
    }
    if let Some((key, value)) = key(args, questions, known, &name, paths)? {
        fields.insert(key.to_owned(), value.into());
    }
    Ok((name, fields))
}

/// Where the key is: `key_env` or `key_file`; nowhere, for an interface without.
fn key(
    args: &Args,
    questions: &mut Questions,
    provider: Provider,
    name: &str,
    paths: &Paths,
) -> anyhow::Result<Option<(&'static str, String)>> {
    if let Some(file) = &args.key_file {
        let path = std::path::absolute(file).context("failed to make the key's file absolute")?;
        return Ok(Some(("key_file", path.to_string_lossy().into_owned())));
    }
    if let Some(variable) = &args.key_env {
        return Ok(Some(("key_env", variable.clone())));
    }
    if args.key_stdin {
        return Ok(Some(("key_file", store(name, paths)?)));
    }
    if provider == Provider::Ollama || !questions.is_interactive() {
        return Ok(None);
    }
    let variable = questions.line("Environment variable that has the key (empty: type the key; -: it needs none)", Some(""))?;
    match variable.as_str() {
        "-" => Ok(None),
        "" => Ok(Some(("key_file", store(name, paths)?))),
        variable => Ok(Some(("key_env", variable.to_owned()))),
    }
}

/// Keeps a key that is typed, or comes from stdin, in a file that only this user can read.
fn store(name: &str, paths: &Paths) -> anyhow::Result<String> {
    let value = credential::value("the key")?;
    let directory = paths.credentials_dir().join("agents");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).context("failed to make a directory for the key")?;
    let path = directory.join(format!("{name}.key"));
    write_private(&path, value.as_bytes()).context("failed to store the key")?;
    Ok(path.to_string_lossy().into_owned())
}

/// Asks a person, or nobody.
struct Questions {
    editor: Option<DefaultEditor>,
}

impl Questions {
    fn new(json: bool) -> anyhow::Result<Self> {
        let is_terminal = !json && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let editor = is_terminal.then(DefaultEditor::new).transpose().context("failed to read from the terminal")?;
        Ok(Self { editor })
    }

    fn is_interactive(&self) -> bool {
        self.editor.is_some()
    }

    /// What a flag says, else what is answered.
    fn ask(&mut self, given: Option<String>, flag: &str, question: &str, default: Option<&str>) -> anyhow::Result<String> {
        match given {
            Some(given) => Ok(given),
            None if self.is_interactive() => self.line(question, default),
            None => Err(Failure::new(Exit::Usage, format!("{flag} is missing; give it, or run this at a terminal")).into()),
        }
    }

    /// One answer; asked again until there is one, where nothing stands for none.
    fn line(&mut self, question: &str, default: Option<&str>) -> anyhow::Result<String> {
        let Some(editor) = &mut self.editor else { return Ok(default.unwrap_or_default().to_owned()) };
        let prompt = match default {
            Some(default) if !default.is_empty() => format!("{question} [{default}]: "),
            Some(_) | None => format!("{question}: "),
        };
        loop {
            match editor.readline(&prompt) {
                Ok(line) if !line.trim().is_empty() => return Ok(line.trim().to_owned()),
                Ok(_) => {
                    if let Some(default) = default {
                        return Ok(default.to_owned());
                    }
                }
                Err(ReadlineError::Interrupted | ReadlineError::Eof) => {
                    return Err(Failure::new(Exit::Failed, "nothing was changed").into());
                }
                Err(error) => return Err(error).context("failed to read from the terminal"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::path::Path;

    fn args() -> Args {
        Args {
            project: None,
            agent: None,
            name: None,
            provider: Some("anthropic".into()),
            model: Some("m".into()),
            url: None,
            key_env: Some("KEY".into()),
            key_file: None,
            key_stdin: false,
        }
    }

    fn chosen(args: &Args) -> anyhow::Result<(String, Map<String, Value>)> {
        let paths = Paths::resolve(Some(Path::new("/w/nex.yaml"))).unwrap();
        choose(args, &mut Questions { editor: None }, &paths)
    }

    #[test]
    fn flags_answer_all_questions() {
        let (name, fields) = chosen(&args()).unwrap();
        assert_eq!(name, AGENT);
        assert_eq!(Value::Object(fields), json!({ "runner": "llm", "provider": "anthropic", "model": "m", "key_env": "KEY" }));
    }

    #[test]
    fn without_a_terminal_a_missing_answer_is_named() {
        let told = |args: Args| chosen(&args).unwrap_err().to_string();
        assert!(told(Args { model: None, ..args() }).contains("--model"));
        assert!(told(Args { provider: None, ..args() }).contains("--provider"));
        assert!(told(Args { provider: Some("openai".into()), ..args() }).contains("--url"));
        assert!(told(Args { provider: Some("nobody".into()), ..args() }).contains("no provider"));
    }
}
