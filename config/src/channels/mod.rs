//! `channels`: bot accounts on chat platforms, and who may talk to them.
//!
//! Settings of a channel stand for all of its accounts; an account's own win, lists as a whole. A channel with a token of
//! its own has the account `default`. [`Channels::telegram_accounts`] and its like give what is in force; the rest of the
//! gateway sees those alone, and nothing here calls a platform.

mod discord;
mod groups;
mod senders;
mod telegram;
mod written;

use std::collections::BTreeMap;
use std::time::Duration;

use openclaw_proto::ids::AgentId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Agents;

pub use discord::{Discord, DiscordAccount, DiscordEntry};
pub use groups::{Group, GroupEntry};
pub use senders::{Platform, Senders};
pub use telegram::{Telegram, TelegramAccount, TelegramEntry, TelegramMode};
pub(crate) use written::Placed;
pub use written::Streaming;

/// Chat platforms. A restart is needed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Channels {
    /// Telegram bots. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub telegram: Option<Telegram>,
    /// Discord bots. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discord: Option<Discord>,
}

impl Channels {
    /// The name of the account whose token is the channel's own.
    pub const DEFAULT_ACCOUNT: &str = "default";

    /// The Telegram bots that are to run, by id.
    pub fn telegram_accounts(&self) -> Vec<TelegramAccount> {
        in_order(self.placed_telegram(), |account| &account.id)
    }

    /// The Discord bots that are to run, by id.
    pub fn discord_accounts(&self) -> Vec<DiscordAccount> {
        in_order(self.placed_discord(), |account| &account.id)
    }

    pub(crate) fn placed_telegram(&self) -> Vec<Placed<TelegramAccount>> {
        self.telegram.as_ref().map(Telegram::placed).unwrap_or_default()
    }

    pub(crate) fn placed_discord(&self) -> Vec<Placed<DiscordAccount>> {
        self.discord.as_ref().map(Discord::placed).unwrap_or_default()
    }
}

/// Where the token of a channel's account `default` is given.
#[derive(Debug, Clone, Copy)]
pub struct Token {
    /// The channel: `telegram`.
    pub channel: &'static str,
    /// Its key, in the channel's section or in an account's: `botToken`.
    pub key: &'static str,
    /// The environment variable that gives what the settings leave open: `TELEGRAM_BOT_TOKEN`.
    pub variable: &'static str,
}

impl Token {
    /// Of every channel.
    pub const ALL: [Self; 2] = [Telegram::TOKEN, Discord::TOKEN];
}

fn in_order<A>(placed: Vec<Placed<A>>, id: fn(&A) -> &String) -> Vec<A> {
    let mut accounts: Vec<A> = placed.into_iter().filter(Placed::runs).map(|placed| placed.account).collect();
    accounts.sort_by(|one, other| id(one).cmp(id(other)));
    accounts
}

/// Who may write to a bot in private.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DmPolicy {
    /// Those in `allowFrom`; strangers get a code, which an operator approves.
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
    /// Groups by id, or `*` for the others; empty: every group, as said here. Once there is one, groups without are not answered.
    pub groups: BTreeMap<String, Group>,
    /// What becomes of a message whose sending had no answer.
    pub unknown: UnknownPolicy,
    /// A reply older than this is not sent any more.
    pub max_age: Duration,
    /// Show the reply while it is written, by editing the message.
    pub streaming: bool,
    /// The agent that answers.
    pub agent_id: String,
}

/// The [`Account`] of an account's own settings over its channel's, which have the same names on every platform.
macro_rules! account {
    ($own:expr, $channel:expr) => {
        $crate::channels::Account {
            dm_policy: $own.dm_policy.unwrap_or($channel.dm_policy),
            allow_from: $own.allow_from.as_ref().unwrap_or(&$channel.allow_from).ids().to_vec(),
            group_policy: $own.group_policy.unwrap_or($channel.group_policy),
            group_allow_from: $own.group_allow_from.as_ref().unwrap_or(&$channel.group_allow_from).ids().to_vec(),
            require_mention: $own.require_mention.unwrap_or($channel.require_mention),
            groups: $crate::channels::groups::in_force($own.groups.as_ref().unwrap_or(&$channel.groups)),
            unknown: $own.unknown.unwrap_or($channel.unknown),
            max_age: $own.max_age.unwrap_or($channel.max_age),
            streaming: $own.streaming.unwrap_or($channel.streaming) == $crate::channels::Streaming::Partial,
            agent_id: $own.agent_id.as_ref().unwrap_or(&$channel.agent_id).to_string(),
        }
    };
}
use account;

/// Telegram keeps what it could not deliver as long.
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

fn main_agent() -> AgentId {
    AgentId::parse(Agents::MAIN).expect("the name of the main agent follows the rules of names")
}
