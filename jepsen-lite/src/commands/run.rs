//! Runs a workload while a schedule of faults, drawn from a seed, is done to the cluster, and judges what clients were told.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Common, READY, Report, conclude, findings, rerun};
use crate::checkers::append::Verdict;
use crate::client::Protocol;
use crate::cluster::{self, Cluster};
use crate::figures::Summary;
use crate::history::{Phase, Recorder};
use crate::nemesis::Kind;
use crate::nemesis::inject::{self, Injected};
use crate::nemesis::schedule::{Schedule, Step};
use crate::workloads::append::{self, Load, Progress};

/// Writes are acknowledged again within this time once everything is healed, or the run has found something.
const RECOVERY: Duration = Duration::from_secs(30);
/// Acknowledged writes without which a run proves nothing.
const ENOUGH: u64 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Sessions as lists: nothing acknowledged is lost, doubled or moved, a repeated key gets its first answer
    Append,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    #[arg(long, value_enum, default_value_t = Workload::Append)]
    pub workload: Workload,
    /// The kinds of faults, separated by commas; default: all
    #[arg(long, value_enum, value_delimiter = ',')]
    pub nemesis: Vec<Kind>,
    /// Seconds of faults
    #[arg(long, default_value_t = 60)]
    pub time_limit: u64,
    #[arg(long, default_value_t = 3)]
    pub instances: usize,
    #[arg(long, default_value_t = 8)]
    pub clients: u32,
    /// Pause of each client after a write, in milliseconds
    #[arg(long, default_value_t = 10)]
    pub pause_ms: u64,
    /// Draws the faults, their moments, and the choices of the clients
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// What one fault did.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    kind: Kind,
    what: String,
    installed: bool,
    /// From the fault to the next acknowledged write that was sent after it; while it lasted, if a majority was left.
    write_after_ms: Option<f64>,
    /// From the healing to the same.
    recovery_ms: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures<'a> {
    workload: &'static str,
    seed: u64,
    instances: usize,
    faults: &'a [Done],
    by_kind: BTreeMap<String, usize>,
    /// From a fault that leaves a majority to the next acknowledged write.
    write_after: Summary,
    recovery: Summary,
    verdict: &'a Verdict,
    problems: &'a [String],
    alarms: &'a [String],
    rerun: String,
}

/// Runs it.
///
/// # Errors
/// When the harness itself fails: instances that do not start, a fault that cannot be undone.
pub async fn run(options: Options) -> Result<Report> {
    let openclaw = options.common.openclaw()?;
    let kinds = if options.nemesis.is_empty() { Kind::ALL.to_vec() } else { options.nemesis.clone() };
    let schedule = Schedule::draw(options.seed, options.instances, &kinds, Duration::from_secs(options.time_limit));
    let start = cluster::Options::new(&openclaw, options.instances)
        .directory(options.common.directory()?)
        .environment(options.common.environment(options.seed)?)
        .proxied();
    let mut cluster = Cluster::start(start, READY).await?;
    let directory = cluster.directory().context("no directory")?.to_owned();
    let written = serde_json::to_vec_pretty(&schedule).context("write the schedule")?;
    std::fs::write(directory.join("schedule.json"), written).context("write the schedule")?;
    let load = Load::start(
        append::Options {
            run: format!("run-{}", options.seed),
            clients: options.clients,
            sessions: (options.clients / 2).max(1),
            appends: None,
            attempt_ms: 200..400,
            give_up: RECOVERY,
            pause: Duration::from_millis(options.pause_ms),
            repeat_one_in: 20,
            seed: options.seed,
        },
        &cluster.clients(Protocol::Http1, Duration::from_secs(10)),
    )?;
    let recorder = load.recorder().clone();
    let outcome = break_and_judge(&mut cluster, load, &schedule).await;
    let alarms = cluster.alarms()?;
    let passed = alarms.is_empty()
        && outcome.as_ref().is_ok_and(|Outcome { verdict, done, problems }| {
            let met = |kind: &Kind| done.iter().any(|one| one.kind == *kind && one.installed);
            verdict.anomalies.is_empty()
                && problems.is_empty()
                && verdict.acknowledged >= ENOUGH
                && schedule.steps.iter().all(|step| met(&step.kind))
        });
    conclude(&mut cluster, &recorder.events(), passed)?;
    let Outcome { verdict, done, problems } = outcome?;
    let report = report(&options, &openclaw, &Outcome { verdict, done, problems }, &alarms, passed)?;
    let written = serde_json::to_vec_pretty(&report.json).context("write the verdict")?;
    std::fs::write(directory.join("verdict.json"), written).context("write the verdict")?;
    Ok(report)
}

fn report(
    options: &Options,
    openclaw: &std::path::Path,
    outcome: &Outcome,
    alarms: &[String],
    passed: bool,
) -> Result<Report> {
    let Outcome { verdict, done, problems } = outcome;
    let samples = |of: &dyn Fn(&Done) -> Option<f64>| -> Vec<Duration> {
        done.iter().filter_map(of).map(|ms| Duration::from_secs_f64(ms / 1000.0)).collect()
    };
    let write_after = Summary::of(&samples(&|one| one.write_after_ms));
    let recovery = Summary::of(&samples(&|one| Some(one.recovery_ms)));
    let mut by_kind: BTreeMap<String, usize> = BTreeMap::new();
    for one in done.iter().filter(|one| one.installed) {
        *by_kind.entry(one.kind.name()).or_default() += 1;
    }
    let mut text = format!(
        "run: append under {} faults of {} kinds, {} instances, {} clients, seed {}\n\
         from a fault that leaves a majority to the next acknowledged write: {write_after}\n\
         from the healing to the next acknowledged write: {recovery}\n{}",
        by_kind.values().sum::<usize>(),
        by_kind.len(),
        options.instances,
        options.clients,
        options.seed,
        findings(verdict, alarms),
    );
    for skipped in done.iter().filter(|one| !one.installed) {
        text.push_str(&format!("  {} was skipped: {}\n", skipped.kind.name(), skipped.what));
    }
    for problem in problems {
        text.push_str(&format!("  {problem}\n"));
    }
    text.push_str(if passed { "passed" } else { "FAILED" });
    let mut arguments = format!(
        "--time-limit {} --instances {} --clients {} --pause-ms {} --seed {}",
        options.time_limit, options.instances, options.clients, options.pause_ms, options.seed
    );
    if !options.nemesis.is_empty() {
        let kinds: Vec<String> = options.nemesis.iter().map(|kind| kind.name()).collect();
        arguments.push_str(&format!(" --nemesis {}", kinds.join(",")));
    }
    let figures = Figures {
        workload: "append",
        seed: options.seed,
        instances: options.instances,
        faults: done,
        by_kind,
        write_after,
        recovery,
        verdict,
        problems,
        alarms,
        rerun: rerun("run", openclaw, &options.common, &arguments),
    };
    Report::new(text, &figures, passed)
}

struct Outcome {
    verdict: Verdict,
    done: Vec<Done>,
    /// What was found beside the history: a cluster that did not come back in time.
    problems: Vec<String>,
}

async fn break_and_judge(cluster: &mut Cluster, load: Load, schedule: &Schedule) -> Result<Outcome> {
    let (progress, recorder) = (load.progress().clone(), load.recorder().clone());
    let (mut done, mut problems) = (Vec::new(), Vec::new());
    for (step, number) in schedule.steps.iter().zip(1..) {
        tokio::time::sleep(step.quiet()).await;
        let one =
            one_fault(cluster, number, step, &progress, &recorder).await.with_context(|| format!("fault {number}"))?;
        eprintln!(
            "fault {number} of {}: {} ({}); a write after {} ms, and {:.0} ms after the end; {} writes so far",
            schedule.steps.len(),
            one.kind.name(),
            one.what,
            one.write_after_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}")),
            one.recovery_ms,
            progress.acknowledged()
        );
        if one.recovery_ms >= RECOVERY.as_secs_f64() * 1000.0 {
            problems.push(format!("fault {number} ({}): no write within {RECOVERY:?} of its end", one.kind.name()));
        }
        done.push(one);
    }
    progress.stop();
    cluster.wait_all_ready(READY).await?;
    if let Err(error) = cluster.wait_converged(RECOVERY).await {
        problems.push(format!("{error:#}"));
    }
    Ok(Outcome { verdict: load.judge().await?, done, problems })
}

async fn one_fault(
    cluster: &mut Cluster,
    number: u32,
    step: &Step,
    progress: &Progress,
    recorder: &Recorder,
) -> Result<Done> {
    let name = step.kind.name();
    recorder.fault(number, &name, Phase::Begin, "");
    let mut begun = progress.mark();
    // Rules take a while to be loaded, and what is written meanwhile is no recovery.
    let injected = inject::inject(cluster, step, || begun = progress.mark()).await?;
    let during = tokio::time::timeout(Duration::ZERO, progress.first_after_mark()).await.ok();
    let healed = progress.mark();
    inject::heal(cluster)?;
    let (what, installed) = match injected {
        Injected::Installed(what) => (what, true),
        Injected::Skipped(why) => (why, false),
    };
    recorder.fault(number, &name, if installed { Phase::Healed } else { Phase::Skipped }, &what);
    let ms = |since: Instant, until: Instant| until.saturating_duration_since(since).as_secs_f64() * 1000.0;
    let again = tokio::time::timeout(RECOVERY, progress.first_after_mark()).await;
    cluster.wait_all_ready(READY).await?;
    Ok(Done {
        kind: step.kind,
        what,
        installed,
        write_after_ms: during.filter(|_| step.kind.leaves_a_majority()).map(|at| ms(begun, at)),
        recovery_ms: again.map_or(RECOVERY.as_secs_f64() * 1000.0, |at| ms(healed, at)),
    })
}
