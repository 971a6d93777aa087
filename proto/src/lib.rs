//! All that crosses a process boundary.
//!
//! Reading order: [`ids`] (names, parsed once with limits), [`http`] (bodies and the error code that every surface
//! shares), then the generated messages: [`state`] (replicated rows, commands, outcomes), [`raft`] (consensus between
//! instances) and [`peer`] (what instances ask of each other above it).

pub mod http;
pub mod ids;

// The module path repeats the protobuf packages, since the generated code refers to its neighbours by it.
#[expect(
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::missing_errors_doc,
    unreachable_pub,
    reason = "generated from the .proto files"
)]
mod openclaw {
    pub mod state {
        pub mod v1 {
            tonic::include_proto!("openclaw.state.v1");
        }
    }
    pub mod raft {
        pub mod v1 {
            tonic::include_proto!("openclaw.raft.v1");
        }
    }
    pub mod peer {
        pub mod v1 {
            tonic::include_proto!("openclaw.peer.v1");
        }
    }
}

pub use openclaw::peer::v1 as peer;
pub use openclaw::raft::v1 as raft;
pub use openclaw::state::v1 as state;
