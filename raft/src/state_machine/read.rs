//! Typed reads of the tables, for `decide` and for whoever answers queries from the same state.

use openclaw_proto::ids::{ChannelAccount, InstanceId, SeqNum, SessionKey, TurnId};
use openclaw_proto::state::{Cursor, Entry, InboxRecord, Instance, Intent, Lease, Pairing, Session, Turn};
use prost::Message;

use super::{Table, TableError, Tables, keys};

/// Rows that one read of an unbounded range asks for at a time.
const PAGE_ROWS: usize = 64;

pub(super) fn row<M: Message + Default>(
    tables: &(impl Tables + ?Sized),
    table: Table,
    key: &[u8],
) -> Result<Option<M>, TableError> {
    tables.get(table, key)?.map(|value| decode(table, key, &value)).transpose()
}

pub(super) fn decode<M: Message + Default>(table: Table, key: &[u8], value: &[u8]) -> Result<M, TableError> {
    M::decode(value).map_err(|error| TableError::damaged(table, key, error.to_string()))
}

/// The replicated clock: the highest time that a command carried, in Unix milliseconds; 0 before the first.
///
/// # Errors
/// [`TableError`] when the tables cannot be read.
pub fn clock(tables: &(impl Tables + ?Sized)) -> Result<u64, TableError> {
    let Some(value) = tables.get(Table::Marks, keys::CLOCK)? else { return Ok(0) };
    let bytes = <[u8; 8]>::try_from(value.as_slice())
        .map_err(|_| TableError::damaged(Table::Marks, keys::CLOCK, "not eight bytes"))?;
    Ok(u64::from_be_bytes(bytes))
}

/// A conversation's metadata.
///
/// # Errors
/// [`TableError`] when the tables cannot be read.
pub fn session(tables: &(impl Tables + ?Sized), key: &SessionKey) -> Result<Option<Session>, TableError> {
    row(tables, Table::Sessions, key.as_str().as_bytes())
}

/// At most `limit` sessions in key order, those after `after`.
///
/// # Errors
/// [`TableError`] when the tables cannot be read.
pub fn sessions(
    tables: &(impl Tables + ?Sized),
    after: Option<&SessionKey>,
    limit: usize,
) -> Result<Vec<Session>, TableError> {
    let from = after.map(|key| keys::after(key.as_str().as_bytes())).unwrap_or_default();
    let rows = tables.scan(Table::Sessions, &from, None, limit)?;
    rows.iter().map(|(key, value)| decode(Table::Sessions, key, value)).collect()
}

/// At most `limit` entries of a session in order, those after `after`.
///
/// # Errors
/// [`TableError`] when the tables cannot be read.
pub fn entries(
    tables: &(impl Tables + ?Sized),
    key: &SessionKey,
    after: SeqNum,
    limit: usize,
) -> Result<Vec<Entry>, TableError> {
    let Some(first) = after.0.checked_add(1) else { return Ok(Vec::new()) };
    let (_, until) = keys::under(key.as_str());
    let rows = tables.scan(Table::Entries, &keys::entry(key.as_str(), first), Some(&until), limit)?;
    rows.iter().map(|(key, value)| decode(Table::Entries, key, value)).collect()
}

/// A turn, running or ended; ended ones are kept for [`super::TURN_RETENTION`].
///
/// # Errors
/// [`TableError`] when the tables cannot be read.
pub fn turn(tables: &(impl Tables + ?Sized), id: &TurnId) -> Result<Option<Turn>, TableError> {
    row(tables, Table::Turns, id.as_str().as_bytes())
}

/// The running and queued turns of an instance, in the order of their ids.
///
/// # Errors
/// [`TableError`] when the tables cannot be read.
pub fn turns_of(tables: &(impl Tables + ?Sized), runner: &InstanceId) -> Result<Vec<Turn>, TableError> {
    turns_by_runner(tables, runner.as_str())
}

pub(super) fn turns_by_runner(tables: &(impl Tables + ?Sized), runner: &str) -> Result<Vec<Turn>, TableError> {
    let (from, until) = keys::under(runner);
    let mut turns = Vec::new();
    for_each(tables, Table::TurnsByRunner, from, Some(&until), |key, _| {
        let damaged = |reason| TableError::damaged(Table::TurnsByRunner, key, reason);
        let (_, id) = keys::parse_turn_by_runner(key).ok_or_else(|| damaged("not an index key"))?;
        turns.push(row(tables, Table::Turns, id.as_bytes())?.ok_or_else(|| damaged("no such turn"))?);
        Ok::<(), TableError>(())
    })?;
    Ok(turns)
}

/// All who run or will run a turn. Steps from runner to runner, over their turns.
pub(super) fn runners(tables: &(impl Tables + ?Sized)) -> Result<Vec<String>, TableError> {
    let mut runners = Vec::new();
    let mut from = Vec::new();
    while let Some((key, _)) = tables.scan(Table::TurnsByRunner, &from, None, 1)?.pop() {
        let (runner, _) = keys::parse_turn_by_runner(&key)
            .ok_or_else(|| TableError::damaged(Table::TurnsByRunner, &key, "not an index key"))?;
        runners.push(runner.to_owned());
        (_, from) = keys::under(runner);
    }
    Ok(runners)
}

/// All instances that ever registered and were not forgotten, in the order of their ids.
///
/// # Errors
/// [`TableError`] when the tables cannot be read.
pub fn instances(tables: &(impl Tables + ?Sized)) -> Result<Vec<Instance>, TableError> {
    all(tables, Table::Instances, Vec::new(), None)
}

/// Who runs which channel account.
///
/// # Errors
/// [`TableError`] when the tables cannot be read.
pub fn leases(tables: &(impl Tables + ?Sized)) -> Result<Vec<Lease>, TableError> {
    all(tables, Table::Leases, Vec::new(), None)
}

/// Where the account's owner stands with its platform.
///
/// # Errors
/// [`TableError`] when the tables cannot be read.
pub fn cursor(tables: &(impl Tables + ?Sized), account: &ChannelAccount) -> Result<Option<Cursor>, TableError> {
    row(tables, Table::Cursors, account.as_str().as_bytes())
}

/// At most `limit` intents of an account that are not delivered, oldest first, those after `after`.
///
/// # Errors
/// [`TableError`] when the tables cannot be read.
pub fn outbox(
    tables: &(impl Tables + ?Sized),
    account: &ChannelAccount,
    after: u64,
    limit: usize,
) -> Result<Vec<Intent>, TableError> {
    let Some(first) = after.checked_add(1) else { return Ok(Vec::new()) };
    let (_, until) = keys::under(account.as_str());
    let rows = tables.scan(Table::Outbox, &keys::intent(account.as_str(), first), Some(&until), limit)?;
    rows.iter().map(|(key, value)| decode(Table::Outbox, key, value)).collect()
}

/// Those who wait for approval, and those who have it; of one account or of all.
///
/// # Errors
/// [`TableError`] when the tables cannot be read.
pub fn pairings(tables: &(impl Tables + ?Sized), account: Option<&str>) -> Result<Vec<Pairing>, TableError> {
    match account {
        Some(account) => {
            let (from, until) = keys::under(account);
            all(tables, Table::Pairings, from, Some(&until))
        }
        None => all(tables, Table::Pairings, Vec::new(), None),
    }
}

/// Whether `sender_id` was approved.
///
/// # Errors
/// [`TableError`] when the tables cannot be read.
pub fn is_paired(
    tables: &(impl Tables + ?Sized),
    account: &ChannelAccount,
    sender_id: &str,
) -> Result<bool, TableError> {
    let pairing: Option<Pairing> = row(tables, Table::Pairings, &keys::pairing(account.as_str(), sender_id))?;
    Ok(pairing.is_some_and(|pairing| pairing.code.is_empty()))
}

fn all<M: Message + Default>(
    tables: &(impl Tables + ?Sized),
    table: Table,
    from: Vec<u8>,
    until: Option<&[u8]>,
) -> Result<Vec<M>, TableError> {
    let mut found = Vec::new();
    for_each(tables, table, from, until, |key, value| {
        found.push(decode(table, key, value)?);
        Ok::<(), TableError>(())
    })?;
    Ok(found)
}

/// What a write with this external id did.
///
/// # Errors
/// [`TableError`] when the tables cannot be read.
pub fn inbox(
    tables: &(impl Tables + ?Sized),
    account: &str,
    external_id: &str,
) -> Result<Option<InboxRecord>, TableError> {
    row(tables, Table::Inbox, &keys::inbox(account, external_id))
}

/// Calls `each` with every row, in table and key order, holding a bounded number of rows at a time.
///
/// # Errors
/// [`TableError`] when the tables cannot be read, or what `each` returns.
pub fn for_each_row<E: From<TableError>>(
    tables: &(impl Tables + ?Sized),
    mut each: impl FnMut(Table, &[u8], &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    for table in Table::ALL {
        for_each(tables, table, Vec::new(), None, |key, value| each(table, key, value))?;
    }
    Ok(())
}

fn for_each<E: From<TableError>>(
    tables: &(impl Tables + ?Sized),
    table: Table,
    mut from: Vec<u8>,
    until: Option<&[u8]>,
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    loop {
        let rows = tables.scan(table, &from, until, PAGE_ROWS)?;
        for (key, value) in &rows {
            each(key, value)?;
        }
        match rows.last() {
            Some((last, _)) if rows.len() == PAGE_ROWS => from = keys::after(last),
            Some(_) | None => return Ok(()),
        }
    }
}
