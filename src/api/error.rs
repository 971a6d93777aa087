//! One mapping from what went wrong to an HTTP answer.
//!
//! Handlers return an [`ApiError`]; it becomes a response without a body that carries a [`Problem`], and the
//! [`envelope`](super::envelope) writes the body, since it alone knows the request id and which style the path speaks.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, StatusCode};
use openclaw_proto::http::{Error, ErrorBody, ErrorCode};
use openclaw_proto::ids::RequestId;
use serde::Serialize;

use super::chat::INDEX_HEADER;
use crate::sessions::commands::CommandError;
use crate::sessions::follow::FollowError;
use crate::sessions::router::RouteError;
use crate::store::{AcceptError, EndTurnError, ReadError, WriteError};

/// What went wrong, in the words of the API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: ErrorCode,
    pub message: String,
    /// Of the committed command that was refused, where one was.
    pub index: Option<u64>,
    /// How long to wait before the next attempt, where that is not what the code says.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), index: None, retry_after: None }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }

    pub fn not_found(what: &str) -> Self {
        Self::new(ErrorCode::NotFound, format!("no such {what}"))
    }

    pub(super) fn no_answer(waited: Duration) -> Self {
        Self::new(ErrorCode::Timeout, format!("no answer within {waited:?}"))
    }
}

macro_rules! from_family {
    ($($family:ty),+) => {
        $(impl From<$family> for ApiError {
            fn from(error: $family) -> Self {
                Self::new(error.code(), error.to_string())
            }
        })+
    };
}

from_family!(AcceptError, EndTurnError, ReadError, FollowError, CommandError);

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        let index = match &error {
            WriteError::Conflict { index, .. } => Some(*index),
            WriteError::KeyReused | WriteError::NotFound | WriteError::Refused { .. } | WriteError::Commit(_) => None,
        };
        Self { index, ..Self::new(error.code(), error.to_string()) }
    }
}

impl From<RouteError> for ApiError {
    fn from(error: RouteError) -> Self {
        Self::invalid(error.to_string())
    }
}

/// Rides in a response's extensions from the handler to the envelope.
#[derive(Debug, Clone)]
pub(super) struct Problem(pub(super) ApiError);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if let Some(after) = self.retry_after.or(self.code.retry_after()) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        if let Some(index) = self.index {
            response.headers_mut().insert(INDEX_HEADER, HeaderValue::from(index));
        }
        response.extensions_mut().insert(Problem(self));
        response
    }
}

/// The body of an error, in the style of the path's API.
pub(super) fn body(error: &ApiError, request_id: &RequestId, openai: bool) -> (HeaderValue, Vec<u8>) {
    let bytes = if openai {
        serde_json::to_vec(&OpenAiErrorBody { error: openai_error(error) })
    } else {
        serde_json::to_vec(&ErrorBody {
            error: Error {
                code: error.code,
                message: error.message.clone(),
                retryable: error.code.retryable(),
                request_id: request_id.as_str().to_owned(),
            },
        })
    };
    // Texts and enums always serialize.
    (HeaderValue::from_static("application/json"), bytes.unwrap_or_default())
}

/// Puts an error's body into its response; which error it is, if it is one.
pub(super) fn render(response: &mut Response, request_id: &RequestId, openai: bool) -> Option<ErrorCode> {
    let Problem(error) = response.extensions_mut().remove::<Problem>()?;
    if openai && !may_be_sent_again(error.code) {
        response.headers_mut().insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    let (content_type, bytes) = body(&error, request_id, openai);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    *response.body_mut() = Body::from(bytes);
    Some(error.code)
}

/// OpenAI's clients repeat what failed with most codes, by themselves and without a key, unless this header says `false`.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Whether a repetition without a key says nothing twice: the message of what is refused here was not committed.
fn may_be_sent_again(code: ErrorCode) -> bool {
    match code {
        ErrorCode::ModelFailed
        | ErrorCode::TurnAbandoned
        | ErrorCode::EffectUnknown
        | ErrorCode::Timeout
        | ErrorCode::Cancelled
        | ErrorCode::IdempotencyKeyReused => false,
        ErrorCode::InvalidRequest
        | ErrorCode::NotFound
        | ErrorCode::MethodNotAllowed
        | ErrorCode::PreconditionFailed
        | ErrorCode::Conflict
        | ErrorCode::TooLarge
        | ErrorCode::UnsupportedMediaType
        | ErrorCode::Unauthorized
        | ErrorCode::ForbiddenOrigin
        | ErrorCode::Busy
        | ErrorCode::NoQuorum
        | ErrorCode::Draining
        | ErrorCode::Internal => true,
    }
}

/// An error as OpenAI's clients read it.
#[derive(Debug, Serialize)]
pub(super) struct OpenAiErrorBody {
    pub(super) error: OpenAiError,
}

#[derive(Debug, Serialize)]
pub(super) struct OpenAiError {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'static str>,
    code: &'static str,
}

pub(super) fn openai_error(error: &ApiError) -> OpenAiError {
    let kind = match error.code {
        ErrorCode::InvalidRequest
        | ErrorCode::NotFound
        | ErrorCode::MethodNotAllowed
        | ErrorCode::PreconditionFailed
        | ErrorCode::IdempotencyKeyReused
        | ErrorCode::Conflict
        | ErrorCode::Cancelled
        | ErrorCode::TooLarge
        | ErrorCode::UnsupportedMediaType => "invalid_request_error",
        ErrorCode::Unauthorized => "authentication_error",
        ErrorCode::ForbiddenOrigin => "permission_error",
        ErrorCode::Busy => "rate_limit_error",
        ErrorCode::NoQuorum
        | ErrorCode::Draining
        | ErrorCode::EffectUnknown
        | ErrorCode::Timeout
        | ErrorCode::ModelFailed
        | ErrorCode::TurnAbandoned
        | ErrorCode::Internal => "server_error",
    };
    OpenAiError { message: error.message.clone(), kind, param: None, code: error.code.as_str() }
}
