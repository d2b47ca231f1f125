//! The section `nostr`: which relays are listened to, who may activate projects there, and with which key
//! the daemon speaks. No signature is checked here and nothing is connected.

use super::Config;
use super::adapter::PENDING_REQUESTS_MAX;
use super::decode::{Decode, check_unique_items, number, optional_text};
use super::node::{Kind, Node};
use super::problem::{Faults, quoted};
use std::collections::BTreeSet;

/// Most relays; each is one connection.
const RELAYS_MAX: usize = 64;
/// Most whitelisted keys: relays limit the length of a filter that names them all.
pub const WHITELIST_MAX: usize = 500;
/// Longest address of a relay, in bytes.
const URL_BYTES_MAX: usize = 256;
/// Shortest limit of a frame that lets an ordinary event pass, in bytes.
const FRAME_BYTES_MIN: u32 = 1024;
/// Largest limit of a frame, in bytes: a longer event than this is not taken from anybody.
const FRAME_BYTES_MAX: u32 = 4 * 1024 * 1024;
/// Most events of one kind that may be published in a minute.
const PUBLISH_PER_MINUTE_MAX: u32 = 60_000;
/// Bytes of a public key.
const KEY_BYTES: usize = 32;
/// The alphabet of bech32 (BIP 173).
const BECH32: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";

section! {
    /// Nostr: relays that events come from and go to.
    Nostr check consent {
        /// Addresses of the relays, `wss://` or `ws://`; without any nothing of Nostr runs.
        relays: Vec<String> = Vec::new() => relay_list;
        /// Public keys whose events are heeded, as `npub1...` or 64 hexadecimal digits; those of others are dropped unread.
        whitelist: Vec<String> = Vec::new() => keys;
        /// Credential with the daemon's own secret key, `nsec1...` or hexadecimal; left out, one is made on first use.
        secret_key: Option<String> = None => optional_text;
        /// Relays that may learn by which key the daemon speaks, if they ask who it is (NIP-42).
        auth: Vec<String> = Vec::new() => relay_list;
        /// Longest message of a relay that is looked at, in bytes.
        max_frame_bytes: u32 [FRAME_BYTES_MIN..=FRAME_BYTES_MAX] = 65_536;
        /// Accepted events without an end from which on nothing more is taken in; half of it is shared out among the whitelisted keys.
        max_pending: u64 [1..=PENDING_REQUESTS_MAX] = 100_000;
        /// Events of one kind that are published in a minute at most.
        publish_per_minute: u32 [1..=PUBLISH_PER_MINUTE_MAX] = 120;
        /// Kinds of event that define a project.
        project_kinds: Vec<u16> = vec![31_933] => addressable_kinds;
    }
}

/// A public key as 64 lowercase hexadecimal digits; from those, or from an `npub1...` whose checksum is right (NIP-19).
pub fn public_key_hex(text: &str) -> Option<String> {
    let is_hex = text.len() == 2 * KEY_BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex {
        return Some(text.to_ascii_lowercase());
    }
    let key = bech32_data("npub", text)?;
    (key.len() == KEY_BYTES).then(|| key.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A relay's address as it is compared: without the slash at its end, scheme and host in small letters.
pub fn canonical_relay(url: &str) -> String {
    let trimmed = url.trim_end_matches('/');
    let (scheme, rest) = trimmed.split_once("://").unwrap_or(("", trimmed));
    let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    format!("{}://{}{path}", scheme.to_ascii_lowercase(), host.to_ascii_lowercase())
}

impl Config {
    /// Has the access rules know the whitelist as it stands. Called after the whitelist was read or added to.
    pub fn know_whitelist(&mut self) {
        self.access.whitelist = self.nostr.whitelist.iter().filter_map(|text| public_key_hex(text)).collect();
    }
}

/// The bytes behind a bech32 text's prefix (BIP 173), if its checksum is right.
fn bech32_data(prefix: &str, text: &str) -> Option<Vec<u8>> {
    let lower = text.to_ascii_lowercase();
    if lower != text && text.to_ascii_uppercase() != text {
        return None; // mixed case
    }
    let data = lower.strip_prefix(prefix)?.strip_prefix('1')?;
    let values: Vec<u8> = data.bytes().map(position).collect::<Option<_>>()?;
    let expanded = prefix.bytes().map(|byte| byte >> 5).chain([0]).chain(prefix.bytes().map(|byte| byte & 31));
    if values.len() < 6 || polymod(expanded.chain(values.iter().copied())) != 1 {
        return None;
    }
    eight_bits(&values[..values.len() - 6])
}

fn position(byte: u8) -> Option<u8> {
    BECH32.iter().position(|known| *known == byte).and_then(|at| u8::try_from(at).ok())
}

/// The checksum of BIP 173; 1 for a sound text.
fn polymod(values: impl Iterator<Item = u8>) -> u32 {
    const GENERATOR: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
    values.fold(1, |sum, value| {
        let top = sum >> 25;
        let shifted = ((sum & 0x01ff_ffff) << 5) ^ u32::from(value);
        GENERATOR.iter().enumerate().fold(shifted, |sum, (bit, factor)| if (top >> bit) & 1 == 1 { sum ^ factor } else { sum })
    })
}

/// Groups of five bits as bytes; what is left must be padding of zeros.
fn eight_bits(values: &[u8]) -> Option<Vec<u8>> {
    let (mut bits, mut held) = (0_u32, 0_u32);
    let mut bytes = Vec::with_capacity(values.len() * 5 / 8);
    for value in values {
        bits = ((bits << 5) | u32::from(*value)) & 0xfff;
        held += 5;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from((bits >> held) & 0xff).ok()?);
        }
    }
    let rest = bits & ((1 << held) - 1);
    (held < 5 && rest == 0).then_some(bytes)
}

/// Says of a relay that may ask who the daemon is, but isn't listened to, that it does nothing.
fn consent(nostr: Nostr, node: &Node, faults: &mut Faults) -> Nostr {
    let known: BTreeSet<String> = nostr.relays.iter().map(|url| canonical_relay(url)).collect();
    for item in node.get("auth").map(Node::items).unwrap_or_default() {
        let Some(url) = item.text() else { continue };
        if !known.contains(&canonical_relay(url)) {
            faults.warn(item.at, || format!("`auth` names {}, which is not among `relays`: that does nothing", quoted(url)));
        }
    }
    nostr
}

fn relay_list(node: &Node, name: &str, faults: &mut Faults) -> Option<Vec<String>> {
    let urls = Vec::<String>::decode(node, name, faults)?;
    if urls.len() > RELAYS_MAX {
        faults.error(node.at, format!("`{name}` has {} addresses; {RELAYS_MAX} are possible", urls.len()));
    }
    let mut seen = BTreeSet::new();
    for item in node.items() {
        let Some(url) = item.text() else { continue };
        if !is_relay(url) {
            let found = quoted(url);
            faults
                .error(item.at, format!("`{name}` {found} is no address of a relay; write wss://host, ws://host:port or one with a path"));
        } else if !seen.insert(canonical_relay(url)) {
            faults.error(item.at, format!("`{name}` names {} twice; once is enough", quoted(url)));
        }
    }
    Some(urls)
}

/// Whether a text is the address of a relay: no user, no query, nothing that isn't printed.
fn is_relay(url: &str) -> bool {
    let lower = url.to_ascii_lowercase();
    let Some(rest) = lower.strip_prefix("wss://").or_else(|| lower.strip_prefix("ws://")) else { return false };
    let host = rest.split('/').next().unwrap_or("");
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && !port.ends_with(']') => {
            if !port.parse::<u16>().is_ok_and(|port| port > 0) {
                return false;
            }
            name
        }
        Some(_) | None => host,
    };
    let is_plain = url.bytes().all(|byte| byte.is_ascii_graphic()) && !url.contains(['@', '?', '#', '\\', '"', '<', '>']);
    url.len() <= URL_BYTES_MAX && is_plain && !name.is_empty()
}

fn keys(node: &Node, name: &str, faults: &mut Faults) -> Option<Vec<String>> {
    let keys = Vec::<String>::decode(node, name, faults)?;
    if keys.len() > WHITELIST_MAX {
        faults.error(node.at, format!("`{name}` has {} keys; {WHITELIST_MAX} are possible", keys.len()));
    }
    for item in node.items() {
        let Some(text) = item.text() else { continue };
        if public_key_hex(text).is_none() {
            let found = quoted(text);
            faults.error(item.at, format!("`{name}` {found} is no public key; write npub1... or its 64 hexadecimal digits"));
        }
    }
    check_unique_items(node, name, faults);
    Some(keys)
}

/// Kinds whose newest event by author and `d` tag counts (NIP-01): only those have a coordinate.
fn addressable_kinds(node: &Node, name: &str, faults: &mut Faults) -> Option<Vec<u16>> {
    let Kind::Sequence(items) = &node.kind else {
        let alone = number(node, name, &(30_000..=39_999), faults);
        return alone.map(|kind| vec![kind]);
    };
    if items.is_empty() {
        faults.error(node.at, format!("`{name}` must not be empty; remove the key or give it a value"));
        return None;
    }
    Some(items.iter().filter_map(|item| number(item, name, &(30_000..=39_999), faults)).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{loaded, source};
    use super::super::{Config, load};
    use super::*;

    /// The example of NIP-19.
    const NPUB: &str = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";
    const HEX: &str = "7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e";

    #[test]
    fn keys_are_npub_or_hexadecimal() {
        assert_eq!(public_key_hex(NPUB).as_deref(), Some(HEX));
        assert_eq!(public_key_hex(HEX).as_deref(), Some(HEX));
        assert_eq!(public_key_hex(&HEX.to_uppercase()).as_deref(), Some(HEX));
        let swapped = NPUB.replace("elfc", "eflc");
        let secret = "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5";
        for wrong in ["", "npub1", &HEX[1..], &NPUB[..60], &swapped, secret, "npub1Qqqqqq", "ä"] {
            assert_eq!(public_key_hex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn relays_are_addresses_of_sockets() {
        for good in ["wss://relay.example.org", "ws://127.0.0.1:7777", "ws://[::1]:80/", "WSS://Relay.example.org/path", "ws://[::1]"] {
            assert!(is_relay(good), "{good}");
        }
        for bad in ["", "relay.example.org", "https://x", "ws://", "ws://:80", "ws://a:0", "ws://a:x", "ws://u@a", "ws://a b", "ws://a?x"] {
            assert!(!is_relay(bad), "{bad}");
        }
        assert_eq!(canonical_relay("WSS://Relay.Example.org/A/"), "wss://relay.example.org/A");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let text = "nostr: {relays: [ws://a, ws://A/, http://b], whitelist: [npub1x], project_kinds: [1], auth: [ws://c]}";
        let told: Vec<String> = load(source(text), None).unwrap_err().iter().map(|one| format!("{}:{}", one.column, one.message)).collect();
        let wanted =
            ["26:`relays` names `ws://A/` twice", "35:`relays` `http://b` is no address", "58:`whitelist` `npub1x` is no public key"];
        for start in wanted {
            assert!(told.iter().any(|one| one.starts_with(start)), "{start}: {told:?}");
        }
        assert!(told.iter().any(|one| one.contains("`project_kinds` must be a whole number from 30000 to 39999")), "{told:?}");
        assert!(told.iter().any(|one| one.contains("not among `relays`")), "{told:?}");
    }

    #[test]
    fn the_access_rules_know_the_whitelist() {
        let config: Config = loaded(&format!("nostr: {{whitelist: [{NPUB}]}}")).config;
        assert!(config.access.whitelist.contains(HEX));
        let mut more = config.clone();
        more.nostr.whitelist = vec!["01".repeat(32)];
        more.know_whitelist();
        assert_eq!(more.access.whitelist.len(), 1);
        assert!(!more.access.whitelist.contains(HEX));
    }
}
