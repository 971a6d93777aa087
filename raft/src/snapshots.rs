//! When a snapshot is due.
//!
//! A snapshot lets the log be cut, and costs one pass over the whole state. So it is due when the log has grown, by
//! entries or by bytes, and not before the last one has paid for itself: a large state is not written over and over by
//! a busy instance that has better things to do.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::group::Group;
use crate::storage::Counters;

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Bytes of log between two snapshots, if those are not many entries before.
const MAX_LOG_BYTES: u64 = 256 << 20;
/// After which one that did not come is not waited for any more.
const LOST: Duration = Duration::from_secs(10 * 60);
/// Of the time, at most this part is spent with snapshots.
const SHARE: u32 = 20;

/// How far the log was, and when, at the last snapshot.
struct Last {
    index: u64,
    bytes: u64,
    began: Instant,
    took: Duration,
}

impl Last {
    fn is_due(&self, index: u64, bytes: u64, every: u64, now: Instant) -> bool {
        let grown = index.saturating_sub(self.index) >= every || bytes.saturating_sub(self.bytes) >= MAX_LOG_BYTES;
        grown && index > self.index && now.duration_since(self.began) >= self.took * SHARE
    }
}

/// Asks for a snapshot every `every` entries, about; runs until it is aborted.
pub(crate) async fn run(group: Group, counters: Arc<Counters>, every: u64) {
    let status = group.status_now();
    let mut last = Last { index: status.snapshot_index, bytes: 0, began: Instant::now(), took: Duration::ZERO };
    let mut under_way: Option<Instant> = None;
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (status, bytes) = (group.status_now(), counters.bytes_appended.load(Relaxed));
        if status.snapshot_index > last.index {
            // Built here, or received from the leader.
            last.index = status.snapshot_index;
            if let Some(began) = under_way.take() {
                last.took = Instant::now().duration_since(began);
            }
        }
        let now = Instant::now();
        if under_way.is_none_or(|began| now.duration_since(began) > LOST)
            && last.is_due(status.applied_index, bytes, every, now)
        {
            if let Err(stopped) = group.raft().trigger().snapshot().await {
                tracing::debug!(%stopped, "no snapshot");
                return;
            }
            (last.began, last.bytes) = (now, bytes);
            under_way = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_due_when_the_log_has_grown_and_the_last_one_has_paid_for_itself() {
        let began = Instant::now();
        let last = Last { index: 1000, bytes: 5, began, took: Duration::from_secs(1) };
        let (soon, later) = (began + Duration::from_secs(19), began + Duration::from_secs(20));
        assert!(last.is_due(1100, 5, 100, later));
        assert!(!last.is_due(1099, 5, 100, later));
        assert!(!last.is_due(1100, 5, 100, soon));
        assert!(last.is_due(1001, 5 + MAX_LOG_BYTES, 100, later), "few entries, many bytes");
        assert!(!last.is_due(1000, 5 + MAX_LOG_BYTES, 100, later), "nothing new is applied");
    }
}
