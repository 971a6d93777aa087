//! `parse_mode` MarkdownV2.

use super::{Entity, EntityKind, Formatted, link};

const RESERVED: &[u8] = b"_*[]()~`>#+-=|{}.!\n";

/// What may be open; the names are the ones that Telegram's errors use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bold,
    Italic,
    Underline,
    Strikethrough,
    Spoiler,
    Code,
    Pre,
    PreCode,
    TextUrl,
    CustomEmoji,
    BlockQuote,
}

struct Open {
    kind: Kind,
    language: String,
    offset: usize,
    /// Where it begins in what was sent.
    byte: usize,
    /// Where its text begins in what comes out.
    out: usize,
}

struct Parser<'a> {
    source: &'a [u8],
    i: usize,
    out: Vec<u8>,
    units: usize,
    open: Vec<Open>,
    entities: Vec<Entity>,
    in_quote: bool,
    may_quote: bool,
}

pub(super) fn parse(text: &str) -> Result<Formatted, String> {
    let mut parser = Parser {
        source: text.as_bytes(),
        i: 0,
        out: Vec::new(),
        units: 0,
        open: Vec::new(),
        entities: Vec::new(),
        in_quote: false,
        may_quote: true,
    };
    while parser.i < text.len() {
        parser.step()?;
        parser.i += 1;
    }
    parser.finish()
}

impl Parser<'_> {
    /// A byte; past the end there are zeros, as TDLib's strings have.
    fn at(&self, i: usize) -> u8 {
        self.source.get(i).copied().unwrap_or(0)
    }

    /// Leaves `i` at the last byte that was taken.
    fn step(&mut self) -> Result<(), String> {
        let c = self.at(self.i);
        if c == b'\\' && (1..=126).contains(&self.at(self.i + 1)) {
            self.i += 1;
            let escaped = self.at(self.i);
            self.units += 1;
            self.out.push(escaped);
            if escaped != b'\r' {
                self.may_quote = escaped == b'\n';
            }
            return Ok(());
        }
        let in_code = matches!(self.open.last(), Some(Open { kind: Kind::Code | Kind::Pre | Kind::PreCode, .. }));
        let reserved: &[u8] = if in_code { b"`" } else { RESERVED };
        if !reserved.contains(&c) {
            // The first byte of a character counts it; of four bytes come two units.
            if c & 0xc0 != 0x80 {
                self.units += 1 + usize::from(c >= 0xf0);
                if c != b'\r' {
                    self.may_quote = false;
                }
            }
            self.out.push(c);
            return Ok(());
        }
        if self.ends(c) { self.end(c) } else { self.begin(c) }
    }

    fn ends(&self, c: u8) -> bool {
        let Some(open) = self.open.last() else { return false };
        let (next, after) = (self.at(self.i + 1), self.at(self.i + 2));
        if self.in_quote && c == b'\n' && next != b'>' {
            return true;
        }
        match open.kind {
            Kind::Bold => c == b'*',
            Kind::Italic => c == b'_' && next != b'_',
            Kind::Code => c == b'`',
            Kind::Pre | Kind::PreCode => c == b'`' && next == b'`' && after == b'`',
            Kind::TextUrl | Kind::CustomEmoji => c == b']',
            Kind::Underline => c == b'_' && next == b'_',
            Kind::Strikethrough => c == b'~',
            Kind::Spoiler => c == b'|' && next == b'|',
            Kind::BlockQuote => false,
        }
    }

    fn begin(&mut self, c: u8) -> Result<(), String> {
        let byte = self.i;
        let next = self.at(self.i + 1);
        let mut language = String::new();
        let kind = match c {
            b'_' if next == b'_' => {
                self.i += 1;
                Kind::Underline
            }
            b'_' => Kind::Italic,
            b'*' => Kind::Bold,
            b'~' => Kind::Strikethrough,
            b'|' if next == b'|' => {
                self.i += 1;
                Kind::Spoiler
            }
            b'[' => Kind::TextUrl,
            b'!' if next == b'[' => {
                self.i += 1;
                Kind::CustomEmoji
            }
            b'`' if next == b'`' && self.at(self.i + 2) == b'`' => self.begin_pre(&mut language),
            b'`' => Kind::Code,
            b'\n' => {
                self.units += 1;
                self.out.push(b'\n');
                self.may_quote = true;
                return Ok(());
            }
            b'>' if self.may_quote && self.in_quote => return Ok(()),
            b'>' if self.may_quote => {
                self.in_quote = true;
                Kind::BlockQuote
            }
            _ => {
                let c = char::from(c);
                return Err(format!("Character '{c}' is reserved and must be escaped with the preceding '\\'"));
            }
        };
        self.open.push(Open { kind, language, offset: self.units, byte, out: self.out.len() });
        Ok(())
    }

    /// Three back quotes, perhaps a language, perhaps a line break.
    fn begin_pre(&mut self, language: &mut String) -> Kind {
        self.i += 3;
        let mut kind = Kind::Pre;
        let mut end = self.i;
        while !matches!(self.at(end), b' ' | b'\t' | b'\r' | b'\n' | 0 | 0x0b | b'`') {
            end += 1;
        }
        if self.i != end && end < self.source.len() && self.at(end) != b'`' {
            kind = Kind::PreCode;
            *language = String::from_utf8_lossy(&self.source[self.i..end]).into_owned();
            self.i = end;
        }
        let breaks = |c: u8| c == b'\n' || c == b'\r';
        let (first, second) = (self.at(self.i), self.at(self.i + 1));
        if breaks(first) {
            self.i += if breaks(second) && first != second { 2 } else { 1 };
        }
        self.i -= 1;
        kind
    }

    fn end(&mut self, c: u8) -> Result<(), String> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        if c == b'\n' && open.kind != Kind::BlockQuote {
            // A spoiler that was opened just before the line's end makes the quote around it expandable.
            let bare = open.byte + 2 == self.i || (open.byte + 3 == self.i && self.out.last() == Some(&b'\r'));
            let quote = self.open.pop();
            return match quote {
                Some(quote) if open.kind == Kind::Spoiler && bare && quote.kind == Kind::BlockQuote => {
                    self.end_quote(&quote, EntityKind::ExpandableBlockquote);
                    Ok(())
                }
                Some(quote) if open.kind == Kind::Spoiler && bare => Err(no_end(&quote)),
                Some(_) | None => Err(no_end(&open)),
            };
        }
        let empty = self.units == open.offset;
        let kind = match open.kind {
            Kind::Bold => Some(EntityKind::Bold),
            Kind::Italic => Some(EntityKind::Italic),
            Kind::Strikethrough => Some(EntityKind::Strikethrough),
            Kind::Code => Some(EntityKind::Code),
            Kind::Underline => {
                self.i += 1;
                Some(EntityKind::Underline)
            }
            Kind::Spoiler => {
                self.i += 1;
                Some(EntityKind::Spoiler)
            }
            Kind::Pre => {
                self.i += 2;
                Some(EntityKind::Pre { language: None })
            }
            Kind::PreCode => {
                self.i += 2;
                Some(EntityKind::Pre { language: Some(open.language) })
            }
            Kind::TextUrl if self.at(self.i + 1) == b'(' => link(&self.url()?),
            Kind::TextUrl => link(&String::from_utf8_lossy(&self.out[open.out..])),
            Kind::CustomEmoji => Some(self.custom_emoji()?),
            Kind::BlockQuote => {
                self.end_quote(&open, EntityKind::Blockquote);
                return Ok(());
            }
        };
        if let Some(kind) = kind.filter(|_| !empty) {
            self.entities.push(Entity { kind, offset: open.offset, length: self.units - open.offset });
        }
        Ok(())
    }

    /// The line break that ends a quote belongs to it.
    fn end_quote(&mut self, quote: &Open, kind: EntityKind) {
        self.in_quote = false;
        self.may_quote = true;
        self.out.push(b'\n');
        self.units += 1;
        self.entities.push(Entity { kind, offset: quote.offset, length: self.units - quote.offset });
    }

    fn custom_emoji(&mut self) -> Result<EntityKind, String> {
        if self.at(self.i + 1) != b'(' {
            return Err("The entity must contain a tg://emoji or tg://time URL".into());
        }
        let url = self.url()?;
        let id = url.strip_prefix("tg://emoji?id=").filter(|id| id.parse::<i64>().is_ok_and(|id| id != 0));
        match id {
            Some(id) => Ok(EntityKind::CustomEmoji { id: id.to_owned() }),
            None => Err("Invalid tg://emoji or tg://time URL specified".into()),
        }
    }

    /// What is between the parentheses after `i`; leaves `i` at the closing one.
    fn url(&mut self) -> Result<String, String> {
        self.i += 2;
        let begin = self.i;
        let mut url = Vec::new();
        while self.i < self.source.len() && self.at(self.i) != b')' {
            if self.at(self.i) == b'\\' && (1..=126).contains(&self.at(self.i + 1)) {
                self.i += 1;
            }
            url.push(self.at(self.i));
            self.i += 1;
        }
        if self.at(self.i) != b')' {
            return Err(format!("Can't find end of a URL at byte offset {begin}"));
        }
        Ok(String::from_utf8_lossy(&url).into_owned())
    }

    fn finish(mut self) -> Result<Formatted, String> {
        if self.in_quote {
            let bare =
                self.open.last().is_some_and(|open| open.kind == Kind::Spoiler && open.byte + 2 == self.source.len());
            let kind = if bare { EntityKind::ExpandableBlockquote } else { EntityKind::Blockquote };
            if bare {
                self.open.pop();
            }
            if let Some(quote) = self.open.pop_if(|open| open.kind == Kind::BlockQuote)
                && self.units > quote.offset
            {
                self.entities.push(Entity { kind, offset: quote.offset, length: self.units - quote.offset });
            }
        }
        match self.open.last() {
            Some(open) => Err(no_end(open)),
            None => {
                let text = String::from_utf8(self.out).map_err(|_| "Strings must be encoded in UTF-8")?;
                Ok(Formatted { text, entities: self.entities })
            }
        }
    }
}

fn no_end(open: &Open) -> String {
    format!("Can't find end of {:?} entity at byte offset {}", open.kind, open.byte)
}
