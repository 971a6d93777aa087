//! Lists of people, as an operator writes them.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// What differs between platforms in how people are named.
pub trait Platform {
    /// What may stand before an id and is dropped, as upstream does, in small letters.
    const PREFIXES: &'static [&'static str];
}

/// People on the platform `P`. In the file: a list of ids, each in digits or as a number, or `*` for everybody.
pub struct Senders<P> {
    ids: Vec<String>,
    platform: PhantomData<fn() -> P>,
}

impl<P> Senders<P> {
    /// Each in digits as the platform writes it, or `*`.
    pub fn ids(&self) -> &[String] {
        &self.ids
    }
}

impl<P> Default for Senders<P> {
    fn default() -> Self {
        Self { ids: Vec::new(), platform: PhantomData }
    }
}

impl<P> Clone for Senders<P> {
    fn clone(&self) -> Self {
        Self { ids: self.ids.clone(), platform: PhantomData }
    }
}

impl<P> PartialEq for Senders<P> {
    fn eq(&self, other: &Self) -> bool {
        self.ids == other.ids
    }
}

impl<P> fmt::Debug for Senders<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ids.fmt(f)
    }
}

impl<P> Serialize for Senders<P> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.ids.serialize(serializer)
    }
}

impl<'de, P: Platform> Deserialize<'de> for Senders<P> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ids = deserializer.deserialize_any(List(P::PREFIXES))?;
        Ok(Self { ids, platform: PhantomData })
    }
}

impl<P> JsonSchema for Senders<P> {
    fn schema_name() -> Cow<'static, str> {
        "Senders".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "array",
            "items": { "anyOf": [{ "type": "string" }, { "type": "integer", "minimum": 0 }] },
        })
    }
}

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
