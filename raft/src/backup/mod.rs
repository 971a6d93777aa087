//! Backups: all rows at one log id as a stream of bytes, and what makes a new cluster of them.
//!
//! A backup is a snapshot with words of its own around it, so whatever reads snapshots of a format version reads the rows:
//!
//! ```text
//! header    "OCLWBKUP", version u32, length u32, BackupHeader, CRC-32 of all before
//! blocks    length u32, bytes; length 0 ends them: together a snapshot, as `state_machine::snapshot` has it
//! trailer   length u32, BackupTrailer, CRC-32 of both
//! ```
//!
//! Numbers are big-endian. The trailer's hash is the one that an instance gives of itself (`state_hash`), so a backup can be
//! held against a running cluster. Nothing is compressed: a pipe does that (`openclaw cluster backup - | zstd`).
//!
//! No more than a page of rows is in memory, and one row where a running instance writes. Backups come from [`crate::Node::back_up`], or from the directory of an
//! instance that is stopped ([`of_stopped`]); [`restore`] makes the directory of a new cluster's first member.

mod blocks;

use std::io::{self, Read, Write};

use openclaw_proto::raft as pb;
use prost::Message;

use crate::state_machine::{
    RowHash, SnapshotError, SnapshotReader, SnapshotRow, SnapshotWriter, Table, TableError, Tables, format, read,
    restored,
};
use blocks::{BlockReader, BlockWriter};

pub use crate::storage::{OfflineError, RestoreError, RestoreOptions, Restored, of_stopped, restore};

const MAGIC: [u8; 8] = *b"OCLWBKUP";
/// Version of what is around the snapshot.
pub const BACKUP_FORMAT_VERSION: u32 = 1;
/// Of header and trailer.
const MAX_WORDS: usize = 64 * 1024;

/// Who writes a backup, and when.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// Unix milliseconds.
    pub taken_ms: u64,
    /// For people.
    pub release: String,
}

/// Why a backup was not written or not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{0}")]
    Io(#[source] io::Error),
    #[error("read the state: {0}")]
    Tables(#[from] TableError),
    #[error("it is not a backup: it begins with {found:02x?}")]
    Magic { found: Vec<u8> },
    #[error("it has backup format {found}; this release reads {BACKUP_FORMAT_VERSION}: use the release that wrote it")]
    Version { found: u32 },
    #[error("it ends in the middle, after {rows} rows")]
    Truncated { rows: u64 },
    #[error("its {part} is damaged: {detail}")]
    Damaged { part: &'static str, detail: String },
    #[error(
        "its rows have format {found}; this release reads up to {}: use the release that wrote it",
        format::supported()
    )]
    RowFormat { found: u32 },
    #[error("its rows are damaged: {0}")]
    Rows(#[source] SnapshotError),
}

impl BackupError {
    /// Whether the bytes are at fault, and not who reads or takes them.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Io(_) | Self::Tables(_) => false,
            Self::Magic { .. }
            | Self::Version { .. }
            | Self::RowFormat { .. }
            | Self::Truncated { .. }
            | Self::Damaged { .. }
            | Self::Rows(_) => true,
        }
    }

    fn of_stream(error: io::Error, rows: u64) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Truncated { rows }
        } else if error.kind() == io::ErrorKind::InvalidData {
            Self::Damaged { part: "block", detail: error.to_string() }
        } else {
            Self::Io(error)
        }
    }

    fn of_rows(error: SnapshotError, rows: u64) -> Self {
        match error {
            SnapshotError::Io(error) => Self::of_stream(error, rows),
            SnapshotError::Tables(error) => Self::Tables(error),
            SnapshotError::Truncated { rows } => Self::Truncated { rows },
            SnapshotError::Version { found } => Self::RowFormat { found },
            SnapshotError::Magic { .. }
            | SnapshotError::FrameTooLarge { .. }
            | SnapshotError::Checksum { .. }
            | SnapshotError::UnknownTable { .. }
            | SnapshotError::OutOfOrder { .. }
            | SnapshotError::RowCount { .. }
            | SnapshotError::TrailingBytes => Self::Rows(error),
        }
    }
}

/// What went through, as the trailer will say it.
#[derive(Debug, Default)]
struct Tally {
    tables: Vec<pb::BackupTable>,
    all: RowHash,
    kept: RowHash,
}

impl Tally {
    /// Rows come in table and key order.
    fn row(&mut self, table: Table, key: &[u8], value: &[u8]) {
        let tag = u32::from(table.tag());
        if self.tables.last().is_none_or(|last| last.tag != tag) {
            self.tables.push(pb::BackupTable { tag, rows: 0, bytes: 0 });
        }
        if let Some(counted) = self.tables.last_mut() {
            counted.rows += 1;
            counted.bytes += (key.len() + value.len()) as u64;
        }
        self.all.row(table, key, value);
        if restored::keeps(table) {
            self.kept.row(table, key, value);
        }
    }

    fn finish(self) -> pb::BackupTrailer {
        pb::BackupTrailer {
            tables: self.tables,
            state_sha256: self.all.finish().to_vec().into(),
            kept_sha256: self.kept.finish().to_vec().into(),
        }
    }
}

/// Takes a row, of those that come in table and key order.
pub(crate) type Each<'a> = dyn FnMut(Table, &[u8], &[u8]) -> Result<(), BackupError> + 'a;

/// Writes all rows of `tables`, which stay as they are meanwhile.
///
/// # Errors
/// [`BackupError::Io`] of `to`, or [`BackupError::Tables`].
pub fn write(
    tables: &(impl Tables + ?Sized),
    header: &pb::BackupHeader,
    to: impl Write,
) -> Result<pb::BackupTrailer, BackupError> {
    write_rows(header, format::active(tables)?, to, |each| read::for_each_row(tables, each))
}

/// As [`write`], of rows of `format` that `walk` brings.
pub(crate) fn write_rows(
    header: &pb::BackupHeader,
    format: u32,
    mut to: impl Write,
    walk: impl FnOnce(&mut Each<'_>) -> Result<(), BackupError>,
) -> Result<pb::BackupTrailer, BackupError> {
    to.write_all(&words(&[&MAGIC[..], &BACKUP_FORMAT_VERSION.to_be_bytes()].concat(), header))
        .map_err(BackupError::Io)?;
    let applied = pb::SnapshotMeta { last_log_id: header.applied, membership: None }.encode_to_vec();
    let rows = |error| BackupError::of_rows(error, 0);
    let mut snapshot = SnapshotWriter::new(BlockWriter::new(to), format, &applied).map_err(rows)?;
    let mut tally = Tally::default();
    walk(&mut |table, key, value| {
        tally.row(table, key, value);
        snapshot.row(table, key, value).map_err(rows)
    })?;
    let (blocks, _) = snapshot.finish().map_err(rows)?;
    let mut to = blocks.finish().map_err(BackupError::Io)?;
    let trailer = tally.finish();
    to.write_all(&words(&[], &trailer)).and_then(|()| to.flush()).map_err(BackupError::Io)?;
    Ok(trailer)
}

/// `before`, the message with its length, and a checksum of all that.
fn words(before: &[u8], message: &impl Message) -> Vec<u8> {
    let mut bytes = before.to_vec();
    bytes.extend_from_slice(&u32::try_from(message.encoded_len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
    bytes
}

/// Reads a backup. Rows come out before the trailer has vouched for the whole: keep them apart until
/// [`Self::next_row`] has returned `None`.
pub struct BackupReader<R: Read> {
    rows: SnapshotReader<BlockReader<R>>,
    header: pb::BackupHeader,
    tally: Tally,
    trailer: Option<pb::BackupTrailer>,
}

impl<R: Read> std::fmt::Debug for BackupReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupReader").field("header", &self.header).finish_non_exhaustive()
    }
}

impl<R: Read> BackupReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`BackupError`] says what is wrong with it.
    pub fn new(mut from: R) -> Result<Self, BackupError> {
        let mut head = Vec::new();
        from.by_ref().take(12).read_to_end(&mut head).map_err(BackupError::Io)?;
        match head.split_first_chunk::<8>() {
            Some((magic, version)) if *magic == MAGIC => {
                let version = <[u8; 4]>::try_from(version).map_err(|_| BackupError::Truncated { rows: 0 })?;
                let found = u32::from_be_bytes(version);
                if found != BACKUP_FORMAT_VERSION {
                    return Err(BackupError::Version { found });
                }
            }
            Some(_) | None => return Err(BackupError::Magic { found: head.into_iter().take(8).collect() }),
        }
        let header: pb::BackupHeader = read_words(&mut from, &head, "header", 0)?;
        let rows = SnapshotReader::new(BlockReader::new(from)).map_err(|error| BackupError::of_rows(error, 0))?;
        let meta = pb::SnapshotMeta::decode(rows.meta())
            .map_err(|error| BackupError::Damaged { part: "snapshot's header", detail: error.to_string() })?;
        if meta.last_log_id != header.applied {
            let detail = "it names another log id than the backup's header".to_owned();
            return Err(BackupError::Damaged { part: "snapshot's header", detail });
        }
        Ok(Self { rows, header, tally: Tally::default(), trailer: None })
    }

    /// Of the rows.
    pub(crate) fn format(&self) -> u32 {
        self.rows.format()
    }

    pub fn header(&self) -> &pb::BackupHeader {
        &self.header
    }

    /// What the backup held; nothing until all of it was read and found right.
    pub fn trailer(&self) -> Option<&pb::BackupTrailer> {
        self.trailer.as_ref()
    }

    /// The next row; `None` once the trailer has confirmed all of them, and from then on.
    ///
    /// # Errors
    /// [`BackupError`] says what is wrong, and where.
    pub fn next_row(&mut self) -> Result<Option<SnapshotRow>, BackupError> {
        if self.trailer.is_some() {
            return Ok(None);
        }
        let count = self.rows.totals().rows;
        match self.rows.next_row() {
            Ok(Some(row)) => {
                self.tally.row(row.table, &row.key, &row.value);
                return Ok(Some(row));
            }
            Ok(None) => {}
            // Cut in the middle, the blocks would have no end.
            Err(SnapshotError::Truncated { rows }) if self.rows.source().has_ended() => {
                let detail = format!("the one after {rows} rows is longer than what is left");
                return Err(BackupError::Damaged { part: "last row", detail });
            }
            Err(error) => return Err(BackupError::of_rows(error, count)),
        }
        let from = self.rows.source().inner();
        let stored: pb::BackupTrailer = read_words(from, &[], "trailer", count)?;
        let mut beyond = [0];
        match from.read_exact(&mut beyond) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(BackupError::Io(error)),
            Ok(()) => {
                return Err(BackupError::Damaged { part: "end", detail: "bytes follow it".to_owned() });
            }
        }
        let actual = std::mem::take(&mut self.tally).finish();
        if stored != actual {
            let detail = "its counts or hashes are not those of the rows".to_owned();
            return Err(BackupError::Damaged { part: "trailer", detail });
        }
        self.trailer = Some(actual);
        Ok(None)
    }

    /// Reads all that is left, and checks it.
    ///
    /// # Errors
    /// As [`Self::next_row`].
    pub fn verify(&mut self) -> Result<pb::BackupTrailer, BackupError> {
        while self.next_row()?.is_some() {}
        Ok(self.trailer.clone().unwrap_or_default())
    }
}

/// Reads what [`words`] wrote, of which `before` was read already.
fn read_words<M: Message + Default>(
    from: &mut impl Read,
    before: &[u8],
    part: &'static str,
    rows: u64,
) -> Result<M, BackupError> {
    let failed = |error| BackupError::of_stream(error, rows);
    let damaged = |detail: String| BackupError::Damaged { part, detail };
    let mut length = [0; 4];
    from.read_exact(&mut length).map_err(failed)?;
    let bytes = u32::from_be_bytes(length) as usize;
    if bytes > MAX_WORDS {
        return Err(damaged(format!("it says that it has {bytes} bytes; at most {MAX_WORDS} are allowed")));
    }
    let mut message = vec![0; bytes];
    from.read_exact(&mut message).map_err(failed)?;
    let mut sum = [0; 4];
    from.read_exact(&mut sum).map_err(failed)?;
    let mut hash = crc32fast::Hasher::new();
    for read in [before, &length, &message] {
        hash.update(read);
    }
    let (expected, actual) = (u32::from_be_bytes(sum), hash.finalize());
    if expected != actual {
        return Err(damaged(format!("it has checksum {actual:08x}, not {expected:08x}")));
    }
    M::decode(&*message).map_err(|error| damaged(error.to_string()))
}

#[cfg(test)]
mod tests;
