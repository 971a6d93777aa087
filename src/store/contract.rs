//! What every adapter promises, as tests that run against any of them.
//!
//! An adapter's tests call [`run`] with a function that makes an empty store in which the instance `node-1` is live.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use openclaw_proto::ids::{InstanceId, SeqNum, SessionKey, TurnId};
use openclaw_proto::state::{
    Accept, AppendEntry, Complete, DeleteSession, Fail, InboxKey, ResetSession, Role, Turn, TurnState, UpdateSession,
    Usage,
};

use super::{AcceptError, Accepted, Committed, Consistency, EndTurnError, Event, ReadError, SessionStore, WriteError};

const SOON: Duration = Duration::from_secs(10);
const RUNNER: &str = "node-1";

type Store = Arc<dyn SessionStore>;

/// Runs the whole contract, each part on a store of its own.
pub(crate) async fn run(make: impl AsyncFn() -> Store) {
    accepted_messages_are_in_the_transcript(make().await).await;
    a_repeated_message_finds_the_first_turn(make().await).await;
    an_idempotency_key_names_one_request(make().await).await;
    a_session_runs_one_turn_at_a_time_in_commit_order(make().await).await;
    a_full_queue_refuses(make().await).await;
    only_the_present_token_ends_a_turn(make().await).await;
    ending_twice_is_one_end(make().await).await;
    a_cancelled_turn_stays_cancelled(make().await).await;
    a_failed_turn_says_why_and_frees_its_session(make().await).await;
    appends_compare_the_head(make().await).await;
    updates_compare_the_revision(make().await).await;
    resets_and_deletions(make().await).await;
    pages_are_in_order_and_bounded(make().await).await;
    reads_reflect_the_index_they_ask_for(make().await).await;
    what_breaks_a_limit_is_refused(make().await).await;
}

fn key(text: &str) -> SessionKey {
    SessionKey::parse(text).unwrap()
}

fn inbox(external_id: &str, body: u8) -> Option<InboxKey> {
    Some(InboxKey { account: "http".into(), external_id: external_id.into(), body_hash: vec![body; 32].into() })
}

fn message(session: &str, external_id: &str) -> Accept {
    Accept {
        inbox: inbox(external_id, 1),
        session_key: session.into(),
        turn_id: TurnId::random().into(),
        text: format!("text of {external_id}"),
        agent_id: "main".into(),
        model: String::new(),
        runner: RUNNER.into(),
        max_queued: 10,
        ..Accept::default()
    }
}

async fn accept(store: &Store, session: &str, external_id: &str) -> Turn {
    match store.accept(message(session, external_id), SOON).await.unwrap().value {
        Accepted::New(turn) => *turn,
        Accepted::Duplicate { .. } => panic!("{external_id} is a duplicate"),
    }
}

fn reply(turn: &Turn, text: &str) -> Complete {
    Complete {
        turn_id: turn.id.clone(),
        fencing_token: turn.fencing_token,
        text: text.into(),
        model: "echo/echo".into(),
        usage: Some(Usage { input_tokens: 3, output_tokens: 5 }),
    }
}

async fn turn(store: &Store, id: &str) -> Turn {
    store.turn(&TurnId::parse(id).unwrap(), Consistency::Linearizable, SOON).await.unwrap().value.unwrap()
}

async fn texts(store: &Store, session: &str) -> Vec<String> {
    let entries = store.entries(&key(session), SeqNum(0), 100, Consistency::Linearizable, SOON).await.unwrap().value;
    assert!(entries.iter().zip(1..).all(|(entry, seq)| entry.seq == seq), "{entries:?}");
    entries.into_iter().map(|entry| entry.text).collect()
}

async fn accepted_messages_are_in_the_transcript(store: Store) {
    let mut events = store.events();
    let running = accept(&store, "s", "m1").await;
    assert_eq!((running.state(), running.attempt, running.runner.as_str()), (TurnState::Running, 1, RUNNER));
    assert_eq!(events.next().await, Some(Event::TurnRunnable(running.clone())));
    assert_eq!(texts(&store, "s").await, ["text of m1"]);

    let done = store.complete(reply(&running, "the reply"), SOON).await.unwrap();
    assert_eq!(done.value.state(), TurnState::Done);
    assert_eq!(events.next().await, Some(Event::TurnEnded(done.value.clone())));
    assert_eq!(turn(&store, &running.id).await, done.value);
    assert_eq!(texts(&store, "s").await, ["text of m1", "the reply"]);
    let session = store.session(&key("s"), Consistency::AtLeast(done.index), SOON).await.unwrap().value.unwrap();
    assert_eq!((session.head_seq, session.running_turn.as_str(), session.turn_count), (2, "", 1));
    assert_eq!(session.usage, Some(Usage { input_tokens: 3, output_tokens: 5 }));
    let runner = InstanceId::parse(RUNNER).unwrap();
    assert_eq!(store.turns_of(&runner, Consistency::Linearizable, SOON).await.unwrap().value, []);
}

async fn a_repeated_message_finds_the_first_turn(store: Store) {
    let first = accept(&store, "s", "m1").await;
    for _ in 0..2 {
        let again = store.accept(message("s", "m1"), SOON).await.unwrap().value;
        assert_eq!(again, Accepted::Duplicate { turn_id: first.id.clone(), session_key: "s".into() });
    }
    store.complete(reply(&first, "r"), SOON).await.unwrap();
    let again = store.accept(message("s", "m1"), SOON).await.unwrap().value;
    assert_eq!(again, Accepted::Duplicate { turn_id: first.id, session_key: "s".into() });
    assert_eq!(texts(&store, "s").await, ["text of m1", "r"]);
}

async fn an_idempotency_key_names_one_request(store: Store) {
    accept(&store, "s", "m1").await;
    let other = Accept { inbox: inbox("m1", 2), ..message("s", "m1") };
    assert!(matches!(store.accept(other, SOON).await, Err(AcceptError::KeyReused)));
    let append = AppendEntry { inbox: inbox("m1", 1), session_key: "s".into(), role: 1, ..AppendEntry::default() };
    assert!(matches!(store.append(append, SOON).await, Err(WriteError::KeyReused)));
    assert_eq!(texts(&store, "s").await, ["text of m1"]);
}

async fn a_session_runs_one_turn_at_a_time_in_commit_order(store: Store) {
    let mut events = store.events();
    let first = accept(&store, "s", "m1").await;
    let second = accept(&store, "s", "m2").await;
    let third = accept(&store, "s", "m3").await;
    accept(&store, "other", "m4").await;
    assert_eq!((second.state(), third.state()), (TurnState::Queued, TurnState::Queued));
    let runner = InstanceId::parse(RUNNER).unwrap();
    assert_eq!(store.turns_of(&runner, Consistency::Linearizable, SOON).await.unwrap().value.len(), 4);

    let mut running = first;
    for next in [&second, &third] {
        store.complete(reply(&running, "r"), SOON).await.unwrap();
        running = turn(&store, &next.id).await;
        assert_eq!(running.state(), TurnState::Running);
    }
    store.complete(reply(&running, "r"), SOON).await.unwrap();
    let mut order = Vec::new();
    while order.len() < 3 {
        if let Some(Event::TurnRunnable(turn)) = events.next().await
            && turn.session_key == "s"
        {
            order.push(turn.user_seq);
        }
    }
    assert_eq!(order, [1, 2, 3]);
}

async fn a_full_queue_refuses(store: Store) {
    accept(&store, "s", "m0").await;
    let limited = |id: &str| Accept { max_queued: 2, ..message("s", id) };
    store.accept(limited("m1"), SOON).await.unwrap();
    store.accept(limited("m2"), SOON).await.unwrap();
    assert!(matches!(store.accept(limited("m3"), SOON).await, Err(AcceptError::QueueFull { depth: 2 })));
    assert_eq!(texts(&store, "s").await.len(), 3);
}

async fn only_the_present_token_ends_a_turn(store: Store) {
    let running = accept(&store, "s", "m1").await;
    let stale = Complete { fencing_token: running.fencing_token - 1, ..reply(&running, "late") };
    let refused = store.complete(stale, SOON).await;
    assert!(matches!(refused, Err(EndTurnError::Fenced { current, .. }) if current == running.fencing_token));
    assert_eq!(turn(&store, &running.id).await, running);
    let unknown = Complete { turn_id: TurnId::random().into(), ..reply(&running, "r") };
    assert!(matches!(store.complete(unknown, SOON).await, Err(EndTurnError::NotFound)));
}

async fn ending_twice_is_one_end(store: Store) {
    let running = accept(&store, "s", "m1").await;
    let first = store.complete(reply(&running, "r"), SOON).await.unwrap().value;
    assert_eq!(store.complete(reply(&running, "r"), SOON).await.unwrap().value, first);
    let failed = Fail {
        turn_id: running.id.clone(),
        fencing_token: running.fencing_token,
        error_code: "model_failed".into(),
        error_message: String::new(),
    };
    assert!(matches!(store.fail(failed, SOON).await, Err(EndTurnError::Ended(turn)) if *turn == first));
    assert_eq!(texts(&store, "s").await, ["text of m1", "r"]);
}

async fn a_cancelled_turn_stays_cancelled(store: Store) {
    let first = accept(&store, "s", "m1").await;
    let second = accept(&store, "s", "m2").await;
    for cancelled in [&second, &first] {
        let id = TurnId::parse(cancelled.id.as_str()).unwrap();
        let ended = store.cancel(&id, SOON).await.unwrap().value;
        assert_eq!(ended.state(), TurnState::Cancelled);
    }
    assert!(matches!(store.complete(reply(&first, "late"), SOON).await, Err(EndTurnError::Ended(_))));
    assert_eq!(texts(&store, "s").await, ["text of m1", "text of m2"]);
    assert_eq!(accept(&store, "s", "m3").await.state(), TurnState::Running);
    assert!(matches!(store.cancel(&TurnId::random(), SOON).await, Err(EndTurnError::NotFound)));
}

async fn a_failed_turn_says_why_and_frees_its_session(store: Store) {
    let running = accept(&store, "s", "m1").await;
    let queued = accept(&store, "s", "m2").await;
    let failed = Fail {
        turn_id: running.id.clone(),
        fencing_token: running.fencing_token,
        error_code: "model_failed".into(),
        error_message: "echo said no".into(),
    };
    let failed = store.fail(failed, SOON).await.unwrap().value;
    assert_eq!(failed.state(), TurnState::Failed);
    assert_eq!((failed.error_code.as_str(), failed.error_message.as_str()), ("model_failed", "echo said no"));
    assert_eq!(turn(&store, &queued.id).await.state(), TurnState::Running);
}

async fn appends_compare_the_head(store: Store) {
    let append = |id: &str, expected_head| AppendEntry {
        inbox: inbox(id, 1),
        session_key: "s".into(),
        role: Role::User.into(),
        text: id.into(),
        expected_head,
    };
    let first = store.append(append("a", Some(0)), SOON).await.unwrap().value;
    assert_eq!(first.0, SeqNum(1));
    let refused = store.append(append("b", Some(0)), SOON).await;
    assert!(matches!(refused, Err(WriteError::Conflict { expected: 0, actual: 1, .. })));
    assert_eq!(store.append(append("a", Some(0)), SOON).await.unwrap().value, first);
    assert_eq!(store.append(append("c", None), SOON).await.unwrap().value.0, SeqNum(2));
    assert_eq!(texts(&store, "s").await, ["a", "c"]);
}

async fn updates_compare_the_revision(store: Store) {
    let update = |id: &str, expected_revision| UpdateSession {
        inbox: inbox(id, 5),
        session_key: "s".into(),
        label: Some(id.into()),
        model: None,
        expected_revision,
    };
    let first = store.update(update("a", Some(0)), SOON).await.unwrap();
    assert_eq!((first.value.label.as_str(), first.value.revision), ("a", first.index));
    let Err(WriteError::Conflict { index, expected: 0, actual }) = store.update(update("b", Some(0)), SOON).await
    else {
        panic!("the revision is another")
    };
    assert!(index > first.index && actual == first.index);
    let second = store.update(update("c", Some(first.index)), SOON).await.unwrap();
    let again = store.update(update("a", Some(0)), SOON).await.unwrap();
    assert_eq!(again.value, first.value, "a repetition has the first answer");
    let read = store.session(&key("s"), Consistency::AtLeast(second.index), SOON).await.unwrap().value.unwrap();
    assert_eq!(read, second.value);
    let nothing = UpdateSession { label: None, ..update("d", None) };
    assert!(matches!(store.update(nothing, SOON).await, Err(WriteError::Refused { .. })));
}

async fn resets_and_deletions(store: Store) {
    let reset = |id: &str, session: &str| ResetSession { inbox: inbox(id, 3), session_key: session.into() };
    let delete = |id: &str, session: &str| DeleteSession { inbox: inbox(id, 4), session_key: session.into() };
    assert!(matches!(store.reset(reset("r0", "s"), SOON).await, Err(WriteError::NotFound)));
    assert!(matches!(store.delete(delete("d0", "s"), SOON).await, Err(WriteError::NotFound)));

    let running = accept(&store, "s", "m1").await;
    assert_eq!(store.reset(reset("r1", "s"), SOON).await.unwrap().value, SeqNum(1));
    let Committed { value: deleted, .. } = store.delete(delete("d1", "s"), SOON).await.unwrap();
    assert_eq!(deleted, 1);
    assert_eq!(store.delete(delete("d1", "s"), SOON).await.unwrap().value, 1);
    assert_eq!(store.session(&key("s"), Consistency::Linearizable, SOON).await.unwrap().value, None);
    assert!(texts(&store, "s").await.is_empty());
    assert_eq!(turn(&store, &running.id).await.state(), TurnState::Cancelled);
    // The key is free for another conversation, which begins at the beginning.
    assert_eq!(accept(&store, "s", "m2").await.user_seq, 1);
}

async fn pages_are_in_order_and_bounded(store: Store) {
    for n in 0..7 {
        accept(&store, &format!("s{n}"), &format!("m{n}")).await;
    }
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = store.sessions(after.as_ref(), 3, Consistency::Linearizable, SOON).await.unwrap().value;
        assert!(page.len() <= 3);
        let Some(last) = page.last() else { break };
        after = Some(key(&last.key));
        seen.extend(page.into_iter().map(|session| session.key));
    }
    assert_eq!(seen, ["s0", "s1", "s2", "s3", "s4", "s5", "s6"]);
    accept(&store, "s0", "n").await;
    let page = store.entries(&key("s0"), SeqNum(1), 5, Consistency::Linearizable, SOON).await.unwrap().value;
    assert_eq!(page.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [2]);
}

async fn reads_reflect_the_index_they_ask_for(store: Store) {
    let committed = store.accept(message("s", "m1"), SOON).await.unwrap();
    let read = store.session(&key("s"), Consistency::AtLeast(committed.index), SOON).await.unwrap();
    assert!(read.index >= committed.index && read.value.is_some());
    let brief = Duration::from_millis(50);
    let future = store.session(&key("s"), Consistency::AtLeast(committed.index + 1_000_000), brief).await;
    assert!(matches!(future, Err(ReadError::Timeout { .. })), "{future:?}");
    store.session(&key("s"), Consistency::Stale, SOON).await.unwrap();
}

async fn what_breaks_a_limit_is_refused(store: Store) {
    let broken = [
        Accept { text: "x".repeat((1 << 20) + 1), ..message("s", "m1") },
        Accept { session_key: "No Such Key".into(), ..message("s", "m2") },
        Accept { turn_id: "not hex".into(), ..message("s", "m3") },
        Accept { inbox: None, ..message("s", "m4") },
        Accept { runner: String::new(), ..message("s", "m5") },
    ];
    for command in broken {
        assert!(matches!(store.accept(command, SOON).await, Err(AcceptError::Refused { .. })));
    }
    assert_eq!(store.session(&key("s"), Consistency::Linearizable, SOON).await.unwrap().value, None);
}
