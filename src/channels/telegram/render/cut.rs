//! Where a piece of a document ends: after a paragraph, else a line, else a sentence, else a word, else anywhere.
//!
//! Each is looked for in the second half of what fits, so that no piece is tiny for the sake of a better end. A blank line
//! in a block of code is a line's end.

use super::document::Document;

/// The end of the piece that begins at `start` and holds at most `limit` UTF-16 units; at least one character.
pub(super) fn end(document: &Document, start: usize, limit: usize) -> usize {
    let text = &document.text;
    let mut units = 0;
    let furthest = text[start..].char_indices().find(|(at, c)| {
        units += c.len_utf16();
        units > limit && *at > 0
    });
    let Some((length, _)) = furthest else { return text.len() };
    let furthest = start + length;
    let earliest = text.floor_char_boundary(start + length / 2).max(start + 1);

    let (mut paragraph, mut line, mut line_of_code, mut sentence, mut word) = (None, None, None, None, None);
    let mut before = ' ';
    for (at, c) in text[start..].char_indices().map(|(at, c)| (start + at, c)).take_while(|(at, _)| *at <= furthest) {
        if at >= earliest {
            match c {
                '\n' if is_code(document, at) => line_of_code = Some(at),
                '\n' if text[at..].starts_with("\n\n") => paragraph = Some(at),
                // The second of two.
                '\n' if before == '\n' => {}
                '\n' => line = Some(at),
                c if c.is_whitespace() && ends_sentence(before) => sentence = Some(at),
                c if c.is_whitespace() => word = Some(at),
                _ if matches!(before, '。' | '！' | '？') => sentence = Some(at),
                _ => {}
            }
        }
        before = c;
    }
    paragraph.or(line).or(line_of_code).or(sentence).or(word).unwrap_or(furthest)
}

fn ends_sentence(c: char) -> bool {
    matches!(c, '.' | '!' | '?' | '…' | '。' | '！' | '？')
}

/// Where the next piece begins: behind white space, but code keeps its own.
pub(super) fn start_after(document: &Document, end: usize) -> usize {
    let rest = &document.text[end..];
    if is_code(document, end) {
        return end + usize::from(rest.starts_with('\n'));
    }
    let start = document.text.len() - rest.trim_start().len();
    let next = document.code.get(document.code.partition_point(|code| code.start < end));
    next.map_or(start, |code| start.min(code.start))
}

/// Whether a cut there is one through a block of code.
fn is_code(document: &Document, at: usize) -> bool {
    let next = document.code.partition_point(|code| code.start < at);
    next.checked_sub(1).and_then(|last| document.code.get(last)).is_some_and(|code| at < code.end)
}
