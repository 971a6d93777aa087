//! Who calls: whoever has the token, or whoever may open the operator's socket.
//!
//! Without a token in the configuration everybody who can connect may call - the configuration then refuses to listen
//! on anything but loopback, and [`origin`](super::origin) keeps browsers' pages out.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{Gateway, Peer};

/// SHA-256 of the token. Hashes have one length, so that comparing them tells nothing about the token's.
#[derive(Clone)]
pub(super) struct Token([u8; 32]);

impl Token {
    pub(super) fn new(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    fn matches(&self, presented: &[u8]) -> bool {
        let presented: [u8; 32] = Sha256::digest(presented).into();
        self.0.ct_eq(&presented).into()
    }
}

/// Why a caller may not.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) message: &'static str,
    /// It presented something that might have been the token.
    pub(super) guessed: bool,
}

/// Whether a caller may see and do everything.
///
/// # Errors
/// [`Refusal`], with words for what is wrong.
pub(super) fn check(token: Option<&Token>, peer: Peer, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(token) = token else { return Ok(()) };
    if peer == Peer::Operator {
        return Ok(());
    }
    let unauthorized = |message| Err(Refusal { message, guessed: false });
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return unauthorized("the header Authorization: Bearer <token> is missing");
    };
    if values.next().is_some() {
        return unauthorized("there is more than one Authorization header");
    }
    match bearer(value) {
        Some(presented) if token.matches(presented) => Ok(()),
        Some(_) => Err(Refusal { message: "the token is not valid", guessed: true }),
        None => unauthorized("the Authorization header is not Bearer <token>"),
    }
}

fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let bytes = value.as_bytes();
    let (scheme, rest) = bytes.split_at_checked(7)?;
    (scheme.eq_ignore_ascii_case(b"bearer ") && !rest.is_empty()).then_some(rest)
}

/// Middleware of every route that needs the token.
pub(super) async fn require(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    match gateway.authorize(Peer::of(&request), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            let mut response = error.into_response();
            if response.status() == StatusCode::UNAUTHORIZED {
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn check(values: &[&str], allowed: bool) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        let peer = Peer::Tcp(SocketAddr::from(([127, 0, 0, 1], 1)));
        let result = super::check(Some(&Token::new("s3cret")), peer, &headers);
        assert_eq!(result.is_ok(), allowed, "{values:?}: {result:?}");
        assert!(super::check(Some(&Token::new("s3cret")), Peer::Operator, &headers).is_ok());
        assert!(super::check(None, peer, &headers).is_ok());
    }

    #[test]
    fn only_the_token_itself_is_the_token() {
        check(&["Bearer s3cret"], true);
        check(&["bearer s3cret"], true);
        check(&[], false);
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer  s3cret",
            "Bearer s3cret ",
            "Bearer S3CRET",
            "Bearer s3cre",
            "Bearer s3crets",
            "s3cret",
            "Basic s3cret",
            "Basic dXNlcjpzM2NyZXQ=",
            "Bearers3cret",
            "Bearer\ts3cret",
            "Token s3cret",
            "Bearer s3cret, Bearer s3cret",
        ] {
            check(&[wrong], false);
        }
        check(&["Bearer s3cret", "Bearer s3cret"], false);
        check(&["Bearer wrong", "Bearer s3cret"], false);
    }
}
