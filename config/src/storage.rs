//! `storage`: where state lives.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::Secret;

/// Where state lives. Every key needs a restart to take effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Storage {
    /// Directory of all instances; each keeps its own data in `<dataDir>/<instanceId>/`, so several may share it.
    /// Default `~/.openclaw/cluster`, or `cluster` below `OPENCLAW_STATE_DIR`. A leading `~/` is the home directory.
    /// Also `--data-dir`, `OPENCLAW_DATA_DIR`.
    pub data_dir: PathBuf,
    /// What holds sessions and leases. Default `raft`.
    pub backend: Backend,
    /// The Redis to use when `backend` is `redis`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<Redis>,
    /// Where transcripts are when `backend` is `fs`.
    pub sessions: Sessions,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("~/.openclaw/cluster"),
            backend: Backend::Raft,
            redis: None,
            sessions: Sessions::default(),
        }
    }
}

/// What holds sessions and leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The instances themselves, replicated among them.
    #[default]
    Raft,
    /// A Redis server, its Sentinels, or a Redis Cluster.
    Redis,
    /// A directory that all instances share.
    Fs,
}

/// How to reach Redis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Redis {
    /// `redis://host:port` or `rediss://host:port`, without a password in it. Default `redis://127.0.0.1:6379`.
    pub url: String,
    /// Password. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Database number. Default 0; range 0 to 65535.
    pub db: u16,
    /// Text before every key. Default `openclaw:`.
    pub key_prefix: String,
    /// Connections kept open. Default 10; range 1 to 1000.
    pub pool_size: u32,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379".into(),
            password: None,
            db: 0,
            key_prefix: "openclaw:".into(),
            pool_size: 10,
        }
    }
}

/// Where transcripts are.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Sessions {
    /// Directory of transcripts for the `fs` backend. Default `<dataDir>/sessions`. Other backends ignore it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
}
