//! Where the leader is: sees to it that every channel account has an owner, and goes back to the instance that should run
//! it once that one has been there for a while. What fits where is decided by the state machine, in the same command.

use std::time::Duration;

use openclaw_proto::state::{Instance, Lease, PlaceLeases, command};
use openclaw_raft::Node;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(5);

/// Runs until `shutdown`.
pub async fn run(node: Node, failback_after: Duration, shutdown: CancellationToken) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        if !node.status().is_leader {
            continue;
        }
        let view = node.read_local();
        let (Ok(leases), Ok(instances)) = (view.leases(), view.instances()) else { continue };
        if is_settled(&leases, &instances) {
            continue;
        }
        let failback_after_ms = u64::try_from(failback_after.as_millis()).unwrap_or(u64::MAX);
        let command = command::Kind::PlaceLeases(PlaceLeases { failback_after_ms });
        if let Some(Err(error)) = shutdown.run_until_cancelled(node.propose(command, DEADLINE)).await {
            tracing::debug!(%error, "channels not placed");
        }
    }
}

/// Whether every account that somebody can run has an owner, and the one that it prefers if that one lives: then there is
/// nothing to commit.
fn is_settled(leases: &[Lease], instances: &[Instance]) -> bool {
    let live = || instances.iter().filter(|row| row.live);
    leases.iter().all(|lease| {
        let able = || live().filter(|row| row.accounts.contains(&lease.account));
        let preferred = || able().filter(|row| !row.draining && row.preferred.contains(&lease.account));
        let owned = able().any(|row| row.instance_id == lease.owner && row.epoch == lease.epoch);
        let at_home = preferred().next().is_none() || preferred().any(|row| row.instance_id == lease.owner);
        (owned || able().next().is_none()) && (at_home || !lease.moving_to.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, preferred: bool) -> Instance {
        let account = "telegram:default".to_owned();
        Instance {
            instance_id: id.into(),
            epoch: 5,
            live: true,
            preferred: preferred.then(|| account.clone()).into_iter().collect(),
            accounts: vec![account],
            ..Instance::default()
        }
    }

    fn lease(owner: &str, moving_to: &str) -> Lease {
        Lease {
            account: "telegram:default".into(),
            owner: owner.into(),
            epoch: 5,
            moving_to: moving_to.into(),
            ..Lease::default()
        }
    }

    #[test]
    fn nothing_is_committed_while_everything_is_where_it_should_be() {
        let two = [instance("a", true), instance("b", false)];
        assert!(is_settled(&[], &two));
        assert!(is_settled(&[lease("a", "")], &two));
        assert!(!is_settled(&[lease("b", "")], &two), "a prefers it");
        assert!(is_settled(&[lease("b", "a")], &two), "it is on its way");
        assert!(!is_settled(&[lease("", "")], &two));
        assert!(!is_settled(&[Lease { epoch: 4, ..lease("a", "") }], &two), "of an epoch before");
        assert!(is_settled(&[lease("", "")], &[]), "nobody can run it");
        let draining = [Instance { draining: true, ..instance("a", true) }, instance("b", false)];
        assert!(is_settled(&[lease("b", "")], &draining));
    }
}
