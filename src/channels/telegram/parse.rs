//! What Telegram tells a bot, to the message in it: pure.
//!
//! It reads the fields that count and leaves the rest alone, so that a kind of entity or of media that Telegram invents
//! tomorrow makes no message unreadable; teloxide's own types would refuse it whole. Only messages of people come out:
//! what bots, channels, anonymous administrators and the platform itself write is nobody's, and neither is an edit.
//! Offsets of entities count UTF-16 units.

use std::ops::Range;

use openclaw_proto::ids::ChannelAccount;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use tracing::{info, warn};

use crate::message::{InboundMessage, Place, ReplyAddress, Sender};

/// Telegram's own limit is 4096 UTF-16 units, at most three bytes each.
const MAX_TEXT_BYTES: usize = 16 * 1024;
/// Telegram's own limit is twice 64 characters.
const MAX_NAME_BYTES: usize = 256;

/// Whose updates are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bot {
    pub account: ChannelAccount,
    pub id: i64,
    /// Without `@`.
    pub username: String,
}

/// What confirms an update. Absent: it is none.
pub(super) fn update_id(update: &Value) -> Option<i64> {
    update.get("update_id")?.as_i64()
}

/// The message to the bot that is in an update, if there is one.
///
/// Its external id is made of chat and message, which are the same however often and on whichever way Telegram delivers
/// it; numbers of updates begin anew after a quiet week, and differ between Bot API servers.
pub fn update(bot: &Bot, update: &Value) -> Option<InboundMessage> {
    match Message::deserialize(update.get("message")?) {
        Ok(message) => message.read(bot),
        // The error would quote what people wrote.
        Err(_) => {
            warn!(account = %bot.account, update_id = ?update_id(update), "a message from Telegram is not readable");
            None
        }
    }
}

#[derive(Deserialize)]
struct Message {
    message_id: i64,
    message_thread_id: Option<i64>,
    #[serde(default)]
    is_topic_message: bool,
    from: Option<User>,
    /// A channel, or the group itself, in whose name it was written.
    sender_chat: Option<IgnoredAny>,
    chat: Chat,
    text: Option<String>,
    #[serde(default)]
    entities: Vec<Entity>,
    caption: Option<String>,
    #[serde(default)]
    caption_entities: Vec<Entity>,
    reply_to_message: Option<Replied>,
    migrate_to_chat_id: Option<i64>,
}

#[derive(Deserialize)]
struct User {
    id: i64,
    is_bot: bool,
    #[serde(default)]
    first_name: String,
    last_name: Option<String>,
}

#[derive(Deserialize)]
struct Chat {
    id: i64,
    #[serde(rename = "type")]
    kind: ChatKind,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum ChatKind {
    Private,
    Group,
    Supergroup,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Replied {
    message_id: i64,
    from: Option<User>,
}

#[derive(Deserialize)]
struct Entity {
    #[serde(rename = "type")]
    kind: String,
    offset: usize,
    length: usize,
    user: Option<User>,
}

impl Message {
    fn read(self, bot: &Bot) -> Option<InboundMessage> {
        if let Some(to) = self.migrate_to_chat_id {
            info!(account = %bot.account, chat = self.chat.id, to, "a group has become a supergroup with another id");
        }
        let from = self.from.as_ref().filter(|from| !from.is_bot && self.sender_chat.is_none())?;
        let (text, entities) = match (&self.text, &self.caption) {
            (Some(text), _) => (text, &self.entities),
            (None, Some(caption)) => (caption, &self.caption_entities),
            (None, None) => return None,
        };
        // In what is cut off, nobody is named.
        let text = &text[..text.floor_char_boundary(MAX_TEXT_BYTES)];
        let named = Named::find(bot, text, entities);
        let chat = self.chat.id.to_string();
        let thread = self.message_thread_id.filter(|_| self.is_topic_message).map(|thread| thread.to_string());
        let (place, addressed) = match self.chat.kind {
            ChatKind::Private => (Place::Direct { peer: from.id.to_string() }, true),
            ChatKind::Group | ChatKind::Supergroup if named.another => return None,
            ChatKind::Group | ChatKind::Supergroup => {
                (Place::Group { id: chat.clone(), topic: thread.clone() }, !named.this.is_empty() || self.answers(bot))
            }
            ChatKind::Other => return None,
        };
        let text = named.taken_off(text)?;
        Some(InboundMessage {
            account: bot.account.clone(),
            external_id: format!("{chat}:{}", self.message_id),
            place,
            sender: Sender { id: from.id.to_string(), name: from.name() },
            text,
            addressed,
            reply_to: ReplyAddress {
                account: bot.account.clone(),
                chat,
                thread,
                message: Some(self.message_id.to_string()),
            },
        })
    }

    /// Whether it is a reply to the bot. Everything in a topic also "replies" to the message that opened it.
    fn answers(&self, bot: &Bot) -> bool {
        self.reply_to_message.as_ref().is_some_and(|replied| {
            let opened_the_topic = self.is_topic_message && self.message_thread_id == Some(replied.message_id);
            !opened_the_topic && replied.from.as_ref().is_some_and(|from| from.id == bot.id)
        })
    }
}

impl User {
    fn name(&self) -> String {
        let whole = format!("{} {}", self.first_name, self.last_name.as_deref().unwrap_or_default());
        let words = whole.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
        let mut name = words.collect::<Vec<_>>().join(" ");
        name.truncate(name.floor_char_boundary(MAX_NAME_BYTES));
        if name.is_empty() { self.id.to_string() } else { name }
    }
}

/// Where a text names bots.
#[derive(Default)]
struct Named {
    /// The mentions of this bot, with the `@botname` of commands among them.
    this: Vec<Range<usize>>,
    /// It begins with a command for another bot.
    another: bool,
}

impl Named {
    fn find(bot: &Bot, text: &str, entities: &[Entity]) -> Self {
        let is_this = |name: &str| name.eq_ignore_ascii_case(&bot.username);
        let mut named = Self::default();
        for entity in entities {
            let Some(range) = bytes(text, entity).filter(|range| !range.is_empty()) else { continue };
            let marked = &text[range.clone()];
            match (entity.kind.as_str(), marked.split_once('@')) {
                ("mention", Some(("", name))) if is_this(name) => named.this.push(range),
                ("text_mention", _) if entity.user.as_ref().is_some_and(|user| user.id == bot.id) => {
                    named.this.push(range);
                }
                ("bot_command", Some((command, name))) if is_this(name) => {
                    named.this.push(range.start + command.len()..range.end);
                }
                ("bot_command", Some(_)) => named.another |= text[..range.start].trim().is_empty(),
                _ => {}
            }
        }
        named
    }

    /// The text without the bot's name at its beginning, or behind the command that it begins with. Nothing but the name
    /// is left as it is: it still calls the bot.
    fn taken_off(&self, text: &str) -> Option<String> {
        let whole = text.trim();
        if whole.is_empty() {
            return None;
        }
        let mut start = text.len() - text.trim_start().len();
        while let Some(name) = self.this.iter().find(|name| name.start == start) {
            let rest = text[name.end..].trim_start_matches(|c: char| c.is_whitespace() || [',', ':'].contains(&c));
            start = text.len() - rest.len();
        }
        let word_end = text[start..].find(char::is_whitespace).map_or(text.len(), |length| start + length);
        let is_command = text[start..].starts_with('/');
        let behind_command = self.this.iter().find(|name| is_command && name.start >= start && name.end == word_end);
        let rest = match behind_command {
            Some(name) => format!("{}{}", &text[start..name.start], &text[name.end..]),
            None => text[start..].to_owned(),
        };
        let rest = rest.trim();
        Some(if rest.is_empty() { whole } else { rest }.to_owned())
    }
}

/// What an entity marks. `None`: it does not lie within the text.
fn bytes(text: &str, entity: &Entity) -> Option<Range<usize>> {
    let end = entity.offset.checked_add(entity.length)?;
    let mut units = 0;
    let mut start_at = None;
    for (at, c) in text.char_indices().map(|(at, c)| (at, c.len_utf16())).chain([(text.len(), 0)]) {
        if units == entity.offset {
            start_at = start_at.or(Some(at));
        }
        if units == end {
            return start_at.map(|start| start..at);
        }
        units += c;
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bot() -> Bot {
        Bot { account: ChannelAccount::new("telegram", "default").unwrap(), id: 7, username: "Our_bot".into() }
    }

    fn private(text: &str) -> Value {
        json!({
            "message_id": 5,
            "from": {"id": 11, "is_bot": false, "first_name": "Ann", "last_name": "Lee"},
            "chat": {"id": 11, "type": "private", "first_name": "Ann"},
            "date": 1,
            "text": text,
        })
    }

    fn group(text: &str) -> Value {
        let mut message = private(text);
        message["chat"] = json!({"id": -100_200, "type": "supergroup", "title": "g"});
        message
    }

    fn with(mut message: Value, field: &str, value: Value) -> Value {
        message[field] = value;
        message
    }

    /// With an entity of this kind over the first `marked` in the text.
    fn marked(message: Value, kind: &str, marked: &str) -> Value {
        let text = message["text"].as_str().unwrap();
        let units = |text: &str| text.encode_utf16().count();
        let offset = units(&text[..text.find(marked).unwrap()]);
        let entity = json!({"type": kind, "offset": offset, "length": units(marked)});
        let mut entities = message["entities"].as_array().cloned().unwrap_or_default();
        entities.push(entity);
        with(message, "entities", json!(entities))
    }

    fn read(message: Value) -> Option<InboundMessage> {
        update(&bot(), &json!({"update_id": 1, "message": message}))
    }

    /// The text and whether the bot was meant.
    #[track_caller]
    fn check(message: Value, expected: Option<(&str, bool)>) {
        let read = read(message);
        assert_eq!(read.as_ref().map(|message| (message.text.as_str(), message.addressed)), expected);
    }

    #[test]
    fn a_private_message_is_for_the_bot() {
        let account = bot().account;
        let reply_to =
            ReplyAddress { account: account.clone(), chat: "11".into(), thread: None, message: Some("5".into()) };
        let expected = InboundMessage {
            account,
            external_id: "11:5".into(),
            place: Place::Direct { peer: "11".into() },
            sender: Sender { id: "11".into(), name: "Ann Lee".into() },
            text: "hello".into(),
            addressed: true,
            reply_to,
        };
        assert_eq!(read(private(" hello\n")), Some(expected));
        check(marked(private("/start@other_bot"), "bot_command", "/start@other_bot"), Some(("/start@other_bot", true)));
    }

    #[test]
    fn a_group_has_one_id_and_its_topics_have_their_own() {
        let place = |message| read(message).map(|message| (message.place, message.reply_to.thread)).unwrap();
        let in_group = |topic: Option<&str>| {
            let topic = topic.map(str::to_owned);
            (Place::Group { id: "-100200".into(), topic: topic.clone() }, topic)
        };
        assert_eq!(place(group("x")), in_group(None));
        let thread = with(group("x"), "message_thread_id", json!(3));
        assert_eq!(place(thread.clone()), in_group(None), "a thread of replies is no topic");
        assert_eq!(place(with(thread, "is_topic_message", json!(true))), in_group(Some("3")));
        let small = with(group("x"), "chat", json!({"id": -4, "type": "group", "title": "g"}));
        assert_eq!(place(small).0, Place::Group { id: "-4".into(), topic: None });
    }

    #[test]
    fn a_mention_in_a_group_means_the_bot_and_leaves_the_beginning_of_the_text() {
        check(group("hello"), Some(("hello", false)));
        check(group("@our_bot hello"), Some(("@our_bot hello", false)));
        for (text, name) in
            [("@our_bot hello", "@our_bot"), ("@OUR_BOT, hello", "@OUR_BOT"), (" @our_bot: hello", "@our_bot")]
        {
            check(marked(group(text), "mention", name), Some(("hello", true)));
        }
        check(marked(group("😀 ask @our_bot now"), "mention", "@our_bot"), Some(("😀 ask @our_bot now", true)));
        check(marked(group("@our_bot"), "mention", "@our_bot"), Some(("@our_bot", true)));
        check(marked(group("@our_bots hello"), "mention", "@our_bots"), Some(("@our_bots hello", false)));
        check(marked(group("mail a@our_bot"), "email", "a@our_bot"), Some(("mail a@our_bot", false)));
        let by_name = json!([{"type": "text_mention", "offset": 0, "length": 3, "user": {"id": 7, "is_bot": true}}]);
        check(with(group("Bot hello"), "entities", by_name), Some(("hello", true)));
    }

    #[test]
    fn a_command_names_this_bot_or_another_or_none() {
        let command = |text: &str| marked(group(text), "bot_command", text.split(' ').next().unwrap());
        check(command("/new@Our_Bot gpt"), Some(("/new gpt", true)));
        check(command("/new@our_bot"), Some(("/new", true)));
        check(command("/new@other_bot gpt"), None);
        check(command("/new gpt"), Some(("/new gpt", false)));
        let both = marked(marked(group("@our_bot /new@our_bot"), "mention", "@our_bot"), "bot_command", "/new@our_bot");
        check(both, Some(("/new", true)));
        let later = marked(group("say /new@other_bot"), "bot_command", "/new@other_bot");
        check(later, Some(("say /new@other_bot", false)));
    }

    #[test]
    fn a_reply_to_the_bot_means_it() {
        let reply = |from: i64| json!({"message_id": 3, "from": {"id": from, "is_bot": true}, "chat": {"id": 1}});
        check(with(group("x"), "reply_to_message", reply(7)), Some(("x", true)));
        check(with(group("x"), "reply_to_message", reply(8)), Some(("x", false)));
        let topic = with(with(group("x"), "is_topic_message", json!(true)), "message_thread_id", json!(3));
        check(with(topic, "reply_to_message", reply(7)), Some(("x", false)));
    }

    #[test]
    fn captions_count_as_texts() {
        let photo = |caption: Value| {
            let mut message = with(private(""), "photo", json!([{"file_id": "p"}]));
            message.as_object_mut().unwrap().remove("text");
            with(message, "caption", caption)
        };
        check(photo(json!("look")), Some(("look", true)));
        check(photo(Value::Null), None);
        let in_group = with(photo(json!("@our_bot look")), "chat", json!({"id": -4, "type": "group"}));
        let entities = json!([{"type": "mention", "offset": 0, "length": 8}]);
        check(with(in_group, "caption_entities", entities), Some(("look", true)));
    }

    #[test]
    fn only_people_are_heard() {
        let from = |id: i64, is_bot: bool| json!({"id": id, "is_bot": is_bot, "first_name": "x"});
        check(with(group("x"), "from", from(9, true)), None);
        check(with(group("x"), "from", Value::Null), None);
        let anonymous = with(group("x"), "sender_chat", json!({"id": -100_200, "type": "supergroup"}));
        check(anonymous.clone(), None);
        check(with(anonymous, "from", from(1_087_968_824, true)), None);
        check(with(group("x"), "chat", json!({"id": -3, "type": "channel"})), None);
    }

    #[test]
    fn what_says_nothing_is_ignored() {
        check(private(""), None);
        check(private(" \n"), None);
        let mut service = group("");
        service.as_object_mut().unwrap().remove("text");
        check(with(service.clone(), "new_chat_members", json!([{"id": 7, "is_bot": true}])), None);
        check(with(service, "migrate_to_chat_id", json!(-100_300)), None);
        for kind in ["edited_message", "channel_post", "business_message"] {
            assert_eq!(update(&bot(), &json!({"update_id": 1, kind: private("x")})), None);
        }
        for broken in [json!({"update_id": 1}), json!({"update_id": 1, "message": {"text": "x"}}), json!([]), json!(3)]
        {
            assert_eq!(update(&bot(), &broken), None);
        }
    }

    #[test]
    fn what_telegram_invents_is_no_obstacle() {
        let mut message = marked(group("@our_bot hi"), "mention", "@our_bot");
        message["entities"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "date_time", "offset": 9, "length": 2, "unix": 1}));
        message["checklist"] = json!({"tasks": 3});
        check(message, Some(("hi", true)));
        for (offset, length) in [(0, 0), (1, 1), (9, 99), (u64::MAX, 1), (99, 1)] {
            let odd = json!([{"type": "mention", "offset": offset, "length": length}]);
            check(with(group("😀 x"), "entities", odd), Some(("😀 x", false)));
        }
    }

    #[test]
    fn texts_and_names_are_bounded() {
        let text = read(private(&"ü".repeat(MAX_TEXT_BYTES))).unwrap().text;
        assert_eq!(text.len(), MAX_TEXT_BYTES);
        let odd = |first: &str| {
            let from = json!({"id": 11, "is_bot": false, "first_name": first});
            read(with(private("x"), "from", from)).unwrap().sender.name
        };
        assert_eq!(odd("a\nb\u{0} c"), "a b c");
        assert_eq!(odd(" "), "11");
        assert_eq!(odd(&"x".repeat(999)).len(), MAX_NAME_BYTES);
    }
}
