//! What peers ask of this instance: consensus, commands for the leader, and questions about the cluster.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use openclaw_proto::ids::{GroupId, InstanceId};
use openclaw_proto::raft as pb;
use openclaw_proto::raft::raft_server::{Raft as RaftService, RaftServer};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, TransferLeaderRequest, VoteRequest, VoteResponse};
use openraft::storage::Snapshot;
use openraft::vote::RaftLeaderId;
use parking_lot::RwLock;
use tonic::{Code, Request, Response, Status, Streaming};

use super::peers::MAX_MESSAGE_BYTES;
use super::security::PeerIdentity;
use crate::group::Group;
use crate::leadership;
use crate::state_machine::format;
use crate::types::{LogId, NodeId, TypeConfig, Vote};
use crate::wire;

/// Commands that one request of a peer may carry.
const MAX_COMMANDS: usize = 4096;
/// Longest deadline that a peer may ask for.
const MAX_TIMEOUT: Duration = Duration::from_secs(120);

/// What an instance is told that runs on after it was taken out.
/// For a leader to make sure that it still leads, before it tells a peer that it was removed.
const CONFIRM: Duration = Duration::from_millis(500);
const REMOVED: &str = "this instance was removed from the cluster";

/// Whether a leader refused this instance because it was removed.
pub(crate) fn is_removal(status: &Status) -> bool {
    status.code() == Code::PermissionDenied && status.message() == REMOVED
}

/// The groups that live here. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Groups(Arc<RwLock<BTreeMap<GroupId, Group>>>);

impl Groups {
    pub(crate) fn insert(&self, id: GroupId, group: Group) {
        self.0.write().insert(id, group);
    }

    fn get(&self, id: u32) -> Result<Group, Status> {
        let found = self.0.read().get(&GroupId(id)).cloned();
        found.ok_or_else(|| Status::not_found(format!("group {id} does not live on this instance")))
    }
}

#[derive(Clone)]
pub(crate) struct Service {
    groups: Groups,
}

impl Service {
    pub(crate) fn server(groups: Groups) -> RaftServer<Self> {
        RaftServer::new(Self { groups })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The group that a call means, after checking that it comes from a peer of this cluster and means this instance.
    fn admit(&self, header: Option<pb::Header>, peer: Option<&PeerIdentity>) -> Result<(Group, NodeId), Status> {
        let header = header.ok_or_else(|| Status::invalid_argument("the call has no header"))?;
        let group = self.groups.get(header.group_id)?;
        let refuse = |reason: String| {
            tracing::warn!(
                remote = peer.map(|peer| tracing::field::display(peer.remote_addr)),
                from_node = header.from_node,
                reason,
                "refused a peer"
            );
            Err(Status::permission_denied(reason))
        };
        let own = group.cluster_id().as_str();
        if header.cluster_id != own {
            return refuse(format!("it is of cluster {}, this instance of {own}", header.cluster_id));
        }
        if header.to_node != group.own_node() {
            return refuse(format!(
                "it means node {}, which this instance ({}) is not: its data directory was replaced",
                header.to_node,
                group.own_node()
            ));
        }
        if let Some(proven) = peer.and_then(|peer| peer.instance_id.as_ref())
            && let Some(claimed) = group.instance_of(header.from_node)
            && claimed != proven.as_str()
        {
            return refuse(format!("it calls itself {claimed}, but its certificate is that of {proven}"));
        }
        Ok((group, header.from_node))
    }

    /// [`Self::admit`], for what only members may do. One that was removed and still runs would otherwise renew its
    /// session through others for ever, and be given turns that it never hears of.
    async fn admit_member(&self, header: Option<pb::Header>, peer: Option<&PeerIdentity>) -> Result<Group, Status> {
        let (group, from) = self.admit(header, peer)?;
        // Whoever is told so does not come back: a leader of before would not know whom its successor admitted.
        if group.has_removed(from) && leadership::read_index(&group, CONFIRM).await.is_ok() && group.has_removed(from) {
            return Err(Status::permission_denied(REMOVED));
        }
        if group.instance_of(from).is_none() {
            return Err(Status::permission_denied("it is no member, as far as this instance knows"));
        }
        Ok(group)
    }
}

fn identity<T>(request: &Request<T>) -> Option<PeerIdentity> {
    request.extensions().get::<PeerIdentity>().cloned()
}

fn malformed(error: wire::WireError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this instance's consensus has stopped: {error}"))
}

fn timeout(millis: u32) -> Duration {
    Duration::from_millis(u64::from(millis)).min(MAX_TIMEOUT)
}

fn append_request(request: pb::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
    let vote = request.vote.ok_or_else(|| Status::invalid_argument("the append has no vote"))?;
    let entries: Result<Vec<_>, _> = request.entries.into_iter().map(wire::from_entry).collect();
    Ok(AppendEntriesRequest {
        vote: wire::from_vote(vote),
        prev_log_id: request.prev_log_id.map(wire::from_log_id),
        entries: entries.map_err(malformed)?,
        leader_commit: request.leader_commit.map(wire::from_log_id),
    })
}

fn vote_request(request: &pb::VoteRequest) -> Result<VoteRequest<TypeConfig>, Status> {
    let vote = request.vote.ok_or_else(|| Status::invalid_argument("the request has no vote"))?;
    let mut asked = VoteRequest::new(wire::from_vote(vote), request.last_log_id.map(wire::from_log_id));
    asked.leadership_transfer = request.leadership_transfer;
    Ok(asked)
}

fn vote_response(response: &VoteResponse<TypeConfig>) -> pb::VoteResponse {
    pb::VoteResponse {
        vote: Some(wire::to_vote(&response.vote)),
        granted: response.vote_granted,
        last_log_id: response.last_log_id.as_ref().map(wire::to_log_id),
    }
}

/// What openraft's own answer would be if the lease on the leader, whose process is gone, did not count.
fn pre_vote_without_lease(
    request: &VoteRequest<TypeConfig>,
    own: Vote,
    last: Option<LogId>,
) -> VoteResponse<TypeConfig> {
    let granted = request.last_log_id >= last && request.vote.leader_id.term() > own.leader_id.term();
    VoteResponse::new(own, last, granted)
}

#[tonic::async_trait]
impl RaftService for Service {
    type AppendStream = Pin<Box<dyn Stream<Item = Result<pb::AppendResponse, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let peer = identity(&request);
        let service = self.clone();
        // The headers are answered at once, so that the leader need not send before it knows that somebody listens.
        let answers = async_answers(service, peer, request.into_inner());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        let peer = identity(&request);
        let message = request.into_inner();
        let (group, _) = self.admit(message.header.clone(), peer.as_ref())?;
        let mut asked = vote_request(&message)?;
        asked.leadership_transfer |= group.contact().lease_is_void(group.metrics().current_leader);
        let answer = group.raft().vote(asked).await.map_err(stopped)?;
        Ok(Response::new(vote_response(&answer)))
    }

    async fn pre_vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        let peer = identity(&request);
        let message = request.into_inner();
        let (group, _) = self.admit(message.header.clone(), peer.as_ref())?;
        let asked = vote_request(&message)?;
        let leader = group.metrics().current_leader;
        let answer = if group.contact().lease_is_void(leader) {
            let (own, last) = group.vote_and_last_log().await.map_err(stopped)?;
            pre_vote_without_lease(&asked, own, last)
        } else {
            // Who asks may know more than this instance, which perhaps had nothing open to the leader that could break.
            if let Some(leader) = leader.filter(|leader| *leader != group.own_node()) {
                group.suspect(leader, Instant::now());
            }
            group.raft().pre_vote(asked).await.map_err(stopped)?
        };
        Ok(Response::new(vote_response(&answer)))
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        let peer = identity(&request);
        let message = request.into_inner();
        let (group, _) = self.admit(message.header, peer.as_ref())?;
        let from = message.from_leader.ok_or_else(|| Status::invalid_argument("the request has no vote"))?;
        let asked = TransferLeaderRequest::new(
            wire::from_vote(from),
            message.target_node,
            message.last_log_id.map(wire::from_log_id),
        );
        let answer = group.raft().handle_transfer_leader(asked).await.map_err(stopped)?;
        let refused = answer.err().map(|error| error.to_string()).unwrap_or_default();
        Ok(Response::new(pb::TransferLeaderResponse { refused }))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotChunk>>,
    ) -> Result<Response<pb::SnapshotResponse>, Status> {
        let peer = identity(&request);
        let mut chunks = request.into_inner();
        let mut first =
            chunks.message().await?.ok_or_else(|| Status::invalid_argument("the snapshot has no first chunk"))?;
        let (group, from) = self.admit(first.header.take(), peer.as_ref())?;
        let vote = first.vote.ok_or_else(|| Status::invalid_argument("the snapshot has no vote"))?;
        let meta = first.meta.take().ok_or_else(|| Status::invalid_argument("the snapshot has no meta"))?;
        let meta = wire::from_snapshot_meta(meta).map_err(malformed)?;
        tracing::info!(last_log_id = ?meta.last_log_id, from_node = from, "receiving a snapshot");

        let disk = |error: std::io::Error| Status::internal(format!("cannot store the snapshot: {error}"));
        let mut incoming = group.snapshots().receive().map_err(disk)?;
        let mut next = Some(first.data);
        while let Some(data) = next {
            // A piece is a quarter of a megabyte in the page cache: short enough not to need a thread of its own.
            incoming.write(&data).map_err(disk)?;
            group.contact().heard(from);
            next = chunks.message().await?.map(|chunk| chunk.data);
        }
        let snapshot = incoming.finish().await.map_err(disk)?;
        let installed = group.raft().install_full_snapshot(wire::from_vote(vote), Snapshot { meta, snapshot }).await;
        let answer = installed.map_err(stopped)?;
        Ok(Response::new(pb::SnapshotResponse { vote: Some(wire::to_vote(&answer.vote)) }))
    }

    async fn propose(&self, request: Request<pb::ProposeRequest>) -> Result<Response<pb::ProposeResponse>, Status> {
        let peer = identity(&request);
        let message = request.into_inner();
        let group = self.admit_member(message.header, peer.as_ref()).await?;
        if message.commands.len() > MAX_COMMANDS {
            let text = format!("{} commands; at most {MAX_COMMANDS} are allowed", message.commands.len());
            return Err(Status::invalid_argument(text));
        }
        let results = group.propose_here(message.commands, message.trace_parents, timeout(message.timeout_ms)).await;
        Ok(Response::new(pb::ProposeResponse { results }))
    }

    async fn read_index(
        &self,
        request: Request<pb::ReadIndexRequest>,
    ) -> Result<Response<pb::ReadIndexResponse>, Status> {
        let peer = identity(&request);
        let message = request.into_inner();
        let group = self.admit_member(message.header, peer.as_ref()).await?;
        let index = leadership::read_index(&group, timeout(message.timeout_ms)).await;
        let log_id = index.map_err(|error| Status::new(Code::FailedPrecondition, error.to_string()))?;
        Ok(Response::new(pb::ReadIndexResponse { log_id: Some(wire::to_log_id(&log_id)) }))
    }

    async fn describe(&self, request: Request<pb::DescribeRequest>) -> Result<Response<pb::DescribeResponse>, Status> {
        let message = request.into_inner();
        let group = self.groups.get(GroupId::ZERO.0)?;
        // A joining instance does not know the cluster yet.
        if !message.cluster_id.is_empty() && message.cluster_id != group.cluster_id().as_str() {
            let own = group.cluster_id();
            tracing::warn!(cluster = message.cluster_id, "refused a peer of another cluster");
            let text = format!("it is of cluster {}, this instance of {own}", message.cluster_id);
            return Err(Status::permission_denied(text));
        }
        Ok(Response::new(group.describe()))
    }

    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinResponse>, Status> {
        let peer = identity(&request);
        let message = request.into_inner();
        let group = self.groups.get(GroupId::ZERO.0)?;
        let node = message.node.ok_or_else(|| Status::invalid_argument("the request names no node"))?;
        if let Some(proven) = peer.and_then(|peer| peer.instance_id)
            && proven.as_str() != node.instance_id
        {
            tracing::warn!(claimed = node.instance_id, %proven, "refused an instance under another's name");
            let text = format!("it calls itself {}, but its certificate is that of {proven}", node.instance_id);
            return Err(Status::permission_denied(text));
        }
        let active = format::active(&group.state().tables().1).map_err(|error| Status::internal(error.to_string()))?;
        if let Some(why) = format::too_old(message.format, active) {
            let result = Some(pb::join_response::Result::Refused(why));
            return Ok(Response::new(pb::JoinResponse { cluster_id: group.cluster_id().as_str().to_owned(), result }));
        }
        let answer = group.join(message.node_id, wire::from_node(node), timeout(message.timeout_ms)).await;
        Ok(Response::new(answer))
    }

    async fn remove(&self, request: Request<pb::RemoveRequest>) -> Result<Response<pb::MembershipResponse>, Status> {
        let peer = identity(&request);
        let message = request.into_inner();
        let (group, _) = self.admit(message.header, peer.as_ref())?;
        let instance =
            InstanceId::parse(message.instance_id).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let done = group.remove_here(&instance, timeout(message.timeout_ms)).await;
        Ok(Response::new(membership_response(done)))
    }

    async fn move_leadership(
        &self,
        request: Request<pb::MoveLeadershipRequest>,
    ) -> Result<Response<pb::MembershipResponse>, Status> {
        let peer = identity(&request);
        let message = request.into_inner();
        let (group, _) = self.admit(message.header, peer.as_ref())?;
        let to =
            InstanceId::parse(message.to_instance_id).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let done = group.transfer_here(&to, timeout(message.timeout_ms)).await;
        Ok(Response::new(membership_response(done)))
    }
}

fn membership_response<E: std::fmt::Display>(done: Result<(), E>) -> pb::MembershipResponse {
    pb::MembershipResponse {
        done: done.is_ok(),
        refused: done.err().map(|error| error.to_string()).unwrap_or_default(),
    }
}

/// Answers a leader's appends, in order, each once its entries are on disk.
fn async_answers(
    service: Service,
    peer: Option<PeerIdentity>,
    mut requests: Streaming<pb::AppendRequest>,
) -> impl Stream<Item = Result<pb::AppendResponse, Status>> + Send {
    let begin = async move {
        let mut first = match requests.message().await {
            Ok(Some(first)) => first,
            Ok(None) => return futures::stream::empty().boxed(),
            Err(status) => return futures::stream::iter([Err(status)]).boxed(),
        };
        let (group, from) = match service.admit(first.header.take(), peer.as_ref()) {
            Ok(admitted) => admitted,
            Err(status) => return futures::stream::iter([Err(status)]).boxed(),
        };
        let contact = group.contact().clone();
        contact.heard(from);
        let watched = group.clone();
        let input = futures::stream::iter([Ok(first)]).chain(requests).scan(false, move |ended, message| {
            let next = match message {
                _ if *ended => None,
                Ok(message) => match append_request(message) {
                    Ok(request) => {
                        contact.heard(from);
                        Some(request)
                    }
                    Err(status) => {
                        tracing::error!(%status, from_node = from, "the leader sent what cannot be read");
                        None
                    }
                },
                Err(status) => {
                    // A connection that broke may look like a stream that its sender gave up. Asking costs a live leader
                    // one answer.
                    tracing::debug!(%status, from_node = from, "the leader's stream broke");
                    watched.suspect(from, Instant::now());
                    None
                }
            };
            *ended = next.is_none();
            futures::future::ready(next)
        });
        group
            .raft()
            .stream_append(Box::pin(input))
            .map(move |result| {
                let answer = match result.map_err(stopped)? {
                    Ok(log_id) => pb::append_response::Result::Matched(pb::Matched {
                        log_id: log_id.as_ref().map(wire::to_log_id),
                    }),
                    Err(StreamAppendError::Conflict(log_id)) => {
                        pb::append_response::Result::Conflict(wire::to_log_id(&log_id))
                    }
                    Err(StreamAppendError::HigherVote(vote)) => {
                        pb::append_response::Result::HigherVote(wire::to_vote(&vote))
                    }
                };
                Ok(pb::AppendResponse { result: Some(answer) })
            })
            .boxed()
    };
    futures::stream::once(begin).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_void_lease_still_demands_a_log_that_is_as_long_and_a_higher_term() {
        let own = Vote::new_committed(5, 1);
        let last = Some(LogId::new_term_index(5, 10));
        let ask = |term, index| VoteRequest::new(Vote::new(term, 2), Some(LogId::new_term_index(5, index)));
        assert!(pre_vote_without_lease(&ask(6, 10), own, last).vote_granted);
        assert!(pre_vote_without_lease(&ask(6, 11), own, last).vote_granted);
        assert!(!pre_vote_without_lease(&ask(6, 9), own, last).vote_granted, "a shorter log");
        assert!(!pre_vote_without_lease(&ask(5, 10), own, last).vote_granted, "the same term");
    }
}
