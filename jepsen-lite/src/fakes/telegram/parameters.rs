//! The parameters of a call, from whichever of four places a client puts them in: the query, JSON, a form, a multipart form.
//!
//! Telegram reads all four as texts by name, and is lenient: a number may be a text, a text a number, and an object may be
//! JSON in a text. So are these.

use serde_json::{Map, Value};

use super::error::{Error, bad_request};

/// More names than that are refused.
const MAX_PARAMETERS: usize = 200;

#[derive(Debug, Clone, Default)]
pub(super) struct Parameters(Map<String, Value>);

impl Parameters {
    pub(super) fn read(query: Option<&str>, content_type: Option<&str>, body: &[u8]) -> Result<Self, Error> {
        let mut all = Self::default();
        all.add_form(query.unwrap_or_default().as_bytes());
        let (kind, attributes) =
            content_type.unwrap_or_default().split_once(';').unwrap_or((content_type.unwrap_or_default(), ""));
        match kind.trim().to_ascii_lowercase().as_str() {
            "application/json" if !body.is_empty() => match serde_json::from_slice(body) {
                Ok(Value::Object(object)) => all.0.extend(object),
                Ok(_) => return bad_request("JSON object expected"),
                Err(error) => return bad_request(format!("can't parse parameter value: {error}")),
            },
            "application/x-www-form-urlencoded" => all.add_form(body),
            "multipart/form-data" => all.add_multipart(attributes, body)?,
            // As Telegram does with every other kind.
            _ => {}
        }
        if all.0.len() > MAX_PARAMETERS { Err(Error::TooLarge) } else { Ok(all) }
    }

    fn add_form(&mut self, form: &[u8]) {
        for (name, value) in form_urlencoded::parse(form) {
            self.0.insert(name.into_owned(), Value::String(value.into_owned()));
        }
    }

    fn add_multipart(&mut self, attributes: &str, body: &[u8]) -> Result<(), Error> {
        let boundary = attributes.split(';').find_map(|attribute| attribute.trim().strip_prefix("boundary="));
        let Some(boundary) = boundary.map(|boundary| boundary.trim_matches('"')) else {
            return bad_request("boundary not found");
        };
        let Some(parts) = parts(body, boundary) else {
            return bad_request("can't parse form data headers");
        };
        self.0.extend(parts);
        Ok(())
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        match self.0.get(name)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => Some(other.to_string()),
        }
    }

    pub(super) fn integer(&self, name: &str) -> Option<i64> {
        self.text(name)?.trim().parse().ok()
    }

    /// What is missing or no number is `default`; what is outside the limits becomes the limit.
    pub(super) fn clamped(&self, name: &str, default: i64, least: i64, most: i64) -> i64 {
        self.integer(name).unwrap_or(default).clamp(least, most)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.text(name).is_some_and(|text| ["true", "yes", "1"].contains(&text.to_ascii_lowercase().as_str()))
    }

    /// An object or a list, as it is or as JSON in a text.
    pub(super) fn json(&self, name: &str) -> Option<Value> {
        match self.0.get(name)? {
            Value::Null => None,
            Value::String(text) if text.is_empty() => None,
            Value::String(text) => serde_json::from_str(text).ok(),
            other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => Some(other.clone()),
        }
    }

    pub(super) fn into_map(self) -> Map<String, Value> {
        self.0
    }
}

/// The fields of a multipart form; a file is only said to be one. `None`: it is not well-formed.
fn parts(body: &[u8], boundary: &str) -> Option<Vec<(String, Value)>> {
    let delimiter = [b"\r\n--", boundary.as_bytes()].concat();
    let mut parts = Vec::new();
    // Before the first delimiter there need not be a line break.
    let mut rest = body.strip_prefix(&delimiter[2..])?;
    while !rest.starts_with(b"--") {
        rest = rest.strip_prefix(b"\r\n")?;
        let end = find(rest, &delimiter)?;
        let (part, after) = (&rest[..end], &rest[end + delimiter.len()..]);
        let head = find(part, b"\r\n\r\n")?;
        let (head, content) = (std::str::from_utf8(&part[..head]).ok()?, &part[head + 4..]);
        let disposition = head.lines().find(|line| line.to_ascii_lowercase().starts_with("content-disposition:"))?;
        let attribute = |name: &str| {
            let found = disposition.split(';').find_map(|attribute| attribute.trim().strip_prefix(name));
            found.map(|value| value.trim_matches('"').to_owned())
        };
        let value = match attribute("filename=") {
            Some(_) => format!("<a file of {} bytes>", content.len()),
            None => String::from_utf8(content.to_vec()).ok()?,
        };
        parts.push((attribute("name=")?, Value::String(value)));
        rest = after;
    }
    Some(parts)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, kind: &str, body: &str) {
        let all = Parameters::read(Some(query), Some(kind), body.as_bytes()).unwrap();
        assert_eq!(all.integer("chat_id"), Some(-7), "{kind}");
        assert_eq!(all.text("text").as_deref(), Some("a+b & ü"), "{kind}");
        assert!(all.flag("silent"), "{kind}");
        assert_eq!(all.json("list"), Some(serde_json::json!(["message"])), "{kind}");
        assert_eq!(all.clamped("limit", 100, 1, 100), 100, "{kind}");
    }

    #[test]
    fn all_four_places_are_read_alike() {
        check("chat_id=-7&text=a%2Bb+%26+%C3%BC&silent=true&list=%5B%22message%22%5D&limit=500", "", "");
        check(
            "limit=500",
            "application/json",
            r#"{"chat_id": -7, "text": "a+b & ü", "silent": true, "list": ["message"]}"#,
        );
        let form = "chat_id=-7&text=a%2Bb+%26+%C3%BC&silent=True&list=%5B%22message%22%5D";
        check("", "application/x-www-form-urlencoded", form);
        let field = |name: &str, value: &str| {
            format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        let body =
            [field("chat_id", "-7"), field("text", "a+b & ü"), field("silent", "true"), field("list", "[\"message\"]")];
        check("", "multipart/form-data; boundary=x", &(body.concat() + "--x--\r\n"));
    }

    #[test]
    fn a_body_that_cannot_be_read_is_refused() {
        for (kind, body) in [
            ("application/json", "{"),
            ("application/json", "[]"),
            ("multipart/form-data", "--x--"),
            ("multipart/form-data; boundary=x", "--x\r\nnothing"),
        ] {
            assert_eq!(Parameters::read(None, Some(kind), body.as_bytes()).unwrap_err().status(), 400, "{kind} {body}");
        }
    }
}
