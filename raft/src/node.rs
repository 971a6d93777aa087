//! One instance's consensus, from its data directory to its listener.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use openclaw_proto::ids::{ClusterId, GroupId, InstanceId};
use openclaw_proto::raft as pb;
use openclaw_proto::state::command;
use openraft::async_runtime::WatchReceiver;
use openraft::{Config, Raft, SnapshotPolicy};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, oneshot, watch};
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::{Channel, Server};

use crate::backup::{BackupError, Stamp};
use crate::clock::{self, Clock};
use crate::fitness::Other;
use crate::formation::{self, Formation, FormationError};
use crate::group::{Group, Inner};
use crate::membership::MembershipError;
use crate::network::security::{HandshakeLimits, PeerListener, PeerSecurity, SecurityError, TlsFiles};
use crate::network::{Contact, Groups, Links, NetworkFactory, Peers, Purpose, Service, never_sent};
use crate::propose::{Committed, ProposeError, Proposer};
use crate::read::{ReadError, Reader, View};
use crate::snapshots;
use crate::state_machine::Event;
use crate::status::{Standing, Status};
use crate::storage::{Counters, Engine, LogStore, OpenError, StateStore, disk_failed};
use crate::types::MemberNode;

/// After a last call of [`Running::stop`], calls under way may finish for this long.
const DRAIN: Duration = Duration::from_secs(2);

/// In the data directory of an instance that the others took out: it does not come back with it.
const REMOVED: &str = "removed";

/// By what peers recognise this instance.
#[derive(Debug, Clone, Default)]
pub enum Security {
    /// Nobody is recognised; refused unless the listener is on loopback.
    #[default]
    Plaintext,
    Files(TlsFiles),
    Secret(String),
}

/// Raft's clocks and sizes.
#[derive(Debug, Clone)]
pub struct Timing {
    pub heartbeat: Duration,
    /// Shortest election timeout; the longest is twice as much.
    pub election_timeout: Duration,
    /// Entries between two snapshots, if those are not many bytes before.
    pub snapshot_every: u64,
    /// Entries that stay in the log behind a snapshot, for followers that are not far behind.
    pub log_keep: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(50),
            election_timeout: Duration::from_millis(150),
            snapshot_every: 500_000,
            log_keep: 50_000,
        }
    }
}

/// What an instance is started with.
pub struct Options {
    pub instance_id: InstanceId,
    /// None: the one on disk, the one to be joined, or one made from the bootstrap list.
    pub cluster_id: Option<ClusterId>,
    /// This instance's own directory.
    pub data_dir: PathBuf,
    pub listener: TcpListener,
    /// Where peers reach the listener, `host:port`.
    pub peer_addr: String,
    /// Where peers and operators reach the public listener; only told, never called.
    pub http_addr: String,
    pub formation: Formation,
    pub security: Security,
    pub timing: Timing,
    /// Further gRPC services on the peer listener.
    pub services: Routes,
    pub links: Links,
}

/// Why an instance did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Formation(#[from] FormationError),
    #[error(transparent)]
    Security(#[from] SecurityError),
    #[error("raft settings: {0}")]
    Settings(String),
    #[error("data directory {dir}: {source}")]
    Storage { dir: PathBuf, source: std::io::Error },
    #[error("consensus did not start: {0}")]
    Fatal(String),
}

impl StartError {
    /// Whether the disk failed, and not what is on it; see [`disk_failed`].
    pub fn disk_failed(&self) -> bool {
        match self {
            Self::Open(OpenError::Io { source, .. }) | Self::Storage { source, .. } => disk_failed(source),
            Self::Open(
                OpenError::Locked { .. }
                | OpenError::Refused { .. }
                | OpenError::NewerFormat { .. }
                | OpenError::LostRecords { .. }
                | OpenError::Damaged { .. },
            )
            | Self::Formation(_)
            | Self::Security(_)
            | Self::Settings(_)
            | Self::Fatal(_) => false,
        }
    }
}

/// A handle to the instance's consensus; cheap to clone.
#[derive(Clone)]
pub struct Node {
    group: Group,
    proposer: Proposer,
    reader: Reader,
    counters: Arc<Counters>,
}

/// Why an instance takes part no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Over {
    /// Consensus has stopped, which it never does by itself except on a fault.
    Failed(String),
    /// The others took this instance out of the cluster. It comes back with a new data directory alone.
    Removed,
}

/// The started instance; dropping it stops nothing.
pub struct Running {
    group: Group,
    server: JoinHandle<()>,
    stop_server: oneshot::Sender<()>,
    formation: JoinHandle<()>,
    belonging: JoinHandle<()>,
    changes: JoinHandle<()>,
    snapshots: JoinHandle<()>,
    clock: JoinHandle<()>,
    engine: Arc<Engine>,
}

impl Node {
    /// Opens the data directory, listens, and starts to take part; membership comes in its own time.
    ///
    /// # Errors
    /// [`StartError`]: nothing is running then.
    pub async fn start(options: Options) -> Result<(Self, Running), StartError> {
        let Options { instance_id, data_dir, listener, .. } = &options;
        let storage = |source| StartError::Storage { dir: data_dir.clone(), source };
        let engine = Engine::open(data_dir)?;
        if data_dir.join(REMOVED).exists() {
            return Err(FormationError::Removed.into());
        }
        let (identity, security) = identify(&engine, &options).await?;
        let cluster_id = ClusterId::parse(identity.cluster_id.as_str())
            .map_err(|error| StartError::Fatal(format!("the data directory's identity: {error}")))?;

        let group_id = GroupId::ZERO;
        let peers =
            Peers::new(cluster_id, identity.node_id, instance_id.clone(), security.clone(), options.links.clone());
        let log = LogStore::open(engine.clone(), group_id).map_err(storage)?;
        let state = StateStore::open(engine.clone(), group_id).map_err(storage)?;
        let (reader, snapshots) = (state.reader(), state.snapshots().clone());
        let config = raft_config(&options.timing, peers.cluster_id())?;
        let silence = options.timing.election_timeout * 4;
        let snapshot_every = options.timing.snapshot_every;
        let contact = Contact::default();
        let network = NetworkFactory { group: group_id, peers: peers.clone() };
        let raft = Raft::new(identity.node_id, Arc::new(config), network, log, state)
            .await
            .map_err(|fatal| StartError::Fatal(fatal.to_string()))?;
        // Its metrics do not say what the log does before it answers: an instance that is a member would ask to become one, and one
        // that was removed would come back.
        raft.with_raft_state(|_| ()).await.map_err(|fatal| StartError::Fatal(fatal.to_string()))?;

        let status = watch_status(&raft, &contact, silence, peers.clone());
        let group = Group::new(Inner {
            id: group_id,
            raft,
            peers,
            contact,
            clock: Clock::default(),
            silence,
            state: reader,
            snapshots,
            status,
            removed: watch::Sender::new(false),
            membership: tokio::sync::Mutex::default(),
            given_away: AtomicU64::new(0),
        });
        let groups = Groups::default();
        groups.insert(group_id, group.clone());

        for warning in security.warnings() {
            tracing::warn!("{warning}");
        }
        tracing::info!(
            cluster = %group.cluster_id(),
            node_id = identity.node_id,
            listen = listener.local_addr().ok().map(tracing::field::display),
            peers = security.describe(),
            "consensus started"
        );
        let own = MemberNode {
            instance_id: instance_id.as_str().to_owned(),
            peer_addr: options.peer_addr,
            http_addr: options.http_addr,
        };
        let incoming = PeerListener::new(options.listener, security.clone(), HandshakeLimits::default());
        let routes = options.services.add_service(Service::server(groups));
        let (stop_server, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            let served = Server::builder()
                .http2_keepalive_interval(Some(Duration::from_secs(1)))
                .http2_keepalive_timeout(Some(Duration::from_secs(2)))
                // A question that others answered first is taken back, and many such may wait while this process is held up:
                // more than the library's 20 would end the connection with all that it carries.
                .http2_max_pending_accept_reset_streams(Some(4096))
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(16 << 20)
                .add_routes(routes)
                .serve_with_incoming_shutdown(incoming, async {
                    // Either way the server is to stop.
                    drop(stopped.await);
                })
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "the peer listener failed");
            }
        });
        let snapshots = tokio::spawn(snapshots::run(group.clone(), engine.counters().clone(), snapshot_every));
        let clock = tokio::spawn(clock::follow(group.clone()));
        let changes = tokio::spawn(group.clone().finish_changes());
        let belonging = tokio::spawn(formation::ask_whether_removed(group.clone()));
        let formation = tokio::spawn(formation::become_member(group.clone(), own, options.formation, security));
        let node = Self {
            proposer: Proposer::spawn(group.clone()),
            reader: Reader::spawn(group.clone()),
            counters: engine.counters().clone(),
            group: group.clone(),
        };
        Ok((node, Running { group, server, stop_server, formation, belonging, changes, snapshots, clock, engine }))
    }

    pub fn instance_id(&self) -> &InstanceId {
        self.group.peers().own_id()
    }

    pub fn cluster_id(&self) -> &ClusterId {
        self.group.cluster_id()
    }

    /// Commits one command through whoever leads.
    ///
    /// # Errors
    /// [`ProposeError`] says whether it may still take effect.
    pub async fn propose(&self, command: command::Kind, timeout: Duration) -> Result<Committed, ProposeError> {
        self.proposer.propose(command, timeout).await
    }

    /// The state as of now: everything that was acknowledged anywhere before this call is in it.
    ///
    /// # Errors
    /// [`ReadError`] without a leader, or when this instance lags.
    pub async fn read_linearizable(&self, timeout: Duration) -> Result<View, ReadError> {
        self.reader.linearizable(timeout).await
    }

    /// The state once this instance has applied `index`.
    ///
    /// # Errors
    /// [`ReadError::Behind`] when that takes longer than `timeout`.
    pub async fn read_at_least(&self, index: u64, timeout: Duration) -> Result<View, ReadError> {
        self.reader.at_least(index, timeout).await
    }

    /// The state as this instance has it, which may be old.
    pub fn read_local(&self) -> View {
        self.reader.local()
    }

    /// Exactly what this instance holds: a log index, and SHA-256 over all rows as they are once it is applied. Equal wherever the
    /// index is equal. Reads all there is, and waits for the disk.
    ///
    /// # Errors
    /// The disk's, or damaged values.
    pub fn state_hash(&self) -> std::io::Result<(u64, [u8; 32])> {
        self.reader.state_hash()
    }

    /// Writes a backup of what this instance holds now. Reads all there is, and waits for the disk and for `to`.
    ///
    /// `source` says what the caller made sure of before, for those who read the backup.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn back_up(
        &self,
        stamp: &Stamp,
        source: pb::BackupSource,
        to: impl Write,
    ) -> Result<pb::BackupTrailer, BackupError> {
        let header = pb::BackupHeader {
            cluster_id: self.cluster_id().as_str().to_owned(),
            instance_id: self.instance_id().as_str().to_owned(),
            applied: None,
            taken_ms: stamp.taken_ms,
            release: stamp.release.clone(),
            source: source.into(),
            replayed: 0,
        };
        self.group.state().back_up(header, to)
    }

    /// What commands that are applied here from now on lead to. Whoever lags reads the state again.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.group.state().subscribe()
    }

    /// As of now.
    pub fn status(&self) -> Status {
        self.group.status_now()
    }

    /// Tells of changes of the leader, the term, the members and the quorum, and of the end; the indices in it are those
    /// of the last such change.
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.group.status()
    }

    /// Whether the task at the core of consensus works through what it is given: false once it has ended. Needs neither a
    /// quorum nor the disk, and waits for as long as it takes.
    pub async fn answers(&self) -> bool {
        self.group.raft().with_raft_state(|_| ()).await.is_ok()
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// A connection to `instance` beside the one that Raft uses, if it is a member other than this one: readers that do
    /// not read may fill it.
    pub fn peer_channel(&self, instance: &InstanceId) -> Option<Channel> {
        if instance == self.instance_id() || self.group.peers().is_cut(instance) {
            return None;
        }
        let metrics = self.group.metrics();
        let mut nodes = metrics.membership_config.membership().nodes();
        let (_, node) = nodes.find(|(_, node)| node.instance_id == instance.as_str())?;
        Some(self.group.peers().channel(Purpose::Relay, instance, &node.peer_addr))
    }

    /// Takes `instance` out of the cluster.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn remove(&self, instance: &InstanceId, timeout: Duration) -> Result<(), MembershipError> {
        let status = self.status();
        if status.is_leader {
            return self.group.remove_here(instance, timeout).await;
        }
        let (leader, mut client) = self.leader_client(&status)?;
        let request = pb::RemoveRequest {
            header: Some(self.group.peers().header(self.group.id(), leader)),
            instance_id: instance.as_str().to_owned(),
            timeout_ms: millis(timeout),
        };
        answered(tokio::time::timeout(timeout, client.remove(request)).await, timeout)
    }

    /// The other voters, and which of them could carry the group on; empty where nobody would miss this instance's vote.
    pub async fn other_voters(&self) -> Vec<Other> {
        self.group.other_voters().await
    }

    /// Hands leadership to `to`, or to the voter that is best prepared; answers with who leads then.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn transfer_leader(
        &self,
        to: Option<&InstanceId>,
        timeout: Duration,
    ) -> Result<InstanceId, MembershipError> {
        let status = self.status();
        if let (Some(to), Some(leader)) = (to, &status.leader)
            && to == leader
        {
            return Ok(to.clone());
        }
        if status.is_leader {
            let to = match to {
                Some(to) => to.clone(),
                None => self.group.best_successor().await?,
            };
            self.group.transfer_here(&to, timeout).await?;
            return Ok(to);
        }
        let to = to.cloned().unwrap_or_else(|| self.instance_id().clone());
        let (leader, mut client) = self.leader_client(&status)?;
        let request = pb::MoveLeadershipRequest {
            header: Some(self.group.peers().header(self.group.id(), leader)),
            to_instance_id: to.as_str().to_owned(),
            timeout_ms: millis(timeout),
        };
        answered(tokio::time::timeout(timeout, client.move_leadership(request)).await, timeout)?;
        Ok(to)
    }

    fn leader_client(&self, status: &Status) -> Result<(u64, pb::raft_client::RaftClient<Channel>), MembershipError> {
        let leader = status.leader_node.ok_or(MembershipError::NoLeader)?;
        let (instance, addr) = self.group.address_of(leader).ok_or(MembershipError::NoLeader)?;
        Ok((leader, self.group.peers().client(&instance, &addr)))
    }
}

fn mark_removed(dir: &Path) -> std::io::Result<()> {
    std::fs::File::create(dir.join(REMOVED))?.sync_all()?;
    std::fs::File::open(dir)?.sync_all()
}

impl Running {
    /// Waits until this instance takes part no more, for good. The process should end then: nothing here recovers.
    pub async fn over(&self) -> Over {
        let mut status = self.group.status();
        tokio::select! {
            () = self.group.removed() => {
                // The log does not tell a leader that it was removed from one that never was a member, at its next start.
                if let Err(error) = mark_removed(self.engine.dir()) {
                    tracing::warn!(%error, "the data directory does not say that this instance was removed");
                }
                Over::Removed
            }
            failed = status.wait_for(|status| status.failed.is_some()) => Over::Failed(match failed {
                Ok(status) => status.failed.clone().unwrap_or_default(),
                Err(_) => "its status is not updated any more".to_owned(),
            }),
        }
    }

    /// Stops taking part, and closes the listener. The data directory stays locked until the last handle is gone.
    pub async fn stop(self) {
        self.formation.abort();
        self.belonging.abort();
        self.changes.abort();
        self.snapshots.abort();
        self.clock.abort();
        // Nobody may be listening any more.
        self.stop_server.send(()).ok();
        if let Err(error) = self.group.raft().shutdown().await {
            tracing::warn!(%error, "consensus did not stop cleanly");
        }
        let abort = self.server.abort_handle();
        if tokio::time::timeout(DRAIN, self.server).await.is_err() {
            abort.abort();
        }
        drop(self.engine);
    }
}

fn millis(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX)
}

fn answered(
    answer: Result<Result<tonic::Response<pb::MembershipResponse>, tonic::Status>, tokio::time::error::Elapsed>,
    timeout: Duration,
) -> Result<(), MembershipError> {
    match answer {
        Err(_) => Err(MembershipError::Timeout { waited: timeout }),
        Ok(Err(status)) if never_sent(&status) => Err(MembershipError::Refused(formation::describe_failure(&status))),
        // The leader may have done it before it fell silent.
        Ok(Err(_)) => Err(MembershipError::Timeout { waited: timeout }),
        Ok(Ok(response)) => {
            let response = response.into_inner();
            if response.done { Ok(()) } else { Err(MembershipError::Refused(response.refused)) }
        }
    }
}

/// A number that no other data directory has. Never zero, which stands for "nobody" on the wire.
pub(crate) fn random_node_id() -> u64 {
    rand::random_range(1..=u64::MAX >> 1)
}

/// What the data directory is for, from disk or, for a new one, from the settings.
async fn identify(engine: &Arc<Engine>, options: &Options) -> Result<(pb::Identity, PeerSecurity), StartError> {
    let own = &options.instance_id;
    let secure = |cluster: Option<&ClusterId>| match &options.security {
        Security::Plaintext => {
            let listen = options.listener.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
            PeerSecurity::plaintext(listen)
        }
        Security::Files(files) => PeerSecurity::from_files(cluster, own, files),
        Security::Secret(secret) => PeerSecurity::from_secret(cluster, own, secret),
    };
    if let Some(stored) = engine.identity()? {
        formation::check_identity(&stored, own, options.cluster_id.as_ref(), &options.formation)?;
        let cluster = ClusterId::parse(stored.cluster_id.as_str())
            .map_err(|error| StartError::Fatal(format!("the data directory's identity: {error}")))?;
        return Ok((stored, secure(Some(&cluster))?));
    }
    let known = secure(options.cluster_id.as_ref())?;
    let given = options.cluster_id.clone().or_else(|| known.cluster_id().cloned());
    let (cluster, bootstrap) = match &options.formation {
        Formation::Alone => (given.unwrap_or_else(formation::random_cluster_id), Vec::new()),
        Formation::Bootstrap(list) => {
            if !list.iter().any(|(id, _)| id == own) {
                return Err(FormationError::NotInList(own.clone()).into());
            }
            (given.unwrap_or_else(|| formation::cluster_id_of(list)), formation::to_nodes(list))
        }
        Formation::Join(addrs) => {
            let theirs = formation::cluster_to_join(addrs, &known, own).await?;
            if let Some(ours) = given.filter(|ours| *ours != theirs) {
                let peer = addrs.join(", ");
                return Err(
                    FormationError::PeerOfOtherCluster { peer, theirs: theirs.as_str().to_owned(), ours }.into()
                );
            }
            (theirs, Vec::new())
        }
    };
    let identity = pb::Identity {
        cluster_id: cluster.as_str().to_owned(),
        instance_id: own.as_str().to_owned(),
        node_id: random_node_id(),
        bootstrap,
    };
    let security = secure(Some(&cluster))?;
    engine
        .set_identity(&identity)
        .await
        .map_err(|source| StartError::Storage { dir: options.data_dir.clone(), source })?;
    Ok((identity, security))
}

/// openraft's defaults that are not safe or not fit for this use are all set here.
fn raft_config(timing: &Timing, cluster: &ClusterId) -> Result<Config, StartError> {
    let (min, max) = (timing.election_timeout, timing.election_timeout * 2);
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: cluster.as_str().to_owned(),
        heartbeat_interval: ms(timing.heartbeat),
        election_timeout_min: ms(min),
        election_timeout_max: ms(max),
        // A member that cannot win must not depose a leader that works.
        enable_pre_vote: Some(true),
        // A restarted leader campaigns like everyone else.
        enable_leader_restore: Some(false),
        // An old leader's heartbeats must not keep a bridge between two halves from voting (openraft #2080).
        quorum_loss_probe_interval: Some(ms(max * 3)),
        max_payload_entries: 1024,
        // `snapshots` asks for them.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: timing.log_keep,
        replication_lag_threshold: timing.log_keep.max(timing.snapshot_every) + timing.snapshot_every,
        purge_batch_size: 1024,
        // The deadline that counts is the network's own; this one only must not come first.
        install_snapshot_timeout: 600_000,
        ..Config::default()
    }
    .validate()
    .map_err(|error| StartError::Settings(error.to_string()))
}

fn watch_status(
    raft: &Raft<crate::types::TypeConfig, StateStore>,
    contact: &Contact,
    silence: Duration,
    peers: Peers,
) -> watch::Receiver<Status> {
    let mut metrics = raft.metrics();
    let contact = contact.clone();
    let first = Status::of(&metrics.borrow_watched(), &contact, silence);
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        let mut standing = Standing::of(&metrics.borrow_watched(), &contact, silence);
        // Silence shows in no metric, so it is looked for as well.
        let mut tick = tokio::time::interval(silence / 4);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let ended = tokio::select! {
                changed = metrics.changed() => changed.is_err(),
                _ = tick.tick() => false,
            };
            let now = Standing::of(&metrics.borrow_watched(), &contact, silence);
            if now == standing && !ended && !sender.is_closed() {
                continue;
            }
            standing = now;
            let mut status = Status::of(&metrics.borrow_watched(), &contact, silence);
            if ended && status.failed.is_none() {
                status.failed = Some("consensus has stopped".to_owned());
            }
            let before = sender.borrow().clone();
            if before.leader != status.leader || before.term != status.term {
                let leader = status.leader.as_ref().map(tracing::field::display);
                tracing::info!(leader, term = status.term, "leader");
            }
            if before.members != status.members {
                let known: BTreeSet<_> = status
                    .members
                    .iter()
                    .map(|member| (member.instance_id.clone(), member.peer_addr.clone()))
                    .collect();
                peers.retain(&known);
            }
            sender.send_replace(status);
            if ended || sender.is_closed() {
                return;
            }
        }
    });
    receiver
}
