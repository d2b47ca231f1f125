//! Secrets of projects: files that only this user can read, or commands that tell one. Their values go into the
//! environment of a project's process, from where they reach what does its turns and its approved servers, and nowhere
//! else: not into arguments, events, logs or the project's directory.

use crate::credential::{self, CredentialError};
use crate::keeper::Keeper;
use secrecy::ExposeSecret;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Secrets of one project; more are refused.
const SECRETS_MAX: usize = 64;
/// How what is stored begins: a value that looks like a reference to a command is none.
const COMMAND_PREFIX: &str = "command:";
const VALUE_PREFIX: &str = "value:";

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("`{name}` is no name for a secret: as a variable it has A-Z a-z 0-9 _, no digit first, and no NEXUS_ before it")]
    Name { name: String },
    #[error("a project has at most {SECRETS_MAX} secrets")]
    TooMany,
    #[error("the secret `{name}` has a NUL byte in it, which no variable can have")]
    Nul { name: String },
    #[error("the secret `{name}` can't be had")]
    Unusable {
        name: String,
        #[source]
        source: CredentialError,
    },
    #[error(transparent)]
    Store(#[from] CredentialError),
}

impl SecretError {
    /// Whether the same attempt may succeed later without anybody changing anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unusable { source, .. } | Self::Store(source) => source.is_passing(),
            Self::Name { .. } | Self::TooMany | Self::Nul { .. } => false,
        }
    }
}

/// The secrets of all projects, below `state/credentials`.
#[derive(Debug, Clone)]
pub struct Secrets {
    directory: PathBuf,
}

impl Secrets {
    pub fn new(credentials: &Path) -> Self {
        Self { directory: credentials.join("projects") }
    }

    /// Stores a value under a name that becomes a variable.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn set(&self, project: &str, name: &str, value: &str) -> Result<(), SecretError> {
        self.store(project, name, &Zeroizing::new(format!("{VALUE_PREFIX}{value}")))
    }

    fn store(&self, project: &str, name: &str, text: &str) -> Result<(), SecretError> {
        check_name(name)?;
        check_value(name, text)?;
        let known = self.list(project)?;
        if known.len() >= SECRETS_MAX && !known.iter().any(|one| one == name) {
            return Err(SecretError::TooMany);
        }
        Ok(credential::set(&self.directory, &format!("{project}/{name}"), text)?)
    }

    /// Stores a command that tells the value each time it is needed; only its output is secret.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn set_command(&self, project: &str, name: &str, command: &str) -> Result<(), SecretError> {
        self.store(project, name, &format!("{COMMAND_PREFIX}{command}"))
    }

    /// The names, sorted.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn list(&self, project: &str) -> Result<Vec<String>, SecretError> {
        let prefix = format!("{project}/");
        Ok(credential::list(&self.directory)?.into_iter().filter_map(|name| name.strip_prefix(&prefix).map(str::to_owned)).collect())
    }

    /// False when there was none.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn remove(&self, project: &str, name: &str) -> Result<bool, SecretError> {
        check_name(name)?;
        Ok(credential::remove(&self.directory, &format!("{project}/{name}"))?)
    }

    /// All values, for the environment of the project's process.
    ///
    /// # Errors
    /// [`SecretError`], never with a value in it.
    pub async fn resolve(&self, project: &str, keeper: &Keeper) -> Result<BTreeMap<String, String>, SecretError> {
        let mut values = BTreeMap::new();
        for name in self.list(project)? {
            let unusable = |source| SecretError::Unusable { name: name.clone(), source };
            let stored = credential::resolve(&format!("{project}/{name}"), &self.directory, keeper).await.map_err(unusable)?;
            let text = stored.value.expose_secret();
            let value = if text.starts_with(COMMAND_PREFIX) {
                let unusable = |source| SecretError::Unusable { name: name.clone(), source };
                let told = credential::resolve(text, &self.directory, keeper).await.map_err(unusable)?;
                told.value.expose_secret().to_owned()
            } else {
                text.strip_prefix(VALUE_PREFIX).unwrap_or(text).to_owned()
            };
            check_value(&name, &value)?;
            values.insert(name, value);
        }
        Ok(values)
    }
}

/// The secret that the value of a server's variable stands for: `${NAME}`, and nothing beside it.
pub fn referred(value: &str) -> Option<&str> {
    value.strip_prefix("${")?.strip_suffix('}').filter(|name| check_name(name).is_ok())
}

/// A server's variables with `value_of` secrets in place of what refers to them. What refers to none stays as it is.
pub fn in_place(env: &BTreeMap<String, String>, value_of: impl Fn(&str) -> Option<String>) -> BTreeMap<String, String> {
    let value = |value: &String| referred(value).and_then(&value_of).unwrap_or_else(|| value.clone());
    env.iter().map(|(name, text)| (name.clone(), value(text))).collect()
}

fn check_name(name: &str) -> Result<(), SecretError> {
    let first = name.bytes().next();
    let is_name = first.is_some_and(|byte| !byte.is_ascii_digit())
        && name.len() <= 100
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !name.starts_with("NEXUS_");
    if is_name { Ok(()) } else { Err(SecretError::Name { name: name.to_owned() }) }
}

/// One such value would keep the whole process from being started.
fn check_value(name: &str, value: &str) -> Result<(), SecretError> {
    if value.contains('\0') { Err(SecretError::Nul { name: name.to_owned() }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_project_has_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let secrets = Secrets::new(directory.path());
        secrets.set("demo-1", "API_KEY", "one").unwrap();
        secrets.set("demo-2", "API_KEY", "two").unwrap();
        secrets.set_command("demo-1", "OTHER", "pass show other").unwrap();
        assert_eq!(secrets.list("demo-1").unwrap(), ["API_KEY", "OTHER"]);
        assert_eq!(secrets.list("demo").unwrap(), Vec::<String>::new());
        assert!(secrets.remove("demo-1", "API_KEY").unwrap() && !secrets.remove("demo-1", "API_KEY").unwrap());
        assert_eq!(secrets.list("demo-2").unwrap(), ["API_KEY"]);
    }

    #[test]
    fn a_variable_refers_to_a_secret_as_a_whole() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let env = BTreeMap::from([pair("A", "${KEY}"), pair("B", "x${KEY}"), pair("C", "${OTHER}"), pair("D", "${A B}"), pair("E", "${}")]);
        let found = in_place(&env, |name| (name == "KEY").then(|| "hush".to_owned()));
        let values: Vec<&str> = found.values().map(String::as_str).collect();
        assert_eq!(values, ["hush", "x${KEY}", "${OTHER}", "${A B}", "${}"]);
    }

    #[test]
    fn a_name_is_a_variable() {
        let directory = tempfile::tempdir().unwrap();
        let secrets = Secrets::new(directory.path());
        for bad in ["", "1A", "A B", "A=B", "../A", "NEXUS_CHILD_ID", "ä"] {
            assert!(matches!(secrets.set("demo-1", bad, "x"), Err(SecretError::Name { .. })), "{bad}");
        }
        assert!(matches!(secrets.set("demo-1", "A0", "x\0y"), Err(SecretError::Nul { .. })));
        for number in 0..SECRETS_MAX {
            secrets.set("demo-1", &format!("A{number}"), "x").unwrap();
        }
        assert!(matches!(secrets.set("demo-1", "ONE_MORE", "x"), Err(SecretError::TooMany)));
        secrets.set("demo-1", "A0", "y").unwrap();
    }
}
