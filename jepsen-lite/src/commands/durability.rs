//! Appends under power cuts: `kill -9` of all instances at random moments, restart, continue; then nothing acknowledged
//! may be missing, doubled or out of order.
//!
//! A killed process loses nothing that the kernel already has, so this finds an acknowledgement that came before the
//! write, and recovery that goes wrong; it cannot find a missing fsync.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use super::{Common, READY, Report, conclude, findings, rerun};
use crate::checkers::append::Verdict;
use crate::client::Protocol;
use crate::cluster::{self, Cluster};
use crate::figures::Summary;
use crate::history::Phase;
use crate::workloads::append::{self, Load};

/// Patience with an idle cluster at the end, before transcripts are compared.
const SETTLE: Duration = Duration::from_secs(30);
/// A cut comes up to this long after its number of writes, so that it does not always hit just behind one.
const JITTER_MS: u64 = 50;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    #[arg(long, default_value_t = 3)]
    instances: usize,
    /// Writes to acknowledge
    #[arg(long, default_value_t = 100_000)]
    appends: u64,
    /// How often all instances are killed at once
    #[arg(long, default_value_t = 20)]
    power_cuts: u32,
    #[arg(long, default_value_t = 64)]
    clients: u32,
    /// Sessions that the clients share
    #[arg(long, default_value_t = 16)]
    sessions: u32,
    #[arg(long, value_enum, default_value_t = Protocol::H2c)]
    protocol: Protocol,
    /// Draws the moments of the cuts and the choices of the clients
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures<'a> {
    seed: u64,
    instances: usize,
    clients: u32,
    power_cuts: usize,
    seconds: f64,
    appends_per_second: f64,
    /// From the kill to the next acknowledged write.
    recovery: Summary,
    recovery_ms: Vec<f64>,
    verdict: &'a Verdict,
    alarms: &'a [String],
    rerun: String,
}

/// Runs it.
///
/// # Errors
/// When the harness itself fails: instances that do not start, sessions that cannot be read.
pub async fn run(options: Options) -> Result<Report> {
    let openclaw = options.common.openclaw()?;
    let mut rng = StdRng::seed_from_u64(options.seed);
    let mut moments: Vec<u64> =
        (0..options.power_cuts).map(|_| rng.random_range(options.appends / 50..=options.appends * 49 / 50)).collect();
    moments.sort_unstable();

    let start = cluster::Options::new(&openclaw, options.instances)
        .directory(options.common.directory()?)
        .environment(options.common.environment(options.seed)?);
    let mut cluster = Cluster::start(start, READY).await?;
    let load = Load::start(
        append::Options {
            run: format!("durability-{}", options.seed),
            clients: options.clients,
            sessions: options.sessions.max(1),
            appends: Some(options.appends),
            attempt_ms: 1900..2100,
            give_up: READY * 2,
            pause: Duration::ZERO,
            repeat_one_in: 50,
            read_one_in: 20,
            seed: rng.random(),
        },
        &cluster.clients(options.protocol, Duration::from_secs(10)),
    )?;
    let recorder = load.recorder().clone();
    let outcome = break_and_judge(&mut cluster, load, &moments, &mut rng, &options).await;
    let alarms = cluster.alarms()?;
    let passed = alarms.is_empty()
        && outcome.as_ref().is_ok_and(|Outcome { verdict, recoveries, .. }| {
            recoveries.len() == moments.len() && verdict.anomalies.is_empty() && verdict.acknowledged >= options.appends
        });
    conclude(&mut cluster, &recorder.events(), passed)?;
    let Outcome { verdict, recoveries, seconds } = outcome?;

    let recovery = Summary::of(&recoveries);
    let per_second = verdict.acknowledged as f64 / seconds;
    let text = format!(
        "durability: {} appends by {} clients over {} instances, {} power cuts, seed {}\n\
         {seconds:.1} s, {per_second:.0} acknowledged appends/s, cuts included\n\
         from the kill of all to the next acknowledged write: {recovery}\n{}{}\n",
        verdict.acknowledged,
        options.clients,
        options.instances,
        recoveries.len(),
        options.seed,
        findings(&verdict, &alarms),
        if passed { "passed" } else { "FAILED" },
    );
    let rerun = rerun(
        "durability",
        &openclaw,
        &options.common,
        &format!(
            "--instances {} --appends {} --power-cuts {} --clients {} --sessions {} --protocol {} --seed {}",
            options.instances,
            options.appends,
            options.power_cuts,
            options.clients,
            options.sessions,
            options.protocol.name(),
            options.seed
        ),
    );
    let figures = Figures {
        seed: options.seed,
        instances: options.instances,
        clients: options.clients,
        power_cuts: recoveries.len(),
        seconds,
        appends_per_second: per_second,
        recovery,
        recovery_ms: recoveries.iter().map(|recovery| recovery.as_secs_f64() * 1000.0).collect(),
        verdict: &verdict,
        alarms: &alarms,
        rerun,
    };
    Report::new(text, &figures, passed)
}

struct Outcome {
    verdict: Verdict,
    recoveries: Vec<Duration>,
    seconds: f64,
}

async fn break_and_judge(
    cluster: &mut Cluster,
    load: Load,
    moments: &[u64],
    rng: &mut StdRng,
    options: &Options,
) -> Result<Outcome> {
    let begin = Instant::now();
    let (progress, recorder) = (load.progress().clone(), load.recorder().clone());
    let mut recoveries = Vec::new();
    for (&moment, number) in moments.iter().zip(1..) {
        progress.reached(moment, READY).await?;
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..JITTER_MS))).await;
        recorder.fault(number, "kill-all", Phase::Begin, "");
        let killed = progress.mark();
        cluster.kill_all()?;
        cluster.start_all()?;
        cluster.wait_all_ready(READY).await?;
        recorder.fault(number, "kill-all", Phase::Recovered, "");
        // The last cut may fall so late that no write is left to be sent.
        if progress.acknowledged() < options.appends {
            let next = tokio::time::timeout(READY, progress.first_after_mark())
                .await
                .with_context(|| format!("nothing was acknowledged within {READY:?} after cut {number}"))?;
            recoveries.push(next.saturating_duration_since(killed));
        } else {
            recoveries.push(killed.elapsed());
        }
        eprintln!(
            "cut {number} of {} after {} writes; writing again after {:?}",
            moments.len(),
            progress.acknowledged(),
            recoveries.last().copied().unwrap_or_default()
        );
    }
    progress.reached(options.appends, READY).await?;
    let seconds = begin.elapsed().as_secs_f64();
    cluster.wait_converged(SETTLE).await?;
    let verdict = load.judge().await?;
    Ok(Outcome { verdict, recoveries, seconds })
}
