//! Every refusal, in Telegram's own words.

use serde_json::{Value, json};

use super::ids::ChatId;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Error {
    /// A token of nobody.
    Unauthorized,
    /// Not a token at all.
    InvalidToken,
    /// Not a path of the Bot API.
    NotFound,
    MethodNotFound,
    TooLarge,
    /// What follows `Bad Request: `.
    BadRequest(String),
    /// What follows `Forbidden: `.
    Forbidden(&'static str),
    /// What follows `Conflict: `.
    Conflict(&'static str),
    Migrated(ChatId),
    /// Whole seconds, as Telegram counts them.
    TooManyRequests(u32),
    /// A fault's.
    OnRequest(u16),
}

pub(super) fn bad_request<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::BadRequest(what.into()))
}

impl Error {
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::BadRequest(_) | Self::Migrated(_) => 400,
            Self::Unauthorized | Self::InvalidToken => 401,
            Self::Forbidden(_) => 403,
            Self::NotFound | Self::MethodNotFound => 404,
            Self::Conflict(_) => 409,
            Self::TooLarge => 413,
            Self::TooManyRequests(_) => 429,
            Self::OnRequest(status) => *status,
        }
    }

    pub(super) fn retry_after(&self) -> Option<u32> {
        if let Self::TooManyRequests(seconds) = self { Some(*seconds) } else { None }
    }

    fn description(&self) -> String {
        match self {
            Self::Unauthorized => "Unauthorized".into(),
            Self::InvalidToken => "Unauthorized: invalid token specified".into(),
            Self::NotFound => "Not Found".into(),
            Self::MethodNotFound => "Not Found: method not found".into(),
            Self::TooLarge => "Request Entity Too Large".into(),
            Self::BadRequest(what) => format!("Bad Request: {what}"),
            Self::Forbidden(what) => format!("Forbidden: {what}"),
            Self::Conflict(what) => format!("Conflict: {what}"),
            Self::Migrated(_) => "Bad Request: group chat was upgraded to a supergroup chat".into(),
            Self::TooManyRequests(seconds) => format!("Too Many Requests: retry after {seconds}"),
            Self::OnRequest(status) => {
                let status = axum::http::StatusCode::from_u16(*status).ok();
                status.and_then(|status| status.canonical_reason()).unwrap_or("Refused").into()
            }
        }
    }

    pub(super) fn body(&self) -> Value {
        let mut body = json!({"ok": false, "error_code": self.status(), "description": self.description()});
        match self {
            Self::Migrated(to) => body["parameters"] = json!({"migrate_to_chat_id": to.0}),
            Self::TooManyRequests(seconds) => body["parameters"] = json!({"retry_after": seconds}),
            Self::Unauthorized
            | Self::InvalidToken
            | Self::NotFound
            | Self::MethodNotFound
            | Self::TooLarge
            | Self::BadRequest(_)
            | Self::Forbidden(_)
            | Self::Conflict(_)
            | Self::OnRequest(_) => {}
        }
        body
    }
}
