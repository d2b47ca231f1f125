//! What goes wrong in a plugin, and where in its file. It owns how an exception becomes a message with a
//! place; it never decides what follows.

use serde::Serialize;

/// What an exception of QuickJS says when the runtime's memory is used up.
const OUT_OF_MEMORY: &str = "InternalError: out of memory";
/// What it says about any `import`: it has no loader.
const NO_MODULE: &str = "ReferenceError: could not load module '";

/// A message, and the place in the plugin's file if there is one. Line and column count from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Trouble {
    pub(super) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) line: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) column: Option<u32>,
}

impl Trouble {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), file: None, line: None, column: None }
    }

    pub(super) fn at(message: impl Into<String>, file: &str, line: u32, column: u32) -> Self {
        Self { message: message.into(), file: Some(file.to_owned()), line: Some(line), column: Some(column) }
    }

    /// An exception, with the innermost place in `file` that its stack names.
    pub(super) fn thrown(message: impl Into<String>, stack: &str, file: &str) -> Self {
        match place(stack, file) {
            Some((line, column)) => Self::at(message, file, line, column),
            None => Self::new(message),
        }
    }

    /// The memory of the runtime was used up. A plugin may say the same; that costs only itself.
    pub(super) fn is_memory(&self) -> bool {
        self.message.starts_with(OUT_OF_MEMORY)
    }

    /// The same place with another message.
    pub(super) fn saying(self, message: impl Into<String>) -> Self {
        Self { message: message.into(), ..self }
    }

    /// What to tell of an `import`, with its place in `source`; anything else as it is.
    pub(super) fn about_import(self, source: &str, file: &str) -> Self {
        let named = self.message.strip_prefix(NO_MODULE).and_then(|rest| rest.split_once('\''));
        let Some((module, _)) = named else { return self };
        let message = format!("`{module}` can't be imported: a plugin is one file; only `import type` may stay, in a .ts file");
        // A relative one is told as where it would lie: its last part is as it was written.
        let written = module.rsplit('/').next().unwrap_or(module);
        let naming = |is_its: fn(&str) -> Option<usize>| {
            source.lines().zip(1_u32..).filter(|(text, _)| text.contains(written)).find_map(|(text, line)| {
                let column = u32::try_from(text[..is_its(text)?].chars().count()).ok()?;
                Some((line, column.saturating_add(1)))
            })
        };
        // The name may stand on a line of its own.
        let found = naming(|text| text.find("import").or_else(|| text.find("from"))).or_else(|| naming(|text| text.find(['"', '\''])));
        match found {
            Some((line, column)) => Self::at(message, file, line, column),
            None => self.saying(message),
        }
    }
}

/// The first `file:LINE:COLUMN` of a stack.
fn place(stack: &str, file: &str) -> Option<(u32, u32)> {
    stack.match_indices(file).find_map(|(at, _)| numbers(&stack[at + file.len()..]))
}

/// `:3:7` at the beginning of a text.
fn numbers(text: &str) -> Option<(u32, u32)> {
    let (line, rest) = text.strip_prefix(':')?.split_once(':')?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((line.parse().ok()?, rest[..end].parse().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_innermost_place_in_the_file_counts() {
        let stack = "    at parse (native)\n    at ask (nexus:host:50:3)\n    at hook (plugins/x.ts:12:9)\n    at run (plugins/x.ts:2:1)\n";
        let trouble = Trouble::thrown("boom", stack, "plugins/x.ts");
        assert_eq!((trouble.line, trouble.column), (Some(12), Some(9)));
        assert_eq!(Trouble::thrown("boom", "    at plugins/x.ts:1:5\n", "plugins/x.ts").line, Some(1));
        for stack in ["", "undefined", "    at plugins/x.ts (missing)", "    at f (other.ts:1:1)", "plugins/x.ts:9", "plugins/x.ts:a:b"] {
            assert_eq!(Trouble::thrown("boom", stack, "plugins/x.ts"), Trouble::new("boom"), "{stack:?}");
        }
    }

    #[test]
    fn an_import_is_found_in_the_source() {
        let source = "// fs\n\n  import { readFile } from \"node:fs\";\n";
        let trouble = Trouble::new("ReferenceError: could not load module 'node:fs'").about_import(source, "x.js");
        assert_eq!((trouble.line, trouble.column), (Some(3), Some(3)));
        assert!(trouble.message.contains("`node:fs` can't be imported"), "{trouble:?}");
        let relative = "const a = 1;\nimport {\n  b,\n} from\n  './sub/helper.js';\n";
        let trouble = Trouble::new("ReferenceError: could not load module 'plugins/sub/helper.js'").about_import(relative, "x.ts");
        assert_eq!((trouble.line, trouble.column), (Some(5), Some(3)), "{trouble:?}");
        let other = Trouble::new("ReferenceError: y is not defined");
        assert_eq!(other.clone().about_import(source, "x.js"), other);
    }
}
