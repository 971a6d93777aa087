//! `openclaw gateway`: settings, log and runtime for the one command that is the gateway.
//!
//! Flags are settings like any other and win over file and environment. What runs is [`app::run`]; no other command
//! reaches into the gateway.

use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nix::sys::signal::{Signal, raise};
use openclaw_config::HostPort;
use openclaw_config::cluster::Member;
use openclaw_config::gateway::Bind;
use openclaw_proto::ids::InstanceId;
use tracing::{error, info, warn};

use super::exit::{Exit, Failure};
use super::settings;
use crate::app::{self, Stopped};
use crate::logging;
use crate::traces::Traces;

impl From<Stopped> for Failure {
    fn from(stopped: Stopped) -> Self {
        let message = stopped.to_string();
        match stopped {
            Stopped::Config(_) => {
                Self::new(Exit::Config, message).hint("correct the configuration, then start it again")
            }
            Stopped::InUse(_) => Self::new(Exit::InUse, message)
                .hint("stop the other process, or choose another address or data directory"),
            Stopped::Storage(_) => Self::new(Exit::Storage, message).hint(
                "keep the directory for inspection; an instance whose directory is empty fetches its state from the others",
            ),
            Stopped::NotOurs(_) => {
                Self::new(Exit::Storage, message).hint("nothing in the directory is damaged: leave it where it is")
            }
            Stopped::Fatal(_) => {
                Self::new(Exit::Fatal, message).hint("the log has more; a supervisor should start it again")
            }
        }
    }
}

/// Run an instance of the gateway
///
/// Alone it is a cluster of one. For three, start each with the same --bootstrap and its own --instance-id. Secrets come
/// from the configuration or the environment (OPENCLAW_GATEWAY_TOKEN, OPENCLAW_CLUSTER_SECRET), never from flags.
#[derive(Debug, Args)]
pub(super) struct Gateway {
    /// Configuration file, JSON5 [default: OPENCLAW_CONFIG_PATH, then ~/.openclaw/openclaw.json]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Accept keys that only upstream OpenClaw knows, with a warning each
    #[arg(long)]
    lenient_config: bool,
    /// Name of this instance, unique in the cluster [default: node-1; OPENCLAW_INSTANCE_ID]
    #[arg(long, value_name = "ID")]
    instance_id: Option<InstanceId>,
    /// First members, the same list on every instance: node-1=10.0.0.1:3100,node-2=10.0.0.2:3100
    /// [OPENCLAW_CLUSTER_BOOTSTRAP]
    #[arg(long, value_name = "ID=HOST:PORT,..", value_parser = list_of::<Member>)]
    bootstrap: Option<String>,
    /// Members of a running cluster to join through [OPENCLAW_CLUSTER_JOIN]
    #[arg(long, value_name = "HOST:PORT,..", conflicts_with = "bootstrap", value_parser = list_of::<HostPort>)]
    join: Option<String>,
    /// Directory of all instances; this one keeps its data in DIR/ID [default: ~/.openclaw/cluster; OPENCLAW_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// TCP port of the public listener [default: 3000; OPENCLAW_GATEWAY_PORT]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Where the public listener listens: loopback, lan, or IP addresses separated by commas; anything but loopback
    /// needs a token [default: loopback; OPENCLAW_GATEWAY_BIND]
    #[arg(long, value_name = "WHERE", value_parser = checked::<Bind>)]
    bind: Option<String>,
    /// Where to listen for other instances [default: 127.0.0.1:3100; OPENCLAW_PEER_LISTEN]
    #[arg(long, value_name = "IP:PORT", value_parser = checked::<SocketAddr>)]
    peer_listen: Option<String>,
    /// Where other instances reach this one [default: its address in --bootstrap, then --peer-listen;
    /// OPENCLAW_PEER_ADVERTISE]
    #[arg(long, value_name = "HOST:PORT", value_parser = checked::<HostPort>)]
    peer_advertise: Option<String>,
    /// Form of log lines [default: auto, text on a terminal and JSON elsewhere; OPENCLAW_LOG_FORMAT]
    #[arg(long, value_name = "FORMAT", value_enum)]
    log_format: Option<LogFormat>,
    /// Least serious events that are logged [default: info; OPENCLAW_LOG_LEVEL]
    #[arg(long, value_name = "LEVEL", value_enum)]
    log_level: Option<LogLevel>,
    /// Stop when standard input ends: whoever started this process holds the other end, and ends with it
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Auto,
    Json,
    Text,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogLevel {
    Silent,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// The text of a flag whose value is a `T`; the settings parse it again, in their own place.
fn checked<T: FromStr>(text: &str) -> Result<String, T::Err> {
    text.parse::<T>().map(|_| text.to_owned())
}

fn list_of<T: FromStr>(text: &str) -> Result<String, T::Err> {
    text.split(',').try_for_each(|item| item.trim().parse::<T>().map(drop)).map(|()| text.to_owned())
}

fn word(value: impl ValueEnum) -> Option<String> {
    value.to_possible_value().map(|value| value.get_name().to_owned())
}

/// Longest time that an orphan may take to stop in order.
const ORPHAN_STOPS_WITHIN: Duration = Duration::from_secs(10);

pub(super) fn run(arguments: Gateway) -> Result<Exit, Failure> {
    let overrides = settings::overrides([
        ("--instance-id", "cluster.instanceId", arguments.instance_id.map(String::from)),
        ("--bootstrap", "cluster.bootstrap", arguments.bootstrap),
        ("--join", "cluster.join", arguments.join),
        ("--data-dir", "storage.dataDir", arguments.data_dir.map(|dir| dir.display().to_string())),
        ("--port", "gateway.port", arguments.port.map(|port| port.to_string())),
        ("--bind", "gateway.bind", arguments.bind),
        ("--peer-listen", "cluster.peer.listen", arguments.peer_listen),
        ("--peer-advertise", "cluster.peer.advertise", arguments.peer_advertise),
        ("--log-format", "logging.format", arguments.log_format.and_then(word)),
        ("--log-level", "logging.level", arguments.log_level.and_then(word)),
    ]);
    let loaded = settings::load(arguments.config, overrides, arguments.lenient_config)?;
    let instance = loaded.config.cluster.instance_id_or_default();
    let traces = Traces::start(&loaded.config.diagnostics.otel, &instance)
        .map_err(|error| Failure::new(Exit::Config, error.to_string()))?;
    let _log = logging::start(&loaded.config.logging, &instance, traces)
        .map_err(|error| Failure::new(Exit::Config, error.to_string()))?;
    for warning in &loaded.warnings {
        warn!(%warning, "configuration");
    }
    if arguments.exit_with_parent {
        watch_parent()?;
    }
    info!(version = env!("CARGO_PKG_VERSION"), instance_id = %instance, pid = std::process::id(), "starting");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads())
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Fatal, format!("no async runtime: {error}")))?;
    // As a task of a worker: whatever wakes it then costs no switch to this thread.
    let result = runtime
        .block_on(runtime.spawn(app::run(loaded)))
        .map_err(|error| Failure::new(Exit::Fatal, format!("a bug in the gateway: {error}")))?;
    match result {
        Ok(()) => {
            info!("stopped");
            Ok(Exit::Ok)
        }
        Err(stopped) => {
            error!(error = %stopped, "stopped");
            Err(stopped.into())
        }
    }
}

/// One processor is left to the threads that wait for the disk, unless TOKIO_WORKER_THREADS says otherwise: on two
/// processors a second worker only adds wake-ups between the steps of a commit, which then takes twice as long.
fn worker_threads() -> usize {
    let asked = std::env::var("TOKIO_WORKER_THREADS").ok().and_then(|text| text.parse::<usize>().ok());
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    asked.unwrap_or(processors.saturating_sub(1)).max(1)
}

/// Turns the end of standard input into the signal that stops a gateway in order, and then into its end.
fn watch_parent() -> Result<(), Failure> {
    let watch = || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = [0; 256];
        while stdin.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {}
        warn!("the process that started this one is gone");
        if raise(Signal::SIGTERM).is_ok() {
            std::thread::sleep(ORPHAN_STOPS_WITHIN);
        }
        std::process::exit(i32::from(Exit::Fatal as u8));
    };
    match std::thread::Builder::new().name("parent".into()).spawn(watch) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::new(Exit::Fatal, format!("the parent cannot be watched: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supervisors_can_tell_the_ends_apart() {
        for (stopped, code) in [
            (Stopped::Config("c".into()), 78),
            (Stopped::InUse("u".into()), 75),
            (Stopped::Storage("s".into()), 65),
            (Stopped::NotOurs("s".into()), 65),
            (Stopped::Fatal("f".into()), 70),
        ] {
            assert_eq!(Failure::from(stopped).exit() as u8, code);
        }
    }
}
