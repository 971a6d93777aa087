//! Texts and what is marked in them: `parse_mode` and explicit entities in, a text and entities out.
//!
//! The parsers follow TDLib's `MessageEntity.cpp`, messages of its errors included, since Telegram quotes those. Offsets
//! and lengths count UTF-16 units, byte offsets in errors count bytes of what was sent.

mod html;
mod markdown;

use serde_json::{Value, json};

use super::error::{Error, bad_request};
use super::ids::UserId;

/// The longest text of a message, in UTF-16 units after parsing.
pub const MAX_TEXT: usize = 4096;
/// The longest text before parsing, in bytes.
const MAX_SOURCE_BYTES: usize = 1 << 15;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entity {
    pub kind: EntityKind,
    pub offset: usize,
    pub length: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntityKind {
    Mention,
    BotCommand,
    Bold,
    Italic,
    Underline,
    Strikethrough,
    Spoiler,
    Code,
    Pre { language: Option<String> },
    TextLink { url: String },
    TextMention { user: UserId },
    CustomEmoji { id: String },
    Blockquote,
    ExpandableBlockquote,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Formatted {
    pub(super) text: String,
    pub(super) entities: Vec<Entity>,
}

impl EntityKind {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mention => "mention",
            Self::BotCommand => "bot_command",
            Self::Bold => "bold",
            Self::Italic => "italic",
            Self::Underline => "underline",
            Self::Strikethrough => "strikethrough",
            Self::Spoiler => "spoiler",
            Self::Code => "code",
            Self::Pre { .. } => "pre",
            Self::TextLink { .. } => "text_link",
            Self::TextMention { .. } => "text_mention",
            Self::CustomEmoji { .. } => "custom_emoji",
            Self::Blockquote => "blockquote",
            Self::ExpandableBlockquote => "expandable_blockquote",
        }
    }

    /// Of two over the same text, the one that is outside.
    fn priority(&self) -> u8 {
        match self {
            Self::Blockquote | Self::ExpandableBlockquote => 0,
            Self::Pre { language: Some(_) } => 10,
            Self::Pre { language: None } => 11,
            Self::Code => 20,
            Self::TextLink { .. } | Self::TextMention { .. } => 49,
            Self::Mention | Self::BotCommand => 50,
            Self::Bold => 90,
            Self::Italic => 91,
            Self::Underline => 92,
            Self::Strikethrough => 93,
            Self::Spoiler => 94,
            Self::CustomEmoji { .. } => 99,
        }
    }

    /// Nothing is marked inside code.
    fn is_code(&self) -> bool {
        matches!(self, Self::Code | Self::Pre { .. })
    }
}

impl Entity {
    fn end(&self) -> usize {
        self.offset + self.length
    }

    /// As the Bot API shows it; `user` describes whom a mention means.
    pub(super) fn to_json(&self, user: impl Fn(UserId) -> Value) -> Value {
        let mut entity = json!({"type": self.kind.name(), "offset": self.offset, "length": self.length});
        match &self.kind {
            EntityKind::Pre { language: Some(language) } => entity["language"] = json!(language),
            EntityKind::TextLink { url } => entity["url"] = json!(url),
            EntityKind::TextMention { user: id } => entity["user"] = user(*id),
            EntityKind::CustomEmoji { id } => entity["custom_emoji_id"] = json!(id),
            EntityKind::Pre { language: None }
            | EntityKind::Mention
            | EntityKind::BotCommand
            | EntityKind::Bold
            | EntityKind::Italic
            | EntityKind::Underline
            | EntityKind::Strikethrough
            | EntityKind::Spoiler
            | EntityKind::Code
            | EntityKind::Blockquote
            | EntityKind::ExpandableBlockquote => {}
        }
        entity
    }

    /// What a bot may ask for. `Ok(None)`: Telegram finds that kind itself, and ignores it here.
    fn from_json(value: &Value) -> Result<Option<Self>, Error> {
        let number = |name: &str| match value[name].as_u64().and_then(|number| usize::try_from(number).ok()) {
            Some(number) => Ok(number),
            None => bad_request(format!("can't parse MessageEntity: Field \"{name}\" must be of type Number")),
        };
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let (offset, length) = (number("offset")?, number("length")?);
        let kind = match text("type").as_str() {
            "bold" => EntityKind::Bold,
            "italic" => EntityKind::Italic,
            "underline" => EntityKind::Underline,
            "strikethrough" => EntityKind::Strikethrough,
            "spoiler" => EntityKind::Spoiler,
            "code" => EntityKind::Code,
            "pre" => EntityKind::Pre { language: Some(text("language")).filter(|language| !language.is_empty()) },
            "text_link" => match link(&text("url")) {
                Some(kind) => kind,
                None => return Ok(None),
            },
            "text_mention" => match value["user"]["id"].as_i64() {
                Some(id) => EntityKind::TextMention { user: UserId(id) },
                None => return bad_request("can't parse MessageEntity: Can't find field \"user\""),
            },
            "custom_emoji" => EntityKind::CustomEmoji { id: text("custom_emoji_id") },
            "blockquote" => EntityKind::Blockquote,
            "expandable_blockquote" => EntityKind::ExpandableBlockquote,
            "" => return bad_request("can't parse MessageEntity: Field \"type\" must be of type String"),
            _ => return Ok(None),
        };
        Ok(Some(Self { kind, offset, length }))
    }
}

/// What becomes of a text that a bot sends.
pub(super) fn formatted(text: &str, parse_mode: &str, entities: Option<&Value>) -> Result<Formatted, Error> {
    if text.is_empty() {
        return bad_request("message text is empty");
    }
    if text.len() > MAX_SOURCE_BYTES {
        return bad_request("text is too long");
    }
    let parsed = match parse_mode.to_ascii_lowercase().as_str() {
        "" | "none" => {
            let list = entities.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let entities: Result<Vec<_>, _> = list.iter().map(Entity::from_json).collect();
            Ok(Formatted { text: text.to_owned(), entities: entities?.into_iter().flatten().collect() })
        }
        "html" => html::parse(text),
        "markdownv2" => markdown::parse(text),
        _ => return bad_request("unsupported parse_mode"),
    };
    let tidy = match parsed {
        Ok(parsed) => tidied(parsed),
        Err(why) => return bad_request(format!("can't parse entities: {why}")),
    };
    match units(&tidy.text) {
        0 => bad_request("text must be non-empty"),
        length if length > MAX_TEXT => bad_request("message is too long"),
        _ => Ok(tidy),
    }
}

/// What Telegram marks in a user's text by itself, as far as it is modelled: mentions and commands.
pub(super) fn found(text: &str) -> Vec<Entity> {
    let mut entities = Vec::new();
    let mut offset = 0;
    for word in text.split_inclusive(char::is_whitespace) {
        let bare = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let name = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let kind = match (bare.strip_prefix('@'), bare.strip_prefix('/')) {
            (Some(user), _) if name(user) && user.len() >= 3 => Some(EntityKind::Mention),
            (_, Some(command)) if command.split('@').all(name) => Some(EntityKind::BotCommand),
            _ => None,
        };
        entities.extend(kind.map(|kind| Entity { kind, offset, length: units(bare) }));
        offset += units(word);
    }
    entities
}

pub(super) fn units(text: &str) -> usize {
    text.encode_utf16().count()
}

/// Sorts entities, drops what is marked inside code or beyond the text, and takes white space off both ends.
fn tidied(Formatted { text, mut entities }: Formatted) -> Formatted {
    let whole = text.trim_end();
    let end = units(whole);
    entities.retain_mut(|entity| {
        entity.length = entity.end().min(end).saturating_sub(entity.offset);
        entity.length > 0
    });
    entities.sort_by_key(|entity| (entity.offset, std::cmp::Reverse(entity.length), entity.kind.priority()));
    let mut code_until = 0;
    entities.retain(|entity| {
        let inside = entity.offset < code_until;
        if entity.kind.is_code() && !inside {
            code_until = entity.end();
        }
        !inside
    });
    // A space or line break before the first mark goes; one that is marked stays.
    let first = entities.first().map_or(end, |entity| entity.offset);
    let blank = whole.bytes().take(first).take_while(|byte| [b' ', b'\n'].contains(byte)).count();
    for entity in &mut entities {
        entity.offset -= blank;
    }
    Formatted { text: whole[blank..].to_owned(), entities }
}

/// What a link in a text means: a user, an address, or nothing.
fn link(url: &str) -> Option<EntityKind> {
    let lower = url.to_ascii_lowercase();
    let user = lower.strip_prefix("tg://").or_else(|| lower.strip_prefix("tg:"));
    if let Some(parameters) = user.and_then(|user| user.strip_prefix("user?").or_else(|| user.strip_prefix("user/?"))) {
        let id = parameters.split(['&', '#']).find_map(|parameter| parameter.strip_prefix("id="));
        return id.and_then(|id| id.parse().ok()).map(|id| EntityKind::TextMention { user: UserId(id) });
    }
    let rest = ["http://", "https://", "tg://", "ton://"].into_iter().find_map(|scheme| lower.strip_prefix(scheme));
    let host = rest.unwrap_or(&lower).split(['/', '?', '#']).next()?;
    if host.is_empty() || host.contains(char::is_whitespace) || (rest.is_none() && !host.contains('.')) {
        return None;
    }
    let scheme = if rest.is_none() { "http://" } else { "" };
    let web = rest.is_none() || lower.starts_with("http");
    let path = if web && rest.unwrap_or(&lower) == host { "/" } else { "" };
    Some(EntityKind::TextLink { url: format!("{scheme}{url}{path}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is marked, as `kind offset+length`, after the text.
    fn shown(formatted: &Formatted) -> String {
        let entities: Vec<_> = formatted
            .entities
            .iter()
            .map(|entity| format!(" {} {}+{}", entity.kind.name(), entity.offset, entity.length))
            .collect();
        format!("{}|{}", formatted.text, entities.concat())
    }

    #[track_caller]
    fn check(mode: &str, text: &str, expected: &str) {
        let shown = match formatted(text, mode, None) {
            Ok(formatted) => shown(&formatted),
            Err(error) => error.body()["description"].as_str().unwrap().to_owned(),
        };
        assert_eq!(shown, expected, "{mode} {text:?}");
    }

    #[test]
    fn html_is_parsed_as_telegram_parses_it() {
        check(
            "HTML",
            "a <b>b <i>c</i></b> &lt;d&gt; &amp; &#x1F600; &nbsp;",
            "a b c <d> & 😀 &nbsp;| bold 2+3 italic 4+1",
        );
        check(
            "html",
            "😀<u>x</u><s>y</s><tg-spoiler>z</tg-spoiler>",
            "😀xyz| underline 2+1 strikethrough 3+1 spoiler 4+1",
        );
        check("HTML", "<pre><code class=\"language-rust\">fn x() {}</code></pre>", "fn x() {}| pre 0+9");
        check("HTML", "<code>1 <b>2</b></code>", "1 2| code 0+3");
        check("HTML", "<a href='https://example.com'>x</a><a href=\"nothing\">y</a>", "xy| text_link 0+1");
        check("HTML", "<a href=\"tg://user?id=12\">x</a>", "x| text_mention 0+1");
        check("HTML", "<blockquote expandable>q</blockquote>", "q| expandable_blockquote 0+1");
        check("HTML", " \n <b> x</b> \n", " x| bold 0+2");
    }

    #[test]
    fn broken_html_is_refused_in_telegrams_words() {
        let refused = |text: &str, why: &str| check("HTML", text, &format!("Bad Request: can't parse entities: {why}"));
        refused("<b>x", "Can't find end tag corresponding to start tag \"b\"");
        refused("1 < 2", "Unsupported start tag \"\" at byte offset 2");
        refused("x</b>", "Unexpected end tag at byte offset 1");
        refused("ü <b>x</i>", "Unmatched end tag at byte offset 7, expected \"</b>\", found \"</i>\"");
        refused("<p>x</p>", "Unsupported start tag \"p\" at byte offset 0");
        refused("x <b", "Unclosed start tag at byte offset 2");
        refused("<a href=\"x", "Unclosed start tag at byte offset 0");
        refused("<b>x</b", "Unclosed end tag at byte offset 4");
        refused("<span class=\"x\">y</span>", "Tag \"span\" must have class \"tg-spoiler\" at byte offset 0");
    }

    #[test]
    fn markdown_is_parsed_as_telegram_parses_it() {
        check(
            "MarkdownV2",
            "*b _i_ __u__* ~s~ ||p|| \\*x\\*",
            "b i u s p *x*| bold 0+5 italic 2+1 underline 4+1 strikethrough 6+1 spoiler 8+1",
        );
        check("markdownv2", "`a*b` ```rust\nfn\n```", "a*b fn| code 0+3 pre 4+2");
        check("MarkdownV2", "[a\\]b](https://example.com/\\)) x", "a]b x| text_link 0+3");
        check("MarkdownV2", ">one\n>two\nthree", "one\ntwo\nthree| blockquote 0+8");
        check("MarkdownV2", ">one||", "one| expandable_blockquote 0+3");
        check("MarkdownV2", "![😀](tg://emoji?id=5)", "😀| custom_emoji 0+2");
    }

    #[test]
    fn broken_markdown_is_refused_in_telegrams_words() {
        let refused =
            |text: &str, why: &str| check("MarkdownV2", text, &format!("Bad Request: can't parse entities: {why}"));
        refused("a.", "Character '.' is reserved and must be escaped with the preceding '\\'");
        refused("1 + 1", "Character '+' is reserved and must be escaped with the preceding '\\'");
        refused("ü *b", "Can't find end of Bold entity at byte offset 3");
        refused("```x", "Can't find end of Pre entity at byte offset 0");
        refused("[a](b", "Can't find end of a URL at byte offset 4");
        refused("a > b", "Character '>' is reserved and must be escaped with the preceding '\\'");
        refused("![x](y)", "Invalid tg://emoji or tg://time URL specified");
    }

    #[test]
    fn length_counts_utf16_units_after_parsing() {
        check(
            "HTML",
            &format!("<b>{}</b>", "&lt;".repeat(MAX_TEXT)),
            &format!("{}| bold 0+4096", "<".repeat(MAX_TEXT)),
        );
        check("", &"x".repeat(MAX_TEXT + 1), "Bad Request: message is too long");
        check("", &"😀".repeat(MAX_TEXT / 2 + 1), "Bad Request: message is too long");
        check("", &"ü".repeat(20_000), "Bad Request: text is too long");
        check("HTML", "<b> </b>\n", "Bad Request: text must be non-empty");
        check("", "", "Bad Request: message text is empty");
        check("Markdown", "x", "Bad Request: unsupported parse_mode");
    }

    #[test]
    fn a_users_mentions_and_commands_are_found() {
        let found = found("/start@a_bot 😀 ask @someone, not a@b or @ or 1/2");
        assert_eq!(shown(&Formatted { text: String::new(), entities: found }), "| bot_command 0+12 mention 20+8");
    }
}
