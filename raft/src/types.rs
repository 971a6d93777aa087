//! openraft, as this crate instantiates it. Nothing outside this crate sees these types.

use std::fmt;

use bytes::Bytes;
use openclaw_proto::state::Outcome;
use openraft::alias;
use openraft_rt_tokio::TokioRuntime;

/// A command on its way through the log: an encoded [`openclaw_proto::state::Command`].
///
/// It stays encoded from the proposer to the state machine: it is written, sent and stored as it is, and decoded once
/// where it is applied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct EncodedCommand(pub Bytes);

impl fmt::Display for EncodedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

/// What applying an entry gave; entries that carry no command give none.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Applied(pub Option<Outcome>);

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "outcome" } else { "no outcome" })
    }
}

/// A member as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct MemberNode {
    pub instance_id: String,
    pub peer_addr: String,
    pub http_addr: String,
}

impl fmt::Display for MemberNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.instance_id, self.peer_addr)
    }
}

/// One leader per term, as in the Raft thesis.
#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct TypeConfig;

// Spelled out, since the declaring macro of the pinned version does not take a generic `Responder`.
impl openraft::RaftTypeConfig for TypeConfig {
    type D = EncodedCommand;
    type R = Applied;
    type NodeId = u64;
    type Node = MemberNode;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<EncodedCommand, u64, MemberNode>;
    type Entry = openraft::Entry<<Self::LeaderId as openraft::vote::RaftLeaderId>::Committed, Self::Payload>;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: Send + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: Send + 'static;
    type AsyncRuntime = TokioRuntime;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type NodeId = u64;
pub(crate) type Entry = alias::EntryOf<TypeConfig>;
pub(crate) type LogId = alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = alias::VoteOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, MemberNode>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
