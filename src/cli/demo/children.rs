//! The demo's instances: three real processes of this binary, and the files that they need.
//!
//! They end with this process, however it ends: each watches its standard input, whose other end only we hold.

use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use crate::cli::client::{Asked, Client};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::printable;
use crate::cli::target::{Target, parse_place};

pub(super) const COUNT: u16 = 3;
/// An instance hands its work over before it stops.
const STOPS_WITHIN: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_millis(50);
/// The end of a log that is shown when an instance does not start.
const LOG_TAIL_BYTES: u64 = 2048;

/// Which ports the instances use. Kept in the data directory, since the members' addresses are part of its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Ports {
    http: Vec<u16>,
    peer: Vec<u16>,
}

impl Ports {
    /// `base + 1..` for HTTP and `base + 101..` for peers, or whichever are free.
    fn choose(base: Option<u16>) -> Result<Self, Failure> {
        if let Some(base) = base {
            let range = |offset: u16| (1..=COUNT).map(|n| base.checked_add(offset + n)).collect::<Option<Vec<u16>>>();
            return match (range(0), range(100)) {
                (Some(http), Some(peer)) => Ok(Self { http, peer }),
                (None, _) | (_, None) => {
                    Err(Failure::usage(format!("--port {base} leaves no room for the instances' ports"))
                        .hint("choose one below 65400"))
                }
            };
        }
        // All are held until all are known, so that none is given twice.
        let free = (0..2 * COUNT)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .collect::<Result<Vec<_>, _>>()
            .and_then(|held| {
                held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<Result<Vec<_>, _>>()
            })
            .map_err(|error| Failure::failed(format!("no free port: {error}")))?;
        let (http, peer) = free.split_at(usize::from(COUNT));
        Ok(Self { http: http.to_vec(), peer: peer.to_vec() })
    }

    /// Those of an earlier demo in `dir`, or new ones, written down there.
    pub(super) fn of(dir: &Path, base: Option<u16>) -> Result<Self, Failure> {
        let path = dir.join("demo.json");
        let fail = |error: String| Failure::failed(format!("{}: {error}", path.display()));
        match fs::read_to_string(&path) {
            Ok(text) => {
                let ports: Self = serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
                if ports.http.len() != usize::from(COUNT) || ports.peer.len() != usize::from(COUNT) {
                    return Err(fail(format!("expected {COUNT} ports of each kind")));
                }
                Ok(ports)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let ports = Self::choose(base)?;
                let text = serde_json::to_string(&ports).map_err(|error| fail(error.to_string()))?;
                fs::write(&path, text).map_err(|error| fail(error.to_string()))?;
                Ok(ports)
            }
            Err(error) => Err(fail(error.to_string())),
        }
    }

    pub(super) fn http_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.http.iter().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, *port)))
    }
}

/// One instance of the demo.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) id: String,
    pub(super) http: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) log: PathBuf,
    binary: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
    /// The other end of its standard input, which it watches. Not left in `child`: waiting for a child closes that one.
    lifeline: Option<ChildStdin>,
}

/// The instances that `ports` has room for, not started yet.
pub(super) fn instances(dir: &Path, ports: &Ports, token_delay: Duration) -> Result<Vec<Instance>, Failure> {
    let binary = std::env::current_exe().map_err(|error| Failure::failed(format!("which program am I? {error}")))?;
    let config = dir.join("openclaw.json");
    let settings = serde_json::json!({
        "models": { "providers": { "echo": { "tokenDelayMs": u64::try_from(token_delay.as_millis()).unwrap_or(u64::MAX) } } },
        "agents": { "defaults": { "model": { "primary": "echo/echo" } } },
    });
    fs::write(&config, format!("{settings:#}\n"))
        .map_err(|error| Failure::failed(format!("{}: {error}", config.display())))?;

    let local = |port: &u16| SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
    let members: Vec<(String, SocketAddr, SocketAddr)> = (1..)
        .zip(ports.http.iter().zip(&ports.peer))
        .map(|(n, (http, peer))| (format!("node-{n}"), local(http), local(peer)))
        .collect();
    let bootstrap = members.iter().map(|(id, _, peer)| format!("{id}={peer}")).collect::<Vec<_>>().join(",");
    let instance = |(id, http, peer): &(String, SocketAddr, SocketAddr)| Instance {
        id: id.clone(),
        http: *http,
        peer: *peer,
        log: dir.join(format!("{id}.log")),
        binary: binary.clone(),
        arguments: [
            ("--config", config.display().to_string()),
            ("--instance-id", id.clone()),
            ("--data-dir", dir.display().to_string()),
            ("--port", http.port().to_string()),
            ("--peer-listen", peer.to_string()),
            ("--bootstrap", bootstrap.clone()),
            ("--log-format", "text".to_owned()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect(),
        child: None,
        lifeline: None,
    };
    Ok(members.iter().map(instance).collect())
}

impl Instance {
    /// What a person types to start it again.
    pub(super) fn command(&self) -> String {
        let words =
            self.arguments.iter().map(|word| if word.contains(' ') { format!("'{word}'") } else { word.clone() });
        format!("{} gateway {}", self.binary.display(), words.collect::<Vec<_>>().join(" "))
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Starts the process, its output going to its log.
    pub(super) fn start(&mut self) -> Result<(), Failure> {
        let fail = |what: &Path, error: std::io::Error| Failure::failed(format!("{}: {error}", what.display()));
        let log = fs::File::options().create(true).append(true).open(&self.log).map_err(|e| fail(&self.log, e))?;
        let errors = log.try_clone().map_err(|e| fail(&self.log, e))?;
        let mut command = Command::new(&self.binary);
        command
            .arg("gateway")
            .args(&self.arguments)
            .arg("--exit-with-parent")
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors)
            // Ctrl-C is for us: we stop them in order.
            .process_group(0);
        // The user's own gateway is another one.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OPENCLAW_")) {
            command.env_remove(name);
        }
        let mut child = command.spawn().map_err(|e| fail(&self.binary, e))?;
        self.lifeline = child.stdin.take();
        self.child = Some(child);
        Ok(())
    }

    /// Waits until the process ends; for ever if there is none.
    pub(super) async fn ended(&mut self) -> String {
        let Some(child) = &mut self.child else { return std::future::pending().await };
        let status = child.wait().await;
        self.child = None;
        match status {
            Ok(status) => how(status),
            Err(error) => format!("is lost: {error}"),
        }
    }

    /// Asks until the instance is ready.
    ///
    /// # Errors
    /// Its end, or the end of `patience`, with the last lines of its log.
    pub(super) async fn ready(&mut self, patience: Duration) -> Result<(), Failure> {
        let url = format!("http://{}", self.http);
        let place = parse_place(&url).map_err(Failure::failed)?;
        let client = Client::to(Target { places: vec![place], token: None }, Duration::from_secs(1))?;
        let started = Instant::now();
        loop {
            if client.health(Asked::Ready).await.is_ok_and(|health| health.ok) {
                return Ok(());
            }
            if let Ok(how) = timeout(ASK_EVERY, self.ended()).await {
                return Err(self.not_started(&how));
            }
            if started.elapsed() >= patience {
                return Err(self.not_started(&format!("is not ready after {} s", patience.as_secs())));
            }
        }
    }

    fn not_started(&self, how: &str) -> Failure {
        let tail = tail(&self.log).unwrap_or_default();
        Failure::new(Exit::Failed, format!("{} {how}", self.id))
            .hint(format!("the end of its log, {}:", self.log.display()))
            .details(printable(&tail).lines().map(str::to_owned).collect())
    }

    /// Asks the process to stop.
    pub(super) fn stop(&self) {
        let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()) else { return };
        // One that has just ended needs no signal; it is not reaped yet, so the number is still its own.
        kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
    }

    /// Waits for a process that was asked to stop, then insists.
    pub(super) async fn stopped(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if timeout(STOPS_WITHIN, child.wait()).await.is_err() && child.kill().await.is_err() {
            // It ended by itself between the two.
        }
    }
}

fn how(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("ended with exit code {code}"),
        (None, None) => "ended".to_owned(),
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_chosen_once_per_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = Ports::of(dir.path(), None).unwrap();
        assert_eq!(first.http.len(), 3);
        assert_eq!(Ports::of(dir.path(), Some(4000)).unwrap(), first);
        let fixed = Ports::choose(Some(4000)).unwrap();
        assert_eq!((fixed.http, fixed.peer), (vec![4001, 4002, 4003], vec![4101, 4102, 4103]));
        assert_eq!(Ports::choose(Some(65_500)).unwrap_err().exit(), Exit::Usage);
    }

    #[test]
    fn instances_share_one_bootstrap_list() {
        let dir = tempfile::tempdir().unwrap();
        let ports = Ports::choose(Some(4000)).unwrap();
        let instances = instances(dir.path(), &ports, Duration::from_millis(30)).unwrap();
        for (n, instance) in (1..).zip(&instances) {
            assert_eq!(instance.id, format!("node-{n}"));
            assert!(
                instance
                    .command()
                    .contains("--bootstrap node-1=127.0.0.1:4101,node-2=127.0.0.1:4102,node-3=127.0.0.1:4103")
            );
        }
        let config = fs::read_to_string(dir.path().join("openclaw.json")).unwrap();
        assert!(config.contains("\"tokenDelayMs\": 30"), "{config}");
    }
}
