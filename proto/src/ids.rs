//! Names of things, parsed once at the edge with limits; past it only these types travel.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an id of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("{kind} must not be empty")]
    Empty { kind: &'static str },
    #[error("{kind} has {actual} bytes; at most {limit} are allowed")]
    TooLong { kind: &'static str, limit: usize, actual: usize },
    #[error("{kind} has the character {character:?} at byte {at}; allowed are {allowed}")]
    Character { kind: &'static str, character: char, at: usize, allowed: &'static str },
    #[error("{kind} {text:?} is reserved")]
    Reserved { kind: &'static str, text: String },
}

fn check(
    kind: &'static str,
    text: &str,
    limit: usize,
    allowed: &'static str,
    accept: impl Fn(usize, char) -> bool,
) -> Result<(), ParseError> {
    if text.is_empty() {
        return Err(ParseError::Empty { kind });
    }
    if text.len() > limit {
        return Err(ParseError::TooLong { kind, limit, actual: text.len() });
    }
    match text.char_indices().find(|&(at, character)| !accept(at, character)) {
        Some((at, character)) => Err(ParseError::Character { kind, character, at, allowed }),
        None => Ok(()),
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $limit:literal, $allowed:literal, $accept:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The longest accepted text, in bytes.
            pub const MAX_BYTES: usize = $limit;

            /// Checks length and characters.
            ///
            /// # Errors
            /// [`ParseError`] says which rule the text breaks.
            pub fn parse(text: impl Into<String>) -> Result<Self, ParseError> {
                let text = text.into();
                check($kind, &text, Self::MAX_BYTES, $allowed, $accept)?;
                Ok(Self(text))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseError;
            fn from_str(text: &str) -> Result<Self, ParseError> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseError;
            fn try_from(text: String) -> Result<Self, ParseError> {
                Self::parse(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// One bot account on one platform, as `<channel>:<account>`: `telegram:default`. What a channel lease is on.
    ChannelAccount, "channel account", 96, "a-z, 0-9, hyphen and underscore, and a colon between channel and account",
    |at, c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_' || (c == ':' && at > 0)
);

impl ChannelAccount {
    /// # Errors
    /// [`ParseError`] when either part has characters that do not belong there.
    pub fn new(channel: &str, account: &str) -> Result<Self, ParseError> {
        Self::parse(format!("{channel}:{account}"))
    }

    /// The platform: `telegram`.
    pub fn channel(&self) -> &str {
        self.0.split_once(':').map_or(&*self.0, |(channel, _)| channel)
    }

    /// The account on it: `default`.
    pub fn account(&self) -> &str {
        self.0.split_once(':').map_or("default", |(_, account)| account)
    }
}

text_id!(
    /// A process of the cluster, as the operator named it: `node-1`. It is also a directory name and a TLS name.
    InstanceId, "instance id", 63, "a-z, 0-9, '-' and '.', the first a letter or digit",
    |at, c| c.is_ascii_lowercase() || c.is_ascii_digit() || (at > 0 && (c == '-' || c == '.'))
);

text_id!(
    /// Which cluster an instance belongs to. Checked on every call between instances.
    ClusterId, "cluster id", 63, "a-z, 0-9 and '-'",
    |_, c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
);

text_id!(
    /// A conversation: upstream's session key, `agent:main:main`, lower case.
    SessionKey, "session key", 256, "visible characters without upper case letters, '/', '?', '#' and '%'",
    |_, c| !c.is_control() && !c.is_whitespace() && !c.is_ascii_uppercase() && !matches!(c, '/' | '?' | '#' | '%')
);

text_id!(
    /// An agent of the configuration: `main`.
    AgentId, "agent id", 64, "a-z, 0-9, '_' and '-', the first a letter or digit",
    |at, c| c.is_ascii_lowercase() || c.is_ascii_digit() || (at > 0 && (c == '-' || c == '_'))
);

text_id!(
    /// One accepted message and the work of answering it: 32 hexadecimal digits that sort by time.
    TurnId, "turn id", 32, "0-9 and a-f",
    |_, c| c.is_ascii_digit() || ('a'..='f').contains(&c)
);

text_id!(
    /// What a caller repeats to say "the same write again".
    IdempotencyKey, "idempotency key", 128, "visible ASCII characters",
    |_, c| c.is_ascii_graphic()
);

text_id!(
    /// One HTTP request, in logs and error bodies.
    RequestId, "request id", 64, "letters, digits, '-', '_' and '.'",
    |_, c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
);

impl SessionKey {
    /// Prefixes that belong to work the gateway starts itself.
    const RESERVED: [&'static str; 3] = ["subagent:", "cron:", "acp:"];

    /// Parses a key that came from outside: lower-cased as upstream does, reserved prefixes refused.
    ///
    /// # Errors
    /// [`ParseError`] says which rule the text breaks.
    pub fn from_caller(text: &str) -> Result<Self, ParseError> {
        let key = Self::parse(text.trim().to_lowercase())?;
        match Self::RESERVED.iter().find(|prefix| key.0.starts_with(**prefix)) {
            Some(_) => Err(ParseError::Reserved { kind: "session key", text: key.0 }),
            None => Ok(key),
        }
    }
}

impl TurnId {
    /// A new id; later ones sort after earlier ones of the same process.
    pub fn random() -> Self {
        Self(uuid::Uuid::now_v7().simple().to_string())
    }
}

impl RequestId {
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }
}

impl IdempotencyKey {
    /// For writes whose caller named none: nothing repeats it, so nothing is de-duplicated.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }
}

/// A Raft group. One group is the smallest number of groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GroupId(pub u32);

impl GroupId {
    /// Holds instances, leases and cursors, and all sessions until they are spread.
    pub const ZERO: Self = Self(0);
}

/// Position of an entry in its session; the first entry is 1, and 0 stands before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SeqNum(pub u64);

/// Grows with each new owner; an older one is refused. In Raft: the log index of the grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FencingToken(pub u64);

impl fmt::Display for SeqNum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a client stands in a live stream: `<turn id>.<attempt>-<n>`, the SSE event id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamPosition {
    pub turn: TurnId,
    pub attempt: u32,
    pub n: u64,
}

/// The text is not `<turn id>.<attempt>-<n>`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event id {0:?} is not <turn id>.<attempt>-<n>")]
pub struct PositionError(pub String);

impl FromStr for StreamPosition {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let error = || PositionError(text.chars().take(96).collect());
        let (turn, rest) = text.split_once('.').ok_or_else(error)?;
        let (attempt, n) = rest.split_once('-').ok_or_else(error)?;
        Ok(Self {
            turn: TurnId::parse(turn).map_err(|_| error())?,
            attempt: attempt.parse().map_err(|_| error())?,
            n: n.parse().map_err(|_| error())?,
        })
    }
}

impl fmt::Display for StreamPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}-{}", self.turn, self.attempt, self.n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_ids_are_directory_and_tls_names() {
        assert!(InstanceId::parse("node-1").is_ok());
        for bad in ["", "-a", "Node", "a/b", "..", "a b", &"x".repeat(64)] {
            assert!(InstanceId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn session_keys_from_callers_are_lower_cased_and_not_reserved() {
        assert_eq!(SessionKey::from_caller(" Agent:Main:Main ").unwrap().as_str(), "agent:main:main");
        for bad in ["cron:1", "SUBAGENT:x", "a b", "a/b", "", "a\0b", "a%2fb"] {
            assert!(SessionKey::from_caller(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn stream_positions_survive_text() {
        let position = StreamPosition { turn: TurnId::random(), attempt: 2, n: 17 };
        assert_eq!(position.to_string().parse(), Ok(position));
        for bad in ["", "abc", "abc.1", "abc.1-", "abc.-1-2", "xyz.1-2", "a.1-99999999999999999999999"] {
            assert!(bad.parse::<StreamPosition>().is_err(), "{bad:?}");
        }
    }
}
