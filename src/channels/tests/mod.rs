//! Intake, delivery and the supervisor, on a store in memory and a platform that does as it is told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use openclaw_config::Config;
use openclaw_config::channels::{Account, DmPolicy, GroupPolicy, UnknownPolicy};
use openclaw_proto::ids::{ChannelAccount, InstanceId, SeqNum, SessionKey, TurnId};
use openclaw_proto::state::command::Kind as Command;
use openclaw_proto::state::outcome::Kind as Outcome;
use openclaw_proto::state::update_intent::Step;
use openclaw_proto::state::{
    Complete, Enqueue, ExpireInstance, Fail, InboxKey, IntentState, Lease, MoveLease, RegisterInstance, Turn,
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::delivery::Delivery;
use super::health::{self, Health};
use super::intake::{Context, Intake};
use super::outlet::{Outlet, Pace};
use super::supervisor::{Configured, Supervisor};
use super::testing::{account, direct, group, settings};
use super::writing::Writing;
use super::{Channel, Inbox, InboxError, ReceiveError, Reporter, SendError, SendKey, Sent, Tenure};
use crate::cluster::session::Session;
use crate::cluster::validity::{self, Validity};
use crate::message::{InboundMessage, Piece, Place, ReplyAddress};
use crate::metrics::Metrics;
use crate::models::Models;
use crate::sessions::commands::Commander;
use crate::sessions::follow::{self, Follow, NoRelay};
use crate::sessions::live::{self, Hub};
use crate::store::SessionStore;
use crate::store::channels::ChannelStore;
use crate::store::memory::{Fault, MemoryStore};
use crate::store::{Consistency, Event};

mod writing;

const PATIENCE: Duration = Duration::from_secs(20);
const FAST: Pace = Pace { per_chat: Duration::ZERO, overall: Duration::ZERO };

/// What the platform does with a call.
type Verdict = Result<(), SendError>;

/// A platform that takes what it gets, or does as the script says.
struct Platform {
    account: ChannelAccount,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    script: VecDeque<Verdict>,
    /// Of edits, which have a script of their own.
    edit_script: VecDeque<Verdict>,
    /// Chat and text of all that was taken, as it reads now.
    sent: Vec<(String, String)>,
    /// Its ids, in the same order.
    ids: Vec<String>,
    calls: usize,
    edits: usize,
    receivers: usize,
    most_receivers: usize,
    /// What receiving ends with, first one first.
    ends: VecDeque<ReceiveError>,
    tokens: Vec<u64>,
    /// How long the platform takes to answer.
    slow: Duration,
}

impl Platform {
    fn new() -> Arc<Self> {
        Arc::new(Self { account: account(), state: Mutex::default(), changed: Notify::new() })
    }

    fn script(&self, verdicts: impl IntoIterator<Item = Verdict>) {
        self.state.lock().script.extend(verdicts);
    }

    fn texts(&self) -> Vec<String> {
        self.state.lock().sent.iter().map(|(_, text)| text.clone()).collect()
    }

    async fn until(&self, what: &str, check: impl Fn(&State) -> bool) {
        let met = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if check(&self.state.lock()) {
                    return;
                }
                changed.await;
            }
        };
        assert!(timeout(PATIENCE, met).await.is_ok(), "{what}: {:?}", self.texts());
    }
}

impl Channel for Platform {
    fn account(&self) -> &ChannelAccount {
        &self.account
    }

    fn receive<'a>(
        &'a self,
        tenure: &'a Tenure,
        _inbox: &'a dyn Inbox,
        reporter: &'a dyn Reporter,
    ) -> BoxFuture<'a, ReceiveError> {
        struct Receiving<'a>(&'a Platform);
        impl Drop for Receiving<'_> {
            fn drop(&mut self) {
                self.0.state.lock().receivers -= 1;
                self.0.changed.notify_waiters();
            }
        }
        Box::pin(async move {
            let ending = {
                let mut state = self.state.lock();
                state.receivers += 1;
                state.most_receivers = state.most_receivers.max(state.receivers);
                state.tokens.push(tenure.fencing_token);
                state.ends.pop_front()
            };
            let _receiving = Receiving(self);
            reporter.connected();
            self.changed.notify_waiters();
            match ending {
                Some(error) => error,
                None => {
                    tenure.ended.cancelled().await;
                    ReceiveError::Ended
                }
            }
        })
    }

    fn render(&self, text: &str) -> Vec<Piece> {
        text.split('|').map(|part| Piece { body: part.into(), plain: part.into() }).collect()
    }

    fn send<'a>(
        &'a self,
        _: &'a Tenure,
        to: &'a ReplyAddress,
        piece: &'a Piece,
        key: &'a SendKey,
    ) -> BoxFuture<'a, Result<Sent, SendError>> {
        let (answer, slow) = {
            let mut state = self.state.lock();
            state.calls += 1;
            let message_id = format!("{}-{}", key.intent_id, key.piece);
            let verdict = state.script.pop_front().unwrap_or(Ok(()));
            if verdict.is_ok() {
                state.sent.push((to.chat.clone(), piece.body.clone()));
                state.ids.push(message_id.clone());
            }
            (verdict.map(|()| Sent { message_id }), state.slow)
        };
        self.changed.notify_waiters();
        Box::pin(async move {
            tokio::time::sleep(slow).await;
            answer
        })
    }

    fn edit<'a>(
        &'a self,
        _: &'a Tenure,
        _: &'a ReplyAddress,
        message_id: &'a str,
        piece: &'a Piece,
    ) -> BoxFuture<'a, Result<(), SendError>> {
        let answer = {
            let mut state = self.state.lock();
            state.edits += 1;
            let verdict = state.edit_script.pop_front().unwrap_or(Ok(()));
            match state.ids.iter().position(|id| id == message_id) {
                Some(at) if verdict.is_ok() => {
                    state.sent[at].1.clone_from(&piece.body);
                    verdict
                }
                Some(_) => verdict,
                None => Err(SendError::Refused("no such message".into())),
            }
        };
        self.changed.notify_waiters();
        Box::pin(std::future::ready(answer))
    }

    fn preview_every(&self, _: &ReplyAddress) -> Duration {
        Duration::from_millis(10)
    }

    fn typing<'a>(&'a self, _: &'a Tenure, _: &'a ReplyAddress) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

fn instance(name: &str) -> InstanceId {
    InstanceId::parse(name).unwrap()
}

fn register(store: &MemoryStore, name: &str) -> u64 {
    let outcome = store.apply(Command::RegisterInstance(RegisterInstance {
        instance_id: name.into(),
        boot_id: format!("boot-{name}"),
        accounts: vec![account().into()],
        ..RegisterInstance::default()
    }));
    let Outcome::InstanceRegistered(registered) = outcome.value else { panic!("{:?}", outcome.value) };
    registered.epoch
}

fn lease(store: &MemoryStore) -> Lease {
    store.leases().unwrap().pop().unwrap()
}

/// Has `text` sent to `chat`.
fn enqueue(store: &MemoryStore, chat: &str, text: &str) {
    let inbox =
        InboxKey { account: "test".into(), external_id: format!("{chat}-{text}"), body_hash: vec![0; 32].into() };
    let to = openclaw_proto::state::ReplyAddress {
        account: account().into(),
        chat: chat.into(),
        ..openclaw_proto::state::ReplyAddress::default()
    };
    store.apply(Command::Enqueue(Enqueue { inbox: Some(inbox), to: Some(to), text: text.into() }));
}

fn outbox(store: &MemoryStore) -> Vec<(IntentState, String)> {
    let rows = store.outbox(&account(), 0, 100).unwrap();
    rows.iter().map(|intent| (intent.state(), intent.text.clone())).collect()
}

/// A delivery on `node-1`, which owns the account.
struct Delivering {
    store: MemoryStore,
    platform: Arc<Platform>,
    /// Where `node-1` writes.
    hub: Hub,
    metrics: Metrics,
    health: Health,
    ended: CancellationToken,
    task: JoinHandle<()>,
}

/// Readers on an instance, which are told what the store tells.
fn follow(store: &MemoryStore, me: &str, hub: Hub) -> Follow {
    let (mut events, told) = (store.events(), hub.clone());
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            match event {
                Event::TurnRunnable(turn) | Event::TurnEnded(turn) => {
                    told.observe(&TurnId::parse(turn.id.as_str()).unwrap(), &turn);
                }
                Event::Lagged | Event::LeaseChanged(_) | Event::OutboxChanged { .. } => told.recheck(),
            }
        }
    });
    let store: Arc<dyn crate::store::SessionStore> = Arc::new(store.clone());
    Follow::new(instance(me), store, hub, Arc::new(NoRelay), follow::Options::default(), CancellationToken::new())
}

impl Delivering {
    fn start(change: impl FnOnce(&mut Account, &MemoryStore, &Platform)) -> Self {
        let store = MemoryStore::new(&[]);
        register(&store, "node-1");
        let (mut settings, platform) = (settings(), Platform::new());
        change(&mut settings, &store, &platform);
        Self::over(store, platform, settings)
    }

    fn over(store: MemoryStore, platform: Arc<Platform>, settings: Account) -> Self {
        Self::at(store, platform, settings, FAST)
    }

    fn at(store: MemoryStore, platform: Arc<Platform>, settings: Account, pace: Pace) -> Self {
        let tenure = Tenure::endless(lease(&store).fencing_token);
        let ended = tenure.ended.clone();
        let (hub, metrics) = (Hub::new(live::Limits::default()), metrics());
        let outlet = Outlet::new(Arc::new(store.clone()), platform.clone(), settings, tenure, pace, metrics.clone());
        let writing = Writing::new(outlet.clone(), follow(&store, "node-1", hub.clone()));
        let health = Health::new(metrics.clone());
        health.started(&account());
        let delivery = Delivery::new(outlet, writing.clone(), health.clone());
        let task = tokio::spawn(async move {
            tokio::select! {
                () = delivery.run() => {}
                () = async { writing.run().await; std::future::pending().await } => {}
            }
        });
        Self { store, platform, hub, metrics, health, ended, task }
    }

    async fn until_outbox(&self, expected: &[(IntentState, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(state, text)| (*state, (*text).to_owned())).collect();
        let began = std::time::Instant::now();
        while outbox(&self.store) != expected {
            assert!(began.elapsed() < PATIENCE, "{:?}", outbox(&self.store));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn replies_go_out_in_pieces_and_in_the_order_of_each_chat() {
    let one = Delivering::start(|_, store, _| {
        for text in ["a1|a2", "a3"] {
            enqueue(store, "a", text);
        }
        enqueue(store, "b", "b1");
    });
    one.until_outbox(&[]).await;
    enqueue(&one.store, "a", "a4");
    one.platform.until("four and one", |state| state.sent.len() == 5).await;
    one.until_outbox(&[]).await;
    let sent = one.platform.state.lock().sent.clone();
    let of = |chat: &str| -> Vec<String> {
        sent.iter().filter(|(to, _)| to == chat).map(|(_, text)| text.clone()).collect()
    };
    assert_eq!(of("a"), ["a1", "a2", "a3", "a4"]);
    assert_eq!(of("b"), ["b1"]);
    one.ended.cancel();
    timeout(PATIENCE, one.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_chat_that_has_waited_longest_is_first() {
    let one = Delivering::start(|_, store, _| {
        for chat in ["c", "a", "b"] {
            enqueue(store, chat, &format!("{chat}1"));
        }
    });
    one.until_outbox(&[]).await;
    assert_eq!(one.platform.texts(), ["c1", "a1", "b1"]);
}

#[tokio::test]
async fn a_message_without_an_answer_is_sent_again_or_held_as_the_policy_says() {
    let unknown = || Err(SendError::Unknown("no answer".into()));
    let resent = Delivering::start(|_, store, platform| {
        platform.script([unknown(), Ok(())]);
        enqueue(store, "a", "x");
    });
    resent.until_outbox(&[]).await;
    assert_eq!(resent.platform.state.lock().calls, 2);

    let held = Delivering::start(|settings, store, platform| {
        settings.unknown = UnknownPolicy::Hold;
        platform.script([unknown()]);
        enqueue(store, "a", "x");
        enqueue(store, "a", "y");
    });
    held.until_outbox(&[(IntentState::Unknown, "x")]).await;
    assert_eq!(held.platform.texts(), ["y"], "what is held does not hold up the others");
    // An operator decides.
    let id = held.store.outbox(&account(), 0, 1).unwrap()[0].id;
    let store: Arc<dyn ChannelStore> = Arc::new(held.store.clone());
    store.update_intent(&account(), id, 0, Step::Resubmitted(true), PATIENCE).await.unwrap();
    held.until_outbox(&[]).await;
    assert_eq!(held.platform.texts(), ["y", "x"]);
}

#[tokio::test]
async fn what_the_platform_refuses_is_kept_and_the_rest_goes_on() {
    let one = Delivering::start(|_, store, platform| {
        platform.script([Err(SendError::Refused("blocked".into()))]);
        enqueue(store, "a", "x");
        enqueue(store, "a", "y");
    });
    one.until_outbox(&[(IntentState::Failed, "x")]).await;
    assert_eq!(one.platform.texts(), ["y"]);
}

#[tokio::test]
async fn what_was_not_sent_waits_for_its_time_and_keeps_its_place() {
    let one = Delivering::start(|_, store, platform| {
        platform.script([Err(SendError::Later {
            reason: "slow down".into(),
            after: Duration::from_millis(50),
            asked: true,
        })]);
        enqueue(store, "a", "x");
        enqueue(store, "a", "y");
    });
    one.until_outbox(&[]).await;
    assert_eq!(one.platform.texts(), ["x", "y"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_certainly_not_sent_is_tried_for_as_long_as_it_may_be_late() {
    let nobody =
        || Err(SendError::Later { reason: "no connection".into(), after: Duration::from_secs(2), asked: false });
    let one = Delivering::start(|_, store, platform| {
        platform.script((0..100).map(|_| nobody()));
        enqueue(store, "a", "x");
        enqueue(store, "a", "y");
    });
    let began = tokio::time::Instant::now();
    tokio::time::timeout(Duration::from_secs(3 * 60 * 60), async {
        while one.platform.texts().len() < 2 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await
    .expect("an outage of an hour and a half costs no message");
    assert!(began.elapsed() > Duration::from_secs(90 * 60), "it is not tried each second for an hour");
    assert_eq!(one.platform.texts(), ["x", "y"]);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_may_have_arrived_twenty_times_is_not_sent_again() {
    let one = Delivering::start(|_, store, platform| {
        platform.script((0..100).map(|_| Err(SendError::Unknown("no answer".into()))));
        enqueue(store, "a", "x");
    });
    // Of a clock that stands still until nobody has anything to do.
    tokio::time::sleep(Duration::from_secs(60 * 60)).await;
    assert_eq!(one.platform.state.lock().calls, 20);
    let failed = one.store.outbox(&account(), 0, 1).unwrap().remove(0);
    assert_eq!((failed.state(), &*failed.error), (IntentState::Failed, "no answer to 20 attempts: no answer"));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_go_out_is_told_unless_the_platform_asked_to_wait() {
    let later = |asked| Err(SendError::Later { reason: "later".into(), after: Duration::from_secs(60), asked });
    let standstill = |one: &Delivering| one.health.all().pop().unwrap().1.standstill();
    for (asked, told) in [(true, Duration::ZERO), (false, Duration::from_secs(50))] {
        let one = Delivering::start(|_, store, platform| {
            platform.script([later(asked), Ok(())]);
            enqueue(store, "a", "x");
        });
        one.platform.until("the first attempt", |state| state.calls == 1).await;
        tokio::time::sleep(Duration::from_secs(55)).await;
        let now = standstill(&one).unwrap();
        assert!(now >= told && now <= told + Duration::from_secs(10), "{asked}: {now:?}");
        one.platform.until("the second", |state| state.sent.len() == 1).await;
        one.until_outbox(&[]).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(standstill(&one), None, "nothing waits");
    }
}

#[tokio::test]
async fn a_commit_that_fails_between_sending_and_saying_so_sends_nothing_twice() {
    let one = Delivering::start(|_, store, _| {
        enqueue(store, "a", "x");
        // The claim, and then what became of it.
        store.inject([Fault::LostAnswer, Fault::NoQuorum, Fault::LostAnswer, Fault::NoQuorum]);
    });
    one.until_outbox(&[]).await;
    assert_eq!(one.platform.texts(), ["x"]);
}

#[tokio::test]
async fn the_next_owner_finds_what_the_last_one_was_sending() {
    let store = MemoryStore::new(&[]);
    register(&store, "node-1");
    register(&store, "node-2");
    enqueue(&store, "a", "x");
    let first = lease(&store);
    let id = store.outbox(&account(), 0, 1).unwrap()[0].id;
    let as_store: Arc<dyn ChannelStore> = Arc::new(store.clone());
    as_store.update_intent(&account(), id, first.fencing_token, Step::Claimed(true), PATIENCE).await.unwrap();
    expire(&store, "node-1");
    assert_eq!(lease(&store).owner, "node-2");
    let one = Delivering::over(store, Platform::new(), settings());
    one.until_outbox(&[]).await;
    assert_eq!(one.platform.texts(), ["x"]);
}

#[tokio::test]
async fn an_owner_that_was_replaced_sends_nothing_more() {
    let store = MemoryStore::new(&[]);
    register(&store, "node-1");
    register(&store, "node-2");
    let one = Delivering::over(store, Platform::new(), settings());
    expire(&one.store, "node-1");
    enqueue(&one.store, "a", "x");
    timeout(PATIENCE, one.task).await.expect("it notices that it is fenced").unwrap();
    assert_eq!(one.platform.state.lock().calls, 0);
}

fn expire(store: &MemoryStore, name: &str) {
    let row = store.instances().unwrap().into_iter().find(|row| row.instance_id == name).unwrap();
    let (epoch, renewal) = (row.epoch, row.renewal);
    let command = ExpireInstance { instance_id: name.into(), epoch, renewal, term: 1, max_attempts: 3 };
    assert!(matches!(store.apply(Command::ExpireInstance(command)).value, Outcome::Done(_)));
}

fn context(store: &MemoryStore, me: &str) -> Context {
    let config = Config::default();
    Context {
        me: instance(me),
        store: Arc::new(store.clone()),
        commander: Commander {
            me: instance(me),
            models: Models::from_config(&config.models).unwrap(),
            agents: config.agents.clone(),
            timeout: PATIENCE,
        },
        session: config.session.clone(),
        max_queued: 2,
        metrics: metrics(),
    }
}

fn metrics() -> Metrics {
    Metrics::new().unwrap()
}

/// An intake of everybody's messages on `node-1`.
fn intake() -> (MemoryStore, Intake) {
    let store = MemoryStore::new(&[]);
    register(&store, "node-1");
    let settings = Account { dm_policy: DmPolicy::Open, ..settings() };
    let tenure = Tenure::endless(lease(&store).fencing_token);
    let intake = Intake::new(context(&store, "node-1"), account(), settings, Some(tenure));
    (store, intake)
}

async fn say(intake: &Intake, text: &str) {
    intake.take(vec![direct("42", text)]).await.unwrap();
}

/// The running turn, if any.
async fn turn(store: &MemoryStore) -> Option<Turn> {
    let as_store: &dyn ChannelStore = store;
    let me = instance("node-1");
    let read = as_store.as_sessions().turns_of(&me, Consistency::Stale, PATIENCE);
    read.await.unwrap().value.into_iter().find(|turn| !turn.runner.is_empty() && turn.started_ms > 0)
}

fn texts(store: &MemoryStore) -> Vec<String> {
    outbox(store).into_iter().map(|(_, text)| text).collect()
}

#[tokio::test]
async fn a_message_becomes_one_turn_however_often_it_is_delivered() {
    let (store, intake) = intake();
    for _ in 0..3 {
        say(&intake, "hello").await;
    }
    let turn = turn(&store).await.unwrap();
    assert_eq!((&*turn.session_key, turn.user_seq), ("agent:main:main", 1));
    assert_eq!(turn.reply_to.unwrap().chat, "42");
    store.apply(Command::Complete(Complete {
        turn_id: turn.id,
        fencing_token: turn.fencing_token,
        text: "hi".into(),
        ..Complete::default()
    }));
    let [intent] = &store.outbox(&account(), 0, 9).unwrap()[..] else { panic!() };
    assert_eq!((&*intent.session_key, intent.seq), ("agent:main:main", 2));
    say(&intake, "hello").await;
    assert_eq!(store.outbox(&account(), 0, 9).unwrap().len(), 1, "a redelivery after the answer changes nothing");
}

#[tokio::test]
async fn a_store_that_does_not_answer_has_the_platform_deliver_again() {
    let (store, intake) = intake();
    store.inject([Fault::NoQuorum]);
    let refused = intake.take(vec![direct("42", "hello")]).await;
    assert!(matches!(refused, Err(InboxError::Unavailable(_))), "{refused:?}");
    // It was committed, but the answer was lost: the redelivery finds it.
    store.inject([Fault::LostAnswer]);
    assert!(intake.take(vec![direct("42", "hello")]).await.is_err());
    say(&intake, "hello").await;
    assert_eq!(turn(&store).await.unwrap().user_seq, 1);
}

#[tokio::test]
async fn strangers_get_a_code_and_are_heard_once_it_is_approved() {
    let store = MemoryStore::new(&[]);
    register(&store, "node-1");
    let intake = Intake::new(context(&store, "node-1"), account(), settings(), None);
    say(&intake, "hello").await;
    say(&intake, "hello?").await;
    let [text] = &texts(&store)[..] else { panic!("{:?}", texts(&store)) };
    assert!(text.contains("Your id is 42") && text.contains("openclaw pairing approve telegram "), "{text}");
    assert!(turn(&store).await.is_none());
    let code = store.pairings(None).unwrap()[0].code.clone();
    assert!(text.contains(&code) && code.len() == 8);
    let approve = openclaw_proto::state::ApprovePairing { channel: "telegram".into(), code };
    assert!(matches!(store.apply(Command::ApprovePairing(approve)).value, Outcome::Paired(_)));
    say(&intake, "hello!").await;
    assert!(turn(&store).await.is_some());
}

#[tokio::test]
async fn commands_are_answered_once_and_do_what_they_say() {
    let (store, intake) = intake();
    say(&intake, "/stop").await;
    assert_eq!(texts(&store).pop().unwrap(), "Nothing is being answered.");
    say(&intake, "hello").await;
    let running = turn(&store).await.unwrap();
    let stop = InboundMessage { external_id: "second stop".into(), ..direct("42", "/stop") };
    intake.take(vec![stop.clone()]).await.unwrap();
    intake.take(vec![stop]).await.unwrap();
    assert_eq!(texts(&store).iter().filter(|text| *text == "Stopped.").count(), 1);
    assert!(turn(&store).await.is_none_or(|turn| turn.id != running.id));

    say(&intake, "/model nowhere/x").await;
    assert_eq!(texts(&store).pop().unwrap(), "There is no provider nowhere.");
    say(&intake, "/model echo/echo").await;
    assert_eq!(texts(&store).pop().unwrap(), "The model is echo/echo from now on.");
    let long = direct("42", &format!("/model echo/{}", "x".repeat(300)));
    intake.take(vec![InboundMessage { external_id: "long name".into(), ..long }]).await.unwrap();
    let refused = texts(&store).pop().unwrap();
    assert!(refused.starts_with("That is no model: "), "{refused}");
    say(&intake, "/status").await;
    let status = texts(&store).pop().unwrap();
    assert!(status.contains("Model: echo/echo") && status.contains("Conversation: agent:main:main"), "{status}");
    say(&intake, "/new and something to begin with").await;
    assert_eq!(turn(&store).await.unwrap().model, "echo/echo");
    say(&intake, "/help").await;
    assert!(texts(&store).pop().unwrap().contains("/reset"));
}

#[tokio::test]
async fn what_failed_is_tried_once_more_when_somebody_says_so() {
    let (store, intake) = intake();
    say(&intake, "/retry").await;
    assert_eq!(texts(&store).pop().unwrap(), "There is nothing to retry.");
    say(&intake, "hello").await;
    let first = turn(&store).await.unwrap();
    let retry = |id: &str| InboundMessage { external_id: id.into(), ..direct("42", "/retry") };
    intake.take(vec![retry("too early")]).await.unwrap();
    assert_eq!(texts(&store).pop().unwrap(), "It is being answered.");
    store.apply(Command::Fail(Fail {
        turn_id: first.id.clone(),
        fencing_token: first.fencing_token,
        error_code: "model_failed".into(),
        error_message: "no".into(),
    }));
    assert!(texts(&store).pop().unwrap().contains("/retry"));
    let said = texts(&store).len();
    for _ in 0..2 {
        intake.take(vec![retry("now")]).await.unwrap();
    }
    let second = turn(&store).await.unwrap();
    assert_ne!(second.id, first.id);
    let key = SessionKey::parse(second.session_key.as_str()).unwrap();
    let read = store.entries(&key, SeqNum(0), 9, Consistency::Stale, PATIENCE).await.unwrap();
    let entries: Vec<_> = read.value.iter().map(|entry| &*entry.text).collect();
    assert_eq!(entries, ["hello", "hello"]);
    assert_eq!(texts(&store).len(), said, "a redelivery finds it running, and does not say so");
}

#[tokio::test]
async fn a_message_that_no_conversation_can_have_does_not_hold_up_the_next() {
    let store = MemoryStore::new(&[]);
    register(&store, "node-1");
    let settings = Account { group_policy: GroupPolicy::Open, ..settings() };
    let intake = Intake::new(context(&store, "node-1"), account(), settings, None);
    let odd = group("42", "hello", true);
    let place = Place::Group { id: "a b".into(), topic: None };
    intake.take(vec![InboundMessage { place, ..odd }]).await.unwrap();
    assert!(texts(&store).pop().unwrap().starts_with("This cannot be answered: "));
}

#[tokio::test]
async fn a_full_conversation_says_so() {
    let (store, intake) = intake();
    for text in ["one", "two", "three", "four"] {
        say(&intake, text).await;
    }
    assert!(texts(&store).pop().unwrap().contains("2 messages wait"));
}

#[tokio::test]
async fn a_cursor_belongs_to_the_owner() {
    let (store, intake) = intake();
    assert_eq!(intake.cursor().await.unwrap(), None);
    intake.save_cursor("7".into()).await.unwrap();
    assert_eq!(intake.cursor().await.unwrap().as_deref(), Some("7"));
    register(&store, "node-2");
    expire(&store, "node-1");
    assert_eq!(intake.save_cursor("8".into()).await, Err(InboxError::Fenced));
    assert_eq!(intake.cursor().await.unwrap().as_deref(), Some("7"));
}

/// One instance with a supervisor.
struct Node {
    validity: Validity,
    session: Session,
    health: Health,
    stop: CancellationToken,
    task: JoinHandle<()>,
    epoch: u64,
}

impl Node {
    fn start(store: &MemoryStore, name: &str, platform: &Arc<Platform>) -> Self {
        let epoch = register(store, name);
        let validity = Validity::start(Duration::from_secs(60), Duration::from_millis(10)).unwrap();
        validity.confirmed(epoch, validity::now());
        let (session, health, stop) = (Session::for_tests(epoch), Health::new(metrics()), CancellationToken::new());
        let supervisor = Supervisor {
            context: context(store, name),
            follow: follow(store, name, Hub::new(live::Limits::default())),
            validity: validity.clone(),
            session: session.clone(),
            health: health.clone(),
            accounts: vec![Configured { channel: platform.clone(), settings: settings(), pace: FAST }],
        };
        let task = tokio::spawn(supervisor.run(stop.clone()));
        Self { validity, session, health, stop, task, epoch }
    }

    /// What this instance knows of the account.
    fn status(&self) -> health::Status {
        self.health.all().pop().map(|(_, status)| status).unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_runs_where_its_lease_is_and_moves_without_an_overlap() {
    let (store, platform) = (MemoryStore::new(&[]), Platform::new());
    let one = Node::start(&store, "node-1", &platform);
    let two = Node::start(&store, "node-2", &platform);
    platform.until("the first owner", |state| state.tokens.len() == 1).await;
    assert!(one.status().connected);
    assert!(!two.status().runs);

    store.apply(Command::MoveLease(MoveLease { account: account().into(), to: "node-2".into() }));
    platform.until("the second owner", |state| state.tokens.len() == 2 && state.receivers == 1).await;
    assert_eq!((&*lease(&store).owner, &*lease(&store).previous_owner), ("node-2", "node-1"));

    // A drain gives it back; the end of the process too.
    two.session.set_draining(true);
    set_draining(&store, "node-2", two.epoch);
    platform.until("the first again", |state| state.tokens.len() == 3 && state.receivers == 1).await;
    assert_eq!(lease(&store).owner, "node-1");
    one.stop.cancel();
    timeout(PATIENCE, one.task).await.unwrap().unwrap();
    let state = platform.state.lock();
    assert_eq!(state.most_receivers, 1, "two owners at once");
    assert!(state.tokens.is_sorted(), "{:?}", state.tokens);
}

fn set_draining(store: &MemoryStore, name: &str, epoch: u64) {
    let command = openclaw_proto::state::SetDraining { instance_id: name.into(), epoch, draining: true, alone: false };
    assert!(matches!(store.apply(Command::SetDraining(command)).value, Outcome::Done(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_move_lets_a_message_that_is_being_sent_arrive() {
    let (store, platform) = (MemoryStore::new(&[]), Platform::new());
    platform.state.lock().slow = Duration::from_millis(300);
    let one = Node::start(&store, "node-1", &platform);
    platform.until("the owner", |state| state.receivers == 1).await;
    let two = Node::start(&store, "node-2", &platform);
    enqueue(&store, "a", "x");
    platform.until("a call", |state| state.calls == 1).await;
    store.apply(Command::MoveLease(MoveLease { account: account().into(), to: "node-2".into() }));
    enqueue(&store, "a", "y");
    platform.until("the next owner sends what is left", |state| state.calls == 2 && state.tokens.len() == 2).await;
    let began = std::time::Instant::now();
    while !outbox(&store).is_empty() {
        assert!(began.elapsed() < PATIENCE, "{:?}", outbox(&store));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(platform.texts(), ["x", "y"]);
    drop((one, two));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_cannot_renew_stops_though_nobody_tells_it() {
    let (store, platform) = (MemoryStore::new(&[]), Platform::new());
    let one = Node::start(&store, "node-1", &platform);
    platform.until("the owner", |state| state.receivers == 1).await;
    one.validity.lost();
    platform.until("nobody", |state| state.receivers == 0).await;
    enqueue(&store, "a", "x");
    // The lease is still its own in the state: a renewal that succeeds goes on under the same token.
    assert_eq!(lease(&store).owner, "node-1");
    assert_eq!(platform.state.lock().calls, 0);
    one.validity.confirmed(one.epoch, validity::now());
    platform.until("it goes on", |state| state.receivers == 1 && state.sent.len() == 1).await;
    one.stop.cancel();
    timeout(PATIENCE, one.task).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_let_go_does_not_run_again_because_this_instance_lags() {
    let (store, platform) = (MemoryStore::new(&[]), Platform::new());
    let one = Node::start(&store, "node-1", &platform);
    platform.until("the owner", |state| state.receivers == 1).await;
    register(&store, "node-2");
    // It was stopped for a while: it lets go, renews, and has not yet applied that another was granted the account.
    store.set_lagging(true);
    let before = store.index();
    one.validity.lost();
    let began = std::time::Instant::now();
    let until = async |what: &str, met: &dyn Fn() -> bool| {
        while !met() {
            assert!(began.elapsed() < PATIENCE, "{what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    until("it is let go", &|| store.index() > before).await;
    let applied = store.index();
    one.validity.confirmed(one.epoch, validity::now());
    until("it looks again", &|| store.index() > applied || platform.state.lock().tokens.len() > 1).await;
    assert_eq!(platform.state.lock().tokens.len(), 1, "two owners at once");
    store.set_lagging(false);
    one.stop.cancel();
    timeout(PATIENCE, one.task).await.unwrap().unwrap();
    assert_eq!(platform.state.lock().tokens.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_owner_is_replaced_and_does_not_come_back_under_its_old_token() {
    let (store, platform) = (MemoryStore::new(&[]), Platform::new());
    let one = Node::start(&store, "node-1", &platform);
    platform.until("the owner", |state| state.receivers == 1).await;
    let two = Node::start(&store, "node-2", &platform);
    expire(&store, "node-1");
    platform.until("the next owner", |state| state.tokens.len() == 2 && state.receivers == 1).await;
    assert_eq!(lease(&store).owner, "node-2");
    one.validity.confirmed(one.epoch, validity::now());
    drop(two);
    let state = platform.state.lock();
    assert!(state.tokens[1] > state.tokens[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn receiving_begins_again_after_a_fault_which_status_shows() {
    let (store, platform) = (MemoryStore::new(&[]), Platform::new());
    let failed = ReceiveError::Failed { reason: "no route".into(), retry_after: Some(Duration::from_millis(200)) };
    platform.state.lock().ends.push_back(failed);
    let one = Node::start(&store, "node-1", &platform);
    platform.until("another attempt", |state| state.tokens.len() == 2).await;
    let began = std::time::Instant::now();
    while !one.status().connected {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(one.status().last_error, None);
    one.stop.cancel();
    timeout(PATIENCE, one.task).await.unwrap().unwrap();
}
