//! Limits on what a command may bring, checked once as it is applied. The edges of the process check the same limits
//! earlier, with better words; what gets past them is refused alike on every instance.

use super::change::Halt;

/// One message, of a user or of a model.
pub const MAX_TEXT_BYTES: usize = 1024 * 1024;
/// `<provider>/<model>`.
pub const MAX_MODEL_BYTES: usize = 256;
/// A name that people give to a session.
pub const MAX_SESSION_LABEL_BYTES: usize = 256;
pub const MAX_ERROR_CODE_BYTES: usize = 64;
/// Longer messages are cut, not refused: a turn that failed must be able to say so.
pub const MAX_ERROR_MESSAGE_BYTES: usize = 4096;
pub const MAX_ACCOUNT_BYTES: usize = 128;
pub const MAX_EXTERNAL_ID_BYTES: usize = 256;
/// What an HTTP request is called in log lines.
pub(super) const MAX_REQUEST_ID_BYTES: usize = 64;
/// Turns waiting in one session, whatever a command allows: they are all named in the session's row.
pub const MAX_QUEUED_TURNS: u32 = 1000;
/// Addresses, versions and boot ids of instances.
pub(super) const MAX_LABEL_BYTES: usize = 256;

/// Refuses a text of more than `limit` bytes.
pub(super) fn at_most(what: &str, text: &str, limit: usize) -> Result<(), Halt> {
    if text.len() > limit {
        return Err(Halt::Refused(format!("{what} has {} bytes; at most {limit} are allowed", text.len())));
    }
    Ok(())
}

/// Refuses a name that is empty, longer than `limit` bytes or has control characters; so no name holds the zero byte
/// that ends it inside a key.
pub(super) fn name(what: &str, text: &str, limit: usize) -> Result<(), Halt> {
    if text.is_empty() {
        return Err(Halt::Refused(format!("{what} must not be empty")));
    }
    at_most(what, text, limit)?;
    if text.chars().any(char::is_control) {
        return Err(Halt::Refused(format!("{what} has a control character")));
    }
    Ok(())
}

/// The longest start of `text` that has at most `limit` bytes and ends between characters.
pub(super) fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}
