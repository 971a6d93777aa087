//! Instances of the built binary, each with its own directory and log: on free loopback ports, or each in a network namespace
//! with an address of its own.
//!
//! What an operator does is done here: write configuration files, start, stop, wait until ready, look at logs. All
//! instances are dead when the cluster is dropped, also by a panic; their directories stay when something went wrong.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use openclaw_config::cluster::Member;
use openclaw_config::gateway::Bind;
use openclaw_config::{Config, Secret};
use openclaw_proto::http;
use openclaw_proto::ids::InstanceId;
use rand::Rng;
use tempfile::TempDir;

use crate::client::{Client, Protocol, Reply};
use crate::clock::{FakeClock, Skew};
use crate::disk::Disk;
use crate::lab::{self, Lab};
use crate::network::proxies::Proxies;
use crate::network::{Network, process_of};
use crate::ports::Ports;
use crate::process::{Process, Program};

const POLL: Duration = Duration::from_millis(10);
/// How often a starting instance is asked whether it is ready: starts are measured by it.
const READY_POLL: Duration = Duration::from_millis(2);
/// Time limit of the harness's own questions.
const ASK: Duration = Duration::from_secs(2);
/// How often ports are chosen again when somebody else was quicker to use one.
const START_ATTEMPTS: u32 = 3;
/// Where an instance listens in a namespace of its own.
const HTTP_PORT: u16 = 3000;
const PEER_PORT: u16 = 3100;
/// Words in a log line that no run may show.
const ALARMS: [&str; 3] = ["panic", "fatal", "assertion"];
/// How many such lines are reported.
const MAX_FINDINGS: usize = 20;

/// Which process or address is which instance, for whoever sees their connections. The cluster that it is given to keeps it: each
/// process is in it before it can connect to anything.
#[derive(Debug, Clone, Default)]
pub struct Names(Arc<Mutex<Known>>);

#[derive(Debug, Clone, Default)]
struct Known {
    processes: BTreeMap<u32, String>,
    addresses: BTreeMap<IpAddr, String>,
}

impl Names {
    /// The instance that opened the connection from `peer` to `local`, as long as it is open.
    pub fn of(&self, peer: SocketAddr, local: SocketAddr) -> Option<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(name) = known.addresses.get(&peer.ip()) {
            return Some(name.clone());
        }
        let pid = process_of(peer, local, known.processes.keys().copied())?;
        known.processes.get(&pid).cloned()
    }

    fn set(&self, pid: u32, id: &InstanceId) {
        let processes = &mut self.0.lock().unwrap_or_else(PoisonError::into_inner).processes;
        processes.retain(|_, name| name != id.as_str());
        processes.insert(pid, id.to_string());
    }

    /// Nobody else has this address.
    fn set_address(&self, address: IpAddr, id: &InstanceId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).addresses.insert(address, id.to_string());
    }
}

/// Where instances run, and so what can be done to the network between them.
#[derive(Debug, Clone, PartialEq)]
pub enum Environment {
    /// All on loopback, on free ports; `proxied`: with a proxy before each peer listener.
    Loopback { proxied: bool },
    /// Each in a network namespace of its own; this program must have entered its own by [`lab::enter`].
    Namespaces(lab::Options),
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The built binary.
    pub openclaw: PathBuf,
    pub instances: usize,
    /// What every instance is configured with; names, ports and directories are filled in for each.
    pub settings: Config,
    /// Top-level settings as they stand in the file, in place of those in `settings`: for what holds secrets, which no type
    /// writes out.
    pub written: serde_json::Map<String, serde_json::Value>,
    pub environment: Environment,
    /// Where directories and logs go; absent: a temporary directory, which is removed when all went well.
    pub directory: Option<PathBuf>,
    pub names: Names,
    /// Further environment variables of every instance.
    pub variables: Vec<(OsString, OsString)>,
    /// Gives each instance a disk of so many bytes; for root only.
    pub disks: Option<u64>,
    /// Gives each instance a clock that can be wrong.
    pub clocks: Option<Skew>,
}

impl Options {
    /// `instances` instances of a binary with default settings.
    pub fn new(openclaw: impl Into<PathBuf>, instances: usize) -> Self {
        Self {
            openclaw: openclaw.into(),
            instances,
            settings: Config::default(),
            written: serde_json::Map::new(),
            environment: Environment::Loopback { proxied: false },
            directory: None,
            names: Names::default(),
            variables: Vec::new(),
            disks: None,
            clocks: None,
        }
    }

    /// Changes settings of every instance.
    pub fn settings(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.settings);
        self
    }

    /// Writes a top-level setting as it stands.
    pub fn written(mut self, name: &str, value: serde_json::Value) -> Self {
        self.written.insert(name.to_owned(), value);
        self
    }

    /// Where instances run; the default is loopback without proxies.
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// Has a [`Network`] between the instances that faults can be done to: proxies on loopback. Namespaces always have one.
    pub fn proxied(mut self) -> Self {
        match &mut self.environment {
            Environment::Loopback { proxied } => *proxied = true,
            Environment::Namespaces(_) => {}
        }
        self
    }

    pub fn directory(mut self, directory: Option<PathBuf>) -> Self {
        self.directory = directory;
        self
    }

    /// Starts every instance with a further environment variable.
    pub fn variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Gives each instance a [`Disk`].
    pub fn disks(mut self, bytes: u64) -> Self {
        self.disks = Some(bytes);
        self
    }

    /// Gives each instance a [`FakeClock`].
    pub fn clocks(mut self, skew: Skew) -> Self {
        self.clocks = Some(skew);
        self
    }

    /// Has the instances' names kept there.
    pub fn names(mut self, names: &Names) -> Self {
        self.names = names.clone();
        self
    }
}

/// One gateway process with what belongs to it.
#[derive(Debug)]
pub struct Instance {
    pub id: InstanceId,
    pub http: SocketAddr,
    /// Where it really listens for peers; they may know it under a proxy's address.
    pub peer: SocketAddr,
    pub data: PathBuf,
    pub process: Process,
    client: Client,
    disk: Option<Disk>,
    clock: Option<FakeClock>,
}

impl Instance {
    /// A client for the harness's own questions.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its clock.
    ///
    /// # Errors
    /// When the cluster was started with the kernel's alone.
    pub fn clock(&self) -> Result<&FakeClock> {
        self.clock.as_ref().context("the cluster was started without clocks of its own")
    }

    /// Waits until `health/ready` answers 200.
    ///
    /// # Errors
    /// When the process ends, or is not ready in time; with the end of its log.
    pub async fn wait_ready(&mut self, within: Duration) -> Result<Duration> {
        let begin = Instant::now();
        while !self.client.is_ready().await {
            self.process.ensure_running()?;
            if begin.elapsed() > within {
                bail!("{} is not ready after {within:?}; its log ends:\n{}", self.id, self.process.log_tail());
            }
            tokio::time::sleep(READY_POLL).await;
        }
        Ok(begin.elapsed())
    }
}

/// Where everything is, and whether it stays.
#[derive(Debug)]
enum Directory {
    Temporary(Option<TempDir>),
    Given(PathBuf),
}

/// A group of instances.
#[derive(Debug)]
pub struct Cluster {
    // Dropped first, so that no process writes to a directory that is being removed.
    instances: Vec<Instance>,
    network: Option<Network>,
    /// Reserved until all instances are gone.
    _ports: Option<Ports>,
    token: Option<String>,
    names: Names,
    directory: Directory,
    keep: bool,
}

impl Cluster {
    /// Starts all instances and waits until all are ready.
    ///
    /// # Errors
    /// When one cannot be started or is not ready within `within`.
    pub async fn start(options: Options, within: Duration) -> Result<Self> {
        let mut attempts = START_ATTEMPTS;
        loop {
            let mut cluster = Self::prepare(options.clone()).await?;
            cluster.start_all()?;
            let Err(error) = cluster.wait_all_ready(within).await else { return Ok(cluster) };
            attempts -= 1;
            // What a directory that stays holds already belongs to its ports.
            if attempts == 0 || options.directory.is_some() || !cluster.lost_a_port() {
                cluster.keep = true;
                return Err(error);
            }
        }
    }

    /// Whether an instance ended because somebody took its port between our choice and its start.
    fn lost_a_port(&self) -> bool {
        self.instances.iter().any(|instance| instance.process.log_tail().contains("is in use by another process"))
    }

    /// Chooses ports and writes configuration files, and starts nothing yet.
    ///
    /// # Errors
    /// When files cannot be written or ports not be had.
    pub async fn prepare(options: Options) -> Result<Self> {
        ensure!(options.instances > 0, "a cluster of no instances");
        let openclaw = std::fs::canonicalize(&options.openclaw)
            .with_context(|| format!("find the binary {}", options.openclaw.display()))?;
        let directory = match options.directory {
            Some(path) => Directory::Given(path),
            None => Directory::Temporary(Some(
                tempfile::Builder::new().prefix("openclaw-cluster-").tempdir().context("make a directory")?,
            )),
        };
        let root = path_of(&directory).context("no directory")?.to_owned();
        let ids: Vec<InstanceId> = (1..=options.instances)
            .map(|n| InstanceId::parse(format!("node-{n}")).context("instance id"))
            .collect::<Result<_>>()?;
        let (places, network, ports) = places(options.instances, &options.environment).await?;
        let mut settings = options.settings;
        let secrets = secrets(&mut settings, &options.environment);
        let bootstrap: Vec<Member> = ids
            .iter()
            .zip(&places)
            .map(|(id, place)| Member { id: id.clone(), address: place.reached.into() })
            .collect();
        let mut instances = Vec::new();
        for (id, Place { http, peer, reached: _, through }) in ids.into_iter().zip(places) {
            let home = root.join(id.as_str());
            let data = home.join("data");
            std::fs::create_dir_all(&data).with_context(|| format!("make {}", data.display()))?;
            let disk = match options.disks {
                Some(bytes) => Some(Disk::create(&home.join("disk"), &data, bytes).await?),
                None => None,
            };
            let clock = options.clocks.map(|skew| FakeClock::new(&home.join("time"), skew)).transpose()?;
            let mut settings = settings.clone();
            settings.gateway.port = http.port();
            if !http.ip().is_loopback() {
                settings.gateway.bind = Bind::Addresses(vec![http.ip()]);
                options.names.set_address(http.ip(), &id);
            }
            settings.storage.data_dir.clone_from(&data);
            settings.cluster.instance_id = Some(id.clone());
            settings.cluster.peer.listen = peer;
            // One alone is started as a user starts it: without any word of a cluster.
            if options.instances > 1 {
                settings.cluster.bootstrap.clone_from(&bootstrap);
            }
            let file = home.join("openclaw.json");
            let mut settings = serde_json::to_value(&settings).context("encode the settings")?;
            if let Some(settings) = settings.as_object_mut() {
                settings.extend(options.written.clone());
            }
            std::fs::write(&file, serde_json::to_vec_pretty(&settings).context("encode the settings")?)
                .with_context(|| format!("write {}", file.display()))?;
            let arguments = vec!["gateway".into(), "--config".into(), file.into(), "--exit-with-parent".into()];
            let mut environment = vec![("HOME".into(), home.clone().into()), ("RUST_BACKTRACE".into(), "1".into())];
            environment.extend(secrets.environment());
            environment.extend(clock.iter().flat_map(FakeClock::environment));
            environment.extend(options.variables.clone());
            let (executable, log) = (openclaw.clone(), home.join("log"));
            let process = Process::new(Program { executable, through, arguments, environment, log });
            let client = Client::new(http, Protocol::Http1, ASK).with_token(secrets.token.as_deref());
            instances.push(Instance { id, http, peer, data, process, client, disk, clock });
        }
        Ok(Self {
            instances,
            network,
            _ports: ports,
            token: secrets.token,
            names: options.names,
            directory,
            keep: false,
        })
    }

    pub fn len(&self) -> usize {
        self.instances.len()
    }

    pub fn is_empty(&self) -> bool {
        self.instances.is_empty()
    }

    pub fn instance(&mut self, index: usize) -> &mut Instance {
        &mut self.instances[index]
    }

    pub fn instances(&self) -> &[Instance] {
        &self.instances
    }

    /// What is between the instances.
    ///
    /// # Errors
    /// On loopback without proxies.
    pub fn network(&self) -> Result<&Network> {
        self.network.as_ref().context("the cluster was started on loopback without proxies")
    }

    /// What clients must present, if anything.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// A client for each instance.
    pub fn clients(&self, protocol: Protocol, timeout: Duration) -> Vec<Client> {
        let client = |instance: &Instance| Client::new(instance.http, protocol, timeout).with_token(self.token());
        self.instances.iter().map(client).collect()
    }

    /// Starts one instance, or starts it again.
    ///
    /// # Errors
    /// When it runs, or cannot be started.
    pub fn start_one(&mut self, index: usize) -> Result<()> {
        let instance = &mut self.instances[index];
        instance.process.start()?;
        if let Some(pid) = instance.process.pid() {
            self.names.set(pid, &instance.id);
            if let Some(network) = &self.network {
                network.set_owner(pid, index);
            }
        }
        Ok(())
    }

    /// Starts every instance that is not running.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start_all(&mut self) -> Result<()> {
        for index in 0..self.instances.len() {
            if !self.instances[index].process.is_running()? {
                self.start_one(index)?;
            }
        }
        Ok(())
    }

    /// The instances that ended by themselves and were not told here yet, and how.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn take_ended_by_themselves(&mut self) -> Result<Vec<(usize, ExitStatus)>> {
        let mut ended = Vec::new();
        for (index, instance) in self.instances.iter_mut().enumerate() {
            instance.process.is_running()?;
            ended.extend(instance.process.take_ended_by_itself().map(|status| (index, status)));
        }
        Ok(ended)
    }

    /// SIGKILL to all of them before any is waited for: the nearest thing to a power cut that a process can be given.
    ///
    /// # Errors
    /// When one of them was not running.
    pub fn kill_all(&mut self) -> Result<()> {
        let sent: Vec<Result<()>> = self.instances.iter_mut().map(|instance| instance.process.send_kill()).collect();
        for instance in &mut self.instances {
            instance.process.reap()?;
        }
        sent.into_iter().collect()
    }

    /// Removes all that a stopped instance has stored.
    ///
    /// # Errors
    /// When it runs, or its files cannot be removed.
    pub fn wipe(&mut self, index: usize) -> Result<()> {
        let instance = &mut self.instances[index];
        ensure!(!instance.process.is_running()?, "{} still runs", instance.id);
        // What is in it, and not the directory itself, where a disk may be mounted.
        for item in std::fs::read_dir(&instance.data).with_context(|| format!("list {}", instance.data.display()))? {
            let path = item.with_context(|| format!("list {}", instance.data.display()))?.path();
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(())
    }

    /// The disk of an instance.
    ///
    /// # Errors
    /// When the cluster was started without disks.
    pub fn disk(&self, index: usize) -> Result<&Disk> {
        self.instances[index].disk.as_ref().context("the cluster was started without disks")
    }

    pub(crate) fn disk_mut(&mut self, index: usize) -> Result<&mut Disk> {
        self.instances[index].disk.as_mut().context("the cluster was started without disks")
    }

    /// Waits until every instance is ready.
    ///
    /// # Errors
    /// When one ends, or is not ready in time.
    pub async fn wait_all_ready(&mut self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        for index in 0..self.instances.len() {
            while !self.instances[index].client.is_ready().await {
                // That one is not ready is often the doing of another, which has ended.
                for instance in &mut self.instances {
                    instance.process.ensure_running()?;
                }
                let instance = &self.instances[index];
                if Instant::now() > deadline {
                    bail!(
                        "{} is not ready after {within:?}; its log ends:\n{}",
                        instance.id,
                        instance.process.log_tail()
                    );
                }
                tokio::time::sleep(READY_POLL).await;
            }
        }
        Ok(())
    }

    /// The instance that leads: it says so itself, and no running instance names another of a later term.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn leader(&mut self, within: Duration) -> Result<usize> {
        let deadline = Instant::now() + within;
        loop {
            // The latest term wins: a leader that was cut off may go on naming itself for a while. Within a term an instance
            // that names itself comes before one that names another.
            let mut newest: Option<(u64, bool, usize)> = None;
            for index in 0..self.instances.len() {
                let instance = &mut self.instances[index];
                if instance.process.is_paused() || !instance.process.is_running()? {
                    continue;
                }
                if let Reply::Ok(http::Cluster { leader: Some(leader), term, .. }) = instance.client.cluster().await {
                    newest = newest.max(Some((term, leader == instance.id.as_str(), index)));
                }
            }
            if let Some((_, true, leader)) = newest {
                return Ok(leader);
            }
            ensure!(Instant::now() < deadline, "no leader within {within:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until every instance has applied the same log index, and so holds the same state; no writes may be running.
    ///
    /// # Errors
    /// When they differ at the deadline.
    pub async fn wait_converged(&mut self, within: Duration) -> Result<u64> {
        let deadline = Instant::now() + within;
        loop {
            let mut applied = Vec::new();
            for instance in &self.instances {
                if let Reply::Ok(cluster) = instance.client.cluster().await {
                    let own = cluster.members.iter().find(|member| member.instance_id == instance.id.as_str());
                    applied.extend(own.and_then(|member| member.applied_index));
                }
            }
            // Renewals of instance sessions keep the index moving, so "the same" allows what one round of questions sees.
            if applied.len() == self.instances.len()
                && let (Some(low), Some(high)) = (applied.iter().min(), applied.iter().max())
                && high - low <= 2 * self.instances.len() as u64
            {
                return Ok(*low);
            }
            ensure!(Instant::now() < deadline, "applied indexes differ after {within:?}: {applied:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Lines of any log that tell of a panic or a fatal error.
    ///
    /// # Errors
    /// When a log cannot be read.
    pub fn alarms(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for instance in &self.instances {
            let log = &instance.process.program().log;
            if log.exists() {
                alarms_in(log, &mut found)?;
            }
        }
        Ok(found)
    }

    /// Leaves directories and logs where they are when the cluster is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Takes [`Self::keep`] back.
    pub fn discard(&mut self) {
        self.keep = false;
    }

    pub fn directory(&self) -> Option<&Path> {
        path_of(&self.directory)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.instances.clear();
        if let Directory::Temporary(directory) = &mut self.directory
            && (self.keep || std::thread::panicking())
            && let Some(directory) = directory.take()
        {
            eprintln!("logs and data of every instance are kept in {}", directory.keep().display());
        }
    }
}

/// Where an instance is.
struct Place {
    http: SocketAddr,
    /// Where it listens for peers.
    peer: SocketAddr,
    /// Where peers reach it.
    reached: SocketAddr,
    /// See [`Program::through`].
    through: Vec<OsString>,
}

/// Finds a place for each instance, and makes the network between them.
async fn places(count: usize, environment: &Environment) -> Result<(Vec<Place>, Option<Network>, Option<Ports>)> {
    match environment {
        Environment::Loopback { proxied } => {
            let ports = Ports::reserve(count * 2)?;
            let peers: Vec<SocketAddr> = ports[count..].iter().map(|&port| local(port)).collect();
            let proxies = if *proxied { Some(Proxies::start(&peers).await?) } else { None };
            let place = |index: usize| Place {
                http: local(ports[index]),
                peer: peers[index],
                reached: proxies.as_ref().map_or(peers[index], |proxies| proxies.address(index)),
                through: Vec::new(),
            };
            Ok(((0..count).map(place).collect(), proxies.map(Network::Proxies), Some(ports)))
        }
        Environment::Namespaces(options) => {
            let lab = Lab::start(count, options)?;
            let place = |index: usize| {
                let at = |port| SocketAddr::from((lab.address(index), port));
                let (http, peer) = (at(HTTP_PORT), at(PEER_PORT));
                Ok(Place { http, peer, reached: peer, through: lab.through(index)? })
            };
            Ok(((0..count).map(place).collect::<Result<_>>()?, Some(Network::Lab(lab)), None))
        }
    }
}

/// What instances are told in their environment, because the types of settings write no secret out.
struct Secrets {
    token: Option<String>,
    peers: Option<String>,
}

impl Secrets {
    fn environment(&self) -> impl Iterator<Item = (OsString, OsString)> {
        [("OPENCLAW_GATEWAY_TOKEN", &self.token), ("OPENCLAW_CLUSTER_SECRET", &self.peers)]
            .into_iter()
            .filter_map(|(name, value)| Some((name.into(), value.as_ref()?.into())))
    }
}

/// Takes the secrets out of the settings. In a namespace an instance listens on an address that is not loopback, and then it
/// demands both: those that are missing are made up.
fn secrets(settings: &mut Config, environment: &Environment) -> Secrets {
    let given = |secret: Option<Secret>| secret.map(|secret| secret.expose().to_owned());
    let token = given(settings.gateway.auth.token.take());
    let peers = given(settings.cluster.peer.secret.take());
    match environment {
        Environment::Loopback { .. } => Secrets { token, peers },
        Environment::Namespaces(_) => {
            let made_up = || format!("{:032x}", rand::rng().random::<u128>());
            let tls = settings.cluster.peer.tls.is_some();
            let peers = peers.or_else(|| (!tls).then(made_up));
            Secrets { token: token.or_else(|| Some(made_up())), peers }
        }
    }
}

fn path_of(directory: &Directory) -> Option<&Path> {
    match directory {
        Directory::Temporary(directory) => directory.as_ref().map(TempDir::path),
        Directory::Given(path) => Some(path),
    }
}

fn alarms_in(log: &Path, found: &mut Vec<String>) -> Result<()> {
    let file = std::fs::File::open(log).with_context(|| format!("open {}", log.display()))?;
    for line in BufReader::new(file).split(b'\n') {
        let line = line.with_context(|| format!("read {}", log.display()))?;
        let text = String::from_utf8_lossy(&line);
        let lower = text.to_lowercase();
        if ALARMS.iter().any(|alarm| lower.contains(alarm)) && found.len() < MAX_FINDINGS {
            found.push(format!("{}: {}", log.display(), text.chars().take(500).collect::<String>()));
        }
    }
    Ok(())
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A program that stands in for the gateway, for tests.
#[cfg(test)]
pub(crate) fn stand_in(directory: &Path, script: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = directory.join("openclaw");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pids(cluster: &Cluster) -> Vec<u32> {
        cluster.instances().iter().filter_map(|instance| instance.process.pid()).collect()
    }

    #[tokio::test]
    async fn every_instance_gets_the_same_bootstrap_list_and_its_own_directory() {
        let directory = tempfile::tempdir().unwrap();
        let openclaw = stand_in(directory.path(), "exec sleep 600");
        let cluster = Cluster::prepare(Options::new(openclaw, 3).proxied()).await.unwrap();
        let files: Vec<Config> = cluster
            .instances()
            .iter()
            .map(|instance| {
                let file = &instance.process.program().arguments[2];
                serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
            })
            .collect();
        for (index, instance) in cluster.instances().iter().enumerate() {
            let settings = &files[index];
            assert_eq!(settings.cluster.bootstrap, files[0].cluster.bootstrap);
            let Network::Proxies(proxies) = cluster.network().unwrap() else { panic!("no proxies") };
            let proxy = proxies.address(index);
            assert_eq!(settings.cluster.peer_address(), Some(proxy.into()));
            assert_eq!(settings.cluster.peer.listen, instance.peer);
            assert_ne!(proxy, instance.peer);
            assert_eq!(settings.cluster.instance_id.as_ref(), Some(&instance.id));
            assert!(instance.data.is_dir() && settings.storage.data_dir == instance.data);
        }
    }

    #[tokio::test]
    async fn every_instance_has_the_variables_that_were_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let openclaw = stand_in(directory.path(), "echo \"ends: $FAULT\"; exit 1");
        let options = Options::new(openclaw, 1).variable("FAULT", "none").directory(Some(directory.path().join("run")));
        let error = Cluster::start(options, Duration::from_secs(10)).await.unwrap_err().to_string();
        assert!(error.contains("ends: none"), "{error}");
    }

    #[tokio::test]
    async fn one_instance_alone_is_told_of_no_cluster() {
        let directory = tempfile::tempdir().unwrap();
        let openclaw = stand_in(directory.path(), "exec sleep 600");
        let options = Options::new(openclaw, 1).settings(|settings| settings.cluster.raft.log_keep = 7);
        let cluster = Cluster::prepare(options).await.unwrap();
        let file = cluster.directory().unwrap().join("node-1/openclaw.json");
        let settings: Config = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert!(!settings.cluster.is_clustered());
        assert_eq!(settings.cluster.raft.log_keep, 7);
    }

    #[test]
    fn a_connection_has_the_name_of_the_process_that_opened_it() {
        let (names, id) = (Names::default(), InstanceId::parse("node-1").unwrap());
        let listener = std::net::TcpListener::bind(local(0)).unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ends = (client.local_addr().unwrap(), listener.local_addr().unwrap());
        assert_eq!(names.of(ends.0, ends.1), None);
        names.set(std::process::id(), &id);
        assert_eq!(names.of(ends.0, ends.1).as_deref(), Some("node-1"));
        names.set(u32::MAX, &id);
        assert_eq!(names.of(ends.0, ends.1), None, "it was started again, as another process");
    }

    #[test]
    fn an_address_of_its_own_names_an_instance_whatever_process_it_is() {
        let (names, id) = (Names::default(), InstanceId::parse("node-2").unwrap());
        let address = lab::address(1);
        names.set_address(address.into(), &id);
        let of = |peer: Ipv4Addr| names.of((peer, 40_000).into(), (lab::CONTROLLER, 9000).into());
        assert_eq!(of(address).as_deref(), Some("node-2"));
        assert_eq!(of(lab::address(0)), None);
    }

    #[test]
    fn secrets_are_made_up_in_namespaces_only_and_never_in_place_of_given_ones() {
        let (loopback, lab) =
            (Environment::Loopback { proxied: true }, Environment::Namespaces(lab::Options::default()));
        let none = secrets(&mut Config::default(), &loopback);
        assert_eq!(none.environment().count(), 0);
        let both = secrets(&mut Config::default(), &lab);
        assert_eq!(both.environment().count(), 2);
        assert!(both.peers.is_some_and(|secret| secret.len() >= 32));
        let mut settings = Config::default();
        settings.gateway.auth.token = Some(Secret::new("given"));
        assert_eq!(secrets(&mut settings, &lab).token.as_deref(), Some("given"));
        assert_eq!(settings.gateway.auth.token, None, "it would be written as stars");
    }

    #[tokio::test]
    async fn every_start_says_which_process_is_which_instance() {
        let directory = tempfile::tempdir().unwrap();
        let openclaw = stand_in(directory.path(), "exec sleep 600");
        let names = Names::default();
        let mut cluster = Cluster::prepare(Options::new(openclaw, 2).names(&names)).await.unwrap();
        for _ in 0..2 {
            cluster.start_all().unwrap();
            let known: Vec<(u32, String)> = names.0.lock().unwrap().processes.clone().into_iter().collect();
            let mut expected: Vec<(u32, String)> =
                pids(&cluster).into_iter().zip(["node-1".to_owned(), "node-2".to_owned()]).collect();
            expected.sort_unstable();
            assert_eq!(known, expected);
            cluster.kill_all().unwrap();
        }
    }

    #[tokio::test]
    async fn dropping_a_cluster_ends_it_and_removes_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let openclaw = stand_in(directory.path(), "exec sleep 600");
        let mut cluster = Cluster::prepare(Options::new(openclaw, 3)).await.unwrap();
        cluster.start_all().unwrap();
        assert!(cluster.wipe(0).is_err(), "a running instance is not wiped");
        let (pids, root) = (pids(&cluster), cluster.directory().unwrap().to_owned());
        assert_eq!(pids.len(), 3);
        drop(cluster);
        assert!(pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
        assert!(!root.exists());
    }

    #[tokio::test]
    async fn a_failed_start_says_why_and_keeps_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let openclaw = stand_in(directory.path(), "echo thread main panicked at x.rs; exit 101");
        let options = Options::new(openclaw, 1).directory(Some(directory.path().join("run")));
        let error = Cluster::start(options, Duration::from_secs(10)).await.unwrap_err().to_string();
        assert!(error.contains("panicked at x.rs") && error.contains("101"), "{error}");
        assert!(directory.path().join("run/node-1/log").exists());
    }

    #[tokio::test]
    async fn a_port_that_was_lost_is_chosen_again() {
        let directory = tempfile::tempdir().unwrap();
        let starts = directory.path().join("starts");
        // `$3` is the configuration file, in a directory of its own.
        let script = format!(
            "echo \"$3\" >> {}; echo 'error: gateway.port: 127.0.0.1:1 is in use by another process'; exit 5",
            starts.display()
        );
        let options = Options::new(stand_in(directory.path(), &script), 1);
        let error = Cluster::start(options, Duration::from_secs(60)).await.unwrap_err().to_string();
        assert!(error.contains("in use by another process"), "{error}");
        let starts = std::fs::read_to_string(starts).unwrap();
        let starts: std::collections::BTreeSet<&str> = starts.lines().collect();
        assert_eq!(starts.len(), START_ATTEMPTS as usize, "{starts:?}");
        assert_eq!(starts.iter().filter(|file| Path::new(file).exists()).count(), 1, "the last one's log stays");
        for kept in starts.iter().filter_map(|file| Path::new(file).ancestors().nth(2)).filter(|kept| kept.exists()) {
            std::fs::remove_dir_all(kept).unwrap();
        }
    }

    #[tokio::test]
    async fn the_end_of_any_instance_ends_the_wait_for_all() {
        let directory = tempfile::tempdir().unwrap();
        let openclaw = stand_in(directory.path(), "case $3 in */node-2/*) echo no disk; exit 3;; esac; exec sleep 600");
        let options = Options::new(openclaw, 3).directory(Some(directory.path().join("run")));
        let error = Cluster::start(options, Duration::from_secs(600)).await.unwrap_err().to_string();
        assert!(error.contains("no disk"), "{error}");
    }

    #[tokio::test]
    async fn alarms_are_found_in_logs_over_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let openclaw = stand_in(directory.path(), "echo fine; echo FATAL: the disk; exec sleep 600");
        let mut cluster = Cluster::prepare(Options::new(openclaw, 1)).await.unwrap();
        assert_eq!(cluster.alarms().unwrap(), Vec::<String>::new());
        for starts in 1..=2 {
            cluster.start_all().unwrap();
            let deadline = Instant::now() + Duration::from_secs(10);
            while cluster.alarms().unwrap().len() < starts {
                assert!(Instant::now() < deadline);
                tokio::time::sleep(POLL).await;
            }
            cluster.kill_all().unwrap();
        }
        assert!(cluster.alarms().unwrap()[1].contains("FATAL: the disk"));
        assert!(cluster.kill_all().is_err(), "they are dead already");
    }

    #[tokio::test]
    async fn a_missing_binary_is_an_error_that_names_it() {
        let error = Cluster::prepare(Options::new("/nowhere/openclaw", 1)).await.unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/openclaw"));
    }
}
