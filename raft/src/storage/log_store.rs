//! Raft's log and vote, as openraft stores them.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use futures::Stream;
use openclaw_proto::ids::GroupId;
use openclaw_proto::raft as pb;
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;
use prost::Message;
use rocksdb::{Direction, IteratorMode, ReadOptions, WriteBatch};

use super::engine::{self, Engine};
use super::keys::{self, Meta};
use crate::types::{Entry, LogId, TypeConfig, Vote};
use crate::wire;

/// Most bytes of entries in one replication request.
const MAX_READ_BYTES: usize = 1 << 20;
/// Most bytes of entries that stay in memory behind the newest.
const TAIL_BYTES: usize = 8 << 20;
/// Entries per step when a long range is streamed to the state machine.
const STREAM_STEP: u64 = 512;

/// The log of one group. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    group: GroupId,
    engine: Arc<Engine>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    vote: Option<Vote>,
    purged: Option<LogId>,
    last: Option<LogId>,
    tail: Tail,
}

/// The newest entries, which replication and the state machine want next. Contiguous.
#[derive(Debug, Default)]
struct Tail {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Tail {
    fn first(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.log_id.index)
    }

    fn push(&mut self, entry: Entry) {
        if self.entries.back().is_some_and(|last| last.log_id.index + 1 != entry.log_id.index) {
            self.clear();
        }
        self.bytes += wire::entry_size(&entry);
        self.entries.push_back(entry);
        while self.bytes > TAIL_BYTES && self.entries.len() > 1 {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= wire::entry_size(&entry);
        }
    }

    fn truncate_from(&mut self, index: u64) {
        while self.entries.back().is_some_and(|entry| entry.log_id.index >= index) {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes -= wire::entry_size(&entry);
            }
        }
    }

    fn purge_to(&mut self, index: u64) {
        while self.first().is_some_and(|first| first <= index) {
            self.pop_front();
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    /// Entries of `[start, end)` while their bytes stay within `limit`; at least one. None if the range begins before.
    fn read(&self, start: u64, end: u64, limit: usize) -> Option<Vec<Entry>> {
        let first = self.first().filter(|first| *first <= start)?;
        let skip = usize::try_from(start - first).ok()?;
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in self.entries.iter().skip(skip) {
            bytes += wire::entry_size(entry);
            if entry.log_id.index >= end || (bytes > limit && !entries.is_empty()) {
                break;
            }
            entries.push(entry.clone());
        }
        Some(entries)
    }
}

impl LogStore {
    /// Opens the log of `group` and checks that it has no hole.
    ///
    /// # Errors
    /// Damaged values, or entries that do not follow each other.
    pub(crate) fn open(engine: Arc<Engine>, group: GroupId) -> io::Result<Self> {
        let vote = read_meta::<pb::Vote>(&engine, group, Meta::Vote)?.map(wire::from_vote);
        let purged = read_meta::<pb::LogId>(&engine, group, Meta::Purged)?.map(wire::from_log_id);
        let mut store = Self { group, engine, shared: Arc::default() };
        let last = store.read_last(purged)?;
        let committed = read_meta::<pb::LogId>(&store.engine, group, Meta::Committed)?.map(wire::from_log_id);
        if committed.as_ref().map(|id| id.index) > last.as_ref().map(|id| id.index) {
            return Err(io::Error::other(format!(
                "the log of group {} ends at {last:?}, before its committed entry {committed:?}",
                group.0
            )));
        }
        *store.shared.lock() = Shared { vote, purged, last, tail: Tail::default() };
        Ok(store)
    }

    /// The newest log id, by one look at the end of the log.
    fn read_last(&mut self, purged: Option<LogId>) -> io::Result<Option<LogId>> {
        let family = self.engine.family(keys::LOG)?;
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(keys::log(self.group, purged.as_ref().map_or(0, |id| id.index + 1)));
        options.set_iterate_upper_bound(keys::log_end(self.group));
        let mut iterator = self.engine.db().iterator_cf_opt(family, options, IteratorMode::End);
        match iterator.next() {
            None => Ok(purged),
            Some(item) => {
                let (_, value) = item.map_err(io::Error::other)?;
                Ok(Some(wire::decode_entry(Bytes::from(value)).map_err(io::Error::other)?.log_id))
            }
        }
    }

    /// Entries of `[start, end)` while their bytes stay within `limit`; at least one if there is one.
    pub(super) fn read(&self, start: u64, end: u64, limit: usize) -> io::Result<Vec<Entry>> {
        if start >= end {
            return Ok(Vec::new());
        }
        let lower = {
            let shared = self.shared.lock();
            if let Some(entries) = shared.tail.read(start, end, limit) {
                return Ok(entries);
            }
            // Range deletions make a scan below the purge mark slow, and nothing is there.
            start.max(shared.purged.as_ref().map_or(0, |id| id.index + 1))
        };
        let family = self.engine.family(keys::LOG)?;
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(keys::log(self.group, end).to_vec());
        let from = keys::log(self.group, lower);
        let mut bytes = 0;
        let mut entries: Vec<Entry> = Vec::new();
        let mode = IteratorMode::From(&from, Direction::Forward);
        for item in self.engine.db().iterator_cf_opt(family, options, mode) {
            let (_, value) = item.map_err(io::Error::other)?;
            bytes += value.len();
            if bytes > limit && !entries.is_empty() {
                break;
            }
            let entry = wire::decode_entry(Bytes::from(value)).map_err(io::Error::other)?;
            if let Some(before) = entries.last()
                && before.log_id.index + 1 != entry.log_id.index
            {
                return Err(io::Error::other(format!("the log has a hole after {}", before.log_id)));
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn put_meta(&self, value: Meta, message: &impl Message) -> io::Result<()> {
        let family = self.engine.family(keys::META)?;
        let key = keys::meta(self.group, value);
        self.engine.db().put_cf(family, key, message.encode_to_vec()).map_err(io::Error::other)
    }
}

/// A group's value in the meta family.
pub(super) fn read_meta<M: Message + Default>(engine: &Engine, group: GroupId, value: Meta) -> io::Result<Option<M>> {
    let family = engine.family(keys::META)?;
    let stored = engine.db().get_pinned_cf(family, keys::meta(group, value)).map_err(io::Error::other)?;
    stored.map(|bytes| M::decode(&*bytes).map_err(io::Error::other)).transpose()
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<Entry>> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, MAX_READ_BYTES)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.lock().vote)
    }

    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let steps = futures::stream::unfold((self.clone(), start), move |(store, at)| async move {
            if at >= end {
                return None;
            }
            match store.read(at, end.min(at.saturating_add(STREAM_STEP)), MAX_READ_BYTES) {
                Ok(entries) => {
                    let next = entries.last()?.log_id.index + 1;
                    Some((Ok(entries), (store, next)))
                }
                Err(error) => Some((Err(error), (store, end))),
            }
        });
        let entries = futures::StreamExt::flat_map(steps, |step| {
            futures::stream::iter(match step {
                Ok(entries) => entries.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            })
        });
        Box::pin(entries)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let shared = self.shared.lock();
        Ok(LogState { last_purged_log_id: shared.purged, last_log_id: shared.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.put_meta(Meta::Vote, &wire::to_vote(vote))?;
        self.engine.sync().await?;
        self.shared.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        match committed {
            Some(id) => self.put_meta(Meta::Committed, &wire::to_log_id(&id)),
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(read_meta::<pb::LogId>(&self.engine, self.group, Meta::Committed)?.map(wire::from_log_id))
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let family = self.engine.family(keys::LOG)?;
        let mut batch = WriteBatch::default();
        let mut appended = Vec::new();
        let mut buffer = Vec::new();
        let mut bytes = 0;
        for entry in entries {
            buffer.clear();
            wire::to_entry(&entry).encode(&mut buffer).map_err(io::Error::other)?;
            bytes += buffer.len() as u64;
            batch.put_cf(family, keys::log(self.group, entry.log_id.index), &buffer);
            appended.push(entry);
        }
        engine::write(self.engine.db(), batch)?;
        self.engine.counters().entries_appended.fetch_add(appended.len() as u64, Relaxed);
        self.engine.counters().bytes_appended.fetch_add(bytes, Relaxed);
        {
            let mut shared = self.shared.lock();
            for entry in appended {
                shared.last = Some(entry.log_id);
                shared.tail.push(entry);
            }
        }
        self.engine.sync_then(flushed)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.as_ref().map_or(0, |id| id.index + 1);
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(self.engine.family(keys::LOG)?, keys::log(self.group, from), keys::log_end(self.group));
        // Not waited for: what is appended next lies behind it in the same write-ahead log.
        engine::write(self.engine.db(), batch)?;
        let mut shared = self.shared.lock();
        shared.tail.truncate_from(from);
        shared.last = shared.last.min(last).max(shared.purged);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        let meta = self.engine.family(keys::META)?;
        batch.put_cf(meta, keys::meta(self.group, Meta::Purged), wire::to_log_id(&upto).encode_to_vec());
        let log = self.engine.family(keys::LOG)?;
        batch.delete_range_cf(log, keys::log(self.group, 0), keys::log(self.group, upto.index + 1));
        engine::write(self.engine.db(), batch)?;
        let mut shared = self.shared.lock();
        shared.tail.purge_to(upto.index);
        shared.purged = Some(upto);
        shared.last = shared.last.max(Some(upto));
        Ok(())
    }
}
