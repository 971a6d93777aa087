//! Several runs one after the other, each in a folder of its own, and one page over all of them.
//!
//! `smoke` is for a look, `ci` for every change, `nightly` for an hour. What a suite runs is drawn from its seed, so the same
//! seed gives the same plans. A run that finds something does not end the suite.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::{Common, Report, quoted, report, rerun, run};
use crate::nemesis::Kind;
use crate::nemesis::schedule::Schedule;
use crate::report::{word, worst};
use crate::run::plan::{LOOPBACK, NAMESPACES, Plan};
use crate::run::verdict::{Outcome, Verdict};
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
    /// Repeat a run in which something came too late, once; if the repeat passes, that is told and no failure. For CI, where the
    /// machine is shared. What must not be on any machine is never repeated
    #[arg(long)]
    confirm: bool,
    /// Draws the plans
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs them.
///
/// # Errors
/// When there is no directory for the runs, or no binary.
pub async fn run(options: Options) -> Result<Report> {
    let openclaw = options.common.openclaw()?;
    let directory = match options.common.directory()? {
        Some(directory) => directory,
        None => tempfile::Builder::new().prefix("jepsen-").tempdir().context("make a directory")?.keep(),
    };
    let (_, shape) = options.common.place()?;
    let (bound, most) = options.suite.bounds();
    let bound = options.minutes.map_or(bound, |minutes| Duration::from_secs(60 * minutes));
    let begin = Instant::now();
    let (mut outcomes, mut notes) = (Vec::new(), Vec::new());
    for number in 0..most {
        if begin.elapsed() > bound {
            break;
        }
        let mut plan = plan(options.suite, options.seed, number, options.common.needs_namespaces(), run::possible);
        if plan.environment == NAMESPACES {
            plan.shape.clone_from(&shape);
        }
        let name = format!("run-{:03}", number + 1);
        let first = one(&plan, &name, &openclaw, &directory, &options.common).await;
        let mut second = None;
        if options.confirm && first.as_ref().is_ok_and(Verdict::is_late_alone) {
            second = Some(one(&plan, &format!("{name}-again"), &openclaw, &directory, &options.common).await);
        }
        if let Err(error) = &first {
            notes.push(format!("{name}: {error:#}"));
        }
        let settled = settled(&first, second.as_ref());
        if settled == Outcome::Passed && second.is_some() {
            notes
                .push(format!("{name}: NOT FOUND AGAIN, and to be looked at all the same, in {}", directory.display()));
        }
        outcomes.push(settled);
    }
    let outcome = of_all(&outcomes);
    // Where there is nothing to report of, as on a disk that is full, that is what is reported.
    let nothing = |error: anyhow::Error| {
        let text = format!("{error:#}\n{}", if outcome == Outcome::Failed { "FAILED" } else { word(outcome) });
        Report::of(text, json!({"outcome": outcome, "error": format!("{error:#}")}), outcome)
    };
    let mut report = report::over(&directory, outcome).or_else(nothing)?;
    for note in notes {
        report.text.push_str(&format!("\n{note}"));
    }
    Ok(report)
}

/// What a run and its repeat come to.
fn settled(first: &Result<Verdict>, second: Option<&Result<Verdict>>) -> Outcome {
    let outcome = |run: &Result<Verdict>| run.as_ref().map_or(Outcome::Inconclusive, |verdict| verdict.outcome);
    match second.map(outcome) {
        Some(Outcome::Passed) => Outcome::Passed,
        // A repeat that proves nothing clears nothing.
        Some(Outcome::Failed | Outcome::Inconclusive) | None => outcome(first),
    }
}

/// Of a suite. One in which no run passed has shown nothing, which is what somebody must look at.
fn of_all(outcomes: &[Outcome]) -> Outcome {
    if outcomes.contains(&Outcome::Passed) { worst(outcomes.iter().copied()) } else { Outcome::Failed }
}

/// Does one run, in a folder of its own, and writes its page.
///
/// # Errors
/// When the harness itself fails in that run.
async fn one(plan: &Plan, name: &str, openclaw: &Path, directory: &Path, common: &Common) -> Result<Verdict> {
    eprintln!("{name}: seed {}, {} instances, {}", plan.schedule.seed, plan.schedule.instances, plan.environment);
    let file = directory.join(name).join("plan.json");
    let again = rerun("replay", openclaw, common, &quoted(&file));
    let doing = async {
        let place = Place { openclaw: openclaw.to_owned(), directory: Some(make(directory, name)?) };
        let done = runs::execute(plan, &place, again).await?;
        run::report(&done)?;
        Ok(done.verdict)
    };
    let verdict: Result<Verdict> = doing.await;
    match &verdict {
        Ok(verdict) => eprintln!("{name}: {}", word(verdict.outcome)),
        Err(error) => eprintln!("{name}: inconclusive: {error:#}"),
    }
    verdict
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
    use crate::checkers::{Check, Found};

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

    fn verdict(outcome: Outcome, anomaly: Option<&str>) -> Result<Verdict> {
        let found =
            anomaly.map(|anomaly| Found { anomaly: anomaly.to_owned(), message: String::new(), ops: Vec::new() });
        let check = Check {
            checker: "any".into(),
            decided: true,
            figures: serde_json::Value::Null,
            found: found.into_iter().collect(),
        };
        Ok(Verdict {
            outcome,
            plan: plan(Suite::Ci, 1, 0, false, |_| Kind::ALL.to_vec()),
            seconds: 1.0,
            faults: Vec::new(),
            operations: Default::default(),
            checks: vec![check],
            problems: Vec::new(),
            unjudged: Vec::new(),
            alarms: Vec::new(),
            rerun: String::new(),
        })
    }

    #[test]
    fn only_what_came_too_late_is_repeated_and_only_a_pass_clears_it() {
        let late = |anomaly| verdict(Outcome::Failed, Some(anomaly)).unwrap().is_late_alone();
        assert!(late("hung") && late("unowned"));
        for anomaly in ["lost", "doubled", "stale-read", "token-fell", "owner", "diverged", "answers", "instance"] {
            assert!(!late(anomaly), "{anomaly}");
        }
        let mut alarmed = verdict(Outcome::Failed, Some("hung")).unwrap();
        alarmed.alarms.push("panicked".into());
        assert!(!alarmed.is_late_alone());
        let mut unsettled = verdict(Outcome::Failed, None).unwrap();
        unsettled.problems.push("not converged".into());
        assert!(unsettled.is_late_alone());
        unsettled.unjudged.push("append".into());
        assert!(!unsettled.is_late_alone(), "nobody knows what would have been found");

        let first = verdict(Outcome::Failed, Some("hung"));
        let after = |second: Result<Verdict>| settled(&first, Some(&second));
        assert_eq!(after(verdict(Outcome::Passed, None)), Outcome::Passed);
        assert_eq!(after(verdict(Outcome::Inconclusive, None)), Outcome::Failed);
        assert_eq!(after(verdict(Outcome::Failed, Some("lost"))), Outcome::Failed);
        assert_eq!(after(Err(anyhow::anyhow!("no room"))), Outcome::Failed);
        assert_eq!(settled(&Err(anyhow::anyhow!("no room")), None), Outcome::Inconclusive);
    }

    #[test]
    fn a_suite_passes_only_if_all_do_and_fails_if_none_does() {
        use Outcome::{Failed, Inconclusive, Passed};
        assert_eq!(of_all(&[Passed, Passed]), Passed);
        assert_eq!(of_all(&[Passed, Inconclusive]), Inconclusive);
        assert_eq!(of_all(&[Passed, Inconclusive, Failed]), Failed);
        assert_eq!(of_all(&[Inconclusive, Inconclusive]), Failed);
        assert_eq!(of_all(&[]), Failed);
    }
}
