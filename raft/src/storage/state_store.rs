//! The rows of the replicated state, and the loop that applies committed commands to them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use openclaw_proto::ids::GroupId;
use openclaw_proto::raft as pb;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::type_config::alias::SnapshotOf;
use openraft::{EntryPayload, OptionalSend};
use prost::Message;
use rocksdb::{DB, Direction, IteratorMode, ReadOptions, WriteBatch};
use tokio::sync::{broadcast, watch};

use super::engine::{self, Engine};
use super::keys::{self, Meta};
use super::log_store::read_meta;
use super::snapshot_store::{SnapshotFile, SnapshotStore};
use crate::backup::{self, BackupError};
use crate::command;
use crate::planted::{Bug, planted};
use crate::state_machine::keys::FORMAT;
use crate::state_machine::{
    self, Decision, Event, LogPosition, Overlay, Row, Table, TableError, Tables, Write, format,
};
use crate::types::{Applied, LogId, SnapshotMeta, StoredMembership, TypeConfig};
use crate::wire;

/// Commands that one write to the database holds at most.
const MAX_BATCH: usize = 1024;
/// Rows per write while a snapshot is installed, if they are not many bytes before.
const INSTALL_STEP: usize = 4096;
const INSTALL_BYTES: usize = 8 << 20;
/// Of the disk, when all rows are read once.
const READ_AHEAD: usize = 1 << 20;
/// How long the rows that a snapshot replaced stay for reads that began before.
const RETIRED_ROWS_KEPT: Duration = Duration::from_secs(60);
/// Events that a slow subscriber may fall behind before it must read the state again. Their room is taken at start.
const EVENT_BACKLOG: usize = 2 * 1024;

/// One generation of the rows of one group, read straight from the database.
#[derive(Clone)]
pub(crate) struct TableReader {
    db: Arc<DB>,
    prefix: [u8; 8],
    end: Vec<u8>,
}

impl TableReader {
    fn new(db: Arc<DB>, group: GroupId, generation: u32) -> Self {
        Self { db, prefix: keys::row_prefix(group, generation), end: keys::row_prefix_end(group, generation) }
    }

    fn key(&self, key: &[u8]) -> Vec<u8> {
        [&self.prefix[..], key].concat()
    }

    fn family(&self, table: Table) -> Result<&rocksdb::ColumnFamily, TableError> {
        self.db.cf_handle(table.name()).ok_or_else(|| TableError::storage(table, "no such column family"))
    }

    /// Adds `writes` to `batch`.
    fn put(&self, batch: &mut WriteBatch, writes: impl IntoIterator<Item = Write>) -> Result<(), TableError> {
        for write in writes {
            let family = self.family(write.table)?;
            match write.value {
                Some(value) => batch.put_cf(family, self.key(&write.key), value),
                None => batch.delete_cf(family, self.key(&write.key)),
            }
        }
        Ok(())
    }

    fn delete_all(&self, batch: &mut WriteBatch) -> Result<(), TableError> {
        for table in Table::ALL {
            batch.delete_range_cf(self.family(table)?, &self.prefix[..], &self.end[..]);
        }
        Ok(())
    }
}

impl Tables for TableReader {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        self.db.get_cf(self.family(table)?, self.key(key)).map_err(|error| TableError::storage(table, error))
    }

    fn scan(&self, table: Table, from: &[u8], until: Option<&[u8]>, limit: usize) -> Result<Vec<Row>, TableError> {
        self.scan_by(ReadOptions::default(), table, from, until, limit)
    }
}

/// The rows as they were at one moment, between two batches.
struct Pinned<'a> {
    view: rocksdb::Snapshot<'a>,
    tables: TableReader,
}

impl Tables for Pinned<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        let (family, key) = (self.tables.family(table)?, self.tables.key(key));
        self.view.get_cf(family, key).map_err(|error| TableError::storage(table, error))
    }

    fn scan(&self, table: Table, from: &[u8], until: Option<&[u8]>, limit: usize) -> Result<Vec<Row>, TableError> {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.view);
        // Whoever pins reads everything once; what is read often is to stay in the cache.
        options.fill_cache(false);
        self.tables.scan_by(options, table, from, until, limit)
    }
}

impl Pinned<'_> {
    /// Brings all rows, with one in memory at a time.
    fn walk(&self, each: &mut backup::Each<'_>) -> Result<(), BackupError> {
        let TableReader { db, prefix, end } = &self.tables;
        for table in Table::ALL {
            let mut options = ReadOptions::default();
            options.set_snapshot(&self.view);
            options.set_iterate_upper_bound(end.clone());
            options.fill_cache(false);
            options.set_readahead_size(READ_AHEAD);
            let mode = IteratorMode::From(prefix, Direction::Forward);
            for item in db.iterator_cf_opt(self.tables.family(table)?, options, mode) {
                let (key, value) = item.map_err(|error| TableError::storage(table, error))?;
                each(table, &key[prefix.len()..], &value)?;
            }
        }
        Ok(())
    }
}

impl TableReader {
    fn scan_by(
        &self,
        mut options: ReadOptions,
        table: Table,
        from: &[u8],
        until: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, TableError> {
        options.set_iterate_upper_bound(until.map_or_else(|| self.end.clone(), |until| self.key(until)));
        let from = self.key(from);
        let mode = IteratorMode::From(&from, Direction::Forward);
        self.db
            .iterator_cf_opt(self.family(table)?, options, mode)
            .take(limit)
            .map(|item| {
                let (key, value) = item.map_err(|error| TableError::storage(table, error))?;
                Ok((key[self.prefix.len()..].to_vec(), value.into_vec()))
            })
            .collect()
    }
}

/// Reads the state of one group. Clones share it.
#[derive(Clone)]
pub(crate) struct StateReader {
    group: GroupId,
    db: Arc<DB>,
    generation: Arc<AtomicU32>,
    applied: watch::Receiver<u64>,
    events: broadcast::Sender<Event>,
}

impl StateReader {
    /// The current rows, and the log index that they reflect at least.
    pub(crate) fn tables(&self) -> (u64, TableReader) {
        let applied = *self.applied.borrow();
        let generation = self.generation.load(Ordering::Acquire);
        (applied, TableReader::new(self.db.clone(), self.group, generation))
    }

    /// The rows as they are now, and exactly what they reflect.
    fn pin(&self) -> io::Result<(SnapshotMeta, Pinned<'_>)> {
        let view = self.db.snapshot();
        let family = self.db.cf_handle(keys::META).ok_or_else(|| io::Error::other("no meta column family"))?;
        let get = |meta| view.get_cf(family, keys::meta(self.group, meta)).map_err(io::Error::other);
        let generation = generation(self.group, get(Meta::Generation)?)?;
        let applied = get(Meta::Applied)?.unwrap_or_default();
        let applied = pb::SnapshotMeta::decode(&*applied).map_err(io::Error::other)?;
        let applied = wire::from_snapshot_meta(applied).map_err(io::Error::other)?;
        let tables = TableReader::new(self.db.clone(), self.group, generation);
        Ok((applied, Pinned { view, tables }))
    }

    /// All rows as one hash, and exactly the log index that they reflect. Reads everything there is.
    pub(crate) fn state_hash(&self) -> io::Result<(u64, [u8; 32])> {
        let (applied, rows) = self.pin()?;
        let hash = state_machine::state_hash(&rows).map_err(io::Error::other)?;
        Ok((applied.last_log_id.map_or(0, |id| id.index), hash))
    }

    /// Writes all rows as a backup, whose header is completed by what they reflect.
    pub(crate) fn back_up(
        &self,
        header: pb::BackupHeader,
        to: impl io::Write,
    ) -> Result<pb::BackupTrailer, BackupError> {
        let (applied, rows) = self.pin().map_err(BackupError::Io)?;
        let applied = applied.last_log_id.as_ref().map(wire::to_log_id);
        let header = pb::BackupHeader { applied, ..header };
        backup::write_rows(&header, format::active(&rows)?, to, |each| rows.walk(each))
    }

    pub(crate) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

/// The state machine of one group, as openraft drives it.
pub(crate) struct StateStore {
    group: GroupId,
    engine: Arc<Engine>,
    snapshots: SnapshotStore,
    generation: Arc<AtomicU32>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    applied: watch::Sender<u64>,
    events: broadcast::Sender<Event>,
}

impl StateStore {
    /// Opens the state of `group` and clears what an interrupted snapshot left behind.
    ///
    /// # Errors
    /// The disk's, or damaged values.
    pub(crate) fn open(engine: Arc<Engine>, group: GroupId) -> io::Result<Self> {
        let stored = read_meta::<pb::SnapshotMeta>(&engine, group, Meta::Applied)?.unwrap_or_default();
        let meta = wire::from_snapshot_meta(stored).map_err(io::Error::other)?;
        let generation = read_generation(&engine, group)?;
        let snapshots = SnapshotStore::open(engine.dir().join("snapshots"), group)?;
        let store = Self {
            group,
            snapshots,
            generation: Arc::new(AtomicU32::new(generation)),
            applied: watch::Sender::new(meta.last_log_id.as_ref().map_or(0, |id| id.index)),
            last_applied: meta.last_log_id,
            membership: meta.last_membership,
            events: broadcast::Sender::new(EVENT_BACKLOG),
            engine,
        };
        store.clear_other_generations(generation)?;
        if planted(Bug::ForgottenKeys) {
            store.forget_keys()?;
        }
        Ok(store)
    }

    pub(crate) fn reader(&self) -> StateReader {
        StateReader {
            group: self.group,
            db: self.engine.shared_db(),
            generation: self.generation.clone(),
            applied: self.applied.subscribe(),
            events: self.events.clone(),
        }
    }

    pub(crate) fn snapshots(&self) -> &SnapshotStore {
        &self.snapshots
    }

    fn tables(&self, generation: u32) -> TableReader {
        TableReader::new(self.engine.shared_db(), self.group, generation)
    }

    fn clear_other_generations(&self, current: u32) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        for table in Table::ALL {
            let family = self.engine.family(table.name())?;
            let (start, end) = (keys::row_prefix(self.group, 0), keys::row_prefix(self.group, current));
            if current > 0 {
                batch.delete_range_cf(family, start, end);
            }
            let after = keys::row_prefix_end(self.group, current);
            let group_end = keys::row_prefix_end(self.group, u32::MAX);
            batch.delete_range_cf(family, after, group_end);
        }
        engine::write(self.engine.db(), batch)
    }

    /// Only for [`Bug::ForgottenKeys`].
    fn forget_keys(&self) -> io::Result<()> {
        let tables = self.tables(self.generation.load(Ordering::Acquire));
        let family = self.engine.family(Table::Inbox.name())?;
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(family, &tables.prefix[..], &tables.end[..]);
        engine::write(self.engine.db(), batch)
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.last_applied, last_membership: self.membership.clone() }
    }

    /// What the rows reflect, and the rows.
    pub(super) fn applied_rows(&self) -> (Option<LogId>, TableReader) {
        (self.last_applied, self.tables(self.generation.load(Ordering::Acquire)))
    }

    /// Replaces all rows by those of `file`, durably. The rows before stay beside them, for reads that began on them.
    pub(super) async fn take_over(&mut self, meta: &SnapshotMeta, file: SnapshotFile) -> io::Result<TableReader> {
        let old = self.generation.load(Ordering::Acquire);
        let new = old.checked_add(1).ok_or_else(|| io::Error::other("no generation is left"))?;
        let tables = self.tables(new);
        // What an attempt that failed half-way may have left.
        let mut batch = WriteBatch::default();
        tables.delete_all(&mut batch).map_err(io::Error::other)?;
        engine::write(self.engine.db(), batch)?;

        let db = self.engine.shared_db();
        let reading = file.try_clone()?;
        let writer = tables.clone();
        tokio::task::spawn_blocking(move || {
            let mut batch = WriteBatch::default();
            reading.for_each_row(|row| {
                batch.put_cf(writer.family(row.table).map_err(io::Error::other)?, writer.key(&row.key), row.value);
                if batch.len() >= INSTALL_STEP || batch.size_in_bytes() >= INSTALL_BYTES {
                    engine::write(&db, std::mem::take(&mut batch))?;
                }
                Ok(())
            })?;
            engine::write(&db, batch)
        })
        .await
        .map_err(io::Error::other)??;

        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        let family = self.engine.family(keys::META)?;
        let mut batch = WriteBatch::default();
        let applied = wire::to_snapshot_meta(meta).encode_to_vec();
        batch.put_cf(family, keys::meta(self.group, Meta::Applied), applied);
        batch.put_cf(family, keys::meta(self.group, Meta::Generation), new.to_be_bytes());
        let format = format::active(&tables).map_err(io::Error::other)?;
        batch.put_cf(family, keys::FORMAT_VERSION, readable(format)?.to_be_bytes());
        engine::write(self.engine.db(), batch)?;
        self.engine.sync().await?;

        self.snapshots.adopt(meta, file)?;
        self.generation.store(new, Ordering::Release);
        self.applied.send_replace(meta.last_log_id.as_ref().map_or(0, |id| id.index));
        Ok(self.tables(old))
    }

    /// Writes the rows of `overlay` together with what they reflect, then tells readers and subscribers.
    fn commit(&self, tables: &TableReader, mut writes: Vec<Write>, events: Vec<Event>) -> io::Result<()> {
        if planted(Bug::DivergingApply)
            && self.engine.dir().as_os_str().as_encoded_bytes().last().is_some_and(|letter| letter % 2 == 1)
        {
            writes.retain(|write| write.table != Table::Inbox);
        }
        let mut batch = WriteBatch::default();
        let meta = self.engine.family(keys::META)?;
        if let Some(mark) = writes.iter().find(|write| write.table == Table::Marks && write.key == FORMAT) {
            let format = format::active_by(mark.value.as_deref()).map_err(io::Error::other)?;
            batch.put_cf(meta, keys::FORMAT_VERSION, readable(format)?.to_be_bytes());
        }
        tables.put(&mut batch, writes).map_err(io::Error::other)?;
        let applied = wire::to_snapshot_meta(&self.meta()).encode_to_vec();
        batch.put_cf(meta, keys::meta(self.group, Meta::Applied), applied);
        // Not waited for: the log entries that it came from are on disk, and come first in the same write-ahead log.
        engine::write(self.engine.db(), batch)?;
        self.applied.send_replace(self.last_applied.as_ref().map_or(0, |id| id.index));
        for event in events {
            // Nobody listens before the rest of the process has started.
            drop(self.events.send(event));
        }
        Ok(())
    }
}

/// The same format, if this process reads it: what follows in the log may have another meaning than it would see.
fn readable(format: u32) -> io::Result<u32> {
    format::too_old(format::supported(), format).map_or(Ok(format), |why| Err(io::Error::other(why)))
}

fn read_generation(engine: &Engine, group: GroupId) -> io::Result<u32> {
    let stored = engine
        .db()
        .get_cf(engine.family(keys::META)?, keys::meta(group, Meta::Generation))
        .map_err(io::Error::other)?;
    generation(group, stored)
}

fn generation(group: GroupId, stored: Option<Vec<u8>>) -> io::Result<u32> {
    stored.map_or(Ok(0), |bytes| {
        <[u8; 4]>::try_from(&*bytes)
            .map(u32::from_be_bytes)
            .map_err(|_| io::Error::other(format!("the generation of group {} has {} bytes", group.0, bytes.len())))
    })
}

impl RaftStateMachine<TypeConfig> for StateStore {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let tables = self.tables(self.generation.load(Ordering::Acquire));
        let mut more = true;
        while more {
            let mut overlay = Overlay::new(&tables);
            let mut events = Vec::new();
            let mut responses = Vec::new();
            let mut commands = 0;
            while responses.len() < MAX_BATCH {
                let Some(item) = entries.next().await else {
                    more = false;
                    break;
                };
                let (entry, responder) = item?;
                let mut outcome = None;
                match entry.payload {
                    EntryPayload::Blank => {}
                    EntryPayload::Membership(membership) => {
                        self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    }
                    EntryPayload::Normal(bytes) => {
                        commands += 1;
                        let at = LogPosition { index: entry.log_id.index, term: **entry.log_id.committed_leader_id() };
                        let decision = match command::decode(&bytes.0) {
                            Ok(command) => state_machine::decide(&overlay, at, &command).map_err(io::Error::other)?,
                            // Every instance refuses the same bytes alike.
                            Err(error) => Decision::refused(error.to_string()),
                        };
                        overlay.apply(decision.writes);
                        events.extend(decision.events);
                        outcome = Some(decision.outcome);
                    }
                }
                self.last_applied = Some(entry.log_id);
                responses.push((responder, Applied(outcome)));
            }
            if responses.is_empty() {
                break;
            }
            let writes = overlay.into_writes();
            self.commit(&tables, writes, events)?;
            self.engine.counters().commands_applied.fetch_add(commands, Ordering::Relaxed);
            for (responder, applied) in responses {
                if let Some(responder) = responder {
                    responder.send(applied);
                }
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let tables = self.tables(self.generation.load(Ordering::Acquire));
        Builder {
            pending: self.snapshots.begin(self.meta(), self.engine.shared_db(), tables.prefix, tables.end),
            engine: self.engine.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, file: SnapshotFile) -> io::Result<()> {
        let retired = self.take_over(meta, file).await?;
        self.engine.counters().snapshots_installed.fetch_add(1, Ordering::Relaxed);
        // Subscribers cannot be told what a snapshot skipped: they read the state again.
        drop(self.events.send(Event::StateReplaced));

        let db = self.engine.shared_db();
        tokio::spawn(async move {
            tokio::time::sleep(RETIRED_ROWS_KEPT).await;
            let mut batch = WriteBatch::default();
            let deleted =
                retired.delete_all(&mut batch).map_err(io::Error::other).and_then(|()| engine::write(&db, batch));
            if let Err(error) = deleted {
                tracing::warn!(%error, "cannot clear the rows that a snapshot replaced; the next start will");
            }
        });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>> {
        self.snapshots.current()?.map_or(Ok(None), |(meta, snapshot)| Ok(Some(Snapshot { meta, snapshot })))
    }
}

/// Writes the state as it was when the builder was made, while later commands are applied.
pub(crate) struct Builder {
    pending: io::Result<super::snapshot_store::Pending>,
    engine: Arc<Engine>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotFile>> {
        let pending = std::mem::replace(&mut self.pending, Err(io::Error::other("the snapshot was built already")))?;
        let began = std::time::Instant::now();
        let (meta, snapshot) = pending.finish().await?;
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.engine.counters().snapshot_micros.fetch_add(micros, Ordering::Relaxed);
        self.engine.counters().snapshots_built.fetch_add(1, Ordering::Relaxed);
        Ok(Snapshot { meta, snapshot })
    }
}
