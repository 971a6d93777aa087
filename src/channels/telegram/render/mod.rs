//! A reply, Markdown as models write it, to what Telegram takes in one call each: HTML of few tags, pure.
//!
//! [`document`] makes a text and marks over it, as Telegram itself sees a message; [`cut`] says where a piece of it ends;
//! here marks become tags. Since a tag is only ever made of a mark that was clipped to its piece, no piece can be invalid,
//! and what is open at the end of one is opened again in the next.

mod cut;
mod document;
mod table;

use std::ops::Range;

use crate::message::Piece;
use document::{Document, Kind, Mark};

/// The longest text of a message, in UTF-16 units and without its tags.
const MAX_UNITS: usize = 4096;
/// Telegram refuses longer ones, tags included, at 32 KiB.
const MAX_BODY_BYTES: usize = 30_000;
/// Telegram forgets the marks beyond these.
const MAX_MARKS: usize = 100;
/// Every reply is answered with something.
const EMPTY: &str = "(empty reply)";

/// At least one piece.
pub fn pieces(markdown: &str) -> Vec<Piece> {
    let document = Document::from_markdown(markdown);
    let mut pieces = Vec::new();
    let mut start = 0;
    while start < document.text.len() {
        let (piece, end) = piece(&document, start);
        if piece.plain.chars().any(is_visible) {
            pieces.push(piece);
        }
        start = cut::start_after(&document, end);
    }
    if pieces.is_empty() {
        pieces.push(Piece { body: EMPTY.into(), plain: EMPTY.into() });
    }
    pieces
}

/// The piece that begins there, and its end.
fn piece(document: &Document, start: usize) -> (Piece, usize) {
    let mut limit = MAX_UNITS;
    loop {
        let end = cut::end(document, start, limit);
        let plain = document.text[start..end].trim_end();
        let range = start..start + plain.len();
        let marks = document.marks_in(&range);
        let body = html(&document.text, &range, &marks);
        if limit == 1 || (marks.len() <= MAX_MARKS && body.len() <= MAX_BODY_BYTES) {
            return (Piece { body, plain: plain.to_owned() }, end);
        }
        limit /= 2;
    }
}

/// Telegram takes a text without visible characters for an empty one, and refuses it.
fn is_visible(c: char) -> bool {
    let blank = c.is_whitespace()
        || c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        )
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202f}' | '\u{2060}'..='\u{206f}' | '\u{2800}')
        || matches!(c, '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffc}')
        || c >= '\u{e0000}';
    !blank
}

/// `marks` are nested and in order, and lie within `range`.
fn html(text: &str, range: &Range<usize>, marks: &[(&Mark, Range<usize>)]) -> String {
    let mut html = String::with_capacity(range.len() * 2);
    let mut open: Vec<(&Kind, usize)> = Vec::new();
    let mut at = range.start;
    for (mark, over) in marks {
        while let Some((kind, end)) = open.pop_if(|(_, end)| *end <= over.start) {
            escape(&text[at..end], &mut html);
            close(kind, &mut html);
            at = end;
        }
        escape(&text[at..over.start], &mut html);
        at = over.start;
        begin(&mark.kind, &mut html);
        open.push((&mark.kind, over.end));
    }
    while let Some((kind, end)) = open.pop() {
        escape(&text[at..end], &mut html);
        close(kind, &mut html);
        at = end;
    }
    escape(&text[at..range.end], &mut html);
    html
}

fn begin(kind: &Kind, html: &mut String) {
    match kind {
        Kind::Bold => html.push_str("<b>"),
        Kind::Italic => html.push_str("<i>"),
        Kind::Strikethrough => html.push_str("<s>"),
        Kind::Code => html.push_str("<code>"),
        Kind::Quote => html.push_str("<blockquote>"),
        Kind::Pre { language: None } => html.push_str("<pre>"),
        Kind::Pre { language: Some(language) } => {
            html.push_str("<pre><code class=\"language-");
            escape(language, html);
            html.push_str("\">");
        }
        Kind::Link { url } => {
            html.push_str("<a href=\"");
            escape(url, html);
            html.push_str("\">");
        }
    }
}

fn close(kind: &Kind, html: &mut String) {
    html.push_str(match kind {
        Kind::Bold => "</b>",
        Kind::Italic => "</i>",
        Kind::Strikethrough => "</s>",
        Kind::Code => "</code>",
        Kind::Quote => "</blockquote>",
        Kind::Pre { language: None } => "</pre>",
        Kind::Pre { language: Some(_) } => "</code></pre>",
        Kind::Link { .. } => "</a>",
    });
}

fn escape(text: &str, html: &mut String) {
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            c => html.push(c),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Text with the signs that mean something in Markdown and HTML.
    pub(in super::super) fn markdown() -> impl Strategy<Value = String> {
        let signs = [
            "**",
            "*",
            "_",
            "~~",
            "`",
            "```",
            "```rust\n",
            "\n",
            "\n\n",
            "> ",
            "- ",
            "1. ",
            "  ",
            "# ",
            "|",
            "|-|",
            "[",
            "](",
            ")",
            "![",
            "<",
            ">",
            "&",
            "&lt;",
            "&#0;",
            "&#1;",
            "\"",
            "'",
            "<b>",
            "</b>",
            "<br>",
            "\\",
            "😀",
            "ü",
            "。",
            "\u{200b}",
            "\u{0}",
            "\r\n",
            "\r",
            "\t",
            "---\n",
            "- [x] ",
            "<!--",
            "-->",
            "|a|b|\n|-|-|\n|",
            "[a](",
            "https://x.org/?a=\"<&",
            "tg://user?id=1",
        ];
        let part = prop_oneof![
            6 => proptest::sample::select(signs.to_vec()).prop_map(str::to_owned),
            3 => "[a-z ]{1,8}",
            1 => any::<String>(),
            1 => (1usize..3000).prop_map(|times| "wörd. ".repeat(times)),
        ];
        proptest::collection::vec(part, 0..60).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn nothing_is_lost_between_pieces(text in markdown()) {
            let visible = |text: &str| text.chars().filter(|c| is_visible(*c)).collect::<String>();
            let whole = visible(&Document::from_markdown(&text).text);
            let pieces = pieces(&text);
            let together: String = pieces.iter().map(|piece| visible(&piece.plain)).collect();
            if whole.is_empty() {
                prop_assert_eq!(pieces, [Piece { body: EMPTY.into(), plain: EMPTY.into() }]);
            } else {
                prop_assert_eq!(together, whole);
            }
        }
    }

    #[track_caller]
    fn check(markdown: &str, body: &str) {
        let pieces = pieces(markdown);
        assert_eq!(pieces.iter().map(|piece| piece.body.as_str()).collect::<Vec<_>>(), [body], "{markdown:?}");
    }

    fn units(text: &str) -> usize {
        text.encode_utf16().count()
    }

    #[test]
    fn text_is_escaped_and_marked() {
        check("1 < 2 & \"x\" > y", "1 &lt; 2 &amp; &quot;x&quot; &gt; y");
        check("a **b *c* d** _e_ ~~f~~ `g<h`", "a <b>b <i>c</i> d</b> <i>e</i> <s>f</s> <code>g&lt;h</code>");
        check("***both***", "<i><b>both</b></i>");
        check("**a **b** c**", "<b>a b c</b>");
        check("snake_case_name and 2 * 3 * 4", "snake_case_name and 2 * 3 * 4");
        check("one\ntwo  \nthree\n\nfour", "one\ntwo\nthree\n\nfour");
        check("a <u>b</u> &amp; &lt; <br> c", "a &lt;u&gt;b&lt;/u&gt; &amp; &lt; \n c");
        check("<div>\nx\n</div>\n\ny", "&lt;div&gt;\nx\n&lt;/div&gt;\n\ny");
        check("# One **two**\ntext\n\n---\nend", "<b>One two</b>\n\ntext\n\n──────────\n\nend");
    }

    #[test]
    fn links_go_where_a_browser_or_telegram_goes() {
        check("[a](https://x.org/?a=1&b=\"2\")", "<a href=\"https://x.org/?a=1&amp;b=&quot;2&quot;\">a</a>");
        check("[a **b**](HTTP://x.org)", "<a href=\"HTTP://x.org\">a <b>b</b></a>");
        check("[`a`](tg://user?id=1)", "<a href=\"tg://user?id=1\">a</a>");
        check("<https://x.org> <a@b.org>", "<a href=\"https://x.org\">https://x.org</a> a@b.org");
        check("[a](javascript:x) [b](c.md) [d](ftp://e)", "a b d");
        check("![pic](https://x.org/p.png)", "<a href=\"https://x.org/p.png\">pic</a>");
        check("![](https://x.org/p.png)", "<a href=\"https://x.org/p.png\">https://x.org/p.png</a>");
        check("[![pic](https://p)](https://x)", "<a href=\"https://x\">pic</a>");
        check(&format!("[a](https://x.org/{})", "y".repeat(3000)), "a");
    }

    #[test]
    fn code_keeps_its_language_and_its_lines() {
        check(
            "see\n```rust,ignore\nfn x() {\n\n    y();\n}\n```\nend",
            "see\n\n<pre><code class=\"language-rust\">fn x() {\n\n    y();\n}</code></pre>\n\nend",
        );
        check("```\n  a < b\n```", "<pre>  a &lt; b</pre>");
        check("```\"><b>\nx\n```", "<pre><code class=\"language-&quot;&gt;&lt;b&gt;\">x</code></pre>");
        check("```py\nnever closed", "<pre><code class=\"language-py\">never closed</code></pre>");
    }

    #[test]
    fn lists_quotes_and_tables_stay_readable() {
        check("x\n- a\n- b\n  - c\n    more\n- d\n\ny", "x\n\n• a\n• b\n  • c\n    more\n• d\n\ny");
        check("3. a\n4. b\n\n   second\n5. c", "3. a\n4. b\n  second\n5. c");
        check("- [x] done\n- [ ] open", "• ☑ done\n• ☐ open");
        check("- a\n  ```sh\n  ls\n  ```\n- b", "• a\n<pre><code class=\"language-sh\">ls</code></pre>\n• b");
        check("> a\n> b\n>\n> > c\n\nd", "<blockquote>a\nb\n\nc</blockquote>\n\nd");
        check(
            "| a | long |\n|---|:--:|\n| x | **y** |\n| 長い | [z](https://z) |\n| |",
            "<pre>a    | long\n-----+--------------\nx    | y\n長い | z (https://z)</pre>",
        );
    }

    #[test]
    fn nothing_is_said_so() {
        for blank in ["", " \n", "\u{200b}", "```\n```", "`\u{a0}`"] {
            check(blank, EMPTY);
        }
    }

    #[test]
    fn control_characters_do_not_reach_telegram() {
        check("a\u{7}b &#1; \r\nd\re", "ab \nd\ne");
    }

    /// Pieces that are not too large.
    #[track_caller]
    fn cut(markdown: &str) -> Vec<Piece> {
        let pieces = pieces(markdown);
        for piece in &pieces {
            assert!(units(&piece.plain) <= MAX_UNITS && piece.body.len() <= MAX_BODY_BYTES, "{piece:?}");
        }
        pieces
    }

    #[test]
    fn long_replies_are_cut_where_it_hurts_least() {
        let sentence = "All work and no play makes Jack a dull boy. ";
        let paragraph = sentence.repeat(30);
        let pieces_of = |text: &str| cut(text).into_iter().map(|piece| piece.plain).collect::<Vec<_>>();
        let paragraphs = pieces_of(&[paragraph.trim_end(); 6].join("\n\n"));
        assert_eq!(paragraphs, [[paragraph.trim_end(); 3].join("\n\n"), [paragraph.trim_end(); 3].join("\n\n")]);
        let lines = pieces_of(&[paragraph.trim_end(); 4].join("\n"));
        assert_eq!(lines, [[paragraph.trim_end(); 3].join("\n"), paragraph.trim_end().to_owned()]);
        for piece in pieces_of(&sentence.repeat(300)) {
            assert!(piece.ends_with("boy."), "{piece}");
        }
        for piece in pieces_of(&"word ".repeat(3000)) {
            assert!(piece.starts_with("word") && piece.ends_with("word"), "{piece}");
        }
        let faces = pieces_of(&"😀".repeat(5000));
        assert_eq!(faces.iter().map(|piece| units(piece)).collect::<Vec<_>>(), [4096, 4096, 1808]);
    }

    #[test]
    fn what_is_open_at_the_end_of_a_piece_is_opened_again() {
        let lines: Vec<_> = (0..600).map(|line| format!("    let x{line} = {line};")).collect();
        let pieces =
            cut(&format!("Look:\n\n```rust\n{}\n```\n\n**{}**", lines.join("\n"), "bold ".repeat(1000).trim_end()));
        let (code, bold): (Vec<_>, Vec<_>) = pieces.iter().partition(|piece| piece.plain.contains("let"));
        assert!(code.len() >= 3 && !bold.is_empty(), "{}", pieces.len());
        let mut shown = Vec::new();
        for piece in &code {
            let from = piece.body.find("<pre><code class=\"language-rust\">").unwrap();
            let within = &piece.body[from + 33..piece.body.find("</code></pre>").unwrap()];
            shown.extend(within.lines().map(str::to_owned));
        }
        assert_eq!(shown, lines);
        assert!(
            pieces.last().unwrap().body.starts_with("<b>bold") && pieces.last().unwrap().body.ends_with("bold</b>")
        );
    }

    #[test]
    fn marks_and_their_size_are_bounded_too() {
        assert!(cut(&"`a` ".repeat(1000)).len() >= 10);
        let link = format!("[a](https://x.org/{}) ", "&".repeat(1000));
        assert!(cut(&link.repeat(50)).len() >= 10);
        let pieces = cut(&format!("|{}\n|{}\n{}", "a|".repeat(300), "-|".repeat(300), "|x\n".repeat(300)));
        assert!(pieces.len() < 10, "{}", pieces.len());
    }

    #[test]
    fn nesting_costs_no_more_than_it_shows() {
        let lists = format!("{}x\n{}", "- ".repeat(2_000), "y\n".repeat(2_000));
        let quotes = format!("{}x\n{}", "> ".repeat(2_000), "y\n".repeat(2_000));
        for text in [lists, quotes, "*a **b ".repeat(10_000), "[".repeat(20_000), "`".repeat(20_000)] {
            let size: usize = cut(&text).iter().map(|piece| piece.body.len()).sum();
            assert!(size < 20 * text.len(), "{size}");
        }
    }
}
