//! What is not understood, or breaks a limit, is refused alike everywhere.

use openclaw_proto::state::{ForgetInstance, TurnState};

use super::super::{
    MAX_ERROR_CODE_BYTES, MAX_EXTERNAL_ID_BYTES, MAX_MODEL_BYTES, MAX_TEXT_BYTES, Table, TableError, Write,
};
use super::*;

#[test]
fn a_command_of_unknown_kind_stops_whoever_does_not_know_it() {
    let at = LogPosition { index: 7, term: 1 };
    let error = decide(&MemoryTables::default(), at, &Command { now_ms: 5, kind: None }).unwrap_err();
    assert!(matches!(error, TableError::UnknownCommand { index: 7 }), "{error}");
}

#[test]
fn every_field_of_an_accept_is_checked() {
    let mut machine = Machine::with(&["n1"]);
    let key = || inbox("k", "body").unwrap();
    type Spoil = Box<dyn Fn(&mut Accept)>;
    let cases: Vec<(&str, Spoil)> = vec![
        ("the inbox key is missing", Box::new(|accept| accept.inbox = None)),
        (
            "the body hash has 3 bytes",
            Box::new(move |accept| {
                accept.inbox = Some(InboxKey { body_hash: vec![1, 2, 3].into(), ..key() });
            }),
        ),
        (
            "inbox account must not be empty",
            Box::new(move |accept| {
                accept.inbox = Some(InboxKey { account: String::new(), ..key() });
            }),
        ),
        (
            "inbox account has a control character",
            Box::new(move |accept| {
                accept.inbox = Some(InboxKey { account: "a\0b".to_owned(), ..key() });
            }),
        ),
        (
            "external id must not be empty",
            Box::new(move |accept| {
                accept.inbox = Some(InboxKey { external_id: String::new(), ..key() });
            }),
        ),
        (
            "external id has 257 bytes",
            Box::new(move |accept| {
                accept.inbox = Some(InboxKey { external_id: "x".repeat(MAX_EXTERNAL_ID_BYTES + 1), ..key() });
            }),
        ),
        ("session key must not be empty", Box::new(|accept| accept.session_key.clear())),
        ("session key has the character '\\0'", Box::new(|accept| accept.session_key.push('\0'))),
        ("turn id must not be empty", Box::new(|accept| accept.turn_id.clear())),
        ("turn id has the character", Box::new(|accept| accept.turn_id = "XYZ".to_owned())),
        ("turn id has 33 bytes", Box::new(|accept| accept.turn_id = "0".repeat(33))),
        ("agent id must not be empty", Box::new(|accept| accept.agent_id.clear())),
        ("instance id must not be empty", Box::new(|accept| accept.runner.clear())),
        ("text has 1048577 bytes", Box::new(|accept| accept.text = "x".repeat(MAX_TEXT_BYTES + 1))),
        ("model has 257 bytes", Box::new(|accept| accept.model = "x".repeat(MAX_MODEL_BYTES + 1))),
    ];
    for (reason, spoil) in cases {
        let mut command = accept_command(1, "n1");
        spoil(&mut command);
        let refused = machine.refused(Kind::Accept(command));
        assert!(refused.starts_with(reason), "{refused}");
    }
    let greatest = Accept { text: "x".repeat(MAX_TEXT_BYTES), ..accept_command(1, "n1") };
    assert!(matches!(machine.apply(Kind::Accept(greatest)), Outcome::Accepted(_)));
}

#[test]
fn every_other_command_refuses_what_breaks_a_limit() {
    let mut machine = Machine::with(&["n1"]);
    let fencing_token = machine.accept(1, "n1").fencing_token;
    let text = "x".repeat(MAX_TEXT_BYTES + 1);
    let label = "x".repeat(257);
    let registration = || register_command("n2", "boot-1", "");
    let role = |role| Kind::AppendEntry(AppendEntry { role, ..append_command("a", "text") });
    let cases = [
        (Kind::Complete(Complete::default()), "turn id must not be empty"),
        (Kind::Complete(Complete { turn_id: turn_id(1), fencing_token, text, ..Complete::default() }), "text has"),
        (
            Kind::Complete(Complete {
                turn_id: turn_id(1),
                fencing_token,
                model: label.clone(),
                ..Complete::default()
            }),
            "model has",
        ),
        (Kind::Fail(Fail { turn_id: turn_id(1), fencing_token, ..Fail::default() }), "error code must not be empty"),
        (
            Kind::Fail(Fail {
                turn_id: turn_id(1),
                fencing_token,
                error_code: "x".repeat(MAX_ERROR_CODE_BYTES + 1),
                ..Fail::default()
            }),
            "error code has",
        ),
        (Kind::Cancel(Cancel::default()), "turn id must not be empty"),
        (role(0), "role 0 is unknown"),
        (role(99), "role 99 is unknown"),
        (role(-1), "role -1 is unknown"),
        (append("a", &"x".repeat(MAX_TEXT_BYTES + 1)), "text has"),
        (Kind::AppendEntry(AppendEntry { inbox: None, ..append_command("a", "text") }), "the inbox key is missing"),
        (Kind::ResetSession(ResetSession::default()), "the inbox key is missing"),
        (Kind::ResetSession(ResetSession { inbox: inbox("r", ""), ..ResetSession::default() }), "session key must"),
        (Kind::DeleteSession(DeleteSession::default()), "the inbox key is missing"),
        (Kind::DeleteSession(DeleteSession { inbox: inbox("d", ""), ..DeleteSession::default() }), "session key must"),
        (register("N2", "boot-1", ""), "instance id has the character 'N'"),
        (register("n2", "", ""), "boot id must not be empty"),
        (register("n2", &label, ""), "boot id has"),
        (register("n2", "boot-1", &label), "previous boot id has"),
        (Kind::RegisterInstance(RegisterInstance { http_addr: label.clone(), ..registration() }), "http address has"),
        (Kind::RegisterInstance(RegisterInstance { peer_addr: label.clone(), ..registration() }), "peer address has"),
        (Kind::RegisterInstance(RegisterInstance { version: label.clone(), ..registration() }), "version has"),
        (renew("", 1, 1), "instance id must not be empty"),
        (expire("", 1, 1, 1, 1), "instance id must not be empty"),
        (drain("", 1, true), "instance id must not be empty"),
        (Kind::ForgetInstance(ForgetInstance::default()), "instance id must not be empty"),
    ];
    for (kind, reason) in cases {
        let refused = machine.refused(kind);
        assert!(refused.starts_with(reason), "{refused} is not {reason}");
    }
    assert_eq!(machine.turn(1).state(), TurnState::Running);
}

#[test]
fn a_damaged_row_is_an_error_that_names_it_and_not_an_outcome() {
    let machine = Machine::with(&["n1"]);
    let damage = |table, key: &str, value: &[u8], kind| {
        let mut tables = machine.tables.clone();
        tables.apply([Write { table, key: key.as_bytes().to_vec(), value: Some(value.to_vec()) }]);
        let at = LogPosition { index: 2, term: 1 };
        decide(&tables, at, &Command { now_ms: 1, kind: Some(kind) }).unwrap_err()
    };
    let turn = |turn: Turn| prost::Message::encode_to_vec(&turn);
    let orphan = Turn { id: turn_id(1), session_key: SESSION.to_owned(), ..Turn::default() };
    let running = Turn { state: TurnState::Running.into(), fencing_token: 5, ..orphan.clone() };
    for (error, expected) in [
        (
            damage(Table::Sessions, SESSION, &[0xff], accept(1, "n1")),
            "table sessions is damaged at key agent:main:main",
        ),
        (damage(Table::Marks, "now_ms", &[1], accept(1, "n1")), "table marks is damaged"),
        (damage(Table::Turns, &turn_id(1), &turn(orphan), complete(1, 5)), "table turns is damaged"),
        (damage(Table::Turns, &turn_id(1), &turn(running), complete(1, 5)), "table turns is damaged"),
        (damage(Table::TurnsByRunner, "n2", &[], register("n2", "b", "")), "table turns_by_runner is damaged"),
        (damage(Table::TurnsByRunner, "n2\0aa", &[], register("n2", "b", "")), "table turns_by_runner is damaged"),
    ] {
        assert!(matches!(error, TableError::Damaged { .. }));
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}
