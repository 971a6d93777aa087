//! Random logs, with stale tokens, repetitions and unknown ids: what holds after every command.

use std::collections::{BTreeMap, BTreeSet};

use openclaw_proto::state::{ForgetInstance, Sweep, TurnState};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use prost::Message;

use super::super::{Overlay, SnapshotReader, SnapshotRow, SnapshotWriter, Table, Write, keys, state_hash};
use super::*;

/// A command before it is known which tokens and epochs the state will hold.
#[derive(Debug, Clone)]
enum Step {
    Accept { key: u32, body: u32, session: u32, turn: u32, runner: u32, max_queued: u32 },
    Complete { turn: u32, token: Number },
    Fail { turn: u32, token: Number },
    Cancel { turn: u32 },
    Append { key: u32, body: u32, session: u32, expected: Option<Number> },
    Reset { key: u32, session: u32 },
    Delete { key: u32, session: u32 },
    Register { instance: u32, boot: u32, previous: u32 },
    Renew { instance: u32, epoch: Number, renewal: Number },
    Expire { instance: u32, epoch: Number, renewal: Number, term: u64, max_attempts: u32 },
    Drain { instance: u32, epoch: Number, draining: bool },
    Forget { instance: u32 },
    Sweep { max_rows: u32 },
}

/// A number that should match the state, mostly.
#[derive(Debug, Clone, Copy)]
enum Number {
    Current,
    Next,
    Older,
    Any(u64),
}

impl Number {
    fn given(self, current: u64) -> u64 {
        match self {
            Self::Current => current,
            Self::Next => current + 1,
            Self::Older => current.saturating_sub(1),
            Self::Any(number) => number,
        }
    }
}

fn number() -> impl Strategy<Value = Number> {
    prop_oneof![
        8 => Just(Number::Current),
        2 => Just(Number::Next),
        1 => Just(Number::Older),
        1 => any::<u64>().prop_map(Number::Any),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let (key, body, session, turn) = (0u32..12, 0u32..2, 0u32..3, 0u32..12);
    let (instance, boot) = (0u32..4, 0u32..3);
    prop_oneof![
        8 => (key.clone(), body.clone(), session.clone(), turn.clone(), 0u32..5, 0u32..4).prop_map(
            |(key, body, session, turn, runner, max_queued)| Step::Accept {
                key, body, session, turn, runner, max_queued
            }
        ),
        6 => (turn.clone(), number()).prop_map(|(turn, token)| Step::Complete { turn, token }),
        2 => (turn.clone(), number()).prop_map(|(turn, token)| Step::Fail { turn, token }),
        2 => turn.prop_map(|turn| Step::Cancel { turn }),
        3 => (key.clone(), body, session.clone(), proptest::option::of(number())).prop_map(
            |(key, body, session, expected)| Step::Append { key, body, session, expected }
        ),
        1 => (key.clone(), session.clone()).prop_map(|(key, session)| Step::Reset { key, session }),
        1 => (key, session).prop_map(|(key, session)| Step::Delete { key, session }),
        5 => (instance.clone(), boot.clone(), boot).prop_map(
            |(instance, boot, previous)| Step::Register { instance, boot, previous }
        ),
        2 => (instance.clone(), number(), number()).prop_map(
            |(instance, epoch, renewal)| Step::Renew { instance, epoch, renewal }
        ),
        4 => (instance.clone(), number(), number(), 1u64..4, 0u32..4).prop_map(
            |(instance, epoch, renewal, term, max_attempts)| Step::Expire {
                instance, epoch, renewal, term: term.min(2), max_attempts
            }
        ),
        2 => (instance.clone(), number(), any::<bool>()).prop_map(
            |(instance, epoch, draining)| Step::Drain { instance, epoch, draining }
        ),
        1 => instance.prop_map(|instance| Step::Forget { instance }),
        2 => (0u32..6).prop_map(|max_rows| Step::Sweep { max_rows }),
    ]
}

fn session_key(session: u32) -> String {
    format!("agent:main:{session}")
}

fn instance_name(instance: u32) -> String {
    format!("n{instance}")
}

/// The command that a step means in this state.
fn kind(tables: &MemoryTables, step: &Step) -> Kind {
    let state = State::read(tables);
    let token_of = |turn: u32| state.turns.get(&turn_id(turn)).map_or(0, |turn| turn.fencing_token);
    let instance_of = |instance: u32| state.instances.get(&instance_name(instance)).cloned().unwrap_or_default();
    let boot_id = |boot: u32| format!("boot-{boot}");
    match step.clone() {
        Step::Accept { key, body, session, turn, runner, max_queued } => Kind::Accept(Accept {
            inbox: inbox(&key.to_string(), &body.to_string()),
            session_key: session_key(session),
            max_queued,
            ..accept_command(turn, &instance_name(runner))
        }),
        Step::Complete { turn, token } => complete(turn, token.given(token_of(turn))),
        Step::Fail { turn, token } => fail(turn, token.given(token_of(turn))),
        Step::Cancel { turn } => cancel(turn),
        Step::Append { key, body, session, expected } => {
            let session_key = session_key(session);
            let head = state.sessions.get(&session_key).map_or(0, |session| session.head_seq);
            Kind::AppendEntry(AppendEntry {
                inbox: inbox(&key.to_string(), &body.to_string()),
                expected_head: expected.map(|expected| expected.given(head)),
                session_key,
                ..append_command("", "note")
            })
        }
        Step::Reset { key, session } => {
            Kind::ResetSession(ResetSession { inbox: inbox(&key.to_string(), ""), session_key: session_key(session) })
        }
        Step::Delete { key, session } => {
            Kind::DeleteSession(DeleteSession { inbox: inbox(&key.to_string(), ""), session_key: session_key(session) })
        }
        Step::Register { instance, boot, previous } => {
            register(&instance_name(instance), &boot_id(boot), &boot_id(previous))
        }
        Step::Renew { instance, epoch, renewal } => {
            let row = instance_of(instance);
            // A renewal that repeats the number is stale, so that the useful one is the next.
            renew(&instance_name(instance), epoch.given(row.epoch), renewal.given(row.renewal + 1))
        }
        Step::Expire { instance, epoch, renewal, term, max_attempts } => {
            let row = instance_of(instance);
            let (epoch, renewal) = (epoch.given(row.epoch), renewal.given(row.renewal));
            expire(&instance_name(instance), epoch, renewal, term, max_attempts)
        }
        Step::Drain { instance, epoch, draining } => {
            drain(&instance_name(instance), epoch.given(instance_of(instance).epoch), draining)
        }
        Step::Forget { instance } => Kind::ForgetInstance(ForgetInstance { instance_id: instance_name(instance) }),
        Step::Sweep { max_rows } => Kind::Sweep(Sweep { max_rows }),
    }
}

/// All rows, decoded.
struct State {
    clock_ms: u64,
    sessions: BTreeMap<String, Session>,
    entries: BTreeMap<(String, u64), Entry>,
    turns: BTreeMap<String, Turn>,
    index: BTreeSet<(String, String)>,
    instances: BTreeMap<String, Instance>,
}

fn decoded<M: Message + Default>(tables: &MemoryTables, table: Table) -> BTreeMap<String, M> {
    let rows = rows(tables, table).into_iter();
    rows.map(|(key, value)| (String::from_utf8(key).unwrap(), M::decode(&*value).unwrap())).collect()
}

impl State {
    fn read(tables: &MemoryTables) -> Self {
        let entries = rows(tables, Table::Entries).into_iter().map(|(key, value)| {
            let (session, seq) = keys::parse_entry(&key).unwrap();
            ((session.to_owned(), seq), Entry::decode(&*value).unwrap())
        });
        let index = rows(tables, Table::TurnsByRunner).into_iter().map(|(key, _)| {
            let (runner, turn) = keys::parse_turn_by_runner(&key).unwrap();
            (runner.to_owned(), turn.to_owned())
        });
        Self {
            clock_ms: read::clock(tables).unwrap(),
            sessions: decoded(tables, Table::Sessions),
            entries: entries.collect(),
            turns: decoded(tables, Table::Turns),
            index: index.collect(),
            instances: decoded(tables, Table::Instances),
        }
    }

    fn live(&self, instance: &str) -> bool {
        self.instances.get(instance).is_some_and(|row| row.live)
    }

    /// What holds in every state.
    fn check(&self) {
        for (key, session) in &self.sessions {
            assert_eq!(key, &session.key);
            assert!(session.reset_seq <= session.head_seq);
            let entries: Vec<_> = self.entries.iter().filter(|((session, _), _)| session == key).collect();
            let seqs: Vec<_> = entries.iter().map(|((_, seq), _)| *seq).collect();
            assert_eq!(seqs, (1..=session.head_seq).collect::<Vec<_>>(), "entries of {key} are contiguous");
            assert!(entries.iter().all(|((_, seq), entry)| entry.seq == *seq && entry.id == format!("{seq:08x}")));
            let spent = entries
                .iter()
                .filter_map(|(_, entry)| entry.usage)
                .fold((0, 0), |(input, output), usage| (input + usage.input_tokens, output + usage.output_tokens));
            let usage = session.usage.unwrap_or_default();
            assert_eq!((usage.input_tokens, usage.output_tokens), spent, "usage of {key} adds up");

            let of_state = |state| -> BTreeSet<&str> {
                let turns = self.turns.values().filter(|turn| turn.session_key == *key && turn.state() == state);
                turns.map(|turn| turn.id.as_str()).collect()
            };
            let named: BTreeSet<_> =
                (!session.running_turn.is_empty()).then_some(&*session.running_turn).into_iter().collect();
            assert_eq!(of_state(TurnState::Running), named, "{key} names its running turn, and has no other");
            let queued: BTreeSet<_> = session.queued_turns.iter().map(String::as_str).collect();
            assert_eq!(queued.len(), session.queued_turns.len());
            assert_eq!(of_state(TurnState::Queued), queued, "{key} names its queued turns, and has no others");
            assert!(queued.is_empty() || !named.is_empty(), "nothing waits behind nothing");
        }
        assert!(self.entries.keys().all(|(session, _)| self.sessions.contains_key(session)));

        let somebody_lives = self.instances.values().any(|row| row.live);
        let mut index = BTreeSet::new();
        for (id, turn) in &self.turns {
            match turn.state() {
                TurnState::Queued => assert_eq!((turn.attempt, turn.fencing_token, turn.started_ms), (0, 0, 0)),
                TurnState::Running => {
                    assert!(turn.attempt >= 1 && turn.fencing_token >= 1);
                    assert!(!somebody_lives || self.live(&turn.runner), "{id} waits for {}, who is gone", turn.runner);
                }
                TurnState::Done => assert!(turn.reply_seq > turn.user_seq),
                TurnState::Failed => assert!(!turn.error_code.is_empty()),
                TurnState::Cancelled => assert_eq!(turn.reply_seq, 0),
                TurnState::Unspecified => panic!("{turn:?}"),
            }
            if matches!(turn.state(), TurnState::Queued | TurnState::Running) {
                assert!(self.sessions.contains_key(&turn.session_key));
                index.insert((turn.runner.clone(), id.clone()));
            }
        }
        assert_eq!(self.index, index, "the index mirrors the turns that have not ended");
    }

    /// What holds from one state to the next.
    fn check_after(&self, before: &Self, index: u64, events: &[Event]) {
        assert!(self.clock_ms >= before.clock_ms);
        for (id, turn) in &self.turns {
            let Some(earlier) = before.turns.get(id) else { continue };
            assert!(turn.fencing_token >= earlier.fencing_token, "the token of {id} only grows");
            assert!(turn.attempt >= earlier.attempt);
            if turn.attempt > earlier.attempt {
                assert_eq!(turn.fencing_token, index);
                assert!(events.contains(&Event::TurnRunnable(turn.clone())));
            } else {
                assert_eq!(turn.fencing_token, earlier.fencing_token);
                assert_eq!(turn.runner, earlier.runner);
            }
            let was_over = !matches!(earlier.state(), TurnState::Queued | TurnState::Running);
            if was_over {
                assert_eq!(turn, earlier, "an ended turn does not change");
            } else if !matches!(turn.state(), TurnState::Queued | TurnState::Running) {
                assert!(events.contains(&Event::TurnEnded(turn.clone())));
            }
        }
        for (id, row) in &self.instances {
            let Some(earlier) = before.instances.get(id) else { continue };
            assert!((row.epoch, row.renewal) >= (earlier.epoch, earlier.renewal));
            assert!(row.epoch > earlier.epoch || !row.live || earlier.live, "{id} came back within its epoch");
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<(Step, u64)>> {
    proptest::collection::vec((step(), 0u64..40_000_000), 1..90)
}

/// Runs the steps one by one, with every check after each.
fn run(steps: &[(Step, u64)], mut met: impl FnMut(&Outcome)) -> (MemoryTables, Vec<(LogPosition, Command)>) {
    let mut tables = MemoryTables::default();
    let mut log = Vec::new();
    let mut before = State::read(&tables);
    for (at, (step, now_ms)) in steps.iter().enumerate() {
        // Time jumps back and forth by hours, and on the whole goes on by one per command.
        let now_ms = START_MS + now_ms + at as u64 * 3_600_000;
        let position = LogPosition { index: at as u64 + 1, term: 1 };
        let command = Command { now_ms, kind: Some(kind(&tables, step)) };
        let decision = decide(&tables, position, &command).unwrap();
        let outcome = decision.outcome.kind.unwrap();
        if matches!(outcome, Outcome::Refused(_)) {
            assert_eq!(decision.writes, []);
        }
        met(&outcome);
        tables.apply(decision.writes);
        let state = State::read(&tables);
        state.check();
        state.check_after(&before, position.index, &decision.events);
        before = state;
        log.push((position, command));
    }
    (tables, log)
}

/// Random logs that never met a rule would prove nothing about it.
#[test]
fn the_random_logs_meet_every_outcome() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut met = BTreeMap::new();
    for _ in 0..60 {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        run(&steps, |outcome| *met.entry(crate::command::outcome_name(outcome)).or_insert(0) += 1);
    }
    assert_eq!(met.len(), 17, "{met:?}");
    assert!(met.values().all(|times| *times >= 5), "{met:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_log_keeps_the_invariants_and_leads_to_one_state(
        steps in steps(),
        batches in proptest::collection::vec(1usize..12, 1..12),
    ) {
        let (tables, log) = run(&steps, |_| {});
        let hash = state_hash(&tables).unwrap();

        let mut replayed = MemoryTables::default();
        for (position, command) in &log {
            let decision = decide(&replayed, *position, command).unwrap();
            replayed.apply(decision.writes);
        }
        prop_assert_eq!(state_hash(&replayed).unwrap(), hash);

        let mut batched = MemoryTables::default();
        let mut rest = log.as_slice();
        for size in batches.iter().cycle() {
            let (batch, after) = rest.split_at((*size).min(rest.len()));
            let mut overlay = Overlay::new(&batched);
            for (position, command) in batch {
                let decision = decide(&overlay, *position, command).unwrap();
                overlay.apply(decision.writes);
            }
            let writes = overlay.into_writes();
            batched.apply(writes);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(&batched, &tables);

        let mut writer = SnapshotWriter::new(Vec::new(), b"").unwrap();
        writer.rows_of(&tables).unwrap();
        let (bytes, _) = writer.finish().unwrap();
        let mut reader = SnapshotReader::new(&*bytes).unwrap();
        let mut restored = MemoryTables::default();
        while let Some(SnapshotRow { table, key, value }) = reader.next_row().unwrap() {
            restored.apply([Write { table, key, value: Some(value) }]);
        }
        prop_assert_eq!(state_hash(&restored).unwrap(), hash);
    }

    /// Whatever stands in the log, every instance goes on.
    #[test]
    fn no_bytes_make_it_fail(bytes in proptest::collection::vec(any::<u8>(), 0..80), kind in 10u32..31) {
        let mut encoded = Vec::new();
        prost::encoding::encode_key(kind, prost::encoding::WireType::LengthDelimited, &mut encoded);
        prost::encoding::encode_varint(bytes.len() as u64, &mut encoded);
        encoded.extend_from_slice(&bytes);
        if let Ok(command) = crate::command::decode(&encoded) {
            let machine = Machine::with(&["n1"]);
            let at = LogPosition { index: 2, term: 1 };
            prop_assert!(decide(&machine.tables, at, &command).is_ok());
        }
    }
}
