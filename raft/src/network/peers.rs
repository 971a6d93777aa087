//! One channel per peer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openclaw_proto::ids::{ClusterId, GroupId, InstanceId};
use openclaw_proto::raft as pb;
use openclaw_proto::raft::raft_client::RaftClient;
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::security::{self, ConnectError, PeerSecurity};
use crate::types::NodeId;

/// From resolving a peer's name to its first bytes.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// A connection that answers no ping for this long after as long a silence is dead.
const KEEP_ALIVE: Duration = Duration::from_millis(750);
/// Bytes in flight per stream and per connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Largest message: a batch of entries or commands, with the largest text in it.
pub(super) const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Which peers this instance can talk to: all of them, unless a test cuts a link.
#[derive(Debug, Clone, Default)]
pub struct Links(Arc<Mutex<BTreeSet<(InstanceId, InstanceId)>>>);

impl Links {
    /// From now on nothing that `from` sends reaches `to`.
    pub fn cut(&self, from: &InstanceId, to: &InstanceId) {
        self.0.lock().insert((from.clone(), to.clone()));
    }

    pub fn heal(&self) {
        self.0.lock().clear();
    }

    fn is_cut(&self, from: &InstanceId, to: &InstanceId) -> bool {
        let cuts = self.0.lock();
        !cuts.is_empty() && cuts.contains(&(from.clone(), to.clone()))
    }
}

/// What a connection is for. HTTP/2 gives all calls on a connection one window, so what may be read slowly has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Consensus, and all that is answered at once.
    Raft,
    /// Streams, as fast as their readers.
    Relay,
}

/// The other instances, and how to call them. Clones share the connections.
#[derive(Clone, Debug)]
pub(crate) struct Peers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cluster_id: ClusterId,
    own_node: NodeId,
    own_id: InstanceId,
    security: PeerSecurity,
    links: Links,
    channels: Mutex<BTreeMap<(Purpose, InstanceId, String), Channel>>,
}

impl Peers {
    pub(crate) fn new(
        cluster_id: ClusterId,
        own_node: NodeId,
        own_id: InstanceId,
        security: PeerSecurity,
        links: Links,
    ) -> Self {
        Self(Arc::new(Inner { cluster_id, own_node, own_id, security, links, channels: Mutex::default() }))
    }

    pub(crate) fn cluster_id(&self) -> &ClusterId {
        &self.0.cluster_id
    }

    pub(crate) fn own_node(&self) -> NodeId {
        self.0.own_node
    }

    pub(crate) fn own_id(&self) -> &InstanceId {
        &self.0.own_id
    }

    /// Whether a test has cut the way to `peer`.
    pub(crate) fn is_cut(&self, peer: &InstanceId) -> bool {
        self.0.links.is_cut(&self.0.own_id, peer)
    }

    pub(crate) fn header(&self, group: GroupId, to_node: NodeId) -> pb::Header {
        pb::Header {
            cluster_id: self.0.cluster_id.as_str().to_owned(),
            group_id: group.0,
            from_node: self.0.own_node,
            to_node,
        }
    }

    /// A connection to `peer` at `addr`, made when it is first used and again whenever it broke.
    pub(crate) fn channel(&self, purpose: Purpose, peer: &InstanceId, addr: &str) -> Channel {
        let mut channels = self.0.channels.lock();
        channels
            .entry((purpose, peer.clone(), addr.to_owned()))
            .or_insert_with(|| dial_lazily(&self.0.security, addr, Some(peer.clone())))
            .clone()
    }

    pub(crate) fn client(&self, peer: &InstanceId, addr: &str) -> RaftClient<Channel> {
        raft_client(self.channel(Purpose::Raft, peer, addr))
    }

    /// Forgets connections to peers that are no longer members.
    pub(crate) fn retain(&self, members: &BTreeSet<(InstanceId, String)>) {
        self.0.channels.lock().retain(|(_, peer, addr), _| members.contains(&(peer.clone(), addr.clone())));
    }
}

/// A client for an instance whose name is not known yet.
pub(crate) fn client_of_any(security: &PeerSecurity, addr: &str) -> RaftClient<Channel> {
    raft_client(dial_lazily(security, addr, None))
}

fn raft_client(channel: Channel) -> RaftClient<Channel> {
    RaftClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn dial_lazily(security: &PeerSecurity, addr: &str, expected: Option<InstanceId>) -> Channel {
    // The connector knows the address; the URI only names the scheme that HTTP/2 writes into its requests.
    Endpoint::from_static("http://peer")
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(security::connector(security, addr.to_owned(), expected, CONNECT_DEADLINE))
}

/// Whether a failed call certainly had no effect: no connection was made, or the peer refused before it acted.
pub(crate) fn never_sent(status: &Status) -> bool {
    match status.code() {
        Code::PermissionDenied
        | Code::NotFound
        | Code::InvalidArgument
        | Code::Unimplemented
        | Code::Unauthenticated => true,
        Code::Unavailable | Code::Unknown | Code::Internal => ConnectError::in_chain(status).is_some(),
        Code::Ok
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::DataLoss => false,
    }
}
