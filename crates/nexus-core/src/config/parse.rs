//! YAML text to a tree of [`Node`]s within fixed budgets. Anchors, aliases, tags and further documents
//! are refused: a configuration needs none, and they are how a small text becomes a huge tree.

use super::node::{Field, FileId, Kind, Node, Position};
use super::problem::{Fault, Faults, quoted};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Longest configuration text, in bytes.
pub(crate) const TEXT_BYTES_MAX: usize = 1024 * 1024;
/// Deepest nesting of lists and mappings, in levels.
pub(crate) const DEPTH_LEVELS_MAX: usize = 32;
/// Most values in one text, keys included.
pub(crate) const NODES_MAX: usize = 100_000;

/// Reads one text. `None` when it is not YAML within the budgets; a key given twice is noted and the
/// first one kept, so that the rest is still judged.
pub(crate) fn parse(file: FileId, text: &str, faults: &mut Faults) -> Option<Node> {
    match admissible(file, text).and_then(|()| build(file, text, faults)) {
        Ok(node) => Some(node),
        Err(Fault { at, message }) => {
            faults.error(at, message);
            None
        }
    }
}

/// Refuses what the parser must not see: too much text, and NUL, which it takes for the end.
fn admissible(file: FileId, text: &str) -> Result<(), Fault> {
    if text.len() > TEXT_BYTES_MAX {
        let at = Position { file, line: 1, column: 1 };
        let message = format!("the file has {} bytes; a configuration may have {TEXT_BYTES_MAX}", text.len());
        return Err(Fault { at, message });
    }
    let Some((head, _)) = text.split_once('\0') else {
        return Ok(());
    };
    let line_start = head.rfind(['\n', '\r']).map_or(0, |end| end + 1);
    let breaks = head.matches(['\n', '\r']).count() - head.matches("\r\n").count();
    let column = head.get(line_start..).unwrap_or("").chars().count() + 1;
    let at = Position { file, line: breaks + 1, column };
    Err(Fault { at, message: "a NUL character; a configuration is text, remove it".to_owned() })
}

fn build(file: FileId, text: &str, faults: &mut Faults) -> Result<Node, Fault> {
    let mut tree = Tree { root: None, stack: Vec::new(), nodes: 0, documents: 0 };
    let mut parser = Parser::new_from_str(text);
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|error| not_yaml(file, &error))?;
        tree.take(event, position(file, &span.start), faults)?;
    }
    let empty = Node { at: Position { file, line: 1, column: 1 }, kind: Kind::Null };
    Ok(tree.root.unwrap_or(empty))
}

fn position(file: FileId, marker: &Marker) -> Position {
    Position { file, line: marker.line().max(1), column: marker.col() + 1 }
}

fn not_yaml(file: FileId, error: &ScanError) -> Fault {
    let info = error.info();
    let hint = if info.contains("anchor") {
        "; aliases (`*name`) are not supported here, write the value out"
    } else if info.contains("tab") {
        "; indent with spaces"
    } else {
        "; check indentation, quotes and brackets here and just above"
    };
    Fault { at: position(file, error.marker()), message: format!("not valid YAML: {info}{hint}") }
}

/// A list or mapping that is still open.
struct Frame {
    at: Position,
    open: Open,
}

enum Open {
    Sequence(Vec<Node>),
    Mapping { fields: BTreeMap<String, Field>, key: Option<(String, Position)> },
}

/// The tree while it grows, event by event.
struct Tree {
    root: Option<Node>,
    stack: Vec<Frame>,
    nodes: usize,
    documents: usize,
}

impl Tree {
    fn take(&mut self, event: Event<'_>, at: Position, faults: &mut Faults) -> Result<(), Fault> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => self.start_document(at),
            Event::Alias(_) => Err(anchor(at)),
            Event::Scalar(text, style, anchor_id, tag) => {
                self.admit(at, anchor_id, tag.is_some())?;
                self.add(scalar(at, text.into_owned(), style), faults)
            }
            Event::SequenceStart(anchor_id, tag) => {
                self.admit(at, anchor_id, tag.is_some())?;
                self.open(at, Open::Sequence(Vec::new()))
            }
            Event::MappingStart(anchor_id, tag) => {
                self.admit(at, anchor_id, tag.is_some())?;
                self.open(at, Open::Mapping { fields: BTreeMap::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(faults),
        }
    }

    fn start_document(&mut self, at: Position) -> Result<(), Fault> {
        self.documents += 1;
        if self.documents > 1 {
            let message = "a second YAML document; put everything into one, without a further `---`";
            return Err(Fault { at, message: message.to_owned() });
        }
        Ok(())
    }

    fn admit(&mut self, at: Position, anchor_id: usize, tagged: bool) -> Result<(), Fault> {
        if anchor_id > 0 {
            return Err(anchor(at));
        }
        if tagged {
            let message = "tags (`!name`) are not supported here; remove the tag".to_owned();
            return Err(Fault { at, message });
        }
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            let message = format!("more than {NODES_MAX} values; a configuration may have that many");
            return Err(Fault { at, message });
        }
        Ok(())
    }

    fn open(&mut self, at: Position, open: Open) -> Result<(), Fault> {
        if self.stack.len() >= DEPTH_LEVELS_MAX {
            let message = format!("nested deeper than {DEPTH_LEVELS_MAX} levels; flatten it");
            return Err(Fault { at, message });
        }
        let expects_key = match self.stack.last() {
            Some(Frame { open: Open::Mapping { key, .. }, .. }) => key.is_none(),
            Some(Frame { open: Open::Sequence(_), .. }) | None => false,
        };
        if expects_key {
            return Err(bad_key(at));
        }
        self.stack.push(Frame { at, open });
        Ok(())
    }

    fn close(&mut self, faults: &mut Faults) -> Result<(), Fault> {
        let Some(Frame { at, open }) = self.stack.pop() else {
            return Ok(());
        };
        let kind = match open {
            Open::Sequence(items) => Kind::Sequence(items),
            Open::Mapping { fields, key: _ } => Kind::Mapping(fields),
        };
        self.add(Node { at, kind }, faults)
    }

    /// Puts a finished node where it belongs: the root, a list's end, or a mapping's key or value.
    fn add(&mut self, node: Node, faults: &mut Faults) -> Result<(), Fault> {
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Frame { open: Open::Sequence(items), .. }) => items.push(node),
            Some(Frame { open: Open::Mapping { fields, key }, .. }) => match key.take() {
                None => *key = Some(key_text(node)?),
                Some((name, key_at)) => insert(fields, name, key_at, node, faults),
            },
        }
        Ok(())
    }
}

fn scalar(at: Position, text: String, style: ScalarStyle) -> Node {
    let plain = style == ScalarStyle::Plain;
    // The null words of the YAML 1.2 core schema (10.3.2).
    let is_null = plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL");
    let kind = if is_null { Kind::Null } else { Kind::Scalar { text, plain } };
    Node { at, kind }
}

fn key_text(node: Node) -> Result<(String, Position), Fault> {
    match node.kind {
        Kind::Scalar { text, .. } => Ok((text, node.at)),
        Kind::Null | Kind::Sequence(_) | Kind::Mapping(_) => Err(bad_key(node.at)),
    }
}

fn insert(fields: &mut BTreeMap<String, Field>, name: String, key_at: Position, mut value: Node, faults: &mut Faults) {
    // What is not written has no place of its own; its key's place is what a person looks at.
    if value.is_null() {
        value.at = key_at;
    }
    match fields.entry(name) {
        Entry::Vacant(slot) => {
            slot.insert(Field { key_at, value });
        }
        Entry::Occupied(slot) => {
            let first = slot.get().key_at.line;
            let name = quoted(slot.key());
            faults.error(key_at, format!("key {name} is given twice (first on line {first}); keep one"));
        }
    }
}

fn anchor(at: Position) -> Fault {
    let message = "anchors (`&name`) and aliases (`*name`) are not supported here; write the value out";
    Fault { at, message: message.to_owned() }
}

fn bad_key(at: Position) -> Fault {
    Fault { at, message: "a key must be text, as in `port: 7400`".to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Source;
    use super::*;

    fn failure(text: &str) -> (usize, usize, String) {
        let mut faults = Faults::default();
        parse(FileId::Main, text, &mut faults);
        let problem = faults.finish(Source { name: "nex.yaml", text }, None).unwrap_err().remove(0);
        (problem.line, problem.column, problem.message)
    }

    fn tree(text: &str) -> Node {
        parse(FileId::Main, text, &mut Faults::default()).unwrap()
    }

    #[test]
    fn nodes_know_their_places() {
        let root = tree("a: 1\nb:\n  - x\n  - {c: 'y'}\n");
        let b = root.get("b").unwrap();
        let c = b.items()[1].get("c").unwrap();
        assert_eq!((c.at.line, c.at.column), (4, 9));
        assert_eq!(c.kind, Kind::Scalar { text: "y".to_owned(), plain: false });
        assert_eq!((b.items()[0].at.line, b.items()[0].at.column), (3, 5));
    }

    #[test]
    fn an_empty_value_stands_at_its_key() {
        let root = tree("a:\n  b:\nc: ~\n");
        let b = root.path(&["a", "b"]).unwrap();
        assert!(b.is_null());
        assert_eq!((b.at.line, b.at.column), (2, 3));
        assert!(root.get("c").unwrap().is_null());
        assert!(tree("").is_null());
        assert!(tree("# only a comment\n").is_null());
    }

    #[test]
    fn what_can_explode_or_hide_is_refused() {
        assert!(failure("a: &x 1\nb: *x\n").2.starts_with("anchors"));
        assert!(failure("a: *x\n").2.contains("aliases"));
        assert!(failure("a: !!str 1\n").2.starts_with("tags"));
        assert!(failure("a: 1\n---\nb: 2\n").2.starts_with("a second YAML document"));
        assert!(failure("? [a, b]\n: 1\n").2.starts_with("a key must be text"));
        assert_eq!(failure("a: 1\r\nbc\0d: 2\n").0, 2);
        assert_eq!(failure("a: 1\r\nbc\0d: 2\n").1, 3);
    }

    #[test]
    fn bad_yaml_is_placed() {
        for text in ["a: [1, 2\n", "a: \"open\n", "a:\n  b: 1\n\tc: 2\n", "a: 1\n b: 2\n", "]", "{", "a: b: c\n"] {
            let (line, column, message) = failure(text);
            assert!(line >= 1 && column >= 1, "{text:?}");
            assert!(message.starts_with("not valid YAML: "), "{text:?}: {message}");
        }
    }

    #[test]
    fn a_key_given_twice_is_an_error_naming_the_first() {
        let (line, column, message) = failure("a: 1\nb: 2\na: 3\n");
        assert_eq!((line, column), (3, 1));
        assert_eq!(message, "key `a` is given twice (first on line 1); keep one");
    }

    #[test]
    fn budgets_hold() {
        let long = format!("#{}", "x".repeat(TEXT_BYTES_MAX));
        assert!(failure(&long).2.contains("1048577 bytes"));
        let fits = format!("#{}", "x".repeat(TEXT_BYTES_MAX - 1));
        assert!(tree(&fits).is_null());
        let deep = format!("{}{}", "[".repeat(DEPTH_LEVELS_MAX + 1), "]".repeat(DEPTH_LEVELS_MAX + 1));
        assert_eq!(failure(&deep).1, DEPTH_LEVELS_MAX + 1);
        let at_limit = format!("{}{}", "[".repeat(DEPTH_LEVELS_MAX), "]".repeat(DEPTH_LEVELS_MAX));
        assert_eq!(tree(&at_limit).items().len(), 1);
        assert!(failure(&"- ".repeat(200_000)).2.contains("deeper"));
        assert!(failure(&"- a\n".repeat(NODES_MAX + 1)).2.starts_with("more than 100000 values"));
    }
}
