//! Which faults come when. Pure.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::Kind;

/// Quiet time before each fault, and how long each lasts, in milliseconds.
const QUIET_MS: std::ops::Range<u64> = 300..1500;
const LASTS_MS: std::ops::Range<u64> = 800..4500;
/// What a fault is given for its end: instances that start again, a leader that is elected.
const RECOVERY_MS: u64 = 1000;

const ONE_IN: u32 = 4;

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// From the end of the one before.
    pub quiet_ms: u64,
    pub kind: Kind,
    pub lasts_ms: u64,
    /// Done at the same time, in the background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<Kind>,
    /// Whatever else is to be chosen - an instance, a link - is chosen by it.
    pub choice: u64,
}

impl Step {
    pub fn quiet(&self) -> Duration {
        Duration::from_millis(self.quiet_ms)
    }

    pub fn lasts(&self) -> Duration {
        Duration::from_millis(self.lasts_ms)
    }
}

/// What is going to be done, as it is written down before it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    pub seed: u64,
    pub instances: usize,
    pub steps: Vec<Step>,
}

impl Schedule {
    /// As many faults as fit into `time`, at least one. Each kind comes once before any comes twice.
    pub fn draw(seed: u64, instances: usize, kinds: &[Kind], time: Duration) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut steps, mut bag, mut left) = (Vec::new(), Vec::new(), time.as_millis());
        while !kinds.is_empty() {
            if bag.is_empty() {
                bag = kinds.to_vec();
                bag.shuffle(&mut rng);
            }
            let Some(kind) = bag.pop() else { break };
            let step = Step {
                quiet_ms: rng.random_range(QUIET_MS),
                kind,
                lasts_ms: rng.random_range(LASTS_MS),
                beside: beside(kind, kinds, &mut rng),
                choice: rng.random(),
            };
            let takes = u128::from(step.quiet_ms + step.lasts_ms + RECOVERY_MS);
            if takes > left && !steps.is_empty() {
                break;
            }
            left = left.saturating_sub(takes);
            steps.push(step);
        }
        Self { seed, instances, steps }
    }
}

/// One fault in four has another beside it, which takes no instance away.
fn beside(kind: Kind, kinds: &[Kind], rng: &mut StdRng) -> Option<Kind> {
    let background: Vec<Kind> = kinds.iter().copied().filter(|other| other.is_background() && *other != kind).collect();
    // Drawn in any case, so that what comes after does not depend on what can be done here.
    let (wanted, which) = (rng.random_ratio(1, ONE_IN), rng.random::<u32>());
    let which = background.get(which as usize % background.len().max(1)).copied();
    // Tracing lasts as long as the process does, and is in the way of whoever ends it.
    which.filter(|other| wanted && (*other != Kind::SlowFsync || kind.spares_processes()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MINUTES: Duration = Duration::from_secs(600);

    #[test]
    fn the_same_seed_gives_the_same_schedule_and_another_another() {
        let draw = |seed| Schedule::draw(seed, 3, &Kind::ALL, MINUTES);
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7).steps, draw(8).steps);
    }

    #[test]
    fn each_kind_comes_before_any_comes_twice() {
        let schedule = Schedule::draw(1, 3, &Kind::ALL, MINUTES);
        let kinds: Vec<Kind> = schedule.steps.iter().map(|step| step.kind).collect();
        assert!(kinds.len() >= 2 * Kind::ALL.len(), "{} faults in ten minutes", kinds.len());
        for round in kinds.chunks(Kind::ALL.len()) {
            assert_eq!(round.iter().collect::<BTreeSet<_>>().len(), round.len());
        }
    }

    #[test]
    fn all_of_it_fits_into_the_time_unless_it_is_a_single_fault() {
        let schedule = Schedule::draw(3, 3, &[Kind::KillOne], MINUTES);
        let takes: u64 = schedule.steps.iter().map(|step| step.quiet_ms + step.lasts_ms + RECOVERY_MS).sum();
        assert!(u128::from(takes) <= MINUTES.as_millis());
        assert_eq!(Schedule::draw(3, 3, &[Kind::KillOne], Duration::ZERO).steps.len(), 1);
        assert_eq!(Schedule::draw(3, 3, &[], MINUTES).steps, []);
    }

    #[test]
    fn some_faults_have_another_beside_them_that_takes_no_instance_away() {
        let schedule = Schedule::draw(1, 3, &Kind::ALL, MINUTES);
        let beside: Vec<(Kind, Kind)> =
            schedule.steps.iter().filter_map(|step| Some((step.kind, step.beside?))).collect();
        assert!(beside.len() > schedule.steps.len() / 8, "{} of {}", beside.len(), schedule.steps.len());
        assert!(beside.iter().all(|(kind, other)| other.is_background() && kind != other));
    }

    #[test]
    fn a_schedule_reads_back_as_written() {
        let schedule = Schedule::draw(3, 3, &Kind::ALL, MINUTES);
        let text = serde_json::to_string(&schedule).unwrap();
        assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule);
        assert!(text.contains(r#""kind":"isolate-leader""#), "{text}");
    }
}
