//! Where conversations live, behind one trait.
//!
//! Owns the vocabulary of session state as the rest of the gateway sees it: typed commands with their outcomes, reads
//! with a stated consistency, and the events of what was applied. It never decides what a command does - the state
//! machine in `openclaw-raft` does - and it knows neither HTTP nor models. Commands come from `sessions` and `api`;
//! adapters take them to where they are kept: [`raft`] replicates them, [`memory`] holds them in one process for
//! tests. Every adapter passes the tests in `contract`.

pub mod channels;
#[cfg(test)]
mod contract;
mod error;
pub mod memory;
pub mod raft;

pub use error::{AcceptError, CommitError, EndTurnError, ReadError, WriteError};

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use openclaw_proto::ids::{InstanceId, SeqNum, SessionKey, TurnId};
use openclaw_proto::state::command::Kind as Command;
use openclaw_proto::state::outcome::Kind as Outcome;
use openclaw_proto::state::{
    Accept, AppendEntry, Cancel, Complete, DeleteSession, Entry, Fail, Lease, ResetSession, Session, Turn, TurnState,
    UpdateSession,
};

/// What a read must reflect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    /// Everything acknowledged before the read began, on whichever instance.
    #[default]
    Linearizable,
    /// At least this log index; waits for it, asks nobody.
    AtLeast(u64),
    /// What this instance happens to have applied.
    Stale,
}

/// What a command did, and its log index: a read at that index sees it, on any instance.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed<T> {
    pub index: u64,
    pub value: T,
}

/// What a read found, and the log index that it reflects.
#[derive(Debug, Clone, PartialEq)]
pub struct Read<T> {
    pub index: u64,
    pub value: T,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Accepted {
    /// It is in the transcript, and this turn answers it.
    New(Box<Turn>),
    /// The same write came before; this turn answers it.
    Duplicate { turn_id: String, session_key: String },
}

/// What applied commands mean for those who run and watch turns.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The turn is its session's running one, and its runner and fencing token are as given.
    TurnRunnable(Turn),
    /// The turn is done, failed or cancelled.
    TurnEnded(Turn),
    /// An account has another owner, or shall have.
    LeaseChanged(Lease),
    /// An intent is new, or what became of it is.
    OutboxChanged { account: String, id: u64 },
    /// Some are missing - the reader was too slow, or a snapshot replaced the state: read the state instead.
    Lagged,
}

/// Session state. Adapters implement the required methods; callers use the typed commands of `dyn SessionStore`.
///
/// Every call ends within `timeout`. Reads of unknown keys find nothing; they are not errors.
pub trait SessionStore: Send + Sync + 'static {
    /// Commits one command and answers with what it did.
    fn commit(&self, command: Command, timeout: Duration) -> BoxFuture<'_, Result<Committed<Outcome>, CommitError>>;

    fn session<'a>(
        &'a self,
        key: &'a SessionKey,
        consistency: Consistency,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Read<Option<Session>>, ReadError>>;

    /// Sessions in the order of their keys, after `after`; at most `limit`.
    fn sessions<'a>(
        &'a self,
        after: Option<&'a SessionKey>,
        limit: usize,
        consistency: Consistency,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Read<Vec<Session>>, ReadError>>;

    /// Entries in sequence, after `after`; at most `limit`.
    fn entries<'a>(
        &'a self,
        key: &'a SessionKey,
        after: SeqNum,
        limit: usize,
        consistency: Consistency,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Read<Vec<Entry>>, ReadError>>;

    fn turn<'a>(
        &'a self,
        id: &'a TurnId,
        consistency: Consistency,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Read<Option<Turn>>, ReadError>>;

    /// The running and queued turns of one runner.
    fn turns_of<'a>(
        &'a self,
        runner: &'a InstanceId,
        consistency: Consistency,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Read<Vec<Turn>>, ReadError>>;

    /// Events of commands applied here from now on; it ends with the store.
    fn events(&self) -> BoxStream<'static, Event>;
}

impl dyn SessionStore {
    /// Appends the user's entry and creates the turn that answers it; a repetition finds the first turn.
    ///
    /// # Errors
    /// [`AcceptError`]; nothing was accepted unless it is `effect_unknown`.
    pub async fn accept(&self, command: Accept, timeout: Duration) -> Result<Committed<Accepted>, AcceptError> {
        let Committed { index, value } = self.commit(Command::Accept(command), timeout).await?;
        let value = match value {
            Outcome::Accepted(accepted) => {
                Accepted::New(Box::new(accepted.turn.ok_or_else(|| unexpected("accept", "accepted without a turn"))?))
            }
            Outcome::DuplicateTurn(first) => {
                Accepted::Duplicate { turn_id: first.turn_id, session_key: first.session_key }
            }
            Outcome::KeyReused(_) => return Err(AcceptError::KeyReused),
            Outcome::QueueFull(full) => return Err(AcceptError::QueueFull { depth: full.depth }),
            Outcome::Refused(refused) => return Err(AcceptError::Refused { reason: refused.reason }),
            other @ (Outcome::TurnEnded(_)
            | Outcome::Fenced(_)
            | Outcome::NotFound(_)
            | Outcome::Appended(_)
            | Outcome::Conflict(_)
            | Outcome::SessionReset(_)
            | Outcome::SessionDeleted(_)
            | Outcome::InstanceRegistered(_)
            | Outcome::InstanceTaken(_)
            | Outcome::Done(_)
            | Outcome::Stale(_)
            | Outcome::Swept(_)
            | Outcome::ModelSet(_)
            | Outcome::Enqueued(_)
            | Outcome::Paired(_)
            | Outcome::SessionUpdated(_)) => return Err(unexpected("accept", other).into()),
        };
        Ok(Committed { index, value })
    }

    /// Records a turn's reply, under the fencing token of the attempt that made it.
    ///
    /// # Errors
    /// [`EndTurnError`]; after `effect_unknown` the same command is safe to repeat.
    pub async fn complete(&self, command: Complete, timeout: Duration) -> Result<Committed<Turn>, EndTurnError> {
        self.end_turn("complete", TurnState::Done, Command::Complete(command), timeout).await
    }

    /// Ends a turn without a reply.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub async fn fail(&self, command: Fail, timeout: Duration) -> Result<Committed<Turn>, EndTurnError> {
        self.end_turn("fail", TurnState::Failed, Command::Fail(command), timeout).await
    }

    /// Ends a turn that nobody wants answered any more, whoever runs it.
    ///
    /// # Errors
    /// [`EndTurnError::Ended`] where it came too late.
    pub async fn cancel(&self, turn: &TurnId, timeout: Duration) -> Result<Committed<Turn>, EndTurnError> {
        let command = Command::Cancel(Cancel { turn_id: turn.as_str().to_owned() });
        self.end_turn("cancel", TurnState::Cancelled, command, timeout).await
    }

    /// Appends an entry without a model: its sequence number and id.
    ///
    /// # Errors
    /// [`WriteError::Conflict`] where the session's head is not the expected one.
    pub async fn append(
        &self,
        command: AppendEntry,
        timeout: Duration,
    ) -> Result<Committed<(SeqNum, String)>, WriteError> {
        match self.write("append", Command::AppendEntry(command), timeout).await? {
            Committed { index, value: Outcome::Appended(entry) } => {
                Ok(Committed { index, value: (SeqNum(entry.seq), entry.id) })
            }
            Committed { value, .. } => Err(unexpected("append", value).into()),
        }
    }

    /// Hides the transcript so far from the model: the last hidden entry.
    ///
    /// # Errors
    /// [`WriteError::NotFound`] where there is no such session.
    pub async fn reset(&self, command: ResetSession, timeout: Duration) -> Result<Committed<SeqNum>, WriteError> {
        match self.write("reset", Command::ResetSession(command), timeout).await? {
            Committed { index, value: Outcome::SessionReset(reset) } => {
                Ok(Committed { index, value: SeqNum(reset.reset_seq) })
            }
            Committed { value, .. } => Err(unexpected("reset", value).into()),
        }
    }

    /// Deletes a session with its entries: how many there were.
    ///
    /// # Errors
    /// [`WriteError::NotFound`] where there is no such session.
    pub async fn delete(&self, command: DeleteSession, timeout: Duration) -> Result<Committed<u64>, WriteError> {
        match self.write("delete", Command::DeleteSession(command), timeout).await? {
            Committed { index, value: Outcome::SessionDeleted(deleted) } => {
                Ok(Committed { index, value: deleted.entry_count })
            }
            Committed { value, .. } => Err(unexpected("delete", value).into()),
        }
    }

    /// Sets a session's label, its model or both: the session as it is then.
    ///
    /// # Errors
    /// [`WriteError::Conflict`] where the session's revision is not the expected one.
    pub async fn update(&self, command: UpdateSession, timeout: Duration) -> Result<Committed<Session>, WriteError> {
        match self.write("update", Command::UpdateSession(command), timeout).await? {
            Committed { index, value: Outcome::SessionUpdated(updated) } => {
                let session = updated.session.ok_or_else(|| unexpected("update", "updated without a session"))?;
                Ok(Committed { index, value: session })
            }
            Committed { value, .. } => Err(unexpected("update", value).into()),
        }
    }

    async fn end_turn(
        &self,
        name: &'static str,
        wanted: TurnState,
        command: Command,
        timeout: Duration,
    ) -> Result<Committed<Turn>, EndTurnError> {
        // The first end of a turn and a repetition of it have the same outcome, with the row as it ended. A repeated
        // end of the wanted kind is a success: the earlier answer was lost on its way.
        let Committed { index, value } = self.commit(command, timeout).await?;
        match value {
            Outcome::TurnEnded(ended) => {
                let turn = ended.turn.ok_or_else(|| unexpected(name, "ended without a turn"))?;
                if turn.state() == wanted {
                    Ok(Committed { index, value: turn })
                } else {
                    Err(EndTurnError::Ended(Box::new(turn)))
                }
            }
            Outcome::Fenced(fenced) => {
                Err(EndTurnError::Fenced { presented: fenced.presented, current: fenced.current })
            }
            Outcome::NotFound(_) => Err(EndTurnError::NotFound),
            Outcome::Refused(refused) => Err(EndTurnError::Refused { reason: refused.reason }),
            other @ (Outcome::Accepted(_)
            | Outcome::DuplicateTurn(_)
            | Outcome::KeyReused(_)
            | Outcome::QueueFull(_)
            | Outcome::Appended(_)
            | Outcome::Conflict(_)
            | Outcome::SessionReset(_)
            | Outcome::SessionDeleted(_)
            | Outcome::InstanceRegistered(_)
            | Outcome::InstanceTaken(_)
            | Outcome::Done(_)
            | Outcome::Stale(_)
            | Outcome::Swept(_)
            | Outcome::ModelSet(_)
            | Outcome::Enqueued(_)
            | Outcome::Paired(_)
            | Outcome::SessionUpdated(_)) => Err(unexpected(name, other).into()),
        }
    }

    async fn write(
        &self,
        name: &'static str,
        command: Command,
        timeout: Duration,
    ) -> Result<Committed<Outcome>, WriteError> {
        let Committed { index, value } = self.commit(command, timeout).await?;
        match value {
            done @ (Outcome::Appended(_)
            | Outcome::SessionReset(_)
            | Outcome::SessionDeleted(_)
            | Outcome::SessionUpdated(_)) => Ok(Committed { index, value: done }),
            Outcome::Conflict(conflict) => {
                Err(WriteError::Conflict { index, expected: conflict.expected, actual: conflict.actual })
            }
            Outcome::KeyReused(_) => Err(WriteError::KeyReused),
            Outcome::NotFound(_) => Err(WriteError::NotFound),
            Outcome::Refused(refused) => Err(WriteError::Refused { reason: refused.reason }),
            other @ (Outcome::Accepted(_)
            | Outcome::DuplicateTurn(_)
            | Outcome::QueueFull(_)
            | Outcome::TurnEnded(_)
            | Outcome::Fenced(_)
            | Outcome::InstanceRegistered(_)
            | Outcome::InstanceTaken(_)
            | Outcome::Done(_)
            | Outcome::Stale(_)
            | Outcome::Swept(_)
            | Outcome::ModelSet(_)
            | Outcome::Enqueued(_)
            | Outcome::Paired(_)) => Err(unexpected(name, other).into()),
        }
    }
}

fn unexpected(command: &'static str, outcome: impl std::fmt::Debug) -> CommitError {
    CommitError::Outcome { command, outcome: format!("{outcome:?}") }
}
