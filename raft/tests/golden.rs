//! The bytes that logs, tables and snapshots hold outlive a release. `golden/` keeps what each kind of them looked like
//! when it was first released; today's code must write the same bytes and read the old ones to the same value.
//!
//! A difference is a change of format, and needs a new field number or a new format version, not new files. Files for
//! what is new are written by `OPENCLAW_WRITE_GOLDEN=1 cargo test -p openclaw-raft --test golden -- keep_their_bytes`,
//! which never overwrites one; to change a file deliberately, delete it first.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use openclaw_proto::raft::{BackupHeader, BackupSource, LogId};
use openclaw_proto::state::{
    Accept, Accepted, AppendEntry, Appended, ApprovePairing, Cancel, Command, Complete, Conflict, Cursor,
    DeleteSession, Done, DuplicateTurn, Enqueue, Enqueued, Entry, ExpireInstance, Fail, Fenced, ForgetInstance,
    InboxKey, InboxRecord, Instance, InstanceRegistered, InstanceTaken, Intent, IntentState, KeyReused, Lease,
    ModelSet, MoveLease, NotFound, Outcome, Paired, Pairing, PlaceLeases, QueueFull, Refused, RegisterInstance,
    ReleaseLease, RemovePairing, RenewInstance, ReplyAddress, RequestPairing, ResetSession, Role, SaveCursor, Session,
    SessionDeleted, SessionReset, SessionUpdated, SetDraining, SetModel, ShowPreview, Stale, Sweep, Swept, Turn,
    TurnEnded, TurnState, UpdateIntent, UpdateSession, Usage, command, inbox_record, outcome, update_intent,
};
use openclaw_raft::backup::{self, BACKUP_FORMAT_VERSION, BackupReader};
use openclaw_raft::command::{kind_name, outcome_name};
use openclaw_raft::state_machine::{
    LogPosition, MemoryTables, STATE_FORMAT_VERSION, SnapshotReader, SnapshotRow, SnapshotWriter, Write, decide,
    state_hash,
};
use prost::Message;

const SESSION: &str = "agent:main:main";
const TURN: &str = "0192e0a1b2c37d4e8f90a1b2c3d4e5f6";
const TRACE_PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const NOW_MS: u64 = 1_700_000_000_123;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The stored bytes of `name`, after writing today's where none are stored and that was asked for.
fn stored(name: &str, today: &[u8]) -> Vec<u8> {
    let path = folder().join(name).with_added_extension("hex");
    if !path.exists() && std::env::var_os("OPENCLAW_WRITE_GOLDEN").is_some() {
        fs::write(&path, to_hex(today)).unwrap();
    }
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    from_hex(&text)
}

/// 32 bytes a line.
fn to_hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).chain(["\n".to_owned()]).collect::<String>();
    bytes.chunks(32).map(line).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).unwrap() as u8).collect();
    assert!(digits.len().is_multiple_of(2));
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Today's bytes of `value` are the stored ones, and the stored ones still mean `value`.
fn check<M: Message + Default + PartialEq + Debug>(name: &str, value: &M) {
    let today = value.encode_to_vec();
    let stored = stored(name, &today);
    assert_eq!(to_hex(&today), to_hex(&stored), "{name} is written otherwise than before");
    assert_eq!(M::decode(&*stored).unwrap(), *value, "{name} is read otherwise than before");
}

fn usage() -> Option<Usage> {
    Some(Usage { input_tokens: 300, output_tokens: 5 })
}

fn session() -> Session {
    Session {
        key: SESSION.to_owned(),
        agent_id: "main".to_owned(),
        model: "echo/echo".to_owned(),
        created_ms: NOW_MS,
        updated_ms: NOW_MS + 1,
        head_seq: 400,
        reset_seq: 3,
        usage: usage(),
        turn_count: 7,
        running_turn: TURN.to_owned(),
        queued_turns: vec!["0a".to_owned(), "0b".to_owned()],
        label: String::new(),
        revision: 0,
    }
}

fn labelled_session() -> Session {
    Session { label: "Reise nach Graz".to_owned(), revision: 1000, ..session() }
}

fn entry() -> Entry {
    Entry {
        seq: 400,
        id: "00000190".to_owned(),
        role: Role::Assistant.into(),
        text: "Grüße".to_owned(),
        created_ms: NOW_MS,
        turn_id: TURN.to_owned(),
        model: "echo/echo".to_owned(),
        usage: usage(),
        sender: String::new(),
    }
}

fn turn() -> Turn {
    Turn {
        id: TURN.to_owned(),
        session_key: SESSION.to_owned(),
        state: TurnState::Failed.into(),
        runner: "node-1".to_owned(),
        fencing_token: 1000,
        attempt: 2,
        user_seq: 399,
        reply_seq: 400,
        agent_id: "main".to_owned(),
        model: "echo/echo".to_owned(),
        accepted_ms: NOW_MS,
        started_ms: NOW_MS + 1,
        finished_ms: NOW_MS + 2,
        usage: usage(),
        error_code: "model_failed".to_owned(),
        error_message: "no".to_owned(),
        answered_by: "echo/echo".to_owned(),
        reply_to: reply_to(),
        preview: "56".to_owned(),
        request_id: String::new(),
        trace_parent: String::new(),
    }
}

fn traced_turn() -> Turn {
    Turn { request_id: "r-1".to_owned(), trace_parent: TRACE_PARENT.to_owned(), ..turn() }
}

fn instance() -> Instance {
    Instance {
        instance_id: "node-1".to_owned(),
        boot_id: "b1".to_owned(),
        epoch: 900,
        renewal: 17,
        http_addr: "10.0.0.1:3000".to_owned(),
        peer_addr: "10.0.0.1:3100".to_owned(),
        version: "0.1.0".to_owned(),
        last_seen_ms: NOW_MS,
        draining: true,
        live: true,
        registered_ms: 0,
        accounts: vec![],
        preferred: vec![],
        format: 0,
    }
}

fn inbox() -> Option<InboxKey> {
    let body_hash = (0..32).collect::<Vec<u8>>().into();
    Some(InboxKey { account: "http".to_owned(), external_id: "key-1".to_owned(), body_hash })
}

fn account() -> String {
    "telegram:default".to_owned()
}

fn reply_to() -> Option<ReplyAddress> {
    Some(ReplyAddress {
        account: account(),
        chat: "-100123".to_owned(),
        thread: "42".to_owned(),
        message: "7".to_owned(),
    })
}

fn lease() -> Lease {
    Lease {
        account: account(),
        owner: "node-1".to_owned(),
        epoch: 900,
        fencing_token: 1000,
        granted_ms: NOW_MS,
        moving_to: "node-2".to_owned(),
        previous_owner: "node-3".to_owned(),
    }
}

fn cursor() -> Cursor {
    Cursor { data: "{\"offset\":7}".to_owned(), fencing_token: 1000, saved_ms: NOW_MS }
}

fn intent() -> Intent {
    Intent {
        account: account(),
        id: 1000 << 16,
        to: reply_to(),
        session_key: SESSION.to_owned(),
        seq: 400,
        text: "Hello".to_owned(),
        state: IntentState::Failed.into(),
        pieces_sent: 1,
        attempts: 2,
        unknowns: 1,
        fencing_token: 1000,
        created_ms: NOW_MS,
        changed_ms: NOW_MS + 1,
        error: "no".to_owned(),
        message_ids: vec!["55".to_owned()],
        turn_id: TURN.to_owned(),
        preview: "56".to_owned(),
        trace_parent: String::new(),
    }
}

fn traced_intent() -> Intent {
    Intent { trace_parent: TRACE_PARENT.to_owned(), ..intent() }
}

fn traced_accept() -> command::Kind {
    command::Kind::Accept(Accept {
        session_key: SESSION.to_owned(),
        turn_id: TURN.to_owned(),
        request_id: "r-1".to_owned(),
        trace_parent: TRACE_PARENT.to_owned(),
        ..Accept::default()
    })
}

fn pairing() -> Pairing {
    Pairing {
        account: account(),
        sender_id: "42".to_owned(),
        sender_name: "Ann".to_owned(),
        code: "ABCD2345".to_owned(),
        created_ms: NOW_MS,
    }
}

fn commands() -> Vec<command::Kind> {
    let (session_key, turn_id, instance_id) = (SESSION.to_owned(), TURN.to_owned(), "node-1".to_owned());
    vec![
        command::Kind::Accept(Accept {
            inbox: inbox(),
            session_key: session_key.clone(),
            turn_id: turn_id.clone(),
            text: "Hello".to_owned(),
            agent_id: "main".to_owned(),
            model: "echo/echo".to_owned(),
            runner: instance_id.clone(),
            max_queued: 20,
            reply_to: None,
            sender: String::new(),
            request_id: String::new(),
            trace_parent: String::new(),
        }),
        command::Kind::Complete(Complete {
            turn_id: turn_id.clone(),
            fencing_token: 1000,
            text: "Grüße".to_owned(),
            model: "echo/echo".to_owned(),
            usage: usage(),
        }),
        command::Kind::Fail(Fail {
            turn_id: turn_id.clone(),
            fencing_token: 1000,
            error_code: "model_failed".to_owned(),
            error_message: "no".to_owned(),
        }),
        command::Kind::Cancel(Cancel { turn_id }),
        command::Kind::AppendEntry(AppendEntry {
            inbox: inbox(),
            session_key: session_key.clone(),
            role: Role::System.into(),
            text: "note".to_owned(),
            expected_head: Some(0),
        }),
        command::Kind::ResetSession(ResetSession { inbox: inbox(), session_key: session_key.clone() }),
        command::Kind::DeleteSession(DeleteSession { inbox: inbox(), session_key }),
        command::Kind::RegisterInstance(RegisterInstance {
            instance_id: instance_id.clone(),
            boot_id: "b2".to_owned(),
            http_addr: "10.0.0.1:3000".to_owned(),
            peer_addr: "10.0.0.1:3100".to_owned(),
            version: "0.1.0".to_owned(),
            previous_boot_id: "b1".to_owned(),
            accounts: vec![],
            preferred: vec![],
            format: 0,
        }),
        command::Kind::RenewInstance(RenewInstance { instance_id: instance_id.clone(), epoch: 900, renewal: 18 }),
        command::Kind::ExpireInstance(ExpireInstance {
            instance_id: instance_id.clone(),
            epoch: 900,
            renewal: 18,
            term: 4,
            max_attempts: 3,
        }),
        command::Kind::SetDraining(SetDraining {
            instance_id: instance_id.clone(),
            epoch: 900,
            draining: true,
            alone: false,
        }),
        command::Kind::ForgetInstance(ForgetInstance { instance_id }),
        command::Kind::Sweep(Sweep { max_rows: 500 }),
        command::Kind::ReleaseLease(ReleaseLease { account: account(), fencing_token: 1000 }),
        command::Kind::MoveLease(MoveLease { account: account(), to: "node-2".to_owned() }),
        command::Kind::PlaceLeases(PlaceLeases { failback_after_ms: 60_000 }),
        command::Kind::SaveCursor(SaveCursor {
            account: account(),
            fencing_token: 1000,
            data: "{\"offset\":7}".to_owned(),
        }),
        command::Kind::SetModel(SetModel {
            inbox: inbox(),
            session_key: SESSION.to_owned(),
            model: "echo/echo".to_owned(),
        }),
        command::Kind::Enqueue(Enqueue { inbox: inbox(), to: reply_to(), text: "Hello".to_owned() }),
        command::Kind::UpdateIntent(UpdateIntent {
            account: account(),
            id: 1000 << 16,
            fencing_token: 1000,
            step: Some(update_intent::Step::Sent("55".to_owned())),
        }),
        command::Kind::RequestPairing(RequestPairing {
            inbox: inbox(),
            sender_id: "42".to_owned(),
            sender_name: "Ann".to_owned(),
            code: "ABCD2345".to_owned(),
            to: reply_to(),
            text: "Your code is {code}.".to_owned(),
        }),
        command::Kind::ApprovePairing(ApprovePairing { channel: "telegram".to_owned(), code: "ABCD2345".to_owned() }),
        command::Kind::RemovePairing(RemovePairing { account: account(), sender_id: "42".to_owned() }),
        command::Kind::ShowPreview(ShowPreview {
            account: account(),
            fencing_token: 1000,
            turn_id: TURN.to_owned(),
            message_id: "56".to_owned(),
        }),
        command::Kind::UpdateSession(UpdateSession {
            inbox: inbox(),
            session_key: SESSION.to_owned(),
            label: Some("Reise nach Graz".to_owned()),
            model: Some(String::new()),
            expected_revision: Some(0),
        }),
    ]
}

fn outcomes() -> Vec<outcome::Kind> {
    vec![
        outcome::Kind::Accepted(Accepted { turn: Some(turn()) }),
        outcome::Kind::DuplicateTurn(DuplicateTurn { turn_id: TURN.to_owned(), session_key: SESSION.to_owned() }),
        outcome::Kind::KeyReused(KeyReused {}),
        outcome::Kind::QueueFull(QueueFull { depth: 20 }),
        outcome::Kind::TurnEnded(TurnEnded { turn: Some(turn()) }),
        outcome::Kind::Fenced(Fenced { presented: 999, current: 1000 }),
        outcome::Kind::NotFound(NotFound {}),
        outcome::Kind::Appended(Appended { seq: 400, id: "00000190".to_owned() }),
        outcome::Kind::Conflict(Conflict { expected: 399, actual: 400 }),
        outcome::Kind::SessionReset(SessionReset { reset_seq: 400 }),
        outcome::Kind::SessionDeleted(SessionDeleted { entry_count: 400 }),
        outcome::Kind::InstanceRegistered(InstanceRegistered { epoch: 900 }),
        outcome::Kind::InstanceTaken(InstanceTaken { boot_id: "b1".to_owned(), last_seen_ms: NOW_MS }),
        outcome::Kind::Done(Done {}),
        outcome::Kind::Stale(Stale {}),
        outcome::Kind::Swept(Swept { rows: 500, more: true }),
        outcome::Kind::Refused(Refused { reason: "the inbox key is missing".to_owned() }),
        outcome::Kind::ModelSet(ModelSet { model: "echo/echo".to_owned() }),
        outcome::Kind::Enqueued(Enqueued { intent_id: 1000 << 16 }),
        outcome::Kind::Paired(Paired { pairing: Some(pairing()) }),
        outcome::Kind::SessionUpdated(SessionUpdated { session: Some(labelled_session()) }),
    ]
}

fn answers() -> Vec<(&'static str, inbox_record::Answer)> {
    use inbox_record::Answer;
    let name = |answer: &Answer| match answer {
        Answer::TurnId(_) => "turn_id",
        Answer::Appended(_) => "appended",
        Answer::SessionReset(_) => "session_reset",
        Answer::SessionDeleted(_) => "session_deleted",
        Answer::ModelSet(_) => "model_set",
        Answer::Enqueued(_) => "enqueued",
        Answer::SessionUpdated(_) => "session_updated",
    };
    let answers = [
        Answer::TurnId(TURN.to_owned()),
        Answer::Appended(Appended { seq: 400, id: "00000190".to_owned() }),
        Answer::SessionReset(SessionReset { reset_seq: 400 }),
        Answer::SessionDeleted(SessionDeleted { entry_count: 400 }),
        Answer::ModelSet(ModelSet { model: "echo/echo".to_owned() }),
        Answer::Enqueued(Enqueued { intent_id: 1000 << 16 }),
        Answer::SessionUpdated(SessionUpdated { session: Some(labelled_session()) }),
    ];
    answers.into_iter().map(|answer| (name(&answer), answer)).collect()
}

fn command(kind: command::Kind) -> Command {
    Command { now_ms: NOW_MS, kind: Some(kind) }
}

#[test]
fn commands_keep_their_bytes() {
    for kind in commands() {
        check(&format!("command.{}", kind_name(&kind)), &command(kind));
    }
    check("command.accept.traced", &command(traced_accept()));
}

#[test]
fn outcomes_keep_their_bytes() {
    for kind in outcomes() {
        check(&format!("outcome.{}", outcome_name(&kind)), &Outcome { kind: Some(kind) });
    }
}

#[test]
fn rows_keep_their_bytes() {
    check("row.session", &session());
    check("row.session.labelled", &labelled_session());
    check("row.entry", &entry());
    check("row.turn", &turn());
    check("row.turn.traced", &traced_turn());
    check("row.instance", &instance());
    check("row.lease", &lease());
    check("row.cursor", &cursor());
    check("row.intent", &intent());
    check("row.intent.traced", &traced_intent());
    check("row.pairing", &pairing());
    for (name, answer) in answers() {
        let body_hash = inbox().unwrap().body_hash;
        let record = InboxRecord { body_hash, created_ms: NOW_MS, answer: Some(answer) };
        check(&format!("row.inbox_record.{name}"), &record);
    }
}

/// A state in which every table has a row, made by a log of the commands that there were when the file was written. A
/// later one would move the indexes that stand in its rows.
fn state() -> MemoryTables {
    let mut tables = MemoryTables::default();
    let register = |id: &str| RegisterInstance {
        instance_id: id.to_owned(),
        boot_id: "b0".to_owned(),
        ..RegisterInstance::default()
    };
    let mut log = commands();
    log.retain(|kind| !matches!(kind, command::Kind::UpdateSession(_)));
    log.insert(0, command::Kind::RegisterInstance(register("node-2")));
    // The key was used by the first accept; under another one this is the message that still runs at the end.
    let last = Accept {
        inbox: Some(InboxKey { external_id: "key-2".to_owned(), ..inbox().unwrap() }),
        session_key: format!("{SESSION}:2"),
        turn_id: "0c".to_owned(),
        agent_id: "main".to_owned(),
        runner: "node-1".to_owned(),
        ..Accept::default()
    };
    log.push(command::Kind::Accept(last));
    // Somebody who runs an account, stands somewhere, has something to send, and knows a stranger.
    let runs = RegisterInstance { accounts: vec![account()], ..register("node-3") };
    log.push(command::Kind::RegisterInstance(runs));
    let token = log.len() as u64;
    log.push(command::Kind::SaveCursor(SaveCursor { account: account(), fencing_token: token, data: "7".to_owned() }));
    let key = |id: &str| Some(InboxKey { external_id: id.to_owned(), ..inbox().unwrap() });
    log.push(command::Kind::Enqueue(Enqueue { inbox: key("key-3"), to: reply_to(), text: "Hello".to_owned() }));
    let stranger = RequestPairing {
        inbox: key("key-4"),
        sender_id: "43".to_owned(),
        code: "ABCD2345".to_owned(),
        to: reply_to(),
        ..RequestPairing::default()
    };
    log.push(command::Kind::RequestPairing(stranger));
    for (at, kind) in log.into_iter().enumerate() {
        let position = LogPosition { index: at as u64 + 1, term: 4 };
        let decision = decide(&tables, position, &command(kind)).unwrap();
        tables.apply(decision.writes);
    }
    tables
}

#[test]
fn snapshots_keep_their_bytes() {
    let tables = state();
    let mut writer = SnapshotWriter::new(Vec::new(), STATE_FORMAT_VERSION, b"meta of the caller").unwrap();
    writer.rows_of(&tables).unwrap();
    let (today, _) = writer.finish().unwrap();
    let stored = stored(&format!("snapshot.v{STATE_FORMAT_VERSION}"), &today);
    assert_eq!(to_hex(&today), to_hex(&stored), "a snapshot is written otherwise than before");

    let mut reader = SnapshotReader::new(&*stored).unwrap();
    assert_eq!(reader.meta(), b"meta of the caller");
    let mut read = MemoryTables::default();
    let mut seen = BTreeSet::new();
    while let Some(SnapshotRow { table, key, value }) = reader.next_row().unwrap() {
        seen.insert(table);
        read.apply([Write { table, key, value: Some(value) }]);
    }
    assert_eq!(seen.len(), openclaw_raft::state_machine::Table::COUNT, "every table has a row in it");
    assert_eq!(state_hash(&read).unwrap(), state_hash(&tables).unwrap());
}

#[test]
fn backups_keep_their_bytes() {
    let tables = state();
    let header = BackupHeader {
        cluster_id: "oc-0192e0a1b2c37d4e".to_owned(),
        instance_id: "node-2".to_owned(),
        applied: Some(LogId { term: 4, index: 1204 }),
        taken_ms: NOW_MS,
        release: "0.1.0".to_owned(),
        source: BackupSource::Stopped.into(),
        replayed: 3,
    };
    let mut today = Vec::new();
    let trailer = backup::write(&tables, &header, &mut today).unwrap();
    let stored = stored(&backup_name(), &today);
    assert_eq!(to_hex(&today), to_hex(&stored), "a backup is written otherwise than before");

    let mut reader = BackupReader::new(&*stored).unwrap();
    assert_eq!(*reader.header(), header);
    assert_eq!(reader.verify().unwrap(), trailer);
}

/// A backup holds a snapshot, so its bytes change with either format.
fn backup_name() -> String {
    format!("backup.v{BACKUP_FORMAT_VERSION}.{STATE_FORMAT_VERSION}")
}

/// The field names of a oneof in state.proto.
fn oneof(message: &str, name: &str) -> BTreeSet<String> {
    let proto = include_str!("../../proto/state.proto");
    let (_, from_message) = proto.split_once(&format!("\nmessage {message} {{")).unwrap();
    let (_, from_oneof) = from_message.split_once(&format!("oneof {name} {{")).unwrap();
    let (fields, _) = from_oneof.split_once('}').unwrap();
    let fields = fields.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
    fields.map(|field| field.split_whitespace().nth(1).unwrap().to_owned()).collect()
}

#[test]
fn every_variant_has_golden_bytes_and_every_file_is_checked() {
    let samples = [
        ("command", oneof("Command", "kind"), commands().iter().map(kind_name).collect::<BTreeSet<_>>()),
        ("outcome", oneof("Outcome", "kind"), outcomes().iter().map(outcome_name).collect()),
        ("row.inbox_record", oneof("InboxRecord", "answer"), answers().iter().map(|(name, _)| *name).collect()),
    ];
    let mut expected: BTreeSet<_> = [
        "row.session",
        "row.session.labelled",
        "row.entry",
        "command.accept.traced",
        "row.turn",
        "row.turn.traced",
        "row.intent.traced",
        "row.instance",
        "row.lease",
        "row.cursor",
        "row.intent",
        "row.pairing",
    ]
    .map(|name| format!("{name}.hex"))
    .into();
    expected.insert(format!("snapshot.v{STATE_FORMAT_VERSION}.hex"));
    expected.insert(format!("{}.hex", backup_name()));
    for (group, declared, sampled) in samples {
        assert!(declared.len() > 3, "state.proto is read wrong");
        assert_eq!(declared, sampled.iter().map(|name| (*name).to_owned()).collect(), "{group}: a sample is missing");
        expected.extend(declared.iter().map(|name| format!("{group}.{name}.hex")));
    }
    let files: BTreeSet<_> =
        fs::read_dir(folder()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files, expected);
}
