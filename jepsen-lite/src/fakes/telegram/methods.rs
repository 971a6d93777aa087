//! The methods of the Bot API that are modelled, each as a function of its parameters and the state.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::chats::{Author, ChatKind, Content, ContentKind, Message};
use super::error::{Error, bad_request};
use super::ids::{BotId, ChatId, MessageId, ThreadId};
use super::parameters::Parameters;
use super::server::{Server, State};
use super::text::{Formatted, formatted};
use super::{polls, webhook};

macro_rules! methods {
    ($($variant:ident $name:literal),* $(,)?) => {
        /// A method that is modelled.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Method { $($variant),* }

        impl Method {
            /// As the documentation spells it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// In any case: teloxide writes `GetMe`.
            pub fn parse(called: &str) -> Option<Self> {
                [$(Self::$variant),*].into_iter().find(|method| method.name().eq_ignore_ascii_case(called))
            }
        }
    };
}

methods! {
    GetMe "getMe",
    GetUpdates "getUpdates",
    SetWebhook "setWebhook",
    DeleteWebhook "deleteWebhook",
    GetWebhookInfo "getWebhookInfo",
    SendMessage "sendMessage",
    EditMessageText "editMessageText",
    DeleteMessage "deleteMessage",
    SendChatAction "sendChatAction",
    SetMyCommands "setMyCommands",
    GetMyCommands "getMyCommands",
    DeleteMyCommands "deleteMyCommands",
    GetChat "getChat",
    AnswerCallbackQuery "answerCallbackQuery",
}

const ACTIONS: [&str; 13] = [
    "cancel",
    "typing",
    "upload_photo",
    "record_video",
    "upload_video",
    "record_voice",
    "upload_voice",
    "record_audio",
    "upload_audio",
    "upload_document",
    "choose_sticker",
    "find_location",
    "record_video_note",
];
const MAX_COMMANDS: usize = 100;

pub(super) struct Reply {
    pub(super) result: Value,
    pub(super) description: Option<&'static str>,
}

impl Reply {
    pub(super) fn said(result: Value, description: &'static str) -> Self {
        Self { result, description: Some(description) }
    }
}

pub(super) async fn call(server: &Arc<Server>, bot: BotId, method: Method, with: &Parameters) -> Result<Reply, Error> {
    let result = match method {
        Method::SetWebhook => return webhook::set(server, bot, with),
        Method::DeleteWebhook => return webhook::delete(server, bot, with),
        Method::GetUpdates => polls::get_updates(server, bot, with).await?,
        Method::GetWebhookInfo => webhook::info(server, bot)?,
        Method::GetMe => server.read(|state| get_me(state, bot))?,
        Method::SendMessage => send_message(server, bot, with)?,
        Method::EditMessageText => edit_message_text(server, bot, with)?,
        Method::DeleteMessage => server.change(|state| delete_message(state, bot, with))?,
        Method::SendChatAction => server.read(|state| send_chat_action(state, bot, with))?,
        Method::SetMyCommands => set_my_commands(server, bot, with)?,
        Method::GetMyCommands => {
            server.read(|state| state.bots.get(&bot).map_or(json!([]), |bot| bot.commands.clone()))
        }
        Method::DeleteMyCommands => json!(server.change_bot(bot, |bot| bot.commands = json!([])).is_some()),
        Method::GetChat => server.read(|state| get_chat(state, bot, with))?,
        Method::AnswerCallbackQuery => answer_callback_query(server, bot, with)?,
    };
    Ok(Reply { result, description: None })
}

fn get_me(state: &State, bot: BotId) -> Result<Value, Error> {
    let account = &state.bots.get(&bot).ok_or(Error::Unauthorized)?.account;
    let mut me = state.chats.person_json(bot.0);
    me["can_join_groups"] = json!(true);
    me["can_read_all_group_messages"] = json!(account.reads_all_group_messages);
    me["supports_inline_queries"] = json!(false);
    me["can_connect_to_business"] = json!(false);
    me["has_main_web_app"] = json!(false);
    Ok(me)
}

fn chat_id(with: &Parameters) -> Result<ChatId, Error> {
    match with.text("chat_id").filter(|id| !id.is_empty()) {
        None => bad_request("chat_id is empty"),
        // Also of a public name: no chat here has one.
        Some(id) => id.trim().parse().map(ChatId).map_err(|_| Error::BadRequest("chat not found".into())),
    }
}

fn not_found<T>() -> Result<T, Error> {
    bad_request("chat not found")
}

fn content(with: &Parameters) -> Result<Content, Error> {
    let parse_mode = with.text("parse_mode").unwrap_or_default();
    let text = with.text("text").unwrap_or_default();
    let Formatted { text, entities } = formatted(&text, &parse_mode, with.json("entities").as_ref())?;
    Ok(Content { kind: ContentKind::Text, text, entities })
}

/// Which message it answers, and whether it may go without it.
fn reply_to(with: &Parameters) -> Result<Option<(MessageId, bool)>, Error> {
    let number = |value: &Value| value.as_i64().and_then(|id| i32::try_from(id).ok()).map(MessageId);
    if let Some(reply) = with.json("reply_parameters") {
        return match number(&reply["message_id"]) {
            Some(id) => Ok(Some((id, reply["allow_sending_without_reply"] == true))),
            None => bad_request("Field \"message_id\" must be of type Number"),
        };
    }
    let old = with.integer("reply_to_message_id").filter(|id| *id != 0).and_then(|id| i32::try_from(id).ok());
    Ok(old.map(|id| (MessageId(id), with.flag("allow_sending_without_reply"))))
}

fn send_message(server: &Server, bot: BotId, with: &Parameters) -> Result<Value, Error> {
    let content = content(with)?;
    let (to, reply_to) = (chat_id(with)?, reply_to(with)?);
    let thread = with.integer("message_thread_id").filter(|id| *id != 0).and_then(|id| i32::try_from(id).ok());
    let now = server.unix();
    server.change(|state| {
        let Some(chat) = state.chats.get(bot, to) else { return not_found() };
        chat.admit(bot)?;
        let thread = chat.topic(thread.map(ThreadId))?;
        let reply_to = match reply_to {
            Some((id, _)) if chat.message(id).is_some() => Some(id),
            Some((_, false)) => return bad_request("message to be replied not found"),
            Some((_, true)) | None => None,
        };
        pace(server, state, bot, to)?;
        let Some(chat) = state.chats.get_mut(bot, to) else { return not_found() };
        let message = chat.add(Author::Bot(bot), now, content);
        (message.reply_to, message.thread, message.reply_markup) = (reply_to, thread, with.json("reply_markup"));
        let id = message.id;
        shown(state, bot, to, id)
    })
}

/// Counts a message, or refuses it when the limits are on.
fn pace(server: &Server, state: &mut State, bot: BotId, chat: ChatId) -> Result<(), Error> {
    let (Some(limits), Some(bot)) = (&server.options.rate_limits, state.bots.get_mut(&bot)) else { return Ok(()) };
    bot.sent.admit(limits, chat, Instant::now()).map_err(|wait| Error::TooManyRequests(whole_seconds(wait)))
}

fn whole_seconds(wait: Duration) -> u32 {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    u32::try_from(seconds.max(1)).unwrap_or(u32::MAX)
}

fn shown(state: &State, bot: BotId, chat: ChatId, message: MessageId) -> Result<Value, Error> {
    let Some(chat) = state.chats.get(bot, chat) else { return not_found() };
    chat.message(message).map(|message| state.chats.message_json(chat, message)).map_or_else(not_found, Ok)
}

fn message_id(with: &Parameters) -> Result<MessageId, Error> {
    match with.integer("message_id").and_then(|id| i32::try_from(id).ok()).filter(|id| *id > 0) {
        Some(id) => Ok(MessageId(id)),
        None => bad_request("message identifier is not specified"),
    }
}

fn edit_message_text(server: &Server, bot: BotId, with: &Parameters) -> Result<Value, Error> {
    let content = content(with)?;
    let (to, id, markup) = (chat_id(with)?, message_id(with)?, with.json("reply_markup"));
    let now = server.unix();
    server.change(|state| {
        let Some(chat) = state.chats.get(bot, to) else { return not_found() };
        chat.admit(bot)?;
        match chat.message(id) {
            None => return bad_request("message to edit not found"),
            Some(Message { from, .. }) if *from != Author::Bot(bot) => return bad_request("message can't be edited"),
            Some(message) if message.content == content && message.reply_markup == markup => {
                return bad_request(
                    "message is not modified: specified new message content and reply markup are exactly the same as a \
                     current content and reply markup of the message",
                );
            }
            Some(_) => {}
        }
        pace(server, state, bot, to)?;
        if let Some(message) = state.chats.get_mut(bot, to).and_then(|chat| chat.message_mut(id)) {
            message.edit(content, now);
            message.reply_markup = markup;
        }
        shown(state, bot, to, id)
    })
}

fn delete_message(state: &mut State, bot: BotId, with: &Parameters) -> Result<Value, Error> {
    let (from, id) = (chat_id(with)?, message_id(with)?);
    let Some(chat) = state.chats.get_mut(bot, from) else { return not_found() };
    chat.admit(bot)?;
    match chat.message(id).map(|message| message.from) {
        None => bad_request("message to delete not found"),
        Some(Author::User(_)) if chat.kind != ChatKind::Private => bad_request("message can't be deleted"),
        Some(Author::User(_) | Author::Bot(_)) => {
            chat.remove(id);
            Ok(json!(true))
        }
    }
}

fn send_chat_action(state: &State, bot: BotId, with: &Parameters) -> Result<Value, Error> {
    if !with.text("action").is_some_and(|action| ACTIONS.contains(&action.to_ascii_lowercase().as_str())) {
        return bad_request("wrong parameter action in request");
    }
    let Some(chat) = state.chats.get(bot, chat_id(with)?) else { return not_found() };
    chat.admit(bot)?;
    Ok(json!(true))
}

fn set_my_commands(server: &Server, bot: BotId, with: &Parameters) -> Result<Value, Error> {
    let Some(Value::Array(commands)) = with.json("commands") else {
        return bad_request("can't parse commands JSON object");
    };
    if commands.len() > MAX_COMMANDS {
        return bad_request("BOT_COMMANDS_TOO_MUCH");
    }
    for command in &commands {
        let (name, description) = (command["command"].as_str(), command["description"].as_str());
        let name = name.unwrap_or_default().trim_start_matches('/');
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if name.is_empty() || name.len() > 32 || !name.chars().all(valid) {
            return bad_request("BOT_COMMAND_INVALID");
        }
        if !(1..=256).contains(&description.unwrap_or_default().chars().count()) {
            return bad_request("BOT_COMMAND_DESCRIPTION_INVALID");
        }
    }
    Ok(json!(server.change_bot(bot, |bot| bot.commands = Value::Array(commands)).is_some()))
}

fn get_chat(state: &State, bot: BotId, with: &Parameters) -> Result<Value, Error> {
    let Some(chat) = state.chats.get(bot, chat_id(with)?) else { return not_found() };
    // A blocked or migrated chat may still be looked at; one that the bot was thrown out of may not.
    if !chat.members.contains(&bot) {
        chat.admit(bot)?;
    }
    let mut full = state.chats.chat_json(chat);
    full["accent_color_id"] = json!(0);
    full["max_reaction_count"] = json!(11);
    full["accepted_gift_types"] =
        json!({"unlimited_gifts": false, "limited_gifts": false, "unique_gifts": false, "premium_subscription": false});
    Ok(full)
}

fn answer_callback_query(server: &Server, bot: BotId, with: &Parameters) -> Result<Value, Error> {
    let id = with.text("callback_query_id").unwrap_or_default();
    let answered = server.change_bot(bot, |bot| {
        let waiting = bot.callbacks.iter_mut().find(|(known, answer)| *known == id && answer.is_none());
        waiting.map(|(_, answer)| *answer = Some(with.clone().into_map())).is_some()
    });
    match answered {
        Some(true) => Ok(json!(true)),
        Some(false) | None => bad_request("query is too old and response timeout expired or query ID is invalid"),
    }
}
