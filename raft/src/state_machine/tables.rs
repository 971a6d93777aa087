//! The tables as the state machine sees them: bytes in key order, behind a trait that RocksDB, memory and a batch of
//! unwritten changes implement alike.

use std::collections::BTreeMap;
use std::error::Error;
use std::ops::Bound;

/// A table of replicated state. Closed: snapshots name tables by [`Table::tag`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Session key -> `Session`.
    Sessions,
    /// Session key, 0x00, seq big-endian -> `Entry`.
    Entries,
    /// Turn id -> `Turn`.
    Turns,
    /// Runner, 0x00, turn id -> nothing: the turns that have not ended, by the instance that runs or will run them.
    TurnsByRunner,
    /// Account, 0x00, external id -> `InboxRecord`.
    Inbox,
    /// Instance id -> `Instance`.
    Instances,
    /// The state machine's own few values: the replicated clock, and how far a sweep came.
    Marks,
    /// Channel account -> `Lease`.
    Leases,
    /// Channel account -> `Cursor`.
    Cursors,
    /// Channel account, 0x00, id big-endian -> `Intent`.
    Outbox,
    /// Channel account, 0x00, sender id -> `Pairing`.
    Pairings,
}

impl Table {
    pub const COUNT: usize = 11;

    /// In the order of their tags.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Sessions,
        Self::Entries,
        Self::Turns,
        Self::TurnsByRunner,
        Self::Inbox,
        Self::Instances,
        Self::Marks,
        Self::Leases,
        Self::Cursors,
        Self::Outbox,
        Self::Pairings,
    ];

    /// How snapshots name the table: never reused, never zero.
    pub const fn tag(self) -> u8 {
        match self {
            Self::Sessions => 1,
            Self::Entries => 2,
            Self::Turns => 3,
            Self::TurnsByRunner => 4,
            Self::Inbox => 5,
            Self::Instances => 6,
            Self::Marks => 7,
            Self::Leases => 8,
            Self::Cursors => 9,
            Self::Outbox => 10,
            Self::Pairings => 11,
        }
    }

    pub fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.tag() == tag)
    }

    /// The column family that holds it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::Entries => "entries",
            Self::Turns => "turns",
            Self::TurnsByRunner => "turns_by_runner",
            Self::Inbox => "inbox",
            Self::Instances => "instances",
            Self::Marks => "marks",
            Self::Leases => "leases",
            Self::Cursors => "cursors",
            Self::Outbox => "outbox",
            Self::Pairings => "pairings",
        }
    }

    /// Position in [`Table::ALL`].
    const fn slot(self) -> usize {
        self.tag() as usize - 1
    }
}

/// Why a table could not be read. Whoever applies commands stops on it: going on could diverge from the other instances.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("read table {table}: {source}")]
    Storage { table: &'static str, source: Box<dyn Error + Send + Sync> },
    #[error("log entry {index} is of a kind that only a later release knows: install the release that the others have")]
    UnknownCommand { index: u64 },
    /// A row that no command can have written.
    #[error("table {table} is damaged at key {key}: {reason}")]
    Damaged { table: &'static str, key: String, reason: String },
}

impl TableError {
    pub fn storage(table: Table, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Storage { table: table.name(), source: source.into() }
    }

    pub fn damaged(table: Table, key: &[u8], reason: impl Into<String>) -> Self {
        Self::Damaged { table: table.name(), key: key.escape_ascii().to_string(), reason: reason.into() }
    }
}

/// One row as a scan returns it.
pub type Row = (Vec<u8>, Vec<u8>);

/// Reads of one consistent state.
pub trait Tables {
    /// The row's value.
    ///
    /// # Errors
    /// [`TableError::Storage`] when the store cannot answer.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError>;

    /// At most `limit` rows with `from <= key < until`, in key order.
    ///
    /// # Errors
    /// [`TableError::Storage`] when the store cannot answer.
    fn scan(&self, table: Table, from: &[u8], until: Option<&[u8]>, limit: usize) -> Result<Vec<Row>, TableError>;
}

/// One row to store, or to drop when it has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub table: Table,
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

/// The bounds of a scan, or nothing when they cross (which `BTreeMap::range` would panic on).
fn bounds<'a>(from: &'a [u8], until: Option<&'a [u8]>) -> Option<Bounds<'a>> {
    match until {
        Some(until) if until <= from => None,
        Some(until) => Some((Bound::Included(from), Bound::Excluded(until))),
        None => Some((Bound::Included(from), Bound::Unbounded)),
    }
}

type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// All tables in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryTables {
    tables: [BTreeMap<Vec<u8>, Vec<u8>>; Table::COUNT],
}

impl MemoryTables {
    pub fn apply(&mut self, writes: impl IntoIterator<Item = Write>) {
        for Write { table, key, value } in writes {
            let rows = &mut self.tables[table.slot()];
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
    }

    pub fn row_count(&self, table: Table) -> usize {
        self.tables[table.slot()].len()
    }
}

impl Tables for MemoryTables {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        Ok(self.tables[table.slot()].get(key).cloned())
    }

    fn scan(&self, table: Table, from: &[u8], until: Option<&[u8]>, limit: usize) -> Result<Vec<Row>, TableError> {
        let Some(range) = bounds(from, until) else { return Ok(Vec::new()) };
        let rows = self.tables[table.slot()].range::<[u8], _>(range);
        Ok(rows.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

/// Unwritten changes over a base, read as if they were written.
///
/// Within one command it lets a later step see an earlier one; over a batch it lets one RocksDB write hold the effect
/// of many commands, each decided on the state that the one before it left.
#[derive(Debug)]
pub struct Overlay<'a, T: ?Sized> {
    base: &'a T,
    changes: [BTreeMap<Vec<u8>, Option<Vec<u8>>>; Table::COUNT],
}

impl<'a, T: Tables + ?Sized> Overlay<'a, T> {
    pub fn new(base: &'a T) -> Self {
        Self { base, changes: Default::default() }
    }

    pub fn put(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.changes[table.slot()].insert(key, Some(value));
    }

    pub fn delete(&mut self, table: Table, key: Vec<u8>) {
        self.changes[table.slot()].insert(key, None);
    }

    pub fn apply(&mut self, writes: impl IntoIterator<Item = Write>) {
        for Write { table, key, value } in writes {
            self.changes[table.slot()].insert(key, value);
        }
    }

    /// The net effect, at most one write per row, in table and key order.
    pub fn into_writes(self) -> Vec<Write> {
        let mut writes = Vec::with_capacity(self.changes.iter().map(BTreeMap::len).sum());
        for (table, changes) in Table::ALL.into_iter().zip(self.changes) {
            writes.extend(changes.into_iter().map(|(key, value)| Write { table, key, value }));
        }
        writes
    }
}

impl<T: Tables + ?Sized> Tables for Overlay<'_, T> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        match self.changes[table.slot()].get(key) {
            Some(change) => Ok(change.clone()),
            None => self.base.get(table, key),
        }
    }

    fn scan(&self, table: Table, from: &[u8], until: Option<&[u8]>, limit: usize) -> Result<Vec<Row>, TableError> {
        let Some(range) = bounds(from, until) else { return Ok(Vec::new()) };
        let changes = self.changes[table.slot()].range::<[u8], _>(range);
        // Each dropped row may hide one of the base's, so that many more are asked of it.
        let dropped = changes.clone().filter(|(_, value)| value.is_none()).count();
        let mut base = self.base.scan(table, from, until, limit.saturating_add(dropped))?.into_iter().peekable();
        let mut changes = changes.peekable();

        let mut rows = Vec::with_capacity(base.len().min(limit));
        while rows.len() < limit {
            let change_is_next = match (changes.peek(), base.peek()) {
                (None, None) => break,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some((changed, _)), Some((stored, _))) => *changed <= stored,
            };
            if !change_is_next {
                rows.extend(base.next());
                continue;
            }
            let Some((key, value)) = changes.next() else { break };
            base.next_if(|(stored, _)| stored == key);
            if let Some(value) = value {
                rows.push((key.clone(), value.clone()));
            }
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_unique_and_name_their_table_again() {
        for (at, table) in Table::ALL.into_iter().enumerate() {
            assert_eq!(table.slot(), at, "{table:?}");
            assert_eq!(Table::from_tag(table.tag()), Some(table));
        }
        assert_eq!(Table::from_tag(0), None);
        assert_eq!(Table::from_tag(12), None);
    }

    proptest::proptest! {
        /// An overlay reads exactly as the base would after its writes.
        #[test]
        fn an_overlay_reads_as_if_it_were_written(
            stored in proptest::collection::btree_set(0u8..40, 0..30),
            changes in proptest::collection::vec((0u8..40, proptest::bool::ANY), 0..30),
            from in 0u8..42, until in proptest::option::of(0u8..42), limit in 0usize..45,
        ) {
            let table = Table::Turns;
            let mut base = MemoryTables::default();
            base.apply(stored.iter().map(|key| Write { table, key: vec![*key], value: Some(vec![0]) }));
            let mut overlay = Overlay::new(&base);
            for (key, put) in &changes {
                if *put { overlay.put(table, vec![*key], vec![1]); } else { overlay.delete(table, vec![*key]); }
            }
            let until = until.map(|key| vec![key]);
            let rows = overlay.scan(table, &[from], until.as_deref(), limit).unwrap();
            let gets: Vec<_> = (0u8..42).map(|key| overlay.get(table, &[key]).unwrap()).collect();

            let writes = overlay.into_writes();
            let mut written = base.clone();
            written.apply(writes);
            proptest::prop_assert_eq!(rows, written.scan(table, &[from], until.as_deref(), limit).unwrap());
            for (key, got) in (0u8..42).zip(gets) {
                proptest::prop_assert_eq!(got, written.get(table, &[key]).unwrap());
            }
        }
    }
}
