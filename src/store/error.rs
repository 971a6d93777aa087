use std::time::Duration;

use openclaw_proto::http::ErrorCode;
use openclaw_proto::state::Turn;

/// Why a command has no outcome.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    #[error("no leader with a quorum within {waited:?}: {reason}")]
    NoQuorum { waited: Duration, reason: String },
    #[error("too many writes are waiting")]
    Busy,
    #[error("no acknowledgement within {waited:?}; the write may still commit")]
    EffectUnknown { waited: Duration },
    #[error("the store is shutting down")]
    Stopped,
    #[error("{reason}")]
    TooLarge { reason: String },
    /// The store answered with an outcome that this command cannot have: a bug, or a peer of another release.
    #[error("unexpected outcome of {command}: {outcome}")]
    Outcome { command: &'static str, outcome: String },
}

impl CommitError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoQuorum { .. } => ErrorCode::NoQuorum,
            Self::Busy => ErrorCode::Busy,
            Self::EffectUnknown { .. } => ErrorCode::EffectUnknown,
            Self::Stopped => ErrorCode::Draining,
            Self::TooLarge { .. } => ErrorCode::TooLarge,
            Self::Outcome { .. } => ErrorCode::Internal,
        }
    }

    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }

    pub fn effect_unknown(&self) -> bool {
        self.code().effect_unknown()
    }
}

/// Why a read has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    #[error("no leader with a quorum within {waited:?}: {reason}")]
    NoQuorum { waited: Duration, reason: String },
    #[error("too many reads are waiting")]
    Busy,
    #[error("this instance had not applied the asked-for state within {waited:?}")]
    Timeout { waited: Duration },
    #[error("the store cannot be read: {0}")]
    Storage(String),
}

impl ReadError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoQuorum { .. } => ErrorCode::NoQuorum,
            Self::Busy => ErrorCode::Busy,
            Self::Timeout { .. } => ErrorCode::Timeout,
            Self::Storage(_) => ErrorCode::Internal,
        }
    }

    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }

    /// A read has no effect.
    pub fn effect_unknown(&self) -> bool {
        false
    }
}

/// Why a message was not accepted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AcceptError {
    #[error("the idempotency key was used for another request")]
    KeyReused,
    #[error("{depth} messages of this session are waiting already")]
    QueueFull { depth: u32 },
    #[error("{reason}")]
    Refused { reason: String },
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl AcceptError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::KeyReused => ErrorCode::IdempotencyKeyReused,
            Self::QueueFull { .. } => ErrorCode::Busy,
            Self::Refused { .. } => ErrorCode::InvalidRequest,
            Self::Commit(error) => error.code(),
        }
    }

    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }

    pub fn effect_unknown(&self) -> bool {
        self.code().effect_unknown()
    }
}

/// Why a turn was not completed, failed or cancelled.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EndTurnError {
    #[error("fencing token {presented} is older than {current}")]
    Fenced { presented: u64, current: u64 },
    /// It had ended before; the row says how.
    #[error("turn {} has ended already", .0.id)]
    Ended(Box<Turn>),
    #[error("no such turn")]
    NotFound,
    #[error("{reason}")]
    Refused { reason: String },
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl EndTurnError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Fenced { .. } | Self::Ended(_) => ErrorCode::Conflict,
            Self::NotFound => ErrorCode::NotFound,
            Self::Refused { .. } => ErrorCode::InvalidRequest,
            Self::Commit(error) => error.code(),
        }
    }

    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }

    pub fn effect_unknown(&self) -> bool {
        self.code().effect_unknown()
    }
}

/// Why a session was not appended to, changed, reset or deleted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// Of an append it is the head, of an update the revision; `index` is that of the command that found it so.
    #[error("the session is at {actual}, not at {expected}")]
    Conflict { index: u64, expected: u64, actual: u64 },
    #[error("the idempotency key was used for another request")]
    KeyReused,
    #[error("no such session")]
    NotFound,
    #[error("{reason}")]
    Refused { reason: String },
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl WriteError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Conflict { .. } => ErrorCode::PreconditionFailed,
            Self::KeyReused => ErrorCode::IdempotencyKeyReused,
            Self::NotFound => ErrorCode::NotFound,
            Self::Refused { .. } => ErrorCode::InvalidRequest,
            Self::Commit(error) => error.code(),
        }
    }

    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }

    pub fn effect_unknown(&self) -> bool {
        self.code().effect_unknown()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lost_acknowledgement_leaves_the_effect_unknown() {
        let waited = Duration::from_secs(1);
        assert!(AcceptError::Commit(CommitError::EffectUnknown { waited }).effect_unknown());
        assert!(WriteError::Commit(CommitError::EffectUnknown { waited }).retryable());
        assert!(!EndTurnError::Commit(CommitError::NoQuorum { waited, reason: String::new() }).effect_unknown());
        assert!(AcceptError::Commit(CommitError::NoQuorum { waited, reason: String::new() }).retryable());
        assert!(AcceptError::QueueFull { depth: 3 }.retryable());
        assert!(!AcceptError::KeyReused.retryable());
        assert!(!WriteError::Conflict { index: 3, expected: 1, actual: 2 }.retryable());
    }
}
