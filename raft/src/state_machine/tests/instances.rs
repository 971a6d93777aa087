use openclaw_proto::state::{Done, ForgetInstance, InstanceRegistered, InstanceTaken, Stale, TurnState};

use super::super::format;
use super::*;

const DONE: Outcome = Outcome::Done(Done {});
const STALE: Outcome = Outcome::Stale(Stale {});

fn registered(epoch: u64) -> Outcome {
    Outcome::InstanceRegistered(InstanceRegistered { epoch })
}

fn live(id: &str, epoch: u64) -> Event {
    Event::InstanceLive { instance_id: instance_id(id), epoch }
}

fn gone(id: &str, epoch: u64) -> Event {
    Event::InstanceGone { instance_id: instance_id(id), epoch }
}

fn forget(id: &str) -> Kind {
    Kind::ForgetInstance(ForgetInstance { instance_id: id.to_owned() })
}

#[test]
fn an_epoch_is_the_log_index_of_its_registration() {
    let mut machine = Machine { index: 41, ..Machine::default() };
    assert_eq!(machine.apply(register("n1", "boot-1", "")), registered(42));
    assert_eq!(machine.events, [live("n1", 42)]);
    let row = machine.instance("n1");
    assert_eq!((row.epoch, row.renewal, row.live, row.draining, row.last_seen_ms), (42, 0, true, false, START_MS));
    assert_eq!((row.http_addr.as_str(), row.peer_addr.as_str()), ("127.0.0.1:3000", "127.0.0.1:3100"));
}

#[test]
fn a_repeated_registration_gets_the_same_epoch() {
    let mut machine = Machine::with(&["n1"]);
    assert_eq!(machine.apply(register("n1", "boot-1", "")), registered(1));
    assert_eq!(machine.events, []);
}

#[test]
fn a_second_process_does_not_take_a_live_instance_id() {
    let mut machine = Machine::with(&["n1"]);
    let taken = Outcome::InstanceTaken(InstanceTaken { boot_id: "boot-1".to_owned(), last_seen_ms: START_MS });
    assert_eq!(machine.apply(register("n1", "boot-2", "")), taken);
    assert_eq!(machine.apply(register("n1", "boot-2", "boot-0")), taken);
    assert_eq!(machine.instance("n1").boot_id, "boot-1");
}

#[test]
fn a_restarted_process_ends_its_earlier_epoch_and_may_get_its_turns_back() {
    let mut machine = Machine::with(&["n1"]);
    let stale_token = machine.accept(1, "n1").fencing_token;
    machine.accept(2, "n1");
    assert_eq!(machine.apply(register("n1", "boot-2", "boot-1")), registered(4));
    let turn = machine.turn(1);
    assert_eq!(machine.events, [gone("n1", 1), live("n1", 4), Event::TurnRunnable(turn.clone())]);
    assert_eq!((turn.runner.as_str(), turn.attempt, turn.fencing_token), ("n1", 2, 4));
    assert_eq!(machine.turn(2).state(), TurnState::Queued);
    assert_eq!(machine.apply(complete(1, stale_token)), fenced(stale_token, 4));
    assert_eq!(machine.ended(complete(1, 4)).state(), TurnState::Done);
}

#[test]
fn a_message_that_ends_every_process_that_runs_it_is_given_up() {
    let mut machine = Machine::with(&["n1"]);
    machine.accept(1, "n1");
    machine.accept(2, "n1");
    let mut boots = 1;
    while machine.turn(1).state() == TurnState::Running {
        boots += 1;
        assert!(boots < 100, "it goes round for ever");
        machine.apply(register("n1", &format!("boot-{boots}"), &format!("boot-{}", boots - 1)));
    }
    let turn = machine.turn(1);
    assert_eq!((turn.error_code.as_str(), turn.attempt), ("turn_abandoned", crate::state_machine::MAX_ATTEMPTS));
    assert_eq!((machine.turn(2).state(), machine.turn(2).runner.as_str()), (TurnState::Running, "n1"));
}

#[test]
fn an_expired_instance_id_is_free_again() {
    let mut machine = Machine::with(&["n1"]);
    machine.apply(machine.expire_now("n1"));
    assert_eq!(machine.apply(register("n1", "boot-2", "")), registered(3));
    machine.apply(machine.expire_now("n1"));
    assert_eq!(machine.apply(register("n1", "boot-2", "")), registered(5), "even for the process that had lost it");
}

#[test]
fn a_renewal_extends_only_the_epoch_it_names_and_only_forward() {
    let mut machine = Machine::with(&["n1"]);
    machine.passed_ms = 500;
    assert_eq!(machine.apply(renew("n1", 1, 3)), DONE);
    assert_eq!((machine.instance("n1").renewal, machine.instance("n1").last_seen_ms), (3, START_MS + 500));
    for (epoch, renewal) in [(1, 3), (1, 2), (0, 4), (2, 4)] {
        assert_eq!(machine.apply(renew("n1", epoch, renewal)), STALE);
    }
    assert_eq!(machine.apply(renew("n2", 1, 1)), STALE);
    assert_eq!(machine.instance("n1").renewal, 3);
}

#[test]
fn a_renewal_never_revives_an_expired_epoch() {
    let mut machine = Machine::with(&["n1"]);
    machine.apply(machine.expire_now("n1"));
    assert_eq!(machine.apply(renew("n1", 1, 9)), STALE);
    assert!(!machine.instance("n1").live);
}

#[test]
fn an_expiry_matches_only_the_renewal_and_the_term_that_the_leader_saw() {
    let mut machine = Machine::with(&["n1"]);
    machine.apply(renew("n1", 1, 1));
    for (epoch, renewal, term) in [(1, 0, 1), (1, 2, 1), (2, 1, 1), (1, 1, 2), (1, 1, 0)] {
        assert_eq!(machine.apply(expire("n1", epoch, renewal, term, 3)), STALE);
    }
    assert_eq!(machine.apply(expire("n2", 1, 1, 1, 3)), STALE);
    assert!(machine.instance("n1").live);
    assert_eq!(machine.apply(expire("n1", 1, 1, 1, 3)), DONE);
    assert_eq!(machine.events, [gone("n1", 1)]);
    assert_eq!(machine.apply(expire("n1", 1, 1, 1, 3)), STALE, "once");
}

#[test]
fn the_turns_of_an_expired_instance_move_and_its_own_writes_are_fenced() {
    let mut machine = Machine::with(&["n1", "n2"]);
    let stale_token = machine.accept(1, "n1").fencing_token;
    machine.accept(2, "n1");
    machine.apply(machine.expire_now("n1"));
    let turn = machine.turn(1);
    assert_eq!((turn.runner.as_str(), turn.attempt, turn.fencing_token), ("n2", 2, machine.index));
    assert_eq!(machine.events, [gone("n1", 1), Event::TurnRunnable(turn.clone())]);
    assert_eq!(machine.turns_of("n1"), [turn_id(2)], "a queued turn keeps its place and its name");
    assert_eq!(machine.turns_of("n2"), [turn_id(1)]);
    assert_eq!(machine.apply(complete(1, stale_token)), fenced(stale_token, turn.fencing_token));

    machine.apply(complete(1, turn.fencing_token));
    assert_eq!((machine.turn(2).runner.as_str(), machine.turn(2).attempt), ("n2", 1));
    assert_eq!(machine.turns_of("n1"), [""; 0]);
}

#[test]
fn a_turn_that_had_its_attempts_fails_and_the_next_runs_elsewhere() {
    let mut machine = Machine::with(&["n1", "n2"]);
    machine.accept(1, "n1");
    machine.accept(2, "n1");
    machine.apply(expire("n1", 1, 0, 1, 1));
    let (first, second) = (machine.turn(1), machine.turn(2));
    assert_eq!((first.state(), first.error_code.as_str()), (TurnState::Failed, "turn_abandoned"));
    assert_eq!(first.error_message, "its runner was lost in attempt 1 of 1");
    assert_eq!((second.state(), second.runner.as_str(), second.attempt), (TurnState::Running, "n2", 1));
    assert_eq!(machine.events, [gone("n1", 1), Event::TurnEnded(first), Event::TurnRunnable(second)]);
}

#[test]
fn turns_move_to_a_draining_instance_only_when_no_other_lives() {
    let mut machine = Machine::with(&["n1", "n2", "n3"]);
    machine.apply(drain("n2", 2, true));
    machine.accept(1, "n1");
    machine.apply(machine.expire_now("n1"));
    assert_eq!(machine.turn(1).runner, "n3");
    machine.apply(machine.expire_now("n3"));
    assert_eq!(machine.turn(1).runner, "n2");
}

#[test]
fn turns_stay_when_nobody_lives_and_move_to_the_first_who_registers() {
    let mut machine = Machine::with(&["n1"]);
    machine.accept(1, "n1");
    machine.accept(2, "n1");
    machine.apply(machine.expire_now("n1"));
    assert_eq!(machine.events, [gone("n1", 1)]);
    assert_eq!((machine.turn(1).runner.as_str(), machine.turn(1).attempt), ("n1", 1));
    machine.apply(register("n2", "boot-1", ""));
    assert_eq!((machine.turn(1).runner.as_str(), machine.turn(1).attempt), ("n2", 2));
    assert_eq!(machine.turns_of("n1"), [turn_id(2)]);
}

#[test]
fn a_registration_leaves_the_turns_of_live_instances_alone() {
    let mut machine = Machine::with(&["n1"]);
    let turn = machine.accept(1, "n1");
    machine.apply(register("n2", "boot-1", ""));
    assert_eq!(machine.turn(1), turn);
}

#[test]
fn draining_is_set_by_the_epoch_that_drains_and_ends_with_it() {
    let mut machine = Machine::with(&["n1"]);
    assert_eq!(machine.apply(drain("n1", 2, true)), STALE);
    assert_eq!(machine.apply(drain("n2", 1, true)), STALE);
    assert_eq!(machine.apply(drain("n1", 1, true)), DONE);
    assert!(machine.instance("n1").draining);
    machine.apply(register("n1", "boot-2", "boot-1"));
    assert!(!machine.instance("n1").draining);
    machine.apply(machine.expire_now("n1"));
    let epoch = machine.instance("n1").epoch;
    assert_eq!(machine.apply(drain("n1", epoch, true)), STALE);
}

#[test]
fn only_an_instance_that_is_gone_is_forgotten() {
    let mut machine = Machine::with(&["n1"]);
    assert_eq!(machine.apply(forget("n1")), STALE);
    machine.apply(machine.expire_now("n1"));
    assert_eq!(machine.apply(forget("n1")), DONE);
    assert_eq!(read::instances(&machine.tables).unwrap(), []);
    assert_eq!(machine.apply(forget("n1")), DONE);
}

fn of_format(instance: &str, boot_id: &str, previous_boot_id: &str, format: u32) -> Kind {
    Kind::RegisterInstance(RegisterInstance { format, ..register_command(instance, boot_id, previous_boot_id) })
}

#[test]
fn the_state_moves_to_the_newest_format_that_all_instances_read_and_never_back() {
    let active = |machine: &Machine| format::active(&machine.tables).unwrap();
    let mut machine = Machine::with(&["n1", "n2", "n3"]);
    assert_eq!(active(&machine), 1);
    machine.apply(of_format("n1", "b2", "boot-1", 2));
    machine.apply(of_format("n2", "b2", "boot-1", 3));
    // One that is down is counted: it may come back as it was.
    let epoch = machine.instance("n3").epoch;
    machine.apply(expire("n3", epoch, 0, 1, 3));
    assert_eq!(active(&machine), 1);
    machine.apply(of_format("n3", "b2", "", 2));
    assert_eq!(active(&machine), 2);
    let refused = machine.refused(of_format("n3", "b3", "b2", 1));
    assert!(refused.contains("uses format 2") && refused.contains("install"), "{refused}");
    machine.apply(of_format("n1", "b3", "b2", 3));
    assert_eq!(active(&machine), 2);
    // The last one that reads less is taken out.
    let epoch = machine.instance("n3").epoch;
    machine.apply(expire("n3", epoch, 0, 1, 3));
    assert_eq!(active(&machine), 2);
    machine.apply(forget("n3"));
    assert_eq!(active(&machine), 3);
}

#[test]
fn of_two_that_would_drain_alone_one_does() {
    let mut machine = Machine::with(&["n1", "n2"]);
    let alone = |machine: &Machine, instance: &str| {
        let epoch = machine.instance(instance).epoch;
        Kind::SetDraining(SetDraining { instance_id: instance.into(), epoch, draining: true, alone: true })
    };
    let (first, second) = (alone(&machine, "n1"), alone(&machine, "n2"));
    assert_eq!(machine.apply(first.clone()), DONE);
    assert_eq!(machine.apply(first), DONE, "it is the one");
    assert!(matches!(machine.apply(second.clone()), Outcome::Conflict(_)));
    assert!(!machine.instance("n2").draining);
    let epoch = machine.instance("n1").epoch;
    machine.apply(drain("n1", epoch, false));
    assert_eq!(machine.apply(second), DONE);
    machine.apply(drain("n1", epoch, true));
    assert!(machine.instance("n1").draining, "a process that ends does not ask");
}
