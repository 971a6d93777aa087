//! The data directory of an instance that does not run: a backup of it, and a new one made from a backup.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openclaw_proto::ids::{ClusterId, GroupId, InstanceId};
use openclaw_proto::raft as pb;
use openraft::EntryPayload;
use openraft::storage::RaftLogStorage;
use prost::Message;
use tokio_util::sync::CancellationToken;

use super::engine::{Engine, OpenError};
use super::log_store::LogStore;
use super::owner;
use super::snapshot_store::Incoming;
use super::state_store::StateStore;
use crate::backup::{self, BackupError, BackupReader, Stamp};
use crate::command;
use crate::formation;
use crate::state_machine::{self, LogPosition, Overlay, SnapshotError, SnapshotWriter, TableError, format, restored};
use crate::types::{LogId, MemberNode, Membership, SnapshotMeta, StoredMembership};
use crate::wire;

/// Of log entries that a stopped instance had not applied, which are applied in memory.
const MAX_REPLAY_BYTES: usize = 256 << 20;
/// Read from the log at a time.
const REPLAY_STEP: usize = 4 << 20;
const BUFFER_BYTES: usize = 256 << 10;

/// Why there is no backup of a directory.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{dir} is not the data directory of an instance that was a member of a cluster: {missing}")]
    NoInstance { dir: PathBuf, missing: &'static str },
    #[error("data directory {dir}: {source}")]
    Storage { dir: PathBuf, source: io::Error },
    #[error(
        "more than {MAX_REPLAY_BYTES} bytes of its log are not applied yet: start the instance once, so that it applies them"
    )]
    TooFarBehind,
    #[error(transparent)]
    Backup(#[from] BackupError),
}

/// Writes a backup of the directory of an instance that is stopped.
///
/// What its log holds beyond its rows is applied on the way to the backup, and nowhere else: any of it may have been
/// acknowledged, if a majority had it. What only other instances had is not in the backup.
///
/// # Errors
/// [`OfflineError::Open`] while a process uses the directory, and when it is damaged.
pub fn of_stopped(dir: &Path, stamp: &Stamp, to: impl Write) -> Result<pb::BackupTrailer, OfflineError> {
    // Opening makes what is missing.
    if !dir.join("db").is_dir() {
        return Err(OfflineError::NoInstance { dir: dir.to_owned(), missing: "it has no database" });
    }
    let trailer = read_stopped(dir, stamp, to);
    let given = owner::give_to_owner_of(dir, dir);
    let trailer = trailer?;
    given.map_err(|source| OfflineError::Storage { dir: dir.to_owned(), source })?;
    Ok(trailer)
}

/// Opens the directory, and has closed it when it returns.
fn read_stopped(dir: &Path, stamp: &Stamp, to: impl Write) -> Result<pb::BackupTrailer, OfflineError> {
    let no_instance = |missing| OfflineError::NoInstance { dir: dir.to_owned(), missing };
    let storage = |source| OfflineError::Storage { dir: dir.to_owned(), source };
    let engine = Engine::open(dir)?;
    let identity = engine.identity()?.ok_or_else(|| no_instance("it has no identity"))?;
    let log = LogStore::open(engine.clone(), GroupId::ZERO).map_err(storage)?;
    let state = StateStore::open(engine, GroupId::ZERO).map_err(storage)?;
    let (applied, tables) = state.applied_rows();
    let mut rows = Overlay::new(&tables);
    let mut last = applied;
    let (mut bytes, mut replayed) = (0, 0);
    loop {
        let from = last.as_ref().map_or(0, |id| id.index + 1);
        let entries = log.read(from, u64::MAX, REPLAY_STEP).map_err(storage)?;
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            bytes += wire::entry_size(&entry);
            if bytes > MAX_REPLAY_BYTES {
                return Err(OfflineError::TooFarBehind);
            }
            if let EntryPayload::Normal(encoded) = &entry.payload {
                let at = LogPosition { index: entry.log_id.index, term: **entry.log_id.committed_leader_id() };
                // What is no command is refused when it is applied, and changes nothing.
                if let Ok(command) = command::decode(&encoded.0) {
                    rows.apply(state_machine::decide(&rows, at, &command).map_err(BackupError::from)?.writes);
                }
            }
            last = Some(entry.log_id);
            replayed += 1;
        }
    }
    let last = last.ok_or_else(|| no_instance("it has applied nothing"))?;
    // What stands behind the entry that raised it was not understood.
    if let Some(why) = format::too_old(format::supported(), format::active(&rows).map_err(BackupError::from)?) {
        return Err(storage(io::Error::other(why)));
    }
    let header = pb::BackupHeader {
        cluster_id: identity.cluster_id,
        instance_id: identity.instance_id,
        applied: Some(wire::to_log_id(&last)),
        taken_ms: stamp.taken_ms,
        release: stamp.release.clone(),
        source: pb::BackupSource::Stopped.into(),
        replayed,
    };
    Ok(backup::write(&rows, &header, to)?)
}

/// What a new cluster's first member is to be.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Its own directory, which is empty or does not exist.
    pub data_dir: PathBuf,
    pub instance_id: InstanceId,
    /// None: a random one. Never the lost cluster's.
    pub cluster_id: Option<ClusterId>,
    /// Where its peers will reach it.
    pub peer_addr: String,
    pub http_addr: String,
    /// The list that it will be started with; empty: none.
    pub bootstrap: Vec<(InstanceId, String)>,
}

/// What was restored.
#[derive(Debug, Clone)]
pub struct Restored {
    pub header: pb::BackupHeader,
    pub trailer: pb::BackupTrailer,
    pub cluster_id: ClusterId,
    /// The new cluster's log begins behind this index.
    pub index: u64,
}

/// Why nothing was restored. The directory is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("{dir} is not empty: a backup is restored into a new directory only")]
    NotEmpty { dir: PathBuf },
    #[error(
        "the backup is of cluster {0} itself: the new cluster needs another id, so that no instance of the old one can join it"
    )]
    SameCluster(ClusterId),
    #[error("the bootstrap list does not name {0}")]
    NotInList(InstanceId),
    #[error("the backup: {0}")]
    Backup(#[from] BackupError),
    #[error("{dir}: {source}")]
    Storage { dir: PathBuf, source: io::Error },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("what was written is not what was read: {0}")]
    Unlike(String),
    #[error("stopped")]
    Stopped,
}

impl RestoreError {
    /// Whether the disk failed; see [`super::disk_failed`].
    pub fn disk_failed(&self) -> bool {
        match self {
            Self::Storage { source, .. } | Self::Open(OpenError::Io { source, .. }) => super::disk_failed(source),
            Self::NotEmpty { .. }
            | Self::SameCluster(_)
            | Self::NotInList(_)
            | Self::Backup(_)
            | Self::Open(_)
            | Self::Unlike(_)
            | Self::Stopped => false,
        }
    }
}

/// Makes the data directory of a new cluster's first and only member from a backup.
///
/// It is made under another name beside, and takes its own when it is whole, on disk, and was compared with the backup. So a
/// backup that turns out to be damaged leaves nothing behind. What root makes belongs to the owner of the directory above. `stop` is heeded between its parts, of which the longest writes and
/// syncs all rows.
///
/// # Errors
/// [`RestoreError`]: nothing was restored.
pub async fn restore(
    options: RestoreOptions,
    from: impl Read + Send,
    stop: &CancellationToken,
) -> Result<Restored, RestoreError> {
    let RestoreOptions { data_dir, instance_id, bootstrap, .. } = &options;
    if !bootstrap.is_empty() && !bootstrap.iter().any(|(id, _)| id == instance_id) {
        return Err(RestoreError::NotInList(instance_id.clone()));
    }
    check_empty(data_dir)?;
    let failed = |source| RestoreError::Storage { dir: data_dir.clone(), source };
    let name = data_dir.file_name().ok_or_else(|| failed(io::Error::other("it has no name")))?;
    let parent = match data_dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
    let work = parent.join(format!(".{}.restoring-{:016x}", name.to_string_lossy(), rand::random::<u64>()));
    fs::DirBuilder::new().mode(0o700).create(&work).map_err(failed)?;
    let placed = |source: io::Error| {
        if source.kind() == io::ErrorKind::DirectoryNotEmpty {
            RestoreError::NotEmpty { dir: data_dir.clone() }
        } else {
            failed(source)
        }
    };
    let filled = fill(&options, &work, from, stop).await;
    let result = filled.and_then(|restored| {
        owner::give_to_owner_of(parent, &work).map_err(failed)?;
        put_in_place(&work, data_dir, parent).map(|()| restored).map_err(placed)
    });
    if result.is_err()
        && let Err(error) = fs::remove_dir_all(&work)
    {
        tracing::warn!(path = %work.display(), %error, "cannot remove what was not restored");
    }
    result
}

fn check_empty(dir: &Path) -> Result<(), RestoreError> {
    let failed = |source| RestoreError::Storage { dir: dir.to_owned(), source };
    match fs::read_dir(dir) {
        Ok(mut items) => match items.next() {
            None => Ok(()),
            Some(Ok(_)) => Err(RestoreError::NotEmpty { dir: dir.to_owned() }),
            Some(Err(error)) => Err(failed(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// A rename takes the place of an empty directory, and of no other.
fn put_in_place(work: &Path, dir: &Path, parent: &Path) -> io::Result<()> {
    File::open(work)?.sync_all()?;
    fs::rename(work, dir)?;
    File::open(parent)?.sync_all()
}

/// Fills `work`, and has closed it when it returns.
async fn fill(
    options: &RestoreOptions,
    work: &Path,
    from: impl Read + Send,
    stop: &CancellationToken,
) -> Result<Restored, RestoreError> {
    let go_on = || if stop.is_cancelled() { Err(RestoreError::Stopped) } else { Ok(()) };
    let failed = |source| RestoreError::Storage { dir: work.to_owned(), source };
    let mut backup = BackupReader::new(from)?;
    let header = backup.header().clone();
    let cluster_id = options.cluster_id.clone().unwrap_or_else(formation::random_cluster_id);
    if cluster_id.as_str() == header.cluster_id {
        return Err(RestoreError::SameCluster(cluster_id));
    }
    let applied = header.applied.map(wire::from_log_id).ok_or_else(|| {
        RestoreError::Backup(BackupError::Damaged { part: "header", detail: "it names no log id".to_owned() })
    })?;
    let term = **applied.committed_leader_id();
    let last = LogId::new_term_index(term, applied.index.saturating_add(restored::INDEX_GAP));
    let node_id = crate::node::random_node_id();
    let own = MemberNode {
        instance_id: options.instance_id.as_str().to_owned(),
        peer_addr: options.peer_addr.clone(),
        http_addr: options.http_addr.clone(),
    };
    let membership = Membership::new(vec![BTreeSet::from([node_id])], BTreeMap::from([(node_id, own)]))
        .map_err(|error| failed(io::Error::other(error.to_string())))?;
    let meta = SnapshotMeta { last_log_id: Some(last), last_membership: StoredMembership::new(Some(last), membership) };

    let engine = Engine::open(work)?;
    let mut state = StateStore::open(engine.clone(), GroupId::ZERO).map_err(failed)?;
    let mut incoming = state.snapshots().receive().map_err(failed)?;
    copy(&mut backup, &meta, &mut incoming).map_err(|error| match error {
        CopyError::Backup(error) => RestoreError::Backup(error),
        CopyError::Disk(source) => failed(source),
    })?;
    let trailer = backup.trailer().cloned().unwrap_or_default();
    go_on()?;
    let file = incoming.finish().await.map_err(failed)?;
    state.take_over(&meta, file).await.map_err(failed)?;
    go_on()?;
    let kept = restored::kept_hash(&state.applied_rows().1).map_err(BackupError::from)?;
    if *trailer.kept_sha256 != kept {
        return Err(RestoreError::Unlike("the hashes of the rows that stay differ".to_owned()));
    }

    go_on()?;
    let mut log = LogStore::open(engine.clone(), GroupId::ZERO).map_err(failed)?;
    log.purge(last).await.map_err(failed)?;
    // Elections go on from the term of the backup: terms of this cluster's log must not fall either.
    let vote = wire::from_vote(pb::Vote { term, node_id, committed: false });
    log.save_vote(&vote).await.map_err(failed)?;
    engine
        .set_identity(&pb::Identity {
            cluster_id: cluster_id.as_str().to_owned(),
            instance_id: options.instance_id.as_str().to_owned(),
            node_id,
            bootstrap: formation::to_nodes(&options.bootstrap),
        })
        .await
        .map_err(failed)?;
    drop((log, state));
    // The last one: it closes the database.
    debug_assert_eq!(Arc::strong_count(&engine), 1, "somebody still uses the directory");
    drop(engine);
    Ok(Restored { header, trailer, cluster_id, index: last.index })
}

enum CopyError {
    Backup(BackupError),
    Disk(io::Error),
}

/// Writes the backup's rows as a snapshot, as they are to be in the new cluster.
fn copy(backup: &mut BackupReader<impl Read>, meta: &SnapshotMeta, incoming: &mut Incoming) -> Result<(), CopyError> {
    struct Into<'a>(&'a mut Incoming);
    impl Write for Into<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes).map(|()| bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let disk =
        |error| CopyError::Disk(if let SnapshotError::Io(error) = error { error } else { io::Error::other(error) });
    let damaged =
        |error: TableError| CopyError::Backup(BackupError::Damaged { part: "content", detail: error.to_string() });
    let to = BufWriter::with_capacity(BUFFER_BYTES, Into(incoming));
    let meta = wire::to_snapshot_meta(meta).encode_to_vec();
    let mut snapshot = SnapshotWriter::new(to, backup.format(), &meta).map_err(disk)?;
    while let Some(row) = backup.next_row().map_err(CopyError::Backup)? {
        if let Some(value) = restored::row(row.table, &row.key, row.value).map_err(damaged)? {
            snapshot.row(row.table, &row.key, &value).map_err(disk)?;
        }
    }
    snapshot.finish().map(drop).map_err(disk)
}
