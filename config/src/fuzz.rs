//! Nothing that an operator may save as a file makes the reader panic: the debug assertions of `document` count as well.

use std::path::Path;
use std::sync::Arc;

use crate::decode::{Unknown, decode};
use crate::document;

/// Xorshift: the same bytes for the same seed on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % limit
    }
}

fn read(text: &str) -> bool {
    let Ok((root, _)) = document::parse(text, &Arc::from(Path::new("fuzz.json5"))) else { return false };
    let known = decode(root, |_, _| Unknown::Refuse(String::new()));
    if let Ok(config) = &known {
        drop(config.check());
    }
    true
}

#[test]
fn no_text_makes_the_reader_panic() {
    const PIECES: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "'",
        "\\",
        "/",
        "//",
        "/*",
        "*/",
        "\n",
        "\r",
        "\r\n",
        "\u{2028}",
        "\u{feff}",
        "\0",
        "\u{a0}",
        "\u{85}",
        "é",
        "𝒳",
        "-",
        "+",
        ".",
        "0x1F",
        "1e999",
        "-1",
        "NaN",
        "Infinity",
        "true",
        "null",
        "gateway",
        "port",
        "cluster",
        "bootstrap",
        "bind",
        "models",
        "providers",
        "agents",
        "entries",
        "\\u0061",
        "$include",
        "${",
        "}",
        "\"a\"",
        "18446744073709551616",
        "[]",
        "{}",
        "a:",
        "'x',",
        "\\\n",
        "_$a",
    ];
    let examples = [
        include_str!("../examples/models.json5"),
        include_str!("../examples/three-instances.json5"),
        include_str!("../examples/guide-cluster.json5"),
        include_str!("../examples/discord.json5"),
    ];
    let seed = 0x9e37_79b9_7f4a_7c15;
    let mut random = Random(seed);
    let (mut parsed, rounds) = (0, 6000);
    for round in 0..rounds {
        let mut text: String = match round % 3 {
            0 => String::new(),
            _ => examples[random.below(examples.len())].to_owned(),
        };
        for _ in 0..=random.below(if text.is_empty() { 40 } else { 4 }) {
            let mut at = random.below(text.len() + 1);
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            let mut end = (at + random.below(12)).min(text.len());
            while !text.is_char_boundary(end) {
                end += 1;
            }
            let piece = PIECES[random.below(PIECES.len())];
            match random.below(3) {
                0 => text.insert_str(at, piece),
                1 => text.replace_range(at..end, piece),
                _ => text.replace_range(at..end, ""),
            }
        }
        let result = std::panic::catch_unwind(|| read(&text));
        parsed += usize::from(result.unwrap_or_else(|_| panic!("seed {seed:#x}, round {round}: {text:?}")));
    }
    // Otherwise only the parser was tried.
    assert!(parsed > rounds / 20, "only {parsed} of {rounds} texts were JSON5");
}

#[test]
fn deep_nesting_is_refused_before_the_parser_recurses() {
    for open in ["[", "{a:"] {
        assert!(!read(&open.repeat(200_000)));
    }
    assert!(read(&format!("{}{}", "[".repeat(64), "]".repeat(64))));
}

#[test]
fn positions_count_every_line_end_that_json5_knows() {
    let text = "\u{feff}{\r\n// c\r/* \n */ gateway\u{2028}:\u{2029} { '\\\nport' : 1 } }";
    let (root, _) = document::parse(text, &Arc::from(Path::new("f"))).unwrap();
    let gateway = root.get("gateway").unwrap();
    assert_eq!(gateway.key_source.to_string(), "f:4:5");
    assert_eq!(gateway.node.source.to_string(), "f:6:2");
    assert_eq!(gateway.node.get("port").unwrap().node.source.to_string(), "f:7:9");
}
