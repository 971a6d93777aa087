//! One RocksDB per instance, for the log and the state of all its groups.
//!
//! Log, vote and state machine share one write-ahead log, so one `fdatasync` covers everything that waits for the disk,
//! and what survives a crash is a prefix of what was written: a state that holds command i lies after log entry i in
//! that prefix, so it can never be ahead of its log.

mod engine;
mod keys;
mod log_store;
mod offline;
mod owner;
mod snapshot_store;
mod state_store;
#[cfg(test)]
mod tests;
mod torn_log;

pub(crate) use engine::Engine;
pub use engine::{Counters, OpenError, disk_failed};
pub(crate) use log_store::LogStore;
pub use offline::{OfflineError, RestoreError, RestoreOptions, Restored, of_stopped, restore};
pub use owner::why_refused;
pub(crate) use snapshot_store::{SnapshotFile, SnapshotStore};
pub(crate) use state_store::{StateReader, StateStore, TableReader};
