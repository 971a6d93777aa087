//! The bytes of row keys. Big-endian numbers and a zero byte after names keep key order the order of reading: no id
//! contains a zero byte.

/// Ends a name inside a longer key.
const SEPARATOR: u8 = 0x00;

/// The replicated clock, in [`Table::Marks`].
///
/// [`Table::Marks`]: super::Table::Marks
pub const CLOCK: &[u8] = b"now_ms";
/// The format of the state, in the same table.
pub const FORMAT: &[u8] = b"format";
/// How far a sweep came, in the same table.
pub const SWEEP: &[u8] = b"sweep";

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

pub fn intent(account: &str, id: u64) -> Vec<u8> {
    entry(account, id)
}

pub fn pairing(account: &str, sender_id: &str) -> Vec<u8> {
    join(account, sender_id)
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
    }

    #[test]
    fn bytes_that_are_no_key_are_not_parsed() {
        for bad in [&b""[..], b"short", b"name-without-separator"] {
            assert_eq!(parse_entry(bad), None, "{bad:?}");
            assert_eq!(parse_inbox(bad), None, "{bad:?}");
        }
        assert_eq!(parse_inbox(b"a\0\xff"), None);
    }

    #[test]
    fn entries_of_a_session_lie_together_in_order_and_apart_from_a_longer_name() {
        let (from, until) = under("a");
        assert!(from <= entry("a", 0) && entry("a", 1) < entry("a", 256) && entry("a", u64::MAX) < until);
        assert!(entry("a:b", 0) >= until);
        assert!(entry("a!", 0) >= until);
    }
}
