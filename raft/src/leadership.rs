//! Whether this instance leads: a round of questions to the voters, before a read is served.
//!
//! openraft has such a round, `ReadPolicy::ReadIndex`, and it cannot be used. In 0.10.0-alpha.37 an answer of the append
//! stream acknowledges every request in flight that its log id covers (`replication/inflight_append_queue.rs`,
//! `drain_acked`), also requests without entries that were sent after the one it answers. A leader that heard nothing for a
//! while, and was replaced meanwhile, gets old answers when its link heals; they count as if the voters had answered what it
//! sends now, and it confirms reads of its old state. Here each question has one answer, on a call of its own.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::network::{RPCOption, RaftNetworkFactory, v2::RaftNetworkV2};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use openraft::vote::RaftLeaderId;
use tokio::task::JoinSet;

use crate::group::{Group, NotHere};
use crate::network::NetworkFactory;
use crate::types::{LogId, Membership, NodeId, Vote};

/// What this instance is at one moment of its core.
struct Standing {
    vote: Vote,
    /// Of what a read that begins now must see: the last entry that is known to be committed, or, as long as the leader has
    /// committed nothing of its own term and so may not know of all, the last one there is.
    index: Option<LogId>,
    membership: Membership,
}

/// The log index that a read which begins now must have applied, if this instance leads.
pub(crate) async fn read_index(group: &Group, timeout: Duration) -> Result<LogId, NotHere> {
    tokio::time::timeout(timeout, confirmed(group, timeout)).await.map_err(|_| NotHere::Timeout(timeout))?
}

async fn confirmed(group: &Group, timeout: Duration) -> Result<LogId, NotHere> {
    let before = standing(group).await?;
    let own = group.own_node();
    let not_leader = || NotHere::NotLeader { leader: group.metrics().current_leader.filter(|leader| *leader != own) };
    if !before.vote.committed || *before.vote.leader_id.node_id() != own {
        return Err(not_leader());
    }
    // The questions are what followers take for a leader at work: they would put off the election that is wanted.
    if group.is_given_away(before.vote.leader_id.term()) {
        return Err(NotHere::NotLeader { leader: None });
    }
    // So they are without a quorum, where only some hear this leader: openraft has stopped its heartbeats for that.
    if group.has_lost_quorum() {
        return Err(NotHere::NoQuorum);
    }
    let mut follow = BTreeSet::from([own]);
    let mut questions = JoinSet::new();
    for (node, member) in before.membership.nodes().filter(|(node, _)| **node != own) {
        let mut network =
            NetworkFactory { group: group.id(), peers: group.peers().clone() }.new_client(*node, member).await;
        let (node, vote) = (*node, before.vote);
        questions.spawn(async move {
            let question = AppendEntriesRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
            (node, network.append_entries(question, RPCOption::new(timeout)).await)
        });
    }
    while !is_quorum(before.membership.get_joint_config(), &follow) {
        match questions.join_next().await {
            // Where the logs differ the vote is the same all the same.
            Some(Ok((
                node,
                Ok(
                    AppendEntriesResponse::Success
                    | AppendEntriesResponse::PartialSuccess(_)
                    | AppendEntriesResponse::Conflict,
                ),
            ))) => {
                follow.insert(node);
            }
            Some(Ok((_, Ok(AppendEntriesResponse::HigherVote(_))))) => return Err(not_leader()),
            Some(Ok((_, Err(_))) | Err(_)) => {}
            None => return Err(NotHere::NoQuorum),
        }
    }
    // The others were asked; this instance itself may have given its own vote to another in the meantime.
    if standing(group).await?.vote != before.vote {
        return Err(not_leader());
    }
    before.index.ok_or(NotHere::NoQuorum)
}

async fn standing(group: &Group) -> Result<Standing, NotHere> {
    let look = group.raft().with_raft_state(|state| {
        let vote = *state.vote_ref();
        let committed = state.cluster_committed().copied();
        let of_own_term = committed.is_some_and(|log_id| **log_id.committed_leader_id() == vote.leader_id.term());
        Standing {
            vote,
            index: if of_own_term { committed } else { state.log_ids.last().copied() },
            membership: state.membership_state.effective().membership().clone(),
        }
    });
    look.await.map_err(|fatal| NotHere::Stopped(fatal.to_string()))
}

/// Whether `nodes` have a majority in each of the configurations; there are two while the membership changes.
fn is_quorum(configurations: &[BTreeSet<NodeId>], nodes: &BTreeSet<NodeId>) -> bool {
    !configurations.is_empty()
        && configurations.iter().all(|voters| voters.intersection(nodes).count() > voters.len() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_a_majority_of_each_configuration() {
        let quorum = |configurations: &[&[NodeId]], nodes: &[NodeId]| {
            let sets: Vec<BTreeSet<NodeId>> =
                configurations.iter().map(|voters| voters.iter().copied().collect()).collect();
            is_quorum(&sets, &nodes.iter().copied().collect())
        };
        assert!(quorum(&[&[1]], &[1]) && quorum(&[&[1, 2, 3]], &[1, 3]) && quorum(&[&[1, 2, 3, 4]], &[1, 3, 4]));
        assert!(!quorum(&[&[1, 2, 3]], &[1, 9]) && !quorum(&[&[1, 2, 3, 4]], &[1, 2]) && !quorum(&[], &[1]));
        assert!(quorum(&[&[1, 2, 3], &[3, 4, 5]], &[2, 3, 4]));
        assert!(!quorum(&[&[1, 2, 3], &[3, 4, 5]], &[1, 2, 3]), "of the second there is one alone");
    }
}
