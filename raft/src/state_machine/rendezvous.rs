//! Which instance a session's turns go to when nobody was named.

use sha2::{Digest, Sha256};

/// The instance with the highest weight for this session: the same on every instance, spread evenly over sessions, and
/// moved for few sessions when an instance comes or goes.
///
/// Source: highest random weight, Thaler and Ravishankar 1998.
pub fn rendezvous<'a>(session_key: &str, instances: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    instances.into_iter().max_by_key(|instance| (weight(session_key, instance), *instance))
}

fn weight(session_key: &str, instance: &str) -> [u8; 32] {
    // The zero byte keeps ("ab", "c") and ("a", "bc") apart; neither id contains one.
    Sha256::new().chain_update(session_key).chain_update([0]).chain_update(instance).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_does_not_depend_on_the_order_of_the_instances() {
        assert_eq!(rendezvous("s", ["a", "b", "c"]), rendezvous("s", ["c", "b", "a"]));
        assert_eq!(rendezvous("s", []), None);
        assert_eq!(rendezvous("s", ["a"]), Some("a"));
    }

    /// The choice decides who runs a turn, on all instances alike: releases that run together must agree on it.
    #[test]
    fn the_choice_stays_the_same_between_releases() {
        let chosen: Vec<_> =
            (0..8).map(|n| rendezvous(&format!("agent:main:{n}"), ["n1", "n2", "n3"]).unwrap()).collect();
        assert_eq!(chosen, ["n1", "n2", "n3", "n2", "n1", "n2", "n3", "n3"]);
    }

    #[test]
    fn sessions_spread_and_only_those_of_a_lost_instance_move() {
        let sessions: Vec<_> = (0..3000).map(|n| format!("agent:main:{n}")).collect();
        for instance in ["n1", "n2", "n3"] {
            let share = sessions.iter().filter(|key| rendezvous(key, ["n1", "n2", "n3"]) == Some(instance)).count();
            assert!((850..1150).contains(&share), "{instance} has {share} of 3000");
        }
        for key in &sessions {
            let before = rendezvous(key, ["n1", "n2", "n3"]);
            if before != Some("n3") {
                assert_eq!(rendezvous(key, ["n1", "n2"]), before);
            }
        }
    }
}
