//! A settings file as a tree that knows where each key and value stands.
//!
//! The `json5` crate alone decides what JSON5 is; it gives positions of syntax errors but none of keys and values. Those
//! come from [`scan`], which finds where tokens begin and nothing else. Both see the tokens in the order of the text, so
//! the tree takes its positions from the scan one after the other.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::problem::{Problem, Source};

/// Deeper nesting is refused before the parser, which recurses, sees it. The settings themselves need 7.
const MAX_DEPTH: usize = 64;

/// The longest file that is read.
pub(crate) const MAX_BYTES: u64 = 4 << 20;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) source: Source,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    /// `loose`: it came out of a variable or a flag, where a number can only be written as text.
    Text {
        text: String,
        loose: bool,
    },
    List(Vec<Node>),
    Object(Vec<Member>),
    /// A value that was already reported. Readers pass over it; in a list, those behind it keep their numbers.
    Refused,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    pub(crate) key: String,
    pub(crate) key_source: Source,
    pub(crate) node: Node,
}

impl Node {
    pub(crate) fn object() -> Self {
        Self { value: Value::Object(Vec::new()), source: Source::Default }
    }

    pub(crate) fn loose(text: impl Into<String>, source: Source) -> Self {
        Self { value: Value::Text { text: text.into(), loose: true }, source }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Member> {
        match &self.value {
            Value::Object(members) => members.iter().find(|member| member.key == key),
            Value::Null
            | Value::Bool(_)
            | Value::Unsigned(_)
            | Value::Signed(_)
            | Value::Float(_)
            | Value::Text { .. }
            | Value::List(_)
            | Value::Refused => None,
        }
    }

    /// Puts `node` at `path`, making objects on the way. What is in the way and no object stays: it is an error anyway.
    pub(crate) fn set(&mut self, path: &[&str], node: Node) {
        let (Value::Object(members), [key, rest @ ..]) = (&mut self.value, path) else { return };
        let at = members.iter().position(|member| member.key == *key).unwrap_or_else(|| {
            let fresh = Node { value: Value::Object(Vec::new()), source: node.source.clone() };
            members.push(Member { key: (*key).to_owned(), key_source: node.source.clone(), node: fresh });
            members.len() - 1
        });
        match rest {
            [] => members[at].node = node,
            rest => members[at].node.set(rest, node),
        }
    }

    /// Lays `over` on top: objects key by key, anything else as a whole.
    pub(crate) fn merge(&mut self, over: Node) {
        match (&mut self.value, over.value) {
            (Value::Object(under), Value::Object(members)) => {
                for member in members {
                    match under.iter_mut().find(|known| known.key == member.key) {
                        Some(known) => {
                            known.key_source = member.key_source;
                            known.node.merge(member.node);
                        }
                        None => under.push(member),
                    }
                }
                self.source = over.source;
            }
            (_, value) => *self = Node { value, source: over.source },
        }
    }
}

/// Parses one file. A syntax error comes alone; doubled keys come with the tree.
pub(crate) fn parse(text: &str, file: &Arc<Path>) -> Result<(Node, Vec<Problem>), Problem> {
    let source = |(line, column): (u32, u32)| Source::File { file: Arc::clone(file), line, column };
    let problem = |source, message| Problem { source, key: String::new(), message };

    let scan = scan(text);
    if let Some(position) = scan.too_deep {
        return Err(problem(source(position), format!("more than {MAX_DEPTH} levels of nesting")));
    }
    let mut root: Node = json5::from_str(text).map_err(|error| {
        let count = |n: usize| u32::try_from(n + 1).unwrap_or(u32::MAX);
        let code = error.code().map(|code| code.to_string()).unwrap_or_else(|| error.to_string());
        match (code.strip_prefix("EOF parsing "), error.position()) {
            (Some("value"), _) => {
                problem(source(scan.end), "not JSON5: a value is missing at the end of the file".into())
            }
            // The parser names the beginning of the outermost value; what is missing is missing at the end.
            (Some(what), _) => {
                let article = if what.starts_with(['a', 'e', 'i', 'o']) { "an" } else { "a" };
                problem(source(scan.end), format!("not JSON5: the file ends inside {article} {what}"))
            }
            (None, Some(position)) => {
                problem(source((count(position.line), count(position.column))), format!("not JSON5: {code}"))
            }
            (None, None) => problem(source(scan.end), format!("not JSON5: {code}")),
        }
    })?;

    let mut positions = scan.tokens.into_iter().map(source);
    let mut doubled = Vec::new();
    place(&mut root, &mut positions, &mut Vec::new(), &mut doubled);
    debug_assert!(positions.next().is_none(), "the scan found a token that the parser did not");
    Ok((root, doubled))
}

fn place(
    node: &mut Node,
    positions: &mut impl Iterator<Item = Source>,
    path: &mut Vec<String>,
    doubled: &mut Vec<Problem>,
) {
    let source = positions.next();
    debug_assert!(source.is_some(), "the parser found a value that the scan did not");
    node.source = source.unwrap_or_default();
    match &mut node.value {
        Value::Null
        | Value::Bool(_)
        | Value::Unsigned(_)
        | Value::Signed(_)
        | Value::Float(_)
        | Value::Text { .. }
        | Value::Refused => {}
        Value::List(items) => {
            for (n, item) in items.iter_mut().enumerate() {
                path.push(format!("[{n}]"));
                place(item, positions, path, doubled);
                path.pop();
            }
        }
        Value::Object(members) => {
            let mut first = std::collections::BTreeMap::new();
            for (n, member) in members.iter_mut().enumerate() {
                member.key_source = positions.next().unwrap_or_default();
                path.push(member.key.clone());
                if let Some(before) = first.insert(member.key.clone(), (n, member.key_source.clone())) {
                    let message = format!("written twice; the first is at {}", before.1);
                    doubled.push(Problem { source: member.key_source.clone(), key: join(path), message });
                }
                place(&mut member.node, positions, path, doubled);
                path.pop();
            }
            let mut n = 0;
            members.retain(|member| {
                n += 1;
                first.get(&member.key).is_some_and(|(last, _)| *last == n - 1)
            });
        }
    }
}

/// `["cluster", "bootstrap", "[1]"]` as `cluster.bootstrap[1]`; a key that is no plain word is quoted.
pub(crate) fn join(path: &[String]) -> String {
    let mut text = String::new();
    for segment in path {
        if segment.starts_with('[') && segment.ends_with(']') {
            text.push_str(segment);
            continue;
        }
        if !text.is_empty() {
            text.push('.');
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '$');
        match !segment.is_empty() && segment.chars().all(plain) {
            true => text.push_str(segment),
            false => text.push_str(&format!("{segment:?}")),
        }
    }
    text
}

struct Scan {
    /// Line and column of every key and value, in the order of the text.
    tokens: Vec<(u32, u32)>,
    end: (u32, u32),
    too_deep: Option<(u32, u32)>,
}

/// Finds where keys and values begin. On text that is not JSON5 it finds something; the parser refuses that text.
fn scan(text: &str) -> Scan {
    let mut scan = Scan { tokens: Vec::new(), end: (1, 1), too_deep: None };
    let mut at = Cursor { chars: text.chars().peekable(), line: 1, column: 1 };
    let mut depth = 0_usize;
    while let Some(c) = at.peek() {
        let start = (at.line, at.column);
        at.next();
        match c {
            '{' | '[' => {
                scan.tokens.push(start);
                depth += 1;
                if depth > MAX_DEPTH {
                    scan.too_deep = Some(start);
                    break;
                }
            }
            '}' | ']' => depth = depth.saturating_sub(1),
            ',' | ':' => {}
            '/' => at.comment(),
            '"' | '\'' => {
                scan.tokens.push(start);
                while let Some(inner) = at.next() {
                    match inner {
                        '\\' => drop(at.next()),
                        _ if inner == c => break,
                        _ => {}
                    }
                }
            }
            c if is_space(c) => {}
            _ => {
                scan.tokens.push(start);
                while at.peek().is_some_and(|c| !is_space(c) && !"{}[],:/\"'".contains(c)) {
                    at.next();
                }
            }
        }
    }
    scan.end = (at.line, at.column);
    scan
}

fn is_space(c: char) -> bool {
    c.is_whitespace() || c == '\u{feff}'
}

struct Cursor<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    line: u32,
    column: u32,
}

impl Cursor<'_> {
    fn peek(&mut self) -> Option<char> {
        self.chars.peek().copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.chars.next()?;
        match c {
            '\r' if self.chars.peek() == Some(&'\n') => {}
            '\n' | '\r' | '\u{2028}' | '\u{2029}' => (self.line, self.column) = (self.line.saturating_add(1), 1),
            _ => self.column = self.column.saturating_add(1),
        }
        Some(c)
    }

    /// Passes over the rest of a comment whose first slash was taken.
    fn comment(&mut self) {
        match self.next() {
            Some('/') => while self.next().is_some_and(|c| !matches!(c, '\n' | '\r' | '\u{2028}' | '\u{2029}')) {},
            Some('*') => {
                while let Some(c) = self.next() {
                    if c == '*' && self.peek() == Some('/') {
                        self.next();
                        break;
                    }
                }
            }
            Some(_) | None => {}
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyNode;

        impl<'de> Visitor<'de> for AnyNode {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::Unsigned(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(u64::try_from(value).map_or(Value::Signed(value), Value::Unsigned))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Float(value))
            }
            fn visit_str<E>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Text { text: text.to_owned(), loose: false })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Value::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut members = Vec::new();
                while let Some((key, node)) = map.next_entry()? {
                    members.push(Member { key, key_source: Source::Default, node });
                }
                Ok(Value::Object(members))
            }
        }

        Ok(Node { value: deserializer.deserialize_any(AnyNode)?, source: Source::Default })
    }
}
