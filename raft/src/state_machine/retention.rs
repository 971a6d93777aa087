//! What is kept for a time only, and how it is dropped: a bounded number of rows per command, oldest first.

use openclaw_proto::state::{InboxRecord, Sweep, Swept, Turn, TurnState, outcome};

use super::change::{Answer, Change, due_ms};
use super::inbox::INBOX_RETENTION;
use super::keys::{self, Expiring};
use super::turns::TURN_RETENTION;
use super::{Table, TableError, Tables, read};

/// Most rows that one sweep looks at, whatever the command asks for.
pub const MAX_SWEEP_ROWS: u32 = 10_000;

pub(super) fn sweep<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &Sweep) -> Answer {
    let max_rows = command.max_rows.min(MAX_SWEEP_ROWS) as usize;
    let until = keys::expiry_until(change.now_ms);
    let mut due = change.tables().scan(Table::Expiry, &[], until.as_deref(), max_rows + 1)?;
    let more = due.len() > max_rows;
    due.truncate(max_rows);

    let mut rows = 0;
    for (key, _) in due {
        let (_, kind, row_key) =
            keys::parse_expiry(&key).ok_or_else(|| TableError::damaged(Table::Expiry, &key, "not an expiry key"))?;
        if is_due(change, kind, row_key)? {
            change.delete(kind.table(), row_key.to_vec());
            rows += 1;
        }
        change.delete(Table::Expiry, key);
    }
    Ok(outcome::Kind::Swept(Swept { rows, more }))
}

/// Whether the row itself is due: one that was written again later has a later expiry row of its own.
fn is_due<T: Tables + ?Sized>(change: &Change<'_, T>, kind: Expiring, row_key: &[u8]) -> Result<bool, TableError> {
    let due_ms = match kind {
        Expiring::Inbox => read::row::<InboxRecord>(change.tables(), Table::Inbox, row_key)?
            .map(|record| due_ms(record.created_ms, INBOX_RETENTION)),
        Expiring::Turn => {
            read::row::<Turn>(change.tables(), Table::Turns, row_key)?
                // One that has not ended has no time yet from which to count.
                .filter(|turn| !matches!(turn.state(), TurnState::Queued | TurnState::Running))
                .map(|turn| due_ms(turn.finished_ms, TURN_RETENTION))
        }
    };
    Ok(due_ms.is_some_and(|due_ms| due_ms <= change.now_ms))
}
