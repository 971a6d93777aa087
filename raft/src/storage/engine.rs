//! The database, and the one thread that makes its writes durable.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use openclaw_proto::raft::Identity;
use openraft::storage::IOFlushed;
use prost::Message;
use rocksdb::WriteBatch;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, LogLevel, Options,
};
use tokio::sync::oneshot;

use super::{keys, owner, torn_log};
use crate::planted::{Bug, planted};
use crate::state_machine::{Table, format};
use crate::types::TypeConfig;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("data directory {dir} is in use by another process (it holds {lock})")]
    Locked { dir: PathBuf, lock: PathBuf },
    #[error("data directory {dir}: {source}")]
    Io { dir: PathBuf, source: io::Error },
    #[error("data directory {dir}: {source}; {why}")]
    Refused { dir: PathBuf, source: io::Error, why: String },
    #[error(
        "data directory {dir} has state format {found}; this build reads up to {supported}: run the newer release again"
    )]
    NewerFormat { dir: PathBuf, found: u32, supported: u32 },
    #[error(
        "data directory {dir} lost records that were acknowledged: its log ends at sequence {found}, but {synced} was on \
         disk; move the directory out of storage.dataDir and start the instance again, so that it joins as a new member"
    )]
    LostRecords { dir: PathBuf, found: u64, synced: u64 },
    #[error(
        "data directory {dir} is damaged: {detail}; move it out of storage.dataDir and start the instance again, so that it joins as \
         a new member"
    )]
    Damaged { dir: PathBuf, detail: String },
}

impl OpenError {
    /// What RocksDB says is damage, unless the disk did not let it look.
    fn of(dir: &Path, error: rocksdb::Error) -> Self {
        let refused = [Errno::EACCES, Errno::EPERM].map(|errno| is_io_error(error.as_ref(), errno));
        if refused.contains(&true) {
            return Self::io(dir, io::Error::new(io::ErrorKind::PermissionDenied, error));
        }
        let dir = dir.to_owned();
        if is_disk_failure(error.as_ref()) {
            Self::Io { dir, source: io::Error::other(error) }
        } else {
            Self::Damaged { dir, detail: error.into_string() }
        }
    }

    fn io(dir: &Path, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::PermissionDenied {
            Self::Refused { dir: dir.to_owned(), source, why: owner::why_refused(dir) }
        } else {
            Self::Io { dir: dir.to_owned(), source }
        }
    }
}

/// Whether the disk failed, and not what is on it: it is full, broken or read-only, or there are too many open files. What
/// was stored is as good as before, so nothing has to be moved away, and starting again may help.
pub fn disk_failed(error: &io::Error) -> bool {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rocksdb::Error>()) {
        Some(error) => is_disk_failure(error.as_ref()),
        None => error.raw_os_error().is_some_and(|code| DISK_FAILURES.map(|errno| errno as i32).contains(&code)),
    }
}

const DISK_FAILURES: [Errno; 7] =
    [Errno::ENOSPC, Errno::EDQUOT, Errno::EIO, Errno::EROFS, Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM];

/// `message` is an error of RocksDB, which passes on the text that the system has for the error, and no number. A file that
/// is missing is an error of the same kind, and is damage.
pub(super) fn is_disk_failure(message: &str) -> bool {
    DISK_FAILURES.iter().any(|errno| is_io_error(message, *errno))
}

fn is_io_error(message: &str, errno: Errno) -> bool {
    let text = io::Error::from_raw_os_error(errno as i32).to_string();
    message.starts_with("IO error") && message.contains(text.split(" (os error").next().unwrap_or(&text))
}

/// What the disk was asked to do; read by metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Waits for the disk.
    pub syncs: AtomicU64,
    /// Microseconds spent in them.
    pub sync_micros: AtomicU64,
    /// When the wait that is under way began.
    sync_began: Mutex<Option<Instant>>,
    /// Appends and votes that those waits covered.
    pub sync_requests: AtomicU64,
    /// Log entries appended.
    pub entries_appended: AtomicU64,
    /// And their bytes.
    pub bytes_appended: AtomicU64,
    /// Commands applied.
    pub commands_applied: AtomicU64,
    /// Snapshots written, and snapshots taken over from a leader.
    pub snapshots_built: AtomicU64,
    /// Microseconds spent with writing them.
    pub snapshot_micros: AtomicU64,
    pub snapshots_installed: AtomicU64,
}

impl Counters {
    /// How long the disk has been waited for, while it is. A disk that hangs is in no total: those count what has ended.
    pub fn sync_age(&self) -> Option<Duration> {
        let began = self.sync_began.lock().unwrap_or_else(PoisonError::into_inner);
        began.map(|began| began.elapsed())
    }

    fn sync_began(&self, at: Option<Instant>) {
        *self.sync_began.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}

/// Who waits for the disk.
enum Waiter {
    Append(IOFlushed<TypeConfig>),
    Barrier(oneshot::Sender<io::Result<()>>),
}

/// The database of one instance. Dropping the last handle stops the sync thread.
pub(crate) struct Engine {
    db: Arc<DB>,
    dir: PathBuf,
    /// Unbounded, since its length is bounded by what openraft has in flight: one append per group and pipelined batch.
    waiters: Option<mpsc::Sender<Waiter>>,
    thread: Option<JoinHandle<()>>,
    counters: Arc<Counters>,
    /// Held for the life of the process: proof that no other one uses the directory.
    _lock: File,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens or creates the database in `dir`.
    ///
    /// After a power loss the write-ahead log may end in a torn record. RocksDB drops the tail from there, and the mark
    /// beside the log tells whether anything that was acknowledged stood in it.
    ///
    /// After a failed sync the log may be in the kernel's memory alone, which another sync would not mend. RocksDB writes
    /// what it read into tables, and syncs those, before this returns: nothing rests on the old pages.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong with the directory and what to do.
    pub(crate) fn open(dir: &Path) -> Result<Arc<Self>, OpenError> {
        let io = |source| OpenError::io(dir, source);
        std::fs::create_dir_all(dir).map_err(io)?;
        let lock_path = dir.join("LOCK.instance");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::Locked { dir: dir.to_owned(), lock: lock_path });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }

        let mark = SyncMark::open(&dir.join("synced")).map_err(io)?;
        let synced = mark.read().map_err(io)?;
        torn_log::cut_endless_logs(&dir.join("db")).map_err(io)?;
        let db = DB::open_cf_descriptors(&database_options(), dir.join("db"), column_families())
            .map_err(|error| OpenError::of(dir, error))?;
        // Its files are of no use after a power loss if the directory's entry is not there.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)?;
        if let Some(above) = dir.parent().filter(|above| !above.as_os_str().is_empty())
            && let Err(error) = File::open(above).and_then(|above| above.sync_all())
        {
            // It may be another's, and not for this user to read.
            tracing::debug!(above = %above.display(), %error, "the directory above is not synced");
        }
        let found = db.latest_sequence_number();
        if found < synced && !planted(Bug::AcceptedTail) {
            return Err(OpenError::LostRecords { dir: dir.to_owned(), found, synced });
        }
        check_format(&db, dir)?;

        let db = Arc::new(db);
        let counters = Arc::new(Counters::default());
        let (waiters, queue) = mpsc::channel();
        let thread = SyncThread { db: db.clone(), mark, counters: counters.clone() };
        let thread =
            std::thread::Builder::new().name("wal-sync".into()).spawn(move || thread.run(&queue)).map_err(io)?;
        let (waiters, thread) = (Some(waiters), Some(thread));
        Ok(Arc::new(Self { db, dir: dir.to_owned(), waiters, thread, counters, _lock: lock }))
    }

    pub(super) fn db(&self) -> &DB {
        &self.db
    }

    pub(super) fn shared_db(&self) -> Arc<DB> {
        self.db.clone()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    pub(super) fn family(&self, name: &str) -> io::Result<&ColumnFamily> {
        family(&self.db, name)
    }

    /// Calls `done` once everything written so far is on disk. Returns at once.
    pub(super) fn sync_then(&self, done: IOFlushed<TypeConfig>) -> io::Result<()> {
        self.wait(Waiter::Append(done))
    }

    fn wait(&self, waiter: Waiter) -> io::Result<()> {
        self.waiters.as_ref().and_then(|waiters| waiters.send(waiter).ok()).ok_or_else(stopped)
    }

    /// Waits until everything written so far is on disk.
    pub(super) async fn sync(&self) -> io::Result<()> {
        let (done, waiting) = oneshot::channel();
        self.wait(Waiter::Barrier(done))?;
        waiting.await.map_err(|_| stopped())?
    }

    /// What this directory was made for; none for a new one.
    pub(crate) fn identity(&self) -> Result<Option<Identity>, OpenError> {
        let damaged = |detail: String| OpenError::Damaged { dir: self.dir.clone(), detail };
        let meta = self.family(keys::META).map_err(|error| damaged(error.to_string()))?;
        let stored = self.db.get_cf(meta, keys::IDENTITY).map_err(|error| OpenError::of(&self.dir, error))?;
        stored
            .map(|bytes| Identity::decode(&*bytes).map_err(|error| damaged(format!("its identity: {error}"))))
            .transpose()
    }

    /// Writes down what this directory is for, durably.
    pub(crate) async fn set_identity(&self, identity: &Identity) -> io::Result<()> {
        self.db.put_cf(self.family(keys::META)?, keys::IDENTITY, identity.encode_to_vec()).map_err(io::Error::other)?;
        self.sync().await
    }
}

impl Drop for Engine {
    /// The directory's lock goes last: whoever takes it finds the database closed.
    fn drop(&mut self) {
        self.waiters.take();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that syncs the log panicked");
        }
    }
}

fn stopped() -> io::Error {
    io::Error::other("the thread that syncs the log has stopped")
}

fn family<'a>(db: &'a DB, name: &str) -> io::Result<&'a ColumnFamily> {
    db.cf_handle(name).ok_or_else(|| io::Error::other(format!("no column family {name}")))
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // Records stay in the process until the sync thread flushes: nobody is told of them before.
    options.set_manual_wal_flush(true);
    options.set_max_total_wal_size(128 << 20);
    options.set_db_write_buffer_size(96 << 20);
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(1 << 20);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(4 << 20);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    options
}

fn column_families() -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(16 << 20);
    let rows = |write_buffer: usize| {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&cache);
        table.set_bloom_filter(10.0, false);
        let mut options = Options::default();
        options.set_block_based_table_factory(&table);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_write_buffer_size(write_buffer);
        // Most looks are for what is not there: an external id, a new turn. A filter answers sooner than the skip list.
        options.set_memtable_whole_key_filtering(true);
        options.set_memtable_prefix_bloom_ratio(0.02);
        options
    };
    // The log is written in order, read from its tail and deleted by range: it needs no filter, and its files are dropped
    // whole, before it is worth the processor's time to make them small.
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&cache);
    let mut log = Options::default();
    log.set_block_based_table_factory(&table);
    log.set_compression_type(DBCompressionType::None);
    log.set_level_zero_file_num_compaction_trigger(8);
    log.set_write_buffer_size(32 << 20);

    let mut families = vec![
        ColumnFamilyDescriptor::new("default", rows(1 << 20)),
        ColumnFamilyDescriptor::new(keys::META, rows(4 << 20)),
        ColumnFamilyDescriptor::new(keys::LOG, log),
    ];
    families.extend(Table::ALL.iter().map(|table| ColumnFamilyDescriptor::new(table.name(), rows(16 << 20))));
    families
}

fn check_format(db: &DB, dir: &Path) -> Result<(), OpenError> {
    let damaged = |detail: String| OpenError::Damaged { dir: dir.to_owned(), detail };
    let meta = family(db, keys::META).map_err(|error| damaged(error.to_string()))?;
    match db.get_cf(meta, keys::FORMAT_VERSION).map_err(|error| OpenError::of(dir, error))? {
        None => db
            .put_cf(meta, keys::FORMAT_VERSION, format::FIRST.to_be_bytes())
            .map_err(|error| OpenError::of(dir, error)),
        Some(bytes) => {
            let found = <[u8; 4]>::try_from(&*bytes)
                .map(u32::from_be_bytes)
                .map_err(|_| damaged(format!("its format version has {} bytes", bytes.len())))?;
            let supported = format::supported();
            if found > supported {
                return Err(OpenError::NewerFormat { dir: dir.to_owned(), found, supported });
            }
            Ok(())
        }
    }
}

/// Takes all that waits, flushes and syncs the write-ahead log once, and tells everyone.
///
/// No lingering: while one sync runs, the next batch gathers by itself.
struct SyncThread {
    db: Arc<DB>,
    mark: SyncMark,
    counters: Arc<Counters>,
}

impl SyncThread {
    fn run(self, queue: &mpsc::Receiver<Waiter>) {
        // After a failed sync nobody knows what is on disk, so every later request fails as well; openraft then stops,
        // and the process with it.
        let mut failed: Option<String> = None;
        let mut batch = Vec::new();
        while let Ok(first) = queue.recv() {
            batch.push(first);
            batch.extend(queue.try_iter());
            let mut synced = None;
            if failed.is_none() {
                match self.sync() {
                    Ok(covered) => synced = Some(covered),
                    Err(error) => {
                        tracing::error!(%error, "cannot make the log durable");
                        failed = Some(error.to_string());
                    }
                }
            }
            self.counters.sync_requests.fetch_add(batch.len() as u64, Relaxed);
            for waiter in batch.drain(..) {
                let result = failed.clone().map_or(Ok(()), |error| Err(io::Error::other(error)));
                match waiter {
                    Waiter::Append(done) => done.io_completed(result),
                    // Whoever waited may have given up.
                    Waiter::Barrier(done) => drop(done.send(result)),
                }
            }
            // Nobody waits for the mark, which may be old.
            if let Some(error) = synced.and_then(|covered| self.mark.write(covered).err()) {
                tracing::error!(%error, "cannot write down what is durable");
                failed = Some(error.to_string());
            }
        }
    }

    /// Everything up to the sequence number that it returns is on disk.
    fn sync(&self) -> io::Result<u64> {
        let started = Instant::now();
        let covered = self.db.latest_sequence_number();
        if planted(Bug::AckBeforeFsync) {
            // To the kernel alone, and without a mark that could tell afterwards.
            return self.db.flush_wal(false).map(|()| 0).map_err(io::Error::other);
        }
        self.counters.sync_began(Some(started));
        let synced = self.db.flush_wal(true);
        self.counters.sync_began(None);
        synced.map_err(io::Error::other)?;
        self.counters.syncs.fetch_add(1, Relaxed);
        self.counters.sync_micros.fetch_add(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX), Relaxed);
        Ok(covered)
    }
}

/// The highest sequence number that is known to be on disk, in a file of its own.
///
/// It is written after each sync and never synced itself, so it may be old but never too high. A database that ends
/// before it has lost acknowledged records, which a log that merely has a torn tail has not.
struct SyncMark(File);

impl SyncMark {
    const BYTES: usize = 12;

    fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map(Self)
    }

    /// Zero where there is none, or where the mark itself was torn.
    fn read(&self) -> io::Result<u64> {
        let mut bytes = [0; Self::BYTES];
        match self.0.read_exact_at(&mut bytes, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
            Err(error) => return Err(error),
        }
        let (number, sum) = bytes.split_at(8);
        let intact = crc32fast::hash(number).to_be_bytes() == sum;
        Ok(if intact { number.try_into().map_or(0, u64::from_be_bytes) } else { 0 })
    }

    fn write(&self, synced: u64) -> io::Result<()> {
        let number = synced.to_be_bytes();
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&number);
        bytes[8..].copy_from_slice(&crc32fast::hash(&number).to_be_bytes());
        self.0.write_all_at(&bytes, 0)
    }
}

/// Applies `batch` without waiting for the disk.
pub(super) fn write(db: &DB, batch: WriteBatch) -> io::Result<()> {
    db.write(batch).map_err(io::Error::other)
}
