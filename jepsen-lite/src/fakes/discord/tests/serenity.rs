//! What a real client library makes of the fake.

use std::sync::Arc;

use ::serenity::all::{
    ChannelId, ClientBuilder, Context, CreateAttachment, CreateMessage, EventHandler, GatewayIntents, Http,
    HttpBuilder, Message as Heard, Nonce, Ready, ResumedEvent, UserId,
};
use tokio::task::JoinHandle;

use super::*;

/// Answers whatever a user says.
struct Echo;

#[::serenity::async_trait]
impl EventHandler for Echo {
    async fn message(&self, context: Context, heard: Heard) {
        if heard.author.bot {
            return;
        }
        heard.reply(&context.http, format!("you said {}", heard.content)).await.unwrap();
    }

    async fn ready(&self, _: Context, ready: Ready) {
        assert_eq!(ready.guilds.len(), 1);
    }

    async fn resume(&self, _: Context, _: ResumedEvent) {}
}

/// The limiter of serenity asks discord.com whatever its proxy is.
fn http(handle: &Handle) -> Http {
    HttpBuilder::new(TOKEN).proxy(handle.base_url()).ratelimiter_disabled(true).build()
}

async fn echo(handle: &Handle) -> JoinHandle<()> {
    let intents = GatewayIntents::from_bits(ALL).unwrap();
    let client = ClientBuilder::new_with_http(http(handle), intents).event_handler(Echo);
    let mut client = client.await.unwrap();
    tokio::spawn(async move { client.start().await.unwrap() })
}

#[tokio::test]
async fn serenity_hears_and_answers() {
    let handle = fake(options()).await;
    let guild = handle.guild("home");
    let channel = handle.channel(guild, "general").unwrap();
    let user = handle.user("ada");
    let dm = handle.dm(user).unwrap();
    let client = echo(&handle).await;
    handle.wait_for_sessions(1, SOON).await.unwrap();
    for channel in [channel, dm] {
        let said = handle.say(channel, user, "hello").unwrap();
        let answer = handle.wait_for_message(channel, SOON, |message| message.by_bot).await.unwrap();
        assert_eq!((answer.content.as_str(), answer.reference), ("you said hello", Some(said)));
    }
    let thread = handle.thread(channel, None, user, "aside").unwrap();
    handle.say(thread, user, "in here").unwrap();
    handle.wait_for_message(thread, SOON, |message| message.content == "you said in here").await.unwrap();
    client.abort();
}

#[tokio::test]
async fn serenity_resumes_after_a_dropped_socket() {
    let handle = fake(options()).await;
    handle.guild("home");
    let user = handle.user("ada");
    let dm = handle.dm(user).unwrap();
    let client = echo(&handle).await;
    handle.wait_for_sessions(1, SOON).await.unwrap();
    handle.fail(Route::Connect, 1, Fault::Delay(Duration::from_millis(50)));
    handle.drop_connections(&Which::All);
    let closed = What::Closed { code: None, by: By::Server };
    handle.wait_for_entry(SOON, |entry| entry.what == closed).await.unwrap();
    handle.say(dm, user, "missed").unwrap();
    handle.wait_for_message(dm, SOON, |message| message.content == "you said missed").await.unwrap();
    handle.wait_for_entry(SOON, |entry| matches!(entry.what, What::Resumed { .. })).await.unwrap();
    let held = handle.held().unwrap();
    assert_eq!(held.len(), 2);
    assert_eq!(held[0].session, held[1].session);
    assert_eq!(handle.messages(dm).len(), 2);
    assert_eq!(handle.starts_remaining(), 999, "it did not identify again");
    client.abort();
}

#[tokio::test]
async fn serenity_survives_op_7_and_op_9() {
    let handle = fake(options()).await;
    handle.guild("home");
    let user = handle.user("ada");
    let dm = handle.dm(user).unwrap();
    let client = echo(&handle).await;
    for (n, (order, what)) in [
        (Handle::reconnect as fn(&Handle, &Which) -> usize, "op 7"),
        (|handle, which| handle.invalidate(which, true), "op 9 true"),
        (|handle, which| handle.close(which, 4000), "close 4000"),
        (|handle, which| handle.invalidate(which, false), "op 9 false"),
    ]
    .into_iter()
    .enumerate()
    {
        let before = handle.wait_for_sessions(1, SOON).await.unwrap()[0].peer;
        order(&handle, &Which::All);
        let changed = |handle: &Handle| {
            handle.sessions().iter().any(|session| session.peer.is_some() && session.peer != before).then_some(())
        };
        handle.wait(SOON, what, changed).await.unwrap();
        handle.say(dm, user, &format!("after {what}")).unwrap();
        let answer = format!("you said after {what}");
        handle.wait_for_message(dm, SOON, |message| message.content == answer).await.unwrap();
        assert_eq!(handle.messages(dm).len(), 2 * (n + 1));
    }
    assert_eq!(handle.starts_remaining(), 998);
    client.abort();
}

#[tokio::test]
async fn serenity_sends_a_nonce_once() {
    let handle = fake(options()).await;
    let user = handle.user("ada");
    let http = http(&handle);
    let dm = UserId::new(user.0).create_dm_channel(&http).await.unwrap();
    let nonce = || Nonce::String("intent-1".to_owned());
    let message = |text: &str| CreateMessage::new().content(text).nonce(nonce()).enforce_nonce(true);
    handle.fail(Route::CreateMessage, 1, Fault::ActAndClose);
    assert!(dm.send_message(&http, message("once")).await.is_err());
    let sent = dm.send_message(&http, message("once")).await.unwrap();
    assert!(matches!(sent.nonce, Some(Nonce::String(nonce)) if nonce == "intent-1"));
    assert_eq!(handle.messages(handle.dm(user).unwrap()).len(), 1);
}

#[tokio::test]
async fn serenity_knows_what_it_asked_for() {
    let handle = fake(options()).await;
    let channel = handle.channel(handle.guild("home"), "general").unwrap();
    let said = handle.say(channel, handle.user("ada"), "hello").unwrap();
    let http = Arc::new(http(&handle));
    assert_eq!(http.get_current_user().await.unwrap().id.get(), handle.bot().0);
    assert_eq!(http.get_current_application_info().await.unwrap().id.get(), handle.bot().0);
    assert_eq!(http.get_bot_gateway().await.unwrap().session_start_limit.remaining, 1000);
    let place = ChannelId::new(channel.0);
    assert_eq!(place.to_channel(&http).await.unwrap().guild().unwrap().name, "general");
    place.broadcast_typing(&http).await.unwrap();
    assert_eq!(handle.typing(channel), 1);
    let file = CreateAttachment::bytes(b"abc".to_vec(), "a.txt");
    let sent = place.send_message(&http, CreateMessage::new().content("see").add_file(file)).await.unwrap();
    assert_eq!((sent.content.as_str(), sent.attachments[0].size), ("see", 3));
    assert_eq!(handle.messages(channel)[1].files, [("a.txt".to_owned(), 3)]);
    let thread = ::serenity::all::CreateThread::new("aside");
    let thread = place.create_thread_from_message(&http, said.0, thread).await.unwrap();
    assert_eq!(thread.id.get(), said.0);
    let error = place.say(&http, "").await.unwrap_err();
    let ::serenity::Error::Http(::serenity::http::HttpError::UnsuccessfulRequest(refused)) = error else {
        panic!("{error}");
    };
    assert_eq!(refused.error.code, 50006);
}
