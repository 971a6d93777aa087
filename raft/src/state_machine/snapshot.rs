//! The logical snapshot: all rows as a stream of bytes that any release of the same format version reads, checked
//! piece by piece as it arrives. It holds one row in memory at a time.
//!
//! Numbers are big-endian, checksums CRC-32 (IEEE):
//!
//! ```text
//! header   "OCLWSNAP", version u32, meta length u32, meta, checksum of all before
//! frame    table tag u8, key length u32, value length u32, key, value, checksum of the frame
//! ...      frames in strictly ascending (tag, key) order, so that equal states have equal snapshots
//! trailer  0 u8, rows u64, checksum of header and frames u32, checksum of the trailer
//! ```
//!
//! The meta bytes are the caller's.

use std::io::{self, Read, Write};

use crc32fast::Hasher;

use super::{Table, TableError, Tables, format, read};

const MAGIC: [u8; 8] = *b"OCLWSNAP";

/// Stands where a frame has its table's tag.
const TRAILER_TAG: u8 = 0;

/// Longest meta, and longest key and value of a row together.
pub const MAX_FRAME_BYTES: usize = 16 * 1024 * 1024;

/// What a length field may make the reader allocate before the bytes themselves have come.
const TRUSTED_BYTES: usize = 64 * 1024;

/// Why a snapshot was not written or read to its end.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("snapshot stream: {0}")]
    Io(#[source] io::Error),
    #[error("read the state for a snapshot: {0}")]
    Tables(#[from] TableError),
    #[error("not a snapshot: it begins with {found:02x?}")]
    Magic { found: [u8; 8] },
    #[error("the snapshot has format version {found}; this release reads up to {}", format::supported())]
    Version { found: u32 },
    #[error("the snapshot ends in the middle, after {rows} rows")]
    Truncated { rows: u64 },
    #[error("a frame of {bytes} bytes after {rows} rows; at most {MAX_FRAME_BYTES} are allowed")]
    FrameTooLarge { bytes: usize, rows: u64 },
    #[error("the {part} has checksum {actual:08x} after {rows} rows, not {expected:08x}")]
    Checksum { part: &'static str, rows: u64, expected: u32, actual: u32 },
    #[error("table tag {tag} after {rows} rows is unknown")]
    UnknownTable { tag: u8, rows: u64 },
    #[error("the row after {rows} rows does not come after the one before it")]
    OutOfOrder { rows: u64 },
    #[error("the trailer counts {expected} rows, but {actual} came")]
    RowCount { expected: u64, actual: u64 },
    #[error("bytes follow the end of the snapshot")]
    TrailingBytes,
}

/// What went through a finished snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotTotals {
    pub rows: u64,
    pub bytes: u64,
}

/// A row as it stands in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRow {
    pub table: Table,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

/// Where in the (tag, key) order a stream of rows stands.
#[derive(Debug, Default)]
struct Order {
    tag: u8,
    key: Vec<u8>,
}

impl Order {
    /// Whether the row comes after all before it.
    fn advance(&mut self, tag: u8, key: &[u8]) -> bool {
        // Before the first row the tag is 0, which no table has.
        let ascends = (tag, key) > (self.tag, self.key.as_slice());
        self.tag = tag;
        self.key.clear();
        self.key.extend_from_slice(key);
        ascends
    }
}

fn frame_bytes(key: usize, value: usize, rows: u64) -> Result<usize, SnapshotError> {
    let bytes = key.saturating_add(value);
    if bytes > MAX_FRAME_BYTES { Err(SnapshotError::FrameTooLarge { bytes, rows }) } else { Ok(bytes) }
}

/// Writes a snapshot. Wrap what is slow per call in a `BufWriter`.
#[derive(Debug)]
pub struct SnapshotWriter<W> {
    to: W,
    total: Hasher,
    order: Order,
    totals: SnapshotTotals,
}

impl<W: Write> SnapshotWriter<W> {
    /// Writes the header, for rows of `format`.
    ///
    /// # Errors
    /// [`SnapshotError::Io`], or [`SnapshotError::FrameTooLarge`] for too long a meta.
    pub fn new(to: W, format: u32, meta: &[u8]) -> Result<Self, SnapshotError> {
        let length = frame_bytes(meta.len(), 0, 0)?;
        let totals = SnapshotTotals { rows: 0, bytes: 0 };
        let mut writer = Self { to, total: Hasher::new(), order: Order::default(), totals };
        let mut head = Vec::with_capacity(16);
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&format.to_be_bytes());
        head.extend_from_slice(&(length as u32).to_be_bytes());
        writer.checked(&[&head, meta])?;
        Ok(writer)
    }

    /// Writes one row. Rows come in table and key order, each once.
    ///
    /// # Errors
    /// [`SnapshotError::Io`], [`SnapshotError::FrameTooLarge`], [`SnapshotError::OutOfOrder`].
    pub fn row(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), SnapshotError> {
        frame_bytes(key.len(), value.len(), self.totals.rows)?;
        if !self.order.advance(table.tag(), key) {
            return Err(SnapshotError::OutOfOrder { rows: self.totals.rows });
        }
        let mut head = [0; 9];
        head[0] = table.tag();
        head[1..5].copy_from_slice(&(key.len() as u32).to_be_bytes());
        head[5..9].copy_from_slice(&(value.len() as u32).to_be_bytes());
        self.checked(&[&head, key, value])?;
        self.totals.rows += 1;
        Ok(())
    }

    /// Writes all rows of the tables.
    ///
    /// # Errors
    /// As [`Self::row`], and [`SnapshotError::Tables`].
    pub fn rows_of(&mut self, tables: &(impl Tables + ?Sized)) -> Result<(), SnapshotError> {
        read::for_each_row(tables, |table, key, value| self.row(table, key, value))
    }

    /// Writes the trailer and flushes. Without it the snapshot reads as truncated.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn finish(mut self) -> Result<(W, SnapshotTotals), SnapshotError> {
        let mut trailer = [0; 13];
        trailer[0] = TRAILER_TAG;
        trailer[1..9].copy_from_slice(&self.totals.rows.to_be_bytes());
        trailer[9..13].copy_from_slice(&self.total.clone().finalize().to_be_bytes());
        self.checked(&[&trailer])?;
        self.to.flush().map_err(SnapshotError::Io)?;
        Ok((self.to, self.totals))
    }

    /// Writes the parts and their checksum.
    fn checked(&mut self, parts: &[&[u8]]) -> Result<(), SnapshotError> {
        let mut part_sum = Hasher::new();
        for part in parts {
            part_sum.update(part);
        }
        let sum = part_sum.finalize().to_be_bytes();
        for part in parts.iter().copied().chain([&sum[..]]) {
            self.total.update(part);
            self.to.write_all(part).map_err(SnapshotError::Io)?;
            self.totals.bytes += part.len() as u64;
        }
        Ok(())
    }
}

/// Reads a snapshot. Rows come out before the trailer has vouched for the whole: keep them apart until
/// [`Self::next_row`] has returned `None`.
#[derive(Debug)]
pub struct SnapshotReader<R> {
    from: R,
    total: Hasher,
    order: Order,
    totals: SnapshotTotals,
    format: u32,
    meta: Vec<u8>,
    ended: bool,
}

impl<R: Read> SnapshotReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`SnapshotError`] says what is wrong with it.
    pub fn new(from: R) -> Result<Self, SnapshotError> {
        let totals = SnapshotTotals { rows: 0, bytes: 0 };
        let (order, meta) = (Order::default(), Vec::new());
        let mut reader = Self { from, total: Hasher::new(), order, totals, format: 0, meta, ended: false };
        let mut part = Part::default();

        let magic: [u8; 8] = reader.array(&mut part)?;
        if magic != MAGIC {
            return Err(SnapshotError::Magic { found: magic });
        }
        reader.format = u32::from_be_bytes(reader.array(&mut part)?);
        if !(1..=format::supported()).contains(&reader.format) {
            return Err(SnapshotError::Version { found: reader.format });
        }
        let length = frame_bytes(u32::from_be_bytes(reader.array(&mut part)?) as usize, 0, 0)?;
        reader.meta = reader.bytes(length, &mut part)?;
        reader.check("header", part)?;
        Ok(reader)
    }

    /// Of the rows.
    pub fn format(&self) -> u32 {
        self.format
    }

    /// What the writer was given.
    pub fn meta(&self) -> &[u8] {
        &self.meta
    }

    pub fn totals(&self) -> SnapshotTotals {
        self.totals
    }

    /// Where the snapshot is read from: past its end once [`Self::next_row`] has returned `None`.
    pub fn source(&mut self) -> &mut R {
        &mut self.from
    }

    /// The next row; `None` once the trailer has confirmed all of them, and from then on.
    ///
    /// # Errors
    /// [`SnapshotError`] says what is wrong with the stream, and where.
    pub fn next_row(&mut self) -> Result<Option<SnapshotRow>, SnapshotError> {
        if self.ended {
            return Ok(None);
        }
        let total = self.total.clone();
        let mut part = Part::default();
        let [tag] = self.array(&mut part)?;
        if tag == TRAILER_TAG {
            self.trailer(part, total.finalize())?;
            self.ended = true;
            return Ok(None);
        }
        let key_bytes = u32::from_be_bytes(self.array(&mut part)?) as usize;
        let value_bytes = u32::from_be_bytes(self.array(&mut part)?) as usize;
        frame_bytes(key_bytes, value_bytes, self.totals.rows)?;
        let key = self.bytes(key_bytes, &mut part)?;
        let value = self.bytes(value_bytes, &mut part)?;
        self.check("frame", part)?;

        let rows = self.totals.rows;
        let table = Table::from_tag(tag).ok_or(SnapshotError::UnknownTable { tag, rows })?;
        if !self.order.advance(tag, &key) {
            return Err(SnapshotError::OutOfOrder { rows });
        }
        self.totals.rows += 1;
        Ok(Some(SnapshotRow { table, key, value }))
    }

    fn trailer(&mut self, mut part: Part, actual: u32) -> Result<(), SnapshotError> {
        let counted = u64::from_be_bytes(self.array(&mut part)?);
        let expected = u32::from_be_bytes(self.array(&mut part)?);
        self.check("trailer", part)?;
        let rows = self.totals.rows;
        if counted != rows {
            return Err(SnapshotError::RowCount { expected: counted, actual: rows });
        }
        if expected != actual {
            return Err(SnapshotError::Checksum { part: "snapshot", rows, expected, actual });
        }
        let mut beyond = [0];
        match self.from.read_exact(&mut beyond) {
            Ok(()) => Err(SnapshotError::TrailingBytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            Err(error) => Err(SnapshotError::Io(error)),
        }
    }

    fn array<const N: usize>(&mut self, part: &mut Part) -> Result<[u8; N], SnapshotError> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).map_err(|error| self.failed(error))?;
        self.took(&bytes, part);
        Ok(bytes)
    }

    /// Reads a part whose length is not trusted: memory grows only as bytes come.
    fn bytes(&mut self, length: usize, part: &mut Part) -> Result<Vec<u8>, SnapshotError> {
        let mut bytes = Vec::with_capacity(length.min(TRUSTED_BYTES));
        self.from.by_ref().take(length as u64).read_to_end(&mut bytes).map_err(SnapshotError::Io)?;
        if bytes.len() < length {
            return Err(SnapshotError::Truncated { rows: self.totals.rows });
        }
        self.took(&bytes, part);
        Ok(bytes)
    }

    fn took(&mut self, bytes: &[u8], part: &mut Part) {
        part.0.update(bytes);
        self.total.update(bytes);
        self.totals.bytes += bytes.len() as u64;
    }

    /// Reads the checksum that ends a part, and compares.
    fn check(&mut self, name: &'static str, part: Part) -> Result<(), SnapshotError> {
        let actual = part.0.finalize();
        let expected = u32::from_be_bytes(self.array(&mut Part::default())?);
        if expected == actual {
            return Ok(());
        }
        Err(SnapshotError::Checksum { part: name, rows: self.totals.rows, expected, actual })
    }

    fn failed(&self, error: io::Error) -> SnapshotError {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return SnapshotError::Truncated { rows: self.totals.rows };
        }
        SnapshotError::Io(error)
    }
}

/// The checksum of the part that is being read.
#[derive(Default)]
struct Part(Hasher);

#[cfg(test)]
mod tests {
    use super::super::STATE_FORMAT_VERSION;
    use super::super::{MemoryTables, Write as TableWrite};
    use super::*;

    fn tables() -> MemoryTables {
        let mut tables = MemoryTables::default();
        let row =
            |table, key: &[u8], value: &[u8]| TableWrite { table, key: key.to_vec(), value: Some(value.to_vec()) };
        tables.apply([
            row(Table::Sessions, b"agent:main:main", b"a session"),
            row(Table::Sessions, b"agent:main:other", b"another"),
            row(Table::TurnsByRunner, b"node-1\0aa", b""),
            row(Table::Marks, b"now_ms", &[0, 0, 0, 0, 0, 0, 0, 9]),
        ]);
        tables
    }

    fn written(tables: &MemoryTables) -> Vec<u8> {
        let mut writer = SnapshotWriter::new(Vec::new(), STATE_FORMAT_VERSION, b"meta").unwrap();
        writer.rows_of(tables).unwrap();
        let (bytes, totals) = writer.finish().unwrap();
        assert_eq!(totals.bytes, bytes.len() as u64);
        bytes
    }

    fn restored(bytes: &[u8]) -> Result<MemoryTables, SnapshotError> {
        let mut reader = SnapshotReader::new(bytes)?;
        let mut tables = MemoryTables::default();
        while let Some(SnapshotRow { table, key, value }) = reader.next_row()? {
            tables.apply([TableWrite { table, key, value: Some(value) }]);
        }
        assert_eq!(reader.meta(), b"meta");
        assert_eq!(reader.totals().bytes, bytes.len() as u64);
        assert!(reader.next_row()?.is_none());
        Ok(tables)
    }

    #[test]
    fn a_state_survives_its_snapshot() {
        for tables in [tables(), MemoryTables::default()] {
            assert_eq!(restored(&written(&tables)).unwrap(), tables);
        }
    }

    #[test]
    fn every_truncation_is_noticed() {
        let bytes = written(&tables());
        for length in 0..bytes.len() {
            let error = restored(&bytes[..length]).unwrap_err();
            assert!(matches!(error, SnapshotError::Truncated { .. }), "{length}: {error}");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = written(&tables());
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(restored(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn bytes_after_the_end_are_noticed() {
        let mut bytes = written(&tables());
        bytes.push(0);
        assert!(matches!(restored(&bytes), Err(SnapshotError::TrailingBytes)));
    }

    #[test]
    fn another_version_and_another_file_are_named() {
        let mut bytes = written(&tables());
        bytes[11] = 2;
        assert!(matches!(restored(&bytes), Err(SnapshotError::Version { found: 2 })));
        bytes[0] = b'X';
        assert!(matches!(restored(&bytes), Err(SnapshotError::Magic { .. })));
    }

    /// A header and whatever frame follows it, with the frame's checksum right.
    fn with_frame(frame: &[u8]) -> Vec<u8> {
        let (mut bytes, _) = SnapshotWriter::new(Vec::new(), STATE_FORMAT_VERSION, b"meta").unwrap().finish().unwrap();
        bytes.truncate(bytes.len() - 17);
        bytes.extend_from_slice(frame);
        bytes.extend_from_slice(&crc32fast::hash(frame).to_be_bytes());
        bytes
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_before_it_is_read() {
        for (key, value) in [(u32::MAX, u32::MAX), (MAX_FRAME_BYTES as u32, 1), (0, MAX_FRAME_BYTES as u32 + 1)] {
            let frame = [&[1][..], &key.to_be_bytes(), &value.to_be_bytes()].concat();
            assert!(matches!(restored(&with_frame(&frame)), Err(SnapshotError::FrameTooLarge { .. })));
        }
        let mut writer = SnapshotWriter::new(Vec::new(), STATE_FORMAT_VERSION, b"").unwrap();
        let error = writer.row(Table::Marks, b"k", &vec![0; MAX_FRAME_BYTES]).unwrap_err();
        assert!(matches!(error, SnapshotError::FrameTooLarge { .. }));
    }

    #[test]
    fn a_table_of_a_later_release_is_named() {
        let error = restored(&with_frame(&[99, 0, 0, 0, 0, 0, 0, 0, 0])).unwrap_err();
        assert!(matches!(error, SnapshotError::UnknownTable { tag: 99, rows: 0 }), "{error}");
    }

    #[test]
    fn rows_out_of_order_or_twice_are_refused_on_both_sides() {
        for (first, second) in
            [((Table::Turns, b"a"), (Table::Turns, b"a")), ((Table::Turns, b"a"), (Table::Entries, b"b"))]
        {
            let mut writer = SnapshotWriter::new(Vec::new(), STATE_FORMAT_VERSION, b"meta").unwrap();
            writer.row(first.0, first.1, b"").unwrap();
            let error = writer.row(second.0, second.1, b"").unwrap_err();
            assert!(matches!(error, SnapshotError::OutOfOrder { rows: 1 }), "{error}");
        }
        let frame = [3, 0, 0, 0, 1, 0, 0, 0, 0, b'a'];
        let mut bytes = with_frame(&frame);
        bytes.extend_from_slice(&frame);
        bytes.extend_from_slice(&crc32fast::hash(&frame).to_be_bytes());
        assert!(matches!(restored(&bytes), Err(SnapshotError::OutOfOrder { rows: 1 })));
    }

    #[test]
    fn a_missing_frame_is_noticed_by_the_trailer() {
        let bytes = written(&tables());
        let header = 8 + 4 + 4 + 4 + 4;
        let first = 9 + b"agent:main:main".len() + b"a session".len() + 4;
        let shortened = [&bytes[..header], &bytes[header + first..]].concat();
        assert!(matches!(restored(&shortened), Err(SnapshotError::RowCount { expected: 4, actual: 3 })));
    }
}
