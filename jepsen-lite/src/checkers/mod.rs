//! What must hold, judged from a history and a final look at the system. One file per property; each has tests that
//! plant the bug it exists for.

pub mod answers;
pub mod append;
pub mod availability;
pub mod convergence;
pub mod conversations;
pub mod leases;
pub mod register;
pub mod single_owner;
pub mod turn;

use serde::{Deserialize, Serialize};

/// Something that must never be, as it stands in a verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its kind: `lost`, `doubled`, `stale-read`.
    pub anomaly: String,
    pub message: String,
    /// The operations that it is about, as the history numbers them.
    pub ops: Vec<u64>,
}

/// What one checker looked at, and what it found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    pub checker: String,
    /// False: it could not come to a judgement, which is no pass.
    pub decided: bool,
    /// Its own numbers, by name.
    pub figures: serde_json::Value,
    pub found: Vec<Found>,
}

impl Check {
    pub fn passed(&self) -> bool {
        self.decided && self.found.is_empty()
    }
}
