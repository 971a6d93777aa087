use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What went wrong, in one word that HTTP, gRPC and the command line share.
///
/// Variants follow what a caller does next, not where in the code it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request breaks a rule; the message names the field and what would be right.
    InvalidRequest,
    Unauthorized,
    /// The browser page that sent it is not one of ours.
    ForbiddenOrigin,
    NotFound,
    MethodNotAllowed,
    /// `If-Match` did not match.
    PreconditionFailed,
    /// The idempotency key was used for another request.
    IdempotencyKeyReused,
    /// The turn cannot do this in its present state.
    Conflict,
    TooLarge,
    UnsupportedMediaType,
    /// A limit on waiting work, or on wrong tokens, is reached; certainly not applied.
    Busy,
    /// No quorum or no leader within the deadline; certainly not applied.
    NoQuorum,
    /// This instance is on its way out and found no other to hand the request to; certainly not applied.
    Draining,
    /// No answer within the deadline; it may still take effect, and the same idempotency key makes a retry safe.
    EffectUnknown,
    /// A request took longer than its deadline, without an effect.
    Timeout,
    /// Every model that was tried failed.
    ModelFailed,
    /// The turn was cancelled.
    Cancelled,
    /// The turn lost its runner too often.
    TurnAbandoned,
    /// A bug of ours; the request id finds it in the log.
    Internal,
}

impl ErrorCode {
    /// HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Unauthorized => 401,
            Self::ForbiddenOrigin => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::IdempotencyKeyReused | Self::Conflict | Self::Cancelled => 409,
            Self::PreconditionFailed => 412,
            Self::TooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Busy => 429,
            Self::Internal => 500,
            Self::ModelFailed | Self::TurnAbandoned => 502,
            Self::NoQuorum | Self::Draining => 503,
            Self::EffectUnknown | Self::Timeout => 504,
        }
    }

    /// The same request may succeed later, unchanged.
    pub fn retryable(self) -> bool {
        match self {
            Self::Busy
            | Self::NoQuorum
            | Self::Draining
            | Self::EffectUnknown
            | Self::Timeout
            | Self::ModelFailed
            | Self::TurnAbandoned => true,
            Self::InvalidRequest
            | Self::Unauthorized
            | Self::ForbiddenOrigin
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::PreconditionFailed
            | Self::IdempotencyKeyReused
            | Self::Conflict
            | Self::TooLarge
            | Self::UnsupportedMediaType
            | Self::Cancelled
            | Self::Internal => false,
        }
    }

    /// The request may have taken effect, or may still.
    pub fn effect_unknown(self) -> bool {
        self == Self::EffectUnknown
    }

    /// How long a client should wait before it repeats the request: the `Retry-After` header.
    pub fn retry_after(self) -> Option<Duration> {
        matches!(self, Self::Busy | Self::NoQuorum | Self::Draining).then_some(Duration::from_secs(1))
    }

    /// As in JSON: `no_quorum`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Unauthorized => "unauthorized",
            Self::ForbiddenOrigin => "forbidden_origin",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::PreconditionFailed => "precondition_failed",
            Self::IdempotencyKeyReused => "idempotency_key_reused",
            Self::Conflict => "conflict",
            Self::TooLarge => "too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::Busy => "busy",
            Self::NoQuorum => "no_quorum",
            Self::Draining => "draining",
            Self::EffectUnknown => "effect_unknown",
            Self::Timeout => "timeout",
            Self::ModelFailed => "model_failed",
            Self::Cancelled => "cancelled",
            Self::TurnAbandoned => "turn_abandoned",
            Self::Internal => "internal",
        }
    }

    /// The code of a stored text; one from a newer release reads as [`ErrorCode::Internal`].
    pub fn from_stored(text: &str) -> Self {
        serde_json::from_value(serde_json::Value::String(text.to_owned())).unwrap_or(Self::Internal)
    }
}

/// Every answer that is not 2xx.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    pub error: Error,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Error {
    pub code: ErrorCode,
    pub message: String,
    pub retryable: bool,
    pub request_id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_codes_read_back_as_written() {
        for code in [ErrorCode::NoQuorum, ErrorCode::ModelFailed, ErrorCode::TurnAbandoned, ErrorCode::Internal] {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
            assert_eq!(ErrorCode::from_stored(code.as_str()), code);
        }
        assert_eq!(ErrorCode::from_stored("from_the_future"), ErrorCode::Internal);
    }
}
