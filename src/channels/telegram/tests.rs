//! The channel against the fake of the Bot API: real HTTP, and Telegram's users on its handle.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use jepsen_lite::fakes::telegram::{
    self as fake, BotId, ChatId, ChatKind, Ended, EntityKind, Fault, Handle, Method, Options, Recorded, Rule, Said,
    Saying, ThreadId, UpdateId, UserId,
};
use openclaw_config::Secret;
use openclaw_config::channels::{Account, DmPolicy, GroupPolicy, UnknownPolicy};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::channels::InboxError;

const TOKEN: &str = "7000001:AAsecret-of-one";
const BOT: BotId = BotId(7_000_001);
const ANN: UserId = UserId(11);
const GROUP: ChatId = ChatId(-1_000_000_000_005);
/// Far more than anything here takes.
const WITHIN: Duration = Duration::from_secs(20);

/// Without the waits that Telegram puts on who repeats himself.
async fn server() -> Handle {
    let zero = Duration::ZERO;
    let timing = fake::Timing {
        repeated_conflict: zero,
        repeated_poll: zero,
        repeated_poll_at_once: zero,
        between_webhooks: zero,
        ..fake::Timing::default()
    };
    fake::start("127.0.0.1:0".parse().unwrap(), Options { timing, ..Options::with_bots(&[TOKEN]) }).await.unwrap()
}

fn settings(server: &Handle) -> TelegramAccount {
    TelegramAccount {
        id: "default".into(),
        bot_token: Secret::new(TOKEN),
        api_root: format!("{}/", server.api_url()),
        mode: TelegramMode::Polling,
        webhook_url: None,
        webhook_secret: None,
        account: Account {
            dm_policy: DmPolicy::Open,
            allow_from: Vec::new(),
            group_policy: GroupPolicy::Open,
            group_allow_from: Vec::new(),
            require_mention: true,
            groups: std::collections::BTreeMap::new(),
            unknown: UnknownPolicy::Resend,
            max_age: Duration::from_secs(3600),
            streaming: false,
            agent_id: "main".into(),
        },
    }
}

fn channel(settings: &TelegramAccount) -> Arc<Telegram> {
    let timing = Timing {
        after_conflict: Duration::from_millis(1),
        store_again: Duration::from_millis(1),
        store_again_most: Duration::from_millis(10),
        webhook_look: Duration::from_millis(10),
        ..Timing::default()
    };
    Arc::new(Telegram::with_timing(settings, timing).unwrap())
}

/// An inbox in memory, whose store may be away.
#[derive(Default)]
struct Store {
    stored: Mutex<Stored>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Clone, Default)]
struct Stored {
    texts: Vec<String>,
    external_ids: Vec<String>,
    cursor: Option<String>,
    /// How often something was not stored.
    refused: u32,
    refuse_messages: Option<Refusal>,
    refuse_cursor: bool,
    said: VecDeque<String>,
}

#[derive(Debug, Clone, Copy)]
enum Refusal {
    Fenced,
    Unavailable,
}

impl Store {
    fn change<T>(&self, change: impl FnOnce(&mut Stored) -> T) -> T {
        let result = change(&mut self.stored.lock());
        self.changed.send_replace(());
        result
    }

    fn now(&self) -> Stored {
        self.stored.lock().clone()
    }

    async fn wait_for(&self, wanted: impl Fn(&Stored) -> bool) -> Stored {
        let mut changed = self.changed.subscribe();
        let found = tokio::time::timeout(WITHIN, async {
            while !wanted(&self.stored.lock()) {
                changed.changed().await.unwrap();
            }
        });
        assert!(found.await.is_ok(), "{:?}", self.now());
        self.now()
    }
}

impl Inbox for Store {
    fn take(&self, messages: Vec<InboundMessage>) -> BoxFuture<'_, Result<(), InboxError>> {
        let taken = self.change(|stored| match stored.refuse_messages {
            Some(Refusal::Fenced) => Err(InboxError::Fenced),
            Some(Refusal::Unavailable) => {
                stored.refused += 1;
                Err(InboxError::Unavailable("no quorum".into()))
            }
            None => {
                stored.texts.extend(messages.iter().map(|message| message.text.clone()));
                stored.external_ids.extend(messages.into_iter().map(|message| message.external_id));
                Ok(())
            }
        });
        Box::pin(async move { taken })
    }

    fn cursor(&self) -> BoxFuture<'_, Result<Option<String>, InboxError>> {
        Box::pin(async move { Ok(self.now().cursor) })
    }

    fn save_cursor(&self, cursor: String) -> BoxFuture<'_, Result<(), InboxError>> {
        let saved = self.change(|stored| {
            if stored.refuse_cursor {
                stored.refused += 1;
                return Err(InboxError::Unavailable("no quorum".into()));
            }
            stored.cursor = Some(cursor);
            Ok(())
        });
        Box::pin(async move { saved })
    }
}

impl Reporter for Store {
    fn connected(&self) {
        self.change(|stored| stored.said.push_back("connected".into()));
    }

    fn disconnected(&self, reason: &str) {
        self.change(|stored| stored.said.push_back(format!("disconnected: {reason}")));
    }

    fn heard(&self) {}

    fn received(&self) {
        self.change(|stored| stored.said.push_back("received".into()));
    }
}

fn tenure(ended: &CancellationToken) -> Tenure {
    Tenure { ended: ended.clone(), ..Tenure::endless(1) }
}

/// An owner of the account at work.
struct Owner {
    ended: CancellationToken,
    task: JoinHandle<ReceiveError>,
}

impl Owner {
    fn start(channel: &Arc<Telegram>, store: &Arc<Store>) -> Self {
        let (channel, store, ended) = (channel.clone(), store.clone(), CancellationToken::new());
        let tenure = tenure(&ended);
        let task = tokio::spawn(async move { channel.receive(&tenure, &*store, &*store).await });
        Self { ended, task }
    }

    async fn ended(self) -> ReceiveError {
        tokio::time::timeout(WITHIN, self.task).await.unwrap().unwrap()
    }

    async fn end(self) {
        self.ended.cancel();
        assert_eq!(self.ended().await, ReceiveError::Ended);
    }
}

async fn polling() -> (Handle, Arc<Telegram>, Arc<Store>, Owner) {
    let server = server().await;
    let (channel, store) = (channel(&settings(&server)), Arc::new(Store::default()));
    let owner = Owner::start(&channel, &store);
    server.wait_for_poll(BOT, WITHIN).await.unwrap();
    (server, channel, store, owner)
}

fn say(server: &Handle, text: &str) -> UpdateId {
    server.say(BOT, ANN.chat(), ANN, text).unwrap().update.unwrap()
}

fn cursor_after(update: UpdateId) -> Option<String> {
    Some(format!(r#"{{"offset":{}}}"#, update.0 + 1))
}

fn polls(server: &Handle) -> Vec<Recorded> {
    server.requests().into_iter().filter(|request| request.method == Some(Method::GetUpdates)).collect()
}

#[tokio::test]
async fn a_message_is_confirmed_once_it_is_stored() {
    let (server, _channel, store, owner) = polling().await;
    let update = say(&server, "hello");
    server.wait_for_confirmation(BOT, update, WITHIN).await.unwrap();
    let stored = store.now();
    assert_eq!((stored.texts, stored.cursor), (vec!["hello".to_owned()], cursor_after(update)));
    assert_eq!(stored.said, ["connected", "received"]);
    let methods: Vec<_> = server.requests().iter().filter_map(|request| request.method).take(3).collect();
    assert_eq!(methods, [Method::GetMe, Method::DeleteWebhook, Method::GetUpdates]);
    assert_eq!(polls(&server)[0].parameters["allowed_updates"], serde_json::json!(["message"]));
    owner.end().await;
    assert_eq!(store.now().said.back().unwrap(), "disconnected: the lease is over");
}

#[tokio::test]
async fn what_the_store_does_not_take_is_not_confirmed() {
    let (server, channel, store, owner) = polling().await;
    store.change(|stored| stored.refuse_messages = Some(Refusal::Unavailable));
    let update = say(&server, "hello");
    store.wait_for(|stored| stored.refused >= 3).await;
    assert_eq!((server.pending_updates(BOT), store.now().cursor), (vec![update], None));
    owner.end().await;

    // Whoever owns the account next gets it again.
    let owner = Owner::start(&channel, &store);
    let refused = store.now().refused;
    store.wait_for(|stored| stored.refused > refused).await;
    assert_eq!(server.pending_updates(BOT), [update]);
    store.change(|stored| (stored.refuse_messages, stored.refuse_cursor) = (None, true));
    store.wait_for(|stored| stored.texts == ["hello"] && stored.refused > refused + 2).await;
    assert_eq!(server.pending_updates(BOT), [update], "the cursor comes before the confirmation");
    store.change(|stored| stored.refuse_cursor = false);
    server.wait_for_confirmation(BOT, update, WITHIN).await.unwrap();
    assert_eq!((store.now().texts.len(), store.now().cursor), (1, cursor_after(update)));
    owner.end().await;
}

#[tokio::test]
async fn who_is_fenced_stops_without_confirming() {
    let (server, _channel, store, owner) = polling().await;
    store.change(|stored| stored.refuse_messages = Some(Refusal::Fenced));
    let update = say(&server, "hello");
    assert_eq!(owner.ended().await, ReceiveError::Ended);
    assert_eq!(server.pending_updates(BOT), [update]);
}

#[tokio::test]
async fn the_end_of_a_tenure_ends_its_poll_at_once() {
    let (server, channel, store, owner) = polling().await;
    let before = Instant::now();
    owner.end().await;
    let gone = |request: &Recorded| {
        request.method == Some(Method::GetUpdates) && matches!(request.ended, Some((_, Ended::ClientGone)))
    };
    let gone = server.wait_for_request(gone, WITHIN).await.unwrap().ended.unwrap().0;
    assert!(gone.at.duration_since(before) < Duration::from_millis(500), "{:?}", gone.at.duration_since(before));
    assert!(!server.is_polled(BOT));

    let asked = server.requests().len();
    let ended = CancellationToken::new();
    ended.cancel();
    assert_eq!(channel.receive(&tenure(&ended), &*store, &*store).await, ReceiveError::Ended);
    assert_eq!(server.requests().len(), asked, "nothing is asked in a tenure that is over");
}

#[tokio::test]
async fn the_next_owner_goes_on_where_the_last_one_stood() {
    let (server, _channel, store, owner) = polling().await;
    let first = say(&server, "one");
    server.wait_for_confirmation(BOT, first, WITHIN).await.unwrap();
    owner.end().await;
    let between = say(&server, "two");
    let seen = polls(&server).len();
    let next = Owner::start(&channel(&settings(&server)), &store);
    server.wait_for_confirmation(BOT, between, WITHIN).await.unwrap();
    let stored = store.now();
    assert_eq!(stored.texts, ["one", "two"]);
    assert_eq!(stored.external_ids, ["11:1", "11:2"]);
    assert_eq!(polls(&server)[seen].parameters["offset"], first.0 + 1);
    assert!(server.overlapping_polls(BOT).is_empty());
    next.end().await;
}

#[tokio::test]
async fn numbers_that_begin_anew_lose_nothing() {
    let zero = Duration::ZERO;
    let (clock, hand) = fake::Clock::by_hand();
    let timing = fake::Timing { repeated_poll: zero, repeated_poll_at_once: zero, ..fake::Timing::default() };
    let options = Options { clock, timing, ..Options::with_bots(&[TOKEN]) };
    let server = fake::start("127.0.0.1:0".parse().unwrap(), options).await.unwrap();
    let store = Arc::new(Store::default());
    let owner = Owner::start(&channel(&settings(&server)), &store);
    for week in 0..4 {
        let update = say(&server, &format!("week {week}"));
        server.wait_for_confirmation(BOT, update, WITHIN).await.unwrap();
        hand.advance(Duration::from_secs(8 * 24 * 3600));
    }
    assert_eq!(store.now().texts, ["week 0", "week 1", "week 2", "week 3"]);
    owner.end().await;
}

#[tokio::test]
async fn another_program_with_the_same_token_is_told_from_an_owner_before_us() {
    let (server, channel, store, owner) = polling().await;
    let other = Client::new(channel.account.clone(), &settings(&server), Timing::default()).unwrap();
    // One poll of somebody else ends ours, and our next one ends it.
    let ended = other.get_updates(&Tenure::endless(1), None, Timing::default().poll).await;
    assert!(matches!(ended, Err(CallError::Conflict(_))), "{ended:?}");
    let update = say(&server, "hello");
    server.wait_for_confirmation(BOT, update, WITHIN).await.unwrap();
    assert_eq!(store.now().texts.len(), 1);

    let stubborn = tokio::spawn(async move {
        loop {
            drop(other.get_updates(&Tenure::endless(1), None, Timing::default().poll).await);
        }
    });
    let failure = owner.ended().await;
    assert!(matches!(&failure, ReceiveError::ForeignPoller(said) if said.contains("other getUpdates")), "{failure}");
    assert!(store.now().said.back().unwrap().contains("same bot token"));

    // A short poll that succeeds between two of the other's would look as if all were well.
    let (asked, said) = (polls(&server).len(), store.now().said.len());
    let failure = Owner::start(&channel, &store).ended().await;
    assert!(matches!(failure, ReceiveError::ForeignPoller(_)), "{failure}");
    assert!(polls(&server)[asked..].iter().all(|poll| poll.parameters["timeout"] == 25));
    assert!(!store.now().said.iter().skip(said).any(|said| said == "connected"), "{:?}", store.now().said);
    stubborn.abort();
}

#[tokio::test]
async fn who_gets_no_answer_to_a_poll_is_not_connected_whatever_else_telegram_answers() {
    let server = server().await;
    let (channel, store) = (channel(&settings(&server)), Arc::new(Store::default()));
    let failing = server.inject(Rule::always(Fault::Status(502)).method(Method::GetUpdates));
    for _ in 0..2 {
        let failure = Owner::start(&channel, &store).ended().await;
        assert!(matches!(failure, ReceiveError::Failed { .. }), "{failure}");
    }
    failing.release();
    let hanging = server.inject(Rule::always(Fault::Hang).method(Method::GetUpdates));
    let owner = Owner::start(&channel, &store);
    hanging.wait_for_hits(1, WITHIN).await.unwrap();
    assert!(store.now().said.iter().all(|said| said.starts_with("disconnected")), "{:?}", store.now().said);
    hanging.release();
    store.wait_for(|stored| stored.said.contains(&"connected".to_owned())).await;
    owner.end().await;
}

#[tokio::test]
async fn a_token_of_nobody_is_refused_and_not_shown() {
    let server = server().await;
    let settings = TelegramAccount { bot_token: Secret::new("7000001:AAwrong"), ..settings(&server) };
    let failure = Owner::start(&channel(&settings), &Arc::new(Store::default())).ended().await;
    assert!(matches!(failure, ReceiveError::Refused(_)), "{failure}");

    let unreachable = TelegramAccount { api_root: "http://127.0.0.1:9".into(), ..settings.clone() };
    let failure = Owner::start(&channel(&unreachable), &Arc::new(Store::default())).ended().await;
    let ReceiveError::Failed { reason, retry_after: None } = &failure else { panic!("{failure}") };
    assert!(reason.contains("refused") && !reason.contains("AAwrong"), "{reason}");
    assert!(!format!("{:?}", channel(&settings)).contains("AAwrong"));
}

#[tokio::test]
async fn telegram_says_how_long_to_leave_it_alone() {
    let (server, _channel, _store, owner) = polling().await;
    server.inject(Rule::once(Fault::RetryAfter(7)).method(Method::GetUpdates));
    say(&server, "hello");
    let failure = owner.ended().await;
    let seven = Some(Duration::from_secs(7));
    assert!(matches!(failure, ReceiveError::Failed { retry_after, .. } if retry_after == seven), "{failure}");
}

#[tokio::test]
async fn a_lost_connection_is_worth_another_try() {
    let (server, channel, store, owner) = polling().await;
    server.inject(Rule::once(Fault::Close).method(Method::GetUpdates));
    say(&server, "hello");
    let failure = owner.ended().await;
    assert!(matches!(failure, ReceiveError::Failed { retry_after: None, .. }), "{failure}");
    let owner = Owner::start(&channel, &store);
    server.wait_until_confirmed(BOT, WITHIN).await.unwrap();
    assert_eq!(store.now().texts, ["hello"]);
    owner.end().await;
}

#[tokio::test]
async fn a_webhook_is_registered_by_the_owner_and_read_by_anyone() {
    let server = server().await;
    let settings = TelegramAccount {
        mode: TelegramMode::Webhook,
        webhook_url: Some("http://127.0.0.1:9/telegram".into()),
        webhook_secret: Some(Secret::new("s3cret")),
        ..settings(&server)
    };
    let (owning, other, store) = (channel(&settings), channel(&settings), Arc::new(Store::default()));
    let owner = Owner::start(&owning, &store);
    store.wait_for(|stored| stored.said.contains(&"connected".to_owned())).await;
    let webhook = server.webhook(BOT).unwrap();
    assert_eq!((webhook.url.as_str(), webhook.secret_token.as_str()), ("http://127.0.0.1:9/telegram", "s3cret"));
    owner.end().await;
    assert!(server.webhook(BOT).is_some(), "it outlives its owner");

    let message = serde_json::json!({
        "message_id": 5,
        "from": {"id": 11, "is_bot": false, "first_name": "Ann"},
        "chat": {"id": 11, "type": "private"},
        "text": "hello",
    });
    let body = serde_json::json!({"update_id": 1, "message": message}).to_string();
    for wrong in [None, Some(&b"s3cre"[..])] {
        assert_eq!(other.webhook(wrong, b"{").await, Err(WebhookError::Unauthorized));
    }
    let messages = other.webhook(Some(b"s3cret"), body.as_bytes()).await.unwrap();
    assert_eq!((messages.len(), messages[0].external_id.as_str()), (1, "11:5"), "as polling names it");

    let polling = TelegramAccount { mode: TelegramMode::Polling, ..settings.clone() };
    assert_eq!(channel(&polling).webhook(Some(b"s3cret"), body.as_bytes()).await, Err(WebhookError::Unauthorized));
    let owner = Owner::start(&channel(&polling), &store);
    server.wait_for_poll(BOT, WITHIN).await.unwrap();
    assert!(server.webhook(BOT).is_none(), "who polls takes it away");
    owner.end().await;
}

#[tokio::test]
async fn a_webhook_that_does_not_bring_messages_is_noticed_and_one_that_is_taken_away_is_set_again() {
    let server = server().await;
    let settings = TelegramAccount {
        mode: TelegramMode::Webhook,
        // Nobody listens there.
        webhook_url: Some("http://127.0.0.1:9/telegram".into()),
        webhook_secret: Some(Secret::new("s3cret")),
        ..settings(&server)
    };
    let store = Arc::new(Store::default());
    let owner = Owner::start(&channel(&settings), &store);
    store.wait_for(|stored| stored.said.contains(&"connected".to_owned())).await;
    let delete = format!("{}/bot{TOKEN}/deleteWebhook", server.api_url());
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    assert!(client.get(delete).send().await.unwrap().status().is_success());
    let began = std::time::Instant::now();
    while server.webhook(BOT).is_none() {
        assert!(began.elapsed() < WITHIN, "it is not set again");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    say(&server, "hello");
    let deaf = |stored: &Stored| stored.said.iter().any(|said| said.contains("cannot deliver 1 updates"));
    store.wait_for(deaf).await;
    owner.end().await;
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let server = server().await;
    let good = settings(&server);
    let why = |settings: TelegramAccount| Telegram::new(settings).unwrap_err();
    for token in ["", "7000001", ":x", "7000001:", "x:y", "1:a b"] {
        assert_eq!(why(TelegramAccount { bot_token: Secret::new(token), ..good.clone() }), SettingsError::Token);
    }
    for root in ["", "telegram", "ftp://x", "https://x/?y"] {
        assert_eq!(why(TelegramAccount { api_root: root.into(), ..good.clone() }), SettingsError::ApiRoot, "{root}");
    }
    let webhook = TelegramAccount { mode: TelegramMode::Webhook, ..good.clone() };
    assert_eq!(why(webhook.clone()), SettingsError::WebhookUrl);
    let webhook = TelegramAccount { webhook_url: Some("https://x.org/t".into()), ..webhook };
    assert_eq!(why(webhook.clone()), SettingsError::WebhookSecret);
    assert_eq!(why(TelegramAccount { webhook_secret: Some(Secret::new("")), ..webhook }), SettingsError::WebhookSecret);
    assert!(matches!(why(TelegramAccount { id: "A b".into(), ..good }), SettingsError::Name(_)));
}

/// A channel that Ann has written to.
async fn met() -> (Handle, Arc<Telegram>, ReplyAddress) {
    let server = server().await;
    let channel = channel(&settings(&server));
    let Said { message, .. } = server.say(BOT, ANN.chat(), ANN, "hello").unwrap();
    let address = address(&channel, ANN.chat(), None, Some(message.0));
    (server, channel, address)
}

fn address(channel: &Telegram, chat: ChatId, thread: Option<i32>, message: Option<i32>) -> ReplyAddress {
    ReplyAddress {
        account: channel.account.clone(),
        chat: chat.to_string(),
        thread: thread.map(|thread| thread.to_string()),
        message: message.map(|message| message.to_string()),
    }
}

async fn send(channel: &Telegram, to: &ReplyAddress, text: &str) -> Result<Sent, SendError> {
    let pieces = channel.render(text);
    channel.send(&Tenure::endless(1), to, &pieces[0], &SendKey { intent_id: 1, piece: 0 }).await
}

fn texts(server: &Handle, chat: ChatId) -> Vec<String> {
    server.messages(BOT, chat).iter().map(|message| message.text().to_owned()).collect()
}

#[tokio::test]
async fn a_reply_answers_its_message_with_markup() {
    let (server, channel, to) = met().await;
    let sent = send(&channel, &to, "**yes** <no>").await.unwrap();
    let messages = server.messages(BOT, ANN.chat());
    let [message] = messages.as_slice() else { panic!("{messages:?}") };
    assert_eq!((message.text(), message.id.to_string()), ("yes <no>", sent.message_id));
    assert_eq!(message.content.entities[0].kind, EntityKind::Bold);
    assert_eq!(message.reply_to.map(|id| id.to_string()), to.message);

    let follows = SendKey { intent_id: 1, piece: 1 };
    channel.send(&Tenure::endless(1), &to, &channel.render("more")[0], &follows).await.unwrap();
    assert_eq!(server.messages(BOT, ANN.chat())[1].reply_to, None, "only the first piece quotes");
    let gone = ReplyAddress { message: Some("999".into()), ..to };
    send(&channel, &gone, "still there").await.unwrap();
}

#[tokio::test]
async fn a_reply_stays_in_its_topic() {
    let (server, channel, _) = met().await;
    server.open_group(GROUP, ChatKind::Forum, "forum", &[BOT]);
    server.open_topic(BOT, GROUP, ThreadId(3)).unwrap();
    let store = Arc::new(Store::default());
    let owner = Owner::start(&channel, &store);
    let text = "@bot7000001_bot what now?";
    let said = server.say(BOT, GROUP, ANN, Saying::text(text).in_topic(ThreadId(3))).unwrap();
    store.wait_for(|stored| stored.texts.contains(&"what now?".to_owned())).await;
    let to = address(&channel, GROUP, Some(3), Some(said.message.0));
    send(&channel, &to, "this").await.unwrap();
    channel.typing(&Tenure::endless(1), &to).await;
    let messages = server.messages(BOT, GROUP);
    assert_eq!((messages[0].thread, messages[0].reply_to), (Some(ThreadId(3)), Some(said.message)));
    let typed = |request: &Recorded| request.method == Some(Method::SendChatAction) && request.ended.is_some();
    let typed = server.wait_for_request(typed, WITHIN).await.unwrap();
    assert_eq!((&typed.parameters["action"], &typed.parameters["message_thread_id"]), (&"typing".into(), &3.into()));
    owner.end().await;
}

#[tokio::test]
async fn refused_markup_is_sent_without() {
    let (server, channel, to) = met().await;
    let broken = Piece { body: "<b>never closed".into(), plain: "never closed".into() };
    let sent = channel.send(&Tenure::endless(1), &to, &broken, &SendKey { intent_id: 1, piece: 0 }).await.unwrap();
    assert_eq!(texts(&server, ANN.chat()), ["never closed"]);
    let other = Piece { body: "<i>and again".into(), plain: "and again".into() };
    channel.edit(&Tenure::endless(1), &to, &sent.message_id, &other).await.unwrap();
    assert_eq!(texts(&server, ANN.chat()), ["and again"]);
}

#[tokio::test]
async fn an_edit_that_changes_nothing_has_worked() {
    let (server, channel, to) = met().await;
    let sent = send(&channel, &to, "one").await.unwrap();
    let two = &channel.render("*two*")[0];
    for _ in 0..2 {
        channel.edit(&Tenure::endless(1), &to, &sent.message_id, two).await.unwrap();
    }
    assert_eq!(texts(&server, ANN.chat()), ["two"]);
    for wrong in ["999", "x"] {
        let refused = channel.edit(&Tenure::endless(1), &to, wrong, two).await;
        assert!(matches!(refused, Err(SendError::Refused(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn who_does_not_want_messages_gets_none() {
    let (server, channel, to) = met().await;
    server.block(BOT, ANN).unwrap();
    server.open_group(GROUP, ChatKind::Supergroup, "group", &[BOT]);
    server.kick(BOT, GROUP, ANN).unwrap();
    let addresses = [
        to,
        address(&channel, GROUP, None, None),
        address(&channel, ChatId(404), None, None),
        ReplyAddress { chat: "ann".into(), ..address(&channel, GROUP, None, None) },
    ];
    for to in addresses {
        let refused = send(&channel, &to, "x").await;
        assert!(matches!(refused, Err(SendError::Refused(_))), "{refused:?}");
    }
    assert_eq!(texts(&server, ANN.chat()).len(), 0);
}

#[tokio::test]
async fn a_group_that_moved_is_followed() {
    let (server, channel, _) = met().await;
    let old = ChatId(-5);
    server.open_group(old, ChatKind::Group, "group", &[BOT]);
    server.migrate(BOT, old, GROUP, ANN).unwrap();
    send(&channel, &address(&channel, old, Some(3), Some(1)), "found you").await.unwrap();
    let messages = server.messages(BOT, GROUP);
    assert_eq!((messages[0].text(), messages[0].reply_to), ("found you", None));
}

#[tokio::test]
async fn a_send_that_was_asked_for_and_not_answered_is_unknown() {
    let (server, channel, to) = met().await;
    channel.client.me(None).await.unwrap();
    server.inject(Rule::once(Fault::ActThenClose).method(Method::SendMessage));
    let unknown = send(&channel, &to, "sent").await;
    assert!(matches!(unknown, Err(SendError::Unknown(_))), "{unknown:?}");
    assert_eq!(texts(&server, ANN.chat()), ["sent"], "once: nothing repeated it");

    let timing = Timing { call: Duration::from_millis(50), ..Timing::default() };
    let hasty = Telegram::with_timing(&settings(&server), timing).unwrap();
    for fault in [Fault::Hang, Fault::ActThenHang, Fault::Status(502)] {
        server.inject(Rule::once(fault.clone()).method(Method::SendMessage));
        let unknown = send(&hasty, &to, "late").await;
        assert!(matches!(unknown, Err(SendError::Unknown(_))), "{fault:?} {unknown:?}");
    }
}

#[tokio::test]
async fn a_send_that_was_not_asked_for_can_wait() {
    let (server, channel, to) = met().await;
    server.inject(Rule::once(Fault::RetryAfter(9)).method(Method::SendMessage));
    let later = send(&channel, &to, "x").await;
    assert!(matches!(later, Err(SendError::Later { after, .. }) if after == Duration::from_secs(9)), "{later:?}");
    server.stop().await;
    let later = send(&channel, &to, "x").await;
    assert!(matches!(later, Err(SendError::Later { .. })), "{later:?}");
}

#[tokio::test]
async fn a_long_reply_arrives_whole_and_in_pieces() {
    let (server, channel, to) = met().await;
    let code: Vec<_> = (0..150).map(|line| format!("    let value_{line} = {line}; // {}", "x".repeat(40))).collect();
    let reply = format!("# How\n\nFirst **this**:\n\n```rust\n{}\n```\n\nThen _that_.", code.join("\n"));
    assert!(reply.len() > 10_000);
    let pieces = channel.render(&reply);
    for (number, piece) in (0..).zip(&pieces) {
        channel.send(&Tenure::endless(1), &to, piece, &SendKey { intent_id: 1, piece: number }).await.unwrap();
    }
    let messages = server.messages(BOT, ANN.chat());
    assert!((3..=4).contains(&messages.len()), "{}", messages.len());
    let shown: Vec<_> = messages.iter().flat_map(|message| message.text().lines()).collect();
    for line in &code {
        assert!(shown.contains(&line.as_str()), "{line}");
    }
    let rust = EntityKind::Pre { language: Some("rust".into()) };
    let in_code = messages.iter().filter(|message| message.content.entities.iter().any(|entity| entity.kind == rust));
    assert!(in_code.count() >= 2);
    assert!(server.requests().iter().all(|request| !matches!(request.ended, Some((_, Ended::Answered(400))))));
}

/// Whatever a model writes, Telegram takes it, and shows what the piece says that it shows.
#[test]
fn every_text_is_rendered_to_what_telegram_takes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (server, channel, to) = runtime.block_on(met());
    let config = proptest::test_runner::Config { cases: 256, failure_persistence: None, ..Default::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let outcome = runner.run(&render::tests::markdown(), |text| {
        for piece in channel.render(&text) {
            let sent = runtime.block_on(channel.client.send(
                &Tenure::endless(1),
                &Target::of(&to).unwrap(),
                &piece.body,
                Markup::Html,
            ));
            let sent =
                sent.map_err(|error| proptest::test_runner::TestCaseError::fail(format!("{error}: {piece:?}")))?;
            let shown = server.messages(BOT, ANN.chat()).pop().unwrap();
            proptest::prop_assert_eq!(shown.id.0, sent.0);
            proptest::prop_assert_eq!(shown.text().trim(), piece.plain.trim());
            proptest::prop_assert!(piece.plain.encode_utf16().count() <= fake::MAX_TEXT);
        }
        Ok(())
    });
    outcome.unwrap();
}
