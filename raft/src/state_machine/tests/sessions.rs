use openclaw_proto::state::{
    Appended, Conflict, KeyReused, NotFound, SessionDeleted, SessionReset, SessionUpdated, SetModel, TurnState,
    UpdateSession,
};

use super::*;

fn appended(seq: u64) -> Outcome {
    Outcome::Appended(Appended { seq, id: format!("{seq:08x}") })
}

#[test]
fn an_entry_is_appended_without_a_model_and_creates_its_session() {
    let mut machine = Machine::default();
    assert_eq!(machine.apply(append("a", "first")), appended(1));
    machine.passed_ms = 5;
    assert_eq!(machine.apply(append("b", "second")), appended(2));
    assert_eq!(machine.texts(), ["first", "second"]);
    assert_eq!(machine.events, []);
    let session = machine.session();
    assert_eq!((session.created_ms, session.updated_ms, session.turn_count), (START_MS, START_MS + 5, 0));
}

#[test]
fn a_repeated_append_gets_the_first_answer() {
    let mut machine = Machine::default();
    assert_eq!(machine.apply(append("a", "first")), appended(1));
    machine.apply(append("b", "second"));
    assert_eq!(machine.apply(append("a", "first")), appended(1));
    assert_eq!(machine.apply(append("a", "other")), Outcome::KeyReused(KeyReused {}));
    assert_eq!(machine.texts(), ["first", "second"]);
}

#[test]
fn an_append_behind_an_unseen_entry_is_a_conflict_and_may_be_tried_again() {
    let mut machine = Machine::default();
    let expecting = |head| Kind::AppendEntry(AppendEntry { expected_head: Some(head), ..append_command("a", "text") });
    assert_eq!(machine.apply(expecting(1)), Outcome::Conflict(Conflict { expected: 1, actual: 0 }));
    assert_eq!(machine.session_if_any(), None);
    assert_eq!(machine.apply(expecting(0)), appended(1));
    assert_eq!(machine.apply(expecting(7)), appended(1), "the key was answered before");
    let next = |head| Kind::AppendEntry(AppendEntry { expected_head: Some(head), ..append_command("b", "text") });
    assert_eq!(machine.apply(next(0)), Outcome::Conflict(Conflict { expected: 0, actual: 1 }));
    assert_eq!(machine.apply(next(1)), appended(2));
}

#[test]
fn an_entry_may_be_appended_while_a_turn_runs() {
    let mut machine = Machine::with(&["n1"]);
    let token = machine.accept(1, "n1").fencing_token;
    assert_eq!(machine.apply(append("a", "note")), appended(2));
    machine.apply(complete(1, token));
    assert_eq!(machine.texts(), ["question 1", "note", "answer 1"]);
}

#[test]
fn a_session_that_an_append_created_takes_its_agent_from_the_first_message() {
    let mut machine = Machine::with(&["n1"]);
    machine.apply(append("a", "note"));
    assert_eq!(machine.session().agent_id, "");
    machine.accept(1, "n1");
    assert_eq!(machine.session().agent_id, "main");
    machine.apply(Kind::Accept(Accept { agent_id: "other".to_owned(), ..accept_command(2, "n1") }));
    assert_eq!(machine.session().agent_id, "main");
    assert_eq!(machine.turn(2).agent_id, "other");
}

#[test]
fn a_reset_hides_what_was_said_and_keeps_it() {
    let mut machine = Machine::default();
    machine.apply(append("a", "first"));
    let answer = Outcome::SessionReset(SessionReset { reset_seq: 1 });
    assert_eq!(machine.apply(reset("r")), answer);
    machine.apply(append("b", "second"));
    assert_eq!(machine.apply(reset("r")), answer, "a repetition resets nothing more");
    assert_eq!(machine.session().reset_seq, 1);
    assert_eq!(machine.texts(), ["first", "second"]);
}

fn update(external_id: &str, label: Option<&str>, model: Option<&str>, expected_revision: Option<u64>) -> Kind {
    Kind::UpdateSession(UpdateSession {
        inbox: inbox(external_id, label.or(model).unwrap_or_default()),
        session_key: SESSION.to_owned(),
        label: label.map(str::to_owned),
        model: model.map(str::to_owned),
        expected_revision,
    })
}

#[test]
fn label_and_model_are_set_apart_and_the_revision_is_the_index_of_the_last_change() {
    let mut machine = Machine::default();
    let set = |machine: &mut Machine, label: Option<&str>, model: Option<&str>| {
        let id = machine.index.to_string();
        let outcome = machine.apply(update(&id, label, model, None));
        assert_eq!(outcome, Outcome::SessionUpdated(SessionUpdated { session: Some(machine.session()) }));
        let session = machine.session();
        assert_eq!(session.revision, machine.index);
        (session.label, session.model)
    };
    let pair = |label: &str, model: &str| (label.to_owned(), model.to_owned());
    assert_eq!(set(&mut machine, Some("Graz"), None), pair("Graz", ""), "the first one creates the session");
    assert_eq!(set(&mut machine, None, Some("echo/other")), pair("Graz", "echo/other"));
    assert_eq!(set(&mut machine, Some(""), None), pair("", "echo/other"), "empty: none");
    assert_eq!(set(&mut machine, Some("Linz"), Some("")), pair("Linz", ""));
    assert_eq!(set(&mut machine, Some("Linz"), Some("")), pair("Linz", ""), "the same again is a change too");
    let revision = machine.session().revision;
    machine.apply(append("a", "text"));
    assert_eq!(machine.session().revision, revision, "entries are no change of it");
    let model = SetModel { inbox: inbox("m", ""), session_key: SESSION.to_owned(), model: "echo/echo".to_owned() };
    machine.apply(Kind::SetModel(model));
    assert_eq!(machine.session().revision, machine.index);
}

#[test]
fn of_two_updates_that_saw_the_same_revision_one_wins() {
    let mut machine = Machine::default();
    let conflict = |expected, actual| Outcome::Conflict(Conflict { expected, actual });
    assert_eq!(machine.apply(update("a", Some("a"), None, Some(7))), conflict(7, 0));
    assert_eq!(machine.session_if_any(), None);
    machine.apply(update("b", Some("b"), None, Some(0)));
    let seen = machine.index;
    assert_eq!(machine.apply(update("c", Some("c"), None, Some(0))), conflict(0, seen));
    machine.apply(update("d", Some("d"), None, Some(seen)));
    assert_eq!(machine.apply(update("e", Some("e"), None, Some(seen))), conflict(seen, seen + 2));
    assert_eq!(machine.session().label, "d");
}

#[test]
fn a_repeated_update_gets_the_first_answer() {
    let mut machine = Machine::default();
    let first = machine.apply(update("a", Some("a"), None, Some(0)));
    machine.apply(update("b", Some("b"), None, None));
    assert_eq!(machine.apply(update("a", Some("a"), None, Some(0))), first);
    assert_eq!(machine.apply(update("a", Some("other"), None, None)), Outcome::KeyReused(KeyReused {}));
    assert_eq!(machine.session().label, "b");
    // One that was refused changed nothing, so its key is free.
    machine.apply(update("c", Some("c"), None, Some(1)));
    let revision = machine.session().revision;
    assert!(matches!(machine.apply(update("c", Some("c"), None, Some(revision))), Outcome::SessionUpdated(_)));
}

#[test]
fn an_update_that_sets_nothing_or_too_much_is_refused() {
    let mut machine = Machine::default();
    assert_eq!(machine.refused(update("a", None, None, None)), "there is nothing to set");
    let long = "x".repeat(257);
    assert!(machine.refused(update("a", Some(&long), None, None)).contains("label has 257 bytes"));
    assert!(machine.refused(update("a", Some("a\nb"), None, None)).contains("label has a control character"));
    assert!(machine.refused(update("a", None, Some(&long), None)).contains("model has 257 bytes"));
}

#[test]
fn an_absent_session_is_neither_reset_nor_deleted() {
    let mut machine = Machine::default();
    assert_eq!(machine.apply(reset("r")), Outcome::NotFound(NotFound {}));
    assert_eq!(machine.apply(delete("d")), Outcome::NotFound(NotFound {}));
}

#[test]
fn a_deleted_session_is_gone_with_its_entries_and_its_turns_are_cancelled() {
    let mut machine = Machine::with(&["n1"]);
    let token = machine.accept(1, "n1").fencing_token;
    machine.accept(2, "n1");
    machine.apply(append("a", "note"));
    let neighbour = AppendEntry { session_key: format!("{SESSION}:x"), ..append_command("n", "stays") };
    machine.apply(Kind::AppendEntry(neighbour));

    let answer = Outcome::SessionDeleted(SessionDeleted { entry_count: 3 });
    assert_eq!(machine.apply(delete("d")), answer);
    assert_eq!(machine.events, [Event::TurnEnded(machine.turn(1)), Event::TurnEnded(machine.turn(2))]);
    assert_eq!((machine.turn(1).state(), machine.turn(2).state()), (TurnState::Cancelled, TurnState::Cancelled));
    assert_eq!(machine.turns_of("n1"), [""; 0]);
    assert_eq!(machine.session_if_any(), None);
    assert_eq!(machine.texts(), [""; 0]);
    assert_eq!(machine.tables.row_count(super::super::Table::Entries), 1);

    assert_eq!(machine.ended(complete(1, token)).state(), TurnState::Cancelled);
    machine.apply(append("b", "anew"));
    assert_eq!(machine.apply(delete("d")), answer, "a repetition does not delete what came after");
    assert_eq!(machine.session().head_seq, 1);
}

#[test]
fn sessions_and_entries_are_read_in_pages() {
    let mut machine = Machine::default();
    for n in 0..5 {
        machine.apply(append(&format!("e{n}"), &format!("entry {n}")));
        let session_key = format!("agent:main:{n}");
        machine.apply(Kind::AppendEntry(AppendEntry { session_key, ..append_command(&format!("s{n}"), "x") }));
    }
    let key = SessionKey::parse(SESSION).unwrap();
    let seqs = |after, limit| -> Vec<u64> {
        let entries = read::entries(&machine.tables, &key, SeqNum(after), limit).unwrap();
        entries.iter().map(|entry| entry.seq).collect()
    };
    assert_eq!(seqs(0, 2), [1, 2]);
    assert_eq!(seqs(2, 10), [3, 4, 5]);
    assert_eq!(seqs(5, 10), [0; 0]);
    assert_eq!(seqs(u64::MAX, 10), [0; 0]);

    let first = read::sessions(&machine.tables, None, 3).unwrap();
    let last = SessionKey::parse(first[2].key.as_str()).unwrap();
    let rest = read::sessions(&machine.tables, Some(&last), 10).unwrap();
    let keys: Vec<_> = first.iter().chain(&rest).map(|session| session.key.as_str()).collect();
    assert_eq!(keys, ["agent:main:0", "agent:main:1", "agent:main:2", "agent:main:3", "agent:main:4", SESSION]);
}

#[cfg(feature = "planted-bugs")]
#[test]
fn planted_an_append_behind_an_unseen_entry_is_taken() {
    crate::planted::tests::alone(crate::planted::Bug::IgnoredCondition, || {
        let mut machine = Machine::default();
        let command = AppendEntry { expected_head: Some(7), ..append_command("a", "text") };
        assert_eq!(machine.apply(Kind::AppendEntry(command)), appended(1));
    });
}
