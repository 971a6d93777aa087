//! openraft's own storage suite on our store, and what a crash may do to the directory.

use std::sync::Arc;

use openclaw_proto::ids::GroupId;
use openraft::StorageError;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use tempfile::TempDir;

use super::engine::is_disk_failure;
use super::{Engine, LogStore, OpenError, StateStore, disk_failed};
#[cfg(feature = "planted-bugs")]
use crate::planted::{Bug, tests::alone};
use crate::types::{EncodedCommand, Entry, LogId, TypeConfig, Vote};

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateStore, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateStore), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let log = LogStore::open(engine.clone(), GroupId::ZERO).unwrap();
        let state = StateStore::open(engine, GroupId::ZERO).unwrap();
        Ok((dir, log, state))
    }
}

#[tokio::test]
async fn openraft_finds_no_fault_with_the_store() {
    Suite::test_all(Builder).await.unwrap();
}

fn entry(index: u64, bytes: usize) -> Entry {
    let payload = openraft::EntryPayload::Normal(EncodedCommand(vec![7; bytes].into()));
    Entry { log_id: LogId::new_term_index(1, index), payload }
}

async fn append(log: &mut LogStore, range: std::ops::Range<u64>) {
    log.blocking_append(range.map(|index| entry(index, 100))).await.unwrap();
}

fn open(dir: &std::path::Path) -> (Arc<Engine>, LogStore) {
    let engine = Engine::open(dir).unwrap();
    let log = LogStore::open(engine.clone(), GroupId::ZERO).unwrap();
    (engine, log)
}

/// The newest write-ahead log file.
fn wal(dir: &std::path::Path) -> std::path::PathBuf {
    let mut files: Vec<_> = std::fs::read_dir(dir.join("db"))
        .unwrap()
        .map(|item| item.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    files.sort();
    files.pop().unwrap()
}

/// A copy of the directory as a crash would leave it: nothing is flushed or closed.
fn crash(dir: &std::path::Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let options = |from: &std::path::Path, to: &std::path::Path| {
        for item in std::fs::read_dir(from).unwrap() {
            let item = item.unwrap();
            if item.file_type().unwrap().is_file() {
                std::fs::copy(item.path(), to.join(item.file_name())).unwrap();
            }
        }
    };
    options(dir, copy.path());
    std::fs::create_dir(copy.path().join("db")).unwrap();
    options(&dir.join("db"), &copy.path().join("db"));
    copy
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let (_engine, mut log) = open(dir.path());
    log.save_vote(&Vote::new(3, 9)).await.unwrap();
    append(&mut log, 0..50).await;
    let copy = crash(dir.path());
    let (_engine, mut log) = open(copy.path());
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(3, 9)));
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(LogId::new_term_index(1, 49)));
    assert_eq!(log.try_get_log_entries(0..100).await.unwrap().len(), 50);
}

/// What a power loss may leave behind the last record that was synced.
async fn check_tail(damage: impl FnOnce(&mut Vec<u8>)) {
    let dir = tempfile::tempdir().unwrap();
    let (_engine, mut log) = open(dir.path());
    append(&mut log, 0..50).await;
    let synced = std::fs::read(dir.path().join("synced")).unwrap();
    append(&mut log, 50..51).await;
    let copy = crash(dir.path());
    // Entry 50 is one whose sync had not returned.
    std::fs::write(copy.path().join("synced"), synced).unwrap();
    let path = wal(copy.path());
    let mut bytes = std::fs::read(&path).unwrap();
    damage(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
    let (_engine, mut log) = open(copy.path());
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(LogId::new_term_index(1, 49)));
    append(&mut log, 50..60).await;
    assert_eq!(log.try_get_log_entries(45..100).await.unwrap().len(), 15);
}

#[tokio::test]
async fn a_torn_record_is_cut_off_and_work_goes_on() {
    check_tail(|bytes| bytes.truncate(bytes.len() - 30)).await;
}

#[tokio::test]
async fn a_record_whose_end_was_never_written_is_cut_off() {
    check_tail(|bytes| {
        let end = bytes.len();
        bytes[end - 60..].fill(0);
        bytes.resize(end + 4096, 0);
    })
    .await;
}

/// Where the last record of a short log begins.
fn last_record(log: &[u8]) -> usize {
    let mut at = 0;
    loop {
        let next = at + 7 + usize::from(u16::from_le_bytes([log[at + 4], log[at + 5]]));
        if next >= log.len() {
            return at;
        }
        at = next;
    }
}

#[tokio::test]
async fn other_bytes_that_look_like_a_recycled_log_do_not_hold_up_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut log) = open(dir.path());
    append(&mut log, 0..50).await;
    drop((engine, log));
    let path = wal(dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend([7; 40]);
    std::fs::write(&path, bytes).unwrap();
    // In a thread of its own: what RocksDB does without our help has no end.
    let (opened, waiting) = std::sync::mpsc::channel();
    let at = dir.path().to_owned();
    std::thread::spawn(move || opened.send(Engine::open(&at).map(drop)));
    waiting.recv_timeout(std::time::Duration::from_secs(60)).expect("an end").unwrap();

    check_tail(|bytes| {
        bytes.truncate(last_record(bytes));
        bytes.extend([7; 40]);
    })
    .await;
}

#[tokio::test]
async fn a_record_of_other_bytes_is_cut_off() {
    check_tail(|bytes| {
        let end = bytes.len();
        for (at, byte) in bytes[end - 60..].iter_mut().enumerate() {
            *byte ^= (at as u8).wrapping_mul(37) | 1;
        }
    })
    .await;
}

#[tokio::test]
async fn a_log_that_lost_acknowledged_records_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (_engine, mut log) = open(dir.path());
    for index in 0..50 {
        append(&mut log, index..index + 1).await;
    }
    let copy = crash(dir.path());
    let path = wal(copy.path());
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1000]).unwrap();
    let error = Engine::open(copy.path()).unwrap_err();
    assert!(matches!(error, OpenError::LostRecords { .. }), "{error}");
}

#[tokio::test]
async fn a_directory_belongs_to_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let error = Engine::open(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    drop(engine);
}

#[tokio::test]
async fn a_purged_log_opens_where_it_was_purged() {
    let dir = tempfile::tempdir().unwrap();
    let (_engine, mut log) = open(dir.path());
    append(&mut log, 0..100).await;
    log.purge(LogId::new_term_index(1, 59)).await.unwrap();
    log.save_vote(&Vote::new(1, 1)).await.unwrap();
    let copy = crash(dir.path());
    let (_engine, mut log) = open(copy.path());
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(LogId::new_term_index(1, 59)));
    assert_eq!(log.try_get_log_entries(0..100).await.unwrap().len(), 40);
}

#[tokio::test]
async fn one_sync_covers_all_appends_that_wait() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, log) = open(dir.path());
    let before = engine.counters().syncs.load(std::sync::atomic::Ordering::Relaxed);
    let mut waiting = Vec::new();
    for index in 0..500 {
        let mut log = log.clone();
        let (flushed, completed) = TypeConfig::oneshot();
        log.append([entry(index, 100)], IOFlushed::signal(flushed)).await.unwrap();
        waiting.push(completed);
    }
    for completed in waiting {
        completed.await.unwrap().unwrap();
    }
    let syncs = engine.counters().syncs.load(std::sync::atomic::Ordering::Relaxed) - before;
    assert!(syncs < 500, "{syncs} syncs for 500 appends");
}

#[tokio::test]
async fn a_long_range_streams_in_order_past_the_memory_tail() {
    use futures::StreamExt;
    let dir = tempfile::tempdir().unwrap();
    let (_engine, mut log) = open(dir.path());
    for start in (0..3000).step_by(100) {
        log.blocking_append((start..start + 100).map(|index| entry(index, 8 << 10))).await.unwrap();
    }
    let indexes: Vec<u64> = log.entries_stream(0..3000).await.map(|entry| entry.unwrap().log_id.index).collect().await;
    assert_eq!(indexes, (0..3000).collect::<Vec<_>>());
    let limited = log.limited_get_log_entries(0, 3000).await.unwrap();
    assert!(limited.len() > 50 && limited.len() < 200, "{} entries of 8 KiB in 1 MiB", limited.len());
}

/// For tests that begin in a process of their own.
#[cfg(feature = "planted-bugs")]
fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[cfg(feature = "planted-bugs")]
#[test]
fn planted_a_log_that_is_not_synced_survives_a_kill_alone() {
    use std::sync::atomic::Ordering::Relaxed;

    alone(Bug::AckBeforeFsync, || {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let (engine, mut log) = open(dir.path());
            append(&mut log, 0..50).await;
            let counters = engine.counters();
            assert_eq!(counters.syncs.load(Relaxed), 0);
            assert!(counters.sync_requests.load(Relaxed) > 0);
            let copy = crash(dir.path());
            let (_engine, mut log) = open(copy.path());
            assert_eq!(log.try_get_log_entries(0..100).await.unwrap().len(), 50);
        });
    });
}

#[cfg(feature = "planted-bugs")]
#[test]
fn planted_a_log_that_lost_acknowledged_records_is_opened() {
    alone(Bug::AcceptedTail, || {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let (_engine, mut log) = open(dir.path());
            for index in 0..50 {
                append(&mut log, index..index + 1).await;
            }
            let copy = crash(dir.path());
            let path = wal(copy.path());
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() - 1000]).unwrap();
            let (_engine, mut log) = open(copy.path());
            assert!((1..50).contains(&log.try_get_log_entries(0..100).await.unwrap().len()));
        });
    });
}

#[test]
fn a_full_or_broken_disk_is_not_taken_for_damage() {
    // As RocksDB words them when it opens a database.
    for text in [
        "IO error: No space left on device: While appending to file: /d/db/000012.sst",
        "IO error: Input/output error: While fdatasync: /d/db/MANIFEST-000011",
        "IO error: Read-only file system: While open a file for appending: /d/db/000012.dbtmp",
        "IO error: Too many open files: While open a file for random read: /d/db/000009.sst",
    ] {
        assert!(is_disk_failure(text), "{text}");
    }
    for text in [
        "IO error: No such file or directory: While open a file for random read: /d/db/000009.sst",
        "Corruption: block checksum mismatch: No space left on device",
    ] {
        assert!(!is_disk_failure(text), "{text}");
    }
    assert!(disk_failed(&std::io::Error::from_raw_os_error(28)));
    assert!(!disk_failed(&std::io::Error::from(std::io::ErrorKind::NotFound)));
}
