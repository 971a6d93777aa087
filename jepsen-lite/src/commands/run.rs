//! Runs workloads while a schedule of faults, drawn from a seed, is done to the cluster, and judges what clients were told.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::report::PAGE;
use super::{Common, Report, SHOWN, rerun};
use crate::figures::Summary;
use crate::nemesis::Kind;
use crate::nemesis::schedule::Schedule;
use crate::run::plan::Plan;
use crate::run::verdict::{Outcome, Verdict};
use crate::run::{self, Done, Place};
use crate::workloads::Workload;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    /// What clients do, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', default_value = "append")]
    pub workload: Vec<Workload>,
    /// The kinds of faults, separated by commas; default: all that can be done here
    #[arg(long, value_enum, value_delimiter = ',')]
    pub nemesis: Vec<Kind>,
    /// Seconds of faults
    #[arg(long, default_value_t = 60)]
    pub time_limit: u64,
    #[arg(long, default_value_t = 3)]
    pub instances: usize,
    /// Clients of each workload
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub clients: u32,
    /// Pause of each client after a write, in milliseconds
    #[arg(long, default_value_t = 10)]
    pub pause_ms: u64,
    /// Log entries between two snapshots
    #[arg(long, default_value_t = 2000)]
    pub snapshot_every: u64,
    /// Draws the faults, their moments, and the choices of the clients
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Options {
    fn plan(&self) -> Result<Plan> {
        let namespaces = self.common.needs_namespaces();
        for kind in &self.nemesis {
            kind.possible(namespaces).with_context(|| format!("--nemesis {}", kind.name()))?;
            let least = kind.least_instances();
            ensure!(self.instances >= least, "--nemesis {}: it needs --instances {least} or more", kind.name());
        }
        let kinds = self.kinds();
        let mut workloads = self.workload.clone();
        workloads.sort_unstable();
        workloads.dedup();
        let (environment, shape) = self.common.place()?;
        Ok(Plan {
            workloads,
            environment,
            shape,
            clients: self.clients,
            pause_ms: self.pause_ms,
            snapshot_every: self.snapshot_every,
            log_keep: self.snapshot_every / 10,
            schedule: Schedule::draw(self.seed, self.instances, &kinds, Duration::from_secs(self.time_limit)),
        })
    }

    fn kinds(&self) -> Vec<Kind> {
        if !self.nemesis.is_empty() {
            return self.nemesis.clone();
        }
        let mut kinds = possible(self.common.needs_namespaces());
        kinds.retain(|kind| kind.least_instances() <= self.instances);
        kinds
    }

    /// It names the kinds always: what can be done here may be more elsewhere, or another day, and then the seed draws others.
    fn rerun(&self, openclaw: &Path) -> String {
        let names = |names: Vec<String>| names.join(",");
        let arguments = format!(
            "--workload {} --nemesis {} --time-limit {} --instances {} --clients {} --pause-ms {} --snapshot-every {} --seed {}",
            names(self.workload.iter().map(|workload| workload.name()).collect()),
            names(self.kinds().iter().map(|kind| kind.name()).collect()),
            self.time_limit,
            self.instances,
            self.clients,
            self.pause_ms,
            self.snapshot_every,
            self.seed
        );
        rerun("run", openclaw, &self.common, &arguments)
    }
}

/// All that can be done here.
pub(super) fn possible(namespaces: bool) -> Vec<Kind> {
    Kind::ALL.into_iter().filter(|kind| kind.possible(namespaces).is_ok()).collect()
}

/// Runs it.
///
/// # Errors
/// When the harness itself fails: instances that do not start, a fault that cannot be undone.
pub async fn run(options: Options) -> Result<Report> {
    let openclaw = options.common.openclaw()?;
    let place = Place { openclaw: openclaw.clone(), directory: options.common.directory()? };
    report(&run::execute(&options.plan()?, &place, options.rerun(&openclaw)).await?)
}

/// What a run found, for people and for programs, and its page beside its files, where those stay.
///
/// # Errors
/// When it cannot be encoded, or the page not be written.
pub(super) fn report(done: &Done) -> Result<Report> {
    let Done { verdict, history, directory } = done;
    let mut text = describe(verdict);
    if let Some(directory) = directory {
        let page = directory.join(PAGE);
        std::fs::write(&page, crate::report::page(verdict, history))
            .with_context(|| format!("write {}", page.display()))?;
        text = format!("page: {}\n{text}", page.display());
    }
    Report::of(text, verdict, verdict.outcome)
}

fn describe(verdict: &Verdict) -> String {
    let Verdict { outcome, plan, seconds, faults, operations, checks, problems, alarms, rerun, .. } = verdict;
    let mut kinds: Vec<&str> = faults.iter().filter(|fault| fault.installed).map(|fault| fault.kind.as_str()).collect();
    let done = kinds.len();
    kinds.sort_unstable();
    kinds.dedup();
    let workloads: Vec<String> = plan.workloads.iter().map(|workload| workload.name()).collect();
    let times = |of: &dyn Fn(&crate::run::verdict::Fault) -> Option<f64>| {
        Summary::of(&faults.iter().filter_map(of).map(|ms| Duration::from_secs_f64(ms / 1000.0)).collect::<Vec<_>>())
    };
    let mut text = format!(
        "run: {} under {done} faults of {} kinds in {seconds:.0} s, {} instances, {} clients each, seed {}\n\
         from a fault that leaves a majority to the next acknowledged write: {}\n\
         from the healing to the next acknowledged write: {}\n",
        workloads.join(", "),
        kinds.len(),
        plan.schedule.instances,
        plan.clients,
        plan.schedule.seed,
        times(&|fault| fault.write_after_ms),
        times(&|fault| fault.recovery_ms),
    );
    for (name, counts) in operations {
        text.push_str(&format!("  {name:<8} {} ok, {} failed, {} unknown\n", counts.ok, counts.fail, counts.info));
    }
    for check in checks {
        let word = match (check.found.len(), check.decided) {
            (0, true) => "ok".to_owned(),
            (0, false) => "UNDECIDED".to_owned(),
            (count, _) => format!("{count} ANOMALIES"),
        };
        text.push_str(&format!("  {:<18} {word}\n", check.checker));
        for found in check.found.iter().take(SHOWN) {
            text.push_str(&format!("    {}: {}\n", found.anomaly, found.message));
        }
    }
    for fault in faults.iter().filter(|fault| !fault.installed) {
        text.push_str(&format!("  {} was skipped: {}\n", fault.kind, fault.detail));
    }
    for line in problems.iter().chain(alarms).take(2 * SHOWN) {
        text.push_str(&format!("  {line}\n"));
    }
    let word = match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "FAILED",
        Outcome::Inconclusive => "INCONCLUSIVE",
    };
    text.push_str(&format!("again: {rerun}\n{word}"));
    text
}
