//! Markdown to a text and marks over it, as Telegram has them.

use std::borrow::Cow;
use std::ops::Range;

use pulldown_cmark::{CodeBlockKind, CowStr, Event, Options, Parser, Tag, TagEnd};

use super::table::Table;

/// Longer addresses would leave no room for text.
const MAX_URL_BYTES: usize = 2048;
const MAX_LANGUAGE_BYTES: usize = 32;
/// What is nested deeper is not marked, or not indented further: nobody sees the difference, and it takes no more time.
const MAX_OPEN: usize = 32;
const MAX_INDENT: usize = 8;
const RULE: &str = "──────────";

/// What Telegram can mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Bold,
    Italic,
    Strikethrough,
    Code,
    Pre { language: Option<String> },
    Link { url: String },
    Quote,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) kind: Kind,
    /// In bytes; not empty.
    range: Range<usize>,
    /// How many marks were open around it.
    depth: usize,
}

/// Two marks lie one in the other or apart.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) text: String,
    /// By their beginnings, what is outside first.
    marks: Vec<Mark>,
    /// Where code blocks are, in order.
    pub(super) code: Vec<Range<usize>>,
}

impl Document {
    pub(super) fn from_markdown(markdown: &str) -> Self {
        let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS;
        let markdown = with_plain_line_ends(markdown);
        let mut builder = Builder::default();
        for event in Parser::new_ext(&markdown, options) {
            builder.event(event);
        }
        let Builder { text, mut marks, .. } = builder;
        marks.sort_by_key(|mark| (mark.range.start, std::cmp::Reverse(mark.range.end), mark.depth));
        let code = marks.iter().filter(|mark| matches!(mark.kind, Kind::Pre { .. })).map(|mark| mark.range.clone());
        Self { code: code.collect(), text, marks }
    }

    /// The marks of a part of the text, and what of it each is over.
    pub(super) fn marks_in(&self, part: &Range<usize>) -> Vec<(&Mark, Range<usize>)> {
        let begun = self.marks.partition_point(|mark| mark.range.start < part.end);
        let clipped = self.marks[..begun]
            .iter()
            .map(|mark| (mark, mark.range.start.max(part.start)..mark.range.end.min(part.end)));
        clipped.filter(|(_, range)| !range.is_empty()).collect()
    }
}

fn with_plain_line_ends(text: &str) -> Cow<'_, str> {
    if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n").into() } else { text.into() }
}

#[derive(Default)]
struct Builder {
    text: String,
    marks: Vec<Mark>,
    open: Vec<Open>,
    /// Line ends before whatever comes next.
    gap: usize,
    /// A bullet was just written: what follows stands beside it.
    after_bullet: bool,
    /// The number of the next item; absent: bullets.
    lists: Vec<Option<u64>>,
    /// What a block of code or HTML holds so far.
    verbatim: Option<String>,
    table: Option<Table>,
}

/// An element that has begun.
struct Open {
    /// Absent: it is not shown.
    kind: Option<Kind>,
    /// Absent: nothing was written in it.
    start: Option<usize>,
    /// What a link or an image leads to.
    url: Option<String>,
}

impl Builder {
    fn event(&mut self, event: Event) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) | Event::Html(text) => self.write(&text),
            Event::Code(code) => {
                self.open(Some(Kind::Code));
                self.write(&code);
                self.close();
            }
            Event::InlineHtml(tag) if tag.to_ascii_lowercase().starts_with("<br") => self.new_line(),
            Event::InlineHtml(tag) => self.write(&tag),
            Event::SoftBreak | Event::HardBreak => self.new_line(),
            Event::Rule => {
                self.block();
                self.write(RULE);
                self.block();
            }
            Event::TaskListMarker(done) => self.write(if done { "☑ " } else { "☐ " }),
            // Extensions that are not asked for.
            Event::InlineMath(text) | Event::DisplayMath(text) | Event::FootnoteReference(text) => self.write(&text),
        }
    }

    fn start(&mut self, tag: Tag) {
        match tag {
            Tag::Paragraph => self.block(),
            Tag::Heading { .. } => {
                self.block();
                self.open(Some(Kind::Bold));
            }
            Tag::BlockQuote(_) => {
                self.block();
                self.open(Some(Kind::Quote));
            }
            Tag::CodeBlock(kind) => {
                self.block();
                self.open(Some(Kind::Pre { language: language(&kind) }));
                self.verbatim = Some(String::new());
            }
            Tag::HtmlBlock => {
                self.block();
                self.verbatim = Some(String::new());
            }
            Tag::List(first) => {
                self.block();
                self.lists.push(first);
            }
            Tag::Item => self.item(),
            Tag::Table(_) => {
                self.block();
                self.open(Some(Kind::Pre { language: None }));
                self.table = Some(Table::default());
            }
            Tag::TableHead | Tag::TableRow => {
                if let Some(table) = &mut self.table {
                    table.row();
                }
            }
            Tag::TableCell => {
                if let Some(table) = &mut self.table {
                    table.cell();
                }
            }
            Tag::Emphasis => self.open(Some(Kind::Italic)),
            Tag::Strong => self.open(Some(Kind::Bold)),
            Tag::Strikethrough => self.open(Some(Kind::Strikethrough)),
            Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. } => self.open_link(&dest_url),
            // Extensions that are not asked for.
            Tag::FootnoteDefinition(_)
            | Tag::DefinitionList
            | Tag::DefinitionListTitle
            | Tag::DefinitionListDefinition
            | Tag::Superscript
            | Tag::Subscript
            | Tag::MetadataBlock(_) => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Paragraph => self.block(),
            TagEnd::Heading(_) | TagEnd::BlockQuote(_) => {
                self.close();
                self.block();
            }
            TagEnd::CodeBlock => {
                self.write_verbatim();
                self.close();
                self.block();
            }
            TagEnd::HtmlBlock => {
                self.write_verbatim();
                self.block();
            }
            TagEnd::List(_) => {
                self.lists.pop();
                self.block();
            }
            TagEnd::Item => {
                self.after_bullet = false;
                self.block();
            }
            TagEnd::Table => {
                if let Some(table) = self.table.take() {
                    self.verbatim = Some(table.lines());
                }
                self.write_verbatim();
                self.close();
                self.block();
            }
            TagEnd::Emphasis | TagEnd::Strong | TagEnd::Strikethrough => self.close(),
            TagEnd::Link | TagEnd::Image => self.close_link(),
            TagEnd::TableHead
            | TagEnd::TableRow
            | TagEnd::TableCell
            | TagEnd::FootnoteDefinition
            | TagEnd::DefinitionList
            | TagEnd::DefinitionListTitle
            | TagEnd::DefinitionListDefinition
            | TagEnd::Superscript
            | TagEnd::Subscript
            | TagEnd::MetadataBlock(_) => {}
        }
    }

    /// What comes next begins a line of its own, and outside lists a paragraph.
    fn block(&mut self) {
        if !self.after_bullet {
            self.gap = self.gap.max(if self.lists.is_empty() { 2 } else { 1 });
        }
    }

    fn item(&mut self) {
        self.block();
        let depth = self.lists.len().saturating_sub(1);
        let bullet = match self.lists.last_mut() {
            Some(Some(number)) => {
                let bullet = format!("{number}. ");
                *number = number.saturating_add(1);
                bullet
            }
            Some(None) | None => "• ".to_owned(),
        };
        self.begin(if self.after_bullet { 0 } else { depth });
        self.text.push_str(&bullet);
        self.after_bullet = true;
    }

    fn open(&mut self, kind: Option<Kind>) {
        let around = self.open.iter().take(MAX_OPEN).filter_map(|open| open.kind.as_ref());
        let within = |test: fn(&Kind) -> bool| around.clone().any(test);
        // The same twice means nothing, and Telegram has neither links in links nor anything in code.
        let shown = match &kind {
            Some(Kind::Link { .. }) => !within(|kind| matches!(kind, Kind::Link { .. })),
            Some(Kind::Code) => !within(|kind| matches!(kind, Kind::Link { .. })),
            Some(Kind::Bold) => !within(|kind| *kind == Kind::Bold),
            Some(Kind::Italic) => !within(|kind| *kind == Kind::Italic),
            Some(Kind::Strikethrough) => !within(|kind| *kind == Kind::Strikethrough),
            Some(Kind::Quote) => !within(|kind| *kind == Kind::Quote),
            Some(Kind::Pre { .. }) | None => true,
        };
        let shown = shown && self.open.len() < MAX_OPEN;
        self.open.push(Open { kind: kind.filter(|_| shown), start: None, url: None });
    }

    fn close(&mut self) {
        let depth = self.open.len();
        if let Some(Open { kind: Some(kind), start: Some(start), .. }) = self.open.pop()
            && start < self.text.len()
        {
            self.marks.push(Mark { kind, range: start..self.text.len(), depth });
        }
    }

    fn open_link(&mut self, url: &str) {
        let kind = is_link(url).then(|| Kind::Link { url: url.to_owned() });
        self.open(kind);
        if let Some(open) = self.open.last_mut() {
            open.url = Some(url.to_owned());
        }
    }

    /// A link of no words shows its address, and so does one where nothing can be marked.
    fn close_link(&mut self) {
        let open = self.open.last_mut();
        let (url, empty) =
            open.map(|open| (open.url.take().unwrap_or_default(), open.start.is_none())).unwrap_or_default();
        if let Some(table) = &mut self.table {
            if is_link(&url) {
                table.link(&url);
            }
        } else if empty {
            self.write(&url);
        }
        self.close();
    }

    /// Ends lines that are to be ended, and lets what is open begin here.
    fn begin(&mut self, indent: usize) {
        if self.gap > 0 && !self.text.is_empty() {
            self.text.extend(std::iter::repeat_n('\n', self.gap));
            self.indent(indent);
        }
        self.gap = 0;
        for open in self.open.iter_mut().rev().take_while(|open| open.start.is_none()) {
            open.start = Some(self.text.len());
        }
    }

    fn write(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        if let Some(verbatim) = &mut self.verbatim {
            verbatim.push_str(text);
        } else if let Some(table) = &mut self.table {
            table.write(text);
        } else {
            self.begin(self.lists.len());
            self.text.extend(text.chars().filter(|c| is_text(*c)));
            self.after_bullet = false;
        }
    }

    fn new_line(&mut self) {
        if self.table.is_some() {
            self.write(" ");
        } else {
            self.write("\n");
            self.indent(self.lists.len());
        }
    }

    fn indent(&mut self, depth: usize) {
        self.text.extend(std::iter::repeat_n("  ", depth.min(MAX_INDENT)));
    }

    fn write_verbatim(&mut self) {
        let verbatim = self.verbatim.take().unwrap_or_default();
        let block = verbatim.strip_suffix('\n').unwrap_or(&verbatim);
        if !block.is_empty() {
            self.begin(0);
            self.text.extend(block.chars().filter(|c| is_text(*c)));
            self.after_bullet = false;
        }
    }
}

/// Telegram has no other control characters, and its parser stops at some.
fn is_text(c: char) -> bool {
    !c.is_control() || c == '\n' || c == '\t'
}

fn is_link(url: &str) -> bool {
    let scheme = ["http://", "https://", "tg://"].iter().any(|scheme| {
        url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)) && url.len() > scheme.len()
    });
    scheme && url.len() <= MAX_URL_BYTES && url.chars().all(|c| is_text(c) && !c.is_whitespace())
}

/// ```` ```rust,ignore ```` is Rust.
fn language(kind: &CodeBlockKind) -> Option<String> {
    let CodeBlockKind::Fenced(info) = kind else { return None };
    let info: &CowStr = info;
    let word = info.split(|c: char| c.is_whitespace() || c.is_control() || [',', '{'].contains(&c)).next()?;
    (1..=MAX_LANGUAGE_BYTES).contains(&word.len()).then(|| word.to_owned())
}
