//! How each account is, as far as this instance knows: what `channels status` and the metrics show, and one log line per
//! change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openclaw_proto::ids::ChannelAccount;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{ReceiveError, Reporter};
use crate::metrics::Metrics;

/// One account on this instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// What else is said holds for an account that runs here.
    pub runs: bool,
    pub connected: bool,
    /// Unix milliseconds of the last message that this instance took; 0: none yet. Webhooks come to any instance.
    pub last_inbound_ms: u64,
    /// Of the last failure that was not followed by success.
    pub last_error: Option<String>,
    /// When the platform last answered; at first, when this instance began to run the account.
    pub heard: Option<Instant>,
    /// Since when the chat that waits longest has had nothing sent, pauses that the platform asked for left out; absent:
    /// nothing waits.
    pub waits_since: Option<Instant>,
}

impl Status {
    /// How long the platform has not answered, for an account that runs here.
    pub fn silence(&self) -> Option<Duration> {
        self.heard.filter(|_| self.runs).map(|heard| heard.elapsed())
    }

    /// How long nothing was sent of what waits longest, for an account that runs here.
    pub fn standstill(&self) -> Option<Duration> {
        self.waits_since.filter(|_| self.runs).map(|since| since.elapsed())
    }
}

/// Every account of which this instance knows something; cheap to clone.
#[derive(Debug, Clone)]
pub struct Health {
    accounts: Arc<Mutex<BTreeMap<ChannelAccount, Status>>>,
    metrics: Metrics,
}

impl Health {
    pub fn new(metrics: Metrics) -> Self {
        Self { accounts: Arc::default(), metrics }
    }

    /// Shows an account before anything is known of it: nobody may ever run it.
    pub fn expect(&self, account: &ChannelAccount) {
        self.metrics.channel_connected.with_label_values(&[account.as_str()]).set(0);
    }

    pub fn all(&self) -> Vec<(ChannelAccount, Status)> {
        self.accounts.lock().iter().map(|(account, status)| (account.clone(), status.clone())).collect()
    }

    pub(super) fn started(&self, account: &ChannelAccount) {
        self.change(account, |status| {
            (status.runs, status.connected, status.last_error) = (true, false, None);
            (status.heard, status.waits_since) = (Some(Instant::now()), None);
        });
        self.metrics.channel_starts.with_label_values(&[account.as_str()]).inc();
    }

    pub(super) fn stopped(&self, account: &ChannelAccount) {
        self.change(account, |status| {
            (status.runs, status.connected, status.last_error) = (false, false, None);
            (status.heard, status.waits_since) = (None, None);
        });
    }

    /// Shows how long each account has not been answered.
    pub fn measure(&self) {
        for (account, status) in self.accounts.lock().iter() {
            let seconds = status.silence().unwrap_or_default().as_secs();
            let silence = self.metrics.channel_silence.with_label_values(&[account.as_str()]);
            silence.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
    }

    /// Since when nothing was sent of what waits.
    pub(super) fn waits(&self, account: &ChannelAccount, since: Option<Instant>) {
        self.change(account, |status| status.waits_since = since);
    }

    /// Takes note of why receiving stopped. The same cause is logged once, not with every attempt.
    pub(super) fn failed(&self, account: &ChannelAccount, cause: &ReceiveError) {
        let text = cause.to_string();
        self.change(account, |status| {
            status.connected = false;
            if status.last_error.as_ref() == Some(&text) {
                return;
            }
            match cause {
                ReceiveError::Ended => {}
                ReceiveError::ForeignPoller(_) | ReceiveError::Refused(_) => {
                    error!(%account, %cause, "the channel needs somebody")
                }
                ReceiveError::Failed { .. } => warn!(%account, %cause, "the channel does not receive"),
            }
            status.last_error = Some(text);
        });
    }

    /// Something came to an account, whether it runs here or elsewhere.
    pub fn received(&self, account: &ChannelAccount) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.change(account, |status| status.last_inbound_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    }

    pub(super) fn reporter(&self, account: &ChannelAccount) -> impl Reporter + use<> {
        AccountReporter { health: self.clone(), account: account.clone() }
    }

    fn change(&self, account: &ChannelAccount, change: impl FnOnce(&mut Status)) {
        let mut accounts = self.accounts.lock();
        let status = accounts.entry(account.clone()).or_default();
        change(status);
        let connected = self.metrics.channel_connected.with_label_values(&[account.as_str()]);
        connected.set(i64::from(status.runs && status.connected));
    }
}

struct AccountReporter {
    health: Health,
    account: ChannelAccount,
}

impl Reporter for AccountReporter {
    fn connected(&self) {
        self.health.change(&self.account, |status| {
            if !status.connected {
                info!(account = %self.account, "the channel receives");
            }
            (status.connected, status.last_error, status.heard) = (true, None, Some(Instant::now()));
        });
    }

    fn heard(&self) {
        self.health.change(&self.account, |status| status.heard = Some(Instant::now()));
    }

    fn disconnected(&self, reason: &str) {
        self.health.change(&self.account, |status| {
            (status.connected, status.last_error) = (false, Some(reason.to_owned()));
        });
    }

    fn received(&self) {
        self.health.received(&self.account);
        self.heard();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_that_nobody_runs_is_not_connected_rather_than_not_there() {
        let metrics = Metrics::new().unwrap();
        let health = Health::new(metrics.clone());
        health.expect(&ChannelAccount::parse("telegram:default").unwrap());
        let page = metrics.page().unwrap();
        assert!(page.contains("openclaw_channel_connected{account=\"telegram:default\"} 0"), "{page}");
        assert!(health.all().is_empty(), "nothing is known of it yet");
    }
}
