//! Server-sent events out of bytes, as the WHATWG specification reads them: pure, bounded, indifferent to where chunks end.

/// One dispatched event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// The last id seen, on this event or before it.
    pub(super) id: String,
    pub(super) name: String,
    pub(super) data: String,
}

/// An event is longer than anything that the gateway sends.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream has more than {MAX_EVENT_BYTES} bytes")]
pub(super) struct TooLong;

/// `done` carries a whole reply; replies are far shorter.
pub(super) const MAX_EVENT_BYTES: usize = 16 * 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    /// The last byte was a carriage return, so that a line feed now ends no second line.
    after_return: bool,
    pending: Event,
    has_data: bool,
}

impl Parser {
    /// Takes the next bytes and appends the events that they complete.
    pub(super) fn push(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), TooLong> {
        for &byte in bytes {
            match byte {
                b'\n' if self.after_return => self.after_return = false,
                b'\n' | b'\r' => {
                    self.after_return = byte == b'\r';
                    self.end_line(events);
                }
                _ => {
                    self.after_return = false;
                    if self.line.len() + self.pending.data.len() >= MAX_EVENT_BYTES {
                        return Err(TooLong);
                    }
                    self.line.push(byte);
                }
            }
        }
        Ok(())
    }

    fn end_line(&mut self, events: &mut Vec<Event>) {
        let bytes = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&bytes);
        if line.is_empty() {
            if self.has_data {
                events.push(self.pending.clone());
            }
            self.has_data = false;
            self.pending.name.clear();
            self.pending.data.clear();
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.pending.name),
            "id" if !value.contains('\0') => value.clone_into(&mut self.pending.id),
            "data" => {
                if self.has_data {
                    self.pending.data.push('\n');
                }
                self.pending.data.push_str(value);
                self.has_data = true;
            }
            // Comments keep proxies awake; `retry` is for browsers; what is unknown is ignored.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, &str, &str)]) {
        for size in [1, 2, 7, text.len().max(1)] {
            let (mut parser, mut events) = (Parser::default(), Vec::new());
            for chunk in text.as_bytes().chunks(size) {
                parser.push(chunk, &mut events).unwrap();
            }
            let seen: Vec<_> = events.iter().map(|e| (e.id.as_str(), e.name.as_str(), e.data.as_str())).collect();
            assert_eq!(seen, expected, "chunks of {size}");
        }
    }

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        check(
            "id: t.1-1\nevent: delta\ndata: {\"text\":\"h\u{e9}\"}\n\n",
            &[("t.1-1", "delta", "{\"text\":\"h\u{e9}\"}")],
        );
        check("event: a\r\ndata: 1\r\n\r\nevent: b\rdata: 2\r\r", &[("", "a", "1"), ("", "b", "2")]);
    }

    #[test]
    fn the_specifications_corners() {
        check(": comment\n\ndata:x\ndata: y\n\n", &[("", "", "x\ny")]);
        check("id: 1\ndata: a\n\ndata: b\n\n", &[("1", "", "a"), ("1", "", "b")]);
        check("event: nothing\n\ndata\n\n", &[("", "", "")]);
        check("data: never ended\n", &[]);
        check("retry: 10\nunknown: x\ndata: a\n\n", &[("", "", "a")]);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        let line = vec![b'x'; MAX_EVENT_BYTES];
        assert_eq!(parser.push(&line, &mut events), Ok(()));
        assert_eq!(parser.push(b"y", &mut events), Err(TooLong));
    }
}
