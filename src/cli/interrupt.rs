//! Ctrl-C, and the other ways in which a command is asked to end: for commands that would leave something behind.

use std::io;
use std::pin::pin;

use futures::future::select_all;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure};

/// SIGINT, SIGTERM and SIGHUP. Once they are watched they do nothing else any more.
pub(super) struct Signals(Vec<Signal>);

impl Signals {
    /// # Errors
    /// A system that has no room for it.
    pub(super) fn watch() -> Result<Self, Failure> {
        let mut kinds = vec![SignalKind::interrupt(), SignalKind::terminate()];
        // What `nohup` started is to outlive its terminal, and watching would undo that.
        if !hangups_are_ignored() {
            kinds.push(SignalKind::hangup());
        }
        let signals = kinds.into_iter().map(signal).collect::<io::Result<_>>();
        signals.map(Self).map_err(|error| Failure::failed(format!("signals cannot be watched: {error}")))
    }

    /// Until one of them comes.
    pub(super) async fn any(&mut self) {
        select_all(self.0.iter_mut().map(|signal| Box::pin(signal.recv()))).await;
    }
}

fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // A bit for each signal; SIGHUP has number 1.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}

/// `work`, which heeds `stop` and clears away what it began: the first signal cancels it, the second one does not wait for that.
///
/// # Errors
/// What `work` fails with; after a signal [`Exit::Interrupted`], unless `work` was done already.
pub(super) async fn or_signal<T>(
    work: impl Future<Output = Result<T, Failure>>,
    stop: &CancellationToken,
    nothing: &str,
) -> Result<T, Failure> {
    let mut signals = Signals::watch()?;
    let mut work = pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = signals.any() => stop.cancel(),
    }
    let interrupted = |what: &str| Failure::new(Exit::Interrupted, format!("interrupted: {what}"));
    tokio::select! {
        done = work => done.map_err(|_| interrupted(nothing)),
        () = signals.any() => Err(interrupted("what was begun may be left")),
    }
}
