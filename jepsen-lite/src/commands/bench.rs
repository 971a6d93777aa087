//! Durable writes per second and their latency, three instances, beside a three-member etcd and the disk's own fdatasync:
//! one run, one disk, one client program, in alternating order.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use openclaw_proto::http::{AppendRequest, Role};
use serde::Serialize;

use super::{Common, READY, Report};
use crate::bench::disk::{self, VALUE_BYTES};
use crate::bench::etcd::{Etcd, PutRequest};
use crate::bench::load::{self, Call};
use crate::client::Protocol;
use crate::cluster::{Cluster, Options as Start};
use crate::figures::Summary;
use crate::process::{Process, cpu_time};

/// Writes of the disk's own row.
const SYNCS: usize = 1000;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    /// Numbers of clients, one row each
    #[arg(long, value_delimiter = ',', default_value = "1,64,256,1000")]
    clients: Vec<usize>,
    /// Measured seconds of each row and round
    #[arg(long, default_value_t = 10)]
    secs: u64,
    /// Rounds over all rows; who goes first alternates
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Load before each measurement, in seconds
    #[arg(long, default_value_t = 1)]
    warm_up_secs: u64,
    /// Connections that HTTP/2 clients share
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// How requests travel to the gateway; etcd speaks HTTP/2
    #[arg(long, value_enum, default_value_t = Protocol::H2c)]
    protocol: Protocol,
    /// Send every append under an idempotency key of its own, as a client does that repeats what failed
    #[arg(long)]
    keys: bool,
    #[arg(long, default_value_t = 3)]
    instances: usize,
    /// Also measure an etcd, such as Debian's /usr/bin/etcd
    #[arg(long, value_name = "PATH")]
    etcd: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum System {
    Openclaw,
    Etcd,
}

impl System {
    fn name(self) -> &'static str {
        match self {
            Self::Openclaw => "openclaw",
            Self::Etcd => "etcd",
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    system: System,
    clients: usize,
    writes_per_second: f64,
    latency: Summary,
    errors: u64,
    first_error: Option<String>,
    /// Processors that were busy on its behalf: of its processes, and of the client program.
    server_cores: f64,
    client_cores: f64,
    #[serde(skip)]
    samples: Vec<u32>,
    #[serde(skip)]
    rounds: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures<'a> {
    value_bytes: usize,
    seconds: u64,
    rounds: usize,
    connections: usize,
    protocol: &'static str,
    keys: bool,
    instances: usize,
    load_average_before: String,
    fdatasync_before: Summary,
    fdatasync_after: Summary,
    rows: &'a [Row],
}

/// Runs it.
///
/// # Errors
/// When instances or etcd do not start, or connections cannot be made.
pub async fn run(options: Options) -> Result<Report> {
    ensure!(!options.common.needs_namespaces(), "bench measures on loopback, where etcd is as near as we are");
    let openclaw = options.common.openclaw()?;
    let load_average_before = std::fs::read_to_string("/proc/loadavg").context("read the load average")?;
    let start = Start::new(&openclaw, options.instances).directory(options.common.directory()?);
    let mut cluster = Cluster::prepare(start).await?;
    let directory = cluster.directory().context("no directory")?.to_owned();
    let fdatasync_before = fdatasync(&directory).await?;
    cluster.start_all()?;
    let measured = async {
        cluster.wait_all_ready(READY).await?;
        let etcd = match &options.etcd {
            Some(etcd) => Some(Etcd::start(etcd, &directory, READY).await?),
            None => None,
        };
        measure(&mut cluster, etcd.as_ref(), &options).await
    };
    let measured = measured.await;
    if measured.is_err() {
        cluster.keep();
    }
    let mut rows = measured?;
    let alarms = cluster.alarms()?;
    cluster.kill_all()?;
    let fdatasync_after = fdatasync(&directory).await?;

    let mut text = format!(
        "durable writes of {VALUE_BYTES} B, {} instances, {} s and {} rounds each, {}, up to {} connections\n\
         load average before: {}fdatasync before: {fdatasync_before}\nfdatasync after:  {fdatasync_after}\n\n\
         {:>7} {:>9} {:>10} {:>9} {:>9} {:>9} {:>7} {:>8} {:>8}\n",
        options.instances,
        options.secs,
        options.rounds,
        options.protocol.name(),
        options.connections,
        load_average_before,
        "clients",
        "system",
        "writes/s",
        "p50 ms",
        "p99 ms",
        "max ms",
        "errors",
        "servers",
        "client",
    );
    for row in &mut rows {
        row.finish(options.secs);
        writeln!(
            text,
            "{:>7} {:>9} {:>10.0} {:>9.2} {:>9.2} {:>9.2} {:>7} {:>8.2} {:>8.2}",
            row.clients,
            row.system.name(),
            row.writes_per_second,
            row.latency.p50_ms,
            row.latency.p99_ms,
            row.latency.max_ms,
            row.errors,
            row.server_cores,
            row.client_cores,
        )?;
    }
    text.push_str(&ratios(&rows));
    for error in rows.iter().filter_map(|row| row.first_error.as_ref()).chain(&alarms).take(super::SHOWN) {
        writeln!(text, "  {error}")?;
    }
    let passed = alarms.is_empty() && rows.iter().all(|row| row.errors == 0 && row.latency.count > 0);
    let figures = Figures {
        value_bytes: VALUE_BYTES,
        seconds: options.secs,
        rounds: options.rounds,
        connections: options.connections,
        protocol: options.protocol.name(),
        keys: options.keys,
        instances: options.instances,
        load_average_before: load_average_before.trim().to_owned(),
        fdatasync_before,
        fdatasync_after,
        rows: &rows,
    };
    Report::new(text, &figures, passed)
}

async fn fdatasync(directory: &Path) -> Result<Summary> {
    let directory = directory.to_owned();
    tokio::task::spawn_blocking(move || disk::fdatasync(&directory, SYNCS)).await.context("fdatasync loop")?
}

async fn measure(cluster: &mut Cluster, etcd: Option<&Etcd>, options: &Options) -> Result<Vec<Row>> {
    let systems: &[System] = if etcd.is_some() { &[System::Openclaw, System::Etcd] } else { &[System::Openclaw] };
    let mut rows: Vec<Row> = options
        .clients
        .iter()
        .flat_map(|&clients| systems.iter().map(move |&system| Row::new(system, clients)))
        .collect();
    for round in 0..options.rounds {
        for (place, &clients) in options.clients.iter().enumerate() {
            let mut order = systems.to_vec();
            if (round + place) % 2 == 1 {
                order.reverse();
            }
            for system in order {
                let row = rows
                    .iter_mut()
                    .find(|row| (row.system, row.clients) == (system, clients))
                    .context("row of the table")?;
                match (system, etcd) {
                    (System::Etcd, Some(etcd)) => {
                        let members: Vec<&Process> = etcd.members().iter().collect();
                        let calls = puts(clients)?;
                        row.measure(etcd.targets().await?, Protocol::H2c, &calls, &members, options).await?;
                    }
                    (System::Etcd, None) => {}
                    (System::Openclaw, _) => {
                        let leader = cluster.leader(READY).await?;
                        let instances = cluster.instances();
                        let targets =
                            instances.iter().cycle().skip(leader).take(instances.len()).map(|one| one.http).collect();
                        let processes: Vec<&Process> = instances.iter().map(|instance| &instance.process).collect();
                        let calls = appends(clients, round, options.keys)?;
                        row.measure(targets, options.protocol, &calls, &processes, options).await?;
                    }
                }
                eprintln!("round {}: {} clients, {}: {} so far", round + 1, clients, system.name(), row.samples.len());
            }
        }
    }
    Ok(rows)
}

/// One session per client, fresh in each round.
fn appends(clients: usize, round: usize, keys: bool) -> Result<Vec<Call>> {
    let body = AppendRequest { role: Role::User, text: "x".repeat(VALUE_BYTES) };
    let body = bytes::Bytes::from(serde_json::to_vec(&body).context("encode the append")?);
    Ok((0..clients)
        .map(|client| {
            let path = format!("/api/v1/sessions/bench-{round}-{clients}-{client}/entries");
            let call = Call::json(path, body.clone(), StatusCode::CREATED);
            if keys { call.with_keys(format!("bench-{round}-{clients}-{client}-")) } else { call }
        })
        .collect())
}

/// One key per client.
fn puts(clients: usize) -> Result<Vec<Call>> {
    (0..clients)
        .map(|client| PutRequest { key: format!("bench-{client}").into_bytes(), value: vec![b'x'; VALUE_BYTES] }.call())
        .collect()
}

impl Row {
    fn new(system: System, clients: usize) -> Self {
        Self {
            system,
            clients,
            writes_per_second: 0.0,
            latency: Summary::default(),
            errors: 0,
            first_error: None,
            server_cores: 0.0,
            client_cores: 0.0,
            samples: Vec::new(),
            rounds: 0,
        }
    }

    /// Measures once and adds it to what was measured before.
    async fn measure(
        &mut self,
        targets: Vec<std::net::SocketAddr>,
        protocol: Protocol,
        calls: &[Call],
        servers: &[&Process],
        options: &Options,
    ) -> Result<()> {
        let load = load::Options {
            targets,
            protocol,
            connections: options.connections,
            warm_up: Duration::from_secs(options.warm_up_secs),
            duration: Duration::from_secs(options.secs),
        };
        let mut used = Vec::new();
        let outcome = load::run(&load, calls, || {
            used.push((
                servers.iter().map(|server| server.cpu_time().unwrap_or_default()).sum::<Duration>(),
                cpu_time(std::process::id()).unwrap_or_default(),
            ));
        })
        .await?;
        if let [before, after] = used[..] {
            self.server_cores += after.0.saturating_sub(before.0).as_secs_f64();
            self.client_cores += after.1.saturating_sub(before.1).as_secs_f64();
        }
        self.samples.extend(outcome.samples);
        self.errors += outcome.errors;
        self.first_error = self.first_error.take().or(outcome.first_error);
        self.rounds += 1;
        Ok(())
    }

    /// Turns sums over all rounds into figures.
    fn finish(&mut self, secs: u64) {
        let seconds = (self.rounds as u64 * secs).max(1) as f64;
        self.latency = Summary::of_micros(&mut self.samples);
        self.writes_per_second = self.samples.len() as f64 / seconds;
        self.server_cores /= seconds;
        self.client_cores /= seconds;
    }
}

/// The figures beside etcd's in the same run, which are what travels to another machine.
fn ratios(rows: &[Row]) -> String {
    let mut text = String::new();
    for ours in rows.iter().filter(|row| row.system == System::Openclaw) {
        let theirs = rows.iter().find(|row| row.system == System::Etcd && row.clients == ours.clients);
        if let Some(theirs) = theirs.filter(|theirs| theirs.latency.count > 0) {
            text.push_str(&format!(
                "\n{:>7} clients: {:.2}x etcd's writes/s, {:.2}x its p50, {:.2}x its p99",
                ours.clients,
                ours.writes_per_second / theirs.writes_per_second,
                ours.latency.p50_ms / theirs.latency.p50_ms,
                ours.latency.p99_ms / theirs.latency.p99_ms,
            ));
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_average_over_their_rounds_and_ratios_compare_equal_clients() {
        let mut rows = vec![Row::new(System::Openclaw, 64), Row::new(System::Etcd, 64), Row::new(System::Etcd, 1)];
        for (row, samples) in rows.iter_mut().zip([600, 200, 10]) {
            row.samples = vec![if row.system == System::Etcd { 3000 } else { 1000 }; samples];
            (row.rounds, row.server_cores) = (2, 20.0);
            row.finish(10);
        }
        assert_eq!((rows[0].writes_per_second, rows[0].server_cores), (30.0, 1.0));
        assert_eq!(ratios(&rows), "\n     64 clients: 3.00x etcd's writes/s, 0.33x its p50, 0.33x its p99\n");
    }

    #[test]
    fn every_client_has_its_own_session_and_key() {
        assert_eq!(appends(3, 1, true).unwrap().len(), 3);
        assert_eq!(puts(3).unwrap().len(), 3);
    }
}
