//! `openclaw cluster restore`: a new cluster's first member, made from a backup. No instance is asked.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use clap::Args;
use openclaw_proto::ids::{ClusterId, InstanceId};
use openclaw_raft::OpenError;
use openclaw_raft::backup::{self, RestoreError, RestoreOptions};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::backup::{Contents, on_a_thread, open, unreadable};
use crate::cli::exit::{Exit, Failure};
use crate::cli::interrupt;
use crate::cli::output;
use crate::cli::settings;

/// Make the data directory of a new cluster's first instance from a backup
///
/// Run it with the settings that the instance is to be started with: configuration, environment and flags count as for
/// `openclaw gateway`. The instance is then a cluster of one, under a new cluster id, which the others join with empty
/// directories. Who owned what in the lost cluster is forgotten; turns that ran are run again.
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// Backup to read; `-`: standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Name of the instance [OPENCLAW_INSTANCE_ID]
    #[arg(long, value_name = "ID")]
    instance_id: Option<InstanceId>,
    /// Directory of data; the instance's own directory in it must be empty or not exist [OPENCLAW_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Id of the new cluster, which is never the lost one's [default: a random one; OPENCLAW_CLUSTER_ID]
    #[arg(long, value_name = "NAME")]
    cluster_id: Option<ClusterId>,
    /// The list that the instance is started with, if it is [OPENCLAW_CLUSTER_BOOTSTRAP]
    #[arg(long, value_name = "ID=HOST:PORT,..")]
    bootstrap: Option<String>,
    /// Listener for other instances [OPENCLAW_PEER_LISTEN]
    #[arg(long, value_name = "ADDRESS:PORT")]
    peer_listen: Option<String>,
    /// Where other instances reach it [OPENCLAW_PEER_ADVERTISE]
    #[arg(long, value_name = "HOST:PORT")]
    peer_advertise: Option<String>,
    /// Configuration file [OPENCLAW_CONFIG_PATH]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What was made.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    data_dir: PathBuf,
    instance_id: InstanceId,
    cluster_id: ClusterId,
    /// The new cluster's log begins behind it.
    log_index: u64,
    backup: Contents,
}

pub(super) async fn run(arguments: Restore, json: bool) -> Result<Exit, Failure> {
    let overrides = settings::overrides([
        ("--instance-id", "cluster.instanceId", arguments.instance_id.map(String::from)),
        ("--data-dir", "storage.dataDir", arguments.data_dir.map(|dir| dir.display().to_string())),
        ("--cluster-id", "cluster.id", arguments.cluster_id.map(String::from)),
        ("--bootstrap", "cluster.bootstrap", arguments.bootstrap),
        ("--peer-listen", "cluster.peer.listen", arguments.peer_listen),
        ("--peer-advertise", "cluster.peer.advertise", arguments.peer_advertise),
    ]);
    let config = settings::load(arguments.config, overrides, true)?.config;
    let cluster = &config.cluster;
    let instance_id = cluster.instance_id_or_default();
    let text = |address: openclaw_config::HostPort| address.to_string();
    let options = RestoreOptions {
        data_dir: config.storage.data_dir.join(instance_id.as_str()),
        instance_id: instance_id.clone(),
        cluster_id: cluster.id.clone(),
        peer_addr: cluster.peer_address().map_or_else(|| cluster.peer.listen.to_string(), text),
        http_addr: config.http_address().map(text).unwrap_or_default(),
        bootstrap: cluster.bootstrap.iter().map(|member| (member.id.clone(), member.address.to_string())).collect(),
    };
    let (data_dir, peer_addr, listed) =
        (options.data_dir.clone(), options.peer_addr.clone(), !options.bootstrap.is_empty());
    let file = &arguments.file;
    let from: Box<dyn Read + Send> = if file == Path::new("-") { Box::new(io::stdin()) } else { Box::new(open(file)?) };
    let stop = CancellationToken::new();
    let from = Fetched::new(from, stop.clone())?;
    let handle = Handle::current();
    let restoring = async {
        let stop = stop.clone();
        let restored = on_a_thread(move || handle.block_on(backup::restore(options, from, &stop))).await?;
        restored.map_err(|error| failure(file, error))
    };
    let restored = interrupt::or_signal(restoring, &stop, "nothing was restored").await.map_err(|mut failure| {
        if failure.exit() == Exit::Interrupted {
            let work = format!(".{instance_id}.restoring-*");
            failure.details.push(format!("after a second signal {work} may be left beside the data directory"));
        }
        failure
    })?;
    let report = Report {
        data_dir,
        instance_id,
        cluster_id: restored.cluster_id,
        log_index: restored.index,
        backup: Contents::of(&restored.header, &restored.trailer),
    };
    output::answer(json, &report, || {
        let next = if listed {
            format!(
                "then the others of the list with empty directories; all of them with OPENCLAW_CLUSTER_ID={}",
                report.cluster_id
            )
        } else {
            format!("then others, if any, with empty directories and `--join {peer_addr}`")
        };
        format!(
            "{}\n{} holds instance {} of the new cluster {}, compared with the backup and right\n\
             next: start it with `openclaw gateway`, {next}\n",
            report.backup.render(),
            report.data_dir.display(),
            report.instance_id,
            report.cluster_id,
        )
    })?;
    Ok(Exit::Ok)
}

const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that wait to be used.
const PIECES: usize = 4;
/// Between two looks whether to go on.
const LOOK: Duration = Duration::from_millis(50);

/// A backup as it comes, until `stop`: also from a pipe, or a disk, that gives nothing.
struct Fetched {
    pieces: Receiver<io::Result<Vec<u8>>>,
    piece: io::Cursor<Vec<u8>>,
    stop: CancellationToken,
}

impl Fetched {
    fn new(mut from: impl Read + Send + 'static, stop: CancellationToken) -> Result<Self, Failure> {
        let (sender, pieces) = sync_channel(PIECES);
        let fetch = move || {
            loop {
                let mut bytes = Vec::with_capacity(PIECE_BYTES);
                let read = from.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut bytes);
                let last = bytes.is_empty() || read.is_err();
                if sender.send(read.map(|_| bytes)).is_err() || last {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("fetch".into())
            .spawn(fetch)
            .map_err(|error| Failure::failed(format!("no thread to read the backup: {error}")))?;
        Ok(Self { pieces, piece: io::Cursor::default(), stop })
    }
}

impl Read for Fetched {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.stop.is_cancelled() {
                return Err(io::Error::other("interrupted"));
            }
            let read = self.piece.read(bytes)?;
            if read > 0 || bytes.is_empty() {
                return Ok(read);
            }
            match self.pieces.recv_timeout(LOOK) {
                Ok(piece) => {
                    let piece = piece?;
                    if piece.is_empty() {
                        return Ok(0);
                    }
                    self.piece = io::Cursor::new(piece);
                }
                Err(RecvTimeoutError::Timeout) => {}
                // After its end, or its error.
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
            }
        }
    }
}

fn failure(file: &Path, error: RestoreError) -> Failure {
    let text = error.to_string();
    if error.disk_failed() {
        return Failure::failed(text);
    }
    match error {
        RestoreError::NotEmpty { .. } => {
            Failure::new(Exit::Refused, text).hint("move it out of the data directory, or name another --data-dir")
        }
        RestoreError::SameCluster(_) => Failure::new(Exit::Refused, text)
            .hint("leave cluster.id out for a random one, or set it to a new one on every instance"),
        RestoreError::NotInList(_) => {
            Failure::usage(text).hint("the list must be the one that the instance is started with")
        }
        RestoreError::Backup(error) => unreadable(file, &error),
        RestoreError::Open(OpenError::Locked { .. }) => Failure::new(Exit::InUse, text),
        RestoreError::Open(_) | RestoreError::Storage { .. } | RestoreError::Unlike(_) | RestoreError::Stopped => {
            Failure::failed(text)
        }
    }
}
