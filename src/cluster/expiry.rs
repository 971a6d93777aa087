//! Ends the epochs of instances that fell silent. Runs everywhere, acts where the leader is.
//!
//! The leader counts from the moment it saw a renewal applied, on its own monotonic clock. After a change of leader every
//! instance gets the full time again; a leader that was itself held up gives everyone more time before it accuses
//! anybody, and confirms that it still leads before it proposes. The command is a compare-and-set, so a renewal that
//! comes first wins.

use std::collections::BTreeMap;
use std::time::Duration;

use openclaw_proto::state::{ExpireInstance, ForgetInstance, Instance, command};
use openclaw_raft::Node;
use openclaw_raft::planted::{Bug, planted};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// The leader's side of an instance session's time.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Silence after which an epoch ends.
    pub wait: Duration,
    /// Runners that a turn may lose before it fails.
    pub max_attempts: u32,
}

/// Runs until `shutdown`.
pub async fn run(node: Node, options: Options, shutdown: CancellationToken) {
    let step = (options.wait / 20).max(Duration::from_millis(10));
    let mut ticks = interval(step);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = Watch::new(if planted(Bug::EarlyLease) { options.wait / 4 } else { options.wait });
    let mut last = Instant::now();
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let now = Instant::now();
        let late = now.duration_since(last).saturating_sub(step);
        last = now;
        let status = node.status();
        if !status.is_leader {
            watch.forget();
            continue;
        }
        let Ok(rows) = node.read_local().instances() else { continue };
        for overdue in watch.observe(status.term, &rows, now, late) {
            expire(&node, &overdue, status.term, options).await;
        }
        for row in rows.iter().filter(|row| !row.live) {
            if !status.members.iter().any(|member| member.instance_id.as_str() == row.instance_id) {
                let command = command::Kind::ForgetInstance(ForgetInstance { instance_id: row.instance_id.clone() });
                if let Err(error) = node.propose(command, options.wait).await {
                    tracing::debug!(%error, instance = row.instance_id, "cannot forget a removed instance");
                }
            }
        }
    }
}

async fn expire(node: &Node, overdue: &Instance, term: u64, options: Options) {
    // A quorum round that begins after the deadline: only then is this instance sure to have led until then, and has
    // every renewal that was acknowledged before.
    let Ok(view) = node.read_linearizable(options.wait).await else { return };
    let current = view.instances().unwrap_or_default();
    let unchanged = current.iter().any(|row| {
        row.instance_id == overdue.instance_id
            && row.live
            && (row.epoch, row.renewal) == (overdue.epoch, overdue.renewal)
    });
    if !unchanged || node.status().term != term {
        return;
    }
    tracing::warn!(instance = overdue.instance_id, epoch = overdue.epoch, "an instance fell silent: its epoch ends");
    let command = command::Kind::ExpireInstance(ExpireInstance {
        instance_id: overdue.instance_id.clone(),
        epoch: overdue.epoch,
        renewal: overdue.renewal,
        term,
        max_attempts: options.max_attempts,
    });
    if let Err(error) = node.propose(command, options.wait).await {
        tracing::warn!(%error, instance = overdue.instance_id, "cannot end the epoch");
    }
}

/// Deadlines of the instances, as one leader in one term counts them.
struct Watch {
    wait: Duration,
    term: Option<u64>,
    deadlines: BTreeMap<String, Deadline>,
}

struct Deadline {
    epoch: u64,
    renewal: u64,
    at: Instant,
}

impl Watch {
    fn new(wait: Duration) -> Self {
        Self { wait, term: None, deadlines: BTreeMap::new() }
    }

    fn forget(&mut self) {
        self.term = None;
        self.deadlines.clear();
    }

    /// Takes in the rows as of `now`, and names the instances whose time has passed.
    ///
    /// `late`: how much later than planned this instance looks, since it may have been held up itself.
    fn observe(&mut self, term: u64, rows: &[Instance], now: Instant, late: Duration) -> Vec<Instance> {
        if self.term != Some(term) {
            self.deadlines.clear();
            self.term = Some(term);
        }
        if late > self.wait / 4 {
            for deadline in self.deadlines.values_mut() {
                deadline.at = deadline.at.max(now + self.wait / 2);
            }
        }
        let live: Vec<&Instance> = rows.iter().filter(|row| row.live).collect();
        self.deadlines.retain(|id, _| live.iter().any(|row| row.instance_id == *id));
        let mut overdue = Vec::new();
        for row in live {
            let fresh = Deadline { epoch: row.epoch, renewal: row.renewal, at: now + self.wait };
            let known = self.deadlines.entry(row.instance_id.clone());
            let deadline = known
                .and_modify(|known| {
                    if (known.epoch, known.renewal) != (row.epoch, row.renewal) {
                        *known = Deadline { epoch: row.epoch, renewal: row.renewal, at: now + self.wait };
                    }
                })
                .or_insert(fresh);
            if deadline.at <= now {
                overdue.push(row.clone());
            }
        }
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(3);

    fn row(id: &str, renewal: u64) -> Instance {
        Instance { instance_id: id.into(), epoch: 7, renewal, live: true, ..Instance::default() }
    }

    fn names(overdue: &[Instance]) -> Vec<&str> {
        overdue.iter().map(|row| row.instance_id.as_str()).collect()
    }

    #[test]
    fn only_an_instance_that_stopped_renewing_is_overdue() {
        let (mut watch, start) = (Watch::new(WAIT), Instant::now());
        assert!(watch.observe(1, &[row("a", 1), row("b", 1)], start, Duration::ZERO).is_empty());
        assert!(watch.observe(1, &[row("a", 2), row("b", 1)], start + WAIT / 2, Duration::ZERO).is_empty());
        let overdue = watch.observe(1, &[row("a", 3), row("b", 1)], start + WAIT, Duration::ZERO);
        assert_eq!(names(&overdue), ["b"]);
    }

    #[test]
    fn a_new_leader_gives_everyone_the_full_time() {
        let (mut watch, start) = (Watch::new(WAIT), Instant::now());
        watch.observe(1, &[row("a", 1)], start, Duration::ZERO);
        assert!(watch.observe(2, &[row("a", 1)], start + WAIT, Duration::ZERO).is_empty());
        assert!(
            watch.observe(2, &[row("a", 1)], start + WAIT * 2 - Duration::from_millis(1), Duration::ZERO).is_empty()
        );
        assert_eq!(names(&watch.observe(2, &[row("a", 1)], start + WAIT * 2, Duration::ZERO)), ["a"]);
    }

    #[test]
    fn a_leader_that_was_held_up_accuses_nobody_at_once() {
        let (mut watch, start) = (Watch::new(WAIT), Instant::now());
        watch.observe(1, &[row("a", 1)], start, Duration::ZERO);
        let woke = start + WAIT * 3;
        assert!(watch.observe(1, &[row("a", 1)], woke, WAIT * 3).is_empty());
        assert_eq!(names(&watch.observe(1, &[row("a", 1)], woke + WAIT / 2, Duration::ZERO)), ["a"]);
    }

    #[test]
    fn an_ended_epoch_is_not_watched() {
        let (mut watch, start) = (Watch::new(WAIT), Instant::now());
        let mut gone = row("a", 1);
        watch.observe(1, &[gone.clone()], start, Duration::ZERO);
        gone.live = false;
        assert!(watch.observe(1, &[gone], start + WAIT * 2, Duration::ZERO).is_empty());
    }
}
