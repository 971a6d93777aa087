//! Backups of a running instance, as streams.
//!
//! A thread of its own holds the database's read snapshot and writes row by row, no faster than the reader takes it: memory
//! stays bounded, commands go on being applied, and a reader that takes its time lowers what the backup costs.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::StreamExt;
use openclaw_proto::http::ErrorCode;
use openclaw_proto::raft::BackupSource;
use openclaw_raft::Node;
use openclaw_raft::backup::Stamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::api::{BackupStream, ClusterError};

/// How long to look for the point that the backup must reach.
const READ: Duration = Duration::from_secs(5);
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that wait for their reader.
const PIECES: usize = 4;

/// One backup at a time: each reads all there is, and keeps old rows from being cleared away while it lasts.
pub(super) struct Backups {
    only: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl Backups {
    pub(super) fn new(stopping: CancellationToken) -> Self {
        Self { only: Arc::new(Semaphore::new(1)), stopping }
    }

    pub(super) async fn begin(&self, node: &Node, stale: bool) -> Result<BackupStream, ClusterError> {
        let only = self.only.clone().try_acquire_owned().map_err(|_| ClusterError {
            code: ErrorCode::Busy,
            message: "another backup is being made here; try again when it is done, or ask another instance".to_owned(),
        })?;
        let source = if stale {
            BackupSource::Local
        } else {
            node.read_linearizable(READ)
                .await
                .map_err(|error| ClusterError { code: error.code(), message: error.to_string() })?;
            BackupSource::Linearizable
        };
        let (sender, pieces) = mpsc::channel(PIECES);
        let writer =
            Writer { node: node.clone(), source, to: Pieces { sender, stopping: self.stopping.clone() }, only };
        std::thread::Builder::new().name("backup".into()).spawn(move || writer.run()).map_err(|error| {
            ClusterError { code: ErrorCode::Internal, message: format!("no thread for the backup: {error}") }
        })?;
        Ok(ReceiverStream::new(pieces).boxed())
    }
}

struct Writer {
    node: Node,
    source: BackupSource,
    to: Pieces,
    only: OwnedSemaphorePermit,
}

impl Writer {
    fn run(self) {
        let Self { node, source, to, only } = self;
        let sender = to.sender.clone();
        let began = Instant::now();
        let stamp = Stamp { taken_ms: now_ms(), release: env!("CARGO_PKG_VERSION").to_owned() };
        tracing::info!(?source, "backup begins");
        match node.back_up(&stamp, source, BufWriter::with_capacity(PIECE_BYTES, to)) {
            Ok(trailer) => {
                let rows: u64 = trailer.tables.iter().map(|table| table.rows).sum();
                tracing::info!(rows, took_ms = began.elapsed().as_millis(), "backup written");
            }
            Err(error) => {
                tracing::warn!(%error, "backup broke off");
                // Whoever reads must not take the end for the backup's. They may be gone.
                drop(sender.blocking_send(Err(io::Error::other(error))));
            }
        }
        drop(only);
    }
}

/// Gives what is written to the reader, and waits for it.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    stopping: CancellationToken,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stopping.is_cancelled() {
            return Err(io::Error::other("this instance is stopping"));
        }
        let piece = &bytes[..bytes.len().min(PIECE_BYTES)];
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "its reader is gone");
        self.sender.blocking_send(Ok(Bytes::copy_from_slice(piece))).map_err(gone)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
