//! `channels.discord`.

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

/// Discord bots: the account `default`, and `accounts`, for which these settings stand too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Discord {
    /// Whether Discord bots run. Default true.
    pub enabled: bool,
    /// Token of the account `default`, without `Bot `. The bot needs the Message Content intent. Default: the environment
    /// variable `DISCORD_BOT_TOKEN`, if `accounts` is empty or has a `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// Base URL of the REST API, without `/api/v10`; `https://`, or `http://` to this machine. Default `https://discord.com`.
    pub api_root: String,
    /// URL of the gateway, without a query; `wss://`, or `ws://` to this machine. Default: the one that the REST API names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_url: Option<String>,
    /// Who may write in private. Default `pairing`; `open` needs `"*"` in `allowFrom`.
    pub dm_policy: DmPolicy,
    /// Who may write: numeric ids of people, or `"*"` for everybody. Default nobody.
    pub allow_from: Senders<Discord>,
    /// Who may write in the channels of servers. Default `allowlist`.
    pub group_policy: GroupPolicy,
    /// Who may write in the channels of servers, as in `allowFrom`. Default: those in `allowFrom`.
    pub group_allow_from: Senders<Discord>,
    /// In the channels of servers, answer only messages that name the bot or reply to it. Default true.
    pub require_mention: bool,
    /// Channels of servers in which the bot answers, by id, or `"*"` for those that are not listed; a thread is part of its channel.
    /// Once there is an entry, the bot is silent in channels without one. Under `allowlist` everybody may write in a channel that
    /// is listed by its id, if nobody is listed for it, in `groupAllowFrom` or in `allowFrom`. Servers, upstream's `guilds`,
    /// cannot be told apart yet. Default none: every channel, as said here.
    pub groups: BTreeMap<String, GroupEntry<Discord>>,
    /// Whether a reply that takes longer than a second is shown while it is written, in a message that is edited and that it then
    /// takes the place of. Default `off`.
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
    pub accounts: BTreeMap<String, DiscordEntry>,
}

impl Default for Discord {
    fn default() -> Self {
        Self {
            enabled: true,
            token: None,
            api_root: "https://discord.com".into(),
            gateway_url: None,
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

/// One of several Discord bots. What it does not say is taken from `channels.discord`; its token never is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DiscordEntry {
    /// Whether this bot runs. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Its token, without `Bot `. Default: none, or for the account `default` the environment variable `DISCORD_BOT_TOKEN`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// Base URL of the REST API, without `/api/v10`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_root: Option<String>,
    /// URL of the gateway, without a query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_url: Option<String>,
    /// Who may write in private.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dm_policy: Option<DmPolicy>,
    /// Who may write: numeric ids of people, or `"*"` for everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_from: Option<Senders<Discord>>,
    /// Who may write in the channels of servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_policy: Option<GroupPolicy>,
    /// Who may write in the channels of servers, as in `allowFrom`; an empty list: those in `allowFrom`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_allow_from: Option<Senders<Discord>>,
    /// In the channels of servers, answer only messages that name the bot or reply to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_mention: Option<bool>,
    /// Channels of servers in which the bot answers, by id, or `"*"` for those that are not listed. They replace those of
    /// `channels.discord`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<BTreeMap<String, GroupEntry<Discord>>>,
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

/// One Discord bot, with the channel's settings where it has none of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct DiscordAccount {
    /// Its name: `default`.
    pub id: String,
    /// Of the bot.
    pub token: Secret,
    /// Base URL of the REST API, without `/api/v10` or a slash at its end: `https://discord.com`.
    pub api_root: String,
    /// URL of the gateway; none: the one that the REST API names.
    pub gateway_url: Option<String>,
    /// What all platforms have.
    pub account: Account,
}

impl Discord {
    pub(crate) const TOKEN: Token = Token { channel: "discord", key: "token", variable: "DISCORD_BOT_TOKEN" };
    const STREAMING: Streaming = Streaming::Off;

    /// All that is written, whether it runs or not: the channel's own account first.
    pub(crate) fn placed(&self) -> Vec<Placed<DiscordAccount>> {
        let own = DiscordEntry { token: self.token.clone(), ..DiscordEntry::default() };
        let mut own = Placed::of_channel(Self::TOKEN, self.enabled, own.token.is_some(), self.over(None, &own));
        own.needs_token = self.accounts.is_empty();
        let accounts = self.accounts.iter();
        let accounts = accounts.map(|(id, entry)| {
            own.entry(id, entry, entry.enabled.unwrap_or(true), entry.token.is_some(), self.over(Some(id), entry))
        });
        let mut placed: Vec<_> = accounts.collect();
        placed.insert(0, own);
        placed
    }

    /// A token that is missing becomes an empty one; [`Placed::runs`] tells.
    fn over(&self, id: Option<&str>, own: &DiscordEntry) -> DiscordAccount {
        DiscordAccount {
            id: id.unwrap_or(Channels::DEFAULT_ACCOUNT).to_owned(),
            token: own.token.clone().unwrap_or_else(|| Secret::new("")),
            api_root: own.api_root.as_ref().unwrap_or(&self.api_root).trim_end_matches('/').to_owned(),
            gateway_url: own.gateway_url.as_ref().or(self.gateway_url.as_ref()).cloned(),
            account: account!(own, self),
        }
    }
}

impl Platform for Discord {
    const PREFIXES: &[&str] = &["discord:"];
}

fn streaming_or_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Streaming, D::Error> {
    Ok(streaming(deserializer)?.unwrap_or(Discord::STREAMING))
}
