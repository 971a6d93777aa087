//! `openclaw demo`: three instances and a balancer on this machine, to be killed and watched.

mod balancer;
mod children;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::net::TcpListener;

use super::exit::{Exit, Failure};
use super::interrupt::Signals;
use super::output::{self, Align, Table, note, or_dash};
use balancer::Balancer;
use children::{Instance, Ports};

/// Start three instances and a balancer on this machine, with a model that repeats what it hears
///
/// Real processes and a real cluster, reachable from this machine alone: talk to it, kill any of them, talk on.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// TCP port of the balancer; instances then use PORT+1 to PORT+3 and PORT+101 to PORT+103 [default: 3000 if it is
    /// free, else any; the instances any]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Directory to keep data in, for another demo later [default: a temporary one, removed at the end]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Pause before each word of the model, in milliseconds, so that there is something to interrupt
    #[arg(long, value_name = "MS", default_value_t = 40, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    token_delay_ms: u64,
    /// Start an instance again 3 seconds after it has died
    #[arg(long)]
    restart: bool,
    /// Longest wait for all instances to be ready, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    ready_timeout: u64,
}

const DEFAULT_PORT: u16 = 3000;
const RESTART_AFTER: Duration = Duration::from_secs(3);

pub(super) async fn run(arguments: Demo, json: bool) -> Result<Exit, Failure> {
    let mut signals = Signals::watch()?;
    let (dir, _temporary) = match &arguments.data_dir {
        Some(dir) => {
            let fail = |error: io::Error| Failure::failed(format!("{}: {error}", dir.display()));
            std::fs::create_dir_all(dir).map_err(fail)?;
            (dir.canonicalize().map_err(fail)?, None)
        }
        None => {
            let dir = tempfile::Builder::new().prefix("openclaw-demo-").tempdir();
            let dir = dir.map_err(|error| Failure::failed(format!("no temporary directory: {error}")))?;
            (dir.path().to_owned(), Some(dir))
        }
    };
    let listener = listen(arguments.port).await?;
    let address = listener.local_addr().map_err(|error| Failure::failed(error.to_string()))?;
    let ports = Ports::of(&dir, arguments.port)?;
    let mut instances = children::instances(&dir, &ports, Duration::from_millis(arguments.token_delay_ms))?;
    let balancing = tokio::spawn(Balancer::new(ports.http_addresses()).run(listener));

    let demo = async {
        start(&mut instances, Duration::from_secs(arguments.ready_timeout)).await?;
        announce(address, &instances, &dir, json)?;
        watch(&mut instances, arguments.restart).await
    };
    let result = tokio::select! {
        result = demo => result,
        () = signals.any() => Ok(Exit::Ok),
    };
    balancing.abort();
    note("\nstopping");
    stop(&mut instances).await;
    result
}

async fn listen(port: Option<u16>) -> Result<TcpListener, Failure> {
    let bind = async |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
    let fail = |port: u16, error: io::Error| Failure::failed(format!("port {port} on 127.0.0.1: {error}"));
    match port {
        Some(port) => bind(port).await.map_err(|error| fail(port, error).hint("choose another one with --port")),
        None => match bind(DEFAULT_PORT).await {
            Ok(listener) => Ok(listener),
            Err(_) => bind(0).await.map_err(|error| fail(0, error)),
        },
    }
}

async fn start(instances: &mut [Instance], patience: Duration) -> Result<(), Failure> {
    let started = Instant::now();
    for instance in instances.iter_mut() {
        instance.start()?;
    }
    note("starting three instances ...");
    let mut waiting: FuturesUnordered<_> = instances
        .iter_mut()
        .map(|instance| async move { instance.ready(patience).await.map(|()| instance.id.clone()) })
        .collect();
    while let Some(ready) = waiting.next().await {
        note(&format!("  {} is ready after {:.1} s", ready?, started.elapsed().as_secs_f32()));
    }
    Ok(())
}

/// Asks all to stop at once and waits for each.
async fn stop(instances: &mut [Instance]) {
    instances.iter().for_each(Instance::stop);
    let mut stopping: FuturesUnordered<_> = instances.iter_mut().map(Instance::stopped).collect();
    while stopping.next().await.is_some() {}
}

fn announce(address: SocketAddr, instances: &[Instance], dir: &Path, json: bool) -> Result<(), Failure> {
    let url = format!("http://{address}");
    if json {
        return output::print_json(&serde_json::json!({
            "ok": true,
            "url": url,
            "dataDir": dir,
            "instances": instances.iter().map(|instance| serde_json::json!({
                "instanceId": instance.id,
                "pid": instance.pid(),
                "http": instance.http.to_string(),
                "peer": instance.peer.to_string(),
                "log": instance.log,
            })).collect::<Vec<_>>(),
        }));
    }
    output::print(&welcome(&url, instances))
}

fn welcome(url: &str, instances: &[Instance]) -> String {
    let mut table = Table::new([
        ("INSTANCE", Align::Left),
        ("PID", Align::Right),
        ("HTTP", Align::Left),
        ("PEER", Align::Left),
        ("LOG", Align::Left),
    ]);
    for instance in instances {
        table.row([
            instance.id.clone(),
            or_dash(instance.pid()),
            instance.http.to_string(),
            instance.peer.to_string(),
            instance.log.display().to_string(),
        ]);
    }
    let pid = or_dash(instances.first().and_then(Instance::pid));
    format!(
        "\n{}\nOpen {url}/ in a browser, or in another terminal:\n\
         \x20 openclaw chat --url {url}\n\
         \x20 openclaw cluster status --url {url}\n\
         Send something long, and while the answer streams, kill an instance:\n\
         \x20 kill -9 {pid}\n\
         Ctrl-C stops everything.\n",
        table.render()
    )
}

/// Tells of every death, until nobody is left.
async fn watch(instances: &mut [Instance], restart: bool) -> Result<Exit, Failure> {
    let mut living = instances.len();
    let mut lives: FuturesUnordered<_> = instances.iter_mut().map(|instance| life(instance, restart)).collect();
    while lives.next().await.is_some() {
        living -= 1;
        note(&format!("{living} of {} instances are left", children::COUNT));
        if living == 1 {
            note("one instance alone has no quorum: it answers 503 until another one is back");
        }
    }
    Err(Failure::failed("no instance is left"))
}

/// From a start to a death that is final.
async fn life(instance: &mut Instance, restart: bool) {
    loop {
        let pid = or_dash(instance.pid());
        let how = instance.ended().await;
        note(&format!("\n{} (pid {pid}) {how}", instance.id));
        if !restart {
            note(&format!("start it again with:\n  {}", instance.command()));
            return;
        }
        tokio::time::sleep(RESTART_AFTER).await;
        match instance.start() {
            Ok(()) => note(&format!("{} starts again as pid {}", instance.id, or_dash(instance.pid()))),
            Err(failure) => {
                note(&failure.text());
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_welcome_says_what_to_try() {
        let dir = tempfile::tempdir().unwrap();
        let ports = Ports::of(dir.path(), Some(4000)).unwrap();
        let instances = children::instances(dir.path(), &ports, Duration::ZERO).unwrap();
        let text = welcome("http://127.0.0.1:4000", &instances).replace(&dir.path().display().to_string(), "DIR");
        insta::assert_snapshot!(text, @r"

        INSTANCE  PID  HTTP            PEER            LOG
        node-1      -  127.0.0.1:4001  127.0.0.1:4101  DIR/node-1.log
        node-2      -  127.0.0.1:4002  127.0.0.1:4102  DIR/node-2.log
        node-3      -  127.0.0.1:4003  127.0.0.1:4103  DIR/node-3.log

        Open http://127.0.0.1:4000/ in a browser, or in another terminal:
          openclaw chat --url http://127.0.0.1:4000
          openclaw cluster status --url http://127.0.0.1:4000
        Send something long, and while the answer streams, kill an instance:
          kill -9 -
        Ctrl-C stops everything.
        ");
    }
}
