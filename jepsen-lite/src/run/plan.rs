//! What a run does, written down before it begins: `plan.json`. The same plan does the same again.

use serde::{Deserialize, Serialize};

use crate::nemesis::schedule::Schedule;

/// All that decides what a run does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// By name, as `list` has them.
    pub workloads: Vec<String>,
    /// `loopback` or `namespaces`.
    pub environment: String,
    pub clients: u32,
    /// Pause of each client after a write, in milliseconds.
    pub pause_ms: u64,
    pub schedule: Schedule,
}
