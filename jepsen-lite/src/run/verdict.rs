//! What a run found, as it stands in `verdict.json` beside its history.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::plan::Plan;
use crate::checkers::Check;
use crate::history::{Event, What};

/// Of a whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    pub outcome: Outcome,
    pub plan: Plan,
    /// How long the clients were at work.
    pub seconds: f64,
    pub faults: Vec<Fault>,
    /// By kind, as the history names them.
    pub operations: BTreeMap<String, Counts>,
    pub checks: Vec<Check>,
    /// What was wrong beside the checks: a fault that never happened, too few operations, a cluster that did not come back in time.
    pub problems: Vec<String>,
    /// Which workloads were not judged, or not by what is there in the end; it is among the problems too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unjudged: Vec<String>,
    /// Lines of the instances' logs that tell of a panic.
    pub alarms: Vec<String>,
    /// The command that does the same again.
    pub rerun: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Every checker passed, every fault happened, and enough operations succeeded.
    Passed,
    /// Something was found that must never be.
    Failed,
    /// Nothing was found, and the run proves too little; never a pass.
    Inconclusive,
}

/// Anomalies that a deadline decides, and so a machine that is too busy may cause.
const LATE: [&str; 2] = ["hung", "unowned"];

impl Verdict {
    /// Whether something was found, and all of it may come from a machine that is too slow: what was late, and problems, which
    /// are waits that ended. Never so what must not be however slow a machine is: anything lost, doubled, stale or out of order,
    /// and an instance that ends or starts as it must not. Nor when something was not judged, which might have been found in it.
    pub fn is_late_alone(&self) -> bool {
        let mut found = self.checks.iter().flat_map(|check| &check.found);
        self.outcome == Outcome::Failed
            && self.alarms.is_empty()
            && self.unjudged.is_empty()
            && found.all(|one| LATE.contains(&one.anomaly.as_str()))
    }
}

/// How operations ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub ok: u64,
    /// Certainly without effect.
    pub fail: u64,
    /// Nobody knows.
    pub info: u64,
}

/// One fault, as it was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    pub number: u32,
    /// As `list` has it.
    pub kind: String,
    /// To whom, and how; or why not.
    pub detail: String,
    pub installed: bool,
    /// From the fault to the next acknowledged write that was sent after it; while it lasted, if a majority was left.
    pub write_after_ms: Option<f64>,
    /// From the healing to the same; absent: none came in time.
    pub recovery_ms: Option<f64>,
}

/// How operations ended, by kind. What has no end in the history is like what nobody knows.
pub fn count(events: &[Event]) -> BTreeMap<String, Counts> {
    let mut open: BTreeMap<u64, &'static str> = BTreeMap::new();
    let mut counts: BTreeMap<String, Counts> = BTreeMap::new();
    for event in events {
        match &event.what {
            What::Invoke { op, call, .. } => {
                open.insert(*op, call.name());
            }
            What::Ok { op, .. } => {
                open.remove(op).into_iter().for_each(|name| counts.entry(name.to_owned()).or_default().ok += 1);
            }
            What::Fail { op, .. } => {
                open.remove(op).into_iter().for_each(|name| counts.entry(name.to_owned()).or_default().fail += 1);
            }
            What::Info { .. } | What::Fault { .. } | What::Leader { .. } | What::Owner { .. } => {}
        }
    }
    for name in open.into_values() {
        counts.entry(name.to_owned()).or_default().info += 1;
    }
    counts
}
