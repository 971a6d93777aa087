//! Codes with which the gateway closes.
//!
//! Source: discord-api-docs, topics/opcodes-and-status-codes, "Gateway close event codes".

pub const UNKNOWN: u16 = 4000;
pub const UNKNOWN_OPCODE: u16 = 4001;
pub const DECODE: u16 = 4002;
pub const NOT_AUTHENTICATED: u16 = 4003;
pub const AUTHENTICATION_FAILED: u16 = 4004;
pub const ALREADY_AUTHENTICATED: u16 = 4005;
pub const INVALID_SEQ: u16 = 4007;
pub const RATE_LIMITED: u16 = 4008;
pub const SESSION_TIMED_OUT: u16 = 4009;
pub const INVALID_SHARD: u16 = 4010;
pub const INVALID_VERSION: u16 = 4012;
pub const INVALID_INTENTS: u16 = 4013;
pub const DISALLOWED_INTENTS: u16 = 4014;

/// Whether the session is over once the gateway has closed its connection with `code`.
pub(super) fn ends_session(code: u16) -> bool {
    matches!(code, 4004 | 4007 | 4009..=4014)
}
