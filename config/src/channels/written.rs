//! How settings of channels are written: who may write, previews, and where an account's settings stand.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Channels;
use crate::document::join;

/// One account's settings as they are in force, and where they stand.
pub(crate) struct Placed<A> {
    channel: &'static str,
    entry: Option<String>,
    /// What the account says itself, by key. Its values are not used.
    own: Value,
    pub(crate) enabled: bool,
    pub(crate) has_token: bool,
    /// It is the account `default`, and the channel has a token for that as well.
    pub(crate) doubled: bool,
    pub(crate) account: A,
}

impl<A> Placed<A> {
    /// The account whose token is the channel's own.
    pub(super) fn of_channel(channel: &'static str, enabled: bool, has_token: bool, account: A) -> Self {
        Self { channel, entry: None, own: Value::Null, enabled, has_token, doubled: false, account }
    }

    /// The account `entry` of the channel that `self` is the own account of.
    pub(super) fn entry(&self, id: &str, entry: &impl Serialize, enabled: bool, has_token: bool, account: A) -> Self {
        Self {
            channel: self.channel,
            entry: Some(id.to_owned()),
            // Plain data with text keys always becomes JSON.
            own: serde_json::to_value(entry).unwrap_or_default(),
            enabled: self.enabled && enabled,
            has_token,
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
        let mut path = vec!["channels".to_owned(), self.channel.to_owned()];
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
        format!("channels.{}.{key}", self.channel)
    }

    /// `key` in its own section, whether it is written there or missing.
    pub(crate) fn own_key(&self, key: &str) -> String {
        format!("{}.{key}", self.section())
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

/// Reads a list of ids of people, each in digits or as a number, or `*`. `prefixes` before an id are dropped, as upstream does.
pub(super) fn senders<'de, D: Deserializer<'de>>(
    deserializer: D,
    prefixes: &'static [&'static str],
) -> Result<Vec<String>, D::Error> {
    struct List(&'static [&'static str]);

    impl<'de> Visitor<'de> for List {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of numeric ids")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut senders = Vec::new();
            while let Some(sender) = items.next_element_seed(Sender(self.0))? {
                senders.push(sender);
            }
            Ok(senders)
        }
    }

    deserializer.deserialize_any(List(prefixes))
}

struct Sender(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Sender {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Sender {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a numeric id or \"*\"")
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<String, E> {
        Ok(id.to_string())
    }

    fn visit_i64<E: de::Error>(self, id: i64) -> Result<String, E> {
        self.visit_str(&id.to_string())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        let trimmed = text.trim();
        let lower = trimmed.to_ascii_lowercase();
        let bare = self.0.iter().find_map(|prefix| lower.strip_prefix(prefix)).unwrap_or(&lower).trim();
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if bare == "*" {
            return Ok(bare.to_owned());
        }
        if bare.strip_prefix('-').is_some_and(digits) {
            return Err(E::custom(format_args!("{text:?} is the id of a group; only ids of people can be listed")));
        }
        match bare.parse::<u64>() {
            // As the platform writes it, without zeros before it: ids are compared as texts.
            Ok(id) if digits(bare) => Ok(id.to_string()),
            Ok(_) | Err(_) => Err(E::custom(format_args!(
                "{text:?} is not a numeric id or \"*\"; only numeric ids can be listed, names can change hands"
            ))),
        }
    }
}

/// The schema of a list of senders.
#[derive(JsonSchema)]
#[schemars(transparent)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct SenderList(Vec<SenderSchema>);

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum SenderSchema {
    Text(String),
    Number(u64),
}
