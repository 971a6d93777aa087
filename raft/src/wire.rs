//! openraft's values as protobuf messages, and back: one encoding for the wire, the log and the snapshots.
//!
//! Ours and not openraft's own, so that neither disk nor wire changes when the pinned version does.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openclaw_proto::raft as pb;
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, RaftTypeConfig};
use prost::Message;

use crate::types::{
    EncodedCommand, Entry, LogId, MemberNode, Membership, SnapshotMeta, StoredMembership, TypeConfig, Vote,
};

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("{message} has no {field}")]
    Missing { message: &'static str, field: &'static str },
    #[error("membership is not valid: {0}")]
    Membership(String),
    #[error("not a protobuf message: {0}")]
    Decode(#[from] prost::DecodeError),
}

pub(crate) fn to_log_id(id: &LogId) -> pb::LogId {
    pb::LogId { term: **id.committed_leader_id(), index: id.index }
}

pub(crate) fn from_log_id(id: pb::LogId) -> LogId {
    LogId::new_term_index(id.term, id.index)
}

pub(crate) fn to_vote(vote: &Vote) -> pb::Vote {
    pb::Vote { term: vote.leader_id.term(), node_id: *vote.leader_id.node_id(), committed: vote.committed }
}

pub(crate) fn from_vote(vote: pb::Vote) -> Vote {
    Vote {
        leader_id: <TypeConfig as RaftTypeConfig>::LeaderId::new(vote.term, vote.node_id),
        committed: vote.committed,
    }
}

pub(crate) fn to_node(node: &MemberNode) -> pb::Node {
    pb::Node {
        instance_id: node.instance_id.clone(),
        peer_addr: node.peer_addr.clone(),
        http_addr: node.http_addr.clone(),
    }
}

pub(crate) fn from_node(node: pb::Node) -> MemberNode {
    MemberNode { instance_id: node.instance_id, peer_addr: node.peer_addr, http_addr: node.http_addr }
}

pub(crate) fn to_membership(membership: &Membership) -> pb::Membership {
    pb::Membership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|voters| pb::membership::Config { voters: voters.iter().copied().collect() })
            .collect(),
        nodes: membership.nodes().map(|(id, node)| (*id, to_node(node))).collect(),
    }
}

pub(crate) fn from_membership(membership: pb::Membership) -> Result<Membership, WireError> {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.into_iter().map(|config| config.voters.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, MemberNode> =
        membership.nodes.into_iter().map(|(id, node)| (id, from_node(node))).collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|error| WireError::Membership(error.to_string()))
}

pub(crate) fn to_stored_membership(stored: &StoredMembership) -> pb::StoredMembership {
    pb::StoredMembership {
        log_id: stored.log_id().as_ref().map(to_log_id),
        membership: Some(to_membership(stored.membership())),
    }
}

pub(crate) fn from_stored_membership(stored: pb::StoredMembership) -> Result<StoredMembership, WireError> {
    let membership = from_membership(stored.membership.unwrap_or_default())?;
    Ok(StoredMembership::new(stored.log_id.map(from_log_id), membership))
}

pub(crate) fn to_entry(entry: &Entry) -> pb::LogEntry {
    let payload = match &entry.payload {
        EntryPayload::Blank => pb::log_entry::Payload::Blank(true),
        EntryPayload::Normal(command) => pb::log_entry::Payload::Command(command.0.clone()),
        EntryPayload::Membership(membership) => pb::log_entry::Payload::Membership(to_membership(membership)),
    };
    pb::LogEntry { log_id: Some(to_log_id(&entry.log_id)), payload: Some(payload) }
}

pub(crate) fn from_entry(entry: pb::LogEntry) -> Result<Entry, WireError> {
    let log_id = entry.log_id.ok_or(WireError::Missing { message: "log entry", field: "log id" })?;
    let payload = match entry.payload {
        Some(pb::log_entry::Payload::Blank(_)) => EntryPayload::Blank,
        Some(pb::log_entry::Payload::Command(bytes)) => EntryPayload::Normal(EncodedCommand(bytes)),
        Some(pb::log_entry::Payload::Membership(membership)) => EntryPayload::Membership(from_membership(membership)?),
        None => return Err(WireError::Missing { message: "log entry", field: "payload" }),
    };
    Ok(Entry { log_id: from_log_id(log_id), payload })
}

/// Decodes one stored entry.
pub(crate) fn decode_entry(bytes: Bytes) -> Result<Entry, WireError> {
    from_entry(pb::LogEntry::decode(bytes)?)
}

/// Bytes that an entry takes on the wire, near enough for batch limits.
pub(crate) fn entry_size(entry: &Entry) -> usize {
    const OVERHEAD: usize = 32;
    match &entry.payload {
        EntryPayload::Normal(command) => command.0.len() + OVERHEAD,
        EntryPayload::Blank => OVERHEAD,
        EntryPayload::Membership(membership) => OVERHEAD + 128 * membership.nodes().count(),
    }
}

pub(crate) fn to_snapshot_meta(meta: &SnapshotMeta) -> pb::SnapshotMeta {
    pb::SnapshotMeta {
        last_log_id: meta.last_log_id.as_ref().map(to_log_id),
        membership: Some(to_stored_membership(&meta.last_membership)),
    }
}

pub(crate) fn from_snapshot_meta(meta: pb::SnapshotMeta) -> Result<SnapshotMeta, WireError> {
    Ok(SnapshotMeta {
        last_log_id: meta.last_log_id.map(from_log_id),
        last_membership: from_stored_membership(meta.membership.unwrap_or_default())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> MemberNode {
        MemberNode { instance_id: name.into(), peer_addr: "127.0.0.1:3100".into(), http_addr: "127.0.0.1:3000".into() }
    }

    #[test]
    fn entries_survive_their_bytes() {
        let joint = Membership::new(
            vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])],
            BTreeMap::from([(1, node("a")), (2, node("b")), (3, node("c")), (4, node("d"))]),
        )
        .unwrap();
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(EncodedCommand(Bytes::from_static(b"\x08\x01"))),
            EntryPayload::Membership(joint),
        ] {
            let entry = Entry { log_id: LogId::new_term_index(7, 42), payload };
            let bytes = Bytes::from(to_entry(&entry).encode_to_vec());
            assert_eq!(decode_entry(bytes).unwrap(), entry);
        }
    }

    #[test]
    fn damaged_entries_are_errors() {
        assert!(decode_entry(Bytes::new()).is_err());
        assert!(decode_entry(Bytes::from_static(&[0xff; 9])).is_err());
    }

    #[test]
    fn votes_and_empty_memberships_survive_their_bytes() {
        for vote in [Vote::new(3, 9), Vote::new_committed(4, 1)] {
            assert_eq!(from_vote(to_vote(&vote)), vote);
        }
        let empty = StoredMembership::default();
        assert_eq!(from_stored_membership(to_stored_membership(&empty)).unwrap(), empty);
    }
}
