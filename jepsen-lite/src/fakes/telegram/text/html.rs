//! `parse_mode` HTML.

use super::{Entity, EntityKind, Formatted, link};

const TAGS: [&str; 17] = [
    "a",
    "b",
    "strong",
    "i",
    "em",
    "s",
    "strike",
    "del",
    "u",
    "ins",
    "tg-spoiler",
    "tg-emoji",
    "span",
    "pre",
    "code",
    "blockquote",
    "tg-time",
];

/// A tag that was opened.
struct Open {
    tag: String,
    argument: String,
    offset: usize,
    byte: usize,
}

/// Reads bytes; past the end there are zeros, as TDLib's strings have.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn at(&self, i: usize) -> u8 {
        self.0.get(i).copied().unwrap_or(0)
    }

    /// A blank, or the end: TDLib's `is_space` counts both.
    fn blank(&self, i: usize) -> bool {
        matches!(self.at(i), b' ' | b'\t' | b'\r' | b'\n' | 0 | 0x0b)
    }

    fn skip_blanks(&self, mut i: usize) -> usize {
        while i < self.0.len() && self.blank(i) {
            i += 1;
        }
        i
    }

    fn lower(&self, from: usize, to: usize) -> String {
        String::from_utf8_lossy(&self.0[from..to.min(self.0.len())]).to_lowercase()
    }
}

pub(super) fn parse(text: &str) -> Result<Formatted, String> {
    let source = Source(text.as_bytes());
    let mut out = String::new();
    let mut units = 0;
    let mut open: Vec<Open> = Vec::new();
    let mut entities = Vec::new();
    let mut i = 0;
    while i < text.len() {
        let Some(c) = text[i..].chars().next() else { break };
        if let Some((decoded, next)) = (c == '&').then(|| decode(&source, i)).flatten() {
            out.push(decoded);
            units += decoded.len_utf16();
            i = next;
        } else if c != '<' {
            out.push(c);
            units += c.len_utf16();
            i += c.len_utf8();
        } else if source.at(i + 1) == b'/' {
            i = close(&source, i, &mut open, &mut entities, &out, units)?;
        } else {
            let (tag, argument, next) = start_tag(&source, i)?;
            open.push(Open { tag, argument, offset: units, byte: out.len() });
            i = next;
        }
    }
    match open.last() {
        Some(open) => Err(format!("Can't find end tag corresponding to start tag \"{}\"", open.tag)),
        None => Ok(Formatted { text: out, entities }),
    }
}

/// A start tag at `begin`: its name, the one attribute of it that means something, and where it ends.
fn start_tag(source: &Source, begin: usize) -> Result<(String, String, usize), String> {
    let mut i = begin + 1;
    while !source.blank(i) && source.at(i) != b'>' {
        i += 1;
    }
    if source.at(i) == 0 {
        return Err(format!("Unclosed start tag at byte offset {begin}"));
    }
    let tag = source.lower(begin + 1, i);
    if !TAGS.contains(&tag.as_str()) {
        return Err(format!("Unsupported start tag \"{tag}\" at byte offset {begin}"));
    }
    let mut argument = String::new();
    while source.at(i) != b'>' {
        i = source.skip_blanks(i);
        if source.at(i) == b'>' {
            break;
        }
        let name_begin = i;
        while !source.blank(i) && !b"=>/\"'".contains(&source.at(i)) {
            i += 1;
        }
        let name = source.lower(name_begin, i);
        if name.is_empty() {
            return Err(format!("Empty attribute name in the tag \"{tag}\" at byte offset {begin}"));
        }
        i = source.skip_blanks(i);
        if source.at(i) != b'=' {
            if source.at(i) == 0 {
                return Err(format!("Unclosed start tag \"{tag}\" at byte offset {begin}"));
            }
            if tag == "blockquote" && name == "expandable" {
                argument = "1".into();
            }
            continue;
        }
        i = source.skip_blanks(i + 1);
        if source.at(i) == 0 {
            return Err(format!("Unclosed start tag \"{tag}\" at byte offset {begin}"));
        }
        let (value, next) = attribute_value(source, i)?;
        i = next;
        if source.at(i) == 0 {
            return Err(format!("Unclosed start tag at byte offset {begin}"));
        }
        match (tag.as_str(), name.as_str()) {
            ("a", "href") | ("tg-emoji", "emoji-id") => argument = value,
            ("code", "class") => argument = value.strip_prefix("language-").map(str::to_owned).unwrap_or(argument),
            ("span", "class") => argument = value.strip_prefix("tg-").map(str::to_owned).unwrap_or(argument),
            ("blockquote", "expandable") => argument = "1".into(),
            _ => {}
        }
    }
    if tag == "span" && argument != "spoiler" {
        return Err(format!("Tag \"span\" must have class \"tg-spoiler\" at byte offset {begin}"));
    }
    Ok((tag, argument, i + 1))
}

fn attribute_value(source: &Source, begin: usize) -> Result<(String, usize), String> {
    let quote = source.at(begin);
    let mut i = begin;
    if ![b'\'', b'"'].contains(&quote) {
        while source.at(i).is_ascii_alphanumeric() || [b'.', b'-'].contains(&source.at(i)) {
            i += 1;
        }
        if !source.blank(i) && source.at(i) != b'>' {
            return Err(format!("Unexpected end of name token at byte offset {begin}"));
        }
        return Ok((source.lower(begin, i), i));
    }
    i += 1;
    let mut value = Vec::new();
    while source.at(i) != quote && source.at(i) != 0 {
        if let Some((decoded, next)) = (source.at(i) == b'&').then(|| decode(source, i)).flatten() {
            value.extend(decoded.to_string().into_bytes());
            i = next;
        } else {
            value.push(source.at(i));
            i += 1;
        }
    }
    let end = if source.at(i) == quote { i + 1 } else { i };
    Ok((String::from_utf8_lossy(&value).into_owned(), end))
}

/// An end tag at `begin`; says where it ends.
fn close(
    source: &Source,
    begin: usize,
    open: &mut Vec<Open>,
    entities: &mut Vec<Entity>,
    out: &str,
    units: usize,
) -> Result<usize, String> {
    let Some(Open { tag, argument, offset, byte }) = open.pop() else {
        return Err(format!("Unexpected end tag at byte offset {begin}"));
    };
    let mut i = begin + 2;
    while !source.blank(i) && source.at(i) != b'>' {
        i += 1;
    }
    let name = source.lower(begin + 2, i);
    i = source.skip_blanks(i);
    if source.at(i) != b'>' {
        return Err(format!("Unclosed end tag at byte offset {begin}"));
    }
    if !name.is_empty() && name != tag {
        return Err(format!("Unmatched end tag at byte offset {begin}, expected \"</{tag}>\", found \"</{name}>\""));
    }
    if units > offset {
        let length = units - offset;
        let over_the_same = |entity: &Entity| entity.offset == offset && entity.length == length;
        let kind = match tag.as_str() {
            "b" | "strong" => Some(EntityKind::Bold),
            "i" | "em" => Some(EntityKind::Italic),
            "s" | "strike" | "del" => Some(EntityKind::Strikethrough),
            "u" | "ins" => Some(EntityKind::Underline),
            "tg-spoiler" | "span" => Some(EntityKind::Spoiler),
            "tg-emoji" => match argument.parse::<i64>() {
                Ok(id) if id != 0 => Some(EntityKind::CustomEmoji { id: argument }),
                Ok(_) | Err(_) => return Err("Invalid custom emoji identifier specified".into()),
            },
            "a" => link(if argument.is_empty() { &out[byte..] } else { &argument }),
            // A language is known only where `pre` and `code` are over the same text.
            "pre" => match entities.last_mut() {
                Some(entity) if over_the_same(entity) && matches!(entity.kind, EntityKind::Pre { .. }) => None,
                _ => Some(EntityKind::Pre { language: None }),
            },
            "code" if argument.is_empty() => Some(EntityKind::Code),
            "code" if open.last().is_some_and(|outer| outer.tag == "pre" && outer.offset == offset) => {
                Some(EntityKind::Pre { language: Some(argument) })
            }
            "code" => match entities.last_mut() {
                Some(entity) if over_the_same(entity) && matches!(entity.kind, EntityKind::Pre { .. }) => {
                    entity.kind = EntityKind::Pre { language: Some(argument) };
                    None
                }
                _ => Some(EntityKind::Code),
            },
            "blockquote" if argument.is_empty() => Some(EntityKind::Blockquote),
            "blockquote" => Some(EntityKind::ExpandableBlockquote),
            // Times are not modelled: their text is plain.
            _ => None,
        };
        entities.extend(kind.map(|kind| Entity { kind, offset, length }));
    }
    Ok(i + 1)
}

/// A character reference at `begin`, and where it ends; `None`: it is none, and stands for itself.
fn decode(source: &Source, begin: usize) -> Option<(char, usize)> {
    let mut end = begin + 1;
    let code = if source.at(end) == b'#' {
        let radix = if source.at(end + 1) == b'x' { 16 } else { 10 };
        end += if radix == 16 { 2 } else { 1 };
        let digits = end;
        while char::from(source.at(end)).is_digit(radix) && end - begin < 10 {
            end += 1;
        }
        let digits = std::str::from_utf8(source.0.get(digits..end)?).ok()?;
        u32::from_str_radix(digits, radix)
            .ok()
            .filter(|code| *code != 0 && end - begin < 10)
            .and_then(char::from_u32)?
    } else {
        while source.at(end).is_ascii_alphabetic() {
            end += 1;
        }
        match source.0.get(begin + 1..end)? {
            b"lt" => '<',
            b"gt" => '>',
            b"amp" => '&',
            b"quot" => '"',
            _ => return None,
        }
    };
    Some((code, if source.at(end) == b';' { end + 1 } else { end }))
}
