//! Server-sent events as the `chat/stream` endpoint sends them: bytes in, events out.
//!
//! The part of the WHATWG format that a gateway may send: `id`, `event`, `data`, comments, `\n` and `\r\n`.

use anyhow::{Context, Result, ensure};
use openclaw_proto::http::StreamEvent;
use serde_json::{Map, Value};

/// More than the longest event that the server sends; a line without end is an error and not a growing buffer.
const MAX_EVENT_BYTES: usize = 4 << 20;

/// One event with its id.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub id: Option<String>,
    pub event: StreamEvent,
}

/// Collects bytes until a blank line ends an event.
#[derive(Debug, Default)]
pub struct Parser {
    buffer: Vec<u8>,
    id: Option<String>,
    name: Option<String>,
    data: Option<String>,
}

impl Parser {
    /// Takes the next bytes and returns the events that they complete.
    ///
    /// # Errors
    /// When an event is not one that the interface documents.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>> {
        self.buffer.extend_from_slice(bytes);
        ensure!(self.buffer.len() <= MAX_EVENT_BYTES, "a line of the stream is longer than {MAX_EVENT_BYTES} bytes");
        let mut events = Vec::new();
        let mut start = 0;
        while let Some(length) = self.buffer[start..].iter().position(|&byte| byte == b'\n') {
            let line = &self.buffer[start..start + length];
            let line =
                std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)).context("the stream is not UTF-8")?;
            start += length + 1;
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            if line.is_empty() {
                let (id, name) = (self.id.take(), self.name.take());
                if let Some(data) = self.data.take() {
                    events.push(event(id, name.as_deref(), &data)?);
                }
            } else if field == "id" {
                self.id = Some(value.to_owned());
            } else if field == "event" {
                self.name = Some(value.to_owned());
            } else if field == "data" {
                let data = self.data.get_or_insert_default();
                if !data.is_empty() {
                    data.push('\n');
                }
                data.push_str(value);
                ensure!(data.len() <= MAX_EVENT_BYTES, "an event is longer than {MAX_EVENT_BYTES} bytes");
            }
        }
        self.buffer.drain(..start);
        Ok(events)
    }
}

fn event(id: Option<String>, name: Option<&str>, data: &str) -> Result<Event> {
    let name = name.context("an event without a name")?;
    let fields: Value = serde_json::from_str(data).with_context(|| format!("data of {name}: {data:?}"))?;
    let tagged = Value::Object(Map::from_iter([(name.to_owned(), fields)]));
    let event = serde_json::from_value(tagged).with_context(|| format!("event {name}: {data:?}"))?;
    Ok(Event { id, event })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stream: &str, expected: &[Event]) {
        // However the bytes are cut, the events are the same.
        for size in [1, 2, 7, stream.len()] {
            let mut parser = Parser::default();
            let events: Vec<_> = stream.as_bytes().chunks(size).flat_map(|chunk| parser.push(chunk).unwrap()).collect();
            assert_eq!(events, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn events_survive_any_cut() {
        check(
            ": hello\n\nid: a.1-1\nevent: delta\ndata: {\"text\":\"Grüße\"}\n\n:\n\nevent: restart\r\ndata:{\"attempt\":2}\r\n\r\n",
            &[
                Event { id: Some("a.1-1".into()), event: StreamEvent::Delta { text: "Grüße".into() } },
                Event { id: None, event: StreamEvent::Restart { attempt: 2 } },
            ],
        );
    }

    #[test]
    fn an_event_that_was_cut_off_is_none() {
        check("event: delta\ndata: {\"text\":\"x\"}\n", &[]);
    }

    #[test]
    fn undocumented_events_are_errors() {
        for bad in
            ["data: {}\n\n", "event: nonsense\ndata: {}\n\n", "event: delta\ndata: {\n\n", "event: delta\ndata: {}\n\n"]
        {
            assert!(Parser::default().push(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(Parser::default().push(&vec![b'x'; MAX_EVENT_BYTES + 1]).is_err());
    }
}
