//! Who owns a bot account, as the instances tell it: one owner for each fencing token, and tokens that only grow.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Check, Found};

/// What one instance told of one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Who told it.
    pub by: String,
    pub account: String,
    pub owner: Option<String>,
    pub token: u64,
}

/// Judges what was told, in the order in which it was.
pub fn check(told: &[Told]) -> Check {
    let mut found: Vec<Found> = Vec::new();
    let mut add = |anomaly: &str, message: String| {
        found.push(Found { anomaly: anomaly.to_owned(), message, ops: Vec::new() });
    };
    let mut owners: BTreeMap<(&str, u64), &str> = BTreeMap::new();
    let mut newest: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for one in told {
        let last = newest.entry((&one.by, &one.account)).or_default();
        if one.token < *last {
            add("token-fell", format!("{}: {} told token {} after {last}", one.account, one.by, one.token));
        }
        *last = one.token;
        let Some(owner) = &one.owner else { continue };
        let first = owners.entry((&one.account, one.token)).or_insert(owner);
        if *first != owner {
            add("two-owners", format!("{}: token {} is of {first} and of {owner}", one.account, one.token));
        }
    }
    let figures = json!({"told": told.len(), "grants": owners.len()});
    Check { checker: "leases".to_owned(), decided: !told.is_empty(), figures, found }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(all: &[(&str, Option<&str>, u64)]) -> Vec<Told> {
        let one = |(by, owner, token): &(&str, Option<&str>, u64)| Told {
            by: (*by).into(),
            account: "telegram:default".into(),
            owner: owner.map(str::to_owned),
            token: *token,
        };
        all.iter().map(one).collect()
    }

    #[test]
    fn owners_with_growing_tokens_pass() {
        let all =
            told(&[("a", Some("a"), 5), ("b", Some("a"), 5), ("a", None, 5), ("a", Some("b"), 9), ("b", Some("a"), 5)]);
        let check = check(&all);
        assert!(check.passed() && check.figures["grants"] == 2, "{check:?}");
    }

    #[test]
    fn where_nobody_told_anything_nothing_is_shown() {
        assert!(!check(&[]).passed());
    }

    #[test]
    fn planted_a_token_of_two_owners_and_one_that_falls() {
        let two = check(&told(&[("a", Some("a"), 5), ("b", Some("b"), 5)]));
        assert_eq!(two.found[0].anomaly, "two-owners");
        let fell = check(&told(&[("a", Some("a"), 5), ("a", Some("b"), 4)]));
        assert_eq!(fell.found[0].anomaly, "token-fell");
    }
}
