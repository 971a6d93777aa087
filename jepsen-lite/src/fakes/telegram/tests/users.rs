//! What people do, as updates that teloxide understands.

use teloxide::payloads::SendMessageSetters;
use teloxide::prelude::Requester;
use teloxide::types::{ChatId as To, ChatMemberKind, ReplyParameters, UpdateKind};

use super::*;

const GROUP: ChatId = ChatId(-100);

/// A group with both bots, of which the second reads everything.
async fn group() -> Handle {
    let mut options = options();
    options.bots[1].reads_all_group_messages = true;
    let handle = started(options).await;
    handle.open_group(GROUP, ChatKind::Group, "a group", &[BOT, OTHER_BOT]);
    handle
}

#[tokio::test]
async fn in_a_group_a_bot_gets_what_is_meant_for_it() {
    let handle = group().await;
    let reaches = |text: &str| handle.say(BOT, GROUP, ANN, text).unwrap().update.is_some();
    assert!(!reaches("hello all"));
    assert!(!reaches("hello @someone_else"));
    assert!(reaches("hello @bot7000001_bot!"));
    assert!(reaches("/start"));
    assert!(reaches("/start@bot7000001_bot now"));
    assert!(!reaches("/start@bot7000002_bot"));
    assert_eq!(handle.pending_updates(BOT).len(), 3);
    assert_eq!(handle.pending_updates(OTHER_BOT).len(), 6);

    let bot = teloxide(&handle, TOKEN);
    let sent = bot.send_message(To(GROUP.0), "yes?").await.unwrap();
    let reply = Saying::text("no").reply_to(MessageId(sent.id.0));
    assert!(handle.say(BOT, GROUP, BEN, reply).unwrap().update.is_some());
    let updates = bot.get_updates().await.unwrap();
    let UpdateKind::Message(message) = &updates.last().unwrap().kind else { panic!("{updates:?}") };
    assert_eq!(message.reply_to_message().unwrap().id, sent.id);
    let UpdateKind::Message(mention) = &updates[0].kind else { panic!("{updates:?}") };
    assert_eq!(mention.parse_entities().unwrap()[0].text(), "@bot7000001_bot");
}

#[tokio::test]
async fn captions_edits_and_topics_arrive() {
    let handle = started(options()).await;
    let forum = ChatId(-1_000_000_000_500);
    handle.open_group(forum, ChatKind::Forum, "a forum", &[BOT]);
    handle.open_topic(BOT, forum, ThreadId(5)).unwrap();
    handle.add_user(BEN, "Ben", Some("ben"));
    let said = handle.say(BOT, ANN.chat(), ANN, "helo").unwrap().message;
    handle.edit(BOT, ANN.chat(), said, "hello").unwrap();
    handle.say(BOT, ANN.chat(), ANN, Saying::photo("look")).unwrap();
    handle.say(BOT, forum, BEN, Saying::text("/ask").in_topic(ThreadId(5))).unwrap();

    let updates = teloxide(&handle, TOKEN).get_updates().await.unwrap();
    let kinds: Vec<_> = updates.iter().map(|update| &update.kind).collect();
    let [_, UpdateKind::EditedMessage(edited), UpdateKind::Message(photo), UpdateKind::Message(topic)] = kinds[..]
    else {
        panic!("{updates:?}")
    };
    assert_eq!((edited.id.0, edited.text()), (said.0, Some("hello")));
    assert!(edited.edit_date().is_some());
    assert_eq!((photo.caption(), photo.photo().unwrap().len()), (Some("look"), 1));
    assert_eq!(topic.thread_id.unwrap().0.0, 5);
    assert_eq!(topic.from.as_ref().unwrap().username.as_deref(), Some("ben"));
}

#[tokio::test]
async fn a_bot_learns_that_it_was_blocked_or_its_group_moved() {
    let handle = group().await;
    handle.say(BOT, ANN.chat(), ANN, "hello").unwrap();
    handle.block(BOT, ANN).unwrap();
    handle.say(BOT, ANN.chat(), ANN, "hello").unwrap_err();
    let supergroup = ChatId(-1_000_000_000_100);
    handle.migrate(BOT, GROUP, supergroup, ANN).unwrap();
    handle.say(BOT, GROUP, ANN, "/start").unwrap_err();
    handle.say(BOT, supergroup, ANN, "/start").unwrap();

    let updates = teloxide(&handle, TOKEN).get_updates().await.unwrap();
    let kinds: Vec<_> = updates.iter().map(|update| &update.kind).collect();
    let [_, UpdateKind::MyChatMember(blocked), UpdateKind::Message(old), UpdateKind::Message(new), _] = kinds[..]
    else {
        panic!("{updates:?}")
    };
    assert!(matches!(blocked.new_chat_member.kind, ChatMemberKind::Banned(_)), "{blocked:?}");
    assert_eq!(old.migrate_to_chat_id(), Some(&To(supergroup.0)));
    assert_eq!(new.migrate_from_chat_id(), Some(&To(GROUP.0)));
}

#[tokio::test]
async fn bots_do_not_hear_each_other() {
    let handle = group().await;
    let bot = teloxide(&handle, TOKEN);
    let said = handle.say(BOT, GROUP, ANN, "/start").unwrap().message;
    let reply = ReplyParameters::new(teloxide::types::MessageId(said.0));
    bot.send_message(To(GROUP.0), "hello @bot7000002_bot").reply_parameters(reply).await.unwrap();
    assert_eq!(handle.pending_updates(OTHER_BOT).len(), 1);
}
