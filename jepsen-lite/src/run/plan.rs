//! What a run does, written down before it begins: `plan.json`. The same plan does the same again.

use serde::{Deserialize, Serialize};

use crate::nemesis::schedule::Schedule;
use crate::workloads::Workload;

/// All that decides what a run does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    pub workloads: Vec<Workload>,
    /// `loopback` or `namespaces`.
    pub environment: String,
    /// Of each workload.
    pub clients: u32,
    /// Pause of each client after a write, in milliseconds.
    pub pause_ms: u64,
    /// Log entries between two snapshots, and those that stay behind one: few, so that snapshots fall into faults.
    pub snapshot_every: u64,
    pub log_keep: u64,
    pub schedule: Schedule,
}
