//! What people do on Telegram: write, edit, press buttons, block a bot, open groups and throw bots out of them.
//!
//! Everything here happens at once; what it means for a bot waits among its updates.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::Handle;
use super::chats::{Author, Chat, ChatKind, Content, ContentKind, Message, Person};
use super::ids::{BotId, ChatId, MessageId, ThreadId, UpdateId, UserId};
use super::server::State;
use super::text::{EntityKind, found};

/// What a user writes.
#[derive(Debug, Clone)]
pub struct Saying {
    text: String,
    kind: ContentKind,
    reply_to: Option<MessageId>,
    thread: Option<ThreadId>,
}

impl Saying {
    pub fn text(text: &str) -> Self {
        Self { text: text.to_owned(), kind: ContentKind::Text, reply_to: None, thread: None }
    }

    /// A photo, perhaps with words.
    pub fn photo(caption: &str) -> Self {
        Self { kind: ContentKind::Photo, ..Self::text(caption) }
    }

    pub fn reply_to(self, message: MessageId) -> Self {
        Self { reply_to: Some(message), ..self }
    }

    pub fn in_topic(self, thread: ThreadId) -> Self {
        Self { thread: Some(thread), ..self }
    }
}

impl From<&str> for Saying {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    pub message: MessageId,
    /// The update of the bot that was named. Absent: it gets none.
    pub update: Option<UpdateId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pressed {
    pub query: String,
    /// Absent: the bot does not want such updates.
    pub update: Option<UpdateId>,
}

impl Handle {
    /// Describes a user; one that nobody described has a name made of its number.
    pub fn add_user(&self, user: UserId, first_name: &str, username: Option<&str>) {
        let (first_name, username) = (first_name.to_owned(), username.map(str::to_owned));
        self.server.change(|state| state.chats.add_person(user.0, Person { first_name, username, is_bot: false }));
    }

    /// A group that has been there, with these bots in it.
    pub fn open_group(&self, chat: ChatId, kind: ChatKind, title: &str, bots: &[BotId]) {
        self.server.change(|state| {
            for bot in bots {
                state.chats.open(*bot, chat, kind, title).members.insert(*bot);
            }
        });
    }

    /// A topic of a forum.
    ///
    /// # Errors
    /// When there is no such forum.
    pub fn open_topic(&self, bot: BotId, chat: ChatId, thread: ThreadId) -> Result<()> {
        self.server.change(|state| {
            let chat = state.chats.get_mut(bot, chat).context("no such chat")?;
            ensure!(chat.kind == ChatKind::Forum, "{} has no topics", chat.id);
            chat.topics.insert(thread);
            Ok(())
        })
    }

    /// Writes to a private chat, which it opens, or to a group, where every bot gets what is meant for it.
    ///
    /// # Errors
    /// When a person could not write that there.
    pub fn say(&self, bot: BotId, chat: ChatId, from: UserId, saying: impl Into<Saying>) -> Result<Said> {
        let (saying, now) = (saying.into(), self.server.unix());
        self.server.change(|state| {
            ensure!(state.bots.contains_key(&bot), "there is no bot {bot}");
            state.chats.meet(from);
            if chat == from.chat() {
                state.chats.open(bot, chat, ChatKind::Private, "");
            }
            let there = state.chats.get_mut(bot, chat).with_context(|| format!("{from} is not in chat {chat}"))?;
            ensure!(there.migrated_to.is_none(), "chat {chat} is a supergroup now");
            ensure!(!there.blocked, "{from} blocked bot {bot}");
            ensure!(saying.reply_to.is_none_or(|id| there.message(id).is_some()), "no message to reply to");
            ensure!(saying.thread.is_none_or(|thread| there.topics.contains(&thread)), "no such topic");
            ensure!(!saying.text.is_empty() || saying.kind == ContentKind::Photo, "nothing to say");
            let content = Content { kind: saying.kind, entities: found(&saying.text), text: saying.text };
            let message = there.add(Author::User(from), now, content);
            (message.reply_to, message.thread) = (saying.reply_to, saying.thread);
            let id = message.id;
            Ok(Said { message: id, update: tell(state, bot, chat, id, "message", now) })
        })
    }

    /// Changes what a user wrote.
    ///
    /// # Errors
    /// When there is no such message of a user.
    pub fn edit(&self, bot: BotId, chat: ChatId, id: MessageId, text: &str) -> Result<Said> {
        let now = self.server.unix();
        self.server.change(|state| {
            let message =
                state.chats.get_mut(bot, chat).and_then(|chat| chat.message_mut(id)).context("no such message")?;
            ensure!(matches!(message.from, Author::User(_)), "message {id} is a bot's");
            let kind = message.content.kind;
            message.edit(Content { kind, text: text.to_owned(), entities: found(text) }, now);
            Ok(Said { message: id, update: tell(state, bot, chat, id, "edited_message", now) })
        })
    }

    /// Presses the button of a bot's message that has this `callback_data`.
    ///
    /// # Errors
    /// When there is no such button.
    pub fn press(&self, bot: BotId, chat: ChatId, from: UserId, id: MessageId, data: &str) -> Result<Pressed> {
        let now = self.server.unix();
        self.server.change(|state| {
            state.chats.meet(from);
            let there = state.chats.get(bot, chat).context("no such chat")?;
            let message = there.message(id).context("no such message")?;
            let rows = message.reply_markup.as_ref().and_then(|markup| markup["inline_keyboard"].as_array());
            let mut buttons = rows.into_iter().flatten().filter_map(Value::as_array).flatten();
            ensure!(buttons.any(|button| button["callback_data"] == data), "message {id} has no button {data:?}");
            let query = rand::random_range(1..u64::MAX / 2).to_string();
            let value = json!({
                "id": query,
                "from": state.chats.person_json(from.0),
                "message": state.chats.message_json(there, message),
                "chat_instance": chat.to_string(),
                "data": data,
            });
            state.bots.get_mut(&bot).context("no such bot")?.add_callback(query.clone());
            Ok(Pressed { query, update: state.update(bot, chat, "callback_query", value, now) })
        })
    }

    /// What the bot answered when a button was pressed: the parameters of its call.
    pub fn callback_answer(&self, bot: BotId, query: &str) -> Option<Map<String, Value>> {
        self.server.read(|state| {
            let callbacks = &state.bots.get(&bot)?.callbacks;
            callbacks.iter().find(|(id, _)| id == query).and_then(|(_, answer)| answer.clone())
        })
    }

    /// The user wants nothing more of the bot: it learns so, and cannot write to the chat.
    ///
    /// # Errors
    /// When they have no chat.
    pub fn block(&self, bot: BotId, user: UserId) -> Result<Option<UpdateId>> {
        self.set_blocked(bot, user, true)
    }

    /// # Errors
    /// When they have no chat.
    pub fn unblock(&self, bot: BotId, user: UserId) -> Result<Option<UpdateId>> {
        self.set_blocked(bot, user, false)
    }

    fn set_blocked(&self, bot: BotId, user: UserId, blocked: bool) -> Result<Option<UpdateId>> {
        self.server.change(|state| {
            state.chats.get_mut(bot, user.chat()).context("no such chat")?.blocked = blocked;
            Ok(self.membership(state, bot, user.chat(), user, blocked))
        })
    }

    /// Throws a bot out of a group.
    ///
    /// # Errors
    /// When it is not in it.
    pub fn kick(&self, bot: BotId, chat: ChatId, by: UserId) -> Result<Option<UpdateId>> {
        self.server.change(|state| {
            state.chats.meet(by);
            let there = state.chats.get_mut(bot, chat).context("no such chat")?;
            ensure!(there.members.remove(&bot), "bot {bot} is not in chat {chat}");
            Ok(self.membership(state, bot, chat, by, true))
        })
    }

    fn membership(&self, state: &mut State, bot: BotId, chat: ChatId, by: UserId, kicked: bool) -> Option<UpdateId> {
        let now = self.server.unix();
        let user = state.chats.person_json(bot.0);
        let member = |kicked: bool| {
            if kicked {
                json!({"user": user, "status": "kicked", "until_date": 0})
            } else {
                json!({"user": user, "status": "member"})
            }
        };
        let value = json!({
            "chat": state.chats.chat_json(state.chats.get(bot, chat)?),
            "from": state.chats.person_json(by.0),
            "date": now.as_secs(),
            "old_chat_member": member(!kicked),
            "new_chat_member": member(kicked),
        });
        state.update(bot, chat, "my_chat_member", value, now)
    }

    /// Makes a group a supergroup with another number: both say so, and the old one is closed.
    ///
    /// # Errors
    /// When it is no such group, or `to` is no number of a new supergroup.
    pub fn migrate(&self, bot: BotId, group: ChatId, to: ChatId, by: UserId) -> Result<()> {
        let now = self.server.unix();
        self.server.change(|state| {
            state.chats.meet(by);
            ensure!(to.0 < 0 && state.chats.get(bot, to).is_none(), "chat {to} is not new");
            let old = state.chats.get_mut(bot, group).context("no such chat")?;
            if old.kind != ChatKind::Group || old.migrated_to.is_some() {
                bail!("chat {group} is no group");
            }
            let service = |kind| Content { kind, text: String::new(), entities: Vec::new() };
            let (title, members) = (old.title.clone(), old.members.clone());
            let last = old.add(Author::User(by), now, service(ContentKind::MigrateTo(to))).id;
            tell(state, bot, group, last, "message", now);
            if let Some(old) = state.chats.get_mut(bot, group) {
                old.migrated_to = Some(to);
            }
            let new = state.chats.open(bot, to, ChatKind::Supergroup, &title);
            new.members = members;
            let first = new.add(Author::User(by), now, service(ContentKind::MigrateFrom(group))).id;
            tell(state, bot, to, first, "message", now);
            Ok(())
        })
    }
}

/// Gives a message to every bot of the chat that it is meant for; says which update `bot` got.
fn tell(
    state: &mut State,
    bot: BotId,
    chat: ChatId,
    id: MessageId,
    kind: &str,
    now: std::time::Duration,
) -> Option<UpdateId> {
    let there = state.chats.get(bot, chat)?;
    let message = there.message(id)?;
    let value = state.chats.message_json(there, message);
    let receivers: Vec<_> =
        there.members.iter().copied().filter(|member| reaches(state, *member, there, message)).collect();
    let mut update = None;
    for receiver in receivers {
        let id = state.update(receiver, chat, kind, value.clone(), now);
        if receiver == bot {
            update = id;
        }
    }
    update
}

/// Whether a message of a user is for this bot: all are in private, and in groups those that privacy mode lets through.
fn reaches(state: &State, bot: BotId, chat: &Chat, message: &Message) -> bool {
    let Some(account) = state.bots.get(&bot).map(|bot| &bot.account) else { return false };
    let service = !matches!(message.content.kind, ContentKind::Text | ContentKind::Photo);
    if chat.kind == ChatKind::Private || account.reads_all_group_messages || service {
        return true;
    }
    let reply_to = message.reply_to.and_then(|id| chat.message(id));
    if reply_to.is_some_and(|answered| answered.from == Author::Bot(bot)) {
        return true;
    }
    let units: Vec<u16> = message.content.text.encode_utf16().collect();
    message.content.entities.iter().any(|entity| {
        let marked = String::from_utf16_lossy(&units[entity.offset..entity.offset + entity.length]);
        let named = marked.split_once('@').map(|(_, name)| name.eq_ignore_ascii_case(&account.username));
        match entity.kind {
            EntityKind::Mention => named == Some(true),
            // A command that names no bot is for all.
            EntityKind::BotCommand => named != Some(false),
            EntityKind::Bold
            | EntityKind::Italic
            | EntityKind::Underline
            | EntityKind::Strikethrough
            | EntityKind::Spoiler
            | EntityKind::Code
            | EntityKind::Pre { .. }
            | EntityKind::TextLink { .. }
            | EntityKind::TextMention { .. }
            | EntityKind::CustomEmoji { .. }
            | EntityKind::Blockquote
            | EntityKind::ExpandableBlockquote => false,
        }
    })
}
