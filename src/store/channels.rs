//! What channels need of the store beside sessions: who owns an account, where it stands with its platform, what waits to
//! be sent, and who may write.
//!
//! These reads are of what this instance has applied. That is enough: an owner begins once its grant was applied here, and
//! what the owner before it wrote lies before the grant. What it writes is judged by its fencing token where it is applied.

use std::time::Duration;

use openclaw_proto::ids::ChannelAccount;
use openclaw_proto::state::command::Kind as Command;
use openclaw_proto::state::outcome::Kind as Outcome;
use openclaw_proto::state::update_intent::Step;
use openclaw_proto::state::{
    Cursor, Instance, Intent, Lease, Pairing, ReleaseLease, SaveCursor, ShowPreview, UpdateIntent,
};

use super::{CommitError, ReadError, SessionStore, unexpected};

/// Why an owner's write was not taken.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// The account has another owner, or none.
    #[error("this instance does not own the account any more")]
    Fenced,
    /// It does not fit to what the row says now: another attempt was faster.
    #[error("the intent is in another state")]
    Conflict,
    #[error("no such row")]
    NotFound,
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// Channel state. Adapters implement the reads.
pub trait ChannelStore: SessionStore {
    /// # Errors
    /// [`ReadError::Storage`].
    fn leases(&self) -> Result<Vec<Lease>, ReadError>;

    /// # Errors
    /// [`ReadError::Storage`].
    fn instances(&self) -> Result<Vec<Instance>, ReadError>;

    /// # Errors
    /// [`ReadError::Storage`].
    fn cursor(&self, account: &ChannelAccount) -> Result<Option<Cursor>, ReadError>;

    /// At most `limit` intents that are not delivered, oldest first, those after `after`.
    ///
    /// # Errors
    /// [`ReadError::Storage`].
    fn outbox(&self, account: &ChannelAccount, after: u64, limit: usize) -> Result<Vec<Intent>, ReadError>;

    /// # Errors
    /// [`ReadError::Storage`].
    fn pairings(&self, account: Option<&ChannelAccount>) -> Result<Vec<Pairing>, ReadError>;

    /// # Errors
    /// [`ReadError::Storage`].
    fn is_paired(&self, account: &ChannelAccount, sender_id: &str) -> Result<bool, ReadError>;
}

impl dyn ChannelStore {
    /// The same store, for what it has of conversations.
    pub fn as_sessions(&self) -> &dyn SessionStore {
        self
    }

    /// Lets the account go. True where it was the caller's to let go.
    ///
    /// # Errors
    /// [`CommitError`]; it is safe to repeat.
    pub async fn release(
        &self,
        account: &ChannelAccount,
        fencing_token: u64,
        timeout: Duration,
    ) -> Result<bool, CommitError> {
        let command = ReleaseLease { account: account.as_str().to_owned(), fencing_token };
        match change(self.commit(Command::ReleaseLease(command), timeout).await?.value) {
            Ok(()) => Ok(true),
            Err(Unchanged::Stale | Unchanged::NotFound) => Ok(false),
            Err(other @ (Unchanged::Fenced | Unchanged::Conflict | Unchanged::Refused(_) | Unchanged::Other(_))) => {
                Err(unexpected("release a lease", other))
            }
        }
    }

    /// Stores where the owner stands with the platform.
    ///
    /// # Errors
    /// [`OwnerError`].
    pub async fn save_cursor(
        &self,
        account: &ChannelAccount,
        fencing_token: u64,
        data: String,
        timeout: Duration,
    ) -> Result<(), OwnerError> {
        let command = SaveCursor { account: account.as_str().to_owned(), fencing_token, data };
        owner(self.commit(Command::SaveCursor(command), timeout).await?.value)
    }

    /// Records which message shows the reply of a turn while it is written. False where the turn has ended, so that
    /// nothing was recorded.
    ///
    /// # Errors
    /// [`OwnerError`].
    pub async fn show_preview(
        &self,
        account: &ChannelAccount,
        fencing_token: u64,
        turn_id: &str,
        message_id: &str,
        timeout: Duration,
    ) -> Result<bool, OwnerError> {
        let command = ShowPreview {
            account: account.as_str().to_owned(),
            fencing_token,
            turn_id: turn_id.to_owned(),
            message_id: message_id.to_owned(),
        };
        let outcome = self.commit(Command::ShowPreview(command), timeout).await?.value;
        if matches!(outcome, Outcome::TurnEnded(_)) { Ok(false) } else { owner(outcome).map(|()| true) }
    }

    /// Whether a message that shows the reply of a turn may be sent: its record is likely to commit, as this did. False
    /// where the turn has ended.
    ///
    /// # Errors
    /// [`OwnerError`].
    pub async fn may_show_preview(
        &self,
        account: &ChannelAccount,
        fencing_token: u64,
        turn_id: &str,
        timeout: Duration,
    ) -> Result<bool, OwnerError> {
        self.show_preview(account, fencing_token, turn_id, "", timeout).await
    }

    /// Says what the owner, or an operator (token 0), did with an intent.
    ///
    /// # Errors
    /// [`OwnerError`].
    pub async fn update_intent(
        &self,
        account: &ChannelAccount,
        id: u64,
        fencing_token: u64,
        step: Step,
        timeout: Duration,
    ) -> Result<(), OwnerError> {
        let command = UpdateIntent { account: account.as_str().to_owned(), id, fencing_token, step: Some(step) };
        owner(self.commit(Command::UpdateIntent(command), timeout).await?.value)
    }
}

fn owner(outcome: Outcome) -> Result<(), OwnerError> {
    change(outcome).map_err(|unchanged| match unchanged {
        Unchanged::Fenced => OwnerError::Fenced,
        Unchanged::Conflict => OwnerError::Conflict,
        Unchanged::NotFound => OwnerError::NotFound,
        other @ (Unchanged::Stale | Unchanged::Refused(_) | Unchanged::Other(_)) => {
            unexpected("write for a channel account", other).into()
        }
    })
}

/// Why a command changed nothing.
#[derive(Debug)]
pub enum Unchanged {
    Fenced,
    Conflict,
    NotFound,
    Stale,
    Refused(String),
    /// Nothing that the command can have.
    Other(Box<Outcome>),
}

/// What a command did that answers with no more than that it was done.
///
/// # Errors
/// [`Unchanged`] says why it was not.
pub fn change(outcome: Outcome) -> Result<(), Unchanged> {
    match outcome {
        Outcome::Done(_) => Ok(()),
        Outcome::Fenced(_) => Err(Unchanged::Fenced),
        Outcome::Conflict(_) => Err(Unchanged::Conflict),
        Outcome::NotFound(_) => Err(Unchanged::NotFound),
        Outcome::Stale(_) => Err(Unchanged::Stale),
        Outcome::Refused(refused) => Err(Unchanged::Refused(refused.reason)),
        other @ (Outcome::Accepted(_)
        | Outcome::DuplicateTurn(_)
        | Outcome::KeyReused(_)
        | Outcome::QueueFull(_)
        | Outcome::TurnEnded(_)
        | Outcome::Appended(_)
        | Outcome::SessionReset(_)
        | Outcome::SessionDeleted(_)
        | Outcome::InstanceRegistered(_)
        | Outcome::InstanceTaken(_)
        | Outcome::Swept(_)
        | Outcome::ModelSet(_)
        | Outcome::Enqueued(_)
        | Outcome::Paired(_)
        | Outcome::SessionUpdated(_)) => Err(Unchanged::Other(Box::new(other))),
    }
}
