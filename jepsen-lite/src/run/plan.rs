//! What a run does, written down before it begins: `plan.json`. The same plan does the same again.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::cluster::Environment;
use crate::lab;
use crate::nemesis::Kind;
use crate::nemesis::schedule::Schedule;
use crate::workloads::Workload;

/// All that decides what a run does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    pub workloads: Vec<Workload>,
    /// `loopback` or `namespaces`.
    pub environment: String,
    /// In namespaces, what each link does to frames all the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<String>,
    /// Of each workload.
    pub clients: u32,
    /// Pause of each client after a write, in milliseconds.
    pub pause_ms: u64,
    /// Log entries between two snapshots, and those that stay behind one: few, so that snapshots fall into faults.
    pub snapshot_every: u64,
    pub log_keep: u64,
    pub schedule: Schedule,
}

/// Names of environments.
pub const LOOPBACK: &str = "loopback";
pub const NAMESPACES: &str = "namespaces";

impl Plan {
    /// Every fault that is going to be done.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> + '_ {
        self.schedule.steps.iter().flat_map(|step| [Some(step.kind), step.beside]).flatten()
    }

    /// Where to start instances, so that their links can be broken.
    ///
    /// # Errors
    /// When there is no such environment, or it has no such links.
    pub fn environment(&self) -> Result<Environment> {
        match self.environment.as_str() {
            LOOPBACK => {
                ensure!(self.shape.is_none(), "shape: links on loopback have none; {NAMESPACES} have");
                Ok(Environment::Loopback { proxied: true })
            }
            NAMESPACES => {
                let shape = self.shape.as_deref().unwrap_or_default();
                let shape = if shape.is_empty() { lab::Shape::default() } else { shape.parse().context("shape")? };
                Ok(Environment::Namespaces(lab::Options { shape, seed: self.schedule.seed }))
            }
            other => bail!("environment: {other:?} is neither {LOOPBACK} nor {NAMESPACES}"),
        }
    }
}
