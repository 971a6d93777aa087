//! The whole surface over the memory store: requests in, answers out, and no socket but where the test is about sockets.

mod openai;
mod operators;
mod refused;
mod sessions;
mod sockets;
mod streams;
mod turns;

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use openclaw_proto::http::{
    ChannelList, ChannelStatus, Cluster, DeadLetterAction, DeadLetterList, HealthReason, Maintenance, Overview,
    Pairing, PairingList, Series, StateHash,
};
use openclaw_proto::ids::{ChannelAccount, SessionKey, TurnId};
use openclaw_proto::state::ExpireInstance;
use openclaw_proto::state::command::Kind as Command;
use openclaw_proto::state::outcome::Kind as Outcome;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::*;
use crate::models::{self, EventStream, FinishReason, ModelEvent, ModelProvider, Prompt, Usage};
use crate::sessions::follow::{self, Relay, RelayError, RelayEvent};
use crate::sessions::live::{self, Hub};
use crate::sessions::runner::{self, Runner};
use crate::store::memory::MemoryStore;

const SOON: Duration = Duration::from_secs(20);
const TOKEN: &str = "s3cret-token";

/// A model that says one word per permit, then stops: tests decide how far an answer gets.
struct Paced {
    words: Vec<String>,
    permits: Semaphore,
    prompts: parking_lot::Mutex<Vec<Arc<Prompt>>>,
}

impl Paced {
    fn new(words: usize) -> Arc<Self> {
        let words = (0..words).map(|n| format!("w{n}é ")).collect();
        Arc::new(Self { words, permits: Semaphore::new(0), prompts: parking_lot::Mutex::default() })
    }

    fn text(&self) -> String {
        self.words.concat()
    }

    /// Lets everything be said at once, for every prompt.
    fn free(self: Arc<Self>) -> Arc<Self> {
        self.permits.add_permits(1 << 20);
        self
    }
}

/// Lets a trait of shared values be a provider.
struct Shared(Arc<Paced>);

impl ModelProvider for Shared {
    fn stream<'a>(&'a self, model: &'a str, prompt: Arc<Prompt>) -> BoxFuture<'a, Result<EventStream, models::Error>> {
        self.0.prompts.lock().push(prompt);
        let broken = model == "broken";
        let said = stream::unfold((self.0.clone(), 0), move |(paced, n)| async move {
            if broken {
                let error = models::Error::Invalid { provider: "paced".into(), said: "no such luck".into() };
                return (n == 0).then_some((Err(error), (paced, 1)));
            }
            let event = match paced.words.get(n) {
                Some(word) => {
                    paced.permits.acquire().await.unwrap().forget();
                    ModelEvent::Delta(word.clone())
                }
                None if n == paced.words.len() => {
                    let usage = Usage { input_tokens: 3, output_tokens: n as u64 };
                    ModelEvent::Finished { usage, reason: FinishReason::Stop }
                }
                None => return None,
            };
            Some((Ok(event), (paced, n + 1)))
        });
        Box::pin(async move { Ok(said.boxed()) })
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<String>, models::Error>> {
        Box::pin(async { Ok(vec!["model".to_owned()]) })
    }
}

/// Instances in one process, relaying by calling each other.
#[derive(Default)]
struct Peers(parking_lot::Mutex<Vec<(InstanceId, Follow)>>);

impl Relay for Arc<Peers> {
    fn watch<'a>(
        &'a self,
        runner: &'a InstanceId,
        turn: &'a TurnId,
        after_attempt: u32,
        after_n: u64,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<RelayEvent, RelayError>>, RelayError>> {
        let found = self.0.lock().iter().find(|(id, _)| id == runner).map(|(_, follow)| follow.clone());
        Box::pin(async move {
            let gone = || RelayError { instance: runner.clone(), reason: "it is gone".into() };
            let follow = found.ok_or_else(gone)?;
            Ok(follow.serve(turn.clone(), after_attempt, after_n).map(Ok).boxed())
        })
    }
}

struct FakeCluster {
    me: InstanceId,
    status: parking_lot::Mutex<ClusterStatus>,
    reasons: parking_lot::Mutex<Vec<HealthReason>>,
    refuses: bool,
}

impl HealthView for FakeCluster {
    fn reasons(&self) -> Vec<HealthReason> {
        self.reasons.lock().clone()
    }
}

impl ClusterView for FakeCluster {
    fn status(&self) -> ClusterStatus {
        self.status.lock().clone()
    }

    fn is_draining(&self) -> bool {
        let status = self.status.lock();
        status.draining || status.maintenance
    }

    fn cluster(&self) -> BoxFuture<'_, Result<Cluster, ClusterError>> {
        Box::pin(async {
            Ok(Cluster {
                cluster_id: "test".into(),
                instance_id: self.me.as_str().into(),
                leader: None,
                term: 1,
                commit_index: 0,
                format: 1,
                members: Vec::new(),
                warnings: Vec::new(),
            })
        })
    }

    fn state_hash(&self) -> BoxFuture<'_, Result<StateHash, ClusterError>> {
        Box::pin(async {
            Ok(StateHash { instance_id: self.me.as_str().into(), applied_index: 7, sha256: "ab".repeat(32) })
        })
    }

    fn backup(&self, stale: bool) -> BoxFuture<'_, Result<BackupStream, ClusterError>> {
        Box::pin(async move {
            let pieces = [if stale { "stale " } else { "fresh " }, "rows"].map(|piece| Ok(piece.into()));
            Ok(futures::stream::iter(pieces).boxed())
        })
    }

    fn maintenance(&self) -> Maintenance {
        let on = self.status.lock().maintenance;
        Maintenance { instance_id: self.me.as_str().into(), on, running_turns: 0, channels: 0, drained: on }
    }

    fn set_maintenance(&self, on: bool, _: bool) -> BoxFuture<'_, Result<Maintenance, ClusterError>> {
        self.status.lock().maintenance = on;
        Box::pin(async { Ok(self.maintenance()) })
    }

    fn transfer_leader(&self, to: Option<InstanceId>) -> BoxFuture<'_, Result<InstanceId, ClusterError>> {
        Box::pin(async move { Ok(to.unwrap_or_else(|| self.me.clone())) })
    }

    fn remove(&self, instance: InstanceId) -> BoxFuture<'_, Result<(), ClusterError>> {
        let code = ErrorCode::NotFound;
        Box::pin(async move { Err(ClusterError { code, message: format!("there is no instance {instance}") }) })
    }

    fn runner_for_new_turn(&self, _: &SessionKey) -> Result<InstanceId, ClusterError> {
        if self.refuses {
            return Err(ClusterError { code: ErrorCode::Draining, message: "on its way out".into() });
        }
        Ok(self.me.clone())
    }
}

/// An instance without channels.
struct NoChannels;

fn no_such<T>(what: &str) -> Result<T, ClusterError> {
    Err(ClusterError { code: ErrorCode::NotFound, message: format!("there is no {what}") })
}

impl ChannelView for NoChannels {
    fn channels(&self) -> BoxFuture<'_, Result<ChannelList, ClusterError>> {
        Box::pin(async { Ok(ChannelList::default()) })
    }

    fn move_to(&self, account: ChannelAccount, _: InstanceId) -> BoxFuture<'_, Result<ChannelStatus, ClusterError>> {
        Box::pin(async move { no_such(account.as_str()) })
    }

    fn dead_letters(&self, account: &ChannelAccount) -> Result<DeadLetterList, ClusterError> {
        no_such(account.as_str())
    }

    fn decide(&self, _: ChannelAccount, _: u64, _: DeadLetterAction) -> BoxFuture<'_, Result<(), ClusterError>> {
        Box::pin(async { no_such("message") })
    }

    fn opens(&self, _: &ChannelAccount, _: Option<&[u8]>) -> Result<(), ClusterError> {
        Err(ClusterError { code: ErrorCode::Unauthorized, message: "no secret opens it".into() })
    }

    fn webhook(
        &self,
        _: ChannelAccount,
        _: Option<Vec<u8>>,
        _: bytes::Bytes,
    ) -> BoxFuture<'_, Result<(), ClusterError>> {
        Box::pin(async { Err(ClusterError { code: ErrorCode::Unauthorized, message: "no secret opens it".into() }) })
    }

    fn pairings(&self) -> Result<PairingList, ClusterError> {
        Ok(PairingList { pairings: Vec::new() })
    }

    fn approve(&self, _: String, _: String) -> BoxFuture<'_, Result<Pairing, ClusterError>> {
        Box::pin(async { no_such("code") })
    }

    fn revoke(&self, _: ChannelAccount, _: String) -> BoxFuture<'_, Result<(), ClusterError>> {
        Box::pin(async { no_such("approval") })
    }
}

/// What [`FakeCluster`] looks like at a glance.
struct Glance(InstanceId);

impl OverviewView for Glance {
    fn overview(&self) -> BoxFuture<'static, Result<Arc<Overview>, ClusterError>> {
        let instance_id = self.0.as_str().to_owned();
        let series = Some(Series { step_ms: 5_000, ..Series::default() });
        Box::pin(async { Ok(Arc::new(Overview { instance_id, series, ..Overview::default() })) })
    }
}

/// One instance of a cluster that shares a store.
struct Instance {
    router: Router,
    store: MemoryStore,
    metrics: Metrics,
    cluster: Arc<FakeCluster>,
    follow: Follow,
    /// Ends its runner, as a crash would.
    runner: CancellationToken,
    /// Ends what is open, as a stop does at its deadline.
    stopping: CancellationToken,
    peers: Arc<Peers>,
    id: InstanceId,
}

struct Setup {
    model: Arc<Paced>,
    config: gateway::Gateway,
    max_queued: u32,
    refuses: bool,
    live: live::Limits,
}

impl Setup {
    fn new(model: Arc<Paced>) -> Self {
        Self {
            model,
            config: gateway::Gateway::default(),
            max_queued: 20,
            refuses: false,
            live: live::Limits::default(),
        }
    }

    fn with_token(mut self) -> Self {
        self.config = serde_json::from_value(json!({
            "auth": {"token": TOKEN}, "allowedOrigins": ["https://chat.example"],
        }))
        .unwrap();
        self
    }

    fn cluster(self, count: usize) -> Vec<Instance> {
        let ids: Vec<_> = (1..=count).map(|n| InstanceId::parse(format!("node-{n}")).unwrap()).collect();
        let store = MemoryStore::new(&ids.iter().collect::<Vec<_>>());
        let peers = Arc::new(Peers::default());
        ids.iter().map(|id| self.instance(id, &store, &peers)).collect()
    }

    fn one(self) -> Instance {
        self.cluster(1).pop().unwrap()
    }

    fn instance(&self, id: &InstanceId, memory: &MemoryStore, peers: &Arc<Peers>) -> Instance {
        let store: Arc<dyn SessionStore> = Arc::new(memory.clone());
        let models = Models::from_config(&openclaw_config::Models::default()).unwrap().with_provider(
            "paced",
            Arc::new(Shared(self.model.clone())),
            models::Limits::default(),
        );
        let agents: Agents =
            serde_json::from_value(json!({"defaults": {"model": "paced/model"}, "entries": {"ops": {}}})).unwrap();
        let (hub, metrics) = (Hub::new(self.live), Metrics::new().unwrap());
        let (stop, stopping) = (CancellationToken::new(), CancellationToken::new());
        let follow = Follow::new(
            id.clone(),
            store.clone(),
            hub.clone(),
            Arc::new(peers.clone()),
            follow::Options { patience: Duration::from_millis(200), ..follow::Options::default() },
            stopping.clone(),
        );
        peers.0.lock().push((id.clone(), follow.clone()));
        let options = runner::Options { agents: agents.clone(), ..runner::Options::default() };
        let runner = Runner::new(id.clone(), store.clone(), models.clone(), hub, metrics.clone(), options);
        let load = runner.load();
        tokio::spawn(runner.run(stop.clone()));
        let cluster = Arc::new(FakeCluster {
            me: id.clone(),
            status: parking_lot::Mutex::new(ClusterStatus { has_quorum: true, ..ClusterStatus::default() }),
            reasons: parking_lot::Mutex::default(),
            refuses: self.refuses,
        });
        let commander = commander(id, &models, &agents);
        let gateway = Gateway::new(Parts {
            instance_id: id.clone(),
            store,
            follow: follow.clone(),
            load,
            models,
            agents,
            cluster: cluster.clone(),
            channels: Arc::new(NoChannels),
            health: cluster.clone(),
            overview: Arc::new(Glance(id.clone())),
            metrics: metrics.clone(),
            config: self.config.clone(),
            max_queued: self.max_queued,
            commander,
            reset_triggers: vec!["/new".into()],
            stopping: stopping.clone(),
        });
        Instance {
            router: router(gateway),
            store: memory.clone(),
            metrics,
            cluster,
            follow,
            runner: stop,
            stopping,
            peers: peers.clone(),
            id: id.clone(),
        }
    }
}

impl Instance {
    async fn send(&self, request: http::request::Builder, body: impl Into<Body>) -> Response {
        let mut request = request.body(body.into()).unwrap();
        if !request.headers().contains_key(HOST) {
            request.headers_mut().insert(HOST, "localhost:3000".parse().unwrap());
        }
        if request.extensions().get::<Peer>().is_none() {
            request.extensions_mut().insert(Peer::Tcp(SocketAddr::from(([127, 0, 0, 1], 4242))));
        }
        timeout(SOON, self.router.clone().oneshot(request)).await.expect("an answer").unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Response {
        self.post_with(path, body, &[]).await
    }

    async fn post_with(&self, path: &str, body: Value, headers: &[(&str, &str)]) -> Response {
        let mut request = Request::post(path).header(CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request, body.to_string()).await
    }

    async fn patch(&self, path: &str, body: Value, headers: &[(&str, &str)]) -> Response {
        let mut request = Request::patch(path).header(CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request, body.to_string()).await
    }

    async fn get(&self, path: &str) -> Response {
        self.send(Request::get(path), Body::empty()).await
    }

    async fn json(&self, path: &str) -> Value {
        let response = self.get(path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        body(response).await
    }

    /// Stops it as a crash would: its runner ends, nobody reaches it, and its epoch expires.
    fn kill(&self) {
        self.runner.cancel();
        self.peers.0.lock().retain(|(id, _)| *id != self.id);
        let epoch = u64::from(self.id.as_str().rsplit('-').next().unwrap().parse::<u32>().unwrap());
        let expired = self.store.apply(Command::ExpireInstance(ExpireInstance {
            instance_id: self.id.as_str().into(),
            epoch,
            renewal: 0,
            term: 1,
            max_attempts: 3,
        }));
        assert!(matches!(expired.value, Outcome::Done(_)), "{expired:?}");
    }
}

async fn bytes(response: Response) -> Bytes {
    timeout(SOON, response.into_body().collect()).await.expect("an end").unwrap().to_bytes()
}

async fn body(response: Response) -> Value {
    let bytes = bytes(response).await;
    serde_json::from_slice(&bytes).unwrap_or_else(|_| panic!("{bytes:?} is not JSON"))
}

#[derive(Debug, Clone, PartialEq)]
struct SseEvent {
    id: String,
    name: String,
    data: Value,
}

/// Reads a stream as a client does, one event at a time.
struct SseClient {
    body: Body,
    rest: String,
}

impl SseClient {
    fn new(response: Response) -> Self {
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[CONTENT_TYPE], "text/event-stream");
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        assert_eq!(response.headers()["cache-control"], "no-cache");
        Self { body: response.into_body(), rest: String::new() }
    }

    async fn next(&mut self) -> Option<SseEvent> {
        loop {
            while let Some((block, rest)) = self.rest.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.rest = rest;
                let field = |name: &str| {
                    let lines = block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                    lines.collect::<Vec<_>>().join("\n")
                };
                if field("event").is_empty() {
                    continue;
                }
                let data = serde_json::from_str(&field("data")).unwrap();
                return Some(SseEvent { id: field("id"), name: field("event"), data });
            }
            let frame = timeout(SOON, self.body.frame()).await.expect("an event")?.unwrap();
            self.rest.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    }

    async fn all(mut self) -> Vec<SseEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

fn commander(me: &InstanceId, models: &Models, agents: &Agents) -> Commander {
    Commander { me: me.clone(), models: models.clone(), agents: agents.clone(), timeout: SOON }
}

/// Another router over an instance's parts.
fn gateway_of(instance: &Instance) -> Gateway {
    let config: gateway::Gateway = serde_json::from_value(json!({"auth": {"token": TOKEN}})).unwrap();
    let (models, agents) = (Models::from_config(&openclaw_config::Models::default()).unwrap(), Agents::default());
    Gateway::new(Parts {
        commander: commander(&instance.id, &models, &agents),
        reset_triggers: Vec::new(),
        stopping: CancellationToken::new(),
        instance_id: instance.id.clone(),
        store: Arc::new(instance.store.clone()),
        follow: instance.follow.clone(),
        load: Load::default(),
        models,
        agents,
        cluster: instance.cluster.clone(),
        channels: Arc::new(NoChannels),
        health: instance.cluster.clone(),
        overview: Arc::new(Glance(instance.id.clone())),
        metrics: instance.metrics.clone(),
        config,
        max_queued: 20,
    })
}
