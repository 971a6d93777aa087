//! What comes by webhook: first its secret, then its body. Pure, and the same on every instance.

use serde_json::Value;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::parse;
use crate::message::InboundMessage;

/// The header that carries the secret.
pub const SECRET_HEADER: &str = "x-telegram-bot-api-secret-token";

/// What Telegram proves itself with: SHA-256 of it, since hashes have one length and comparing them tells nothing.
#[derive(Clone)]
pub struct WebhookSecret([u8; 32]);

/// Why a request was not taken. Telegram repeats it for a day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    #[error("the request does not carry the webhook's secret")]
    Unauthorized,
    #[error("the request is not an update of Telegram")]
    Malformed,
    /// Worth another try.
    #[error("{0}")]
    Unavailable(String),
}

/// Says that a request carried the secret; nothing else makes one.
#[derive(Debug)]
pub struct Verified(());

impl WebhookSecret {
    /// `None` unless it is what Telegram takes: 1 to 256 of `A-Z a-z 0-9 _ -`.
    pub fn new(secret: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let valid = (1..=256).contains(&secret.len()) && secret.bytes().all(allowed);
        valid.then(|| Self(Sha256::digest(secret.as_bytes()).into()))
    }

    /// `presented` is the value of [`SECRET_HEADER`].
    ///
    /// # Errors
    /// [`WebhookError::Unauthorized`] when it is missing or another.
    pub fn verify(&self, presented: Option<&[u8]>) -> Result<Verified, WebhookError> {
        let presented: [u8; 32] = Sha256::digest(presented.ok_or(WebhookError::Unauthorized)?).into();
        if self.0.ct_eq(&presented).into() { Ok(Verified(())) } else { Err(WebhookError::Unauthorized) }
    }
}

/// The messages in a request's body. An update that holds none, or one that cannot be read, gives an empty list: to
/// refuse it would only bring it back and hold up its chat.
///
/// # Errors
/// [`WebhookError::Malformed`] when it is no update at all.
pub fn parse(_: &Verified, bot: &parse::Bot, body: &[u8]) -> Result<Vec<InboundMessage>, WebhookError> {
    let update: Value = serde_json::from_slice(body).map_err(|_| WebhookError::Malformed)?;
    parse::update_id(&update).ok_or(WebhookError::Malformed)?;
    Ok(parse::update(bot, &update).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use openclaw_proto::ids::ChannelAccount;
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_secret_itself_opens() {
        let secret = WebhookSecret::new("s3cret_-").unwrap();
        assert!(secret.verify(Some(b"s3cret_-")).is_ok());
        for wrong in [None, Some(&b""[..]), Some(b"s3cret_"), Some(b"s3cret_-x"), Some(b"S3cret_-")] {
            assert_eq!(secret.verify(wrong).unwrap_err(), WebhookError::Unauthorized);
        }
        for unusable in ["", " ", "a b", "ü", &"x".repeat(257)] {
            assert!(WebhookSecret::new(unusable).is_none(), "{unusable:?}");
        }
    }

    #[test]
    fn a_body_is_an_update_or_refused() {
        let account = ChannelAccount::new("telegram", "default").unwrap();
        let bot = parse::Bot { account, id: 7, username: "our_bot".into() };
        let verified = WebhookSecret::new("x").unwrap().verify(Some(b"x")).unwrap();
        let parse = |body: &str| parse(&verified, &bot, body.as_bytes());
        let message = json!({
            "message_id": 5,
            "from": {"id": 11, "is_bot": false, "first_name": "Ann"},
            "chat": {"id": 11, "type": "private"},
            "text": "hello",
        });
        let texts = parse(&json!({"update_id": 1, "message": message}).to_string()).unwrap();
        assert_eq!(texts.iter().map(|message| message.text.as_str()).collect::<Vec<_>>(), ["hello"]);
        assert_eq!(parse(r#"{"update_id": 1, "message": {"odd": true}}"#), Ok(vec![]));
        for malformed in ["", "{", "[]", "{}", "1", "\u{0}"] {
            assert_eq!(parse(malformed), Err(WebhookError::Malformed), "{malformed:?}");
        }
    }
}
