//! TypeScript without its types. Types become blanks, so that every line and column stays where it is.
//! The only place that knows the parser; it never runs anything and never looks at what types mean.

use super::trouble::Trouble;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use swc_common::errors::{DiagnosticBuilder, Emitter, Handler};
use swc_common::sync::Lrc;
use swc_common::{GLOBALS, Globals, SourceMap, Span};
use swc_ts_fast_strip::{Mode, Options, operate};

/// Brackets within each other that the parser, which recurses, has room for.
const NESTING_MAX: usize = 1000;
/// How long it may take.
pub(super) const TIME_MAX: Duration = Duration::from_secs(4);

/// The first mistake, which is the one that the others follow from.
type First = Rc<RefCell<Option<(String, Option<Span>)>>>;

struct Keep(First);

impl Emitter for Keep {
    fn emit(&mut self, found: &mut DiagnosticBuilder<'_>) {
        self.0.borrow_mut().get_or_insert_with(|| (found.message(), found.span.primary_span()));
    }
}

/// The JavaScript of a TypeScript module. What isn't only types (`enum`, `namespace`, parameter
/// properties) is refused with its place.
pub(super) fn types(source: &str, file: &str) -> Result<String, Trouble> {
    if let Some((line, column)) = too_deep(source) {
        return Err(Trouble::at(format!("more than {NESTING_MAX} brackets are within each other here"), file, line, column));
    }
    let map: Lrc<SourceMap> = Lrc::default();
    let first = First::default();
    let handler = Handler::with_emitter(false, false, Box::new(Keep(Rc::clone(&first))));
    let options = Options { module: Some(true), mode: Mode::StripOnly, ..Options::default() };
    let stripped = GLOBALS.set(&Globals::new(), || operate(&map, &handler, source.to_owned(), options));
    let error = match stripped {
        Ok(output) => return Ok(output.code),
        Err(error) => error,
    };
    Err(match first.take() {
        Some((message, Some(span))) if !span.is_dummy() => {
            let place = map.lookup_char_pos(span.lo());
            let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
            Trouble::at(message, file, number(place.line), number(place.col.0.saturating_add(1)))
        }
        Some((message, _)) => Trouble::new(message),
        None => Trouble::new(error.message),
    })
}

/// Where there are more open brackets than the parser can take. It knows nothing of texts and comments: brackets in them
/// count as well, but those that are closed there, or anywhere, don't add up.
fn too_deep(source: &str) -> Option<(u32, u32)> {
    let (mut depth, mut line, mut column) = (0_usize, 1_u32, 0_u32);
    for letter in source.chars() {
        column = column.saturating_add(1);
        match letter {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            '\n' => (line, column) = (line.saturating_add(1), 0),
            _ => {}
        }
        if depth > NESTING_MAX {
            return Some((line, column));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_line_and_column_stays() {
        let source = "interface A {\n  b: string;\n}\nimport type { C } from './c';\nexport const x: number = (1 as number), y = x;\n";
        let code = types(source, "x.ts").unwrap();
        assert_eq!(code.lines().count(), source.lines().count());
        assert_eq!(code.lines().nth(4).unwrap().find("y = x"), source.lines().nth(4).unwrap().find("y = x"));
        assert!(!code.contains("interface") && !code.contains("number") && !code.contains("import"), "{code}");
    }

    #[test]
    fn what_is_nested_too_deeply_is_refused_before_it_is_parsed() {
        let nested = |deep: usize| format!("const b = 1;\nconst a = {}1{};\n", "[".repeat(deep), "]".repeat(deep));
        let trouble = types(&nested(200_000), "x.ts").unwrap_err();
        assert!(trouble.message.contains("brackets"), "{trouble:?}");
        assert_eq!((trouble.line, trouble.column), (Some(2), Some(1011)), "{trouble:?}");
        assert_eq!(too_deep(&nested(NESTING_MAX)), None);
        assert_eq!(too_deep(&"a([{}]);\n".repeat(NESTING_MAX)), None, "what was closed");
    }

    #[test]
    fn what_is_no_type_is_refused_with_its_place() {
        let trouble = types("const a = 1;\n  enum E { A }\n", "x.ts").unwrap_err();
        assert_eq!((trouble.file.as_deref(), trouble.line, trouble.column), (Some("x.ts"), Some(2), Some(3)), "{trouble:?}");
        assert!(trouble.message.contains("enum"), "{trouble:?}");
        let trouble = types("const a = 1;\nconst b = ;\n", "x.ts").unwrap_err();
        assert_eq!((trouble.line, trouble.column), (Some(2), Some(11)), "{trouble:?}");
    }
}
