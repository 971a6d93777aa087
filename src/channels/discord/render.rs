//! A reply in Markdown, as models write it, into messages that Discord takes. Pure.
//!
//! Discord reads a dialect of Markdown, so most of a reply stays as it is. Fences become the only kind that Discord knows,
//! tables become code, for it has none, and what would call everybody is defused. A reply is split into text and code
//! before it is cut into messages, so that no cut has to guess whether it is inside a fence.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::message::Piece;

/// Discord takes 2000 characters and does not say of what kind. Of UTF-16 units there are never fewer than of any other.
const LIMIT: usize = 2000;
/// Discord refuses a message in which nothing is visible.
const EMPTY: &str = "(empty reply)";
/// Cells are padded up to this width; wider ones stand out of their column.
const COLUMN: usize = 40;
/// The longest mention, emoji or time stamp that is kept whole.
const MENTION_BYTES: usize = 100;
const LANGUAGE_BYTES: usize = 32;

/// At least one piece; each has something visible in it.
pub(super) fn render(text: &str) -> Vec<Piece> {
    let text: String = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
    let mut packer = Packer::default();
    for part in parts(&text) {
        match part {
            Part::Text(text) => packer.text(&defused(&text)),
            Part::Code { language, body } => packer.code(&language, &unfenced(&body)),
        }
    }
    packer.flush();
    if packer.pieces.is_empty() {
        packer.pieces.push(EMPTY.to_owned());
    }
    // Discord shows as text what it cannot read as markup, so nothing plainer is needed.
    packer.pieces.into_iter().map(|body| Piece { plain: body.clone(), body }).collect()
}

#[derive(Debug, PartialEq)]
enum Part {
    /// Lines without the last one's end.
    Text(String),
    Code {
        language: String,
        body: String,
    },
}

fn parts(text: &str) -> Vec<Part> {
    let lines: Vec<&str> = text.lines().collect();
    let mut parts = Vec::new();
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        if let Some(fence) = Fence::open(line) {
            let inside = &lines[at + 1..];
            let count = inside.iter().position(|line| fence.closes(line));
            let body = &inside[..count.unwrap_or(inside.len())];
            at += 1 + body.len() + usize::from(count.is_some());
            let body: Vec<&str> = body.iter().map(|line| fence.unindented(line)).collect();
            parts.push(Part::Code { language: fence.language.to_owned(), body: body.join("\n") });
        } else if let Some(rows) = table(&lines[at..]) {
            // The line between the head and the rest is drawn anew.
            at += rows.len() + 1;
            parts.push(Part::Code { language: String::new(), body: drawn(&rows) });
        } else {
            match parts.last_mut() {
                Some(Part::Text(text)) => {
                    text.push('\n');
                    text.push_str(line);
                }
                Some(Part::Code { .. }) | None => parts.push(Part::Text((*line).to_owned())),
            }
            at += 1;
        }
    }
    parts
}

struct Fence<'a> {
    sign: char,
    length: usize,
    indent: usize,
    language: &'a str,
}

impl<'a> Fence<'a> {
    fn open(line: &'a str) -> Option<Self> {
        let bare = line.trim_start();
        let sign = bare.chars().next().filter(|sign| matches!(sign, '`' | '~'))?;
        let info = bare.trim_start_matches(sign);
        let length = bare.len() - info.len();
        // With another backtick on the line it is code inside of text.
        if length < 3 || (sign == '`' && info.contains('`')) {
            return None;
        }
        let language = info.split_whitespace().next().unwrap_or_default();
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.' | '#');
        let language =
            if language.len() <= LANGUAGE_BYTES && language.chars().all(known) { language } else { Default::default() };
        Some(Self { sign, length, indent: line.len() - bare.len(), language })
    }

    fn closes(&self, line: &str) -> bool {
        let line = line.trim();
        line.len() >= self.length && line.chars().all(|c| c == self.sign)
    }

    /// In a list the fence is indented, and what is in it likewise.
    fn unindented(&self, line: &'a str) -> &'a str {
        let blank = line.len() - line.trim_start_matches([' ', '\t']).len();
        &line[blank.min(self.indent)..]
    }
}

/// The rows of the table that begins here, without the line below its head.
fn table(lines: &[&str]) -> Option<Vec<Vec<String>>> {
    let [head, ruler, ..] = lines else {
        return None;
    };
    let is_ruler = |cell: &String| {
        let dashes = cell.trim_start_matches(':').trim_end_matches(':');
        !dashes.is_empty() && dashes.chars().all(|c| c == '-')
    };
    if !head.contains('|') || !ruler.contains('-') {
        return None;
    }
    let (columns, ruler) = (cells(head), cells(ruler));
    if columns.len() != ruler.len() || !ruler.iter().all(is_ruler) {
        return None;
    }
    let more = lines[2..].iter().take_while(|line| line.contains('|') && Fence::open(line).is_none());
    Some(std::iter::once(columns).chain(more.map(|line| cells(line))).collect())
}

fn cells(line: &str) -> Vec<String> {
    let line = line.trim();
    let line = line.strip_prefix('|').unwrap_or(line);
    let line = line.strip_suffix('|').filter(|line| !line.ends_with('\\')).unwrap_or(line);
    let mut cells = vec![String::new()];
    let mut escaped = false;
    for c in line.chars() {
        let cell = cells.last_mut();
        match (c, cell) {
            ('|', _) if !escaped => cells.push(String::new()),
            (_, Some(cell)) => {
                if c == '|' {
                    cell.pop();
                }
                cell.push(c);
            }
            (_, None) => {}
        }
        escaped = c == '\\' && !escaped;
    }
    cells.into_iter().map(|cell| cell.trim().to_owned()).collect()
}

fn drawn(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0).min(COLUMN)).collect();
    let row = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| {
            let missing = width.saturating_sub(cell.width());
            format!("{cell}{}", " ".repeat(missing))
        });
        padded.collect::<Vec<_>>().join(" | ").trim_end().to_owned()
    };
    let ruler: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut lines: Vec<String> = rows.iter().map(|cells| row(cells)).collect();
    lines.insert(1.min(lines.len()), ruler.join("-+-"));
    lines.join("\n")
}

/// With a space of no width in everything that would call a role or everybody. The request forbids these calls as well;
/// this is for who quotes the message, and for the eye of who reads it.
fn defused(text: &str) -> String {
    text.replace("@everyone", "@\u{200b}everyone").replace("@here", "@\u{200b}here").replace("<@&", "<@\u{200b}&")
}

/// With a space of no width in whatever would end a fence too early.
fn unfenced(code: &str) -> String {
    if code.contains("```") { code.replace("``", "`\u{200b}`") } else { code.to_owned() }
}

fn units(text: &str) -> usize {
    text.encode_utf16().count()
}

/// Whether anything would be seen of it.
fn visible(text: &str) -> bool {
    text.chars().any(|c| {
        let blank = c.is_whitespace()
            || c.is_control()
            || matches!(c, '\u{ad}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{2800}' | '\u{3164}' | '\u{feff}')
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{ffa0}')
            || matches!(c, '\u{fe00}'..='\u{fe0f}' | '\u{e0000}'..='\u{e0fff}');
        !blank
    })
}

/// Fills one message after another.
#[derive(Default)]
struct Packer {
    pieces: Vec<String>,
    /// The message that is not full yet.
    open: String,
}

impl Packer {
    fn room(&self) -> usize {
        // What comes next begins on a line of its own.
        if self.open.is_empty() { LIMIT } else { LIMIT.saturating_sub(units(&self.open) + 1) }
    }

    fn push(&mut self, text: &str) {
        if !self.open.is_empty() {
            self.open.push('\n');
        }
        self.open.push_str(text);
    }

    fn flush(&mut self) {
        let open = std::mem::take(&mut self.open);
        if visible(&open) {
            self.pieces.push(open.trim_end().to_owned());
        }
    }

    fn text(&mut self, text: &str) {
        let mut rest = text;
        loop {
            if self.open.is_empty() {
                rest = trimmed(rest);
            }
            let room = self.room();
            let limit = prefix(rest, room);
            if limit == rest.len() {
                self.push(rest);
                return;
            }
            let (at, natural) = cut(rest, limit);
            if !self.open.is_empty() && (!natural || room < LIMIT / 4) {
                self.flush();
                continue;
            }
            self.push(&rest[..at]);
            self.flush();
            rest = &rest[at..];
        }
    }

    fn code(&mut self, language: &str, body: &str) {
        if !visible(body) {
            return;
        }
        let fenced = |code: &str| format!("```{language}\n{code}\n```");
        let around = units(&fenced(""));
        let length = around + units(body);
        // Whole if it can be, or else from where a good part of it has room.
        if length > self.room() && (length <= LIMIT || self.room() < LIMIT / 2) {
            self.flush();
        }
        let mut rest = body;
        loop {
            let room = self.room().saturating_sub(around);
            let limit = prefix(rest, room);
            if limit == rest.len() {
                if visible(rest) {
                    self.push(&fenced(rest));
                }
                return;
            }
            let end = (limit + 1).min(rest.len());
            let line_end = rest.get(..end).unwrap_or(&rest[..limit]).rfind('\n').filter(|at| *at > 0);
            let at = line_end.unwrap_or_else(|| unbroken(rest, limit));
            if visible(&rest[..at]) {
                self.push(&fenced(&rest[..at]));
                self.flush();
            }
            rest = &rest[at..];
            rest = rest.strip_prefix('\n').unwrap_or(rest);
        }
    }
}

/// Without what a message cannot begin with: blank lines, and the spaces at which it was cut from the one before. The
/// indentation of a line stays.
fn trimmed(text: &str) -> &str {
    let bare = text.trim_start();
    let blank = &text[..text.len() - bare.len()];
    blank
        .rfind('\n')
        .map_or(if blank.starts_with('\t') { text } else { text.trim_start_matches(' ') }, |at| &text[at + 1..])
}

/// The length in bytes of what is not longer than so many UTF-16 units.
fn prefix(text: &str, room: usize) -> usize {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += c.len_utf16();
        if used > room {
            return at;
        }
    }
    text.len()
}

/// What a reader takes for an end, best first: how it looks, and how much of that stays before the cut.
const ENDS: [&[(&str, usize)]; 4] =
    [&[("\n\n", 0)], &[("\n", 0)], &[(". ", 1), ("! ", 1), ("? ", 1), ("。", 3), ("！", 3), ("？", 3)], &[(" ", 0)]];

/// Where to cut a text that has room up to `limit`, and whether a reader would. Not at its beginning.
fn cut(text: &str, limit: usize) -> (usize, bool) {
    let last = |ends: &[(&str, usize)]| {
        let found = ends.iter().filter_map(|(end, kept)| {
            let window = text.get(..limit + end.len() - kept).unwrap_or(&text[..limit]);
            Some(window.rfind(end)? + kept)
        });
        found.max().filter(|at| *at > 0)
    };
    // A message may be half empty for the sake of a better end.
    let good = ENDS.iter().filter_map(|ends| last(ends)).find(|at| *at >= limit / 2);
    let any = || ENDS.iter().filter_map(|ends| last(ends)).max();
    good.or_else(any).map_or_else(|| (unbroken(text, limit), false), |at| (at, true))
}

/// The last place not after `limit` that is neither inside a mention nor between a sign and what belongs to it.
fn unbroken(text: &str, limit: usize) -> usize {
    let mention = text[..limit].rfind('<').filter(|at| {
        let rest = &text[*at..];
        let kind = ["<@", "<#", "<:", "<a:", "<t:", "<id:", "</"].iter().any(|kind| rest.starts_with(kind));
        kind && rest.find('>').is_some_and(|end| end < MENTION_BYTES && at + end >= limit)
    });
    let mut at = mention.unwrap_or(limit);
    for _ in 0..32 {
        let (before, after) = (text[..at].chars().next_back(), text[at..].chars().next());
        let (Some(before), Some(after)) = (before, after) else {
            break;
        };
        let belongs = (after.width() == Some(0) && after != '\u{200b}') || matches!(after, '\u{1f3fb}'..='\u{1f3ff}');
        if !belongs && before != '\u{200d}' {
            break;
        }
        at -= before.len_utf8();
    }
    if at == 0 { limit } else { at }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bodies(text: &str) -> Vec<String> {
        let pieces = render(text);
        for piece in &pieces {
            assert!(piece.body.chars().count() <= 2000 && units(&piece.body) <= 2000, "{} units", units(&piece.body));
            assert!(visible(&piece.body), "blank: {:?}", piece.body);
            assert_eq!(piece.body, piece.plain);
        }
        assert!(!pieces.is_empty());
        pieces.into_iter().map(|piece| piece.body).collect()
    }

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(bodies(text), expected);
    }

    #[test]
    fn what_fits_stays_as_it_is() {
        check(
            "# Title\n\n**bold** `code`\n- one\n  - two\n\n```rust\nlet a = 1;\n```\n\nend",
            &["# Title\n\n**bold** `code`\n- one\n  - two\n\n```rust\nlet a = 1;\n```\n\nend"],
        );
    }

    #[test]
    fn an_empty_reply_says_so() {
        for text in ["", " \n\t ", "\u{200b}", "```\n```", "\0"] {
            check(text, &[EMPTY]);
        }
    }

    #[test]
    fn fences_become_the_kind_that_discord_knows() {
        check("~~~py title=x\na\n~~~\n", &["```py\na\n```"]);
        check("1. so\n   ```sh\n   a\n     b\n   ```", &["1. so\n```sh\na\n  b\n```"]);
        check("````md\n```\na\n```\n````", &["```md\n`\u{200b}``\na\n`\u{200b}``\n```"]);
        check("open\n```\nfor ever", &["open\n```\nfor ever\n```"]);
        check("inline ```code``` stays", &["inline ```code``` stays"]);
    }

    #[test]
    fn tables_become_code() {
        let text = "See:\n\n| a | long head |\n|:--|---:|\n| 1 | x \\| y |\n| 漢字 |\n\nend";
        check(text, &["See:\n\n```\na    | long head\n-----+----------\n1    | x | y\n漢字\n```\n\nend"]);
        check("a | b\nno table", &["a | b\nno table"]);
        check("| a |\n|---|---|\n| b |", &["| a |\n|---|---|\n| b |"]);
    }

    #[test]
    fn nobody_is_called() {
        check(
            "@everyone and @here and <@&123>, but <@5>",
            &["@\u{200b}everyone and @\u{200b}here and <@\u{200b}&123>, but <@5>"],
        );
        check("```\n@everyone\n```", &["```\n@everyone\n```"]);
    }

    #[test]
    fn a_cut_is_where_a_reader_would_cut() {
        let long = |end: &str| format!("{}{end}{}", "a".repeat(1500), "b".repeat(1500));
        for end in ["\n\n", "\n", " "] {
            check(&long(end), &[&"a".repeat(1500), &"b".repeat(1500)]);
        }
        check(&long(". "), &[&format!("{}.", "a".repeat(1500)), &"b".repeat(1500)]);
        check(&long("。"), &[&format!("{}。", "a".repeat(1500)), &"b".repeat(1500)]);
        let text = format!("{}\n\n{}\n{}", "a".repeat(1200), "b".repeat(700), "c".repeat(300));
        check(&text, &[&"a".repeat(1200), &format!("{}\n{}", "b".repeat(700), "c".repeat(300))]);
        let text = format!("{}\n  - {}", "a".repeat(1998), "b".repeat(50));
        check(&text, &[&"a".repeat(1998), &format!("  - {}", "b".repeat(50))]);
    }

    #[test]
    fn a_hard_cut_spares_mentions_and_signs() {
        check(
            &format!("{}<@123456>{}", "a".repeat(1995), "b".repeat(10)),
            &[&"a".repeat(1995), &format!("<@123456>{}", "b".repeat(10))],
        );
        check(&format!("{}👩🏽‍🚀x", "a".repeat(1996)), &[&"a".repeat(1996), "👩🏽‍🚀x"]);
        check(&"😀".repeat(1001), &[&"😀".repeat(1000), "😀"]);
    }

    #[test]
    fn code_goes_on_in_the_next_piece() {
        let line = format!("{}\n", "x".repeat(99));
        let pieces = bodies(&format!("Look:\n```rust\n{}```\nDone.", line.repeat(45)));
        assert_eq!(pieces.len(), 3);
        assert!(pieces[0].starts_with("Look:\n```rust\nx"), "{}", pieces[0]);
        for piece in &pieces[..2] {
            assert!(piece.ends_with("x\n```"));
        }
        assert!(pieces[1].starts_with("```rust\nx") && pieces[2].ends_with("x\n```\nDone."));
        let code = "y".repeat(1900);
        check(&format!("{}\n```\n{code}\n```", "a".repeat(300)), &[&"a".repeat(300), &format!("```\n{code}\n```")]);
    }

    #[test]
    fn a_long_reply_is_few_pieces() {
        let text = "A sentence of some words that goes on. ".repeat(260);
        assert!(text.len() > 10_000);
        assert_eq!(bodies(&text).len(), 6);
    }

    proptest! {
        #[test]
        fn no_visible_text_is_lost(parts in prop::collection::vec(part(), 0..40)) {
            let text = parts.concat();
            // Languages of the test's fences have no letters, so that these are all that matters.
            let letters = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
            let joined = bodies(&text).join("\n");
            if letters(&text).is_empty() {
                return Ok(());
            }
            prop_assert_eq!(letters(&joined), letters(&text));
        }

        #[test]
        fn anything_can_be_rendered(text in any::<String>()) {
            bodies(&text);
        }
    }

    fn part() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z]{1,12} ",
            "[a-zé漢😀]{1,30}[.!?。]? ",
            "[ \n]{1,4}",
            "[a-z]{900,2500}",
            "( {0,9}[a-z]{1,200}\n){1,60}",
            "\n ?(```|~~~|````)(\\+\\+)?\n",
            "\n```\\+\\+\n([a-z ]{0,90}\n){0,60}```\n",
            "\n\\| [a-z]{1,50} \\| b \\|\n\\|---\\|---\\|\n(\\| [a-z]{1,9} \\| [a-z]{0,9} \\|\n){0,80}",
            "(<@!?[0-9]{17}>|<@&[0-9]{17}>|@everyone|<a:b:[0-9]{18}>)",
            "[`*_|\\\\<>#\u{200b}\u{301}-]{1,4}",
        ]
    }
}
