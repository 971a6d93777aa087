//! Kills the leader, or a follower, under a light steady load, round after round, and measures the time from the kill to
//! the next acknowledged write that was sent after it, by any client through any instance.

use std::time::Duration;

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

/// Writes that must be acknowledged between the healing of one round and the kill of the next.
const BETWEEN: u64 = 200;
/// How long a cluster with a majority may go without an acknowledged write before the run is given up.
const GIVE_UP: Duration = Duration::from_secs(30);

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Victim {
    Leader,
    Follower,
}

impl Victim {
    fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
        }
    }
}

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    #[arg(long, default_value_t = 3)]
    instances: usize,
    #[arg(long, default_value_t = 50)]
    rounds: u32,
    #[arg(long, value_enum, default_value_t = Victim::Leader)]
    kill: Victim,
    #[arg(long, default_value_t = 8)]
    clients: u32,
    /// Pause of a client after each write, in milliseconds
    #[arg(long, default_value_t = 10)]
    pause_ms: u64,
    /// Draws the moments of the kills and the choices of the clients
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures<'a> {
    seed: u64,
    killed: &'static str,
    instances: usize,
    clients: u32,
    rounds: usize,
    /// From the kill to the next acknowledged write.
    gap: Summary,
    gap_ms: Vec<f64>,
    /// From the restart to the killed instance being ready.
    rejoin: Summary,
    verdict: &'a Verdict,
    alarms: &'a [String],
    rerun: String,
}

/// Runs it.
///
/// # Errors
/// When the harness itself fails: instances that do not start, no leader, no write ever again.
pub async fn run(options: Options) -> Result<Report> {
    let openclaw = options.common.openclaw()?;
    let mut rng = StdRng::seed_from_u64(options.seed);
    let start = cluster::Options::new(&openclaw, options.instances)
        .directory(options.common.directory()?)
        .environment(options.common.environment(options.seed)?);
    let mut cluster = Cluster::start(start, READY).await?;
    let load = Load::start(
        append::Options {
            run: format!("failover-{}", options.seed),
            clients: options.clients,
            sessions: options.clients.max(1),
            appends: None,
            attempt_ms: 100..200,
            give_up: GIVE_UP,
            pause: Duration::from_millis(options.pause_ms),
            repeat_one_in: 50,
            read_one_in: 20,
            seed: rng.random(),
        },
        &cluster.clients(Protocol::Http1, Duration::from_secs(10)),
    )?;
    let recorder = load.recorder().clone();
    let outcome = break_and_judge(&mut cluster, load, &mut rng, &options).await;
    let alarms = cluster.alarms()?;
    let passed = alarms.is_empty()
        && outcome.as_ref().is_ok_and(|Outcome { verdict, gaps, .. }| {
            gaps.len() == options.rounds as usize && verdict.anomalies.is_empty()
        });
    conclude(&mut cluster, &recorder.events(), passed)?;
    let Outcome { verdict, gaps, rejoins } = outcome?;

    let (gap, rejoin) = (Summary::of(&gaps), Summary::of(&rejoins));
    let gap_ms: Vec<f64> = gaps.iter().map(|gap| (gap.as_secs_f64() * 10_000.0).round() / 10.0).collect();
    let text = format!(
        "failover: kill -9 of the {}, {} rounds, {} instances, {} clients, seed {}\n\
         from the kill to the next acknowledged write: {gap}\nall, in ms: {gap_ms:?}\n\
         from restart to ready: {rejoin}\n{}{}\n",
        options.kill.name(),
        gaps.len(),
        options.instances,
        options.clients,
        options.seed,
        findings(&verdict, &alarms),
        if passed { "passed" } else { "FAILED" },
    );
    let rerun = rerun(
        "failover",
        &openclaw,
        &options.common,
        &format!(
            "--instances {} --rounds {} --kill {} --clients {} --pause-ms {} --seed {}",
            options.instances,
            options.rounds,
            options.kill.name(),
            options.clients,
            options.pause_ms,
            options.seed
        ),
    );
    let figures = Figures {
        seed: options.seed,
        killed: options.kill.name(),
        instances: options.instances,
        clients: options.clients,
        rounds: gaps.len(),
        gap,
        gap_ms,
        rejoin,
        verdict: &verdict,
        alarms: &alarms,
        rerun,
    };
    Report::new(text, &figures, passed)
}

struct Outcome {
    verdict: Verdict,
    gaps: Vec<Duration>,
    rejoins: Vec<Duration>,
}

async fn break_and_judge(cluster: &mut Cluster, load: Load, rng: &mut StdRng, options: &Options) -> Result<Outcome> {
    let (progress, recorder) = (load.progress().clone(), load.recorder().clone());
    let (mut gaps, mut rejoins) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        let enough = progress.acknowledged() + BETWEEN;
        progress.reached(enough, GIVE_UP).await?;
        // The kill should not always fall at the same distance from a heartbeat or a write.
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..200))).await;
        let leader = cluster.leader(GIVE_UP).await?;
        let victim = match options.kill {
            Victim::Leader => leader,
            Victim::Follower => (leader + rng.random_range(1..cluster.len().max(2))) % cluster.len(),
        };
        let name = cluster.instance(victim).id.clone();
        recorder.fault(round, "kill", Phase::Begin, name.as_str());
        let killed = progress.mark();
        cluster.instance(victim).process.kill()?;
        let next = tokio::time::timeout(GIVE_UP, progress.first_after_mark())
            .await
            .with_context(|| format!("nothing was acknowledged within {GIVE_UP:?} after round {round}"))?;
        gaps.push(next.saturating_duration_since(killed));
        cluster.start_one(victim)?;
        rejoins.push(cluster.instance(victim).wait_ready(READY).await?);
        recorder.fault(round, "kill", Phase::Recovered, name.as_str());
        eprintln!("round {round}: {name} killed, next write after {:?}", gaps.last().copied().unwrap_or_default());
    }
    progress.stop();
    cluster.wait_all_ready(READY).await?;
    let verdict = load.judge().await?;
    Ok(Outcome { verdict, gaps, rejoins })
}
