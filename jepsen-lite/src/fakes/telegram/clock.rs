//! What time it is for the server: dates of messages, age of updates. How long things take is real time all the same.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

/// Moves a [`Clock`] that stands still otherwise.
#[derive(Debug, Clone)]
pub struct Hand(Arc<Mutex<SystemTime>>);

impl Clock {
    pub fn system() -> Self {
        Self(Arc::new(SystemTime::now))
    }

    /// A clock that moves only when told to, from the present on.
    pub fn by_hand() -> (Self, Hand) {
        let hand = Hand(Arc::new(Mutex::new(SystemTime::now())));
        let shown = hand.clone();
        (Self(Arc::new(move || *shown.0.lock().unwrap_or_else(PoisonError::into_inner))), hand)
    }

    pub(super) fn unix(&self) -> Duration {
        (self.0)().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

impl Hand {
    pub fn advance(&self, by: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.unix()).finish()
    }
}
