//! How long writes were away, by kind of fault: of one run, or of many together. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::figures::Summary;
use crate::run::verdict::{Counts, Fault, Verdict};

/// All faults of one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Availability {
    pub kind: String,
    /// How often it was done, and how often it could not be.
    pub installed: usize,
    pub skipped: usize,
    /// From the fault to the next acknowledged write that was sent after it; only of those that had one while they lasted.
    pub write_after: Summary,
    /// From the healing to the same.
    pub recovery: Summary,
    /// After how many of them no write was acknowledged in time.
    pub without_recovery: usize,
}

/// By kind, in the order of their names.
pub fn availability<'f>(faults: impl Iterator<Item = &'f Fault>) -> Vec<Availability> {
    let mut kinds: BTreeMap<&str, Vec<&Fault>> = BTreeMap::new();
    for fault in faults {
        kinds.entry(&fault.kind).or_default().push(fault);
    }
    let of_kind = |(kind, faults): (&str, Vec<&Fault>)| {
        let done: Vec<&Fault> = faults.iter().copied().filter(|fault| fault.installed).collect();
        Availability {
            kind: kind.to_owned(),
            installed: done.len(),
            skipped: faults.len() - done.len(),
            write_after: summary(done.iter().filter_map(|fault| fault.write_after_ms)),
            recovery: summary(done.iter().filter_map(|fault| fault.recovery_ms)),
            without_recovery: done.iter().filter(|fault| fault.recovery_ms.is_none()).count(),
        }
    };
    kinds.into_iter().map(of_kind).collect()
}

/// A file may hold any number; one that is no duration is left out.
fn summary(ms: impl Iterator<Item = f64>) -> Summary {
    let samples: Vec<Duration> = ms.filter_map(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok()).collect();
    Summary::of(&samples)
}

/// All operations together.
pub fn total<'v>(verdicts: impl Iterator<Item = &'v Verdict>) -> Counts {
    let mut total = Counts::default();
    for Counts { ok, fail, info } in verdicts.flat_map(|verdict| verdict.operations.values()) {
        total.ok += ok;
        total.fail += fail;
        total.info += info;
    }
    total
}

/// How often each anomaly was found.
pub fn anomalies<'v>(verdicts: impl Iterator<Item = &'v Verdict>) -> BTreeMap<&'v str, usize> {
    let mut kinds = BTreeMap::new();
    for found in verdicts.flat_map(|verdict| &verdict.checks).flat_map(|check| &check.found) {
        *kinds.entry(found.anomaly.as_str()).or_default() += 1;
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_summed_up_by_kind_and_what_never_came_back_is_counted() {
        let fault = |kind: &str, installed, write_after_ms, recovery_ms| Fault {
            number: 1,
            kind: kind.into(),
            detail: String::new(),
            installed,
            write_after_ms,
            recovery_ms,
        };
        let faults = [
            fault("ring", true, Some(300.0), Some(5.0)),
            fault("kill-all", true, None, None),
            fault("ring", true, Some(100.0), Some(7.0)),
            fault("ring", false, None, None),
            fault("ring", true, Some(-1.0), Some(f64::NAN)),
        ];
        let [kill, ring] = &availability(faults.iter())[..] else { panic!("two kinds") };
        assert_eq!((kill.kind.as_str(), kill.installed, kill.without_recovery), ("kill-all", 1, 1));
        assert_eq!(kill.write_after, Summary::default());
        assert_eq!((ring.installed, ring.skipped, ring.without_recovery), (3, 1, 0));
        assert_eq!((ring.write_after.count, ring.write_after.p50_ms, ring.write_after.max_ms), (2, 100.0, 300.0));
        assert_eq!((ring.recovery.count, ring.recovery.max_ms), (2, 7.0));
    }
}
