use openclaw_proto::state::{DuplicateTurn, KeyReused, NotFound, QueueFull, TurnState};

use super::*;

fn not_found() -> Outcome {
    Outcome::NotFound(NotFound {})
}

#[test]
fn an_accepted_message_creates_its_session_and_runs_at_once() {
    let mut machine = Machine::with(&["n1"]);
    let turn = machine.accept(1, "n1");
    assert_eq!(turn.state(), TurnState::Running);
    assert_eq!((turn.runner.as_str(), turn.attempt, turn.fencing_token), ("n1", 1, machine.index));
    assert_eq!((turn.user_seq, turn.accepted_ms, turn.started_ms), (1, START_MS, START_MS));
    assert_eq!(machine.events, [Event::TurnRunnable(turn.clone())]);
    assert_eq!(machine.turn(1), turn);
    assert_eq!(machine.turns_of("n1"), [turn.id.as_str()]);

    let session = machine.session();
    assert_eq!((session.agent_id.as_str(), session.head_seq, session.turn_count), ("main", 1, 1));
    assert_eq!((session.running_turn.as_str(), session.created_ms), (turn.id.as_str(), START_MS));
    let entry = machine.entries().remove(0);
    assert_eq!((entry.id.as_str(), entry.role(), entry.text.as_str()), ("00000001", Role::User, "question 1"));
    assert_eq!(entry.turn_id, turn.id);
}

#[test]
fn a_message_behind_a_running_turn_waits_and_then_runs_in_commit_order() {
    let mut machine = Machine::with(&["n1", "n2"]);
    let first = machine.accept(1, "n1");
    let second = machine.accept(2, "n2");
    assert_eq!((second.state(), second.attempt, second.fencing_token), (TurnState::Queued, 0, 0));
    assert_eq!(machine.events, []);
    machine.accept(3, "n1");
    assert_eq!(machine.session().queued_turns, [turn_id(2), turn_id(3)]);

    machine.apply(complete(1, first.fencing_token));
    let second = machine.turn(2);
    assert_eq!((second.state(), second.runner.as_str(), second.attempt), (TurnState::Running, "n2", 1));
    assert_eq!(second.fencing_token, machine.index);
    assert_eq!(machine.events, [Event::TurnEnded(machine.turn(1)), Event::TurnRunnable(second.clone())]);
    assert_eq!(machine.session().running_turn, second.id);
    assert_eq!(machine.session().queued_turns, [turn_id(3)]);
    assert_eq!(machine.texts(), ["question 1", "question 2", "question 3", "answer 1"]);
}

#[test]
fn a_repeated_message_gets_its_turn_whatever_became_of_it() {
    let mut machine = Machine::with(&["n1"]);
    let turn = machine.accept(1, "n1");
    let again = Kind::Accept(Accept { turn_id: turn_id(9), ..accept_command(1, "n1") });
    let duplicate = Outcome::DuplicateTurn(DuplicateTurn { turn_id: turn_id(1), session_key: SESSION.to_owned() });
    assert_eq!(machine.apply(again.clone()), duplicate);
    assert_eq!(machine.events, []);
    machine.apply(complete(1, turn.fencing_token));
    assert_eq!(machine.apply(again.clone()), duplicate);
    machine.apply(delete("d"));
    assert_eq!(machine.apply(again), duplicate);
    assert_eq!(machine.session_if_any(), None, "a repetition does not bring the session back");
}

#[test]
fn a_key_under_another_body_or_another_kind_of_write_is_refused() {
    let mut machine = Machine::with(&["n1"]);
    machine.accept(1, "n1");
    machine.apply(append("append-1", "text"));
    let reused = Outcome::KeyReused(KeyReused {});
    let other_body = Accept { inbox: inbox("accept-1", "other"), turn_id: turn_id(2), ..accept_command(1, "n1") };
    assert_eq!(machine.apply(Kind::Accept(other_body)), reused);
    let append_key = Accept { inbox: inbox("append-1", "text"), ..accept_command(2, "n1") };
    assert_eq!(machine.apply(Kind::Accept(append_key)), reused);
    let accept_key = AppendEntry { inbox: inbox("accept-1", "body"), ..append_command("", "") };
    assert_eq!(machine.apply(Kind::AppendEntry(accept_key)), reused);
    assert_eq!(machine.texts(), ["question 1", "text"]);
}

#[test]
fn the_same_external_id_of_two_accounts_names_two_messages() {
    let mut machine = Machine::with(&["n1"]);
    machine.accept(1, "n1");
    let mut other = accept_command(2, "n1");
    other.inbox = Some(InboxKey { account: "telegram:main".to_owned(), ..inbox("accept-1", "body").unwrap() });
    assert!(matches!(machine.apply(Kind::Accept(other)), Outcome::Accepted(_)));
}

#[test]
fn a_full_queue_refuses_the_message_and_remembers_nothing_of_it() {
    let mut machine = Machine::with(&["n1"]);
    for turn in 1..=3 {
        machine.accept(turn, "n1");
    }
    assert_eq!(machine.apply(accept(4, "n1")), Outcome::QueueFull(QueueFull { depth: 2 }));
    assert_eq!(machine.turn_if_any(4), None);
    assert_eq!(machine.entries().len(), 3);
    machine.apply(cancel(3));
    assert_eq!(machine.accept(4, "n1").state(), TurnState::Queued);
}

#[test]
fn an_idle_session_takes_a_message_even_without_a_queue() {
    let mut machine = Machine::with(&["n1"]);
    assert!(matches!(
        machine.apply(Kind::Accept(Accept { max_queued: 0, ..accept_command(1, "n1") })),
        Outcome::Accepted(_)
    ));
    let second = Kind::Accept(Accept { max_queued: 0, ..accept_command(2, "n1") });
    assert_eq!(machine.apply(second), Outcome::QueueFull(QueueFull { depth: 0 }));
}

#[test]
fn no_command_makes_a_queue_longer_than_the_limit() {
    let mut machine = Machine::with(&["n1"]);
    let unlimited = |turn| Kind::Accept(Accept { max_queued: u32::MAX, ..accept_command(turn, "n1") });
    for turn in 0..=crate::state_machine::MAX_QUEUED_TURNS {
        assert!(matches!(machine.apply(unlimited(turn)), Outcome::Accepted(_)));
    }
    assert_eq!(machine.apply(unlimited(5000)), Outcome::QueueFull(QueueFull { depth: 1000 }));
}

#[test]
fn a_turn_id_is_used_once() {
    let mut machine = Machine::with(&["n1"]);
    machine.accept(1, "n1");
    let other = Accept { inbox: inbox("other", "body"), ..accept_command(1, "n1") };
    assert!(machine.refused(Kind::Accept(other)).contains("exists already"));
}

#[test]
fn a_reply_is_recorded_with_its_usage_once() {
    let mut machine = Machine::with(&["n1"]);
    let token = machine.accept(1, "n1").fencing_token;
    machine.passed_ms = 70;
    let ended = machine.ended(complete(1, token));
    assert_eq!((ended.state(), ended.reply_seq, ended.finished_ms), (TurnState::Done, 2, START_MS + 70));
    assert_eq!(ended.answered_by, "echo/echo");
    assert_eq!(machine.events, [Event::TurnEnded(ended.clone())]);
    assert_eq!(machine.turns_of("n1"), [""; 0]);

    let reply = machine.entries().remove(1);
    assert_eq!((reply.role(), reply.text.as_str(), reply.turn_id.as_str()), (Role::Assistant, "answer 1", &*ended.id));
    let usage = Some(Usage { input_tokens: 3, output_tokens: 5 });
    assert_eq!((reply.usage, ended.usage, machine.session().usage), (usage, usage, usage));

    machine.passed_ms = 80;
    assert_eq!(machine.ended(complete(1, token)), ended, "a repetition gets the first answer");
    assert_eq!(machine.events, []);
    assert_eq!(machine.session().head_seq, 2);
    assert_eq!(machine.session().running_turn, "");

    let token = machine.accept(2, "n1").fencing_token;
    machine.apply(complete(2, token));
    assert_eq!(machine.session().usage, Some(Usage { input_tokens: 6, output_tokens: 10 }));
}

#[test]
fn usage_that_overflows_stays_at_the_greatest_number() {
    let mut machine = Machine::with(&["n1"]);
    for turn in 1..=2 {
        let fencing_token = machine.accept(turn, "n1").fencing_token;
        let usage = Some(Usage { input_tokens: u64::MAX, output_tokens: 1 });
        machine.apply(Kind::Complete(Complete { turn_id: turn_id(turn), fencing_token, usage, ..Complete::default() }));
    }
    assert_eq!(machine.session().usage, Some(Usage { input_tokens: u64::MAX, output_tokens: 2 }));
}

#[test]
fn another_fencing_token_writes_nothing() {
    let mut machine = Machine::with(&["n1"]);
    let current = machine.accept(1, "n1").fencing_token;
    let before = machine.tables.clone();
    for presented in [0, current - 1, current + 1, u64::MAX] {
        assert_eq!(machine.apply(complete(1, presented)), fenced(presented, current));
        assert_eq!(machine.apply(fail(1, presented)), fenced(presented, current));
    }
    assert_eq!(machine.tables, before);
}

#[test]
fn a_queued_turn_has_no_token_that_would_let_it_end() {
    let mut machine = Machine::with(&["n1"]);
    machine.accept(1, "n1");
    machine.accept(2, "n1");
    assert_eq!(machine.apply(complete(2, 0)), fenced(0, 0));
    assert_eq!(machine.apply(fail(2, 0)), fenced(0, 0));
    assert_eq!(machine.turn(2).state(), TurnState::Queued);
}

#[test]
fn a_turn_that_nobody_accepted_is_not_found() {
    let mut machine = Machine::with(&["n1"]);
    for kind in [complete(1, 1), fail(1, 1), cancel(1)] {
        assert_eq!(machine.apply(kind), not_found());
    }
}

#[test]
fn a_failed_turn_says_why_and_makes_room_for_the_next() {
    let mut machine = Machine::with(&["n1"]);
    let token = machine.accept(1, "n1").fencing_token;
    machine.accept(2, "n1");
    let ended = machine.ended(fail(1, token));
    assert_eq!((ended.state(), ended.reply_seq), (TurnState::Failed, 0));
    assert_eq!((ended.error_code.as_str(), ended.error_message.as_str()), ("model_failed", "the model said no"));
    assert_eq!(machine.turn(2).state(), TurnState::Running);
    assert_eq!(machine.ended(complete(1, token)), ended, "it has failed, and stays so");
}

#[test]
fn a_long_failure_is_cut_between_characters_rather_than_refused() {
    let mut machine = Machine::with(&["n1"]);
    let fencing_token = machine.accept(1, "n1").fencing_token;
    let error_message = format!("x{}", "é".repeat(5000));
    let error_code = "model_failed".to_owned();
    let ended = machine.ended(Kind::Fail(Fail { turn_id: turn_id(1), fencing_token, error_code, error_message }));
    assert_eq!(ended.error_message, format!("x{}", "é".repeat(2047)));
}

#[test]
fn a_queued_turn_is_cancelled_out_of_the_queue() {
    let mut machine = Machine::with(&["n1"]);
    let token = machine.accept(1, "n1").fencing_token;
    machine.accept(2, "n1");
    machine.accept(3, "n1");
    let cancelled = machine.ended(cancel(2));
    assert_eq!(cancelled.state(), TurnState::Cancelled);
    assert_eq!(machine.events, [Event::TurnEnded(cancelled)]);
    assert_eq!(machine.session().queued_turns, [turn_id(3)]);
    machine.apply(complete(1, token));
    assert_eq!(machine.session().running_turn, turn_id(3));
}

#[test]
fn cancelling_the_running_turn_starts_the_next_and_fences_its_runner() {
    let mut machine = Machine::with(&["n1"]);
    let token = machine.accept(1, "n1").fencing_token;
    machine.accept(2, "n1");
    let cancelled = machine.ended(cancel(1));
    assert_eq!(machine.events, [Event::TurnEnded(cancelled.clone()), Event::TurnRunnable(machine.turn(2))]);
    assert_eq!(machine.ended(complete(1, token)), cancelled);
    assert_eq!(machine.ended(cancel(1)), cancelled);
    assert_eq!(machine.texts(), ["question 1", "question 2"]);
}

#[test]
fn a_turn_for_an_instance_that_does_not_live_goes_to_one_that_does() {
    let mut machine = Machine::with(&["n1"]);
    let turn = machine.accept(1, "n9");
    assert_eq!(turn.runner, "n1");
    assert_eq!(machine.turns_of("n1"), [turn.id]);
    assert_eq!(machine.turns_of("n9"), [""; 0]);
}

#[test]
fn a_turn_avoids_a_draining_instance_while_there_is_another() {
    let mut machine = Machine::with(&["n1", "n2"]);
    let (first, second) = (machine.instance("n1").epoch, machine.instance("n2").epoch);
    machine.apply(drain("n1", first, true));
    let token = machine.accept(1, "n1").fencing_token;
    assert_eq!(machine.turn(1).runner, "n2");
    machine.apply(drain("n2", second, true));
    machine.apply(complete(1, token));
    assert_eq!(machine.accept(2, "n1").runner, "n1", "all drain: the named one is as good as any");
    machine.apply(drain("n1", first, false));
    assert_eq!(machine.accept(3, "n2").runner, "n2", "a queued turn keeps its name");
    let token = machine.turn(2).fencing_token;
    machine.apply(complete(2, token));
    assert_eq!(machine.turn(3).runner, "n1", "and is given away when its place comes");
}

#[test]
fn a_turn_keeps_the_runner_it_names_when_nobody_lives_and_moves_once_somebody_does() {
    let mut machine = Machine::default();
    let turn = machine.accept(1, "n9");
    assert_eq!((turn.runner.as_str(), turn.state()), ("n9", TurnState::Running));
    machine.apply(register("n1", "boot-1", ""));
    let moved = machine.turn(1);
    assert_eq!((moved.runner.as_str(), moved.attempt, moved.fencing_token), ("n1", 2, machine.index));
    let epoch = machine.index;
    let live = Event::InstanceLive { instance_id: instance_id("n1"), epoch };
    assert_eq!(machine.events, [live, Event::TurnRunnable(moved)]);
}
