//! What the instances agree on: rows, and the one function that says what a command does to them.
//!
//! [`decide`] takes the tables, a log position and a command, and returns the rows to write, the outcome for the caller
//! and the events for this process. It is pure: no I/O of its own, no clock, no randomness, no unordered map, so that
//! every instance that applies the same log holds the same bytes ([`state_hash`] compares them). Storage brings the
//! tables in and carries the writes out; time comes in with the command, stamped by the leader.
//!
//! A command that is not understood or breaks a limit is refused with an outcome, and changes nothing.

mod change;
pub mod format;
mod inbox;
mod instances;
pub mod keys;
mod leases;
mod limits;
mod outbox;
mod pairings;
pub mod read;
mod rendezvous;
pub mod restored;
mod retention;
mod sessions;
mod snapshot;
mod tables;
mod turns;

use openclaw_proto::ids::InstanceId;
use openclaw_proto::state::{Command, Lease, Outcome, Refused, Turn, command, outcome};
use sha2::{Digest, Sha256};

use change::{Answer, Change, Halt};

pub use format::STATE_FORMAT_VERSION;
pub use inbox::INBOX_RETENTION;
pub use leases::MAX_CURSOR_BYTES;
pub use limits::{
    MAX_ACCOUNT_BYTES, MAX_ERROR_CODE_BYTES, MAX_ERROR_MESSAGE_BYTES, MAX_EXTERNAL_ID_BYTES, MAX_MODEL_BYTES,
    MAX_QUEUED_TURNS, MAX_SESSION_LABEL_BYTES, MAX_TEXT_BYTES,
};
pub use outbox::{FAILED_RETENTION, MAX_NOTICE_BYTES};
pub use pairings::{CODE_LIFE, MAX_WAITING};
pub use rendezvous::rendezvous;
pub use retention::MAX_SWEEP_ROWS;
pub use snapshot::{MAX_FRAME_BYTES, SnapshotError, SnapshotReader, SnapshotRow, SnapshotTotals, SnapshotWriter};
pub use tables::{MemoryTables, Overlay, Row, Table, TableError, Tables, Write};
pub use turns::{MAX_ATTEMPTS, TURN_RETENTION};

/// Where in the log a command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    pub index: u64,
    /// Of the leader that proposed the entry.
    pub term: u64,
}

/// What applying a command means. Storage writes, the caller gets the outcome, whom it concerns acts on the events.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// At most one per row, in table and key order.
    pub writes: Vec<Write>,
    pub outcome: Outcome,
    pub events: Vec<Event>,
}

impl Decision {
    /// Nothing changes, and the caller is told why. Also for log entries whose bytes are no command.
    pub fn refused(reason: impl Into<String>) -> Self {
        let outcome = Outcome { kind: Some(outcome::Kind::Refused(Refused { reason: reason.into() })) };
        Self { writes: Vec::new(), outcome, events: Vec::new() }
    }
}

/// A change that some part of the process waits for. Every instance computes all of them.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The turn is its session's running one, for the instance and with the fencing token that it names.
    TurnRunnable(Turn),
    /// Done, failed or cancelled.
    TurnEnded(Turn),
    InstanceLive {
        instance_id: InstanceId,
        epoch: u64,
    },
    InstanceGone {
        instance_id: InstanceId,
        epoch: u64,
    },
    /// A grant, its end, or where it shall go.
    LeaseChanged(Lease),
    /// An intent is new, or what became of it is.
    OutboxChanged {
        account: String,
        id: u64,
    },
    /// A snapshot took the place of commands, so nothing is known of single changes: read the state again.
    StateReplaced,
}

/// What `command` does when it is applied at `at`.
///
/// # Errors
/// [`TableError`] when the tables cannot be read or hold what no command wrote; never because of the command.
pub fn decide(tables: &(impl Tables + ?Sized), at: LogPosition, command: &Command) -> Result<Decision, TableError> {
    // Those who know it would apply something else.
    let Some(kind) = &command.kind else { return Err(TableError::UnknownCommand { index: at.index }) };
    let mut change = Change::begin(tables, at, command.now_ms)?;
    match answer(&mut change, kind) {
        Ok(kind) => {
            let (writes, events) = change.finish();
            Ok(Decision { writes, outcome: Outcome { kind: Some(kind) }, events })
        }
        Err(Halt::Refused(reason)) => Ok(Decision::refused(reason)),
        Err(Halt::Table(error)) => Err(error),
    }
}

fn answer<T: Tables + ?Sized>(change: &mut Change<'_, T>, kind: &command::Kind) -> Answer {
    match kind {
        command::Kind::Accept(command) => turns::accept(change, command),
        command::Kind::Complete(command) => turns::complete(change, command),
        command::Kind::Fail(command) => turns::fail(change, command),
        command::Kind::Cancel(command) => turns::cancel(change, command),
        command::Kind::AppendEntry(command) => sessions::append_entry(change, command),
        command::Kind::ResetSession(command) => sessions::reset(change, command),
        command::Kind::DeleteSession(command) => sessions::delete(change, command),
        command::Kind::RegisterInstance(command) => instances::register(change, command),
        command::Kind::RenewInstance(command) => instances::renew(change, command),
        command::Kind::ExpireInstance(command) => instances::expire(change, command),
        command::Kind::SetDraining(command) => instances::set_draining(change, command),
        command::Kind::ForgetInstance(command) => instances::forget(change, command),
        command::Kind::Sweep(command) => retention::sweep(change, command),
        command::Kind::ReleaseLease(command) => leases::release(change, command),
        command::Kind::MoveLease(command) => leases::move_to(change, command),
        command::Kind::PlaceLeases(command) => leases::place_again(change, command),
        command::Kind::SaveCursor(command) => leases::save_cursor(change, command),
        command::Kind::SetModel(command) => sessions::set_model(change, command),
        command::Kind::Enqueue(command) => outbox::enqueue(change, command),
        command::Kind::UpdateIntent(command) => outbox::update(change, command),
        command::Kind::RequestPairing(command) => pairings::request(change, command),
        command::Kind::ApprovePairing(command) => pairings::approve(change, command),
        command::Kind::RemovePairing(command) => pairings::remove(change, command),
        command::Kind::ShowPreview(command) => turns::show_preview(change, command),
        command::Kind::UpdateSession(command) => sessions::update(change, command),
    }
}

/// SHA-256 over all rows in table and key order: equal on all instances that have applied the same log.
///
/// # Errors
/// [`TableError`] when the tables cannot be read.
pub fn state_hash(tables: &(impl Tables + ?Sized)) -> Result<[u8; 32], TableError> {
    let mut hash = RowHash::default();
    read::for_each_row(tables, |table, key, value| {
        hash.row(table, key, value);
        Ok::<(), TableError>(())
    })?;
    Ok(hash.finish())
}

/// SHA-256 over rows, which come in table and key order.
#[derive(Debug, Default)]
pub struct RowHash(Sha256);

impl RowHash {
    pub fn row(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.0.update([table.tag()]);
        self.0.update((key.len() as u64).to_be_bytes());
        self.0.update(key);
        self.0.update((value.len() as u64).to_be_bytes());
        self.0.update(value);
    }

    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests;
