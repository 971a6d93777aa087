//! From the tree of a file to [`Config`], with every problem and not only the first.
//!
//! Serde stops at the first error. So the error carries the path of what it is about; that is reported, taken out of the
//! tree, and the rest is read again. Each round takes something out, so the rounds end.

use std::fmt;

use serde::Deserialize;
use serde::de::{
    self, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;

use crate::Config;
use crate::document::{Member, Node, Value, join};
use crate::problem::{Problem, Source};

/// Past this many problems, the rest can wait.
const MAX_PROBLEMS: usize = 50;

/// What no type knows, with what is known in its place.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stranger<'a> {
    Key(&'static [&'static str]),
    /// A text where one of several words must stand.
    Word(&'a str, &'static [&'static str]),
}

/// What to say about it.
pub(crate) enum Unknown {
    Refuse(String),
    Ignore,
}

/// Reads the settings out of `root`; `unknown` judges a key or a word that no type knows, by its path.
pub(crate) fn decode(
    mut root: Node,
    mut unknown: impl FnMut(&[String], Stranger<'_>) -> Unknown,
) -> Result<Config, Vec<Problem>> {
    let mut problems = Vec::new();
    loop {
        let error = match Config::deserialize(Reader(&root)) {
            Ok(config) if problems.is_empty() => return Ok(config),
            Ok(_) => return Err(problems),
            Err(error) => error,
        };
        let path: Vec<String> = error.path.into_iter().rev().collect();
        let mut judge = |stranger: Stranger<'_>| match unknown(&path, stranger) {
            Unknown::Refuse(message) => Some(message),
            Unknown::Ignore => None,
        };
        let message = match error.kind {
            Kind::UnknownKey(known) => judge(Stranger::Key(known)),
            Kind::UnknownWord(found, known) => judge(Stranger::Word(&found, known)),
            Kind::MissingKey(key) => Some(format!("`{key}` is missing")),
            Kind::Other(message) => Some(message),
        };
        if let Some(message) = message {
            let source = error.source.unwrap_or_default();
            problems.push(Problem { source, key: join(&path), message });
        }
        if problems.len() >= MAX_PROBLEMS || !remove(&mut root, &path) {
            return Err(problems);
        }
    }
}

/// Takes out what `path` names; false when there is no such thing, which would make the rounds endless.
fn remove(node: &mut Node, path: &[String]) -> bool {
    let [segment, rest @ ..] = path else { return false };
    match &mut node.value {
        Value::Object(members) => match members.iter().position(|member| member.key == *segment) {
            Some(at) if rest.is_empty() => {
                members.remove(at);
                true
            }
            Some(at) => remove(&mut members[at].node, rest),
            None => false,
        },
        Value::List(items) => {
            let index = segment.trim_matches(['[', ']']).parse().ok();
            match index.and_then(|index: usize| items.get_mut(index)) {
                Some(item) if rest.is_empty() => {
                    item.value = Value::Refused;
                    true
                }
                Some(item) => remove(item, rest),
                None => false,
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Unsigned(_)
        | Value::Signed(_)
        | Value::Float(_)
        | Value::Text { .. }
        | Value::Refused => false,
    }
}

#[derive(Debug)]
struct Error {
    kind: Kind,
    source: Option<Source>,
    /// From the innermost key outwards.
    path: Vec<String>,
}

#[derive(Debug)]
enum Kind {
    UnknownKey(&'static [&'static str]),
    UnknownWord(String, &'static [&'static str]),
    MissingKey(&'static str),
    Other(String),
}

impl Error {
    fn new(kind: Kind) -> Self {
        Self { kind, source: None, path: Vec::new() }
    }

    /// Says where it is, unless something further inside already did.
    fn at(mut self, source: &Source) -> Self {
        self.source.get_or_insert_with(|| source.clone());
        self
    }

    fn under(mut self, segment: impl Into<String>) -> Self {
        self.path.push(segment.into());
        self
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)
    }
}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Kind::Other(message.to_string()))
    }

    // The wrong kind of value may be a secret in the wrong place, so its kind is named and not the value.
    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Bool(_) => "true or false",
            Unexpected::Unsigned(_) | Unexpected::Signed(_) => "an integer",
            Unexpected::Float(_) => "a fraction or too large a number",
            Unexpected::Str(_) | Unexpected::Char(_) => "a text",
            Unexpected::Unit | Unexpected::Option => "null",
            Unexpected::Seq => "a list",
            Unexpected::Map => "an object",
            Unexpected::Bytes(_)
            | Unexpected::NewtypeStruct
            | Unexpected::Enum
            | Unexpected::UnitVariant
            | Unexpected::NewtypeVariant
            | Unexpected::TupleVariant
            | Unexpected::StructVariant
            | Unexpected::Other(_) => "something else",
        };
        Self::custom(format_args!("expected {}, found {found}", in_words(expected)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Unsigned(number) => number.to_string(),
            Unexpected::Signed(number) => number.to_string(),
            Unexpected::Str(text) => format!("{text:?}"),
            // Only numbers and texts have values that a type can refuse.
            Unexpected::Bool(_)
            | Unexpected::Float(_)
            | Unexpected::Char(_)
            | Unexpected::Bytes(_)
            | Unexpected::Unit
            | Unexpected::Option
            | Unexpected::NewtypeStruct
            | Unexpected::Seq
            | Unexpected::Map
            | Unexpected::Enum
            | Unexpected::UnitVariant
            | Unexpected::NewtypeVariant
            | Unexpected::TupleVariant
            | Unexpected::StructVariant
            | Unexpected::Other(_) => "something else".into(),
        };
        Self::custom(format_args!("expected {}, found {found}", in_words(expected)))
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        let found = if length == 0 { "an empty list".to_owned() } else { format!("{length} items") };
        Self::custom(format_args!("expected {}, found {found}", in_words(expected)))
    }

    fn unknown_variant(found: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownWord(found.to_owned(), expected))
    }

    fn unknown_field(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownKey(expected))
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(Kind::MissingKey(key))
    }
}

/// Serde's and our own descriptions of what a type takes, for a reader who knows no Rust.
fn in_words(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "u16" => "an integer from 0 to 65535".into(),
        "u32" => "an integer from 0 to 4294967295".into(),
        "u64" => "an integer from 0".into(),
        "a boolean" => "true or false".into(),
        "a string" | "path string" => "a text".into(),
        "a sequence" => "a list".into(),
        "a map" => "an object".into(),
        other if other.starts_with("struct ") => "an object".into(),
        _ => text,
    }
}

/// The known name that `name` is most likely a slip of.
pub(crate) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace(['_', '-'], "");
    let name = plain(name);
    let distance = |candidate: &str| edits(&name, &plain(candidate));
    let limit = 1.max(name.chars().count() / 3);
    // A slip this long is no slip, and measuring it takes time in the square of the length.
    let known = known.iter().filter(|_| name.len() <= 64);
    known.map(|candidate| (distance(candidate), *candidate)).min().filter(|(d, _)| *d <= limit).map(|(_, near)| near)
}

/// How many letters to insert, drop, change or swap with their neighbour to turn `from` into `to`.
fn edits(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    // Row i holds the distances of the first i letters of `from` to each beginning of `to`.
    let mut rows: Vec<Vec<usize>> = vec![(0..=to.len()).collect()];
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let change = rows[i - 1][j - 1] + usize::from(from[i - 1] != to[j - 1]);
            let mut least = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

#[derive(Clone, Copy)]
struct Reader<'a>(&'a Node);

impl Reader<'_> {
    fn unexpected(&self) -> Unexpected<'_> {
        match &self.0.value {
            Value::Null | Value::Refused => Unexpected::Unit,
            Value::Bool(value) => Unexpected::Bool(*value),
            Value::Unsigned(number) => Unexpected::Unsigned(*number),
            Value::Signed(number) => Unexpected::Signed(*number),
            Value::Float(number) => Unexpected::Float(*number),
            Value::Text { text, .. } => Unexpected::Str(text),
            Value::List(_) => Unexpected::Seq,
            Value::Object(_) => Unexpected::Map,
        }
    }

    /// A scalar that was written as text because a variable or a flag has no other form.
    fn loose_text(&self) -> Option<&str> {
        match &self.0.value {
            Value::Text { text, loose: true } => Some(text),
            Value::Text { .. }
            | Value::Null
            | Value::Refused
            | Value::Bool(_)
            | Value::Unsigned(_)
            | Value::Signed(_)
            | Value::Float(_)
            | Value::List(_)
            | Value::Object(_) => None,
        }
    }
}

macro_rules! integers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.loose_text() {
                Some(text) => match text.trim().parse::<u64>() {
                    Ok(number) => visitor.visit_u64(number),
                    Err(_) => Err(de::Error::invalid_value(Unexpected::Str(text), &visitor)),
                }
                .map_err(|error: Error| error.at(&self.0.source)),
                None => self.deserialize_any(visitor),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.0.value {
            Value::Null | Value::Refused => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Unsigned(number) => visitor.visit_u64(*number),
            Value::Signed(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Text { text, .. } => visitor.visit_str(text),
            Value::List(items) => visitor.visit_seq(Items { items: items.iter().enumerate() }),
            Value::Object(members) => visitor.visit_map(Members { members: members.iter(), current: None }),
        }
        .map_err(|error: Error| error.at(&self.0.source))
    }

    integers!(deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64);

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.loose_text() {
            Some("true" | "1") => visitor.visit_bool(true),
            Some("false" | "0") => visitor.visit_bool(false),
            Some(text) => Err(de::Error::invalid_value(Unexpected::Str(text), &visitor)),
            None => return self.deserialize_any(visitor),
        }
        .map_err(|error: Error| error.at(&self.0.source))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0.value {
            Value::Null => visitor.visit_none(),
            Value::Bool(_)
            | Value::Unsigned(_)
            | Value::Signed(_)
            | Value::Float(_)
            | Value::Text { .. }
            | Value::List(_)
            | Value::Object(_)
            | Value::Refused => visitor.visit_some(self),
        }
    }

    /// Serde would also take a list, with the fields in the order of the type.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.0.value {
            Value::List(_) => Err(de::Error::invalid_type(Unexpected::Seq, &visitor)),
            Value::Null
            | Value::Refused
            | Value::Bool(_)
            | Value::Unsigned(_)
            | Value::Signed(_)
            | Value::Float(_)
            | Value::Text { .. }
            | Value::Object(_) => return self.deserialize_any(visitor),
        }
        .map_err(|error: Error| error.at(&self.0.source))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self).map_err(|error: Error| error.at(&self.0.source))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.0.value {
            // A variant of plain words is all that the settings have.
            Value::Text { text, .. } => visitor.visit_enum(text.as_str().into_deserializer()),
            Value::Null
            | Value::Refused
            | Value::Bool(_)
            | Value::Unsigned(_)
            | Value::Signed(_)
            | Value::Float(_)
            | Value::List(_)
            | Value::Object(_) => {
                let expected = format!("one of \"{}\"", variants.join("\", \""));
                Err(de::Error::invalid_type(self.unexpected(), &expected.as_str()))
            }
        }
        .map_err(|error: Error| error.at(&self.0.source))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map
        identifier ignored_any
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        match self.items.find(|(_, item)| item.value != Value::Refused) {
            Some((n, item)) => seed.deserialize(Reader(item)).map(Some).map_err(|error| {
                // Errors of types that do not go through `deserialize_any` have no place yet.
                error.at(&item.source).under(format!("[{n}]"))
            }),
            None => Ok(None),
        }
    }
}

struct Members<'a> {
    members: std::slice::Iter<'a, Member>,
    current: Option<&'a Member>,
}

impl<'de> MapAccess<'de> for Members<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.current = self.members.find(|member| member.node.value != Value::Refused);
        let Some(member) = self.current else { return Ok(None) };
        let key = seed.deserialize(member.key.as_str().into_deserializer());
        key.map(Some).map_err(|error: Error| error.at(&member.key_source).under(member.key.as_str()))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let member = self.current.ok_or_else(|| Error::new(Kind::Other("a value without a key".into())))?;
        let value = seed.deserialize(Reader(&member.node));
        value.map_err(|error| error.at(&member.node.source).under(member.key.as_str()))
    }
}
