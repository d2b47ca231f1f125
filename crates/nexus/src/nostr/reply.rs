//! Which tags an answer has, by what it answers: NIP-10 for notes, NIP-22 for everything else. Of what strangers wrote into
//! the tags of their events only what is well-formed is taken over, and no more of it than a relay takes. Pure.

use super::codec::is_hex;
use super::template::Template;

/// A note (NIP-10) and a comment (NIP-22).
pub(super) const NOTE: u16 = 1;
const COMMENT: u16 = 1_111;
/// Digits of an id, and of a public key.
const KEY_DIGITS: usize = 64;
/// People who are told of an answer: those of the event, as far as there is room.
const PEOPLE_MAX: usize = 50;
/// Longest value that is taken over from a tag, and longest address of a relay, in bytes.
const VALUE_BYTES_MAX: usize = 1_024;
const RELAY_BYTES_MAX: usize = 256;

/// What is answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered<'a> {
    pub(crate) id: &'a str,
    pub(crate) pubkey: &'a str,
    pub(crate) kind: u16,
    pub(crate) tags: &'a [Vec<String>],
    /// Where it was heard; empty where that isn't known.
    pub(crate) relay: &'a str,
}

/// An answer of this content. `own` is the public key of who answers, who isn't told of it; `project` is named in it, so
/// that it is found with the project's other events.
pub(crate) fn reply(to: Answered<'_>, content: String, own: Option<&str>, project: Option<&str>) -> Template {
    let (kind, mut tags) = if to.kind == NOTE { (NOTE, thread(to)) } else { (COMMENT, comment(to)) };
    tags.extend(people(to, own).into_iter().map(|pubkey| tag(&["p", pubkey])));
    tags.extend(project.filter(|project| !project.is_empty()).map(|project| tag(&["a", project])));
    Template { kind, content, tags, created_at: None }
}

/// NIP-10: the root of the thread, and what is answered if that is another one.
fn thread(to: Answered<'_>) -> Vec<Vec<String>> {
    match root(to.tags).filter(|root| root[1] != to.id) {
        Some(root) => {
            let author = root.get(4).filter(|author| is_hex(author, KEY_DIGITS));
            let mut first = tag(&["e", &root[1], relay(root), "root"]);
            first.extend(author.cloned());
            vec![first, tag(&["e", to.id, to.relay, "reply", to.pubkey])]
        }
        None => vec![tag(&["e", to.id, to.relay, "root", to.pubkey])],
    }
}

/// The tag of a note that names the root of its thread. Without marks it is the first `e` tag, as it was before there were
/// any; one that is only mentioned is no root.
fn root(tags: &[Vec<String>]) -> Option<&Vec<String>> {
    let ids = || tags.iter().filter(|tag| tag.len() > 1 && tag[0] == "e" && is_hex(&tag[1], KEY_DIGITS));
    let marked = |wanted: &str| ids().find(|tag| tag.get(3).is_some_and(|mark| mark == wanted));
    let unmarked = || ids().find(|tag| tag.get(3).is_none_or(String::is_empty));
    marked("root").or_else(|| marked("reply")).or_else(unmarked)
}

/// NIP-22: in capitals what the comments are about, in small letters what is answered. What isn't a comment itself is what
/// they are about.
fn comment(to: Answered<'_>) -> Vec<Vec<String>> {
    let kind = to.kind.to_string();
    let mut tags = if to.kind == COMMENT { scope(to.tags) } else { Vec::new() };
    if !tags.iter().any(|tag| matches!(tag[0].as_str(), "A" | "E" | "I")) {
        tags = vec![tag(&["E", to.id, to.relay, to.pubkey]), tag(&["K", &kind]), tag(&["P", to.pubkey])];
    }
    tags.extend([tag(&["e", to.id, to.relay, to.pubkey]), tag(&["k", &kind])]);
    tags
}

/// What a comment is about: of each letter the first that is well-formed.
fn scope(tags: &[Vec<String>]) -> Vec<Vec<String>> {
    let of = |letter: &str| {
        let is_one = |tag: &&Vec<String>| tag.len() > 1 && tag[0] == letter && is_value(letter, &tag[1]);
        let found = tags.iter().find(is_one)?;
        let author = found.get(3).filter(|author| is_hex(author, KEY_DIGITS));
        Some(match (author, relay(found)) {
            (Some(author), relay) => tag(&[letter, &found[1], relay, author]),
            (None, "") => tag(&[letter, &found[1]]),
            (None, relay) => tag(&[letter, &found[1], relay]),
        })
    };
    ["A", "E", "I", "K", "P"].into_iter().filter_map(of).collect()
}

fn is_value(letter: &str, value: &str) -> bool {
    match letter {
        "E" | "P" => is_hex(value, KEY_DIGITS),
        _ => !value.is_empty() && value.len() <= VALUE_BYTES_MAX,
    }
}

/// The address of a relay that a tag names, if it can be one.
fn relay(tag: &[String]) -> &str {
    let is_one = |text: &&String| text.len() <= RELAY_BYTES_MAX && (text.starts_with("wss://") || text.starts_with("ws://"));
    tag.get(2).filter(is_one).map_or("", String::as_str)
}

/// Who takes part: the author, and whom they spoke to.
fn people<'a>(to: Answered<'a>, own: Option<&str>) -> Vec<&'a str> {
    let mut people = vec![to.pubkey];
    for tag in to.tags.iter().filter(|tag| tag.len() > 1 && tag[0] == "p" && is_hex(&tag[1], KEY_DIGITS)) {
        if people.len() >= PEOPLE_MAX {
            break;
        }
        if !people.contains(&tag[1].as_str()) {
            people.push(&tag[1]);
        }
    }
    people.retain(|pubkey| Some(*pubkey) != own);
    people
}

fn tag(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| (*part).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nostr::Keys;

    /// NIP-7D.
    const THREAD: u16 = 11;

    /// Sixty-four digits that begin so.
    fn key(of: &str) -> String {
        format!("{of:0<64}")
    }

    fn tags(list: &[&[&str]]) -> Vec<Vec<String>> {
        list.iter().map(|parts| tag(parts)).collect()
    }

    /// The answer to an event of `aa` with the id `1d`, by `0e`.
    fn answer(kind: u16, tags: &[Vec<String>]) -> Vec<Vec<String>> {
        let (id, pubkey) = (key("1d"), key("aa"));
        let to = Answered { id: &id, pubkey: &pubkey, kind, tags, relay: "ws://r" };
        reply(to, "hello".to_owned(), Some(&key("0e")), None).tags
    }

    #[test]
    fn the_first_note_of_a_thread_is_its_root() {
        let (id, author, own, other) = (key("1d"), key("aa"), key("0e"), key("bb"));
        let spoken_to = tags(&[&["p", &own], &["p", &other], &["p", &author]]);
        let to = Answered { id: &id, pubkey: &author, kind: NOTE, tags: &spoken_to, relay: "" };
        let answer = reply(to, "hello".to_owned(), Some(&own), Some("31933:x:y"));
        assert_eq!((answer.kind, answer.content.as_str()), (NOTE, "hello"));
        assert_eq!(answer.tags, tags(&[&["e", &id, "", "root", &author], &["p", &author], &["p", &other], &["a", "31933:x:y"]]));
    }

    #[test]
    fn an_answer_in_a_thread_names_its_root_and_what_it_answers() {
        let (id, author, top, middle, someone) = (key("1d"), key("aa"), key("70"), key("33"), key("5e"));
        let answered = tag(&["e", &id, "ws://r", "reply", &author]);
        let begins = |list: &[&[&str]], root: Vec<String>| assert_eq!(answer(NOTE, &tags(list))[..2], [root, answered.clone()]);
        begins(&[&["e", &middle, "", "reply"], &["e", &top, "wss://t", "root", &someone]], tag(&["e", &top, "wss://t", "root", &someone]));
        begins(&[&["e", &top], &["e", &middle]], tag(&["e", &top, "", "root"]));
        begins(&[&["e", &top, "", "reply"]], tag(&["e", &top, "", "root"]));
        let mention = tags(&[&["e", &top, "", "mention"], &["e"]]);
        assert_eq!(answer(NOTE, &mention)[0], tag(&["e", &id, "ws://r", "root", &author]));
    }

    #[test]
    fn anything_else_is_commented() {
        let (id, author) = (key("1d"), key("aa"));
        let about: [&[&str]; 3] = [&["E", &id, "ws://r", &author], &["K", "11"], &["P", &author]];
        let answered: [&[&str]; 3] = [&["e", &id, "ws://r", &author], &["k", "11"], &["p", &author]];
        assert_eq!(answer(THREAD, &[]), tags(&[about, answered].concat()));
    }

    #[test]
    fn a_comment_is_answered_within_its_scope() {
        let (id, author, x) = (key("1d"), key("aa"), key("cc"));
        let comment = tags(&[&["A", "31933:x:y", "wss://r"], &["K", "31933"], &["P", &x], &["a", "31933:x:y"], &["e"]]);
        let expected: [&[&str]; 6] =
            [&["A", "31933:x:y", "wss://r"], &["K", "31933"], &["P", &x], &["e", &id, "ws://r", &author], &["k", "1111"], &["p", &author]];
        assert_eq!(answer(COMMENT, &comment), tags(&expected));
        let root = tags(&[&["E", &x, "", &author], &["E", &id], &["K", "11"]]);
        assert_eq!(answer(COMMENT, &root)[..2], tags(&[&["E", &x, "", &author], &["K", "11"]]));
    }

    #[test]
    fn what_is_no_key_or_id_is_not_taken_over() {
        let (id, author, top) = (key("1d"), key("aa"), key("70"));
        let odd = tags(&[&["p", "ann"], &["p", ""], &["p"], &["e", "top", "", "root"], &["e", &author.to_uppercase()], &[]]);
        assert_eq!(answer(NOTE, &odd), tags(&[&["e", &id, "ws://r", "root", &author], &["p", &author]]));
        let hints = tags(&[&["e", &top, &"x".repeat(5_000), "root", "somebody"]]);
        assert_eq!(answer(NOTE, &hints)[0], tag(&["e", &top, "", "root"]));
        let scope = tags(&[&["E", "top"], &["P", "ann"], &["I", &"x".repeat(5_000)], &["K", ""]]);
        assert_eq!(answer(COMMENT, &scope)[0], tag(&["E", &id, "ws://r", &author]));
    }

    #[test]
    fn hostile_tags_make_no_endless_answer() {
        let crowd: Vec<Vec<String>> = (0..20_000).map(|n| tag(&["p", &key(&format!("b{n}b"))])).collect();
        let (id, pubkey) = (key("1d"), key("aa"));
        for kind in [NOTE, THREAD, COMMENT] {
            let to = Answered { id: &id, pubkey: &pubkey, kind, tags: &crowd, relay: "" };
            let answer = reply(to, "hello".to_owned(), None, None);
            assert!(answer.tags.len() <= PEOPLE_MAX + 5, "{kind}: {}", answer.tags.len());
            assert!(answer.sign(&Keys::generate(), 1).is_ok(), "it can be sent");
        }
    }
}
