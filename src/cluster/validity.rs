//! How long this instance may act as an owner: counted from before the last renewal was sent that was acknowledged, on a
//! clock that also counts the time in which the machine was suspended.
//!
//! The leader waits longer than this before it gives what an instance owns to another, so an instance that stops in time
//! has stopped before anybody else begins. A thread of its own watches the deadline, since a busy or blocked runtime must
//! not miss it. Whoever acts for a channel holds a [`Stretch`]: its token is cancelled shortly before the deadline, and
//! [`Stretch::is_over`] asks the clock itself, for the moment after a pause in which the watcher has not woken yet.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use openclaw_raft::planted::{Bug, planted};
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The watcher looks at least this often: its sleep does not count a suspension.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Time since the machine started, suspension included.
pub fn now() -> Duration {
    // It cannot fail for a clock that Linux has had since 2.6.39; a time that never passes would be the worst answer.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from)
}

/// A time in which this instance is sure to be an owner, without a break.
#[derive(Debug, Clone)]
pub struct Stretch {
    pub epoch: u64,
    /// Cancelled when it is time to stop.
    pub ended: CancellationToken,
    inner: Weak<Inner>,
}

impl Stretch {
    /// Whether it is over by the clock, told or not. Asked right before anything leaves the process.
    pub fn is_over(&self) -> bool {
        self.ended.is_cancelled()
            || self.inner.upgrade().is_none_or(|inner| {
                let state = inner.state.lock();
                state.epoch != self.epoch || now() >= state.stop_at
            })
    }
}

/// The deadline; cheap to clone.
#[derive(Debug, Clone)]
pub struct Validity(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    validity: Duration,
    stop_budget: Duration,
    /// How often what was owned had to be let go.
    losses: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
    stretch: watch::Sender<Option<Stretch>>,
}

#[derive(Debug, Default)]
struct State {
    epoch: u64,
    /// When to begin to stop, by [`now`].
    stop_at: Duration,
}

impl Validity {
    /// Starts the watcher. `stop_budget` is how much sooner than the deadline everything is told to stop.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(validity: Duration, stop_budget: Duration) -> io::Result<Self> {
        let (state, changed, stretch) = (Mutex::default(), Condvar::new(), watch::Sender::new(None));
        let inner = Arc::new(Inner { validity, stop_budget, losses: AtomicU64::new(0), state, changed, stretch });
        let watched = Arc::downgrade(&inner);
        std::thread::Builder::new().name("lease-watch".into()).spawn(move || watch(&watched))?;
        Ok(Self(inner))
    }

    /// The present stretch, if any.
    pub fn stretches(&self) -> watch::Receiver<Option<Stretch>> {
        self.0.stretch.subscribe()
    }

    /// How long this instance may act as an owner if no renewal is acknowledged any more.
    pub fn left(&self) -> Duration {
        self.0.state.lock().stop_at.saturating_sub(now())
    }

    /// How often this instance had to stop to act as an owner.
    pub fn losses(&self) -> &AtomicU64 {
        &self.0.losses
    }

    /// A registration or renewal of `epoch` that was sent at `asked`, by [`now`], was acknowledged.
    pub fn confirmed(&self, epoch: u64, asked: Duration) {
        let mut stop_at = asked + self.0.validity - self.0.stop_budget;
        if planted(Bug::OutlivedLease) {
            stop_at += self.0.validity * 100;
        }
        self.extend(self.0.state.lock(), epoch, stop_at);
    }

    fn extend(&self, mut state: MutexGuard<'_, State>, epoch: u64, stop_at: Duration) {
        // Who saw it lapse has stopped, whether or not the watcher saw it too: it does not go on.
        let lapsed = now() >= state.stop_at;
        if state.epoch == epoch {
            state.stop_at = state.stop_at.max(stop_at);
        } else {
            *state = State { epoch, stop_at };
        }
        if now() >= state.stop_at {
            // It took longer than it is worth.
            return;
        }
        let goes_on = |stretch: &Stretch| !lapsed && stretch.epoch == epoch && !stretch.ended.is_cancelled();
        let goes_on = self.0.stretch.borrow().as_ref().is_some_and(goes_on);
        if !goes_on {
            self.0.end();
            let ended = CancellationToken::new();
            self.0.stretch.send_replace(Some(Stretch { epoch, ended, inner: Arc::downgrade(&self.0) }));
        }
        drop(state);
        self.0.changed.notify_all();
    }

    /// The epoch is over: others own what this instance did.
    pub fn lost(&self) {
        let mut state = self.0.state.lock();
        *state = State::default();
        self.0.end();
    }
}

impl Inner {
    fn end(&self) {
        if let Some(stretch) = self.stretch.send_replace(None) {
            self.losses.fetch_add(1, Ordering::Relaxed);
            stretch.ended.cancel();
        }
    }
}

/// Ends each stretch in time, for as long as anybody holds the validity.
fn watch(inner: &Weak<Inner>) {
    while let Some(inner) = inner.upgrade() {
        let mut state = inner.state.lock();
        let left = state.stop_at.saturating_sub(now());
        if left.is_zero() && inner.stretch.borrow().is_some() {
            tracing::warn!(
                epoch = state.epoch,
                "no renewal was acknowledged in time: this instance stops to act as an owner"
            );
            inner.end();
        }
        let wait = if left.is_zero() { LOOK_EVERY } else { left.min(LOOK_EVERY) };
        inner.changed.wait_for(&mut state, wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALIDITY: Duration = Duration::from_millis(400);
    const BUDGET: Duration = Duration::from_millis(50);
    const PATIENCE: Duration = Duration::from_secs(20);

    fn started() -> Validity {
        Validity::start(VALIDITY, BUDGET).unwrap()
    }

    async fn next(validity: &Validity) -> Stretch {
        let mut stretches = validity.stretches();
        let found = tokio::time::timeout(PATIENCE, stretches.wait_for(Option::is_some)).await.unwrap().unwrap();
        found.clone().unwrap()
    }

    #[tokio::test]
    async fn an_owner_stops_before_its_deadline_without_being_told_by_anybody() {
        let validity = started();
        let asked = now();
        validity.confirmed(7, asked);
        let stretch = next(&validity).await;
        assert!(!stretch.is_over());
        tokio::time::timeout(PATIENCE, stretch.ended.cancelled()).await.unwrap();
        let at = now() - asked;
        assert_eq!((validity.losses().load(Ordering::Relaxed), validity.left()), (1, Duration::ZERO));
        assert!(at >= VALIDITY - BUDGET, "stopped after {at:?}");
        assert!(stretch.is_over());
        assert!(validity.stretches().borrow().is_none());
    }

    /// After a pause of the process whoever runs first may be the renewal, or who acts for a channel.
    #[tokio::test]
    async fn a_stretch_that_lapsed_unseen_by_the_watcher_does_not_go_on() {
        let validity = started();
        validity.confirmed(7, now());
        let stretch = next(&validity).await;
        let renewed_late = || {
            let state = validity.0.state.lock();
            while now() < state.stop_at {
                std::thread::yield_now();
            }
            validity.extend(state, 7, now() + VALIDITY);
        };
        renewed_late();
        assert!(stretch.ended.is_cancelled());
        let second = next(&validity).await;
        assert!(!second.is_over());
    }

    #[tokio::test]
    async fn the_deadline_counts_from_before_the_renewal_was_sent() {
        let validity = started();
        // Acknowledged so late that nothing of it is left.
        validity.confirmed(7, now().saturating_sub(VALIDITY));
        assert!(validity.stretches().borrow().is_none());
    }

    #[tokio::test]
    async fn renewals_keep_one_stretch_and_a_late_one_begins_another() {
        let validity = started();
        validity.confirmed(7, now());
        let first = next(&validity).await;
        validity.confirmed(7, now());
        assert!(!first.ended.is_cancelled());
        tokio::time::timeout(PATIENCE, first.ended.cancelled()).await.unwrap();
        validity.confirmed(7, now());
        let second = next(&validity).await;
        assert!(first.is_over() || first.ended.is_cancelled());
        assert!(!second.is_over(), "a renewal that succeeds ends the pause");
        // An older renewal whose answer comes late shortens nothing.
        validity.confirmed(7, Duration::ZERO);
        assert!(!second.is_over());
    }

    #[tokio::test]
    async fn the_clock_itself_tells_who_was_paused() {
        let validity = started();
        validity.confirmed(7, now());
        let stretch = next(&validity).await;
        // As after SIGCONT: the deadline lies behind, and the watcher has not looked yet.
        validity.0.state.lock().stop_at = Duration::ZERO;
        assert!(stretch.is_over());
    }

    #[tokio::test]
    async fn a_lost_epoch_ends_at_once_and_a_new_one_is_another_stretch() {
        let validity = started();
        validity.confirmed(7, now());
        let first = next(&validity).await;
        validity.lost();
        assert!(first.ended.is_cancelled() && first.is_over());
        validity.confirmed(9, now());
        assert_eq!(next(&validity).await.epoch, 9);
        assert!(first.is_over());
    }
}
