//! `channels.telegram`.

use std::collections::BTreeMap;
use std::time::Duration;

use openclaw_proto::ids::AgentId;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::groups::GroupEntry;
use super::senders::{Platform, Senders};
use super::written::{Placed, Streaming, streaming};
use super::{Account, Channels, DEFAULT_MAX_AGE, DmPolicy, GroupPolicy, Token, UnknownPolicy, account, main_agent};
use crate::values::{Secret, millis, millis_option};

/// Telegram bots: the account `default`, and `accounts`, for which these settings stand too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Telegram {
    /// Whether Telegram bots run. Default true.
    pub enabled: bool,
    /// Token of the account `default`, as @BotFather gives it: `<digits>:<letters>`. Default: the environment variable
    /// `TELEGRAM_BOT_TOKEN`, if `accounts` is empty or has a `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bot_token: Option<Secret>,
    /// Base URL of the Bot API, without `/bot<token>`; `https://`, or `http://` to this machine.
    /// Default `https://api.telegram.org`.
    pub api_root: String,
    /// How messages come. Default: `webhook` when `webhookUrl` is given, else `polling`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<TelegramMode>,
    /// The whole URL that Telegram calls in webhook mode, another one for each account. From there the request must come to
    /// `/api/v1/webhooks/telegram/<account>` of any instance: `https://bot.example/api/v1/webhooks/telegram/default`.
    /// `https://`, or `http://` to this machine. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,
    /// What Telegram proves itself with in webhook mode, 1 to 256 letters, digits, `_` and `-`. Needed there. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook_secret: Option<Secret>,
    /// Who may write in private. Default `pairing`; `open` needs `"*"` in `allowFrom`.
    pub dm_policy: DmPolicy,
    /// Who may write: numeric ids of people, or `"*"` for everybody. Default nobody.
    pub allow_from: Senders<Telegram>,
    /// Who may write in groups. Default `allowlist`.
    pub group_policy: GroupPolicy,
    /// Who may write in groups, as in `allowFrom`. Default: those in `allowFrom`.
    pub group_allow_from: Senders<Telegram>,
    /// In groups, answer only messages that name the bot or reply to it. Default true.
    pub require_mention: bool,
    /// Groups in which the bot answers, by id: `"-1001234567890"`, or `"*"` for those that are not listed. Once there is an entry, the
    /// bot is silent in groups without one. Under `allowlist` everybody may write in a group that is listed by its id, if nobody
    /// is listed for it, in `groupAllowFrom` or in `allowFrom`. A group that becomes a supergroup gets another id. Default none:
    /// every group, as said here.
    pub groups: BTreeMap<String, GroupEntry<Telegram>>,
    /// Whether a reply that takes longer than a second is shown while it is written, in a message that is edited and that it then
    /// takes the place of. Default `partial`.
    #[serde(deserialize_with = "streaming_or_default")]
    pub streaming: Streaming,
    /// What becomes of a reply whose sending had no answer. Default `resend`.
    pub unknown: UnknownPolicy,
    /// A reply older than this is not sent any more, in milliseconds. Default 24 h; range 1000 to 7 days.
    #[serde(rename = "maxAgeMs", with = "millis")]
    #[schemars(with = "u64")]
    pub max_age: Duration,
    /// The agent that answers, of `agents.entries`. Default `main`.
    #[schemars(with = "String")]
    pub agent_id: AgentId,
    /// Further bots, by a name of a-z, 0-9, `_` and `-`. Default none.
    pub accounts: BTreeMap<String, TelegramEntry>,
}

impl Default for Telegram {
    fn default() -> Self {
        Self {
            enabled: true,
            bot_token: None,
            api_root: "https://api.telegram.org".into(),
            mode: None,
            webhook_url: None,
            webhook_secret: None,
            dm_policy: DmPolicy::default(),
            allow_from: Senders::default(),
            group_policy: GroupPolicy::default(),
            group_allow_from: Senders::default(),
            require_mention: true,
            groups: BTreeMap::new(),
            streaming: Self::STREAMING,
            unknown: UnknownPolicy::default(),
            max_age: DEFAULT_MAX_AGE,
            agent_id: main_agent(),
            accounts: BTreeMap::new(),
        }
    }
}

/// One of several Telegram bots. What it does not say is taken from `channels.telegram`; its token never is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TelegramEntry {
    /// Whether this bot runs. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Its token, as @BotFather gives it. Default: none, or for the account `default` the environment variable
    /// `TELEGRAM_BOT_TOKEN`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bot_token: Option<Secret>,
    /// Base URL of the Bot API, without `/bot<token>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_root: Option<String>,
    /// How messages come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<TelegramMode>,
    /// The whole URL that Telegram calls in webhook mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,
    /// What Telegram proves itself with in webhook mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook_secret: Option<Secret>,
    /// Who may write in private.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dm_policy: Option<DmPolicy>,
    /// Who may write: numeric ids of people, or `"*"` for everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_from: Option<Senders<Telegram>>,
    /// Who may write in groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_policy: Option<GroupPolicy>,
    /// Who may write in groups, as in `allowFrom`; an empty list: those in `allowFrom`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_allow_from: Option<Senders<Telegram>>,
    /// In groups, answer only messages that name the bot or reply to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_mention: Option<bool>,
    /// Groups in which the bot answers, by id, or `"*"` for those that are not listed. They replace those of the channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<BTreeMap<String, GroupEntry<Telegram>>>,
    /// Whether a reply is shown while it is written.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "streaming")]
    pub streaming: Option<Streaming>,
    /// What becomes of a reply whose sending had no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<UnknownPolicy>,
    /// A reply older than this is not sent any more, in milliseconds.
    #[serde(rename = "maxAgeMs", skip_serializing_if = "Option::is_none", with = "millis_option")]
    #[schemars(with = "Option<u64>")]
    pub max_age: Option<Duration>,
    /// The agent that answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub agent_id: Option<AgentId>,
}

/// How messages come from Telegram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TelegramMode {
    /// The owner asks for them.
    #[default]
    Polling,
    /// Telegram calls `webhookUrl`, which leads to any instance.
    Webhook,
}

/// One Telegram bot, with the channel's settings where it has none of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct TelegramAccount {
    /// Its name: `default`.
    pub id: String,
    /// Of the Bot API.
    pub bot_token: Secret,
    /// Base URL of the Bot API, without a slash at its end: `https://api.telegram.org`.
    pub api_root: String,
    /// Polling or webhook.
    pub mode: TelegramMode,
    /// Where Telegram finds this cluster, in webhook mode.
    pub webhook_url: Option<String>,
    /// What Telegram proves itself with, in webhook mode.
    pub webhook_secret: Option<Secret>,
    /// What all platforms have.
    pub account: Account,
}

impl Telegram {
    pub(crate) const TOKEN: Token = Token { channel: "telegram", key: "botToken", variable: "TELEGRAM_BOT_TOKEN" };
    const STREAMING: Streaming = Streaming::Partial;

    /// All that is written, whether it runs or not: the channel's own account first.
    pub(crate) fn placed(&self) -> Vec<Placed<TelegramAccount>> {
        let own = TelegramEntry { bot_token: self.bot_token.clone(), ..TelegramEntry::default() };
        let mut own = Placed::of_channel(Self::TOKEN, self.enabled, own.bot_token.is_some(), self.over(None, &own));
        own.needs_token = self.accounts.is_empty();
        let accounts = self.accounts.iter();
        let accounts = accounts.map(|(id, entry)| {
            own.entry(id, entry, entry.enabled.unwrap_or(true), entry.bot_token.is_some(), self.over(Some(id), entry))
        });
        let mut placed: Vec<_> = accounts.collect();
        placed.insert(0, own);
        placed
    }

    /// A token that is missing becomes an empty one; [`Placed::runs`] tells.
    fn over(&self, id: Option<&str>, own: &TelegramEntry) -> TelegramAccount {
        let webhook_url = own.webhook_url.as_ref().or(self.webhook_url.as_ref()).cloned();
        let by_url = || if webhook_url.is_some() { TelegramMode::Webhook } else { TelegramMode::Polling };
        TelegramAccount {
            id: id.unwrap_or(Channels::DEFAULT_ACCOUNT).to_owned(),
            bot_token: own.bot_token.clone().unwrap_or_else(|| Secret::new("")),
            api_root: own.api_root.as_ref().unwrap_or(&self.api_root).trim_end_matches('/').to_owned(),
            mode: own.mode.or(self.mode).unwrap_or_else(by_url),
            webhook_url,
            webhook_secret: own.webhook_secret.as_ref().or(self.webhook_secret.as_ref()).cloned(),
            account: account!(own, self),
        }
    }
}

impl Platform for Telegram {
    const PREFIXES: &[&str] = &["telegram:", "tg:"];
}

fn streaming_or_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Streaming, D::Error> {
    Ok(streaming(deserializer)?.unwrap_or(Telegram::STREAMING))
}
