//! Telegram: one bot, through the Bot API.
//!
//! Messages come by polling, which the owner of the account's lease does, or by a webhook, which any instance serves
//! and the owner only registers. Replies go out as HTML; if Telegram refuses that, without any markup. Telegram has no
//! key by which it would recognise a repeated call: a reply whose call had no answer may have been sent or not.
//!
//! Reading order: [`parse`] (an update to a message), [`webhook`], [`render`] (a reply to pieces), [`client`] (the calls),
//! [`poll`].

mod client;
pub mod parse;
mod poll;
pub mod render;
#[cfg(test)]
mod tests;
pub mod webhook;

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use openclaw_config::channels::{TelegramAccount, TelegramMode};
use openclaw_proto::ids::ChannelAccount;
use teloxide::payloads::SetWebhook;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::{Channel, Inbox, ReceiveError, Reporter, SendError, SendKey, Sent, Tenure};
use crate::message::{InboundMessage, Piece, ReplyAddress};
use client::{CallError, Client, Markup, Target};
use webhook::{WebhookError, WebhookSecret};

/// The platform's part in the names of its accounts.
pub const CHANNEL: &str = "telegram";
/// Between two edits of a message while its reply is written.
const PREVIEWS: Duration = Duration::from_millis(1500);
const GROUP_PREVIEWS: Duration = Duration::from_secs(4);

/// How long things take. Tests shorten them.
#[derive(Debug, Clone)]
struct Timing {
    /// Of a poll that finds nothing; Telegram allows 50 s. In whole seconds.
    poll: Duration,
    /// Of the first one, whose answer says that the account receives. In whole seconds.
    first_poll: Duration,
    /// Of any other call, and what a poll may take beyond its own.
    call: Duration,
    /// Before the next poll, when another request ended one.
    after_conflict: Duration,
    /// Between two looks at a webhook.
    webhook_look: Duration,
    /// Before the next attempt to store something; twice as long each time.
    store_again: Duration,
    store_again_most: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(25),
            first_poll: Duration::from_secs(1),
            call: Duration::from_secs(10),
            after_conflict: Duration::from_secs(1),
            webhook_look: Duration::from_secs(60),
            store_again: Duration::from_millis(100),
            store_again_most: Duration::from_secs(5),
        }
    }
}

/// The settings of an account cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("the account's name does not fit: {0}")]
    Name(#[from] openclaw_proto::ids::ParseError),
    #[error("botToken is not a bot's token, <id>:<secret> as @BotFather gives it")]
    Token,
    #[error("apiRoot is not an http or https URL")]
    ApiRoot,
    #[error("webhookUrl is missing, or is not a URL")]
    WebhookUrl,
    #[error("webhookSecret is missing, or is not 1 to 256 of A-Z, a-z, 0-9, _ and -")]
    WebhookSecret,
    #[error("set up the HTTP client: {0}")]
    Client(String),
}

/// A bot account on Telegram.
pub struct Telegram {
    account: ChannelAccount,
    client: Client,
    timing: Timing,
    /// Absent: it polls.
    webhook: Option<Webhook>,
    /// Another program polled too when receiving ended last: a short poll may succeed between two of its own, and would
    /// prove nothing.
    rivalled: AtomicBool,
}

struct Webhook {
    registration: SetWebhook,
    secret: WebhookSecret,
}

impl fmt::Debug for Telegram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telegram").field("account", &self.account).finish_non_exhaustive()
    }
}

impl Telegram {
    /// Asks nothing of Telegram yet.
    ///
    /// # Errors
    /// [`SettingsError`] says which setting cannot work.
    pub fn new(settings: TelegramAccount) -> Result<Self, SettingsError> {
        Self::with_timing(&settings, Timing::default())
    }

    fn with_timing(settings: &TelegramAccount, timing: Timing) -> Result<Self, SettingsError> {
        let account = ChannelAccount::new(CHANNEL, &settings.id)?;
        let client = Client::new(account.clone(), settings, timing.clone())?;
        let webhook = match settings.mode {
            TelegramMode::Polling => None,
            TelegramMode::Webhook => Some(Webhook::new(settings)?),
        };
        Ok(Self { account, client, timing, webhook, rivalled: AtomicBool::new(false) })
    }

    /// Reads what came to the account's webhook: `secret` is the value of [`webhook::SECRET_HEADER`]. The caller stores the
    /// messages before it answers with success; any instance may be asked.
    ///
    /// # Errors
    /// [`WebhookError`]; an account that polls has no webhook, and no secret opens it.
    pub async fn webhook(&self, secret: Option<&[u8]>, body: &[u8]) -> Result<Vec<InboundMessage>, WebhookError> {
        let verified = self.verified(secret)?;
        let bot = self.client.me(None).await.map_err(|error| WebhookError::Unavailable(error.to_string()))?;
        webhook::parse(&verified, bot, body)
    }

    /// Whether this secret opens its webhook, before anything else of a request is read.
    ///
    /// # Errors
    /// [`WebhookError::Unauthorized`].
    pub fn opens(&self, secret: Option<&[u8]>) -> Result<(), WebhookError> {
        self.verified(secret).map(drop)
    }

    fn verified(&self, secret: Option<&[u8]>) -> Result<webhook::Verified, WebhookError> {
        self.webhook.as_ref().ok_or(WebhookError::Unauthorized)?.secret.verify(secret)
    }

    /// Never ends by itself unless something stands in the way.
    async fn until_failure(&self, tenure: &Tenure, inbox: &dyn Inbox, reporter: &dyn Reporter) -> ReceiveError {
        let ended = match &self.webhook {
            None => {
                let rivalled = self.rivalled.load(Ordering::Relaxed);
                let first = if rivalled { self.timing.poll } else { self.timing.first_poll };
                poll::poll(&self.client, &self.timing, first, tenure, inbox, reporter).await
            }
            Some(webhook) => match self.client.set_webhook(tenure, &webhook.registration).await {
                Ok(()) => {
                    reporter.connected();
                    self.watch(webhook, tenure, reporter).await
                }
                Err(error) => Err(error.into()),
            },
        };
        match ended {
            Ok(never) => match never {},
            Err(error) => {
                self.rivalled.store(matches!(error, ReceiveError::ForeignPoller(_)), Ordering::Relaxed);
                error
            }
        }
    }

    /// Asks again and again whether the webhook is there still, and whether what comes to it arrives: nothing else would
    /// tell that messages do not come.
    async fn watch(
        &self,
        webhook: &Webhook,
        tenure: &Tenure,
        reporter: &dyn Reporter,
    ) -> Result<Infallible, ReceiveError> {
        loop {
            sleep(self.timing.webhook_look).await;
            if tenure.is_over() {
                return Err(ReceiveError::Ended);
            }
            let info = self.client.webhook_info(tenure).await?;
            if info.url != webhook.registration.url.as_str() {
                warn!(account = %self.account, "somebody else changed the webhook; setting it again");
                self.client.set_webhook(tenure, &webhook.registration).await?;
            }
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let lately = |date: u64| now.saturating_sub(date) <= 2 * self.timing.webhook_look.as_secs().max(1);
            match info.last_error_message {
                Some(said) if info.pending_update_count > 0 && info.last_error_date.is_some_and(lately) => {
                    let waiting = info.pending_update_count;
                    reporter.disconnected(&format!("Telegram cannot deliver {waiting} updates to the webhook: {said}"));
                }
                Some(_) | None => reporter.connected(),
            }
        }
    }

    async fn send_piece(
        &self,
        tenure: &Tenure,
        to: &ReplyAddress,
        piece: &Piece,
        key: &SendKey,
    ) -> Result<Sent, SendError> {
        let mut to = Target::of(to)?;
        // The pieces after the first one follow it.
        to.answered = to.answered.filter(|_| key.piece == 0);
        let (mut text, mut markup, mut moved) = (&piece.body, Markup::Html, false);
        loop {
            match self.client.send(tenure, &to, text, markup).await {
                Ok(message) => return Ok(Sent { message_id: message.to_string() }),
                Err(CallError::Markup(said)) if markup == Markup::Html => {
                    warn!(account = %self.account, said, "Telegram refuses our markup");
                    (text, markup) = (&piece.plain, Markup::Plain);
                }
                // Numbers of messages and topics are others there.
                Err(CallError::Migrated(chat)) if !moved => {
                    moved = true;
                    to = Target { chat, thread: None, answered: None };
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn edit_piece(
        &self,
        tenure: &Tenure,
        to: &ReplyAddress,
        message_id: &str,
        piece: &Piece,
    ) -> Result<(), SendError> {
        let chat = Target::of(to)?.chat;
        let message = teloxide::types::MessageId(client::number(message_id)?);
        let edited = match self.client.edit(tenure, chat, message, &piece.body, Markup::Html).await {
            Err(CallError::Markup(_)) => self.client.edit(tenure, chat, message, &piece.plain, Markup::Plain).await,
            edited => edited,
        };
        match edited {
            Ok(()) | Err(CallError::NotModified(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Webhook {
    fn new(settings: &TelegramAccount) -> Result<Self, SettingsError> {
        let url = settings.webhook_url.as_deref().and_then(|url| url.parse().ok()).ok_or(SettingsError::WebhookUrl)?;
        let text = settings.webhook_secret.as_ref().map(|secret| secret.expose()).unwrap_or_default();
        let secret = WebhookSecret::new(text).ok_or(SettingsError::WebhookSecret)?;
        let registration = SetWebhook { secret_token: Some(text.to_owned()), ..SetWebhook::new(url) };
        Ok(Self { registration, secret })
    }
}

impl Channel for Telegram {
    fn account(&self) -> &ChannelAccount {
        &self.account
    }

    fn receive<'a>(
        &'a self,
        tenure: &'a Tenure,
        inbox: &'a dyn Inbox,
        reporter: &'a dyn Reporter,
    ) -> BoxFuture<'a, ReceiveError> {
        Box::pin(async move {
            let failure = tenure.ended.run_until_cancelled(self.until_failure(tenure, inbox, reporter)).await;
            let failure = failure.unwrap_or(ReceiveError::Ended);
            reporter.disconnected(&failure.to_string());
            failure
        })
    }

    fn render(&self, text: &str) -> Vec<Piece> {
        render::pieces(text)
    }

    fn send<'a>(
        &'a self,
        tenure: &'a Tenure,
        to: &'a ReplyAddress,
        piece: &'a Piece,
        key: &'a SendKey,
    ) -> BoxFuture<'a, Result<Sent, SendError>> {
        Box::pin(self.send_piece(tenure, to, piece, key))
    }

    fn edit<'a>(
        &'a self,
        tenure: &'a Tenure,
        to: &'a ReplyAddress,
        message_id: &'a str,
        piece: &'a Piece,
    ) -> BoxFuture<'a, Result<(), SendError>> {
        Box::pin(self.edit_piece(tenure, to, message_id, piece))
    }

    fn preview_every(&self, to: &ReplyAddress) -> Duration {
        // Groups, whose ids are below zero, get twenty messages a minute; edits count.
        if to.chat.starts_with('-') { GROUP_PREVIEWS } else { PREVIEWS }
    }

    fn typing<'a>(&'a self, tenure: &'a Tenure, to: &'a ReplyAddress) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let Ok(to) = Target::of(to) else { return };
            if let Err(error) = self.client.typing(tenure, &to).await {
                debug!(account = %self.account, %error, "typing is not shown");
            }
        })
    }
}
