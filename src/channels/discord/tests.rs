//! The channel against a Discord that is not Discord: what it hears, says, and leaves behind.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;
use jepsen_lite::fakes::discord::{
    self as fake, By, Door, Fault, Handle, Id, Limit, Limits, Options, Recorded, Route, StartLimit, What, Which,
};
use openclaw_config::Secret;
use openclaw_config::channels::{Account, DmPolicy, GroupPolicy, UnknownPolicy};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::channels::InboxError;
use crate::cluster::validity::{self, Validity};
use crate::message::{InboundMessage, Place};

/// Longer than anything takes.
const SOON: Duration = Duration::from_secs(20);

/// As many sessions and messages as a test wants.
fn options() -> Options {
    let start_limit = StartLimit { window: Duration::ZERO, ..StartLimit::default() };
    let limits = Limits { messages: Limit::new(1000, Duration::from_secs(1)), ..Limits::default() };
    Options { start_limit, limits, ..Options::default() }
}

async fn fake(options: Options) -> Handle {
    fake::start("127.0.0.1:0".parse().unwrap(), options).await.unwrap()
}

/// The channel does not look at them.
fn policies() -> Account {
    Account {
        dm_policy: DmPolicy::Open,
        allow_from: Vec::new(),
        group_policy: GroupPolicy::Open,
        group_allow_from: Vec::new(),
        require_mention: false,
        groups: std::collections::BTreeMap::new(),
        unknown: UnknownPolicy::Resend,
        max_age: Duration::from_secs(60),
        streaming: false,
        agent_id: "main".to_owned(),
    }
}

/// As `main` does.
fn install_tls() {
    // Another test was faster.
    let _provider = rustls::crypto::ring::default_provider().install_default();
}

fn discord(handle: &Handle) -> Discord {
    install_tls();
    let settings = DiscordAccount {
        id: "default".to_owned(),
        token: Secret::new("fake-token"),
        api_root: handle.base_url(),
        gateway_url: None,
        account: policies(),
    };
    let mut discord = Discord::new(settings).unwrap();
    let short = Duration::from_millis(1);
    discord.timing =
        Timing { invalid: short..2 * short, spacing: Duration::ZERO, reconnect: short, save: short, retry: short };
    discord
}

/// What outlives an owner: an inbox that does what a test wants, and tells of every change.
#[derive(Default)]
struct Store {
    taken: Mutex<Vec<InboundMessage>>,
    cursors: Mutex<Vec<String>>,
    /// How the next attempts to take something end; then all succeed.
    ends: Mutex<VecDeque<InboxError>>,
    /// Nothing is taken while it is held.
    held: watch::Sender<bool>,
    /// How many events came.
    received: AtomicU64,
    told: Mutex<Vec<String>>,
    changed: watch::Sender<u64>,
}

impl Store {
    fn change(&self) {
        self.changed.send_modify(|changes| *changes += 1);
    }

    async fn wait<T>(&self, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        let mut changes = self.changed.subscribe();
        let found = timeout(SOON, async {
            loop {
                changes.borrow_and_update();
                if let Some(found) = look(self) {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        });
        found.await.unwrap_or_else(|_| panic!("no {what} within {SOON:?}"))
    }

    async fn message(&self, text: &str) -> InboundMessage {
        let find = |store: &Self| store.taken.lock().iter().find(|message| message.text == text).cloned();
        self.wait(text, find).await
    }

    fn count(&self, text: &str) -> usize {
        self.taken.lock().iter().filter(|message| message.text == text).count()
    }

    /// The numbers that were stored as the cursor's.
    fn numbers(&self) -> Vec<u64> {
        let number = |cursor: &String| serde_json::from_str::<Value>(cursor).unwrap()["seq"].as_u64().unwrap();
        self.cursors.lock().iter().map(number).collect()
    }
}

impl Inbox for Store {
    fn take(&self, messages: Vec<InboundMessage>) -> BoxFuture<'_, Result<(), InboxError>> {
        async move {
            self.held.subscribe().wait_for(|held| !held).await.unwrap();
            let end = self.ends.lock().pop_front();
            if end.is_none() {
                self.taken.lock().extend(messages);
            }
            self.change();
            end.map_or(Ok(()), Err)
        }
        .boxed()
    }

    fn cursor(&self) -> BoxFuture<'_, Result<Option<String>, InboxError>> {
        async { Ok(self.cursors.lock().last().cloned()) }.boxed()
    }

    fn save_cursor(&self, cursor: String) -> BoxFuture<'_, Result<(), InboxError>> {
        async move {
            assert!(cursor.len() <= 4096);
            self.cursors.lock().push(cursor);
            self.change();
            Ok(())
        }
        .boxed()
    }
}

impl Reporter for Store {
    fn connected(&self) {
        self.told.lock().push("connected".to_owned());
        self.change();
    }

    fn disconnected(&self, reason: &str) {
        self.told.lock().push(reason.to_owned());
        self.change();
    }

    fn heard(&self) {}

    fn received(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
        self.change();
    }
}

/// Somebody who owns the account.
struct Owner {
    discord: Arc<Discord>,
    ended: CancellationToken,
    task: JoinHandle<ReceiveError>,
}

impl Owner {
    fn new(handle: &Handle, store: &Arc<Store>) -> Self {
        Self::with(discord(handle), store)
    }

    fn with(discord: Discord, store: &Arc<Store>) -> Self {
        let (discord, tenure) = (Arc::new(discord), Tenure::endless(1));
        let ended = tenure.ended.clone();
        let (its, inbox) = (discord.clone(), store.clone());
        let task = tokio::spawn(async move { its.receive(&tenure, &*inbox, &*inbox).await });
        Self { discord, ended, task }
    }

    async fn end(self) {
        self.ended.cancel();
        assert_eq!(self.stopped().await, ReceiveError::Ended);
    }

    async fn stopped(self) -> ReceiveError {
        timeout(SOON, self.task).await.expect("it stops").unwrap()
    }
}

fn identifies(handle: &Handle) -> usize {
    handle.record().iter().filter(|entry| matches!(entry.what, What::Identify { .. })).count()
}

/// The number of the event about a message.
async fn number_of(handle: &Handle, message: Id) -> u64 {
    let find = |handle: &Handle| {
        handle.record().into_iter().find_map(|entry| {
            if let What::Dispatch { seq, about, .. } = entry.what {
                (about == Some(message)).then_some(seq)
            } else {
                None
            }
        })
    };
    handle.wait(SOON, "event about the message", find).await.unwrap()
}

fn requests(handle: &Handle, route: Route) -> Vec<Value> {
    let body = |entry: Recorded| {
        let What::Request(request) = entry.what else { return None };
        (request.route == Some(route)).then_some(request.body)
    };
    handle.record().into_iter().filter_map(body).collect()
}

fn to(channel: Id, message: Option<Id>) -> ReplyAddress {
    ReplyAddress {
        account: ChannelAccount::new("discord", "default").unwrap(),
        chat: channel.to_string(),
        thread: None,
        message: message.map(|id| id.to_string()),
    }
}

fn piece(text: &str) -> Piece {
    Piece { body: text.to_owned(), plain: text.to_owned() }
}

fn key(intent_id: u64, piece: u32) -> SendKey {
    SendKey { intent_id, piece }
}

#[tokio::test]
async fn it_hears_and_answers_wherever_it_is_spoken_to() {
    let handle = fake(options()).await;
    let user = handle.user("ada");
    let (dm, channel) = (handle.dm(user).unwrap(), handle.channel(handle.guild("home"), "general").unwrap());
    let thread = handle.thread(channel, None, user, "aside").unwrap();
    let store = Arc::new(Store::default());
    let owner = Owner::new(&handle, &store);
    handle.wait_for_sessions(1, SOON).await.unwrap();
    let later = handle.thread(channel, None, user, "another").unwrap();
    let group = |topic: Option<Id>| Place::Group { id: channel.to_string(), topic: topic.map(|id| id.to_string()) };
    let places = [
        (dm, Place::Direct { peer: user.to_string() }),
        (channel, group(None)),
        (thread, group(Some(thread))),
        (later, group(Some(later))),
    ];
    for (n, (channel, place)) in (0..).zip(places) {
        let text = format!("hello {n}");
        let said = handle.say(channel, user, &text).unwrap();
        let message = store.message(&text).await;
        assert_eq!((&message.place, message.external_id.clone()), (&place, said.to_string()));
        assert_eq!(message.addressed, n == 0);
        owner.discord.typing(&Tenure::endless(1), &message.reply_to).await;
        assert_eq!(handle.typing(channel), 1);
        let sent = owner.discord.send(&Tenure::endless(1), &message.reply_to, &piece("hi"), &key(n, 0)).await.unwrap();
        let answer = handle.messages(channel).pop().unwrap();
        assert_eq!((answer.id.to_string(), answer.content.as_str()), (sent.message_id.clone(), "hi"));
        assert_eq!(answer.reference, Some(said));
        owner.discord.edit(&Tenure::endless(1), &message.reply_to, &sent.message_id, &piece("hi again")).await.unwrap();
        assert_eq!(handle.messages(channel).pop().unwrap().content, "hi again");
        let again = handle.reply(channel, user, answer.id, &format!("more {n}")).unwrap();
        assert!(store.message(&format!("more {n}")).await.addressed);
        assert_eq!(handle.messages(channel).pop().unwrap().id, again);
    }
    assert_eq!(requests(&handle, Route::GetChannel).len(), 0, "the gateway had told of all of them");
    owner.end().await;
    assert_eq!(*store.told.lock(), ["connected", "the lease is over"]);
}

#[tokio::test]
async fn the_cursor_never_covers_what_is_not_taken() {
    let handle = fake(options()).await;
    let user = handle.user("ada");
    let dm = handle.dm(user).unwrap();
    let store = Arc::new(Store::default());
    let owner = Owner::new(&handle, &store);
    store.wait("cursor", |store| store.numbers().pop()).await;
    store.held.send_replace(true);
    let number = number_of(&handle, handle.say(dm, user, "one").unwrap()).await;
    for n in 0..100 {
        handle.guild(&format!("guild {n}"));
    }
    store.wait("events", |store| (store.received.load(Ordering::Relaxed) >= number + 100).then_some(())).await;
    assert!(store.numbers().iter().all(|covered| *covered < number), "{number}: {:?}", store.numbers());
    store.held.send_replace(false);
    store.wait("cursor", |store| store.numbers().pop().filter(|covered| *covered >= number + 100)).await;
    assert_eq!(store.count("one"), 1);
    owner.end().await;
}

#[tokio::test]
async fn the_next_owner_resumes_and_hears_what_was_said_in_between() {
    let handle = fake(options()).await;
    let user = handle.user("ada");
    let (dm, channel) = (handle.dm(user).unwrap(), handle.channel(handle.guild("home"), "general").unwrap());
    let thread = handle.thread(channel, None, user, "aside").unwrap();
    let store = Arc::new(Store::default());
    let first = Owner::new(&handle, &store);
    handle.wait_for_sessions(1, SOON).await.unwrap();
    handle.say(dm, user, "before").unwrap();
    store.message("before").await;
    first.end().await;
    handle.say(dm, user, "between").unwrap();
    handle.say(thread, user, "in the thread").unwrap();
    // Where the thread belongs it has to ask, and that may fail.
    handle.fail(Route::GetChannel, 2, Fault::Status(500));
    let second = Owner::new(&handle, &store);
    store.message("between").await;
    let place = Place::Group { id: channel.to_string(), topic: Some(thread.to_string()) };
    assert_eq!(store.message("in the thread").await.place, place);
    handle.say(thread, user, "after").unwrap();
    assert_eq!(store.message("after").await.place, place);
    assert_eq!((identifies(&handle), requests(&handle, Route::GetChannel).len()), (1, 3));
    let resumed = |entry: &Recorded| matches!(entry.what, What::Resumed { replayed: 2, .. });
    handle.wait_for_entry(SOON, resumed).await.unwrap();
    let connected = |door| {
        handle.record().iter().any(|entry| matches!(&entry.what, What::Connected { door: at, .. } if *at == door))
    };
    assert!(connected(Door::Gateway) && connected(Door::Resume));
    assert_eq!(requests(&handle, Route::GetGatewayBot).len(), 1);
    assert_eq!(store.count("before"), 1);
    second.end().await;
    assert_eq!(handle.overlaps(|peer| peer).unwrap(), []);
}

#[tokio::test]
async fn an_owner_that_died_leaves_its_session_to_the_next() {
    let handle = fake(options()).await;
    let user = handle.user("ada");
    let dm = handle.dm(user).unwrap();
    let store = Arc::new(Store::default());
    let owner = || {
        let mut discord = discord(&handle);
        discord.settings.gateway_url = Some(handle.gateway_url());
        Owner::with(discord, &store)
    };
    let first = owner();
    handle.wait_for_sessions(1, SOON).await.unwrap();
    handle.say(dm, user, "before").unwrap();
    store.message("before").await;
    store.wait("cursor", |store| store.numbers().pop().filter(|number| *number >= 2)).await;
    first.task.abort();
    handle.wait_for_sessions(0, SOON).await.unwrap();
    handle.say(dm, user, "between").unwrap();
    let second = owner();
    store.message("between").await;
    assert_eq!(identifies(&handle), 1);
    second.end().await;
    let other = |entry: &Recorded| matches!(entry.what, What::Connected { door: Door::Resume, .. });
    assert!(!handle.record().iter().any(other), "what the settings name is used for all");
}

#[tokio::test]
async fn a_session_outlives_its_address() {
    let handle = fake(options()).await;
    let store = Arc::new(Store::default());
    let first = Owner::new(&handle, &store);
    store.wait("cursor", |store| store.numbers().pop()).await;
    first.end().await;
    let gone = store.cursors.lock().last().unwrap().replace(&handle.resume_gateway_url(), "ws://127.0.0.1:1");
    store.cursors.lock().push(gone);
    let second = Owner::new(&handle, &store);
    handle.wait_for_entry(SOON, |entry| matches!(entry.what, What::Resumed { .. })).await.unwrap();
    assert_eq!(identifies(&handle), 1);
    second.end().await;
    let (third, address) = (discord(&handle), handle.address());
    handle.stop().await;
    let error = Owner::with(third, &store).stopped().await;
    assert!(matches!(error, ReceiveError::Failed { retry_after: None, .. }), "{address}: {error}");
}

#[tokio::test]
async fn the_end_of_a_tenure_is_quick_and_leaves_the_session() {
    let handle = fake(options()).await;
    let store = Arc::new(Store::default());
    let owner = Owner::new(&handle, &store);
    let session = handle.wait_for_sessions(1, SOON).await.unwrap().remove(0);
    store.wait("connection", |store| store.told.lock().pop()).await;
    // Even while a message is on its way to a store that does not answer.
    store.held.send_replace(true);
    let user = handle.user("ada");
    number_of(&handle, handle.say(handle.dm(user).unwrap(), user, "hello").unwrap()).await;
    store.wait("event", |store| (store.received.load(Ordering::Relaxed) >= 2).then_some(())).await;
    let before = Instant::now();
    owner.end().await;
    let took = before.elapsed();
    // 40 ms are allowed to it; the rest is for a busy machine.
    assert!(took < Duration::from_millis(300), "{took:?}");
    let closed = What::Closed { code: Some(4000), by: By::Client };
    handle.wait_for_entry(SOON, |entry| entry.what == closed).await.unwrap();
    let record = handle.record();
    let after = record.iter().skip_while(|entry| entry.what != closed).skip(1).count();
    assert_eq!(after, 0, "nothing is sent after the end");
    let left = handle.sessions().remove(0);
    assert_eq!((left.id, left.peer), (session.id, None));
    assert_eq!(store.taken.lock().len(), 0);
}

#[tokio::test]
async fn a_tenure_that_is_over_does_nothing() {
    let handle = fake(options()).await;
    let store = Store::default();
    let told = Tenure::endless(1);
    told.ended.cancel();
    let validity = Validity::start(Duration::from_secs(60), Duration::ZERO).unwrap();
    validity.confirmed(1, validity::now());
    let stretch = validity.stretches().borrow().clone().unwrap();
    validity.lost();
    // As after a pause of the process.
    let not_told = Tenure::new(1, CancellationToken::new(), stretch);
    for tenure in [told, not_told] {
        assert_eq!(discord(&handle).receive(&tenure, &store, &store).await, ReceiveError::Ended);
    }
    assert_eq!(handle.record(), []);
}

#[tokio::test]
async fn lost_connections_are_followed_by_others() {
    let handle = fake(options()).await;
    let user = handle.user("ada");
    let dm = handle.dm(user).unwrap();
    let store = Arc::new(Store::default());
    let owner = Owner::new(&handle, &store);
    type Lose = fn(&Handle) -> usize;
    let losses: [(&str, Lose, usize); 5] = [
        ("op 7", |handle| handle.reconnect(&Which::All), 1),
        ("op 9 true", |handle| handle.invalidate(&Which::All, true), 1),
        ("a dropped socket", |handle| handle.drop_connections(&Which::All), 1),
        ("op 9 false", |handle| handle.invalidate(&Which::All, false), 2),
        ("close 4009", |handle| handle.close(&Which::All, 4009), 3),
    ];
    for (what, lose, begun) in losses {
        let before = handle.wait_for_sessions(1, SOON).await.unwrap()[0].peer;
        let seen = store.told.lock().len();
        lose(&handle);
        let changed = |handle: &Handle| {
            handle.sessions().iter().any(|session| session.peer.is_some() && session.peer != before).then_some(())
        };
        handle.wait(SOON, what, changed).await.unwrap();
        handle.say(dm, user, &format!("after {what}")).unwrap();
        store.message(&format!("after {what}")).await;
        assert_eq!(identifies(&handle), begun, "{what}");
        let told = store.told.lock()[seen..].to_vec();
        assert!(told.len() >= 2 && told.last().unwrap() == "connected", "{what}: {told:?}");
    }
    assert_eq!(store.taken.lock().len(), losses.len());
    owner.end().await;
}

#[tokio::test]
async fn a_stored_session_that_is_gone_is_replaced() {
    let handle = fake(options()).await;
    let user = handle.user("ada");
    let dm = handle.dm(user).unwrap();
    let store = Arc::new(Store::default());
    let first = Owner::new(&handle, &store);
    handle.wait_for_sessions(1, SOON).await.unwrap();
    store.wait("cursor", |store| store.numbers().pop()).await;
    first.end().await;
    handle.wait_for_sessions(0, SOON).await.unwrap();
    handle.expire_sessions();
    let second = Owner::new(&handle, &store);
    handle.wait_for_sessions(1, SOON).await.unwrap();
    handle.say(dm, user, "hello").unwrap();
    store.message("hello").await;
    assert_eq!(identifies(&handle), 2);
    second.end().await;
}

#[tokio::test]
async fn a_heartbeat_without_an_answer_is_the_end_of_its_connection() {
    let handle = fake(Options { heartbeat_interval: Some(Duration::from_millis(100)), ..options() }).await;
    let store = Arc::new(Store::default());
    let owner = Owner::new(&handle, &store);
    handle.wait_for_sessions(1, SOON).await.unwrap();
    let beat = |entry: &Recorded| matches!(entry.what, What::Heartbeat { acknowledged: true, .. });
    handle.wait_for_entry(SOON, beat).await.unwrap();
    handle.acknowledge(&Which::All, false);
    handle.wait_for_entry(SOON, |entry| matches!(entry.what, What::Resumed { .. })).await.unwrap();
    let closed = What::Closed { code: Some(4000), by: By::Client };
    handle.wait_for_entry(SOON, |entry| entry.what == closed).await.unwrap();
    assert_eq!(identifies(&handle), 1);
    let reason = store.wait("loss", |store| store.told.lock().get(1).cloned()).await;
    assert_eq!(reason, "a heartbeat had no answer");
    owner.end().await;
}

#[tokio::test]
async fn what_only_an_operator_can_change_is_refused_with_words() {
    let refused = |error: ReceiveError, word: &str| {
        let ReceiveError::Refused(words) = error else { panic!("{error}") };
        assert!(words.contains(word), "{words}");
    };
    let handle = fake(Options { privileged_intents: 0, ..options() }).await;
    let error = Owner::new(&handle, &Arc::default()).stopped().await;
    refused(error, "Message Content Intent");
    let handle = fake(Options { token: "another".to_owned(), ..options() }).await;
    let error = Owner::new(&handle, &Arc::default()).stopped().await;
    refused(error, "token");
    let handle = fake(options()).await;
    let owner = Owner::new(&handle, &Arc::default());
    handle.wait_for_sessions(1, SOON).await.unwrap();
    handle.close(&Which::All, 4004);
    refused(owner.stopped().await, "token");
}

#[tokio::test]
async fn sessions_are_not_begun_without_end() {
    let starts = Limit::new(3, Duration::from_secs(3600));
    let start_limit = StartLimit { starts, window: Duration::ZERO, ..StartLimit::default() };
    let handle = fake(Options { start_limit, ..options() }).await;
    let owner = Owner::new(&handle, &Arc::default());
    for _ in 0..2 {
        let session = handle.wait_for_sessions(1, SOON).await.unwrap().remove(0).id;
        handle.invalidate(&Which::All, false);
        let gone = |handle: &Handle| handle.sessions().iter().all(|other| other.id != session).then_some(());
        handle.wait(SOON, "end of the session", gone).await.unwrap();
    }
    let error = owner.stopped().await;
    let ReceiveError::Failed { retry_after: Some(after), .. } = error else { panic!("{error}") };
    assert!(after > Duration::from_secs(3000), "{after:?}");
    assert!(!handle.token_is_reset() && handle.starts_remaining() == 1);
    let mut patient = discord(&handle);
    patient.starts.lock().begin(Instant::now());
    patient.timing.spacing = Duration::from_secs(60);
    let handle = fake(options()).await;
    patient.rest = Rest::new(&handle.base_url(), &Secret::new("fake-token")).unwrap();
    let error = Owner::with(patient, &Arc::default()).stopped().await;
    assert!(matches!(error, ReceiveError::Failed { retry_after: Some(_), .. }), "{error}");
    assert_eq!(identifies(&handle), 0);
}

#[tokio::test]
async fn messages_wait_for_a_store_that_refuses_them() {
    let handle = fake(options()).await;
    let user = handle.user("ada");
    let dm = handle.dm(user).unwrap();
    let store = Arc::new(Store::default());
    store.ends.lock().extend(vec![InboxError::Unavailable("no quorum".to_owned()); 3]);
    let owner = Owner::new(&handle, &store);
    handle.wait_for_sessions(1, SOON).await.unwrap();
    for n in 0..120 {
        handle.say(dm, user, &format!("message {n}")).unwrap();
    }
    store.message("message 119").await;
    let texts: Vec<String> = store.taken.lock().iter().map(|message| message.text.clone()).collect();
    assert_eq!(texts, (0..120).map(|n| format!("message {n}")).collect::<Vec<_>>());
    assert_eq!(handle.held().unwrap().len(), 1, "one connection was enough");
    store.ends.lock().push_back(InboxError::Fenced);
    handle.say(dm, user, "too late").unwrap();
    assert_eq!(owner.stopped().await, ReceiveError::Ended);
    assert_eq!(store.count("too late"), 0);
    assert_eq!(handle.sessions().len(), 1, "the session is left to who owns it");
}

#[tokio::test]
async fn more_than_can_wait_is_left_to_discord() {
    let handle = fake(options()).await;
    let user = handle.user("ada");
    let dm = handle.dm(user).unwrap();
    let store = Arc::new(Store::default());
    let first = Owner::new(&handle, &store);
    store.wait("cursor", |store| store.numbers().pop()).await;
    store.held.send_replace(true);
    for n in 0..1100 {
        handle.say(dm, user, &format!("message {n}")).unwrap();
    }
    assert!(matches!(first.stopped().await, ReceiveError::Failed { retry_after: None, .. }));
    store.held.send_replace(false);
    let second = Owner::new(&handle, &store);
    store.message("message 1099").await;
    assert_eq!((store.taken.lock().len(), identifies(&handle)), (1100, 1));
    second.end().await;
}

#[tokio::test]
async fn the_same_piece_is_sent_once() {
    let handle = fake(options()).await;
    let user = handle.user("ada");
    let dm = handle.dm(user).unwrap();
    let said = handle.say(dm, user, "hello").unwrap();
    let (one, two) = (discord(&handle), discord(&handle));
    handle.fail(Route::CreateMessage, 1, Fault::ActAndClose);
    let lost = one.send(&Tenure::endless(1), &to(dm, Some(said)), &piece("answer"), &key(7, 0)).await;
    assert!(matches!(lost, Err(SendError::Unknown(_))), "{lost:?}");
    let sent = two.send(&Tenure::endless(1), &to(dm, Some(said)), &piece("answer"), &key(7, 0)).await.unwrap();
    assert_eq!(one.send(&Tenure::endless(1), &to(dm, Some(said)), &piece("answer"), &key(7, 0)).await.unwrap(), sent);
    assert_eq!(handle.messages(dm).len(), 2);
    one.send(&Tenure::endless(1), &to(dm, Some(said)), &piece("answer"), &key(7, 1)).await.unwrap();
    one.send(&Tenure::endless(1), &to(dm, Some(said)), &piece("answer"), &key(8, 0)).await.unwrap();
    assert_eq!(handle.messages(dm).len(), 4);
    let bodies = requests(&handle, Route::CreateMessage);
    let nonce = bodies[0]["nonce"].as_str().unwrap();
    assert_eq!((nonce.len(), &bodies[0]["enforce_nonce"]), (25, &Value::Bool(true)));
    assert_eq!(bodies[0]["allowed_mentions"]["parse"], serde_json::json!([]));
    assert_eq!(bodies[0]["allowed_mentions"]["replied_user"], true);
    assert_eq!(bodies[0]["message_reference"]["message_id"], said.to_string());
    assert_eq!(bodies[0]["message_reference"]["fail_if_not_exists"], false);
    assert_eq!(bodies[3]["message_reference"], Value::Null, "only the first piece answers");
    handle.delete(dm, said).unwrap();
    one.send(&Tenure::endless(1), &to(dm, Some(said)), &piece("late"), &key(9, 0)).await.unwrap();
    assert_eq!(handle.messages(dm).pop().unwrap().reference, None);
}

#[tokio::test]
async fn what_was_not_sent_is_told_from_what_may_have_been() {
    let handle = fake(options()).await;
    let (user, guild) = (handle.user("ada"), handle.guild("home"));
    let (dm, channel) = (handle.dm(user).unwrap(), handle.channel(guild, "general").unwrap());
    let discord = discord(&handle);
    let send = async |channel: Id| {
        discord.send(&Tenure::endless(1), &to(channel, None), &piece("hello"), &key(1, 0)).await.unwrap_err()
    };
    for fault in [Fault::CloseBefore, Fault::Status(500), Fault::Status(502)] {
        handle.fail(Route::CreateMessage, 1, fault);
        let error = send(dm).await;
        assert!(matches!(error, SendError::Unknown(_)), "{fault:?}: {error}");
    }
    let mut hasty = self::discord(&handle);
    hasty.rest.deadline = Duration::from_millis(50);
    handle.fail(Route::CreateMessage, 1, Fault::Hang);
    let late = hasty.send(&Tenure::endless(1), &to(dm, None), &piece("hello"), &key(1, 0)).await;
    assert!(matches!(late, Err(SendError::Unknown(_))), "{late:?}");
    handle.refuse_dms(user, true);
    handle.mute(channel, true);
    for (channel, code) in [(dm, 50007), (channel, 50013), (Id(12345), 10003)] {
        let error = send(channel).await;
        let SendError::Refused(words) = error else { panic!("{code}: {error}") };
        assert!(words.contains(&code.to_string()), "{words}");
    }
    handle.fail(Route::CreateMessage, 1, Fault::Status(401));
    assert!(matches!(send(dm).await, SendError::Later { .. }));
    let nowhere = ReplyAddress { chat: "general".to_owned(), ..to(dm, None) };
    assert!(matches!(
        discord.send(&Tenure::endless(1), &nowhere, &piece("a"), &key(1, 0)).await,
        Err(SendError::Refused(_))
    ));
    assert_eq!(handle.messages(dm).len() + handle.messages(channel).len(), 0);
    handle.stop().await;
    // A connection that was open may have taken the request with it; a new one is refused.
    let error = send(dm).await;
    let error = if matches!(error, SendError::Unknown(_)) { send(dm).await } else { error };
    assert!(matches!(error, SendError::Later { .. }), "{error}");
}

#[tokio::test]
async fn a_limit_is_kept_without_asking_again() {
    let handle = fake(options()).await;
    let user = handle.user("ada");
    let (dm, other) = (handle.dm(user).unwrap(), handle.channel(handle.guild("home"), "general").unwrap());
    let discord = discord(&handle);
    let retry_after = Duration::from_secs(30);
    handle.fail(Route::CreateMessage, 1, Fault::RateLimited { retry_after, global: false });
    for _ in 0..2 {
        match discord.send(&Tenure::endless(1), &to(dm, None), &piece("hello"), &key(1, 0)).await {
            Err(SendError::Later { after, .. }) => {
                assert!(after > retry_after / 2 && after <= retry_after, "{after:?}")
            }
            end => panic!("{end:?}"),
        }
    }
    assert_eq!(requests(&handle, Route::CreateMessage).len(), 1);
    discord.send(&Tenure::endless(1), &to(other, None), &piece("hello"), &key(2, 0)).await.unwrap();
    handle.fail(Route::CreateMessage, 1, Fault::RateLimited { retry_after, global: true });
    for _ in 0..2 {
        let end = discord.send(&Tenure::endless(1), &to(other, None), &piece("hello"), &key(3, 0)).await;
        assert!(matches!(end, Err(SendError::Later { .. })), "{end:?}");
    }
    assert_eq!(requests(&handle, Route::CreateMessage).len(), 3);
}

#[tokio::test]
async fn a_long_reply_comes_in_pieces_that_discord_takes() {
    let handle = fake(options()).await;
    let dm = handle.dm(handle.user("ada")).unwrap();
    let discord = discord(&handle);
    let text = format!("# Title\n\n{}\n```rust\n{}```\n", "Some words. ".repeat(420), "let a = 1;\n".repeat(500));
    assert!(text.len() > 10_000);
    let pieces = discord.render(&text);
    assert_eq!(pieces.len(), 6);
    for (n, piece) in (0..).zip(&pieces) {
        discord.send(&Tenure::endless(1), &to(dm, None), piece, &key(1, n)).await.unwrap();
    }
    let arrived: Vec<String> = handle.messages(dm).into_iter().map(|message| message.content).collect();
    assert_eq!(arrived, pieces.into_iter().map(|piece| piece.body).collect::<Vec<_>>());
}

#[test]
fn settings_that_cannot_work_are_refused() {
    install_tls();
    let build = |id: &str, token: &str, api_root: &str, gateway_url: Option<&str>| {
        let settings = DiscordAccount {
            id: id.to_owned(),
            token: Secret::new(token),
            api_root: api_root.to_owned(),
            gateway_url: gateway_url.map(str::to_owned),
            account: policies(),
        };
        Discord::new(settings)
    };
    let root = "http://127.0.0.1:1";
    assert!(matches!(build("A B", "t", root, None), Err(BuildError::Account(_))));
    assert!(matches!(build("a", "t\n", root, None), Err(BuildError::Token)));
    assert!(matches!(build("a", "t", "discord.com", None), Err(BuildError::ApiRoot(_))));
    assert!(matches!(build("a", "t", root, Some("https://g")), Err(BuildError::GatewayUrl(_))));
    assert_eq!(build("a", "t", root, Some("wss://g")).unwrap().account().to_string(), "discord:a");
}
