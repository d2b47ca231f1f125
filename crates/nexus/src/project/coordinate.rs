//! The address of a project: `kind:pubkey:identifier` (NIP-01), as naddr too (NIP-19). It names; it never looks
//! anything up.

use super::slug;
use ::nostr::event::Kind;
use ::nostr::key::PublicKey;
use ::nostr::nips::nip19::{FromBech32, Nip19Coordinate, ToBech32};
use ::nostr::types::RelayUrl;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;

/// The kind of a project's definition.
pub const PROJECT_KIND: u16 = 31_933;
/// Longest identifier, in bytes. NIP-19 has room for 255 of them; a longer one has no naddr.
pub const IDENTIFIER_BYTES_MAX: usize = 1024;
/// Longest naddr that is read: an identifier and many relays.
const NADDR_BYTES_MAX: usize = 8 * 1024;
/// Longest stretch of a wrong name that is repeated, in characters.
const NAME_CHARS_MAX: usize = 400;
/// What an naddr begins with, in either case.
const NADDR_PREFIX: &str = "naddr1";
/// What a bech32 text has behind its `1` (BIP-173).
const BECH32_CHARACTERS: &str = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";
/// Characters of an identifier that show in a slug.
const READABLE_CHARS_MAX: usize = 48;
/// Bytes of the digest that tell slugs of one identifier apart.
const DIGEST_BYTES: usize = 4;

/// The address of a replaceable event. Two are one project exactly when all three parts are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Coordinate {
    pub kind: u16,
    /// 64 lower-case hexadecimal digits.
    pub pubkey: String,
    /// Any text, also an empty one; it may have colons.
    pub identifier: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoordinateError {
    #[error("it is not kind:pubkey:identifier")]
    Shape,
    #[error("its kind is not a number from 0 to 65535")]
    Kind,
    #[error("its public key is not 64 hexadecimal digits")]
    Key,
    #[error("its identifier is longer than {IDENTIFIER_BYTES_MAX} bytes or has control characters")]
    Identifier,
    #[error("it is no naddr (NIP-19): {0}")]
    Naddr(String),
}

/// Why nothing that a person names so can be a project.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("`{name}` is no address of a project; write naddr1..., or kind:pubkey:identifier, as in {PROJECT_KIND}:PUBKEY:demo")]
    Address {
        name: String,
        #[source]
        source: CoordinateError,
    },
    #[error("`{name}` is the address of something of kind {kind}; projects are of kind {expected} (`nostr.project_kinds`)")]
    Kind { name: String, kind: u16, expected: String },
}

impl Coordinate {
    /// Reads `kind:pubkey:identifier`. What follows the second colon is the identifier, colons included.
    ///
    /// # Errors
    /// [`CoordinateError`].
    pub fn parse(text: &str) -> Result<Self, CoordinateError> {
        let mut parts = text.splitn(3, ':');
        let (Some(kind), Some(pubkey), Some(identifier)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(CoordinateError::Shape);
        };
        // A number as NIP-01 writes it: `+1` and `007` would be other names of the same project.
        let is_plain = kind.bytes().all(|byte| byte.is_ascii_digit()) && (kind == "0" || !kind.starts_with('0'));
        let kind = kind.parse::<u16>().ok().filter(|_| is_plain).ok_or(CoordinateError::Kind)?;
        Self::new(kind, pubkey, identifier)
    }

    /// # Errors
    /// [`CoordinateError`] when the key or the identifier can't be.
    pub fn new(kind: u16, pubkey: &str, identifier: &str) -> Result<Self, CoordinateError> {
        let pubkey = pubkey.to_ascii_lowercase();
        if pubkey.len() != 64 || !pubkey.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(CoordinateError::Key);
        }
        if identifier.len() > IDENTIFIER_BYTES_MAX || identifier.contains(char::is_control) {
            return Err(CoordinateError::Identifier);
        }
        Ok(Self { kind, pubkey, identifier: identifier.to_owned() })
    }

    /// Reads `naddr1...`, with `nostr:` before it or not, and all in capitals too (BIP-173).
    ///
    /// # Errors
    /// [`CoordinateError`].
    pub fn from_naddr(text: &str) -> Result<Self, CoordinateError> {
        let text = text.strip_prefix("nostr:").unwrap_or(text);
        if text.len() > NADDR_BYTES_MAX {
            return Err(CoordinateError::Naddr(format!("it is longer than {NADDR_BYTES_MAX} bytes")));
        }
        let is_in_capitals = !text.bytes().any(|byte| byte.is_ascii_lowercase());
        let text = if is_in_capitals { text.to_ascii_lowercase() } else { text.to_owned() };
        let read = Nip19Coordinate::from_bech32(&text);
        let address = read.map_err(|error| CoordinateError::Naddr(fault_of(&text, &error.to_string())))?.coordinate;
        Self::new(address.kind.as_u16(), &address.public_key.to_hex(), &address.identifier)
    }

    /// Reads either form, as people give it.
    ///
    /// # Errors
    /// [`CoordinateError`].
    pub fn read(text: &str) -> Result<Self, CoordinateError> {
        let is_address = is_naddr(text.strip_prefix("nostr:").unwrap_or(text));
        if is_address { Self::from_naddr(text) } else { Self::parse(text) }
    }

    /// The address that a person gives; `None` for what is written as a slug, or the beginning of one.
    ///
    /// # Errors
    /// [`NameError::Address`] for what is written as an address and is none.
    pub fn meant(name: &str) -> Result<Option<Self>, NameError> {
        // No slug has a colon.
        if !name.contains(':') && !is_naddr(name) {
            return Ok(None);
        }
        Self::read(name).map(Some).map_err(|source| NameError::Address { name: name.chars().take(NAME_CHARS_MAX).collect(), source })
    }

    /// # Errors
    /// [`NameError::Kind`] unless its kind is one of those that projects have.
    pub fn check_kind(&self, kinds: &[u16]) -> Result<(), NameError> {
        if kinds.contains(&self.kind) {
            return Ok(());
        }
        let expected: Vec<String> = kinds.iter().map(u16::to_string).collect();
        Err(NameError::Kind { name: self.to_string(), kind: self.kind, expected: expected.join(" or ") })
    }

    /// `naddr1...` with those of `relays` that are relay URLs. An identifier that NIP-19 has no room for leaves
    /// `kind:pubkey:identifier`, which [`Self::read`] takes as well.
    pub fn naddr(&self, relays: &[String]) -> String {
        let relays: Vec<RelayUrl> = relays.iter().filter_map(|relay| RelayUrl::parse(relay).ok()).collect();
        let encoded = PublicKey::from_hex(&self.pubkey).ok().and_then(|public_key| {
            let coordinate =
                ::nostr::nips::nip01::Coordinate { kind: Kind::from(self.kind), public_key, identifier: self.identifier.clone() };
            Nip19Coordinate::new(coordinate, relays).to_bech32().ok()
        });
        encoded.unwrap_or_else(|| self.to_string())
    }

    /// A name for directories and sessions: what can be read of the identifier, and a part of the digest of the whole
    /// coordinate, since two authors may use one identifier.
    pub fn slug(&self) -> String {
        let digest = Sha256::digest(self.to_string().as_bytes());
        let readable = slug::of(&self.identifier, "project", READABLE_CHARS_MAX);
        format!("{readable}-{}", hex::encode(&digest[..DIGEST_BYTES]))
    }
}

fn is_naddr(text: &str) -> bool {
    text.get(..NADDR_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(NADDR_PREFIX))
}

/// What is wrong with a text that can't be read as an naddr: a character that none has, else `told`.
fn fault_of(naddr: &str, told: &str) -> String {
    let rest = naddr.strip_prefix(NADDR_PREFIX).unwrap_or_default();
    match rest.chars().find(|c| !BECH32_CHARACTERS.contains(*c)) {
        Some(wrong) => format!("it has `{}`, which none has", wrong.escape_default()),
        None => format!("{told}; is all of it there?"),
    }
}

impl fmt::Display for Coordinate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.kind, self.pubkey, self.identifier)
    }
}

impl TryFrom<String> for Coordinate {
    type Error = CoordinateError;

    fn try_from(text: String) -> Result<Self, CoordinateError> {
        Self::parse(&text)
    }
}

impl From<Coordinate> for String {
    fn from(coordinate: Coordinate) -> Self {
        coordinate.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const KEY: &str = "3bf0c63fcb93463407af97a5e5ee64fa883d107ef9e558472c4eb9aaaefa459d";

    fn at(identifier: &str) -> Coordinate {
        Coordinate::new(PROJECT_KIND, KEY, identifier).unwrap()
    }

    #[test]
    fn an_identifier_may_have_colons() {
        let coordinate = Coordinate::parse(&format!("31933:{KEY}:a:b:c")).unwrap();
        assert_eq!(coordinate.identifier, "a:b:c");
        assert_eq!(coordinate.to_string(), format!("31933:{KEY}:a:b:c"));
        assert_eq!(Coordinate::parse(&format!("31933:{}:", KEY.to_uppercase())).unwrap(), at(""));
    }

    #[test]
    fn what_is_no_coordinate_is_refused() {
        use CoordinateError::{Identifier, Key, Kind, Shape};
        let long = "x".repeat(IDENTIFIER_BYTES_MAX + 1);
        for (text, error) in [
            (String::new(), Shape),
            (format!("31933:{KEY}"), Shape),
            (format!("70000:{KEY}:d"), Kind),
            (format!("+1:{KEY}:d"), Kind),
            (format!("031933:{KEY}:d"), Kind),
            (format!(":{KEY}:d"), Kind),
            ("31933:npub1:d".to_owned(), Key),
            (format!("31933:{}g:d", &KEY[1..]), Key),
            (format!("31933:{KEY}:{long}"), Identifier),
            (format!("31933:{KEY}:a\nb"), Identifier),
            (format!("31933:{KEY}:a\u{0}b"), Identifier),
        ] {
            assert_eq!(Coordinate::parse(&text), Err(error), "{text:.80}");
        }
    }

    #[test]
    fn naddr_goes_both_ways_and_keeps_out_what_it_has_no_room_for() {
        for identifier in ["demo", "", "a:b", "ä/../x"] {
            let naddr = at(identifier).naddr(&["wss://relay.example.org".to_owned(), "nonsense".to_owned()]);
            assert!(naddr.starts_with("naddr1"), "{naddr}");
            assert_eq!(Coordinate::read(&naddr).unwrap(), at(identifier));
            assert_eq!(Coordinate::read(&format!("nostr:{naddr}")).unwrap(), at(identifier));
        }
        let long = at(&"x".repeat(300));
        assert_eq!(Coordinate::read(&long.naddr(&[])).unwrap(), long);
        for bad in ["naddr1", "naddr1qqqq", "npub1xyz", "nostr:naddr1é"] {
            assert!(Coordinate::from_naddr(bad).is_err(), "{bad}");
        }
        let long = Coordinate::from_naddr(&format!("naddr1{}", "q".repeat(NADDR_BYTES_MAX))).unwrap_err();
        assert!(long.to_string().contains("longer than 8192 bytes"), "{long}");
    }

    #[test]
    fn what_is_written_as_an_address_is_one_or_a_mistake() {
        for slug in ["demo", "demo-1a2b3c4d", ""] {
            assert_eq!(Coordinate::meant(slug), Ok(None), "{slug}");
        }
        let naddr = at("demo").naddr(&[]);
        for address in [naddr.clone(), naddr.to_ascii_uppercase(), format!("nostr:{naddr}"), at("demo").to_string()] {
            assert_eq!(Coordinate::meant(&address), Ok(Some(at("demo"))), "{address}");
        }
        let why = |name: &str| crate::error_text::describe(&Coordinate::meant(name).unwrap_err());
        let mistyped = format!("{}{}", &naddr[..naddr.len() - 1], if naddr.ends_with('q') { 'p' } else { 'q' });
        for (name, expected) in [
            (&naddr[..naddr.len() - 4], "is all of it there?"),
            (mistyped.as_str(), "is all of it there?"),
            ("naddr1qqb", "it has `b`, which none has"),
            ("NADDR1QQB", "it has `b`, which none has"),
            ("naddr1\u{1b}", "\\u{1b}"),
            ("31933:demo", "it is not kind:pubkey:identifier"),
            ("31933:npub1:demo", "64 hexadecimal digits"),
            ("nostr:npub1xyz", "it is not kind:pubkey:identifier"),
        ] {
            assert!(why(name).contains(expected) && why(name).contains("write naddr1..."), "{}", why(name));
        }
    }

    #[test]
    fn only_kinds_of_projects_name_a_project() {
        assert_eq!(at("demo").check_kind(&[PROJECT_KIND, 30_000]), Ok(()));
        let told = Coordinate::new(1, KEY, "x").unwrap().check_kind(&[PROJECT_KIND, 30_000]).unwrap_err().to_string();
        assert!(told.contains("of kind 1;") && told.contains("of kind 31933 or 30000"), "{told}");
    }

    #[test]
    fn a_slug_is_one_safe_name_whatever_the_identifier() {
        for hostile in ["../../x", "/etc/passwd", "", "..", "-rf", ".git", "a/b", "ＣＯＮ", &"x".repeat(300), "a:b"] {
            let slug = at(hostile).slug();
            assert!(slug.len() <= READABLE_CHARS_MAX + 9, "{slug}");
            assert!(slug.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'), "{slug}");
            assert!(!slug.starts_with('-'), "{slug}");
        }
        let other = Coordinate::new(PROJECT_KIND, &"a".repeat(64), "demo").unwrap();
        assert_ne!(other.slug(), at("demo").slug(), "two authors' projects with one identifier are apart");
        assert!(at("MyProject").slug().starts_with("my-project-"));
    }
}
