//! The secret keys by which the daemon and the agents of its projects speak: made on first use, kept as
//! credentials of the service `nostr`, never shown. A key that can't be read is never replaced by a new one: that
//! would be somebody else.

use super::codec::is_hex;
use crate::credential::{self, CredentialError};
use crate::keeper::Keeper;
use ::nostr::key::{Keys, SecretKey};
use ::nostr::nips::nip19::ToBech32;
use secrecy::ExposeSecret;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The name of the daemon's own key.
pub const DAEMON: &str = "daemon";
/// The service under which keys are stored.
const SERVICE: &str = "nostr";
/// Longest part of a stored name that is readable.
const READABLE_CHARS_MAX: usize = 70;
/// Keys that are held in memory; beyond, they are read when they are needed.
const HELD_MAX: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("`{0}` is no name of a key: it is `daemon`, or a project's and an agent's name with a slash between them")]
    Name(String),
    #[error("the key `{key}` can't be used")]
    Credential {
        key: String,
        #[source]
        source: CredentialError,
    },
    #[error("credential `{reference}` is no secret key; it is nsec1... or 64 hexadecimal digits")]
    Malformed { reference: String },
    #[error("this is no secret key; give nsec1... or 64 hexadecimal digits")]
    NotOne,
    #[error("the key `{key}` is another one already (`{pubkey}`); remove credential `{reference}` first if it is to be replaced")]
    Taken { key: String, pubkey: String, reference: String },
}

impl KeyError {
    /// Whether the same attempt may succeed later without anybody changing anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Credential { source, .. } => source.is_passing(),
            Self::Name(_) | Self::Malformed { .. } | Self::NotOne | Self::Taken { .. } => false,
        }
    }
}

/// The keys that there are. One making or reading at a time, so that a name has one key.
#[derive(Debug)]
pub(crate) struct Keyring {
    directory: PathBuf,
    keeper: Keeper,
    held: tokio::sync::Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// `nostr.secret_key`, if it is set.
    configured: Option<String>,
    keys: HashMap<String, Keys>,
}

impl Keyring {
    pub(crate) fn new(directory: PathBuf, keeper: Keeper) -> Self {
        Self { directory, keeper, held: tokio::sync::Mutex::default() }
    }

    /// Says where the daemon's own key is; read anew if that changed.
    pub(crate) async fn configure(&self, reference: Option<String>) {
        let mut held = self.held.lock().await;
        if held.configured != reference {
            held.keys.remove(DAEMON);
            held.configured = reference;
        }
    }

    /// The key of a name, which is made if there is none. One that the configuration names must be there.
    pub(crate) async fn get(&self, key: &str) -> Result<Keys, KeyError> {
        let stored = reference(key)?;
        let mut held = self.held.lock().await;
        if let Some(known) = held.keys.get(key) {
            return Ok(known.clone());
        }
        let configured = held.configured.clone().filter(|_| key == DAEMON);
        let may_make = configured.is_none();
        let found = self.read(key, &configured.unwrap_or_else(|| stored.clone())).await?;
        let keys = match found {
            Some(keys) => keys,
            None if may_make => self.make(key, &stored)?,
            None => {
                let reference = held.configured.clone().unwrap_or(stored);
                return Err(KeyError::Credential { key: key.to_owned(), source: CredentialError::Missing { reference } });
            }
        };
        if held.keys.len() < HELD_MAX {
            held.keys.insert(key.to_owned(), keys.clone());
        }
        Ok(keys)
    }

    /// Takes a key in from elsewhere; the same one again changes nothing. Its public key.
    pub(crate) async fn import(&self, key: &str, secret: &str) -> Result<String, KeyError> {
        // Held, so that nobody makes one of that name meanwhile.
        let mut held = self.held.lock().await;
        let pubkey = import(&self.directory, key, secret)?;
        held.keys.remove(key);
        Ok(pubkey)
    }

    fn make(&self, key: &str, reference: &str) -> Result<Keys, KeyError> {
        let keys = Keys::generate();
        let secret = Zeroizing::new(bech32(keys.secret_key()));
        credential::set(&self.directory, reference, &secret).map_err(|source| KeyError::Credential { key: key.to_owned(), source })?;
        tracing::info!(key, pubkey = keys.public_key().to_hex(), "a key was made");
        Ok(keys)
    }

    /// `None` when there is none.
    async fn read(&self, key: &str, reference: &str) -> Result<Option<Keys>, KeyError> {
        match credential::resolve(reference, &self.directory, &self.keeper).await {
            Ok(found) => {
                let keys = parse(found.value.expose_secret());
                keys.map(Some).ok_or_else(|| KeyError::Malformed { reference: reference.to_owned() })
            }
            Err(CredentialError::Missing { .. }) => Ok(None),
            Err(source) => Err(KeyError::Credential { key: key.to_owned(), source }),
        }
    }
}

/// A secret key from its two ways of writing.
fn parse(secret: &str) -> Option<Keys> {
    let secret = secret.trim();
    let is_one = secret.starts_with("nsec1") || is_hex(&secret.to_ascii_lowercase(), super::codec::KEY_DIGITS);
    if is_one { Keys::parse(secret).ok() } else { None }
}

fn bech32(secret: &SecretKey) -> String {
    match secret.to_bech32() {
        Ok(text) => text,
        Err(never) => match never {},
    }
}

/// Where the key of a name is stored: `nostr/daemon`, `nostr/PROJECT.AGENT`. Longer names are cut off, and told
/// apart by a digest.
///
/// # Errors
/// [`KeyError::Name`] for what is neither `daemon` nor `PROJECT/AGENT`.
pub fn reference(key: &str) -> Result<String, KeyError> {
    if key == DAEMON {
        return Ok(format!("{SERVICE}/{DAEMON}"));
    }
    let is_slug = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    match key.split_once('/') {
        Some((project, agent)) if is_slug(project) && is_slug(agent) => {
            let plain = format!("{project}.{agent}");
            let name = match plain.char_indices().nth(READABLE_CHARS_MAX) {
                Some((at, _)) => format!("{}_{}", &plain[..at], hex::encode(&Sha256::digest(key.as_bytes())[..8])),
                None => plain,
            };
            Ok(format!("{SERVICE}/{name}"))
        }
        Some(_) | None => Err(KeyError::Name(key.to_owned())),
    }
}

/// A stored key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredKey {
    /// `daemon`, `PROJECT/AGENT`, as the verbs take it. Of a long one only its credential is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `nostr/daemon`, `nostr/PROJECT.AGENT`.
    pub credential: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pubkey: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub npub: Option<String>,
    /// Why it can't be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The stored keys, sorted by their credential.
///
/// # Errors
/// When a directory can't be read.
pub fn list(directory: &Path) -> Result<Vec<StoredKey>, CredentialError> {
    let names = credential::list(directory)?;
    Ok(names.into_iter().filter(|name| name.starts_with("nostr/")).map(|name| look(directory, name)).collect())
}

fn look(directory: &Path, credential: String) -> StoredKey {
    let found = match credential::stored(directory, &credential) {
        Ok(value) => parse(value.expose_secret()).ok_or_else(|| "it is no secret key".to_owned()),
        Err(error) => Err(crate::error_text::describe(&error)),
    };
    let name = name_of(&credential);
    match found.map(|keys| shown(&keys)) {
        Ok((pubkey, npub)) => StoredKey { name, credential, pubkey: Some(pubkey), npub: Some(npub), error: None },
        Err(error) => StoredKey { name, credential, pubkey: None, npub: None, error: Some(error) },
    }
}

/// The name under which a credential is a key; none of what was stored by another name, or was cut off.
fn name_of(credential: &str) -> Option<String> {
    let stored = credential.strip_prefix(SERVICE)?.strip_prefix('/')?;
    let name = if stored == DAEMON { stored.to_owned() } else { stored.replacen('.', "/", 1) };
    reference(&name).is_ok_and(|found| found == credential).then_some(name)
}

/// Stores a key without a daemon that runs, under the rules of `Keyring::import`.
///
/// # Errors
/// [`KeyError`].
pub fn import(directory: &Path, key: &str, secret: &str) -> Result<String, KeyError> {
    let reference = reference(key)?;
    let keys = parse(secret).ok_or(KeyError::NotOne)?;
    let failed = |source| KeyError::Credential { key: key.to_owned(), source };
    match credential::stored(directory, &reference) {
        Ok(value) => {
            let there = parse(value.expose_secret()).ok_or(KeyError::Malformed { reference: reference.clone() })?;
            if there.public_key() != keys.public_key() {
                return Err(KeyError::Taken { key: key.to_owned(), pubkey: there.public_key().to_hex(), reference });
            }
        }
        Err(CredentialError::Missing { .. }) => {
            let secret = Zeroizing::new(bech32(keys.secret_key()));
            credential::set(directory, &reference, &secret).map_err(failed)?;
        }
        Err(source) => return Err(failed(source)),
    }
    Ok(keys.public_key().to_hex())
}

/// A public key in hex and as npub.
pub(crate) fn shown(keys: &Keys) -> (String, String) {
    let public = keys.public_key();
    let npub = match public.to_bech32() {
        Ok(text) => text,
        Err(never) => match never {},
    };
    (public.to_hex(), npub)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_of_keys_are_names_of_credentials() {
        assert_eq!(reference("daemon").unwrap(), "nostr/daemon");
        assert_eq!(reference("demo-1a2b3c4d/coder").unwrap(), "nostr/demo-1a2b3c4d.coder");
        let (long, other) = (format!("p/{}", "a".repeat(200)), format!("p/{}b", "a".repeat(199)));
        let (long, other) = (reference(&long).unwrap(), reference(&other).unwrap());
        assert!(long.len() <= 100 && long != other);
        for wrong in ["", "p", "p/", "/a", "../x", "p/..", "a/b/c", "p/a b", "env:X", "daemon/"] {
            assert!(matches!(reference(wrong), Err(KeyError::Name(_))), "{wrong}");
        }
    }

    #[test]
    fn a_key_is_listed_by_the_name_that_verbs_take() {
        for name in ["daemon", "demo-1a2b3c4d/coder"] {
            assert_eq!(name_of(&reference(name).unwrap()).as_deref(), Some(name));
        }
        let long = reference(&format!("p/{}", "a".repeat(200))).unwrap();
        for other in [long.as_str(), "nostr/me.user.x", "nostr/alone", "git/daemon"] {
            assert_eq!(name_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_key_that_is_there_is_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (Keys::generate(), Keys::generate());
        let hex = one.public_key().to_hex();
        assert_eq!(import(directory.path(), "p/a", &one.secret_key().to_secret_hex()).unwrap(), hex);
        assert_eq!(import(directory.path(), "p/a", &bech32(one.secret_key())).unwrap(), hex, "the same again");
        let refused = import(directory.path(), "p/a", &bech32(other.secret_key()));
        assert!(matches!(refused, Err(KeyError::Taken { .. })), "{refused:?}");
        credential::set(directory.path(), "nostr/p.b", "nonsense").unwrap();
        assert!(matches!(import(directory.path(), "p/b", &bech32(one.secret_key())), Err(KeyError::Malformed { .. })));
        let all = list(directory.path()).unwrap();
        assert_eq!((all.len(), all[0].pubkey.as_deref(), all[1].error.is_some()), (2, Some(hex.as_str()), true));
        assert_eq!(all[0].name.as_deref(), Some("p/a"), "as it was named");
        assert!(!format!("{all:?}").contains("nsec"));
    }

    #[test]
    fn what_is_no_secret_key_is_none() {
        let hex = "01".repeat(32);
        for wrong in ["", "nsec1", &hex[2..], &"00".repeat(32), &"ff".repeat(32), "npub1x"] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
        assert!(parse(&format!(" {hex}\n")).is_some());
    }
}
