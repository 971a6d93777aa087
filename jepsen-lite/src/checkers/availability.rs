//! An instance that is up answers: whoever has no quorum says so, and lets nobody wait.

use std::time::Duration;

use serde_json::json;

use super::{Check, Found};
use crate::figures::Summary;

/// One write to an instance that was up all the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub op: u64,
    pub instance: String,
    pub took: Duration,
    /// How long the fault that was in force had been so when the write was sent; absent: there was none.
    pub into_fault: Option<Duration>,
    /// Whether it was answered with a refusal, by 503.
    pub refused: bool,
}

/// How soon an answer has to come.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// To a write that was on its way when something broke.
    pub at_most: Duration,
    /// So long after something broke an instance knows, and then
    pub notices: Duration,
    /// an answer takes at most this.
    pub then: Duration,
}

/// Judges the writes.
pub fn check(probes: &[Probe], bounds: Bounds) -> Check {
    let late = |probe: &&Probe| {
        let knows = probe.into_fault.is_some_and(|since| since >= bounds.notices);
        probe.took > if knows { bounds.then } else { bounds.at_most }
    };
    let found = probes
        .iter()
        .filter(late)
        .map(|probe| {
            let since = probe.into_fault.map(|since| format!(", {:.1} s into a fault", since.as_secs_f64()));
            let (took, since) = (probe.took.as_secs_f64(), since.unwrap_or_default());
            let message = format!("{} took {took:.1} s for an answer{since}", probe.instance);
            Found { anomaly: "hung".to_owned(), message, ops: vec![probe.op] }
        })
        .collect();
    let took = |is: &dyn Fn(&Probe) -> bool| {
        Summary::of(&probes.iter().filter(|probe| is(probe)).map(|probe| probe.took).collect::<Vec<_>>())
    };
    let figures = json!({
        "probes": probes.len(),
        "refused": took(&|probe| probe.refused),
        "other": took(&|probe| !probe.refused),
    });
    Check { checker: "availability".to_owned(), decided: true, figures, found }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds =
        Bounds { at_most: Duration::from_secs(6), notices: Duration::from_secs(2), then: Duration::from_secs(2) };

    fn probe(took: u64, into_fault: Option<u64>) -> Probe {
        let (took, into_fault) = (Duration::from_secs(took), into_fault.map(Duration::from_secs));
        Probe { op: 1, instance: "node-1".into(), took, into_fault, refused: true }
    }

    #[test]
    fn quick_refusals_and_writes_that_were_on_their_way_pass() {
        assert!(check(&[probe(1, Some(3)), probe(5, Some(1)), probe(5, None)], BOUNDS).passed());
    }

    #[test]
    fn planted_an_instance_that_lets_its_clients_hang() {
        assert_eq!(check(&[probe(3, Some(3)), probe(7, None), probe(7, Some(1))], BOUNDS).found.len(), 3);
    }
}
