//! The bytes of row keys. Big-endian numbers and a zero byte after names keep key order the order of reading: no id
//! contains a zero byte.

use super::Table;

/// Ends a name inside a longer key.
const SEPARATOR: u8 = 0x00;

/// The one row of [`Table::Clock`].
pub const CLOCK: &[u8] = b"now_ms";

pub fn entry(session_key: &str, seq: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(session_key.len() + 9);
    key.extend_from_slice(session_key.as_bytes());
    key.push(SEPARATOR);
    key.extend_from_slice(&seq.to_be_bytes());
    key
}

/// Session key and sequence number of an entry's key.
pub fn parse_entry(key: &[u8]) -> Option<(&str, u64)> {
    let (head, seq) = key.split_last_chunk::<8>()?;
    let (separator, session_key) = head.split_last()?;
    let session_key = std::str::from_utf8(session_key).ok()?;
    (*separator == SEPARATOR).then_some((session_key, u64::from_be_bytes(*seq)))
}

pub fn turn_by_runner(runner: &str, turn_id: &str) -> Vec<u8> {
    join(runner, turn_id)
}

/// Runner and turn id of a key of [`Table::TurnsByRunner`].
pub fn parse_turn_by_runner(key: &[u8]) -> Option<(&str, &str)> {
    split(key)
}

pub fn inbox(account: &str, external_id: &str) -> Vec<u8> {
    join(account, external_id)
}

/// Account and external id of a key of [`Table::Inbox`].
pub fn parse_inbox(key: &[u8]) -> Option<(&str, &str)> {
    split(key)
}

/// All keys that begin with `name` and the separator lie from the first to before the second of these.
pub fn under(name: &str) -> (Vec<u8>, Vec<u8>) {
    let mut from = Vec::with_capacity(name.len() + 1);
    from.extend_from_slice(name.as_bytes());
    let mut until = from.clone();
    from.push(SEPARATOR);
    until.push(SEPARATOR + 1);
    (from, until)
}

/// The smallest key greater than `key`.
pub fn after(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

/// Which kind of row an expiry row drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiring {
    Inbox,
    Turn,
}

impl Expiring {
    const ALL: [Self; 2] = [Self::Inbox, Self::Turn];

    /// Part of stored keys: never reused.
    const fn tag(self) -> u8 {
        match self {
            Self::Inbox => 1,
            Self::Turn => 2,
        }
    }

    pub fn table(self) -> Table {
        match self {
            Self::Inbox => Table::Inbox,
            Self::Turn => Table::Turns,
        }
    }
}

pub fn expiry(due_ms: u64, kind: Expiring, row_key: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + row_key.len());
    key.extend_from_slice(&due_ms.to_be_bytes());
    key.push(kind.tag());
    key.extend_from_slice(row_key);
    key
}

/// Due time, kind and key of the row that a key of [`Table::Expiry`] names.
pub fn parse_expiry(key: &[u8]) -> Option<(u64, Expiring, &[u8])> {
    let (due_ms, rest) = key.split_first_chunk::<8>()?;
    let (tag, row_key) = rest.split_first()?;
    let kind = Expiring::ALL.into_iter().find(|kind| kind.tag() == *tag)?;
    Some((u64::from_be_bytes(*due_ms), kind, row_key))
}

/// Before this key lies all that is due at `now_ms`.
pub fn expiry_until(now_ms: u64) -> Option<Vec<u8>> {
    Some(now_ms.checked_add(1)?.to_be_bytes().to_vec())
}

fn join(name: &str, rest: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.len() + 1 + rest.len());
    key.extend_from_slice(name.as_bytes());
    key.push(SEPARATOR);
    key.extend_from_slice(rest.as_bytes());
    key
}

fn split(key: &[u8]) -> Option<(&str, &str)> {
    let at = key.iter().position(|byte| *byte == SEPARATOR)?;
    Some((std::str::from_utf8(&key[..at]).ok()?, std::str::from_utf8(&key[at + 1..]).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_give_their_parts_back() {
        assert_eq!(parse_entry(&entry("agent:main:main", 258)), Some(("agent:main:main", 258)));
        assert_eq!(parse_turn_by_runner(&turn_by_runner("node-1", "0a")), Some(("node-1", "0a")));
        assert_eq!(parse_inbox(&inbox("http", "key")), Some(("http", "key")));
        assert_eq!(parse_expiry(&expiry(7, Expiring::Turn, b"0a")), Some((7, Expiring::Turn, &b"0a"[..])));
    }

    #[test]
    fn bytes_that_are_no_key_are_not_parsed() {
        for bad in [&b""[..], b"short", b"name-without-separator"] {
            assert_eq!(parse_entry(bad), None, "{bad:?}");
            assert_eq!(parse_inbox(bad), None, "{bad:?}");
        }
        assert_eq!(parse_inbox(b"a\0\xff"), None);
        assert_eq!(parse_expiry(b"1234567"), None);
        assert_eq!(parse_expiry(b"12345678"), None);
        assert_eq!(parse_expiry(b"12345678\x09row"), None);
    }

    #[test]
    fn entries_of_a_session_lie_together_in_order_and_apart_from_a_longer_name() {
        let (from, until) = under("a");
        assert!(from <= entry("a", 0) && entry("a", 1) < entry("a", 256) && entry("a", u64::MAX) < until);
        assert!(entry("a:b", 0) >= until);
        assert!(entry("a!", 0) >= until);
    }

    #[test]
    fn what_is_due_now_lies_before_the_end_of_the_scan() {
        let until = expiry_until(1000).unwrap();
        assert!(expiry(1000, Expiring::Turn, &[0xff; 40]) < until);
        assert!(expiry(1001, Expiring::Inbox, b"") >= until);
        assert_eq!(expiry_until(u64::MAX), None);
    }
}
