//! The settings an operator may write: their types, defaults and documentation.
//!
//! A [`Config`] is plain data. Other parts receive their section of it, never the whole, and never a default of their own.
//! [`load`] makes one from files, environment and flags, and refuses what it cannot read or what breaks a rule, all of it
//! at once. Nothing here opens a socket, reads a certificate or creates a directory.
#![warn(missing_docs)]

pub mod agents;
pub mod channels;
pub mod cluster;
mod decode;
pub mod diagnostics;
mod document;
#[cfg(test)]
mod fuzz;
pub mod gateway;
mod load;
pub mod logging;
pub mod models;
mod problem;
pub mod session;
mod show;
pub mod storage;
mod upstream;
mod validate;
mod values;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use agents::Agents;
pub use channels::Channels;
pub use cluster::Cluster;
pub use diagnostics::Diagnostics;
pub use gateway::Gateway;
pub use load::{Loaded, Override, Sources, VARIABLES, load};
pub use logging::Logging;
pub use models::Models;
pub use problem::{Errors, Problem, Source, Warning};
pub use session::{Messages, Session};
pub use show::{effective, schema};
pub use storage::Storage;
pub use values::{ByteCount, HostPort, IpRange, ModelRef, ParseError, Secret};

/// All settings of one instance.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// The public HTTP listener.
    pub gateway: Gateway,
    /// Where state lives.
    pub storage: Storage,
    /// This instance and its peers.
    pub cluster: Cluster,
    /// Providers of models.
    pub models: Models,
    /// Agents.
    pub agents: Agents,
    /// Bot accounts on chat platforms.
    pub channels: Channels,
    /// Turns of a conversation.
    pub session: Session,
    /// Messages before they become turns.
    pub messages: Messages,
    /// Logs.
    pub logging: Logging,
    /// Traces, and the limits of health.
    pub diagnostics: Diagnostics,
}

impl Config {
    /// Where this instance's public listener is reached by others: `cluster.advertiseHttp`, else the host of the peer
    /// address with `gateway.port`.
    pub fn http_address(&self) -> Option<HostPort> {
        let derived = || HostPort::new(self.cluster.peer_address()?.host(), self.gateway.port).ok();
        self.cluster.advertise_http.clone().or_else(derived)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_survive_their_own_file_form() {
        let text = serde_json::to_string_pretty(&Config::default()).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), Config::default());
    }
}
