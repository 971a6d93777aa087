//! Between the clients of a run and the one who breaks things meanwhile: what was acknowledged, and since when.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::Notify;

/// What the clients tell the one who breaks things meanwhile, and how they are told to end.
#[derive(Debug, Default)]
pub struct Progress {
    acknowledged: AtomicU64,
    stop: AtomicBool,
    changed: Notify,
    gap: Mutex<Gap>,
}

/// The time from a moment to the first write that was both sent and acknowledged after it.
#[derive(Debug, Default)]
struct Gap {
    since: Option<Instant>,
    first: Option<Instant>,
}

impl Progress {
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends the load: every client finishes the write it is at.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Waits until so many writes are acknowledged.
    ///
    /// # Errors
    /// When none is for as long as `stall`.
    pub async fn reached(&self, appends: u64, stall: Duration) -> Result<()> {
        loop {
            let before = self.acknowledged();
            if before >= appends {
                return Ok(());
            }
            tokio::time::timeout(stall, self.until(|| self.acknowledged() > before)).await.with_context(|| {
                format!("no write was acknowledged for {stall:?}; {before} of {appends} were before")
            })?;
        }
    }

    /// Begins to look for the first write that is sent from now on.
    pub fn mark(&self) -> Instant {
        let now = Instant::now();
        *self.gap.lock().unwrap_or_else(PoisonError::into_inner) = Gap { since: Some(now), first: None };
        now
    }

    /// Waits for the acknowledgement of a write that was sent after the mark.
    pub async fn first_after_mark(&self) -> Instant {
        let first = || self.gap.lock().unwrap_or_else(PoisonError::into_inner).first;
        self.until(|| first().is_some()).await;
        first().unwrap_or_else(Instant::now)
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the condition is looked at, so that no change falls in between.
            changed.as_mut().enable();
            if condition() {
                return;
            }
            changed.await;
        }
    }

    /// Notes a write that was acknowledged just now.
    pub fn acknowledge(&self, sent: Instant) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        let mut gap = self.gap.lock().unwrap_or_else(PoisonError::into_inner);
        if gap.first.is_none() && gap.since.is_some_and(|since| sent >= since) {
            gap.first = Some(Instant::now());
        }
        drop(gap);
        self.changed.notify_waiters();
    }

    /// Whether the load is to end.
    pub fn is_over(&self, appends: Option<u64>) -> bool {
        self.stop.load(Ordering::Relaxed) || appends.is_some_and(|appends| self.acknowledged() >= appends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_gap_counts_only_writes_that_were_sent_after_the_mark() {
        let progress = Progress::default();
        let before = Instant::now();
        let mark = progress.mark();
        progress.acknowledge(before - Duration::from_millis(1));
        assert!(progress.gap.lock().unwrap().first.is_none());
        progress.acknowledge(Instant::now());
        assert!(progress.first_after_mark().await >= mark);
        progress.reached(2, Duration::ZERO).await.unwrap();
        let error = progress.reached(3, Duration::from_millis(1)).await.unwrap_err().to_string();
        assert!(error.contains("2 of 3"), "{error}");
    }
}
