//! Reading hostile texts: none panics, and whatever comes of one can be told.
#![allow(clippy::unwrap_used)]

use super::tests::{FULL_YAML, report, source};
use super::{Source, load};
use proptest::prelude::*;

/// Text made of the pieces that configurations are made of, in any order.
fn yaml_soup() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "daemon",
        "port",
        "adapters",
        "nex",
        "agents",
        "access",
        "policies",
        "timer",
        "cron",
        "expr",
        "env",
        "'",
        "\"",
        ": ",
        ":",
        "\n",
        "\n  ",
        "\n    ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "#",
        " ",
        "\t",
        "&a ",
        "*a",
        "!t ",
        "|",
        ">",
        "---\n",
        "...",
        "%",
        "? ",
        "~",
        "1",
        "-1",
        "é",
        "\u{feff}",
        "\r",
        "\0",
        "* * * * *",
        "\\",
        "<<",
    ]);
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_text_panics(main in any::<String>(), overlay in any::<String>()) {
        check_any(&main, &overlay);
    }

    #[test]
    fn no_soup_of_yaml_panics(main in yaml_soup(), overlay in yaml_soup()) {
        check_any(&main, &overlay);
    }

    #[test]
    fn no_damaged_file_panics(at in 0..FULL_YAML.len(), piece in yaml_soup()) {
        let at = (at..=FULL_YAML.len()).find(|at| FULL_YAML.is_char_boundary(*at)).unwrap();
        let (head, tail) = FULL_YAML.split_at(at);
        check_any(&format!("{head}{piece}{tail}"), "");
        check_any(head, tail);
    }
}

/// Whatever comes of a text, it can be told: as places in the text, or as a configuration shown.
fn check_any(main: &str, overlay: &str) {
    let overlay = Source { name: "overlay.yaml", text: overlay };
    match load(source(main), Some(overlay)) {
        Ok(loaded) => assert!(loaded.show().starts_with("daemon:")),
        Err(problems) => {
            assert!(!problems.is_empty());
            assert!(problems.iter().all(|problem| problem.line >= 1 && problem.column >= 1));
            assert!(!report(&problems).is_empty());
        }
    }
}
