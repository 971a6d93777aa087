//! Clients: what they ask of a cluster, and what they are told. Each writes into the history that it is given.

pub mod append;
pub mod progress;
pub mod register;

use std::sync::Arc;

use progress::Progress;

use crate::history::Recorder;

/// What the workloads of one run have in common.
#[derive(Debug, Clone, Default)]
pub struct Shared {
    pub recorder: Arc<Recorder>,
    pub progress: Arc<Progress>,
}
