use openclaw_proto::state::{Sweep, Swept};

use super::super::{INBOX_RETENTION, MAX_SWEEP_ROWS, TURN_RETENTION, Table, Write, keys};
use super::*;

fn sweep(max_rows: u32) -> Kind {
    Kind::Sweep(Sweep { max_rows })
}

fn swept(rows: u32, more: bool) -> Outcome {
    Outcome::Swept(Swept { rows, more })
}

fn day_ms(days: u64) -> u64 {
    days * 24 * 60 * 60 * 1000
}

#[test]
fn an_external_id_is_remembered_for_a_day_and_not_longer() {
    let mut machine = Machine::default();
    machine.apply(append("a", "text"));
    machine.passed_ms = day_ms(1) - 1;
    assert_eq!(machine.apply(sweep(10)), swept(0, false));
    assert!(read::inbox(&machine.tables, "http", "a").unwrap().is_some());
    machine.passed_ms = day_ms(1);
    assert_eq!(machine.apply(sweep(10)), swept(1, false));
    assert!(read::inbox(&machine.tables, "http", "a").unwrap().is_none());
}

#[test]
fn an_ended_turn_is_kept_for_a_week_and_a_running_one_for_as_long_as_it_runs() {
    let mut machine = Machine::with(&["n1"]);
    let token = machine.accept(1, "n1").fencing_token;
    machine.passed_ms = day_ms(30);
    assert_eq!(machine.apply(sweep(10)), swept(1, false), "the inbox row");
    machine.apply(complete(1, token));
    machine.passed_ms = day_ms(37) - 1;
    assert_eq!(machine.apply(sweep(10)), swept(0, false));
    machine.turn(1);
    machine.passed_ms = day_ms(37);
    assert_eq!(machine.apply(sweep(10)), swept(1, false));
    assert_eq!(machine.turn_if_any(1), None);
    assert_eq!(machine.texts().len(), 2, "what was said stays");
}

#[test]
fn a_pass_goes_on_where_the_command_before_stopped() {
    let mut machine = Machine::with(&["n1"]);
    for n in 0..5 {
        machine.apply(append(&format!("a{n}"), "text"));
    }
    let token = machine.accept(1, "n1").fencing_token;
    machine.apply(complete(1, token));
    machine.passed_ms = day_ms(8);
    assert_eq!(machine.apply(sweep(0)), swept(0, true));
    assert_eq!(machine.apply(sweep(2)), swept(2, true));
    let left = |machine: &Machine| machine.tables.row_count(Table::Inbox);
    assert_eq!(left(&machine), 4, "three appends and the message of the turn");
    assert_eq!(machine.apply(sweep(3)), swept(3, true));
    assert_eq!(machine.apply(sweep(u32::MAX)), swept(2, false), "what is left, and the turn");
    assert_eq!(left(&machine), 0);
    assert_eq!(machine.turn_if_any(1), None);
    assert_eq!(machine.tables.row_count(Table::Marks), 1, "only the clock: the next pass begins at the beginning");
}

#[test]
fn a_pass_ends_though_rows_come_in_behind_and_before_it() {
    let mut machine = Machine::default();
    for key in ["b", "d"] {
        machine.apply(append(key, "text"));
    }
    machine.passed_ms = day_ms(1);
    assert_eq!(machine.apply(sweep(1)), swept(1, true));
    for key in ["a", "c", "e"] {
        machine.apply(append(key, "text"));
    }
    assert_eq!(machine.apply(sweep(10)), swept(1, false), "c, d and e were looked at; a waits for the next pass");
    assert_eq!(machine.tables.row_count(Table::Inbox), 3);
}

#[test]
fn no_sweep_looks_at_more_rows_than_the_limit() {
    let mut machine = Machine::default();
    machine.apply(append("a", "text"));
    let record = machine.tables.get(Table::Inbox, &keys::inbox("http", "a")).unwrap();
    let rows = (0..MAX_SWEEP_ROWS).map(|n| Write {
        table: Table::Inbox,
        key: keys::inbox("http", &format!("z{n}")),
        value: record.clone(),
    });
    machine.tables.apply(rows);
    machine.passed_ms = day_ms(1);
    assert_eq!(machine.apply(sweep(u32::MAX)), swept(MAX_SWEEP_ROWS, true));
    assert_eq!(machine.tables.row_count(Table::Inbox), 1);
}

#[test]
fn the_clock_is_the_highest_time_that_a_command_carried() {
    let mut machine = Machine::default();
    assert_eq!(read::clock(&machine.tables).unwrap(), 0);
    machine.passed_ms = 1000;
    machine.apply(append("a", "text"));
    machine.passed_ms = 400;
    machine.apply(append("b", "text"));
    assert_eq!(read::clock(&machine.tables).unwrap(), START_MS + 1000);
    assert_eq!(machine.entries()[1].created_ms, START_MS + 1000);
}

#[test]
fn the_end_of_time_is_no_overflow() {
    let mut machine = Machine { passed_ms: u64::MAX - START_MS, ..Machine::with(&["n1"]) };
    let token = machine.accept(1, "n1").fencing_token;
    machine.apply(complete(1, token));
    assert_eq!(machine.apply(sweep(10)), swept(2, false));
}

#[test]
fn a_turn_can_be_found_for_as_long_as_its_message_is_recognised() {
    assert!(TURN_RETENTION >= INBOX_RETENTION);
}
