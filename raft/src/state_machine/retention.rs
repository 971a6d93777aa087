//! What is kept for a time only, and how it is dropped.
//!
//! Rows carry the time from which they count, and nothing else is written to have them dropped: a sweep walks through
//! the tables, a bounded number of rows per command, and where it stands is replicated as well. So what is kept for a
//! day costs one look per pass and not a second row per write; it stays for up to one pass longer than it must.

use std::time::Duration;

use openclaw_proto::state::{InboxRecord, Intent, IntentState, Pairing, Sweep, Swept, Turn, TurnState, outcome};

use super::change::{Answer, Change};
use super::inbox::INBOX_RETENTION;
use super::outbox::FAILED_RETENTION;
use super::pairings::CODE_LIFE;
use super::turns::TURN_RETENTION;
use super::{Table, TableError, Tables, keys, read};

/// Most rows that one sweep looks at, whatever the command asks for.
pub const MAX_SWEEP_ROWS: u32 = 10_000;

/// In the order of a pass.
const SWEPT: [Table; 4] = [Table::Inbox, Table::Turns, Table::Outbox, Table::Pairings];

/// Looks at the next rows of the pass, and drops those whose time has passed. The next command after the one that ends
/// a pass begins another.
pub(super) fn sweep<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &Sweep) -> Answer {
    let mut left = command.max_rows.min(MAX_SWEEP_ROWS) as usize;
    let mut dropped = 0;
    let mut position = Position::read(change)?;
    while let Some(table) = position.table()
        && left > 0
    {
        let rows = change.tables().scan(table, &position.from, None, left)?;
        let ended = rows.len() < left;
        left -= rows.len();
        if let Some((last, _)) = rows.last() {
            position.from = keys::after(last);
        }
        for (key, value) in rows {
            if is_due(change.now_ms, table, &key, &value)? {
                change.delete(table, key);
                dropped += 1;
            }
        }
        if ended {
            position = Position { place: position.place + 1, from: Vec::new() };
        }
    }
    let more = position.table().is_some();
    position.write(change);
    Ok(outcome::Kind::Swept(Swept { rows: dropped, more }))
}

/// Where the next look begins.
struct Position {
    /// In [`SWEPT`]; past it at the end of a pass.
    place: u8,
    from: Vec<u8>,
}

impl Position {
    fn table(&self) -> Option<Table> {
        SWEPT.get(usize::from(self.place)).copied()
    }

    fn read<T: Tables + ?Sized>(change: &Change<'_, T>) -> Result<Self, TableError> {
        let stored = change.tables().get(Table::Marks, keys::SWEEP)?.unwrap_or_default();
        Ok(match stored.split_first() {
            Some((place, from)) => Self { place: *place, from: from.to_owned() },
            None => Self { place: 0, from: Vec::new() },
        })
    }

    fn write<T: Tables + ?Sized>(self, change: &mut Change<'_, T>) {
        if self.table().is_some() && (self.place > 0 || !self.from.is_empty()) {
            change.put_bytes(Table::Marks, keys::SWEEP.to_vec(), [&[self.place], &*self.from].concat());
        } else {
            change.delete(Table::Marks, keys::SWEEP.to_vec());
        }
    }
}

fn is_due(now_ms: u64, table: Table, key: &[u8], value: &[u8]) -> Result<bool, TableError> {
    let since_ms = match table {
        Table::Inbox => Some((read::decode::<InboxRecord>(table, key, value)?.created_ms, INBOX_RETENTION)),
        Table::Turns => {
            let turn = read::decode::<Turn>(table, key, value)?;
            // One that has not ended has no time yet from which to count.
            let ended = !matches!(turn.state(), TurnState::Queued | TurnState::Running);
            ended.then_some((turn.finished_ms, TURN_RETENTION))
        }
        Table::Outbox => {
            let intent = read::decode::<Intent>(table, key, value)?;
            // The others are to be sent, or to be decided about.
            (intent.state() == IntentState::Failed).then_some((intent.changed_ms, FAILED_RETENTION))
        }
        Table::Pairings => {
            let pairing = read::decode::<Pairing>(table, key, value)?;
            (!pairing.code.is_empty()).then_some((pairing.created_ms, CODE_LIFE))
        }
        Table::Sessions
        | Table::Entries
        | Table::TurnsByRunner
        | Table::Instances
        | Table::Marks
        | Table::Leases
        | Table::Cursors => None,
    };
    Ok(since_ms.is_some_and(|(since_ms, kept)| due_ms(since_ms, kept) <= now_ms))
}

/// When a row from `since_ms` is due.
fn due_ms(since_ms: u64, kept: Duration) -> u64 {
    since_ms.saturating_add(u64::try_from(kept.as_millis()).unwrap_or(u64::MAX))
}
