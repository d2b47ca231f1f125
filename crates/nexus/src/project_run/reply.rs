//! Which tags an answer has, by what it answers: NIP-10 for notes, NIP-22 for everything else. Pure.

use crate::nostr::Template;
use crate::project::protocol::Received;

/// A note (NIP-10) and a comment (NIP-22).
const NOTE: u16 = 1;
const COMMENT: u16 = 1111;
/// People who are told of an answer: those of the event, as far as there is room.
const PEOPLE_MAX: usize = 50;

/// An answer to `event` with this content. `own` is the public key of who answers, who is not told of it; `project`
/// is named in it, so that it is found with the project's other events.
pub fn reply_to(event: &Received, content: String, own: &str, project: &str) -> Template {
    let (kind, mut tags) = if event.kind == NOTE { (NOTE, note_tags(event)) } else { (COMMENT, comment_tags(event)) };
    if kind == NOTE {
        tags.extend(people(event, own).into_iter().map(|pubkey| tag(&["p", &pubkey])));
    }
    if !project.is_empty() {
        tags.push(tag(&["a", project]));
    }
    Template { kind, content, tags, created_at: None }
}

/// NIP-10: the root of the thread, and what is answered if that is another one.
fn note_tags(event: &Received) -> Vec<Vec<String>> {
    match root_of(event) {
        None => vec![tag(&["e", &event.id, "", "root", &event.pubkey])],
        Some((root, relay, author)) if root != event.id => {
            vec![marked(&root, &relay, "root", &author), tag(&["e", &event.id, "", "reply", &event.pubkey])]
        }
        Some(_) => vec![tag(&["e", &event.id, "", "root", &event.pubkey])],
    }
}

/// The root of a note's thread, with its relay and author where they are told. Without marks it is the first `e` tag,
/// as it was before there were any.
fn root_of(event: &Received) -> Option<(String, String, String)> {
    let at = |tag: &[String], place: usize| tag.get(place).cloned().unwrap_or_default();
    let named = |tag: &&Vec<String>| tag.first().is_some_and(|name| name == "e") && tag.len() > 1;
    let mark = |tag: &[String]| at(tag, 3);
    let all: Vec<&Vec<String>> = event.tags.iter().filter(named).collect();
    let marked = all.iter().find(|tag| mark(tag) == "root").or_else(|| all.iter().find(|tag| mark(tag) == "reply"));
    // One that is only mentioned is no root.
    let first = || all.iter().find(|tag| mark(tag).is_empty());
    let root = marked.or_else(first)?;
    Some((at(root, 1), at(root, 2), at(root, 4)))
}

/// NIP-22: in capitals what the comments are about, in small letters what is answered.
fn comment_tags(event: &Received) -> Vec<Vec<String>> {
    let is_scope =
        |tag: &&Vec<String>| tag.first().is_some_and(|name| matches!(name.as_str(), "A" | "E" | "I" | "K" | "P")) && tag.len() > 1;
    let mut tags: Vec<Vec<String>> = match event.kind {
        COMMENT => event.tags.iter().filter(is_scope).cloned().collect(),
        _ => Vec::new(),
    };
    if !tags.iter().any(|tag| matches!(tag[0].as_str(), "A" | "E" | "I")) {
        // A thread, or any other event: that is what the comments are about.
        tags = vec![tag(&["E", &event.id, "", &event.pubkey]), tag(&["K", &event.kind.to_string()]), tag(&["P", &event.pubkey])];
    }
    tags.push(tag(&["e", &event.id, "", &event.pubkey]));
    tags.push(tag(&["k", &event.kind.to_string()]));
    tags.push(tag(&["p", &event.pubkey]));
    tags
}

/// Who takes part: the author, and whom they spoke to.
fn people(event: &Received, own: &str) -> Vec<String> {
    let mut people = vec![event.pubkey.clone()];
    for spoken_to in event.tags.iter().filter(|tag| tag.first().is_some_and(|name| name == "p")).filter_map(|tag| tag.get(1)) {
        if people.len() >= PEOPLE_MAX {
            break;
        }
        if !people.contains(spoken_to) {
            people.push(spoken_to.clone());
        }
    }
    people.retain(|pubkey| pubkey != own);
    people
}

/// An `e` tag of NIP-10; the author is left out where nobody said who that is.
fn marked(id: &str, relay: &str, mark: &str, author: &str) -> Vec<String> {
    if author.is_empty() { tag(&["e", id, relay, mark]) } else { tag(&["e", id, relay, mark, author]) }
}

fn tag(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| (*part).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NIP-7D.
    const THREAD: u16 = 11;

    fn event(kind: u16, tags: &[&[&str]]) -> Received {
        let tags = tags.iter().map(|parts| tag(parts)).collect();
        Received { id: "id".into(), pubkey: "author".into(), kind, created_at: 1, tags, ..Received::default() }
    }

    fn tags_of(event: &Received) -> Vec<Vec<String>> {
        reply_to(event, "hello".into(), "me", "").tags
    }

    #[test]
    fn the_first_note_of_a_thread_is_its_root() {
        let reply = reply_to(&event(1, &[&["p", "me"], &["p", "other"], &["a", "31933:x:y"]]), "hello".into(), "me", "31933:x:y");
        assert_eq!((reply.kind, reply.content.as_str()), (1, "hello"));
        let expected: [&[&str]; 4] = [&["e", "id", "", "root", "author"], &["p", "author"], &["p", "other"], &["a", "31933:x:y"]];
        assert_eq!(reply.tags, expected.map(tag));
    }

    #[test]
    fn an_answer_in_a_thread_names_its_root_and_what_it_answers() {
        let in_thread = event(1, &[&["e", "middle", "", "reply"], &["e", "top", "wss://r", "root", "someone"]]);
        assert_eq!(tags_of(&in_thread)[..2], [tag(&["e", "top", "wss://r", "root", "someone"]), tag(&["e", "id", "", "reply", "author"])]);
        let unmarked = event(1, &[&["e", "top"], &["e", "middle"]]);
        assert_eq!(tags_of(&unmarked)[..2], [tag(&["e", "top", "", "root"]), tag(&["e", "id", "", "reply", "author"])]);
        let mention = event(1, &[&["e", "seen", "", "mention"], &["e"]]);
        assert_eq!(tags_of(&mention)[0], tag(&["e", "id", "", "root", "author"]));
    }

    #[test]
    fn a_thread_is_answered_with_a_comment_about_it() {
        let reply = reply_to(&event(THREAD, &[]), "hello".into(), "me", "");
        assert_eq!(reply.kind, COMMENT);
        let expected: [&[&str]; 6] =
            [&["E", "id", "", "author"], &["K", "11"], &["P", "author"], &["e", "id", "", "author"], &["k", "11"], &["p", "author"]];
        assert_eq!(reply.tags, expected.map(tag));
    }

    #[test]
    fn a_comment_is_answered_within_its_scope() {
        let comment = event(COMMENT, &[&["A", "31933:x:y", "wss://r"], &["K", "31933"], &["P", "x"], &["a", "31933:x:y"], &["e"]]);
        let expected: [&[&str]; 6] =
            [&["A", "31933:x:y", "wss://r"], &["K", "31933"], &["P", "x"], &["e", "id", "", "author"], &["k", "1111"], &["p", "author"]];
        assert_eq!(tags_of(&comment), expected.map(tag));
    }

    #[test]
    fn hostile_tags_make_no_endless_answer() {
        let crowd: Vec<Vec<String>> = (0..20_000).map(|n| tag(&["p", &n.to_string()])).collect();
        let event = Received { tags: crowd, ..event(1, &[]) };
        assert!(tags_of(&event).len() <= PEOPLE_MAX + 1);
        let odd =
            Received { tags: vec![Vec::new(), vec!["e".into()], vec!["E".into()], vec!["p".into()]], ..super::tests::event(COMMENT, &[]) };
        assert_eq!(tags_of(&odd)[0][0], "E");
    }
}
