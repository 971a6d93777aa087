//! The one place where this crate reads the time of day: commands carry it from here into the state machine.
//!
//! The time of day is set by others, and may jump. What the group keeps for a day must not be gone because one machine's
//! clock jumped by two: a repeated idempotency key would be done again. So what a leader stamps follows its time of day,
//! but runs no more than [`FASTEST`] times as fast as time passes, from the last replicated time that this process knows to
//! have been fresh: its own stamp, or what it applied while it heard another leader. A jump back needs nothing here, since
//! the replicated clock never runs backwards: it stands still until the time of day has come up to it.
//!
//! What this cannot see is a clock that is wrong at the first start after all instances were down, or of one alone: the
//! replicated time is then as old as the outage was long, and the time of day is all there is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;

use crate::group::Group;
use crate::state_machine::read;

/// What is kept for a day is kept for half a day at least, whatever the clocks do.
const FASTEST: u32 = 2;
/// How far the time of day may be ahead before operators are told.
const ODD: Duration = Duration::from_secs(10);
/// How often an instance that follows looks at the replicated time. What it knows is as old as this when it begins to lead.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What to stamp commands with.
#[derive(Debug, Default)]
pub(crate) struct Clock(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// A replicated time in milliseconds, and when it was fresh, by [`uptime`].
    known: Option<(u64, Duration)>,
    ahead: bool,
}

impl Clock {
    /// Unix time in milliseconds for a command that is proposed now.
    pub(crate) fn stamp(&self) -> u64 {
        self.stamp_at(time_of_day(), uptime())
    }

    /// The replicated time is `ms` now.
    fn observe(&self, ms: u64) {
        self.observe_at(ms, uptime());
    }

    fn observe_at(&self, ms: u64, at: Duration) {
        self.0.lock().known = Some((ms, at));
    }

    fn stamp_at(&self, time_of_day: u64, at: Duration) -> u64 {
        let mut state = self.0.lock();
        let limit =
            state.known.map_or(u64::MAX, |(ms, since)| ms.saturating_add(millis(at.saturating_sub(since) * FASTEST)));
        let stamp = time_of_day.min(limit);
        if state.known.is_none_or(|(ms, _)| stamp > ms) {
            state.known = Some((stamp, at));
        }
        let ahead = time_of_day - stamp;
        if ahead < millis(ODD) {
            state.ahead = false;
        } else if !std::mem::replace(&mut state.ahead, true) {
            tracing::warn!(
                ahead_ms = ahead,
                "this machine's time of day jumped ahead; the cluster's time follows it slowly"
            );
        }
        stamp
    }
}

/// Keeps the clock of an instance that follows at the replicated time; runs until it is aborted.
pub(crate) async fn follow(group: Group) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let status = group.status_now();
        // Without a leader that lives, what was applied may be as old as the last one.
        if status.is_leader || !status.has_quorum {
            continue;
        }
        let (_, tables) = group.state().tables();
        match read::clock(&tables) {
            // Nothing was ever stamped.
            Ok(0) => {}
            Ok(ms) => group.clock().observe(ms),
            Err(error) => tracing::debug!(%error, "the replicated time cannot be read"),
        }
    }
}

/// Unix time in milliseconds.
#[expect(clippy::disallowed_methods, reason = "the leader stamps commands with it; nothing else may ask")]
fn time_of_day() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Time since the machine started, suspension included: a laptop that slept has not jumped.
fn uptime() -> Duration {
    // It cannot fail for a clock that Linux has had since 2.6.39.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 60 * 60 * 1000;
    const START: u64 = 20_000 * DAY;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_clock_that_runs_as_time_does_is_taken_as_it_is() {
        let clock = Clock::default();
        for second in 0..100 {
            assert_eq!(clock.stamp_at(START + second * 1000, at(500 + second)), START + second * 1000);
        }
    }

    #[test]
    fn a_leader_whose_time_of_day_jumps_ahead_takes_as_long_as_the_jump_to_follow() {
        let clock = Clock::default();
        clock.stamp_at(START, at(500));
        // It is asked often, which must not add up to more.
        let stamps: Vec<u64> = (1..=100)
            .map(|n| clock.stamp_at(START + 2 * DAY + n * 100, at(500) + Duration::from_millis(n * 100)))
            .collect();
        assert_eq!(stamps.last(), Some(&(START + 20_000)));
        assert!(stamps.is_sorted());
        assert_eq!(clock.stamp_at(START + 2 * DAY, at(500 + 2 * DAY / 1000)), START + 2 * DAY);
    }

    #[test]
    fn a_jump_back_and_forth_gains_nothing() {
        let clock = Clock::default();
        clock.stamp_at(START, at(500));
        assert_eq!(clock.stamp_at(START - DAY, at(501)), START - DAY);
        assert_eq!(clock.stamp_at(START + DAY, at(502)), START + 4000);
    }

    #[test]
    fn a_new_leader_whose_clock_is_wrong_goes_on_from_what_it_heard() {
        let clock = Clock::default();
        clock.observe_at(START, at(500));
        clock.observe_at(START + 1000, at(501));
        assert_eq!(clock.stamp_at(START + 2 * DAY, at(502)), START + 3000);
    }

    #[test]
    fn after_an_outage_of_all_the_time_of_day_is_all_there_is() {
        assert_eq!(Clock::default().stamp_at(START + 2 * DAY, at(500)), START + 2 * DAY);
    }
}
