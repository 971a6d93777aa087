//! The calls to the Bot API: which, how they are bounded, and what their answers mean.
//!
//! Calls are teloxide's payloads; the asking is not its own, since no request of its client can be held back when the lease
//! ends on its way (`guard`), its types refuse a message that holds anything newer than they are - and a message that was
//! sent would count as unknown - and it sleeps for seconds after a 5xx. So answers are read as no more than what is
//! needed of them. HTTP/1 alone, so that a call that is dropped closes its connection and is over.

use std::fmt;
use std::time::Duration;

use openclaw_config::channels::TelegramAccount;
use openclaw_proto::ids::ChannelAccount;
use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use teloxide::payloads::{
    DeleteWebhook, EditMessageText, GetMe, GetUpdates, GetWebhookInfo, SendChatAction, SendMessage, SetWebhook,
};
use teloxide::requests::Payload;
use teloxide::types::{AllowedUpdate, ChatAction, ChatId, MessageId, ParseMode, Recipient, ReplyParameters, ThreadId};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::{SettingsError, Timing, parse};
use crate::channels::{ReceiveError, SendError, Tenure, guard};
use crate::http_client::{self, causes};
use crate::message::ReplyAddress;

/// Less than a call may take, so that a call that could not connect is known for it.
const CONNECT: Duration = Duration::from_secs(5);
const USER_AGENT: &str = concat!("openclaw/", env!("CARGO_PKG_VERSION"));
/// Telegram closes connections that idle for longer; a message on one of those would be lost or not.
const IDLE: Duration = Duration::from_secs(30);
/// The largest answer that is read: a hundred updates.
const ANSWER_BYTES: usize = 16 << 20;
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

/// How a webhook is, as far as it tells whether messages come.
#[derive(Debug, Deserialize)]
pub(super) struct WebhookInfo {
    /// Empty: there is none.
    pub(super) url: String,
    pub(super) pending_update_count: u64,
    /// Unix seconds of the last delivery that failed, and why it did.
    pub(super) last_error_date: Option<u64>,
    pub(super) last_error_message: Option<String>,
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

impl From<CallError> for SendError {
    fn from(error: CallError) -> Self {
        let reason = error.to_string();
        match error {
            CallError::NoConnection(_) => Self::Later { reason, after: NO_CONNECTION, asked: false },
            CallError::NoToken(_) => Self::Later { reason, after: NO_TOKEN, asked: false },
            CallError::TooMany(after) => Self::Later { reason, after, asked: true },
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

/// What the Bot API says to a call.
#[derive(Deserialize)]
struct Answer<T> {
    ok: bool,
    result: Option<T>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Parameters {
    migrate_to_chat_id: Option<i64>,
    /// In seconds.
    retry_after: Option<u64>,
}

impl<T> Answer<T> {
    fn meaning(self) -> Result<T, CallError> {
        match self {
            Self { ok: true, result: Some(result), .. } => Ok(result),
            Self { ok: true, result: None, .. } => Err(CallError::NoAnswer("an answer without a result".into())),
            Self { parameters: Parameters { retry_after: Some(seconds), .. }, .. } => {
                Err(CallError::TooMany(Duration::from_secs(seconds)))
            }
            Self { parameters: Parameters { migrate_to_chat_id: Some(to), .. }, .. } => {
                Err(CallError::Migrated(ChatId(to)))
            }
            Self { description, .. } => Err(CallError::said(&description)),
        }
    }
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
    http: reqwest::Client,
    /// It ends with the token.
    api: String,
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
        let url = Url::parse(root).map_err(|_| SettingsError::ApiRoot)?;
        if !matches!(url.scheme(), "http" | "https") || url.query().is_some() {
            return Err(SettingsError::ApiRoot);
        }
        let http = http_client::builder(&url, USER_AGENT, CONNECT)
            .pool_idle_timeout(IDLE)
            .http1_only()
            .build()
            .map_err(|error| SettingsError::Client(causes(error)))?;
        Ok(Self { account, http, api: format!("{root}/bot{token}"), timing, me: OnceCell::new() })
    }

    /// Asks, unless `tenure` is over by the time the request leaves.
    async fn call<P, T>(&self, tenure: Option<&Tenure>, call: &P, within: Duration) -> Result<T, CallError>
    where
        P: Payload + Serialize,
        T: DeserializeOwned,
    {
        let body = serde_json::to_vec(call).map_err(|error| CallError::Refused(error.to_string()))?;
        let request = self
            .http
            .post(format!("{}/{}", self.api, P::NAME))
            .header(CONTENT_TYPE, "application/json")
            .body(guard::body(tenure, body));
        let answer = async {
            let mut response = request.send().await.map_err(unanswered)?;
            let mut all = Vec::new();
            while let Some(bytes) = response.chunk().await.map_err(unanswered)? {
                all.extend_from_slice(&bytes);
                if all.len() > ANSWER_BYTES {
                    return Err(CallError::NoAnswer(format!("one of more than {ANSWER_BYTES} bytes")));
                }
            }
            Ok(all)
        };
        match timeout(within, answer).await {
            // What came instead may quote people.
            Ok(answer) => serde_json::from_slice::<Answer<T>>(&answer?)
                .map_err(|_| CallError::NoAnswer("what came is not of the Bot API".into()))?
                .meaning(),
            Err(_) => Err(CallError::NoAnswer(format!("none within {within:?}"))),
        }
    }

    /// Who the bot is.
    pub(super) async fn me(&self, tenure: Option<&Tenure>) -> Result<&parse::Bot, CallError> {
        #[derive(Deserialize)]
        struct Me {
            id: i64,
            username: String,
        }
        let ask = || async {
            let me: Me = self.call(tenure, &GetMe::new(), self.timing.call).await?;
            Ok(parse::Bot { account: self.account.clone(), id: me.id, username: me.username })
        };
        self.me.get_or_try_init(ask).await
    }

    /// What waits for the bot is kept.
    pub(super) async fn delete_webhook(&self, tenure: &Tenure) -> Result<(), CallError> {
        let call = DeleteWebhook { drop_pending_updates: Some(false) };
        self.call::<_, IgnoredAny>(Some(tenure), &call, self.timing.call).await.map(drop)
    }

    pub(super) async fn set_webhook(&self, tenure: &Tenure, call: &SetWebhook) -> Result<(), CallError> {
        let call = SetWebhook { allowed_updates: Some(allowed()), drop_pending_updates: Some(false), ..call.clone() };
        self.call::<_, IgnoredAny>(Some(tenure), &call, self.timing.call).await.map(drop)
    }

    /// What Telegram says of the account's webhook.
    pub(super) async fn webhook_info(&self, tenure: &Tenure) -> Result<WebhookInfo, CallError> {
        self.call(Some(tenure), &GetWebhookInfo::new(), self.timing.call).await
    }

    /// Waits at most so long for updates from `offset` on, and confirms all before it.
    pub(super) async fn get_updates(
        &self,
        tenure: &Tenure,
        offset: Option<i32>,
        wait: Duration,
    ) -> Result<Vec<Value>, CallError> {
        let call = GetUpdates {
            offset,
            limit: None,
            timeout: Some(u32::try_from(wait.as_secs()).unwrap_or(0)),
            allowed_updates: Some(allowed()),
        };
        self.call(Some(tenure), &call, wait + self.timing.call).await
    }

    pub(super) async fn send(
        &self,
        tenure: &Tenure,
        to: &Target,
        text: &str,
        markup: Markup,
    ) -> Result<MessageId, CallError> {
        #[derive(Deserialize)]
        struct Sent {
            message_id: i32,
        }
        let mut call = SendMessage::new(to.chat, text);
        call.parse_mode = markup.mode();
        call.message_thread_id = to.thread;
        call.reply_parameters = to.answered.map(|message| ReplyParameters::new(message).allow_sending_without_reply());
        let sent: Sent = self.call(Some(tenure), &call, self.timing.call).await?;
        Ok(MessageId(sent.message_id))
    }

    pub(super) async fn edit(
        &self,
        tenure: &Tenure,
        chat: ChatId,
        message: MessageId,
        text: &str,
        markup: Markup,
    ) -> Result<(), CallError> {
        let mut call = EditMessageText::new(chat, message, text);
        call.parse_mode = markup.mode();
        self.call::<_, IgnoredAny>(Some(tenure), &call, self.timing.call).await.map(drop)
    }

    pub(super) async fn typing(&self, tenure: &Tenure, to: &Target) -> Result<(), CallError> {
        let mut call = SendChatAction::new(Recipient::Id(to.chat), ChatAction::Typing);
        call.message_thread_id = to.thread;
        self.call::<_, IgnoredAny>(Some(tenure), &call, self.timing.call).await.map(drop)
    }
}

/// Messages, and nothing else that Telegram could tell.
fn allowed() -> Vec<AllowedUpdate> {
    vec![AllowedUpdate::Message]
}

fn unanswered(error: reqwest::Error) -> CallError {
    if error.is_connect() || error.is_builder() || guard::held_back(&error) {
        CallError::NoConnection(causes(error))
    } else {
        CallError::NoAnswer(causes(error))
    }
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
