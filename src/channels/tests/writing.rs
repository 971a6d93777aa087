//! A reply that people see grow.

use openclaw_proto::state::{Accept, ReplyAddress, ShowPreview, TurnState};

use super::*;
use crate::sessions::live::Publisher;

/// A turn that runs on `node-1`; its reply goes to chat `a`.
fn ask(store: &MemoryStore) -> Turn {
    let outcome = store.apply(Command::Accept(Accept {
        inbox: Some(InboxKey { account: account().into(), external_id: "1".into(), body_hash: vec![0; 32].into() }),
        session_key: "agent:main:main".into(),
        turn_id: TurnId::random().into(),
        text: "question".into(),
        agent_id: "main".into(),
        runner: "node-1".into(),
        max_queued: 1,
        reply_to: Some(ReplyAddress { account: account().into(), chat: "a".into(), ..ReplyAddress::default() }),
        ..Accept::default()
    }));
    let Outcome::Accepted(accepted) = outcome.value else { panic!("{:?}", outcome.value) };
    accepted.turn.unwrap()
}

fn answer(store: &MemoryStore, turn: &Turn, text: &str) {
    let (turn_id, fencing_token) = (turn.id.clone(), turn.fencing_token);
    let outcome =
        store.apply(Command::Complete(Complete { turn_id, fencing_token, text: text.into(), ..Complete::default() }));
    assert!(matches!(outcome.value, Outcome::TurnEnded(_)), "{:?}", outcome.value);
}

fn publisher(one: &Delivering, turn: &Turn) -> Publisher {
    one.hub.begin(&TurnId::parse(turn.id.as_str()).unwrap(), turn.attempt)
}

/// A delivery that shows replies while they grow, and a turn.
fn showing(change: impl FnOnce(&mut Account, &mut State)) -> (Delivering, Turn, Publisher) {
    let one = Delivering::start(|settings, _, platform| {
        settings.streaming = true;
        change(settings, &mut platform.state.lock());
    });
    let turn = ask(&one.store);
    let writer = publisher(&one, &turn);
    (one, turn, writer)
}

async fn until_shown(one: &Delivering, text: &str) {
    one.platform.until(text, |state| state.sent.last().is_some_and(|(_, shown)| shown == text)).await;
}

#[tokio::test(start_paused = true)]
async fn a_reply_grows_in_one_message_and_takes_its_place() {
    let (one, turn, writer) = showing(|_, _| {});
    writer.publish("It grows").unwrap();
    until_shown(&one, "It grows").await;
    writer.publish(" and grows.").unwrap();
    until_shown(&one, "It grows and grows.").await;
    answer(&one.store, &turn, "It has grown.|In two pieces.");
    one.until_outbox(&[]).await;
    assert_eq!(one.platform.texts(), ["It has grown.", "In two pieces."]);
    let counted = |call| one.metrics.channel_calls.with_label_values(&["telegram", call, "done"]).get();
    let edits = one.platform.state.lock().edits as u64;
    assert_eq!((counted("send"), counted("edit")), (2, edits), "the last edit too");
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_is_there_at_once_is_sent_once_and_so_is_one_that_shall_not_be_shown() {
    let (one, turn, writer) = showing(|_, _| {});
    writer.publish("Quick").unwrap();
    answer(&one.store, &turn, "Quick.");
    one.until_outbox(&[]).await;
    let (silent, turn, writer) = showing(|settings, _| settings.streaming = false);
    writer.publish("Slow").unwrap();
    tokio::time::advance(Duration::from_secs(30)).await;
    answer(&silent.store, &turn, "Slow.");
    silent.until_outbox(&[]).await;
    for (one, text) in [(one, "Quick."), (silent, "Slow.")] {
        let state = one.platform.state.lock();
        assert_eq!((&*state.sent[0].1, state.sent.len(), state.edits), (text, 1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn another_attempt_is_shown_in_the_same_message() {
    let (one, turn, writer) = showing(|_, _| {});
    writer.publish("The first attempt").unwrap();
    until_shown(&one, "The first attempt").await;
    // Its runner dies, and comes back.
    expire(&one.store, "node-1");
    register(&one.store, "node-1");
    drop(writer);
    let again = turn_of(&one.store, &turn).await;
    assert_eq!((again.attempt, again.preview.is_empty()), (2, false));
    let next = Delivering::over(one.store.clone(), one.platform.clone(), Account { streaming: true, ..settings() });
    let writer = publisher(&next, &again);
    writer.publish("The second").unwrap();
    until_shown(&next, "The second").await;
    answer(&next.store, &again, "The second one.");
    next.until_outbox(&[]).await;
    assert_eq!(next.platform.texts(), ["The second one."]);
}

async fn turn_of(store: &MemoryStore, turn: &Turn) -> Turn {
    let id = TurnId::parse(turn.id.as_str()).unwrap();
    store.turn(&id, Consistency::Stale, PATIENCE).await.unwrap().value.unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_next_owner_edits_what_the_last_one_showed_though_unknown_sends_are_held() {
    let store = MemoryStore::new(&[]);
    register(&store, "node-1");
    register(&store, "node-2");
    let (turn, platform) = (ask(&store), Platform::new());
    {
        let mut state = platform.state.lock();
        state.sent.push(("a".into(), "It gr".into()));
        state.ids.push("55".into());
    }
    let first = lease(&store).fencing_token;
    store.apply(Command::ShowPreview(ShowPreview {
        account: account().into(),
        fencing_token: first,
        turn_id: turn.id.clone(),
        message_id: "55".into(),
    }));
    answer(&store, &turn, "It grew.");
    // The first owner dies with its edit under way.
    let id = store.outbox(&account(), 0, 1).unwrap()[0].id;
    let as_store: Arc<dyn ChannelStore> = Arc::new(store.clone());
    as_store.update_intent(&account(), id, first, Step::Claimed(true), PATIENCE).await.unwrap();
    expire(&store, "node-1");
    platform.state.lock().edit_script.push_back(Err(SendError::Unknown("no answer".into())));
    let settings = Account { streaming: true, unknown: UnknownPolicy::Hold, ..settings() };
    let one = Delivering::over(store, platform, settings);
    one.until_outbox(&[]).await;
    assert_eq!(one.platform.texts(), ["It grew."]);
    assert_eq!(one.platform.state.lock().edits, 2, "an edit without an answer is repeated");
}

#[tokio::test(start_paused = true)]
async fn a_reply_whose_preview_is_gone_is_sent() {
    let (one, turn, writer) = showing(|_, _| {});
    writer.publish("It grows").unwrap();
    until_shown(&one, "It grows").await;
    {
        let mut state = one.platform.state.lock();
        state.sent.clear();
        state.ids.clear();
    }
    answer(&one.store, &turn, "It grew.");
    one.until_outbox(&[]).await;
    assert_eq!(one.platform.texts(), ["It grew."]);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_ends_before_its_preview_is_recorded_has_one_message_all_the_same() {
    let (one, turn, writer) = showing(|_, state| state.slow = Duration::from_secs(5));
    writer.publish("It grows").unwrap();
    one.platform.until("the preview is being sent", |state| state.calls == 1).await;
    answer(&one.store, &turn, "It grew.");
    one.until_outbox(&[]).await;
    assert_eq!(one.platform.texts(), ["It grew."]);
    assert_eq!(turn_of(&one.store, &turn).await.preview, "", "it was too late for that");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_shown_by_an_owner_that_could_not_record_it() {
    let (one, turn, writer) = showing(|_, _| {});
    one.store.set_stalled(true);
    writer.publish("It grows").unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(one.platform.state.lock().calls, 0, "the next owner would send it once more");
    one.store.set_stalled(false);
    until_shown(&one, "It grows").await;
    answer(&one.store, &turn, "It grew.");
    one.until_outbox(&[]).await;
    assert_eq!(one.platform.texts(), ["It grew."]);
}

#[tokio::test(start_paused = true)]
async fn why_there_is_no_reply_takes_the_place_of_what_was_shown() {
    let (one, turn, writer) = showing(|_, _| {});
    writer.publish("It gr").unwrap();
    until_shown(&one, "It gr").await;
    one.store.apply(Command::Fail(Fail {
        turn_id: turn.id.clone(),
        fencing_token: turn.fencing_token,
        error_code: "model_failed".into(),
        error_message: "the model said no".into(),
    }));
    one.until_outbox(&[]).await;
    let texts = one.platform.texts();
    assert_eq!(texts.len(), 1);
    assert!(texts[0].contains("the model said no"), "{texts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_platform_that_does_not_want_it_is_left_in_peace_until_the_reply_is_there() {
    let (one, turn, writer) = showing(|_, state| {
        state.script.push_back(Err(SendError::Later {
            reason: "slow down".into(),
            after: Duration::from_secs(3),
            asked: true,
        }));
        state.script.push_back(Err(SendError::Refused("no".into())));
    });
    writer.publish("It grows").unwrap();
    one.platform.until("two attempts", |state| state.calls == 2).await;
    writer.publish(" and grows").unwrap();
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(one.platform.state.lock().calls, 2);
    answer(&one.store, &turn, "It grew.");
    one.until_outbox(&[]).await;
    assert_eq!(one.platform.texts(), ["It grew."]);
    assert_eq!(turn_of(&one.store, &turn).await.state(), TurnState::Done);
}

#[tokio::test(start_paused = true)]
async fn a_preview_waits_for_a_free_place_and_is_not_forgotten() {
    let store = MemoryStore::new(&[]);
    register(&store, "node-1");
    let settings = Account { streaming: true, ..settings() };
    let pace = Pace { per_chat: Duration::ZERO, overall: Duration::from_secs(5) };
    let one = Delivering::at(store, Platform::new(), settings, pace);
    let turn = ask(&one.store);
    let writer = publisher(&one, &turn);
    // Takes the place that the preview would have.
    enqueue(&one.store, "b", "something else");
    one.platform.until("the other", |state| state.calls == 1).await;
    writer.publish("It grows").unwrap();
    until_shown(&one, "It grows").await;
}
