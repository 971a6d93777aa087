//! What an instance knows of its cluster, for operators and for readiness.

use std::time::{Duration, Instant};

use openclaw_proto::http::MemberRole;
use openclaw_proto::ids::InstanceId;
use openraft::Instant as _;
use openraft::metrics::RaftMetrics;

use crate::network::Contact;
use crate::types::{LogId, NodeId, TypeConfig};

/// One member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub instance_id: InstanceId,
    pub role: MemberRole,
    pub peer_addr: String,
    pub http_addr: String,
    /// The newest log index known to be on the member's disk; the leader alone knows it of others.
    pub matched_index: Option<u64>,
}

/// One instance's view; every field may be older than the truth by a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    pub leader: Option<InstanceId>,
    pub is_leader: bool,
    pub term: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    /// The newest in this instance's log, committed or not.
    pub last_log_index: u64,
    /// Last log index that the newest snapshot covers.
    pub snapshot_index: u64,
    /// A leader that is known to be there: this instance, heard by a quorum, or another, heard by this one.
    pub has_quorum: bool,
    /// When another instance was last heard as the leader.
    pub heard: Option<Instant>,
    pub members: Vec<Member>,
    pub(crate) leader_node: Option<NodeId>,
    pub(crate) own_node: NodeId,
    /// Set once consensus has stopped for good.
    pub failed: Option<String>,
}

/// What of a [`Status`] others wait for. Openraft reports several times per commit, and mostly that indices moved: this
/// is cheap to make and to compare each time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    leader_node: Option<NodeId>,
    term: u64,
    membership: Option<LogId>,
    has_quorum: bool,
    failed: bool,
}

impl Standing {
    pub(crate) fn of(metrics: &RaftMetrics<TypeConfig>, contact: &Contact, silence: Duration) -> Self {
        Self {
            leader_node: metrics.current_leader,
            term: metrics.current_term,
            membership: *metrics.membership_config.log_id(),
            has_quorum: has_quorum(metrics, contact, silence),
            failed: metrics.running_state.is_err(),
        }
    }
}

fn has_quorum(metrics: &RaftMetrics<TypeConfig>, contact: &Contact, silence: Duration) -> bool {
    if metrics.current_leader == Some(metrics.id) {
        metrics.membership_config.membership().voter_ids().count() == 1
            || metrics.last_quorum_acked.as_ref().is_some_and(|at| at.elapsed() <= silence)
    } else {
        metrics.current_leader.is_some() && contact.within(silence)
    }
}

impl Status {
    pub(crate) fn of(metrics: &RaftMetrics<TypeConfig>, contact: &Contact, silence: Duration) -> Self {
        let membership = metrics.membership_config.membership();
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        let is_leader = metrics.current_leader == Some(metrics.id);
        let members = membership
            .nodes()
            .filter_map(|(id, node)| {
                let role = if metrics.current_leader == Some(*id) {
                    MemberRole::Leader
                } else if voters.contains(id) {
                    MemberRole::Follower
                } else {
                    MemberRole::Learner
                };
                let matched_index = if *id == metrics.id {
                    metrics.last_log_index
                } else {
                    let known = metrics.replication.as_ref().and_then(|known| known.get(id));
                    known.and_then(|log_id| log_id.as_ref().map(|log_id| log_id.index))
                };
                Some(Member {
                    instance_id: InstanceId::parse(node.instance_id.as_str()).ok()?,
                    role,
                    peer_addr: node.peer_addr.clone(),
                    http_addr: node.http_addr.clone(),
                    matched_index,
                })
            })
            .collect();
        let index = |id: &Option<crate::types::LogId>| id.as_ref().map_or(0, |id| id.index);
        let leader = metrics.current_leader.and_then(|id| membership.get_node(&id));
        Self {
            leader: leader.and_then(|node| InstanceId::parse(node.instance_id.as_str()).ok()),
            is_leader,
            term: metrics.current_term,
            committed_index: index(&metrics.local_committed),
            applied_index: index(&metrics.last_applied),
            last_log_index: metrics.last_log_index.unwrap_or_default(),
            snapshot_index: index(&metrics.snapshot),
            has_quorum: has_quorum(metrics, contact, silence),
            heard: contact.last(),
            members,
            leader_node: metrics.current_leader,
            own_node: metrics.id,
            failed: metrics.running_state.as_ref().err().map(ToString::to_string),
        }
    }

    pub fn voter_count(&self) -> usize {
        self.members.iter().filter(|member| member.role != MemberRole::Learner).count()
    }
}
