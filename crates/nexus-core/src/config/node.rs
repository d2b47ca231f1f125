//! The tree that a configuration text becomes: values that know their file, line and column, and how
//! an overlay is laid over the main file. It never interprets a value.

use std::collections::BTreeMap;

/// Which text a node was written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FileId {
    Main,
    Overlay,
}

/// Where a node starts: 1-based line and column, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) file: FileId,
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// One value with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) kind: Kind,
}

/// What a node holds, before anything says what it should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing written, `~` or `null`.
    Null,
    /// The text with quotes and escapes resolved; `plain` when it was written without quotes.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(BTreeMap<String, Field>),
}

/// One value of a mapping, with the place of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) key_at: Position,
    pub(crate) value: Node,
}

impl Node {
    /// The value of a key; `None` too when this is not a mapping.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.kind {
            Kind::Mapping(fields) => fields.get(key).map(|field| &field.value),
            Kind::Null | Kind::Scalar { .. } | Kind::Sequence(_) => None,
        }
    }

    /// The value at the end of a path of keys.
    pub(crate) fn path(&self, keys: &[&str]) -> Option<&Node> {
        keys.iter().try_fold(self, |node, key| node.get(key))
    }

    /// Keys and values in the order of the keys; none when this is not a mapping.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&String, &Field)> {
        let fields = match &self.kind {
            Kind::Mapping(fields) => Some(fields),
            Kind::Null | Kind::Scalar { .. } | Kind::Sequence(_) => None,
        };
        fields.into_iter().flatten()
    }

    /// The entries of a list; none when this is not one.
    pub(crate) fn items(&self) -> &[Node] {
        match &self.kind {
            Kind::Sequence(items) => items,
            Kind::Null | Kind::Scalar { .. } | Kind::Mapping(_) => &[],
        }
    }

    /// The text of a scalar.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, .. } => Some(text),
            Kind::Null | Kind::Sequence(_) | Kind::Mapping(_) => None,
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Null)
    }

    /// What stands under a top-level `nex:` when the file has no section of its own: a `config.yaml`
    /// shared with other programs, whose other keys are not ours to judge.
    pub(crate) fn without_wrapper(mut self, sections: &[&str]) -> Node {
        if let Kind::Mapping(fields) = &mut self.kind
            && !sections.iter().any(|section| fields.contains_key(*section))
            && let Some(field) = fields.remove("nex")
        {
            return field.value;
        }
        self
    }

    /// Lays `above` over this node, mapping by mapping; anything else in it replaces what is here.
    /// An empty value over a mapping changes nothing, so that an empty section can't reset one.
    pub(crate) fn overlaid(self, above: Node) -> Node {
        let at = self.at;
        match (self.kind, above.kind) {
            (Kind::Mapping(mut fields), Kind::Mapping(upper)) => {
                for (key, field) in upper {
                    let field = match fields.remove(&key) {
                        Some(lower) => Field { key_at: lower.key_at, value: lower.value.overlaid(field.value) },
                        None => field,
                    };
                    fields.insert(key, field);
                }
                Node { at, kind: Kind::Mapping(fields) }
            }
            (kind @ Kind::Mapping(_), Kind::Null) => Node { at, kind },
            (_, kind) => Node { at: above.at, kind },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::parse::parse;
    use super::super::problem::Faults;
    use super::*;

    fn tree(file: FileId, text: &str) -> Node {
        parse(file, text, &mut Faults::default()).unwrap()
    }

    #[test]
    fn the_overlay_wins_and_keeps_its_place() {
        let main = tree(FileId::Main, "a: {x: 1, y: 2}\nb: [1, 2]\n");
        let merged = main.overlaid(tree(FileId::Overlay, "\n\na: {y: 3, z: 4}\nb: [9]\n"));
        assert_eq!(merged.path(&["a", "x"]).unwrap().at.file, FileId::Main);
        let y = merged.path(&["a", "y"]).unwrap();
        assert_eq!(y.text(), Some("3"));
        assert_eq!(y.at, Position { file: FileId::Overlay, line: 3, column: 8 });
        assert_eq!(merged.path(&["a", "z"]).unwrap().text(), Some("4"));
        assert_eq!(merged.get("b").unwrap().items().len(), 1);
    }

    #[test]
    fn an_empty_overlay_value_clears_a_scalar_but_not_a_section() {
        let main = tree(FileId::Main, "a: {x: 1}\nb: 2\n");
        let merged = main.overlaid(tree(FileId::Overlay, "a:\nb:\n"));
        assert_eq!(merged.path(&["a", "x"]).unwrap().text(), Some("1"));
        assert!(merged.get("b").unwrap().is_null());
    }

    #[test]
    fn the_wrapper_is_taken_off_only_when_it_wraps() {
        let sections = &["daemon"];
        let wrapped = tree(FileId::Main, "other: 1\nnex: {daemon: {port: 1}}\n").without_wrapper(sections);
        assert_eq!(wrapped.path(&["daemon", "port"]).unwrap().text(), Some("1"));
        let bare = tree(FileId::Main, "daemon: {}\nnex: {}\n").without_wrapper(sections);
        assert!(bare.get("nex").is_some());
    }
}
