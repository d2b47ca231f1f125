//! `nexus project setup`: which agent does the turns of projects, and where its model is. What isn't said by a flag it has
//! asked, at a terminal only. It writes the key and then the overlay that names its file, neither unless the outcome loads, and
//! never `nex.yaml`.

use super::named;
use super::questions::{self, Questions};
use crate::cli::adapter::edit::{Done, change_and_tell};
use crate::cli::failure::{Exit, Failure};
use crate::cli::out::note;
use crate::cli::overlay::{self, Before};
use crate::cli::{Global, credential, running};
use crate::credential::write_private;
use crate::daemon::Paths;
use crate::project::coordinate::Coordinate;
use anyhow::Context;
use nexus_core::config::{Config, Provider, Runner};
use serde_json::{Map, Value, json};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The name of the agent that is set up, unless another is given.
const AGENT: &str = "projects";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The project that it is for [default: all that have no other, and whatever else the default agent answers]
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

/// The agent that is to do the turns.
struct Chosen {
    name: String,
    /// What it is; nothing of one that is configured already.
    fields: Option<Map<String, Value>>,
    /// What is still to be stored, and where.
    key: Option<(PathBuf, Zeroizing<String>)>,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let paths = running::paths(global)?;
    let coordinate = args.project.as_deref().map(|project| named::find(project, &paths)).transpose()?;
    let Chosen { name, fields, key } = match &args.agent {
        Some(agent) => Chosen { name: agent.clone(), fields: None, key: None },
        None => choose(args, &mut Questions::new(global.out().json)?, &paths)?,
    };
    let text = match &args.project {
        Some(project) => format!("agent {name} does the turns of {project}"),
        None => format!("agent {name} does the turns of all projects that have no other, and is the default elsewhere too"),
    };
    let change = |root: &mut Map<String, Value>, before: &Before| -> Result<Done, Failure> {
        put(root, before, &name, fields, coordinate.as_ref())?;
        Ok(Done { text, still_disabled: Vec::new() })
    };
    let beside = || key.map_or(Ok(()), |(path, key)| store(&path, &key));
    change_and_tell(global, |paths| overlay::edit_whole(paths, "agents", change, beside))
}

/// Puts the agent, and for whom it works, into the overlay.
fn put(
    root: &mut Map<String, Value>,
    before: &Before,
    name: &str,
    fields: Option<Map<String, Value>>,
    coordinate: Option<&Coordinate>,
) -> Result<(), Failure> {
    let config = &before.loaded.config;
    if let Some(coordinate) = coordinate {
        coordinate.check_kind(&config.nostr.project_kinds).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    }
    let agents = overlay::entry(root, "agents");
    if let Some(fields) = fields {
        agents.insert(name.to_owned(), Value::Object(fields));
    }
    check_known(agents, config, name)?;
    let Some(coordinate) = coordinate else {
        agents.insert("default".to_owned(), name.into());
        return Ok(());
    };
    let overrides = overlay::entry(overlay::entry(root, "projects"), "overrides");
    overlay::entry(overrides, &coordinate.to_string()).insert("agent".to_owned(), name.into());
    Ok(())
}

/// Whether there is such an agent, and it can do what it is chosen for.
fn check_known(agents: &Map<String, Value>, config: &Config, name: &str) -> Result<(), Failure> {
    let configured = config.agents.named.get(name);
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

fn choose(args: &Args, questions: &mut Questions, paths: &Paths) -> anyhow::Result<Chosen> {
    let name = args.name.clone().unwrap_or_else(|| AGENT.to_owned());
    // It becomes the name of a file too.
    if name.is_empty() || name.starts_with(['.', '-']) || !name.chars().all(|c| c.is_ascii_alphanumeric() || "._@+-".contains(c)) {
        return Err(Failure::new(Exit::Usage, "a name has letters, digits and ._@+-, and begins with a letter or digit").into());
    }
    let question = format!("Provider ({})", Provider::WORDS.join(", "));
    let provider = questions.ask(args.provider.clone(), "--provider", &question, None, questions::provider)?;
    let known = Provider::parse(&provider).unwrap_or_default();
    let model = questions.ask(args.model.clone(), "--model", "Model", None, questions::anything)?;
    let url = match (&args.url, known.default_url()) {
        (None, Some(_)) => None,
        (url, own) => Some(questions.ask(url.clone(), "--url", "Address of the interface", own, questions::url)?),
    };
    let mut fields =
        Map::from_iter([("runner".to_owned(), json!("llm")), ("provider".to_owned(), json!(provider)), ("model".to_owned(), json!(model))]);
    if let Some(url) = url {
        fields.insert("url".to_owned(), url.into());
    }
    let key = match key(args, questions, known)? {
        Key::None => None,
        Key::Variable(variable) => {
            fields.insert("key_env".to_owned(), variable.into());
            None
        }
        Key::File(path) => {
            fields.insert("key_file".to_owned(), path.to_string_lossy().into());
            None
        }
        Key::Told(key) => {
            let path = paths.credentials_dir().join("agents").join(format!("{name}.key"));
            fields.insert("key_file".to_owned(), path.to_string_lossy().into());
            Some((path, key))
        }
    };
    Ok(Chosen { name, fields: Some(fields), key })
}

/// Where the key is.
enum Key {
    /// Nowhere: the interface wants none.
    None,
    Variable(String),
    File(PathBuf),
    /// It was typed, or came from stdin.
    Told(Zeroizing<String>),
}

fn key(args: &Args, questions: &mut Questions, provider: Provider) -> anyhow::Result<Key> {
    if let Some(file) = &args.key_file {
        return Ok(Key::File(std::path::absolute(file).context("failed to make the key's file absolute")?));
    }
    if let Some(variable) = &args.key_env {
        questions::variable(variable).map_err(|why| Failure::new(Exit::Usage, format!("--key-env: {why}")))?;
        return Ok(Key::Variable(variable.clone()));
    }
    if args.key_stdin {
        return Ok(Key::Told(credential::value("the key")?));
    }
    // An address of one's own may want none.
    if provider == Provider::Ollama || (!questions.is_interactive() && args.url.is_some()) {
        return Ok(Key::None);
    }
    if !questions.is_interactive() {
        let why = "the provider wants a key; give --key-env, --key-file or --key-stdin, or run this at a terminal";
        return Err(Failure::new(Exit::Usage, why).into());
    }
    let question = "Environment variable that has the key (empty: type the key; -: it needs none)";
    let is_fine = |answer: &str| if matches!(answer, "" | "-") { Ok(()) } else { questions::variable(answer) };
    let variable = questions.line(question, Some(""), is_fine)?;
    match variable.as_str() {
        "-" => Ok(Key::None),
        "" => Ok(Key::Told(typed()?)),
        variable => Ok(Key::Variable(variable.to_owned())),
    }
}

/// A key that is typed and not shown; asked again for one that can't be.
fn typed() -> anyhow::Result<Zeroizing<String>> {
    loop {
        match credential::value("the key") {
            Err(error) if error.downcast_ref::<Failure>().is_some_and(|failure| failure.exit == Exit::Usage) => {
                note(&format!("{error}; Ctrl+C leaves, and changes nothing"));
            }
            told => return told,
        }
    }
}

/// Keeps a key in a file that only this user can read.
fn store(path: &Path, key: &str) -> anyhow::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).context("failed to make a directory for the key")?;
    }
    write_private(path, key.as_bytes()).context("failed to store the key")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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

    fn chosen(args: &Args) -> anyhow::Result<Chosen> {
        let paths = Paths::resolve(Some(Path::new("/w/nex.yaml"))).unwrap();
        choose(args, &mut Questions::nobody(), &paths)
    }

    #[test]
    fn flags_answer_all_questions() {
        let Chosen { name, fields, key } = chosen(&args()).unwrap();
        assert_eq!((name.as_str(), key.is_none()), (AGENT, true));
        assert_eq!(Value::Object(fields.unwrap()), json!({ "runner": "llm", "provider": "anthropic", "model": "m", "key_env": "KEY" }));
    }

    #[test]
    fn without_a_terminal_a_missing_or_wrong_answer_is_named() {
        let told = |args: Args| chosen(&args).map(|_| ()).unwrap_err().to_string();
        assert!(told(Args { model: None, ..args() }).contains("--model"));
        assert!(told(Args { provider: None, ..args() }).contains("--provider"));
        assert!(told(Args { provider: Some("openai".into()), ..args() }).contains("--url"));
        assert!(told(Args { provider: Some("nobody".into()), ..args() }).contains("no provider"));
        assert!(told(Args { url: Some("example.org".into()), ..args() }).contains("write http://host/path"));
        let keyless = told(Args { key_env: None, ..args() });
        assert!(["--key-env", "--key-file", "--key-stdin"].iter().all(|flag| keyless.contains(flag)), "{keyless}");
        for fine in [Args { provider: Some("ollama".into()), ..args() }, Args { url: Some("http://h/v1".into()), ..args() }] {
            assert!(chosen(&Args { key_env: None, ..fine }).is_ok());
        }
        let pasted = told(Args { key_env: Some("sk-1234".into()), ..args() });
        assert!(pasted.contains("no name of a variable") && !pasted.contains("1234"), "{pasted}");
    }
}
