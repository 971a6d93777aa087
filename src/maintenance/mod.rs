//! Periodic chores. Each runs on every instance and acts where it must: retention where the leader is.

use std::time::Duration;

use openclaw_proto::state::{Sweep, command, outcome};
use openclaw_raft::Node;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

/// Between two passes over all that is kept for a time. Retention is a day at least, so an hour more is little.
const SWEEP_EVERY: Duration = Duration::from_secs(60 * 60);
/// Rows that a command looks at: few enough not to be felt by the commands behind it.
const SWEEP_ROWS: u32 = 500;
const SWEEP_DEADLINE: Duration = Duration::from_secs(5);

/// Drops rows whose retention has passed: answers to idempotency keys, and turns that ended long ago.
pub async fn sweep(node: Node, shutdown: CancellationToken) {
    let mut ticks = interval_at(Instant::now() + SWEEP_EVERY, SWEEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let mut more = node.status().is_leader;
        while more {
            let swept = node.propose(command::Kind::Sweep(Sweep { max_rows: SWEEP_ROWS }), SWEEP_DEADLINE);
            more = match shutdown.run_until_cancelled(swept).await {
                Some(Ok(committed)) => {
                    if let outcome::Kind::Swept(swept) = committed.outcome {
                        tracing::debug!(rows = swept.rows, "swept");
                        swept.more
                    } else {
                        tracing::warn!(outcome = ?committed.outcome, "unexpected outcome of a sweep");
                        false
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "not swept");
                    false
                }
                None => return,
            };
        }
    }
}
