//! What an instance costs that has nothing to do: memory, time from start to serving, size of the binary.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use openclaw_proto::ids::{IdempotencyKey, SessionKey};
use serde::Serialize;

use super::{Common, READY, Report};
use crate::client::{Protocol, append_until};
use crate::cluster::{Cluster, Options as Start};
use crate::figures::Summary;
use crate::process::{Process, Program};

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    /// How long the cluster is idle before its memory is read
    #[arg(long, default_value_t = 30)]
    idle_secs: u64,
    /// Starts of each kind
    #[arg(long, default_value_t = 10)]
    starts: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    idle_secs: u64,
    idle_resident_mib: Vec<f64>,
    /// From the process's start to the first 200 of `health/ready`.
    single_fresh: Summary,
    single_restarted: Summary,
    member_restarted: Summary,
    /// From the start of a killed member to an acknowledged write through it.
    member_writes: Summary,
    binary_mib: f64,
    stripped_mib: Option<f64>,
}

/// Runs it.
///
/// # Errors
/// When instances do not start.
pub async fn run(options: Options) -> Result<Report> {
    let openclaw = options.common.openclaw()?;
    let directory = options.common.directory()?;
    let (mut fresh, mut restarted) = (Vec::new(), Vec::new());
    for _ in 0..options.starts {
        let mut single = Cluster::prepare(Start::new(&openclaw, 1).environment(options.common.environment(0)?)).await?;
        for samples in [&mut fresh, &mut restarted] {
            single.start_all()?;
            samples.push(single.instance(0).wait_ready(READY).await?);
            single.kill_all()?;
        }
    }

    let mut cluster = Cluster::start(
        Start::new(&openclaw, 3).directory(directory).environment(options.common.environment(0)?),
        READY,
    )
    .await?;
    let measured = measure_three(&mut cluster, &options).await;
    if measured.is_err() {
        cluster.keep();
    }
    let Three { resident, ready, writes } = measured?;

    let binary = std::fs::metadata(&openclaw).context("size of the binary")?.len();
    let figures = Figures {
        idle_secs: options.idle_secs,
        idle_resident_mib: resident.iter().copied().map(mib).collect(),
        single_fresh: Summary::of(&fresh),
        single_restarted: Summary::of(&restarted),
        member_restarted: Summary::of(&ready),
        member_writes: Summary::of(&writes),
        binary_mib: mib(binary),
        stripped_mib: stripped(&openclaw).await?.map(mib),
    };
    let text = format!(
        "footprint of {}\nidle RSS after {} s: {}\nstart to serving: alone, fresh: {}\n                  alone, restarted: {}\n\
         \x20                 one of three, restarted: {}\n                  ... to an acknowledged write through it: {}\n\
         binary: {:.1} MiB{}\n",
        openclaw.display(),
        options.idle_secs,
        figures.idle_resident_mib.iter().map(|mib| format!("{mib:.1} MiB")).collect::<Vec<_>>().join(", "),
        figures.single_fresh,
        figures.single_restarted,
        figures.member_restarted,
        figures.member_writes,
        figures.binary_mib,
        figures
            .stripped_mib
            .map_or(", and no `strip` to strip it".to_owned(), |mib| format!(", stripped {mib:.1} MiB")),
    );
    Report::new(text, &figures, true)
}

struct Three {
    resident: Vec<u64>,
    ready: Vec<Duration>,
    writes: Vec<Duration>,
}

async fn measure_three(cluster: &mut Cluster, options: &Options) -> Result<Three> {
    tokio::time::sleep(Duration::from_secs(options.idle_secs)).await;
    let resident =
        cluster.instances().iter().map(|instance| instance.process.resident_bytes()).collect::<Result<_>>()?;
    let (mut ready, mut writes) = (Vec::new(), Vec::new());
    let session = SessionKey::parse("footprint").context("session key")?;
    let clients = cluster.clients(Protocol::Http1, Duration::from_secs(2));
    for number in 0..options.starts {
        let index = number as usize % cluster.len();
        cluster.instance(index).process.kill()?;
        let begin = Instant::now();
        cluster.start_one(index)?;
        ready.push(cluster.instance(index).wait_ready(READY).await?);
        let key = IdempotencyKey::parse(format!("footprint:{number}")).context("key")?;
        let written =
            append_until(&clients[index..=index], 0, &session, &key.to_string(), &key, Instant::now() + READY).await;
        ensure!(written.is_ok(), "no write through a restarted instance: {written:?}");
        writes.push(begin.elapsed());
    }
    Ok(Three { resident, ready, writes })
}

/// Size without symbols, or `None` where there is no `strip`.
async fn stripped(binary: &Path) -> Result<Option<u64>> {
    let directory = tempfile::tempdir().context("make a directory")?;
    let target = directory.path().join("stripped");
    let mut strip = Process::new(Program {
        executable: "strip".into(),
        through: Vec::new(),
        arguments: vec!["-o".into(), target.clone().into(), binary.into()],
        environment: Vec::new(),
        log: directory.path().join("log"),
    });
    if strip.start().is_err() {
        return Ok(None);
    }
    let status = strip.wait_exit(READY).await?;
    ensure!(status.success(), "strip failed: {}", strip.log_tail());
    Ok(Some(std::fs::metadata(&target).context("size of the stripped binary")?.len()))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
