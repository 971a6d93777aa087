//! What a gateway event means to us. Pure.
//!
//! Of an event only the fields that are read here have a type, with serenity's own types in them: its whole `Message` would
//! refuse one whose poll, component or thread has a form that it does not know, and a person's message would be lost for it.

use std::collections::HashMap;

use openclaw_proto::ids::ChannelAccount;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serenity::constants::Opcode;
use serenity::model::channel::{ChannelType, MessageType};
use serenity::model::id::{ChannelId, GuildId, MessageId, UserId, WebhookId};

use crate::message::{InboundMessage, Place, ReplyAddress, Sender};

/// More than Discord lets anybody write (4000).
const TEXT_CHARS: usize = 8000;
const NAME_CHARS: usize = 100;
/// Channels whose place is remembered; past it all are forgotten, and asked for again.
const CHANNELS: usize = 100_000;

/// What every payload of the gateway has around its data.
#[derive(Debug, Deserialize)]
pub(super) struct Envelope {
    pub(super) op: Opcode,
    /// The number of a dispatch.
    #[serde(rename = "s", default)]
    pub(super) seq: Option<u64>,
    /// What a dispatch is about.
    #[serde(rename = "t", default)]
    pub(super) kind: Option<String>,
}

/// Reads the data of a payload.
pub(super) fn data<T: DeserializeOwned>(payload: &str) -> Result<T, serde_json::Error> {
    #[derive(Deserialize)]
    struct Data<T> {
        d: T,
    }
    serde_json::from_str::<Data<T>>(payload).map(|payload| payload.d)
}

#[derive(Debug, Deserialize)]
pub(super) struct Hello {
    /// Milliseconds.
    pub(super) heartbeat_interval: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Ready {
    pub(super) session_id: String,
    pub(super) resume_gateway_url: String,
    pub(super) user: Somebody,
}

#[derive(Debug, Deserialize)]
pub(super) struct Somebody {
    pub(super) id: UserId,
}

#[derive(Debug, Deserialize)]
struct Author {
    id: UserId,
    #[serde(default)]
    username: String,
    #[serde(default)]
    global_name: Option<String>,
    #[serde(default)]
    bot: bool,
}

#[derive(Debug, Default, Deserialize)]
struct Member {
    #[serde(default)]
    nick: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Answered {
    author: Somebody,
}

#[derive(Debug, Deserialize)]
struct Message {
    id: MessageId,
    #[serde(rename = "type")]
    kind: MessageType,
    channel_id: ChannelId,
    #[serde(default)]
    guild_id: Option<GuildId>,
    author: Author,
    #[serde(default)]
    member: Option<Member>,
    #[serde(default)]
    webhook_id: Option<WebhookId>,
    #[serde(default)]
    content: String,
    #[serde(default)]
    mentions: Vec<Somebody>,
    #[serde(default)]
    referenced_message: Option<Answered>,
}

/// The message in a `MESSAGE_CREATE`, if a person wrote it and there is text in it. In a guild its place is a group of its
/// own until [`Threads::settle`] has seen it.
///
/// # Errors
/// When the payload has another form than Discord documents.
pub(super) fn message(
    payload: &str,
    account: &ChannelAccount,
    bot: UserId,
) -> Result<Option<InboundMessage>, serde_json::Error> {
    let message: Message = data(payload)?;
    // Programs would answer each other for ever.
    if message.author.bot || message.author.id == bot || message.webhook_id.is_some() {
        return Ok(None);
    }
    if !matches!(message.kind, MessageType::Regular | MessageType::InlineReply) {
        return Ok(None);
    }
    let names = [format!("<@{bot}>"), format!("<@!{bot}>")];
    let direct = message.guild_id.is_none();
    let named = message.mentions.iter().any(|user| user.id == bot)
        || names.iter().any(|name| message.content.contains(name.as_str()));
    let answers = message.referenced_message.is_some_and(|answered| answered.author.id == bot);
    let text = addressee_removed(message.content.trim(), &names);
    // Nobody can write an empty message: it is a picture, a sticker, or a text that this bot may not read.
    if text.is_empty() {
        return Ok(None);
    }
    let sender = message.author.id.to_string();
    let nick = message.member.and_then(|member| member.nick);
    let name = nick.or(message.author.global_name).unwrap_or(message.author.username);
    let place = if direct {
        Place::Direct { peer: sender.clone() }
    } else {
        Place::Group { id: message.channel_id.to_string(), topic: None }
    };
    Ok(Some(InboundMessage {
        account: account.clone(),
        external_id: message.id.to_string(),
        place,
        sender: Sender { id: sender, name: bounded(&name, NAME_CHARS).to_owned() },
        text: bounded(text, TEXT_CHARS).to_owned(),
        addressed: direct || named || answers,
        reply_to: ReplyAddress {
            account: account.clone(),
            // A thread is a channel of its own to whoever writes into it.
            chat: message.channel_id.to_string(),
            thread: None,
            message: Some(message.id.to_string()),
        },
    }))
}

/// Without the bot's name at its beginning, unless it is all that there is.
fn addressee_removed<'a>(text: &'a str, names: &[String]) -> &'a str {
    let mut rest = text;
    while let Some(after) = names.iter().find_map(|name| rest.strip_prefix(name.as_str())) {
        rest = after.trim_start_matches([',', ':']).trim_start();
    }
    if rest.is_empty() { text } else { rest }
}

fn bounded(text: &str, chars: usize) -> &str {
    text.char_indices().nth(chars).map_or(text, |(at, _)| &text[..at])
}

/// A channel of a guild, or a thread in one.
#[derive(Debug, Deserialize)]
pub(super) struct Channel {
    pub(super) id: ChannelId,
    #[serde(rename = "type")]
    kind: ChannelType,
    #[serde(default)]
    parent_id: Option<ChannelId>,
}

impl Channel {
    /// The channel that it is a thread of. Other channels have a category for a parent.
    pub(super) fn thread_of(&self) -> Option<ChannelId> {
        let thread =
            matches!(self.kind, ChannelType::NewsThread | ChannelType::PublicThread | ChannelType::PrivateThread);
        self.parent_id.filter(|_| thread)
    }
}

/// Which channel is a thread of which. Discord says it when a session begins and when a thread does, not in a message.
#[derive(Debug, Default)]
pub(super) struct Threads {
    parents: HashMap<ChannelId, Option<ChannelId>>,
}

impl Threads {
    /// Reads whatever event may say it; others say nothing.
    pub(super) fn hear(&mut self, kind: &str, payload: &str) {
        #[derive(Deserialize)]
        struct Lists {
            #[serde(default)]
            channels: Vec<Channel>,
            #[serde(default)]
            threads: Vec<Channel>,
        }
        let channels = match kind {
            "GUILD_CREATE" => {
                data(payload).map(|Lists { channels, threads }| channels.into_iter().chain(threads).collect())
            }
            "THREAD_LIST_SYNC" => {
                #[derive(Deserialize)]
                struct Synced {
                    #[serde(default)]
                    threads: Vec<Channel>,
                }
                data(payload).map(|Synced { threads }| threads)
            }
            "CHANNEL_CREATE" | "THREAD_CREATE" => data(payload).map(|channel| vec![channel]),
            _ => return,
        };
        // What could not be read is asked for when somebody writes there.
        for channel in channels.unwrap_or_default() {
            self.learn(channel.id, channel.thread_of());
        }
    }

    pub(super) fn learn(&mut self, channel: ChannelId, thread_of: Option<ChannelId>) {
        if self.parents.len() >= CHANNELS {
            self.parents.clear();
        }
        self.parents.insert(channel, thread_of);
    }

    /// The channel of which nothing is known yet, if the message came from one.
    pub(super) fn unknown(&self, message: &InboundMessage) -> Option<ChannelId> {
        group(message).filter(|channel| !self.parents.contains_key(channel))
    }

    /// Makes a thread the topic of its channel.
    pub(super) fn settle(&self, message: &mut InboundMessage) {
        let thread = group(message).and_then(|channel| Some((channel, (*self.parents.get(&channel)?)?)));
        if let Some((thread, channel)) = thread {
            message.place = Place::Group { id: channel.to_string(), topic: Some(thread.to_string()) };
        }
    }
}

fn group(message: &InboundMessage) -> Option<ChannelId> {
    match &message.place {
        Place::Group { id, topic: None } => id.parse().ok(),
        Place::Group { topic: Some(_), .. } | Place::Direct { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const BOT: UserId = UserId::new(900);

    fn written(change: impl FnOnce(&mut Value)) -> Option<InboundMessage> {
        let mut message = json!({
            "id": "1001", "type": 0, "channel_id": "77", "guild_id": "5", "content": "hello",
            "author": {"id": "42", "username": "ada", "global_name": "Ada"}, "member": {"nick": null, "roles": []},
            "mentions": [], "attachments": [], "poll": {"of": "some new form"}, "components": [{"type": 99}],
        });
        change(&mut message);
        let payload = json!({"op": 0, "s": 7, "t": "MESSAGE_CREATE", "d": message}).to_string();
        super::message(&payload, &account(), BOT).unwrap()
    }

    fn account() -> ChannelAccount {
        ChannelAccount::new("discord", "default").unwrap()
    }

    /// In a guild: the text that is left, and whether the bot was meant.
    fn check(content: &str, expected: (&str, bool)) {
        let message = written(|message| message["content"] = content.into()).unwrap();
        assert_eq!((message.text.as_str(), message.addressed), expected, "{content}");
    }

    fn ignored(change: impl FnOnce(&mut Value)) {
        assert_eq!(written(change), None);
    }

    #[test]
    fn a_message_in_a_guild_is_for_its_channel() {
        let message = written(|_| ()).unwrap();
        assert_eq!(message.place, Place::Group { id: "77".to_owned(), topic: None });
        assert_eq!(message.sender, Sender { id: "42".to_owned(), name: "Ada".to_owned() });
        assert_eq!((message.external_id.as_str(), message.text.as_str()), ("1001", "hello"));
        let to = message.reply_to;
        assert_eq!((to.chat.as_str(), to.thread, to.message.as_deref()), ("77", None, Some("1001")));
    }

    #[test]
    fn without_a_guild_it_is_for_the_bot_alone() {
        let message = written(|message| message["guild_id"] = Value::Null).unwrap();
        assert_eq!((message.place, message.addressed), (Place::Direct { peer: "42".to_owned() }, true));
        assert_eq!(message.reply_to.chat, "77");
    }

    #[test]
    fn the_bot_is_meant_by_name_or_by_an_answer_to_it() {
        check("hello", ("hello", false));
        check("<@900> hello", ("hello", true));
        check("<@!900>, <@900> hello ", ("hello", true));
        check("hello <@900>", ("hello <@900>", true));
        check("<@900>", ("<@900>", true));
        check("<@&900> @everyone", ("<@&900> @everyone", false));
        check("<@901> <@900> hello", ("<@901> <@900> hello", true));
        let answer = |author: &str| {
            let answered = json!({"author": {"id": author}, "content": "before"});
            written(|message| {
                message["referenced_message"] = answered;
                message["type"] = 19.into();
            })
        };
        assert!(answer("900").unwrap().addressed && !answer("43").unwrap().addressed);
        let mentioned = written(|message| message["mentions"] = json!([{"id": "900", "username": "bot"}]));
        assert!(mentioned.unwrap().addressed);
    }

    #[test]
    fn programs_and_the_platform_are_not_answered() {
        ignored(|message| message["author"]["bot"] = true.into());
        ignored(|message| message["author"]["id"] = "900".into());
        ignored(|message| message["webhook_id"] = "3".into());
        for kind in [6, 7, 18, 20, 21, 46, 200] {
            ignored(|message| message["type"] = kind.into());
        }
    }

    #[test]
    fn a_message_without_text_is_ignored() {
        ignored(|message| message["content"] = "".into());
        ignored(|message| message["content"] = " \n".into());
        ignored(|message| {
            message["content"] = "".into();
            message["attachments"] = json!([{"id": "1", "filename": "a.png"}]);
        });
    }

    #[test]
    fn texts_and_names_have_a_limit() {
        let message = written(|message| {
            message["content"] = "漢".repeat(9000).into();
            message["member"]["nick"] = "n".repeat(200).into();
        });
        let message = message.unwrap();
        assert_eq!((message.text.chars().count(), message.sender.name.len()), (TEXT_CHARS, NAME_CHARS));
    }

    #[test]
    fn a_thread_is_a_topic_of_its_channel() {
        let mut threads = Threads::default();
        let mut message = written(|_| ()).unwrap();
        assert_eq!(threads.unknown(&message), Some(ChannelId::new(77)));
        threads.settle(&mut message);
        assert_eq!(message.place, Place::Group { id: "77".to_owned(), topic: None }, "a group of its own");
        let thread = json!({"id": "77", "type": 11, "parent_id": "70", "name": "aside", "guild_id": "5"});
        let channel = json!({"id": "70", "type": 0, "parent_id": "60"});
        let events = [
            ("THREAD_CREATE", thread.clone()),
            ("GUILD_CREATE", json!({"id": "5", "channels": [channel], "threads": [thread]})),
            ("THREAD_LIST_SYNC", json!({"guild_id": "5", "threads": [thread]})),
        ];
        for (kind, data) in events {
            let mut threads = Threads::default();
            threads.hear(kind, &json!({"op": 0, "t": kind, "s": 1, "d": data}).to_string());
            let mut message = message.clone();
            assert_eq!(threads.unknown(&message), None, "{kind}");
            threads.settle(&mut message);
            assert_eq!(message.place, Place::Group { id: "70".to_owned(), topic: Some("77".to_owned()) });
            assert_eq!(message.reply_to.chat, "77");
        }
        threads.hear("GUILD_CREATE", &json!({"d": {"id": "5", "channels": [{"id": "77", "type": 0}]}}).to_string());
        threads.hear("GUILD_CREATE", &json!({"d": {"id": "6", "unavailable": true}}).to_string());
        threads.hear("PRESENCE_UPDATE", "whatever");
        assert_eq!(threads.unknown(&message), None);
    }
}
