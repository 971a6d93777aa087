//! Random logs, with stale tokens, repetitions and unknown ids: what holds after every command.

use std::collections::{BTreeMap, BTreeSet};

use openclaw_proto::state::update_intent::Step as Fate;
use openclaw_proto::state::{
    ApprovePairing, Cursor, Enqueue, ForgetInstance, Intent, IntentState, Lease, MoveLease, Pairing, PlaceLeases,
    ReleaseLease, RemovePairing, ReplyAddress, RequestPairing, SaveCursor, SetModel, ShowPreview, Sweep, TurnState,
    UpdateIntent, UpdateSession,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use prost::Message;

use super::super::{Overlay, SnapshotReader, SnapshotRow, SnapshotWriter, Table, TableError, Write, keys, state_hash};
use super::*;

/// A command before it is known which tokens and epochs the state will hold.
#[derive(Debug, Clone)]
enum Step {
    /// Of account 0 and 1: the reply goes there.
    Accept {
        key: u32,
        body: u32,
        session: u32,
        turn: u32,
        runner: u32,
        max_queued: u32,
        account: u32,
    },
    Complete {
        turn: u32,
        token: Number,
    },
    Fail {
        turn: u32,
        token: Number,
    },
    Cancel {
        turn: u32,
    },
    Append {
        key: u32,
        body: u32,
        session: u32,
        expected: Option<Number>,
    },
    Reset {
        key: u32,
        session: u32,
    },
    Delete {
        key: u32,
        session: u32,
    },
    Register {
        instance: u32,
        boot: u32,
        previous: u32,
    },
    Renew {
        instance: u32,
        epoch: Number,
        renewal: Number,
    },
    Expire {
        instance: u32,
        epoch: Number,
        renewal: Number,
        term: u64,
        max_attempts: u32,
    },
    Drain {
        instance: u32,
        epoch: Number,
        draining: bool,
    },
    Forget {
        instance: u32,
    },
    Sweep {
        max_rows: u32,
    },
    SetModel {
        key: u32,
        session: u32,
    },
    Update {
        key: u32,
        body: u32,
        session: u32,
        expected: Option<Number>,
    },
    Release {
        account: u32,
        token: Number,
    },
    Move {
        account: u32,
        to: u32,
    },
    Place {
        after_ms: u64,
    },
    SaveCursor {
        account: u32,
        token: Number,
    },
    Enqueue {
        key: u32,
        body: u32,
        account: u32,
    },
    /// Of the n-th intent that there is.
    Intent {
        nth: usize,
        token: Number,
        fate: Fate,
    },
    Show {
        turn: u32,
        account: u32,
        token: Number,
    },
    Pair {
        key: u32,
        sender: u32,
        account: u32,
    },
    Approve {
        sender: u32,
    },
    Unpair {
        sender: u32,
        account: u32,
    },
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

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        8 => Just(Fate::Claimed(true)),
        2 => Just(Fate::Sent("1".into())),
        3 => Just(Fate::Delivered("1".into())),
        2 => Just(Fate::Unsent("later".into())),
        3 => Just(Fate::Unknown("no answer".into())),
        2 => Just(Fate::Failed("blocked".into())),
        2 => Just(Fate::Resubmitted(true)),
        1 => Just(Fate::Dropped(true)),
        1 => Just(Fate::Previewed("9".into())),
        1 => Just(Fate::PreviewLost("gone".into())),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![3 => of_conversations(), 2 => of_channels()]
}

fn of_channels() -> impl Strategy<Value = Step> {
    let (key, body, account, sender) = (0u32..12, 0u32..2, 0u32..2, 0u32..2);
    prop_oneof![
        2 => (account.clone(), number()).prop_map(|(account, token)| Step::Release { account, token }),
        2 => (account.clone(), 0u32..5).prop_map(|(account, to)| Step::Move { account, to }),
        2 => (0u64..40_000_000).prop_map(|after_ms| Step::Place { after_ms }),
        2 => (account.clone(), number()).prop_map(|(account, token)| Step::SaveCursor { account, token }),
        5 => (key, body, account.clone()).prop_map(
            |(key, body, account)| Step::Enqueue { key, body, account }
        ),
        16 => (0usize..4, number(), fate()).prop_map(|(nth, token, fate)| Step::Intent { nth, token, fate }),
        2 => (0u32..12, account.clone(), number()).prop_map(|(turn, account, token)| Step::Show { turn, account, token }),
        6 => (100u32..400, sender.clone(), account.clone()).prop_map(
            |(key, sender, account)| Step::Pair { key, sender, account }
        ),
        8 => sender.clone().prop_map(|sender| Step::Approve { sender }),
        1 => (sender, account).prop_map(|(sender, account)| Step::Unpair { sender, account }),
    ]
}

fn of_conversations() -> impl Strategy<Value = Step> {
    let (key, body, session, turn) = (0u32..12, 0u32..2, 0u32..3, 0u32..12);
    let (instance, boot) = (0u32..4, 0u32..3);
    prop_oneof![
        8 => (key.clone(), body.clone(), session.clone(), turn.clone(), 0u32..5, 0u32..4, 0u32..4).prop_map(
            |(key, body, session, turn, runner, max_queued, account)| Step::Accept {
                key, body, session, turn, runner, max_queued, account
            }
        ),
        1 => (key.clone(), session.clone()).prop_map(|(key, session)| Step::SetModel { key, session }),
        6 => (turn.clone(), number()).prop_map(|(turn, token)| Step::Complete { turn, token }),
        2 => (turn.clone(), number()).prop_map(|(turn, token)| Step::Fail { turn, token }),
        2 => turn.prop_map(|turn| Step::Cancel { turn }),
        3 => (key.clone(), body.clone(), session.clone(), proptest::option::of(number())).prop_map(
            |(key, body, session, expected)| Step::Append { key, body, session, expected }
        ),
        3 => (key.clone(), body, session.clone(), proptest::option::of(number())).prop_map(
            |(key, body, session, expected)| Step::Update { key, body, session, expected }
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

fn account_name(account: u32) -> String {
    format!("telegram:{account}")
}

fn address(account: u32) -> ReplyAddress {
    ReplyAddress { account: account_name(account), chat: "7".to_owned(), ..ReplyAddress::default() }
}

/// The command that a step means in this state.
fn kind(tables: &MemoryTables, step: &Step) -> Kind {
    let state = State::read(tables);
    let token_of = |turn: u32| state.turns.get(&turn_id(turn)).map_or(0, |turn| turn.fencing_token);
    let instance_of = |instance: u32| state.instances.get(&instance_name(instance)).cloned().unwrap_or_default();
    let boot_id = |boot: u32| format!("boot-{boot}");
    let lease_of = |account: &str| state.leases.get(account).map_or(0, |lease| lease.fencing_token);
    match step.clone() {
        Step::Accept { key, body, session, turn, runner, max_queued, account } => Kind::Accept(Accept {
            reply_to: (account < 2).then(|| address(account)),
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
            // All but the last have both accounts, the first is preferred for one.
            let accounts = |some: bool, count: u32| if some { (0..count).map(account_name).collect() } else { vec![] };
            Kind::RegisterInstance(RegisterInstance {
                accounts: accounts(instance < 3, 2),
                preferred: accounts(instance == 0, 1),
                ..register_command(&instance_name(instance), &boot_id(boot), &boot_id(previous))
            })
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
        Step::SetModel { key, session } => Kind::SetModel(SetModel {
            inbox: inbox(&key.to_string(), ""),
            session_key: session_key(session),
            model: "echo/other".to_owned(),
        }),
        Step::Update { key, body, session, expected } => {
            let session_key = session_key(session);
            let revision = state.sessions.get(&session_key).map_or(0, |session| session.revision);
            Kind::UpdateSession(UpdateSession {
                inbox: inbox(&key.to_string(), &body.to_string()),
                session_key,
                label: (body == 0).then(|| format!("label {key}")),
                model: (body == 1).then(String::new),
                expected_revision: expected.map(|expected| expected.given(revision)),
            })
        }
        Step::Release { account, token } => {
            let account = account_name(account);
            Kind::ReleaseLease(ReleaseLease { fencing_token: token.given(lease_of(&account)), account })
        }
        Step::Move { account, to } => {
            Kind::MoveLease(MoveLease { account: account_name(account), to: instance_name(to) })
        }
        Step::Place { after_ms } => Kind::PlaceLeases(PlaceLeases { failback_after_ms: after_ms }),
        Step::SaveCursor { account, token } => {
            let account = account_name(account);
            let fencing_token = token.given(lease_of(&account));
            Kind::SaveCursor(SaveCursor { account, fencing_token, data: fencing_token.to_string() })
        }
        Step::Enqueue { key, body, account } => Kind::Enqueue(Enqueue {
            inbox: inbox(&key.to_string(), &body.to_string()),
            to: Some(address(account)),
            text: "note".to_owned(),
        }),
        Step::Intent { nth, token, fate } => {
            let intent = state.outbox.values().nth(nth);
            let (account, id) = intent.map_or((account_name(0), 1), |intent| (intent.account.clone(), intent.id));
            let fencing_token = token.given(lease_of(&account));
            Kind::UpdateIntent(UpdateIntent { account, id, fencing_token, step: Some(fate) })
        }
        Step::Show { turn, account, token } => {
            let account = account_name(account);
            let fencing_token = token.given(lease_of(&account));
            Kind::ShowPreview(ShowPreview {
                account,
                fencing_token,
                turn_id: turn_id(turn),
                message_id: "9".to_owned(),
            })
        }
        Step::Pair { key, sender, account } => Kind::RequestPairing(RequestPairing {
            inbox: inbox(&key.to_string(), ""),
            sender_id: sender.to_string(),
            code: format!("CODE{sender}"),
            to: Some(address(account)),
            text: "Your code: {code}".to_owned(),
            ..RequestPairing::default()
        }),
        Step::Approve { sender } => {
            Kind::ApprovePairing(ApprovePairing { channel: "telegram".to_owned(), code: format!("CODE{sender}") })
        }
        Step::Unpair { sender, account } => {
            Kind::RemovePairing(RemovePairing { account: account_name(account), sender_id: sender.to_string() })
        }
    }
}

/// The account that only its owner may change by this command, and the token that it brings.
fn as_owner(kind: &Kind) -> Option<(&str, u64)> {
    match kind {
        Kind::ReleaseLease(command) => Some((&command.account, command.fencing_token)),
        Kind::SaveCursor(command) => Some((&command.account, command.fencing_token)),
        Kind::ShowPreview(command) => Some((&command.account, command.fencing_token)),
        Kind::UpdateIntent(command) if !matches!(command.step, Some(Fate::Resubmitted(_) | Fate::Dropped(_))) => {
            Some((&command.account, command.fencing_token))
        }
        Kind::Accept(_)
        | Kind::Complete(_)
        | Kind::Fail(_)
        | Kind::Cancel(_)
        | Kind::AppendEntry(_)
        | Kind::ResetSession(_)
        | Kind::DeleteSession(_)
        | Kind::RegisterInstance(_)
        | Kind::RenewInstance(_)
        | Kind::ExpireInstance(_)
        | Kind::SetDraining(_)
        | Kind::ForgetInstance(_)
        | Kind::MoveLease(_)
        | Kind::PlaceLeases(_)
        | Kind::Sweep(_)
        | Kind::SetModel(_)
        | Kind::UpdateSession(_)
        | Kind::Enqueue(_)
        | Kind::UpdateIntent(_)
        | Kind::RequestPairing(_)
        | Kind::ApprovePairing(_)
        | Kind::RemovePairing(_) => None,
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
    leases: BTreeMap<String, Lease>,
    cursors: BTreeMap<String, Cursor>,
    outbox: BTreeMap<(String, u64), Intent>,
    pairings: Vec<Pairing>,
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
        let values = |table| rows(tables, table).into_iter().map(|(_, value)| value);
        let outbox = values(Table::Outbox).map(|value| Intent::decode(&*value).unwrap());
        let pairings = values(Table::Pairings).map(|value| Pairing::decode(&*value).unwrap());
        Self {
            leases: decoded(tables, Table::Leases),
            cursors: decoded(tables, Table::Cursors),
            outbox: outbox.map(|intent| ((intent.account.clone(), intent.id), intent)).collect(),
            pairings: pairings.collect(),
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
        self.check_channels();
    }

    fn check_channels(&self) {
        let able = |row: &Instance, account: &String| row.live && row.accounts.contains(account);
        for (account, lease) in &self.leases {
            assert_eq!(account, &lease.account);
            let owner = self.instances.values().find(|row| row.live && row.instance_id == lease.owner);
            match owner {
                Some(row) => assert!(row.epoch == lease.epoch && able(row, account), "{lease:?} outlived its epoch"),
                None => {
                    assert_eq!((lease.owner.as_str(), lease.epoch), ("", 0), "an owner who is gone");
                    assert!(!self.instances.values().any(|row| able(row, account)), "nobody owns {account}");
                }
            }
            assert!(lease.owner.is_empty() || lease.owner != lease.moving_to);
        }
        for row in self.instances.values().filter(|row| row.live) {
            assert!(row.accounts.iter().all(|account| self.leases.contains_key(account)));
        }
        for (account, cursor) in &self.cursors {
            assert!(cursor.fencing_token <= self.leases[account].fencing_token);
        }
        for intent in self.outbox.values() {
            let token = self.leases.get(&intent.account).map_or(0, |lease| lease.fencing_token);
            assert!(intent.fencing_token <= token, "{intent:?} was claimed under a token that nobody has");
            assert_eq!(usize::try_from(intent.pieces_sent).unwrap(), intent.message_ids.len());
            match intent.state() {
                IntentState::Sending => assert!(intent.attempts >= 1 && intent.fencing_token >= 1),
                IntentState::Unknown => assert!(intent.unknowns >= 1),
                IntentState::Pending | IntentState::Failed => {}
                IntentState::Unspecified => panic!("{intent:?}"),
            }
        }
        let senders: BTreeSet<_> = self.pairings.iter().map(|one| (&one.account, &one.sender_id)).collect();
        assert_eq!(senders.len(), self.pairings.len());
    }

    fn check_channels_after(&self, before: &Self, index: u64, events: &[Event]) {
        for (account, earlier) in &before.leases {
            let lease = &self.leases[account];
            let same = (&lease.owner, lease.epoch) == (&earlier.owner, earlier.epoch);
            if lease.fencing_token == earlier.fencing_token {
                assert!(same || lease.owner.is_empty(), "{account} has another owner under the same token");
            } else {
                assert_eq!(lease.fencing_token, index, "a token is the index of its grant");
                assert!(!lease.owner.is_empty());
            }
            assert!(lease == earlier || events.contains(&Event::LeaseChanged(lease.clone())));
        }
        for (account, earlier) in &before.cursors {
            assert!(self.cursors[account].fencing_token >= earlier.fencing_token);
        }
        for (key, intent) in &self.outbox {
            let Some(earlier) = before.outbox.get(key) else {
                assert_eq!(intent.id >> 16, index, "ids grow with the log");
                assert_eq!((intent.state(), intent.attempts, intent.pieces_sent), (IntentState::Pending, 0, 0));
                continue;
            };
            let claimed = |one: &Intent| (one.state() == IntentState::Sending).then_some(one.fencing_token);
            if let (Some(earlier), Some(now)) = (claimed(earlier), claimed(intent)) {
                assert_eq!(earlier, now, "what another is sending is unknown first");
            }
            assert_eq!(earlier.to, intent.to);
            assert!([0, 1].contains(&(intent.pieces_sent - earlier.pieces_sent)));
            assert!(
                intent.preview == earlier.preview || intent.pieces_sent == 0,
                "what was sent was sent in its place"
            );
            assert!(intent.pieces_sent == earlier.pieces_sent || claimed(earlier).is_some());
        }
        for turn in self.turns.values().filter(|turn| before.turns.get(&turn.id).is_some_and(|old| old != *turn)) {
            let told = self.outbox.values().any(|intent| {
                let of_this = intent.id >> 16 == index
                    && intent.to == turn.reply_to
                    && (&intent.turn_id, &intent.preview) == (&turn.id, &turn.preview);
                of_this
                    && if turn.state() == TurnState::Done {
                        (&intent.session_key, intent.seq) == (&turn.session_key, turn.reply_seq)
                    } else {
                        intent.text.contains(&turn.error_message)
                    }
            });
            let owed = turn.reply_to.is_some() && matches!(turn.state(), TurnState::Done | TurnState::Failed);
            assert!(told || !owed, "{turn:?} ended, and nobody is told");
        }
    }

    /// What holds from one state to the next.
    fn check_after(&self, before: &Self, index: u64, events: &[Event]) {
        assert!(self.clock_ms >= before.clock_ms);
        self.check_channels_after(before, index, events);
        for (key, session) in &self.sessions {
            let earlier = before.sessions.get(key).cloned().unwrap_or_default();
            let set = (&session.label, &session.model) != (&earlier.label, &earlier.model);
            assert!(!set || session.revision == index, "{key} was changed, and its revision is not of the change");
            assert!(session.revision == earlier.revision || session.revision == index, "revisions are log indexes");
        }
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
    proptest::collection::vec((step(), 0u64..40_000_000), 1..120)
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
        let lease = |account: &str| before.leases.get(account).filter(|lease| !lease.owner.is_empty());
        let stranger = command
            .kind
            .as_ref()
            .and_then(as_owner)
            .is_some_and(|(account, token)| lease(account).is_none_or(|lease| lease.fencing_token != token));
        if matches!(outcome, Outcome::Refused(_)) {
            assert_eq!(decision.writes, []);
        }
        // Its time counts all the same.
        let clock_only = decision.writes.iter().all(|write| write.table == Table::Marks);
        assert!(clock_only || !stranger, "{command:?} changed what it does not own");
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
    for _ in 0..80 {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        run(&steps, |outcome| *met.entry(crate::command::outcome_name(outcome)).or_insert(0) += 1);
    }
    assert_eq!(met.len(), 21, "{met:?}");
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

        let mut writer = SnapshotWriter::new(Vec::new(), super::super::STATE_FORMAT_VERSION, b"").unwrap();
        writer.rows_of(&tables).unwrap();
        let (bytes, _) = writer.finish().unwrap();
        let mut reader = SnapshotReader::new(&*bytes).unwrap();
        let mut restored = MemoryTables::default();
        while let Some(SnapshotRow { table, key, value }) = reader.next_row().unwrap() {
            restored.apply([Write { table, key, value: Some(value) }]);
        }
        prop_assert_eq!(state_hash(&restored).unwrap(), hash);
    }

    /// Whatever stands in the log, every instance goes on, but for what a later release knows.
    #[test]
    fn no_bytes_make_it_fail(bytes in proptest::collection::vec(any::<u8>(), 0..80), kind in 10u32..39) {
        let mut encoded = Vec::new();
        prost::encoding::encode_key(kind, prost::encoding::WireType::LengthDelimited, &mut encoded);
        prost::encoding::encode_varint(bytes.len() as u64, &mut encoded);
        encoded.extend_from_slice(&bytes);
        if let Ok(command) = crate::command::decode(&encoded) {
            let machine = Machine::with(&["n1"]);
            let at = LogPosition { index: 2, term: 1 };
            let decision = decide(&machine.tables, at, &command);
            let unknown = matches!(decision, Err(TableError::UnknownCommand { index: 2 }));
            let foreseen = if command.kind.is_none() { unknown } else { decision.is_ok() };
            prop_assert!(foreseen);
        }
    }
}
