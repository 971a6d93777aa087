//! Keys in RocksDB. Every key begins with its group, so that groups share column families without meeting.

use openclaw_proto::ids::GroupId;

/// Column family of log entries: group, index.
pub(super) const LOG: &str = "log";
/// Column family of the few values that are not rows: votes, marks, the identity.
pub(super) const META: &str = "meta";

/// Instance-wide values in [`META`].
pub(super) const FORMAT_VERSION: &[u8] = b"format";
pub(super) const IDENTITY: &[u8] = b"identity";

/// Values of one group in [`META`].
#[derive(Debug, Clone, Copy)]
pub(super) enum Meta {
    Vote,
    Committed,
    Purged,
    /// Log id and membership that the state's rows reflect.
    Applied,
    /// Which generation of rows is current; installing a snapshot writes the next one beside it.
    Generation,
}

pub(super) fn meta(group: GroupId, value: Meta) -> [u8; 6] {
    let mut key = [0; 6];
    key[0] = b'g';
    key[1..5].copy_from_slice(&group.0.to_be_bytes());
    key[5] = match value {
        Meta::Vote => b'v',
        Meta::Committed => b'c',
        Meta::Purged => b'p',
        Meta::Applied => b'a',
        Meta::Generation => b'n',
    };
    key
}

pub(super) fn log(group: GroupId, index: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&group.0.to_be_bytes());
    key[4..].copy_from_slice(&index.to_be_bytes());
    key
}

/// The first key after all log entries of `group`.
pub(super) fn log_end(group: GroupId) -> [u8; 12] {
    let mut key = [0xff; 12];
    key[..4].copy_from_slice(&group.0.to_be_bytes());
    key
}

/// What the rows of one generation of `group` begin with.
pub(super) fn row_prefix(group: GroupId, generation: u32) -> [u8; 8] {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&group.0.to_be_bytes());
    key[4..].copy_from_slice(&generation.to_be_bytes());
    key
}

/// The first key after all rows of `generation`.
pub(super) fn row_prefix_end(group: GroupId, generation: u32) -> Vec<u8> {
    match generation.checked_add(1) {
        Some(next) => row_prefix(group, next).to_vec(),
        None => (group.0 + 1).to_be_bytes().to_vec(),
    }
}
