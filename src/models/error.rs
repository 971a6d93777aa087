use std::fmt;
use std::time::Duration;

/// Why a provider gave no answer, or only a part of one. Each names the provider and what it said, without secrets.
///
/// Variants follow what the caller does next: wait and repeat, ask another model, or tell a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The key is missing, wrong or out of money: a person must act.
    #[error("{provider} refuses our credentials: {said}")]
    Unauthorized { provider: String, said: String },
    #[error("{provider} has no model {model:?}: {said}")]
    NotFound { provider: String, model: String, said: String },
    /// The provider understood the request and will never accept it.
    #[error("{provider} refuses the request: {said}")]
    Invalid { provider: String, said: String },
    #[error("{provider} limits our rate: {said}")]
    RateLimited { provider: String, said: String, retry_after: Option<Duration> },
    #[error("{provider} is overloaded: {said}")]
    Overloaded { provider: String, said: String, retry_after: Option<Duration> },
    /// Not reached, or broken on its side.
    #[error("{provider} is unavailable: {said}")]
    Unavailable { provider: String, said: String },
    #[error("{provider} gave no {phase} within {waited:?}")]
    Timeout { provider: String, phase: Phase, waited: Duration },
    /// What came is not the protocol that was expected.
    #[error("{provider} gave an answer that is not understood: {said}")]
    BadAnswer { provider: String, said: String },
    /// The answer broke off after a part of it had been handed on.
    #[error("{provider} broke off its answer: {said}")]
    Interrupted { provider: String, said: String },
    /// As many requests as allowed wait for this provider already; it was not asked.
    #[error("{waiting} requests wait for {provider} already")]
    Busy { provider: String, waiting: usize },
}

/// What a provider was too slow with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Connection,
    FirstByte,
    NextByte,
    WholeAnswer,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connection => "connection",
            Self::FirstByte => "first byte",
            Self::NextByte => "next byte",
            Self::WholeAnswer => "complete answer",
        })
    }
}

impl Error {
    /// The same provider may answer the same request soon, and none of an answer has been handed on.
    pub fn retryable(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Overloaded { .. } | Self::Unavailable { .. } => true,
            // One that thinks for long would think as long again, and be paid for again.
            Self::Timeout { phase, .. } => *phase == Phase::Connection,
            Self::Unauthorized { .. }
            | Self::NotFound { .. }
            | Self::Invalid { .. }
            | Self::BadAnswer { .. }
            | Self::Interrupted { .. }
            | Self::Busy { .. } => false,
        }
    }

    /// How long the provider asked us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Overloaded { retry_after, .. } => *retry_after,
            Self::Unauthorized { .. }
            | Self::NotFound { .. }
            | Self::Invalid { .. }
            | Self::Unavailable { .. }
            | Self::Timeout { .. }
            | Self::BadAnswer { .. }
            | Self::Interrupted { .. }
            | Self::Busy { .. } => None,
        }
    }

    pub fn provider(&self) -> &str {
        match self {
            Self::Unauthorized { provider, .. }
            | Self::NotFound { provider, .. }
            | Self::Invalid { provider, .. }
            | Self::RateLimited { provider, .. }
            | Self::Overloaded { provider, .. }
            | Self::Unavailable { provider, .. }
            | Self::Timeout { provider, .. }
            | Self::BadAnswer { provider, .. }
            | Self::Interrupted { provider, .. }
            | Self::Busy { provider, .. } => provider,
        }
    }

    /// The same failure, met after a part of the answer had been handed on.
    pub(crate) fn after_output(self) -> Self {
        match self {
            Self::Interrupted { .. } => self,
            Self::Unauthorized { .. }
            | Self::NotFound { .. }
            | Self::Invalid { .. }
            | Self::RateLimited { .. }
            | Self::Overloaded { .. }
            | Self::Unavailable { .. }
            | Self::Timeout { .. }
            | Self::BadAnswer { .. }
            | Self::Busy { .. } => Self::Interrupted { provider: self.provider().to_owned(), said: self.to_string() },
        }
    }
}
