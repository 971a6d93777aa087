//! `session` and `messages`: how the messages of a conversation become turns.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::millis;

/// Turns of a conversation. A restart is needed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Session {
    /// Longest life of one attempt at a turn, in milliseconds. Default 300000; at least 1000, at most 24 h.
    #[serde(rename = "turnTimeoutMs", with = "millis")]
    #[schemars(with = "u64")]
    pub turn_timeout: Duration,
    /// Attempts at a turn, on this or another instance, before it fails. Default 3; range 1 to 10. What a process
    /// began that is started again before it counts as lost may begin ten times, whatever this says.
    pub max_attempts: u32,
    /// Which private messages on channels share a conversation. Default `main`: all of them, so use another where several
    /// people write.
    pub dm_scope: DmScope,
    /// Which messages in groups share a conversation. Default `per-group`.
    pub group_scope: GroupScope,
    /// Messages that begin a conversation anew, alone or before further text. Default `/new` and `/reset`; at most 32 of
    /// 1 to 64 bytes each. An empty list: none.
    pub reset_triggers: Vec<String>,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            turn_timeout: Duration::from_secs(300),
            max_attempts: 3,
            dm_scope: DmScope::default(),
            group_scope: GroupScope::default(),
            reset_triggers: vec!["/new".into(), "/reset".into()],
        }
    }
}

/// Which private messages on channels share a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DmScope {
    /// All that are for one agent.
    #[default]
    Main,
    /// Those of one person, by the platform's id.
    PerPeer,
    /// Those of one person on one platform.
    PerChannelPeer,
    /// Those of one person to one bot account.
    PerAccountChannelPeer,
}

/// Which messages in groups share a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GroupScope {
    /// Those of one group, or of one topic or thread in it.
    #[default]
    PerGroup,
    /// All that are for one agent, private messages of scope `main` among them.
    Main,
}

/// What happens to messages before they become turns. A restart is needed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Messages {
    /// Messages that wait for the turn before them.
    pub queue: Queue,
}

/// Messages that wait for the turn before them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Queue {
    /// Turns that may wait in one session; the next message is refused. Default 20; range 1 to 1000.
    pub cap: u32,
}

impl Default for Queue {
    fn default() -> Self {
        Self { cap: 20 }
    }
}
