//! Session state in the replicated state machine.
//!
//! Commits go through the leader, reads are answered by this instance once it has applied what they must reflect.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use openclaw_proto::ids::{ChannelAccount, InstanceId, SeqNum, SessionKey, TurnId};
use openclaw_proto::state::command::Kind as Command;
use openclaw_proto::state::outcome::Kind as Outcome;
use openclaw_proto::state::{Cursor, Entry, Instance, Intent, Lease, Pairing, Session, Turn};
use openclaw_raft::command::kind_name;
use openclaw_raft::planted::{Bug, planted};
use openclaw_raft::trace;
use openclaw_raft::{Node, ProposeError, TableError, View};
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::BroadcastStream;
use tracing::{Instrument, Span};

use super::channels::ChannelStore;
use super::{CommitError, Committed, Consistency, Event, Read, ReadError, SessionStore};
use crate::metrics::Metrics;

/// How long a request waits for a quorum that is missing: an election takes less, also on a busy machine. Past it the
/// caller learns that nothing was done, rather than wait for its own deadline.
const MISSING_QUORUM: Duration = Duration::from_secs(2);

/// This instance's node as a store. Cheap to clone.
#[derive(Clone)]
pub struct RaftStore {
    node: Node,
    metrics: Metrics,
}

impl RaftStore {
    pub fn new(node: Node, metrics: Metrics) -> Self {
        Self { node, metrics }
    }

    /// A view that reflects what is asked for.
    ///
    /// # Errors
    /// [`ReadError`] when that is not known in time.
    pub async fn view(&self, consistency: Consistency, timeout: Duration) -> Result<View, ReadError> {
        let view = match consistency {
            Consistency::Linearizable => {
                let waiting = Instant::now();
                tokio::select! {
                    view = self.node.read_linearizable(timeout) => view,
                    () = self.quorum_stays_missing() => {
                        return Err(ReadError::NoQuorum { waited: waiting.elapsed(), reason: missing_quorum() });
                    }
                }
            }
            Consistency::AtLeast(index) => self.node.read_at_least(index, timeout).await,
            Consistency::Stale => Ok(self.node.read_local()),
        };
        view.map_err(|error| match error {
            openclaw_raft::ReadError::NoQuorum { waited, reason } => ReadError::NoQuorum { waited, reason },
            openclaw_raft::ReadError::Behind { waited, .. } => ReadError::Timeout { waited },
            openclaw_raft::ReadError::Busy => ReadError::Busy,
        })
    }

    /// Ends when no quorum has been known for [`MISSING_QUORUM`] on end, and not otherwise.
    async fn quorum_stays_missing(&self) {
        if planted(Bug::HangingMinority) {
            return std::future::pending().await;
        }
        let mut status = self.node.watch_status();
        loop {
            if status.wait_for(|status| !status.has_quorum).await.is_err() {
                return std::future::pending().await;
            }
            if timeout_at(Instant::now() + MISSING_QUORUM, status.wait_for(|status| status.has_quorum)).await.is_err() {
                return;
            }
        }
    }

    /// Waits for a quorum as long as a request should. A command goes no further without one: in the log of a leader that
    /// has lost its quorum, its fate would be unknown.
    ///
    /// # Errors
    /// [`CommitError::NoQuorum`]: nothing was proposed.
    async fn quorum(&self, timeout: Duration) -> Result<(), CommitError> {
        let waiting = Instant::now();
        let mut status = self.node.watch_status();
        if planted(Bug::HangingMinority) {
            // Without a sender the node has stopped, as below.
            drop(status.wait_for(|status| status.has_quorum).await);
        }
        let known = timeout_at(waiting + timeout.min(MISSING_QUORUM), status.wait_for(|status| status.has_quorum));
        match known.await {
            // Without a sender the node has stopped, which it says itself.
            Ok(_) => Ok(()),
            Err(_) => Err(CommitError::NoQuorum { waited: waiting.elapsed(), reason: missing_quorum() }),
        }
    }

    async fn propose(
        &self,
        command: Command,
        timeout: Duration,
    ) -> Result<Committed<Outcome>, (&'static str, CommitError)> {
        let begin = Instant::now();
        self.quorum(timeout).await.map_err(|error| ("no_quorum", error))?;
        let left = timeout.saturating_sub(begin.elapsed());
        let committed = tokio::select! {
            committed = self.node.propose(command, left) => committed.map_err(refused)?,
            // It was under way when the quorum was lost. The caller may repeat it elsewhere, sooner than it would give up here.
            () = self.quorum_stays_missing() => {
                return Err(("effect_unknown", CommitError::EffectUnknown { waited: begin.elapsed() }));
            }
        };
        Ok(Committed { index: committed.log_index, value: committed.outcome })
    }

    async fn read<T>(
        &self,
        consistency: Consistency,
        timeout: Duration,
        read: impl FnOnce(&View) -> Result<T, TableError>,
    ) -> Result<Read<T>, ReadError> {
        let view = self.view(consistency, timeout).await?;
        // Rows come from RocksDB's memory or one block of its cache: too little work to send elsewhere.
        let value = read(&view).map_err(|error| ReadError::Storage(error.to_string()))?;
        Ok(Read { index: view.applied_index(), value })
    }
}

impl SessionStore for RaftStore {
    fn commit(&self, command: Command, timeout: Duration) -> BoxFuture<'_, Result<Committed<Outcome>, CommitError>> {
        Box::pin(async move {
            let timer = self.metrics.raft_proposal_duration.start_timer();
            // As part of what asks for it; what the gateway does by itself is not traced.
            let span = if trace::is_on() {
                tracing::trace_span!("propose", command = kind_name(&command), otel.kind = "client")
            } else {
                Span::none()
            };
            let result = self.propose(command, timeout).instrument(span).await;
            timer.observe_duration();
            let (word, result) = match result {
                Ok(committed) => ("ok", Ok(committed)),
                Err((word, error)) => (word, Err(error)),
            };
            self.metrics.raft_proposals.with_label_values(&[word]).inc();
            result
        })
    }

    fn session<'a>(
        &'a self,
        key: &'a SessionKey,
        consistency: Consistency,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Read<Option<Session>>, ReadError>> {
        Box::pin(self.read(consistency, timeout, |view| view.session(key)))
    }

    fn sessions<'a>(
        &'a self,
        after: Option<&'a SessionKey>,
        limit: usize,
        consistency: Consistency,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Read<Vec<Session>>, ReadError>> {
        Box::pin(self.read(consistency, timeout, move |view| view.sessions(after, limit)))
    }

    fn entries<'a>(
        &'a self,
        key: &'a SessionKey,
        after: SeqNum,
        limit: usize,
        consistency: Consistency,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Read<Vec<Entry>>, ReadError>> {
        Box::pin(self.read(consistency, timeout, move |view| view.entries(key, after, limit)))
    }

    fn turn<'a>(
        &'a self,
        id: &'a TurnId,
        consistency: Consistency,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Read<Option<Turn>>, ReadError>> {
        Box::pin(self.read(consistency, timeout, |view| view.turn(id)))
    }

    fn turns_of<'a>(
        &'a self,
        runner: &'a InstanceId,
        consistency: Consistency,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Read<Vec<Turn>>, ReadError>> {
        Box::pin(self.read(consistency, timeout, |view| view.turns_of(runner)))
    }

    fn events(&self) -> BoxStream<'static, Event> {
        let events = BroadcastStream::new(self.node.events());
        let concerning_turns = events.filter_map(|event| {
            std::future::ready(match event {
                Ok(openclaw_raft::Event::TurnRunnable(turn)) => Some(Event::TurnRunnable(turn)),
                Ok(openclaw_raft::Event::TurnEnded(turn)) => Some(Event::TurnEnded(turn)),
                Ok(openclaw_raft::Event::LeaseChanged(lease)) => Some(Event::LeaseChanged(lease)),
                Ok(openclaw_raft::Event::OutboxChanged { account, id }) => Some(Event::OutboxChanged { account, id }),
                Ok(openclaw_raft::Event::StateReplaced) | Err(_) => Some(Event::Lagged),
                Ok(openclaw_raft::Event::InstanceLive { .. } | openclaw_raft::Event::InstanceGone { .. }) => None,
            })
        });
        concerning_turns.boxed()
    }
}

impl RaftStore {
    fn now<T>(&self, read: impl FnOnce(&View) -> Result<T, TableError>) -> Result<T, ReadError> {
        read(&self.node.read_local()).map_err(|error| ReadError::Storage(error.to_string()))
    }
}

impl ChannelStore for RaftStore {
    fn leases(&self) -> Result<Vec<Lease>, ReadError> {
        self.now(View::leases)
    }

    fn instances(&self) -> Result<Vec<Instance>, ReadError> {
        self.now(View::instances)
    }

    fn cursor(&self, account: &ChannelAccount) -> Result<Option<Cursor>, ReadError> {
        self.now(|view| view.cursor(account))
    }

    fn outbox(&self, account: &ChannelAccount, after: u64, limit: usize) -> Result<Vec<Intent>, ReadError> {
        self.now(|view| view.outbox(account, after, limit))
    }

    fn pairings(&self, account: Option<&ChannelAccount>) -> Result<Vec<Pairing>, ReadError> {
        self.now(|view| view.pairings(account))
    }

    fn is_paired(&self, account: &ChannelAccount, sender_id: &str) -> Result<bool, ReadError> {
        self.now(|view| view.is_paired(account, sender_id))
    }
}

fn missing_quorum() -> String {
    "this instance cannot reach a quorum".to_owned()
}

/// The error as callers see it, and its label.
fn refused(error: ProposeError) -> (&'static str, CommitError) {
    match error {
        ProposeError::NoQuorum { waited, reason } => ("no_quorum", CommitError::NoQuorum { waited, reason }),
        ProposeError::Busy => ("busy", CommitError::Busy),
        ProposeError::EffectUnknown { waited } => ("effect_unknown", CommitError::EffectUnknown { waited }),
        ProposeError::Stopped => ("stopped", CommitError::Stopped),
        ProposeError::TooLarge(error) => ("too_large", CommitError::TooLarge { reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use openclaw_proto::state::RegisterInstance;
    use openclaw_raft::{Formation, Links, Options, Running, Security, Timing};
    use tokio::net::TcpListener;

    use super::*;

    async fn alone(id: &InstanceId) -> (Node, Running, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (node, running) = Node::start(Options {
            instance_id: id.clone(),
            cluster_id: None,
            data_dir: directory.path().join(id.as_str()),
            peer_addr: listener.local_addr().unwrap().to_string(),
            listener,
            http_addr: "127.0.0.1:0".into(),
            formation: Formation::Alone,
            security: Security::Plaintext,
            timing: Timing::default(),
            services: tonic::service::Routes::default(),
            links: Links::default(),
        })
        .await
        .unwrap();
        (node, running, directory)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn raft_keeps_the_contract() {
        let id = InstanceId::parse("node-1").unwrap();
        let kept = parking_lot::Mutex::new(Vec::new());
        super::super::contract::run(async || {
            let (node, running, directory) = alone(&id).await;
            let register = RegisterInstance {
                instance_id: id.as_str().into(),
                boot_id: "boot".into(),
                ..RegisterInstance::default()
            };
            node.propose(Command::RegisterInstance(register), Duration::from_secs(20)).await.unwrap();
            kept.lock().push((running, directory));
            Arc::new(RaftStore::new(node, Metrics::new().unwrap())) as Arc<dyn SessionStore>
        })
        .await;
        let kept = std::mem::take(&mut *kept.lock());
        for (running, _directory) in kept {
            running.stop().await;
        }
    }
}
