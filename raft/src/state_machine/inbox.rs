//! De-duplication: a write carries an external id, and a repetition gets the first answer.

use std::time::Duration;

use openclaw_proto::state::inbox_record::Answer as Stored;
use openclaw_proto::state::{InboxKey, InboxRecord};

use super::change::{Change, Halt};
use super::{Table, TableError, Tables, keys, limits};

/// How long a repetition is recognised, by the replicated clock: no shorter than any platform redelivers.
pub const INBOX_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// SHA-256.
const HASH_BYTES: usize = 32;

/// A command's inbox key, checked.
pub(super) struct Key<'a> {
    row: Vec<u8>,
    command: &'a InboxKey,
}

/// Whether the external id was used before.
#[expect(clippy::large_enum_variant, reason = "it lives for one match; a box would cost more")]
pub(super) enum Seen {
    Never,
    /// With the same body: this is what it did.
    Same(Stored),
    OtherBody,
}

impl<'a> Key<'a> {
    pub(super) fn parse(command: Option<&'a InboxKey>) -> Result<Self, Halt> {
        let Some(command) = command else { return Err(Halt::Refused("the inbox key is missing".to_owned())) };
        limits::name("inbox account", &command.account, limits::MAX_ACCOUNT_BYTES)?;
        limits::name("external id", &command.external_id, limits::MAX_EXTERNAL_ID_BYTES)?;
        let actual = command.body_hash.len();
        if actual != HASH_BYTES {
            return Err(Halt::Refused(format!("the body hash has {actual} bytes, not {HASH_BYTES}")));
        }
        Ok(Self { row: keys::inbox(&command.account, &command.external_id), command })
    }

    pub(super) fn seen<T: Tables + ?Sized>(&self, change: &Change<'_, T>) -> Result<Seen, TableError> {
        let Some(record) = change.inbox_record(&self.row)? else { return Ok(Seen::Never) };
        match record.answer {
            Some(answer) if record.body_hash == self.command.body_hash => Ok(Seen::Same(answer)),
            Some(_) | None => Ok(Seen::OtherBody),
        }
    }

    pub(super) fn record<T: Tables + ?Sized>(self, change: &mut Change<'_, T>, answer: Stored) {
        let record =
            InboxRecord { body_hash: self.command.body_hash.clone(), created_ms: change.now_ms, answer: Some(answer) };
        change.put(Table::Inbox, self.row, &record);
    }
}
