//! Webhooks, against a receiver that answers as it is told.

use std::sync::Mutex;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use serde_json::json;
use teloxide::payloads::SetWebhookSetters;
use teloxide::prelude::Requester;
use tokio::sync::mpsc;

use super::*;
use crate::fakes::telegram::webhook::SECRET_HEADER;

/// An update as it was posted.
#[derive(Debug)]
struct Post {
    at: Instant,
    headers: HeaderMap,
    update: Value,
}

impl Post {
    fn id(&self) -> UpdateId {
        UpdateId(i32::try_from(self.update["update_id"].as_i64().unwrap()).unwrap())
    }
}

struct Receiver {
    url: String,
    posts: mpsc::Receiver<Post>,
    task: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Receiver {
    /// Gives these answers, with their `Retry-After`, one after the other, and then success.
    async fn start(answers: &[(u16, Option<&'static str>)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (sender, posts) = mpsc::channel(100);
        let answers = Arc::new(Mutex::new(answers.iter().copied().collect::<std::collections::VecDeque<_>>()));
        let router = Router::new().fallback(move |request: Request| async move {
            let (head, body) = request.into_parts();
            let body = to_bytes(body, 1 << 20).await.unwrap();
            let update = serde_json::from_slice(&body).unwrap();
            sender.send(Post { at: Instant::now(), headers: head.headers, update }).await.unwrap();
            let (status, retry_after) = answers.lock().unwrap().pop_front().unwrap_or((200, None));
            let headers = retry_after.map(|seconds| [("retry-after", seconds)]);
            (StatusCode::from_u16(status).unwrap(), headers.map(IntoResponse::into_response).unwrap_or_default())
                .into_response()
        });
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, posts, task }
    }

    async fn next(&mut self) -> Post {
        within(self.posts.recv()).await.unwrap()
    }
}

fn say(handle: &Handle, user: UserId) -> UpdateId {
    handle.say(BOT, user.chat(), user, "hello").unwrap().update.unwrap()
}

/// Milliseconds where Telegram takes seconds.
async fn quick() -> Handle {
    let mut options = options();
    options.timing.webhook_retry = Duration::from_millis(10);
    options.timing.retry_after_second = Duration::from_millis(10);
    started(options).await
}

async fn set(handle: &Handle, receiver: &Receiver) {
    let set = call(handle, "setWebhook", json!({"url": receiver.url, "secret_token": "s-1"})).await;
    assert_eq!(set["result"], true, "{set}");
}

#[tokio::test]
async fn updates_are_posted_with_the_secret() {
    let (handle, mut receiver) = (quick().await, Receiver::start(&[]).await);
    let waiting = say(&handle, ANN);
    let bot = teloxide(&handle, TOKEN);
    let url = receiver.url.parse().unwrap();
    bot.set_webhook(url).secret_token("s-1".to_owned()).max_connections(7).await.unwrap();
    let post = receiver.next().await;
    assert_eq!((post.id(), post.update["message"]["text"].as_str()), (waiting, Some("hello")));
    assert_eq!(post.headers[SECRET_HEADER], "s-1");
    assert_eq!(post.headers["content-type"], "application/json");
    let later = say(&handle, ANN);
    assert_eq!(receiver.next().await.id(), later);
    handle.wait_until_confirmed(BOT, WITHIN).await.unwrap();
    let info = bot.get_webhook_info().await.unwrap();
    assert_eq!((info.pending_update_count, info.max_connections, info.last_error_date), (0, Some(7), None));
    assert_eq!(info.url.unwrap().as_str(), receiver.url);
    let recorded = handle.wait_for_request(|request| request.method == Some(Method::SetWebhook), WITHIN).await.unwrap();
    assert_eq!(recorded.parameters["secret_token"], "***");
}

#[tokio::test]
async fn what_is_refused_comes_again_and_keeps_its_chat_waiting() {
    let (handle, mut receiver) = (quick().await, Receiver::start(&[(500, None), (500, None), (302, None)]).await);
    set(&handle, &receiver).await;
    let (first, second) = (say(&handle, ANN), say(&handle, ANN));
    let mut posts = Vec::new();
    for _ in 0..5 {
        posts.push(receiver.next().await);
    }
    let ids: Vec<_> = posts.iter().map(Post::id).collect();
    assert_eq!(ids, [first, first, first, first, second]);
    let pauses: Vec<_> = posts.windows(2).map(|pair| (pair[1].at - pair[0].at).as_millis()).collect();
    assert!(pauses[1] >= 20 && pauses[2] >= 40, "the second try comes at once, then pauses grow: {pauses:?}");
    handle.wait_until_confirmed(BOT, WITHIN).await.unwrap();
    let info = call(&handle, "getWebhookInfo", json!({})).await;
    assert_eq!(info["result"]["last_error_message"], "Wrong response from the webhook: 302 Found");
}

#[tokio::test]
async fn a_receiver_says_when_to_try_again() {
    let (handle, mut receiver) = (quick().await, Receiver::start(&[(503, Some("10"))]).await);
    set(&handle, &receiver).await;
    say(&handle, ANN);
    let (first, second) = (receiver.next().await, receiver.next().await);
    assert!(second.at - first.at >= Duration::from_millis(100));
}

#[tokio::test]
async fn one_chats_trouble_is_not_anothers() {
    let (handle, mut receiver) = (quick().await, Receiver::start(&[(503, Some("3600"))]).await);
    set(&handle, &receiver).await;
    let ann = say(&handle, ANN);
    assert_eq!(receiver.next().await.id(), ann);
    let ben = say(&handle, BEN);
    assert_eq!(receiver.next().await.id(), ben);
    handle.wait_for_confirmation(BOT, ben, WITHIN).await.unwrap();
    assert_eq!(handle.pending_updates(BOT), [ann]);
}

#[tokio::test]
async fn what_nobody_took_is_kept_for_the_next_webhook_or_poll() {
    let handle = quick().await;
    let receiver = Receiver::start(&[]).await;
    let gone = receiver.url.clone();
    drop(receiver);
    call(&handle, "setWebhook", json!({"url": gone})).await;
    let said = say(&handle, ANN);
    let error = handle.wait_for("error", || handle.webhook(BOT)?.last_error, WITHIN).await.unwrap();
    assert_eq!(error, "Connection refused");

    let mut next = Receiver::start(&[(500, Some("3600"))]).await;
    set(&handle, &next).await;
    assert_eq!(next.next().await.id(), said);
    call(&handle, "deleteWebhook", json!({})).await;
    let updates = call(&handle, "getUpdates", json!({})).await;
    assert_eq!(updates["result"][0]["update_id"], said.0);
    let dropped = call(&handle, "deleteWebhook", json!({"drop_pending_updates": true})).await;
    assert_eq!(dropped["description"], "Webhook is already deleted");
    assert_eq!(handle.pending_updates(BOT), []);
}

#[tokio::test]
async fn a_webhook_that_is_gone_for_long_is_deleted() {
    let mut options = options();
    options.timing.webhook_retry = Duration::from_millis(1);
    options.timing.webhook_gone = Duration::ZERO;
    let handle = started(options).await;
    let mut receiver = Receiver::start(&[(410, None), (410, None), (410, None)]).await;
    set(&handle, &receiver).await;
    let said = say(&handle, ANN);
    receiver.next().await;
    receiver.next().await;
    handle.wait_for("deletion", || handle.webhook(BOT).is_none().then_some(()), WITHIN).await.unwrap();
    assert_eq!(handle.pending_updates(BOT), [said]);
}

#[tokio::test]
async fn a_webhook_that_cannot_be_is_refused() {
    let handle = started(Options::with_bots(&[TOKEN])).await;
    let refused = async |parameters: Value| call(&handle, "setWebhook", parameters).await["description"].to_string();
    assert!(refused(json!({"url": "not an address"})).await.contains("invalid webhook URL"));
    assert!(refused(json!({"url": "https://example.com/"})).await.contains("bad webhook"));
    let url = "http://127.0.0.1:9/";
    assert!(refused(json!({"url": url, "secret_token": "a b"})).await.contains("unallowed characters"));
    assert!(refused(json!({"url": url, "secret_token": "a".repeat(257)})).await.contains("too long"));
    assert!(refused(json!({"url": url})).await.contains("Webhook was set"));
    assert!(refused(json!({"url": "http://127.0.0.1:10/"})).await.contains("retry after 1"), "twice in a second");
    assert!(refused(json!({"url": ""})).await.contains("Webhook was deleted"));
}
