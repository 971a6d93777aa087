//! The way out of an account, for one tenure: what deliveries and previews share, and how quickly messages may follow each
//! other, as the platform likes it.

use std::sync::Arc;
use std::time::Duration;

use openclaw_config::channels::Account;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Channel, SendError, SendKey, Sent, Tenure};
use crate::message::{Piece, ReplyAddress};
use crate::metrics::Metrics;
use crate::store::channels::ChannelStore;

/// How fast a platform takes messages of one account.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two messages to one chat.
    pub per_chat: Duration,
    /// Between two messages of the account.
    pub overall: Duration,
}

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Outlet {
    pub(super) store: Arc<dyn ChannelStore>,
    pub(super) channel: Arc<dyn Channel>,
    pub(super) settings: Account,
    pub(super) tenure: Tenure,
    /// Told: what is being sent is sent to its end, and nothing else begins.
    pub(super) finish: CancellationToken,
    pub(super) pace: Pace,
    pub(super) throttle: Arc<Throttle>,
    pub(super) metrics: Metrics,
}

impl Outlet {
    pub(super) fn new(
        store: Arc<dyn ChannelStore>,
        channel: Arc<dyn Channel>,
        settings: Account,
        tenure: Tenure,
        pace: Pace,
        metrics: Metrics,
    ) -> Self {
        let throttle = Arc::new(Throttle::new(pace));
        Self { store, channel, settings, tenure, finish: CancellationToken::new(), pace, throttle, metrics }
    }

    /// Has the channel send a piece.
    ///
    /// # Errors
    /// As the channel says.
    pub(super) async fn send(&self, to: &ReplyAddress, piece: &Piece, key: &SendKey) -> Result<Sent, SendError> {
        let sent = self.channel.send(&self.tenure, to, piece, key).await;
        self.count("send", sent.as_ref().err());
        sent
    }

    /// Has the channel edit a message.
    ///
    /// # Errors
    /// As the channel says.
    pub(super) async fn edit(&self, to: &ReplyAddress, message_id: &str, piece: &Piece) -> Result<(), SendError> {
        let edited = self.channel.edit(&self.tenure, to, message_id, piece).await;
        self.count("edit", edited.as_ref().err());
        edited
    }

    fn count(&self, call: &str, error: Option<&SendError>) {
        let outcome = match error {
            None => "done",
            Some(SendError::Refused(_)) => "refused",
            Some(SendError::Later { .. }) => "later",
            Some(SendError::Unknown(_)) => "unknown",
        };
        self.metrics.channel_calls.with_label_values(&[self.channel.account().channel(), call, outcome]).inc();
    }
}

/// Keeps all who send for an account to its pace.
#[derive(Debug)]
pub(super) struct Throttle {
    every: Duration,
    next: Mutex<Instant>,
}

impl Throttle {
    pub(super) fn new(pace: Pace) -> Self {
        Self { every: pace.overall, next: Mutex::new(Instant::now()) }
    }

    /// Waits for the next place.
    pub(super) async fn wait(&self) {
        let at = {
            let mut next = self.next.lock();
            let at = (*next).max(Instant::now());
            *next = at + self.every;
            at
        };
        sleep_until(at).await;
    }

    /// Takes a place if one is free now: for what can as well be left out.
    pub(super) fn is_free(&self) -> bool {
        let (mut next, now) = (self.next.lock(), Instant::now());
        let free = *next <= now;
        if free {
            *next = now + self.every;
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn places_are_as_far_apart_as_the_pace_says_and_who_may_wait_goes_first() {
        let second = Duration::from_secs(1);
        let throttle = Throttle::new(Pace { per_chat: Duration::ZERO, overall: second });
        let began = Instant::now();
        assert!(throttle.is_free());
        assert!(!throttle.is_free());
        throttle.wait().await;
        throttle.wait().await;
        assert_eq!(began.elapsed(), 2 * second);
        assert!(!throttle.is_free(), "the last place was taken just now");
    }
}
