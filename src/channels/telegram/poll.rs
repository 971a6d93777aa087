//! Polling: ask, store, and by asking again confirm.
//!
//! Telegram forgets an update when it is asked for a later one. So the next question comes only when the inbox has taken
//! all that the last answer held, and when the cursor is stored; whoever owns the account next goes on from there.

use std::convert::Infallible;
use std::time::Duration;

use futures::future::BoxFuture;
use openclaw_raft::planted::{Bug, planted};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::client::{CallError, Client};
use super::{Timing, parse};
use crate::channels::{Inbox, InboxError, ReceiveError, Reporter, Tenure};

/// So many conflicts within this time are somebody else's; fewer may come from an owner before us whose poll was still open.
const MAX_CONFLICTS: u32 = 3;
const CONFLICTS_WITHIN: Duration = Duration::from_secs(60);

/// Where the channel stands with Telegram, as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Cursor {
    /// The number of the next update.
    offset: i32,
}

impl Cursor {
    /// One that nobody can read is none: Telegram keeps what is not confirmed.
    fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).inspect_err(|error| warn!(%error, "the stored cursor is not readable")).ok()
    }

    fn write(self) -> String {
        format!(r#"{{"offset":{}}}"#, self.offset)
    }
}

/// Polls until something stands in the way; the first poll waits for `first` alone. The caller drops it when the tenure
/// ends.
pub(super) async fn poll(
    client: &Client,
    timing: &Timing,
    first: Duration,
    tenure: &Tenure,
    inbox: &dyn Inbox,
    reporter: &dyn Reporter,
) -> Result<Infallible, ReceiveError> {
    let bot = client.me(Some(tenure)).await?;
    client.delete_webhook(tenure).await?;
    let stored = until_stored(timing, || inbox.cursor()).await?;
    let mut offset = stored.and_then(|text| Cursor::read(&text)).map(|cursor| cursor.offset);
    let mut conflicts = Conflicts::default();
    let (mut answered, mut wait) = (false, first);
    loop {
        // Whoever drops this may be woken after it.
        if tenure.is_over() {
            return Err(ReceiveError::Ended);
        }
        let updates = match client.get_updates(tenure, offset, wait).await {
            Ok(updates) => updates,
            Err(CallError::Conflict(said)) => {
                info!(account = %bot.account, said, "another request for the bot's updates ended ours");
                if conflicts.too_many() {
                    return Err(ReceiveError::ForeignPoller(said));
                }
                sleep(timing.after_conflict).await;
                // It may have been a webhook.
                client.delete_webhook(tenure).await?;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        // Only now: that Telegram answers to other calls does not mean that it answers to this one.
        if answered {
            reporter.heard();
        } else {
            reporter.connected();
        }
        (answered, wait) = (true, timing.poll);
        let Some(last) = updates.last() else { continue };
        let Some(next) = parse::update_id(last).and_then(|id| i32::try_from(id).ok()?.checked_add(1)) else {
            return Err(ReceiveError::Failed {
                reason: "an update of Telegram has no number".into(),
                retry_after: None,
            });
        };
        if planted(Bug::EarlyOffset) {
            // The question confirms; what it finds is found again by the next one.
            drop(client.get_updates(tenure, Some(next), wait).await);
        }
        reporter.received();
        let messages: Vec<_> = updates.iter().filter_map(|update| parse::update(bot, update)).collect();
        if !messages.is_empty() {
            until_stored(timing, || inbox.take(messages.clone())).await?;
        }
        let cursor = Cursor { offset: next }.write();
        until_stored(timing, || inbox.save_cursor(cursor.clone())).await?;
        offset = Some(next);
    }
}

/// Tries again for as long as the tenure lasts: there is nothing better to do with what was received.
async fn until_stored<'a, T>(
    timing: &Timing,
    attempt: impl Fn() -> BoxFuture<'a, Result<T, InboxError>>,
) -> Result<T, ReceiveError> {
    let mut pause = timing.store_again;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(InboxError::Fenced) => return Err(ReceiveError::Ended),
            Err(InboxError::Unavailable(reason)) => warn!(reason, ?pause, "what Telegram delivered is not stored yet"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(timing.store_again_most);
    }
}

#[derive(Default)]
struct Conflicts {
    since: Option<Instant>,
    count: u32,
}

impl Conflicts {
    /// Counts one more.
    fn too_many(&mut self) -> bool {
        let now = Instant::now();
        if self.since.is_none_or(|since| now > since + CONFLICTS_WITHIN) {
            *self = Self { since: Some(now), count: 0 };
        }
        self.count += 1;
        self.count > MAX_CONFLICTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_what_it_was_written_as() {
        let cursor = Cursor { offset: 42 };
        assert_eq!(cursor.write(), r#"{"offset":42}"#);
        assert_eq!(Cursor::read(&cursor.write()), Some(cursor));
        assert_eq!(Cursor::read("{}"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn conflicts_count_while_they_are_near_each_other() {
        let mut conflicts = Conflicts::default();
        let mut many = |count: u32| (0..count).map(|_| conflicts.too_many()).collect::<Vec<_>>();
        assert_eq!(many(3), [false; 3]);
        tokio::time::advance(CONFLICTS_WITHIN + Duration::from_secs(1)).await;
        assert_eq!(many(4), [false, false, false, true]);
    }
}
