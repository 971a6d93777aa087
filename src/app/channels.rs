//! The channel accounts of the configuration as what runs them, and all accounts as HTTP shows them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::future::BoxFuture;
use openclaw_config::Channels;
use openclaw_config::channels::Account;
use openclaw_proto::http::{
    ChannelList, ChannelStatus, DeadLetter, DeadLetterAction, DeadLetterList, ErrorCode, OutboxStatus, Pairing,
    PairingList,
};
use openclaw_proto::ids::{ChannelAccount, InstanceId};
use openclaw_proto::state::command::Kind as Command;
use openclaw_proto::state::outcome::Kind as Outcome;
use openclaw_proto::state::update_intent::Step;
use openclaw_proto::state::{self, ApprovePairing, IntentState, Lease, MoveLease, RemovePairing};
use openclaw_raft::Node;

use super::Stopped;
use crate::api::{ChannelView, ClusterError};
use crate::channels::discord::Discord;
use crate::channels::elsewhere::Known;
use crate::channels::health::Health;
use crate::channels::intake::{Context, Intake};
use crate::channels::outlet::Pace;
use crate::channels::supervisor::Configured;
use crate::channels::telegram::Telegram;
use crate::channels::telegram::webhook::WebhookError;
use crate::channels::{Channel, Inbox};
use crate::store::channels::{ChannelStore, OwnerError, Unchanged, change};
use crate::store::{CommitError, ReadError};

const COMMIT: Duration = Duration::from_secs(5);
/// What Telegram's support says a bot may send: one message a second to a chat, thirty in all.
const TELEGRAM: Pace = Pace { per_chat: Duration::from_secs(1), overall: Duration::from_millis(34) };
/// Five messages in five seconds to a channel, fifty requests a second in all; what is more is told in each answer.
const DISCORD: Pace = Pace { per_chat: Duration::from_millis(250), overall: Duration::from_millis(25) };
/// It has no bot account, and its replies are read, not sent.
const WEBCHAT: &str = "webchat";
/// Intents that one look at an account's outbox counts.
const COUNTED: usize = 10_000;

/// Every account that the configuration has.
///
/// # Errors
/// [`Stopped::Config`] names the account whose settings cannot work.
pub(super) fn configured(channels: &Channels) -> Result<Accounts, Stopped> {
    let mut accounts = Accounts::default();
    for settings in channels.telegram_accounts() {
        let refused = |error| Stopped::Config(format!("channels.telegram, account {}: {error}", settings.id));
        let account = settings.account.clone();
        let channel = Arc::new(Telegram::new(settings.clone()).map_err(refused)?);
        accounts.webhooks.push((channel.clone(), account.clone()));
        accounts.configured.push(Configured { channel, settings: account, pace: TELEGRAM });
    }
    for settings in channels.discord_accounts() {
        let refused = |error| Stopped::Config(format!("channels.discord, account {}: {error}", settings.id));
        let account = settings.account.clone();
        let channel = Arc::new(Discord::new(settings.clone()).map_err(refused)?);
        accounts.configured.push(Configured { channel, settings: account, pace: DISCORD });
    }
    Ok(accounts)
}

/// What the configuration has.
#[derive(Default)]
pub(super) struct Accounts {
    pub(super) configured: Vec<Configured>,
    /// Those that a platform may call.
    webhooks: Vec<(Arc<Telegram>, Account)>,
}

impl Accounts {
    /// What takes the platforms' calls, on this instance.
    pub(super) fn webhooks(&self, context: &Context) -> BTreeMap<ChannelAccount, Webhook> {
        let webhook = |(channel, settings): &(Arc<Telegram>, Account)| {
            let account = channel.account().clone();
            let intake = Intake::new(context.clone(), account.clone(), settings.clone(), None);
            (account, Webhook { channel: channel.clone(), intake })
        };
        self.webhooks.iter().map(webhook).collect()
    }
}

/// An account that its platform calls.
pub(super) struct Webhook {
    channel: Arc<Telegram>,
    intake: Intake,
}

/// The channels as this instance sees them.
pub(super) struct View {
    pub(super) me: InstanceId,
    pub(super) node: Node,
    pub(super) store: Arc<dyn ChannelStore>,
    pub(super) health: Health,
    pub(super) webhooks: BTreeMap<ChannelAccount, Webhook>,
}

impl View {
    fn lease(&self, account: &ChannelAccount) -> Result<Lease, ClusterError> {
        let leases = self.store.leases().map_err(read)?;
        leases.into_iter().find(|lease| lease.account == account.as_str()).ok_or_else(|| ClusterError {
            code: ErrorCode::NotFound,
            message: format!("there is no channel account {account}"),
        })
    }

    /// What every instance that lives knows of its own.
    async fn known(&self) -> Result<Known, ClusterError> {
        let instances = self.store.instances().map_err(read)?;
        let others = instances.into_iter().filter(|row| row.live && row.instance_id != self.me.as_str());
        let others = others.filter_map(|row| InstanceId::parse(row.instance_id).ok());
        Ok(Known::ask(&self.node, &self.health, others).await)
    }

    fn status(&self, lease: Lease, known: &Known) -> Result<ChannelStatus, ClusterError> {
        let account = ChannelAccount::parse(lease.account.as_str()).map_err(internal)?;
        let intents = self.store.outbox(&account, 0, COUNTED).map_err(read)?;
        let count =
            |states: &[IntentState]| intents.iter().filter(|intent| states.contains(&intent.state())).count() as u64;
        let going = |intent: &&state::Intent| intent.state() != IntentState::Failed;
        let oldest = intents.iter().filter(going).map(|intent| intent.created_ms).min();
        let health = known.of(&lease.account);
        let owner = health.filter(|health| health.runs);
        Ok(ChannelStatus {
            account: lease.account,
            since_ms: (!lease.owner.is_empty()).then_some(lease.granted_ms),
            everywhere: false,
            owner: given(lease.owner),
            fencing_token: lease.fencing_token,
            moving_to: given(lease.moving_to),
            previous_owner: given(lease.previous_owner),
            connected: owner.map(|health| health.connected),
            last_inbound_ms: health.map(|health| health.last_inbound_ms).filter(|ms| *ms > 0),
            last_error: owner.and_then(|health| given(health.last_error.clone())),
            outbox: OutboxStatus {
                waiting: count(&[IntentState::Pending, IntentState::Sending]),
                unknown: count(&[IntentState::Unknown]),
                failed: count(&[IntentState::Failed]),
                oldest_ms: oldest.map(|since| now_ms().saturating_sub(since)),
            },
        })
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn read(error: ReadError) -> ClusterError {
    ClusterError { code: error.code(), message: error.to_string() }
}

fn internal(error: impl std::fmt::Display) -> ClusterError {
    ClusterError { code: ErrorCode::Internal, message: error.to_string() }
}

fn commit(error: CommitError) -> ClusterError {
    ClusterError { code: error.code(), message: error.to_string() }
}

/// What an outcome that is not the wanted one means to an operator.
fn refused(unchanged: Unchanged, nothing: &str) -> ClusterError {
    match unchanged {
        Unchanged::NotFound => ClusterError { code: ErrorCode::NotFound, message: nothing.to_owned() },
        Unchanged::Refused(reason) => ClusterError { code: ErrorCode::Conflict, message: reason },
        other @ (Unchanged::Fenced | Unchanged::Conflict | Unchanged::Stale | Unchanged::Other(_)) => {
            internal(format!("unexpected outcome {other:?}"))
        }
    }
}

fn pairing(row: state::Pairing) -> Pairing {
    Pairing {
        approved: row.code.is_empty(),
        account: row.account,
        sender_id: row.sender_id,
        sender_name: row.sender_name,
        code: given(row.code),
        since_ms: row.created_ms,
    }
}

impl ChannelView for View {
    fn channels(&self) -> BoxFuture<'_, Result<ChannelList, ClusterError>> {
        Box::pin(async move {
            let known = self.known().await?;
            let leases = self.store.leases().map_err(read)?;
            let mut channels =
                leases.into_iter().map(|lease| self.status(lease, &known)).collect::<Result<Vec<_>, _>>()?;
            channels.push(ChannelStatus {
                account: WEBCHAT.to_owned(),
                everywhere: true,
                connected: Some(true),
                ..ChannelStatus::default()
            });
            Ok(ChannelList { instance_id: self.me.as_str().to_owned(), channels })
        })
    }

    fn move_to(&self, account: ChannelAccount, to: InstanceId) -> BoxFuture<'_, Result<ChannelStatus, ClusterError>> {
        Box::pin(async move {
            let command = MoveLease { account: account.as_str().to_owned(), to: to.into() };
            let done = self.store.commit(Command::MoveLease(command), COMMIT).await.map_err(commit)?;
            let nothing = format!("there is no channel account {account}");
            change(done.value).map_err(|unchanged| refused(unchanged, &nothing))?;
            self.status(self.lease(&account)?, &self.known().await?)
        })
    }

    fn dead_letters(&self, account: &ChannelAccount) -> Result<DeadLetterList, ClusterError> {
        self.lease(account)?;
        let intents = self.store.outbox(account, 0, COUNTED).map_err(read)?;
        let dead = intents.into_iter().filter_map(|intent| {
            let state = match intent.state() {
                IntentState::Failed => "failed",
                IntentState::Unknown => "unknown",
                IntentState::Pending | IntentState::Sending | IntentState::Unspecified => return None,
            };
            Some(DeadLetter {
                id: intent.id.to_string(),
                account: intent.account,
                chat: intent.to.map(|to| to.chat).unwrap_or_default(),
                state: state.to_owned(),
                error: intent.error,
                created_ms: intent.created_ms,
                pieces_sent: intent.pieces_sent,
                seq: (!intent.session_key.is_empty()).then_some(intent.seq),
                session_key: given(intent.session_key),
            })
        });
        Ok(DeadLetterList { dead_letters: dead.collect() })
    }

    fn decide(
        &self,
        account: ChannelAccount,
        id: u64,
        action: DeadLetterAction,
    ) -> BoxFuture<'_, Result<(), ClusterError>> {
        Box::pin(async move {
            let step = match action {
                DeadLetterAction::Resubmit => Step::Resubmitted(true),
                DeadLetterAction::Drop => Step::Dropped(true),
            };
            self.store.update_intent(&account, id, 0, step, COMMIT).await.map_err(|error| match error {
                OwnerError::NotFound => {
                    ClusterError { code: ErrorCode::NotFound, message: format!("{account} has no message {id}") }
                }
                OwnerError::Conflict | OwnerError::Fenced => ClusterError {
                    code: ErrorCode::Conflict,
                    message: format!("message {id} is on its way, and not for an operator to decide about"),
                },
                OwnerError::Commit(error) => commit(error),
            })
        })
    }

    fn opens(&self, account: &ChannelAccount, secret: Option<&[u8]>) -> Result<(), ClusterError> {
        // Whoever does not know the secret does not learn which accounts there are.
        let opened = self.webhooks.get(account).ok_or(WebhookError::Unauthorized);
        let opened = opened.and_then(|webhook| webhook.channel.opens(secret));
        opened.map_err(|error| ClusterError { code: ErrorCode::Unauthorized, message: error.to_string() })
    }

    fn webhook(
        &self,
        account: ChannelAccount,
        secret: Option<Vec<u8>>,
        body: Bytes,
    ) -> BoxFuture<'_, Result<(), ClusterError>> {
        Box::pin(async move {
            let failed = |code, message: String| ClusterError { code, message };
            // Whoever does not know the secret does not learn which accounts there are.
            let unauthorized = || failed(ErrorCode::Unauthorized, WebhookError::Unauthorized.to_string());
            let webhook = self.webhooks.get(&account).ok_or_else(unauthorized)?;
            let messages = webhook.channel.webhook(secret.as_deref(), &body).await.map_err(|error| match error {
                WebhookError::Unauthorized => unauthorized(),
                WebhookError::Malformed => failed(ErrorCode::InvalidRequest, error.to_string()),
                WebhookError::Unavailable(_) => failed(ErrorCode::Busy, error.to_string()),
            })?;
            self.health.received(&account);
            webhook.intake.take(messages).await.map_err(|error| failed(ErrorCode::NoQuorum, error.to_string()))
        })
    }

    fn pairings(&self) -> Result<PairingList, ClusterError> {
        let rows = self.store.pairings(None).map_err(read)?;
        Ok(PairingList { pairings: rows.into_iter().map(pairing).collect() })
    }

    fn approve(&self, channel: String, code: String) -> BoxFuture<'_, Result<Pairing, ClusterError>> {
        Box::pin(async move {
            let nothing = format!("nobody waits on {channel} with the code {code}; codes live for an hour");
            let command = ApprovePairing { channel, code };
            let done = self.store.commit(Command::ApprovePairing(command), COMMIT).await.map_err(commit)?;
            if let Outcome::Paired(paired) = done.value {
                return Ok(pairing(paired.pairing.unwrap_or_default()));
            }
            change(done.value).map_err(|unchanged| refused(unchanged, &nothing))?;
            Err(internal("approved without saying whom"))
        })
    }

    fn revoke(&self, account: ChannelAccount, sender_id: String) -> BoxFuture<'_, Result<(), ClusterError>> {
        Box::pin(async move {
            let nothing = format!("{sender_id} is not known to {account}");
            let command = RemovePairing { account: account.into(), sender_id };
            let done = self.store.commit(Command::RemovePairing(command), COMMIT).await.map_err(commit)?;
            change(done.value).map_err(|unchanged| refused(unchanged, &nothing))
        })
    }
}
