//! How each account that runs here is: what `channels status` and the metrics show, and one log line per change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use openclaw_proto::ids::ChannelAccount;
use parking_lot::Mutex;
use tracing::{error, info, warn};

use super::{ReceiveError, Reporter};

/// One account on this instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    pub connected: bool,
    /// Unix milliseconds; 0: nothing yet.
    pub last_inbound_ms: u64,
    /// Of the last failure that was not followed by success.
    pub last_error: Option<String>,
}

/// The accounts that run here; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<ChannelAccount, Status>>>);

impl Health {
    /// None: it does not run here.
    pub fn of(&self, account: &ChannelAccount) -> Option<Status> {
        self.0.lock().get(account).cloned()
    }

    pub(super) fn started(&self, account: &ChannelAccount) {
        self.0.lock().insert(account.clone(), Status::default());
    }

    pub(super) fn stopped(&self, account: &ChannelAccount) {
        self.0.lock().remove(account);
    }

    /// Takes note of why receiving stopped. The same cause is logged once, not with every attempt.
    pub(super) fn failed(&self, account: &ChannelAccount, cause: &ReceiveError) {
        let text = cause.to_string();
        let mut accounts = self.0.lock();
        let Some(status) = accounts.get_mut(account) else { return };
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
    }

    /// Something came to an account that runs elsewhere, or here.
    pub fn received(&self, account: &ChannelAccount) {
        self.reporter(account).received();
    }

    pub(super) fn reporter(&self, account: &ChannelAccount) -> impl Reporter + use<> {
        AccountReporter { health: self.clone(), account: account.clone() }
    }
}

struct AccountReporter {
    health: Health,
    account: ChannelAccount,
}

impl AccountReporter {
    fn change(&self, change: impl FnOnce(&mut Status)) {
        if let Some(status) = self.health.0.lock().get_mut(&self.account) {
            change(status);
        }
    }
}

impl Reporter for AccountReporter {
    fn connected(&self) {
        self.change(|status| {
            if !status.connected {
                info!(account = %self.account, "the channel receives");
            }
            status.connected = true;
            status.last_error = None;
        });
    }

    fn disconnected(&self, reason: &str) {
        self.change(|status| {
            status.connected = false;
            status.last_error = Some(reason.to_owned());
        });
    }

    fn received(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.change(|status| status.last_inbound_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    }
}
