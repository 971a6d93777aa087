//! `channels`: bot accounts on chat platforms, and who may talk to them.
//!
//! Settings of a channel stand for all of its accounts; an account's own win. A channel with a token of its own and no
//! `accounts` has the one account `default`.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::Secret;

/// Chat platforms. A restart is needed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Channels {
    /// Telegram bots.
    pub telegram: Telegram,
    /// Discord bots.
    pub discord: Discord,
}

/// Who may write to a bot in private.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DmPolicy {
    /// Strangers get a code, which an operator approves.
    #[default]
    Pairing,
    /// Those in `allowFrom`.
    Allowlist,
    /// Everybody.
    Open,
    /// Nobody.
    Disabled,
}

/// Who may write to a bot in groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GroupPolicy {
    /// Those in `groupAllowFrom`, or else in `allowFrom`.
    #[default]
    Allowlist,
    /// Everybody in a group that the bot is in.
    Open,
    /// Nobody.
    Disabled,
}

/// What becomes of a message that may or may not have been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UnknownPolicy {
    /// It is sent again: it may arrive twice, and is not lost.
    #[default]
    Resend,
    /// It waits for an operator: it may be lost, and does not arrive twice.
    Hold,
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

/// What a bot account on any platform has: who may talk to it, and how it answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Account {
    /// Who may write in private.
    pub dm_policy: DmPolicy,
    /// Ids of people, in digits, or `*`.
    pub allow_from: Vec<String>,
    /// Who may write in groups.
    pub group_policy: GroupPolicy,
    /// Ids of people, in digits, or `*`; empty: `allow_from`.
    pub group_allow_from: Vec<String>,
    /// In groups, only messages that name the bot or answer it.
    pub require_mention: bool,
    /// What becomes of a message whose sending had no answer.
    pub unknown: UnknownPolicy,
    /// A reply older than this is not sent any more.
    pub max_age: Duration,
    /// Show the reply while it is written, by editing the message.
    pub streaming: bool,
    /// The agent that answers.
    pub agent_id: String,
}

/// One Telegram bot, with the channel's settings where it has none of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct TelegramAccount {
    /// Its name: `default`.
    pub id: String,
    /// Of the Bot API.
    pub bot_token: Secret,
    /// Base URL of the Bot API: `https://api.telegram.org`.
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

/// One Discord bot, with the channel's settings where it has none of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct DiscordAccount {
    /// Its name: `default`.
    pub id: String,
    /// Of the bot.
    pub token: Secret,
    /// Base URL of the REST API, without `/api/v10`: `https://discord.com`.
    pub api_root: String,
    /// URL of the gateway; none: the one that the REST API names.
    pub gateway_url: Option<String>,
    /// What all platforms have.
    pub account: Account,
}

/// Telegram bots.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Telegram {
    /// Of the account `default`.
    pub bot_token: Option<Secret>,
    /// Further accounts, by name.
    pub accounts: BTreeMap<String, TelegramEntry>,
}

/// One of several Telegram bots.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TelegramEntry {
    /// Of the Bot API.
    pub bot_token: Option<Secret>,
}

/// Discord bots.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Discord {
    /// Of the account `default`.
    pub token: Option<Secret>,
}
