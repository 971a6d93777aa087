//! The one place where this crate reads the time of day: commands carry it from here into the state machine.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix time in milliseconds.
#[expect(clippy::disallowed_methods, reason = "the leader stamps commands with it; nothing else may ask")]
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
