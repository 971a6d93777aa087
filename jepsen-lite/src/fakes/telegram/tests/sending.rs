//! What a bot does in chats.

use serde_json::json;
use teloxide::payloads::{AnswerCallbackQuerySetters, EditMessageTextSetters, SendMessageSetters};
use teloxide::prelude::Requester;
use teloxide::types::{
    BotCommand, ChatAction, ChatId as To, InlineKeyboardButton, InlineKeyboardMarkup, MessageEntityKind, ParseMode,
    ReplyParameters,
};
use teloxide::{ApiError, RequestError};

use super::*;

const TO_ANN: To = To(ANN.0);
const GROUP: ChatId = ChatId(-100);
const FORUM: ChatId = ChatId(-1_000_000_000_500);

/// A server on which Ann has said hello to the bot.
async fn met(options: Options) -> (Handle, Bot) {
    let handle = started(options).await;
    handle.say(BOT, ANN.chat(), ANN, "hello").unwrap();
    let bot = teloxide(&handle, TOKEN);
    (handle, bot)
}

fn api_error<T: std::fmt::Debug>(result: Result<T, RequestError>) -> ApiError {
    let error = result.unwrap_err();
    let RequestError::Api(error) = error else { panic!("{error}") };
    error
}

#[tokio::test]
async fn a_message_is_sent_and_edited_and_its_history_is_kept() {
    let (handle, bot) = met(options()).await;
    let sent = bot.send_message(TO_ANN, "thinking").await.unwrap();
    assert_eq!((sent.text(), sent.from.as_ref().unwrap().id.0), (Some("thinking"), BOT.0.unsigned_abs()));
    let edited = bot.edit_message_text(TO_ANN, sent.id, "<b>42</b>").parse_mode(ParseMode::Html).await.unwrap();
    assert!(edited.edit_date().is_some());
    let error = api_error(bot.edit_message_text(TO_ANN, sent.id, "<b>42</b> ").parse_mode(ParseMode::Html).await);
    assert_eq!(error, ApiError::MessageNotModified);

    let message = handle.wait_for_message(BOT, |message| message.text() == "42", WITHIN).await.unwrap();
    assert_eq!(message.content.entities, [Entity { kind: EntityKind::Bold, offset: 0, length: 2 }]);
    let earlier: Vec<_> = message.edits.iter().map(|(_, content)| content.text.as_str()).collect();
    assert_eq!(earlier, ["thinking"]);
    assert_eq!(handle.messages(BOT, ANN.chat()).len(), 1, "what users said is not the bot's");
}

#[tokio::test]
async fn a_waiting_test_is_told_of_a_message() {
    let (handle, bot) = met(options()).await;
    let send = tokio::spawn(async move { bot.send_message(TO_ANN, "done").await });
    handle.wait_for_message(BOT, |message| message.text() == "done", WITHIN).await.unwrap();
    within(send).await.unwrap().unwrap();
    let error = handle.wait_for_message(BOT, |_| false, Duration::from_millis(1)).await.unwrap_err();
    assert_eq!(error.to_string(), "no such message within 1ms");
}

#[tokio::test]
async fn entities_come_back_as_telegram_reads_them() {
    let (_handle, bot) = met(options()).await;
    let text = "*bold* and [a link](https://example.com/)";
    let sent = bot.send_message(TO_ANN, text).parse_mode(ParseMode::MarkdownV2).await.unwrap();
    assert_eq!(sent.text(), Some("bold and a link"));
    let url = "https://example.com/".parse().unwrap();
    let kinds: Vec<_> = sent.entities().unwrap().iter().map(|entity| entity.kind.clone()).collect();
    assert_eq!(kinds, [MessageEntityKind::Bold, MessageEntityKind::TextLink { url }]);
    let entities = [teloxide::types::MessageEntity::code(0, 2)];
    let sent = bot.send_message(TO_ANN, "fn").entities(entities.clone()).await.unwrap();
    assert_eq!(sent.entities(), Some(&entities[..]));
}

#[tokio::test]
async fn a_text_that_does_not_parse_is_refused_and_not_sent() {
    let (handle, bot) = met(options()).await;
    let error = api_error(bot.send_message(TO_ANN, "1 < 2").parse_mode(ParseMode::Html).await);
    let ApiError::CantParseEntities(what) = &error else { panic!("{error}") };
    assert_eq!(what, "Bad Request: can't parse entities: Unsupported start tag \"\" at byte offset 2");
    let error = api_error(bot.send_message(TO_ANN, "Done.").parse_mode(ParseMode::MarkdownV2).await);
    assert!(matches!(error, ApiError::CantParseEntities(_)), "{error}");
    assert_eq!(api_error(bot.send_message(TO_ANN, "").await), ApiError::MessageTextIsEmpty);
    assert_eq!(api_error(bot.send_message(TO_ANN, "x".repeat(MAX_TEXT + 1)).await), ApiError::MessageIsTooLong);
    assert_eq!(handle.messages(BOT, ANN.chat()).len(), 0);
}

#[tokio::test]
async fn a_bot_writes_only_where_it_may() {
    let (handle, bot) = met(options()).await;
    assert_eq!(api_error(bot.send_message(To(BEN.0), "x").await), ApiError::ChatNotFound);
    let other = teloxide(&handle, OTHER_TOKEN);
    assert_eq!(api_error(other.send_message(TO_ANN, "x").await), ApiError::ChatNotFound, "Ann knows one bot alone");
    handle.block(BOT, ANN).unwrap();
    assert_eq!(api_error(bot.send_message(TO_ANN, "x").await), ApiError::BotBlocked);
    handle.unblock(BOT, ANN).unwrap();
    bot.send_message(TO_ANN, "x").await.unwrap();

    handle.open_group(GROUP, ChatKind::Group, "a group", &[BOT]);
    let group = To(GROUP.0);
    bot.send_message(group, "x").await.unwrap();
    let supergroup = ChatId(-1_000_000_000_100);
    handle.migrate(BOT, GROUP, supergroup, ANN).unwrap();
    let error = bot.send_message(group, "x").await.unwrap_err();
    assert!(matches!(error, RequestError::MigrateToChatId(to) if to.0 == supergroup.0), "{error}");
    bot.send_message(To(supergroup.0), "x").await.unwrap();
    handle.kick(BOT, supergroup, ANN).unwrap();
    assert_eq!(api_error(bot.send_message(To(supergroup.0), "x").await), ApiError::BotKickedFromSupergroup);
}

#[tokio::test]
async fn replies_and_topics_are_kept() {
    let (handle, bot) = met(options()).await;
    let asked = handle.say(BOT, ANN.chat(), ANN, "and?").unwrap().message;
    let reply = |id: MessageId| ReplyParameters::new(teloxide::types::MessageId(id.0));
    let sent = bot.send_message(TO_ANN, "so").reply_parameters(reply(asked)).await.unwrap();
    assert_eq!(sent.reply_to_message().unwrap().text(), Some("and?"));
    let nothing = reply(MessageId(999));
    let error = api_error(bot.send_message(TO_ANN, "x").reply_parameters(nothing.clone()).await);
    assert_eq!(error, ApiError::MessageToReplyNotFound);
    bot.send_message(TO_ANN, "x").reply_parameters(nothing.allow_sending_without_reply()).await.unwrap();

    handle.open_group(FORUM, ChatKind::Forum, "a forum", &[BOT]);
    handle.open_topic(BOT, FORUM, ThreadId(5)).unwrap();
    let thread = |id| teloxide::types::ThreadId(teloxide::types::MessageId(id));
    let sent = bot.send_message(To(FORUM.0), "x").message_thread_id(thread(5)).await.unwrap();
    assert_eq!((sent.thread_id, sent.is_topic_message), (Some(thread(5)), true));
    assert_eq!(handle.messages(BOT, FORUM)[0].thread, Some(ThreadId(5)));
    let error = api_error(bot.send_message(To(FORUM.0), "x").message_thread_id(thread(6)).await);
    assert_eq!(error.to_string(), "Unknown error: \"Bad Request: message thread not found\"");
}

#[tokio::test]
async fn a_bot_that_sends_too_much_is_told_how_long_to_wait() {
    let limits = RateLimits { overall: Rate { count: 2, within: Duration::from_secs(30) }, ..RateLimits::default() };
    let (handle, bot) = met(Options { rate_limits: Some(limits), ..options() }).await;
    for user in [BEN, UserId(13)] {
        handle.say(BOT, user.chat(), user, "hello").unwrap();
    }
    let seconds = |result: Result<_, RequestError>| {
        let error = result.unwrap_err();
        let RequestError::RetryAfter(seconds) = error else { panic!("{error}") };
        seconds.seconds()
    };
    bot.send_message(TO_ANN, "one").await.unwrap();
    assert_eq!(seconds(bot.send_message(TO_ANN, "two").await), 1, "to this chat");
    bot.send_message(To(BEN.0), "one").await.unwrap();
    assert!(seconds(bot.send_message(To(13), "one").await) > 1, "in all");
    assert_eq!(handle.messages(BOT, ANN.chat()).len(), 1);
}

#[tokio::test]
async fn buttons_are_pressed_and_answered_once() {
    let (handle, bot) = met(options()).await;
    let keyboard = InlineKeyboardMarkup::new([[InlineKeyboardButton::callback("Yes", "yes")]]);
    let sent = bot.send_message(TO_ANN, "sure?").reply_markup(keyboard).await.unwrap();
    let id = MessageId(sent.id.0);
    handle.press(BOT, ANN.chat(), ANN, id, "no").unwrap_err();
    let pressed = handle.press(BOT, ANN.chat(), ANN, id, "yes").unwrap();
    let updates = bot.get_updates().await.unwrap();
    let teloxide::types::UpdateKind::CallbackQuery(query) = &updates.last().unwrap().kind else {
        panic!("{updates:?}")
    };
    assert_eq!((query.data.as_deref(), &query.id.0), (Some("yes"), &pressed.query));
    bot.answer_callback_query(query.id.clone()).text("fine").await.unwrap();
    assert_eq!(handle.callback_answer(BOT, &pressed.query).unwrap()["text"], "fine");
    // teloxide knows this error with other letters, so it takes it for an unknown one.
    let again = api_error(bot.answer_callback_query(query.id.clone()).await).to_string();
    assert!(again.contains("query is too old"), "{again}");
}

#[tokio::test]
async fn the_other_methods_answer() {
    let (_handle, bot) = met(options()).await;
    bot.send_chat_action(TO_ANN, ChatAction::Typing).await.unwrap();
    let commands = [BotCommand::new("reset", "Begin anew")];
    bot.set_my_commands(commands.clone()).await.unwrap();
    assert_eq!(bot.get_my_commands().await.unwrap(), commands);
    bot.set_my_commands([BotCommand::new("Not One", "x")]).await.unwrap_err();
    let chat = bot.get_chat(TO_ANN).await.unwrap();
    assert!(chat.is_private());
    assert_eq!(chat.first_name(), Some("User 11"));
    let sent = bot.send_message(TO_ANN, "x").await.unwrap();
    bot.delete_message(TO_ANN, sent.id).await.unwrap();
    assert_eq!(api_error(bot.edit_message_text(TO_ANN, sent.id, "y").await), ApiError::MessageToEditNotFound);
}

#[tokio::test]
async fn refusals_have_telegrams_shape() {
    let (handle, _) = met(options()).await;
    let check = async |path: &str, status: u16, description: &str| {
        let (answered, _, body) = raw(&handle, "GET", path, "", "").await.unwrap();
        let expected = json!({"ok": false, "error_code": status, "description": description});
        assert_eq!((answered, body), (status, expected), "{path}");
    };
    check("/", 404, "Not Found").await;
    check("/bot/getMe", 401, "Unauthorized: invalid token specified").await;
    check("/bot7000001:wrong/getMe", 401, "Unauthorized").await;
    check(&format!("/bot{TOKEN}/getNothing"), 404, "Not Found: method not found").await;
    check(&format!("/bot{TOKEN}/sendMessage?text=x"), 400, "Bad Request: chat_id is empty").await;
    check(&format!("/bot{TOKEN}/sendMessage?text=x&chat_id=@name"), 400, "Bad Request: chat not found").await;
    let (status, _, body) = raw(&handle, "POST", &format!("/bot{TOKEN}/getMe"), "application/json", "{").await.unwrap();
    assert_eq!((status, &body["ok"]), (400, &json!(false)));
}

#[tokio::test]
async fn a_form_or_a_query_is_as_good_as_json() {
    let (handle, _) = met(options()).await;
    let path = format!("/bot{TOKEN}/sendMessage");
    let (status, ..) = raw(&handle, "GET", &format!("{path}?chat_id=11&text=a+b"), "", "").await.unwrap();
    assert_eq!(status, 200);
    let kind = "application/x-www-form-urlencoded";
    let (status, ..) = raw(&handle, "POST", &path, kind, "chat_id=11&text=c%26d").await.unwrap();
    assert_eq!(status, 200);
    let form = "--x\r\nContent-Disposition: form-data; name=\"chat_id\"\r\n\r\n11\r\n\
                --x\r\nContent-Disposition: form-data; name=\"text\"\r\n\r\ne\r\n--x--\r\n";
    let (status, ..) = raw(&handle, "POST", &path, "multipart/form-data; boundary=x", form).await.unwrap();
    assert_eq!(status, 200);
    let texts: Vec<_> = handle.messages(BOT, ANN.chat()).iter().map(|message| message.text().to_owned()).collect();
    assert_eq!(texts, ["a b", "c&d", "e"]);
}
