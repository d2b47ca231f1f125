//! Events of Nostr (NIP-01) as this program knows them: made, signed and looked through by the text of the standard, with
//! none of the daemon's code nor its library for them. It sends nothing.

use crate::clock;
use anyhow::{Context, Result, bail};
use secp256k1::schnorr::Signature;
use secp256k1::{All, Keypair, Secp256k1, XOnlyPublicKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

/// Kinds: a note and a comment, and what a project and an agent are defined by.
pub(crate) const NOTE: u64 = 1;
const COMMENT: u64 = 1111;
pub(crate) const PROJECT: u64 = 31_933;
pub(crate) const AGENT: u64 = 4199;
/// Kinds that relays don't keep.
const EPHEMERAL: std::ops::Range<u64> = 20_000..30_000;

static CURVE: LazyLock<Secp256k1<All>> = LazyLock::new(Secp256k1::new);

/// A key that is the same in each world.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pair: Keypair,
}

impl Key {
    /// `number` is not 0 and not 255.
    pub(crate) fn new(number: u8) -> Self {
        let pair = Keypair::from_seckey_slice(&CURVE, &[number; 32]).expect("32 bytes, neither all 0 nor all 255, are a secret key");
        Self { pair }
    }

    /// The public key in hex.
    pub(crate) fn public(&self) -> String {
        hex::encode(self.pair.x_only_public_key().0.serialize())
    }

    /// An event of now.
    pub(crate) fn sign(&self, kind: u64, tags: &[&[&str]], content: &str) -> Value {
        self.sign_at(clock::wall_ms() / 1000, kind, tags, content)
    }

    /// An event of this Unix second.
    pub(crate) fn sign_at(&self, created_at: i64, kind: u64, tags: &[&[&str]], content: &str) -> Value {
        let mut event = json!({ "pubkey": self.public(), "created_at": created_at, "kind": kind, "tags": tags, "content": content });
        let id = digest(&event);
        event["id"] = json!(hex::encode(id));
        event["sig"] = json!(hex::encode(CURVE.sign_schnorr_no_aux_rand(&id, &self.pair).to_byte_array()));
        event
    }
}

/// SHA-256 of what an id stands for.
fn digest(event: &Value) -> [u8; 32] {
    let whole = json!([0, event["pubkey"], event["created_at"], event["kind"], event["tags"], event["content"]]);
    Sha256::digest(whole.to_string().as_bytes()).into()
}

/// Whether the id is the event's and the signature its author's.
///
/// # Errors
/// What is wrong.
pub(crate) fn verify(event: &Value) -> Result<()> {
    let id = digest(event);
    if event["id"] != hex::encode(id) {
        bail!("its id is {}, and should be {}", event["id"], hex::encode(id));
    }
    let mut author = [0_u8; 32];
    hex::decode_to_slice(event["pubkey"].as_str().unwrap_or_default(), &mut author).context("its author is no key")?;
    let author = XOnlyPublicKey::from_byte_array(&author).context("its author is no key")?;
    let mut signature = [0_u8; 64];
    hex::decode_to_slice(event["sig"].as_str().unwrap_or_default(), &mut signature).context("its signature is none")?;
    CURVE.verify_schnorr(&Signature::from_byte_array(signature), &id, &author).context("its signature is not its author's")
}

pub(crate) fn id(event: &Value) -> &str {
    event["id"].as_str().unwrap_or_default()
}

/// What is said in a conversation.
pub(crate) fn is_spoken(event: &Value) -> bool {
    event["kind"] == NOTE || event["kind"] == COMMENT
}

/// Whether relays don't keep it.
pub(crate) fn is_ephemeral(event: &Value) -> bool {
    event["kind"].as_u64().is_some_and(|kind| EPHEMERAL.contains(&kind))
}

/// The first values of all tags of this name.
pub(crate) fn tagged<'e>(event: &'e Value, name: &str) -> impl Iterator<Item = &'e str> {
    let tags = event["tags"].as_array().into_iter().flatten();
    tags.filter(move |tag| tag[0] == name).filter_map(|tag| tag[1].as_str())
}

/// Whether a filter lets an event through.
pub(crate) fn fits(filter: &Value, event: &Value) -> bool {
    let among = |key: &str, value: &Value| filter[key].as_array().is_none_or(|all| all.contains(value));
    let created_at = event["created_at"].as_u64().unwrap_or_default();
    let has_tags = || {
        let all = filter.as_object().into_iter().flatten();
        let mut asked = all.filter_map(|(key, values)| Some((key.strip_prefix('#')?, values.as_array()?)));
        asked.all(|(name, values)| tagged(event, name).any(|value| values.iter().any(|wanted| wanted == value)))
    };
    among("ids", &event["id"])
        && among("authors", &event["pubkey"])
        && among("kinds", &event["kind"])
        && filter["since"].as_u64().is_none_or(|since| created_at >= since)
        && filter["until"].as_u64().is_none_or(|until| created_at <= until)
        && has_tags()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The first of the test vectors of BIP 340: a signature that no program here has made.
    #[test]
    fn signatures_are_those_of_bip_340() {
        let author = "f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9";
        let (first, second) = (
            "e907831f80848d1069a5371b402410364bdf1c5f8307b0084c55f1ce2dca8215",
            "25f66a4a85ea8b71e482a74f382d2ce5ebeee8fdb2172f477df4900d310536c0",
        );
        let (mut key, mut bytes) = ([0_u8; 32], [0_u8; 64]);
        hex::decode_to_slice(author, &mut key).unwrap();
        hex::decode_to_slice(format!("{first}{second}"), &mut bytes).unwrap();
        let key = XOnlyPublicKey::from_byte_array(&key).unwrap();
        assert!(CURVE.verify_schnorr(&Signature::from_byte_array(bytes), &[0; 32], &key).is_ok());
        assert!(CURVE.verify_schnorr(&Signature::from_byte_array(bytes), &[1; 32], &key).is_err());
    }

    #[test]
    fn what_is_signed_verifies_and_nothing_else_does() {
        let event = Key::new(1).sign(NOTE, &[&["p", "x"]], "hello \"you\"\n");
        verify(&event).unwrap();
        let broken = |key: &str, value: Value| {
            let mut event = event.clone();
            event[key] = value;
            verify(&event).unwrap_err().to_string()
        };
        assert!(broken("content", json!("bye")).contains("its id is"));
        assert!(broken("created_at", json!(7)).contains("its id is"));
        assert!(broken("sig", Key::new(2).sign(NOTE, &[], "hello")["sig"].clone()).contains("not its author's"));
        assert!(broken("sig", json!("00")).contains("its signature is none"));
    }

    #[test]
    fn filters_are_those_of_nip_01() {
        let event = Key::new(1).sign(NOTE, &[&["p", "x"], &["a", "y"]], "hello");
        let at = event["created_at"].as_u64().unwrap();
        for filter in [json!({}), json!({ "kinds": [1, 7], "#p": ["w", "x"] }), json!({ "since": at, "until": at, "ids": [event["id"]] })] {
            assert!(fits(&filter, &event), "{filter}");
        }
        let unfit = [json!({ "kinds": [7] }), json!({ "#p": ["y"] }), json!({ "#d": [""] }), json!({ "authors": [] })];
        for filter in unfit.into_iter().chain([json!({ "since": at + 1 }), json!({ "until": at - 1 })]) {
            assert!(!fits(&filter, &event), "{filter}");
        }
        assert_eq!(tagged(&event, "a").collect::<Vec<_>>(), ["y"]);
        assert!(is_spoken(&event) && !is_ephemeral(&event) && is_ephemeral(&json!({ "kind": 24_010 })));
    }
}
