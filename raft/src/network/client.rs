//! What openraft sends through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openclaw_proto::ids::{GroupId, InstanceId};
use openclaw_proto::raft as pb;
use openclaw_proto::raft::raft_client::RaftClient;
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, v2::RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::peers::Peers;
use crate::storage::SnapshotFile;
use crate::types::{MemberNode, NodeId, TypeConfig, Vote};
use crate::wire;

/// A follower that leaves a request unanswered this long is given up, and connected to anew.
const STALLED: Duration = Duration::from_secs(2);
/// Bytes per piece of a snapshot.
const SNAPSHOT_PIECE: usize = 256 << 10;
/// From one piece of a snapshot taken by the peer to the next: however large the snapshot, and however slow the link.
const PIECE_DEADLINE: Duration = Duration::from_secs(60);
/// From the last piece taken to the snapshot installed, for which the peer reads it twice.
const INSTALL_DEADLINE: Duration = Duration::from_secs(600);

#[derive(Clone)]
pub(crate) struct NetworkFactory {
    pub(crate) group: GroupId,
    pub(crate) peers: Peers,
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = Network;

    async fn new_client(&mut self, target: NodeId, node: &MemberNode) -> Network {
        Network { group: self.group, peers: self.peers.clone(), target, node: node.clone() }
    }
}

/// One group's way to one peer.
pub(crate) struct Network {
    group: GroupId,
    peers: Peers,
    target: NodeId,
    node: MemberNode,
}

impl Network {
    fn client(&self) -> Result<RaftClient<Channel>, Unreachable<TypeConfig>> {
        let peer = InstanceId::parse(self.node.instance_id.as_str()).map_err(|error| Unreachable::new(&error))?;
        if self.peers.is_cut(&peer) {
            return Err(Unreachable::from_string("the link is cut"));
        }
        Ok(self.peers.client(&peer, &self.node.peer_addr))
    }

    fn header(&self) -> pb::Header {
        self.peers.header(self.group, self.target)
    }

    fn is_cut(&self) -> impl Fn() -> bool + Send + 'static {
        let peers = self.peers.clone();
        let peer = InstanceId::parse(self.node.instance_id.as_str()).ok();
        move || peer.as_ref().is_some_and(|peer| peers.is_cut(peer))
    }

    fn vote_request(&self, request: &VoteRequest<TypeConfig>) -> pb::VoteRequest {
        pb::VoteRequest {
            header: Some(self.header()),
            vote: Some(wire::to_vote(&request.vote)),
            last_log_id: request.last_log_id.as_ref().map(wire::to_log_id),
            leadership_transfer: request.leadership_transfer,
        }
    }
}

/// Whether openraft should wait before it tries again (no connection), or may at once.
fn failed(status: &Status) -> RPCError<TypeConfig> {
    match status.code() {
        Code::Unavailable | Code::NotFound | Code::Unimplemented | Code::PermissionDenied | Code::Unauthenticated => {
            RPCError::Unreachable(Unreachable::new(status))
        }
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::InvalidArgument
        | Code::DeadlineExceeded
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::DataLoss => RPCError::Network(NetworkError::new(status)),
    }
}

fn malformed(what: &'static str) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::from_string(what))
}

fn overdue(what: &'static str, limit: Duration) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(format!("no answer to {what} within {limit:?}")))
}

fn append_request(request: AppendEntriesRequest<TypeConfig>, header: Option<pb::Header>) -> pb::AppendRequest {
    pb::AppendRequest {
        header,
        vote: Some(wire::to_vote(&request.vote)),
        prev_log_id: request.prev_log_id.as_ref().map(wire::to_log_id),
        entries: request.entries.iter().map(wire::to_entry).collect(),
        leader_commit: request.leader_commit.as_ref().map(wire::to_log_id),
    }
}

fn append_result(response: pb::AppendResponse) -> Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>> {
    use pb::append_response::Result as Answer;
    match response.result.ok_or_else(|| malformed("an append answer without a result"))? {
        Answer::Matched(matched) => Ok(Ok(matched.log_id.map(wire::from_log_id))),
        Answer::Conflict(log_id) => Ok(Err(StreamAppendError::Conflict(wire::from_log_id(log_id)))),
        Answer::HigherVote(vote) => Ok(Err(StreamAppendError::HigherVote(wire::from_vote(vote)))),
    }
}

fn vote_response(response: pb::VoteResponse) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
    let vote = wire::from_vote(response.vote.ok_or_else(|| malformed("a vote answer without a vote"))?);
    Ok(VoteResponse::new(vote, response.last_log_id.map(wire::from_log_id), response.granted))
}

impl RaftNetworkV2<TypeConfig> for Network {
    type SnapshotData = SnapshotFile;

    /// Heartbeats: a stream of one request.
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut client = self.client()?;
        let request = futures::stream::iter([append_request(rpc, Some(self.header()))]);
        let call = async {
            let mut answers = client.append(request).await.map_err(|status| failed(&status))?.into_inner();
            answers
                .message()
                .await
                .map_err(|status| failed(&status))?
                .ok_or_else(|| malformed("an append without an answer"))
        };
        let answer = tokio::time::timeout(option.hard_ttl(), call)
            .await
            .map_err(|_| overdue("a heartbeat", option.hard_ttl()))??;
        append_result(answer).map(AppendEntriesResponse::from)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>, RPCError<TypeConfig>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        let mut header = Some(self.header());
        let is_cut_now = self.is_cut();
        let mut requests = input.map(move |request| {
            counter.fetch_add(1, Relaxed);
            append_request(request, header.take())
        });
        Box::pin(async move {
            // openraft waits between attempts inside this stream, as it asks for the first request. A call that gets no
            // connection never asks: without this line a peer that is gone would be dialled in a tight loop.
            let Some(first) = requests.next().await else { return Ok(futures::stream::empty().boxed()) };
            let requests = futures::stream::iter([first]).chain(requests);
            let requests = requests.take_while(move |_| futures::future::ready(!is_cut_now()));
            let mut client = self.client()?;
            let is_cut = self.is_cut();
            // A server answers its headers before the first request arrives, so this waits for the connection alone.
            let answers = tokio::time::timeout(STALLED, client.append(requests))
                .await
                .map_err(|_| overdue("an append", STALLED))?
                .map_err(|status| failed(&status))?
                .into_inner();
            let results = futures::stream::unfold(Some((answers, 0_u64)), move |state| {
                let (sent, cut) = (sent.clone(), is_cut());
                async move {
                    let (mut answers, mut received) = state?;
                    if cut {
                        return Some((Err(RPCError::Unreachable(Unreachable::from_string("the link is cut"))), None));
                    }
                    loop {
                        let before = sent.load(Relaxed);
                        match tokio::time::timeout(STALLED, answers.message()).await {
                            // Silence is a fault only when something waits for an answer, and did all the time.
                            Err(_) if before > received => return Some((Err(overdue("an append", STALLED)), None)),
                            Err(_) => {}
                            Ok(Ok(None)) => return None,
                            Ok(Err(status)) => return Some((Err(failed(&status)), None)),
                            Ok(Ok(Some(answer))) => {
                                received += 1;
                                let result = append_result(answer);
                                let go_on = matches!(result, Ok(Ok(_)));
                                return Some((result, go_on.then_some((answers, received))));
                            }
                        }
                    }
                }
            });
            Ok(Box::pin(results) as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut client = self.client()?;
        let answer = tokio::time::timeout(option.hard_ttl(), client.vote(self.vote_request(&rpc)))
            .await
            .map_err(|_| overdue("a vote request", option.hard_ttl()))?
            .map_err(|status| failed(&status))?;
        vote_response(answer.into_inner())
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut client = self.client()?;
        let answer = tokio::time::timeout(option.hard_ttl(), client.pre_vote(self.vote_request(&rpc)))
            .await
            .map_err(|_| overdue("a pre-vote request", option.hard_ttl()))?
            .map_err(|status| failed(&status))?;
        vote_response(answer.into_inner())
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut client = self.client()?;
        let first = pb::SnapshotChunk {
            header: Some(self.header()),
            vote: Some(wire::to_vote(&vote)),
            meta: Some(wire::to_snapshot_meta(&snapshot.meta)),
            data: Bytes::new(),
        };
        let network = |error: &(dyn std::error::Error + 'static)| {
            StreamingError::Network(NetworkError::from_string(error.to_string()))
        };
        let file = snapshot.snapshot.into_bytes().map_err(|error| network(&error))?;
        // The peer's window holds the reader back, so one piece at a time is in memory.
        let pieces = tokio_util::io::ReaderStream::with_capacity(tokio::fs::File::from_std(file), SNAPSHOT_PIECE);
        let (broken, broke) = tokio::sync::oneshot::channel();
        let mut broken = Some(broken);
        let (progress, moved) = watch::channel(PIECE_DEADLINE);
        let chunks = futures::stream::iter([first]).chain(
            pieces
                // The end is asked for as well.
                .map(Some)
                .chain(futures::stream::once(async { None }))
                .inspect(move |piece| {
                    progress.send_replace(if piece.is_some() { PIECE_DEADLINE } else { INSTALL_DEADLINE });
                })
                .filter_map(futures::future::ready)
                .map(move |piece| match piece {
                    Ok(data) => Some(pb::SnapshotChunk { data, ..Default::default() }),
                    Err(error) => {
                        // The peer notices that the file ends too early.
                        if let Some(broken) = broken.take() {
                            drop(broken.send(error));
                        }
                        None
                    }
                })
                .take_while(|chunk| futures::future::ready(chunk.is_some()))
                .filter_map(futures::future::ready),
        );
        let answer = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            Ok(error) = broke => return Err(network(&error)),
            limit = stands_still(moved) => {
                let text = format!("the snapshot did not get on for {limit:?}");
                return Err(StreamingError::Network(NetworkError::from_string(text)));
            }
            answer = client.install_snapshot(chunks) => answer,
        };
        let answer = answer.map_err(|status| match failed(&status) {
            RPCError::Unreachable(error) => StreamingError::Unreachable(error),
            RPCError::Timeout(_) | RPCError::Network(_) | RPCError::RemoteError(_) => network(&status),
        })?;
        let vote = answer.into_inner().vote.map(wire::from_vote);
        let vote =
            vote.ok_or_else(|| StreamingError::Network(NetworkError::from_string("an answer without a vote")))?;
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut client = self.client()?;
        let message = pb::TransferLeaderRequest {
            header: Some(self.header()),
            from_leader: Some(wire::to_vote(request.from_leader())),
            last_log_id: request.last_log_id().map(wire::to_log_id),
            target_node: *request.to_node_id(),
        };
        let answer = tokio::time::timeout(option.hard_ttl().max(STALLED), client.transfer_leader(message))
            .await
            .map_err(|_| overdue("a leadership transfer", STALLED))?
            .map_err(|status| failed(&status))?
            .into_inner();
        if answer.refused.is_empty() {
            Ok(Ok(()))
        } else {
            Err(RPCError::Network(NetworkError::from_string(answer.refused)))
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        // A restarted process answers within milliseconds; a machine that is off costs one attempt per second.
        let doubling = std::iter::successors(Some(Duration::from_millis(20)), |delay| {
            Some((*delay * 2).min(Duration::from_secs(1)))
        });
        Some(Backoff::new(doubling.map(|delay| delay.mul_f64(rand::random_range(0.75..1.25)))))
    }
}

/// Ends once nothing has moved for as long as was said last.
async fn stands_still(mut moved: watch::Receiver<Duration>) -> Duration {
    loop {
        let limit = *moved.borrow_and_update();
        match tokio::time::timeout(limit, moved.changed()).await {
            Ok(Ok(())) => {}
            // Nobody says anything more: what was said last still counts.
            Ok(Err(_)) => {
                tokio::time::sleep(limit).await;
                return limit;
            }
            Err(_) => return limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use futures::channel::mpsc;
    use openclaw_proto::ids::ClusterId;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_may_take_long_as_long_as_it_gets_on() {
        let (progress, moved) = watch::channel(PIECE_DEADLINE);
        let began = tokio::time::Instant::now();
        let sending = async move {
            for _ in 0..100 {
                tokio::time::sleep(PIECE_DEADLINE / 2).await;
                progress.send_replace(PIECE_DEADLINE);
            }
            progress.send_replace(INSTALL_DEADLINE);
        };
        let (limit, ()) = tokio::join!(stands_still(moved), sending);
        assert_eq!((limit, began.elapsed()), (INSTALL_DEADLINE, PIECE_DEADLINE * 50 + INSTALL_DEADLINE));
        let (_kept, moved) = watch::channel(PIECE_DEADLINE);
        assert_eq!(stands_still(moved).await, PIECE_DEADLINE);
    }

    use crate::network::Links;
    use crate::network::security::PeerSecurity;

    #[tokio::test]
    async fn a_peer_that_is_gone_is_dialled_only_when_openraft_has_something_to_send() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let security = PeerSecurity::plaintext(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let id = |name| InstanceId::parse(name).unwrap();
        let peers = Peers::new(ClusterId::parse("oc-1").unwrap(), 1, id("a"), security, Links::default());
        let node = MemberNode { instance_id: "b".to_owned(), peer_addr: gone.to_string(), http_addr: String::new() };
        let mut network = NetworkFactory { group: GroupId::ZERO, peers }.new_client(2, &node).await;

        let (requests, input) = mpsc::unbounded();
        let mut call = network.stream_append(input, RPCOption::new(Duration::from_millis(50)));
        tokio::time::timeout(Duration::from_millis(200), &mut call).await.map(drop).expect_err("nothing to send yet");
        let request = AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: None,
        };
        requests.unbounded_send(request).unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(10), call).await.unwrap();
        assert!(matches!(answer.err(), Some(RPCError::Unreachable(_))));
    }
}
