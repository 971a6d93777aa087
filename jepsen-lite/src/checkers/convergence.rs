//! All instances hold the same: wherever the same log index was applied, the hash of the state is the same.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{Check, Found};

/// What one instance said it held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub instance: String,
    pub applied_index: u64,
    pub sha256: String,
}

/// Whether every one of `instances` was compared with every other, directly or by way of third ones.
///
/// An index keeps moving a little, since instances renew their sessions, so that one question to each does not always find
/// all of them at one index.
pub fn is_complete(held: &[Held], instances: usize) -> bool {
    let mut groups: Vec<BTreeSet<&str>> = Vec::new();
    for at_index in by_index(held).values() {
        let mut group: BTreeSet<&str> = at_index.iter().map(|one| one.instance.as_str()).collect();
        groups.retain(|other| {
            let apart = group.is_disjoint(other);
            if !apart {
                group.extend(other);
            }
            apart
        });
        groups.push(group);
    }
    groups.iter().any(|group| group.len() == instances)
}

/// Judges what `instances` instances said.
pub fn check(held: &[Held], instances: usize) -> Check {
    let mut found = Vec::new();
    for (index, at_index) in by_index(held) {
        for pair in at_index.windows(2) {
            let [one, other] = pair else { continue };
            if one.sha256 != other.sha256 {
                let message = format!(
                    "at log index {index} {} holds {} and {} holds {}",
                    one.instance, one.sha256, other.instance, other.sha256
                );
                found.push(Found { anomaly: "diverged".to_owned(), message, ops: Vec::new() });
            }
        }
    }
    let decided = !found.is_empty() || is_complete(held, instances);
    let index = held.iter().map(|one| one.applied_index).max();
    let figures = json!({"instances": instances, "hashes": held.len(), "appliedIndex": index});
    Check { checker: "convergence".to_owned(), decided, figures, found }
}

fn by_index(held: &[Held]) -> BTreeMap<u64, Vec<&Held>> {
    let mut by_index: BTreeMap<u64, Vec<&Held>> = BTreeMap::new();
    for one in held {
        by_index.entry(one.applied_index).or_default().push(one);
    }
    by_index
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(all: &[(&str, u64, &str)]) -> Vec<Held> {
        let one = |(instance, applied_index, sha256): &(&str, u64, &str)| Held {
            instance: (*instance).into(),
            applied_index: *applied_index,
            sha256: (*sha256).into(),
        };
        all.iter().map(one).collect()
    }

    #[test]
    fn equal_hashes_at_one_index_pass() {
        let all = held(&[("a", 7, "x"), ("b", 7, "x"), ("c", 7, "x")]);
        assert!(check(&all, 3).passed());
        assert!(!check(&all[..2], 3).passed(), "the third was not heard");
    }

    #[test]
    fn instances_may_be_compared_by_way_of_each_other() {
        let all = held(&[("a", 7, "x"), ("b", 7, "x"), ("b", 9, "y"), ("c", 9, "y")]);
        assert!(check(&all, 3).passed());
        let apart = held(&[("a", 7, "x"), ("b", 7, "x"), ("c", 9, "y")]);
        assert!(!check(&apart, 3).decided);
        let late = held(&[("a", 1, "w"), ("c", 2, "v"), ("a", 3, "x"), ("b", 3, "x"), ("c", 4, "y"), ("b", 4, "y")]);
        assert!(check(&late, 3).passed());
    }

    #[test]
    fn planted_a_state_that_differs_at_one_index() {
        let all = held(&[("a", 7, "x"), ("b", 7, "z"), ("c", 8, "y")]);
        let check = check(&all, 3);
        assert!(check.decided && check.found.len() == 1, "{check:?}");
    }
}
