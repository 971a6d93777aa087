//! Who belongs: learner, voter, removed; and who leads. Done where the leader lives.

use std::cmp::Reverse;
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use openclaw_proto::ids::InstanceId;
use openclaw_proto::raft as pb;
use openraft::ChangeMembers;
use openraft::Instant as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::metrics::{RaftMetrics, WaitError};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::fitness::CLOSE;
use crate::group::Group;
use crate::types::{MemberNode, NodeId, TypeConfig};
use crate::wire;

/// A member that answered within this time is alive.
const ALIVE: Duration = Duration::from_secs(2);
/// One that is asked and does not answer within this time is not there, or too slow to lead.
const ANSWERS: Duration = Duration::from_millis(250);
/// A follower that is fit to lead is no further behind than this.
const CATCHES_UP: Duration = ANSWERS;
/// An election between instances that answer is over by then; otherwise somebody else is asked to lead.
const TAKES_OVER: Duration = Duration::from_millis(300);

/// For the second half of a change of the voters.
const FINISH: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(200);

/// Why the membership or the leader did not change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    #[error("{0} is not a member of this cluster")]
    NotAMember(InstanceId),
    #[error("{0} is a learner and cannot lead before it has caught up")]
    NotAVoter(InstanceId),
    #[error("{0} is the only voter: without it nothing could be committed any more")]
    LastVoter(InstanceId),
    #[error(
        "without {instance} only {answering} of {staying} voters would answer, and nothing could be committed any more: bring the others up, \
         or remove one that is lost first"
    )]
    Needed { instance: InstanceId, answering: usize, staying: usize },
    #[error("there is no other voter that could lead")]
    NobodyElse,
    #[error("{0} does not answer, and so cannot lead")]
    NoAnswer(InstanceId),
    #[error("{instance} lacks {missing} entries of the log and does not catch up")]
    Behind { instance: InstanceId, missing: u64 },
    #[error("{asked} did not take over in time, and {leads} leads now")]
    AnotherLeads { asked: InstanceId, leads: String },
    #[error("no leader is known, so nothing can change now")]
    NoLeader,
    #[error("not done within {waited:?}; it may still happen")]
    Timeout { waited: Duration },
    #[error("{0}")]
    Refused(String),
}

type WriteError = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

impl Group {
    /// Makes the caller a voter, by way of learner. An older member of the same name is replaced.
    pub(crate) async fn join(&self, id: NodeId, node: MemberNode, timeout: Duration) -> pb::JoinResponse {
        let cluster_id = self.cluster_id().as_str().to_owned();
        let answer = |result| pb::JoinResponse { cluster_id: cluster_id.clone(), result: Some(result) };
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        match metrics.current_leader {
            Some(leader) if leader == self.own_node() => {}
            Some(leader) => {
                return match membership.get_node(&leader) {
                    Some(node) => answer(pb::join_response::Result::Leader(wire::to_node(node))),
                    None => answer(pb::join_response::Result::Refused("the leader's address is not known".into())),
                };
            }
            None => return answer(pb::join_response::Result::Refused(MembershipError::NoLeader.to_string())),
        }
        match tokio::time::timeout(timeout, self.join_here(id, node, Instant::now() + timeout)).await {
            Ok(Ok(())) => {
                let joined = wire::to_stored_membership(&self.metrics().membership_config);
                answer(pb::join_response::Result::Joined(joined))
            }
            Ok(Err(reason)) => answer(pb::join_response::Result::Refused(reason)),
            Err(_) => {
                let error = MembershipError::Timeout { waited: timeout };
                answer(pb::join_response::Result::Refused(error.to_string()))
            }
        }
    }

    async fn join_here(&self, id: NodeId, node: MemberNode, deadline: Instant) -> Result<(), String> {
        let refused = |error: WriteError| error.to_string();
        {
            let _alone = self.changing_membership().await;
            self.finish_change().await?;
            if self.has_vote(id) {
                return Ok(());
            }
            self.admit_learner(id, &node).await?;
        }
        // Not held here: one that never catches up would keep all others out.
        self.wait_until_close(id, deadline).await?;
        let _alone = self.changing_membership().await;
        self.finish_change().await?;
        // The one before may be back, or another may have come by its name.
        self.check_name(id, &node)?;
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let mut wanted: BTreeSet<NodeId> = membership.voter_ids().collect();
        // In place of an older one of its name.
        wanted.retain(|voter| membership.get_node(voter).is_none_or(|other| other.instance_id != node.instance_id));
        wanted.insert(id);
        self.raft().change_membership(wanted, false).await.map_err(refused)?;
        tracing::info!(instance = node.instance_id, node_id = id, "an instance has joined as a voter");
        Ok(())
    }

    /// Waits until the learner `id` lacks no more than what is on its way.
    async fn wait_until_close(&self, id: NodeId, deadline: Instant) -> Result<(), String> {
        let close = |metrics: &RaftMetrics<TypeConfig>| {
            metrics.current_leader != Some(metrics.id)
                || matched(metrics, id).is_some_and(|at| at + CLOSE >= metrics.last_log_index.unwrap_or_default())
        };
        let wait = self.raft().wait(Some(deadline.saturating_duration_since(Instant::now())));
        wait.metrics(close, "a learner has caught up").await.map(drop).map_err(|error| error.to_string())
    }

    /// Whether `id` is a voter for good: while two sets of voters count, it may not be one of the next set.
    pub(crate) fn has_vote(&self, id: NodeId) -> bool {
        let metrics = self.metrics();
        matches!(&metrics.membership_config.membership().get_joint_config()[..], [voters] if voters.contains(&id))
    }

    /// Ends changes of the voters whose second half nobody did: whoever began one gave up, or leads no more. Until then majorities
    /// of both sets are needed, so that the next loss may stop everything.
    pub(crate) async fn finish_changes(self) {
        use openraft::async_runtime::WatchReceiver;
        let mut metrics = self.raft().metrics();
        loop {
            let half_done = {
                let now = metrics.borrow_watched();
                is_half_done(&now)
            };
            if half_done {
                let _alone = self.changing_membership().await;
                if let Err(reason) = self.finish_change().await {
                    tracing::debug!(reason, "a change of the voters is still half done");
                    sleep(AGAIN).await;
                }
            } else if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// To be called by whoever changes the membership, before: openraft would begin from either half.
    async fn finish_change(&self) -> Result<(), String> {
        if !is_half_done(&self.metrics()) {
            return Ok(());
        }
        let nothing_more = ChangeMembers::AddVoterIds(BTreeSet::new());
        match timeout(FINISH, self.raft().change_membership(nothing_more, false)).await {
            Ok(Ok(_)) => {
                tracing::info!("a change of the voters that was left half done is finished");
                Ok(())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(MembershipError::Timeout { waited: FINISH }.to_string()),
        }
    }

    /// Whether `id` is this leader, or answered it in the last moments.
    fn is_heard(&self, metrics: &RaftMetrics<TypeConfig>, id: NodeId) -> bool {
        let heard = metrics.heartbeat.as_ref().and_then(|heard| heard.get(&id).cloned()).flatten();
        id == self.own_node() || heard.is_some_and(|at| at.elapsed() < ALIVE)
    }

    /// Adds the instance as a learner, if nobody else has its name or address.
    async fn admit_learner(&self, id: NodeId, node: &MemberNode) -> Result<(), String> {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        if let Some((_, other)) = membership.nodes().find(|(known, other)| {
            **known != id && other.peer_addr == node.peer_addr && other.instance_id != node.instance_id
        }) {
            return Err(format!("its peer address {} is that of {}", node.peer_addr, other.instance_id));
        }
        let replaced = self.check_name(id, node)?;
        tracing::info!(instance = node.instance_id, node_id = id, ?replaced, "an instance joins");
        let refused = |error: WriteError| error.to_string();
        // Learners that an earlier attempt of the same instance left behind.
        let stale: BTreeSet<NodeId> = membership
            .nodes()
            // And this one under another address, which openraft would keep.
            .filter(|(known, other)| **known != id || *other != node)
            .filter(|(known, other)| other.instance_id == node.instance_id && !voters.contains(known))
            .map(|(known, _)| *known)
            .collect();
        if stale.iter().any(|known| *known != id && self.is_heard(&metrics, *known)) {
            return Err(name_is_taken(node));
        }
        if !stale.is_empty() {
            self.raft().change_membership(ChangeMembers::RemoveNodes(stale), false).await.map_err(refused)?;
        }
        self.raft().add_learner(id, node.clone(), false).await.map_err(refused)?;
        Ok(())
    }

    /// The voter that `node` is to replace, if there is one of its name; refused while that one lives.
    fn check_name(&self, id: NodeId, node: &MemberNode) -> Result<Option<NodeId>, String> {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let of_its_name = |voter: &NodeId| {
            *voter != id && membership.get_node(voter).is_some_and(|other| other.instance_id == node.instance_id)
        };
        let Some(replaced) = membership.voter_ids().find(of_its_name) else { return Ok(None) };
        if self.is_heard(&metrics, replaced) { Err(name_is_taken(node)) } else { Ok(Some(replaced)) }
    }

    /// Takes `instance` out of the cluster.
    pub(crate) async fn remove_here(&self, instance: &InstanceId, timeout: Duration) -> Result<(), MembershipError> {
        let deadline = Instant::now() + timeout;
        let Ok(_alone) = timeout_at(deadline, self.changing_membership()).await else {
            return Err(MembershipError::Refused("another change of the membership is under way".to_owned()));
        };
        self.finish_change().await.map_err(MembershipError::Refused)?;
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        let of_its_name = membership.nodes().filter(|(_, node)| node.instance_id == instance.as_str());
        let ids: BTreeSet<NodeId> = of_its_name.map(|(id, _)| *id).collect();
        if ids.is_empty() {
            return Err(MembershipError::NotAMember(instance.clone()));
        }
        if voters.is_subset(&ids) {
            return Err(MembershipError::LastVoter(instance.clone()));
        }
        // It takes a majority of those who stay to commit this; without one there would be no way back.
        let staying: Vec<NodeId> = voters.difference(&ids).copied().collect();
        if staying.len() < voters.len() {
            let own = staying.iter().filter(|id| **id == self.own_node()).count();
            let answering = own + self.answering(staying.iter().copied()).await.len();
            if answering <= staying.len() / 2 {
                return Err(MembershipError::Needed { instance: instance.clone(), answering, staying: staying.len() });
            }
        }
        let (with_vote, without): (BTreeSet<NodeId>, BTreeSet<NodeId>) =
            ids.into_iter().partition(|id| voters.contains(id));
        let change = async |change| match timeout_at(deadline, self.raft().change_membership(change, false)).await {
            Err(_) => Err(MembershipError::Timeout { waited: timeout }),
            Ok(Err(error)) => Err(MembershipError::Refused(error.to_string())),
            Ok(Ok(_)) => Ok(()),
        };
        if !without.is_empty() {
            change(ChangeMembers::RemoveNodes(without)).await?;
        }
        if !with_vote.is_empty() {
            change(ChangeMembers::RemoveVoters(with_vote)).await?;
        }
        Ok(())
    }

    /// Hands leadership to `to`, and waits until it leads.
    ///
    /// openraft takes no proposals and sends no heartbeats from the moment a transfer begins, and has no way back; reads are
    /// not confirmed any more either. So it begins only once `to` answers and holds what this leader had when it looked; and if `to` does not take over all the
    /// same, the others are asked, since a leader has to come from somewhere.
    pub(crate) async fn transfer_here(&self, to: &InstanceId, timeout: Duration) -> Result<(), MembershipError> {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let found = membership.nodes().find(|(_, node)| node.instance_id == to.as_str()).map(|(id, _)| *id);
        let id = found.ok_or_else(|| MembershipError::NotAMember(to.clone()))?;
        if !membership.voter_ids().any(|voter| voter == id) {
            return Err(MembershipError::NotAVoter(to.clone()));
        }
        let deadline = Instant::now() + timeout;
        if self.leads() {
            if !self.answers(id).await {
                return Err(MembershipError::NoAnswer(to.clone()));
            }
            self.wait_for_log(id, to, deadline).await?;
        }
        let mut candidates = VecDeque::from([id]);
        let mut leads_next = None;
        while leads_next.is_none() && Instant::now() < deadline {
            if candidates.is_empty() {
                candidates.extend(self.successors().await);
            }
            if self.leads()
                && let Some(candidate) = candidates.pop_front()
            {
                self.give_away(self.metrics().current_term);
                let begun = self.raft().trigger().transfer_leader(candidate).await;
                begun.map_err(|fatal| MembershipError::Refused(fatal.to_string()))?;
            }
            leads_next = self.successor((Instant::now() + TAKES_OVER).min(deadline)).await;
        }
        match leads_next {
            Some(node) if node == id => Ok(()),
            Some(node) => Err(MembershipError::AnotherLeads {
                asked: to.clone(),
                leads: self.instance_of(node).unwrap_or_default(),
            }),
            None => Err(MembershipError::Timeout { waited: timeout }),
        }
    }

    fn leads(&self) -> bool {
        self.metrics().current_leader == Some(self.own_node())
    }

    /// Who leads instead of this instance, once somebody does, until `deadline`.
    async fn successor(&self, deadline: Instant) -> Option<NodeId> {
        let own = self.own_node();
        let mut status = self.status();
        let succeeded = status.wait_for(|status| status.leader_node.is_some_and(|node| node != own));
        timeout_at(deadline, succeeded).await.ok()?.ok()?.leader_node
    }

    /// Waits until the member `id` holds what this leader held a moment ago: one that is further behind, or gets a snapshot,
    /// would have all writes wait for it.
    async fn wait_for_log(&self, id: NodeId, to: &InstanceId, deadline: Instant) -> Result<(), MembershipError> {
        loop {
            let goal = self.metrics().last_log_index;
            let moment = (Instant::now() + CATCHES_UP).min(deadline).saturating_duration_since(Instant::now());
            let wait = self.raft().wait(Some(moment));
            let caught_up = wait.metrics(
                |metrics| metrics.current_leader != Some(metrics.id) || matched(metrics, id) >= goal,
                "a follower that is to lead has the leader's log",
            );
            match caught_up.await {
                Ok(_) => return Ok(()),
                Err(WaitError::Timeout(..)) if Instant::now() < deadline => {}
                Err(WaitError::Timeout(..)) => {
                    let missing =
                        goal.unwrap_or_default().saturating_sub(matched(&self.metrics(), id).unwrap_or_default());
                    return Err(MembershipError::Behind { instance: to.clone(), missing });
                }
                Err(WaitError::ShuttingDown) => {
                    return Err(MembershipError::Refused("consensus has stopped".to_owned()));
                }
            }
        }
    }

    /// Whether the process of `id` is there.
    async fn answers(&self, id: NodeId) -> bool {
        let Some((instance, addr)) = self.address_of(id) else { return false };
        if self.peers().is_cut(&instance) {
            return false;
        }
        let mut client = self.peers().client(&instance, &addr);
        let question =
            pb::DescribeRequest { cluster_id: self.cluster_id().as_str().to_owned(), ..pb::DescribeRequest::default() };
        matches!(tokio::time::timeout(ANSWERS, client.describe(question)).await, Ok(Ok(_)))
    }

    /// The voter that is best prepared to lead in place of this one.
    pub(crate) async fn best_successor(&self) -> Result<InstanceId, MembershipError> {
        let best = *self.successors().await.first().ok_or(MembershipError::NobodyElse)?;
        let name = self.instance_of(best).ok_or(MembershipError::NobodyElse)?;
        InstanceId::parse(name).map_err(|error| MembershipError::Refused(error.to_string()))
    }

    /// The voters, other than the leader, that answer (one that is stopping too would be waited for in vain); first the one
    /// whose log reaches furthest.
    async fn successors(&self) -> Vec<NodeId> {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let others = membership.voter_ids().filter(|id| Some(*id) != metrics.current_leader);
        let mut answering = self.answering(others).await;
        answering.sort_by_key(|id| (Reverse(matched(&metrics, *id)), *id));
        answering
    }

    /// Those of `ids`, other than this instance, whose process is there; asked at once.
    async fn answering(&self, ids: impl Iterator<Item = NodeId>) -> Vec<NodeId> {
        let mut asking = JoinSet::new();
        for id in ids.filter(|id| *id != self.own_node()) {
            let group = self.clone();
            asking.spawn(async move { group.answers(id).await.then_some(id) });
        }
        let mut answering = Vec::new();
        while let Some(asked) = asking.join_next().await {
            answering.extend(asked.ok().flatten());
        }
        answering
    }
}

fn name_is_taken(node: &MemberNode) -> String {
    format!("an instance named {} is a member and answers: two instances must not share a name", node.instance_id)
}

fn is_half_done(metrics: &RaftMetrics<TypeConfig>) -> bool {
    metrics.current_leader == Some(metrics.id) && metrics.membership_config.membership().get_joint_config().len() > 1
}

/// The last log index that the leader knows to be on the disk of `id`.
fn matched(metrics: &RaftMetrics<TypeConfig>, id: NodeId) -> Option<u64> {
    metrics.replication.as_ref()?.get(&id)?.as_ref().map(|log_id| log_id.index)
}
