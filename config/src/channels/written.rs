//! How settings of channels are written: previews, and where an account's settings stand.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Token;
use crate::Channels;
use crate::document::join;

/// One account's settings as they are in force, and where they stand.
pub(crate) struct Placed<A> {
    token: Token,
    entry: Option<String>,
    /// What the account says itself, by key. Its values are not used.
    own: Value,
    pub(crate) enabled: bool,
    pub(crate) has_token: bool,
    /// Whether it is meant to run, so that a token that is missing is a mistake.
    pub(crate) needs_token: bool,
    /// It is the account `default`, and the channel has a token for that as well.
    pub(crate) doubled: bool,
    pub(crate) account: A,
}

impl<A> Placed<A> {
    /// The account whose token is the channel's own.
    pub(super) fn of_channel(token: Token, enabled: bool, has_token: bool, account: A) -> Self {
        Self { token, entry: None, own: Value::Null, enabled, has_token, needs_token: true, doubled: false, account }
    }

    /// The account `entry` of the channel that `self` is the own account of.
    pub(super) fn entry(&self, id: &str, entry: &impl Serialize, enabled: bool, has_token: bool, account: A) -> Self {
        Self {
            token: self.token,
            entry: Some(id.to_owned()),
            // Plain data with text keys always becomes JSON.
            own: serde_json::to_value(entry).unwrap_or_default(),
            enabled: self.enabled && enabled,
            has_token,
            needs_token: true,
            doubled: self.has_token && id == Channels::DEFAULT_ACCOUNT,
            account,
        }
    }

    /// Whether the bot is to run. One that should and cannot is refused by `validate`.
    pub(crate) fn runs(&self) -> bool {
        self.enabled && self.has_token && !self.doubled
    }

    /// The section of its own: `channels.telegram.accounts.ops`, or `channels.telegram`.
    pub(crate) fn section(&self) -> String {
        let mut path = vec!["channels".to_owned(), self.token.channel.to_owned()];
        if let Some(entry) = &self.entry {
            path.extend(["accounts".to_owned(), entry.clone()]);
        }
        join(&path)
    }

    /// Where `key` stands: in its own section if it is written there, else in the channel's.
    pub(crate) fn at(&self, key: &str) -> String {
        match self.own.get(key) {
            Some(_) => self.own_key(key),
            None => self.channel_key(key),
        }
    }

    pub(crate) fn channel_key(&self, key: &str) -> String {
        format!("channels.{}.{key}", self.token.channel)
    }

    /// `key` in its own section, whether it is written there or missing.
    pub(crate) fn own_key(&self, key: &str) -> String {
        format!("{}.{key}", self.section())
    }

    /// Where a token of its channel is given.
    pub(crate) fn token(&self) -> Token {
        self.token
    }

    /// The key below `accounts`; none for the channel's own account.
    pub(crate) fn name(&self) -> Option<&str> {
        self.entry.as_deref()
    }
}

/// Whether a reply is shown while it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Streaming {
    /// It comes when it is complete.
    Off,
    /// The message is edited as the reply grows.
    Partial,
}

impl Streaming {
    const WORDS: &[&str] = &["off", "partial"];

    fn parse<E: de::Error>(word: &str) -> Result<Self, E> {
        match word {
            "off" => Ok(Self::Off),
            "partial" => Ok(Self::Partial),
            // Upstream's other words are told apart by who reads the error.
            _ => Err(E::unknown_variant(word, Self::WORDS)),
        }
    }
}

impl JsonSchema for Streaming {
    fn schema_name() -> Cow<'static, str> {
        "Streaming".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let word = json_schema!({ "type": "string", "enum": Self::WORDS });
        json_schema!({
            "description": "Whether a reply is shown while it is written.",
            "anyOf": [
                word,
                { "type": "boolean" },
                { "type": "object", "properties": { "mode": { "description": "The same.", "anyOf": [word] } } },
            ],
        })
    }
}

/// Reads `"off"`, `"partial"`, true, false, or upstream's `{ mode }`. `None` when it is left open.
pub(super) fn streaming<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Streaming>, D::Error> {
    struct Mode(Streaming);

    impl<'de> Deserialize<'de> for Mode {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            Streaming::parse(&String::deserialize(deserializer)?).map(Self)
        }
    }

    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
    struct Keys {
        mode: Option<Mode>,
    }

    struct Any;

    impl<'de> Visitor<'de> for Any {
        type Value = Option<Streaming>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("\"off\", \"partial\" or { mode }")
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_bool<E: de::Error>(self, shown: bool) -> Result<Self::Value, E> {
            Ok(Some(if shown { Streaming::Partial } else { Streaming::Off }))
        }

        fn visit_str<E: de::Error>(self, word: &str) -> Result<Self::Value, E> {
            Streaming::parse(word).map(Some)
        }

        fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Self::Value, M::Error> {
            let Keys { mode } = Keys::deserialize(MapAccessDeserializer::new(map))?;
            Ok(mode.map(|Mode(mode)| mode))
        }
    }

    deserializer.deserialize_any(Any)
}
