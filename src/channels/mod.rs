//! Channels: what turns a platform's messages into ours, and committed replies into a platform's.
//!
//! A [`Channel`] is one bot account on one platform. It has three parts, each its own file: `parse` (bytes to message,
//! pure), `render` (reply to the pieces that the platform takes, pure) and `client` (the calls). It knows neither sessions
//! nor the store: what it receives it hands to an [`Inbox`], and it may tell the platform that a message has arrived only
//! after the inbox has taken it. What it sends was committed before.
//!
//! Whoever polls or holds a connection does so for a [`Tenure`]: the time in which this instance owns the account's
//! lease. Nothing may be sent or asked of the platform after its end, so every call is bounded by it.

mod delivery;
pub mod discord;
pub mod elsewhere;
mod guard;
pub mod health;
pub mod intake;
pub mod outlet;
pub mod policy;
pub mod supervisor;
pub mod telegram;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod writing;

use std::time::Duration;

use futures::future::BoxFuture;
use openclaw_proto::ids::ChannelAccount;
use openclaw_proto::state::Turn;
use tokio_util::sync::CancellationToken;

use crate::cluster::validity::Stretch;
use crate::message::{InboundMessage, Piece, ReplyAddress};

/// The time in which this instance owns an account's lease.
#[derive(Debug, Clone)]
pub struct Tenure {
    /// Grows with each new owner; what is written for the account carries it.
    pub fencing_token: u64,
    /// Cancelled when this instance owns the account no more, or is about to lose it: calls under way are dropped.
    pub ended: CancellationToken,
    /// None in tests of a channel alone.
    stretch: Option<Stretch>,
}

impl Tenure {
    pub fn new(fencing_token: u64, ended: CancellationToken, stretch: Stretch) -> Self {
        Self { fencing_token, ended, stretch: Some(stretch) }
    }

    /// One that ends only when it is told to.
    #[cfg(test)]
    pub fn endless(fencing_token: u64) -> Self {
        Self { fencing_token, ended: CancellationToken::new(), stretch: None }
    }

    /// Whether it is over by the clock, told or not: for the moment after a pause of the process. Asked right before
    /// anything is sent to the platform.
    pub fn is_over(&self) -> bool {
        self.ended.is_cancelled() || self.stretch.as_ref().is_some_and(Stretch::is_over)
    }
}

/// Takes what a channel receives; written under the tenure's fencing token.
pub trait Inbox: Send + Sync {
    /// Returns once each of `messages` is durable, or was before, or is not to be answered. Only then may the platform be
    /// told that they have arrived.
    ///
    /// # Errors
    /// [`InboxError`]: the platform must deliver them again.
    fn take(&self, messages: Vec<InboundMessage>) -> BoxFuture<'_, Result<(), InboxError>>;

    /// What the owner before this one stored last, on whichever instance.
    ///
    /// # Errors
    /// [`InboxError`] when the state cannot be read now.
    fn cursor(&self) -> BoxFuture<'_, Result<Option<String>, InboxError>>;

    /// Stores where the channel stands with its platform, for itself and for the next owner. At most 4 KiB.
    ///
    /// # Errors
    /// [`InboxError`]: the old one stands.
    fn save_cursor(&self, cursor: String) -> BoxFuture<'_, Result<(), InboxError>>;
}

/// Why an inbox did not take something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InboxError {
    /// Somebody else owns the account now.
    #[error("another instance owns the account")]
    Fenced,
    #[error("not stored, try again: {0}")]
    Unavailable(String),
}

/// Why a channel stopped to receive. Its supervisor decides what follows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// The tenure has ended.
    #[error("the lease is over")]
    Ended,
    /// Somebody who is not of this cluster receives with the same token.
    #[error("another program receives with the same bot token: {0}")]
    ForeignPoller(String),
    /// Nothing but another configuration helps: a wrong token, a missing permission.
    #[error("{0}")]
    Refused(String),
    /// The network, the platform, or the store; worth another try.
    #[error("{reason}")]
    Failed { reason: String, retry_after: Option<Duration> },
}

/// What a channel tells of itself while it receives. Shown by `openclaw channels status`, and never more than that.
pub trait Reporter: Send + Sync {
    /// The platform answers.
    fn connected(&self);
    /// It still does, though there is nothing new: a poll that found nothing, the answer to a heartbeat.
    fn heard(&self);
    fn disconnected(&self, reason: &str);
    /// Something came in, of whatever kind.
    fn received(&self);
}

/// A piece that the platform has taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The platform's id of the new message.
    pub message_id: String,
}

/// Why a piece was not sent, or not known to be. Variants follow what the outbox does next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The platform refuses this message for good: blocked, no such chat. Nothing was sent.
    #[error("{0}")]
    Refused(String),
    /// Nothing was sent; not before `after` again. `asked`: the platform asked for that pause, as it does of all; else it
    /// could not be reached, or does not want this bot.
    #[error("{reason}")]
    Later { reason: String, after: Duration, asked: bool },
    /// It may have been sent: no answer came.
    #[error("{0}")]
    Unknown(String),
}

/// What of a call makes it recognisable when it is repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendKey {
    /// Unique among the account's intents, the same in every attempt.
    pub intent_id: u64,
    /// Counts the pieces of the intent from 0.
    pub piece: u32,
}

impl SendKey {
    /// Of the message that shows a turn's reply while it is written. No intent has the number: those that one command
    /// makes count up from its log index, and never so far.
    pub fn preview(turn: &Turn) -> Self {
        Self { intent_id: turn.fencing_token << 16 | 0xffff, piece: 0 }
    }
}

/// One bot account on one platform.
pub trait Channel: Send + Sync + 'static {
    fn account(&self) -> &ChannelAccount;

    /// Receives until the tenure ends, or something stands in the way.
    fn receive<'a>(
        &'a self,
        tenure: &'a Tenure,
        inbox: &'a dyn Inbox,
        reporter: &'a dyn Reporter,
    ) -> BoxFuture<'a, ReceiveError>;

    /// Cuts a reply (Markdown, as models write it) into what the platform takes in one call each; at least one piece.
    fn render(&self, text: &str) -> Vec<Piece>;

    /// Sends one piece, unless `tenure` is over by the time it leaves. Dropping the future may leave it sent or not.
    ///
    /// # Errors
    /// [`SendError`] says which.
    fn send<'a>(
        &'a self,
        tenure: &'a Tenure,
        to: &'a ReplyAddress,
        piece: &'a Piece,
        key: &'a SendKey,
    ) -> BoxFuture<'a, Result<Sent, SendError>>;

    /// Replaces what an earlier message says, or finds that it says so already. Safe to repeat.
    ///
    /// # Errors
    /// [`SendError`]; refused: that message is there no more, or is not to be edited.
    fn edit<'a>(
        &'a self,
        tenure: &'a Tenure,
        to: &'a ReplyAddress,
        message_id: &'a str,
        piece: &'a Piece,
    ) -> BoxFuture<'a, Result<(), SendError>>;

    /// How often a message in this chat may be edited while its reply is written.
    fn preview_every(&self, to: &ReplyAddress) -> Duration;

    /// Shows for some seconds that a reply is being written. Failing is of no consequence.
    fn typing<'a>(&'a self, tenure: &'a Tenure, to: &'a ReplyAddress) -> BoxFuture<'a, ()>;
}
