//! Consensus, and the state it replicates.
//!
//! [`Node`] is the door: it proposes commands, reads state, and tells what was applied. Behind it, openraft decides
//! (`types` names its types; nothing outside this crate does), `storage` keeps log and state in one RocksDB,
//! [`network`] speaks gRPC with the other instances, and [`state_machine`] is the pure function from a state and a
//! command to the next state.
//!
//! Reading order: [`command`], [`state_machine`], then `node`, `group`, `propose`, `read`, `membership`, `formation`,
//! then `storage` and [`network`], and [`backup`]. What [`planted`] guards is not part of it.

pub mod backup;
pub mod certs;
mod clock;
pub mod command;
mod fitness;
mod formation;
mod group;
mod leadership;
mod membership;
pub mod network;
mod node;
pub mod planted;
pub mod probe;
mod propose;
mod read;
mod snapshots;
pub mod state_machine;
mod status;
mod storage;
pub mod trace;
mod types;
mod wire;

pub use fitness::Other;
pub use formation::{Formation, FormationError};
pub use membership::MembershipError;
pub use network::Links;
pub use node::{Node, Options, Over, Running, Security, StartError, Timing};
pub use propose::{Committed, ProposeError};
pub use read::{ReadError, View};
pub use state_machine::{Event, TableError};
pub use status::{Member, Status};
pub use storage::{Counters, OpenError, disk_failed, why_refused};
