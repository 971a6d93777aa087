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
    assert_eq!(machine.tables.row_count(Table::Expiry), 0);
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
fn a_sweep_is_bounded_and_takes_the_oldest_first() {
    let mut machine = Machine::default();
    for n in 0..5 {
        machine.passed_ms = n;
        machine.apply(append(&format!("a{n}"), "text"));
    }
    machine.passed_ms = day_ms(2);
    assert_eq!(machine.apply(sweep(0)), swept(0, true));
    assert_eq!(machine.apply(sweep(2)), swept(2, true));
    let left: Vec<_> =
        (0..5).map(|n| read::inbox(&machine.tables, "http", &format!("a{n}")).unwrap().is_some()).collect();
    assert_eq!(left, [false, false, true, true, true]);
    assert_eq!(machine.apply(sweep(u32::MAX)), swept(3, false));
}

#[test]
fn no_sweep_looks_at_more_rows_than_the_limit() {
    let mut machine = Machine::default();
    let marks = (0..=MAX_SWEEP_ROWS).map(|n| Write {
        table: Table::Expiry,
        key: keys::expiry(1, keys::Expiring::Turn, turn_id(n).as_bytes()),
        value: Some(Vec::new()),
    });
    machine.tables.apply(marks);
    assert_eq!(machine.apply(sweep(u32::MAX)), swept(0, true), "they name no row");
    assert_eq!(machine.tables.row_count(Table::Expiry), 1);
}

#[test]
fn a_row_that_was_written_again_outlives_its_first_expiry() {
    let mut machine = Machine::with(&["n1"]);
    machine.passed_ms = day_ms(10);
    machine.apply(append("a", "text"));
    let token = machine.accept(1, "n1").fencing_token;
    machine.accept(2, "n1");
    machine.apply(complete(1, token));
    let early = [
        keys::expiry(1, keys::Expiring::Inbox, &keys::inbox("http", "a")),
        keys::expiry(1, keys::Expiring::Turn, turn_id(1).as_bytes()),
        keys::expiry(1, keys::Expiring::Turn, turn_id(2).as_bytes()),
    ];
    machine.tables.apply(early.map(|key| Write { table: Table::Expiry, key, value: Some(Vec::new()) }));
    let before = machine.tables.row_count(Table::Expiry);
    assert_eq!(machine.apply(sweep(10)), swept(0, false));
    assert_eq!(machine.tables.row_count(Table::Expiry), before - 3);
    assert!(read::inbox(&machine.tables, "http", "a").unwrap().is_some());
    machine.turn(1);
    machine.turn(2);
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
