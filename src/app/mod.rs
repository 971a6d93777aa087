//! Wires everything once, and holds no policy.
//!
//! Start: data directory and listeners, consensus, the store over it, turns, then HTTP. Stop, in this order: not ready, and
//! from then on leadership, channels and new turns go to others; no new connections; requests, streams and turns end, or what
//! is left of them is handed over; the instance's epoch; consensus; storage.

mod alone;
mod backup;
mod channels;
mod health;
mod overview;
mod view;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openclaw_config::gateway::Shutdown;
use openclaw_config::storage::Backend;
use openclaw_config::{Config, Loaded};
use openclaw_proto::ids::{ChannelAccount, InstanceId};
use openclaw_raft::network::security::TlsFiles;
use openclaw_raft::{
    Formation, FormationError, Links, Node, OpenError, Options, Over, Running, Security, StartError, Timing,
};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::agent::turn;
use crate::api::{self, ChannelView, ClusterView, Gateway, Parts, server};
use crate::channels::elsewhere;
use crate::channels::health::Health;
use crate::channels::intake::{COMMIT, Context};
use crate::channels::supervisor::{self, Configured, Supervisor};
use crate::cluster::observer::{self, Observer};
use crate::cluster::readiness::Readiness;
use crate::cluster::validity::Validity;
use crate::cluster::{expiry, placement, session};
use crate::maintenance;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::service_manager;
use crate::sessions::commands::Commander;
use crate::sessions::live::{self, Hub};
use crate::sessions::relay::{self, PeerRelay};
use crate::sessions::runner::{self, Load, Runner};
use crate::sessions::{follow, follow::Follow};
use crate::store::SessionStore;
use crate::store::raft::RaftStore;

/// For readers of streams to take the id to continue from, once the time to drain is over.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Beside connections: the database's, peers, channels, models.
const OTHER_FILES: u64 = 1024;
/// Sends under way, the account's end, its release: `channels/supervisor.rs` bounds each of them.
const STOP_CHANNELS: Duration = Duration::from_secs(5);
const STOP_TASKS: Duration = Duration::from_secs(2);
/// Turns that run here at once.
const MAX_RUNNING_TURNS: usize = 16 * 1024;

/// Why a gateway ended without being asked to.
///
/// Variants follow what its supervisor does next.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// Settings that can only be judged at start: a certificate, a bootstrap list that disk contradicts.
    #[error("{0}")]
    Config(String),
    /// An address or the data directory belongs to another process.
    #[error("{0}")]
    InUse(String),
    /// What is on disk is damaged, or of a release that this one cannot read.
    #[error("{0}")]
    Storage(String),
    /// What is on disk is another user's.
    #[error("{0}")]
    NotOurs(String),
    /// It ran, and could not go on, or its disk is full or fails; starting it again may help.
    #[error("{0}")]
    Fatal(String),
}

/// Runs an instance until a signal asks it to stop.
///
/// # Errors
/// [`Stopped`] when it cannot start, or cannot go on.
pub async fn run(loaded: Loaded) -> Result<(), Stopped> {
    // From the first moment: the first process of a container that watches no signal is not ended by one either.
    let mut signals = Signals::watch()?;
    let app = tokio::select! {
        app = App::build(loaded.config) => app?,
        // Nothing was served yet.
        () = signals.received() => return Ok(()),
    };
    app.run(signals).await
}

/// What asks this process to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn watch() -> Result<Self, Stopped> {
        let error = |error: io::Error| Stopped::Fatal(format!("signals cannot be watched: {error}"));
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(error)?,
            interrupt: signal(SignalKind::interrupt()).map_err(error)?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => tracing::info!("asked to stop (SIGTERM)"),
            _ = self.interrupt.recv() => tracing::info!("asked to stop (SIGINT)"),
        }
    }
}

struct App {
    node: Node,
    running: Running,
    readiness: Readiness,
    load: Load,
    /// Ends the readers of streams, each with a position to continue from.
    streams: CancellationToken,
    listeners: CancellationToken,
    tasks: CancellationToken,
    channels: JoinHandle<()>,
    channels_stopped: CancellationToken,
    servers: JoinSet<()>,
    workers: JoinSet<()>,
    session: JoinHandle<()>,
    session_over: CancellationToken,
    shutdown: Shutdown,
}

impl App {
    async fn build(config: Config) -> Result<Self, Stopped> {
        openclaw_raft::planted::announce().map_err(|error| Stopped::Config(error.to_string()))?;
        match config.storage.backend {
            Backend::Raft => {}
            Backend::Redis | Backend::Fs => {
                return Err(Stopped::Config(
                    "storage.backend: this release stores sessions in its own replicated storage alone: use \"raft\""
                        .to_owned(),
                ));
            }
        }
        raise_file_limit(config.gateway.limits.max_connections);
        let instance_id = config.cluster.instance_id_or_default();
        let data_dir = config.storage.data_dir.join(instance_id.as_str());
        private_dir(&data_dir)?;
        let knows_nobody = config.cluster.bootstrap.is_empty() && config.cluster.join.is_empty();
        // Held until this instance has left its boot id.
        let _begins = if knows_nobody { alone::begin(&config.storage.data_dir, &data_dir)? } else { None };
        let metrics = Metrics::new().map_err(|error| Stopped::Fatal(error.to_string()))?;
        let models = Models::from_config(&config.models).map_err(|error| Stopped::Config(error.to_string()))?;
        let models = models.counted(metrics.clone());

        let mut http = Vec::new();
        for address in config.gateway.listen() {
            http.push(bind(address, "gateway.port").await?);
        }
        let (relay, elsewhere) = (relay::Service::default(), elsewhere::Service::default());
        let observing = observer::Service::default();
        let services = Routes::new(relay.server()).add_service(elsewhere.server()).add_service(observing.server());
        let (node, running) = start_node(&config, &instance_id, &data_dir, services).await?;

        let (streams, listeners, tasks) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let raft_store = Arc::new(RaftStore::new(node.clone(), metrics.clone()));
        let store: Arc<dyn SessionStore> = raft_store.clone();
        let hub = Hub::new(live::Limits::default());
        let follow = Follow::new(
            instance_id.clone(),
            store.clone(),
            hub.clone(),
            Arc::new(PeerRelay(node.clone())),
            follow::Options::default(),
            streams.clone(),
        );
        relay.open(follow.clone(), node.cluster_id().as_str().to_owned());
        let runner = Runner::new(
            instance_id.clone(),
            store.clone(),
            models.clone(),
            hub,
            metrics.clone(),
            runner::Options {
                agents: config.agents.clone(),
                max_running: MAX_RUNNING_TURNS,
                limits: turn::Limits { timeout: config.session.turn_timeout, ..turn::Limits::default() },
                ..runner::Options::default()
            },
        );
        let load = runner.load();

        let accounts = channels::configured(&config.channels)?;
        let description = describe(&config, &node, &data_dir, &accounts.configured)?;
        let lease = &config.cluster.lease;
        let validity = Validity::start(lease.validity, lease.stop_budget)
            .map_err(|error| Stopped::Fatal(format!("no thread to watch leases: {error}")))?;
        let options = session::Options { renew: lease.renew, deadline: lease.validity };
        let session_over = CancellationToken::new();
        let (session, keeping) =
            session::keep(node.clone(), description, options, validity.clone(), session_over.clone());
        let readiness = Readiness::new(node.clone(), session.clone(), tasks.clone());

        let keeping = tokio::spawn(keeping);
        let mut workers = JoinSet::new();
        let expiry = expiry::Options { wait: lease.wait, max_attempts: config.session.max_attempts };
        workers.spawn(expiry::run(node.clone(), expiry, tasks.clone()));
        workers.spawn(placement::run(node.clone(), config.cluster.failback.after, tasks.clone()));
        workers.spawn(maintenance::sweep(node.clone(), tasks.clone()));
        workers.spawn(watch_raft(node.clone(), metrics.clone(), tasks.clone()));
        // Answered by the event loop and by consensus: what else may be wrong is not cured by starting again.
        let core = node.clone();
        let progress = move || {
            let core = core.clone();
            async move { core.answers().await }
        };
        workers.spawn(service_manager::watchdog(progress, tasks.clone()));
        let observer = Observer::new(node.clone(), metrics.clone());
        observing.open(observer.clone());
        workers.spawn(observer.clone().run(session.clone(), tasks.clone()));
        let (until, registering) = (tasks.clone(), session.clone());
        workers.spawn(async move {
            // Before its own registration is applied here, the state still names the process before it: a turn run under
            // that one's token would stream under ids that its readers have seen.
            if until.run_until_cancelled(registering.registered()).await.is_some() {
                runner.run(until).await;
            }
        });

        let health = Health::new(metrics.clone());
        for one in &accounts.configured {
            health.expect(one.channel.account());
        }
        elsewhere.open(health.clone(), node.cluster_id().as_str().to_owned());
        let commander = Commander {
            me: instance_id.clone(),
            models: models.clone(),
            agents: config.agents.clone(),
            timeout: COMMIT,
        };
        let context = Context {
            me: instance_id.clone(),
            store: raft_store.clone(),
            commander: commander.clone(),
            session: config.session.clone(),
            max_queued: config.messages.queue.cap,
            metrics: metrics.clone(),
        };
        let channel_view = channels::View {
            me: instance_id.clone(),
            node: node.clone(),
            store: raft_store,
            health: health.clone(),
            webhooks: accounts.webhooks(&context),
        };
        let vitals =
            health::Vitals::new(health.clone(), config.diagnostics.health.clone(), data_dir.clone(), node.clone());
        let supervisor = Supervisor {
            context,
            follow: follow.clone(),
            validity: validity.clone(),
            session: session.clone(),
            health,
            accounts: accounts.configured,
        };
        let channels_stopped = CancellationToken::new();
        let channels = tokio::spawn(supervisor.run(channels_stopped.clone()));

        let hashing = Arc::new(tokio::sync::Semaphore::new(1));
        let backups = backup::Backups::new(streams.clone());
        let view =
            view::View { node: node.clone(), readiness: readiness.clone(), load: load.clone(), hashing, backups };
        let (cluster_view, channel_view): (Arc<dyn ClusterView>, Arc<dyn ChannelView>) =
            (Arc::new(view), Arc::new(channel_view));
        workers.spawn(vitals.clone().watch(cluster_view.clone(), validity, metrics.clone(), tasks.clone()));
        let overview = overview::View {
            observer,
            cluster: cluster_view.clone(),
            channels: channel_view.clone(),
            last: parking_lot::Mutex::default(),
        };
        let server_options = server::Options::from(&config.gateway.limits);
        let gateway = Gateway::new(Parts {
            instance_id: instance_id.clone(),
            store,
            follow,
            load: load.clone(),
            models,
            agents: config.agents.clone(),
            cluster: cluster_view,
            channels: channel_view,
            health: Arc::new(vitals),
            overview: Arc::new(overview),
            metrics: metrics.clone(),
            config: config.gateway.clone(),
            max_queued: config.messages.queue.cap,
            commander,
            reset_triggers: config.session.reset_triggers.clone(),
            stopping: streams.clone(),
        });
        let router = api::router(gateway.clone());
        let mut servers = JoinSet::new();
        for listener in http {
            let address = listener.local_addr().ok().map(tracing::field::display);
            tracing::info!(address, "serving");
            servers.spawn(server::serve(
                listener,
                router.clone(),
                server_options.clone(),
                metrics.clone(),
                listeners.clone(),
            ));
        }
        let socket = data_dir.join("admin.sock");
        match server::bind_unix(&socket) {
            Ok(listener) => {
                servers.spawn(server::serve_unix(
                    listener,
                    api::operator_router(gateway),
                    server_options,
                    metrics,
                    listeners.clone(),
                ));
            }
            // A path can be too long for a socket; everything but the local command line works without.
            Err(error) => tracing::warn!(path = %socket.display(), %error, "no admin socket"),
        }
        warn_of_few_voters(&config);
        Ok(Self {
            node,
            running,
            readiness,
            load,
            streams,
            listeners,
            tasks,
            channels,
            channels_stopped,
            servers,
            workers,
            session: keeping,
            session_over,
            shutdown: config.gateway.shutdown.clone(),
        })
    }

    async fn run(mut self, mut signals: Signals) -> Result<(), Stopped> {
        service_manager::serving();
        tokio::select! {
            () = signals.received() => {}
            over = self.running.over() => return Err(match over {
                // Nothing here recovers a core that stopped; whoever supervises this process starts it again.
                Over::Failed(reason) => Stopped::Fatal(format!("consensus has stopped: {reason}")),
                Over::Removed => Stopped::Config(FormationError::Removed.to_string()),
            }),
            Some(ended) = self.workers.join_next() => {
                return Err(Stopped::Fatal(format!("a task that never ends has ended: {ended:?}")));
            }
            Some(ended) = self.servers.join_next() => {
                return Err(Stopped::Fatal(format!("a task that never ends has ended: {ended:?}")));
            }
            ended = &mut self.session => {
                return Err(Stopped::Fatal(format!("a task that never ends has ended: {ended:?}")));
            }
            ended = &mut self.channels => {
                return Err(Stopped::Fatal(format!("a task that never ends has ended: {ended:?}")));
            }
        }
        tokio::select! {
            () = self.stop() => Ok(()),
            () = signals.received() => Err(Stopped::Fatal("asked to stop twice".to_owned())),
        }
    }

    async fn stop(mut self) {
        let deadline = Instant::now() + self.shutdown.drain;
        service_manager::stopping();
        self.readiness.stop();
        if self.node.status().voter_count() > 1 {
            // Balancers that look at health need a moment to see it, unless maintenance has told them; others go by connections
            // that are refused.
            sleep(self.shutdown.lame_duck.saturating_sub(self.readiness.has_drained_for())).await;
        }
        self.listeners.cancel();
        if timeout_at(deadline, finish(&mut self.servers, &self.load)).await.is_err() {
            let running = self.load.running();
            tracing::info!(running, "the time to drain is over: streams end with an id to continue from");
            self.streams.cancel();
            if timeout(LAST_WORDS, finish(&mut self.servers, &Load::default())).await.is_err() {
                tracing::warn!("some connections did not end in time");
            }
        }
        self.streams.cancel();
        // Each account was let go as soon as this instance drained; what nobody else could take stops now.
        self.channels_stopped.cancel();
        let silent = timeout(STOP_CHANNELS, self.channels).await.is_ok();
        if !silent {
            tracing::warn!("the channels did not stop in time");
        }
        self.tasks.cancel();
        let stopped = timeout(STOP_TASKS, async { while self.workers.join_next().await.is_some() {} }).await;
        self.readiness.give_up_leadership().await;
        // What still acts under the epoch must not see it end.
        if silent && stopped.is_ok() {
            self.session_over.cancel();
            if timeout(STOP_TASKS, self.session).await.is_err() {
                tracing::warn!("the epoch did not end in time");
            }
        } else {
            tracing::warn!("what runs here is another's once the lease is over: some tasks did not stop in time");
        }
        drop(self.node);
        self.running.stop().await;
    }
}

/// Waits until no connection is open and no turn runs, telling of those that do.
async fn finish(servers: &mut JoinSet<()>, load: &Load) {
    while servers.join_next().await.is_some() {}
    let mut reported = u64::MAX;
    loop {
        let running = load.running();
        if running == 0 {
            return;
        }
        if running < reported {
            tracing::info!(running, "waiting for running turns");
            reported = running;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn start_node(
    config: &Config,
    instance_id: &InstanceId,
    data_dir: &Path,
    services: Routes,
) -> Result<(Node, Running), Stopped> {
    let cluster = &config.cluster;
    let listener = bind(cluster.peer.listen, "cluster.peer.listen").await?;
    let listening = listener.local_addr().unwrap_or(cluster.peer.listen);
    let address = |host: &openclaw_config::HostPort| host.to_string();
    let formation = if !cluster.bootstrap.is_empty() {
        Formation::Bootstrap(
            cluster.bootstrap.iter().map(|member| (member.id.clone(), address(&member.address))).collect(),
        )
    } else if !cluster.join.is_empty() {
        Formation::Join(cluster.join.iter().map(address).collect())
    } else {
        Formation::Alone
    };
    let security = match (&cluster.peer.tls, &cluster.peer.secret) {
        (Some(tls), _) => {
            Security::Files(TlsFiles { ca: tls.ca.clone(), cert: tls.cert.clone(), key: tls.key.clone() })
        }
        (None, Some(secret)) => Security::Secret(secret.expose().to_owned()),
        (None, None) => Security::Plaintext,
    };
    let options = Options {
        instance_id: instance_id.clone(),
        cluster_id: cluster.id.clone(),
        data_dir: data_dir.to_owned(),
        listener,
        peer_addr: cluster.peer_address().as_ref().map_or_else(|| listening.to_string(), address),
        http_addr: http_address(config),
        formation,
        security,
        timing: Timing {
            heartbeat: cluster.raft.heartbeat,
            election_timeout: cluster.raft.election_timeout,
            snapshot_every: cluster.raft.snapshot_every,
            log_keep: cluster.raft.log_keep,
        },
        services,
        links: Links::default(),
    };
    Node::start(options).await.map_err(|error| {
        let text = error.to_string();
        if error.disk_failed() {
            return Stopped::Fatal(text);
        }
        match error {
            StartError::Open(OpenError::Locked { .. }) => Stopped::InUse(text),
            StartError::Open(OpenError::Refused { .. }) => Stopped::NotOurs(text),
            StartError::Open(
                OpenError::Io { .. }
                | OpenError::NewerFormat { .. }
                | OpenError::LostRecords { .. }
                | OpenError::Damaged { .. },
            )
            | StartError::Storage { .. } => Stopped::Storage(text),
            // Those to be joined may only be starting.
            StartError::Formation(FormationError::NobodyToJoin { .. }) => Stopped::Fatal(text),
            StartError::Formation(_) | StartError::Security(_) | StartError::Settings(_) => Stopped::Config(text),
            StartError::Fatal(_) => Stopped::Fatal(text),
        }
    })
}

fn http_address(config: &Config) -> String {
    config.http_address().map(|address| address.to_string()).unwrap_or_default()
}

fn describe(
    config: &Config,
    node: &Node,
    data_dir: &Path,
    accounts: &[Configured],
) -> Result<session::Description, Stopped> {
    let accounts: Vec<ChannelAccount> = accounts.iter().map(|one| one.channel.account().clone()).collect();
    let boot_id = uuid::Uuid::new_v4().simple().to_string();
    let previous_boot_id = session::exchange_boot_id(data_dir, &boot_id).map_err(|error| storage(data_dir, &error))?;
    let own = node.status().members.into_iter().find(|member| member.instance_id == *node.instance_id());
    let known = config.cluster.peer_address().map(|address| address.to_string());
    Ok(session::Description {
        boot_id,
        previous_boot_id,
        http_addr: http_address(config),
        peer_addr: known
            .or_else(|| own.map(|own| own.peer_addr))
            .unwrap_or_else(|| config.cluster.peer.listen.to_string()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        preferred: supervisor::preferred(&config.cluster, node.instance_id(), &accounts),
        accounts: accounts.into_iter().map(String::from).collect(),
    })
}

/// Why a file in the data directory cannot be used.
fn storage(data_dir: &Path, error: &io::Error) -> Stopped {
    let text = format!("{}: {error}", data_dir.display());
    if openclaw_raft::disk_failed(error) { Stopped::Fatal(text) } else { Stopped::Storage(text) }
}

async fn bind(address: SocketAddr, setting: &str) -> Result<TcpListener, Stopped> {
    TcpListener::bind(address).await.map_err(|error| {
        if error.kind() == io::ErrorKind::AddrInUse {
            Stopped::InUse(format!("{setting}: {address} is in use by another process"))
        } else {
            Stopped::Config(format!("{setting}: cannot listen on {address}: {error}"))
        }
    })
}

/// This instance's own directory, which nobody else needs to read: it holds conversations.
fn private_dir(dir: &PathBuf) -> Result<(), Stopped> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| {
        let mut text = format!("storage.dataDir: cannot make {}: {error}", dir.display());
        if error.kind() == io::ErrorKind::PermissionDenied {
            text = format!("{text}; {}", openclaw_raft::why_refused(dir));
        }
        if openclaw_raft::disk_failed(&error) { Stopped::Fatal(text) } else { Stopped::Config(text) }
    })
}

/// Has the system allow as many open files as connections may be open, where it leaves that to us: shells give 1024.
fn raise_file_limit(max_connections: u32) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let wanted = u64::from(max_connections) + OTHER_FILES;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let limit = wanted.min(hard).max(soft);
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard).map(|()| limit)
    });
    match raised {
        Ok(limit) if limit < wanted => tracing::warn!(
            limit,
            "fewer files may be open than gateway.limits.maxConnections ({max_connections}) asks for: raise the limit \
             (LimitNOFILE, ulimit -n) or lower the setting"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}

fn warn_of_few_voters(config: &Config) {
    if config.cluster.bootstrap.len() == 2 {
        tracing::warn!("two voters tolerate no failure: when either is down nothing can be committed; add a third");
    }
}

/// Copies what consensus counts into metrics.
async fn watch_raft(node: Node, metrics: Metrics, shutdown: CancellationToken) {
    let mut leader = None;
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let status = node.status();
        let changed = status.leader.is_some() && status.leader != leader;
        metrics.raft(&status, node.counters(), changed && leader.is_some());
        if changed {
            leader = status.leader;
        }
    }
}
