//! One Raft group on this instance: what is done where its leader lives.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use openclaw_proto::ids::{ClusterId, GroupId, InstanceId};
use openclaw_proto::raft as pb;
use openraft::Instant as _;
use openraft::Raft;
use openraft::errors::ClientWriteError;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::Span;

use crate::clock::Clock;
use crate::command;
use crate::network::{Contact, Peers, is_removal, never_sent};
use crate::planted::{Bug, planted};
use crate::state_machine::{self, LogPosition, Overlay};
use crate::status::Status;
use crate::storage::{SnapshotStore, StateReader, StateStore};
use crate::trace;
use crate::types::{EncodedCommand, LogId, NodeId, StoredMembership, TypeConfig, Vote};
use crate::wire;

/// How long a peer whose connection broke may take to prove that it is still there.
const PROOF_OF_LIFE: Duration = Duration::from_millis(60);
/// Before each question that asks for it. The first may go into the broken connection, and a process that ends may still
/// take a connection which nobody answers.
const QUESTIONS_AFTER: [Duration; 6] = [
    Duration::ZERO,
    Duration::ZERO,
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
];
/// Between the campaigns of two instances that saw the same leader go.
const TURN: Duration = Duration::from_millis(25);
/// Campaigns of one instance, after which the election timeout decides.
const CAMPAIGNS: usize = 3;
/// For [`Bug::AckBeforeCommit`]: how long a commit may take.
const HASTE: Duration = Duration::from_millis(50);

/// A handle; clones share the group.
#[derive(Clone)]
pub(crate) struct Group(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) id: GroupId,
    pub(crate) raft: Raft<TypeConfig, StateStore>,
    pub(crate) peers: Peers,
    pub(crate) contact: Contact,
    pub(crate) clock: Clock,
    /// Without a word from its leader for longer, this instance has no quorum.
    pub(crate) silence: Duration,
    pub(crate) state: StateReader,
    pub(crate) snapshots: SnapshotStore,
    pub(crate) status: watch::Receiver<Status>,
    /// A leader said that this instance is no member any more.
    pub(crate) removed: watch::Sender<bool>,
    /// Held by whoever changes the membership: of two that join at once, the later one must see what the earlier one did.
    pub(crate) membership: tokio::sync::Mutex<()>,
    /// The term in which this instance has begun to give its leadership away; 0: none.
    pub(crate) given_away: AtomicU64,
}

/// Why the leader's part of a request was not done here. Nothing was written.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum NotHere {
    #[error("this instance does not lead{}", leader.map(|node| format!("; node {node} does")).unwrap_or_default())]
    NotLeader { leader: Option<NodeId> },
    #[error("no quorum answered")]
    NoQuorum,
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("consensus has stopped: {0}")]
    Stopped(String),
}

impl Group {
    pub(crate) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    pub(crate) fn id(&self) -> GroupId {
        self.0.id
    }

    pub(crate) fn cluster_id(&self) -> &ClusterId {
        self.0.peers.cluster_id()
    }

    pub(crate) fn own_node(&self) -> NodeId {
        self.0.peers.own_node()
    }

    pub(crate) fn raft(&self) -> &Raft<TypeConfig, StateStore> {
        &self.0.raft
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.0.peers
    }

    pub(crate) fn contact(&self) -> &Contact {
        &self.0.contact
    }

    pub(crate) async fn changing_membership(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.membership.lock().await
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    pub(crate) fn state(&self) -> &StateReader {
        &self.0.state
    }

    pub(crate) fn snapshots(&self) -> &SnapshotStore {
        &self.0.snapshots
    }

    /// Changes that others wait for.
    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.0.status.clone()
    }

    /// From now on this instance leads no more in `term`, though openraft calls it the leader until another is.
    pub(crate) fn give_away(&self, term: u64) {
        self.0.given_away.store(term, Ordering::Release);
    }

    pub(crate) fn is_given_away(&self, term: u64) -> bool {
        self.0.given_away.load(Ordering::Acquire) == term
    }

    /// Takes note of what a leader answered instead of an outcome.
    pub(crate) fn refused(&self, status: &tonic::Status) {
        // One that never saw itself admitted was not removed: its admission may have come to nothing.
        if is_removal(status) && has(&self.metrics().committed_membership_config, self.own_node()) {
            self.0.removed.send_replace(true);
        }
    }

    /// Whether this instance leads, as far as it knows, and has not been heard by a quorum for a while.
    pub(crate) fn has_lost_quorum(&self) -> bool {
        let metrics = self.metrics();
        // One that is alone is its own quorum, and nobody acknowledges anything to it.
        let alone = metrics.membership_config.membership().voter_ids().count() == 1;
        let acked = metrics.last_quorum_acked.as_ref().map(|at| at.elapsed());
        !alone && metrics.current_leader == Some(metrics.id) && acked.is_some_and(|since| since > self.0.silence)
    }

    /// Whether a leader said that this instance was removed.
    pub(crate) fn was_removed(&self) -> bool {
        *self.0.removed.borrow()
    }

    /// Whether `node` is no member, and nobody is about to make it one. Only who leads knows that.
    pub(crate) fn has_removed(&self, node: NodeId) -> bool {
        let metrics = self.metrics();
        let known = has(&metrics.membership_config, node) || has(&metrics.committed_membership_config, node);
        !known && metrics.current_leader == Some(self.own_node()) && self.0.membership.try_lock().is_ok()
    }

    /// Whether this instance was a member once, as far as it knows itself.
    pub(crate) fn has_belonged(&self) -> bool {
        has(&self.metrics().committed_membership_config, self.own_node())
    }

    /// Ends once this instance was removed: a leader said so, or it led itself when that was committed, and so knows. Others
    /// are not told by the log, since nobody sends it to them any more.
    pub(crate) async fn removed(&self) {
        let mut told = self.0.removed.subscribe();
        tokio::select! {
            // The sender lives as long as this handle.
            _ = told.wait_for(|removed| *removed) => {}
            () = self.left() => {}
        }
    }

    /// Ends once a membership without this instance is committed, after one in which it led: what comes to another from the log
    /// may be of long ago.
    async fn left(&self) {
        use openraft::async_runtime::WatchReceiver;
        let mut metrics = self.0.raft.metrics();
        let mut led = false;
        loop {
            let (belongs, leads) = {
                let now = metrics.borrow_watched();
                let own = self.own_node();
                (has(&now.committed_membership_config, own), now.current_leader == Some(own))
            };
            if led && !belongs {
                return;
            }
            led |= belongs && leads;
            if metrics.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    pub(crate) fn status_now(&self) -> Status {
        let status = Status::of(&self.metrics(), &self.0.contact, self.0.silence);
        let failed = status.failed.clone().or_else(|| self.0.status.borrow().failed.clone());
        Status { failed, ..status }
    }

    pub(crate) fn metrics(&self) -> openraft::metrics::RaftMetrics<TypeConfig> {
        use openraft::async_runtime::WatchReceiver;
        self.0.raft.metrics().borrow_watched().clone()
    }

    /// The instance that a node id belongs to, as far as the membership tells.
    pub(crate) fn instance_of(&self, node: NodeId) -> Option<String> {
        self.metrics().membership_config.membership().get_node(&node).map(|node| node.instance_id.clone())
    }

    /// Where the node `id` is reached.
    pub(crate) fn address_of(&self, id: NodeId) -> Option<(InstanceId, String)> {
        let metrics = self.metrics();
        let node = metrics.membership_config.membership().get_node(&id)?;
        Some((InstanceId::parse(node.instance_id.as_str()).ok()?, node.peer_addr.clone()))
    }

    pub(crate) async fn vote_and_last_log(&self) -> Result<(Vote, Option<LogId>), openraft::errors::Fatal<TypeConfig>> {
        self.0.raft.with_raft_state(|state| (*state.vote_ref(), state.log_ids.last().copied())).await
    }

    /// Commits `commands`, in this order, if this instance leads. One result each. `traces` has the traceparent of each, or
    /// is empty.
    pub(crate) async fn propose_here(
        &self,
        commands: Vec<Bytes>,
        traces: Vec<String>,
        timeout: Duration,
    ) -> Vec<pb::ProposeResult> {
        let count = commands.len();
        let mut spans =
            traces.iter().take(count).map(|parent| self.commit_span(parent)).collect::<Vec<_>>().into_iter();
        let deadline =
            tokio::time::Instant::now() + if planted(Bug::AckBeforeCommit) { timeout.min(HASTE) } else { timeout };
        let foreseen = planted(Bug::AckBeforeCommit).then(|| self.foresee(&commands));
        let now_ms = self.0.clock.stamp();
        let stamped = commands.into_iter().map(|command| EncodedCommand(stamp(&command, now_ms)));
        let mut results = Vec::with_capacity(count);
        let mut reason = format!("no commit within {timeout:?}");
        match self.0.raft.client_write_many(stamped).await {
            Ok(mut writes) => {
                while results.len() < count {
                    match tokio::time::timeout_at(deadline, writes.next()).await {
                        Ok(Some(Ok(written))) => {
                            let result = result(written);
                            if let Some(span) = spans.next() {
                                end_commit_span(span, &result);
                            }
                            results.push(result);
                        }
                        Ok(Some(Err(fatal))) => {
                            reason = fatal.to_string();
                            break;
                        }
                        Ok(None) | Err(_) => break,
                    }
                }
            }
            Err(fatal) => reason = fatal.to_string(),
        }
        if let Some(foreseen) = foreseen {
            results.extend(foreseen.into_iter().skip(results.len()));
        }
        // The rest is in the log, or may be.
        results.resize_with(count, || failure(true, reason.clone(), None));
        results
    }

    /// The leader's part of a command that somebody traces: from here to its commit.
    fn commit_span(&self, parent: &str) -> Span {
        if parent.is_empty() {
            return Span::none();
        }
        let leader = self.0.peers.own_id();
        let span = tracing::trace_span!("commit", %leader, log_index = tracing::field::Empty, otel.kind = "server");
        trace::follow(&span, parent);
        span
    }

    /// Only for [`Bug::AckBeforeCommit`]: what `commands` come to if they are applied next.
    fn foresee(&self, commands: &[Bytes]) -> Vec<pb::ProposeResult> {
        let (applied, tables) = self.0.state.tables();
        let mut overlay = Overlay::new(&tables);
        let mut results = Vec::new();
        for (index, bytes) in (applied + 1..).zip(commands) {
            let at = LogPosition { index, term: self.metrics().current_term };
            let Ok(command) = command::decode(&stamp(bytes, self.0.clock.stamp())) else { break };
            let Ok(decision) = state_machine::decide(&overlay, at, &command) else { break };
            overlay.apply(decision.writes);
            let committed = pb::Committed { log_index: index, outcome: Some(decision.outcome) };
            results.push(pb::ProposeResult { result: Some(pb::propose_result::Result::Committed(committed)) });
        }
        results
    }

    pub(crate) fn describe(&self) -> pb::DescribeResponse {
        let metrics = self.metrics();
        let index = |id: &Option<LogId>| id.as_ref().map_or(0, |id| id.index);
        pb::DescribeResponse {
            cluster_id: self.cluster_id().as_str().to_owned(),
            instance_id: self.0.peers.own_id().as_str().to_owned(),
            node_id: self.own_node(),
            formed: metrics.membership_config.membership().nodes().next().is_some(),
            membership: Some(wire::to_stored_membership(&metrics.membership_config)),
            leader_node: metrics.current_leader.unwrap_or_default(),
            term: metrics.current_term,
            applied_index: index(&metrics.last_applied),
            committed_index: index(&metrics.local_committed),
        }
    }

    /// The connection to the leader `node` broke, or another instance asks to replace it: finds out whether its process is
    /// gone, and if so campaigns. A leader that lives is asked one question.
    pub(crate) fn suspect(&self, node: NodeId, since: Instant) {
        if self.0.status.borrow().leader_node != Some(node) {
            return;
        }
        let group = self.clone();
        tokio::spawn(async move { group.probe_leader(node, since).await });
    }

    async fn probe_leader(&self, node: NodeId, since: Instant) {
        let Some((instance, addr)) = self.address_of(node) else { return };
        let mut client = self.0.peers.client(&instance, &addr);
        let question =
            pb::DescribeRequest { cluster_id: self.cluster_id().as_str().to_owned(), ..pb::DescribeRequest::default() };
        for pause in QUESTIONS_AFTER {
            tokio::time::sleep(pause).await;
            match tokio::time::timeout(PROOF_OF_LIFE, client.describe(question.clone())).await {
                Ok(Ok(_)) => return,
                Ok(Err(status)) if never_sent(&status) => {
                    if self.0.contact.is_gone(node, since) {
                        tracing::warn!(leader = %instance, %status, "the leader's process is gone");
                        self.campaign(node).await;
                    }
                    return;
                }
                Ok(Err(_)) => {}
                // Silence is not evidence: the election timeout decides.
                Err(_) => return,
            }
        }
    }

    /// Asks to be elected in place of `gone`, if the other voters saw the same.
    ///
    /// openraft's own pre-vote would wait for the lease, so its question is asked here; the election itself is openraft's.
    async fn campaign(&self, gone: NodeId) {
        for attempt in 0..CAMPAIGNS {
            let metrics = self.metrics();
            let voters: BTreeSet<NodeId> = metrics.membership_config.membership().voter_ids().collect();
            let survivors = voters.iter().filter(|id| **id != gone);
            let Some(rank) = survivors.clone().position(|id| *id == self.own_node()) else { return };
            // One after the other, so that those who saw the same do not split the votes.
            tokio::time::sleep(TURN * u32::try_from(rank + attempt * voters.len()).unwrap_or(u32::MAX)).await;
            if self.metrics().current_leader != Some(gone) || !self.0.contact.lease_is_void(Some(gone)) {
                return;
            }
            let others = survivors.copied().filter(|id| *id != self.own_node()).collect();
            if self.would_be_elected(others, voters.len() / 2 + 1).await {
                if let Err(fatal) = self.0.raft.trigger().elect(false).await {
                    tracing::error!(%fatal, "cannot campaign");
                }
                return;
            }
        }
    }

    /// Whether this node and those of `others` that would vote for it are `quorum`.
    async fn would_be_elected(&self, others: Vec<NodeId>, quorum: usize) -> bool {
        let Ok((vote, last)) = self.vote_and_last_log().await else { return false };
        let mut asking = JoinSet::new();
        for other in others {
            let Some((instance, addr)) = self.address_of(other) else { continue };
            if self.0.peers.is_cut(&instance) {
                continue;
            }
            let mut client = self.0.peers.client(&instance, &addr);
            let request = pb::VoteRequest {
                header: Some(self.0.peers.header(self.0.id, other)),
                vote: Some(pb::Vote {
                    term: wire::to_vote(&vote).term + 1,
                    node_id: self.own_node(),
                    committed: false,
                }),
                last_log_id: last.as_ref().map(wire::to_log_id),
                leadership_transfer: false,
            };
            asking.spawn(async move {
                let answer = tokio::time::timeout(PROOF_OF_LIFE, client.pre_vote(request)).await;
                matches!(answer, Ok(Ok(answer)) if answer.get_ref().granted)
            });
        }
        let mut granted = 1;
        while granted < quorum {
            match asking.join_next().await {
                Some(Ok(true)) => granted += 1,
                Some(Ok(false) | Err(_)) => {}
                None => return false,
            }
        }
        true
    }
}

/// Puts the time into an encoded command, which is the command with one more field: the last one of its number counts.
fn stamp(command: &Bytes, now_ms: u64) -> Bytes {
    const NOW_MS_TAG: u8 = 1 << 3;
    let mut stamped = Vec::with_capacity(command.len() + 11);
    stamped.extend_from_slice(command);
    stamped.push(NOW_MS_TAG);
    prost::encoding::encode_varint(now_ms, &mut stamped);
    stamped.into()
}

/// Ends the span of a command that has its result.
fn end_commit_span(span: Span, result: &pb::ProposeResult) {
    if let Some(pb::propose_result::Result::Committed(committed)) = &result.result {
        span.record("log_index", committed.log_index);
    }
}

fn failure(effect_unknown: bool, reason: String, leader: Option<NodeId>) -> pb::ProposeResult {
    let failure = pb::ProposeFailure { effect_unknown, reason, leader_node: leader.unwrap_or_default() };
    pb::ProposeResult { result: Some(pb::propose_result::Result::Failure(failure)) }
}

fn result(written: openraft::raft::WriteResult<TypeConfig>) -> pb::ProposeResult {
    match written {
        Ok(response) => pb::ProposeResult {
            result: Some(pb::propose_result::Result::Committed(pb::Committed {
                log_index: response.log_id.index,
                outcome: response.response.0,
            })),
        },
        // It was never put into the log.
        Err(ClientWriteError::ForwardToLeader(forward)) => {
            failure(false, format!("not the leader ({:?})", forward.reason), forward.leader_id)
        }
        // It is in this log no more; another may hold it yet, and commit it, or did before a snapshot took its place.
        Err(ClientWriteError::LogEntryDiscarded(forward)) => {
            failure(true, "another leader has taken over".to_owned(), forward.leader_id)
        }
        Err(error @ (ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_))) => {
            failure(false, error.to_string(), None)
        }
    }
}

/// Whether `node` is a member, with a vote or without.
fn has(membership: &StoredMembership, node: NodeId) -> bool {
    membership.membership().get_node(&node).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use openclaw_proto::state::Command;
    use prost::Message;

    #[test]
    fn an_entry_that_another_leader_discarded_may_have_been_committed_by_a_third() {
        let unknown = |error| match result(Err(error)).result {
            Some(pb::propose_result::Result::Failure(failure)) => failure.effect_unknown,
            other @ (Some(pb::propose_result::Result::Committed(_)) | None) => panic!("{other:?}"),
        };
        let forward = || openraft::errors::ForwardToLeader::<TypeConfig>::empty();
        assert!(!unknown(ClientWriteError::ForwardToLeader(forward())));
        assert!(unknown(ClientWriteError::LogEntryDiscarded(forward())));
    }

    #[test]
    fn the_leaders_time_is_the_one_that_counts() {
        let command = Command { now_ms: 5, kind: None };
        let stamped = stamp(&command.encode_to_vec().into(), 1_800_000_000_000);
        assert_eq!(Command::decode(stamped).unwrap().now_ms, 1_800_000_000_000);
    }
}
