//! Commands as bytes, and their names in logs and metrics. What they mean is in [`crate::state_machine`].

use openclaw_proto::state::{Command, command, outcome};
use prost::Message;

/// The longest encoded command: one text of the greatest length, and room for all that surrounds it.
pub const MAX_COMMAND_BYTES: usize = 2 * 1024 * 1024;

/// Why bytes and a command do not fit together.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CommandError {
    #[error("the command has {actual} bytes; at most {MAX_COMMAND_BYTES} are allowed")]
    TooLarge { actual: usize },
    #[error("the bytes are no command: {0}")]
    Malformed(#[from] prost::DecodeError),
}

/// The bytes of a command, as they stand in the log and travel to the leader.
///
/// # Errors
/// [`CommandError::TooLarge`]: nothing larger enters the log.
pub fn encode(command: &Command) -> Result<Vec<u8>, CommandError> {
    check_size(command.encoded_len())?;
    Ok(command.encode_to_vec())
}

/// The command that the bytes hold. One of a kind that only a later release knows has no kind here.
///
/// # Errors
/// [`CommandError`] when the bytes are too many or no command.
pub fn decode(bytes: &[u8]) -> Result<Command, CommandError> {
    check_size(bytes.len())?;
    Ok(Command::decode(bytes)?)
}

fn check_size(actual: usize) -> Result<(), CommandError> {
    if actual > MAX_COMMAND_BYTES { Err(CommandError::TooLarge { actual }) } else { Ok(()) }
}

/// A command's name: the field name in state.proto.
pub fn kind_name(kind: &command::Kind) -> &'static str {
    match kind {
        command::Kind::Accept(_) => "accept",
        command::Kind::Complete(_) => "complete",
        command::Kind::Fail(_) => "fail",
        command::Kind::Cancel(_) => "cancel",
        command::Kind::AppendEntry(_) => "append_entry",
        command::Kind::ResetSession(_) => "reset_session",
        command::Kind::DeleteSession(_) => "delete_session",
        command::Kind::RegisterInstance(_) => "register_instance",
        command::Kind::RenewInstance(_) => "renew_instance",
        command::Kind::ExpireInstance(_) => "expire_instance",
        command::Kind::SetDraining(_) => "set_draining",
        command::Kind::ForgetInstance(_) => "forget_instance",
        command::Kind::Sweep(_) => "sweep",
        command::Kind::ReleaseLease(_) => "release_lease",
        command::Kind::MoveLease(_) => "move_lease",
        command::Kind::PlaceLeases(_) => "place_leases",
        command::Kind::SaveCursor(_) => "save_cursor",
        command::Kind::SetModel(_) => "set_model",
        command::Kind::Enqueue(_) => "enqueue",
        command::Kind::UpdateIntent(_) => "update_intent",
        command::Kind::RequestPairing(_) => "request_pairing",
        command::Kind::ApprovePairing(_) => "approve_pairing",
        command::Kind::RemovePairing(_) => "remove_pairing",
        command::Kind::ShowPreview(_) => "show_preview",
        command::Kind::UpdateSession(_) => "update_session",
    }
}

/// An outcome's name: the field name in state.proto.
pub fn outcome_name(kind: &outcome::Kind) -> &'static str {
    match kind {
        outcome::Kind::Accepted(_) => "accepted",
        outcome::Kind::DuplicateTurn(_) => "duplicate_turn",
        outcome::Kind::KeyReused(_) => "key_reused",
        outcome::Kind::QueueFull(_) => "queue_full",
        outcome::Kind::TurnEnded(_) => "turn_ended",
        outcome::Kind::Fenced(_) => "fenced",
        outcome::Kind::NotFound(_) => "not_found",
        outcome::Kind::Appended(_) => "appended",
        outcome::Kind::Conflict(_) => "conflict",
        outcome::Kind::SessionReset(_) => "session_reset",
        outcome::Kind::SessionDeleted(_) => "session_deleted",
        outcome::Kind::InstanceRegistered(_) => "instance_registered",
        outcome::Kind::InstanceTaken(_) => "instance_taken",
        outcome::Kind::Done(_) => "done",
        outcome::Kind::Stale(_) => "stale",
        outcome::Kind::Swept(_) => "swept",
        outcome::Kind::Refused(_) => "refused",
        outcome::Kind::ModelSet(_) => "model_set",
        outcome::Kind::Enqueued(_) => "enqueued",
        outcome::Kind::Paired(_) => "paired",
        outcome::Kind::SessionUpdated(_) => "session_updated",
    }
}

#[cfg(test)]
mod tests {
    use openclaw_proto::state::{Accept, Sweep};

    use super::*;

    #[test]
    fn a_command_survives_its_bytes() {
        let command = Command { now_ms: 5, kind: Some(command::Kind::Sweep(Sweep { max_rows: 7 })) };
        assert_eq!(decode(&encode(&command).unwrap()), Ok(command));
    }

    #[test]
    fn what_is_too_large_neither_enters_nor_leaves_the_log() {
        let text = "x".repeat(MAX_COMMAND_BYTES);
        let kind = Some(command::Kind::Accept(Accept { text, ..Accept::default() }));
        let command = Command { now_ms: 5, kind };
        assert!(matches!(encode(&command), Err(CommandError::TooLarge { .. })));
        assert!(matches!(decode(&command.encode_to_vec()), Err(CommandError::TooLarge { .. })));
    }

    #[test]
    fn bytes_that_are_no_command_are_named_so() {
        assert!(matches!(decode(&[0xff; 3]), Err(CommandError::Malformed(_))));
        // Field 99, which no release has used yet: a command of unknown kind, for the state machine to refuse.
        assert_eq!(decode(&[0x9a, 0x06, 0x00]), Ok(Command { now_ms: 0, kind: None }));
    }
}
