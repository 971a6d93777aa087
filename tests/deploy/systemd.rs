//! The unit, judged by systemd, and what a gateway tells the service manager that started it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jepsen_lite::cluster::{Cluster, Options};
use openclaw::cli::Exit;
use openclaw_config::Config;

use crate::{OPENCLAW, SOON, command, get, installed, longest_stop, published, run, settings};

/// What `systemd-analyze security` may say at most; what is left is the network and the sockets, without which it is no gateway.
const EXPOSURE: f64 = 1.1;

/// A line's value, the last one where there are several.
fn value(unit: &str, key: &str) -> Result<String> {
    let mut values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.next_back().map(str::to_owned).with_context(|| format!("no {key}= in the unit"))
}

fn seconds(unit: &str, key: &str) -> Result<Duration> {
    Ok(Duration::from_secs(value(unit, key)?.parse().with_context(|| format!("{key}= is not in seconds"))?))
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit_and_little_that_it_may_do() -> Result<()> {
    if !installed("systemd-analyze") {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("openclaw.service");
    // Whether the program exists is looked at too.
    std::fs::write(&file, published("systemd/openclaw.service")?.replace("/usr/local/bin/openclaw", OPENCLAW))?;
    let said = run(command("systemd-analyze").arg("verify").arg(&file))?;
    ensure!(said.trim().is_empty(), "{said}");

    let said = run(command("systemd-analyze").args(["security", "--offline=true", "--no-pager"]).arg(&file))?;
    let exposure =
        said.lines().next_back().and_then(|line| line.split(": ").nth(1)?.split(' ').next()?.parse::<f64>().ok());
    let exposure = exposure.with_context(|| format!("no exposure in {said}"))?;
    eprintln!("exposure level: {exposure}");
    ensure!(exposure <= EXPOSURE, "{said}");
    Ok(())
}

#[test]
fn the_unit_starts_again_what_another_start_may_help() -> Result<()> {
    let unit = published("systemd/openclaw.service")?;
    ensure!(value(&unit, "Type")? == "notify" && value(&unit, "Restart")? == "on-failure");
    let never: BTreeSet<u8> =
        value(&unit, "RestartPreventExitStatus")?.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    ensure!(never == [Exit::Usage, Exit::Storage, Exit::Config].map(|exit| exit as u8).into(), "{never:?}");
    ensure!(seconds(&unit, "TimeoutStopSec")? >= longest_stop(&Config::default()));
    Ok(())
}

#[test]
fn the_environment_file_makes_an_instance_of_three() -> Result<()> {
    let unit = published("systemd/openclaw.service")?;
    let own = value(&unit, "Environment")?;
    let (name, directory) = own.split_once('=').context("NAME=value")?;
    ensure!(directory == format!("/var/lib/{}", value(&unit, "StateDirectory")?), "it may write nowhere else");
    let mut environment = BTreeMap::from([(name.to_owned(), directory.to_owned())]);
    for line in published("systemd/openclaw.env.example")?.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, value)) = line.split_once('=') else { continue };
        let value = if value.is_empty() { "0123456789abcdef0123456789abcdef" } else { value };
        environment.insert(name.to_owned(), value.to_owned());
    }
    for id in ["node-1", "node-2", "node-3"] {
        environment.insert("OPENCLAW_INSTANCE_ID".to_owned(), id.to_owned());
        let loaded = settings(None, &environment)?;
        ensure!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        ensure!(loaded.config.cluster.bootstrap.len() == 3);
        ensure!(loaded.config.cluster.peer.listen.ip().is_unspecified() && !loaded.config.gateway.bind.is_loopback());
    }
    Ok(())
}

/// The next message that contains `wanted`; others may come before.
fn told(socket: &UnixDatagram, wanted: &str) -> Result<String> {
    let deadline = Instant::now() + SOON;
    let mut buffer = [0; 1024];
    loop {
        let length = socket.recv(&mut buffer).with_context(|| format!("nobody says {wanted}"))?;
        let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if message.lines().any(|line| line == wanted) {
            return Ok(message);
        }
        ensure!(Instant::now() < deadline, "nobody says {wanted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_is_told_when_it_serves_that_it_lives_and_when_it_stops() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(SOON))?;
    let options = Options::new(OPENCLAW, 1).variable("NOTIFY_SOCKET", path).variable("WATCHDOG_USEC", "300000");
    let mut cluster = Cluster::prepare(options).await?;
    cluster.start_one(0)?;
    told(&socket, "READY=1")?;
    let http = cluster.instances()[0].http;
    ensure!(get(http, "/api/v1/health/live")?.0 == 200, "it said that it serves");
    for _ in 0..3 {
        told(&socket, "WATCHDOG=1")?;
    }
    cluster.instance(0).process.terminate()?;
    told(&socket, "STOPPING=1")?;
    ensure!(cluster.instance(0).process.wait_exit(SOON).await?.success());
    Ok(())
}
