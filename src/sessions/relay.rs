//! Live text between instances: what a reader on one instance gets of a turn that runs on another.
//!
//! One gRPC stream per reader, over the one connection that the two instances have.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, Stream, StreamExt};
use openclaw_proto::http::{REQUEST_ID, TRACE_PARENT};
use openclaw_proto::ids::{InstanceId, RequestId, TurnId};
use openclaw_proto::peer as pb;
use openclaw_proto::peer::relay_client::RelayClient;
use openclaw_proto::peer::relay_server::{Relay as RelayService, RelayServer};
use openclaw_raft::{Node, trace};
use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tracing::{Span, info_span, trace_span};

use super::follow::{Follow, Relay, RelayError, RelayEvent};
use crate::logging;

/// From asking to the answer's headers.
const ANSWER: Duration = Duration::from_secs(2);

/// What other instances ask of this one. It listens before there is anything to tell, so it is told later.
#[derive(Clone, Default)]
pub struct Service {
    follow: Arc<OnceLock<(Follow, String)>>,
}

impl Service {
    pub fn server(&self) -> RelayServer<Self> {
        RelayServer::new(self.clone())
    }

    /// From here on it answers members of `cluster_id`.
    pub fn open(&self, follow: Follow, cluster_id: String) {
        // Opened once, by whoever wires the process.
        if self.follow.set((follow, cluster_id)).is_err() {
            tracing::error!("the relay was opened twice");
        }
    }
}

#[tonic::async_trait]
impl RelayService for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchEvent, Status>> + Send>>;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (span, traced) = spans(request.metadata());
        let message = request.into_inner();
        let (follow, cluster_id) =
            self.follow.get().ok_or_else(|| Status::unavailable("this instance is still starting"))?;
        if message.cluster_id != *cluster_id {
            tracing::warn!(cluster = message.cluster_id, "refused a reader of another cluster");
            return Err(Status::permission_denied(format!("this instance is of cluster {cluster_id}")));
        }
        let turn = TurnId::parse(message.turn_id).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let events = follow.serve(turn, message.after_attempt, message.after_n);
        let mut events = events.map(|event| Ok::<_, Status>(to_message(event)));
        // What is logged while it is read belongs to the request that reads it, on another instance.
        let entered = futures::stream::poll_fn(move |context| {
            let (_traced, _span) = (traced.enter(), span.enter());
            events.poll_next_unpin(context)
        });
        Ok(Response::new(Box::pin(entered)))
    }
}

/// The request that a reader is for, as its instance says: for the log, and for a trace.
fn spans(metadata: &MetadataMap) -> (Span, Span) {
    let text = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
    let id = text(REQUEST_ID).and_then(|id| RequestId::parse(id).ok());
    let span = id.map_or(Span::none(), |request_id| info_span!("relay", %request_id));
    let parent = text(TRACE_PARENT).unwrap_or_default();
    if parent.is_empty() {
        return (span, Span::none());
    }
    let traced = trace_span!("relay", otel.kind = "server");
    trace::follow(&traced, parent);
    (span, traced)
}

/// Says for which request this instance asks.
fn tell(metadata: &mut MetadataMap) {
    let mut put = |name: &'static str, text: &str| {
        if let Ok(value) = text.parse() {
            metadata.insert(name, value);
        }
    };
    if let Some(id) = logging::request_id() {
        put(REQUEST_ID, id.as_str());
    }
    let parent = trace::parent();
    if !parent.is_empty() {
        put(TRACE_PARENT, &parent);
    }
}

fn to_message(event: RelayEvent) -> pb::WatchEvent {
    match event {
        RelayEvent::Delta { attempt, n, text } => {
            pb::WatchEvent { attempt, n, kind: Some(pb::watch_event::Kind::Delta(text)) }
        }
        RelayEvent::Ended { attempt } => {
            pb::WatchEvent { attempt, n: 0, kind: Some(pb::watch_event::Kind::Ended(true)) }
        }
        RelayEvent::NotHere => pb::WatchEvent { attempt: 0, n: 0, kind: Some(pb::watch_event::Kind::NotHere(true)) },
    }
}

fn from_message(message: pb::WatchEvent) -> Option<RelayEvent> {
    let pb::WatchEvent { attempt, n, kind } = message;
    Some(match kind? {
        pb::watch_event::Kind::Delta(text) => RelayEvent::Delta { attempt, n, text },
        pb::watch_event::Kind::Ended(_) => RelayEvent::Ended { attempt },
        pb::watch_event::Kind::NotHere(_) => RelayEvent::NotHere,
    })
}

/// This instance as a reader of others.
pub struct PeerRelay(pub Node);

impl Relay for PeerRelay {
    fn watch<'a>(
        &'a self,
        runner: &'a InstanceId,
        turn: &'a TurnId,
        after_attempt: u32,
        after_n: u64,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<RelayEvent, RelayError>>, RelayError>> {
        Box::pin(async move {
            let instance = runner.clone();
            let failed = move |reason: String| RelayError { instance: instance.clone(), reason };
            let channel = self.0.peer_channel(runner).ok_or_else(|| failed("it is no member of the cluster".into()))?;
            let request = pb::WatchRequest {
                cluster_id: self.0.cluster_id().as_str().to_owned(),
                turn_id: turn.as_str().to_owned(),
                after_attempt,
                after_n,
            };
            let mut request = Request::new(request);
            tell(request.metadata_mut());
            let mut client = RelayClient::new(channel);
            let answer = timeout(ANSWER, client.watch(request))
                .await
                .map_err(|_| failed("no answer".into()))?
                .map_err(|status| failed(status.message().to_owned()))?;
            let events = answer.into_inner().map(move |message| match message {
                Ok(message) => from_message(message).ok_or_else(|| failed("an event that cannot be read".into())),
                Err(status) => Err(failed(status.message().to_owned())),
            });
            Ok(events.boxed())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_wire() {
        for event in [
            RelayEvent::Delta { attempt: 2, n: 17, text: "héllo".into() },
            RelayEvent::Ended { attempt: 3 },
            RelayEvent::NotHere,
        ] {
            assert_eq!(from_message(to_message(event.clone())), Some(event));
        }
        assert_eq!(from_message(pb::WatchEvent::default()), None);
    }
}
