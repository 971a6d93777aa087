//! What handlers take out of requests: bodies, queries, names and headers, each checked once, with words that say what
//! is wrong and where.

use std::time::Duration;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, IF_MATCH};
use http::request::Parts;
use http_body_util::BodyExt;
use openclaw_proto::http::{ErrorCode, IDEMPOTENCY_KEY, MIN_INDEX};
use openclaw_proto::ids::{IdempotencyKey, SessionKey, TurnId};
use openclaw_proto::state::InboxKey;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::Gateway;
use super::error::ApiError;
use crate::store::Consistency;

/// The inbox account of everything that comes over HTTP.
pub(super) const HTTP_ACCOUNT: &str = "http";

/// A JSON body.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Gateway> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, gateway: &Gateway) -> Result<Self, ApiError> {
        check_media_type(request.headers())?;
        let limits = gateway.limits();
        let bytes = read_body(request, limits.body_bytes.as_usize(), limits.request).await?;
        parse(&bytes).map(Self)
    }
}

/// A body as it came, for whoever checks a signature or a secret before reading it.
pub(super) struct Raw(pub(super) Bytes);

impl FromRequest<Gateway> for Raw {
    type Rejection = ApiError;

    async fn from_request(request: Request, gateway: &Gateway) -> Result<Self, ApiError> {
        let limits = gateway.limits();
        read_body(request, limits.body_bytes.as_usize(), limits.request).await.map(Self)
    }
}

fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let unsupported = |message: &str| Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
    let Some(given) = single(headers, CONTENT_TYPE.as_str())? else {
        return unsupported("the header Content-Type: application/json is missing");
    };
    let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let json = essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"));
    if !json {
        return unsupported("the body must be application/json");
    }
    match single(headers, CONTENT_ENCODING.as_str())? {
        None => Ok(()),
        Some(encoding) if encoding.eq_ignore_ascii_case("identity") => Ok(()),
        Some(_) => unsupported("the body must not be compressed"),
    }
}

async fn read_body(request: Request, limit: usize, deadline: Duration) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::new(ErrorCode::TooLarge, format!("the body is larger than {limit} bytes"));
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let mut body = request.into_body();
    let read = async {
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ApiError::invalid(format!("the body broke off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes.freeze())
    };
    timeout(deadline, read)
        .await
        .map_err(|_| ApiError::new(ErrorCode::Timeout, format!("the body did not arrive within {deadline:?}")))?
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { String::new() } else { format!("field {path:?}: ") };
        ApiError::invalid(format!("the body is not what it should be: {field}{}", error.inner()))
    })?;
    json.end().map_err(|error| ApiError::invalid(format!("the body goes on after its JSON value: {error}")))?;
    Ok(value)
}

/// A query string; unknown parameters are refused by the type.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(QueryRejection::FailedToDeserializeQueryString(error)) => {
                Err(ApiError::invalid(format!("query: {}", deepest(&error))))
            }
            Err(error) => Err(ApiError::invalid(format!("query: {error}"))),
        }
    }
}

/// The one path parameter of a route, decoded.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(PathRejection::FailedToDeserializePathParams(error)) => {
                Err(ApiError::invalid(format!("path: {}", error.body_text())))
            }
            Err(error) => Err(ApiError::invalid(format!("path: {error}"))),
        }
    }
}

impl Name {
    /// As a key to read: any that can exist.
    ///
    /// # Errors
    /// `invalid_request`.
    pub(super) fn session_key(&self) -> Result<SessionKey, ApiError> {
        SessionKey::parse(self.0.trim().to_lowercase()).map_err(|error| ApiError::invalid(error.to_string()))
    }

    /// As a key to write under: not one that the gateway keeps for itself.
    ///
    /// # Errors
    /// `invalid_request`.
    pub(super) fn session_key_to_write(&self) -> Result<SessionKey, ApiError> {
        SessionKey::from_caller(&self.0).map_err(|error| ApiError::invalid(error.to_string()))
    }

    /// # Errors
    /// `invalid_request`.
    pub(super) fn turn_id(&self) -> Result<TurnId, ApiError> {
        TurnId::parse(self.0.as_str()).map_err(|error| ApiError::invalid(error.to_string()))
    }
}

fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// The text of a header that may come once.
///
/// # Errors
/// `invalid_request` for a repeated header and for one that is not visible ASCII.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::invalid(format!("there is more than one {name} header")));
    }
    match value.to_str() {
        Ok(text) => Ok(Some(text.trim())),
        Err(_) => Err(ApiError::invalid(format!("the {name} header has characters outside of ASCII"))),
    }
}

/// `?consistency=`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Reads {
    #[default]
    Linearizable,
    Stale,
}

/// How a read is to be done. A wanted index needs no quorum: this instance waits until it has applied it.
///
/// # Errors
/// `invalid_request` for an index that is no number.
pub(super) fn consistency(headers: &HeaderMap, reads: Option<Reads>) -> Result<Consistency, ApiError> {
    if let Some(text) = single(headers, MIN_INDEX)? {
        let index = text
            .parse()
            .map_err(|_| ApiError::invalid(format!("the {MIN_INDEX} header is not a log index: {text:?}")))?;
        return Ok(Consistency::AtLeast(index));
    }
    Ok(match reads.unwrap_or_default() {
        Reads::Linearizable => Consistency::Linearizable,
        Reads::Stale => Consistency::Stale,
    })
}

/// `If-Match`: the head, or the revision, that the caller has seen.
///
/// # Errors
/// `invalid_request` for anything but one number, with or without quotes.
pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(text) = single(headers, IF_MATCH.as_str())? else { return Ok(None) };
    let bare = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    match bare.parse() {
        Ok(head) => Ok(Some(head)),
        Err(_) => Err(ApiError::invalid(format!("the If-Match header is not a number: {text:?}"))),
    }
}

/// Names a write: the caller's idempotency key, or a random one where nothing will be repeated. The hash covers what
/// was asked for as it was understood, so that spacing and the order of fields make no difference.
///
/// # Errors
/// `invalid_request` for a key that is none.
pub(super) fn inbox_key(headers: &HeaderMap, action: &str, body: &impl Serialize) -> Result<InboxKey, ApiError> {
    let key = match single(headers, IDEMPOTENCY_KEY)? {
        Some(text) => IdempotencyKey::parse(text).map_err(|error| ApiError::invalid(error.to_string()))?,
        None => IdempotencyKey::random(),
    };
    let canonical = serde_json::to_vec(body)
        .map_err(|error| ApiError::new(ErrorCode::Internal, format!("the request cannot be written back: {error}")))?;
    let mut hash = Sha256::new();
    hash.update(action.as_bytes());
    hash.update([0]);
    hash.update(&canonical);
    Ok(InboxKey {
        account: HTTP_ACCOUNT.to_owned(),
        external_id: key.into(),
        body_hash: Bytes::copy_from_slice(&hash.finalize()),
    })
}

#[cfg(test)]
mod tests {
    use openclaw_proto::http::ChatRequest;

    use super::*;

    fn message(body: &str) -> String {
        parse::<ChatRequest>(body.as_bytes()).unwrap_err().message
    }

    #[test]
    fn errors_name_the_field_and_the_place() {
        let wrong_type = message("{\n  \"message\": 5}");
        assert!(wrong_type.contains("\"message\"") && wrong_type.contains("line 2"), "{wrong_type}");
        let unknown = message(r#"{"message":"x","sesionKey":"y"}"#);
        assert!(unknown.contains("sesionKey") && unknown.contains("sessionKey"), "{unknown}");
        assert!(message("{").contains("line 1 column 1"), "{}", message("{"));
        assert!(message("{}").contains("missing field `message`"));
        assert!(message(r#"{"message":"x"} x"#).contains("after"));
    }

    #[test]
    fn the_body_hash_depends_on_what_is_asked_not_on_how_it_is_written() {
        let mut headers = HeaderMap::new();
        headers.insert(IDEMPOTENCY_KEY, "k".parse().unwrap());
        let hash = |action: &str, body: &str| {
            inbox_key(&headers, action, &parse::<ChatRequest>(body.as_bytes()).unwrap()).unwrap().body_hash
        };
        let first = hash("chat", r#"{"message":"x","user":"u"}"#);
        assert_eq!(first, hash("chat", r#"{ "user": "u", "message": "\u0078" }"#));
        assert_ne!(first, hash("chat", r#"{"message":"x"}"#));
        assert_ne!(first, hash("other", r#"{"message":"x","user":"u"}"#));
    }

    #[test]
    fn heads_may_be_quoted() {
        let check = |text: &str, expected: Result<Option<u64>, ()>| {
            let mut headers = HeaderMap::new();
            headers.insert(IF_MATCH, text.parse().unwrap());
            assert_eq!(if_match(&headers).map_err(|_| ()), expected, "{text}");
        };
        check("5", Ok(Some(5)));
        check("\"5\"", Ok(Some(5)));
        for bad in ["", "*", "-1", "W/\"5\"", "\"5", "5, 6", "99999999999999999999999"] {
            check(bad, Err(()));
        }
    }
}
