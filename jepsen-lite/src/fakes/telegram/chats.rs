//! Users, chats and what was said in them, and how the Bot API shows all that.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};

use super::error::{Error, bad_request};
use super::ids::{BotId, ChatId, MessageId, ThreadId, UserId};
use super::text::Entity;

/// Messages that a chat remembers; the oldest are forgotten first.
const MESSAGES: usize = 10_000;
/// Earlier versions that a message remembers.
const EDITS: usize = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatKind {
    Private,
    Group,
    Supergroup,
    /// A supergroup with topics.
    Forum,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Author {
    Bot(BotId),
    User(UserId),
}

/// A message as it is now.
#[derive(Debug, Clone)]
pub struct Message {
    pub id: MessageId,
    pub chat: ChatId,
    pub from: Author,
    /// Since 1970.
    pub date: Duration,
    pub content: Content,
    pub reply_to: Option<MessageId>,
    pub thread: Option<ThreadId>,
    /// As the bot sent it.
    pub reply_markup: Option<Value>,
    /// What it said before, oldest first, and until when.
    pub edits: Vec<(Duration, Content)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub kind: ContentKind,
    /// Of a photo: its caption.
    pub text: String,
    pub entities: Vec<Entity>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentKind {
    Text,
    Photo,
    /// This group goes on there.
    MigrateTo(ChatId),
    /// This supergroup was that group.
    MigrateFrom(ChatId),
}

impl Message {
    pub fn text(&self) -> &str {
        &self.content.text
    }

    pub(super) fn edit(&mut self, content: Content, now: Duration) {
        if self.edits.len() >= EDITS {
            self.edits.remove(0);
        }
        self.edits.push((now, std::mem::replace(&mut self.content, content)));
    }
}

#[derive(Debug)]
pub(super) struct Chat {
    pub(super) id: ChatId,
    pub(super) kind: ChatKind,
    pub(super) title: String,
    /// The bots in it; of a private chat, its bot.
    pub(super) members: BTreeSet<BotId>,
    pub(super) topics: BTreeSet<ThreadId>,
    /// Of a private chat: the user wants nothing more of the bot.
    pub(super) blocked: bool,
    pub(super) migrated_to: Option<ChatId>,
    messages: VecDeque<Message>,
    last_message: i32,
}

impl Chat {
    pub(super) fn add(&mut self, from: Author, date: Duration, content: Content) -> &mut Message {
        self.last_message += 1;
        if self.messages.len() >= MESSAGES {
            self.messages.pop_front();
        }
        let id = MessageId(self.last_message);
        let (reply_to, thread, reply_markup, edits) = (None, None, None, Vec::new());
        let message = Message { id, chat: self.id, from, date, content, reply_to, thread, reply_markup, edits };
        self.messages.push_back(message);
        let last = self.messages.len() - 1;
        &mut self.messages[last]
    }

    pub(super) fn message(&self, id: MessageId) -> Option<&Message> {
        self.messages.iter().find(|message| message.id == id)
    }

    pub(super) fn message_mut(&mut self, id: MessageId) -> Option<&mut Message> {
        self.messages.iter_mut().find(|message| message.id == id)
    }

    pub(super) fn remove(&mut self, id: MessageId) {
        self.messages.retain(|message| message.id != id);
    }

    pub(super) fn messages(&self) -> impl Iterator<Item = &Message> {
        self.messages.iter()
    }

    /// Whether `bot` may write here.
    pub(super) fn admit(&self, bot: BotId) -> Result<(), Error> {
        if let Some(to) = self.migrated_to {
            return Err(Error::Migrated(to));
        }
        match self.kind {
            ChatKind::Private if self.blocked => Err(Error::Forbidden("bot was blocked by the user")),
            ChatKind::Group if !self.members.contains(&bot) => {
                Err(Error::Forbidden("bot was kicked from the group chat"))
            }
            ChatKind::Supergroup | ChatKind::Forum if !self.members.contains(&bot) => {
                Err(Error::Forbidden("bot was kicked from the supergroup chat"))
            }
            ChatKind::Private | ChatKind::Group | ChatKind::Supergroup | ChatKind::Forum => Ok(()),
        }
    }

    /// Which topic a bot writes to; chats that have none ignore it, as Telegram does.
    pub(super) fn topic(&self, thread: Option<ThreadId>) -> Result<Option<ThreadId>, Error> {
        match (self.kind, thread) {
            (_, None) | (ChatKind::Group | ChatKind::Supergroup, Some(_)) => Ok(None),
            (ChatKind::Forum, Some(thread)) if self.topics.contains(&thread) => Ok(Some(thread)),
            (ChatKind::Forum | ChatKind::Private, Some(_)) => bad_request("message thread not found"),
        }
    }
}

/// Bots and users as the Bot API describes them.
#[derive(Debug, Clone)]
pub(super) struct Person {
    pub(super) first_name: String,
    pub(super) username: Option<String>,
    pub(super) is_bot: bool,
}

#[derive(Debug, Default)]
pub(super) struct Chats {
    people: HashMap<i64, Person>,
    /// Private chats are a bot's own, groups are common to all.
    chats: HashMap<(Option<BotId>, ChatId), Chat>,
}

fn key(bot: BotId, chat: ChatId) -> (Option<BotId>, ChatId) {
    ((chat.0 > 0).then_some(bot), chat)
}

impl Chats {
    pub(super) fn add_person(&mut self, id: i64, person: Person) {
        self.people.insert(id, person);
    }

    /// A user that nobody described.
    pub(super) fn meet(&mut self, user: UserId) {
        let first_name = format!("User {user}");
        self.people.entry(user.0).or_insert(Person { first_name, username: None, is_bot: false });
    }

    pub(super) fn open(&mut self, bot: BotId, id: ChatId, kind: ChatKind, title: &str) -> &mut Chat {
        self.chats.entry(key(bot, id)).or_insert_with(|| Chat {
            id,
            kind,
            title: title.to_owned(),
            members: BTreeSet::from([bot]),
            topics: BTreeSet::new(),
            blocked: false,
            migrated_to: None,
            messages: VecDeque::new(),
            last_message: 0,
        })
    }

    pub(super) fn get(&self, bot: BotId, chat: ChatId) -> Option<&Chat> {
        self.chats.get(&key(bot, chat))
    }

    pub(super) fn get_mut(&mut self, bot: BotId, chat: ChatId) -> Option<&mut Chat> {
        self.chats.get_mut(&key(bot, chat))
    }

    pub(super) fn all_of(&self, bot: BotId) -> impl Iterator<Item = &Chat> {
        self.chats.values().filter(move |chat| chat.members.contains(&bot))
    }

    pub(super) fn person_json(&self, id: i64) -> Value {
        let Some(person) = self.people.get(&id) else {
            return json!({"id": id, "is_bot": false, "first_name": ""});
        };
        let mut user = json!({"id": id, "is_bot": person.is_bot, "first_name": person.first_name});
        if let Some(username) = &person.username {
            user["username"] = json!(username);
        }
        user
    }

    pub(super) fn author_json(&self, author: Author) -> Value {
        match author {
            Author::Bot(BotId(id)) | Author::User(UserId(id)) => self.person_json(id),
        }
    }

    pub(super) fn chat_json(&self, chat: &Chat) -> Value {
        let id = chat.id.0;
        match chat.kind {
            ChatKind::Private => {
                let mut user = self.person_json(id);
                if let Some(user) = user.as_object_mut() {
                    user.remove("is_bot");
                    user.insert("type".into(), json!("private"));
                }
                user
            }
            ChatKind::Group => json!({"id": id, "type": "group", "title": chat.title}),
            ChatKind::Supergroup => json!({"id": id, "type": "supergroup", "title": chat.title}),
            ChatKind::Forum => json!({"id": id, "type": "supergroup", "title": chat.title, "is_forum": true}),
        }
    }

    pub(super) fn message_json(&self, chat: &Chat, message: &Message) -> Value {
        let mut shown = self.bare_message_json(chat, message);
        // A reply within a reply is not shown.
        if let Some(reply_to) = message.reply_to.and_then(|id| chat.message(id)) {
            shown["reply_to_message"] = self.bare_message_json(chat, reply_to);
        }
        shown
    }

    fn bare_message_json(&self, chat: &Chat, message: &Message) -> Value {
        let mut shown = json!({
            "message_id": message.id.0,
            "from": self.author_json(message.from),
            "chat": self.chat_json(chat),
            "date": message.date.as_secs(),
        });
        let Content { kind, text, entities } = &message.content;
        let (text_name, entities_name) = match kind {
            ContentKind::Text => ("text", "entities"),
            ContentKind::Photo => {
                let photo =
                    json!({"file_id": "photo", "file_unique_id": "photo", "width": 90, "height": 90, "file_size": 900});
                shown["photo"] = json!([photo]);
                ("caption", "caption_entities")
            }
            ContentKind::MigrateTo(to) => {
                shown["migrate_to_chat_id"] = json!(to.0);
                return shown;
            }
            ContentKind::MigrateFrom(from) => {
                shown["migrate_from_chat_id"] = json!(from.0);
                return shown;
            }
        };
        if !text.is_empty() {
            shown[text_name] = json!(text);
        }
        if !entities.is_empty() {
            let entities: Vec<_> =
                entities.iter().map(|entity| entity.to_json(|user| self.person_json(user.0))).collect();
            shown[entities_name] = json!(entities);
        }
        if let Some(thread) = message.thread {
            shown["message_thread_id"] = json!(thread.0);
            shown["is_topic_message"] = json!(true);
        }
        if let Some((until, _)) = message.edits.last() {
            shown["edit_date"] = json!(until.as_secs());
        }
        if let Some(markup) = message.reply_markup.as_ref().filter(|markup| markup.get("inline_keyboard").is_some()) {
            shown["reply_markup"] = markup.clone();
        }
        shown
    }
}
