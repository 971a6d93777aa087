//! What the service manager is told that started this process: systemd, for a unit of `Type=notify`.
//!
//! Owns the words and the rhythm of the watchdog; whether the instance makes progress is its caller's to find out. Without
//! `NOTIFY_SOCKET` nobody is told anything, and without `WATCHDOG_USEC` nobody waits for a sign of life.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// Signs of life in the time in which systemd wants one: two may be late.
const BEATS: u32 = 3;

/// Clients are served from now on.
pub fn serving() {
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// From here on this process only ends. systemd then expects no sign of life any more.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping: turns end, leadership moves")]);
}

/// Gives signs of life until `shutdown`, each after `progress` has said that there is some. While it says no, or nothing at
/// all, none is given, and systemd starts this process again.
pub async fn watchdog<F: Future<Output = bool>>(progress: impl FnMut() -> F, shutdown: CancellationToken) {
    match sd_notify::watchdog_enabled() {
        Some(limit) => beat(limit, progress, || tell(&[NotifyState::Watchdog]), shutdown).await,
        None => shutdown.cancelled().await,
    }
}

async fn beat<F: Future<Output = bool>>(
    limit: Duration,
    mut progress: impl FnMut() -> F,
    mut alive: impl FnMut(),
    shutdown: CancellationToken,
) {
    // An interval of nothing is a panic; systemd's least is far above it.
    let every = (limit / BEATS).max(Duration::from_millis(1));
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_alive = true;
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let is_alive = timeout(every, progress()).await.unwrap_or(false);
        if is_alive {
            alive();
        } else if was_alive {
            tracing::error!(?limit, "no progress: without any within the limit the service manager ends this process");
        }
        was_alive = is_alive;
    }
}

fn tell(words: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(words) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// How many signs of life there are in ten times the limit.
    async fn beats<F: Future<Output = bool>>(progress: impl FnMut() -> F) -> u32 {
        let (count, shutdown) = (Cell::new(0), CancellationToken::new());
        let beating = beat(LIMIT, progress, || count.set(count.get() + 1), shutdown.clone());
        tokio::join!(beating, async {
            tokio::time::sleep(10 * LIMIT).await;
            shutdown.cancel();
        });
        count.get()
    }

    #[tokio::test(start_paused = true)]
    async fn progress_is_told_well_within_the_limit() {
        let told = beats(async || true).await;
        assert!((30..=31).contains(&told), "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_progress_nothing_is_told() {
        assert_eq!(beats(async || false).await, 0);
        assert_eq!(beats(std::future::pending::<bool>).await, 0, "no answer is no progress");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hitch_is_over_when_it_is_over() {
        let asked = Cell::new(0);
        let told = beats(async || {
            asked.set(asked.get() + 1);
            asked.get() % 2 == 0
        })
        .await;
        assert!((14..=16).contains(&told), "{told}");
    }
}
