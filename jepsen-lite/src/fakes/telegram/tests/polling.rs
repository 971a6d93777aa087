//! `getUpdates`.

use futures::StreamExt;
use serde_json::json;
use teloxide::payloads::GetUpdatesSetters;
use teloxide::prelude::Requester;
use teloxide::types::{Update, UpdateKind};
use teloxide::update_listeners::{AsUpdateStream, Polling, UpdateListener};
use teloxide::{ApiError, RequestError};

use super::*;

fn say(handle: &Handle, text: &str) -> UpdateId {
    handle.say(BOT, ANN.chat(), ANN, text).unwrap().update.unwrap()
}

fn ids(updates: &[Update]) -> Vec<UpdateId> {
    updates.iter().map(|update| UpdateId(i32::try_from(update.id.0).unwrap())).collect()
}

/// A long poll under way, on connections of its own.
fn poll(handle: &Handle) -> tokio::task::JoinHandle<Result<Vec<Update>, RequestError>> {
    let bot = teloxide(handle, TOKEN);
    tokio::spawn(async move { bot.get_updates().timeout(15).await })
}

#[tokio::test]
async fn a_bot_learns_who_it_is() {
    let handle = started(options()).await;
    for (token, id) in [(TOKEN, BOT), (OTHER_TOKEN, OTHER_BOT)] {
        let me = teloxide(&handle, token).get_me().await.unwrap();
        assert_eq!((me.id.0, me.username()), (id.0.unsigned_abs(), format!("bot{id}_bot").as_str()));
    }
    let error = teloxide(&handle, "7000001:AAwrong").get_me().await.unwrap_err();
    assert!(matches!(error, RequestError::Api(ApiError::InvalidToken)), "{error}");
}

#[tokio::test]
async fn updates_come_again_until_an_offset_confirms_them() {
    let handle = started(options()).await;
    let bot = teloxide(&handle, TOKEN);
    let said: Vec<_> = ["one", "two", "three"].iter().map(|text| say(&handle, text)).collect();
    for _ in 0..2 {
        let updates = bot.get_updates().await.unwrap();
        assert_eq!(ids(&updates), said);
        let UpdateKind::Message(message) = &updates[0].kind else { panic!("{updates:?}") };
        assert_eq!((message.text(), message.chat.id.0), (Some("one"), ANN.0));
    }
    assert_eq!(ids(&bot.get_updates().offset(said[1].0).limit(1).await.unwrap()), [said[1]]);
    assert_eq!(handle.pending_updates(BOT), said[1..], "confirmed by the call alone");
    assert_eq!(ids(&bot.get_updates().offset(-1).await.unwrap()), [said[2]]);
    assert_eq!(ids(&bot.get_updates().offset(said[2].0 + 1).await.unwrap()), []);
    within(handle.wait_until_confirmed(BOT, WITHIN)).await.unwrap();
}

#[tokio::test]
async fn who_repeats_an_offset_at_once_gets_one_update() {
    let handle = started(Options::with_bots(&[TOKEN])).await;
    let bot = teloxide(&handle, TOKEN);
    let said = [say(&handle, "one"), say(&handle, "two")];
    assert_eq!(ids(&bot.get_updates().await.unwrap()), said);
    assert_eq!(ids(&bot.get_updates().await.unwrap()), said[..1]);
}

#[tokio::test]
async fn a_long_poll_is_woken_by_what_is_said() {
    let handle = started(options()).await;
    let poll = poll(&handle);
    handle.wait_for_poll(BOT, WITHIN).await.unwrap();
    let said = [say(&handle, "one"), say(&handle, "two")];
    assert_eq!(ids(&within(poll).await.unwrap().unwrap()), said);
}

#[tokio::test]
async fn a_long_poll_ends_empty_when_its_time_is_up() {
    let mut options = options();
    options.timing.longest_poll = Duration::from_millis(20);
    let handle = started(options).await;
    let started = Instant::now();
    assert_eq!(ids(&teloxide(&handle, TOKEN).get_updates().timeout(15).await.unwrap()), []);
    assert!(started.elapsed() >= Duration::from_millis(20));
    assert!(!handle.is_polled(BOT));
}

#[tokio::test]
async fn a_second_poll_on_an_empty_queue_ends_the_first() {
    let handle = started(options()).await;
    let first = poll(&handle);
    handle.wait_for_poll(BOT, WITHIN).await.unwrap();
    let second = poll(&handle);
    let error = within(first).await.unwrap().unwrap_err();
    assert!(matches!(error, RequestError::Api(ApiError::TerminatedByOtherGetUpdates)), "{error}");
    let said = say(&handle, "hello");
    assert_eq!(ids(&within(second).await.unwrap().unwrap()), [said]);

    let overlaps = handle.overlapping_polls(BOT);
    let [Overlap { first, second, .. }] = overlaps.as_slice() else { panic!("{overlaps:?}") };
    assert_eq!(first.ended.unwrap().1, Ended::Answered(409));
    assert_ne!((first.connection, first.peer), (second.connection, second.peer));
    assert!(handle.overlapping_polls(OTHER_BOT).is_empty());
}

#[tokio::test]
async fn pollers_that_find_updates_both_get_them_without_a_conflict() {
    let handle = started(options()).await;
    let said = say(&handle, "hello");
    for _ in 0..2 {
        assert_eq!(ids(&within(poll(&handle)).await.unwrap().unwrap()), [said]);
    }
}

#[tokio::test]
async fn conflicts_that_follow_each_other_are_told_later() {
    let mut options = options();
    options.timing.repeated_conflict = Duration::from_millis(200);
    let handle = started(options).await;
    let first = poll(&handle);
    handle.wait_for_poll(BOT, WITHIN).await.unwrap();
    let second = poll(&handle);
    within(first).await.unwrap().unwrap_err();
    let aborted = Instant::now();
    let third = poll(&handle);
    within(second).await.unwrap().unwrap_err();
    assert!(aborted.elapsed() >= Duration::from_millis(200));
    third.abort();
}

#[tokio::test]
async fn polls_and_webhooks_exclude_each_other() {
    let handle = started(options()).await;
    let poll = poll(&handle);
    handle.wait_for_poll(BOT, WITHIN).await.unwrap();
    // Nobody listens there, and nothing is said.
    let set = call(&handle, "setWebhook", json!({"url": "http://127.0.0.1:9/hook"})).await;
    assert_eq!(set, json!({"ok": true, "result": true, "description": "Webhook was set"}));
    let error = within(poll).await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "A Telegram's error: Unknown error: \"Conflict: terminated by setWebhook request\"");

    let mut options = options();
    options.timing.repeated_conflict = Duration::ZERO;
    let handle = started(options).await;
    call(&handle, "setWebhook", json!({"url": "http://127.0.0.1:9/hook"})).await;
    let refused = call(&handle, "getUpdates", json!({})).await;
    assert_eq!(
        refused,
        json!({"ok": false, "error_code": 409, "description": "Conflict: can't use getUpdates method while webhook is \
            active; use deleteWebhook to delete the webhook first"})
    );
    call(&handle, "deleteWebhook", json!({})).await;
    assert_eq!(call(&handle, "getUpdates", json!({})).await, json!({"ok": true, "result": []}));
}

#[tokio::test]
async fn updates_wait_for_a_day() {
    let (clock, hand) = Clock::by_hand();
    let handle = started(Options { clock, ..options() }).await;
    let first = say(&handle, "one");
    hand.advance(Duration::from_secs(23 * 3600));
    let second = say(&handle, "two");
    assert_eq!(handle.pending_updates(BOT), [first, second]);
    hand.advance(Duration::from_secs(3600));
    assert_eq!(ids(&teloxide(&handle, TOKEN).get_updates().await.unwrap()), [second]);
}

#[tokio::test]
async fn what_a_bot_does_not_want_is_not_kept_for_it() {
    let handle = started(options()).await;
    let bot = teloxide(&handle, TOKEN);
    bot.get_updates().allowed_updates([teloxide::types::AllowedUpdate::CallbackQuery]).await.unwrap();
    bot.get_updates().await.unwrap();
    assert_eq!(handle.say(BOT, ANN.chat(), ANN, "hello").unwrap().update, None, "still so when it does not say");
    bot.get_updates().allowed_updates([]).await.unwrap();
    let said = say(&handle, "hello again");
    assert_eq!(ids(&bot.get_updates().await.unwrap()), [said]);
}

#[tokio::test]
async fn a_poll_that_its_client_gave_up_is_recorded_as_that() {
    let handle = started(options()).await;
    let poll = poll(&handle);
    handle.wait_for_poll(BOT, WITHIN).await.unwrap();
    poll.abort();
    let gone = |recorded: &Recorded| recorded.ended.is_some_and(|(_, how)| how == Ended::ClientGone);
    let recorded = handle.wait_for_request(gone, WITHIN).await.unwrap();
    assert_eq!((recorded.bot, recorded.method), (Some(BOT), Some(Method::GetUpdates)));
    assert_eq!(recorded.parameters["timeout"], 15);
    assert!(!handle.is_polled(BOT));
    let said = say(&handle, "hello");
    assert_eq!(handle.pending_updates(BOT), [said], "nobody got it");
}

#[tokio::test]
async fn a_poller_with_a_name_is_one_however_many_connections_it_has() {
    let named = |name: &'static str| Label::new(move |_, _| Some(name.to_owned()));
    let handle = started(Options { label: Some(named("gateway-1")), ..options() }).await;
    let first = poll(&handle);
    handle.wait_for_poll(BOT, WITHIN).await.unwrap();
    let second = poll(&handle);
    within(first).await.unwrap().unwrap_err();
    assert!(handle.overlapping_polls(BOT).is_empty());
    let pollers: Vec<_> = handle.requests().into_iter().map(|request| (request.connection, request.poller)).collect();
    assert_eq!(pollers, [(0, Some("gateway-1".to_owned())), (1, Some("gateway-1".to_owned()))]);
    second.abort();
}

#[tokio::test]
async fn teloxides_listener_confirms_what_it_gave_when_it_stops() {
    let handle = started(options()).await;
    let said = say(&handle, "hello");
    let mut listener = Polling::builder(teloxide(&handle, TOKEN)).timeout(Duration::from_secs(15)).build();
    let token = listener.stop_token();
    let mut updates = Box::pin(listener.as_stream());
    let update = within(updates.next()).await.unwrap().unwrap();
    assert_eq!(ids(&[update]), [said]);
    assert_eq!(handle.pending_updates(BOT), [said]);
    token.stop();
    assert!(within(updates.next()).await.is_none());
    assert_eq!(handle.pending_updates(BOT), []);
}
