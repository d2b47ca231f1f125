//! Events that no relay may send, by the name of the lie. Each is written so that it fits what was asked for,
//! but for what is wrong with it. Nothing is sent here.

use nostr::event::{Event, EventBuilder, FinalizeEvent, Kind, Tag};
use nostr::key::Keys;
use nostr::types::Timestamp;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Some of a kind that alone don't cost the connection, and as many as surely do.
const FEW: u64 = 3;
const MANY: u64 = 60;
const TAGS: usize = 20_000;
const CONTENT_BYTES: usize = 5_000_000;
/// 2100-01-01, in Unix seconds.
const FAR_AHEAD_S: u64 = 4_102_444_800;

/// What lies are made of.
pub(super) struct Maker {
    /// Whose events were asked for.
    pub(super) user: Keys,
    pub(super) kind: u16,
    pub(super) tags: Vec<Vec<String>>,
    /// Unix seconds.
    pub(super) now_s: u64,
}

impl Maker {
    fn event(&self, content: &str) -> Event {
        self.made(&self.user, content, self.now_s, self.tags.clone())
    }

    fn made(&self, keys: &Keys, content: &str, created_at: u64, tags: Vec<Vec<String>>) -> Event {
        let tags = tags.into_iter().map(|tag| Tag::parse(tag).expect("a tag has a name"));
        let made = EventBuilder::new(Kind::from(self.kind), content).tags(tags).custom_created_at(Timestamp::from_secs(created_at));
        made.finalize(keys).expect("an event can be signed")
    }

    /// The JSON of an event with something exchanged after it was signed.
    fn changed(&self, content: &str, from: &str, to: &str) -> String {
        let text = self.event(content).as_json();
        let changed = text.replace(from, to);
        assert_ne!(text, changed, "nothing was exchanged: {from}");
        changed
    }

    /// An event with these parts as they stand, whose id and signature are those of just this text.
    fn verbatim(&self, created_at: &str, kind: &str, tags: &str) -> String {
        let pubkey = self.user.public_key().to_hex();
        let id: [u8; 32] = Sha256::digest(format!("[0,\"{pubkey}\",{created_at},{kind},{tags},\"verbatim\"]")).into();
        let (sig, id) = (self.user.sign_schnorr(id).to_hex(), hex::encode(id));
        let parts = format!(r#""created_at":{created_at},"kind":{kind},"tags":{tags},"content":"verbatim""#);
        format!(r#"{{"id":"{id}","pubkey":"{pubkey}",{parts},"sig":"{sig}"}}"#)
    }

    fn forged(&self, n: u64) -> String {
        let other = self.event(&format!("other {n}")).sig.to_hex();
        let event = self.event(&format!("forged {n}"));
        event.as_json().replace(&event.sig.to_hex(), &other)
    }

    /// Correct events by somebody who wasn't asked for.
    pub(super) fn strangers(&self, count: u64) -> Vec<String> {
        let stranger = Keys::generate();
        (0..count).map(|n| self.made(&stranger, &format!("stranger {n}"), self.now_s, self.tags.clone()).as_json()).collect()
    }
}

/// What is sent for a lie; nothing for one that isn't about events.
pub(super) fn told(lie: &str, maker: &Maker) -> Vec<String> {
    let kind = format!("\"kind\":{},", maker.kind);
    let (date, number, tags) = (maker.now_s.to_string(), maker.kind.to_string(), json!(maker.tags).to_string());
    match lie {
        "bad-signature" => (0..FEW).map(|n| maker.forged(n)).collect(),
        "forgeries" => (0..MANY).map(|n| maker.forged(n)).collect(),
        "wrong-id" => (0..FEW).map(|n| maker.changed(&format!("before {n}"), "before", "after")).collect(),
        "two-signatures" => {
            let event = maker.event("two signatures");
            let (first, forged) = (event.sig.to_hex(), maker.event("other").sig.to_hex());
            let second = maker.user.sign_schnorr(event.id.as_bytes()).to_hex();
            [forged, first.clone(), second].iter().map(|sig| event.as_json().replace(&first, sig)).collect()
        }
        "duplicate-keys" => vec![
            maker.changed("twice", &kind, &format!("{kind}{kind}")),
            maker.changed("twice", "\"content\":", "\"content\":\"first\",\"content\":"),
        ],
        "lone-surrogates" => ["\\ud800", "\\udc00x", "\\ud83d\\ud83d"].map(|text| maker.changed("surrogate", "surrogate", text)).to_vec(),
        "big-kind" => ["65536", "4294967297", "-1", "1.5"].map(|n| maker.verbatim(&date, n, &tags)).to_vec(),
        "odd-dates" => {
            ["-1", "1.5", "1e400", "\"1\"", "null", "18446744073709551616"].map(|at| maker.verbatim(at, &number, &tags)).to_vec()
        }
        "future" => vec![maker.made(&maker.user, "from the future", FAR_AHEAD_S, Vec::new()).as_json()],
        "non-string-tags" => {
            ["[[1,2]]", "[null]", "\"tags\"", "[[\"a\",{\"b\":1}]]", "[[]]", "{}"].map(|odd| maker.verbatim(&date, &number, odd)).to_vec()
        }
        "many-tags" => {
            let tags = vec![vec!["t".to_owned(), "x".to_owned()]; TAGS];
            vec![maker.made(&maker.user, "many tags", maker.now_s, tags).as_json()]
        }
        "long-content" => vec![maker.event(&"x".repeat(CONTENT_BYTES)).as_json()],
        "outside-filter" => {
            let other = Maker { kind: 7_777, user: maker.user.clone(), tags: maker.tags.clone(), now_s: maker.now_s };
            vec![other.event("of another kind").as_json(), maker.made(&maker.user, "too old", 1, maker.tags.clone()).as_json()]
        }
        "strangers" => maker.strangers(FEW),
        _ => Vec::new(),
    }
}
