//! Discord: one bot, which hears by a connection to Discord's gateway and speaks by its REST API.
//!
//! **Why the gateway's client is ours.** Failover wants the session that the owner before this one had, resumed by another
//! process and at once: then Discord itself repeats whatever was said in between. serenity 0.12 keeps a session and its
//! number to itself and begins a new one after every start; twilight-gateway 0.17 takes a stored session, and sleeps at
//! least a second before each connection. What is left is small: `gateway`, on a `socket` that the HTTP client upgrades, and
//! so with the one TLS that we have. Types and builders are serenity's.
//!
//! **Nothing is lost, nothing is doubled.** The cursor is `{sessionId, seq, resumeUrl, botId}`. Its number covers only what
//! the inbox has taken; what is repeated after a resume the inbox knows by the message's id. A session can be resumed for
//! some minutes and not after a goodbye (close codes 1000 and 1001), so we never say one; what is said while no session
//! lives never comes. Sent messages carry a nonce that Discord enforces for some minutes: within them, sending again what
//! had no answer gives the message that is there.
//!
//! **Another program with the same token cannot be seen.** Discord lets any number of sessions live side by side and gives
//! every event to each; `ReceiveError::ForeignPoller` never comes from here. Two such programs both answer.
//!
//! Not here: shards (a bot in 2500 guilds needs them, and is refused with words), compression, files, slash commands.

mod client;
mod cursor;
mod gateway;
mod parse;
mod render;
mod socket;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::time::Duration;

use futures::future::BoxFuture;
use openclaw_config::channels::DiscordAccount;
use openclaw_proto::ids::{ChannelAccount, ParseError};
use parking_lot::Mutex;
use serenity::builder::{CreateAllowedMentions, CreateMessage, EditMessage};
use serenity::model::channel::{MessageReference, MessageReferenceKind, Nonce};
use serenity::model::id::{ChannelId, MessageId};
use sha2::{Digest, Sha256};
use tracing::debug;

use self::client::{CallError, Rest};
use self::gateway::{Gateway, Starts};
use super::{Channel, Inbox, ReceiveError, Reporter, SendError, SendKey, Sent, Tenure};
use crate::message::{Piece, ReplyAddress};

/// Of every call, with its connection and its answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two edits of a message while its reply is written: five in five seconds are allowed in one channel.
const PREVIEWS: Duration = Duration::from_millis(1500);
/// When to try again if Discord cannot be reached, or refuses the bot as such.
const UNREACHABLE: Duration = Duration::from_secs(2);
const UNAUTHORIZED: Duration = Duration::from_secs(60);
/// What Discord takes.
const NONCE_CHARS: usize = 25;

/// The settings of an account cannot work.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("channels.discord: {0}")]
    Account(#[from] ParseError),
    #[error("channels.discord.apiRoot: {0}")]
    ApiRoot(String),
    #[error("channels.discord.gatewayUrl: {0}")]
    GatewayUrl(String),
    #[error("channels.discord.token has characters that no HTTP header may carry")]
    Token,
    #[error("set up the HTTP client of Discord: {0}")]
    Client(String),
}

/// What a test wants shorter.
#[derive(Debug, Clone)]
struct Timing {
    /// Before a session begins in the place of one that is invalid.
    invalid: Range<Duration>,
    /// Between two sessions begun.
    spacing: Duration,
    /// Before the second connection in a row.
    reconnect: Duration,
    /// Between two cursors.
    save: Duration,
    /// Before the inbox is asked again.
    retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            invalid: Duration::from_secs(1)..Duration::from_secs(5),
            spacing: Duration::from_secs(5),
            reconnect: Duration::from_millis(250),
            save: Duration::from_secs(1),
            retry: Duration::from_millis(50),
        }
    }
}

/// One bot account on Discord.
pub struct Discord {
    account: ChannelAccount,
    settings: DiscordAccount,
    rest: Rest,
    /// Outlives a tenure: the limit is the bot's.
    starts: Mutex<Starts>,
    timing: Timing,
}

impl Discord {
    /// Connects to nothing yet. A `gateway_url` is used for every connection, resumed sessions too.
    ///
    /// # Errors
    /// [`BuildError`] when an address or the token cannot be used.
    pub fn new(settings: DiscordAccount) -> Result<Self, BuildError> {
        let account = ChannelAccount::new("discord", &settings.id)?;
        let rest = Rest::new(&settings.api_root, &settings.token)?;
        if let Some(url) = &settings.gateway_url {
            socket::address(url).map_err(BuildError::GatewayUrl)?;
        }
        Ok(Self { account, settings, rest, starts: Mutex::default(), timing: Timing::default() })
    }
}

impl Channel for Discord {
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
            let mut socket = None;
            let mut gateway = Gateway::new(self, tenure, inbox, reporter);
            let error = tokio::select! {
                biased;
                () = tenure.ended.cancelled() => ReceiveError::Ended,
                error = gateway.run(&mut socket) => error,
            };
            gateway.leave(socket, &error).await;
            error
        })
    }

    fn render(&self, text: &str) -> Vec<Piece> {
        render::render(text)
    }

    /// The nonce makes a repetition harmless for minutes, so `Unknown` may be answered with another call.
    fn send<'a>(
        &'a self,
        tenure: &'a Tenure,
        to: &'a ReplyAddress,
        piece: &'a Piece,
        key: &'a SendKey,
    ) -> BoxFuture<'a, Result<Sent, SendError>> {
        Box::pin(async move {
            let channel = channel_of(to)?;
            let mut message = CreateMessage::new()
                .content(&piece.body)
                .allowed_mentions(nobody_but(true))
                .nonce(Nonce::String(nonce(&self.account, key)))
                .enforce_nonce(true);
            // Once is enough to show what is answered, and to call who asked.
            if let Some(answered) = to.message.as_deref().and_then(message_id)
                && key.piece == 0
            {
                let reference = MessageReference::new(MessageReferenceKind::Default, channel);
                message = message.reference_message(reference.message_id(answered).fail_if_not_exists(false));
            }
            let sent = self.rest.create_message(tenure, channel, &message).await.map_err(unsent)?;
            Ok(Sent { message_id: sent.to_string() })
        })
    }

    fn edit<'a>(
        &'a self,
        tenure: &'a Tenure,
        to: &'a ReplyAddress,
        message_id: &'a str,
        piece: &'a Piece,
    ) -> BoxFuture<'a, Result<(), SendError>> {
        Box::pin(async move {
            let channel = channel_of(to)?;
            let message = self::message_id(message_id)
                .ok_or_else(|| SendError::Refused(format!("{message_id:?} is no message of Discord")))?;
            let edit = EditMessage::new().content(&piece.body).allowed_mentions(nobody_but(false));
            self.rest.edit_message(tenure, channel, message, &edit).await.map_err(unsent)
        })
    }

    fn preview_every(&self, _: &ReplyAddress) -> Duration {
        PREVIEWS
    }

    fn typing<'a>(&'a self, tenure: &'a Tenure, to: &'a ReplyAddress) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if tenure.is_over() {
                return;
            }
            let Ok(channel) = channel_of(to) else {
                return;
            };
            if let Err(error) = self.rest.trigger_typing(channel).await {
                debug!(account = %self.account, %error, "no sign of typing");
            }
        })
    }
}

/// Calls nobody, whatever the text says, except for who is answered.
fn nobody_but(replied_user: bool) -> CreateAllowedMentions {
    CreateAllowedMentions::new().replied_user(replied_user)
}

fn channel_of(to: &ReplyAddress) -> Result<ChannelId, SendError> {
    to.chat.parse().map_err(|_| SendError::Refused(format!("{:?} is no channel of Discord", to.chat)))
}

fn message_id(text: &str) -> Option<MessageId> {
    text.parse().ok()
}

/// The same in every attempt, on every instance.
fn nonce(account: &ChannelAccount, key: &SendKey) -> String {
    let digest = Sha256::digest(format!("{account} {} {}", key.intent_id, key.piece));
    let mut text: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    text.truncate(NONCE_CHARS);
    text
}

/// What a call that failed means for the outbox.
fn unsent(error: CallError) -> SendError {
    let reason = error.to_string();
    match error {
        CallError::Refused { .. } => SendError::Refused(reason),
        CallError::Unsent(_) => SendError::Later { reason, after: UNREACHABLE, asked: false },
        CallError::Unauthorized { .. } => SendError::Later { reason, after: UNAUTHORIZED, asked: false },
        CallError::Limited { after } => SendError::Later { reason, after, asked: true },
        CallError::NoAnswer(_) => SendError::Unknown(reason),
    }
}
