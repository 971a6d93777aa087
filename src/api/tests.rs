//! The whole surface over the memory store: requests in, answers out, and no socket but where the test is about sockets.

use std::collections::HashSet;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::{BoxFuture, join_all};
use futures::stream::{self, BoxStream};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use openclaw_proto::http::{
    ChannelList, ChannelStatus, Cluster, DeadLetterAction, DeadLetterList, ErrorBody, Maintenance, Pairing, PairingList,
};
use openclaw_proto::ids::{ChannelAccount, SessionKey, StreamPosition, TurnId};
use openclaw_proto::state::ExpireInstance;
use openclaw_proto::state::command::Kind as Command;
use openclaw_proto::state::outcome::Kind as Outcome;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::*;
use crate::models::{self, EventStream, FinishReason, ModelEvent, ModelProvider, Prompt, Usage};
use crate::sessions::follow::{self, Relay, RelayError, RelayEvent};
use crate::sessions::live::{self, Hub};
use crate::sessions::runner::{self, Runner};
use crate::store::memory::{Fault, MemoryStore};

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
    refuses: bool,
}

impl ClusterView for FakeCluster {
    fn status(&self) -> ClusterStatus {
        self.status.lock().clone()
    }

    fn cluster(&self) -> BoxFuture<'_, Result<Cluster, ClusterError>> {
        Box::pin(async {
            Ok(Cluster {
                cluster_id: "test".into(),
                instance_id: self.me.as_str().into(),
                leader: None,
                term: 1,
                commit_index: 0,
                members: Vec::new(),
                warnings: Vec::new(),
            })
        })
    }

    fn maintenance(&self) -> Maintenance {
        let on = self.status.lock().maintenance;
        Maintenance { instance_id: self.me.as_str().into(), on, running_turns: 0, drained: on }
    }

    fn set_maintenance(&self, on: bool) -> BoxFuture<'_, Result<Maintenance, ClusterError>> {
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
    fn channels(&self) -> Result<ChannelList, ClusterError> {
        Ok(ChannelList::default())
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

/// One instance of a cluster that shares a store.
struct Instance {
    router: Router,
    store: MemoryStore,
    metrics: Metrics,
    cluster: Arc<FakeCluster>,
    follow: Follow,
    /// Ends its runner, as a crash would.
    runner: CancellationToken,
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
        let follow = Follow::new(
            id.clone(),
            store.clone(),
            hub.clone(),
            Arc::new(peers.clone()),
            follow::Options { patience: Duration::from_millis(200), ..follow::Options::default() },
            CancellationToken::new(),
        );
        peers.0.lock().push((id.clone(), follow.clone()));
        let options = runner::Options { agents: agents.clone(), ..runner::Options::default() };
        let runner = Runner::new(id.clone(), store.clone(), models.clone(), hub, metrics.clone(), options);
        let load = runner.load();
        let stop = CancellationToken::new();
        tokio::spawn(runner.run(stop.clone()));
        let cluster = Arc::new(FakeCluster {
            me: id.clone(),
            status: parking_lot::Mutex::new(ClusterStatus { has_quorum: true, ..ClusterStatus::default() }),
            refuses: self.refuses,
        });
        let gateway = Gateway::new(Parts {
            instance_id: id.clone(),
            store,
            follow: follow.clone(),
            load,
            models,
            agents,
            cluster: cluster.clone(),
            channels: Arc::new(NoChannels),
            metrics: metrics.clone(),
            config: self.config.clone(),
            max_queued: self.max_queued,
        });
        Instance {
            router: router(gateway),
            store: memory.clone(),
            metrics,
            cluster,
            follow,
            runner: stop,
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

/// The text that a client holds after these events: `restart` voids what came before.
fn text(events: &[SseEvent]) -> String {
    let mut text = String::new();
    for event in events {
        match event.name.as_str() {
            "delta" => text.push_str(event.data["text"].as_str().unwrap()),
            "restart" => text.clear(),
            _ => {}
        }
    }
    text
}

async fn resume(instance: &Instance, after: &str) -> SseClient {
    let request = Request::get("/api/v1/chat/stream").header("Last-Event-ID", after);
    SseClient::new(instance.send(request, Body::empty()).await)
}

#[tokio::test]
async fn a_chat_answers_with_the_committed_reply() {
    let model = Paced::new(3).free();
    let instance = Setup::new(model.clone()).one();
    let response = instance.post_with("/api/v1/chat", json!({"message": "hello"}), &[("x-request-id", "my-id")]).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["x-openclaw-instance"], "node-1");
    assert_eq!(response.headers()["x-request-id"], "my-id");
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    let index = response.headers()["x-openclaw-index"].to_str().unwrap().to_owned();
    let answer = body(response).await;
    assert_eq!(answer["sessionKey"], "agent:main:main");
    assert_eq!(answer["reply"]["text"], model.text());
    assert_eq!(answer["usage"], json!({"inputTokens": 3, "outputTokens": 3, "totalTokens": 6}));
    assert_eq!((&answer["model"], &answer["instanceId"]), (&json!("paced/model"), &json!("node-1")));

    let request = Request::get("/api/v1/sessions/agent:main:main/entries").header("x-openclaw-min-index", index);
    let entries = body(instance.send(request, Body::empty()).await).await;
    assert_eq!(entries["headSeq"], 2);
    assert_eq!((&entries["entries"][0]["text"], &entries["entries"][0]["role"]), (&json!("hello"), &json!("user")));
    assert_eq!(entries["entries"][1]["text"], model.text());
    assert_eq!(entries["entries"][1]["id"], answer["reply"]["entryId"]);
    let turn = instance.json(&format!("/api/v1/turns/{}", answer["turnId"].as_str().unwrap())).await;
    assert_eq!((&turn["state"], &turn["attempt"], &turn["runner"]), (&json!("done"), &json!(1), &json!("node-1")));
    let session = instance.json("/api/v1/sessions/Agent:Main:Main?consistency=stale").await;
    assert_eq!((&session["turnCount"], &session["usage"]["totalTokens"]), (&json!(1), &json!(6)));

    // The next turn knows the conversation.
    instance.post("/api/v1/chat", json!({"message": "and now?"})).await;
    let prompts = model.prompts.lock();
    let texts: Vec<_> = prompts[1].messages.iter().map(|message| message.text.clone()).collect();
    assert_eq!(texts, ["hello".to_owned(), model.text(), "and now?".to_owned()]);
}

#[tokio::test]
async fn a_stream_begins_with_start_and_ends_with_done() {
    let model = Paced::new(5).free();
    let instance = Setup::new(model.clone()).one();
    let response = instance.post("/api/v1/chat/stream", json!({"message": "hi", "user": "bob"})).await;
    assert!(response.headers().contains_key("x-openclaw-index"));
    let events = SseClient::new(response).all().await;
    assert_eq!(events[0].name, "start");
    assert_eq!(events[0].data["sessionKey"], "agent:main:openai-user:bob");
    assert_eq!(text(&events), model.text());
    let last = events.last().unwrap();
    assert_eq!((last.name.as_str(), &last.data["text"]), ("done", &json!(model.text())));
    assert!(last.data["entryId"].is_string() && last.data["usage"]["outputTokens"] == 5);
    let turn = events[0].data["turnId"].as_str().unwrap();
    for event in &events {
        let position: StreamPosition = event.id.parse().unwrap();
        assert_eq!((position.turn.as_str(), position.attempt), (turn, 1));
    }
}

/// Drops the stream at every position, resumes it on this or another instance, and puts both parts together.
#[tokio::test]
async fn a_stream_continues_at_every_position_on_any_instance() {
    const WORDS: usize = 12;
    for resume_on in [0, 1] {
        for keep in 0..=WORDS {
            let model = Paced::new(WORDS);
            let instances = Setup::new(model.clone()).cluster(2);
            let mut client = SseClient::new(instances[0].post("/api/v1/chat/stream", json!({"message": "go"})).await);
            let mut seen = vec![client.next().await.unwrap()];
            for _ in 0..keep {
                model.permits.add_permits(1);
                seen.push(client.next().await.unwrap());
            }
            drop(client);
            let last = seen.last().unwrap().id.clone();
            assert!(last.ends_with(&format!(".1-{keep}")), "{last}");
            let resumed = resume(&instances[resume_on], &last).await;
            model.permits.add_permits(WORDS - keep);
            let rest = resumed.all().await;
            assert!(rest.iter().all(|event| event.name != "restart" && event.name != "start"), "{rest:?}");
            assert_eq!(rest.last().unwrap().name, "done");
            seen.extend(rest);
            assert_eq!(text(&seen), model.text(), "after {keep} on instance {resume_on}");

            // Over, but still in memory on the runner: the same again, from any position.
            let again = resume(&instances[resume_on], &last).await.all().await;
            assert_eq!(text(&seen[..=keep]) + &text(&again), model.text());
            assert!(again.iter().all(|event| event.name != "restart"), "{again:?}");
        }
    }
}

#[tokio::test]
async fn a_finished_turn_is_read_from_the_committed_reply() {
    let model = Paced::new(4).free();
    let limits = live::Limits { linger: Duration::ZERO, ..live::Limits::default() };
    let instances = Setup { live: limits, ..Setup::new(model.clone()) }.cluster(2);
    let events = SseClient::new(instances[0].post("/api/v1/chat/stream", json!({"message": "go"})).await).all().await;
    let turn = events[0].data["turnId"].as_str().unwrap().to_owned();
    for instance in &instances {
        let path = format!("/api/v1/chat/stream?turnId={turn}");
        let fresh = SseClient::new(instance.get(&path).await).all().await;
        let names: Vec<_> = fresh.iter().map(|event| event.name.as_str()).collect();
        assert_eq!((names, text(&fresh)), (vec!["start", "delta", "done"], model.text()));
        // Whoever has all of it gets only the end; whoever has a part of it that nobody remembers begins again.
        for id in [&fresh[1].id, &fresh[2].id, &events.last().unwrap().id] {
            let names: Vec<_> = resume(instance, id).await.all().await.into_iter().map(|event| event.name).collect();
            assert_eq!(names, ["done"]);
        }
        let partial = resume(instance, &format!("{turn}.1-2")).await.all().await;
        let names: Vec<_> = partial.iter().map(|event| event.name.as_str()).collect();
        assert_eq!((names, text(&partial)), (vec!["restart", "delta", "done"], model.text()));
    }
}

#[tokio::test]
async fn a_reader_that_is_slow_gets_everything_later_and_holds_nobody_up() {
    let model = Paced::new(2000);
    let instance = Setup::new(model.clone()).one();
    let mut slow = SseClient::new(instance.post("/api/v1/chat/stream", json!({"message": "go"})).await);
    let start = slow.next().await.unwrap();
    model.permits.add_permits(2000);
    // Another reader sees the end while the slow one has read nothing.
    let fast = resume(&instance, &start.id).await.all().await;
    assert_eq!(text(&fast), model.text());
    let late = slow.all().await;
    assert_eq!(text(&late), model.text());
    assert!(late.len() < 10, "{} events were kept for it", late.len());
}

#[tokio::test]
async fn another_instance_takes_over_and_readers_are_told() {
    let model = Paced::new(6);
    let instances = Setup::new(model.clone()).cluster(3);
    let mut local = SseClient::new(instances[0].post("/api/v1/chat/stream", json!({"message": "go"})).await);
    let mut seen = vec![local.next().await.unwrap()];
    let mut remote = resume(&instances[1], &seen[0].id).await;
    let mut seen_there = Vec::new();
    model.permits.add_permits(2);
    while text(&seen) != "w0é w1é " {
        seen.push(local.next().await.unwrap());
    }
    while text(&seen_there) != "w0é w1é " {
        seen_there.push(remote.next().await.unwrap());
    }
    instances[0].kill();
    model.permits.add_permits(100);
    seen_there.extend(remote.all().await);
    let restarts: Vec<_> = seen_there.iter().filter(|event| event.name == "restart").collect();
    assert_eq!(restarts.len(), 1, "{seen_there:?}");
    assert_eq!(restarts[0].data, json!({"attempt": 2}));
    assert_eq!(text(&seen_there), model.text());
    assert_eq!(seen_there.last().unwrap().name, "done");

    // A reader of the first attempt continues with the second.
    let last = seen.last().unwrap().id.clone();
    seen.extend(resume(&instances[2], &last).await.all().await);
    assert_eq!(text(&seen), model.text());
    assert!(seen.iter().any(|event| event.name == "restart"));
    let turn = instances[1].json(&format!("/api/v1/turns/{}", seen[0].data["turnId"].as_str().unwrap())).await;
    assert_eq!((&turn["attempt"], &turn["state"]), (&json!(2), &json!("done")));
    let entries = instances[1].json("/api/v1/sessions/agent:main:main/entries").await;
    assert_eq!(entries["headSeq"], 2);
}

#[tokio::test]
async fn a_repeated_key_gives_the_first_answer() {
    let model = Paced::new(2).free();
    let instance = Setup::new(model.clone()).one();
    let key = [("idempotency-key", "k1")];
    let first = body(instance.post_with("/api/v1/chat", json!({"message": "x"}), &key).await).await;
    let again =
        instance.post_with("/api/v1/chat", json!({"message": "x", "sessionKey": "AGENT:main:main"}), &key).await;
    assert_eq!(body(again).await, first);
    let followed =
        SseClient::new(instance.post_with("/api/v1/chat/stream", json!({"message": "x"}), &key).await).all().await;
    assert_eq!(followed.last().unwrap().data["entryId"], first["reply"]["entryId"]);
    let other = instance.post_with("/api/v1/chat", json!({"message": "y"}), &key).await;
    assert_eq!(other.status(), StatusCode::CONFLICT);
    assert_eq!(body(other).await["error"]["code"], "idempotency_key_reused");
    assert_eq!(model.prompts.lock().len(), 1);

    // At once, many times: one turn, one answer.
    let key = [("idempotency-key", "k2")];
    let all = join_all((0..20).map(|_| instance.post_with("/api/v1/chat", json!({"message": "z"}), &key))).await;
    let mut answers = HashSet::new();
    for response in all {
        answers.insert(body(response).await.to_string());
    }
    assert_eq!(answers.len(), 1);
    assert_eq!(model.prompts.lock().len(), 2);

    let path = "/api/v1/sessions/notes/entries";
    let append = json!({"role": "user", "text": "note"});
    let first = instance.post_with(path, append.clone(), &[("idempotency-key", "k3"), ("if-match", "0")]).await;
    assert_eq!(first.status(), StatusCode::CREATED);
    let first = body(first).await;
    let again = instance.post_with(path, append.clone(), &[("idempotency-key", "k3"), ("if-match", "0")]).await;
    assert_eq!(body(again).await, first);
    let stale = instance.post_with(path, append, &[("if-match", "\"0\"")]).await;
    assert_eq!(stale.status(), StatusCode::PRECONDITION_FAILED);
}

#[tokio::test]
async fn a_lost_answer_is_found_again_with_the_key() {
    let model = Paced::new(2).free();
    let instance = Setup::new(model.clone()).one();
    instance.store.inject([Fault::NoQuorum]);
    let key = [("idempotency-key", "k")];
    let refused = instance.post_with("/api/v1/chat", json!({"message": "x"}), &key).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    instance.store.inject([Fault::LostAnswer]);
    let unknown = instance.post_with("/api/v1/chat", json!({"message": "x"}), &key).await;
    assert_eq!(unknown.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(body(unknown).await["error"]["code"], "effect_unknown");
    let found = instance.post_with("/api/v1/chat", json!({"message": "x"}), &key).await;
    assert_eq!(found.status(), StatusCode::OK);
    let entries = instance.json("/api/v1/sessions/agent:main:main/entries").await;
    assert_eq!(entries["headSeq"], 2);
    assert_eq!(model.prompts.lock().len(), 1);
}

#[tokio::test]
async fn a_reply_whose_commit_is_in_doubt_is_recorded_once() {
    for faults in [vec![Fault::NoQuorum; 3], vec![Fault::LostAnswer], vec![Fault::LostAnswer, Fault::NoQuorum]] {
        let model = Paced::new(1);
        let instance = Setup::new(model.clone()).one();
        let client = SseClient::new(instance.post("/api/v1/chat/stream", json!({"message": "x"})).await);
        instance.store.inject(faults);
        model.permits.add_permits(1);
        let events = client.all().await;
        assert_eq!(events.last().unwrap().name, "done");
        let entries = instance.json("/api/v1/sessions/agent:main:main/entries").await;
        assert_eq!(entries["headSeq"], 2);
    }
}

#[tokio::test]
async fn a_session_answers_in_the_order_of_acceptance() {
    let model = Paced::new(1);
    let instance = Setup::new(model.clone()).one();
    let texts: Vec<_> = (0..15).map(|n| format!("message {n}")).collect();
    let streams =
        join_all(texts.iter().map(|text| instance.post("/api/v1/chat/stream", json!({"message": text})))).await;
    model.permits.add_permits(1000);
    let mut done = Vec::new();
    for response in streams {
        let events = SseClient::new(response).all().await;
        assert_eq!(events.last().unwrap().name, "done");
        done.push(events.last().unwrap().data["entryId"].as_str().unwrap().to_owned());
    }
    let entries = instance.json("/api/v1/sessions/agent:main:main/entries?limit=100").await;
    let entries = entries["entries"].as_array().unwrap();
    let of = |role: &str| {
        let found = entries.iter().filter(|entry| entry["role"] == role);
        found.map(|entry| entry["turnId"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(of("user").len(), 15);
    assert_eq!(of("user"), of("assistant"));
    assert_eq!(done.iter().collect::<HashSet<_>>().len(), 15);
    // Each prompt ends with its own message and holds no later one.
    for (n, prompt) in model.prompts.lock().iter().enumerate() {
        assert_eq!(prompt.messages.len(), 2 * n + 1);
    }
}

#[tokio::test]
async fn limits_are_answers() {
    let model = Paced::new(1);
    let mut setup = Setup::new(model.clone());
    setup.max_queued = 2;
    setup.config.limits.max_streams = 3;
    setup.config.limits.max_concurrent_requests = 1;
    setup.config.limits.chat_request = Duration::from_millis(300);
    let instance = setup.one();
    let open = join_all((0..3).map(|_| instance.post("/api/v1/chat/stream", json!({"message": "x"})))).await;
    let full = instance.post("/api/v1/chat/stream", json!({"message": "x"})).await;
    assert_eq!(
        (full.status(), full.headers()["retry-after"].clone()),
        (StatusCode::TOO_MANY_REQUESTS, "1".parse().unwrap())
    );
    let queue = instance.post("/api/v1/chat", json!({"message": "x"})).await;
    assert_eq!(queue.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(body(queue).await["error"]["message"].as_str().unwrap().contains("waiting"));

    // One request waits for its model; meanwhile there is no other place, but for operators.
    let waiting = instance.post("/api/v1/chat", json!({"message": "x", "sessionKey": "other"}));
    let meanwhile = async {
        let until = Instant::now() + SOON;
        while instance.get("/api/v1/sessions").await.status() != StatusCode::TOO_MANY_REQUESTS {
            assert!(Instant::now() < until);
            tokio::task::yield_now().await;
        }
        assert_eq!(instance.get("/api/v1/cluster").await.status(), StatusCode::OK);
        assert_eq!(instance.get("/readyz").await.status(), StatusCode::OK);
    };
    let (late, ()) = tokio::join!(waiting, meanwhile);
    assert_eq!(late.status(), StatusCode::GATEWAY_TIMEOUT);
    let error = body(late).await;
    assert_eq!(error["error"]["code"], "effect_unknown");
    assert!(error["error"]["message"].as_str().unwrap().contains("turn "));
    // A stream that has lived its time ends where it can be continued.
    for response in open {
        let events = SseClient::new(response).all().await;
        assert!(events.iter().all(|event| event.name == "start"), "{events:?}");
    }
    assert_eq!(instance.metrics.http_streams.get(), 0);
}

#[tokio::test]
async fn turns_can_be_cancelled_and_fail_with_words() {
    let model = Paced::new(3);
    let instance = Setup::new(model.clone()).one();
    let mut client = SseClient::new(instance.post("/api/v1/chat/stream", json!({"message": "x"})).await);
    let turn = client.next().await.unwrap().data["turnId"].as_str().unwrap().to_owned();
    let cancelled = instance.post(&format!("/api/v1/turns/{turn}/cancel"), json!({})).await;
    assert_eq!(body(cancelled).await["state"], "cancelled");
    let events = client.all().await;
    assert_eq!(events.last().unwrap().data["code"], "cancelled");
    let again = instance.post(&format!("/api/v1/turns/{turn}/cancel"), json!({})).await;
    assert_eq!(again.status(), StatusCode::OK);

    let failed = instance.post("/api/v1/chat", json!({"message": "x", "model": "paced/broken"})).await;
    // Not a 400, which would say that nothing was done: the message is part of the session.
    assert_eq!(failed.status(), StatusCode::BAD_GATEWAY);
    assert!(body(failed).await["error"]["message"].as_str().unwrap().contains("no such luck"));
    let events =
        SseClient::new(instance.post("/api/v1/chat/stream", json!({"message": "x", "model": "paced/broken"})).await);
    let last = events.all().await.pop().unwrap();
    assert_eq!(last.name, "error");
    assert!(last.data["message"].as_str().unwrap().contains("no such luck"));

    model.permits.add_permits(10);
    let done = body(instance.post("/api/v1/chat", json!({"message": "x"})).await).await;
    let late = instance.post(&format!("/api/v1/turns/{}/cancel", done["turnId"].as_str().unwrap()), json!({})).await;
    assert_eq!(late.status(), StatusCode::CONFLICT);
}

#[tokio::test]
async fn sessions_are_listed_reset_and_deleted() {
    let instance = Setup::new(Paced::new(1).free()).one();
    for n in 0..5 {
        instance.post("/api/v1/chat", json!({"message": "x", "sessionKey": format!("s{n}")})).await;
    }
    let mut keys = Vec::new();
    let mut path = "/api/v1/sessions?limit=2".to_owned();
    loop {
        let page = instance.json(&path).await;
        let sessions = page["sessions"].as_array().unwrap();
        assert!(sessions.len() <= 2);
        keys.extend(sessions.iter().map(|session| session["sessionKey"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["nextCursor"].as_str() else { break };
        path = format!("/api/v1/sessions?limit=2&cursor={cursor}");
    }
    assert_eq!(keys, ["s0", "s1", "s2", "s3", "s4"]);
    let reset = body(instance.post("/api/v1/sessions/s1/reset", json!({})).await).await;
    assert_eq!(reset, json!({"sessionKey": "s1", "resetSeq": 2}));
    let page = instance.json("/api/v1/sessions/s1/entries?after=1&limit=1").await;
    assert_eq!((page["entries"][0]["seq"].as_u64(), page["headSeq"].as_u64()), (Some(2), Some(2)));
    let deleted = instance.send(Request::delete("/api/v1/sessions/s1"), Body::empty()).await;
    assert_eq!(body(deleted).await, json!({"sessionKey": "s1", "entryCount": 2}));
    assert_eq!(instance.get("/api/v1/sessions/s1").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(instance.get("/api/v1/sessions/s1/entries").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn health_tells_strangers_little_and_the_truth() {
    let instance = Setup::new(Paced::new(1)).with_token().one();
    let request = |path: &str, token: bool| {
        let request = Request::get(path);
        if token { request.header(AUTHORIZATION, format!("Bearer {TOKEN}")) } else { request }
    };
    for path in ["/api/v1/health", "/api/v1/health/ready", "/ready", "/readyz"] {
        let answer = body(instance.send(request(path, false), Body::empty()).await).await;
        assert_eq!(answer, json!({"ok": true, "status": "ready"}), "{path}");
    }
    for path in ["/health", "/healthz", "/api/v1/health/live"] {
        let answer = body(instance.send(request(path, false), Body::empty()).await).await;
        assert_eq!(answer, json!({"ok": true, "status": "live"}), "{path}");
    }
    let detail = body(instance.send(request("/readyz", true), Body::empty()).await).await;
    assert_eq!(detail["instanceId"], "node-1");
    for (status, word) in [
        (ClusterStatus { has_quorum: false, ..ClusterStatus::default() }, "no_quorum"),
        (ClusterStatus { has_quorum: true, maintenance: true, ..ClusterStatus::default() }, "maintenance"),
        (ClusterStatus { has_quorum: true, draining: true, maintenance: true, ..ClusterStatus::default() }, "draining"),
    ] {
        *instance.cluster.status.lock() = status;
        let response = instance.send(request("/readyz", false), Body::empty()).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body(response).await, json!({"ok": false, "status": word}));
        assert_eq!(instance.send(request("/healthz", false), Body::empty()).await.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn operators_reach_the_cluster() {
    let instance = Setup::new(Paced::new(1)).one();
    assert_eq!(instance.json("/api/v1/cluster").await["clusterId"], "test");
    let on = body(instance.post("/api/v1/maintenance", json!({"on": true})).await).await;
    assert_eq!(on["on"], true);
    assert_eq!(instance.json("/api/v1/maintenance").await["drained"], true);
    let cluster = body(instance.post("/api/v1/cluster/transfer-leader", json!({"to": "node-2"})).await).await;
    assert_eq!((&cluster["clusterId"], &cluster["leader"]), (&json!("test"), &json!("node-2")));
    let unknown = instance.post("/api/v1/cluster/remove", json!({"instanceId": "node-9"})).await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);

    let draining = Setup { refuses: true, ..Setup::new(Paced::new(1)) }.one();
    let refused = draining.post("/api/v1/chat", json!({"message": "x"})).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body(refused).await["error"]["code"], "draining");
}

#[tokio::test]
async fn metrics_are_for_this_machine_and_token_holders() {
    let instance = Setup::new(Paced::new(1)).with_token().one();
    let ask = async |peer: [u8; 4], header: Option<(&str, String)>| {
        let mut request = Request::get("/metrics").extension(Peer::Tcp(SocketAddr::from((peer, 1))));
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        instance.send(request, Body::empty()).await
    };
    assert_eq!(ask([127, 0, 0, 1], None).await.status(), StatusCode::OK);
    assert_eq!(
        ask([127, 0, 0, 1], Some(("x-forwarded-for", "10.0.0.1".into()))).await.status(),
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(ask([10, 0, 0, 1], None).await.status(), StatusCode::UNAUTHORIZED);
    let page = ask([10, 0, 0, 1], Some(("authorization", format!("Bearer {TOKEN}")))).await;
    assert!(page.headers()[CONTENT_TYPE].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let page = String::from_utf8(bytes(page).await.to_vec()).unwrap();
    assert!(page.contains(r#"openclaw_http_requests_total{method="GET",route="/metrics",status="401"} 2"#), "{page}");
}

#[tokio::test]
async fn the_page_is_served_with_a_policy_and_a_tag() {
    let instance = Setup::new(Paced::new(1)).with_token().one();
    let page = instance.get("/").await;
    assert_eq!(page.status(), StatusCode::OK);
    assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("script-src 'self'"));
    let tag = page.headers()["etag"].to_str().unwrap().to_owned();
    let again =
        instance.send(Request::get("/").header("if-none-match", format!("W/{tag}, \"x\"")), Body::empty()).await;
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(instance.get("/app.js").await.headers()[CONTENT_TYPE], "text/javascript; charset=utf-8");
    assert_eq!(instance.get("/nothing.js").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(instance.get("/api/v1/openapi.json").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn openai_clients_are_served_without_state() {
    let model = Paced::new(3).free();
    let instance = Setup::new(model.clone()).one();
    let request = json!({
        "model": "openclaw", "temperature": 0.5, "top_p": 1, "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
    });
    let answer = body(instance.post("/v1/chat/completions", request.clone()).await).await;
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["choices"][0]["message"], json!({"role": "assistant", "content": model.text()}));
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"], json!({"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}));
    assert_eq!(model.prompts.lock()[0].messages[1].text, "a\nb");

    let mut streamed = request;
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let chunks = chunks(instance.post("/v1/chat/completions", streamed).await).await;
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(content(&chunks), model.text());
    let usage = &chunks[chunks.len() - 1];
    assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &json!(6)));
    assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], "stop");
    // None of it was stored.
    assert_eq!(instance.json("/api/v1/sessions").await["sessions"], json!([]));

    let failed = instance
        .post(
            "/v1/chat/completions",
            json!({"model": "paced/broken", "stream": true, "messages": [{"role": "user", "content": "x"}]}),
        )
        .await;
    assert_eq!(failed.status(), StatusCode::BAD_REQUEST);
    assert_eq!(body(failed).await["error"]["type"], "invalid_request_error");
}

/// The data lines of a streamed completion; the last must be `[DONE]`.
async fn chunks(response: Response) -> Vec<Value> {
    assert_eq!(response.status(), StatusCode::OK);
    let text = String::from_utf8(bytes(response).await.to_vec()).unwrap();
    let mut lines: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(lines.pop(), Some("[DONE]"), "{text}");
    lines.into_iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn content(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
}

#[tokio::test]
async fn openai_clients_with_a_user_have_a_session() {
    let model = Paced::new(2).free();
    let instance = Setup::new(model.clone()).one();
    let request =
        |text: &str| json!({"model": "openclaw/ops", "user": "ann", "messages": [{"role": "user", "content": text}]});
    for text in ["one", "two"] {
        let answer = instance.post("/v1/chat/completions", request(text)).await;
        assert!(answer.headers().contains_key("x-openclaw-index"));
        assert_eq!(body(answer).await["choices"][0]["message"]["content"], model.text());
    }
    let session = instance.json("/api/v1/sessions/agent:ops:openai-user:ann").await;
    assert_eq!((&session["headSeq"], &session["agentId"]), (&json!(4), &json!("ops")));
    let mut streamed = request("three");
    streamed["stream"] = json!(true);
    let in_session = |request: &Value, key: &'static str| {
        let request = request.clone();
        let instance = &instance;
        async move { instance.post_with("/v1/chat/completions", request, &[("x-openclaw-session-key", key)]).await }
    };
    let response = in_session(&streamed, "agent:ops:x").await;
    assert_eq!(content(&chunks(response).await), model.text());
    assert_eq!(instance.json("/api/v1/sessions/agent:ops:x").await["headSeq"], 2);
    // The model names the agent of a session that does not, and contradicts one that does.
    assert_eq!(in_session(&request("four"), "plain").await.status(), StatusCode::OK);
    assert_eq!(instance.json("/api/v1/sessions/plain").await["agentId"], "ops");
    assert_eq!(in_session(&request("five"), "agent:main:x").await.status(), StatusCode::BAD_REQUEST);
    streamed["model"] = json!("openclaw");
    assert_eq!(content(&chunks(in_session(&streamed, "agent:main:x").await).await), model.text());
}

#[tokio::test]
async fn openai_models_are_listed() {
    let instance = Setup::new(Paced::new(1)).one();
    let list = instance.json("/v1/models").await;
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert!(["openclaw", "openclaw/ops", "paced/model"].iter().all(|id| ids.contains(id)), "{ids:?}");
    assert_eq!(instance.json("/v1/models/paced/model").await["owned_by"], "paced");
    let unknown = instance.get("/v1/models/none").await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    assert_eq!(body(unknown).await["error"]["type"], "invalid_request_error");
}

/// Method, path, headers, body, and the status of its answer.
type Malformed<'a> = (Method, String, Vec<(&'a str, &'a str)>, String, u16);

/// Each malformed request has its documented answer: a code, never a 500, and a body that says what is wrong.
#[tokio::test]
async fn malformed_requests_have_their_documented_answers() {
    let mut setup = Setup::new(Paced::new(1).free()).with_token();
    setup.config.limits.body_bytes = openclaw_config::ByteCount::kib(64);
    let instance = setup.one();
    let long = "x".repeat(300);
    let nested = format!("{}{}", "[".repeat(500), "]".repeat(500));
    let large = format!(r#"{{"message":"{}"}}"#, "x".repeat(70 << 10));
    let turn = TurnId::random();
    let chat = "/api/v1/chat";
    let stream = "/api/v1/chat/stream";
    let completions = "/v1/chat/completions";
    let entries = "/api/v1/sessions/s/entries";
    let post = Method::POST;
    // Bodies.
    let bodies: Vec<(&str, &str, u16)> = vec![
        (completions, r#"{"model":"openclaw","n":2,"messages":[{"role":"user","content":"x"}]}"#, 400),
        (completions, r#"{"model":"openclaw","n":0,"messages":[{"role":"user","content":"x"}]}"#, 400),
        (chat, "", 400),
        (chat, "{", 400),
        (chat, "null", 400),
        (chat, "[]", 400),
        (chat, "\"x\"", 400),
        (chat, "5", 400),
        (chat, "{}", 400),
        (chat, r#"{"message":5}"#, 400),
        (chat, r#"{"message":null}"#, 400),
        (chat, r#"{"message":["x"]}"#, 400),
        (chat, r#"{"message":""}"#, 400),
        (chat, r#"{"message":" \n"}"#, 400),
        (chat, r#"{"message":"x"}}"#, 400),
        (chat, r#"{"message":"x",}"#, 400),
        (chat, r#"{'message':'x'}"#, 400),
        (chat, r#"{"message":"x","message":"y"}"#, 400),
        (chat, r#"{"message":"x","mesage":"y"}"#, 400),
        (chat, r#"{"message":"x","sessionKey":""}"#, 400),
        (chat, r#"{"message":"x","sessionKey":"a b"}"#, 400),
        (chat, r#"{"message":"x","sessionKey":"a/b"}"#, 400),
        (chat, r#"{"message":"x","sessionKey":"cron:x"}"#, 400),
        (chat, r#"{"message":"x","sessionKey":"subagent:x"}"#, 400),
        (chat, r#"{"message":"x","sessionKey":7}"#, 400),
        (chat, r#"{"message":"x","sessionKey":"a\u0000b"}"#, 400),
        (chat, r#"{"message":"\ud800"}"#, 400),
        (chat, r#"{"message":"x","agentId":"nobody"}"#, 400),
        (chat, r#"{"message":"x","agentId":"../x"}"#, 400),
        (chat, r#"{"message":"x","agentId":"ops","sessionKey":"agent:main:main"}"#, 400),
        (chat, r#"{"message":"x","model":"none"}"#, 400),
        (chat, r#"{"message":"x","model":"none/x"}"#, 400),
        (chat, r#"{"message":"x","model":"/"}"#, 400),
        (chat, r#"{"message":"x","user":""}"#, 400),
        (chat, &nested, 400),
        (chat, &large, 413),
        (stream, &large, 413),
        (stream, "{", 400),
        (stream, "{}", 400),
        (stream, r#"{"message":""}"#, 400),
        (stream, r#"{"message":"x","model":"none/x"}"#, 400),
        (entries, r#"{"role":"user"}"#, 400),
        (entries, r#"{"role":"boss","text":"x"}"#, 400),
        (entries, r#"{"role":"user","text":5}"#, 400),
        (entries, r#"{"role":"user","text":"x","seq":1}"#, 400),
        ("/api/v1/sessions/cron:x/entries", r#"{"role":"user","text":"x"}"#, 400),
        ("/api/v1/maintenance", r#"{"on":"yes"}"#, 400),
        ("/api/v1/maintenance", "{}", 400),
        ("/api/v1/cluster/remove", r#"{"instanceId":"../x"}"#, 400),
        ("/api/v1/cluster/remove", "{}", 400),
        ("/api/v1/cluster/transfer-leader", r#"{"to":""}"#, 400),
        ("/api/v1/cluster/transfer-leader", r#"{"to":"node-1","now":true}"#, 400),
        (completions, "{", 400),
        (completions, "{}", 400),
        (completions, r#"{"model":"openclaw","messages":[]}"#, 400),
        (completions, r#"{"model":"openclaw","messages":"x"}"#, 400),
        (completions, r#"{"model":"gpt-4o","messages":[{"role":"user","content":"x"}]}"#, 404),
        (completions, r#"{"model":"openclaw/none","messages":[{"role":"user","content":"x"}]}"#, 404),
        (completions, r#"{"model":"openclaw","messages":[{"role":"boss","content":"x"}]}"#, 400),
        (completions, r#"{"model":"openclaw","messages":[{"role":"user","content":5}]}"#, 400),
        (completions, r#"{"model":"openclaw","temperature":9,"messages":[{"role":"user","content":"x"}]}"#, 400),
        (completions, r#"{"model":"openclaw","max_tokens":0,"messages":[{"role":"user","content":"x"}]}"#, 400),
        (completions, r#"{"model":"openclaw","max_tokens":-1,"messages":[{"role":"user","content":"x"}]}"#, 400),
        (completions, r#"{"model":"openclaw","user":"u","messages":[{"role":"system","content":"x"}]}"#, 400),
    ];
    let ok = r#"{"message":"x"}"#;
    let json_type = ("content-type", "application/json");
    let mut cases: Vec<Malformed<'_>> = Vec::new();
    for (path, body, status) in bodies {
        cases.push((post.clone(), path.into(), vec![json_type], body.into(), status));
    }
    // Headers of a body that is fine.
    let headers: Vec<(Vec<(&str, &str)>, u16)> = vec![
        (vec![], 415),
        (vec![("content-type", "text/plain")], 415),
        (vec![("content-type", "application/x-www-form-urlencoded")], 415),
        (vec![("content-type", "multipart/form-data; boundary=x")], 415),
        (vec![("content-type", "application/jsonx")], 415),
        (vec![json_type, json_type], 400),
        (vec![json_type, ("content-encoding", "gzip")], 415),
        (vec![json_type, ("idempotency-key", "")], 400),
        (vec![json_type, ("idempotency-key", "a b")], 400),
        (vec![json_type, ("idempotency-key", &long)], 400),
        (vec![json_type, ("idempotency-key", "ü")], 400),
        (vec![json_type, ("idempotency-key", "a"), ("idempotency-key", "b")], 400),
        (vec![json_type, ("content-length", "999999999")], 413),
    ];
    for (headers, status) in headers {
        cases.push((post.clone(), chat.into(), headers, ok.into(), status));
    }
    let appended = r#"{"role":"user","text":"x"}"#;
    for value in ["x", "-1", "*", "\"1", "1.5", ""] {
        cases.push((post.clone(), entries.into(), vec![json_type, ("if-match", value)], appended.into(), 400));
    }
    // Reads.
    let get = Method::GET;
    for (path, status) in [
        ("/api/v1/sessions?limit=0", 400),
        ("/api/v1/sessions?limit=201", 400),
        ("/api/v1/sessions?limit=-1", 400),
        ("/api/v1/sessions?limit=x", 400),
        ("/api/v1/sessions?limit=1&limit=2", 400),
        ("/api/v1/sessions?cursor=", 400),
        ("/api/v1/sessions?cursor=A%20B", 400),
        ("/api/v1/sessions?offset=1", 400),
        ("/api/v1/sessions?consistency=x", 400),
        ("/api/v1/sessions?limit=99999999999999999999999", 400),
        ("/api/v1/sessions/none", 404),
        ("/api/v1/sessions/a%20b", 400),
        ("/api/v1/sessions/%00", 400),
        ("/api/v1/sessions/%ff", 400),
        ("/api/v1/sessions/a%2Fb", 400),
        ("/api/v1/sessions/none/entries", 404),
        ("/api/v1/sessions/none/entries?after=-1", 400),
        ("/api/v1/turns/none", 400),
        ("/api/v1/turns/00", 404),
        ("/api/v1/turns/00?x=1", 400),
        ("/api/v1/chat/stream", 400),
        ("/api/v1/chat/stream?turnId=", 400),
        ("/api/v1/chat/stream?turnId=XYZ", 400),
        ("/api/v1/chat/stream?turnId=00", 404),
        ("/api/v1/chat/stream?turn=00", 400),
        ("/api/v1/none", 404),
        ("/api/v2/chat", 404),
        ("/v1/none", 404),
        ("/v1/models/none", 404),
        ("/../etc/passwd", 404),
        ("/index.html", 404),
        ("/api/v1/chat", 405),
        ("/v1/chat/completions", 405),
        ("/api/v1/cluster?x=1", 400),
        ("/api/v1/cluster/remove", 405),
    ] {
        cases.push((get.clone(), path.into(), vec![], String::new(), status));
    }
    for id in
        ["x", ".", "0.1-1", "00.1", "00.1-", "00.-1-1", "00.x-1", "00.99999999999-1", "00.1-99999999999999999999999"]
    {
        let status = if id == "0.1-1" { 404 } else { 400 };
        cases.push((get.clone(), stream.into(), vec![("last-event-id", id)], String::new(), status));
    }
    let other = format!("{turn}.1-1");
    cases.push((
        get.clone(),
        "/api/v1/chat/stream?turnId=00".into(),
        vec![("last-event-id", &other)],
        String::new(),
        400,
    ));
    for (name, value) in [("x-openclaw-min-index", "x"), ("x-openclaw-min-index", "-1"), ("x-openclaw-min-index", "")] {
        cases.push((get.clone(), "/api/v1/sessions".into(), vec![(name, value)], String::new(), 400));
    }
    for (method, path) in [
        (Method::PUT, chat),
        (Method::DELETE, chat),
        (Method::PATCH, "/api/v1/sessions"),
        (Method::OPTIONS, chat),
        (Method::POST, "/api/v1/sessions"),
        (Method::PUT, "/api/v1/sessions/s"),
        (Method::POST, "/metrics"),
        (Method::TRACE, "/"),
        (Method::POST, "/healthz"),
    ] {
        cases.push((method, path.into(), vec![], String::new(), 405));
    }
    assert!(cases.len() > 120);
    for (method, path, headers, sent, status) in cases {
        let case = format!("{method} {path} {headers:?} {}", sent.chars().take(60).collect::<String>());
        let mut request = Request::builder().method(method).uri(&path).header(AUTHORIZATION, format!("Bearer {TOKEN}"));
        for (name, value) in headers {
            request = request.header(name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let response = instance.send(request, sent).await;
        assert_eq!(response.status(), status, "{case}");
        assert!(response.headers().contains_key("x-request-id"), "{case}");
        let bytes = bytes(response).await;
        if path.starts_with("/v1/") {
            let body: Value = serde_json::from_slice(&bytes).unwrap();
            assert!(body["error"]["message"].is_string() && body["error"]["type"].is_string(), "{case}: {body}");
        } else {
            let body: ErrorBody = serde_json::from_slice(&bytes).unwrap_or_else(|_| panic!("{case}: {bytes:?}"));
            assert_eq!(body.error.code.status(), status, "{case}");
            assert!(!body.error.message.is_empty() && !body.error.request_id.is_empty(), "{case}");
        }
    }
}

#[tokio::test]
async fn callers_without_the_token_and_other_pages_are_refused() {
    let instance = Setup::new(Paced::new(1).free()).with_token().one();
    let guarded = [
        "/api/v1/sessions",
        "/api/v1/cluster",
        "/api/v1/maintenance",
        "/v1/models",
        "/api/v1/turns/00",
        "/api/v1/chat/stream?turnId=00",
        "/api/v1/sessions/s/entries",
    ];
    for path in guarded {
        for value in [
            None,
            Some("Bearer x"),
            Some("Bearer "),
            Some("Basic eDp5"),
            Some("s3cret-token"),
            Some("Bearer s3cret-tokem"),
        ] {
            let mut request = Request::get(path);
            if let Some(value) = value {
                request = request.header(AUTHORIZATION, value);
            }
            let response = instance.send(request, Body::empty()).await;
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{path} {value:?}");
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
        }
    }
    let with_origin = async |origin: &str, method: Method| {
        let request = Request::builder()
            .method(method)
            .uri("/api/v1/sessions")
            .header(ORIGIN, origin)
            .header("access-control-request-method", "GET")
            .header(AUTHORIZATION, format!("Bearer {TOKEN}"));
        instance.send(request, Body::empty()).await
    };
    assert_eq!(with_origin("http://localhost:3000", Method::GET).await.status(), StatusCode::OK);
    let allowed = with_origin("https://chat.example", Method::GET).await;
    assert_eq!(
        (allowed.status(), allowed.headers()["access-control-allow-origin"].clone()),
        (StatusCode::OK, "https://chat.example".parse().unwrap())
    );
    assert_eq!(with_origin("https://chat.example", Method::OPTIONS).await.status(), StatusCode::NO_CONTENT);
    for origin in ["null", "https://evil.example", "http://localhost:3001", "https://chat.example.evil.example"] {
        for method in [Method::GET, Method::OPTIONS] {
            let refused = with_origin(origin, method).await;
            assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{origin}");
            assert!(!refused.headers().contains_key("access-control-allow-origin"));
        }
    }
    // Nothing was asked of the page's own files.
    let operator = operator_router(Gateway::clone(&gateway_of(&instance)));
    let request = Request::get("/api/v1/sessions").header(HOST, "localhost").body(Body::empty()).unwrap();
    assert_eq!(operator.oneshot(request).await.unwrap().status(), StatusCode::OK);
}

/// Another router over an instance's parts.
fn gateway_of(instance: &Instance) -> Gateway {
    let config: gateway::Gateway = serde_json::from_value(json!({"auth": {"token": TOKEN}})).unwrap();
    Gateway::new(Parts {
        instance_id: instance.id.clone(),
        store: Arc::new(instance.store.clone()),
        follow: instance.follow.clone(),
        load: Load::default(),
        models: Models::from_config(&openclaw_config::Models::default()).unwrap(),
        agents: Agents::default(),
        cluster: instance.cluster.clone(),
        channels: Arc::new(NoChannels),
        metrics: instance.metrics.clone(),
        config,
        max_queued: 20,
    })
}

struct Served {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn served(instance: &Instance, options: server::Options) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let serve = server::serve(listener, instance.router.clone(), options, instance.metrics.clone(), shutdown.clone());
    Served { address, shutdown, task: tokio::spawn(serve) }
}

fn quick() -> server::Options {
    server::Options {
        header_read: Duration::from_millis(200),
        write_stall: Duration::from_millis(300),
        drain: Duration::from_millis(200),
        ..server::Options::from(&gateway::Limits::default())
    }
}

/// Whether the peer closes the connection soon, whatever it says before.
async fn closes(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut said = Vec::new();
    match timeout(SOON, stream.read_to_end(&mut said)).await.expect("the connection to be closed") {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn slow_clients_do_not_hold_connections() {
    let instance = Setup::new(Paced::new(1)).one();
    let served = served(&instance, quick()).await;
    for said in [
        "",
        "P",
        "PRI * HTTP/2.0",
        "POST",
        "GET /healthz HTTP/1.1\r\nHost: loc",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n",
    ] {
        let mut client = TcpStream::connect(served.address).await.unwrap();
        client.write_all(said.as_bytes()).await.unwrap();
        closes(&mut client).await;
    }
    // One byte at a time is no better.
    let mut client = TcpStream::connect(served.address).await.unwrap();
    let (mut reader, mut writer) = client.split();
    let drip = async {
        for byte in "GET /healthz HTTP/1.1\r\nHost: localhost\r\n".bytes().cycle() {
            if writer.write_all(&[byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        _ = closes(&mut reader) => {}
        () = drip => {}
    }
    let mut client = TcpStream::connect(served.address).await.unwrap();
    client.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(closes(&mut client).await.starts_with("HTTP/1.1 200"));
    let mut client = TcpStream::connect(served.address).await.unwrap();
    client.write_all(b"\x16\x03\x01 this is not HTTP at all\r\n\r\n").await.unwrap();
    closes(&mut client).await;
    let mut client = TcpStream::connect(served.address).await.unwrap();
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nx-long: {}\r\n\r\n", "x".repeat(64 << 10));
    client.write_all(long.as_bytes()).await.ok();
    let refused = closes(&mut client).await;
    assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 431"), "{refused}");
    served.shutdown.cancel();
    timeout(SOON, served.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_closed_and_continues_elsewhere() {
    let model = Paced::new(40_000);
    let instance = Setup::new(model.clone()).one();
    let served = served(&instance, quick()).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(served.address).await.unwrap();
    let request = r#"{"message":"x"}"#;
    let head = format!(
        "POST /api/v1/chat/stream HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        request.len()
    );
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let until = Instant::now() + SOON;
    while instance.metrics.http_streams.get() == 0 {
        assert!(Instant::now() < until);
        sleep(Duration::from_millis(5)).await;
    }
    // Far more than socket buffers hold, one event at a time, while nobody reads.
    while instance.metrics.http_streams.get() > 0 {
        assert!(Instant::now() < until, "the stream was not closed");
        model.permits.add_permits(100);
        sleep(Duration::from_millis(2)).await;
    }
    model.permits.add_permits(40_000);
    let session = async {
        loop {
            let session = instance.json("/api/v1/sessions/agent:main:main").await;
            if session["headSeq"] == 2 {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, session).await.expect("the turn goes on");
    served.shutdown.cancel();
    served.task.await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once() {
    let instance = Setup::new(Paced::new(1)).one();
    let served = served(&instance, server::Options { max_connections: 2, header_read: SOON, ..quick() }).await;
    let held = [TcpStream::connect(served.address).await.unwrap(), TcpStream::connect(served.address).await.unwrap()];
    let until = Instant::now() + SOON;
    while instance.metrics.http_connections.get() < 2 {
        assert!(Instant::now() < until);
        sleep(Duration::from_millis(2)).await;
    }
    let mut third = TcpStream::connect(served.address).await.unwrap();
    assert_eq!(closes(&mut third).await, "");
    assert_eq!(instance.metrics.http_refused_connections.get(), 1);
    drop(held);
    served.shutdown.cancel();
    timeout(SOON, served.task).await.expect("an end in time").unwrap();
}

#[tokio::test]
async fn the_admin_socket_is_for_its_owner_and_needs_no_token() {
    use std::os::unix::fs::PermissionsExt;
    let instance = Setup::new(Paced::new(1)).with_token().one();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    for _ in 0..2 {
        // The second time the first one's socket file is there, with nobody behind it.
        let listener = server::bind_unix(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let shutdown = CancellationToken::new();
        let router = operator_router(gateway_of(&instance));
        let task =
            tokio::spawn(server::serve_unix(listener, router, quick(), instance.metrics.clone(), shutdown.clone()));
        let mut client = UnixStream::connect(&path).await.unwrap();
        client
            .write_all(b"GET /api/v1/cluster HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        assert!(closes(&mut client).await.starts_with("HTTP/1.1 200"));
        shutdown.cancel();
        timeout(SOON, task).await.unwrap().unwrap();
    }
    let file = directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(server::bind_unix(&file).is_err());
}

#[tokio::test]
async fn a_panic_is_an_answer() {
    let instance = Setup::new(Paced::new(1)).one();
    let gateway = gateway_of(&instance);
    let router = Router::new()
        .route("/boom", get(async || -> StatusCode { panic!("planted") }))
        .layer(from_fn_with_state(gateway, envelope::wrap));
    let request = Request::get("/boom").header(HOST, "localhost").body(Body::empty()).unwrap();
    let response = router.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let error: ErrorBody = serde_json::from_value(body(response).await).unwrap();
    assert_eq!(error.error.code, ErrorCode::Internal);
    assert!(!error.error.request_id.is_empty());
}
