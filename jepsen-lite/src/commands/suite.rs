//! Several runs one after the other, each in a folder of its own, and one page over all of them.
//!
//! `smoke` is for a look, `ci` for every change, `nightly` for an hour. What a suite runs is drawn from its seed, so the same
//! seed gives the same plans. A run that finds something does not end the suite.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Common, Report, report, rerun, run};
use crate::nemesis::Kind;
use crate::nemesis::schedule::Schedule;
use crate::report::word;
use crate::run::plan::{LOOPBACK, NAMESPACES, Plan};
use crate::run::verdict::Outcome;
use crate::run::{self as runs, Place};
use crate::workloads::Workload;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Suite {
    /// One run of half a minute
    Smoke,
    /// Eight runs, ten minutes at most
    Ci,
    /// Runs for an hour
    Nightly,
}

impl Suite {
    /// How long it goes on beginning runs, and how many it does at most.
    fn bounds(self) -> (Duration, usize) {
        match self {
            Self::Smoke => (Duration::from_secs(60), 1),
            Self::Ci => (Duration::from_secs(8 * 60), 8),
            Self::Nightly => (Duration::from_secs(60 * 60), usize::MAX),
        }
    }

    /// Seconds of faults in one run.
    fn seconds(self) -> u64 {
        match self {
            Self::Smoke => 30,
            Self::Ci | Self::Nightly => 40,
        }
    }
}

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    #[arg(value_enum)]
    suite: Suite,
    /// Begin no run after so many minutes; default: as the suite says
    #[arg(long)]
    minutes: Option<u64>,
    /// Repeat a run that found something, once; the suite fails if it is found again, and tells of it in any case. For CI, where
    /// the machine is shared: what is found once is for a person to look at
    #[arg(long)]
    confirm: bool,
    /// Draws the plans
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs them.
///
/// # Errors
/// When the harness itself fails in every run, or the page cannot be written.
pub async fn run(options: Options) -> Result<Report> {
    let openclaw = options.common.openclaw()?;
    let directory = match options.common.directory()? {
        Some(directory) => directory,
        None => tempfile::Builder::new().prefix("jepsen-").tempdir().context("make a directory")?.keep(),
    };
    let (bound, most) = options.suite.bounds();
    let bound = options.minutes.map_or(bound, |minutes| Duration::from_secs(60 * minutes));
    let begin = Instant::now();
    let (mut failures, mut unconfirmed): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let mut confirmed = false;
    for number in 0..most {
        if begin.elapsed() > bound {
            break;
        }
        let plan = plan(options.suite, options.seed, number, options.common.needs_namespaces(), run::possible);
        let name = format!("run-{:03}", number + 1);
        let found = match one(&plan, &name, &openclaw, &directory, &options.common).await? {
            Ok(outcome) => outcome == Outcome::Failed,
            Err(error) => {
                failures.push(format!("{name}: {error:#}"));
                false
            }
        };
        if found && options.confirm {
            let again = format!("{name}-again");
            match one(&plan, &again, &openclaw, &directory, &options.common).await? {
                Ok(Outcome::Failed) => confirmed = true,
                Ok(Outcome::Passed | Outcome::Inconclusive) | Err(_) => unconfirmed.push(name),
            }
        }
    }
    let mut report = report::over(&directory)?;
    if !failures.is_empty() {
        report.text.push_str(&format!("\n{}", failures.join("\n")));
        if report.passed() {
            report.outcome = Outcome::Inconclusive;
        }
    }
    if !unconfirmed.is_empty() && !confirmed {
        report.text.push_str(&format!(
            "\nNOT FOUND AGAIN, and to be looked at all the same: {} in {}",
            unconfirmed.join(", "),
            directory.display()
        ));
        report.outcome = if failures.is_empty() { Outcome::Passed } else { Outcome::Inconclusive };
    }
    Ok(report)
}

/// Does one run, in a folder of its own, and writes its page. The inner error is of the harness in that run alone.
async fn one(plan: &Plan, name: &str, openclaw: &Path, directory: &Path, common: &Common) -> Result<Result<Outcome>> {
    eprintln!("{name}: seed {}, {} instances, {}", plan.schedule.seed, plan.schedule.instances, plan.environment);
    let place = Place { openclaw: openclaw.to_owned(), directory: Some(make(directory, name)?) };
    let file = directory.join(name).join("plan.json");
    let again = rerun("replay", openclaw, common, &file.display().to_string());
    match runs::execute(plan, &place, again).await {
        Ok(done) => {
            eprintln!("{name}: {}", word(done.verdict.outcome));
            run::report(&done)?;
            Ok(Ok(done.verdict.outcome))
        }
        Err(error) => {
            eprintln!("{name}: inconclusive: {error:#}");
            Ok(Err(error))
        }
    }
}

fn make(directory: &std::path::Path, name: &str) -> Result<PathBuf> {
    let directory = directory.join(name);
    std::fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
    Ok(directory)
}

/// The plan of the run with this number, from 0.
fn plan(suite: Suite, seed: u64, number: usize, namespaces: bool, possible: impl Fn(bool) -> Vec<Kind>) -> Plan {
    let mut rng = StdRng::seed_from_u64(seed);
    let seed = (0..=number).map(|_| rng.random::<u32>()).last().map_or(seed, u64::from);
    let workloads = match suite {
        Suite::Smoke => vec![Workload::Append, Workload::Turns],
        Suite::Ci | Suite::Nightly => Workload::ALL.to_vec(),
    };
    // Every third run has five instances, which have minorities of two and rings.
    let instances = if number % 3 == 2 { 5 } else { 3 };
    // Where there are namespaces, every other run is on loopback all the same.
    let namespaces = namespaces && number.is_multiple_of(2);
    Plan {
        workloads,
        environment: if namespaces { NAMESPACES } else { LOOPBACK }.to_owned(),
        shape: None,
        clients: 8,
        pause_ms: 10,
        snapshot_every: 2000,
        log_keep: 200,
        schedule: Schedule::draw(seed, instances, &possible(namespaces), Duration::from_secs(suite.seconds())),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_plans_and_each_run_another() {
        let plans = |seed| {
            (0..9).map(|number| plan(Suite::Nightly, seed, number, true, |_| Kind::ALL.to_vec())).collect::<Vec<_>>()
        };
        assert_eq!(plans(1), plans(1));
        let seeds: BTreeSet<u64> = plans(1).iter().chain(&plans(2)).map(|plan| plan.schedule.seed).collect();
        assert_eq!(seeds.len(), 18);
        let instances: BTreeSet<usize> = plans(1).iter().map(|plan| plan.schedule.instances).collect();
        assert_eq!(instances, BTreeSet::from([3, 5]));
    }
}
