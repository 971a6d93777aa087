//! The calls, and what an answer or its absence means.
//!
//! teloxide carries them. Answers are read as no more than what is needed of them: its own types refuse a message that
//! holds anything newer than they are, and a message that was sent would count as unknown. Its long sleep after a 5xx is
//! cut short by our deadlines. HTTP/1 alone, so that a call that is dropped closes its connection and is over.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use openclaw_config::channels::TelegramAccount;
use openclaw_proto::ids::ChannelAccount;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use teloxide::payloads::{DeleteWebhook, EditMessageText, GetMe, GetUpdates, SendChatAction, SendMessage, SetWebhook};
use teloxide::requests::{JsonRequest, Payload, Request};
use teloxide::types::{
    AllowedUpdate, ChatAction, ChatId, MessageId, ParseMode, Recipient, ReplyParameters, Seconds, ThreadId,
};
use teloxide::{ApiError, RequestError};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::{SettingsError, Timing, parse};
use crate::channels::{ReceiveError, SendError};
use crate::message::ReplyAddress;

/// Less than a call may take, so that a call that could not connect is known for it.
const CONNECT: Duration = Duration::from_secs(5);
/// Telegram closes connections that idle for longer; a message on one of those would be lost or not.
const IDLE: Duration = Duration::from_secs(30);
/// Of a refusal so much is told.
const MAX_SAID_BYTES: usize = 300;
/// When there is no connection, or none with this token, the next attempt to send may come after this.
const NO_CONNECTION: Duration = Duration::from_secs(2);
const NO_TOKEN: Duration = Duration::from_secs(60);
/// A 429 says how long. If one does not, this long.
const TOO_MANY: Duration = Duration::from_secs(5);

/// Why a call came to nothing, as far as callers differ.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CallError {
    /// There was no connection, so nothing was asked.
    #[error("no connection to Telegram: {0}")]
    NoConnection(String),
    /// It was asked, and whether it was done is not known.
    #[error("no answer from Telegram: {0}")]
    NoAnswer(String),
    #[error("Telegram asks for a pause of {0:?}")]
    TooMany(Duration),
    #[error("the group is now {0}")]
    Migrated(ChatId),
    /// Somebody else polls, or set a webhook.
    #[error("{0}")]
    Conflict(String),
    #[error("Telegram does not know the bot's token: {0}")]
    NoToken(String),
    /// The markup of a text is not Telegram's.
    #[error("{0}")]
    Markup(String),
    /// The message says that already.
    #[error("{0}")]
    NotModified(String),
    #[error("{0}")]
    Refused(String),
}

impl From<RequestError> for CallError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Api(ApiError::Unknown(said)) => Self::said(&said),
            // teloxide has words of its own for this one alone.
            RequestError::Api(ApiError::InvalidToken) => Self::NoToken("Unauthorized, or not found".into()),
            RequestError::Api(error) => Self::said(&error.to_string()),
            RequestError::MigrateToChatId(to) => Self::Migrated(to),
            RequestError::RetryAfter(seconds) => Self::TooMany(Seconds::duration(seconds)),
            RequestError::Network(error) if error.is_connect() => Self::NoConnection(innermost(&*error)),
            RequestError::Network(error) => Self::NoAnswer(innermost(&*error)),
            // What came instead may quote people.
            RequestError::InvalidJson { .. } => Self::NoAnswer("what came is not of the Bot API".into()),
            RequestError::Io(error) => Self::NoAnswer(error.to_string()),
        }
    }
}

impl CallError {
    /// By Telegram's own words; each begins with what its status says.
    fn said(said: &str) -> Self {
        let is = |beginning: &str| said.starts_with(beginning);
        let quoted = said[..said.floor_char_boundary(MAX_SAID_BYTES)].to_owned();
        if is("Bad Request: can't parse entities") {
            Self::Markup(quoted)
        } else if is("Bad Request: message is not modified") {
            Self::NotModified(quoted)
        } else if is("Bad Request") || is("Forbidden") || is("Request Entity Too Large") || is("Unauthorized: bot ") {
            Self::Refused(quoted)
        } else if is("Unauthorized") || is("Not Found") {
            Self::NoToken(quoted)
        } else if is("Conflict") {
            Self::Conflict(quoted)
        } else if is("Too Many Requests") {
            Self::TooMany(TOO_MANY)
        } else {
            // A server that is in trouble itself.
            Self::NoAnswer(quoted)
        }
    }
}

/// The cause of all: the outer ones name the URL, and that holds the token.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let Some(mut cause) = error.source() else { return "the connection failed".into() };
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

impl From<CallError> for SendError {
    fn from(error: CallError) -> Self {
        let reason = error.to_string();
        match error {
            CallError::NoConnection(_) => Self::Later { reason, after: NO_CONNECTION },
            CallError::NoToken(_) => Self::Later { reason, after: NO_TOKEN },
            CallError::TooMany(after) => Self::Later { reason, after },
            CallError::NoAnswer(_) => Self::Unknown(reason),
            CallError::Migrated(_)
            | CallError::Conflict(_)
            | CallError::Markup(_)
            | CallError::NotModified(_)
            | CallError::Refused(_) => Self::Refused(reason),
        }
    }
}

impl From<CallError> for ReceiveError {
    fn from(error: CallError) -> Self {
        let reason = error.to_string();
        match error {
            CallError::NoToken(_) | CallError::Refused(_) => Self::Refused(reason),
            CallError::TooMany(after) => Self::Failed { reason, retry_after: Some(after) },
            CallError::NoConnection(_)
            | CallError::NoAnswer(_)
            | CallError::Migrated(_)
            | CallError::Conflict(_)
            | CallError::Markup(_)
            | CallError::NotModified(_) => Self::Failed { reason, retry_after: None },
        }
    }
}

/// A call of teloxide's, whose answer is read as `T`.
#[derive(Serialize)]
#[serde(transparent)]
struct Asked<P, T> {
    call: P,
    #[serde(skip)]
    answer: PhantomData<fn() -> T>,
}

impl<P: Payload, T> Payload for Asked<P, T> {
    type Output = T;
    const NAME: &'static str = P::NAME;
}

/// Where a message goes, in Telegram's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) chat: ChatId,
    pub(super) thread: Option<ThreadId>,
    /// What it replies to.
    pub(super) answered: Option<MessageId>,
}

impl Target {
    /// # Errors
    /// [`SendError::Refused`] when the address was not made here.
    pub(super) fn of(address: &ReplyAddress) -> Result<Self, SendError> {
        let thread = address.thread.as_deref().map(number).transpose()?;
        Ok(Self {
            chat: ChatId(number(&address.chat)?),
            thread: thread.map(|thread| ThreadId(MessageId(thread))),
            answered: address.message.as_deref().map(number).transpose()?.map(MessageId),
        })
    }
}

/// # Errors
/// [`SendError::Refused`] when it is none.
pub(super) fn number<T: std::str::FromStr>(text: &str) -> Result<T, SendError> {
    text.parse().map_err(|_| SendError::Refused(format!("{text:?} is not a number of Telegram's")))
}

/// How a text is marked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Markup {
    Html,
    Plain,
}

impl Markup {
    fn mode(self) -> Option<ParseMode> {
        match self {
            Self::Html => Some(ParseMode::Html),
            Self::Plain => None,
        }
    }
}

pub(super) struct Client {
    account: ChannelAccount,
    teloxide: teloxide::Bot,
    timing: Timing,
    /// Asked once: it does not change while the process lives.
    me: OnceCell<parse::Bot>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("account", &self.account).finish_non_exhaustive()
    }
}

impl Client {
    pub(super) fn new(
        account: ChannelAccount,
        settings: &TelegramAccount,
        timing: Timing,
    ) -> Result<Self, SettingsError> {
        let token = settings.bot_token.expose();
        let is_token = token.split_once(':').is_some_and(|(id, secret)| {
            let visible = secret.bytes().all(|byte| byte.is_ascii_alphanumeric() || [b'-', b'_'].contains(&byte));
            id.parse::<u64>().is_ok() && !secret.is_empty() && visible
        });
        if !is_token {
            return Err(SettingsError::Token);
        }
        let root = settings.api_root.trim_end_matches('/');
        let uri: http::Uri = root.parse().map_err(|_| SettingsError::ApiRoot)?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.query().is_some() {
            return Err(SettingsError::ApiRoot);
        }
        let mut http = teloxide::net::default_reqwest_settings()
            .connect_timeout(CONNECT)
            .timeout(timing.poll + timing.call * 2)
            .pool_idle_timeout(IDLE)
            .tcp_keepalive(IDLE)
            .http1_only();
        if is_loopback(uri.host().unwrap_or_default()) {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|error| SettingsError::Client(innermost(&error)))?;
        let root = root.parse().map_err(|_| SettingsError::ApiRoot)?;
        let teloxide = teloxide::Bot::with_client(token, http).set_api_url(root);
        Ok(Self { account, teloxide, timing, me: OnceCell::new() })
    }

    async fn call<P, T>(&self, call: P, within: Duration) -> Result<T, CallError>
    where
        P: Payload + Serialize + Send + 'static,
        T: DeserializeOwned + Send + 'static,
    {
        let request = JsonRequest::new(self.teloxide.clone(), Asked { call, answer: PhantomData });
        match timeout(within, request.send()).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(CallError::NoAnswer(format!("none within {within:?}"))),
        }
    }

    /// Who the bot is.
    pub(super) async fn me(&self) -> Result<&parse::Bot, CallError> {
        #[derive(Deserialize)]
        struct Me {
            id: i64,
            username: String,
        }
        let ask = || async {
            let me: Me = self.call(GetMe::new(), self.timing.call).await?;
            Ok(parse::Bot { account: self.account.clone(), id: me.id, username: me.username })
        };
        self.me.get_or_try_init(ask).await
    }

    /// What waits for the bot is kept.
    pub(super) async fn delete_webhook(&self) -> Result<(), CallError> {
        let call = DeleteWebhook { drop_pending_updates: Some(false) };
        self.call::<_, IgnoredAny>(call, self.timing.call).await.map(drop)
    }

    pub(super) async fn set_webhook(&self, call: &SetWebhook) -> Result<(), CallError> {
        let call = SetWebhook { allowed_updates: Some(allowed()), drop_pending_updates: Some(false), ..call.clone() };
        self.call::<_, IgnoredAny>(call, self.timing.call).await.map(drop)
    }

    /// Waits for updates from `offset` on, and confirms all before it.
    pub(super) async fn get_updates(&self, offset: Option<i32>) -> Result<Vec<Value>, CallError> {
        let call = GetUpdates {
            offset,
            limit: None,
            timeout: Some(u32::try_from(self.timing.poll.as_secs()).unwrap_or(0)),
            allowed_updates: Some(allowed()),
        };
        self.call(call, self.timing.poll + self.timing.call).await
    }

    pub(super) async fn send(&self, to: &Target, text: &str, markup: Markup) -> Result<MessageId, CallError> {
        let mut call = SendMessage::new(to.chat, text);
        call.parse_mode = markup.mode();
        call.message_thread_id = to.thread;
        call.reply_parameters = to.answered.map(|message| ReplyParameters::new(message).allow_sending_without_reply());
        self.call(call, self.timing.call).await
    }

    pub(super) async fn edit(
        &self,
        chat: ChatId,
        message: MessageId,
        text: &str,
        markup: Markup,
    ) -> Result<(), CallError> {
        let mut call = EditMessageText::new(chat, message, text);
        call.parse_mode = markup.mode();
        self.call::<_, IgnoredAny>(call, self.timing.call).await.map(drop)
    }

    pub(super) async fn typing(&self, to: &Target) -> Result<(), CallError> {
        let mut call = SendChatAction::new(Recipient::Id(to.chat), ChatAction::Typing);
        call.message_thread_id = to.thread;
        self.call::<_, IgnoredAny>(call, self.timing.call).await.map(drop)
    }
}

/// Messages, and nothing else that Telegram could tell.
fn allowed() -> Vec<AllowedUpdate> {
    vec![AllowedUpdate::Message]
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(said: &str, expected: fn(String) -> CallError) {
        assert_eq!(CallError::said(said), expected(said.to_owned()));
    }

    #[test]
    fn an_errors_first_words_say_what_follows_from_it() {
        check("Bad Request: can't parse entities: Unclosed start tag", CallError::Markup);
        check("Bad Request: message is not modified: specified new message content", CallError::NotModified);
        check("Bad Request: chat not found", CallError::Refused);
        check("Forbidden: bot was kicked from the group chat", CallError::Refused);
        check("Unauthorized: bot can't initiate conversation with a user", CallError::Refused);
        check("Unauthorized: invalid token specified", CallError::NoToken);
        check("Conflict: terminated by setWebhook request", CallError::Conflict);
        check("Bad Gateway", CallError::NoAnswer);
        check("Internal Server Error: restart", CallError::NoAnswer);
        assert_eq!(CallError::said("Too Many Requests"), CallError::TooMany(TOO_MANY));
    }

    #[test]
    fn only_what_was_not_asked_or_was_answered_is_known() {
        let sent = |error: CallError| SendError::from(error);
        assert!(matches!(sent(CallError::NoConnection("x".into())), SendError::Later { .. }));
        assert!(matches!(sent(CallError::NoAnswer("x".into())), SendError::Unknown(_)));
        assert!(matches!(sent(CallError::Refused("x".into())), SendError::Refused(_)));
        let minute = Duration::from_secs(60);
        assert!(matches!(sent(CallError::TooMany(minute)), SendError::Later { after, .. } if after == minute));
    }
}
