//! Snapshots as files: written beside the database, read by the peers that need them.
//!
//! One snapshot is kept per group. A file appears under its final name only once it is whole and on disk; a reader that
//! has it open keeps reading after a newer one took its place.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use openclaw_proto::ids::GroupId;
use openclaw_proto::raft as pb;
use parking_lot::Mutex;
use prost::Message;
use rocksdb::{DB, Direction, IteratorMode, ReadOptions};
use tokio::sync::oneshot;

use crate::planted::{Bug, planted};
use crate::state_machine::{SnapshotReader, SnapshotRow, SnapshotWriter, Table, format, keys};
use crate::types::SnapshotMeta;
use crate::wire;

const BUFFER_BYTES: usize = 256 << 10;

/// A whole snapshot, open for reading.
#[derive(Debug)]
pub(crate) struct SnapshotFile {
    file: File,
    path: PathBuf,
    /// Of one that was received and is nobody's snapshot yet.
    temporary: Option<Arc<Temporary>>,
}

/// A file that goes with this value, unless it was kept.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    kept: AtomicBool,
}

impl Temporary {
    fn new(path: PathBuf) -> Self {
        Self { path, kept: AtomicBool::new(false) }
    }

    fn create(path: PathBuf) -> io::Result<(File, Self)> {
        Ok((File::create_new(&path)?, Self::new(path)))
    }

    fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Relaxed)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a snapshot that is not used");
        }
    }
}

impl SnapshotFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        Ok(Self { file: File::open(&path)?, path, temporary: None })
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, path: self.path.clone(), temporary: self.temporary.clone() })
    }

    /// The bytes, from the first on.
    pub(crate) fn into_bytes(mut self) -> io::Result<File> {
        self.file.seek(SeekFrom::Start(0))?;
        Ok(self.file)
    }

    /// Reads the meta, and checks nothing else.
    fn meta(&self) -> io::Result<SnapshotMeta> {
        let reader = self.reader()?;
        let meta = pb::SnapshotMeta::decode(reader.meta()).map_err(io::Error::other)?;
        wire::from_snapshot_meta(meta).map_err(io::Error::other)
    }

    fn reader(&self) -> io::Result<SnapshotReader<BufReader<File>>> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        SnapshotReader::new(BufReader::with_capacity(BUFFER_BYTES, file)).map_err(io::Error::other)
    }

    /// Calls `row` with every row in table and key order, and checks the file to its end.
    pub(super) fn for_each_row(&self, mut each: impl FnMut(SnapshotRow) -> io::Result<()>) -> io::Result<()> {
        let mut reader = self.reader()?;
        while let Some(row) = reader.next_row().map_err(io::Error::other)? {
            each(row)?;
        }
        Ok(())
    }
}

/// The snapshot files of one group. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotStore {
    dir: Arc<Path>,
    group: GroupId,
    current: Arc<Mutex<Option<(SnapshotMeta, PathBuf)>>>,
}

impl SnapshotStore {
    /// Finds the newest whole snapshot, and removes what was left unfinished.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn open(dir: PathBuf, group: GroupId) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let store = Self { dir: dir.into(), group, current: Arc::default() };
        let mut newest: Option<(SnapshotMeta, PathBuf)> = None;
        for item in fs::read_dir(&store.dir)? {
            let path = item?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !name.starts_with(&store.prefix()) {
                continue;
            }
            let meta = if name.ends_with(".snapshot") {
                SnapshotFile::open(path.clone()).and_then(|file| file.meta())
            } else {
                Err(io::Error::other("it was not finished"))
            };
            match meta {
                Ok(meta) if newest.as_ref().is_none_or(|(known, _)| known.last_log_id < meta.last_log_id) => {
                    if let Some((_, older)) = newest.replace((meta, path)) {
                        fs::remove_file(older)?;
                    }
                }
                Ok(_) => fs::remove_file(path)?,
                Err(error) => {
                    tracing::info!(path = %path.display(), %error, "removed a snapshot that cannot be used");
                    fs::remove_file(path)?;
                }
            }
        }
        *store.current.lock() = newest;
        Ok(store)
    }

    fn prefix(&self) -> String {
        format!("group-{}-", self.group.0)
    }

    fn final_path(&self, meta: &SnapshotMeta) -> PathBuf {
        let (term, index) = meta.last_log_id.as_ref().map_or((0, 0), |id| (**id.committed_leader_id(), id.index));
        self.dir.join(format!("{}{term:020}-{index:020}.snapshot", self.prefix()))
    }

    /// A name of its own for a file that is being written.
    fn temporary_path(&self) -> PathBuf {
        self.dir.join(format!("{}{:016x}.unfinished", self.prefix(), rand::random::<u64>()))
    }

    pub(super) fn current(&self) -> io::Result<Option<(SnapshotMeta, SnapshotFile)>> {
        let current = self.current.lock().clone();
        current.map(|(meta, path)| Ok((meta, SnapshotFile::open(path)?))).transpose()
    }

    /// Makes a whole file the group's snapshot, unless there is a newer one.
    fn publish(&self, meta: &SnapshotMeta, whole: &Temporary) -> io::Result<SnapshotFile> {
        let target = self.final_path(meta);
        let mut current = self.current.lock();
        if let Some((newer, path)) = current.as_ref().filter(|(known, _)| known.last_log_id > meta.last_log_id) {
            tracing::debug!(newer = ?newer.last_log_id, "kept the newer snapshot");
            return SnapshotFile::open(path.clone());
        }
        fs::rename(&whole.path, &target)?;
        whole.keep();
        File::open(&self.dir)?.sync_all()?;
        let file = SnapshotFile::open(target.clone())?;
        if let Some((_, older)) = current.replace((meta.clone(), target.clone()))
            && older != target
        {
            fs::remove_file(older)?;
        }
        Ok(file)
    }

    /// Makes a received file, which has been installed, the group's snapshot.
    pub(super) fn adopt(&self, meta: &SnapshotMeta, file: SnapshotFile) -> io::Result<()> {
        match file.temporary.as_deref() {
            Some(whole) => self.publish(meta, whole).map(drop),
            // What a start installs again is the group's snapshot already.
            None if file.path == self.final_path(meta) => Ok(()),
            None => self.publish(meta, &Temporary::new(file.path)).map(drop),
        }
    }

    /// Begins a snapshot of the rows as they are now; the writing goes on in a thread of its own.
    ///
    /// The thread owns RocksDB's read snapshot, and has taken it when this returns.
    pub(super) fn begin(&self, meta: SnapshotMeta, db: Arc<DB>, prefix: [u8; 8], end: Vec<u8>) -> io::Result<Pending> {
        let store = self.clone();
        let (taken, is_taken) = std::sync::mpsc::sync_channel(1);
        let (start, started) = std::sync::mpsc::sync_channel(1);
        let (done, finished) = oneshot::channel();
        std::thread::Builder::new().name("snapshot".into()).spawn(move || {
            let view = db.snapshot();
            let told = taken.send(());
            if told.is_err() || started.recv().is_err() {
                return;
            }
            let written = store.write(&meta, &db, &view, prefix, &end);
            // Whoever asked for it may have stopped.
            drop(done.send(written.map(|file| (meta, file))));
        })?;
        is_taken.recv().map_err(io::Error::other)?;
        Ok(Pending { start, finished })
    }

    fn write(
        &self,
        meta: &SnapshotMeta,
        db: &DB,
        view: &rocksdb::SnapshotWithThreadMode<'_, DB>,
        prefix: [u8; 8],
        end: &[u8],
    ) -> io::Result<SnapshotFile> {
        let header = wire::to_snapshot_meta(meta).encode_to_vec();
        let (file, whole) = Temporary::create(self.temporary_path())?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        let marks = db.cf_handle(Table::Marks.name()).ok_or_else(|| io::Error::other("no such column family"))?;
        let mark = view.get_cf(marks, [&prefix[..], keys::FORMAT].concat()).map_err(io::Error::other)?;
        let format = format::active_by(mark.as_deref()).map_err(io::Error::other)?;
        let mut writer = SnapshotWriter::new(file, format, &header).map_err(io::Error::other)?;
        for table in Table::ALL {
            let family = db.cf_handle(table.name()).ok_or_else(|| io::Error::other("no such column family"))?;
            let mut options = ReadOptions::default();
            options.set_iterate_upper_bound(end);
            options.fill_cache(false);
            let mode = IteratorMode::From(&prefix, Direction::Forward);
            let mut rows = view.iterator_cf_opt(family, options, mode).peekable();
            while let Some(item) = rows.next() {
                let (key, value) = item.map_err(io::Error::other)?;
                if planted(Bug::ShortSnapshot) && table == Table::Entries && rows.peek().is_none() {
                    break;
                }
                writer.row(table, &key[prefix.len()..], &value).map_err(io::Error::other)?;
            }
        }
        let (mut file, _) = writer.finish().map_err(io::Error::other)?;
        file.flush()?;
        file.get_ref().sync_all()?;
        self.publish(meta, &whole)
    }

    /// A file for a snapshot that arrives in pieces.
    pub(crate) fn receive(&self) -> io::Result<Incoming> {
        let (file, temporary) = Temporary::create(self.temporary_path())?;
        Ok(Incoming { file, temporary })
    }
}

/// A snapshot whose moment is fixed and whose file is not written yet. Dropped, it is never written.
pub(crate) struct Pending {
    start: std::sync::mpsc::SyncSender<()>,
    finished: oneshot::Receiver<io::Result<(SnapshotMeta, SnapshotFile)>>,
}

impl Pending {
    pub(super) async fn finish(self) -> io::Result<(SnapshotMeta, SnapshotFile)> {
        self.start.send(()).map_err(io::Error::other)?;
        self.finished.await.map_err(io::Error::other)?
    }
}

/// A snapshot that is being received.
#[derive(Debug)]
pub(crate) struct Incoming {
    file: File,
    temporary: Temporary,
}

impl Incoming {
    pub(crate) fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all(data)
    }

    /// Puts the file on disk and reads it once to its end: one that broke off or was damaged on its way must not reach
    /// the state machine, for which a failed read is fatal.
    pub(crate) async fn finish(self) -> io::Result<SnapshotFile> {
        tokio::task::spawn_blocking(move || {
            self.file.sync_all()?;
            let mut snapshot = SnapshotFile::open(self.temporary.path.clone())?;
            snapshot.for_each_row(|_| Ok(()))?;
            snapshot.temporary = Some(Arc::new(self.temporary));
            Ok(snapshot)
        })
        .await
        .map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use openraft::StoredMembership;

    use super::*;
    use crate::types::LogId;

    fn meta(index: u64) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: Some(LogId::new_term_index(1, index)),
            last_membership: StoredMembership::default(),
        }
    }

    /// One with no rows, as if it had been received.
    async fn received(store: &SnapshotStore, index: u64) -> SnapshotFile {
        let header = wire::to_snapshot_meta(&meta(index)).encode_to_vec();
        let (bytes, _) = SnapshotWriter::new(Vec::new(), 1, &header).unwrap().finish().unwrap();
        let mut incoming = store.receive().unwrap();
        incoming.write(&bytes).unwrap();
        incoming.finish().await.unwrap()
    }

    fn files(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[tokio::test]
    async fn what_was_received_and_is_not_wanted_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(dir.path().to_owned(), GroupId::ZERO).unwrap();
        // Openraft declined it.
        drop(received(&store, 5).await);
        assert_eq!(files(dir.path()), 0);
        // One that is being read twice stays until both are done, and as the group's own.
        let file = received(&store, 7).await;
        let reading = file.try_clone().unwrap();
        store.adopt(&meta(7), file).unwrap();
        drop(reading);
        assert_eq!((files(dir.path()), store.current().unwrap().unwrap().0), (1, meta(7)));
        // An older one came later.
        let older = received(&store, 6).await;
        store.adopt(&meta(6), older).unwrap();
        assert_eq!((files(dir.path()), store.current().unwrap().unwrap().0), (1, meta(7)));
        drop(store.receive().unwrap());
        assert_eq!(files(dir.path()), 1, "it broke off");
    }
}
